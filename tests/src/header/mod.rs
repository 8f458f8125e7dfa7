//! The C header of the ABI, made from `crates/abi`.
//!
//! The description is that crate itself: its sources are parsed, and what crosses the wire is
//! taken from them: constants, flags, open enums, and structures with the offsets that the compiler
//! holds them to (`assert_layout!`). [`emit`] writes the header, [`program`] a C program that
//! says what a C compiler makes of it.

pub mod emit;
mod eval;
mod parse;
pub mod program;

pub use parse::read;

/// What crosses the wire, in the order of the sources.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Abi {
    /// Parts, one for each module that has any.
    pub parts: Vec<Part>,
}

/// A module of the ABI.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Part {
    /// What it is about.
    pub doc: Vec<String>,
    /// What is in it.
    pub items: Vec<Item>,
}

/// Something that has a name in C.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Item {
    /// A number.
    Constant(Constant),
    /// Numbers that belong together.
    Set {
        /// What they are.
        doc: Vec<String>,
        /// Each.
        values: Vec<Constant>,
    },
    /// A structure.
    Struct(Struct),
}

/// A number with a name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Constant {
    /// What it is.
    pub doc: Vec<String>,
    /// Its name in C.
    pub name: String,
    /// Its value.
    pub value: u64,
    /// Its width: 32 or 64 bits.
    pub bits: u32,
}

/// A wire structure.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Struct {
    /// What it is.
    pub doc: Vec<String>,
    /// Its name in Rust.
    pub rust: String,
    /// Its name in C, after `struct`.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
    /// Its fields, in order.
    pub fields: Vec<Field>,
}

/// A field of a structure.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Field {
    /// What it is.
    pub doc: Vec<String>,
    /// Its name.
    pub name: String,
    /// Bytes of one element: 1, 2, 4 or 8.
    pub width: u64,
    /// Elements of an array; `None` for a single one.
    pub count: Option<u64>,
    /// Where it is, as the compiler holds it to.
    pub offset: u64,
}

impl Abi {
    /// All constants, those of sets included.
    pub fn constants(&self) -> impl Iterator<Item = &Constant> {
        let items = self.parts.iter().flat_map(|part| &part.items);
        items.flat_map(|item| match item {
            Item::Constant(constant) => std::slice::from_ref(constant),
            Item::Set { values, .. } => values,
            Item::Struct(_) => &[],
        })
    }

    /// All structures.
    pub fn structs(&self) -> impl Iterator<Item = &Struct> {
        let items = self.parts.iter().flat_map(|part| &part.items);
        items.filter_map(|item| match item {
            Item::Struct(described) => Some(described),
            _ => None,
        })
    }
}
