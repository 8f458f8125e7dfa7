//! Every field of every command that can be wrong, and what the completion says then.

mod common;

use common::*;
use offmap_abi::admin::{EmptyBody, IdentifyBody, IdentifyData, Limit, LimitDetail, MapCreated};
use offmap_abi::submission::{BatchBody, ElementBody, IovaRef};
use offmap_abi::{
    AdminOpcode, Completion, IoOpcode, MapHandle, RequestId, Status, Submission, SubmissionFlags,
};
use offmap_firmware_model::{Config, ConfigError, Firmware, Progress};

fn limit(done: &Completion) -> (Limit, u64, u64, u64) {
    // Of memory there is a word more to say.
    let memory = done.status() == Status::NoMemory;
    assert_eq!(done.count.get(), if memory { 40 } else { 32 });
    let detail: LimitDetail = done.payload_as();
    (
        Limit(detail.limit.get()),
        detail.asked.get(),
        detail.allowed.get(),
        detail.used.get(),
    )
}

#[test]
fn map_create_names_the_limit_that_was_hit() {
    let mut config = Config::with_memory(1 << 20);
    config.maps = 3;
    config.entries_per_map = 5000;
    config.entries_total = 6000;
    config.key_bytes = 32;
    config.value_bytes = 128;
    config.cpu_slots = 4;
    let mut firmware = firmware(config);
    let mut refused = |change: &dyn Fn(&mut Shape)| {
        let mut shape = Shape::new(HASH, 8, 8, 10);
        change(&mut shape);
        let done = create_with(&mut firmware, &shape.body());
        assert_eq!(done.status(), Status::LimitExceeded, "{shape:?}");
        limit(&done)
    };
    // Bits of `enum bpf_map_type`: hashes, arrays, LRU, trie, maps of maps, queue, stack, ring, bloom.
    let types = [1, 2, 5, 6, 9, 10, 11, 12, 13, 22, 23, 27, 30]
        .iter()
        .fold(0, |bits, n| bits | 1_u64 << n);
    for map_type in [0, 3, 4, 7, 8, 64, u32::MAX] {
        let hit = refused(&|shape| shape.map_type = map_type);
        assert_eq!(hit, (Limit::MapType, map_type.into(), types, 0));
    }
    let hit = refused(&|shape| shape.key_size = 33);
    assert_eq!(hit, (Limit::KeyBytes, 33, 32, 0));
    let hit = refused(&|shape| shape.key_size = u32::MAX as usize);
    assert_eq!(hit, (Limit::KeyBytes, u32::MAX.into(), 32, 0));
    let hit = refused(&|shape| shape.value_size = 129);
    assert_eq!(hit, (Limit::ValueBytes, 129, 128, 0));
    let hit = refused(&|shape| shape.max_entries = 5001);
    assert_eq!(hit, (Limit::EntriesPerMap, 5001, 5000, 0));
    let hit = refused(&|shape| {
        shape.map_type = PERCPU_HASH;
        shape.cpu_slots = 5;
    });
    assert_eq!(hit, (Limit::CpuSlots, 5, 4, 0));

    create(&mut firmware, &Shape::new(HASH, 8, 8, 4000));
    let done = create_with(&mut firmware, &Shape::new(HASH, 8, 8, 2001).body());
    assert_eq!(done.status(), Status::LimitExceeded);
    assert_eq!(limit(&done), (Limit::EntriesTotal, 2001, 6000, 4000));
    create(&mut firmware, &Shape::new(HASH, 8, 8, 1998));
    let last = create(&mut firmware, &Shape::new(ARRAY, 4, 8, 1));
    let done = create_with(&mut firmware, &Shape::new(ARRAY, 4, 8, 1).body());
    assert_eq!(done.status(), Status::LimitExceeded);
    assert_eq!(limit(&done), (Limit::Maps, 1, 3, 3));
    assert_eq!(free(&mut firmware, last), Status::Success);
    create(&mut firmware, &Shape::new(ARRAY, 4, 8, 1));
}

