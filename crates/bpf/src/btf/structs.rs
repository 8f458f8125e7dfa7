//! The structs with special fields that programs may allocate (`btf_parse_struct_metas`), and
//! which of them may own which (`btf_check_and_fixup_fields`).

use super::field::{FieldKind, FieldKinds, FieldRecord, FieldTarget};
use super::kind::Kind;
use super::{Btf, KernelTypes};
use crate::{Errno, Error, Result};

/// A struct with one of these as a member is looked at (`alloc_obj_fields`), and one with a
/// tagged pointer.
const MEMBERS: [FieldKind; 6] = [
    FieldKind::SpinLock,
    FieldKind::ListHead,
    FieldKind::ListNode,
    FieldKind::RbRoot,
    FieldKind::RbNode,
    FieldKind::Refcount,
];
const PAGE_BYTES: u32 = 4096;

/// The record of every struct that has such a member itself, by type id.
pub(super) fn parse(btf: &Btf, kernel: &dyn KernelTypes) -> Result<Vec<(u32, FieldRecord)>> {
    let mut special = vec![false; btf.types.len()];
    let mut any = false;
    for kind in MEMBERS {
        if let Some(id) = btf.find(kind.name().as_bytes(), Kind::Struct) {
            special[id as usize] = true;
            any = true;
        }
    }
    for (ty, special) in btf.types.iter().zip(&mut special) {
        if matches!(btf.find_pointer(ty, FieldKinds::KPTR), Ok(Some(_))) {
            *special = true;
            any = true;
        }
    }
    if !any {
        return Ok(Vec::new());
    }
    let mut structs = Vec::new();
    for (id, ty) in (0_u32..).zip(&btf.types) {
        let looked_at = ty.kind == Kind::Struct
            && btf.raw_members(ty).any(|member| {
                special
                    .get(member.type_id as usize)
                    .is_some_and(|&special| special)
            });
        if !looked_at {
            continue;
        }
        match btf.parse_fields(id, ty.word, FieldKinds::ALLOCATED, kernel)? {
            Some(record) => structs.push((id, record)),
            None => {
                return Err(btf.refuse(
                    Errno::EFAULT,
                    id,
                    ty,
                    "its special members are not aligned or not of their kind's size",
                ));
            }
        }
    }
    Ok(structs)
}

/// Checks ownership among the structs that [`parse`] found.
pub(super) fn check_ownership(btf: &Btf) -> Result<()> {
    btf.structs
        .iter()
        .try_for_each(|(id, record)| btf.check_record(*id, record))
}

impl Btf {
    /// `btf_check_and_fixup_fields`: user pointers point to a struct of the program of at most
    /// a page; what a list or tree holds has a record; and no struct that can be owned owns
    /// one that owns others, which would make a circle possible.
    pub(super) fn check_record(&self, id: u32, record: &FieldRecord) -> Result<()> {
        for field in record.fields() {
            let refuse = |errno, what: std::fmt::Arguments<'_>| {
                Err(Error::because(
                    errno,
                    format!(
                        "BTF type {id}: {} at {}: {what}",
                        field.kind.name(),
                        field.offset
                    ),
                ))
            };
            match &field.target {
                FieldTarget::Kernel(name) if field.kind == FieldKind::Uptr => {
                    return refuse(
                        Errno::EINVAL,
                        format_args!(
                            "struct {} is the kernel's, not the program's",
                            String::from_utf8_lossy(name)
                        ),
                    );
                }
                FieldTarget::Program { type_id, .. } if field.kind == FieldKind::Uptr => {
                    let size = self.types.get(*type_id as usize).map_or(0, |ty| ty.word);
                    if size == 0 {
                        return refuse(Errno::EINVAL, format_args!("type {type_id} has no bytes"));
                    }
                    if size > PAGE_BYTES {
                        return refuse(
                            Errno::E2BIG,
                            format_args!(
                                "type {type_id} of {size} bytes exceeds a page, {PAGE_BYTES}"
                            ),
                        );
                    }
                }
                FieldTarget::Nodes { type_id, .. } => {
                    let Some(held) = self.struct_record(*type_id) else {
                        return refuse(
                            Errno::EFAULT,
                            format_args!("type {type_id} has no special fields"),
                        );
                    };
                    if record.kinds().intersects(FieldKinds::GRAPH_NODE)
                        && held.kinds().intersects(FieldKinds::GRAPH_ROOT)
                    {
                        return refuse(
                            Errno::ELOOP,
                            format_args!(
                                "type {type_id}, which it owns, owns others, and it can be owned"
                            ),
                        );
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// `btf_find_struct_meta`: the special fields of a struct that a program may allocate.
    pub fn struct_record(&self, id: u32) -> Option<&FieldRecord> {
        let at = self.structs.binary_search_by_key(&id, |&(id, _)| id).ok()?;
        Some(&self.structs[at].1)
    }
}
