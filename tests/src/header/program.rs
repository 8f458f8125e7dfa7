//! A program in C, and C++, that includes the header and says what the compiler makes of it.
//!
//! One line for each thing: `constant NAME value`, `struct name size`, `field name.field offset
//! size`, and `bytes name hex` of a structure whose fields were all given values.

use super::Abi;
use std::fmt::Write;

/// The value that field `n` of a structure is given, cut to its width.
pub fn value(n: usize) -> u64 {
    0x0123_4567_89ab_cdef_u64.rotate_left(n as u32 * 8) ^ (n as u64) << 4
}

/// Byte `i` of field `n`, where that is an array.
pub fn byte(n: usize, i: usize) -> u8 {
    (n * 37 + i * 11 + 5) as u8
}

/// The program.
pub fn source(abi: &Abi) -> String {
    let mut text = String::from(
        "#include \"offmap_abi.h\"\n#include <inttypes.h>\n#include <stdio.h>\n#include <string.h>\n\n\
         static void bytes(const char *name, const void *at, size_t size)\n{\n\
         \tconst unsigned char *byte = (const unsigned char *)at;\n\tsize_t i;\n\
         \tprintf(\"bytes %s \", name);\n\tfor (i = 0; i < size; i++)\n\t\tprintf(\"%02x\", byte[i]);\n\
         \tprintf(\"\\n\");\n}\n\nint main(void)\n{\n\tsize_t i;\n",
    );
    for constant in abi.constants() {
        let name = &constant.name;
        let _ = writeln!(
            text,
            "\tprintf(\"constant {name} %\" PRIu64 \"\\n\", (uint64_t){name});"
        );
    }
    for described in abi.structs() {
        let name = &described.name;
        let _ = writeln!(text, "\t{{\n\t\tstruct {name} it;");
        let _ = writeln!(text, "\t\tmemset(&it, 0xee, sizeof(it));");
        let _ = writeln!(text, "\t\tprintf(\"struct {name} %zu\\n\", sizeof(it));");
        for (n, field) in described.fields.iter().enumerate() {
            let at = &field.name;
            let _ = writeln!(
                text,
                "\t\tprintf(\"field {name}.{at} %zu %zu\\n\", offsetof(struct {name}, {at}), sizeof(it.{at}));"
            );
            let _ = match field.count {
                Some(_) => writeln!(
                    text,
                    "\t\tfor (i = 0; i < sizeof(it.{at}); i++)\n\t\t\tit.{at}[i] = (uint8_t)({n} * 37 + i * 11 + 5);"
                ),
                None => writeln!(
                    text,
                    "\t\tit.{at} = ({})UINT64_C({:#x});",
                    super::emit::c_type(field),
                    value(n)
                ),
            };
        }
        let _ = writeln!(text, "\t\tbytes(\"{name}\", &it, sizeof(it));\n\t}}");
    }
    text + "\t(void)i;\n\treturn 0;\n}\n"
}
