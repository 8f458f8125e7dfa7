//! From a function that nothing is known about to one whose admin queue is served (abi §3).

use crate::admin::AdminQueue;
use crate::generations::Generations;
use crate::registers::Registers;
use crate::{DriverConfig, DriverError};
use offmap_abi::ABI_MAJOR;
use offmap_abi::admin::{IdentifyData, PORTS_MAX};
use offmap_abi::regs::{self, Control, DeviceStatus, Features};
use offmap_abi::ring::RingDepth;
use offmap_device_io::{DmaPlacement, DmaRegion, Function, IovaAllocator};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What a device says of itself, checked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identity {
    /// Name of the firmware.
    pub firmware: String,
    /// ABI version: major, minor.
    pub version: (u16, u16),
    /// Optional parts of the ABI that it has.
    pub features: Features,
    /// I/O queue pairs.
    pub queue_pairs: u16,
    /// Greatest depth of a queue, a power of two.
    pub queue_depth_max: u32,
    /// Map types: bit `n` stands for UAPI `enum bpf_map_type` value `n`.
    pub map_types: u64,
    /// Device memory for maps, in bytes.
    pub memory_bytes: u64,
    /// Most entries of all maps together; 0: bounded by memory alone.
    pub entries_total: u64,
    /// Most entries of one map.
    pub entries_per_map: u32,
    /// Most maps at a time.
    pub maps: u32,
    /// Longest key in bytes.
    pub key_bytes: u32,
    /// Longest value in bytes, of one CPU.
    pub value_bytes: u32,
    /// Most per-CPU slots of a map.
    pub cpu_slots: u32,
    /// Most elements of one batch command; 0 without batch commands.
    pub batch: u32,
    /// Engines that run the data path.
    pub engines: u32,
    /// Network ports, 1 to 256, which share the maps.
    pub ports: u32,
}

/// Longest READY_TIMEOUT_MS that is believed: a device that needs longer is broken.
const READY_TIMEOUT_MAX_MS: u32 = 60_000;
/// Shortest wait for a state, so that a slow host does not fail a device that promises 0 ms.
const READY_TIMEOUT_MIN: Duration = Duration::from_millis(100);
/// Entries of the admin queue. Its commands go one at a time.
const ADMIN_DEPTH: RingDepth = match RingDepth::new(8) {
    Some(depth) => depth,
    None => unreachable!(),
};

const PCI_COMMAND: u16 = 0x04;
const PCI_COMMAND_MEMORY: u16 = 1 << 1;
const PCI_COMMAND_MASTER: u16 = 1 << 2;

/// What the registers say, before IDENTIFY.
struct Surface {
    version: (u16, u16),
    features: Features,
    queue_pairs: u16,
    depth_max: RingDepth,
    ready_timeout: Duration,
}

/// An admin queue that is served, and who serves it.
pub(crate) struct Up<F: Function> {
    /// How long the device may take to stop again.
    pub(crate) ready_timeout: Duration,
    pub(crate) admin: AdminQueue<F>,
    pub(crate) identity: Identity,
}

/// Brings the function up. On failure the device is left disabled, as far as it obeys.
pub(crate) fn bring_up<F: Function>(
    function: &Arc<F>,
    iovas: &Arc<Mutex<IovaAllocator>>,
    config: &DriverConfig,
    generations: &Arc<Generations>,
) -> Result<Up<F>, DriverError> {
    open_config_space(&**function)?;
    let surface = read_surface(&**function)?;
    disable(&**function, surface.ready_timeout)?;

    let depth = shallower(ADMIN_DEPTH, surface.depth_max);
    let placement = DmaPlacement {
        numa_node: config.numa_node,
    };
    let region = DmaRegion::new(function, iovas, AdminQueue::<F>::bytes(depth), placement)
        .map_err(DriverError::io("allocate the admin queue"))?;
    let mut admin = AdminQueue::new(region, depth, Arc::clone(generations));
    let brought = enable(function, &mut admin, depth, &surface, config.admin_timeout);
    match brought {
        Ok(identity) => Ok(Up {
            ready_timeout: surface.ready_timeout,
            admin,
            identity,
        }),
        Err(e) => {
            // The rings go away: the device must have let go of them. If it does not obey,
            // `dma_unmap` takes them away from it (rule R3).
            let _ = stop(&**function, surface.ready_timeout);
            Err(e)
        }
    }
}

/// Makes the device let go of all host memory: disables it, or else resets it.
pub(crate) fn stop<F: Function>(function: &F, timeout: Duration) -> Result<(), DriverError> {
    disable(function, timeout).or_else(|_| {
        function
            .reset()
            .map_err(DriverError::io("reset the function"))
    })
}

