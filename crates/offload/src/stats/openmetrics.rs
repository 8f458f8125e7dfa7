//! The counts of NICs as OpenMetrics text (version 1.0), for whatever scrapes it.

use super::{NicStats, snake_case};
use crate::RecoveryStats;
use offmap_driver::{OpStats, QueueStats, TimeHistogram};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};
use std::fmt;

type Labels = Vec<(&'static str, String)>;

/// The counts of `nics`, each with the name that its samples have in the label `nic`, as one
/// OpenMetrics exposition. `docs/metrics.md` lists the metrics.
pub fn openmetrics<'a>(nics: impl IntoIterator<Item = (&'a str, &'a NicStats)>) -> String {
    let nics = nics
        .into_iter()
        .map(|(name, stats)| (name.to_owned(), stats.clone()))
        .collect();
    let mut registry = Registry::with_prefix("offmap");
    registry.register_collector(Box::new(Nics(nics)));
    let mut text = String::new();
    match encode(&mut text, &registry) {
        Ok(()) => text,
        Err(fmt::Error) => unreachable!("writing to a string does not fail"),
    }
}

#[derive(Debug)]
struct Nics(Vec<(String, NicStats)>);

impl Nics {
    fn queues(&self) -> impl Iterator<Item = (&str, &QueueStats)> {
        self.0.iter().flat_map(|(nic, stats)| {
            let queues = stats.driver.queues.iter();
            queues.map(move |queue| (nic.as_str(), queue))
        })
    }

    fn operations(&self) -> impl Iterator<Item = (Labels, &OpStats)> {
        self.queues().flat_map(|(nic, queue)| {
            queue.operations.iter().map(move |op| {
                let mut labels = of_queue(nic, queue);
                labels.push(("op", snake_case(op.opcode.name().unwrap_or("other"))));
                (labels, op)
            })
        })
    }
}

fn of_nic(nic: &str) -> Labels {
    vec![("nic", nic.to_owned())]
}

fn of_queue(nic: &str, queue: &QueueStats) -> Labels {
    vec![
        ("nic", nic.to_owned()),
        ("queue", queue.queue.0.to_string()),
    ]
}

/// Writes one metric family.
fn family<M: EncodeMetric>(
    encoder: &mut DescriptorEncoder<'_>,
    (name, help, unit): (&str, &str, Option<&Unit>),
    kind: MetricType,
    samples: impl IntoIterator<Item = (Labels, M)>,
) -> fmt::Result {
    let mut samples = samples.into_iter().peekable();
    // A family without a sample says nothing, and a histogram's would be malformed.
    if samples.peek().is_none() {
        return Ok(());
    }
    let mut metric = encoder.encode_descriptor(name, help, unit, kind)?;
    for (labels, sample) in samples {
        sample.encode(metric.encode_family(&labels)?)?;
    }
    Ok(())
}

fn counters(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    samples: impl IntoIterator<Item = (Labels, u64)>,
) -> fmt::Result {
    let samples = samples.into_iter();
    let samples = samples.map(|(labels, count)| (labels, ConstCounter::new(count)));
    family(encoder, (name, help, None), MetricType::Counter, samples)
}

/// Durations of commands of one kind.
struct Durations<'a>(&'a TimeHistogram);

impl EncodeMetric for Durations<'_> {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        let count = self.0.count();
        let mut below = 0;
        let mut buckets: Vec<(f64, u64)> = self
            .0
            .cumulative()
            .map(|(bound, within)| {
                let own = within - below;
                below = within;
                (bound.as_secs_f64(), own)
            })
            .collect();
        buckets.push((f64::INFINITY, count - below));
        let sum = self.0.sum().as_secs_f64();
        encoder.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}

/// A counter of a NIC as a whole: name, help, value.
type OfNic = (&'static str, &'static str, fn(&NicStats) -> u64);

