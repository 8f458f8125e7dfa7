//! One of the two sides dies, stops or sleeps.

use crate::raw::{Raw, server};
use offmap_abi::Status;
use offmap_device_io::{BarOffset, Function, IoError};
use offmap_driver::{Driver, DriverConfig};
use offmap_emulator::DeviceConfig;
use offmap_tests::command::offmap;
use offmap_tests::conformance::host::{Host, Notify, QueueOptions};
use offmap_tests::conformance::lifecycle::nop;
use offmap_tests::served::{PATIENCE, ServerProcess, SocketFolder, attach};
use offmap_tests::speed::params;
use offmap_vfio_user::{Attach, VfioUser};
use rustix::process::{Pid, Signal, kill_process};
use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

fn config() -> DeviceConfig {
    let mut config = DeviceConfig::default();
    config.firmware.memory_bytes = 64 << 20;
    config
}

fn pid(server: &ServerProcess) -> Pid {
    Pid::from_raw(server.id() as i32).expect("a process id")
}

/// Every operation under way ends in an error in time, and what comes after fails at once.
#[test]
fn the_server_is_killed_in_mid_load() {
    const TIMEOUT: Duration = Duration::from_secs(3);
    let mut server = ServerProcess::spawn(&config());
    let function = Arc::new(attach(&server.path()));
    let driver = Driver::bring_up(
        Arc::clone(&function),
        DriverConfig {
            op_timeout: TIMEOUT,
            admin_timeout: TIMEOUT,
            ..DriverConfig::default()
        },
    )
    .unwrap();
    let map = driver.create_map(&params(1000)).expect("a map");
    let operations = AtomicU64::new(0);
    let queues: Vec<_> = (0..3u64)
        .map(|n| (n, driver.create_queue().expect("a queue")))
        .collect();
    thread::scope(|scope| {
        let load: Vec<_> = queues
            .into_iter()
            .map(|(n, mut queue)| {
                let (map, operations) = (&map, &operations);
                scope.spawn(move || {
                    for i in 0.. {
                        let key = (n * 1000 + i % 100).to_le_bytes();
                        let began = Instant::now();
                        let done = queue.update(map, &key, &[n as u8; 64], 0);
                        match done {
                            Ok(status) => assert_eq!(status, Status::Success),
                            Err(e) => return (began.elapsed(), e),
                        }
                        operations.fetch_add(1, Ordering::Relaxed);
                    }
                    unreachable!("the load has no end of its own")
                })
            })
            .collect();
        let started = Instant::now();
        while operations.load(Ordering::Relaxed) < 3000 {
            assert!(started.elapsed() < PATIENCE, "no load");
            thread::sleep(Duration::from_millis(1));
        }
        server.kill();
        for load in load {
            let (took, error) = load.join().expect("no panic");
            // Its own deadline, and one for the abort; the rest is for a busy machine.
            assert!(took < 2 * TIMEOUT + PATIENCE, "{took:?}: {error}");
        }
    });
    let began = Instant::now();
    for _ in 0..100 {
        let read = function.read32(0, BarOffset(0));
        assert!(matches!(read, Err(IoError::Gone(_))), "{read:?}");
        assert!(matches!(function.reset(), Err(IoError::Gone(_))));
        assert!(matches!(function.enable_vector(0), Err(IoError::Gone(_))));
    }
    assert!(driver.free_map(&map).is_err());
    assert!(driver.check_health().is_err());
    assert!(began.elapsed() < PATIENCE, "{:?}", began.elapsed());
}

/// A server that listens and says nothing costs its clients one deadline.
#[test]
fn a_server_that_says_nothing_is_given_up() {
    let folder = SocketFolder::new();
    let listener = UnixListener::bind(folder.socket()).unwrap();
    let attach = Attach {
        timeout: Duration::from_millis(100),
        ..Attach::default()
    };
    let began = Instant::now();
    let silent = VfioUser::attach(&folder.socket(), attach);
    assert!(matches!(silent, Err(IoError::Gone(_))), "{silent:?}");
    assert!(began.elapsed() < PATIENCE);
    drop(listener);
    let none = VfioUser::attach(&folder.socket(), attach);
    assert!(matches!(none, Err(IoError::Os { .. })), "{none:?}");
}

