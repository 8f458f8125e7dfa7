//! What a hash map accounts for.

/// What of a hash map only its memory figure depends on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct HtabFootprint {
    /// `BPF_F_NO_PREALLOC` was not given.
    pub(crate) preallocated: bool,
    /// Whether each possible CPU has a value of its own.
    pub(crate) percpu: bool,
    pub(crate) possible_cpus: u32,
}

impl HtabFootprint {
    /// `htab_map_mem_usage` of 6.18 on x86-64, in bytes, with `elements` of them in use. The
    /// sizes: of a key, of a value as user space passes it, of all CPUs, and `max_entries`.
    pub(crate) fn bytes(self, sizes: (usize, usize, u32), elements: u64) -> u64 {
        /// `sizeof(struct bpf_htab)`.
        const HTAB_BYTES: u64 = 896;
        /// `sizeof(struct bucket)`.
        const BUCKET_BYTES: u64 = 16;
        /// `sizeof(struct htab_elem)`.
        const ELEMENT_BYTES: u64 = 48;
        const POINTER_BYTES: u64 = 8;
        /// `sizeof(struct llist_node)`, in front of what the BPF allocator gives out.
        const LLIST_NODE_BYTES: u64 = 8;
        let (key_size, value_bytes, max_entries) = sizes;
        let max = u64::from(max_entries);
        let buckets = u64::from(max_entries.next_power_of_two());
        let cpus = u64::from(self.possible_cpus);
        let value = (value_bytes as u64).next_multiple_of(8);
        // A per-CPU element holds a pointer to its values.
        let in_element = if self.percpu { POINTER_BYTES } else { value };
        let element = ELEMENT_BYTES + (key_size as u64).next_multiple_of(8) + in_element;
        let percpu_values = if self.percpu { value } else { 0 };
        let elements = match (self.preallocated, self.percpu) {
            (true, true) => max * (element + percpu_values),
            // One spare element for each CPU, so that an update needs none of the others, and
            // a pointer to it.
            (true, false) => (max + cpus) * element + cpus * POINTER_BYTES,
            (false, true) => {
                let apart = LLIST_NODE_BYTES + POINTER_BYTES + percpu_values;
                elements * (element + LLIST_NODE_BYTES + apart)
            }
            (false, false) => elements * (element + LLIST_NODE_BYTES),
        };
        HTAB_BYTES + buckets * BUCKET_BYTES + elements
    }
}
