//! A write to a recoverable map, as the journal has it.

use super::journal::Shape;
use offmap_driver::Status;
use std::borrow::Cow;

/// What a write does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// Stores values under keys.
    Put,
    /// Removes keys.
    Remove,
    /// Removes a key and returns its value.
    Take,
    /// Adds a value to a queue or stack.
    Push,
    /// Removes a value from a queue or stack and returns it.
    Pop,
}

/// A write: one element, or a batch of puts or removals.
#[derive(Clone, Debug)]
pub(super) struct Change<'a> {
    pub(super) kind: Kind,
    /// BPF_ANY, BPF_NOEXIST or BPF_EXIST.
    pub(super) flags: u64,
    key_bytes: usize,
    value_bytes: usize,
    count: usize,
    /// Packed; the caller's until the write's outcome is unknown.
    keys: Cow<'a, [u8]>,
    values: Cow<'a, [u8]>,
}

impl<'a> Change<'a> {
    /// The write of `count` elements of a map of this shape. `keys` and `values` are packed, and
    /// empty where the write has none.
    pub(super) fn new(
        kind: Kind,
        shape: &Shape,
        keys: &'a [u8],
        values: &'a [u8],
        count: usize,
        flags: u64,
    ) -> Self {
        Self {
            kind,
            flags,
            key_bytes: keys.len().checked_div(count).unwrap_or(0),
            value_bytes: if values.is_empty() {
                0
            } else {
                shape.value_bytes
            },
            count,
            keys: Cow::Borrowed(keys),
            values: Cow::Borrowed(values),
        }
    }

    /// Elements.
    pub(super) const fn count(&self) -> usize {
        self.count
    }

    /// The key of an element.
    pub(super) fn key(&self, i: usize) -> &[u8] {
        &self.keys[i * self.key_bytes..][..self.key_bytes]
    }

    /// The value of an element.
    pub(super) fn value(&self, i: usize) -> &[u8] {
        &self.values[i * self.value_bytes..][..self.value_bytes]
    }

    /// The same with memory of its own: it outlives the call that made it.
    pub(super) fn into_owned(self) -> Change<'static> {
        Change {
            kind: self.kind,
            flags: self.flags,
            key_bytes: self.key_bytes,
            value_bytes: self.value_bytes,
            count: self.count,
            keys: Cow::Owned(self.keys.into_owned()),
            values: Cow::Owned(self.values.into_owned()),
        }
    }
}

/// What a change did.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Executed {
    /// Elements that had their effect.
    pub(super) count: usize,
    /// Success, or why the element after those had none.
    pub(super) status: Status,
    /// What a removal returned.
    pub(super) value: Option<Box<[u8]>>,
}
