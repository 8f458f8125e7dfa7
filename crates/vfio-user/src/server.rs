//! The server's half: takes messages apart, checks them, and asks a [`Backend`].
//!
//! [`Session::handle`] answers one message and needs no socket; [`serve`] runs a connection.
//! What a message may be wrong in is refused here, so that a backend sees indexes that exist,
//! ranges that lie inside their region, and as many descriptors as there are interrupts.
//! A refused command leaves the connection as it was, but for two cases, after which it is
//! closed: a message longer than [`MESSAGE_MAX`](crate::message::MESSAGE_MAX), and a first
//! message that is no acceptable VERSION.

use crate::capabilities::{Capabilities, DATA_BYTES};
use crate::duplex::Duplex;
use crate::message::{Message, ReceiveError, Wait, room};
use crate::wire::{self, Area, Command, Header, IrqFlags, RegionFlags};
pub use rustix::io::Errno;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};
use zerocopy::IntoBytes;

/// How long the rest of a message may take once it has begun, and a reply to be taken.
pub const MESSAGE_TIMEOUT: Duration = Duration::from_secs(10);

/// A command that was not carried out, and why.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{why}")]
pub struct Refusal {
    /// The errno that the client gets; positive.
    pub errno: i32,
    /// The reason, for the server's log.
    pub why: String,
}

impl Refusal {
    /// A refusal with that errno.
    pub fn new(errno: Errno, why: impl Into<String>) -> Self {
        Self {
            errno: errno.raw_os_error(),
            why: why.into(),
        }
    }

    /// A refusal with EINVAL.
    pub fn invalid(why: impl Into<String>) -> Self {
        Self::new(Errno::INVAL, why)
    }
}

/// A region as the client is to see it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Region {
    /// Its size in bytes; 0: there is none at this index.
    pub size: u64,
    /// Whether it can be read and written.
    pub flags: RegionFlags,
    /// Areas that the client may map, in bytes from the region's start; [`Backend::region_fd`]
    /// gives the file, in which the region starts at 0.
    pub areas: Vec<(u64, u64)>,
    /// Writes that say no more than that they were made, by offset and size in bytes: a client may
    /// signal the eventfd of [`Backend::connected`] in their place, with any value.
    pub events: Vec<(u64, u64)>,
}

impl Region {
    /// No region.
    pub const NONE: Self = Self {
        size: 0,
        flags: RegionFlags::empty(),
        areas: Vec::new(),
        events: Vec::new(),
    };
}

/// What a device is like: the same for every client.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Description {
    /// Its regions, by index.
    pub regions: Vec<Region>,
    /// How many interrupts there are of each kind, by index, and their flags.
    pub irqs: Vec<(u32, IrqFlags)>,
    /// DMA mappings that it can have at a time.
    pub max_dma_maps: u64,
}

/// A range of client memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DmaRange {
    /// First IOVA.
    pub address: u64,
    /// Bytes.
    pub size: u64,
}

/// A device that is served.
pub trait Backend {
    /// What it is like.
    fn description(&self) -> &Description;

    /// The file of a region that has areas to be mapped.
    ///
    /// # Errors
    ///
    /// A [`Refusal`], here and below: what the client is told.
    fn region_fd(&mut self, region: u32) -> Result<OwnedFd, Refusal>;

    /// A new client has come, by this connection: its memory may be asked for there. The eventfd, if
    /// there is one, is what the client may signal in place of messages.
    fn connected(&mut self, client: &Arc<Duplex>) -> Option<OwnedFd>;

    /// That eventfd again, of a region that has events.
    fn region_event_fd(&mut self, region: u32) -> Result<OwnedFd, Refusal>;

    /// The eventfd is readable: takes the signal, and does what the write would have done.
    fn signalled(&mut self);

    /// Reads bytes that lie inside the region.
    fn region_read(&mut self, region: u32, offset: u64, into: &mut [u8]) -> Result<(), Refusal>;

    /// Writes bytes that lie inside the region.
    fn region_write(&mut self, region: u32, offset: u64, from: &[u8]) -> Result<(), Refusal>;

    /// Lets the device access client memory: `file` with the offset at which it starts there,
    /// or nothing that can be mapped.
    fn dma_map(
        &mut self,
        range: DmaRange,
        read: bool,
        write: bool,
        file: Option<(OwnedFd, u64)>,
    ) -> Result<(), Refusal>;

