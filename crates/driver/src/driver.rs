//! One device: its admin operations and its life cycle.

mod adopt;

use crate::admin::{self, AdminQueue};
use crate::bringup::{self, Identity};
use crate::generations::Generations;
use crate::queue::stats::{DriverStats, Meters};
use crate::registers::Registers;
use crate::vectors::{Vector, Vectors};
use crate::{CompletionFault, DeviceMap, DriverConfig, DriverError, MapParams, QueuePair};
pub use adopt::AdoptedMap;
use offmap_abi::admin::{
    AbortBody, EmptyBody, MapAttr, MapCreateBody, MapCreated, MapInfo, QueueCreateBody,
    QueueDeleteBody,
};
use offmap_abi::regs::{BAR_REGISTERS, DOORBELLS, DOORBELLS_BYTES, Features, NO_VECTOR};
use offmap_abi::{AdminOpcode, MapHandle, QueueId, RequestId, Status};
use offmap_device_io::{
    BarMapping, BarOffset, DmaPlacement, DmaRegion, Function, IoError, IovaAllocator, PAGE_BYTES,
};
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;
use zerocopy::{Immutable, IntoBytes};

/// Longest time that dropping a driver waits for the device to stop.
const STOP_TIMEOUT: Duration = Duration::from_secs(1);

/// A device that has been brought up.
///
/// Admin operations take a lock and wait for the device; they are not for the hot path.
/// Dropping the last handle disables the device, which frees its maps, unless [`Driver::leave_maps`] was called.
pub struct Driver<F: Function> {
    function: Arc<F>,
    config: DriverConfig,
    identity: Identity,
    iovas: Arc<Mutex<IovaAllocator>>,
    doorbells: Option<BarMapping>,
    /// Counts the resets of this driver. Queues and maps carry the count of their making.
    epoch: AtomicU64,
    /// Vectors that nobody has.
    vectors: Vectors,
    /// Where request ids come from.
    generations: Arc<Generations>,
    /// RESET_COUNT when the device was last brought up.
    reset_count: AtomicU32,
    admin: Mutex<Admin<F>>,
    meters: Meters,
    /// Dropping the driver does not disable the device ([`Driver::leave_maps`]).
    leaves_maps: AtomicBool,
    resets: AtomicU64,
    failed_resets: AtomicU64,
}

struct Admin<F: Function> {
    /// `None` after a reset that did not succeed.
    queue: Option<AdminQueue<F>>,
    /// Who has queue id `n`, at index `n - 1`.
    queue_ids: Box<[IdState]>,
    /// Memory that the device may still write, because neither a completion nor a
    /// QUEUE_DELETE was confirmed. A confirmed reset releases it (rule R2).
    quarantine: Vec<Arc<DmaRegion<F>>>,
}

/// Who has a queue id.
///
/// An id is given out again only when its owner is gone, so that a late doorbell of a queue
/// from before a reset never reaches its successor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum IdState {
    Free,
    /// A [`QueuePair`], of this epoch or an earlier one.
    Owned,
    /// Its owner is gone, yet its deletion was not confirmed. A confirmed reset frees it.
    Orphan,
}

impl<F: Function> Admin<F> {
    fn set_id(&mut self, queue: QueueId, state: IdState) {
        self.queue_ids[usize::from(queue.0) - 1] = state;
    }

    fn command<B: IntoBytes + Immutable>(
        &mut self,
        driver: &Driver<F>,
        command: AdminOpcode,
        map: Option<MapHandle>,
        body: &B,
    ) -> Result<offmap_abi::Completion, DriverError> {
        let timeout = driver.config.admin_timeout;
        let queue = self.queue.as_mut().ok_or(DriverError::Down)?;
        queue.command(&*driver.function, command, map, body, timeout)
    }
}

