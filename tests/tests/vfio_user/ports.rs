//! A NIC with several ports: the driver is told, each port is a network interface, and maps are the
//! device's.

use offmap_bpf::device::OffloadDevice;
use offmap_bpf::{
    Caller, Errno, IfIndex, MapCreateAttr, MapFile, MapType, NetNs, System, SystemConfig,
};
use offmap_device_io::Function;
use offmap_driver::{Driver, DriverConfig};
use offmap_emulator::{DeviceConfig, EmulatorError, Inline, Threaded};
use offmap_offload::{OffloadNic, Profile};
use offmap_tests::served::{ServerProcess, attach};
use std::sync::Arc;

const PORTS: u32 = 3;

fn config(ports: u32) -> DeviceConfig {
    let mut config = DeviceConfig::default();
    config.firmware.memory_bytes = 16 << 20;
    config.firmware.ports = ports;
    config
}

fn nic<F: Function>(function: Arc<F>, ports: u32) -> Arc<OffloadNic<F>> {
    let driver = Driver::bring_up(function, DriverConfig::default()).expect("bring-up");
    assert_eq!(driver.identity().ports, ports);
    let nic = OffloadNic::new(driver, Profile::offmap()).expect("an offload NIC");
    assert_eq!(nic.ports(), ports);
    nic
}

fn map(system: &System, port: IfIndex) -> MapFile {
    let attr = MapCreateAttr {
        map_type: MapType::HASH.0,
        key_size: 4,
        value_size: 8,
        max_entries: 10,
        map_ifindex: port.0,
        ..MapCreateAttr::default()
    };
    let fd = system.map_create(&Caller::root(), &attr).expect("a map");
    let file = system.map_file(fd).expect("an open map");
    system.close(fd).expect("it is open");
    file
}

fn ports_share_their_maps<F: Function>(function: Arc<F>) {
    let nic: Arc<dyn OffloadDevice> = nic(function, PORTS);
    assert!(
        nic.describe().contains(" and 3 ports "),
        "{}",
        nic.describe()
    );
    let system = System::new(SystemConfig::default());
    let ports = system.register_ports("offmap", &nic).expect("ports");
    let names: Vec<_> = ports.iter().map(|port| system.netdev_name(*port)).collect();
    let expected = ["offmap0", "offmap1", "offmap2"].map(|name| Some(name.to_owned()));
    assert_eq!(names, expected);
    for port in &ports {
        let device = system.offload_device(*port).expect("it can offload");
        assert!(Arc::ptr_eq(&device, &nic), "another device");
    }
    // Each has its maps, and what is in one stays until the last port has gone.
    let maps: Vec<_> = ports.iter().map(|port| map(&system, *port)).collect();
    let write = |map: &MapFile, n: u64| map.update(&[7; 4], &n.to_le_bytes(), 0);
    let read = |map: &MapFile| {
        let mut value = [0; 8];
        map.lookup(&[7; 4], &mut value, 0)
            .map(|()| u64::from_le_bytes(value))
    };
    for (n, map) in (0..).zip(&maps) {
        write(map, n).expect("room");
    }
    for gone in &ports[..2] {
        system.unregister_netdev(*gone).expect("it is there");
        for (n, map) in (0..).zip(&maps) {
            assert_eq!(read(map).expect("the device is there"), n);
        }
    }
    system.unregister_netdev(ports[2]).expect("it is there");
    for map in &maps {
        assert_eq!(read(map).unwrap_err().errno(), Errno::ENODEV);
    }
}

#[test]
fn in_this_process() {
    ports_share_their_maps(Inline::new(config(PORTS)).expect("a device"));
    ports_share_their_maps(Threaded::spawn(config(PORTS)).expect("a device"));
}

#[test]
fn over_the_wire() {
    let server = ServerProcess::spawn(&config(PORTS));
    ports_share_their_maps(Arc::new(attach(&server.path())));
}

/// One port and the most: the ends of what there may be. What is beyond them is no device.
#[test]
fn one_and_the_most_and_none_beyond() {
    for ports in [1, 256] {
        nic(Inline::new(config(ports)).expect("a device"), ports);
    }
    for ports in [0, 257, u32::MAX] {
        match Inline::new(config(ports)) {
            Err(e @ EmulatorError::Firmware(_)) => {
                let said = format!("ports is {ports}, outside 1 to 256");
                assert!(e.to_string().contains(&said), "{e}");
            }
            other => panic!("{ports}: {:?}", other.map(|_| ())),
        }
    }
}

/// Where a name is taken or too long no port is left behind.
#[test]
fn all_ports_or_none() {
    let nic: Arc<dyn OffloadDevice> = nic(Inline::new(config(PORTS)).expect("a device"), PORTS);
    let system = System::new(SystemConfig::default());
    let taken = system.add_netdev("offmap2", NetNs::INIT).expect("a netdev");
    let error = system.register_ports("offmap", &nic).unwrap_err();
    assert_eq!(error.errno(), Errno::EEXIST);
    for name in ["offmap0", "offmap1"] {
        assert_eq!(system.netdev_by_name(NetNs::INIT, name), None, "{name}");
    }
    let error = system.register_ports("a-name-too-long", &nic).unwrap_err();
    assert_eq!(error.errno(), Errno::EINVAL);
    system.unregister_netdev(taken).expect("it is there");
    let ports = system.register_ports("offmap", &nic).expect("ports");
    assert_eq!(ports.len(), PORTS as usize);
}
