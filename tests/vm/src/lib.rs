//! Virtual machines with the emulated NIC in them: QEMU as the vfio-user client, a stock kernel
//! as the guest, and in it `offmap`, which reaches the NIC through the guest's vfio-pci.
//!
//! Nothing of it is installed. [`fetch`] keeps QEMU and the kernel in a folder, [`modules`] builds
//! those of the kernel's modules that Debian leaves out, [`image`] makes the guest's only file
//! system, [`machine`] is QEMU's command line, and [`guest`] runs it for the tests. `cargo vm` runs one
//! with a shell, for people. The guest is emulated instruction by instruction (TCG), because machines
//! that test are often virtual themselves.
#![forbid(unsafe_code)]

mod apt;
pub mod fetch;
pub mod guest;
pub mod image;
pub mod machine;
pub mod modules;
