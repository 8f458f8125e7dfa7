//! Memory that is watched: bits of it are wrong, or a map in it moves.
//!
//! As long as neither is so, an access to memory knows nothing of this: [`DeviceMemory`] then has no
//! watch. With one, no access finds its bytes in the ordinary way, because its address is made one that
//! storage does not have, and all of them come here.
//!
//! **Wrong bits.** Storage holds what the decoder hands out ([`crate::ecc`]), and the lines with wrong
//! bits stand beside it. A read of a unit (a word with SECDED, a line with parity) in which the decoder
//! detects an error fails; one that it corrects is counted. A write that covers a unit puts it right. A
//! write of a part of one has to read the rest first: it fails where a read would, and otherwise leaves a
//! unit with a code that fits what the decoder made of it.
//!
//! **A map that moves** is copied piece by piece while commands go on with the old place. What is
//! written there behind the place that the copy has reached is noted, and copied once more: before the
//! next piece, before the notes are too many, and before the new place counts.

use super::{CHUNK_BYTES, CLEAN_CHUNKS_PER_STEP, DeviceMemory, range};
use crate::Storage;
use crate::access::MemoryFault;
use crate::ecc::{Ecc, Line, Verdict, WORDS};
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use offmap_abi::DevAddr;

/// Bytes of a line.
pub(crate) const LINE_BYTES: u64 = 64;
/// Writes that are noted before they are copied.
const NOTES_MAX: usize = 4096;

/// What a tier's check code has found.
#[derive(Debug, Default)]
pub(crate) struct Found {
    corrected: AtomicU64,
    detected: AtomicU64,
}

impl Found {
    pub(crate) fn counts(&self) -> (u64, u64) {
        (self.corrected.load(Relaxed), self.detected.load(Relaxed))
    }

    pub(crate) fn set(&self, corrected: u64, detected: u64) {
        self.corrected.store(corrected, Relaxed);
        self.detected.store(detected, Relaxed);
    }

    /// One thread has the device at a time, so that nothing is counted between the two.
    fn count(count: &AtomicU64) {
        count.store(count.load(Relaxed) + 1, Relaxed);
    }
}

/// A map that moves.
#[derive(Debug)]
struct Copying {
    from: u64,
    to: u64,
    bytes: u64,
    /// Bytes from the start that are copied, but for what is noted.
    copied: u64,
    /// Places and lengths of what was written since in that part.
    notes: Vec<(u64, u64)>,
}

/// What is watched.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    /// By number: address over [`LINE_BYTES`].
    lines: BTreeMap<u64, Line>,
    copying: Option<Copying>,
    /// What the writes of the change at hand have replaced, the first one first.
    replaced: Vec<(DevAddr, Vec<u8>)>,
}

/// What a scrub has found.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Scrubbed {
    /// Units that were corrected, and are right now.
    pub corrected: u64,
    /// Units that are wrong, and stay so.
    pub detected: u64,
}

/// Bits of a word that an access from `start` to `end` covers, as bytes; and whether it is all of it.
fn covers(line: u64, word: usize, start: u64, end: u64) -> (bool, bool) {
    let first = line * LINE_BYTES + 8 * word as u64;
    let any = start < first + 8 && first < end;
    (any, start <= first && first + 8 <= end)
}

impl Watch {
    fn is_needed(&self) -> bool {
        !self.lines.is_empty() || self.copying.is_some()
    }

    /// The lines that `len` bytes at `at` touch, of those with wrong bits.
    fn touched(&self, at: u64, len: u64) -> impl Iterator<Item = (&u64, &Line)> {
        let last = (at + len).div_ceil(LINE_BYTES);
        self.lines.range(at / LINE_BYTES..last.max(at / LINE_BYTES))
    }

    /// What the decoder says to a read of units that `touches` names.
    fn check(
        &self,
        at: u64,
        len: u64,
        ecc: impl Fn(u64) -> Ecc,
        found: impl Fn(u64) -> usize,
        all: &[Found],
        partly: bool,
    ) -> Result<(), MemoryFault> {
        for (number, line) in self.touched(at, len) {
            let place = number * LINE_BYTES;
            let whole_line = at <= place && place + LINE_BYTES <= at + len;
            let units = match ecc(place) {
                Ecc::Parity => 1,
                _ => WORDS,
            };
            for unit in 0..units {
                let (touched, covered) = match units {
                    1 => (true, whole_line),
                    _ => covers(*number, unit, at, at + len),
                };
                if !touched || partly && covered {
                    continue;
                }
                let Some(found) = all.get(found(place)) else {
                    continue;
                };
                match line.verdicts[unit] {
                    Verdict::Good => {}
                    Verdict::Corrected => Found::count(&found.corrected),
                    Verdict::Detected => {
                        Found::count(&found.detected);
                        return Err(MemoryFault::Media);
                    }
                }
            }
        }
        Ok(())
    }

