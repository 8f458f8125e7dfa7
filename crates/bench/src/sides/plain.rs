//! The yardstick: a plain hashbrown table with the device's own hash, keys and values in the
//! table, their sizes known to the compiler.

use super::Side;
use crate::error::{Measured, Unavailable};
use crate::workload::{Op, Trace, Workload};
use hashbrown::HashTable;
use offmap_abi::hash::KeyHash;
use std::hint::black_box;
use std::sync::Arc;

/// Seed of its hash.
const SEED: u64 = 0x5eed;

struct Plain<const K: usize, const V: usize> {
    table: HashTable<([u8; K], [u8; V])>,
    hash: KeyHash,
    op: Op,
    trace: Arc<Trace>,
}

impl<const K: usize, const V: usize> Plain<K, V> {
    fn new(workload: &Workload, trace: &Arc<Trace>) -> Self {
        let mut this = Self {
            table: HashTable::with_capacity(workload.max_entries()),
            hash: KeyHash::new(SEED),
            op: workload.op,
            trace: Arc::clone(trace),
        };
        for key in trace.present().chunks_exact(K) {
            this.insert(array(key));
        }
        this
    }

    #[inline(always)]
    fn insert(&mut self, key: &[u8; K]) {
        let hash = &self.hash;
        let value = [self.trace.value[0]; V];
        self.table
            .insert_unique(hash.hash(key), (*key, value), |(k, _)| hash.hash(k));
    }

    #[inline(always)]
    fn remove(&mut self, key: &[u8; K]) -> bool {
        match self
            .table
            .find_entry(self.hash.hash(key), |(k, _)| k == key)
        {
            Ok(entry) => {
                entry.remove();
                true
            }
            Err(_) => false,
        }
    }

    #[inline(always)]
    fn lookup(&self, key: &[u8; K], out: &mut [u8; V]) -> bool {
        match self.table.find(self.hash.hash(key), |(k, _)| k == key) {
            Some((_, value)) => {
                *out = *value;
                true
            }
            None => false,
        }
    }

    #[inline(always)]
    fn overwrite(&mut self, key: &[u8; K], value: &[u8; V]) -> bool {
        match self.table.find_mut(self.hash.hash(key), |(k, _)| k == key) {
            Some(entry) => {
                entry.1 = *value;
                true
            }
            None => false,
        }
    }
}

#[inline(always)]
fn array<const K: usize>(key: &[u8]) -> &[u8; K] {
    // All keys of a trace have the size that the table was made for.
    key.try_into().unwrap_or(&[0; K])
}

impl<const K: usize, const V: usize> Side for Plain<K, V> {
    fn prepare(&mut self, from: usize, n: usize) -> Measured<()> {
        let trace = Arc::clone(&self.trace);
        match self.op {
            Op::Insert => trace.missing(from, n, |key| {
                self.remove(array(key));
            }),
            Op::Delete => trace.missing(from, n, |key| {
                if self
                    .table
                    .find(self.hash.hash(key), |(k, _)| k == key)
                    .is_none()
                {
                    self.insert(array(key));
                }
            }),
            _ => {}
        }
        Ok(())
    }

    fn run(&mut self, from: usize, n: usize) -> Measured<usize> {
        let trace = Arc::clone(&self.trace);
        let mut out = [0; V];
        let value = black_box([self.trace.value[0]; V]);
        let mut wrong = 0;
        match self.op {
            Op::Lookup | Op::LookupBatch => trace.ordered(from, n, |key| {
                wrong += usize::from(!self.lookup(array(key), &mut out));
                black_box(&out);
            }),
            Op::Miss => trace.missing(from, n, |key| {
                wrong += usize::from(self.lookup(array(key), &mut out));
            }),
            Op::Overwrite | Op::UpdateBatch => trace.ordered(from, n, |key| {
                wrong += usize::from(!self.overwrite(array(key), &value));
            }),
            Op::Insert => trace.missing(from, n, |key| self.insert(array(key))),
            Op::Delete => trace.missing(from, n, |key| {
                wrong += usize::from(!self.remove(array(key)));
            }),
            Op::Mix => {
                let mut at = from;
                trace.ordered(from, n, |key| {
                    let done = match at % 10 {
                        0 => self.overwrite(array(key), &value),
                        _ => self.lookup(array(key), &mut out),
                    };
                    wrong += usize::from(!done);
                    black_box(&out);
                    at += 1;
                });
            }
            Op::Next | Op::Dump | Op::Recorded => {
                return Err(Unavailable::new("a plain hash table has no walk by key"));
            }
        }
        match wrong {
            0 => Ok(n),
            _ => Err(Unavailable::new("the plain table lost a key")),
        }
    }

    fn most(&self) -> usize {
        match self.op {
            Op::Insert | Op::Delete => self.trace.absent_len(),
            _ => usize::MAX,
        }
    }
}

/// The yardstick for a workload.
///
/// # Errors
///
/// For sizes that it is not compiled for.
pub fn plain(workload: &Workload, trace: &Arc<Trace>) -> Measured<Box<dyn Side>> {
    macro_rules! sizes {
        ($($k:literal: $($v:literal)*),*) => {
            match (workload.key_size, workload.value_size) {
                $($(($k, $v) => Ok(Box::new(Plain::<$k, $v>::new(workload, trace)) as Box<dyn Side>),)*)*
                (k, v) => Err(Unavailable::new(format!(
                    "the yardstick is compiled for keys of 4, 8, 16 and 64 bytes and values of 8, 64, 256 \
                     and 1,024 bytes, not for {k} and {v}"
                ))),
            }
        };
    }
    sizes!(4: 8 64 256 1024, 8: 8 64 256 1024, 16: 8 64 256 1024, 64: 8 64 256 1024)
}
