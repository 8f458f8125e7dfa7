//! Where the special fields of a type are (`btf_find_field`, `btf_parse_fields`).

use super::field::{Field, FieldKind, FieldKinds, FieldRecord, FieldTarget};
use super::kind::{Kind, Type};
use super::{Btf, KernelTypes, MAX_DEPTH};
use crate::{Errno, Error, Result};
use std::collections::HashMap;

/// Most special fields of a value (`BTF_FIELDS_MAX`).
const MAX_FIELDS: usize = 11;

/// A field as it was found (`struct btf_field_info`).
#[derive(Clone, Copy)]
struct Found<'a> {
    kind: FieldKind,
    offset: u32,
    extra: Extra<'a>,
}

#[derive(Clone, Copy)]
enum Extra<'a> {
    None,
    /// The struct pointed to.
    Pointer(u32),
    /// The struct in a list or tree, and the name of its node.
    Root {
        type_id: u32,
        node: &'a [u8],
    },
}

impl Btf {
    /// `btf_parse_fields`: the special fields of `type_id`, a struct or data section of
    /// `value_size` bytes, that are of one of `kinds`. `None` if there are none.
    ///
    /// Fields are looked for in the members, in structs among them at any depth, and in arrays.
    /// A field that is not aligned, or not of its kind's size, is none.
    ///
    /// # Errors
    ///
    /// EINVAL for any other type; for a member that starts inside a byte; a pointer with a
    /// tag that is not known, more than one tag, or not to a struct; a list or tree that does
    /// not say what it holds; fields that cannot go together or be in an array. E2BIG for two
    /// locks or timers in one struct, more than 11 fields, structs nested too deep. EEXIST for
    /// fields that overlap. EFAULT for a field beyond `value_size`. ENOENT for a list or tree
    /// of a struct, or by a node, that is not there, and for a `kptr` to a kernel struct
    /// whose references programs cannot own.
    pub fn parse_fields(
        &self,
        type_id: u32,
        value_size: u32,
        kinds: FieldKinds,
        kernel: &dyn KernelTypes,
    ) -> Result<Option<FieldRecord>> {
        let Some(ty) = self.types.get(type_id as usize) else {
            return Err(Error::because(
                Errno::EINVAL,
                format!("type {type_id} of BTF with {} types", self.types.len() - 1),
            ));
        };
        let mut finder = Finder {
            btf: self,
            kinds,
            found: Vec::new(),
            barren: HashMap::new(),
        };
        match ty.kind {
            Kind::Struct => finder.structure(type_id, ty, 0)?,
            Kind::Datasec => finder.section(ty)?,
            kind => {
                return Err(self.refuse(
                    Errno::EINVAL,
                    type_id,
                    ty,
                    format_args!("a {} has no special fields", kind.name()),
                ));
            }
        }
        let found = finder.found;
        if found.is_empty() {
            return Ok(None);
        }
        let mut fields = Vec::with_capacity(found.len());
        let mut end = 0;
        for found in found {
            let refuse = |errno, what: String| {
                self.refuse(
                    errno,
                    type_id,
                    ty,
                    format_args!("{} at {}: {what}", found.kind.name(), found.offset),
                )
            };
            let size = found.kind.size();
            if found.offset.wrapping_add(size) > value_size {
                return Err(refuse(
                    Errno::EFAULT,
                    format!("its {size} bytes exceed the value's {value_size}"),
                ));
            }
            if found.offset < end {
                return Err(refuse(
                    Errno::EEXIST,
                    format!("the field before it ends at {end}"),
                ));
            }
            end = found.offset + size;
            let target = match found.extra {
                Extra::None => FieldTarget::None,
                Extra::Pointer(target) => self
                    .pointer_target(found.kind, target, kernel)
                    .map_err(|(errno, what)| refuse(errno, what))?,
                Extra::Root { type_id, node } => self
                    .root_target(found.kind, type_id, node)
                    .map_err(|(errno, what)| refuse(errno, what))?,
            };
            fields.push(Field {
                kind: found.kind,
                offset: found.offset,
                size,
                target,
            });
        }
        let record = FieldRecord::new(fields);
        if let Some(what) = conflict(record.kinds()) {
            return Err(self.refuse(Errno::EINVAL, type_id, ty, what));
        }
        Ok(Some(record))
    }

