//! A kernel with the modules that no kernel of Debian has: iommufd, and VFIO's character devices.
//!
//! They are built out of tree from the kernel's own source, against its headers, by the compiler of
//! the machine's release, which is the one that the release's kernel was built with. So that kernel is of the
//! machine's own release, and not of the one that QEMU comes from.

use crate::apt::{self, Apt, Mirror, output};
use crate::fetch::{Kernel, cache, kept, only};
use std::fs;
use std::path::Path;
use std::process::Command;

/// Packages that depend on the newest headers of a release, best first: bookworm's default is too old.
const HEADERS: [&str; 2] = [
    "linux-headers-6.12-cloud-amd64",
    "linux-headers-cloud-amd64",
];
/// What is taken from the source.
const SOURCES: [&str; 3] = ["drivers/iommu", "drivers/vfio", "lib/interval_tree.c"];
/// What is switched on.
const OPTIONS: [&str; 4] = [
    "CONFIG_IOMMUFD=m",
    "CONFIG_VFIO_DEVICE_CDEV=y",
    // It would want a tool that the headers do not have.
    "CONFIG_DEBUG_INFO_BTF_MODULES=",
    "KCFLAGS=-DCONFIG_IOMMUFD_MODULE=1 -DCONFIG_VFIO_DEVICE_CDEV=1 -DCONFIG_INTERVAL_TREE_SPAN_ITER=1",
];
/// iommufd wants a part of the kernel that nobody else does, and which is left out with it. The rest
/// of that file the kernel has and exports, so it is not exported a second time.
const SPAN: &str = "#include <linux/export.h>\n#undef EXPORT_SYMBOL_GPL\n#define EXPORT_SYMBOL_GPL(name)\n\
                    #include \"../../../lib/interval_tree.c\"\n";
/// What was built, in the order in which it is loaded. There is no type1 container among it, so that
/// a driver reaches its device by the character device or not at all.
const MODULES: [&str; 4] = [
    "drivers/iommu/iommufd/iommufd.ko",
    "drivers/vfio/vfio.ko",
    "drivers/vfio/pci/vfio-pci-core.ko",
    "drivers/vfio/pci/vfio-pci.ko",
];

/// The kernel, from the cache or built now: 200 MB to fetch, 600 MB for a while, and a minute.
///
/// # Errors
///
/// A sentence that says why it cannot be had.
pub fn cdev(target: &Path) -> Result<Kernel, String> {
    let release = apt::release()?;
    let part = format!("cdev-{release}");
    let folder = kept(&cache(target), &part, |folder| build(folder, &release))?;
    let image = only(&folder.join("root/boot"), "vmlinuz-");
    let packed = only(&folder.join("root/lib/modules"), "")
        .or_else(|_| only(&folder.join("root/usr/lib/modules"), ""))
        .map_err(apt::cache)?;
    let mut modules = vec![packed.join("kernel/virt/lib/irqbypass.ko.xz")];
    modules.retain(|module| module.exists());
    modules.extend(MODULES.map(|module| folder.join("build").join(module)));
    Ok(Kernel {
        image: image.map_err(apt::cache)?,
        modules,
    })
}

fn build(folder: &Path, release: &str) -> Result<(), String> {
    for tool in ["make", "gcc", "tar", "xz"] {
        let there = Command::new(tool).arg("--version").output();
        if there.is_err() {
            return Err(format!("there is no {tool}, with which modules are built"));
        }
    }
    let security = format!("{release}-security");
    let mut sources = Mirror::of(release)?.source(release);
    // Where the newest kernels are. A machine without that source has the first ones.
    if let Ok(mirror) = Mirror::of(&security) {
        sources += &mirror.source(&security);
    }
    let apt = Apt::new(folder.join("apt"), &sources)?;
    let headers = HEADERS.iter().find_map(|name| {
        let names = apt.depends(name, "linux-headers-").ok()?;
        names.into_iter().next()
    });
    let headers = headers.ok_or_else(|| format!("{release} has no headers of a cloud kernel"))?;
    let mut names = apt.depends(&headers, "linux-headers-")?;
    names.extend(apt.depends(&headers, "linux-kbuild-")?);
    let name = headers.trim_start_matches("linux-headers-");
    names.push(format!("linux-image-{name}"));
    names.push(headers.clone());
    // 6.12.117+deb12-cloud-amd64: series 6.12, and the source of the same version.
    let series: Vec<&str> = name.split(['.', '+']).take(2).collect();
    let version = apt.run("apt-cache", &["show", "--no-all-versions", &headers])?;
    let version = version
        .lines()
        .find_map(|line| line.strip_prefix("Version: "))
        .ok_or_else(|| format!("apt names no version of {headers}"))?;
    names.push(format!("linux-source-{}={version}", series.join(".")));
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let root = folder.join("root");
    apt.only(&names, &root)?;

    let build = folder.join("build");
    unpack_source(&root, &build)?;
    let iommufd = build.join("drivers/iommu/iommufd");
    let failed = |e: std::io::Error| format!("the kernel's source: {e}");
    fs::write(iommufd.join("span.c"), SPAN).map_err(failed)?;
    let makefile = iommufd.join("Makefile");
    let text = fs::read_to_string(&makefile).map_err(failed)?;
    fs::write(makefile, text + "iommufd-y += span.o\n").map_err(failed)?;
    fs::write(
        build.join("Kbuild"),
        "obj-m := drivers/iommu/iommufd/ drivers/vfio/\n",
    )
    .map_err(failed)?;
    // The headers name their other half by where it would be installed.
    let headers = root.join("usr/src").join(&headers);
    let makefile = headers.join("Makefile");
    let text = fs::read_to_string(&makefile).map_err(failed)?;
    let own = format!("{}/usr/src/", root.display());
    fs::write(makefile, text.replace("/usr/src/", &own)).map_err(failed)?;
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    let mut make = Command::new("make");
    make.arg(format!("-j{jobs}"))
        .arg("-C")
        .arg(&headers)
        .arg(format!("M={}", build.display()))
        .args(["CC=gcc", "modules"])
        .args(OPTIONS);
    output(make).map_err(|why| format!("the modules of {name} cannot be built: {why}"))?;
    // Nearly all of it, and not wanted any more.
    for module in MODULES {
        let mut strip = Command::new("strip");
        strip.arg("--strip-debug").arg(build.join(module));
        output(strip).map_err(|why| format!("strip of {module}: {why}"))?;
    }
    fs::remove_dir_all(root.join("usr/src")).map_err(failed)
}

/// Unpacks what is wanted of the source.
fn unpack_source(root: &Path, into: &Path) -> Result<(), String> {
    let archive = only(&root.join("usr/src"), "linux-source-").map_err(apt::cache)?;
    fs::create_dir_all(into).map_err(apt::cache)?;
    let mut tar = Command::new("tar");
    tar.args([
        "--extract",
        "--xz",
        "--strip-components=1",
        "--wildcards",
        "--file",
    ])
    .arg(&archive)
    .arg("--directory")
    .arg(into)
    .args(SOURCES.map(|source| format!("linux-source-*/{source}")));
    output(tar).map_err(|why| format!("{}: {why}", archive.display()))?;
    fs::remove_file(&archive).map_err(apt::cache)
}
