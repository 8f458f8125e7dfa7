//! bpf(2) as bytes, on our side and on the running kernel's: what the rows of the kernel
//! contract are written over, once, in `tests/contract.rs`.

use crate::kernel::{self, Availability};
use crate::stack::Stack;
use offmap_bpf::device::{MapSpec, OffloadDevice, OffloadRules, OffloadedMap};
use offmap_bpf::{
    Caller, Errno, Error, Fd, MapCreateAttr, System, SystemConfig, UserArena, UserMemory, command,
};
use offmap_device_io::Function;
use offmap_differential::KernelCalls;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes of a machine's memory.
pub const ARENA_BYTES: usize = 64 << 10;
/// Where our machines' memory begins.
const BASE: u64 = 0x7f00_0000_0000;

/// Offsets in the memory that the calls below use.
const ATTR: usize = 0;
const KEY: usize = 0x2000;
const VALUE: usize = 0x4000;
const TOKEN: usize = 0x1000;
const NEXT_TOKEN: usize = 0x1800;
const INFO: usize = 0x1c00;

/// What bpf(2) came to.
pub type Got<T = ()> = Result<T, i32>;

/// What a batch came to: its result, and the count and the token that it left.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Batched {
    /// Result.
    pub result: Got,
    /// `count` after the call.
    pub count: u32,
    /// `out_batch` after the call, eight bytes.
    pub token: [u8; 8],
}

/// Somebody's bpf(2), with one process's memory and descriptors.
pub trait Machine {
    /// Who answers, for messages.
    fn name(&self) -> &str;
    /// Address of the first byte of memory; the page after the last faults.
    fn base(&self) -> u64;
    /// Writes to memory.
    fn put(&mut self, at: usize, bytes: &[u8]);
    /// Reads from memory.
    fn get(&self, at: usize, len: usize) -> Vec<u8>;
    /// bpf(2).
    fn bpf(&mut self, command: u32, attr: u64, size: u32) -> Got<i32>;
    /// `close(2)`.
    fn close(&mut self, fd: i32);
    /// The values per element of a per-CPU map.
    fn cpus(&self) -> usize;
    /// The interface that maps are created on; 0 for the host.
    fn ifindex(&self) -> u32 {
        0
    }

    /// bpf(2) with these bytes as the attribute.
    fn raw(&mut self, command: u32, attr: &[u8]) -> Got<i32> {
        self.put(ATTR, attr);
        let at = self.base() + ATTR as u64;
        self.bpf(command, at, attr.len() as u32)
    }

    /// What [`Machine::raw`] left in the attribute.
    fn attr(&self, len: usize) -> Vec<u8> {
        self.get(ATTR, len)
    }

    /// BPF_MAP_CREATE with `attr` as it is.
    fn create_as_is(&mut self, attr: &MapCreateAttr) -> Got<i32> {
        self.raw(command::MAP_CREATE, &create_bytes(attr))
    }

    /// BPF_MAP_CREATE on [`Machine::ifindex`].
    fn create(&mut self, attr: &MapCreateAttr) -> Got<i32> {
        let map_ifindex = self.ifindex();
        self.create_as_is(&MapCreateAttr {
            map_ifindex,
            ..*attr
        })
    }

    /// A map that must be accepted.
    #[track_caller]
    fn map(&mut self, attr: &MapCreateAttr) -> i32 {
        let made = self.create(attr);
        made.unwrap_or_else(|e| panic!("{}: {attr:?}: errno {e}", self.name()))
    }

    /// A command on one element with these addresses.
    fn element(&mut self, number: u32, fd: i32, key: u64, value: u64, flags: u64) -> Got {
        let mut attr = [0; 32];
        attr[..4].copy_from_slice(&fd.to_ne_bytes());
        attr[8..16].copy_from_slice(&key.to_ne_bytes());
        attr[16..24].copy_from_slice(&value.to_ne_bytes());
        attr[24..].copy_from_slice(&flags.to_ne_bytes());
        self.raw(number, &attr).map(drop)
    }

