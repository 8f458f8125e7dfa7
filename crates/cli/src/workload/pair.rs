//! Each call made on both maps, and the answers compared.

use super::{Batch, Disagreement, KEPT_DISAGREEMENTS, MapAccess, Outcome, Shape};
use offmap_bpf::Errno;
use std::fmt::Write;

type Answer = Result<(), Errno>;

/// What output buffers hold before a call.
const UNTOUCHED: u8 = 0xa5;
/// A walk that goes on for this many calls without an element does not end.
const IDLE_CALLS: u32 = 64;
/// A device that says so often that it is not there is not asked any more.
const LOST_AFTER: u32 = 16;
/// How often progress is told.
const PROGRESS_EVERY: u64 = 1024;

pub(super) struct Pair<'a> {
    host: &'a dyn MapAccess,
    device: &'a dyn MapAccess,
    pub(super) shape: Shape,
    progress: &'a mut dyn FnMut(u64),
    told: u64,
    /// How often the device has said that it is not there.
    lost: u32,
    pub(super) outcome: Outcome,
    host_value: Vec<u8>,
    device_value: Vec<u8>,
}

/// Entries that a walk returned, each its key and (from batches) its value.
struct Walk {
    entries: Vec<u8>,
    count: u64,
    end: String,
}

impl<'a> Pair<'a> {
    pub(super) fn new(
        host: &'a dyn MapAccess,
        device: &'a dyn MapAccess,
        shape: Shape,
        progress: &'a mut dyn FnMut(u64),
    ) -> Self {
        Self {
            host,
            device,
            shape,
            progress,
            told: 0,
            lost: 0,
            outcome: Outcome::default(),
            host_value: Vec::new(),
            device_value: Vec::new(),
        }
    }

    pub(super) fn finish(mut self) -> Outcome {
        self.tell();
        self.outcome
    }

    /// Whether there is no device any more, so that nothing more can be learned.
    pub(super) fn lost(&self) -> bool {
        self.lost >= LOST_AFTER
    }

    fn tell(&mut self) {
        (self.progress)(self.outcome.operations - self.told);
        self.told = self.outcome.operations;
    }

    fn done(&mut self, operations: u64, host: Answer) {
        self.outcome.operations += operations;
        let errno = host.err().map_or(0, |errno| errno.0);
        *self.outcome.answers.entry(errno).or_default() += 1;
        if self.outcome.operations - self.told >= PROGRESS_EVERY {
            self.tell();
        }
    }

    /// Records a difference.
    pub(super) fn differ(&mut self, operation: &str, key: &[u8], host: String, device: String) {
        self.outcome.disagreements_total += 1;
        let kept = &mut self.outcome.disagreements;
        if let Some(first) = kept
            .iter_mut()
            .find(|d| d.is_like(operation, &host, &device))
        {
            first.alike += 1;
        } else if self.outcome.disagreements.len() < KEPT_DISAGREEMENTS {
            self.outcome.disagreements.push(Disagreement {
                at: self.outcome.operations,
                operation: operation.to_owned(),
                key: hex(key),
                host,
                device,
                alike: 0,
            });
        }
    }

    fn compare(&mut self, operation: &str, key: &[u8], host: Answer, device: Answer) -> bool {
        let same = host == device;
        if !same {
            self.lost += u32::from(device == Err(Errno::ENODEV));
            self.differ(operation, key, answer(host), answer(device));
        }
        self.done(1, host);
        same
    }

    fn reset_values(&mut self, bytes: usize) {
        for value in [&mut self.host_value, &mut self.device_value] {
            value.clear();
            value.resize(bytes, UNTOUCHED);
        }
    }

    fn compare_values(&mut self, operation: &str, key: &[u8]) {
        let at = self
            .host_value
            .iter()
            .zip(&self.device_value)
            .position(|(host, device)| host != device);
        if let Some(at) = at {
            let show = |value: &[u8]| {
                let end = value.len().min(at + 16);
                format!("byte {at} on: {}", hex(&value[at..end]))
            };
            let (host, device) = (show(&self.host_value), show(&self.device_value));
            self.differ(&format!("{operation} (value)"), key, host, device);
        }
    }

    pub(super) fn lookup(&mut self, key: &[u8], flags: u64) {
        self.reset_values(self.shape.value_bytes);
        let host = self.host.lookup(key, &mut self.host_value, flags);
        let device = self.device.lookup(key, &mut self.device_value, flags);
        if self.compare("lookup", key, host, device) && host.is_ok() {
            self.compare_values("lookup", key);
        }
    }

    /// Whether the host stored it.
    pub(super) fn update(&mut self, key: &[u8], value: &[u8], flags: u64) -> bool {
        let host = self.host.update(key, value, flags);
        let device = self.device.update(key, value, flags);
        if host != device {
            let operation = format!("update with flags {flags:#x}");
            self.compare(&operation, key, host, device);
        } else {
            self.done(1, host);
        }
        host.is_ok()
    }

