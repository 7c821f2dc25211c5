//! Opens connections, on behalf of the pool rather than of the caller that waits.
//!
//! A caller that finds nothing idle parks and says so ([`Shared::demand`]); so does everything that
//! makes a slot vacant while somebody waits. What it starts are *dials*: tasks of the pool, each
//! with a [`Reservation`](crate::core::Reservation), which outlive the caller. A connection that a dial opens goes to whoever
//! is first in line.
//!
//! By which rules they begin, fail, pause and end is the table "Connecting" of `ARCHITECTURE.md`.
//!
//! Not here: who gets the connection (`core`), checks and resets (`prepare.rs`, `guard.rs`).

use super::dial::Dial;
use super::operation::{has_ended, has_timer, unless};
use super::reaper::Reaper;
use super::report::Reporter;
use super::trouble::Trouble;
use super::{Shared, lock};
use crate::core::{Line, State, reserve};
use crate::manager::Manager;
use crate::metrics::Connecting;
use event_listener::{Event, IntoNotification, listener};
use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// The connector's state. Nothing of it is touched by an acquire or a release that hits.
pub(super) struct Connector<E> {
    /// Dials under way, the prober's pauses included.
    pub(super) dials: AtomicUsize,
    /// Those of them whose connect is late: nobody counts on them any more.
    late: AtomicUsize,
    /// Those of these that are in reserved slots.
    late_reserved: AtomicUsize,
    /// How long a connect may take before it is late.
    pub(super) patience: Duration,
    /// How many there may be at the moment.
    // Ordering: SeqCst, partner: the load in `admit`. The dial that changes this takes itself off `dials` after that,
    // and looks for demand again (I4).
    pub(super) admitted: AtomicUsize,
    /// Callers who wait, or are about to, and want nothing opened.
    pub(super) patients: Arc<AtomicUsize>,
    /// Rotations that wait for room, or are about to: they open a connection of their own.
    pub(super) rotations: Arc<AtomicUsize>,
    /// One rotation has its turn: the next begins when it is over.
    pub(super) rotates: AtomicBool,
    /// Warm-ups under way, that of a pool which is being built included. It orders nothing: whoever has missed a
    /// change looks again at the reaper's next tick.
    pub(super) warm_ups: AtomicUsize,
    /// Where they run: the runtime that the pool was built on, or, when that has ended, the one of
    /// the first caller who needed one after that.
    ground: Mutex<Option<Ground>>,
    /// Runtimes so far.
    generations: AtomicU64,
    /// When the connects under way began, those of warm-ups and rotations included.
    pub(super) begun: Mutex<Vec<Instant>>,
    pub(super) trouble: Mutex<Trouble<E>>,
    /// Verdicts so far; whoever waits reads this without the lock.
    pub(super) verdicts: AtomicU64,
    /// Notified when connecting works again, or a hook accepts what is new: for dials that pause because it failed.
    pub(super) recovered: Event,
    /// Notified on close, and when they are to be given up: for dials that hang.
    pub(super) giving_up: Event<GivenUp>,
    /// Notified on close.
    pub(super) closing: Event,
}

/// A runtime for the pool's own tasks.
#[derive(Clone)]
pub(crate) struct Ground {
    runtime: Handle,
    /// Tells it from those before and after it.
    generation: u64,
}

impl Ground {
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        drop(self.runtime.spawn(task));
    }

    /// The same for a task whose outcome somebody waits for.
    pub(super) fn spawn_in<T: Send + 'static>(
        &self,
        tasks: &mut JoinSet<T>,
        task: impl Future<Output = T> + Send + 'static,
    ) {
        tasks.spawn_on(task, &self.runtime);
    }
}

/// A connect that is late.
pub(super) struct Late<'c> {
    all: &'c AtomicUsize,
    reserved: Option<&'c AtomicUsize>,
}

