//! The log of a BTF_LOAD that succeeds: the header and every type, in the kernel's own words
//! (`btf_verifier_log_hdr`, `__btf_verifier_log_type` and the `log_details` of each kind, 6.18).

use super::kind::Type;
use super::{Btf, Kind, u32_at};
use std::fmt::Write;

/// Bytes that one piece of a log has at most (`BPF_VERIFIER_TMP_LOG_SIZE`, its NUL excluded).
const PIECE_BYTES: usize = 1023;

impl Btf {
    /// Calls `out` with piece after piece: a line for each field of the header, for each type,
    /// and for each member of one. Pieces are cut where the kernel cuts them.
    pub(crate) fn listing(&self, out: &mut dyn FnMut(&[u8])) {
        out(&self.header());
        let mut piece = Vec::new();
        let mut out = |piece: &mut Vec<u8>| {
            piece.truncate(PIECE_BYTES);
            out(piece);
            piece.clear();
        };
        for (id, ty) in self.types.iter().enumerate().skip(1) {
            put(&mut piece, format_args!("[{id}] {} ", ty.kind.name()));
            self.put_name(&mut piece, ty.name_off);
            piece.push(b' ');
            out(&mut piece);
            self.put_details(&mut piece, ty, &mut out);
            piece.push(b'\n');
            out(&mut piece);
            for i in 0..ty.vlen() {
                self.put_member(&mut piece, ty, i);
                out(&mut piece);
            }
        }
    }

    fn header(&self) -> Vec<u8> {
        // One that is shorter than its fields reads as if zeroes followed.
        let hdr_len = u32_at(&self.raw, 4).unwrap_or(0);
        let field = |at: usize| {
            let whole = u32_at(&self.raw, at).unwrap_or(0);
            let there = (hdr_len as usize).saturating_sub(at).min(4);
            whole & (1_u64 << (8 * there)).wrapping_sub(1) as u32
        };
        let [low, high, version, flags] = field(0).to_le_bytes();
        let mut text = Vec::new();
        put(
            &mut text,
            format_args!(
                "magic: 0x{:x}\nversion: {version}\nflags: 0x{flags:x}\nhdr_len: {}\n\
                 type_off: {}\ntype_len: {}\nstr_off: {}\nstr_len: {}\nbtf_total_size: {}\n",
                u16::from_le_bytes([low, high]),
                field(4),
                field(8),
                field(12),
                field(16),
                field(20),
                self.raw.len()
            ),
        );
        text
    }

    /// `__btf_name_by_offset`.
    fn put_name(&self, text: &mut Vec<u8>, offset: u32) {
        match offset {
            0 => text.extend(b"(anon)"),
            _ => {
                let name = self.string(offset);
                text.extend(&name[..name.len().min(PIECE_BYTES)]);
            }
        }
    }

    fn put_details(&self, text: &mut Vec<u8>, ty: &Type, out: &mut dyn FnMut(&mut Vec<u8>)) {
        let word = ty.word;
        let vlen = ty.vlen();
        match ty.kind {
            Kind::Void => {}
            Kind::Int => {
                let data = self.tail_word(ty, 0);
                let encoding = match data >> 24 & 0xf {
                    0 => "(none)",
                    1 => "SIGNED",
                    2 => "CHAR",
                    4 => "BOOL",
                    _ => "UNKN",
                };
                put(
                    text,
                    format_args!(
                        "size={word} bits_offset={} nr_bits={} encoding={encoding}",
                        data >> 16 & 0xff,
                        data & 0xff
                    ),
                );
            }
            Kind::Ptr
            | Kind::Typedef
            | Kind::Volatile
            | Kind::Const
            | Kind::Restrict
            | Kind::Func
            | Kind::TypeTag => put(text, format_args!("type_id={word}")),
            Kind::Array => put(
                text,
                format_args!(
                    "type_id={} index_type_id={} nr_elems={}",
                    self.tail_word(ty, 0),
                    self.tail_word(ty, 1),
                    self.tail_word(ty, 2)
                ),
            ),
            Kind::Struct | Kind::Union | Kind::Enum | Kind::Enum64 | Kind::Datasec => {
                put(text, format_args!("size={word} vlen={vlen}"));
            }
            Kind::Fwd => text.extend(if ty.kflag() { "union" } else { "struct" }.bytes()),
            Kind::FuncProto => {
                put(text, format_args!("return={word} args=("));
                for i in 0..vlen {
                    let (name, type_id) = self.argument(ty, i);
                    let comma = if i == 0 { "" } else { ", " };
                    if type_id == 0 && i + 1 == vlen {
                        put(text, format_args!("{comma}vararg"));
                        break;
                    }
                    put(text, format_args!("{comma}{type_id} "));
                    self.put_name(text, name);
                    out(text);
                }
                match vlen {
                    0 => text.extend(b"void)"),
                    _ => text.push(b')'),
                }
            }
            Kind::Var => put(
                text,
                format_args!("type_id={word} linkage={}", self.tail_word(ty, 0)),
            ),
            Kind::Float => put(text, format_args!("size={word}")),
            Kind::DeclTag => put(
                text,
                format_args!(
                    "type={word} component_idx={}",
                    self.tail_word(ty, 0).cast_signed()
                ),
            ),
        }
    }

    /// Name offset and type of a function's argument.
    fn argument(&self, ty: &Type, index: u32) -> (u32, u32) {
        let at = index as usize * 2;
        (self.tail_word(ty, at), self.tail_word(ty, at + 1))
    }

    fn put_member(&self, text: &mut Vec<u8>, ty: &Type, i: u32) {
        let at = i as usize;
        match ty.kind {
            Kind::Struct | Kind::Union => {
                let member = self.raw_member(ty, i);
                text.push(b'\t');
                self.put_name(text, member.name_off);
                put(text, format_args!(" type_id={}", member.type_id));
                if ty.kflag() {
                    put(
                        text,
                        format_args!(" bitfield_size={}", member.bitfield_size()),
                    );
                }
                put(
                    text,
                    format_args!(" bits_offset={}\n", member.bit_offset(ty.kflag())),
                );
            }
            Kind::Enum => {
                let value = self.tail_word(ty, at * 2 + 1);
                text.push(b'\t');
                self.put_name(text, self.tail_word(ty, at * 2));
                match ty.kflag() {
                    true => put(text, format_args!(" val={}\n", value.cast_signed())),
                    false => put(text, format_args!(" val={value}\n")),
                }
            }
            Kind::Enum64 => {
                let low = u64::from(self.tail_word(ty, at * 3 + 1));
                let value = low | u64::from(self.tail_word(ty, at * 3 + 2)) << 32;
                text.push(b'\t');
                self.put_name(text, self.tail_word(ty, at * 3));
                match ty.kflag() {
                    true => put(text, format_args!(" val={}\n", value.cast_signed())),
                    false => put(text, format_args!(" val={value}\n")),
                }
            }
            Kind::Datasec => {
                let var = self.raw_section_var(ty, i);
                put(
                    text,
                    format_args!(
                        "\t type_id={} offset={} size={}\n",
                        var.type_id, var.offset, var.size
                    ),
                );
            }
            _ => {}
        }
    }
}

fn put(text: &mut Vec<u8>, what: std::fmt::Arguments<'_>) {
    struct Bytes<'a>(&'a mut Vec<u8>);
    impl Write for Bytes<'_> {
        fn write_str(&mut self, part: &str) -> std::fmt::Result {
            self.0.extend(part.bytes());
            Ok(())
        }
    }
    // Writing to a vector does not fail.
    let _ = Bytes(text).write_fmt(what);
}
