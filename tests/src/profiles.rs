//! Where the strict profiles are judged: our stack under a profile, and the running kernel's
//! netdevsim where it has one.
//!
//! [`Bed`] makes maps on a device; the rows of the kernel contract are written once over it, in
//! `tests/contract_profiles.rs`.

use crate::kernel::KernelMap;
use crate::stack::{Stack, StackMap};
use crate::subject::Subject;
use offmap_bpf::{MapCreateAttr, MapType};
use offmap_emulator::{DeviceConfig, Inline};
use offmap_offload::Profile;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// A device that maps are created on.
pub trait Bed {
    /// Who answers, for messages.
    fn name(&self) -> &'static str;
    /// BPF_MAP_CREATE on the device, whatever `map_ifindex` in `attr` is.
    ///
    /// # Errors
    ///
    /// The error number.
    fn create(&self, attr: &MapCreateAttr) -> Result<Box<dyn Subject>, i32>;
    /// BPF_MAP_CREATE with `attr` as it is.
    ///
    /// # Errors
    ///
    /// The error number.
    fn create_as_is(&self, attr: &MapCreateAttr) -> Result<Box<dyn Subject>, i32>;

    /// A map that must be accepted.
    #[track_caller]
    fn map(&self, map_type: MapType, max_entries: u32) -> Box<dyn Subject> {
        let made = self.create(&attr(map_type, max_entries));
        made.unwrap_or_else(|e| panic!("{}: {map_type} of {max_entries}: errno {e}", self.name()))
    }
}

/// Attributes of a map with the contract's sizes: keys of 4 bytes, values of 8.
pub fn attr(map_type: MapType, max_entries: u32) -> MapCreateAttr {
    MapCreateAttr {
        map_type: map_type.0,
        key_size: 4,
        value_size: 8,
        max_entries,
        ..MapCreateAttr::default()
    }
}

impl Bed for Stack<Inline> {
    fn name(&self) -> &'static str {
        "offmap"
    }

    fn create(&self, attr: &MapCreateAttr) -> Result<Box<dyn Subject>, i32> {
        self.create_as_is(&MapCreateAttr {
            map_ifindex: self.ifindex.0,
            ..*attr
        })
    }

    fn create_as_is(&self, attr: &MapCreateAttr) -> Result<Box<dyn Subject>, i32> {
        let caller = offmap_bpf::Caller::root();
        let opened = self.system.map_create(&caller, attr).and_then(|fd| {
            let file = self.system.map_file(fd)?;
            self.system.close(fd)?;
            Ok(file)
        });
        match opened {
            Ok(file) => Ok(Box::new(StackMap {
                name: "offmap",
                file,
            })),
            Err(error) => {
                assert!(error.reason().len() > 10, "no reason: {error}");
                Err(error.errno().0)
            }
        }
    }
}

/// Our stack with a built-in profile, on an inline device.
pub fn stack(profile: &str) -> Stack<Inline> {
    let profile = Profile::named(profile).expect("a built-in profile");
    let function = Inline::new(DeviceConfig::default()).expect("an inline device");
    Stack::with_profile(function, profile)
}

/// The running kernel's netdevsim device, made by [`KernelNetdevsim::new`] and gone with it.
pub struct KernelNetdevsim {
    ifindex: u32,
    id: u32,
}

const BUS: &str = "/sys/bus/netdevsim";

impl KernelNetdevsim {
    /// A new device with one port.
    ///
    /// # Errors
    ///
    /// Why there is none, in words: mostly that the kernel has no such bus.
    pub fn new() -> Result<Self, String> {
        if !Path::new(BUS).is_dir() {
            return Err(format!("the kernel has no {BUS}"));
        }
        // Another one than those of tests beside this one, in this process and in others.
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let id = std::process::id() % 10_000 * 1000 + NEXT.fetch_add(1, Ordering::Relaxed) % 1000;
        let folder = PathBuf::from(format!("{BUS}/devices/netdevsim{id}/net"));
        fs::write(format!("{BUS}/new_device"), format!("{id} 1"))
            .map_err(|e| format!("{BUS}/new_device: {e}"))?;
        // From here on it is taken away again, whatever goes wrong.
        let mut device = Self { ifindex: 0, id };
        let port = fs::read_dir(&folder)
            .ok()
            .and_then(|mut ports| ports.next()?.ok())
            .ok_or_else(|| format!("{}: no port", folder.display()))?;
        device.ifindex = fs::read_to_string(port.path().join("ifindex"))
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .ok_or_else(|| format!("{}: no ifindex", port.path().display()))?;
        Ok(device)
    }
}

impl Drop for KernelNetdevsim {
    fn drop(&mut self) {
        let _ = fs::write(format!("{BUS}/del_device"), format!("{}", self.id));
    }
}

impl Bed for KernelNetdevsim {
    fn name(&self) -> &'static str {
        "kernel"
    }

    fn create(&self, attr: &MapCreateAttr) -> Result<Box<dyn Subject>, i32> {
        self.create_as_is(&MapCreateAttr {
            map_ifindex: self.ifindex,
            ..*attr
        })
    }

    fn create_as_is(&self, attr: &MapCreateAttr) -> Result<Box<dyn Subject>, i32> {
        Ok(Box::new(KernelMap::create(attr)?))
    }
}
