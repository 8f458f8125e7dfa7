//! Wrong bits in device memory: corrected, detected or missed, exactly as the tier is configured, whoever
//! meets them. What SECDED does is held against a code word that is really encoded and decoded.

mod common;

use common::{
    ARRAY, HASH, HOST_BYTES, Host, LPM, LRU_HASH, QUEUE, Shape, create, element, io, returned,
};
use offmap_abi::{DevAddr, IoOpcode, MapHandle, Status};
use offmap_firmware_model::hook::{BitFlips, MemoryHook, Verdict};
use offmap_firmware_model::{Config, Ecc, Firmware, Progress, Scrubbed, TierConfig};
use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng, SeedableRng};
use std::collections::BTreeMap;

const MEMORY: u64 = 1 << 18;
/// A value that is a line.
const LINE: usize = 64;

fn device(ecc: Ecc) -> Firmware<Vec<u8>> {
    let tiers = vec![TierConfig::new("memory", MEMORY).with_ecc(ecc)];
    common::firmware(Config::with_memory(0).with_tiers(tiers))
}

/// A bit of a line: of its data, or a check bit.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Bit {
    Data(u32),
    Check(u32),
}

impl Bit {
    fn all(ecc: Ecc) -> Vec<Self> {
        let data = (0..512).map(Self::Data);
        data.chain((0..ecc.check_bits()).map(Self::Check)).collect()
    }

    fn flip(self, firmware: &mut Firmware<Vec<u8>>, line: DevAddr) {
        let done = match self {
            Self::Data(bit) => firmware.flip_bits(line.offset(u64::from(bit / 8)), 1 << (bit % 8)),
            Self::Check(bit) => firmware.flip_check_bit(line, bit),
        };
        assert!(done, "{self:?}");
    }
}

/// What a reader of a line gets.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Read {
    Bytes(Vec<u8>),
    Refused,
}

/// A code word of 72 bits, as a machine would build it: place 0 is the parity of all others, places that
/// are powers of two are check bits, the rest is data.
fn encode(data: u64) -> [bool; 72] {
    let mut code = [false; 72];
    let places = (1..72usize).filter(|place| !place.is_power_of_two());
    for (bit, place) in places.enumerate() {
        code[place] = data >> bit & 1 != 0;
    }
    for check in (0..7).map(|n| 1usize << n) {
        let covered = (1..72).filter(|place| place & check != 0 && *place != check);
        code[check] = covered.fold(false, |parity, place| parity ^ code[place]);
    }
    code[0] = code[1..].iter().fold(false, |parity, bit| parity ^ bit);
    code
}

/// What comes out of it: the data, and whether it was corrected. `None`: an error was detected.
fn decode(mut code: [bool; 72]) -> Option<(u64, bool)> {
    let mut syndrome = 0;
    for check in (0..7).map(|n| 1usize << n) {
        let covered = (1..72).filter(|place| place & check != 0);
        if covered.fold(false, |parity, place| parity ^ code[place]) {
            syndrome |= check;
        }
    }
    let odd = code.iter().fold(false, |parity, bit| parity ^ bit);
    match (syndrome, odd) {
        (0, false) => {}
        (place, true) if place < 72 => code[place] ^= true,
        _ => return None,
    }
    let places = (1..72usize).filter(|place| !place.is_power_of_two());
    let data = places
        .enumerate()
        .fold(0, |data, (bit, place)| data | u64::from(code[place]) << bit);
    Some((data, odd))
}

