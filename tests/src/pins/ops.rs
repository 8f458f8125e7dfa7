//! The operations, and how they are made up.

use rand::{Rng, RngExt, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;

/// Maps that can be pinned: descriptors 0 to 2 of a side, which are read-write, read-only and
/// write-only.
pub const MAPS: usize = 3;

/// One operation. Paths are bytes without a NUL.
#[derive(Clone, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "named as the system calls")]
pub enum Op {
    User(u32, u32),
    Mkdir(Vec<u8>, u16),
    Rmdir(Vec<u8>),
    Unlink(Vec<u8>),
    Rename(Vec<u8>, Vec<u8>, u32),
    Link(Vec<u8>, Vec<u8>),
    Symlink(Vec<u8>, Vec<u8>),
    ReadLink(Vec<u8>),
    Chmod(Vec<u8>, u16),
    Chown(Vec<u8>, Option<u32>, Option<u32>),
    Stat(Vec<u8>),
    Lstat(Vec<u8>),
    ReadDir(Vec<u8>),
    Chdir(Vec<u8>),
    OpenDir(Vec<u8>),
    CloseDir,
    /// A map's number (past the last: no descriptor), and whether the open directory is used.
    Pin(Vec<u8>, usize, bool),
    /// Flags, and whether the open directory is used.
    Get(Vec<u8>, u32, bool),
}

/// `BPF_F_PATH_FD`.
pub(super) const PATH_FD: u32 = 1 << 14;

const NAMES: [&[u8]; 20] = [
    b"a", b"b", b"c", b"d", b"e", b"f", b"a", b"b", b"c", b"d", b"e", b"f", b"a", b"b", b"c", b"d",
    b"x.y", b".", b"..", b"\xff o",
];

fn name(rng: &mut impl Rng) -> Vec<u8> {
    match rng.random_range(0..200) {
        0 => vec![b'n'; 255],
        1 => vec![b'n'; 256],
        2 => [&[b'.'; 256][..], b"n"].concat(),
        _ => NAMES[rng.random_range(0..NAMES.len())].to_vec(),
    }
}

fn path(rng: &mut impl Rng) -> Vec<u8> {
    let mut path = match rng.random_range(0..80) {
        0 => return Vec::new(),
        1 => return b"/".to_vec(),
        2 => return b"/sys/fs/bpf".to_vec(),
        3 => b"/".to_vec(),
        4 => b"/sys/".to_vec(),
        5 => b"/sys/fs/".to_vec(),
        6 => b"/sys/fs/bpf/../".to_vec(),
        7..12 => Vec::new(),
        12 => {
            // Around the longest path that there can be.
            let mut long = b"/sys/fs/bpf/".to_vec();
            let bytes = rng.random_range(4090..4100);
            while long.len() < bytes {
                long.extend_from_slice(if rng.random_bool(0.99) { b"/" } else { b"./" });
            }
            long
        }
        _ => b"/sys/fs/bpf/".to_vec(),
    };
    let depth = match rng.random_range(0..10) {
        0..6 => 1,
        6..9 => 2,
        _ => rng.random_range(3..6),
    };
    for i in 0..depth {
        if i > 0 {
            path.extend_from_slice(if rng.random_bool(0.1) { b"//" } else { b"/" });
        }
        path.extend_from_slice(&name(rng));
    }
    if rng.random_bool(0.08) {
        path.push(b'/');
    }
    path
}

fn mode(rng: &mut impl Rng) -> u16 {
    match rng.random_range(0..8) {
        0 => 0,
        1 => 0o7777,
        2 => 0o1777,
        3 => 0o2775,
        4 => 0o700,
        5 => rng.random_range(0..0o10000),
        _ => 0o755,
    }
}

const USERS: [u32; 3] = [0, 1000, 1001];

fn user(rng: &mut impl Rng) -> u32 {
    USERS[rng.random_range(0..USERS.len())]
}

fn maybe_user(rng: &mut impl Rng) -> Option<u32> {
    rng.random_bool(0.7).then(|| user(rng))
}

fn op(rng: &mut impl Rng) -> Op {
    match rng.random_range(0..100) {
        0..4 if rng.random_bool(0.5) => Op::User(0, 0),
        0..4 => Op::User(user(rng), user(rng)),
        4..18 => Op::Mkdir(path(rng), mode(rng)),
        18..23 => Op::Rmdir(path(rng)),
        23..29 => Op::Unlink(path(rng)),
        29..43 => {
            let flags = match rng.random_range(0..10) {
                0..5 => 0,
                5 | 6 => 1,
                7 | 8 => 2,
                _ => rng.random_range(0..16),
            };
            Op::Rename(path(rng), path(rng), flags)
        }
        43..48 => Op::Link(path(rng), path(rng)),
        48..55 => {
            let target = match rng.random_range(0..40) {
                0 => vec![b'/'; rng.random_range(4094..4098)],
                _ => path(rng),
            };
            Op::Symlink(target, path(rng))
        }
        55..57 => Op::ReadLink(path(rng)),
        57..62 => Op::Chmod(path(rng), mode(rng)),
        62..65 => Op::Chown(path(rng), maybe_user(rng), maybe_user(rng)),
        65..68 => Op::Stat(path(rng)),
        68..71 => Op::Lstat(path(rng)),
        71..75 => Op::ReadDir(path(rng)),
        75..77 => Op::Chdir(path(rng)),
        77..79 => Op::OpenDir(path(rng)),
        79 => Op::CloseDir,
        80..90 => Op::Pin(path(rng), rng.random_range(0..=MAPS), rng.random_bool(0.2)),
        _ => {
            let flags = match rng.random_range(0..10) {
                0..6 => 0,
                6 | 7 => 8,
                8 => 16,
                // BPF_F_PATH_FD goes with a descriptor, and standard input is none of ours.
                _ => (1 << rng.random_range(0..18)) & !PATH_FD,
            };
            Op::Get(path(rng), flags, rng.random_bool(0.2))
        }
    }
}

/// The sequence of a seed. It starts as user 0.
pub fn sequence(seed: u64, ops: usize) -> Vec<Op> {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
    (0..ops).map(|_| op(&mut rng)).collect()
}
