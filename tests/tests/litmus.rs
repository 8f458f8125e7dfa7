//! The ordering rules S1, C1, C2, C3, N1, N2, N4 and B1 to B3 of `docs/abi.md` §10, and those of the
//! host's hash map, under loom: each holds in every interleaving and with every value that a
//! load may see. All but C3 and B2 (whose weak form needs a store to pass an earlier load, which loom
//! does not model) have weakened forms that loom catches, so that no fence or ordering in them
//! is there for show.
//!
//! Here the rules themselves are tried, on a ring of one entry; that the driver and the device
//! keep them is tried on the real code by the conformance and stress tests.

use loom::sync::Arc;
use loom::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
use loom::sync::atomic::{AtomicU64, Ordering, fence};
use loom::thread;
use offmap_abi::notify::EventWord;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};

/// Runs a litmus test; whether loom found an execution that breaks it.
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

/// Ownership of an entry (S1 for submissions, C1 for completions): body, then word 0.
fn entry(store: Ordering, load: Ordering) {
    let words = Arc::new([AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0)]);
    let writer = {
        let words = Arc::clone(&words);
        thread::spawn(move || {
            words[1].store(11, Relaxed);
            words[2].store(22, Relaxed);
            words[0].store(1, store);
        })
    };
    if words[0].load(load) == 1 {
        assert_eq!(words[1].load(Relaxed), 11);
        assert_eq!(words[2].load(Relaxed), 22);
    }
    writer.join().unwrap();
}

#[test]
fn s1_c1_an_entry_is_seen_whole() {
    loom::model(|| entry(Release, Acquire));
}

#[test]
fn s1_c1_need_release_and_acquire() {
    assert!(breaks(|| entry(Relaxed, Acquire)));
    assert!(breaks(|| entry(Release, Relaxed)));
}

/// C3: the device overwrites an entry only once an acquired head has passed it.
fn reuse(head_store: Ordering, head_load: Ordering) {
    let body = Arc::new(AtomicU64::new(1));
    let head = Arc::new(AtomicU64::new(0));
    let device = {
        let (body, head) = (Arc::clone(&body), Arc::clone(&head));
        thread::spawn(move || {
            if head.load(head_load) == 1 {
                body.store(2, Relaxed);
            }
        })
    };
    let copied = body.load(Relaxed);
    head.store(1, head_store);
    assert_eq!(copied, 1, "the entry was overwritten under the reader");
    device.join().unwrap();
}

#[test]
fn c3_an_entry_is_copied_before_it_is_overwritten() {
    loom::model(|| reuse(Release, Acquire));
}

/// What a side does between publishing and looking.
#[derive(Clone, Copy)]
enum Fence {
    Full,
    None,
}

impl Fence {
    fn issue(self) {
        if let Self::Full = self {
            fence(SeqCst);
        }
    }
}

/// N1 against N2: after both have run, the device has seen the entry, or a KICK is on its way,
/// or it did not park.
fn park(host: Fence, device: Fence, looks_again: bool) {
    let tail = Arc::new(AtomicU64::new(0));
    let event = Arc::new(AtomicU64::new(EventWord::DISARMED.to_word()));
    let parked = {
        let (tail, event) = (Arc::clone(&tail), Arc::clone(&event));
        thread::spawn(move || {
            let seen = tail.load(Acquire) as u32;
            if seen != 0 {
                return false;
            }
            event.store(EventWord::armed_at(seen).to_word(), Release);
            device.issue();
            !looks_again || tail.load(Acquire) as u32 == seen
        })
    };
    tail.store(1, Release);
    host.issue();
    let kicked = EventWord::from_word(event.load(Acquire)).wants(1);
    let parked = parked.join().unwrap();
    assert!(
        !parked || kicked,
        "parked with work in the ring and no KICK"
    );
}

#[test]
fn n1_n2_no_wake_up_is_lost() {
    loom::model(|| park(Fence::Full, Fence::Full, true));
}

#[test]
fn n1_n2_need_both_fences_and_the_second_look() {
    assert!(breaks(|| park(Fence::None, Fence::Full, true)));
    assert!(breaks(|| park(Fence::Full, Fence::None, true)));
    assert!(breaks(|| park(Fence::Full, Fence::Full, false)));
}

