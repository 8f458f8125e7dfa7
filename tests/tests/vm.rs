//! The NIC as a PCI device of a virtual machine, driven from inside through the guest's
//! vfio-pci: conformance, the demo, NUMA nodes, and deaths on each side.
//!
//! QEMU and the guest's kernel are fetched once and kept (`OFFMAP_VM_CACHE`, or `vm-cache` in
//! `target`). Where they cannot be had, the test says so; with `OFFMAP_REQUIRE_VM=1` it fails then.
//! With `OFFMAP_VM_EXTENDED=1` all that is done once more by iommufd.

use offmap_emulator::DeviceConfig;
use offmap_emulator::Inline;
use offmap_tests::command::offmap;
use offmap_tests::conformance::run;
use offmap_tests::report::{aloud, required};
use offmap_tests::served::{ServerProcess, SocketFolder};
use offmap_tests::transports;
use offmap_tests::vm::{logs, target};
use offmap_vm::fetch::{Kernel, Tools};
use offmap_vm::guest::Guest;
use offmap_vm::image;
use offmap_vm::machine::{Machine, Nic};
use offmap_vm::modules;
use serde_json::{Value, json};
use std::fs;
use std::panic;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// The record's name of the transport.
const TRANSPORT: &str = "vfio";
/// For anything in a guest, which is interpreted and may share its processors with others.
const PATIENCE: Duration = Duration::from_secs(300);
/// A load that has lost its device ends within this.
const DEADLINE: Duration = Duration::from_secs(30);

/// A NIC with so much memory, which cases of the suite fill and search.
fn nic(memory_bytes: u64) -> ServerProcess {
    let mut config = DeviceConfig::default();
    config.firmware.memory_bytes = memory_bytes;
    ServerProcess::spawn(&config)
}

/// One that is killed at work. It polls on when it finds none for a moment, so that nobody has to
/// wake it: with a message under way QEMU does not survive it.
fn mortal() -> ServerProcess {
    let mut config = DeviceConfig {
        polls_before_park: 1 << 20,
        ..DeviceConfig::default()
    };
    config.firmware.memory_bytes = 256 << 20;
    ServerProcess::spawn(&config)
}