#[test]
fn map_create_refuses_fields_that_make_no_map() {
    let mut firmware = firmware(Config::with_memory(1 << 20));
    let mut status = |change: &dyn Fn(&mut Shape)| {
        let mut shape = Shape::new(HASH, 8, 8, 10);
        change(&mut shape);
        create_with(&mut firmware, &shape.body()).status()
    };
    assert_eq!(status(&|_| ()), Status::Success);
    assert_eq!(status(&|s| s.key_size = 0), Status::InvalidField);
    assert_eq!(status(&|s| s.value_size = 0), Status::InvalidField);
    assert_eq!(status(&|s| s.max_entries = 0), Status::InvalidField);
    assert_eq!(status(&|s| s.map_type = ARRAY), Status::InvalidField);
    assert_eq!(status(&|s| s.cpu_slots = 1), Status::InvalidField);
    assert_eq!(status(&|s| s.map_type = PERCPU_HASH), Status::InvalidField);
    let mut body = Shape::new(HASH, 8, 8, 10).body();
    body.flags = 1.into();
    assert_eq!(
        create_with(&mut firmware, &body).status(),
        Status::InvalidField
    );
}

#[test]
fn memory_runs_out_exactly_and_what_is_stored_stays() {
    // An array of 64-byte values takes a line more than its entries.
    let mut firmware = firmware(Config::with_memory(100 * 64));
    let map = create(&mut firmware, &Shape::new(ARRAY, 4, 64, 49));
    assert_eq!(firmware.update(map, &[0; 4], &[7; 64], 0), Status::Success);
    let done = create_with(&mut firmware, &Shape::new(ARRAY, 4, 64, 50).body());
    assert_eq!(done.status(), Status::NoMemory);
    assert_eq!(limit(&done), (Limit::Memory, 51 * 64, 50 * 64, 50 * 64));
    let second = create(&mut firmware, &Shape::new(ARRAY, 4, 64, 49));
    assert_eq!(firmware.memory_stats().free_bytes, 0);
    let done = create_with(&mut firmware, &Shape::new(ARRAY, 4, 1, 1).body());
    assert_eq!(limit(&done), (Limit::Memory, 72, 0, 6400));
    let mut value = [0; 64];
    assert_eq!(firmware.lookup(map, &[0; 4], &mut value), Status::Success);
    assert_eq!(value, [7; 64]);
    assert_eq!(
        firmware.lookup(second, &[0; 4], &mut value),
        Status::Success
    );
    assert_eq!(value, [0; 64]);
    // The largest sizes that there are for this memory do not wrap.
    let mut shape = Shape::new(PERCPU_HASH, 4096, 6400, 1 << 31);
    shape.cpu_slots = 1024;
    let done = create_with(&mut firmware, &shape.body());
    assert_eq!(done.status(), Status::NoMemory);
    assert!(limit(&done).1 > 1 << 53);
    // No key and no value is longer than the memory, as IDENTIFY says.
    let said = firmware.identify();
    assert_eq!((said.key_bytes.get(), said.value_bytes.get()), (6400, 6400));
    for (key, value, by) in [(6401, 8, Limit::KeyBytes), (8, 6401, Limit::ValueBytes)] {
        let done = create_with(&mut firmware, &Shape::new(HASH, key, value, 1).body());
        assert_eq!(done.status(), Status::LimitExceeded);
        assert_eq!(limit(&done), (by, 6401, 6400, 0));
    }
}

#[test]
fn fragmented_memory_is_reported_as_such() {
    let mut firmware = firmware(Config::with_memory(100 * 64));
    let shape = Shape::new(ARRAY, 4, 64, 9);
    let maps: Vec<_> = (0..10).map(|_| create(&mut firmware, &shape)).collect();
    for map in maps.iter().step_by(2) {
        assert_eq!(free(&mut firmware, *map), Status::Success);
    }
    let (_, info) = query(&mut firmware, maps[1]);
    assert_eq!(
        (info.free_bytes.get(), info.free_largest.get()),
        (3200, 640)
    );
    let done = create_with(&mut firmware, &Shape::new(ARRAY, 4, 64, 10).body());
    assert_eq!(limit(&done), (Limit::Memory, 704, 640, 3200));
    for map in maps.iter().skip(1).step_by(2) {
        assert_eq!(free(&mut firmware, *map), Status::Success);
    }
    let stats = firmware.memory_stats();
    assert_eq!((stats.free_pieces, stats.free_largest), (1, 6400));
}

