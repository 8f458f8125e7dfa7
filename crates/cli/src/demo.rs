//! `offmap demo`: an object's maps, offloaded and on the host, under one workload.

use crate::args::DemoArgs;
use crate::expected::Expected;
use crate::faulty::{self, Watch, Watched};
use crate::object::{self, LoadError, MapDef};
use crate::open::{self, OpenError, Visitor};
use crate::report::{MapReport, Report};
use crate::stats;
use crate::timing::{HashSeeds, Meter};
use crate::workload::{self, Disagreement, Limits, MapAccess, Shape};
use offmap_bpf::device::{MapSpec, OffloadDevice};
use offmap_bpf::uapi::{BPF_OBJ_NAME_LEN, MapFlags, MapType};
use offmap_bpf::{Caller, Errno, Fd, IfIndex, MapCreateAttr, MapFile, System, SystemConfig};
use offmap_device_io::Function;
use offmap_driver::{Driver, DriverConfig, DriverError};
use offmap_emulator::faults::{FaultFileError, FaultPlan};
use offmap_emulator::{DeviceConfig, Emulated, EmulatorError, FrontEnd, Inline, Threaded};
use offmap_model::profile::{self as timing_profile, ProfileFileError};
use offmap_offload::{NicSettings, NicStats, OffloadNic, Profile, ProfileError, Situation, Usage};
use std::sync::Arc;
use thiserror::Error;

/// The object that is used when none is named.
const BUILT_IN: &[u8] = include_bytes!("../demo/demo.bpf.o");
/// What the names of its network interfaces begin with; a port's number follows.
const PORT: &str = "offmap";
/// The name of the first one, which stands for the NIC in metrics.
pub const NIC: &str = "offmap0";
const BUILT_IN_NAME: &str = "the built-in demo.bpf.o";

/// Why there is no report.
#[derive(Debug, Error)]
pub enum DemoError {
    /// The object cannot be used.
    #[error(transparent)]
    Object(#[from] LoadError),
    /// The profile cannot be used.
    #[error(transparent)]
    Profile(#[from] ProfileError),
    /// The fault plan cannot be used.
    #[error(transparent)]
    Faults(#[from] FaultFileError),
    /// A fault plan, and a device that another process has.
    #[error(
        "--faults is for a device in this process; start `offmap nic --faults FILE` to have the one behind the socket do wrong"
    )]
    FaultsElsewhere,
    /// The timing profile cannot be used.
    #[error(transparent)]
    Timing(#[from] ProfileFileError),
    /// A timing profile, and a device that another process has.
    #[error(
        "--timing is for a device in this process: what another one would take is for that one to say"
    )]
    TimingElsewhere,
    /// The device refused the timing profile.
    #[error("time cannot be modelled: {0}")]
    Meter(String),
    /// The device cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The emulated device could not be built.
    #[error("the emulated SmartNIC cannot be built: {0}")]
    Emulator(#[from] EmulatorError),
    /// The driver did not bring it up.
    #[error("the SmartNIC does not come up: {0}")]
    Driver(#[from] DriverError),
    /// The map core refused the device.
    #[error("the SmartNIC cannot be registered: {0}")]
    Register(offmap_bpf::Error),
}

/// What hears how the demo gets on.
pub trait Progress {
    /// A map's workload of about `operations` begins.
    fn map(&mut self, name: &str, operations: u64);
    /// That many more are done.
    fn advance(&mut self, operations: u64);
}

/// Runs the demo.
///
/// # Errors
///
/// [`DemoError::Object`] for a bad object, [`DemoError::Profile`] for a bad profile,
/// [`DemoError::Faults`] for a bad fault plan; the others are failures of this machine or of
/// offmap. Differences between device and host are no error but part of the report.
pub fn run(args: &DemoArgs, progress: &mut dyn Progress) -> Result<Report, DemoError> {
    let maps = match &args.object {
        Some(path) => object::load(path)?,
        None => object::parse(BUILT_IN).map_err(|error| LoadError {
            path: BUILT_IN_NAME.into(),
            error,
        })?,
    };
    let profile = Profile::find(&args.profile)?;
    let bring_up = BringUp {
        profile: &profile,
        args,
    };
    let up = open::visit(&args.device, bring_up)?;
    let Up {
        nic,
        stats,
        device_types,
        watch,
        meter,
    } = up;
    let device = nic.describe();
    let bench = Bench::new(nic, profile, device_types, watch, meter)?;
    let limits = Limits {
        operations: args.operations,
        ..Limits::default()
    };
    let maps: Vec<MapReport> = maps
        .iter()
        .zip(0..)
        .map(|(map, n)| bench.drive(map, n, &limits, args.seed.wrapping_add(n), progress))
        .collect();
    let stats = stats();
    Ok(Report {
        timing: bench.meter.as_ref().and_then(|meter| meter.report(&stats)),
        agree: maps.iter().all(|map| map.agree),
        maps_total: maps.len(),
        maps_offloaded: maps.iter().filter(|map| map.offloaded).count(),
        operations: maps.iter().map(|map| map.operations).sum(),
        object: args.object.as_ref().map(|path| path.display().to_string()),
        seed: args.seed,
        device,
        profile: bench.profile.name,
        possible_cpus: bench.possible_cpus,
        version: env!("CARGO_PKG_VERSION"),
        faults: bench.watch.as_ref().map(Watch::finish),
        stats,
        maps,
    })
}

/// A NIC that is up.
struct Up {
    nic: Arc<dyn OffloadDevice>,
    /// What it has done so far.
    stats: Box<dyn Fn() -> NicStats>,
    /// The map types that its device has.
    device_types: u64,
    /// With a fault plan, which begins once the NIC is up.
    watch: Option<Watch>,
    /// With a timing profile.
    meter: Option<Meter>,
}

/// Brings up the NIC that `--device` names.
struct BringUp<'a> {
    profile: &'a Profile,
    args: &'a DemoArgs,
}

impl Visitor for BringUp<'_> {
    type Out = Result<Up, DemoError>;

