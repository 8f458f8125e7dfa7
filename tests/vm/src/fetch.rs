//! QEMU and a kernel from Debian, unpacked into a folder and kept there.

use crate::apt::{self, Apt, Mirror};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// The release whose packages are taken: its backports have a QEMU with the device
/// `vfio-user-pci`, which is in 10.1 and later.
const SUITE: &str = "trixie";
/// What is unpacked.
const PACKAGES: [&str; 2] = ["qemu-system-x86", "busybox-static"];
/// The package that depends on the newest kernel of the suite.
const KERNEL: &str = "linux-image-cloud-amd64";
/// Modules in the order in which they are loaded, and where they are.
const MODULES: [&str; 5] = [
    "virt/lib/irqbypass",
    "drivers/vfio/vfio",
    "drivers/vfio/vfio_iommu_type1",
    "drivers/vfio/pci/vfio-pci-core",
    "drivers/vfio/pci/vfio-pci",
];

/// The folder in which things are kept: that of `OFFMAP_VM_CACHE`, or `vm-cache` in `target`.
pub fn cache(target: &Path) -> PathBuf {
    let said = std::env::var_os("OFFMAP_VM_CACHE");
    said.map_or_else(|| target.join("vm-cache"), PathBuf::from)
}

/// A part of the cache that is there as a whole: when it is not, `make` makes it, in a folder
/// that is empty. Of two that start at a time, one makes it and the other one waits.
pub(crate) fn kept(
    cache: &Path,
    part: &str,
    make: impl FnOnce(&Path) -> Result<(), String>,
) -> Result<PathBuf, String> {
    fs::create_dir_all(cache).map_err(|e| format!("{}: {e}", cache.display()))?;
    let lock = File::create(cache.join(format!("{part}.lock"))).map_err(apt::cache)?;
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive)
        .map_err(|e| format!("the cache's lock: {e}"))?;
    let folder = cache.join(part);
    let complete = folder.join("complete");
    if complete.exists() {
        return Ok(folder);
    }
    let _ = fs::remove_dir_all(&folder);
    make(&folder)?;
    fs::write(complete, "").map_err(apt::cache)?;
    Ok(folder)
}

/// A kernel, and what is to be loaded into it.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// Its image.
    pub image: PathBuf,
    /// Modules in the order in which they are loaded, packed (`.ko.xz`) or not.
    pub modules: Vec<PathBuf>,
}

/// Unpacked programs.
#[derive(Clone, Debug)]
pub struct Tools {
    root: PathBuf,
}

impl Tools {
    /// Those in the cache; what is missing is fetched.
    ///
    /// # Errors
    ///
    /// A sentence that says why they cannot be had.
    pub fn get(target: &Path) -> Result<Self, String> {
        let folder = kept(&cache(target), SUITE, fetch)?;
        Ok(Self {
            root: folder.join("root"),
        })
    }

    /// QEMU, with the loader and the libraries that came with it.
    pub fn qemu(&self) -> Vec<PathBuf> {
        [
            "usr/lib64/ld-linux-x86-64.so.2",
            "--library-path",
            "usr/lib/x86_64-linux-gnu",
            "usr/bin/qemu-system-x86_64",
            "-L",
            "usr/share/qemu",
            "-L",
            "usr/share/seabios",
        ]
        .into_iter()
        .map(|part| match part.starts_with('-') {
            true => part.into(),
            false => self.root.join(part),
        })
        .collect()
    }

    /// The statically linked busybox.
    pub fn busybox(&self) -> PathBuf {
        self.root.join("usr/bin/busybox")
    }

    /// The kernel.
    ///
    /// # Errors
    ///
    /// The system's, when there is none.
    pub fn kernel(&self) -> io::Result<Kernel> {
        let all = only(&self.root.join("usr/lib/modules"), "")?.join("kernel");
        let modules = MODULES.map(|module| all.join(format!("{module}.ko.xz")));
        Ok(Kernel {
            image: only(&self.root.join("boot"), "vmlinuz-")?,
            modules: modules.to_vec(),
        })
    }
}

fn fetch(folder: &Path) -> Result<(), String> {
    let backports = format!("{SUITE}-backports");
    let mirror = Mirror::of(&apt::release()?)?;
    let sources = mirror.source(SUITE) + &mirror.source(&backports);
    let apt = Apt::new(folder.join("apt"), &sources)?;
    let root = folder.join("root");
    apt.install(&PACKAGES, &backports, &root)?;
    let kernels = apt.depends(&format!("{KERNEL}/{SUITE}"), "linux-image-")?;
    let kernel = kernels
        .first()
        .ok_or_else(|| format!("apt names no kernel that {KERNEL} depends on"))?;
    apt.only(&[kernel], &root)
}

/// The entry of a folder whose name begins in this way.
pub(crate) fn only(folder: &Path, prefix: &str) -> io::Result<PathBuf> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(prefix) {
            return Ok(entry.path());
        }
    }
    Err(io::ErrorKind::NotFound.into())
}
