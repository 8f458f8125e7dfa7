//! What one command costs on the inline device, with a host that does no more than the ABI
//! asks of it: entry, tail, fence, event word, progress, completion, head.
//!
//! Prints the median block in nanoseconds for a NOP and for a lookup of an inline key, and what it adds to a lookup
//! that modelled time is charged: the median of the ratios of blocks that take turns.

use offmap_abi::admin::{EmptyBody, MapCreateBody, MapCreated, QueueCreateBody};
use offmap_abi::notify::{
    EventWord, NOTIFY_CQ_HEAD, NOTIFY_SQ_EVENT, NOTIFY_SQ_TAIL, cq_doorbell, sq_doorbell,
};
use offmap_abi::submission::{ElementBody, SubmissionFlags, phase_of};
use offmap_abi::{
    AdminOpcode, Completion, IoOpcode, MapHandle, QueueId, RequestId, Submission, regs,
};
use offmap_device_io::{BarOffset, DmaBuffer, DmaPlacement, Function, Iova};
use offmap_emulator::{DeviceConfig, Inline};
use std::error::Error;
use std::hint::black_box;
use std::sync::atomic::{Ordering, fence};
use std::time::Instant;

#[path = "../tests/support/timing_profile.rs"]
mod timing_profile;

const DEPTH: u32 = 64;
const ENTRIES: u32 = 1024;
const BLOCK: u32 = 4096;
const BLOCKS: usize = 400;

/// A queue pair of the host, one command in flight at a time.
struct Rings<'f> {
    f: &'f Inline,
    id: QueueId,
    sq: DmaBuffer,
    cq: DmaBuffer,
    notify: Option<DmaBuffer>,
    sent: u32,
}

impl<'f> Rings<'f> {
    /// Rings mapped from `iova` on, 16 KiB apart.
    fn new(f: &'f Inline, id: u16, iova: u64, notify: bool) -> Result<Self, Box<dyn Error>> {
        let map = |len, at| -> Result<DmaBuffer, Box<dyn Error>> {
            let buffer = DmaBuffer::new(len, DmaPlacement::default())?;
            f.dma_map(&buffer, Iova(iova + at))?;
            Ok(buffer)
        };
        Ok(Self {
            f,
            id: QueueId(id),
            sq: map(DEPTH as usize * 64, 0)?,
            cq: map(DEPTH as usize * 64, 0x4000)?,
            notify: notify.then(|| map(4096, 0x8000)).transpose()?,
            sent: 0,
        })
    }

    #[inline]
    fn run(&mut self, s: &Submission) -> Completion {
        let phase = self.sent & DEPTH == 0;
        let at = (self.sent & (DEPTH - 1)) as usize * 64;
        let words = s.to_words(phase);
        for (i, word) in words.iter().enumerate().skip(1) {
            self.sq.store_u64(at + i * 8, *word, Ordering::Relaxed);
        }
        self.sq.store_u64(at, words[0], Ordering::Release);
        self.sent = self.sent.wrapping_add(1);
        let count = u64::from(self.sent);
        let doorbell = |at, value| self.f.write64(0, BarOffset(at), value).unwrap();
        match &self.notify {
            Some(n) => {
                n.store_u64(NOTIFY_SQ_TAIL, count, Ordering::Release);
                fence(Ordering::SeqCst);
                let event = EventWord::from_word(n.load_u64(NOTIFY_SQ_EVENT, Ordering::Acquire));
                assert!(!event.wants(self.sent), "an inline device never parks");
            }
            None => doorbell(sq_doorbell(self.id), count),
        }
        let word0 = loop {
            let word0 = self.cq.load_u64(at, Ordering::Acquire);
            if phase_of(word0) == phase {
                break word0;
            }
            self.f.progress();
        };
        let mut words = [word0; 8];
        for (i, w) in words.iter_mut().enumerate().skip(1) {
            *w = self.cq.load_u64(at + i * 8, Ordering::Relaxed);
        }
        match &self.notify {
            Some(n) => n.store_u64(NOTIFY_CQ_HEAD, count, Ordering::Release),
            None => doorbell(cq_doorbell(self.id), count),
        }
        Completion::from_words(words)
    }
}

fn median(mut measure: impl FnMut()) -> f64 {
    let mut blocks: Vec<f64> = (0..BLOCKS)
        .map(|_| {
            let start = Instant::now();
            measure();
            start.elapsed().as_nanos() as f64 / f64::from(BLOCK)
        })
        .collect();
    blocks.sort_by(f64::total_cmp);
    blocks[BLOCKS / 2]
}

