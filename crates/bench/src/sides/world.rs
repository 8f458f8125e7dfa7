//! Builds the sides: devices, systems and maps, and where they run.

use super::{
    BackEnd, FileCalls, FileSide, KernelSide, MixedSide, Partner, PartnerSide, QueueSide, Side,
    TableSide, ThreadsSide, plain,
};
use crate::cpu::Processors;
use crate::error::{Measured, Unavailable};
use crate::mix::Sequence;
use crate::workload::{Kind, Trace, Workload};
use offmap_bpf::device::OffloadDevice;
use offmap_bpf::{Caller, IfIndex, MapCreateAttr, MapFile, System, SystemConfig};
use offmap_device_io::Function;
use offmap_driver::{DeviceMap, Driver, DriverConfig, MapParams};
use offmap_emulator::{DeviceConfig, Inline, Threaded};
use offmap_offload::{OffloadNic, Profile};
use offmap_vfio_user::{Attach, VfioUser};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Polls of a device before it parks: some hundred microseconds.
const POLLS: u32 = 1 << 12;
/// How long the process of a device may take to be there.
const PATIENCE: Duration = Duration::from_secs(20);
/// Seed of the hash of a device's map.
const SEED: u64 = 0x5eed;

/// This machine, with what the sides share.
pub struct World {
    processors: Processors,
    partner: RefCell<Option<Rc<RefCell<Partner>>>>,
    nic: Option<PathBuf>,
    device: Option<(Arc<System>, IfIndex)>,
}

/// A side, and what has to outlive it.
struct Kept<S, K> {
    side: S,
    _kept: K,
}

impl<S: Side, K> Side for Kept<S, K> {
    fn answers(&self) -> BTreeMap<i32, u64> {
        self.side.answers()
    }

    fn prepare(&mut self, from: usize, n: usize) -> Measured<()> {
        self.side.prepare(from, n)
    }

    fn run(&mut self, from: usize, n: usize) -> Measured<usize> {
        self.side.run(from, n)
    }

    fn most(&self) -> usize {
        self.side.most()
    }

    fn wake(&mut self) -> Measured<()> {
        self.side.wake()
    }

    fn rest(&mut self) {
        self.side.rest();
    }
}

/// The process that is a device, killed with what it belongs to.
struct Nic {
    child: Child,
    folder: PathBuf,
}

