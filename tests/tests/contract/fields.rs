//! §A, rows 13 and 14: the types of keys and values, and special fields in values. On the host
//! beside the running kernel, on the strict profiles, and on a device of profile `offmap`.

use super::*;
use offmap_bpf::btf::{BtfBuilder, Kind};
use offmap_bpf::command as c;
use offmap_bpf::uapi::{BPF_F_LOCK, MapFlags};
use std::sync::atomic::{AtomicBool, Ordering};

/// BTF of a 4-byte key and an 8-byte value: the blob, and their ids.
pub(super) fn plain() -> (Vec<u8>, u32, u32) {
    let mut btf = BtfBuilder::new();
    let key = btf.int("int", 4);
    let value = btf.int("long", 8);
    (btf.finish(), key, value)
}

/// What a value is made of, in order, at multiples of 8.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Lock,
    Timer,
    Kptr,
    Refcount,
    /// A number of longs.
    Longs(u32),
}

use Part::{Kptr, Lock, Longs, Refcount, Timer};

impl Part {
    const fn bytes(self) -> u32 {
        match self {
            Lock | Kptr | Refcount => 8,
            Timer => 16,
            Longs(n) => 8 * n,
        }
    }

    const fn special_bytes(self) -> usize {
        match self {
            Lock | Refcount => 4,
            Kptr => 8,
            Timer => 16,
            Longs(_) => 0,
        }
    }
}

/// Attributes of a map whose key is an int and whose value is a struct of `parts`.
fn typed(m: &mut dyn Machine, map_type: MapType, parts: &[Part]) -> MapCreateAttr {
    try_typed(m, map_type, parts).expect("sound BTF")
}

/// As `typed`, or the error number of BTF_LOAD.
fn try_typed(m: &mut dyn Machine, map_type: MapType, parts: &[Part]) -> Result<MapCreateAttr, i32> {
    let mut btf = BtfBuilder::new();
    let key = btf.int("int", 4);
    let long = btf.int("long", 8);
    let lock = btf.structure("bpf_spin_lock", 4, &[("val", key, 0)]);
    let refcount = btf.structure("bpf_refcount", 4, &[("refs", key, 0)]);
    let opaque = btf.array(long, key, 2);
    let timer = btf.structure("bpf_timer", 16, &[("__opaque", opaque, 0)]);
    let task = btf.structure("task_struct", 4, &[("x", key, 0)]);
    let tag = btf.named(Kind::TypeTag, "kptr_untrusted", task);
    let kptr = btf.reference(Kind::Ptr, tag);
    let (mut members, mut at) = (Vec::new(), 0);
    for part in parts {
        let id = match *part {
            Lock => lock,
            Timer => timer,
            Kptr => kptr,
            Refcount => refcount,
            Longs(n) => btf.array(long, key, n),
        };
        members.push(("m", id, at));
        at += part.bytes();
    }
    // Members of one name are no error, but compilers make none.
    let names = ["a", "b", "c", "d", "e", "f"];
    for (member, name) in members.iter_mut().zip(names) {
        member.0 = name;
    }
    let value = btf.structure("value", at, &members);
    let fd = m.btf(&btf.finish())?;
    Ok(MapCreateAttr {
        value_size: at,
        btf_fd: fd as u32,
        btf_key_type_id: key,
        btf_value_type_id: value,
        ..attr(map_type, 4)
    })
}

/// Runs a row on our host, the kernel's, and a device that takes BTF.
fn with_btf(row: impl Fn(&mut dyn Machine)) {
    on_hosts(&row);
    let (_stack, mut ours) = strict("offmap");
    row(&mut ours);
}