/// What a reader of all of the line should get, and how much is counted as corrected meanwhile.
fn expected(ecc: Ecc, line: &[u8; LINE], flips: &[Bit]) -> (Read, u64) {
    let mut bytes = *line;
    for flip in flips {
        if let Bit::Data(bit) = flip {
            bytes[(bit / 8) as usize] ^= 1 << (bit % 8);
        }
    }
    match ecc {
        Ecc::None => (Read::Bytes(bytes.to_vec()), 0),
        Ecc::Parity if !flips.len().is_multiple_of(2) => (Read::Refused, 0),
        Ecc::Parity => (Read::Bytes(bytes.to_vec()), 0),
        Ecc::Secded => {
            let (mut out, mut corrected) = (Vec::new(), 0);
            for word in 0..8 {
                let data = line[8 * word..][..8].try_into().unwrap();
                let mut code = encode(u64::from_le_bytes(data));
                for flip in flips {
                    let places: Vec<usize> =
                        (1..72).filter(|p: &usize| !p.is_power_of_two()).collect();
                    match flip {
                        Bit::Data(bit) if *bit as usize / 64 == word => {
                            code[places[*bit as usize % 64]] ^= true;
                        }
                        Bit::Check(bit) if *bit as usize / 8 == word => {
                            let place = [1, 2, 4, 8, 16, 32, 64, 0][*bit as usize % 8];
                            code[place] ^= true;
                        }
                        _ => {}
                    }
                }
                match decode(code) {
                    Some((data, fixed)) => {
                        out.extend(data.to_le_bytes());
                        corrected += u64::from(fixed);
                    }
                    None => return (Read::Refused, corrected),
                }
            }
            (Read::Bytes(out), corrected)
        }
    }
}

struct Bench {
    firmware: Firmware<Vec<u8>>,
    ecc: Ecc,
    map: MapHandle,
    line: DevAddr,
    bytes: [u8; LINE],
    host: Host,
}

const KEY: [u8; 4] = 3u32.to_le_bytes();

impl Bench {
    fn new(ecc: Ecc) -> Self {
        let mut firmware = device(ecc);
        let map = create(&mut firmware, &Shape::new(ARRAY, 4, LINE, 8));
        let bytes = core::array::from_fn(|n| (n as u8).wrapping_mul(37) ^ 0x5a);
        assert_eq!(firmware.update(map, &KEY, &bytes, 0), Status::Success);
        let (line, len) = firmware.value_address(map, &KEY).expect("it is there");
        assert_eq!((line.0 % 64, len), (0, LINE));
        Self {
            firmware,
            ecc,
            map,
            line,
            bytes,
            host: Host::new(HOST_BYTES),
        }
    }

    fn counts(&self) -> (u64, u64) {
        let tier = &self.firmware.tier_info()[0];
        (tier.corrected.get(), tier.detected.get())
    }

    /// By a command.
    fn read(&mut self) -> Read {
        let command = element(
            IoOpcode::Lookup,
            self.map,
            Some(&KEY),
            None,
            LINE,
            0,
            false,
            &mut self.host,
        );
        let done = io(&mut self.firmware, &command, &mut self.host);
        match done.status() {
            Status::Success => Read::Bytes(returned(&command, &done, LINE, &self.host)),
            Status::MediaError => Read::Refused,
            other => panic!("{other}"),
        }
    }

    /// As an engine does.
    fn read_by_engine(&mut self) -> Read {
        let mut value = [0; LINE];
        match self.firmware.engine_lookup(0, self.map, &KEY, &mut value) {
            Status::Success => Read::Bytes(value.to_vec()),
            Status::MediaError => Read::Refused,
            other => panic!("{other}"),
        }
    }

    /// Flips, reads every way, counts, and flips back.
    fn try_flips(&mut self, flips: &[Bit]) {
        for flip in flips {
            flip.flip(&mut self.firmware, self.line);
        }
        let (wanted, corrected) = expected(self.ecc, &self.bytes, flips);
        let before = self.counts();
        let got = self.read();
        assert_eq!(got, wanted, "{:?}, {flips:?}", self.ecc);
        let after = self.counts();
        let detected = u64::from(wanted == Read::Refused);
        assert_eq!(
            (after.0 - before.0, after.1 - before.1),
            (corrected, detected),
            "{:?}, {flips:?}",
            self.ecc
        );
        assert_eq!(self.read_by_engine(), wanted);
        let clean = Read::Bytes(self.bytes.to_vec());
        let noticed = corrected != 0 || wanted == Read::Refused;
        let bad = self.firmware.tier_info()[0].bad_lines.get();
        assert_eq!(bad, u64::from(noticed), "{:?}, {flips:?}", self.ecc);
        for flip in flips {
            flip.flip(&mut self.firmware, self.line);
        }
        assert_eq!(self.read(), clean, "{:?}, {flips:?} and back", self.ecc);
    }
}

const CODES: [Ecc; 3] = [Ecc::None, Ecc::Parity, Ecc::Secded];

