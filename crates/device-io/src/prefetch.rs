//! Asking the processor for a cache line before it is needed.
//!
//! Unsafe: the instruction is a target feature that every x86-64 processor has, and that the language
//! wants to be told of.
#![allow(unsafe_code, reason = "see above")]

/// Has the processor load the line in which `bytes` begin, without waiting for it. On processors other
/// than x86-64 nothing happens.
#[inline(always)]
pub fn prefetch(bytes: &[u8]) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: SSE is part of the x86-64 baseline, and a prefetch reads nothing that the program
        // can see and faults at no address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(bytes.as_ptr().cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = bytes;
}
