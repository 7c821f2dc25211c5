//! What is known of a session with the server, without asking it.
//!
//! The [`Tap`](super::tap::Tap) reads along and writes what it sees into the [`Session`]; the
//! [`Driver`](super::driver::Driver), which runs the connection, adds whether there is anything that it
//! has not written yet. A release reads that with four loads.
//!
//! # Calls
//!
//! | | who | |
//! |---|---|---|
//! | `calls` | the connection's wakers: the engine for who asks, the session for what arrives | counts how often the driver has been told to run |
//! | `served` | the driver | how many of them there had been when it began its last run; `RUNNING` while it runs |
//! | `arrived` | the session, as the socket's waker | says that there may be something to read, until the tap has looked |
//!
//! Whoever asks for something puts it into the driver's queue first and calls second; a run reads
//! `calls` first and empties the queue second. So while both are the same, nothing is in the queue that
//! was asked for before. (One asker is not counted: the second of two at the same moment, who finds that
//! the first has taken the waker and has still to call. That takes nanoseconds, or as long as the first is
//! preempted there; and it may be a stranger, such as the last `Row` of an earlier holder, whose statement
//! ends where it is dropped. To be missed, the second would have to give up at once what it asks for, and
//! release within that time.)
//!
//! Not here: what is done about it (`mod.rs`), and what the bytes mean (`tap.rs`).

use crate::sync::{
    AtomicBool, AtomicU8, AtomicU32, AtomicU64, Mutex, MutexGuard, OnceLock, Ordering, fence,
};
use event_listener::{Event, IntoNotification, listener};
use std::sync::{Arc, PoisonError};
use std::task::{Wake, Waker};

/// What is known of a session.
pub(super) struct Session {
    calls: AtomicU64,
    /// Also [`RUNNING`], or [`ENDED`] for good.
    served: AtomicU64,
    /// Wakes the driver's task; there is none before its first run.
    task: OnceLock<Waker>,
    /// The socket has called since the tap looked last.
    arrived: AtomicBool,
    /// Requests that the server has not answered in full.
    unanswered: AtomicU32,
    /// Requests so far that may have changed something.
    requests: AtomicU64,
    /// Answers that have ended.
    answers: AtomicU64,
    /// The status that the last of them ended with, as in the protocol; 0 before the first.
    status: AtomicU8,
    /// The server takes no writes: [`NO`], [`YES`], or 0 if it has not said so.
    standby: AtomicU8,
    /// New transactions take none, unless they say so; in the same way.
    read_only: AtomicU8,
    /// Nobody may use the connection again: see `tap.rs`.
    is_lost: AtomicBool,
    /// An answer may come that the driver does not know of: see `tap.rs`.
    in_doubt: AtomicBool,
    /// Somebody waits until the session is quiet.
    watched: AtomicBool,
    quiet: Event,
    /// What is to be done when the driver has ended.
    last_will: Mutex<Option<Will>>,
}

type Will = Box<dyn FnOnce() + Send>;

const RUNNING: u64 = u64::MAX;
const ENDED: u64 = u64::MAX - 1;

const NO: u8 = 1;
const YES: u8 = 2;

impl Session {
    /// A session whose driver has still to run for the first time.
    pub(super) fn new() -> Self {
        Self {
            calls: AtomicU64::new(1),
            served: AtomicU64::new(0),
            task: OnceLock::new(),
            arrived: AtomicBool::new(false),
            unanswered: AtomicU32::new(0),
            requests: AtomicU64::new(0),
            answers: AtomicU64::new(0),
            status: AtomicU8::new(0),
            standby: AtomicU8::new(0),
            read_only: AtomicU8::new(0),
            is_lost: AtomicBool::new(false),
            in_doubt: AtomicBool::new(false),
            watched: AtomicBool::new(false),
            quiet: Event::new(),
            last_will: Mutex::new(None),
        }
    }

    /// Whether the driver has seen everything that has been asked for, and neither runs nor is to.
    #[inline]
    pub(super) fn rests(&self) -> bool {
        // Ordering: Acquire, partner: `end_run`. What that run has published is seen by whoever sees
        // that it is over; without it an open transaction would pass for none.
        let served = self.served.load(Ordering::Acquire);
        // Relaxed: the calls that the caller has made, or knows of, are counted in what it reads.
        served == self.calls.load(Ordering::Relaxed) || served == ENDED
    }

