//! Firmware contexts that work on the same maps beside each other.
//!
//! A NIC's firmware runs on many engines at once. [`Engines`] runs as many as the device has
//! ([`Config::engines`](crate::Config::engines)): each is in one operation at a time, a command of a host's I/O queue or what a
//! program does with a map for a packet ([`DataOp`]), and makes one access of it at a turn. Whoever
//! calls [`Engines::turn`] decides which engine goes on, so that every interleaving of accesses can be
//! had, and had again: there is no thread. [`schedule`] has two who decide, [`workload`] packets.
//!
//! It is the tables' own code, over a policy that yields at each access (`stepped`); what belongs
//! together is told by [`Access`](crate::access::Access), and kept by a lock unit (`locks`). Where one engine works
//! alone ([`Firmware::io`], [`Firmware::engine_lookup`] and the like) none of this is compiled in.
//!
//! **Bounds.** A turn makes one access of at most the memory's width, a DMA, a look at a version, or
//! asks for a lock; the model then runs the operation's code once. An operation looks at a part of a
//! table at most [`LOOKS_MAX`](crate::access::LOOKS_MAX) times without the lock and then asks for it, and waits for each
//! other engine once at a lock. So an operation ends after a bounded number of its own turns and of
//! those of the engines before it.
//!
//! **What is atomic.** A value is seen whole, as one update left it; so is a key with its value. A
//! counter that engines add to loses nothing. Values of per-CPU types are seen whole over all slots.
//! A bloom filter has no locks: who looks a key up while it is added may find either. Commands of more
//! than one element have their effect element by element, a dump chain by chain.

mod locks;
pub mod schedule;
mod stepped;
#[cfg(test)]
mod tests;
pub mod workload;

use crate::access::Access;
use crate::config::{Config, StepLimits};
use crate::datapath::DataPath;
use crate::dispatch::{Io, Position, Step};
use crate::inner::Holdings;
use crate::maps::Maps;
use crate::{Firmware, HostMemory, Progress, Storage};
use alloc::vec;
use alloc::vec::Vec;
use core::cell::RefCell;
use core::fmt;
use locks::Locks;
use offmap_abi::{Completion, IoOpcode, MapHandle, Status, Submission};
use schedule::Schedule;
use stepped::{Run, Stepped, SteppedHost, Trace};

/// Widest memory, in bytes of one access.
pub const WIDTH_MAX: u32 = 4096;
/// Narrowest: counters are changed in one access.
pub const WIDTH_MIN: u32 = 8;
/// Elements or buckets of a batch between two moments at which its accesses so far are forgotten.
const BATCH_BUCKETS: u32 = 4;

/// What a program does with a map for a packet.
#[derive(Clone, PartialEq, Eq, Debug)]
#[expect(
    missing_docs,
    reason = "the fields are the operands of what they are for"
)]
pub enum DataOp {
    /// As [`Firmware::engine_lookup`].
    Lookup { map: MapHandle, key: Vec<u8> },
    /// As [`Firmware::engine_lookup_inner`].
    LookupInner {
        outer: MapHandle,
        outer_key: Vec<u8>,
        key: Vec<u8>,
        value_bytes: usize,
    },
    /// As [`Firmware::engine_update`].
    Update {
        map: MapHandle,
        key: Vec<u8>,
        value: Vec<u8>,
        flags: u32,
    },
    /// As [`Firmware::engine_add`].
    Add {
        map: MapHandle,
        key: Vec<u8>,
        offset: u32,
        delta: u64,
    },
    /// Removes a key. `Unsupported` for maps of maps, which the host alone changes.
    Delete { map: MapHandle, key: Vec<u8> },
    /// As [`Firmware::engine_pop`].
    Pop { map: MapHandle },
}

/// What became of a turn.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Turn {
    /// The engine has nothing to do.
    Idle,
    /// It made an access, and is not done.
    Access,
    /// It waits for a lock that another engine has.
    Waiting,
    /// The command that it was in is done.
    Command(Completion),
    /// What it did for a packet is done.
    Data {
        /// The operation.
        op: DataOp,
        /// How it ended.
        status: Status,
        /// The value that a lookup or pop has found.
        value: Vec<u8>,
    },
}

/// Why an engine does not begin something.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EngineError {
    /// There is no engine of that number.
    None {
        /// The number.
        engine: u32,
        /// How many there are.
        engines: u32,
    },
    /// It is in another operation.
    Busy {
        /// Its number.
        engine: u32,
    },
    /// No memory is that wide.
    Width {
        /// Bytes of one access.
        width: u32,
    },
}

