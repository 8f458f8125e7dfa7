//! Modelled time: what the emulator reports of its queues, and that it changes nothing else.

use crate::host::*;
use crate::timing_profile::timing_profile;
use offmap_abi::submission::{BatchBody, IovaRef};
use offmap_abi::{IoOpcode, RequestId, Status, Submission, SubmissionFlags};
use offmap_emulator::{DeviceConfig, Inline};
use offmap_firmware_model::time::Picos;
use offmap_firmware_model::time::meter::Modelled;
use std::sync::Arc;

/// Updates, lookups one by one and in flight together, values by DMA, and a batch in several steps, through one
/// queue, with interrupts or without; what came out.
fn drive(timed: bool, interrupts: bool) -> (Vec<Vec<u8>>, Option<Modelled>) {
    let mut config = small();
    // Batches take several steps.
    config.firmware.step.buckets = 8;
    let device = Inline::new(config).unwrap();
    if timed {
        device.set_timing(Some(&timing_profile())).unwrap().unwrap();
    }
    let host = Host::new(Arc::clone(&device));
    let mut admin = host.bring_up(16, NONE);
    let map = host.create_map(&mut admin, 1, 8, 16, 500).unwrap();
    let vector = match interrupts {
        true => {
            let _interrupt = enable(&*host.f, 2);
            2
        }
        false => NONE,
    };
    let mut q = host.create_queue(&mut admin, 1, 8, vector, true);
    if interrupts {
        q.arm_interrupt(0);
    }
    let mut answers = Vec::new();
    for i in 0..200u64 {
        let value = [i.to_le_bytes(), (!i).to_le_bytes()].concat();
        let done = host.run(&mut q, update(map, i, &i.to_le_bytes(), &value));
        answers.push(done.payload.to_vec());
    }
    for first in (0..200u64).step_by(8) {
        for i in first..first + 8 {
            q.push(&lookup(map, i, &i.to_le_bytes(), 16));
        }
        q.publish(&*host.f);
        for _ in 0..8 {
            answers.push(host.take(&mut q).payload.to_vec());
        }
    }
    let out = host.map(1 << 16);
    let mut body = element(&7u64.to_le_bytes(), &[], 16);
    body.value = IovaRef::field(out.iova + 100);
    let by_dma = Submission::new(IoOpcode::Lookup.0, RequestId(4), &body)
        .with_map(map)
        .with_flags(SubmissionFlags::KEY_INLINE);
    assert_eq!(host.run(&mut q, by_dma).status(), Status::Success);
    let body = BatchBody {
        map_flags: 0.into(),
        count: 100.into(),
        key_len: 8.into(),
        value_len: 16.into(),
        keys: out.iova.into(),
        values: (out.iova + 4096).into(),
        statuses: (out.iova + 16384).into(),
        cursor: 0.into(),
    };
    for i in 0..100 {
        out.memory
            .store_u64(i * 8, i as u64, std::sync::atomic::Ordering::Relaxed);
    }
    let batch = Submission::new(IoOpcode::BatchLookup.0, RequestId(5), &body).with_map(map);
    let done = host.run(&mut q, batch);
    assert_eq!((done.status(), done.count.get()), (Status::Success, 100));
    answers.push(done.payload.to_vec());
    (answers, device.modelled().unwrap())
}

fn op(modelled: &Modelled, opcode: IoOpcode) -> &offmap_firmware_model::time::meter::OpTimes {
    modelled
        .ops
        .iter()
        .find(|op| op.opcode == opcode.0)
        .unwrap()
}

#[test]
fn a_meter_changes_no_answer_and_a_rerun_no_time() {
    let (plain, none) = drive(false, false);
    assert_eq!(none, None);
    let (answers, first) = drive(true, false);
    assert_eq!(answers, plain);
    let first = first.unwrap();
    assert_eq!(Some(&first), drive(true, false).1.as_ref());
    let count = |opcode| op(&first, opcode).latencies.count();
    assert_eq!(count(IoOpcode::Update), 200);
    assert_eq!(count(IoOpcode::Lookup), 201);
    assert_eq!(count(IoOpcode::BatchLookup), 1);
    assert_eq!(op(&first, IoOpcode::BatchLookup).elements, 100);
}

