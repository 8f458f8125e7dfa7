//! The ordering rules of `docs/abi.md` §10 on the code itself, under loom: the driver's rings
//! (`crates/driver/src/rings.rs`) against the device's queue (`emulator/src/queue.rs`,
//! `emulator/src/entry.rs`, and `emulator/src/park.rs` for the way to sleep). The files are compiled a second time, over loom's atomics; nothing of
//! theirs is copied or changed.
//!
//! Each rule holds in every interleaving and with every value that a load may see; and each is
//! needed: with the memory of one side weakened in just that place, loom finds an execution that goes
//! wrong. `tests/tests/litmus.rs` has the same rules on models, as small as they can be.

/// What `fence.rs` is made of here.
mod atomic {
    pub(crate) use loom::sync::atomic::{Ordering, fence};
}

#[path = "litmus/dma.rs"]
mod dma;

#[path = "litmus/fence.rs"]
mod fence;

/// What `queue.rs` finds of the device around it.
mod device {
    pub(crate) use offmap_emulator::Clock;
}

#[path = "../../emulator/src/entry.rs"]
#[allow(dead_code, reason = "the tests use their part of it")]
mod entry;

#[path = "../../emulator/src/park.rs"]
mod park;

#[path = "../../emulator/src/queue.rs"]
#[allow(dead_code, reason = "the tests use their part of it")]
mod queue;

#[path = "../../crates/driver/src/rings.rs"]
#[allow(dead_code, reason = "the tests use their part of it")]
mod rings;

use device::Clock;
use dma::{Dma, Weak, Words};
use loom::thread;
use offmap_abi::notify::{NOTIFY_BYTES, NOTIFY_CQ_HEAD, NOTIFY_SQ_TAIL};
use offmap_abi::ring::RingDepth;
use offmap_abi::submission::SUBMISSION_BYTES;
use offmap_abi::{Completion, IoOpcode, QueueId, RequestId, Status, Submission};
use offmap_device_io::{DmaBuffer, DmaPlacement, SharedWords};
use park::Served;
use queue::{Announce, Coalescing, Queue, QueueSpec, Stop};
use rings::Rings;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

const DEPTH: u32 = 2;
const RING: usize = DEPTH as usize * SUBMISSION_BYTES;
const SQ: usize = 0;
const CQ: usize = RING;
const NOTIFY: usize = 2 * RING;
/// What an entry refers to, and what a command changes.
const KEY: usize = NOTIFY + NOTIFY_BYTES;
const VALUE: usize = KEY + 8;
const EFFECT: usize = VALUE + 8;
const BYTES: usize = EFFECT + 8;

/// Doorbells, which a queue with a notify block does not use.
fn doorbells() -> &'static DmaBuffer {
    static DOORBELLS: OnceLock<DmaBuffer> = OnceLock::new();
    DOORBELLS.get_or_init(|| DmaBuffer::new(4096, DmaPlacement::default()).expect("a buffer"))
}

fn depth() -> RingDepth {
    RingDepth::new(DEPTH).expect("two is a depth")
}

/// The two sides of a queue pair over one memory, each weakened as it says.
struct Host {
    words: Words,
    rings: Rings,
}

struct Device {
    dma: Dma,
    queue: Queue,
}

fn pair(host: &Weak, device: &Weak) -> (Host, Device) {
    let words = Words::new(BYTES);
    let spec = QueueSpec {
        id: QueueId(1),
        depth: depth(),
        vector: 0,
        coalescing: Coalescing::default(),
        sq: SQ as u64,
        cq: CQ as u64,
        notify: NOTIFY as u64,
    };
    (
        Host {
            words: words.seen_by(host),
            rings: Rings::new(SQ, CQ, depth()),
        },
        Device {
            dma: Dma(words.seen_by(device)),
            queue: Queue::new(&spec),
        },
    )
}

impl Host {
    fn push(&mut self, n: u64) {
        self.rings.push(&self.words, command(n));
    }

