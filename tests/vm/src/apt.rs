//! Packages of Debian, fetched and unpacked by a machine that may be of another release.
//!
//! apt resolves the versions and checks signatures and checksums. It works on a root of its own,
//! with empty package lists, so that nothing of the machine's is touched and no privilege is
//! needed. Which mirror, is taken from the machine's own sources.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Seconds for one command of apt.
const LIMIT: &str = "180";

/// A root for apt.
#[derive(Debug)]
pub(crate) struct Apt {
    folder: PathBuf,
}

impl Apt {
    /// A root in a folder, with the lists of these sources.
    pub(crate) fn new(folder: PathBuf, sources: &str) -> Result<Self, String> {
        if std::env::consts::ARCH != "x86_64" {
            return Err("guests are x86-64, and so must this machine be".into());
        }
        for tool in ["apt-get", "dpkg-deb"] {
            let there = Command::new(tool).arg("--version").output();
            if there.is_err() {
                return Err(format!("there is no {tool}"));
            }
        }
        for inner in ["lists/partial", "archives/partial", "preferences"] {
            fs::create_dir_all(folder.join(inner)).map_err(cache)?;
        }
        let files = [
            ("status", ""),
            ("sources.list", sources),
            ("apt.conf", &configuration(&folder)),
        ];
        for (name, text) in files {
            fs::write(folder.join(name), text).map_err(cache)?;
        }
        let this = Self { folder };
        this.run("apt-get", &["--quiet", "update"])?;
        Ok(this)
    }

    /// Runs a command of apt; what it prints.
    pub(crate) fn run(&self, program: &str, args: &[&str]) -> Result<String, String> {
        let mut command = Command::new("timeout");
        command
            .args([LIMIT, program])
            .args(args)
            .env("APT_CONFIG", self.folder.join("apt.conf"))
            .env("LC_ALL", "C")
            .env("DEBIAN_FRONTEND", "noninteractive")
            .current_dir(&self.folder);
        output(command)
            .map_err(|why| format!("{program} {}: {why}", args.join(" ")))
            .map(|out| String::from_utf8_lossy(&out).into_owned())
    }

    /// Fetches packages with all that they depend on, and unpacks them.
    pub(crate) fn install(
        &self,
        packages: &[&str],
        suite: &str,
        into: &Path,
    ) -> Result<(), String> {
        let options = ["--quiet", "--yes", "--download-only", "--target-release"];
        let args = [&options[..], &[suite, "install"], packages].concat();
        self.run("apt-get", &args)?;
        unpack(&self.folder.join("archives"), into)
    }

    /// Fetches packages, and nothing that they depend on, and unpacks them.
    pub(crate) fn only(&self, packages: &[&str], into: &Path) -> Result<(), String> {
        self.run("apt-get", &[&["--quiet", "download"], packages].concat())?;
        unpack(&self.folder, into)
    }

    /// What a package depends on, by names that begin in this way.
    pub(crate) fn depends(&self, package: &str, prefix: &str) -> Result<Vec<String>, String> {
        let text = self.run("apt-cache", &["depends", package])?;
        let names = text.lines().filter_map(|line| {
            let name = line.trim().strip_prefix("Depends: ")?;
            name.starts_with(prefix).then(|| name.to_owned())
        });
        Ok(names.collect())
    }
}

/// What a command prints; or else the last that it complained of.
pub(crate) fn output(mut command: Command) -> Result<Vec<u8>, String> {
    let out = command.stdin(Stdio::null()).output();
    let out = out.map_err(|e| format!("{}: {e}", command.get_program().display()))?;
    if out.status.success() {
        return Ok(out.stdout);
    }
    let stderr = String::from_utf8_lossy(&out.stderr);
    let last = stderr.lines().rev().find(|line| !line.trim().is_empty());
    Err(format!("{}: {}", out.status, last.unwrap_or("no word")))
}

/// An error in the folder in which all is kept.
pub(crate) fn cache(error: std::io::Error) -> String {
    format!("the cache: {error}")
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

/// Unpacks the archives of a folder, and removes them: they are half of what is kept.
fn unpack(folder: &Path, into: &Path) -> Result<(), String> {
    for entry in fs::read_dir(folder).map_err(cache)? {
        let archive = entry.map_err(cache)?.path();
        if archive.extension().is_none_or(|ext| ext != "deb") {
            continue;
        }
        let mut command = Command::new("dpkg-deb");
        command.arg("--extract").args([&archive, into]);
        output(command).map_err(|why| format!("dpkg-deb of {}: {why}", archive.display()))?;
        fs::remove_file(archive).map_err(cache)?;
    }
    Ok(())
}

/// The code name of the Debian that this machine runs.
pub(crate) fn release() -> Result<String, String> {
    let text = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let field = |name: &str| {
        let mut lines = text.lines();
        let said = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        said.map(|said| said.trim_matches('"').to_owned())
    };
    match field("ID").as_deref() {
        Some("debian") => Ok(field("VERSION_CODENAME").unwrap_or_default()),
        _ => Err("this is no Debian, whose sources name a mirror of its packages".into()),
    }
}

/// Where Debian's packages come from on this machine, and who signs them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Mirror {
    uri: String,
    keyring: Option<String>,
}

impl Mirror {
    /// That of a suite.
    pub(crate) fn of(suite: &str) -> Result<Self, String> {
        let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
        let parts = fs::read_dir("/etc/apt/sources.list.d")
            .into_iter()
            .flatten();
        files.extend(parts.filter_map(|entry| Some(entry.ok()?.path())));
        files.sort();
        let found = files.iter().find_map(|path| {
            let text = fs::read_to_string(path).ok()?;
            match path.extension().is_some_and(|ext| ext == "sources") {
                true => Self::of_stanzas(&text, suite),
                false => Self::of_lines(&text, suite),
            }
        });
        found.ok_or_else(|| format!("no apt source of this machine has the suite {suite:?}"))
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

    /// The line of a suite for apt's sources.
    pub(crate) fn source(&self, suite: &str) -> String {
        let keyring = match &self.keyring {
            Some(keyring) => format!("[signed-by={keyring}] "),
            None => String::new(),
        };
        format!("deb {keyring}{} {suite} main\n", self.uri)
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
        assert_eq!(
            found.source("trixie"),
            "deb [signed-by=/k.gpg] http://mirror/debian trixie main\n"
        );
        let stanzas = "Types: deb\nURIs: http://off\nSuites: bookworm\nEnabled: no\n\n\
                       Types: deb\nURIs: http://mirror/debian\nSuites: bookworm bookworm-updates\n\
                       Signed-By: /k.gpg\n";
        assert_eq!(Mirror::of_stanzas(stanzas, "bookworm"), Some(found));
        assert_eq!(Mirror::of_stanzas(stanzas, "trixie"), None);
        assert_eq!(Mirror::of_lines("deb", "bookworm"), None);
    }
}
