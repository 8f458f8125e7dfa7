//! The full fence of abi §10 (rules N1, N2, N4 and B3), once for all who keep to them.
//!
//! It is all that this file has, and it names no crate of atomics, so that the litmus tests compile
//! it over loom's: whoever weakens it breaks them, where the orders of x86 and the shortness of the
//! window would hide it from every test on real memory.

use crate::atomic::{Ordering, fence};

/// No later load of a shared word passes an earlier store of one, of those that the caller's
/// thread makes: what it stored is visible to the other side before it looks.
#[inline(always)]
pub fn full_fence() {
    fence(Ordering::SeqCst);
}