impl<F: Function> Driver<F> {
    /// Brings the function up: config space, registers, admin queue, IDENTIFY.
    ///
    /// # Errors
    ///
    /// A [`DriverError`] that names the setting, register or field that is not usable, or the
    /// step that did not succeed. The device is left disabled then, as far as it obeys.
    pub fn bring_up(function: Arc<F>, config: DriverConfig) -> Result<Arc<Self>, DriverError> {
        config.validate()?;
        let iovas = Arc::new(Mutex::new(IovaAllocator::new(&function.iova_ranges())));
        let generations = Arc::new(Generations::default());
        let up = bringup::bring_up(&function, &iovas, &config, &generations)?;
        let mapped = function.map_bar(
            BAR_REGISTERS,
            BarOffset(DOORBELLS),
            DOORBELLS_BYTES as usize,
        );
        let doorbells = match mapped {
            Ok(mapped) => mapped.filter(|part| part.len() as u64 >= DOORBELLS_BYTES),
            Err(source) => {
                // Before the admin rings go away, as in `bringup`.
                let _ = bringup::stop(&*function, up.ready_timeout);
                return Err(DriverError::Io {
                    what: "map the doorbells",
                    source,
                });
            }
        };
        let queue_ids = vec![IdState::Free; usize::from(up.identity.queue_pairs)];
        Ok(Arc::new(Self {
            vectors: Vectors::new(function.vectors()),
            function,
            config,
            identity: up.identity,
            iovas,
            doorbells,
            generations,
            epoch: AtomicU64::new(0),
            reset_count: AtomicU32::new(up.admin.reset_count()),
            admin: Mutex::new(Admin {
                queue: Some(up.admin),
                queue_ids: queue_ids.into_boxed_slice(),
                quarantine: Vec::new(),
            }),
            meters: Meters::default(),
            leaves_maps: AtomicBool::new(false),
            resets: AtomicU64::new(0),
            failed_resets: AtomicU64::new(0),
        }))
    }

    /// What the device says of itself.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The settings that the driver was made with.
    pub fn config(&self) -> &DriverConfig {
        &self.config
    }

    /// The function under the driver.
    pub fn function(&self) -> &Arc<F> {
        &self.function
    }

    /// How often the driver has reset the device.
    #[inline]
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// What all its queue pairs have done, those that are gone included. From any thread: it
    /// takes no lock that a command takes, and queues do not wait for it.
    pub fn stats(&self) -> DriverStats {
        DriverStats {
            queues: self.meters.snapshot(),
            resets: self.resets.load(Ordering::Relaxed),
            failed_resets: self.failed_resets.load(Ordering::Relaxed),
        }
    }

    /// Makes a queue pair. It belongs to the caller, who drops it to delete it.
    ///
    /// # Errors
    ///
    /// [`DriverError::NoQueuePair`] when all are in use; what the device or the transport
    /// refuses otherwise.
    pub fn create_queue(self: &Arc<Self>) -> Result<QueuePair<F>, DriverError> {
        let mut admin = self.turn()?;
        let free = admin.queue_ids.iter().position(|s| *s == IdState::Free);
        let Some(index) = free else {
            return Err(DriverError::NoQueuePair {
                have: self.identity.queue_pairs,
            });
        };
        // There are at most 1,023, as bring-up checked.
        let queue = QueueId(index as u16 + 1);
        let (mut pair, body) = QueuePair::prepare(Arc::clone(self), queue, self.epoch())?;
        match admin.command(self, AdminOpcode::QueueCreate, None, &body) {
            Ok(_) => {
                admin.set_id(queue, IdState::Owned);
                pair.arm();
                Ok(pair)
            }
            Err(e) => {
                // Refused, or never sent: the device knows nothing of it.
                let unknown = matches!(
                    e,
                    DriverError::Command { .. } | DriverError::Refused { .. } | DriverError::Down
                );
                if !unknown {
                    // The device may have taken up the rings.
                    admin.set_id(queue, IdState::Orphan);
                    admin.quarantine.extend(pair.regions());
                }
                Err(e)
            }
        }
    }

