//! §C, nfp: its driver's checks, its firmware's answers, its reply cache and its deadline.

use super::*;
use offmap_abi::MapHandle;
use offmap_driver::{Driver, DriverConfig};
use offmap_offload::{Clock, OffloadNic};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

#[test]
fn c_flags_and_numa_node() {
    let stack = stack("nfp");
    for flags in [
        MapFlags::NO_PREALLOC,
        MapFlags::NUMA_NODE,
        MapFlags::RDONLY_PROG,
    ] {
        let error = stack
            .try_map(
                &MapCreateAttr {
                    map_flags: flags.bits(),
                    ..attr(HASH, 2_048_001)
                },
                true,
            )
            .unwrap_err();
        assert_eq!(error.errno().0, EINVAL, "{error}");
        assert!(error.reason().contains("profile nfp"), "{error}");
    }
}

#[test]
fn c_other_types_are_the_cores_to_refuse() {
    let stack = stack("nfp");
    let error = stack
        .try_map(&attr(MapType::PERCPU_HASH, 2), true)
        .unwrap_err();
    assert_eq!(error.errno().0, EINVAL);
    assert!(
        error
            .reason()
            .contains("profile nfp offloads maps of type hash and array only"),
        "{error}"
    );
}

/// A device without one of nfp's types, or without any.
#[test]
fn c_type_and_no_maps() {
    for (types, hash, array) in [
        (1u64 << ARRAY.0, Some(EOPNOTSUPP), None),
        (
            1 << MapType::PERCPU_HASH.0,
            Some(EOPNOTSUPP),
            Some(EOPNOTSUPP),
        ),
    ] {
        let device = scripted::Scripted::new();
        device.state().identify.map_types = types.into();
        let driver = Driver::bring_up(device, DriverConfig::default()).unwrap();
        let nic = OffloadNic::new(driver, Profile::named("nfp").unwrap()).unwrap();
        let stack = Stack::over_nic(nic);
        let made = |map_type| stack.try_map(&attr(map_type, 2), true).err();
        assert_eq!(made(HASH).map(|e| e.errno().0), hash);
        assert_eq!(made(ARRAY).map(|e| e.errno().0), array);
    }
}

#[test]
fn c_128_maps() {
    let stack = stack("nfp");
    let mut maps: Vec<_> = (0..128).map(|_| stack.map(&attr(ARRAY, 1), true)).collect();
    let error = stack.try_map(&attr(ARRAY, 1), true).unwrap_err();
    assert_eq!(error.errno().0, ENOMEM);
    assert_eq!(
        error.reason(),
        "profile nfp allows 128 maps, and 128 exist already"
    );
    maps.pop();
    stack.system.flush_frees();
    stack.map(&attr(ARRAY, 1), true);
}

#[test]
fn c_element_budget_over_all_maps() {
    let stack = stack("nfp");
    let first = stack.map(&attr(ARRAY, 48_000), true);
    let error = stack.try_map(&attr(HASH, 4_000_000), true).unwrap_err();
    assert_eq!(error.errno().0, ENOMEM);
    assert_eq!(
        error.reason(),
        "max_entries 4,000,000 exceeds the 2,000,000 elements that profile nfp has left \
         (48,000 of 2,048,000 used by 1 map)"
    );
    assert!(stack.try_map(&attr(ARRAY, 2_000_001), true).is_err());
    let second = stack.map(&attr(ARRAY, 2_000_000), true);
    assert!(stack.try_map(&attr(HASH, 1), true).is_err());
    drop((first, second));
    stack.system.flush_frees();
    stack.map(&attr(ARRAY, 2_048_000), true);
}

/// Creators at once do not get more than there is.
#[test]
fn c_budget_under_threads() {
    let stack = stack("nfp");
    let made: usize = std::thread::scope(|scope| {
        let creator = || {
            let tries = (0..60).filter_map(|_| stack.try_map(&attr(ARRAY, 20_000), true).ok());
            tries.collect::<Vec<_>>()
        };
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(creator)).collect();
        let maps: Vec<_> = threads
            .into_iter()
            .flat_map(|t| t.join().unwrap())
            .collect();
        assert_eq!(stack.nic.used().elements, maps.len() as u64 * 20_000);
        maps.len()
    });
    assert_eq!(made, 102, "2,048,000 / 20,000");
}