#[test]
fn a13_types_are_resolved_and_their_sizes_are_the_maps() {
    with_btf(|m| {
        let mut btf = BtfBuilder::new();
        let int = btf.int("int", 4);
        let constant = btf.reference(Kind::Const, int);
        let key = btf.named(Kind::Typedef, "key_t", constant);
        let long = btf.int("long", 8);
        let fd = m.btf(&btf.finish()).unwrap();
        let good = MapCreateAttr {
            btf_fd: fd as u32,
            btf_key_type_id: key,
            btf_value_type_id: long,
            ..attr(HASH, 4)
        };
        m.map(&good);
        for (why, bad, errno) in [
            (
                "key size",
                MapCreateAttr {
                    key_size: 8,
                    ..good
                },
                EINVAL,
            ),
            (
                "value size",
                MapCreateAttr {
                    value_size: 4,
                    ..good
                },
                EINVAL,
            ),
            (
                "no key type",
                MapCreateAttr {
                    btf_key_type_id: 0,
                    ..good
                },
                EINVAL,
            ),
            (
                "no such type",
                MapCreateAttr {
                    btf_value_type_id: 99,
                    ..good
                },
                EINVAL,
            ),
            (
                "no such fd",
                MapCreateAttr {
                    btf_fd: 999,
                    ..good
                },
                EBADF,
            ),
        ] {
            assert_eq!(m.create(&bad), Err(errno), "{} {why}", m.name());
        }
        let map = m.map(&attr(HASH, 4));
        let not_btf = MapCreateAttr {
            btf_fd: map as u32,
            ..good
        };
        assert_eq!(m.create(&not_btf), Err(EINVAL), "{}", m.name());
        // An array has a check of its own: the key may be left out for a data section only.
        let array = MapCreateAttr {
            map_type: ARRAY.0,
            ..good
        };
        m.map(&array);
        let keyless = MapCreateAttr {
            btf_key_type_id: 0,
            ..array
        };
        assert_eq!(m.create(&keyless), Err(EINVAL), "{}", m.name());
    });
}

#[test]
fn a13_which_types_may_have_which_fields() {
    on_hosts(|m| {
        for (map_type, lock, timer, kptr) in [
            (HASH, None, None, None),
            (ARRAY, None, None, None),
            (MapType::LRU_HASH, Some(EOPNOTSUPP), None, None),
            (
                MapType::PERCPU_HASH,
                Some(EOPNOTSUPP),
                Some(EOPNOTSUPP),
                None,
            ),
            (
                MapType::PERCPU_ARRAY,
                Some(EOPNOTSUPP),
                Some(EOPNOTSUPP),
                None,
            ),
            (
                MapType::LRU_PERCPU_HASH,
                Some(EOPNOTSUPP),
                Some(EOPNOTSUPP),
                None,
            ),
        ] {
            for (part, errno) in [(Lock, lock), (Timer, timer), (Kptr, kptr)] {
                let a = typed(m, map_type, &[Longs(1), part]);
                assert_eq!(m.create(&a).err(), errno, "{} {map_type}", m.name());
            }
        }
    });
}

#[test]
fn a13_not_with_rdonly_prog() {
    on_hosts(|m| {
        for part in [Lock, Timer, Kptr] {
            for flags in [MapFlags::RDONLY_PROG, MapFlags::WRONLY_PROG] {
                let a = MapCreateAttr {
                    map_flags: flags.bits(),
                    ..typed(m, HASH, &[part])
                };
                assert_eq!(m.create(&a), Err(EACCES), "{} {flags:?}", m.name());
            }
        }
        let a = MapCreateAttr {
            map_flags: MapFlags::RDONLY_PROG.bits(),
            ..typed(m, HASH, &[Longs(2)])
        };
        m.map(&a);
    });
}

#[test]
fn a13_special_fields_need_cap_bpf() {
    let config = offmap_bpf::SystemConfig {
        unprivileged_bpf_disabled: false,
        ..offmap_bpf::SystemConfig::default()
    };
    let mut ours = Ours::over("open", offmap_bpf::System::new(config), 0);
    let (locked, unlocked) = (
        typed(&mut ours, HASH, &[Lock]),
        typed(&mut ours, HASH, &[Longs(1)]),
    );
    ours.caller = offmap_bpf::Caller::unprivileged();
    assert_eq!(ours.create(&locked), Err(EPERM));
    assert!(ours.reason.contains("CAP_BPF"), "{}", ours.reason);
    ours.map(&unlocked);
}

