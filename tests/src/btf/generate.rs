//! Blobs from a seed.

use offmap_bpf::btf::{BtfBuilder, FieldKind, Kind};
use rand::{Rng, RngExt};

/// Names that mean nothing, some of them wrong in one place or another.
const NAMES: [&str; 12] = [
    "a", "b", "foo", "node", "_x", ".s", "x9", "9a", "a b", "-", "Ünit", "\u{7}",
];
/// Structs that pointers go to: the kernel's with and without destructor, and none of its.
const POINTEES: [&str; 7] = [
    "task_struct",
    "cgroup",
    "bpf_cpumask",
    "file",
    "prog_test_member",
    "mine",
    "foo",
];
const TAGS: [&str; 8] = [
    "kptr",
    "kptr_untrusted",
    "percpu_kptr",
    "uptr",
    "user",
    "kptr_ref",
    "contains:foo:node",
    "",
];
const CONTAINS: [&str; 8] = [
    "contains:foo:node",
    "contains:foo:n2",
    "contains:foo",
    "contains:foo:",
    "contains:none:node",
    "contains::node",
    "contains:foo:(anon)",
    "other",
];
const SECTIONS: [&str; 4] = [".bss", ".data.x", "sec tion", "\u{1}"];

/// A type that has been added.
#[derive(Clone, Copy)]
struct Made {
    id: u32,
    kind: Kind,
    /// Bytes, of those that may be members.
    size: Option<u32>,
    align: u32,
}

struct Generator<'a, R> {
    rng: &'a mut R,
    builder: BtfBuilder,
    made: Vec<Made>,
    /// One in so many choices is a wrong one; never, if 0.
    wrong: u32,
}

/// A blob of a few types, sound but for about one choice in a hundred. Half of all blobs are
/// made of nothing but sound choices.
pub fn generate<R: Rng>(rng: &mut R) -> Vec<u8> {
    let wrong = if rng.random() {
        0
    } else {
        rng.random_range(20..200)
    };
    let count = rng.random_range(1..24);
    let mut generator = Generator {
        rng,
        builder: BtfBuilder::new(),
        made: Vec::new(),
        wrong,
    };
    if generator.one_in(3) {
        generator.owner();
    }
    for _ in 0..count {
        generator.add();
    }
    generator.builder.finish()
}

