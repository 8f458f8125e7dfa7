//! Opening a function, and what can be in the way of that.
//!
//! What the kernel would answer with a bare errno is looked up in sysfs first, so that each
//! reason has its own sentence.
//!
//! Unsafe: a descriptor of `vfio-ioctls` is borrowed, and its DMA mappings take addresses.
#![allow(unsafe_code, reason = "see above")]

use crate::ioctl;
use crate::sysfs::{PciFunction, Sysfs, SysfsError};
use offmap_device_io::{DmaBuffer, IoError, Iova, IovaRange};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;
use vfio_ioctls::{VfioContainer, VfioDevice, VfioError};
#[cfg(feature = "cdev")]
use {
    iommufd_ioctls::{IommuFd, IommufdError},
    vfio_ioctls::VfioIommufd,
};

/// How to attach to a function.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Attach {
    /// By which of the kernel's interfaces. Default: [`Interface::Any`].
    pub interface: Interface,
    /// How long a reset may take before the device counts as gone. Default: 10 s.
    pub reset_timeout: Duration,
}

impl Default for Attach {
    fn default() -> Self {
        Self {
            interface: Interface::Any,
            reset_timeout: Duration::from_secs(10),
        }
    }
}

/// An interface of the kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Interface {
    /// The character device where the kernel and this build have it, and the group otherwise.
    #[default]
    Any,
    /// The group in `/dev/vfio`, and a type1 container.
    Group,
    /// The device's own file in `/dev/vfio/devices`, and `/dev/iommu`.
    #[cfg(feature = "cdev")]
    Cdev,
}

/// Why a function cannot be attached to.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AttachError {
    /// It is not there, or sysfs cannot be read.
    #[error(transparent)]
    Sysfs(#[from] SysfsError),
    /// There is no IOMMU behind it.
    #[error(
        "{address} has no IOMMU group, so nothing would keep the device out of memory that is not its own: \
         enable the IOMMU in the firmware's settings (VT-d, AMD-Vi), and boot with intel_iommu=on on an Intel machine"
    )]
    NoIommu {
        /// The function.
        address: String,
    },
    /// The kernel lends it without an IOMMU.
    #[error(
        "group {group} of {address} is a no-IOMMU group: the device would reach all of the machine's memory, and every \
         address would have to be a physical one, which is refused here. Enable the IOMMU in the firmware's \
         settings (VT-d, AMD-Vi), boot with intel_iommu=on on an Intel machine, and bind the device again"
    )]
    NoIommuGroup {
        /// The function.
        address: String,
        /// Its group.
        group: u32,
    },
    /// Another driver has it, or none.
    #[error("{address} is bound to {}, not to vfio-pci: offmap device bind {address}", .driver.as_deref().unwrap_or("no driver"))]
    NotBound {
        /// The function.
        address: String,
        /// Its driver.
        driver: Option<String>,
    },
    /// Other functions of its group belong to drivers of the kernel.
    #[error(
        "group {group} cannot be lent: {} in it, too, bound to a driver of the kernel. \
         Bind to vfio-pci, or to no driver, what else is in the group", join(.others)
    )]
    GroupNotViable {
        /// The group.
        group: u32,
        /// The other functions, with their drivers.
        others: Vec<String>,
    },
    /// VFIO itself is not there.
    #[error("there is no {path}: load the modules, modprobe vfio-pci vfio_iommu_type1")]
    NoVfio {
        /// What is missing.
        path: String,
    },
    /// The files belong to somebody else.
    #[error(
        "no permission to open {path}: run as root, or let your user have that file (a udev rule, or chown)"
    )]
    Permission {
        /// The file.
        path: String,
    },
    /// Somebody else has it open.
    #[error("{path} is in use: another process, such as a virtual machine, has the device")]
    Busy {
        /// The file.
        path: String,
    },
    /// The IOMMU does not isolate interrupts.
    #[error(
        "the kernel does not lend group {group} ({source}): if dmesg speaks of interrupt remapping, enable it in the \
         firmware's settings, or, where every device is trusted, set allow_unsafe_interrupts of vfio_iommu_type1 (or of iommufd)"
    )]
    Refused {
        /// The group.
        group: u32,
        /// The system's error.
        source: io::Error,
    },
    /// Another error of the kernel.
    #[error("{address} cannot be opened: {why}")]
    Kernel {
        /// The function.
        address: String,
        /// What failed.
        why: String,
    },
    /// An access to the function failed.
    #[error(transparent)]
    Io(#[from] IoError),
}

fn join(others: &[String]) -> String {
    match others {
        [one] => format!("{one} is"),
        several => format!("{} are", several.join(" and ")),
    }
}

/// A function that was found fit to be opened.
pub(crate) struct Found {
    pub(crate) function: PciFunction,
}

