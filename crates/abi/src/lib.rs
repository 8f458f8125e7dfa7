//! Every byte that crosses between host and device, defined once.
//!
//! The host driver and the device model both import this crate; neither defines a wire
//! constant of its own. The prose that goes with it, for people who build a device, is
//! `docs/abi.md`, and each item here names its section there (`abi §3.2`).
//!
//! Conventions:
//!
//! * All multi-byte fields are little-endian and are declared with little-endian field
//!   types, so that a struct's bytes are its wire image on every machine.
//! * Sizes and offsets are asserted at compile time beside each struct.
//! * Opcodes, status codes and flag sets are *open*: a value from the peer is kept as it
//!   came and compared with the named constants, never converted to a closed `enum`.
//! * Reserved fields are written as zero. A receiver ignores them unless the section says
//!   that it must check them.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

pub mod admin;
pub mod completion;
pub mod fence;
pub mod hash;
pub mod ids;
pub mod map_type;
pub mod notify;
pub mod opcode;
pub mod regs;
pub mod ring;
pub mod ringbuf;
pub mod status;
pub mod submission;

pub use completion::{Completion, CompletionWords};
pub use ids::{DevAddr, MapHandle, QueueId, RequestId};
pub use map_type::MapType;
pub use opcode::{AdminOpcode, IoOpcode};
pub use status::Status;
pub use submission::{Submission, SubmissionFlags, SubmissionWords};

/// What `fence` is made of; the litmus tests have loom's here.
mod atomic {
    pub(crate) use core::sync::atomic::{Ordering, fence};
}

/// Major version of the ABI: a driver refuses a device whose major version differs.
pub const ABI_MAJOR: u16 = 1;
/// Minor version of the ABI: features are added under feature bits, so that a driver and a
/// device of different minor versions work together.
pub const ABI_MINOR: u16 = 0;

/// Asserts, at compile time, the offset of each named field of a wire struct.
macro_rules! assert_layout {
    ($ty:ty, $size:expr, { $($field:ident : $offset:expr),* $(,)? }) => {
        const _: () = {
            assert!(core::mem::size_of::<$ty>() == $size);
            assert!(core::mem::align_of::<$ty>() == 1);
            $(assert!(core::mem::offset_of!($ty, $field) == $offset);)*
        };
    };
}
pub(crate) use assert_layout;

/// Declares an open set of named values over an integer that the peer may extend.
macro_rules! open_enum {
    ($(#[$meta:meta])* pub struct $name:ident($repr:ty) {
        $($(#[$vmeta:meta])* $variant:ident = $value:expr,)*
    }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub $repr);

        #[allow(non_upper_case_globals, reason = "the names read as variants of an open enum")]
        impl $name {
            $($(#[$vmeta])* pub const $variant: Self = Self($value);)*

            /// Every value that this version of the ABI names.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The name of the value, or `None` when this version of the ABI has none for it.
            pub const fn name(self) -> Option<&'static str> {
                match self.0 {
                    $(x if x == $value => Some(stringify!($variant)),)*
                    _ => None,
                }
            }
        }

        impl core::fmt::Debug for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                match self.name() {
                    Some(name) => f.write_str(name),
                    None => write!(f, concat!(stringify!($name), "({:#x})"), self.0),
                }
            }
        }

        impl core::fmt::Display for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                core::fmt::Debug::fmt(self, f)
            }
        }
    };
}
pub(crate) use open_enum;
