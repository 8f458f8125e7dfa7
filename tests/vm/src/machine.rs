//! QEMU's command line for a machine with NICs in it.

use crate::fetch::{Kernel, Tools};
use serde_json::json;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Memory of a NUMA node, in MiB.
const NODE_MIB: u32 = 384;

/// A NIC in a machine.
#[derive(Clone, Debug)]
pub struct Nic {
    /// Where `offmap nic` waits.
    pub socket: PathBuf,
    /// Whether it is at the second NUMA node, and not at none.
    pub far: bool,
}

/// A machine of two NUMA nodes with a processor each.
#[derive(Clone, Debug)]
pub struct Machine<'a> {
    /// QEMU, and what came with it.
    pub tools: &'a Tools,
    /// What it boots.
    pub kernel: &'a Kernel,
    /// Its file system ([`image::build`](crate::image::build)).
    pub image: &'a Path,
    /// Its NICs.
    pub nics: Vec<Nic>,
}

impl Machine<'_> {
    /// The command, with `append` on the command line of the guest's kernel. The kernel's console is the
    /// first serial port.
    pub fn command(&self, append: &str) -> Vec<OsString> {
        let mut command: Vec<OsString> = self.tools.qemu().into_iter().map(Into::into).collect();
        let mut say = |words: &[&str]| command.extend(words.iter().map(OsString::from));
        say(&["-nodefaults", "-no-user-config", "-no-reboot"]);
        say(&["-display", "none"]);
        // Two processors: with one the interpreter turns locked instructions into plain ones. Five levels
        // of page tables are walked in software here, and four are enough.
        say(&[
            "-accel",
            "tcg",
            "-cpu",
            "max,la57=off",
            "-smp",
            "2,sockets=2",
        ]);
        say(&["-m", &format!("{}M", 2 * NODE_MIB)]);
        say(&["-machine", "q35,kernel-irqchip=split"]);
        say(&["-device", "intel-iommu,intremap=on,caching-mode=on"]);
        for node in 0..2 {
            let memory = format!("memory-backend-memfd,id=m{node},size={NODE_MIB}M,share=on");
            let numa = format!("node,nodeid={node},cpus={node},memdev=m{node}");
            say(&["-object", &memory, "-numa", &numa]);
        }
        say(&["-numa", "dist,src=0,dst=1,val=21"]);
        if self.nics.iter().any(|nic| nic.far) {
            let bridge = "pxb-pcie,id=far,bus=pcie.0,bus_nr=64,numa_node=1";
            say(&["-device", bridge]);
        }
        for (n, nic) in self.nics.iter().enumerate() {
            let bus = if nic.far { "far" } else { "pcie.0" };
            let port = format!("pcie-root-port,id=rp{n},bus={bus},chassis={}", n + 1);
            let device = json!({
                "driver": "vfio-user-pci",
                "id": format!("nic{n}"),
                "bus": format!("rp{n}"),
                "socket": { "type": "unix", "path": nic.socket },
            });
            say(&["-device", &port, "-device", &device.to_string()]);
        }
        // The interpreter's time stamps are the host's, on every processor. A kernel that does not believe
        // that reads a clock in another device, which is an exit and a lock each time. Nor does it look
        // whether its timer ticks within 10 ms, which is not so when the host has other things to do.
        let clock = "tsc=reliable no_timer_check mitigations=off";
        let append = format!("console=ttyS0 quiet panic=-1 intel_iommu=on {clock} {append}");
        say(&["-append", append.trim_end()]);
        for (option, file) in [("-kernel", &*self.kernel.image), ("-initrd", self.image)] {
            command.extend([option.into(), file.into()]);
        }
        command
    }
}
