//! Who uses a PCI function through the driver that it has: network interfaces, and block devices that
//! are mounted or swapped to, their partitions and what is built on them.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Folders below a function's that are looked into.
const DEPTH_MAX: u32 = 12;

/// Sentences' parts, such as "network interface eth0" or "sda1, mounted at /"; none, when nobody is
/// seen to use it. `proc` is where the processes' view of mounts and swap is.
pub(crate) fn of(function: &Path, proc: &Path) -> Vec<String> {
    let mut found = Found::default();
    walk(function, DEPTH_MAX, &mut found);
    let mut uses: Vec<String> = (found.interfaces.iter())
        .map(|name| format!("network interface {name}"))
        .collect();
    let mounts = fs::read_to_string(proc.join("self/mountinfo")).unwrap_or_default();
    let swaps = fs::read_to_string(proc.join("swaps")).unwrap_or_default();
    for (name, number) in &found.blocks {
        // The third field is the device's number, the fifth where it is mounted.
        let mounted = mounts.lines().find_map(|line| {
            let mut fields = line.split(' ');
            (fields.nth(2) == Some(number)).then(|| fields.nth(1).unwrap_or("?").to_owned())
        });
        if let Some(place) = mounted {
            uses.push(format!("{name}, mounted at {place}"));
        }
        let swapped = swaps.lines().skip(1).any(|line| {
            let path = line.split_whitespace().next().unwrap_or_default();
            path.rsplit('/').next() == Some(name)
        });
        if swapped {
            uses.push(format!("{name}, used as swap"));
        }
    }
    uses
}

#[derive(Default)]
struct Found {
    interfaces: BTreeSet<String>,
    /// Name and number, `8:1`, of block devices, partitions, and what holds them.
    blocks: BTreeSet<(String, String)>,
}

/// Names of the folders and, with `links`, of the links in a folder.
fn inside(folder: &Path, links: bool) -> Vec<(String, PathBuf)> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter(|entry| {
            let kind = entry.file_type();
            kind.is_ok_and(|kind| kind.is_dir() || (links && kind.is_symlink()))
        })
        .filter_map(|entry| Some((entry.file_name().into_string().ok()?, entry.path())))
        .collect()
}

fn walk(folder: &Path, depth: u32, found: &mut Found) {
    let Some(depth) = depth.checked_sub(1) else {
        return;
    };
    for (name, path) in inside(folder, false) {
        match name.as_str() {
            "net" => {
                let names = inside(&path, false).into_iter().map(|(name, _)| name);
                found.interfaces.extend(names);
            }
            "block" => {
                for (name, path) in inside(&path, false) {
                    block(name, &path, DEPTH_MAX, found);
                }
            }
            // Links lead elsewhere, and are not followed.
            _ => walk(&path, depth, found),
        }
    }
}

/// A block device, its partitions, and those that hold it: a logical volume, a RAID.
fn block(name: String, path: &Path, depth: u32, found: &mut Found) {
    let Some(depth) = depth.checked_sub(1) else {
        return;
    };
    if let Ok(number) = fs::read_to_string(path.join("dev"))
        && !found.blocks.insert((name, number.trim().to_owned()))
    {
        return;
    }
    for (name, path) in inside(path, false) {
        if path.join("partition").exists() {
            block(name, &path, depth, found);
        }
    }
    for (name, path) in inside(&path.join("holders"), true) {
        block(name, &path, depth, found);
    }
}
