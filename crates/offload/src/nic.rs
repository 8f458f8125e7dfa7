//! One NIC as the map core knows it.

use crate::behaved::BehavedMap;
use crate::map::NicMap;
use crate::placement::{Placement, Placements};
use crate::pool::Pool;
use crate::recovery::{Escalation, RecoverableMap, Recovery, RecoveryStats};
use crate::ring::NicRingMap;
use crate::{Profile, Situation, Usage, errno};
use offmap_bpf::Error;
use offmap_bpf::device::{MapSpec, OffloadCommands, OffloadDevice, OffloadRules, OffloadedMap};
use offmap_bpf::error::Result;
use offmap_bpf::uapi::{MapFlags, MapType};
use offmap_driver::{Driver, DriverError, Function, MapParams};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A device that maps are offloaded to, through its driver and by a profile.
pub struct OffloadNic<F: Function> {
    shared: Arc<Shared<F>>,
}

/// What the NIC and its maps share.
pub(crate) struct Shared<F: Function> {
    pub(crate) placements: Placements,
    pub(crate) driver: Arc<Driver<F>>,
    pub(crate) pool: Pool<F>,
    pub(crate) escalation: Escalation<F>,
    pub(crate) profile: Profile,
    pub(crate) commands: OffloadCommands,
    seeds: Box<dyn SeedSource>,
    clock: Option<Box<dyn Clock>>,
    /// netdevsim's `bpf_map_accept`.
    accepting: AtomicBool,
    used: Mutex<Usage>,
    failed_frees: AtomicU64,
}

/// Settings of an [`OffloadNic`].
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct NicSettings {
    /// When the device is reset, and which maps are restored then.
    pub recovery: Recovery,
    /// Most queue pairs that it takes, each for the commands of one thread at a time; `None`:
    /// one for each processor. A device that has fewer gives as many as it has.
    pub queue_pairs: Option<u16>,
    /// In which tiers of device memory maps are placed; the first rule that fits a map's name counts, and
    /// for maps that none fits the device chooses.
    pub placement: Vec<Placement>,
}

/// A clock for what a profile lets age, such as nfp's reply cache.
pub trait Clock: Send + Sync + 'static {
    /// Time since a fixed moment.
    fn now(&self) -> Duration;
}

/// Where the seeds of the maps' key hashes come from.
pub trait SeedSource: Send + Sync + 'static {
    /// The seed of one map.
    fn seed(&self) -> u64;
}

/// Seeds that nobody who chooses keys can know.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RandomSeeds;

impl SeedSource for RandomSeeds {
    fn seed(&self) -> u64 {
        // The standard library's hasher keys come from the operating system.
        RandomState::new().build_hasher().finish()
    }
}

