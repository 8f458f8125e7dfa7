//! Who may do what: every command of somebody with few capabilities or none, on our side and by
//! a thread of this process that has given its own up. What is open already was opened by root.

use super::*;
use offmap_bpf::btf::BtfBuilder;
use offmap_bpf::{Caller, Capabilities, System, SystemConfig, command as c};
use offmap_tests::contract::u32_of;
use rustix::process::{Gid, Uid};
use rustix::thread::{CapabilitySet, CapabilitySets};

/// User and group of the one without privileges.
const NOBODY: u32 = 65_534;

/// What root has opened.
struct Opened {
    hash: i32,
    frozen: i32,
    hash_id: u32,
    btf: i32,
    btf_id: u32,
}

fn blob() -> Vec<u8> {
    let mut btf = BtfBuilder::new();
    btf.int("int", 4);
    btf.finish()
}

fn open(m: &mut dyn Machine) -> Opened {
    let hash = m.map(&attr(HASH, 4));
    m.update(hash, &key(1), &value(1), 0).unwrap();
    let btf = m.btf(&blob()).unwrap();
    let (info, _) = m.info(hash, &[0; 80]).unwrap();
    let (btf_info, _) = m.info(btf, &[0; 32]).unwrap();
    Opened {
        hash,
        frozen: m.map(&attr(HASH, 4)),
        hash_id: u32_of(&info[4..]),
        btf,
        btf_id: u32_of(&btf_info[16..]),
    }
}

/// A map of each type, as far as it can be had by this attribute.
fn of_type(map_type: MapType, inner: i32) -> MapCreateAttr {
    let like = attr(map_type, 4);
    match map_type {
        MapType::LPM_TRIE => MapCreateAttr {
            key_size: 8,
            map_flags: 1,
            ..like
        },
        MapType::QUEUE | MapType::STACK | MapType::BLOOM_FILTER => MapCreateAttr {
            key_size: 0,
            ..like
        },
        MapType::ARRAY_OF_MAPS | MapType::HASH_OF_MAPS => MapCreateAttr {
            value_size: 4,
            inner_map_fd: inner as u32,
            ..like
        },
        MapType::RINGBUF => MapCreateAttr {
            key_size: 0,
            value_size: 0,
            max_entries: 4096,
            ..like
        },
        _ => like,
    }
}

/// The answers; a descriptor or an id that was had is 0.
fn answers(m: &mut dyn Machine, opened: &Opened) -> Vec<(String, Result<i32, i32>)> {
    let mut all = Vec::new();
    let mut told = |what: &str, got: Result<(), i32>| all.push((what.to_owned(), got.map(|()| 0)));
    for map_type in MapType::ON_HOST.into_iter().chain([MapType(4096)]) {
        let made = m.create_as_is(&of_type(map_type, opened.hash));
        told(&format!("create {map_type}"), made.map(drop));
        let refused = MapCreateAttr {
            map_flags: 1 << 30,
            ..of_type(map_type, opened.hash)
        };
        let made = m.create_as_is(&refused);
        told(&format!("create {map_type}, bad flag"), made.map(drop));
    }
    let typed = MapCreateAttr {
        btf_fd: opened.btf as u32,
        btf_key_type_id: 1,
        btf_value_type_id: 1,
        value_size: 4,
        ..attr(HASH, 4)
    };
    told("create with types", m.create_as_is(&typed).map(drop));
    let short = m.raw(c::MAP_CREATE, &[0xff; 3]);
    told("create, short", short.map(drop));
    let long = m.raw(c::MAP_CREATE, &[0xff; 200]);
    told("create, long", long.map(drop));
    told("btf load", m.btf(&blob()).map(drop));
    told("btf load, bad", m.btf(&[1, 2, 3]).map(drop));
    let found = m.lookup(opened.hash, &key(1), 8, 0);
    told("lookup", found.map(drop));
    told("update", m.update(opened.hash, &key(2), &value(2), 0));
    told("next", m.next(opened.hash, None, 4).map(drop));
    told("delete", m.delete(opened.hash, &key(2)));
    let taken = m.take(opened.hash, &key(1), 8, 0);
    told("lookup and delete", taken.map(drop));
    let stored = m.store(opened.hash, &key(5), Some(&value(5)), 1, 0);
    told("update batch", stored.result);
    let walked = m.walk(c::MAP_LOOKUP_BATCH, opened.hash, None, 4);
    told("lookup batch", walked.result);
    told("freeze", m.freeze(opened.frozen));
    told("info", m.info(opened.hash, &[0; 80]).map(drop));
    told("btf info", m.info(opened.btf, &[0; 32]).map(drop));
    for (what, number) in [
        ("next map id", c::MAP_GET_NEXT_ID),
        ("next btf id", c::BTF_GET_NEXT_ID),
    ] {
        told(what, m.by_id(number, 0).0.map(drop));
        // Past the last of any: who may not ask is told before that.
        told(what, m.by_id(number, u32::MAX - 1).0.map(drop));
    }
    let by_id = m.by_id(c::MAP_GET_FD_BY_ID, opened.hash_id);
    told("map by id", by_id.0.map(drop));
    let by_id = m.by_id(c::BTF_GET_FD_BY_ID, opened.btf_id);
    told("btf by id", by_id.0.map(drop));
    let unknown = m.by_id(c::MAP_GET_FD_BY_ID, u32::MAX - 1);
    told("unknown map by id", unknown.0.map(drop));
    all
}

