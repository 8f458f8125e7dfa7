//! Every rule once: a blob that breaks it, the error number, and the words that name it.
//! Whether the kernel says the same is the differential test's business.

use super::*;
use crate::uapi::{MapFlags, MapType};

/// A kernel with two structs, of which one can be dropped.
struct Toy;

impl KernelTypes for Toy {
    fn has_struct(&self, name: &[u8]) -> bool {
        matches!(name, b"task_struct" | b"file")
    }

    fn has_destructor(&self, name: &[u8]) -> bool {
        name == b"task_struct"
    }
}

fn parse(blob: &[u8]) -> Result<Btf> {
    Btf::parse_on(blob, &Toy)
}

fn build(make: impl FnOnce(&mut BtfBuilder)) -> Vec<u8> {
    let mut builder = BtfBuilder::new();
    make(&mut builder);
    builder.finish()
}

#[track_caller]
fn refused(errno: Errno, words: &str, make: impl FnOnce(&mut BtfBuilder)) {
    let error = parse(&build(make)).expect_err(words);
    assert_eq!(error.errno(), errno, "{error}");
    assert!(error.reason().contains(words), "{error} lacks {words:?}");
}

#[track_caller]
fn accepted(make: impl FnOnce(&mut BtfBuilder)) -> Btf {
    parse(&build(make)).expect("sound BTF")
}

const EINVAL: Errno = Errno::EINVAL;

/// `info` with a kind flag.
const fn flagged(kind: Kind, vlen: u32) -> u32 {
    vlen | (kind as u32) << 24 | 1 << 31
}

fn header(change: impl FnOnce(&mut Vec<u8>)) -> Error {
    let mut blob = build(|b| {
        b.int("int", 4);
    });
    change(&mut blob);
    parse(&blob).expect_err("a bad header")
}

