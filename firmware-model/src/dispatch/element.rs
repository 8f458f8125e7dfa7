//! Commands on one element (abi §7.1).
//!
//! Checks, in order: the map handle, the flags, the lengths against the map, that an inline
//! operand fits its field; then operands are read, and only then does the table change.
//! Fields that a command does not use are ignored.

use super::{Io, no_flags, update_flags};
use crate::HostMemory;
use crate::access::Access;
use crate::maps::Map;
use crate::table::{NextKey, ValueWrite};
use offmap_abi::completion::INLINE_RESULT_BYTES;
use offmap_abi::submission::{ElementBody, INLINE_KEY_BYTES, INLINE_VALUE_BYTES, IovaRef};
use offmap_abi::{Completion, DevAddr, Status, Submission, SubmissionFlags};

/// Reads a key: from the descriptor, or by DMA to `scratch`.
#[inline(always)]
fn read_key<'a>(
    command: &Submission,
    body: &'a ElementBody,
    map: &Map,
    host: &mut impl HostMemory,
    scratch: &'a mut [u8],
) -> Result<&'a [u8], Status> {
    let len = map.key_size();
    if command.flags().contains(SubmissionFlags::KEY_INLINE) {
        return Ok(&body.key[..len]);
    }
    let key = scratch.get_mut(..len).ok_or(Status::Internal)?;
    host.read(IovaRef::iova_of(&body.key), key)?;
    Ok(key)
}

/// Checks the length of a key and that it fits where it stands.
#[inline(always)]
fn check_key(command: &Submission, body: &ElementBody, map: &Map) -> Result<(), Status> {
    if body.key_len.get() != map.spec.key_size {
        return Err(Status::InvalidLength);
    }
    let inline = command.flags().contains(SubmissionFlags::KEY_INLINE);
    if inline && map.key_size() > INLINE_KEY_BYTES {
        return Err(Status::InvalidField);
    }
    Ok(())
}

/// Checks that there is room for a result of `len` bytes.
#[inline(always)]
fn check_room(command: &Submission, body: &ElementBody, len: usize) -> Result<(), Status> {
    if (body.value_len.get() as usize) < len {
        return Err(Status::InvalidLength);
    }
    let inline = command.flags().contains(SubmissionFlags::VALUE_INLINE);
    if inline && len > INLINE_RESULT_BYTES {
        return Err(Status::InvalidField);
    }
    Ok(())
}

/// Returns the `len` bytes of device memory at `at`: in the payload, or by DMA.
#[inline(always)]
fn deliver(
    command: &Submission,
    body: &ElementBody,
    access: &mut impl Access,
    host: &mut impl HostMemory,
    at: DevAddr,
    len: usize,
) -> Result<Completion, Status> {
    let done = Completion::new(command.request(), Status::Success);
    if command.flags().contains(SubmissionFlags::VALUE_INLINE) {
        return Ok(access.with_bytes(at, len, |bytes| done.with_payload(bytes))?);
    }
    let iova = IovaRef::iova_of(&body.value);
    access.with_bytes(at, len, |bytes| host.write(iova, bytes))??;
    Ok(done)
}

impl<A: Access, H: HostMemory> Io<'_, A, H> {
    /// LOOKUP.
    #[inline(always)]
    pub(super) fn lookup(&mut self, command: &Submission) -> Result<Completion, Status> {
        let body: ElementBody = command.body();
        let map = self.maps.get(command.map())?;
        no_flags(body.map_flags.get())?;
        check_key(command, &body, map)?;
        check_room(command, &body, map.value_bytes())?;
        let key = read_key(command, &body, map, self.host, &mut self.scratch.keys)?;
        let at = map.table.find(self.access, key)?;
        let len = map.value_bytes();
        deliver(command, &body, self.access, self.host, at, len)
    }

    /// UPDATE.
    pub(super) fn update(&mut self, command: &Submission) -> Result<Completion, Status> {
        let body: ElementBody = command.body();
        let map = self.maps.get(command.map())?;
        let flags = update_flags(body.map_flags.get())?;
        check_key(command, &body, map)?;
        let len = map.value_bytes();
        if body.value_len.get() as usize != len {
            return Err(Status::InvalidLength);
        }
        let inline = command.flags().contains(SubmissionFlags::VALUE_INLINE);
        if inline && len > INLINE_VALUE_BYTES {
            return Err(Status::InvalidField);
        }
        let key = read_key(command, &body, map, self.host, &mut self.scratch.keys)?;
        let value: &[u8] = if inline {
            &body.value[..len]
        } else {
            let value = self.scratch.values.get_mut(..len).ok_or(Status::Internal)?;
            self.host.read(IovaRef::iova_of(&body.value), value)?;
            value
        };
        map.table
            .update(self.access, key, ValueWrite::All(value), flags)?;
        Ok(Completion::new(command.request(), Status::Success))
    }

    /// DELETE.
    pub(super) fn delete(&mut self, command: &Submission) -> Result<Completion, Status> {
        let body: ElementBody = command.body();
        let map = self.maps.get(command.map())?;
        no_flags(body.map_flags.get())?;
        check_key(command, &body, map)?;
        if map.spec.kind.is_array() {
            return Err(Status::Unsupported);
        }
        let key = read_key(command, &body, map, self.host, &mut self.scratch.keys)?;
        map.table.delete(self.access, key)?;
        Ok(Completion::new(command.request(), Status::Success))
    }

    /// LOOKUP_AND_DELETE. The key goes only once its value has reached the host.
    pub(super) fn lookup_and_delete(&mut self, command: &Submission) -> Result<Completion, Status> {
        let body: ElementBody = command.body();
        let map = self.maps.get(command.map())?;
        no_flags(body.map_flags.get())?;
        check_key(command, &body, map)?;
        if map.spec.kind.is_array() {
            return Err(Status::Unsupported);
        }
        let len = map.value_bytes();
        check_room(command, &body, len)?;
        let key = read_key(command, &body, map, self.host, &mut self.scratch.keys)?;
        let at = map.table.find(self.access, key)?;
        let done = deliver(command, &body, self.access, self.host, at, len)?;
        map.table.delete(self.access, key)?;
        Ok(done)
    }

    /// GET_FIRST, and GET_NEXT where there is a key.
    pub(super) fn get_next(
        &mut self,
        command: &Submission,
        has_key: bool,
    ) -> Result<Completion, Status> {
        let body: ElementBody = command.body();
        let map = self.maps.get(command.map())?;
        no_flags(body.map_flags.get())?;
        if has_key {
            check_key(command, &body, map)?;
        }
        let len = map.key_size();
        check_room(command, &body, len)?;
        let key = if has_key {
            Some(read_key(
                command,
                &body,
                map,
                self.host,
                &mut self.scratch.keys,
            )?)
        } else {
            None
        };
        match map.table.next(self.access, key)? {
            NextKey::At(at) => deliver(command, &body, self.access, self.host, at, len),
            NextKey::Index(index) => {
                let done = Completion::new(command.request(), Status::Success);
                if command.flags().contains(SubmissionFlags::VALUE_INLINE) {
                    return Ok(done.with_payload(&index.to_le_bytes()));
                }
                let iova = IovaRef::iova_of(&body.value);
                self.host.write(iova, &index.to_le_bytes())?;
                Ok(done)
            }
        }
    }
}
