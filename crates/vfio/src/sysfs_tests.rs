//! The module against a tree in a temporary folder, in which a few lines play the kernel.

use super::*;
use crate::attach::{self, AttachError};
use std::os::unix::fs::symlink;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

const NIC: &str = "0000:01:00.0";
const IDS: Option<(u16, u16)> = Some((0x1209, 0x0ffd));

/// What was written, in order: the file's path in the tree, and the text.
type Written = Arc<Mutex<Vec<(String, String)>>>;

struct Tree {
    root: PathBuf,
    written: Written,
}

impl Tree {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("offmap-sysfs-{}-{n}", std::process::id());
        let root = std::env::temp_dir().join(name);
        for folder in ["bus/pci/devices", "bus/pci/drivers", "kernel/iommu_groups"] {
            fs::create_dir_all(root.join(folder)).unwrap();
        }
        let this = Self {
            root,
            written: Arc::default(),
        };
        this.driver(VFIO_PCI);
        this.driver("nic");
        this
    }

    fn driver(&self, name: &str) {
        fs::create_dir_all(self.root.join("bus/pci/drivers").join(name)).unwrap();
    }

    fn function(&self, address: &str, group: Option<u32>, driver: Option<&str>, node: &str) {
        let path = self.root.join("bus/pci/devices").join(address);
        fs::create_dir_all(&path).unwrap();
        fs::write(path.join("vendor"), "0x1209\n").unwrap();
        fs::write(path.join("device"), "0x0ffd\n").unwrap();
        fs::write(path.join("class"), "0x020000\n").unwrap();
        fs::write(path.join("numa_node"), format!("{node}\n")).unwrap();
        if let Some(group) = group {
            let folder = self.root.join(format!("kernel/iommu_groups/{group}"));
            fs::create_dir_all(folder.join("devices")).unwrap();
            symlink(&path, folder.join("devices").join(address)).unwrap();
            symlink(&folder, path.join("iommu_group")).unwrap();
        }
        if let Some(driver) = driver {
            bind(&self.root, address, Some(driver));
        }
    }

    /// With a kernel that does as it is told, but for writes to files whose path ends so.
    fn sysfs(&self, failing: &'static str) -> Sysfs {
        let (root, written) = (self.root.clone(), Arc::clone(&self.written));
        Sysfs::at(
            self.root.clone(),
            Box::new(move |path, text| {
                let inside = path.strip_prefix(&root).unwrap().to_str().unwrap();
                let text = text.trim();
                let mut written = written.lock().unwrap();
                written.push((inside.to_owned(), text.to_owned()));
                if !failing.is_empty() && inside.ends_with(failing) {
                    return Err(io::Error::from_raw_os_error(16));
                }
                if inside.ends_with("/unbind") {
                    bind(&root, text, None);
                } else if let Some(driver) = inside
                    .strip_suffix("/bind")
                    .and_then(|path| path.strip_prefix("bus/pci/drivers/"))
                {
                    bind(&root, text, Some(driver));
                } else if inside == "bus/pci/drivers_probe" {
                    bind(&root, text, Some("nic"));
                } else {
                    fs::write(path, text)?;
                }
                Ok(())
            }),
        )
    }

    fn written(&self) -> Vec<(String, String)> {
        std::mem::take(&mut *self.written.lock().unwrap())
    }
}

fn bind(root: &Path, address: &str, driver: Option<&str>) {
    let link = root.join("bus/pci/devices").join(address).join("driver");
    let _ = fs::remove_file(&link);
    if let Some(driver) = driver {
        symlink(root.join("bus/pci/drivers").join(driver), link).unwrap();
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.root);
    }
}

#[test]
fn functions_are_listed_as_they_are() {
    let tree = Tree::new();
    tree.function(NIC, Some(3), Some(VFIO_PCI), "1");
    tree.function("0000:00:02.0", None, None, "-1");
    let found = tree.sysfs("").functions().unwrap();
    assert_eq!(found.len(), 2);
    assert_eq!(found[0].address, "0000:00:02.0");
    assert_eq!((found[0].numa_node, found[0].iommu_group), (None, None));
    assert_eq!((found[1].vendor, found[1].device), (0x1209, 0x0ffd));
    assert_eq!(
        (found[1].numa_node, found[1].iommu_group),
        (Some(1), Some(3))
    );
    assert!(found[1].is_vfio() && !found[1].no_iommu);
    assert_eq!(tree.sysfs("").function("01:00.0").unwrap(), found[1]);
    let empty = Sysfs::at(tree.root.join("nothing"), Box::new(|_, _| Ok(())));
    assert_eq!(empty.functions().unwrap(), []);
}

