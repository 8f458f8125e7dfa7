//! Planted bugs ([`Mutation`]) of walks and dumps.

use super::{Memory, Store, What};
use crate::mutation::Mutation;
use crate::rng::Rng;
use offmap_abi::submission::{BatchBody, ElementBody};
use offmap_abi::{Completion, IoOpcode, Status, Submission, SubmissionFlags};

/// Completions after which a deleted key may come back: its host knows by then that it is gone.
const REVIVED_AFTER: u64 = 40;

/// A key that was deleted.
pub(super) struct Deleted {
    map: u32,
    key: Vec<u8>,
    /// The completion of the delete, as all are counted.
    at: u64,
}

/// An array of what a dump returns: where its first element is, and the bytes of one.
#[derive(Clone, Copy)]
struct Array {
    iova: u64,
    len: usize,
}

impl Array {
    fn element(self, data: &[Store], index: usize) -> Vec<u8> {
        let first = self.iova + (index * self.len) as u64;
        let mut all = vec![0; self.len];
        for store in data {
            let What::Bytes { iova, len, bytes } = &store.what else {
                continue;
            };
            for (byte, at) in bytes[..usize::from(*len)].iter().zip(*iova..) {
                let place = at.checked_sub(first).map(|n| n as usize);
                if let Some(to) = place.and_then(|place| all.get_mut(place)) {
                    *to = *byte;
                }
            }
        }
        all
    }

    fn set(self, data: &mut [Store], index: usize, element: &[u8]) {
        let first = self.iova + (index * self.len) as u64;
        for store in data {
            let What::Bytes { iova, len, bytes } = &mut store.what else {
                continue;
            };
            for (byte, at) in bytes[..usize::from(*len)].iter_mut().zip(*iova..) {
                let place = at.checked_sub(first).map(|n| n as usize);
                if let Some(from) = place.and_then(|place| element.get(place)) {
                    *byte = *from;
                }
            }
        }
    }
}

impl Memory {
    /// What a walk or a dump returns.
    pub(super) fn spoil_walk(
        &mut self,
        command: &Submission,
        completion: &mut Completion,
        data: &mut [Store],
        rng: &mut Rng,
    ) {
        let (opcode, status) = (IoOpcode(command.opcode), completion.status());
        self.completions += 1;
        if opcode == IoOpcode::Delete && status == Status::Success {
            self.deleted(command);
        }
        if opcode == IoOpcode::GetNext
            && status == Status::Success
            && self.plant(Mutation::WalkEndsEarly, rng, 8)
        {
            completion.status = Status::NotFound.0.into();
            completion.count = 0.into();
        }
        let valid = matches!(status, Status::Success | Status::NotFound);
        if opcode != IoOpcode::BatchDump || !valid {
            return;
        }
        let body: BatchBody = command.body();
        let (room, count) = (body.count.get() as usize, completion.count.get() as usize);
        let keys = Array {
            iova: body.keys.get(),
            len: body.key_len.get() as usize,
        };
        let values = Array {
            iova: body.values.get(),
            len: body.value_len.get() as usize,
        };
        if count > 0 && self.plant(Mutation::DumpSkipsKey, rng, 4) {
            // The first one, which the next dump does not come back to.
            for array in [keys, values] {
                for index in 1..count {
                    let next = array.element(data, index);
                    array.set(data, index - 1, &next);
                }
            }
            completion.count = (count as u32 - 1).into();
        }
        if (1..room).contains(&count) && self.plant(Mutation::DumpRepeats, rng, 4) {
            for array in [keys, values] {
                let first = array.element(data, 0);
                array.set(data, count, &first);
            }
            completion.count = (count as u32 + 1).into();
        }
        if count < room
            && let Some(key) = self.long_deleted(command, keys.len)
        {
            self.mutated += 1;
            keys.set(data, count, &key);
            values.set(data, count, &vec![0; values.len]);
            completion.count = (count as u32 + 1).into();
        }
    }

    /// A key is gone.
    fn deleted(&mut self, delete: &Submission) {
        let body: ElementBody = delete.body();
        let inline = delete.flags().contains(SubmissionFlags::KEY_INLINE);
        if self.mutation != Some(Mutation::DumpRevives) || !inline {
            return;
        }
        if let Some(key) = body.key.get(..body.key_len.get() as usize) {
            self.gone.push(Deleted {
                map: delete.map().0,
                key: key.into(),
                at: self.completions,
            });
        }
    }

    /// A command may store keys that were deleted.
    pub(super) fn forget_deleted(&mut self, command: &Submission) {
        let map = command.map().0;
        let stores = matches!(
            IoOpcode(command.opcode),
            IoOpcode::Update | IoOpcode::BatchUpdate
        );
        if stores && !self.gone.is_empty() {
            let body: ElementBody = command.body();
            let is_one = IoOpcode(command.opcode) == IoOpcode::Update
                && command.flags().contains(SubmissionFlags::KEY_INLINE);
            let same = |key: &[u8]| !is_one || body.key.starts_with(key);
            self.gone.retain(|d| d.map != map || !same(&d.key));
        }
    }

    /// A key of a dump's map that was deleted long ago.
    fn long_deleted(&self, dump: &Submission, len: usize) -> Option<Vec<u8>> {
        let long = |d: &&Deleted| self.completions - d.at > REVIVED_AFTER;
        let of = |d: &&Deleted| d.map == dump.map().0 && d.key.len() == len;
        let found = self.gone.iter().filter(long).find(of);
        found.map(|d| d.key.clone())
    }
}
