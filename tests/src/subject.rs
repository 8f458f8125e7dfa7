//! What a map under comparison answers: the kernel's, ours, or the model.

/// Success, or an error number.
pub type Answered = Result<(), i32>;

/// What one call of a batch walk did.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Walked {
    /// Elements returned.
    pub count: u32,
    /// The token with which the next call goes on: as long as the map's tokens are. One that the
    /// call did not write is the one that it was given, or zero.
    pub cursor: Vec<u8>,
    /// The call's result; ENOENT at the end of the map goes with a valid count.
    pub result: Answered,
}

/// A map as bpf(2) shows it to user space. Slices have the map's sizes; batch arrays hold at
/// least `count` elements.
pub trait Subject {
    /// Who answers, for messages.
    fn name(&self) -> &'static str;
    /// BPF_MAP_LOOKUP_ELEM.
    fn lookup(&mut self, key: &[u8], value: &mut [u8], flags: u64) -> Answered;
    /// BPF_MAP_UPDATE_ELEM.
    fn update(&mut self, key: &[u8], value: &[u8], flags: u64) -> Answered;
    /// BPF_MAP_DELETE_ELEM.
    fn delete(&mut self, key: &[u8]) -> Answered;
    /// BPF_MAP_GET_NEXT_KEY.
    fn get_next_key(&mut self, key: Option<&[u8]>, next: &mut [u8]) -> Answered;
    /// BPF_MAP_LOOKUP_AND_DELETE_ELEM.
    fn lookup_and_delete(&mut self, key: &[u8], value: &mut [u8], flags: u64) -> Answered;
    /// BPF_MAP_UPDATE_BATCH: elements done, and the result.
    fn update_batch(
        &mut self,
        keys: &[u8],
        values: &[u8],
        count: u32,
        elem_flags: u64,
    ) -> (u32, Answered);
    /// BPF_MAP_DELETE_BATCH: elements done, and the result.
    fn delete_batch(&mut self, keys: &[u8], count: u32, elem_flags: u64) -> (u32, Answered);
    /// BPF_MAP_LOOKUP_BATCH, or BPF_MAP_LOOKUP_AND_DELETE_BATCH when `delete` is set, from the
    /// token `cursor` on.
    fn walk_batch(
        &mut self,
        cursor: Option<&[u8]>,
        keys: &mut [u8],
        values: &mut [u8],
        count: u32,
        elem_flags: u64,
        delete: bool,
    ) -> Walked;
    /// BPF_MAP_FREEZE.
    fn freeze(&mut self) -> Answered;
}
