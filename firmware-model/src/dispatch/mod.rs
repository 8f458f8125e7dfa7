//! Commands: validation, operands, completions.

pub(crate) mod admin;
mod batch;
mod element;
mod memory;

use crate::access::Access;
use crate::inner::Holdings;
use crate::maps::Maps;
use crate::table::LANES;
use crate::{Config, HostFault, HostMemory};
use alloc::vec;
use alloc::vec::Vec;
use offmap_abi::submission::{BatchBody, UPDATE_ANY, UPDATE_EXIST, UPDATE_NOEXIST};
use offmap_abi::{Completion, CompletionWords, IoOpcode, Status, Submission, SubmissionFlags};
use zerocopy::little_endian::U64;

/// Least room for keys, and for values, in bytes: what a batch reads at a time.
const SCRATCH_BYTES: usize = 16 << 10;

/// Buffers of the firmware, so that no command on elements allocates. Nothing in them outlives
/// a step.
#[derive(Debug)]
pub(crate) struct Scratch {
    keys: Vec<u8>,
    values: Vec<u8>,
    references: Vec<u32>,
    statuses: [u8; 2 * LANES],
}

impl Scratch {
    pub(crate) fn new(config: &Config) -> Self {
        Self {
            keys: vec![0; SCRATCH_BYTES.max(config.key_bytes as usize)],
            values: vec![0; SCRATCH_BYTES],
            references: Vec::with_capacity(config.batch as usize),
            statuses: [0; 2 * LANES],
        }
    }

    /// Takes memory for a value of `bytes` of a map that is created; whether there is any. The
    /// room is there once [`Self::grow_step`] has said so.
    pub(crate) fn reserve_value(&mut self, bytes: usize) -> bool {
        let more = bytes.saturating_sub(self.values.len());
        self.values.try_reserve_exact(more).is_ok()
    }

    /// A step of at most `most` bytes towards room for a value of `bytes`; whether it is there.
    pub(crate) fn grow_step(&mut self, bytes: usize, most: u32) -> bool {
        let next = bytes.min(self.values.len().saturating_add(most as usize));
        if self.values.len() < next {
            self.values.resize(next, 0);
        }
        self.values.len() >= bytes
    }

    /// Bytes of the longest value that there is room for.
    pub(crate) fn value_bytes(&self) -> usize {
        self.values.len()
    }

    /// Gives back what values of maps that are gone took.
    pub(crate) fn shrink(&mut self) {
        self.values.truncate(SCRATCH_BYTES);
        self.values.shrink_to(SCRATCH_BYTES);
    }
}

/// What a command of an I/O queue works on.
pub(crate) struct Io<'a, A, H> {
    pub(crate) config: &'a Config,
    pub(crate) maps: &'a Maps,
    pub(crate) holdings: &'a mut Holdings,
    pub(crate) scratch: &'a mut Scratch,
    pub(crate) access: &'a mut A,
    pub(crate) host: &'a mut H,
}

impl<A: Access, H: HostMemory> Io<'_, A, H> {
    /// Runs a command that is no batch, and leaves its completion in `done`.
    #[inline]
    pub(crate) fn run(&mut self, command: &Submission, done: &mut CompletionWords) {
        *done = CompletionWords::new(command.request(), Status::Success);
        let result = match IoOpcode(command.opcode) {
            IoOpcode::Nop => nop(command),
            IoOpcode::Lookup => self.lookup(command, done),
            IoOpcode::Update => self.update(command),
            IoOpcode::Delete => self.delete(command),
            IoOpcode::GetFirst => self.get_next(command, false, done),
            IoOpcode::GetNext => self.get_next(command, true, done),
            IoOpcode::LookupAndDelete => self.lookup_and_delete(command, done),
            _ => Err(Status::InvalidOpcode),
        };
        if let Err(status) = result {
            // A payload that was begun says nothing.
            *done = CompletionWords::new(command.request(), status);
        }
    }

    /// [`Io::run`], for who is not in a hurry.
    pub(crate) fn completion_of(&mut self, command: &Submission) -> Completion {
        let mut done = CompletionWords::new(command.request(), Status::Internal);
        self.run(command, &mut done);
        done.into()
    }

    /// Runs a bounded piece of a batch from `from` on.
    pub(crate) fn run_batch(&mut self, command: &Submission, from: Position) -> Step {
        let result = match self.config.batch {
            0 => Err(Status::InvalidOpcode),
            _ => self.batch(command, from),
        };
        result.unwrap_or_else(|status| Step::Done(batch::refused(command, status, from)))
    }
}

