//! Map types as they stand in MAP_CREATE and IDENTIFY (abi §6.1, §6.3).

crate::open_enum! {
    /// A map type: a value of the UAPI's `enum bpf_map_type`. Those are named here that a
    /// device of this version may have; a device says in IDENTIFY which it has.
    pub struct MapType(u32) {
        /// `BPF_MAP_TYPE_HASH`.
        Hash = 1,
        /// `BPF_MAP_TYPE_ARRAY`.
        Array = 2,
        /// `BPF_MAP_TYPE_PERCPU_HASH`.
        PercpuHash = 5,
        /// `BPF_MAP_TYPE_PERCPU_ARRAY`.
        PercpuArray = 6,
        /// `BPF_MAP_TYPE_LRU_HASH`.
        LruHash = 9,
        /// `BPF_MAP_TYPE_LRU_PERCPU_HASH`.
        LruPercpuHash = 10,
        /// `BPF_MAP_TYPE_LPM_TRIE`.
        LpmTrie = 11,
        /// `BPF_MAP_TYPE_ARRAY_OF_MAPS`.
        ArrayOfMaps = 12,
        /// `BPF_MAP_TYPE_HASH_OF_MAPS`.
        HashOfMaps = 13,
        /// `BPF_MAP_TYPE_QUEUE`.
        Queue = 22,
        /// `BPF_MAP_TYPE_STACK`.
        Stack = 23,
        /// `BPF_MAP_TYPE_RINGBUF`.
        Ringbuf = 27,
        /// `BPF_MAP_TYPE_BLOOM_FILTER`.
        BloomFilter = 30,
    }
}

impl MapType {
    /// The type's bit in [`crate::admin::IdentifyData::map_types`]; 0 for a type past the set.
    pub const fn bit(self) -> u64 {
        if self.0 < 64 { 1 << self.0 } else { 0 }
    }
}