impl Drop for Late<'_> {
    fn drop(&mut self) {
        // Before its dial is off the count: so never are more late than there are.
        self.all.fetch_sub(1, Ordering::SeqCst);
        if let Some(reserved) = self.reserved {
            reserved.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

/// Why a connect that is under way is given up.
#[derive(Clone, Copy)]
pub(crate) enum GivenUp {
    /// Nobody wants it any more, or the pool is closed.
    Unwanted,
    /// It has not answered for so long, and others are to connect.
    #[cfg_attr(not(feature = "cluster"), allow(dead_code, reason = "only a cap has others"))]
    Silent(Duration),
}

impl<E> Connector<E> {
    pub(super) fn new(patience: Duration) -> Self {
        Self {
            dials: AtomicUsize::new(0),
            late: AtomicUsize::new(0),
            late_reserved: AtomicUsize::new(0),
            patience,
            admitted: AtomicUsize::new(1),
            patients: Arc::default(),
            rotations: Arc::default(),
            rotates: AtomicBool::new(false),
            warm_ups: AtomicUsize::new(0),
            ground: Mutex::new(None),
            generations: AtomicU64::new(0),
            begun: Mutex::default(),
            trouble: Mutex::new(Trouble::none()),
            verdicts: AtomicU64::new(0),
            recovered: Event::new(),
            giving_up: Event::with_tag(),
            closing: Event::new(),
        }
    }

    /// Forgets a runtime that has ended, unless there is another one already.
    pub(super) fn forget(&self, generation: u64) {
        {
            let mut ground = lock(&self.ground);
            if ground.as_ref().is_none_or(|ground| ground.generation != generation) {
                return;
            }
            *ground = None;
        }
        self.forgets_losses();
    }

    /// Whether dials are under way, the prober's pauses included.
    pub(super) fn is_dialing(&self) -> bool {
        self.dials.load(Ordering::Relaxed) > 0
    }

    /// For how long the oldest connect has been under way.
    pub(super) fn connecting_for(&self) -> Option<Duration> {
        lock(&self.begun).iter().min().map(Instant::elapsed)
    }

    /// Ends so many of the connects that are under way, those first that began first.
    pub(super) fn give_up(&self, many: usize, why: GivenUp) {
        self.giving_up.notify(many.additional().tag(why));
    }

    /// Ends whatever is under way.
    pub(super) fn close(&self) {
        self.give_up(usize::MAX, GivenUp::Unwanted);
        self.closing.notify(usize::MAX.additional());
    }

    /// A connect is late, one in a reserved slot or not, for as long as the answer lives. Its dial looks for demand
    /// now, and when it ends.
    pub(super) fn is_late(&self, is_reserved: bool) -> Late<'_> {
        // Ordering: SeqCst, partner: the load in `Shared::dial`. Either whoever is not admitted beside this dial sees
        // that it is late, or the dial's own look sees what he wanted (I4).
        let reserved = is_reserved.then_some(&self.late_reserved);
        for count in [Some(&self.late), reserved].into_iter().flatten() {
            count.fetch_add(1, Ordering::SeqCst);
        }
        Late { all: &self.late, reserved }
    }

    /// Lets one more dial begin, if fewer than `wanted` and fewer than admitted are under way.
    fn admit(&self, wanted: usize) -> bool {
        // Ordering: SeqCst, partner: the decrement in `Dial::drop`, after which that dial looks
        // for demand again. Either we see it gone, or it sees what we wanted (I4).
        let most = self.admitted.load(Ordering::SeqCst).min(wanted);
        self.dials
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |dials| {
                (dials < most).then_some(dials + 1)
            })
            .is_ok()
    }
}

impl<M: Manager> Shared<M> {
    /// The runtime for the pool's own tasks, unless it has ended.
    pub(super) fn ground(&self) -> Option<Ground> {
        let ground = lock(&self.connector.ground).clone()?;
        // The reaper, by whose end an open pool hears of that, ends with the pool.
        if self.core.is_closed() && has_ended(&ground.runtime) {
            self.connector.forget(ground.generation);
            return None;
        }
        Some(ground)
    }

    /// The same, or the caller's if there is none.
    pub(super) fn ground_or_current(&self) -> Option<Ground> {
        let ground = self.ground();
        if ground.is_some() {
            return ground;
        }
        let runtime = Handle::try_current().ok()?;
        // One without a timer could neither bound a connect nor run the reaper.
        if !has_timer() {
            return None;
        }
        let adopted = {
            let mut ground = lock(&self.connector.ground);
            if let Some(ground) = &*ground {
                return Some(ground.clone());
            }
            let generation = self.connector.generations.fetch_add(1, Ordering::Relaxed);
            ground.insert(Ground { runtime, generation }).clone()
        };
        adopted.spawn(Reaper::new(self, adopted.generation).run());
        if let Some(reports) = &self.reports {
            adopted.spawn(Reporter::new(self, reports.clone()).run());
        }
        // A runtime that has ended, though this thread is still in it, has dropped the reaper at once, and
        // so has been forgotten.
        self.ground()
    }

    /// Starts dials, if connections are wanted and there are vacant slots for them.
    ///
    /// Called by whoever parks, and by whoever makes a slot vacant; `ground` says where the next
    /// dial runs. It is asked each time: a runtime that has ended drops the dial at once, and is
    /// forgotten. Answers false if there is none, though connections are wanted.
    #[inline]
    pub(super) fn demand(&self, ground: fn(&Self) -> Option<Ground>) -> bool {
        !self.core.has_vacant() || self.dial(ground, Self::wanted)
    }

    /// As [`demand`](Self::demand), for whoever wants connections. Before that, a pool that was built
    /// lazily keeps none idle.
    pub(super) fn keep_idle(&self) -> bool {
        if !self.keeps_idle.load(Ordering::Relaxed) {
            self.keeps_idle.store(true, Ordering::Relaxed);
        }
        self.demand(Self::ground_or_current)
    }

    /// As [`demand`](Self::demand), for those who have no runtime to give: if the pool has none either,
    /// whoever waits brings one along.
    pub(super) fn demand_of_somebody(&self) {
        if !self.demand(Self::ground) {
            self.core.nudge();
        }
    }