#[test]
fn a13_two_locks_or_two_timers_are_none() {
    on_hosts(|m| {
        // A struct with two locks is no BTF; one with two timers is, and the kernel makes a
        // map of it whose values have no timer.
        let two = try_typed(m, HASH, &[Lock, Lock]);
        assert_eq!(two.err(), Some(E2BIG), "{}", m.name());
        let a = typed(m, HASH, &[Timer, Timer]);
        let fd = m.map(&a);
        m.update(fd, &key(0), &[1; 32], 0).unwrap();
        assert_eq!(
            m.lookup(fd, &key(0), 32, 0),
            Ok(vec![1; 32]),
            "{}",
            m.name()
        );
    });
}

#[test]
fn a13_strict_offload_ops_refuse_every_type() {
    on_strict(|stack, ours| {
        for map_type in [HASH, ARRAY] {
            for parts in [&[Longs(1)][..], &[Lock], &[Timer], &[Kptr]] {
                let a = typed(ours, map_type, parts);
                assert_eq!(
                    ours.create(&MapCreateAttr {
                        max_entries: 2,
                        ..a
                    }),
                    Err(ENOTSUPP),
                    "{} {}",
                    ours.name(),
                    ours.reason
                );
            }
            // A type of the wrong size is EINVAL before that.
            let a = typed(ours, map_type, &[Longs(1)]);
            let wrong = MapCreateAttr {
                value_size: 4,
                max_entries: 2,
                ..a
            };
            assert_eq!(ours.create(&wrong), Err(EINVAL), "{}", ours.name());
            // libbpf then retries without BTF.
            let again = MapCreateAttr {
                btf_fd: 0,
                btf_key_type_id: 0,
                btf_value_type_id: 0,
                max_entries: 2,
                ..a
            };
            let fd = ours.map(&again);
            ours.close(fd);
        }
        stack.system.flush_frees();
        assert_eq!(
            stack.nic.used().maps,
            0,
            "every ALLOC was followed by its FREE"
        );
    });
}

#[test]
fn a14_special_fields_read_as_zero_wherever_they_are() {
    let orders: [&[Part]; 4] = [
        &[Lock, Longs(1), Timer, Kptr],
        &[Kptr, Timer, Longs(2), Lock],
        &[Longs(1), Kptr, Kptr, Lock, Timer],
        &[Timer, Kptr, Longs(1), Kptr],
    ];
    with_btf(|m| {
        for map_type in [HASH, ARRAY] {
            for parts in orders {
                let a = typed(m, map_type, parts);
                let fd = m.map(&a);
                let mut expected = vec![0xff; a.value_size as usize];
                let mut at = 0;
                for part in parts {
                    expected[at..at + part.special_bytes()].fill(0);
                    at += part.bytes() as usize;
                }
                let given = vec![0xff; a.value_size as usize];
                for flags in [0, 2] {
                    m.update(fd, &key(1), &given, flags).unwrap();
                    let found = m.lookup(fd, &key(1), given.len(), 0);
                    assert_eq!(found, Ok(expected.clone()), "{} {map_type}", m.name());
                }
            }
        }
    });
}

