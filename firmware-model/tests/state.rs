//! The firmware's state as bytes: what is restored is what was saved, and what was damaged is
//! refused, or at least does no harm.

mod common;

use common::{
    ARRAY, BLOOM, HASH, Host, LPM, LRU_HASH, LRU_PERCPU_HASH, PERCPU_ARRAY, PERCPU_HASH, QUEUE,
    STACK, Shape, admin, create, firmware, free, query,
};
use offmap_abi::admin::MapMigrateBody;
use offmap_abi::{AdminOpcode, RequestId, Status, Submission};
use offmap_firmware_model::state::{RestoreError, Sink, Source};
use offmap_firmware_model::{Config, Ecc, Firmware, TierConfig};

const MEMORY: u64 = 1 << 20;

struct Bytes(Vec<u8>);

impl Sink for Bytes {
    type Error = ();

    fn put(&mut self, bytes: &[u8]) -> Result<(), ()> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }
}

/// The bytes from a place on, of which there are so many.
struct From<'a>(&'a [u8]);

impl Source for From<'_> {
    type Error = ();

    fn take(&mut self, into: &mut [u8]) -> Result<(), ()> {
        let (head, rest) = self.0.split_at_checked(into.len()).ok_or(())?;
        into.copy_from_slice(head);
        self.0 = rest;
        Ok(())
    }
}

fn config() -> Config {
    Config {
        maps: 40,
        value_bytes: 256,
        key_bytes: 64,
        cpu_slots: 8,
        ..Config::with_memory(MEMORY)
    }
}

fn save(firmware: &Firmware<Vec<u8>>) -> Vec<u8> {
    let mut bytes = Bytes(Vec::new());
    firmware.save(&mut bytes).expect("a vector takes all");
    bytes.0
}

fn restore(config: Config, bytes: &[u8]) -> Result<Firmware<Vec<u8>>, RestoreError<()>> {
    let storage = vec![0; config.memory_bytes as usize];
    Firmware::restore(config, storage, &mut From(bytes))
}

/// Sizes of a map of that type.
fn shape(map_type: u32) -> Shape {
    let (key, value) = match map_type {
        ARRAY | PERCPU_ARRAY => (4, 24),
        LPM => (8, 24),
        BLOOM => (8, 0),
        QUEUE | STACK => (0, 24),
        _ => (12, 24),
    };
    let mut shape = Shape::new(map_type, key, value, 50);
    if [PERCPU_HASH, PERCPU_ARRAY, LRU_PERCPU_HASH].contains(&map_type) {
        shape.cpu_slots = 3;
    }
    shape
}

fn key(shape: &Shape, n: u32) -> Vec<u8> {
    let mut key = vec![0; shape.key_size];
    match shape.map_type {
        QUEUE | STACK => {}
        LPM => {
            key[..4].copy_from_slice(&32_u32.to_le_bytes());
            key[4..].copy_from_slice(&n.to_be_bytes());
        }
        _ => key[..4].copy_from_slice(&n.to_le_bytes()),
    }
    key
}

const TYPES: [u32; 10] = [
    HASH,
    ARRAY,
    PERCPU_HASH,
    PERCPU_ARRAY,
    LPM,
    BLOOM,
    LRU_HASH,
    LRU_PERCPU_HASH,
    QUEUE,
    STACK,
];

/// A device with a map of each type, some that were freed, and half of all entries.
fn filled() -> (Firmware<Vec<u8>>, Vec<(Shape, offmap_abi::MapHandle)>) {
    let mut firmware = firmware(config());
    let mut maps = Vec::new();
    for map_type in TYPES {
        let gone = create(&mut firmware, &shape(map_type));
        let shape = shape(map_type);
        let map = create(&mut firmware, &shape);
        for n in 0..25 {
            let value = vec![n as u8 + map_type as u8; shape.value_bytes()];
            assert_eq!(
                firmware.update(map, &key(&shape, n), &value, 0),
                Status::Success
            );
        }
        assert_eq!(free(&mut firmware, gone), Status::Success);
        maps.push((shape, map));
    }
    (firmware, maps)
}