#[test]
fn identify_writes_no_more_than_its_room() {
    let mut firmware = firmware(Config::with_memory(1 << 20));
    let expected = zerocopy_bytes(&firmware.identify());
    for len in [0u32, 1, 40, 128, 4096] {
        let mut host = Host::new(0x1000);
        host.bytes.fill(0xee);
        let body = IdentifyBody {
            iova: BASE.into(),
            len: len.into(),
            reserved: [0; 36],
        };
        let command = Submission::new(AdminOpcode::Identify.0, RequestId(1), &body);
        let (done, _) = admin(&mut firmware, &command, &mut host);
        let wrote = (len as usize).min(128);
        let expected_count = wrote as u32;
        assert_eq!(
            (done.status(), done.count.get()),
            (Status::Success, expected_count)
        );
        assert_eq!(host.bytes[..wrote], expected[..wrote]);
        assert!(host.bytes[wrote..].iter().all(|&b| b == 0xee));
    }
    let body = IdentifyBody {
        iova: 8.into(),
        len: 128.into(),
        reserved: [0; 36],
    };
    let command = Submission::new(AdminOpcode::Identify.0, RequestId(1), &body);
    let done = admin(&mut firmware, &command, &mut Host::new(64)).0;
    assert_eq!(done.status(), Status::DmaFault);
}

/// The bytes of the data, field by field, so that the wire image is checked as well.
fn zerocopy_bytes(data: &IdentifyData) -> Vec<u8> {
    let mut bytes = data.firmware.to_vec();
    for word in [data.map_types, data.memory_bytes, data.entries_total] {
        bytes.extend(word.get().to_le_bytes());
    }
    for word in [
        data.entries_per_map,
        data.maps,
        data.key_bytes,
        data.value_bytes,
        data.cpu_slots,
        data.batch,
        data.engines,
        data.ports,
        data.tiers,
    ] {
        bytes.extend(word.get().to_le_bytes());
    }
    bytes.resize(128, 0);
    bytes
}

#[test]
fn admin_refuses_what_is_not_its_own() {
    let mut firmware = firmware(Config::with_memory(1 << 20));
    let known = [0x01, 0x10, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16];
    for opcode in (0..=255u8).filter(|opcode| !known.contains(opcode)) {
        let command = Submission::new(opcode, RequestId(opcode.into()), &EmptyBody::ZERO);
        let done = admin(&mut firmware, &command, &mut Host::new(0)).0;
        assert_eq!(done.status(), Status::InvalidOpcode, "{opcode:#x}");
    }
    assert_eq!(free(&mut firmware, MapHandle(0)), Status::InvalidMap);
    assert_eq!(query(&mut firmware, MapHandle(1)).0, Status::InvalidMap);
}