#[test]
fn every_single_bit_of_a_line() {
    for ecc in CODES {
        let mut bench = Bench::new(ecc);
        for bit in Bit::all(ecc) {
            bench.try_flips(&[bit]);
        }
    }
}

#[test]
fn pairs_and_more() {
    let mut random = Xoshiro256PlusPlus::seed_from_u64(5);
    for ecc in CODES {
        let mut bench = Bench::new(ecc);
        let all = Bit::all(ecc);
        // All pairs in one word.
        let word: Vec<Bit> = all
            .iter()
            .copied()
            .filter(|bit| match bit {
                Bit::Data(bit) => bit / 64 == 2,
                Bit::Check(bit) => ecc == Ecc::Secded && bit / 8 == 2,
            })
            .collect();
        for (n, first) in word.iter().enumerate() {
            for second in &word[..n] {
                bench.try_flips(&[*first, *second]);
            }
        }
        for count in 2..8 {
            for _ in 0..600 {
                let from = if random.next_u64() & 1 == 0 {
                    &all
                } else {
                    &word
                };
                let mut flips: Vec<Bit> = Vec::new();
                while flips.len() < count {
                    let bit = from[(random.next_u64() % from.len() as u64) as usize];
                    if !flips.contains(&bit) {
                        flips.push(bit);
                    }
                }
                bench.try_flips(&flips);
            }
        }
    }
}

/// Check bits that there are not, and addresses past the end.
#[test]
fn what_cannot_go_wrong() {
    for (ecc, bits) in [(Ecc::None, 0), (Ecc::Parity, 1), (Ecc::Secded, 64)] {
        let mut firmware = device(ecc);
        for bit in [bits, 64, u32::MAX] {
            assert!(!firmware.flip_check_bit(DevAddr(0), bit), "{ecc:?}, {bit}");
        }
        for at in [MEMORY, MEMORY + 1, 1 << 63, u64::MAX] {
            assert!(!firmware.flip_bits(DevAddr(at), 1), "{at:#x}");
            assert!(!firmware.flip_check_bit(DevAddr(at), 0));
        }
        assert!(firmware.flip_bits(DevAddr(MEMORY - 1), 0x80));
    }
}

/// A write of all of a unit puts it right; one of a part fails where a read would.
#[test]
fn writes_over_wrong_bits() {
    for ecc in [Ecc::Parity, Ecc::Secded] {
        let mut bench = Bench::new(ecc);
        let two: &[Bit] = match ecc {
            Ecc::Parity => &[Bit::Data(70)],
            _ => &[Bit::Data(70), Bit::Data(71)],
        };
        for bit in two {
            bit.flip(&mut bench.firmware, bench.line);
        }
        assert_eq!(bench.read(), Read::Refused);
        let new = [9; LINE];
        assert_eq!(
            bench.firmware.update(bench.map, &KEY, &new, 0),
            Status::Success
        );
        assert_eq!(bench.read(), Read::Bytes(new.to_vec()));
        assert_eq!(bench.firmware.tier_info()[0].bad_lines.get(), 0);

        // An engine writes a part of a line: a CPU's slot, which is a word and a half of it.
        let shape = Shape {
            cpu_slots: 4,
            ..Shape::new(common::PERCPU_ARRAY, 4, 4, 8)
        };
        let map = create(&mut bench.firmware, &shape);
        let (at, _) = bench
            .firmware
            .value_address(map, &KEY)
            .expect("it is there");
        for engine in 0..4 {
            assert_eq!(
                bench.firmware.engine_update(engine, map, &KEY, &[7; 4], 0),
                Status::Success
            );
        }
        // Word 1 of the value is CPU 1's.
        let bits: &[u8] = if ecc == Ecc::Parity { &[1] } else { &[3] };
        assert!(bench.firmware.flip_bits(at.offset(8), bits[0]));
        for engine in 0..4 {
            let wrote = bench
                .firmware
                .engine_update(engine, map, &KEY, &[engine as u8; 4], 0);
            // A slot is a word: SECDED sees nothing of the others, and a word is put right.
            let fails = ecc == Ecc::Parity;
            assert_eq!(
                wrote == Status::MediaError,
                fails,
                "{ecc:?}, engine {engine}: {wrote}"
            );
        }
    }
    // One wrong bit goes with the next write to its word, whatever part of it that is.
    let mut bench = Bench::new(Ecc::Secded);
    Bit::Data(5).flip(&mut bench.firmware, bench.line);
    let before = bench.counts().0;
    assert_eq!(bench.read(), Read::Bytes(bench.bytes.to_vec()));
    assert_eq!(bench.read(), Read::Bytes(bench.bytes.to_vec()));
    assert_eq!(bench.counts().0, before + 2, "each read is counted");
    assert_eq!(
        bench.firmware.scrub(),
        Scrubbed {
            corrected: 1,
            detected: 0
        }
    );
    assert_eq!(bench.firmware.tier_info()[0].bad_lines.get(), 0);
    let before = bench.counts().0;
    assert_eq!(bench.read(), Read::Bytes(bench.bytes.to_vec()));
    assert_eq!(bench.counts().0, before);
    for bit in [5, 6, 200] {
        Bit::Data(bit).flip(&mut bench.firmware, bench.line);
    }
    assert_eq!(
        bench.firmware.scrub(),
        Scrubbed {
            corrected: 1,
            detected: 1
        }
    );
    assert_eq!(
        bench.firmware.scrub(),
        Scrubbed {
            corrected: 0,
            detected: 1
        }
    );
    assert_eq!(bench.read(), Read::Refused);
    // A reset makes memory anew.
    bench.firmware.reset();
    assert_eq!(bench.firmware.scrub(), Scrubbed::default());
    let map = create(&mut bench.firmware, &Shape::new(ARRAY, 4, LINE, 8));
    let mut value = [1; LINE];
    assert_eq!(
        bench.firmware.lookup(map, &KEY, &mut value),
        Status::Success
    );
    assert_eq!(value, [0; LINE]);
}

