//! The conformance suite: what any device that speaks the ABI must do, written once over the
//! [`Function`] trait.
//!
//! It needs no emulator: with `docs/abi.md` it is what a firmware or RTL team holds its own
//! device against. A [`Bench`] hands devices to the cases: new ones, built as a case
//! [wants](Wanted) them, or over and over the one that it was given, reset each time. A case
//! that needs what the device at hand lacks is *skipped*, and says why ([`skip`]); one that
//! finds a fault panics. [`run`] catches both, case by case, with a deadline.
//!
//! `offmap device test` runs the suite on whatever it is pointed at; `tests/tests/conformance.rs`
//! instantiates every case for each transport and each way of notifying.
#![forbid(unsafe_code)]

pub mod coverage;
pub mod elements;
pub mod host;
pub mod inner;
pub mod lifecycle;
pub mod list;
pub mod lru_queue;
pub mod maps;
pub mod memory;
pub mod ordering;
pub mod queues;
pub mod rings;
pub mod run;
pub mod tries;

use host::{Doorbells, Host, Notify, Queue, QueueOptions};
use offmap_abi::regs::NO_VECTOR;
use offmap_device_io::Function;
use std::sync::Arc;

/// What a case wants of the device, where that can be chosen. Where it cannot, the bench takes
/// up what is too much (maps), and the case goes by what the device reports.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Wanted {
    /// Bytes of device memory. Some cases search it, and others fill it.
    pub memory_bytes: u64,
    /// Most maps at a time; `None`: as many as there are by default.
    pub maps: Option<u32>,
    /// Most entries of one map.
    pub entries_per_map: Option<u32>,
    /// Most entries of all maps together.
    pub entries_total: Option<u64>,
    /// How often in a row the device finds no work before it parks.
    pub polls_before_park: Option<u32>,
    /// How long it sleeps when it has parked, before it looks by itself, in microseconds. Where a case
    /// asks for that, its host writes doorbells as registers, mapped or not: a device that sleeps
    /// hears of mapped ones only when it looks.
    pub look_again_us: Option<u32>,
}

impl Default for Wanted {
    fn default() -> Self {
        Self {
            memory_bytes: 16 << 20,
            maps: None,
            entries_per_map: None,
            entries_total: None,
            polls_before_park: None,
            look_again_us: None,
        }
    }
}

/// What makes a device of a certain shape.
type Make<F> = dyn Fn(&Wanted) -> Arc<F> + Send + Sync;

/// Where the devices of a bench come from.
enum Source<F> {
    /// A new one for each case.
    Made(Box<Make<F>>),
    /// There is one.
    Given(Arc<F>),
}

/// Hands devices of one kind to the cases.
pub struct Bench<F: Function> {
    source: Source<F>,
    /// How the I/O queues of the cases are told of entries.
    pub notify: Notify,
    /// Whether config space and reset are the device's own, as they are unless an operating system
    /// stands between: that one keeps memory decoding as it wants it, and puts config space back after a
    /// reset. Default: true.
    pub owns_config: bool,
}

impl<F: Function> Bench<F> {
    /// A bench whose devices are built as the cases want them.
    pub fn made(make: impl Fn(&Wanted) -> Arc<F> + Send + Sync + 'static, notify: Notify) -> Self {
        Self {
            source: Source::Made(Box::new(make)),
            notify,
            owns_config: true,
        }
    }

    /// A bench with one device, as it is. It is reset for each case.
    pub fn given(function: Arc<F>, notify: Notify) -> Self {
        Self {
            source: Source::Given(function),
            notify,
            owns_config: true,
        }
    }

    /// A function after reset.
    ///
    /// # Panics
    ///
    /// When the device cannot be reset.
    pub fn function(&self) -> Arc<F> {
        self.function_with(&Wanted::default())
    }

    fn function_with(&self, wanted: &Wanted) -> Arc<F> {
        match &self.source {
            Source::Made(make) => make(wanted),
            Source::Given(function) => {
                function.reset().expect("the device can be reset");
                Arc::clone(function)
            }
        }
    }

