//! QEMU and a kernel from Debian, unpacked into a folder and kept there.
//!
//! apt resolves the versions and checks signatures and checksums. It works on a root of its own,
//! with empty package lists, so that nothing of the machine's is touched and no privilege is
//! needed. Which mirror, is taken from the machine's own sources.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The release whose packages are taken: its backports have a QEMU with the device
/// `vfio-user-pci`, which is in 10.1 and later.
const SUITE: &str = "trixie";
/// What is unpacked.
const PACKAGES: [&str; 2] = ["qemu-system-x86", "busybox-static"];
/// The package that depends on the newest kernel of the suite.
const KERNEL: &str = "linux-image-cloud-amd64";
/// Seconds for one command of apt.
const LIMIT: &str = "180";

/// Unpacked programs.
#[derive(Clone, Debug)]
pub struct Tools {
    root: PathBuf,
}

impl Tools {
    /// Those in the folder; what is missing is fetched. `OFFMAP_VM_CACHE` names another folder
    /// than `vm-cache` in `target`.
    ///
    /// # Errors
    ///
    /// A sentence that says why they cannot be had.
    pub fn get(target: &Path) -> Result<Self, String> {
        let cache = std::env::var_os("OFFMAP_VM_CACHE");
        let cache = cache.map_or_else(|| target.join("vm-cache"), PathBuf::from);
        fs::create_dir_all(&cache).map_err(|e| format!("{}: {e}", cache.display()))?;
        // Of two that start at a time, one fetches and the other one waits.
        let lock = File::create(cache.join("lock")).map_err(|e| format!("the cache: {e}"))?;
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive)
            .map_err(|e| format!("the cache's lock: {e}"))?;
        let this = Self {
            root: cache.join(SUITE),
        };
        if this.root.join("complete").exists() {
            return Ok(this);
        }
        let _ = fs::remove_dir_all(&this.root);
        this.fetch()?;
        fs::write(this.root.join("complete"), "").map_err(|e| format!("the cache: {e}"))?;
        Ok(this)
    }

    fn fetch(&self) -> Result<(), String> {
        if std::env::consts::ARCH != "x86_64" {
            return Err("guests are x86-64, and so must this machine be".into());
        }
        for tool in ["apt-get", "dpkg-deb"] {
            let there = Command::new(tool).arg("--version").output();
            if there.is_err() {
                return Err(format!("there is no {tool}"));
            }
        }
        let mirror = Mirror::of_this_machine()?;
        let apt = self.root.join("apt");
        for folder in ["lists/partial", "archives/partial", "preferences"] {
            let made = fs::create_dir_all(apt.join(folder));
            made.map_err(|e| format!("the cache: {e}"))?;
        }
        let files = [
            ("status", String::new()),
            ("sources.list", mirror.sources()),
            ("apt.conf", configuration(&apt)),
        ];
        for (name, text) in files {
            fs::write(apt.join(name), text).map_err(|e| format!("the cache: {e}"))?;
        }
        self.apt("apt-get", &["--quiet", "update"])?;
        let backports = format!("{SUITE}-backports");
        let install = [
            "--quiet",
            "--yes",
            "--download-only",
            "--target-release",
            &backports,
        ];
        let install = [&install[..], &["install"], &PACKAGES[..]].concat();
        self.apt("apt-get", &install)?;
        let unpacked = self.unpacked();
        for archive in archives(&apt.join("archives"))? {
            unpack(&archive, &unpacked)?;
            // Half of the cache, and not wanted any more.
            let _ = fs::remove_file(archive);
        }
        let depends = self.apt("apt-cache", &["depends", &format!("{KERNEL}/{SUITE}")])?;
        let kernel = depends
            .lines()
            .find_map(|line| line.trim().strip_prefix("Depends: linux-image-"))
            .ok_or_else(|| format!("apt names no kernel that {KERNEL} depends on"))?;
        self.apt(
            "apt-get",
            &["--quiet", "download", &format!("linux-image-{kernel}")],
        )?;
        for archive in archives(&apt)? {
            unpack(&archive, &unpacked)?;
            let _ = fs::remove_file(archive);
        }
        Ok(())
    }

    /// Runs a command of apt on the root of our own; what it prints.
    fn apt(&self, program: &str, args: &[&str]) -> Result<String, String> {
        let apt = self.root.join("apt");
        let out = Command::new("timeout")
            .args([LIMIT, program])
            .args(args)
            .env("APT_CONFIG", apt.join("apt.conf"))
            .env("LC_ALL", "C")
            .env("DEBIAN_FRONTEND", "noninteractive")
            .current_dir(&apt)
            .stdin(Stdio::null())
            .output()
            .map_err(|e| format!("{program}: {e}"))?;
        if out.status.success() {
            return Ok(String::from_utf8_lossy(&out.stdout).into_owned());
        }
        let stderr = String::from_utf8_lossy(&out.stderr);
        let last = stderr.lines().rev().find(|line| !line.trim().is_empty());
        let (what, why) = (args.join(" "), last.unwrap_or("no word"));
        Err(format!("{program} {what}: {}: {why}", out.status))
    }

    /// Where the packages are unpacked.
    pub fn unpacked(&self) -> PathBuf {
        self.root.join("root")
    }

    /// QEMU, with the loader and the libraries that came with it.
    pub fn qemu(&self) -> Vec<PathBuf> {
        let root = self.unpacked();
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
            false => root.join(part),
        })
        .collect()
    }

    /// The statically linked busybox.
    pub fn busybox(&self) -> PathBuf {
        self.unpacked().join("usr/bin/busybox")
    }

    /// The kernel's image.
    ///
    /// # Errors
    ///
    /// The system's, when there is none.
    pub fn kernel(&self) -> io::Result<PathBuf> {
        only(&self.unpacked().join("boot"), "vmlinuz-")
    }

    /// The folder of the kernel's modules.
    ///
    /// # Errors
    ///
    /// The system's, when there is none.
    pub fn modules(&self) -> io::Result<PathBuf> {
        Ok(only(&self.unpacked().join("usr/lib/modules"), "")?.join("kernel"))
    }
}