    /// Units that a write touches have a code that fits, now that it takes place.
    fn settle(&mut self, at: u64, len: u64, ecc: impl Fn(u64) -> Ecc) {
        let numbers: Vec<u64> = self.touched(at, len).map(|(number, _)| *number).collect();
        for number in numbers {
            let Some(line) = self.lines.get_mut(&number) else {
                continue;
            };
            let code = ecc(number * LINE_BYTES);
            for word in 0..WORDS {
                if code == Ecc::Parity || covers(number, word, at, at + len).0 {
                    line.data[word] = 0;
                    line.check[word] = 0;
                }
            }
            line.judge(code);
            if line.is_clean() {
                self.lines.remove(&number);
            }
        }
    }
}

impl<S: Storage> DeviceMemory<S> {
    /// The check code at an address.
    fn code(&self, at: u64) -> Ecc {
        let tier = self.tier_of(at);
        self.codes.get(tier).map_or(Ecc::None, |(_, ecc)| *ecc)
    }

    /// The number of the tier at an address.
    fn tier_of(&self, at: u64) -> usize {
        tier_of(&self.codes, at)
    }

    /// What the check code of a tier has found: errors corrected and detected.
    pub(crate) fn found(&self, tier: usize) -> (u64, u64) {
        self.found.get(tier).map_or((0, 0), Found::counts)
    }

    /// Lines of a tier whose check code does not match.
    pub(crate) fn bad_lines(&self, tier: usize) -> u64 {
        let lines = self.watch.iter().flat_map(|watch| &watch.lines);
        let bad = lines.filter(|(_, line)| line.is_bad());
        bad.filter(|(number, _)| self.tier_of(**number * LINE_BYTES) == tier)
            .count() as u64
    }

    /// The bytes as storage has them, whoever watches.
    fn raw(&self, at: u64, len: u64) -> Result<&[u8], MemoryFault> {
        let range = range(DevAddr(at), len as usize)?;
        let bytes = self.storage.as_ref().get(range);
        bytes.ok_or(MemoryFault::OutOfRange)
    }

    /// [`Self::bytes`], where they are not found in the ordinary way.
    #[cold]
    #[inline(never)]
    pub(super) fn watched_read(&self, at: DevAddr, len: usize) -> Result<&[u8], MemoryFault> {
        let Some(watch) = &self.watch else {
            return Err(MemoryFault::OutOfRange);
        };
        let bytes = self.raw(at.0, len as u64)?;
        let code = |at| self.code(at);
        let tier = |at| self.tier_of(at);
        watch.check(at.0, len as u64, code, tier, &self.found, false)?;
        Ok(bytes)
    }

    /// What comes before a write that finds no bytes in the ordinary way.
    #[cold]
    #[inline(never)]
    pub(super) fn watched_write(&mut self, at: DevAddr, len: usize) -> Result<(), MemoryFault> {
        let bytes = len as u64;
        let old = self.raw(at.0, bytes).map(<[u8]>::to_vec);
        let Some(watch) = self.watch.as_deref_mut() else {
            return Err(MemoryFault::OutOfRange);
        };
        let old = old?;
        let codes = &self.codes;
        let code = |at| {
            let code = codes.get(tier_of(codes, at));
            code.map_or(Ecc::None, |(_, ecc)| *ecc)
        };
        let tier = |at| tier_of(codes, at);
        watch.check(at.0, bytes, code, tier, &self.found, true)?;
        watch.settle(at.0, bytes, code);
        if !watch.lines.is_empty() {
            watch.replaced.push((at, old));
        }
        let full = watch.copying.as_mut().is_some_and(|copying| {
            let reached = copying.from + copying.copied;
            let inside = at.0 < reached && copying.from < at.0 + bytes;
            inside && copying.notes.len() >= NOTES_MAX
        });
        if full {
            // Those writes are over; this one is not.
            self.copy_notes()?;
        }
        if let Some(copying) = self.watch.as_mut().and_then(|w| w.copying.as_mut()) {
            let (start, end) = (at.0.max(copying.from), at.0 + bytes);
            let end = end.min(copying.from + copying.copied);
            if start < end {
                copying.notes.push((start, end - start));
            }
        }
        self.unwatch_if_idle();
        Ok(())
    }

