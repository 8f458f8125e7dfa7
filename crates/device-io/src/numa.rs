//! Binding memory to a NUMA node.
//!
//! Unsafe: the mbind system call, which no safe wrapper offers.
#![allow(unsafe_code, reason = "see above")]

use crate::IoError;
use std::io;

/// Binds the pages of a mapping to `node` before they are first touched.
pub(crate) fn bind(base: *mut u8, len: usize, node: u32) -> Result<(), IoError> {
    const BITS: usize = libc::c_ulong::BITS as usize;
    let mut mask = [0 as libc::c_ulong; 1024 / BITS];
    let index = node as usize;
    let Some(word) = mask.get_mut(index / BITS) else {
        return Err(IoError::NoNode { node });
    };
    *word |= 1 << (index % BITS);
    // SAFETY: mbind reads `mask`, which lives through the call and is as long as said, and
    // changes only the placement policy of the mapping, which the caller owns.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_mbind,
            base,
            len,
            libc::MPOL_BIND,
            mask.as_ptr(),
            // The kernel reads one bit less than it is told.
            mask.len() * BITS + 1,
            0,
        )
    };
    if rc == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        // No such node, or none with memory that this process may use.
        Some(libc::EINVAL) => Err(IoError::NoNode { node }),
        _ => Err(IoError::os("cannot bind DMA memory to a NUMA node", error)),
    }
}
