//! How a caller gets a connection: at once, or in line until its deadline.
//!
//! Not here: who is next in line (`core`), how connections are opened (`connector.rs`), and how one that was
//! found is made fit for use (`prepare.rs`).

use super::guard::{Pooled, PooledOwned};
use super::life::nanos;
use super::operation::{FAR_FUTURE, has_timer, poll_timer, runs_async_task, timer};
use super::prepare::{
    Unfit, give_back, lend, prepare, prepare_blocking, prepare_in_a_hurry, welcome,
};
use super::terms::Terms;
use super::trouble::Verdict;
use super::{DRAINING, Shared, deadlock::Waiting};
use crate::config::{AcquireOptions, CheckPolicy, Priority};
use crate::core::{
    Flags, Found, Keeper, Lease, Line, Loan, State, Woken, try_acquire as look,
    try_acquire_owned as look_owned, wait, wait_blocking,
};
use crate::error::{AcquireError, Stage, Timeout, TryAcquireError};
use crate::manager::Manager;
use crate::metrics::Outcome;
use std::future::{Future, poll_fn};
use std::ops::{Deref, Range};
use std::panic::Location;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::{task, time};

pub(super) type Caller = &'static Location<'static>;

/// What a caller asks for.
#[derive(Clone, Copy)]
pub(super) struct Ask<'t> {
    pub(super) caller: Caller,
    /// How long it waits; `None` for `acquire_timeout`.
    pub(super) limit: Option<Duration>,
    pub(super) line: Line,
    /// On which terms it waits at several pools at once.
    pub(super) terms: Option<&'t Terms>,
    pub(super) counted: Counted,
    /// Whoever polls it tells others when it is in line: without any time it gives up at the second poll, so that
    /// they see it there.
    pub(super) is_seen: bool,
}

/// Who counts an acquire that had to wait, however it ends.
#[cfg_attr(not(feature = "cluster"), allow(dead_code))]
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Counted {
    /// The pool.
    Here,
    /// Whoever waits at several pools, or at one after the other: for him it is one acquire.
    Elsewhere,
    /// Nobody: it is a question of the cluster's own, for which no line and no wait is too long.
    Never,
}

impl Ask<'_> {
    pub(super) fn new(caller: Caller) -> Self {
        let (limit, terms, is_seen) = (None, None, false);
        Self { caller, limit, line: Line::General, terms, counted: Counted::Here, is_seen }
    }

    pub(super) fn with(caller: Caller, options: AcquireOptions) -> Self {
        let line = match options.priority {
            Priority::Normal => Line::General,
            Priority::High => Line::High,
        };
        Self { limit: options.timeout, line, ..Self::new(caller) }
    }

    /// How many may wait before it.
    fn most_waiters<M: Manager>(&self, shared: &Shared<M>) -> usize {
        match self.line {
            _ if self.counted == Counted::Never => usize::MAX,
            Line::General => shared.config.max_waiters.unwrap_or(usize::MAX),
            Line::High => usize::MAX,
        }
    }
}

/// What all do whose guard borrows the pool. What they ask for is put together after a miss, so that a hit
/// need not.
#[inline(always)]
pub(super) async fn acquire<M: Manager>(
    shared: &Shared<M>,
    caller: Caller,
    options: impl FnOnce() -> AcquireOptions,
) -> Result<Pooled<'_, M>, AcquireError<M::Error>> {
    match look(&shared, caller) {
        Found::Ready(loan) => Ok(Pooled::new(loan)),
        found => {
            let ask = Ask::with(caller, options());
            acquire_slow(shared, ask, found).await.map(Pooled::new)
        }
    }
}

/// The same where it owns the pool.
#[inline(always)]
pub(super) async fn acquire_owned<M: Manager>(
    shared: Arc<Shared<M>>,
    caller: Caller,
    options: impl FnOnce() -> AcquireOptions,
) -> Result<PooledOwned<M>, AcquireError<M::Error>> {
    let (shared, found) = match look_owned(shared, caller) {
        Ok(loan) => return Ok(PooledOwned::new(loan)),
        Err(missed) => missed,
    };
    let ask = Ask::with(caller, options());
    acquire_slow(shared, ask, found).await.map(PooledOwned::at_large)
}

