//! Writing commands, and telling the device of them (abi §4.2, §7, §10 rules S1–S4, N1).

use super::slots::{NO_LARGE, Place};
use super::stats::Kind;
use super::{Bell, QueuePair, Token};
use crate::registers::Registers;
use crate::{DeviceMap, DriverError, SubmitError};
use offmap_abi::completion::INLINE_RESULT_BYTES;
use offmap_abi::notify::{cq_doorbell, sq_doorbell};
use offmap_abi::regs::{DOORBELLS, KICK};
use offmap_abi::submission::{ElementBody, INLINE_KEY_BYTES, INLINE_VALUE_BYTES, IovaRef};
use offmap_abi::{IoOpcode, RequestId, Submission, SubmissionFlags};
use offmap_device_io::{DmaRegion, Function};

/// A command on one element.
#[derive(Clone, Copy, Debug)]
pub enum Op<'a> {
    /// Does nothing and completes.
    Nop,
    /// Returns the value of a key.
    Lookup {
        /// The map.
        map: &'a DeviceMap,
        /// The key, [`DeviceMap::key_size`] bytes.
        key: &'a [u8],
    },
    /// Stores a value under a key.
    Update {
        /// The map.
        map: &'a DeviceMap,
        /// The key.
        key: &'a [u8],
        /// The value, [`DeviceMap::value_stride`] bytes.
        value: &'a [u8],
        /// [`offmap_abi::submission::UPDATE_ANY`], `UPDATE_NOEXIST` or `UPDATE_EXIST`, whose
        /// values are those of BPF_ANY, BPF_NOEXIST and BPF_EXIST.
        flags: u32,
    },
    /// Removes a key.
    Delete {
        /// The map.
        map: &'a DeviceMap,
        /// The key.
        key: &'a [u8],
    },
    /// Returns the first key.
    GetFirst {
        /// The map.
        map: &'a DeviceMap,
    },
    /// Returns the key after a key; the first one when that key is not there.
    GetNext {
        /// The map.
        map: &'a DeviceMap,
        /// The key.
        key: &'a [u8],
    },
    /// Returns the value of a key and removes the key.
    LookupAndDelete {
        /// The map.
        map: &'a DeviceMap,
        /// The key.
        key: &'a [u8],
    },
}

/// Operands of one element command, before it has a place.
pub(super) struct Element<'a> {
    pub(super) opcode: IoOpcode,
    pub(super) key: &'a [u8],
    pub(super) value: &'a [u8],
    /// Bytes that it returns.
    pub(super) room: usize,
    pub(super) flags: u32,
}

impl<'a> Element<'a> {
    #[inline(always)]
    pub(super) fn of(op: &Op<'a>) -> (Option<&'a DeviceMap>, Self) {
        let element = |opcode, key, room| Self {
            opcode,
            key,
            value: &[],
            room,
            flags: 0,
        };
        match *op {
            Op::Nop => (None, element(IoOpcode::Nop, &[], 0)),
            Op::Lookup { map, key } => (
                Some(map),
                element(IoOpcode::Lookup, key, map.value_stride()),
            ),
            Op::Update {
                map,
                key,
                value,
                flags,
            } => (
                Some(map),
                Self {
                    opcode: IoOpcode::Update,
                    key,
                    value,
                    room: 0,
                    flags,
                },
            ),
            Op::Delete { map, key } => (Some(map), element(IoOpcode::Delete, key, 0)),
            Op::GetFirst { map } => (Some(map), element(IoOpcode::GetFirst, &[], map.key_size())),
            Op::GetNext { map, key } => {
                (Some(map), element(IoOpcode::GetNext, key, map.key_size()))
            }
            Op::LookupAndDelete { map, key } => (
                Some(map),
                element(IoOpcode::LookupAndDelete, key, map.value_stride()),
            ),
        }
    }

    #[inline(always)]
    fn check(&self, map: &DeviceMap) -> Result<(), DriverError> {
        if self.opcode != IoOpcode::GetFirst {
            check_length("key", map.key_size(), self.key.len())?;
        }
        if self.opcode == IoOpcode::Update {
            check_length("value", map.value_stride(), self.value.len())?;
        }
        Ok(())
    }
}

