//! Another implementation of the protocol, rust-vmm's, on the other side of the wire.

use crate::raw::server;
use offmap_abi::regs;
use offmap_device_io::{BarOffset, DmaBuffer, DmaPlacement, Function, Interrupt, IoError, Iova};
use offmap_tests::served::{SocketFolder, attach};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex};
use vfio_bindings::bindings::vfio as uapi;
use vfio_user::{Client, DmaMapFlags, DmaUnmapFlags, IrqInfo, Server, ServerBackend, ServerRegion};

const CONFIG: u32 = 7;

/// Their client drives our server: a NIC is what it finds.
#[test]
fn rust_vmms_client_drives_our_server() {
    let server = server();
    let mut client = Client::new(&server.path()).expect("it connects");
    assert_eq!(client.region(0).expect("BAR 0").size, regs::BAR0_BYTES);
    assert_eq!(client.region(2).expect("BAR 2").size, regs::WINDOW_BYTES);
    assert_eq!(client.region(1).expect("none").size, 0);
    let mut id = [0; 4];
    client.region_read(CONFIG, 0, &mut id).unwrap();
    assert_eq!(id[..2], regs::PCI_VENDOR_ID.to_le_bytes());
    assert_eq!(id[2..], regs::PCI_DEVICE_ID.to_le_bytes());
    client.region_write(CONFIG, 4, &[6, 0]).unwrap();
    let mut magic = [0; 8];
    client.region_read(0, regs::MAGIC, &mut magic).unwrap();
    assert_eq!(u64::from_le_bytes(magic), regs::MAGIC_VALUE);
    // The doorbells are shared where the sparse area says.
    let bar = client.region(0).unwrap();
    assert_eq!(bar.sparse_areas.len(), 1);
    let area = bar.sparse_areas[0];
    assert_eq!(
        (area.offset, area.size),
        (regs::DOORBELLS, regs::DOORBELLS_BYTES)
    );
    let file = bar.file_offset.as_ref().expect("a descriptor");
    let doorbells = offmap_device_io::BarMapping::new(
        file.file(),
        file.start() + area.offset,
        area.size as usize,
    )
    .unwrap();
    doorbells.store_u64(64, 0x1234_5678_9abc);
    let mut seen = [0; 8];
    client
        .region_read(0, regs::DOORBELLS + 64, &mut seen)
        .unwrap();
    assert_eq!(u64::from_le_bytes(seen), 0x1234_5678_9abc);
    // Interrupts.
    let info = client.get_irq_info(2).unwrap();
    assert_eq!(info.count, 17);
    let irq = Interrupt::new().unwrap();
    let fds = [irq.fd().as_raw_fd()];
    client.set_irqs(2, 4 | 32, 3, 1, &fds).unwrap();
    client.set_irqs(2, 1 | 32, 3, 1, &[]).unwrap();
    assert!(irq.take().unwrap());
    // Memory.
    let memory = DmaBuffer::new(8192, DmaPlacement::default()).unwrap();
    client
        .dma_map(0, 0x1000, 8192, memory.fd().as_raw_fd())
        .unwrap();
    assert_eq!(server.device().dma_mapped().unwrap(), (1, 1));
    client.dma_unmap(0x1000, 8192).unwrap();
    assert_eq!(server.device().dma_mapped().unwrap(), (0, 0));
    client.reset().unwrap();
    client.region_read(0, regs::MAGIC, &mut magic).unwrap();
    assert_eq!(magic, [0xff; 8], "memory space is off after a reset");
    client.shutdown().unwrap();
    server.wait_told("the client has left");
}

/// A device of theirs: config space, a BAR of registers, and a note of all it was asked.
#[derive(Default)]
struct Theirs {
    bar: [u8; 16],
    asked: Arc<Mutex<Vec<String>>>,
    irq: Option<File>,
}

impl Theirs {
    fn note(&self, what: String) {
        self.asked.lock().unwrap().push(what);
    }
}

impl ServerBackend for Theirs {
    fn region_read(&mut self, region: u32, offset: u64, data: &mut [u8]) -> io::Result<()> {
        data.fill(0);
        match region {
            CONFIG if offset == 0 && data.len() >= 4 => {
                data[..4].copy_from_slice(&[0xf4, 0x1a, 0xf0, 0x10]);
                // BAR 2: 64-bit, prefetchable.
                if data.len() > 0x18 {
                    data[0x18] = 0b1100;
                }
            }
            2 => {
                let at = offset as usize;
                let Some(from) = self.bar.get(at..at + data.len()) else {
                    return Err(io::Error::from_raw_os_error(14));
                };
                data.copy_from_slice(from);
            }
            _ => {}
        }
        Ok(())
    }

