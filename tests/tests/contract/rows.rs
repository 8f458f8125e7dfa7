//! Which test is which row's: the list that is held against the tests there are.

use offmap_tests::report::aloud;

/// Every row: its section, what it says, and what its tests' names begin with.
const ROWS: &[(&str, &str, &str)] = &[
    ("A", "entry: attr larger than a page", "a_entry_1"),
    ("A", "entry: tail beyond the known struct", "a_entry_2"),
    ("A", "entry: bad pointer", "a_entry_3"),
    ("A", "entry: short attr", "a_entry_4"),
    ("A", "entry: unknown command", "a_entry_5"),
    ("A", "1 CHECK_ATTR", "a01"),
    ("A", "2 BTF ids that do not go together", "a02"),
    ("A", "3 map_extra", "a03"),
    ("A", "4 RDONLY and WRONLY", "a04"),
    ("A", "5 NUMA node", "a05"),
    ("A", "6 type", "a06"),
    ("A", "7 native alloc_check", "a07"),
    ("A", "8 offload ops", "a08"),
    ("A", "9 capabilities", "a09"),
    ("A", "10 map_alloc", "a10"),
    ("A", "11 name", "a11"),
    ("A", "12 references", "a12"),
    ("A", "13 BTF", "a13_the_btf"),
    ("A", "14 special-field records", "a14_special"),
    ("A", "15 security hook", "a15"),
    ("A", "16 RDONLY and WRONLY in 7.3", "a16"),
    ("A", "17 id", "a17"),
    ("A", "18 descriptor", "a18"),
    ("A", "map_check_btf: types and sizes", "a13_types"),
    ("A", "map_check_btf: fields by map type", "a13_which"),
    ("A", "map_check_btf: not with RDONLY_PROG", "a13_not_with"),
    ("A", "map_check_btf: capability", "a13_special"),
    ("A", "map_check_btf: at most one lock and timer", "a13_two"),
    ("A", "map_check_no_btf of offload ops", "a13_strict"),
    ("A", "BPF_F_LOCK on elements and batches", "a14_f_lock_on"),
    ("A", "BPF_F_LOCK is atomic", "a14_f_lock_is"),
    ("A", "offload 1: CAP_SYS_ADMIN", "a_offload_1"),
    ("A", "offload 2: type", "a_offload_2"),
    ("A", "offload 3: netdev", "a_offload_3"),
    ("A", "offload 4: the driver's errno", "a_offload_4"),
    ("A", "offload 5: the device's list", "a_offload_5"),
    ("A", "BPF_COMMON_ATTRS: sentences", "a_log_1"),
    ("A", "BPF_COMMON_ATTRS: accepted", "a_log_2"),
    ("A", "BPF_COMMON_ATTRS: cut", "a_log_3"),
    ("A", "BPF_COMMON_ATTRS: combinations", "a_log_4"),
    ("A", "BPF_COMMON_ATTRS: sizes", "a_log_5"),
    ("A", "BPF_COMMON_ATTRS: other commands", "a_log_6"),
    ("A", "BTF_LOAD's log", "a_log_7"),
    ("A", "BTF_LOAD's sentence", "a_log_8"),
    ("B", "LOOKUP", "b_lookup_failures"),
    ("B", "UPDATE", "b_update"),
    ("B", "DELETE", "b_delete"),
    ("B", "GET_NEXT_KEY", "b_get_next"),
    ("B", "LOOKUP_AND_DELETE", "b_lookup_and_delete"),
    ("B", "batches", "b_batches"),
    ("B", "FREEZE", "b_freeze_never"),
    ("B", "FREEZE with an active writer", "b_freeze_with"),
    ("B", "pins", "b_pins"),
    ("B", "ids", "b_ids"),
    ("B", "info", "b_info"),
    ("B", "mmap, poll", "b_mmap"),
    ("B", "concurrent data operations", "b_data_operations"),
    ("B", "asynchronous free", "b_free"),
    ("B", "removal with and without a sibling", "b_removal"),
    ("C", "netdevsim: max_entries", "f_create_more_entries"),
    ("C", "netdevsim: map_flags", "f_create_with_flags"),
    (
        "C",
        "netdevsim: bpf_map_accept",
        "c_netdevsim_bpf_map_accept",
    ),
    (
        "C",
        "netdevsim: lazy hash, filled array",
        "c_netdevsim_hash",
    ),
    ("C", "netdevsim: two slots", "c_netdevsim_two_slots"),
    ("C", "netdevsim: update's errors", "f_third_key"),
    ("C", "netdevsim: delete's errors", "f_delete"),
    ("C", "netdevsim: get_next", "c_netdevsim_get_next"),
    ("C", "netdevsim: one mutex", "c_netdevsim_one_operation"),
    ("C", "nfp: statuses", "c_statuses"),
    ("C", "nfp: unknown map", "c_unknown_map"),
    ("C", "nfp: no maps, type", "c_type_and_no_maps"),
    ("C", "nfp: flags, numa_node", "c_flags_and_numa"),
    ("C", "nfp: max_maps", "c_128_maps"),
    ("C", "nfp: element budget", "c_element_budget"),
    ("C", "nfp: sizes", "c_sizes"),
    ("C", "nfp: cache serves lookups", "c_cache_serves_lookups"),
    ("C", "nfp: cache serves getnext", "c_cache_serves_getnext"),
    ("C", "nfp: cache dropped", "c_cache_is_dropped"),
    ("C", "nfp: deadline", "c_deadline"),
    ("C", "nfp: words", "c_values_without"),
    ("C", "nfp: array index", "c_array_index"),
    ("E", "hash: get_next", "e_hash_01"),
    ("E", "hash: get_next after a delete", "e_hash_02"),
    ("E", "hash: sizes of 0", "e_hash_03"),
    ("E", "hash: no MAX_BPF_STACK", "e_hash_04"),
    ("E", "hash: too big", "e_hash_05"),
    ("E", "hash: full", "e_hash_06"),
    ("E", "hash: flags", "e_hash_07"),
    ("E", "hash: ZERO_SEED", "e_hash_08"),
    ("E", "hash: flags at creation", "e_hash_09"),
    ("E", "array: sizes", "e_array_01"),
    ("E", "array: out of range", "e_array_02"),
    ("E", "array: flags first", "e_array_03"),
    ("E", "array: get_next", "e_array_04"),
    ("E", "array: LOOKUP_AND_DELETE", "e_array_05"),
    ("E", "ordering: fd, mode, flags, key", "e_order_01"),
    ("E", "ordering: output", "e_order_02"),
    ("E", "ordering: frozen and bad flags", "e_order_03"),
    ("E", "batch: count 0", "e_batch_01"),
    ("E", "batch: elem_flags", "e_batch_02"),
    ("E", "batch: a large bucket", "e_batch_03"),
    ("E", "batch: whole buckets, the end", "e_batch_04"),
    ("E", "batch: bad token", "e_batch_05"),
    ("E", "batch: out_batch NULL", "e_batch_06"),
    ("E", "batch: array and LPM token", "e_batch_07"),
    ("E", "batch: first error", "e_batch_08"),
    ("E", "batch: array delete", "e_batch_09"),
    ("E", "per-CPU values", "e_percpu_01"),
    ("E", "LRU: NO_PREALLOC", "e_lru_01"),
    ("E", "LRU: never full", "e_lru_02"),
    ("E", "LPM: creation", "e_lpm_01"),
    ("E", "LPM: long prefixes", "e_lpm_02"),
    ("E", "LPM: full, post-order", "e_lpm_03"),
    ("E", "queue/stack: key_size 0", "e_queue_01"),
    ("E", "queue/stack: push", "e_queue_02"),
    ("E", "queue/stack: empty, delete, get_next", "e_queue_03"),
    ("E", "ringbuf: sizes", "e_ringbuf_01"),
    ("E", "ringbuf: element operations", "e_ringbuf_02"),
    ("E", "bloom: push, peek", "e_bloom_01"),
    ("E", "bloom: delete, get_next", "e_bloom_02"),
    ("F", "get_next", "f01"),
    ("F", "lookup", "f02"),
    ("F", "delete", "f03"),
    ("F", "update EXIST", "f04"),
    ("F", "update NOEXIST", "f05"),
    ("F", "flags", "f06"),
    ("F", "third key", "f07"),
    ("F", "overwrite when full", "f08"),
    ("F", "bad pointers", "f09"),
    ("F", "delete with flags", "f10"),
    ("F", "lookup_and_delete", "f11"),
    ("F", "batches", "f12"),
    ("F", "mmap", "f13"),
    ("F", "read, write, lseek", "f14"),
    ("F", "read-only fd", "f15"),
    ("F", "freeze", "f16"),
    ("F", "frozen: changes", "f17"),
    ("F", "frozen: lookups", "f18"),
    ("F", "info_len", "f19"),
    ("F", "create, host", "f_host_create"),
    ("F", "create: entries", "f_create_more_entries"),
    ("F", "create: flags", "f_create_with_flags"),
    (
        "F",
        "create: what the device does not see",
        "f_create_with_what",
    ),
    ("F", "create: too big", "f_create_too_big"),
    ("F", "create: other types", "f_create_every_other_type"),
    ("F", "create: ifindexes", "f_create_on_other_ifindexes"),
    ("F", "removed: data operations", "b_f_data_operations"),
    ("F", "removed: flags, pointers, pins", "f_gone"),
    ("F", "removed: ids, creation, return", "b_f_ids"),
    ("F", "generic: sizes", "f_generic_sizes"),
    (
        "F",
        "generic: descriptors, ids, commands",
        "f_generic_descriptors",
    ),
];

