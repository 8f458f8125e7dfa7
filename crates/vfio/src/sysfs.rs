//! PCI functions as the kernel shows them in sysfs, and whose driver has them.
//!
//! Binding to vfio-pci goes by `driver_override`, which concerns one function only. What was
//! done is told step by step; where a step fails, those before it are undone. The driver and the override of
//! before are written down in `/run/offmap/bound`, and giving the function back restores them.

use crate::record::{self, Earlier};
use crate::uses;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The driver that lends functions to user space.
pub const VFIO_PCI: &str = "vfio-pci";

/// Drivers of the kernel beside which a group may still be lent.
const HARMLESS: [&str; 3] = ["pcieport", "pci-stub", "shpchp"];

/// Why a function cannot be found, bound or given back.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SysfsError {
    /// The address is no address.
    #[error("{0:?} is no PCI address, such as 0000:01:00.0")]
    BadAddress(String),
    /// There is no function at it.
    #[error("there is no PCI function at {0}: offmap device list shows those that there are")]
    NoSuchFunction(String),
    /// The driver is not loaded.
    #[error("the kernel has no driver {VFIO_PCI}: load it, modprobe {VFIO_PCI}")]
    NoDriver,
    /// There is no IOMMU behind the function.
    #[error(
        "{0} has no IOMMU group, and {VFIO_PCI} takes no function without one: enable the IOMMU in the firmware's \
         settings (VT-d, AMD-Vi), and boot with intel_iommu=on on an Intel machine"
    )]
    NoIommu(String),
    /// It is not the device that was expected, or somebody uses it; nothing was done.
    #[error(
        "{what}; it is left alone. Bound to {VFIO_PCI} it is lost to this machine until it is given back: with \
         --force it is bound all the same"
    )]
    NotOurs {
        /// What the function is, and who uses it.
        what: String,
    },
    /// What the function was cannot be written down; nothing was done.
    #[error("{}: cannot write down what {address} was before: {source}{}", .path.display(), hint(.source))]
    Record {
        /// The function.
        address: String,
        /// The folder.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// Another driver has it, or none.
    #[error("{address} is bound to {}, so there is nothing to give back", .driver.as_deref().unwrap_or("no driver"))]
    NotVfio {
        /// The function.
        address: String,
        /// Its driver.
        driver: Option<String>,
    },
    /// A write to sysfs failed; what was done before is undone.
    #[error("{what} failed: {source}{}", hint(.source))]
    Write {
        /// What was tried.
        what: String,
        /// The system's error.
        source: io::Error,
    },
    /// The kernel accepted everything, and the function is not bound.
    #[error("{address} is still bound to {}; dmesg may say why", .driver.as_deref().unwrap_or("no driver"))]
    NotTaken {
        /// The function.
        address: String,
        /// Its driver.
        driver: Option<String>,
    },
    /// Sysfs cannot be read.
    #[error("cannot read {}: {source}", .path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => " (it takes root)",
        io::ErrorKind::ResourceBusy => " (somebody is using the device)",
        _ => "",
    }
}

/// A PCI function.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PciFunction {
    /// Its address: domain, bus, device and function, such as `0000:01:00.0`.
    pub address: String,
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Its class: base class, subclass and programming interface, a byte each from the highest on.
    pub class: Option<u32>,
    /// The driver that it is bound to.
    pub driver: Option<String>,
    /// The IOMMU group that it is in.
    pub iommu_group: Option<u32>,
    /// The group is one without an IOMMU.
    pub no_iommu: bool,
    /// The NUMA node that it is at, if the machine says so.
    pub numa_node: Option<u32>,
}

impl PciFunction {
    /// What its base class is called; the PCI SIG's list has them all.
    pub fn class_name(&self) -> &'static str {
        match self.class.map(|class| class >> 16) {
            Some(0x01) => "mass storage",
            Some(0x02) => "network",
            Some(0x03) => "display",
            Some(0x04) => "multimedia",
            Some(0x05) => "memory",
            Some(0x06) => "bridge",
            Some(0x07) => "communication",
            Some(0x08) => "system peripheral",
            Some(0x0c) => "serial bus",
            Some(0x10) => "encryption",
            Some(0x12) => "accelerator",
            _ => "other",
        }
    }

    /// Whether it is bound to vfio-pci.
    pub fn is_vfio(&self) -> bool {
        self.driver.as_deref() == Some(VFIO_PCI)
    }
}

/// How something is written to a file of sysfs.
type Write = Box<dyn Fn(&Path, &str) -> io::Result<()> + Send + Sync>;