/// Flips bits of the first access that is asked about, or says what its code says.
struct Once(Option<Verdict>, bool);

impl MemoryHook for Once {
    fn read(&mut self, _at: DevAddr, _len: usize) -> Verdict {
        match self.1 {
            false => self.0.take().unwrap_or(Verdict::Pass),
            true => Verdict::Pass,
        }
    }

    fn write(&mut self, _at: DevAddr, _len: usize) -> Verdict {
        match self.1 {
            true => self.0.take().unwrap_or(Verdict::Pass),
            false => Verdict::Pass,
        }
    }
}

/// A fault plan's flips go by the tier's code, and what it forces does not.
#[test]
fn faults_follow_the_tier() {
    for ecc in CODES {
        for (count, on_write) in [(1, false), (2, false), (1, true), (2, true)] {
            let mut bench = Bench::new(ecc);
            let flips = BitFlips { first: 70, count };
            let mut hook = Once(Some(Verdict::Flip(flips)), on_write);
            let opcode = if on_write {
                IoOpcode::Update
            } else {
                IoOpcode::Lookup
            };
            let value = bench.bytes;
            let given = on_write.then_some(&value[..]);
            let room = if on_write { 0 } else { LINE };
            let host = &mut bench.host;
            let command = element(opcode, bench.map, Some(&KEY), given, room, 0, false, host);
            let done = bench.firmware.io_hooked(1, &command, host, &mut hook);
            let Progress::Done(done) = done else {
                panic!("it takes one step");
            };
            assert_eq!(hook.0, None, "the hook was asked");
            let bits: Vec<Bit> = (0..count).map(|n| Bit::Data(70 + n)).collect();
            let (wanted, _) = expected(ecc, &bench.bytes, &bits);
            if on_write {
                assert_eq!(done.status(), Status::Success);
            } else {
                let refused = done.status() == Status::MediaError;
                assert_eq!(refused, wanted == Read::Refused, "{ecc:?}, {count}");
            }
            assert_eq!(bench.read(), wanted, "{ecc:?}, {count}, write: {on_write}");
        }
        let mut bench = Bench::new(ecc);
        let mut hook = Once(Some(Verdict::Media), false);
        let host = &mut bench.host;
        let command = element(
            IoOpcode::Lookup,
            bench.map,
            Some(&KEY),
            None,
            LINE,
            0,
            false,
            host,
        );
        let done = bench.firmware.io_hooked(1, &command, host, &mut hook);
        assert!(matches!(done, Progress::Done(done) if done.status() == Status::MediaError));
        assert_eq!(bench.read(), Read::Bytes(bench.bytes.to_vec()));
    }
}

