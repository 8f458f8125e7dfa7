//! A thread that hears when the kernel wants the device back, or has lost it.

use crate::function::Device;
use offmap_device_io::{Interrupt, IoError};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use vfio_bindings::bindings::vfio::{VFIO_PCI_ERR_IRQ_INDEX, VFIO_PCI_REQ_IRQ_INDEX};

/// The thread. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct Watch {
    stop: Interrupt,
    thread: Option<JoinHandle<()>>,
}

/// Interrupts by which the kernel speaks of the device, and what they say.
const KINDS: [(u32, &str); 2] = [
    (
        VFIO_PCI_REQ_IRQ_INDEX,
        "the kernel takes it back: it is being unplugged or unbound",
    ),
    (
        VFIO_PCI_ERR_IRQ_INDEX,
        "the PCI bus reports an error that it does not come back from",
    ),
];

impl Watch {
    /// Starts it. A kernel that has no such interrupts is not asked for them.
    pub(crate) fn spawn(device: &Arc<Device>) -> Result<Self, IoError> {
        let mut heard = Vec::new();
        for (index, why) in KINDS {
            if !device.has_irq(index) {
                continue;
            }
            let interrupt = Interrupt::new()?;
            device
                .route(index, 0, &[Some(&interrupt)])
                .map_err(|e| IoError::os("cannot hear of the device's removal", e))?;
            heard.push((interrupt, why));
        }
        let stop = Interrupt::new()?;
        let told = stop.try_clone()?;
        let device = Arc::clone(device);
        let thread = thread::Builder::new()
            .name("offmap-vfio".into())
            .spawn(move || run(&device, &told, &heard))
            .map_err(|e| IoError::os("cannot start a thread", e))?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

fn run(device: &Device, stop: &Interrupt, heard: &[(Interrupt, &'static str)]) {
    loop {
        let mut fds: Vec<PollFd<'_>> = [stop]
            .into_iter()
            .chain(heard.iter().map(|(interrupt, _)| interrupt))
            .map(|interrupt| PollFd::from_borrowed_fd(interrupt.fd(), PollFlags::IN))
            .collect();
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(_) => return,
        }
        if stop.take().unwrap_or(true) {
            return;
        }
        for (interrupt, why) in heard {
            // The kernel repeats a request until the device is let go.
            if interrupt.take().unwrap_or(false) {
                device.lose(why);
                device.revoke();
            }
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.stop.signal();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
