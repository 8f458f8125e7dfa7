//! Who asks: what of the calling task bpf(2) looks at.

use bitflags::bitflags;

bitflags! {
    /// Capabilities that the map commands ask for (`include/uapi/linux/capability.h`), in the
    /// initial user namespace. Bit `n` is capability `n`.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
    pub struct Capabilities: u64 {
        /// `CAP_NET_ADMIN`.
        const NET_ADMIN = 1 << 12;
        /// `CAP_SYS_ADMIN`.
        const SYS_ADMIN = 1 << 21;
        /// `CAP_PERFMON`.
        const PERFMON = 1 << 38;
        /// `CAP_BPF`.
        const BPF = 1 << 39;
        const _ = !0;
    }
}

/// A network namespace, named as `stat(2)` names its file under `/proc/PID/ns/net`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, PartialOrd, Ord)]
pub struct NetNs {
    /// `st_dev` of nsfs.
    pub dev: u64,
    /// `st_ino` of the namespace.
    pub ino: u64,
}

impl NetNs {
    /// The first namespace of a [`crate::System`].
    pub const INIT: Self = Self {
        dev: 4,
        ino: 0xf000_0000,
    };
}

/// The calling task, as far as the map commands look at it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Caller {
    /// Capabilities in the initial user namespace.
    pub capabilities: Capabilities,
    /// Network namespace, in which `map_ifindex` is looked up.
    pub netns: NetNs,
}

impl Caller {
    /// A task with every capability, in the first network namespace.
    pub const fn root() -> Self {
        Self {
            capabilities: Capabilities::all(),
            netns: NetNs::INIT,
        }
    }

    /// A task without any capability, in the first network namespace.
    pub const fn unprivileged() -> Self {
        Self {
            capabilities: Capabilities::empty(),
            netns: NetNs::INIT,
        }
    }

    /// The same task with just these capabilities.
    pub const fn with_capabilities(self, capabilities: Capabilities) -> Self {
        Self {
            capabilities,
            ..self
        }
    }

    /// The same task in another network namespace.
    pub const fn in_netns(self, netns: NetNs) -> Self {
        Self { netns, ..self }
    }

    /// `capable(CAP_SYS_ADMIN)`.
    pub const fn sys_admin(&self) -> bool {
        self.capabilities.contains(Capabilities::SYS_ADMIN)
    }

    /// `bpf_capable()`: CAP_BPF, which CAP_SYS_ADMIN implies.
    pub const fn bpf_capable(&self) -> bool {
        self.capabilities
            .intersects(Capabilities::BPF.union(Capabilities::SYS_ADMIN))
    }
}
