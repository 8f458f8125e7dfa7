//! Reads the map definitions of a compiled BPF object.
//!
//! The container is ELF, read with the `object` crate; the definitions are BTF
//! (`.BTF` describes the variables of `.maps`), read by [`btf`] and `maps`. An object may
//! come from anywhere: whatever its bytes, reading ends with definitions or an
//! [`ObjectError`], in time and memory linear in its length, which is at most
//! [`MAX_FILE_BYTES`].

pub mod btf;
mod error;
mod maps;

pub use error::{BtfError, LoadError, MapError, ObjectError};

use btf::{Btf, MAX_NAME_BYTES};
use maps::MapsSection;
use object::elf;
use object::endian::LittleEndian;
use object::read::elf::{FileHeader, SectionHeader, Sym};
use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Most bytes of an object that are read.
pub const MAX_FILE_BYTES: u64 = 64 << 20;
/// Most maps of an object.
pub const MAX_MAPS: usize = 1024;

type Header = elf::FileHeader64<LittleEndian>;
type Section = elf::SectionHeader64<LittleEndian>;
const LE: LittleEndian = LittleEndian;

/// One map, as an object defines it: what libbpf would put into BPF_MAP_CREATE.
///
/// Members that the object leaves out are 0.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MapDef {
    /// Name of the variable, as long as it is; the kernel keeps 15 bytes of it. Empty for
    /// the map inside a map.
    pub name: String,
    /// `enum bpf_map_type`.
    pub map_type: u32,
    /// Bytes of a key.
    pub key_size: u32,
    /// Bytes of a value (of one CPU).
    pub value_size: u32,
    /// Entries.
    pub max_entries: u32,
    /// `BPF_F_*`.
    pub map_flags: u32,
    /// NUMA node; means something with `BPF_F_NUMA_NODE` only.
    pub numa_node: u32,
    /// `map_extra`.
    pub map_extra: u64,
    /// `LIBBPF_PIN_BY_NAME`.
    pub pinned_by_name: bool,
    /// The definition of the maps that it holds (`__array(values, …)`).
    pub inner: Option<Box<MapDef>>,
}

/// Reads the file at `path`.
pub fn load(path: &Path) -> Result<Vec<MapDef>, LoadError> {
    let read = || -> Result<_, ObjectError> {
        let mut bytes = Vec::new();
        File::open(path)?
            .take(MAX_FILE_BYTES + 1)
            .read_to_end(&mut bytes)?;
        if bytes.len() as u64 > MAX_FILE_BYTES {
            return Err(ObjectError::TooLarge);
        }
        parse(&bytes)
    };
    read().map_err(|error| LoadError {
        path: path.to_owned(),
        error,
    })
}

/// Reads an object's map definitions, in the order in which they lie in the file. An object
/// without maps has none.
pub fn parse(bytes: &[u8]) -> Result<Vec<MapDef>, ObjectError> {
    let header = check_header(bytes)?;
    let sections = header
        .section_headers(LE, bytes)
        .map_err(|e| damaged("section headers", e))?;
    let names = section_names(header, sections, bytes)?;
    let find = |name: &'static str| -> Result<Option<(usize, &Section)>, ObjectError> {
        let mut found = sections
            .iter()
            .enumerate()
            .filter(|(_, section)| name_is(names, section.sh_name(LE), name.as_bytes()));
        let first = found.next();
        match found.next() {
            Some(_) => Err(ObjectError::Repeated(name)),
            None => Ok(first),
        }
    };

    let Some((maps_index, maps)) = find(".maps")? else {
        // Only where there is nothing newer: libbpf too let the two stand side by side.
        if let Some(name) = sections
            .iter()
            .map(|section| prefix(names, section.sh_name(LE)))
            .find(|name| *name == b"maps" || name.starts_with(b"maps/"))
        {
            let name = String::from_utf8_lossy(name).into_owned();
            return Err(ObjectError::LegacyMaps(name));
        }
        // Definitions that only BTF knows of are no definitions of this file.
        if let Some((_, section)) = find(".BTF")? {
            let btf = Btf::parse(section_bytes(section, bytes, ".BTF")?)?;
            if btf.find(btf::Kind::Datasec, b".maps").next().is_some() {
                return Err(ObjectError::MapsMismatch(
                    "BTF has a data section .maps, and the file has not",
                ));
            }
        }
        return Ok(Vec::new());
    };
    let Some((_, btf)) = find(".BTF")? else {
        return Err(ObjectError::NoBtf);
    };
    let btf = Btf::parse(section_bytes(btf, bytes, ".BTF")?)?;
    section_bytes(maps, bytes, ".maps")?;
    let section = MapsSection {
        size: maps.sh_size(LE),
        symbols: symbols_of(sections, maps_index, bytes)?,
    };
    maps::read(&btf, &section)
}

