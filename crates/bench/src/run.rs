//! A whole run: repetitions of the plan, and the document of what they showed.

use crate::blocks::{Amount, Planted, clock_cost, measure};
use crate::error::Measured;
use crate::machine::{Machine, meminfo};
use crate::mix::Sequence;
use crate::plan::{Group, Sizes, plan};
use crate::report::Document;
use crate::sides::World;
use offmap_bpf::device::OffloadDevice;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What to measure.
#[derive(Clone)]
pub struct Config {
    /// The maps' shapes, and whether the long groups are left out.
    pub sizes: Sizes,
    /// How much of each group.
    pub amount: Amount,
    /// How often everything is measured anew, with new maps; at least 1.
    pub repetitions: usize,
    /// Seed of keys and orders.
    pub seed: u64,
    /// Only the groups of these names; all of them when it is empty.
    pub only: Vec<String>,
    /// The `offmap` program, started as a device in another process.
    pub nic: Option<PathBuf>,
    /// The device that [`crate::sides::BackEnd::Device`] stands for.
    pub device: Option<Arc<dyn OffloadDevice>>,
    /// Sequences of calls, measured instead of the plan.
    pub sequences: Vec<Arc<Sequence>>,
    /// A slowdown on purpose.
    pub planted: Option<Planted>,
}

/// Hears how a run gets on.
pub trait Progress {
    /// A run of so many turns begins.
    fn begin(&mut self, turns: u64);
    /// A group begins.
    fn group(&mut self, name: &str);
    /// A turn is done.
    fn turn(&mut self);
}

/// Bytes that a group's sides take, about: each has the entries, and the table around them.
fn bytes(group: &Group) -> u64 {
    let workload = &group.workload;
    let entry = (workload.key_size + workload.value_size + 64) as u64;
    workload.max_entries() as u64 * entry * group.sides.len() as u64 * 2
}

/// Measures.
///
/// # Errors
///
/// When this thread cannot be bound to a processor, without which nothing here can be compared. A back end that
/// is not available is no error but a part of the document, with its reason.
pub fn run(config: &Config, progress: &mut dyn Progress) -> Measured<Document> {
    let started = Instant::now();
    let world = World::new(config.nic.clone(), config.device.clone())?;
    let mut groups: Vec<Group> = match config.sequences.is_empty() {
        true => plan(&config.sizes),
        false => config
            .sequences
            .iter()
            .map(|sequence| Group::of_sequence(sequence, config.device.is_some()))
            .collect(),
    };
    groups.retain(|g| config.only.is_empty() || config.only.iter().any(|only| only == g.name));
    let free = meminfo("MemAvailable");
    let (groups, too_large): (Vec<_>, Vec<_>) = groups
        .into_iter()
        .partition(|group| bytes(group) < free / 2);
    progress.begin((groups.len() * config.repetitions * config.amount.blocks) as u64);
    let mut repetitions = Vec::new();
    for repetition in 0..config.repetitions {
        let seed = config.seed.wrapping_add(repetition as u64);
        let mut measured = Vec::new();
        for group in &groups {
            progress.group(&group.label());
            let amount = group.amount(config.amount);
            let samples = measure(&world, group, amount, seed, config.planted, &mut || {
                progress.turn();
            });
            measured.push((group.clone(), samples));
        }
        repetitions.push(measured);
    }
    let machine = Machine::this(world.processors());
    let took = started.elapsed();
    let mut document = Document::new(
        config,
        machine,
        &repetitions,
        Duration::from_nanos(clock_cost()),
        took,
    );
    document.skipped = too_large
        .iter()
        .map(|group| {
            format!(
                "{} with {} entries: it wants about {} MiB, and {} MiB of memory are available",
                group.name,
                group.workload.entries,
                bytes(group) >> 20,
                free >> 20
            )
        })
        .collect();
    Ok(document)
}