#[test]
fn what_is_restored_is_what_was_saved() {
    let (mut before, maps) = filled();
    let bytes = save(&before);
    let mut after = restore(config(), &bytes).expect("it was just saved");
    assert_eq!(save(&after), bytes, "and saved again");
    assert_eq!(before.memory_stats(), after.memory_stats());
    for (shape, map) in maps {
        assert_eq!(query(&mut before, map), query(&mut after, map));
        let mut values = [vec![0; shape.value_bytes()], vec![0; shape.value_bytes()]];
        for n in 0..50 {
            let key = key(&shape, n);
            let [a, b] = &mut values;
            let was = before.lookup(map, &key, a);
            assert_eq!(
                after.lookup(map, &key, b),
                was,
                "type {} {n}",
                shape.map_type
            );
            assert_eq!(a, b);
        }
        // And both go on alike.
        for n in 20..60 {
            let (key, value) = (key(&shape, n), vec![9; shape.value_bytes()]);
            let was = before.update(map, &key, &value, 0);
            assert_eq!(after.update(map, &key, &value, 0), was);
        }
    }
    let next = Shape::new(HASH, 8, 8, 4);
    assert_eq!(create(&mut before, &next), create(&mut after, &next));
    assert_eq!(save(&before), save(&after));
}

#[test]
fn another_device_refuses_it() {
    let bytes = save(&filled().0);
    let mut other = config();
    other.maps = 41;
    let refused = restore(other, &bytes).map(|_| ());
    let (name, saved, now) = ("maps", 40, 41);
    assert_eq!(refused, Err(RestoreError::Limit { name, saved, now }));
    for len in (0..bytes.len())
        .step_by(97)
        .chain(bytes.len() - 9..bytes.len())
    {
        assert!(
            restore(config(), &bytes[..len]).is_err(),
            "{len} bytes of it"
        );
    }
}

/// Any byte but those of device memory may be wrong: it is refused, or what comes of it works.
#[test]
fn damage_does_no_harm() {
    let (firmware, maps) = filled();
    let bytes = save(&firmware);
    // Where the first chunk of memory begins.
    let memory = bytes.windows(8).rposition(|w| w == 0_u64.to_le_bytes());
    let described = memory.unwrap_or(bytes.len()).min(4000);
    let mut refused = 0;
    let mut random = 0x1234_5678_u64;
    for round in 0..3000 {
        let mut damaged = bytes.clone();
        for _ in 0..1 + round % 3 {
            random = random
                .wrapping_mul(0x5851_f42d_4c95_7f2d)
                .wrapping_add(0x1405_7b7e_f767_814f);
            let at = match round % 4 {
                0 => (random >> 20) as usize % damaged.len(),
                _ => (random >> 20) as usize % described,
            };
            damaged[at] ^= match round % 5 {
                0 => 0xff,
                _ => 1 << (random >> 60 & 7),
            };
        }
        let Ok(mut firmware) = restore(config(), &damaged) else {
            refused += 1;
            continue;
        };
        for (shape, map) in &maps {
            let mut value = vec![7; shape.value_bytes()];
            for n in 0..60 {
                let key = key(shape, n);
                let _ = firmware.lookup(*map, &key, &mut value);
                let _ = firmware.update(*map, &key, &value, 0);
                let _ = firmware.delete(*map, &key);
            }
            let _ = free(&mut firmware, *map);
        }
        firmware.reset();
        let _ = create(&mut firmware, &Shape::new(HASH, 8, 8, 4));
    }
    assert!(refused > 500, "only {refused} were refused");
}