    pub(super) fn delete(&mut self, key: &[u8]) {
        let host = self.host.delete(key);
        let device = self.device.delete(key);
        self.compare("delete", key, host, device);
    }

    pub(super) fn lookup_and_delete(&mut self, key: &[u8], flags: u64) {
        self.reset_values(self.shape.value_bytes);
        let host = self
            .host
            .lookup_and_delete(key, &mut self.host_value, flags);
        let device = self
            .device
            .lookup_and_delete(key, &mut self.device_value, flags);
        if self.compare("lookup-and-delete", key, host, device) && host.is_ok() {
            self.compare_values("lookup-and-delete", key);
        }
    }

    /// A hash table may choose which key is next, and so which is the last: after a key that
    /// is there, a key and ENOENT are both right, but what comes next must exist. After one
    /// that is not there, the answers are the same.
    pub(super) fn get_next_key(&mut self, key: Option<&[u8]>) {
        self.reset_values(self.shape.key_size);
        let host = self.host.get_next_key(key, &mut self.host_value);
        let device = self.device.get_next_key(key, &mut self.device_value);
        let shown = key.unwrap_or(&[]);
        let mut value = vec![0; self.shape.value_bytes];
        let last_here_or_there = !self.shape.indexed
            && matches!(
                (host, device),
                (Ok(()), Err(Errno::ENOENT)) | (Err(Errno::ENOENT), Ok(()))
            )
            && key.is_some_and(|key| self.host.lookup(key, &mut value, 0).is_ok());
        if last_here_or_there {
            self.done(1, host);
        } else if !self.compare("get-next", shown, host, device) {
            return;
        }
        if device.is_err() {
            return;
        }
        if self.shape.indexed {
            self.compare_values("get-next", shown);
        } else {
            let next = std::mem::take(&mut self.device_value);
            if let Err(errno) = self.host.lookup(&next, &mut value, 0) {
                let found = format!("{} comes next", hex(&next));
                self.differ("get-next", shown, format!("that key: {errno}"), found);
            }
            self.device_value = next;
        }
    }

    pub(super) fn lookup_many(&mut self, keys: &[u8], count: usize) {
        self.reset_values(self.shape.value_bytes * count);
        let mut host_results = vec![Ok(()); count];
        let mut device_results = vec![Ok(()); count];
        let host = self
            .host
            .lookup_many(keys, &mut self.host_value, &mut host_results);
        let device = self
            .device
            .lookup_many(keys, &mut self.device_value, &mut device_results);
        if !self.compare("lookup of many", &[], host, device) {
            return;
        }
        let key_size = self.shape.key_size;
        let mut same = true;
        for (i, (&host, &device)) in host_results.iter().zip(&device_results).enumerate() {
            let key = keys.get(i * key_size..(i + 1) * key_size).unwrap_or(&[]);
            same &= self.compare("lookup of many", key, host, device);
        }
        if same {
            // The value of a key that was not found stays as it was.
            self.compare_values("lookup of many", &[]);
        }
    }

    fn compare_batch(&mut self, operation: &str, keys: &[u8], host: Batch, device: Batch) {
        if (host.count, host.result) != (device.count, device.result) {
            let key = keys.get(..self.shape.key_size).unwrap_or(keys);
            self.differ(operation, key, batch(host), batch(device));
        }
        self.done(u64::from(host.count.max(1)), host.result);
    }

    /// Whether the map has such batches at all, by what the host says.
    pub(super) fn update_batch(
        &mut self,
        keys: &[u8],
        values: &[u8],
        count: u32,
        flags: u64,
    ) -> bool {
        let host = self.host.update_batch(keys, values, count, flags);
        let device = self.device.update_batch(keys, values, count, flags);
        let has = host.result != Err(Errno::ENOTSUPP);
        self.compare_batch("batch update", keys, host, device);
        has
    }

    pub(super) fn delete_batch(&mut self, keys: &[u8], count: u32) {
        let host = self.host.delete_batch(keys, count);
        let device = self.device.delete_batch(keys, count);
        self.compare_batch("batch delete", keys, host, device);
    }

    /// Walks both maps by get-next, at most `limit` keys, and compares what they hold.
    pub(super) fn iterate(&mut self, limit: u64) -> u64 {
        let host = iterate(self.host, &self.shape, limit);
        let device = iterate(self.device, &self.shape, limit);
        let stride = self.shape.key_size;
        self.compare_walks("iteration", host, device, stride)
    }