    /// `btf_find_kptr`: the tag of a pointer, and the struct behind it.
    pub(super) fn find_pointer(
        &self,
        ty: &Type,
        kinds: FieldKinds,
    ) -> Result<Option<(FieldKind, u32)>, &'static str> {
        const TAGS: [FieldKind; 4] = [
            FieldKind::KptrUnref,
            FieldKind::KptrRef,
            FieldKind::KptrPercpu,
            FieldKind::Uptr,
        ];
        let get = |id: u32| self.types.get(id as usize).copied().unwrap_or(Type::VOID);
        let mut ty = *ty;
        if ty.kind == Kind::Volatile {
            ty = get(ty.word);
        }
        if ty.kind != Kind::Ptr {
            return Ok(None);
        }
        let tag = get(ty.word);
        if tag.kind != Kind::TypeTag || tag.kflag() {
            return Ok(None);
        }
        if self.kind(tag.word) == Kind::TypeTag {
            return Err("a pointer with more than one tag");
        }
        let Some(&kind) = TAGS
            .iter()
            .find(|kind| self.is_shown_as(tag.name_off, kind.name().as_bytes()))
        else {
            return Err("a pointer with a tag that is not known");
        };
        if !kinds.contains(kind.bit()) {
            return Ok(None);
        }
        match self.resolve(tag.word) {
            Ok(target) if self.kind(target) == Kind::Struct => Ok(Some((kind, target))),
            _ => Err("a tagged pointer to what is not a struct"),
        }
    }

    /// `btf_parse_kptr`.
    fn pointer_target(
        &self,
        kind: FieldKind,
        type_id: u32,
        kernel: &dyn KernelTypes,
    ) -> Result<FieldTarget, (Errno, String)> {
        let name = self.name(type_id);
        if name.is_empty() || !kernel.has_struct(name) {
            return Ok(FieldTarget::Program {
                btf: self.serial,
                type_id,
            });
        }
        if kind == FieldKind::KptrRef && !kernel.has_destructor(name) {
            return Err((
                Errno::ENOENT,
                format!(
                    "the kernel has no destructor for struct {}",
                    String::from_utf8_lossy(name)
                ),
            ));
        }
        Ok(FieldTarget::Kernel(name.into()))
    }

    /// `btf_parse_graph_root`.
    fn root_target(
        &self,
        kind: FieldKind,
        type_id: u32,
        node: &[u8],
    ) -> Result<FieldTarget, (Errno, String)> {
        let node_kind = if kind == FieldKind::ListHead {
            FieldKind::ListNode
        } else {
            FieldKind::RbNode
        };
        let shown = || String::from_utf8_lossy(&node[..node.len().min(64)]).into_owned();
        let invalid = |what: &str| {
            (
                Errno::EINVAL,
                format!("member {} of type {type_id} {what}", shown()),
            )
        };
        let ty = self.types.get(type_id as usize).unwrap_or(&Type::VOID);
        let mut node_offset = None;
        for member in self.raw_members(ty) {
            if !self.is_shown_as(member.name_off, node) {
                continue;
            }
            if node_offset.is_some() {
                return Err(invalid("is there twice"));
            }
            let of = self
                .types
                .get(member.type_id as usize)
                .unwrap_or(&Type::VOID);
            if of.kind != Kind::Struct || !self.is_named(of.name_off, node_kind.name().as_bytes()) {
                return Err(invalid(&format!("is not a struct {}", node_kind.name())));
            }
            // The kernel takes the kind flag of the member's type here, not of the struct.
            let offset = member.bit_offset(of.kflag());
            if !offset.is_multiple_of(node_kind.align() * 8) {
                return Err(invalid("is not aligned"));
            }
            node_offset = Some(offset / 8);
        }
        match node_offset {
            Some(node_offset) => Ok(FieldTarget::Nodes {
                btf: self.serial,
                type_id,
                node_offset,
            }),
            None => Err((
                Errno::ENOENT,
                format!("type {type_id} has no member {}", shown()),
            )),
        }
    }

    /// `btf_find_graph_root`: what the declaration tag `contains:STRUCT:NODE` names.
    fn contained(
        &self,
        tagged: u32,
        component: u32,
    ) -> Result<(u32, &[u8]), (Errno, &'static str)> {
        const KEY: &[u8] = b"contains:";
        let first = self.tags.partition_point(|&(target, _)| target < tagged);
        let mut values = self.tags[first..]
            .iter()
            .take_while(|&&(target, _)| target == tagged)
            .filter_map(|&(_, id)| {
                let tag = self.types.get(id as usize)?;
                if self.tail_word(tag, 0) != component {
                    return None;
                }
                self.raw[self.strings.clone()]
                    .get(tag.name_off as usize..)?
                    .strip_prefix(KEY)
            });
        let Some(value) = values.next() else {
            return Err((Errno::EINVAL, "it has no declaration tag \"contains:\""));
        };
        if values.next().is_some() {
            return Err((
                Errno::EINVAL,
                "it has more than one declaration tag \"contains:\"",
            ));
        }
        let end = value
            .iter()
            .position(|&b| b == 0 || b == b':')
            .unwrap_or(value.len());
        if value.get(end) != Some(&b':') {
            return Err((Errno::EINVAL, "its tag \"contains:\" names no node"));
        }
        let Some(type_id) = self.find_struct(&value[..end]) else {
            return Err((
                Errno::ENOENT,
                "its tag \"contains:\" names a struct that is not there",
            ));
        };
        let node = &value[end + 1..];
        let node = &node[..node.iter().position(|&b| b == 0).unwrap_or(node.len())];
        if node.is_empty() {
            return Err((Errno::EINVAL, "its tag \"contains:\" names no node"));
        }
        Ok((type_id, node))
    }
}

