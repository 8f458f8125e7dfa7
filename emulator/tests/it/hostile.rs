//! A host that does anything at all: the device neither panics nor hangs, and a reset brings
//! it back.

use crate::host::*;
use offmap_abi::notify::{NOTIFY_CQ_EVENT, NOTIFY_CQ_HEAD, NOTIFY_SQ_TAIL};
use offmap_abi::{Status, regs};
use offmap_device_io::{BarOffset, Function, Iova};
use rand::{Rng, RngExt, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Runs `rounds` of random mischief on a device and checks after each that it works again.
fn attack<F: Function>(f: Arc<F>, seed: u64, rounds: u32, blows: u32) {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
    let host = Host::new(f);
    let mut fatal = 0;
    for _ in 0..rounds {
        host.f.reset().unwrap();
        let mut admin = host.bring_up(16, 0);
        let _irq = enable(&*host.f, 0);
        let map = host.create_map(&mut admin, 1, 8, 64, 100).unwrap();
        let mut queues = vec![
            host.create_queue(&mut admin, 1, 8, 1, true),
            host.create_queue(&mut admin, 2, 16, NONE, false),
        ];
        queues.push(admin);
        // Some rounds leave the rings in order, so that the commands themselves get far.
        let gentle = rng.random_bool(0.5);
        let data = host.map(8192);
        let mut data_mapped = true;
        for _ in 0..blows {
            let i = rng.random_range(0..queues.len());
            match rng.random_range(0..if gentle { 4 } else { 10 }) {
                0 | 1 => {
                    // A well-formed entry with wild operands.
                    let q = &mut queues[i];
                    while q.poll().is_some() {}
                    if q.sent.wrapping_sub(q.taken) < q.depth {
                        q.publish_head(&*host.f);
                        let s = wild_command(&mut rng, map.0, data.iova);
                        q.push(&s);
                        q.publish(&*host.f);
                    }
                }
                2 => {
                    if data_mapped {
                        host.f.dma_unmap(Iova(data.iova), 8192).unwrap();
                    } else {
                        host.f.dma_map(&data.memory, Iova(data.iova)).unwrap();
                    }
                    data_mapped = !data_mapped;
                }
                3 => {
                    for _ in 0..rng.random_range(1..20) {
                        host.f.progress();
                    }
                }
                4 | 5 => wild_register(&mut rng, &*host.f),
                6 => {
                    let ring = &queues[i].sq.memory;
                    let at = rng.random_range(0..ring.len() / 8) * 8;
                    ring.store_u64(at, rng.next_u64(), Ordering::Release);
                }
                7 => {
                    if let Some(n) = &queues[i].notify {
                        let which = [NOTIFY_SQ_TAIL, NOTIFY_CQ_HEAD, NOTIFY_CQ_EVENT];
                        let value = wild_count(&mut rng);
                        let at = which[rng.random_range(0..3usize)];
                        n.memory.store_u64(at, value, Ordering::Release);
                    }
                }
                8 => {
                    let mut bytes = vec![0; rng.random_range(0..9)];
                    rng.fill_bytes(&mut bytes);
                    let _ = host.f.config_write(rng.random_range(0..300), &bytes);
                }
                _ => {
                    let q = &queues[i];
                    let mut victims = vec![&q.sq, &q.cq];
                    victims.extend(&q.notify);
                    let m = victims[rng.random_range(0..victims.len())];
                    // May have been unmapped before.
                    let _ = host.f.dma_unmap(Iova(m.iova), m.memory.len());
                }
            }
            host.f.progress();
        }
        host.command(0x2);
        fatal += u32::from(host.status().contains(regs::DeviceStatus::FATAL));

        host.f.reset().unwrap();
        let mut admin = host.bring_up(16, NONE);
        let map = host.create_map(&mut admin, 1, 8, 8, 10).unwrap();
        let mut q = host.create_queue(&mut admin, 4, 8, NONE, true);
        let c = host.run(&mut q, update(map, 1, &[1; 8], &[2; 8]));
        assert_eq!(c.status(), Status::Success, "seed {seed:#x}");
        let c = host.run(&mut q, lookup(map, 2, &[1; 8], 8));
        assert_eq!(c.payload[..8], [2; 8], "seed {seed:#x}");
        for q in queues.iter().chain([&q, &admin]) {
            for m in [Some(&q.sq), Some(&q.cq), q.notify.as_ref()]
                .into_iter()
                .flatten()
            {
                let _ = host.f.dma_unmap(Iova(m.iova), m.memory.len());
            }
        }
        if data_mapped {
            host.f.dma_unmap(Iova(data.iova), 8192).unwrap();
        }
    }
    assert!(fatal > 0, "seed {seed:#x}: no attack ever stopped a device");
    assert!(fatal < rounds, "seed {seed:#x}: no attack ever got further");
}

fn wild_count(rng: &mut impl Rng) -> u64 {
    match rng.random_range(0..4) {
        0 => rng.next_u64(),
        1 => rng.random_range(0..20),
        2 => u64::from(rng.next_u32() | 1 << 31),
        _ => u64::from(rng.random_range(0..64u32).wrapping_sub(32)),
    }
}

fn wild_command(rng: &mut impl Rng, map: u32, data: u64) -> offmap_abi::Submission {
    let mut words = [0; 8];
    for w in &mut words {
        *w = match rng.random_range(0..5) {
            0 => rng.next_u64(),
            1 => rng.random_range(0..70),
            2 => data + rng.random_range(0..8192u64),
            3 => 8 | 64 << 32,
            _ => 0,
        };
    }
    let mut s = offmap_abi::Submission::from_words(words);
    if rng.random_bool(0.9) {
        s.opcode = rng.random_range(0..0x24);
    }
    if rng.random_bool(0.7) {
        s.map = map.into();
    }
    s
}

fn wild_register(rng: &mut impl Rng, f: &impl Function) {
    let bar = rng.random_range(0..6);
    let offset = BarOffset(match rng.random_range(0..4) {
        0 => rng.random_range(0..0x80u64),
        1 => rng.random_range(0x1_0000..0x1_0200u64),
        2 => rng.random_range(0x2_0000..0x3_0100u64) & !3,
        _ => rng.next_u64() >> rng.random_range(0..64u32),
    });
    // Errors are among the right answers; what counts is that there is one.
    match rng.random_range(0..4) {
        0 => drop(f.read32(bar, offset)),
        1 => drop(f.read64(bar, offset)),
        2 => drop(f.write32(bar, offset, rng.next_u32() >> rng.random_range(0..32u32))),
        _ => drop(f.write64(bar, offset, wild_count(rng))),
    }
}

#[test]
fn an_inline_device_survives_anything() {
    attack(inline(), seed(), 150, 120);
}

#[test]
fn a_threaded_device_survives_anything() {
    attack(threaded(), seed(), 60, 80);
}