/// Tiers, places, wrong bits and what was counted come back; another device's tiers are refused by name.
#[test]
fn a_state_with_tiers_and_wrong_bits() {
    let tiers = |code: Ecc, last: u64| {
        let own = TierConfig {
            placeable: false,
            ..TierConfig::new("own", 4096)
        };
        vec![
            TierConfig::new("fast", 64 << 10).with_ecc(Ecc::Parity),
            own,
            TierConfig::new("slow", last).with_ecc(code),
        ]
    };
    let with = |tiers| config().with_tiers(tiers);
    let sound = with(tiers(Ecc::Secded, 1 << 20));
    let mut device = firmware(sound.clone());
    let shape = Shape::new(ARRAY, 4, 64, 20);
    // Both in the first tier, as the firmware places what is small.
    let maps = [create(&mut device, &shape), create(&mut device, &shape)];
    let body = MapMigrateBody {
        tier: 3.into(),
        reserved: [0; 44],
    };
    let command = Submission::new(AdminOpcode::MapMigrate.0, RequestId(5), &body).with_map(maps[1]);
    let (done, _) = admin(&mut device, &command, &mut Host::new(0));
    assert_eq!(done.status(), Status::Success);
    let line = |device: &mut Firmware<Vec<u8>>, map, n| {
        device
            .value_address(map, &key(&shape, n))
            .expect("it is there")
            .0
    };
    for map in maps {
        for n in 0..20 {
            assert_eq!(
                device.update(map, &key(&shape, n), &[n as u8 + 1; 64], 0),
                Status::Success
            );
        }
    }
    // Missed, and detected, by parity; corrected, detected, and a check bit, by SECDED.
    for (map, n, bits) in [(0, 1, 3), (0, 2, 1), (1, 1, 1), (1, 2, 3)] {
        let at = line(&mut device, maps[map], n);
        assert!(device.flip_bits(at, bits));
    }
    let at = line(&mut device, maps[1], 3);
    assert!(device.flip_check_bit(at, 17));
    let read = |device: &mut Firmware<Vec<u8>>| {
        let mut all = Vec::new();
        for map in maps {
            for n in 0..20 {
                let mut value = [0; 64];
                let status = device.lookup(map, &key(&shape, n), &mut value);
                all.push((status, value[0]));
            }
        }
        all
    };
    let before = read(&mut device);
    assert_eq!(
        (before[1], before[2].0),
        ((Status::Success, 1), Status::MediaError)
    );
    assert_eq!(
        (before[21], before[22].0),
        ((Status::Success, 2), Status::MediaError)
    );
    let state = save(&device);
    let mut back = restore(sound.clone(), &state).expect("it is sound");
    assert_eq!(back.tier_info(), device.tier_info());
    assert_eq!(save(&back), state, "the same once more");
    for map in maps {
        let (was, is) = (device.layout(map).unwrap(), back.layout(map).unwrap());
        assert_eq!(
            (was.base, was.tier, was.flags),
            (is.base, is.tier, is.flags)
        );
    }
    assert_eq!(read(&mut back), before);
    assert_eq!(back.scrub(), device.scrub());

    // Other tiers.
    let refused = |tiers| match restore(with(tiers), &state) {
        Err(error) => error,
        Ok(_) => panic!("it is another device"),
    };
    let error = refused(tiers(Ecc::None, 1 << 20));
    assert!(
        matches!(error, RestoreError::Tier { number: 3, .. }),
        "{error:?}"
    );
    let mut renamed = tiers(Ecc::Secded, 1 << 20);
    renamed[0].name = "quick".into();
    let error = refused(renamed);
    assert!(
        matches!(error, RestoreError::Tier { number: 1, .. }),
        "{error:?}"
    );
    let error = refused(tiers(Ecc::Secded, 2 << 20));
    assert!(
        matches!(error, RestoreError::Limit { name: "memory", .. }),
        "{error:?}"
    );
    let mut placeable = tiers(Ecc::Secded, 1 << 20);
    placeable[1].placeable = true;
    assert!(matches!(
        refused(placeable),
        RestoreError::Tier { number: 2, .. }
    ));
    let error = refused(vec![TierConfig::new("fast", (64 << 10) + 4096 + (1 << 20))]);
    assert!(
        matches!(
            error,
            RestoreError::Limit {
                name: "memory tiers",
                ..
            }
        ),
        "{error:?}"
    );
    // Wrong bits where there can be none: without a check code, past the end, twice.
    let end = state.len();
    let item = 8 + 64 + 8;
    for (at, value) in [(0, 64u64 << 4 | 3), (0, u64::MAX / 64), (8, 0)] {
        let mut damaged = state.clone();
        let from = end - 8 - item + at;
        damaged[from..from + 8].copy_from_slice(&value.to_le_bytes());
        if at == 8 {
            damaged[from..end - 8].fill(0);
        }
        assert!(
            restore(sound.clone(), &damaged).is_err(),
            "{at}, {value:#x}"
        );
    }
}
