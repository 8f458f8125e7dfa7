//! Constants and structs of `include/uapi/linux/bpf.h`, with the header's names where Rust
//! allows them.

use bitflags::bitflags;
use std::fmt;

/// `enum bpf_map_type`. Open: a type that this crate has no name for is kept.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MapType(pub u32);

macro_rules! map_types {
    ($($name:ident = $value:expr,)*) => {
        impl MapType {
            $(
                #[doc = concat!("`BPF_MAP_TYPE_", stringify!($name), "`.")]
                pub const $name: Self = Self($value);
            )*

            /// The name after `BPF_MAP_TYPE_`, in lower case, as bpftool prints it.
            pub fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($value => Some(const { &lower(stringify!($name)) }.as_str()),)*
                    _ => None,
                }
            }
        }
    };
}

struct Lower([u8; 32], usize);

impl Lower {
    fn as_str(&'static self) -> &'static str {
        std::str::from_utf8(&self.0[..self.1]).unwrap_or("?")
    }
}

const fn lower(name: &str) -> Lower {
    let mut out = [0; 32];
    let bytes = name.as_bytes();
    let mut i = 0;
    while i < bytes.len() {
        out[i] = bytes[i].to_ascii_lowercase();
        i += 1;
    }
    Lower(out, bytes.len())
}

map_types! {
    UNSPEC = 0,
    HASH = 1,
    ARRAY = 2,
    PROG_ARRAY = 3,
    PERF_EVENT_ARRAY = 4,
    PERCPU_HASH = 5,
    PERCPU_ARRAY = 6,
    STACK_TRACE = 7,
    CGROUP_ARRAY = 8,
    LRU_HASH = 9,
    LRU_PERCPU_HASH = 10,
    LPM_TRIE = 11,
    ARRAY_OF_MAPS = 12,
    HASH_OF_MAPS = 13,
    DEVMAP = 14,
    SOCKMAP = 15,
    CPUMAP = 16,
    XSKMAP = 17,
    SOCKHASH = 18,
    CGROUP_STORAGE = 19,
    REUSEPORT_SOCKARRAY = 20,
    PERCPU_CGROUP_STORAGE = 21,
    QUEUE = 22,
    STACK = 23,
    SK_STORAGE = 24,
    DEVMAP_HASH = 25,
    STRUCT_OPS = 26,
    RINGBUF = 27,
    INODE_STORAGE = 28,
    TASK_STORAGE = 29,
    BLOOM_FILTER = 30,
    USER_RINGBUF = 31,
    CGRP_STORAGE = 32,
    ARENA = 33,
}

impl MapType {
    /// Whether each entry has one value per possible CPU.
    pub const fn is_percpu(self) -> bool {
        matches!(
            self,
            Self::PERCPU_HASH | Self::PERCPU_ARRAY | Self::LRU_PERCPU_HASH
        )
    }

    /// Whether the values are maps.
    pub const fn is_map_of_maps(self) -> bool {
        matches!(self, Self::ARRAY_OF_MAPS | Self::HASH_OF_MAPS)
    }

    /// The types that this system has on the host; as a kernel that is built without the others.
    pub const ON_HOST: [Self; 13] = [
        Self::HASH,
        Self::ARRAY,
        Self::PERCPU_HASH,
        Self::PERCPU_ARRAY,
        Self::LRU_HASH,
        Self::LRU_PERCPU_HASH,
        Self::LPM_TRIE,
        Self::QUEUE,
        Self::STACK,
        Self::BLOOM_FILTER,
        Self::ARRAY_OF_MAPS,
        Self::HASH_OF_MAPS,
        Self::RINGBUF,
    ];

    /// Whether it is one of the types that are `struct bpf_htab` in the kernel.
    pub(crate) const fn is_hash(self) -> bool {
        matches!(
            self,
            Self::HASH
                | Self::PERCPU_HASH
                | Self::LRU_HASH
                | Self::LRU_PERCPU_HASH
                | Self::HASH_OF_MAPS
        )
    }
}

impl fmt::Debug for MapType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "{}", self.0),
        }
    }
}

impl fmt::Display for MapType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// `BPF_ANY`: create the element or update it.
pub const BPF_ANY: u64 = 0;
/// `BPF_NOEXIST`: create the element if it is not there.
pub const BPF_NOEXIST: u64 = 1;
/// `BPF_EXIST`: update the element if it is there.
pub const BPF_EXIST: u64 = 2;
/// `BPF_F_LOCK`: take the value's `bpf_spin_lock`.
pub const BPF_F_LOCK: u64 = 4;

/// `BPF_OBJ_NAME_LEN`: bytes of a name, its NUL included.
pub const BPF_OBJ_NAME_LEN: usize = 16;