    /// Creates a map in device memory.
    ///
    /// # Errors
    ///
    /// [`DriverError::Refused`] with the limit that was hit.
    pub fn create_map(&self, params: &MapParams) -> Result<DeviceMap, DriverError> {
        let stride = params.value_stride();
        let Ok(value_stride) = u32::try_from(stride) else {
            return Err(DriverError::Refused {
                command: AdminOpcode::MapCreate,
                status: Status::LimitExceeded,
                limit: offmap_abi::admin::Limit::ValueBytes,
                asked: stride,
                // The ABI's length fields have 32 bits.
                allowed: u32::MAX.into(),
                used: 0,
                memory: None,
            });
        };
        let mut admin = self.turn()?;
        self.create_on(&mut admin, params, value_stride)
    }

    /// Creates a map with `bytes` of zeroed host memory that belongs to it, to which the
    /// device writes until [`Driver::free_map_with_memory`] has been confirmed.
    ///
    /// # Errors
    ///
    /// [`DriverError::Io`] when there is no memory; otherwise as [`Driver::create_map`]. Memory
    /// that the device may have learnt of is set aside.
    pub fn create_map_with_memory(
        &self,
        params: &MapParams,
        bytes: usize,
        numa_node: Option<u32>,
    ) -> Result<(DeviceMap, Arc<DmaRegion<F>>), DriverError> {
        let placement = DmaPlacement {
            numa_node: numa_node.or(self.config.numa_node),
        };
        let memory = DmaRegion::new(&self.function, &self.iovas, bytes, placement)
            .map_err(DriverError::io("allocate the map's host memory"))?;
        let params = MapParams {
            host_memory: memory.iova(0).0,
            ..*params
        };
        let mut admin = self.turn()?;
        match self.create_on(&mut admin, &params, 0) {
            Ok(map) => Ok((map, Arc::new(memory))),
            Err(e) => {
                // Refused, or never sent: the device knows nothing of it.
                let unknown = matches!(
                    e,
                    DriverError::Command { .. } | DriverError::Refused { .. } | DriverError::Down
                );
                if !unknown {
                    admin.quarantine.push(Arc::new(memory));
                }
                Err(e)
            }
        }
    }

    /// Frees a map that has host memory. Until the device has confirmed that, or a reset, the
    /// memory is set aside (rule R4).
    ///
    /// # Errors
    ///
    /// As [`Driver::free_map`].
    pub fn free_map_with_memory(
        &self,
        map: &DeviceMap,
        memory: Arc<DmaRegion<F>>,
    ) -> Result<(), DriverError> {
        let mut admin = self.lock();
        let freed = self.same_epoch(map).and_then(|()| {
            let handle = Some(map.handle);
            admin.command(self, AdminOpcode::MapFree, handle, &EmptyBody::ZERO)
        });
        match freed {
            Ok(_) => Ok(()),
            Err(e) => {
                // A reset of this driver's that succeeded has ended the map. Of another one it knows
                // from a register only, which is not enough to take the memory back.
                let reset = self.same_epoch(map).is_err() && admin.queue.is_some();
                if !reset {
                    admin.quarantine.push(memory);
                }
                Err(e)
            }
        }
    }

    /// Whether a map still exists, as far as shows without a command: the device runs and was
    /// not reset since.
    ///
    /// # Errors
    ///
    /// As [`Driver::check_health`].
    pub fn check_map(&self, map: &DeviceMap) -> Result<(), DriverError> {
        self.same_epoch(map)?;
        self.peek_health()
    }