impl Drop for Nic {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn device_config(workload: &Workload) -> DeviceConfig {
    let mut config = DeviceConfig {
        polls_before_park: POLLS,
        ..DeviceConfig::default()
    };
    // Keys, values of each CPU, and the table around them, generously.
    let slots = thread::available_parallelism().map_or(1, usize::from);
    let entry = workload.key_size + workload.value_size.next_multiple_of(8) * slots + 192;
    let bytes = (workload.max_entries() * entry) as u64 * 2;
    config.firmware.memory_bytes = bytes.max(64 << 20).next_multiple_of(1 << 20);
    config
}

fn params(workload: &Workload) -> Measured<MapParams> {
    if !matches!(workload.map_type, Kind::Hash | Kind::Array) {
        return Err(Unavailable::new(
            "the device's table is called for hash maps and arrays only",
        ));
    }
    Ok(MapParams {
        map_type: workload.map_type.number(),
        key_size: workload.key_size as u32,
        value_size: workload.value_size as u32,
        max_entries: workload.max_entries() as u32,
        seed: SEED,
        name: *b"bench\0\0\0\0\0\0\0\0\0\0\0",
        ..MapParams::default()
    })
}

fn attr(workload: &Workload) -> MapCreateAttr {
    MapCreateAttr {
        map_type: workload.map_type.number(),
        key_size: workload.key_size as u32,
        value_size: workload.value_size as u32,
        max_entries: workload.max_entries() as u32,
        map_flags: workload.map_type.map_flags(),
        ..MapCreateAttr::default()
    }
}

fn driver<F: Function>(function: Arc<F>) -> Measured<Arc<Driver<F>>> {
    Driver::bring_up(function, DriverConfig::default())
        .map_err(Unavailable::failed("bringing the device up"))
}

fn device_map<F: Function>(driver: &Arc<Driver<F>>, workload: &Workload) -> Measured<DeviceMap> {
    driver
        .create_map(&params(workload)?)
        .map_err(Unavailable::failed("a map on the device"))
}

/// An open map: on the host, or on `function`.
fn open<F: Function>(function: Option<Arc<F>>, workload: &Workload) -> Measured<MapFile> {
    match function {
        None => map_of(&System::new(SystemConfig::default()), IfIndex(0), workload),
        Some(function) => {
            let nic = OffloadNic::new(driver(function)?, Profile::offmap())
                .map_err(Unavailable::failed("the offload NIC"))?;
            let (system, ifindex) = system_of(nic)?;
            map_of(&system, ifindex, workload)
        }
    }
}

/// A system with a device, and the index of its interface.
fn system_of(device: Arc<dyn OffloadDevice>) -> Measured<(Arc<System>, IfIndex)> {
    let system = System::new(SystemConfig::default());
    let ifindex = system
        .register_netdev("nic0", device)
        .map_err(Unavailable::failed("the network device"))?;
    Ok((system, ifindex))
}

/// An open map of a system, which lives as long as it is open.
fn map_of(system: &System, ifindex: IfIndex, workload: &Workload) -> Measured<MapFile> {
    let attr = MapCreateAttr {
        map_ifindex: ifindex.0,
        ..attr(workload)
    };
    let fd = system
        .map_create(&Caller::root(), &attr)
        .map_err(Unavailable::failed("map_create"))?;
    let file = system
        .map_file(fd)
        .map_err(Unavailable::failed("the map's descriptor"))?;
    system
        .close(fd)
        .map_err(Unavailable::failed("the map's descriptor"))?;
    Ok(file)
}

impl World {
    /// Binds this thread to its first processor. `nic` is the `offmap` program, which is started as a
    /// device in another process; `device` is the one that [`BackEnd::Device`] stands for.
    ///
    /// # Errors
    ///
    /// When the kernel does not let it.
    pub fn new(nic: Option<PathBuf>, device: Option<Arc<dyn OffloadDevice>>) -> Measured<Self> {
        Ok(Self {
            device: device.map(system_of).transpose()?,
            processors: Processors::bind()?,
            partner: RefCell::new(None),
            nic,
        })
    }

    /// Processors that may be used.
    pub fn processors(&self) -> usize {
        self.processors.count()
    }

    /// Possible CPUs, by which the kernel sizes the values of per-CPU maps.
    pub fn possible_cpus() -> u32 {
        SystemConfig::default().possible_cpus
    }