impl fmt::Display for EngineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None { engine, engines } => write!(
                f,
                "there is no engine {engine}: the device has {engines}, counted from 0"
            ),
            Self::Busy { engine } => write!(
                f,
                "engine {engine} is in an operation: give it turns until that has ended"
            ),
            Self::Width { width } => write!(
                f,
                "memory of {width} bytes an access: it is a power of two from {WIDTH_MIN} to {WIDTH_MAX}"
            ),
        }
    }
}

impl core::error::Error for EngineError {}

/// What an engine is in.
#[derive(Debug)]
enum Work {
    Command(Submission, Position),
    Data(DataOp),
    /// The second half of a [`DataOp::LookupInner`], in the map that was found.
    Inner(DataOp, MapHandle),
}

impl Work {
    /// The map that it is about.
    fn map(&self) -> MapHandle {
        match self {
            Self::Command(command, _) => command.map(),
            Self::Inner(_, inner) => *inner,
            Self::Data(
                DataOp::Lookup { map, .. }
                | DataOp::Update { map, .. }
                | DataOp::Add { map, .. }
                | DataOp::Delete { map, .. }
                | DataOp::Pop { map }
                | DataOp::LookupInner { outer: map, .. },
            ) => *map,
        }
    }

    fn is_batch(&self) -> bool {
        matches!(self, Self::Command(command, _) if IoOpcode(command.opcode).is_batch())
    }
}

/// An engine.
#[derive(Debug, Default)]
struct Context {
    /// It has had a turn in its operation, and may have, or wait for, locks.
    began: bool,
    work: Option<Work>,
    trace: Trace,
}

/// How a run of an operation ended.
enum Ended {
    Step(Step),
    /// The first half of a [`DataOp::LookupInner`].
    Found(MapHandle),
    Data(Status, Vec<u8>),
}

/// The engines of a device, and its firmware.
#[derive(Debug)]
pub struct Engines<S> {
    firmware: Firmware<S>,
    /// The firmware's, with shorter steps of batches.
    config: Config,
    contexts: Vec<Context>,
    locks: Locks,
    width: usize,
}

impl<S: Storage> Engines<S> {
    /// Engines over memory that moves `width` bytes in one access.
    ///
    /// # Errors
    ///
    /// [`EngineError::Width`].
    pub fn new(firmware: Firmware<S>, width: u32) -> Result<Self, EngineError> {
        if !width.is_power_of_two() || !(WIDTH_MIN..=WIDTH_MAX).contains(&width) {
            return Err(EngineError::Width { width });
        }
        let step = StepLimits {
            buckets: firmware.config.step.buckets.min(BATCH_BUCKETS),
            ..firmware.config.step
        };
        let config = Config {
            step,
            ..firmware.config.clone()
        };
        let contexts = (0..config.engines).map(|_| Context::default()).collect();
        Ok(Self {
            firmware,
            config,
            contexts,
            locks: Locks::new(),
            width: width as usize,
        })
    }

    /// How many there are.
    pub fn count(&self) -> u32 {
        self.config.engines
    }

    /// Whether an engine is in an operation.
    pub fn is_busy(&self, engine: u32) -> bool {
        let context = self.contexts.get(engine as usize);
        context.is_some_and(|context| context.work.is_some())
    }

    /// Whether no engine is.
    pub fn is_idle(&self) -> bool {
        self.contexts.iter().all(|context| context.work.is_none())
    }

    /// The firmware, to look at.
    pub fn firmware(&self) -> &Firmware<S> {
        &self.firmware
    }

    /// The firmware, while no engine is in an operation: what it does then finds nothing half done.
    pub fn firmware_mut(&mut self) -> Option<&mut Firmware<S>> {
        self.is_idle().then_some(&mut self.firmware)
    }

    /// The firmware; operations that engines are in are left where they are.
    pub fn into_firmware(self) -> Firmware<S> {
        self.firmware
    }

    /// [`Firmware::admin`]. Operations on a map that is freed end with `InvalidMap`.
    pub fn admin(&mut self, command: &Submission, host: &mut impl HostMemory) -> Progress {
        self.firmware.admin(command, host)
    }

