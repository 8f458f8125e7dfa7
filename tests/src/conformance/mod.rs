//! The conformance suite: what any device that speaks the ABI must do, written once over the
//! `Function` trait.
//!
//! A [`Bench`] makes devices of one kind; the cases take a bench. `tests/conformance.rs`
//! instantiates every case for each transport and each way of notifying.

pub mod elements;
pub mod host;
pub mod inner;
pub mod lifecycle;
pub mod lru_queue;
pub mod maps;
pub mod ordering;
pub mod queues;
pub mod rings;
pub mod tries;

use host::{Host, Notify, Queue, QueueOptions};
use offmap_abi::regs::NO_VECTOR;
use offmap_device_io::Function;
use offmap_emulator::DeviceConfig;
use std::sync::Arc;

/// Makes devices of one kind for the cases.
pub struct Bench<F: Function> {
    /// Builds a device.
    pub make: fn(DeviceConfig) -> Arc<F>,
    /// How its I/O queues are told of entries.
    pub notify: Notify,
}

impl<F: Function> Bench<F> {
    /// A small device: memory is scanned by some cases, and limits are reached by others.
    pub fn config() -> DeviceConfig {
        let mut config = DeviceConfig::default();
        config.firmware.memory_bytes = 16 << 20;
        config
    }

    /// A device of that configuration, brought up.
    pub fn host(&self) -> Host<F> {
        Host::bring_up((self.make)(Self::config()))
    }

    /// A device of another configuration, brought up.
    pub fn host_with(&self, change: impl FnOnce(&mut DeviceConfig)) -> Host<F> {
        let mut config = Self::config();
        change(&mut config);
        Host::bring_up((self.make)(config))
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

/// Declares a test per case for a device and a way of notifying: for each transport the same
/// list, which stands here and nowhere else.
#[macro_export]
macro_rules! conformance_suite {
    ($module:ident, $function:ty, $make:expr, $notify:expr) => {
        $crate::conformance_suite!(@cases $module, $function, $make, $notify;
            lifecycle: registers_are_as_the_abi_says, config_space_is_a_pci_function,
                identify_fills_the_room_given, unusable_admin_queue_is_fatal_until_reset,
                reset_while_idle, reset_with_work_under_way, disable_forgets_everything,
                unknown_admin_opcodes_are_answered;
            queues: limits_are_kept, delete_and_create_again, depth_two_wraps_many_times,
                the_deepest_queue_is_used_whole, interrupts_arrive, interrupts_only_when_armed,
                abort_answers, deleting_a_queue_completes_what_it_held,
                a_tail_too_far_stops_the_queue, several_queues_from_several_threads,
                a_parked_device_wakes;
            maps: elements_round_trip_at_every_size, every_element_status, every_batch_count,
                batch_update_stops_at_the_first_failure, dumps_return_everything_once,
                dump_says_what_it_needs, walks_by_next_key, arrays, percpu_slots,
                limits_say_what_was_exceeded, out_of_memory_keeps_what_is_stored,
                stale_handles_are_refused, unreachable_memory_is_a_dma_fault,
                ten_thousand_maps_leak_nothing, the_window_shows_what_is_stored,
                unknown_io_opcodes_are_answered;
            tries: tries_match_the_longest_prefix, tries_list_in_post_order,
                filters_hold_what_was_added;
            lru_queue: a_full_lru_map_evicts_one, lru_maps_in_batches, queues_and_stacks,
                queues_and_stacks_have_no_keys;
            inner: maps_of_maps_take_maps_like_the_template,
                a_held_map_goes_with_its_last_holder;
            rings: a_ring_has_memory_and_no_elements, unusable_rings_are_refused,
                freeing_a_ring_lets_go_of_its_memory;
            ordering: operands_and_results_are_those_of_their_entry,
                an_effect_is_there_before_its_completion,
                completions_are_kept_until_the_head_passes, a_tail_covers_what_was_stored_before,
                a_parked_device_looks_by_itself, no_interrupt_is_lost, a_reset_ends_all_access,
                a_deleted_queue_lets_go_of_its_buffers, an_unmap_ends_all_access;
        );
    };
    (@cases $module:ident, $function:ty, $make:expr, $notify:expr;
        $($file:ident: $($case:ident),+ $(,)?;)+) => {
        mod $module {
            use super::*;

            fn bench() -> $crate::conformance::Bench<$function> {
                $crate::conformance::Bench { make: $make, notify: $notify }
            }

            $($(
                #[test]
                fn $case() {
                    $crate::conformance::$file::$case(&bench());
                }
            )+)+
        }
    };
}