    /// Takes a range away again, `None` all of it. When this returns no access is in flight.
    fn dma_unmap(&mut self, range: Option<DmaRange>) -> Result<(), Refusal>;

    /// Signals `to` whenever the interrupt is raised, or nothing any more.
    fn irq_route(&mut self, index: u32, irq: u32, to: Option<OwnedFd>) -> Result<(), Refusal>;

    /// Raises an interrupt, as if the device had.
    fn irq_trigger(&mut self, index: u32, irq: u32) -> Result<(), Refusal>;

    /// Masks or unmasks an interrupt of a kind with [`IrqFlags::MASKABLE`].
    fn irq_mask(&mut self, index: u32, irq: u32, masked: bool) -> Result<(), Refusal>;

    /// Resets the device.
    fn reset(&mut self) -> Result<(), Refusal>;

    /// Hears of every command that was refused.
    fn refused(&mut self, _command: Command, _refusal: &Refusal) {}
}

/// The answer to a message.
#[derive(Debug)]
pub struct Reply {
    /// Its header.
    pub header: Header,
    /// What follows.
    pub body: Vec<u8>,
    /// A descriptor that goes with it.
    pub fd: Option<OwnedFd>,
}

/// What becomes of the connection after a message.
#[derive(Debug)]
pub struct Outcome {
    /// The answer, unless the client wants none.
    pub reply: Option<Reply>,
    /// Whether the connection is to be closed.
    pub close: bool,
}

/// A connection's state, without the connection.
pub struct Session<'b, B: Backend> {
    backend: &'b mut B,
    /// What the client said of itself, once it has.
    client: Option<Capabilities>,
}

/// The body of a reply, and the descriptor that goes with it.
type Answer = Result<(Vec<u8>, Option<OwnedFd>), Refusal>;

impl<'b, B: Backend> Session<'b, B> {
    /// A new client.
    pub fn new(backend: &'b mut B) -> Self {
        Self {
            backend,
            client: None,
        }
    }

    /// Carries a message out.
    pub fn handle(&mut self, message: Message) -> Outcome {
        let header = message.header;
        let greeted = self.client.is_some();
        let answer = self.answer(message);
        if let Err(refusal) = &answer {
            self.backend.refused(header.about(), refusal);
        }
        // Whoever does not even say which version it speaks is not talked to.
        let close = !greeted && self.client.is_none();
        let silent = header.kind() == wire::TYPE_COMMAND && header.has(wire::NO_REPLY);
        let reply = match answer {
            Ok((body, fd)) => Reply {
                header: header.reply(body.len()),
                body,
                fd,
            },
            Err(refusal) => Self::refusal(&header, &refusal),
        };
        Outcome {
            reply: (!silent).then_some(reply),
            close,
        }
    }

    /// The reply to a message that could not even be received whole.
    pub fn refuse(&mut self, header: &Header, refusal: &Refusal) -> Reply {
        self.backend.refused(header.about(), refusal);
        Self::refusal(header, refusal)
    }

    fn refusal(header: &Header, refusal: &Refusal) -> Reply {
        Reply {
            header: header.refusal(refusal.errno),
            body: Vec::new(),
            fd: None,
        }
    }

