//! The DMA engine against a model of what is mapped.

use crate::host::buffer;
use offmap_device_io::{DmaBuffer, IoError, Iova};
use offmap_emulator::dma::{
    ADDRESS_SPACE_MAX, Dma, DmaFault, FarMemory, IOVA_RANGES, Permission, Span, TOO_MUCH,
    Unreachable, WINDOW_BYTES,
};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

const PAGE: u64 = 4096;
/// The model's address space, in pages.
const PAGES: u64 = 12;

#[derive(Clone, Debug)]
enum Op {
    /// With its file, or for the host to be asked.
    Map {
        page: u64,
        pages: usize,
        far: bool,
    },
    Unmap {
        page: u64,
        pages: usize,
    },
    Write {
        iova: u64,
        len: usize,
        seed: u8,
    },
    Read {
        iova: u64,
        len: usize,
    },
    Word {
        offset: u64,
        value: u64,
    },
    Entry {
        offset: u64,
        value: u64,
    },
    BusMaster(bool),
}

fn op() -> impl Strategy<Value = Op> {
    let iova = 0..PAGES * PAGE;
    prop_oneof![
        3 => (0..PAGES, 1..4usize, any::<bool>())
            .prop_map(|(page, pages, far)| Op::Map { page, pages, far }),
        2 => (0..PAGES, 1..4usize).prop_map(|(page, pages)| Op::Unmap { page, pages }),
        6 => (iova.clone(), 0..9000usize, any::<u8>())
            .prop_map(|(iova, len, seed)| Op::Write { iova, len, seed }),
        6 => (iova, 0..9000usize).prop_map(|(iova, len)| Op::Read { iova, len }),
        4 => (0..PAGES * PAGE / 8, any::<u64>())
            .prop_map(|(w, value)| Op::Word { offset: w * 8, value }),
        2 => (0..PAGES * PAGE / 64, any::<u64>())
            .prop_map(|(e, value)| Op::Entry { offset: e * 64, value }),
        1 => any::<bool>().prop_map(Op::BusMaster),
    ]
}

/// What the host has mapped: by first page.
#[derive(Default)]
struct Model {
    mapped: BTreeMap<u64, DmaBuffer>,
    master: bool,
}

impl Model {
    fn at(&self, iova: u64) -> Option<(&DmaBuffer, usize)> {
        let (first, b) = self.mapped.range(..=iova / PAGE).next_back()?;
        let within = (iova - first * PAGE) as usize;
        (within < b.len()).then_some((b, within))
    }

    fn reachable(&self, iova: u64, len: usize) -> bool {
        len == 0 || self.master && (iova..iova + len as u64).all(|i| self.at(i).is_some())
    }
}

/// The host's side of memory that it gave no file for, by first IOVA. It has seen these accesses.
#[derive(Debug, Default)]
struct Asked {
    memory: Mutex<BTreeMap<u64, DmaBuffer>>,
    seen: Mutex<Vec<(u64, usize)>>,
}

impl Asked {
    fn at<R>(&self, iova: u64, len: usize, f: impl FnOnce(&DmaBuffer, usize) -> R) -> R {
        self.seen.lock().unwrap().push((iova, len));
        let memory = self.memory.lock().unwrap();
        let (first, buffer) = memory.range(..=iova).next_back().expect("what is mapped");
        f(buffer, (iova - first) as usize)
    }
}

impl FarMemory for Asked {
    fn read(&self, iova: u64, into: &mut [u8]) -> Result<(), Unreachable> {
        self.at(iova, into.len(), |buffer, at| buffer.read(at, into));
        Ok(())
    }

    fn write(&self, iova: u64, from: &[u8]) -> Result<(), Unreachable> {
        self.at(iova, from.len(), |buffer, at| buffer.write(at, from));
        Ok(())
    }
}

