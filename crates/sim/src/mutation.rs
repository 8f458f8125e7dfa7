//! Planted bugs: what shows that the checkers see.
//!
//! They are planted in the simulated world between driver and device, never in the product.

use crate::check::Check;

/// A bug that a run is to have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Mutation {
    /// A completion's ownership word becomes visible before its body and its data (rule C1).
    CompletionBeforeData,
    /// A submission's ownership word becomes visible before its body and its data (rules S1, S4).
    OwnershipBeforeBody,
    /// No full fence between the tail and the look at the event word (rule N1).
    NoHostFence,
    /// A KICK gets lost (rule N1).
    DropKick,
    /// The device does not look again before it parks (rule N2).
    NoSecondLook,
    /// Completions of two commands of a queue have their request ids exchanged.
    SwapRequests,
    /// A completion comes with the generation before its own.
    StaleGeneration,
    /// A completion never arrives.
    LoseCompletion,
    /// A completion never arrives, when nobody asks for more than what is in flight.
    LoseLast,
    /// A lookup returns what an earlier lookup of the key returned.
    StaleValue,
    /// An update is acknowledged and not carried out.
    LoseWrite,
    /// A delete is carried out once more, later.
    DeleteTwice,
    /// A lookup returns the value of another key.
    OtherKey,
    /// Two commands of a queue on one map change places.
    SwapCommands,
    /// `Full` is reported as success.
    AcceptFull,
    /// A piece of a result never arrives.
    TearResult,
    /// The device writes to memory that no command named.
    StrayWrite,
    /// A DMA mapping is not taken away.
    LeakMapping,
    /// A map is not freed.
    LeakMap,
    /// The driver ignores the generation of a completion that comes twice: the second one ends
    /// the command that has the slot by then.
    AcceptDuplicate,
    /// A command that met a flip which the memory's check code detected is reported as good.
    ReportDetected,
    /// A command whose DMA failed is reported as good.
    ReportFailedDma,
    /// A command whose DMA was torn is reported as good.
    ReportTorn,
    /// A write that finds no memory is refused, and stored all the same.
    StoreAndRefuse,
    /// A command that was aborted gives its slot back early: it still writes its result when the
    /// next command has the buffer (rule R2).
    AbortFreesEarly,
    /// The device writes to host memory after a reset (rule R1).
    WriteAfterReset,
    /// No full fence between the completion event word and the last look before a sleep (rule N4).
    SleepWithoutFence,
    /// No look at the completion ring between the completion event word and the sleep (rule N4).
    NoLookBeforeSleep,
    /// No full fence between completions and the device's look at the event word (rule N4).
    InterruptWithoutFence,
    /// The driver takes a command that it aborts for ended before the device has said so (rule R2).
    FreeAtTimeout,
    /// The driver frees the rings and buffers of a queue that the device was not told to delete (rule R2).
    FreeUndeleted,
    /// The driver gives the id of a queue that there is to another one (rule R2).
    ReuseQueueId,
    /// The driver does not check the slot of a completion: one that there is not ends another command.
    SlotUnchecked,
    /// The device does not check an address or a length: what lies outside of all that is mapped comes
    /// out elsewhere in memory.
    AddressUnchecked,
    /// An abort is confirmed, and the batch goes on to its end.
    IgnoreAbort,
    /// The progress of a batch update is lost when other queues had their turn: it begins anew.
    RestartBatch,
    /// A command that stands behind a batch in its queue is carried out in the middle of that.
    Overtake,
    /// A batch goes on after its queue was deleted in the middle of it.
    GoOnAfterDelete,
    /// A change that met a flip which the check code detected fails, and stays.
    KeepHalfDone,
    /// A dump leaves a key out.
    DumpSkipsKey,
    /// A dump returns its first key once more.
    DumpRepeats,
    /// A dump returns a key that was deleted before.
    DumpRevives,
    /// GET_NEXT says that there is no further key.
    WalkEndsEarly,
    /// An LRU map evicts the key that an update has just stored.
    LruEvictsNew,
    /// An LRU map evicts when it has one entry less than it may.
    LruEvictsEarly,
    /// An LRU map takes one entry more than it may before it evicts.
    LruTakesMore,
    /// A hash takes one entry more than it may.
    HashTakesMore,
    /// A hash is full with one entry less than it may have.
    HashFullEarly,
    /// The driver's clock goes eight times as slow: its deadlines pass late.
    SlowClock,
    /// A host asks to sleep for 200 ms more than the driver told it to.
    SleepTooLong,
    /// The device goes on after it was pulled out, though its registers read as all ones.
    AnswerAfterRemoval,
    /// Registers of a device that was pulled out read as zero, not as all ones.
    RemovalReadsZero,
    /// A reset leaves the device's maps as they are.
    SurvivesReset,
    /// After a reset a new map holds a value of an earlier one.
    OldContents,
    /// The device is not enabled any more after a reset.
    NeverReady,
    /// The driver says that it has reset the device, and has not.
    ResetNotDone,
    /// A lookup that succeeded ends with `Internal`.
    WrongStatus,
    /// The driver gives a command a buffer that is not mapped.
    UnmappedAddress,
    /// The device refuses a map that it has room for.
    RefuseMap,
    /// The driver writes KICK where no register is.
    WrongRegister,
    /// The driver takes back the host memory of a map that the device was not told to free (rule R4).
    RingFreedEarly,
    /// The device writes to the host memory of a map that is freed (rule R4).
    RingWrittenLate,
    /// The device panics in a step.
    Panics,
    /// A call of the driver panics while it reads a register.
    PanicsInCall,
}

