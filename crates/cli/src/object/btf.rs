//! BTF, the type format of compiled BPF objects (`Documentation/bpf/btf.rst`).
//!
//! [`Btf::parse`] checks the header, the shape of every type, and every reference to a type
//! or a string, in one pass each; what it returns can be walked without further bounds
//! checks failing. What a single pass cannot rule out, reference cycles, is cut off at
//! [`MAX_DEPTH`] when a chain is followed.

use super::error::BtfError;

/// Longest chain of references that is followed (libbpf's `MAX_RESOLVE_DEPTH`).
pub const MAX_DEPTH: u32 = 32;
/// Most types (the kernel's `BTF_MAX_TYPE`).
pub const MAX_TYPES: u32 = 0x000f_ffff;
/// Longest name that counts as one (the kernel's `KSYM_NAME_LEN`), NUL included.
pub const MAX_NAME_BYTES: usize = 512;

const MAGIC: u16 = 0xeb9f;
const HEADER_BYTES: u32 = 24;
const POINTER_BYTES: u32 = 8;

/// `BTF_KIND_*`, numbered as in the format.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
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
    const ALL: [Self; 20] = [
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

    /// The kind of this number, if a type can have it.
    fn of_type(number: u8) -> Option<Self> {
        Self::ALL
            .get(usize::from(number))
            .copied()
            .filter(|&kind| kind != Self::Void)
    }

    /// What it is, for messages.
    pub const fn describe(self) -> &'static str {
        match self {
            Self::Void => "void",
            Self::Int => "an integer",
            Self::Ptr => "a pointer",
            Self::Array => "an array",
            Self::Struct => "a struct",
            Self::Union => "a union",
            Self::Enum => "an enum",
            Self::Fwd => "a forward declaration",
            Self::Typedef => "a typedef",
            Self::Volatile => "a volatile qualifier",
            Self::Const => "a const qualifier",
            Self::Restrict => "a restrict qualifier",
            Self::Func => "a function",
            Self::FuncProto => "a function prototype",
            Self::Var => "a variable",
            Self::Datasec => "a data section",
            Self::Float => "a floating-point number",
            Self::DeclTag => "a declaration tag",
            Self::TypeTag => "a type tag",
            Self::Enum64 => "a 64-bit enum",
        }
    }

    /// Bytes that follow `struct btf_type`: a fixed part, and one per element of `vlen`.
    const fn tail_bytes(self) -> (usize, usize) {
        match self {
            Self::Int | Self::Var | Self::DeclTag => (4, 0),
            Self::Array => (12, 0),
            Self::Struct | Self::Union | Self::Datasec | Self::Enum64 => (0, 12),
            Self::Enum | Self::FuncProto => (0, 8),
            _ => (0, 0),
        }
    }

    /// Whether the last word of `struct btf_type` is a type, rather than a size.
    const fn refers(self) -> bool {
        matches!(
            self,
            Self::Ptr
                | Self::Typedef
                | Self::Volatile
                | Self::Const
                | Self::Restrict
                | Self::Func
                | Self::FuncProto
                | Self::Var
                | Self::DeclTag
                | Self::TypeTag
        )
    }

    /// Whether it only qualifies or renames the type it refers to.
    const fn is_modifier(self) -> bool {
        matches!(
            self,
            Self::Typedef | Self::Volatile | Self::Const | Self::Restrict | Self::TypeTag
        )
    }
}

/// One type.
#[derive(Clone, Copy, Debug)]
struct Type {
    kind: Kind,
    vlen: u16,
    name: u32,
    /// A size or a type, by kind.
    word: u32,
    /// Where the bytes after `struct btf_type` start.
    tail: usize,
}

const VOID: Type = Type {
    kind: Kind::Void,
    vlen: 0,
    name: 0,
    word: 0,
    tail: 0,
};

/// A member of a struct or union.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Member<'a> {
    /// Its name, as bytes: a hostile object may put anything here.
    pub name: &'a [u8],
    /// Its type.
    pub type_id: u32,
}

/// A variable of a data section.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SectionVar {
    /// The variable.
    pub type_id: u32,
    /// Offset into the section; 0 in objects that no linker has touched.
    pub offset: u32,
    /// Bytes.
    pub size: u32,
}