#[test]
fn c_sizes() {
    let stack = stack("nfp");
    for (key_size, value_size, fits) in [
        (8, 56, true),
        (56, 8, true),
        (32, 32, true),
        (4, 57, false),
        (57, 4, false),
        (9, 56, false),
        (33, 32, false),
        (1, 56, true),
        (60, 1, false),
    ] {
        let sized = MapCreateAttr {
            key_size,
            value_size,
            ..attr(HASH, 2)
        };
        let made = stack.try_map(&sized, true).err().map(|e| e.errno().0);
        let expected = if fits { None } else { Some(ENOMEM) };
        assert_eq!(made, expected, "{key_size} {value_size}");
    }
}

#[test]
fn c_array_index_out_of_range() {
    let stack = stack("nfp");
    let map = stack.map(&attr(ARRAY, 4), true);
    let mut out = [0; 8];
    for n in [4, u32::MAX] {
        let looked = map.lookup(&key(n), &mut out, 0);
        assert_eq!(looked.unwrap_err().errno().0, E2BIG);
        for flags in [BPF_ANY, BPF_EXIST, BPF_NOEXIST] {
            let updated = map.update(&key(n), &out, flags);
            assert_eq!(updated.unwrap_err().errno().0, E2BIG);
        }
        assert_eq!(map.delete(&key(n)).unwrap_err().errno().0, EINVAL);
    }
    let mut results = [Ok(()); 2];
    let keys = [key(0), key(4)].concat();
    map.lookup_many(&keys, &mut [0; 16], &mut results).unwrap();
    assert_eq!(results, [Ok(()), Err(Errno::E2BIG)]);
}

#[test]
fn c_statuses_of_the_data_path() {
    let stack = stack("nfp");
    let map = stack.map(&attr(HASH, 2), true);
    let mut out = [0; 8];
    let errno = |result: Result<(), offmap_bpf::Error>| result.unwrap_err().errno().0;
    assert_eq!(errno(map.lookup(&key(0), &mut out, 0)), ENOENT);
    assert_eq!(errno(map.update(&key(0), &out, BPF_EXIST)), ENOENT);
    map.update(&key(0), &out, BPF_NOEXIST).unwrap();
    assert_eq!(errno(map.update(&key(0), &out, BPF_NOEXIST)), EEXIST);
    map.update(&key(1), &out, 0).unwrap();
    assert_eq!(errno(map.update(&key(2), &out, 0)), E2BIG);
    assert_eq!(errno(map.delete(&key(2))), ENOENT);
}

/// A map that the device does not know any more: CMSG_RC_ERR_MAP_FD.
#[test]
fn c_unknown_map_is_ebadfd() {
    for (profile, errno) in [("nfp", Errno::EBADFD), ("netdevsim", Errno::ENODEV)] {
        let stack = stack(profile);
        let map = stack.map(&attr(ARRAY, 2), true);
        stack
            .function
            .with_firmware(|firmware| firmware.reset())
            .unwrap();
        let error = map.lookup(&key(0), &mut [0; 8], 0).unwrap_err();
        assert_eq!(error.errno(), errno, "{profile}: {error}");
    }
}

/// Words of values travel as they are: which of them programs add to atomically, and so are
/// swapped, only a program's verifier says.
#[test]
fn c_values_without_counters_are_raw() {
    let stack = stack("nfp");
    let map = stack.map(&attr(HASH, 2), true);
    let bytes = [1, 2, 3, 4, 5, 6, 7, 8];
    map.update(&key(0), &bytes, 0).unwrap();
    let handle = only_map(&stack);
    let mut seen = [0; 8];
    let looked = stack
        .function
        .with_firmware(|firmware| firmware.engine_lookup(0, handle, &key(0), &mut seen));
    assert!(looked.unwrap().is_success());
    assert_eq!(seen, bytes);
}

