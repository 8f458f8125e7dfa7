//! A loop of lookups on the inline device, for counting instructions:
//! `valgrind --tool=callgrind target/release/examples/inline_lookups N`. Two runs with different
//! `N` differ by the cost of the lookups alone (`docs/performance.md`).

use offmap_driver::{Driver, DriverConfig, MapParams, Status};
use offmap_emulator::{DeviceConfig, Inline};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let lookups: u64 = match std::env::args().nth(1) {
        Some(text) => text.parse()?,
        None => 10_000,
    };
    let mut config = DeviceConfig::default();
    config.firmware.memory_bytes = 16 << 20;
    let driver = Driver::bring_up(Inline::new(config)?, DriverConfig::default())?;
    let map = driver.create_map(&MapParams {
        map_type: 1,
        key_size: 8,
        value_size: 64,
        max_entries: 1024,
        ..MapParams::default()
    })?;
    let mut queue = driver.create_queue()?;
    let mut value = [7; 64];
    for key in 0..1000u64 {
        let status = queue.update(&map, &key.to_le_bytes(), &value, 0)?;
        assert_eq!(status, Status::Success);
    }
    let mut found = 0u64;
    for n in 0..lookups {
        let status = queue.lookup(&map, &(n % 1000).to_le_bytes(), &mut value)?;
        found += u64::from(status == Status::Success);
    }
    println!("{found} of {lookups} found");
    Ok(())
}