#[test]
fn admin_commands_refuse_what_they_do_not_use() {
    let mut firmware = firmware(Config::with_memory(1 << 20));
    let idle = firmware.memory_stats();
    let shape = Shape::new(HASH, 8, 8, 10);
    let identify = IdentifyBody {
        iova: BASE.into(),
        len: 0.into(),
        reserved: [0; 36],
    };
    let identify_body = Submission::new(0, RequestId(0), &identify).body;
    let map_create = Submission::new(0, RequestId(0), &shape.body()).body;
    let live = create(&mut firmware, &shape);
    for (opcode, body, map, reserved) in [
        (AdminOpcode::Identify, identify_body, 0, vec![12, 47]),
        // Its flags, an address without attributes, and the last word.
        (
            AdminOpcode::MapCreate,
            map_create,
            0,
            vec![20, 32, 39, 44, 47],
        ),
        (AdminOpcode::MapQuery, [0; 48], live.0, vec![0, 47]),
        // No room is room enough.
        (AdminOpcode::MemoryInfo, [0; 48], 0, vec![16, 47]),
        (AdminOpcode::MapLayout, [0; 48], live.0, vec![12, 47]),
        (AdminOpcode::MapMigrate, [0; 48], live.0, vec![4, 47]),
        (AdminOpcode::MapFree, [0; 48], live.0, vec![0, 47]),
    ] {
        let mut refused = |command: &Submission| {
            let done = admin(&mut firmware, command, &mut Host::new(64)).0;
            assert_eq!(done.status(), Status::InvalidField, "{opcode}");
        };
        let sound = Submission::new(opcode.0, RequestId(1), &body).with_map(MapHandle(map));
        for byte in reserved {
            let mut command = sound;
            command.body[byte] = 1;
            refused(&command);
        }
        for flag in [1, 2, 4, 0x80] {
            let mut command = sound;
            command.flags = flag;
            refused(&command);
        }
        let mut command = sound;
        command.phase = 0x100.into();
        refused(&command);
        if map == 0 {
            refused(&sound.with_map(live));
        }
        let done = admin(&mut firmware, &sound, &mut Host::new(64)).0;
        assert_eq!(done.status(), Status::Success, "{opcode}");
        if opcode == AdminOpcode::MapCreate {
            let created: MapCreated = done.payload_as();
            free(&mut firmware, MapHandle(created.map.get()));
        }
    }
    assert_eq!(firmware.memory_stats(), idle, "the map was freed");
}

#[test]
fn one_admin_command_at_a_time_and_a_reset_forgets_it() {
    let mut firmware = firmware(Config::with_memory(1 << 20));
    let idle = firmware.memory_stats();
    firmware.write_memory(offmap_abi::DevAddr(0), &vec![1; 1 << 20]);
    let mut host = Host::new(0);
    let shape = Shape::new(ARRAY, 4, 8, 60_000);
    let command = Submission::new(AdminOpcode::MapCreate.0, RequestId(1), &shape.body());
    assert_eq!(firmware.admin(&command, &mut host), Progress::More);
    assert_eq!(firmware.resume(&mut host), Progress::More);
    let Progress::Done(done) = firmware.admin(&command, &mut host) else {
        panic!("a second command was taken");
    };
    assert_eq!(done.status(), Status::Internal);
    assert_ne!(firmware.memory_stats(), idle);
    firmware.reset();
    assert_eq!(firmware.memory_stats(), idle);
    let Progress::Done(done) = firmware.resume(&mut host) else {
        panic!("there is nothing to resume");
    };
    assert_eq!(done.status(), Status::Internal);
    create(&mut firmware, &shape);
}

struct Elements {
    firmware: Firmware<Vec<u8>>,
    host: Host,
    map: MapHandle,
}

impl Elements {
    fn new(shape: &Shape) -> Self {
        let mut firmware = firmware(Config::with_memory(1 << 20));
        let map = create(&mut firmware, shape);
        Self {
            firmware,
            host: Host::new(HOST_BYTES),
            map,
        }
    }

    /// Status of a sound command for 8-byte keys and values after `change`.
    fn status(
        &mut self,
        opcode: IoOpcode,
        change: impl FnOnce(&mut Submission, &mut ElementBody),
    ) -> Status {
        let mut body = ElementBody {
            map_flags: 0.into(),
            key_len: 8.into(),
            value_len: 8.into(),
            reserved: 0.into(),
            key: IovaRef::field(KEYS),
            value: IovaRef::field(VALUES),
        };
        match opcode {
            IoOpcode::GetFirst => {
                body.key_len = 0.into();
                body.key = [0; 16];
            }
            IoOpcode::Delete => {
                body.value_len = 0.into();
                body.value = [0; 16];
            }
            IoOpcode::Nop => body = <ElementBody as zerocopy::FromZeros>::new_zeroed(),
            _ => {}
        }
        let mut command = Submission::new(opcode.0, RequestId(1), &body).with_map(self.map);
        if opcode == IoOpcode::Nop {
            command.map = 0.into();
        }
        change(&mut command, &mut body);
        let mut with_body = Submission::new(command.opcode, RequestId(1), &body);
        with_body.flags = command.flags;
        with_body.phase = command.phase;
        with_body.map = command.map;
        io(&mut self.firmware, &with_body, &mut self.host).status()
    }
}

