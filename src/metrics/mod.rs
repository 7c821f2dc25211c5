//! What a pool counts, and the snapshot that users see.
//!
//! Gauges are counted from the slots when somebody asks, so they cannot drift. Totals that the hot
//! path would touch are sums over the slots; the others are atomics on cold paths.
//!
//! Not here: exporters.

use crate::core::Counts;
use std::sync::atomic::{AtomicU64, Ordering};

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

/// Totals of the cold paths.
#[derive(Default)]
pub(crate) struct Totals {
    created: AtomicU64,
    connect_failures: AtomicU64,
    timeouts: AtomicU64,
    resets: AtomicU64,
    checks: AtomicU64,
    leaks: AtomicU64,
    late_returns: AtomicU64,
    queue_full: AtomicU64,
    shed: AtomicU64,
    closed: [AtomicU64; REASONS],
}

impl Totals {
    /// Counts a connection that was opened, and answers with its number: 1 for the first.
    pub(crate) fn created(&self) -> u64 {
        self.created.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub(crate) fn connect_failed(&self) {
        self.connect_failures.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn timed_out(&self) {
        self.timeouts.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn reset(&self) {
        self.resets.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn check(&self) {
        self.checks.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn leaked(&self) {
        self.leaks.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn came_back_late(&self) {
        self.late_returns.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn queue_full(&self) {
        self.queue_full.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn shed(&self) {
        self.shed.fetch_add(1, Ordering::Relaxed);
    }

    /// Connections that the pool has closed so far; not those that were detached.
    pub(crate) fn ended(&self) -> u64 {
        let all: u64 = self.closed.iter().map(|count| count.load(Ordering::Relaxed)).sum();
        all - self.closed[CloseReason::Detached as usize].load(Ordering::Relaxed)
    }

    pub(crate) fn closed(&self, reason: CloseReason) {
        self.closed[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn snapshot(&self, counts: Counts, acquires: u64) -> PoolMetrics {
        let closed = |reason: CloseReason| self.closed[reason as usize].load(Ordering::Relaxed);
        PoolMetrics {
            counts,
            acquires,
            created: self.created.load(Ordering::Relaxed),
            connect_failures: self.connect_failures.load(Ordering::Relaxed),
            timeouts: self.timeouts.load(Ordering::Relaxed),
            resets: self.resets.load(Ordering::Relaxed),
            checks: self.checks.load(Ordering::Relaxed),
            leaks: self.leaks.load(Ordering::Relaxed),
            late_returns: self.late_returns.load(Ordering::Relaxed),
            queue_full: self.queue_full.load(Ordering::Relaxed),
            shed: self.shed.load(Ordering::Relaxed),
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
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PoolMetrics {
    /// Connections by state, and waiters.
    pub counts: Counts,
    /// Acquires that got a connection.
    pub acquires: u64,
    /// Connections opened.
    pub created: u64,
    /// Attempts to connect that failed, timed out or panicked.
    pub connect_failures: u64,
    /// Acquires that ran into their deadline.
    pub timeouts: u64,
    /// Resets that succeeded.
    pub resets: u64,
    /// Checks, by acquires and to keep connections alive, whether they succeeded or not.
    pub checks: u64,
    /// Connections that were held for longer than `leak_after`.
    pub leaks: u64,
    /// Those of them that came back after all.
    pub late_returns: u64,
    /// Acquires that were turned away because `max_waiters` waited.
    pub queue_full: u64,
    /// Acquires that were [turned away](crate::Shed) because they had waited too long, or would have
    /// been.
    pub shed: u64,
    /// Connections that the pool let go of, by reason.
    pub closed: Closed,
}

/// Connections that a pool let go of, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Closed {
    /// The manager called it broken when it was released.
    pub broken: u64,
    /// Its check failed.
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
    /// A check or reset was abandoned: its caller gave up, or its runtime ended.
    pub abandoned: u64,
    /// It had reached its lifetime.
    pub lifetime: u64,
    /// It had not been needed for `idle_timeout`.
    pub idle: u64,
    /// It was older than the last [`invalidate`](crate::Pool::invalidate) or
    /// [`rotate`](crate::Pool::rotate).
    pub invalidated: u64,
    /// The pool was made smaller.
    pub surplus: u64,
    /// [`retain`](crate::Pool::retain) did not want it.
    pub removed: u64,
    /// A [hook](crate::Hooks) rejected it or panicked.
    pub rejected: u64,
}

impl Closed {
    /// The sum over all reasons.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.broken
            + self.failed_check
            + self.failed_reset
            + self.discarded
            + self.detached
            + self.holder_panicked
            + self.pool_closed
            + self.drained
            + self.abandoned
            + self.lifetime
            + self.idle
            + self.invalidated
            + self.surplus
            + self.removed
            + self.rejected
    }
}
