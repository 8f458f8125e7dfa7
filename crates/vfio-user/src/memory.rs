//! A client's memory as its server reaches it by messages: DMA_READ and DMA_WRITE.
//!
//! A server that maps the files which come with DMA_MAP needs no such message. One that does not
//! is answered while the client waits for a reply of its own, and only then.

use crate::capabilities::DATA_BYTES;
use crate::message::{Message, room};
use crate::wire::{self, Command, DmaAccessBody, Header};
use offmap_device_io::{DmaBuffer, IoError, Iova};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::sync::atomic::{Ordering, fence};
use std::sync::{Mutex, MutexGuard, PoisonError};
use zerocopy::IntoBytes;

/// Bytes of a word.
const WORD: usize = 8;

/// What the server may access, by first IOVA. Mappings are disjoint.
#[derive(Debug, Default)]
pub(crate) struct Reachable(Mutex<BTreeMap<u64, DmaBuffer>>);

/// The body of a reply, or the errno of a refusal.
type Answer = Result<Vec<u8>, Errno>;

impl Reachable {
    fn mapped(&self) -> MutexGuard<'_, BTreeMap<u64, DmaBuffer>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets the server access `buffer` at `iova`.
    ///
    /// # Errors
    ///
    /// [`IoError::DmaMap`] over another buffer; [`IoError::Os`] when it cannot be mapped once more.
    pub(crate) fn share(&self, buffer: &DmaBuffer, iova: Iova) -> Result<(), IoError> {
        let len = buffer.len();
        let refuse = |why| Err(IoError::DmaMap { iova, len, why });
        let Some(last) = iova.0.checked_add(len as u64 - 1) else {
            return refuse("the range wraps around the address space");
        };
        let again = buffer.map_again()?;
        let mut mapped = self.mapped();
        let before = mapped.range(..=last).next_back();
        if before.is_some_and(|(first, other)| first + (other.len() as u64 - 1) >= iova.0) {
            return refuse("the range overlaps a mapping");
        }
        mapped.insert(iova.0, again);
        Ok(())
    }

    /// Ends what [`Reachable::share`] began at `iova`.
    pub(crate) fn unshare(&self, iova: Iova) {
        self.mapped().remove(&iova.0);
    }

    /// Carries out a command of the server. The header and the body of the reply; `None` where it
    /// wants none.
    pub(crate) fn answer(&self, message: &Message) -> Option<(Header, Vec<u8>)> {
        let header = &message.header;
        let answer = match header.about() {
            _ if !message.fds.is_empty() || message.too_many_fds => Err(Errno::INVAL),
            Command::DMA_READ => self.read(&message.body),
            Command::DMA_WRITE => self.write(&message.body),
            _ => Err(Errno::OPNOTSUPP),
        };
        if header.has(wire::NO_REPLY) {
            return None;
        }
        Some(match answer {
            Ok(body) => (header.reply(body.len()), body),
            Err(errno) => (header.refusal(errno.raw_os_error()), Vec::new()),
        })
    }

    fn read(&self, body: &[u8]) -> Answer {
        let (access, rest) = wire::take::<DmaAccessBody>(body).ok_or(Errno::INVAL)?;
        let count = count(&access)?;
        if !rest.is_empty() {
            return Err(Errno::INVAL);
        }
        let mapped = self.mapped();
        let parts = parts(&mapped, access.address.get(), count)?;
        let mut reply = room(size_of::<DmaAccessBody>() + count)?;
        reply.extend_from_slice(access.as_bytes());
        // One access of a device is complete before its next one: nothing of another thread's is
        // seen out of order (docs/abi.md, section 10).
        fence(Ordering::SeqCst);
        for (buffer, at, len) in parts {
            if at.is_multiple_of(WORD) && len == WORD {
                let word = buffer.load_u64(at, Ordering::Acquire);
                reply.extend_from_slice(&word.to_ne_bytes());
            } else {
                let before = reply.len();
                reply.resize(before + len, 0);
                buffer.read(at, &mut reply[before..]);
            }
        }
        fence(Ordering::SeqCst);
        Ok(reply)
    }