    /// Puts a key into memory; the address, null for an empty one.
    fn key_at(&mut self, key: &[u8]) -> u64 {
        self.put(KEY, key);
        match key.is_empty() {
            true => 0,
            false => self.base() + KEY as u64,
        }
    }

    /// An address of memory for values.
    fn value_at(&self) -> u64 {
        self.base() + VALUE as u64
    }

    /// BPF_MAP_LOOKUP_ELEM of a value of `len` bytes.
    fn lookup(&mut self, fd: i32, key: &[u8], len: usize, flags: u64) -> Got<Vec<u8>> {
        let (key, value) = (self.key_at(key), self.value_at());
        self.element(command::MAP_LOOKUP_ELEM, fd, key, value, flags)?;
        Ok(self.get(VALUE, len))
    }

    /// BPF_MAP_UPDATE_ELEM.
    fn update(&mut self, fd: i32, key: &[u8], value: &[u8], flags: u64) -> Got {
        let key = self.key_at(key);
        self.put(VALUE, value);
        self.element(command::MAP_UPDATE_ELEM, fd, key, self.value_at(), flags)
    }

    /// BPF_MAP_DELETE_ELEM.
    fn delete(&mut self, fd: i32, key: &[u8]) -> Got {
        let key = self.key_at(key);
        self.element(command::MAP_DELETE_ELEM, fd, key, 0, 0)
    }

    /// BPF_MAP_GET_NEXT_KEY.
    fn next(&mut self, fd: i32, key: Option<&[u8]>, len: usize) -> Got<Vec<u8>> {
        let key = key.map_or(0, |key| self.key_at(key));
        self.element(command::MAP_GET_NEXT_KEY, fd, key, self.value_at(), 0)?;
        Ok(self.get(VALUE, len))
    }

    /// BPF_MAP_LOOKUP_AND_DELETE_ELEM.
    fn take(&mut self, fd: i32, key: &[u8], len: usize, flags: u64) -> Got<Vec<u8>> {
        let (key, value) = (self.key_at(key), self.value_at());
        let number = command::MAP_LOOKUP_AND_DELETE_ELEM;
        self.element(number, fd, key, value, flags)?;
        Ok(self.get(VALUE, len))
    }

    /// BPF_MAP_FREEZE.
    fn freeze(&mut self, fd: i32) -> Got {
        self.raw(command::MAP_FREEZE, &fd.to_ne_bytes()).map(drop)
    }

    /// A batch with these addresses: `in_batch`, `out_batch`, keys, values; and `count`,
    /// `elem_flags`, `flags`.
    fn batch_at(
        &mut self,
        number: u32,
        fd: i32,
        at: [u64; 4],
        count: u32,
        flags: [u64; 2],
    ) -> Batched {
        let mut attr = [0; 56];
        for (i, at) in at.iter().enumerate() {
            attr[i * 8..i * 8 + 8].copy_from_slice(&at.to_ne_bytes());
        }
        attr[32..36].copy_from_slice(&count.to_ne_bytes());
        attr[36..40].copy_from_slice(&fd.to_ne_bytes());
        attr[40..48].copy_from_slice(&flags[0].to_ne_bytes());
        attr[48..].copy_from_slice(&flags[1].to_ne_bytes());
        let result = self.raw(number, &attr).map(drop);
        Batched {
            result,
            count: u32_of(&self.attr(56)[32..]),
            token: self.get(NEXT_TOKEN, 8).try_into().expect("eight bytes"),
        }
    }

    /// A walk from `token` on: BPF_MAP_LOOKUP_BATCH or BPF_MAP_LOOKUP_AND_DELETE_BATCH. The
    /// token after it is 0xee where the call wrote none.
    fn walk(&mut self, number: u32, fd: i32, token: Option<&[u8]>, count: u32) -> Batched {
        self.put(NEXT_TOKEN, &[0xee; 8]);
        let base = self.base();
        let from = token.map_or(0, |token| {
            self.put(TOKEN, token);
            base + TOKEN as u64
        });
        let at = [
            from,
            base + NEXT_TOKEN as u64,
            base + KEY as u64,
            base + VALUE as u64,
        ];
        self.batch_at(number, fd, at, count, [0; 2])
    }