    fn region_write(&mut self, region: u32, offset: u64, data: &[u8]) -> io::Result<()> {
        let at = offset as usize;
        match self.bar.get_mut(at..at + data.len()) {
            Some(to) if region == 2 => to.copy_from_slice(data),
            _ => return Err(io::Error::from_raw_os_error(14)),
        }
        if let Some(irq) = &mut self.irq {
            io::Write::write_all(irq, &1u64.to_ne_bytes())?;
        }
        Ok(())
    }

    fn dma_map(
        &mut self,
        flags: DmaMapFlags,
        offset: u64,
        address: u64,
        size: u64,
        fd: Option<File>,
    ) -> io::Result<()> {
        let read_write = flags == DmaMapFlags::READ_WRITE;
        self.note(format!(
            "map {address:#x} {size} at {offset} {} {read_write}",
            fd.is_some()
        ));
        match address {
            // It has no errno for that but 0.
            0xdead_0000 => Err(io::Error::from_raw_os_error(12)),
            _ => Ok(()),
        }
    }

    fn dma_unmap(&mut self, _flags: DmaUnmapFlags, address: u64, size: u64) -> io::Result<()> {
        self.note(format!("unmap {address:#x} {size}"));
        Ok(())
    }

    fn reset(&mut self) -> io::Result<()> {
        self.note("reset".into());
        Ok(())
    }

    fn set_irqs(
        &mut self,
        index: u32,
        flags: u32,
        start: u32,
        count: u32,
        mut fds: Vec<File>,
    ) -> io::Result<()> {
        self.note(format!(
            "irqs {index} {flags:#x} {start} {count} {}",
            fds.len()
        ));
        self.irq = fds.pop();
        Ok(())
    }
}

/// Our client drives their server, and sees the errors that it reports.
#[test]
fn our_client_drives_rust_vmms_server() {
    let region = |index: u32, size| ServerRegion {
        region_info: uapi::vfio_region_info {
            argsz: 32,
            flags: 3,
            index,
            size,
            ..Default::default()
        },
        sparse_areas: Vec::new(),
        mmap_fd: None,
    };
    let sizes = [0, 0, 4096, 0, 0, 0, 0, 4096, 0];
    let regions = (0..9).zip(sizes).map(|(i, size)| region(i, size)).collect();
    let irqs = (0..5)
        .map(|index| IrqInfo {
            index,
            flags: u32::from(index == 2),
            count: if index == 2 { 4 } else { 0 },
        })
        .collect();
    let folder = SocketFolder::new();
    let server = Server::new(&folder.socket(), true, irqs, regions).unwrap();
    let mut theirs = Theirs::default();
    let asked = Arc::clone(&theirs.asked);
    let thread = std::thread::spawn(move || server.run(&mut theirs));
    let function = attach(&folder.socket());
    let mut id = [0; 4];
    function.config_read(0, &mut id).unwrap();
    assert_eq!(id, [0xf4, 0x1a, 0xf0, 0x10]);
    assert!(matches!(function.bar(0), Err(IoError::NoBar { bar: 0 })));
    let bar = function.bar(2).unwrap();
    assert_eq!(
        (bar.size_bytes, bar.is_64bit, bar.prefetchable),
        (4096, true, true)
    );
    assert!(function.map_bar(2, BarOffset(0), 4096).unwrap().is_none());
    assert_eq!(function.vectors(), 4);
    let irq = function.enable_vector(3).unwrap();
    function
        .write64(2, BarOffset(8), 0x1122_3344_5566_7788)
        .unwrap();
    assert!(irq.take().unwrap());
    assert_eq!(
        function.read64(2, BarOffset(8)).unwrap(),
        0x1122_3344_5566_7788
    );
    assert_eq!(function.read32(2, BarOffset(12)).unwrap(), 0x1122_3344);
    // An error of theirs, with no errno in it, is one.
    match function.read32(2, BarOffset(16)) {
        Err(IoError::Os { source, .. }) => assert_eq!(source.raw_os_error(), Some(5)),
        other => panic!("{other:?}"),
    }
    let memory = DmaBuffer::new(8192, DmaPlacement::default()).unwrap();
    function.dma_map(&memory, Iova(0x1000)).unwrap();
    assert!(function.dma_map(&memory, Iova(0xdead_0000)).is_err());
    assert!(matches!(
        function.dma_unmap(Iova(0xdead_0000), 8192),
        Err(IoError::NotMapped { .. })
    ));
    function.dma_unmap(Iova(0x1000), 8192).unwrap();
    function.reset().unwrap();
    function.disable_vector(3).unwrap();
    drop(function);
    thread.join().unwrap().unwrap();
    assert_eq!(
        *asked.lock().unwrap(),
        [
            "irqs 2 0x24 3 1 1",
            "map 0x1000 8192 at 0 true true",
            "map 0xdead0000 8192 at 0 true true",
            "unmap 0x1000 8192",
            "irqs 2 0x21 0 0 0",
            "reset",
            "irqs 2 0x24 3 1 0",
        ]
    );
}
