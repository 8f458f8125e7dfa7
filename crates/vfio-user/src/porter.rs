//! Turns away whoever comes while a client is served.
//!
//! A client can match a reply only to a message of its own, so that nothing is said before its first
//! one is there: the reply has that message's id. Waiting for it is a thread's work, which the client that
//! is served does not notice. Connections that say nothing are closed at the deadline that a first
//! message has, and all that are more than [`WAITING_MAX`] at once.

use crate::message::{Wait, receive, send};
use crate::wire::{self, Header};
use offmap_device_io::{Interrupt, IoError};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Connections that may wait at a time for an answer that is no.
const WAITING_MAX: usize = 64;
/// How long a message that has begun may take, and its reply to be taken: others wait meanwhile.
const WHOLE: Duration = Duration::from_millis(100);

#[derive(Debug, Default)]
struct Queue {
    /// Who waits, and until when.
    waiting: Vec<(OwnedFd, Instant)>,
    ended: bool,
}

/// What the thread shares with who serves.
#[derive(Debug)]
struct Shared {
    queue: Mutex<Queue>,
    /// Signalled when there is something new.
    wake: Interrupt,
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A thread that turns clients away. Dropping it ends the thread, and closes their connections.
#[derive(Debug)]
pub(crate) struct Porter {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    /// How long a client may take to say its first message.
    first: Duration,
}

impl Porter {
    /// A thread that has nothing to do yet.
    ///
    /// # Errors
    ///
    /// [`IoError::Os`] where there is no thread or descriptor to be had.
    pub(crate) fn start(first: Duration) -> Result<Self, IoError> {
        let shared = Arc::new(Shared {
            queue: Mutex::default(),
            wake: Interrupt::new()?,
        });
        let its = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name("offmap-porter".into())
            .spawn(move || work(&its))
            .map_err(|e| IoError::os("cannot start the thread that turns clients away", e))?;
        Ok(Self {
            shared,
            thread: Some(thread),
            first,
        })
    }

    /// Turns a client away, later.
    pub(crate) fn turn_away(&self, client: OwnedFd) {
        let mut queue = self.shared.queue();
        // Who is closed without a word sees at least that.
        if queue.waiting.len() < WAITING_MAX {
            queue.waiting.push((client, Instant::now() + self.first));
            drop(queue);
            // An eventfd of ours takes a signal.
            let _ = self.shared.wake.signal();
        }
    }
}

impl Drop for Porter {
    fn drop(&mut self) {
        self.shared.queue().ended = true;
        let _ = self.shared.wake.signal();
        if let Some(thread) = self.thread.take() {
            // A panic has been reported where it happened.
            let _ = thread.join();
        }
    }
}

fn work(shared: &Shared) {
    let mut waiting: Vec<(OwnedFd, Instant)> = Vec::new();
    loop {
        let mut queue = shared.queue();
        if queue.ended {
            return;
        }
        waiting.append(&mut queue.waiting);
        drop(queue);
        let now = Instant::now();
        waiting.retain(|(_, until)| *until > now);
        let until = waiting.iter().map(|(_, until)| *until).min();
        let timeout = until.map(|until| {
            let left = until.saturating_duration_since(now);
            Timespec {
                tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX),
                tv_nsec: left.subsec_nanos().into(),
            }
        });
        let mut fds = vec![PollFd::from_borrowed_fd(shared.wake.fd(), PollFlags::IN)];
        fds.extend(waiting.iter().map(|(fd, _)| PollFd::new(fd, PollFlags::IN)));
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            // Without a way to wait there is nobody to be answered.
            Err(_) => return,
        }
        let mut here: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        drop(fds);
        if here.remove(0) {
            let _ = shared.wake.take();
        }
        let mut here = here.into_iter();
        waiting.retain(|(client, _)| {
            let speaks = here.next().unwrap_or(false);
            if speaks {
                answer(client);
            }
            !speaks
        });
    }
}

/// Tells a client, in reply to its first message, that there is another one.
fn answer(client: &OwnedFd) {
    let wait = || Wait::until(Instant::now() + WHOLE);
    let Ok(message) = receive(client, &wait()) else {
        return;
    };
    let header: Header = message.header;
    if header.kind() != wire::TYPE_COMMAND || header.has(wire::NO_REPLY) {
        return;
    }
    let busy = header.refusal(Errno::BUSY.raw_os_error());
    // Whoever does not take it sees the connection closed.
    let _ = send(client, &busy, &[], &[], &wait());
}
