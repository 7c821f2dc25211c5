//! Opens connections, on behalf of the pool rather than of the caller that waits.
//!
//! A caller that finds nothing idle parks and says so ([`Shared::demand`]); so does everything that
//! makes a slot vacant while somebody waits. What it starts are *dials*: tasks of the pool, each
//! with a [`Reservation`], which outlive the caller. A connection that a dial opens goes to whoever
//! is first in line.
//!
//! By which rules they begin, fail, pause and end is the table "Connecting" of `ARCHITECTURE.md`.
//!
//! Not here: who gets the connection (`core`), checks and resets (`prepare.rs`, `guard.rs`).

use super::operation::{bounded, has_ended, has_timer, unless};
use super::reaper::Reaper;
use super::report::Reporter;
use super::{Shared, Tenant, life::nanos, lock, trace::no_span};
use crate::core::{Line, Reservation, State, reserve};
use crate::error::{AcquireError, OperationError};
use crate::hooks::Hooks;
use crate::manager::Manager;
use crate::metrics::{self, Connecting};
use crate::panics::caught;
use event_listener::{Event, IntoNotification, listener};
use std::error::Error;
use std::future::Future;
use std::mem;
use std::pin::pin;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

/// The connector's state. Nothing of it is touched by an acquire or a release that hits.
pub(super) struct Connector<E> {
    /// Dials under way, the prober's pauses included.
    dials: AtomicUsize,
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
    begun: Mutex<Vec<Instant>>,
    trouble: Mutex<Trouble<E>>,
    /// Verdicts so far; whoever waits reads this without the lock.
    verdicts: AtomicU64,
    /// Notified when connecting works again, or a hook accepts what is new: for dials that pause because it failed.
    recovered: Event,
    /// Notified on close, and when they are to be given up: for dials that hang.
    giving_up: Event<GivenUp>,
    /// Notified on close.
    closing: Event,
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

/// What is known of failures.
///
/// That connecting fails and that what is new is of no use are two troubles: a connect that succeeds ends the
/// one, a new connection that is accepted, or stays, the other.
struct Trouble<E> {
    /// The last failed connect, that of a rotation included, until one succeeds.
    failed: Option<Failure<E>>,
    /// There is no point in trying the same again.
    permanent: bool,
    /// Failures since the last success, without those of rotations.
    in_a_row: u32,
    /// After a failure for good that has ended every wait, for how long nobody tries the same again for whoever
    /// comes: accounts get locked. Nothing waits for its end, so it needs no runtime.
    truce: Duration,
    /// A dial is the prober: it pauses, or tries again after a pause.
    probing: bool,
    /// The last verdict.
    verdict: Option<Verdict<E>>,
    /// Even if that is over: ask [`useless`](Self::useless).
    useless: Option<Useless<E>>,
    /// The last failure of either kind ever.
    last_ever: Option<Saying>,
}

/// For how long a connection that nobody has used yet must be there, or its loss says that it has been of no use at
/// all. Where a server restarts, most have been there for longer.
const FLEETING: Duration = Duration::from_secs(1);

/// New connections that have turned out to be of no use before anybody has used them: rejected by a hook, or lost.
struct Useless<E> {
    /// What there is to say of the last one.
    last: Failure<E>,
    in_a_row: u32,
    /// When it is over by itself, unless another one is of no use before that: if the last one was lost, [`FLEETING`]
    /// after one has been opened since, which has stayed then, or has been used. What a hook says takes an acquire.
    over_at: Option<Instant>,
}

impl<E> Useless<E> {
    /// The last one was lost, and not rejected by a hook.
    fn is_lost(&self) -> bool {
        self.last.hook.is_none()
    }
}

impl<E> Trouble<E> {
    /// New connections have been of no use, and that is not over.
    fn useless(&self) -> Option<&Useless<E>> {
        let is_over = |at| Instant::now() >= at;
        self.useless.as_ref().filter(|useless| !useless.over_at.is_some_and(is_over))
    }

    /// Of what is wrong now, what is to be told: a failure for good, since nothing is opened unasked until it is
    /// over, or whichever came last.
    fn now(&self) -> Option<&Failure<E>> {
        match (&self.failed, self.useless().map(|useless| &useless.last)) {
            (Some(failed), Some(useless)) => {
                let later = useless.said.when > failed.said.when && !self.permanent;
                Some(if later { useless } else { failed })
            }
            (failed, useless) => failed.as_ref().or(useless),
        }
    }

