//! A device that is bound to vfio-pci as a [`Function`].
//!
//! Registers and config space are read and written through the device's file, where an error is
//! seen and a device without memory accesses is no fatal signal; only doorbells are mapped.

use crate::attach::{self, Attach, AttachError, Space};
use crate::interrupts::Vectors;
use crate::ioctl;
use crate::watch::Watch;
use offmap_device_io::{
    BarInfo, BarMapping, BarOffset, DmaBuffer, Function, Interrupt, IoError, Iova, IovaRange,
    lies_in,
};
use rustix::io::{Errno, pread, pwrite};
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{
    Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard, TryLockError, mpsc,
};
use std::thread;
use std::time::Duration;
use vfio_bindings::bindings::vfio::{
    VFIO_PCI_CONFIG_REGION_INDEX, VFIO_PCI_MSIX_IRQ_INDEX, VFIO_REGION_INFO_FLAG_MMAP,
};
use vfio_ioctls::{VfioDevice, VfioRegionInfoCap};

/// BARs of a PCI function.
const BARS: u8 = 6;
/// Most bytes of config space.
const CONFIG_BYTES: u64 = 4096;
/// Offsets in config space.
const COMMAND: u16 = 0x04;
const BAR0: u16 = 0x10;
/// Bits of the command register.
const MEMORY: u8 = 1 << 1;
const BUS_MASTER: u8 = 1 << 2;

/// How long a device that is gone stays open after it was dropped.
const CLOSE_AFTER: Duration = Duration::from_secs(1);

/// How often is looked whether a reset has ended.
const LOOK: Duration = Duration::from_micros(200);

/// What is said of a device that answers nothing but ones.
const SILENT: &str = "its registers and IDs read as those of a device that is not there";

/// A part of the device's file.
#[derive(Clone, Copy, Debug)]
struct Region {
    /// Where it starts in the file.
    start: u64,
    size: u64,
}

/// The device's file, which also the thread that watches over the device holds.
#[derive(Debug)]
pub(crate) struct Device {
    file: File,
    config: Region,
    irqs: Vec<u32>,
    /// Vendor and device ID, as they were when it was opened.
    identity: OnceLock<[u8; 4]>,
    gone: OnceLock<&'static str>,
    /// Held for writing while the kernel resets the device: until that ends, which may take it a
    /// minute, it lets every access wait.
    reset: RwLock<()>,
}

impl Device {
    /// Waits for a reset that is under way, unless the device goes before it ends.
    fn settled(&self) -> Result<RwLockReadGuard<'_, ()>, IoError> {
        loop {
            self.present()?;
            match self.reset.try_read() {
                Ok(guard) => return Ok(guard),
                Err(TryLockError::Poisoned(poisoned)) => return Ok(poisoned.into_inner()),
                Err(TryLockError::WouldBlock) => thread::sleep(LOOK),
            }
        }
    }

    /// Whether there are interrupts of this kind.
    pub(crate) fn has_irq(&self, index: u32) -> bool {
        self.irqs.contains(&index)
    }

    /// Routes interrupts of a kind from `start` on.
    pub(crate) fn route(
        &self,
        index: u32,
        start: u32,
        to: &[Option<&Interrupt>],
    ) -> io::Result<()> {
        let fds: Vec<i32> = to
            .iter()
            .map(|to| to.map_or(-1, |interrupt| interrupt.fd().as_raw_fd()))
            .collect();
        let _settled = self.settled().map_err(io::Error::other)?;
        ioctl::set_irqs(self.file.as_fd(), index, start, &fds)
    }

    /// Switches all interrupts of a kind off.
    pub(crate) fn silence(&self, index: u32) -> io::Result<()> {
        let _settled = self.settled().map_err(io::Error::other)?;
        ioctl::no_irqs(self.file.as_fd(), index)
    }

    /// Counts the device as gone: whoever waits for it sees that at the next look at a register.
    pub(crate) fn lose(&self, why: &'static str) {
        // The first reason is the one.
        let _ = self.gone.set(why);
    }

    /// Takes its access to memory away.
    pub(crate) fn revoke(&self) {
        // What is being reset has none.
        let Ok(_settled) = self.reset.try_read() else {
            return;
        };
        let at = self.config.start + u64::from(COMMAND);
        let mut command = [0; 2];
        // Where that fails the device is not there to reach any memory.
        if pread(&self.file, &mut command, at).is_ok() {
            command[0] &= !BUS_MASTER;
            let _ = pwrite(&self.file, &command, at);
        }
    }

    fn present(&self) -> Result<(), IoError> {
        match self.gone.get() {
            Some(why) => Err(IoError::Gone(why)),
            None => Ok(()),
        }
    }

    /// Whether the device has left without a word: its IDs are not what they were. Ones they are on
    /// a bus, and an error's number where QEMU has lost its server.
    fn is_silent(&self) -> bool {
        let mut now = [0; 4];
        let Ok(_settled) = self.settled() else {
            return true;
        };
        let read = pread(&self.file, &mut now, self.config.start);
        let same = || self.identity.get_or_init(|| now) == &now;
        !matches!(read, Ok(4)) || now == [0xff; 4] || !same()
    }

    /// An error of an access, which may be because the device has left.
    fn failed(&self, what: &'static str, error: Errno) -> IoError {
        let left = matches!(error, Errno::NODEV | Errno::NXIO);
        if left || self.is_silent() {
            self.lose(SILENT);
        }
        match self.present() {
            Err(gone) => gone,
            Ok(()) => IoError::os(what, error),
        }
    }

    fn read(&self, at: u64, into: &mut [u8], what: &'static str) -> Result<(), IoError> {
        let settled = self.settled()?;
        let mut done = 0;
        let failed = loop {
            if done == into.len() {
                return Ok(());
            }
            match pread(&self.file, &mut into[done..], at + done as u64) {
                Ok(0) => break Errno::IO,
                Ok(bytes) => done += bytes,
                Err(Errno::INTR) => {}
                Err(e) => break e,
            }
        };
        drop(settled);
        Err(self.failed(what, failed))
    }

    fn write(&self, at: u64, from: &[u8], what: &'static str) -> Result<(), IoError> {
        let settled = self.settled()?;
        let mut done = 0;
        let failed = loop {
            if done == from.len() {
                return Ok(());
            }
            match pwrite(&self.file, &from[done..], at + done as u64) {
                Ok(0) => break Errno::IO,
                Ok(bytes) => done += bytes,
                Err(Errno::INTR) => {}
                Err(e) => break e,
            }
        };
        drop(settled);
        Err(self.failed(what, failed))
    }
}