/// A function that was opened.
pub(crate) struct Opened {
    pub(crate) device: VfioDevice,
    pub(crate) space: Space,
    pub(crate) found: Found,
}

/// Whether sysfs lets a function be opened, and in which group it is.
pub(crate) fn check(sysfs: &Sysfs, address: &str) -> Result<(PciFunction, u32), AttachError> {
    let function = sysfs.function(address)?;
    let address = function.address.clone();
    let Some(group) = function.iommu_group else {
        return Err(AttachError::NoIommu { address });
    };
    if function.no_iommu {
        return Err(AttachError::NoIommuGroup { address, group });
    }
    if !function.is_vfio() {
        let driver = function.driver;
        return Err(AttachError::NotBound { address, driver });
    }
    let others = sysfs.in_the_way(group)?;
    if !others.is_empty() {
        return Err(AttachError::GroupNotViable { group, others });
    }
    Ok((function, group))
}

/// Opens a function by one of the interfaces.
pub(crate) fn open(address: &str, interface: Interface) -> Result<Opened, AttachError> {
    let sysfs = Sysfs::system();
    let (function, group) = check(&sysfs, address)?;
    #[cfg(feature = "cdev")]
    if interface == Interface::Cdev
        || interface == Interface::Any && sysfs.has_cdev(&function.address)
    {
        match open_cdev(&sysfs, &function) {
            // The group may be there, and ours.
            Err(AttachError::NoVfio { .. } | AttachError::Permission { .. })
                if interface == Interface::Any => {}
            opened => return opened,
        }
    }
    let _ = interface;
    let container = VfioContainer::new(None).map_err(|e| failed(&function, group, e))?;
    let container = Arc::new(container);
    let path = sysfs.path(&function.address);
    let device = VfioDevice::new(&path, Arc::clone(&container) as _, true)
        .map_err(|e| failed(&function, group, e))?;
    Ok(Opened {
        device,
        space: Space::Container(container),
        found: Found { function },
    })
}

#[cfg(feature = "cdev")]
fn open_cdev(sysfs: &Sysfs, function: &PciFunction) -> Result<Opened, AttachError> {
    let group = function.iommu_group.unwrap_or_default();
    let why = |e: IommufdError| match e {
        IommufdError::OpenIommufd(e) => {
            opened(function, "/dev/iommu (the module iommufd)".into(), e)
        }
        e => AttachError::Kernel {
            address: function.address.clone(),
            why: format!("/dev/iommu: {e}"),
        },
    };
    let iommufd = IommuFd::new().map_err(why)?;
    let space = VfioIommufd::new(Arc::new(iommufd), None, None).map_err(|e| match e {
        VfioError::NewVfioIommufd(e) => why(e),
        e => failed(function, group, e),
    })?;
    let space = Arc::new(space);
    let path = sysfs.path(&function.address);
    let device = VfioDevice::new(&path, Arc::clone(&space) as _, true)
        .map_err(|e| failed(function, group, e))?;
    Ok(Opened {
        device,
        space: Space::Iommufd(space),
        found: Found {
            function: function.clone(),
        },
    })
}

/// Why a file cannot be opened.
fn opened(function: &PciFunction, path: String, e: io::Error) -> AttachError {
    match e.kind() {
        io::ErrorKind::NotFound => AttachError::NoVfio { path },
        io::ErrorKind::PermissionDenied => AttachError::Permission { path },
        io::ErrorKind::ResourceBusy => AttachError::Busy { path },
        _ => AttachError::Kernel {
            address: function.address.clone(),
            why: format!("{path}: {e}"),
        },
    }
}

fn failed(function: &PciFunction, group: u32, error: VfioError) -> AttachError {
    let opened = |path, e| opened(function, path, e);
    match error {
        VfioError::OpenContainer(e) => opened("/dev/vfio/vfio".into(), e),
        VfioError::OpenGroup(e, group) => opened(format!("/dev/vfio/{group}"), e),
        #[cfg(feature = "cdev")]
        VfioError::OpenDeviceCdev(e) => opened("/dev/vfio/devices".into(), e),
        #[cfg(feature = "cdev")]
        VfioError::VfioDeviceBindIommufd(e) if e.errno() == libc::EPERM => AttachError::Refused {
            group,
            source: io::Error::from_raw_os_error(e.errno()),
        },
        VfioError::GroupViable => AttachError::GroupNotViable {
            group,
            others: vec!["a function that sysfs does not show".into()],
        },
        VfioError::ContainerSetIOMMU(e) => AttachError::Refused {
            group,
            source: io::Error::from_raw_os_error(e.errno()),
        },
        VfioError::VfioExtension => AttachError::NoVfio {
            path: "type1 container (the module vfio_iommu_type1)".into(),
        },
        e => AttachError::Kernel {
            address: function.address.clone(),
            why: e.to_string(),
        },
    }
}

