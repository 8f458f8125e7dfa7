//! The C header is what `crates/abi` says, and a C compiler makes the same of it as Rust does.
//!
//! `OFFMAP_WRITE_HEADER=1` writes it anew. Without a C compiler the second part is skipped, aloud;
//! `OFFMAP_REQUIRE_CC=1` makes that a failure.

use offmap_abi::{admin, completion, map_type, notify, opcode, regs, ringbuf, status, submission};
use offmap_tests::header::{Abi, emit, program, read};
use offmap_tests::report::{aloud, required};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromZeros, IntoBytes};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn abi() -> Abi {
    read(&root().join("crates/abi/src")).expect("the sources are understood")
}

/// A field that can be given a value.
trait Fill {
    fn fill(&mut self, n: usize);
}

impl Fill for u8 {
    fn fill(&mut self, n: usize) {
        *self = program::value(n) as u8;
    }
}

impl Fill for U16 {
    fn fill(&mut self, n: usize) {
        *self = U16::new(program::value(n) as u16);
    }
}

impl Fill for U32 {
    fn fill(&mut self, n: usize) {
        *self = U32::new(program::value(n) as u32);
    }
}

impl Fill for U64 {
    fn fill(&mut self, n: usize) {
        *self = U64::new(program::value(n));
    }
}

impl<const N: usize> Fill for [u8; N] {
    fn fill(&mut self, n: usize) {
        for (i, byte) in self.iter_mut().enumerate() {
            *byte = program::byte(n, i);
        }
    }
}

/// What the program in C has to say of structures, from Rust's own.
macro_rules! structures {
    ($($type:path as $name:literal { $($field:ident),* $(,)? })*) => {{
        let mut lines: Vec<String> = Vec::new();
        $({
            let mut it = <$type>::new_zeroed();
            lines.push(format!("struct {} {}", $name, size_of::<$type>()));
            let mut n = 0;
            $(
                let (offset, size) = (std::mem::offset_of!($type, $field), size_of_val(&it.$field));
                lines.push(format!("field {}.{} {offset} {size}", $name, stringify!($field)));
                it.$field.fill(n);
                n += 1;
            )*
            assert!(n > 0);
            let hex: String = it.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
            lines.push(format!("bytes {} {hex}", $name));
        })*
        lines
    }};
}

/// What it has to say of constants.
macro_rules! constants {
    ($($value:expr => $name:literal,)*) => {
        vec![$(format!("constant {} {}", $name, $value as u64)),*]
    };
}

