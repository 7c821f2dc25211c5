//! What a pool counts, and the snapshot that users see.
//!
//! Gauges are counted from the slots when somebody asks, so they cannot drift. Totals that the hot
//! path would touch are sums over the slots; the others are atomics on cold paths.
//!
//! Not here: exporters.

mod histogram;
mod monitor;
#[cfg(feature = "serde")]
mod serialize;
mod status;

pub use self::histogram::Histogram;
#[cfg(all(test, any(feature = "metrics", feature = "opentelemetry")))]
pub(crate) use self::histogram::of as histogram_of;
#[cfg(feature = "axum")]
pub(crate) use self::monitor::Report;
#[cfg(any(feature = "metrics", feature = "opentelemetry", feature = "axum"))]
pub(crate) use self::monitor::SourceId;
#[cfg(any(feature = "metrics", feature = "opentelemetry"))]
pub(crate) use self::monitor::look_at;
#[cfg(feature = "cluster")]
pub(crate) use self::monitor::watched;
pub use self::monitor::{DuplicateName, Group, Monitor, Source};
#[cfg(all(feature = "serde", feature = "cluster"))]
pub(crate) use self::serialize::read_role;
pub use self::status::{ClusterNode, Health, PoolStatus, Role};
pub(crate) use self::status::{Connecting, Failing, InVain, Signs};
#[cfg(feature = "cluster")]
pub(crate) use self::status::{OneLine, health, write_line};

use self::histogram::Recorder;
use crate::core::Counts;
use crate::pool::Holder;
use crate::sync::thread_number;
use crossbeam_utils::CachePadded;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Why the pool let go of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CloseReason {
    Broken,
    FailedCheck,
    FailedReset,
    Discarded,
    Detached,
    HolderPanicked,
    PoolClosed,
    Drained,
    Abandoned,
    Lifetime,
    Idle,
    Invalidated,
    Surplus,
    Removed,
    Rejected,
}

const REASONS: usize = CloseReason::Rejected as usize + 1;

/// How an acquire that had to wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Served,
    TimedOut,
    Cancelled,
    Shed,
    Closed,
    QueueFull,
    Failed,
}

const OUTCOMES: usize = Outcome::Failed as usize + 1;

/// Acquires that had to wait, by how they ended. Under load there are as many of them as there are
/// acquires, so threads that wait at the same time count in different places.
struct Waited {
    /// Those that were served.
    times: Recorder,
    /// The others.
    fruitless: [AtomicU64; OUTCOMES],
}

impl Waited {
    fn new() -> Self {
        Self { times: Recorder::new(), fruitless: std::array::from_fn(|_| AtomicU64::new(0)) }
    }
}

/// Each takes some 5 KiB.
const MOST_GROUPS: usize = 4;

/// Totals of the cold paths.
pub(crate) struct Totals {
    created: AtomicU64,
    connect_failures: AtomicU64,
    resets: AtomicU64,
    checks: AtomicU64,
    /// Those that have ended, and what else is done to a connection before its use.
    trials: AtomicU64,
    leaks: AtomicU64,
    late_returns: AtomicU64,
    /// Those that would have been; those that were are among the `waits`.
    would_be_shed: AtomicU64,
    closed: [AtomicU64; REASONS],
    /// One for each group of threads.
    waits: Box<[CachePadded<Waited>]>,
    connect_times: Recorder,
    lifetimes: Recorder,
    use_times: Option<Recorder>,
}

impl Totals {
    /// For a pool in so many shards, a power of two.
    pub(crate) fn new(shards: usize, times_use: bool) -> Self {
        let zero = || AtomicU64::new(0);
        Self {
            created: zero(),
            connect_failures: zero(),
            resets: zero(),
            checks: zero(),
            trials: zero(),
            leaks: zero(),
            late_returns: zero(),
            would_be_shed: zero(),
            closed: std::array::from_fn(|_| zero()),
            waits: (0..shards.min(MOST_GROUPS)).map(|_| Waited::new().into()).collect(),
            connect_times: Recorder::new(),
            lifetimes: Recorder::new(),
            use_times: times_use.then(Recorder::new),
        }
    }