fn put(blob: &mut [u8], at: usize, value: u32) {
    blob[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

#[test]
fn headers() {
    let rows: Vec<(&str, Errno, Error)> = vec![
        ("end before hdr_len", EINVAL, header(|b| b.truncate(7))),
        ("hdr_len 4096", EINVAL, header(|b| put(b, 4, 4096))),
        ("magic", EINVAL, header(|b| b[0] = 0)),
        ("version 2", Errno::ENOTSUPP, header(|b| b[2] = 2)),
        ("flags 0x1", Errno::ENOTSUPP, header(|b| b[3] = 1)),
        ("nothing follows", EINVAL, header(|b| b.truncate(24))),
        ("beyond", EINVAL, header(|b| put(b, 16, 4096))),
        ("no section", EINVAL, header(|b| put(b, 8, 4))),
        ("inside the one before", EINVAL, header(|b| put(b, 16, 4))),
        ("exceeds", EINVAL, header(|b| put(b, 20, 4096))),
        ("belong to none", EINVAL, header(|b| b.push(0))),
        (
            "does not end with NUL",
            EINVAL,
            header(|b| *b.last_mut().unwrap() = b'x'),
        ),
        ("does not start with", EINVAL, header(|b| b[40] = b'x')),
        (
            "byte 24",
            Errno::E2BIG,
            header(|b| {
                b.splice(24..24, [1, 0, 0, 0]);
                put(b, 4, 28);
            }),
        ),
        (
            "exceeds",
            Errno::E2BIG,
            header(|b| b.resize(MAX_BYTES + 1, 0)),
        ),
        (
            "does not come last",
            EINVAL,
            header(|b| {
                // The strings first, then the types.
                let strings = b.split_off(40);
                b.splice(24..24, strings);
                put(b, 8, 5);
                put(b, 16, 0);
            }),
        ),
    ];
    for (words, errno, error) in rows {
        assert_eq!(error.errno(), errno, "{error}");
        assert!(error.reason().contains(words), "{error} lacks {words:?}");
    }
    // A longer header with zeros is one of a newer compiler.
    let mut blob = build(|b| {
        b.int("int", 4);
    });
    blob.splice(24..24, [0; 8]);
    put(&mut blob, 4, 32);
    assert_eq!(parse(&blob).unwrap().name(1), b"int");
    refused(EINVAL, "no types", |_| {});
}

#[test]
fn heads_and_names() {
    refused(EINVAL, "kind 20", |b| {
        b.raw(0, 20 << 24, 0, &[]);
    });
    refused(EINVAL, "kind 0", |b| {
        b.raw(0, 0, 0, &[]);
    });
    refused(EINVAL, "unknown bits", |b| {
        b.raw(0, 1 << 16 | 2 << 24, 0, &[]);
    });
    refused(EINVAL, "name_off 99", |b| {
        b.raw(99, 1 << 24, 4, &[32]);
    });
    refused(EINVAL, "of the 12 of its head", |b| {
        b.raw(0, 2 << 24, 0, &[0]);
    });
    refused(EINVAL, "of the 24 after its head", |b| {
        b.raw(0, 2 | 4 << 24, 4, &[0; 5]);
    });
    for name in ["", "9a", "a b", "-"] {
        refused(EINVAL, "not an identifier", |b| {
            b.named(Kind::Typedef, name, 0);
        });
    }
    for (len, good) in [(512, true), (513, false)] {
        let blob = build(|b| {
            b.named(Kind::Typedef, &"a".repeat(len), 0);
        });
        assert_eq!(parse(&blob).is_ok(), good);
    }
    // The kernel's letters are those of ISO 8859-1.
    for (byte, good) in [(0xc0, true), (0xd7, false), (0xf7, false), (0xb5, false)] {
        let blob = build(|b| {
            let name = b.string(&[b'a', byte]);
            b.raw(name, 8 << 24, 0, &[]);
        });
        assert_eq!(parse(&blob).is_ok(), good, "{byte:#x}");
    }
}

#[test]
fn integers_and_floats() {
    let int = |word: u32, size: u32| {
        move |b: &mut BtfBuilder| {
            b.add(Kind::Int, "i", 0, size, &[word]);
        }
    };
    refused(EINVAL, "unknown bits", int(1 << 28 | 32, 4));
    refused(EINVAL, "exceed 128", int(129, 32));
    refused(EINVAL, "exceed 128", int(64 | 65 << 16, 32));
    refused(EINVAL, "exceed its size 4", int(33, 4));
    refused(Errno::ENOTSUPP, "encoding 3", int(3 << 24 | 32, 4));
    for encoding in [0, 1, 2, 4] {
        accepted(int(encoding << 24 | 32, 4));
    }
    refused(EINVAL, "vlen 1", |b| {
        b.add(Kind::Int, "i", 1, 4, &[32]);
    });
    refused(EINVAL, "kind_flag", |b| {
        b.raw(0, flagged(Kind::Int, 0), 4, &[32]);
    });
    for (size, good) in [
        (2, true),
        (4, true),
        (12, true),
        (16, true),
        (1, false),
        (32, false),
    ] {
        let blob = build(|b| {
            b.add(Kind::Float, "f", 0, size, &[]);
        });
        assert_eq!(parse(&blob).is_ok(), good, "{size}");
    }
}

#[test]
fn references() {
    refused(EINVAL, "type 1048576", |b| {
        b.reference(Kind::Ptr, 0x10_0000);
    });
    refused(EINVAL, "type 7 of 1", |b| {
        b.reference(Kind::Ptr, 7);
    });
    refused(EINVAL, "has a name", |b| {
        b.named(Kind::Const, "x", 0);
    });
    refused(EINVAL, "value is empty", |b| {
        b.named(Kind::TypeTag, "", 0);
    });
    refused(EINVAL, "a VAR", |b| {
        let int = b.int("int", 4);
        let var = b.var("v", int);
        b.reference(Kind::Ptr, var);
    });
    refused(Errno::EEXIST, "part of a loop", |b| {
        b.reference(Kind::Const, 2);
        b.reference(Kind::Volatile, 1);
    });
    refused(Errno::EEXIST, "part of a loop", |b| {
        b.reference(Kind::Ptr, 1);
    });
    refused(Errno::E2BIG, "more than 32 steps", |b| {
        for id in 1..=33 {
            b.reference(Kind::Ptr, id + 1);
        }
        b.int("int", 4);
    });
    accepted(|b| {
        for id in 1..=32 {
            b.reference(Kind::Ptr, id + 1);
        }
        b.int("int", 4);
    });
    // A chain that is resolved in two parts, so that no search is too deep.
    refused(Errno::ELOOP, "more than 32 modifiers", |b| {
        let int = b.int("int", 4);
        let name = b.string(b"x");
        let (first, middle, last) = (3, 23, 42);
        b.add(Kind::FuncProto, "", 2, 0, &[name, middle, name, first]);
        for id in first..=last {
            b.reference(Kind::Const, if id == last { int } else { id + 1 });
        }
    });
    refused(EINVAL, "comes after another modifier", |b| {
        let int = b.int("int", 4);
        let tag = b.named(Kind::TypeTag, "user", int);
        b.reference(Kind::Const, tag);
    });
    accepted(|b| {
        let int = b.int("int", 4);
        let constant = b.reference(Kind::Const, int);
        let tag = b.named(Kind::TypeTag, "user", constant);
        b.reference(Kind::Ptr, tag);
    });
}

#[test]
fn arrays() {
    let array = |element: u32, index: u32, len: u32| {
        move |b: &mut BtfBuilder| {
            b.int("int", 4);
            b.add(Kind::Int, "bits", 0, 4, &[7]);
            b.named(Kind::Fwd, "f", 0);
            b.array(element, index, len);
        }
    };
    let btf = accepted(array(1, 1, 10));
    assert_eq!(btf.type_id_size(4), Some((4, 40)));
    refused(EINVAL, "element type is 0", array(0, 1, 1));
    refused(EINVAL, "index type is 0", array(1, 0, 1));
    refused(EINVAL, "a FWD", array(3, 1, 1));
    refused(EINVAL, "not an integer", array(1, 2, 1));
    refused(EINVAL, "a bit field", array(2, 1, 1));
    refused(EINVAL, "exceed 4 GiB", array(1, 1, 0x4000_0000));
    accepted(array(1, 1, 0x3fff_ffff));
    refused(Errno::EEXIST, "loop", array(4, 1, 1));
    refused(EINVAL, "size 1 is not 0", |b| {
        b.int("int", 4);
        b.add(Kind::Array, "", 0, 1, &[1, 1, 1]);
    });
}

#[test]
fn structs() {
    let one = |size: u32, offset_bits: u32, type_id: u32| {
        move |b: &mut BtfBuilder| {
            b.int("int", 4);
            b.reference(Kind::Ptr, 0);
            b.add(Kind::Float, "f", 0, 8, &[]);
            b.add(Kind::Enum, "", 0, 4, &[]);
            b.array(1, 1, 2);
            let name = b.string(b"m");
            b.raw(0, 1 | 4 << 24, size, &[name, type_id, offset_bits]);
        }
    };
    for (type_id, bytes) in [(1, 4), (2, 8), (3, 8), (4, 4), (5, 8)] {
        accepted(one(8 + bytes, 64, type_id));
        refused(EINVAL, "exceed", one(7 + bytes, 64, type_id));
    }
    for type_id in [2, 4, 5] {
        refused(EINVAL, "multiple of 8", one(32, 1, type_id));
    }
    refused(EINVAL, "not aligned to 8", one(32, 32, 3));
    refused(EINVAL, "lies outside the struct's 4", one(4, 40, 1));
    refused(EINVAL, "type 0 is not from 1", one(4, 0, 0));
    refused(EINVAL, "type 9 of 6", one(4, 0, 9));
    refused(Errno::EEXIST, "loop", one(4, 0, 6));
    refused(EINVAL, "before the last", |b| {
        let int = b.int("int", 4);
        b.structure("s", 8, &[("a", int, 4), ("b", int, 0)]);
    });
    refused(EINVAL, "in a union", |b| {
        let int = b.int("int", 4);
        b.add(Kind::Union, "u", 1, 8, &[0, int, 32]);
    });
    refused(EINVAL, "a FWD", |b| {
        b.named(Kind::Fwd, "f", 0);
        b.structure("s", 8, &[("a", 1, 0)]);
    });
    refused(EINVAL, "more than 16 bytes", |b| {
        b.add(Kind::Int, "i", 0, 16, &[128]);
        b.raw(0, 1 | 4 << 24, 32, &[0, 1, 1]);
    });
    // A struct may hold a pointer to itself.
    let btf = accepted(|b| {
        b.reference(Kind::Ptr, 2);
        b.structure("list", 8, &[("next", 1, 0)]);
    });
    assert_eq!(btf.find(b"list", Kind::Struct), Some(2));
    assert_eq!(btf.members(2).next().unwrap().name, b"next");
}

#[test]
fn bit_fields() {
    let field = |type_id: u32, bits: u32, offset: u32, size: u32| {
        move |b: &mut BtfBuilder| {
            b.int("int", 4);
            b.add(Kind::Enum, "", 0, 4, &[]);
            b.reference(Kind::Ptr, 0);
            b.add(Kind::Int, "bits", 0, 4, &[7]);
            b.reference(Kind::Const, 1);
            b.raw(
                0,
                flagged(Kind::Struct, 1),
                size,
                &[0, type_id, offset | bits << 24],
            );
        }
    };
    for type_id in [1, 2, 5] {
        accepted(field(type_id, 3, 5, 1));
        accepted(field(type_id, 0, 8, 5));
        refused(EINVAL, "exceed", field(type_id, 3, 6, 1));
        refused(EINVAL, "exceed", field(type_id, 33, 0, 8));
        refused(EINVAL, "multiple of 8", field(type_id, 0, 1, 8));
    }
    refused(EINVAL, "PTR cannot be a bit field", field(3, 3, 0, 8));
    refused(EINVAL, "one itself", field(4, 3, 0, 8));
    let btf = accepted(field(1, 3, 5, 1));
    let member = btf.members(6).next().unwrap();
    assert_eq!((member.bit_offset, member.bitfield_size), (5, 3));
}

#[test]
fn enums_functions_and_tags() {
    for kind in [Kind::Enum, Kind::Enum64] {
        refused(EINVAL, "size 3", move |b| {
            b.add(kind, "e", 0, 3, &[]);
        });
        let words = if kind == Kind::Enum { 2 } else { 3 };
        refused(EINVAL, "value 0: its name", move |b| {
            b.add(kind, "e", 1, 4, &vec![0; words]);
        });
        refused(EINVAL, "value 0: name_off", move |b| {
            b.add(kind, "e", 1, 4, &vec![99; words]);
        });
    }
    refused(EINVAL, "type 1 is not 0", |b| {
        b.named(Kind::Fwd, "f", 1);
    });
    let func = |linkage: u16, proto: u32, argument: &'static str| {
        move |b: &mut BtfBuilder| {
            let int = b.int("int", 4);
            let name = b.string(argument.as_bytes());
            b.add(Kind::FuncProto, "", 1, 0, &[name, int]);
            b.add(Kind::Func, "f", linkage, proto, &[]);
        }
    };
    accepted(func(1, 2, "x"));
    refused(EINVAL, "linkage 2", func(2, 2, "x"));
    refused(EINVAL, "not a FUNC_PROTO", func(0, 1, "x"));
    refused(EINVAL, "argument 1 has no name", func(0, 2, ""));
    refused(EINVAL, "argument 1: its name", func(0, 2, "9"));
    let proto = |result: u32, name: u32, argument: u32| {
        move |b: &mut BtfBuilder| {
            b.named(Kind::Fwd, "f", 0);
            b.add(Kind::FuncProto, "", 1, result, &[name, argument]);
        }
    };
    accepted(proto(0, 0, 0));
    refused(
        EINVAL,
        "return value is of type 1, which has no size",
        proto(1, 0, 0),
    );
    refused(EINVAL, "return value is of type 9", proto(9, 0, 0));
    refused(EINVAL, "argument 1 has a name and no type", proto(0, 1, 0));
    refused(EINVAL, "argument 1 is of type 1", proto(0, 1, 1));
    let tag = |target: u32, component: i32| {
        move |b: &mut BtfBuilder| {
            let int = b.int("int", 4);
            b.structure("s", 4, &[("a", int, 0)]);
            b.var("v", int);
            b.decl_tag("t", target, component);
        }
    };
    accepted(tag(2, -1));
    accepted(tag(2, 0));
    accepted(tag(3, -1));
    refused(EINVAL, "component_idx 1", tag(2, 1));
    refused(EINVAL, "component_idx 0", tag(3, 0));
    refused(EINVAL, "component_idx -2", tag(2, -2));
    refused(EINVAL, "it tags type 1, INT", tag(1, -1));
}

#[test]
fn variables_and_sections() {
    refused(EINVAL, "linkage 2", |b| {
        let int = b.int("int", 4);
        b.add(Kind::Var, "v", 0, int, &[2]);
    });
    refused(EINVAL, "type is 0", |b| {
        b.var("v", 0);
    });
    refused(EINVAL, "has no size", |b| {
        b.named(Kind::Fwd, "f", 0);
        b.var("v", 1);
    });
    let section = |size: u32, vars: &'static [(u32, u32, u32)]| {
        move |b: &mut BtfBuilder| {
            let int = b.int("int", 4);
            b.var("v", int);
            b.section(".bss", size, vars);
        }
    };
    let btf = accepted(section(8, &[(2, 0, 4), (2, 4, 4)]));
    assert_eq!(btf.type_id_size(3), Some((3, 8)));
    assert_eq!(btf.section(3).len(), 2);
    refused(EINVAL, "size is 0", section(0, &[]));
    refused(EINVAL, "offset 2", section(8, &[(2, 0, 4), (2, 2, 4)]));
    refused(EINVAL, "offset 8", section(8, &[(2, 8, 4)]));
    refused(EINVAL, "size 0", section(8, &[(2, 0, 0)]));
    refused(EINVAL, "ends at 9", section(8, &[(2, 5, 4)]));
    refused(EINVAL, "not a VAR", section(8, &[(1, 0, 4)]));
    refused(EINVAL, "less than its type's 4", section(8, &[(2, 0, 2)]));
    refused(EINVAL, "printable", |b| {
        b.section("\u{7}", 4, &[]);
    });
}