#[inline(always)]
pub(super) fn check_length(
    what: &'static str,
    expected: usize,
    got: usize,
) -> Result<(), DriverError> {
    if expected == got {
        Ok(())
    } else {
        Err(DriverError::Length {
            what,
            expected,
            got,
        })
    }
}

/// `bytes`, at most 16, zero-padded. The sizes of nearly all keys are put together in
/// registers: a field built in memory by a copy of unknown length would be read back, as
/// words, before its bytes have left the store buffer.
#[inline(always)]
fn padded(bytes: &[u8]) -> [u8; 16] {
    if let Ok(whole) = <[u8; 8]>::try_from(bytes) {
        u128::from(u64::from_le_bytes(whole)).to_le_bytes()
    } else if let Ok(half) = <[u8; 4]>::try_from(bytes) {
        u128::from(u32::from_le_bytes(half)).to_le_bytes()
    } else if let Ok(both) = <[u8; 16]>::try_from(bytes) {
        both
    } else {
        let mut field = [0; 16];
        field[..bytes.len()].copy_from_slice(bytes);
        field
    }
}

impl<F: Function> QueuePair<F> {
    /// Writes a command to the ring. The device may take it from now on, and is told of it by
    /// the next [`QueuePair::commit`], [`QueuePair::poll`] or [`QueuePair::wait`].
    ///
    /// # Errors
    ///
    /// [`SubmitError::Full`] when every slot holds a command in flight or a result that was
    /// not taken; it never blocks.
    #[inline]
    pub fn write(&mut self, op: &Op<'_>) -> Result<Token, SubmitError> {
        let (map, element) = Element::of(op);
        self.write_element(map, &element)
    }

    /// [`QueuePair::write`], then [`QueuePair::commit`].
    ///
    /// # Errors
    ///
    /// As those.
    #[inline]
    pub fn submit(&mut self, op: &Op<'_>) -> Result<Token, SubmitError> {
        let token = self.write(op)?;
        self.commit()?;
        Ok(token)
    }

    /// Submits a lookup.
    ///
    /// # Errors
    ///
    /// As [`QueuePair::submit`].
    #[inline]
    pub fn submit_lookup(&mut self, map: &DeviceMap, key: &[u8]) -> Result<Token, SubmitError> {
        self.submit(&Op::Lookup { map, key })
    }

    /// Submits an update.
    ///
    /// # Errors
    ///
    /// As [`QueuePair::submit`].
    #[inline]
    pub fn submit_update(
        &mut self,
        map: &DeviceMap,
        key: &[u8],
        value: &[u8],
        flags: u32,
    ) -> Result<Token, SubmitError> {
        self.submit(&Op::Update {
            map,
            key,
            value,
            flags,
        })
    }

    /// Tells the device of the commands written since the last call. Without any it does
    /// nothing.
    ///
    /// # Errors
    ///
    /// A register write that the transport refused. The queue is broken then, since the
    /// device may or may not run the commands.
    #[inline]
    pub fn commit(&mut self) -> Result<(), DriverError> {
        let tail = self.rings.tail();
        if tail == self.committed {
            return Ok(());
        }
        self.committed = tail;
        match self.bell {
            Bell::Block { at } => {
                if self.rings.publish_tail(self.region.buffer(), at) {
                    return self.kick();
                }
                Ok(())
            }
            Bell::Doorbell => {
                self.meter.events.doorbells.bump();
                self.ring_doorbell(sq_doorbell(self.id), tail)
            }
        }
    }

    #[cold]
    fn kick(&mut self) -> Result<(), DriverError> {
        self.meter.events.kicks.bump();
        let written = Registers(&**self.driver.function()).write32("KICK", KICK, self.id.0.into());
        written.map_err(|e| self.breaks(e))
    }

    fn ring_doorbell(&mut self, offset: u64, count: u32) -> Result<(), DriverError> {
        let written = match self.driver.doorbells() {
            Some(page) => {
                page.store_u64((offset - DOORBELLS) as usize, count.into());
                Ok(())
            }
            None => {
                Registers(&**self.driver.function()).write64("a doorbell", offset, count.into())
            }
        };
        written.map_err(|e| self.breaks(e))
    }

