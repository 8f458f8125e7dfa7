//! The threaded front end: the device runs on a thread of its own, and sleeps when idle.
//!
//! The thread holds the device while it polls. It gives it up between two steps when a host
//! thread wants it, which it sees from a counter, so that the polling itself takes no lock.

use crate::config::DeviceConfig;
use crate::device::{Device, Step};
use crate::error::EmulatorError;
use crate::function::{Emulated, FrontEnd};
use offmap_device_io::IoError;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};

/// How often the device's thread lets itself be overtaken by waiting host threads before it
/// queues for the lock like they do.
const YIELDS: u32 = 64;

/// An emulated device on a thread of its own. Dropping it ends the thread.
pub type Threaded = Emulated<ThreadedFrontEnd>;

/// See [`Threaded`].
pub struct ThreadedFrontEnd {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    device: Mutex<Device>,
    /// Host threads that want the device.
    waiting: AtomicU32,
    /// The device's own thread wants it back.
    owed: AtomicBool,
    stop: AtomicBool,
}

impl Threaded {
    /// Builds a device and starts its thread.
    ///
    /// # Errors
    ///
    /// [`EmulatorError`], when the configuration or the system does not allow it.
    pub fn spawn(config: DeviceConfig) -> Result<Arc<Self>, EmulatorError> {
        Self::start(Device::new(&config)?, config.polls_before_park)
    }

    /// Starts the thread of a device that there is. `polls_before_park` is that of
    /// [`DeviceConfig`].
    ///
    /// # Errors
    ///
    /// [`EmulatorError::Thread`].
    pub fn start(device: Device, polls_before_park: u32) -> Result<Arc<Self>, EmulatorError> {
        let shared = Arc::new(Shared {
            device: Mutex::new(device),
            waiting: AtomicU32::new(0),
            owed: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        });
        let thread = thread::Builder::new()
            .name("offmap-device".into())
            .spawn({
                let shared = Arc::clone(&shared);
                move || run(&shared, polls_before_park)
            })
            .map_err(EmulatorError::Thread)?;
        Ok(Arc::new(Self {
            front_end: ThreadedFrontEnd {
                shared,
                thread: Some(thread),
            },
        }))
    }
}

/// The device's thread.
fn run(shared: &Shared, polls_before_park: u32) {
    let Some(mut device) = shared.acquire() else {
        return;
    };
    let mut idle = 0;
    loop {
        match device.step() {
            Step::Worked => idle = 0,
            Step::Idle => {
                idle += 1;
                std::hint::spin_loop();
            }
        }
        if shared.stop.load(Ordering::Relaxed) {
            return;
        }
        if idle > polls_before_park || !device.is_running() {
            idle = 0;
            if device.arm() {
                device = match sleep(shared, device) {
                    Some(device) => device,
                    None => return,
                };
            }
            device.disarm();
        } else if shared.waiting.load(Ordering::Relaxed) != 0 {
            drop(device);
            device = match shared.acquire() {
                Some(device) => device,
                None => return,
            };
        }
    }
}

/// Sleeps until there is work, with every queue armed. `None`: the device is to end.
fn sleep<'s>(
    shared: &'s Shared,
    mut device: MutexGuard<'s, Device>,
) -> Option<MutexGuard<'s, Device>> {
    loop {
        let (running, look_again) = (device.is_running(), device.look_again());
        drop(device);
        // A wake-up that came before this leaves a token, and the thread does not sleep.
        if running {
            // Doorbells that are mapped wake nobody (rule N3).
            thread::park_timeout(look_again);
        } else {
            thread::park();
        }
        device = shared.acquire()?;
        if shared.stop.load(Ordering::Relaxed) {
            return None;
        }
        // The event words stay armed at the counts of before: a step that finds nothing has
        // moved none of them.
        if device.take_answered() || device.step() == Step::Worked {
            return Some(device);
        }
        if device.is_running() != running {
            // It was put to sleep or woken up by the host: the words are to be written anew.
            return Some(device);
        }
    }
}

impl Shared {
    /// The device for its own thread, after the host threads that wait for it. `None` when a
    /// host thread has panicked inside it.
    fn acquire(&self) -> Option<MutexGuard<'_, Device>> {
        for _ in 0..YIELDS {
            if self.waiting.load(Ordering::Relaxed) == 0 {
                break;
            }
            thread::yield_now();
        }
        self.owed.store(true, Ordering::Relaxed);
        let device = self.device.lock().ok();
        self.owed.store(false, Ordering::Relaxed);
        device
    }
}

impl FrontEnd for ThreadedFrontEnd {
    const NAME: &'static str = "threaded";
    const RUNS_ON_CALLER: bool = false;

    fn with_device<R>(&self, f: impl FnOnce(&mut Device) -> R) -> Result<R, IoError> {
        self.shared.waiting.fetch_add(1, Ordering::Relaxed);
        let device = self.shared.device.lock();
        self.shared.waiting.fetch_sub(1, Ordering::Relaxed);
        let result = match device {
            Ok(mut device) => Ok(f(&mut device)),
            Err(_) => Err(IoError::Gone("the device's thread has panicked")),
        };
        if self.shared.owed.load(Ordering::Relaxed) {
            // The lock is not fair: a host that reads a register in a loop would take it again
            // and again before the device's thread has woken up.
            thread::yield_now();
        }
        result
    }

    fn wake(&self) {
        if let Some(thread) = &self.thread {
            thread.thread().unpark();
        }
    }

    #[inline]
    fn progress(&self) {
        std::hint::spin_loop();
    }
}

impl Drop for ThreadedFrontEnd {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // A panic of the thread has been reported where it happened, and its poison shows
            // in every access since.
            let _ = thread.join();
        }
    }
}
