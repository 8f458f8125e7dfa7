//! The conformance suite on each transport, with both ways of notifying; on kernel VFIO it runs
//! in `vm.rs`.

use offmap_conformance::host::Notify::{self, Doorbells, Shadow};
use offmap_conformance::{Bench, Wanted, conformance_suite};
use offmap_device_io::Function;
use offmap_emulator::{Inline, Threaded};
use offmap_tests::served::{OverSocket, ServerProcess, ServerThread, device};
use offmap_tests::transports::UnderWay;
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