    /// Tells the device that the completions taken so far may be overwritten (rule C3).
    pub(super) fn publish_head(&mut self) -> Result<(), DriverError> {
        let head = self.rings.head();
        self.released = head;
        match self.bell {
            Bell::Block { at } => {
                let buffer = self.region.buffer();
                if self.rings.publish_head(buffer, at, self.committed) {
                    return self.kick();
                }
                Ok(())
            }
            Bell::Doorbell => self.ring_doorbell(cq_doorbell(self.id), head),
        }
    }

    #[inline(always)]
    pub(super) fn write_element(
        &mut self,
        map: Option<&DeviceMap>,
        element: &Element<'_>,
    ) -> Result<Token, SubmitError> {
        self.usable()?;
        let mut handle = offmap_abi::MapHandle(0);
        if let Some(map) = map {
            self.check_map(map)?;
            element.check(map)?;
            handle = map.handle;
        }
        let Some((slot, area)) = self.slots.peek() else {
            return Err(self.full());
        };
        let (key_len, value_len) = (element.key.len(), element.value.len());
        let key_outside = key_len > INLINE_KEY_BYTES;
        let inline_result = element.room <= INLINE_RESULT_BYTES;
        let value_outside = value_len > INLINE_VALUE_BYTES;
        let value_bytes = if value_outside {
            value_len
        } else if inline_result {
            0
        } else {
            element.room
        };
        let key_bytes = if key_outside {
            key_len.next_multiple_of(64)
        } else {
            0
        };
        let mut place = Place {
            large: NO_LARGE,
            at: area,
        };
        if key_bytes + value_bytes > self.slots.slot_bytes() {
            place = Place {
                large: self.larges.take(&self.driver, key_bytes + value_bytes)?,
                at: 0,
            };
        }
        let region = self.place_region(place);

        let mut flags = SubmissionFlags::empty();
        let key = if key_outside {
            region.buffer().write(place.at, element.key);
            IovaRef::field(region.iova(place.at).0)
        } else {
            flags |= SubmissionFlags::KEY_INLINE;
            padded(element.key)
        };
        let value_at = place.at + key_bytes;
        let value = if value_outside {
            region.buffer().write(value_at, element.value);
            IovaRef::field(region.iova(value_at).0)
        } else if inline_result {
            flags |= SubmissionFlags::VALUE_INLINE;
            padded(element.value)
        } else {
            IovaRef::field(region.iova(value_at).0)
        };
        let body = ElementBody {
            map_flags: element.flags.into(),
            key_len: (key_len as u32).into(),
            value_len: (value_len.max(element.room) as u32).into(),
            reserved: 0.into(),
            key,
            value,
        };
        let result = Place {
            at: value_at,
            ..place
        };
        if !inline_result {
            // The device is not believed that it wrote the result: what it leaves out must not
            // be what another command left here, of another map perhaps.
            region.buffer().zero(value_at, element.room);
        }
        let kind = self.begins(element.opcode, slot);
        let claimed = (self.slots).claim(kind, inline_result, element.room as u32, result);
        let Some(request) = claimed else {
            unreachable!("a free slot was seen above");
        };
        let entry = Submission::new(element.opcode.0, request, &body)
            .with_map(handle)
            .with_flags(flags);
        self.rings.push(self.region.buffer(), entry);
        Ok(self.token(request))
    }

    #[cold]
    fn full(&self) -> SubmitError {
        self.meter.events.full.bump();
        SubmitError::Full
    }

    /// Counts a command that takes `slot`, and starts its time when it is one that is timed.
    #[inline(always)]
    pub(super) fn begins(&mut self, opcode: IoOpcode, slot: u16) -> Kind {
        self.meter.submitted(opcode);
        let mut kind = Kind::of(opcode);
        if let Some(timer) = &mut self.timer {
            timer.begin(&mut kind, slot, || self.driver.function().now());
        }
        kind
    }

    #[inline(always)]
    pub(super) fn token(&self, request: RequestId) -> Token {
        Token {
            request,
            queue: self.serial,
        }
    }

    /// The region that a place lies in.
    #[inline(always)]
    pub(super) fn place_region(&self, place: Place) -> &DmaRegion<F> {
        if place.large == NO_LARGE {
            &self.region
        } else {
            self.larges.region(place.large)
        }
    }
}
