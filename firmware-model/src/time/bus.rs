//! What crosses the link: doorbells, DMA in both directions, interrupts.
//!
//! A read by DMA: the engine's setup, the request on the link, the translation of its address, the host, the
//! completions on the link, and the way from the DMA engine to where engines find the data, which begins when
//! all have arrived. A write: setup, packets, translation, and the host; the device does not wait for it.

use super::pcie::{INTERRUPT_BYTES, Link};
use super::profile::TimingProfile;
use super::resource::{Pool, Server, Tags};
use super::{PerByte, Picos};

/// Bytes of a descriptor, and of a completion.
pub(super) const ENTRY_BYTES: u64 = 64;
/// Bytes of a doorbell: one word.
const DOORBELL_BYTES: u64 = 8;

/// The link and what is at both of its ends, with all that is under way on it.
#[derive(Clone, Debug)]
pub struct Bus {
    link: Link,
    /// From the device to the host: requests, writes, interrupts.
    up: Server,
    /// From the host to the device: completions, doorbells.
    down: Server,
    tags: Pool,
    /// The front of the DMA engine.
    issue: Server,
    issue_time: Picos,
    setup: Picos,
    /// The way from the DMA engine to where engines find what was read.
    store: Server,
    per_store: PerByte,
    mmio_write: Picos,
    read: Picos,
    write: Picos,
    remote_node: Picos,
    /// What of it is added to all accesses at the moment.
    remote: Picos,
    interrupt: Picos,
    doorbell: Picos,
    iommu: Option<Iotlb>,
    counts: BusCounts,
}

#[derive(Clone, Debug)]
struct Iotlb {
    tags: Tags,
    walkers: Pool,
    page_shift: u32,
    miss: Picos,
}

/// What went over the link so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct BusCounts {
    /// Reads by DMA, and writes.
    pub reads: u64,
    /// See `reads`.
    pub writes: u64,
    /// Doorbells.
    pub doorbells: u64,
    /// Interrupts.
    pub interrupts: u64,
    /// Bytes of all packets to the host.
    pub up_bytes: u64,
    /// Bytes of all packets to the device.
    pub down_bytes: u64,
    /// Translations that the IOTLB had, counted a page at a time.
    pub iotlb_hits: u64,
    /// Translations for which the page table was walked.
    pub iotlb_misses: u64,
}

/// What the parts of a command that never change take where nothing else is under way, and their bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct AloneTimes {
    pub(super) doorbell: Picos,
    pub(super) fetch: Picos,
    pub(super) completion: Picos,
    up_bytes: u64,
    down_bytes: u64,
    translations: u64,
}

/// A write that was posted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Posted {
    /// The DMA engine has it: the device goes on.
    pub taken: Picos,
    /// The host sees it.
    pub visible: Picos,
}

impl Bus {
    /// A bus on which nothing is under way.
    pub fn new(profile: &TimingProfile) -> Self {
        let (host, device) = (&profile.host, &profile.device);
        Self {
            link: profile.link,
            up: Server::default(),
            down: Server::default(),
            tags: Pool::new(device.read_tags),
            issue: Server::default(),
            issue_time: device.dma_issue,
            setup: device.dma_setup,
            store: Server::default(),
            per_store: device.store(),
            mmio_write: host.mmio_write,
            read: match host.warm {
                true => host.read,
                false => host.read + host.memory,
            },
            write: host.write,
            remote_node: host.remote_node,
            remote: Picos::ZERO,
            interrupt: host.interrupt,
            doorbell: device.doorbell,
            iommu: host.iommu.as_ref().map(|iommu| Iotlb {
                tags: Tags::new(iommu.entries.into(), iommu.page_bytes),
                walkers: Pool::new(iommu.walkers),
                page_shift: iommu.page_bytes.trailing_zeros(),
                miss: iommu.miss,
            }),
            counts: BusCounts::default(),
        }
    }

    /// Says whether host memory is on another NUMA node than the device.
    pub fn set_remote(&mut self, remote: bool) {
        self.remote = match remote {
            true => self.remote_node,
            false => Picos::ZERO,
        };
    }

    /// What went over it so far.
    pub fn counts(&self) -> BusCounts {
        self.counts
    }

    /// The host stores a doorbell at `at`: when the device begins to act on it.
    pub fn doorbell(&mut self, at: Picos) -> Picos {
        self.count_doorbell();
        self.book_doorbell(at)
    }

    #[inline(always)]
    fn count_doorbell(&mut self) {
        self.counts.doorbells += 1;
        self.counts.down_bytes += self.link.write(0, DOORBELL_BYTES).bytes;
    }

    fn book_doorbell(&mut self, at: Picos) -> Picos {
        let time = self.link.wire(self.link.write(0, DOORBELL_BYTES).bytes);
        self.down.book(at + self.mmio_write, time) + time + self.doorbell
    }

    /// A read of host memory, wished for at `at`: when the data are where engines find them.
    #[inline]
    pub fn read(&mut self, at: Picos, iova: u64, bytes: u64) -> Picos {
        self.counts.reads += 1;
        self.book_read(at, iova, bytes)
    }