#[test]
fn element_commands_check_every_field() {
    use IoOpcode as Op;
    let mut elements = Elements::new(&Shape::new(HASH, 8, 8, 10));
    let with_key = [
        Op::Lookup,
        Op::Update,
        Op::Delete,
        Op::GetNext,
        Op::LookupAndDelete,
    ];
    let returning = [Op::Lookup, Op::GetFirst, Op::GetNext, Op::LookupAndDelete];
    let key = KEYS;
    let fill = |elements: &mut Elements| {
        assert_eq!(elements.status(Op::Update, |_, _| ()), Status::Success);
        elements.host.put(key, &[0; 8]);
    };
    fill(&mut elements);
    for op in with_key.into_iter().chain([Op::GetFirst]) {
        for handle in [0, u32::MAX, elements.map.0 ^ 1 << 16, elements.map.0 + 1] {
            let status = elements.status(op, |c, _| c.map = handle.into());
            assert_eq!(status, Status::InvalidMap, "{op} {handle:#x}");
        }
        for flags in [1, 2, 3, 4, u32::MAX] {
            if op == Op::Update && flags < 3 {
                continue;
            }
            let status = elements.status(op, |_, b| b.map_flags = flags.into());
            assert_eq!(status, Status::InvalidField, "{op} flags {flags}");
        }
    }
    for op in with_key {
        for len in [0, 7, 9, u32::MAX] {
            let status = elements.status(op, |_, b| b.key_len = len.into());
            assert_eq!(status, Status::InvalidLength, "{op} key_len {len}");
        }
        for iova in [0, BASE - 1, BASE + HOST_BYTES as u64 - 7, u64::MAX] {
            let status = elements.status(op, |_, b| b.key = IovaRef::field(iova));
            assert_eq!(status, Status::DmaFault, "{op} key at {iova:#x}");
        }
    }
    for len in [0, 7, 9, u32::MAX] {
        let status = elements.status(Op::Update, |_, b| b.value_len = len.into());
        assert_eq!(status, Status::InvalidLength, "value_len {len}");
    }
    let bad = IovaRef::field(u64::MAX - 3);
    assert_eq!(
        elements.status(Op::Update, |_, b| b.value = bad),
        Status::DmaFault
    );
    for op in returning {
        let status = elements.status(op, |_, b| b.value_len = 7.into());
        assert_eq!(status, Status::InvalidLength, "{op}");
        // GET_NEXT of the only key finds none, so it needs a key that is not there.
        let status = elements.status(op, |c, b| {
            b.value = bad;
            if op == Op::GetNext {
                c.flags = SubmissionFlags::KEY_INLINE.bits();
                b.key = [9; 16];
            }
        });
        assert_eq!(status, Status::DmaFault, "{op}");
        let found = elements.status(Op::Lookup, |_, b| b.value_len = 4096.into());
        assert_eq!(found, Status::Success, "{op} lost the key to a fault");
    }
    // What no version has named, or what the command does not use.
    for op in with_key.into_iter().chain([Op::GetFirst, Op::Nop]) {
        type Change = dyn Fn(&mut Submission, &mut ElementBody);
        let mut changes: Vec<(&str, &Change)> = vec![
            ("flag 2", &|c, _| c.flags |= 4),
            ("flag 7", &|c, _| c.flags |= 0x80),
            ("beside the phase", &|c, _| c.phase = 2.into()),
            ("top of the phase", &|c, _| c.phase = 0x8001.into()),
            ("reserved", &|_, b| b.reserved = 1.into()),
            ("beside the key's address", &|_, b| b.key[8] = 1),
            ("beside the value's address", &|_, b| b.value[15] = 0x80),
        ];
        if op == Op::GetFirst || op == Op::Nop {
            changes.push(("key length", &|_, b| b.key_len = 8.into()));
            changes.push(("key", &|_, b| b.key[0] = 1));
            changes.push(("inline key", &|c, b| {
                c.flags |= SubmissionFlags::KEY_INLINE.bits();
                b.key[0] = 1;
            }));
        }
        if op == Op::Delete || op == Op::Nop {
            changes.push(("value length", &|_, b| b.value_len = 8.into()));
            changes.push(("value", &|_, b| b.value[0] = 1));
        }
        if op == Op::Nop {
            changes.push(("map", &|c, _| c.map = 9.into()));
            changes.push(("flags", &|_, b| b.map_flags = 1.into()));
        }
        if op != Op::Update {
            changes.push(("value of an inline result", &|c, b| {
                c.flags |= SubmissionFlags::VALUE_INLINE.bits();
                b.value[0] = 1;
            }));
        }
        for (what, change) in changes {
            let status = elements.status(op, change);
            assert_eq!(status, Status::InvalidField, "{op} with {what}");
        }
    }
    let found = elements.status(Op::Lookup, |_, _| ());
    assert_eq!(found, Status::Success, "a refused command had an effect");
    let phase = elements.status(Op::Lookup, |c, _| c.phase = 1.into());
    assert_eq!(phase, Status::Success);
    assert_eq!(elements.status(Op::Nop, |_, _| ()), Status::Success);
    for opcode in (0..=255).filter(|&o| !Op::ALL.contains(&Op(o))) {
        let status = elements.status(Op(opcode), |_, _| ());
        assert_eq!(status, Status::InvalidOpcode, "{opcode:#x}");
    }
}

