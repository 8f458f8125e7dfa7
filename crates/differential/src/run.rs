//! A campaign: sequences of calls, each from its own seed.

use crate::explain::{self, Seen};
use crate::generate::{ATTR, Action, Expect, Generator, INFO, OUT_BATCH};
use crate::report::{Difference, Report};
use crate::sides::{Answer, Call, FIRST_FD, IdKind, Region, Sides};
use offmap_bpf::{Errno, MapType, SystemConfig, command};
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::time::{Duration, Instant};

/// Calls of a sequence.
const SEQUENCE_CALLS: u64 = 600;
/// Differences that a report tells one by one.
const TOLD: usize = 20;
/// Calls between two looks at the whole arena.
const WHOLE_EVERY: u64 = 64;

/// What to compare.
#[derive(Clone, Debug)]
pub struct Config {
    /// Ends after this many calls, at the end of a sequence.
    pub calls: u64,
    /// Ends after this time, at the end of a sequence.
    pub time: Option<Duration>,
    /// From which the sequences' seeds are derived.
    pub seed: u64,
    /// Part `shard.0` (from 0) of `shard.1`: every `shard.1`-th sequence.
    pub shard: (u64, u64),
    /// Runs this sequence alone.
    pub sequence: Option<u64>,
    /// Possible CPUs of our side, where not this machine's: per-CPU values then have another
    /// size than the kernel's, a difference that a comparison has to see.
    pub possible_cpus: Option<u32>,
}

/// Why nothing can be compared.
#[derive(Debug)]
pub enum RunError {
    /// The kernel refuses maps to this process.
    Refused(i32),
    /// The arena, a file or the CPU mask could not be had.
    Io(io::Error),
}

impl fmt::Display for RunError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(errno) => write!(
                f,
                "the running kernel refuses BPF_MAP_CREATE with {:?}: run as root on a kernel \
                 with bpf(2)",
                Errno(*errno)
            ),
            Self::Io(error) => write!(f, "the comparison cannot be set up: {error}"),
        }
    }
}

impl std::error::Error for RunError {}

impl From<io::Error> for RunError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Runs a campaign. `progress` is told the calls made so far.
///
/// The thread stays on one CPU meanwhile: what per-CPU maps and LRU lists do depends on it.
pub fn run(config: &Config, progress: &mut dyn FnMut(u64)) -> Result<Report, RunError> {
    let mut here = rustix::thread::CpuSet::new();
    here.set(rustix::thread::sched_getcpu());
    rustix::thread::sched_setaffinity(None, &here).map_err(io::Error::from)?;
    let system = SystemConfig {
        first_fd: FIRST_FD as u32,
        max_fds: FIRST_FD as u32 + 400,
        ..SystemConfig::default()
    };
    let system = SystemConfig {
        possible_cpus: config.possible_cpus.unwrap_or(system.possible_cpus),
        ..system
    };
    let mut sides = Sides::new(&system)?;
    probe(&mut sides)?;
    let mut report = Report {
        seed: config.seed,
        ..Report::default()
    };
    let start = Instant::now();
    let mut index = config.sequence.unwrap_or(config.shard.0);
    loop {
        sides.restart(&system);
        sequence(config.seed, index, &mut sides, &mut report);
        progress(report.calls);
        index += config.shard.1.max(1);
        let late = config.time.is_some_and(|time| start.elapsed() >= time);
        if config.sequence.is_some() || late || report.calls >= config.calls {
            return Ok(report);
        }
    }
}

/// Whether the kernel takes a map of us at all.
fn probe(sides: &mut Sides) -> Result<(), RunError> {
    let mut attr = [0; 20];
    for (word, value) in attr.chunks_exact_mut(4).zip([2_u32, 4, 4, 1, 0]) {
        word.copy_from_slice(&value.to_ne_bytes());
    }
    sides.put(ATTR, &attr);
    let call = Call {
        command: command::MAP_CREATE,
        attr: sides.base(),
        size: 20,
        regions: Vec::new(),
        ids_in: Vec::new(),
        ids_out: Vec::new(),
        unspecified: Vec::new(),
        what: "create",
    };
    match sides.call(&call).kernel {
        Ok(_) => Ok(()),
        Err(errno) => Err(RunError::Refused(errno)),
    }
}

/// One sequence.
fn sequence(seed: u64, index: u64, sides: &mut Sides, report: &mut Report) {
    // Two odd constants, so that neighbours have nothing in common.
    let own = seed
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .wrapping_add(index.wrapping_mul(0xd134_2543_de82_ef95));
    let mut generator = Generator::new(own, sides);
    report.sequences += 1;
    let mut digest = DefaultHasher::new();
    for number in 0..SEQUENCE_CALLS {
        let (action, expect) = generator.next(sides);
        let call = match action {
            Action::Call(call) => call,
            Action::Close(at) => {
                let gone = generator.maps.swap_remove(at);
                sides.close(gone.fd);
                generator.closed.push(gone.fd);
                continue;
            }
            Action::Dup(at) => {
                if let Some(fd) = sides.dup(generator.maps[at].fd) {
                    generator.note(expect, fd, sides);
                }
                continue;
            }
        };
        let map_type = type_of(&call, &generator, sides);
        let answer = sides.call(&call);
        count(report, &call, map_type, &answer);
        (call.command, call.size, map_type.0, answer.kernel).hash(&mut digest);
        let stray = match report.calls % WHOLE_EVERY {
            0 => sides.all_equal(),
            _ => None,
        };
        if !answer.agree() || stray.is_some() {
            let seen = Seen {
                call: &call,
                answer: &answer,
                map_type,
            };
            if let Some(entry) = explain::explained(&seen) {
                *report.explained.entry(entry.name).or_default() += 1;
                if entry.parts_ways {
                    break;
                }
            } else {
                report.differences += 1;
                if report.first.len() < TOLD {
                    report.first.push(Difference {
                        sequence: index,
                        call: number,
                        what: tell(&call, map_type, &answer, stray, sides),
                    });
                }
            }
        }
        settle(expect, &answer, &mut generator, sides);
    }
    report.digest = report.digest.wrapping_add(digest.finish());
}

