//! A device behind a vfio-user socket as a [`Function`].

use crate::client::{Attach, Client, DmaAccess};
use crate::shared;
use crate::wire::{
    self, Area, Command, DeviceInfoBody, DmaFlags, DmaMapBody, DmaUnmapBody, IrqFlags, IrqInfoBody,
    RegionAccessBody, RegionFlags, RegionInfoBody, RegionIoFdsBody, SetIrqsBody, SparseMmapCap,
    SubRegionIoFd,
};
use offmap_device_io::{
    BarInfo, BarMapping, BarOffset, DmaBuffer, Function, Interrupt, IoError, Iova, IovaRange,
    PAGE_BYTES, lies_in,
};
use std::collections::BTreeMap;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use zerocopy::IntoBytes;

/// BARs of a PCI function.
const BARS: usize = 6;
/// Bytes of config space.
const CONFIG_BYTES: u64 = 4096;
/// Vectors that MSI-X can have.
const VECTORS_MAX: u32 = 2048;
/// The most that a region's description may take, capabilities and all, in bytes.
const REGION_INFO_MAX: u32 = 1 << 16;
/// Writes of a region for which eventfds are taken: as many as descriptors fit a message.
const EVENTS_MAX: usize = 16;
/// Capabilities of a region that are looked at.
const CAPS_MAX: usize = 16;

/// IOVAs, of which the protocol says nothing: 48 bits, without the range that x86 machines
/// decode as interrupt messages.
const IOVA_RANGES: [IovaRange; 2] = [
    IovaRange {
        first: Iova(0),
        last: Iova(0xfedf_ffff),
    },
    IovaRange {
        first: Iova(0xfef0_0000),
        last: Iova((1 << 48) - 1),
    },
];

/// A BAR, and what of it can be mapped.
#[derive(Debug)]
struct Bar {
    info: BarInfo,
    file: Option<(OwnedFd, u64)>,
    areas: Vec<(u64, u64)>,
    /// Writes for which an eventfd can be signalled.
    events: Vec<WriteEvent>,
}

/// A write that signals an eventfd of the server in place of a message.
#[derive(Debug)]
struct WriteEvent {
    offset: u64,
    /// Bytes of the access; 0: of any.
    size: u64,
    /// The value that it must have; `None`: any.
    data: Option<u64>,
    to: Interrupt,
}

/// The PCI function that a vfio-user server serves.
///
/// Registers and config space are messages, which wait for their replies, but for writes that only wake
/// the device, where the server has an eventfd for them. The doorbells are memory, where the server shares them in a file that it cannot shorten. DMA buffers are
/// passed as the files that they are, interrupts as eventfds.
#[derive(Debug)]
pub struct VfioUser {
    client: Client,
    name: String,
    bars: [Option<Bar>; BARS],
    config_bytes: u64,
    vectors: u32,
    /// What is mapped for DMA: first IOVA and length in bytes.
    mapped: Mutex<BTreeMap<u64, usize>>,
}

impl VfioUser {
    /// Attaches to the server at `path`, and asks what its device is like.
    ///
    /// # Errors
    ///
    /// As [`Client::connect`]; [`IoError::Gone`] also where the server describes what cannot
    /// be a PCI function.
    pub fn attach(path: &Path, attach: Attach) -> Result<Self, IoError> {
        let client = Client::connect(path, attach)?;
        let ask = DeviceInfoBody {
            argsz: (size_of::<DeviceInfoBody>() as u32).into(),
            ..Default::default()
        };
        let info: DeviceInfoBody = ask_for(&client, Command::DEVICE_GET_INFO, &ask)?;
        let flags = info.flags.get();
        if flags & wire::DEVICE_PCI == 0 || info.regions.get() <= wire::CONFIG_REGION {
            return Err(IoError::Gone(
                "the vfio-user server's device is no PCI function",
            ));
        }
        let config = region(&client, wire::CONFIG_REGION)?;
        let mut header = [0; 64];
        if config.size < header.len() as u64 {
            return Err(IoError::Gone(
                "the vfio-user server's device has no config space",
            ));
        }
        read(&client, wire::CONFIG_REGION, 0, &mut header)?;
        let mut bars = [const { None }; BARS];
        for (index, bar) in bars.iter_mut().enumerate() {
            let found = region(&client, index as u32)?;
            if found.size == 0 {
                continue;
            }
            if !found.size.is_power_of_two() {
                return Err(IoError::Gone(
                    "a BAR of the vfio-user server has no size of BARs",
                ));
            }
            let kind = header[0x10 + 4 * index];
            let events = match client.server().region_io_fds {
                Some(true) => write_events(&client, index as u32, found.size)?,
                _ => Vec::new(),
            };
            *bar = Some(Bar {
                info: BarInfo {
                    size_bytes: found.size,
                    is_64bit: kind & 0b111 == 0b100,
                    prefetchable: kind & 0b1001 == 0b1000,
                },
                file: found.file,
                areas: found.areas,
                events,
            });
        }
        let vectors = match info.irqs.get() > wire::MSIX_IRQ {
            true => vectors(&client)?,
            false => 0,
        };
        Ok(Self {
            client,
            name: format!("vfio-user:{}", path.display()),
            bars,
            config_bytes: config.size.min(CONFIG_BYTES),
            vectors,
            mapped: Mutex::default(),
        })
    }

