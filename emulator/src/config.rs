//! What a device is built with.

use crate::error::EmulatorError;
use crate::msix;
use memmap2::{Advice, MmapMut, MmapOptions};
use offmap_abi::regs;
use offmap_abi::ring::RingDepth;
use offmap_firmware_model as firmware;

/// The memory that backs the modelled device memory: anonymous, zeroed, touched lazily.
#[derive(Debug)]
pub struct DeviceMemory(MmapMut);

impl AsRef<[u8]> for DeviceMemory {
    #[inline(always)]
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl AsMut<[u8]> for DeviceMemory {
    #[inline(always)]
    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

impl firmware::Storage for DeviceMemory {
    #[inline(always)]
    fn prefetch(bytes: &[u8]) {
        offmap_device_io::prefetch(bytes);
    }
}

/// What an emulated device is built with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeviceConfig {
    /// I/O queue pairs: 1 to 1,023. Default: 16.
    pub queue_pairs: u16,
    /// Greatest queue depth in entries: a power of two from 2 to
    /// [`regs::QUEUE_DEPTH_LIMIT`].
    /// Default: 4,096.
    pub queue_depth_max: u32,
    /// MSI-X vectors: 1 to [`msix::MAX_VECTORS`]. Default: 17, one per queue.
    pub vectors: u16,
    /// How many times in a row the device of the threaded front end finds no work before it
    /// parks. Default: 8,192, a few hundred microseconds.
    pub polls_before_park: u32,
    /// How long the parked device of the threaded front end sleeps before it looks at its queues by
    /// itself (rule N3, abi §10), in microseconds: 1 to 60,000,000. Default: 1,000, the most that the
    /// rule allows. A longer time is for tests of what else wakes the device: it hears of doorbells
    /// that the host has mapped only when it looks by itself.
    pub look_again_us: u32,
    /// Whether maps outlive the host that made them, if it leaves without a reset (`KEEPS_MAPS`, abi
    /// §6.6). Default: false.
    pub keep_maps: bool,
    /// How the device divides its work among its queues.
    pub turns: Turns,
    /// The firmware. Default: [`firmware::Config::with_memory`] with 4 GiB,
    /// of which the host gives only what is touched.
    pub firmware: firmware::Config,
}

/// How the device divides its work among its queues. A command on one element counts 1, and a piece
/// of a longer one counts 16, however little
/// [`Config::step`](firmware::Config::step) lets it do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Turns {
    /// Work after which a step ends, whether all queues have had their turn or not; the next one
    /// goes on with the others. With many busy queues it bounds how long a step takes, and with
    /// that how long a register access waits. 1 to 65,536. Default: 128.
    pub step: u32,
    /// Bursts in a row that the queue which last had work gets before all others are looked at: 0
    /// to 1,024. A host that uses one queue at a time then pays for polling that queue only.
    /// Default: 8.
    pub favours: u32,
    /// Ring entries that a step of ABORT or QUEUE_DELETE looks at or completes: 1 to 32,768.
    /// Default: 256.
    pub entries: u32,
}

impl Default for Turns {
    fn default() -> Self {
        Self {
            step: 128,
            favours: 8,
            entries: 256,
        }
    }
}

impl Turns {
    /// Its fields, by name, with the bounds of each.
    fn bounds(
        &self,
    ) -> [(
        &'static str,
        u32,
        std::ops::RangeInclusive<u32>,
        &'static str,
    ); 3] {
        [
            ("turns.step", self.step, 1..=65_536, "from 1 to 65,536"),
            ("turns.favours", self.favours, 0..=1024, "from 0 to 1,024"),
            (
                "turns.entries",
                self.entries,
                1..=32_768,
                "from 1 to 32,768",
            ),
        ]
    }
}

impl Default for DeviceConfig {
    fn default() -> Self {
        Self {
            queue_pairs: 16,
            queue_depth_max: 4096,
            vectors: 17,
            polls_before_park: 8192,
            look_again_us: 1000,
            keep_maps: false,
            turns: Turns::default(),
            firmware: firmware::Config::with_memory(4 << 30),
        }
    }
}

impl DeviceConfig {
    /// Checks the fields that are the bus side's; the firmware checks its own.
    pub(crate) fn validate(&self) -> Result<(), EmulatorError> {
        let check = |ok, field, value, expected| {
            if ok {
                Ok(())
            } else {
                Err(EmulatorError::Config {
                    field,
                    value,
                    expected,
                })
            }
        };
        check(
            (1..regs::MAX_QUEUE_PAIRS).contains(&self.queue_pairs),
            "queue_pairs",
            self.queue_pairs.into(),
            "from 1 to 1,023",
        )?;
        check(
            RingDepth::new(self.queue_depth_max).is_some(),
            "queue_depth_max",
            self.queue_depth_max.into(),
            "a power of two from 2 to 32,768",
        )?;
        check(
            (1..=msix::MAX_VECTORS).contains(&self.vectors),
            "vectors",
            self.vectors.into(),
            "from 1 to 2,048",
        )?;
        check(
            (1..=60_000_000).contains(&self.look_again_us),
            "look_again_us",
            self.look_again_us.into(),
            "from 1 to 60,000,000",
        )?;
        for (field, value, range, expected) in self.turns.bounds() {
            check(range.contains(&value), field, value.into(), expected)?;
        }
        Ok(())
    }

    /// Reserves the device memory.
    ///
    /// Pages cost nothing until they are touched, so that a device with much memory and few
    /// maps is cheap; and they are large where the system can do so, because a table of
    /// millions of entries would otherwise spend its time in TLB misses.
    pub(crate) fn reserve_memory(&self) -> Result<DeviceMemory, EmulatorError> {
        let bytes = self.firmware.memory_bytes;
        let fail = |source| EmulatorError::Memory { bytes, source };
        let len = usize::try_from(bytes)
            .map_err(|e| fail(std::io::Error::new(std::io::ErrorKind::OutOfMemory, e)))?;
        let memory = MmapOptions::new()
            .len(len)
            .no_reserve_swap()
            .map_anon()
            .map_err(fail)?;
        // A wish: kernels without transparent huge pages refuse it, and nothing is lost.
        let _ = memory.advise(Advice::HugePage);
        Ok(DeviceMemory(memory))
    }
}