/// What all do that block their thread and whose guard borrows the pool.
#[inline(always)]
pub(super) fn acquire_blocking<M: Manager>(
    shared: &Shared<M>,
    caller: Caller,
    options: impl FnOnce() -> AcquireOptions,
) -> Result<Pooled<'_, M>, AcquireError<M::Error>> {
    match look(&shared, caller) {
        Found::Ready(loan) => Ok(Pooled::new(loan)),
        found => {
            let ask = Ask::with(caller, options());
            acquire_blocking_slow(&shared, ask, found).map(Pooled::new)
        }
    }
}

/// The same where it owns the pool.
#[inline(always)]
pub(super) fn acquire_blocking_owned<M: Manager>(
    shared: &Arc<Shared<M>>,
    caller: Caller,
    options: impl FnOnce() -> AcquireOptions,
) -> Result<PooledOwned<M>, AcquireError<M::Error>> {
    match look(shared, caller) {
        Found::Ready(loan) => Ok(PooledOwned::new(loan)),
        found => {
            let ask = Ask::with(caller, options());
            acquire_blocking_slow(shared, ask, found).map(PooledOwned::at_large)
        }
    }
}

/// What a look at the shelves has found for a caller, if it needs nothing that takes time; otherwise the
/// connection that does, if there is one.
#[inline]
fn ready<M, R>(found: Found<R>, caller: Caller) -> Result<Loan<R>, Option<Lease<R>>>
where
    M: Manager,
    R: Deref<Target = Shared<M>> + Clone,
{
    match found {
        Found::Ready(loan) => Ok(loan),
        Found::Flagged(lease) => welcome(lease, caller),
        Found::Nothing => Err(None),
    }
}

/// What a look at the shelves did not settle: prepares what it found, or waits in line, for
/// `acquire_timeout` unless there is a limit.
#[cold]
pub(super) async fn acquire_slow<M, R>(
    keeper: R,
    ask: Ask<'_>,
    found: Found<R>,
) -> Result<Loan<R>, AcquireError<M::Error>>
where
    M: Manager,
    R: Deref<Target = Shared<M>> + Clone + Send,
{
    let limit = ask.limit.unwrap_or(keeper.config.acquire_timeout);
    let unready = match ready(found, ask.caller) {
        Ok(loan) => return Ok(loan),
        Err(unready) => unready,
    };
    let mut wait = Wait::begin(&keeper, &ask, limit);
    if keeper.core.is_closed() {
        return wait.end(Err(keeper.closed_error()));
    }
    // The last question takes a reference to the runtime that all its threads share, so it is
    // asked only outside tasks.
    let has_deadline = limit < Duration::MAX;
    if has_deadline && task::try_id().is_none() && Handle::try_current().is_err() {
        return wait.end(Err(AcquireError::NoRuntime));
    }
    let served = {
        let obtain = pin!(Some(obtain(&keeper, &ask, unready, &wait)));
        let mut obtain = pin!(keeper.in_span(ask.caller, obtain));
        if !has_deadline {
            // Without a timer it may wait for what comes back. If one is to be opened, it is told so in line.
            Some(obtain.await)
        } else {
            let mut timer = pin!(timer(wait.began + limit.min(FAR_FUTURE)));
            let (mut has_begun, has_time) = (false, wait.has_time());
            // Cancel: `obtain` is dropped at the deadline as it would be by its caller, but that a check
            // under way goes on. Polled where it stands: `tokio::time::timeout_at` would move it.
            let before_deadline = poll_fn(move |cx| {
                let Some(mut timer) = timer.as_mut().as_pin_mut() else {
                    return Poll::Ready(Some(Err(AcquireError::NoRuntime)));
                };
                // Before `obtain` begins: on a runtime that has ended, one connection after the other would fail
                // its check. That the time is up is heeded only after it, and the timer is polled once.
                let first = if has_begun { None } else { Some(poll_timer(timer.as_mut(), cx)) };
                let has_been_seen = !ask.is_seen || has_begun;
                has_begun = true;
                if first == Some(None) {
                    return Poll::Ready(Some(Err(AcquireError::NoRuntime)));
                }
                if let Poll::Ready(obtained) = obtain.as_mut().poll(cx) {
                    return Poll::Ready(Some(obtained));
                }
                match first.unwrap_or_else(|| poll_timer(timer, cx)) {
                    None => Poll::Ready(Some(Err(AcquireError::NoRuntime))),
                    // Whoever polls it does so once more.
                    Some(_) if !has_time && !has_been_seen => Poll::Pending,
                    // Timers go by whole milliseconds, and none is left at all.
                    Some(_) if !has_time => Poll::Ready(None),
                    Some(polled) => polled.map(|()| None),
                }
            });
            let served = before_deadline.await;
            wait.is_late.store(served.is_none(), Ordering::Relaxed);
            served
        }
    };
    let served = served.unwrap_or_else(|| {
        let checking = wait.checking.load(Ordering::Relaxed);
        Err(keeper.timed_out(ask.line, wait.began.elapsed(), checking))
    });
    wait.end(served)
}