    /// BPF_MAP_UPDATE_BATCH or, without values, BPF_MAP_DELETE_BATCH.
    fn store(
        &mut self,
        fd: i32,
        keys: &[u8],
        values: Option<&[u8]>,
        count: u32,
        elem_flags: u64,
    ) -> Batched {
        self.put(KEY, keys);
        self.put(VALUE, values.unwrap_or(&[]));
        let number = match values {
            Some(_) => command::MAP_UPDATE_BATCH,
            None => command::MAP_DELETE_BATCH,
        };
        let at = [0, 0, self.base() + KEY as u64, self.value_at()];
        self.batch_at(number, fd, at, count, [elem_flags, 0])
    }

    /// Keys that a walk left.
    fn walked_keys(&self, bytes: usize) -> Vec<u8> {
        self.get(KEY, bytes)
    }

    /// Values that a walk left.
    fn walked_values(&self, bytes: usize) -> Vec<u8> {
        self.get(VALUE, bytes)
    }

    /// BPF_OBJ_GET_INFO_BY_FD with `info` as what the caller gives; what it has afterwards, and
    /// `info_len`.
    fn info(&mut self, fd: i32, info: &[u8]) -> Got<(Vec<u8>, u32)> {
        self.put(INFO, info);
        let mut attr = [0; 16];
        attr[..4].copy_from_slice(&fd.to_ne_bytes());
        attr[4..8].copy_from_slice(&(info.len() as u32).to_ne_bytes());
        attr[8..].copy_from_slice(&(self.base() + INFO as u64).to_ne_bytes());
        self.raw(command::OBJ_GET_INFO_BY_FD, &attr)?;
        Ok((self.get(INFO, info.len()), u32_of(&self.attr(16)[4..])))
    }

    /// OBJ_PIN or OBJ_GET with `path`.
    fn object(&mut self, number: u32, path: &str, fd: i32) -> Got<i32> {
        let mut text = path.as_bytes().to_vec();
        text.push(0);
        self.put(VALUE, &text);
        let mut attr = [0; 24];
        attr[..8].copy_from_slice(&self.value_at().to_ne_bytes());
        attr[8..12].copy_from_slice(&fd.to_ne_bytes());
        self.raw(number, &attr)
    }

    /// A command on an id.
    fn by_id(&mut self, number: u32, id: u32) -> (Got<i32>, u32) {
        let mut attr = [0; 12];
        attr[..4].copy_from_slice(&id.to_ne_bytes());
        let got = self.raw(number, &attr);
        (got, u32_of(&self.attr(12)[4..]))
    }

    /// BPF_BTF_LOAD of a blob of at most 16 KiB.
    fn btf(&mut self, blob: &[u8]) -> Got<i32> {
        self.put(VALUE, blob);
        let mut attr = [0; 28];
        attr[..8].copy_from_slice(&self.value_at().to_ne_bytes());
        attr[16..20].copy_from_slice(&(blob.len() as u32).to_ne_bytes());
        self.raw(command::BTF_LOAD, &attr)
    }
}

/// The first word of `bytes`.
pub fn u32_of(bytes: &[u8]) -> u32 {
    u32::from_ne_bytes(bytes[..4].try_into().expect("four bytes"))
}

/// BPF_MAP_CREATE's part of `union bpf_attr`.
pub fn create_bytes(attr: &MapCreateAttr) -> [u8; 92] {
    let mut bytes = [0; 92];
    let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
    for (i, word) in [
        attr.map_type,
        attr.key_size,
        attr.value_size,
        attr.max_entries,
        attr.map_flags,
        attr.inner_map_fd,
        attr.numa_node,
    ]
    .into_iter()
    .enumerate()
    {
        put(i * 4, &word.to_ne_bytes());
    }
    put(28, &attr.map_name);
    for (i, word) in [
        attr.map_ifindex,
        attr.btf_fd,
        attr.btf_key_type_id,
        attr.btf_value_type_id,
        attr.btf_vmlinux_value_type_id,
    ]
    .into_iter()
    .enumerate()
    {
        put(44 + i * 4, &word.to_ne_bytes());
    }
    put(64, &attr.map_extra.to_ne_bytes());
    put(72, &attr.value_type_btf_obj_fd.to_ne_bytes());
    put(76, &attr.map_token_fd.to_ne_bytes());
    put(80, &attr.excl_prog_hash.to_ne_bytes());
    put(88, &attr.excl_prog_hash_size.to_ne_bytes());
    bytes
}