    /// A change begins: see [`crate::access::Access::begin`].
    #[cold]
    #[inline(never)]
    pub(super) fn watched_begin(&mut self) {
        if let Some(watch) = &mut self.watch {
            watch.replaced.clear();
        }
    }

    /// And has failed.
    #[cold]
    #[inline(never)]
    pub(super) fn watched_undo(&mut self) {
        let replaced = self
            .watch
            .as_mut()
            .map(|w| core::mem::take(&mut w.replaced));
        for (at, was) in replaced.into_iter().flatten().rev() {
            self.put_raw(at, &was);
        }
    }

    /// Stores bytes that were there before, in a place that was written since: its code fits.
    pub(super) fn put_raw(&mut self, at: DevAddr, bytes: &[u8]) {
        let Ok(place) = range(at, bytes.len()) else {
            return;
        };
        let Some(into) = self.storage.as_mut().get_mut(place) else {
            return;
        };
        into.copy_from_slice(bytes);
        if let Some(watch) = &self.watch {
            // What went wrong since is wrong still.
            for (number, line) in watch.touched(at.0, bytes.len() as u64) {
                let shown = line.shown.iter().flat_map(|word| word.to_le_bytes());
                for (place, wrong) in (number * LINE_BYTES..).zip(shown) {
                    let byte = place
                        .checked_sub(at.0)
                        .and_then(|n| into.get_mut(n as usize));
                    if let Some(byte) = byte {
                        *byte ^= wrong;
                    }
                }
            }
        }
        if let Some(copying) = self.watch.as_mut().and_then(|w| w.copying.as_mut()) {
            let start = at.0.max(copying.from);
            let end = (at.0 + bytes.len() as u64).min(copying.from + copying.copied);
            if start < end {
                copying.notes.push((start, end - start));
            }
        }
    }

    fn watch_mut(&mut self) -> &mut Watch {
        self.set_watched(true);
        self.watch.get_or_insert_with(Box::default)
    }

    /// Ends the watch where there is nothing left to watch.
    fn unwatch_if_idle(&mut self) {
        if self.watch.as_ref().is_some_and(|watch| !watch.is_needed()) {
            self.watch = None;
            self.set_watched(false);
        }
    }

    /// Cells that are written anew without anything in them being read.
    pub(super) fn overwritten(&mut self, at: u64, len: u64) {
        let codes = &self.codes;
        if let Some(watch) = self.watch.as_deref_mut() {
            watch.settle(at, len, |at| {
                let code = codes.get(tier_of(codes, at));
                code.map_or(Ecc::None, |(_, ecc)| *ecc)
            });
            self.unwatch_if_idle();
        }
    }

    /// Forgets all that is watched. What was counted stays.
    pub(super) fn forget_watch(&mut self) {
        self.watch = None;
        self.set_watched(false);
    }

    /// Turns bits over that the words of `flips` name, of the line with that number, and check bits.
    fn flip_line(
        &mut self,
        number: u64,
        data: [u64; WORDS],
        check: [u8; WORDS],
    ) -> Result<(), MemoryFault> {
        let at = number * LINE_BYTES;
        let code = self.code(at);
        // Memory need not end with a line.
        let len = LINE_BYTES.min(self.size_bytes.saturating_sub(at));
        self.raw(at, len)?;
        let (mut line, before) = match code {
            Ecc::None => (Line::default(), [0; WORDS]),
            _ => {
                let lines = self.watch.as_ref().map(|watch| &watch.lines);
                let line = lines.and_then(|lines| lines.get(&number)).copied();
                let line = line.unwrap_or_default();
                (line, line.shown)
            }
        };
        for word in 0..WORDS {
            line.data[word] ^= data[word];
            line.check[word] ^= check[word];
        }
        line.judge(code);
        let turned: Vec<u8> = before
            .iter()
            .zip(line.shown)
            .flat_map(|(before, now)| (before ^ now).to_le_bytes())
            .collect();
        self.mark_written(at, len);
        let place = range(DevAddr(at), len as usize)?;
        if let Some(bytes) = self.storage.as_mut().get_mut(place) {
            for (byte, turned) in bytes.iter_mut().zip(turned) {
                *byte ^= turned;
            }
        }
        if code != Ecc::None {
            let watch = self.watch_mut();
            match line.is_clean() {
                true => watch.lines.remove(&number),
                false => watch.lines.insert(number, line),
            };
            self.unwatch_if_idle();
        }
        Ok(())
    }

