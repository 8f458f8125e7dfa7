//! What a fault makes of a command on its way, and what is left to be known then.

use super::{Memory, ranges};
use offmap_abi::submission::{ElementBody, IovaRef};
use offmap_abi::{IoOpcode, QueueId, RequestId, Submission, SubmissionFlags};
use offmap_emulator::dma::{ENTRY_BYTES, ENTRY_WORDS};
use offmap_firmware_model::hook::BitFlips;

impl Memory {
    /// Bytes from `iova` on that lie in one mapped region, at most `len`.
    pub(super) fn reachable(&mut self, iova: u64, len: u64) -> u64 {
        match self.region(iova) {
            Some((region, at)) => len.min((region.image.len() - at) as u64),
            None => 0,
        }
    }

    /// The device may write anything anywhere from now on, until it forgets its queues.
    pub(crate) fn spoil_all(&mut self) {
        self.wild = true;
        for region in self.regions.values_mut() {
            region.spoiled = true;
        }
    }

    /// A command in flight, as the device has it.
    pub(crate) fn command(&self, queue: QueueId, request: RequestId) -> Option<Submission> {
        let ring = self.rings.iter().find(|r| r.queue == queue)?;
        let found = ring.in_flight.iter().find(|s| s.request() == request);
        found.copied()
    }

    /// The device has another command in place of this one: what it was, what it is, and whether
    /// it lets the device write to mapped memory where the first one did not.
    pub(crate) fn flip_command(
        &mut self,
        queue: QueueId,
        request: RequestId,
        flips: BitFlips,
    ) -> Option<(Submission, Submission, bool)> {
        let ring = self.rings.iter_mut().find(|r| r.queue == queue)?;
        let command = ring.in_flight.iter_mut().find(|s| s.request() == request)?;
        let was = *command;
        let mut bytes = [0; ENTRY_BYTES];
        // The phase of the turn does not matter: of the copy the device does not look at it.
        for (to, word) in bytes.chunks_exact_mut(8).zip(was.to_words(false)) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        flips.apply(&mut bytes);
        let mut words = [0u64; ENTRY_WORDS];
        for (word, from) in words.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = u64::from_le_bytes(from.try_into().unwrap_or_default());
        }
        let is = Submission::from_words(words);
        *command = is;
        ring.flipped.push((is, was));
        let may = ranges(queue, &was, false);
        let within = |(iova, len): &(u64, u64)| {
            let end = iova.saturating_add(*len);
            may.iter().any(|(m, l)| m <= iova && end <= m + l)
        };
        let mut beyond = ranges(queue, &is, false);
        beyond.retain(|range| !within(range));
        let strays = beyond.iter().any(|(iova, len)| self.touches(*iova, *len));
        if let Some((iova, _)) = beyond.first().filter(|_| !strays) {
            self.write_outside(*iova);
        }
        Some((was, is, strays))
    }

    /// Whether any of these bytes is mapped.
    fn touches(&self, iova: u64, len: u64) -> bool {
        let end = iova.saturating_add(len);
        let before = self.regions.range(..end).next_back();
        before.is_some_and(|(first, region)| first + region.image.len() as u64 > iova)
    }

    /// The key of a command on one element.
    pub(crate) fn key_of(&mut self, command: &Submission) -> Option<Vec<u8>> {
        if IoOpcode(command.opcode).is_batch() {
            return None;
        }
        let body: ElementBody = command.body();
        let len = body.key_len.get() as usize;
        if command.flags().contains(SubmissionFlags::KEY_INLINE) {
            return body.key.get(..len).map(<[u8]>::to_vec);
        }
        let iova = IovaRef::iova_of(&body.key);
        let mut key = vec![0; self.reachable(iova, len as u64) as usize];
        (key.len() == len && self.host_bytes(iova, &mut key)).then_some(key)
    }

    /// Whether a byte of host memory belongs to the value, and to nothing else, of a command on
    /// one element.
    pub(crate) fn is_value(&self, command: &Submission, at: u64) -> bool {
        if IoOpcode(command.opcode).is_batch() {
            return false;
        }
        let body: ElementBody = command.body();
        let first = IovaRef::iova_of(&body.value);
        let len = u64::from(body.value_len.get());
        !command.flags().contains(SubmissionFlags::VALUE_INLINE)
            && (first..first.saturating_add(len)).contains(&at)
    }
}
