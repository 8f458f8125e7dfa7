//! Blobs that a compiler made.

use object::elf;
use object::endian::LittleEndian;
use object::read::elf::{FileHeader, SectionHeader};
use offmap_bpf::btf::Kind;
use std::fs;
use std::path::{Path, PathBuf};

/// Where distributions put BPF objects, and the one of our demonstration.
fn objects() -> Vec<PathBuf> {
    let mut paths =
        vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/cli/demo/demo.bpf.o")];
    for dir in [
        "/usr/lib/x86_64-linux-gnu/bpf",
        "/usr/lib64/bpf",
        "/usr/lib/bpf",
    ] {
        let Ok(entries) = fs::read_dir(dir) else {
            continue;
        };
        paths.extend(
            entries
                .filter_map(|entry| Some(entry.ok()?.path()))
                .filter(|path| path.extension().is_some_and(|ext| ext == "o")),
        );
    }
    paths.sort();
    paths
}

/// The `.BTF` section of an object.
fn section(bytes: &[u8]) -> Option<Vec<u8>> {
    let header = elf::FileHeader64::<LittleEndian>::parse(bytes).ok()?;
    let sections = header.sections(LittleEndian, bytes).ok()?;
    let (_, section) = sections.section_by_name(LittleEndian, b".BTF")?;
    Some(section.data(LittleEndian, bytes).ok()?.to_vec())
}

/// Lays out data sections, whose sizes and offsets a compiler leaves to the linker (libbpf's
/// `btf_fixup_datasec`), by what their variables need.
fn lay_out(blob: &mut [u8]) {
    let word = |blob: &[u8], at: usize| {
        u32::from_le_bytes(blob[at..at + 4].try_into().expect("four bytes"))
    };
    let types = super::mutate::type_offsets(blob);
    for &at in &types {
        let info = word(blob, at + 4);
        if info >> 24 & 0x1f != Kind::Datasec as u32 {
            continue;
        }
        let mut end = 0;
        for i in 0..(info & 0xffff) as usize {
            let var = at + 12 + i * 12;
            let size = word(blob, var + 8);
            let offset = end;
            end = offset + size.next_multiple_of(8);
            blob[var + 4..var + 8].copy_from_slice(&offset.to_le_bytes());
        }
        blob[at + 8..at + 12].copy_from_slice(&end.to_le_bytes());
    }
}

/// The blobs of all objects found here, as they are and with their data sections laid out, as
/// `(file, blob)`.
pub fn corpus() -> Vec<(String, Vec<u8>)> {
    let mut blobs = Vec::new();
    for path in objects() {
        let Some(blob) = fs::read(&path).ok().and_then(|bytes| section(&bytes)) else {
            continue;
        };
        let name = path
            .file_name()
            .map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        let mut laid_out = blob.clone();
        lay_out(&mut laid_out);
        if laid_out != blob {
            blobs.push((format!("{name}, laid out"), laid_out));
        }
        blobs.push((name, blob));
    }
    blobs
}
