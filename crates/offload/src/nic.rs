//! One NIC as the map core knows it.

use crate::map::NicMap;
use crate::pool::Pool;
use crate::ring::{NicRingMap, Vectors};
use crate::{Profile, errno};
use offmap_bpf::Error;
use offmap_bpf::device::{MapSpec, OffloadCommands, OffloadDevice, OffloadRules, OffloadedMap};
use offmap_bpf::error::Result;
use offmap_bpf::uapi::{MapFlags, MapType};
use offmap_driver::{Driver, DriverError, Function, MapParams};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A device that maps are offloaded to, through its driver and by a profile.
pub struct OffloadNic<F: Function> {
    shared: Arc<Shared<F>>,
}

/// What the NIC and its maps share.
pub(crate) struct Shared<F: Function> {
    pub(crate) driver: Arc<Driver<F>>,
    pub(crate) pool: Pool<F>,
    pub(crate) profile: Profile,
    pub(crate) commands: OffloadCommands,
    pub(crate) vectors: Vectors,
    seeds: Box<dyn SeedSource>,
    failed_frees: AtomicU64,
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
        let pool = Pool::new(Arc::clone(&driver))?;
        let identity = driver.identity();
        let rules = profile.rules(identity.map_types, identity.batch > 0);
        Ok(Arc::new(Self {
            shared: Arc::new(Shared {
                commands: rules.commands,
                vectors: Vectors::new(driver.function().vectors()),
                driver,
                pool,
                profile,
                seeds: Box::new(seeds),
                failed_frees: AtomicU64::new(0),
            }),
        }))
    }

    /// The driver under it.
    pub fn driver(&self) -> &Arc<Driver<F>> {
        &self.shared.driver
    }

    /// The profile.
    pub fn profile(&self) -> &Profile {
        &self.shared.profile
    }

    /// Maps whose MAP_FREE the device did not confirm, other than for a reset, which frees
    /// them too.
    pub fn failed_frees(&self) -> u64 {
        self.shared.failed_frees.load(Ordering::Relaxed)
    }
}

impl<F: Function> OffloadDevice for OffloadNic<F> {
    fn describe(&self) -> String {
        format!(
            "{} with firmware {} ({} profile)",
            self.shared.driver.function().describe(),
            self.shared.driver.identity().firmware,
            self.shared.profile.name
        )
    }

    fn rules(&self) -> OffloadRules {
        let identity = self.shared.driver.identity();
        self.shared
            .profile
            .rules(identity.map_types, identity.batch > 0)
    }

    fn map_alloc(&self, spec: &MapSpec) -> Result<Arc<dyn OffloadedMap>> {
        let shared = &self.shared;
        shared
            .profile
            .check(spec, shared.driver.identity().map_types)?;
        if spec.map_type == MapType::RINGBUF {
            return Ok(Arc::new(NicRingMap::create(shared, spec)?));
        }
        let percpu = spec.map_type.is_percpu();
        let params = MapParams {
            map_type: spec.map_type.0,
            key_size: spec.key_size,
            value_size: spec.value_size,
            max_entries: spec.max_entries,
            cpu_slots: if percpu { spec.possible_cpus } else { 0 },
            seed: if spec.map_flags.contains(MapFlags::ZERO_SEED) {
                0
            } else {
                shared.seeds.seed()
            },
            name: spec.name,
            map_extra: spec.map_extra,
            ..MapParams::default()
        };
        let map = shared
            .driver
            .create_map(&params)
            .map_err(|e: DriverError| -> Error { errno::of_create(&e) })?;
        Ok(Arc::new(NicMap::new(Arc::clone(shared), spec, map)))
    }
}
