//! Queue pairs over an honest device: pipelining, wrap-around, notification.

mod scripted;

use offmap_driver::{
    DeviceMap, Driver, DriverConfig, MapParams, Notify, Op, QueuePair, Status, SubmitError, Token,
};
use scripted::{Rng, Scripted, honest};
use std::collections::HashMap;
use std::sync::Arc;

fn ready(
    depth: u32,
    notify: Notify,
    value_size: u32,
) -> (Arc<Scripted>, QueuePair<Scripted>, DeviceMap) {
    let device = Scripted::new();
    let config = DriverConfig {
        queue_depth: depth,
        notify,
        ..DriverConfig::default()
    };
    let driver = Driver::bring_up(Arc::clone(&device), config).unwrap();
    let params = MapParams {
        map_type: 1,
        key_size: 8,
        value_size,
        max_entries: 16,
        cpu_slots: 0,
        seed: 0,
        name: [0; 16],
        ..MapParams::default()
    };
    let map = driver.create_map(&params).unwrap();
    (device, driver.create_queue().unwrap(), map)
}

/// The value that the scripted device gives for a key.
fn value_of(key: u64, len: usize) -> Vec<u8> {
    key.to_le_bytes().into_iter().cycle().take(len).collect()
}

#[test]
fn results_find_their_requests_in_any_order() {
    // Inline results, results in the slot's area, and results in large buffers.
    for (notify, depth, len) in [
        (Notify::Block, 2, 8),
        (Notify::Doorbell, 8, 64),
        (Notify::Block, 64, 600),
        (Notify::Block, 32, 48),
    ] {
        let (device, mut queue, map) = ready(depth, notify, len);
        let seed = 0xfeed + u64::from(depth);
        let mut rng = Rng(seed);
        let mut held = Vec::new();
        let mut order = Rng(seed ^ 1);
        // The device keeps commands back and answers them in random order.
        device.script(move |queue, memory, command| {
            held.push(command);
            while held.len() as u64 > order.next() % u64::from(depth) {
                let pick = (order.next() % held.len() as u64) as usize;
                honest(queue, memory, held.swap_remove(pick));
            }
        });
        let mut sent: HashMap<Token, u64> = HashMap::new();
        let (mut submitted, mut received) = (0, 0);
        let mut out = vec![0; len as usize];
        while submitted < 2000 {
            let key = rng.next();
            let op = Op::Lookup {
                map: &map,
                key: &key.to_le_bytes(),
            };
            match queue.write(&op) {
                Ok(token) => {
                    assert!(
                        sent.insert(token, key).is_none(),
                        "seed {seed}: a token twice"
                    );
                    submitted += 1;
                }
                Err(SubmitError::Full) => {
                    assert_eq!(sent.len(), depth as usize);
                    let finished = queue.wait().unwrap().unwrap();
                    let key = sent.remove(&finished.token()).unwrap();
                    assert_eq!(finished.value(&mut out).unwrap(), Status::Success);
                    assert_eq!(out, value_of(key, len as usize), "seed {seed}");
                    received += 1;
                }
                Err(e) => panic!("{e}"),
            }
        }
        device.script(honest);
        received += queue
            .poll_each(|finished| {
                let key = sent.remove(&finished.token()).unwrap();
                let mut out = vec![0; len as usize];
                finished.value(&mut out).unwrap();
                assert_eq!(out, value_of(key, len as usize), "seed {seed}");
            })
            .unwrap();
        // What is left is with the script that was replaced.
        assert_eq!(submitted - received, sent.len());
        assert_eq!(queue.outstanding(), sent.len());
    }
}

