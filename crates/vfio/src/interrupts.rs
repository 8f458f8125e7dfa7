//! MSI-X vectors and the eventfds that they are routed to.
//!
//! The kernel allocates vectors from the first one on, and not every kernel lets more follow
//! later. So all are allocated with the first that is used, if the machine has that many, and
//! only as many as are needed otherwise.

use crate::function::Device;
use offmap_device_io::{Interrupt, IoError};
use std::sync::{Mutex, MutexGuard, PoisonError};
use vfio_bindings::bindings::vfio::VFIO_PCI_MSIX_IRQ_INDEX as MSIX;

#[derive(Debug, Default)]
struct Routes {
    /// Where each vector goes.
    to: Vec<Option<Interrupt>>,
    /// How many the kernel has allocated; none: MSI-X is off.
    allocated: usize,
}

/// The MSI-X vectors of a device.
#[derive(Debug)]
pub(crate) struct Vectors {
    count: u32,
    routes: Mutex<Routes>,
}

impl Vectors {
    /// All silent.
    pub(crate) fn new(count: u32) -> Self {
        Self {
            count,
            routes: Mutex::default(),
        }
    }

    /// How many there are.
    pub(crate) fn count(&self) -> u32 {
        self.count
    }

    /// Routes a vector to a new interrupt.
    pub(crate) fn enable(&self, device: &Device, vector: u32) -> Result<Interrupt, IoError> {
        let at = self.checked(vector)?;
        let interrupt = Interrupt::new()?;
        let mut routes = self.routes();
        let before = routes.to[at].replace(interrupt.try_clone()?);
        let done = routes.apply(device, at);
        if let Err(e) = done {
            routes.to[at] = before;
            return Err(IoError::os("cannot route an interrupt", e));
        }
        Ok(interrupt)
    }

    /// Silences a vector; with the last one MSI-X is switched off.
    pub(crate) fn disable(&self, device: &Device, vector: u32) -> Result<(), IoError> {
        let at = self.checked(vector)?;
        let mut routes = self.routes();
        if routes.to[at].take().is_none() {
            return Ok(());
        }
        let done = match routes.to.iter().any(Option::is_some) {
            true => device.route(MSIX, vector, &[None]),
            false => routes.off(device),
        };
        done.map_err(|e| IoError::os("cannot silence an interrupt", e))
    }

    /// Silences all of them.
    pub(crate) fn silence(&self, device: &Device) -> Result<(), IoError> {
        let mut routes = self.routes();
        routes.to.fill_with(|| None);
        if routes.allocated == 0 {
            return Ok(());
        }
        let done = routes.off(device);
        done.map_err(|e| IoError::os("cannot silence the interrupts", e))
    }

    fn checked(&self, vector: u32) -> Result<usize, IoError> {
        match vector < self.count {
            true => Ok(vector as usize),
            false => Err(IoError::NoVector {
                vector,
                vectors: self.count,
            }),
        }
    }

    fn routes(&self) -> MutexGuard<'_, Routes> {
        let mut routes = self.routes.lock().unwrap_or_else(PoisonError::into_inner);
        routes.to.resize_with(self.count as usize, || None);
        routes
    }
}

impl Routes {
    /// Has the kernel do what stands in the table at `at`.
    fn apply(&mut self, device: &Device, at: usize) -> std::io::Result<()> {
        if at < self.allocated {
            return device.route(MSIX, at as u32, &[self.to[at].as_ref()]);
        }
        if self.allocated > 0 {
            self.off(device)?;
        }
        let needed = self
            .to
            .iter()
            .rposition(Option::is_some)
            .map_or(0, |last| last + 1);
        let mut done = Ok(());
        for many in [self.to.len(), needed] {
            let fds: Vec<Option<&Interrupt>> = self.to[..many].iter().map(Option::as_ref).collect();
            done = device.route(MSIX, 0, &fds);
            if done.is_ok() {
                self.allocated = many;
                break;
            }
        }
        done
    }

    fn off(&mut self, device: &Device) -> std::io::Result<()> {
        self.allocated = 0;
        device.silence(MSIX)
    }
}