    /// Whether nothing is on its way: every request has been written, and its answer has ended.
    #[inline]
    pub(super) fn is_quiet(&self) -> bool {
        // Ordering: Acquire, partner: `publish_unanswered`. Whoever sees that an answer has ended sees
        // the status that it ended with.
        self.rests() && self.unanswered.load(Ordering::Acquire) == 0
    }

    /// Has something done once the driver has ended: at once if it has.
    pub(super) fn when_ended(&self, last_will: impl FnOnce() + Send + 'static) {
        let mut place = self.last_will();
        // Ordering: Relaxed; `end` says so before it takes the lock.
        if self.served.load(Ordering::Relaxed) != ENDED {
            *place = Some(Box::new(last_will));
            return;
        }
        drop(place);
        last_will();
    }

    fn last_will(&self) -> MutexGuard<'_, Option<Will>> {
        self.last_will.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many answers have still to end, as of late.
    #[inline]
    pub(super) fn unanswered(&self) -> u32 {
        self.unanswered.load(Ordering::Relaxed)
    }

    /// How many answers have ended.
    pub(super) fn answers(&self) -> u64 {
        self.answers.load(Ordering::Relaxed)
    }

    /// Whether a transaction is open, failed ones included. Says nothing unless the session is quiet.
    #[inline]
    pub(super) fn in_transaction(&self) -> bool {
        matches!(self.status.load(Ordering::Relaxed), b'T' | b'E')
    }

    /// Whether nobody may use the connection again.
    #[inline]
    pub(super) fn is_lost(&self) -> bool {
        self.is_lost.load(Ordering::Relaxed)
    }

    /// Whether an answer may come that the driver does not know of, and would give to whoever asks next.
    #[inline]
    pub(super) fn is_in_doubt(&self) -> bool {
        self.in_doubt.load(Ordering::Relaxed)
    }

    /// A question has had the answer that belongs to it, so that no other one is on its way.
    pub(super) fn trust(&self) {
        self.in_doubt.store(false, Ordering::Relaxed);
    }

    /// How many requests there have been that may have changed something.
    #[inline]
    pub(super) fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Whether the server takes writes, if it has said so: it does from PostgreSQL 14 on.
    pub(super) fn is_writable(&self) -> Option<bool> {
        let standby = self.standby.load(Ordering::Relaxed);
        let read_only = self.read_only.load(Ordering::Relaxed);
        match (standby, read_only) {
            (YES, _) | (_, YES) => Some(false),
            (NO, NO) => Some(true),
            _ => None,
        }
    }

    /// Waits until nothing is on its way. The connection may have ended then.
    pub(super) async fn until_quiet(&self) {
        while !self.is_quiet() {
            listener!(self.quiet => quiet);
            // Ordering: Release, partner: `announce`, which finds the listener if it sees this.
            self.watched.store(true, Ordering::Release);
            // The run that follows sees it, so that no other one has to look twice.
            self.call_driver();
            // Its end is told to those who listen by then.
            if self.served.load(Ordering::Acquire) == ENDED {
                return;
            }
            // Cancel: somebody is told of it who does not listen any more.
            quiet.await;
        }
    }

    /// Calls the driver, and has its task run.
    pub(super) fn call_driver(&self) {
        self.call();
        // Ordering: SeqCst, partner: `run_in`. Either the task is seen here, or its first run, which is
        // still to come, counts this call.
        fence(Ordering::SeqCst);
        self.wake_task();
    }

    /// Has the driver's task run, which has been called.
    #[inline]
    pub(super) fn wake_task(&self) {
        if let Some(task) = self.task.get() {
            task.wake_by_ref();
        }
    }
}

/// What is woken by the socket: wakes the driver's task, and counts that first.
impl Wake for Session {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // Ordering: Release, partner: `has_arrived`. Before the call, so that a run which counts the call reads
        // what has arrived.
        self.arrived.store(true, Ordering::Release);
        self.call();
        // There is one: only the driver's runs hand this waker out.
        self.wake_task();
    }
}

/// What the driver says.
impl Session {
    /// The driver is about to run, and its task is this one, as it is all its life.
    #[inline]
    pub(super) fn run_in(&self, task: &Waker) {
        if self.has_begun() {
            return;
        }
        let first = self.task.set(task.clone());
        debug_assert!(first.is_ok(), "BUG: a driver has two tasks");
        // Ordering: SeqCst, partner: `call_driver`.
        fence(Ordering::SeqCst);
    }

