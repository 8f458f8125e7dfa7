//! The map core's open files as the workload's maps.

use super::{Batch, MapAccess};
use offmap_bpf::device::BatchOutcome;
use offmap_bpf::{Errno, MapFile};

impl From<BatchOutcome> for Batch {
    fn from(outcome: BatchOutcome) -> Self {
        Self {
            count: outcome.count,
            result: outcome.result.map_err(|error| error.errno()),
        }
    }
}

impl MapAccess for MapFile {
    fn token_bytes(&self) -> usize {
        self.token_bytes()
    }

    fn lookup(&self, key: &[u8], value: &mut [u8], flags: u64) -> Result<(), Errno> {
        self.lookup(key, value, flags).map_err(|e| e.errno())
    }

    fn update(&self, key: &[u8], value: &[u8], flags: u64) -> Result<(), Errno> {
        self.update(key, value, flags).map_err(|e| e.errno())
    }

    fn delete(&self, key: &[u8]) -> Result<(), Errno> {
        self.delete(key).map_err(|e| e.errno())
    }

    fn get_next_key(&self, key: Option<&[u8]>, next: &mut [u8]) -> Result<(), Errno> {
        self.get_next_key(key, next).map_err(|e| e.errno())
    }

    fn lookup_and_delete(&self, key: &[u8], value: &mut [u8], flags: u64) -> Result<(), Errno> {
        self.lookup_and_delete(key, value, flags)
            .map_err(|e| e.errno())
    }

    fn lookup_many(
        &self,
        keys: &[u8],
        values: &mut [u8],
        results: &mut [Result<(), Errno>],
    ) -> Result<(), Errno> {
        self.lookup_many(keys, values, results)
            .map_err(|e| e.errno())
    }

    fn update_batch(&self, keys: &[u8], values: &[u8], count: u32, elem_flags: u64) -> Batch {
        self.update_batch(keys, values, count, elem_flags, 0).into()
    }

    fn delete_batch(&self, keys: &[u8], count: u32) -> Batch {
        self.delete_batch(keys, count, 0, 0).into()
    }

    fn walk_batch(
        &self,
        in_batch: Option<&[u8]>,
        out_batch: &mut [u8],
        keys: &mut [u8],
        values: &mut [u8],
        count: u32,
        delete: bool,
    ) -> Batch {
        if delete {
            self.lookup_and_delete_batch(in_batch, out_batch, keys, values, count, 0, 0)
                .into()
        } else {
            self.lookup_batch(in_batch, out_batch, keys, values, count, 0, 0)
                .into()
        }
    }
}
