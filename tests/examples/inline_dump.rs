//! Dumps of a map on the inline device, for counting instructions:
//! `valgrind --tool=callgrind target/release/examples/inline_dump N`. Two runs with different
//! `N` differ by the cost of the dumps alone (`docs/performance.md`).

use offmap_driver::{Driver, DriverConfig, MapParams, Status};
use offmap_emulator::{DeviceConfig, Inline};

const ENTRIES: usize = 8192;
const PAGE: usize = 1024;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dumps: u64 = match std::env::args().nth(1) {
        Some(text) => text.parse()?,
        None => 10,
    };
    let mut config = DeviceConfig::default();
    config.firmware.memory_bytes = 16 << 20;
    let driver = Driver::bring_up(Inline::new(config)?, DriverConfig::default())?;
    let map = driver.create_map(&MapParams {
        map_type: 1,
        key_size: 8,
        value_size: 64,
        max_entries: ENTRIES as u32,
        ..MapParams::default()
    })?;
    let mut queue = driver.create_queue()?;
    for key in 0..ENTRIES as u64 {
        let status = queue.update(&map, &key.to_le_bytes(), &[7; 64], 0)?;
        assert_eq!(status, Status::Success);
    }
    let (mut keys, mut values) = (vec![0; PAGE * 8], vec![0; PAGE * 64]);
    let mut found = 0;
    for _ in 0..dumps {
        let mut cursor = 0;
        loop {
            let dumped = queue.dump(&map, cursor, &mut keys, &mut values, false)?;
            found += dumped.count;
            cursor = dumped.cursor;
            if dumped.status == Status::NotFound {
                break;
            }
            assert_eq!(dumped.status, Status::Success);
        }
    }
    println!("{found} elements in {dumps} dumps of {ENTRIES}");
    Ok(())
}
