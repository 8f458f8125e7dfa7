//! What happens to hosts, queues and the device: the events that a report counts.

/// An event.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[non_exhaustive]
pub enum Event {
    /// ABORT of a command in flight, confirmed.
    Abort,
    /// A batch was aborted that the device had begun.
    AbortMidway,
    /// ABORT of a command that had ended, or was about to.
    AbortTooLate,
    /// A host was unwound out of a blocking call, and goes on with its queue.
    CallLeft,
    /// Something else than the driver reset the device.
    ForeignReset,
    /// The device's faults let no reset through, and the seed ended there.
    GivenUp,
    /// Nobody did anything for a while.
    Idle,
    /// A KICK reached the device.
    Kick,
    /// The device did nothing for longer than deadlines allow.
    LongStall,
    /// A map was freed and another one took its place.
    MapFreed,
    /// A map of which faults left nothing known was freed.
    MapGivenUp,
    /// The device parked.
    Park,
    /// A host deleted its queue and made another.
    QueueDeleted,
    /// A queue was deleted with a command that the device had begun.
    QueueDeletedMidway,
    /// A host deleted a queue on which faults held commands back for good.
    QueueGivenUp,
    /// The device was pulled out.
    Removal,
    /// The driver reset the device.
    Reset,
    /// The driver reset a device that a fault had broken.
    ResetAfterFault,
    /// The device was reset while a host waited in a call.
    ResetInCall,
    /// A reset met a command that the device had begun.
    ResetMidway,
    /// A ring buffer was freed.
    RingFreed,
    /// An engine of the device wrote a record to a ring buffer.
    RingRecord,
    /// A host slept until an interrupt, or for as long as it may.
    Sleep,
    /// The device did nothing for a while that deadlines allow.
    Stall,
    /// A host's thread died in a blocking call, and its queue was deleted.
    ThreadDied,
    /// A blocking call ended at its deadline, without an effect.
    Timeout,
}

impl Event {
    /// All of them, by name.
    pub const ALL: [Self; 26] = [
        Self::Abort,
        Self::AbortMidway,
        Self::AbortTooLate,
        Self::CallLeft,
        Self::ForeignReset,
        Self::GivenUp,
        Self::Idle,
        Self::Kick,
        Self::LongStall,
        Self::MapFreed,
        Self::MapGivenUp,
        Self::Park,
        Self::QueueDeleted,
        Self::QueueDeletedMidway,
        Self::QueueGivenUp,
        Self::Removal,
        Self::Reset,
        Self::ResetAfterFault,
        Self::ResetInCall,
        Self::ResetMidway,
        Self::RingFreed,
        Self::RingRecord,
        Self::Sleep,
        Self::Stall,
        Self::ThreadDied,
        Self::Timeout,
    ];

    /// Its name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Abort => "abort",
            Self::AbortMidway => "abort midway",
            Self::AbortTooLate => "abort too late",
            Self::CallLeft => "call left",
            Self::ForeignReset => "foreign reset",
            Self::GivenUp => "given up",
            Self::Idle => "idle",
            Self::Kick => "kick",
            Self::LongStall => "long stall",
            Self::MapFreed => "map freed",
            Self::MapGivenUp => "map given up",
            Self::Park => "park",
            Self::QueueDeleted => "queue deleted",
            Self::QueueDeletedMidway => "queue deleted midway",
            Self::QueueGivenUp => "queue given up",
            Self::Removal => "removal",
            Self::Reset => "reset",
            Self::ResetAfterFault => "reset after a fault",
            Self::ResetInCall => "reset in a call",
            Self::ResetMidway => "reset midway",
            Self::RingFreed => "ring freed",
            Self::RingRecord => "ring record",
            Self::Sleep => "sleep",
            Self::Stall => "stall",
            Self::ThreadDied => "thread died",
            Self::Timeout => "timeout",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_whole() {
        for (index, event) in Event::ALL.into_iter().enumerate() {
            assert_eq!(event as usize, index, "{event:?}");
        }
        assert_eq!(Event::Timeout as usize + 1, Event::ALL.len());
        assert!(Event::ALL.is_sorted_by_key(|event| event.name()));
    }
}
