//! The devices and the maps that are on them, for as many programs as there are.

use crate::objects::{Btf, Files, Objects};
use crate::pins;
use crate::{COLLECT, RunError};
use offmap_bpf::{IfIndex, System};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};

/// A map side with devices, whose maps programs make and share.
///
/// Maps of programs that have ended are there as long as something refers to them: another
/// program, or a pin. The last [`Arc`] of it takes the maps with it.
pub struct Host {
    pub(crate) system: Arc<System>,
    pub(crate) objects: Objects,
    pub(crate) devices: Vec<IfIndex>,
    /// BTF objects of the bpf layer, by the kernel's id of the same.
    pub(crate) btf: Mutex<HashMap<u32, Weak<Btf>>>,
    /// Whether a map of ours was ever pinned in the kernel's file system.
    pub(crate) pinned: AtomicBool,
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
            pinned: AtomicBool::new(false),
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

    /// Takes the pins away behind which there is nothing once this host ends: those in the file systems
    /// of the kernel that this process sees which refer to a map that stands for one of ours. Where
    /// they were.
    pub fn unpin(&self) -> Vec<PathBuf> {
        match self.pinned.load(Ordering::Relaxed) {
            true => pins::remove(|file| {
                let id = self.objects.kernel_id(file);
                id.is_some_and(|id| self.objects.has(id))
            }),
            false => Vec::new(),
        }
    }
}
