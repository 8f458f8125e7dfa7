//! Maps in host memory, through `MapFile`: against a plain table, against concurrent maps that
//! others keep, and with a second thread.

use crate::{CHAINED, FREE, Ratio, compare, each, line, median, ns, time};
use dashmap::DashMap;
use offmap_abi::hash::KeyHash;
use offmap_bpf::{Caller, MapCreateAttr, MapFile, MapType, System, SystemConfig};
use offmap_tests::speed::{Key, Plain, VALUE_BYTES, Value, fill, keys, map_attr, order, value_of};
use std::hash::{BuildHasher, Hasher};
use std::hint::black_box;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::thread;

/// One operation in so many of the read mix is an update of a key that is there.
const UPDATE_EACH: usize = 20;

/// The hash of the tables that are compared, for those that take one from `std::hash`.
#[derive(Clone)]
struct SameHash(KeyHash);

impl BuildHasher for SameHash {
    type Hasher = Hashing;

    fn build_hasher(&self) -> Hashing {
        Hashing(self.0, 0)
    }
}

/// The state of [`SameHash`] after the bytes of one key.
struct Hashing(KeyHash, u64);

impl Hasher for Hashing {
    #[inline]
    fn write(&mut self, bytes: &[u8]) {
        self.1 = self.0.hash(bytes);
    }

    #[inline]
    fn write_u64(&mut self, key: u64) {
        self.write(&key.to_ne_bytes());
    }

    #[inline]
    fn finish(&self) -> u64 {
        self.1
    }
}

/// The others' maps and ours, of equal contents. Their keys are numbers, so that their hasher
/// is called once and no length comes with the bytes.
struct Tables {
    file: MapFile,
    plain: Plain,
    papaya: papaya::HashMap<u64, Value, SameHash>,
    scc: scc::HashMap<u64, Value, SameHash>,
    dashmap: DashMap<u64, Value, SameHash>,
    order: Vec<Key>,
}

fn host_file(attr: &MapCreateAttr) -> MapFile {
    let system = System::new(SystemConfig::default());
    let fd = system.map_create(&Caller::root(), attr).expect("a map");
    system.map_file(fd).expect("its file")
}

impl Tables {
    fn new(entries: usize) -> Self {
        let keys = keys(entries);
        let hash = SameHash(KeyHash::new(0x5eed));
        let tables = Self {
            file: host_file(&map_attr(entries)),
            plain: Plain::new(&keys),
            papaya: papaya::HashMap::with_capacity_and_hasher(entries, hash.clone()),
            scc: scc::HashMap::with_capacity_and_hasher(entries, hash.clone()),
            dashmap: DashMap::with_capacity_and_hasher(entries, hash),
            order: order(&keys, 1 << 20),
        };
        fill(&tables.file, &keys);
        for key in &keys {
            let (number, value) = (u64::from_ne_bytes(*key), value_of(key));
            tables.papaya.pin().insert(number, value);
            assert!(tables.scc.insert_sync(number, value).is_ok());
            tables.dashmap.insert(number, value);
        }
        tables
    }

    fn ours<const CHAINED: bool>(&self, from: usize, n: usize) {
        each::<CHAINED, _>(&self.order, from, n, |key, out| {
            self.file.lookup(key, out, 0).expect("a hit");
        });
    }

    fn plain<const CHAINED: bool>(&self, from: usize, n: usize) {
        each::<CHAINED, _>(&self.order, from, n, |key, out| {
            assert!(self.plain.lookup(key, out));
        });
    }

    /// With one guard for the whole block, which is papaya at its best.
    fn papaya<const CHAINED: bool>(&self, from: usize, n: usize) {
        let pinned = self.papaya.pin();
        each::<CHAINED, _>(&self.order, from, n, |key, out| {
            *out = *pinned.get(&u64::from_ne_bytes(*key)).expect("a hit");
        });
    }

    /// With a guard for each lookup, so that a call is complete in itself as ours is.
    fn papaya_each<const CHAINED: bool>(&self, from: usize, n: usize) {
        each::<CHAINED, _>(&self.order, from, n, |key, out| {
            let pinned = self.papaya.pin();
            *out = *pinned.get(&u64::from_ne_bytes(*key)).expect("a hit");
        });
    }

    fn scc<const CHAINED: bool>(&self, from: usize, n: usize) {
        each::<CHAINED, _>(&self.order, from, n, |key, out| {
            let found = self
                .scc
                .read_sync(&u64::from_ne_bytes(*key), |_, value| *out = *value);
            found.expect("a hit");
        });
    }

    fn dashmap<const CHAINED: bool>(&self, from: usize, n: usize) {
        each::<CHAINED, _>(&self.order, from, n, |key, out| {
            let found = self.dashmap.get(&u64::from_ne_bytes(*key));
            *out = *found.expect("a hit");
        });
    }

    /// Lookups, and an update in [`UPDATE_EACH`] operations.
    fn mix(&self, from: usize, n: usize) {
        let mut count = from;
        each::<FREE, _>(&self.order, from, n, |key, out| {
            count += 1;
            if count.is_multiple_of(UPDATE_EACH) {
                self.file.update(key, &value_of(key), 0).expect("room");
            } else {
                self.file.lookup(key, out, 0).expect("a hit");
            }
        });
    }

