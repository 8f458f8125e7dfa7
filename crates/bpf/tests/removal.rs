//! A device that takes its time: what waits for it, and what does not.

mod common;

use common::{FakeDevice, attr, errno, logged, system};
use offmap_bpf::device::{MapSpec, OffloadDevice, OffloadRules, OffloadedMap};
use offmap_bpf::error::Result;
use offmap_bpf::{Caller, Errno, IfIndex, MapCreateAttr, MapType};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// Long enough for a thread that does not wait to get through.
const GRACE: Duration = Duration::from_millis(50);
/// After this a wait is taken for endless.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Default)]
struct State {
    entered: usize,
    open: bool,
}

/// Where operations stop until they are let on.
#[derive(Default)]
struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

impl Gate {
    fn pass(&self) {
        let mut state = self.state.lock().unwrap();
        state.entered += 1;
        self.changed.notify_all();
        let (_state, wait) = self
            .changed
            .wait_timeout_while(state, PATIENCE, |state| !state.open)
            .unwrap();
        assert!(!wait.timed_out(), "nobody opened the gate");
    }

    fn wait_for(&self, entered: usize) {
        let state = self.state.lock().unwrap();
        let waiting = |state: &mut State| state.entered < entered;
        let (_state, wait) = self
            .changed
            .wait_timeout_while(state, PATIENCE, waiting)
            .unwrap();
        assert!(!wait.timed_out(), "nobody came to the gate");
    }

    fn open(&self) {
        self.state.lock().unwrap().open = true;
        self.changed.notify_all();
    }
}

/// A device whose MAP_ALLOC, or whose lookups, stop at the gate.
struct Slow {
    inner: Arc<FakeDevice>,
    gate: Arc<Gate>,
    alloc_stops: bool,
}

struct SlowMap {
    inner: Arc<dyn OffloadedMap>,
    gate: Arc<Gate>,
    lookups: bool,
    freed: AtomicBool,
}

impl OffloadDevice for Slow {
    fn describe(&self) -> String {
        "slow".into()
    }

    fn rules(&self) -> OffloadRules {
        self.inner.rules()
    }

    fn map_alloc(&self, spec: &MapSpec) -> Result<Arc<dyn OffloadedMap>> {
        if self.alloc_stops {
            self.gate.pass();
        }
        Ok(Arc::new(SlowMap {
            inner: self.inner.map_alloc(spec)?,
            gate: Arc::clone(&self.gate),
            lookups: !self.alloc_stops,
            freed: AtomicBool::new(false),
        }))
    }
}

impl OffloadedMap for SlowMap {
    fn lookup(&self, key: &[u8], value: &mut [u8], flags: u64) -> Result<()> {
        if self.lookups {
            self.gate.pass();
        }
        assert!(!self.freed.load(SeqCst), "an operation after the free");
        self.inner.lookup(key, value, flags)
    }

    fn update(&self, key: &[u8], value: &[u8], flags: u64) -> Result<()> {
        self.inner.update(key, value, flags)
    }

    fn delete(&self, key: &[u8]) -> Result<()> {
        self.inner.delete(key)
    }

    fn get_next_key(&self, key: Option<&[u8]>, next: &mut [u8]) -> Result<()> {
        self.inner.get_next_key(key, next)
    }

    fn device_bytes(&self) -> u64 {
        self.inner.device_bytes()
    }

    fn free(&self) {
        self.freed.store(true, SeqCst);
        self.inner.free();
    }
}

fn slow(alloc_stops: bool) -> (Arc<Slow>, Arc<Gate>, common::Log) {
    let (inner, log) = FakeDevice::new();
    let gate = Arc::new(Gate::default());
    let device = Arc::new(Slow {
        inner,
        gate: Arc::clone(&gate),
        alloc_stops,
    });
    (device, gate, log)
}

fn on(nic: IfIndex) -> MapCreateAttr {
    MapCreateAttr {
        map_ifindex: nic.0,
        ..attr(MapType::HASH, 2)
    }
}

