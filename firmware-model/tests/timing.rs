//! The meter: closed forms, contention, translations, tags, and runs that repeat bit by bit.

use offmap_abi::DevAddr;
use offmap_firmware_model::time::bus::Bus;
use offmap_firmware_model::time::memory::{TierRange, TieredMemory};
use offmap_firmware_model::time::meter::{Meter, Modelled};
use offmap_firmware_model::time::pcie::LinkSpec;
use offmap_firmware_model::time::profile::{
    Cache, CommandCycles, DeviceTiming, HostTiming, Iommu, Tier, TimingProfile,
};
use offmap_firmware_model::time::{PerByte, Picos};

/// A device with round figures, so that sums can be done by hand.
fn profile() -> TimingProfile {
    TimingProfile {
        name: "test".into(),
        description: "round figures".into(),
        link: LinkSpec {
            generation: 3,
            lanes: 8,
            max_payload: 256,
            max_read_request: 512,
            read_completion_boundary: 64,
            completes_by_boundary: false,
            long_addresses: true,
            ecrc: false,
        }
        .build()
        .unwrap(),
        host: HostTiming {
            mmio_write: Picos(100_000),
            read: Picos(400_000),
            write: Picos(90_000),
            memory: Picos(70_000),
            warm: true,
            remote_node: Picos(110_000),
            interrupt: Picos(1_000_000),
            iommu: None,
        },
        device: DeviceTiming {
            clock_mhz: 1000,
            engines: 4,
            doorbell: Picos(20_000),
            dma_setup: Picos(50_000),
            dma_issue: Picos(10_000),
            dma_store_bytes_per_s: 10_000_000_000,
            read_tags: 32,
            cycles: CommandCycles {
                command: 100,
                element: 40,
                access: 5,
            },
        },
        tiers: vec![
            Tier {
                name: "sram".into(),
                size_bytes: 1 << 20,
                access_bytes: 64,
                latency: Picos(30_000),
                bytes_per_s: 32_000_000_000,
                outstanding: 8,
                cache: None,
            },
            Tier {
                name: "dram".into(),
                size_bytes: 1 << 32,
                access_bytes: 64,
                latency: Picos(200_000),
                bytes_per_s: 12_800_000_000,
                outstanding: 4,
                cache: Some(Cache {
                    size_bytes: 1 << 16,
                    line_bytes: 64,
                    hit: Picos(50_000),
                }),
            },
        ],
    }
}

fn with(change: impl FnOnce(&mut TimingProfile)) -> TimingProfile {
    let mut profile = profile();
    change(&mut profile);
    profile
}

const IOMMU: Iommu = Iommu {
    entries: 64,
    page_bytes: 4096,
    miss: Picos(330_000),
    walkers: 1,
};

#[test]
fn a_read_alone_takes_the_sum_of_its_parts() {
    let profile = profile();
    let wire = |bytes| profile.link.wire(bytes);
    let store = PerByte::from_rate(10_000_000_000, 1).unwrap();
    for (iova, bytes) in [(0x1000, 64), (0x1000, 1), (0x1020, 100), (0x1000, 512)] {
        let tlps = profile.link.read(iova, bytes);
        let expected = Picos(50_000 + 400_000)
            + wire(tlps.requests.bytes)
            + wire(tlps.completions.bytes)
            + store.of(bytes);
        let took = Bus::new(&profile).read(Picos::ZERO, iova, bytes);
        assert_eq!(took, expected, "{bytes}");
        let posted = Bus::new(&profile).write(Picos(5), iova, bytes);
        assert_eq!(posted.taken, Picos(50_005));
        let packets = wire(profile.link.write(iova, bytes).bytes);
        assert_eq!(posted.visible, Picos(50_005 + 90_000) + packets);
    }
    // Several requests overlap: the last one's request, and completions one after the other.
    let whole = profile.link.read(0, 2048);
    let took = Bus::new(&profile).read(Picos::ZERO, 0, 2048);
    let expected = Picos(50_000 + 400_000)
        + wire(whole.requests.bytes / 4)
        + wire(whole.completions.bytes / 4).times(4)
        + store.of(2048);
    assert_eq!(took, expected);
    let doorbell = Bus::new(&profile).doorbell(Picos(7));
    assert_eq!(doorbell, Picos(7 + 100_000 + 20_000) + wire(24 + 8));
    let interrupt = Bus::new(&profile).interrupt(Picos(7));
    assert_eq!(interrupt, Picos(7 + 1_000_000) + wire(24 + 4));
}

#[test]
fn distance_and_cold_caches_add_what_the_profile_says() {
    let took = |profile: &TimingProfile, remote| {
        let mut bus = Bus::new(profile);
        bus.set_remote(remote);
        bus.read(Picos::ZERO, 0, 64)
    };
    let near = took(&profile(), false);
    assert_eq!(took(&profile(), true), near + Picos(110_000));
    let cold = with(|p| p.host.warm = false);
    assert_eq!(took(&cold, false), near + Picos(70_000));
}

