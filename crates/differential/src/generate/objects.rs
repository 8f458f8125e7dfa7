//! Commands on objects: info, ids, FREEZE, BTF, and what is no command at all.

use super::{Action, BLOB, Expect, Generator, INFO, PATH};
use crate::sides::{IdAt, IdKind, Region, Sides};
use offmap_bpf::command;
use rand::{Rng, RngExt};

/// A BTF object that is open on both sides.
#[derive(Clone, Debug)]
pub(crate) struct BtfState {
    pub(crate) fd: i32,
    pub(crate) kernel_id: u32,
}

/// A type of the blob that values may have.
#[derive(Clone, Copy)]
pub(super) struct ValueType {
    pub(super) id: u32,
    pub(super) size: u32,
}

/// Ids of the blob's types.
pub(super) const U32: u32 = 1;
const U64: u32 = 2;
const SPIN_LOCK: u32 = 3;
const PLAIN: u32 = 4;
const LOCKED: u32 = 5;
pub(super) const LPM_KEY: u32 = 6;
const TIMER: u32 = 7;
const TWO_U64: u32 = 8;
const TIMED: u32 = 9;

pub(super) const VALUES: &[ValueType] = &[
    ValueType { id: U32, size: 4 },
    ValueType { id: U64, size: 8 },
    ValueType {
        id: PLAIN,
        size: 16,
    },
    ValueType {
        id: LOCKED,
        size: 16,
    },
    ValueType {
        id: TIMED,
        size: 24,
    },
];

/// Whether values of this type of the blob have a spin lock.
pub(super) const fn has_lock(type_id: u32) -> bool {
    type_id == LOCKED
}

/// The bytes of a BTF object with the types above.
fn blob() -> Vec<u8> {
    let mut strings = vec![0];
    let mut name = |text: &str| {
        let at = strings.len() as u32;
        strings.extend_from_slice(text.as_bytes());
        strings.push(0);
        at
    };
    const INT: u32 = 1 << 24;
    const ARRAY: u32 = 3 << 24;
    const STRUCT: u32 = 4 << 24;
    let mut types: Vec<u32> = Vec::new();
    types.extend([name("u32"), INT, 4, 32]);
    types.extend([name("u64"), INT, 8, 64]);
    types.extend([name("bpf_spin_lock"), STRUCT | 1, 4]);
    types.extend([name("val"), U32, 0]);
    types.extend([name("plain"), STRUCT | 2, 16]);
    types.extend([name("a"), U64, 0, name("b"), U64, 64]);
    types.extend([name("locked"), STRUCT | 3, 16]);
    types.extend([name("a"), U64, 0, name("lock"), SPIN_LOCK, 64]);
    types.extend([name("c"), U32, 96]);
    types.extend([name("lpm_key"), STRUCT | 2, 8]);
    types.extend([name("prefixlen"), U32, 0, name("data"), U32, 32]);
    types.extend([name("bpf_timer"), STRUCT | 1, 16]);
    types.extend([name("opaque"), TWO_U64, 0]);
    types.extend([0, ARRAY, 0, U64, U32, 2]);
    types.extend([name("timed"), STRUCT | 2, 24]);
    types.extend([name("a"), U64, 0, name("timer"), TIMER, 64]);
    let type_bytes: Vec<u8> = types.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let header = [
        24,
        0,
        type_bytes.len() as u32,
        type_bytes.len() as u32,
        strings.len() as u32,
    ];
    let mut blob = 0xeb9f_u16.to_ne_bytes().to_vec();
    blob.extend([1, 0]);
    blob.extend(header.iter().flat_map(|word| word.to_ne_bytes()));
    blob.extend(type_bytes);
    blob.extend(strings);
    blob
}

/// The path is relative to the directory `path_fd`.
const BPF_F_PATH_FD: u32 = 1 << 14;

impl Generator {
    pub(super) fn freeze(&mut self, sides: &mut Sides, index: usize) -> (Action, Expect) {
        let fd = self.fd_of(index);
        self.set32(0, fd as u32);
        let call = self.finish(sides, command::MAP_FREEZE, 4, "freeze");
        (Action::Call(call), Expect::Nothing)
    }

