//! The kernel contract, row by row: §A (MAP_CREATE), §B (commands on an offloaded map), §E
//! (host maps) and §F (recorded on netdevsim), over bpf(2) as bytes. §C, and what of §F goes
//! through the typed calls, is in `contract_profiles.rs`.
//!
//! A test's name begins with its row: [`rows`] has the list, and fails when a row has no test.
//! What the running kernel can judge is asked of it by the same code;
//! `OFFMAP_REQUIRE_KERNEL=1` makes it a failure when it takes no part.

#[path = "contract/create.rs"]
mod create;
#[path = "contract/fields.rs"]
mod fields;
#[path = "contract/generic.rs"]
mod generic;
#[path = "contract/host.rs"]
mod host;
#[path = "contract/host_types.rs"]
mod host_types;
#[path = "contract/log.rs"]
mod log;
#[path = "contract/offloaded.rs"]
mod offloaded;
#[path = "contract/privileges.rs"]
mod privileges;
#[path = "contract/rows.rs"]
mod rows;

use offmap_bpf::{Errno, MapCreateAttr, MapType};
use offmap_emulator::Inline;
use offmap_tests::contract::{Machine, Ours, Theirs};
use offmap_tests::profiles;
use offmap_tests::report::{aloud, required};
use offmap_tests::stack::Stack;

const HASH: MapType = MapType::HASH;
const ARRAY: MapType = MapType::ARRAY;

const EPERM: i32 = Errno::EPERM.0;
const ENOENT: i32 = Errno::ENOENT.0;
const E2BIG: i32 = Errno::E2BIG.0;
const EBADF: i32 = Errno::EBADF.0;
const EACCES: i32 = Errno::EACCES.0;
const EFAULT: i32 = Errno::EFAULT.0;
const EEXIST: i32 = Errno::EEXIST.0;
const ENODEV: i32 = Errno::ENODEV.0;
const EINVAL: i32 = Errno::EINVAL.0;
const EMFILE: i32 = Errno::EMFILE.0;
const ENOSPC: i32 = Errno::ENOSPC.0;
const ENOMEM: i32 = Errno::ENOMEM.0;
const EIO: i32 = Errno::EIO.0;
const EBADFD: i32 = Errno::EBADFD.0;
const EOPNOTSUPP: i32 = Errno::EOPNOTSUPP.0;
const ENOTSUPP: i32 = Errno::ENOTSUPP.0;

/// Keys of 4 bytes and values of 8.
fn attr(map_type: MapType, max_entries: u32) -> MapCreateAttr {
    profiles::attr(map_type, max_entries)
}

fn key(n: u32) -> [u8; 4] {
    n.to_ne_bytes()
}

fn value(n: u64) -> [u8; 8] {
    n.to_ne_bytes()
}

fn name(text: &[u8]) -> [u8; 16] {
    let mut name = [0; 16];
    name[..text.len()].copy_from_slice(text);
    name
}

/// Runs a row on our host maps, and on the running kernel's.
fn on_hosts(row: impl Fn(&mut dyn Machine)) {
    row(&mut Ours::host());
    if let Ok(mut kernel) = Theirs::new() {
        row(&mut kernel);
    }
}

/// A stack with a strict profile and its map side.
fn strict(profile: &str) -> (Stack<Inline>, Ours) {
    let stack = profiles::stack(profile);
    let ours = Ours::on(profile, &stack);
    (stack, ours)
}

const STRICT: [&str; 2] = ["netdevsim", "nfp"];

/// Runs a row on the strict profiles.
fn on_strict(row: impl Fn(&Stack<Inline>, &mut Ours)) {
    for profile in STRICT {
        let (stack, mut ours) = strict(profile);
        row(&stack, &mut ours);
    }
}

/// Runs a row on every column: host maps, ours and the kernel's, and offloaded ones.
fn everywhere(row: impl Fn(&mut dyn Machine)) {
    on_hosts(&row);
    on_strict(|_, ours| row(ours));
}

#[test]
fn whether_the_running_kernel_judges() {
    if let Err(why) = Theirs::new() {
        aloud(&format!(
            "contract: THE KERNEL TAKES NO PART, maps may not be created here ({why})"
        ));
        assert!(!required("OFFMAP_REQUIRE_KERNEL"), "{why}");
    }
}