    /// The connection, for commands that a [`Function`] has no method for.
    pub fn client(&self) -> &Client {
        &self.client
    }

    fn find(&self, bar: u8) -> Result<&Bar, IoError> {
        let found = self.bars.get(usize::from(bar)).and_then(Option::as_ref);
        found.ok_or(IoError::NoBar { bar })
    }

    fn checked(&self, bar: u8, offset: BarOffset, len: usize) -> Result<(), IoError> {
        let size = self.find(bar)?.info.size_bytes;
        if !offset.0.is_multiple_of(len as u64) || !lies_in(0, size, offset, len) {
            return Err(IoError::BarAccess { bar, offset, len });
        }
        Ok(())
    }

    /// Writes a register: by its eventfd, or by a message.
    fn write(&self, bar: u8, offset: BarOffset, bytes: &[u8], value: u64) -> Result<(), IoError> {
        self.checked(bar, offset, bytes.len())?;
        let stands_for = |event: &&WriteEvent| {
            event.offset == offset.0
                && (event.size == 0 || event.size == bytes.len() as u64)
                && event.data.is_none_or(|data| data == value)
        };
        match self.find(bar)?.events.iter().find(stands_for) {
            Some(event) => event.to.signal(),
            None => write(&self.client, bar.into(), offset.0, bytes),
        }
    }

    fn config(&self, offset: u16, len: usize) -> Result<(), IoError> {
        if len as u64 > self.config_bytes || u64::from(offset) > self.config_bytes - len as u64 {
            return Err(IoError::ConfigRange { offset, len });
        }
        Ok(())
    }

    fn set_irq(&self, vector: u32, to: Option<BorrowedFd<'_>>) -> Result<(), IoError> {
        let vectors = self.vectors;
        if vector >= vectors {
            return Err(IoError::NoVector { vector, vectors });
        }
        let body = SetIrqsBody {
            argsz: (size_of::<SetIrqsBody>() as u32).into(),
            flags: (wire::IRQ_DATA_EVENTFD | wire::IRQ_ACTION_TRIGGER).into(),
            index: wire::MSIX_IRQ.into(),
            start: vector.into(),
            count: 1.into(),
        };
        let fds: Vec<BorrowedFd<'_>> = to.into_iter().collect();
        let bytes = [body.as_bytes()];
        self.client.call(
            Command::DEVICE_SET_IRQS,
            &bytes,
            &fds,
            size_of::<SetIrqsBody>(),
        )?;
        Ok(())
    }

