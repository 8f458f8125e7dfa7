//! RINGBUF maps: the device writes records to host memory, and the core consumes them there.

use crate::errno;
use crate::nic::{Reservation, Shared};
use offmap_abi::fence::full_fence;
use offmap_abi::regs::NO_VECTOR;
use offmap_abi::ringbuf::{CONSUMER_POSITION, DATA, PAGE_BYTES, PRODUCER_POSITION, memory_bytes};
use offmap_bpf::device::{MapSpec, OffloadedMap, RingBuffer, RingHeader};
use offmap_bpf::error::Result;
use offmap_bpf::uapi::MapFlags;
use offmap_bpf::{Errno, Error};
use offmap_driver::{DeviceMap, DmaRegion, Driver, DriverError, Function, MapParams, Vector};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

const NO_ELEMENTS: Error = Error::new(Errno::ENOTSUPP, "maps of this type have no such operation");

/// Turns of a waiter that polls, between two looks whether the device is still there. One who
/// sleeps looks as often as a command that is not answered would end by its time.
const HEALTH_TURNS: u32 = 1 << 12;
/// Turns after which a waiter that polls gives the processor away.
const SPINS: u32 = 256;

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A ring that the device fills.
struct NicRing<F: Function> {
    driver: Arc<Driver<F>>,
    map: DeviceMap,
    memory: Arc<DmaRegion<F>>,
    data_bytes: u64,
    /// `None`: those who wait poll.
    bell: Option<Vector<F>>,
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

/// Those who wait with a vector. One of them, the leader, sleeps at the interrupt, and tells the
/// others when it is over.
#[derive(Default)]
struct Waiting {
    led: bool,
    /// Counts what may have changed the answer of those who wait.
    rung: u64,
}

impl<F: Function> NicRing<F> {
    fn load(&self, offset: u64) -> u64 {
        let word = self
            .memory
            .buffer()
            .load_u64(offset as usize, Ordering::Acquire);
        u64::from_le(word)
    }

    fn alive(&self) -> Result<()> {
        let alive = self.driver.check_map(&self.map);
        alive.map_err(|e| errno::of_driver(&e))
    }

    fn ring(&self) {
        locked(&self.waiting).rung += 1;
        self.changed.notify_all();
    }

    /// Waits at the interrupt, or behind the one who does, until something may have changed
    /// since `seen`, or `time` is over.
    fn sleep(&self, bell: &Vector<F>, seen: u64, time: Duration) -> Result<()> {
        let mut waiting = locked(&self.waiting);
        if waiting.rung != seen {
            return Ok(());
        }
        if waiting.led {
            let unchanged = |waiting: &mut Waiting| waiting.rung == seen && waiting.led;
            // Poisoned by a panic elsewhere, which changes nothing here.
            drop(self.changed.wait_timeout_while(waiting, time, unchanged));
            return Ok(());
        }
        waiting.led = true;
        drop(waiting);
        let rung = self.driver.function().sleep(bell.interrupt(), time);
        let mut waiting = locked(&self.waiting);
        waiting.led = false;
        waiting.rung += 1;
        drop(waiting);
        // The others look, too; one of them leads from then on.
        self.changed.notify_all();
        rung.map(drop).map_err(|e| {
            Error::because(
                Errno::EIO,
                format!("cannot wait for the ring buffer's interrupt: {e}"),
            )
        })
    }
}

impl<F: Function> RingBuffer for NicRing<F> {
    fn data_bytes(&self) -> u64 {
        self.data_bytes
    }

    fn producer_position(&self) -> u64 {
        self.load(PRODUCER_POSITION)
    }

    fn set_consumer_position(&self, position: u64) {
        self.memory.buffer().store_u64(
            CONSUMER_POSITION as usize,
            position.to_le(),
            Ordering::Release,
        );
    }

    fn header(&self, offset: u64) -> RingHeader {
        let word = self.load(DATA + offset);
        RingHeader {
            len: word as u32,
            page_offset: (word >> 32) as u32,
        }
    }

    fn copy(&self, offset: u64, out: &mut [u8]) {
        let here = out.len().min((self.data_bytes - offset) as usize);
        let (head, tail) = out.split_at_mut(here);
        let buffer = self.memory.buffer();
        buffer.read((DATA + offset) as usize, head);
        buffer.read(DATA as usize, tail);
    }

    fn wake(&self) {
        self.ring();
        if let Some(bell) = &self.bell {
            // An eventfd that cannot be written ends the leader's sleep by its time.
            let _ = bell.interrupt().signal();
        }
    }