    fn answer(&mut self, mut message: Message) -> Answer {
        let header = message.header;
        let command = header.about();
        if header.kind() != wire::TYPE_COMMAND {
            return Err(Refusal::invalid("a reply to nothing that was asked"));
        }
        if message.too_many_fds {
            return Err(Refusal::invalid("too many file descriptors"));
        }
        if self.client.is_none() && command != Command::VERSION {
            return Err(Refusal::invalid("the first message must be VERSION"));
        }
        let takes_fds = [Command::DMA_MAP, Command::DEVICE_SET_IRQS];
        if !message.fds.is_empty() && !takes_fds.contains(&command) {
            return Err(Refusal::invalid("file descriptors that nothing asks for"));
        }
        let fds = std::mem::take(&mut message.fds);
        let body = &message.body[..];
        let nothing = |()| (Vec::new(), None);
        match command {
            Command::VERSION => self.version(body),
            Command::DMA_MAP => self.dma_map(body, fds).map(nothing),
            Command::DMA_UNMAP => self.dma_unmap(body),
            Command::DEVICE_GET_INFO => self.device_info(body),
            Command::DEVICE_GET_REGION_INFO => self.region_info(body),
            Command::DEVICE_GET_IRQ_INFO => self.irq_info(body),
            Command::DEVICE_SET_IRQS => self.set_irqs(body, fds).map(nothing),
            Command::REGION_READ => self.region_read(body),
            Command::REGION_WRITE => self.region_write(body),
            Command::REGION_WRITE_MULTI => self.region_write_multi(body),
            Command::DEVICE_RESET if body.is_empty() => self.backend.reset().map(nothing),
            Command::DEVICE_RESET => Err(Refusal::invalid("DEVICE_RESET has no body")),
            Command::DMA_READ | Command::DMA_WRITE => {
                Err(Refusal::invalid("a command of servers, from a client"))
            }
            Command::DEVICE_GET_REGION_IO_FDS => self.region_io_fds(body),
            Command::DEVICE_FEATURE | Command::MIG_DATA_READ | Command::MIG_DATA_WRITE => Err(
                Refusal::new(Errno::OPNOTSUPP, "the device has no such feature"),
            ),
            _ => Err(Refusal::invalid("no such command")),
        }
    }

    fn version(&mut self, body: &[u8]) -> Answer {
        let (version, json) = take::<wire::VersionBody>(body)?;
        if self.client.is_some() {
            return Err(Refusal::invalid("the version is agreed upon already"));
        }
        if version.major.get() != wire::MAJOR {
            let theirs = version.major;
            return Err(Refusal::invalid(format!(
                "major version {theirs}, where the server speaks {}",
                wire::MAJOR
            )));
        }
        let client = Capabilities::parse(json).map_err(Refusal::invalid)?;
        let most = self.backend.description().max_dma_maps;
        let mut reply = wire::VersionBody {
            major: wire::MAJOR.into(),
            minor: version.minor.get().min(wire::MINOR).into(),
        }
        .as_bytes()
        .to_vec();
        reply.extend(Capabilities::of_server(&client, most).to_bytes());
        self.client = Some(client);
        Ok((reply, None))
    }

    fn dma_map(&mut self, body: &[u8], mut fds: Vec<OwnedFd>) -> Result<(), Refusal> {
        let (map, _) = take_whole::<wire::DmaMapBody>(body)?;
        argsz(map.argsz.get(), body.len())?;
        if fds.len() > 1 {
            return Err(Refusal::invalid("more than one file descriptor"));
        }
        let Some(flags) = wire::DmaFlags::from_bits(map.flags.get()) else {
            return Err(Refusal::invalid(format!("unknown flags {:#x}", map.flags)));
        };
        if flags.contains(wire::DmaFlags::MMAP) && fds.is_empty() {
            return Err(Refusal::invalid("memory to be mapped, and no descriptor"));
        }
        let range = range(map.address.get(), map.size.get())?;
        if map.offset.get().checked_add(range.size).is_none() {
            return Err(Refusal::invalid("the memory wraps around in its file"));
        }
        self.backend.dma_map(
            range,
            flags.contains(wire::DmaFlags::READ),
            flags.contains(wire::DmaFlags::WRITE),
            fds.pop().map(|fd| (fd, map.offset.get())),
        )
    }

    fn dma_unmap(&mut self, body: &[u8]) -> Answer {
        let (unmap, _) = take_whole::<wire::DmaUnmapBody>(body)?;
        argsz(unmap.argsz.get(), body.len())?;
        match unmap.flags.get() {
            0 => {
                let range = range(unmap.address.get(), unmap.size.get())?;
                self.backend.dma_unmap(Some(range))?;
            }
            wire::UNMAP_ALL if unmap.address.get() == 0 && unmap.size.get() == 0 => {
                self.backend.dma_unmap(None)?;
            }
            wire::UNMAP_ALL => {
                return Err(Refusal::invalid("everything, and a range as well"));
            }
            flags => return Err(Refusal::invalid(format!("unknown flags {flags:#x}"))),
        }
        Ok((unmap.as_bytes().to_vec(), None))
    }

