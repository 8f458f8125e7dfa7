//! Rules B1 and B3 of `docs/abi.md` §10 on the device's own code, under loom: `firmware-model/src/table/ring.rs`
//! is compiled a second time, and writes its records to loom's words, with the product's fence
//! (`crates/abi/src/fence.rs`). The consumer is the rule itself, with that fence.
//!
//! `tests/tests/litmus.rs` has the same rules on models, with everything in them weakened in turn.

/// What `fence.rs` is made of here.
mod atomic {
    pub(crate) use loom::sync::atomic::{Ordering, fence};
}

#[path = "litmus/fence.rs"]
mod fence;

#[path = "../../firmware-model/src/table/ring.rs"]
#[allow(
    dead_code,
    unreachable_pub,
    reason = "it is a crate's interface elsewhere, of which the tests use their part"
)]
mod ring;

/// What `ring.rs` finds of the tables around it.
mod table {
    pub(crate) mod layout {
        pub(crate) use offmap_firmware_model::table::layout::{MapSpec, ValueShape};
    }
}

use loom::sync::Arc;
use loom::sync::atomic::{AtomicU64, Ordering};
use loom::thread;
use offmap_abi::Status;
use offmap_abi::ringbuf::{
    CONSUMER_POSITION, DATA, DROPPED, HEADER_BYTES, PRODUCER_POSITION, header_word,
};
use offmap_firmware_model::table::layout::{MapKind, MapSpec, ValueShape};
use offmap_firmware_model::{HostFault, HostMemory};
use ring::RingTable;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Bytes of the data area, and of a record with its header.
const SIZE: u64 = 64;
const RECORD: u64 = 2 * HEADER_BYTES;
const VECTOR: u32 = 3;
/// Words of the memory: three on the first pages, and the data area.
const WORDS: usize = 3 + SIZE as usize / 8;

/// Host memory, as the device or the host reaches it.
#[derive(Clone)]
struct Side {
    words: Arc<Vec<AtomicU64>>,
    no_fence: bool,
    /// Stores positions and headers without release.
    relaxed: bool,
}

impl Side {
    fn word(&self, iova: u64) -> &AtomicU64 {
        let index = match iova {
            CONSUMER_POSITION => 0,
            PRODUCER_POSITION => 1,
            DROPPED => 2,
            _ => 3 + (iova - DATA) as usize / 8,
        };
        &self.words[index]
    }

    fn load(&self, iova: u64, order: Ordering) -> u64 {
        let word = self.word(iova).load(order);
        fence::side(self.no_fence);
        word
    }

    fn store(&self, iova: u64, word: u64, order: Ordering) {
        let order = if self.relaxed {
            Ordering::Relaxed
        } else {
            order
        };
        self.word(iova).store(word, order);
        fence::side(self.no_fence);
    }
}

impl HostMemory for Side {
    fn read(&mut self, iova: u64, into: &mut [u8]) -> Result<(), HostFault> {
        for (i, bytes) in into.chunks_mut(8).enumerate() {
            let word = self.load(iova + i as u64 * 8, Ordering::Relaxed);
            bytes.copy_from_slice(&word.to_le_bytes()[..bytes.len()]);
        }
        Ok(())
    }

    fn write(&mut self, iova: u64, from: &[u8]) -> Result<(), HostFault> {
        for (i, bytes) in from.chunks(8).enumerate() {
            let mut word = [0; 8];
            word[..bytes.len()].copy_from_slice(bytes);
            let word = u64::from_le_bytes(word);
            self.store(iova + i as u64 * 8, word, Ordering::Relaxed);
        }
        Ok(())
    }

    fn load_word(&mut self, iova: u64) -> Result<u64, HostFault> {
        Ok(self.load(iova, Ordering::Acquire))
    }

    fn store_word(&mut self, iova: u64, word: u64) -> Result<(), HostFault> {
        self.store(iova, word, Ordering::Release);
        Ok(())
    }
}