// §C, nfp's reply cache.

#[derive(Clone, Default)]
struct Hand(Arc<AtomicU64>);

impl Hand {
    fn advance_us(&self, us: u64) {
        self.0.fetch_add(us, Ordering::SeqCst);
    }
}

impl Clock for Hand {
    fn now(&self) -> Duration {
        Duration::from_micros(self.0.load(Ordering::SeqCst))
    }
}

/// The handle of the only map on the device.
fn only_map(stack: &Stack<Inline>) -> MapHandle {
    let found = stack.function.with_firmware(|firmware| {
        let known = |handle: &MapHandle| firmware.map_info(*handle).is_ok();
        // Handles are a slot and a generation; the first map has the first slot.
        (0..=0x0002_0000).map(MapHandle).find(known)
    });
    found.unwrap().expect("a map on the device")
}

struct Cached {
    stack: Stack<Inline>,
    clock: Hand,
    map: MapFile,
    handle: MapHandle,
}

impl Cached {
    /// An array of 10, which is walked in a known order; value `i` is `i * 10`.
    fn new() -> Self {
        let clock = Hand::default();
        let function = Inline::new(DeviceConfig::default()).unwrap();
        let driver = Driver::bring_up(function, DriverConfig::default()).unwrap();
        let nfp = Profile::named("nfp").unwrap();
        let nic = OffloadNic::with_clock(driver, nfp, clock.clone()).unwrap();
        let stack = Stack::over_nic(nic);
        let map = stack.map(&attr(ARRAY, 10), true);
        for n in 0..10 {
            map.update(&key(n), &value(u64::from(n) * 10), 0).unwrap();
        }
        let handle = only_map(&stack);
        Self {
            stack,
            clock,
            map,
            handle,
        }
    }

    fn lookup(&self, n: u32) -> u64 {
        let mut out = [0; 8];
        self.map.lookup(&key(n), &mut out, 0).unwrap();
        u64::from_ne_bytes(out)
    }

    fn next(&self, after: Option<u32>) -> u32 {
        let (after, mut out) = (after.map(key), [0; 4]);
        let after = after.as_ref().map(<[u8; 4]>::as_slice);
        self.map.get_next_key(after, &mut out).unwrap();
        u32::from_ne_bytes(out)
    }

    /// A change by the device's data path.
    fn engine(&self, n: u32, to: u64) {
        let done = self.stack.function.with_firmware(|firmware| {
            firmware.engine_update(0, self.handle, &key(n), &value(to), 0)
        });
        assert!(done.unwrap().is_success());
    }
}

#[test]
fn c_cache_serves_lookups_after_a_getnext_for_250_us() {
    let cached = Cached::new();
    assert_eq!(cached.next(Some(1)), 2);
    // The reply has 2, 3, 4 and 5.
    for n in 0..10 {
        cached.engine(n, 7);
    }
    assert_eq!(
        [1, 2, 3, 4, 5, 6].map(|n| cached.lookup(n)),
        [7, 20, 30, 40, 50, 7]
    );
    cached.clock.advance_us(250);
    assert_eq!(cached.lookup(2), 20);
    cached.clock.advance_us(1);
    assert_eq!(cached.lookup(2), 7, "too old");
}

#[test]
fn c_cache_is_filled_by_getfirst_too_and_not_by_lookups() {
    let cached = Cached::new();
    assert_eq!(cached.lookup(0), 0);
    cached.engine(0, 7);
    assert_eq!(cached.lookup(0), 7, "a lookup keeps nothing");
    assert_eq!(cached.next(None), 0);
    cached.engine(3, 8);
    cached.engine(4, 8);
    assert_eq!((cached.lookup(3), cached.lookup(4)), (30, 8));
}