    fn create_on(
        &self,
        admin: &mut Admin<F>,
        params: &MapParams,
        value_stride: u32,
    ) -> Result<DeviceMap, DriverError> {
        let epoch = self.epoch();
        let attr = MapAttr {
            name: params.name,
            map_extra: params.map_extra.into(),
            host_memory: params.host_memory.into(),
            inner_map: params.inner_map.into(),
            vector: params.vector.into(),
            tier: params.tier.into(),
            reserved: 0.into(),
        };
        if params.tier != 0 && !self.identity.features.contains(Features::MEMORY_TIERS) {
            return Err(DriverError::NoFeature {
                feature: "MEMORY_TIERS",
            });
        }
        let queue = admin.queue.as_mut().ok_or(DriverError::Down)?;
        let body = MapCreateBody {
            map_type: params.map_type.into(),
            key_size: params.key_size.into(),
            value_size: params.value_size.into(),
            max_entries: params.max_entries.into(),
            cpu_slots: params.cpu_slots.into(),
            flags: 0.into(),
            seed: params.seed.into(),
            attr: queue.attach(attr.as_bytes()).into(),
            attr_len: (size_of::<MapAttr>() as u32).into(),
            reserved: 0.into(),
        };
        let done = admin.command(self, AdminOpcode::MapCreate, None, &body)?;
        let created: MapCreated = AdminQueue::<F>::result(&done)?;
        if created.map.get() == 0 {
            return Err(admin::bad(&done, CompletionFault::Handle));
        }
        Ok(DeviceMap {
            handle: MapHandle(created.map.get()),
            key_size: params.key_size,
            value_stride,
            bytes: created.bytes.get(),
            epoch,
        })
    }

    /// Frees a map's device memory.
    ///
    /// # Errors
    ///
    /// [`DriverError::DeviceReset`] when the map is gone with an earlier reset.
    pub fn free_map(&self, map: &DeviceMap) -> Result<(), DriverError> {
        let mut admin = self.turn()?;
        self.same_epoch(map)?;
        let handle = Some(map.handle);
        admin.command(self, AdminOpcode::MapFree, handle, &EmptyBody::ZERO)?;
        Ok(())
    }

    /// An admin command that refers to no memory.
    pub(crate) fn admin_command<B: IntoBytes + Immutable>(
        &self,
        command: AdminOpcode,
        map: Option<MapHandle>,
        body: &B,
    ) -> Result<offmap_abi::Completion, DriverError> {
        self.turn()?.command(self, command, map, body)
    }

    /// An admin command that writes to a page, whose IOVA `body` gets; all of it is in `page` then, and
    /// what the device did not write is zero.
    pub(crate) fn admin_page<B: IntoBytes + Immutable>(
        &self,
        command: AdminOpcode,
        map: Option<MapHandle>,
        body: impl FnOnce(u64) -> B,
        page: &mut [u8; PAGE_BYTES],
    ) -> Result<offmap_abi::Completion, DriverError> {
        let mut admin = self.turn()?;
        let queue = admin.queue.as_mut().ok_or(DriverError::Down)?;
        let body = body(queue.attach(&[]));
        let done = admin.command(self, command, map, &body)?;
        if let Some(queue) = &admin.queue {
            queue.attached(page);
        }
        Ok(done)
    }

    /// What a map holds and uses.
    ///
    /// # Errors
    ///
    /// As [`Driver::free_map`].
    pub fn query_map(&self, map: &DeviceMap) -> Result<MapInfo, DriverError> {
        let mut admin = self.turn()?;
        self.same_epoch(map)?;
        let handle = Some(map.handle);
        let done = admin.command(self, AdminOpcode::MapQuery, handle, &EmptyBody::ZERO)?;
        AdminQueue::<F>::result(&done)
    }

    /// Asks that a command of an I/O queue ends now. Returns whether it will, as
    /// [`Status::Aborted`] when it had not begun and as [`Status::Interrupted`] otherwise;
    /// `false`: it has completed, or will in the ordinary way.
    ///
    /// # Errors
    ///
    /// [`DriverError::QueueStopped`]: it will not complete at all; otherwise those of any admin
    /// command.
    pub fn abort(&self, queue: QueueId, request: RequestId) -> Result<bool, DriverError> {
        let deadline = self.function.now() + self.config.admin_timeout;
        self.abort_until(queue, request, deadline)
    }

