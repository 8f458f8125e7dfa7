//! The running kernel's map, by bpf(2).

use super::Side;
use super::file::PAGE;
use crate::error::{Measured, Unavailable};
use crate::mix::CallOp;
use crate::workload::{Kind, Op, Trace, Workload};
use offmap_bpf::{Errno, command};
use offmap_differential::KernelCalls;
use std::sync::Arc;

/// Where in the arena the attribute lies, the tokens of a walk, and from where on keys and values.
const ATTR: usize = 0;
const TOKENS: [usize; 2] = [256, 512];
const KEYS: usize = 1024;
/// Where the kernel puts the next key, from there on: a key has 64 bytes at most.
const NEXT: usize = 64;
/// Size of the attribute of an operation on an element, of one that has a key alone, and of a batch.
const ELEMENT: u32 = 32;
const KEY_ALONE: u32 = 16;
const BATCH: u32 = 56;

/// A map of the kernel. Its keys and values lie in one arena, which is all that the kernel is shown.
pub struct KernelSide {
    calls: KernelCalls,
    fd: i32,
    op: Op,
    trace: Arc<Trace>,
    batch: usize,
    values: usize,
    /// Which of the tokens a dump goes on with.
    token: Option<usize>,
    walking: bool,
}

impl KernelSide {
    /// Creates the map and fills it.
    ///
    /// # Errors
    ///
    /// When the kernel refuses, which it does without privileges.
    pub fn new(workload: &Workload, trace: &Arc<Trace>, possible_cpus: u32) -> Measured<Self> {
        let mut this = Self::with_arena(workload, trace, possible_cpus)?;
        this.create(workload)?;
        this.fill(workload)?;
        this.element_attr();
        Ok(this)
    }

    /// A map without entries, for calls of any keys.
    ///
    /// # Errors
    ///
    /// As [`KernelSide::new`].
    pub fn empty(workload: &Workload, possible_cpus: u32) -> Measured<Self> {
        let none = Workload {
            entries: 1,
            ..*workload
        };
        let mut this = Self::with_arena(workload, &Trace::new(&none, 0), possible_cpus)?;
        this.create(workload)?;
        this.element_attr();
        Ok(this)
    }

    /// Another thread's part in the same map, which is filled and must outlive it.
    ///
    /// # Errors
    ///
    /// When there is no memory to share with the kernel.
    pub fn share(&self, workload: &Workload, possible_cpus: u32) -> Measured<Self> {
        let mut this = Self::with_arena(workload, &self.trace, possible_cpus)?;
        this.fd = self.fd;
        this.element_attr();
        Ok(this)
    }

    fn with_arena(workload: &Workload, trace: &Arc<Trace>, possible_cpus: u32) -> Measured<Self> {
        let size = workload.value_size;
        let value_bytes = match workload.map_type {
            Kind::PercpuHash => size.next_multiple_of(8) * possible_cpus as usize,
            _ => size,
        };
        let elements = PAGE.max(workload.batch);
        let values = (KEYS + elements * trace.key_size).next_multiple_of(64);
        let calls = KernelCalls::new(values + elements * value_bytes)
            .map_err(Unavailable::failed("memory to share with the kernel"))?;
        let mut this = Self {
            calls,
            fd: -1,
            op: workload.op,
            trace: Arc::clone(trace),
            batch: workload.batch,
            values,
            token: None,
            walking: false,
        };
        let filler = trace.value[..1].repeat(elements * value_bytes);
        this.store(values, &filler);
        Ok(this)
    }

    fn create(&mut self, workload: &Workload) -> Measured<()> {
        for (at, field) in [
            workload.map_type.number(),
            workload.key_size as u32,
            workload.value_size as u32,
            workload.max_entries() as u32,
            workload.map_type.map_flags(),
        ]
        .into_iter()
        .enumerate()
        {
            self.store(ATTR + 4 * at, &field.to_ne_bytes());
        }
        let attr = self.calls.base() + ATTR as u64;
        self.fd = self
            .calls
            .call(command::MAP_CREATE, attr, 20)
            .map_err(|errno| {
                Unavailable::new(format!(
                    "the running kernel refuses BPF_MAP_CREATE with {:?}; run as root for its figures",
                    Errno(errno)
                ))
            })?;
        Ok(())
    }

