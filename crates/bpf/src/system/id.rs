//! Map ids: `map_idr`.

use crate::errno::Errno;
use crate::error::{Error, Result};
use crate::map::Map;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering::AcqRel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// Maps by id. Ids are given out cyclically, so that one is not used again at once.
pub(crate) struct IdTable {
    last: u32,
    state: Mutex<State>,
}

struct State {
    maps: BTreeMap<u32, Weak<Map>>,
    next: u32,
}

impl IdTable {
    pub(super) const fn new(last: u32) -> Self {
        Self {
            last,
            state: Mutex::new(State {
                maps: BTreeMap::new(),
                next: 1,
            }),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `bpf_map_alloc_id`: ENOSPC when every id is in use.
    pub(super) fn assign(&self, map: &Arc<Map>) -> Result<u32> {
        let mut state = self.state();
        if state.maps.len() >= self.last as usize {
            return Err(Error::because(
                Errno::ENOSPC,
                format!("all of the {} map ids are in use", self.last),
            ));
        }
        let mut id = state.next;
        loop {
            if id > self.last {
                id = 1;
            }
            if !state.maps.contains_key(&id) {
                break;
            }
            id += 1;
        }
        state.maps.insert(id, Arc::downgrade(map));
        state.next = id + 1;
        map.set_id(id);
        Ok(id)
    }

    /// Frees the id in `id`, which becomes 0; does nothing when it is 0 already.
    pub(crate) fn remove(&self, id: &AtomicU32) {
        let mut state = self.state();
        let number = id.swap(0, AcqRel);
        if number != 0 {
            state.maps.remove(&number);
        }
    }

    /// The smallest id above `id`.
    pub(super) fn next_after(&self, id: u32) -> Option<u32> {
        let state = self.state();
        let mut above = state.maps.range(id.checked_add(1)?..);
        above
            .find(|(_, map)| map.strong_count() != 0)
            .map(|(&id, _)| id)
    }

    pub(super) fn get(&self, id: u32) -> Option<Arc<Map>> {
        // The lock ends before the map is dropped, which may take it again.
        let map = self.state().maps.get(&id).cloned();
        map?.upgrade()
    }
}