    /// Bits of the `len` bytes at `at` go wrong: those that `flip` turns over in bytes that are zero.
    pub(crate) fn disturb_bits(
        &mut self,
        at: DevAddr,
        len: usize,
        flip: impl FnOnce(&mut [u8]),
    ) -> Result<(), MemoryFault> {
        self.raw(at.0, len as u64)?;
        let mut mask = alloc::vec![0; len];
        flip(&mut mask);
        let mut lines: BTreeMap<u64, [u64; WORDS]> = BTreeMap::new();
        for (at, byte) in (at.0..).zip(mask).filter(|(_, byte)| *byte != 0) {
            let line = lines.entry(at / LINE_BYTES).or_default();
            let (word, byte_in) = ((at % LINE_BYTES / 8) as usize, at % 8);
            line[word] |= u64::from(byte) << (8 * byte_in);
        }
        for (number, data) in lines {
            self.flip_line(number, data, [0; WORDS])?;
        }
        Ok(())
    }

    /// A check bit of the line at `at` goes wrong: see [`Ecc::check_bits`]. `OutOfRange`: there is none
    /// such.
    pub(crate) fn disturb_check(&mut self, at: DevAddr, bit: u32) -> Result<(), MemoryFault> {
        let inside = at.0 < self.size_bytes;
        if !inside || bit >= self.code(at.0).check_bits() {
            return Err(MemoryFault::OutOfRange);
        }
        let mut check = [0; WORDS];
        check[(bit / 8) as usize] = 1 << (bit % 8);
        self.flip_line(at.0 / LINE_BYTES, [0; WORDS], check)
    }

    /// Reads every line with wrong bits once, and writes back what could be corrected.
    pub(crate) fn scrub(&mut self) -> Scrubbed {
        let mut scrubbed = Scrubbed::default();
        let codes = &self.codes;
        let Some(watch) = self.watch.as_deref_mut() else {
            return scrubbed;
        };
        watch.lines.retain(|number, line| {
            let tier = tier_of(codes, number * LINE_BYTES);
            let (Some((_, code)), Some(found)) = (codes.get(tier), self.found.get(tier)) else {
                return true;
            };
            let units = if *code == Ecc::Parity { 1 } else { WORDS };
            for unit in 0..units {
                match line.verdicts[unit] {
                    Verdict::Good => {}
                    Verdict::Corrected => {
                        Found::count(&found.corrected);
                        scrubbed.corrected += 1;
                        (line.data[unit], line.check[unit]) = (0, 0);
                    }
                    Verdict::Detected => {
                        Found::count(&found.detected);
                        scrubbed.detected += 1;
                    }
                }
            }
            line.judge(*code);
            !line.is_clean()
        });
        self.unwatch_if_idle();
        scrubbed
    }

    /// Begins to copy a map. Its new place is zero, and nobody's.
    pub(crate) fn copy_begin(&mut self, from: DevAddr, to: DevAddr, bytes: u64) {
        self.watch_mut().copying = Some(Copying {
            from: from.0,
            to: to.0,
            bytes,
            copied: 0,
            notes: Vec::new(),
        });
    }