/// Ids: 1 int, 2 bpf_spin_lock, 3 bpf_timer, then what the caller adds.
fn value(size: u32, members: &[(&str, u32, u32)]) -> Btf {
    accepted(|b| {
        b.int("int", 4);
        b.structure("bpf_spin_lock", 4, &[("val", 1, 0)]);
        b.structure("bpf_timer", 16, &[]);
        b.structure("nested", 24, &[("x", 1, 0), ("timer", 3, 8)]);
        b.array(4, 1, 2);
        b.structure("value", size, members);
    })
}

fn fields(btf: &Btf, size: u32) -> Result<Vec<(FieldKind, u32)>> {
    let record = btf.parse_fields(6, size, FieldKinds::MAP_VALUE, &Toy)?;
    Ok(record.map_or(Vec::new(), |record| {
        record
            .fields()
            .iter()
            .map(|field| (field.kind, field.offset))
            .collect()
    }))
}

#[test]
fn fields_are_found() {
    let btf = value(
        40,
        &[("a", 1, 0), ("lock", 2, 4), ("t", 3, 8), ("b", 1, 24)],
    );
    let found = [(FieldKind::SpinLock, 4), (FieldKind::Timer, 8)];
    assert_eq!(fields(&btf, 40).unwrap(), found);
    // In a nested struct; and not in an array, where two timers would be.
    let btf = value(40, &[("n", 4, 8)]);
    assert_eq!(fields(&btf, 40).unwrap(), [(FieldKind::Timer, 16)]);
    let btf = value(64, &[("n", 5, 8)]);
    assert_eq!(fields(&btf, 64).unwrap_err().errno(), EINVAL);
    // A second one in the same struct.
    let btf = value(40, &[("a", 3, 0), ("b", 3, 16)]);
    assert_eq!(fields(&btf, 40).unwrap_err().errno(), Errno::E2BIG);
    // Not aligned: none. Two structs at one place: overlap.
    let btf = value(40, &[("t", 3, 4)]);
    assert_eq!(fields(&btf, 40).unwrap(), []);
    let btf = value(40, &[("a", 3, 0), ("n", 4, 0)]);
    assert_eq!(fields(&btf, 40).unwrap_err().errno(), Errno::EEXIST);
    let btf = value(40, &[("t", 3, 24)]);
    assert_eq!(fields(&btf, 32).unwrap_err().errno(), Errno::EFAULT);
    assert_eq!(
        btf.parse_fields(1, 4, FieldKinds::all(), &Toy)
            .unwrap_err()
            .errno(),
        EINVAL
    );
    // Only what is asked for.
    let none = btf.parse_fields(6, 40, FieldKinds::SPIN_LOCK, &Toy);
    assert_eq!(none.unwrap(), None);
}

