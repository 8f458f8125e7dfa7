//! Maps of maps on a device, over a device that can fail and lie: which maps may be mixed, what is
//! held after a write whose outcome is unknown, and the order of what is freed.

mod common;

use common::{Log, errno, logged, system};
use offmap_bpf::device::{
    BatchOutcome, MapSpec, OffloadCommands, OffloadDevice, OffloadRules, OffloadedMap,
};
use offmap_bpf::error::Result;
use offmap_bpf::{Caller, Errno, Error, Fd, IfIndex, MapCreateAttr, MapType, System};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

const AM: MapType = MapType::ARRAY_OF_MAPS;
const HM: MapType = MapType::HASH_OF_MAPS;
const BOTH: [MapType; 2] = [AM, HM];

/// How the next update ends: with this error, and whether it has had its effect.
type Failure = Arc<Mutex<Option<(Errno, bool)>>>;

#[derive(Default)]
struct Device {
    handles: AtomicU32,
    log: Log,
    failure: Failure,
    lie: Arc<AtomicU32>,
}

struct DeviceMap {
    handle: u32,
    log: Log,
    failure: Failure,
    /// A handle that lookups give instead of what is stored; 0: none.
    lie: Arc<AtomicU32>,
    entries: Mutex<BTreeMap<Vec<u8>, Vec<u8>>>,
}

const MISSING: Error = Error::new(Errno::ENOENT, "missing");

impl Device {
    fn alloc(&self, line: String) -> Arc<dyn OffloadedMap> {
        let handle = self.handles.fetch_add(1, Relaxed) + 1;
        self.log.lock().unwrap().push(format!("{line} -> {handle}"));
        Arc::new(DeviceMap {
            handle,
            log: Arc::clone(&self.log),
            failure: Arc::clone(&self.failure),
            lie: Arc::clone(&self.lie),
            entries: Mutex::default(),
        })
    }
}

impl OffloadDevice for Device {
    fn describe(&self) -> String {
        "a fake".into()
    }

    fn rules(&self) -> OffloadRules {
        OffloadRules {
            more_map_types: 1 << AM.0 | 1 << HM.0,
            commands: OffloadCommands::all(),
            btf: false,
        }
    }

    fn map_alloc(&self, spec: &MapSpec) -> Result<Arc<dyn OffloadedMap>> {
        Ok(self.alloc(format!("{}", spec.map_type)))
    }

    fn map_of_maps_alloc(
        &self,
        spec: &MapSpec,
        template: &dyn OffloadedMap,
    ) -> Result<Arc<dyn OffloadedMap>> {
        let template = u32::from_le_bytes(template.inner_value()?);
        Ok(self.alloc(format!("{} of {template}", spec.map_type)))
    }
}

impl OffloadedMap for DeviceMap {
    fn lookup(&self, key: &[u8], value: &mut [u8], _flags: u64) -> Result<()> {
        let entries = self.entries.lock().unwrap();
        value.copy_from_slice(entries.get(key).ok_or(MISSING)?);
        match self.lie.load(Relaxed) {
            0 => {}
            lie => value.copy_from_slice(&lie.to_le_bytes()),
        }
        Ok(())
    }

    fn update(&self, key: &[u8], value: &[u8], _flags: u64) -> Result<()> {
        let failure = self.failure.lock().unwrap().take();
        if failure.is_none_or(|(_, applied)| applied) {
            let mut entries = self.entries.lock().unwrap();
            entries.insert(key.into(), value.into());
        }
        match failure {
            Some((errno, _)) => Err(Error::new(errno, "told to fail")),
            None => Ok(()),
        }
    }

    fn delete(&self, key: &[u8]) -> Result<()> {
        let removed = self.entries.lock().unwrap().remove(key);
        removed.map(drop).ok_or(MISSING)
    }

    fn get_next_key(&self, _key: Option<&[u8]>, _next: &mut [u8]) -> Result<()> {
        Err(MISSING)
    }

    fn walk_batch(
        &self,
        _in_batch: Option<&[u8]>,
        out_batch: &mut [u8],
        keys: &mut [u8],
        values: &mut [u8],
        count: u32,
        delete: bool,
    ) -> BatchOutcome {
        assert!(!delete, "the core deletes key by key");
        let entries = self.entries.lock().unwrap();
        let slots = keys.chunks_exact_mut(4).zip(values.chunks_exact_mut(4));
        let mut done = 0;
        for ((key, value), (to_key, to_value)) in entries.iter().zip(slots).take(count as usize) {
            to_key.copy_from_slice(key);
            to_value.copy_from_slice(value);
            done += 1;
        }
        out_batch.fill(9);
        BatchOutcome {
            count: done,
            result: Err(MISSING),
        }
    }

    fn inner_value(&self) -> Result<[u8; 4]> {
        Ok(self.handle.to_le_bytes())
    }

    fn device_bytes(&self) -> u64 {
        64
    }