#[test]
fn more_bytes_cost_no_less_and_more_lanes_no_more() {
    for iova in [0, 1, 63, 64, 500, 4095] {
        let read = |lanes: u8, bytes| {
            let faster = with(|p| {
                p.link = LinkSpec {
                    lanes,
                    ..*p.link.spec()
                }
                .build()
                .unwrap();
            });
            let mut bus = Bus::new(&faster);
            (
                bus.read(Picos::ZERO, iova, bytes),
                bus.write(Picos::ZERO, iova, bytes).visible,
            )
        };
        for bytes in (1..5000).step_by(37) {
            let (this, next) = (read(8, bytes), read(8, bytes + 37));
            assert!(next.0 >= this.0 && next.1 >= this.1, "{iova} {bytes}");
            let wider = read(16, bytes);
            assert!(wider.0 <= this.0 && wider.1 <= this.1, "{iova} {bytes}");
        }
    }
    let access = |bytes| {
        TieredMemory::new(&profile())
            .access(Picos::ZERO, DevAddr(40), bytes)
            .0
    };
    assert!((1..3000).map(access).is_sorted());
}

#[test]
fn two_at_once_take_longer_than_one_and_no_longer_than_both() {
    let profile = profile();
    for bytes in [64, 512, 4096] {
        let one = Bus::new(&profile).read(Picos::ZERO, 0, bytes);
        let mut bus = Bus::new(&profile);
        let first = bus.read(Picos::ZERO, 0, bytes);
        let second = bus.read(Picos::ZERO, 8192, bytes);
        assert_eq!(first, one);
        assert!(
            second > one && second < one + one,
            "{bytes}: {one} {second}"
        );
    }
    let mut memory = TieredMemory::new(&profile);
    let mut times: Vec<Picos> = (0..8)
        .map(|n| memory.access(Picos::ZERO, DevAddr(n * 64), 64).0)
        .collect();
    // Four at a time: the fifth waits for the first one's place.
    let service = PerByte::from_rate(12_800_000_000, 1).unwrap().of(64);
    let expected: Vec<Picos> = (0..8)
        .map(|n: u64| Picos(200_000).times(n / 4 + 1) + service.times(n / 4 + n % 4 + 1))
        .collect();
    times.sort_unstable();
    assert!(times[0] == expected[0] && times[3] == expected[3]);
    assert!(times[4] >= times[0] + Picos(200_000) && times[7] <= times[0].times(8));
}

#[test]
fn the_order_of_charges_does_not_matter_where_nothing_contends() {
    // A command that is charged later, and began earlier, finds the gap.
    let mut bus = Bus::new(&profile());
    let late = bus.read(Picos(10_000_000), 0, 64);
    let early = bus.read(Picos::ZERO, 4096, 64);
    assert_eq!(late.since(Picos(10_000_000)), early);
}

#[test]
fn tags_run_out() {
    let few = with(|p| p.device.read_tags = 2);
    let mut bus = Bus::new(&few);
    let times: Vec<Picos> = (0..6)
        .map(|n| bus.read(Picos::ZERO, n * 4096, 64))
        .collect();
    // In pairs, each a round trip after the one before.
    let trip = Picos(400_000);
    assert!(times[1].since(times[0]) < Picos(50_000), "{times:?}");
    assert!(
        times[2].since(times[0]) >= trip && times[4].since(times[2]) >= trip,
        "{times:?}"
    );
    let mut many = Bus::new(&profile());
    let last = (0..6)
        .map(|n| many.read(Picos::ZERO, n * 4096, 64))
        .max()
        .unwrap();
    assert!(last < times[2], "{last}");
}

#[test]
fn translations_are_remembered_up_to_the_entries() {
    let behind = with(|p| p.host.iommu = Some(IOMMU));
    let mut bus = Bus::new(&behind);
    let plain = Bus::new(&profile()).read(Picos::ZERO, 0, 64);
    // Far apart in time, so that nothing waits for anything else.
    let mut at = Picos::ZERO;
    let mut read = |iova| {
        at += Picos(100_000_000);
        bus.read(at, iova, 64).since(at)
    };
    assert_eq!(read(0), plain + IOMMU.miss);
    assert_eq!(read(64), plain);
    for page in 1..64 {
        assert_eq!(read(page << 12), plain + IOMMU.miss);
    }
    assert!(
        (0..64).all(|page| read(page << 12) == plain),
        "64 pages fit"
    );
    // A window of twice as many pages, over and over: none is there when it is needed again.
    let again = (0..128).filter(|page| read(page << 12) == plain).count();
    assert_eq!(
        (0..128).filter(|page| read(page << 12) == plain).count(),
        0,
        "{again}"
    );
    // Across two pages of which neither is known, with one walker: one walk after the other.
    let across = read((500 << 12) - 32);
    assert!(
        across > plain + IOMMU.miss.times(2) - Picos(20_000),
        "{across}"
    );
    bus.forget_translations();
    let counts = bus.counts();
    assert_eq!(counts.iotlb_hits + counts.iotlb_misses, counts.reads + 1);
}