impl<F: Function> Shared<F> {
    pub(crate) fn count_failed_free(&self) {
        self.failed_frees.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn now(&self) -> Duration {
        match &self.clock {
            Some(clock) => clock.now(),
            None => self.driver.function().now(),
        }
    }

    fn used(&self) -> MutexGuard<'_, Usage> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The profile's checks; when they pass, the map counts at once, so that of two maps that
    /// are created together only one gets what is left.
    fn admit(self: &Arc<Self>, spec: &MapSpec) -> Result<Option<Reservation<F>>> {
        let mut used = self.used();
        let situation = Situation {
            device_types: self.driver.identity().map_types,
            accepting: self.accepting.load(Ordering::Acquire),
            used: *used,
        };
        self.profile.check(spec, &situation)?;
        if !self.profile.counts() {
            return Ok(None);
        }
        let elements = u64::from(spec.max_entries);
        used.maps = used.maps.saturating_add(1);
        used.elements = used.elements.saturating_add(elements);
        Ok(Some(Reservation {
            shared: Arc::clone(self),
            elements,
        }))
    }

    /// What the device is asked for.
    pub(crate) fn params(&self, spec: &MapSpec, template: u32) -> MapParams {
        let percpu = spec.map_type.is_percpu();
        // What is put into a bloom filter is its key on the wire.
        let (key_size, value_size) = match spec.map_type {
            MapType::BLOOM_FILTER => (spec.value_size, 0),
            _ => (spec.key_size, spec.value_size),
        };
        MapParams {
            map_type: spec.map_type.0,
            key_size,
            value_size,
            max_entries: spec.max_entries,
            cpu_slots: if percpu { spec.possible_cpus } else { 0 },
            seed: if spec.map_flags.contains(MapFlags::ZERO_SEED) {
                0
            } else {
                self.seeds.seed()
            },
            name: spec.name,
            map_extra: spec.map_extra,
            inner_map: template,
            tier: self.placements.tier_of(&spec.name),
            ..MapParams::default()
        }
    }

    /// MAP_CREATE on the device.
    pub(crate) fn create(self: &Arc<Self>, spec: &MapSpec, template: u32) -> Result<NicMap<F>> {
        let params = self.params(spec, template);
        self.create_with(spec, &params)
    }

    /// MAP_CREATE on the device; once more after a recovery that it gave rise to.
    pub(crate) fn create_with(
        self: &Arc<Self>,
        spec: &MapSpec,
        params: &MapParams,
    ) -> Result<NicMap<F>> {
        let epoch = self.driver.epoch();
        let map = self.driver.create_map(params).or_else(|error| {
            // A map that the device made after all went with the reset.
            if self.escalation.after(self, &error, epoch) {
                self.escalation.count_retry();
                self.driver.create_map(params)
            } else {
                Err(error)
            }
        });
        let map = map.map_err(|e| -> Error { errno::of_create(&self.profile.name, &e) })?;
        Ok(NicMap::new(Arc::clone(self), spec, map))
    }
}

/// A map's share in what its profile limits; given back when dropped.
pub(crate) struct Reservation<F: Function> {
    shared: Arc<Shared<F>>,
    elements: u64,
}

impl<F: Function> Drop for Reservation<F> {
    fn drop(&mut self) {
        let mut used = self.shared.used();
        used.maps = used.maps.saturating_sub(1);
        used.elements = used.elements.saturating_sub(self.elements);
    }
}

impl<F: Function> OffloadNic<F> {
    /// A NIC over a device that has been brought up. It takes one queue pair at once, and one
    /// more for each further processor whose threads use it.
    ///
    /// # Errors
    ///
    /// When the device gives no queue pair.
    pub fn new(driver: Arc<Driver<F>>, profile: Profile) -> Result<Arc<Self>, DriverError> {
        Self::with_seed(driver, profile, RandomSeeds)
    }

    /// [`OffloadNic::new`] with another source of hash seeds, so that a simulation runs again
    /// as it ran before.
    ///
    /// # Errors
    ///
    /// As [`OffloadNic::new`].
    pub fn with_seed(
        driver: Arc<Driver<F>>,
        profile: Profile,
        seeds: impl SeedSource,
    ) -> Result<Arc<Self>, DriverError> {
        let settings = NicSettings::default();
        Self::build(driver, profile, Box::new(seeds), None, settings)
    }

    /// [`OffloadNic::with_seed`] with other settings.
    ///
    /// # Errors
    ///
    /// As [`OffloadNic::with_settings`].
    pub fn with_seed_and_settings(
        driver: Arc<Driver<F>>,
        profile: Profile,
        seeds: impl SeedSource,
        settings: NicSettings,
    ) -> Result<Arc<Self>, DriverError> {
        Self::build(driver, profile, Box::new(seeds), None, settings)
    }

    /// [`OffloadNic::new`] with other settings.
    ///
    /// # Errors
    ///
    /// [`DriverError::Config`] names a setting that cannot be; otherwise as [`OffloadNic::new`].
    pub fn with_settings(
        driver: Arc<Driver<F>>,
        profile: Profile,
        settings: NicSettings,
    ) -> Result<Arc<Self>, DriverError> {
        Self::build(driver, profile, Box::new(RandomSeeds), None, settings)
    }

    /// [`OffloadNic::new`] with another clock than the function's for what ages.
    ///
    /// # Errors
    ///
    /// As [`OffloadNic::new`].
    pub fn with_clock(
        driver: Arc<Driver<F>>,
        profile: Profile,
        clock: impl Clock,
    ) -> Result<Arc<Self>, DriverError> {
        let clock = Some(Box::new(clock) as Box<dyn Clock>);
        let settings = NicSettings::default();
        Self::build(driver, profile, Box::new(RandomSeeds), clock, settings)
    }

