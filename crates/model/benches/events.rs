//! Events per second: of queues of events by themselves, and of whole simulations.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use offmap_model::des::queue::EventQueue;
use offmap_model::des::random::Random;
use offmap_model::resolve::{Costs, resolve};
use offmap_model::system::simulate;
use offmap_model::{profile, workload};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::hint::black_box;

/// As large as an event of the simulation.
type Event = (u32, u32);

/// What a queue of events has to do.
trait Events {
    fn push(&mut self, at: u64, event: Event);
    fn pop(&mut self) -> Option<(u64, Event)>;
}

impl Events for EventQueue<Event> {
    fn push(&mut self, at: u64, event: Event) {
        self.push(at, event);
    }
    fn pop(&mut self) -> Option<(u64, Event)> {
        self.pop()
    }
}

/// The standard library's heap, with a number that keeps the order among equals.
#[derive(Default)]
struct Binary {
    heap: BinaryHeap<Reverse<(u64, u64, Event)>>,
    number: u64,
}

impl Events for Binary {
    fn push(&mut self, at: u64, event: Event) {
        self.heap.push(Reverse((at, self.number, event)));
        self.number += 1;
    }
    fn pop(&mut self) -> Option<(u64, Event)> {
        self.heap.pop().map(|Reverse((at, _, event))| (at, event))
    }
}

/// A heap of four children.
#[derive(Default)]
struct Quaternary {
    heap: Vec<(u64, u64, Event)>,
    number: u64,
}

impl Events for Quaternary {
    fn push(&mut self, at: u64, event: Event) {
        let item = (at, self.number, event);
        self.number += 1;
        self.heap.push(item);
        let mut n = self.heap.len() - 1;
        while n > 0 {
            let parent = (n - 1) / 4;
            if self.heap[parent] <= item {
                break;
            }
            self.heap[n] = self.heap[parent];
            n = parent;
        }
        self.heap[n] = item;
    }
    fn pop(&mut self) -> Option<(u64, Event)> {
        let item = self.heap.pop()?;
        let Some(&first) = self.heap.first() else {
            return Some((item.0, item.2));
        };
        let (mut n, len) = (0, self.heap.len());
        while 4 * n + 1 < len {
            let children = 4 * n + 1..(4 * n + 5).min(len);
            let least = children.min_by_key(|&c| self.heap[c]).unwrap_or(n);
            if item <= self.heap[least] {
                break;
            }
            self.heap[n] = self.heap[least];
            n = least;
        }
        self.heap[n] = item;
        Some((first.0, first.2))
    }
}

/// Events of about the distances in time that a simulation of a NIC has: link times of a few
/// nanoseconds, memory of a hundred, round trips of a microsecond.
fn hold(queue: &mut impl Events, distances: &[u64], events: usize) {
    for n in 0..events {
        let Some((at, event)) = queue.pop() else {
            return;
        };
        queue.push(at + distances[n % distances.len()], black_box(event));
    }
}

fn queues(criterion: &mut Criterion) {
    let mut random = Random::new(1, 0);
    let distances: Vec<u64> = (0..1 << 14)
        .map(|n| match n % 4 {
            0 => 2_000 + random.below(3_000),
            1 | 2 => 80_000 + random.below(40_000),
            _ => random.exponential(900_000),
        })
        .collect();
    let events = 1 << 16;
    let mut group = criterion.benchmark_group("queue");
    group.throughput(Throughput::Elements(events as u64));
    for pending in [16u32, 256, 4096, 65_536] {
        fn filled<Q: Events>(mut queue: Q, pending: u32) -> Q {
            for n in 0..pending {
                queue.push(u64::from(n), (n, n));
            }
            queue
        }
        let mut queue = filled(EventQueue::new(), pending);
        group.bench_function(BenchmarkId::new("radix", pending), |b| {
            b.iter(|| hold(&mut queue, &distances, events));
        });
        let mut queue = filled(Binary::default(), pending);
        group.bench_function(BenchmarkId::new("binary", pending), |b| {
            b.iter(|| hold(&mut queue, &distances, events));
        });
        let mut queue = filled(Quaternary::default(), pending);
        group.bench_function(BenchmarkId::new("quaternary", pending), |b| {
            b.iter(|| hold(&mut queue, &distances, events));
        });
    }
    group.finish();
}

/// Whole simulations: elements are events.
fn systems(criterion: &mut Criterion) {
    let profile = match profile::find("pcie5x16") {
        Ok(file) => file.profile,
        Err(error) => unreachable!("it is built in: {error}"),
    };
    let costs = Costs::default();
    let mut group = criterion.benchmark_group("simulation");
    for (name, depth) in [
        ("routes", 1),
        ("routes", 64),
        ("connections", 16),
        ("fleet", 4),
    ] {
        let Ok(mut workload) = workload::find(name) else {
            unreachable!("it is built in");
        };
        workload.host.depth = depth;
        workload.operations = 50_000;
        let resolved = match resolve(&profile, &workload, &costs) {
            Ok(resolved) => resolved,
            Err(error) => unreachable!("it fits: {error}"),
        };
        let events = simulate(&resolved.machine, 1, resolved.operations).events;
        group.throughput(Throughput::Elements(events));
        group.bench_function(BenchmarkId::new(name, depth), |b| {
            b.iter(|| simulate(black_box(&resolved.machine), 1, resolved.operations));
        });
    }
    group.finish();
}

criterion_group!(benches, queues, systems);
criterion_main!(benches);
