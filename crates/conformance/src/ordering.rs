//! The ordering rules of `docs/abi.md` §10, as far as a host sees them from outside. A rule that
//! needs a certain interleaving is tried often; `tests/tests/litmus_rings.rs` has them all.

use super::Bench;
use super::elements::Table;
use super::host::{Host, Notify, QueueOptions, next_request, wait_for};
use super::lifecycle::nop;
use offmap_abi::regs;
use offmap_abi::submission::{BatchBody, ElementBody, IovaRef};
use offmap_abi::{IoOpcode, MapHandle, QueueId, Status, Submission};
use offmap_device_io::{DmaRegion, Function, Iova};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use zerocopy::FromZeros;
use zerocopy::little_endian::{U32, U64};

const HASH: u32 = 1;
/// What a buffer holds that the device must not write any more.
const PATTERN: u8 = 0x5a;

/// Lets the device do whatever it still wants to do.
fn let_it_run<F: Function>(function: &F) {
    let started = Instant::now();
    while started.elapsed() < Duration::from_millis(3) {
        for _ in 0..64 {
            function.progress();
        }
    }
}

/// S1, S3, S4, C1: each command works on the operands that were stored before its entry, and each
/// result is there with its completion, in every pass over the ring and whether a tail was
/// published or not.
pub fn operands_and_results_are_those_of_their_entry<F: Function>(bench: &Bench<F>) {
    const DEPTH: usize = 32;
    const AREA: usize = 128;
    let host = bench.host();
    let mut queue = bench.queue(&host, 1, DEPTH as u32);
    let map = host.map(&Host::<F>::map_body(HASH, 24, 64, DEPTH as u32));
    let memory = host.dma(DEPTH * AREA);
    let entry = |opcode: IoOpcode, i: usize| {
        let mut body = ElementBody::new_zeroed();
        body.key_len = U32::new(24);
        body.value_len = U32::new(64);
        body.key = IovaRef::field(memory.iova(i * AREA).0);
        body.value = IovaRef::field(memory.iova(i * AREA + 32).0);
        Submission::new(opcode.0, next_request(), &body).with_map(map)
    };
    for round in 0..200_u64 {
        for opcode in [IoOpcode::Update, IoOpcode::Lookup] {
            let looks_up = opcode == IoOpcode::Lookup;
            let mut sent = Vec::new();
            for i in 0..DEPTH {
                let value = [if looks_up {
                    0
                } else {
                    (round ^ i as u64) as u8
                }; 64];
                memory.buffer().write(i * AREA, &[i as u8; 24]);
                memory.buffer().write(i * AREA + 32, &value);
                let entry = entry(opcode, i);
                sent.push(entry.request());
                queue.push(entry);
                if round % 3 == 0 {
                    queue.publish();
                }
            }
            queue.publish();
            for _ in 0..DEPTH {
                let done = queue.wait();
                assert_eq!(done.status(), Status::Success);
                let i = sent.iter().position(|id| *id == done.request());
                let i = i.expect("a command of this round");
                let mut value = [0; 64];
                memory.buffer().read(i * AREA + 32, &mut value);
                assert_eq!(value, [(round ^ i as u64) as u8; 64], "round {round}, {i}");
            }
        }
    }
}

/// C2: whoever knows of a completion finds the effect through another queue.
pub fn an_effect_is_there_before_its_completion<F: Function>(bench: &Bench<F>) {
    const LAST: u64 = 3000;
    let host = bench.host();
    let map = host.map(&Host::<F>::map_body(HASH, 8, 8, 4));
    let completed = AtomicU64::new(0);
    let mut first = bench.queue(&host, 1, 8);
    let mut second = bench.queue(&host, 2, 8);
    let mut table = Table::new(&host, &mut first, map, (8, 8), 1);
    assert_eq!(table.update(&[1; 8], &[0; 8], 0), Status::Success);
    std::thread::scope(|scope| {
        let (host, completed) = (&host, &completed);
        scope.spawn(move || {
            for n in 1..=LAST {
                let done = table.update(&[1; 8], &n.to_le_bytes(), 0);
                assert_eq!(done, Status::Success);
                completed.store(n, Ordering::Release);
            }
        });
        let mut table = Table::new(host, &mut second, map, (8, 8), 1);
        loop {
            let at_least = completed.load(Ordering::Acquire);
            let value = table.lookup(&[1; 8]).expect("the key is there");
            let value = u64::from_le_bytes(value.try_into().expect("8 bytes"));
            assert!(value >= at_least, "{value} after {at_least} was completed");
            if at_least == LAST {
                return;
            }
        }
    });
}