fn main() -> Result<(), Box<dyn Error>> {
    let f = Inline::new(DeviceConfig::default())?;
    f.config_write(4, &6u16.to_le_bytes())?;
    let mut admin = Rings::new(&f, 0, 0x10_0000, false)?;
    f.write64(0, BarOffset(regs::ADMIN_SQ), 0x10_0000)?;
    f.write64(0, BarOffset(regs::ADMIN_CQ), 0x10_4000)?;
    f.write32(0, BarOffset(regs::ADMIN_DEPTH), DEPTH)?;
    f.write32(0, BarOffset(regs::CONTROL), 1)?;
    let mut q = Rings::new(&f, 1, 0x20_0000, true)?;
    let create = QueueCreateBody {
        queue: 1.into(),
        reserved: 0.into(),
        depth: DEPTH.into(),
        vector: regs::NO_VECTOR.into(),
        coalesce_count: 0.into(),
        coalesce_us: 0.into(),
        sq: 0x20_0000.into(),
        cq: 0x20_4000.into(),
        notify: 0x20_8000.into(),
        reserved3: 0.into(),
    };
    let done = admin.run(&Submission::new(
        AdminOpcode::QueueCreate.0,
        RequestId(1),
        &create,
    ));
    assert!(done.status().is_success(), "{:?}", done.status());
    let map = MapCreateBody {
        map_type: 1.into(),
        key_size: 8.into(),
        value_size: 16.into(),
        max_entries: ENTRIES.into(),
        cpu_slots: 0.into(),
        flags: 0.into(),
        seed: 1.into(),
        attr: 0.into(),
        attr_len: 0.into(),
        reserved: 0.into(),
    };
    let done = admin.run(&Submission::new(
        AdminOpcode::MapCreate.0,
        RequestId(2),
        &map,
    ));
    assert!(done.status().is_success(), "{:?}", done.status());
    let map = MapHandle(done.payload_as::<MapCreated>().map.get());
    let element = |opcode: IoOpcode, i: u32| {
        let mut body = ElementBody {
            map_flags: 0.into(),
            key_len: 8.into(),
            value_len: 16.into(),
            reserved: 0.into(),
            key: [0; 16],
            value: [0; 16],
        };
        body.key[..4].copy_from_slice(&i.to_le_bytes());
        Submission::new(opcode.0, RequestId(i.into()), &body)
            .with_map(map)
            .with_flags(SubmissionFlags::KEY_INLINE | SubmissionFlags::VALUE_INLINE)
    };
    for i in 0..ENTRIES {
        assert!(q.run(&element(IoOpcode::Update, i)).status().is_success());
    }
    let nop = Submission::new(IoOpcode::Nop.0, RequestId(3), &EmptyBody::ZERO);
    let nops = median(|| {
        for _ in 0..BLOCK {
            black_box(q.run(black_box(&nop)));
        }
    });
    let lookups = median(|| {
        for i in 0..BLOCK {
            let done = q.run(black_box(&element(IoOpcode::Lookup, i % ENTRIES)));
            assert!(done.status().is_success());
        }
    });
    println!("nop {nops:.1} ns, lookup {lookups:.1} ns");
    let profile = timing_profile::timing_profile();
    for (what, opcode) in [("lookup", IoOpcode::Lookup), ("update", IoOpcode::Update)] {
        let mut ratios = Vec::new();
        let mut took = [Vec::new(), Vec::new()];
        let mut block = |timed: bool| -> Result<f64, Box<dyn Error>> {
            f.set_timing(timed.then_some(&profile))??;
            // The meter's tags find their way into the caches first, as they are in a longer run.
            for round in 0..2 {
                let start = Instant::now();
                for i in 0..BLOCK {
                    let done = q.run(black_box(&element(opcode, i % ENTRIES)));
                    assert!(done.status().is_success());
                }
                if round == 1 {
                    return Ok(start.elapsed().as_nanos() as f64 / f64::from(BLOCK));
                }
            }
            Ok(0.0)
        };
        for round in 0..BLOCKS {
            let timed_first = round % 2 == 0;
            let first = block(timed_first)?;
            let second = block(!timed_first)?;
            let (on, off) = if timed_first {
                (first, second)
            } else {
                (second, first)
            };
            ratios.push(on / off);
            took[0].push(on);
            took[1].push(off);
        }
        let middle = |values: &mut Vec<f64>| {
            values.sort_by(f64::total_cmp);
            values[values.len() / 2]
        };
        let ratio = middle(&mut ratios);
        let verdict = if ratio <= 1.2 { "PASS" } else { "SHORT" };
        println!(
            "{what} with time charged: {ratio:.3} times one without (at most 1.2: {verdict}; {:.1} ns to {:.1} ns)",
            middle(&mut took[0]),
            middle(&mut took[1]),
        );
    }
    Ok(())
}
