//! The simulated system against what others know: queueing theory, and sums that are done by hand.

use offmap_firmware_model::time::PerByte;
use offmap_firmware_model::time::pcie::LinkSpec;
use offmap_model::des::queue::EventQueue;
use offmap_model::des::random::Random;
use offmap_model::des::resource::Server;
use offmap_model::system::machine::{
    Access, Bus, Call, Engines, Host, Load, Machine, Packets, Recipe, TierPort,
};
use offmap_model::system::simulate;
use offmap_model::system::stats::Outcome;

/// A NIC with one tier, and lookups of three accesses.
fn machine() -> Machine {
    let link = LinkSpec {
        generation: 4,
        lanes: 8,
        max_payload: 256,
        max_read_request: 512,
        read_completion_boundary: 64,
        completes_by_boundary: false,
        long_addresses: true,
        ecrc: false,
    };
    let access = |times: u32, service| Access {
        tier: 0,
        times,
        service,
    };
    Machine {
        nics: 1,
        queues: 1,
        depth: 1,
        batch: 1,
        doorbell: 1,
        load: Load::Closed,
        host: Host {
            submit: 60_000,
            complete: 40_000,
            interrupt: None,
            mmio_write: 100_000,
            read: 400_000,
            write: 110_000,
            iommu_miss_share: 0,
            iommu_miss: 330_000,
            walkers: 2,
        },
        bus: Bus {
            link: link.build().unwrap(),
            doorbell: 50_000,
            dma_setup: 53_000,
            dma_issue: 17_000,
            dma_store: PerByte::from_rate(9_600_000_000, 1).unwrap(),
            tags: 32,
        },
        engines: Engines {
            count: 4,
            command: 160_000,
            element: 80_000,
            access: 8_000,
            overlap: 1,
        },
        tiers: vec![TierPort {
            name: "sram".into(),
            latency: 90_000,
            outstanding: 16,
            hit_share: 0,
            hit: 0,
        }],
        calls: vec![Call {
            weight: 1,
            reads: [0, 0],
            hit: Recipe {
                accesses: vec![access(2 << 16, 1_500), access(1 << 16, 3_000)],
            },
            miss: Recipe::default(),
            miss_share: 0,
            writes: 64,
            statuses: 0,
        }],
        packets: None,
    }
}

fn assert_little(outcome: &Outcome) {
    assert_eq!(outcome.in_flight, outcome.latency_sum, "Little's law");
}

#[test]
fn one_command_takes_the_sum_of_its_parts_exactly() {
    let m = machine();
    let outcome = simulate(&m, 1, 1000);
    assert_little(&outcome);
    let wire = |bytes| m.bus.link.wire(bytes).0;
    let link = &m.bus.link;
    // To the NIC: made, stored, rung, fetched.
    let mut sum = m.host.submit + m.host.mmio_write + wire(link.write(0, 8).bytes) + m.bus.doorbell;
    let read = link.read(0, 64);
    sum += m.bus.dma_setup + wire(read.requests.bytes) + m.host.read;
    sum += wire(read.completions.bytes) + m.bus.dma_store.of(64).0;
    // On it: two accesses of one unit, and one of two.
    sum += m.engines.command + m.engines.element;
    sum += 3 * (90_000 + m.engines.access) + 6_000;
    // Back: the completion's DMA begins when the value's is taken.
    sum += 2 * m.bus.dma_setup + wire(link.write(0, 64).bytes) + m.host.write + m.host.complete;
    assert_eq!((outcome.latencies.min, outcome.latencies.max), (sum, sum));
    assert_eq!(outcome.issued, 1000);
    // Nothing is used for longer than it is needed, and then the throughput is one in that time.
    let rate = outcome.commands as f64 / outcome.window as f64;
    assert!((rate * sum as f64 - 1.0).abs() < 0.002, "{rate}");
}