/// An array type.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Array {
    /// Type of an element.
    pub element: u32,
    /// Number of elements.
    pub len: u32,
}

/// Checked BTF.
#[derive(Debug)]
pub struct Btf<'a> {
    types: Vec<Type>,
    /// The type part.
    data: &'a [u8],
    strings: &'a [u8],
}

fn u32_at(data: &[u8], offset: usize) -> Option<u32> {
    let bytes = data.get(offset..offset.checked_add(4)?)?;
    Some(u32::from_le_bytes(bytes.try_into().ok()?))
}

/// The part of `data` that a header field pair names.
fn part<'a>(
    data: &'a [u8],
    offset: u32,
    len: u32,
    what: &'static str,
) -> Result<&'a [u8], BtfError> {
    let start = offset as usize;
    start
        .checked_add(len as usize)
        .and_then(|end| data.get(start..end))
        .ok_or(BtfError::Bounds(what))
}

impl<'a> Btf<'a> {
    /// Checks the contents of a `.BTF` section.
    pub fn parse(section: &'a [u8]) -> Result<Self, BtfError> {
        let field = |offset| u32_at(section, offset).ok_or(BtfError::HeaderCutShort);
        let first = field(0)?;
        let magic = first as u16;
        if magic == MAGIC.swap_bytes() {
            return Err(BtfError::ForeignEndian);
        }
        if magic != MAGIC {
            return Err(BtfError::Magic(magic));
        }
        let [_, _, version, flags] = first.to_le_bytes();
        if version != 1 {
            return Err(BtfError::Version(version));
        }
        if flags != 0 {
            return Err(BtfError::Flags(flags));
        }
        let header_len = field(4)?;
        if header_len < HEADER_BYTES || header_len as usize > section.len() {
            return Err(BtfError::HeaderLength(header_len));
        }
        if section[HEADER_BYTES as usize..header_len as usize]
            .iter()
            .any(|&b| b != 0)
        {
            return Err(BtfError::HeaderTail);
        }
        let (type_off, type_len) = (field(8)?, field(12)?);
        let (str_off, str_len) = (field(16)?, field(20)?);
        let rest = &section[header_len as usize..];
        if type_off % 4 != 0 {
            return Err(BtfError::Unaligned(type_off));
        }
        let data = part(rest, type_off, type_len, "types")?;
        let strings = part(rest, str_off, str_len, "strings")?;
        // Neither sum can overflow: both parts lie within `rest`.
        if type_off < str_off + str_len && str_off < type_off + type_len {
            return Err(BtfError::Overlap);
        }
        if strings.first() != Some(&0) || strings.last() != Some(&0) {
            return Err(BtfError::Strings);
        }
        let btf = Self {
            types: Self::types(data)?,
            data,
            strings,
        };
        btf.check_references()?;
        Ok(btf)
    }

    fn types(data: &[u8]) -> Result<Vec<Type>, BtfError> {
        let mut types = vec![VOID];
        let mut at = 0;
        while at < data.len() {
            let id = types.len() as u32;
            if id > MAX_TYPES {
                return Err(BtfError::TooManyTypes);
            }
            let cut_short = BtfError::TypeCutShort(id);
            let (Some(name), Some(info), Some(word)) =
                (u32_at(data, at), u32_at(data, at + 4), u32_at(data, at + 8))
            else {
                return Err(cut_short);
            };
            // Bits 0–15 vlen, 24–28 kind, 31 kind_flag; the others are unused.
            let number = (info >> 24 & 0x1f) as u8;
            let kind = Kind::of_type(number).ok_or(BtfError::Kind { id, kind: number })?;
            let vlen = info as u16;
            let (fixed, each) = kind.tail_bytes();
            let tail = at + 12;
            at = tail + fixed + each * usize::from(vlen);
            if at > data.len() {
                return Err(cut_short);
            }
            types.push(Type {
                kind,
                vlen,
                name,
                word,
                tail,
            });
        }
        Ok(types)
    }