    fn emulated(self, threaded: bool) -> Self::Out {
        let config = DeviceConfig::default();
        match threaded {
            true => bring_up(&Threaded::spawn(config)?, self.profile, self.args),
            false => bring_up(&Inline::new(config)?, self.profile, self.args),
        }
    }

    fn elsewhere<F: Function>(
        self,
        mut open: impl FnMut() -> Result<Arc<F>, OpenError>,
    ) -> Self::Out {
        if self.args.faults.is_some() {
            return Err(DemoError::FaultsElsewhere);
        }
        if self.args.timing.is_some() {
            return Err(DemoError::TimingElsewhere);
        }
        let config = self.profile.driver_config(DriverConfig::default());
        up(open()?, config, self.profile, self.args)
    }
}

/// Brings up the NIC that a function is.
fn up<F: Function>(
    function: Arc<F>,
    mut config: DriverConfig,
    profile: &Profile,
    args: &DemoArgs,
) -> Result<Up, DemoError> {
    if args.stats || args.metrics.is_some() || args.timing.is_some() {
        config = stats::timed(config);
    }
    let driver = Driver::bring_up(function, config)?;
    let device_types = driver.identity().map_types;
    let settings = NicSettings {
        placement: args.place.clone(),
        ..NicSettings::default()
    };
    let nic = match args.timing {
        // Where keys fall decides how long their operations take, and modelled times are to repeat.
        Some(_) => {
            let seeds = HashSeeds::new(args.seed);
            OffloadNic::with_seed_and_settings(driver, profile.clone(), seeds, settings)?
        }
        None => OffloadNic::with_settings(driver, profile.clone(), settings)?,
    };
    let counted = Arc::clone(&nic);
    Ok(Up {
        nic,
        stats: Box::new(move || counted.stats()),
        device_types,
        watch: None,
        meter: None,
    })
}

fn bring_up<E: FrontEnd>(
    device: &Arc<Emulated<E>>,
    profile: &Profile,
    args: &DemoArgs,
) -> Result<Up, DemoError> {
    let plan = match &args.faults {
        Some(path) => Some((FaultPlan::load(path)?, path.display().to_string())),
        None => None,
    };
    let mut config = profile.driver_config(DriverConfig::default());
    if plan.is_some() {
        config = faulty::deadlines(config);
    }
    let timing = match &args.timing {
        Some(name) => Some(timing_profile::find(name)?),
        None => None,
    };
    let up = up(Arc::clone(device), config, profile, args)?;
    let meter = match &timing {
        Some(file) => Some(Meter::begin(device, file).map_err(DemoError::Meter)?),
        None => None,
    };
    Ok(Up {
        meter,
        watch: plan.map(|(plan, file)| Watch::begin(device, &plan, args.seed, file)),
        ..up
    })
}