/// What is not reached is a fault; without anybody to ask it is, too, and was none before.
#[test]
fn memory_that_the_host_does_not_reach_is_a_fault() {
    #[derive(Debug)]
    struct Nothing;
    impl FarMemory for Nothing {
        fn read(&self, _iova: u64, _into: &mut [u8]) -> Result<(), Unreachable> {
            Err(Unreachable)
        }
        fn write(&self, _iova: u64, _from: &[u8]) -> Result<(), Unreachable> {
            Err(Unreachable)
        }
    }
    let mut dma = Dma::new();
    dma.set_enabled(true);
    dma.map_as(None, Iova(PAGE), PAGE as usize, Permission::READ_WRITE)
        .unwrap();
    assert_eq!(dma.check(PAGE, 8), Err(DmaFault(Iova(PAGE))));
    dma.set_far(Some(Arc::new(Nothing)));
    assert_eq!(dma.check(PAGE, PAGE), Ok(()));
    let fault = DmaFault(Iova(PAGE + 64));
    let mut span = Span::new(PAGE, PAGE);
    assert_eq!(dma.read(PAGE + 64, &mut [0; 8]), Err(fault));
    assert_eq!(dma.write(PAGE + 64, &[0; 8]), Err(fault));
    assert_eq!(span.load(&dma, 64), Err(fault));
    assert_eq!(span.store(&dma, 64, 0), Err(fault));
    assert_eq!(span.load_entry(&dma, 64, true), Err(fault));
    assert_eq!(span.store_entry(&dma, 64, &[0; 8]), Err(fault));
    dma.set_far(None);
    assert_eq!(dma.check(PAGE, 8), Err(DmaFault(Iova(PAGE))));
}

