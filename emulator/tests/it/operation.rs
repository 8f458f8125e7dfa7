//! The whole device, from bring-up to lookup, on both front ends and in every notify mode.

use crate::host::*;
use offmap_abi::regs::{self, DOORBELLS};
use offmap_abi::{IoOpcode, RequestId, Status, Submission, SubmissionFlags};
use offmap_device_io::{BarOffset, Function, Iova};
use offmap_emulator::{DeviceConfig, EmulatorError, Inline, Threaded};
use std::sync::Arc;

#[derive(Clone, Copy, Debug)]
enum Mode {
    NotifyBlock,
    TrappedDoorbells,
    MappedDoorbells,
}

fn works<F: Function>(f: Arc<F>) {
    let host = Host::new(f);
    for mode in [
        Mode::NotifyBlock,
        Mode::TrappedDoorbells,
        Mode::MappedDoorbells,
    ] {
        let mut admin = host.bring_up(16, NONE);
        let id = host.identify(&mut admin);
        assert_eq!(id.memory_bytes.get(), small().firmware.memory_bytes);
        let map = host.create_map(&mut admin, 1, 8, 16, 500).unwrap();
        let array = host.create_map(&mut admin, 2, 4, 8, 10).unwrap();
        let notify = matches!(mode, Mode::NotifyBlock);
        let mut q = host.create_queue(&mut admin, 2, 8, NONE, notify);
        if matches!(mode, Mode::MappedDoorbells) {
            q.doorbells = host
                .f
                .map_bar(BAR, BarOffset(DOORBELLS), regs::DOORBELLS_BYTES as usize)
                .unwrap();
        }
        for i in 0..500u64 {
            let value = [i.to_le_bytes(), (!i).to_le_bytes()].concat();
            let c = host.run(&mut q, update(map, i, &i.to_le_bytes(), &value));
            assert_eq!(c.status(), Status::Success, "{mode:?} {i}");
        }
        let c = host.run(&mut q, update(map, 1, &9999u64.to_le_bytes(), &[0; 16]));
        assert_eq!(c.status(), Status::Full);
        // As many in flight as the ring is deep, several passes over it.
        let mut next = 0u64;
        let mut seen = vec![false; 500];
        while seen.contains(&false) {
            while next < 500 && q.sent - q.taken < q.depth {
                q.push(&lookup(map, next, &next.to_le_bytes(), 16));
                next += 1;
            }
            q.publish(&*host.f);
            let c = host.take(&mut q);
            let i = c.request().0;
            assert_eq!((c.status(), c.count.get()), (Status::Success, 16));
            assert_eq!(c.payload[..8], i.to_le_bytes());
            assert_eq!(c.payload[8..16], (!i).to_le_bytes());
            assert!(!std::mem::replace(&mut seen[i as usize], true));
        }
        assert!(q.poll().is_none(), "one completion per command");
        let c = host.run(&mut q, lookup(map, 3, &9999u64.to_le_bytes(), 16));
        assert_eq!(c.status(), Status::NotFound);
        let c = host.run(&mut q, lookup(array, 3, &3u32.to_le_bytes(), 8));
        assert_eq!(
            (c.status(), &c.payload[..8]),
            (Status::Success, &[0; 8][..])
        );

        // A value by DMA, and one to an address that is not mapped.
        let out = host.map(4096);
        for (iova, status) in [
            (out.iova + 100, Status::Success),
            (out.iova + 4088, Status::DmaFault),
            (0x7777_0000, Status::DmaFault),
        ] {
            let mut body = element(&7u64.to_le_bytes(), &[], 16);
            body.value = offmap_abi::submission::IovaRef::field(iova);
            let s = Submission::new(IoOpcode::Lookup.0, RequestId(4), &body)
                .with_map(map)
                .with_flags(SubmissionFlags::KEY_INLINE);
            assert_eq!(host.run(&mut q, s).status(), status, "{iova:#x}");
        }
        let mut seen = [0; 16];
        out.memory.read(100, &mut seen);
        assert_eq!(seen[..8], 7u64.to_le_bytes());
        host.f.dma_unmap(Iova(out.iova), 4096).unwrap();

        let unknown = Submission::new(0xee, RequestId(5), &[0u8; 48]);
        assert_eq!(host.run(&mut q, unknown).status(), Status::InvalidOpcode);
        assert_eq!(
            host.run(&mut admin, unknown).status(),
            Status::InvalidOpcode
        );

        // Disabling frees all; the next round starts afresh.
        host.write32(regs::CONTROL, 0);
        assert!(host.status().is_empty());
    }
}

#[test]
fn inline_works_in_every_mode() {
    works(inline());
}

#[test]
fn threaded_works_in_every_mode() {
    works(threaded());
}

