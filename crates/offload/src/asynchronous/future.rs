//! Operations as futures, for any executor.
//!
//! A future sends its operation when it is first polled and there is room; otherwise it stands in
//! line, in the order of arrival. It holds nothing that an executor must know of: who wakes it is
//! said by [`Wake`].

use super::{AsyncMap, Outcome, SubmitError, Ticket, Wake};
use crate::asynchronous::Failure;
use offmap_bpf::ElementOp;
use offmap_driver::Function;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

/// An operation on a map, as a future.
///
/// Dropped before it was sent, it was never begun. Dropped after that, the operation goes on: it
/// has its effect or not, and nobody is told, as with [`Ticket`].
#[must_use = "futures do nothing unless they are polled"]
pub struct MapFuture<'a, F: Function> {
    map: &'a AsyncMap<F>,
    op: ElementOp<'a>,
    stage: Stage<F>,
}

enum Stage<F: Function> {
    /// Not sent; with its turn, when it stands in line.
    Waits(Option<u64>),
    Sent(Ticket<F>),
    Done,
}

impl<F: Function> fmt::Debug for MapFuture<'_, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stage = match &self.stage {
            Stage::Waits(None) => "not polled",
            Stage::Waits(Some(_)) => "in line",
            Stage::Sent(_) => "sent",
            Stage::Done => "done",
        };
        f.debug_struct("MapFuture")
            .field("op", &self.op)
            .field("stage", &stage)
            .finish_non_exhaustive()
    }
}

impl<F: Function> AsyncMap<F> {
    /// An operation as a future. Its output is that of [`Ticket::wait`]; instead of
    /// [`SubmitError::Full`] it waits.
    pub fn run<'a>(&'a self, op: ElementOp<'a>) -> MapFuture<'a, F> {
        MapFuture {
            map: self,
            op,
            stage: Stage::Waits(None),
        }
    }

    /// [`offmap_bpf::MapFile::lookup`]; gives the value.
    pub fn lookup<'a>(&'a self, key: &'a [u8]) -> MapFuture<'a, F> {
        self.run(ElementOp::Lookup { key })
    }

    /// [`offmap_bpf::MapFile::update`].
    pub fn update<'a>(&'a self, key: &'a [u8], value: &'a [u8], flags: u64) -> MapFuture<'a, F> {
        self.run(ElementOp::Update { key, value, flags })
    }

    /// [`offmap_bpf::MapFile::delete`].
    pub fn delete<'a>(&'a self, key: &'a [u8]) -> MapFuture<'a, F> {
        self.run(ElementOp::Delete { key })
    }

    /// [`offmap_bpf::MapFile::get_next_key`]; gives the key.
    pub fn next_key<'a>(&'a self, key: Option<&'a [u8]>) -> MapFuture<'a, F> {
        self.run(ElementOp::NextKey { key })
    }

    /// [`offmap_bpf::MapFile::lookup_and_delete`]; gives the value.
    pub fn lookup_and_delete<'a>(&'a self, key: &'a [u8]) -> MapFuture<'a, F> {
        self.run(ElementOp::LookupAndDelete { key })
    }
}

impl<F: Function> MapFuture<'_, F> {
    /// Sends the operation, or stands in line for that.
    fn send(&mut self, turn: Option<u64>, cx: &Context<'_>) -> Poll<Result<Ticket<F>, Failure>> {
        let core = &self.map.core;
        // Who comes new does not pass those who wait.
        let passes = turn.is_none() && core.with(|state, _| state.has_line());
        let sent = match passes {
            true => Err(SubmitError::Full),
            false => self.map.submit(&self.op),
        };
        match sent {
            Ok(ticket) => Poll::Ready(Ok(ticket)),
            Err(SubmitError::Full) => {
                let (turn, nobody) = core.with(|state, _| {
                    let turn = state.line_up(turn, cx.waker());
                    (turn, state.has_orphans())
                });
                self.stage = Stage::Waits(Some(turn));
                if nobody && core.wake == Wake::Polling {
                    cx.waker().wake_by_ref();
                }
                Poll::Pending
            }
            Err(SubmitError::Failed(error)) => {
                if turn.is_some() {
                    // The place that it was woken for is another's.
                    core.with(|state, _| state.wake_next());
                }
                Poll::Ready(Err(Failure::Failed(error)))
            }
        }
    }
}

impl<F: Function> Future for MapFuture<'_, F> {
    type Output = Outcome;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Outcome> {
        let this = self.get_mut();
        if let Stage::Waits(turn) = this.stage {
            match this.send(turn, cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(ticket)) => this.stage = Stage::Sent(ticket),
                Poll::Ready(Err(failure)) => {
                    this.stage = Stage::Done;
                    return Poll::Ready(Err(failure));
                }
            }
        }
        let Stage::Sent(ticket) = &mut this.stage else {
            return Poll::Ready(Err(Failure::Taken));
        };
        match ticket.look(Some(cx.waker())) {
            Some(outcome) => {
                this.stage = Stage::Done;
                Poll::Ready(outcome)
            }
            None => {
                if this.map.core.wake == Wake::Polling {
                    cx.waker().wake_by_ref();
                }
                Poll::Pending
            }
        }
    }
}

impl<F: Function> Drop for MapFuture<'_, F> {
    fn drop(&mut self) {
        if let Stage::Waits(Some(turn)) = self.stage {
            self.map.core.with(|state, _| state.leave(turn));
        }
    }
}
