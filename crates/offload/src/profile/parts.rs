//! The parts of a profile.

use super::words::STATUSES;
use offmap_bpf::Errno;
use offmap_bpf::uapi::{BPF_EXIST, BPF_NOEXIST, MapFlags, MapType};
use offmap_driver::Status;
use std::time::Duration;

/// Why a profile does not take a map flag, in words.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FlagReason {
    /// The flag.
    pub flag: MapFlags,
    /// One sentence without a full stop.
    pub reason: String,
}

/// A data operation, as far as error numbers tell them apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operation {
    /// BPF_MAP_LOOKUP_ELEM, and one of many lookups.
    Lookup,
    /// BPF_MAP_UPDATE_ELEM and its batch.
    Update,
    /// BPF_MAP_DELETE_ELEM and its batch.
    Delete,
    /// BPF_MAP_GET_NEXT_KEY.
    NextKey,
    /// BPF_MAP_LOOKUP_AND_DELETE_ELEM.
    LookupAndDelete,
    /// The two batch walks. No rule names it: what ends them is part of the command.
    Walk,
}

impl Operation {
    /// Its word in a profile file.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Lookup => "lookup",
            Self::Update => "update",
            Self::Delete => "delete",
            Self::NextKey => "next_key",
            Self::LookupAndDelete => "lookup_and_delete",
            Self::Walk => "walk",
        }
    }
}

/// An error number of a data operation that differs from a host map's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ErrnoRule {
    /// The operation; `None`: all but walks.
    pub operation: Option<Operation>,
    /// Type of the map; `None`: any.
    pub map_type: Option<MapType>,
    /// Flags of an update: BPF_ANY, BPF_NOEXIST or BPF_EXIST; `None`: any.
    pub flags: Option<u64>,
    /// What the device answered.
    pub when: Status,
    /// What the caller gets.
    pub errno: Errno,
}

impl ErrnoRule {
    /// The cases that it decides, in the words of a profile file.
    pub fn meaning(&self) -> String {
        let operation = self.operation.map_or("any operation", Operation::word);
        let on = self.map_type.map_or_else(
            || "any map".to_owned(),
            |map_type| format!("{map_type} maps"),
        );
        let flags = match self.flags {
            None => "",
            Some(BPF_NOEXIST) => " with noexist",
            Some(BPF_EXIST) => " with exist",
            Some(_) => " with any",
        };
        let status = STATUSES.iter().find(|(_, status)| *status == self.when);
        let status = status.map_or_else(|| self.when.to_string(), |(word, _)| (*word).to_owned());
        format!("{operation}{flags} on {on}: {status}")
    }

    pub(super) fn fits(
        &self,
        operation: Operation,
        map_type: MapType,
        flags: u64,
        status: Status,
    ) -> bool {
        self.when == status
            && operation != Operation::Walk
            && self.operation.is_none_or(|own| own == operation)
            && self.map_type.is_none_or(|own| own == map_type)
            && (self.flags).is_none_or(|own| operation == Operation::Update && own == flags)
    }

    /// Whether nothing is left for `later` when this rule comes before it.
    pub(super) fn covers(&self, later: &Self) -> bool {
        fn wider<T: PartialEq>(own: Option<T>, other: Option<T>) -> bool {
            own.is_none() || own == other
        }
        self.when == later.when
            && wider(self.operation, later.operation)
            && wider(self.map_type, later.map_type)
            && wider(self.flags, later.flags)
    }
}

/// nfp's reply cache: what a GETNEXT brought along.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReplyCacheRule {
    /// Keys and values in one reply.
    pub entries: usize,
    /// How long a reply is used.
    pub valid: Duration,
}

/// What a driver does beside checking. All of it concerns HASH and ARRAY maps; maps of other
/// types behave as in the default profile.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Behaviours {
    /// A map has at least this many slots for entries, whatever its `max_entries`. 0: as many
    /// as `max_entries`. Those of an array are there, and zero, from the start.
    pub slots: u32,
    /// Keys of a hash map are walked in the order of their slots, and a new key takes the first
    /// free one. For maps whose keys only the host adds, and of at most
    /// [`Behaviours::SLOT_ORDER_MAX`] entries; larger ones are walked in the device's order.
    pub slot_order: bool,
    /// A hash map takes device memory with its first update, which may fail for want of it.
    pub lazy_hash: bool,
    /// One operation on a map at a time.
    pub one_lock: bool,
    /// The reply cache.
    pub reply_cache: Option<ReplyCacheRule>,
    /// Longest time for one operation, then ETIMEDOUT. `None`: the driver's.
    pub deadline: Option<Duration>,
}

impl Behaviours {
    /// Most slots that [`Behaviours::slot_order`] keeps on the host.
    pub const SLOT_ORDER_MAX: u32 = 1024;

    /// Whether maps have any that acts in each operation.
    pub(crate) const fn act(&self) -> bool {
        self.slots > 0
            || self.slot_order
            || self.lazy_hash
            || self.one_lock
            || self.reply_cache.is_some()
    }
}
