//! The workspace keeps its own rules: layers, unsafe, documentation, dependencies.

use cargo_metadata::{Metadata, MetadataCommand};
use offmap_tests::tidy::manifest::{self, Edge};
use offmap_tests::tidy::{MAX_LINES, machine_path, source};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Files that may contain unsafe code, and what for. A file that no longer does must leave
/// the list.
const UNSAFE_FILES: &[(&str, &str)] = &[
    (
        "crates/bpf/src/map/zeroed.rs",
        "an anonymous mapping in huge pages, seen as words",
    ),
    ("crates/device-io/src/bar.rs", "atomics in a mapped BAR"),
    (
        "crates/device-io/src/dma.rs",
        "copies to and from shared memory",
    ),
    (
        "crates/device-io/src/numa.rs",
        "mbind, which no safe crate has",
    ),
    (
        "crates/device-io/src/prefetch.rs",
        "the prefetch instruction",
    ),
    (
        "crates/device-io/src/word.rs",
        "a checked reference to a shared word",
    ),
    (
        "crates/differential/src/kernel.rs",
        "bpf(2) on an arena that the kernel writes to",
    ),
    (
        "crates/run/src/kernel.rs",
        "bpf(2), whose attribute holds addresses",
    ),
    (
        "crates/run/src/sys.rs",
        "seccomp's notifications, another process's memory, bpf(2)",
    ),
    (
        "crates/vfio/src/attach.rs",
        "a borrowed descriptor, and DMA mappings by address",
    ),
    ("crates/vfio/src/ioctl.rs", "ioctl, which takes addresses"),
    ("tests/src/counting.rs", "a global allocator that counts"),
    (
        "crates/vfio-user/tests/no_memory.rs",
        "a global allocator that has no large pieces",
    ),
    (
        "tests/src/kernel.rs",
        "bpf(2), whose attribute holds addresses",
    ),
];

/// Crates in which unsafe code is forbidden at the root.
const FORBID_UNSAFE: &[&str] = &[
    "offmap-abi",
    "offmap-bench",
    "offmap-conformance",
    "offmap-driver",
    "offmap-offload",
    "offmap-firmware-model",
    "offmap-sim",
    "offmap-vfio-user",
    "offmap-cli",
];

fn metadata() -> Metadata {
    MetadataCommand::new().no_deps().exec().unwrap()
}

fn root() -> PathBuf {
    static ROOT: OnceLock<PathBuf> = OnceLock::new();
    ROOT.get_or_init(|| metadata().workspace_root.into())
        .clone()
}

/// Tracked files and those that would be, relative to the root.
fn files() -> Vec<String> {
    let out = Command::new("git")
        .args([
            "ls-files",
            "--cached",
            "--others",
            "--exclude-standard",
            "-z",
        ])
        .current_dir(root())
        .output()
        .expect("git lists the files that the rules apply to");
    assert!(out.status.success(), "git ls-files: {out:?}");
    let list = String::from_utf8(out.stdout).unwrap();
    let mut files: Vec<String> = list
        .split('\0')
        .filter(|f| !f.is_empty() && root().join(f).is_file())
        .map(String::from)
        .collect();
    files.sort();
    files.dedup();
    assert!(files.len() > 40, "only {} files", files.len());
    files
}

fn rust_files() -> Vec<(String, syn::File)> {
    let root = root();
    files()
        .into_iter()
        .filter(|file| file.ends_with(".rs"))
        .map(|file| {
            let text = fs::read_to_string(root.join(&file)).unwrap();
            let parsed = syn::parse_file(&text).unwrap_or_else(|e| panic!("{file}: {e}"));
            (file, parsed)
        })
        .collect()
}

#[track_caller]
fn none(rule: &str, faults: Vec<String>) {
    assert!(faults.is_empty(), "{rule}:\n  {}", faults.join("\n  "));
}