    /// [`Driver::abort`] that ends, with its wait for the admin queue, at `deadline`.
    pub(crate) fn abort_until(
        &self,
        queue: QueueId,
        request: RequestId,
        deadline: Duration,
    ) -> Result<bool, DriverError> {
        let body = AbortBody {
            request: request.0.into(),
            queue: queue.0.into(),
            reserved: [0; 38],
        };
        let mut admin = self.turn_until(deadline)?;
        let admin = admin.queue.as_mut().ok_or(DriverError::Down)?;
        let left = deadline.saturating_sub(self.function.now());
        match admin.try_command(&*self.function, AdminOpcode::Abort, &body, left) {
            Ok(_) => Ok(true),
            Err(DriverError::Command { status, .. }) if status == Status::NotFound => Ok(false),
            Err(DriverError::Command { status, .. }) if status == Status::QueueStopped => {
                Err(DriverError::QueueStopped { queue })
            }
            Err(e) => Err(e),
        }
    }

    /// Whether the device still runs and is the one that was brought up.
    ///
    /// # Errors
    ///
    /// [`DriverError::DeviceGone`], [`DriverError::Fatal`] or [`DriverError::DeviceReset`].
    pub fn check_health(&self) -> Result<(), DriverError> {
        let admin = self.turn()?;
        match &admin.queue {
            Some(queue) => Registers(&*self.function).health(queue.reset_count()),
            None => Err(DriverError::Down),
        }
    }

    /// Resets the function and brings it up again. All queues and maps made before are dead:
    /// their calls fail with [`DriverError::DeviceReset`]. Memory that was set aside is
    /// released once the reset is confirmed.
    ///
    /// # Errors
    ///
    /// As [`Driver::bring_up`]; also when the device identifies itself differently than
    /// before. The driver is down then, and a further reset may be tried.
    pub fn reset(&self) -> Result<(), DriverError> {
        let done = self.reset_once();
        let count = match done {
            Ok(()) => &self.resets,
            Err(_) => &self.failed_resets,
        };
        count.fetch_add(1, Ordering::Relaxed);
        done
    }

    fn reset_once(&self) -> Result<(), DriverError> {
        let mut admin = self.lock();
        // First, so that waiters on other threads give up.
        self.epoch.fetch_add(1, Ordering::AcqRel);
        let old = admin.queue.take();
        if let Err(source) = self.function.reset() {
            // Not confirmed: the device may still write the old rings.
            if let Some(old) = old {
                admin.quarantine.push(Arc::new(old.into_region()));
            }
            return Err(DriverError::Io {
                what: "reset the function",
                source,
            });
        }
        drop(old);
        admin.quarantine.clear();
        for id in &mut admin.queue_ids {
            if *id == IdState::Orphan {
                *id = IdState::Free;
            }
        }
        let up = bringup::bring_up(&self.function, &self.iovas, &self.config, &self.generations)?;
        if up.identity != self.identity {
            if bringup::stop(&*self.function, up.ready_timeout).is_err() {
                admin.quarantine.push(Arc::new(up.admin.into_region()));
            }
            return Err(DriverError::IdentityChanged);
        }
        let count = up.admin.reset_count();
        self.reset_count.store(count, Ordering::Release);
        admin.queue = Some(up.admin);
        Ok(())
    }

    /// [`Driver::check_health`] for a waiter on a queue: does not wait for the admin queue, which
    /// another thread may hold for as long as an admin command takes.
    pub(crate) fn peek_health(&self) -> Result<(), DriverError> {
        let count = self.reset_count.load(Ordering::Acquire);
        Registers(&*self.function).health(count)
    }

    /// Takes an MSI-X vector for its user to sleep at. `None`: there is none left, it cannot be
    /// enabled, or the device works on the threads of those who wait for it, so that they must poll.
    pub fn take_vector(self: &Arc<Self>) -> Option<Vector<F>> {
        Vector::take(self)
    }

    pub(crate) fn vectors(&self) -> &Vectors {
        &self.vectors
    }

    pub(crate) fn meters(&self) -> &Meters {
        &self.meters
    }

    pub(crate) fn generations(&self) -> &Arc<Generations> {
        &self.generations
    }

    pub(crate) fn doorbells(&self) -> Option<&BarMapping> {
        self.doorbells.as_ref()
    }

    /// A DMA region placed as the configuration says.
    pub(crate) fn region(&self, len: usize) -> Result<DmaRegion<F>, IoError> {
        let placement = DmaPlacement {
            numa_node: self.config.numa_node,
        };
        DmaRegion::new(&self.function, &self.iovas, len, placement)
    }