/// A sysfs.
pub struct Sysfs {
    root: PathBuf,
    /// The processes' view of mounts and swap.
    proc: PathBuf,
    /// Where what functions were is written down.
    records: PathBuf,
    write: Write,
}

impl Sysfs {
    /// The machine's own.
    pub fn system() -> Self {
        Self {
            root: "/sys".into(),
            proc: "/proc".into(),
            records: "/run/offmap/bound".into(),
            write: Box::new(|path, text| fs::write(path, text)),
        }
    }

    /// One that stands in another folder, where `write` does what the kernel would; with `proc` for the
    /// processes' view, and `run` for what is written down.
    pub fn at(root: PathBuf, write: Write) -> Self {
        Self {
            proc: root.join("proc"),
            records: root.join("run"),
            root,
            write,
        }
    }

    /// The folder of a function.
    pub fn path(&self, address: &str) -> PathBuf {
        self.devices().join(address)
    }

    /// All PCI functions, in the order of their addresses.
    ///
    /// # Errors
    ///
    /// [`SysfsError::Read`].
    pub fn functions(&self) -> Result<Vec<PciFunction>, SysfsError> {
        let path = self.devices();
        let entries = match fs::read_dir(&path) {
            Ok(entries) => entries,
            // A machine without PCI.
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(SysfsError::Read { path, source }),
        };
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|source| {
                let path = path.clone();
                SysfsError::Read { path, source }
            })?;
            let name = entry.file_name();
            match name.to_str().map(|name| self.function(name)) {
                Some(Ok(function)) => found.push(function),
                // It was unplugged meanwhile.
                Some(Err(SysfsError::NoSuchFunction(_))) | None => {}
                Some(Err(e)) => return Err(e),
            }
        }
        found.sort_by(|a, b| a.address.cmp(&b.address));
        Ok(found)
    }

    /// The function at an address; the domain may be left out where it is 0.
    ///
    /// # Errors
    ///
    /// [`SysfsError::BadAddress`], [`SysfsError::NoSuchFunction`], [`SysfsError::Read`].
    pub fn function(&self, address: &str) -> Result<PciFunction, SysfsError> {
        let address = canonical(address)?;
        let path = self.path(&address);
        let (Some(vendor), Some(device)) = (id(&path.join("vendor"))?, id(&path.join("device"))?)
        else {
            return Err(SysfsError::NoSuchFunction(address));
        };
        let iommu_group = link(&path.join("iommu_group")).and_then(|name| name.parse().ok());
        let no_iommu = iommu_group.is_some_and(|group: u32| {
            let name = self.group(group).join("name");
            text(&name).is_some_and(|name| name == "vfio-noiommu")
        });
        let class = text(&path.join("class"));
        let class = class.and_then(|class| u32::from_str_radix(class.strip_prefix("0x")?, 16).ok());
        let numa_node = text(&path.join("numa_node")).and_then(|node| node.parse().ok());
        Ok(PciFunction {
            driver: link(&path.join("driver")),
            address,
            vendor,
            device,
            class,
            iommu_group,
            no_iommu,
            // −1 stands for none, and is no u32.
            numa_node,
        })
    }

    /// The functions of a group, with their drivers, that keep it from being lent.
    ///
    /// # Errors
    ///
    /// [`SysfsError::Read`].
    pub fn in_the_way(&self, group: u32) -> Result<Vec<String>, SysfsError> {
        let path = self.group(group).join("devices");
        let entries = fs::read_dir(&path).map_err(|source| SysfsError::Read { path, source })?;
        let mut others = Vec::new();
        for name in entries.flatten().map(|entry| entry.file_name()) {
            let Some(name) = name.to_str() else { continue };
            let driver = link(&self.path(name).join("driver"));
            if let Some(driver) = driver.filter(|driver| {
                !driver.starts_with("vfio") && !HARMLESS.contains(&driver.as_str())
            }) {
                others.push(format!("{name} ({driver})"));
            }
        }
        others.sort();
        Ok(others)
    }

    /// Whether the kernel has a character device for the function, and `/dev/iommu`.
    pub fn has_cdev(&self, address: &str) -> bool {
        let class = self.root.join("class/misc/iommu");
        // Every kernel has the folder; the number of a character device only one that has such.
        let folders = fs::read_dir(self.path(address).join("vfio-dev"));
        let mut folders = folders.into_iter().flatten().flatten();
        class.exists() && folders.any(|folder| folder.path().join("dev").exists())
    }

    /// Binds a function to vfio-pci, and tells what was done for that. Where `expected` has a vendor and a
    /// device ID, another function is refused, and one that somebody uses; `None` takes any.
    ///
    /// # Errors
    ///
    /// [`SysfsError`]. What was done until then is undone.
    pub fn bind(
        &self,
        address: &str,
        expected: Option<(u16, u16)>,
    ) -> Result<Vec<String>, SysfsError> {
        let function = self.function(address)?;
        let address = &function.address;
        if function.is_vfio() {
            return Ok(vec![format!("{address} is bound to {VFIO_PCI} already")]);
        }
        let uses = uses::of(&self.path(address), &self.proc);
        let mut what = describe(&function);
        if !uses.is_empty() {
            what += &format!(", and in use: {}", uses.join("; "));
        }
        let ours = expected.is_none_or(|ids| ids == (function.vendor, function.device));
        if expected.is_some() && !(ours && uses.is_empty()) {
            return Err(SysfsError::NotOurs { what });
        }
        if !self.driver(VFIO_PCI).is_dir() {
            return Err(SysfsError::NoDriver);
        }
        if function.iommu_group.is_none() {
            return Err(SysfsError::NoIommu(address.clone()));
        }
        let earlier = Earlier {
            driver: function.driver.clone(),
            driver_override: self.driver_override(address),
        };
        record::keep(&self.records, address, &earlier).map_err(|source| SysfsError::Record {
            address: address.clone(),
            path: self.records.clone(),
            source,
        })?;
        let mut said = Vec::new();
        if expected.is_none() {
            said.push(what);
        }
        let done = self.take(&function, &mut said);
        if let Err(e) = done {
            self.put_back(address, &earlier);
            record::forget(&self.records, address);
            return Err(e);
        }
        Ok(said)
    }

    fn take(&self, function: &PciFunction, said: &mut Vec<String>) -> Result<(), SysfsError> {
        let address = &function.address;
        self.set_override(address, Some(VFIO_PCI))?;
        said.push(format!("{address} may be bound to {VFIO_PCI} only"));
        if let Some(driver) = &function.driver {
            let what = format!("taking {address} from {driver}");
            self.poke(&self.driver(driver).join("unbind"), address, what)?;
            said.push(format!("{address} was taken from {driver}"));
        }
        let what = format!("binding {address} to {VFIO_PCI}");
        self.poke(&self.driver(VFIO_PCI).join("bind"), address, what)?;
        let now = self.function(address)?;
        if !now.is_vfio() {
            let (address, driver) = (now.address, now.driver);
            return Err(SysfsError::NotTaken { address, driver });
        }
        said.push(match now.iommu_group {
            Some(group) => format!("{address} is bound to {VFIO_PCI}, as /dev/vfio/{group}"),
            None => format!("{address} is bound to {VFIO_PCI}"),
        });
        Ok(())
    }

    /// As it was before, as far as that goes.
    fn put_back(&self, address: &str, earlier: &Earlier) {
        let _ = self.set_override(address, earlier.driver_override.as_deref());
        let Some(driver) = &earlier.driver else {
            return;
        };
        if link(&self.path(address).join("driver")).as_ref() != Some(driver) {
            let _ = (self.write)(&self.driver(driver).join("bind"), address);
        }
    }

    /// Takes a function from vfio-pci and makes it what it was before [`Sysfs::bind`]: its driver and its
    /// `driver_override`. Where nothing was written down of that, the kernel is let find it a driver. Tells
    /// what was done.
    ///
    /// # Errors
    ///
    /// [`SysfsError`]. What was done until then is undone.
    pub fn unbind(&self, address: &str) -> Result<Vec<String>, SysfsError> {
        let function = self.function(address)?;
        let address = &function.address;
        if !function.is_vfio() {
            let (address, driver) = (function.address, function.driver);
            return Err(SysfsError::NotVfio { address, driver });
        }
        let earlier = record::find(&self.records, address);
        let before = earlier.as_ref().and_then(|e| e.driver_override.as_deref());
        let now = self.driver_override(address);
        let mut said = Vec::new();
        self.set_override(address, before)?;
        said.push(match before {
            Some(driver) => format!("{address} may be bound to {driver} only, as before"),
            None => format!("{address} may be bound to any driver again"),
        });
        let what = format!("taking {address} from {VFIO_PCI}");
        if let Err(e) = self.poke(&self.driver(VFIO_PCI).join("unbind"), address, what) {
            let _ = self.set_override(address, now.as_deref());
            return Err(e);
        }
        said.push(format!("{address} was taken from {VFIO_PCI}"));
        record::forget(&self.records, address);
        let driver = earlier.as_ref().and_then(|e| e.driver.as_ref());
        if let Some(driver) = driver {
            // Its driver may have been unloaded since; then the kernel is asked.
            let _ = (self.write)(&self.driver(driver).join("bind"), address);
        }
        if self.function(address)?.driver.is_none() {
            // A kernel without a driver for it says so by an error; that is no failure.
            let _ = (self.write)(&self.root.join("bus/pci/drivers_probe"), address);
        }
        said.push(match (self.function(address)?.driver, driver) {
            (Some(now), Some(before)) if now == *before => {
                format!("{address} is bound to {now}, as before")
            }
            (Some(now), _) => format!("{address} is bound to {now}"),
            (None, Some(before)) => {
                format!("{address} is bound to no driver: {before}, which it had before, does not take it")
            }
            (None, None) => format!("{address} is bound to no driver: the kernel has none for it"),
        });
        Ok(said)
    }

    /// The only driver that may have the function, if one is named.
    fn driver_override(&self, address: &str) -> Option<String> {
        let said = text(&self.path(address).join("driver_override"))?;
        (!said.is_empty() && said != "(null)").then_some(said)
    }

    fn set_override(&self, address: &str, driver: Option<&str>) -> Result<(), SysfsError> {
        let what = match driver {
            None => format!("letting any driver have {address}"),
            Some(driver) => format!("letting only {driver} have {address}"),
        };
        let file = self.path(address).join("driver_override");
        self.poke(&file, driver.unwrap_or("\n"), what)
    }

    fn poke(&self, path: &Path, said: &str, what: String) -> Result<(), SysfsError> {
        (self.write)(path, said).map_err(|source| SysfsError::Write { what, source })
    }

    fn devices(&self) -> PathBuf {
        self.root.join("bus/pci/devices")
    }

    fn driver(&self, name: &str) -> PathBuf {
        self.root.join("bus/pci/drivers").join(name)
    }

    fn group(&self, group: u32) -> PathBuf {
        self.root
            .join("kernel/iommu_groups")
            .join(group.to_string())
    }
}