#[test]
fn every_part_is_charged_where_it_belongs() {
    let (_, modelled) = drive(true, false);
    let modelled = modelled.unwrap();
    for op in &modelled.ops {
        let parts = op.parts;
        let mean = op.latencies.mean().unwrap();
        assert_eq!(Picos(parts.total().0 / op.latencies.count()), mean);
        for part in [
            parts.doorbell,
            parts.fetch,
            parts.engine,
            parts.tables[0],
            parts.completion,
        ] {
            assert!(part > Picos::ZERO, "{op:?}");
        }
        assert_eq!(parts.interrupt, Picos::ZERO);
    }
    let (update, lookup) = (
        op(&modelled, IoOpcode::Update),
        op(&modelled, IoOpcode::Lookup),
    );
    assert_eq!(update.parts.payload, Picos::ZERO, "all inline");
    assert!(lookup.parts.payload > Picos::ZERO, "one value went by DMA");
    // One after the other all doorbells are alike; eight commands in flight share one, and wait for each other.
    let (least, greatest) = (
        lookup.latencies.least().unwrap(),
        lookup.latencies.greatest().unwrap(),
    );
    assert!(greatest > least + Picos(50_000), "{least} {greatest}");
    // What crossed the link: a fetch and a completion for each of 402 commands, and what the batch moved.
    assert_eq!(modelled.bus.doorbells, 200 + 25 + 1 + 1);
    assert!(modelled.bus.reads > 402 && modelled.bus.writes > 403);
    assert!(modelled.bus.iotlb_misses > 0 && modelled.bus.iotlb_hits > 500);
    let batch = op(&modelled, IoOpcode::BatchLookup);
    let alone = lookup.latencies.least().unwrap();
    let each = Picos(batch.latencies.mean().unwrap().0 / 100);
    assert!(
        each < alone,
        "{each} {alone}: a batch shares what crosses the link"
    );
}

#[test]
fn interrupts_are_charged_to_whom_they_wake() {
    let (_, modelled) = drive(true, true);
    let modelled = modelled.unwrap();
    assert!(modelled.bus.interrupts > 0, "{:?}", modelled.bus);
    let interrupts: u64 = modelled.ops.iter().map(|op| op.parts.interrupt.0).sum();
    assert!(interrupts >= 1_000_000 * modelled.bus.interrupts);
}

#[test]
fn a_meter_outlives_a_reset_and_is_taken_away() {
    let device = Inline::new(DeviceConfig {
        queue_pairs: 4,
        ..small()
    })
    .unwrap();
    device.set_timing(Some(&timing_profile())).unwrap().unwrap();
    let host = Host::new(Arc::clone(&device));
    for round in 1..=2 {
        let mut admin = host.bring_up(16, NONE);
        let mut q = host.create_queue(&mut admin, 1, 8, NONE, true);
        assert!(host.run(&mut q, nop(1)).status().is_success());
        let modelled = device.modelled().unwrap().unwrap();
        assert_eq!(op(&modelled, IoOpcode::Nop).latencies.count(), round);
        offmap_device_io::Function::reset(&*device).unwrap();
    }
    let mut wrong = timing_profile();
    wrong.device.engines = 0;
    let said = device
        .set_timing(Some(&wrong))
        .unwrap()
        .unwrap_err()
        .to_string();
    assert_eq!(said, "device.engines is 0; it is from 1 to 1,024");
    assert!(
        device.modelled().unwrap().is_some(),
        "a refusal changes nothing"
    );
    device.clear_modelled().unwrap();
    assert_eq!(device.modelled().unwrap().unwrap().ops, []);
    device.set_timing(None).unwrap().unwrap();
    assert_eq!(device.modelled().unwrap(), None);
}
