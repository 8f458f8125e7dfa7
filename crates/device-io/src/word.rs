//! The one place that turns an address in shared memory into an atomic word.
//!
//! Unsafe: a pointer into shared memory becomes an atomic.
#![allow(unsafe_code, reason = "see above")]

use std::sync::atomic::AtomicU64;

/// The aligned 8-byte word at `offset` of the `len` bytes from `base`.
///
/// # Panics
///
/// If `offset` is not 8-byte aligned or the word ends past `len`.
///
/// # Safety
///
/// `base` must be 8-byte aligned and valid for reads and writes of `len` bytes for the
/// lifetime `'a`, and this process must access those bytes only through atomics or through
/// raw copies, never through a Rust reference to plain data.
#[inline]
pub(crate) unsafe fn at<'a>(base: *mut u8, len: usize, offset: usize) -> &'a AtomicU64 {
    assert!(
        offset.is_multiple_of(8) && offset < len && len - offset >= 8,
        "8-byte access at {offset:#x} of {len:#x} bytes of shared memory"
    );
    // SAFETY: in bounds and aligned, as asserted; valid as the caller promises.
    let word = unsafe { base.add(offset) };
    // SAFETY: likewise, and every access to it in this process is atomic or a raw copy.
    unsafe { AtomicU64::from_ptr(word.cast()) }
}

/// Words of a [`line`].
pub(crate) const LINE_WORDS: usize = 8;

/// The 64 bytes at `offset` of the `len` bytes from `base`, as words. They are checked once for all.
///
/// # Panics
///
/// If `offset` is not 8-byte aligned or the bytes end past `len`.
///
/// # Safety
///
/// As [`at`].
#[inline(always)]
pub(crate) unsafe fn line<'a>(
    base: *mut u8,
    len: usize,
    offset: usize,
) -> &'a [AtomicU64; LINE_WORDS] {
    const BYTES: usize = 8 * LINE_WORDS;
    assert!(
        offset.is_multiple_of(8) && offset < len && len - offset >= BYTES,
        "{BYTES}-byte access at {offset:#x} of {len:#x} bytes of shared memory"
    );
    // SAFETY: in bounds and aligned, as asserted; valid as the caller promises.
    let first = unsafe { base.add(offset) };
    // SAFETY: likewise for all eight, of which an array of atomics has the layout; every access
    // to them in this process is atomic or a raw copy.
    unsafe { &*first.cast() }
}
