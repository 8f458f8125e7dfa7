//! BTF from seeds and from compiled objects, and the judgement of it by ours and the kernel.
//!
//! A blob is generated as sound as its generator can make it, with a wrong field here and
//! there; or it is one that a compiler made; or either of them with a few words, bits, types
//! or bytes changed.

mod corpus;
mod generate;
mod judge;
mod mutate;

pub use corpus::corpus;
pub use generate::generate;
pub use judge::{Judge, Tally, Verdict};
pub use mutate::mutate;

use offmap_bpf::MapType;
use offmap_bpf::btf::{
    Btf, FieldKinds, Kind, MapBtfSpec, MapTypeCheck, NoKernelTypes, check_map_btf,
};
use offmap_bpf::uapi::MapFlags;

/// The body of a fuzz target: no bytes make the parser, or anything that walks what it
/// returned, panic or hang. Returns whether the blob was accepted.
pub fn fuzz_btf(bytes: &[u8]) -> bool {
    let kernel = Btf::parse_kernel(bytes);
    let btf = match Btf::parse_on(bytes, &NoKernelTypes) {
        Ok(btf) => btf,
        Err(error) => {
            assert!(!error.reason().is_empty());
            return false;
        }
    };
    assert!(
        kernel.is_ok(),
        "a kernel's BTF is checked less than a program's"
    );
    assert_eq!(btf.raw(), bytes);
    for id in 0..btf.type_count() + 1 {
        let resolved = btf.resolve(id);
        assert_eq!(resolved.is_ok(), id < btf.type_count());
        assert!(resolved.map_or(true, |id| !btf.kind(id).is_modifier()));
        let sized = btf.type_id_size(id);
        assert_eq!(btf.members(id).len(), btf.members(id).count());
        assert_eq!(btf.section(id).len(), btf.section(id).count());
        let _ = btf.name(id);
        let Some((end, size)) = sized else { continue };
        let spec = MapBtfSpec {
            map_type: MapType::HASH,
            key_size: size,
            value_size: size,
            max_entries: 1,
            flags: MapFlags::empty(),
            check: MapTypeCheck::of(MapType::HASH),
            bpf_capable: true,
        };
        let checked = check_map_btf(&btf, id, id, &spec, &NoKernelTypes);
        let parsed = btf.parse_fields(end, size, FieldKinds::all(), &NoKernelTypes);
        if let Ok(Some(record)) = &parsed {
            assert!(matches!(btf.kind(end), Kind::Struct | Kind::Datasec));
            let mut end = 0;
            for field in record.fields() {
                // Alignment counts inside the innermost struct only, as in the kernel.
                assert!(field.offset >= end && field.size == field.kind.size());
                end = field.offset + field.size;
            }
            assert!(end <= size);
            // A value of a fuzzed size may be 4 GiB.
            let mut value = vec![0xff; end as usize];
            record.zero(&mut value);
            let mut copy = vec![0; end as usize];
            record.copy_around(&mut copy, &value);
        }
        let _ = checked;
    }
    true
}