#[test]
fn records_blank_and_keep() {
    let btf = value(40, &[("lock", 2, 4), ("t", 3, 8)]);
    let record = btf
        .parse_fields(6, 40, FieldKinds::MAP_VALUE, &Toy)
        .unwrap()
        .unwrap();
    assert!(record.has(FieldKind::Timer) && !record.has(FieldKind::Uptr));
    assert_eq!(record.offset(FieldKind::SpinLock), Some(4));
    let mut value = [0xff; 40];
    record.zero(&mut value);
    for (at, byte) in value.iter().enumerate() {
        assert_eq!(*byte == 0, (4..24).contains(&at), "byte {at}");
    }
    let mut kept = [7; 40];
    record.copy_around(&mut kept, &[9; 40]);
    for (at, byte) in kept.iter().enumerate() {
        assert_eq!(*byte == 7, (4..24).contains(&at), "byte {at}");
    }
    // Shorter values are no reason to panic.
    record.zero(&mut [1; 6]);
    record.copy_around(&mut [1; 6], &[2; 9]);
    let same = btf.parse_fields(6, 40, FieldKinds::MAP_VALUE, &Toy);
    assert_eq!(same.unwrap(), Some(record));
}

/// A value with one pointer, tagged so, to a struct of this name and size.
fn pointer(tag: &str, to: &str, size: u32) -> Result<Btf> {
    parse(&build(|b| {
        let to = b.structure(to, size, &[]);
        let tag = b.named(Kind::TypeTag, tag, to);
        let pointer = b.reference(Kind::Ptr, tag);
        b.structure("value", 8, &[("p", pointer, 0)]);
    }))
}

