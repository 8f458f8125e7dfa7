//! A BTF object of a [`crate::System`] (`struct btf`), and the types that a map has from one.

use crate::btf::{Btf, FieldKind, FieldRecord};
use crate::system::{Identified, Shared};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Acquire};

/// BTF that was loaded: it lives while a descriptor or a map holds it.
pub(crate) struct BtfObject {
    pub(crate) btf: Btf,
    id: AtomicU32,
    shared: Arc<Shared>,
}

impl BtfObject {
    pub(crate) const fn new(btf: Btf, shared: Arc<Shared>) -> Self {
        Self {
            btf,
            id: AtomicU32::new(0),
            shared,
        }
    }

    pub(crate) fn id(&self) -> u32 {
        self.id.load(Acquire)
    }
}

impl Identified for BtfObject {
    fn id_cell(&self) -> &AtomicU32 {
        &self.id
    }
}

impl Drop for BtfObject {
    fn drop(&mut self) {
        self.shared.btf_ids.remove(&self.id);
    }
}

/// What `struct bpf_map` knows of its types.
pub(crate) struct MapBtf {
    pub(crate) object: Arc<BtfObject>,
    pub(crate) key_type_id: u32,
    pub(crate) value_type_id: u32,
    /// The special fields of a value.
    pub(crate) record: Option<FieldRecord>,
}

impl MapBtf {
    /// Whether values have a lock for `BPF_F_LOCK`.
    pub(crate) fn has_spin_lock(&self) -> bool {
        let record = self.record.as_ref();
        record.is_some_and(|record| record.has(FieldKind::SpinLock))
    }
}
