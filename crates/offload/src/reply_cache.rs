//! nfp's reply cache: a GETNEXT brings several elements along, which answer what is asked next
//! (`nfp_bpf_ctrl_op_cache_*`).

use crate::ReplyCacheRule;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The last reply to a GETNEXT of one map.
///
/// Only what the host does drops it: a change by the device's data path is not seen before the
/// reply is too old.
pub(crate) struct ReplyCache {
    rule: ReplyCacheRule,
    key_size: usize,
    value_size: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    reply: Option<Reply>,
    /// Reply until when.
    until: Duration,
    /// Changes under way.
    blockers: usize,
    /// Changes that have ended.
    generation: u64,
}

/// Keys and values in the order of a walk.
struct Reply {
    keys: Vec<u8>,
    values: Vec<u8>,
}

/// A change by the host that is under way: nothing is kept until it has ended.
pub(crate) struct Blocking<'a>(&'a ReplyCache);

impl Drop for Blocking<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.blockers -= 1;
        state.generation += 1;
    }
}

impl ReplyCache {
    pub(crate) fn new(rule: ReplyCacheRule, key_size: usize, value_size: usize) -> Self {
        Self {
            rule,
            key_size,
            value_size,
            state: Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Elements that a reply holds.
    pub(crate) const fn entries(&self) -> usize {
        self.rule.entries
    }

    /// Drops the reply and keeps none until the change that follows has ended.
    pub(crate) fn block(&self) -> Blocking<'_> {
        let mut state = self.state();
        state.reply = None;
        state.blockers += 1;
        Blocking(self)
    }

    /// The count of changes, for [`ReplyCache::keep`] to see whether there was one meanwhile.
    pub(crate) fn generation(&self) -> u64 {
        self.state().generation
    }

    /// The place of `key` in a reply that is still valid.
    fn with_place<R>(
        &self,
        key: &[u8],
        now: Duration,
        use_it: impl FnOnce(&Reply, usize) -> Option<R>,
    ) -> Option<R> {
        let mut state = self.state();
        if state.until < now {
            state.reply = None;
        }
        let reply = state.reply.as_ref()?;
        let place = reply.keys.chunks_exact(self.key_size);
        let place = place.into_iter().position(|known| known == key)?;
        use_it(reply, place)
    }

    /// Copies the value of `key` to `value`, if the reply has it.
    pub(crate) fn lookup(&self, key: &[u8], value: &mut [u8], now: Duration) -> bool {
        let size = self.value_size;
        let copy = |reply: &Reply, place: usize| {
            value.copy_from_slice(reply.values.get(place * size..)?.get(..size)?);
            Some(())
        };
        self.with_place(key, now, copy).is_some()
    }

    /// Copies the key after `key` to `next`, if the reply has both.
    pub(crate) fn next(&self, key: &[u8], next: &mut [u8], now: Duration) -> bool {
        let size = self.key_size;
        let copy = |reply: &Reply, place: usize| {
            next.copy_from_slice(reply.keys.get((place + 1) * size..)?.get(..size)?);
            Some(())
        };
        self.with_place(key, now, copy).is_some()
    }

    /// Keeps a reply that was asked for at `generation`, unless the host has changed the map
    /// since, or is about to.
    pub(crate) fn keep(&self, generation: u64, keys: Vec<u8>, values: Vec<u8>, now: Duration) {
        let mut state = self.state();
        if state.blockers == 0 && state.generation == generation {
            state.until = now + self.rule.valid;
            state.reply = Some(Reply { keys, values });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn us(n: u64) -> Duration {
        Duration::from_micros(n)
    }

    fn cache() -> ReplyCache {
        let rule = ReplyCacheRule {
            entries: 4,
            valid: us(250),
        };
        let cache = ReplyCache::new(rule, 1, 2);
        cache.keep(0, vec![7, 8], vec![70, 71, 80, 81], us(1000));
        cache
    }

    fn lookup(cache: &ReplyCache, key: u8, now: u64) -> Option<[u8; 2]> {
        let mut value = [0; 2];
        cache.lookup(&[key], &mut value, us(now)).then_some(value)
    }

    #[test]
    fn a_reply_answers_until_it_is_too_old() {
        let cache = cache();
        assert_eq!(lookup(&cache, 7, 1000), Some([70, 71]));
        assert_eq!(lookup(&cache, 8, 1250), Some([80, 81]));
        assert_eq!(lookup(&cache, 9, 1250), None);
        let mut next = [0];
        assert!(cache.next(&[7], &mut next, us(1100)));
        assert_eq!(next, [8]);
        assert!(!cache.next(&[8], &mut next, us(1100)), "the last one");
        assert!(!cache.next(&[9], &mut next, us(1100)));
        assert_eq!(lookup(&cache, 7, 1251), None);
        assert_eq!(lookup(&cache, 7, 1000), None, "it was dropped");
    }

    #[test]
    fn a_change_drops_the_reply_and_keeps_later_ones_out_while_it_lasts() {
        let cache = cache();
        let asked = cache.generation();
        let change = cache.block();
        assert_eq!(lookup(&cache, 7, 1000), None);
        cache.keep(asked, vec![7], vec![1, 1], us(1000));
        assert_eq!(lookup(&cache, 7, 1000), None, "a change is under way");
        drop(change);
        cache.keep(asked, vec![7], vec![1, 1], us(1000));
        assert_eq!(lookup(&cache, 7, 1000), None, "there was one meanwhile");
        cache.keep(cache.generation(), vec![7], vec![2, 2], us(1000));
        assert_eq!(lookup(&cache, 7, 1000), Some([2, 2]));
    }
}