    fn lookups<const CHAINED: bool>(&self, blocks: usize, how: &str) {
        let ours = &mut |from, n| self.ours::<CHAINED>(from, n);
        let r = compare(blocks, 1, ours, &mut |from, n| {
            self.plain::<CHAINED>(from, n)
        });
        line(
            &format!("host hash / hashbrown{how}"),
            r.ratio,
            Some(2.0),
            &ns(&r),
        );
        let mut against = |name: &str, other: crate::Side<'_>| {
            let r = compare(blocks, 1, ours, other);
            let what = format!("host hash / {name}{how}");
            line(&what, r.ratio, Some(1.0), &ns(&r));
        };
        against("papaya, one guard a block", &mut |from, n| {
            self.papaya::<CHAINED>(from, n);
        });
        against("papaya, one guard a lookup", &mut |from, n| {
            self.papaya_each::<CHAINED>(from, n);
        });
        against("scc", &mut |from, n| self.scc::<CHAINED>(from, n));
        against("dashmap", &mut |from, n| self.dashmap::<CHAINED>(from, n));
    }
}

/// Lookups of an array against the same copies out of a vector.
fn arrays(blocks: usize, entries: usize) {
    let file = host_file(&MapCreateAttr {
        map_type: MapType::ARRAY.0,
        key_size: 4,
        ..map_attr(entries)
    });
    let values: Vec<Value> = keys(entries).iter().map(value_of).collect();
    for (index, value) in (0u32..).zip(&values) {
        file.update(&index.to_ne_bytes(), value, 0).expect("room");
    }
    let indexes: Vec<u32> = (0..entries as u32).collect();
    let mut picked = Vec::with_capacity(1 << 20);
    for key in order(&keys(entries), 1 << 20) {
        picked.push(indexes[u64::from_ne_bytes(key) as usize % entries]);
    }
    fn sides<const CHAINED: bool>(
        blocks: usize,
        file: &MapFile,
        values: &[Value],
        picked: &[u32],
    ) -> Ratio {
        compare(
            blocks,
            1,
            &mut |from, n| {
                each::<CHAINED, _>(picked, from, n, |index, out| {
                    let found = file.lookup(&index.to_ne_bytes(), out, 0);
                    found.expect("an element");
                });
            },
            &mut |from, n| {
                each::<CHAINED, _>(picked, from, n, |&index, out| {
                    *out = values[index as usize];
                });
            },
        )
    }
    for (how, r) in [
        ("", sides::<FREE>(blocks, &file, &values, &picked)),
        (
            ", one by one",
            sides::<CHAINED>(blocks, &file, &values, &picked),
        ),
    ] {
        let over = r.a_ns - r.b_ns;
        let verdict = if over <= 10.0 { "PASS" } else { "SHORT" };
        println!(
            "{:<46} {over:>6.1} ns at most 10: {verdict:<9} {}",
            format!("array lookup over an indexed copy{how}"),
            ns(&r)
        );
    }
}

/// What two threads do together over what one does alone, both on `side`: each thread does the
/// same number of operations, at another place of the order, and times itself, so that
/// starting it does not count.
fn scaling(blocks: usize, side: &(impl Fn(usize, usize) + Sync)) -> f64 {
    let n = crate::block_of(&mut |from, n| side(from, n), 1);
    let (turn, done) = (AtomicU32::new(0), AtomicU32::new(0));
    let other_took = std::sync::Mutex::new(0.0);
    let wait = |word: &AtomicU32, value: u32| {
        while word.load(SeqCst) != value {
            std::hint::spin_loop();
        }
    };
    let mut ratios = Vec::new();
    thread::scope(|scope| {
        scope.spawn(|| {
            for i in 0..blocks {
                wait(&turn, i as u32 + 1);
                let ns = time(&mut |from, n| side(from, n), (2 * i + 1) * n + (1 << 19), n);
                *other_took.lock().expect("no panic") = ns;
                done.store(i as u32 + 1, SeqCst);
            }
        });
        for i in 0..blocks {
            let alone = time(&mut |from, n| side(from, n), 2 * i * n, n);
            turn.store(i as u32 + 1, SeqCst);
            let mine = time(&mut |from, n| side(from, n), (2 * i + 1) * n, n);
            wait(&done, i as u32 + 1);
            let both = mine.max(*other_took.lock().expect("no panic"));
            ratios.push(2.0 * alone / both);
        }
    });
    median(ratios)
}

/// The figures on host maps.
pub(crate) fn run(blocks: usize, entries: usize) {
    let tables = Tables::new(entries);
    tables.lookups::<FREE>(blocks, "");
    tables.lookups::<CHAINED>(blocks, ", one by one");
    arrays(blocks, entries);
    let percent = 100 / UPDATE_EACH;
    let ours = scaling(blocks, &|from, n| tables.mix(from, n));
    let plain = scaling(blocks, &|from, n| tables.plain::<FREE>(from, n));
    let verdict = if ours >= 1.7 { "PASS" } else { "SHORT" };
    println!(
        "{:<46} {ours:>6.2}x  at least 1.7: {verdict:<6} (hashbrown, only read: {plain:.2})",
        format!("two threads / one, {percent} % updates")
    );
    black_box(VALUE_BYTES);
}