    fn wait(&self, timeout: Duration, ready: &mut dyn FnMut(bool) -> Result<bool>) -> Result<bool> {
        let function = &**self.driver.function();
        let deadline = function.now().checked_add(timeout);
        let mut turns = 0u32;
        loop {
            let seen = locked(&self.waiting).rung;
            // Rule B3: after the consumer position was stored, and before the look.
            full_fence();
            if ready(false)? {
                return Ok(true);
            }
            let left = match deadline {
                Some(deadline) => deadline.saturating_sub(function.now()),
                None => Duration::MAX,
            };
            if left.is_zero() {
                return Ok(false);
            }
            match &self.bell {
                Some(bell) => {
                    self.alive()?;
                    self.sleep(bell, seen, left.min(self.driver.config().op_timeout))?;
                }
                None => {
                    function.progress();
                    turns = turns.wrapping_add(1);
                    if turns.is_multiple_of(HEALTH_TURNS) {
                        self.alive()?;
                    }
                    if turns > SPINS {
                        function.relax();
                    }
                }
            }
        }
    }
}

/// A RINGBUF map on a device.
pub(crate) struct NicRingMap<F: Function> {
    shared: Arc<Shared<F>>,
    ring: Arc<NicRing<F>>,
    freed: AtomicBool,
    /// What the map counts for in the profile's limits.
    reservation: Mutex<Option<Reservation<F>>>,
}

fn invalid(reason: String) -> Error {
    Error::because(Errno::EINVAL, reason)
}

/// What the kernel's `ringbuf_map_alloc` checks, which the core leaves to the device.
fn check(spec: &MapSpec) -> Result<()> {
    let refused = spec.map_flags - MapFlags::NUMA_NODE;
    if !refused.is_empty() {
        return Err(invalid(format!(
            "map_flags {:#x}: a ring buffer does not take {:#x}",
            spec.map_flags.bits(),
            refused.bits()
        )));
    }
    for (name, size) in [("key_size", spec.key_size), ("value_size", spec.value_size)] {
        if size != 0 {
            return Err(invalid(format!(
                "{name} {size}: a ring buffer has no elements and wants 0"
            )));
        }
    }
    let size = spec.max_entries;
    if !size.is_power_of_two() || !u64::from(size).is_multiple_of(PAGE_BYTES) {
        return Err(invalid(format!(
            "max_entries {size}: the size of a ring buffer in bytes is a power of two, and at \
             least a page of {PAGE_BYTES}"
        )));
    }
    Ok(())
}

/// The error for a ring that could not be created.
fn of_create(profile: &str, error: &DriverError, bytes: u64) -> Error {
    match error {
        DriverError::Io {
            what: _,
            source: source @ offmap_driver::IoError::Os { .. },
        } => Error::because(
            Errno::ENOMEM,
            format!("the ring buffer needs {bytes} bytes of DMA memory: {source}"),
        ),
        _ => errno::of_create(profile, error),
    }
}

impl<F: Function> NicRingMap<F> {
    /// Allocates the ring's memory and has the device create the map.
    pub(crate) fn create(shared: &Arc<Shared<F>>, spec: &MapSpec) -> Result<Self> {
        check(spec)?;
        let driver = &shared.driver;
        let data_bytes = u64::from(spec.max_entries);
        let bell = driver.take_vector();
        let params = MapParams {
            map_type: spec.map_type.0,
            max_entries: spec.max_entries,
            name: spec.name,
            vector: bell.as_ref().map_or(NO_VECTOR, Vector::number),
            ..MapParams::default()
        };
        let bytes = memory_bytes(data_bytes);
        let created = usize::try_from(bytes)
            .map_err(|_| invalid(format!("max_entries {}: too big", spec.max_entries)))
            .and_then(|len| {
                driver
                    .create_map_with_memory(&params, len, spec.numa_node)
                    .map_err(|e| of_create(&shared.profile.name, &e, bytes))
            });
        let (map, memory) = created?;
        Ok(Self {
            ring: Arc::new(NicRing {
                driver: Arc::clone(driver),
                map,
                memory,
                data_bytes,
                bell,
                waiting: Mutex::default(),
                changed: Condvar::new(),
            }),
            shared: Arc::clone(shared),
            freed: AtomicBool::new(false),
            reservation: Mutex::new(None),
        })
    }

    /// The map counts for this from now on, until it is freed.
    pub(crate) fn counting(mut self, reservation: Option<Reservation<F>>) -> Self {
        self.reservation = Mutex::new(reservation);
        self
    }
}

impl<F: Function> OffloadedMap for NicRingMap<F> {
    fn lookup(&self, _key: &[u8], _value: &mut [u8], _flags: u64) -> Result<()> {
        Err(NO_ELEMENTS)
    }

    fn update(&self, _key: &[u8], _value: &[u8], _flags: u64) -> Result<()> {
        Err(NO_ELEMENTS)
    }

    fn delete(&self, _key: &[u8]) -> Result<()> {
        Err(NO_ELEMENTS)
    }

    fn get_next_key(&self, _key: Option<&[u8]>, _next: &mut [u8]) -> Result<()> {
        Err(NO_ELEMENTS)
    }

    fn ring_buffer(&self) -> Option<Arc<dyn RingBuffer>> {
        Some(Arc::clone(&self.ring) as Arc<dyn RingBuffer>)
    }

    fn device_bytes(&self) -> u64 {
        self.ring.map.bytes()
    }

    fn free(&self) {
        if self.freed.swap(true, Ordering::AcqRel) {
            return;
        }
        drop(locked(&self.reservation).take());
        let (ring, shared) = (&self.ring, &self.shared);
        let memory = Arc::clone(&ring.memory);
        match shared.driver.free_map_with_memory(&ring.map, memory) {
            // A reset, or the end of the device, freed it before.
            Ok(()) | Err(DriverError::DeviceReset | DriverError::DeviceGone { .. }) => {}
            Err(_) => shared.count_failed_free(),
        }
        ring.ring();
    }
}