    /// What whoever comes is told because it is not time yet to try again what has failed for good.
    fn too_early(&self) -> Option<&Arc<OperationError<E>>> {
        let failed = self.failed.as_ref().filter(|_| self.permanent)?;
        (failed.said.when.elapsed() < self.truce).then_some(&failed.error)
    }

    fn connecting(&self) -> Connecting {
        match self.now() {
            Some(_) if self.permanent => Connecting::FailsForGood,
            Some(_) => Connecting::Fails,
            None => Connecting::Works,
        }
    }
}

/// A failed connect, or a new connection that has been of no use.
struct Failure<E> {
    error: Arc<OperationError<E>>,
    /// The hook whose error it is, if it is one's.
    hook: Option<&'static str>,
    said: Saying,
}

/// Why a new connection could not be opened or was rejected.
pub(super) struct Unopened<E> {
    error: OperationError<E>,
    hook: Option<&'static str>,
}

impl<E> Unopened<E> {
    fn by(hook: &'static str, error: OperationError<E>) -> Self {
        Self { error, hook: Some(hook) }
    }
}

impl<E> From<OperationError<E>> for Unopened<E> {
    fn from(error: OperationError<E>) -> Self {
        Self { error, hook: None }
    }
}

/// What a failure said, and when.
#[derive(Clone)]
struct Saying {
    words: Arc<str>,
    when: Instant,
}

impl From<&Saying> for metrics::ConnectFailure {
    fn from(said: &Saying) -> Self {
        Self { message: said.words.to_string(), ago: said.when.elapsed() }
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

/// A failure that ends every wait.
pub(super) enum Verdict<E> {
    /// There is no point in trying again, and nothing is alive for anybody, or at least for those without
    /// priority.
    Permanent { error: Arc<OperationError<E>>, for_all: bool },
    /// The pool tries again, but nobody is to wait for it to whom no connection may come back.
    Down(Arc<OperationError<E>>),
}

impl<E> Clone for Verdict<E> {
    fn clone(&self) -> Self {
        match self {
            Self::Permanent { error, for_all } => {
                Self::Permanent { error: error.clone(), for_all: *for_all }
            }
            Self::Down(error) => Self::Down(error.clone()),
        }
    }
}

impl<E> From<Verdict<E>> for AcquireError<E> {
    fn from(verdict: Verdict<E>) -> Self {
        match verdict {
            Verdict::Permanent { error, .. } => Self::Connect(error),
            Verdict::Down(error) => Self::Unavailable(error),
        }
    }
}

impl<E: Error + 'static> Failure<E> {
    /// Takes down what it says, with the hook that said it and all causes. Many libraries' errors say what their cause says, and some
    /// causes what their error says: neither is said twice.
    fn new(Unopened { error, hook }: Unopened<E>) -> Self {
        let say = || {
            let mut said = error.to_string();
            // Where the last of them begins.
            let mut last = 0;
            let mut cause = error.source();
            while let Some(error) = cause {
                let says = error.to_string();
                if !said.ends_with(&says) {
                    if says.ends_with(&said[last..]) {
                        said.truncate(last);
                    } else {
                        said.push_str(": ");
                        last = said.len();
                    }
                    said.push_str(&says);
                }
                cause = error.source();
            }
            said
        };
        // An error that cannot be told is one all the same.
        let said = caught(say).unwrap_or_else(|panic| {
            format!("an error that panicked while it was told: {}", panic.message())
        });
        let said = match hook {
            Some(hook) => format!("{hook}: {said}"),
            None => said,
        };
        let said = Saying { words: said.into(), when: Instant::now() };
        Self { error: Arc::new(error), hook, said }
    }
}

impl<E> Connector<E> {
    pub(super) fn new() -> Self {
        Self {
            dials: AtomicUsize::new(0),
            admitted: AtomicUsize::new(1),
            patients: Arc::default(),
            rotations: Arc::default(),
            rotates: AtomicBool::new(false),
            warm_ups: AtomicUsize::new(0),
            ground: Mutex::new(None),
            generations: AtomicU64::new(0),
            begun: Mutex::default(),
            trouble: Mutex::new(Trouble {
                failed: None,
                permanent: false,
                in_a_row: 0,
                truce: Duration::ZERO,
                probing: false,
                verdict: None,
                useless: None,
                last_ever: None,
            }),
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
        // New connections may have been lost because it ended. Dropped after the lock, as below.
        let lost = lock(&self.trouble).useless.take_if(|useless| useless.is_lost());
        drop(lost);
    }

    /// What is wrong now, if anything is, and the hook that has said so, if one has.
    pub(super) fn last_error(&self) -> Option<(Arc<OperationError<E>>, Option<&'static str>)> {
        lock(&self.trouble).now().map(|failure| (failure.error.clone(), failure.hook))
    }

    /// Whether connecting has failed since it last succeeded, or what was opened has been of no use, and if so,
    /// whether it fails for good.
    pub(super) fn connecting(&self) -> Connecting {
        lock(&self.trouble).connecting()
    }

    /// The same, what is wrong, and whether that is a hook's rejection.
    pub(super) fn state(&self) -> (Connecting, Option<metrics::ConnectFailure>, bool) {
        let trouble = lock(&self.trouble);
        let now = trouble.now();
        let useless = trouble.useless().map(|useless| &useless.last);
        let rejects = now.zip(useless).is_some_and(|(a, b)| ptr::eq(a, b) && a.hook.is_some());
        (trouble.connecting(), now.map(|failure| (&failure.said).into()), rejects)
    }

    /// How long ago it was that connecting failed for good, if it has not succeeded since.
    fn failed_for_good(&self) -> Option<Duration> {
        let trouble = lock(&self.trouble);
        let failed = trouble.failed.as_ref().filter(|_| trouble.permanent);
        failed.map(|failed| failed.said.when.elapsed())
    }

    /// Whether the last connect that was noted has succeeded.
    fn last_succeeded(&self) -> bool {
        lock(&self.trouble).in_a_row == 0
    }

    /// The last failure ever.
    pub(super) fn last_failure(&self) -> Option<metrics::ConnectFailure> {
        lock(&self.trouble).last_ever.as_ref().map(Into::into)
    }

    /// What whoever comes is told at once, if no connection may come back to him: a failure for good while it is
    /// too early to try again; while there is a prober, the last failure, if that was for good, since nobody else
    /// tries the same now; with `fail_fast`, any.
    pub(super) fn refusal(&self, fail_fast: bool) -> Option<AcquireError<E>> {
        let trouble = lock(&self.trouble);
        if let Some(error) = trouble.too_early() {
            return Some(AcquireError::Connect(error.clone()));
        }
        if !trouble.probing {
            return None;
        }
        let error = trouble.now()?.error.clone();
        match trouble.permanent {
            true => Some(AcquireError::Connect(error)),
            false => fail_fast.then_some(AcquireError::Unavailable(error)),
        }
    }

    /// Repeats the last verdict if it is too early to try again what has failed for good.
    fn repeats_refusal(&self) -> bool {
        let _verdict;
        let mut trouble = lock(&self.trouble);
        let Some(error) = trouble.too_early().cloned() else { return false };
        _verdict = self.pass(&mut trouble, Verdict::Permanent { error, for_all: true });
        true
    }

    /// Has the next who comes try again what has failed for good.
    pub(super) fn end_truce(&self) {
        lock(&self.trouble).truce = Duration::ZERO;
    }

    /// Passes a verdict; answers the one before it, to be dropped after the lock.
    fn pass(&self, trouble: &mut Trouble<E>, verdict: Verdict<E>) -> Option<Verdict<E>> {
        let before = trouble.verdict.replace(verdict);
        // Ordering: Release, partner: the load in `verdicts`; whoever sees the count finds the
        // verdict behind the lock.
        self.verdicts.fetch_add(1, Ordering::Release);
        before
    }

    /// Whether dials are under way, the prober's pauses included.
    pub(super) fn is_dialing(&self) -> bool {
        self.dials.load(Ordering::Relaxed) > 0
    }

    /// For how long the oldest connect has been under way.
    pub(super) fn connecting_for(&self) -> Option<Duration> {
        lock(&self.begun).iter().min().map(Instant::elapsed)
    }

    /// How many verdicts there have been.
    pub(super) fn verdicts(&self) -> u64 {
        // Ordering: Acquire, partner: the increment in `pass`.
        self.verdicts.load(Ordering::Acquire)
    }

    /// The last verdict, if there has been one since there were `before`.
    pub(super) fn verdict_since(&self, before: u64) -> Option<Verdict<E>> {
        if self.verdicts() > before { lock(&self.trouble).verdict.clone() } else { None }
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

    /// A dial becomes the prober, unless another one is.
    fn probe(&self) -> bool {
        !mem::replace(&mut lock(&self.trouble).probing, true)
    }

    /// The same for one that has failed, and leaves if another one is: not to one that is merely under
    /// way, which may hang.
    fn probe_or_leave(&self) -> bool {
        let mut trouble = lock(&self.trouble);
        let probes = !mem::replace(&mut trouble.probing, true);
        if !probes {
            // Behind the lock, so before the prober's end, which looks for demand then.
            // Ordering: SeqCst, as in `admit`.
            self.dials.fetch_sub(1, Ordering::SeqCst);
        }
        probes
    }

    /// Takes note of a success; answers how many failures there had been before it.
    fn succeeded(&self, most: usize) -> u32 {
        // Here and below, an error that nobody else has is dropped after the lock: what its drop does is
        // the manager's own affair, and may be to look at the pool.
        let (failures, failed, are_useless) = {
            let mut trouble = lock(&self.trouble);
            trouble.permanent = false;
            let are_useless = trouble.useless().is_some();
            if let Some(lost) = trouble.useless.as_mut().filter(|it| it.is_lost()) {
                lost.over_at.get_or_insert_with(|| Instant::now() + FLEETING);
            }
            (mem::take(&mut trouble.in_a_row), trouble.failed.take(), are_useless)
        };
        // While what is new is of no use, whether this one is of any is still to be seen.
        if !are_useless {
            // One step, so that a failure that sets the number back meanwhile is not undone.
            let double = |admitted: usize| Some(admitted.saturating_mul(2).min(most));
            let doubled = self.admitted.fetch_update(Ordering::SeqCst, Ordering::SeqCst, double);
            debug_assert!(doubled.is_ok(), "BUG: doubling cannot be refused");
        }
        if failed.is_some() {
            self.recovered.notify(usize::MAX.additional());
        }
        failures
    }

    /// A rotation could not connect. It is the last failure, for good or not, and all else goes by that. But it is
    /// none of those in a row, and whoever waits does not hear of it before his time is up: the old connections
    /// may serve them.
    fn rotation_failed(&self, failure: Failure<E>, permanent: bool) {
        self.admitted.store(1, Ordering::SeqCst);
        let _failed;
        let mut trouble = lock(&self.trouble);
        trouble.permanent = permanent;
        trouble.last_ever = Some(failure.said.clone());
        _failed = trouble.failed.replace(failure);
    }

    /// A new connection that nobody has used yet is of no use.
    fn is_of_no_use(&self, failure: Failure<E>) {
        let _useless;
        let mut trouble = lock(&self.trouble);
        let in_a_row = trouble.useless().map_or(0, |useless| useless.in_a_row).saturating_add(1);
        trouble.last_ever = Some(failure.said.clone());
        _useless = trouble.useless.replace(Useless { last: failure, in_a_row, over_at: None });
    }

    /// A new connection has been handed out.
    fn accepted(&self) {
        let useless = lock(&self.trouble).useless.take();
        if useless.is_some() {
            // What was opened is of use after all.
            self.recovered.notify(usize::MAX.additional());
        }
    }

    /// That a new connection has been lost since then, if the last one of no use was.
    pub(super) fn lost_since(&self, then: Instant) -> Option<Arc<OperationError<E>>> {
        let trouble = lock(&self.trouble);
        let useless = trouble.useless().filter(|useless| useless.is_lost())?;
        (useless.last.said.when >= then).then(|| useless.last.error.clone())
    }

    /// Awaits a pause after a failure, unless connecting works again before it is over.
    async fn unless_recovered(&self, pause: impl Future<Output = ()>) {
        let mut pause = pin!(pause);
        loop {
            listener!(self.recovered => recovered);
            // After listening: a success either shows here or is heard of.
            if self.connecting() == Connecting::Works {
                return;
            }
            if unless(pause.as_mut(), recovered).await.is_ok() {
                return;
            }
        }
    }

    /// How many new connections in a row have been of no use, and how long ago the last one.
    pub(super) fn useless(&self) -> (u32, Duration) {
        let trouble = lock(&self.trouble);
        let useless = trouble.useless();
        useless.map_or((0, Duration::ZERO), |it| (it.in_a_row, it.last.said.when.elapsed()))
    }

    /// Notes a failure, and the verdict on it; answers how many there have been in a row. A dial that is to
    /// try again soon becomes the prober in the same step, unless another one is: so nobody who hears of the
    /// failure finds that it is not followed up. After one for good that ends every wait, it is not tried again
    /// for so long as the number says.
    fn failed(
        &self,
        failure: Failure<E>,
        permanent: bool,
        verdict: Option<Verdict<E>>,
        probes: Option<&mut bool>,
        truce: impl FnOnce(u32) -> Duration,
    ) -> u32 {
        self.admitted.store(1, Ordering::SeqCst);
        let (_failed, _verdict);
        let mut trouble = lock(&self.trouble);
        trouble.in_a_row = trouble.in_a_row.saturating_add(1);
        let is_refusal = matches!(verdict, Some(Verdict::Permanent { .. }));
        trouble.truce = if is_refusal { truce(trouble.in_a_row) } else { Duration::ZERO };
        trouble.permanent = permanent;
        if let Some(probes) = probes.filter(|_| !permanent) {
            *probes |= !mem::replace(&mut trouble.probing, true);
        }
        if let Some(verdict) = verdict {
            _verdict = self.pass(&mut trouble, verdict);
        }
        trouble.last_ever = Some(failure.said.clone());
        _failed = trouble.failed.replace(failure);
        trouble.in_a_row
    }
}

/// A connect under way, which has begun then.
struct Begun<'c> {
    all: &'c Mutex<Vec<Instant>>,
    at: Instant,
}

impl<'c> Begun<'c> {
    fn now(all: &'c Mutex<Vec<Instant>>) -> Self {
        let at = Instant::now();
        lock(all).push(at);
        Self { all, at }
    }
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        let mut all = lock(self.all);
        // Of several that began at the same time one is as good as another.
        if let Some(place) = all.iter().position(|at| *at == self.at) {
            all.swap_remove(place);
        }
    }
}

/// Tells the hook of the end of a connection that has been opened and is not yet the pool's.
struct Unborn<'h, M: Manager>(Option<&'h Hooks<M>>);

impl<M: Manager> Drop for Unborn<'_, M> {
    fn drop(&mut self) {
        if let Some(hooks) = self.0 {
            hooks.destroyed();
        }
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
    pub(super) fn demand(&self, ground: fn(&Self) -> Option<Ground>) -> bool {
        self.dial(ground, Self::wanted)
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
        if self.core.has_vacant() && !self.demand(Self::ground) {
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
            if !self.connector.admit(wanted) {
                break;
            }
            let shared = self.arc();
            let generation = ground.generation;
            let state = DialState::NotBegun;
            let dial = Dial { shared: shared.clone(), generation, state, probes: false };
            match reserve(shared) {
                Some(reservation) => ground.spawn(dial.run(reservation)),
                // Somebody was faster. Dropping the dial looks once more.
                None => dial.finish(),
            }
        }
        true
    }

    /// Whether nothing but reserved slots is vacant, and one is being filled for each of those who may have them:
    /// whoever else waits, and what is kept idle, is no reason to fill more.
    fn are_reserved_enough(&self) -> bool {
        if self.core.has_vacant_for(Line::General) {
            return false;
        }
        // Ordering: SeqCst, as in `unserved`. A rotation is on this count before it is in line.
        let rotations = self.connector.rotations.load(Ordering::SeqCst);
        let callers = self.core.waiters_of_the_high_line().saturating_sub(rotations);
        callers <= self.reserved_in(State::Connecting)
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
    fn wanted_or_sought(&self) -> usize {
        let wanted = self.wanted();
        if wanted > 0 || self.connector.connecting() != Connecting::Fails {
            return wanted;
        }
        let counts = self.core.counts();
        // Whoever else is connecting finds out just as well; and one that fails while the pool is built
        // is the only one.
        let others = counts.connecting + self.connector.warm_ups.load(Ordering::Relaxed);
        usize::from(counts.alive() + others == 0)
    }

    /// Opens one connection for a slot that has been acquired `uses_before` times.
    pub(super) async fn connect(
        &self,
        uses_before: u64,
    ) -> Result<Tenant<M::Connection>, Unopened<M::Error>> {
        let generation = self.generation();
        // Cancel: it is taken off the list.
        let under_way = Begun::now(&self.connector.begun);
        let began = under_way.at;
        let limit = self.config.connect_timeout;
        // Declared before the connection, so dropped after it.
        let mut unborn = Unborn::<M>(None);
        // The block makes sure that a panic outside the future is caught as well.
        let connect = async { self.manager.connect().await };
        let mut connection = bounded("connect_timeout", limit, connect).await?;
        // Cancel: the connection is dropped, and the hook hears of it.
        unborn.0 = Some(&self.hooks);
        let set_up = match &self.hooks.after_connect {
            None => Ok(()),
            Some(hook) => {
                let left = limit.saturating_sub(began.elapsed());
                bounded("connect_timeout", left, async { hook(&mut connection).await }).await
            }
        };
        let set_up = set_up.map_err(|error| Unopened::by("after_connect", error));
        let ready = set_up.and_then(|()| {
            let panicked =
                |message| Unopened::by("on_create", OperationError::Panicked { message });
            self.hooks.create(&connection).map_err(panicked)
        });
        if let Err(error) = ready {
            // It has been opened, so the manager closes it.
            self.say_goodbye(connection).await;
            return Err(error);
        }
        unborn.0 = None;
        let (id, created) = (self.totals.created(), Instant::now());
        let term = self.term(id);
        self.totals.connected(nanos(created - began));
        self.tell_connected(id, created - began);
        let span = no_span();
        let (lent_at, loss) = (0, None);
        Ok(Tenant { connection, id, created, generation, term, uses_before, lent_at, span, loss })
    }

    /// A connect has been noted. Of several at once, the one that was noted last has to be told last.
    fn tell_again(&self) {
        let Some(told) = &self.on_connect else { return };
        loop {
            let succeeded = self.connector.last_succeeded();
            told(succeeded);
            // After telling: what was read may have been out of date by then.
            if self.connector.last_succeeded() == succeeded {
                return;
            }
        }
    }

    /// Takes note of a connect that has succeeded.
    pub(super) fn connect_succeeded(&self) {
        // First, so that whoever comes because he hears of it is not refused any more.
        let failures = self.connector.succeeded(self.config.max_connecting);
        self.tell_again();
        if failures > 0 {
            self.tell_recovered(failures);
        }
    }

    /// Whether there is no point in trying again.
    pub(super) fn is_permanent(&self, error: &OperationError<M::Error>) -> bool {
        match error {
            OperationError::Failed(error) => {
                caught(|| self.manager.is_permanent(error)).unwrap_or(false)
            }
            OperationError::TimedOut { .. }
            | OperationError::Panicked { .. }
            | OperationError::Lost { .. } => false,
        }
    }

    /// Takes note of a failed connect. `probes`: it is a dial's, which is, or may become, the prober.
    fn connect_failed(
        &self,
        unopened: Unopened<M::Error>,
        probes: Option<&mut bool>,
    ) -> ConnectFailure<M> {
        let permanent = self.is_permanent(&unopened.error);
        // Whoever may have one that is alive waits on. For callers with priority one may be left, of which
        // they see to it.
        let hopeless = (permanent || self.config.fail_fast) && !self.has_alive_for(Line::General);
        self.note_failure(unopened, permanent, hopeless, probes)
    }

    /// Takes note of a connect that was given up; of one that has not answered, as a failure.
    pub(super) fn given_up(&self, why: GivenUp) -> Option<Arc<OperationError<M::Error>>> {
        let GivenUp::Silent(limit) = why else { return None };
        let error = OperationError::TimedOut { setting: "max_connections", limit };
        // It may take longer the next time, so whoever waits has his own deadline.
        Some(self.note_failure(error.into(), false, false, None).error)
    }

    /// Takes note of a failure; if it is `hopeless`, everybody who waits is to hear of it.
    fn note_failure(
        &self,
        unopened: Unopened<M::Error>,
        permanent: bool,
        hopeless: bool,
        probes: Option<&mut bool>,
    ) -> ConnectFailure<M> {
        self.totals.connect_failed();
        if let Some(told) = &self.on_connect {
            // First, so that whoever is refused does not come again because nobody has heard of it.
            told(false);
        }
        let failure = Failure::new(unopened);
        let error = failure.error.clone();
        let verdict = hopeless.then(|| match permanent {
            true => Verdict::Permanent {
                error: error.clone(),
                for_all: !self.has_alive_for(Line::High),
            },
            false => Verdict::Down(error.clone()),
        });
        let tell = verdict.is_some();
        let truce = |failures| self.longest_pause(failures);
        let in_a_row = self.connector.failed(failure, permanent, verdict, probes, truce);
        self.tell_again();
        self.tell_connect_failed(&error, permanent, in_a_row);
        self.changed();
        ConnectFailure { error, permanent, tell, in_a_row }
    }

    /// The same for a warm-up's, which has everybody who waits hear of a verdict.
    pub(super) fn warm_up_failed(
        &self,
        unopened: Unopened<M::Error>,
    ) -> Arc<OperationError<M::Error>> {
        let failure = self.connect_failed(unopened, None);
        if failure.tell {
            self.core.nudge_all();
        }
        failure.error
    }

    /// Takes note of a rotation's failed connect.
    pub(super) fn rotation_failed(
        &self,
        unopened: Unopened<M::Error>,
    ) -> Arc<OperationError<M::Error>> {
        self.totals.connect_failed();
        let permanent = self.is_permanent(&unopened.error);
        let failure = Failure::new(unopened);
        let error = failure.error.clone();
        self.connector.rotation_failed(failure, permanent);
        self.tell_rotation_failed(&error);
        error
    }

    /// A hook has rejected a connection, with an error or by a panic. `new`: nobody has used it yet.
    pub(super) fn rejected(&self, new: bool, hook: &'static str, error: OperationError<M::Error>) {
        if new {
            self.connector.is_of_no_use(Failure::new(Unopened::by(hook, error)));
        }
    }

    /// A connection is lost that was opened so long ago, unless that is because the runtime has ended. `new`: nobody
    /// has used it yet.
    pub(super) fn lost(&self, new: bool, after: Duration) {
        if new && after < FLEETING && self.ground().is_some() {
            self.connector.is_of_no_use(Failure::new(OperationError::Lost { after }.into()));
        }
    }

    /// A hook has let a connection pass. `new`: nobody has used it yet.
    pub(super) fn accepted(&self, new: bool) {
        if new {
            self.connector.accepted();
        }
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

    /// Awaits a pause after a failure for good, unless connecting works again before it is over, or the last
    /// connection goes that might have come back to those who wait in this line: then they are to hear of it.
    async fn unless_lost(&self, pause: impl Future<Output = ()>, line: Line) {
        let mut pause = pin!(self.connector.unless_recovered(pause));
        loop {
            listener!(self.changed => changed);
            // After listening: that it has gone either shows here or is heard of.
            if !self.has_alive_for(line) {
                return;
            }
            if unless(pause.as_mut(), changed).await.is_ok() {
                return;
            }
        }
    }

    /// For how long it is not tried again after a failure for good, while any connection is alive.
    fn rest_of_the_longest_pause(&self) -> Option<Duration> {
        let ago = self.connector.failed_for_good()?;
        self.config.backoff_max.checked_sub(ago).filter(|rest| !rest.is_zero())
    }

    /// The pause after `failures` in a row: random, up to a limit that doubles with each.
    fn pause(&self, failures: u32) -> Duration {
        Duration::from_nanos(fastrand::u64(0..=nanos(self.longest_pause(failures))))
    }

    fn longest_pause(&self, failures: u32) -> Duration {
        let doublings = failures.saturating_sub(1).min(31);
        self.config.backoff.saturating_mul(1 << doublings).min(self.config.backoff_max)
    }
}

/// What is made of a failed connect.
pub(super) struct ConnectFailure<M: Manager> {
    pub(super) error: Arc<OperationError<M::Error>>,
    /// Trying again is pointless.
    permanent: bool,
    /// Whoever waits is to hear of it.
    tell: bool,
    /// Failures since the last success, this one included.
    in_a_row: u32,
}

/// A dial under way. Dropping it takes it off the count.
struct Dial<M: Manager> {
    shared: Arc<Shared<M>>,
    generation: u64,
    state: DialState,
    /// It is the prober.
    probes: bool,
}

#[derive(PartialEq)]
enum DialState {
    /// Dropped like this, its runtime has ended.
    NotBegun,
    /// The same, unless it panics.
    Unfinished,
    Finished,
    /// A verdict: others must not try the same again on behalf of those who wait now.
    Refused,
    /// It has been taken off the count already.
    Gone,
}

impl<M: Manager> Dial<M> {
    fn finish(mut self) {
        self.state = DialState::Finished;
    }

    async fn run(mut self, first: Reservation<Arc<Shared<M>>>) {
        self.state = DialState::Unfinished;
        let shared = self.shared.clone();
        let mut reservation = Some(first);
        // Whoever it was begun for got in line just before a failure for good was known, or while somebody else
        // connected.
        if !shared.has_alive_for(Line::High) && shared.connector.repeats_refusal() {
            self.state = DialState::Refused;
            return;
        }
        let (useless, ago) = shared.connector.useless();
        if useless > 1 {
            // If none is fit for use, as many would be opened and closed as the server can bear. One may be
            // an accident.
            let pause = shared.pause(useless - 1).saturating_sub(ago);
            if !pause.is_zero() {
                drop(reservation.take());
                self.probes = shared.connector.probe();
                if !self.pauses(shared.connector.unless_recovered(sleep(pause))).await {
                    return self.finish();
                }
            }
        }
        // In which line those wait who have not been told of a failure yet, and are to be when nothing is left for
        // them.
        let mut line = Line::General;
        loop {
            // Accounts get locked, and a rotation may have been refused while this one paused.
            while let Some(pause) = shared.rest_of_the_longest_pause() {
                if !shared.has_alive_for(line) {
                    break;
                }
                drop(reservation.take());
                self.probes |= shared.connector.probe();
                if !self.pauses(shared.unless_lost(sleep(pause), line)).await {
                    return self.finish();
                }
            }
            let Some(vacant) = reservation.take().or_else(|| reserve(shared.clone())) else {
                break;
            };
            // Cancel: `vacant` makes the slot vacant again, and `self` says why.
            let failure = match shared.unless_given_up(shared.connect(vacant.uses())).await {
                Err(why) => {
                    drop(shared.given_up(why));
                    break;
                }
                Ok(Ok(tenant)) => {
                    shared.connect_succeeded();
                    drop(shared.move_in(vacant, tenant));
                    shared.changed();
                    break;
                }
                Ok(Err(unopened)) => {
                    let failure = shared.connect_failed(unopened, Some(&mut self.probes));
                    if failure.permanent && !shared.has_alive_for(Line::High) {
                        self.state = DialState::Refused;
                        return;
                    }
                    failure
                }
            };
            drop(vacant);
            if !self.probes {
                self.probes = shared.connector.probe_or_leave();
            }
            if !self.probes {
                // At once: a waker that panics below ends this one, which is off the count already.
                self.state = DialState::Gone;
            }
            // Not before it is known that there is a prober: whoever has got in line since the verdict, because
            // there was none, is told too.
            if failure.tell {
                shared.core.nudge_all();
            }
            if !self.probes {
                return;
            }
            line = if failure.tell { Line::High } else { Line::General };
            let goes_on = if failure.permanent {
                let pause = sleep(shared.config.backoff_max);
                self.pauses(shared.unless_lost(pause, line)).await
            } else {
                let pause = sleep(shared.pause(failure.in_a_row));
                self.pauses(shared.connector.unless_recovered(pause)).await
            };
            if !goes_on {
                break;
            }
        }
        self.finish();
    }

    /// Pauses; answers whether to go on then.
    async fn pauses(&self, pause: impl Future<Output = ()>) -> bool {
        let shared = &self.shared;
        // Cancel: nothing is held but the place among the dials.
        if shared.unless_closed(pause).await.is_none() {
            return false;
        }
        // With `fail_fast` nobody waits, and it is the prober who finds out that the server is back.
        shared.wanted_or_sought() > 0
            || shared.config.fail_fast && shared.connector.connecting() == Connecting::Fails
    }
}

impl<M: Manager> Drop for Dial<M> {
    fn drop(&mut self) {
        let Self { shared, generation, state, probes } = self;
        if *state == DialState::Gone {
            return;
        }
        if *state == DialState::Refused {
            // While this one is on the count, so that those who hear of it first start no other one for
            // those who have still to hear. It goes off the count though one of their wakers panics.
            drop(caught(|| shared.core.nudge_all()));
        }
        if *probes {
            lock(&shared.connector.trouble).probing = false;
        }
        // Ordering: SeqCst, partner: `admit`; whoever has found it admitted no further is found by `nudge`,
        // or by the demand, after it (I4).
        shared.connector.dials.fetch_sub(1, Ordering::SeqCst);
        match state {
            // Refused: whoever has come since then has asked in vain so far.
            DialState::Finished | DialState::Refused => shared.demand_of_somebody(),
            DialState::NotBegun | DialState::Unfinished => {
                // A panic, such as one of a tracing subscriber, says nothing of the runtime. But one of
                // whoever drops a runtime does not get into a dial that has not begun, and the next one
                // that is begun there would be dropped at once as well, without end.
                if *state == DialState::NotBegun || !thread::panicking() {
                    shared.connector.forget(*generation);
                }
                shared.core.nudge();
            }
            DialState::Gone => {}
        }
    }
}