#[test]
fn inline_operands_must_fit_their_fields() {
    use IoOpcode as Op;
    let mut elements = Elements::new(&Shape::new(HASH, 17, 49, 10));
    let inline = |flags: SubmissionFlags| {
        move |c: &mut Submission, b: &mut ElementBody| {
            c.flags = flags.bits();
            b.key_len = 17.into();
            b.value_len = 49.into();
        }
    };
    let none = SubmissionFlags::empty();
    assert_eq!(elements.status(Op::Update, inline(none)), Status::Success);
    for op in [Op::Lookup, Op::Update, Op::LookupAndDelete] {
        for flags in [SubmissionFlags::KEY_INLINE, SubmissionFlags::VALUE_INLINE] {
            let status = elements.status(op, inline(flags));
            assert_eq!(status, Status::InvalidField, "{op} {flags:?}");
        }
        assert_eq!(elements.status(op, inline(none)), Status::Success, "{op}");
    }
    let key = SubmissionFlags::KEY_INLINE;
    assert_eq!(
        elements.status(Op::Delete, inline(key)),
        Status::InvalidField
    );
    assert_eq!(
        elements.status(Op::GetNext, inline(key)),
        Status::InvalidField
    );
    // The payload has room for 48 bytes, an update's field for 16.
    let mut elements = Elements::new(&Shape::new(HASH, 16, 48, 10));
    let with = |value_len: u32, flags: SubmissionFlags| {
        move |c: &mut Submission, b: &mut ElementBody| {
            c.flags = flags.bits();
            b.key_len = 16.into();
            b.value_len = value_len.into();
            b.key = [3; 16];
        }
    };
    assert_eq!(elements.status(Op::Update, with(48, key)), Status::Success);
    let both = key | SubmissionFlags::VALUE_INLINE;
    assert_eq!(
        elements.status(Op::Update, with(48, both)),
        Status::InvalidField
    );
    let lookup = |c: &mut Submission, b: &mut ElementBody| {
        with(48, both)(c, b);
        b.value = [0; 16];
    };
    assert_eq!(elements.status(Op::Lookup, lookup), Status::Success);
}

