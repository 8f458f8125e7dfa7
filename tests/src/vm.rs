//! Where things for virtual machines are kept: what a guest needs is in the crate `offmap-vm`.

use crate::command::offmap;
use std::fs;
use std::path::PathBuf;

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

/// Where logs of the guests of a test stay, emptied of those of earlier runs.
///
/// # Panics
///
/// When it cannot be made.
pub fn logs(test: &str) -> PathBuf {
    let folder = target().join("vm-logs").join(test);
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).expect("a folder for logs");
    folder
}
