//! The second pass: what each type refers to (`btf_check_all_types`).
//!
//! A depth-first search with a stack of [`MAX_DEPTH`] types. A pointer ends the search for a
//! struct that holds it, else no list could be described; a pointer resolved on its own goes
//! on through pointers and modifiers only, and finds the loops that are left.

use super::Btf;
use super::kind::{IntData, Kind, Type};
use super::member;
use crate::{Errno, Error, Result};

/// Most types on the way from one to what it resolves to (`MAX_RESOLVE_DEPTH`).
pub const MAX_DEPTH: usize = 32;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Visit {
    Not,
    /// On the stack.
    Visited,
    Resolved,
}

/// What ends the search (`enum resolve_mode`).
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Undecided,
    Pointer,
    StructOrArray,
}

#[derive(Clone, Copy)]
struct Vertex {
    id: u32,
    /// The member or variable to go on with.
    next_member: u32,
}

/// What a visit of the type on top of the stack came to.
enum Step {
    /// The type is on the stack above it.
    Push(u32),
    /// It is resolved to this id and size.
    Done(u32, u32),
}

struct Resolver<'a> {
    btf: &'a mut Btf,
    visits: Vec<Visit>,
    stack: Vec<Vertex>,
    mode: Mode,
}

/// Resolves every type.
pub(super) fn resolve_all(btf: &mut Btf) -> Result<()> {
    let count = btf.types.len();
    btf.resolved = vec![(0, 0); count];
    let mut resolver = Resolver {
        btf,
        visits: vec![Visit::Not; count],
        stack: Vec::with_capacity(MAX_DEPTH),
        mode: Mode::Undecided,
    };
    for id in 1..count as u32 {
        let ty = resolver.btf.types[id as usize];
        if ty.kind.needs_resolve() && !resolver.is_resolved(id) {
            resolver.resolve(id, &ty)?;
        }
        if ty.kind == Kind::FuncProto {
            resolver.func_proto(id, &ty)?;
        }
    }
    Ok(())
}

