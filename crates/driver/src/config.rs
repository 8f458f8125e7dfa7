//! What a driver is told by its user.

use crate::DriverError;
use std::num::NonZeroU32;
use std::time::Duration;

/// How a queue pair tells the device of new submissions (abi §4.2).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Notify {
    /// By a notify block in host memory: no register access while the device is awake.
    /// A device without the feature gets doorbells instead.
    #[default]
    Block,
    /// By doorbell registers.
    Doorbell,
}

/// How a thread waits for completions on a queue pair (abi §10, rule N4).
///
/// Other than by [`CompletionMode::Poll`] it needs an MSI-X vector of its own for each queue pair;
/// a pair that gets none is polled, as [`crate::QueuePair::has_interrupt`] says, and so is a device
/// that works on its caller's thread. A sleep is never longer than 128 ms (and first 1 ms) without a
/// look, so that a lost interrupt costs that much and no more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CompletionMode {
    /// It looks at the completion ring over and over. After some microseconds it gives its
    /// processor away between two looks.
    Poll,
    /// It looks once, and then sleeps until the interrupt.
    Interrupt,
    /// It looks for as long as `spin`, and then sleeps until the interrupt.
    Hybrid {
        /// From zero to [`CompletionMode::SPIN_MAX`].
        spin: Duration,
    },
}

impl CompletionMode {
    /// Longest [`CompletionMode::Hybrid`] spin.
    pub const SPIN_MAX: Duration = Duration::from_secs(1);
}

impl Default for CompletionMode {
    /// Hybrid, with 50 µs: longer than a device that is awake takes for anything but a long batch,
    /// and not longer than it costs to sleep and be woken a few times.
    fn default() -> Self {
        Self::Hybrid {
            spin: Duration::from_micros(50),
        }
    }
}

/// How the device gathers completions before it sends an interrupt (abi §6.2). It only matters
/// where threads sleep.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Coalescing {
    /// Completions that make it send one at once: from 2.
    pub count: u16,
    /// Longest time that a completion waits for more: whole microseconds, from 1 to 65,535.
    pub delay: Duration,
}

/// Which commands have their time in flight measured.
///
/// It takes two looks at the clock, 40 to 60 ns together, which is a good part of a command on an
/// inline device. Counts of commands and of their ends cost next to nothing and are always kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Timing {
    /// None.
    #[default]
    Off,
    /// All.
    Every,
    /// The first of each queue and every so many-th after it. A prime number keeps step with no
    /// pattern in the commands.
    OneIn(NonZeroU32),
}

/// Settings of a [`crate::Driver`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DriverConfig {
    /// Depth of an I/O queue pair in entries, which is also how many commands it can have in
    /// flight: a power of two from 2 to [`DriverConfig::DEPTH_MAX`]. A device that allows
    /// less gets its greatest.
    pub queue_depth: u32,
    /// Longest time for one admin command. Creating a map of tens of millions of entries
    /// takes a device seconds.
    pub admin_timeout: Duration,
    /// Longest time for one I/O command, from when its waiter starts to wait. Then it is
    /// aborted, and given [`DriverConfig::admin_timeout`] more to end.
    pub op_timeout: Duration,
    /// How queues notify the device.
    pub notify: Notify,
    /// How threads wait for the device.
    pub completion: CompletionMode,
    /// Interrupt coalescing of every queue; `None`, or a device without the feature: an interrupt
    /// is sent as soon as one is due.
    pub coalescing: Option<Coalescing>,
    /// DMA memory kept for each slot of a queue, in bytes: a multiple of 64 from 64 to
    /// [`DriverConfig::SLOT_BYTES_MAX`]. Commands whose keys and values need more share a
    /// pool of larger buffers, which is filled on first need.
    pub slot_bytes: usize,
    /// Greatest size in bytes of the arrays of one batch command. Longer batches become several
    /// commands. One element always fits, whatever its size.
    pub batch_bytes: usize,
    /// Which commands are timed, for [`crate::Driver::stats`].
    pub timing: Timing,
    /// NUMA node for rings and buffers; `None`: wherever they are first touched.
    pub numa_node: Option<u32>,
}

impl DriverConfig {
    /// Greatest [`DriverConfig::queue_depth`]: slots are numbered with 16 bits.
    pub const DEPTH_MAX: u32 = 1 << 15;
    /// Greatest [`DriverConfig::slot_bytes`].
    pub const SLOT_BYTES_MAX: usize = 1 << 16;
    /// Longest timeout that is accepted, so that every wait ends while somebody still cares.
    pub const TIMEOUT_MAX: Duration = Duration::from_secs(3600);

    /// Checks every field.
    ///
    /// # Errors
    ///
    /// [`DriverError::Config`] names the field and what it may be.
    pub fn validate(&self) -> Result<(), DriverError> {
        let bad = |field, allowed| Err(DriverError::Config { field, allowed });
        if !self.queue_depth.is_power_of_two() || !(2..=Self::DEPTH_MAX).contains(&self.queue_depth)
        {
            return bad("queue_depth", "a power of two from 2 to 32,768");
        }
        if !self.slot_bytes.is_multiple_of(64)
            || !(64..=Self::SLOT_BYTES_MAX).contains(&self.slot_bytes)
        {
            return bad("slot_bytes", "a multiple of 64 from 64 to 65,536");
        }
        if !(4096..=1 << 30).contains(&self.batch_bytes) {
            return bad("batch_bytes", "from 4,096 to 2^30");
        }
        if let CompletionMode::Hybrid { spin } = self.completion
            && spin > CompletionMode::SPIN_MAX
        {
            return bad("completion", "a spin of at most a second");
        }
        if let Some(Coalescing { count, delay }) = self.coalescing {
            if count < 2 {
                return bad("coalescing.count", "from 2 to 65,535");
            }
            let us = delay.as_micros();
            if !(1..=u128::from(u16::MAX)).contains(&us) || delay.subsec_nanos() % 1000 != 0 {
                return bad("coalescing.delay", "whole microseconds from 1 to 65,535");
            }
        }
        for (field, timeout) in [
            ("admin_timeout", self.admin_timeout),
            ("op_timeout", self.op_timeout),
        ] {
            if timeout.is_zero() || timeout > Self::TIMEOUT_MAX {
                return bad(field, "more than zero and at most an hour");
            }
        }
        Ok(())
    }
}

impl Default for DriverConfig {
    fn default() -> Self {
        Self {
            queue_depth: 128,
            admin_timeout: Duration::from_secs(10),
            op_timeout: Duration::from_secs(5),
            notify: Notify::Block,
            completion: CompletionMode::default(),
            coalescing: None,
            slot_bytes: 512,
            batch_bytes: 1 << 20,
            timing: Timing::Off,
            numa_node: None,
        }
    }
}