const SOURCES: [&str; 8] = [
    include_str!("create.rs"),
    include_str!("fields.rs"),
    include_str!("generic.rs"),
    include_str!("host.rs"),
    include_str!("host_types.rs"),
    include_str!("log.rs"),
    include_str!("offloaded.rs"),
    concat!(
        include_str!("../contract_profiles.rs"),
        include_str!("../contract_profiles/nfp.rs")
    ),
];

/// Names of the functions that carry `#[test]`.
fn tests() -> Vec<&'static str> {
    let mut names = Vec::new();
    for source in SOURCES {
        let mut is_test = false;
        for line in source.lines() {
            if line == "#[test]" {
                is_test = true;
            } else if let Some(rest) = line.strip_prefix("fn ") {
                if is_test {
                    names.extend(rest.split('(').next());
                }
                is_test = false;
            }
        }
    }
    names
}

#[test]
fn every_row_has_a_test() {
    let tests = tests();
    let missing: Vec<_> = ROWS
        .iter()
        .filter(|(_, _, prefix)| !tests.iter().any(|name| name.starts_with(prefix)))
        .collect();
    let sections: Vec<String> = ["A", "B", "C", "E", "F"]
        .into_iter()
        .map(|section| {
            let rows = ROWS.iter().filter(|row| row.0 == section);
            format!("§{section} {}", rows.count())
        })
        .collect();
    aloud(&format!(
        "contract rows: {} of {} ({}), by {} tests",
        ROWS.len() - missing.len(),
        ROWS.len(),
        sections.join(", "),
        tests.len()
    ));
    assert!(missing.is_empty(), "rows without a test: {missing:?}");
}
