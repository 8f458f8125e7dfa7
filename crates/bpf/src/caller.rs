//! Who asks: what of the calling task bpf(2) looks at.

use crate::memory::MemoryOwner;
use bitflags::bitflags;

bitflags! {
    /// Capabilities that the map commands ask for (`include/uapi/linux/capability.h`), in the
    /// initial user namespace. Bit `n` is capability `n`.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
    pub struct Capabilities: u64 {
        /// `CAP_CHOWN`: give files away.
        const CHOWN = 1 << 0;
        /// `CAP_DAC_OVERRIDE`: no permission bits.
        const DAC_OVERRIDE = 1 << 1;
        /// `CAP_DAC_READ_SEARCH`: no permission bits for reading and searching.
        const DAC_READ_SEARCH = 1 << 2;
        /// `CAP_FOWNER`: act as the owner of any file.
        const FOWNER = 1 << 3;
        /// `CAP_FSETID`: keep the set-group-ID bit of other groups' files.
        const FSETID = 1 << 4;
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
    /// User, against whom the owner of a file is held (`fsuid`).
    pub uid: u32,
    /// Group (`fsgid`). There are no supplementary groups.
    pub gid: u32,
    /// Permission bits that files made by this task do not get (`umask(2)`).
    pub umask: u16,
    /// Who pays for the memory of the maps that the task creates; nobody, and without a limit,
    /// when `None`.
    pub memory: Option<MemoryOwner>,
}

/// User and group of [`Caller::unprivileged`]: nobody.
const NOBODY: u32 = 65_534;

impl Caller {
    /// User 0 with every capability and umask 022, in the first network namespace.
    pub const fn root() -> Self {
        Self {
            capabilities: Capabilities::all(),
            netns: NetNs::INIT,
            uid: 0,
            gid: 0,
            umask: 0o022,
            memory: None,
        }
    }

    /// User and group 65534 without any capability and with umask 022, in the first network
    /// namespace.
    pub const fn unprivileged() -> Self {
        Self {
            capabilities: Capabilities::empty(),
            netns: NetNs::INIT,
            uid: NOBODY,
            gid: NOBODY,
            umask: 0o022,
            memory: None,
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

    /// The same task as another user and group. Capabilities stay as they are.
    pub const fn as_user(self, uid: u32, gid: u32) -> Self {
        Self { uid, gid, ..self }
    }

    /// The same task, its maps paid for by `owner`.
    pub const fn charged_to(self, owner: MemoryOwner) -> Self {
        Self {
            memory: Some(owner),
            ..self
        }
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