#[test]
fn a14_f_lock_on_elements_and_batches() {
    with_btf(|m| {
        for map_type in [HASH, ARRAY] {
            let a = typed(m, map_type, &[Lock, Longs(7)]);
            let fd = m.map(&a);
            let len = a.value_size as usize;
            m.update(fd, &key(0), &vec![1; len], 0).unwrap();
            m.update(fd, &key(0), &vec![2; len], BPF_F_LOCK).unwrap();
            let found = m.lookup(fd, &key(0), len, BPF_F_LOCK).unwrap();
            assert_eq!(
                (&found[..4], &found[8..]),
                (&[0; 4][..], &vec![2; len - 8][..]),
                "{}",
                m.name()
            );
            // Without a lock it is EINVAL (§E); with one, other flags still are.
            assert_eq!(
                m.update(fd, &key(0), &vec![3; len], BPF_F_LOCK | 3),
                Err(EINVAL)
            );
            assert_eq!(m.lookup(fd, &key(0), len, BPF_F_LOCK | 1), Err(EINVAL));
            let keys: Vec<u8> = (0..3).flat_map(key).collect();
            let stored = m.store(fd, &keys, Some(&vec![5; len * 3]), 3, BPF_F_LOCK);
            assert_eq!(
                (stored.result, stored.count),
                (Ok(()), 3),
                "{} {map_type}",
                m.name()
            );
            let base = m.base();
            let at = [0, base + 0x1800, base + 0x2000, base + 0x4000];
            let walked = m.batch_at(c::MAP_LOOKUP_BATCH, fd, at, 4, [BPF_F_LOCK, 0]);
            let expected = if map_type == HASH {
                (Err(ENOENT), 3)
            } else {
                (Ok(()), 4)
            };
            assert_eq!(
                (walked.result, walked.count),
                expected,
                "{} {map_type}",
                m.name()
            );
            let values = m.walked_values(len * 3);
            for value in values.chunks(len) {
                assert_eq!(
                    (&value[..4], &value[8..]),
                    (&[0; 4][..], &vec![5; len - 8][..]),
                    "{}",
                    m.name()
                );
            }
        }
    });
}

/// Writers write one byte all over the value; readers under F_LOCK never see two.
fn whole(machines: Vec<Box<dyn Machine + Send>>, map_type: MapType) {
    const LONGS: u32 = 31;
    let mut machines = machines;
    let a = typed(&mut *machines[0], map_type, &[Lock, Longs(LONGS)]);
    let fd = machines[0].map(&a);
    let len = a.value_size as usize;
    machines[0].update(fd, &key(1), &vec![1; len], 0).unwrap();
    let stop = AtomicBool::new(false);
    // The first keeps the map open.
    let (_keeper, users) = machines.split_first_mut().unwrap();
    std::thread::scope(|scope| {
        let (writers, readers) = users.split_at_mut(2);
        for (seed, m) in writers.iter_mut().enumerate() {
            let stop = &stop;
            scope.spawn(move || {
                let mut byte = seed as u8;
                while !stop.load(Ordering::Relaxed) {
                    byte = byte.wrapping_add(2);
                    m.update(fd, &key(1), &vec![byte; len], BPF_F_LOCK).unwrap();
                }
            });
        }
        let readers: Vec<_> = readers
            .iter_mut()
            .map(|m| {
                scope.spawn(move || {
                    let mut torn = 0;
                    let mut values = std::collections::BTreeSet::new();
                    for _ in 0..20_000 {
                        let found = m.lookup(fd, &key(1), len, BPF_F_LOCK).unwrap();
                        torn += u32::from(found[8..].iter().any(|&b| b != found[8]));
                        values.insert(found[8]);
                    }
                    (torn, values.len(), m.name().to_owned())
                })
            })
            .collect();
        let found: Vec<_> = readers
            .into_iter()
            .map(std::thread::ScopedJoinHandle::join)
            .collect();
        stop.store(true, Ordering::Relaxed);
        for found in found {
            let (torn, values, name) = found.unwrap();
            assert_eq!(torn, 0, "{name} {map_type}");
            assert!(values > 1, "{name} {map_type}: nobody wrote");
        }
    });
}

#[test]
fn a14_f_lock_is_atomic_for_the_whole_value() {
    for map_type in [HASH, ARRAY] {
        let system = Ours::host().system;
        let ours = |_| -> Box<dyn Machine + Send> {
            Box::new(Ours::over(
                "offmap, host",
                std::sync::Arc::clone(&system),
                0,
            ))
        };
        whole((0..4).map(ours).collect(), map_type);
        let (stack, _) = strict("offmap");
        let device =
            |_| -> Box<dyn Machine + Send> { Box::new(Ours::on("offmap, device", &stack)) };
        whole((0..4).map(device).collect(), map_type);
        if Theirs::new().is_ok() {
            let kernel = |_| -> Box<dyn Machine + Send> { Box::new(Theirs::new().unwrap()) };
            whole((0..4).map(kernel).collect(), map_type);
        }
    }
}

