//! Commands that take several steps: what goes on meanwhile, and how they are ended.

use crate::host::*;
use offmap_abi::admin::{AbortBody, QueueDeleteBody};
use offmap_abi::regs::{self, DeviceStatus};
use offmap_abi::submission::BatchBody;
use offmap_abi::{AdminOpcode, IoOpcode, MapHandle, RequestId, Status, Submission};
use offmap_device_io::{Function, Iova};
use offmap_emulator::{DeviceConfig, Inline, Threaded};
use std::sync::Arc;

const VALUE: usize = 1024;
const COUNT: usize = 4000;
/// Pieces that a dump of all takes at least: a step of the firmware is bounded by bytes.
const PIECES: usize = COUNT * VALUE / offmap_firmware_model::STEP_BYTES;

/// A device with an array of several megabytes, and host memory for all of it.
struct Rig<F> {
    host: Host<F>,
    admin: Queue,
    map: MapHandle,
    keys: Mapped,
    values: Mapped,
}

impl<F: Function> Rig<F> {
    fn new(f: Arc<F>) -> Self {
        let host = Host::new(f);
        let mut admin = host.bring_up(16, NONE);
        let map = host
            .create_map(&mut admin, 2, 4, VALUE as u32, COUNT as u32)
            .unwrap();
        let keys = host.map(COUNT * 4);
        let values = host.map(COUNT * VALUE);
        Self {
            host,
            admin,
            map,
            keys,
            values,
        }
    }

    /// The whole map in one command.
    fn dump(&self, request: u64) -> Submission {
        let body = BatchBody {
            map_flags: 0.into(),
            count: (COUNT as u32).into(),
            key_len: 4.into(),
            value_len: (VALUE as u32).into(),
            keys: self.keys.iova.into(),
            values: self.values.iova.into(),
            statuses: 0.into(),
            cursor: 0.into(),
        };
        Submission::new(IoOpcode::BatchDump.0, RequestId(request), &body).with_map(self.map)
    }

    fn abort(&mut self, queue: u16, request: u64) -> Status {
        let body = AbortBody {
            request: request.into(),
            queue: queue.into(),
            reserved: [0; 38],
        };
        let s = Submission::new(AdminOpcode::Abort.0, RequestId(900), &body);
        self.host.run(&mut self.admin, s).status()
    }

    fn delete(&mut self, queue: u16) -> Status {
        let body = QueueDeleteBody {
            queue: queue.into(),
            reserved: [0; 46],
        };
        let s = Submission::new(AdminOpcode::QueueDelete.0, RequestId(901), &body);
        self.host.run(&mut self.admin, s).status()
    }

    fn dump_all(&self, q: &mut Queue) {
        let c = self.host.run(q, self.dump(50));
        // All of the map fits exactly.
        assert!([Status::Success, Status::NotFound].contains(&c.status()));
        assert_eq!(c.count.get() as usize, COUNT);
    }

    /// Marks the arrays; a later write of the device shows.
    fn mark(&self) {
        self.values.memory.write(0, &vec![0xee; COUNT * VALUE]);
    }

    fn is_marked(&self) -> bool {
        let mut seen = vec![0; COUNT * VALUE];
        self.values.memory.read(0, &mut seen);
        seen.iter().all(|b| *b == 0xee)
    }
}

fn config() -> DeviceConfig {
    let mut config = small();
    config.firmware.memory_bytes = 16 << 20;
    config.firmware.batch = config.firmware.batch.max(COUNT as u32);
    config
}

fn rig() -> Rig<Inline> {
    Rig::new(Inline::new(config()).unwrap())
}

#[test]
fn a_long_command_leaves_the_other_queues_their_turn() {
    let mut rig = rig();
    let mut long = rig.host.create_queue(&mut rig.admin, 1, 8, NONE, true);
    let mut short = rig.host.create_queue(&mut rig.admin, 2, 8, NONE, true);
    long.push(&rig.dump(1));
    long.push(&nop(2));
    long.publish(&*rig.host.f);
    let mut between = 0;
    let mut steps = 0;
    let dumped = loop {
        if let Some(c) = long.poll() {
            break c;
        }
        short.push(&nop(between));
        short.publish(&*rig.host.f);
        let mut waited = 0;
        while short.poll().is_none() {
            rig.host.f.progress();
            waited += 1;
            assert!(waited <= 10, "the short queue starves");
        }
        short.publish_head(&*rig.host.f);
        steps += waited;
        between += 1;
    };
    assert_eq!((dumped.request().0, dumped.count.get()), (1, COUNT as u32));
    assert!(steps >= PIECES / 2, "{PIECES} pieces in {steps} steps");
    assert!(between > 1, "nothing ran between the pieces");
    assert_eq!(rig.host.take(&mut long).request().0, 2, "in order");
}

