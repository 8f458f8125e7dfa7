//! The special fields of a value (`struct btf_record`, `struct btf_field`).

use bitflags::bitflags;

/// What a special field is (`enum btf_field_type`, `include/linux/bpf.h`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum FieldKind {
    /// `struct bpf_spin_lock`, which BPF_F_LOCK takes.
    SpinLock,
    /// `struct bpf_timer`.
    Timer,
    /// A pointer tagged `kptr_untrusted`.
    KptrUnref,
    /// A pointer tagged `kptr`, which owns a reference.
    KptrRef,
    /// A pointer tagged `percpu_kptr`.
    KptrPercpu,
    /// `struct bpf_list_head`.
    ListHead,
    /// `struct bpf_list_node`.
    ListNode,
    /// `struct bpf_rb_root`.
    RbRoot,
    /// `struct bpf_rb_node`.
    RbNode,
    /// `struct bpf_refcount`.
    Refcount,
    /// `struct bpf_wq`.
    Workqueue,
    /// A pointer tagged `uptr`, into user memory.
    Uptr,
    /// `struct bpf_res_spin_lock`.
    ResSpinLock,
    /// `struct bpf_task_work`.
    TaskWork,
}

bitflags! {
    /// A set of [`FieldKind`]s; the bits are the kernel's.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
    pub struct FieldKinds: u32 {
        /// [`FieldKind::SpinLock`].
        const SPIN_LOCK = 1 << 0;
        /// [`FieldKind::Timer`].
        const TIMER = 1 << 1;
        /// [`FieldKind::KptrUnref`].
        const KPTR_UNREF = 1 << 2;
        /// [`FieldKind::KptrRef`].
        const KPTR_REF = 1 << 3;
        /// [`FieldKind::KptrPercpu`].
        const KPTR_PERCPU = 1 << 4;
        /// [`FieldKind::ListHead`].
        const LIST_HEAD = 1 << 5;
        /// [`FieldKind::ListNode`].
        const LIST_NODE = 1 << 6;
        /// [`FieldKind::RbRoot`].
        const RB_ROOT = 1 << 7;
        /// [`FieldKind::RbNode`].
        const RB_NODE = 1 << 8;
        /// [`FieldKind::Refcount`].
        const REFCOUNT = 1 << 9;
        /// [`FieldKind::Workqueue`].
        const WORKQUEUE = 1 << 10;
        /// [`FieldKind::Uptr`].
        const UPTR = 1 << 11;
        /// [`FieldKind::ResSpinLock`].
        const RES_SPIN_LOCK = 1 << 12;
        /// [`FieldKind::TaskWork`].
        const TASK_WORK = 1 << 13;

        /// `BPF_KPTR`: pointers to kernel memory.
        const KPTR = Self::KPTR_UNREF.bits() | Self::KPTR_REF.bits() | Self::KPTR_PERCPU.bits();
        /// `BPF_GRAPH_ROOT`: what owns other objects.
        const GRAPH_ROOT = Self::LIST_HEAD.bits() | Self::RB_ROOT.bits();
        /// `BPF_GRAPH_NODE`: what makes an object ownable.
        const GRAPH_NODE = Self::LIST_NODE.bits() | Self::RB_NODE.bits();
        /// What a map's value may have (`map_check_btf`).
        const MAP_VALUE = Self::SPIN_LOCK.bits()
            | Self::RES_SPIN_LOCK.bits()
            | Self::TIMER.bits()
            | Self::KPTR.bits()
            | Self::GRAPH_ROOT.bits()
            | Self::REFCOUNT.bits()
            | Self::WORKQUEUE.bits()
            | Self::UPTR.bits()
            | Self::TASK_WORK.bits();
        /// What an object that a program allocates may have (`btf_parse_struct_metas`).
        const ALLOCATED = Self::SPIN_LOCK.bits()
            | Self::RES_SPIN_LOCK.bits()
            | Self::GRAPH_ROOT.bits()
            | Self::GRAPH_NODE.bits()
            | Self::REFCOUNT.bits()
            | Self::KPTR.bits();
    }
}

impl FieldKind {
    /// Every kind, in the order of the kernel's bits.
    pub const ALL: [Self; 14] = [
        Self::SpinLock,
        Self::Timer,
        Self::KptrUnref,
        Self::KptrRef,
        Self::KptrPercpu,
        Self::ListHead,
        Self::ListNode,
        Self::RbRoot,
        Self::RbNode,
        Self::Refcount,
        Self::Workqueue,
        Self::Uptr,
        Self::ResSpinLock,
        Self::TaskWork,
    ];

    /// The set of just this one.
    pub const fn bit(self) -> FieldKinds {
        FieldKinds::from_bits_truncate(1 << self as u32)
    }

    /// Bytes (`btf_field_type_size`).
    pub const fn size(self) -> u32 {
        match self {
            Self::SpinLock | Self::ResSpinLock | Self::Refcount => 4,
            Self::Timer | Self::Workqueue | Self::ListHead | Self::RbRoot => 16,
            Self::KptrUnref | Self::KptrRef | Self::KptrPercpu | Self::Uptr | Self::TaskWork => 8,
            Self::ListNode => 24,
            Self::RbNode => 32,
        }
    }

