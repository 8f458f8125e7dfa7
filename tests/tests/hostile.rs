//! A host that writes nonsense, and device memory that goes bad: bounded time, no panic, no
//! hang, and after a reset the device works. `OFFMAP_SEED` replays a run.

use offmap_abi::regs;
use offmap_abi::submission::SUBMISSION_BYTES;
use offmap_abi::{IoOpcode, QueueId, Status, Submission};
use offmap_bpf::{Errno, MapType};
use offmap_device_io::{BarOffset, Function};
use offmap_emulator::{DeviceConfig, Inline, Threaded};
use offmap_tests::conformance::elements::Table;
use offmap_tests::conformance::host::{Host, Notify, QueueOptions};
use offmap_tests::model::Shape;
use offmap_tests::report::{aloud, seed};
use offmap_tests::stack::{Stack, attr};
use rand::{Rng, RngExt, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// How long each test goes on; its first rounds are what a seed replays.
const BUDGET: Duration = Duration::from_secs(6);

fn small() -> DeviceConfig {
    let mut config = DeviceConfig::default();
    config.firmware.memory_bytes = 4 << 20;
    config
}

/// A descriptor that may be anything, often close to a right one.
fn nonsense(rng: &mut Xoshiro256PlusPlus, good: &Submission) -> Submission {
    let mut words = match rng.random_range(0..4) {
        0 => std::array::from_fn(|_| rng.next_u64()),
        _ => good.to_words(false),
    };
    for _ in 0..rng.random_range(0..4) {
        let at = rng.random_range(0..8);
        words[at] ^= 1 << rng.random_range(0..64);
    }
    if rng.random_ratio(1, 3) {
        let at = rng.random_range(0..8);
        let odd = [0, 1, u64::MAX, 1 << 63, u64::from(u32::MAX), 4096];
        words[at] = odd[rng.random_range(0..odd.len())];
    }
    Submission::from_words(words)
}

/// Descriptors, ring bytes, tails and registers at random.
fn scribble<F: Function>(name: &str, make: impl Fn(DeviceConfig) -> Arc<F>) {
    let base = seed();
    let (started, mut rounds, mut fatal) = (Instant::now(), 0u64, 0);
    let mut host = Host::bring_up(make(small()));
    while started.elapsed() < BUDGET {
        let rng = &mut Xoshiro256PlusPlus::seed_from_u64(base.wrapping_add(rounds));
        let notify = [Notify::Doorbells, Notify::Shadow][rng.random_range(0..2)];
        let options = QueueOptions {
            notify,
            vector: regs::NO_VECTOR,
        };
        let mut queue = host.queue(1, 16, options);
        let map = host.map(&Host::<F>::map_body(1, 8, 64, 64));
        let goods: Vec<Submission> = {
            let mut table = Table::new(&host, &mut queue, map, (8, 64), 16);
            assert_eq!(
                table.update(&[1; 8], &[2; 64], 0),
                Status::Success,
                "seed {base}"
            );
            vec![
                table.element(IoOpcode::Lookup, Some(&[1; 8]), None, 64, 0),
                table.element(IoOpcode::Update, Some(&[1; 8]), Some(&[3; 64]), 0, 0),
                table.element(IoOpcode::GetNext, Some(&[1; 8]), None, 8, 0),
                table.batch(IoOpcode::BatchLookup, 16, 0, 0),
                table.batch(IoOpcode::BatchDump, 16, 0, 0),
                table.batch(IoOpcode::BatchUpdate, 16, 0, 0),
            ]
        };
        for _ in 0..40 {
            let good = &goods[rng.random_range(0..goods.len())];
            match rng.random_range(0..20) {
                0 => queue.publish_tail(rng.next_u64()),
                1 => {
                    let word = rng.random_range(0..16 * SUBMISSION_BYTES / 8);
                    queue
                        .ring()
                        .store_u64(word * 8, rng.next_u64(), Ordering::Release);
                }
                2 => {
                    let at = rng.random_range(0..regs::BAR0_BYTES / 4) * 4;
                    // CONTROL is the next arm's: a disabled device does no wrong.
                    if at != regs::CONTROL {
                        let _ = host.function().write32(0, BarOffset(at), rng.random());
                    }
                }
                3 if rng.random_ratio(1, 20) => {
                    let _ = host
                        .function()
                        .write32(0, BarOffset(regs::CONTROL), rng.random());
                }
                _ if queue.in_flight() < 16 => queue.submit(nonsense(rng, good)),
                _ => {}
            }
            for _ in 0..4 {
                host.function().progress();
            }
            while queue.in_flight() > 0 && queue.poll().is_some() {}
        }
        fatal += u64::from(host.status().contains(regs::DeviceStatus::FATAL));
        drop(queue);
        host = host.reset();
        host.identify();
        rounds += 1;
    }
    aloud(&format!(
        "hostile: {name}: {rounds} rounds of nonsense from seed {base}, {fatal} stopped the device"
    ));
    assert!(rounds > 5, "{rounds} rounds");
}

#[test]
fn a_scribbling_host_inline() {
    scribble("inline", |c| Inline::new(c).expect("a device"));
}

#[test]
fn a_scribbling_host_threaded() {
    scribble("threaded", |c| Threaded::spawn(c).expect("a device"));
}

/// Device memory is overwritten through the window between operations. Every answer is a
/// result or an error number; afterwards a reset gives a device that works.
fn corrupt<F: Function>(name: &str, make: impl Fn(DeviceConfig) -> Arc<F>) {
    let base = seed();
    let (started, mut rounds, mut failed) = (Instant::now(), 0u64, 0u64);
    while started.elapsed() < BUDGET {
        let rng = &mut Xoshiro256PlusPlus::seed_from_u64(base.wrapping_add(rounds));
        let mut config = DeviceConfig::default();
        config.firmware.memory_bytes = 256 << 10;
        let function = make(config);
        let stack = Stack::over(Arc::clone(&function));
        let map_type = [
            MapType::HASH,
            MapType::ARRAY,
            MapType::PERCPU_HASH,
            MapType::PERCPU_ARRAY,
        ][rng.random_range(0..4)];
        let shape = Shape {
            map_type,
            key_size: 4,
            value_size: 16,
            max_entries: 200,
            map_flags: 0,
            map_extra: 0,
            cpus: offmap_tests::kernel::possible_cpus(),
        };
        let map = stack.map(&attr(&shape), true);
        let mut value = vec![7; shape.value_bytes()];
        for i in 0u32..200 {
            map.update(&i.to_ne_bytes(), &value, 0).unwrap();
        }
        let mut keys = vec![0; 4 * 64];
        let mut values = vec![0; shape.value_bytes() * 64];
        for _ in 0..300 {
            for _ in 0..rng.random_range(0..4) {
                let at = rng.random_range(0..(64u64 << 10) / 8) * 8;
                let _ = function.write64(2, BarOffset(at), rng.next_u64());
            }
            let key = rng.random_range(0..220u32).to_ne_bytes();
            let outcome = match rng.random_range(0..7) {
                0 => map.lookup(&key, &mut value, 0),
                1 => map.update(&key, &value, 0),
                2 => map.delete(&key),
                3 => map.get_next_key(Some(&key), &mut [0; 4]),
                4 => map.lookup_and_delete(&key, &mut value, 0),
                5 => {
                    map.lookup_batch(None, &mut [0; 4], &mut keys, &mut values, 64, 0, 0)
                        .result
                }
                _ => map.update_batch(&keys, &values, 64, 0, 0).result,
            };
            if let Err(e) = outcome {
                assert_ne!(e.errno(), Errno(0));
                assert_ne!(
                    e.errno(),
                    Errno::ETIMEDOUT,
                    "seed {base} round {rounds}: {e}"
                );
                failed += u64::from(e.errno() == Errno::EIO);
            }
        }
        drop(map);
        drop(stack);
        let host = Host::bring_up(function).reset();
        let mut queue = host.queue(
            1,
            4,
            QueueOptions {
                notify: Notify::Shadow,
                vector: regs::NO_VECTOR,
            },
        );
        let fresh = host.map(&Host::<F>::map_body(1, 8, 8, 8));
        let mut table = Table::new(&host, &mut queue, fresh, (8, 8), 1);
        assert_eq!(table.update(&[1; 8], &[2; 8], 0), Status::Success);
        assert_eq!(table.lookup(&[1; 8]), Ok(vec![2; 8]));
        assert_eq!(queue.id(), QueueId(1));
        rounds += 1;
    }
    aloud(&format!(
        "hostile: {name}: {rounds} devices with bad memory from seed {base}, {failed} times EIO"
    ));
    assert!(rounds > 2, "{rounds} rounds");
}

#[test]
fn bad_device_memory_inline() {
    corrupt("inline", |c| Inline::new(c).expect("a device"));
}

#[test]
fn bad_device_memory_threaded() {
    corrupt("threaded", |c| Threaded::spawn(c).expect("a device"));
}