impl Resolver<'_> {
    fn refuse(&self, id: u32, ty: &Type, what: impl std::fmt::Display) -> Error {
        self.btf.refuse(Errno::EINVAL, id, ty, what)
    }

    /// `env_type_is_resolved`; void never is.
    fn is_resolved(&self, id: u32) -> bool {
        self.visits.get(id as usize) == Some(&Visit::Resolved)
    }

    /// `env_type_is_resolve_sink`: the search does not go into a type of this kind.
    fn is_sink(&self, kind: Kind) -> bool {
        match self.mode {
            Mode::Undecided => !kind.needs_resolve(),
            Mode::Pointer => !kind.is_modifier() && kind != Kind::Ptr,
            Mode::StructOrArray => {
                !kind.is_modifier() && kind != Kind::Array && !kind.is_composite()
            }
        }
    }

    fn must_push(&self, id: u32, kind: Kind) -> bool {
        !self.is_sink(kind) && !self.is_resolved(id)
    }

    /// `env_stack_push`.
    fn push(&mut self, id: u32, root: u32) -> Result<()> {
        let root_type = self.btf.types[root as usize];
        if self.stack.len() == MAX_DEPTH {
            return Err(self.btf.refuse(
                Errno::E2BIG,
                root,
                &root_type,
                format_args!("it needs more than {MAX_DEPTH} steps to resolve"),
            ));
        }
        let visit = &mut self.visits[id as usize];
        if *visit != Visit::Not {
            return Err(self.btf.refuse(
                Errno::EEXIST,
                root,
                &root_type,
                format_args!("type {id} is part of a loop"),
            ));
        }
        *visit = Visit::Visited;
        self.stack.push(Vertex { id, next_member: 0 });
        if self.mode == Mode::Undecided {
            match self.btf.types[id as usize].kind {
                Kind::Ptr => self.mode = Mode::Pointer,
                Kind::Struct | Kind::Union | Kind::Array => self.mode = Mode::StructOrArray,
                _ => {}
            }
        }
        Ok(())
    }

    /// `btf_resolve`.
    fn resolve(&mut self, id: u32, ty: &Type) -> Result<()> {
        self.mode = Mode::Undecided;
        self.push(id, id)?;
        while let Some(&vertex) = self.stack.last() {
            match self.step(vertex)? {
                Step::Push(next) => self.push(next, id)?,
                Step::Done(resolved_id, size) => {
                    self.stack.pop();
                    self.btf.resolved[vertex.id as usize] = (resolved_id, size);
                    self.visits[vertex.id as usize] = Visit::Resolved;
                }
            }
        }
        if !self.is_valid(id, ty) {
            return Err(self.refuse(id, ty, "it does not resolve to a type it may refer to"));
        }
        Ok(())
    }

    /// `btf_resolve_valid`, for a type that has just been resolved.
    fn is_valid(&self, id: u32, ty: &Type) -> bool {
        let (resolved_id, size) = self.btf.resolved[id as usize];
        match ty.kind {
            Kind::Struct | Kind::Union | Kind::Datasec => resolved_id == 0 && size == 0,
            Kind::DeclTag | Kind::Func => resolved_id != 0 && size == 0,
            Kind::Ptr | Kind::Var => self.is_end(resolved_id),
            kind if kind.is_modifier() => self.is_end(resolved_id),
            Kind::Array => {
                let element = self.btf.tail_word(ty, 0);
                self.btf
                    .type_id_size(element)
                    .is_some_and(|(element, each)| {
                        !self.btf.kind(element).is_modifier()
                            && self.btf.tail_word(ty, 2).wrapping_mul(each) == size
                    })
            }
            _ => false,
        }
    }

    fn is_end(&self, id: u32) -> bool {
        self.btf.types.get(id as usize).is_some_and(|ty| {
            !ty.kind.is_modifier() && !matches!(ty.kind, Kind::Var | Kind::Datasec)
        })
    }

    fn step(&mut self, vertex: Vertex) -> Result<Step> {
        let ty = self.btf.types[vertex.id as usize];
        match ty.kind {
            Kind::Ptr => self.pointer(vertex.id, &ty),
            Kind::Array => self.array(vertex.id, &ty),
            Kind::Struct | Kind::Union => self.composite(vertex, &ty),
            Kind::Var => self.var(vertex.id, &ty),
            Kind::Datasec => self.datasec(vertex, &ty),
            Kind::DeclTag => self.decl_tag(vertex.id, &ty),
            Kind::Func => self.func(vertex.id, &ty),
            kind if kind.is_modifier() => self.modifier(vertex.id, &ty),
            kind => Err(self.refuse(
                vertex.id,
                &ty,
                format_args!("{} refers to none", kind.name()),
            )),
        }
    }

    /// The type that `ty` refers to, if a type may be referred to at all.
    fn target(&self, id: u32, ty: &Type) -> Result<Type> {
        match self.btf.types.get(ty.word as usize) {
            Some(target) if !target.kind.is_source_only() => Ok(*target),
            Some(target) => Err(self.refuse(
                id,
                ty,
                format_args!("it refers to type {}, a {}", ty.word, target.kind.name()),
            )),
            None => Err(self.refuse(
                id,
                ty,
                format_args!(
                    "it refers to type {} of {}",
                    ty.word,
                    self.btf.types.len() - 1
                ),
            )),
        }
    }

    /// What a pointer or modifier resolves to where its target has no size: void, a forward
    /// declaration or a prototype, nothing else.
    fn unsized_target(&self, id: u32, ty: &Type, target: &Type) -> Result<u32> {
        let (end, kind) = if self.is_resolved(ty.word) {
            let end = self.btf.resolved[ty.word as usize].0;
            (end, self.btf.kind(end))
        } else {
            (ty.word, target.kind)
        };
        if matches!(kind, Kind::Void | Kind::Fwd | Kind::FuncProto) {
            return Ok(end);
        }
        Err(self.refuse(
            id,
            ty,
            format_args!("it refers to type {end}, a {} without size", kind.name()),
        ))
    }

    /// A modifier that was resolved on the way through a struct may have stopped at a pointer,
    /// from which the search has to go on.
    fn pointer_behind(&self, id: u32, kind: Kind) -> Option<u32> {
        if !kind.is_modifier() {
            return None;
        }
        let end = self.btf.resolved[id as usize].0;
        let kind = self.btf.kind(end);
        (kind == Kind::Ptr && self.must_push(end, kind)).then_some(end)
    }

    fn modifier(&self, id: u32, ty: &Type) -> Result<Step> {
        let target = self.target(id, ty)?;
        if self.must_push(ty.word, target.kind) {
            return Ok(Step::Push(ty.word));
        }
        let end = match self.btf.type_id_size(ty.word) {
            Some((end, _)) => end,
            None => self.unsized_target(id, ty, &target)?,
        };
        Ok(Step::Done(end, 0))
    }

    fn pointer(&self, id: u32, ty: &Type) -> Result<Step> {
        let target = self.target(id, ty)?;
        if self.must_push(ty.word, target.kind) {
            return Ok(Step::Push(ty.word));
        }
        if let Some(next) = self.pointer_behind(ty.word, target.kind) {
            return Ok(Step::Push(next));
        }
        let end = match self.btf.type_id_size(ty.word) {
            Some((end, _)) => end,
            None => self.unsized_target(id, ty, &target)?,
        };
        Ok(Step::Done(end, 0))
    }

    fn var(&self, id: u32, ty: &Type) -> Result<Step> {
        let target = self.target(id, ty)?;
        if self.must_push(ty.word, target.kind) {
            return Ok(Step::Push(ty.word));
        }
        if let Some(next) = self.pointer_behind(ty.word, target.kind) {
            return Ok(Step::Push(next));
        }
        match self.btf.type_id_size(ty.word) {
            Some((end, _)) => Ok(Step::Done(end, 0)),
            None => Err(self.refuse(id, ty, format_args!("type {} has no size", ty.word))),
        }
    }

    /// Checks that an array's element or index type, or a member's, can be one.
    fn part(&self, id: u32, ty: &Type, what: std::fmt::Arguments<'_>, part: u32) -> Result<Kind> {
        match self.btf.types.get(part as usize) {
            Some(found) if !found.kind.is_unsized() && !found.kind.is_source_only() => {
                Ok(found.kind)
            }
            Some(found) => Err(self.refuse(
                id,
                ty,
                format_args!("{what} is type {part}, a {}", found.kind.name()),
            )),
            None => Err(self.refuse(
                id,
                ty,
                format_args!("{what} is type {part} of {}", self.btf.types.len() - 1),
            )),
        }
    }

    fn array(&self, id: u32, ty: &Type) -> Result<Step> {
        let (element, index, count) = (
            self.btf.tail_word(ty, 0),
            self.btf.tail_word(ty, 1),
            self.btf.tail_word(ty, 2),
        );
        let kind = self.part(id, ty, format_args!("its index"), index)?;
        if self.must_push(index, kind) {
            return Ok(Step::Push(index));
        }
        let is_integer = self
            .btf
            .type_id_size(index)
            .and_then(|(end, _)| self.btf.int_data(end))
            .is_some_and(IntData::is_regular);
        if !is_integer {
            return Err(self.refuse(
                id,
                ty,
                format_args!(
                    "its index, type {index}, is not an integer of 1, 2, 4, 8 or 16 bytes"
                ),
            ));
        }
        let kind = self.part(id, ty, format_args!("its element"), element)?;
        if self.must_push(element, kind) {
            return Ok(Step::Push(element));
        }
        let Some((end, each)) = self.btf.type_id_size(element) else {
            return Err(self.refuse(
                id,
                ty,
                format_args!("its element, type {element}, has no size"),
            ));
        };
        if self.btf.int_data(end).is_some_and(|int| !int.is_regular()) {
            return Err(self.refuse(
                id,
                ty,
                format_args!("its element, type {end}, is a bit field"),
            ));
        }
        match each.checked_mul(count) {
            Some(size) => Ok(Step::Done(end, size)),
            None => Err(self.refuse(
                id,
                ty,
                format_args!("{count} elements of {each} bytes exceed 4 GiB"),
            )),
        }
    }

    fn composite(&mut self, vertex: Vertex, ty: &Type) -> Result<Step> {
        let id = vertex.id;
        // The member that was pushed last has been resolved since.
        let mut resolved_member = vertex.next_member.checked_sub(1);
        for i in resolved_member.unwrap_or(0)..ty.vlen() {
            let raw = self.btf.raw_member(ty, i);
            if resolved_member.take().is_none() {
                let kind = self.part(id, ty, format_args!("member {i}"), raw.type_id)?;
                if self.must_push(raw.type_id, kind) {
                    if let Some(top) = self.stack.last_mut() {
                        top.next_member = i + 1;
                    }
                    return Ok(Step::Push(raw.type_id));
                }
            }
            if let Err(what) = member::check(self.btf, ty, raw) {
                return Err(self.refuse(id, ty, format_args!("member {i}: {what}")));
            }
        }
        Ok(Step::Done(0, 0))
    }

    fn datasec(&mut self, vertex: Vertex, ty: &Type) -> Result<Step> {
        self.mode = Mode::Undecided;
        for i in vertex.next_member..ty.vlen() {
            let raw = self.btf.raw_section_var(ty, i);
            let refuse = |what: std::fmt::Arguments<'_>| {
                Err(self.refuse(vertex.id, ty, format_args!("variable {i}: {what}")))
            };
            let var = match self.btf.types.get(raw.type_id as usize) {
                Some(var) if var.kind == Kind::Var => *var,
                found => {
                    return refuse(format_args!(
                        "type {} is {}, not a VAR",
                        raw.type_id,
                        found.map_or("not there", |ty| ty.kind.name())
                    ));
                }
            };
            if self.must_push(raw.type_id, var.kind) {
                // As in the kernel: the size of a variable that was not resolved before the
                // section is not looked at again.
                if let Some(top) = self.stack.last_mut() {
                    top.next_member = i + 1;
                }
                return Ok(Step::Push(raw.type_id));
            }
            let Some((_, size)) = self.btf.type_id_size(var.word) else {
                return refuse(format_args!("its type {} has no size", var.word));
            };
            if raw.size < size {
                return refuse(format_args!(
                    "size {} is less than its type's {size}",
                    raw.size
                ));
            }
        }
        Ok(Step::Done(0, 0))
    }

    fn decl_tag(&self, id: u32, ty: &Type) -> Result<Step> {
        let target = match self.btf.types.get(ty.word as usize) {
            Some(target)
                if target.kind.is_composite()
                    || matches!(target.kind, Kind::Func | Kind::Var | Kind::Typedef) =>
            {
                *target
            }
            found => {
                return Err(self.refuse(
                    id,
                    ty,
                    format_args!(
                        "it tags type {}, {}",
                        ty.word,
                        found.map_or("which is not there", |ty| ty.kind.name())
                    ),
                ));
            }
        };
        if self.must_push(ty.word, target.kind) {
            return Ok(Step::Push(ty.word));
        }
        let index = self.btf.tail_word(ty, 0);
        if index != u32::MAX {
            let components = match target.kind {
                Kind::Var | Kind::Typedef => 0,
                Kind::Func => self
                    .btf
                    .types
                    .get(target.word as usize)
                    .map_or(0, Type::vlen),
                _ => target.vlen(),
            };
            if index >= components {
                return Err(self.refuse(
                    id,
                    ty,
                    format_args!(
                        "component_idx {index} of a {} with {components} components",
                        target.kind.name()
                    ),
                ));
            }
        }
        Ok(Step::Done(ty.word, 0))
    }

    fn func(&self, id: u32, ty: &Type) -> Result<Step> {
        let proto = match self.btf.types.get(ty.word as usize) {
            Some(proto) if proto.kind == Kind::FuncProto => proto,
            found => {
                return Err(self.refuse(
                    id,
                    ty,
                    format_args!(
                        "type {} is {}, not a FUNC_PROTO",
                        ty.word,
                        found.map_or("not there", |ty| ty.kind.name())
                    ),
                ));
            }
        };
        for i in 0..proto.vlen() as usize {
            let (name_off, type_id) = (
                self.btf.tail_word(proto, i * 2),
                self.btf.tail_word(proto, i * 2 + 1),
            );
            if name_off == 0 && type_id != 0 {
                return Err(self.refuse(id, ty, format_args!("argument {} has no name", i + 1)));
            }
        }
        Ok(Step::Done(ty.word, 0))
    }

    /// `btf_func_proto_check`: prototypes are checked on their own, not resolved.
    fn func_proto(&mut self, id: u32, ty: &Type) -> Result<()> {
        if ty.word != 0 {
            self.value_type(id, ty, format_args!("its return value"), ty.word)?;
        }
        let mut count = ty.vlen() as usize;
        // A last argument of type 0 stands for variable arguments.
        if let Some(last) = count.checked_sub(1)
            && self.btf.tail_word(ty, last * 2 + 1) == 0
        {
            if self.btf.tail_word(ty, last * 2) != 0 {
                return Err(self.refuse(
                    id,
                    ty,
                    format_args!("argument {count} has a name and no type"),
                ));
            }
            count = last;
        }
        for i in 0..count {
            let name_off = self.btf.tail_word(ty, i * 2);
            let valid = name_off == 0
                || (self.btf.has_name(name_off)
                    && super::meta::is_identifier(self.btf.identifier(name_off)));
            if !valid {
                return Err(self.refuse(
                    id,
                    ty,
                    format_args!("argument {}: its name is not an identifier", i + 1),
                ));
            }
            let type_id = self.btf.tail_word(ty, i * 2 + 1);
            self.value_type(id, ty, format_args!("argument {}", i + 1), type_id)?;
        }
        Ok(())
    }

    fn value_type(
        &mut self,
        id: u32,
        ty: &Type,
        what: std::fmt::Arguments<'_>,
        type_id: u32,
    ) -> Result<()> {
        let found = match self.btf.types.get(type_id as usize) {
            Some(found) if !found.kind.is_source_only() => *found,
            found => {
                return Err(self.refuse(
                    id,
                    ty,
                    format_args!(
                        "{what} is of type {type_id}, {}",
                        found.map_or("which is not there", |ty| ty.kind.name())
                    ),
                ));
            }
        };
        if found.kind.needs_resolve() && !self.is_resolved(type_id) {
            self.resolve(type_id, &found)?;
        }
        if self.btf.type_id_size(type_id).is_none() {
            return Err(self.refuse(
                id,
                ty,
                format_args!("{what} is of type {type_id}, which has no size"),
            ));
        }
        Ok(())
    }
}