bitflags! {
    /// `map_flags` of BPF_MAP_CREATE. Unknown bits are kept.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
    pub struct MapFlags: u32 {
        /// `BPF_F_NO_PREALLOC`.
        const NO_PREALLOC = 1 << 0;
        /// `BPF_F_NO_COMMON_LRU`.
        const NO_COMMON_LRU = 1 << 1;
        /// `BPF_F_NUMA_NODE`.
        const NUMA_NODE = 1 << 2;
        /// `BPF_F_RDONLY`: user space may only read.
        const RDONLY = 1 << 3;
        /// `BPF_F_WRONLY`: user space may only write.
        const WRONLY = 1 << 4;
        /// `BPF_F_STACK_BUILD_ID`.
        const STACK_BUILD_ID = 1 << 5;
        /// `BPF_F_ZERO_SEED`.
        const ZERO_SEED = 1 << 6;
        /// `BPF_F_RDONLY_PROG`.
        const RDONLY_PROG = 1 << 7;
        /// `BPF_F_WRONLY_PROG`.
        const WRONLY_PROG = 1 << 8;
        /// `BPF_F_CLONE`.
        const CLONE = 1 << 9;
        /// `BPF_F_MMAPABLE`.
        const MMAPABLE = 1 << 10;
        /// `BPF_F_PRESERVE_ELEMS`.
        const PRESERVE_ELEMS = 1 << 11;
        /// `BPF_F_INNER_MAP`.
        const INNER_MAP = 1 << 12;
        /// `BPF_F_LINK`.
        const LINK = 1 << 13;
        /// `BPF_F_PATH_FD`.
        const PATH_FD = 1 << 14;
        /// `BPF_F_VTYPE_BTF_OBJ_FD`.
        const VTYPE_BTF_OBJ_FD = 1 << 15;
        /// `BPF_F_TOKEN_FD`: `map_token_fd` is set.
        const TOKEN_FD = 1 << 16;
        const _ = !0;
    }
}

/// The part of `union bpf_attr` that BPF_MAP_CREATE reads, field for field.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[expect(
    missing_docs,
    reason = "the fields are the UAPI header's, which documents them"
)]
pub struct MapCreateAttr {
    pub map_type: u32,
    pub key_size: u32,
    pub value_size: u32,
    pub max_entries: u32,
    pub map_flags: u32,
    pub inner_map_fd: u32,
    pub numa_node: u32,
    pub map_name: [u8; BPF_OBJ_NAME_LEN],
    pub map_ifindex: u32,
    pub btf_fd: u32,
    pub btf_key_type_id: u32,
    pub btf_value_type_id: u32,
    pub btf_vmlinux_value_type_id: u32,
    pub map_extra: u64,
    pub value_type_btf_obj_fd: i32,
    pub map_token_fd: i32,
    pub excl_prog_hash: u64,
    pub excl_prog_hash_size: u32,
}

impl MapCreateAttr {
    /// The attribute's flags.
    pub const fn flags(&self) -> MapFlags {
        MapFlags::from_bits_retain(self.map_flags)
    }

    /// `bpf_map_attr_numa_node`: the node, or [`NUMA_NO_NODE`] without `BPF_F_NUMA_NODE`.
    pub const fn numa_node(&self) -> u32 {
        if self.flags().contains(MapFlags::NUMA_NODE) {
            self.numa_node
        } else {
            NUMA_NO_NODE
        }
    }

    /// Bytes of one value as user space passes it: `value_size`, and for per-CPU types
    /// `round_up(value_size, 8)` for each possible CPU.
    pub const fn user_value_bytes(&self, possible_cpus: u32) -> usize {
        if MapType(self.map_type).is_percpu() {
            (self.value_size as usize).next_multiple_of(8) * possible_cpus as usize
        } else {
            self.value_size as usize
        }
    }
}

/// `NUMA_NO_NODE`, as an unsigned attribute holds it.
pub const NUMA_NO_NODE: u32 = u32::MAX;

/// `BPF_RB_NO_WAKEUP`: a record is committed and no waiting consumer is told.
pub const BPF_RB_NO_WAKEUP: u64 = 1;
/// `BPF_RB_FORCE_WAKEUP`: waiting consumers are told, whether they had caught up or not.
pub const BPF_RB_FORCE_WAKEUP: u64 = 2;

/// `BPF_RB_AVAIL_DATA`: bytes that are reserved or committed, and not consumed.
pub const BPF_RB_AVAIL_DATA: u64 = 0;
/// `BPF_RB_RING_SIZE`: bytes of the data area.
pub const BPF_RB_RING_SIZE: u64 = 1;
/// `BPF_RB_CONS_POS`: the consumer position.
pub const BPF_RB_CONS_POS: u64 = 2;
/// `BPF_RB_PROD_POS`: the producer position.
pub const BPF_RB_PROD_POS: u64 = 3;

/// `BPF_RINGBUF_BUSY_BIT` of a record's length: it is reserved and not committed yet.
pub const BPF_RINGBUF_BUSY_BIT: u32 = 1 << 31;
/// `BPF_RINGBUF_DISCARD_BIT` of a record's length: consumers pass over it.
pub const BPF_RINGBUF_DISCARD_BIT: u32 = 1 << 30;
/// `BPF_RINGBUF_HDR_SZ`: bytes of a record's header.
pub const BPF_RINGBUF_HDR_SZ: usize = 8;
