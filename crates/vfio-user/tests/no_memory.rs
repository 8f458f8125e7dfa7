//! A server whose process has no memory for what a client asks for says so, and goes on.
//!
//! Unsafe: the trait of allocators. This one has no piece as large as [`LARGE`] while it is told so.
#![allow(unsafe_code, reason = "see above")]

mod support;

use offmap_vfio_user::message::{ReceiveError, receive, send};
use offmap_vfio_user::wire::{self, Command, Header, RegionAccessBody};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use support::{Server, version, wait};
use zerocopy::IntoBytes;

/// Bytes that there may not be.
const LARGE: usize = 100_000;
const ENOMEM: u32 = 12;

static NONE_LEFT: AtomicBool = AtomicBool::new(false);

struct Scarce;

impl Scarce {
    fn refuses(bytes: usize) -> bool {
        bytes >= LARGE && NONE_LEFT.load(Ordering::SeqCst)
    }
}

// SAFETY: every call goes to the system's allocator with the caller's own arguments, or fails.
unsafe impl GlobalAlloc for Scarce {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if Self::refuses(layout.size()) {
            return std::ptr::null_mut();
        }
        // SAFETY: the caller keeps the trait's contract, which is the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        if Self::refuses(new_size) {
            return std::ptr::null_mut();
        }
        // SAFETY: as above.
        unsafe { System.realloc(ptr, layout, new_size) }
    }
}

#[global_allocator]
static ALLOCATOR: Scarce = Scarce;

/// A message whose body there is no memory for, a reply and a list likewise: each is refused with ENOMEM,
/// and the next client is served.
#[test]
fn a_message_without_memory_for_it_is_refused() {
    let server = Server::start("no-memory", Duration::from_secs(60));
    let client = server.connect();
    assert!(!version(&client, 1).header.has(wire::ERROR));
    let access = |count: u32| RegionAccessBody {
        offset: 0.into(),
        region: 0.into(),
        count: count.into(),
    };
    let ask = |command, body: &[&[u8]]| {
        let len = body.iter().map(|piece| piece.len()).sum();
        let header = Header::command(7, command, len);
        send(&client, &header, body, &[], &wait()).unwrap();
        receive(&client, &wait()).unwrap()
    };
    let few = access(16);
    NONE_LEFT.store(true, Ordering::SeqCst);
    // A reply that cannot be.
    let refused = ask(Command::REGION_READ, &[access(LARGE as u32).as_bytes()]);
    assert_eq!(refused.header.error.get(), ENOMEM);
    let good = ask(Command::REGION_READ, &[few.as_bytes()]);
    assert_eq!(good.body[16..], [5; 16]);
    // A message that cannot be: what follows is not to be found.
    let header = Header::command(8, Command::REGION_WRITE, LARGE);
    let bytes = header.as_bytes();
    std::io::Write::write_all(&mut &client, bytes).unwrap();
    let refused = receive(&client, &wait()).unwrap();
    assert_eq!(refused.header.id.get(), 8);
    assert_eq!(refused.header.error.get(), ENOMEM);
    let closed = receive(&client, &wait());
    assert!(matches!(closed, Err(ReceiveError::Closed)), "{closed:?}");
    let next = server.connect();
    assert!(!version(&next, 9).header.has(wire::ERROR));
    NONE_LEFT.store(false, Ordering::SeqCst);
}