#[test]
fn addresses_are_checked() {
    let tree = Tree::new();
    let sysfs = tree.sysfs("");
    for bad in [
        "",
        "1",
        "01:00",
        "0000:01:00",
        "0000:01:00.8",
        "0000:1:00.0",
        "../../x:00.0",
        "zz:00.0",
        "0000:01:00.0/..",
        "01:00.0.0",
    ] {
        let e = sysfs.function(bad).unwrap_err();
        assert!(matches!(e, SysfsError::BadAddress(_)), "{bad:?}: {e}");
    }
    let e = sysfs.function(NIC).unwrap_err();
    assert!(e.to_string().contains("offmap device list"), "{e}");
}

#[test]
fn binding_takes_it_from_its_driver_and_says_so() {
    let tree = Tree::new();
    tree.function(NIC, Some(3), Some("nic"), "0");
    let sysfs = tree.sysfs("");
    let said = sysfs.bind(NIC, IDS).unwrap();
    assert_eq!(
        said,
        [
            "0000:01:00.0 may be bound to vfio-pci only",
            "0000:01:00.0 was taken from nic",
            "0000:01:00.0 is bound to vfio-pci, as /dev/vfio/3",
        ]
    );
    assert!(sysfs.function(NIC).unwrap().is_vfio());
    tree.written();
    assert_eq!(sysfs.bind(NIC, IDS).unwrap().len(), 1);
    assert_eq!(tree.written(), [], "what is done is not done again");
    let said = sysfs.unbind(NIC).unwrap();
    assert_eq!(said[2], "0000:01:00.0 is bound to nic, as before");
    let written = tree.written();
    assert_eq!(written[0].1, "", "the override is taken away first");
    let e = sysfs.unbind(NIC).unwrap_err().to_string();
    assert!(e.contains("bound to nic"), "{e}");
}

#[test]
fn a_step_that_fails_undoes_those_before() {
    for failing in ["vfio-pci/bind", "nic/unbind", "driver_override"] {
        let tree = Tree::new();
        tree.function(NIC, Some(3), Some("nic"), "0");
        let sysfs = tree.sysfs(failing);
        let e = sysfs.bind(NIC, IDS).unwrap_err();
        assert!(matches!(e, SysfsError::Write { .. }), "{e}");
        assert!(e.to_string().contains("somebody is using"), "{e}");
        let now = sysfs.function(NIC).unwrap();
        assert_eq!(now.driver.as_deref(), Some("nic"), "{failing}");
        let path = sysfs.path(NIC).join("driver_override");
        assert_eq!(text(&path).unwrap_or_default(), "", "{failing}");
    }
    let tree = Tree::new();
    tree.function(NIC, Some(3), Some(VFIO_PCI), "0");
    let sysfs = tree.sysfs("vfio-pci/unbind");
    fs::write(sysfs.path(NIC).join("driver_override"), VFIO_PCI).unwrap();
    sysfs.unbind(NIC).unwrap_err();
    assert_eq!(
        text(&sysfs.path(NIC).join("driver_override")).unwrap(),
        VFIO_PCI
    );
}

#[test]
fn a_kernel_that_does_nothing_is_found_out() {
    let tree = Tree::new();
    tree.function(NIC, Some(3), None, "0");
    let deaf = Sysfs::at(tree.root.clone(), Box::new(|_, _| Ok(())));
    let e = deaf.bind(NIC, IDS).unwrap_err();
    assert!(matches!(e, SysfsError::NotTaken { .. }), "{e}");
}

