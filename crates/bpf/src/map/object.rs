//! `struct bpf_map`.

use super::offload::OffloadMap;
use super::ops::{MapOps, Token};
use super::owner::ProgramOwner;
use crate::btf_object::MapBtf;
use crate::caller::Caller;
use crate::device::OffloadCommands;
use crate::errno::Errno;
use crate::error::{Error, Result};
use crate::memory::Charge;
use crate::security::SecurityMap;
use crate::system::{Identified, Seen, Shared};
use crate::uapi::{BPF_OBJ_NAME_LEN, MapFlags, MapType};
use std::sync::atomic::{
    AtomicBool, AtomicU32, AtomicU64,
    Ordering::{AcqRel, Acquire, Relaxed, Release},
};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A map. As in the kernel, what operations read lies on cache lines of its own, and what user
/// space writes with every update lies on others, so that writers never take the readers'
/// lines away.
#[repr(C)]
pub(crate) struct Map {
    pub(crate) read_mostly: ReadMostly,
    written: Written,
    settled: Settled,
}

/// Read by every operation; written when the map is made, and the id once more when it goes.
#[repr(C, align(64))]
pub(crate) struct ReadMostly {
    pub(crate) ops: Arc<dyn MapOps>,
    /// Bytes of a value as user space passes it.
    pub(crate) user_value_bytes: usize,
    pub(crate) map_type: MapType,
    /// Those of these commands that reach `ops`; the others fail with 524.
    pub(crate) commands: OffloadCommands,
    pub(crate) key_size: u32,
    pub(crate) value_size: u32,
    pub(crate) max_entries: u32,
    pub(crate) map_extra: u64,
    pub(crate) map_flags: MapFlags,
    pub(crate) numa_node: u32,
    /// What a batch walk's token is.
    pub(crate) token: Token,
    /// 0 while the map has none: before it is published, and after it was taken away.
    pub(crate) id: AtomicU32,
    pub(crate) name: [u8; BPF_OBJ_NAME_LEN],
    /// The types of its keys and values, if it was created with BTF.
    pub(crate) btf: Option<Box<MapBtf>>,
    /// The SHA-256 of the one program that may use the map (`excl_prog_sha`, 6.18).
    pub(crate) exclusive: Option<Box<[u8; 32]>>,
    /// What `ops` reaches the device through, for offloaded maps: mostly the same object.
    pub(crate) offload: Option<Arc<OffloadMap>>,
    pub(crate) shared: Arc<Shared>,
}

/// Written while the map is in use.
#[repr(C, align(64))]
struct Written {
    /// Open files of user space (`usercnt`); the kernel's `refcnt` is the `Arc`'s.
    usercnt: AtomicU64,
    /// Writers in progress (`writecnt`), and [`FROZEN`]: one word, so that a writer cannot
    /// slip past a freeze that has just looked. Its high half counts the writes that have ended.
    writecnt: AtomicU64,
}

/// Looked at when a program is bound to the map, and when it goes.
struct Settled {
    /// Who pays for the storage; goes with it to the worker.
    charge: Mutex<Option<Charge>>,
    /// Set once a security hook has seen the map.
    seen: AtomicBool,
    /// `owner`, under its `owner_lock`.
    owner: Mutex<Option<ProgramOwner>>,
}

const FROZEN: u64 = 1 << 31;
/// The writers in progress.
const ACTIVE: u64 = FROZEN - 1;
/// What one write that has ended adds, modulo 2^32: the high half of the word.
const ENDED: u64 = 1 << 32;

const IS_FROZEN: Error = Error::new(Errno::EPERM, "the map is frozen for user space");

impl Map {
    pub(crate) fn new(read_mostly: ReadMostly, charge: Option<Charge>) -> Self {
        Self {
            read_mostly,
            written: Written {
                usercnt: AtomicU64::new(0),
                writecnt: AtomicU64::new(0),
            },
            settled: Settled {
                charge: Mutex::new(charge),
                seen: AtomicBool::new(false),
                owner: Mutex::new(None),
            },
        }
    }

    /// The map as security hooks see it.
    pub(crate) fn for_security(&self) -> SecurityMap {
        let fields = &self.read_mostly;
        SecurityMap {
            id: self.id(),
            map_type: fields.map_type,
            key_size: fields.key_size,
            value_size: fields.value_size,
            max_entries: fields.max_entries,
            map_flags: fields.map_flags,
            name: fields.name,
            offloaded: fields.offload.is_some(),
        }
    }

    /// `security_bpf_map_create`.
    pub(crate) fn security_create(&self, caller: &Caller) -> Result<()> {
        self.settled.seen.store(true, Relaxed);
        let hook = &self.read_mostly.shared.security;
        hook.map_create(caller, &self.for_security())
    }