    /// Publishes the tail; whether a KICK is wanted.
    fn commit(&self) -> bool {
        self.rings.publish_tail(&self.words, NOTIFY)
    }

    /// Publishes the head; whether a KICK is wanted.
    fn release(&self) -> bool {
        let committed = self.rings.tail();
        self.rings.publish_head(&self.words, NOTIFY, committed)
    }

    fn store(&self, at: usize, value: u64) {
        let Ok(()) = self.words.store(at, value, Ordering::Relaxed);
    }

    fn load(&self, at: usize) -> u64 {
        let Ok(word) = self.words.load(at, Ordering::Relaxed);
        word
    }
}

impl Device {
    fn fetch(&mut self) -> Option<Submission> {
        let fetched = self.queue.fetch(&self.dma, doorbells());
        let words = fetched.expect("the host keeps the protocol");
        words.map(Submission::from_words)
    }

    fn post(&mut self, n: u64) {
        let posted = self.queue.post(&self.dma, completion(n));
        posted.expect("the ring can be reached");
    }

    /// What the emulator does before it parks (rule N2); whether it parks.
    fn park(&mut self) -> bool {
        park::arm(self)
    }

    fn store(&self, at: usize, value: u64) {
        let Ok(()) = self.dma.0.store(at, value, Ordering::Relaxed);
    }

    fn load(&self, at: usize) -> u64 {
        let Ok(word) = self.dma.0.load(at, Ordering::Relaxed);
        word
    }
}

impl Served for Device {
    fn for_each(&mut self, mut f: impl FnMut(&mut Queue, &Dma, &DmaBuffer) -> Result<(), Stop>) {
        f(&mut self.queue, &self.dma, doorbells()).expect("the host keeps the protocol");
    }
}

/// Command `n`, in whose every word `n` shows.
fn command(n: u64) -> Submission {
    let body = [n; 6].map(u64::to_le_bytes).concat();
    let body: [u8; 48] = body.try_into().expect("48 bytes");
    Submission::new(IoOpcode::Lookup.0, RequestId(n), &body)
}

fn completion(n: u64) -> Completion {
    let payload = [n; 6].map(u64::to_le_bytes).concat();
    Completion::new(RequestId(n), Status::Success).with_payload(&payload)
}

/// Whether loom finds an execution that breaks the test.
fn breaks(litmus: impl Fn() + Sync + Send + 'static) -> bool {
    // The hook is the process's: one at a time, so that each puts back what it found.
    static HOOK: Mutex<()> = Mutex::new(());
    let _one = HOOK.lock().unwrap_or_else(PoisonError::into_inner);
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let outcome = catch_unwind(AssertUnwindSafe(|| loom::model(litmus)));
    std::panic::set_hook(hook);
    outcome.is_err()
}

/// A side that is weak at one word.
fn weak_at(at: usize) -> Weak {
    Weak {
        relaxed: at..at + 8,
        ..Weak::default()
    }
}

fn no_fence() -> Weak {
    Weak {
        no_fence: true,
        ..Weak::default()
    }
}

/// S1, S3, S4: what the device fetches is the entry, whole, and what it refers to is there.
fn submission(host: &Weak, device: &Weak) {
    let (mut host, mut device) = pair(host, device);
    let device = thread::spawn(move || {
        if let Some(fetched) = device.fetch() {
            assert_eq!(fetched.to_words(true), command(5).to_words(true), "S1");
            assert_eq!(device.load(KEY), 6, "S4");
        }
    });
    host.store(KEY, 6);
    host.push(5);
    device.join().unwrap();
}

#[test]
fn s1_s3_s4_an_entry_is_fetched_whole() {
    loom::model(|| submission(&Weak::default(), &Weak::default()));
}

#[test]
fn s1_needs_release_and_acquire() {
    assert!(breaks(|| submission(&weak_at(SQ), &Weak::default())));
    assert!(breaks(|| submission(&Weak::default(), &weak_at(SQ))));
}

