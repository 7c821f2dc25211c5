//! What is settled between an acquire that waits at several pools at once and its wait at one of them; or
//! between a rotation and its wait for room.
//!
//! The acquire alone changes the terms, between polls; the wait goes by them, and says what it is doing.
//!
//! Not here: who waits at several pools (`crate::cluster`), and what a rotation is (`admin.rs`).

#![cfg_attr(not(feature = "cluster"), allow(dead_code))]

use super::{Shared, lock};
use crate::manager::Manager;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use tokio::time::Instant;

/// The terms of one wait among others.
pub(crate) struct Terms {
    /// When the acquire began.
    began: Instant,
    /// It takes what comes back, and no connection is opened for it.
    patient: AtomicBool,
    /// It is in line, as far as it knows.
    in_line: AtomicBool,
    /// How many patient ones of its kind are in line at the pool, or about to be.
    // Ordering: SeqCst, partner: the load in `unserved`. It is off this count before it looks for demand (I4).
    patients: Arc<AtomicUsize>,
    /// This is counted as one of them.
    // Ordering: SeqCst, as `patients`: of the wait and whoever wakes it, the one that changes this changes that.
    counted: AtomicBool,
    /// A connection is being checked or prepared for it.
    checking: AtomicBool,
    /// The acquire has ended, and a check under way is to be brought to its end.
    left: AtomicBool,
    /// What it has got here it would not have, if that were not only reported.
    would_be_shed: AtomicBool,
    /// Whom to wake.
    waker: Mutex<Option<Waker>>,
}

impl Terms {
    /// Of an acquire that began then. If it has found a connection, it is to be checked at once, and
    /// another one to be opened if it fails, unless the wait is patient at first.
    pub(super) fn new(
        patients: Arc<AtomicUsize>,
        began: Instant,
        has_found: bool,
        is_patient: bool,
    ) -> Self {
        Self {
            began,
            patient: AtomicBool::new(is_patient),
            in_line: AtomicBool::new(false),
            patients,
            counted: AtomicBool::new(false),
            checking: AtomicBool::new(has_found),
            left: AtomicBool::new(false),
            would_be_shed: AtomicBool::new(false),
            waker: Mutex::new(None),
        }
    }

    pub(super) fn began(&self) -> Instant {
        self.began
    }

    pub(crate) fn is_patient(&self) -> bool {
        self.patient.load(Ordering::Relaxed)
    }

    /// It is to have a connection opened from now on. Answers whether it is in line: then whoever says so
    /// looks for demand.
    pub(super) fn hurry(&self) -> bool {
        self.patient.store(false, Ordering::Relaxed);
        self.count_out();
        self.in_line.load(Ordering::Relaxed)
    }

    /// Nothing is to be opened for it any more. It counts as one of those when it is polled next.
    pub(crate) fn be_patient(&self) {
        self.patient.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_checking(&self) -> bool {
        self.checking.load(Ordering::Relaxed)
    }

    pub(super) fn checking(&self) -> &AtomicBool {
        &self.checking
    }

    pub(super) fn would_be_shed(&self) -> &AtomicBool {
        &self.would_be_shed
    }

    pub(super) fn is_left(&self) -> bool {
        self.left.load(Ordering::Relaxed)
    }

    /// It is about to get in line.
    pub(super) fn get_in_line(&self) {
        self.in_line.store(true, Ordering::Relaxed);
        self.count_in();
    }

    /// It is not in line any more.
    pub(super) fn get_out_of_line<M: Manager>(&self, keeper: &Shared<M>) {
        if self.in_line.swap(false, Ordering::Relaxed) && self.is_patient() {
            // It was taken off the line first and is off this count second, so meanwhile a dial that
            // somebody else wants may have been missing (I4).
            self.count_out();
            keeper.demand_of_somebody();
        }
    }

    fn count_in(&self) {
        let is_one = self.is_patient() && self.in_line.load(Ordering::Relaxed);
        if is_one && !self.counted.swap(true, Ordering::SeqCst) {
            self.patients.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn count_out(&self) {
        if self.counted.swap(false, Ordering::SeqCst) {
            self.patients.fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// Polls the wait that has these terms.
    pub(crate) fn poll<F: Future + ?Sized>(
        self: &Arc<Self>,
        waiting: Pin<&mut F>,
        cx: &Context<'_>,
    ) -> Poll<F::Output> {
        lock(&self.waker).get_or_insert_with(|| cx.waker().clone()).clone_from(cx.waker());
        // Somebody may have woken it for nothing, as a check that is over, and it is in line after all.
        self.count_in();
        waiting.poll(&mut Context::from_waker(&self.clone().into()))
    }

    /// The acquire has ended elsewhere. Answers whether something is being checked for it: that is to be
    /// brought to its end, and given back, since dropping it half-way would close the connection.
    pub(crate) fn leave(&self) -> bool {
        self.left.store(true, Ordering::Relaxed);
        self.is_checking()
    }
}

/// The place in line of a wait on these terms, which may be given up.
pub(super) struct InLine<M: Manager> {
    pub(super) keeper: Arc<Shared<M>>,
    pub(super) terms: Arc<Terms>,
}

impl<M: Manager> Drop for InLine<M> {
    fn drop(&mut self) {
        self.terms.get_out_of_line(&self.keeper);
    }
}

/// Whoever wakes a wait has taken it off the line first. Until it is polled, which may take as long as
/// others wait in the same task, it is not to be counted as one of those who want nothing opened: it would
/// hide somebody who does.
impl Wake for Terms {
    fn wake(self: Arc<Self>) {
        self.count_out();
        let waker = lock(&self.waker).take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}