/// Waits for `thread`, with an end.
fn join<T>(thread: thread::JoinHandle<T>) -> T {
    let since = Instant::now();
    while !thread.is_finished() {
        assert!(since.elapsed() < PATIENCE, "the thread hangs");
        thread::sleep(Duration::from_millis(1));
    }
    thread.join().unwrap()
}

#[test]
fn a_slow_alloc_holds_up_no_other_device() {
    let (system, root) = (system(), Caller::root());
    let (device, gate, _) = slow(true);
    let (other, _) = FakeDevice::new();
    let slow_nic = system.register_netdev("slow0", device).unwrap();
    let nic = system.register_netdev("nic0", other).unwrap();
    let creating = {
        let (system, root) = (Arc::clone(&system), root);
        thread::spawn(move || system.map_create(&root, &on(slow_nic)).map(drop))
    };
    gate.wait_for(1);
    let meanwhile = {
        let (system, root) = (Arc::clone(&system), root);
        thread::spawn(move || {
            system.map_create(&root, &on(nic)).unwrap();
            system.netdev_by_name(root.netns, "slow0").unwrap();
            system.unregister_netdev(nic).unwrap();
            let (third, _) = FakeDevice::new();
            system.register_netdev("nic1", third).unwrap();
        })
    };
    join(meanwhile);
    assert!(!creating.is_finished());
    gate.open();
    join(creating).unwrap();
}

#[test]
fn removal_waits_for_an_alloc_and_the_map_is_freed() {
    let (system, root) = (system(), Caller::root());
    let (device, gate, log) = slow(true);
    let nic = system.register_netdev("slow0", device).unwrap();
    let creating = {
        let (system, root) = (Arc::clone(&system), root);
        thread::spawn(move || system.map_create(&root, &on(nic)))
    };
    gate.wait_for(1);
    let removing = {
        let system = Arc::clone(&system);
        thread::spawn(move || system.unregister_netdev(nic).unwrap())
    };
    // The interface goes at once, and the rest of the system with it does not stand still.
    let since = Instant::now();
    while system.netdev_name(nic).is_some() {
        assert!(since.elapsed() < PATIENCE);
        thread::yield_now();
    }
    assert_eq!(errno(system.map_create(&root, &on(nic))), Errno::EINVAL);
    thread::sleep(GRACE);
    assert!(
        !removing.is_finished(),
        "the device still works on an alloc"
    );
    assert!(logged(&log).is_empty());
    gate.open();
    join(removing);
    assert_eq!(logged(&log), ["ALLOC", "FREE"], "before removal returned");
    let refused = join(creating).unwrap_err();
    assert_eq!(refused.errno(), Errno::EINVAL);
    assert!(refused.reason().contains("no such interface"));
    assert_eq!(errno(system.get_next_id(&root, 0)), Errno::ENOENT);
}

#[test]
fn removal_waits_for_operations_of_every_thread() {
    const THREADS: usize = 20;
    let (system, root) = (system(), Caller::root());
    let (device, gate, log) = slow(false);
    let (other, _) = FakeDevice::new();
    let nic = system.register_netdev("slow0", device).unwrap();
    let fd = system.map_create(&root, &on(nic)).unwrap();
    let looking: Vec<_> = (0..THREADS)
        .map(|_| {
            let file = system.map_file(fd).unwrap();
            thread::spawn(move || file.lookup(&[0; 4], &mut [0; 8], 0))
        })
        .collect();
    // All of them at once: readers do not exclude each other.
    gate.wait_for(THREADS);
    let removing = {
        let system = Arc::clone(&system);
        thread::spawn(move || system.unregister_netdev(nic).unwrap())
    };
    thread::sleep(GRACE);
    assert!(!removing.is_finished());
    assert_eq!(logged(&log), ["ALLOC"]);
    // Other devices are not held up.
    let another = system.register_netdev("nic0", other).unwrap();
    system.map_create(&root, &on(another)).unwrap();
    gate.open();
    for thread in looking {
        assert_eq!(errno(join(thread)), Errno::ENOENT, "it reached the device");
    }
    join(removing);
    assert_eq!(logged(&log), ["ALLOC", "FREE"]);
    assert_eq!(
        errno(system.lookup(fd, &[0; 4], &mut [0; 8], 0)),
        Errno::ENODEV
    );
}