fn damaged(what: &str, error: impl std::fmt::Display) -> ObjectError {
    ObjectError::Damaged(format!("its {what}: {error}"))
}

fn check_header(bytes: &[u8]) -> Result<&Header, ObjectError> {
    if !bytes.starts_with(&elf::ELFMAG) {
        return Err(ObjectError::NotElf);
    }
    // Class and byte order come before the length: a 32-bit header is shorter.
    let ident = bytes.get(4..7).ok_or(ObjectError::HeaderCutShort)?;
    if ident[0] != elf::ELFCLASS64.0 {
        return Err(ObjectError::Not64Bit);
    }
    if ident[1] != elf::ELFDATA2LSB.0 {
        return Err(ObjectError::ForeignEndian);
    }
    if ident[2] != elf::EV_CURRENT.0 {
        return Err(ObjectError::Version);
    }
    let header = Header::parse(bytes).map_err(|_| ObjectError::HeaderCutShort)?;
    if header.e_version(LE) != u32::from(elf::EV_CURRENT.0) {
        return Err(ObjectError::Version);
    }
    if header.e_machine(LE) != elf::EM_BPF {
        return Err(ObjectError::NotBpf(header.e_machine(LE).0));
    }
    if header.e_type(LE) != elf::ET_REL {
        return Err(ObjectError::NotRelocatable(header.e_type(LE).0));
    }
    Ok(header)
}

/// The bytes of the table that `e_shstrndx` names.
///
/// Names are compared in place and never searched for their end: in a table without a NUL,
/// that would cost the square of the file's length.
fn section_names<'a>(
    header: &Header,
    sections: &[Section],
    bytes: &'a [u8],
) -> Result<&'a [u8], ObjectError> {
    if sections.is_empty() {
        return Err(ObjectError::Damaged("it has no sections".to_owned()));
    }
    let index = header
        .shstrndx(LE, bytes)
        .map_err(|e| damaged("section name table", e))?;
    let table = sections.get(index as usize).ok_or_else(|| {
        ObjectError::Damaged(format!(
            "its section name table is section {index}, which it lacks"
        ))
    })?;
    section_bytes(table, bytes, "section name table")
}

/// A section's bytes in the file.
fn section_bytes<'a>(
    section: &Section,
    bytes: &'a [u8],
    what: &str,
) -> Result<&'a [u8], ObjectError> {
    if section.sh_flags(LE).0 & elf::SHF_COMPRESSED.0 != 0 {
        return Err(damaged(what, "compressed sections are not read"));
    }
    section.data(LE, bytes).map_err(|_| {
        ObjectError::Damaged(format!(
            "its {what}: {} bytes at offset {} are not inside the {} of the file",
            section.sh_size(LE),
            section.sh_offset(LE),
            bytes.len()
        ))
    })
}

/// The string at `offset`, cut off at [`MAX_NAME_BYTES`].
fn prefix(strings: &[u8], offset: u32) -> &[u8] {
    let tail = strings.get(offset as usize..).unwrap_or(&[]);
    let tail = &tail[..tail.len().min(MAX_NAME_BYTES)];
    let len = tail.iter().position(|&b| b == 0).unwrap_or(tail.len());
    &tail[..len]
}

fn name_is(strings: &[u8], offset: u32, name: &[u8]) -> bool {
    strings
        .get(offset as usize..)
        .and_then(|tail| tail.strip_prefix(name))
        .is_some_and(|rest| rest.first() == Some(&0))
}

/// Name and offset of each global symbol in section `index`.
fn symbols_of<'a>(
    sections: &[Section],
    index: usize,
    bytes: &'a [u8],
) -> Result<HashMap<&'a [u8], u64>, ObjectError> {
    let mut tables = sections
        .iter()
        .filter(|section| section.sh_type(LE) == elf::SHT_SYMTAB);
    let Some(table) = tables.next() else {
        return Ok(HashMap::new());
    };
    if tables.next().is_some() {
        return Err(ObjectError::Repeated(".symtab"));
    }
    let symbols: &[elf::Sym64<LittleEndian>] = table
        .data_as_array(LE, bytes)
        .map_err(|e| damaged("symbol table", e))?;
    let link = table.sh_link(LE);
    let strings = sections
        .get(link as usize)
        .ok_or_else(|| damaged("symbol names", format!("section {link} does not exist")))?;
    let strings = section_bytes(strings, bytes, "symbol names")?;
    let mut found = HashMap::new();
    for symbol in symbols {
        let in_section = usize::from(symbol.st_shndx(LE).0) == index;
        if in_section && symbol.st_bind() == elf::STB_GLOBAL {
            let name = prefix(strings, symbol.st_name(LE));
            if found.insert(name, symbol.st_value(LE)).is_some() {
                return Err(damaged("symbol table", "a name in .maps occurs twice"));
            }
        }
    }
    Ok(found)
}
