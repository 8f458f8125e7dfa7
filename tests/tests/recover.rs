//! Kill and recover: a device that is reset again and again under writers, and maps that are
//! whole after each time.
//!
//! `OFFMAP_RESETS` is the number of resets of the long test (default 200, half of them with
//! each `UnknownOutcome`); `OFFMAP_SEED` replays what the writers and the killer choose.

#[path = "recover/escalation.rs"]
mod escalation;
#[path = "recover/load.rs"]
mod load;
#[path = "recover/types.rs"]
mod types;

#[path = "../../crates/driver/tests/scripted/mod.rs"]
mod scripted;

use offmap_abi::QueueId;
use offmap_abi::notify::sq_doorbell;
use offmap_abi::regs::{self, DeviceStatus};
use offmap_bpf::{MapCreateAttr, MapType};
use offmap_device_io::{BarOffset, Function};
use offmap_driver::{Driver, DriverConfig};
use offmap_offload::{NicSettings, OffloadNic, Profile, RecoverMaps, Recovery};
use offmap_tests::stack::Stack;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A stack whose NIC restores all maps but those whose names begin with "plain".
fn recovering<F: Function>(
    function: Arc<F>,
    config: DriverConfig,
    queue_pairs: Option<u16>,
    recovery: Recovery,
) -> Stack<F> {
    let driver = Driver::bring_up(function, config).expect("bring-up");
    let settings = NicSettings {
        recovery: Recovery {
            maps: RecoverMaps::all().map("plain*", false),
            ..recovery
        },
        queue_pairs,
        ..NicSettings::default()
    };
    let nic = OffloadNic::with_settings(driver, Profile::offmap(), settings);
    Stack::over_nic(nic.expect("an offload NIC"))
}

fn attr(map_type: MapType, value_size: u32, max_entries: u32) -> MapCreateAttr {
    MapCreateAttr {
        map_type: map_type.0,
        key_size: match map_type {
            MapType::QUEUE | MapType::STACK => 0,
            MapType::LPM_TRIE => 8,
            _ => 4,
        },
        value_size,
        max_entries,
        // Tries insist on it.
        map_flags: u32::from(map_type == MapType::LPM_TRIE),
        ..MapCreateAttr::default()
    }
}

fn named(name: &str, attr: MapCreateAttr) -> MapCreateAttr {
    let mut map_name = [0; 16];
    map_name[..name.len()].copy_from_slice(name.as_bytes());
    MapCreateAttr { map_name, ..attr }
}

/// The ways in which the device loses its queues and maps.
const KILLS: [&str; 4] = [
    "function-level reset",
    "ENABLE cleared",
    "firmware error state",
    "reset by the driver",
];

/// Kills the device, three times out of four behind its driver's back.
fn kill<F: Function>(driver: &Driver<F>, how: usize) {
    let function = driver.function();
    match how % KILLS.len() {
        0 => function.reset().expect("a reset"),
        1 => function
            .write32(0, BarOffset(regs::CONTROL), 0)
            .expect("a register write"),
        2 => {
            // More commands than the admin ring has room for.
            let doorbell = sq_doorbell(QueueId::ADMIN);
            let read = |register| function.read32(0, BarOffset(register)).expect("a register");
            let resets = read(regs::RESET_COUNT);
            let started = Instant::now();
            loop {
                // Again and again: a command of the driver's own puts the count right, and the device
                // notices when it next looks, which a busy one does seldom. A recovery may be over
                // before the state is seen here.
                function
                    .write64(0, BarOffset(doorbell), 1 << 20)
                    .expect("a doorbell");
                let status = DeviceStatus::from_bits_retain(read(regs::STATUS));
                if status.contains(DeviceStatus::FATAL) || read(regs::RESET_COUNT) != resets {
                    break;
                }
                assert!(started.elapsed() < Duration::from_secs(60), "it went on");
                function.progress();
                std::thread::yield_now();
            }
        }
        _ => driver.reset().expect("the driver's reset"),
    }
}