/// `btf_check_type_tags`: type tags come before all other modifiers of a chain, and no chain
/// is longer than [`MAX_DEPTH`].
pub(super) fn check_type_tags(btf: &Btf) -> Result<()> {
    let mut good = 0;
    for (id, ty) in (0_u32..).zip(&btf.types).skip(1) {
        if !ty.kind.is_modifier() {
            continue;
        }
        let mut in_tags = ty.kind == Kind::TypeTag;
        let (mut at, mut at_type) = (id, ty);
        for step in 0.. {
            if !at_type.kind.is_modifier() {
                break;
            }
            if step == MAX_DEPTH {
                return Err(btf.refuse(
                    Errno::ELOOP,
                    id,
                    ty,
                    format_args!("more than {MAX_DEPTH} modifiers follow each other"),
                ));
            }
            if at_type.kind != Kind::TypeTag {
                in_tags = false;
            } else if !in_tags {
                return Err(btf.refuse(
                    Errno::EINVAL,
                    id,
                    ty,
                    format_args!("type tag {at} comes after another modifier"),
                ));
            }
            if at <= good {
                break;
            }
            at = at_type.word;
            let Some(next) = btf.types.get(at as usize) else {
                return Err(btf.refuse(
                    Errno::EINVAL,
                    id,
                    ty,
                    format_args!("type {at} is not there"),
                ));
            };
            at_type = next;
        }
        good = id;
    }
    Ok(())
}