    /// A back end with a filled map for a workload.
    ///
    /// # Errors
    ///
    /// When it is not available here, with the reason.
    pub fn side(
        &self,
        back_end: BackEnd,
        workload: &Workload,
        trace: &Arc<Trace>,
    ) -> Measured<Box<dyn Side>> {
        if workload.threads > 1 {
            return self.threads(back_end, workload, trace);
        }
        let file = |file: MapFile, sleeps| -> Measured<Box<dyn Side>> {
            Ok(Box::new(FileSide::new(file, workload, trace, sleeps)?))
        };
        match back_end {
            BackEnd::Hashbrown => plain(workload, trace),
            BackEnd::CoreRtt => Ok(Box::new(PartnerSide::round_trip(&self.partner()?))),
            BackEnd::BareRing => {
                let partner = self.partner()?;
                Ok(Box::new(PartnerSide::ring(&partner, workload.depth)))
            }
            BackEnd::Table => self.table(workload, trace),
            BackEnd::Host => file(open::<Inline>(None, workload)?, false),
            BackEnd::Inline if workload.depth == 1 => {
                file(open(Some(inline(workload)?), workload)?, false)
            }
            BackEnd::Inline => queue(inline(workload)?, workload, trace),
            BackEnd::Threaded => {
                let device = self.threaded(workload)?;
                match workload.depth {
                    1 => file(open(Some(device), workload)?, true),
                    _ => queue(device, workload, trace),
                }
            }
            BackEnd::VfioUser => {
                let (device, nic) = self.vfio_user(workload)?;
                match workload.depth {
                    1 => {
                        let file = open(Some(device), workload)?;
                        let side = FileSide::new(file, workload, trace, true)?;
                        Ok(Box::new(Kept { side, _kept: nic }))
                    }
                    _ => {
                        let driver = driver(device)?;
                        let map = device_map(&driver, workload)?;
                        let pair = driver
                            .create_queue()
                            .map_err(Unavailable::failed("a queue pair"))?;
                        let side = QueueSide::new(pair, map, workload, trace)?;
                        Ok(Box::new(Kept { side, _kept: nic }))
                    }
                }
            }
            BackEnd::Device => match &self.device {
                Some((system, ifindex)) => file(map_of(system, *ifindex, workload)?, true),
                None => Err(Unavailable::new("no other device was named (--device)")),
            },
            BackEnd::Kernel => {
                let side = KernelSide::new(workload, trace, Self::possible_cpus())?;
                Ok(Box::new(side))
            }
            BackEnd::Mirror => Err(Unavailable::new(
                "maps have no mirrors in host memory in this version",
            )),
        }
    }

    /// A back end with a map for a sequence of calls, through which it has run once.
    ///
    /// # Errors
    ///
    /// As [`World::side`].
    pub fn mixed(
        &self,
        back_end: BackEnd,
        workload: &Workload,
        sequence: &Arc<Sequence>,
    ) -> Measured<Box<dyn Side>> {
        let file = |file: MapFile, sleeps| -> Measured<Box<dyn Side>> {
            let side = MixedSide::new(FileCalls::new(file), sequence, sleeps)?;
            Ok(Box::new(side))
        };
        match back_end {
            BackEnd::Host => file(open::<Inline>(None, workload)?, false),
            BackEnd::Inline => file(open(Some(inline(workload)?), workload)?, false),
            BackEnd::Threaded => file(open(Some(self.threaded(workload)?), workload)?, true),
            BackEnd::VfioUser => {
                let (device, nic) = self.vfio_user(workload)?;
                let map = FileCalls::new(open(Some(device), workload)?);
                let side = MixedSide::new(map, sequence, true)?;
                Ok(Box::new(Kept { side, _kept: nic }))
            }
            BackEnd::Device => match &self.device {
                Some((system, ifindex)) => file(map_of(system, *ifindex, workload)?, true),
                None => Err(Unavailable::new("no other device was named (--device)")),
            },
            BackEnd::Kernel => {
                let map = KernelSide::empty(workload, Self::possible_cpus())?;
                Ok(Box::new(MixedSide::new(map, sequence, false)?))
            }
            _ => Err(Unavailable::new(format!(
                "{back_end} takes no sequence of calls"
            ))),
        }
    }

    /// A back end that as many threads use as the workload wants.
    fn threads(
        &self,
        back_end: BackEnd,
        workload: &Workload,
        trace: &Arc<Trace>,
    ) -> Measured<Box<dyn Side>> {
        let others = 1..workload.threads;
        if workload.threads > self.processors() {
            return Err(Unavailable::new(format!(
                "{} threads want a processor each, and there are {}",
                workload.threads,
                self.processors()
            )));
        }
        let (unit, bind) = (workload.unit(), |n| self.processors.go(n));
        let of_file = |file: MapFile| -> Measured<Box<dyn Side>> {
            let own = FileSide::new(file, workload, trace, false)?;
            let others = others.clone().map(|_| own.share(workload)).collect();
            Ok(Box::new(ThreadsSide::new(own, others, unit, bind)?))
        };
        match back_end {
            BackEnd::Host => of_file(open::<Inline>(None, workload)?),
            BackEnd::Inline => of_file(open(Some(inline(workload)?), workload)?),
            BackEnd::Kernel => {
                let cpus = Self::possible_cpus();
                let own = KernelSide::new(workload, trace, cpus)?;
                let others: Measured<Vec<_>> =
                    others.clone().map(|_| own.share(workload, cpus)).collect();
                Ok(Box::new(ThreadsSide::new(own, others?, unit, bind)?))
            }
            _ => Err(Unavailable::new(format!(
                "{back_end} is measured with one thread only"
            ))),
        }
    }