    #[inline(always)]
    fn book_read(&mut self, at: Picos, iova: u64, bytes: u64) -> Picos {
        let start = self.issue.book(at + self.setup, self.issue_time);
        let most = u64::from(self.link.spec().max_read_request);
        let arrived = if (iova & (most - 1)).saturating_add(bytes) <= most {
            self.request(start, iova, bytes)
        } else {
            self.requests(start, iova, bytes, most)
        };
        let time = self.per_store.of(bytes);
        self.store.book(arrived, time) + time
    }

    /// Several requests, one after the other on the link: when the last completion is there.
    #[inline(never)]
    fn requests(&mut self, start: Picos, iova: u64, bytes: u64, most: u64) -> Picos {
        let mut arrived = start;
        let mut done = 0;
        while done < bytes {
            let at = iova.wrapping_add(done);
            let piece = (most - (at & (most - 1))).min(bytes - done);
            arrived = arrived.max(self.request(start, at, piece));
            done += piece;
        }
        arrived
    }

    /// One request: when its completions are there.
    #[inline(always)]
    fn request(&mut self, at: Picos, iova: u64, bytes: u64) -> Picos {
        let tlps = self.link.read(iova, bytes);
        let ask = self.link.wire(tlps.requests.bytes);
        let answer = self.link.wire(tlps.completions.bytes);
        let host = self.read + self.remote;
        self.counts.up_bytes += tlps.requests.bytes;
        self.counts.down_bytes += tlps.completions.bytes;
        let tag = self.tags.ask(at, ask + host + answer);
        let sent = self.up.book(tag.from, ask) + ask;
        let reached = self.translate(sent, iova, bytes) + host;
        let done = self.down.book(reached, answer) + answer;
        self.tags.hand_back(tag, done);
        done
    }

    /// A write to host memory, wished for at `at`.
    #[inline]
    pub fn write(&mut self, at: Picos, iova: u64, bytes: u64) -> Posted {
        self.counts.writes += 1;
        let taken = self.issue.book(at + self.setup, self.issue_time);
        Posted {
            taken,
            visible: self.post(taken, iova, bytes),
        }
    }

    /// Packets of a write: when the host sees them.
    #[inline(always)]
    fn post(&mut self, at: Picos, iova: u64, bytes: u64) -> Picos {
        let packets = self.link.write(iova, bytes).bytes;
        let time = self.link.wire(packets);
        self.counts.up_bytes += packets;
        let sent = self.up.book(at, time) + time;
        self.translate(sent, iova, bytes) + self.write + self.remote
    }

    /// A message-signalled interrupt, sent at `at`: when whom it wakes begins to run. Its address is no page of
    /// memory, so that it needs no translation.
    pub fn interrupt(&mut self, at: Picos) -> Picos {
        self.count_interrupt();
        self.book_interrupt(at)
    }

    fn count_interrupt(&mut self) {
        self.counts.interrupts += 1;
        self.counts.up_bytes += self.link.write(0, INTERRUPT_BYTES.into()).bytes;
    }

    fn book_interrupt(&mut self, at: Picos) -> Picos {
        let time = self
            .link
            .wire(self.link.write(0, INTERRUPT_BYTES.into()).bytes);
        self.up.book(at, time) + time + self.interrupt
    }

    /// [`Bus::interrupt`] where nothing is under way, and without booking it.
    pub(super) fn interrupt_alone(&mut self, at: Picos) -> Picos {
        self.count_interrupt();
        let time = self
            .link
            .wire(self.link.write(0, INTERRUPT_BYTES.into()).bytes);
        at + time + self.interrupt
    }

    /// When the addresses of an access that arrives at `at` are translated.
    #[inline(always)]
    fn translate(&mut self, at: Picos, iova: u64, bytes: u64) -> Picos {
        let Some(iotlb) = &mut self.iommu else {
            return at;
        };
        let last = iova.saturating_add(bytes.saturating_sub(1));
        if iova >> iotlb.page_shift == last >> iotlb.page_shift {
            if iotlb.tags.touch(iova) {
                self.counts.iotlb_hits += 1;
                return at;
            }
            self.counts.iotlb_misses += 1;
            return iotlb.walk(at);
        }
        self.translate_pages(at, iova, last)
    }

    #[inline(never)]
    fn translate_pages(&mut self, at: Picos, iova: u64, last: u64) -> Picos {
        let mut done = at;
        let Some(iotlb) = &mut self.iommu else {
            return at;
        };
        for page in iova >> iotlb.page_shift..=last >> iotlb.page_shift {
            if iotlb.tags.touch(page << iotlb.page_shift) {
                self.counts.iotlb_hits += 1;
            } else {
                self.counts.iotlb_misses += 1;
                done = done.max(iotlb.walk(at));
            }
        }
        done
    }