/// Every line of a table goes wrong in turn, so that it is detected. No command is wrong then: it is right,
/// or a media error; and when the bits are right again, so is the table, with what has succeeded.
#[test]
fn a_wrong_line_anywhere_in_a_table_is_detected_and_spoils_nothing() {
    for (kind, key_size, value_size) in [
        (HASH, 8, 24),
        (LRU_HASH, 8, 24),
        (LPM, 8, 16),
        (QUEUE, 0, 24),
        (ARRAY, 4, 24),
    ] {
        let mut firmware = device(Ecc::Secded);
        let shape = Shape::new(kind, key_size, value_size, 48);
        let map = create(&mut firmware, &shape);
        let layout = firmware.layout(map).expect("it is there");
        let key = |n: u64| -> Vec<u8> {
            let mut key = n.to_le_bytes()[..key_size].to_vec();
            if kind == LPM {
                key = [32u32.to_le_bytes(), (n as u32).to_be_bytes()].concat();
            }
            key
        };
        let mut model: BTreeMap<Vec<u8>, u8> = BTreeMap::new();
        let count = if kind == LRU_HASH { 48 } else { 40 };
        for n in 0..count {
            let wrote = firmware.update(map, &key(n), &vec![n as u8; value_size], 0);
            assert_eq!(wrote, Status::Success);
            model.insert(key(n), n as u8);
        }
        let mut random = Xoshiro256PlusPlus::seed_from_u64(kind.into());
        let mut refused = 0;
        for line in (0..layout.bytes.get() / 64).cycle().take(400) {
            let at = DevAddr(layout.base.get() + 64 * line);
            // Two bits of a word, which cannot be read then.
            let at = at.offset(8 * (random.next_u64() % 8));
            assert!(firmware.flip_bits(at, 0x21));
            let mut wrong = false;
            for _ in 0..40 {
                let n = random.next_u64() % 40;
                let key = key(n);
                let mut value = vec![0; value_size];
                if kind == QUEUE {
                    let got = firmware.lookup(map, &key, &mut value);
                    let failed = got == Status::MediaError;
                    assert!(failed || got == Status::Success && value[0] == 0, "{got}");
                    wrong |= failed;
                    continue;
                }
                let fresh = (random.next_u64() % 256) as u8;
                let status = match random.next_u64() % 3 {
                    0 => {
                        let got = firmware.lookup(map, &key, &mut value);
                        if got == Status::Success {
                            assert_eq!(Some(&value[0]), model.get(&key), "a wrong value");
                        } else if got == Status::NotFound {
                            assert_eq!(model.get(&key), None, "a key is lost");
                        }
                        got
                    }
                    1 => {
                        let put = firmware.update(map, &key, &vec![fresh; value_size], 0);
                        if put == Status::Success {
                            model.insert(key, fresh);
                        }
                        put
                    }
                    _ if kind == ARRAY || kind == LRU_HASH => Status::Success,
                    _ => {
                        let gone = firmware.delete(map, &key);
                        match gone {
                            Status::Success => assert!(model.remove(&key).is_some()),
                            Status::NotFound => assert!(!model.contains_key(&key)),
                            _ => {}
                        }
                        gone
                    }
                };
                let ok = [Status::Success, Status::NotFound, Status::MediaError];
                assert!(ok.contains(&status), "line {line}: {status}");
                wrong |= status == Status::MediaError;
            }
            refused += u32::from(wrong);
            // A write may have put it right.
            if firmware.scrub().detected != 0 {
                assert!(firmware.flip_bits(at, 0x21));
            }
            assert_eq!(firmware.scrub(), Scrubbed::default());
            for (key, expected) in &model {
                let mut value = vec![0; value_size];
                if kind == QUEUE {
                    break;
                }
                assert_eq!(
                    firmware.lookup(map, key, &mut value),
                    Status::Success,
                    "line {line}"
                );
                assert_eq!(value, vec![*expected; value_size]);
            }
        }
        // A peek at a queue looks at two lines and no more.
        let least = if kind == QUEUE { 2 } else { 8 };
        assert!(refused > least, "type {kind}: {refused} lines were met");
    }
}