/// N4, the mirror image: the host sleeps, the device posts. The host looks at the entry's
/// ownership word, not at a count.
fn sleep(host: Fence, device: Fence, looks_again: bool) {
    let entry = Arc::new(AtomicU64::new(0));
    let event = Arc::new(AtomicU64::new(EventWord::DISARMED.to_word()));
    let interrupted = {
        let (entry, event) = (Arc::clone(&entry), Arc::clone(&event));
        thread::spawn(move || {
            entry.store(1, Release);
            device.issue();
            EventWord::from_word(event.load(Acquire)).wants(1)
        })
    };
    let asleep = if entry.load(Acquire) == 0 {
        event.store(EventWord::armed_at(0).to_word(), Release);
        host.issue();
        !looks_again || entry.load(Acquire) == 0
    } else {
        false
    };
    let interrupted = interrupted.join().unwrap();
    assert!(
        !asleep || interrupted,
        "asleep with a completion and no interrupt"
    );
}

#[test]
fn n4_no_interrupt_is_lost() {
    loom::model(|| sleep(Fence::Full, Fence::Full, true));
}

#[test]
fn n4_needs_both_fences_and_the_second_look() {
    assert!(breaks(|| sleep(Fence::None, Fence::Full, true)));
    assert!(breaks(|| sleep(Fence::Full, Fence::None, true)));
    assert!(breaks(|| sleep(Fence::Full, Fence::Full, false)));
}

/// C1 and C2 together: a completion reveals the payload and the effect that came before it.
fn effect(completion: Ordering) {
    let table = Arc::new(AtomicU64::new(0));
    let payload = Arc::new(AtomicU64::new(0));
    let word0 = Arc::new(AtomicU64::new(0));
    let device = {
        let (table, payload, word0) = (table.clone(), payload.clone(), word0.clone());
        thread::spawn(move || {
            table.store(5, Relaxed);
            payload.store(6, Relaxed);
            word0.store(1, completion);
        })
    };
    if word0.load(Acquire) == 1 {
        assert_eq!(payload.load(Relaxed), 6);
        assert_eq!(
            table.load(Relaxed),
            5,
            "the effect comes before the completion"
        );
    }
    device.join().unwrap();
}

#[test]
fn c1_c2_a_completion_comes_last() {
    loom::model(|| effect(Release));
    assert!(breaks(|| effect(Relaxed)));
}

/// The host's hash map (`crates/bpf/src/map/host_hash`): one thread deletes an element of line
/// A, another takes the freed slot for line B, a third reads A and strays into the slot. It
/// must not believe what it read there. The same goes for the spare lines, which go from one
/// line's buckets to another's through a stack of their own.
fn stray(after_pop: bool) {
    /// Word 0 of line A. Bit 0: locked; above it the version.
    const FULL: u64 = 2;
    const LOCKED: u64 = 1;
    const EMPTIED: u64 = 4;
    const OLD_KEY: u64 = 1;
    const NEW_KEY: u64 = 2;
    let line = Arc::new(AtomicU64::new(FULL));
    let stack = Arc::new(AtomicU64::new(0));
    let key = Arc::new(AtomicU64::new(OLD_KEY));
    let deleter = {
        let (line, stack) = (Arc::clone(&line), Arc::clone(&stack));
        thread::spawn(move || {
            let locked = line.compare_exchange(FULL, FULL | LOCKED, Acquire, Relaxed);
            locked.unwrap();
            fence(Release);
            stack.compare_exchange(0, 1, Release, Relaxed).unwrap();
            line.store(EMPTIED, Release);
        })
    };
    let inserter = {
        let (stack, key) = (Arc::clone(&stack), Arc::clone(&key));
        thread::spawn(move || {
            // It has locked line B, which nobody else looks at.
            fence(Release);
            if stack.compare_exchange(1, 0, AcqRel, Acquire).is_ok() {
                if after_pop {
                    fence(Release);
                }
                key.store(NEW_KEY, Relaxed);
            }
        })
    };
    let word = line.load(Acquire);
    if word == FULL {
        let read = key.load(Relaxed);
        fence(Acquire);
        if line.load(Relaxed) == word {
            assert_eq!(
                read, OLD_KEY,
                "another line's element, taken for this one's"
            );
        }
    }
    deleter.join().unwrap();
    inserter.join().unwrap();
}

#[test]
fn host_hash_a_strayed_reader_notices() {
    loom::model(|| stray(true));
}

#[test]
fn host_hash_needs_the_fence_after_the_pop() {
    assert!(breaks(|| stray(false)));
}

