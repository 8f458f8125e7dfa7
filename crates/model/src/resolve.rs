//! From a timing profile and a workload to the [`Machine`] that is simulated.

use crate::cost::{Cost, CostError, LINE_BYTES, Op, Part, Shape, Step, cost};
use crate::des::random::ONE;
use crate::system::machine::{
    Access, Bus, Call, Engines, Host, Load, Machine, Packets, Recipe, TierPort,
};
use crate::workload::{Arrivals, CallOp, Share, Workload};
use offmap_abi::completion::INLINE_RESULT_BYTES;
use offmap_abi::submission::{INLINE_KEY_BYTES, INLINE_VALUE_BYTES};
use offmap_firmware_model::time::pcie::LinkError;
use offmap_firmware_model::time::profile::{Tier, TimingProfile};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use thiserror::Error;

/// Picoseconds of a second.
const SECOND: f64 = 1e12;
/// Bytes of the status that each element of a batch has.
const STATUS_BYTES: u32 = 2;

/// Why a workload cannot run on a profile's hardware.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum ResolveError {
    /// The map cannot be.
    #[error(transparent)]
    Cost(#[from] CostError),
    /// The link cannot be.
    #[error("pcie {text:?}: {error}")]
    Link {
        /// What was asked for.
        text: String,
        /// What is wrong with it.
        error: LinkError,
    },
    /// The link is not written as links are.
    #[error(
        "pcie {0:?} is not written as in gen4x8: generation 1 to 6, and 1, 2, 4, 8 or 16 lanes"
    )]
    LinkText(String),
    /// There is no such tier.
    #[error(
        "placement {placement:?} names no tier of the timing profile: auto, one of {known}, or two of them as INDEX/ENTRIES"
    )]
    Tier {
        /// What was asked for.
        placement: String,
        /// The tiers that there are.
        known: String,
    },
    /// The table is larger than the memory.
    #[error(
        "the table does not fit: its {part} would take {bytes} bytes on each NIC, and {place} {left} left; fewer entries, more NICs or another placement"
    )]
    Full {
        /// Index or entries.
        part: &'static str,
        /// What it takes.
        bytes: u64,
        /// The tier that has too little left, or that none has more.
        place: String,
        /// The most that there is.
        left: u64,
    },
}

/// A workload on a profile's hardware.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// What is simulated.
    pub machine: Machine,
    /// What the table takes on each NIC.
    pub cost: Cost,
    /// Where its index lies, and where its entries.
    pub tiers: [String; 2],
    /// Commands and packets of the run: as many as were asked for, and at least twenty times those in
    /// flight.
    pub operations: u64,
}

/// Costs that were counted already, by shape, for all threads that want them.
#[derive(Debug, Default)]
pub struct Costs(Mutex<HashMap<Shape, Counted>>);

/// What one thread counts and others may wait for.
type Counted = Arc<OnceLock<Result<Cost, CostError>>>;

impl Costs {
    fn of(&self, shape: Shape) -> Result<Cost, CostError> {
        let place = {
            // A thread that panicked left a map that is whole.
            let mut costs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(costs.entry(shape.clone()).or_default())
        };
        // Others count other shapes meanwhile, and wait for this one.
        place.get_or_init(|| cost(&shape)).clone()
    }
}

/// A share in parts of a million.
fn ppm(share: f64) -> u32 {
    (share.clamp(0.0, 1.0) * 1e6).round() as u32
}

/// Parts of a million as 65,536ths.
fn fixed(ppm: u32) -> u32 {
    ((u64::from(ppm) << 16) / 1_000_000) as u32
}

/// The share of accesses that a cache answers which holds what is asked for most, in parts of a million: `hot` is
/// a share of accesses and the share of bytes that they go to.
fn cached(cache: u64, bytes: u64, hot: Option<(u32, u32)>) -> u32 {
    const ALL: u128 = 1_000_000;
    if cache >= bytes {
        return ALL as u32;
    }
    let (accesses, entries) = hot.unwrap_or((0, 0));
    let (cache, bytes) = (u128::from(cache), u128::from(bytes));
    let (accesses, hot_bytes) = (u128::from(accesses), bytes * u128::from(entries) / ALL);
    if cache < hot_bytes {
        return (accesses * cache / hot_bytes) as u32;
    }
    let rest = (ALL - accesses) * (cache - hot_bytes) / (bytes - hot_bytes).max(1);
    (accesses + rest).min(ALL) as u32
}