/// What cannot go together in one value.
fn conflict(kinds: FieldKinds) -> Option<&'static str> {
    let locks = FieldKinds::SPIN_LOCK | FieldKinds::RES_SPIN_LOCK;
    if kinds.contains(locks) {
        return Some("a bpf_spin_lock and a bpf_res_spin_lock");
    }
    if kinds.intersects(FieldKinds::GRAPH_ROOT) && !kinds.intersects(locks) {
        return Some("a list or tree without a lock");
    }
    if kinds.contains(FieldKinds::GRAPH_NODE) && !kinds.contains(FieldKinds::REFCOUNT) {
        return Some("nodes of a list and of a tree without a reference count");
    }
    None
}

/// The kinds that are structs of a fixed name, in the order in which the kernel compares them,
/// and whether a struct may have only one.
const NAMED: [(FieldKind, bool); 10] = [
    (FieldKind::SpinLock, true),
    (FieldKind::ResSpinLock, true),
    (FieldKind::Timer, true),
    (FieldKind::Workqueue, true),
    (FieldKind::TaskWork, true),
    (FieldKind::ListHead, false),
    (FieldKind::ListNode, false),
    (FieldKind::RbRoot, false),
    (FieldKind::RbNode, false),
    (FieldKind::Refcount, false),
];

/// A variable or member to look at.
#[derive(Clone, Copy)]
struct Place {
    /// What declaration tags name it by: a struct and the member's index, or a variable.
    tagged: u32,
    component: u32,
    type_id: u32,
    offset: u32,
    /// What it has to be in size, in bytes; 0 for a member.
    size: u32,
    level: usize,
}

struct Finder<'a> {
    btf: &'a Btf,
    kinds: FieldKinds,
    found: Vec<Found<'a>>,
    /// Structs without fields, and the deepest level at which that was found. Without this,
    /// structs of structs take time exponential in the depth.
    barren: HashMap<u32, usize>,
}

