//! The guest's file system: busybox, kernel modules, `offmap` with its libraries, and a script.

use super::fetch::Tools;
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Modules in the order in which they are loaded, and where they are.
const MODULES: [&str; 5] = [
    "virt/lib/irqbypass",
    "drivers/vfio/vfio",
    "drivers/vfio/vfio_iommu_type1",
    "drivers/vfio/pci/vfio-pci-core",
    "drivers/vfio/pci/vfio-pci",
];
/// What the guest does.
const SCRIPT: &str = include_str!("guest.sh");

const FOLDER: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;

/// An archive in the form that the kernel unpacks (cpio, "newc").
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    folders: BTreeSet<PathBuf>,
    entries: u32,
}

impl Archive {
    /// Adds a file, and the folders above it.
    fn file(&mut self, path: &str, contents: &[u8]) {
        let above: Vec<PathBuf> = Path::new(path)
            .ancestors()
            .skip(1)
            .filter(|folder| !folder.as_os_str().is_empty())
            .map(Path::to_owned)
            .collect();
        for folder in above.into_iter().rev() {
            self.folder(&folder);
        }
        self.entry(path, PROGRAM, contents);
    }

    fn folder(&mut self, path: &Path) {
        if self.folders.insert(path.to_owned()) {
            self.entry(&path.to_string_lossy(), FOLDER, &[]);
        }
    }

    fn entry(&mut self, path: &str, mode: u32, contents: &[u8]) {
        self.entries += 1;
        let name = path.len() as u32 + 1;
        let size = u32::try_from(contents.len()).expect("a file of less than 4 GiB");
        // Inode, mode, owner, group, links, time, size, two devices, length of the name, check.
        let fields = [self.entries, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes
                .extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.align();
        self.bytes.extend_from_slice(contents);
        self.align();
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }
}

/// Builds the file system around a program.
///
/// # Errors
///
/// The system's.
///
/// # Panics
///
/// When a module cannot be unpacked, or the program's libraries are not told.
pub fn build(tools: &Tools, program: &Path) -> io::Result<Vec<u8>> {
    let mut archive = Archive::default();
    for folder in ["dev", "proc", "sys", "tmp"] {
        archive.folder(Path::new(folder));
    }
    archive.file("bin/busybox", &fs::read(tools.busybox())?);
    archive.file("bin/offmap", &fs::read(program)?);
    for library in libraries(program)? {
        let path = library.trim_start_matches('/');
        archive.file(path, &fs::read(&library)?);
    }
    let modules = tools.modules()?;
    for (n, module) in MODULES.iter().enumerate() {
        let packed = modules.join(format!("{module}.ko.xz"));
        let out = Command::new(tools.busybox())
            .args(["xz", "-dc"])
            .arg(&packed)
            .output()?;
        assert!(out.status.success(), "{}: {out:?}", packed.display());
        archive.file(&format!("modules/{n}.ko"), &out.stdout);
    }
    archive.file("init", SCRIPT.as_bytes());
    Ok(archive.finish())
}

/// The shared libraries that a program is linked against, its loader included.
fn libraries(program: &Path) -> io::Result<Vec<String>> {
    let out = Command::new("ldd").arg(program).output()?;
    assert!(out.status.success(), "ldd: {out:?}");
    let text = String::from_utf8_lossy(&out.stdout);
    let paths = text.lines().filter_map(|line| {
        let path = line.split_whitespace().find(|word| word.starts_with('/'))?;
        Some(path.to_owned())
    });
    Ok(paths.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_archive_is_as_the_kernel_reads_it() {
        let mut archive = Archive::default();
        archive.file("a/b/c", b"12345");
        archive.file("a/b/d", b"");
        let bytes = archive.finish();
        assert!(bytes.len().is_multiple_of(4));
        let text = String::from_utf8_lossy(&bytes);
        assert_eq!(
            text.matches("070701").count(),
            5,
            "two folders, two files, the end"
        );
        assert!(text.contains("a/b/c\0"));
        let at = bytes.windows(5).position(|w| w == b"12345").unwrap();
        assert!(at.is_multiple_of(4));
    }
}
