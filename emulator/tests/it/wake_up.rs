//! The threaded front end parks when idle and never sleeps through work.

use crate::host::*;
use offmap_abi::notify::{EventWord, NOTIFY_SQ_EVENT};
use offmap_abi::regs::{self, DOORBELLS};
use offmap_device_io::{BarOffset, Function};
use offmap_emulator::{DeviceConfig, Threaded};
use rand::{RngExt, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

fn event(q: &Queue) -> EventWord {
    let n = q.notify.as_ref().unwrap();
    EventWord::from_word(n.memory.load_u64(NOTIFY_SQ_EVENT, Ordering::Acquire))
}

#[test]
fn a_parked_device_asks_for_a_kick_and_wakes_by_it() {
    let host = Host::new(threaded());
    let mut admin = host.bring_up(16, NONE);
    let mut q = host.create_queue(&mut admin, 1, 16, NONE, true);
    for i in 0..50u32 {
        // Armed may be from before the last command: a device that looked by itself, not
        // woken by the kick, takes it back only when it has nothing more to do.
        host.until("the device to park", || {
            let event = event(&q);
            event.armed && event.index == i
        });
        q.push(&nop(i.into()));
        assert!(q.publish(&*host.f), "a kick is wanted");
        assert_eq!(host.take(&mut q).request().0, u64::from(i));
    }
}

#[test]
fn mapped_doorbells_are_found_without_a_kick() {
    let host = Host::new(threaded());
    let mut admin = host.bring_up(16, NONE);
    let mut q = host.create_queue(&mut admin, 1, 16, NONE, false);
    q.doorbells = host
        .f
        .map_bar(BAR, BarOffset(DOORBELLS), regs::DOORBELLS_BYTES as usize)
        .unwrap();
    let mut waits = Vec::new();
    for i in 0..20 {
        std::thread::sleep(Duration::from_millis(10));
        let start = Instant::now();
        q.push(&nop(i));
        q.publish(&*host.f);
        host.take(&mut q);
        waits.push(start.elapsed());
    }
    // The middle one: a loaded machine may hold up any single wake-up.
    waits.sort();
    assert!(waits[10] < Duration::from_millis(8), "{waits:?}");
}

/// Submits at random moments around the device's parking. A lost wake-up would cost the
/// millisecond until the device looks by itself; so what is counted is submissions that
/// neither found the device awake nor kicked it, by their waiting time.
#[test]
fn no_wake_up_is_lost() {
    let seed = seed();
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
    let config = DeviceConfig {
        polls_before_park: 20,
        ..small()
    };
    let host = Host::new(Threaded::spawn(config).unwrap());
    let mut admin = host.bring_up(16, NONE);
    let mut q = host.create_queue(&mut admin, 1, 16, NONE, true);
    let mut kicks = 0u32;
    let start = Instant::now();
    let mut done = 0u32;
    for i in 0..100_000u64 {
        for _ in 0..rng.random_range(0..400) {
            std::hint::spin_loop();
        }
        q.push(&nop(i));
        kicks += u32::from(q.publish(&*host.f));
        let mut spins = 0;
        loop {
            if let Some(c) = q.poll() {
                assert_eq!(c.request().0, i, "seed {seed:#x}");
                break;
            }
            spins += 1;
            if spins % 1000 == 0 {
                assert!(start.elapsed() < 3 * PATIENCE, "seed {seed:#x}, at {i}");
                std::thread::yield_now();
            }
            std::hint::spin_loop();
        }
        q.publish_head(&*host.f);
        done += 1;
    }
    assert_eq!(done, 100_000);
    assert!(kicks > 0, "the device never parked: the test shows nothing");
}

#[test]
fn a_sleeping_device_wakes_for_registers_and_ends_when_dropped() {
    for _ in 0..20 {
        let host = Host::new(threaded());
        std::thread::sleep(Duration::from_millis(2));
        let mut admin = host.bring_up(16, NONE);
        host.identify(&mut admin);
        std::thread::sleep(Duration::from_millis(2));
        host.identify(&mut admin);
        host.write32(regs::CONTROL, 0);
        std::thread::sleep(Duration::from_millis(2));
        host.f.reset().unwrap();
        let mut admin = host.bring_up(16, NONE);
        host.identify(&mut admin);
    }
}

#[test]
fn register_accesses_get_through_while_the_device_is_busy() {
    let config = DeviceConfig {
        polls_before_park: u32::MAX,
        ..small()
    };
    let host = Host::new(Threaded::spawn(config).unwrap());
    let mut admin = host.bring_up(16, NONE);
    let mut q = host.create_queue(&mut admin, 1, 256, NONE, true);
    let start = Instant::now();
    let mut reads = 0u64;
    while q.taken < 20_000 {
        assert!(start.elapsed() < PATIENCE, "starved after {reads} reads");
        while q.sent - q.taken < q.depth {
            q.push(&nop(reads));
        }
        q.publish(&*host.f);
        assert_eq!(host.read64(regs::MAGIC), regs::MAGIC_VALUE);
        reads += 1;
        while q.poll().is_some() {}
        q.publish_head(&*host.f);
    }
    assert!(
        reads >= 20_000 / 256,
        "no register access between the bursts"
    );
    // And with nothing but register accesses the device is not locked out either.
    q.push(&nop(0));
    q.publish(&*host.f);
    while q.poll().is_none() {
        assert!(start.elapsed() < 2 * PATIENCE, "locked out");
        host.read64(regs::MAGIC);
    }
}