/// S2: an entry that the tail covers shows its phase; otherwise the device takes the host for
/// one that breaks the protocol.
fn tail(host: &Weak, device: &Weak) {
    let (mut host, mut device) = pair(host, device);
    let device = thread::spawn(move || {
        let looked = device.queue.has_work(&device.dma, doorbells());
        assert!(looked.is_ok(), "an entry that the tail covers is not there");
    });
    host.push(5);
    host.commit();
    device.join().unwrap();
}

#[test]
fn s2_the_tail_comes_after_what_it_covers() {
    loom::model(|| tail(&Weak::default(), &Weak::default()));
}

#[test]
fn s2_needs_release_and_acquire() {
    let at = NOTIFY + NOTIFY_SQ_TAIL;
    assert!(breaks(move || tail(&weak_at(at), &Weak::default())));
    assert!(breaks(move || tail(&Weak::default(), &weak_at(at))));
}

/// C1, C2: whoever has taken a completion sees its payload, what it stored in host memory, and
/// its effect.
fn completed(host: &Weak, device: &Weak) {
    let (mut host, mut device) = pair(host, device);
    host.push(5);
    assert!(device.fetch().is_some());
    let device = thread::spawn(move || {
        device.store(EFFECT, 8);
        device.store(VALUE, 7);
        device.post(5);
    });
    if let Some(taken) = host.rings.pop(&host.words) {
        assert_eq!(taken.request(), RequestId(5));
        assert_eq!(taken.payload, completion(5).payload, "C1: the entry");
        assert_eq!(host.load(VALUE), 7, "C1: the data");
        assert_eq!(host.load(EFFECT), 8, "C2");
    }
    device.join().unwrap();
}

#[test]
fn c1_c2_a_completion_comes_last() {
    loom::model(|| completed(&Weak::default(), &Weak::default()));
}

#[test]
fn c1_needs_release_and_acquire() {
    assert!(breaks(|| completed(&weak_at(CQ), &Weak::default())));
    assert!(breaks(|| completed(&Weak::default(), &weak_at(CQ))));
}

/// A queue of two whose two commands are done, the first of them taken or not, with a third
/// published.
fn full(host: &Weak, device: &Weak, taken: bool) -> (Host, Device) {
    let (mut host, mut device) = pair(host, device);
    for n in [1, 2] {
        host.push(n);
        assert!(device.fetch().is_some());
        device.post(n);
    }
    if taken {
        assert!(host.rings.pop(&host.words).is_some());
    }
    host.push(3);
    host.commit();
    (host, device)
}

/// C3: the entry that the host copies is not overwritten before its head says so. The host here
/// has published its third command early: without a head that counts, the device would go on.
fn reuse(device: &Weak) {
    let (mut host, mut device) = full(&Weak::default(), device, false);
    let device = thread::spawn(move || {
        if device.fetch().is_some() {
            device.post(3);
        }
    });
    let taken = host.rings.pop(&host.words).expect("the first is there");
    assert_eq!(taken.request(), RequestId(1), "C3: the id");
    assert_eq!(taken.payload, completion(1).payload, "C3: the payload");
    host.release();
    device.join().unwrap();
}

#[test]
fn c3_an_entry_is_copied_before_it_is_overwritten() {
    loom::model(|| reuse(&Weak::default()));
}

#[test]
fn c3_needs_the_head() {
    // A device for which the host has always taken one.
    let believes = Weak {
        believes: Some((NOTIFY + NOTIFY_CQ_HEAD, 1)),
        ..Weak::default()
    };
    assert!(breaks(move || reuse(&believes)));
}

/// N1 against N2: a device that parks has seen the entry, or is kicked for it.
fn wake_up(host: &Weak, device: &Weak) {
    let (mut host, mut device) = pair(host, device);
    let device = thread::spawn(move || device.park());
    host.push(5);
    let kicked = host.commit();
    let parked = device.join().unwrap();
    assert!(!parked || kicked, "parked with a command and no KICK");
}

#[test]
fn n1_n2_no_wake_up_is_lost() {
    loom::model(|| wake_up(&Weak::default(), &Weak::default()));
}

