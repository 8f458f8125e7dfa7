//! Random operation sequences on every kind of map that we have, on the running kernel's maps
//! and on a plain model: same results, error numbers, bytes, sets and batch counts.
//!
//! `OFFMAP_OPS` sets the operations per map type, `OFFMAP_SEED` replays a run.
//! `OFFMAP_REQUIRE_KERNEL=1` makes it a failure when the kernel took no part.

use offmap_bpf::MapType;
use offmap_emulator::{DeviceConfig, Inline, Threaded};
use offmap_tests::differential::{Sequence, Tally, check, shrink};
use offmap_tests::kernel::{self, Availability, KernelMap};
use offmap_tests::model::Shape;
use offmap_tests::report::{aloud, env_number, required, seed};
use offmap_tests::stack::{Stack, StackMap, attr};
use offmap_tests::subject::Subject;
use std::collections::BTreeMap;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Instant;

/// Operations per map type when the environment does not say.
const OPS: u64 = 1_000_000;
/// Operations of one sequence, that is, on one set of maps.
const SEQUENCE_OPS: usize = 4_000;
/// The threaded device takes part in each so many'th sequence, from the first on: a crossing
/// between threads costs as much as a hundred operations of the others.
const THREADED_EACH: u64 = 4;

fn kernel_takes_part() -> bool {
    static AVAILABLE: OnceLock<Availability> = OnceLock::new();
    let available = AVAILABLE.get_or_init(|| {
        let available = kernel::availability();
        if let Availability::No(why) = &available {
            aloud(&format!(
                "differential: THE KERNEL TAKES NO PART, maps may not be created here ({why}); \
                 comparing with the model alone"
            ));
        }
        available
    });
    *available == Availability::Yes
}

/// Our stack with each kind of device: every sequence creates its maps on the same ones.
struct Stacks {
    inline: Stack<Inline>,
    threaded: Stack<Threaded>,
}

impl Stacks {
    fn new() -> Self {
        Self {
            inline: Stack::inline(DeviceConfig::default()),
            threaded: Stack::threaded(DeviceConfig::default()),
        }
    }
}

fn subjects(stacks: &Stacks, shape: &Shape, threaded: bool) -> Vec<Box<dyn Subject>> {
    let mut subjects: Vec<Box<dyn Subject>> = Vec::new();
    if kernel_takes_part() {
        let map = KernelMap::create(&attr(shape))
            .unwrap_or_else(|errno| panic!("the kernel refuses {shape:?}: errno {errno}"));
        assert_eq!(map.value_bytes(), shape.value_bytes());
        subjects.push(Box::new(map));
    }
    let mut files = vec![
        ("host map", stacks.inline.map(&attr(shape), false)),
        ("offloaded inline", stacks.inline.map(&attr(shape), true)),
    ];
    if threaded {
        files.push((
            "offloaded threaded",
            stacks.threaded.map(&attr(shape), true),
        ));
    }
    for (name, file) in files {
        assert_eq!(file.value_bytes(), shape.value_bytes());
        subjects.push(Box::new(StackMap { name, file }));
    }
    subjects
}

fn differential(map_type: MapType) {
    // One type at a time: the device's thread needs a processor beside the caller's.
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let (base, budget) = (seed(), env_number("OFFMAP_OPS").unwrap_or(OPS));
    let cpus = kernel::possible_cpus();
    let stacks = Stacks::new();
    let (started, mut tally, mut sequences) = (Instant::now(), Tally::default(), 0u64);
    let mut asked: BTreeMap<&str, u64> = BTreeMap::new();
    while tally.ops < budget {
        let seed = base.wrapping_add(sequences);
        let sequence = Sequence::generate(seed, map_type, SEQUENCE_OPS, cpus);
        let threaded = sequences.is_multiple_of(THREADED_EACH);
        let mut maps = subjects(&stacks, &sequence.shape, threaded);
        for map in &maps {
            *asked.entry(map.name()).or_default() += sequence.ops.len() as u64;
        }
        if let Err(failure) = check(&sequence, &mut maps, &mut tally) {
            drop(maps);
            let run = |s: &Sequence| {
                let mut maps = subjects(&stacks, &s.shape, threaded);
                check(s, &mut maps, &mut Tally::default()).err()
            };
            let short = shrink(sequence, |s| {
                run(s).is_some_and(|f| f.subject == failure.subject)
            });
            panic!(
                "{map_type}: operation {} of seed {seed}: {}\nreplay: OFFMAP_SEED={seed} \
                 OFFMAP_OPS=1\ncut down to {:?} on {:?}:\n{:#?}",
                failure.index,
                failure.what,
                short.ops.len(),
                short.shape,
                short.ops
            );
        }
        sequences += 1;
    }
    aloud(&format!(
        "differential: {map_type}: {} operations ({} elements in batches and walks), {sequences} \
         sequences from seed {base}, on the model and {}: no difference, {:.1} s",
        tally.ops,
        tally.elements,
        asked
            .iter()
            .map(|(name, ops)| format!("{name} ({ops})"))
            .collect::<Vec<_>>()
            .join(", "),
        started.elapsed().as_secs_f64()
    ));
    aloud(&format!(
        "differential: {} bpf(2) calls so far in this process, {} of them insertions made again \
         because the kernel was out of elements for a moment",
        kernel::calls(),
        kernel::shortages()
    ));
    assert!(
        !required("OFFMAP_REQUIRE_KERNEL") || asked.contains_key("kernel"),
        "OFFMAP_REQUIRE_KERNEL=1, and the kernel took no part"
    );
}

#[test]
fn hash() {
    differential(MapType::HASH);
}

#[test]
fn array() {
    differential(MapType::ARRAY);
}

#[test]
fn percpu_hash() {
    differential(MapType::PERCPU_HASH);
}

#[test]
fn percpu_array() {
    differential(MapType::PERCPU_ARRAY);
}

#[test]
fn lpm_trie() {
    differential(MapType::LPM_TRIE);
}

/// What the comparison rests on when the kernel's reserve of elements runs dry in the middle of
/// a batch: the rest is asked for again, and all of the batch is there.
#[test]
fn a_kernel_out_of_elements_is_asked_again() {
    if !kernel_takes_part() {
        return;
    }
    let elements = 20_000_u32;
    let shape = Shape {
        map_type: MapType::PERCPU_HASH,
        key_size: 4,
        value_size: 1_500,
        max_entries: elements,
        map_flags: 1,
        map_extra: 0,
        cpus: kernel::possible_cpus(),
    };
    let before = kernel::shortages();
    let mut map = KernelMap::create(&attr(&shape)).expect("a map");
    let keys: Vec<u8> = (0..elements).flat_map(u32::to_ne_bytes).collect();
    let values = vec![7; map.value_bytes() * elements as usize];
    let done = map.update_batch(&keys, &values, elements, 0);
    assert_eq!(done, (elements, Ok(())));
    let mut value = vec![0; map.value_bytes()];
    for key in keys.chunks_exact(4) {
        assert_eq!(map.lookup(key, &mut value, 0), Ok(()));
    }
    aloud(&format!(
        "differential: {elements} per-CPU values of 1,500 bytes in one batch, {} times out of \
         elements",
        kernel::shortages() - before
    ));
}