    fn free(&self) {
        self.log
            .lock()
            .unwrap()
            .push(format!("FREE {}", self.handle));
    }
}

struct Bench {
    system: Arc<System>,
    device: Arc<Device>,
    ifindex: IfIndex,
}

impl Bench {
    fn new() -> Self {
        let (system, device) = (system(), Arc::new(Device::default()));
        let ifindex = system
            .register_netdev("nic0", Arc::clone(&device) as _)
            .unwrap();
        Self {
            system,
            device,
            ifindex,
        }
    }

    fn try_make(&self, attr: MapCreateAttr, ifindex: u32) -> Result<Fd> {
        let attr = MapCreateAttr {
            map_ifindex: ifindex,
            ..attr
        };
        self.system.map_create(&Caller::root(), &attr)
    }

    /// An inner map and its id.
    fn inner(&self, ifindex: u32) -> (Fd, u32) {
        let fd = self.try_make(common::attr(MapType::HASH, 4), ifindex);
        let fd = fd.unwrap();
        (fd, self.system.info(fd).unwrap().id)
    }

    fn try_outer(&self, map_type: MapType, template: Fd, ifindex: u32) -> Result<Fd> {
        let attr = MapCreateAttr {
            value_size: 4,
            inner_map_fd: template.0 as u32,
            ..common::attr(map_type, 4)
        };
        self.try_make(attr, ifindex)
    }

    fn put(&self, outer: Fd, n: u32, inner: Fd) -> Result<(), Errno> {
        let done = self
            .system
            .update(outer, &n.to_ne_bytes(), &inner.0.to_ne_bytes(), 0);
        done.map_err(|e| e.errno())
    }

    fn look(&self, outer: Fd, n: u32) -> Result<u32, Errno> {
        let mut value = [0; 4];
        let found = self.system.lookup(outer, &n.to_ne_bytes(), &mut value, 0);
        found
            .map(|()| u32::from_ne_bytes(value))
            .map_err(|e| e.errno())
    }

    fn is_listed(&self, id: u32) -> bool {
        self.system.get_next_id(&Caller::root(), id - 1) == Ok(id)
    }
}

#[test]
fn which_maps_go_together() {
    for map_type in BOTH {
        let bench = Bench::new();
        let here = bench.ifindex.0;
        let port = bench
            .system
            .register_netdev("nic1", Arc::clone(&bench.device) as _)
            .unwrap();
        let elsewhere = bench
            .system
            .register_netdev("other0", Arc::new(Device::default()))
            .unwrap();
        let (host, host_id) = bench.inner(0);
        let (near, near_id) = bench.inner(here);
        let (next_door, next_door_id) = bench.inner(port.0);
        let (far, _) = bench.inner(elsewhere.0);
        // The template of a map on a device is on that device.
        for template in [host, far] {
            let refused = bench.try_outer(map_type, template, here);
            assert_eq!(errno(refused), Errno::EINVAL);
        }
        assert_eq!(errno(bench.try_outer(map_type, Fd(99), here)), Errno::EBADF);
        let outer = bench.try_outer(map_type, near, here).unwrap();
        let made = logged(&bench.device.log).pop().unwrap();
        assert_eq!(made, format!("{map_type} of 1 -> 3"));
        let nested = bench.try_outer(map_type, outer, here);
        assert_eq!(errno(nested), Errno::EINVAL);
        for inner in [host, far] {
            assert_eq!(bench.put(outer, 0, inner), Err(Errno::EINVAL));
        }
        // Another port of the same device will do.
        assert_eq!(bench.put(outer, 0, next_door), Ok(()));
        assert_eq!(bench.look(outer, 0), Ok(next_door_id));
        // A map of maps on the host takes either, as `map_meta_equal` looks at no device.
        for template in [host, near, far] {
            let outer = bench.try_outer(map_type, template, 0).unwrap();
            assert_eq!(bench.put(outer, 0, host), Ok(()));
            assert_eq!(bench.look(outer, 0), Ok(host_id));
            assert_eq!(bench.put(outer, 0, near), Ok(()));
            assert_eq!(bench.look(outer, 0), Ok(near_id));
        }
    }
}

