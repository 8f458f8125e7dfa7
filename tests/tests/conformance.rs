//! The conformance suite on each transport, with both ways of notifying.

use offmap_emulator::{Inline, Threaded};
use offmap_tests::conformance::host::Notify;
use offmap_tests::conformance_suite;
use offmap_tests::served::{OverSocket, ServerProcess, ServerThread};

conformance_suite!(
    inline_doorbells,
    Inline,
    |config| Inline::new(config).expect("a device"),
    Notify::Doorbells
);
conformance_suite!(
    inline_shadow,
    Inline,
    |config| Inline::new(config).expect("a device"),
    Notify::Shadow
);
conformance_suite!(
    threaded_doorbells,
    Threaded,
    |config| Threaded::spawn(config).expect("a device"),
    Notify::Doorbells
);
conformance_suite!(
    threaded_shadow,
    Threaded,
    |config| Threaded::spawn(config).expect("a device"),
    Notify::Shadow
);
conformance_suite!(
    vfio_user_thread_doorbells,
    OverSocket<ServerThread>,
    OverSocket::thread,
    Notify::Doorbells
);
conformance_suite!(
    vfio_user_thread_shadow,
    OverSocket<ServerThread>,
    OverSocket::thread,
    Notify::Shadow
);
conformance_suite!(
    vfio_user_process_doorbells,
    OverSocket<ServerProcess>,
    OverSocket::process,
    Notify::Doorbells
);
conformance_suite!(
    vfio_user_process_shadow,
    OverSocket<ServerProcess>,
    OverSocket::process,
    Notify::Shadow
);