impl Mutation {
    /// All of them.
    pub const ALL: [Self; 64] = [
        Self::CompletionBeforeData,
        Self::OwnershipBeforeBody,
        Self::NoHostFence,
        Self::DropKick,
        Self::NoSecondLook,
        Self::SwapRequests,
        Self::StaleGeneration,
        Self::LoseCompletion,
        Self::LoseLast,
        Self::StaleValue,
        Self::LoseWrite,
        Self::DeleteTwice,
        Self::OtherKey,
        Self::SwapCommands,
        Self::AcceptFull,
        Self::TearResult,
        Self::StrayWrite,
        Self::LeakMapping,
        Self::LeakMap,
        Self::AcceptDuplicate,
        Self::ReportDetected,
        Self::ReportFailedDma,
        Self::ReportTorn,
        Self::StoreAndRefuse,
        Self::AbortFreesEarly,
        Self::WriteAfterReset,
        Self::SleepWithoutFence,
        Self::NoLookBeforeSleep,
        Self::InterruptWithoutFence,
        Self::FreeAtTimeout,
        Self::FreeUndeleted,
        Self::ReuseQueueId,
        Self::SlotUnchecked,
        Self::AddressUnchecked,
        Self::IgnoreAbort,
        Self::RestartBatch,
        Self::Overtake,
        Self::GoOnAfterDelete,
        Self::KeepHalfDone,
        Self::DumpSkipsKey,
        Self::DumpRepeats,
        Self::DumpRevives,
        Self::WalkEndsEarly,
        Self::LruEvictsNew,
        Self::LruEvictsEarly,
        Self::LruTakesMore,
        Self::HashTakesMore,
        Self::HashFullEarly,
        Self::SlowClock,
        Self::SleepTooLong,
        Self::AnswerAfterRemoval,
        Self::RemovalReadsZero,
        Self::SurvivesReset,
        Self::OldContents,
        Self::NeverReady,
        Self::ResetNotDone,
        Self::WrongStatus,
        Self::UnmappedAddress,
        Self::RefuseMap,
        Self::WrongRegister,
        Self::RingFreedEarly,
        Self::RingWrittenLate,
        Self::Panics,
        Self::PanicsInCall,
    ];

    /// The checks that catch it: mostly one. Where there are more it depends on what meets the bug first.
    pub const fn caught_by(self) -> &'static [Check] {
        match self {
            Self::NoHostFence | Self::DropKick | Self::NoSecondLook => &[Check::DeviceWake],
            Self::SleepWithoutFence | Self::NoLookBeforeSleep | Self::InterruptWithoutFence => {
                &[Check::HostWake]
            }
            Self::SleepTooLong => &[Check::Sleep],
            Self::StaleValue
            | Self::LoseWrite
            | Self::DeleteTwice
            | Self::OtherKey
            | Self::SwapCommands
            | Self::AcceptFull
            | Self::LruEvictsNew
            | Self::LruEvictsEarly
            | Self::LruTakesMore
            | Self::HashTakesMore
            | Self::HashFullEarly
            | Self::OldContents
            | Self::ReportDetected
            | Self::ReportFailedDma
            | Self::ReportTorn
            | Self::StoreAndRefuse
            | Self::RestartBatch
            | Self::Overtake
            | Self::GoOnAfterDelete
            | Self::KeepHalfDone => &[Check::History],
            Self::DumpSkipsKey => &[Check::WalkComplete],
            Self::WalkEndsEarly => &[Check::WalkComplete, Check::History],
            Self::DumpRepeats => &[Check::WalkOnce],
            Self::DumpRevives => &[Check::WalkPresent],
            // Whatever of an entry is not there yet is that of the one before it in its place.
            Self::CompletionBeforeData | Self::OwnershipBeforeBody => {
                &[Check::Request, Check::Bytes, Check::History]
            }
            Self::TearResult | Self::AbortFreesEarly => &[Check::Bytes],
            Self::WrongStatus => &[Check::Status],
            Self::StaleGeneration => &[Check::Request],
            // Another command than its own ends, and has another answer.
            Self::SwapRequests | Self::AcceptDuplicate | Self::SlotUnchecked => {
                &[Check::History, Check::Bytes]
            }
            Self::UnmappedAddress => &[Check::Dma],
            Self::RefuseMap => &[Check::Failed],
            Self::LoseLast => &[Check::Ended],
            Self::LoseCompletion => &[Check::Ended, Check::Failed],
            Self::SlowClock => &[Check::Deadline],
            Self::IgnoreAbort => &[Check::Abort],
            Self::FreeAtTimeout
            | Self::FreeUndeleted
            | Self::ReuseQueueId
            | Self::RingFreedEarly => &[Check::Release],
            Self::StrayWrite
            | Self::WriteAfterReset
            | Self::AddressUnchecked
            | Self::RingWrittenLate => &[Check::StrayWrite],
            Self::LeakMapping => &[Check::Mappings],
            Self::LeakMap => &[Check::DeviceMemory],
            Self::NeverReady => &[Check::Reset],
            Self::SurvivesReset => &[Check::Forgotten],
            Self::ResetNotDone => &[Check::OldHandle],
            Self::AnswerAfterRemoval | Self::RemovalReadsZero => &[Check::Removal],
            Self::WrongRegister => &[Check::Register],
            Self::Panics | Self::PanicsInCall => &[Check::Panic],
        }
    }
}