/// An acquire that did not find what it wanted at once. However it ends is counted, if it is to be counted
/// here.
struct Wait<'k, M: Manager> {
    keeper: &'k Shared<M>,
    caller: Caller,
    began: time::Instant,
    /// How long it waits; [`Duration::MAX`] if it has no deadline.
    limit: Duration,
    outcome: Option<Outcome>,
    /// It has a connection that is being checked.
    checking: AtomicBool,
    /// Its time is up.
    is_late: AtomicBool,
    /// It is served, and would have been turned away if that were not only reported.
    would_be_shed: AtomicBool,
}

impl<'k, M: Manager> Wait<'k, M> {
    fn begin(keeper: &'k Shared<M>, ask: &Ask<'_>, limit: Duration) -> Self {
        let began = ask.terms.map_or_else(time::Instant::now, Terms::began);
        // Cancel: if nothing else comes, that is the outcome.
        let outcome = (ask.counted == Counted::Here).then_some(Outcome::Cancelled);
        let no = || AtomicBool::new(false);
        let (checking, is_late, would_be_shed) = (no(), no(), no());
        let caller = ask.caller;
        Self { keeper, caller, began, limit, outcome, checking, is_late, would_be_shed }
    }

    /// Whether it may take any time at all.
    fn has_time(&self) -> bool {
        !self.limit.is_zero()
    }

    /// Whether it may get in line, for as long as the answer lives.
    #[inline]
    fn about_to_wait(&self, ask: &Ask<'_>) -> Result<Option<Waiting<'k>>, AcquireError<M::Error>> {
        self.keeper.may_wait(ask.line)?;
        if ask.counted != Counted::Never {
            self.keeper.may_wait_for_room()?;
        }
        if ask.terms.is_some() || !self.has_time() {
            // Who may be served by another pool as well is not stuck here, nor is who does not wait.
            return Ok(None);
        }
        self.keeper.is_not_stuck(ask.caller, ask.line)
    }

    /// Whether a connection is being checked for it.
    fn checks(&self, ask: &Ask<'_>, is: bool) {
        ask.terms.map_or(&self.checking, Terms::checking).store(is, Ordering::Relaxed);
    }

    /// Whether its caller, who has been in line so far, is still to be served.
    fn in_time(&self, ask: &Ask<'_>) -> Result<(), AcquireError<M::Error>> {
        let Some(shedder) = &self.keeper.shedder else { return Ok(()) };
        let (now, waited) = (self.keeper.now(), self.began.elapsed());
        let nobody_waits = self.keeper.core.waiters() == 0;
        let is_late = shedder.is_too_late(now, waited, ask.line, nobody_waits);
        if !is_late || ask.counted == Counted::Never {
            return Ok(());
        }
        if !shedder.reports_only() {
            return Err(AcquireError::Shed { waited });
        }
        let would_be_shed = ask.terms.map_or(&self.would_be_shed, Terms::would_be_shed);
        would_be_shed.store(true, Ordering::Relaxed);
        Ok(())
    }

    fn end<T>(
        &mut self,
        served: Result<T, AcquireError<M::Error>>,
    ) -> Result<T, AcquireError<M::Error>> {
        if let Some(outcome) = &mut self.outcome {
            *outcome = served.as_ref().map_or_else(Outcome::from, |_| Outcome::Served);
        }
        served
    }
}

impl<E> From<&AcquireError<E>> for Outcome {
    fn from(error: &AcquireError<E>) -> Self {
        match error {
            AcquireError::Timeout(_) => Self::TimedOut,
            AcquireError::Shed { .. } => Self::Shed,
            AcquireError::Draining | AcquireError::Closed => Self::Closed,
            AcquireError::QueueFull => Self::QueueFull,
            AcquireError::Connect(_)
            | AcquireError::Unavailable(_)
            | AcquireError::WouldDeadlock(_)
            | AcquireError::NoRuntime
            | AcquireError::WouldBlock => Self::Failed,
        }
    }
}

impl<M: Manager> Drop for Wait<'_, M> {
    fn drop(&mut self) {
        if self.would_be_shed.load(Ordering::Relaxed) {
            self.keeper.totals.would_be_shed();
        }
        if let Some(outcome) = self.outcome {
            self.keeper.has_waited(self.caller, outcome, self.began.elapsed());
        }
    }
}

