//! The device behind a vfio-user socket: for a driver in another process, or as a PCI device
//! of a virtual machine.
//!
//! The device runs on a thread of its own, as [`Threaded`] does, and parks when it is idle.
//! The messages of one client after the other are carried out on the thread that calls
//! [`Server::run`], between two steps of the device; so what a message has changed is in
//! effect before it is answered, and no access to memory that was unmapped is in flight.
//!
//! A client that leaves or dies leaves nothing behind, other than maps where the device is to keep them: the
//! function is reset, its memory is unmapped, and the next client gets doorbells that the last one cannot reach. What a client
//! shares is mapped if it cannot take it away again ([`shared`]). Other memory, and ranges
//! that come without a file, are reached by messages to the client, which is slow.

use crate::device::{Device, bar_info};
use crate::dma::{
    FarMemory, MAPPINGS_MAX, OVERLAP, Permission, TOO_MANY, TOO_MANY_FILES, TOO_MUCH, Unreachable,
};
use crate::function::FrontEnd;
use crate::msix;
use crate::regs::Width;
use crate::{DeviceConfig, EmulatorError, Threaded};
use offmap_abi::regs;
use offmap_device_io::{BarOffset, Interrupt, IoError, Iova};
use offmap_vfio_user::server::{Backend, Description, DmaRange, Ended, Errno, Refusal, Region};
use offmap_vfio_user::wire::{
    CONFIG_REGION, Command, IrqFlags, MSIX_IRQ, PCI_IRQS, PCI_REGIONS, RegionFlags,
};
use offmap_vfio_user::{BindError, Duplex, Listener, shared};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Refusals of one client that are told of; the others are counted.
const REFUSALS_TOLD: u32 = 16;
/// Bytes of a BAR that are read or written before the device gets on with its work.
const PIECE: usize = 4096;