    /// An acquire that had to wait has ended, after so many nanoseconds.
    pub(crate) fn waited(&self, outcome: Outcome, nanos: u64) {
        let waits = &self.waits[thread_number() & (self.waits.len() - 1)];
        match outcome {
            Outcome::Served => waits.times.record(nanos),
            _ => _ = waits.fruitless[outcome as usize].fetch_add(1, Ordering::Relaxed),
        }
    }

    /// A connection was opened within so many nanoseconds.
    pub(crate) fn connected(&self, nanos: u64) {
        self.connect_times.record(nanos);
    }

    /// A connection ends that has been alive for so many nanoseconds.
    pub(crate) fn lived(&self, nanos: u64) {
        self.lifetimes.record(nanos);
    }

    /// A connection comes back that has been in use for so many nanoseconds.
    pub(crate) fn used(&self, nanos: u64) {
        if let Some(times) = &self.use_times {
            times.record(nanos);
        }
    }

    /// Counts a connection that was opened, and answers with its number: 1 for the first.
    pub(crate) fn created(&self) -> u64 {
        self.created.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub(crate) fn opened(&self) -> u64 {
        self.created.load(Ordering::Relaxed)
    }

    pub(crate) fn connect_failed(&self) {
        self.connect_failures.fetch_add(1, Ordering::Relaxed);
    }

    /// How many connects, resets and checks have succeeded or failed.
    #[cfg(feature = "cluster")]
    pub(crate) fn answers(&self) -> u64 {
        let failed_resets = &self.closed[CloseReason::FailedReset as usize];
        let connects = [&self.created, &self.connect_failures];
        let all = connects.into_iter().chain([&self.resets, failed_resets, &self.trials]);
        all.map(|count| count.load(Ordering::Relaxed)).sum()
    }

    pub(crate) fn reset(&self) {
        self.resets.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn check(&self) {
        self.checks.fetch_add(1, Ordering::Relaxed);
    }

    /// A check, or what else is done to a connection before its use, has succeeded or failed.
    pub(crate) fn tried(&self) {
        self.trials.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn leaked(&self) {
        self.leaks.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn came_back_late(&self) {
        self.late_returns.fetch_add(1, Ordering::Relaxed);
    }

    /// An acquire has been served that would have been turned away, but for `report_only`.
    pub(crate) fn would_be_shed(&self) {
        self.would_be_shed.fetch_add(1, Ordering::Relaxed);
    }

    /// Connections that the pool has closed so far; not those that were detached.
    pub(crate) fn ended(&self) -> u64 {
        let counts = self.closed.iter().enumerate();
        let ended = counts.filter(|(reason, _)| *reason != CloseReason::Detached as usize);
        ended.map(|(_, count)| count.load(Ordering::Relaxed)).sum()
    }

    pub(crate) fn closed(&self, reason: CloseReason) {
        self.closed[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn snapshot(
        &self,
        counts: Counts,
        acquires: u64,
        oldest_holder: Option<Holder>,
        last_connect_error: Option<ConnectFailure>,
    ) -> PoolMetrics {
        let closed = |reason: CloseReason| self.closed[reason as usize].load(Ordering::Relaxed);
        let waits = |outcome: Outcome| {
            let count = |waited: &CachePadded<Waited>| {
                waited.fruitless[outcome as usize].load(Ordering::Relaxed)
            };
            self.waits.iter().map(count).sum()
        };
        let mut acquire_wait = Histogram::default();
        self.waits.iter().for_each(|waited| acquire_wait.merge(&waited.times.snapshot()));
        let served = acquire_wait.count();
        // All others had not to wait.
        acquire_wait.add_zeros(acquires.saturating_sub(served));
        PoolMetrics {
            counts,
            acquires,
            waits: Waits {
                served,
                timed_out: waits(Outcome::TimedOut),
                cancelled: waits(Outcome::Cancelled),
                shed: waits(Outcome::Shed),
                closed: waits(Outcome::Closed),
                queue_full: waits(Outcome::QueueFull),
                failed: waits(Outcome::Failed),
            },
            oldest_holder,
            last_connect_error,
            acquire_wait,
            connect_time: self.connect_times.snapshot(),
            lifetime: self.lifetimes.snapshot(),
            use_time: self.use_times.as_ref().map(Recorder::snapshot),
            created: self.created.load(Ordering::Relaxed),
            connect_failures: self.connect_failures.load(Ordering::Relaxed),
            resets: self.resets.load(Ordering::Relaxed),
            checks: self.checks.load(Ordering::Relaxed),
            leaks: self.leaks.load(Ordering::Relaxed),
            late_returns: self.late_returns.load(Ordering::Relaxed),
            shed: waits(Outcome::Shed) + self.would_be_shed.load(Ordering::Relaxed),
            closed: Closed {
                broken: closed(CloseReason::Broken),
                failed_check: closed(CloseReason::FailedCheck),
                failed_reset: closed(CloseReason::FailedReset),
                discarded: closed(CloseReason::Discarded),
                detached: closed(CloseReason::Detached),
                holder_panicked: closed(CloseReason::HolderPanicked),
                pool_closed: closed(CloseReason::PoolClosed),
                drained: closed(CloseReason::Drained),
                abandoned: closed(CloseReason::Abandoned),
                lifetime: closed(CloseReason::Lifetime),
                idle: closed(CloseReason::Idle),
                invalidated: closed(CloseReason::Invalidated),
                surplus: closed(CloseReason::Surplus),
                removed: closed(CloseReason::Removed),
                rejected: closed(CloseReason::Rejected),
            },
        }
    }
}

/// A pool's figures at one moment.
///
/// The counts add up to the capacity. At rest, `created` is [`Closed::total`] plus
/// [`Counts::alive`]; under load the figures come from moments close together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct PoolMetrics {
    /// Connections by state, and waiters.
    pub counts: Counts,
    /// Acquires that got a connection. What a cluster does to ask a server for its role, or whether it is
    /// back, counts as one.
    pub acquires: u64,
    /// Acquires that had to wait, by how they ended.
    pub waits: Waits,
    /// How long acquires waited that got a connection; those that found one idle, for no time at all.
    pub acquire_wait: Histogram,
    /// Connections opened.
    pub created: u64,
    /// Attempts to connect that failed, timed out or panicked.
    pub connect_failures: u64,
    /// How long those took that succeeded, set-up included.
    pub connect_time: Histogram,
    /// The last one that failed, also if others have succeeded since; or what
    /// [`before_acquire`](crate::Hooks::before_acquire) or [`on_checkout`](crate::Hooks::on_checkout) has said since
    /// then of a new connection that it rejected, or that one was [lost](crate::OperationError::Lost) at once, neither
    /// of which is one of the `connect_failures`.
    pub last_connect_error: Option<ConnectFailure>,
    /// Resets that succeeded.
    pub resets: u64,
    /// Checks, by acquires and to keep connections alive, whether they succeeded or not.
    pub checks: u64,
    /// Connections that were held for longer than `leak_after`.
    pub leaks: u64,
    /// Those of them that came back after all, or were detached, while the pool was open.
    pub late_returns: u64,
    /// Acquires that were [turned away](crate::Shed) because they had waited too long, or would have
    /// been. One that may go to several nodes of a cluster counts once, as it ends.
    pub shed: u64,
    /// Connections that the pool let go of, by reason.
    pub closed: Closed,
    /// How old they were then.
    pub lifetime: Histogram,
    /// How long connections were in use each time, if the pool [measures](crate::Config::time_use) that.
    pub use_time: Option<Histogram>,
    /// Who has held a connection for longest: at least for so long, to the resolution of `maintenance_interval`. Of
    /// several who have for the same time, the one whose connection has the smallest number.
    pub oldest_holder: Option<Holder>,
}

impl PoolMetrics {
    /// Adds the figures of another pool. Of the holders and of the failures to connect it keeps the
    /// oldest and the latest.
    pub fn merge(&mut self, other: &Self) {
        let Self {
            counts,
            acquires,
            waits,
            acquire_wait,
            created,
            connect_failures,
            connect_time,
            last_connect_error,
            resets,
            checks,
            leaks,
            late_returns,
            shed,
            closed,
            lifetime,
            use_time,
            oldest_holder,
        } = self;
        let (mine, others) = (oldest_holder.take(), other.oldest_holder);
        *oldest_holder = mine.into_iter().chain(others).max_by_key(Holder::seniority);
        let (mine, others) = (last_connect_error.take(), other.last_connect_error.clone());
        *last_connect_error = mine.into_iter().chain(others).min_by_key(|error| error.ago);
        if let Some(times) = &other.use_time {
            use_time.get_or_insert_default().merge(times);
        }
        counts.merge(&other.counts);
        waits.merge(&other.waits);
        closed.merge(&other.closed);
        acquire_wait.merge(&other.acquire_wait);
        connect_time.merge(&other.connect_time);
        lifetime.merge(&other.lifetime);
        *acquires += other.acquires;
        *created += other.created;
        *connect_failures += other.connect_failures;
        *resets += other.resets;
        *checks += other.checks;
        *leaks += other.leaks;
        *late_returns += other.late_returns;
        *shed += other.shed;
    }
}

/// Acquires that had to wait, by how they ended.
///
/// One that found a connection idle and fit for use is not among them, nor is a `try_acquire`, nor what a
/// cluster does to ask a server for its role, or whether it is back. One that may go to several nodes of a
/// cluster is counted at one of them, however many refuse it: at that which serves it, or else where it has
/// waited first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Waits {
    /// They got a connection.
    pub served: u64,
    /// They ran into their deadline.
    pub timed_out: u64,
    /// Their caller gave up.
    pub cancelled: u64,
    /// They were [turned away](crate::Shed) because they had waited too long.
    pub shed: u64,
    /// The pool was closed or drained, before or meanwhile.
    pub closed: u64,
    /// They were turned away at once, because `max_waiters` waited.
    pub queue_full: u64,
    /// Connecting failed for good, or waiting was pointless for another reason.
    pub failed: u64,
}

impl Waits {
    fn merge(&mut self, other: &Self) {
        let Self { served, timed_out, cancelled, shed, closed, queue_full, failed } = self;
        *served += other.served;
        *timed_out += other.timed_out;
        *cancelled += other.cancelled;
        *shed += other.shed;
        *closed += other.closed;
        *queue_full += other.queue_full;
        *failed += other.failed;
    }

    /// The sum over all outcomes.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.failures() + self.served
    }

    /// Those that got no connection, for whatever reason.
    #[must_use]
    pub fn failures(&self) -> u64 {
        let Self { served: _, timed_out, cancelled, shed, closed, queue_full, failed } = self;
        timed_out + cancelled + shed + closed + queue_full + failed
    }

    /// The name of each outcome with its count, in the order of the fields.
    pub fn by_outcome(&self) -> impl Iterator<Item = (&'static str, u64)> + use<> {
        [
            ("served", self.served),
            ("timed_out", self.timed_out),
            ("cancelled", self.cancelled),
            ("shed", self.shed),
            ("closed", self.closed),
            ("queue_full", self.queue_full),
            ("failed", self.failed),
        ]
        .into_iter()
    }
}

/// A failure to connect, or a hook's rejection of a new connection, or its loss.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConnectFailure {
    /// What went wrong, with all causes; what several of them say is said once. If it was a hook, its name comes
    /// before that; and before all, unless that names it already, the manager's [target](crate::Manager::target).
    pub message: String,
    /// How long ago that was.
    pub ago: Duration,
}

/// Connections that a pool let go of, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Closed {
    /// The manager called it broken when it was released.
    pub broken: u64,
    /// Its check failed, or its verification for a [`rotate`](crate::Pool::rotate), which is none of the
    /// [`checks`](PoolMetrics::checks).
    pub failed_check: u64,
    /// Its reset failed.
    pub failed_reset: u64,
    /// Its holder discarded it.
    pub discarded: u64,
    /// Its holder took it out of the pool; it lives on elsewhere.
    pub detached: u64,
    /// Its holder panicked.
    pub holder_panicked: u64,
    /// The pool was closed.
    pub pool_closed: u64,
    /// The pool was drained.
    pub drained: u64,
    /// What was done to it was abandoned half-way: a check, a reset, [`before_acquire`](crate::Hooks::before_acquire)
    /// or the verification for a [`rotate`](crate::Pool::rotate) was dropped, since its caller gave up or its runtime
    /// ended; or the closure of a [`retain`](crate::Pool::retain) panicked.
    pub abandoned: u64,
    /// It had reached its lifetime.
    pub lifetime: u64,
    /// It had not been needed for `idle_timeout`.
    pub idle: u64,
    /// It was older than the last [`invalidate`](crate::Pool::invalidate) or
    /// [`rotate`](crate::Pool::rotate), or made room for a `rotate`, whatever came of that; or it came back
    /// [outdated](crate::Condition::Outdated), or another one did that was as old.
    pub invalidated: u64,
    /// The pool was made smaller.
    pub surplus: u64,
    /// [`retain`](crate::Pool::retain) did not want it.
    pub removed: u64,
    /// A [hook](crate::Hooks) rejected it or panicked.
    pub rejected: u64,
}

impl Closed {
    fn merge(&mut self, other: &Self) {
        let Self {
            broken,
            failed_check,
            failed_reset,
            discarded,
            detached,
            holder_panicked,
            pool_closed,
            drained,
            abandoned,
            lifetime,
            idle,
            invalidated,
            surplus,
            removed,
            rejected,
        } = self;
        *broken += other.broken;
        *failed_check += other.failed_check;
        *failed_reset += other.failed_reset;
        *discarded += other.discarded;
        *detached += other.detached;
        *holder_panicked += other.holder_panicked;
        *pool_closed += other.pool_closed;
        *drained += other.drained;
        *abandoned += other.abandoned;
        *lifetime += other.lifetime;
        *idle += other.idle;
        *invalidated += other.invalidated;
        *surplus += other.surplus;
        *removed += other.removed;
        *rejected += other.rejected;
    }

