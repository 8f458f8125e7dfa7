//! A loop of lookups on the inline device, for counting instructions:
//! `valgrind --tool=callgrind target/release/examples/inline_lookups N [BYTES [DEPTH]]`. Two runs with different
//! `N` differ by the cost of the lookups alone (`docs/performance.md`). `BYTES` is the size of the values, 64 if
//! nothing is said; with 0 it is no-ops instead. With `DEPTH`, as many are in flight at a time.

use offmap_driver::{Driver, DriverConfig, MapParams, Op, Status};
use offmap_emulator::{DeviceConfig, Inline};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let lookups: u64 = match std::env::args().nth(1) {
        Some(text) => text.parse()?,
        None => 10_000,
    };
    let bytes: usize = match std::env::args().nth(2) {
        Some(text) => text.parse()?,
        None => 64,
    };
    let depth: usize = match std::env::args().nth(3) {
        Some(text) => text.parse()?,
        None => 1,
    };
    let mut config = DeviceConfig::default();
    config.firmware.memory_bytes = 16 << 20;
    let driver = Driver::bring_up(Inline::new(config)?, DriverConfig::default())?;
    let map = driver.create_map(&MapParams {
        map_type: 1,
        key_size: 8,
        value_size: bytes.max(1) as u32,
        max_entries: 1024,
        ..MapParams::default()
    })?;
    let mut queue = driver.create_queue()?;
    let mut value = vec![7; bytes.max(1)];
    for key in 0..1000u64 {
        let status = queue.update(&map, &key.to_le_bytes(), &value, 0)?;
        assert_eq!(status, Status::Success);
    }
    let mut found = 0u64;
    if bytes == 0 {
        for _ in 0..lookups {
            found += u64::from(queue.nop()? == Status::Success);
        }
        println!("{found} of {lookups} no-ops");
        return Ok(());
    }
    if depth > 1 {
        for first in (0..lookups).step_by(depth) {
            for n in first..first + depth as u64 {
                let key = &(n % 1000).to_le_bytes();
                queue.write(&Op::Lookup { map: &map, key })?;
            }
            let mut left = depth;
            while left > 0 {
                left -= queue.poll_each(|done| {
                    let status = done.value(&mut value);
                    found += u64::from(status.is_ok_and(|s| s == Status::Success));
                })?;
            }
        }
        println!("{found} of {lookups} found");
        return Ok(());
    }
    for n in 0..lookups {
        let status = queue.lookup(&map, &(n % 1000).to_le_bytes(), &mut value)?;
        found += u64::from(status == Status::Success);
    }
    println!("{found} of {lookups} found");
    Ok(())
}