fn configuration(apt: &Path) -> String {
    let apt = apt.display();
    format!(
        "Dir::State \"{apt}\";\nDir::State::status \"{apt}/status\";\nDir::State::lists \"{apt}/lists\";\n\
         Dir::Cache \"{apt}\";\nDir::Cache::archives \"{apt}/archives\";\n\
         Dir::Etc::sourcelist \"{apt}/sources.list\";\nDir::Etc::sourceparts \"-\";\n\
         Dir::Etc::preferences \"-\";\nDir::Etc::preferencesparts \"{apt}/preferences\";\n\
         APT::Sandbox::User \"\";\nAPT::Architecture \"amd64\";\nAPT::Architectures {{ \"amd64\"; }};\n\
         APT::Install-Recommends \"false\";\nAcquire::Languages \"none\";\nAcquire::Retries \"3\";\n"
    )
}

fn only(folder: &Path, prefix: &str) -> io::Result<PathBuf> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(prefix) {
            return Ok(entry.path());
        }
    }
    Err(io::ErrorKind::NotFound.into())
}

fn archives(folder: &Path) -> Result<Vec<PathBuf>, String> {
    let entries = fs::read_dir(folder).map_err(|e| format!("the cache: {e}"))?;
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    Ok(paths
        .filter(|path| path.extension().is_some_and(|ext| ext == "deb"))
        .collect())
}

fn unpack(archive: &Path, into: &Path) -> Result<(), String> {
    let status = Command::new("dpkg-deb")
        .arg("--extract")
        .args([archive, into])
        .status();
    match status {
        Ok(status) if status.success() => Ok(()),
        other => Err(format!("dpkg-deb of {}: {other:?}", archive.display())),
    }
}

/// Where Debian's packages come from on this machine, and who signs them.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Mirror {
    uri: String,
    keyring: Option<String>,
}