/// Waits in line, and prepares what arrives, until something is fit for use.
///
/// Once one has not answered its check or the hook in time, the others are checked in the background, all
/// at the same time, before a hook sees them: if a server or a network has gone without a word, that takes
/// `check_timeout` once and not once for each idle connection, and a new one is opened meanwhile.
async fn obtain<M, R>(
    keeper: &R,
    ask: &Ask<'_>,
    mut unready: Option<Lease<R>>,
    acquire: &Wait<'_, M>,
) -> Result<Loan<R>, AcquireError<M::Error>>
where
    M: Manager,
    R: Deref<Target = Shared<M>> + Clone + Send,
{
    // A caller that is told to look again, or whose connection does not pass, has been let in before.
    let mut most = if unready.is_some() { usize::MAX } else { ask.most_waiters(keeper) };
    let mut silent = false;
    loop {
        if let Some(mut lease) = unready.take() {
            if silent && is_doubtful(&mut lease, acquire.began) {
                let Some(ground) = keeper.ground_or_current() else {
                    // Nobody can check it. It goes back.
                    return Err(AcquireError::NoRuntime);
                };
                keeper.check_in_background(lease, &ground);
            } else if acquire.limit == Duration::MAX && !has_timer() {
                // What is done to it is bounded in time. It goes back.
                return Err(AcquireError::NoRuntime);
            } else {
                acquire.checks(ask, true);
                let checks = lease.flags().has(Flags::CHECK);
                let left = acquire.limit.saturating_sub(acquire.began.elapsed());
                let prepared = if left < keeper.longest_preparation() {
                    prepare_in_a_hurry(lease, &acquire.is_late).await
                } else {
                    prepare(lease).await
                };
                match prepared {
                    // Meanwhile; the sweep ends what is put back.
                    Ok(_) if keeper.core.is_closed() => return Err(keeper.closed_error()),
                    Ok(lease) if !ask.terms.is_some_and(Terms::is_left) => {
                        if let Some(loan) = lend(lease, ask.caller) {
                            return Ok(loan);
                        }
                    }
                    // Whoever is next in line may have it.
                    Ok(lease) => give_back(lease, checks),
                    Err(unfit) => silent |= unfit == Unfit::Silent,
                }
            }
        }
        acquire.checks(ask, false);
        if ask.terms.is_some_and(Terms::is_left) {
            // Nobody hears this.
            return Err(AcquireError::Closed);
        }
        let verdicts = keeper.connector.verdicts();
        let woken = {
            let _waiting = acquire.about_to_wait(ask)?;
            if let Some(terms) = ask.terms {
                terms.get_in_line();
            }
            // Cancel: `InLine` gets out of line.
            wait(keeper, ask.line, most).await
        };
        if let Some(terms) = ask.terms {
            terms.get_out_of_line(keeper);
        }
        most = usize::MAX;
        match woken {
            Woken::Lease(lease) => {
                acquire.in_time(ask)?;
                match welcome(lease, ask.caller) {
                    Ok(loan) => return Ok(loan),
                    Err(left) => unready = left,
                }
            }
            // Vacant slots are the connector's; dropping this one tells it.
            Woken::Vacant(_) | Woken::LookAgain => keeper.why_woken(ask.line, verdicts)?,
            Woken::LineFull => return Err(AcquireError::QueueFull),
        }
    }
}