    /// What entries of a ring take where nothing else is under way.
    pub(super) fn alone(&self) -> AloneTimes {
        let read = self.link.read(0, ENTRY_BYTES);
        let write = self.link.write(0, ENTRY_BYTES);
        let wire = |bytes| self.link.wire(bytes);
        AloneTimes {
            doorbell: self.mmio_write
                + wire(self.link.write(0, DOORBELL_BYTES).bytes)
                + self.doorbell,
            fetch: self.setup
                + wire(read.requests.bytes)
                + self.read
                + self.remote
                + wire(read.completions.bytes)
                + self.per_store.of(ENTRY_BYTES),
            completion: self.setup + wire(write.bytes) + self.write + self.remote,
            up_bytes: read.requests.bytes + write.bytes,
            down_bytes: read.completions.bytes + self.link.write(0, DOORBELL_BYTES).bytes,
            translations: if self.iommu.is_some() { 2 } else { 0 },
        }
    }

    /// Whether the translation of an entry at `iova` is known, the latest of its set, so that what it takes follows
    /// from [`Bus::alone`] and no cache changes.
    #[inline(always)]
    pub(super) fn is_plain(&self, iova: u64) -> bool {
        let known = match &self.iommu {
            None => true,
            Some(iotlb) => iotlb.tags.is_latest(iova),
        };
        known && iova & (ENTRY_BYTES - 1) == 0
    }

    /// Counts the doorbell, the fetch and the completion of a command that was alone.
    #[inline(always)]
    pub(super) fn count_alone(&mut self, times: &AloneTimes) {
        self.counts.doorbells += 1;
        self.counts.reads += 1;
        self.counts.writes += 1;
        self.counts.up_bytes += times.up_bytes;
        self.counts.down_bytes += times.down_bytes;
        self.counts.iotlb_hits += times.translations;
    }

    /// What a write takes where nothing is under way, and until when it keeps the DMA engine's front or the link;
    /// `None` where its translation is not plainly known.
    #[inline(always)]
    pub(super) fn write_alone(
        &mut self,
        at: Picos,
        iova: u64,
        bytes: u64,
    ) -> Option<(Posted, Picos)> {
        let known = self.knows(iova, bytes)?;
        let packets = self.link.write(iova, bytes).bytes;
        let taken = at + self.setup;
        let sent = taken + self.link.wire(packets);
        self.counts.writes += 1;
        self.counts.up_bytes += packets;
        self.counts.iotlb_hits += known;
        let posted = Posted {
            taken,
            visible: sent + self.write + self.remote,
        };
        Some((posted, sent.max(taken + self.issue_time)))
    }

    /// Likewise a read, which is one request: when the data are there.
    #[inline(always)]
    pub(super) fn read_alone(
        &mut self,
        at: Picos,
        iova: u64,
        bytes: u64,
    ) -> Option<(Picos, Picos)> {
        let most = u64::from(self.link.spec().max_read_request);
        if (iova & (most - 1)).saturating_add(bytes) > most {
            return None;
        }
        let known = self.knows(iova, bytes)?;
        let tlps = self.link.read(iova, bytes);
        self.counts.reads += 1;
        self.counts.up_bytes += tlps.requests.bytes;
        self.counts.down_bytes += tlps.completions.bytes;
        self.counts.iotlb_hits += known;
        let start = at + self.setup;
        let done = start
            + self.link.wire(tlps.requests.bytes)
            + self.read
            + self.remote
            + self.link.wire(tlps.completions.bytes)
            + self.per_store.of(bytes);
        Some((done, start + self.issue_time))
    }

    /// Translations of an access to one page that is the latest of its set: one, or none without an IOMMU.
    #[inline(always)]
    fn knows(&self, iova: u64, bytes: u64) -> Option<u64> {
        let Some(iotlb) = &self.iommu else {
            return Some(0);
        };
        let last = iova.saturating_add(bytes.saturating_sub(1));
        let one = iova >> iotlb.page_shift == last >> iotlb.page_shift;
        (one && iotlb.tags.is_latest(iova)).then_some(1)
    }

    /// When the DMA engine is asked for something at `at`, it gets to it at this time, if not later.
    #[inline(always)]
    pub(super) fn start(&self, at: Picos) -> Picos {
        at + self.setup
    }

    /// How long an operation keeps the front of the DMA engine.
    #[inline(always)]
    pub(super) fn issue_time(&self) -> Picos {
        self.issue_time
    }

    /// Puts counts back: what was counted as alone is booked, and counted so.
    pub(super) fn set_counts(&mut self, counts: BusCounts) {
        self.counts = counts;
    }

    /// Forgets all translations, as when the host unmaps memory.
    pub fn forget_translations(&mut self) {
        if let Some(iotlb) = &mut self.iommu {
            iotlb.tags.clear();
        }
    }
}

impl Iotlb {
    #[inline(never)]
    fn walk(&mut self, at: Picos) -> Picos {
        let walker = self.walkers.ask(at, self.miss);
        let done = walker.from + self.miss;
        self.walkers.hand_back(walker, done);
        done
    }
}
