//! Workload files and sequences of calls: right ones, wrong ones, and that all maps answer them alike.

use offmap_bench::mix::{BUILT_IN, CallOp, MixFile, Sequence};
use offmap_bench::plan::Group;
use offmap_bench::sides::{BackEnd, World};
use offmap_bench::workload::Kind;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

const SMALL: &str = r#"
format = 1
name = "small"
[map]
type = "hash"
key_size = 16
value_size = 24
max_entries = 500
[keys]
count = 1000
fill = 300
draw = "uniform"
[[call]]
op = "lookup"
weight = 60
[[call]]
op = "insert"
weight = 20
[[call]]
op = "delete"
weight = 15
[[call]]
op = "next"
weight = 5
"#;

fn small() -> Sequence {
    Sequence::new(&MixFile::parse("small", SMALL).expect("a workload"), 3)
}

#[test]
fn the_calls_are_those_of_the_file() {
    let sequence = small();
    let mut counts: BTreeMap<u8, usize> = BTreeMap::new();
    let mut inserted = Vec::new();
    for call in &sequence.calls {
        *counts.entry(call.op as u8).or_default() += 1;
        if call.op == CallOp::Insert {
            inserted.push(call.key);
        }
    }
    let all = sequence.calls.len() as f64;
    for (op, share) in [
        (CallOp::Lookup, 0.60),
        (CallOp::Insert, 0.20),
        (CallOp::Delete, 0.15),
        (CallOp::Next, 0.05),
    ] {
        let got = counts[&(op as u8)] as f64 / all;
        assert!((got - share).abs() < 0.01, "{op:?}: {got}");
    }
    // One key after the other comes into being, from the first that is not stored on.
    assert_eq!(inserted[0], 300);
    assert!(inserted.windows(2).all(|two| two[1] == (two[0] + 1) % 1000));
    assert_eq!(sequence, small(), "the same seed");
    let keys: BTreeSet<&[u8]> = (0..1000).map(|n| sequence.key(n)).collect();
    assert_eq!(keys.len(), 1000);
}

#[test]
fn young_flows_are_looked_up_most() {
    let file = MixFile::find("connections").expect("built in");
    let sequence = Sequence::new(&file, 1);
    let (mut head, mut young, mut lookups) = (file.keys.fill - 1, 0, 0);
    for call in &sequence.calls {
        match call.op {
            CallOp::Insert => head = call.key as usize,
            CallOp::Lookup => {
                let age = (head + file.keys.count - call.key as usize) % file.keys.count;
                young += usize::from(age < 100);
                lookups += 1;
            }
            _ => {}
        }
    }
    let share = f64::from(young as u32) / f64::from(lookups);
    assert!(
        share > 0.5,
        "{share} of the lookups are of the hundred youngest of 262,144"
    );
}

#[test]
fn routes_are_prefixes_and_addresses_below_them() {
    let file = MixFile::find("routes").expect("built in");
    let sequence = Sequence::new(&file, 1);
    let parts = |n: usize| {
        let key = sequence.key(n as u32);
        let bits = u32::from_ne_bytes(key[..4].try_into().expect("four"));
        let address = u32::from_be_bytes(key[4..].try_into().expect("four"));
        (bits, address)
    };
    let mut slash_24 = 0;
    for n in 0..file.keys.count {
        let ((bits, prefix), (full, address)) = (parts(n), parts(file.keys.count + n));
        let mask = u32::MAX << (32 - bits);
        assert_eq!((full, address & mask), (32, prefix), "key {n}");
        slash_24 += usize::from(bits == 24);
    }
    let share = slash_24 as f64 / file.keys.count as f64;
    assert!((0.57..0.63).contains(&share), "{share}");
}

