//! The guest's file system: busybox, kernel modules, `offmap` with its libraries, and a script.

use crate::apt::output;
use crate::fetch::{Kernel, Tools};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The first program of a guest that a test drives: `scenario=NAME` on the kernel's command line says what
/// it does.
pub const TESTS: &str = include_str!("tests.sh");
/// The first program of a guest for people.
pub const SHELL: &str = include_str!("shell.sh");

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

/// Builds the file system around `offmap`, with a script as its first program.
///
/// # Errors
///
/// A sentence that says what could not be read.
pub fn build(
    tools: &Tools,
    kernel: &Kernel,
    offmap: &Path,
    script: &str,
) -> Result<Vec<u8>, String> {
    let read = |path: &Path| fs::read(path).map_err(|e| format!("{}: {e}", path.display()));
    let mut archive = Archive::default();
    for folder in ["dev", "proc", "sys", "tmp"] {
        archive.folder(Path::new(folder));
    }
    archive.file("bin/busybox", &read(&tools.busybox())?);
    archive.file(
        "bin/offmap",
        &stripped(offmap).map_or_else(|| read(offmap), Ok)?,
    );
    for library in libraries(offmap)? {
        let path = library.trim_start_matches('/');
        archive.file(path, &read(Path::new(&library))?);
    }
    for (n, module) in kernel.modules.iter().enumerate() {
        let plain = match module.extension().is_some_and(|ext| ext == "xz") {
            true => unpacked(tools, module)?,
            false => read(module)?,
        };
        // Names in the order in which the shell lists them.
        archive.file(&format!("modules/{n:02}.ko"), &plain);
    }
    archive.file("init", script.as_bytes());
    Ok(archive.finish())
}

/// A program without what a debugger wants of it, which is most of its bytes and slow to unpack in a guest.
fn stripped(program: &Path) -> Option<Vec<u8>> {
    let out = std::env::temp_dir().join(format!("offmap-stripped-{}", std::process::id()));
    let done = Command::new("strip")
        .arg("-o")
        .args([&out, program])
        .output();
    let done = done.is_ok_and(|done| done.status.success());
    let bytes = done.then(|| fs::read(&out).ok()).flatten();
    let _ = fs::remove_file(out);
    bytes
}

fn unpacked(tools: &Tools, module: &Path) -> Result<Vec<u8>, String> {
    let mut command = Command::new(tools.busybox());
    command.args(["xz", "-dc"]).arg(module);
    output(command).map_err(|why| format!("{}: {why}", module.display()))
}

/// The shared libraries that a program is linked against, its loader included.
fn libraries(program: &Path) -> Result<Vec<String>, String> {
    let mut command = Command::new("ldd");
    command.arg(program);
    let out = output(command).map_err(|why| format!("ldd of {}: {why}", program.display()))?;
    let text = String::from_utf8_lossy(&out);
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
