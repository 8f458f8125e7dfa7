//! One command in the simulation and one that the firmware's meter charges take the same time, to the picosecond:
//! two programs that have the profile and the link's arithmetic in common, and nothing else.

use offmap_abi::DevAddr;
use offmap_firmware_model::time::memory::TierRange;
use offmap_firmware_model::time::meter::Meter;
use offmap_model::profile;
use offmap_model::resolve::{Costs, resolve};
use offmap_model::system::simulate;
use offmap_model::workload::{self, CallOp, CallShare, MapType};

/// A lookup in an array by the meter, after its translations are known.
fn metered(timing: &str, value: u64, tier: usize, interrupt: bool) -> u64 {
    let profile = profile::find(timing).unwrap().profile;
    let mut meter = Meter::new(&profile).unwrap();
    let everything = TierRange {
        from: DevAddr(0),
        bytes: 1 << 20,
        tier,
    };
    meter.place(&[everything]).unwrap();
    let mut last = 0;
    for _ in 0..4 {
        let before: u64 = meter
            .modelled()
            .ops
            .iter()
            .map(|op| op.parts.total().0)
            .sum();
        meter.turn(1);
        meter.fetch(1, 0x10_0000);
        meter.table(DevAddr(4096), value);
        if value > 48 {
            meter.payload_write(0x20_0000, value);
        }
        meter.complete(1, 0x30_0000);
        meter.end_turn(1, interrupt);
        let after: u64 = meter
            .modelled()
            .ops
            .iter()
            .map(|op| op.parts.total().0)
            .sum();
        last = after - before;
    }
    last
}

/// The same by the simulation, without what the host's thread takes.
fn simulated(timing: &str, value: u32, tier: &str, interrupt: bool) -> u64 {
    let profile = profile::find(timing).unwrap().profile;
    let mut workload = workload::find("routes").unwrap();
    workload.map.map_type = MapType::Array;
    workload.map.prefixes.clear();
    workload.map.key_size = 4;
    workload.map.value_size = value;
    workload.map.max_entries = 512;
    workload.keys.hit_rate = 1.0;
    workload.call = vec![CallShare {
        op: CallOp::Lookup,
        weight: 1,
    }];
    workload.host.submit_ns = 0;
    workload.host.complete_ns = 0;
    workload.host.interrupts = interrupt;
    workload.nic.placement = tier.into();
    let resolved = resolve(&profile, &workload, &Costs::default()).unwrap();
    let outcome = simulate(&resolved.machine, 1, 500);
    assert_eq!(outcome.latencies.min, outcome.latencies.max);
    outcome.latencies.min
}

#[test]
fn a_lookup_takes_what_the_meter_charges() {
    for (timing, tiers) in [
        ("nfp6000", &["cls", "ctm", "imem"][..]),
        ("pcie5x16", &["sram"]),
    ] {
        for (n, tier) in tiers.iter().enumerate() {
            for value in [8, 16, 64] {
                for interrupt in [false, true] {
                    assert_eq!(
                        simulated(timing, value, tier, interrupt),
                        metered(timing, value.into(), n, interrupt),
                        "{timing}, {value} bytes in {tier}, interrupt: {interrupt}"
                    );
                }
            }
        }
    }
}