#[test]
fn pointers() {
    let kptr = |tag, to| -> Result<Field> {
        let btf = pointer(tag, to, 8)?;
        let record = btf
            .parse_fields(4, 8, FieldKinds::MAP_VALUE, &Toy)?
            .unwrap();
        Ok(record.fields()[0].clone())
    };
    let field = kptr("kptr", "task_struct").unwrap();
    assert_eq!(field.kind, FieldKind::KptrRef);
    assert_eq!(field.target, FieldTarget::Kernel((*b"task_struct").into()));
    assert_eq!(kptr("kptr", "file").unwrap_err().errno(), Errno::ENOENT);
    let field = kptr("kptr_untrusted", "file").unwrap();
    assert_eq!(field.kind, FieldKind::KptrUnref);
    let field = kptr("percpu_kptr", "mine").unwrap();
    assert!(matches!(
        field.target,
        FieldTarget::Program { type_id: 1, .. }
    ));
    // What is not known is refused where the value is used, not where it is loaded.
    assert_eq!(kptr("user", "file").unwrap_err().errno(), EINVAL);
    assert!(pointer("user", "file", 8).is_ok());
    // The same struct of two programs is not the same type.
    assert_ne!(kptr("kptr", "mine").unwrap(), kptr("kptr", "mine").unwrap());
    assert_eq!(kptr("kptr", "task_struct"), kptr("kptr", "task_struct"));
}