/// A writer of a line moves its elements to other places, a reader looks for one that stays in
/// the map: it finds it, or reads again. `locks`: the lock bit's store comes before the moves
/// (a release fence); `looks`: the reader's last look comes after its reading (an acquire
/// fence).
fn shift(locks: bool, looks: bool) {
    const LOCKED: u64 = 1;
    const VERSION: u64 = 2;
    const ELEMENT: u64 = 7;
    let word = Arc::new(AtomicU64::new(0));
    let places = Arc::new([AtomicU64::new(ELEMENT), AtomicU64::new(0)]);
    let writer = {
        let (word, places) = (Arc::clone(&word), Arc::clone(&places));
        thread::spawn(move || {
            word.compare_exchange(0, LOCKED, Acquire, Relaxed).unwrap();
            if locks {
                fence(Release);
            }
            // As `Places` are stored: first to last, so that an element is nowhere meanwhile.
            places[0].store(9, Relaxed);
            places[1].store(ELEMENT, Relaxed);
            word.store(VERSION, Release);
        })
    };
    let before = word.load(Acquire);
    if before & LOCKED == 0 {
        let (second, first) = (places[1].load(Relaxed), places[0].load(Relaxed));
        if looks {
            fence(Acquire);
        }
        if word.load(Relaxed) == before {
            let found = [first, second].iter().filter(|&&at| at == ELEMENT).count();
            assert_eq!(found, 1, "an element that is in the map was not found");
        }
    }
    writer.join().unwrap();
}

#[test]
fn host_hash_an_element_that_moves_is_found() {
    loom::model(|| shift(true, true));
}

#[test]
fn host_hash_needs_both_fences_around_a_move() {
    assert!(breaks(|| shift(false, true)));
    assert!(breaks(|| shift(true, false)));
}

/// A group of the hash table in groups (`crates/bpf/src/map/group_hash.rs`): a value is seen
/// whole. The reader takes the state that it first saw without its lock bit: one who held the
/// lock must have given it back with nothing changed, as the writer here does the first time.
fn group(writer_fence: bool, reader_fence: bool, forgives_version: bool) {
    const LOCKED: u64 = 1;
    const VERSION: u64 = 2;
    let state = Arc::new(AtomicU64::new(0));
    let value = Arc::new([AtomicU64::new(0), AtomicU64::new(0)]);
    let writer = {
        let (state, value) = (Arc::clone(&state), Arc::clone(&value));
        thread::spawn(move || {
            let lock = || {
                state.fetch_or(LOCKED, Acquire);
                if writer_fence {
                    fence(Release);
                }
            };
            lock();
            state.fetch_sub(LOCKED, Release);
            lock();
            value[0].store(1, Relaxed);
            value[1].store(1, Relaxed);
            state.fetch_add(VERSION - LOCKED, Release);
        })
    };
    let seen = state.load(Acquire);
    let copied = [value[0].load(Relaxed), value[1].load(Relaxed)];
    if reader_fence {
        fence(Acquire);
    }
    let differs = state.load(Relaxed) ^ (seen & !LOCKED);
    let ignored = if forgives_version { VERSION } else { 0 };
    if differs & !ignored == 0 {
        assert_eq!(copied[0], copied[1], "half of an update was seen");
    }
    writer.join().unwrap();
}

#[test]
fn group_hash_a_value_is_seen_whole() {
    loom::model(|| group(true, true, false));
}

#[test]
fn group_hash_needs_both_fences_and_the_version() {
    assert!(breaks(|| group(false, true, false)));
    assert!(breaks(|| group(true, false, false)));
    assert!(breaks(|| group(true, true, true)));
}

/// A group counts the elements that passed it by while one such element comes and another goes;
/// a search that begins when both are done does not end at this group.
fn passed(counts_at_once: bool) {
    let state = Arc::new(AtomicU64::new(1));
    let further = Arc::new([AtomicU64::new(1), AtomicU64::new(0)]);
    let change = |by: i64| {
        let state = Arc::clone(&state);
        move || {
            if counts_at_once {
                state.fetch_add(by as u64, AcqRel);
            } else {
                state.store(state.load(Acquire).wrapping_add(by as u64), Release);
            }
        }
    };
    let (one_more, one_less) = (change(1), change(-1));
    let goes = {
        let further = Arc::clone(&further);
        thread::spawn(move || {
            further[0].store(0, Release);
            one_less();
        })
    };
    // Counted before it is stored further on.
    one_more();
    further[1].store(1, Release);
    goes.join().unwrap();
    assert_eq!(further[1].load(Acquire), 1);
    assert_ne!(state.load(Acquire), 0, "the search ends before the element");
}

