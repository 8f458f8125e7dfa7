//! System calls of a device and its driver while both are busy: none, on either side of a socket and in
//! one process. strace counts them; without it the tests say that they did not.
//!
//! The driver is this test once more, as a process of its own that strace starts, with the device as its
//! child. It marks each window of lookups by a system call that nothing else makes.

use crate::speed::lookups;
use offmap_emulator::{DeviceConfig, Threaded};
use offmap_tests::command::offmap;
use offmap_tests::report::{aloud, required};
use offmap_tests::served::{ServerProcess, SocketFolder, attach};
use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Says to the driver which device it is to drive.
const DEVICE: &str = "OFFMAP_COUNTED_DEVICE";
/// Lookups in a window.
const WINDOW: u64 = 10_000;
/// Windows at least, and for how long there may be more, until there were enough.
const WINDOWS: usize = 20;
const ENOUGH: usize = 200;
const LONGEST: Duration = Duration::from_secs(10);
/// System calls of one side in the quietest window. A busy machine lets a driver wait for so long that it
/// looks whether the device lives: that is some ten. One for each lookup would be 10,000.
const MOST: u64 = 100;
/// Of `sched_yield`, which a driver calls that has polled in vain for long.
const MOST_YIELDS: u64 = WINDOW / 10;

/// The process that strace runs; no test by itself.
#[test]
fn the_driver_that_is_counted() {
    let Ok(device) = std::env::var(DEVICE) else {
        return;
    };
    let mut config = DeviceConfig::default();
    config.firmware.memory_bytes = 64 << 20;
    // It never sleeps, so that there is nobody to wake up.
    config.polls_before_park = u32::MAX;
    match device.as_str() {
        "threaded" => run(&mut lookups(Threaded::spawn(config).expect("a device"))),
        _ => {
            let server = ServerProcess::spawn(&config);
            run(&mut lookups(Arc::new(attach(&server.path()))));
        }
    }
}

fn run(lookup: &mut dyn FnMut(u64)) {
    (0..WINDOW).for_each(|n| lookup(n % 1024));
    // Whoever reads the list of calls knows by this which are ours.
    let tasks = std::fs::read_dir("/proc/self/task").expect("our threads");
    let ours: Vec<String> = tasks
        .map(|task| task.unwrap().file_name().into_string().unwrap())
        .collect();
    std::fs::write(
        std::env::var("OFFMAP_COUNTED_TASKS").unwrap(),
        ours.join(" "),
    )
    .unwrap();
    let began = Instant::now();
    let mut windows = 0;
    while windows < WINDOWS || windows < ENOUGH && began.elapsed() < LONGEST {
        mark();
        (0..WINDOW).for_each(|n| lookup(n * 7 % 1024));
        windows += 1;
    }
    mark();
}

fn mark() {
    let _ = rustix::process::getppid();
}

/// System calls of a window: by name, of the driver's process and of the other one.
#[derive(Clone, Debug, Default)]
struct Counts([BTreeMap<String, u64>; 2]);

impl Counts {
    /// All of one side, but for yields; and these.
    fn of(&self, side: usize) -> (u64, u64) {
        let yields = self.0[side].get("sched_yield").copied().unwrap_or(0);
        (self.0[side].values().sum::<u64>() - yields, yields)
    }

    fn worst(&self) -> (u64, u64) {
        let (a, b) = (self.of(0), self.of(1));
        (a.0.max(b.0), a.1.max(b.1))
    }
}

/// The windows that strace has written down.
fn windows(text: &str, ours: &[&str]) -> Vec<Counts> {
    let mut windows = Vec::new();
    let mut open: Option<Counts> = None;
    for line in text.lines() {
        let Some((task, what)) = line.split_once(char::is_whitespace) else {
            continue;
        };
        let what = what.trim_start();
        // Signals, ends, and the second halves of calls that others came between.
        let Some((name, _)) = what
            .split_once('(')
            .filter(|_| !what.starts_with(['<', '+', '-']))
        else {
            continue;
        };
        if name == "getppid" && ours.contains(&task) {
            windows.extend(open.replace(Counts::default()));
            continue;
        }
        if let Some(open) = &mut open {
            let side = usize::from(!ours.contains(&task));
            *open.0[side].entry(name.to_owned()).or_default() += 1;
        }
    }
    windows
}

/// Counts, or says why it cannot.
fn count(device: &str) -> Result<Vec<Counts>, String> {
    let folder = SocketFolder::new();
    let (calls, tasks) = (folder.socket(), folder.socket().with_extension("tasks"));
    // Nothing is to be built while it is counted.
    offmap();
    let output = Command::new("strace")
        .args(["-f", "-qq", "-s", "0", "-o"])
        .arg(&calls)
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "syscalls::the_driver_that_is_counted"])
        .env(DEVICE, device)
        .env("OFFMAP_COUNTED_TASKS", &tasks)
        .env("CARGO", "true")
        .stdin(Stdio::null())
        .output()
        .map_err(|e| format!("there is no strace: {e}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    let Ok(ours) = std::fs::read_to_string(&tasks) else {
        return Err(format!("strace cannot trace here: {said}"));
    };
    assert!(output.status.success(), "{said}");
    let text = std::fs::read_to_string(&calls).expect("what strace wrote");
    Ok(windows(&text, &ours.split(' ').collect::<Vec<_>>()))
}

#[track_caller]
fn check(device: &str) {
    let mut windows = match count(device) {
        Ok(windows) => windows,
        Err(why) => {
            assert!(!required("OFFMAP_REQUIRE_STRACE"), "{why}");
            aloud(&format!(
                "SKIPPED: system calls of a busy device, {device}: {why}"
            ));
            return;
        }
    };
    assert!(windows.len() >= WINDOWS, "{} windows", windows.len());
    windows.sort_by_key(Counts::worst);
    let (best, median) = (&windows[0], &windows[windows.len() / 2]);
    aloud(&format!(
        "system calls for {WINDOW} lookups, {device}, driver and device: {:?} and {:?} in the quietest of {} \
         windows (others than yields, yields), {:?} and {:?} in the median one",
        best.of(0),
        best.of(1),
        windows.len(),
        median.of(0),
        median.of(1),
    ));
    for side in 0..2 {
        let (calls, yields) = best.of(side);
        assert!(calls <= MOST && yields <= MOST_YIELDS, "{best:?}");
    }
}

#[test]
fn a_busy_device_in_another_process_costs_neither_side_a_system_call() {
    check("vfio-user");
}

#[test]
fn a_busy_device_on_a_thread_costs_no_system_call() {
    check("threaded");
}

/// The count itself: what strace may write.
#[test]
fn calls_are_counted_by_side_and_window() {
    let text = "\
10  getppid() = 1
11  futex(0x1, FUTEX_WAIT) = 0
20  poll([{fd=3}], 1, 0 <unfinished ...>
10  sched_yield() = 0
20  <... poll resumed>) = 0
10  getppid() = 1
20  getppid() = 2
20  --- SIGCHLD {si_signo=SIGCHLD} ---
10  getppid() = 1
20  +++ exited with 0 +++
10  read(3, \"\"..., 8) = 8
";
    let windows = windows(text, &["10", "11"]);
    let counts: Vec<_> = windows.iter().map(|w| [w.of(0), w.of(1)]).collect();
    assert_eq!(counts, [[(1, 1), (1, 0)], [(0, 0), (1, 0)]]);
    assert_eq!(windows[0].worst(), (1, 1));
}
