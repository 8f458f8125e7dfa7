//! Every back end does every operation of a small workload, and one that answers wrongly is found.

use offmap_bench::error::Unavailable;
use offmap_bench::plan::{Sizes, plan};
use offmap_bench::sides::{BackEnd, World};
use offmap_bench::workload::{Draw, Kind, Op, Trace, Workload};
use std::collections::BTreeSet;

const OPS: [Op; 10] = [
    Op::Lookup,
    Op::Miss,
    Op::Overwrite,
    Op::Insert,
    Op::Delete,
    Op::Next,
    Op::Dump,
    Op::LookupBatch,
    Op::UpdateBatch,
    Op::Mix,
];

fn small(op: Op) -> Workload {
    Workload {
        op,
        entries: 2000,
        batch: if matches!(op, Op::LookupBatch | Op::UpdateBatch) {
            16
        } else {
            1
        },
        ..Workload::default()
    }
}

/// Runs a workload twice on a back end, as blocks do.
fn twice(world: &World, back_end: BackEnd, workload: &Workload) -> Result<usize, Unavailable> {
    let trace = Trace::new(workload, 1);
    let mut side = world.side(back_end, workload, &trace)?;
    let n = 512.min(side.most());
    let mut done = 0;
    for from in [0, n] {
        side.wake()?;
        side.prepare(from, n)?;
        done += side.run(from, n)?;
        side.rest();
    }
    assert!(
        done >= 2 * n,
        "{back_end}, {:?}: {done} of {}",
        workload.op,
        2 * n
    );
    Ok(done)
}

/// Whether the kernel takes maps from this process.
fn kernel_is_there(world: &World) -> bool {
    twice(world, BackEnd::Kernel, &small(Op::Lookup)).is_ok()
}

#[test]
fn every_back_end_does_every_operation() {
    let world = World::new(None, None).expect("processors");
    let kernel = kernel_is_there(&world);
    for op in OPS {
        for back_end in [
            BackEnd::Host,
            BackEnd::Inline,
            BackEnd::Kernel,
            BackEnd::Hashbrown,
        ] {
            // What it cannot do, by its nature.
            let cannot = match back_end {
                BackEnd::Kernel => !kernel || op == Op::LookupBatch,
                BackEnd::Hashbrown => matches!(op, Op::Next | Op::Dump),
                _ => false,
            };
            let done = twice(&world, back_end, &small(op));
            assert_eq!(done.is_err(), cannot, "{back_end}, {op:?}: {done:?}");
        }
    }
    for map_type in [Kind::Array, Kind::PercpuHash, Kind::LruHash, Kind::LpmTrie] {
        for op in [Op::Lookup, Op::Overwrite, Op::Next] {
            let workload = Workload {
                map_type,
                key_size: if map_type == Kind::Array { 4 } else { 8 },
                ..small(op)
            };
            for back_end in [BackEnd::Host, BackEnd::Inline] {
                twice(&world, back_end, &workload)
                    .unwrap_or_else(|e| panic!("{back_end}, {map_type:?}, {op:?}: {e}"));
            }
            if kernel {
                twice(&world, BackEnd::Kernel, &workload)
                    .unwrap_or_else(|e| panic!("kernel, {map_type:?}, {op:?}: {e}"));
            }
        }
    }
}

#[test]
fn devices_on_another_processor_do_their_part() {
    let world = World::new(None, None).expect("processors");
    if world.processors() < 2 {
        println!("skipped: there is only one processor");
        return;
    }
    for back_end in [BackEnd::Host, BackEnd::Inline] {
        let crowd = Workload {
            threads: 2,
            ..small(Op::Mix)
        };
        twice(&world, back_end, &crowd)
            .unwrap_or_else(|e| panic!("two threads on {back_end}: {e}"));
    }
    for op in [Op::Lookup, Op::UpdateBatch, Op::Dump] {
        twice(&world, BackEnd::Threaded, &small(op)).expect("a threaded device");
    }
    let deep = Workload {
        depth: 16,
        ..small(Op::Lookup)
    };
    for back_end in [
        BackEnd::Threaded,
        BackEnd::Inline,
        BackEnd::Table,
        BackEnd::BareRing,
        BackEnd::CoreRtt,
    ] {
        twice(&world, back_end, &deep).unwrap_or_else(|e| panic!("{back_end}: {e}"));
    }
}

