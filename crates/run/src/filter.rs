//! Which system calls the supervisor is asked about: bpf(2), and of its commands those of maps, of
//! BTF, and those by which a program of the kernel gets at a map.

use crate::Files;
use libc::sock_filter;
use offmap_bpf::command as c;

/// BPF_PROG_LOAD.
pub(crate) const PROG_LOAD: u32 = 5;
/// BPF_PROG_BIND_MAP.
pub(crate) const PROG_BIND_MAP: u32 = 35;

/// BPF_LINK_CREATE.
pub(crate) const LINK_CREATE: u32 = 28;

/// Asked about wherever the descriptors come from.
const ALWAYS: &[u32] = &[
    c::MAP_CREATE,
    c::MAP_LOOKUP_ELEM,
    c::MAP_UPDATE_ELEM,
    c::MAP_DELETE_ELEM,
    c::MAP_GET_NEXT_KEY,
    PROG_LOAD,
    c::OBJ_PIN,
    c::OBJ_GET_INFO_BY_FD,
    c::MAP_LOOKUP_AND_DELETE_ELEM,
    c::MAP_FREEZE,
    c::MAP_LOOKUP_BATCH,
    c::MAP_LOOKUP_AND_DELETE_BATCH,
    c::MAP_UPDATE_BATCH,
    c::MAP_DELETE_BATCH,
    LINK_CREATE,
    PROG_BIND_MAP,
];

/// Asked about as well where the kernel knows nothing of our objects.
const WITHOUT_KERNEL: &[u32] = &[
    c::OBJ_GET,
    c::MAP_GET_NEXT_ID,
    c::MAP_GET_FD_BY_ID,
    c::BTF_LOAD,
    c::BTF_GET_FD_BY_ID,
    c::BTF_GET_NEXT_ID,
];

#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xc000_00b7;
#[cfg(target_arch = "riscv64")]
const ARCHITECTURE: u32 = 0xc000_00f3;

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
/// The low half of the first argument: these machines are little-endian.
const COMMAND: u32 = 16;

const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const AND: u16 = (libc::BPF_ALU | libc::BPF_AND | libc::BPF_K) as u16;
const EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

const fn statement(code: u16, k: u32) -> sock_filter {
    sock_filter {
        code,
        jt: 0,
        jf: 0,
        k,
    }
}

/// The filter. Calls of other architectures' conventions (32-bit programs) are not looked at.
pub(crate) fn filter(files: Files) -> Vec<sock_filter> {
    let mut commands = ALWAYS.to_vec();
    if files == Files::Memory {
        commands.extend(WITHOUT_KERNEL);
    }
    let count = commands.len() as u8;
    // From an instruction `n` before the last but one (allow) or the last (notify).
    let mut program = vec![
        statement(LOAD, ARCH),
        sock_filter {
            code: EQUAL,
            jt: 0,
            jf: count + 4,
            k: ARCHITECTURE,
        },
        statement(LOAD, NUMBER),
        sock_filter {
            code: EQUAL,
            jt: 0,
            jf: count + 2,
            k: libc::SYS_bpf as u32,
        },
        statement(LOAD, COMMAND),
        // BPF_COMMON_ATTRS is a bit above the commands.
        statement(AND, !c::COMMON_ATTRS),
    ];
    for (n, &k) in commands.iter().enumerate() {
        program.push(sock_filter {
            code: EQUAL,
            jt: count - n as u8,
            jf: 0,
            k,
        });
    }
    program.push(statement(RETURN, libc::SECCOMP_RET_ALLOW));
    program.push(statement(RETURN, libc::SECCOMP_RET_USER_NOTIF));
    program
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel's interpreter of such filters would return.
    fn verdict(program: &[sock_filter], arch: u32, number: u32, command: u32) -> u32 {
        let (mut at, mut a) = (0, 0);
        for _ in 0..program.len() {
            let step = program[at];
            at += 1;
            match step.code {
                LOAD => {
                    a = match step.k {
                        NUMBER => number,
                        ARCH => arch,
                        COMMAND => command,
                        other => panic!("loads from {other}"),
                    }
                }
                AND => a &= step.k,
                EQUAL => at += usize::from(if a == step.k { step.jt } else { step.jf }),
                RETURN => return step.k,
                other => panic!("instruction {other:#x}"),
            }
        }
        panic!("no verdict");
    }

    #[test]
    fn only_maps_and_what_reaches_them_are_asked_about() {
        let bpf = libc::SYS_bpf as u32;
        for files in [Files::Kernel, Files::Memory] {
            let program = filter(files);
            let asked = |arch, number, command| {
                verdict(&program, arch, number, command) == libc::SECCOMP_RET_USER_NOTIF
            };
            for command in 0..64 {
                let expected = ALWAYS.contains(&command)
                    || files == Files::Memory && WITHOUT_KERNEL.contains(&command);
                assert_eq!(asked(ARCHITECTURE, bpf, command), expected, "{command}");
                let with_log = command | c::COMMON_ATTRS;
                assert_eq!(asked(ARCHITECTURE, bpf, with_log), expected, "{command}");
                assert!(!asked(ARCHITECTURE, bpf + 1, command));
                assert!(!asked(0x4000_0003, bpf, command));
            }
            assert!(!asked(ARCHITECTURE, bpf, 1 << 20));
        }
    }
}