/// Why a device cannot be served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// There is no device.
    #[error(transparent)]
    Device(#[from] EmulatorError),
    /// There is no socket.
    #[error(transparent)]
    Socket(#[from] BindError),
}

/// An emulated device and the socket that it is served at.
pub struct Server {
    listener: Listener,
    device: Arc<Threaded>,
}

impl Server {
    /// Builds the device, starts its thread and makes the socket, which only its user can
    /// connect to.
    ///
    /// # Errors
    ///
    /// [`ServeError`].
    pub fn bind(path: &Path, config: DeviceConfig) -> Result<Self, ServeError> {
        let listener = Listener::bind(path)?;
        let device = Threaded::spawn(config)?;
        Ok(Self { listener, device })
    }

    /// As [`Server::bind`], with a device that there is: one that was restored, say.
    ///
    /// # Errors
    ///
    /// [`ServeError`].
    pub fn bind_device(
        path: &Path,
        device: Device,
        polls_before_park: u32,
    ) -> Result<Self, ServeError> {
        let listener = Listener::bind(path)?;
        let device = Threaded::start(device, polls_before_park)?;
        Ok(Self { listener, device })
    }

    /// How long a client may take to say VERSION before it is dropped and the next one has its turn;
    /// [`VERSION_TIMEOUT`](offmap_vfio_user::VERSION_TIMEOUT) by default.
    pub fn set_version_timeout(&mut self, timeout: Duration) {
        self.listener.set_version_timeout(timeout);
    }

    /// The device: for fault plans, and to look at it from this side.
    pub fn device(&self) -> &Arc<Threaded> {
        &self.device
    }

    /// Serves one client after the other until `stop` becomes readable. `tell` gets a sentence
    /// for each client that comes and goes, and for what was refused.
    ///
    /// # Errors
    ///
    /// The system's, when no client can be accepted any more, or that the device has died.
    pub fn run(&self, stop: BorrowedFd<'_>, tell: &mut dyn FnMut(&str)) -> std::io::Result<()> {
        let vectors = self.device.front_end.with_device(|d| {
            // A hypervisor says its routes once; a guest's reset is nothing that it hears of.
            d.keep_routes();
            d.vectors()
        });
        let mut served = Served {
            device: Arc::clone(&self.device),
            description: describe(vectors.unwrap_or(0)),
            refusals: 0,
            told_of_messages: false,
            kick: None,
            tell,
        };
        let done = self.listener.run(&mut served, stop, |served, ended| {
            match ended {
                None => served.begin(),
                Some(ended) => served.end(ended),
            }
            served.alive()
        });
        if done.is_err() {
            served.leave();
        }
        done
    }
}

/// The device as clients see it.
fn describe(vectors: u32) -> Description {
    let both = RegionFlags::READ | RegionFlags::WRITE;
    let mut regions = vec![Region::NONE; PCI_REGIONS as usize];
    for bar in 0..6u8 {
        if let Ok(info) = bar_info(bar) {
            regions[usize::from(bar)] = Region {
                size: info.size_bytes,
                flags: both,
                areas: Vec::new(),
                events: Vec::new(),
            };
        }
    }
    regions[usize::from(regs::BAR_REGISTERS)].areas =
        vec![(regs::DOORBELLS, regs::DOORBELLS_BYTES)];
    // What is written there is not looked at: all queues are.
    regions[usize::from(regs::BAR_REGISTERS)].events = vec![(regs::KICK, 4)];
    regions[CONFIG_REGION as usize] = Region {
        size: crate::config_space::CONFIG_BYTES as u64,
        flags: both,
        areas: Vec::new(),
        events: Vec::new(),
    };
    let mut irqs = vec![(0, IrqFlags::empty()); PCI_IRQS as usize];
    irqs[MSIX_IRQ as usize] = (vectors, IrqFlags::EVENTFD | IrqFlags::MASKABLE);
    debug_assert!(vectors <= u32::from(msix::MAX_VECTORS));
    Description {
        regions,
        irqs,
        max_dma_maps: MAPPINGS_MAX as u64,
    }
}

/// Memory of a client that is reached by messages.
#[derive(Debug)]
struct Messages(Arc<Duplex>);

impl FarMemory for Messages {
    fn read(&self, iova: u64, into: &mut [u8]) -> Result<(), Unreachable> {
        self.0.read(iova, into).map_err(|_| Unreachable)
    }

    fn write(&self, iova: u64, from: &[u8]) -> Result<(), Unreachable> {
        self.0.write(iova, from).map_err(|_| Unreachable)
    }
}

/// The device while a client is served.
struct Served<'t> {
    device: Arc<Threaded>,
    description: Description,
    refusals: u32,
    told_of_messages: bool,
    /// What this client may signal in place of a KICK.
    kick: Option<Interrupt>,
    tell: &'t mut dyn FnMut(&str),
}

impl Served<'_> {
    fn begin(&mut self) {
        self.refusals = 0;
        self.told_of_messages = false;
        (self.tell)("a client has come");
        self.say_if_unplugged();
    }

    /// A NIC that its fault plan has pulled out stays out, as a card would that nobody plugs in again: the
    /// next clients find it gone, and would not know why.
    fn say_if_unplugged(&mut self) {
        if let Ok(true) = self.device.front_end.with_device(|d| d.is_gone()) {
            (self.tell)(
                "the fault plan has unplugged the NIC: clients read all ones from it until it is served anew",
            );
        }
    }

    fn end(&mut self, ended: &Ended) {
        self.kick = None;
        self.leave();
        if let Some(more) = self.refusals.checked_sub(REFUSALS_TOLD).filter(|n| *n > 0) {
            (self.tell)(&format!("{more} more of its commands were refused"));
        }
        match ended {
            Ended::Silent(after) => (self.tell)(&format!(
                "the client was dropped: it said no VERSION for {} s, and others may be waiting",
                after.as_secs_f64()
            )),
            Ended::Broken(e) => (self.tell)(&format!("the client was dropped: {e}")),
            _ => (self.tell)("the client has left"),
        }
        self.say_if_unplugged();
    }

    /// A device whose thread has panicked serves nobody any more.
    fn alive(&self) -> std::io::Result<()> {
        let alive = self.device.front_end.with_device(|_| ());
        alive.map_err(std::io::Error::other)
    }

    /// Frees the device of a client.
    fn leave(&mut self) {
        let left = self.device.poke(|d| {
            d.dma.set_far(None);
            d.leave_host()
        });
        if let Err(e) = left {
            (self.tell)(&format!("the device keeps its doorbells: {e}"));
        }
    }

    fn with<R>(&self, f: impl FnOnce(&mut Device) -> Result<R, IoError>) -> Result<R, Refusal> {
        let done = self.device.front_end.with_device(f);
        done.and_then(|done| done).map_err(|e| refusal(&e))
    }

    /// As [`Served::with`], where it may be work for the device.
    fn poke<R>(&self, f: impl FnOnce(&mut Device) -> Result<R, IoError>) -> Result<R, Refusal> {
        self.device.poke(f).map_err(|e| refusal(&e))
    }

    /// Memory is not mapped although it could be: says so, once for each client.
    fn by_messages(&mut self, range: DmaRange, why: &str) {
        if !std::mem::replace(&mut self.told_of_messages, true) {
            let address = range.address;
            (self.tell)(&format!(
                "the client's memory at {address:#x} is reached by messages, which is slow: {why}"
            ));
        }
    }

    /// Checks an access of a BAR: words of 4 bytes, aligned.
    fn words(offset: u64, len: usize) -> Result<(), Refusal> {
        if !offset.is_multiple_of(4) || !len.is_multiple_of(4) {
            return Err(Refusal::invalid(format!(
                "{len} bytes at {offset:#x} of a BAR, which is accessed in aligned words of 4 bytes"
            )));
        }
        Ok(())
    }
}