    /// Deletes a queue whose owner is gone, and takes care of its memory. Whether the device has
    /// confirmed the deletion.
    pub(crate) fn retire(
        &self,
        queue: QueueId,
        epoch: u64,
        regions: Vec<Arc<DmaRegion<F>>>,
    ) -> bool {
        let mut admin = self.lock();
        if self.epoch() != epoch && admin.queue.is_some() {
            // A reset that succeeded lies between: the device knows the queue no more.
            admin.set_id(queue, IdState::Free);
            return false;
        }
        let body = QueueDeleteBody {
            queue: queue.0.into(),
            reserved: [0; 46],
        };
        match admin.command(self, AdminOpcode::QueueDelete, None, &body) {
            // Rule R2: the device has let go of the rings and of every buffer, whatever became
            // of the commands.
            Ok(_) => {
                admin.set_id(queue, IdState::Free);
                true
            }
            // The id stays taken and the memory set aside until a reset.
            Err(_) => {
                admin.set_id(queue, IdState::Orphan);
                admin.quarantine.extend(regions);
                false
            }
        }
    }

    fn same_epoch(&self, map: &DeviceMap) -> Result<(), DriverError> {
        if map.epoch == self.epoch() {
            Ok(())
        } else {
            Err(DriverError::DeviceReset)
        }
    }

    /// The admin queue, when it is this thread's turn within the time of one command.
    fn turn(&self) -> Result<MutexGuard<'_, Admin<F>>, DriverError> {
        self.turn_until(self.function.now() + self.config.admin_timeout)
    }

    fn turn_until(&self, deadline: Duration) -> Result<MutexGuard<'_, Admin<F>>, DriverError> {
        let started = self.function.now();
        loop {
            match self.admin.try_lock() {
                Ok(admin) => return Ok(admin),
                Err(TryLockError::Poisoned(admin)) => return Ok(admin.into_inner()),
                Err(TryLockError::WouldBlock) => {}
            }
            let now = self.function.now();
            if now >= deadline {
                return Err(DriverError::AdminBusy {
                    after: now.saturating_sub(started),
                });
            }
            // The holder may be one that a simulated clock has to reach.
            self.function.relax();
        }
    }

    /// The admin queue, for those who cannot give up: resets, and deletions by a drop. Its
    /// holders are bounded by their own deadlines.
    fn lock(&self) -> MutexGuard<'_, Admin<F>> {
        // A panic under the lock leaves the admin queue marked broken, which is all that
        // the next user must know.
        self.admin.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<F: Function> Drop for Driver<F> {
    fn drop(&mut self) {
        // Rings and quarantined memory are unmapped afterwards: the device lets go of them
        // first, by being disabled or else by a reset. `dma_unmap` revokes what is left.
        // What is to keep its maps is left to its transport, and loses its access all the same.
        if !self.leaves_maps.load(Ordering::Relaxed) {
            let _ = bringup::stop(&*self.function, STOP_TIMEOUT);
        }
    }
}

impl<F: Function> fmt::Debug for Driver<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver")
            .field("function", &self.function.describe())
            .field("identity", &self.identity)
            .field("epoch", &self.epoch())
            .finish_non_exhaustive()
    }
}

/// The body of QUEUE_CREATE for rings at these IOVAs.
pub(crate) fn queue_create(
    queue: QueueId,
    depth: u32,
    sq: u64,
    cq: u64,
    notify: Option<u64>,
    vector: Option<u32>,
) -> QueueCreateBody {
    QueueCreateBody {
        queue: queue.0.into(),
        reserved: 0.into(),
        depth: depth.into(),
        vector: vector.unwrap_or(NO_VECTOR).into(),
        coalesce_count: 0.into(),
        coalesce_us: 0.into(),
        sq: sq.into(),
        cq: cq.into(),
        notify: notify.unwrap_or(0).into(),
        reserved3: 0.into(),
    }
}