    fn build(
        driver: Arc<Driver<F>>,
        profile: Profile,
        seeds: Box<dyn SeedSource>,
        clock: Option<Box<dyn Clock>>,
        settings: NicSettings,
    ) -> Result<Arc<Self>, DriverError> {
        settings.recovery.validate()?;
        if settings.queue_pairs == Some(0) {
            return Err(DriverError::Config {
                field: "queue_pairs",
                allowed: "at least 1, or not given",
            });
        }
        let placements = Placements::new(&driver, &settings.placement)?;
        let pool = Pool::new(Arc::clone(&driver), settings.queue_pairs)?;
        let identity = driver.identity();
        let rules = profile.rules(identity.map_types, identity.batch > 0);
        Ok(Arc::new(Self {
            shared: Arc::new(Shared {
                commands: rules.commands,
                placements,
                driver,
                pool,
                escalation: Escalation::new(settings.recovery),
                profile,
                seeds,
                clock,
                accepting: AtomicBool::new(true),
                used: Mutex::new(Usage::default()),
                failed_frees: AtomicU64::new(0),
            }),
        }))
    }

    pub(crate) fn shared(&self) -> &Arc<Shared<F>> {
        &self.shared
    }

    /// The driver under it.
    pub fn driver(&self) -> &Arc<Driver<F>> {
        &self.shared.driver
    }

    /// The profile.
    pub fn profile(&self) -> &Profile {
        &self.shared.profile
    }

    /// Has the device accept maps or not, where its profile has such a switch (netdevsim's
    /// `bpf_map_accept`). Maps that exist stay.
    pub fn set_accepting(&self, accepting: bool) {
        self.shared.accepting.store(accepting, Ordering::Release);
    }

    /// What its maps count for in the limits of a profile that counts them.
    pub fn used(&self) -> Usage {
        *self.shared.used()
    }

    /// What its recovery has done so far.
    pub fn recovery_stats(&self) -> RecoveryStats {
        let shared = &self.shared;
        shared.escalation.stats(shared.pool.streak())
    }

    /// Maps whose MAP_FREE the device did not confirm, other than for a reset, which frees
    /// them too.
    pub fn failed_frees(&self) -> u64 {
        self.shared.failed_frees.load(Ordering::Relaxed)
    }
}

impl<F: Function> OffloadDevice for OffloadNic<F> {
    fn describe(&self) -> String {
        let identity = self.shared.driver.identity();
        let ports = match identity.ports {
            1 => String::new(),
            ports => format!(" and {ports} ports"),
        };
        format!(
            "{} with firmware {}{ports} ({} profile)",
            self.shared.driver.function().describe(),
            identity.firmware,
            self.shared.profile.name
        )
    }

    fn ports(&self) -> u32 {
        self.shared.driver.identity().ports
    }

    fn rules(&self) -> OffloadRules {
        let identity = self.shared.driver.identity();
        self.shared
            .profile
            .rules(identity.map_types, identity.batch > 0)
    }

    fn type_refusal(&self, map_type: MapType) -> Option<String> {
        let device_types = self.shared.driver.identity().map_types;
        self.shared.profile.type_refusal(map_type, device_types)
    }

    fn map_alloc(&self, spec: &MapSpec) -> Result<Arc<dyn OffloadedMap>> {
        self.alloc(spec, 0)
    }

    fn map_of_maps_alloc(
        &self,
        spec: &MapSpec,
        template: &dyn OffloadedMap,
    ) -> Result<Arc<dyn OffloadedMap>> {
        self.alloc(spec, u32::from_le_bytes(template.inner_value()?))
    }
}

impl<F: Function> OffloadNic<F> {
    /// Has the device make a map; `template` is the handle of the inner maps' template, or 0.
    fn alloc(&self, spec: &MapSpec, template: u32) -> Result<Arc<dyn OffloadedMap>> {
        let shared = &self.shared;
        let reservation = shared.admit(spec)?;
        // A device that fell over while nobody used it is set up again first.
        let epoch = shared.driver.epoch();
        if let Err(error) = shared.driver.check_health() {
            shared.escalation.after(shared, &error, epoch);
        }
        if shared.escalation.settings().maps.recovers(&spec.name) {
            return Ok(RecoverableMap::create(shared, spec, reservation)?);
        }
        if spec.map_type == MapType::RINGBUF {
            let ring = NicRingMap::create(shared, spec)?.counting(reservation);
            return Ok(Arc::new(ring));
        }
        let behaves = shared.profile.behaviours.act()
            && matches!(spec.map_type, MapType::HASH | MapType::ARRAY);
        if behaves {
            let map = BehavedMap::new(Arc::clone(shared), spec, reservation)?;
            return Ok(Arc::new(map));
        }
        Ok(Arc::new(
            shared.create(spec, template)?.counting(reservation),
        ))
    }
}
