//! MSI-X vectors, and who has them.

use crate::Driver;
use offmap_device_io::{Function, Interrupt};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The vectors of a device that nobody has.
pub(crate) struct Vectors(Mutex<Vec<u32>>);

impl Vectors {
    pub(crate) fn new(count: u32) -> Self {
        Self(Mutex::new((0..count).rev().collect()))
    }

    fn free(&self) -> MutexGuard<'_, Vec<u32>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An MSI-X vector, and what comes by it. Dropping it silences the vector and gives it back.
///
/// A reset silences it too; what was made with it is gone then, and so should it be.
pub struct Vector<F: Function> {
    driver: Arc<Driver<F>>,
    number: u32,
    interrupt: Interrupt,
}

impl<F: Function> Vector<F> {
    /// A vector that nobody has, if the device has one left and runs by itself. Without one its
    /// user polls.
    pub(crate) fn take(driver: &Arc<Driver<F>>) -> Option<Self> {
        let function = driver.function();
        if function.runs_on_caller() {
            return None;
        }
        let number = driver.vectors().free().pop()?;
        match function.enable_vector(number) {
            Ok(interrupt) => Some(Self {
                driver: Arc::clone(driver),
                number,
                interrupt,
            }),
            Err(_) => {
                driver.vectors().free().push(number);
                None
            }
        }
    }

    /// Its number, for the device.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// What comes by it.
    pub fn interrupt(&self) -> &Interrupt {
        &self.interrupt
    }
}

impl<F: Function> Drop for Vector<F> {
    fn drop(&mut self) {
        // Of a device that is gone nothing comes any more. One that raises the vector all the same
        // does no harm: whoever has it next looks once too often.
        let _ = self.driver.function().disable_vector(self.number);
        self.driver.vectors().free().push(self.number);
    }
}

impl<F: Function> fmt::Debug for Vector<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Vector").field(&self.number).finish()
    }
}
