//! The blocking calls on one element.

use super::submit::{Element, check_length};
use super::{Op, QueuePair};
use crate::{DeviceMap, DriverError, SubmitError};
use offmap_abi::Status;
use offmap_device_io::Function;

impl<F: Function> QueuePair<F> {
    /// Copies the key's value to `value`, which is [`DeviceMap::value_stride`] bytes long.
    ///
    /// # Errors
    ///
    /// Here and below: [`DriverError::TimedOut`] when the deadline passed,
    /// [`DriverError::Full`] when results that were not taken hold all slots, and what ends
    /// the queue. A status other than success, such as [`Status::NotFound`], is no error.
    #[inline]
    pub fn lookup(
        &mut self,
        map: &DeviceMap,
        key: &[u8],
        value: &mut [u8],
    ) -> Result<Status, DriverError> {
        self.run(&Op::Lookup { map, key }, value)
    }

    /// Stores `value` under `key`; `flags` as in [`Op::Update`].
    ///
    /// # Errors
    ///
    /// As [`QueuePair::lookup`].
    #[inline]
    pub fn update(
        &mut self,
        map: &DeviceMap,
        key: &[u8],
        value: &[u8],
        flags: u32,
    ) -> Result<Status, DriverError> {
        let op = Op::Update {
            map,
            key,
            value,
            flags,
        };
        self.run(&op, &mut [])
    }

    /// Removes `key`.
    ///
    /// # Errors
    ///
    /// As [`QueuePair::lookup`].
    #[inline]
    pub fn delete(&mut self, map: &DeviceMap, key: &[u8]) -> Result<Status, DriverError> {
        self.run(&Op::Delete { map, key }, &mut [])
    }

    /// Copies the first key to `next`.
    ///
    /// # Errors
    ///
    /// As [`QueuePair::lookup`].
    #[inline]
    pub fn get_first(&mut self, map: &DeviceMap, next: &mut [u8]) -> Result<Status, DriverError> {
        self.run(&Op::GetFirst { map }, next)
    }

    /// Copies the key after `key` to `next`; the first key when `key` is not there.
    ///
    /// # Errors
    ///
    /// As [`QueuePair::lookup`].
    #[inline]
    pub fn get_next(
        &mut self,
        map: &DeviceMap,
        key: &[u8],
        next: &mut [u8],
    ) -> Result<Status, DriverError> {
        self.run(&Op::GetNext { map, key }, next)
    }

    /// Copies the key's value to `value` and removes the key, in one step.
    ///
    /// # Errors
    ///
    /// As [`QueuePair::lookup`].
    #[inline]
    pub fn lookup_and_delete(
        &mut self,
        map: &DeviceMap,
        key: &[u8],
        value: &mut [u8],
    ) -> Result<Status, DriverError> {
        self.run(&Op::LookupAndDelete { map, key }, value)
    }

    /// Sends a command that does nothing: a probe of the queue.
    ///
    /// # Errors
    ///
    /// As [`QueuePair::lookup`].
    #[inline]
    pub fn nop(&mut self) -> Result<Status, DriverError> {
        self.run(&Op::Nop, &mut [])
    }

    #[inline(always)]
    fn run(&mut self, op: &Op<'_>, out: &mut [u8]) -> Result<Status, DriverError> {
        let (map, element) = Element::of(op);
        check_length("result buffer", element.room, out.len())?;
        let token = match self.write_element(map, &element) {
            Ok(token) => token,
            Err(e) => return Err(self.not_taken(e)),
        };
        self.commit()?;
        let slot = token.request.slot();
        self.await_slot(slot)?;
        let status = self.taken.status();
        self.copy_result(slot, out);
        self.release(slot);
        self.ended(status)
    }

    /// An abort that nobody but this driver asks for stands for a deadline that passed.
    #[inline(always)]
    pub(super) fn ended(&self, status: Status) -> Result<Status, DriverError> {
        if status != Status::Aborted {
            return Ok(status);
        }
        Err(DriverError::TimedOut {
            queue: self.id,
            after: self.driver.config().op_timeout,
            quarantined: false,
        })
    }

    #[cold]
    pub(super) fn not_taken(&self, error: SubmitError) -> DriverError {
        match error {
            SubmitError::Full => DriverError::Full { queue: self.id },
            SubmitError::Driver(e) => e,
        }
    }
}
