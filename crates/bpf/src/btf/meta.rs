//! The first pass: each type on its own (`btf_check_meta` and the kinds' `check_meta`).

use super::header::MAX_NAME_OFFSET;
use super::kind::{IntData, Kind, Type};
use super::{Btf, u32_at};
use crate::{Errno, Error, Result};

/// Largest type id (`BTF_MAX_TYPE`).
pub(super) const MAX_TYPE: u32 = 0x000f_ffff;
/// Longest name, in bytes without its NUL (`KSYM_NAME_LEN`).
pub const MAX_NAME_BYTES: usize = 512;

/// Bits of `info` that mean something (`BTF_INFO_MASK`).
const INFO_MASK: u32 = 0x9f00_ffff;
const INT_MASK: u32 = 0x0fff_ffff;
const MAX_INT_BITS: u32 = 128;

/// `isalpha` of the kernel (`lib/ctype.c`), whose table is ISO 8859-1.
const fn is_alpha(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || (byte >= 0xc0 && byte != 0xd7 && byte != 0xf7)
}

const fn is_name_byte(byte: u8, first: bool) -> bool {
    is_alpha(byte) || (!first && byte.is_ascii_digit()) || byte == b'_' || byte == b'.'
}

/// `isprint` of the kernel.
const fn is_print(byte: u8) -> bool {
    matches!(byte, 0x20..=0x7e | 0xa0..)
}

/// `btf_name_valid_identifier`.
pub(super) fn is_identifier(name: &[u8]) -> bool {
    name.len() <= MAX_NAME_BYTES
        && name.first().is_some_and(|&first| is_name_byte(first, true))
        && name.iter().all(|&byte| is_name_byte(byte, false))
}

/// `btf_name_valid_section`.
fn is_section_name(name: &[u8]) -> bool {
    !name.is_empty() && name.len() <= MAX_NAME_BYTES && name.iter().all(|&byte| is_print(byte))
}

/// Checks and enters all types of the type section.
pub(super) fn check_all(btf: &mut Btf, types: std::ops::Range<usize>) -> Result<()> {
    // Types are at least 12 bytes.
    btf.types.reserve((types.len() / 12).min(MAX_TYPE as usize));
    let mut at = types.start;
    let mut id = 1;
    while at < types.end {
        let ty = head(btf, id, at, types.end)?;
        let check = Meta {
            btf,
            id,
            ty: &ty,
            left: types.end - ty.tail as usize,
        };
        at = ty.tail as usize + check.run()?;
        // The kernel drops what `btf_add_type` answers: types beyond the last id are checked,
        // and are then as if they were not there.
        if btf.types.len() < MAX_TYPE as usize {
            btf.types.push(ty);
        }
        id += 1;
    }
    Ok(())
}

fn head(btf: &Btf, id: u32, at: usize, end: usize) -> Result<Type> {
    let refuse = |what: String| Error::because(Errno::EINVAL, format!("BTF type {id}: {what}"));
    let word = |index: usize| u32_at(&btf.raw[..end], at + index * 4);
    let (Some(name_off), Some(info), Some(word)) = (word(0), word(1), word(2)) else {
        return Err(refuse(format!(
            "{} bytes are left of the 12 of its head",
            end - at
        )));
    };
    if info & !INFO_MASK != 0 {
        return Err(refuse(format!("info {info:#010x} has unknown bits")));
    }
    let number = info >> 24 & 0x1f;
    let kind = Kind::of_type(number).ok_or_else(|| refuse(format!("kind {number} is unknown")))?;
    if !btf.has_name(name_off) {
        return Err(refuse(format!(
            "name_off {name_off} lies outside the {} bytes of strings",
            btf.strings.len()
        )));
    }
    Ok(Type {
        kind,
        info,
        name_off,
        word,
        // A blob has at most 16 MiB.
        tail: (at + 12) as u32,
    })
}

/// One type under check, with the bytes that are left after its head.
struct Meta<'a> {
    btf: &'a Btf,
    id: u32,
    ty: &'a Type,
    left: usize,
}