#[test]
fn what_stands_in_the_way_of_binding_has_its_sentence() {
    let tree = Tree::new();
    tree.function(NIC, None, None, "0");
    let e = tree.sysfs("").bind(NIC, IDS).unwrap_err().to_string();
    assert!(e.contains("intel_iommu=on"), "{e}");
    fs::remove_dir_all(tree.root.join("bus/pci/drivers/vfio-pci")).unwrap();
    let e = tree.sysfs("").bind(NIC, IDS).unwrap_err().to_string();
    assert!(e.contains("modprobe vfio-pci"), "{e}");
    assert_eq!(tree.written(), []);
}

#[test]
fn what_stands_in_the_way_of_attaching_has_its_sentence() {
    let tree = Tree::new();
    let sysfs = tree.sysfs("");
    tree.function("0000:02:00.0", None, None, "0");
    let e = attach::check(&sysfs, "0000:02:00.0").unwrap_err();
    assert!(matches!(e, AttachError::NoIommu { .. }), "{e}");
    tree.function(NIC, Some(3), Some("nic"), "0");
    let e = attach::check(&sysfs, NIC).unwrap_err().to_string();
    assert!(e.contains("offmap device bind 0000:01:00.0"), "{e}");
    bind(&tree.root, NIC, Some(VFIO_PCI));
    assert_eq!(attach::check(&sysfs, NIC).unwrap().1, 3);
    // A bridge may stay with its driver, another function may not.
    tree.driver("pcieport");
    tree.function("0000:00:01.0", Some(3), Some("pcieport"), "0");
    assert!(attach::check(&sysfs, NIC).is_ok());
    tree.function("0000:01:00.1", Some(3), Some("nic"), "0");
    let e = attach::check(&sysfs, NIC).unwrap_err().to_string();
    assert!(e.contains("0000:01:00.1 (nic) is in it"), "{e}");
    bind(&tree.root, "0000:01:00.1", None);
    fs::write(
        tree.root.join("kernel/iommu_groups/3/name"),
        "vfio-noiommu\n",
    )
    .unwrap();
    let e = attach::check(&sysfs, NIC).unwrap_err().to_string();
    assert!(e.contains("no-IOMMU") && e.contains("VT-d"), "{e}");
}

#[test]
fn a_folder_alone_is_no_character_device() {
    let tree = Tree::new();
    tree.function(NIC, Some(3), Some(VFIO_PCI), "-1");
    let sysfs = tree.sysfs("nothing");
    let folder = sysfs.path(NIC).join("vfio-dev/vfio0");
    fs::create_dir_all(&folder).unwrap();
    let class = tree.root.join("class/misc/iommu");
    fs::create_dir_all(&class).unwrap();
    assert!(!sysfs.has_cdev(NIC));
    fs::write(folder.join("dev"), "511:0\n").unwrap();
    assert!(sysfs.has_cdev(NIC));
    fs::remove_dir(class).unwrap();
    assert!(!sysfs.has_cdev(NIC));
}

/// Which driver may have the NIC, as the tree says.
fn only(sysfs: &Sysfs) -> String {
    text(&sysfs.path(NIC).join("driver_override")).unwrap_or_default()
}