/// Takes what a call has made into the generator's picture.
fn settle(expect: Expect, answer: &Answer, generator: &mut Generator, sides: &mut Sides) {
    if let Expect::Walk(at) = expect {
        let map = &mut generator.maps[at];
        let whole = matches!(answer.kernel, Ok(_) | Err(28));
        map.token = whole.then(|| sides.get(OUT_BATCH, map.token_bytes()).to_vec());
        return;
    }
    let (Ok(fd), Ok(ours)) = (&answer.kernel, &answer.ours) else {
        return;
    };
    if fd != ours {
        return;
    }
    let learnt = match expect {
        Expect::Map(mut map) => learn_id(*fd, IdKind::Map, sides).map(|id| {
            map.kernel_id = id;
            Expect::Map(map)
        }),
        Expect::Btf(mut btf) => learn_id(*fd, IdKind::Btf, sides).map(|id| {
            btf.kernel_id = id;
            Expect::Btf(btf)
        }),
        other => Some(other),
    };
    if let Some(expect) = learnt {
        generator.note(expect, *fd, sides);
    }
}

/// The id of a new object on both sides.
fn learn_id(fd: i32, kind: IdKind, sides: &mut Sides) -> Option<u32> {
    let at = match kind {
        IdKind::Map => 4,
        IdKind::Btf => 12,
    };
    let region = Region { at: INFO, len: 16 };
    let mut attr = [0; 16];
    attr[..4].copy_from_slice(&fd.to_ne_bytes());
    attr[4..8].copy_from_slice(&16_u32.to_ne_bytes());
    attr[8..].copy_from_slice(&(sides.base() + INFO as u64).to_ne_bytes());
    sides.put(ATTR, &attr);
    sides.fill(region, 0);
    let call = Call {
        command: command::OBJ_GET_INFO_BY_FD,
        attr: sides.base(),
        size: 16,
        regions: vec![region],
        ids_in: Vec::new(),
        ids_out: Vec::new(),
        unspecified: Vec::new(),
        what: "info",
    };
    sides.call(&call).kernel.ok()?;
    let raw: [u8; 4] = sides.get(INFO + at, 4).try_into().ok()?;
    let kernel = u32::from_ne_bytes(raw);
    let fd = offmap_bpf::Fd(fd);
    let ours = match kind {
        IdKind::Map => sides.system().info(fd).ok()?.id,
        IdKind::Btf => sides.system().btf_info(fd).ok()?.id,
    };
    sides.same_id(kind, kernel, ours);
    Some(kernel)
}

/// The type that a call is about.
fn type_of(call: &Call, generator: &Generator, sides: &Sides) -> MapType {
    let word = |at: usize| {
        let raw = sides.get(ATTR + at, 4).try_into().unwrap_or([0; 4]);
        u32::from_ne_bytes(raw)
    };
    let by_fd = |fd: u32| {
        let map = generator.maps.iter().find(|map| map.fd == fd as i32);
        map.map_or(MapType::UNSPEC, |map| map.map_type)
    };
    match call.command {
        command::MAP_CREATE => MapType(word(0)),
        command::MAP_LOOKUP_BATCH..=command::MAP_DELETE_BATCH => by_fd(word(36)),
        _ => by_fd(word(0)),
    }
}

fn count(report: &mut Report, call: &Call, map_type: MapType, answer: &Answer) {
    report.calls += 1;
    let result = match answer.kernel {
        Ok(_) => {
            report.succeeded += 1;
            "ok".to_owned()
        }
        Err(errno) => format!("{:?}", Errno(errno)),
    };
    let map_type = match map_type.name() {
        Some(name) if map_type != MapType::UNSPEC => name,
        _ => "-",
    };
    let cell = (call.what, map_type.to_owned(), result);
    *report.matrix.entry(cell).or_default() += 1;
}

/// A difference as a sentence.
fn tell(
    call: &Call,
    map_type: MapType,
    answer: &Answer,
    stray: Option<(usize, u8, u8)>,
    sides: &Sides,
) -> String {
    let kernel = match answer.kernel {
        Ok(value) => format!("{value}"),
        Err(errno) => format!("{:?}", Errno(errno)),
    };
    let ours = match &answer.ours {
        Ok(value) => format!("{value}"),
        Err(error) => error.to_string(),
    };
    let mut text = format!(
        "{} on a {map_type} map, size {}: the kernel says {kernel}, offmap {ours}",
        call.what, call.size
    );
    if let Some((at, theirs, own)) = answer.bytes.or(stray) {
        text += &format!("; byte {at:#x} of the arena is {theirs:#04x} and {own:#04x}");
    }
    let attr: Vec<String> = sides
        .get(ATTR, 96)
        .chunks_exact(4)
        .map(|word| {
            let raw = word.try_into().unwrap_or([0; 4]);
            format!("{:x}", u32::from_ne_bytes(raw))
        })
        .collect();
    text + "; attribute " + &attr.join(" ")
}