    /// The sum over all reasons.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.by_reason().map(|(_, count)| count).sum()
    }

    /// The name of each reason with its count, in the order of the fields.
    pub fn by_reason(&self) -> impl Iterator<Item = (&'static str, u64)> + use<> {
        [
            ("broken", self.broken),
            ("failed_check", self.failed_check),
            ("failed_reset", self.failed_reset),
            ("discarded", self.discarded),
            ("detached", self.detached),
            ("holder_panicked", self.holder_panicked),
            ("pool_closed", self.pool_closed),
            ("drained", self.drained),
            ("abandoned", self.abandoned),
            ("lifetime", self.lifetime),
            ("idle", self.idle),
            ("invalidated", self.invalidated),
            ("surplus", self.surplus),
            ("removed", self.removed),
            ("rejected", self.rejected),
        ]
        .into_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A different figure in each field, from `first` on.
    fn metrics(first: u64) -> PoolMetrics {
        let mut next = first..;
        let mut next = || next.next().expect("there is no end to them");
        let counts = Counts {
            vacant: next() as usize,
            connecting: next() as usize,
            idle: next() as usize,
            in_use: next() as usize,
            checking: next() as usize,
            resetting: next() as usize,
            closing: next() as usize,
            spare: next() as usize,
            waiters: next() as usize,
        };
        let waits = Waits {
            served: next(),
            timed_out: next(),
            cancelled: next(),
            shed: next(),
            closed: next(),
            queue_full: next(),
            failed: next(),
        };
        let closed = Closed {
            broken: next(),
            failed_check: next(),
            failed_reset: next(),
            discarded: next(),
            detached: next(),
            holder_panicked: next(),
            pool_closed: next(),
            drained: next(),
            abandoned: next(),
            lifetime: next(),
            idle: next(),
            invalidated: next(),
            surplus: next(),
            removed: next(),
            rejected: next(),
        };
        PoolMetrics {
            counts,
            waits,
            closed,
            acquires: next(),
            acquire_wait: histogram::of(&[next()]),
            created: next(),
            connect_failures: next(),
            connect_time: histogram::of(&[next()]),
            last_connect_error: Some(ConnectFailure {
                message: format!("from {first} on"),
                ago: Duration::from_secs(next()),
            }),
            resets: next(),
            checks: next(),
            leaks: next(),
            late_returns: next(),
            shed: next(),
            lifetime: histogram::of(&[next()]),
            use_time: Some(histogram::of(&[next()])),
            oldest_holder: Some(Holder {
                connection: next(),
                site: None,
                held: Duration::from_secs(next()),
            }),
        }
    }

    /// Exporters tell these, and so do dashboards.
    #[test]
    fn each_outcome_and_each_reason_has_its_own_name() {
        let PoolMetrics { waits, closed, .. } = metrics(1);
        let outcomes: Vec<_> = waits.by_outcome().collect();
        let expected = [
            ("served", 10),
            ("timed_out", 11),
            ("cancelled", 12),
            ("shed", 13),
            ("closed", 14),
            ("queue_full", 15),
            ("failed", 16),
        ];
        assert_eq!(outcomes, expected);
        let reasons: Vec<_> = closed.by_reason().collect();
        let expected = [
            ("broken", 17),
            ("failed_check", 18),
            ("failed_reset", 19),
            ("discarded", 20),
            ("detached", 21),
            ("holder_panicked", 22),
            ("pool_closed", 23),
            ("drained", 24),
            ("abandoned", 25),
            ("lifetime", 26),
            ("idle", 27),
            ("invalidated", 28),
            ("surplus", 29),
            ("removed", 30),
            ("rejected", 31),
        ];
        assert_eq!(reasons, expected);
    }

    #[test]
    fn all_figures_of_two_pools_are_added() {
        let (one, other) = (metrics(1), metrics(1_000));
        let mut sum = one.clone();
        sum.merge(&other);
        // In the order of `metrics`: the sums of two rows are a row of twice the steps.
        let mut next = (0..).map(|step| 1_001 + 2 * step);
        let mut next = || next.next().expect("there is no end to them");
        let counts = sum.counts;
        let counts = [
            counts.vacant,
            counts.connecting,
            counts.idle,
            counts.in_use,
            counts.checking,
            counts.resetting,
            counts.closing,
            counts.spare,
            counts.waiters,
        ];
        for count in counts {
            assert_eq!(count as u64, next());
        }
        for (name, count) in sum.waits.by_outcome().chain(sum.closed.by_reason()) {
            assert_eq!(count, next(), "{name}");
        }
        let times: [fn(&PoolMetrics) -> Option<&Histogram>; 4] = [
            |metrics| Some(&metrics.acquire_wait),
            |metrics| Some(&metrics.connect_time),
            |metrics| Some(&metrics.lifetime),
            |metrics| metrics.use_time.as_ref(),
        ];
        for of in times {
            let (mut times, more) = (of(&one).cloned(), of(&other));
            let (mine, others) = times.as_mut().zip(more).expect("they are measured");
            mine.merge(others);
            assert_eq!(of(&sum), times.as_ref());
        }
        let plain = |metrics: &PoolMetrics| {
            let PoolMetrics { created, connect_failures, resets, checks, .. } = *metrics;
            let PoolMetrics { acquires, leaks, late_returns, shed, .. } = *metrics;
            [acquires, created, connect_failures, resets, checks, leaks, late_returns, shed]
        };
        let expected: Vec<_> =
            plain(&one).iter().zip(plain(&other)).map(|(one, other)| one + other).collect();
        assert_eq!(plain(&sum), *expected);
        assert_eq!(sum.last_connect_error, one.last_connect_error, "the latest");
        assert_eq!(sum.oldest_holder, other.oldest_holder, "the oldest");
    }
}