/// The device may do no more there than elsewhere, and asks for words as words.
#[test]
fn memory_that_is_asked_for_keeps_permissions_and_words() {
    let asked = Arc::new(Asked::default());
    let mut dma = Dma::new();
    dma.set_enabled(true);
    dma.set_far(Some(Arc::clone(&asked) as Arc<dyn FarMemory>));
    let modes = [(true, true), (true, false), (false, true), (false, false)];
    for (i, (read, write)) in (1..).zip(modes) {
        let (iova, permission) = (i * PAGE, Permission { read, write });
        dma.map_as(None, Iova(iova), PAGE as usize, permission)
            .unwrap();
        asked
            .memory
            .lock()
            .unwrap()
            .insert(iova, buffer(PAGE as usize));
        let mut span = Span::new(iova, PAGE);
        assert_eq!(dma.write(iova, &[7; 20]).is_ok(), write);
        assert_eq!(dma.read(iova, &mut [0; 20]).is_ok(), read);
        assert_eq!(span.store(&dma, 64, 1 << 16).is_ok(), write);
        assert_eq!(span.load(&dma, 64).is_ok(), read);
        assert_eq!(span.store_entry(&dma, 128, &[1 << 16; 8]).is_ok(), write);
        assert_eq!(span.load_entry(&dma, 128, true).is_ok(), read);
        // Words are aligned, in the span and in one mapping.
        assert!(span.load(&dma, 4).is_err() && span.store(&dma, 4, 0).is_err());
        assert!(span.load(&dma, PAGE - 4).is_err() && span.load(&dma, PAGE).is_err());
        assert!(span.load_entry(&dma, PAGE - 32, true).is_err());
        let at = |offset: u64, len| (iova + offset, len);
        let stored = [at(0, 20), at(64, 8), at(136, 56), at(128, 8)];
        let loaded = [at(0, 20), at(64, 8), at(128, 8), at(136, 56)];
        let mut expected = Vec::new();
        for (writes, reads) in [(0..1, 0..1), (1..2, 1..2), (2..4, 2..4)] {
            expected.extend_from_slice(if write { &stored[writes] } else { &[] });
            // An entry of another phase is not looked at beyond its first word.
            let seen = if write { reads.end } else { reads.end.min(3) };
            expected.extend_from_slice(if read {
                &loaded[reads.start..seen]
            } else {
                &[]
            });
        }
        let seen = std::mem::take(&mut *asked.seen.lock().unwrap());
        assert_eq!(seen, expected, "{permission:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn every_access_is_what_the_host_mapped(ops in proptest::collection::vec(op(), 1..60)) {
        let mut dma = Dma::new();
        let mut model = Model { master: true, ..Model::default() };
        dma.set_enabled(true);
        let asked = Arc::new(Asked::default());
        dma.set_far(Some(Arc::clone(&asked) as Arc<dyn FarMemory>));
        // The span covers all of the model's space, so that it crosses every mapping.
        let mut span = Span::new(0, PAGES * PAGE);
        for op in ops {
            match op {
                Op::Map { page, pages, far } => {
                    let memory = buffer(pages * PAGE as usize);
                    let free = (page..page + pages as u64).all(|p| model.at(p * PAGE).is_none());
                    let (iova, len) = (Iova(page * PAGE), memory.len());
                    let done = match far {
                        true => dma.map_as(None, iova, len, Permission::READ_WRITE),
                        false => dma.map(memory.fd(), 0, iova, len),
                    };
                    prop_assert_eq!(done.is_ok(), free);
                    if free {
                        if far {
                            let again = memory.map_again().unwrap();
                            asked.memory.lock().unwrap().insert(iova.0, again);
                        }
                        model.mapped.insert(page, memory);
                    }
                }
                Op::Unmap { page, pages } => {
                    let len = pages * PAGE as usize;
                    let exact = model.mapped.get(&page).is_some_and(|b| b.len() == len);
                    prop_assert_eq!(dma.unmap(Iova(page * PAGE), len).is_ok(), exact);
                    if exact {
                        asked.memory.lock().unwrap().remove(&(page * PAGE));
                        model.mapped.remove(&page);
                    }
                }
                Op::Write { iova, len, seed } => {
                    let data: Vec<u8> = (0..len).map(|i| seed.wrapping_add(i as u8)).collect();
                    let ok = model.reachable(iova, len);
                    prop_assert_eq!(dma.check(iova, len as u64).is_ok(), ok);
                    prop_assert_eq!(dma.write(iova, &data).is_ok(), ok);
                    if ok {
                        for (i, byte) in data.iter().enumerate() {
                            let (b, at) = model.at(iova + i as u64).unwrap();
                            let mut seen = [0];
                            b.read(at, &mut seen);
                            prop_assert_eq!(seen[0], *byte);
                        }
                    }
                }
                Op::Read { iova, len } => {
                    let mut into = vec![0; len];
                    let ok = model.reachable(iova, len);
                    prop_assert_eq!(dma.read(iova, &mut into).is_ok(), ok);
                    if ok {
                        for (i, byte) in into.iter().enumerate() {
                            let (b, at) = model.at(iova + i as u64).unwrap();
                            let mut seen = [0];
                            b.read(at, &mut seen);
                            prop_assert_eq!(seen[0], *byte);
                        }
                    }
                }
                Op::Word { offset, value } => {
                    let ok = model.reachable(offset, 8);
                    let stored = span.store(&dma, offset, value);
                    prop_assert_eq!(stored.is_ok(), ok);
                    let loaded = span.load(&dma, offset);
                    if ok {
                        prop_assert_eq!(loaded, Ok(value));
                        let (b, at) = model.at(offset).unwrap();
                        prop_assert_eq!(b.load_u64(at, Ordering::Relaxed), value);
                    } else {
                        prop_assert_eq!(loaded, Err(DmaFault(Iova(offset))));
                    }
                }
                Op::Entry { offset, value } => {
                    let ok = model.reachable(offset, 64);
                    let words = std::array::from_fn(|i| value.wrapping_mul(i as u64 + 1));
                    prop_assert_eq!(span.store_entry(&dma, offset, &words).is_ok(), ok);
                    let phase = value & 1 << 16 != 0;
                    let expected = |same: bool| match (ok, same) {
                        (false, _) => Err(DmaFault(Iova(offset))),
                        (true, same) => Ok(same.then_some(words)),
                    };
                    prop_assert_eq!(span.load_entry(&dma, offset, phase), expected(true));
                    prop_assert_eq!(span.load_entry(&dma, offset, !phase), expected(false));
                    if ok {
                        let (b, at) = model.at(offset).unwrap();
                        prop_assert_eq!(b.load_u64(at + 24, Ordering::Relaxed), words[3]);
                    }
                }
                Op::BusMaster(on) => {
                    dma.set_enabled(on);
                    model.master = on;
                }
            }
        }
    }
}

#[test]
fn refusals_say_why() {
    let mut dma = Dma::new();
    let b = buffer(8192);
    let mut why = |offset, iova, len| match dma.map(b.fd(), offset, Iova(iova), len) {
        Err(IoError::DmaMap { why, .. }) => why,
        other => panic!("{other:?}"),
    };
    assert_eq!(why(0, 0x1000, 0), "the range is empty");
    for (offset, iova, len) in [(0, 0x1001, 4096), (0, 0x1000, 4095), (1, 0x1000, 4096)] {
        assert_eq!(
            why(offset, iova, len),
            "the range is not made of whole pages"
        );
    }
    assert_eq!(
        why(0, u64::MAX - 4095, 8192),
        "the range wraps around the address space"
    );
    for iova in [
        1 << 48,
        (1 << 48) - 4096,
        0xfee0_0000,
        0xfedf_f000,
        u64::MAX - 8191,
    ] {
        assert_eq!(why(0, iova, 8192), "the function cannot address the range");
    }
    for (offset, len) in [(0, 12288), (4096, 8192), (u64::MAX - 4095, 4096)] {
        assert_eq!(
            why(offset, 0x1000, len),
            "the range is not wholly inside the file"
        );
    }
    // The edges themselves are fine.
    dma.map(b.fd(), 0, Iova((1 << 48) - 8192), 8192).unwrap();
    dma.map(b.fd(), 4096, Iova(0xfedf_f000), 4096).unwrap();
    dma.map(b.fd(), 0, Iova(0xfef0_0000), 4096).unwrap();
    let mut dma2 = Dma::new();
    dma2.map(b.fd(), 0, Iova(0x4000), 8192).unwrap();
    for (iova, len) in [
        (0x3000, 8192),
        (0x4000, 4096),
        (0x5000, 4096),
        (0x5000, 8192),
    ] {
        assert!(dma2.map(b.fd(), 0, Iova(iova), len).is_err(), "{iova:#x}");
    }
    for (iova, len) in [
        (0x4000, 4096),
        (0x5000, 4096),
        (0x6000, 4096),
        (0x4000, 12288),
    ] {
        let e = dma2.unmap(Iova(iova), len).unwrap_err();
        assert!(matches!(e, IoError::NotMapped { .. }));
    }
}

#[test]
fn the_engine_maps_pages_itself_from_a_read_only_descriptor_it_refuses() {
    let dir = std::env::temp_dir();
    let path = dir.join(format!("offmap-dma-{}", std::process::id()));
    std::fs::write(&path, [0; 4096]).unwrap();
    let file = std::fs::File::open(&path).unwrap();
    let mapped = Dma::new().map(file.as_fd(), 0, Iova(0x1000), 4096);
    std::fs::remove_file(&path).unwrap();
    assert!(matches!(mapped, Err(IoError::Os { .. })));
}

#[test]
fn accesses_at_the_edges_of_the_address_space_do_not_wrap() {
    let mut dma = Dma::new();
    dma.set_enabled(true);
    let b = buffer(4096);
    let top = IOVA_RANGES[1].last.0 + 1 - 4096;
    dma.map(b.fd(), 0, Iova(top), 4096).unwrap();
    dma.map(b.fd(), 0, Iova(0), 4096).unwrap();
    dma.read(top + 4088, &mut [0; 8]).unwrap();
    assert!(dma.read(top + 4088, &mut [0; 9]).is_err());
    for iova in [u64::MAX, u64::MAX - 7] {
        assert!(dma.read(iova, &mut [0; 16]).is_err());
        assert!(dma.write(iova, &[0; 16]).is_err());
        assert!(dma.check(iova, 16).is_err());
        let mut span = Span::new(iova & !7, 64);
        assert!(span.load(&dma, 8).is_err());
        assert!(span.load(&dma, 56).is_err());
    }
}

#[test]
fn words_of_a_span_must_be_aligned_and_inside() {
    let mut dma = Dma::new();
    dma.set_enabled(true);
    let b = buffer(4096);
    dma.map(b.fd(), 0, Iova(0x1000), 4096).unwrap();
    let mut span = Span::new(0x1040, 64);
    assert!(span.load(&dma, 56).is_ok());
    for offset in [4, 57, 60, 64, u64::MAX, u64::MAX - 7] {
        assert!(span.load(&dma, offset).is_err());
    }
}

#[test]
fn a_file_is_mapped_once_however_many_ranges_of_it_are() {
    const RANGES: u64 = 300_000;
    let mut dma = Dma::new();
    dma.set_enabled(true);
    let b = buffer(4 * 4096);
    let started = std::time::Instant::now();
    // Downwards, as Linux gives out IOVAs, and each page of the file many times over.
    for i in (0..RANGES).rev() {
        dma.map(b.fd(), i % 4 * PAGE, Iova((1 << 32) + i * PAGE), 4096)
            .unwrap();
    }
    assert_eq!(dma.mapped(), (RANGES as usize, 1));
    for i in [0, 1, 2, 3, 77_777, RANGES - 1] {
        let word = 0x1_0000 + i;
        dma.write((1 << 32) + i * PAGE + 8, &word.to_le_bytes())
            .unwrap();
        let at = (i % 4 * PAGE) as usize + 8;
        assert_eq!(b.load_u64(at, Ordering::Relaxed), word);
    }
    // A copy over ranges that lie side by side in IOVA space only.
    let mut into = vec![0; 3 * 4096];
    dma.read((1 << 32) + 2 * PAGE, &mut into).unwrap();
    for i in 0..RANGES / 2 {
        dma.unmap(Iova((1 << 32) + i * PAGE), 4096).unwrap();
    }
    assert!(dma.read((1 << 32) + 8, &mut [0; 8]).is_err());
    let rest = dma.unmap_range(Iova(0), 1 << 40).unwrap();
    assert_eq!(rest, RANGES / 2 * PAGE);
    assert_eq!(dma.mapped(), (0, 0));
    assert!(started.elapsed().as_secs() < 60, "{:?}", started.elapsed());
}

#[test]
fn unmapping_a_range_takes_whole_mappings_or_nothing() {
    let mut dma = Dma::new();
    dma.set_enabled(true);
    let (b, c) = (buffer(8192), buffer(4096));
    dma.map(b.fd(), 0, Iova(0x4000), 8192).unwrap();
    dma.map(c.fd(), 0, Iova(0x8000), 4096).unwrap();
    for (iova, len) in [
        (0x4000, 4096),
        (0x5000, 4096),
        (0x5000, 0x10000),
        (0, 0x5000),
        (0x4000, 0),
        (u64::MAX, 2),
    ] {
        assert!(
            dma.unmap_range(Iova(iova), len).is_err(),
            "{iova:#x} {len:#x}"
        );
        assert_eq!(dma.mapped(), (2, 2));
    }
    // Where nothing is.
    for (iova, len) in [(0x1000, 0x3000), (0x6000, 0x2000), (1 << 63, 1 << 63)] {
        assert_eq!(dma.unmap_range(Iova(iova), len).unwrap(), 0, "{iova:#x}");
    }
    assert_eq!(dma.unmap_range(Iova(0x3000), 0x4000).unwrap(), 8192);
    assert!(dma.read(0x4000, &mut [0; 8]).is_err());
    dma.read(0x8000, &mut [0; 8]).unwrap();
    dma.unmap_all();
    assert!(dma.read(0x8000, &mut [0; 8]).is_err());
    assert_eq!(dma.mapped(), (0, 0));
}

#[test]
fn a_mapping_allows_what_it_was_made_for() {
    let (read, write, none) = (
        Permission {
            read: true,
            write: false,
        },
        Permission {
            read: false,
            write: true,
        },
        Permission {
            read: false,
            write: false,
        },
    );
    let mut dma = Dma::new();
    dma.set_enabled(true);
    let b = buffer(8192);
    b.store_u64(0, 7, Ordering::Relaxed);
    let at = |i: u64| Iova(0x1_0000 * i);
    dma.map_as(Some((b.fd(), 0)), at(1), 8192, read).unwrap();
    dma.map_as(Some((b.fd(), 0)), at(2), 8192, write).unwrap();
    dma.map_as(Some((b.fd(), 0)), at(3), 8192, none).unwrap();
    dma.map_as(None, at(4), 8192, Permission::READ_WRITE)
        .unwrap();
    dma.map_as(Some((b.fd(), 0)), at(5), 8192, Permission::READ_WRITE)
        .unwrap();
    for (i, readable, writable) in [
        (1, true, false),
        (2, false, true),
        (3, false, false),
        (4, false, false),
        (5, true, true),
    ] {
        let iova = at(i).0;
        // Twice: a translation that was kept must not widen what is allowed.
        for _ in 0..2 {
            let mut span = Span::new(iova, 4096);
            for _ in 0..2 {
                assert_eq!(span.load(&dma, 0).is_ok(), readable, "{i}");
                assert_eq!(span.store(&dma, 0, 7).is_ok(), writable, "{i}");
                assert_eq!(dma.read(iova, &mut [0; 8]).is_ok(), readable, "{i}");
                assert_eq!(
                    dma.write(iova, &7u64.to_le_bytes()).is_ok(),
                    writable,
                    "{i}"
                );
            }
            assert_eq!(span.load_entry(&dma, 64, false).is_ok(), readable, "{i}");
            assert_eq!(span.store_entry(&dma, 64, &[0; 8]).is_ok(), writable, "{i}");
        }
    }
    // Of the one file: once to be written, once not.
    assert_eq!(dma.mapped(), (5, 2));
    // Taken all the same.
    assert!(dma.map(b.fd(), 0, at(4), 4096).is_err());
}

#[test]
fn a_file_that_has_grown_is_mapped_anew() {
    let file = std::fs::File::from(
        rustix::fs::memfd_create(c"grows", rustix::fs::MemfdFlags::CLOEXEC).unwrap(),
    );
    let mut dma = Dma::new();
    dma.set_enabled(true);
    file.set_len(4096).unwrap();
    dma.map(file.as_fd(), 0, Iova(0x1000), 4096).unwrap();
    assert!(dma.map(file.as_fd(), 4096, Iova(0x2000), 4096).is_err());
    file.set_len(8192).unwrap();
    dma.map(file.as_fd(), 4096, Iova(0x2000), 4096).unwrap();
    dma.write(0x1ffc, &[7; 8]).unwrap();
    assert_eq!(dma.mapped(), (2, 2));
    dma.unmap(Iova(0x1000), 4096).unwrap();
    assert_eq!(dma.mapped(), (1, 1));
    dma.write(0x2000, &[8; 4096]).unwrap();
}

/// Bytes of address space of this process.
fn address_space() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').next().unwrap().parse::<u64>().unwrap() * PAGE
}

