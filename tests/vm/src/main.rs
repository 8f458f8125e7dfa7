//! `cargo vm SOCKET`: a virtual machine with the NICs in it that `offmap nic` serves, and a shell on
//! this terminal. QEMU and the guest's kernel are fetched, and nothing is installed.
#![forbid(unsafe_code)]

use clap::Parser;
use offmap_vm::fetch::{self, Tools};
use offmap_vm::image;
use offmap_vm::machine::{Machine, Nic};
use std::env;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// A virtual machine with emulated NICs in it, and a root shell on this terminal.
///
/// QEMU and a kernel of Debian are fetched with apt, once, and kept in target/vm-cache (or the folder that OFFMAP_VM_CACHE
/// names); nothing is installed, and no privilege is needed. The guest has busybox, the modules of
/// VFIO, and `offmap` as `cargo build --release` makes it. Ctrl-A X ends the machine.
#[derive(Parser)]
#[command(name = "cargo vm", bin_name = "cargo vm")]
struct Args {
    /// The sockets of `offmap nic --socket PATH`, one for each NIC
    #[arg(required = true, value_name = "SOCKET")]
    sockets: Vec<PathBuf>,

    /// Print QEMU's command line instead of running it, for a machine of your own
    #[arg(long)]
    print: bool,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(never) => match never {},
        Err(Ended::Printed) => ExitCode::SUCCESS,
        Err(Ended::Failed(sentence)) => {
            eprintln!("cargo vm: {sentence}");
            ExitCode::FAILURE
        }
    }
}

/// How it ended without becoming QEMU.
enum Ended {
    Printed,
    Failed(String),
}

impl From<String> for Ended {
    fn from(sentence: String) -> Self {
        Self::Failed(sentence)
    }
}

fn run(args: &Args) -> Result<std::convert::Infallible, Ended> {
    for socket in &args.sockets {
        if !socket.exists() {
            let path = socket.display();
            let sentence = format!(
                "there is nothing at {path}: start the NIC first, target/release/offmap nic --socket {path} &"
            );
            return Err(Ended::Failed(sentence));
        }
    }
    let target = target()?;
    let cache = fetch::cache(&target);
    eprintln!(
        "QEMU and the guest's kernel: in {}, or fetched to it now (70 MB)",
        cache.display()
    );
    let tools = Tools::get(&target)?;
    let kernel = tools.kernel().map_err(|e| format!("the kernel: {e}"))?;
    let offmap = offmap(&target)?;
    let bytes = image::build(&tools, &kernel, &offmap, image::SHELL)?;
    let image = cache.join("shell.img");
    // Beside its place: another guest may be reading the one of before.
    let new = cache.join(format!("shell.img.{}", std::process::id()));
    let written = fs::write(&new, bytes).and_then(|()| fs::rename(&new, &image));
    written.map_err(|e| format!("{}: {e}", image.display()))?;
    let nics = args.sockets.iter().map(|socket| Nic {
        socket: socket.clone(),
        far: false,
    });
    let machine = Machine {
        tools: &tools,
        kernel: &kernel,
        image: &image,
        nics: nics.collect(),
    };
    let mut command = machine.command("");
    command.extend(["-serial", "mon:stdio"].map(Into::into));
    if args.print {
        println!("{}", shell(&command));
        return Err(Ended::Printed);
    }
    let (program, rest) = command.split_first().ok_or_else(|| "no QEMU".to_owned())?;
    let failed = Command::new(program).args(rest).exec();
    Err(Ended::Failed(format!("{}: {failed}", program.display())))
}

/// A command as it is typed, an option a line.
fn shell(command: &[impl AsRef<OsStr>]) -> String {
    let mut text = String::new();
    for (n, word) in command.iter().enumerate() {
        let word = word.as_ref().to_string_lossy();
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=,:+".contains(c);
        let before = match (n, word.starts_with('-')) {
            (0, _) => "",
            (_, true) => " \\\n    ",
            (_, false) => " ",
        };
        text += before;
        match word.chars().all(plain) && !word.is_empty() {
            true => text += &word,
            false => text += &format!("'{}'", word.replace('\'', r"'\''")),
        }
    }
    text
}

/// The folder that built things are in.
fn target() -> Result<PathBuf, String> {
    let this = env::current_exe().map_err(|e| format!("where this program is: {e}"))?;
    // target/PROFILE/offmap-vm
    let folder = this.ancestors().nth(2).map(Path::to_owned);
    folder.ok_or_else(|| format!("{} was not built by Cargo", this.display()))
}

/// The command for the guest, built when it is not there yet or is stale.
fn offmap(target: &Path) -> Result<PathBuf, String> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let built = Command::new(cargo)
        .args(["build", "--release", "--locked", "--bin", "offmap"])
        .arg("--target-dir")
        .arg(target)
        .status()
        .map_err(|e| format!("cargo build: {e}"))?;
    match built.success() {
        true => Ok(target.join("release/offmap")),
        false => Err(format!("cargo build: {built}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_printed_command_can_be_typed() {
        let text = shell(&["qemu", "-device", "{\"a\":1}", "-m", "512M", ""]);
        assert_eq!(text, "qemu \\\n    -device '{\"a\":1}' \\\n    -m 512M ''");
        assert_eq!(shell(&["it's"]), r"'it'\''s'");
    }
}
