//! Who pays for a map's memory: memory cgroups, each with a limit
//! (`bpf_map_save_memcg`, `mm/memcontrol.c`).

use crate::errno::Errno;
use crate::error::{Error, Result};
use std::sync::atomic::{
    AtomicU64,
    Ordering::{AcqRel, Relaxed},
};
use std::sync::{Arc, PoisonError, RwLock};

/// A memory owner of a [`crate::System`], by the order in which they were added.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct MemoryOwner(pub u32);

/// What a memory owner has used of its limit.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MemoryUsage {
    /// Name of the owner.
    pub name: String,
    /// Bytes that its maps occupy now.
    pub used_bytes: u64,
    /// Bytes that they may occupy.
    pub limit_bytes: u64,
}

struct Owner {
    name: String,
    limit: u64,
    used: AtomicU64,
}

/// The memory owners of a system. They are never removed.
pub(crate) struct MemoryOwners(RwLock<Vec<Arc<Owner>>>);

/// Bytes that are charged to an owner, given back when dropped.
pub(crate) struct Charge {
    owner: Arc<Owner>,
    bytes: u64,
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.owner.used.fetch_sub(self.bytes, AcqRel);
    }
}

impl Owner {
    fn charge(self: &Arc<Self>, bytes: u64) -> Result<Charge> {
        let mut used = self.used.load(Relaxed);
        loop {
            let after = used.checked_add(bytes).filter(|&sum| sum <= self.limit);
            let Some(after) = after else {
                return Err(Error::because(
                    Errno::ENOMEM,
                    format!(
                        "the map needs {bytes} bytes and memory owner {:?} has used {used} of \
                         its limit of {} bytes",
                        self.name, self.limit
                    ),
                ));
            };
            match self
                .used
                .compare_exchange_weak(used, after, AcqRel, Relaxed)
            {
                Ok(_) => {
                    return Ok(Charge {
                        owner: Arc::clone(self),
                        bytes,
                    });
                }
                Err(now) => used = now,
            }
        }
    }
}

impl MemoryOwners {
    pub(crate) const fn new() -> Self {
        Self(RwLock::new(Vec::new()))
    }

    pub(crate) fn add(&self, name: &str, limit_bytes: u64) -> Result<MemoryOwner> {
        let mut owners = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if owners.iter().any(|owner| owner.name == name) {
            return Err(Error::because(
                Errno::EEXIST,
                format!("there is a memory owner {name:?} already"),
            ));
        }
        let number = u32::try_from(owners.len()).map_err(|_| {
            Error::because(
                Errno::ENOSPC,
                format!("all of the {} memory owners are in use", owners.len()),
            )
        })?;
        owners.push(Arc::new(Owner {
            name: name.into(),
            limit: limit_bytes,
            used: AtomicU64::new(0),
        }));
        Ok(MemoryOwner(number))
    }

    fn get(&self, owner: MemoryOwner) -> Result<Arc<Owner>> {
        let owners = self.0.read().unwrap_or_else(PoisonError::into_inner);
        owners.get(owner.0 as usize).cloned().ok_or_else(|| {
            Error::because(
                Errno::EINVAL,
                format!("memory owner {}: the system has {}", owner.0, owners.len()),
            )
        })
    }

    pub(crate) fn usage(&self, owner: MemoryOwner) -> Result<MemoryUsage> {
        let owner = self.get(owner)?;
        Ok(MemoryUsage {
            name: owner.name.clone(),
            used_bytes: owner.used.load(Relaxed),
            limit_bytes: owner.limit,
        })
    }

    /// Charges `bytes` to `owner`, if there is one. ENOMEM over its limit.
    pub(crate) fn charge(&self, owner: Option<MemoryOwner>, bytes: u64) -> Result<Option<Charge>> {
        match owner {
            None => Ok(None),
            Some(owner) => self.get(owner)?.charge(bytes).map(Some),
        }
    }
}