    fn device_info(&mut self, body: &[u8]) -> Answer {
        let (info, _) = take::<wire::DeviceInfoBody>(body)?;
        argsz(info.argsz.get(), size_of::<wire::DeviceInfoBody>())?;
        let description = self.backend.description();
        let reply = wire::DeviceInfoBody {
            argsz: (size_of::<wire::DeviceInfoBody>() as u32).into(),
            flags: (wire::DEVICE_RESETTABLE | wire::DEVICE_PCI).into(),
            regions: (description.regions.len() as u32).into(),
            irqs: (description.irqs.len() as u32).into(),
        };
        Ok((reply.as_bytes().to_vec(), None))
    }

    fn region_info(&mut self, body: &[u8]) -> Answer {
        const HEAD: usize = size_of::<wire::RegionInfoBody>();
        let (info, _) = take::<wire::RegionInfoBody>(body)?;
        argsz(info.argsz.get(), HEAD)?;
        let index = info.index.get();
        let region = self.region(index)?.clone();
        let caps = match region.areas.len() {
            0 => 0,
            areas => size_of::<wire::SparseMmapCap>() + areas * size_of::<Area>(),
        };
        // Without the list of areas a client would take all of the region to be mappable: who
        // has no room for it is told of none, and may ask again.
        let takes_fd = self.client.as_ref().is_some_and(|client| client.fds() > 0);
        let told = caps > 0 && takes_fd && info.argsz.get() as usize >= HEAD + caps;
        let mut flags = region.flags;
        flags.set(RegionFlags::MMAP | RegionFlags::CAPS, told);
        let reply = wire::RegionInfoBody {
            argsz: ((HEAD + caps) as u32).into(),
            flags: flags.bits().into(),
            index: index.into(),
            cap_offset: if told { HEAD as u32 } else { 0 }.into(),
            size: region.size.into(),
            offset: 0.into(),
        };
        let mut reply = reply.as_bytes().to_vec();
        if !told {
            return Ok((reply, None));
        }
        let cap = wire::SparseMmapCap {
            id: wire::CAP_SPARSE_MMAP.into(),
            version: 1.into(),
            areas: (region.areas.len() as u32).into(),
            ..Default::default()
        };
        reply.extend_from_slice(cap.as_bytes());
        for &(offset, size) in &region.areas {
            let area = Area {
                offset: offset.into(),
                size: size.into(),
            };
            reply.extend_from_slice(area.as_bytes());
        }
        Ok((reply, Some(self.backend.region_fd(index)?)))
    }

    fn region_io_fds(&mut self, body: &[u8]) -> Answer {
        const HEAD: usize = size_of::<wire::RegionIoFdsBody>();
        let (ask, _) = take::<wire::RegionIoFdsBody>(body)?;
        argsz(ask.argsz.get(), HEAD)?;
        let (index, flags) = (ask.index.get(), ask.flags.get());
        if flags != 0 {
            return Err(Refusal::invalid(format!("unknown flags {flags:#x}")));
        }
        let events = self.region(index)?.events.clone();
        if events.is_empty() {
            let why = format!("region {index} has no accesses for which there is a descriptor");
            return Err(Refusal::new(Errno::OPNOTSUPP, why));
        }
        if self.client.as_ref().is_none_or(|client| client.fds() == 0) {
            return Err(Refusal::invalid(
                "descriptors, for a client that takes none",
            ));
        }
        let needs = HEAD + events.len() * size_of::<wire::SubRegionIoFd>();
        let told = ask.argsz.get() as usize >= needs;
        let reply = wire::RegionIoFdsBody {
            argsz: (needs as u32).into(),
            flags: 0.into(),
            index: index.into(),
            count: (events.len() as u32).into(),
        };
        let mut reply = reply.as_bytes().to_vec();
        // Who has no room for all of it is told how much there is, and asks again.
        if !told {
            return Ok((reply, None));
        }
        for (offset, size) in events {
            let event = wire::SubRegionIoFd {
                offset: offset.into(),
                size: size.into(),
                kind: wire::IO_FD_IOEVENTFD.into(),
                ..Default::default()
            };
            reply.extend_from_slice(event.as_bytes());
        }
        Ok((reply, Some(self.backend.region_event_fd(index)?)))
    }

    fn irq_info(&mut self, body: &[u8]) -> Answer {
        let (info, _) = take::<wire::IrqInfoBody>(body)?;
        argsz(info.argsz.get(), size_of::<wire::IrqInfoBody>())?;
        let (count, flags) = self.irqs(info.index.get())?;
        let reply = wire::IrqInfoBody {
            argsz: (size_of::<wire::IrqInfoBody>() as u32).into(),
            flags: flags.bits().into(),
            index: info.index,
            count: count.into(),
        };
        Ok((reply.as_bytes().to_vec(), None))
    }