#[derive(Debug)]
struct Bar {
    info: BarInfo,
    region: Region,
    /// Parts that can be mapped, in bytes from its start.
    areas: Vec<(u64, u64)>,
}

/// What holds the function open, in the order in which it goes.
struct Open {
    _watch: Watch,
    /// Closes its descriptor before `_device` does, while the function still stands in sysfs,
    /// where it looks for its group.
    _handle: VfioDevice,
    _device: Arc<Device>,
    _space: Arc<Space>,
}

/// A PCI function that is bound to vfio-pci.
pub struct Vfio {
    /// There until it is dropped.
    open: Option<Open>,
    device: Arc<Device>,
    space: Arc<Space>,
    name: String,
    node: Option<u32>,
    bars: [Option<Bar>; BARS as usize],
    ranges: Vec<IovaRange>,
    vectors: Vectors,
    /// What is mapped for DMA: first IOVA and length in bytes.
    mapped: Mutex<BTreeMap<u64, usize>>,
    /// Doorbells have been given out.
    doorbells: AtomicBool,
    reset_timeout: Duration,
}

impl Vfio {
    /// Opens the function at a PCI address, such as `0000:01:00.0`.
    ///
    /// # Errors
    ///
    /// [`AttachError`], which says what has to be done.
    pub fn attach(address: &str, attach: Attach) -> Result<Self, AttachError> {
        let opened = attach::open(address, attach.interface)?;
        let (handle, space) = (opened.device, Arc::new(opened.space));
        let attach::Found {
            function: found, ..
        } = opened.found;
        // A descriptor of our own: it keeps the kernel from removing the function while
        // `handle` is dropped.
        let file = attach::duplicate(&handle)?;
        let region = |index: u32| Region {
            start: handle.get_region_offset(index),
            size: handle.get_region_size(index),
        };
        let config = region(VFIO_PCI_CONFIG_REGION_INDEX);
        let irqs = (0..16).filter(|index| {
            let irq = handle.get_irq_info(*index);
            irq.is_some_and(|irq| irq.count > 0)
        });
        let device = Arc::new(Device {
            file,
            config,
            irqs: irqs.collect(),
            identity: OnceLock::new(),
            gone: OnceLock::new(),
            reset: RwLock::new(()),
        });
        if device.is_silent() {
            return Err(IoError::Gone(SILENT).into());
        }
        let mut bars = [const { None }; BARS as usize];
        for (index, bar) in bars.iter_mut().enumerate() {
            *bar = Self::look(&device, &handle, index as u32)?;
        }
        let vectors = handle.get_irq_info(VFIO_PCI_MSIX_IRQ_INDEX);
        let vectors = Vectors::new(vectors.map_or(0, |irq| irq.count));
        let ranges = space.ranges()?;
        let watch = Watch::spawn(&device)?;
        let open = Open {
            _watch: watch,
            _handle: handle,
            _device: Arc::clone(&device),
            _space: Arc::clone(&space),
        };
        Ok(Self {
            open: Some(open),
            device,
            space,
            name: format!("vfio:{}", found.address),
            node: found.numa_node,
            bars,
            ranges,
            vectors,
            mapped: Mutex::default(),
            doorbells: AtomicBool::new(false),
            reset_timeout: attach.reset_timeout,
        })
    }