#[test]
fn group_hash_who_passed_is_counted() {
    loom::model(|| passed(true));
}

#[test]
fn group_hash_needs_the_count_in_one_step() {
    assert!(breaks(|| passed(false)));
}

/// A reader that is ahead of the count: while an element comes to the group after, whoever sees
/// it there has seen it counted before, so that what is found once is found again.
fn comes(counts_first: bool) {
    let state = Arc::new(AtomicU64::new(0));
    let further = Arc::new(AtomicU64::new(0));
    let writer = {
        let (state, further) = (Arc::clone(&state), Arc::clone(&further));
        thread::spawn(move || {
            if counts_first {
                state.fetch_add(1, AcqRel);
                further.store(1, Release);
            } else {
                further.store(1, Release);
                state.fetch_add(1, AcqRel);
            }
        })
    };
    // Somebody who knows that the element is there (as the one who put it there does).
    if further.load(Acquire) == 1 {
        assert_eq!(state.load(Relaxed), 1, "it is there and cannot be found");
    }
    writer.join().unwrap();
}

#[test]
fn group_hash_an_element_is_counted_before_it_is_there() {
    loom::model(|| comes(true));
    assert!(breaks(|| comes(false)));
}

/// B1, in its full form: the header shows BUSY, the position covers it, the data follow, then
/// the header without BUSY. A device leaves the first header out.
fn record(position_store: Ordering, commit: Ordering, loads: [Ordering; 2]) {
    const BUSY: u64 = 2;
    const COMMITTED: u64 = 1;
    let words = Arc::new([AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0)]);
    let producer = {
        let words = Arc::clone(&words);
        thread::spawn(move || {
            let [position, header, data] = &*words;
            header.store(BUSY, Relaxed);
            position.store(1, position_store);
            data.store(5, Relaxed);
            header.store(COMMITTED, commit);
        })
    };
    let [position, header, data] = &*words;
    if position.load(loads[0]) == 1 {
        let header = header.load(loads[1]);
        assert_ne!(header, 0, "a header of an earlier lap");
        if header == COMMITTED {
            assert_eq!(data.load(Relaxed), 5);
        }
    }
    producer.join().unwrap();
}

#[test]
fn b1_a_record_is_seen_whole() {
    loom::model(|| record(Release, Release, [Acquire, Acquire]));
}

#[test]
fn b1_needs_both_releases_and_both_acquires() {
    assert!(breaks(|| record(Relaxed, Release, [Acquire, Acquire])));
    assert!(breaks(|| record(Release, Relaxed, [Acquire, Acquire])));
    assert!(breaks(|| record(Release, Release, [Relaxed, Acquire])));
    assert!(breaks(|| record(Release, Release, [Acquire, Relaxed])));
}

#[test]
fn b2_a_record_is_copied_before_it_is_overwritten() {
    loom::model(|| reuse(Release, Acquire));
}

/// B3: the consumer has taken the record before position 1, and sleeps unless there is a further
/// one; the device produces that one.
fn caught_up(host: Fence, device: Fence, looks_again: bool) {
    let producer = Arc::new(AtomicU64::new(1));
    let consumer = Arc::new(AtomicU64::new(0));
    let interrupted = {
        let (producer, consumer) = (Arc::clone(&producer), Arc::clone(&consumer));
        thread::spawn(move || {
            producer.store(2, Release);
            device.issue();
            consumer.load(Acquire) == 1
        })
    };
    let seen = producer.load(Acquire);
    consumer.store(1, Release);
    host.issue();
    let asleep = if looks_again {
        producer.load(Acquire) == 1
    } else {
        seen == 1
    };
    let interrupted = interrupted.join().unwrap();
    assert!(
        !asleep || interrupted,
        "asleep with a record and no interrupt"
    );
}

#[test]
fn b3_no_interrupt_is_lost() {
    loom::model(|| caught_up(Fence::Full, Fence::Full, true));
}

#[test]
fn b3_needs_both_fences_and_the_second_look() {
    assert!(breaks(|| caught_up(Fence::None, Fence::Full, true)));
    assert!(breaks(|| caught_up(Fence::Full, Fence::None, true)));
    assert!(breaks(|| caught_up(Fence::Full, Fence::Full, false)));
}