    /// As [`demand`](Self::demand), for the reaper, which also has a pool that is down look whether it
    /// still is.
    pub(super) fn demand_or_probe(&self) {
        self.dial(Self::ground, Self::wanted_or_sought);
    }

    fn dial(&self, ground: fn(&Self) -> Option<Ground>, wanted: fn(&Self) -> usize) -> bool {
        while !self.core.is_closed() && self.core.has_vacant() {
            // Asked first: whoever takes an idle connection when few are left comes by here, and has no
            // lock to wait for unless there is something to do.
            let wanted = wanted(self);
            if wanted == 0 || self.are_reserved_enough() {
                break;
            }
            let Some(ground) = ground(self) else { return false };
            // Beside those that are late others begin for callers, but not for what is only kept idle.
            let late = match self.unserved() {
                0 => 0,
                _ => self.connector.late.load(Ordering::SeqCst),
            };
            if !self.connector.admit(wanted + late) {
                break;
            }
            let shared = self.arc();
            let dial = Dial::new(shared.clone(), ground.generation);
            match reserve(shared) {
                Some(reservation) => ground.spawn(dial.run(reservation)),
                // Somebody was faster. Dropping the dial looks once more.
                None => dial.finish(),
            }
        }
        true
    }

    /// Whether nothing but reserved slots is vacant, and one is being filled for each of those who may have them, by
    /// a connect that is not late: whoever else waits, and what is kept idle, is no reason to fill more.
    fn are_reserved_enough(&self) -> bool {
        if self.core.has_vacant_for(Line::General) {
            return false;
        }
        // Ordering: SeqCst, as in `unserved`. A rotation is on this count before it is in line.
        let rotations = self.connector.rotations.load(Ordering::SeqCst);
        let callers = self.core.waiters_of_the_high_line().saturating_sub(rotations);
        let late = self.connector.late_reserved.load(Ordering::SeqCst);
        callers + late <= self.reserved_in(State::Connecting)
    }

    /// How many callers wait who would have a connection opened, or a slot to open one themselves.
    pub(super) fn unserved(&self) -> usize {
        // Ordering: SeqCst, partner: the decrement in `Terms::count_out`. A patient one that gets
        // out of line looks again after that.
        let patients = self.connector.patients.load(Ordering::SeqCst);
        self.core.waiters().saturating_sub(patients)
    }

    /// Whether others wait than rotations.
    pub(super) fn has_callers(&self) -> bool {
        // Ordering: SeqCst, as in `unserved`. A rotation is on this count before it is in line.
        self.core.waiters() > self.connector.rotations.load(Ordering::SeqCst)
    }

    /// How many connections are wanted that are not there.
    fn wanted(&self) -> usize {
        // Ordering: SeqCst, as in `unserved`.
        match self.connector.rotations.load(Ordering::SeqCst) {
            0 => self.unserved() + self.idle_wanted(),
            // The next room is a rotation's, and not for what is only kept for callers who may come. When
            // it has got out of line, it looks again.
            rotations => self.unserved().saturating_sub(rotations),
        }
    }

    /// How many connections are wanted for callers who may come, unless that fails for good: then it is
    /// not tried unasked.
    fn idle_wanted(&self) -> usize {
        if self.config.min_idle == 0 || !self.keeps_idle.load(Ordering::Relaxed) {
            return 0;
        }
        let wanted = self.config.min_idle + self.expiring.load(Ordering::Relaxed);
        let idle = self.core.counts().idle.saturating_sub(self.reserved_in(State::Idle));
        match wanted.saturating_sub(idle) {
            0 => 0,
            _ if self.connector.connecting() == Connecting::FailsForGood => 0,
            missing => missing,
        }
    }

    /// As [`wanted`](Self::wanted), and one if the pool is down for a reason that may pass, so that
    /// somebody sees it pass.
    pub(super) fn wanted_or_sought(&self) -> usize {
        let wanted = self.wanted();
        if wanted > 0 || self.connector.connecting() != Connecting::Fails {
            return wanted;
        }
        let counts = self.core.counts();
        // Whoever else is connecting finds out just as well; and one that fails while the pool is built
        // is the only one.
        let others = counts.connecting + self.connector.warm_ups.load(Ordering::Relaxed);
        // What is being closed serves nobody any more, and may be there for long.
        usize::from(counts.alive() - counts.closing + others == 0)
    }

    /// Awaits `work`, unless the pool is closed first.
    pub(super) async fn unless_closed<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        listener!(self.connector.closing => closing);
        if self.core.is_closed() {
            return None;
        }
        unless(pin!(work), closing).await.ok()
    }

    /// Awaits a connect, unless the pool is closed or gives up what it opens for callers.
    pub(super) async fn unless_given_up<T>(
        &self,
        connect: impl Future<Output = T>,
    ) -> Result<T, GivenUp> {
        listener!(self.connector.giving_up => given_up);
        if self.core.is_closed() {
            return Err(GivenUp::Unwanted);
        }
        unless(pin!(connect), given_up).await
    }
}
