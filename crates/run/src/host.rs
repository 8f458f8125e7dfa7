//! The devices and the maps that are on them, for as many programs as there are.

use crate::kernel;
use crate::objects::{Files, Objects};
use crate::{COLLECT, RunError};
use offmap_bpf::{Fd, IfIndex, System};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

/// A map side with devices, whose maps programs make and share.
///
/// Maps of programs that have ended are there as long as something refers to them: another
/// program, or a pin. The last [`Arc`] of it takes the maps with it.
pub struct Host {
    pub(crate) system: Arc<System>,
    pub(crate) objects: Objects,
    pub(crate) devices: Vec<IfIndex>,
    /// BTF objects of the bpf layer, by the kernel's id of the same.
    pub(crate) btf: Mutex<HashMap<u32, Fd>>,
    /// Where maps of ours were pinned in the kernel's file system, with the kernel's id.
    pub(crate) pins: Mutex<Vec<(PathBuf, u32)>>,
}

impl Host {
    /// With `devices`, which are registered with the system already. `files` says what stands for
    /// maps in programs; `None`: maps of the kernel where it lets this user make them, otherwise
    /// memfds.
    ///
    /// # Errors
    ///
    /// [`RunError::Files`], when maps of the kernel were asked for.
    pub fn new(
        system: Arc<System>,
        devices: Vec<IfIndex>,
        files: Option<Files>,
    ) -> Result<Arc<Self>, RunError> {
        let host = Arc::new(Self {
            system,
            objects: Objects::new(files).map_err(RunError::Files)?,
            devices,
            btf: Mutex::default(),
            pins: Mutex::default(),
        });
        let janitor = Arc::downgrade(&host);
        std::thread::spawn(move || {
            while let Some(host) = janitor.upgrade() {
                host.objects.collect();
                drop(host);
                std::thread::sleep(COLLECT);
            }
        });
        Ok(host)
    }

    /// What stands for maps in programs.
    pub fn files(&self) -> Files {
        self.objects.files()
    }

    /// Takes the pins away behind which there is nothing once this host ends: those of the kernel's
    /// file system that still refer to a map which stands for one of ours.
    pub fn unpin(&self) -> Vec<PathBuf> {
        let pins = std::mem::take(&mut *self.pins.lock().unwrap_or_else(PoisonError::into_inner));
        let stale = pins.into_iter().filter(|(path, id)| {
            let stands = kernel::pinned(path)
                .ok()
                .and_then(|file| self.objects.kernel_id(&file));
            stands == Some(*id) && std::fs::remove_file(path).is_ok()
        });
        stale.map(|(path, _)| path).collect()
    }
}