/// A client is killed while the device works for it. Its memory is let go, and the next one
/// has a device as new.
#[test]
fn a_client_is_killed_in_mid_load() {
    let server = server();
    for _ in 0..3 {
        let mut child = Command::new(offmap())
            .args(["demo", "--operations", "1000000000", "--device"])
            .arg(format!("vfio-user:{}", server.path().display()))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("a client");
        let started = Instant::now();
        // It is up, and about to work.
        while server.device().dma_mapped().unwrap().0 < 2 {
            assert!(started.elapsed() < PATIENCE, "no load");
            thread::sleep(Duration::from_millis(5));
        }
        thread::sleep(Duration::from_millis(300));
        child.kill().unwrap();
        child.wait().unwrap();
        let host = Host::bring_up(Arc::new(attach(&server.path())));
        let (mapped, _) = server.device().dma_mapped().unwrap();
        assert_eq!(mapped, 2, "the admin rings of the new one");
        let options = QueueOptions {
            notify: Notify::Shadow,
            vector: offmap_abi::regs::NO_VECTOR,
        };
        let mut queue = host.queue(1, 16, options);
        assert_eq!(queue.run(nop()).status(), Status::Success);
    }
    // A doorbell that an earlier client has mapped is nobody's now.
    let first = attach(&server.path());
    let doorbells = first
        .map_bar(0, BarOffset(0x1_0000), 0x1_0000)
        .unwrap()
        .unwrap();
    drop(first);
    let second = attach(&server.path());
    second.config_write(4, &[6, 0]).unwrap();
    doorbells.store_u64(0, 77);
    assert_eq!(second.read64(0, BarOffset(0x1_0000)).unwrap(), 0);
}

/// SIGTERM ends it, with or without a client, and leaves no file behind.
#[test]
fn it_stops_when_it_is_told_to() {
    for with_client in [false, true] {
        let mut server = ServerProcess::spawn(&config());
        let client = with_client.then(|| attach(&server.path()));
        kill_process(pid(&server), Signal::TERM).unwrap();
        assert_eq!(server.wait(), Some(0));
        assert!(!server.path().exists());
        if let Some(client) = client {
            assert!(matches!(
                client.read32(0, BarOffset(0)),
                Err(IoError::Gone(_))
            ));
        }
    }
}

/// Processor time of a process so far, in clock ticks of 10 ms.
fn ticks(server: &ServerProcess) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", server.id())).unwrap();
    let after = stat.rsplit(')').next().unwrap();
    let fields: Vec<&str> = after.split_whitespace().collect();
    // utime and stime, the 14th and 15th field; the first here is the third, the state.
    let field = |n: usize| fields[n].parse::<u64>().unwrap();
    field(11) + field(12)
}

/// Without work it does not spin: without a client it sleeps, with an idle one it looks once a
/// millisecond.
#[test]
fn an_idle_server_is_idle() {
    let server = ServerProcess::spawn(&config());
    let idle = |what: &str| {
        thread::sleep(Duration::from_millis(300));
        let (began, before) = (Instant::now(), ticks(&server));
        thread::sleep(Duration::from_secs(1));
        let used = Duration::from_millis(10 * (ticks(&server) - before));
        let passed = began.elapsed();
        // Who spins uses all of a processor; a busy machine gives it less, and never more.
        assert!(used <= passed / 2, "{what}: {used:?} of {passed:?}");
    };
    idle("no client");
    let host = Host::bring_up(Arc::new(attach(&server.path())));
    host.identify();
    idle("an idle client");
    host.identify();
}

/// The command says what is wrong in a sentence.
#[test]
fn what_is_wrong_is_said() {
    let server = server();
    let _client = Raw::greeted(&server.path());
    let run = |args: &[&str]| {
        let out = Command::new(offmap()).args(args).output().unwrap();
        (out.status.code(), String::from_utf8(out.stderr).unwrap())
    };
    let path = server.path().display().to_string();
    let (code, said) = run(&["nic", "--socket", &path]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("a server is there already"), "{said}");
    let (code, said) = run(&["nic", "--socket", "x", "--memory", "12Q"]);
    assert_eq!(code, Some(2), "{said}");
    let (code, said) = run(&["nic", "--socket", &format!("{path}.2"), "--vectors", "0"]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("vectors"), "{said}");
    let (code, said) = run(&["demo", "--device", &format!("vfio-user:{path}")]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("held by another client"), "{said}");
    let (code, said) = run(&["demo", "--device", &format!("vfio-user:{path}.3")]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("offmap nic --socket"), "{said}");
    let (code, said) = run(&["demo", "--device", "vfio-user:x", "--faults", "y"]);
    assert_eq!(code, Some(2), "{said}");
}

/// The demo on a NIC in another process.
#[test]
fn the_demo_agrees_over_the_socket() {
    let server = ServerProcess::spawn(&DeviceConfig::default());
    let device = format!("vfio-user:{}", server.path().display());
    for _ in 0..2 {
        let out = Command::new(offmap())
            .args([
                "demo",
                "--json",
                "--operations",
                "2000",
                "--device",
                &device,
            ])
            .output()
            .unwrap();
        let text = String::from_utf8(out.stdout).unwrap();
        let said = String::from_utf8(out.stderr).unwrap();
        assert_eq!(out.status.code(), Some(0), "{said}{text}");
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(json["agree"], serde_json::Value::Bool(true));
        assert!(
            json["device"].as_str().unwrap().contains("vfio-user"),
            "{text}"
        );
    }
}
