//! What the object reader makes of right objects, and of each way to be wrong.

mod support;

use offmap_cli::object::{BtfError, MapDef, MapError, ObjectError, parse};
use support::{BtfBuilder, DEMO, Section, elf, object};

fn def(name: &str, map_type: u32, key_size: u32, value_size: u32, max_entries: u32) -> MapDef {
    MapDef {
        name: name.to_owned(),
        map_type,
        key_size,
        value_size,
        max_entries,
        map_flags: 0,
        numa_node: 0,
        map_extra: 0,
        pinned_by_name: false,
        inner: None,
    }
}

/// One map `m` whose definition has the members that `members` makes.
fn one_map(members: impl FnOnce(&mut BtfBuilder, u32) -> Vec<(&'static str, u32)>) -> Vec<u8> {
    let mut btf = BtfBuilder::new();
    let int = btf.int(4);
    let members = members(&mut btf, int);
    let size = members.len() * 8;
    let definition = btf.structure(&members);
    let var = btf.var("m", definition);
    btf.datasec(".maps", &[var]);
    object(&btf.finish(), size, &[("m", 0)])
}

fn map_error(bytes: &[u8]) -> MapError {
    match parse(bytes) {
        Err(ObjectError::Map { error, .. }) => error,
        other => panic!("expected a map error, not {other:?}"),
    }
}

fn btf_error(btf: &[u8]) -> BtfError {
    match parse(&object(btf, 32, &[("m", 0)])) {
        Err(ObjectError::Btf(error)) => error,
        other => panic!("expected a BTF error, not {other:?}"),
    }
}

#[test]
fn the_demo_object_holds_the_maps_of_its_source() {
    let mut maps = parse(DEMO).unwrap();
    maps.sort_by(|a, b| a.name.cmp(&b.name));
    let mut neighbours = def("neighbours", 1, 6, 64, 1024);
    neighbours.map_flags = 1;
    let expected = [
        def("action_tally", 6, 4, 16, 5),
        def("deny_ipv4", 1, 4, 8, 10_000),
        def("flows", 5, 16, 32, 4096),
        neighbours,
        def("port_class", 2, 4, 1, 65_536),
        def("settings", 2, 4, 16, 1),
    ];
    assert_eq!(maps, expected);
}

#[test]
fn the_demo_object_names_no_place_on_the_machine_that_built_it() {
    let text = String::from_utf8_lossy(DEMO);
    for place in ["/home", "/root", "/work", "/tmp", "/usr"] {
        assert!(!text.contains(place), "{place} is in demo.bpf.o");
    }
}

#[test]
fn every_member_is_read() {
    let bytes = one_map(|btf, int| {
        let key = btf.raw("key", 8, 0, int, &[]);
        let inner_type = btf.uint(int, 2);
        let four = btf.uint(int, 4);
        let inner = btf.structure(&[
            ("type", inner_type),
            ("key_size", four),
            ("value_size", four),
        ]);
        let inner = btf.ptr(inner);
        let extra = btf.raw("", 19, 1, 8, &[0, 7, 1]);
        vec![
            ("type", btf.uint(int, 13)),
            ("max_entries", btf.uint(int, 9)),
            ("map_flags", btf.uint(int, 4)),
            ("numa_node", btf.uint(int, 1)),
            ("key", btf.ptr(key)),
            ("key_size", four),
            ("pinning", btf.uint(int, 1)),
            ("map_extra", extra),
            ("values", btf.array(inner, 0)),
        ]
    });
    let mut expected = def("m", 13, 4, 4, 9);
    expected.map_flags = 4;
    expected.numa_node = 1;
    expected.pinned_by_name = true;
    expected.map_extra = 1 << 32 | 7;
    expected.inner = Some(Box::new(def("", 2, 4, 4, 0)));
    assert_eq!(parse(&bytes).unwrap(), [expected]);
}

#[test]
fn maps_come_in_the_order_of_the_file() {
    let mut btf = BtfBuilder::new();
    let int = btf.int(4);
    let hash = btf.uint(int, 1);
    let definition = btf.structure(&[("type", hash)]);
    let first = btf.var("first", definition);
    let second = btf.var("second", definition);
    btf.datasec(".maps", &[second, first]);
    let bytes = object(&btf.finish(), 16, &[("second", 8), ("first", 0)]);
    let names: Vec<_> = parse(&bytes)
        .unwrap()
        .into_iter()
        .map(|map| map.name)
        .collect();
    assert_eq!(names, ["first", "second"]);
}

#[test]
fn an_object_without_maps_has_none() {
    assert_eq!(
        parse(&elf(&[Section(".text", 1, vec![0; 8], 0)])).unwrap(),
        []
    );
}

#[test]
fn other_files_are_told_apart() {
    let patched = |at: usize, value: u8| {
        let mut bytes = DEMO.to_vec();
        bytes[at] = value;
        parse(&bytes).unwrap_err()
    };
    assert!(matches!(parse(b""), Err(ObjectError::NotElf)));
    assert!(matches!(parse(b"#!/bin/sh\n"), Err(ObjectError::NotElf)));
    assert!(matches!(
        parse(&DEMO[..5]),
        Err(ObjectError::HeaderCutShort)
    ));
    assert!(matches!(
        parse(&DEMO[..63]),
        Err(ObjectError::HeaderCutShort)
    ));
    assert!(matches!(patched(4, 1), ObjectError::Not64Bit));
    assert!(matches!(patched(5, 2), ObjectError::ForeignEndian));
    assert!(matches!(patched(6, 0), ObjectError::Version));
    assert!(matches!(patched(16, 2), ObjectError::NotRelocatable(2)));
    assert!(matches!(patched(18, 62), ObjectError::NotBpf(62)));
    assert!(matches!(parse(&DEMO[..4096]), Err(ObjectError::Damaged(_))));
}

#[test]
fn maps_without_btf_and_legacy_maps_are_told_apart() {
    let without = elf(&[Section(".maps", 1, vec![0; 32], 0)]);
    assert!(matches!(parse(&without), Err(ObjectError::NoBtf)));
    let legacy = elf(&[Section("maps", 1, vec![0; 20], 0)]);
    assert!(matches!(parse(&legacy), Err(ObjectError::LegacyMaps(name)) if name == "maps"));
    let no_section = BtfBuilder::new().finish();
    assert!(matches!(
        parse(&object(&no_section, 32, &[])),
        Err(ObjectError::MapsMismatch(_))
    ));
    let mut btf = BtfBuilder::new();
    btf.datasec(".maps", &[]);
    let only_btf = elf(&[Section(".BTF", 1, btf.finish(), 0)]);
    assert!(matches!(
        parse(&only_btf),
        Err(ObjectError::MapsMismatch(_))
    ));
    let twice = elf(&[
        Section(".maps", 1, vec![], 0),
        Section(".maps", 1, vec![], 0),
    ]);
    assert!(matches!(parse(&twice), Err(ObjectError::Repeated(".maps"))));
}

#[test]
fn wrong_definitions_are_named() {
    let unknown =
        one_map(|btf, int| vec![("type", btf.uint(int, 1)), ("colour", btf.uint(int, 1))]);
    assert_eq!(
        map_error(&unknown),
        MapError::UnknownMember("colour".to_owned())
    );
    let twice = one_map(|btf, int| vec![("type", btf.uint(int, 1)), ("type", btf.uint(int, 2))]);
    assert_eq!(map_error(&twice), MapError::RepeatedMember("type"));
    let typeless = one_map(|btf, int| vec![("max_entries", btf.uint(int, 1))]);
    assert_eq!(map_error(&typeless), MapError::NoType);
    let plain = one_map(|_, int| vec![("type", int)]);
    assert!(matches!(
        map_error(&plain),
        MapError::Member { member: "type", .. }
    ));
    let conflict = one_map(|btf, int| {
        vec![
            ("type", btf.uint(int, 1)),
            ("key", btf.ptr(int)),
            ("key_size", btf.uint(int, 8)),
        ]
    });
    assert_eq!(
        map_error(&conflict),
        MapError::Conflict {
            what: "key",
            from_type: 4,
            given: 8
        }
    );
    let pinned =
        one_map(|btf, int| vec![("type", btf.uint(int, 1)), ("pinning", btf.uint(int, 2))]);
    assert_eq!(map_error(&pinned), MapError::Pinning(2));
    let not_last = one_map(|btf, int| {
        let proto = btf.raw("", 13, 0, 0, &[]);
        let proto = btf.ptr(proto);
        vec![("values", btf.array(proto, 0)), ("type", btf.uint(int, 3))]
    });
    assert_eq!(map_error(&not_last), MapError::ValuesNotLast);
}

#[test]
fn places_in_the_section_are_checked() {
    let build = |second_at: u64, section: usize, linkage: u32, second: &str| {
        let mut btf = BtfBuilder::new();
        let int = btf.int(4);
        let hash = btf.uint(int, 1);
        let definition = btf.structure(&[("type", hash), ("max_entries", hash)]);
        let first = btf.var("first", definition);
        let other = btf.raw(second, 14, 0, definition, &[linkage]);
        btf.datasec(".maps", &[first, other]);
        object(
            &btf.finish(),
            section,
            &[("first", 0), ("second", second_at)],
        )
    };
    assert_eq!(parse(&build(16, 32, 1, "second")).unwrap().len(), 2);
    assert_eq!(
        map_error(&build(8, 32, 1, "second")),
        MapError::Overlaps("first".to_owned())
    );
    assert_eq!(
        map_error(&build(16, 31, 1, "second")),
        MapError::Outside {
            offset: 16,
            size: 16,
            section: 31
        }
    );
    assert!(matches!(
        map_error(&build(u64::MAX - 3, 32, 1, "second")),
        MapError::Outside { .. }
    ));
    assert_eq!(map_error(&build(16, 32, 0, "second")), MapError::Linkage);
    assert_eq!(map_error(&build(16, 32, 1, "third")), MapError::NoSymbol);
    assert_eq!(map_error(&build(16, 32, 1, "first")), MapError::Repeated);
    assert!(matches!(
        parse(&build(16, 32, 1, "a\x1b[2Jb")),
        Err(ObjectError::Btf(BtfError::Name(_)))
    ));
}

#[test]
fn circles_and_depth_end() {
    // A typedef of itself, two that name each other, a struct-free array of itself.
    for targets in [[3, 3], [4, 3]] {
        let bytes = one_map(|btf, int| {
            assert_eq!(btf.next, 2);
            let _spare = btf.int(4);
            btf.raw("a", 8, 0, targets[0], &[]);
            btf.raw("b", 8, 0, targets[1], &[]);
            vec![("type", btf.uint(int, 1)), ("key", btf.ptr(3))]
        });
        assert!(
            matches!(
                map_error(&bytes),
                MapError::Member {
                    error: BtfError::Circular(3),
                    ..
                }
            ),
            "{targets:?}"
        );
    }
    let array = one_map(|btf, int| {
        let id = btf.next;
        btf.array(id, 1);
        vec![("type", btf.uint(int, 1)), ("value", btf.ptr(id))]
    });
    assert!(matches!(
        map_error(&array),
        MapError::Member {
            error: BtfError::Circular(_),
            ..
        }
    ));
    let huge = one_map(|btf, int| {
        let a = btf.array(int, 1 << 31);
        vec![("type", btf.uint(int, 1)), ("value", btf.ptr(a))]
    });
    assert!(matches!(
        map_error(&huge),
        MapError::Member {
            error: BtfError::TooLarge(_),
            ..
        }
    ));
}

#[test]
fn malformed_btf_is_named() {
    let good = || {
        let mut btf = BtfBuilder::new();
        let int = btf.int(4);
        let hash = btf.uint(int, 1);
        let definition = btf.structure(&[("type", hash)]);
        let var = btf.var("m", definition);
        btf.datasec(".maps", &[var]);
        btf.finish()
    };
    assert_eq!(parse(&object(&good(), 8, &[("m", 0)])).unwrap().len(), 1);
    let patched = |at: usize, bytes: &[u8]| {
        let mut btf = good();
        btf[at..at + bytes.len()].copy_from_slice(bytes);
        btf_error(&btf)
    };
    assert_eq!(btf_error(&good()[..3]), BtfError::HeaderCutShort);
    assert_eq!(btf_error(&good()[..23]), BtfError::HeaderLength(24));
    assert_eq!(patched(0, &[0xeb, 0x9f]), BtfError::ForeignEndian);
    assert_eq!(patched(0, &[0, 0]), BtfError::Magic(0));
    assert_eq!(patched(2, &[2]), BtfError::Version(2));
    assert_eq!(patched(3, &[1]), BtfError::Flags(1));
    assert_eq!(patched(4, &[23]), BtfError::HeaderLength(23));
    assert_eq!(patched(4, &[25]), BtfError::HeaderTail);
    assert_eq!(patched(8, &[2]), BtfError::Unaligned(2));
    assert_eq!(patched(12, &[0xff; 4]), BtfError::Bounds("types"));
    assert_eq!(patched(20, &[0xff; 4]), BtfError::Bounds("strings"));
    assert_eq!(patched(16, &[0; 4]), BtfError::Overlap);
    assert_eq!(patched(good().len() - 1, b"x"), BtfError::Strings);
    assert_eq!(patched(24 + 7, &[0]), BtfError::Kind { id: 1, kind: 0 });
    assert_eq!(patched(24 + 7, &[20]), BtfError::Kind { id: 1, kind: 20 });
    assert_eq!(
        patched(24, &[0xff; 4]),
        BtfError::StringReference {
            id: 1,
            offset: u32::MAX
        }
    );

    // One type of each kind, cut short after each of its words.
    let tails = [4, 0, 12, 12, 12, 8, 0, 0, 0, 0, 0, 0, 8, 4, 12, 0, 4, 0, 12];
    for (kind, &tail) in (1_u32..).zip(&tails) {
        for words in 0..(12 + tail) / 4 {
            let mut btf = BtfBuilder::new();
            btf.raw("", kind, 1, 0, &vec![0; tail / 4]);
            btf.types.truncate(words * 4);
            let expected = if words == 0 {
                None
            } else {
                Some(BtfError::TypeCutShort(1))
            };
            let found = match parse(&object(&btf.finish(), 8, &[])) {
                Err(ObjectError::Btf(error)) => Some(error),
                _ => None,
            };
            assert_eq!(found, expected, "kind {kind}, {words} words");
        }
        // Whole, its references inside and outside.
        let mut btf = BtfBuilder::new();
        btf.raw("", kind, 1, 0, &vec![0; tail / 4]);
        assert!(
            matches!(
                parse(&object(&btf.finish(), 8, &[])),
                Err(ObjectError::MapsMismatch(_))
            ),
            "kind {kind}"
        );
    }
    for (kind, word, tail) in [
        (2, 9, vec![]),
        (3, 0, vec![9, 0, 1]),
        (3, 0, vec![0, 9, 1]),
        (4, 4, vec![0, 9, 0]),
        (5, 4, vec![0, 9, 0]),
        (8, 9, vec![]),
        (12, 9, vec![]),
        (13, 9, vec![0, 0]),
        (13, 0, vec![0, 9]),
        (14, 9, vec![1]),
        (15, 0, vec![9, 0, 0]),
        (17, 9, vec![0]),
        (18, 9, vec![]),
    ] {
        let mut btf = BtfBuilder::new();
        btf.raw(
            "",
            kind,
            u32::from(tail.len() > 1 && kind != 3),
            word,
            &tail,
        );
        assert_eq!(
            btf_error(&btf.finish()),
            BtfError::TypeReference {
                id: 1,
                target: 9,
                count: 2
            },
            "kind {kind}"
        );
    }
}

#[test]
fn too_many_maps_are_refused_before_they_are_read() {
    let mut btf = BtfBuilder::new();
    btf.datasec(".maps", &vec![1; 65_535]);
    assert!(matches!(
        parse(&object(&btf.finish(), 8, &[])),
        Err(ObjectError::TooManyMaps(65_535))
    ));
}
