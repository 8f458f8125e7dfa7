//! A map as a program has it: the calls of bpf(2) on an open map, on the host or on a device.

use super::Side;
use crate::error::{Measured, Unavailable};
use crate::workload::{Kind, Op, Trace, Workload};
use offmap_bpf::{Errno, MapFile};
use std::hint::black_box;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

/// Elements that one call of a dump asks for.
pub(crate) const PAGE: usize = 1024;
/// Operations that wake a device.
const WAKE: usize = 256;
/// What a device needs to fall asleep, and more.
pub(crate) const ASLEEP: Duration = Duration::from_micros(400);

/// An open map and its workload.
pub struct FileSide {
    file: Arc<MapFile>,
    op: Op,
    batch: usize,
    trace: Arc<Trace>,
    /// Whether the device is a thread or a process of its own, which sleeps when it has nothing to do.
    sleeps: bool,
    keys: Vec<u8>,
    values: Vec<u8>,
    results: Vec<Result<(), Errno>>,
    /// Where a dump, or a walk, goes on.
    token: Option<Vec<u8>>,
}

impl FileSide {
    /// Fills the map.
    ///
    /// # Errors
    ///
    /// When it does not take the keys.
    pub fn new(
        file: MapFile,
        workload: &Workload,
        trace: &Arc<Trace>,
        sleeps: bool,
    ) -> Measured<Self> {
        let this = Self::over(Arc::new(file), workload, trace, sleeps);
        this.fill(workload)?;
        Ok(this)
    }

    /// Another thread's part in the same map, which is filled.
    pub fn share(&self, workload: &Workload) -> Self {
        Self::over(Arc::clone(&self.file), workload, &self.trace, self.sleeps)
    }

    fn over(file: Arc<MapFile>, workload: &Workload, trace: &Arc<Trace>, sleeps: bool) -> Self {
        let elements = match workload.op {
            Op::Dump => PAGE,
            _ => workload.batch,
        };
        Self {
            keys: vec![0; elements * trace.key_size],
            values: trace.value[..1].repeat(elements * file.value_bytes()),
            results: vec![Ok(()); elements],
            op: workload.op,
            batch: workload.batch,
            trace: Arc::clone(trace),
            token: None,
            sleeps,
            file,
        }
    }

    fn fill(&self, workload: &Workload) -> Measured<()> {
        let value = self.trace.value[..1].repeat(self.file.value_bytes());
        let size = self.trace.key_size;
        if workload.map_type != Kind::Hash {
            for key in self.trace.present().chunks_exact(size) {
                let done = self.file.update(key, &value, 0);
                done.map_err(Unavailable::failed("filling the map"))?;
            }
            return Ok(());
        }
        let values = value.repeat(PAGE);
        for keys in self.trace.present().chunks(PAGE * size) {
            let count = keys.len() / size;
            let values = &values[..count * value.len()];
            let done = self.file.update_batch(keys, values, count as u32, 0, 0);
            done.result
                .map_err(Unavailable::failed("filling the map"))?;
        }
        Ok(())
    }

    /// `n` entries of a dump, or more: a call that has begun is finished. Returns how many.
    fn dump(&mut self, n: usize) -> Measured<usize> {
        let mut seen = 0;
        while seen < n {
            let mut to = vec![0; self.file.token_bytes()];
            let done = self.file.lookup_batch(
                self.token.as_deref(),
                &mut to,
                &mut self.keys,
                &mut self.values,
                PAGE as u32,
                0,
                0,
            );
            let end = matches!(&done.result, Err(e) if e.errno() == Errno::ENOENT);
            if !end {
                done.result.map_err(Unavailable::failed("a dump"))?;
            }
            self.token = (!end).then_some(to);
            seen += done.count as usize;
        }
        Ok(seen)
    }

    fn next(&mut self, n: usize) -> Measured<()> {
        let size = self.trace.key_size;
        let mut key = self.token.take();
        for _ in 0..n {
            let next = &mut self.keys[..size];
            match self.file.get_next_key(key.as_deref(), next) {
                Ok(()) => match &mut key {
                    Some(key) => key.copy_from_slice(next),
                    None => key = Some(next.to_vec()),
                },
                Err(e) if e.errno() == Errno::ENOENT => key = None,
                Err(e) => return Err(Unavailable::new(format!("a walk: {e}"))),
            }
        }
        self.token = key;
        Ok(())
    }
}

impl Side for FileSide {
    fn prepare(&mut self, from: usize, n: usize) -> Measured<()> {
        let (trace, file) = (&self.trace, &self.file);
        match self.op {
            // Absent already, or present already: both are right.
            Op::Insert => trace.missing(from, n, |key| drop(file.delete(key))),
            Op::Delete => trace.missing(from, n, |key| drop(file.update(key, &self.values, 0))),
            _ => {}
        }
        Ok(())
    }

    fn run(&mut self, from: usize, n: usize) -> Measured<usize> {
        let (trace, file, out) = (&self.trace, &self.file, &mut self.values);
        let mut failed = Ok(());
        let mut keep = |done: offmap_bpf::Result<()>| {
            if let Err(error) = done {
                failed = Err(Unavailable::new(error.to_string()));
            }
        };
        match self.op {
            Op::Lookup => trace.ordered(from, n, |key| {
                keep(file.lookup(key, out, 0));
                black_box(&*out);
            }),
            Op::Miss => trace.missing(from, n, |key| {
                if file.lookup(key, out, 0).is_ok() {
                    failed = Err(Unavailable::new("a key is there that was never stored"));
                }
            }),
            Op::Overwrite => trace.ordered(from, n, |key| keep(file.update(key, out, 0))),
            Op::Insert => trace.missing(from, n, |key| keep(file.update(key, out, 1))),
            Op::Delete => trace.missing(from, n, |key| keep(file.delete(key))),
            Op::Mix => {
                let mut at = from;
                trace.ordered(from, n, |key| {
                    keep(match at % 10 {
                        0 => file.update(key, out, 0),
                        _ => file.lookup(key, out, 0),
                    });
                    at += 1;
                });
            }
            Op::LookupBatch => {
                for at in (from..from + n).step_by(self.batch) {
                    let keys = trace.run(at, self.batch);
                    keep(file.lookup_many(keys, out, &mut self.results));
                    black_box(&*out);
                }
                if self.results.iter().any(Result::is_err) {
                    failed = Err(Unavailable::new("an element of a batch was not found"));
                }
            }
            Op::UpdateBatch => {
                for at in (from..from + n).step_by(self.batch) {
                    let keys = trace.run(at, self.batch);
                    keep(file.update_batch(keys, out, self.batch as u32, 0, 0).result);
                }
            }
            Op::Recorded => return Err(Unavailable::new("a sequence is run by another side")),
            Op::Dump => return self.dump(n),
            Op::Next => return self.next(n).map(|()| n),
        }
        failed.map(|()| n)
    }

    fn most(&self) -> usize {
        match self.op {
            Op::Insert | Op::Delete => self.trace.absent_len(),
            _ => usize::MAX,
        }
    }

    fn wake(&mut self) -> Measured<()> {
        if self.sleeps {
            let out = &mut vec![0; self.file.value_bytes()];
            let mut failed = Ok(());
            self.trace.ordered(0, WAKE, |key| {
                if let Err(e) = self.file.lookup(key, out, 0) {
                    failed = Err(Unavailable::new(e.to_string()));
                }
            });
            return failed;
        }
        Ok(())
    }

    fn rest(&mut self) {
        if self.sleeps {
            thread::sleep(ASLEEP);
        }
    }
}