#[test]
fn an_interrupt_adds_what_it_takes() {
    let plain = simulate(&machine(), 1, 200).latencies.max;
    let mut m = machine();
    m.host.interrupt = Some(1_000_000);
    let wire = m.bus.link.wire(m.bus.link.write(0, 4).bytes).0;
    let with = simulate(&m, 1, 200).latencies.max;
    assert_eq!(with, plain + wire + 1_000_000);
}

/// A tenth of all reads misses the IOTLB: so many are slower, by what a walk takes.
#[test]
fn translations_that_are_missing_are_waited_for() {
    let mut m = machine();
    m.host.iommu_miss_share = 6_554;
    let outcome = simulate(&m, 1, 20_000);
    let plain = simulate(&machine(), 1, 100).latencies.max;
    assert_eq!(outcome.latencies.min, plain);
    // Of the completion's write and the descriptor's read both may miss.
    assert_eq!(outcome.latencies.max, plain + 2 * 330_000);
    let mean = outcome.latencies.mean().unwrap() as f64;
    let expected = plain as f64 + 2.0 * 0.1 * 330_000.0;
    assert!((mean / expected - 1.0).abs() < 0.01, "{mean} {expected}");
}

/// Mean wait before service: Pollaczek and Khinchine, of arrivals that are a Poisson process, with
/// a load, the mean of the service and the mean of its square.
fn pollaczek_khinchine(gap: f64, mean: f64, square: f64) -> f64 {
    let load = mean / gap;
    assert!(load < 1.0);
    square / gap / (2.0 * (1.0 - load))
}

/// Packets at one engine whose services all take the same time.
#[test]
fn one_engine_is_an_m_d_1_queue() {
    for load in [0.3, 0.6, 0.8, 0.9] {
        let service = 100_000.0;
        let mut m = machine();
        m.calls.clear();
        m.engines.count = 1;
        m.packets = Some(Packets {
            gap: (service / load) as u64,
            poisson: true,
            queue: 65_536,
            cost: service as u64,
            hit: Recipe::default(),
            miss: Recipe::default(),
            miss_share: 0,
            lookups: 0,
            update: Recipe::default(),
            updates: 0,
        });
        let outcome = simulate(&m, 3, 2_000_000);
        let mean = outcome.packet_latencies.mean().unwrap() as f64;
        let expected = service + pollaczek_khinchine(service / load, service, service * service);
        assert!(
            (mean / expected - 1.0).abs() < 0.02,
            "load {load}: {mean} simulated, {expected} by the formula"
        );
        let engines = &outcome.uses[0];
        assert_eq!(engines.name, "engines");
        assert!((f64::from(engines.busy_ppm) / 1e6 - load).abs() < 0.01);
        assert_eq!(outcome.packets_dropped, 0);
    }
}

/// The same where one in four lookups misses and takes another time: M/G/1.
#[test]
fn services_of_two_lengths_wait_as_the_formula_says() {
    let mut m = machine();
    m.calls.clear();
    m.engines = Engines {
        count: 1,
        command: 0,
        element: 0,
        access: 0,
        overlap: 1,
    };
    let one = |times| Recipe {
        accesses: vec![Access {
            tier: 0,
            times,
            service: 0,
        }],
    };
    m.packets = Some(Packets {
        gap: 400_000,
        poisson: true,
        queue: 65_536,
        cost: 50_000,
        hit: one(1 << 16),
        miss: one(6 << 16),
        miss_share: 1 << 14,
        lookups: 1,
        update: Recipe::default(),
        updates: 0,
    });
    let outcome = simulate(&m, 5, 2_000_000);
    let (short, long) = (140_000.0f64, 590_000.0f64);
    let mean = 0.75 * short + 0.25 * long;
    let square = 0.75 * short * short + 0.25 * long * long;
    let expected = mean + pollaczek_khinchine(400_000.0, mean, square);
    let simulated = outcome.packet_latencies.mean().unwrap() as f64;
    assert!(
        (simulated / expected - 1.0).abs() < 0.03,
        "{simulated} simulated, {expected} by the formula"
    );
}

