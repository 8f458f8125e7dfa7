//! Lines on stderr that hold nobody up.
//!
//! Whoever reads stderr may have stopped: a pipe fills, and a write waits for ever. So lines go through a queue to
//! a thread that writes them. What the queue has no room for is dropped and counted, and the next line that is
//! written says how many there were.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::thread;
use std::time::Duration;

/// Lines that may wait to be written.
const WAITING_MAX: usize = 1024;
/// How long the end of the log waits for lines to be written.
const LAST: Duration = Duration::from_secs(1);

/// A log. Dropping it waits for what is to be written, but no longer than a second.
pub struct Log {
    lines: Option<SyncSender<String>>,
    dropped: Arc<AtomicU64>,
    /// Disconnected when all is written.
    written: Option<Receiver<()>>,
}

impl Log {
    /// A log that is written to `to`, on a thread of its own.
    pub fn new(mut to: impl Write + Send + 'static) -> Self {
        let (lines, waiting) = mpsc::sync_channel::<String>(WAITING_MAX);
        let (writing, written) = mpsc::channel();
        let dropped = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&dropped);
        let thread = thread::Builder::new().name("offmap-log".into());
        let started = thread.spawn(move || {
            let _until_the_end = writing;
            let mut line = |line: &str| {
                // Nothing is left to be done when stderr is closed.
                let _ = writeln!(to, "offmap: {line}").and_then(|()| to.flush());
            };
            let lost = |line: &mut dyn FnMut(&str)| match counted.swap(0, Ordering::Relaxed) {
                0 => {}
                lost => line(&format!(
                    "{lost} lines were dropped here: nobody read stderr"
                )),
            };
            for said in waiting {
                line(&said);
                lost(&mut line);
            }
            lost(&mut line);
        });
        Self {
            // Without a thread all lines are dropped.
            lines: started.is_ok().then_some(lines),
            dropped,
            written: Some(written),
        }
    }

    /// Writes a line, or counts it as dropped. Never waits.
    pub fn tell(&self, line: &str) {
        let sent = (self.lines.as_ref()).is_some_and(|lines| lines.try_send(line.into()).is_ok());
        if !sent {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.lines = None;
        let Some(written) = self.written.take() else {
            return;
        };
        // A thread that still waits for its reader ends with the process.
        let (Ok(()) | Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected)) =
            written.recv_timeout(LAST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;
    use std::sync::{Condvar, Mutex};

    /// What a reader has read, and whether it may.
    type Reading = (bool, Vec<u8>);

    /// A reader that does not read until it is told to.
    #[derive(Clone, Default)]
    struct Gate(Arc<(Mutex<Reading>, Condvar)>);

    impl Write for Gate {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let (state, opened) = &*self.0;
            let mut state = state.lock().unwrap();
            while !state.0 {
                state = opened.wait(state).unwrap();
            }
            state.1.extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Nobody reads: whoever tells does not wait. Then somebody does, and sees how many lines are missing.
    #[test]
    fn lines_that_nobody_reads_are_dropped_and_counted() {
        let gate = Gate::default();
        let log = Log::new(gate.clone());
        let told = 3 * WAITING_MAX;
        for n in 0..told {
            log.tell(&format!("line {n}"));
        }
        let (state, opened) = &*gate.0;
        state.lock().unwrap().0 = true;
        opened.notify_all();
        drop(log);
        let text = String::from_utf8(state.lock().unwrap().1.clone()).unwrap();
        let written = text.lines().filter(|line| line.contains(": line ")).count();
        // One may be with the thread while the others wait.
        assert!(
            (WAITING_MAX..=WAITING_MAX + 1).contains(&written),
            "{written}"
        );
        let lost = format!("{} lines were dropped", told - written);
        assert!(text.contains(&lost), "{lost}: {text}");
    }
}