    pub(super) fn info(&mut self, sides: &mut Sides, index: usize) -> (Action, Expect) {
        let fd = match self.btfs.last().map(|btf| btf.fd) {
            Some(btf) if self.one_in(8) => btf,
            _ => self.fd_of(index),
        };
        self.set32(0, fd as u32);
        let len = match self.one_in(5) {
            // Not so that half of an id is asked for.
            true => self.rng.random_range(0..25) * 8,
            false => 104,
        };
        let region = Region { at: INFO, len: 256 };
        sides.fill(region, 0);
        if self.one_in(8) {
            // Bytes that the kernel hands back, or refuses: the fields of the device, and what
            // lies past the structure.
            let at = self.rng.random_range(40..len.max(41));
            sides.put(INFO + at, &[0x5a]);
        }
        if self.one_in(10) {
            let hash = self.pointer(INFO + 512, 32);
            sides.put(INFO + 88, &hash.to_ne_bytes());
            let size = self.pick(&[32_u32, 32, 32, 0, 31]);
            sides.put(INFO + 96, &size.to_ne_bytes());
        }
        self.set32(4, len as u32);
        let pointer = self.pointer(INFO, 256);
        self.set64(8, pointer);
        let mut call = self.finish(sides, command::OBJ_GET_INFO_BY_FD, 16, "info");
        let ids: &[(u64, IdKind)] = if fd == self.maps[index].fd {
            &[(4, IdKind::Map), (64, IdKind::Btf)]
        } else if self.btfs.iter().any(|btf| btf.fd == fd) {
            &[(12, IdKind::Btf)]
        } else {
            &[]
        };
        for &(offset, kind) in ids {
            if let Some(at) = self.place(pointer.wrapping_add(offset), 4) {
                call.ids_out.push(IdAt { at, kind });
            }
        }
        (Action::Call(call), Expect::Nothing)
    }

    pub(super) fn next_id(&mut self, sides: &mut Sides, index: usize) -> (Action, Expect) {
        let (kind, id) = self.map_id(index);
        let ours = sides.our_id(kind, id);
        if self.one_in(4) {
            let start = self.pick(&[0x7fff_ffff, 0x7fff_fffe, u32::MAX]);
            self.set32(0, start);
            let call = self.finish(sides, command::MAP_GET_NEXT_ID, 8, "next_id");
            return (Action::Call(call), Expect::Nothing);
        }
        // From the id before it, so that maps of others do not matter.
        self.set32(0, id - 1);
        let mut call = self.finish(sides, command::MAP_GET_NEXT_ID, 8, "next_id");
        if let Some(ours) = ours
            && call.attr == self.address(0)
        {
            call.ids_in.push((0, id - 1, ours - 1));
            call.ids_out.push(IdAt { at: 4, kind });
        }
        (Action::Call(call), Expect::Nothing)
    }

    pub(super) fn fd_by_id(&mut self, sides: &mut Sides, index: usize) -> (Action, Expect) {
        let (kind, id) = self.map_id(index);
        let flags = match self.one_in(4) {
            true => self.pick(&[1 << 3, 1 << 4, 3 << 3, 1, 1 << 7, u32::MAX]),
            false => 0,
        };
        self.set32(8, flags);
        let mut call = self.finish(sides, command::MAP_GET_FD_BY_ID, 12, "fd_by_id");
        if let Some(ours) = sides.our_id(kind, id)
            && call.attr == self.address(0)
        {
            call.ids_in.push((0, id, ours));
        }
        (Action::Call(call), Expect::Opened(index))
    }

    pub(super) fn load_btf(&mut self, sides: &mut Sides) -> (Action, Expect) {
        let mut bytes = blob();
        if self.one_in(4) {
            let at = self.rng.random_range(0..bytes.len());
            bytes[at] = match self.one_in(2) {
                true => bytes[at] ^ 1 << self.rng.random_range(0..8),
                false => self.rng.random(),
            };
        }
        sides.put(BLOB, &bytes);
        let mut len = bytes.len();
        if self.one_in(20) {
            len = self.rng.random_range(0..=len);
        }
        let pointer = self.pointer(BLOB, len);
        self.set64(0, pointer);
        self.set32(16, len as u32);
        let call = self.finish(sides, command::BTF_LOAD, 40, "btf_load");
        (
            Action::Call(call),
            Expect::Btf(BtfState {
                fd: -1,
                kernel_id: 0,
            }),
        )
    }

