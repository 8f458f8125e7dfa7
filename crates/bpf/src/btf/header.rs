//! The header and the extent of the two sections (`btf_parse_hdr`, `btf_check_sec_info`,
//! `btf_parse_str_sec`).

use super::u32_at;
use crate::{Errno, Error, Result};
use std::ops::Range;

/// Largest blob that BTF_LOAD takes (`BTF_MAX_SIZE`).
pub const MAX_BYTES: usize = 16 << 20;
/// Largest offset of a name (`BTF_MAX_NAME_OFFSET`).
pub(super) const MAX_NAME_OFFSET: u32 = 0x00ff_ffff;

const MAGIC: u16 = 0xeb9f;
/// `sizeof(struct btf_header)`.
const HEADER_BYTES: usize = 24;

/// Where the sections of a blob lie, as offsets into it.
pub(super) struct Sections {
    pub(super) types: Range<usize>,
    pub(super) strings: Range<usize>,
}

fn invalid(reason: String) -> Error {
    Error::because(Errno::EINVAL, format!("BTF header: {reason}"))
}

/// `btf_parse_hdr` and `btf_parse_str_sec`, and that there are types.
pub(super) fn sections(bytes: &[u8]) -> Result<Sections> {
    if bytes.len() > MAX_BYTES {
        return Err(Error::because(
            Errno::E2BIG,
            format!("BTF of {} bytes exceeds {MAX_BYTES}", bytes.len()),
        ));
    }
    let Some(hdr_len) = u32_at(bytes, 4) else {
        return Err(invalid(format!(
            "{} bytes end before hdr_len, at bytes 4 to 7",
            bytes.len()
        )));
    };
    let copied_len = hdr_len as usize;
    if bytes.len() < copied_len {
        return Err(invalid(format!(
            "hdr_len {hdr_len} exceeds the {} bytes there are",
            bytes.len()
        )));
    }
    if let Some(at) = (HEADER_BYTES..copied_len).find(|&at| bytes[at] != 0) {
        return Err(Error::because(
            Errno::E2BIG,
            format!("BTF header: byte {at}, in fields that are not known, is not zero"),
        ));
    }

    // A short header reads as if zeros followed, hdr_len itself included.
    let mut header = [0; HEADER_BYTES];
    let copied = copied_len.min(HEADER_BYTES);
    header[..copied].copy_from_slice(&bytes[..copied]);
    let field = |at: usize| u32_at(&header, at).unwrap_or(0);
    let first = field(0);
    if first as u16 != MAGIC {
        return Err(invalid(format!(
            "magic {:#06x} is not {MAGIC:#06x}",
            first as u16
        )));
    }
    let [_, _, version, flags] = first.to_le_bytes();
    if version != 1 {
        return Err(Error::because(
            Errno::ENOTSUPP,
            format!("BTF header: version {version} is not 1"),
        ));
    }
    if flags != 0 {
        return Err(Error::because(
            Errno::ENOTSUPP,
            format!("BTF header: flags {flags:#x} are not 0"),
        ));
    }
    let hdr_len = field(4) as usize;
    if bytes.len() == hdr_len {
        return Err(invalid(format!("nothing follows its {hdr_len} bytes")));
    }
    let types = (field(8), field(12));
    let strings = (field(16), field(20));
    check_extent(bytes.len() - hdr_len, types, strings)?;
    // Both lie inside the blob from here on.
    let range = |(off, len): (u32, u32)| {
        let start = hdr_len + off as usize;
        start..start + len as usize
    };
    let sections = Sections {
        types: range(types),
        strings: range(strings),
    };
    check_strings(bytes, &sections.strings)?;
    // The kernel also wants `type_off` to be a multiple of 4; it is 0 here, with strings that
    // come last and no gap.
    if types.1 == 0 {
        return Err(invalid("type_len is 0; there are no types".to_owned()));
    }
    Ok(sections)
}

/// `btf_check_sec_info`: the sections fill what follows the header, without gap or overlap.
fn check_extent(total: usize, types: (u32, u32), strings: (u32, u32)) -> Result<()> {
    let mut sections = [("type", types), ("string", strings)];
    sections.sort_by_key(|&(_, extent)| extent);
    let mut end = 0_usize;
    for (name, (off, len)) in sections {
        let (off, len) = (off as usize, len as usize);
        if total < off {
            return Err(invalid(format!(
                "{name} section starts at {off}, beyond the {total} bytes after the header"
            )));
        }
        if end < off {
            return Err(invalid(format!(
                "bytes {end} to {off} after the header belong to no section"
            )));
        }
        if end > off {
            return Err(invalid(format!(
                "{name} section starts at {off}, inside the one before it, which ends at {end}"
            )));
        }
        if total - end < len {
            return Err(invalid(format!(
                "{name} section of {len} bytes at {off} exceeds the {total} bytes after the header"
            )));
        }
        end += len;
    }
    if end != total {
        return Err(invalid(format!(
            "{} bytes after the last section belong to none",
            total - end
        )));
    }
    Ok(())
}

fn check_strings(bytes: &[u8], strings: &Range<usize>) -> Result<()> {
    if strings.end != bytes.len() {
        return Err(invalid("string section does not come last".to_owned()));
    }
    let strings = &bytes[strings.clone()];
    match (strings.first(), strings.last()) {
        (Some(0), Some(0)) if strings.len() - 1 <= MAX_NAME_OFFSET as usize => Ok(()),
        (Some(0), Some(0)) => Err(invalid(format!(
            "string section of {} bytes exceeds {}",
            strings.len(),
            MAX_NAME_OFFSET + 1
        ))),
        (None, _) | (_, None) => Err(invalid("string section is empty".to_owned())),
        (Some(_), Some(0)) => Err(invalid(
            "string section does not start with the empty string".to_owned(),
        )),
        (Some(_), Some(_)) => Err(invalid("string section does not end with NUL".to_owned())),
    }
}
