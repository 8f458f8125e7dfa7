//! Programs on the libraries that people use.

use crate::tools::{MODES, compile, offmap, place, said, skip, skipped, source, stdout};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// An object of Debian's xdp-tools, of which every map is put on the NIC.
pub(crate) fn object() -> Option<String> {
    let folders = std::fs::read_dir("/usr/lib").ok()?;
    let found = folders
        .filter_map(|folder| Some(folder.ok()?.path().join("bpf/xdpfilt_dny_all.o")))
        .find(|object| object.exists())
        .and_then(|object| object.to_str().map(str::to_owned));
    if found.is_none() {
        skip("there is no object of xdp-tools");
    }
    found
}

/// The program on libbpf, if there are a C compiler and libbpf's header.
pub(crate) fn libbpf() -> Option<&'static Path> {
    static LIBBPF: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let program = LIBBPF.get_or_init(|| {
        let to = place("libbpf");
        let mut cc = Command::new("cc");
        cc.args(["-O2", "-Wall", "-Wextra", "-Werror"])
            .arg(source("libbpf.c"))
            .arg("-o")
            .arg(&to)
            .arg("-lbpf");
        compile(&mut cc).map(|()| to)
    });
    match program {
        Ok(program) => Some(program),
        Err(why) => {
            skip(why);
            None
        }
    }
}

#[test]
fn libbpf_with_map_ifindex_and_with_set_ifindex() {
    let (Some(program), Some(object)) = (libbpf(), object()) else {
        return;
    };
    if skipped("kernel") {
        return;
    }
    let pin = format!("/sys/fs/bpf/offmap-libbpf-{}", std::process::id());
    let output = offmap(&["--files", "kernel", "--"])
        .arg(program)
        .args(["offmap0", &pin, &object])
        .output()
        .expect("starts");
    assert!(output.status.success(), "{}", said(&output));
    let said = stdout(&output);
    assert!(said.contains("table 512"), "{said}");
    for map in [
        "filter_ports",
        "filter_ipv4",
        "filter_ipv6",
        "filter_ethernet",
    ] {
        assert!(said.contains(&format!("map {map}")), "{said}");
    }
    assert!(!Path::new(&pin).exists());
}

#[test]
fn go_which_never_sets_map_ifindex() {
    let program = place("go");
    let mut go = Command::new("go");
    go.args(["build", "-o"])
        .arg(&program)
        .arg(source("ebpf.go"))
        .env("GO111MODULE", "off")
        .env("GOPATH", "/usr/share/gocode")
        .env("GOCACHE", place("go-cache"))
        .env("CGO_ENABLED", "0");
    if let Err(why) = compile(&mut go) {
        return skip(&why);
    }
    for mode in MODES {
        if skipped(mode) {
            continue;
        }
        let pin = format!("/sys/fs/bpf/offmap-go-{}", std::process::id());
        let rules = ["--files", mode, "--stats", "--offload-map", "flow*", "--"];
        let output = offmap(&rules)
            .arg(&program)
            .args([pin.as_str(), mode])
            .output()
            .expect("starts");
        assert!(output.status.success(), "{mode}: {}", said(&output));
        assert_eq!(stdout(&output).trim(), "flows 100 200 24850 flows");
        assert!(
            said(&output).contains("1 maps offloaded"),
            "{}",
            said(&output)
        );
    }
}