/// An owner of `foo`s with this tag and these further members; ids: 1 root, 2 node, 3 lock,
/// 4 foo, 5 owner.
fn owner(tag: &str, lock: bool, foo: &[(&str, u32, u32)]) -> Result<Btf> {
    parse(&build(|b| {
        b.structure("bpf_list_head", 16, &[]);
        b.structure("bpf_list_node", 24, &[]);
        b.structure("bpf_spin_lock", 4, &[]);
        b.structure("foo", 64, foo);
        let mut members = vec![("root", 1, 0)];
        if lock {
            members.push(("lock", 3, 16));
        }
        b.structure("owner", 24, &members);
        b.decl_tag(tag, 5, 0);
    }))
}

#[test]
fn lists() {
    let node: &[(&str, u32, u32)] = &[("node", 2, 8)];
    let btf = owner("contains:foo:node", true, node).unwrap();
    let record = btf.struct_record(5).unwrap();
    assert!(matches!(
        record.fields()[0].target,
        FieldTarget::Nodes {
            type_id: 4,
            node_offset: 8,
            ..
        }
    ));
    let errno = |tag, lock, foo| owner(tag, lock, foo).unwrap_err().errno();
    assert_eq!(errno("contains:foo:node", false, node), EINVAL);
    assert_eq!(errno("other", true, node), EINVAL);
    assert_eq!(errno("contains:foo", true, node), EINVAL);
    assert_eq!(errno("contains:foo:", true, node), EINVAL);
    assert_eq!(errno("contains:bar:node", true, node), Errno::ENOENT);
    assert_eq!(errno("contains:foo:n", true, node), Errno::ENOENT);
    assert_eq!(errno("contains:foo:node", true, &[("node", 3, 8)]), EINVAL);
    assert_eq!(
        errno(
            "contains:foo:node",
            true,
            &[("node", 2, 0), ("node", 2, 32)]
        ),
        EINVAL
    );
    // A special member that is not aligned is none, and then the struct has none.
    let misplaced: &[(&str, u32, u32)] = &[("node", 2, 4)];
    assert_eq!(errno("contains:foo:node", true, misplaced), Errno::EFAULT);
}