#[test]
fn arrays_have_no_delete() {
    let mut elements = Elements::new(&Shape::new(ARRAY, 4, 8, 10));
    for op in [IoOpcode::Delete, IoOpcode::LookupAndDelete] {
        let status = elements.status(op, |_, b| b.key_len = 4.into());
        assert_eq!(status, Status::Unsupported);
    }
}

#[test]
fn batch_commands_check_every_field() {
    use IoOpcode as Op;
    let ops = [
        Op::BatchLookup,
        Op::BatchUpdate,
        Op::BatchDelete,
        Op::BatchDump,
        Op::BatchDumpDelete,
    ];
    let shape = Shape::new(HASH, 8, 8, 10);
    let mut config = Config::with_memory(1 << 20);
    config.batch = 16;
    let mut firmware = firmware(config);
    let map = create(&mut firmware, &shape);
    let mut host = Host::new(HOST_BYTES);
    let mut run = |op: Op, change: &dyn Fn(&mut Submission, &mut BatchBody)| {
        let mut command = batch(op, map, &shape, 4, 0, 0);
        let mut body: BatchBody = command.body();
        change(&mut command, &mut body);
        let mut changed =
            Submission::new(op.0, RequestId(78), &body).with_map(MapHandle(command.map.get()));
        changed.flags = command.flags;
        changed.phase = command.phase;
        let done = io(&mut firmware, &changed, &mut host);
        (done.status(), done.count.get())
    };
    for op in ops {
        let status = run(op, &|c, _| c.map = 0.into()).0;
        assert_eq!(status, Status::InvalidMap, "{op}");
        for flags in [1, 2, 3, u32::MAX] {
            if op == Op::BatchUpdate && flags < 3 {
                continue;
            }
            let status = run(op, &|_, b| b.map_flags = flags.into()).0;
            assert_eq!(status, Status::InvalidField, "{op}");
        }
        for len in [0, 7, 9, u32::MAX] {
            let status = run(op, &|_, b| b.key_len = len.into()).0;
            assert_eq!(status, Status::InvalidLength, "{op}");
            if op != Op::BatchDelete {
                let status = run(op, &|_, b| b.value_len = len.into()).0;
                assert_eq!(status, Status::InvalidLength, "{op}");
            }
        }
        for count in [17, u32::MAX] {
            let status = run(op, &|_, b| b.count = count.into()).0;
            assert_eq!(status, Status::InvalidField, "{op}");
        }
        // Nothing is touched for a count of zero, wherever the arrays are.
        let nowhere = |_: &mut Submission, b: &mut BatchBody| {
            b.count = 0.into();
            b.keys = u64::MAX.into();
            for field in [&mut b.values, &mut b.statuses] {
                *field = if field.get() == 0 { 0 } else { u64::MAX }.into();
            }
        };
        assert_eq!(run(op, &nowhere), (Status::Success, 0), "{op}");
        // What no version has named, or what the command does not use.
        let (dump, update) = (
            [Op::BatchDump, Op::BatchDumpDelete].contains(&op),
            op == Op::BatchUpdate,
        );
        type Change = dyn Fn(&mut Submission, &mut BatchBody);
        let mut changes: Vec<(&str, &Change)> = vec![
            ("flag 2", &|c, _| c.flags = 4),
            ("an inline key", &|c, _| c.flags = 1),
            ("an inline value", &|c, _| c.flags = 2),
            ("beside the phase", &|c, _| c.phase = 2.into()),
        ];
        if dump {
            changes.push(("statuses", &|_, b| b.statuses = STATUSES.into()));
        } else {
            changes.push(("a cursor", &|_, b| b.cursor = (1 << 40).into()));
        }
        if op == Op::BatchDelete {
            changes.push(("values", &|_, b| b.values = VALUES.into()));
            changes.push(("a value length", &|_, b| b.value_len = 8.into()));
        }
        if !update {
            changes.push(("flags", &|_, b| b.map_flags = 1.into()));
        }
        for (what, change) in changes {
            let refused = run(op, change);
            assert_eq!(refused, (Status::InvalidField, 0), "{op} with {what}");
        }
        // Arrays that wrap around the end of the address space.
        if op != Op::BatchDump && op != Op::BatchDumpDelete {
            let wrap = |_: &mut Submission, b: &mut BatchBody| b.keys = (u64::MAX - 9).into();
            assert_eq!(run(op, &wrap), (Status::DmaFault, 0), "{op}");
        }
    }
    let array = create(&mut firmware, &Shape::new(ARRAY, 4, 8, 10));
    for op in [Op::BatchDelete, Op::BatchDumpDelete] {
        let command = batch(op, array, &Shape::new(ARRAY, 4, 8, 10), 4, 0, 0);
        assert_eq!(
            io(&mut firmware, &command, &mut host).status(),
            Status::Unsupported
        );
    }
}

