//! A rule: where, which of the matches, and what goes wrong.

use offmap_abi::{AdminOpcode, IoOpcode, MapHandle, MapType, QueueId};
use std::fmt;
use std::time::Duration;

/// A kind of place that faults are injected at.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Site {
    /// A submission has been fetched, of an I/O queue or the admin queue.
    Fetch,
    /// A completion is posted. Those that QUEUE_DELETE posts for commands that never began do
    /// not pass here.
    Complete,
    /// A command reads a key, a value or an attribute from host memory.
    DmaRead,
    /// A command writes a key, a value or a status to host memory.
    DmaWrite,
    /// An interrupt is raised.
    Interrupt,
    /// The host reads BAR 0 or BAR 2, other than mapped doorbells.
    RegisterRead,
    /// The host writes BAR 0 or BAR 2, other than mapped doorbells.
    RegisterWrite,
    /// A command of an I/O queue reads device memory.
    MemoryRead,
    /// A command of an I/O queue writes device memory.
    MemoryWrite,
    /// The device does a step.
    Step,
}

impl Site {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Fetch,
        Self::Complete,
        Self::DmaRead,
        Self::DmaWrite,
        Self::Interrupt,
        Self::RegisterRead,
        Self::RegisterWrite,
        Self::MemoryRead,
        Self::MemoryWrite,
        Self::Step,
    ];

    /// The name in plan files.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fetch => "fetch",
            Self::Complete => "complete",
            Self::DmaRead => "dma-read",
            Self::DmaWrite => "dma-write",
            Self::Interrupt => "interrupt",
            Self::RegisterRead => "register-read",
            Self::RegisterWrite => "register-write",
            Self::MemoryRead => "memory-read",
            Self::MemoryWrite => "memory-write",
            Self::Step => "step",
        }
    }

    /// Whether a command is known that the passage belongs to.
    pub const fn has_command(self) -> bool {
        matches!(
            self,
            Self::Fetch
                | Self::Complete
                | Self::DmaRead
                | Self::DmaWrite
                | Self::MemoryRead
                | Self::MemoryWrite
        )
    }

    /// Whether a queue is known that the passage belongs to.
    pub const fn has_queue(self) -> bool {
        self.has_command() || matches!(self, Self::Interrupt)
    }

    pub(crate) const fn is_memory(self) -> bool {
        matches!(self, Self::MemoryRead | Self::MemoryWrite)
    }

    /// Bits of what passes, where they are always as many.
    pub(crate) const fn bits(self) -> Option<u32> {
        match self {
            Self::Fetch | Self::Complete => Some(512),
            Self::RegisterRead => Some(64),
            _ => None,
        }
    }
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A command, by its opcode.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Command {
    /// Of an I/O queue.
    Io(IoOpcode),
    /// Of the admin queue.
    Admin(AdminOpcode),
}

impl Command {
    /// The command that `docs/abi.md` calls so, in the spelling of [`IoOpcode`] and
    /// [`AdminOpcode`].
    pub fn find(name: &str) -> Option<Self> {
        let io = IoOpcode::ALL.iter().find(|op| op.name() == Some(name));
        let admin = AdminOpcode::ALL.iter().find(|op| op.name() == Some(name));
        match (io, admin) {
            (Some(op), _) => Some(Self::Io(*op)),
            (None, Some(op)) => Some(Self::Admin(*op)),
            (None, None) => None,
        }
    }

    /// All names, for messages.
    pub(crate) fn names() -> String {
        let io = IoOpcode::ALL.iter().filter_map(|op| op.name());
        let admin = AdminOpcode::ALL.iter().filter_map(|op| op.name());
        io.chain(admin).collect::<Vec<_>>().join(", ")
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(op) => op.fmt(f),
            Self::Admin(op) => op.fmt(f),
        }
    }
}

/// How long something is held back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Delay {
    /// That many steps of the device.
    Steps(u32),
    /// That much time of the device's clock ([`crate::Device::set_clock`]).
    Time(Duration),
}

/// What goes wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Behaviour {
    /// What passes is lost: a command never runs, a completion or an interrupt never comes, a
    /// register write has no effect, and a register read gets all ones.
    Drop,
    /// A completion or an interrupt comes later.
    Delay(Delay),
    /// A completion or an interrupt comes twice.
    Duplicate,
    /// A completion comes in the step after that many later ones of its queue were posted (the
    /// burst at hand may overtake it, too), or after
    /// [`Behaviour::REORDER_STEPS`] steps.
    Reorder {
        /// How many overtake it.
        behind: u32,
    },
    /// Neighbouring bits of what passes are flipped: of a descriptor's copy in the device, of a
    /// completion, of the bytes of a DMA, of a register's value, of cells of device memory.
    Flip {
        /// How many.
        bits: u32,
        /// The first of them, counted from bit 0 of byte 0 and taken modulo the length of what
        /// passes; `None`: drawn.
        at: Option<u32>,
    },
    /// The access fails as one to an address that is not mapped: a command's data ends the
    /// command with `DmaFault`, an entry of a ring stops the queue (the device, for the admin
    /// queue).
    Fail,
    /// Only the first bytes arrive, in the order of the rules (of a ring entry the ownership word
    /// comes last), and then the queue stops as for a ring that cannot be accessed.
    Tear {
        /// How many bytes; of a ring entry, whole words of them.
        bytes: u32,
    },
    /// MAP_CREATE, UPDATE and BATCH_UPDATE find no memory.
    NoMemory,
    /// The steps after it do nothing, that many times; several add up.
    Slow {
        /// How many steps.
        steps: u32,
    },
    /// The firmware hangs: no step does anything until a reset, and no register shows it.
    StopFirmware,
    /// The firmware stops itself: `FATAL`, cause 4, until a reset.
    Fatal,
    /// The firmware starts anew, without being asked: queues and maps are gone, registers are as
    /// after power-on, `RESET_COUNT` is one higher. Config space stays.
    Reset,
    /// Surprise removal: registers and config space read all ones, writes are lost, no DMA and no
    /// interrupt, for good.
    Unplug,
}

