//! Host memory that belongs to a map: it stays until the device has let go of it.

mod scripted;

use offmap_abi::{MapType, regs};
use offmap_driver::{Driver, DriverConfig, DriverError, MapParams};
use scripted::Scripted;
use std::sync::Arc;
use std::time::Duration;

const BYTES: usize = 3 * 4096;

fn ready() -> (Arc<Scripted>, Arc<Driver<Scripted>>) {
    let device = Scripted::new();
    let config = DriverConfig {
        admin_timeout: Duration::from_millis(50),
        ..DriverConfig::default()
    };
    let driver = Driver::bring_up(Arc::clone(&device), config).unwrap();
    assert_eq!(mapped(&device), 1, "the admin queue");
    (device, driver)
}

fn mapped(device: &Scripted) -> usize {
    device.state().memory.mapped()
}

fn params() -> MapParams {
    MapParams {
        map_type: MapType::Ringbuf.0,
        max_entries: 4096,
        ..MapParams::default()
    }
}

#[test]
fn a_free_that_is_confirmed_gives_it_back() {
    let (device, driver) = ready();
    let (map, memory) = driver
        .create_map_with_memory(&params(), BYTES, None)
        .unwrap();
    assert_eq!(mapped(&device), 2);
    driver.check_map(&map).unwrap();
    let consumer = Arc::clone(&memory);
    driver.free_map_with_memory(&map, memory).unwrap();
    assert_eq!(mapped(&device), 2, "somebody reads it still");
    drop(consumer);
    assert_eq!(mapped(&device), 1);
}

#[test]
fn a_free_that_is_not_confirmed_keeps_it_until_a_reset() {
    let (device, driver) = ready();
    let (map, memory) = driver
        .create_map_with_memory(&params(), BYTES, None)
        .unwrap();
    device.state().answers_admin = false;
    let lost = driver.free_map_with_memory(&map, memory).unwrap_err();
    assert!(matches!(lost, DriverError::AdminTimeout { .. }), "{lost}");
    assert_eq!(mapped(&device), 2);
    device.state().answers_admin = true;
    device.state().reset_fails = true;
    assert!(driver.reset().is_err());
    assert!(mapped(&device) >= 2, "neither was the reset");
    device.state().reset_fails = false;
    driver.reset().unwrap();
    assert_eq!(mapped(&device), 1);
    let gone = driver.check_map(&map).unwrap_err();
    assert!(matches!(gone, DriverError::DeviceReset), "{gone}");
}

#[test]
fn a_creation_that_is_not_confirmed_keeps_it_until_a_reset() {
    for lie in ["no answer", "a short one"] {
        let (device, driver) = ready();
        if lie == "no answer" {
            device.state().answers_admin = false;
        } else {
            device.state().short_admin = true;
        }
        assert!(
            driver
                .create_map_with_memory(&params(), BYTES, None)
                .is_err()
        );
        assert_eq!(mapped(&device), 2, "{lie}");
        device.state().answers_admin = true;
        device.state().short_admin = false;
        driver.reset().unwrap();
        assert_eq!(mapped(&device), 1, "{lie}");
    }
}

#[test]
fn a_reset_has_freed_it() {
    let (device, driver) = ready();
    let (map, memory) = driver
        .create_map_with_memory(&params(), BYTES, None)
        .unwrap();
    driver.reset().unwrap();
    assert_eq!(mapped(&device), 2, "its owner holds it");
    let reset = driver.free_map_with_memory(&map, memory).unwrap_err();
    assert!(matches!(reset, DriverError::DeviceReset), "{reset}");
    assert_eq!(mapped(&device), 1);
    // A reset that did not succeed ends nothing.
    let (map, memory) = driver
        .create_map_with_memory(&params(), BYTES, None)
        .unwrap();
    device.state().reset_fails = true;
    assert!(driver.reset().is_err());
    assert!(driver.free_map_with_memory(&map, memory).is_err());
    assert!(mapped(&device) >= 2);
}

/// A reset that only a register tells of is none that was confirmed: the count may be read wrong.
#[test]
fn a_reset_of_somebody_elses_keeps_it_until_one_of_its_own() {
    let (device, driver) = ready();
    let (map, memory) = driver
        .create_map_with_memory(&params(), BYTES, None)
        .unwrap();
    device.state().answers_admin = false;
    let count = device.state().registers[&regs::RESET_COUNT];
    device
        .state()
        .registers
        .insert(regs::RESET_COUNT, count + 1);
    let reset = driver.free_map_with_memory(&map, memory).unwrap_err();
    assert!(matches!(reset, DriverError::DeviceReset), "{reset}");
    assert_eq!(mapped(&device), 2);
    device.state().answers_admin = true;
    driver.reset().unwrap();
    assert_eq!(mapped(&device), 1);
}