    /// [`Firmware::resume`].
    ///
    /// A map that MAP_MIGRATE moves comes to its new place when no engine is in the midst of an operation
    /// on it; engines that would begin one wait for that.
    pub fn resume(&mut self, host: &mut impl HostMemory) -> Progress {
        let moving = self.firmware.moving();
        let mut contexts = self.contexts.iter();
        self.firmware.engaged = contexts.any(|context| {
            let map = context.work.as_ref().map(Work::map);
            moving.is_some() && map == moving && context.began
        });
        self.firmware.resume(host)
    }

    /// [`Firmware::reset`]; what engines were in is forgotten.
    pub fn reset(&mut self) {
        for context in &mut self.contexts {
            *context = Context::default();
        }
        self.locks = Locks::new();
        self.firmware.reset();
    }

    fn begin(&mut self, engine: u32, work: Work) -> Result<(), EngineError> {
        let engines = self.config.engines;
        let context = self.contexts.get_mut(engine as usize);
        let context = context.ok_or(EngineError::None { engine, engines })?;
        if context.work.is_some() {
            return Err(EngineError::Busy { engine });
        }
        context.work = Some(work);
        Ok(())
    }

    /// Hands an engine a command of an I/O queue.
    ///
    /// # Errors
    ///
    /// [`EngineError`]: there is no such engine, or it is in another operation.
    pub fn submit(&mut self, engine: u32, command: &Submission) -> Result<(), EngineError> {
        let start = Position::start(command);
        self.begin(engine, Work::Command(*command, start))
    }

    /// Hands an engine what a program does for a packet.
    ///
    /// # Errors
    ///
    /// Likewise.
    pub fn start(&mut self, engine: u32, op: DataOp) -> Result<(), EngineError> {
        self.begin(engine, Work::Data(op))
    }

    /// Gives an engine a turn. `host` is the memory of the host whose command it is in.
    pub fn turn(&mut self, engine: u32, host: &mut impl HostMemory) -> Turn {
        let Some(context) = self.contexts.get_mut(engine as usize) else {
            return Turn::Idle;
        };
        let Some(work) = context.work.take() else {
            return Turn::Idle;
        };
        let mut trace = core::mem::take(&mut context.trace);
        let closed = !context.began && self.firmware.closed == Some(work.map());
        if closed || self.locks.blocked(engine) {
            (context.work, context.trace) = (Some(work), trace);
            return Turn::Waiting;
        }
        context.began = true;
        trace.begin_turn();
        let trace = RefCell::new(trace);
        let firmware = &mut self.firmware;
        let mut access = Stepped {
            memory: &mut firmware.memory,
            locks: &mut self.locks,
            trace: &trace,
            engine,
            width: self.width,
        };
        let ended = match &work {
            Work::Command(command, at) => {
                let mut host = SteppedHost {
                    host,
                    trace: &trace,
                };
                let mut io = Io {
                    config: &self.config,
                    maps: &firmware.maps,
                    holdings: &mut firmware.holdings,
                    scratch: &mut firmware.scratch,
                    access: &mut access,
                    host: &mut host,
                };
                Ended::Step(if IoOpcode(command.opcode).is_batch() {
                    io.run_batch(command, *at)
                } else {
                    let completion = io.completion_of(command);
                    if !completion.status().is_success() {
                        access.undo();
                    }
                    Step::Done(completion)
                })
            }
            Work::Data(DataOp::LookupInner {
                outer, outer_key, ..
            }) => {
                let mut path = DataPath {
                    engine,
                    engines: self.config.engines,
                    maps: &firmware.maps,
                    holdings: &firmware.holdings,
                    access: &mut access,
                };
                match path.inner(*outer, outer_key) {
                    Ok(inner) => Ended::Found(inner),
                    Err(status) => Ended::Data(status, Vec::new()),
                }
            }
            Work::Inner(op, _) | Work::Data(op) => {
                let mut value = vec![0; value_room(&firmware.maps, &firmware.holdings, op)];
                let mut path = DataPath {
                    engine,
                    engines: self.config.engines,
                    maps: &firmware.maps,
                    holdings: &firmware.holdings,
                    access: &mut access,
                };
                match run_data(&mut path, &work, op, &mut value) {
                    Ok(()) => Ended::Data(Status::Success, value),
                    Err(status) => {
                        access.undo();
                        Ended::Data(status, Vec::new())
                    }
                }
            }
        };
        self.end_turn(engine, work, trace.into_inner(), ended)
    }