    fn set_irqs(&mut self, body: &[u8], fds: Vec<OwnedFd>) -> Result<(), Refusal> {
        let (set, data) = take::<wire::SetIrqsBody>(body)?;
        argsz(set.argsz.get(), size_of::<wire::SetIrqsBody>())?;
        let (index, start, count) = (set.index.get(), set.start.get(), set.count.get());
        let (there, kind) = self.irqs(index)?;
        let flags = set.flags.get();
        let form = flags & wire::IRQ_DATA_MASK;
        let action = flags & !wire::IRQ_DATA_MASK;
        // None at all is a way to say: all of them.
        let all = count == 0;
        if all && (start, form, action) != (0, wire::IRQ_DATA_NONE, wire::IRQ_ACTION_TRIGGER) {
            return Err(Refusal::invalid("no interrupt is meant"));
        }
        if start.checked_add(count).is_none_or(|end| end > there) {
            return Err(Refusal::invalid(format!(
                "interrupts {start} to {start} + {count}, where there are {there}"
            )));
        }
        let wanted = match form {
            wire::IRQ_DATA_NONE | wire::IRQ_DATA_EVENTFD => 0,
            wire::IRQ_DATA_BOOL => count as usize,
            _ => {
                return Err(Refusal::invalid(format!(
                    "data of no known form: {flags:#x}"
                )));
            }
        };
        if data.len() != wanted {
            return Err(Refusal::invalid(format!(
                "{} bytes of data, where there should be {wanted}",
                data.len()
            )));
        }
        let fits = form == wire::IRQ_DATA_EVENTFD && fds.len() == count as usize;
        if !fds.is_empty() && !fits {
            return Err(Refusal::invalid(format!(
                "{} file descriptors for {count} interrupts",
                fds.len()
            )));
        }
        match (action, form) {
            _ if all => {
                for irq in 0..there {
                    self.backend.irq_route(index, irq, None)?;
                }
            }
            (wire::IRQ_ACTION_TRIGGER, wire::IRQ_DATA_EVENTFD) => {
                let mut fds = fds.into_iter();
                for irq in start..start + count {
                    self.backend.irq_route(index, irq, fds.next())?;
                }
            }
            (_, wire::IRQ_DATA_EVENTFD) => {
                let why = "descriptors are signalled by triggers only";
                return Err(Refusal::new(Errno::OPNOTSUPP, why));
            }
            (wire::IRQ_ACTION_TRIGGER | wire::IRQ_ACTION_MASK | wire::IRQ_ACTION_UNMASK, _) => {
                let trigger = action == wire::IRQ_ACTION_TRIGGER;
                if !trigger && !kind.contains(IrqFlags::MASKABLE) {
                    return Err(Refusal::invalid("these interrupts cannot be masked"));
                }
                for irq in start..start + count {
                    let meant = data
                        .get((irq - start) as usize)
                        .is_none_or(|byte| *byte != 0);
                    if meant && trigger {
                        self.backend.irq_trigger(index, irq)?;
                    } else if meant {
                        let masked = action == wire::IRQ_ACTION_MASK;
                        self.backend.irq_mask(index, irq, masked)?;
                    }
                }
            }
            _ => return Err(Refusal::invalid(format!("no one action: {flags:#x}"))),
        }
        Ok(())
    }

    fn region_read(&mut self, body: &[u8]) -> Answer {
        let (access, _) = take_whole::<wire::RegionAccessBody>(body)?;
        let (region, offset) = self.access(&access, RegionFlags::READ)?;
        // The client is asked for no more than it takes, and the size is bounded by the region.
        let most = self.client.as_ref().map_or(0, Capabilities::data_bytes);
        let count = access.count.get();
        if count > most.min(DATA_BYTES) {
            return Err(Refusal::invalid(format!("{count} bytes at once")));
        }
        let head = access.as_bytes().len();
        let whole = head + count as usize;
        let mut reply = room(whole).map_err(|e| Refusal::new(e, no_memory(whole)))?;
        reply.extend_from_slice(access.as_bytes());
        reply.resize(whole, 0);
        self.backend
            .region_read(region, offset, &mut reply[head..])?;
        Ok((reply, None))
    }

