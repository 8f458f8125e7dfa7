//! What is simulated, as numbers that need no further look at a profile or a workload.
//!
//! [`crate::resolve`] makes a [`Machine`] of them; tests make simpler ones.

use offmap_firmware_model::time::PerByte;
use offmap_firmware_model::time::pcie::Link;

/// NICs of one kind, the host threads that use them, and their load. Times are picoseconds.
#[derive(Clone, Debug)]
pub struct Machine {
    /// NICs, each with a link, engines and memory of its own.
    pub nics: u32,
    /// Queue pairs of each, every one with a host thread of its own.
    pub queues: u32,
    /// Commands in flight on a queue pair, at most.
    pub depth: u32,
    /// Elements of a command.
    pub batch: u32,
    /// Commands that one doorbell tells of.
    pub doorbell: u32,
    /// How commands come.
    pub load: Load,
    /// The host.
    pub host: Host,
    /// The way between host and NIC.
    pub bus: Bus,
    /// The engines of a NIC.
    pub engines: Engines,
    /// Device memory.
    pub tiers: Vec<TierPort>,
    /// What commands do, by weight; none: there are packets only.
    pub calls: Vec<Call>,
    /// What comes from the network.
    pub packets: Option<Packets>,
}

/// How commands come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Load {
    /// The next one when one has ended: always as many as the depth says.
    Closed,
    /// On each queue pair after gaps of that mean, exponentially distributed, whether earlier ones
    /// have ended or not.
    Open {
        /// Mean time between two commands of a queue pair.
        gap: u64,
    },
}

/// The host's threads and memory.
#[derive(Clone, Copy, Debug, Default)]
pub struct Host {
    /// A thread's time to make a command and store it.
    pub submit: u64,
    /// A thread's time to take a completion in.
    pub complete: u64,
    /// From an interrupt's message to the thread that it wakes; `None`: threads poll.
    pub interrupt: Option<u64>,
    /// From a doorbell's store to its packet on the link.
    pub mmio_write: u64,
    /// From the arrival of a DMA read to its data.
    pub read: u64,
    /// From the arrival of a DMA write to the moment from which a thread sees it.
    pub write: u64,
    /// Share of DMA operations that find no translation in the IOTLB, of 65,536.
    pub iommu_miss_share: u32,
    /// What such a one waits for the translation.
    pub iommu_miss: u64,
    /// Translations that are looked for at a time.
    pub walkers: u32,
}

/// The link and the DMA engine.
#[derive(Clone, Copy, Debug)]
pub struct Bus {
    /// Packets and what they take.
    pub link: Link,
    /// From a doorbell's arrival to the wish for descriptors.
    pub doorbell: u64,
    /// From the wish for a DMA to its first packet.
    pub dma_setup: u64,
    /// Least time between two DMA operations.
    pub dma_issue: u64,
    /// From the DMA engine to where engines find what was read, for each byte.
    pub dma_store: PerByte,
    /// Read requests that may wait for their data.
    pub tags: u32,
}

/// The firmware's contexts.
#[derive(Clone, Copy, Debug)]
pub struct Engines {
    /// How many.
    pub count: u32,
    /// Time for a command besides its elements.
    pub command: u64,
    /// Time for an element besides its accesses.
    pub element: u64,
    /// Time to issue an access and take its answer up.
    pub access: u64,
    /// Elements of a command whose accesses are under way side by side.
    pub overlap: u32,
}

/// A tier's port.
#[derive(Clone, Debug)]
pub struct TierPort {
    /// Its name.
    pub name: String,
    /// From when an access has passed the port to its answer.
    pub latency: u64,
    /// Accesses under way at a time.
    pub outstanding: u32,
    /// Share of accesses that a cache in front of it answers, of 65,536.
    pub hit_share: u32,
    /// What is the latency of those.
    pub hit: u64,
}

/// An access to device memory, made a number of times one after the other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Access {
    /// Index of the tier.
    pub tier: u32,
    /// How many times, in 65,536ths: the whole ones always, one more by chance.
    pub times: u32,
    /// What its bytes take at the tier's port.
    pub service: u64,
}

/// What is done for an element.
#[derive(Clone, Debug, Default)]
pub struct Recipe {
    /// Accesses in order.
    pub accesses: Vec<Access>,
}

/// A kind of command.
#[derive(Clone, Debug)]
pub struct Call {
    /// How often it is made, among the weights of all.
    pub weight: u64,
    /// Bytes of keys and values that the NIC reads from host memory, all elements together.
    pub reads: [u32; 2],
    /// An element whose key is there.
    pub hit: Recipe,
    /// An element whose key is not.
    pub miss: Recipe,
    /// Share of elements whose key is not there, of 65,536.
    pub miss_share: u32,
    /// Bytes that the NIC writes to host memory for each element whose key is there.
    pub writes: u32,
    /// Bytes that it writes besides, for all together: the statuses of a batch.
    pub statuses: u32,
}

/// What comes from the network to each NIC.
#[derive(Clone, Debug)]
pub struct Packets {
    /// Mean time between two packets at a NIC.
    pub gap: u64,
    /// Whether gaps are exponentially distributed, or all alike.
    pub poisson: bool,
    /// Packets that wait for an engine at most; the next one is dropped.
    pub queue: u32,
    /// An engine's time for a packet besides the map.
    pub cost: u64,
    /// The lookups of a packet whose keys are there, or not.
    pub hit: Recipe,
    /// Likewise.
    pub miss: Recipe,
    /// Share of lookups whose key is not there, of 65,536.
    pub miss_share: u32,
    /// Lookups for each packet.
    pub lookups: u32,
    /// A counter's update.
    pub update: Recipe,
    /// Counter updates for each packet.
    pub updates: u32,
}
