//! A host by hand: rings in DMA buffers, registers by number, no driver.
use offmap_abi::admin::{IdentifyBody, IdentifyData, MapCreateBody, MapCreated, QueueCreateBody};
use offmap_abi::notify::{
    DOORBELL_CQ_HEAD, DOORBELL_SQ_TAIL, DOORBELL_STRIDE, EventWord, NOTIFY_CQ_EVENT,
    NOTIFY_CQ_HEAD, NOTIFY_SQ_EVENT, NOTIFY_SQ_TAIL, cq_doorbell, sq_doorbell,
};
use offmap_abi::regs::{self, DeviceStatus, NO_VECTOR};
use offmap_abi::submission::{ElementBody, SubmissionFlags, phase_of};
use offmap_abi::{
    AdminOpcode, Completion, IoOpcode, MapHandle, QueueId, RequestId, Status, Submission,
};
use offmap_device_io::{BarMapping, BarOffset, DmaBuffer, DmaPlacement, Function, Interrupt, Iova};
use offmap_emulator::{DeviceConfig, Inline, Threaded};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::time::{Duration, Instant};

pub(crate) const BAR: u8 = regs::BAR_REGISTERS;
/// Longest wait for anything; only a lost wake-up or a hang comes near it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A small device, so that limits are near.
pub(crate) fn small() -> DeviceConfig {
    let mut config = DeviceConfig::default();
    config.firmware.memory_bytes = 8 << 20;
    config.queue_pairs = 4;
    config.queue_depth_max = 256;
    config.vectors = 5;
    config
}

pub(crate) fn inline() -> Arc<Inline> {
    Inline::new(small()).unwrap()
}

pub(crate) fn threaded() -> Arc<Threaded> {
    Threaded::spawn(DeviceConfig {
        polls_before_park: 100,
        ..small()
    })
    .unwrap()
}

pub(crate) fn buffer(len: usize) -> DmaBuffer {
    DmaBuffer::new(len, DmaPlacement::default()).unwrap()
}

/// A host with one function.
pub(crate) struct Host<F> {
    pub(crate) f: Arc<F>,
    next_iova: AtomicU64,
}

/// A DMA buffer and where it is mapped.
pub(crate) struct Mapped {
    pub(crate) memory: DmaBuffer,
    pub(crate) iova: u64,
}

impl<F: Function> Host<F> {
    pub(crate) fn new(f: Arc<F>) -> Self {
        Self {
            f,
            next_iova: AtomicU64::new(0x10_0000),
        }
    }

    pub(crate) fn write32(&self, offset: u64, value: u32) {
        self.f.write32(BAR, BarOffset(offset), value).unwrap();
    }

    pub(crate) fn write64(&self, offset: u64, value: u64) {
        self.f.write64(BAR, BarOffset(offset), value).unwrap();
    }

    pub(crate) fn read32(&self, offset: u64) -> u32 {
        self.f.read32(BAR, BarOffset(offset)).unwrap()
    }

    pub(crate) fn read64(&self, offset: u64) -> u64 {
        self.f.read64(BAR, BarOffset(offset)).unwrap()
    }

    pub(crate) fn config16(&self, offset: u16) -> u16 {
        let mut b = [0; 2];
        self.f.config_read(offset, &mut b).unwrap();
        u16::from_le_bytes(b)
    }

    pub(crate) fn status(&self) -> DeviceStatus {
        DeviceStatus::from_bits_retain(self.read32(regs::STATUS))
    }

    pub(crate) fn command(&self, bits: u16) {
        self.f.config_write(4, &bits.to_le_bytes()).unwrap();
    }

    pub(crate) fn map(&self, len: usize) -> Mapped {
        let memory = buffer(len);
        let step = memory.len() as u64 + 4096;
        let iova = self.next_iova.fetch_add(step, Ordering::Relaxed);
        self.f.dma_map(&memory, Iova(iova)).unwrap();
        Mapped { memory, iova }
    }

    /// Waits until `done`, letting the device run.
    pub(crate) fn until(&self, what: &str, mut done: impl FnMut() -> bool) {
        let start = Instant::now();
        while !done() {
            assert!(start.elapsed() < PATIENCE, "gave up waiting for {what}");
            self.f.progress();
            std::thread::yield_now();
        }
    }

    /// Enables the device with an admin queue of `depth`.
    pub(crate) fn bring_up(&self, depth: u32, vector: u32) -> Queue {
        self.command(0x6);
        let q = self.queue(QueueId::ADMIN, depth, false);
        self.write64(regs::ADMIN_SQ, q.sq.iova);
        self.write64(regs::ADMIN_CQ, q.cq.iova);
        self.write32(regs::ADMIN_DEPTH, depth);
        self.write32(regs::ADMIN_VECTOR, vector);
        self.write32(regs::CONTROL, 1);
        self.until("READY", || {
            assert!(!self.status().contains(DeviceStatus::FATAL));
            self.status().contains(DeviceStatus::READY)
        });
        q
    }

