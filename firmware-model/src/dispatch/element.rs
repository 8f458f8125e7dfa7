//! Commands on one element (abi §7.1).
//!
//! Checks, in order: the map handle; reserved fields, unknown flags and operands that the
//! command does not use, all of which must be zero; the lengths against the map; that an inline
//! operand fits its field; that the map's type has the command. Then operands are read, and only
//! then does the table change. The padding of an inline operand is not looked at.

use super::{Io, reserved_bits, update_flags};
use crate::HostMemory;
use crate::access::Access;
use crate::inner;
use crate::maps::Map;
use crate::table::{NextKey, ValueWrite};
use offmap_abi::completion::INLINE_RESULT_BYTES;
use offmap_abi::submission::{ElementBody, INLINE_KEY_BYTES, INLINE_VALUE_BYTES, IovaRef};
use offmap_abi::{CompletionWords, DevAddr, Status, Submission, SubmissionFlags};

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
    // Of a map without keys the field is all padding.
    if command.flags().contains(SubmissionFlags::KEY_INLINE) || len == 0 {
        return Ok(&body.key[..len]);
    }
    let key = scratch.get_mut(..len).ok_or(Status::Internal)?;
    host.read(IovaRef::iova_of(&body.key), key)?;
    Ok(key)
}

/// What a command does not use.
struct Unused {
    key: bool,
    /// A value given: the field may still say where a result goes.
    value: bool,
}

/// Reserved fields, unknown flags and unused operands: zero. One comparison for all of them.
#[inline(always)]
fn check_reserved(
    command: &Submission,
    body: &ElementBody,
    flags: u32,
    unused: Unused,
) -> Result<(), Status> {
    let words = |field: &[u8; 16]| {
        let field = u128::from_le_bytes(*field);
        (field as u64, (field >> 64) as u64)
    };
    let operand = |field, unused: bool, inline: bool| {
        let (iova, beside) = words(field);
        // An address has a reserved half beside it; an unused field is zero whole.
        let low = if unused { iova } else { 0 };
        let high = if unused || !inline { beside } else { 0 };
        low | high
    };
    let has = |flag| command.flags().contains(flag);
    let (key_inline, value_inline) = (
        has(SubmissionFlags::KEY_INLINE),
        has(SubmissionFlags::VALUE_INLINE),
    );
    let key_len = if unused.key { body.key_len.get() } else { 0 };
    let ones = reserved_bits(command) | flags | body.reserved.get() | key_len;
    // Where a result goes to the payload, the field names no address.
    let value_unused = unused.value && value_inline;
    let rest = operand(&body.key, unused.key, key_inline)
        | operand(&body.value, value_unused, value_inline);
    if u64::from(ones) | rest == 0 {
        Ok(())
    } else {
        Err(Status::InvalidField)
    }
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
    done: &mut CompletionWords,
) -> Result<(), Status> {
    if command.flags().contains(SubmissionFlags::VALUE_INLINE) {
        return Ok(access.with_bytes(at, len, |bytes| done.set_payload(bytes))?);
    }
    if len != 0 {
        access.send(at, len, host, IovaRef::iova_of(&body.value))?;
    }
    done.set_count(len as u32);
    Ok(())
}

/// The commands that return something use their value field for that alone.
const RETURNS: Unused = Unused {
    key: false,
    value: true,
};

