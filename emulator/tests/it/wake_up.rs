//! The threaded front end parks when idle and never sleeps through work.

use crate::host::*;
use offmap_abi::notify::{EventWord, NOTIFY_SQ_EVENT};
use offmap_abi::regs::{self, DOORBELLS};
use offmap_device_io::{BarOffset, Function};
use offmap_emulator::faults::FaultPlan;
use offmap_emulator::{DeviceConfig, Threaded};
use rand::{RngExt, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;
use std::sync::atomic::{AtomicBool, Ordering};
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

/// Rule N3 put off so far that it makes up for nothing: a wake-up that is lost costs this.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// A device that parks at once, and looks by itself only after [`LOOK_AGAIN`].
fn sleepy() -> DeviceConfig {
    DeviceConfig {
        polls_before_park: 100,
        look_again_us: LOOK_AGAIN.as_micros() as u32,
        ..small()
    }
}

/// Waits for one completion, and does not publish the head.
#[track_caller]
fn take_in_time(q: &mut Queue, seed: u64, at: u64) -> u64 {
    let start = Instant::now();
    for spins in 1u64.. {
        if let Some(c) = q.poll() {
            return c.request().0;
        }
        if spins.is_multiple_of(1000) {
            let waited = start.elapsed();
            assert!(
                waited < LOOK_AGAIN / 2,
                "a wake-up was lost: seed {seed:#x}, at {at}"
            );
            std::thread::yield_now();
        }
        std::hint::spin_loop();
    }
    unreachable!("the loop has no end")
}

/// Short ones as often as long ones.
fn pause(rng: &mut Xoshiro256PlusPlus) {
    let most = 1 << rng.random_range(0..12);
    for _ in 0..rng.random_range(0..most) {
        std::hint::spin_loop();
    }
}

/// Whether a device that was given `n` commands at random moments has shown what there is to show:
/// that it slept, and that its last look before that found something. A busy machine, on which one of
/// two threads waits while the other runs, may need more commands for that.
#[track_caller]
fn enough(host: &Host<Threaded>, start: Instant, n: u64) -> bool {
    if n < 50_000 || !n.is_multiple_of(1000) {
        return false;
    }
    let done = host.f.diagnostics().unwrap();
    assert!(done.parks > 100, "the device hardly ever parked: {done:?}");
    let late = start.elapsed() > 2 * PATIENCE;
    assert!(!late, "no last look found anything: {done:?}");
    done.parks_called_off >= 3
}

/// Rules N1 and N2 with the tail: submits at random moments around the device's parking. Each
/// submission finds the device awake, is seen by its last look, or writes a KICK.
#[test]
fn no_wake_up_is_lost() {
    let seed = seed();
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
    let host = Host::new(Threaded::spawn(sleepy()).unwrap());
    let mut admin = host.bring_up(16, NONE);
    let mut q = host.create_queue(&mut admin, 1, 16, NONE, true);
    let (mut kicks, mut awake) = (0, 0);
    let start = Instant::now();
    for i in 0.. {
        if enough(&host, start, i) {
            break;
        }
        pause(&mut rng);
        q.push(&nop(i));
        match q.publish(&*host.f) {
            true => kicks += 1,
            false => awake += 1,
        }
        assert_eq!(take_in_time(&mut q, seed, i), i, "seed {seed:#x}");
        kicks += u64::from(q.publish_head(&*host.f));
    }
    let done = host.f.diagnostics().unwrap();
    println!("{kicks} kicks; {awake} submissions found the device awake; {done:?}");
    assert_eq!(done.kicks, kicks);
}

/// The same with the completion head: the device parks with a command before it that it has no
/// room to answer, and no tail will come to wake it.
#[test]
fn no_room_is_lost() {
    const DEPTH: u32 = 4;
    let seed = seed();
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
    let host = Host::new(Threaded::spawn(sleepy()).unwrap());
    let mut admin = host.bring_up(16, NONE);
    let mut q = host.create_queue(&mut admin, 1, DEPTH, NONE, true);
    let (mut kicks, mut awake) = (0, 0);
    let start = Instant::now();
    for i in 0.. {
        if enough(&host, start, 10 * i) {
            break;
        }
        for _ in 0..DEPTH {
            q.push(&nop(i));
        }
        q.publish(&*host.f);
        for _ in 0..DEPTH {
            take_in_time(&mut q, seed, i);
        }
        q.push(&nop(i));
        q.publish(&*host.f);
        pause(&mut rng);
        match q.publish_head(&*host.f) {
            true => kicks += 1,
            false => awake += 1,
        }
        assert_eq!(take_in_time(&mut q, seed, i), i, "seed {seed:#x}");
        q.publish_head(&*host.f);
    }
    let done = host.f.diagnostics().unwrap();
    println!("{kicks} kicks for room; {awake} heads found the device awake; {done:?}");
    assert!(kicks > 0, "the device never parked for want of room");
}

/// The first piece of work of a device that sleeps is done by the thread that wrote the KICK,
/// before the write returns; a device with a fault plan leaves all of it to its own thread.
#[test]
fn who_kicks_does_the_first_piece_of_the_work() {
    for plan in [None, Some(FaultPlan::new())] {
        let host = Host::new(Threaded::spawn(sleepy()).unwrap());
        let mut admin = host.bring_up(16, NONE);
        let mut q = host.create_queue(&mut admin, 1, 16, NONE, true);
        if let Some(plan) = &plan {
            host.f.set_faults(plan, 1).unwrap();
        }
        for i in 0..200u32 {
            host.until("the device to park", || {
                let event = event(&q);
                event.armed && event.index == i
            });
            q.push(&nop(i.into()));
            assert!(q.publish(&*host.f), "a kick is wanted");
            if plan.is_none() {
                let done = q.poll().expect("it is done when the write returns");
                assert_eq!(done.request().0, u64::from(i));
            } else {
                assert_eq!(take_in_time(&mut q, 0, i.into()), u64::from(i));
            }
            q.publish_head(&*host.f);
        }
        let done = host.f.diagnostics().unwrap();
        let answered = if plan.is_none() { 200 } else { 0 };
        assert_eq!(done.kicks_answered, answered, "{done:?}");
        assert!(done.kicks >= 200, "{done:?}");
    }
}

/// A host that writes KICK all the time, with any value, whether the device is enabled or not, is
/// served like any other, and gets no more than one piece of work done on its own thread for each
/// time that the device slept.
#[test]
fn kicks_without_end_do_no_harm() {
    const COMMANDS: u64 = 20_000;
    for plan in [None, Some(FaultPlan::new())] {
        let seed = seed();
        let host = Host::new(Threaded::spawn(sleepy()).unwrap());
        if let Some(plan) = &plan {
            host.f.set_faults(plan, 1).unwrap();
        }
        // Memory space, before ENABLE.
        host.command(0x2);
        host.write32(regs::KICK, 0);
        let mut admin = host.bring_up(16, NONE);
        let mut q = host.create_queue(&mut admin, 1, 16, NONE, true);
        let over = AtomicBool::new(false);
        let hammered = std::thread::scope(|scope| {
            let hammer = scope.spawn(|| {
                let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
                let mut kicks = 1;
                while !over.load(Ordering::Relaxed) {
                    host.write32(regs::KICK, rng.random());
                    kicks += 1;
                }
                kicks
            });
            let mut own = 0u64;
            for i in 0..COMMANDS {
                q.push(&nop(i));
                own += u64::from(q.publish(&*host.f));
                assert_eq!(take_in_time(&mut q, seed, i), i, "seed {seed:#x}");
                own += u64::from(q.publish_head(&*host.f));
            }
            host.identify(&mut admin);
            over.store(true, Ordering::Relaxed);
            own + hammer.join().unwrap()
        });
        let done = host.f.diagnostics().unwrap();
        assert_eq!(done.kicks, hammered);
        match plan {
            // A piece of work that nobody had to do is none.
            None => assert!(done.kicks_answered <= COMMANDS + 8, "{done:?}"),
            Some(_) => assert_eq!(done.kicks_answered, 0),
        }
        host.f.reset().unwrap();
        host.write32(regs::KICK, u32::MAX);
        let mut admin = host.bring_up(16, NONE);
        host.identify(&mut admin);
    }
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
