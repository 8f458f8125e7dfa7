//! What this machine's kernel says of CPUs and NUMA nodes.

use std::fs::read_to_string;

/// Numbers above this are taken for a damaged list: `CONFIG_NR_CPUS` ends at 8,192, and
/// `MAX_NUMNODES` at 1,024.
const MAX_NUMBER: u32 = 1 << 16;

/// The possible CPUs, as `num_possible_cpus()` counts them: those that could be plugged in
/// too, whatever this process may run on. Where there is no sysfs, the CPUs that this process
/// may run on.
pub(super) fn possible_cpus() -> u32 {
    // Their number, not the highest: `bpf_percpu_array_copy` leaves no gaps for holes.
    let count = match list("/sys/devices/system/cpu/possible") {
        Some(cpus) => cpus.len(),
        None => std::thread::available_parallelism().map_or(1, usize::from),
    };
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// The online NUMA nodes in ascending order; node 0 where there is no sysfs.
pub(super) fn online_nodes() -> Vec<u32> {
    list("/sys/devices/system/node/online").unwrap_or_else(|| vec![0])
}

fn list(path: &str) -> Option<Vec<u32>> {
    parse(&read_to_string(path).ok()?)
}

/// The kernel's list format (`bitmap_parselist`, as far as it prints it): numbers and ranges,
/// ascending, with commas between them. `None` for anything else, and for an empty list.
fn parse(text: &str) -> Option<Vec<u32>> {
    let mut numbers: Vec<u32> = Vec::new();
    for part in text.trim_ascii_end().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (number(first)?, number(last)?);
        if first > last || numbers.last().is_some_and(|&before| before >= first) {
            return None;
        }
        numbers.extend(first..=last);
    }
    Some(numbers)
}

fn number(text: &str) -> Option<u32> {
    // `parse` alone would take a sign.
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok().filter(|&number| number <= MAX_NUMBER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_as_the_kernel_prints_them() {
        for (text, numbers) in [
            ("0\n", vec![0]),
            ("0-1\n", vec![0, 1]),
            ("0,2-5\n", vec![0, 2, 3, 4, 5]),
            ("0-3,8-9,11", vec![0, 1, 2, 3, 8, 9, 11]),
            ("4-4\n", vec![4]),
        ] {
            assert_eq!(parse(text), Some(numbers), "{text:?}");
        }
    }

    #[test]
    fn anything_else_is_no_list() {
        for text in [
            "",
            "\n",
            "a",
            "-",
            "1-",
            "-1",
            "+1",
            "3-1",
            "0,",
            ",0",
            "0,,2",
            "0-1-2",
            "2,1",
            "0-2,2",
            "0 1",
            "0-4294967295",
            "99999999999",
        ] {
            assert_eq!(parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn this_machine_has_a_cpu_and_a_node() {
        // Affinity may leave this process fewer CPUs than are possible, never more.
        let here = std::thread::available_parallelism().map_or(1, usize::from);
        assert!(possible_cpus() as usize >= here);
        assert!(!online_nodes().is_empty());
    }
}