/// What each side does less than the rules ask for.
#[derive(Clone, Copy, Default)]
struct Weak {
    host_no_fence: bool,
    device_no_fence: bool,
    device_relaxed: bool,
    no_look: bool,
}

/// The host's memory and the device's ring, empty.
fn ring(weak: Weak) -> (Side, Side, RingTable) {
    let words = (0..WORDS).map(|_| AtomicU64::new(0)).collect();
    let host = Side {
        words: Arc::new(words),
        no_fence: weak.host_no_fence,
        relaxed: false,
    };
    let device = Side {
        no_fence: weak.device_no_fence,
        relaxed: weak.device_relaxed,
        ..host.clone()
    };
    let spec = MapSpec {
        kind: MapKind::Ringbuf,
        key_size: 0,
        value_size: 0,
        max_entries: SIZE as u32,
        cpu_slots: 0,
        seed: 0,
        name: [0; 16],
        map_extra: 0,
        host_memory: 0,
        vector: VECTOR,
    };
    let shape = ValueShape {
        size: 0,
        slot_bytes: 0,
        slots: 0,
        wire: 0,
        stored: 0,
    };
    (host, device, RingTable::new(&spec, shape))
}

fn breaks(litmus: impl Fn() + Sync + Send + 'static) -> bool {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let outcome = catch_unwind(AssertUnwindSafe(|| loom::model(litmus)));
    std::panic::set_hook(hook);
    outcome.is_err()
}

/// B1: whoever sees the producer position sees the header and the data of what it covers.
fn record(weak: Weak) {
    let (host, mut memory, mut ring) = ring(weak);
    let device = thread::spawn(move || {
        let done = ring.output(&7u64.to_le_bytes(), 0, &mut memory);
        assert_eq!(done.status, Status::Success);
    });
    if host.load(PRODUCER_POSITION, Ordering::Acquire) == RECORD {
        let header = host.load(DATA, Ordering::Acquire);
        assert_eq!(header, header_word(0, SIZE, 8), "B1: the header");
        let data = host.load(DATA + HEADER_BYTES, Ordering::Relaxed);
        assert_eq!(data, 7, "B1: the data");
    }
    device.join().unwrap();
}

/// B3: a consumer that has taken the first record sleeps, and the device writes a second one.
fn caught_up(weak: Weak) {
    let (host, mut memory, mut ring) = ring(weak);
    ring.output(&1u64.to_le_bytes(), 0, &mut memory);
    let device = thread::spawn(move || {
        let done = ring.output(&2u64.to_le_bytes(), 0, &mut memory);
        assert_eq!(done.status, Status::Success);
        done.interrupt == Some(VECTOR)
    });
    host.store(CONSUMER_POSITION, RECORD, Ordering::Release);
    fence::full_fence();
    let asleep = weak.no_look || host.load(PRODUCER_POSITION, Ordering::Acquire) == RECORD;
    let interrupted = device.join().unwrap();
    assert!(
        !asleep || interrupted,
        "asleep with a record and no interrupt"
    );
}

/// All in one test: what loom finds shows as panics, whose hook is the process's.
#[test]
fn b1_a_record_is_seen_whole_and_that_needs_the_releases() {
    loom::model(|| record(Weak::default()));
    assert!(breaks(|| record(Weak {
        device_relaxed: true,
        ..Weak::default()
    })));
}

#[test]
fn b3_no_interrupt_is_lost() {
    loom::model(|| caught_up(Weak::default()));
}

#[test]
fn b3_needs_both_fences_and_the_second_look() {
    let weak = Weak::default();
    for weak in [
        Weak {
            host_no_fence: true,
            ..weak
        },
        Weak {
            device_no_fence: true,
            ..weak
        },
        Weak {
            no_look: true,
            ..weak
        },
    ] {
        assert!(breaks(move || caught_up(weak)));
    }
}