#[test]
fn owners_do_not_own_each_other() {
    let error = parse(&build(|b| {
        b.structure("bpf_list_head", 16, &[]);
        b.structure("bpf_list_node", 24, &[]);
        b.structure("bpf_spin_lock", 4, &[]);
        let members = [("node", 2, 0), ("root", 1, 24), ("lock", 3, 40)];
        b.structure("foo", 48, &members);
        b.decl_tag("contains:foo:node", 4, 1);
    }))
    .unwrap_err();
    assert_eq!(error.errno(), Errno::ELOOP, "{error}");
}

fn spec(map_type: MapType, key_size: u32, value_size: u32) -> MapBtfSpec {
    MapBtfSpec {
        map_type,
        key_size,
        value_size,
        max_entries: 1,
        flags: MapFlags::empty(),
        check: MapTypeCheck::of(map_type),
        bpf_capable: true,
    }
}

#[test]
fn maps() {
    let btf = value(40, &[("lock", 2, 4)]);
    let check = |key, value, spec: &MapBtfSpec| {
        check_map_btf(&btf, key, value, spec, &Toy)
            .map(|record| record.is_some())
            .map_err(|error| error.errno())
    };
    let hash = spec(MapType::HASH, 4, 40);
    assert_eq!(check(1, 6, &hash), Ok(true));
    assert_eq!(check(0, 6, &hash), Err(EINVAL));
    assert_eq!(check(9, 6, &hash), Err(EINVAL));
    assert_eq!(check(1, 5, &hash), Err(EINVAL));
    assert_eq!(check(3, 6, &hash), Err(EINVAL));
    let unable = MapBtfSpec {
        bpf_capable: false,
        ..hash
    };
    assert_eq!(check(1, 6, &unable), Err(Errno::EPERM));
    for flags in [MapFlags::RDONLY_PROG, MapFlags::WRONLY_PROG] {
        assert_eq!(
            check(1, 6, &MapBtfSpec { flags, ..hash }),
            Err(Errno::EACCES)
        );
    }
    let lru = spec(MapType::LRU_HASH, 4, 40);
    assert_eq!(check(1, 6, &lru), Err(Errno::EOPNOTSUPP));
    let array = spec(MapType::ARRAY, 4, 40);
    assert_eq!(check(1, 6, &array), Ok(true));
    assert_eq!(check(2, 6, &array), Err(EINVAL));
    assert_eq!(check(0, 6, &array), Err(EINVAL));
    assert_eq!(check(1, 1, &spec(MapType::LPM_TRIE, 4, 4)), Err(EINVAL));
    assert_eq!(check(2, 1, &spec(MapType::LPM_TRIE, 4, 4)), Ok(false));
    assert_eq!(check(0, 1, &spec(MapType::BLOOM_FILTER, 0, 4)), Ok(false));
    assert_eq!(check(1, 1, &spec(MapType::BLOOM_FILTER, 4, 4)), Err(EINVAL));
    assert_eq!(
        check(1, 1, &spec(MapType::XSKMAP, 4, 4)),
        Err(Errno::ENOTSUPP)
    );
    // An offloaded map takes no BTF at all.
    let offloaded = MapBtfSpec {
        check: MapTypeCheck::Refuse,
        ..hash
    };
    let plain = MapBtfSpec {
        value_size: 4,
        ..offloaded
    };
    assert_eq!(check(1, 1, &plain), Err(Errno::ENOTSUPP));
    // A value whose fields are not sound has none, and is no reason to refuse the map.
    let twice = value(40, &[("a", 3, 0), ("b", 3, 16)]);
    assert_eq!(check_map_btf(&twice, 1, 6, &hash, &Toy), Ok(None));
}