    fn region_write(&mut self, body: &[u8]) -> Answer {
        let (access, data) = take::<wire::RegionAccessBody>(body)?;
        if data.len() != access.count.get() as usize {
            return Err(Refusal::invalid(format!(
                "a write of {} bytes with {} bytes",
                access.count,
                data.len()
            )));
        }
        if access.count.get() > DATA_BYTES {
            return Err(Refusal::invalid(format!("{} bytes at once", access.count)));
        }
        let (region, offset) = self.access(&access, RegionFlags::WRITE)?;
        self.backend.region_write(region, offset, data)?;
        Ok((access.as_bytes().to_vec(), None))
    }

    fn region_write_multi(&mut self, body: &[u8]) -> Answer {
        const ENTRY: usize = size_of::<wire::WriteMultiEntry>();
        let (count, entries) = take::<zerocopy::native_endian::U64>(body)?;
        if count.get() != (entries.len() / ENTRY) as u64 || !entries.len().is_multiple_of(ENTRY) {
            return Err(Refusal::invalid(format!(
                "{count} writes in {} bytes",
                entries.len()
            )));
        }
        // All are checked before the first is carried out.
        let mut writes = Vec::new();
        let room = writes.try_reserve_exact(entries.len() / ENTRY);
        room.map_err(|_| Refusal::new(Errno::NOMEM, no_memory(entries.len())))?;
        for entry in entries.chunks_exact(ENTRY) {
            let (entry, _) = take::<wire::WriteMultiEntry>(entry)?;
            let (region, offset) = self.access(&entry.access, RegionFlags::WRITE)?;
            let bytes = entry.access.count.get() as usize;
            if bytes > entry.data.len() {
                return Err(Refusal::invalid(format!(
                    "{bytes} bytes in one of many writes"
                )));
            }
            writes.push((region, offset, entry.data, bytes));
        }
        for (region, offset, data, bytes) in writes {
            self.backend.region_write(region, offset, &data[..bytes])?;
        }
        Ok((count.as_bytes().to_vec(), None))
    }

    fn region(&self, index: u32) -> Result<&Region, Refusal> {
        let regions = &self.backend.description().regions;
        let region = usize::try_from(index).ok().and_then(|i| regions.get(i));
        region.ok_or_else(|| Refusal::invalid(format!("no region {index}")))
    }

    fn irqs(&self, index: u32) -> Result<(u32, IrqFlags), Refusal> {
        let irqs = &self.backend.description().irqs;
        let irq = usize::try_from(index).ok().and_then(|i| irqs.get(i));
        let irq = irq.ok_or_else(|| Refusal::invalid(format!("no kind {index} of interrupt")))?;
        Ok(*irq)
    }

    /// Checks an access; its region and offset.
    fn access(
        &self,
        access: &wire::RegionAccessBody,
        needed: RegionFlags,
    ) -> Result<(u32, u64), Refusal> {
        let (index, offset) = (access.region.get(), access.offset.get());
        let region = self.region(index)?;
        let count = u64::from(access.count.get());
        if count == 0 {
            return Err(Refusal::invalid("an access of no bytes"));
        }
        if !region.flags.contains(needed) || count > region.size || offset > region.size - count {
            return Err(Refusal::invalid(format!(
                "{count} bytes at {offset:#x} of region {index}, which has {:#x}",
                region.size
            )));
        }
        Ok((index, offset))
    }
}

/// A structure at the start of a body.
fn take<T>(body: &[u8]) -> Result<(T, &[u8]), Refusal>
where
    T: zerocopy::FromBytes + zerocopy::KnownLayout + zerocopy::Immutable + zerocopy::Unaligned,
{
    wire::take(body).ok_or_else(|| {
        let (is, least) = (body.len(), size_of::<T>());
        Refusal::invalid(format!("a body of {is} bytes, where {least} are the least"))
    })
}

/// A structure that is all of a body.
fn take_whole<T>(body: &[u8]) -> Result<(T, &[u8]), Refusal>
where
    T: zerocopy::FromBytes + zerocopy::KnownLayout + zerocopy::Immutable + zerocopy::Unaligned,
{
    let (value, rest) = take(body)?;
    if !rest.is_empty() {
        let (is, whole) = (body.len(), size_of::<T>());
        return Err(Refusal::invalid(format!(
            "a body of {is} bytes, where there should be {whole}"
        )));
    }
    Ok((value, rest))
}

