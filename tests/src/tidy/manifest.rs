//! Rules about crates, their dependencies and their manifests.

/// The workspace's crates and, for each, the crates of the workspace that it may depend on in
/// any way: the table of the architecture, which normal, dev and build dependencies keep
/// alike. A trailing `?` marks an edge that exists behind a feature only.
pub const EDGES: &[(&str, &[&str])] = &[
    ("offmap-abi", &[]),
    ("offmap-device-io", &[]),
    ("offmap-bpf", &[]),
    ("offmap-driver", &["offmap-abi", "offmap-device-io"]),
    (
        "offmap-offload",
        &["offmap-abi", "offmap-bpf", "offmap-driver"],
    ),
    ("offmap-conformance", &["offmap-abi", "offmap-device-io"]),
    ("offmap-vfio", &["offmap-device-io"]),
    ("offmap-vfio-user", &["offmap-device-io"]),
    ("offmap-firmware-model", &["offmap-abi"]),
    ("offmap-model", &["offmap-abi", "offmap-firmware-model"]),
    (
        "offmap-emulator",
        &[
            "offmap-abi",
            "offmap-device-io",
            "offmap-firmware-model",
            "offmap-vfio-user?",
        ],
    ),
    ("offmap-differential", &["offmap-bpf"]),
    (
        "offmap-sim",
        &[
            "offmap-abi",
            "offmap-device-io",
            "offmap-driver",
            "offmap-emulator",
            "offmap-firmware-model",
        ],
    ),
    (
        "offmap-bench",
        &[
            "offmap-abi",
            "offmap-bpf",
            "offmap-device-io",
            "offmap-differential",
            "offmap-driver",
            "offmap-emulator",
            "offmap-offload",
            "offmap-vfio-user",
        ],
    ),
    ("offmap-run", &["offmap-bpf"]),
    ("offmap-cli", &["*"]),
    ("offmap-tests", &["*"]),
    ("offmap-suite", &[]),
    ("offmap-vm", &[]),
];

/// An edge between two crates of the workspace.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Edge {
    /// The crate that depends.
    pub from: String,
    /// The crate depended on.
    pub to: String,
    /// Whether it is behind a feature.
    pub optional: bool,
}

/// Edges that [`EDGES`] does not allow.
pub fn forbidden_edges(edges: &[Edge]) -> Vec<String> {
    edges
        .iter()
        .filter(|edge| {
            let row = EDGES.iter().find(|(from, _)| *from == edge.from);
            let allowed = row.is_some_and(|(_, to)| {
                to.iter().any(|to| match to.strip_suffix('?') {
                    Some(to) => to == edge.to && edge.optional,
                    None => *to == "*" || *to == edge.to,
                })
            });
            !allowed
        })
        .map(|edge| format!("{} may not depend on {}", edge.from, edge.to))
        .collect()
}

/// What a member's manifest lacks: the workspace's lints, and dependencies taken from the
/// workspace.
pub fn manifest_faults(text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let mut section = "";
    let mut lints = false;
    for line in text.lines().map(str::trim) {
        if line.starts_with('[') {
            section = line;
        } else if section == "[lints]" && line == "workspace = true" {
            lints = true;
        } else if section.ends_with("dependencies]")
            && !line.is_empty()
            && !line.starts_with('#')
            && !line.contains("workspace = true")
        {
            faults.push(format!("`{line}` is not taken from the workspace"));
        }
        // `[dependencies.name]` puts the keys on lines of their own, where the rule above
        // would have to be another one; nothing here needs the form.
        if line.starts_with('[') && line.contains("dependencies.") {
            faults.push(format!("write `{line}` as one line"));
        }
    }
    if !lints {
        faults.push("no `[lints] workspace = true`".into());
    }
    faults
}

/// Lints that the workspace must deny.
const DENIED: [&str; 7] = [
    "unsafe_code",
    "missing_docs",
    "undocumented_unsafe_blocks",
    "multiple_unsafe_ops_per_block",
    "todo",
    "unimplemented",
    "dbg_macro",
];

