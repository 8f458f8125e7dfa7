//! Nanoseconds per operation on each side.
//!
//! Both sides take turns in blocks of well under a millisecond, so that a noisy machine
//! disturbs both alike, and the median block counts.

use super::{Disagreement, Keys, MapAccess, Shape, write_value};
use offmap_bpf::Errno;
use offmap_bpf::uapi::BPF_ANY;
use std::hint::black_box;
use std::time::{Duration, Instant};

/// Length of a block, about.
const BLOCK: Duration = Duration::from_micros(400);
/// Blocks of each side.
const BLOCKS: usize = 25;
/// Keys that the timed operations take turns on.
const SAMPLE: u64 = 4096;
/// Elements of the timed batch.
pub(super) const MANY: usize = 64;
/// Most bytes of the timed batch's values.
const MANY_BYTES: usize = 4 << 20;

/// A figure for the host map and the device's map, in nanoseconds.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct PerSide {
    /// On the host map.
    pub host: f64,
    /// On the device's map.
    pub device: f64,
}

/// Nanoseconds per operation, medians.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Timings {
    /// A lookup of a key that is there.
    pub lookup: PerSide,
    /// An update of a key that is there.
    pub update: PerSide,
    /// A lookup of 64 keys at once, per key; `None` for values too large to hold 64 of.
    pub lookup_many: Option<PerSide>,
}

/// Times both maps, in which keys `0..present` of [`Keys`] with `seed` are stored. `None` if
/// there are none.
///
/// # Errors
///
/// The operation that failed although its key is there.
pub fn measure(
    host: &dyn MapAccess,
    device: &dyn MapAccess,
    shape: &Shape,
    present: u32,
    seed: u64,
) -> Result<Option<Timings>, Disagreement> {
    if present == 0 {
        return Ok(None);
    }
    let source = Keys::new(shape, seed);
    let sample = SAMPLE.min(u64::from(present)).max(MANY as u64);
    let key_size = shape.key_size;
    let mut keys = vec![0; sample as usize * key_size];
    for i in 0..sample {
        // Far apart, whatever `present` is: a stride that the sample wraps around with.
        let n = (i * (u64::from(present) / SAMPLE).max(1)) % u64::from(present);
        let at = i as usize * key_size;
        source.write(n, &mut keys[at..at + key_size]);
    }
    let key = |i: usize| {
        let at = i % sample as usize * key_size;
        &keys[at..at + key_size]
    };
    let mut value = vec![0; shape.value_bytes];
    write_value(seed, &mut value);
    let mut out = value.clone();

    let lookup = alternate("timed lookup", 1, host, device, |map, i| {
        map.lookup(key(i), black_box(&mut out), 0)
    })?;
    let update = alternate("timed update", 1, host, device, |map, i| {
        map.update(key(i), &value, BPF_ANY)
    })?;
    let lookup_many = if shape.value_bytes.saturating_mul(MANY) <= MANY_BYTES {
        let mut values = vec![0; shape.value_bytes * MANY];
        let mut results = [Ok(()); MANY];
        let groups = sample as usize / MANY;
        let timed = alternate("timed lookup of many", MANY, host, device, |map, i| {
            let at = i % groups * MANY * key_size;
            let keys = &keys[at..at + MANY * key_size];
            map.lookup_many(keys, black_box(&mut values), &mut results)?;
            results.iter().copied().collect()
        })?;
        Some(timed)
    } else {
        None
    };
    Ok(Some(Timings {
        lookup,
        update,
        lookup_many,
    }))
}

fn alternate(
    operation: &str,
    elements: usize,
    host: &dyn MapAccess,
    device: &dyn MapAccess,
    mut one: impl FnMut(&dyn MapAccess, usize) -> Result<(), Errno>,
) -> Result<PerSide, Disagreement> {
    let mut block = |map: &dyn MapAccess, start: usize, count: usize| {
        let began = Instant::now();
        for i in start..start + count {
            one(map, i)?;
        }
        Ok::<_, Errno>(began.elapsed())
    };
    let failed = |errno: Errno, on_host: bool| {
        let (mut host, mut device) = ("not tried".to_owned(), "not tried".to_owned());
        *(if on_host { &mut host } else { &mut device }) = errno.to_string();
        Disagreement {
            at: 0,
            operation: operation.to_owned(),
            key: String::new(),
            host,
            device,
            alike: 0,
        }
    };
    let sides = [(host, true), (device, false)];
    // As many operations as fit a block, found by doubling.
    let mut counts = [1_usize; 2];
    for ((map, on_host), count) in sides.into_iter().zip(&mut counts) {
        loop {
            let took = block(map, 0, *count).map_err(|errno| failed(errno, on_host))?;
            if took * 2 >= BLOCK {
                break;
            }
            *count *= 2;
        }
    }
    let mut times = [Vec::with_capacity(BLOCKS), Vec::with_capacity(BLOCKS)];
    for round in 0..BLOCKS {
        for (side, (map, on_host)) in sides.into_iter().enumerate() {
            let count = counts[side];
            let took = block(map, round * count, count).map_err(|errno| failed(errno, on_host))?;
            times[side].push(took.as_nanos() as f64 / (count * elements) as f64);
        }
    }
    let [host, device] = times.map(|mut times| {
        times.sort_unstable_by(f64::total_cmp);
        times[times.len() / 2]
    });
    Ok(PerSide { host, device })
}