/// NOP: nothing in it has a meaning.
fn nop(command: &Submission) -> Result<(), Status> {
    let words: [U64; 6] = zerocopy::transmute!(command.body);
    let used = words.iter().fold(0, |bits, word| bits | word.get()) != 0;
    match reserved_bits(command) | command.map.get() | u32::from(used) {
        0 => Ok(()),
        _ => Err(Status::InvalidField),
    }
}

/// How far a batch got.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Position {
    /// Elements done.
    done: u32,
    /// Where a dump goes on; 0 for other batches.
    cursor: u64,
}

impl Position {
    /// Where a command starts.
    pub(crate) fn start(command: &Submission) -> Self {
        let body: BatchBody = command.body();
        Self {
            done: 0,
            cursor: body.cursor.get(),
        }
    }
}

/// What a step of a batch ends with.
pub(crate) enum Step {
    Done(Completion),
    /// More is to be done, from here on.
    At(Position),
}

/// Batches under way, ordered by context. Each is kept as its command and how far it got, so
/// that a step starts by judging the command as if it had just come: its map may be gone.
#[derive(Debug, Default)]
pub(crate) struct UnderWay {
    batches: Vec<(u16, Submission, Position)>,
}

impl UnderWay {
    fn find(&self, context: u16) -> Result<usize, usize> {
        self.batches.binary_search_by_key(&context, |batch| batch.0)
    }

    pub(crate) fn has(&self, context: u16) -> bool {
        self.find(context).is_ok()
    }

    pub(crate) fn get(&self, context: u16) -> Option<(Submission, Position)> {
        let (_, command, position) = self.batches.get(self.find(context).ok()?)?;
        Some((*command, *position))
    }

    pub(crate) fn put(&mut self, context: u16, command: &Submission, position: Position) {
        match self.find(context) {
            Ok(index) => self.batches[index] = (context, *command, position),
            Err(index) => self.batches.insert(index, (context, *command, position)),
        }
    }

    /// Whether there was one.
    pub(crate) fn remove(&mut self, context: u16) -> bool {
        let found = self.find(context);
        if let Ok(index) = found {
            self.batches.remove(index);
        }
        found.is_ok()
    }

    pub(crate) fn clear(&mut self) {
        self.batches.clear();
    }
}

/// What is left of the work that one step of a batch may do.
struct Budget {
    bytes: usize,
    buckets: usize,
}

impl Budget {
    fn step(config: &Config) -> Self {
        Self {
            bytes: config.step.bytes as usize,
            buckets: config.step.buckets as usize,
        }
    }

    fn spend(&mut self, bytes: usize, buckets: usize) {
        self.bytes = self.bytes.saturating_sub(bytes);
        self.buckets = self.buckets.saturating_sub(buckets);
    }

    fn is_spent(&self) -> bool {
        self.bytes == 0 || self.buckets == 0
    }

    /// How many elements of `bytes` each it is enough for: at least one.
    fn elements(&self, bytes: usize) -> usize {
        self.buckets.min(self.bytes / bytes.max(1)).max(1)
    }
}

impl From<HostFault> for Status {
    fn from(_: HostFault) -> Self {
        Self::DmaFault
    }
}

/// Address of element `index` of an array at `iova`.
fn element_at(iova: u64, index: usize, stride: usize) -> Result<u64, Status> {
    (index as u64)
        .checked_mul(stride as u64)
        .and_then(|offset| iova.checked_add(offset))
        .ok_or(Status::DmaFault)
}

