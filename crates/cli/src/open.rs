//! Opens what `--device` names, for every command that drives a device.
//!
//! A device in this process is for the commands themselves to build, because they choose its
//! configuration; all others are opened here, and here alone.

use crate::args::DeviceKind;
use offmap_device_io::{Function, IoError};
use offmap_vfio::{AttachError, Vfio};
use offmap_vfio_user::{Attach, VfioUser};
use std::sync::Arc;
use std::time::{Duration, Instant};
use thiserror::Error;

/// How long a device that another client has just left may say that it has a client.
const BUSY: Duration = Duration::from_secs(2);

/// Why a device cannot be opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// Another client has the device.
    #[error(
        "the SmartNIC at {0} is held by another client, and it serves one at a time: end that client, or start \
         another SmartNIC, `offmap nic --socket` at a path of its own"
    )]
    Held(String),
    /// The device behind the socket cannot be attached to.
    #[error("cannot attach to the SmartNIC at {path}: {source}")]
    Refused {
        /// The socket.
        path: String,
        /// What went wrong.
        source: IoError,
    },
    /// There is no device behind the socket.
    #[error("there is no SmartNIC at {path}: {source}; `offmap nic --socket {path}` starts one")]
    Attach {
        /// The socket.
        path: String,
        /// What went wrong.
        source: IoError,
    },
    /// There is no device to be driven at the PCI address.
    #[error(transparent)]
    Vfio(#[from] AttachError),
}

/// What is done with a device, whatever carries it.
pub trait Visitor {
    /// What comes of it.
    type Out;

    /// A device in this process, which the visitor builds: on the caller's thread, or on one of its
    /// own.
    fn emulated(self, threaded: bool) -> Self::Out;

    /// A device elsewhere. `open` opens it, once more each time; it is the visitor that
    /// lets go of it before.
    fn elsewhere<F: Function>(self, open: impl FnMut() -> Result<Arc<F>, OpenError>) -> Self::Out;
}

/// Has `visitor` do its work with the device.
pub fn visit<V: Visitor>(kind: &DeviceKind, visitor: V) -> V::Out {
    match kind {
        DeviceKind::Inline => visitor.emulated(false),
        DeviceKind::Threaded => visitor.emulated(true),
        DeviceKind::VfioUser(path) => visitor.elsewhere(|| {
            let started = Instant::now();
            loop {
                match VfioUser::attach(path, Attach::default()) {
                    Ok(device) => return Ok(Arc::new(device)),
                    // The server notices a little later that a client has left.
                    Err(IoError::Os { source, .. })
                        if source.kind() == std::io::ErrorKind::ResourceBusy
                            && started.elapsed() < BUSY =>
                    {
                        std::thread::sleep(Duration::from_millis(10));
                    }
                    Err(error) => return Err(not_attached(path.display().to_string(), error)),
                }
            }
        }),
        DeviceKind::Vfio(address) => visitor.elsewhere(|| {
            let device = Vfio::attach(address, offmap_vfio::Attach::default())?;
            Ok(Arc::new(device))
        }),
    }
}

/// Why there is nobody to attach to, by the errno: who holds the device, whether there is any, or else.
fn not_attached(path: String, source: IoError) -> OpenError {
    use std::io::ErrorKind::{ConnectionRefused, NotFound, ResourceBusy};
    let kind = match &source {
        IoError::Os { source, .. } => Some(source.kind()),
        _ => None,
    };
    match kind {
        Some(ResourceBusy) => OpenError::Held(path),
        Some(NotFound | ConnectionRefused) => OpenError::Attach { path, source },
        _ => OpenError::Refused { path, source },
    }
}