/// The tiers of index and entries.
fn place(
    tiers: &[Tier],
    placement: &str,
    index: u64,
    entries: u64,
) -> Result<[usize; 2], ResolveError> {
    let mut left: Vec<u64> = tiers.iter().map(|tier| tier.size_bytes).collect();
    let parts = [("index", index), ("entries", entries)];
    let named = |name: &str| {
        let at = tiers.iter().position(|tier| tier.name == name);
        at.ok_or_else(|| ResolveError::Tier {
            placement: placement.to_owned(),
            known: tiers
                .iter()
                .map(|tier| tier.name.as_str())
                .collect::<Vec<_>>()
                .join(", "),
        })
    };
    let asked = match placement {
        "auto" => None,
        _ => {
            let (index, entries) = placement.split_once('/').unwrap_or((placement, placement));
            Some([named(index)?, named(entries)?])
        }
    };
    let mut places = [0; 2];
    for (n, (part, bytes)) in parts.into_iter().enumerate() {
        let full = |place: &str, left| ResolveError::Full {
            part,
            bytes,
            place: place.to_owned(),
            left,
        };
        let at = match asked {
            Some(asked) if left[asked[n]] < bytes => {
                let tier = format!("{} has", tiers[asked[n]].name);
                return Err(full(&tier, left[asked[n]]));
            }
            Some(asked) => asked[n],
            // Tiers stand in a profile with the fastest first.
            None => {
                let fits = left.iter().position(|&left| left >= bytes);
                fits.ok_or_else(|| {
                    full(
                        "no tier has more than",
                        left.iter().copied().max().unwrap_or(0),
                    )
                })?
            }
        };
        left[at] -= bytes;
        places[n] = at;
    }
    Ok(places)
}

/// The link of a profile, with another generation and number of lanes.
fn link(
    profile: &TimingProfile,
    pcie: Option<&str>,
) -> Result<offmap_firmware_model::time::pcie::Link, ResolveError> {
    let Some(text) = pcie else {
        return Ok(profile.link);
    };
    let bad = || ResolveError::LinkText(text.to_owned());
    let (generation, lanes) = text
        .strip_prefix("gen")
        .and_then(|rest| rest.split_once('x'))
        .ok_or_else(bad)?;
    let mut spec = *profile.link.spec();
    spec.generation = generation.parse().map_err(|_| bad())?;
    spec.lanes = lanes.parse().map_err(|_| bad())?;
    spec.build().map_err(|error| ResolveError::Link {
        text: text.to_owned(),
        error,
    })
}

/// The map on one NIC.
fn shape(workload: &Workload) -> Shape {
    let map = &workload.map;
    let max_entries = match workload.nic.share {
        Share::Divided => map.max_entries.div_ceil(workload.nic.count),
        Share::Copied => map.max_entries,
    };
    let lpm = map.map_type == crate::workload::MapType::LpmTrie;
    Shape {
        map_type: map.map_type.number(),
        key_size: map.key_size,
        value_size: map.value_size,
        max_entries,
        fill_ppm: if map.map_type.is_array() {
            1_000_000
        } else {
            ppm(map.fill)
        },
        cpu_slots: if map.map_type.is_percpu() {
            map.cpus
        } else {
            0
        },
        prefixes: match lpm && map.prefixes.is_empty() {
            true => vec![((map.key_size - 4) * 8, 1)],
            false => map.prefixes.clone(),
        },
    }
}

