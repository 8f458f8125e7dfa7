//! The firmware's table, called on this thread: what is left of an offloaded operation when the
//! bus, the ring and the driver are taken away.

use super::Side;
use crate::error::{Measured, Unavailable};
use crate::workload::{Op, Trace, Workload};
use offmap_abi::MapHandle;
use offmap_driver::{DeviceMap, Driver};
use offmap_emulator::Inline;
use std::hint::black_box;
use std::sync::Arc;

/// A map of an inline device, past the bus.
pub struct TableSide {
    function: Arc<Inline>,
    handle: MapHandle,
    op: Op,
    trace: Arc<Trace>,
    value: Vec<u8>,
    /// They keep the map on the device, and the device up.
    _map: DeviceMap,
    _driver: Arc<Driver<Inline>>,
}

impl TableSide {
    /// Fills `map`.
    ///
    /// # Errors
    ///
    /// When the device does not take the keys.
    pub fn new(
        driver: Arc<Driver<Inline>>,
        map: DeviceMap,
        workload: &Workload,
        trace: &Arc<Trace>,
    ) -> Measured<Self> {
        let this = Self {
            handle: map.handle(),
            value: trace.value.clone(),
            function: Arc::clone(driver.function()),
            op: workload.op,
            trace: Arc::clone(trace),
            _map: map,
            _driver: driver,
        };
        let filled = this.function.with_firmware(|firmware| {
            let mut keys = this.trace.present().chunks_exact(this.trace.key_size);
            keys.all(|key| {
                firmware
                    .update(this.handle, key, &this.value, 0)
                    .is_success()
            })
        });
        match filled {
            Ok(true) => Ok(this),
            Ok(false) => Err(Unavailable::new(
                "the device's table does not take the keys",
            )),
            Err(e) => Err(Unavailable::new(format!("the device: {e}"))),
        }
    }
}

impl Side for TableSide {
    fn run(&mut self, from: usize, n: usize) -> Measured<usize> {
        let (trace, handle, out) = (&self.trace, self.handle, &mut self.value);
        let op = self.op;
        let mut wrong = 0;
        let ran = self.function.with_firmware(|firmware| match op {
            Op::Lookup | Op::LookupBatch => {
                trace.ordered(from, n, |key| {
                    wrong += usize::from(!firmware.lookup(handle, key, out).is_success());
                    black_box(&*out);
                });
                true
            }
            Op::Overwrite | Op::UpdateBatch => {
                trace.ordered(from, n, |key| {
                    wrong += usize::from(!firmware.update(handle, key, out, 0).is_success());
                });
                true
            }
            _ => false,
        });
        match ran {
            Ok(true) if wrong == 0 => Ok(n),
            Ok(true) => Err(Unavailable::new("the device's table lost a key")),
            Ok(false) => Err(Unavailable::new(
                "only lookups and overwrites are called on the table itself",
            )),
            Err(e) => Err(Unavailable::new(format!("the device: {e}"))),
        }
    }
}