fn sparse(bytes: u64) -> std::fs::File {
    let fd = rustix::fs::memfd_create(c"sparse", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let file = std::fs::File::from(fd);
    file.set_len(bytes).unwrap();
    file
}

/// A file takes address space where it is used, and not for its length. At the limit the next window is
/// refused by name, what is there stays, and room that is made is room.
#[test]
fn a_sparse_file_takes_address_space_where_it_is_used() {
    let mut dma = Dma::new();
    dma.set_enabled(true);
    let file = sparse(4 * ADDRESS_SPACE_MAX);
    let before = address_space();
    let far = 3 * ADDRESS_SPACE_MAX + 5 * PAGE;
    dma.map(file.as_fd(), far, Iova(PAGE), 4096).unwrap();
    // What other tests map meanwhile is far less than the file.
    let took = address_space().saturating_sub(before);
    assert!(took < ADDRESS_SPACE_MAX / 16, "{took:#x}");
    dma.write(PAGE, b"far away").unwrap();
    let mut seen = [0; 8];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut seen, far).unwrap();
    assert_eq!(&seen, b"far away");
    dma.unmap(Iova(PAGE), 4096).unwrap();

    let windows = ADDRESS_SPACE_MAX / WINDOW_BYTES;
    // A descriptor and a mapping for each window is more than a test may have: runs of 64 of them.
    let run = 64 * WINDOW_BYTES;
    let at = |i: u64| Iova((1 << 40) + i * run);
    for i in 0..windows / 64 {
        dma.map(file.as_fd(), i * run, at(i), run as usize).unwrap();
    }
    match dma.map(file.as_fd(), far, Iova(PAGE), 4096) {
        Err(IoError::DmaMap { why, .. }) => assert_eq!(why, TOO_MUCH),
        other => panic!("{other:?}"),
    }
    dma.write(at(3).0, b"still").unwrap();
    dma.unmap(at(0), run as usize).unwrap();
    dma.map(file.as_fd(), far, Iova(PAGE), 4096).unwrap();
    dma.unmap_all();
    let all = ADDRESS_SPACE_MAX as usize;
    dma.map(file.as_fd(), 0, Iova(1 << 45), all).unwrap();
    dma.unmap_all();
    let more = dma.map(file.as_fd(), 0, Iova(1 << 45), all + 4096);
    assert!(more.is_err());
}

