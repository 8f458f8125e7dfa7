//! The machine on which it was measured.

use serde::{Deserialize, Serialize};
use std::fs;

/// What a reader of the figures has to know of the machine.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Machine {
    /// The processor's name.
    pub cpu: String,
    /// Processors that this process may run on.
    pub processors: usize,
    /// Kernel release.
    pub kernel: String,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Whether it says that it is a virtual machine.
    pub virtual_machine: bool,
    /// Transparent huge pages: `always`, `madvise` or `never`.
    pub huge_pages: String,
    /// The governor of the first processor's frequency, where there is one.
    pub governor: Option<String>,
    /// NUMA nodes.
    pub nodes: usize,
}

fn read(path: &str) -> Option<String> {
    fs::read_to_string(path)
        .ok()
        .map(|text| text.trim().to_owned())
}

/// A field of a file of `name: value` lines.
fn field(text: &str, name: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then(|| value.trim().to_owned())
    })
}

/// Bytes from a field of `/proc/meminfo`; 0 where it has none.
pub(crate) fn meminfo(name: &str) -> u64 {
    let kib = read("/proc/meminfo")
        .and_then(|text| field(&text, name))
        .and_then(|value| value.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

impl Machine {
    /// This one.
    pub fn this(processors: usize) -> Self {
        let cpuinfo = read("/proc/cpuinfo").unwrap_or_default();
        let huge = read("/sys/kernel/mm/transparent_hugepage/enabled").unwrap_or_default();
        let chosen = huge
            .split('[')
            .nth(1)
            .and_then(|rest| rest.split(']').next());
        let nodes = fs::read_dir("/sys/devices/system/node").map_or(1, |entries| {
            let names = entries.flatten().map(|e| e.file_name());
            names
                .filter(|name| {
                    let name = name.to_string_lossy();
                    name.strip_prefix("node")
                        .is_some_and(|n| n.parse::<u32>().is_ok())
                })
                .count()
        });
        Self {
            cpu: field(&cpuinfo, "model name").unwrap_or_else(|| std::env::consts::ARCH.into()),
            processors,
            kernel: read("/proc/sys/kernel/osrelease").unwrap_or_default(),
            memory_bytes: meminfo("MemTotal"),
            virtual_machine: field(&cpuinfo, "flags")
                .is_some_and(|flags| flags.split(' ').any(|flag| flag == "hypervisor")),
            huge_pages: chosen.unwrap_or("unknown").to_owned(),
            governor: read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
            nodes: nodes.max(1),
        }
    }

    /// In a line.
    pub fn text(&self) -> String {
        format!(
            "{}{}, {} processors for this process, {:.0} GiB, {} NUMA node{}, Linux {}, huge pages: {}{}",
            self.cpu,
            if self.virtual_machine {
                " (virtual)"
            } else {
                ""
            },
            self.processors,
            self.memory_bytes as f64 / f64::from(1 << 30),
            self.nodes,
            if self.nodes == 1 { "" } else { "s" },
            self.kernel,
            self.huge_pages,
            match &self.governor {
                Some(governor) => format!(", governor: {governor}"),
                None => String::new(),
            },
        )
    }
}
