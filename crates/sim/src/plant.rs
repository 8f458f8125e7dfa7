//! Planted bugs ([`Mutation`]) of the device as a whole, and of the function that the driver has.

use crate::mutation::Mutation;
use crate::world::World;
use offmap_abi::{IoOpcode, MapHandle, MapType, QueueId, RequestId, Submission};
use offmap_emulator::Device;
use offmap_firmware_model::{HostFault, HostMemory, Progress};
use std::mem;

impl World {
    /// Whether a bug is planted now, once in so many times.
    pub(crate) fn plants(&mut self, mutation: Mutation, one_in: u64) -> bool {
        let now = self.mutation == Some(mutation) && self.rng.one_in(one_in);
        self.memory.mutated += u64::from(now);
        now
    }

    /// Bugs of a step of the device.
    pub(crate) fn spoil_step(&mut self) {
        if let Some(delete) = self.again.take() {
            if self.rng.one_in(8) {
                self.memory.mutated += 1;
                // Of a queue that no host has, so that it is nobody's command under way.
                let _ = self
                    .device
                    .firmware_mut()
                    .io(u16::MAX, &delete, &mut NoHost);
            } else {
                self.again = Some(delete);
            }
        }
        if self.plants(Mutation::Panics, 4000) {
            panic!("a planted panic of the device");
        }
        if self.mutation == Some(Mutation::StrayWrite) && self.rng.one_in(256) {
            self.memory.stray_write(&mut self.rng);
        }
        self.spoil_batches();
    }

    /// A function-level reset of the device.
    pub(crate) fn reset_device(&mut self) {
        if self.mutation == Some(Mutation::SurvivesReset)
            && let Ok(mut other) = Device::new(&self.config)
        {
            // The firmware is not there while the rest is reset.
            self.memory.mutated += 1;
            mem::swap(self.device.firmware_mut(), other.firmware_mut());
            self.device.reset();
            mem::swap(self.device.firmware_mut(), other.firmware_mut());
            return self.device.firmware_mut().leave();
        }
        self.device.reset();
    }

    /// An update has succeeded: of an LRU map its key may go at once.
    pub(crate) fn evict_new(&mut self, queue: QueueId, update: &Submission) {
        if self.mutation != Some(Mutation::LruEvictsNew) || queue.is_admin() {
            return;
        }
        let map_type = self.device.firmware_mut().map_type(update.map());
        let is_lru = matches!(
            map_type.map(MapType),
            Some(MapType::LruHash | MapType::LruPercpuHash)
        );
        if is_lru
            && self.rng.one_in(8)
            && let Some(key) = self.memory.key_of(update)
        {
            self.memory.mutated += 1;
            let _ = self.device.firmware_mut().delete(update.map(), &key);
        }
    }

    /// A map was made, and holds what another one held.
    pub(crate) fn plant_old_contents(&mut self, map: MapHandle, key: &[u8], value: &[u8]) {
        if self.resets > 0 && self.plants(Mutation::OldContents, 1) {
            let _ = self.device.firmware_mut().update(map, key, value, 0);
        }
    }

    /// A bug that shows while a batch is under way.
    fn spoil_batches(&mut self) {
        if self.mutation == Some(Mutation::RestartBatch) && self.rng.one_in(4) {
            for (queue, command) in self.memory.batches_in_flight() {
                // Its first piece once more; the pieces that follow come as they do.
                let begun = self.device.under_way(queue) == Some(command.request());
                if begun && IoOpcode(command.opcode) == IoOpcode::BatchUpdate {
                    self.memory.mutated += 1;
                    let host = &mut KeysOnly(self.memory.operands(&command));
                    let firmware = self.device.firmware_mut();
                    let _ = firmware.io(u16::MAX, &command, host);
                    firmware.abandon_io(u16::MAX);
                }
            }
        }
        if self.mutation == Some(Mutation::Overtake) {
            for (queue, batch) in self.memory.batches_in_flight() {
                if self.device.under_way(queue) == Some(batch.request())
                    && let Some(next) = self.memory.behind(queue, batch.map())
                {
                    let firmware = self.device.firmware_mut();
                    let done = firmware.io(u16::MAX, &next, &mut NoHost);
                    if matches!(done, Progress::Done(done) if done.status().is_success()) {
                        self.memory.erase(queue, next.request());
                    }
                }
            }
        }
        if let Some(command) = self.orphan
            && self.rng.one_in(16)
        {
            self.orphan = None;
            self.memory.mutated += 1;
            // In no queue's name, and to the end.
            let host = &mut KeysOnly(self.orphan_keys.clone());
            let firmware = self.device.firmware_mut();
            let mut progress = firmware.io(u16::MAX, &command, host);
            while progress == Progress::More {
                progress = firmware.resume_io(u16::MAX, host);
            }
        }
    }

    /// The queue of a batch that is under way is about to be deleted.
    pub(crate) fn orphan(&mut self, queue: QueueId, request: RequestId) {
        if self.mutation != Some(Mutation::GoOnAfterDelete) {
            return;
        }
        let Some(command) = self.memory.command(queue, request) else {
            return;
        };
        self.orphan_keys = self.memory.operands(&command);
        self.orphan = Some(command);
    }

    /// A bug that shows where a fault is.
    pub(crate) fn plant_beside(&mut self, mutation: Mutation, queue: u16, request: u64) {
        let (queue, request) = (QueueId(queue), RequestId(request));
        if self.mutation != Some(mutation) || queue.is_admin() {
            return;
        }
        if mutation == Mutation::ReportTorn {
            return self.memory.report_as_done(queue, request);
        }
        if let Some(command) = self.memory.command(queue, request) {
            self.memory.mutated += 1;
            // As in `step`: nobody waits for this one.
            let _ = self
                .device
                .firmware_mut()
                .io(u16::MAX, &command, &mut NoHost);
        }
    }
}

/// Operands of a command that are kept, and nothing else.
struct KeysOnly(Vec<(u64, Vec<u8>)>);

impl HostMemory for KeysOnly {
    fn read(&mut self, iova: u64, into: &mut [u8]) -> Result<(), HostFault> {
        let found = self.0.iter().find_map(|(first, bytes)| {
            let at = usize::try_from(iova.checked_sub(*first)?).ok()?;
            bytes.get(at..)?.get(..into.len())
        });
        into.copy_from_slice(found.ok_or(HostFault)?);
        Ok(())
    }
    fn write(&mut self, _: u64, _: &[u8]) -> Result<(), HostFault> {
        Ok(())
    }
}

/// Host memory for a command that names none.
struct NoHost;

impl HostMemory for NoHost {
    fn read(&mut self, _: u64, _: &mut [u8]) -> Result<(), HostFault> {
        Err(HostFault)
    }
    fn write(&mut self, _: u64, _: &[u8]) -> Result<(), HostFault> {
        Err(HostFault)
    }
    fn load_word(&mut self, _: u64) -> Result<u64, HostFault> {
        Err(HostFault)
    }
    fn store_word(&mut self, _: u64, _: u64) -> Result<(), HostFault> {
        Err(HostFault)
    }
}
