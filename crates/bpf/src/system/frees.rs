//! Deferred frees: `bpf_map_put` queues, a worker frees.

use crate::map::ops::MapOps;
use crate::memory::Charge;
use crate::security::{SecurityHook, SecurityMap};
use crossbeam_channel::{Receiver, Sender, unbounded};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

/// A map's storage whose last user is gone. Dropping it frees it, wherever that happens, so
/// that no path loses a MAP_FREE.
struct Pending {
    ops: Arc<dyn MapOps>,
    /// The security hook that has seen the map, and what it is told.
    seen: Option<Seen>,
    /// What the map's owner gets back, last.
    _charge: Option<Charge>,
}

impl Drop for Pending {
    fn drop(&mut self) {
        if let Some(seen) = &self.seen {
            seen.hook.map_free(&seen.map);
        }
        self.ops.release();
    }
}

/// A map that a security hook has seen created.
pub(crate) struct Seen {
    pub(crate) hook: Arc<dyn SecurityHook>,
    pub(crate) map: SecurityMap,
}

enum Message {
    Free(Pending),
    /// Something else that has to happen on the worker.
    Run(Box<dyn FnOnce() + Send>),
    Flush(Sender<()>),
    Stop,
}

/// The way to the worker.
pub(crate) struct Frees {
    queue: Sender<Message>,
}

impl Frees {
    /// Frees `ops` later, on the worker; at once when the worker has ended. Then the charge is
    /// given back.
    pub(crate) fn send(&self, ops: Arc<dyn MapOps>, seen: Option<Seen>, charge: Option<Charge>) {
        // A message that cannot be sent is dropped here, and with it the storage freed.
        let _ = self.queue.send(Message::Free(Pending {
            ops,
            seen,
            _charge: charge,
        }));
    }

    /// Runs `work` on the worker and waits for it.
    pub(super) fn run(&self, work: impl FnOnce() + Send + 'static) {
        if let Err(refused) = self.queue.send(Message::Run(Box::new(work))) {
            if let Message::Run(work) = refused.into_inner() {
                work();
            }
            return;
        }
        self.flush();
    }

    pub(super) fn flush(&self) {
        // Freeing a map of maps drops its inner maps, which queue up behind the first round.
        // Maps nest one level deep, and so the second round is the last.
        for _ in 0..2 {
            let (done, wait) = crossbeam_channel::bounded(1);
            if self.queue.send(Message::Flush(done)).is_ok() {
                // An error means that the worker ended, and then nothing is left to wait for.
                let _ = wait.recv();
            }
        }
    }
}

/// The worker thread.
pub(super) struct Worker(Mutex<Option<JoinHandle<()>>>);

impl Worker {
    pub(super) fn start() -> (Frees, Self) {
        let (queue, messages) = unbounded();
        let thread = std::thread::Builder::new()
            .name("bpf-map-free".into())
            .spawn(move || work(&messages))
            // Without a thread the receiver is gone too, and maps are freed where they are
            // dropped.
            .ok();
        (Frees { queue }, Self(Mutex::new(thread)))
    }

    /// Ends the worker after it has freed what is queued.
    pub(super) fn stop(&self, frees: &Frees) {
        let _ = frees.queue.send(Message::Stop);
        let thread = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // A device whose MAP_FREE panicked has ended the worker; that panic was reported.
            let _ = thread.join();
        }
    }
}

fn work(messages: &Receiver<Message>) {
    for message in messages {
        match message {
            Message::Free(pending) => drop(pending),
            Message::Run(work) => work(),
            Message::Flush(done) => {
                // The asker may have given up waiting.
                let _ = done.send(());
            }
            Message::Stop => break,
        }
    }
}
