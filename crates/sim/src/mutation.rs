//! Planted bugs: what shows that the checkers see.
//!
//! They are planted in the simulated world between driver and device, never in the product.

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
}

impl Mutation {
    /// All of them.
    pub const ALL: [Self; 38] = [
        Self::CompletionBeforeData,
        Self::OwnershipBeforeBody,
        Self::NoHostFence,
        Self::DropKick,
        Self::NoSecondLook,
        Self::SwapRequests,
        Self::StaleGeneration,
        Self::LoseCompletion,
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
    ];
}