impl Mirror {
    fn of_this_machine() -> Result<Self, String> {
        let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
        let field = |name: &str| {
            let mut lines = release.lines();
            let said = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
            said.map(|said| said.trim_matches('"').to_owned())
        };
        if field("ID").as_deref() != Some("debian") {
            return Err("this is no Debian, whose sources name a mirror of its packages".into());
        }
        let codename = field("VERSION_CODENAME").unwrap_or_default();
        let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
        let parts = fs::read_dir("/etc/apt/sources.list.d")
            .into_iter()
            .flatten();
        files.extend(parts.filter_map(|entry| Some(entry.ok()?.path())));
        files.sort();
        let found = files.iter().find_map(|path| {
            let text = fs::read_to_string(path).ok()?;
            match path.extension().is_some_and(|ext| ext == "sources") {
                true => Self::of_stanzas(&text, &codename),
                false => Self::of_lines(&text, &codename),
            }
        });
        found.ok_or_else(|| format!("no apt source of this machine has the suite {codename:?}"))
    }

    /// `deb [signed-by=FILE] URI SUITE main`.
    fn of_lines(text: &str, codename: &str) -> Option<Self> {
        text.lines().find_map(|line| {
            let rest = line.trim().strip_prefix("deb ")?.trim_start();
            let (options, rest) = match rest.strip_prefix('[') {
                Some(rest) => rest.split_once(']')?,
                None => ("", rest),
            };
            let mut words = rest.split_whitespace();
            let (uri, suite) = (words.next()?, words.next()?);
            let mut options = options.split_whitespace();
            (suite == codename).then(|| Self {
                uri: uri.to_owned(),
                keyring: options.find_map(|o| o.strip_prefix("signed-by=").map(str::to_owned)),
            })
        })
    }

    /// Stanzas of fields, with an empty line between.
    fn of_stanzas(text: &str, codename: &str) -> Option<Self> {
        text.split("\n\n").find_map(|stanza| {
            let field = |name: &str| {
                let mut lines = stanza.lines();
                let said = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
                said.map(str::trim)
            };
            let suites = field("Suites")?;
            let on = field("Enabled") != Some("no");
            let ours = on && suites.split_whitespace().any(|suite| suite == codename);
            let uri = field("URIs")?.split_whitespace().next()?;
            ours.then(|| Self {
                uri: uri.to_owned(),
                keyring: field("Signed-By")
                    .filter(|by| by.starts_with('/'))
                    .map(str::to_owned),
            })
        })
    }

    fn sources(&self) -> String {
        let keyring = match &self.keyring {
            Some(keyring) => format!("[signed-by={keyring}] "),
            None => String::new(),
        };
        let uri = &self.uri;
        format!("deb {keyring}{uri} {SUITE} main\ndeb {keyring}{uri} {SUITE}-backports main\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mirror_is_the_machines_own() {
        let lines = "# deb http://old bookworm main\ndeb http://security bookworm-security main\n\
                     deb [arch=amd64 signed-by=/k.gpg] http://mirror/debian bookworm main\n";
        let found = Mirror::of_lines(lines, "bookworm").unwrap();
        assert_eq!(found.uri, "http://mirror/debian");
        assert_eq!(found.keyring.as_deref(), Some("/k.gpg"));
        assert!(
            found
                .sources()
                .starts_with("deb [signed-by=/k.gpg] http://mirror/debian trixie")
        );
        let stanzas = "Types: deb\nURIs: http://off\nSuites: bookworm\nEnabled: no\n\n\
                       Types: deb\nURIs: http://mirror/debian\nSuites: bookworm bookworm-updates\n\
                       Signed-By: /k.gpg\n";
        assert_eq!(Mirror::of_stanzas(stanzas, "bookworm"), Some(found));
        assert_eq!(Mirror::of_stanzas(stanzas, "trixie"), None);
        assert_eq!(Mirror::of_lines("deb", "bookworm"), None);
    }
}