    /// What its offset is a multiple of, in bytes (`btf_field_type_align`).
    pub const fn align(self) -> u32 {
        match self {
            Self::SpinLock | Self::ResSpinLock | Self::Refcount => 4,
            _ => 8,
        }
    }

    /// The struct that it is, or the tag of the pointer.
    pub const fn name(self) -> &'static str {
        match self {
            Self::SpinLock => "bpf_spin_lock",
            Self::Timer => "bpf_timer",
            Self::KptrUnref => "kptr_untrusted",
            Self::KptrRef => "kptr",
            Self::KptrPercpu => "percpu_kptr",
            Self::ListHead => "bpf_list_head",
            Self::ListNode => "bpf_list_node",
            Self::RbRoot => "bpf_rb_root",
            Self::RbNode => "bpf_rb_node",
            Self::Refcount => "bpf_refcount",
            Self::Workqueue => "bpf_wq",
            Self::Uptr => "uptr",
            Self::ResSpinLock => "bpf_res_spin_lock",
            Self::TaskWork => "bpf_task_work",
        }
    }
}

/// What a pointer, list or tree holds.
#[derive(Clone, PartialEq, Eq, Debug, Hash)]
pub enum FieldTarget {
    /// It is none of these.
    None,
    /// A struct of the kernel, by name.
    Kernel(Box<[u8]>),
    /// A struct of the program that a pointer holds: `btf` tells its BTF from all others.
    Program {
        /// Of one process; two blobs with the same bytes differ.
        btf: u64,
        /// The struct.
        type_id: u32,
    },
    /// Structs of the program in a list or tree, linked by the node at this offset.
    Nodes {
        /// As for [`FieldTarget::Program`].
        btf: u64,
        /// The struct.
        type_id: u32,
        /// Bytes, as the kernel computes it.
        node_offset: u32,
    },
}

/// A special field of a value (`struct btf_field`).
#[derive(Clone, PartialEq, Eq, Debug, Hash)]
pub struct Field {
    /// What it is.
    pub kind: FieldKind,
    /// Where it starts, in bytes.
    pub offset: u32,
    /// Bytes.
    pub size: u32,
    /// What it points to.
    pub target: FieldTarget,
}

/// The special fields of a value, by offset (`struct btf_record`). There is at least one.
///
/// Two are equal (`btf_record_equal`) if they have the same fields at the same places, with
/// pointers to the same types: an inner map has to match its template so.
#[derive(Clone, PartialEq, Eq, Debug, Hash)]
pub struct FieldRecord {
    kinds: FieldKinds,
    fields: Box<[Field]>,
}

impl FieldRecord {
    /// Fields sorted by offset, which do not overlap.
    pub(super) fn new(mut fields: Vec<Field>) -> Self {
        fields.sort_by_key(|field| field.offset);
        Self {
            kinds: fields.iter().map(|field| field.kind.bit()).collect(),
            fields: fields.into(),
        }
    }

    /// The fields, by offset.
    pub fn fields(&self) -> &[Field] {
        &self.fields
    }

    /// Which kinds occur (`field_mask`).
    pub fn kinds(&self) -> FieldKinds {
        self.kinds
    }

    /// `btf_record_has_field`.
    pub fn has(&self, kind: FieldKind) -> bool {
        self.kinds.contains(kind.bit())
    }

    /// Where the field of this kind is, in bytes; the last one if there are several, as in
    /// `spin_lock_off`, `timer_off` and their like.
    pub fn offset(&self, kind: FieldKind) -> Option<u32> {
        self.fields
            .iter()
            .rev()
            .find(|field| field.kind == kind)
            .map(|field| field.offset)
    }

    /// Blanks the special fields of a value on its way to user space, or of a fresh one
    /// (`bpf_obj_init`): all zero, but for a reference count, which starts at 1.
    ///
    /// The kernel also makes an empty list head point to itself, with an address of the
    /// kernel's; here it is zero, which it takes for an empty list as well.
    ///
    /// A field that lies beyond the end of `value` is cut off there.
    pub fn zero(&self, value: &mut [u8]) {
        for field in &self.fields {
            let bytes = range_mut(value, field);
            bytes.fill(0);
            if field.kind == FieldKind::Refcount
                && let Some(low) = bytes.first_mut()
            {
                *low = 1;
            }
        }
    }

    /// Copies everything but the special fields, which stay as they are in `to`: what an
    /// update does (`bpf_obj_memcpy`). The shorter of the two ends it.
    pub fn copy_around(&self, to: &mut [u8], from: &[u8]) {
        let len = to.len().min(from.len());
        let mut at = 0;
        let mut copy = |start: usize, end: usize| {
            if start < end {
                to[start..end].copy_from_slice(&from[start..end]);
            }
        };
        for field in &self.fields {
            let start = (field.offset as usize).min(len);
            copy(at, start);
            at = (field.offset as usize + field.size as usize).min(len);
        }
        copy(at, len);
    }
}

fn range_mut<'a>(value: &'a mut [u8], field: &Field) -> &'a mut [u8] {
    let start = (field.offset as usize).min(value.len());
    let end = (field.offset as usize + field.size as usize).min(value.len());
    &mut value[start..end]
}
