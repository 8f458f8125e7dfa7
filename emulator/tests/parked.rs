//! What a parked device costs. A process of its own, so that no other test's device counts.

#[path = "it/host.rs"]
#[allow(dead_code, reason = "the host by hand can do more than this needs")]
mod host;

use host::*;
use offmap_abi::notify::{EventWord, NOTIFY_SQ_EVENT};
use std::sync::atomic::Ordering;
use std::time::Duration;

#[test]
fn a_parked_device_uses_next_to_no_processor_time() {
    let host = Host::new(threaded());
    let mut admin = host.bring_up(16, NONE);
    let q = host.create_queue(&mut admin, 1, 16, NONE, true);
    let event = &q.notify.as_ref().unwrap().memory;
    host.until("the device to park", || {
        EventWord::from_word(event.load_u64(NOTIFY_SQ_EVENT, Ordering::Acquire)).armed
    });
    let before = device_ticks();
    std::thread::sleep(Duration::from_millis(1500));
    let used = device_ticks() - before;
    // A tick is 10 ms: a thread that polls would use 150 of them.
    assert!(used <= 15, "{used} ticks while parked");
}

/// Processor time of the one device thread of this process, in ticks of 10 ms.
fn device_ticks() -> u64 {
    let mut stats = std::fs::read_dir("/proc/self/task")
        .unwrap()
        .filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("stat")).ok())
        .filter(|stat| stat.contains("(offmap-device)"));
    let stat = stats.next().expect("the device has a thread");
    assert!(stats.next().is_none());
    // Fields after the name in parentheses; user and system time are the 12th and 13th.
    let after = stat.rsplit(')').next().unwrap();
    let times = after.split_whitespace().skip(11).take(2);
    times.map(|t| t.parse::<u64>().unwrap()).sum()
}
