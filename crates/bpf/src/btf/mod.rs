//! BTF, the type format of BPF objects, as BTF_LOAD takes it (`kernel/bpf/btf.c`).
//!
//! [`Btf::parse`] checks a program's blob in the kernel's passes: the header and the two
//! sections, each type on its own, what the types refer to, and the structs that programs may
//! allocate. What it returns is known to be sound, so nothing that walks it later can go out
//! of bounds or round in circles.
//!
//! On top of it stand the special fields of map values ([`FieldRecord`], the kernel's
//! `struct btf_record`) and what BPF_MAP_CREATE asks of a map's key and value types
//! ([`check_map_btf`]).

mod build;
mod field;
mod find;
mod header;
mod kernel;
mod kind;
mod listing;
mod map;
mod member;
mod meta;
mod resolve;
mod structs;
#[cfg(test)]
mod tests;

pub use build::BtfBuilder;
pub use field::{Field, FieldKind, FieldKinds, FieldRecord, FieldTarget};
pub use header::MAX_BYTES;
pub use kernel::{KernelTypes, NoKernelTypes, RunningKernel, VmlinuxTypes};
pub use kind::Kind;
pub use map::{MapBtfSpec, MapTypeCheck, check_map_btf};
pub use meta::MAX_NAME_BYTES;
pub use resolve::MAX_DEPTH;

use crate::{Errno, Error, Result};
use kind::{IntData, RawMember, Type};
use std::fmt::Display;
use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

const POINTER_BYTES: u32 = 8;

/// Checked BTF of a program.
///
/// Type ids count from 1, in the order of the blob; 0 is void.
pub struct Btf {
    raw: Box<[u8]>,
    strings: Range<usize>,
    /// By type id; the first is void.
    types: Vec<Type>,
    /// By type id: `resolved_ids` and `resolved_sizes`. Empty for a kernel's own BTF.
    resolved: Vec<(u32, u32)>,
    /// Each DECL_TAG as (the type it tags, its own id), sorted.
    tags: Vec<(u32, u32)>,
    /// The STRUCTs, sorted by name and id, once one is looked for by name.
    by_name: OnceLock<Vec<u32>>,
    /// Structs with special fields, by type id (`struct_meta_tab`).
    structs: Vec<(u32, FieldRecord)>,
    /// Tells this BTF from every other of this process.
    serial: u64,
}

fn u32_at(data: &[u8], offset: usize) -> Option<u32> {
    let bytes = data.get(offset..offset.checked_add(4)?)?;
    Some(u32::from_le_bytes(bytes.try_into().ok()?))
}

/// A variable of a data section (`struct btf_var_secinfo`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SectionVar {
    /// The VAR.
    pub type_id: u32,
    /// Offset into the section, in bytes.
    pub offset: u32,
    /// Bytes.
    pub size: u32,
}

/// A member of a struct or union.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Member<'a> {
    /// Its name; empty for an anonymous one.
    pub name: &'a [u8],
    /// Its type.
    pub type_id: u32,
    /// Where it starts, in bits.
    pub bit_offset: u32,
    /// Its width in bits where it is a bit field, else 0.
    pub bitfield_size: u32,
}

