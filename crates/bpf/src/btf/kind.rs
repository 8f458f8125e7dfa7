//! The kinds of BTF types, and the head that every type starts with.

/// `BTF_KIND_*` (`include/uapi/linux/btf.h`), numbered as in the format.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(u8)]
#[expect(missing_docs, reason = "the names are the format's")]
pub enum Kind {
    Void = 0,
    Int = 1,
    Ptr = 2,
    Array = 3,
    Struct = 4,
    Union = 5,
    Enum = 6,
    Fwd = 7,
    Typedef = 8,
    Volatile = 9,
    Const = 10,
    Restrict = 11,
    Func = 12,
    FuncProto = 13,
    Var = 14,
    Datasec = 15,
    Float = 16,
    DeclTag = 17,
    TypeTag = 18,
    Enum64 = 19,
}

impl Kind {
    /// Every kind, by number.
    pub const ALL: [Self; 20] = [
        Self::Void,
        Self::Int,
        Self::Ptr,
        Self::Array,
        Self::Struct,
        Self::Union,
        Self::Enum,
        Self::Fwd,
        Self::Typedef,
        Self::Volatile,
        Self::Const,
        Self::Restrict,
        Self::Func,
        Self::FuncProto,
        Self::Var,
        Self::Datasec,
        Self::Float,
        Self::DeclTag,
        Self::TypeTag,
        Self::Enum64,
    ];

    /// The kind of this number, if a type in a blob can have it: void has no entry there.
    pub(super) fn of_type(number: u32) -> Option<Self> {
        Self::ALL
            .get(number as usize)
            .copied()
            .filter(|&kind| kind != Self::Void)
    }

    /// The name after `BTF_KIND_`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Void => "VOID",
            Self::Int => "INT",
            Self::Ptr => "PTR",
            Self::Array => "ARRAY",
            Self::Struct => "STRUCT",
            Self::Union => "UNION",
            Self::Enum => "ENUM",
            Self::Fwd => "FWD",
            Self::Typedef => "TYPEDEF",
            Self::Volatile => "VOLATILE",
            Self::Const => "CONST",
            Self::Restrict => "RESTRICT",
            Self::Func => "FUNC",
            Self::FuncProto => "FUNC_PROTO",
            Self::Var => "VAR",
            Self::Datasec => "DATASEC",
            Self::Float => "FLOAT",
            Self::DeclTag => "DECL_TAG",
            Self::TypeTag => "TYPE_TAG",
            Self::Enum64 => "ENUM64",
        }
    }

    /// Bytes that follow `struct btf_type`: a fixed part, and one for each of `vlen`.
    pub(super) const fn tail_bytes(self) -> (usize, usize) {
        match self {
            Self::Int | Self::Var | Self::DeclTag => (4, 0),
            Self::Array => (12, 0),
            Self::Struct | Self::Union | Self::Datasec | Self::Enum64 => (0, 12),
            Self::Enum | Self::FuncProto => (0, 8),
            _ => (0, 0),
        }
    }

    /// `btf_type_is_modifier`: it renames or qualifies another type, whose size is its own.
    pub const fn is_modifier(self) -> bool {
        matches!(
            self,
            Self::Typedef | Self::Volatile | Self::Const | Self::Restrict | Self::TypeTag
        )
    }

    /// `btf_type_is_struct`: a struct or a union.
    pub const fn is_composite(self) -> bool {
        matches!(self, Self::Struct | Self::Union)
    }

    /// `btf_type_nosize`: a declaration without a size.
    pub(super) const fn is_unsized(self) -> bool {
        matches!(
            self,
            Self::Void | Self::Fwd | Self::Func | Self::FuncProto | Self::DeclTag
        )
    }

    /// `btf_type_has_size`: the last word of the head is its size.
    pub(super) const fn has_size(self) -> bool {
        matches!(
            self,
            Self::Int
                | Self::Struct
                | Self::Union
                | Self::Enum
                | Self::Datasec
                | Self::Float
                | Self::Enum64
        )
    }

    /// `btf_type_is_resolve_source_only`: nothing may refer to it as a type.
    pub(super) const fn is_source_only(self) -> bool {
        matches!(self, Self::Var | Self::DeclTag | Self::Datasec)
    }

    /// `btf_type_needs_resolve`: it refers to types that must be followed.
    pub(super) const fn needs_resolve(self) -> bool {
        self.is_modifier()
            || self.is_composite()
            || self.is_source_only()
            || matches!(self, Self::Ptr | Self::Array | Self::Func)
    }
}

/// `struct btf_type`, and where what follows it lies.
#[derive(Clone, Copy, Debug)]
pub(super) struct Type {
    /// Kind of `info`.
    pub(super) kind: Kind,
    /// `info`: bits 0–15 vlen, 24–28 kind, 31 kind flag.
    pub(super) info: u32,
    /// Offset into the string section.
    pub(super) name_off: u32,
    /// A size or a type id, by kind.
    pub(super) word: u32,
    /// Offset of the bytes after `struct btf_type` into the blob.
    pub(super) tail: u32,
}

impl Type {
    /// Type 0.
    pub(super) const VOID: Self = Self {
        kind: Kind::Void,
        info: 0,
        name_off: 0,
        word: 0,
        tail: 0,
    };

    /// `btf_type_vlen`.
    pub(super) const fn vlen(&self) -> u32 {
        self.info & 0xffff
    }

    /// `btf_type_kflag`.
    pub(super) const fn kflag(&self) -> bool {
        self.info >> 31 != 0
    }
}

/// `struct btf_member`: a member of a struct or union.
#[derive(Clone, Copy, Debug)]
pub(super) struct RawMember {
    pub(super) name_off: u32,
    pub(super) type_id: u32,
    /// Bits; with the kind flag set, bits 24–31 are the width of a bit field.
    pub(super) offset: u32,
}

impl RawMember {
    /// `__btf_member_bit_offset`, for a container with this kind flag.
    pub(super) const fn bit_offset(&self, kflag: bool) -> u32 {
        if kflag {
            self.offset & 0x00ff_ffff
        } else {
            self.offset
        }
    }

    /// `BTF_MEMBER_BITFIELD_SIZE`; means something where the container has its kind flag set.
    pub(super) const fn bitfield_size(&self) -> u32 {
        self.offset >> 24
    }
}

/// The word after an INT: encoding, offset and number of bits.
#[derive(Clone, Copy, Debug)]
pub(super) struct IntData(pub(super) u32);

impl IntData {
    /// `BTF_INT_ENCODING`.
    pub(super) const fn encoding(self) -> u32 {
        self.0 >> 24 & 0x0f
    }

    /// `BTF_INT_OFFSET`, in bits.
    pub(super) const fn offset(self) -> u32 {
        self.0 >> 16 & 0xff
    }

    /// `BTF_INT_BITS`.
    pub(super) const fn bits(self) -> u32 {
        self.0 & 0xff
    }

    /// `btf_type_int_is_regular`: whole bytes from bit 0, 1, 2, 4, 8 or 16 of them.
    pub(super) const fn is_regular(self) -> bool {
        let bytes = self.bits().div_ceil(8);
        self.bits().is_multiple_of(8)
            && self.offset() == 0
            && bytes <= 16
            && bytes.is_power_of_two()
    }
}
