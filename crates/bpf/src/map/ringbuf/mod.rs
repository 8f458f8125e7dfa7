//! RINGBUF (`kernel/bpf/ringbuf.c`): many producers, one consumer position, records of any
//! length in the order of their reservation.
//!
//! * `format`: headers and lengths, to the byte the kernel's.
//! * `host`: a ring in host memory, with its producers' side.
//! * `producer`: the helpers of programs; `consumer`: user space's side, over any
//!   [`RingBuffer`].

mod consumer;
mod format;
mod host;
mod producer;

pub(crate) use consumer::Consumers;
pub use consumer::RingBufferReader;
pub(crate) use format::PAGE_BYTES;
pub use format::RingHeader;
pub(crate) use host::HostRing;
pub use producer::{Reservation, RingBufferProducer};

use super::ops::{MapOps, NO_SUCH_OPERATION};
use crate::device::{BatchOutcome, RingBuffer};
use crate::error::Result;
use std::sync::Arc;

/// A RINGBUF map in host memory. It has no elements, so that no element command finds any.
pub(crate) struct HostRingbuf {
    ring: Arc<HostRing>,
    consumers: Arc<Consumers>,
}

impl HostRingbuf {
    /// See [`HostRing::new`].
    pub(crate) fn new(data_bytes: u32) -> Result<Self> {
        let ring = Arc::new(HostRing::new(data_bytes)?);
        let consumers = Consumers::new(Arc::clone(&ring) as Arc<dyn RingBuffer>);
        Ok(Self {
            ring,
            consumers: Arc::new(consumers),
        })
    }
}

impl MapOps for HostRingbuf {
    fn lookup(&self, _key: &[u8], _value: &mut [u8], _flags: u64) -> Result<()> {
        Err(NO_SUCH_OPERATION)
    }

    fn update(&self, _key: &[u8], _value: &[u8], _flags: u64) -> Result<()> {
        Err(NO_SUCH_OPERATION)
    }

    fn delete(&self, _key: &[u8]) -> Result<()> {
        Err(NO_SUCH_OPERATION)
    }

    fn get_next_key(&self, _key: Option<&[u8]>, _next: &mut [u8]) -> Result<()> {
        Err(NO_SUCH_OPERATION)
    }

    fn checks_update_flags(&self) -> bool {
        false
    }

    fn walk_batch(
        &self,
        _in_batch: Option<&[u8]>,
        _out_batch: &mut [u8],
        _keys: &mut [u8],
        _values: &mut [u8],
        _count: u32,
        _delete: bool,
    ) -> BatchOutcome {
        BatchOutcome::failed(NO_SUCH_OPERATION)
    }

    fn mem_usage(&self) -> u64 {
        self.ring.mem_usage()
    }

    fn ring_consumers(&self) -> Result<Arc<Consumers>> {
        Ok(Arc::clone(&self.consumers))
    }

    fn ring_producer(&self) -> Result<Arc<HostRing>> {
        Ok(Arc::clone(&self.ring))
    }
}