    fn mapped(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, usize>> {
        self.mapped.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Function for VfioUser {
    fn describe(&self) -> String {
        self.name.clone()
    }

    fn config_read(&self, offset: u16, buf: &mut [u8]) -> Result<(), IoError> {
        self.config(offset, buf.len())?;
        if buf.is_empty() {
            return Ok(());
        }
        read(&self.client, wire::CONFIG_REGION, offset.into(), buf)
    }

    fn config_write(&self, offset: u16, data: &[u8]) -> Result<(), IoError> {
        self.config(offset, data.len())?;
        if data.is_empty() {
            return Ok(());
        }
        write(&self.client, wire::CONFIG_REGION, offset.into(), data)
    }

    fn bar(&self, bar: u8) -> Result<BarInfo, IoError> {
        Ok(self.find(bar)?.info)
    }

    fn read32(&self, bar: u8, offset: BarOffset) -> Result<u32, IoError> {
        let mut bytes = [0; 4];
        self.checked(bar, offset, bytes.len())?;
        read(&self.client, bar.into(), offset.0, &mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn read64(&self, bar: u8, offset: BarOffset) -> Result<u64, IoError> {
        let mut bytes = [0; 8];
        self.checked(bar, offset, bytes.len())?;
        read(&self.client, bar.into(), offset.0, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn write32(&self, bar: u8, offset: BarOffset, value: u32) -> Result<(), IoError> {
        self.write(bar, offset, &value.to_le_bytes(), value.into())
    }

    fn write64(&self, bar: u8, offset: BarOffset, value: u64) -> Result<(), IoError> {
        self.write(bar, offset, &value.to_le_bytes(), value)
    }

    fn map_bar(
        &self,
        bar: u8,
        offset: BarOffset,
        len: usize,
    ) -> Result<Option<BarMapping>, IoError> {
        let found = self.find(bar)?;
        if len == 0 || !lies_in(0, found.info.size_bytes, offset, len) {
            return Err(IoError::BarAccess { bar, offset, len });
        }
        let inside = |&(at, size): &(u64, u64)| lies_in(at, size, offset, len);
        if !found.areas.iter().any(inside) {
            return Ok(None);
        }
        let Some((fd, base)) = &found.file else {
            return Ok(None);
        };
        let Some(start) = base.checked_add(offset.0) else {
            return Ok(None);
        };
        // Where the server could take the file's memory away, its registers are messages.
        if shared::check(fd).is_err() || !shared::holds(fd, start, len as u64) {
            return Ok(None);
        }
        BarMapping::new(fd, start, len).map(Some)
    }

    fn iova_ranges(&self) -> Vec<IovaRange> {
        IOVA_RANGES.to_vec()
    }

    fn dma_map(&self, buffer: &DmaBuffer, iova: Iova) -> Result<(), IoError> {
        let len = buffer.len();
        let mut mapped = self.mapped();
        let body = DmaMapBody {
            argsz: (size_of::<DmaMapBody>() as u32).into(),
            flags: (DmaFlags::READ | DmaFlags::WRITE).bits().into(),
            offset: buffer.fd_offset().into(),
            address: iova.0.into(),
            size: (len as u64).into(),
        };
        // A server that does not map the file may ask for the memory before it has answered.
        self.client.share(buffer, iova)?;
        let file = match self.client.dma_access() {
            DmaAccess::Files => &[buffer.fd()][..],
            DmaAccess::Messages => &[],
        };
        let bytes = [body.as_bytes()];
        let answered = self.client.call(Command::DMA_MAP, &bytes, file, 0);
        if let Err(e) = answered {
            self.client.unshare(iova);
            return Err(e);
        }
        mapped.insert(iova.0, len);
        Ok(())
    }

    fn dma_unmap(&self, iova: Iova, len: usize) -> Result<(), IoError> {
        let mut mapped = self.mapped();
        // Servers accept to unmap what is not mapped, as the kernel does.
        if mapped.get(&iova.0) != Some(&len) {
            return Err(IoError::NotMapped { iova, len });
        }
        let body = DmaUnmapBody {
            argsz: (size_of::<DmaUnmapBody>() as u32).into(),
            address: iova.0.into(),
            size: (len as u64).into(),
            ..Default::default()
        };
        let bytes = [body.as_bytes()];
        self.client
            .call(Command::DMA_UNMAP, &bytes, &[], size_of::<DmaUnmapBody>())?;
        self.client.unshare(iova);
        mapped.remove(&iova.0);
        Ok(())
    }

    fn vectors(&self) -> u32 {
        self.vectors
    }

    fn enable_vector(&self, vector: u32) -> Result<Interrupt, IoError> {
        let interrupt = Interrupt::new()?;
        self.set_irq(vector, Some(interrupt.fd()))?;
        Ok(interrupt)
    }

    fn disable_vector(&self, vector: u32) -> Result<(), IoError> {
        self.set_irq(vector, None)
    }

    fn reset(&self) -> Result<(), IoError> {
        // Routes are the client's and outlive a reset, as those of the kernel's VFIO do.
        if self.vectors > 0 {
            let none = SetIrqsBody {
                argsz: (size_of::<SetIrqsBody>() as u32).into(),
                flags: (wire::IRQ_DATA_NONE | wire::IRQ_ACTION_TRIGGER).into(),
                index: wire::MSIX_IRQ.into(),
                start: 0.into(),
                count: 0.into(),
            };
            let room = size_of::<SetIrqsBody>();
            let command = Command::DEVICE_SET_IRQS;
            self.client.call(command, &[none.as_bytes()], &[], room)?;
        }
        self.client.call(Command::DEVICE_RESET, &[], &[], 0)?;
        Ok(())
    }

    #[inline]
    fn progress(&self) {
        std::hint::spin_loop();
    }
}

/// What the server says of a region.
struct Found {
    size: u64,
    file: Option<(OwnedFd, u64)>,
    areas: Vec<(u64, u64)>,
}

/// Sends a structure and gets one of the same kind back.
fn ask_for<T>(client: &Client, command: Command, ask: &T) -> Result<T, IoError>
where
    T: IntoBytes
        + zerocopy::FromBytes
        + zerocopy::Immutable
        + zerocopy::KnownLayout
        + zerocopy::Unaligned,
{
    let reply = client.call(command, &[ask.as_bytes()], &[], size_of::<T>())?;
    let told = wire::take::<T>(&reply.body);
    told.map(|(value, _)| value)
        .ok_or(IoError::Gone("the vfio-user server's answer is too short"))
}

fn vectors(client: &Client) -> Result<u32, IoError> {
    let ask = IrqInfoBody {
        argsz: (size_of::<IrqInfoBody>() as u32).into(),
        index: wire::MSIX_IRQ.into(),
        ..Default::default()
    };
    let info: IrqInfoBody = ask_for(client, Command::DEVICE_GET_IRQ_INFO, &ask)?;
    let signals = IrqFlags::from_bits_retain(info.flags.get()).contains(IrqFlags::EVENTFD);
    Ok(if signals {
        info.count.get().min(VECTORS_MAX)
    } else {
        0
    })
}

fn region(client: &Client, index: u32) -> Result<Found, IoError> {
    const HEAD: u32 = size_of::<RegionInfoBody>() as u32;
    let ask = |room: u32| {
        let ask = RegionInfoBody {
            argsz: room.into(),
            index: index.into(),
            ..Default::default()
        };
        let command = Command::DEVICE_GET_REGION_INFO;
        let reply = client.call(command, &[ask.as_bytes()], &[], room as usize)?;
        let told = wire::take::<RegionInfoBody>(&reply.body);
        let info = told
            .map(|(info, _)| info)
            .filter(|info| info.index.get() == index)
            .ok_or(IoError::Gone("the vfio-user server describes no region"))?;
        Ok::<_, IoError>((info, reply))
    };
    let (mut info, mut reply) = ask(HEAD)?;
    let needs = info.argsz.get();
    if needs > HEAD {
        if needs > REGION_INFO_MAX {
            return Err(IoError::Gone(
                "the vfio-user server describes a region at too great length",
            ));
        }
        (info, reply) = ask(needs)?;
    }
    let flags = RegionFlags::from_bits_retain(info.flags.get());
    let size = info.size.get();
    let mut found = Found {
        size,
        file: None,
        areas: Vec::new(),
    };
    if !flags.contains(RegionFlags::MMAP) || reply.fds.len() != 1 {
        return Ok(found);
    }
    found.file = reply.fds.pop().map(|fd| (fd, info.offset.get()));
    let listed = match flags.contains(RegionFlags::CAPS) {
        true => sparse_areas(&reply.body, info.cap_offset.get()),
        false => None,
    };
    // Without a list all of the region can be mapped.
    found.areas = listed.unwrap_or_else(|| vec![(0, size)]);
    let page = PAGE_BYTES as u64;
    found
        .areas
        .retain(|&(at, len)| at.is_multiple_of(page) && len > 0 && len <= size && at <= size - len);
    Ok(found)
}

/// The writes of a region for which the server has eventfds; none where it refuses to say.
fn write_events(client: &Client, index: u32, size: u64) -> Result<Vec<WriteEvent>, IoError> {
    const HEAD: usize = size_of::<RegionIoFdsBody>();
    const ROOM: usize = HEAD + EVENTS_MAX * size_of::<SubRegionIoFd>();
    let ask = RegionIoFdsBody {
        argsz: (ROOM as u32).into(),
        index: index.into(),
        ..Default::default()
    };
    let command = Command::DEVICE_GET_REGION_IO_FDS;
    let reply = match client.call(command, &[ask.as_bytes()], &[], ROOM) {
        Ok(reply) => reply,
        Err(IoError::Os { .. }) => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let told = wire::take::<RegionIoFdsBody>(&reply.body);
    let Some((info, listed)) = told.filter(|(info, _)| info.index.get() == index) else {
        return Err(IoError::Gone(
            "the vfio-user server lists descriptors of another region",
        ));
    };
    let count = info.count.get() as usize;
    // A list that did not fit, or entries of another size, are none that could be used.
    if count > EVENTS_MAX || listed.len() != count * size_of::<SubRegionIoFd>() {
        return Ok(Vec::new());
    }
    let entries = listed.chunks_exact(size_of::<SubRegionIoFd>());
    let usable = entries
        .filter_map(wire::take::<SubRegionIoFd>)
        .filter_map(|(entry, _)| {
            let (offset, bytes) = (entry.offset.get(), entry.size.get());
            let known = entry.kind.get() == wire::IO_FD_IOEVENTFD
                && entry.flags.get() & !wire::IO_FD_DATAMATCH == 0
                && bytes <= size
                && offset <= size - bytes;
            let fd = reply.fds.get(entry.fd_index.get() as usize)?;
            // What is no eventfd could hold a write for ever.
            let to = Interrupt::from_eventfd(fd.try_clone().ok()?).ok()?;
            let matched = entry.flags.get() & wire::IO_FD_DATAMATCH != 0;
            known.then(|| WriteEvent {
                offset,
                size: bytes,
                data: matched.then(|| entry.data.get()),
                to,
            })
        });
    Ok(usable.collect())
}

/// The areas that the capabilities of a region list, if one of them does.
fn sparse_areas(body: &[u8], first: u32) -> Option<Vec<(u64, u64)>> {
    let mut at = first as usize;
    for _ in 0..CAPS_MAX {
        // Capabilities follow the structure; an offset before that ends the list.
        if at < size_of::<RegionInfoBody>() {
            return None;
        }
        let cap = body.get(at..)?;
        let id = u16::from_ne_bytes(cap.get(..2)?.try_into().ok()?);
        let next = u32::from_ne_bytes(cap.get(4..wire::CAP_HEADER_BYTES)?.try_into().ok()?);
        if id == wire::CAP_SPARSE_MMAP {
            let (cap, areas) = wire::take::<SparseMmapCap>(cap)?;
            let listed = areas.chunks_exact(size_of::<Area>());
            // Areas that did not arrive are none that could be mapped.
            return Some(
                listed
                    .take(cap.areas.get() as usize)
                    .filter_map(wire::take::<Area>)
                    .map(|(area, _)| (area.offset.get(), area.size.get()))
                    .collect(),
            );
        }
        at = next as usize;
    }
    None
}

fn read(client: &Client, region: u32, offset: u64, into: &mut [u8]) -> Result<(), IoError> {
    let most = client.server().data_bytes().clamp(1, 1 << 20) as usize;
    let mut at = offset;
    for piece in into.chunks_mut(most) {
        let body = access(region, at, piece.len());
        let room = size_of::<RegionAccessBody>() + piece.len();
        let reply = client.call(Command::REGION_READ, &[body.as_bytes()], &[], room)?;
        let answered = wire::take::<RegionAccessBody>(&reply.body);
        match answered {
            Some((echo, data)) if echo == body && data.len() == piece.len() => {
                piece.copy_from_slice(data);
            }
            _ => return Err(IoError::Gone("the vfio-user server answers another read")),
        }
        at += piece.len() as u64;
    }
    Ok(())
}

fn write(client: &Client, region: u32, offset: u64, data: &[u8]) -> Result<(), IoError> {
    let body = access(region, offset, data.len());
    let pieces = [body.as_bytes(), data];
    let room = size_of::<RegionAccessBody>();
    let reply = client.call(Command::REGION_WRITE, &pieces, &[], room)?;
    match wire::take::<RegionAccessBody>(&reply.body) {
        Some((echo, _)) if echo.count == body.count => Ok(()),
        _ => Err(IoError::Gone("the vfio-user server answers another write")),
    }
}

fn access(region: u32, offset: u64, len: usize) -> RegionAccessBody {
    RegionAccessBody {
        offset: offset.into(),
        region: region.into(),
        count: (len as u32).into(),
    }
}
