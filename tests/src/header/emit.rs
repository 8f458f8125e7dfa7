//! Writes the header.

use super::{Abi, Constant, Field, Item, Struct};
use std::fmt::Write;

const HEAD: &str = "\
/* The offmap device ABI for C11 and C++11.
 *
 * Generated from the sources of crates/abi; a test holds it to them, and compares what a C compiler
 * makes of it with what Rust does. docs/abi.md is the prose, whose sections (abi \u{a7}) are named here.
 *
 * All fields are little-endian: offmap_le16, offmap_le32 and offmap_le64 hold their bytes in that
 * order on every machine. Unknown opcodes, statuses and flags are kept as they come.
 */
/* SPDX-License-Identifier: MIT OR Apache-2.0 */
#ifndef OFFMAP_ABI_H
#define OFFMAP_ABI_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
#define OFFMAP_ASSERT(holds) static_assert(holds, #holds)
#else
#define OFFMAP_ASSERT(holds) _Static_assert(holds, #holds)
#endif

typedef uint16_t offmap_le16;
typedef uint32_t offmap_le32;
typedef uint64_t offmap_le64;
";

const FOOT: &str = "
#endif /* OFFMAP_ABI_H */
";

/// The header.
pub fn header(abi: &Abi) -> String {
    let mut text = HEAD.to_owned();
    for part in abi.parts.iter().filter(|part| !part.items.is_empty()) {
        text += "\n/* ---- ";
        text += &part.doc.join("\n *      ");
        text += " */\n";
        for item in &part.items {
            text.push('\n');
            match item {
                Item::Constant(value) => constant(&mut text, value),
                Item::Set { doc, values } => {
                    comment(&mut text, "", doc);
                    for value in values {
                        constant(&mut text, value);
                    }
                }
                Item::Struct(described) => structure(&mut text, described),
            }
        }
    }
    text + FOOT
}

fn comment(text: &mut String, indent: &str, doc: &[String]) {
    let lines: Vec<_> = doc.iter().map(|line| line.as_str()).collect();
    if !lines.is_empty() {
        let between = format!("\n{indent} * ");
        let body = lines.join(&between).replace(" * \n", " *\n");
        let _ = writeln!(text, "{indent}/* {body} */");
    }
}

fn constant(text: &mut String, constant: &Constant) {
    comment(text, "", &constant.doc);
    let (name, value) = (&constant.name, constant.value);
    let digits = match value {
        0..=9 => value.to_string(),
        _ => format!("{value:#x}"),
    };
    let _ = writeln!(text, "#define {name} UINT{}_C({digits})", constant.bits);
}

/// The type of a field's elements in C.
pub(super) fn c_type(field: &Field) -> &'static str {
    match field.width {
        1 => "uint8_t",
        2 => "offmap_le16",
        4 => "offmap_le32",
        _ => "offmap_le64",
    }
}

fn structure(text: &mut String, described: &Struct) {
    comment(text, "", &described.doc);
    let name = &described.name;
    let _ = writeln!(text, "struct {name} {{");
    for field in &described.fields {
        comment(text, "\t", &field.doc);
        let count = field.count.map_or(String::new(), |n| format!("[{n}]"));
        let _ = writeln!(text, "\t{} {}{count};", c_type(field), field.name);
    }
    let _ = writeln!(text, "}};");
    let _ = writeln!(
        text,
        "OFFMAP_ASSERT(sizeof(struct {name}) == {});",
        described.size
    );
    for field in &described.fields {
        let (field, offset) = (&field.name, field.offset);
        let _ = writeln!(
            text,
            "OFFMAP_ASSERT(offsetof(struct {name}, {field}) == {offset});"
        );
    }
}