#[test]
fn register_reads_get_through_between_the_pieces() {
    let mut rig = Rig::new(
        Threaded::spawn(DeviceConfig {
            polls_before_park: 1 << 20,
            ..config()
        })
        .unwrap(),
    );
    let mut queues: Vec<_> = (1..=4)
        .map(|id| rig.host.create_queue(&mut rig.admin, id, 8, NONE, true))
        .collect();
    let mut most = 0;
    for round in 0..20 {
        for q in &mut queues {
            q.push(&rig.dump(round));
            q.publish(&*rig.host.f);
        }
        let mut reads = 0;
        let mut left = queues.len();
        while left > 0 {
            assert_eq!(rig.host.read64(regs::MAGIC), regs::MAGIC_VALUE);
            reads += 1;
            for q in &mut queues {
                left -= usize::from(q.poll().is_some());
            }
        }
        for q in &queues {
            q.publish_head(&*rig.host.f);
        }
        most = most.max(reads);
    }
    // Were commands run to their end, four dumps would have four gaps.
    assert!(most > 8, "{most} reads while four dumps ran");
}

#[test]
fn abort_ends_what_is_under_way() {
    let mut rig = rig();
    let mut q = rig.host.create_queue(&mut rig.admin, 1, 8, NONE, true);
    q.push(&rig.dump(1));
    q.push(&nop(2));
    rig.host.f.progress();
    assert!(q.poll().is_none(), "it takes more than a step");
    assert_eq!(rig.abort(1, 1), Status::Success);
    rig.mark();
    let c = rig.host.take(&mut q);
    assert_eq!((c.request().0, c.status()), (1, Status::Interrupted));
    assert_eq!(rig.abort(1, 1), Status::NotFound);
    let c = rig.host.take(&mut q);
    assert_eq!((c.request().0, c.status()), (2, Status::Success));
    for _ in 0..100 {
        rig.host.f.progress();
    }
    assert!(rig.is_marked(), "the arrays are the host's again");
    rig.dump_all(&mut q);
    assert!(!rig.is_marked());
}

#[test]
fn deleting_a_queue_ends_what_is_under_way_and_touches_nothing_afterwards() {
    let mut rig = rig();
    for vector in [NONE, 1] {
        let mut q = rig.host.create_queue(&mut rig.admin, 1, 8, vector, false);
        let irq = enable(&*rig.host.f, 1);
        q.push(&rig.dump(1));
        q.push(&nop(2));
        q.push(&nop(3));
        q.publish(&*rig.host.f);
        rig.host.f.progress();
        assert_eq!(rig.delete(1), Status::Success);
        rig.mark();
        for (request, status) in [
            (1, Status::Interrupted),
            (2, Status::Aborted),
            (3, Status::Aborted),
        ] {
            let c = q.poll().unwrap();
            assert_eq!((c.request().0, c.status()), (request, status));
        }
        assert_eq!(irq.take().unwrap(), vector != NONE);
        for _ in 0..100 {
            rig.host.f.progress();
        }
        assert!(q.poll().is_none());
        assert!(rig.is_marked());
        // The id's place in the firmware is free again.
        let mut q = rig.host.create_queue(&mut rig.admin, 1, 8, NONE, true);
        rig.dump_all(&mut q);
        assert_eq!(rig.delete(1), Status::Success);
    }
}

#[test]
fn a_queue_that_stops_gives_up_what_is_under_way() {
    let mut rig = rig();
    let mut q = rig.host.create_queue(&mut rig.admin, 1, 8, NONE, true);
    q.push(&rig.dump(1));
    rig.host.f.progress();
    rig.host.f.dma_unmap(Iova(q.cq.iova), 4096).unwrap();
    assert_eq!(rig.abort(1, 1), Status::QueueStopped, "no place to say so");
    rig.mark();
    for _ in 0..100 {
        rig.host.f.progress();
    }
    assert!(rig.is_marked());
    assert_eq!(rig.host.status(), DeviceStatus::READY);
    assert_eq!(rig.delete(1), Status::Success);
    let mut q = rig.host.create_queue(&mut rig.admin, 1, 8, NONE, true);
    rig.dump_all(&mut q);
}

#[test]
fn disable_and_reset_end_what_is_under_way() {
    let mut rig = rig();
    for reset in [false, true] {
        let mut q = rig.host.create_queue(&mut rig.admin, 1, 8, NONE, true);
        q.push(&rig.dump(1));
        rig.host.f.progress();
        match reset {
            true => rig.host.f.reset().unwrap(),
            false => rig.host.write32(regs::CONTROL, 0),
        }
        rig.mark();
        rig.admin = rig.host.bring_up(16, NONE);
        let mut q = rig.host.create_queue(&mut rig.admin, 1, 8, NONE, true);
        rig.host.run(&mut q, nop(5));
        for _ in 0..100 {
            rig.host.f.progress();
        }
        assert!(rig.is_marked());
        rig.map = rig
            .host
            .create_map(&mut rig.admin, 2, 4, VALUE as u32, COUNT as u32)
            .unwrap();
        rig.dump_all(&mut q);
        assert_eq!(rig.delete(1), Status::Success);
    }
}

#[test]
fn a_device_with_a_command_under_way_does_not_park() {
    let mut rig = Rig::new(
        Threaded::spawn(DeviceConfig {
            polls_before_park: 0,
            ..config()
        })
        .unwrap(),
    );
    let mut q = rig.host.create_queue(&mut rig.admin, 1, 8, NONE, true);
    for _ in 0..20 {
        rig.dump_all(&mut q);
    }
}