/// All that Rust says, as the C program says it. That nothing is missing here the number of lines shows.
fn expected() -> Vec<String> {
    let class = regs::PCI_CLASS
        .iter()
        .fold(0, |class, byte| class << 8 | u64::from(*byte));
    let mut lines = constants! {
        offmap_abi::ABI_MAJOR => "OFFMAP_ABI_MAJOR",
        offmap_abi::ABI_MINOR => "OFFMAP_ABI_MINOR",
        notify::DOORBELL_STRIDE => "OFFMAP_DOORBELL_STRIDE",
        notify::DOORBELL_SQ_TAIL => "OFFMAP_DOORBELL_SQ_TAIL",
        notify::DOORBELL_CQ_HEAD => "OFFMAP_DOORBELL_CQ_HEAD",
        notify::NOTIFY_BYTES => "OFFMAP_NOTIFY_BYTES",
        notify::NOTIFY_ALIGN => "OFFMAP_NOTIFY_ALIGN",
        notify::NOTIFY_SQ_TAIL => "OFFMAP_NOTIFY_SQ_TAIL",
        notify::NOTIFY_CQ_HEAD => "OFFMAP_NOTIFY_CQ_HEAD",
        notify::NOTIFY_CQ_EVENT => "OFFMAP_NOTIFY_CQ_EVENT",
        notify::NOTIFY_SQ_EVENT => "OFFMAP_NOTIFY_SQ_EVENT",
        notify::EVENT_ARMED => "OFFMAP_EVENT_ARMED",
        regs::PCI_VENDOR_ID => "OFFMAP_PCI_VENDOR_ID",
        regs::PCI_DEVICE_ID => "OFFMAP_PCI_DEVICE_ID",
        class => "OFFMAP_PCI_CLASS",
        regs::BAR_REGISTERS => "OFFMAP_BAR_REGISTERS",
        regs::BAR_WINDOW => "OFFMAP_BAR_WINDOW",
        regs::BAR0_BYTES => "OFFMAP_BAR0_BYTES",
        regs::WINDOW_BYTES => "OFFMAP_WINDOW_BYTES",
        regs::DOORBELLS => "OFFMAP_DOORBELLS",
        regs::DOORBELLS_BYTES => "OFFMAP_DOORBELLS_BYTES",
        regs::MSIX_TABLE => "OFFMAP_MSIX_TABLE",
        regs::MSIX_PBA => "OFFMAP_MSIX_PBA",
        regs::MAX_QUEUE_PAIRS => "OFFMAP_MAX_QUEUE_PAIRS",
        regs::QUEUE_DEPTH_LIMIT => "OFFMAP_QUEUE_DEPTH_LIMIT",
        regs::MAGIC => "OFFMAP_MAGIC",
        regs::MAGIC_VALUE => "OFFMAP_MAGIC_VALUE",
        regs::VERSION => "OFFMAP_VERSION",
        regs::VECTORS => "OFFMAP_VECTORS",
        regs::FEATURES => "OFFMAP_FEATURES",
        regs::QUEUE_PAIRS => "OFFMAP_QUEUE_PAIRS",
        regs::QUEUE_DEPTH_MAX => "OFFMAP_QUEUE_DEPTH_MAX",
        regs::READY_TIMEOUT_MS => "OFFMAP_READY_TIMEOUT_MS",
        regs::RESET_COUNT => "OFFMAP_RESET_COUNT",
        regs::CONTROL => "OFFMAP_CONTROL",
        regs::STATUS => "OFFMAP_STATUS",
        regs::KICK => "OFFMAP_KICK",
        regs::FATAL_CAUSE => "OFFMAP_FATAL_CAUSE",
        regs::ADMIN_SQ => "OFFMAP_ADMIN_SQ",
        regs::ADMIN_CQ => "OFFMAP_ADMIN_CQ",
        regs::ADMIN_DEPTH => "OFFMAP_ADMIN_DEPTH",
        regs::ADMIN_VECTOR => "OFFMAP_ADMIN_VECTOR",
        regs::WINDOW_BASE => "OFFMAP_WINDOW_BASE",
        regs::NO_VECTOR => "OFFMAP_NO_VECTOR",
        regs::RING_ALIGN => "OFFMAP_RING_ALIGN",
        submission::SUBMISSION_BYTES => "OFFMAP_SUBMISSION_BYTES",
        submission::SUBMISSION_WORDS => "OFFMAP_SUBMISSION_WORDS",
        submission::INLINE_KEY_BYTES => "OFFMAP_INLINE_KEY_BYTES",
        submission::INLINE_VALUE_BYTES => "OFFMAP_INLINE_VALUE_BYTES",
        submission::PHASE_BIT => "OFFMAP_PHASE_BIT",
        submission::UPDATE_ANY => "OFFMAP_UPDATE_ANY",
        submission::UPDATE_NOEXIST => "OFFMAP_UPDATE_NOEXIST",
        submission::UPDATE_EXIST => "OFFMAP_UPDATE_EXIST",
        completion::COMPLETION_BYTES => "OFFMAP_COMPLETION_BYTES",
        completion::COMPLETION_WORDS => "OFFMAP_COMPLETION_WORDS",
        completion::INLINE_RESULT_BYTES => "OFFMAP_INLINE_RESULT_BYTES",
        admin::MAP_ATTR_BYTES_MAX => "OFFMAP_MAP_ATTR_BYTES_MAX",
        admin::PORTS_MAX => "OFFMAP_PORTS_MAX",
        admin::TIERS_MAX => "OFFMAP_TIERS_MAX",
        admin::TIER_PLACEABLE => "OFFMAP_TIER_PLACEABLE",
        admin::MAP_TIER_FIXED => "OFFMAP_MAP_TIER_FIXED",
        ringbuf::PAGE_BYTES => "OFFMAP_RINGBUF_PAGE_BYTES",
        ringbuf::CONSUMER_POSITION => "OFFMAP_RINGBUF_CONSUMER_POSITION",
        ringbuf::PRODUCER_POSITION => "OFFMAP_RINGBUF_PRODUCER_POSITION",
        ringbuf::DROPPED => "OFFMAP_RINGBUF_DROPPED",
        ringbuf::DATA => "OFFMAP_RINGBUF_DATA",
        ringbuf::HEADER_BYTES => "OFFMAP_RINGBUF_HEADER_BYTES",
        ringbuf::RECORD_BYTES_MAX => "OFFMAP_RINGBUF_RECORD_BYTES_MAX",
        ringbuf::BUSY => "OFFMAP_RINGBUF_BUSY",
        ringbuf::DISCARD => "OFFMAP_RINGBUF_DISCARD",
        ringbuf::FIRST_PAGE => "OFFMAP_RINGBUF_FIRST_PAGE",
        ringbuf::NO_WAKEUP => "OFFMAP_RINGBUF_NO_WAKEUP",
        ringbuf::FORCE_WAKEUP => "OFFMAP_RINGBUF_FORCE_WAKEUP",
    };
    for value in regs::FatalCause::ALL {
        lines.push(named("FATAL_CAUSE", value.name(), value.0.into()));
    }
    for value in opcode::AdminOpcode::ALL {
        lines.push(named("ADMIN_OPCODE", value.name(), value.0.into()));
    }
    for value in opcode::IoOpcode::ALL {
        lines.push(named("IO_OPCODE", value.name(), value.0.into()));
    }
    for value in status::Status::ALL {
        lines.push(named("STATUS", value.name(), value.0.into()));
    }
    for value in map_type::MapType::ALL {
        lines.push(named("MAP_TYPE", value.name(), value.0.into()));
    }
    for value in admin::CheckCode::ALL {
        lines.push(named("CHECK_CODE", value.name(), value.0.into()));
    }
    for value in admin::Limit::ALL {
        lines.push(named("LIMIT", value.name(), value.0.into()));
    }
    for (name, flag) in regs::Features::all().iter_names() {
        lines.push(format!("constant OFFMAP_FEATURES_{name} {}", flag.bits()));
    }
    for (name, flag) in regs::Control::all().iter_names() {
        lines.push(format!(
            "constant OFFMAP_CONTROL_{name} {}",
            u64::from(flag.bits())
        ));
    }
    for (name, flag) in regs::DeviceStatus::all().iter_names() {
        lines.push(format!(
            "constant OFFMAP_DEVICE_STATUS_{name} {}",
            u64::from(flag.bits())
        ));
    }
    for (name, flag) in submission::SubmissionFlags::all().iter_names() {
        lines.push(format!(
            "constant OFFMAP_SUBMISSION_FLAGS_{name} {}",
            u64::from(flag.bits())
        ));
    }
    lines.extend(structures! {
        submission::Submission as "offmap_submission" { opcode, flags, phase, map, request, body }
        submission::ElementBody as "offmap_element_body" { map_flags, key_len, value_len, reserved, key, value }
        submission::IovaRef as "offmap_iova_ref" { iova, reserved }
        submission::BatchBody as "offmap_batch_body" { map_flags, count, key_len, value_len, keys, values, statuses, cursor }
        completion::Completion as "offmap_completion" { status, phase, count, request, payload }
        completion::BatchResult as "offmap_batch_result" { cursor, needed, reserved }
        admin::IdentifyBody as "offmap_identify_body" { iova, len, reserved }
        admin::IdentifyData as "offmap_identify_data" { firmware, map_types, memory_bytes, entries_total, entries_per_map, maps, key_bytes, value_bytes, cpu_slots, batch, engines, ports, tiers, reserved }
        admin::QueueCreateBody as "offmap_queue_create_body" { queue, reserved, depth, vector, coalesce_count, coalesce_us, sq, cq, notify, reserved3 }
        admin::QueueDeleteBody as "offmap_queue_delete_body" { queue, reserved }
        admin::MapCreateBody as "offmap_map_create_body" { map_type, key_size, value_size, max_entries, cpu_slots, flags, seed, attr, attr_len, reserved }
        admin::MapAttr as "offmap_map_attr" { name, map_extra, host_memory, inner_map, vector, tier, reserved }
        admin::MapCreated as "offmap_map_created" { map, reserved, bytes }
        admin::EmptyBody as "offmap_empty_body" { reserved }
        admin::MapInfo as "offmap_map_info" { bytes, entries, longest_chain, free_bytes, free_largest }
admin::MapListBody as "offmap_map_list_body" { iova, len, cursor, reserved }
        admin::MapListed as "offmap_map_listed" { cursor, reserved }
        admin::MapDescription as "offmap_map_description" {
            map, map_type, key_size, value_size, max_entries, cpu_slots, map_extra, bytes, name, base
        }
        admin::MemoryInfoBody as "offmap_memory_info_body" { iova, len, first, reserved }
        admin::MemoryListed as "offmap_memory_listed" { tiers, line_bytes }
        admin::TierInfo as "offmap_tier_info" {
            name, base, bytes, used, free_largest, free_pieces, check, flags, reserved, corrected, detected, bad_lines, reserved2
        }
        admin::MapLayoutBody as "offmap_map_layout_body" { iova, len, reserved }
        admin::MapLayout as "offmap_map_layout" {
            base, bytes, tier, flags, heat, entries, max_entries, entry_bytes, homes, homes_used, overflow,
            overflow_used, longest_chain, probes_1, probes_2, probes_3, probes_4, probes_8, probes_16, probes_more, reserved
        }
        admin::MapMigrateBody as "offmap_map_migrate_body" { tier, reserved }
        admin::MapMigrated as "offmap_map_migrated" { map, tier, base, from, reserved }
        admin::AbortBody as "offmap_abort_body" { request, queue, reserved }
        admin::LimitDetail as "offmap_limit_detail" { limit, reserved, asked, allowed, used }
        admin::MemoryDetail as "offmap_memory_detail" { limit, tier, asked, allowed, used, free }
    });
    lines
}