    /// The host's side of a queue, not yet known to the device.
    pub(crate) fn queue(&self, id: QueueId, depth: u32, notify: bool) -> Queue {
        Queue {
            id,
            depth,
            sq: self.map(depth as usize * 64),
            cq: self.map(depth as usize * 64),
            notify: notify.then(|| self.map(4096)),
            doorbells: None,
            sent: 0,
            taken: 0,
        }
    }

    pub(crate) fn create_body(q: &Queue, vector: u32) -> QueueCreateBody {
        QueueCreateBody {
            queue: q.id.0.into(),
            reserved: 0.into(),
            depth: q.depth.into(),
            vector: vector.into(),
            coalesce_count: 0.into(),
            coalesce_us: 0.into(),
            sq: q.sq.iova.into(),
            cq: q.cq.iova.into(),
            notify: q.notify.as_ref().map_or(0, |n| n.iova).into(),
            reserved3: 0.into(),
        }
    }

    pub(crate) fn create_queue(
        &self,
        admin: &mut Queue,
        id: u16,
        depth: u32,
        vector: u32,
        notify: bool,
    ) -> Queue {
        let q = self.queue(QueueId(id), depth, notify);
        let body = Self::create_body(&q, vector);
        let c = self.run(
            admin,
            Submission::new(AdminOpcode::QueueCreate.0, RequestId(7), &body),
        );
        assert_eq!(c.status(), Status::Success);
        q
    }

    /// Submits one command and waits for its completion.
    pub(crate) fn run(&self, q: &mut Queue, s: Submission) -> Completion {
        q.push(&s);
        q.publish(&*self.f);
        let c = self.take(q);
        assert_eq!(c.request(), s.request());
        c
    }

    /// Waits for the next completion.
    pub(crate) fn take(&self, q: &mut Queue) -> Completion {
        let mut got = None;
        self.until("a completion", || {
            got = q.poll();
            got.is_some()
        });
        q.publish_head(&*self.f);
        got.unwrap()
    }

    /// The completion that is there already.
    pub(crate) fn take_now(&self, q: &mut Queue) -> Completion {
        let completion = q.poll().expect("a completion");
        q.publish_head(&*self.f);
        completion
    }

    pub(crate) fn identify(&self, admin: &mut Queue) -> IdentifyData {
        let page = self.map(4096);
        let body = IdentifyBody {
            iova: page.iova.into(),
            len: 128.into(),
            reserved: [0; 36],
        };
        let c = self.run(
            admin,
            Submission::new(AdminOpcode::Identify.0, RequestId(1), &body),
        );
        assert_eq!(c.status(), Status::Success);
        let mut bytes = [0; 128];
        page.memory.read(0, &mut bytes);
        self.f.dma_unmap(Iova(page.iova), 4096).unwrap();
        zerocopy::transmute!(bytes)
    }

    pub(crate) fn create_map(
        &self,
        admin: &mut Queue,
        map_type: u32,
        key: u32,
        value: u32,
        entries: u32,
    ) -> Result<MapHandle, Status> {
        let body = MapCreateBody {
            map_type: map_type.into(),
            key_size: key.into(),
            value_size: value.into(),
            max_entries: entries.into(),
            cpu_slots: 0.into(),
            flags: 0.into(),
            seed: 42.into(),
            attr: 0.into(),
            attr_len: 0.into(),
            reserved: 0.into(),
        };
        let c = self.run(
            admin,
            Submission::new(AdminOpcode::MapCreate.0, RequestId(9), &body),
        );
        if c.status().is_success() {
            Ok(MapHandle(c.payload_as::<MapCreated>().map.get()))
        } else {
            Err(c.status())
        }
    }
}

/// The host's side of a queue pair.
pub(crate) struct Queue {
    pub(crate) id: QueueId,
    pub(crate) depth: u32,
    pub(crate) sq: Mapped,
    pub(crate) cq: Mapped,
    pub(crate) notify: Option<Mapped>,
    /// Doorbells by the mapped page instead of trapped registers.
    pub(crate) doorbells: Option<BarMapping>,
    pub(crate) sent: u32,
    pub(crate) taken: u32,
}

impl Queue {
    /// Stores an entry, body first.
    pub(crate) fn push(&mut self, s: &Submission) {
        assert!(self.sent.wrapping_sub(self.taken) < self.depth);
        let phase = (self.sent / self.depth).is_multiple_of(2);
        let at = (self.sent % self.depth) as usize * 64;
        let words = s.to_words(phase);
        for (i, w) in words.iter().enumerate().skip(1) {
            self.sq.memory.store_u64(at + i * 8, *w, Ordering::Relaxed);
        }
        self.sq.memory.store_u64(at, words[0], Ordering::Release);
        self.sent = self.sent.wrapping_add(1);
    }

    /// Publishes the tail by the queue's way; whether a KICK was needed.
    pub(crate) fn publish<F: Function>(&self, f: &F) -> bool {
        if let Some(n) = &self.notify {
            n.memory
                .store_u64(NOTIFY_SQ_TAIL, self.sent.into(), Ordering::Release);
            self.kick_if_asked(f)
        } else if let Some(page) = &self.doorbells {
            page.store_u64(self.doorbell(DOORBELL_SQ_TAIL), self.sent.into());
            false
        } else {
            f.write64(BAR, BarOffset(sq_doorbell(self.id)), self.sent.into())
                .unwrap();
            true
        }
    }