#[test]
fn what_is_not_there_says_why() {
    let world = World::new(None, None).expect("processors");
    let why = |back_end, workload: &Workload| match twice(&world, back_end, workload) {
        Err(why) => why.to_string(),
        Ok(done) => panic!("{back_end} did {done}"),
    };
    assert!(why(BackEnd::Mirror, &small(Op::Lookup)).contains("no mirrors"));
    let odd = Workload {
        value_size: 24,
        ..small(Op::Lookup)
    };
    assert!(why(BackEnd::Hashbrown, &odd).contains("not for 8 and 24"));
    if world.processors() > 1 {
        assert!(why(BackEnd::VfioUser, &small(Op::Lookup)).contains("no offmap program"));
    }
    let lru = Workload {
        map_type: Kind::LruHash,
        ..small(Op::Lookup)
    };
    assert!(why(BackEnd::Table, &lru).contains("hash maps and arrays only"));
}

#[test]
fn a_side_that_answers_wrongly_is_found() {
    let world = World::new(None, None).expect("processors");
    let workload = small(Op::Lookup);
    // An LRU map with room for 17,000 entries takes 60,000 keys, and forgets most.
    let crowded = Workload {
        map_type: Kind::LruHash,
        entries: 600,
        ..workload
    };
    let many = Workload {
        entries: 60_000,
        ..workload
    };
    let trace = Trace::new(&many, 1);
    for back_end in [BackEnd::Host, BackEnd::Inline] {
        let side = world.side(back_end, &crowded, &trace);
        let run = side.and_then(|mut side| side.run(0, 512));
        assert!(run.is_err(), "{back_end}: {run:?}");
    }
}

#[test]
fn keys_are_distinct_and_drawn_as_asked() {
    for (map_type, key_size) in [
        (Kind::Hash, 4),
        (Kind::Hash, 8),
        (Kind::Hash, 64),
        (Kind::Array, 4),
        (Kind::LpmTrie, 8),
    ] {
        let mut workload = Workload {
            map_type,
            key_size,
            ..small(Op::Lookup)
        };
        let trace = Trace::new(&workload, 7);
        let keys: BTreeSet<&[u8]> = trace.present().chunks_exact(key_size).collect();
        assert_eq!(
            keys.len(),
            workload.entries,
            "{map_type:?} of {key_size} bytes"
        );
        let mut absent = 0;
        trace.missing(0, trace.absent_len(), |key| {
            absent += usize::from(!keys.contains(key));
        });
        assert_eq!(
            absent,
            trace.absent_len(),
            "{map_type:?} of {key_size} bytes"
        );
        // Of 2,000 ranks the first ten have 36 % of the weight by Zipf's law with 0.99, and half a percent of
        // it uniformly.
        let first: BTreeSet<&[u8]> = trace.present().chunks_exact(key_size).take(10).collect();
        let mut share = |draw| {
            workload.keys = draw;
            let trace = Trace::new(&workload, 7);
            let mut hits = 0;
            trace.ordered(0, trace.order_len(), |key| {
                hits += usize::from(first.contains(key));
            });
            hits as f64 / trace.order_len() as f64
        };
        let (uniform, zipf) = (share(Draw::Uniform), share(Draw::Zipf));
        assert!((0.003..0.007).contains(&uniform), "{uniform}");
        assert!((0.34..0.38).contains(&zipf), "{zipf}");
    }
}

#[test]
fn a_plan_has_each_group_once() {
    let sizes = Sizes {
        entries: 65_536,
        key_size: 8,
        value_size: 64,
        processors: 2,
        device: false,
        quick: false,
    };
    let all = plan(&sizes);
    for (at, group) in all.iter().enumerate() {
        assert!(!group.sides.is_empty());
        assert!(!all[..at].contains(group), "{group:?}");
    }
    let quick = plan(&Sizes {
        quick: true,
        ..sizes
    });
    assert!(quick.len() < all.len());
    assert!(
        quick
            .iter()
            .all(|group| group.workload.entries <= 1_000_000)
    );
}