    /// The BAR of that index, if there is one.
    fn look(device: &Device, handle: &VfioDevice, index: u32) -> Result<Option<Bar>, IoError> {
        let size = handle.get_region_size(index);
        if size == 0 {
            return Ok(None);
        }
        let mut kind = [0];
        let at = device.config.start + u64::from(BAR0) + 4 * u64::from(index);
        device.read(at, &mut kind, "cannot read config space")?;
        let caps = handle.get_region_caps(index);
        let listed = caps.iter().find_map(|cap| match cap {
            VfioRegionInfoCap::SparseMmap(sparse) => Some(&sparse.areas),
            _ => None,
        });
        let areas = match listed {
            _ if handle.get_region_flags(index) & VFIO_REGION_INFO_FLAG_MMAP == 0 => Vec::new(),
            Some(areas) => areas.iter().map(|area| (area.offset, area.size)).collect(),
            // Without a list all of it can be mapped.
            None => vec![(0, size)],
        };
        Ok(Some(Bar {
            info: BarInfo {
                size_bytes: size,
                is_64bit: kind[0] & 0b111 == 0b100,
                prefetchable: kind[0] & 0b1001 == 0b1000,
            },
            region: Region {
                start: handle.get_region_offset(index),
                size,
            },
            areas,
        }))
    }

    fn find(&self, bar: u8) -> Result<&Bar, IoError> {
        let found = self.bars.get(usize::from(bar)).and_then(Option::as_ref);
        found.ok_or(IoError::NoBar { bar })
    }

    /// Where in the file an access of a BAR goes.
    fn place(&self, bar: u8, offset: BarOffset, len: usize) -> Result<u64, IoError> {
        let region = self.find(bar)?.region;
        if !offset.0.is_multiple_of(len as u64) || !lies_in(0, region.size, offset, len) {
            return Err(IoError::BarAccess { bar, offset, len });
        }
        Ok(region.start + offset.0)
    }

    fn bar_read(&self, bar: u8, offset: BarOffset, into: &mut [u8]) -> Result<(), IoError> {
        let at = self.place(bar, offset, into.len())?;
        self.device.read(at, into, "cannot read a register")?;
        // What a device answers that is not there. It may be a register's value, too.
        if into.iter().all(|byte| *byte == 0xff) && self.device.is_silent() {
            self.device.lose(SILENT);
        }
        self.device.present()
    }

    fn bar_write(&self, bar: u8, offset: BarOffset, from: &[u8]) -> Result<(), IoError> {
        let at = self.place(bar, offset, from.len())?;
        self.device.write(at, from, "cannot write a register")
    }

    fn config_place(&self, offset: u16, len: usize) -> Result<u64, IoError> {
        let (region, bytes) = (self.device.config, len as u64);
        let size = region.size.min(CONFIG_BYTES);
        if bytes > size || u64::from(offset) > size - bytes {
            return Err(IoError::ConfigRange { offset, len });
        }
        Ok(region.start + u64::from(offset))
    }

    fn mapped(&self) -> MutexGuard<'_, BTreeMap<u64, usize>> {
        self.mapped.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Vfio {
    /// The kernel resets a device that is closed, and waits up to a minute for one that does not
    /// answer. Nobody else waits: the process goes on, and only its end comes after that.
    fn drop(&mut self) {
        let open = self.open.take();
        if self.device.present().is_ok() {
            return;
        }
        let close = move || {
            // The last to let go is the one who waits: that is not to be whoever drops doorbells.
            thread::sleep(CLOSE_AFTER);
            drop(open);
        };
        // Without a thread it is here that the kernel is waited for.
        let _ = thread::Builder::new()
            .name("offmap-close".into())
            .spawn(close);
    }
}

impl std::fmt::Debug for Vfio {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut shown = f.debug_struct("Vfio");
        shown
            .field("name", &self.name)
            .field("device", &self.device);
        shown.finish_non_exhaustive()
    }
}

impl Function for Vfio {
    fn describe(&self) -> String {
        self.name.clone()
    }

    fn config_read(&self, offset: u16, buf: &mut [u8]) -> Result<(), IoError> {
        let at = self.config_place(offset, buf.len())?;
        self.device.read(at, buf, "cannot read config space")
    }