impl Btf {
    /// What BTF_LOAD makes of `bytes`, on a kernel with the types of the running one.
    ///
    /// The running kernel's types are read, once, only if a pointer to a kernel struct makes
    /// them matter ([`RunningKernel`]).
    ///
    /// # Errors
    ///
    /// The kernel's error numbers, mostly EINVAL; E2BIG for a blob that is too large, has
    /// unknown header fields that are not zero, or nests too deep; EEXIST and ELOOP for loops;
    /// ENOTSUPP for a version, flags or integer encoding that is not known; EFAULT for a
    /// struct with special fields that cannot be used. The reason names the type and what is
    /// wrong with it.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        Self::parse_on(bytes, &RunningKernel)
    }

    /// [`Btf::parse`] on a kernel with these types.
    ///
    /// # Errors
    ///
    /// As [`Btf::parse`].
    pub fn parse_on(bytes: &[u8], kernel: &dyn KernelTypes) -> Result<Self> {
        let mut btf = Self::check_types(bytes)?;
        resolve::resolve_all(&mut btf)?;
        resolve::check_type_tags(&btf)?;
        btf.structs = structs::parse(&btf, kernel)?;
        structs::check_ownership(&btf)?;
        Ok(btf)
    }

    /// What the kernel checks of its own BTF (`btf_parse_vmlinux`): everything but what the
    /// types refer to, which it trusts. Sizes of such types are not known.
    ///
    /// # Errors
    ///
    /// As [`Btf::parse`], for what is checked.
    pub fn parse_kernel(bytes: &[u8]) -> Result<Self> {
        let btf = Self::check_types(bytes)?;
        resolve::check_type_tags(&btf)?;
        Ok(btf)
    }

    fn check_types(bytes: &[u8]) -> Result<Self> {
        static SERIAL: AtomicU64 = AtomicU64::new(0);
        let sections = header::sections(bytes)?;
        let mut btf = Self {
            raw: bytes.into(),
            strings: sections.strings,
            types: vec![Type::VOID],
            resolved: Vec::new(),
            tags: Vec::new(),
            by_name: OnceLock::new(),
            structs: Vec::new(),
            serial: SERIAL.fetch_add(1, Ordering::Relaxed),
        };
        meta::check_all(&mut btf, sections.types)?;
        btf.tags = (0..)
            .zip(&btf.types)
            .filter(|(_, ty)| ty.kind == Kind::DeclTag)
            .map(|(id, ty)| (ty.word, id))
            .collect();
        btf.tags.sort_unstable();
        Ok(btf)
    }

    /// The bytes it was parsed from, as BPF_OBJ_GET_INFO_BY_FD returns them.
    pub fn raw(&self) -> &[u8] {
        &self.raw
    }

    /// Number of types, void included (`btf_nr_types`).
    pub fn type_count(&self) -> u32 {
        // At most `BTF_MAX_TYPE`.
        self.types.len() as u32
    }

    /// The kind of a type; void for an id that is not there.
    pub fn kind(&self, id: u32) -> Kind {
        self.types.get(id as usize).map_or(Kind::Void, |ty| ty.kind)
    }

    /// A type's name; empty where it has none or is not there.
    pub fn name(&self, id: u32) -> &[u8] {
        self.types
            .get(id as usize)
            .map_or(&[], |ty| self.string(ty.name_off))
    }

    /// `btf_find_by_name_kind`: the first type of this name and kind.
    pub fn find(&self, name: &[u8], kind: Kind) -> Option<u32> {
        self.types
            .iter()
            .skip(1)
            .position(|ty| ty.kind == kind && self.is_named(ty.name_off, name))
            .map(|at| at as u32 + 1)
    }

    /// [`Btf::find`] for structs, in logarithmic time from the second call on.
    fn find_struct(&self, name: &[u8]) -> Option<u32> {
        let sorted = self.by_name.get_or_init(|| {
            let mut ids: Vec<u32> = (0..self.type_count())
                .filter(|&id| self.kind(id) == Kind::Struct)
                .collect();
            ids.sort_by_key(|&id| (self.identifier(self.types[id as usize].name_off), id));
            ids
        });
        let name_of = |id: u32| self.identifier(self.types[id as usize].name_off);
        let at = sorted.partition_point(|&id| name_of(id) < name);
        let &id = sorted.get(at)?;
        (name_of(id) == name).then_some(id)
    }

    /// `btf_type_skip_modifiers`: follows typedefs, qualifiers and type tags.
    ///
    /// # Errors
    ///
    /// EINVAL: there is no such type.
    pub fn resolve(&self, id: u32) -> Result<u32> {
        let mut at = id;
        // `check_type_tags` has bounded every chain.
        for _ in 0..=MAX_DEPTH {
            match self.types.get(at as usize) {
                Some(ty) if ty.kind.is_modifier() => at = ty.word,
                Some(_) => return Ok(at),
                None => break,
            }
        }
        Err(Error::because(
            Errno::EINVAL,
            format!("type {id} of BTF with {} types", self.types.len() - 1),
        ))
    }

    /// `btf_type_id_size`: the type behind modifiers and variables, and its size in bytes.
    /// `None` if there is no such type, or it has no size.
    pub fn type_id_size(&self, id: u32) -> Option<(u32, u32)> {
        let ty = self.types.get(id as usize)?;
        if let Some(size) = self.own_size(id, ty) {
            return Some((id, size));
        }
        if !ty.kind.is_modifier() && ty.kind != Kind::Var {
            return None;
        }
        let end = self.resolved.get(id as usize)?.0;
        let size = self.own_size(end, self.types.get(end as usize)?)?;
        Some((end, size))
    }

    fn own_size(&self, id: u32, ty: &Type) -> Option<u32> {
        match ty.kind {
            Kind::Ptr => Some(POINTER_BYTES),
            Kind::Array => Some(self.resolved.get(id as usize)?.1),
            kind if kind.has_size() => Some(ty.word),
            _ => None,
        }
    }

    /// The members of a struct or union; none of any other type.
    pub fn members(&self, id: u32) -> impl ExactSizeIterator<Item = Member<'_>> {
        let ty = match self.types.get(id as usize) {
            Some(ty) if ty.kind.is_composite() => *ty,
            _ => Type::VOID,
        };
        (0..ty.vlen()).map(move |i| {
            let raw = self.raw_member(&ty, i);
            Member {
                name: self.string(raw.name_off),
                type_id: raw.type_id,
                bit_offset: raw.bit_offset(ty.kflag()),
                bitfield_size: if ty.kflag() { raw.bitfield_size() } else { 0 },
            }
        })
    }

    /// The variables of a data section; none of any other type.
    pub fn section(&self, id: u32) -> impl ExactSizeIterator<Item = SectionVar> {
        let ty = match self.types.get(id as usize) {
            Some(ty) if ty.kind == Kind::Datasec => *ty,
            _ => Type::VOID,
        };
        (0..ty.vlen()).map(move |i| self.raw_section_var(&ty, i))
    }

    /// The word after a type's head; the first pass has made sure that it is there.
    fn tail_word(&self, ty: &Type, index: usize) -> u32 {
        u32_at(&self.raw, ty.tail as usize + index * 4).unwrap_or(0)
    }

    /// What describes the integer, if `id` is an INT.
    fn int_data(&self, id: u32) -> Option<IntData> {
        let ty = self.types.get(id as usize)?;
        (ty.kind == Kind::Int).then(|| IntData(self.tail_word(ty, 0)))
    }

    fn raw_member(&self, ty: &Type, index: u32) -> RawMember {
        let at = index as usize * 3;
        RawMember {
            name_off: self.tail_word(ty, at),
            type_id: self.tail_word(ty, at + 1),
            offset: self.tail_word(ty, at + 2),
        }
    }

    fn raw_members(&self, ty: &Type) -> impl Iterator<Item = RawMember> {
        (0..ty.vlen()).map(|i| self.raw_member(ty, i))
    }

    fn raw_section_var(&self, ty: &Type, index: u32) -> SectionVar {
        let at = index as usize * 3;
        SectionVar {
            type_id: self.tail_word(ty, at),
            offset: self.tail_word(ty, at + 1),
            size: self.tail_word(ty, at + 2),
        }
    }

    fn raw_section(&self, ty: &Type) -> impl Iterator<Item = SectionVar> {
        (0..ty.vlen()).map(|i| self.raw_section_var(ty, i))
    }

    /// The string at `offset`, without its NUL.
    fn string(&self, offset: u32) -> &[u8] {
        let strings = &self.raw[self.strings.clone()];
        let tail = strings.get(offset as usize..).unwrap_or(&[]);
        let len = tail.iter().position(|&b| b == 0).unwrap_or(tail.len());
        &tail[..len]
    }

    /// The string at `offset`, cut off one byte after the longest identifier: a blob may
    /// have as many names as it has bytes, each as long as the rest of it.
    fn identifier(&self, offset: u32) -> &[u8] {
        let strings = &self.raw[self.strings.clone()];
        let tail = strings.get(offset as usize..).unwrap_or(&[]);
        let tail = &tail[..tail.len().min(MAX_NAME_BYTES + 1)];
        let len = tail.iter().position(|&b| b == 0).unwrap_or(tail.len());
        &tail[..len]
    }

    /// Whether the string at `offset` is `name`.
    fn is_named(&self, offset: u32, name: &[u8]) -> bool {
        self.raw[self.strings.clone()]
            .get(offset as usize..)
            .and_then(|tail| tail.strip_prefix(name))
            .is_some_and(|rest| rest.first() == Some(&0))
    }

    /// `strcmp` with `__btf_name_by_offset`, for which the name at 0 is `(anon)`.
    fn is_shown_as(&self, offset: u32, name: &[u8]) -> bool {
        match offset {
            0 => name == b"(anon)",
            _ => self.is_named(offset, name),
        }
    }

    /// `btf_member_is_reg_int`: a whole integer of `size` bytes at byte `offset`.
    fn is_regular_member(&self, id: u32, member: RawMember, offset: u32, size: u32) -> bool {
        let Some(int) = self
            .type_id_size(member.type_id)
            .and_then(|(end, _)| self.int_data(end))
        else {
            return false;
        };
        let of_size = int.bits().div_ceil(8) == size;
        if self.types[id as usize].kflag() {
            return member.bitfield_size() == 0
                && member.bit_offset(true).div_ceil(8) == offset
                && of_size;
        }
        int.offset() == 0
            && int.bits() % 8 == 0
            && member.offset.is_multiple_of(8)
            && member.offset / 8 == offset
            && of_size
    }

    /// An error about a type.
    fn refuse(&self, errno: Errno, id: u32, ty: &Type, what: impl Display) -> Error {
        let name = self.string(ty.name_off);
        // Names are any bytes, and as long as the blob.
        let shown = String::from_utf8_lossy(&name[..name.len().min(64)]);
        let space = if name.is_empty() { "" } else { " " };
        Error::because(
            errno,
            format!(
                "BTF type {id} ({}{space}{}): {what}",
                ty.kind.name(),
                shown.escape_debug()
            ),
        )
    }
}

impl std::fmt::Debug for Btf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Btf")
            .field("bytes", &self.raw.len())
            .field("types", &(self.types.len() - 1))
            .finish_non_exhaustive()
    }
}