    fn partner(&self) -> Measured<Rc<RefCell<Partner>>> {
        let mut partner = self.partner.borrow_mut();
        if let Some(partner) = &*partner {
            return Ok(Rc::clone(partner));
        }
        let spawned = self.processors.beside(|| Ok(Partner::spawn()))?;
        Ok(Rc::clone(partner.insert(Rc::new(RefCell::new(spawned)))))
    }

    fn table(&self, workload: &Workload, trace: &Arc<Trace>) -> Measured<Box<dyn Side>> {
        let driver = driver(inline(workload)?)?;
        let map = device_map(&driver, workload)?;
        let side = TableSide::new(driver, map, workload, trace)?;
        Ok(Box::new(side))
    }

    fn threaded(&self, workload: &Workload) -> Measured<Arc<Threaded>> {
        self.processors.beside(|| {
            Threaded::spawn(device_config(workload))
                .map_err(Unavailable::failed("a threaded device"))
        })
    }

    fn vfio_user(&self, workload: &Workload) -> Measured<(Arc<VfioUser>, Nic)> {
        let Some(program) = &self.nic else {
            return Err(Unavailable::new(
                "there is no offmap program to start as a device",
            ));
        };
        let nic = self.processors.beside(|| start(program, workload))?;
        let socket = nic.folder.join("nic.sock");
        let device = VfioUser::attach(&socket, Attach::default())
            .map_err(Unavailable::failed("attaching to the device's process"))?;
        Ok((Arc::new(device), nic))
    }
}

fn inline(workload: &Workload) -> Measured<Arc<Inline>> {
    Inline::new(device_config(workload)).map_err(Unavailable::failed("an inline device"))
}

fn queue<F: Function>(
    function: Arc<F>,
    workload: &Workload,
    trace: &Arc<Trace>,
) -> Measured<Box<dyn Side>> {
    let driver = driver(function)?;
    let map = device_map(&driver, workload)?;
    let pair = driver
        .create_queue()
        .map_err(Unavailable::failed("a queue pair"))?;
    Ok(Box::new(QueueSide::new(pair, map, workload, trace)?))
}

/// Starts `program nic`, and waits until somebody listens.
fn start(program: &Path, workload: &Workload) -> Measured<Nic> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    let folder = std::env::temp_dir().join(format!("offmap-bench-{}-{n}", std::process::id()));
    std::fs::create_dir_all(&folder).map_err(Unavailable::failed("a folder for a socket"))?;
    let socket = folder.join("nic.sock");
    let config = device_config(workload);
    let child = Command::new(program)
        .arg("nic")
        .arg("--socket")
        .arg(&socket)
        .args(["--memory", &config.firmware.memory_bytes.to_string()])
        .args(["--polls", &POLLS.to_string()])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(Unavailable::failed("starting offmap nic"))?;
    let mut nic = Nic { child, folder };
    let started = Instant::now();
    while UnixStream::connect(&socket).is_err() {
        let ended = nic.child.try_wait();
        if !matches!(ended, Ok(None)) || started.elapsed() > PATIENCE {
            return Err(Unavailable::new("offmap nic did not come up"));
        }
        thread::sleep(Duration::from_millis(2));
    }
    Ok(nic)
}