/// The line of a value of an open enum: `QueueCreate` is `QUEUE_CREATE` in C.
fn named(set: &str, name: Option<&str>, value: u64) -> String {
    let mut c = String::new();
    for letter in name.expect("a name").chars() {
        if letter.is_uppercase() && !c.is_empty() {
            c.push('_');
        }
        c.extend(letter.to_uppercase());
    }
    format!("constant OFFMAP_{set}_{c} {value}")
}

#[test]
fn the_header_is_that_of_the_sources() {
    let path = root().join("crates/abi/include/offmap_abi.h");
    let made = emit::header(&abi());
    if required("OFFMAP_WRITE_HEADER") {
        fs::write(&path, &made).expect("the header can be written");
    }
    let committed = fs::read_to_string(&path).expect("the header is there");
    assert!(
        committed == made,
        "crates/abi/include/offmap_abi.h is not what the sources say; OFFMAP_WRITE_HEADER=1 writes it"
    );
}

#[test]
fn a_compiler_makes_the_same_of_it() {
    let folder = std::env::temp_dir().join(format!("offmap-header-{}", std::process::id()));
    fs::create_dir_all(&folder).expect("a folder");
    let outcome = std::panic::catch_unwind(|| compile_all(&folder));
    let _ = fs::remove_dir_all(&folder);
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

fn compile_all(folder: &Path) {
    let abi = abi();
    let mut expected = expected();
    expected.sort();
    let source = program::source(&abi);
    let include = root().join("crates/abi/include");
    for (compiler, language, standard) in [("cc", "c", "c11"), ("c++", "c++", "c++17")] {
        let there = Command::new(compiler).arg("--version").output();
        if !there.is_ok_and(|out| out.status.success()) {
            aloud(&format!(
                "header: skipped for {standard}: there is no {compiler}"
            ));
            assert!(
                !required("OFFMAP_REQUIRE_CC"),
                "OFFMAP_REQUIRE_CC=1, and there is no {compiler}"
            );
            continue;
        }
        let (file, program) = (
            folder.join(standard),
            folder.join(format!("{standard}.out")),
        );
        fs::write(&file, &source).expect("the source can be written");
        let out = Command::new(compiler)
            .args([
                "-x",
                language,
                &format!("-std={standard}"),
                "-Wall",
                "-Wextra",
                "-Werror",
                "-pedantic",
            ])
            .arg("-I")
            .arg(&include)
            .arg(&file)
            .arg("-o")
            .arg(&program)
            .output()
            .expect("the compiler starts");
        assert!(
            out.status.success(),
            "{standard}: {}",
            String::from_utf8_lossy(&out.stderr)
        );
        let out = Command::new(&program).output().expect("the program starts");
        assert!(out.status.success());
        let said = String::from_utf8(out.stdout).expect("ASCII");
        let mut said: Vec<_> = said.lines().map(str::to_owned).collect();
        said.sort();
        for line in &said {
            assert!(expected.contains(line), "{standard} says: {line}");
        }
        assert_eq!(said, expected, "{standard}");
    }
}