#[test]
fn crates_depend_only_downwards() {
    let metadata = metadata();
    let members: BTreeSet<_> = metadata
        .packages
        .iter()
        .map(|p| p.name.to_string())
        .collect();
    let edges: Vec<Edge> = metadata
        .packages
        .iter()
        .flat_map(|package| {
            let from = package.name.to_string();
            package.dependencies.iter().map(move |dep| Edge {
                from: from.clone(),
                to: dep.name.clone(),
                optional: dep.optional,
            })
        })
        .filter(|edge| members.contains(&edge.to))
        .collect();
    assert!(edges.len() > 15, "only {} edges", edges.len());
    none("layers", manifest::forbidden_edges(&edges));
}

#[test]
fn unsafe_is_forbidden_where_it_must_be() {
    let mut faults = Vec::new();
    let mut seen = 0;
    for package in metadata().packages {
        if !FORBID_UNSAFE.contains(&package.name.as_str()) {
            continue;
        }
        for target in &package.targets {
            let is_root = target.is_lib() || target.is_bin();
            let text = fs::read_to_string(&target.src_path).unwrap();
            if is_root && !source::forbids_unsafe(&syn::parse_file(&text).unwrap()) {
                faults.push(target.src_path.to_string());
            }
            seen += usize::from(is_root);
        }
    }
    assert!(seen >= FORBID_UNSAFE.len());
    none("roots without #![forbid(unsafe_code)]", faults);
}

#[test]
fn unsafe_is_in_the_listed_files_only() {
    let mut faults = Vec::new();
    let mut with: BTreeSet<String> = BTreeSet::new();
    for (file, parsed) in rust_files() {
        let uses = source::unsafe_uses(&parsed);
        if uses.is_empty() {
            continue;
        }
        if !UNSAFE_FILES.iter().any(|(listed, _)| *listed == file) {
            faults.push(format!("{file}: {}", uses.join(", ")));
        }
        with.insert(file);
    }
    for (listed, why) in UNSAFE_FILES {
        assert!(!why.is_empty());
        if !with.contains(*listed) {
            faults.push(format!("{listed} is listed and has none"));
        }
    }
    none("unsafe code", faults);
}

/// Crates whose code keeps the ordering rules of docs/abi.md, and the one file in which they may make
/// a fence: the litmus tests compile it, so that a weaker one is found under loom.
const ORDERED: [&str; 6] = [
    "crates/abi/src/",
    "crates/device-io/src/",
    "crates/driver/src/",
    "crates/offload/src/",
    "emulator/src/",
    "firmware-model/src/",
];
const FENCE: &str = "crates/abi/src/fence.rs";

/// Whether a line of code makes a fence of its own, or defines what others take for the one.
fn makes_fence(line: &str) -> bool {
    let code = line.split("//").next().unwrap_or_default();
    let of_its_own = code.replace("full_fence(", "").contains("fence(");
    of_its_own || code.contains("fn full_fence")
}

#[test]
fn fences_are_made_in_one_place() {
    assert!(makes_fence("    compiler_fence(Ordering::SeqCst);"));
    assert!(makes_fence("pub fn full_fence() {}"));
    assert!(!makes_fence("        full_fence(); // and no fence()"));
    let root = root();
    let ordered = |file: &String| ORDERED.iter().any(|start| file.starts_with(start));
    let mut users = 0;
    let mut faults = Vec::new();
    for file in files().into_iter().filter(ordered) {
        let text = fs::read_to_string(root.join(&file)).unwrap();
        users += usize::from(text.contains("full_fence();"));
        if file != FENCE && text.lines().any(makes_fence) {
            faults.push(file);
        }
    }
    none("fences that no litmus test sees", faults);
    // The driver's rings; the device's queues and its way to sleep; both sides of ring buffers.
    assert!(users >= 5, "{users} files use the fence");
}

#[test]
fn nothing_is_left_for_later() {
    let faults = rust_files()
        .iter()
        .flat_map(|(file, parsed)| {
            let found = source::leftovers(parsed);
            found.into_iter().map(move |what| format!("{file}: {what}"))
        })
        .collect();
    none("left over", faults);
}

