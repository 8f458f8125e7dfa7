//! netdevsim's slots: keys in the order of the places that they took.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Which key has which slot. The device has the elements; the host has their order.
///
/// Bounded by [`crate::Behaviours::SLOT_ORDER_MAX`].
pub(crate) struct SlotOrder(Mutex<Slots>);

struct Slots {
    keys: Vec<Option<Box<[u8]>>>,
    of: HashMap<Box<[u8]>, usize>,
}

impl SlotOrder {
    pub(crate) fn new(slots: u32) -> Self {
        Self(Mutex::new(Slots {
            keys: vec![None; slots as usize],
            of: HashMap::new(),
        }))
    }

    fn slots(&self) -> MutexGuard<'_, Slots> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The key is in the map: it takes the first free slot if it has none.
    pub(crate) fn stored(&self, key: &[u8]) {
        let mut slots = self.slots();
        if slots.of.contains_key(key) {
            return;
        }
        let free = slots.keys.iter().position(Option::is_none);
        // The device has no more entries than there are slots.
        if let Some(free) = free {
            slots.keys[free] = Some(key.into());
            slots.of.insert(key.into(), free);
        }
    }

    /// The key is no longer in the map.
    pub(crate) fn removed(&self, key: &[u8]) {
        let mut slots = self.slots();
        if let Some(slot) = slots.of.remove(key) {
            slots.keys[slot] = None;
        }
    }

    /// Copies the key in the slot after `key`'s to `next`, the first one for a key that has
    /// none. Whether there is such a key.
    pub(crate) fn next(&self, key: Option<&[u8]>, next: &mut [u8]) -> bool {
        let slots = self.slots();
        let slot = key.and_then(|key| slots.of.get(key));
        let from = slot.map_or(0, |slot| slot + 1);
        let used = slots.keys[from..].iter().flatten().next();
        if let Some(used) = used {
            next.copy_from_slice(used);
        }
        used.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_take_the_first_free_slot_and_come_in_that_order() {
        let order = SlotOrder::new(3);
        let next = |key: Option<&[u8]>| {
            let mut out = [0; 1];
            order.next(key, &mut out).then_some(out[0])
        };
        assert_eq!(next(None), None);
        for key in [9, 5, 7, 9] {
            order.stored(&[key]);
        }
        assert_eq!(next(None), Some(9));
        assert_eq!(next(Some(&[9])), Some(5));
        assert_eq!(next(Some(&[5])), Some(7));
        assert_eq!(next(Some(&[7])), None);
        assert_eq!(next(Some(&[1])), Some(9), "a missing key starts again");
        order.removed(&[9]);
        order.removed(&[1]);
        assert_eq!(next(Some(&[9])), Some(5));
        order.stored(&[1]);
        assert_eq!(next(None), Some(1));
    }
}
