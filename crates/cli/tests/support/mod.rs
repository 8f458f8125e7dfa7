//! Builds BPF objects byte by byte, right ones and wrong ones.
#![allow(dead_code, reason = "each test file uses its part")]

pub(crate) const DEMO: &[u8] = include_bytes!("../../demo/demo.bpf.o");

/// BTF under construction. Each method that adds a type returns its id.
#[derive(Default)]
pub(crate) struct BtfBuilder {
    pub(crate) types: Vec<u8>,
    pub(crate) strings: Vec<u8>,
    pub(crate) next: u32,
}

impl BtfBuilder {
    pub(crate) fn new() -> Self {
        Self {
            types: Vec::new(),
            strings: vec![0],
            next: 1,
        }
    }

    pub(crate) fn string(&mut self, text: &str) -> u32 {
        let at = self.strings.len() as u32;
        self.strings.extend_from_slice(text.as_bytes());
        self.strings.push(0);
        at
    }

    pub(crate) fn raw(&mut self, name: &str, kind: u32, vlen: u32, word: u32, tail: &[u32]) -> u32 {
        let name = if name.is_empty() {
            0
        } else {
            self.string(name)
        };
        for word in [name, kind << 24 | vlen, word].iter().chain(tail) {
            self.types.extend_from_slice(&word.to_le_bytes());
        }
        self.next += 1;
        self.next - 1
    }

    pub(crate) fn int(&mut self, bytes: u32) -> u32 {
        self.raw("int", 1, 0, bytes, &[bytes * 8])
    }

    pub(crate) fn ptr(&mut self, to: u32) -> u32 {
        self.raw("", 2, 0, to, &[])
    }

    pub(crate) fn array(&mut self, of: u32, len: u32) -> u32 {
        self.raw("", 3, 0, 0, &[of, of, len])
    }

    /// The type of a member written `__uint(…, value)`.
    pub(crate) fn uint(&mut self, int: u32, value: u32) -> u32 {
        let array = self.array(int, value);
        self.ptr(array)
    }

    pub(crate) fn structure(&mut self, members: &[(&str, u32)]) -> u32 {
        let mut tail = Vec::new();
        for (i, &(name, id)) in members.iter().enumerate() {
            tail.extend([self.string(name), id, i as u32 * 64]);
        }
        let count = members.len() as u32;
        self.raw("", 4, count, count * 8, &tail)
    }

    pub(crate) fn var(&mut self, name: &str, of: u32) -> u32 {
        self.raw(name, 14, 0, of, &[1])
    }

    /// A data section as a compiler leaves it: without size or offsets.
    pub(crate) fn datasec(&mut self, name: &str, vars: &[u32]) -> u32 {
        let tail: Vec<u32> = vars.iter().flat_map(|&var| [var, 0, 0]).collect();
        self.raw(name, 15, vars.len() as u32, 0, &tail)
    }

    pub(crate) fn finish(&self) -> Vec<u8> {
        let mut out = vec![0x9f, 0xeb, 1, 0];
        let (types, strings) = (self.types.len() as u32, self.strings.len() as u32);
        for word in [24, 0, types, types, strings] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        out.extend_from_slice(&self.types);
        out.extend_from_slice(&self.strings);
        out
    }
}

/// A section: name, type, contents, link.
pub(crate) struct Section<'a>(
    pub(crate) &'a str,
    pub(crate) u32,
    pub(crate) Vec<u8>,
    pub(crate) u32,
);

/// A little-endian 64-bit relocatable BPF file. Section 0 is empty, and the last one holds
/// the section names.
pub(crate) fn elf(sections: &[Section<'_>]) -> Vec<u8> {
    let mut names = vec![0];
    let mut headers = vec![[0_u8; 64]];
    let mut body = Vec::new();
    let mut add = |name: &str, kind: u32, link: u32, names: &mut Vec<u8>, data: Option<&[u8]>| {
        let name_at = names.len() as u32;
        names.extend_from_slice(name.as_bytes());
        names.push(0);
        let data = data.unwrap_or(names);
        while body.len() % 8 != 0 {
            body.push(0);
        }
        let mut header = [0; 64];
        header[0..4].copy_from_slice(&name_at.to_le_bytes());
        header[4..8].copy_from_slice(&kind.to_le_bytes());
        header[24..32].copy_from_slice(&(64 + body.len() as u64).to_le_bytes());
        header[32..40].copy_from_slice(&(data.len() as u64).to_le_bytes());
        header[40..44].copy_from_slice(&link.to_le_bytes());
        header[48..56].copy_from_slice(&8_u64.to_le_bytes());
        header[56..64].copy_from_slice(&(if kind == 2 { 24_u64 } else { 0 }).to_le_bytes());
        headers.push(header);
        body.extend_from_slice(data);
    };
    for Section(name, kind, data, link) in sections {
        add(name, *kind, *link, &mut names, Some(data));
    }
    add(".shstrtab", 3, 0, &mut names, None);
    while body.len() % 8 != 0 {
        body.push(0);
    }

    let mut out = vec![0x7f, b'E', b'L', b'F', 2, 1, 1];
    out.resize(16, 0);
    out.extend_from_slice(&1_u16.to_le_bytes());
    out.extend_from_slice(&247_u16.to_le_bytes());
    out.extend_from_slice(&1_u32.to_le_bytes());
    out.extend_from_slice(&[0; 16]);
    out.extend_from_slice(&(64 + body.len() as u64).to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    for half in [64, 0, 0, 64, headers.len() as u16, headers.len() as u16 - 1] {
        out.extend_from_slice(&half.to_le_bytes());
    }
    out.extend_from_slice(&body);
    for header in headers {
        out.extend_from_slice(&header);
    }
    out
}

/// An object whose `.maps` section of `maps_bytes` has a global symbol for each of `symbols`.
pub(crate) fn object(btf: &[u8], maps_bytes: usize, symbols: &[(&str, u64)]) -> Vec<u8> {
    let mut strings = vec![0];
    let mut table = vec![0; 24];
    for &(name, value) in symbols {
        table.extend_from_slice(&(strings.len() as u32).to_le_bytes());
        table.extend_from_slice(&[0x11, 0, 1, 0]);
        table.extend_from_slice(&value.to_le_bytes());
        table.extend_from_slice(&[0; 8]);
        strings.extend_from_slice(name.as_bytes());
        strings.push(0);
    }
    elf(&[
        Section(".maps", 1, vec![0; maps_bytes], 0),
        Section(".BTF", 1, btf.to_vec(), 0),
        Section(".symtab", 2, table, 4),
        Section(".strtab", 3, strings, 0),
    ])
}