/// A range across the border of two windows is one piece; ranges in windows of their own share those.
#[test]
fn ranges_cross_the_windows_of_a_file() {
    let mut dma = Dma::new();
    dma.set_enabled(true);
    let file = sparse(3 * WINDOW_BYTES + 2 * PAGE);
    let border = WINDOW_BYTES - PAGE;
    dma.map(file.as_fd(), border, Iova(0x10_0000), 8192)
        .unwrap();
    let mut span = Span::new(0x10_0000, 8192);
    span.store(&dma, PAGE - 8, 1).unwrap();
    span.store(&dma, PAGE, 2).unwrap();
    for (i, offset) in [
        0,
        border,
        WINDOW_BYTES,
        WINDOW_BYTES + PAGE,
        3 * WINDOW_BYTES + PAGE,
    ]
    .into_iter()
    .enumerate()
    {
        let iova = Iova(0x20_0000 + i as u64 * 2 * PAGE);
        dma.map(file.as_fd(), offset, iova, 4096).unwrap();
    }
    // The first two windows, each of the two, and the last, which ends with the file.
    assert_eq!(dma.mapped(), (6, 4));
    let mut word = [0; 8];
    dma.read(0x20_0000 + 2 * PAGE + PAGE - 8, &mut word)
        .unwrap();
    assert_eq!(u64::from_le_bytes(word), 1);
    dma.read(0x20_0000 + 4 * PAGE, &mut word).unwrap();
    assert_eq!(u64::from_le_bytes(word), 2);
    dma.write(0x20_0000 + 8 * PAGE + PAGE - 8, b"last one")
        .unwrap();
    assert_eq!(dma.unmap_range(Iova(0), 1 << 40).unwrap(), 7 * PAGE);
    assert_eq!(dma.mapped(), (0, 0));
}
