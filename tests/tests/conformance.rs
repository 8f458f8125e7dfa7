//! The conformance suite on each transport, with both ways of notifying; on kernel VFIO it runs
//! in `vm.rs`.

use offmap_conformance::host::Notify::{self, Doorbells, Shadow};
use offmap_conformance::run;
use offmap_conformance::{Bench, Wanted, conformance_suite};
use offmap_device_io::Function;
use offmap_emulator::{Inline, Threaded};
use offmap_tests::served::{OverSocket, ServerProcess, ServerThread, device};
use offmap_tests::transports::UnderWay;
use offmap_vfio_user::DmaAccess;
use std::sync::Arc;

/// A bench whose case is recorded when it has passed.
fn bench<F: Function>(
    transport: &'static str,
    make: fn(&Wanted) -> Arc<F>,
    notify: Notify,
) -> Bench<F> {
    let case = UnderWay::on(transport);
    let make = move |wanted: &Wanted| {
        let _ = &case;
        make(wanted)
    };
    Bench::made(make, notify)
}

fn inline(notify: Notify) -> Bench<Inline> {
    let make = |w: &Wanted| Inline::new(device(w)).expect("a device");
    bench("inline", make, notify)
}

fn threaded(notify: Notify) -> Bench<Threaded> {
    let make = |w: &Wanted| Threaded::spawn(device(w)).expect("a device");
    bench("threaded", make, notify)
}

fn thread(notify: Notify) -> Bench<OverSocket<ServerThread>> {
    let make = |w: &Wanted| OverSocket::<ServerThread>::thread(device(w));
    bench("vfio-user-thread", make, notify)
}

fn process(notify: Notify) -> Bench<OverSocket<ServerProcess>> {
    let make = |w: &Wanted| OverSocket::<ServerProcess>::process(device(w));
    bench("vfio-user-process", make, notify)
}

conformance_suite!(inline_doorbells, Inline, inline(Doorbells));
conformance_suite!(inline_shadow, Inline, inline(Shadow));
conformance_suite!(threaded_doorbells, Threaded, threaded(Doorbells));
conformance_suite!(threaded_shadow, Threaded, threaded(Shadow));
conformance_suite!(
    vfio_user_thread_doorbells,
    OverSocket<ServerThread>,
    thread(Doorbells)
);
conformance_suite!(
    vfio_user_thread_shadow,
    OverSocket<ServerThread>,
    thread(Shadow)
);
conformance_suite!(
    vfio_user_process_doorbells,
    OverSocket<ServerProcess>,
    process(Doorbells)
);
conformance_suite!(
    vfio_user_process_shadow,
    OverSocket<ServerProcess>,
    process(Shadow)
);
/// Cases of tens of thousands of operations, which say nothing of messages that the others do not.
const LONG: [&str; 3] = [
    "depth_two_wraps_many_times",
    "out_of_memory_keeps_what_is_stored",
    "a_full_lru_map_evicts_one",
];

/// The suite with memory that the server cannot map, and reaches by messages to the driver's process. That
/// is no transport of its own. Each look at a ring is a message, so the device is one that soon parks.
fn by_messages(notify: Notify) {
    let make = |w: &Wanted| {
        let mut config = device(w);
        config.polls_before_park = w.polls_before_park.unwrap_or(16);
        OverSocket::<ServerThread>::thread_by(config, DmaAccess::Messages)
    };
    let bench = Bench::made(make, notify);
    let cases = run::cases();
    let short = cases.iter().filter(|case| !LONG.contains(&case.name));
    let mut ran = 0;
    for case in short {
        // Shown when it fails.
        println!("{}", case.name);
        run::whole(|| (case.run)(&bench));
        ran += 1;
    }
    assert_eq!(ran, cases.len() - LONG.len());
}

#[test]
fn memory_is_reached_by_messages_with_doorbells() {
    by_messages(Doorbells);
}

#[test]
fn memory_is_reached_by_messages_with_notify_blocks() {
    by_messages(Shadow);
}