/// Checks update flags: one of the `UPDATE_*` of [`offmap_abi::submission`].
#[inline(always)]
fn update_flags(flags: u32) -> Result<u32, Status> {
    match flags {
        UPDATE_ANY | UPDATE_NOEXIST | UPDATE_EXIST => Ok(flags),
        _ => Err(Status::InvalidField),
    }
}

/// The bits of a submission's first word that no version has named: unknown flags, and what
/// stands beside the phase. Callers fold them into one comparison with other reserved fields.
#[inline(always)]
fn reserved_bits(command: &Submission) -> u32 {
    let known = SubmissionFlags::KEY_INLINE.bits() | SubmissionFlags::VALUE_INLINE.bits();
    u32::from(command.flags & !known) | u32::from(command.phase.get() & !1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::MemoryFault;
    use crate::maps::Map;
    use crate::table::Table;
    use crate::table::layout::{Geometry, MapKind, MapSpec};
    use alloc::vec::Vec;
    use offmap_abi::completion::BatchResult;
    use offmap_abi::submission::{ElementBody, IovaRef};
    use offmap_abi::{DevAddr, MapHandle, RequestId};

    /// Memory whose check codes do not match from access `fails_at` on.
    struct Failing {
        bytes: Vec<u8>,
        accesses: u32,
        fails_at: u32,
    }

    impl Failing {
        fn next(&mut self, at: DevAddr, len: usize) -> Result<&mut [u8], MemoryFault> {
            self.accesses += 1;
            if self.accesses > self.fails_at {
                return Err(MemoryFault::Media);
            }
            let bytes = self.bytes.get_mut(at.0 as usize..at.0 as usize + len);
            bytes.ok_or(MemoryFault::OutOfRange)
        }
    }

    impl Access for Failing {
        fn with_bytes<R>(
            &mut self,
            at: DevAddr,
            len: usize,
            f: impl FnOnce(&[u8]) -> R,
        ) -> Result<R, MemoryFault> {
            self.next(at, len).map(|bytes| f(bytes))
        }
        fn with_bytes_mut<R>(
            &mut self,
            at: DevAddr,
            len: usize,
            f: impl FnOnce(&mut [u8]) -> R,
        ) -> Result<R, MemoryFault> {
            self.next(at, len).map(f)
        }
    }

    /// Host memory from address 0 on.
    struct Host(Vec<u8>);

    impl HostMemory for Host {
        fn read(&mut self, iova: u64, into: &mut [u8]) -> Result<(), HostFault> {
            let from = self
                .0
                .get(iova as usize..)
                .and_then(|b| b.get(..into.len()));
            into.copy_from_slice(from.ok_or(HostFault)?);
            Ok(())
        }
        fn write(&mut self, iova: u64, from: &[u8]) -> Result<(), HostFault> {
            let into = self.0.get_mut(iova as usize..);
            let into = into.and_then(|b| b.get_mut(..from.len()));
            into.ok_or(HostFault)?.copy_from_slice(from);
            Ok(())
        }
    }

    const VALUE: usize = 1000;

    struct Bench {
        config: Config,
        maps: Maps,
        holdings: Holdings,
        handle: MapHandle,
        scratch: Scratch,
        access: Failing,
        host: Host,
    }

    impl Bench {
        fn new() -> Self {
            let config = Config::with_memory(1 << 16);
            let spec = MapSpec {
                kind: MapKind::Hash,
                key_size: 4,
                value_size: VALUE as u32,
                max_entries: 8,
                cpu_slots: 0,
                seed: 1,
                name: [0; 16],
                map_extra: 0,
                host_memory: 0,
                vector: 0,
            };
            let geometry = Geometry::new(&spec).unwrap();
            let base = DevAddr(0);
            let mut maps = Maps::new(&config);
            let map = Map {
                table: Table::new(base, &spec, &geometry),
                spec,
                base,
                bytes: geometry.total_bytes,
                fixed: false,
            };
            Self {
                handle: maps.insert(map).unwrap(),
                maps,
                holdings: Holdings::default(),
                scratch: Scratch::new(&config),
                config,
                access: Failing {
                    bytes: vec![0; 1 << 16],
                    accesses: 0,
                    fails_at: u32::MAX,
                },
                host: Host(vec![5; 4096]),
            }
        }

        fn io(&mut self) -> Io<'_, Failing, Host> {
            Io {
                config: &self.config,
                maps: &self.maps,
                holdings: &mut self.holdings,
                scratch: &mut self.scratch,
                access: &mut self.access,
                host: &mut self.host,
            }
        }

        /// The key is at address 0 of the host's memory, the value at 16.
        fn element(&mut self, opcode: IoOpcode) -> Completion {
            let body = ElementBody {
                map_flags: 0.into(),
                key_len: 4.into(),
                value_len: (VALUE as u32).into(),
                reserved: 0.into(),
                key: IovaRef::field(0),
                value: IovaRef::field(16),
            };
            let command = Submission::new(opcode.0, RequestId(1), &body).with_map(self.handle);
            self.io().completion_of(&command)
        }
    }

    /// A media fault at any access of a command is a media error, through the element and the
    /// batch commands, and the policy without a copy of its own moves values whole.
    #[test]
    fn a_media_fault_at_any_access_is_a_media_error() {
        let mut faults = 0;
        for fails_at in 0.. {
            let mut bench = Bench::new();
            assert!(bench.element(IoOpcode::Update).status().is_success());
            bench.host.0[16..].fill(0);
            (bench.access.accesses, bench.access.fails_at) = (0, fails_at);
            let done = bench.element(IoOpcode::LookupAndDelete);
            if done.status().is_success() {
                assert_eq!(done.count.get() as usize, VALUE);
                assert_eq!(bench.host.0[16..][..VALUE], [5; VALUE]);
                assert_eq!(bench.host.0[16 + VALUE], 0);
                break;
            }
            assert_eq!(done.status(), Status::MediaError, "access {fails_at}");
            // The value may have been on its way; the command says nothing of it.
            assert_eq!((done.count.get(), done.payload), (0, [0; 48]));
            faults += 1;
        }
        // Bucket, key, four pieces of the value, and what the removal takes.
        assert!(faults > 8, "{faults}");
        let mut bench = Bench::new();
        assert!(bench.element(IoOpcode::Update).status().is_success());
        let body = BatchBody {
            map_flags: 0.into(),
            count: 1.into(),
            key_len: 4.into(),
            value_len: (VALUE as u32).into(),
            keys: 0.into(),
            values: 16.into(),
            statuses: 2048.into(),
            cursor: 0.into(),
        };
        let opcode = IoOpcode::BatchLookup.0;
        let command = Submission::new(opcode, RequestId(2), &body).with_map(bench.handle);
        for fails_at in 0..6 {
            (bench.access.accesses, bench.access.fails_at) = (0, fails_at);
            let Step::Done(done) = bench.io().run_batch(&command, Position::default()) else {
                panic!("one element takes one step");
            };
            assert_eq!(done.status(), Status::MediaError, "access {fails_at}");
            assert_eq!(
                (
                    done.count.get(),
                    done.payload_as::<BatchResult>().needed.get()
                ),
                (0, 0)
            );
        }
    }

    #[test]
    fn the_value_buffer_grows_in_steps_and_shrinks() {
        let mut scratch = Scratch::new(&Config::with_memory(64));
        assert!(!scratch.reserve_value(usize::MAX), "nobody has that much");
        assert!(!scratch.reserve_value(isize::MAX as usize));
        assert_eq!(scratch.value_bytes(), SCRATCH_BYTES);
        const STEP: u32 = 256 << 10;
        let bytes = 3 * STEP as usize;
        assert!(scratch.reserve_value(bytes));
        let mut steps = 1;
        while !scratch.grow_step(bytes, STEP) {
            steps += 1;
        }
        assert_eq!((steps, scratch.value_bytes()), (3, bytes));
        assert!(scratch.grow_step(10, 1), "a smaller one is there already");
        scratch.shrink();
        assert_eq!(scratch.value_bytes(), SCRATCH_BYTES);
        assert!(scratch.values.capacity() < STEP as usize);
    }
}
