//! Single operations, batches and pipelines, inline and threaded, next to the firmware's table
//! called directly, a plain hashbrown table and the running kernel's map.

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};
use offmap_bpf::MapFile;
use offmap_device_io::Function;
use offmap_driver::{DeviceMap, Op, QueuePair};
use offmap_tests::speed::{
    InlineMaps, Key, Plain, VALUE_BYTES, Value, device_config, fill, kernel_map, keys, map_attr,
    order, params, value_of,
};
use offmap_tests::stack::Stack;
use offmap_tests::subject::Subject;
use std::hint::black_box;

const ENTRIES: usize = 65_536;

/// The next of the keys, round and round.
struct Next<'a> {
    keys: &'a [Key],
    at: usize,
}

impl<'a> Next<'a> {
    fn new(keys: &'a [Key]) -> Self {
        Self { keys, at: 0 }
    }

    fn one(&mut self) -> &'a Key {
        self.at = (self.at + 1) % self.keys.len();
        &self.keys[self.at]
    }

    fn many(&mut self, count: usize) -> &'a [Key] {
        self.at = (self.at + count) % (self.keys.len() - count);
        &self.keys[self.at..][..count]
    }
}

fn file(group: &mut BenchmarkGroup<'_, WallTime>, name: &str, map: &MapFile, order: &[Key]) {
    let (mut next, mut out): (_, Value) = (Next::new(order), [0; VALUE_BYTES]);
    group.throughput(Throughput::Elements(1));
    group.bench_function(format!("lookup/{name}"), |b| {
        b.iter(|| {
            map.lookup(next.one(), &mut out, 0).expect("a hit");
            black_box(&out);
        });
    });
    group.bench_function(format!("update/{name}"), |b| {
        b.iter(|| map.update(next.one(), &out, 0).expect("an update"));
    });
    for count in [64, 1024] {
        let mut values = vec![0; count * VALUE_BYTES];
        let mut results = vec![Ok(()); count];
        group.throughput(Throughput::Elements(count as u64));
        group.bench_function(format!("batch_lookup_{count}/{name}"), |b| {
            b.iter(|| {
                let keys = next.many(count).as_flattened();
                map.lookup_many(keys, &mut values, &mut results)
                    .expect("a batch");
                black_box(&values);
            });
        });
        group.bench_function(format!("batch_update_{count}/{name}"), |b| {
            b.iter(|| {
                let keys = next.many(count).as_flattened();
                let done = map.update_batch(keys, &values, count as u32, 0, 0);
                done.result.expect("a batch");
            });
        });
    }
}

/// The same batches over something that has none, by `lookup` and `update` of one key.
fn one_by_one<T>(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    on: &mut T,
    order: &[Key],
    lookup: impl Fn(&mut T, &Key, &mut Value),
    update: impl Fn(&mut T, &Key, &Value),
) {
    for count in [1, 64, 1024] {
        let what = |op: &str| match count {
            1 => format!("{op}/{name}"),
            _ => format!("batch_{op}_{count}/{name}"),
        };
        let mut values: Vec<Value> = vec![[0; VALUE_BYTES]; count];
        let mut next = Next::new(order);
        group.throughput(Throughput::Elements(count as u64));
        group.bench_function(what("lookup"), |b| {
            b.iter(|| {
                for (key, value) in next.many(count).iter().zip(&mut values) {
                    lookup(on, key, value);
                }
                black_box(&values);
            });
        });
        group.bench_function(what("update"), |b| {
            b.iter(|| {
                for (key, value) in next.many(count).iter().zip(&values) {
                    update(on, key, value);
                }
            });
        });
    }
}

/// `depth` lookups in flight all the time.
fn pipelined<F: Function>(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    queue: &mut QueuePair<F>,
    map: &DeviceMap,
    order: &[Key],
) {
    let mut out: Value = [0; VALUE_BYTES];
    for depth in [1, 16, 128] {
        let mut next = Next::new(order);
        group.throughput(Throughput::Elements(depth as u64));
        group.bench_function(format!("pipelined_{depth}/{name}"), |b| {
            b.iter(|| {
                for _ in 0..depth {
                    let key = next.one();
                    queue.write(&Op::Lookup { map, key }).expect("room");
                }
                queue.commit().expect("a live queue");
                for _ in 0..depth {
                    let done = queue.wait().expect("a live queue").expect("a completion");
                    assert!(done.value(&mut out).expect("a value").is_success());
                    black_box(&out);
                }
            });
        });
    }
}

fn stack(c: &mut Criterion) {
    let all = keys(ENTRIES);
    let order = order(&all, 1 << 18);
    let group = &mut c.benchmark_group("stack");

    let maps = InlineMaps::new(&all);
    file(group, "inline", &maps.file, &order);
    let mut queue = maps.stack.driver.create_queue().expect("a queue");
    pipelined(group, "inline", &mut queue, &maps.device_map, &order);
    let ran = maps.stack.function.with_firmware(|firmware| {
        one_by_one(
            group,
            "direct",
            firmware,
            &order,
            |firmware, key, value| {
                assert!(firmware.lookup(maps.direct, key, value).is_success());
            },
            |firmware, key, value| {
                assert!(firmware.update(maps.direct, key, value, 0).is_success());
            },
        );
    });
    ran.expect("the device lives");
    drop((queue, maps));

    let threaded = Stack::threaded(device_config(ENTRIES * 2));
    let map = threaded.map(&map_attr(ENTRIES), true);
    fill(&map, &all);
    file(group, "threaded", &map, &order);
    let device_map = threaded.driver.create_map(&params(ENTRIES)).expect("a map");
    let mut queue = threaded.driver.create_queue().expect("a queue");
    for key in &all {
        let value = value_of(key);
        let op = Op::Update {
            map: &device_map,
            key,
            value: &value,
            flags: 0,
        };
        queue.submit(&op).expect("room");
        let done = queue.wait().expect("a live queue").expect("a completion");
        assert!(done.status().is_success());
    }
    pipelined(group, "threaded", &mut queue, &device_map, &order);
    let host = threaded.map(&map_attr(ENTRIES), false);
    fill(&host, &all);
    file(group, "host_map", &host, &order);
    drop(queue);

    let mut plain = Plain::new(&all);
    one_by_one(
        group,
        "hashbrown",
        &mut plain,
        &order,
        |plain, key, value| assert!(plain.lookup(key, value)),
        |plain, key, value| assert!(plain.update(key, value)),
    );

    // bpf(2) has no lookup of many keys either.
    match kernel_map(&all) {
        Ok(mut map) => one_by_one(
            group,
            "kernel",
            &mut map,
            &order,
            |map, key, value| map.lookup(key, value, 0).expect("a hit"),
            |map, key, value| map.update(key, value, 0).expect("an update"),
        ),
        Err(errno) => eprintln!("kernel map: SKIPPED, it cannot be created (errno {errno})"),
    }
}

criterion_group!(benches, stack);
criterion_main!(benches);