/// C3: completions that the host has not let go of stay, and no command begins whose completion
/// would have no room.
pub fn completions_are_kept_until_the_head_passes<F: Function>(bench: &Bench<F>) {
    const DEPTH: u32 = 8;
    let host = bench.host();
    let mut queue = bench.queue(&host, 1, DEPTH);
    let mut head = 0;
    for round in 0..20 {
        for _ in 0..DEPTH {
            queue.push(nop());
        }
        queue.publish();
        for _ in 0..DEPTH {
            wait_for(&**host.function(), "a completion", || queue.take());
        }
        // The host has seen them, and does not say so.
        for _ in 0..DEPTH {
            queue.push(nop());
        }
        queue.publish();
        let_it_run(&**host.function());
        assert_eq!(
            queue.take(),
            None,
            "round {round}: an entry was overwritten"
        );
        head += u64::from(DEPTH) / 2;
        queue.publish_head(head);
        for _ in 0..DEPTH / 2 {
            wait_for(&**host.function(), "a completion", || queue.take());
        }
        let_it_run(&**host.function());
        assert_eq!(
            queue.take(),
            None,
            "round {round}: more than there was room for"
        );
        head += u64::from(DEPTH) / 2;
        queue.publish_head(head);
        for _ in 0..DEPTH / 2 {
            wait_for(&**host.function(), "a completion", || queue.take());
        }
        head += u64::from(DEPTH);
        queue.publish_head(head);
    }
}

/// N3: a device that parked and that nobody kicks finds what is there by itself.
pub fn a_parked_device_looks_by_itself<F: Function>(bench: &Bench<F>) {
    let host = bench.host_with(|wanted| wanted.polls_before_park = Some(16));
    let mut queue = bench.queue(&host, 1, 4);
    for _ in 0..20 {
        std::thread::sleep(Duration::from_millis(3));
        // Neither a tail nor a KICK: the entry's phase is all there is.
        queue.push(nop());
        assert_eq!(queue.wait().status(), Status::Success);
    }
}

/// N4: a host that armed its queue and saw nothing is interrupted.
pub fn no_interrupt_is_lost<F: Function>(bench: &Bench<F>) {
    let host = bench.host();
    let irq = host.vector(0);
    let options = QueueOptions {
        notify: bench.notify,
        vector: 0,
    };
    let mut queue = host.queue(1, 8, options);
    let mut slept = 0;
    for n in 0..3000_u32 {
        queue.submit(nop());
        // The device is at it while this thread gets ready to sleep.
        for _ in 0..n % 200 {
            std::hint::spin_loop();
        }
        if queue.arm() {
            slept += 1;
            // One of an earlier completion may come late; the completion is what counts.
            wait_for(&**host.function(), "an interrupt", || {
                let rung = irq.take().expect("the interrupt can be read");
                (rung && !queue.arm()).then_some(())
            });
        }
        assert_eq!(queue.wait().status(), Status::Success);
        queue.disarm();
    }
    assert!(slept > 0, "the completion was always there at once");
}

/// A map of long values, and a batch that takes the device several steps.
struct Slow<F: Function> {
    map: MapHandle,
    memory: DmaRegion<F>,
}

impl<F: Function> Slow<F> {
    const COUNT: usize = 48;
    const VALUE: usize = 16 << 10;
    const VALUES_AT: usize = 4096;

    fn new(host: &Host<F>) -> Self {
        let body = Host::<F>::map_body(HASH, 4, Self::VALUE as u32, Self::COUNT as u32);
        host.need_features(regs::Features::BATCH);
        let map = host.map(&body);
        let memory = host.dma(Self::VALUES_AT + Self::COUNT * Self::VALUE);
        for i in 0..Self::COUNT {
            memory.buffer().write(i * 4, &(i as u32).to_le_bytes());
        }
        Self { map, memory }
    }

    fn batch(&self, opcode: IoOpcode) -> Submission {
        let mut body = BatchBody::new_zeroed();
        body.count = U32::new(Self::COUNT as u32);
        body.key_len = U32::new(4);
        body.value_len = U32::new(Self::VALUE as u32);
        body.keys = U64::new(self.memory.iova(0).0);
        body.values = U64::new(self.memory.iova(Self::VALUES_AT).0);
        body.statuses = U64::new(self.memory.iova(2048).0);
        Submission::new(opcode.0, next_request(), &body).with_map(self.map)
    }

    fn paint(&self) {
        let pattern = vec![PATTERN; Self::COUNT * Self::VALUE];
        self.memory.buffer().write(Self::VALUES_AT, &pattern);
    }