#[test]
fn a_device_without_batches_has_no_batch_opcodes() {
    let mut config = Config::with_memory(1 << 20);
    config.batch = 0;
    let mut firmware = firmware(config);
    let shape = Shape::new(HASH, 8, 8, 10);
    let map = create(&mut firmware, &shape);
    let command = batch(IoOpcode::BatchLookup, map, &shape, 0, 0, 0);
    let done = io(&mut firmware, &command, &mut Host::new(0));
    assert_eq!(done.status(), Status::InvalidOpcode);
}

#[test]
fn impossible_configurations_are_refused() {
    let sound = Config::with_memory(1 << 16);
    let refused = |change: &dyn Fn(&mut Config)| {
        let mut config = sound.clone();
        change(&mut config);
        match Firmware::new(config, vec![0; 1 << 16]) {
            Err(ConfigError::Limit { name, .. }) => name,
            Err(ConfigError::Storage { .. }) => "storage",
            Err(ConfigError::Tier { .. }) => "tier",
            Ok(_) => "accepted",
        }
    };
    assert_eq!(refused(&|_| ()), "accepted");
    assert_eq!(refused(&|c| c.maps = 0), "maps");
    assert_eq!(refused(&|c| c.maps = 65_536), "maps");
    assert_eq!(refused(&|c| c.maps = 65_535), "accepted");
    assert_eq!(refused(&|c| c.entries_per_map = 0), "entries_per_map");
    assert_eq!(
        refused(&|c| c.entries_per_map = (1 << 31) + 1),
        "entries_per_map"
    );
    assert_eq!(refused(&|c| c.key_bytes = 3), "key_bytes");
    assert_eq!(refused(&|c| c.key_bytes = (1 << 22) + 1), "key_bytes");
    assert_eq!(refused(&|c| c.value_bytes = 0), "value_bytes");
    assert_eq!(refused(&|c| c.cpu_slots = 0), "cpu_slots");
    assert_eq!(refused(&|c| c.cpu_slots = 65_536), "cpu_slots");
    assert_eq!(refused(&|c| c.batch = (1 << 20) + 1), "batch");
    assert_eq!(refused(&|c| c.engines = 0), "engines");
    assert_eq!(refused(&|c| c.ports = 0), "ports");
    assert_eq!(refused(&|c| c.ports = 257), "ports");
    assert_eq!(refused(&|c| c.ports = 256), "accepted");
    assert_eq!(refused(&|c| c.memory_bytes = 0), "memory_bytes");
    assert_eq!(refused(&|c| c.memory_bytes = (1 << 16) + 1), "storage");
}

#[test]
fn a_map_reports_the_memory_it_takes() {
    let mut firmware = firmware(Config::with_memory(1 << 20));
    let before = firmware.memory_stats().free_bytes;
    for map_type in TYPES {
        let shape = Shape::new(map_type, 4, 20, 33);
        let done = create_with(&mut firmware, &shape.body());
        let created: MapCreated = done.payload_as();
        let map = MapHandle(created.map.get());
        let (_, info) = query(&mut firmware, map);
        assert_eq!(info.bytes, created.bytes);
        let taken = before - firmware.memory_stats().free_bytes;
        assert_eq!(taken, created.bytes.get().next_multiple_of(64));
        assert_eq!(info.free_bytes.get(), before - taken);
        assert_eq!(free(&mut firmware, map), Status::Success);
    }
}