pub(crate) fn shallower(a: RingDepth, b: RingDepth) -> RingDepth {
    if a.entries() <= b.entries() { a } else { b }
}

fn enable<F: Function>(
    function: &Arc<F>,
    admin: &mut AdminQueue<F>,
    depth: RingDepth,
    surface: &Surface,
    admin_timeout: Duration,
) -> Result<Identity, DriverError> {
    let registers = Registers(&**function);
    registers.write64("ADMIN_SQ", regs::ADMIN_SQ, admin.sq_iova())?;
    registers.write64("ADMIN_CQ", regs::ADMIN_CQ, admin.cq_iova())?;
    registers.write32("ADMIN_DEPTH", regs::ADMIN_DEPTH, depth.entries())?;
    registers.write32("ADMIN_VECTOR", regs::ADMIN_VECTOR, regs::NO_VECTOR)?;
    registers.write32("CONTROL", regs::CONTROL, Control::ENABLE.bits())?;
    wait_status(&**function, surface.ready_timeout, "become ready", |s| {
        s.contains(DeviceStatus::READY)
    })?;
    admin.set_reset_count(registers.reset_count()?);
    let data = admin.identify(&**function, admin_timeout)?;
    check_identify(&data, surface)
}

/// Clears ENABLE and waits until the device has let go of all rings (rule R1).
pub(crate) fn disable<F: Function>(function: &F, timeout: Duration) -> Result<(), DriverError> {
    let registers = Registers(function);
    registers.write32("CONTROL", regs::CONTROL, 0)?;
    let ended = wait_status(function, timeout, "stop", |s| {
        !s.intersects(DeviceStatus::READY | DeviceStatus::FATAL)
    });
    match ended {
        // A stop that FATAL outlasts: function-level reset is the other way out of it.
        Err(DriverError::Fatal { .. } | DriverError::NotReady { .. }) => {
            function
                .reset()
                .map_err(DriverError::io("reset the function"))?;
            open_config_space(function)?;
            wait_status(function, timeout, "stop after a reset", |s| {
                !s.intersects(DeviceStatus::READY | DeviceStatus::FATAL)
            })
        }
        other => other,
    }
}

/// Waits until STATUS satisfies `done`; FATAL ends the wait unless `done` accepts it.
fn wait_status<F: Function>(
    function: &F,
    timeout: Duration,
    what: &'static str,
    done: impl Fn(DeviceStatus) -> bool,
) -> Result<(), DriverError> {
    let registers = Registers(function);
    let started = function.now();
    let mut turns = 0u32;
    loop {
        // The time is read before the register, so that a thread that was off the processor
        // between the two does not blame the device.
        let waited = function.now().saturating_sub(started);
        let status = registers.status()?;
        if done(status) {
            return Ok(());
        }
        if status.contains(DeviceStatus::FATAL) && turns > 0 {
            return Err(registers.fatal());
        }
        if waited >= timeout {
            return Err(DriverError::NotReady { what, waited });
        }
        function.progress();
        turns = turns.saturating_add(1);
        if turns > 64 {
            function.relax();
        }
    }
}

fn open_config_space<F: Function>(function: &F) -> Result<(), DriverError> {
    let read16 = |offset: u16| {
        let mut bytes = [0u8; 2];
        function
            .config_read(offset, &mut bytes)
            .map_err(DriverError::io("read config space"))?;
        Ok(u16::from_le_bytes(bytes))
    };
    let (vendor, device) = (read16(0)?, read16(2)?);
    if vendor == 0xffff {
        return Err(DriverError::DeviceGone {
            register: "the PCI vendor id",
        });
    }
    if (vendor, device) != (regs::PCI_VENDOR_ID, regs::PCI_DEVICE_ID) {
        return Err(DriverError::WrongDevice { vendor, device });
    }
    let wanted = PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER;
    let command = read16(PCI_COMMAND)? | wanted;
    function
        .config_write(PCI_COMMAND, &command.to_le_bytes())
        .map_err(DriverError::io("write the PCI command register"))?;
    let now = read16(PCI_COMMAND)?;
    if now & wanted != wanted {
        return Err(DriverError::BadRegister {
            register: "the PCI command register",
            value: now.into(),
            why: "memory space and bus mastering do not stay enabled",
        });
    }
    Ok(())
}