#[test]
fn blocking_calls_mix_with_commands_in_flight() {
    let (_device, mut queue, map) = ready(8, Notify::Block, 8);
    let tokens: Vec<Token> = (0..5u64)
        .map(|key| queue.submit_lookup(&map, &key.to_le_bytes()).unwrap())
        .collect();
    let mut value = [0; 8];
    queue.lookup(&map, &[9; 8], &mut value).unwrap();
    assert_eq!(value, [9; 8]);
    // The others were stashed meanwhile; they come out by token, and in order of completion.
    let third = queue.wait_for(tokens[3]).unwrap();
    third.value(&mut value).unwrap();
    drop(third);
    assert_eq!(u64::from_le_bytes(value), 3);
    assert!(queue.wait_for(tokens[3]).is_err(), "taken already");
    for expected in [0u64, 1, 2, 4] {
        // Both ways of taking what was stashed.
        let finished = if expected % 2 == 0 {
            queue.wait()
        } else {
            queue.poll()
        };
        let finished = finished.unwrap().unwrap();
        assert_eq!(finished.token(), tokens[expected as usize]);
        finished.value(&mut value).unwrap();
        assert_eq!(u64::from_le_bytes(value), expected);
    }
    assert!(queue.wait().unwrap().is_none());
    assert_eq!(queue.outstanding(), 0);
}

#[test]
fn a_kick_is_written_only_when_the_device_asked() {
    let (device, mut queue, _) = ready(8, Notify::Block, 8);
    queue.nop().unwrap();
    assert!(
        device.state().kicks.is_empty(),
        "an awake device is not kicked"
    );
    {
        let state = device.state();
        state.queues[&1].arm(&state.memory, 2);
    }
    queue.nop().unwrap();
    assert!(
        device.state().kicks.is_empty(),
        "the tail, 2, is not beyond the index"
    );
    queue.nop().unwrap();
    assert_eq!(device.state().kicks, [1], "the id of the queue");
    assert_eq!(queue.counters().kicks, 1);
    let state = device.state();
    assert_eq!(state.queues[&1].shadow_tail(&state.memory), Some(3));
}

#[test]
fn one_doorbell_covers_what_was_written() {
    let (device, mut queue, _) = ready(8, Notify::Doorbell, 8);
    let before = device.state().doorbells;
    for _ in 0..5 {
        queue.write(&Op::Nop).unwrap();
    }
    assert_eq!(device.state().doorbells, before);
    queue.commit().unwrap();
    queue.commit().unwrap();
    assert_eq!(device.state().doorbells, before + 1);
}

#[test]
fn a_device_without_notify_blocks_gets_doorbells() {
    let device = Scripted::new();
    device
        .state()
        .registers
        .insert(offmap_abi::regs::FEATURES, 0);
    let driver = Driver::bring_up(Arc::clone(&device), DriverConfig::default()).unwrap();
    let mut queue = driver.create_queue().unwrap();
    queue.nop().unwrap();
    assert_eq!(queue.counters().doorbells, 1);
    assert_eq!(driver.identity().batch, 0, "nor batches");
}

/// Commands that are never answered keep their places in the completion ring. What is left for the
/// others may be as few as the completions whose places the host holds back, to give them back
/// together: who polls in vain gives back what he has.
#[test]
fn polling_in_vain_gives_the_device_room() {
    for notify in [Notify::Block, Notify::Doorbell] {
        // A head is published for every second completion.
        let depth = 8;
        let (device, mut queue, _) = ready(depth, notify, 8);
        let mut seen = 0;
        device.script(move |queue, memory, command| {
            seen += 1;
            if seen >= depth {
                honest(queue, memory, command);
            }
        });
        for _ in 0..depth {
            queue.write(&Op::Nop).unwrap();
        }
        let mut taken = 0;
        // One goes round and round, over the places of those that are lost.
        for round in 1..=2 * depth {
            for _ in 0..3 {
                taken += queue
                    .poll_each(|done| assert!(done.status().is_success()))
                    .unwrap();
            }
            assert_eq!(taken as u32, round, "{notify:?}: the device has no room");
            queue.write(&Op::Nop).unwrap();
        }
    }
}
