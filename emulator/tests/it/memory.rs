//! Device memory of many GiB costs the host what is touched of it.

use crate::host::*;
use offmap_abi::admin::{MapMigrateBody, MapMigrated};
use offmap_abi::{AdminOpcode, RequestId, Status, Submission};
use offmap_emulator::{DeviceConfig, Ecc, Inline, TierConfig};
use std::fs;

/// Bytes of this process that are in memory.
fn resident() -> u64 {
    let statm = fs::read_to_string("/proc/self/statm").expect("statm");
    let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok());
    4096 * u64::from(pages.unwrap_or(u32::MAX))
}

/// Two tiers that are 128 GiB together, and a map of 32 GiB that moves from one to the other and back.
#[test]
fn a_map_of_many_gib_costs_what_is_written_to_it() {
    let mut config = DeviceConfig::default();
    let tier = |name: &str| TierConfig::new(name, 64 << 30).with_ecc(Ecc::Secded);
    config.firmware = config.firmware.with_tiers(vec![tier("near"), tier("far")]);
    let before = resident();
    let host = Host::new(Inline::new(config).expect("a device"));
    let mut admin = host.bring_up(16, NONE);
    assert_eq!(host.identify(&mut admin).memory_bytes.get(), 128 << 30);
    let entries = 1 << 31;
    let map = host
        .create_map(&mut admin, 2, 4, 16, entries)
        .expect("it fits");
    let mut queue = host.create_queue(&mut admin, 1, 8, NONE, true);
    let keys = [0, 1 << 20, entries / 2, entries - 1];
    for key in keys {
        let done = host.run(
            &mut queue,
            update(map, 1, &key.to_le_bytes(), &[key as u8 | 1; 16]),
        );
        assert_eq!(done.status(), Status::Success);
    }
    for tier in [1_u32, 2, 1] {
        let body = MapMigrateBody {
            tier: tier.into(),
            reserved: [0; 44],
        };
        let command = Submission::new(AdminOpcode::MapMigrate.0, RequestId(3), &body).with_map(map);
        let done = host.run(&mut admin, command);
        assert_eq!(done.status(), Status::Success);
        assert_eq!(done.payload_as::<MapMigrated>().tier.get(), tier - 1);
        for key in keys {
            let done = host.run(&mut queue, lookup(map, 2, &key.to_le_bytes(), 16));
            assert_eq!((done.status(), done.count.get()), (Status::Success, 16));
            assert_eq!(done.payload[..16], [key as u8 | 1; 16]);
        }
    }
    // Large pages are of 2 MiB, and each of the places has been in either tier; other tests run beside.
    let cost = resident().saturating_sub(before);
    assert!(cost < 256 << 20, "{cost} bytes for a few entries");
}