/// A driver that the kernel would not have chosen, and the override that somebody had set, are there again
/// after bind and unbind; and after a bind that fails.
#[test]
fn what_a_function_was_it_is_again() {
    let tree = Tree::new();
    tree.driver("special");
    tree.function(NIC, Some(3), Some("special"), "0");
    let sysfs = tree.sysfs("");
    fs::write(sysfs.path(NIC).join("driver_override"), "special\n").unwrap();
    sysfs.bind(NIC, IDS).unwrap();
    assert_eq!(only(&sysfs), VFIO_PCI);
    // Another process gives it back.
    let said = tree.sysfs("").unbind(NIC).unwrap();
    assert_eq!(only(&sysfs), "special");
    let now = sysfs.function(NIC).unwrap();
    assert_eq!(now.driver.as_deref(), Some("special"));
    assert_eq!(
        said,
        [
            "0000:01:00.0 may be bound to special only, as before",
            "0000:01:00.0 was taken from vfio-pci",
            "0000:01:00.0 is bound to special, as before",
        ]
    );
    tree.sysfs("vfio-pci/bind").bind(NIC, IDS).unwrap_err();
    assert_eq!(only(&sysfs), "special");
    assert_eq!(sysfs.function(NIC).unwrap(), now);
    // The kernel's word for none is none.
    fs::write(sysfs.path(NIC).join("driver_override"), "(null)\n").unwrap();
    sysfs.bind(NIC, IDS).unwrap();
    sysfs.unbind(NIC).unwrap();
    assert_eq!(only(&sysfs), "");
    // Nothing is done before it is written down.
    fs::remove_dir_all(tree.root.join("run")).unwrap();
    fs::write(tree.root.join("run"), "in the way").unwrap();
    tree.written();
    let e = sysfs.bind(NIC, IDS).unwrap_err().to_string();
    assert!(e.contains("cannot write down"), "{e}");
    assert_eq!(tree.written(), []);
    // A record that somebody has spoilt leads nowhere.
    fs::remove_file(tree.root.join("run")).unwrap();
    sysfs.bind(NIC, IDS).unwrap();
    fs::write(tree.root.join("run").join(NIC), "driver=../../x\n").unwrap();
    let said = sysfs.unbind(NIC).unwrap();
    assert_eq!(said[2], "0000:01:00.0 is bound to nic");
}

/// A function that is not the NIC, or that somebody uses, is not taken unless that is wanted; and it is said
/// what it is.
#[test]
fn what_is_not_ours_or_in_use_is_left_alone() {
    let tree = Tree::new();
    tree.driver("ahci");
    let disk = "0000:00:1f.2";
    tree.function(disk, Some(5), Some("ahci"), "0");
    let sysfs = tree.sysfs("");
    let path = sysfs.path(disk);
    for (file, said) in [
        ("vendor", "0x8086"),
        ("device", "0x2922"),
        ("class", "0x010601"),
    ] {
        fs::write(path.join(file), format!("{said}\n")).unwrap();
    }
    let part = path.join("ata1/host0/target0:0:0/block/sda/sda1");
    fs::create_dir_all(part.join("holders")).unwrap();
    fs::write(part.join("../dev"), "8:0\n").unwrap();
    fs::write(part.join("dev"), "8:1\n").unwrap();
    fs::write(part.join("partition"), "1\n").unwrap();
    let volume = tree.root.join("block/dm-0");
    fs::create_dir_all(&volume).unwrap();
    fs::write(volume.join("dev"), "254:0\n").unwrap();
    symlink(&volume, part.join("holders/dm-0")).unwrap();
    let e = sysfs.bind(disk, IDS).unwrap_err().to_string();
    let is = "0000:00:1f.2 is a 8086:2922 (class 0x010601, mass storage), bound to ahci";
    assert!(e.starts_with(is) && e.contains("--force"), "{e}");
    assert!(!e.contains("in use"), "{e}");
    fs::create_dir_all(tree.root.join("proc/self")).unwrap();
    let mounts = "22 1 0:20 / /sys rw - sysfs sysfs rw\n30 1 254:0 / /srv rw - ext4 /dev/dm-0 rw\n";
    fs::write(tree.root.join("proc/self/mountinfo"), mounts).unwrap();
    let swaps = "Filename Type Size Used Priority\n/dev/sda1 partition 1 0 -2\n";
    fs::write(tree.root.join("proc/swaps"), swaps).unwrap();
    let e = sysfs.bind(disk, IDS).unwrap_err().to_string();
    assert!(
        e.contains("in use: dm-0, mounted at /srv; sda1, used as swap"),
        "{e}"
    );
    // Ours, and an interface has it.
    tree.function(NIC, Some(3), Some("nic"), "0");
    let interface = sysfs.path(NIC).join("virtio0/net/eth7");
    fs::create_dir_all(&interface).unwrap();
    let e = sysfs.bind(NIC, IDS).unwrap_err().to_string();
    assert!(e.contains("in use: network interface eth7"), "{e}");
    assert_eq!(tree.written(), []);
    // Whoever wants it all the same hears what it was.
    let said = sysfs.bind(disk, None).unwrap();
    assert!(
        said[0].starts_with(is) && said[0].contains("/srv"),
        "{said:?}"
    );
    assert!(sysfs.function(disk).unwrap().is_vfio());
}