/// The machine that a workload on a profile's hardware is.
///
/// # Errors
///
/// [`ResolveError`].
pub fn resolve(
    profile: &TimingProfile,
    workload: &Workload,
    costs: &Costs,
) -> Result<Resolved, ResolveError> {
    let shape = shape(workload);
    let wire = shape.wire_bytes() as u32;
    let link = link(profile, workload.nic.pcie.as_deref())?;
    let cost = costs.of(shape.clone())?;
    let places = place(
        &profile.tiers,
        &workload.nic.placement,
        cost.index_bytes,
        cost.entries_bytes,
    )?;
    let (host, nic, device) = (&workload.host, &workload.nic, &profile.device);
    let hot = workload
        .keys
        .hot
        .map(|hot| (ppm(hot.accesses), ppm(hot.entries)));
    let tiers = profile.tiers.iter().enumerate().map(|(n, tier)| {
        let placed = [cost.index_bytes, cost.entries_bytes];
        let bytes: u64 = (0..2).filter(|&p| places[p] == n).map(|p| placed[p]).sum();
        TierPort {
            name: tier.name.clone(),
            latency: tier.latency.0,
            outstanding: tier.outstanding,
            hit_share: tier
                .cache
                .map_or(0, |c| fixed(cached(c.size_bytes, bytes, hot))),
            hit: tier.cache.map_or(0, |cache| cache.hit.0),
        }
    });
    let tiers: Vec<TierPort> = tiers.collect();

    // What an engine reads or writes of a per-CPU value is one slot.
    let recipe = |op: Op, slot: bool| {
        let steps = cost.of(op).unwrap_or(&[]).iter();
        let accesses = steps.map(|step: &Step| {
            let whole = step.part == Part::Entries && step.bytes == wire;
            let (bytes, lines) = match slot && whole {
                true => (workload.map.value_size, ONE),
                false => (step.bytes, step.lines),
            };
            let at = places[usize::from(step.part == Part::Entries)];
            let tier = &profile.tiers[at];
            // Whole units of the tier pass its port: at least those of the bytes, and of the lines
            // where it has lines.
            let unit = u64::from(tier.access_bytes);
            let units = u64::from(bytes).div_ceil(unit) * u64::from(ONE);
            let units = match unit == u64::from(LINE_BYTES) {
                true => units.max(lines.into()),
                false => units,
            };
            Access {
                tier: at as u32,
                times: step.times,
                service: tier.per_byte().of(units * unit).0 / u64::from(ONE),
            }
        });
        Recipe {
            accesses: accesses.collect(),
        }
    };
    let miss_share = fixed(1_000_000 - ppm(workload.keys.hit_rate));
    let batch = host.batch;
    let keys = match batch > 1 || shape.key_size as usize > INLINE_KEY_BYTES {
        true => shape.key_size * batch,
        false => 0,
    };
    let calls = workload.call.iter().map(|call| {
        let lookup = call.op == CallOp::Lookup;
        let stores = matches!(call.op, CallOp::Update | CallOp::Insert);
        let apart = |inline: usize| batch > 1 || wire as usize > inline;
        let hit = match call.op {
            CallOp::Lookup => Op::Hit,
            CallOp::Update => Op::Update,
            CallOp::Insert => Op::Insert,
            CallOp::Delete => Op::Delete,
        };
        Call {
            weight: call.weight.into(),
            reads: [
                keys,
                if stores && apart(INLINE_VALUE_BYTES) {
                    wire * batch
                } else {
                    0
                },
            ],
            hit: recipe(hit, false),
            miss: recipe(Op::Miss, false),
            miss_share: if lookup { miss_share } else { 0 },
            writes: if lookup && apart(INLINE_RESULT_BYTES) {
                wire
            } else {
                0
            },
            statuses: if batch > 1 { STATUS_BYTES * batch } else { 0 },
        }
    });
    let calls: Vec<Call> = calls.collect();
    let packets = workload.packets.map(|packets| Packets {
        gap: ((SECOND / 1e6) * f64::from(nic.count) / packets.mpps)
            .round()
            .max(1.0) as u64,
        poisson: packets.arrivals == Arrivals::Poisson,
        queue: packets.queue,
        cost: profile.cycles(packets.cycles.into()).0,
        hit: recipe(Op::Hit, true),
        miss: recipe(Op::Miss, true),
        miss_share,
        lookups: packets.lookups,
        update: recipe(Op::Update, true),
        updates: packets.updates,
    });
    let threads = f64::from(nic.count) * f64::from(host.queues);
    let side = &profile.host;
    let remote = if host.remote_node {
        side.remote_node.0
    } else {
        0
    };
    let reach = side
        .iommu
        .map(|iommu| u64::from(iommu.entries) * iommu.page_bytes);
    let buffers = host.buffers_kib.saturating_mul(1024);
    let missing = reach.map_or(0, |reach| 1_000_000 - cached(reach, buffers, None));
    let machine = Machine {
        nics: nic.count,
        queues: host.queues,
        depth: host.depth,
        batch,
        doorbell: host.doorbell,
        load: match host.rate {
            None => Load::Closed,
            Some(rate) => Load::Open {
                gap: (SECOND * threads / rate as f64).round().max(1.0) as u64,
            },
        },
        host: Host {
            submit: u64::from(host.submit_ns) * 1000,
            complete: u64::from(host.complete_ns) * 1000,
            interrupt: host.interrupts.then_some(side.interrupt.0),
            mmio_write: side.mmio_write.0,
            read: side.read.0 + remote + if side.warm { 0 } else { side.memory.0 },
            write: side.write.0 + remote,
            iommu_miss_share: fixed(missing),
            iommu_miss: side.iommu.map_or(0, |iommu| iommu.miss.0),
            walkers: side.iommu.map_or(1, |iommu| iommu.walkers),
        },
        bus: Bus {
            link,
            doorbell: device.doorbell.0,
            dma_setup: device.dma_setup.0,
            dma_issue: device.dma_issue.0,
            dma_store: device.store(),
            tags: device.read_tags,
        },
        engines: Engines {
            count: nic.engines.unwrap_or(device.engines),
            command: profile.cycles(device.cycles.command.into()).0,
            element: profile.cycles(device.cycles.element.into()).0,
            access: profile.cycles(device.cycles.access.into()).0,
            overlap: nic.overlap,
        },
        tiers,
        calls,
        packets,
    };
    let in_flight = u64::from(nic.count) * u64::from(host.queues) * u64::from(host.depth);
    let in_flight = if workload.call.is_empty() {
        0
    } else {
        in_flight
    };
    Ok(Resolved {
        machine,
        tiers: places.map(|at| profile.tiers[at].name.clone()),
        operations: workload.operations.max(20 * in_flight),
        cost,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cache_holds_what_is_asked_for_most() {
        assert_eq!(cached(100, 100, None), 1_000_000);
        assert_eq!(cached(25, 100, None), 250_000);
        // Nine tenths of accesses go to a tenth of the bytes.
        let hot = Some((900_000, 100_000));
        assert_eq!(cached(5, 100, hot), 450_000);
        assert_eq!(cached(10, 100, hot), 900_000);
        assert_eq!(cached(55, 100, hot), 950_000);
    }
}
