//! What BTF checks ask of the kernel's own types.

use super::Btf;
use super::kind::Kind;
use std::collections::HashSet;
use std::fs;
use std::sync::OnceLock;

/// The types of a kernel, as far as pointers to them go (`bpf_find_btf_id`,
/// `btf_find_dtor_kfunc`).
pub trait KernelTypes {
    /// Whether the kernel has a struct of this name.
    fn has_struct(&self, name: &[u8]) -> bool;

    /// Whether a map may own a reference to one: the kernel can drop it.
    fn has_destructor(&self, name: &[u8]) -> bool;
}

/// A kernel of which no type is known: every struct is the program's own.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoKernelTypes;

impl KernelTypes for NoKernelTypes {
    fn has_struct(&self, _name: &[u8]) -> bool {
        false
    }

    fn has_destructor(&self, _name: &[u8]) -> bool {
        false
    }
}

/// Structs whose references a map may own, and the function that drops one. Which there are
/// is not in a kernel's BTF (`register_btf_id_dtor_kfuncs`); the functions are.
const DESTRUCTORS: [(&[u8], &[u8]); 6] = [
    // kernel/bpf/helpers.c
    (b"task_struct", b"bpf_task_release_dtor"),
    (b"cgroup", b"bpf_cgroup_release_dtor"),
    // kernel/bpf/cpumask.c
    (b"bpf_cpumask", b"bpf_cpumask_release_dtor"),
    // kernel/bpf/crypto.c
    (b"bpf_crypto_ctx", b"bpf_crypto_ctx_release_dtor"),
    // net/bpf/test_run.c
    (b"prog_test_ref_kfunc", b"bpf_kfunc_call_test_release_dtor"),
    (b"prog_test_member", b"bpf_kfunc_call_memb_release_dtor"),
];

/// The structs of a kernel's BTF.
#[derive(Clone, Debug, Default)]
pub struct VmlinuxTypes {
    structs: HashSet<Box<[u8]>>,
    destructors: Vec<&'static [u8]>,
}

impl VmlinuxTypes {
    /// Those of a kernel with this BTF, as [`Btf::parse_kernel`] returns it.
    pub fn new(btf: &Btf) -> Self {
        let of_kind = |kind| {
            (0..btf.type_count())
                .filter(move |&id| btf.kind(id) == kind)
                .map(|id| btf.name(id))
        };
        let functions: HashSet<&[u8]> = of_kind(Kind::Func).collect();
        Self {
            structs: of_kind(Kind::Struct).map(Box::from).collect(),
            destructors: DESTRUCTORS
                .iter()
                .filter(|(_, function)| functions.contains(function))
                .map(|&(name, _)| name)
                .collect(),
        }
    }
}

impl KernelTypes for VmlinuxTypes {
    fn has_struct(&self, name: &[u8]) -> bool {
        self.structs.contains(name)
    }

    fn has_destructor(&self, name: &[u8]) -> bool {
        self.destructors.contains(&name)
    }
}

/// The running kernel's types, without those of its modules.
///
/// Read from sysfs when first asked for, and kept by the process. A kernel that does not show
/// its types there counts as [`NoKernelTypes`].
#[derive(Clone, Copy, Debug, Default)]
pub struct RunningKernel;

impl RunningKernel {
    fn types() -> &'static VmlinuxTypes {
        static TYPES: OnceLock<VmlinuxTypes> = OnceLock::new();
        TYPES.get_or_init(|| {
            fs::read("/sys/kernel/btf/vmlinux")
                .ok()
                .and_then(|bytes| Btf::parse_kernel(&bytes).ok())
                .map(|btf| VmlinuxTypes::new(&btf))
                .unwrap_or_default()
        })
    }
}

impl KernelTypes for RunningKernel {
    fn has_struct(&self, name: &[u8]) -> bool {
        Self::types().has_struct(name)
    }

    fn has_destructor(&self, name: &[u8]) -> bool {
        Self::types().has_destructor(name)
    }
}