#[test]
fn addresses_belong_to_tiers() {
    let mut memory = TieredMemory::new(&profile());
    let range = |from, bytes, tier| TierRange {
        from: DevAddr(from),
        bytes,
        tier,
    };
    assert_eq!(memory.tier_of(DevAddr(0)), 1);
    memory
        .place(&[range(4096, 4096, 0), range(0, 64, 0)])
        .unwrap();
    let tiers = [0, 63, 64, 4095, 4096, 8191, 8192, u64::MAX].map(|at| memory.tier_of(DevAddr(at)));
    assert_eq!(tiers, [0, 0, 1, 1, 0, 0, 1, 1]);
    for bad in [
        vec![range(0, 65, 0), range(64, 1, 1)],
        vec![range(0, 1, 2)],
        vec![range(u64::MAX, 2, 0)],
    ] {
        let said = memory.place(&bad).unwrap_err().to_string();
        assert!(said.starts_with("a range's"), "{said}");
    }
    assert_eq!(
        memory.tier_of(DevAddr(4096)),
        0,
        "a refusal changes nothing"
    );
    // The cache in front of the last tier.
    let first = memory.access(Picos::ZERO, DevAddr(1 << 20), 8).0;
    let at = Picos(1_000_000);
    let second = memory.access(at, DevAddr(1 << 20), 8).0.since(at);
    assert_eq!(first.since(second), Picos(150_000));
    let sram = memory.access(at, DevAddr(0), 8).0.since(at);
    assert_eq!(sram, Picos(30_000 + 2_000));
    let counts: Vec<_> = memory.counts().collect();
    assert_eq!(
        (counts[1].accesses, counts[1].hits, counts[0].hits),
        (2, 1, 0)
    );
}

/// One command of a queue, as a lookup is charged; its latency.
fn lookup(meter: &mut Meter, n: u64) {
    meter.fetch(1, 0x10_0000 + n * 64);
    meter.table(DevAddr(n * 4096), 64);
    meter.table(DevAddr(n * 4096 + 64), 72);
    meter.payload_write(0x20_0000 + n * 64, 64);
    meter.complete(1, 0x30_0000 + n * 64);
}

#[test]
fn the_parts_of_a_command_add_up() {
    let mut meter = Meter::new(&profile()).unwrap();
    meter.turn(1);
    lookup(&mut meter, 0);
    meter.end_turn(1, true);
    let modelled = meter.modelled();
    let [op] = &modelled.ops[..] else {
        panic!("{modelled:?}");
    };
    let parts = op.parts;
    assert_eq!(op.latencies.mean(), Some(parts.total()));
    assert_eq!(modelled.end, parts.total());
    let wire = |bytes| profile().link.wire(bytes);
    assert_eq!(parts.doorbell, Picos(120_000) + wire(32));
    assert_eq!(parts.fetch, Bus::new(&profile()).read(Picos::ZERO, 0, 64));
    assert_eq!(parts.engine, Picos(100_000 + 40_000 + 2 * 5_000));
    assert_eq!(parts.tables[1], Picos(200_000 * 2 + 5_000 + 10_000));
    assert_eq!(parts.payload, Picos(50_000));
    assert_eq!(parts.completion, Picos(50_000 + 90_000) + wire(88));
    assert_eq!(parts.interrupt, Picos(1_000_000) + wire(28));
}

#[test]
fn commands_of_a_turn_are_under_way_together() {
    let run = |turns: u64, each: u64| {
        let mut meter = Meter::new(&profile()).unwrap();
        for turn in 0..turns {
            meter.turn(1);
            for n in 0..each {
                lookup(&mut meter, turn * each + n);
            }
            meter.end_turn(1, false);
        }
        meter.modelled()
    };
    let (alone, together) = (run(32, 1), run(1, 32));
    assert!(together.end < alone.end, "in flight at once is faster");
    let mean = |m: &Modelled| m.ops[0].latencies.mean().unwrap();
    assert!(mean(&together) > mean(&alone), "but each one waits");
    let parts = alone.ops[0].parts;
    let engines = parts.engine + parts.tables[1] + parts.payload;
    assert!(
        together.end.times(4) > engines,
        "four engines do no more than four"
    );
    let spread = |m: &Modelled| {
        (
            m.ops[0].latencies.least().unwrap(),
            m.ops[0].latencies.greatest().unwrap(),
        )
    };
    assert!(
        spread(&together).1 > spread(&together).0.times(2),
        "a distribution comes out"
    );
}