/// Services of exponentially distributed length, by the parts that the system is made of.
#[test]
fn a_server_is_an_m_m_1_queue() {
    for load in [0.5, 0.8, 0.9] {
        let (mut arrivals, mut services) = (Random::new(1, 1), Random::new(1, 2));
        let mean = 1_000_000u64;
        let gap = (mean as f64 / load) as u64;
        let mut events = EventQueue::new();
        let mut server = Server::default();
        events.push(0, None);
        let (mut sum, mut count, customers) = (0u128, 0u64, 2_000_000);
        let mut came = 0;
        while let Some((now, event)) = events.pop() {
            if let Some(since) = event {
                sum += u128::from(now - since);
                count += 1;
                continue;
            }
            let end = server.serve(now, services.exponential(mean));
            events.push(end, Some(now));
            came += 1;
            if came < customers {
                events.push(now + arrivals.exponential(gap), None);
            }
        }
        let simulated = sum as f64 / count as f64;
        let expected = mean as f64 / (1.0 - load);
        assert!(
            (simulated / expected - 1.0).abs() < 0.03,
            "load {load}: {simulated} simulated, {expected} by the formula"
        );
    }
}

/// Whatever the load: more is in flight for longer, nothing is faster than what bounds it, and
/// everything ends.
#[test]
fn no_throughput_is_above_what_a_resource_gives() {
    let mut last = 0.0;
    for depth in [1, 2, 4, 8, 16, 64, 256] {
        let mut m = machine();
        m.depth = depth;
        m.doorbell = 16;
        m.queues = 3;
        let outcome = simulate(&m, 1, 40_000);
        assert_little(&outcome);
        let per_second = outcome.commands as f64 / outcome.window as f64;
        // Each thread makes and takes in one after the other.
        let threads = 3.0 / (m.host.submit + m.host.complete) as f64;
        // Each engine is taken from the command's begin to its results.
        let busy = m.engines.command
            + m.engines.element
            + 3 * (90_000 + m.engines.access)
            + 6_000
            + m.bus.dma_setup;
        let engines = f64::from(m.engines.count) / busy as f64;
        // A value and a completion to the host for each, and a request for some.
        let wire = m.bus.link.wire(m.bus.link.write(0, 64).bytes).0 * 2;
        // The port passes four units.
        let bounds = [threads, engines, 1.0 / wire as f64, 1.0 / 6_000.0];
        let bound = bounds.into_iter().fold(f64::MAX, f64::min);
        assert!(per_second <= bound * 1.001, "{depth}: {per_second} {bound}");
        assert!(per_second >= last * 0.999, "{depth}: {per_second} {last}");
        last = per_second;
        for one in &outcome.uses {
            assert!(one.busy_ppm <= 1_000_000, "{one:?}");
        }
        // At the end the engines bound it, and say so.
        if depth == 256 {
            assert!(per_second > bound * 0.97, "{per_second} {bound}");
            assert_eq!(outcome.bottleneck().unwrap().name, "engines");
        }
    }
}

#[test]
fn each_resource_can_be_the_bottleneck() {
    let busiest = |change: &dyn Fn(&mut Machine)| {
        let mut m = machine();
        (m.depth, m.queues, m.doorbell) = (64, 4, 16);
        m.engines.count = 64;
        change(&mut m);
        let outcome = simulate(&m, 1, 40_000);
        assert_little(&outcome);
        let most = outcome.bottleneck().unwrap();
        assert!(most.busy_ppm > 950_000, "{:?}", outcome.uses);
        most.name.clone()
    };
    assert_eq!(busiest(&|m| m.host.submit = 900_000), "host threads");
    assert_eq!(busiest(&|m| m.engines.count = 2), "engines");
    assert_eq!(busiest(&|m| m.bus.dma_issue = 90_000), "DMA engine");
    assert_eq!(
        busiest(&|m| m.tiers[0].outstanding = 2),
        "sram outstanding accesses"
    );
    assert_eq!(
        busiest(&|m| m.calls[0].hit.accesses[0].service = 40_000),
        "sram bandwidth"
    );
    assert_eq!(busiest(&|m| m.calls[0].writes = 4096), "link to the host");
    assert_eq!(busiest(&|m| m.calls[0].reads = [0, 8192]), "DMA store");
    assert_eq!(
        busiest(&|m| {
            m.calls[0].reads = [0, 8192];
            m.bus.dma_store = PerByte::from_rate(1_000_000_000_000, 1).unwrap();
        }),
        "link to the NIC"
    );
    assert_eq!(
        busiest(&|m| {
            m.calls[0].reads = [0, 64];
            m.bus.tags = 1;
        }),
        "read tags"
    );
    assert_eq!(
        busiest(&|m| {
            m.host.iommu_miss_share = 1 << 16;
            m.host.walkers = 1;
        }),
        "IOMMU walkers"
    );
}

