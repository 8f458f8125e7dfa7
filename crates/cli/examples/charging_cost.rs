//! What it costs a map operation that modelled time is charged: the same operations on the same offloaded map, on
//! the inline device, in blocks that take turns with the meter on and off. Prints the median of the ratios.
//!
//! `cargo run --release -p offmap-cli --example charging_cost [PROFILE]`

use offmap_bpf::{Caller, MapCreateAttr, System, SystemConfig};
use offmap_driver::{Driver, DriverConfig};
use offmap_emulator::{DeviceConfig, Inline};
use offmap_offload::{OffloadNic, Profile};
use std::error::Error;
use std::hint::black_box;
use std::time::Instant;

/// Operations of a block, well under a millisecond.
const BLOCK: u32 = 2_000;
/// Blocks of each side.
const BLOCKS: u32 = 600;
/// What charging may cost (docs/timing.md).
const BAR: f64 = 1.2;

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() -> Result<(), Box<dyn Error>> {
    let name = std::env::args().nth(1).unwrap_or_else(|| "nfp6000".into());
    let profile = offmap_model::profile::find(&name)?.profile;
    for entries in [1_000_u32, 65_536] {
        let device = Inline::new(DeviceConfig::default())?;
        device.set_timing(Some(&profile))??;
        let driver = Driver::bring_up(device.clone(), DriverConfig::default())?;
        let nic = OffloadNic::new(driver, Profile::offmap())?;
        let system = System::new(SystemConfig::default());
        let ifindex = system.register_netdev("nic0", nic)?;
        let fd = system.map_create(
            &Caller::root(),
            &MapCreateAttr {
                map_type: 1,
                key_size: 8,
                value_size: 64,
                max_entries: entries,
                map_ifindex: ifindex.0,
                ..MapCreateAttr::default()
            },
        )?;
        let map = system.map_file(fd)?;
        let mut value = [7; 64];
        // Keys in an order that is not that of their storage.
        let key = |n: u32| u64::from(n.wrapping_mul(40_503) % entries).to_ne_bytes();
        for n in 0..entries {
            map.update(&u64::from(n).to_ne_bytes(), &value, 0)?;
        }
        for update in [false, true] {
            let mut next = 0;
            let mut block = |charged: bool| -> Result<f64, Box<dyn Error>> {
                device.pause_timing(!charged)?;
                let start = Instant::now();
                for _ in 0..BLOCK {
                    match update {
                        true => map.update(&key(next), black_box(&value), 0)?,
                        false => map.lookup(&key(next), black_box(&mut value), 0)?,
                    }
                    next = next.wrapping_add(1);
                }
                Ok(start.elapsed().as_nanos() as f64 / f64::from(BLOCK))
            };
            let (mut ratios, mut on, mut off) = (Vec::new(), Vec::new(), Vec::new());
            for round in 0..BLOCKS {
                let charged_first = round % 2 == 0;
                let (first, second) = (block(charged_first)?, block(!charged_first)?);
                let (charged, plain) = match charged_first {
                    true => (first, second),
                    false => (second, first),
                };
                ratios.push(charged / plain);
                on.push(charged);
                off.push(plain);
            }
            let ratio = median(&mut ratios);
            println!(
                "{} of 64 B, {entries} entries, time charged / not: {ratio:.3} (at most {BAR}: {}; {:.1} to {:.1} ns)",
                if update { "update" } else { "lookup" },
                if ratio <= BAR { "PASS" } else { "SHORT" },
                median(&mut on),
                median(&mut off),
            );
        }
    }
    Ok(())
}