    fn check_references(&self) -> Result<(), BtfError> {
        let count = self.types.len() as u32;
        for (id, ty) in (0..count).zip(&self.types) {
            let check_type = |target: u32| {
                if target < count {
                    Ok(())
                } else {
                    Err(BtfError::TypeReference { id, target, count })
                }
            };
            let check_name = |offset: u32| {
                if (offset as usize) < self.strings.len() {
                    Ok(())
                } else {
                    Err(BtfError::StringReference { id, offset })
                }
            };
            check_name(ty.name)?;
            if ty.kind.refers() {
                check_type(ty.word)?;
            }
            match ty.kind {
                Kind::Array => {
                    check_type(self.tail_word(ty, 0))?;
                    check_type(self.tail_word(ty, 1))?;
                }
                Kind::Struct | Kind::Union => {
                    for i in 0..usize::from(ty.vlen) {
                        check_name(self.tail_word(ty, i * 3))?;
                        check_type(self.tail_word(ty, i * 3 + 1))?;
                    }
                }
                Kind::Enum | Kind::Enum64 => {
                    let words = if ty.kind == Kind::Enum { 2 } else { 3 };
                    for i in 0..usize::from(ty.vlen) {
                        check_name(self.tail_word(ty, i * words))?;
                    }
                }
                Kind::FuncProto => {
                    for i in 0..usize::from(ty.vlen) {
                        check_name(self.tail_word(ty, i * 2))?;
                        check_type(self.tail_word(ty, i * 2 + 1))?;
                    }
                }
                Kind::Datasec => {
                    for i in 0..usize::from(ty.vlen) {
                        check_type(self.tail_word(ty, i * 3))?;
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// A word after a type's head. `types` has made sure that it is there.
    fn tail_word(&self, ty: &Type, index: usize) -> u32 {
        u32_at(self.data, ty.tail + index * 4).unwrap_or(0)
    }

    /// The type of this id. Ids in checked BTF are in range; any other is void.
    fn get(&self, id: u32) -> &Type {
        self.types.get(id as usize).unwrap_or(&VOID)
    }

    /// Number of types, void included.
    pub fn type_count(&self) -> u32 {
        self.types.len() as u32
    }

    /// The kind of a type.
    pub fn kind(&self, id: u32) -> Kind {
        self.get(id).kind
    }

    /// The string at `offset`, without its NUL, and cut off at [`MAX_NAME_BYTES`].
    fn string(&self, offset: u32) -> &'a [u8] {
        let tail = self.strings.get(offset as usize..).unwrap_or(&[]);
        let tail = &tail[..tail.len().min(MAX_NAME_BYTES)];
        let len = tail.iter().position(|&b| b == 0).unwrap_or(tail.len());
        &tail[..len]
    }

    /// A type's name as bytes, cut off at [`MAX_NAME_BYTES`]; empty for an anonymous type.
    pub fn name_bytes(&self, id: u32) -> &'a [u8] {
        self.string(self.get(id).name)
    }

    /// A type's name, if it is one that the kernel would take (`btf_name_valid_identifier`).
    pub fn name(&self, id: u32) -> Result<&'a str, BtfError> {
        let bytes = self.name_bytes(id);
        let valid = !bytes.is_empty()
            && bytes.len() < MAX_NAME_BYTES
            && !bytes[0].is_ascii_digit()
            && bytes
                .iter()
                .all(|&b| b.is_ascii_alphanumeric() || b == b'_' || b == b'.');
        std::str::from_utf8(bytes)
            .ok()
            .filter(|_| valid)
            .ok_or(BtfError::Name(id))
    }

    /// The ids of all types of `kind` with this name.
    pub fn find(&self, kind: Kind, name: &[u8]) -> impl Iterator<Item = u32> {
        (0..self.type_count())
            .filter(move |&id| self.kind(id) == kind && self.name_bytes(id) == name)
    }

    fn expect(&self, id: u32, kind: Kind) -> Result<&Type, BtfError> {
        let ty = self.get(id);
        if ty.kind == kind {
            Ok(ty)
        } else {
            Err(BtfError::Unexpected {
                id,
                found: ty.kind.describe(),
                expected: kind.describe(),
            })
        }
    }

    /// Follows typedefs, qualifiers and type tags.
    pub fn skip_modifiers(&self, id: u32) -> Result<u32, BtfError> {
        let mut at = id;
        for _ in 0..MAX_DEPTH {
            let ty = self.get(at);
            if !ty.kind.is_modifier() {
                return Ok(at);
            }
            at = ty.word;
        }
        Err(BtfError::Circular(id))
    }

    /// What a pointer points to.
    pub fn pointee(&self, id: u32) -> Result<u32, BtfError> {
        let id = self.skip_modifiers(id)?;
        Ok(self.expect(id, Kind::Ptr)?.word)
    }

    /// The array that `id` is.
    pub fn array(&self, id: u32) -> Result<Array, BtfError> {
        let id = self.skip_modifiers(id)?;
        let ty = self.expect(id, Kind::Array)?;
        Ok(Array {
            element: self.tail_word(ty, 0),
            len: self.tail_word(ty, 2),
        })
    }

    /// Bytes of a type, by `sizeof`.
    pub fn size_of(&self, id: u32) -> Result<u32, BtfError> {
        let mut elements = 1_u32;
        let mut at = id;
        for _ in 0..MAX_DEPTH {
            let ty = self.get(at);
            let each = match ty.kind {
                Kind::Int
                | Kind::Struct
                | Kind::Union
                | Kind::Enum
                | Kind::Enum64
                | Kind::Datasec
                | Kind::Float => ty.word,
                Kind::Ptr => POINTER_BYTES,
                Kind::Array => {
                    elements = elements
                        .checked_mul(self.tail_word(ty, 2))
                        .ok_or(BtfError::TooLarge(id))?;
                    at = self.tail_word(ty, 0);
                    continue;
                }
                Kind::Var | Kind::DeclTag => {
                    at = ty.word;
                    continue;
                }
                kind if kind.is_modifier() => {
                    at = ty.word;
                    continue;
                }
                _ => return Err(BtfError::Unsized(id)),
            };
            return elements.checked_mul(each).ok_or(BtfError::TooLarge(id));
        }
        Err(BtfError::Circular(id))
    }

    /// The members of a struct.
    pub fn members(&self, id: u32) -> Result<impl ExactSizeIterator<Item = Member<'a>>, BtfError> {
        let ty = *self.expect(id, Kind::Struct)?;
        Ok((0..usize::from(ty.vlen)).map(move |i| Member {
            name: self.string(self.tail_word(&ty, i * 3)),
            type_id: self.tail_word(&ty, i * 3 + 1),
        }))
    }

    /// Type and linkage (`BTF_VAR_*`) of a variable.
    pub fn variable(&self, id: u32) -> Result<(u32, u32), BtfError> {
        let ty = self.expect(id, Kind::Var)?;
        Ok((ty.word, self.tail_word(ty, 0)))
    }

    /// The size of a data section as BTF has it (0 before linking), and its variables.
    pub fn section(
        &self,
        id: u32,
    ) -> Result<(u32, impl ExactSizeIterator<Item = SectionVar>), BtfError> {
        let ty = *self.expect(id, Kind::Datasec)?;
        let vars = (0..usize::from(ty.vlen)).map(move |i| SectionVar {
            type_id: self.tail_word(&ty, i * 3),
            offset: self.tail_word(&ty, i * 3 + 1),
            size: self.tail_word(&ty, i * 3 + 2),
        });
        Ok((ty.word, vars))
    }

    /// The value of an enum that has exactly one, as `__ulong` of `bpf_helpers.h` writes it.
    pub fn only_enumerator(&self, id: u32) -> Result<u64, BtfError> {
        let ty = self.get(id);
        match (ty.kind, ty.vlen) {
            (Kind::Enum, 1) => Ok(u64::from(self.tail_word(ty, 1))),
            (Kind::Enum64, 1) => {
                Ok(u64::from(self.tail_word(ty, 1)) | u64::from(self.tail_word(ty, 2)) << 32)
            }
            (kind, _) => Err(BtfError::Unexpected {
                id,
                found: kind.describe(),
                expected: "an enum of one value",
            }),
        }
    }
}