    fn write(&self, body: &[u8]) -> Answer {
        let (access, mut data) = wire::take::<DmaAccessBody>(body).ok_or(Errno::INVAL)?;
        let count = count(&access)?;
        if data.len() != count {
            return Err(Errno::INVAL);
        }
        let mapped = self.mapped();
        // All of it is there, or none is written.
        let parts = parts(&mapped, access.address.get(), count)?;
        fence(Ordering::SeqCst);
        for (buffer, at, len) in parts {
            let (here, after) = data.split_at(len);
            data = after;
            match <[u8; WORD]>::try_from(here) {
                Ok(word) if at.is_multiple_of(WORD) => {
                    buffer.store_u64(at, u64::from_ne_bytes(word), Ordering::Release);
                }
                _ => buffer.write(at, here),
            }
        }
        fence(Ordering::SeqCst);
        Ok(access.as_bytes().to_vec())
    }
}

/// How many bytes an access has: 1 to as many as this side takes in a message.
fn count(access: &DmaAccessBody) -> Result<usize, Errno> {
    match access.count.get() {
        count @ 1.. if count <= u64::from(DATA_BYTES) => Ok(count as usize),
        _ => Err(Errno::INVAL),
    }
}

/// The parts of `count` bytes from `address`: buffer, offset and length of each, which lie in
/// one mapping or in several that follow each other.
///
/// # Errors
///
/// EFAULT where some of them are not mapped.
fn parts(
    mapped: &BTreeMap<u64, DmaBuffer>,
    address: u64,
    count: usize,
) -> Result<Vec<(&DmaBuffer, usize, usize)>, Errno> {
    let mut parts = Vec::new();
    let (mut at, mut left) = (address, count);
    while left > 0 {
        let (first, buffer) = mapped.range(..=at).next_back().ok_or(Errno::FAULT)?;
        let offset = usize::try_from(at - first).map_err(|_| Errno::FAULT)?;
        let room = buffer.len().checked_sub(offset).filter(|room| *room > 0);
        let len = room.ok_or(Errno::FAULT)?.min(left);
        parts.push((buffer, offset, len));
        left -= len;
        if left > 0 {
            at = at.checked_add(len as u64).ok_or(Errno::FAULT)?;
        }
    }
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use offmap_device_io::DmaPlacement;
    use std::os::fd::{AsFd, OwnedFd};
    use std::os::unix::net::UnixStream;

    const AT: u64 = 0x10_0000;

    fn buffer(pages: usize, fill: u8) -> DmaBuffer {
        let buffer = DmaBuffer::new(pages * 4096, DmaPlacement::default()).unwrap();
        buffer.write(0, &vec![fill; pages * 4096]);
        buffer
    }

    fn body(address: u64, count: u64, data: &[u8]) -> Vec<u8> {
        let access = DmaAccessBody {
            address: address.into(),
            count: count.into(),
        };
        [access.as_bytes(), data].concat()
    }

    fn message(command: Command, flags: u32, body: Vec<u8>, fds: Vec<OwnedFd>) -> Message {
        let mut header = Header::command(77, command, body.len());
        header.flags = flags.into();
        Message {
            header,
            body,
            fds,
            too_many_fds: false,
        }
    }

    fn ask(memory: &Reachable, command: Command, body: Vec<u8>) -> Result<Vec<u8>, i32> {
        let (header, reply) = memory
            .answer(&message(command, 0, body, Vec::new()))
            .expect("a reply");
        assert_eq!((header.id.get(), header.about()), (77, command));
        assert_eq!(header.kind(), wire::TYPE_REPLY);
        assert_eq!(header.size.get() as usize, wire::HEADER_BYTES + reply.len());
        match header.has(wire::ERROR) {
            true => Err(header.error.get() as i32),
            false => Ok(reply),
        }
    }

    #[test]
    fn what_is_mapped_is_read_and_written_and_nothing_else() {
        let memory = Reachable::default();
        let (one, two) = (buffer(1, 1), buffer(2, 2));
        memory.share(&one, Iova(AT)).unwrap();
        memory.share(&two, Iova(AT + 4096)).unwrap();
        let read = |address, count| ask(&memory, Command::DMA_READ, body(address, count, &[]));
        let write = |address, data: &[u8]| {
            let count = data.len() as u64;
            ask(&memory, Command::DMA_WRITE, body(address, count, data))
        };
        // In one mapping, at both ends of it, and across two.
        for (at, count) in [
            (AT, 1),
            (AT + 8, 8),
            (AT + 4095, 1),
            (AT + 4090, 100),
            (AT, 3 * 4096),
        ] {
            let mut expected = body(at, count, &[]);
            expected.extend((at..at + count).map(|byte| if byte < AT + 4096 { 1 } else { 2 }));
            assert_eq!(read(at, count), Ok(expected), "{count} at {at:#x}");
        }
        let data: Vec<u8> = (0..100).collect();
        assert_eq!(write(AT + 4050, &data), Ok(body(AT + 4050, 100, &[])));
        let mut seen = [0; 46];
        one.read(4050, &mut seen);
        assert_eq!(seen, data[..46]);
        let mut seen = [0; 55];
        two.read(0, &mut seen);
        assert_eq!(seen[..54], data[46..]);
        assert_eq!(seen[54], 2, "past its end");
        // A word.
        assert_eq!(write(AT + 16, b"word no1"), Ok(body(AT + 16, 8, &[])));
        let word = one.load_u64(16, Ordering::Acquire);
        assert_eq!(word.to_ne_bytes(), *b"word no1");
        // Outside, and partly so: nothing is written.
        let fault = Err(Errno::FAULT.raw_os_error());
        for (at, count) in [
            (0, 1),
            (AT - 1, 1),
            (AT - 1, 2),
            (AT + 3 * 4096, 1),
            (AT + 3 * 4096 - 1, 2),
            (u64::MAX, 1),
            (u64::MAX, 2),
            (u64::MAX - 3, 1 << 20),
        ] {
            assert_eq!(read(at, count), fault, "{count} at {at:#x}");
            assert_eq!(write(at, &vec![9; count as usize]), fault);
        }
        let mut last = [0];
        two.read(8191, &mut last);
        assert_eq!(last, [2]);
        memory.unshare(Iova(AT));
        assert_eq!(read(AT + 4095, 1), fault);
        assert!(read(AT + 4096, 1).is_ok());
    }

    #[test]
    fn what_cannot_be_is_an_error_reply() {
        let memory = Reachable::default();
        memory.share(&buffer(1, 1), Iova(AT)).unwrap();
        let invalid = Err(Errno::INVAL.raw_os_error());
        let most = u64::from(DATA_BYTES);
        for count in [0, most + 1, u64::MAX] {
            let read = ask(&memory, Command::DMA_READ, body(AT, count, &[]));
            assert_eq!(read, invalid, "{count}");
        }
        for wrong in [
            body(AT, 8, &[0; 7]),
            body(AT, 8, &[0; 9]),
            body(AT, 0, &[]),
            body(AT, u64::MAX, &[0; 8]),
            body(AT, 8, &[])[..15].to_vec(),
            Vec::new(),
        ] {
            assert_eq!(ask(&memory, Command::DMA_WRITE, wrong), invalid);
        }
        for wrong in [body(AT, 8, &[0]), Vec::new(), vec![0; 15]] {
            assert_eq!(ask(&memory, Command::DMA_READ, wrong), invalid);
        }
        for other in [Command::VERSION, Command::DMA_MAP, Command(0), Command(99)] {
            let refused = ask(&memory, other, body(AT, 8, &[]));
            assert_eq!(refused, Err(Errno::OPNOTSUPP.raw_os_error()), "{other}");
        }
        // Descriptors that nothing asks for.
        let (a, _b) = UnixStream::pair().unwrap();
        let fds = vec![a.as_fd().try_clone_to_owned().unwrap()];
        let sent = message(Command::DMA_READ, 0, body(AT, 8, &[]), fds);
        let (header, _) = memory.answer(&sent).expect("a reply");
        assert_eq!(header.error.get() as i32, Errno::INVAL.raw_os_error());
    }

    #[test]
    fn who_wants_no_reply_gets_none() {
        let memory = Reachable::default();
        let one = buffer(1, 1);
        memory.share(&one, Iova(AT)).unwrap();
        for (at, count) in [(AT, 8), (0, 8)] {
            let write = body(at, count, &[5; 8]);
            let sent = message(Command::DMA_WRITE, wire::NO_REPLY, write, Vec::new());
            assert!(memory.answer(&sent).is_none());
        }
        assert_eq!(one.load_u64(0, Ordering::Acquire), 0x0505_0505_0505_0505);
    }

    #[test]
    fn buffers_do_not_overlap() {
        let memory = Reachable::default();
        memory.share(&buffer(2, 1), Iova(AT)).unwrap();
        for at in [AT - 4096, AT, AT + 4096] {
            let refused = memory.share(&buffer(2, 2), Iova(at));
            assert!(matches!(refused, Err(IoError::DmaMap { .. })), "{at:#x}");
        }
        let wraps = memory.share(&buffer(2, 2), Iova(u64::MAX - 4095));
        assert!(matches!(wraps, Err(IoError::DmaMap { .. })));
        memory.share(&buffer(2, 2), Iova(AT + 8192)).unwrap();
    }
}