#[test]
fn queues_contend_and_none_begins_before_another() {
    let mut meter = Meter::new(&profile()).unwrap();
    for n in 0..100 {
        meter.turn(1);
        lookup(&mut meter, n);
        meter.end_turn(1, false);
    }
    let busy = meter.modelled().end;
    meter.turn(2);
    lookup(&mut meter, 200);
    meter.end_turn(2, false);
    let op = &meter.modelled().ops[0];
    assert!(meter.modelled().end > busy - op.latencies.mean().unwrap());
    // It was not charged for what had happened long before.
    assert!(op.latencies.greatest().unwrap() < op.latencies.mean().unwrap().times(2));
}

#[test]
fn a_command_may_take_several_turns() {
    let mut meter = Meter::new(&profile()).unwrap();
    meter.turn(1);
    meter.fetch(0x11, 0);
    meter.table(DevAddr(0), 64);
    meter.suspend(1);
    meter.end_turn(1, false);
    assert_eq!(meter.modelled().ops.len(), 0);
    meter.turn(2);
    lookup(&mut meter, 3);
    meter.end_turn(2, false);
    meter.turn_on(1);
    meter.table(DevAddr(64), 64);
    meter.complete(10, 64);
    meter.end_turn(1, false);
    let modelled = meter.modelled();
    let batch = modelled.ops.iter().find(|op| op.opcode == 0x11).unwrap();
    assert_eq!((batch.elements, batch.latencies.count()), (10, 1));
    assert_eq!(batch.latencies.mean(), Some(batch.parts.total()));
    assert_eq!(batch.parts.engine, Picos(100_000 + 10 * 40_000 + 2 * 5_000));
    // A queue that is gone takes its command along; one that broke off leaves what was done.
    meter.turn(3);
    meter.fetch(2, 0);
    meter.suspend(3);
    meter.forget(3);
    meter.turn(4);
    lookup(&mut meter, 9);
    meter.turn(1);
    assert_eq!(
        meter
            .modelled()
            .ops
            .iter()
            .map(|op| op.latencies.count())
            .sum::<u64>(),
        3
    );
}

#[test]
fn a_profile_that_cannot_be_makes_no_meter() {
    let none = with(|p| p.tiers.clear());
    let said = Meter::new(&none).unwrap_err().to_string();
    assert_eq!(said, "the number of tiers is 0; it is from 1 to 8");
}

/// A seeded run of everything that can be charged: turns with one command and with several, of several queues.
fn seeded(turns: u64, most: u64, everything: bool) -> Modelled {
    let mut meter = Meter::new(&with(|p| p.host.iommu = Some(IOMMU))).unwrap();
    if everything {
        meter.book_everything();
    }
    let mut seed = 7_u64;
    let mut random = |n: u64| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed % n
    };
    for _ in 0..turns {
        // Mostly one queue for a while, so that commands are alone in between.
        let queue = if random(4) == 0 { random(4) as u16 } else { 0 };
        meter.turn(queue);
        for _ in 0..=random(most) {
            meter.fetch(random(7) as u8, random(1 << 12) * 64);
            for _ in 0..random(5) {
                meter.table(DevAddr(random(1 << 24)), 1 + random(200));
            }
            match random(6) {
                0 => meter.payload_read(random(1 << 24), 1 + random(5000)),
                1 => meter.payload_write(random(1 << 24), 1 + random(5000)),
                // Of a few pages, so that some are known.
                2 => meter.payload_read(random(1 << 14), 1 + random(600)),
                3 => {
                    for _ in 0..=random(2) {
                        meter.payload_write(random(1 << 14), 1 + random(600));
                    }
                }
                _ => {}
            }
            meter.complete(1, random(1 << 12) * 64);
        }
        if random(50) == 0 {
            meter.forget_translations();
        }
        meter.end_turn(queue, random(4) == 0);
    }
    meter.modelled()
}

#[test]
fn reruns_are_bit_identical() {
    let (first, second) = (seeded(2_000, 8, false), seeded(2_000, 8, false));
    assert_eq!(first, second);
    // Times are integers throughout, so this holds wherever the test runs. It changes with the model: then the
    // constant is to be changed with it.
    assert_eq!(first.digest, 0x8ea3_68e7_bdec_9dcd, "{:#x}", first.digest);
}

/// Commands that are alone are summed up instead of booked; where another one comes, it is booked after all.
#[test]
fn the_sums_of_commands_that_are_alone_are_what_booking_gives() {
    for most in [1, 2, 3, 8] {
        assert_eq!(
            seeded(3_000, most, false),
            seeded(3_000, most, true),
            "{most}"
        );
    }
}
