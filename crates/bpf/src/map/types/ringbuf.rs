//! RINGBUF: what may be created (`kernel/bpf/ringbuf.c`).

use super::{check_flags, invalid};
use crate::caller::Caller;
use crate::device::OffloadCommands;
use crate::error::Result;
use crate::map::ops::{AllocContext, MapOps, MapTypeOps, Token};
use crate::map::ringbuf::{HostRingbuf, PAGE_BYTES};
use crate::uapi::{MapCreateAttr, MapFlags};
use std::sync::Arc;

/// RINGBUF.
pub(super) static RINGBUF: MapTypeOps = MapTypeOps {
    // The kernel's type has no `map_alloc_check`: everything is checked in `map_alloc`, after
    // the capabilities, and not at all for a map on a device, which checks for itself.
    alloc_check: |_: &MapCreateAttr, _: &Caller| Ok(()),
    alloc: ringbuf_alloc,
    needs_cap_bpf: false,
    commands: OffloadCommands::empty(),
    token: Token::LastKey,
};

/// `ringbuf_map_alloc`.
///
/// The greatest size that `max_entries` can say is 2^31; the kernel's own limit, 64 GiB, is
/// beyond what its 32 bits hold, so that E2BIG is never seen.
fn ringbuf_alloc(attr: &MapCreateAttr, _context: &AllocContext) -> Result<Arc<dyn MapOps>> {
    check_flags(attr, MapFlags::NUMA_NODE)?;
    for (name, size) in [("key_size", attr.key_size), ("value_size", attr.value_size)] {
        if size != 0 {
            return Err(invalid(format!(
                "{name} {size}: a ring buffer has no elements and wants 0"
            )));
        }
    }
    let size = attr.max_entries;
    if !size.is_power_of_two() || !u64::from(size).is_multiple_of(PAGE_BYTES) {
        return Err(invalid(format!(
            "max_entries {size}: the size of a ring buffer in bytes is a power of two, and at \
             least a page of {PAGE_BYTES}"
        )));
    }
    Ok(Arc::new(HostRingbuf::new(size)?))
}