#[test]
fn every_map_answers_a_sequence_alike() {
    let world = World::new(None, None).expect("processors");
    let shrink = |text: &str| {
        text.replace("262144", "2621")
            .replace("60000", "600")
            .replace("65536", "655")
            .replace("131072", "1310")
            .replace("100000", "1000")
    };
    let mut files: Vec<MixFile> = BUILT_IN
        .iter()
        .map(|(name, text)| MixFile::parse(name, &shrink(text)).expect(name))
        .collect();
    files.push(MixFile::parse("small", SMALL).expect("small"));
    for file in files {
        let sequence = Arc::new(Sequence::new(&file, 5));
        let group = Group::of_sequence(&sequence, false);
        let mut answers = Vec::new();
        for back_end in [BackEnd::Host, BackEnd::Inline, BackEnd::Kernel] {
            let mut side = match world.mixed(back_end, &group.workload, &sequence) {
                Ok(side) => side,
                Err(why) if back_end == BackEnd::Kernel => {
                    println!("skipped: {why}");
                    continue;
                }
                Err(why) => panic!("{back_end}, {}: {why}", file.name),
            };
            let counted = sequence.calls.iter().filter(|call| call.op != CallOp::Next);
            assert_eq!(side.answers().values().sum::<u64>(), counted.count() as u64);
            assert_eq!(
                side.run(sequence.calls.len() - 10, 20),
                Ok(20),
                "round and round"
            );
            answers.push((back_end, side.answers()));
        }
        // What an LRU map evicts is its own affair.
        if file.map.map_type != Kind::LruHash {
            assert!(
                answers.iter().all(|(_, a)| *a == answers[0].1),
                "{}: {answers:?}",
                file.name
            );
            assert!(
                answers[0].1.len() > 1,
                "{}: every call succeeds: {answers:?}",
                file.name
            );
        }
    }
}

#[test]
fn a_sequence_is_read_as_it_was_written() {
    let sequence = small();
    let mut bytes = Vec::new();
    sequence.write(&mut bytes).expect("memory");
    assert_eq!(
        Sequence::read(&mut bytes.as_slice()).expect("a sequence"),
        sequence
    );
}

#[test]
fn a_file_of_anything_is_an_error_and_not_a_panic() {
    let mut sequence = small();
    sequence.calls.truncate(50);
    let mut bytes = Vec::new();
    sequence.write(&mut bytes).expect("memory");
    for cut in 0..bytes.len() {
        assert!(Sequence::read(&mut &bytes[..cut]).is_err(), "cut at {cut}");
    }
    // Every bit of the header, and of the first call.
    let first_call = bytes.len() - 50 * 5;
    for at in (0..48).chain(first_call..first_call + 5) {
        for bit in 0..8 {
            let mut wrong = bytes.clone();
            wrong[at] ^= 1 << bit;
            if let Ok(read) = Sequence::read(&mut wrong.as_slice()) {
                let keys = read.key_bytes() / read.map.key_size;
                assert!(read.calls.iter().all(|call| (call.key as usize) < keys));
                assert!(read.fill <= keys);
            }
        }
    }
    // Lengths that no file has are not believed.
    let mut huge = bytes;
    huge[36..40].copy_from_slice(&(64u32 << 20).to_le_bytes());
    assert!(Sequence::read(&mut huge.as_slice()).is_err());
}

#[test]
fn a_wrong_workload_file_says_what_is_wrong() {
    for (from, to, sentence) in [
        ("format = 1", "format = 2", "format is 1"),
        ("key_size = 16", "key_size = 3", "from 4 to 64"),
        ("value_size = 24", "value_size = 0", "from 1 to 4,096"),
        (
            "max_entries = 500",
            "max_entries = 0",
            "map.max_entries is from 1",
        ),
        ("count = 1000", "count = 0", "keys.count is from 1"),
        ("fill = 300", "fill = 501", "keys.fill is at most"),
        (
            "draw = \"uniform\"",
            "draw = \"normal\"",
            "unknown variant `normal`",
        ),
        (
            "draw = \"uniform\"",
            "draw = \"zipf\"\nexponent = 9.0",
            "keys.exponent",
        ),
        (
            "draw = \"uniform\"",
            "draw = \"uniform\"\nprefixes = [[24, 1]]",
            "lpm_trie",
        ),
        ("type = \"hash\"", "type = \"array\"", "4 for an array"),
        (
            "type = \"hash\"",
            "type = \"queue\"",
            "unknown variant `queue`",
        ),
        ("op = \"next\"", "op = \"peek\"", "unknown variant `peek`"),
        ("[map]", "[map]\ncolour = 3", "unknown field `colour`"),
    ] {
        let text = SMALL.replace(from, to);
        assert_ne!(text, SMALL, "{from}");
        let error = MixFile::parse("x.toml", &text).expect_err(to).to_string();
        assert!(error.contains(sentence), "{to}: {error}");
        assert!(error.contains("x.toml"), "{error}");
    }
    let none = SMALL
        .replace("weight = 60", "weight = 0")
        .replace("weight = 20", "weight = 0");
    let none = none
        .replace("weight = 15", "weight = 0")
        .replace("weight = 5", "weight = 0");
    let error = MixFile::parse("x.toml", &none)
        .expect_err("no calls")
        .to_string();
    assert!(error.contains("a weight that is not 0"), "{error}");
    let error = MixFile::find("nowhere.toml")
        .expect_err("no file")
        .to_string();
    assert!(error.contains("built in are deny-list"), "{error}");
}
