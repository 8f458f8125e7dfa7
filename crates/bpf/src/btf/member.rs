//! Whether a member lies inside its struct (the kinds' `check_member` and
//! `check_kflag_member`).

use super::Btf;
use super::kind::{IntData, Kind, RawMember, Type};

const POINTER_BYTES: u32 = 8;
const MAX_COPY_BITS: u32 = 128;

/// Checks `member` of `container`; the error says what is wrong with it.
pub(super) fn check(btf: &Btf, container: &Type, member: RawMember) -> Result<(), String> {
    // Modifiers resolve to what they rename.
    let mut id = member.type_id;
    if btf.kind(id).is_modifier() {
        id = btf
            .type_id_size(id)
            .ok_or_else(|| format!("type {id} has no size"))?
            .0;
    }
    let Some(ty) = btf.types.get(id as usize) else {
        return Err(format!("type {id} is not there"));
    };
    let place = Place { container, member };
    let kflag = container.kflag();
    match ty.kind {
        Kind::Int => {
            let int = IntData(btf.tail_word(ty, 0));
            if kflag {
                place.bit_field_int(int)
            } else {
                place.int(int)
            }
        }
        Kind::Enum | Kind::Enum64 if kflag => place.bit_field_enum(),
        _ if kflag && member.bitfield_size() != 0 => Err(format!(
            "a {} cannot be a bit field of {} bits",
            ty.kind.name(),
            member.bitfield_size()
        )),
        Kind::Enum | Kind::Enum64 | Kind::Struct | Kind::Union => place.bytes(ty.word),
        Kind::Ptr => place.bytes(POINTER_BYTES),
        Kind::Array => place.bytes(btf.type_id_size(id).map_or(0, |(_, size)| size)),
        Kind::Float => place.float(ty.word),
        kind => Err(format!("a {} cannot be a member", kind.name())),
    }
}

struct Place<'a> {
    container: &'a Type,
    member: RawMember,
}

impl Place<'_> {
    fn exceeds(&self, bits: u32, offset: u32) -> String {
        format!(
            "{bits} bits at bit offset {offset} exceed the {} bytes of the {}",
            self.container.word,
            self.container.kind.name()
        )
    }

    /// Whole bytes at a whole byte.
    fn bytes(&self, size: u32) -> Result<(), String> {
        let offset = self.member.offset;
        if !offset.is_multiple_of(8) {
            return Err(format!("bit offset {offset} is not a multiple of 8"));
        }
        // The first pass has made sure that it starts inside; the kernel subtracts likewise.
        if self.container.word.wrapping_sub(offset / 8) < size {
            return Err(format!(
                "{size} bytes at {} exceed the {} bytes of the {}",
                offset / 8,
                self.container.word,
                self.container.kind.name()
            ));
        }
        Ok(())
    }

    /// `btf_int_check_member`: an INT may have a bit offset of its own.
    fn int(&self, int: IntData) -> Result<(), String> {
        let Some(offset) = self.member.offset.checked_add(int.offset()) else {
            return Err(format!(
                "bit offset {} and the type's {} exceed 32 bits",
                self.member.offset,
                int.offset()
            ));
        };
        self.copied(offset, int.bits())
    }

    /// `btf_int_check_kflag_member`.
    fn bit_field_int(&self, int: IntData) -> Result<(), String> {
        if !int.is_regular() {
            return Err("a bit field of a type that is one itself".to_owned());
        }
        let offset = self.member.bit_offset(true);
        let bits = match self.member.bitfield_size() {
            0 if !offset.is_multiple_of(8) => {
                return Err(format!("bit offset {offset} is not a multiple of 8"));
            }
            0 => int.bits(),
            bits if bits > int.bits() => {
                return Err(format!(
                    "a bit field of {bits} bits exceeds its type's {}",
                    int.bits()
                ));
            }
            bits => bits,
        };
        self.copied(offset, bits)
    }

    /// Bits that are read as whole bytes, 16 of them at most.
    fn copied(&self, offset: u32, bits: u32) -> Result<(), String> {
        let copied = bits + offset % 8;
        if copied > MAX_COPY_BITS {
            return Err(format!(
                "{bits} bits at bit offset {offset} touch more than {} bytes",
                MAX_COPY_BITS / 8
            ));
        }
        match self.container.word.checked_sub(offset / 8) {
            Some(left) if left >= copied.div_ceil(8) => Ok(()),
            _ => Err(self.exceeds(bits, offset)),
        }
    }

    /// `btf_enum_check_kflag_member`: an enum counts as 32 bits there, whatever its size.
    fn bit_field_enum(&self) -> Result<(), String> {
        const INT_BITS: u32 = 32;
        let offset = self.member.bit_offset(true);
        let bits = match self.member.bitfield_size() {
            0 if !offset.is_multiple_of(8) => {
                return Err(format!("bit offset {offset} is not a multiple of 8"));
            }
            0 => INT_BITS,
            bits if bits > INT_BITS => {
                return Err(format!("an enum bit field of {bits} bits exceeds 32"));
            }
            bits => bits,
        };
        if self.container.word < (offset + bits).div_ceil(8) {
            return Err(self.exceeds(bits, offset));
        }
        Ok(())
    }

    /// `btf_float_check_member`.
    fn float(&self, size: u32) -> Result<(), String> {
        let (offset, align) = (self.member.offset, size.min(POINTER_BYTES));
        if !offset.is_multiple_of(align * 8) {
            return Err(format!(
                "bit offset {offset} is not aligned to {align} bytes"
            ));
        }
        if u64::from(offset / 8) + u64::from(size) > u64::from(self.container.word) {
            return Err(self.exceeds(size * 8, offset));
        }
        Ok(())
    }
}