    /// A device, brought up.
    ///
    /// # Panics
    ///
    /// When it does not come up.
    pub fn host(&self) -> Host<F> {
        self.host_with(|_| {})
    }

    /// A device that is as near to what `change` asks for as this bench can get, brought up.
    ///
    /// # Panics
    ///
    /// When it does not come up.
    pub fn host_with(&self, change: impl FnOnce(&mut Wanted)) -> Host<F> {
        let mut wanted = Wanted::default();
        change(&mut wanted);
        let doorbells = match wanted.look_again_us {
            Some(_) => Doorbells::Registers,
            None => Doorbells::Mapped,
        };
        let host = Host::bring_up_with(self.function_with(&wanted), doorbells);
        if let (Source::Given(_), Some(maps)) = (&self.source, wanted.maps) {
            host.leave_maps(maps);
        }
        host
    }

    /// Whether the device is as the case asked for, to the byte.
    pub fn is_made(&self) -> bool {
        matches!(self.source, Source::Made(_))
    }

    /// Options of a queue without an interrupt.
    pub fn polled(&self) -> QueueOptions {
        QueueOptions {
            notify: self.notify,
            vector: NO_VECTOR,
        }
    }

    /// An I/O queue without an interrupt.
    #[track_caller]
    pub fn queue(&self, host: &Host<F>, id: u16, depth: u32) -> Queue<F> {
        host.queue(id, depth, self.polled())
    }
}

/// Why a case was skipped: what [`skip`] unwinds with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Skipped(pub String);

/// Ends the case: the device at hand has not what it needs. It unwinds past panic hooks; [`run`]
/// tells it from a failure.
pub fn skip(why: impl Into<String>) -> ! {
    std::panic::resume_unwind(Box::new(Skipped(why.into())))
}

