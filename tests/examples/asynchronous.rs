//! Operations on an offloaded map that end later than they begin, as tickets and as futures, and
//! the NIC's counters after that: what `docs/async.md` and `docs/metrics.md` show.

use futures::executor::block_on;
use futures::stream::{FuturesUnordered, StreamExt};
use offmap_bpf::{Caller, ElementOp, MapCreateAttr, System, SystemConfig};
use offmap_driver::{Driver, DriverConfig, Timing};
use offmap_emulator::{DeviceConfig, Inline};
use offmap_offload::{OffloadNic, Profile};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let config = DriverConfig {
        timing: Timing::Every,
        ..DriverConfig::default()
    };
    let driver = Driver::bring_up(Inline::new(DeviceConfig::default())?, config)?;
    let nic = OffloadNic::new(driver, Profile::offmap())?;
    let system = System::new(SystemConfig::default());
    let ifindex = system.register_netdev("nic0", nic.clone())?;
    let fd = system.map_create(
        &Caller::root(),
        &MapCreateAttr {
            map_type: 1, // BPF_MAP_TYPE_HASH
            key_size: 4,
            value_size: 8,
            max_entries: 1024,
            map_ifindex: ifindex.0,
            ..MapCreateAttr::default()
        },
    )?;
    let map_file = system.map_file(fd)?;

    let queue = nic.async_queue()?;
    let map = queue.open(&map_file)?;
    let (key, value) = (7u32.to_ne_bytes(), 42u64.to_ne_bytes());
    let mut ticket = map.submit(&ElementOp::Update {
        key: &key,
        value: &value,
        flags: 0,
    })?;
    let outcome = loop {
        if let Some(outcome) = ticket.poll() {
            break outcome;
        }
    };
    outcome?;

    let found = block_on(async {
        let lookups: FuturesUnordered<_> = (0..1000).map(|_| map.lookup(&key)).collect();
        lookups
            .filter(|outcome| futures::future::ready(outcome.is_ok()))
            .count()
            .await
    });
    println!("{found} of 1000 lookups found the key");

    let stats = nic.stats();
    for queue in &stats.driver.queues {
        for op in &queue.operations {
            println!(
                "{} {}: {} sent, {} done, p99 {:?}",
                queue.queue,
                op.opcode,
                op.submitted,
                op.completed(),
                op.times.quantile(0.99)
            );
        }
    }
    let text = offmap_offload::stats::openmetrics([("nic0", &stats)]);
    println!("{} lines of OpenMetrics text", text.lines().count());
    Ok(())
}