/// Lints of [`DENIED`] that the workspace's manifest does not deny.
pub fn lint_faults(text: &str) -> Vec<String> {
    DENIED
        .iter()
        .filter(|lint| {
            let (deny, forbid) = (format!("{lint} = \"deny\""), format!("{lint} = \"forbid\""));
            !text
                .lines()
                .any(|line| line.trim() == deny || line.trim() == forbid)
        })
        .map(|lint| format!("the workspace does not deny `{lint}`"))
        .collect()
}

/// Direct dependencies that the text about dependencies does not name as `` `name` ``.
pub fn unexplained<'a>(text: &str, dependencies: &[&'a str]) -> Vec<&'a str> {
    dependencies
        .iter()
        .copied()
        .filter(|name| !text.contains(&format!("`{name}`")))
        .collect()
}

/// Sources in `Cargo.lock` other than crates.io under its canonical name.
pub fn foreign_sources(lock: &str) -> Vec<&str> {
    lock.lines()
        .filter(|line| line.starts_with("source = "))
        .filter(|line| {
            *line != "source = \"registry+https://github.com/rust-lang/crates.io-index\""
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edge(from: &str, to: &str) -> Edge {
        Edge {
            from: from.into(),
            to: to.into(),
            optional: false,
        }
    }

    #[test]
    fn planted_edges_are_found() {
        for (from, to) in [
            ("offmap-driver", "offmap-emulator"),
            ("offmap-driver", "offmap-firmware-model"),
            ("offmap-offload", "offmap-emulator"),
            ("offmap-offload", "offmap-device-io"),
            ("offmap-emulator", "offmap-driver"),
            ("offmap-bpf", "offmap-driver"),
            ("offmap-firmware-model", "offmap-device-io"),
            ("offmap-emulator", "offmap-vfio-user"),
            ("offmap-abi", "offmap-bpf"),
            ("offmap-unheard-of", "offmap-abi"),
        ] {
            assert_eq!(forbidden_edges(&[edge(from, to)]).len(), 1, "{from} {to}");
        }
        let mut optional = edge("offmap-emulator", "offmap-vfio-user");
        optional.optional = true;
        let fine = [
            optional,
            edge("offmap-driver", "offmap-abi"),
            edge("offmap-tests", "offmap-emulator"),
        ];
        assert!(forbidden_edges(&fine).is_empty());
    }

    #[test]
    fn planted_manifest_faults_are_found() {
        let good = "[dependencies]\n# why\na.workspace = true\nb = { workspace = true }\n\n\
                    [lints]\nworkspace = true\n";
        assert!(manifest_faults(good).is_empty());
        let planted = good.replace("a.workspace = true", "a = \"1\"");
        assert_eq!(manifest_faults(&planted).len(), 1);
        let planted = good.replace("[dependencies]", "[dev-dependencies]\nx = \"1\"");
        assert_eq!(manifest_faults(&planted).len(), 1);
        assert_eq!(manifest_faults("[package]\nname = \"a\"\n").len(), 1);
        assert!(!manifest_faults("[lints]\nworkspace = true\n[dependencies.a]\n").is_empty());
    }

    #[test]
    fn weakened_lints_are_found() {
        let good: String = DENIED.iter().map(|l| format!("{l} = \"deny\"\n")).collect();
        assert!(lint_faults(&good).is_empty());
        for lint in DENIED {
            let planted = good.replace(
                &format!("\n{lint} = \"deny\""),
                &format!("\n{lint} = \"warn\""),
            );
            let planted = planted.replace("unsafe_code = \"deny\"\nm", "m");
            assert!(!lint_faults(&planted).is_empty(), "{lint}");
        }
    }

    #[test]
    fn an_unexplained_dependency_is_found() {
        assert_eq!(unexplained("`a` does x", &["a", "b"]), ["b"]);
    }

    #[test]
    fn a_foreign_source_is_found() {
        let good = "source = \"registry+https://github.com/rust-lang/crates.io-index\"";
        assert!(foreign_sources(good).is_empty());
        assert_eq!(foreign_sources("source = \"git+https://a/b\"\n").len(), 1);
    }
}