impl<'a> Finder<'a> {
    fn refuse(&self, errno: Errno, place: Place, what: impl std::fmt::Display) -> Error {
        let ty = self
            .btf
            .types
            .get(place.tagged as usize)
            .unwrap_or(&Type::VOID);
        if place.component == u32::MAX {
            self.btf.refuse(errno, place.tagged, ty, what)
        } else {
            self.btf.refuse(
                errno,
                place.tagged,
                ty,
                format_args!("member {}: {what}", place.component),
            )
        }
    }

    /// `btf_find_struct_field`.
    fn structure(&mut self, id: u32, ty: &Type, level: usize) -> Result<()> {
        let mut seen = FieldKinds::empty();
        for i in 0..ty.vlen() {
            let member = self.btf.raw_member(ty, i);
            let bit_offset = member.bit_offset(ty.kflag());
            let place = Place {
                tagged: id,
                component: i,
                type_id: member.type_id,
                offset: bit_offset / 8,
                size: 0,
                level,
            };
            if !bit_offset.is_multiple_of(8) {
                return Err(self.refuse(
                    Errno::EINVAL,
                    place,
                    format_args!("it starts inside a byte, at bit {bit_offset}"),
                ));
            }
            self.place(place, &mut seen)?;
        }
        Ok(())
    }

    /// `btf_find_datasec_var`.
    fn section(&mut self, ty: &Type) -> Result<()> {
        let mut seen = FieldKinds::empty();
        for i in 0..ty.vlen() {
            let var = self.btf.raw_section_var(ty, i);
            let type_id = self
                .btf
                .types
                .get(var.type_id as usize)
                .map_or(0, |v| v.word);
            let place = Place {
                tagged: var.type_id,
                component: u32::MAX,
                type_id,
                offset: var.offset,
                size: var.size,
                level: 0,
            };
            self.place(place, &mut seen)?;
        }
        Ok(())
    }

