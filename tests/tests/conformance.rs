//! The conformance suite on each in-process transport, with both ways of notifying.

use offmap_emulator::{Inline, Threaded};
use offmap_tests::conformance::host::Notify;
use offmap_tests::conformance_suite;

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