/// Our side.
pub struct Ours {
    name: String,
    /// The system.
    pub system: Arc<System>,
    /// Who calls.
    pub caller: Caller,
    /// The caller's memory.
    pub memory: UserArena,
    /// Where maps are created.
    pub ifindex: u32,
    /// Why the last call failed.
    pub reason: String,
}

impl Ours {
    /// A host without devices.
    pub fn host() -> Self {
        Self::over("offmap, host", System::new(SystemConfig::default()), 0)
    }

    /// The device of a stack.
    pub fn on<F: Function>(name: &str, stack: &Stack<F>) -> Self {
        Self::over(name, Arc::clone(&stack.system), stack.ifindex.0)
    }

    /// A system, with maps created on `ifindex`.
    pub fn over(name: &str, system: Arc<System>, ifindex: u32) -> Self {
        Self {
            name: name.to_owned(),
            system,
            caller: Caller::root(),
            memory: UserArena::new(BASE, ARENA_BYTES),
            ifindex,
            reason: String::new(),
        }
    }

    /// bpf(2) with five arguments: the attribute's bytes, and those of the common attributes,
    /// which are at offset 0x1000 afterwards.
    pub fn common(&mut self, number: u32, attr: &[u8], common: &[u8]) -> Got<i32> {
        self.put(ATTR, attr);
        self.put(TOKEN, common);
        let got = self.system.bpf_common(
            &self.caller,
            &self.memory,
            number | command::COMMON_ATTRS,
            BASE + ATTR as u64,
            attr.len() as u32,
            BASE + TOKEN as u64,
            common.len() as u32,
        );
        self.keep(got)
    }

    fn keep(&mut self, got: Result<i32, Error>) -> Got<i32> {
        got.map_err(|error| {
            error.reason().clone_into(&mut self.reason);
            error.errno().0
        })
    }
}

impl Machine for Ours {
    fn name(&self) -> &str {
        &self.name
    }

    fn base(&self) -> u64 {
        BASE
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        let written = self.memory.write(BASE + at as u64, bytes);
        written.expect("within the arena");
    }

    fn get(&self, at: usize, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let read = self.memory.read(BASE + at as u64, &mut bytes);
        read.expect("within the arena");
        bytes
    }

    fn bpf(&mut self, number: u32, attr: u64, size: u32) -> Got<i32> {
        let got = self
            .system
            .bpf(&self.caller, &self.memory, number, attr, size);
        if let Err(error) = &got {
            assert!(error.reason().len() > 5, "no reason: {error}");
        }
        self.keep(got)
    }

    fn close(&mut self, fd: i32) {
        self.system.close(Fd(fd)).expect("an open descriptor");
    }

    fn cpus(&self) -> usize {
        self.system.config().possible_cpus as usize
    }

    fn ifindex(&self) -> u32 {
        self.ifindex
    }
}

/// The running kernel's host maps.
pub struct Theirs {
    /// Its calls.
    pub calls: KernelCalls,
}

impl Theirs {
    /// The kernel, if maps may be created in it.
    ///
    /// # Errors
    ///
    /// Why not.
    pub fn new() -> Result<Self, String> {
        if let Availability::No(why) = kernel::availability() {
            return Err(why);
        }
        let calls = KernelCalls::new(ARENA_BYTES).map_err(|e| e.to_string())?;
        Ok(Self { calls })
    }
}

