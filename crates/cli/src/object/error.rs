//! What can be wrong with an object file, each in a sentence that goes after the file's name.

use std::io;
use std::path::PathBuf;
use thiserror::Error;

/// A file that could not be used, and why.
#[derive(Debug, Error)]
#[error("{}: {error}", path.display())]
pub struct LoadError {
    /// The file as it was named.
    pub path: PathBuf,
    /// What is wrong with it.
    #[source]
    pub error: ObjectError,
}

/// What is wrong with an object.
#[derive(Debug, Error)]
pub enum ObjectError {
    /// The file could not be opened or read.
    #[error("cannot be read: {0}")]
    Io(#[from] io::Error),
    /// More bytes than [`MAX_FILE_BYTES`](super::MAX_FILE_BYTES).
    #[error("is larger than {} MiB, the most that is read of an object", super::MAX_FILE_BYTES >> 20)]
    TooLarge,
    /// No ELF magic.
    #[error("is not an ELF file")]
    NotElf,
    /// ELF, yet shorter than its own header.
    #[error("is an ELF file cut short inside its header")]
    HeaderCutShort,
    /// `EI_CLASS` is not `ELFCLASS64`.
    #[error("is not a 64-bit ELF file; BPF objects are")]
    Not64Bit,
    /// `EI_DATA` is not `ELFDATA2LSB`.
    #[error(
        "is not little-endian; an object for big-endian BPF (clang -target bpfeb) does not fit this host"
    )]
    ForeignEndian,
    /// `EI_VERSION` or `e_version` is not 1.
    #[error("has an unknown ELF version")]
    Version,
    /// `e_machine` is not `EM_BPF`.
    #[error("is an ELF file for machine {0}, not for BPF ({bpf})", bpf = object::elf::EM_BPF.0)]
    NotBpf(u16),
    /// `e_type` is not `ET_REL`.
    #[error("has ELF type {0}; a BPF object is relocatable (type {rel})", rel = object::elf::ET_REL.0)]
    NotRelocatable(u16),
    /// A table or section lies outside the file, or is malformed.
    #[error("is damaged or cut short: {0}")]
    Damaged(String),
    /// More than one section where there can only be one.
    #[error("has more than one section {0:?}")]
    Repeated(&'static str),
    /// Definitions in the format that libbpf 1.0 dropped.
    #[error(
        "defines its maps in a legacy section {0:?}, not in BTF (.maps); libbpf no longer reads those either"
    )]
    LegacyMaps(String),
    /// `.maps` without `.BTF`.
    #[error("has map definitions (.maps) but no BTF to read them by; compile it with clang -g")]
    NoBtf,
    /// `.BTF` does not describe `.maps`, or the other way round.
    #[error("does not describe its map definitions: {0}")]
    MapsMismatch(&'static str),
    /// `.BTF` is malformed.
    #[error("has malformed BTF: {0}")]
    Btf(#[from] BtfError),
    /// More maps than [`MAX_MAPS`](super::MAX_MAPS).
    #[error("defines {0} maps; at most {max} are read", max = super::MAX_MAPS)]
    TooManyMaps(usize),
    /// One map's definition is wrong.
    #[error("defines map {name} wrongly: {error}")]
    Map {
        /// The map.
        name: String,
        /// What is wrong with its definition.
        error: MapError,
    },
}

/// What is wrong with BTF data. Offsets are bytes into `.BTF`.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum BtfError {
    /// The header does not fit.
    #[error("its header is cut short")]
    HeaderCutShort,
    /// Wrong magic.
    #[error("its magic is {0:#06x}, not 0xeb9f")]
    Magic(u16),
    /// The magic is byte-swapped.
    #[error("it is big-endian inside a little-endian file")]
    ForeignEndian,
    /// Unknown version.
    #[error("its version is {0}, not 1")]
    Version(u8),
    /// Flags that are not defined.
    #[error("its header has the unknown flags {0:#04x}")]
    Flags(u8),
    /// `hdr_len` below 24 or past the end.
    #[error("its header claims a length of {0} bytes")]
    HeaderLength(u32),
    /// Nonzero bytes in a longer header than is known.
    #[error("its header has unknown fields that are not zero")]
    HeaderTail,
    /// The type or string part does not lie within the data.
    #[error("its {0} lie outside the section")]
    Bounds(&'static str),
    /// The type part does not start at a multiple of 4.
    #[error("its types start at offset {0}, which is no multiple of 4")]
    Unaligned(u32),
    /// Types and strings share bytes.
    #[error("its types and strings overlap")]
    Overlap,
    /// The string part is empty, or does not start and end with NUL.
    #[error("its strings do not begin and end with NUL")]
    Strings,
    /// The type part ends inside a type.
    #[error("type {0} is cut short")]
    TypeCutShort(u32),
    /// A kind outside 1–19.
    #[error("type {id} is of the unknown kind {kind}")]
    Kind {
        /// The type.
        id: u32,
        /// Its kind.
        kind: u8,
    },
    /// More types than ids.
    #[error("it has more than {} types", super::btf::MAX_TYPES)]
    TooManyTypes,
    /// A reference past the last type.
    #[error("type {id} refers to type {target}, and there are {count}")]
    TypeReference {
        /// The type.
        id: u32,
        /// What it refers to.
        target: u32,
        /// Number of types, void included.
        count: u32,
    },
    /// A name past the end of the strings.
    #[error("type {id} has a name at offset {offset}, outside the strings")]
    StringReference {
        /// The type.
        id: u32,
        /// The offset.
        offset: u32,
    },
    /// A reference chain longer than [`MAX_DEPTH`](super::btf::MAX_DEPTH), or one that closes.
    #[error("type {0} refers in a circle, or deeper than {max} types", max = super::btf::MAX_DEPTH)]
    Circular(u32),
    /// A type that has no size where one is needed.
    #[error("type {0} has no size")]
    Unsized(u32),
    /// An array whose size does not fit 32 bits.
    #[error("type {0} is larger than 4 GiB")]
    TooLarge(u32),
    /// A type of another kind than expected.
    #[error("type {id} is {found}, not {expected}")]
    Unexpected {
        /// The type.
        id: u32,
        /// What it is.
        found: &'static str,
        /// What it should be.
        expected: &'static str,
    },
    /// A name that no C compiler gives out.
    #[error("type {0} has no valid name")]
    Name(u32),
}

/// What is wrong with the definition of a map.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum MapError {
    /// Two maps of one name.
    #[error("there is another of that name")]
    Repeated,
    /// A static variable, which libbpf refuses too.
    #[error("its variable is not global")]
    Linkage,
    /// No symbol says where it lies.
    #[error("no symbol in .maps has its name")]
    NoSymbol,
    /// Its variable is not inside `.maps`.
    #[error("its {size} bytes at offset {offset} lie outside .maps, which has {section}")]
    Outside {
        /// Offset into `.maps`.
        offset: u64,
        /// Bytes.
        size: u32,
        /// Bytes of `.maps`.
        section: u64,
    },
    /// Two variables share bytes of `.maps`.
    #[error("it overlaps map {0}")]
    Overlaps(String),
    /// A member that is not part of a map definition.
    #[error("it has the unknown member {0:?}")]
    UnknownMember(String),
    /// A member twice.
    #[error("it has the member {0:?} twice")]
    RepeatedMember(&'static str),
    /// A member that is not written as `__uint`, `__type` or `__array` writes it.
    #[error("its member {member:?} is not written with {macro_name}: {error}")]
    Member {
        /// The member.
        member: &'static str,
        /// The macro of `bpf_helpers.h` that writes it.
        macro_name: &'static str,
        /// Why.
        error: BtfError,
    },
    /// Some other trouble with its types.
    #[error("{0}")]
    Btf(#[from] BtfError),
    /// No `type`.
    #[error("it has no member \"type\"")]
    NoType,
    /// `key` and `key_size`, or `value` and `value_size`, disagree.
    #[error("its {what} type has {from_type} bytes and its {what}_size is {given}")]
    Conflict {
        /// `key` or `value`.
        what: &'static str,
        /// Size of the type.
        from_type: u32,
        /// The size given.
        given: u32,
    },
    /// A `pinning` that libbpf does not know.
    #[error("its pinning is {0}; LIBBPF_PIN_NONE (0) and LIBBPF_PIN_BY_NAME (1) exist")]
    Pinning(u32),
    /// `values` is not the last member.
    #[error("its member \"values\" is not the last one")]
    ValuesNotLast,
    /// `values` with another value size than 4.
    #[error("it holds maps or programs, so its value size is 4, not {0}")]
    ValuesSize(u32),
    /// `values` inside `values`.
    #[error("the map it holds holds maps itself")]
    Nested,
    /// The definition of the map it holds is wrong.
    #[error("the map it holds: {0}")]
    Inner(Box<MapError>),
}