/// This thread gives up everything but `keeps`, for good.
fn become_nobody(keeps: Capabilities) {
    let kept = CapabilitySet::from_bits_retain(keeps.bits());
    rustix::thread::set_keep_capabilities(true).expect("prctl");
    rustix::thread::set_thread_groups(&[]).expect("setgroups");
    rustix::thread::set_thread_gid(Gid::from_raw(NOBODY)).expect("setgid");
    rustix::thread::set_thread_uid(Uid::from_raw(NOBODY)).expect("setuid");
    let sets = CapabilitySets {
        effective: kept,
        permitted: kept,
        inheritable: CapabilitySet::empty(),
    };
    rustix::thread::set_capabilities(None, sets).expect("capset");
}

#[test]
fn who_may_do_what_is_as_in_the_kernel() {
    let sysctl = std::fs::read_to_string("/proc/sys/kernel/unprivileged_bpf_disabled");
    let unprivileged_bpf_disabled = sysctl.map_or(true, |text| text.trim() != "0");
    let mut seen_refused = 0;
    for keeps in [
        Capabilities::empty(),
        Capabilities::NET_ADMIN,
        Capabilities::PERFMON,
        Capabilities::BPF,
        Capabilities::BPF | Capabilities::NET_ADMIN,
        Capabilities::BPF | Capabilities::PERFMON,
        Capabilities::SYS_ADMIN,
        Capabilities::SYS_ADMIN | Capabilities::BPF,
    ] {
        let system = System::new(SystemConfig {
            unprivileged_bpf_disabled,
            ..SystemConfig::default()
        });
        let mut ours = Ours::over("offmap, host", system, 0);
        let opened = open(&mut ours);
        ours.caller = Caller::unprivileged().with_capabilities(keeps);
        let mine = answers(&mut ours, &opened);
        seen_refused += mine.iter().filter(|(_, got)| *got == Err(EPERM)).count();
        let theirs = std::thread::scope(|scope| {
            let asked = scope.spawn(move || {
                let mut kernel = Theirs::new()?;
                let opened = open(&mut kernel);
                become_nobody(keeps);
                Ok::<_, String>(answers(&mut kernel, &opened))
            });
            asked.join().expect("no panic")
        });
        match theirs {
            Ok(theirs) => {
                for (mine, theirs) in mine.iter().zip(&theirs) {
                    assert_eq!(mine, theirs, "with {keeps:?}");
                }
            }
            Err(why) => aloud(&format!("skipped, with {keeps:?}: {why}")),
        }
    }
    assert!(seen_refused > 20, "{seen_refused} were refused");
}