    /// The next piece of at most `most` bytes; whether all of it is copied, so that the new place is as
    /// the old one until the next write.
    ///
    /// # Errors
    ///
    /// [`MemoryFault::Media`] where the check code has detected an error in the old place.
    pub(crate) fn copy_step(&mut self, most: u32) -> Result<bool, MemoryFault> {
        self.copy_notes()?;
        for _ in 0..CLEAN_CHUNKS_PER_STEP {
            let copying = self.watch.as_ref().and_then(|w| w.copying.as_ref());
            let Some(copying) = copying else {
                return Err(MemoryFault::OutOfRange);
            };
            let (start, end) = (copying.from + copying.copied, copying.from + copying.bytes);
            if start >= end {
                return Ok(true);
            }
            let chunk = start / CHUNK_BYTES;
            let stop = ((chunk + 1) * CHUNK_BYTES).min(end);
            let written = self.is_written(chunk);
            let stop = match written {
                true => stop.min(start + u64::from(most)),
                false => stop,
            };
            if written {
                // As a table would read it.
                self.watched_read(DevAddr(start), (stop - start) as usize)?;
                self.copy_raw(start, stop - start)?;
            }
            if let Some(copying) = self.watch.as_mut().and_then(|w| w.copying.as_mut()) {
                copying.copied = stop - copying.from;
            }
            if written {
                return Ok(stop == end);
            }
        }
        Ok(false)
    }

    /// Ends it, done or not.
    pub(crate) fn copy_end(&mut self) {
        if let Some(watch) = &mut self.watch {
            watch.copying = None;
        }
        self.unwatch_if_idle();
    }

    fn copy_notes(&mut self) -> Result<(), MemoryFault> {
        let copying = self.watch.as_mut().and_then(|w| w.copying.as_mut());
        let mut notes = copying
            .map(|c| core::mem::take(&mut c.notes))
            .unwrap_or_default();
        for (at, len) in notes.drain(..) {
            self.copy_raw(at, len)?;
        }
        if let Some(copying) = self.watch.as_mut().and_then(|w| w.copying.as_mut()) {
            // Its room is used again.
            copying.notes = notes;
        }
        Ok(())
    }

    /// Copies what the decoder hands out at `at`, in the old place, to the new one.
    fn copy_raw(&mut self, at: u64, len: u64) -> Result<(), MemoryFault> {
        let copying = self.watch.as_ref().and_then(|w| w.copying.as_ref());
        let copying = copying.ok_or(MemoryFault::OutOfRange)?;
        let to = copying.to + (at - copying.from);
        let from = range(DevAddr(at), len as usize)?;
        let place = range(DevAddr(to), len as usize)?;
        let storage = self.storage.as_mut();
        if from.end > storage.len() || place.end > storage.len() {
            return Err(MemoryFault::OutOfRange);
        }
        storage.copy_within(from, place.start);
        self.mark_written(to, len);
        let codes = &self.codes;
        if let Some(watch) = self.watch.as_deref_mut() {
            watch.settle(to, len, |at| {
                let code = codes.get(tier_of(codes, at));
                code.map_or(Ecc::None, |(_, ecc)| *ecc)
            });
        }
        Ok(())
    }

    /// The lines with wrong bits: their numbers, wrong bits and wrong check bits.
    pub(crate) fn wrong_lines(&self) -> impl Iterator<Item = (u64, &[u64; WORDS], &[u8; WORDS])> {
        let lines = self.watch.iter().flat_map(|watch| &watch.lines);
        lines.map(|(number, line)| (*number, &line.data, &line.check))
    }

    /// Puts such a line back; storage holds already what its decoder hands out. `false`: it cannot be.
    #[must_use]
    pub(crate) fn restore_line(
        &mut self,
        number: u64,
        data: [u64; WORDS],
        check: [u8; WORDS],
    ) -> bool {
        let at = number.saturating_mul(LINE_BYTES);
        let code = self.code(at);
        let mut line = Line {
            data,
            check,
            ..Line::default()
        };
        line.judge(code);
        let (last, rest) = match code {
            Ecc::Parity => (check[0] & !1, &check[1..]),
            _ => (0, &check[..0]),
        };
        let fits = last == 0 && rest.iter().all(|byte| *byte == 0);
        let known = self
            .watch
            .as_ref()
            .is_some_and(|w| w.lines.contains_key(&number));
        if at >= self.size_bytes || code == Ecc::None || line.is_clean() || !fits || known {
            return false;
        }
        self.watch_mut().lines.insert(number, line);
        true
    }

    /// Takes over what a tier's check code had found.
    pub(crate) fn set_found(&self, tier: usize, corrected: u64, detected: u64) {
        if let Some(found) = self.found.get(tier) {
            found.set(corrected, detected);
        }
    }
}

fn tier_of(codes: &[(u64, Ecc)], at: u64) -> usize {
    let before = codes.partition_point(|(end, _)| *end <= at);
    before.min(codes.len().saturating_sub(1))
}