#[test]
fn c_cache_serves_getnext_without_a_command() {
    let cached = Cached::new();
    assert_eq!(cached.next(None), 0);
    // With no map left on the device, only the cache can answer.
    cached
        .stack
        .function
        .with_firmware(|firmware| firmware.reset())
        .unwrap();
    assert_eq!([0, 1, 2].map(|n| cached.next(Some(n))), [1, 2, 3]);
    // The last of the reply is asked for on the device.
    let error = cached
        .map
        .get_next_key(Some(&key(3)), &mut [0; 4])
        .unwrap_err();
    assert_eq!(error.errno(), Errno::EBADFD);
    // GETFIRST always is.
    assert!(cached.map.get_next_key(None, &mut [0; 4]).is_err());
}

#[test]
fn c_cache_is_dropped_by_updates_and_deletes() {
    let cached = Cached::new();
    cached.next(None);
    cached.engine(1, 7);
    assert_eq!(cached.lookup(1), 10);
    cached.map.update(&key(9), &value(1), 0).unwrap();
    assert_eq!(cached.lookup(1), 7, "an update of another key");
    cached.next(None);
    cached.engine(1, 8);
    assert_eq!(cached.lookup(1), 7);
    // One that fails is a change as well, as far as the driver knows.
    cached.map.update(&key(10), &value(1), 0).unwrap_err();
    assert_eq!(cached.lookup(1), 8);

    let hash = cached.stack.map(&attr(HASH, 4), true);
    for n in 0..3 {
        hash.update(&key(n), &value(n.into()), 0).unwrap();
    }
    hash.get_next_key(None, &mut [0; 4]).unwrap();
    hash.delete(&key(1)).unwrap();
    let mut out = [0; 8];
    let gone = hash.lookup(&key(1), &mut out, 0).unwrap_err();
    assert_eq!(gone.errno(), Errno::ENOENT);
    hash.delete(&key(2)).unwrap();
    // One map's changes leave another's reply alone.
    cached.next(None);
    cached.engine(1, 9);
    hash.update(&key(1), &value(1), 0).unwrap();
    assert_eq!(cached.lookup(1), 8);
}

#[test]
fn c_a_whole_walk_through_the_cache_returns_every_key_once() {
    let cached = Cached::new();
    let hash = cached.stack.map(&attr(HASH, 50), true);
    for n in 0..50 {
        hash.update(&key(n), &value(u64::from(n) * 3), 0).unwrap();
    }
    let (mut seen, mut at, mut out) = (Vec::new(), None, [0; 4]);
    while hash
        .get_next_key(at.as_ref().map(<[u8; 4]>::as_slice), &mut out)
        .is_ok()
    {
        let n = u32::from_ne_bytes(out);
        let mut v = [0; 8];
        hash.lookup(&out, &mut v, 0).unwrap();
        assert_eq!(u64::from_ne_bytes(v), u64::from(n) * 3);
        seen.push(n);
        at = Some(out);
        assert!(seen.len() <= 50);
    }
    seen.sort_unstable();
    assert_eq!(seen, (0..50).collect::<Vec<_>>());
}

/// 50 looks and a sleep of 5 s, then ETIMEDOUT: the profile's deadline is the driver's. (A
/// shorter one here.)
#[test]
fn c_deadline() {
    let nfp = Profile::named("nfp").unwrap();
    let config = nfp.driver_config(DriverConfig::default());
    assert_eq!(config.op_timeout, Duration::from_micros(5_000_200));
    let text = Profile::built_in_text("nfp").unwrap();
    let text = text
        .replace("name = \"nfp\"", "name = \"hasty\"")
        .replace("5_000_200", "60_000");
    let hasty = Profile::from_text("hasty.toml", &text).unwrap();
    let device = scripted::Scripted::new();
    device.state().abort = scripted::Abort::Complete;
    // Takes commands and answers none.
    device.script(|_, _, _| {});
    let stack = Stack::with_profile(device, hasty);
    let map = stack.map(&attr(HASH, 2), true);
    let started = Instant::now();
    let error = map.lookup(&key(0), &mut [0; 8], 0).unwrap_err();
    let took = started.elapsed();
    assert_eq!(error.errno(), Errno::ETIMEDOUT, "{error}");
    assert!(took >= Duration::from_millis(60), "{took:?}");
}