    /// Walks both maps by batches of `chunk`, and compares what they hold.
    pub(super) fn walk(&mut self, chunk: u32, delete: bool, limit: u64) -> u64 {
        let operation = if delete {
            "batch lookup-and-delete"
        } else {
            "batch lookup"
        };
        let host = walk(self.host, &self.shape, chunk, delete, limit);
        let device = walk(self.device, &self.shape, chunk, delete, limit);
        let stride = self.shape.key_size + self.shape.value_bytes;
        self.compare_walks(operation, host, device, stride)
    }

    fn compare_walks(&mut self, operation: &str, host: Walk, device: Walk, stride: usize) -> u64 {
        let count = host.count;
        if (host.count, &host.end) != (device.count, &device.end) {
            let show = |walk: &Walk| format!("{} entries, then {}", walk.count, walk.end);
            self.differ(operation, &[], show(&host), show(&device));
        } else if stride != 0 {
            let mut host_set: Vec<&[u8]> = host.entries.chunks_exact(stride).collect();
            let mut device_set: Vec<&[u8]> = device.entries.chunks_exact(stride).collect();
            if !self.shape.indexed {
                host_set.sort_unstable();
                device_set.sort_unstable();
            }
            if let Some((h, d)) = host_set.iter().zip(&device_set).find(|(h, d)| h != d) {
                let key = &h[..self.shape.key_size];
                self.differ(operation, key, hex(h), hex(d));
            }
            if let Some(twice) = host_set.windows(2).find(|w| w[0] == w[1]) {
                let text = "the entry comes twice".to_owned();
                self.differ(operation, twice[0], text.clone(), text);
            }
        }
        self.done(count.max(1), Ok(()));
        count
    }
}

fn iterate(map: &dyn MapAccess, shape: &Shape, limit: u64) -> Walk {
    let mut walk = Walk {
        entries: Vec::new(),
        count: 0,
        end: String::new(),
    };
    let mut key = vec![0; shape.key_size];
    let mut next = vec![0; shape.key_size];
    let mut result = map.get_next_key(None, &mut next);
    while result.is_ok() && walk.count < limit {
        walk.entries.extend_from_slice(&next);
        walk.count += 1;
        std::mem::swap(&mut key, &mut next);
        result = map.get_next_key(Some(&key), &mut next);
    }
    walk.end = match result {
        Ok(()) => "more".to_owned(),
        Err(errno) => errno.to_string(),
    };
    walk
}

fn walk(map: &dyn MapAccess, shape: &Shape, chunk: u32, delete: bool, limit: u64) -> Walk {
    let mut walk = Walk {
        entries: Vec::new(),
        count: 0,
        end: String::new(),
    };
    let mut room = chunk.max(1);
    let (mut token, mut next) = (None::<Vec<u8>>, vec![0; map.token_bytes()]);
    let mut idle = 0;
    let (mut keys, mut values) = (Vec::new(), Vec::new());
    loop {
        keys.resize(room as usize * shape.key_size, 0);
        values.resize(room as usize * shape.value_bytes, 0);
        let batch = map.walk_batch(
            token.as_deref(),
            &mut next,
            &mut keys,
            &mut values,
            room,
            delete,
        );
        if batch.count > room {
            walk.end = format!("{} entries where {room} fit", batch.count);
            return walk;
        }
        for i in 0..batch.count as usize {
            let (key, value) = (i * shape.key_size, i * shape.value_bytes);
            walk.entries
                .extend_from_slice(&keys[key..key + shape.key_size]);
            walk.entries
                .extend_from_slice(&values[value..value + shape.value_bytes]);
        }
        walk.count += u64::from(batch.count);
        idle = if batch.count == 0 { idle + 1 } else { 0 };
        match batch.result {
            // A bucket that does not fit: the caller is to come back with more room.
            Err(Errno::ENOSPC) if batch.count == 0 && room < u32::MAX / 2 && idle < IDLE_CALLS => {
                if u64::from(room) > limit * 2 + 64 {
                    walk.end = "ENOSPC with room for the whole map".to_owned();
                    return walk;
                }
                room *= 2;
            }
            Ok(()) if idle < IDLE_CALLS && walk.count < limit => {}
            Ok(()) => {
                walk.end = "more".to_owned();
                return walk;
            }
            Err(errno) => {
                walk.end = errno.to_string();
                return walk;
            }
        }
        token.get_or_insert_default().clone_from(&next);
    }
}

fn answer(answer: Answer) -> String {
    match answer {
        Ok(()) => "ok".to_owned(),
        Err(errno) => errno.to_string(),
    }
}

fn batch(batch: Batch) -> String {
    format!("{} done, then {}", batch.count, answer(batch.result))
}

fn hex(bytes: &[u8]) -> String {
    let mut out = String::new();
    for byte in bytes.iter().take(32) {
        let _ = write!(out, "{byte:02x}");
    }
    if bytes.len() > 32 {
        out.push('…');
    }
    out
}