#[test]
fn after_an_unknown_outcome_both_maps_are_held() {
    for (map_type, applied) in [(AM, true), (AM, false), (HM, true), (HM, false)] {
        let bench = Bench::new();
        let fail = |errno| *bench.device.failure.lock().unwrap() = Some((errno, applied));
        let (template, _) = bench.inner(bench.ifindex.0);
        let outer = bench
            .try_outer(map_type, template, bench.ifindex.0)
            .unwrap();
        let (old, old_id) = bench.inner(bench.ifindex.0);
        let (new, new_id) = bench.inner(bench.ifindex.0);
        // Nothing was there before, and perhaps nothing is now.
        fail(Errno::ETIMEDOUT);
        assert_eq!(bench.put(outer, 1, old), Err(Errno::ETIMEDOUT));
        let there = if applied {
            Ok(old_id)
        } else {
            Err(Errno::ENOENT)
        };
        assert_eq!(bench.look(outer, 1), there);
        let (mut keys, mut values) = ([0; 8], [0; 8]);
        let walked =
            bench
                .system
                .lookup_batch(outer, None, &mut [0; 4], &mut keys, &mut values, 2, 0, 0);
        assert_eq!(walked.count, u32::from(applied));
        assert_eq!(errno(walked.result), Errno::ENOENT);

        bench.put(outer, 0, old).unwrap();
        fail(Errno::EIO);
        assert_eq!(bench.put(outer, 0, new), Err(Errno::EIO));
        bench.system.close(old).unwrap();
        bench.system.close(new).unwrap();
        assert!(bench.is_listed(old_id) && bench.is_listed(new_id));
        let there = if applied { new_id } else { old_id };
        assert_eq!(bench.look(outer, 0), Ok(there));
        // The next write that is known to have happened settles it.
        bench.put(outer, 1, template).unwrap();
        bench.put(outer, 0, template).unwrap();
        assert!(!bench.is_listed(old_id) && !bench.is_listed(new_id));
        // A refusal leaves nothing behind.
        let (refused, refused_id) = bench.inner(bench.ifindex.0);
        *bench.device.failure.lock().unwrap() = Some((Errno::ENOMEM, false));
        assert_eq!(bench.put(outer, 2, refused), Err(Errno::ENOMEM));
        bench.system.close(refused).unwrap();
        assert!(!bench.is_listed(refused_id));
    }
}

#[test]
fn a_map_that_the_device_makes_up_is_refused() {
    for map_type in BOTH {
        let bench = Bench::new();
        let (template, id) = bench.inner(bench.ifindex.0);
        let (_other, _) = bench.inner(bench.ifindex.0);
        let outer = bench
            .try_outer(map_type, template, bench.ifindex.0)
            .unwrap();
        bench.put(outer, 0, template).unwrap();
        // 2 is the other map's handle: it exists, and is not what was stored.
        for lie in [2, 77] {
            bench.device.lie.store(lie, Relaxed);
            assert_eq!(bench.look(outer, 0), Err(Errno::EIO));
            let file = bench.system.map_file(outer).unwrap();
            assert_eq!(errno(file.lookup_inner(&[0; 4])), Errno::EIO);
        }
        bench.device.lie.store(0, Relaxed);
        assert_eq!(bench.look(outer, 0), Ok(id));
    }
}

#[test]
fn the_outer_map_is_freed_before_what_it_held() {
    for map_type in BOTH {
        let bench = Bench::new();
        let (template, _) = bench.inner(bench.ifindex.0);
        let outer = bench
            .try_outer(map_type, template, bench.ifindex.0)
            .unwrap();
        bench.put(outer, 0, template).unwrap();
        bench.system.close(template).unwrap();
        bench.system.flush_frees();
        bench.device.log.lock().unwrap().clear();
        bench.system.close(outer).unwrap();
        bench.system.flush_frees();
        assert_eq!(logged(&bench.device.log), ["FREE 2", "FREE 1"]);
    }
}

#[test]
fn a_removed_device_leaves_nothing() {
    for map_type in BOTH {
        let bench = Bench::new();
        let (inner, _) = bench.inner(bench.ifindex.0);
        let outer = bench.try_outer(map_type, inner, bench.ifindex.0).unwrap();
        bench.put(outer, 0, inner).unwrap();
        let on_host = bench.try_outer(map_type, inner, 0).unwrap();
        bench.put(on_host, 0, inner).unwrap();
        let (host, _) = bench.inner(0);
        bench.system.unregister_netdev(bench.ifindex).unwrap();
        let mut freed = logged(&bench.device.log).split_off(2);
        freed.sort();
        assert_eq!(freed, ["FREE 1", "FREE 2"]);
        assert_eq!(bench.look(outer, 0), Err(Errno::ENODEV));
        assert_eq!(bench.put(outer, 0, inner), Err(Errno::ENODEV));
        assert_eq!(bench.put(outer, 0, host), Err(Errno::EINVAL));
        assert_eq!(errno(bench.system.delete(outer, &[0; 4])), Errno::ENODEV);
        let file = bench.system.map_file(outer).unwrap();
        assert_eq!(errno(file.lookup_inner(&[0; 4])), Errno::ENODEV);
        // What a map on the host holds has no id any more, and is a map still.
        assert_eq!(bench.look(on_host, 0), Ok(0));
        bench.system.delete(on_host, &[0; 4]).unwrap();
        for fd in [inner, outer, on_host, host] {
            bench.system.close(fd).unwrap();
        }
        drop(file);
        bench.system.flush_frees();
        let left = bench.system.get_next_id(&Caller::root(), 0);
        assert_eq!(errno(left), Errno::ENOENT);
        assert_eq!(logged(&bench.device.log).len(), 4, "freed once");
    }
}
