//! A server has one client at a time: one that says nothing does not keep it, and one that comes
//! meanwhile hears why it is not served, in a reply to its own message.

mod support;

use offmap_device_io::IoError;
use offmap_vfio_user::message::{ReceiveError, receive, send};
use offmap_vfio_user::wire::{self, Command, Header};
use offmap_vfio_user::{Attach, VfioUser};
use std::io::Write;
use std::time::{Duration, Instant};
use support::{PATIENCE, Server, version, wait};
use zerocopy::IntoBytes;

const SOON: Duration = Duration::from_millis(300);
const EBUSY: u32 = 16;

/// One client says nothing and one says half a message: both are dropped at the deadline, and the
/// next one is served.
#[test]
fn who_says_nothing_does_not_keep_the_server() {
    let server = Server::start("silent", SOON);
    let silent = server.connect();
    let closed = receive(&silent, &wait());
    assert!(matches!(closed, Err(ReceiveError::Closed)), "{closed:?}");
    let mut half = server.connect();
    half.write_all(&[1; 10]).unwrap();
    let closed = receive(&half, &wait());
    assert!(matches!(closed, Err(ReceiveError::Closed)), "{closed:?}");
    let served = server.connect();
    assert!(!version(&served, 9).header.has(wire::ERROR));
    let ends = server.ends();
    assert_eq!(ends.len(), 2, "{ends:?}");
    assert!(ends.iter().all(|end| end.starts_with("Silent")), "{ends:?}");
}

/// The deadline is for the first message: who has said VERSION may be silent for ever.
#[test]
fn who_has_said_its_version_may_be_silent() {
    let server = Server::start("quiet", SOON);
    let client = server.connect();
    assert!(!version(&client, 1).header.has(wire::ERROR));
    std::thread::sleep(3 * SOON);
    let header = Header::command(2, Command::DEVICE_RESET, 0);
    send(&client, &header, &[], &[], &wait()).unwrap();
    assert!(!receive(&client, &wait()).unwrap().header.has(wire::ERROR));
    assert!(server.ends().is_empty());
}

/// Others come while a client is served: nothing is said before they are asked, and then each gets a reply
/// with its own id; who asks for no reply, or says nothing, is let go, and holds nobody up.
#[test]
fn a_second_client_hears_of_it_in_reply_to_its_message() {
    let server = Server::start("busy", SOON);
    let first = server.connect();
    assert!(!version(&first, 1).header.has(wire::ERROR));
    let silent = server.connect();
    let second = server.connect();
    for id in [0x1234, 0, 0xffff] {
        let third = server.connect();
        let reply = version(&third, id);
        assert_eq!(reply.header.id.get(), id);
        assert_eq!(reply.header.about(), Command::VERSION);
        assert_eq!(reply.header.kind(), wire::TYPE_REPLY);
        assert!(reply.header.has(wire::ERROR));
        assert_eq!(reply.header.error.get(), EBUSY);
        let closed = receive(&third, &wait());
        assert!(matches!(closed, Err(ReceiveError::Closed)), "{closed:?}");
    }
    assert_eq!(version(&second, 77).header.error.get(), EBUSY);
    // Nothing is sent to who sends nothing.
    let closed = receive(&silent, &wait());
    assert!(matches!(closed, Err(ReceiveError::Closed)), "{closed:?}");
    let mut header = Header::command(3, Command::VERSION, 0);
    header.flags = wire::NO_REPLY.into();
    let mut mute = server.connect();
    mute.write_all(header.as_bytes()).unwrap();
    let closed = receive(&mute, &wait());
    assert!(matches!(closed, Err(ReceiveError::Closed)), "{closed:?}");
    // The one who is served notices nothing of it.
    let header = Header::command(2, Command::DEVICE_RESET, 0);
    send(&first, &header, &[], &[], &wait()).unwrap();
    assert!(!receive(&first, &wait()).unwrap().header.has(wire::ERROR));
}

/// Our own client says who has the device, and what can be done.
#[test]
fn the_client_says_that_another_one_has_the_device() {
    let server = Server::start("sentence", SOON);
    let first = server.connect();
    assert!(!version(&first, 1).header.has(wire::ERROR));
    let began = Instant::now();
    let Err(error) = VfioUser::attach(&server.path(), Attach::default()) else {
        panic!("there is a client");
    };
    assert!(began.elapsed() < PATIENCE);
    let IoError::Os { source, .. } = &error else {
        panic!("{error:?}");
    };
    assert_eq!(source.raw_os_error(), Some(EBUSY as i32));
    let said = error.to_string();
    assert!(said.contains("another client holds the device"), "{said}");
    assert!(said.contains("end that client"), "{said}");
}
