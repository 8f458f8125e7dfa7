//! The conformance suite on each transport, with both ways of notifying.

use offmap_conformance::host::Notify::{Doorbells, Shadow};
use offmap_conformance::{Bench, conformance_suite};
use offmap_emulator::{Inline, Threaded};
use offmap_tests::served::{OverSocket, ServerProcess, ServerThread, device};

conformance_suite!(
    inline_doorbells,
    Inline,
    Bench::made(|w| Inline::new(device(w)).expect("a device"), Doorbells)
);
conformance_suite!(
    inline_shadow,
    Inline,
    Bench::made(|w| Inline::new(device(w)).expect("a device"), Shadow)
);
conformance_suite!(
    threaded_doorbells,
    Threaded,
    Bench::made(|w| Threaded::spawn(device(w)).expect("a device"), Doorbells)
);
conformance_suite!(
    threaded_shadow,
    Threaded,
    Bench::made(|w| Threaded::spawn(device(w)).expect("a device"), Shadow)
);
conformance_suite!(
    vfio_user_thread_doorbells,
    OverSocket<ServerThread>,
    Bench::made(|w| OverSocket::thread(device(w)), Doorbells)
);
conformance_suite!(
    vfio_user_thread_shadow,
    OverSocket<ServerThread>,
    Bench::made(|w| OverSocket::thread(device(w)), Shadow)
);
conformance_suite!(
    vfio_user_process_doorbells,
    OverSocket<ServerProcess>,
    Bench::made(|w| OverSocket::process(device(w)), Doorbells)
);
conformance_suite!(
    vfio_user_process_shadow,
    OverSocket<ServerProcess>,
    Bench::made(|w| OverSocket::process(device(w)), Shadow)
);