#[test]
fn public_items_are_documented() {
    let root = root();
    let mut faults = Vec::new();
    // Integration tests and benches have no public interface; each says at its head what it is.
    let library = |file: &str| file.contains("/src/");
    for (file, parsed) in rust_files().into_iter().filter(|(file, _)| library(file)) {
        let path = Path::new(&file);
        let name = path.file_stem().unwrap().to_str().unwrap();
        let is_root = ["lib", "main", "mod"].contains(&name);
        let folder = match path.parent().unwrap() {
            folder if is_root => folder.to_path_buf(),
            folder => folder.join(name),
        };
        let module_has_docs = |module: &str| {
            let folder = root.join(&folder);
            [format!("{module}.rs"), format!("{module}/mod.rs")]
                .iter()
                .filter_map(|file| fs::read_to_string(folder.join(file)).ok())
                .any(|text| syn::parse_file(&text).is_ok_and(|f| source::file_has_docs(&f)))
        };
        let found = source::undocumented(&parsed, &module_has_docs);
        faults.extend(found.into_iter().map(|what| format!("{file}: {what}")));
        if is_root && name != "mod" && !source::file_has_docs(&parsed) {
            faults.push(format!("{file}: the crate itself"));
        }
    }
    none("public and not documented", faults);
}

#[test]
fn files_are_of_a_readable_length() {
    let root = root();
    let faults = files()
        .iter()
        .filter(|file| [".rs", ".c", ".h", ".sh"].iter().any(|e| file.ends_with(e)))
        // It is made from the sources of crates/abi, and is one file for whoever includes it.
        .filter(|file| *file != "crates/abi/include/offmap_abi.h")
        .filter_map(|file| {
            let lines = fs::read_to_string(root.join(file)).unwrap().lines().count();
            (lines > MAX_LINES).then(|| format!("{file}: {lines} lines, at most {MAX_LINES}"))
        })
        .collect();
    none("too long", faults);
}

#[test]
fn no_file_names_a_machine() {
    let root = root();
    let faults = files()
        .iter()
        .filter_map(|file| {
            let text = String::from_utf8(fs::read(root.join(file)).unwrap()).ok()?;
            machine_path(&text).map(|path| format!("{file}: {path}"))
        })
        .collect();
    none("paths of one machine", faults);
    let lock = fs::read_to_string(root.join("Cargo.lock")).unwrap();
    let foreign = manifest::foreign_sources(&lock);
    none("sources", foreign.into_iter().map(String::from).collect());
}

#[test]
fn manifests_follow_the_workspace() {
    let metadata = metadata();
    let mut faults: Vec<String> = Vec::new();
    for package in &metadata.packages {
        let text = fs::read_to_string(&package.manifest_path).unwrap();
        let found = manifest::manifest_faults(&text);
        faults.extend(found.iter().map(|what| format!("{}: {what}", package.name)));
    }
    let top = fs::read_to_string(metadata.workspace_root.join("Cargo.toml")).unwrap();
    faults.extend(manifest::lint_faults(&top));
    none("manifests", faults);
    assert!(
        files().contains(&"Cargo.lock".into()),
        "Cargo.lock is not committed"
    );
}

#[test]
fn every_dependency_is_explained() {
    let metadata = metadata();
    let members: BTreeSet<_> = metadata
        .packages
        .iter()
        .map(|p| p.name.to_string())
        .collect();
    let external: BTreeSet<&str> = metadata
        .packages
        .iter()
        .flat_map(|package| &package.dependencies)
        .map(|dep| dep.name.as_str())
        .filter(|name| !members.contains(*name))
        .collect();
    let path = metadata.workspace_root.join("docs/dependencies.md");
    let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
    let names: Vec<&str> = external.into_iter().collect();
    let missing = manifest::unexplained(&text, &names);
    none(
        "not in docs/dependencies.md",
        missing.into_iter().map(String::from).collect(),
    );
}