    /// Publishes the head by the queue's way; whether a KICK was needed.
    pub(crate) fn publish_head<F: Function>(&self, f: &F) -> bool {
        if let Some(n) = &self.notify {
            n.memory
                .store_u64(NOTIFY_CQ_HEAD, self.taken.into(), Ordering::Release);
            return self.kick_if_asked(f);
        }
        if let Some(page) = &self.doorbells {
            page.store_u64(self.doorbell(DOORBELL_CQ_HEAD), self.taken.into());
        } else {
            f.write64(BAR, BarOffset(cq_doorbell(self.id)), self.taken.into())
                .unwrap();
        }
        false
    }

    /// Rule N1, after a tail or a head was stored; whether a KICK was written.
    fn kick_if_asked<F: Function>(&self, f: &F) -> bool {
        let n = self.notify.as_ref().unwrap();
        fence(Ordering::SeqCst);
        let event = n.memory.load_u64(NOTIFY_SQ_EVENT, Ordering::Acquire);
        let kick = EventWord::from_word(event).wants(self.sent);
        if kick {
            let written = f.write32(BAR, BarOffset(regs::KICK), self.id.0.into());
            written.unwrap();
        }
        kick
    }

    /// Asks for an interrupt once more than `index` completions are posted.
    pub(crate) fn arm_interrupt(&self, index: u32) {
        let n = self.notify.as_ref().unwrap();
        let word = EventWord::armed_at(index).to_word();
        n.memory.store_u64(NOTIFY_CQ_EVENT, word, Ordering::Release);
        fence(Ordering::SeqCst);
    }

    /// Wants no interrupt any more.
    pub(crate) fn disarm_interrupt(&self) {
        let n = self.notify.as_ref().unwrap();
        let word = EventWord::DISARMED.to_word();
        n.memory.store_u64(NOTIFY_CQ_EVENT, word, Ordering::Release);
    }

    /// The next completion, if it is there.
    pub(crate) fn poll(&mut self) -> Option<Completion> {
        let phase = (self.taken / self.depth).is_multiple_of(2);
        let at = (self.taken % self.depth) as usize * 64;
        let word0 = self.cq.memory.load_u64(at, Ordering::Acquire);
        if phase_of(word0) != phase {
            return None;
        }
        let mut words = [word0; 8];
        for (i, w) in words.iter_mut().enumerate().skip(1) {
            *w = self.cq.memory.load_u64(at + i * 8, Ordering::Relaxed);
        }
        self.taken = self.taken.wrapping_add(1);
        Some(Completion::from_words(words))
    }

    fn doorbell(&self, which: u64) -> usize {
        (u64::from(self.id.0) * DOORBELL_STRIDE + which) as usize
    }
}

pub(crate) fn element(key: &[u8], value: &[u8], value_len: u32) -> ElementBody {
    let mut b = ElementBody {
        map_flags: 0.into(),
        key_len: (key.len() as u32).into(),
        value_len: value_len.into(),
        reserved: 0.into(),
        key: [0; 16],
        value: [0; 16],
    };
    b.key[..key.len()].copy_from_slice(key);
    b.value[..value.len()].copy_from_slice(value);
    b
}

pub(crate) fn update(map: MapHandle, request: u64, key: &[u8], value: &[u8]) -> Submission {
    let body = element(key, value, value.len() as u32);
    Submission::new(IoOpcode::Update.0, RequestId(request), &body)
        .with_map(map)
        .with_flags(SubmissionFlags::KEY_INLINE | SubmissionFlags::VALUE_INLINE)
}

pub(crate) fn lookup(map: MapHandle, request: u64, key: &[u8], value_len: u32) -> Submission {
    let body = element(key, &[], value_len);
    Submission::new(IoOpcode::Lookup.0, RequestId(request), &body)
        .with_map(map)
        .with_flags(SubmissionFlags::KEY_INLINE | SubmissionFlags::VALUE_INLINE)
}

pub(crate) fn nop(request: u64) -> Submission {
    Submission::new(
        IoOpcode::Nop.0,
        RequestId(request),
        &offmap_abi::admin::EmptyBody::ZERO,
    )
}

pub(crate) fn enable(f: &impl Function, vector: u32) -> Interrupt {
    f.enable_vector(vector).unwrap()
}

pub(crate) const NONE: u32 = NO_VECTOR;

/// A fresh seed, or the one that `OFFMAP_SEED` names in hexadecimal; printed, so that a
/// failure can be replayed.
pub(crate) fn seed() -> u64 {
    let given = std::env::var("OFFMAP_SEED")
        .ok()
        .and_then(|s| u64::from_str_radix(s.trim_start_matches("0x"), 16).ok());
    // The standard library's only source of random numbers.
    let fresh = || std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0);
    let seed = given.unwrap_or_else(fresh);
    println!("OFFMAP_SEED={seed:#x}");
    seed
}
