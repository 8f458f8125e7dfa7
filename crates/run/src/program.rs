//! Programs of the kernel that refer to maps: what BPF_PROG_LOAD says about them.

use crate::kernel::{u32_at, u64_at};
use crate::memory::Target;
use offmap_bpf::UserMemory;

/// Offsets in the attribute of PROG_LOAD.
const INSN_CNT: usize = 4;
const INSNS: usize = 8;
const LOG_LEVEL: usize = 24;
const LOG_SIZE: usize = 28;
const LOG_BUF: usize = 32;
const FD_ARRAY: usize = 120;
const FD_ARRAY_CNT: usize = 148;

/// `BPF_COMPLEXITY_LIMIT_INSNS`: no program has more instructions.
const MAX_INSNS: usize = 1_000_000;
/// Descriptors of an `fd_array` that are looked at, at most: `MAX_USED_MAPS` and as many BTF objects.
const MAX_FDS: usize = 128;

/// `BPF_LD | BPF_IMM | BPF_DW`.
const LOAD_IMM64: u8 = 0x18;
const PSEUDO_MAP_FD: u8 = 1;
const PSEUDO_MAP_VALUE: u8 = 2;
const PSEUDO_MAP_IDX: u8 = 5;
const PSEUDO_MAP_IDX_VALUE: u8 = 6;

/// The descriptors that a program's instructions name as maps, each with the first instruction; a
/// descriptor of its `fd_array` that none names has none. What cannot be read is the kernel's to
/// complain about.
pub(crate) fn map_fds(target: Target, attr: &[u8]) -> Vec<(i32, Option<usize>)> {
    let count = (u32_at(attr, INSN_CNT) as usize).min(MAX_INSNS);
    let mut code = vec![0; count * 8];
    let mut found: Vec<(i32, Option<usize>)> = Vec::new();
    let mut add = |fd, at| {
        if !found.iter().any(|(known, _)| *known == fd) {
            found.push((fd, at));
        }
    };
    let array = u64_at(attr, FD_ARRAY);
    let nth = |n: i32| {
        let mut raw = [0; 4];
        let at = array.wrapping_add_signed(i64::from(n) * 4);
        target.read(at, &mut raw).ok()?;
        Some(i32::from_ne_bytes(raw))
    };
    if target.read(u64_at(attr, INSNS), &mut code).is_ok() {
        for (at, insn) in code.chunks_exact(8).enumerate() {
            if insn[0] != LOAD_IMM64 {
                continue;
            }
            let imm = u32_at(insn, 4) as i32;
            match insn[1] >> 4 {
                PSEUDO_MAP_FD | PSEUDO_MAP_VALUE => add(imm, Some(at)),
                PSEUDO_MAP_IDX | PSEUDO_MAP_IDX_VALUE => {
                    if let Some(fd) = nth(imm) {
                        add(fd, Some(at));
                    }
                }
                _ => {}
            }
        }
    }
    for n in 0..(u32_at(attr, FD_ARRAY_CNT) as usize).min(MAX_FDS) {
        if let Some(fd) = nth(n as i32) {
            add(fd, None);
        }
    }
    found
}

/// Writes a sentence where the caller of PROG_LOAD wants the verifier's log, if it does.
pub(crate) fn log(target: Target, attr: &[u8], sentence: &str) {
    let (level, size) = (u32_at(attr, LOG_LEVEL), u32_at(attr, LOG_SIZE) as usize);
    let buffer = u64_at(attr, LOG_BUF);
    if level == 0 || buffer == 0 || size == 0 {
        return;
    }
    let mut text = sentence.as_bytes()[..sentence.len().min(size - 1)].to_vec();
    text.push(0);
    // A buffer that cannot be written has no reader.
    let _ = target.write(buffer, &text);
}
