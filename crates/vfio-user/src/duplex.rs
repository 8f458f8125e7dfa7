//! A connection on which the server begins things, too: it asks for client memory while the client
//! asks it.
//!
//! Two threads share the socket: the one that carries the client's commands out, in
//! [`Duplex::next`], and the one that wants memory, in [`Duplex::read`] and [`Duplex::write`]. One of
//! them reads at a time, whoever finds nobody else at it, and passes on what is the other's: commands
//! into a queue, a reply to who waits for it. The first never reads while it carries a command out,
//! for which it may have to wait for the second; so that one reads then, and neither waits for ever.
//!
//! Every wait has a deadline. A client that does not answer is asked nothing more until it has; one that
//! answers what cannot be is told from memory that cannot be reached by nothing. While one of its commands is
//! carried out, which may have to wait for the second thread, all its answers together have the time of one: a
//! client that answers slowly keeps nobody else waiting. Being told to stop ends every wait.

use crate::capabilities::DATA_BYTES;
use crate::message::{Message, ReceiveError, Wait, arrived, receive, send};
use crate::wire::{self, Command, DmaAccessBody, Header};
use rustix::net::{Shutdown, shutdown};
use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use zerocopy::IntoBytes;

/// How long a client may take to answer DMA_READ or DMA_WRITE, and to end a message that it has begun
/// meanwhile.
pub const DMA_TIMEOUT: Duration = Duration::from_secs(2);
/// Commands that may wait while a reply is waited for, and their bytes.
const QUEUED_MAX: usize = 64;
const QUEUED_BYTES_MAX: usize = 4 << 20;

/// Client memory was not reached: the client refuses, does not answer, answers something else, or has
/// gone.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the client's memory cannot be reached by messages")]
pub struct Unreached;

/// What came in and is not a reply that was waited for.
type Arrival = Result<Message, ReceiveError>;

#[derive(Debug, Default)]
struct State {
    /// Somebody reads the socket.
    reading: bool,
    /// What is for [`Duplex::next`], and the bytes of it.
    queued: VecDeque<Arrival>,
    queued_bytes: usize,
    /// The command whose reply is waited for, and the reply.
    awaited: Option<u16>,
    reply: Option<Message>,
    /// A command that was given up. Nothing is asked before its reply has come.
    owed: Option<u16>,
    /// Since when a command of the client is carried out.
    carrying: Option<Instant>,
    /// Nothing more comes, or can be sent.
    ended: bool,
    /// Commands sent so far; the next one's id is its low half.
    sent: u64,
    /// Bytes of data that the client takes in a message.
    most: usize,
}

impl State {
    /// Files what has arrived; `Some`, where it is nobody's who waits here.
    fn file(&mut self, arrival: Arrival) -> Option<Arrival> {
        if let Ok(message) = &arrival
            && message.header.kind() == wire::TYPE_REPLY
        {
            let id = Some(message.header.id.get());
            if id == self.awaited && self.reply.is_none() {
                self.reply = arrival.ok();
                return None;
            }
            if id == self.owed {
                self.owed = None;
                return None;
            }
        }
        self.ended |= !matches!(
            arrival,
            Ok(_)
                | Err(ReceiveError::TooShort(_) | ReceiveError::Stopped | ReceiveError::Signalled)
        );
        Some(arrival)
    }

    fn queue(&mut self, arrival: Arrival) {
        self.queued_bytes += arrival.as_ref().map_or(0, |message| message.body.len());
        self.queued.push_back(arrival);
    }

    fn is_full(&self) -> bool {
        self.queued.len() >= QUEUED_MAX || self.queued_bytes >= QUEUED_BYTES_MAX
    }
}

/// The server's end of a connection.
#[derive(Debug)]
pub struct Duplex {
    socket: OwnedFd,
    /// Ends every wait when it becomes readable.
    stop: Option<OwnedFd>,
    state: Mutex<State>,
    /// Somebody has stopped to read, or something was filed.
    changed: Condvar,
    /// Held while a message is sent: messages do not mix.
    sending: Mutex<()>,
}