    /// Whether the driver's task has run it.
    #[inline]
    pub(super) fn has_begun(&self) -> bool {
        self.task.get().is_some()
    }

    /// The driver is to run: something has been asked for, or has arrived.
    #[inline]
    pub(super) fn call(&self) {
        // Ordering: Release, partner: `begin_run`. A run that counts this call has still to register its
        // waker, and so finds what was asked for before it. (No model fails without it: loom knows no
        // load that answers with what is still to be written.)
        self.calls.fetch_add(1, Ordering::Release);
    }

    /// The driver runs; `end_run` wants what this answers with.
    #[inline]
    pub(super) fn begin_run(&self) -> u64 {
        self.served.store(RUNNING, Ordering::Relaxed);
        // Ordering: Release, partner: the waker that this run is about to register somewhere. Whoever
        // finds it half registered leaves the call to this run, and must see that it runs.
        fence(Ordering::Release);
        // Ordering: Acquire, partner: `call`.
        self.calls.load(Ordering::Acquire)
    }

    /// The run is over that has served so many calls.
    #[inline]
    pub(super) fn end_run(&self, calls: u64) {
        // Ordering: Release, partner: `rests`.
        self.served.store(calls, Ordering::Release);
        self.announce();
    }

    /// The driver will not run again.
    pub(super) fn end(&self) {
        // Whoever waits must not wait for answers that will never come.
        self.publish_unanswered(0);
        self.served.store(ENDED, Ordering::Release);
        // `until_quiet` listens first and looks for the end second.
        self.quiet.notify(usize::MAX.additional());
        // Not under the lock: it ends connections.
        let last_will = self.last_will().take();
        if let Some(last_will) = last_will {
            last_will();
        }
    }

    #[inline]
    fn announce(&self) {
        // Ordering: Relaxed, since whoever watches has called, and the run that sees the call sees that
        // too. The swap: Acquire, partner: the store in `until_quiet`.
        if self.watched.load(Ordering::Relaxed)
            && self.is_quiet()
            && self.watched.swap(false, Ordering::Acquire)
        {
            self.quiet.notify(usize::MAX.additional());
        }
    }
}

/// What the tap has read.
impl Session {
    /// Whether the socket has called since the last time that this said so.
    #[inline]
    pub(super) fn has_arrived(&self) -> bool {
        // Ordering: Acquire, partner: the socket's waker. What it was called for is found by whoever reads after
        // this; a call that comes meanwhile is left for the next time.
        self.arrived.load(Ordering::Relaxed) && self.arrived.swap(false, Ordering::Acquire)
    }

    /// So many requests have not been answered. What else the same bytes say is set before.
    #[inline]
    pub(super) fn publish_unanswered(&self, count: u32) {
        // Ordering: Release, partner: `is_quiet`.
        self.unanswered.store(count, Ordering::Release);
    }

    /// One request more that may have changed something.
    #[inline]
    pub(super) fn count_request(&self) {
        // Nobody else writes it.
        self.requests.store(self.requests.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }

    /// An answer has ended with this status.
    #[inline]
    pub(super) fn answered(&self, status: u8) {
        self.status.store(status, Ordering::Relaxed);
        // Nobody else writes it.
        self.answers.store(self.answers.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }

    /// The driver and the server do not agree any more: on which answer is the next, or on which
    /// statements there are.
    pub(super) fn lose(&self) {
        self.is_lost.store(true, Ordering::Relaxed);
    }

    /// An answer may come that the driver does not know of.
    pub(super) fn doubt(&self) {
        self.in_doubt.store(true, Ordering::Relaxed);
    }

    /// The server says whether it takes no writes at all.
    pub(super) fn set_standby(&self, on: bool) {
        self.standby.store(if on { YES } else { NO }, Ordering::Relaxed);
    }

    /// The server says whether new transactions take none.
    pub(super) fn set_read_only(&self, on: bool) {
        self.read_only.store(if on { YES } else { NO }, Ordering::Relaxed);
    }

    #[cfg(all(test, not(loom)))]
    pub(super) fn status(&self) -> u8 {
        self.status.load(Ordering::Relaxed)
    }
}