/// What a function is, for people.
fn describe(function: &PciFunction) -> String {
    let driver = match &function.driver {
        Some(driver) => format!("bound to {driver}"),
        None => "bound to no driver".to_owned(),
    };
    let class = match function.class {
        Some(class) => format!("class {class:#08x}, {}", function.class_name()),
        None => "of no class".to_owned(),
    };
    let PciFunction {
        address,
        vendor,
        device,
        ..
    } = function;
    format!("{address} is a {vendor:04x}:{device:04x} ({class}), {driver}")
}

/// The address with its domain, in lower case.
fn canonical(address: &str) -> Result<String, SysfsError> {
    let full = match address.matches(':').count() {
        1 => format!("0000:{address}"),
        _ => address.to_owned(),
    }
    .to_ascii_lowercase();
    let well = (|| {
        let (domain, rest) = full.split_once(':')?;
        let (bus, rest) = rest.split_once(':')?;
        let (slot, function) = rest.split_once('.')?;
        let hex = |part: &str, least: usize, most: usize| {
            (least..=most).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_hexdigit())
        };
        let octal = function.len() == 1 && function.bytes().all(|b| (b'0'..=b'7').contains(&b));
        (hex(domain, 4, 8) && hex(bus, 2, 2) && hex(slot, 2, 2) && octal).then_some(())
    })();
    match well {
        Some(()) => Ok(full),
        None => Err(SysfsError::BadAddress(address.to_owned())),
    }
}

/// The name of what a link points at.
fn link(path: &Path) -> Option<String> {
    let to = fs::read_link(path).ok()?;
    Some(to.file_name()?.to_str()?.to_owned())
}

fn text(path: &Path) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

/// A number such as `0x1af4`, if the file is there.
fn id(path: &Path) -> Result<Option<u16>, SysfsError> {
    let read = |source| SysfsError::Read {
        path: path.to_owned(),
        source,
    };
    let said = match fs::read_to_string(path) {
        Ok(said) => said,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(read(e)),
    };
    let number = said.trim().strip_prefix("0x");
    let number = number.and_then(|digits| u16::from_str_radix(digits, 16).ok());
    let bad = || read(io::Error::new(io::ErrorKind::InvalidData, "this is no ID"));
    number.map(Some).ok_or_else(bad)
}

#[cfg(test)]
#[path = "sysfs_tests.rs"]
mod tests;