/// Whether a connection is to be checked after another one has not answered an acquire that began then:
/// if it was to be anyway, or if the policy has any checked at all and it has not answered since.
fn is_doubtful<M, R>(lease: &mut Lease<R>, began: time::Instant) -> bool
where
    M: Manager,
    R: Deref<Target = Shared<M>> + Clone,
{
    let shared = lease.keeper().clone();
    lease.flags().has(Flags::CHECK)
        || shared.config.check != CheckPolicy::Never
            && !shared.has_answered_since(lease, shared.moment(began))
}

/// A connection that is ready at once.
#[inline]
pub(super) fn try_acquire<M: Manager>(
    shared: &Shared<M>,
    caller: Caller,
) -> Result<Pooled<'_, M>, TryAcquireError> {
    match look(&shared, caller) {
        Found::Ready(loan) => Ok(Pooled::new(loan)),
        found => try_acquire_slow(&shared, caller, found).map(Pooled::new),
    }
}

/// The same for a guard that owns the pool.
#[inline]
pub(super) fn try_acquire_owned<M: Manager>(
    shared: &Arc<Shared<M>>,
    caller: Caller,
) -> Result<PooledOwned<M>, TryAcquireError> {
    match look(shared, caller) {
        Found::Ready(loan) => Ok(PooledOwned::new(loan)),
        found => try_acquire_slow(shared, caller, found).map(PooledOwned::at_large),
    }
}

#[cold]
fn try_acquire_slow<M, R>(
    shared: &R,
    caller: Caller,
    mut found: Found<R>,
) -> Result<Loan<R>, TryAcquireError>
where
    M: Manager,
    R: Deref<Target = Shared<M>> + Clone,
{
    loop {
        match found {
            Found::Ready(loan) => return Ok(loan),
            Found::Flagged(lease) => match welcome(lease, caller) {
                Ok(loan) => return Ok(loan),
                Err(Some(lease)) => {
                    // It goes back if nobody can check it, or if only a hook awaits something.
                    if lease.flags().has(Flags::CHECK) {
                        if let Some(ground) = shared.ground_or_current() {
                            shared.check_in_background(lease, &ground);
                        }
                    }
                    return Err(TryAcquireError::Empty);
                }
                Err(None) => found = look(shared, caller),
            },
            Found::Nothing if !shared.core.is_closed() => return Err(TryAcquireError::Empty),
            Found::Nothing => {
                return Err(match shared.phase.load(Ordering::SeqCst) {
                    DRAINING => TryAcquireError::Draining,
                    _ => TryAcquireError::Closed,
                });
            }
        }
    }
}

/// As [`acquire_slow`], blocking the thread.
#[cold]
fn acquire_blocking_slow<M, R>(
    keeper: &R,
    ask: Ask<'_>,
    found: Found<R>,
) -> Result<Loan<R>, AcquireError<M::Error>>
where
    M: Manager,
    R: Deref<Target = Shared<M>> + Clone,
{
    let limit = ask.limit.unwrap_or(keeper.config.acquire_timeout);
    let unready = match ready(found, ask.caller) {
        Ok(loan) => return Ok(loan),
        Err(unready) => unready,
    };
    let mut wait = Wait::begin(keeper, &ask, limit);
    let served = keeper.in_span_blocking(ask.caller, || {
        acquire_blocking_waiting(keeper, ask, limit, unready, &wait)
    });
    wait.end(served)
}