impl<R: Rng> Generator<'_, R> {
    fn one_in(&mut self, n: u32) -> bool {
        self.rng.random_range(0..n) == 0
    }

    fn slips(&mut self) -> bool {
        self.wrong != 0 && self.rng.random_range(0..self.wrong) == 0
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.rng.random_range(0..from.len())]
    }

    /// A name that is an identifier, mostly.
    fn name(&mut self) -> &'static str {
        let valid = if self.slips() { NAMES.len() } else { 7 };
        NAMES[self.rng.random_range(0..valid)]
    }

    fn id(&mut self) -> u32 {
        if self.slips() {
            return self.pick(&[
                0,
                1,
                self.builder.last_id() + 1,
                40,
                0xf_ffff,
                0x10_0000,
                u32::MAX,
            ]);
        }
        self.rng.random_range(1..=self.builder.last_id().max(1))
    }

    fn made(&mut self, kind: Kind, id: u32, size: Option<u32>, align: u32) -> u32 {
        self.made.push(Made {
            id,
            kind,
            size,
            align,
        });
        id
    }

    /// Something that can be a member.
    fn sized(&mut self) -> Made {
        for _ in 0..8 {
            let Some(&made) = self
                .made
                .get(self.rng.random_range(0..self.made.len().max(1)))
            else {
                break;
            };
            if made.size.is_some_and(|size| size <= 4096) {
                return made;
            }
        }
        self.integer()
    }

    fn integer(&mut self) -> Made {
        let size = self.pick(&[1, 2, 4, 4, 8, 16]);
        let id = self.builder.int("int", size);
        self.made(Kind::Int, id, Some(size), size.min(8));
        Made {
            id,
            kind: Kind::Int,
            size: Some(size),
            align: size.min(8),
        }
    }

    fn add(&mut self) {
        match self.rng.random_range(0..28) {
            0 | 1 => self.int(),
            2 | 3 => self.modifier(),
            4 => self.pointer(),
            5 | 6 => self.tagged_pointer(),
            7..=9 => self.array(),
            10..=14 => self.structure(Kind::Struct),
            15 => self.structure(Kind::Union),
            16 => self.enumeration(),
            17 => self.fwd(),
            18 => self.function(),
            19 => self.prototype(),
            20 => self.var(),
            21 => self.section(),
            22 => self.float(),
            23 => self.decl_tag(),
            _ => self.special(),
        }
    }

    fn int(&mut self) {
        if !self.one_in(4) {
            self.integer();
            return;
        }
        // A bit field of its own, or one that cannot be.
        let size = self.pick(&[1, 2, 4, 8, 16]);
        let (bits, offset) = if self.slips() {
            (self.rng.random_range(0..256), self.rng.random_range(0..256))
        } else {
            let bits = self.rng.random_range(1..=size * 8);
            (bits, self.rng.random_range(0..=size * 8 - bits))
        };
        let encoding = if self.slips() {
            self.rng.random_range(0..16)
        } else {
            self.pick(&[0, 1, 2, 4])
        };
        let id = self.builder.add(
            Kind::Int,
            "bits",
            0,
            size,
            &[bits | offset << 16 | encoding << 24],
        );
        self.made(Kind::Int, id, Some(size), size.min(8));
    }

    fn modifier(&mut self) {
        let kind = self.pick(&[
            Kind::Typedef,
            Kind::Typedef,
            Kind::Volatile,
            Kind::Const,
            Kind::Restrict,
            Kind::TypeTag,
        ]);
        let to = if self.one_in(8) {
            self.id()
        } else {
            self.sized().id
        };
        let of = self.made.iter().find(|made| made.id == to).copied();
        // Tags come before other modifiers.
        let kind = match of.map(|made| made.kind) {
            Some(Kind::TypeTag) if kind != Kind::TypeTag && !self.slips() => Kind::TypeTag,
            _ => kind,
        };
        let id = match kind {
            Kind::Typedef => {
                let name = self.name();
                self.builder.named(kind, name, to)
            }
            Kind::TypeTag => {
                let tag = self.pick(&TAGS[..5]);
                self.builder.named(kind, tag, to)
            }
            _ => self.builder.reference(kind, to),
        };
        self.made(
            kind,
            id,
            of.and_then(|made| made.size),
            of.map_or(1, |made| made.align),
        );
    }

    fn pointer(&mut self) {
        let to = if self.one_in(3) { 0 } else { self.id() };
        let id = self.builder.reference(Kind::Ptr, to);
        self.made(Kind::Ptr, id, Some(8), 8);
    }

    fn tagged_pointer(&mut self) {
        let to = if self.one_in(4) {
            self.id()
        } else {
            let name = self.pick(&POINTEES);
            let size = self.pick(&[8, 8, 16, 0, 4096, 4104]);
            self.builder.structure(name, size, &[])
        };
        let to = if self.one_in(5) {
            self.builder.reference(Kind::Const, to)
        } else {
            to
        };
        let count = if self.slips() { TAGS.len() } else { 4 };
        let tag = TAGS[self.rng.random_range(0..count)];
        let kflag = u32::from(self.one_in(12)) << 31;
        let name = self.builder.string(tag.as_bytes());
        let mut to = self
            .builder
            .raw(name, (Kind::TypeTag as u32) << 24 | kflag, to, &[]);
        if self.slips() {
            to = self.builder.named(Kind::TypeTag, "kptr", to);
        }
        let mut id = self.builder.reference(Kind::Ptr, to);
        let mut kind = Kind::Ptr;
        if self.one_in(5) {
            kind = self.pick(&[Kind::Volatile, Kind::Const]);
            id = self.builder.reference(kind, id);
        }
        self.made(kind, id, Some(8), 8);
    }

    fn array(&mut self) {
        let of = self.sized();
        let index = match self
            .made
            .iter()
            .find(|made| made.kind == Kind::Int && made.size == Some(4))
        {
            Some(made) => made.id,
            None => self.builder.int("index", 4),
        };
        let len = if self.slips() {
            self.pick(&[0x7fff_ffff, 0x8000_0000, u32::MAX, 0x1000_0000])
        } else {
            self.pick(&[0, 1, 1, 2, 3, 5, 11, 12, 16])
        };
        let element = if self.slips() { self.id() } else { of.id };
        let index = if self.slips() { self.id() } else { index };
        let id = self.builder.array(element, index, len);
        let size = of.size.and_then(|size| size.checked_mul(len));
        self.made(Kind::Array, id, size, of.align);
    }

    /// One of the structs that are special, mostly of the right size.
    fn special(&mut self) {
        let kind = self.pick(&FieldKind::ALL);
        let size = if self.slips() {
            kind.size() + self.pick(&[0, 4, 8])
        } else {
            kind.size()
        };
        let of = if self.slips() {
            Kind::Union
        } else {
            Kind::Struct
        };
        let id = self.builder.add(of, kind.name(), 0, size, &[]);
        self.made(of, id, Some(size), kind.align());
    }

    /// A struct with a node, and one that owns such structs.
    fn owner(&mut self) {
        let (root, node) = if self.rng.random() {
            (FieldKind::ListHead, FieldKind::ListNode)
        } else {
            (FieldKind::RbRoot, FieldKind::RbNode)
        };
        let node_id = self.builder.structure(node.name(), node.size(), &[]);
        let root_id = self.builder.structure(root.name(), root.size(), &[]);
        let lock = self.pick(&[
            FieldKind::SpinLock,
            FieldKind::ResSpinLock,
            FieldKind::SpinLock,
            FieldKind::Timer,
        ]);
        let lock_id = self.builder.structure(lock.name(), lock.size(), &[]);
        self.builder.structure("foo", 40, &[("node", node_id, 0)]);
        let mut members = vec![("root", root_id, 0), ("lock", lock_id, 16)];
        if self.one_in(4) {
            members.push(("node", node_id, 32));
        }
        let (name, size) = (self.pick(&["owner", "foo", "value"]), 64);
        let id = self.builder.structure(name, size, &members);
        let tag = if self.one_in(4) {
            self.pick(&CONTAINS)
        } else {
            CONTAINS[0]
        };
        let component = if self.slips() { -1 } else { 0 };
        self.builder.decl_tag(tag, id, component);
        self.made(Kind::Struct, id, Some(size), 8);
    }

    fn structure(&mut self, kind: Kind) {
        let count = self.rng.random_range(0..5_u32);
        let kflag = self.one_in(4);
        let (mut end, mut align) = (0_u32, 1);
        let mut members = Vec::new();
        let mut size = 0;
        for _ in 0..count {
            let of = self.sized();
            let bytes = of.size.unwrap_or(8);
            let mut offset = match kind {
                Kind::Union => 0_u32,
                // Mostly where a compiler would put it.
                _ if self.slips() => end,
                _ => end.checked_next_multiple_of(of.align.max(1)).unwrap_or(0),
            }
            .wrapping_mul(8);
            let mut bits = 0;
            if kflag && of.kind == Kind::Int && self.one_in(2) {
                bits = self.rng.random_range(1..=bytes.min(31) * 8);
            }
            if self.slips() {
                offset = offset.wrapping_add(self.pick(&[1, 4, 8, 32, u32::MAX, 0x0100_0000]));
            }
            end = (offset / 8).wrapping_add(bytes);
            size = size.max(end);
            align = align.max(of.align);
            let name = if self.one_in(8) { "" } else { self.name() };
            let name = self.builder.string(name.as_bytes());
            let type_id = if self.slips() { self.id() } else { of.id };
            members.extend([
                name,
                type_id,
                if kflag {
                    offset & 0xff_ffff | bits << 24
                } else {
                    offset
                },
            ]);
        }
        size = size.checked_next_multiple_of(align.max(1)).unwrap_or(0);
        if self.slips() {
            size = size.wrapping_sub(self.pick(&[1, 4, 8]));
        }
        let name = if self.one_in(6) { "" } else { self.name() };
        let name = self.builder.string(name.as_bytes());
        let id = self.builder.raw(
            name,
            count | (kind as u32) << 24 | u32::from(kflag) << 31,
            size,
            &members,
        );
        self.made(kind, id, Some(size), align);
    }

    fn enumeration(&mut self) {
        let kind = self.pick(&[Kind::Enum, Kind::Enum64]);
        let count = self.rng.random_range(0..4);
        let size = if self.slips() {
            self.pick(&[0, 3, 16])
        } else {
            self.pick(&[1, 2, 4, 8])
        };
        let mut tail = Vec::new();
        for i in 0..count {
            let name = self.name();
            tail.push(self.builder.string(name.as_bytes()));
            tail.push(i);
            if kind == Kind::Enum64 {
                tail.push(0);
            }
        }
        let kflag = u32::from(self.one_in(3)) << 31;
        let id = self
            .builder
            .raw(0, count | (kind as u32) << 24 | kflag, size, &tail);
        self.made(kind, id, Some(size), size.max(1));
    }

    fn fwd(&mut self) {
        let (name, kflag) = (self.name(), u32::from(self.one_in(2)) << 31);
        let name = self.builder.string(name.as_bytes());
        let word = u32::from(self.slips());
        let id = self
            .builder
            .raw(name, (Kind::Fwd as u32) << 24 | kflag, word, &[]);
        self.made(Kind::Fwd, id, None, 1);
    }

    fn prototype(&mut self) {
        let count = self.rng.random_range(0..4);
        let mut tail = Vec::new();
        for i in 0..count {
            if i + 1 == count && self.one_in(4) {
                tail.extend([0, 0]);
                continue;
            }
            let name = if self.one_in(12) { "" } else { self.name() };
            let name = self.builder.string(name.as_bytes());
            let of = self.sized();
            let type_id = if self.slips() { self.id() } else { of.id };
            tail.extend([name, type_id]);
        }
        let result = if self.one_in(2) { 0 } else { self.sized().id };
        let id = self
            .builder
            .add(Kind::FuncProto, "", count as u16, result, &tail);
        self.made(Kind::FuncProto, id, None, 1);
    }

    fn function(&mut self) {
        let protos: Vec<u32> = self
            .made
            .iter()
            .filter(|made| made.kind == Kind::FuncProto)
            .map(|made| made.id)
            .collect();
        let proto = if protos.is_empty() || self.slips() {
            if self.wrong == 0 {
                return;
            }
            self.id()
        } else {
            self.pick(&protos)
        };
        let linkage = if self.slips() {
            2
        } else {
            self.rng.random_range(0..2)
        };
        let name = self.name();
        let id = self.builder.add(Kind::Func, name, linkage, proto, &[]);
        self.made(Kind::Func, id, None, 1);
    }

    fn var(&mut self) {
        let of = self.sized();
        let type_id = if self.slips() { self.id() } else { of.id };
        let linkage = if self.slips() {
            2
        } else {
            self.rng.random_range(0..2)
        };
        let name = self.name();
        self.builder.add(Kind::Var, name, 0, type_id, &[linkage]);
    }

    fn section(&mut self) {
        let count = self.rng.random_range(0..4);
        let mut vars = Vec::new();
        let mut end = 0_u32;
        for _ in 0..count {
            let of = self.sized();
            let bytes = of.size.unwrap_or(8).max(1);
            let mut var = self.builder.var("v", of.id);
            let offset = end;
            let mut size = bytes;
            if self.slips() {
                size = size.wrapping_add(self.pick(&[1, 8, u32::MAX]));
            }
            if self.slips() {
                var = self.id();
            }
            end = offset
                .wrapping_add(size)
                .checked_next_multiple_of(8)
                .unwrap_or(0);
            vars.push((var, offset, size));
        }
        let size = if self.slips() { end / 2 } else { end.max(8) };
        let named = if self.slips() { SECTIONS.len() } else { 3 };
        let name = SECTIONS[self.rng.random_range(0..named)];
        let id = self.builder.section(name, size, &vars);
        self.made(Kind::Datasec, id, None, 1);
    }

    fn float(&mut self) {
        let size = if self.slips() {
            self.pick(&[0, 1, 32])
        } else {
            self.pick(&[2, 4, 8, 12, 16])
        };
        let id = self.builder.add(Kind::Float, "f", 0, size, &[]);
        self.made(Kind::Float, id, Some(size), size.min(8));
    }

    fn decl_tag(&mut self) {
        let targets: Vec<u32> = self
            .made
            .iter()
            .filter(|made| matches!(made.kind, Kind::Struct | Kind::Typedef | Kind::Func))
            .map(|made| made.id)
            .collect();
        if targets.is_empty() {
            return;
        }
        let target = if self.slips() {
            self.id()
        } else {
            self.pick(&targets)
        };
        let tag = self.pick(&CONTAINS);
        let component = if self.slips() {
            self.rng.random_range(-3..4)
        } else {
            -1
        };
        let kflag = u32::from(self.one_in(6)) << 31;
        let name = self.builder.string(tag.as_bytes());
        self.builder.raw(
            name,
            (Kind::DeclTag as u32) << 24 | kflag,
            target,
            &[component as u32],
        );
    }
}