impl Machine for Theirs {
    fn name(&self) -> &'static str {
        "kernel"
    }

    fn base(&self) -> u64 {
        self.calls.base()
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.calls.bytes_mut()[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn get(&self, at: usize, len: usize) -> Vec<u8> {
        self.calls.bytes()[at..at + len].to_vec()
    }

    fn bpf(&mut self, number: u32, attr: u64, size: u32) -> Got<i32> {
        self.calls.call(number, attr, size)
    }

    fn close(&mut self, fd: i32) {
        self.calls.close(fd);
    }

    fn cpus(&self) -> usize {
        kernel::possible_cpus() as usize
    }
}

/// What happens while a device works.
pub type Hook = Arc<Mutex<Option<Box<dyn FnOnce() + Send>>>>;

/// What a device was asked, in order.
pub type Seen = Arc<Mutex<Vec<String>>>;

/// A device that writes down what it is asked and answers with what it is told to.
pub struct Recorder {
    /// Called once, with the update's map at work.
    pub during_update: Hook,
    seen: Seen,
    refuse: Option<Errno>,
    answer: Option<Errno>,
}

impl Recorder {
    /// Takes every map, unless `refuse` says how it fails; maps fail every operation with
    /// `answer`, if there is one, and are hash tables otherwise.
    pub fn new(refuse: Option<Errno>, answer: Option<Errno>) -> (Arc<Self>, Seen) {
        let seen = Seen::default();
        let device = Self {
            during_update: Hook::default(),
            seen: Arc::clone(&seen),
            refuse,
            answer,
        };
        (Arc::new(device), seen)
    }
}

/// What was seen up to now.
pub fn seen(log: &Seen) -> Vec<String> {
    log.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

fn note(log: &Seen, what: &str) {
    let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
    log.push(what.to_owned());
}

impl OffloadDevice for Recorder {
    fn describe(&self) -> String {
        "a recorder".into()
    }

    fn rules(&self) -> OffloadRules {
        OffloadRules::default()
    }

    fn map_alloc(&self, spec: &MapSpec) -> Result<Arc<dyn OffloadedMap>, Error> {
        note(&self.seen, "ALLOC");
        if let Some(errno) = self.refuse {
            return Err(Error::because(
                errno,
                format!(
                    "max_entries {}: the recorder was told to fail",
                    spec.max_entries
                ),
            ));
        }
        Ok(Arc::new(Recorded {
            during_update: Arc::clone(&self.during_update),
            seen: Arc::clone(&self.seen),
            answer: self.answer,
            entries: Mutex::default(),
        }))
    }
}

struct Recorded {
    during_update: Hook,
    seen: Seen,
    answer: Option<Errno>,
    entries: Mutex<BTreeMap<Vec<u8>, Vec<u8>>>,
}

impl Recorded {
    fn asked(&self, what: &str) -> Result<(), Error> {
        note(&self.seen, what);
        match self.answer {
            Some(errno) => Err(Error::new(errno, "the recorder was told to fail")),
            None => Ok(()),
        }
    }

    fn entries(&self) -> std::sync::MutexGuard<'_, BTreeMap<Vec<u8>, Vec<u8>>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const MISSING: Error = Error::new(Errno::ENOENT, "the recorder has no such key");

impl OffloadedMap for Recorded {
    fn lookup(&self, key: &[u8], value: &mut [u8], _flags: u64) -> Result<(), Error> {
        self.asked("LOOKUP")?;
        value.copy_from_slice(self.entries().get(key).ok_or(MISSING)?);
        Ok(())
    }

    fn update(&self, key: &[u8], value: &[u8], _flags: u64) -> Result<(), Error> {
        self.asked("UPDATE")?;
        let hook = self
            .during_update
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(hook) = hook {
            hook();
        }
        self.entries().insert(key.into(), value.into());
        Ok(())
    }

    fn delete(&self, key: &[u8]) -> Result<(), Error> {
        self.asked("DELETE")?;
        self.entries().remove(key).map(drop).ok_or(MISSING)
    }

    fn get_next_key(&self, key: Option<&[u8]>, next: &mut [u8]) -> Result<(), Error> {
        self.asked("GETNEXT")?;
        let entries = self.entries();
        let after = key.filter(|key| entries.contains_key(*key));
        let found = entries
            .keys()
            .find(|other| after.is_none_or(|key| other.as_slice() > key));
        next.copy_from_slice(found.ok_or(MISSING)?);
        Ok(())
    }

    fn device_bytes(&self) -> u64 {
        0
    }

    fn free(&self) {
        note(&self.seen, "FREE");
    }
}
