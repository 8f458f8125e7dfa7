//! Events that simulations handle in a second of a processor's time: `cargo run --release -p offmap-model
//! --example events`. On a machine that others use, too, the clock on the wall says less.

use offmap_model::resolve::{Costs, resolve};
use offmap_model::system::simulate;
use offmap_model::{profile, workload};

/// Nanoseconds that this thread has had a processor.
fn on_cpu_ns() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    text.split_whitespace().next()?.parse().ok()
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let profile = profile::find("pcie5x16")?.profile;
    let costs = Costs::default();
    for (name, depth) in [
        ("routes", 1),
        ("routes", 64),
        ("connections", 16),
        ("deny-list", 4),
        ("fleet", 4),
    ] {
        let mut workload = workload::find(name)?;
        workload.host.depth = depth;
        let resolved = resolve(&profile, &workload, &costs)?;
        let mut rates = Vec::new();
        for seed in 0..5 {
            let before = on_cpu_ns().ok_or("the kernel tells no schedstat")?;
            let outcome = simulate(&resolved.machine, seed, 200_000);
            let took = on_cpu_ns().ok_or("the kernel tells no schedstat")? - before;
            rates.push(outcome.events as f64 * 1e3 / took as f64);
        }
        rates.sort_by(f64::total_cmp);
        println!(
            "{name:<12} depth {depth:<3} {:.1} million events a second ({:.1} to {:.1})",
            rates[2], rates[0], rates[4]
        );
    }
    Ok(())
}