impl Behaviour {
    /// Steps after which a completion that was to be overtaken comes in any case, so that a
    /// queue with nothing else in flight does not lose it.
    pub const REORDER_STEPS: u32 = 64;

    /// The name in plan files.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Drop => "drop",
            Self::Delay(_) => "delay",
            Self::Duplicate => "duplicate",
            Self::Reorder { .. } => "reorder",
            Self::Flip { .. } => "flip",
            Self::Fail => "fail",
            Self::Tear { .. } => "tear",
            Self::NoMemory => "no-memory",
            Self::Slow { .. } => "slow",
            Self::StopFirmware => "stop-firmware",
            Self::Fatal => "fatal",
            Self::Reset => "reset",
            Self::Unplug => "unplug",
        }
    }

    /// The names in plan files.
    pub const NAMES: [&'static str; 13] = [
        "drop",
        "delay",
        "duplicate",
        "reorder",
        "flip",
        "fail",
        "tear",
        "no-memory",
        "slow",
        "stop-firmware",
        "fatal",
        "reset",
        "unplug",
    ];

    /// Whether the behaviour has a meaning at the site. What befalls the whole device may
    /// begin anywhere.
    pub const fn fits(self, site: Site) -> bool {
        use Site::{Complete, DmaRead, DmaWrite, Fetch, Interrupt, RegisterRead, RegisterWrite};
        match self {
            Self::Drop => matches!(
                site,
                Fetch | Complete | Interrupt | RegisterRead | RegisterWrite
            ),
            Self::Delay(_) | Self::Duplicate => matches!(site, Complete | Interrupt),
            Self::Reorder { .. } => matches!(site, Complete),
            Self::Flip { .. } => {
                matches!(site, Fetch | Complete | DmaRead | DmaWrite | RegisterRead)
                    || site.is_memory()
            }
            Self::Fail | Self::Tear { .. } => {
                matches!(site, Fetch | Complete | DmaRead | DmaWrite)
            }
            Self::NoMemory => matches!(site, Fetch),
            Self::Slow { .. } | Self::StopFirmware | Self::Fatal | Self::Reset | Self::Unplug => {
                true
            }
        }
    }
}

impl fmt::Display for Behaviour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One rule of a plan, which [`FaultPlan::with`](crate::faults::FaultPlan::with) checks.
///
/// Without further words it fires at every match.
#[derive(Clone, PartialEq, Debug)]
pub struct Rule {
    pub(crate) name: String,
    pub(crate) site: Site,
    pub(crate) behaviour: Behaviour,
    pub(crate) queue: Option<u16>,
    pub(crate) command: Option<Command>,
    pub(crate) map: Option<u32>,
    pub(crate) map_type: Option<u32>,
    pub(crate) register: Option<u64>,
    pub(crate) nth: Option<u64>,
    pub(crate) every: Option<u64>,
    pub(crate) probability: Option<f64>,
    pub(crate) from: Option<u64>,
    pub(crate) to: Option<u64>,
    pub(crate) times: Option<u64>,
}

impl Rule {
    /// A rule that fires whenever something passes the site.
    pub fn new(site: Site, behaviour: Behaviour) -> Self {
        Self {
            name: format!("{behaviour} at {site}"),
            site,
            behaviour,
            queue: None,
            command: None,
            map: None,
            map_type: None,
            register: None,
            nth: None,
            every: None,
            probability: None,
            from: None,
            to: None,
            times: None,
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What the report calls it.
    #[must_use]
    pub fn named(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// Only on this queue; 0 is the admin queue.
    #[must_use]
    pub fn on_queue(mut self, queue: QueueId) -> Self {
        self.queue = Some(queue.0);
        self
    }

    /// Only for this command.
    #[must_use]
    pub fn of(mut self, command: Command) -> Self {
        self.command = Some(command);
        self
    }

    /// Only for commands that name this map.
    #[must_use]
    pub fn on_map(mut self, map: MapHandle) -> Self {
        self.map = Some(map.0);
        self
    }

    /// Only for commands that name a live map of this type.
    #[must_use]
    pub fn on_map_type(mut self, map_type: MapType) -> Self {
        self.map_type = Some(map_type.0);
        self
    }

    /// Only for accesses at this offset of BAR 0.
    #[must_use]
    pub fn at_register(mut self, offset: u64) -> Self {
        self.register = Some(offset);
        self
    }

    /// Only at match `n`, counted from 1.
    #[must_use]
    pub fn nth(mut self, n: u64) -> Self {
        self.nth = Some(n);
        self
    }

    /// At every `n`-th match of its window: the `n`-th, the `2n`-th and so on.
    #[must_use]
    pub fn every(mut self, n: u64) -> Self {
        self.every = Some(n);
        self
    }

    /// At each match of its window with this probability, more than 0 and at most 1.
    #[must_use]
    pub fn probability(mut self, p: f64) -> Self {
        self.probability = Some(p);
        self
    }

    /// Only from this match on, counted from 1.
    #[must_use]
    pub fn from(mut self, first: u64) -> Self {
        self.from = Some(first);
        self
    }

    /// Only up to this match, itself included.
    #[must_use]
    pub fn to(mut self, last: u64) -> Self {
        self.to = Some(last);
        self
    }

    /// At most so often.
    #[must_use]
    pub fn times(mut self, most: u64) -> Self {
        self.times = Some(most);
        self
    }
}