    /// `btf_get_field_type`.
    fn kind_of(&self, ty: &Type, seen: &mut FieldKinds) -> Result<Option<FieldKind>, &'static str> {
        for (kind, unique) in NAMED {
            let named = self.kinds.contains(kind.bit())
                && self.btf.is_shown_as(ty.name_off, kind.name().as_bytes());
            if !named {
                continue;
            }
            if unique && seen.contains(kind.bit()) {
                return Err(kind.name());
            }
            if unique {
                seen.insert(kind.bit());
            }
            return Ok(Some(kind));
        }
        let pointers = FieldKinds::KPTR | FieldKinds::UPTR;
        if self.kinds.intersects(pointers) && ty.kind != Kind::Struct {
            return Ok(Some(FieldKind::KptrRef));
        }
        Ok(None)
    }

    /// `btf_find_field_one`.
    fn place(&mut self, place: Place, seen: &mut FieldKinds) -> Result<()> {
        let get = |id: u32| self.btf.types.get(id as usize).unwrap_or(&Type::VOID);
        let (mut id, mut count) = (place.type_id, 1_u32);
        let mut ty = get(id);
        let mut depth = 0;
        while ty.kind == Kind::Array && depth < MAX_DEPTH {
            count = count.wrapping_mul(self.btf.tail_word(ty, 2));
            id = self.btf.tail_word(ty, 0);
            ty = get(id);
            depth += 1;
        }
        if depth == MAX_DEPTH {
            return Err(self.refuse(
                Errno::E2BIG,
                place,
                format_args!("arrays of {MAX_DEPTH} dimensions or more"),
            ));
        }
        if count == 0 {
            return Ok(());
        }
        let kind = self.kind_of(ty, seen).map_err(|name| {
            self.refuse(
                Errno::E2BIG,
                place,
                format_args!("a second {name} of the struct or section"),
            )
        })?;
        let Some(kind) = kind else {
            if ty.kind != Kind::Struct {
                return Ok(());
            }
            if place.size != 0 && place.size != ty.word.wrapping_mul(count) {
                return Ok(());
            }
            return self.nested(place, id, *ty, count);
        };
        if place.size != 0 && place.size != kind.size().wrapping_mul(count) {
            return Ok(());
        }
        if !place.offset.is_multiple_of(kind.align()) {
            return Ok(());
        }
        let found = match kind {
            FieldKind::KptrUnref | FieldKind::KptrRef | FieldKind::KptrPercpu | FieldKind::Uptr => {
                let pointer = self
                    .btf
                    .find_pointer(ty, self.kinds)
                    .map_err(|what| self.refuse(Errno::EINVAL, place, what))?;
                let Some((kind, target)) = pointer else {
                    return Ok(());
                };
                Found {
                    kind,
                    offset: place.offset,
                    extra: Extra::Pointer(target),
                }
            }
            _ if ty.kind != Kind::Struct || ty.word != kind.size() => return Ok(()),
            FieldKind::ListHead | FieldKind::RbRoot => {
                let (type_id, node) = self
                    .btf
                    .contained(place.tagged, place.component)
                    .map_err(|(errno, what)| self.refuse(errno, place, what))?;
                Found {
                    kind,
                    offset: place.offset,
                    extra: Extra::Root { type_id, node },
                }
            }
            _ => Found {
                kind,
                offset: place.offset,
                extra: Extra::None,
            },
        };
        if self.found.len() == MAX_FIELDS {
            return Err(self.too_many(place));
        }
        let first = self.found.len();
        self.found.push(found);
        self.repeat(place, first, count, kind.size())
    }

    /// `btf_find_nested_struct`.
    fn nested(&mut self, place: Place, id: u32, ty: Type, count: u32) -> Result<()> {
        let level = place.level + 1;
        if level >= MAX_DEPTH {
            return Err(self.refuse(
                Errno::E2BIG,
                place,
                format_args!("structs nested more than {MAX_DEPTH} deep"),
            ));
        }
        if self
            .barren
            .get(&id)
            .is_some_and(|&deepest| level <= deepest)
        {
            return Ok(());
        }
        let first = self.found.len();
        self.structure(id, &ty, level)?;
        if self.found.len() == first {
            self.barren.insert(id, level);
            return Ok(());
        }
        for found in &mut self.found[first..] {
            found.offset = found.offset.wrapping_add(place.offset);
        }
        self.repeat(place, first, count, ty.word)
    }

    fn too_many(&self, place: Place) -> Error {
        self.refuse(
            Errno::E2BIG,
            place,
            format_args!("more than {MAX_FIELDS} special fields"),
        )
    }

    /// `btf_repeat_fields`: the fields from `first` on are those of the first of `count`
    /// elements of `size` bytes.
    fn repeat(&mut self, place: Place, first: usize, count: u32, size: u32) -> Result<()> {
        if count <= 1 {
            return Ok(());
        }
        let repeatable = FieldKinds::KPTR | FieldKinds::UPTR | FieldKinds::GRAPH_ROOT;
        let of_one = self.found.len() - first;
        if let Some(found) = self.found[first..]
            .iter()
            .find(|found| !repeatable.contains(found.kind.bit()))
        {
            return Err(self.refuse(
                Errno::EINVAL,
                place,
                format_args!("an array of {}", found.kind.name()),
            ));
        }
        let total = of_one as u64 * u64::from(count);
        // Told apart because 6.18 multiplies in 32 bits and lets a product pass that wraps to a
        // small one; later kernels check for that (`check_mul_overflow`).
        if total > u64::from(u32::MAX) {
            return Err(self.refuse(
                Errno::E2BIG,
                place,
                format_args!("{of_one} special fields in each of {count} elements exceed 32 bits"),
            ));
        }
        if total > (MAX_FIELDS - first) as u64 {
            return Err(self.too_many(place));
        }
        for i in 1..count {
            for at in first..first + of_one {
                let mut found = self.found[at];
                found.offset = found.offset.wrapping_add(i.wrapping_mul(size));
                self.found.push(found);
            }
        }
        Ok(())
    }
}