fn read_surface<F: Function>(function: &F) -> Result<Surface, DriverError> {
    let registers = Registers(function);
    let bad = |register, value: u64, why| {
        Err(DriverError::BadRegister {
            register,
            value,
            why,
        })
    };
    let bar = function
        .bar(regs::BAR_REGISTERS)
        .map_err(DriverError::io("find BAR 0"))?;
    if bar.size_bytes < regs::BAR0_BYTES {
        return bad("the size of BAR 0", bar.size_bytes, "smaller than 256 KiB");
    }
    let magic = registers.present64("MAGIC", regs::MAGIC)?;
    if magic != regs::MAGIC_VALUE {
        return bad("MAGIC", magic, "not the bytes of OFFMAP");
    }
    let version = registers.present32("VERSION", regs::VERSION)?;
    let (major, minor) = ((version >> 16) as u16, version as u16);
    if major != ABI_MAJOR {
        return Err(DriverError::Version { major, minor });
    }
    let features = Features::from_bits_retain(registers.present64("FEATURES", regs::FEATURES)?);
    let pairs = registers.present32("QUEUE_PAIRS", regs::QUEUE_PAIRS)?;
    // Queue 0 is the admin queue's place among the doorbells.
    if pairs == 0 || pairs >= u32::from(regs::MAX_QUEUE_PAIRS) {
        return bad("QUEUE_PAIRS", pairs.into(), "not from 1 to 1,023");
    }
    let depth = registers.present32("QUEUE_DEPTH_MAX", regs::QUEUE_DEPTH_MAX)?;
    let Some(depth) = RingDepth::new(depth) else {
        return bad(
            "QUEUE_DEPTH_MAX",
            depth.into(),
            "not a power of two from 2 to 32,768",
        );
    };
    let ready_ms = registers.present32("READY_TIMEOUT_MS", regs::READY_TIMEOUT_MS)?;
    if ready_ms > READY_TIMEOUT_MAX_MS {
        return bad("READY_TIMEOUT_MS", ready_ms.into(), "more than a minute");
    }
    Ok(Surface {
        version: (major, minor),
        features,
        queue_pairs: pairs as u16,
        depth_max: depth,
        ready_timeout: Duration::from_millis(ready_ms.into()).max(READY_TIMEOUT_MIN),
    })
}

fn check_identify(data: &IdentifyData, surface: &Surface) -> Result<Identity, DriverError> {
    let bad = |field, value: u64, why| Err(DriverError::BadIdentify { field, value, why });
    let at_least_one = [
        ("map_types", data.map_types.get()),
        ("memory_bytes", data.memory_bytes.get()),
        ("entries_per_map", data.entries_per_map.get().into()),
        ("maps", data.maps.get().into()),
        ("key_bytes", data.key_bytes.get().into()),
        ("value_bytes", data.value_bytes.get().into()),
        ("engines", data.engines.get().into()),
    ];
    for (field, value) in at_least_one {
        if value == 0 {
            return bad(field, value, "no map can exist with none");
        }
    }
    let memory = data.memory_bytes.get();
    if memory > 1 << 56 {
        return bad("memory_bytes", memory, "more than any device has");
    }
    if u64::from(data.key_bytes.get()) > memory || u64::from(data.value_bytes.get()) > memory {
        return bad(
            "key_bytes",
            data.key_bytes.get().into(),
            "does not fit its memory",
        );
    }
    let batch = if surface.features.contains(Features::BATCH) {
        if data.batch.get() == 0 {
            return bad("batch", 0, "the BATCH feature needs at least one element");
        }
        data.batch.get()
    } else {
        0
    };
    if data.ports.get() > PORTS_MAX {
        return bad("ports", data.ports.get().into(), "more than any device has");
    }
    let name = data.firmware.split(|b| *b == 0).next().unwrap_or_default();
    Ok(Identity {
        firmware: String::from_utf8_lossy(name)
            .chars()
            .map(|c| if c.is_control() { '\u{fffd}' } else { c })
            .collect(),
        version: surface.version,
        features: surface.features,
        queue_pairs: surface.queue_pairs,
        queue_depth_max: surface.depth_max.entries(),
        map_types: data.map_types.get(),
        memory_bytes: memory,
        entries_total: data.entries_total.get(),
        entries_per_map: data.entries_per_map.get(),
        maps: data.maps.get(),
        key_bytes: data.key_bytes.get(),
        value_bytes: data.value_bytes.get(),
        cpu_slots: data.cpu_slots.get(),
        batch,
        engines: data.engines.get(),
        // A device from before the field has left it zero.
        ports: data.ports.get().max(1),
    })
}