fn document(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

/// The status and the milliseconds at a section's end.
#[track_caller]
fn ended(guest: &Guest, name: &str) -> (i32, u64) {
    let results = guest.results();
    let line = results
        .lines()
        .find_map(|line| line.strip_prefix(&format!("::END {name} ")))
        .unwrap_or_else(|| panic!("{name} has not ended:\n{results}"));
    let number = |key: &str| {
        let mut words = line.split(' ');
        words.find_map(|word| word.strip_prefix(key)?.parse::<u64>().ok())
    };
    let (status, ms) = (number("status="), number("ms="));
    (status.expect("a status") as i32, ms.expect("a time"))
}

#[track_caller]
fn succeeded(guest: &Guest, name: &str) -> String {
    let (status, _) = ended(guest, name);
    let text = guest.section(name);
    if status != 0 {
        guest.fail(&format!("{name} ended with {status}"));
    }
    text
}

/// A load whose device went away: it ended by itself, and its errors have names.
#[track_caller]
fn lost(guest: &mut Guest, name: &str, what: &str) {
    guest.wait_for(&format!("::END {name} "), DEADLINE);
    let (status, _) = ended(guest, name);
    let text = guest.section(name);
    if status != 1 || !text.contains("ENODEV") {
        guest.fail(&format!("{what}: {name} ended with {status}"));
    }
}

/// Guests take both processors of a small machine.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

#[test]
fn a_guest_drives_the_nic_through_vfio_pci() {
    let what = "kernel VFIO in a virtual machine";
    let started = Instant::now();
    let tools = match Tools::get(&target()) {
        Ok(tools) => tools,
        Err(why) => {
            transports::skipped(TRANSPORT, &why);
            return skipped(what, &why);
        }
    };
    aloud(&format!("{what}: tools {:.1?}", started.elapsed()));
    let kernel = tools.kernel().expect("a kernel");
    let passed = drive(what, "type1", &tools, &kernel);
    transports::passed(TRANSPORT, passed.iter().map(String::as_str));
}

/// The same by character device and `/dev/iommu`, in a kernel that has no other way.
#[test]
fn a_guest_drives_the_nic_through_iommufd() {
    let what = "iommufd in a virtual machine";
    if !required("OFFMAP_VM_EXTENDED") {
        let why = "it builds kernel modules; OFFMAP_VM_EXTENDED=1 has it run";
        return aloud(&format!("{what}: skipped: {why}"));
    }
    let started = Instant::now();
    let tools = Tools::get(&target());
    match tools.and_then(|tools| Ok((modules::cdev(&target())?, tools))) {
        Ok((kernel, tools)) => {
            aloud(&format!("{what}: tools {:.1?}", started.elapsed()));
            drive(what, "cdev", &tools, &kernel);
        }
        Err(why) => skipped(what, &why),
    }
}

/// What cannot be had is a failure where it must be there.
fn skipped(what: &str, why: &str) {
    let line = format!("{what}: skipped: {why}");
    assert!(!required("OFFMAP_REQUIRE_VM"), "{line}");
    aloud(&line);
}

/// Boots the guests with a kernel, and has them do what they are for; the cases of the suite that
/// passed.
fn drive(what: &str, name: &str, tools: &Tools, kernel: &Kernel) -> Vec<String> {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = SocketFolder::new();
    let sockets = folder.socket();
    let sockets = sockets.parent().expect("a folder");
    let logs = logs(name);
    let file = sockets.join("image");
    let image = image::build(tools, kernel, offmap(), image::TESTS);
    let image = image.expect("the guest's file system");
    fs::write(&file, image).expect("the guest's file system");
    let boot = |nics: [&ServerProcess; 2], scenario: &str| {
        let machine = Machine {
            tools,
            kernel,
            image: &file,
            nics: at(nics),
        };
        Guest::boot(&machine, scenario, &logs, sockets)
    };
    // Side by side: much of what each does is to wait.
    let (passed, suite, deaths) = thread::scope(|scope| {
        let deaths = scope.spawn(|| {
            let (near, mut far) = (nic(1 << 20), mortal());
            let mut took = killed(boot([&near, &far], "load"));
            for _ in 0..3 {
                match deaths(boot([&near, &far], "deaths"), &mut far) {
                    Ok(age) => return took + age,
                    Err((why, age)) => {
                        took += age;
                        aloud(&format!("{what}: once more: {why}"));
                    }
                }
                far = mortal();
            }
            panic!("QEMU aborts each time");
        });
        let nics = [nic(1 << 20), nic(256 << 20)];
        let guest = boot([&nics[0], &nics[1]], "suite");
        let (passed, suite) = suite(guest, what);
        let deaths = deaths.join();
        let deaths = deaths.unwrap_or_else(|e| panic::resume_unwind(e));
        (passed, suite, deaths)
    });
    aloud(&format!(
        "{what}: side by side, what works {suite:.1?} and what dies {deaths:.1?}"
    ));
    // They are of interest when something has failed.
    let _ = fs::remove_dir_all(&logs);
    passed
}

/// The NICs of a machine: the second one is at a NUMA node.
fn at(nics: [&ServerProcess; 2]) -> Vec<Nic> {
    let nics = nics.into_iter().zip([false, true]);
    nics.map(|(nic, far)| Nic {
        socket: nic.path(),
        far,
    })
    .collect()
}

/// All that should work; the cases that passed.
fn suite(mut guest: Guest, what: &str) -> (Vec<String>, Duration) {
    guest.wait_for("::DONE", PATIENCE);
    succeeded(&guest, "bind");
    let list = document(&succeeded(&guest, "list"));
    let nodes: Vec<_> = list.as_array().expect("a list").iter().collect();
    assert_eq!(nodes.len(), 2, "{list}");
    for (nic, node) in nodes.iter().zip([0, 1]) {
        assert_eq!(nic["driver"], "vfio-pci", "{list}");
        assert!(nic["iommu_group"].is_u64(), "{list}");
        // The nearer one is at a bus that belongs to no node.
        let expected = if node == 1 { json!(1) } else { Value::Null };
        assert_eq!(nic["numa_node"], expected, "{list}");
    }

    let (status, ms) = ended(&guest, "suite");
    let report = document(&guest.section("suite"));
    let cases = report["cases"].as_array().expect("cases");
    let outcome = |wanted: &str| -> Vec<(String, String)> {
        let such = cases.iter().filter(|case| case["outcome"] == wanted);
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        such.map(|case| {
            let name = format!("{} ({})", text(&case["name"]), text(&case["notify"]));
            (name, text(&case["why"]))
        })
        .collect()
    };
    let failed = outcome("failed");
    assert!(failed.is_empty() && status == 0, "{failed:#?}");
    let skipped = outcome("skipped");
    let passed: Vec<String> = outcome("passed").into_iter().map(|case| case.0).collect();
    // Every case, in both ways of notifying, and none that was left out for no known reason.
    let pairs = skipped
        .iter()
        .map(|(case, why)| (case.as_str(), why.as_str()));
    transports::without(TRANSPORT, pairs);
    let all = 2 * run::cases::<Inline>().len();
    assert_eq!(passed.len() + skipped.len(), all, "{report}");
    aloud(&format!(
        "{what}: {} cases passed and {} were skipped in {ms} ms",
        passed.len(),
        skipped.len()
    ));

    let demo = document(&succeeded(&guest, "demo"));
    assert_eq!(demo["agree"], true, "{demo}");
    assert_eq!(demo["maps_total"], demo["maps_offloaded"], "{demo}");
    let device = demo["device"].as_str().unwrap_or_default();
    assert!(device.contains("vfio:0000:"), "{demo}");

    let pages = guest.section("pages");
    let lines: Vec<&str> = pages.lines().filter(|l| l.contains("offmap-dma")).collect();
    assert!(lines.len() > 2, "DMA memory: {pages}");
    for line in lines {
        assert!(line.contains(" N1=") && !line.contains(" N0="), "{line}");
    }

    let said = succeeded(&guest, "unbind");
    assert!(said.contains("was taken from vfio-pci"), "{said}");
    let said = guest.section("unbound");
    assert!(said.contains("offmap device bind 0000:"), "{said}");
    assert_eq!(ended(&guest, "unbound").0, 1);
    (passed, guest.age())
}

/// A guest that is killed while it works.
fn killed(mut guest: Guest) -> Duration {
    guest.wait_for("::WORKS load", PATIENCE);
    assert!(!guest.results().contains("::END load"), "the load goes on");
    let age = guest.age();
    guest.kill();
    age
}

/// The next guest at the same NICs: what must end. An error is one of QEMU's, which ended before.
fn deaths(mut guest: Guest, far: &mut ServerProcess) -> Result<Duration, (&'static str, Duration)> {
    guest.wait_for("::BEGIN removed", PATIENCE);
    let said = succeeded(&guest, "again");
    assert!(said.contains(" 0 failed"), "{said}");
    lost(&mut guest, "removed", "the kernel took the device back");
    assert!(
        guest.results().contains("::REMOVED"),
        "the removal has ended"
    );

    guest.wait_for("::WORKS killed", PATIENCE);
    let said = succeeded(&guest, "back");
    assert!(said.contains(" 0 failed"), "{said}");
    far.kill();
    let killed = Instant::now();
    while !guest.results().contains("::END killed ") && killed.elapsed() < DEADLINE {
        // With a message under way it reports one error over another.
        if guest.aborted("error_setv: Assertion") {
            let why = "QEMU aborts when its server dies before it has answered";
            return Err((why, guest.age()));
        }
        thread::sleep(Duration::from_millis(50));
    }
    lost(&mut guest, "killed", "offmap nic was killed");

    guest.wait_for("::WORKS unplugged", PATIENCE);
    let removed = json!({ "id": "nic0" });
    let removed = guest.command("device_del", &removed, "DEVICE_DELETED", DEADLINE);
    let results = guest.results();
    let (_, said) = results.split_once("::BEGIN unplugged").unwrap_or_default();
    if !said.contains("ENODEV") {
        guest.fail("the load goes on when its device is unplugged");
    }
    match removed {
        Ok(()) => {
            lost(&mut guest, "unplugged", "the device was unplugged");
        }
        // QEMU 11.1 takes the pending bits' memory out of a BAR that has let go of it already,
        // and aborts. By then the guest has given the device up.
        Err(why) if guest.errors().contains("memory_region_del_subregion") => {
            aloud(&format!(
                "QEMU aborts when it unplugs a vfio-user device with MSI-X: {why}"
            ));
        }
        Err(why) => guest.fail(&why),
    }
    Ok(guest.age())
}