    pub(super) fn btf_by_id(&mut self, sides: &mut Sides) -> (Action, Expect) {
        let Some(btf) = self.btfs.last().cloned() else {
            return self.load_btf(sides);
        };
        if self.one_in(6) {
            let flags = self.pick(&[1, 1 << 3, 1 << 16]);
            self.set32(8, flags);
        }
        let mut call = self.finish(sides, command::BTF_GET_FD_BY_ID, 16, "btf_by_id");
        if let Some(ours) = sides.our_id(IdKind::Btf, btf.kernel_id)
            && call.attr == self.address(0)
        {
            call.ids_in.push((0, btf.kernel_id, ours));
        }
        (Action::Call(call), Expect::Btf(btf))
    }

    /// A name of the pin directory, or a path that leads nowhere.
    fn path(&mut self, sides: &mut Sides, name: u32) -> u64 {
        let dir = sides.pin_dir().to_owned();
        let path = match self.rng.random_range(0..24) {
            0 => format!("{dir}/a.b"),
            1 => String::new(),
            2 => format!("{dir}/missing/x"),
            3 => format!("{dir}/{}", "n".repeat(256)),
            4 => format!("{dir}/../{}/m{name}", dir.rsplit('/').next().unwrap_or("")),
            5 => dir,
            6 => format!("{dir}/m{name}/"),
            7 => format!("{dir}//m{name}"),
            _ => format!("{dir}/m{name}"),
        };
        let mut bytes = path.into_bytes();
        bytes.push(0);
        sides.put(PATH, &bytes);
        self.pointer(PATH, bytes.len())
    }

    /// The path is in `attr` at 0, the descriptor at 8, flags at 12, the directory at 16.
    fn set_pin(&mut self, sides: &mut Sides, fd: i32, name: u32) {
        let path = self.path(sides, name);
        self.set64(0, path);
        self.set32(8, fd as u32);
        if self.one_in(12) {
            let flags = self.pick(&[1, 1 << 3, 1 << 4, 3 << 3, BPF_F_PATH_FD]);
            self.set32(12, flags);
            if flags == BPF_F_PATH_FD {
                // Not 0: what this process's standard input is, the other side cannot know.
                let dir = self.pick(&[self.foreign_fd as u32, u32::MAX]);
                self.set32(16, dir);
                return;
            }
        }
        if self.one_in(30) {
            let foreign = self.foreign_fd as u32;
            let dir = self.pick(&[foreign, u32::MAX]);
            self.set32(16, dir);
        }
    }

    pub(super) fn pin(&mut self, sides: &mut Sides, index: usize) -> (Action, Expect) {
        let name = self.rng.random_range(0..6);
        let fd = self.fd_of(index);
        self.set_pin(sides, fd, name);
        let call = self.finish(sides, command::OBJ_PIN, 20, "pin");
        (Action::Call(call), Expect::Pinned(name, index))
    }

    pub(super) fn get_pin(&mut self, sides: &mut Sides, index: usize) -> (Action, Expect) {
        let name = self.rng.random_range(0..6);
        let fd = match self.one_in(20) {
            true => self.fd_of(index),
            false => 0,
        };
        self.set_pin(sides, fd, name);
        let call = self.finish(sides, command::OBJ_GET, 20, "get_pin");
        let id = self.pins.get(&name).copied();
        let known = self.maps.iter().position(|map| Some(map.kernel_id) == id);
        let expect = known.map_or(Expect::Unknown, Expect::Opened);
        (Action::Call(call), expect)
    }

    /// A number that is no command of the map side, or bytes without any sense. Commands of
    /// the program side are left out: the kernel would carry them out.
    pub(super) fn junk(&mut self, sides: &mut Sides) -> (Action, Expect) {
        if self.one_in(2) {
            let number = self.pick(&[39, 40, 99, 1 << 15, u32::MAX, 1 << 31]);
            let call = self.finish(sides, number, 64, "unknown");
            return (Action::Call(call), Expect::Nothing);
        }
        let number = self.pick(&[
            command::MAP_LOOKUP_ELEM,
            command::MAP_UPDATE_ELEM,
            command::MAP_DELETE_ELEM,
            command::MAP_GET_NEXT_KEY,
            command::MAP_LOOKUP_BATCH,
            command::MAP_UPDATE_BATCH,
            command::MAP_FREEZE,
        ]);
        let mut noise = [0; 64];
        self.rng.fill_bytes(&mut noise);
        // No address of this process: the kernel must not write where it is not watched.
        for word in noise.chunks_exact_mut(8) {
            word[7] |= 0x80;
        }
        self.attr[..64].copy_from_slice(&noise);
        let call = self.finish(sides, number, 64, "noise");
        (Action::Call(call), Expect::Nothing)
    }
}