impl<A: Access, H: HostMemory> Io<'_, A, H> {
    /// LOOKUP.
    #[inline(always)]
    pub(super) fn lookup(
        &mut self,
        command: &Submission,
        done: &mut CompletionWords,
    ) -> Result<(), Status> {
        let body: &ElementBody = command.body_ref();
        let map = self.maps.used::<A>(command.map())?;
        check_reserved(command, body, body.map_flags.get(), RETURNS)?;
        check_key(command, body, map)?;
        let len = map.value_bytes();
        check_room(command, body, len)?;
        let host = &mut *self.host;
        let key = read_key(command, body, map, host, &mut self.scratch.keys)?;
        map.table.with_value(self.access, key, |access, at| {
            deliver(command, body, access, host, at, len, done)
        })?
    }

    /// UPDATE.
    pub(super) fn update(&mut self, command: &Submission) -> Result<(), Status> {
        let body: &ElementBody = command.body_ref();
        let map = self.maps.used::<A>(command.map())?;
        let unused = Unused {
            key: false,
            value: false,
        };
        check_reserved(command, body, 0, unused)?;
        let flags = update_flags(body.map_flags.get())?;
        check_key(command, body, map)?;
        let len = map.value_bytes();
        if body.value_len.get() as usize != len {
            return Err(Status::InvalidLength);
        }
        let inline = command.flags().contains(SubmissionFlags::VALUE_INLINE);
        if inline && len > INLINE_VALUE_BYTES {
            return Err(Status::InvalidField);
        }
        let key = read_key(command, body, map, self.host, &mut self.scratch.keys)?;
        let value: &[u8] = if inline {
            &body.value[..len]
        } else {
            let value = self.scratch.values.get_mut(..len).ok_or(Status::Internal)?;
            if len != 0 {
                self.host.read(IovaRef::iova_of(&body.value), value)?;
            }
            value
        };
        if map.spec.kind.is_map_of_maps() {
            let outer = command.map();
            inner::update(
                self.maps,
                self.holdings,
                self.access,
                outer,
                key,
                value,
                flags,
            )?;
        } else {
            map.table
                .update(self.access, key, ValueWrite::All(value), flags)?;
        }
        Ok(())
    }

    /// DELETE.
    pub(super) fn delete(&mut self, command: &Submission) -> Result<(), Status> {
        let body: &ElementBody = command.body_ref();
        let map = self.maps.used::<A>(command.map())?;
        // It has no value: neither a length nor a field.
        let value = u128::from_le_bytes(body.value) != 0;
        let flags = body.map_flags.get() | body.value_len.get() | u32::from(value);
        check_reserved(command, body, flags, RETURNS)?;
        check_key(command, body, map)?;
        let kind = map.spec.kind;
        let of_maps = kind.is_map_of_maps();
        if kind.is_array() && !of_maps || kind.is_queue() || !kind.has_values() {
            return Err(Status::Unsupported);
        }
        let key = read_key(command, body, map, self.host, &mut self.scratch.keys)?;
        if of_maps {
            inner::delete(self.holdings, self.access, command.map(), map, key)?;
        } else {
            map.table.delete(self.access, key)?;
        }
        Ok(())
    }

    /// LOOKUP_AND_DELETE. The key goes only once its value has reached the host.
    pub(super) fn lookup_and_delete(
        &mut self,
        command: &Submission,
        done: &mut CompletionWords,
    ) -> Result<(), Status> {
        let body: &ElementBody = command.body_ref();
        let map = self.maps.used::<A>(command.map())?;
        check_reserved(command, body, body.map_flags.get(), RETURNS)?;
        check_key(command, body, map)?;
        if !map.spec.kind.takes() {
            return Err(Status::Unsupported);
        }
        let len = map.value_bytes();
        check_room(command, body, len)?;
        let host = &mut *self.host;
        let key = read_key(command, body, map, host, &mut self.scratch.keys)?;
        map.table.take(self.access, key, |access, at| {
            deliver(command, body, access, host, at, len, done)
        })
    }

    /// GET_FIRST, and GET_NEXT where there is a key.
    pub(super) fn get_next(
        &mut self,
        command: &Submission,
        has_key: bool,
        done: &mut CompletionWords,
    ) -> Result<(), Status> {
        let body: &ElementBody = command.body_ref();
        let map = self.maps.used::<A>(command.map())?;
        let unused = Unused {
            key: !has_key,
            value: true,
        };
        check_reserved(command, body, body.map_flags.get(), unused)?;
        if has_key {
            check_key(command, body, map)?;
        }
        if map.spec.kind.is_queue() || !map.spec.kind.has_values() {
            return Err(Status::Unsupported);
        }
        let len = map.key_size();
        check_room(command, body, len)?;
        let host = &mut *self.host;
        let key = if has_key {
            let scratch = &mut self.scratch.keys;
            Some(read_key(command, body, map, host, scratch)?)
        } else {
            None
        };
        map.table
            .with_next(self.access, key, |access, next| match next {
                NextKey::At(at) => deliver(command, body, access, host, at, len, done),
                NextKey::Index(index) => {
                    let bytes = index.to_le_bytes();
                    if command.flags().contains(SubmissionFlags::VALUE_INLINE) {
                        done.set_payload(&bytes);
                        return Ok(());
                    }
                    host.write(IovaRef::iova_of(&body.value), &bytes)?;
                    done.set_count(bytes.len() as u32);
                    Ok(())
                }
            })?
    }
}