/// A second descriptor of the device's file.
pub(crate) fn duplicate(device: &VfioDevice) -> Result<File, IoError> {
    // SAFETY: the descriptor is open while `device` lives, which is through this function.
    let fd = unsafe { BorrowedFd::borrow_raw(device.as_raw_fd()) };
    let fd = fd
        .try_clone_to_owned()
        .map_err(|e| IoError::os("cannot duplicate the device's descriptor", e))?;
    Ok(fd.into())
}

/// The addresses that the device's memory is mapped at.
pub(crate) enum Space {
    /// A type1 container.
    Container(Arc<VfioContainer>),
    /// An address space of `/dev/iommu`.
    #[cfg(feature = "cdev")]
    Iommufd(Arc<VfioIommufd>),
}

/// Where the kernel does not say what the IOMMU maps: 39 bits, which every one has, without the
/// range that x86 machines decode as interrupt messages.
const UNSAID: [IovaRange; 2] = [
    IovaRange {
        first: Iova(0),
        last: Iova(0xfedf_ffff),
    },
    IovaRange {
        first: Iova(0xfef0_0000),
        last: Iova((1 << 39) - 1),
    },
];

impl Space {
    /// The IOVAs that can be mapped.
    pub(crate) fn ranges(&self) -> Result<Vec<IovaRange>, IoError> {
        let said = match self {
            Self::Container(container) => {
                // SAFETY: the descriptor is open while `container` lives.
                let fd = unsafe { BorrowedFd::borrow_raw(container.as_raw_fd()) };
                ioctl::container_ranges(fd)
            }
            #[cfg(feature = "cdev")]
            Self::Iommufd(space) => {
                // SAFETY: the descriptor is open while `space` lives.
                let fd = unsafe { BorrowedFd::borrow_raw(space.iommufd().as_raw_fd()) };
                ioctl::ioas_ranges(fd, space.ioas().id()).map(Some)
            }
        };
        let said = said.map_err(|e| IoError::os("the kernel does not say its IOVAs", e))?;
        let mut ranges = said.unwrap_or_else(|| UNSAID.to_vec());
        ranges.sort_by_key(|range| range.first);
        Ok(ranges)
    }

    /// Lets the device reach a buffer.
    pub(crate) fn map(&self, buffer: &DmaBuffer, iova: Iova) -> Result<(), IoError> {
        let address = buffer.host_address().cast_mut();
        let done = match self {
            // SAFETY: the buffer's memory is shared memory that no reference is ever made to,
            // and the kernel pins its pages, so that they outlive the buffer where need be.
            Self::Container(container) => unsafe {
                container.vfio_dma_map(iova.0, buffer.len(), address)
            },
            #[cfg(feature = "cdev")]
            // SAFETY: likewise.
            Self::Iommufd(space) => unsafe { space.vfio_dma_map(iova.0, buffer.len(), address) },
        };
        done.map_err(|e| not_mapped(&e, iova, buffer.len()))
    }

    /// Takes that away.
    pub(crate) fn unmap(&self, iova: Iova, len: usize) -> Result<(), IoError> {
        let done = match self {
            Self::Container(container) => container.vfio_dma_unmap(iova.0, len),
            #[cfg(feature = "cdev")]
            Self::Iommufd(space) => space.vfio_dma_unmap(iova.0, len),
        };
        done.map_err(|e| IoError::os("cannot unmap memory", system(&e)))
    }
}

fn not_mapped(error: &VfioError, iova: Iova, len: usize) -> IoError {
    let source = system(error);
    let why = match source.raw_os_error() {
        Some(libc::EEXIST) => "it overlaps with another mapping",
        Some(libc::ENOMEM) => {
            "the limit on locked memory is reached (raise it: ulimit -l, LimitMEMLOCK=, or run as root)"
        }
        Some(libc::ENOSPC) => {
            "there are as many mappings as vfio_iommu_type1 allows (its parameter dma_entry_limit)"
        }
        _ => return IoError::os("cannot map memory for DMA", source),
    };
    IoError::DmaMap { iova, len, why }
}

/// The system's error in one of `vfio-ioctls`.
fn system(error: &VfioError) -> io::Error {
    match error {
        VfioError::IommuDmaMap(e) | VfioError::IommuDmaUnmap(e) => {
            io::Error::from_raw_os_error(e.errno())
        }
        #[cfg(feature = "cdev")]
        VfioError::IommufdIoctlError(
            IommufdError::IommuIoasMap(e) | IommufdError::IommuIoasUnmap(e),
        ) => io::Error::from_raw_os_error(e.errno()),
        e => io::Error::other(e.to_string()),
    }
}