fn no_memory(bytes: usize) -> String {
    format!("there is no memory for {bytes} bytes")
}

fn argsz(argsz: u32, least: usize) -> Result<(), Refusal> {
    if (argsz as usize) < least {
        return Err(Refusal::invalid(format!(
            "argsz is {argsz}, where {least} is the least"
        )));
    }
    Ok(())
}

fn range(address: u64, size: u64) -> Result<DmaRange, Refusal> {
    let last = size
        .checked_sub(1)
        .and_then(|more| address.checked_add(more));
    if last.is_none() {
        return Err(Refusal::invalid(format!(
            "{size:#x} bytes at {address:#x} are no range of addresses"
        )));
    }
    Ok(DmaRange { address, size })
}

/// Why a connection has ended.
#[derive(Debug)]
#[non_exhaustive]
pub enum Ended {
    /// The client has left, or was shown out after a message that ends the connection.
    Closed,
    /// `stop` became readable.
    Stopped,
    /// The client connected, and had said no whole VERSION after that time.
    Silent(Duration),
    /// The client did not take its replies, did not finish a message, or the socket failed.
    Broken(ReceiveError),
}

/// Serves one client until one side ends it. `stop` ends it when it becomes readable; `aside`
/// is called whenever its descriptor is readable meanwhile. A client that has not said VERSION after
/// `version_timeout` is dropped: it would keep all others from being served.
pub fn serve<B: Backend>(
    client: &Arc<Duplex>,
    backend: &mut B,
    stop: BorrowedFd<'_>,
    aside: Option<(BorrowedFd<'_>, &dyn Fn())>,
    version_timeout: Duration,
) -> Ended {
    let event = backend.connected(client);
    let ended = serve_connected(
        client,
        backend,
        stop,
        aside,
        event.as_ref().map(AsFd::as_fd),
        version_timeout,
    );
    client.end();
    ended
}

fn serve_connected<B: Backend>(
    client: &Duplex,
    backend: &mut B,
    stop: BorrowedFd<'_>,
    aside: Option<(BorrowedFd<'_>, &dyn Fn())>,
    event: Option<BorrowedFd<'_>>,
    version_timeout: Duration,
) -> Ended {
    let wait = Wait {
        first: None,
        whole: MESSAGE_TIMEOUT,
        stop: Some(stop),
        aside,
        event,
    };
    let greeting = Wait {
        first: Instant::now().checked_add(version_timeout),
        whole: version_timeout.min(MESSAGE_TIMEOUT),
        ..wait
    };
    let mut session = Session::new(backend);
    loop {
        let greeted = session.client.is_some();
        let outcome = match client.next(if greeted { &wait } else { &greeting }) {
            Ok(message) => session.handle(message),
            Err(ReceiveError::Signalled) => {
                session.backend.signalled();
                continue;
            }
            Err(
                e @ (ReceiveError::TooShort(header)
                | ReceiveError::TooLong(header)
                | ReceiveError::NoMemory(header)),
            ) => {
                let errno = match e {
                    ReceiveError::NoMemory(_) => Errno::NOMEM,
                    _ => Errno::INVAL,
                };
                let reply = session.refuse(&header, &Refusal::new(errno, e.to_string()));
                Outcome {
                    reply: Some(reply),
                    close: session.client.is_none() || !matches!(e, ReceiveError::TooShort(_)),
                }
            }
            Err(ReceiveError::Closed) => return Ended::Closed,
            Err(ReceiveError::Stopped) => return Ended::Stopped,
            Err(ReceiveError::TimedOut) if !greeted => return Ended::Silent(version_timeout),
            Err(e) => return Ended::Broken(e),
        };
        if let Some(said) = &session.client {
            client.set_most(said.data_bytes());
        }
        if let Some(reply) = &outcome.reply {
            let fds: Vec<BorrowedFd<'_>> = reply.fd.iter().map(AsFd::as_fd).collect();
            match client.send(&reply.header, &[&reply.body], &fds, &wait) {
                Ok(()) => {}
                Err(ReceiveError::Closed) => return Ended::Closed,
                Err(ReceiveError::Stopped) => return Ended::Stopped,
                Err(e) => return Ended::Broken(e),
            }
        }
        if outcome.close {
            return Ended::Closed;
        }
    }
}
