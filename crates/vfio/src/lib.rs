//! A PCI function that is bound to vfio-pci, as a
//! [`Function`](offmap_device_io::Function); and what the kernel says of such functions.
//!
//! [`Vfio`] reaches the device by its group and a type1 container or, with the feature `cdev`,
//! by its character device and `/dev/iommu`. [`sysfs`] finds functions, binds them to vfio-pci
//! and gives them back.
//!
//! The device is not trusted to stay. When the kernel wants it back, because it is unplugged or
//! unbound, it loses its access to memory at once and every later call fails with
//! [`IoError::Gone`](offmap_device_io::IoError::Gone); who drops it then lets the removal go on.

mod attach;
mod function;
mod interrupts;
mod ioctl;
mod record;
pub mod sysfs;
mod uses;
mod watch;

pub use attach::{Attach, AttachError, Interface};
pub use function::Vfio;