fn acquire_blocking_waiting<M, R>(
    keeper: &R,
    ask: Ask<'_>,
    limit: Duration,
    mut unready: Option<Lease<R>>,
    acquire: &Wait<'_, M>,
) -> Result<Loan<R>, AcquireError<M::Error>>
where
    M: Manager,
    R: Deref<Target = Shared<M>> + Clone,
{
    if keeper.core.is_closed() {
        return Err(keeper.closed_error());
    }
    if runs_async_task() {
        return Err(AcquireError::WouldBlock);
    }
    // A limit too far away for the clock is no limit.
    let deadline = Instant::now().checked_add(limit);
    let mut most = if unready.is_some() { usize::MAX } else { ask.most_waiters(keeper) };
    let mut silent = false;
    // Not before something was prepared, or the line was of no use: whoever has no time at all takes what is
    // idle, or has one opened for the next caller.
    let heed_deadline = |checking| {
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            let late = keeper.timed_out(ask.line, acquire.began.elapsed(), checking);
            return Err(keeper.give_up(late));
        }
        Ok(())
    };
    loop {
        if let Some(mut lease) = unready.take() {
            let Some(ground) = keeper.ground_or_current() else {
                // Nobody can prepare it. It goes back.
                return Err(AcquireError::NoRuntime);
            };
            if silent && is_doubtful(&mut lease, acquire.began) {
                keeper.check_in_background(lease, &ground);
            } else {
                match prepare_blocking(lease, &ground, deadline) {
                    Ok(_) if keeper.core.is_closed() => return Err(keeper.closed_error()),
                    Ok(lease) => {
                        if let Some(loan) = lend(lease, ask.caller) {
                            return Ok(loan);
                        }
                    }
                    Err(unfit) => silent |= unfit == Unfit::Silent,
                }
                heed_deadline(true)?;
            }
        }
        let verdicts = keeper.connector.verdicts();
        let woken = {
            let _waiting = acquire.about_to_wait(&ask)?;
            wait_blocking(keeper, ask.line, most, deadline)
        };
        most = usize::MAX;
        match woken {
            Woken::Lease(lease) => {
                acquire.in_time(&ask)?;
                match welcome(lease, ask.caller) {
                    Ok(loan) => return Ok(loan),
                    Err(left) => unready = left,
                }
            }
            Woken::Vacant(_) | Woken::LookAgain => {
                keeper.why_woken(ask.line, verdicts)?;
                heed_deadline(false)?;
            }
            Woken::LineFull => return Err(AcquireError::QueueFull),
        }
    }
}

impl<M: Manager> Shared<M> {
    /// An acquire that had to wait, for so long, has come to its end.
    pub(super) fn has_waited(&self, caller: Caller, outcome: Outcome, waited: Duration) {
        if outcome == Outcome::TimedOut {
            self.has_timed_out(waited);
        }
        self.count_wait(caller, outcome, waited);
    }

    /// Counts it and tells of it.
    pub(super) fn count_wait(&self, caller: Caller, outcome: Outcome, waited: Duration) {
        self.totals.waited(outcome, nanos(waited));
        self.tell_waited(caller, outcome, waited);
    }

    /// A waiter was woken without a connection: because the pool was closed, because of a verdict
    /// since there were `verdicts`, because a slot is vacant and there is no runtime to fill it on, unless
    /// the waiter brings one along, or for nothing that concerns it.
    pub(super) fn why_woken(
        &self,
        line: Line,
        verdicts: u64,
    ) -> Result<(), AcquireError<M::Error>> {
        match self.connector.verdict_since(verdicts) {
            // One that is left may come back to those in this line.
            Some(Verdict::Down(_)) if self.has_alive_for(line) => self.look_again(line),
            Some(Verdict::Permanent { for_all: false, .. }) if matches!(line, Line::High) => {
                self.look_again(line)
            }
            Some(verdict) if !self.core.is_closed() => Err(self.give_up(verdict.into())),
            _ => self.look_again(line),
        }
    }

    /// As [`why_woken`](Self::why_woken), for one whom no verdict concerns.
    pub(super) fn look_again(&self, line: Line) -> Result<(), AcquireError<M::Error>> {
        if self.core.is_closed() {
            return Err(self.closed_error());
        }
        if self.core.has_vacant_for(line) && self.ground_or_current().is_none() {
            return Err(self.give_up(AcquireError::NoRuntime));
        }
        Ok(())
    }

    pub(super) fn closed_error(&self) -> AcquireError<M::Error> {
        match self.phase.load(Ordering::SeqCst) {
            DRAINING => AcquireError::Draining,
            _ => AcquireError::Closed,
        }
    }

    /// Whether a caller may wait for a connection, as far as connecting is concerned.
    #[inline]
    pub(super) fn may_wait(&self, line: Line) -> Result<(), AcquireError<M::Error>> {
        if self.has_alive_for(line) { Ok(()) } else { self.may_wait_slow(line) }
    }