/// A map core with the NIC registered.
struct Bench {
    system: Arc<System>,
    nic: Arc<dyn OffloadDevice>,
    profile: Profile,
    device_types: u64,
    /// The NIC's ports, at least one. Maps are created through them in turn.
    ports: Vec<IfIndex>,
    possible_cpus: u32,
    watch: Option<Watch>,
    meter: Option<Meter>,
}

impl Bench {
    fn new(
        nic: Arc<dyn OffloadDevice>,
        profile: Profile,
        device_types: u64,
        watch: Option<Watch>,
        meter: Option<Meter>,
    ) -> Result<Self, DemoError> {
        let system = System::new(SystemConfig::default());
        let possible_cpus = system.config().possible_cpus;
        let ports = system
            .register_ports(PORT, &nic)
            .map_err(DemoError::Register)?;
        Ok(Self {
            system,
            nic,
            profile,
            device_types,
            ports,
            possible_cpus,
            watch,
            meter,
        })
    }

    /// Whether the profile admits the map. No other one exists meanwhile.
    fn admits(&self, attr: &MapCreateAttr) -> bool {
        let map_type = MapType(attr.map_type);
        let flags = attr.flags();
        let spec = MapSpec {
            map_type,
            key_size: attr.key_size,
            value_size: attr.value_size,
            max_entries: attr.max_entries,
            map_flags: flags - (MapFlags::RDONLY | MapFlags::WRONLY),
            map_extra: attr.map_extra,
            numa_node: flags
                .contains(MapFlags::NUMA_NODE)
                .then_some(attr.numa_node),
            possible_cpus: self.possible_cpus,
            name: attr.map_name,
        };
        let situation = Situation {
            device_types: self.device_types,
            accepting: true,
            used: Usage::default(),
        };
        self.nic.rules().admits(map_type) && self.profile.check(&spec, &situation).is_ok()
    }

    /// Entries that a map really has: a profile may give it more than it asks for.
    fn entries(&self, attr: &MapCreateAttr) -> u32 {
        if matches!(MapType(attr.map_type), MapType::HASH | MapType::ARRAY) {
            attr.max_entries.max(self.profile.behaviours.slots)
        } else {
            attr.max_entries
        }
    }

    /// What libbpf would ask for.
    fn attr(&self, map: &MapDef) -> MapCreateAttr {
        let mut map_name = [0; BPF_OBJ_NAME_LEN];
        for (to, &from) in map_name
            .iter_mut()
            .take(BPF_OBJ_NAME_LEN - 1)
            .zip(map.name.as_bytes())
        {
            *to = from;
        }
        // libbpf sizes perf event arrays by the possible CPUs when the object does not.
        let by_cpus = map.map_type == MapType::PERF_EVENT_ARRAY.0 && map.max_entries == 0;
        MapCreateAttr {
            map_type: map.map_type,
            key_size: map.key_size,
            value_size: map.value_size,
            max_entries: if by_cpus {
                self.possible_cpus
            } else {
                map.max_entries
            },
            map_flags: map.map_flags,
            numa_node: map.numa_node,
            map_name,
            map_extra: map.map_extra,
            ..MapCreateAttr::default()
        }
    }