    /// `map->owner`, locked.
    pub(crate) fn owner(&self) -> MutexGuard<'_, Option<ProgramOwner>> {
        let owner = self.settled.owner.lock();
        owner.unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn id(&self) -> u32 {
        self.read_mostly.id.load(Acquire)
    }

    /// `bpf_map_free_id`: the id table forgets the map. Does nothing the second time.
    pub(crate) fn free_id(&self) {
        self.read_mostly.shared.ids.remove(&self.read_mostly.id);
    }

    pub(crate) fn is_frozen(&self) -> bool {
        self.written.writecnt.load(Relaxed) & FROZEN != 0
    }

    /// `bpf_map_write_active_inc`, and the check that the map is not frozen.
    #[inline]
    pub(crate) fn begin_write(&self) -> Result<WriteActive<'_>> {
        let active = WriteActive(&self.written.writecnt);
        if active.0.fetch_add(1, Acquire) & FROZEN != 0 {
            return Err(IS_FROZEN);
        }
        Ok(active)
    }

    /// As [`Map::begin_write`], for a writer that stays until [`Map::end_write`]: as in the
    /// kernel a writable mapping.
    pub(crate) fn begin_long_write(&self) -> Result<()> {
        self.begin_write().map(std::mem::forget)
    }

    /// Ends what [`Map::begin_long_write`] began.
    pub(crate) fn end_write(&self) {
        drop(WriteActive(&self.written.writecnt));
    }

    /// `map_freeze`.
    pub(crate) fn freeze(&self) -> Result<()> {
        let set = |now: u64| (now & (ACTIVE | FROZEN) == 0).then_some(now | FROZEN);
        match self.written.writecnt.fetch_update(AcqRel, Relaxed, set) {
            Ok(_) => Ok(()),
            Err(now) if now & FROZEN != 0 => Err(Error::new(
                Errno::EPERM,
                "the map is frozen already, so the file is no longer writable",
            )),
            Err(_) => Err(Error::new(
                Errno::EBUSY,
                "a write to the map is in progress",
            )),
        }
    }

    /// How many writes of user space have ended, modulo 2^32, those through mappings apart. Whoever
    /// sees the same count before and after has missed none that had returned.
    pub(crate) fn writes_ended(&self) -> u32 {
        (self.written.writecnt.load(Acquire) / ENDED) as u32
    }

    pub(crate) fn get_user(&self) {
        self.written.usercnt.fetch_add(1, Relaxed);
    }

    pub(crate) fn put_user(&self) {
        self.written.usercnt.fetch_sub(1, Relaxed);
    }

    /// Open files of user space.
    pub(crate) fn users(&self) -> u64 {
        self.written.usercnt.load(Relaxed)
    }
}

impl Identified for Map {
    fn id_cell(&self) -> &AtomicU32 {
        &self.read_mostly.id
    }
}

impl Drop for Map {
    /// `bpf_map_put` of the last reference: the id goes at once, the storage later.
    fn drop(&mut self) {
        let map = self.for_security();
        self.free_id();
        let ops = Arc::clone(&self.read_mostly.ops);
        let shared = &self.read_mostly.shared;
        let seen = self.settled.seen.get_mut().then(|| Seen {
            hook: Arc::clone(&shared.security),
            map,
        });
        let charge = self.settled.charge.get_mut();
        let charge = charge.unwrap_or_else(PoisonError::into_inner).take();
        shared.frees.send(ops, seen, charge);
    }
}

/// A write in progress; ends when dropped.
pub(crate) struct WriteActive<'a>(&'a AtomicU64);

impl Drop for WriteActive<'_> {
    #[inline]
    fn drop(&mut self) {
        // One less in progress, one more that has ended.
        self.0.fetch_add(ENDED - 1, Release);
    }
}

// The layout that decision 11 of the architecture asks for.
const _: () = {
    const LINE: usize = 64;
    assert!(align_of::<Map>() == LINE);
    assert!(std::mem::offset_of!(Map, read_mostly) == 0);
    assert!(std::mem::offset_of!(Map, written) % LINE == 0);
    assert!(std::mem::offset_of!(Map, written) >= size_of::<ReadMostly>());
    assert!(size_of::<ReadMostly>() == 2 * LINE);
    assert!(size_of::<Written>() == LINE);
    // What a lookup reads is on the first line.
    assert!(std::mem::offset_of!(ReadMostly, ops) == 0);
    assert!(std::mem::offset_of!(ReadMostly, key_size) + 4 <= LINE);
    assert!(std::mem::offset_of!(ReadMostly, user_value_bytes) + 8 <= LINE);
};
