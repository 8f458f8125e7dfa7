//! Virtual machines with the emulated NIC in them: QEMU as the vfio-user client, a stock kernel
//! as the guest, and in it `offmap`, which reaches the NIC through the guest's vfio-pci.
//!
//! Nothing of it is installed. [`fetch`] keeps QEMU and the kernel in a folder, [`image`] builds
//! the guest's only file system, [`guest`] runs it. The guest is emulated instruction by
//! instruction (TCG), because machines that test are often virtual themselves.

pub mod fetch;
pub mod guest;
pub mod image;

use crate::command::offmap;
use std::fs;
use std::path::{Path, PathBuf};

/// The folder that built things are in.
///
/// # Panics
///
/// When this is no program that Cargo has built.
pub fn target() -> PathBuf {
    // target/PROFILE/offmap
    let folder = offmap().ancestors().nth(2);
    folder.expect("a folder of built things").to_owned()
}

/// Where logs of guests stay, emptied of those of earlier runs.
///
/// # Panics
///
/// When it cannot be made.
pub fn logs() -> PathBuf {
    let folder = target().join("vm-logs");
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).expect("a folder for logs");
    folder
}

/// A file's text as far as it goes; nothing when there is none.
pub fn text(path: &Path) -> String {
    let bytes = fs::read(path).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}