    fn drive(
        &self,
        map: &MapDef,
        n: u64,
        limits: &Limits,
        seed: u64,
        progress: &mut dyn Progress,
    ) -> MapReport {
        let port = self.ports[(n % self.ports.len() as u64) as usize];
        let attr = self.attr(map);
        let map_type = MapType(attr.map_type);
        let mut report = MapReport {
            name: map.name.clone(),
            map_type: map_type
                .name()
                .map_or_else(|| format!("type {}", map_type.0), str::to_owned),
            key_size: attr.key_size,
            value_size: attr.value_size,
            max_entries: attr.max_entries,
            map_flags: attr.map_flags,
            offloaded: false,
            interface: self.system.netdev_name(port).unwrap_or_default(),
            reason: None,
            agree: true,
            device_bytes: 0,
            operations: 0,
            filled_entries: 0,
            filled_to_the_brim: false,
            answers: Default::default(),
            ns_per_operation: None,
            disagreements: Vec::new(),
            disagreements_total: 0,
        };
        let caller = Caller::root();
        let create = |attr: &MapCreateAttr| -> Result<(Fd, MapFile), offmap_bpf::Error> {
            let fd = self.system.map_create(&caller, attr)?;
            let file = self.system.map_file(fd)?;
            if !attr.flags().intersects(MapFlags::RDONLY | MapFlags::WRONLY) {
                return Ok((fd, file));
            }
            // Those flags restrict the creator's descriptor, not the map: the workload wants
            // one that can do both.
            let id = file.info()?.id;
            let both = self.system.get_fd_by_id(&caller, id, MapFlags::empty())?;
            self.system.close(fd)?;
            Ok((both, self.system.map_file(both)?))
        };
        let on_device = create(&MapCreateAttr {
            map_ifindex: port.0,
            ..attr
        });
        if let Some(watch) = &self.watch {
            watch.ended("create", &on_device);
        }
        // The reference is as large as the map that it is compared with.
        let on_host = create(&match &on_device {
            Ok(_) => MapCreateAttr {
                max_entries: self.entries(&attr),
                ..attr
            },
            Err(_) => attr,
        });
        match (on_host, on_device) {
            (Ok((host_fd, host)), Ok((device_fd, device))) => {
                report.offloaded = true;
                report.device_bytes = device
                    .info()
                    .ok()
                    .and_then(|info| info.offload)
                    .map_or(0, |offload| offload.device_bytes);
                self.compare(&host, &device, &attr, limits, seed, progress, &mut report);
                drop((host, device));
                for fd in [host_fd, device_fd] {
                    let _ = self.system.close(fd);
                }
                // The next map may need the device memory that this one had.
                self.system.flush_frees();
            }
            (host, device) => {
                let answer = |result: &Result<_, offmap_bpf::Error>| match result {
                    Ok(_) => "ok".to_owned(),
                    Err(error) => error.to_string(),
                };
                if let Err(error) = &device {
                    report.reason = Some(format!("{error}."));
                }
                // A map that the profile does not admit is refused on the device,
                // whatever the host does with it. Anything else both refuse or neither; the
                // errno of a size that is too big is the side's own (a host map says E2BIG
                // where an offloaded one says ENOMEM).
                let admitted = self.admits(&attr);
                // Device memory that is used up is an answer, too, and stands in the reason.
                let no_room = matches!(&device, Err(e) if e.errno() == Errno::ENOMEM);
                if host.is_err() != device.is_err() && admitted && !no_room {
                    report.differ(&Disagreement {
                        at: 0,
                        operation: "create".to_owned(),
                        key: String::new(),
                        host: answer(&host),
                        device: answer(&device),
                        alike: 0,
                    });
                }
                for (fd, _) in [host, device].into_iter().flatten() {
                    let _ = self.system.close(fd);
                }
            }
        }
        report
    }

    #[expect(clippy::too_many_arguments, reason = "one caller, all of them needed")]
    fn compare(
        &self,
        host: &MapFile,
        device: &MapFile,
        attr: &MapCreateAttr,
        limits: &Limits,
        seed: u64,
        progress: &mut dyn Progress,
        report: &mut MapReport,
    ) {
        let shape = Shape::new(
            MapType(attr.map_type),
            attr.key_size,
            attr.value_size,
            self.entries(attr),
            self.possible_cpus,
        );
        progress.map(&report.name, workload::expected_operations(&shape, limits));
        let host = &Expected::new(host, &self.profile, self.nic.rules().commands);
        let watched = self.watch.as_ref().map(|watch| Watched {
            file: device,
            watch,
        });
        let (host, device): (&dyn MapAccess, &dyn MapAccess) = match &watched {
            Some(watched) => (host, watched),
            None => (host, device),
        };
        let pause = |pause| {
            if let Some(meter) = &self.meter {
                meter.pause(pause);
            }
        };
        pause(false);
        let outcome = workload::run(host, device, &shape, limits, seed, &mut |n| {
            progress.advance(n);
        });
        // What is measured below does not pay for what is modelled, and is not modelled.
        pause(true);
        report.take(&outcome);
        match workload::measure(host, device, &shape, outcome.filled_entries, seed) {
            Ok(timings) => report.ns_per_operation = timings.map(Into::into),
            Err(disagreement) => report.differ(&disagreement),
        }
    }
}