    #[cold]
    fn may_wait_slow(&self, line: Line) -> Result<(), AcquireError<M::Error>> {
        match self.connector.refusal(self.config.fail_fast) {
            // Whether it still fails for good will show.
            Some(AcquireError::Connect(_)) if self.is_opening_for(line) => Ok(()),
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// Whether a caller may wait for room, of which a cap over several pools may have left this one none at all.
    /// Where connecting has failed, nobody can try that again either, but who waits for room already.
    #[inline]
    fn may_wait_for_room(&self) -> Result<(), AcquireError<M::Error>> {
        if self.core.limit() > 0 { Ok(()) } else { self.may_wait_for_room_slow() }
    }

    #[cold]
    fn may_wait_for_room_slow(&self) -> Result<(), AcquireError<M::Error>> {
        let counts = self.core.counts();
        if counts.alive() - counts.closing + counts.connecting > 0 {
            return Ok(());
        }
        self.connector.refusal_without_room(self.unserved() > 0).map_or(Ok(()), Err)
    }

    /// Whether a caller may wait as far as those are concerned who hold connections, for as long as the
    /// answer lives.
    pub(super) fn is_not_stuck(
        &self,
        caller: Caller,
        line: Line,
    ) -> Result<Option<Waiting<'_>>, AcquireError<M::Error>> {
        let Some(detector) = &self.detector else { return Ok(None) };
        let waiting = detector.wait(caller, line, self.core.limit());
        waiting.map_err(AcquireError::WouldDeadlock)
    }

    /// A waiter that may have been told to look again leaves without doing so: whoever is next in
    /// line must hear of it (I7).
    fn give_up(&self, error: AcquireError<M::Error>) -> AcquireError<M::Error> {
        self.vacancy();
        error
    }

    pub(super) fn timed_out(
        &self,
        line: Line,
        waited: Duration,
        checking: bool,
    ) -> AcquireError<M::Error> {
        AcquireError::Timeout(Box::new(self.timeout(line, waited, checking)))
    }

    /// What is known at the deadline.
    pub(super) fn timeout(
        &self,
        line: Line,
        waited: Duration,
        checking: bool,
    ) -> Timeout<M::Error> {
        let counts = self.core.counts();
        let last_error = self.connector.last_error().filter(|_| self.could_open_for(line));
        let (last_connect_error, failed_hook) =
            last_error.map_or((None, None), |(error, hook)| (Some(error), hook));
        let stage = if checking {
            Stage::Checking
        } else if last_connect_error.is_some() {
            Stage::ConnectFailing
        } else if self.is_opening_for(line) {
            Stage::Connecting
        } else {
            Stage::Queued
        };
        let pool = self.config.name.clone();
        let kept = match line {
            Line::General => self.kept(),
            Line::High => 0,
        };
        let longest_held = self.longest().holder;
        Timeout {
            pool,
            waited,
            stage,
            counts,
            kept,
            longest_held,
            last_connect_error,
            failed_hook,
            target: self.target(),
            cap: None,
        }
    }

    /// Whether a connection could be opened, or is being opened, for those who wait in this line. If
    /// not, a failure to connect, of whenever that was, has nothing to do with their wait.
    pub(super) fn could_open_for(&self, line: Line) -> bool {
        // What is checked may be new, and the last new ones have been of no use.
        let (useless, _) = self.connector.useless();
        self.slots_for(line).any(|slot| match self.core.state(slot) {
            State::Vacant | State::Connecting | State::Closing => true,
            State::Checking => useless > 0,
            State::InUse | State::Idle | State::Resetting | State::Spare => false,
        })
    }

    /// Whether a connection is alive that may come back to those who wait in this line: what is being closed
    /// does not.
    pub(super) fn has_alive_for(&self, line: Line) -> bool {
        self.slots_for(line).any(|slot| match self.core.state(slot) {
            State::InUse | State::Idle | State::Checking | State::Resetting => true,
            State::Vacant | State::Connecting | State::Closing | State::Spare => false,
        })
    }

    /// Whether a connection is being opened that may go to those who wait in this line.
    pub(super) fn is_opening_for(&self, line: Line) -> bool {
        self.slots_for(line).any(|slot| self.core.state(slot) == State::Connecting)
    }

    /// The slots whose connections those who wait in this line may have.
    fn slots_for(&self, line: Line) -> Range<usize> {
        let reserved = match line {
            Line::General => self.config.reserved.1,
            Line::High => 0,
        };
        reserved..self.core.capacity()
    }
}
