//! The caller's memory, as bpf(2) reaches it through the addresses in its attributes.

use crate::errno::Errno;
use crate::error::Error;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// An address that the caller's memory does not have; EFAULT in every command.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fault {
    /// The first byte that could not be reached.
    pub address: u64,
}

impl Fault {
    /// EFAULT, with a sentence that names what was copied.
    pub(crate) fn during(self, what: &str) -> Error {
        Error::because(
            Errno::EFAULT,
            format!("{what}: address {:#x} cannot be reached", self.address),
        )
    }
}

/// A process's memory: what `copy_from_user` and `copy_to_user` reach.
///
/// Other threads of the process may change it at any time, so that every byte is read once.
pub trait UserMemory: Sync {
    /// Fills `into` from `address` on.
    ///
    /// # Errors
    ///
    /// [`Fault`] when any byte cannot be read.
    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), Fault>;

    /// Writes `from` at `address`. As with `copy_to_user`, the bytes before the one that fails
    /// may have been written.
    ///
    /// # Errors
    ///
    /// [`Fault`] when any byte cannot be written.
    fn write(&self, address: u64, from: &[u8]) -> Result<(), Fault>;

    /// Whether all of `len` bytes at `address` can be written now. When in doubt, `false`: it
    /// decides only in how large pieces a batch is carried out.
    fn is_writable(&self, address: u64, len: u64) -> bool;
}

/// One readable and writable piece of memory at an address, and nothing around it.
pub struct UserArena {
    base: u64,
    bytes: Mutex<Vec<u8>>,
}

impl UserArena {
    /// `len` zero bytes at `base`.
    ///
    /// # Panics
    ///
    /// When the piece would not end within the address space.
    pub fn new(base: u64, len: usize) -> Self {
        assert!(
            base.checked_add(len as u64).is_some(),
            "the arena wraps around"
        );
        Self {
            base,
            bytes: Mutex::new(vec![0; len]),
        }
    }

    /// Its first address.
    pub const fn base(&self) -> u64 {
        self.base
    }

    fn bytes(&self) -> MutexGuard<'_, Vec<u8>> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A copy of all of it.
    pub fn snapshot(&self) -> Vec<u8> {
        self.bytes().clone()
    }

    /// The part of `len` bytes at `address` that is within the arena: its offset and length.
    fn within(&self, address: u64, len: usize, have: usize) -> Result<(usize, usize), Fault> {
        let offset = address
            .checked_sub(self.base)
            .and_then(|offset| usize::try_from(offset).ok())
            .filter(|&offset| offset < have || len == 0)
            .ok_or(Fault { address })?;
        Ok((offset, len.min(have.saturating_sub(offset))))
    }
}

impl UserMemory for UserArena {
    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), Fault> {
        if into.is_empty() {
            return Ok(());
        }
        let bytes = self.bytes();
        let (offset, len) = self.within(address, into.len(), bytes.len())?;
        if len < into.len() {
            return Err(Fault {
                address: address + len as u64,
            });
        }
        into.copy_from_slice(&bytes[offset..offset + len]);
        Ok(())
    }

    fn write(&self, address: u64, from: &[u8]) -> Result<(), Fault> {
        if from.is_empty() {
            return Ok(());
        }
        let mut bytes = self.bytes();
        let have = bytes.len();
        let (offset, len) = self.within(address, from.len(), have)?;
        bytes[offset..offset + len].copy_from_slice(&from[..len]);
        if len < from.len() {
            return Err(Fault {
                address: address + len as u64,
            });
        }
        Ok(())
    }

    fn is_writable(&self, address: u64, len: u64) -> bool {
        let have = self.bytes().len() as u64;
        let offset = address.checked_sub(self.base);
        offset.is_some_and(|offset| len <= have.saturating_sub(offset))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_arena_ends_where_it_ends() {
        let arena = UserArena::new(0x1000, 16);
        arena.write(0x1008, &[7; 8]).unwrap();
        let mut out = [0; 4];
        arena.read(0x100c, &mut out).unwrap();
        assert_eq!(out, [7; 4]);
        for (address, fault) in [(0xfff, 0xfff), (0x1010, 0x1010), (0x100d, 0x1010), (0, 0)] {
            assert_eq!(
                arena.read(address, &mut out),
                Err(Fault { address: fault }),
                "{address:#x}"
            );
            assert_eq!(
                arena.write(address, &out),
                Err(Fault { address: fault }),
                "{address:#x}"
            );
        }
        assert_eq!(
            arena.read(u64::MAX, &mut out).unwrap_err().address,
            u64::MAX
        );
        // Nothing is copied, so no address is looked at.
        arena.read(0, &mut []).unwrap();
        arena.write(u64::MAX, &[]).unwrap();
        // What precedes the fault was written.
        arena.write(0x100e, &[9; 4]).unwrap_err();
        assert_eq!(arena.snapshot()[12..], [7, 7, 9, 9]);
    }
}