impl Duplex {
    /// Over a connected socket. `stop` ends every wait when it becomes readable.
    pub fn new(socket: OwnedFd, stop: Option<OwnedFd>) -> Self {
        Self {
            socket,
            stop,
            state: Mutex::default(),
            changed: Condvar::new(),
            sending: Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many bytes of data the client takes in a message. Before it has said so nothing is asked.
    pub(crate) fn set_most(&self, bytes: u32) {
        self.state().most = bytes.min(DATA_BYTES) as usize;
    }

    /// The next message that is no reply to what this side asked.
    ///
    /// # Errors
    ///
    /// [`ReceiveError`].
    pub(crate) fn next(&self, wait: &Wait<'_>) -> Arrival {
        self.state().carrying = None;
        let arrival = self.arrival(wait);
        self.state().carrying = Some(Instant::now());
        arrival
    }

    fn arrival(&self, wait: &Wait<'_>) -> Arrival {
        let mut state = self.state();
        loop {
            if let Some(arrival) = state.queued.pop_front() {
                state.queued_bytes -= arrival.as_ref().map_or(0, |message| message.body.len());
                return arrival;
            }
            if state.ended {
                return Err(ReceiveError::Closed);
            }
            if state.reading {
                // Who reads does so for a bounded time.
                state = self
                    .changed
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            state.reading = true;
            drop(state);
            let arrival = receive(&self.socket, wait);
            state = self.state();
            state.reading = false;
            let arrival = state.file(arrival);
            self.changed.notify_all();
            if let Some(arrival) = arrival {
                return arrival;
            }
        }
    }

    /// Sends a message.
    ///
    /// # Errors
    ///
    /// As [`send`]; the connection is of no use afterwards.
    pub(crate) fn send(
        &self,
        header: &Header,
        body: &[&[u8]],
        fds: &[BorrowedFd<'_>],
        wait: &Wait<'_>,
    ) -> Result<(), ReceiveError> {
        let one = self.sending.lock().unwrap_or_else(PoisonError::into_inner);
        let sent = send(&self.socket, header, body, fds, wait);
        drop(one);
        if sent.is_err() {
            self.state().ended = true;
            self.changed.notify_all();
        }
        sent
    }

    /// Ends the connection: whoever waits for something on it hears of it.
    pub(crate) fn end(&self) {
        self.state().ended = true;
        self.changed.notify_all();
        // The other side may have been quicker.
        let _ = shutdown(&self.socket, Shutdown::Both);
    }

    /// Reads client memory at an IOVA, in as many messages as the client's limit asks for.
    ///
    /// # Errors
    ///
    /// [`Unreached`]; some of `into` may have been written.
    pub fn read(&self, address: u64, into: &mut [u8]) -> Result<(), Unreached> {
        let most = self.most(into.len())?;
        let mut at = address;
        for piece in into.chunks_mut(most) {
            let (asked, reply) = self.ask(Command::DMA_READ, at, piece.len(), &[])?;
            let answered = wire::take::<DmaAccessBody>(&reply.body);
            match answered {
                Some((echo, data)) if echo == asked && data.len() == piece.len() => {
                    piece.copy_from_slice(data);
                }
                _ => return Err(Unreached),
            }
            at = at.wrapping_add(piece.len() as u64);
        }
        Ok(())
    }

    /// Writes client memory, likewise.
    ///
    /// # Errors
    ///
    /// [`Unreached`]; some of it may have been written.
    pub fn write(&self, address: u64, from: &[u8]) -> Result<(), Unreached> {
        let most = self.most(from.len())?;
        let mut at = address;
        for piece in from.chunks(most) {
            let (asked, reply) = self.ask(Command::DMA_WRITE, at, piece.len(), piece)?;
            let answered = wire::take::<DmaAccessBody>(&reply.body);
            // By the protocol's text the count is zero; clients of libvfio-user's kind repeat it.
            let complete = |echo: &DmaAccessBody| {
                echo.address == asked.address
                    && (echo.count == asked.count || echo.count.get() == 0)
            };
            if !answered.is_some_and(|(echo, rest)| complete(&echo) && rest.is_empty()) {
                return Err(Unreached);
            }
            at = at.wrapping_add(piece.len() as u64);
        }
        Ok(())
    }

    /// Bytes of a message for an access of so many: a word is never two.
    fn most(&self, len: usize) -> Result<usize, Unreached> {
        let most = self.state().most;
        match most >= len.clamp(1, 8) {
            true => Ok(most),
            false => Err(Unreached),
        }
    }

    /// A command and the reply to it, which is none of an error.
    fn ask(
        &self,
        command: Command,
        address: u64,
        count: usize,
        data: &[u8],
    ) -> Result<(DmaAccessBody, Message), Unreached> {
        let asked = DmaAccessBody {
            address: address.into(),
            count: (count as u64).into(),
        };
        let reply = self.call(command, &[asked.as_bytes(), data])?;
        let header = &reply.header;
        let fits = header.about() == command && !header.has(wire::ERROR);
        match fits && reply.fds.is_empty() && !reply.too_many_fds {
            true => Ok((asked, reply)),
            false => Err(Unreached),
        }
    }

    fn call(&self, command: Command, body: &[&[u8]]) -> Result<Message, Unreached> {
        let mut deadline = Instant::now() + DMA_TIMEOUT;
        let mut state = self.state();
        // What is carried out may wait for this, and somebody else for that.
        let shared = |state: &State| state.carrying.map(|since| since + DMA_TIMEOUT);
        deadline = shared(&state).map_or(deadline, |all| all.min(deadline));
        let late = deadline <= Instant::now();
        if late || state.ended || state.owed.is_some() || state.awaited.is_some() {
            return Err(Unreached);
        }
        let id = state.sent as u16;
        state.sent += 1;
        state.awaited = Some(id);
        drop(state);
        let header = Header::command(id, command, body.iter().map(|piece| piece.len()).sum());
        let sent = self.send(&header, body, &[], &Wait::until(deadline));
        let mut state = self.state();
        while sent.is_ok() && state.reply.is_none() && !state.ended {
            deadline = shared(&state).map_or(deadline, |all| all.min(deadline));
            let left = deadline.saturating_duration_since(Instant::now());
            // Beyond what may wait nothing is read before the commands are carried out.
            if left.is_zero() || state.is_full() {
                state.owed = Some(id);
                break;
            }
            if state.reading {
                let waited = self.changed.wait_timeout(state, left);
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
                continue;
            }
            state.reading = true;
            drop(state);
            let arrival = self.receive_until(deadline);
            state = self.state();
            state.reading = false;
            if let Some(arrival) = arrival.and_then(|arrival| state.file(arrival)) {
                state.queue(arrival);
            }
            self.changed.notify_all();
        }
        state.awaited = None;
        state.reply.take().ok_or(Unreached)
    }

    /// What arrives until then; `None`: nothing.
    fn receive_until(&self, deadline: Instant) -> Option<Arrival> {
        let wait = Wait {
            stop: self.stop.as_ref().map(AsFd::as_fd),
            ..Wait::until(deadline)
        };
        match arrived(&self.socket, &wait) {
            Ok(()) => {}
            Err(ReceiveError::TimedOut) => return None,
            Err(ReceiveError::Stopped) => {
                // Whoever serves the client hears of it at its next look; memory is reached no more.
                self.state().ended = true;
                return None;
            }
            Err(e) => return Some(Err(e)),
        }
        let whole = Wait::until(Instant::now() + DMA_TIMEOUT);
        Some(receive(self.socket.as_fd(), &whole))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;
    use std::sync::Arc;
    use std::thread::{self, JoinHandle};

    const AT: u64 = 0x4_0000;

    fn patience() -> Wait<'static> {
        Wait::until(Instant::now() + Duration::from_secs(30))
    }

    /// The server's end, and the client's socket.
    fn pair(most: u32) -> (Arc<Duplex>, UnixStream) {
        let (server, client) = UnixStream::pair().unwrap();
        let duplex = Duplex::new(server.into(), None);
        duplex.set_most(most);
        (Arc::new(duplex), client)
    }

    fn echo(asked: &Message) -> DmaAccessBody {
        let (access, _) = wire::take::<DmaAccessBody>(&asked.body).unwrap();
        access
    }

    /// Bytes that a client has at an address.
    fn bytes(access: &DmaAccessBody) -> Vec<u8> {
        let from = access.address.get();
        (from..from + access.count.get())
            .map(|at| at as u8)
            .collect()
    }

    fn reply(client: &UnixStream, asked: &Message, body: &[&[u8]]) {
        let len = body.iter().map(|piece| piece.len()).sum();
        send(client, &asked.header.reply(len), body, &[], &patience()).unwrap();
    }

    /// A client that answers reads as it should, `n` of them, and returns what it was asked.
    fn good(client: &UnixStream, n: usize) -> Vec<(Command, u64, u64)> {
        (0..n)
            .map(|_| {
                let asked = receive(client, &patience()).unwrap();
                let access = echo(&asked);
                let data = match asked.header.about() {
                    Command::DMA_READ => bytes(&access),
                    _ => Vec::new(),
                };
                reply(client, &asked, &[access.as_bytes(), &data]);
                (
                    asked.header.about(),
                    access.address.get(),
                    access.count.get(),
                )
            })
            .collect()
    }

    fn reads(duplex: &Arc<Duplex>, len: usize) -> JoinHandle<Result<Vec<u8>, Unreached>> {
        let duplex = Arc::clone(duplex);
        thread::spawn(move || {
            let mut into = vec![0; len];
            duplex.read(AT, &mut into).map(|()| into)
        })
    }

    /// The one who waits for commands, as long as there are any.
    fn serves(duplex: &Arc<Duplex>) -> JoinHandle<Vec<u16>> {
        let duplex = Arc::clone(duplex);
        thread::spawn(move || {
            let next = || duplex.next(&patience()).ok();
            std::iter::from_fn(next)
                .map(|message| message.header.id.get())
                .collect()
        })
    }

    #[test]
    fn accesses_are_as_long_as_the_client_takes() {
        let (duplex, client) = pair(100);
        let thread = reads(&duplex, 250);
        let asked = good(&client, 3);
        let expected = [(AT, 100), (AT + 100, 100), (AT + 200, 50)];
        assert_eq!(asked, expected.map(|(at, n)| (Command::DMA_READ, at, n)));
        let read = thread.join().unwrap().unwrap();
        assert_eq!(read, (0..250).map(|n| n as u8).collect::<Vec<_>>());
        // A word is one message, or none.
        duplex.set_most(8);
        let thread = reads(&duplex, 8);
        assert_eq!(good(&client, 1), [(Command::DMA_READ, AT, 8)]);
        thread.join().unwrap().unwrap();
        for most in [0, 7] {
            duplex.set_most(most);
            assert_eq!(duplex.read(AT, &mut [0; 8]), Err(Unreached));
            assert_eq!(duplex.write(AT, &[0; 8]), Err(Unreached));
        }
    }

    /// How a client answers a question.
    type Answers<'a> = &'a dyn Fn(&UnixStream, &Message);

    /// With somebody who waits for commands as well as without: who reads differs.
    #[test]
    fn answers_that_cannot_be_are_no_memory_and_harm_nothing() {
        for served in [false, true] {
            let (duplex, client) = pair(1 << 20);
            let server = served.then(|| serves(&duplex));
            let wrong: [Answers<'_>; 9] = [
                &|c, m| reply(c, m, &[]),
                &|c, m| reply(c, m, &[echo(m).as_bytes()]),
                &|c, m| reply(c, m, &[echo(m).as_bytes(), &[0; 63]]),
                &|c, m| reply(c, m, &[echo(m).as_bytes(), &[0; 65]]),
                &|c, m| {
                    let mut other = echo(m);
                    other.address = (AT + 8).into();
                    reply(c, m, &[other.as_bytes(), &[0; 64]]);
                },
                &|c, m| {
                    let mut other = echo(m);
                    other.count = 63.into();
                    reply(c, m, &[other.as_bytes(), &[0; 64]]);
                },
                &|c, m| {
                    let mut other = Header::command(0, Command::DMA_WRITE, 80).reply(80);
                    other.id = m.header.id;
                    let access = echo(m);
                    let body = [access.as_bytes(), &[0; 64]];
                    send(c, &other, &body, &[], &patience()).unwrap();
                },
                &|c, m| send(c, &m.header.refusal(14), &[], &[], &patience()).unwrap(),
                &|c, m| {
                    let access = echo(m);
                    let body = [access.as_bytes(), &[0; 64]];
                    send(c, &m.header.reply(80), &body, &[c.as_fd()], &patience()).unwrap();
                },
            ];
            for (n, wrong) in wrong.into_iter().enumerate() {
                let thread = reads(&duplex, 64);
                let asked = receive(&client, &patience()).unwrap();
                wrong(&client, &asked);
                assert_eq!(thread.join().unwrap(), Err(Unreached), "{n}");
                let thread = reads(&duplex, 64);
                good(&client, 1);
                thread.join().unwrap().unwrap();
            }
            drop(client);
            assert_eq!(duplex.read(AT, &mut [0; 8]), Err(Unreached));
            if let Some(server) = server {
                assert!(server.join().unwrap().is_empty());
            }
        }
    }

    #[test]
    fn a_write_is_acknowledged_with_its_count_or_none() {
        let (duplex, client) = pair(1 << 20);
        for (count, rest, taken) in [(8, 0, true), (0, 0, true), (7, 0, false), (8, 1, false)] {
            let thread = thread::spawn({
                let duplex = Arc::clone(&duplex);
                move || duplex.write(AT, &[5; 8])
            });
            let asked = receive(&client, &patience()).unwrap();
            assert_eq!(asked.body, [echo(&asked).as_bytes(), &[5; 8]].concat());
            let mut said = echo(&asked);
            said.count = count.into();
            reply(&client, &asked, &[said.as_bytes(), &vec![0; rest]]);
            assert_eq!(thread.join().unwrap().is_ok(), taken, "{count} {rest}");
        }
    }

    /// What is no answer to what was asked goes to the one who takes messages, in its order.
    #[test]
    fn what_comes_meanwhile_is_kept_for_the_other() {
        for served in [false, true] {
            let (duplex, client) = pair(1 << 20);
            let server = served.then(|| serves(&duplex));
            let thread = reads(&duplex, 8);
            let asked = receive(&client, &patience()).unwrap();
            for id in 100..110u16 {
                let mut header = Header::command(id, Command::DEVICE_RESET, 0);
                if id == 105 {
                    header = header.reply(0);
                }
                send(&client, &header, &[], &[], &patience()).unwrap();
            }
            let access = echo(&asked);
            reply(&client, &asked, &[access.as_bytes(), &bytes(&access)]);
            thread.join().unwrap().unwrap();
            drop(client);
            let server = server.unwrap_or_else(|| serves(&duplex));
            assert_eq!(server.join().unwrap(), (100..110).collect::<Vec<_>>());
        }
    }

    /// More commands than may wait end the access, and are all there.
    #[test]
    fn a_client_that_talks_and_does_not_answer_is_asked_nothing() {
        let (duplex, client) = pair(1 << 20);
        let thread = reads(&duplex, 8);
        let asked = receive(&client, &patience()).unwrap();
        let began = Instant::now();
        let all = QUEUED_MAX as u16 + 10;
        for id in 0..all {
            let header = Header::command(1000 + id, Command::DEVICE_RESET, 0);
            send(&client, &header, &[], &[], &patience()).unwrap();
        }
        assert_eq!(thread.join().unwrap(), Err(Unreached));
        assert!(began.elapsed() < DMA_TIMEOUT, "not for want of time");
        assert_eq!(duplex.read(AT, &mut [0; 8]), Err(Unreached));
        let access = echo(&asked);
        reply(&client, &asked, &[access.as_bytes(), &bytes(&access)]);
        let header = Header::command(9, Command::DEVICE_RESET, 0);
        send(&client, &header, &[], &[], &patience()).unwrap();
        for id in (0..all).map(|id| 1000 + id).chain([9]) {
            assert_eq!(duplex.next(&patience()).unwrap().header.id.get(), id);
        }
        // The answer that was owed has come, and it is asked again.
        let thread = reads(&duplex, 8);
        good(&client, 1);
        thread.join().unwrap().unwrap();
    }

    #[test]
    fn silence_and_half_a_message_end_in_time() {
        use std::io::Write;
        let (duplex, mut client) = pair(1 << 20);
        let began = Instant::now();
        let thread = reads(&duplex, 8);
        let asked = receive(&client, &patience()).unwrap();
        assert_eq!(thread.join().unwrap(), Err(Unreached));
        assert!(began.elapsed() >= DMA_TIMEOUT);
        let again = Instant::now();
        assert_eq!(duplex.read(AT, &mut [0; 8]), Err(Unreached));
        assert!(again.elapsed() < DMA_TIMEOUT, "it waits once");
        // It answers late: nobody is harmed, and it is asked again.
        let server = serves(&duplex);
        reply(&client, &asked, &[echo(&asked).as_bytes(), &[0; 8]]);
        let answered = Instant::now();
        while duplex.state().owed.is_some() {
            assert!(answered.elapsed() < Duration::from_secs(30));
            thread::yield_now();
        }
        let thread = reads(&duplex, 8);
        good(&client, 1);
        thread.join().unwrap().unwrap();
        drop(server);
        // Half of one: whoever reads gives it up, and with it the connection.
        let (duplex, mut other) = pair(1 << 20);
        std::mem::swap(&mut client, &mut other);
        let thread = reads(&duplex, 8);
        receive(&client, &patience()).unwrap();
        client.write_all(&[0; 8]).unwrap();
        assert_eq!(thread.join().unwrap(), Err(Unreached));
        assert!(matches!(
            duplex.next(&patience()),
            Err(ReceiveError::TimedOut)
        ));
        assert!(matches!(
            duplex.next(&patience()),
            Err(ReceiveError::Closed)
        ));
    }

    /// Eight messages of eight bytes, each of them answered in time.
    #[test]
    fn slow_answers_have_the_time_of_one_while_a_command_is_carried_out() {
        const SLOW: Duration = Duration::from_millis(400);
        let (duplex, client) = pair(8);
        // A command of the client's, which is carried out from now on.
        let header = Header::command(1, Command::DEVICE_RESET, 0);
        send(&client, &header, &[], &[], &patience()).unwrap();
        duplex.next(&patience()).unwrap();
        let began = Instant::now();
        let thread = reads(&duplex, 64);
        let answering = thread::spawn(move || {
            let mut answered = 0;
            while let Ok(asked) = receive(&client, &Wait::until(Instant::now() + 2 * DMA_TIMEOUT)) {
                thread::sleep(SLOW);
                // What it writes to a connection that has ended meanwhile is nobody's.
                let access = echo(&asked);
                let body: [&[u8]; 2] = [access.as_bytes(), &[0; 8]];
                let header = asked.header.reply(access.as_bytes().len() + 8);
                if send(&client, &header, &body, &[], &patience()).is_err() {
                    break;
                }
                answered += 1;
            }
            answered
        });
        assert_eq!(thread.join().unwrap(), Err(Unreached));
        let took = began.elapsed();
        assert!(took < 2 * DMA_TIMEOUT, "{took:?} for all of them");
        // Nothing more is asked before the command has ended.
        assert_eq!(duplex.read(AT, &mut [0; 8]), Err(Unreached));
        duplex.end();
        assert!(answering.join().unwrap() < 8);
    }

    #[test]
    fn being_told_to_stop_ends_every_wait() {
        let (server, client) = UnixStream::pair().unwrap();
        let (told, tell) = UnixStream::pair().unwrap();
        let duplex = Arc::new(Duplex::new(server.into(), Some(told.into())));
        duplex.set_most(1 << 20);
        let began = Instant::now();
        let thread = reads(&duplex, 8);
        receive(&client, &patience()).unwrap();
        drop(tell);
        assert_eq!(thread.join().unwrap(), Err(Unreached));
        assert_eq!(duplex.read(AT, &mut [0; 8]), Err(Unreached));
        assert!(began.elapsed() < DMA_TIMEOUT, "{:?}", began.elapsed());
    }

    #[test]
    fn a_client_that_dies_is_waited_for_no_longer() {
        for served in [false, true] {
            let (duplex, client) = pair(1 << 20);
            let server = served.then(|| serves(&duplex));
            let thread = reads(&duplex, 8);
            receive(&client, &patience()).unwrap();
            let began = Instant::now();
            drop(client);
            assert_eq!(thread.join().unwrap(), Err(Unreached));
            assert!(began.elapsed() < DMA_TIMEOUT);
            assert!(matches!(
                duplex.next(&patience()),
                Err(ReceiveError::Closed)
            ));
            assert_eq!(duplex.read(AT, &mut [0; 8]), Err(Unreached));
            drop(server);
        }
    }
}