    fn end_turn(&mut self, engine: u32, work: Work, mut trace: Trace, ended: Ended) -> Turn {
        let Some(context) = self.contexts.get_mut(engine as usize) else {
            return Turn::Idle;
        };
        let run = trace.end_turn();
        if run == Run::Yielded {
            (context.work, context.trace) = (Some(work), trace);
            return match self.locks.blocked(engine) {
                true => Turn::Waiting,
                false => Turn::Access,
            };
        }
        let firmware = &mut self.firmware;
        let lives =
            firmware.maps.get(work.map()).is_ok() || firmware.holdings.freed(work.map()).is_some();
        if run != Run::Done && lives {
            // Not where the map is gone: its memory may be another one's.
            trace.roll_back(&mut firmware.memory);
        }
        trace.clear();
        context.trace = trace;
        context.began = false;
        if run == Run::Done && !work.is_batch() {
            firmware.maps.heat(work.map(), 1);
        }
        self.locks.release(engine);
        if firmware.holdings.has_released() {
            firmware.give_back();
        }
        match (work, ended) {
            // The map that was found is gone: the entry says another one now, or none.
            (Work::Inner(op, _), _) if !lives => {
                context.work = Some(Work::Data(op));
                Turn::Access
            }
            // It has left nothing behind: from the start.
            (work, _) if run != Run::Done && lives && !work.is_batch() => {
                context.work = Some(work);
                Turn::Access
            }
            (Work::Command(command, _), _) if run == Run::Diverged => {
                Turn::Command(Completion::new(command.request(), Status::Interrupted))
            }
            (Work::Command(command, _), Ended::Step(Step::At(position))) => {
                context.work = Some(Work::Command(command, position));
                Turn::Access
            }
            (_, Ended::Step(Step::Done(completion))) => Turn::Command(completion),
            (Work::Data(op), Ended::Found(inner)) => {
                context.work = Some(Work::Inner(op, inner));
                Turn::Access
            }
            (Work::Data(op) | Work::Inner(op, _), Ended::Data(status, value)) => {
                Turn::Data { op, status, value }
            }
            (Work::Command(..), Ended::Data(..) | Ended::Found(_))
            | (Work::Data(_) | Work::Inner(..), Ended::Step(_))
            | (Work::Inner(..), Ended::Found(_)) => Turn::Idle,
        }
    }

    /// Gives turns as `schedule` decides until `each`, which is told of all that ended, returns
    /// `false`, until no engine is in an operation, or for `turns` of them; returns how many it were.
    /// `each` may hand engines something new.
    pub fn run<H: HostMemory>(
        &mut self,
        schedule: &mut impl Schedule,
        host: &mut H,
        turns: u64,
        mut each: impl FnMut(&mut Self, u32, Turn) -> bool,
    ) -> u64 {
        let mut busy = Vec::with_capacity(self.contexts.len());
        for turn in 0..turns {
            busy.clear();
            busy.extend((0..self.count()).filter(|engine| self.is_busy(*engine)));
            let Some(engine) = schedule.pick(&busy) else {
                return turn;
            };
            match self.turn(engine, host) {
                Turn::Idle | Turn::Access | Turn::Waiting => {}
                ended => {
                    if !each(self, engine, ended) {
                        return turn + 1;
                    }
                }
            }
        }
        turns
    }
}

/// Bytes of the value that an operation returns.
fn value_room(maps: &Maps, holdings: &Holdings, op: &DataOp) -> usize {
    let size = |map: MapHandle| {
        let held = || holdings.freed(map);
        let map = maps.get(map).ok().or_else(held);
        map.map_or(0, |map| map.table.value().size as usize)
    };
    match op {
        DataOp::Lookup { map, .. } | DataOp::Pop { map } => size(*map),
        DataOp::LookupInner { value_bytes, .. } => *value_bytes,
        DataOp::Update { .. } | DataOp::Add { .. } | DataOp::Delete { .. } => 0,
    }
}

fn run_data(
    path: &mut DataPath<'_, impl Access>,
    work: &Work,
    op: &DataOp,
    value: &mut [u8],
) -> Result<(), Status> {
    match op {
        DataOp::Lookup { map, key } => path.lookup(*map, key, value),
        DataOp::LookupInner { key, .. } => path.lookup(work.map(), key, value),
        DataOp::Update {
            map,
            key,
            value,
            flags,
        } => path.update(*map, key, value, *flags),
        DataOp::Add {
            map,
            key,
            offset,
            delta,
        } => path.add(*map, key, *offset, *delta),
        DataOp::Delete { map, key } => path.delete(*map, key),
        DataOp::Pop { map } => path.pop(*map, value),
    }
}