/// What a map of maps makes of special fields in its inner maps: the answers to creating one
/// with each template, and to storing each map in each of these.
fn inner_answers(m: &mut dyn Machine) -> Vec<(String, Result<i32, i32>)> {
    let shapes: [(&str, &[Part]); 6] = [
        ("long", &[Longs(1)]),
        ("lock", &[Lock]),
        ("lock, long", &[Lock, Longs(1)]),
        ("long, lock", &[Longs(1), Lock]),
        ("timer", &[Timer]),
        ("kptr, long", &[Kptr, Longs(1)]),
    ];
    let mut answers = Vec::new();
    for (template_name, template) in shapes {
        let typed_template = typed(m, HASH, template);
        let template_fd = m.map(&typed_template);
        for outer_type in [MapType::ARRAY_OF_MAPS, MapType::HASH_OF_MAPS] {
            let outer = MapCreateAttr {
                value_size: 4,
                inner_map_fd: template_fd as u32,
                ..attr(outer_type, 4)
            };
            let made = m.create(&outer);
            answers.push((format!("{outer_type} of {template_name}"), made.map(|_| 0)));
            let Ok(outer_fd) = made else { continue };
            for (name, parts) in shapes {
                // Of BTF of its own, and of the template's size where the parts have it.
                let inner = typed(m, HASH, parts);
                let inner_fd = m.map(&inner);
                let stored = m.update(outer_fd, &[0; 4], &inner_fd.to_ne_bytes(), 0);
                answers.push((
                    format!("{outer_type} of {template_name}: {name}"),
                    stored.map(|()| 0),
                ));
                let plain = m.map(&MapCreateAttr {
                    btf_fd: 0,
                    btf_key_type_id: 0,
                    btf_value_type_id: 0,
                    ..inner
                });
                let stored = m.update(outer_fd, &[0; 4], &plain.to_ne_bytes(), 0);
                answers.push((
                    format!("{outer_type} of {template_name}: {name} without types"),
                    stored.map(|()| 0),
                ));
                m.close(inner_fd);
                m.close(plain);
            }
            // The template itself.
            let stored = m.update(outer_fd, &[0; 4], &template_fd.to_ne_bytes(), 0);
            answers.push((
                format!("{outer_type} of {template_name}: itself"),
                stored.map(|()| 0),
            ));
            m.close(outer_fd);
        }
        m.close(template_fd);
    }
    answers
}

#[test]
fn special_fields_of_inner_maps_are_compared_as_the_kernel_does() {
    let ours = inner_answers(&mut Ours::host());
    assert!(ours.iter().any(|(_, got)| got.is_ok()));
    assert!(ours.iter().any(|(_, got)| got.is_err()));
    match Theirs::new() {
        Ok(mut kernel) => {
            for (ours, theirs) in ours.iter().zip(&inner_answers(&mut kernel)) {
                assert_eq!(ours, theirs);
            }
        }
        Err(why) => aloud(&format!("skipped: {why}")),
    }
}

