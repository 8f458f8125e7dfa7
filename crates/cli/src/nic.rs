//! `offmap nic`: the emulated SmartNIC behind a socket, for other processes and virtual
//! machines.

use crate::args::NicArgs;
use crate::state_file::{StateFile, StateFileError};
use offmap_emulator::faults::{FaultFileError, FaultPlan, FaultReport};
use offmap_emulator::vfio_user::{ServeError, Server};
use offmap_emulator::{
    Device, DeviceConfig, Diagnostics, EmulatorError, FirmwareError, StateError,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::low_level::pipe;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;
use thiserror::Error;

/// Why the NIC is not served, or no longer.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum NicError {
    /// An option has a value that no device can be built from.
    #[error("{option} {value}: it must be {expected}")]
    Option {
        /// The option, with its dashes.
        option: &'static str,
        /// What was given.
        value: u64,
        /// What may be given.
        expected: String,
    },
    /// The device or the socket.
    #[error(transparent)]
    Serve(ServeError),
    /// The fault plan cannot be used.
    #[error(transparent)]
    Faults(#[from] FaultFileError),
    /// The state's file cannot be used.
    #[error(transparent)]
    State(#[from] StateFileError),
    /// The state cannot be restored.
    #[error("the state is not restored: {0}")]
    Restore(StateError),
    /// The state cannot be saved.
    #[error("the state is not saved: {0}")]
    Save(StateError),
    /// The device has died.
    #[error("the device has died: {0}")]
    Died(#[from] offmap_device_io::IoError),
    /// Signals cannot be waited for.
    #[error("cannot wait for signals: {0}")]
    Signals(io::Error),
    /// No client can be accepted any more.
    #[error("cannot serve clients any more: {0}")]
    Accept(io::Error),
}

/// The options by the names that the device's configuration has for them.
const OPTIONS: [(&str, &str); 10] = [
    ("queue_pairs", "--queue-pairs"),
    ("queue_depth_max", "--queue-depth"),
    ("vectors", "--vectors"),
    ("polls_before_park", "--polls"),
    ("look_again_us", "--look-again-us"),
    ("memory_bytes", "--memory"),
    ("ports", "--ports"),
    ("maps", "--maps"),
    ("entries_per_map", "--map-entries"),
    ("entries_total", "--total-entries"),
];

impl From<ServeError> for NicError {
    fn from(error: ServeError) -> Self {
        let (field, value, expected) = match &error {
            ServeError::Device(EmulatorError::Config {
                field,
                value,
                expected,
            }) => (*field, *value, (*expected).to_owned()),
            ServeError::Device(EmulatorError::Firmware(FirmwareError::Limit {
                name,
                value,
                min,
                max,
            })) => (*name, *value, format!("from {min} to {max}")),
            _ => return Self::Serve(error),
        };
        match OPTIONS.iter().find(|(name, _)| *name == field) {
            Some((_, option)) => Self::Option {
                option,
                value,
                expected,
            },
            None => Self::Serve(error),
        }
    }
}

/// The device that the arguments describe.
pub fn config(args: &NicArgs) -> DeviceConfig {
    let mut config = DeviceConfig {
        queue_pairs: args.queue_pairs,
        queue_depth_max: args.queue_depth,
        vectors: args.vectors,
        polls_before_park: args.polls,
        look_again_us: args.look_again_us,
        keep_maps: args.state.is_some(),
        ..DeviceConfig::default()
    };
    config.firmware.memory_bytes = args.memory;
    if !args.tiers.is_empty() {
        config.firmware = config.firmware.with_tiers(args.tiers.clone());
    }
    config.firmware.ports = args.ports;
    config.firmware.maps = args.maps;
    config.firmware.entries_per_map = args.map_entries;
    config.firmware.entries_total = args.total_entries;
    config
}

/// Serves the NIC until SIGTERM or SIGINT. `tell` gets a sentence for whatever happens.
///
/// # Errors
///
/// [`NicError`].
pub fn run(args: &NicArgs, tell: &mut dyn FnMut(&str)) -> Result<(), NicError> {
    let plan = args.faults.as_deref().map(FaultPlan::load).transpose()?;
    // A signal that comes while the device is built is not lost.
    let (stop, signals) = UnixStream::pair().map_err(NicError::Signals)?;
    for signal in [SIGTERM, SIGINT] {
        let write = signals.try_clone().map_err(NicError::Signals)?;
        pipe::register(signal, write).map_err(NicError::Signals)?;
    }
    raise_descriptor_limit();
    let config = config(args);
    let state = args.state.as_deref().map(StateFile::claim).transpose()?;
    let saved = state.as_ref().filter(|state| state.there());
    let mut server = match saved.map(StateFile::path) {
        Some(path) => {
            let device = Device::restore(&config, path).map_err(NicError::Restore)?;
            tell(&format!("the maps of {} are restored", path.display()));
            Server::bind_device(&args.socket, device, config.polls_before_park)?
        }
        None => Server::bind(&args.socket, config)?,
    };
    server.set_version_timeout(Duration::from_millis(args.version_timeout_ms));
    if let Some(plan) = &plan {
        server.device().set_faults(plan, args.seed)?;
    }
    tell(&format!("the NIC is at {}", args.socket.display()));
    let served = server.run(stop.as_fd(), tell).map_err(NicError::Accept);
    // However the serving ended: the maps are there.
    let saved = match &state {
        Some(state) => save(&server, state.path(), tell),
        None => Ok(()),
    };
    if let (Err(_), Err(error)) = (&served, &saved) {
        tell(&error.to_string());
    }
    served.and(saved)?;
    if args.stats {
        tell(&counted(&server.device().diagnostics()?));
    }
    if plan.is_some() {
        for line in injected(&server.device().fault_report()?) {
            tell(&line);
        }
    }
    tell("told to stop");
    Ok(())
}

fn save(server: &Server, path: &Path, tell: &mut dyn FnMut(&str)) -> Result<(), NicError> {
    server.device().save(path)?.map_err(NicError::Save)?;
    tell(&format!("the maps are saved to {}", path.display()));
    Ok(())
}

/// What `--stats` says.
fn counted(device: &Diagnostics) -> String {
    format!(
        "the device was kicked {} times, {} of them answered by the thread that carried the write out; \
         it parked {} times, and {} times found something at its last look before that; {} commands \
         were cut short at {} resets and failures",
        device.kicks,
        device.kicks_answered,
        device.parks,
        device.parks_called_off,
        device.cut_short,
        device.cuts,
    )
}

/// What a fault plan has done: in all, and rule by rule.
fn injected(report: &FaultReport) -> Vec<String> {
    let mut lines = vec![format!("faults injected: {}", report.injected())];
    lines.extend(report.rules.iter().map(|rule| {
        let does = format!("{} at {}", rule.behaviour, rule.site);
        let name = match rule.name == does {
            true => does,
            false => format!("{} ({does})", rule.name),
        };
        let (injected, matched) = (rule.injected, rule.matched);
        format!("{name}: injected {injected} times, of {matched} that it matched")
    }));
    lines
}

/// Every file of client memory is held open while it is mapped: as many as the system lets this
/// process have.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    // Where it cannot be raised, a client meets the limit as an errno.
    let _ = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit.maximum,
            ..limit
        },
    );
}