#[test]
fn several_threads_share_an_inline_device() {
    let host = Host::new(inline());
    let mut admin = host.bring_up(16, NONE);
    let map = host.create_map(&mut admin, 1, 8, 8, 4000).unwrap();
    let queues: Vec<Queue> = (1..=4)
        .map(|id| host.create_queue(&mut admin, id, 16, NONE, id % 2 == 0))
        .collect();
    std::thread::scope(|scope| {
        for (t, mut q) in queues.into_iter().enumerate() {
            let host = &host;
            scope.spawn(move || {
                for i in 0..1000u64 {
                    let key = (i * 4 + t as u64).to_le_bytes();
                    let c = host.run(&mut q, update(map, i, &key, &key));
                    assert_eq!(c.status(), Status::Success);
                    let c = host.run(&mut q, lookup(map, i, &key, 8));
                    assert_eq!(c.payload[..8], key);
                }
            });
        }
    });
}

#[test]
fn a_map_that_takes_many_steps_leaves_the_io_queues_running() {
    let host = Host::new(
        Inline::new(DeviceConfig {
            firmware: offmap_firmware_model::Config {
                memory_bytes: 512 << 20,
                ..small().firmware
            },
            ..small()
        })
        .unwrap(),
    );
    let mut admin = host.bring_up(16, NONE);
    let mut q = host.create_queue(&mut admin, 1, 8, NONE, true);
    let body = offmap_abi::admin::MapCreateBody {
        map_type: 2.into(),
        key_size: 4.into(),
        value_size: 64.into(),
        max_entries: (4 << 20).into(),
        cpu_slots: 0.into(),
        flags: 0.into(),
        seed: 1.into(),
        attr: 0.into(),
        attr_len: 0.into(),
        reserved: 0.into(),
    };
    admin.push(&Submission::new(0x10, RequestId(77), &body));
    admin.publish(&*host.f);
    let mut nops = 0;
    let created = loop {
        if let Some(c) = admin.poll() {
            break c;
        }
        host.run(&mut q, nop(nops));
        nops += 1;
        assert!(nops < 1_000_000, "the map never came");
    };
    assert_eq!(
        (created.status(), created.request().0),
        (Status::Success, 77)
    );
}

#[test]
fn configurations_out_of_range_are_refused_by_field() {
    type Change = fn(&mut DeviceConfig);
    let cases: [(Change, &str); 15] = [
        (|c| c.queue_pairs = 0, "queue_pairs"),
        (|c| c.queue_pairs = 1024, "queue_pairs"),
        (|c| c.queue_depth_max = 0, "queue_depth_max"),
        (|c| c.queue_depth_max = 1, "queue_depth_max"),
        (|c| c.queue_depth_max = 48, "queue_depth_max"),
        (|c| c.queue_depth_max = 65536, "queue_depth_max"),
        (|c| c.vectors = 0, "vectors"),
        (|c| c.vectors = 2049, "vectors"),
        (|c| c.look_again_us = 0, "look_again_us"),
        (|c| c.look_again_us = 60_000_001, "look_again_us"),
        (|c| c.turns.step = 0, "turns.step"),
        (|c| c.turns.step = 65_537, "turns.step"),
        (|c| c.turns.favours = 1025, "turns.favours"),
        (|c| c.turns.entries = 0, "turns.entries"),
        (|c| c.turns.entries = 32_769, "turns.entries"),
    ];
    for (change, expected) in cases {
        let mut config = small();
        change(&mut config);
        match Inline::new(config.clone()) {
            Err(EmulatorError::Config { field, .. }) => assert_eq!(field, expected),
            Err(e) => panic!("{e}"),
            Ok(_) => panic!("{expected} was taken"),
        }
        assert!(Threaded::spawn(config).is_err());
    }
    let largest = DeviceConfig {
        queue_pairs: 1023,
        queue_depth_max: 32768,
        vectors: 2048,
        ..small()
    };
    let host = Host::new(Inline::new(largest).unwrap());
    let mut admin = host.bring_up(32768, 2047);
    let mut q = host.create_queue(&mut admin, 1023, 32768, 2047, false);
    host.run(&mut q, nop(1));
}

#[test]
fn memory_of_many_gigabytes_costs_nothing_until_touched() {
    let mut config = small();
    config.firmware.memory_bytes = 64 << 30;
    let host = Host::new(Inline::new(config).unwrap());
    let mut admin = host.bring_up(16, NONE);
    assert_eq!(host.identify(&mut admin).memory_bytes.get(), 64 << 30);
    let resident = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = resident.split(' ').nth(1).unwrap().parse().unwrap();
    assert!(pages * 4096 < 2 << 30, "{pages} pages are resident");
}
