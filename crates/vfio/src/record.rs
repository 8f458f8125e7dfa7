//! What a function was before it was bound to vfio-pci: its driver and its `driver_override`, in a file
//! for each function that lasts as long as the kernel's own memory of them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// What a function was.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Earlier {
    /// The driver that it was bound to.
    pub(crate) driver: Option<String>,
    /// The only driver that was to have it.
    pub(crate) driver_override: Option<String>,
}

fn file(folder: &Path, address: &str) -> PathBuf {
    folder.join(address)
}

/// Writes it down.
///
/// # Errors
///
/// The system's.
pub(crate) fn keep(folder: &Path, address: &str, earlier: &Earlier) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    let line = |name: &str, value: &Option<String>| match value {
        Some(value) => format!("{name}={value}\n"),
        None => String::new(),
    };
    let text = line("driver", &earlier.driver) + &line("override", &earlier.driver_override);
    fs::write(file(folder, address), text)
}

/// What was written down; `None`: nothing, or nothing that can be.
pub(crate) fn find(folder: &Path, address: &str) -> Option<Earlier> {
    let text = fs::read_to_string(file(folder, address)).ok()?;
    let mut earlier = Earlier::default();
    for line in text.lines() {
        let (name, value) = line.split_once('=')?;
        // It becomes a part of a path.
        let is_name = |c: char| c.is_ascii_alphanumeric() || "-_+".contains(c);
        if value.is_empty() || !value.chars().all(is_name) {
            return None;
        }
        match name {
            "driver" => earlier.driver = Some(value.to_owned()),
            "override" => earlier.driver_override = Some(value.to_owned()),
            _ => return None,
        }
    }
    Some(earlier)
}

/// Forgets it.
pub(crate) fn forget(folder: &Path, address: &str) {
    // What stays is written over the next time.
    let _ = fs::remove_file(file(folder, address));
}