/// The widest access at an offset with so many bytes left; both are multiples of 4.
fn width(offset: u64, left: usize) -> Width {
    match offset.is_multiple_of(8) && left >= 8 {
        true => Width::Eight,
        false => Width::Four,
    }
}

/// What a client is told of an error.
fn refusal(e: &IoError) -> Refusal {
    let errno = match e {
        IoError::DmaMap { why, .. } if *why == OVERLAP => Errno::EXIST,
        IoError::DmaMap { why, .. } if [TOO_MANY, TOO_MANY_FILES].contains(why) => Errno::NOSPC,
        IoError::DmaMap { why, .. } if *why == TOO_MUCH => Errno::NOMEM,
        IoError::Gone(_) => Errno::NODEV,
        IoError::Os { source, .. } => source
            .raw_os_error()
            .map_or(Errno::IO, Errno::from_raw_os_error),
        _ => Errno::INVAL,
    };
    Refusal::new(errno, e.to_string())
}

impl Backend for Served<'_> {
    fn description(&self) -> &Description {
        &self.description
    }

    fn region_fd(&mut self, _region: u32) -> Result<OwnedFd, Refusal> {
        self.with(|d| {
            let fd = d.doorbells_fd().try_clone_to_owned();
            fd.map_err(|e| IoError::os("cannot duplicate the doorbells' descriptor", e))
        })
    }

    fn region_event_fd(&mut self, _region: u32) -> Result<OwnedFd, Refusal> {
        let Some(kick) = &self.kick else {
            let why = "there is no eventfd for KICK";
            return Err(Refusal::new(Errno::NOMEM, why));
        };
        kick.fd().try_clone_to_owned().map_err(|e| {
            let what = "cannot duplicate the eventfd of KICK";
            refusal(&IoError::os(what, e))
        })
    }

    fn connected(&mut self, client: &Arc<Duplex>) -> Option<OwnedFd> {
        let far = Arc::new(Messages(Arc::clone(client)));
        // A device that has died is noticed when the client has begun.
        let _ = self
            .device
            .front_end
            .with_device(|d| d.dma.set_far(Some(far)));
        // Each client gets an eventfd of its own, so that one that has left wakes nobody. Without one
        // a client writes KICK by message.
        self.kick = Interrupt::new().ok();
        self.kick.as_ref()?.fd().try_clone_to_owned().ok()
    }

    fn signalled(&mut self) {
        if let Some(kick) = &self.kick {
            // Were it not taken, it would be signalled again and again; it is ours and does not block.
            let _ = kick.take();
        }
        let kick = BarOffset(regs::KICK);
        // A device that has died is noticed by the next message.
        let _ = self.poke(|d| d.bar_write(regs::BAR_REGISTERS, kick, Width::Four, 0));
    }

    fn region_read(&mut self, region: u32, offset: u64, into: &mut [u8]) -> Result<(), Refusal> {
        if region == CONFIG_REGION {
            return self.with(|d| d.config_read(offset as u16, into));
        }
        Self::words(offset, into.len())?;
        let mut at = offset;
        for piece in into.chunks_mut(PIECE) {
            self.with(|d| {
                let mut rest = &mut piece[..];
                while !rest.is_empty() {
                    let width = width(at, rest.len());
                    let value = d
                        .bar_read(region as u8, BarOffset(at), width)?
                        .to_le_bytes();
                    let (here, after) = rest.split_at_mut(width.bytes() as usize);
                    here.copy_from_slice(&value[..here.len()]);
                    at += width.bytes();
                    rest = after;
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    fn region_write(&mut self, region: u32, offset: u64, from: &[u8]) -> Result<(), Refusal> {
        if region == CONFIG_REGION {
            return self.poke(|d| d.config_write(offset as u16, from));
        }
        Self::words(offset, from.len())?;
        let mut at = offset;
        for piece in from.chunks(PIECE) {
            self.poke(|d| {
                let mut rest = piece;
                while !rest.is_empty() {
                    let width = width(at, rest.len());
                    let (here, after) = rest.split_at(width.bytes() as usize);
                    let mut value = [0; 8];
                    value[..here.len()].copy_from_slice(here);
                    d.bar_write(
                        region as u8,
                        BarOffset(at),
                        width,
                        u64::from_le_bytes(value),
                    )?;
                    at += width.bytes();
                    rest = after;
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    fn dma_map(
        &mut self,
        range: DmaRange,
        read: bool,
        write: bool,
        file: Option<(OwnedFd, u64)>,
    ) -> Result<(), Refusal> {
        let len = usize::try_from(range.size)
            .map_err(|_| Refusal::invalid("the range is longer than an address space"))?;
        let mut file = file.as_ref().map(|(fd, offset)| (fd.as_fd(), *offset));
        if let Some((fd, _)) = file
            && let Err(why) = shared::check(fd)
        {
            if !shared::is_file(fd) {
                return Err(Refusal::invalid("the descriptor is of no file"));
            }
            file = None;
            self.by_messages(range, why);
        }
        let permission = Permission { read, write };
        self.with(|d| d.dma_map_as(file, Iova(range.address), len, permission))
    }

    fn dma_unmap(&mut self, range: Option<DmaRange>) -> Result<(), Refusal> {
        self.with(|d| d.dma_unmap_range(range.map(|r| (Iova(r.address), r.size))))
    }

    fn irq_route(&mut self, _index: u32, irq: u32, to: Option<OwnedFd>) -> Result<(), Refusal> {
        let Some(fd) = to else {
            return self.with(|d| d.disable_vector(irq));
        };
        let interrupt = Interrupt::from_eventfd(fd).map_err(|e| refusal(&e))?;
        self.with(|d| d.enable_vector_to(irq, interrupt))
    }

    fn irq_trigger(&mut self, _index: u32, irq: u32) -> Result<(), Refusal> {
        self.with(|d| d.poke_vector(irq, None))
    }

    fn irq_mask(&mut self, _index: u32, irq: u32, masked: bool) -> Result<(), Refusal> {
        self.with(|d| d.poke_vector(irq, Some(masked)))
    }

    fn reset(&mut self) -> Result<(), Refusal> {
        self.poke(|d| {
            d.reset();
            Ok(())
        })
    }

    fn refused(&mut self, command: Command, refusal: &Refusal) {
        // A region's client cannot know whether there are such descriptors: to ask is no mistake.
        let asked = command == Command::DEVICE_GET_REGION_IO_FDS
            && refusal.errno == Errno::OPNOTSUPP.raw_os_error();
        if asked {
            return;
        }
        self.refusals = self.refusals.saturating_add(1);
        if self.refusals <= REFUSALS_TOLD {
            (self.tell)(&format!("{command} refused: {refusal}"));
        }
    }
}