    fn is_painted(&self) -> bool {
        let mut bytes = vec![0; Self::COUNT * Self::VALUE];
        self.memory.buffer().read(Self::VALUES_AT, &mut bytes);
        bytes.iter().all(|b| *b == PATTERN)
    }
}

/// Rounds in which a batch is caught at different moments.
const ROUNDS: u64 = 12;

/// Begins a batch that writes to host memory, and gets somewhere with it.
fn begin<F: Function>(bench: &Bench<F>, host: &Host<F>, round: u64) -> (Slow<F>, super::Queue<F>) {
    let slow = Slow::new(host);
    let mut queue = bench.queue(host, 1, 8);
    queue.submit(slow.batch(IoOpcode::BatchUpdate));
    assert_eq!(queue.wait().status(), Status::Success);
    queue.submit(slow.batch(IoOpcode::BatchLookup));
    for _ in 0..round {
        host.function().progress();
    }
    std::thread::sleep(Duration::from_micros(round * 20));
    (slow, queue)
}

/// R1: when a reset is complete nothing is in flight, and nothing follows.
pub fn a_reset_ends_all_access<F: Function>(bench: &Bench<F>) {
    let mut host = bench.host();
    for round in 0..ROUNDS {
        let (slow, queue) = begin(bench, &host, round);
        let function = Arc::clone(host.function());
        if round % 2 == 0 {
            function.reset().expect("reset");
        } else {
            let control = offmap_device_io::BarOffset(regs::CONTROL);
            function.write32(0, control, 0).expect("CONTROL");
            wait_for(&*function, "not READY", || {
                let ready = host.status().contains(regs::DeviceStatus::READY);
                (!ready).then_some(())
            });
        }
        slow.paint();
        let_it_run(&*function);
        assert!(slow.is_painted(), "round {round}: written after a reset");
        host = host.reset();
        let_it_run(&*function);
        assert!(
            slow.is_painted(),
            "round {round}: written when enabled again"
        );
        drop(queue);
    }
}

/// R2, the device's part: after the completion of QUEUE_DELETE it touches nothing that a command
/// of the queue named.
pub fn a_deleted_queue_lets_go_of_its_buffers<F: Function>(bench: &Bench<F>) {
    let host = bench.host();
    for round in 0..ROUNDS {
        let (slow, queue) = begin(bench, &host, round);
        assert_eq!(host.queue_delete(QueueId(1)), Status::Success);
        slow.paint();
        let_it_run(&**host.function());
        assert!(slow.is_painted(), "round {round}");
        assert_eq!(host.free(slow.map), Status::Success);
        drop(queue);
    }
}

/// R3: when `dma_unmap` returns no access is in flight, and later ones fail.
pub fn an_unmap_ends_all_access<F: Function>(bench: &Bench<F>) {
    let host = bench.host();
    for round in 0..ROUNDS {
        let (slow, mut queue) = begin(bench, &host, round);
        let (iova, len) = (slow.memory.iova(0), slow.memory.buffer().len());
        let function = Arc::clone(host.function());
        function.dma_unmap(Iova(iova.0), len).expect("unmap");
        slow.paint();
        let done = queue.wait().status();
        let ends = [Status::Success, Status::DmaFault];
        assert!(ends.contains(&done), "round {round}: {done:?}");
        let_it_run(&*function);
        assert!(slow.is_painted(), "round {round}");
        // One that begins later has no chance.
        queue.submit(slow.batch(IoOpcode::BatchLookup));
        assert_eq!(queue.wait().status(), Status::DmaFault);
        function.dma_map(slow.memory.buffer(), iova).expect("map");
        assert_eq!(host.queue_delete(QueueId(1)), Status::Success);
        assert_eq!(host.free(slow.map), Status::Success);
    }
}

/// N1: a queue with a notify block needs no doorbell, one with doorbells no notify block; either
/// way a tail that is published late covers what was stored before (S2).
pub fn a_tail_covers_what_was_stored_before<F: Function>(bench: &Bench<F>) {
    let host = bench.host_with(|wanted| wanted.polls_before_park = Some(16));
    for notify in [Notify::Doorbells, Notify::Shadow] {
        let options = QueueOptions {
            notify,
            vector: regs::NO_VECTOR,
        };
        let mut queue = host.queue(1, 16, options);
        for round in 0..300_u32 {
            let count = 1 + round % 16;
            for _ in 0..count {
                queue.push(nop());
            }
            queue.publish();
            for _ in 0..count {
                assert_eq!(queue.wait().status(), Status::Success, "round {round}");
            }
        }
        assert_eq!(host.queue_delete(QueueId(1)), Status::Success);
    }
}
