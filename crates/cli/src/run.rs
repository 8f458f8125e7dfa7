//! `offmap run`: a program that knows nothing of offmap, with an offload device; and `offmap daemon`, whose
//! devices are there for one program after the other.

use crate::args::{DaemonArgs, DeviceKind, RunArgs, RunFiles};
use crate::faulty;
use crate::open::{self, OpenError, Visitor};
use offmap_bpf::device::OffloadDevice;
use offmap_bpf::{System, SystemConfig};
use offmap_device_io::Function;
use offmap_driver::{Driver, DriverConfig, DriverError};
use offmap_emulator::faults::{FaultFileError, FaultPlan};
use offmap_emulator::{DeviceConfig, Emulated, EmulatorError, FrontEnd, Inline, Threaded};
use offmap_offload::{OffloadNic, Profile, ProfileError};
use offmap_run::{Config, Daemon, Ended, Files, Glob, Host, Interfaces, Rules, RunError};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::low_level::pipe;
use std::ffi::OsString;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
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

/// Brings the devices up, and what maps there are will be on them.
fn host(
    kinds: &[DeviceKind],
    profile: &str,
    faults: Option<(&Path, u64)>,
    files: Option<RunFiles>,
) -> Result<Arc<Host>, Error> {
    let profile = Profile::find(profile)?;
    let plan = faults.map(|(path, _)| FaultPlan::load(path)).transpose()?;
    let seed = faults.map_or(0, |(_, seed)| seed);
    let system = System::new(SystemConfig {
        max_fds: MAX_FDS,
        ..SystemConfig::default()
    });
    let mut devices = Vec::new();
    for (n, kind) in kinds.iter().enumerate() {
        let bring_up = BringUp {
            profile: &profile,
            faults: plan.as_ref().map(|plan| (plan, seed)),
        };
        let nic = open::visit(kind, bring_up)?;
        // Names in the bpf layer are nobody's to see.
        let ifindex = system
            .register_netdev(&format!("device{n}"), nic)
            .map_err(Error::Register)?;
        devices.push(ifindex);
    }
    let files = files.map(|files| match files {
        RunFiles::Kernel => Files::Kernel,
        RunFiles::Memory => Files::Memory,
    });
    Ok(Host::new(system, devices, files)?)
}

/// The devices that were named, or one.
fn kinds(named: &[DeviceKind]) -> Vec<DeviceKind> {
    match named {
        [] => vec![DeviceKind::Inline],
        named => named.to_vec(),
    }
}

/// Runs the program.
///
/// # Errors
///
/// [`Error`]: it was not started.
pub fn run(args: &RunArgs) -> Result<(Ended, Option<Files>), Error> {
    if let Some(socket) = &args.connect {
        let count = match args.ifname.len() {
            0 => offmap_run::devices_of(socket)?,
            count => count,
        };
        return Ok((offmap_run::join(socket, config(args, count)?)?, None));
    }
    let kinds = kinds(&args.device);
    let config = config(args, kinds.len())?;
    let faults = args.faults.as_deref().map(|path| (path, args.seed));
    let host = host(&kinds, &args.profile, faults, args.files)?;
    let ended = offmap_run::run(&host, config)?;
    say_unpinned(&host, args.quiet);
    Ok((ended, Some(host.files())))
}

/// Serves devices until a signal comes.
///
/// # Errors
///
/// [`Error`]: they cannot be served.
pub fn daemon(args: &DaemonArgs) -> Result<(), Error> {
    let faults = args.faults.as_deref().map(|path| (path, args.seed));
    let host = host(&kinds(&args.device), &args.profile, faults, args.files)?;
    let mut signals = UnixStream::pair().map_err(RunError::from)?;
    for signal in [SIGTERM, SIGINT, SIGHUP] {
        let end = signals.1.try_clone().map_err(RunError::from)?;
        pipe::register(signal, end).map_err(RunError::from)?;
    }
    let daemon = Arc::new(Daemon::new(Arc::clone(&host), &args.socket)?);
    let _ = writeln!(
        std::io::stderr(),
        "offmap daemon: {} device(s) at {}; `offmap run --connect {} -- PROGRAM` joins",
        kinds(&args.device).len(),
        args.socket.display(),
        args.socket.display()
    );
    let (failed, failure) = std::sync::mpsc::channel();
    let serving = Arc::clone(&daemon);
    let waker = signals.1.try_clone().map_err(RunError::from)?;
    std::thread::spawn(move || {
        if let Err(error) = serving.serve() {
            // Who waits is gone only when the process ends.
            let _ = failed.send(error);
            let _ = (&waker).write(&[0]);
        }
    });
    let mut byte = [0];
    // A signal, or that nobody can join any more.
    let _ = signals.0.read(&mut byte);
    daemon.remove();
    say_unpinned(&host, false);
    match failure.try_recv() {
        Ok(error) => Err(RunError::from(error).into()),
        Err(_) => Ok(()),
    }
}

/// Says something to the program's user. When stderr is closed nobody wants to know.
pub fn say(sentence: &str) {
    let _ = writeln!(std::io::stderr(), "offmap run: {sentence}");
}

/// Takes away pins that would have nothing behind them.
fn say_unpinned(host: &Host, quiet: bool) {
    for path in host.unpin() {
        if !quiet {
            say(&format!(
                "{}: the pin is removed, since the map behind it ends with the NIC",
                path.display()
            ));
        }
    }
}

/// What is run, on that many devices.
fn config(args: &RunArgs, devices: usize) -> Result<Config, Error> {
    let interfaces = match args.ifname.as_slice() {
        [] => Interfaces::New((0..devices).map(|n| format!("{INTERFACE}{n}")).collect()),
        names if names.len() == devices => Interfaces::There(names.to_vec()),
        names => {
            return Err(Error::Arguments(format!(
                "{devices} devices and {} times --ifname: each device needs one",
                names.len()
            )));
        }
    };
    let (Interfaces::New(names) | Interfaces::There(names)) = &interfaces;
    let rules = rules(args, names)?;
    let this = std::env::current_exe().map_err(RunError::from)?;
    let quiet = args.quiet;
    Ok(Config {
        interfaces,
        rules,
        launcher: (this, vec![OsString::from("run"), OsString::from(LAUNCH)]),
        program: args.program.clone(),
        report: Box::new(move |event| {
            if !quiet {
                say(&event.sentence());
            }
        }),
    })
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
