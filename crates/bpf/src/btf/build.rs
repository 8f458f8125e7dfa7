//! Makes BTF, for maps that are created without a compiled object.

use super::kind::Kind;

/// Puts a blob together, type by type. Nothing is checked: [`super::Btf::parse`] does that.
#[derive(Clone, Debug)]
pub struct BtfBuilder {
    types: Vec<u8>,
    strings: Vec<u8>,
    count: u32,
}

impl Default for BtfBuilder {
    fn default() -> Self {
        Self::new()
    }
}

impl BtfBuilder {
    /// A blob without types.
    pub fn new() -> Self {
        Self {
            types: Vec::new(),
            strings: vec![0],
            count: 0,
        }
    }

    /// The id of the type that was added last.
    pub fn last_id(&self) -> u32 {
        self.count
    }

    /// Adds a string and returns its offset: 0 for the empty one.
    pub fn string(&mut self, string: &[u8]) -> u32 {
        if string.is_empty() {
            return 0;
        }
        let offset = self.strings.len() as u32;
        self.strings.extend_from_slice(string);
        self.strings.push(0);
        offset
    }

    /// Adds a type of any kind, and returns its id: `info` is `vlen | kind << 24 | kind_flag
    /// << 31`, `word` its size or type, `tail` the words that follow.
    pub fn raw(&mut self, name_off: u32, info: u32, word: u32, tail: &[u32]) -> u32 {
        for word in [name_off, info, word].iter().chain(tail) {
            self.types.extend_from_slice(&word.to_le_bytes());
        }
        self.count += 1;
        self.count
    }

    /// Adds a type without kind flag.
    pub fn add(&mut self, kind: Kind, name: &str, vlen: u16, word: u32, tail: &[u32]) -> u32 {
        let name_off = self.string(name.as_bytes());
        self.raw(name_off, u32::from(vlen) | (kind as u32) << 24, word, tail)
    }

    /// An unsigned integer of `size` bytes.
    pub fn int(&mut self, name: &str, size: u32) -> u32 {
        self.add(Kind::Int, name, 0, size, &[size * 8])
    }

    /// A pointer, or a modifier without a name.
    pub fn reference(&mut self, kind: Kind, to: u32) -> u32 {
        self.add(kind, "", 0, to, &[])
    }

    /// A typedef, a type tag or another kind that names a type.
    pub fn named(&mut self, kind: Kind, name: &str, to: u32) -> u32 {
        self.add(kind, name, 0, to, &[])
    }

    /// An array of `len` elements, whose index has the type `index`.
    pub fn array(&mut self, element: u32, index: u32, len: u32) -> u32 {
        self.add(Kind::Array, "", 0, 0, &[element, index, len])
    }

    /// A struct of `size` bytes, with each member's name, type and offset in bytes.
    pub fn structure(&mut self, name: &str, size: u32, members: &[(&str, u32, u32)]) -> u32 {
        let mut tail = Vec::with_capacity(members.len() * 3);
        for &(name, type_id, offset) in members {
            tail.extend([self.string(name.as_bytes()), type_id, offset * 8]);
        }
        self.add(Kind::Struct, name, members.len() as u16, size, &tail)
    }

    /// A global variable.
    pub fn var(&mut self, name: &str, type_id: u32) -> u32 {
        self.add(Kind::Var, name, 0, type_id, &[1])
    }

    /// A data section of `size` bytes, with each variable, its offset and its size in bytes.
    pub fn section(&mut self, name: &str, size: u32, vars: &[(u32, u32, u32)]) -> u32 {
        let tail: Vec<u32> = vars
            .iter()
            .flat_map(|&(type_id, offset, size)| [type_id, offset, size])
            .collect();
        self.add(Kind::Datasec, name, vars.len() as u16, size, &tail)
    }

    /// A declaration tag of a member or argument, or with −1 of the type as a whole.
    pub fn decl_tag(&mut self, value: &str, type_id: u32, component: i32) -> u32 {
        self.add(Kind::DeclTag, value, 0, type_id, &[component as u32])
    }

    /// The blob.
    pub fn finish(&self) -> Vec<u8> {
        const HEADER_BYTES: u32 = 24;
        let (types, strings) = (self.types.len() as u32, self.strings.len() as u32);
        let mut blob = vec![0x9f, 0xeb, 1, 0];
        for word in [HEADER_BYTES, 0, types, types, strings] {
            blob.extend_from_slice(&word.to_le_bytes());
        }
        blob.extend_from_slice(&self.types);
        blob.extend_from_slice(&self.strings);
        blob
    }
}
