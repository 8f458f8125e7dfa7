//! The product's full fence (`crates/abi/src/fence.rs`) over loom's, for the files that are compiled into
//! the litmus tests, and a side that leaves it out.
//!
//! Which side a thread is, the fence is not told: it is the one whose words the thread accessed last.

#[path = "../../../crates/abi/src/fence.rs"]
#[allow(unreachable_pub, reason = "it is a crate's interface elsewhere")]
mod product;

use std::cell::Cell;

loom::thread_local! {
    static LEFT_OUT: Cell<bool> = Cell::new(false);
}

/// The present thread has accessed words of a side that leaves fences out, or of one that does not.
pub(crate) fn side(leaves_out: bool) {
    LEFT_OUT.with(|side| side.set(leaves_out));
}

/// As the product has it.
pub(crate) fn full_fence() {
    if !LEFT_OUT.with(Cell::get) {
        product::full_fence();
    }
}