/// What every way of reading shows of special fields, of elements that were never written and of
/// ones whose fields user space tried to write.
fn shown(m: &mut dyn Machine) -> Vec<(String, Result<Vec<u8>, i32>)> {
    let mut all = Vec::new();
    for (map_type, parts) in [
        (ARRAY, &[Refcount, Longs(1)][..]),
        (ARRAY, &[Lock, Longs(1)]),
        (ARRAY, &[Longs(1), Timer]),
        (HASH, &[Refcount, Longs(1)]),
        (HASH, &[Lock, Longs(1), Refcount]),
        (HASH, &[Longs(1), Timer]),
        (HASH, &[Kptr, Longs(1)]),
        (MapType::LRU_HASH, &[Refcount, Longs(1)]),
        (MapType::PERCPU_HASH, &[Refcount, Longs(1)]),
        (MapType::PERCPU_ARRAY, &[Refcount, Longs(1)]),
        (MapType::PERCPU_ARRAY, &[Kptr, Longs(1)]),
    ] {
        let like = typed(m, map_type, parts);
        let what = format!("{map_type} {}", all.len());
        let fd = match m.create(&like) {
            Ok(fd) => fd,
            Err(errno) => {
                all.push((what, Err(errno)));
                continue;
            }
        };
        let copies = if map_type.is_percpu() { m.cpus() } else { 1 };
        let bytes = like.value_size.next_multiple_of(8) as usize * copies;
        all.push((format!("{what}, fresh"), m.lookup(fd, &key(0), bytes, 0)));
        // Elements 1 and 3: one more and one less than a walk of two.
        for n in [1, 3] {
            let stored = m.update(fd, &key(n), &vec![0xa5; bytes], 0);
            all.push((format!("{what}, stored {n}"), stored.map(|()| Vec::new())));
        }
        let stored = m.store(fd, &key(2), Some(&vec![0x5a; bytes]), 1, 0);
        all.push((format!("{what}, batch"), stored.result.map(|()| Vec::new())));
        for n in 1..=3 {
            all.push((format!("{what}, {n}"), m.lookup(fd, &key(n), bytes, 0)));
        }
        for number in [c::MAP_LOOKUP_BATCH, c::MAP_LOOKUP_AND_DELETE_BATCH] {
            let walked = m.walk(number, fd, None, 4);
            // Elements of hash maps come in any order.
            let count = walked.count.min(4) as usize;
            let keys = m.walked_keys(4 * count);
            let values = m.walked_values(bytes * count);
            let mut both: Vec<Vec<u8>> = keys
                .chunks(4)
                .zip(values.chunks(bytes))
                .map(|(key, value)| [key, value].concat())
                .collect();
            both.sort();
            let name = format!("{what}, command {number}, {:?}", walked.result);
            all.push((name, Ok(both.concat())));
        }
        let _ = m.update(fd, &key(1), &vec![0xa5; bytes], 0);
        all.push((format!("{what}, taken"), m.take(fd, &key(1), bytes, 0)));
        m.close(fd);
    }
    all
}

#[test]
fn special_fields_are_shown_as_by_the_kernel() {
    let ours = shown(&mut Ours::host());
    match Theirs::new() {
        Ok(mut kernel) => {
            for (ours, theirs) in ours.iter().zip(&shown(&mut kernel)) {
                assert_eq!(ours, theirs);
            }
        }
        Err(why) => aloud(&format!("skipped: {why}")),
    }
    // A device of profile offmap shows the same, of the types whose values it may have.
    let (_stack, mut device) = strict("offmap");
    for (host, device) in ours.iter().zip(&shown(&mut device)) {
        if device.1.is_ok() {
            assert_eq!(host, device);
        }
    }
}

/// What user space writes to a special field does not reach the device.
#[test]
fn a_device_is_given_fresh_fields() {
    let (stack, mut ours) = strict("offmap");
    let like = typed(&mut ours, HASH, &[Longs(1), Lock]);
    let fd = ours.map(&like);
    ours.update(fd, &key(1), &[0xa5; 16], 0).unwrap();
    ours.store(fd, &key(2), Some(&[0xa5; 16]), 1, 0)
        .result
        .unwrap();
    let on_device = stack
        .function
        .with_firmware(|firmware| {
            // Handles are a slot and a generation; the first map has the first slot.
            let mut handles = (0..=0x0002_0000).map(offmap_abi::MapHandle);
            let map = handles.find(|&map| firmware.map_info(map).is_ok());
            let map = map.expect("a map on the device");
            let mut value = [0; 16];
            [1, 2].map(|n| {
                assert!(firmware.lookup(map, &key(n), &mut value).is_success());
                value
            })
        })
        .expect("the device lives");
    for value in on_device {
        assert_eq!(value[..8], [0xa5; 8]);
        assert_eq!(value[8..12], [0; 4], "the lock is as user space wrote it");
    }
}