#[test]
fn n1_n2_need_both_fences() {
    assert!(breaks(|| wake_up(&no_fence(), &Weak::default())));
    assert!(breaks(|| wake_up(&Weak::default(), &no_fence())));
}

/// The same for a device that was awake in between, and asked for no KICK then.
fn nap(host: &Weak, device: &Weak) {
    let (mut host, mut device) = pair(host, device);
    let device = thread::spawn(move || {
        device.park();
        park::disarm(&mut device);
        device.park()
    });
    host.push(5);
    let kicked = host.commit();
    let parked = device.join().unwrap();
    assert!(!parked || kicked, "parked with a command and no KICK");
}

#[test]
fn n1_n2_no_wake_up_is_lost_after_a_nap() {
    loom::model(|| nap(&Weak::default(), &Weak::default()));
}

#[test]
fn n1_n2_need_both_fences_after_a_nap() {
    assert!(breaks(|| nap(&no_fence(), &Weak::default())));
    assert!(breaks(|| nap(&Weak::default(), &no_fence())));
}

#[test]
fn n2_needs_the_second_look() {
    assert!(breaks(|| {
        let (mut host, mut device) = pair(&Weak::default(), &Weak::default());
        let device = thread::spawn(move || {
            device.queue.arm(&device.dma).expect("the block is there");
            fence::full_fence();
        });
        host.push(5);
        let kicked = host.commit();
        device.join().unwrap();
        assert!(kicked, "parked with a command and no KICK");
    }));
}

/// N1 with a completion head: a device that parked for want of room is kicked when there is some.
fn room(host: &Weak, device: &Weak) {
    let (host, mut device) = full(host, device, true);
    let device = thread::spawn(move || device.park());
    let kicked = host.release();
    let parked = device.join().unwrap();
    assert!(
        !parked || kicked,
        "parked with room for a command, and no KICK"
    );
}

#[test]
fn n1_n2_no_room_is_lost() {
    loom::model(|| room(&Weak::default(), &Weak::default()));
}

#[test]
fn n1_n2_need_both_fences_for_room() {
    assert!(breaks(|| room(&no_fence(), &Weak::default())));
    assert!(breaks(|| room(&Weak::default(), &no_fence())));
}

/// N4: a host that sleeps has seen the completion, or is interrupted for it.
fn interrupt(host: &Weak, device: &Weak) {
    let (mut host, mut device) = pair(host, device);
    host.push(5);
    assert!(device.fetch().is_some());
    let device = thread::spawn(move || {
        device.post(5);
        let clock: Clock = Arc::new(|| Duration::ZERO);
        let announced = device.queue.announce(&device.dma, &clock);
        announced.expect("the block can be reached") == Announce::Raise(0)
    });
    let asleep = host.rings.ask_for_interrupt(&host.words, NOTIFY);
    let interrupted = device.join().unwrap();
    assert!(
        !asleep || interrupted,
        "asleep with a completion and no interrupt"
    );
}

#[test]
fn n4_no_interrupt_is_lost() {
    loom::model(|| interrupt(&Weak::default(), &Weak::default()));
}

#[test]
fn n4_needs_the_second_look() {
    assert!(breaks(|| {
        let (mut host, mut device) = pair(&Weak::default(), &Weak::default());
        host.push(5);
        assert!(device.fetch().is_some());
        let device = thread::spawn(move || {
            device.post(5);
            let clock: Clock = Arc::new(|| Duration::ZERO);
            let announced = device.queue.announce(&device.dma, &clock);
            announced.expect("the block can be reached") == Announce::Raise(0)
        });
        let _ = host.rings.ask_for_interrupt(&host.words, NOTIFY);
        assert!(
            device.join().unwrap(),
            "asleep with a completion and no interrupt"
        );
    }));
}

#[test]
fn n4_needs_both_fences() {
    assert!(breaks(|| interrupt(&no_fence(), &Weak::default())));
    assert!(breaks(|| interrupt(&Weak::default(), &no_fence())));
}
