//! Random sequences on a directory tree with pins: the running kernel's bpffs, and ours.
//!
//! Both are mounted at `/sys/fs/bpf` of a name space that has nothing else, so that absolute
//! paths and `..` mean the same on both.

mod ops;
mod ours;
mod theirs;

pub use ops::{MAPS, Op, sequence};
pub use ours::Ours;
pub use theirs::Theirs;

/// What an operation came to, as far as both sides can know it: the bytes of a link, a stat,
/// names in their order, or which map a descriptor is of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Nothing to tell.
    Done,
    /// Bytes.
    Bytes(Vec<u8>),
    /// Kind (`d`, `f` or `l`), permission bits, links, user and group.
    Stat(char, u32, u64, u32, u32),
    /// Names with their kinds, in order.
    Names(Vec<(Vec<u8>, char)>),
    /// The element at 0, and what an update with BPF_NOEXIST said.
    Map(Result<u64, i32>, Result<(), i32>),
}

/// One side.
pub trait Side {
    /// Does one operation; the error is its number.
    fn run(&mut self, op: &Op) -> Result<Outcome, i32>;
}

/// `EROFS`: the kernel's side cannot write outside the bpffs, ours has no such files; they need
/// not agree on what they say about it.
const EROFS: i32 = 30;

/// Whether the two sides agree. A name outside the bpffs that is renamed to itself stays what
/// it is.
pub fn agree(op: &Op, theirs: &Result<Outcome, i32>, ours: &Result<Outcome, i32>) -> bool {
    theirs == ours || *theirs == Err(EROFS) && (ours.is_err() || matches!(op, Op::Rename(..)))
}
