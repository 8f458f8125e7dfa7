//! `offmap run`: a program that knows nothing of offmap, with an offload device.

use crate::args::{DeviceKind, RunArgs};
use crate::faulty;
use crate::open::{self, OpenError, Visitor};
use offmap_bpf::device::OffloadDevice;
use offmap_bpf::{System, SystemConfig, command};
use offmap_device_io::Function;
use offmap_driver::{Driver, DriverConfig, DriverError};
use offmap_emulator::faults::{FaultFileError, FaultPlan};
use offmap_emulator::{DeviceConfig, Emulated, EmulatorError, FrontEnd, Inline, Threaded};
use offmap_offload::{OffloadNic, Profile, ProfileError};
use offmap_run::{Config, DeviceAt, Ended, Event, Files, Glob, Rules, RunError};
use std::ffi::OsString;
use std::sync::Arc;
use thiserror::Error;

/// The hidden first argument of the process that becomes the program.
pub const LAUNCH: &str = "__launch";
/// What the names of its network interfaces begin with; a device's number follows.
const INTERFACE: &str = "offmap";
/// Descriptors of the bpf layer: one for each that all processes together have open.
const MAX_FDS: u32 = 1 << 20;

/// Why the program is not run.
#[derive(Debug, Error)]
pub enum Error {
    /// The profile cannot be used.
    #[error(transparent)]
    Profile(#[from] ProfileError),
    /// The fault plan cannot be used.
    #[error(transparent)]
    Faults(#[from] FaultFileError),
    /// A fault plan, and a device that another process has.
    #[error(
        "--faults is for devices in this process; start `offmap nic --faults FILE` to have the one behind the socket do wrong"
    )]
    FaultsElsewhere,
    /// A device cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// An emulated device could not be built.
    #[error("the emulated SmartNIC cannot be built: {0}")]
    Emulator(#[from] EmulatorError),
    /// The driver did not bring it up.
    #[error("the SmartNIC does not come up: {0}")]
    Driver(#[from] DriverError),
    /// The map core refused the device.
    #[error("the SmartNIC cannot be registered: {0}")]
    Register(offmap_bpf::Error),
    /// The arguments do not go together.
    #[error("{0}")]
    Arguments(String),
    /// The program did not start.
    #[error(transparent)]
    Run(#[from] RunError),
}

impl Error {
    /// Whether what was given is bad, and not this machine.
    pub fn is_input(&self) -> bool {
        matches!(
            self,
            Self::Profile(_) | Self::Faults(_) | Self::FaultsElsewhere | Self::Arguments(_)
        )
    }
}

/// Brings up one of the devices.
struct BringUp<'a> {
    profile: &'a Profile,
    faults: Option<(&'a FaultPlan, u64)>,
}

impl BringUp<'_> {
    fn here<E: FrontEnd>(
        &self,
        device: &Arc<Emulated<E>>,
    ) -> Result<Arc<dyn OffloadDevice>, Error> {
        let mut config = self.profile.driver_config(DriverConfig::default());
        if self.faults.is_some() {
            config = faulty::deadlines(config);
        }
        let nic = up(Arc::clone(device), config, self.profile)?;
        if let Some((plan, seed)) = self.faults {
            // A device that has died says so to the driver at its next access.
            let _ = device.set_faults(plan, seed);
        }
        Ok(nic)
    }
}

impl Visitor for BringUp<'_> {
    type Out = Result<Arc<dyn OffloadDevice>, Error>;

    fn emulated(self, threaded: bool) -> Self::Out {
        let config = DeviceConfig::default();
        match threaded {
            true => self.here(&Threaded::spawn(config)?),
            false => self.here(&Inline::new(config)?),
        }
    }

    fn elsewhere<F: Function>(
        self,
        mut open: impl FnMut() -> Result<Arc<F>, OpenError>,
    ) -> Self::Out {
        if self.faults.is_some() {
            return Err(Error::FaultsElsewhere);
        }
        let config = self.profile.driver_config(DriverConfig::default());
        up(open()?, config, self.profile)
    }
}

fn up<F: Function>(
    function: Arc<F>,
    config: DriverConfig,
    profile: &Profile,
) -> Result<Arc<dyn OffloadDevice>, Error> {
    let driver = Driver::bring_up(function, config)?;
    Ok(OffloadNic::new(driver, profile.clone())?)
}

/// Runs the program.
///
/// # Errors
///
/// [`Error`]: it was not started.
pub fn run(args: &RunArgs) -> Result<Ended, Error> {
    let profile = Profile::find(&args.profile)?;
    let plan = args.faults.as_deref().map(FaultPlan::load).transpose()?;
    let kinds = match args.device.is_empty() {
        true => vec![DeviceKind::Inline],
        false => args.device.clone(),
    };
    let names: Vec<String> = match args.ifname.is_empty() {
        true => (0..kinds.len())
            .map(|n| format!("{INTERFACE}{n}"))
            .collect(),
        false if args.ifname.len() == kinds.len() => args.ifname.clone(),
        false => {
            return Err(Error::Arguments(format!(
                "{} devices and {} times --ifname: each device needs one",
                kinds.len(),
                args.ifname.len()
            )));
        }
    };
    let rules = rules(args, &names)?;
    let system = System::new(SystemConfig {
        max_fds: MAX_FDS,
        ..SystemConfig::default()
    });
    let mut devices = Vec::new();
    for (n, (kind, name)) in kinds.iter().zip(&names).enumerate() {
        let nic = open::visit(
            kind,
            BringUp {
                profile: &profile,
                faults: plan.as_ref().map(|plan| (plan, args.seed)),
            },
        )?;
        // Names in the bpf layer are nobody's to see.
        let ifindex = system
            .register_netdev(&format!("device{n}"), nic)
            .map_err(Error::Register)?;
        devices.push(DeviceAt {
            ifindex,
            name: name.clone(),
        });
    }
    let this = std::env::current_exe().map_err(RunError::from)?;
    let quiet = args.quiet;
    let config = Config {
        files: args.files.map(|files| match files {
            crate::args::RunFiles::Kernel => Files::Kernel,
            crate::args::RunFiles::Memory => Files::Memory,
        }),
        devices,
        interfaces_are_there: !args.ifname.is_empty(),
        rules,
        launcher: (this, vec![OsString::from("run"), OsString::from(LAUNCH)]),
        program: args.program.clone(),
        workers: 0,
        report: Box::new(move |event| {
            if !quiet {
                eprintln!("offmap run: {}", sentence(event));
            }
        }),
    };
    Ok(offmap_run::run(&system, config)?)
}

/// Which maps go where without being asked to.
fn rules(args: &RunArgs, names: &[String]) -> Result<Rules, Error> {
    let device = |name: &str| {
        let found = names.iter().position(|known| known == name);
        found.ok_or_else(|| {
            Error::Arguments(format!(
                "--offload-map: there is no device {name:?}, but {}",
                names.join(", ")
            ))
        })
    };
    let mut globs = Vec::new();
    for rule in &args.offload_map {
        let (glob, name) = rule.split_once('=').unwrap_or((rule, &names[0]));
        globs.push((Glob::new(glob), device(name)?));
    }
    Ok(Rules {
        globs,
        all: args.all_maps.then_some(0),
    })
}

/// An event as a sentence.
fn sentence(event: &Event) -> String {
    match event {
        Event::Refused { command, error, .. } => {
            let name = command::name(*command).unwrap_or("PROG_LOAD");
            format!("{name} refused: {error}")
        }
        Event::LeftToKernel { error, .. } => {
            format!("a map stays with the kernel: {error}")
        }
        Event::Unpinned { path } => format!(
            "{}: the pin is removed, since the map behind it ends with this run",
            path.display()
        ),
        _ => format!("{event:?}"),
    }
}
