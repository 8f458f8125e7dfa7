//! What a profile makes of a host map: the reference that an offloaded map is compared with.
//!
//! Elements come from the host map; commands that the profile does not lift fail as in the
//! kernel's core, and error numbers that the profile changes are changed.

use crate::workload::{Batch, MapAccess};
use offmap_bpf::device::OffloadCommands;
use offmap_bpf::uapi::{BPF_F_LOCK, MapType};
use offmap_bpf::{Errno, MapFile};
use offmap_driver::Status;
use offmap_offload::{Operation, Profile};

/// A host map that answers as an offloaded one under a profile.
pub(crate) struct Expected<'a> {
    host: &'a MapFile,
    profile: &'a Profile,
    commands: OffloadCommands,
}

impl<'a> Expected<'a> {
    /// `commands` are those that the device's rules lift.
    pub(crate) const fn new(
        host: &'a MapFile,
        profile: &'a Profile,
        commands: OffloadCommands,
    ) -> Self {
        Self {
            host,
            profile,
            commands,
        }
    }

    /// The host map's answer, with the number that the profile gives for what it stands for.
    fn under_profile(
        &self,
        operation: Operation,
        flags: u64,
        answer: Result<(), Errno>,
    ) -> Result<(), Errno> {
        let map_type = self.host.map_type();
        let indexed = matches!(map_type, MapType::ARRAY | MapType::PERCPU_ARRAY);
        answer.map_err(|errno| {
            let status = match (indexed, operation, errno) {
                (true, Operation::Lookup, Errno::ENOENT)
                | (true, Operation::Update, Errno::E2BIG) => Status::OutOfRange,
                (true, Operation::Delete, Errno::EINVAL) => Status::Unsupported,
                (_, _, Errno::ENOENT) => Status::NotFound,
                (_, Operation::Update, Errno::EEXIST) => Status::Exists,
                (_, Operation::Update, Errno::E2BIG) => Status::Full,
                _ => return errno,
            };
            let changed = self.profile.errno(operation, map_type, flags, status);
            changed.unwrap_or(errno)
        })
    }

    fn batch_under_profile(&self, operation: Operation, flags: u64, done: Batch) -> Batch {
        Batch {
            result: self.under_profile(operation, flags, done.result),
            ..done
        }
    }

    /// The answer to a batch call that the profile does not lift; lengths come first.
    fn refused(&self, command: OffloadCommands, lengths_fit: bool) -> Option<Batch> {
        let failed = |errno| {
            Some(Batch {
                count: 0,
                result: Err(errno),
            })
        };
        match (self.commands.contains(command), lengths_fit) {
            (true, _) => None,
            (false, true) => failed(Errno::ENOTSUPP),
            (false, false) => failed(Errno::EFAULT),
        }
    }

    fn arrays_fit(&self, keys: usize, values: Option<usize>, count: u32) -> bool {
        let count = count as usize;
        keys == count * self.host.key_size()
            && values.is_none_or(|values| values == count * self.host.value_bytes())
    }
}

impl MapAccess for Expected<'_> {
    fn token_bytes(&self) -> usize {
        self.host.token_bytes()
    }

    fn lookup(&self, key: &[u8], value: &mut [u8], flags: u64) -> Result<(), Errno> {
        let answer = MapAccess::lookup(self.host, key, value, flags);
        self.under_profile(Operation::Lookup, flags, answer)
    }

    fn update(&self, key: &[u8], value: &[u8], flags: u64) -> Result<(), Errno> {
        let answer = MapAccess::update(self.host, key, value, flags);
        self.under_profile(Operation::Update, flags, answer)
    }

    fn delete(&self, key: &[u8]) -> Result<(), Errno> {
        let answer = MapAccess::delete(self.host, key);
        self.under_profile(Operation::Delete, 0, answer)
    }

    fn get_next_key(&self, key: Option<&[u8]>, next: &mut [u8]) -> Result<(), Errno> {
        let answer = MapAccess::get_next_key(self.host, key, next);
        self.under_profile(Operation::NextKey, 0, answer)
    }

    fn lookup_and_delete(&self, key: &[u8], value: &mut [u8], flags: u64) -> Result<(), Errno> {
        if self.commands.contains(OffloadCommands::LOOKUP_AND_DELETE) {
            let answer = MapAccess::lookup_and_delete(self.host, key, value, flags);
            return self.under_profile(Operation::LookupAndDelete, flags, answer);
        }
        if !self.arrays_fit(key.len(), Some(value.len()), 1) {
            return Err(Errno::EFAULT);
        }
        // Flags that are unknown, and a lock that no value here has.
        let bad = flags & !BPF_F_LOCK != 0 || flags != 0;
        Err(if bad { Errno::EINVAL } else { Errno::ENOTSUPP })
    }

    fn lookup_many(
        &self,
        keys: &[u8],
        values: &mut [u8],
        results: &mut [Result<(), Errno>],
    ) -> Result<(), Errno> {
        MapAccess::lookup_many(self.host, keys, values, results)?;
        for result in results {
            *result = self.under_profile(Operation::Lookup, 0, *result);
        }
        Ok(())
    }

    fn update_batch(&self, keys: &[u8], values: &[u8], count: u32, elem_flags: u64) -> Batch {
        let fit = self.arrays_fit(keys.len(), Some(values.len()), count);
        if let Some(refused) = self.refused(OffloadCommands::UPDATE_BATCH, fit) {
            return refused;
        }
        let done = MapAccess::update_batch(self.host, keys, values, count, elem_flags);
        self.batch_under_profile(Operation::Update, elem_flags, done)
    }

    fn delete_batch(&self, keys: &[u8], count: u32) -> Batch {
        let fit = self.arrays_fit(keys.len(), None, count);
        if let Some(refused) = self.refused(OffloadCommands::DELETE_BATCH, fit) {
            return refused;
        }
        let done = MapAccess::delete_batch(self.host, keys, count);
        self.batch_under_profile(Operation::Delete, 0, done)
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
        let command = if delete {
            OffloadCommands::LOOKUP_AND_DELETE_BATCH
        } else {
            OffloadCommands::LOOKUP_BATCH
        };
        let fit = self.arrays_fit(keys.len(), Some(values.len()), count);
        if let Some(refused) = self.refused(command, fit) {
            return refused;
        }
        MapAccess::walk_batch(self.host, in_batch, out_batch, keys, values, count, delete)
    }
}