/// The list of all cases, which stands here and nowhere else, each with the part of `docs/abi.md`
/// that it tests.
///
/// `conformance_suite!(module, Function, bench)` declares a test per case, where `bench` is an
/// expression for a [`Bench`] of that function.
#[macro_export]
macro_rules! conformance_suite {
    ($module:ident, $function:ty, $bench:expr) => {
        $crate::conformance_suite! { @list tests $module, $function, $bench }
    };
    (@list $($consumer:tt)+) => {
        $crate::conformance_suite! { @$($consumer)+;
            lifecycle:
                registers_are_as_the_abi_says = "§3 registers",
                config_space_is_a_pci_function = "§1 the function, §2 BARs",
                identify_fills_the_room_given = "§6.1 IDENTIFY",
                unusable_admin_queue_is_fatal_until_reset = "§3 bring-up, FATAL",
                reset_while_idle = "§3 RESET_COUNT, rule R1",
                reset_with_work_under_way = "§3 bring-up, rule R1",
                disable_forgets_everything = "§3 disable",
                unknown_admin_opcodes_are_answered = "§6 admin commands, §8 InvalidOpcode";
            queues:
                limits_are_kept = "§6.2 QUEUE_CREATE, QUEUE_DELETE",
                delete_and_create_again = "§6.2 QUEUE_DELETE, §4 phase",
                depth_two_wraps_many_times = "§4 phase, §4.1 flow",
                the_deepest_queue_is_used_whole = "§4.1 flow, §5.2 request ids",
                interrupts_arrive = "§10 rule N4",
                interrupts_only_when_armed = "§4.2 event words, §10 rule N4",
                abort_answers = "§6.5 ABORT",
                a_command_under_way_can_be_interrupted = "§6.5 ABORT, §8 Interrupted",
                deleting_a_queue_completes_what_it_held = "§6.2 QUEUE_DELETE",
                a_tail_too_far_stops_the_queue = "§4.3 a queue that stops",
                several_queues_from_several_threads = "§7 order of commands",
                a_parked_device_wakes = "§10 rules N1, N2";
            maps:
                elements_round_trip_at_every_size = "§7 LOOKUP, UPDATE, LOOKUP_AND_DELETE, §7.1",
                every_element_status = "§7.1, §8",
                every_batch_count = "§7.2",
                batch_update_stops_at_the_first_failure = "§7.2 BATCH_UPDATE, BATCH_DELETE",
                dumps_return_everything_once = "§7.2 BATCH_DUMP, BATCH_DUMP_DELETE",
                dump_says_what_it_needs = "§7.2 BATCH_DUMP, NoSpace",
                walks_by_next_key = "§7 GET_FIRST, GET_NEXT",
                arrays = "§6.3 arrays, §8 OutOfRange",
                percpu_slots = "§6.1 per-CPU maps",
                limits_say_what_was_exceeded = "§6.3 LimitExceeded",
                out_of_memory_keeps_what_is_stored = "§6.3 NoMemory",
                stale_handles_are_refused = "§6.3 handles",
                unreachable_memory_is_a_dma_fault = "§8 DmaFault",
                ten_thousand_maps_leak_nothing = "§6.3 MAP_FREE, §6.4 MAP_QUERY",
                the_window_shows_what_is_stored = "§2 BAR 2, §3 WINDOW_BASE",
                unknown_io_opcodes_are_answered = "§7, §8 InvalidOpcode";
            tries:
                tries_match_the_longest_prefix = "§6.3 LPM tries",
                tries_list_in_post_order = "§7 GET_NEXT, §7.2 BATCH_DUMP of LPM tries",
                filters_hold_what_was_added = "§6.3 bloom filters";
            lru_queue:
                a_full_lru_map_evicts_one = "§7.3 LRU types",
                lru_maps_in_batches = "§7.3 LRU types, §7.2",
                queues_and_stacks = "§7.4 queues and stacks",
                queues_and_stacks_have_no_keys = "§7.4 queues and stacks";
            inner:
                maps_of_maps_take_maps_like_the_template = "§7.5 maps of maps",
                a_held_map_goes_with_its_last_holder = "§7.5 maps of maps, MAP_FREE",
                an_entry_that_the_window_changed_is_internal = "§7.5 maps of maps, §8 Internal";
            rings:
                a_ring_has_memory_and_no_elements = "§7.6 ring buffers",
                unusable_rings_are_refused = "§7.6 ring buffers",
                freeing_a_ring_lets_go_of_its_memory = "§7.6 ring buffers, rule R4";
            list:
                the_list_names_every_map = "§6.6 MAP_LIST";
            memory:
                tiers_are_what_they_say = "§6.7 MEMORY_INFO, §6.8 MAP_LAYOUT",
                a_map_moves_with_its_contents = "§6.9 MAP_MIGRATE",
                maps_are_placed_where_they_are_asked_for = "§6.3 MAP_CREATE, §6.7 tiers";
            ordering:
                operands_and_results_are_those_of_their_entry = "§10 rules S1, S3, S4, C1",
                an_effect_is_there_before_its_completion = "§10 rule C2",
                completions_are_kept_until_the_head_passes = "§4.1 flow, §10 rule C3",
                a_tail_covers_what_was_stored_before = "§10 rules S2, N1",
                a_parked_device_looks_by_itself = "§10 rule N3",
                no_interrupt_is_lost = "§10 rule N4",
                a_reset_ends_all_access = "§10 rule R1",
                a_deleted_queue_lets_go_of_its_buffers = "§10 rule R2",
                an_unmap_ends_all_access = "§10 rule R3";
        }
    };
    (@tests $module:ident, $function:ty, $bench:expr;
        $($file:ident: $($case:ident = $section:literal),+ $(,)?;)+) => {
        mod $module {
            use super::*;

            $($(
                #[test]
                fn $case() {
                    let bench: $crate::Bench<$function> = $bench;
                    $crate::run::whole(|| $crate::$file::$case(&bench));
                }
            )+)+
        }
    };
    (@table $function:ty; $($file:ident: $($case:ident = $section:literal),+ $(,)?;)+) => {
        vec![$($($crate::run::Case {
            name: stringify!($case),
            group: stringify!($file),
            section: $section,
            run: $crate::$file::$case::<$function>,
        }),+),+]
    };
}
