//! Commands on one queue pair of the driver, as many as asked for at a time on their way.

use super::Side;
use super::file::ASLEEP;
use crate::error::{Measured, Unavailable};
use crate::workload::{Op, Trace, Workload};
use offmap_device_io::Function;
use offmap_driver::{DeviceMap, Op as Command, QueuePair};
use std::hint::black_box;
use std::sync::Arc;
use std::thread;

/// Keys of one batch with which the map is filled.
const FILL: usize = 1024;
/// Operations that wake the device.
const WAKE: usize = 256;

/// A queue pair and a map.
pub struct QueueSide<F: Function> {
    queue: QueuePair<F>,
    map: DeviceMap,
    depth: usize,
    trace: Arc<Trace>,
    out: Vec<u8>,
}

impl<F: Function> QueueSide<F> {
    /// Fills `map`.
    ///
    /// # Errors
    ///
    /// When the device does not take the keys; for anything but lookups.
    pub fn new(
        mut queue: QueuePair<F>,
        map: DeviceMap,
        workload: &Workload,
        trace: &Arc<Trace>,
    ) -> Measured<Self> {
        if workload.op != Op::Lookup {
            return Err(Unavailable::new("only lookups are kept in flight here"));
        }
        let values = trace.value.repeat(FILL);
        for keys in trace.present().chunks(FILL * trace.key_size) {
            let count = keys.len() / trace.key_size;
            let values = &values[..count * workload.value_size];
            let done = queue
                .update_batch(&map, keys, values, 0)
                .map_err(Unavailable::failed("filling the device's map"))?;
            if !done.status.is_success() {
                return Err(Unavailable::new(format!(
                    "filling the device's map: {:?}",
                    done.status
                )));
            }
        }
        Ok(Self {
            queue,
            map,
            depth: workload.depth,
            trace: Arc::clone(trace),
            out: vec![0; workload.value_size],
        })
    }
}

impl<F: Function> Side for QueueSide<F> {
    fn run(&mut self, from: usize, n: usize) -> Measured<usize> {
        let (queue, map, out) = (&mut self.queue, &self.map, &mut self.out[..]);
        let failed = |e: &dyn std::fmt::Display| Unavailable::new(format!("the queue pair: {e}"));
        let (mut sent, mut taken, mut wrong) = (0, 0, false);
        while taken < n {
            let room = (n - sent).min(self.depth - (sent - taken));
            let mut refused = None;
            self.trace.ordered(from + sent, room, |key| {
                if let Err(e) = queue.write(&Command::Lookup { map, key }) {
                    refused = Some(failed(&e));
                }
            });
            if let Some(refused) = refused {
                return Err(refused);
            }
            sent += room;
            queue.commit().map_err(|e| failed(&e))?;
            let polled = queue.poll_each(|done| {
                wrong |= !done.value(out).is_ok_and(|status| status.is_success());
                black_box(&*out);
            });
            taken += polled.map_err(|e| failed(&e))?;
        }
        match wrong {
            false => Ok(n),
            true => Err(Unavailable::new("a lookup in flight was not answered")),
        }
    }

    fn wake(&mut self) -> Measured<()> {
        self.run(0, WAKE).map(drop)
    }

    fn rest(&mut self) {
        thread::sleep(ASLEEP);
    }
}
