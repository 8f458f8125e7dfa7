//! The operations of a map, however it is reached.

use offmap_bpf::Errno;

/// What a batch operation did: as in the kernel, a failure and a valid count go together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Batch {
    /// Elements done.
    pub count: u32,
    /// The errno, if it failed or came to the end.
    pub result: Result<(), Errno>,
}

/// One map, as the workload drives it: an offloaded map, a host map, or any other that
/// claims bpf(2)'s behaviour.
///
/// Keys have the map's key size and values its user size (all CPUs of a per-CPU map), unless
/// the workload is after the error for a wrong length.
#[expect(
    clippy::missing_errors_doc,
    reason = "which errno comes when is what the workload compares"
)]
pub trait MapAccess {
    /// Bytes of the token with which a batch walk goes on.
    fn token_bytes(&self) -> usize;
    /// BPF_MAP_LOOKUP_ELEM.
    fn lookup(&self, key: &[u8], value: &mut [u8], flags: u64) -> Result<(), Errno>;
    /// BPF_MAP_UPDATE_ELEM.
    fn update(&self, key: &[u8], value: &[u8], flags: u64) -> Result<(), Errno>;
    /// BPF_MAP_DELETE_ELEM.
    fn delete(&self, key: &[u8]) -> Result<(), Errno>;
    /// BPF_MAP_GET_NEXT_KEY.
    fn get_next_key(&self, key: Option<&[u8]>, next: &mut [u8]) -> Result<(), Errno>;
    /// BPF_MAP_LOOKUP_AND_DELETE_ELEM.
    fn lookup_and_delete(&self, key: &[u8], value: &mut [u8], flags: u64) -> Result<(), Errno>;
    /// Looks up many keys; `results[i]` tells how key `i` fared.
    fn lookup_many(
        &self,
        keys: &[u8],
        values: &mut [u8],
        results: &mut [Result<(), Errno>],
    ) -> Result<(), Errno>;
    /// BPF_MAP_UPDATE_BATCH.
    fn update_batch(&self, keys: &[u8], values: &[u8], count: u32, elem_flags: u64) -> Batch;
    /// BPF_MAP_DELETE_BATCH.
    fn delete_batch(&self, keys: &[u8], count: u32) -> Batch;
    /// BPF_MAP_LOOKUP_BATCH, and BPF_MAP_LOOKUP_AND_DELETE_BATCH when `delete` is set: from
    /// the token `in_batch` on, with the next call's in `out_batch`.
    fn walk_batch(
        &self,
        in_batch: Option<&[u8]>,
        out_batch: &mut [u8],
        keys: &mut [u8],
        values: &mut [u8],
        count: u32,
        delete: bool,
    ) -> Batch;
}