    /// As [`Function::config_write`]. Once doorbells are mapped, memory accesses cannot be
    /// switched off any more (EBUSY): the next doorbell would kill the process.
    fn config_write(&self, offset: u16, data: &[u8]) -> Result<(), IoError> {
        let at = self.config_place(offset, data.len())?;
        let command = COMMAND.checked_sub(offset).map(usize::from);
        let command = command.and_then(|at| data.get(at));
        let off = command.is_some_and(|low| low & MEMORY == 0);
        if off && self.doorbells.load(Ordering::Acquire) {
            let what = "memory accesses stay on while doorbells are mapped";
            return Err(IoError::os(what, Errno::BUSY));
        }
        self.device.write(at, data, "cannot write config space")
    }

    fn bar(&self, bar: u8) -> Result<BarInfo, IoError> {
        Ok(self.find(bar)?.info)
    }

    fn read32(&self, bar: u8, offset: BarOffset) -> Result<u32, IoError> {
        let mut bytes = [0; 4];
        self.bar_read(bar, offset, &mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn read64(&self, bar: u8, offset: BarOffset) -> Result<u64, IoError> {
        let mut bytes = [0; 8];
        self.bar_read(bar, offset, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn write32(&self, bar: u8, offset: BarOffset, value: u32) -> Result<(), IoError> {
        self.bar_write(bar, offset, &value.to_le_bytes())
    }

    fn write64(&self, bar: u8, offset: BarOffset, value: u64) -> Result<(), IoError> {
        self.bar_write(bar, offset, &value.to_le_bytes())
    }

    fn map_bar(
        &self,
        bar: u8,
        offset: BarOffset,
        len: usize,
    ) -> Result<Option<BarMapping>, IoError> {
        let found = self.find(bar)?;
        if len == 0 || !lies_in(0, found.region.size, offset, len) {
            return Err(IoError::BarAccess { bar, offset, len });
        }
        self.device.present()?;
        let inside = |&(at, size): &(u64, u64)| lies_in(at, size, offset, len);
        if !found.areas.iter().any(inside) {
            return Ok(None);
        }
        self.doorbells.store(true, Ordering::Release);
        let start = found.region.start + offset.0;
        BarMapping::new(&self.device.file, start, len).map(Some)
    }

    fn iova_ranges(&self) -> Vec<IovaRange> {
        self.ranges.clone()
    }

    fn dma_map(&self, buffer: &DmaBuffer, iova: Iova) -> Result<(), IoError> {
        self.device.present()?;
        let mut mapped = self.mapped();
        self.space.map(buffer, iova)?;
        mapped.insert(iova.0, buffer.len());
        Ok(())
    }

    fn dma_unmap(&self, iova: Iova, len: usize) -> Result<(), IoError> {
        let mut mapped = self.mapped();
        // The kernel accepts to unmap what is not mapped.
        if mapped.get(&iova.0) != Some(&len) {
            return Err(IoError::NotMapped { iova, len });
        }
        // Also of a device that is gone: the memory is locked until then.
        self.space.unmap(iova, len)?;
        mapped.remove(&iova.0);
        Ok(())
    }

    fn vectors(&self) -> u32 {
        self.vectors.count()
    }

    fn enable_vector(&self, vector: u32) -> Result<Interrupt, IoError> {
        self.device.present()?;
        self.vectors.enable(&self.device, vector)
    }

    fn disable_vector(&self, vector: u32) -> Result<(), IoError> {
        self.device.present()?;
        self.vectors.disable(&self.device, vector)
    }

    /// As [`Function::reset`]. The kernel may wait for a device for longer than anybody should
    /// wait for the kernel: after [`Attach::reset_timeout`] the device counts as gone.
    fn reset(&self) -> Result<(), IoError> {
        // The kernel waits a minute for one that is not there.
        if self.device.is_silent() {
            self.device.lose(SILENT);
        }
        self.device.present()?;
        // The kernel puts config space back as it was, MSI-X included.
        self.vectors.silence(&self.device)?;
        let (done, answer) = mpsc::sync_channel(1);
        let device = Arc::clone(&self.device);
        thread::Builder::new()
            .name("offmap-reset".into())
            .spawn(move || {
                let under_way = device.reset.write();
                let ended = ioctl::reset(device.file.as_fd());
                drop(under_way);
                // Nobody may be waiting any more.
                let _ = done.send(ended);
            })
            .map_err(|e| IoError::os("cannot start a thread", e))?;
        match answer.recv_timeout(self.reset_timeout) {
            Ok(Ok(())) => self.device.present(),
            Ok(Err(e)) => {
                let errno = Errno::from_io_error(&e).unwrap_or(Errno::IO);
                Err(self.device.failed("cannot reset the device", errno))
            }
            Err(_) => {
                self.device.lose("its reset has made no end in time");
                self.device.present()
            }
        }
    }

    fn numa_node(&self) -> Option<u32> {
        self.node
    }

    #[inline]
    fn progress(&self) {
        std::hint::spin_loop();
    }
}