impl Meta<'_> {
    fn refuse(&self, what: impl std::fmt::Display) -> Error {
        self.btf.refuse(Errno::EINVAL, self.id, self.ty, what)
    }

    /// Returns the bytes after the head.
    fn run(&self) -> Result<usize> {
        let (fixed, each) = self.ty.kind.tail_bytes();
        let needed = fixed + each * self.ty.vlen() as usize;
        if self.left < needed {
            return Err(self.refuse(format_args!(
                "{} bytes are left of the {needed} after its head",
                self.left
            )));
        }
        match self.ty.kind {
            Kind::Int => self.int(),
            Kind::Array => self.array(),
            Kind::Struct | Kind::Union => self.composite(),
            Kind::Enum => self.enumeration(2),
            Kind::Enum64 => self.enumeration(3),
            Kind::Fwd => self.fwd(),
            Kind::Func => self.func(),
            Kind::FuncProto => self.func_proto(),
            Kind::Var => self.var(),
            Kind::Datasec => self.datasec(),
            Kind::Float => self.float(),
            Kind::DeclTag => self.decl_tag(),
            Kind::Void
            | Kind::Ptr
            | Kind::Typedef
            | Kind::Volatile
            | Kind::Const
            | Kind::Restrict
            | Kind::TypeTag => self.reference(),
        }?;
        Ok(needed)
    }

    fn tail(&self, index: usize) -> u32 {
        self.btf.tail_word(self.ty, index)
    }

    fn no_vlen(&self) -> Result<()> {
        match self.ty.vlen() {
            0 => Ok(()),
            vlen => Err(self.refuse(format_args!("vlen {vlen} is not 0"))),
        }
    }

    fn no_kflag(&self) -> Result<()> {
        if self.ty.kflag() {
            return Err(self.refuse("kind_flag is set"));
        }
        Ok(())
    }

    fn no_name(&self) -> Result<()> {
        match self.ty.name_off {
            0 => Ok(()),
            off => Err(self.refuse(format_args!("it has a name (name_off {off})"))),
        }
    }

    fn identifier(&self) -> Result<()> {
        if self.ty.name_off == 0 || !is_identifier(self.btf.identifier(self.ty.name_off)) {
            return Err(self.refuse("its name is not an identifier of 1 to 512 bytes"));
        }
        Ok(())
    }

    fn identifier_or_none(&self) -> Result<()> {
        if self.ty.name_off == 0 {
            return Ok(());
        }
        self.identifier()
    }

    fn type_id(&self, what: &str, id: u32, void: bool) -> Result<()> {
        if id > MAX_TYPE {
            return Err(self.refuse(format_args!("{what} {id} exceeds {MAX_TYPE}")));
        }
        if id == 0 && !void {
            return Err(self.refuse(format_args!("{what} is 0, void")));
        }
        Ok(())
    }

    fn int(&self) -> Result<()> {
        self.no_vlen()?;
        self.no_kflag()?;
        let data = IntData(self.tail(0));
        if data.0 & !INT_MASK != 0 {
            return Err(self.refuse(format_args!("int data {:#010x} has unknown bits", data.0)));
        }
        let bits = data.bits() + data.offset();
        if bits > MAX_INT_BITS {
            return Err(self.refuse(format_args!(
                "{} bits at offset {} exceed {MAX_INT_BITS}",
                data.bits(),
                data.offset()
            )));
        }
        if bits.div_ceil(8) > self.ty.word {
            return Err(self.refuse(format_args!(
                "{} bits at offset {} exceed its size {}",
                data.bits(),
                data.offset(),
                self.ty.word
            )));
        }
        // Signed, char and bool exclude each other.
        if !matches!(data.encoding(), 0 | 1 | 2 | 4) {
            return Err(self.btf.refuse(
                Errno::ENOTSUPP,
                self.id,
                self.ty,
                format_args!("encoding {} is not one of 0, 1, 2 and 4", data.encoding()),
            ));
        }
        Ok(())
    }

    fn reference(&self) -> Result<()> {
        self.no_vlen()?;
        if self.ty.kind != Kind::TypeTag {
            self.no_kflag()?;
        }
        self.type_id("type", self.ty.word, true)?;
        match self.ty.kind {
            Kind::Typedef => self.identifier(),
            Kind::TypeTag => self.value(),
            _ => self.no_name(),
        }
    }

    fn value(&self) -> Result<()> {
        if self.btf.is_named(self.ty.name_off, b"") {
            return Err(self.refuse("its value is empty"));
        }
        Ok(())
    }

    fn array(&self) -> Result<()> {
        self.no_name()?;
        self.no_vlen()?;
        self.no_kflag()?;
        if self.ty.word != 0 {
            return Err(self.refuse(format_args!("size {} is not 0", self.ty.word)));
        }
        self.type_id("element type", self.tail(0), false)?;
        self.type_id("index type", self.tail(1), false)
    }

    fn composite(&self) -> Result<()> {
        self.identifier_or_none()?;
        let kflag = self.ty.kflag();
        let mut last = 0;
        for (i, member) in self.btf.raw_members(self.ty).enumerate() {
            let refuse = |what: std::fmt::Arguments<'_>| {
                Err(self.refuse(format_args!("member {i}: {what}")))
            };
            if !self.btf.has_name(member.name_off) {
                return refuse(format_args!(
                    "name_off {} lies outside the strings",
                    member.name_off
                ));
            }
            if member.name_off != 0 && !is_identifier(self.btf.identifier(member.name_off)) {
                return refuse(format_args!("its name is not an identifier"));
            }
            if member.type_id == 0 || member.type_id > MAX_TYPE {
                return refuse(format_args!(
                    "type {} is not from 1 to {MAX_TYPE}",
                    member.type_id
                ));
            }
            let offset = member.bit_offset(kflag);
            if self.ty.kind == Kind::Union && offset != 0 {
                return refuse(format_args!("bit offset {offset} in a union is not 0"));
            }
            if last > offset {
                return refuse(format_args!(
                    "bit offset {offset} lies before the last member's, {last}"
                ));
            }
            if offset.div_ceil(8) > self.ty.word {
                return refuse(format_args!(
                    "bit offset {offset} lies outside the struct's {} bytes",
                    self.ty.word
                ));
            }
            last = offset;
        }
        Ok(())
    }

    fn enumeration(&self, words: usize) -> Result<()> {
        if self.ty.word > 8 || !self.ty.word.is_power_of_two() {
            return Err(self.refuse(format_args!(
                "size {} is not one of 1, 2, 4 and 8",
                self.ty.word
            )));
        }
        self.identifier_or_none()?;
        for i in 0..self.ty.vlen() as usize {
            let name_off = self.tail(i * words);
            if !self.btf.has_name(name_off) {
                return Err(self.refuse(format_args!(
                    "value {i}: name_off {name_off} lies outside the strings"
                )));
            }
            if name_off == 0 || !is_identifier(self.btf.identifier(name_off)) {
                return Err(self.refuse(format_args!("value {i}: its name is not an identifier")));
            }
        }
        Ok(())
    }

    fn fwd(&self) -> Result<()> {
        self.no_vlen()?;
        if self.ty.word != 0 {
            return Err(self.refuse(format_args!("type {} is not 0", self.ty.word)));
        }
        self.identifier()
    }

    fn func(&self) -> Result<()> {
        self.identifier()?;
        if self.ty.vlen() > 1 {
            return Err(self.refuse(format_args!(
                "linkage {} is neither static (0) nor global (1)",
                self.ty.vlen()
            )));
        }
        self.no_kflag()
    }

    fn func_proto(&self) -> Result<()> {
        self.no_name()?;
        self.no_kflag()
    }

    fn var(&self) -> Result<()> {
        self.no_vlen()?;
        self.no_kflag()?;
        self.identifier()?;
        self.type_id("type", self.ty.word, false)?;
        match self.tail(0) {
            0 | 1 => Ok(()),
            linkage => Err(self.refuse(format_args!(
                "linkage {linkage} is neither static (0) nor global (1)"
            ))),
        }
    }

    fn datasec(&self) -> Result<()> {
        let size = self.ty.word;
        if size == 0 {
            return Err(self.refuse("size is 0"));
        }
        self.no_kflag()?;
        if self.ty.name_off == 0 || !is_section_name(self.btf.identifier(self.ty.name_off)) {
            return Err(self.refuse("its name is not 1 to 512 printable bytes"));
        }
        let mut end = 0;
        for (i, var) in self.btf.raw_section(self.ty).enumerate() {
            let refuse = |what: std::fmt::Arguments<'_>| {
                Err(self.refuse(format_args!("variable {i}: {what}")))
            };
            if var.type_id == 0 || var.type_id > MAX_TYPE {
                return refuse(format_args!(
                    "type {} is not from 1 to {MAX_TYPE}",
                    var.type_id
                ));
            }
            if var.offset < end || var.offset >= size {
                return refuse(format_args!(
                    "offset {} is not from {end}, where the last one ends, to below the section's \
                     size {size}",
                    var.offset
                ));
            }
            if var.size == 0 || var.size > size {
                return refuse(format_args!("size {} is not from 1 to {size}", var.size));
            }
            // The kernel adds in 32 bits; what wraps there is smaller than the size, so only
            // the next variable could tell, and `offset >= end` would let it through.
            end = var.offset.wrapping_add(var.size);
            if end > size {
                return refuse(format_args!("it ends at {end}, after the section's {size}"));
            }
        }
        let sum: u64 = self
            .btf
            .raw_section(self.ty)
            .map(|v| u64::from(v.size))
            .sum();
        if u64::from(size) < sum {
            return Err(self.refuse(format_args!("its variables need {sum} bytes of its {size}")));
        }
        Ok(())
    }

    fn float(&self) -> Result<()> {
        self.no_vlen()?;
        self.no_kflag()?;
        match self.ty.word {
            2 | 4 | 8 | 12 | 16 => Ok(()),
            size => Err(self.refuse(format_args!("size {size} is not one of 2, 4, 8, 12 and 16"))),
        }
    }

    fn decl_tag(&self) -> Result<()> {
        self.value()?;
        self.no_vlen()?;
        match self.tail(0) as i32 {
            -1.. => Ok(()),
            index => Err(self.refuse(format_args!("component_idx {index} is less than -1"))),
        }
    }
}

impl Btf {
    /// `btf_name_offset_valid`.
    pub(super) fn has_name(&self, offset: u32) -> bool {
        offset <= MAX_NAME_OFFSET && (offset as usize) < self.strings.len()
    }
}