const OF_NIC: [OfNic; 11] = [
    (
        "function_resets",
        "Resets of the function that succeeded.",
        |nic| nic.driver.resets,
    ),
    (
        "function_resets_failed",
        "Resets of the function that failed.",
        |nic| nic.driver.failed_resets,
    ),
    (
        "queue_failures",
        "Queue pairs of the NIC's pool that failed and were or will be replaced.",
        |nic| nic.recovery.queue_failures,
    ),
    (
        "recoveries",
        "Recoveries that ended with everything restored that was to be.",
        |nic| nic.recovery.recoveries,
    ),
    (
        "maps_restored",
        "Maps that were made and filled again.",
        |nic| nic.recovery.maps_restored,
    ),
    (
        "elements_restored",
        "Elements written to restored maps.",
        |nic| nic.recovery.elements_restored,
    ),
    (
        "retries",
        "Operations and map creations that were tried once more after a recovery, on any queue or none.",
        |nic| nic.recovery.retries,
    ),
    (
        "writes_unknown",
        "Writes whose outcome was unknown when their command ended.",
        |nic| nic.recovery.unknown,
    ),
    (
        "writes_resolved",
        "Writes of unknown outcome that were done once more for their callers.",
        |nic| nic.recovery.resolved,
    ),
    (
        "writes_reported_unknown",
        "Writes of unknown outcome whose callers were told so.",
        |nic| nic.recovery.reported,
    ),
    (
        "map_frees_failed",
        "Maps whose MAP_FREE the device did not confirm.",
        |nic| nic.failed_frees,
    ),
];

const EVENTS_HELP: &str = "Events of the queue; docs/metrics.md says what each is.";

impl Collector for Nics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let encoder = &mut encoder;
        counters(
            encoder,
            "queue_submitted",
            "Commands stored in the submission ring.",
            self.operations().map(|(labels, op)| (labels, op.submitted)),
        )?;
        let ended = self.operations().flat_map(|(labels, op)| {
            let named = op
                .statuses
                .iter()
                .map(|(status, count)| (status.name().unwrap_or("Other"), *count));
            let other = (op.other_statuses > 0).then_some(("Other", op.other_statuses));
            named
                .chain(other)
                .map(|(status, count)| {
                    let mut labels = labels.clone();
                    labels.push(("status", snake_case(status)));
                    (labels, count)
                })
                .collect::<Vec<_>>()
        });
        counters(
            encoder,
            "queue_completed",
            "Completions taken and accepted, by the status of the command.",
            ended,
        )?;
        counters(
            encoder,
            "queue_unanswered",
            "Commands of queue pairs that are gone whose completions were never taken.",
            self.operations()
                .map(|(labels, op)| (labels, op.unanswered)),
        )?;
        counters(
            encoder,
            "queue_retries",
            "Operations that were tried once more on the queue after a recovery.",
            self.operations().map(|(labels, op)| (labels, op.retries)),
        )?;
        let in_flight = self.operations().map(|(labels, op)| {
            let count = i64::try_from(op.in_flight()).unwrap_or(i64::MAX);
            (labels, ConstGauge::new(count))
        });
        let help = "Commands that are with the device.";
        let what = ("queue_in_flight", help, None);
        family(encoder, what, MetricType::Gauge, in_flight)?;
        let timed = self.operations().filter(|(_, op)| op.times.count() > 0);
        let timed = timed.map(|(labels, op)| (labels, Durations(&op.times)));
        let help = "Time from the ring to the taken completion, of the commands that are timed.";
        let what = ("queue_command_duration", help, Some(&Unit::Seconds));
        family(encoder, what, MetricType::Histogram, timed)?;
        let pairs = self
            .queues()
            .map(|(nic, queue)| (of_queue(nic, queue), queue.pairs));
        let help = "Queue pairs that have had the queue's id.";
        counters(encoder, "queue_pairs", help, pairs)?;
        let events = self.queues().flat_map(|(nic, queue)| {
            queue.events.named().map(move |(event, count)| {
                let mut labels = of_queue(nic, queue);
                labels.push(("event", event.to_owned()));
                (labels, count)
            })
        });
        counters(encoder, "queue_events", EVENTS_HELP, events)?;
        for (name, help, value) in OF_NIC {
            let samples = self
                .0
                .iter()
                .map(|(nic, stats)| (of_nic(nic), value(stats)));
            counters(encoder, name, help, samples)?;
        }
        let gauge = |value: fn(&RecoveryStats) -> f64| {
            self.0
                .iter()
                .map(move |(nic, stats)| (of_nic(nic), ConstGauge::new(value(&stats.recovery))))
        };
        let help = "How long the longest recovery took.";
        let what = ("recovery_longest", help, Some(&Unit::Seconds));
        family(
            encoder,
            what,
            MetricType::Gauge,
            gauge(|r| r.worst.as_secs_f64()),
        )?;
        let help = "How long the last recovery took.";
        let what = ("recovery_last", help, Some(&Unit::Seconds));
        family(
            encoder,
            what,
            MetricType::Gauge,
            gauge(|r| r.last.as_secs_f64()),
        )?;
        let help = "Host memory that journals may come to take.";
        let what = ("journal", help, Some(&Unit::Bytes));
        family(
            encoder,
            what,
            MetricType::Gauge,
            gauge(|r| r.journal_bytes as f64),
        )
    }
}