    fn store(&mut self, at: usize, bytes: &[u8]) {
        self.calls.bytes_mut()[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn word(&mut self, at: usize, word: u64) {
        self.store(at, &word.to_ne_bytes());
    }

    fn address(&self, at: usize) -> u64 {
        self.calls.base() + at as u64
    }

    /// The attribute of operations on an element, which stays as it is.
    fn element_attr(&mut self) {
        let (key, value) = (self.address(KEYS), self.address(self.values));
        self.word(ATTR, u64::from(self.fd.cast_unsigned()));
        self.word(ATTR + 8, key);
        self.word(ATTR + 16, value);
        self.word(ATTR + 24, 0);
    }

    fn element(&mut self, command: u32, key: &[u8]) -> Result<i32, i32> {
        self.store(KEYS, key);
        let attr = self.address(ATTR);
        // A deletion has no value, and the kernel refuses what lies behind the fields that a command has.
        let size = match command {
            command::MAP_DELETE_ELEM => KEY_ALONE,
            _ => ELEMENT,
        };
        self.calls.call(command, attr, size)
    }

    /// A call of a sequence.
    ///
    /// # Errors
    ///
    /// The error number.
    pub(crate) fn single(&mut self, op: CallOp, key: &[u8]) -> Result<(), i32> {
        let command = match op {
            CallOp::Lookup => command::MAP_LOOKUP_ELEM,
            CallOp::Update | CallOp::Insert => command::MAP_UPDATE_ELEM,
            CallOp::Delete => command::MAP_DELETE_ELEM,
            CallOp::Next => {
                let (next, value) = (self.address(KEYS + NEXT), self.address(self.values));
                self.word(ATTR + 16, next);
                let done = self.element(command::MAP_GET_NEXT_KEY, key);
                self.word(ATTR + 16, value);
                return done.map(drop);
            }
        };
        self.element(command, key).map(drop)
    }

    /// BPF_NOEXIST, or nothing.
    fn flags(&mut self, flags: u64) {
        self.word(ATTR + 24, flags);
    }

    /// A batch over what lies in the arena; the count that the kernel returns.
    fn batched(&mut self, command: u32, count: usize, next: usize) -> (usize, Result<i32, i32>) {
        let from = self.token.map_or(0, |at| self.address(TOKENS[at]));
        let fields = [
            from,
            self.address(TOKENS[next]),
            self.address(KEYS),
            self.address(self.values),
            count as u64 | u64::from(self.fd.cast_unsigned()) << 32,
            0,
            0,
        ];
        for (at, field) in fields.into_iter().enumerate() {
            self.word(ATTR + 8 * at, field);
        }
        let attr = self.address(ATTR);
        let done = self.calls.call(command, attr, BATCH);
        let mut count = [0; 4];
        count.copy_from_slice(&self.calls.bytes()[ATTR + 32..][..4]);
        (u32::from_ne_bytes(count) as usize, done)
    }

    fn fill(&mut self, workload: &Workload) -> Measured<()> {
        let trace = Arc::clone(&self.trace);
        let failed =
            |errno| Unavailable::new(format!("filling the kernel's map: {:?}", Errno(errno)));
        if workload.map_type != Kind::Hash {
            self.element_attr();
            for key in trace.present().chunks_exact(trace.key_size) {
                self.element(command::MAP_UPDATE_ELEM, key)
                    .map_err(failed)?;
            }
            return Ok(());
        }
        for keys in trace.present().chunks(PAGE * trace.key_size) {
            self.store(KEYS, keys);
            let count = keys.len() / trace.key_size;
            let (_, done) = self.batched(command::MAP_UPDATE_BATCH, count, 0);
            done.map_err(failed)?;
        }
        Ok(())
    }

    fn dump(&mut self, n: usize) -> Measured<usize> {
        let mut seen = 0;
        while seen < n {
            let next = self.token.map_or(0, |at| 1 - at);
            let (count, done) = self.batched(command::MAP_LOOKUP_BATCH, PAGE, next);
            match done {
                Ok(_) => self.token = Some(next),
                Err(errno) if Errno(errno) == Errno::ENOENT => self.token = None,
                Err(errno) => {
                    let why = format!("the kernel's BPF_MAP_LOOKUP_BATCH: {:?}", Errno(errno));
                    return Err(Unavailable::new(why));
                }
            }
            seen += count;
        }
        Ok(seen)
    }

    fn next(&mut self, n: usize) -> Measured<()> {
        let (key, next) = (self.address(KEYS), self.address(KEYS + NEXT));
        let size = self.trace.key_size;
        for _ in 0..n {
            self.word(ATTR + 8, if self.walking { key } else { 0 });
            self.word(ATTR + 16, next);
            let attr = self.address(ATTR);
            match self.calls.call(command::MAP_GET_NEXT_KEY, attr, ELEMENT) {
                Ok(_) => {
                    self.walking = true;
                    let bytes = self.calls.bytes_mut();
                    bytes.copy_within(KEYS + NEXT..KEYS + NEXT + size, KEYS);
                }
                Err(errno) if Errno(errno) == Errno::ENOENT => self.walking = false,
                Err(errno) => {
                    let why = format!("the kernel's BPF_MAP_GET_NEXT_KEY: {:?}", Errno(errno));
                    return Err(Unavailable::new(why));
                }
            }
        }
        Ok(())
    }
}

impl Side for KernelSide {
    fn prepare(&mut self, from: usize, n: usize) -> Measured<()> {
        let trace = Arc::clone(&self.trace);
        let command = match self.op {
            Op::Insert => command::MAP_DELETE_ELEM,
            Op::Delete => command::MAP_UPDATE_ELEM,
            _ => return Ok(()),
        };
        self.flags(0);
        // Absent already, or present already: both are right.
        trace.missing(from, n, |key| {
            let _ = self.element(command, key);
        });
        self.flags(u64::from(self.op == Op::Insert));
        Ok(())
    }

    fn run(&mut self, from: usize, n: usize) -> Measured<usize> {
        let trace = Arc::clone(&self.trace);
        let mut failed = None;
        let mut keep = |done: Result<i32, i32>| {
            if let Err(errno) = done {
                failed = Some(errno);
            }
        };
        match self.op {
            Op::Lookup => trace.ordered(from, n, |key| {
                keep(self.element(command::MAP_LOOKUP_ELEM, key));
            }),
            Op::Miss => trace.missing(from, n, |key| {
                let done = self.element(command::MAP_LOOKUP_ELEM, key);
                keep(match done {
                    Err(errno) if Errno(errno) == Errno::ENOENT => Ok(0),
                    Err(errno) => Err(errno),
                    Ok(_) => Err(Errno::EEXIST.0),
                });
            }),
            Op::Overwrite => trace.ordered(from, n, |key| {
                keep(self.element(command::MAP_UPDATE_ELEM, key));
            }),
            Op::Insert => trace.missing(from, n, |key| {
                keep(self.element(command::MAP_UPDATE_ELEM, key));
            }),
            Op::Delete => trace.missing(from, n, |key| {
                keep(self.element(command::MAP_DELETE_ELEM, key));
            }),
            Op::Mix => {
                let mut at = from;
                trace.ordered(from, n, |key| {
                    let command = match at % 10 {
                        0 => command::MAP_UPDATE_ELEM,
                        _ => command::MAP_LOOKUP_ELEM,
                    };
                    keep(self.element(command, key));
                    at += 1;
                });
            }
            Op::UpdateBatch => {
                for at in (from..from + n).step_by(self.batch) {
                    self.store(KEYS, trace.run(at, self.batch));
                    keep(self.batched(command::MAP_UPDATE_BATCH, self.batch, 0).1);
                }
            }
            Op::LookupBatch => {
                return Err(Unavailable::new(
                    "bpf(2) has no batch of lookups by key; BPF_MAP_LOOKUP_BATCH is a walk",
                ));
            }
            Op::Recorded => return Err(Unavailable::new("a sequence is run by another side")),
            Op::Dump => return self.dump(n),
            Op::Next => return self.next(n).map(|()| n),
        }
        match failed {
            None => Ok(n),
            Some(errno) => Err(Unavailable::new(format!(
                "the kernel's {}: {:?}",
                self.op.name(),
                Errno(errno)
            ))),
        }
    }

    fn most(&self) -> usize {
        match self.op {
            Op::Insert | Op::Delete => self.trace.absent_len(),
            _ => usize::MAX,
        }
    }
}