#[test]
fn array_keys_are_32_bits() {
    let btf = accepted(|b| {
        for bits in [32, 31, 16 | 16 << 16] {
            b.add(Kind::Int, "key", 0, 4, &[bits]);
        }
        b.add(Kind::Enum, "key", 0, 4, &[]);
    });
    for map_type in [MapType::ARRAY, MapType::PERCPU_ARRAY, MapType::SK_STORAGE] {
        let spec = spec(map_type, 4, 4);
        for key in 1..=4 {
            let errno = check_map_btf(&btf, key, 1, &spec, &Toy).map_err(|e| e.errno());
            assert_eq!(
                errno.err(),
                (key != 1).then_some(EINVAL),
                "{map_type} {key}"
            );
        }
    }
}

#[test]
fn a_section_is_an_array_of_one() {
    let btf = accepted(|b| {
        let int = b.int("int", 4);
        let var = b.var("v", int);
        b.section(".bss", 4, &[(var, 0, 4)]);
    });
    let one = spec(MapType::ARRAY, 4, 4);
    assert_eq!(check_map_btf(&btf, 0, 3, &one, &Toy), Ok(None));
    let two = MapBtfSpec {
        max_entries: 2,
        ..one
    };
    let error = check_map_btf(&btf, 0, 3, &two, &Toy).unwrap_err();
    assert!(error.reason().contains("2 entries"), "{error}");
}

#[test]
fn user_pointers_are_of_a_page_of_the_program() {
    let storage = MapBtfSpec {
        max_entries: 0,
        ..spec(MapType::TASK_STORAGE, 4, 8)
    };
    for (to, size, errno) in [
        ("mine", 4096, None),
        ("mine", 4097, Some(Errno::E2BIG)),
        ("mine", 0, Some(EINVAL)),
        ("file", 8, Some(EINVAL)),
    ] {
        let btf = parse(&build(|b| {
            let to = b.structure(to, size, &[]);
            let tag = b.named(Kind::TypeTag, "uptr", to);
            let pointer = b.reference(Kind::Ptr, tag);
            b.structure("value", 8, &[("p", pointer, 0)]);
            b.int("int", 4);
        }))
        .unwrap();
        let found = check_map_btf(&btf, 5, 4, &storage, &Toy);
        assert_eq!(
            found.err().map(|e| e.errno()),
            errno,
            "{to} of {size} bytes"
        );
        let array = spec(MapType::ARRAY, 4, 8);
        let error = check_map_btf(&btf, 5, 4, &array, &Toy).unwrap_err();
        assert_eq!(error.errno(), Errno::EOPNOTSUPP);
    }
}

/// Thirty structs of two each of the one before: a billion visits, for who counts them all.
#[test]
fn nesting_takes_no_exponential_time() {
    let btf = accepted(|b| {
        b.structure("s", 0, &[]);
        for id in 1..30 {
            b.structure("s", 0, &[("a", id, 0), ("b", id, 0)]);
        }
    });
    let found = btf.parse_fields(30, 0, FieldKinds::MAP_VALUE, &Toy);
    assert_eq!(found.unwrap(), None);
}

/// The kernel takes more types than it can number and forgets the rest.
#[test]
fn types_without_a_number_are_not_there() {
    let btf = accepted(|b| {
        for _ in 0..0x10_0010 {
            b.reference(Kind::Const, 0);
        }
    });
    assert_eq!(btf.type_count(), 0xf_ffff);
}
