//! Ids of maps and of BTF objects: `map_idr`, `btf_idr`.

use crate::errno::Errno;
use crate::error::{Error, Result};
use std::collections::BTreeMap;
use std::sync::atomic::{
    AtomicU32,
    Ordering::{AcqRel, Release},
};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// Objects by id. Ids are given out cyclically, so that one is not used again at once.
pub(crate) struct IdTable<T> {
    /// What has ids here, for messages.
    what: &'static str,
    last: u32,
    state: Mutex<State<T>>,
}

struct State<T> {
    objects: BTreeMap<u32, Weak<T>>,
    next: u32,
}

/// What has an id.
pub(crate) trait Identified {
    /// Its id, 0 while it has none.
    fn id_cell(&self) -> &AtomicU32;
}

impl<T: Identified> IdTable<T> {
    pub(super) const fn new(what: &'static str, last: u32) -> Self {
        Self {
            what,
            last,
            state: Mutex::new(State {
                objects: BTreeMap::new(),
                next: 1,
            }),
        }
    }

    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `bpf_map_alloc_id`, `btf_alloc_id`: ENOSPC when every id is in use.
    pub(super) fn assign(&self, object: &Arc<T>) -> Result<u32> {
        let mut state = self.state();
        if state.objects.len() >= self.last as usize {
            return Err(Error::because(
                Errno::ENOSPC,
                format!("all of the {} {} ids are in use", self.last, self.what),
            ));
        }
        let mut id = state.next;
        loop {
            if id > self.last {
                id = 1;
            }
            if !state.objects.contains_key(&id) {
                break;
            }
            id += 1;
        }
        state.objects.insert(id, Arc::downgrade(object));
        state.next = id + 1;
        object.id_cell().store(id, Release);
        Ok(id)
    }

    /// Frees the id in `id`, which becomes 0; does nothing when it is 0 already.
    pub(crate) fn remove(&self, id: &AtomicU32) {
        let mut state = self.state();
        let number = id.swap(0, AcqRel);
        if number != 0 {
            state.objects.remove(&number);
        }
    }

    /// The smallest id above `id`.
    pub(super) fn next_after(&self, id: u32) -> Option<u32> {
        let state = self.state();
        let mut above = state.objects.range(id.checked_add(1)?..);
        above
            .find(|(_, object)| object.strong_count() != 0)
            .map(|(&id, _)| id)
    }

    pub(super) fn get(&self, id: u32) -> Option<Arc<T>> {
        // The lock ends before the object is dropped, which may take it again.
        let object = self.state().objects.get(&id).cloned();
        object?.upgrade()
    }
}