#[test]
fn an_open_load_is_served_until_it_is_too_much() {
    let at = |gap| {
        let mut m = machine();
        m.load = Load::Open { gap };
        m.depth = 64;
        let outcome = simulate(&m, 1, 100_000);
        assert_little(&outcome);
        let per_second = outcome.commands as f64 / outcome.window as f64;
        (
            per_second * gap as f64,
            outcome.latencies.quantile(0.99).unwrap(),
        )
    };
    let (calm, calm_p99) = at(2_000_000);
    assert!((calm - 1.0).abs() < 0.02, "{calm}");
    let (busy, busy_p99) = at(160_000);
    assert!((busy - 1.0).abs() < 0.02, "{busy}");
    assert!(busy_p99 > calm_p99);
    // Four engines take 593 ns a command: one in 148.25 ns is the most.
    let (much, much_p99) = at(100_000);
    assert!((much - 100_000.0 / 148_250.0).abs() < 0.02, "{much}");
    assert!(much_p99 > 100 * busy_p99, "{much_p99} {busy_p99}");
}

#[test]
fn packets_that_come_too_fast_are_dropped() {
    let mut m = machine();
    m.calls.clear();
    m.packets = Some(Packets {
        gap: 100_000 / 4 / 2,
        poisson: false,
        queue: 8,
        cost: 100_000,
        hit: Recipe::default(),
        miss: Recipe::default(),
        miss_share: 0,
        lookups: 0,
        update: Recipe::default(),
        updates: 0,
    });
    let outcome = simulate(&m, 1, 100_000);
    let kept = outcome.packets as f64 / outcome.packets_offered as f64;
    assert!((kept - 0.5).abs() < 0.01, "{kept}");
    assert!(outcome.uses[0].busy_ppm > 990_000);
}

/// The same numbers on every machine, and another seed gives others.
#[test]
fn reruns_are_bit_identical() {
    let mut m = machine();
    (m.nics, m.queues, m.depth, m.batch, m.doorbell) = (3, 2, 8, 4, 4);
    m.host.iommu_miss_share = 3000;
    m.tiers[0].hit_share = 20_000;
    m.tiers[0].hit = 30_000;
    m.calls[0].reads = [64, 0];
    m.calls[0].statuses = 8;
    m.calls[0].hit.accesses[0].times = (2 << 16) + 1234;
    m.packets = Some(Packets {
        gap: 300_000,
        poisson: true,
        queue: 8,
        cost: 50_000,
        hit: m.calls[0].hit.clone(),
        miss: Recipe::default(),
        miss_share: 2000,
        lookups: 1,
        update: m.calls[0].hit.clone(),
        updates: 1,
    });
    let print = |seed| {
        let outcome = simulate(&m, seed, 60_000);
        assert_little(&outcome);
        (
            outcome.end,
            outcome.events,
            outcome.latency_sum,
            outcome.packets_dropped,
            outcome.latencies.quantile(0.99),
            outcome.packet_latencies.sum,
        )
    };
    assert_eq!(print(7), print(7));
    assert_ne!(print(7), print(8));
    assert_eq!(print(7), PRINTED);
}

/// What it printed where it was written.
const PRINTED: (u64, u64, u128, u64, Option<u64>, u128) = (
    4_267_169_353,
    775_413,
    204_517_072_512,
    17_942,
    Some(13_549_567),
    209_989_077_578,
);
