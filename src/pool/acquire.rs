//! How a caller gets a connection: at once, or in line until its deadline.
//!
//! Not here: who is next in line (`core`), and how connections are opened (`connector.rs`).

#[cfg(feature = "cluster")]
use super::Pool;
use super::connector::{Ground, Verdict};
use super::guard::end;
#[cfg(feature = "cluster")]
use super::guard::{Pooled, PooledBare, PooledOwned};
use super::life::{look_over, nanos};
use super::operation::{bounded, has_timer, poll_timer, timer};
use super::terms::Terms;
use super::{DRAINING, Shared, deadlock::Waiting};
use crate::config::CheckPolicy;
#[cfg(feature = "cluster")]
use crate::core::try_acquire_bare;
use crate::core::{
    Flags, Found, Keeper, Lease, Line, Loan, State, Trial, Woken, try_acquire as look, wait,
    wait_blocking,
};
use crate::error::{AcquireError, OperationError, Stage, Timeout, TryAcquireError};
use crate::manager::Manager;
use crate::metrics::{CloseReason, Outcome};
use std::future::{Future, poll_fn};
use std::ops::{Deref, Range};
use std::panic::Location;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::task;
use tokio::task::coop::{RestoreOnPending, poll_proceed};
use tokio::time::timeout;

type Caller = &'static Location<'static>;

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
        Self { caller, limit: None, line: Line::General, terms: None, counted: Counted::Here }
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
    let unready = match found {
        Found::Ready(loan) => return Ok(loan),
        Found::Flagged(lease) => match welcome(lease, ask.caller) {
            Welcome::Given(loan) => return Ok(loan),
            Welcome::Unready(lease) => Some(lease),
            Welcome::Gone => None,
        },
        Found::Nothing => None,
    };
    let wait = Wait::begin(&keeper, &ask, limit);
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
        let obtain = obtain(&keeper, &ask, unready, &wait);
        let mut obtain = pin!(keeper.in_span(ask.caller, obtain));
        if !has_deadline {
            // Without a timer it may wait for what comes back. If one is to be opened, it is told so in line.
            Some(obtain.await)
        } else {
            let began = keeper.began + Duration::from_nanos(wait.began);
            let mut timer = pin!(timer(began + limit.min(FAR_FUTURE)));
            let mut has_begun = false;
            // Cancel: `obtain` is dropped at the deadline as it would be by its caller, but that a check
            // under way goes on. Polled where it stands: `tokio::time::timeout_at` would move it.
            let before_deadline = poll_fn(move |cx| {
                let Some(mut timer) = timer.as_mut().as_pin_mut() else {
                    return Poll::Ready(Some(Err(AcquireError::NoRuntime)));
                };
                // Before `obtain` begins: on a runtime that has ended, one connection after the other would fail
                // its check. That the time is up is heeded only after it, and the timer is polled once.
                let first = if has_begun { None } else { Some(poll_timer(timer.as_mut(), cx)) };
                has_begun = true;
                if first == Some(None) {
                    return Poll::Ready(Some(Err(AcquireError::NoRuntime)));
                }
                if let Poll::Ready(obtained) = obtain.as_mut().poll(cx) {
                    return Poll::Ready(Some(obtained));
                }
                match first.unwrap_or_else(|| poll_timer(timer, cx)) {
                    None => Poll::Ready(Some(Err(AcquireError::NoRuntime))),
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
        Err(keeper.timed_out(ask.line, keeper.since(wait.began), checking))
    });
    wait.end(served)
}

/// An acquire that did not find what it wanted at once. However it ends is counted, if it is to be counted
/// here.
struct Wait<'k, M: Manager> {
    keeper: &'k Shared<M>,
    caller: Caller,
    /// By the pool's clock.
    began: u64,
    /// The same.
    deadline: u64,
    outcome: Option<Outcome>,
    /// It has a connection that is being checked.
    checking: AtomicBool,
    /// Its time is up.
    is_late: AtomicBool,
}

impl<'k, M: Manager> Wait<'k, M> {
    fn begin(keeper: &'k Shared<M>, ask: &Ask<'_>, limit: Duration) -> Self {
        let began = match ask.terms {
            None => keeper.now(),
            Some(terms) => keeper.moment(terms.began()),
        };
        // Cancel: if nothing else comes, that is the outcome.
        let outcome = (ask.counted == Counted::Here).then_some(Outcome::Cancelled);
        let (caller, deadline) = (ask.caller, began.saturating_add(nanos(limit)));
        let no = || AtomicBool::new(false);
        Self { keeper, caller, began, deadline, outcome, checking: no(), is_late: no() }
    }

    /// Whether a connection is being checked for it.
    fn checks(&self, ask: &Ask<'_>, is: bool) {
        ask.terms.map_or(&self.checking, Terms::checking).store(is, Ordering::Relaxed);
    }

    fn end<T>(
        mut self,
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
        if let Some(outcome) = self.outcome {
            self.keeper.has_waited(self.caller, outcome, self.keeper.since(self.began));
        }
    }
}

/// A limit that no clock overflows at: some 30 years.
pub(super) const FAR_FUTURE: Duration = Duration::from_secs(1 << 30);

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
            } else if acquire.deadline == u64::MAX && !has_timer() {
                // What is done to it is bounded in time. It goes back.
                return Err(AcquireError::NoRuntime);
            } else {
                acquire.checks(ask, true);
                let checks = lease.flags().has(Flags::CHECK);
                let longest = nanos(keeper.longest_preparation());
                let prepared = if acquire.deadline.saturating_sub(keeper.now()) < longest {
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
            let _waiting = match ask.terms {
                None if acquire.deadline > acquire.began => {
                    keeper.about_to_wait(ask.caller, ask.line)?
                }
                // Who may be served by another pool as well is not stuck here, nor is who does not wait.
                _ => keeper.may_wait(ask.line).map(|()| None)?,
            };
            if let Some(terms) = ask.terms {
                terms.get_in_line();
            }
            // Cancel: `Patient` gets out of line.
            wait(keeper, ask.line, most).await
        };
        if let Some(terms) = ask.terms {
            terms.get_out_of_line(keeper);
        }
        most = usize::MAX;
        match woken {
            Woken::Lease(lease) => {
                keeper.in_time(ask, acquire.began)?;
                match welcome(lease, ask.caller) {
                    Welcome::Given(loan) => return Ok(loan),
                    Welcome::Unready(lease) => unready = Some(lease),
                    Welcome::Gone => {}
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
fn is_doubtful<M, R>(lease: &mut Lease<R>, began: u64) -> bool
where
    M: Manager,
    R: Deref<Target = Shared<M>> + Clone,
{
    let shared = lease.keeper().clone();
    lease.flags().has(Flags::CHECK)
        || shared.config.check != CheckPolicy::Never && !shared.has_answered_since(lease, began)
}

/// What an acquire by somebody who looks at several pools finds at once at this one.
#[cfg(feature = "cluster")]
#[inline(always)]
pub(crate) fn attempt<M: Manager>(pool: &Arc<Shared<M>>, caller: Caller) -> Attempt<M> {
    match try_acquire_bare(pool, caller) {
        Ok(loan) => Attempt::Hit(PooledBare::new(loan)),
        Err(found) => Attempt::Miss(Missed { keeper: pool.clone(), found, caller }),
    }
}

/// What it finds.
#[cfg(feature = "cluster")]
pub(crate) enum Attempt<M: Manager> {
    Hit(PooledBare<M>),
    Miss(Missed<M>),
}

/// What a wait for it answers.
#[cfg(feature = "cluster")]
type Served<M> = Result<PooledBare<M>, AcquireError<<M as Manager>::Error>>;

/// An acquire that has not found what it wanted at once.
#[cfg(feature = "cluster")]
pub(crate) struct Missed<M: Manager> {
    keeper: Arc<Shared<M>>,
    found: Found<Arc<Shared<M>>>,
    caller: Caller,
}

#[cfg(feature = "cluster")]
impl<M: Manager> Missed<M> {
    /// Whether it was made at this pool.
    pub(crate) fn is_at(&self, pool: &Pool<M>) -> bool {
        std::ptr::eq(&*self.keeper, &*pool.shared)
    }

    pub(crate) fn manager(&self) -> &M {
        &self.keeper.manager
    }

    /// Does with what was found what can be done without waiting. If it is still a miss after that, there
    /// is nothing, or something that has to be checked or prepared.
    #[cold]
    pub(crate) fn settle(mut self) -> Attempt<M> {
        let hit = |loan: Loan<Arc<Shared<M>>>| Attempt::Hit(PooledOwned::new(loan).into());
        loop {
            let Self { keeper, found, caller } = self;
            let found = match found {
                Found::Ready(loan) => return hit(loan),
                Found::Nothing => Found::Nothing,
                Found::Flagged(lease) => match welcome(lease, caller) {
                    Welcome::Given(loan) => return hit(loan),
                    Welcome::Unready(lease) => Found::Flagged(lease),
                    Welcome::Gone => match attempt(&keeper, caller) {
                        Attempt::Hit(pooled) => return Attempt::Hit(pooled),
                        Attempt::Miss(next) => {
                            self = next;
                            continue;
                        }
                    },
                },
            };
            return Attempt::Miss(Self { keeper, found, caller });
        }
    }

    /// Whether there is an idle connection after all, which has to be checked or prepared first.
    pub(crate) fn has_found(&self) -> bool {
        !matches!(self.found, Found::Nothing)
    }

    /// Goes on as any acquire does, for `limit` at the most.
    pub(crate) async fn wait(self, limit: Duration, counted: Counted) -> Served<M> {
        let Self { keeper, found, caller } = self;
        let ask = Ask { limit: Some(limit), counted, ..Ask::new(caller) };
        acquire_slow(keeper, ask, found).await.map(|loan| PooledOwned::new(loan).into())
    }

    /// Goes on for an acquire that began then and waits elsewhere too, on these terms and without a
    /// deadline.
    pub(crate) fn wait_among_others(
        self,
        began: tokio::time::Instant,
    ) -> (Arc<Terms>, impl Future<Output = Served<M>> + use<M>) {
        let patients = self.keeper.connector.patients.clone();
        let terms = Arc::new(Terms::new(patients, began, self.has_found()));
        let patient = Patient { keeper: self.keeper.clone(), terms: terms.clone() };
        let waiting = async move {
            // Dropped after the wait.
            let patient = patient;
            let Self { keeper, found, caller } = self;
            let (limit, terms) = (Some(Duration::MAX), Some(&*patient.terms));
            let ask = Ask { limit, terms, counted: Counted::Elsewhere, ..Ask::new(caller) };
            acquire_slow(keeper, ask, found).await.map(|loan| PooledOwned::new(loan).into())
        };
        (terms, waiting)
    }
}

/// A wait that may be patient, and that may be given up.
#[cfg(feature = "cluster")]
struct Patient<M: Manager> {
    keeper: Arc<Shared<M>>,
    terms: Arc<Terms>,
}

#[cfg(feature = "cluster")]
impl<M: Manager> Drop for Patient<M> {
    fn drop(&mut self) {
        self.terms.get_out_of_line(&self.keeper);
    }
}

/// The same for an acquire that borrows the pool.
#[cfg(feature = "cluster")]
pub(crate) struct MissedHere<'p, M: Manager> {
    keeper: &'p Shared<M>,
    found: Found<&'p Shared<M>>,
    caller: Caller,
}

#[cfg(feature = "cluster")]
impl<'p, M: Manager> MissedHere<'p, M> {
    #[inline(always)]
    pub(super) fn attempt(keeper: &'p Shared<M>, caller: Caller) -> Result<Pooled<'p, M>, Self> {
        match look(&keeper, caller) {
            Found::Ready(loan) => Ok(Pooled::new(loan)),
            found => Err(Self { keeper, found, caller }),
        }
    }

    /// Goes on as any acquire does.
    pub(crate) async fn wait(self) -> Result<Pooled<'p, M>, AcquireError<M::Error>> {
        let Self { keeper, found, caller } = self;
        acquire_slow(keeper, Ask::new(caller), found).await.map(Pooled::new)
    }
}

/// What becomes of a connection that leaves the fast path on its way to a caller.
enum Welcome<R: Deref<Target: Keeper> + Clone> {
    Given(Loan<R>),
    /// It has to be checked, or a hook awaits something.
    Unready(Lease<R>),
    /// It was ended.
    Gone,
}

/// Does what can be done without waiting.
fn welcome<M, R>(mut lease: Lease<R>, caller: Caller) -> Welcome<R>
where
    M: Manager,
    R: Deref<Target = Shared<M>> + Clone,
{
    if lease.flags().has(Flags::LOOK) {
        match look_over(lease) {
            Some(fit) => lease = fit,
            None => return Welcome::Gone,
        }
    }
    if lease.flags().has(Flags::CHECK) || lease.keeper().hooks.before_acquire.is_some() {
        return Welcome::Unready(lease);
    }
    lend(lease, caller).map_or(Welcome::Gone, Welcome::Given)
}

/// Hands a connection out, unless the hook rejects it.
fn lend<M, R>(mut lease: Lease<R>, caller: Caller) -> Option<Loan<R>>
where
    M: Manager,
    R: Deref<Target = Shared<M>> + Clone,
{
    if lease.flags().has(Flags::GREET) {
        let shared = lease.keeper().clone();
        let uses = lease.uses();
        let new = lease.resource_mut().is_new(uses);
        if let Err(message) = shared.hooks.checkout(&lease.resource_mut().connection) {
            shared.rejected(new, OperationError::Panicked { message });
            end(lease, CloseReason::Rejected);
            return None;
        }
        shared.accepted(new);
        if let Some(detector) = &shared.detector {
            detector.lent(lease.number(), caller);
        }
        if shared.config.time_use {
            lease.resource_mut().lent_at = shared.now();
        }
        if shared.config.trace_uses {
            let tenant = lease.resource_mut();
            tenant.span = shared.use_span(tenant.id, caller);
        }
    }
    Some(lease.lend(caller))
}

/// A connection did not pass, and has been closed.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Unfit {
    Failed,
    /// It did not answer in time.
    Silent,
}

impl<E> From<&OperationError<E>> for Unfit {
    fn from(error: &OperationError<E>) -> Self {
        match error {
            OperationError::TimedOut { .. } => Self::Silent,
            OperationError::Failed(_) | OperationError::Panicked { .. } => Self::Failed,
        }
    }
}

/// Checks a connection if it has to be, and has the hook prepare it; closes it if either fails.
///
/// # Cancel safety
///
/// As [`check`].
async fn prepare<M, R>(mut lease: Lease<R>) -> Result<Lease<R>, Unfit>
where
    M: Manager,
    R: Deref<Target = Shared<M>> + Clone + Send,
{
    if lease.flags().has(Flags::CHECK) {
        lease = check(lease.begin(State::Checking)).await?;
    }
    let shared = lease.keeper().clone();
    let Some(hook) = &shared.hooks.before_acquire else { return Ok(lease) };
    let mut trial = lease.begin(State::Checking);
    let limit = shared.config.check_timeout;
    let connection = &mut trial.resource_mut().connection;
    let prepared = bounded("check_timeout", limit, async { hook(connection).await }).await;
    shared.totals.tried();
    match prepared {
        Ok(()) => Ok(trial.pass()),
        Err(error) => {
            let unfit = Unfit::from(&error);
            let uses = trial.uses();
            shared.rejected(trial.resource_mut().is_new(uses), error);
            shared.close_connection(trial.fail(), CloseReason::Rejected);
            Err(unfit)
        }
    }
}

/// As [`prepare`], for a caller who may not have the time for it. If `is_late` says that it was too
/// little, what has begun goes on in the background, and its connection stays in the pool: otherwise each
/// caller in a hurry would cost one.
fn prepare_in_a_hurry<M, R>(
    lease: Lease<R>,
    is_late: &AtomicBool,
) -> impl Future<Output = Result<Lease<R>, Unfit>> + Send
where
    M: Manager,
    R: Deref<Target = Shared<M>> + Clone + Send,
{
    let keeper = lease.keeper().clone();
    let checks = lease.flags().has(Flags::CHECK);
    let work = Box::pin(prepare(lease.with_keeper(keeper.arc())));
    let mut begun = Begun { work: Some(work), checks, is_late, pool: keeper.me.clone() };
    poll_fn(move |cx| {
        let Some(work) = &mut begun.work else { unreachable!("BUG: polled after its end") };
        let Poll::Ready(prepared) = work.as_mut().poll(cx) else { return Poll::Pending };
        begun.work = None;
        Poll::Ready(prepared.map(|lease| lease.with_keeper(keeper.clone())))
    })
}

type Preparing<M> = Pin<Box<dyn Future<Output = Result<Lease<Arc<Shared<M>>>, Unfit>> + Send>>;

/// A connection that is being prepared for a caller who may not wait for that.
struct Begun<'a, M: Manager> {
    work: Option<Preparing<M>>,
    /// It is being checked, not only shown to a hook.
    checks: bool,
    is_late: &'a AtomicBool,
    pool: Weak<Shared<M>>,
}

impl<M: Manager> Drop for Begun<'_, M> {
    fn drop(&mut self) {
        let Some(work) = self.work.take() else { return };
        if !self.is_late.load(Ordering::Relaxed) {
            // The caller has gone, and what it began goes with it.
            return;
        }
        let Some(pool) = self.pool.upgrade() else { return };
        let checks = self.checks;
        // Cancel: dropping the work closes the connection.
        pool.bring_to_an_end(async move {
            if let Ok(lease) = work.await {
                give_back(lease, checks);
            }
        });
    }
}

/// Gives back a connection that was prepared for a caller who has gone. A check that it has passed is not
/// in vain: otherwise it would be flagged for the next one soon, and whoever comes seldom and waits briefly
/// would never be served.
fn give_back<M, R>(mut lease: Lease<R>, checked: bool)
where
    M: Manager,
    R: Deref<Target = Shared<M>> + Clone,
{
    if checked {
        lease.keeper().clone().has_checked(&mut lease);
    }
}

/// Checks a connection; closes it if it fails.
///
/// # Cancel safety
///
/// Dropping the future closes the connection: nobody knows where the check has left it.
pub(super) async fn check<M, R>(mut trial: Trial<R>) -> Result<Lease<R>, Unfit>
where
    M: Manager,
    R: Deref<Target = Shared<M>> + Clone + Send,
{
    let shared = trial.keeper().clone();
    let limit = shared.config.check_timeout;
    shared.totals.check();
    let connection = &mut trial.resource_mut().connection;
    let check = bounded("check_timeout", limit, async { shared.manager.check(connection).await });
    let checked = check.await;
    shared.totals.tried();
    match checked {
        Ok(()) => Ok(trial.pass()),
        Err(error) => {
            shared.tell_unfit(trial.resource_mut().id, "a check", &error);
            shared.doubt_idle();
            shared.close_connection(trial.fail(), CloseReason::FailedCheck);
            Err((&error).into())
        }
    }
}

/// A connection that is ready at once.
#[inline]
pub(super) fn try_acquire<M, R>(shared: &R, caller: Caller) -> Result<Loan<R>, TryAcquireError>
where
    M: Manager,
    R: Deref<Target = Shared<M>> + Clone,
{
    match look(shared, caller) {
        Found::Ready(loan) => Ok(loan),
        found => try_acquire_slow(shared, caller, found),
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
                Welcome::Given(loan) => return Ok(loan),
                Welcome::Unready(lease) => {
                    // It goes back if nobody can check it, or if only a hook awaits something.
                    if lease.flags().has(Flags::CHECK) {
                        if let Some(ground) = shared.ground_or_current() {
                            shared.check_in_background(lease, &ground);
                        }
                    }
                    return Err(TryAcquireError::Empty);
                }
                Welcome::Gone => found = look(shared, caller),
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
pub(super) fn acquire_blocking_slow<M, R>(
    keeper: &R,
    ask: Ask<'_>,
    found: Found<R>,
) -> Result<Loan<R>, AcquireError<M::Error>>
where
    M: Manager,
    R: Deref<Target = Shared<M>> + Clone,
{
    let limit = ask.limit.unwrap_or(keeper.config.acquire_timeout);
    let unready = match found {
        Found::Ready(loan) => return Ok(loan),
        Found::Flagged(lease) => match welcome(lease, ask.caller) {
            Welcome::Given(loan) => return Ok(loan),
            Welcome::Unready(lease) => Some(lease),
            Welcome::Gone => None,
        },
        Found::Nothing => None,
    };
    let wait = Wait::begin(keeper, &ask, limit);
    let served = keeper.in_span_blocking(ask.caller, || {
        acquire_blocking_waiting(keeper, ask, limit, unready, wait.began)
    });
    wait.end(served)
}

fn acquire_blocking_waiting<M, R>(
    keeper: &R,
    ask: Ask<'_>,
    limit: Duration,
    mut unready: Option<Lease<R>>,
    began: u64,
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
    loop {
        let mut checking = false;
        if let Some(mut lease) = unready.take() {
            let Some(ground) = keeper.ground_or_current() else {
                // Nobody can prepare it. It goes back.
                return Err(AcquireError::NoRuntime);
            };
            if silent && is_doubtful(&mut lease, began) {
                keeper.check_in_background(lease, &ground);
            } else {
                checking = true;
                match prepare_blocking(lease, &ground, deadline) {
                    Ok(_) if keeper.core.is_closed() => return Err(keeper.closed_error()),
                    Ok(lease) => {
                        if let Some(loan) = lend(lease, ask.caller) {
                            return Ok(loan);
                        }
                    }
                    Err(unfit) => silent |= unfit == Unfit::Silent,
                }
            }
        }
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            let late = keeper.timed_out(ask.line, keeper.since(began), checking);
            return Err(keeper.give_up(late));
        }
        let verdicts = keeper.connector.verdicts();
        let woken = {
            let _waiting = keeper.about_to_wait(ask.caller, ask.line)?;
            wait_blocking(keeper, ask.line, most, deadline)
        };
        most = usize::MAX;
        match woken {
            Woken::Lease(lease) => {
                keeper.in_time(&ask, began)?;
                match welcome(lease, ask.caller) {
                    Welcome::Given(loan) => return Ok(loan),
                    Welcome::Unready(lease) => unready = Some(lease),
                    Welcome::Gone => {}
                }
            }
            Woken::Vacant(_) | Woken::LookAgain => keeper.why_woken(ask.line, verdicts)?,
            Woken::LineFull => return Err(AcquireError::QueueFull),
        }
    }
}

/// As [`prepare`], on the pool's runtime: this thread may be unable to drive timers. A connection
/// that is ready after the deadline goes back to the pool.
fn prepare_blocking<M, R>(
    lease: Lease<R>,
    ground: &Ground,
    deadline: Option<Instant>,
) -> Result<Lease<R>, Unfit>
where
    M: Manager,
    R: Deref<Target = Shared<M>> + Clone,
{
    let keeper = lease.keeper().clone();
    let lease = lease.with_keeper(keeper.arc());
    let checked = lease.flags().has(Flags::CHECK);
    let (report, prepared) = mpsc::sync_channel(1);
    ground.spawn(async move {
        let prepared = prepare(lease).await;
        // Whoever does not wait any more does not want it, and dropping it puts it back.
        drop(report.send(prepared.map(|lease| Prepared { lease: Some(lease), checked })));
    });
    let prepared = match deadline {
        None => prepared.recv().ok(),
        Some(deadline) => {
            prepared.recv_timeout(deadline.saturating_duration_since(Instant::now())).ok()
        }
    };
    // Nothing comes of it if the deadline is first, or the runtime ends.
    let mut prepared = prepared.unwrap_or(Err(Unfit::Failed))?;
    let lease = prepared.lease.take().ok_or(Unfit::Failed)?;
    Ok(lease.with_keeper(keeper))
}

/// A connection on its way to a thread that may have given up, though it seemed to wait when this was sent.
struct Prepared<M: Manager> {
    lease: Option<Lease<Arc<Shared<M>>>>,
    checked: bool,
}

impl<M: Manager> Drop for Prepared<M> {
    fn drop(&mut self) {
        if let Some(lease) = self.lease.take() {
            give_back(lease, self.checked);
        }
    }
}

/// The budget that tokio gives a task for one poll.
const COOP_BUDGET: usize = 128;

/// Whether this thread is running an asynchronous task of tokio's.
///
/// A task has a budget of operations for each poll; `spawn_blocking` and plain threads have no
/// limit. So this spends the budget, sees whether it ran out, and puts it back.
pub(crate) fn runs_async_task() -> bool {
    if Handle::try_current().is_err() {
        return false;
    }
    let mut cx = Context::from_waker(Waker::noop());
    let mut spent: [Option<RestoreOnPending>; COOP_BUDGET + 1] = [const { None }; COOP_BUDGET + 1];
    let limited = spent.iter_mut().any(|unit| match poll_proceed(&mut cx) {
        Poll::Ready(restore) => {
            *unit = Some(restore);
            false
        }
        Poll::Pending => true,
    });
    // Each unit restores the budget to what it was before it: the first must be the last to go.
    for unit in spent.iter_mut().rev() {
        *unit = None;
    }
    limited
}

impl<M: Manager> Shared<M> {
    /// How long a check and a hook may take.
    fn longest_preparation(&self) -> Duration {
        self.config.check_timeout.saturating_mul(2)
    }

    /// Goes on elsewhere with a check and a hook that a caller does not wait for any more, and drops them if
    /// they take too long. What bounds them so far is a timer of the caller's runtime, which nobody may
    /// drive any more; if that runtime ends meanwhile, tokio has them end with a panic, which costs the
    /// connection.
    pub(crate) fn bring_to_an_end(&self, work: impl Future<Output = ()> + Send + 'static) {
        let Some(ground) = self.ground_or_current() else { return };
        let longest = self.longest_preparation();
        ground.spawn(async move { drop(timeout(longest, work).await) });
    }

    /// An acquire that had to wait, for so long, has come to its end.
    pub(super) fn has_waited(&self, caller: Caller, outcome: Outcome, waited: Duration) {
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

    /// The same for one whom no verdict concerns.
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

    /// Whether a caller may wait for a connection, for as long as the answer lives.
    pub(super) fn about_to_wait(
        &self,
        caller: Caller,
        line: Line,
    ) -> Result<Option<Waiting<'_>>, AcquireError<M::Error>> {
        self.may_wait(line)?;
        self.is_not_stuck(caller, line)
    }

    /// The same as far as connecting is concerned.
    pub(super) fn may_wait(&self, line: Line) -> Result<(), AcquireError<M::Error>> {
        if self.config.fail_fast && !self.has_alive_for(line) {
            if let Some(error) = self.connector.error_while_probing() {
                return Err(AcquireError::Unavailable(error));
            }
        }
        Ok(())
    }

    /// The same as far as those are concerned who hold connections.
    pub(super) fn is_not_stuck(
        &self,
        caller: Caller,
        line: Line,
    ) -> Result<Option<Waiting<'_>>, AcquireError<M::Error>> {
        let Some(detector) = &self.detector else { return Ok(None) };
        let waiting = detector.wait(caller, line, self.core.limit());
        waiting.map(Some).map_err(AcquireError::WouldDeadlock)
    }

    /// Whether a caller that has been in line since `began` is still to be served.
    fn in_time(&self, ask: &Ask<'_>, began: u64) -> Result<(), AcquireError<M::Error>> {
        let Some(shedder) = &self.shedder else { return Ok(()) };
        let now = self.now();
        let waited = Duration::from_nanos(now.saturating_sub(began));
        let is_late = shedder.is_too_late(now, waited, ask.line, self.core.waiters() == 0);
        if !is_late || ask.counted == Counted::Never {
            return Ok(());
        }
        self.totals.shed();
        if shedder.reports_only() { Ok(()) } else { Err(AcquireError::Shed { waited }) }
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
        let counts = self.core.counts();
        let last_connect_error = self.connector.last_error().filter(|_| self.could_open_for(line));
        let stage = if checking {
            Stage::Checking
        } else if last_connect_error.is_some() {
            Stage::ConnectFailing
        } else if counts.connecting > 0 {
            Stage::Connecting
        } else {
            Stage::Queued
        };
        let pool = self.config.name.clone();
        let kept = match line {
            Line::General => self.kept(),
            Line::High => 0,
        };
        let longest_held = self.oldest_holder();
        AcquireError::Timeout(Box::new(Timeout {
            pool,
            waited,
            stage,
            counts,
            kept,
            longest_held,
            last_connect_error,
        }))
    }

    /// Whether a connection could be opened, or is being opened, for those who wait in this line. If
    /// not, a failure to connect, of whenever that was, has nothing to do with their wait.
    fn could_open_for(&self, line: Line) -> bool {
        // What is checked may be new, and the last new ones have been rejected.
        let (rejections, _) = self.connector.rejections();
        self.slots_for(line).any(|slot| match self.core.glimpse(slot).state {
            State::Vacant | State::Connecting | State::Closing => true,
            State::Checking => rejections > 0,
            State::InUse | State::Idle | State::Resetting | State::Spare => false,
        })
    }

    /// Whether a connection is alive that may come back to those who wait in this line.
    pub(super) fn has_alive_for(&self, line: Line) -> bool {
        let is_empty = |state| matches!(state, State::Vacant | State::Connecting | State::Spare);
        self.slots_for(line).any(|slot| !is_empty(self.core.glimpse(slot).state))
    }

    /// The slots whose connections those who wait in this line may have.
    fn slots_for(&self, line: Line) -> Range<usize> {
        let reserved = match line {
            Line::General => self.config.reserved.1,
            Line::High => 0,
        };
        reserved..self.core.capacity()
    }

    /// Checks a connection on the pool's runtime; if it passes, it goes to whoever is first in
    /// line, and needs no other check until it has been used.
    fn check_in_background<R>(&self, mut lease: Lease<R>, ground: &Ground)
    where
        R: Deref<Target = Self> + Clone,
    {
        let trial = lease.begin(State::Checking).with_keeper(self.arc());
        ground.spawn(async move {
            if let Ok(mut lease) = check(trial).await {
                lease.keeper().clone().has_checked(&mut lease);
            }
        });
    }
}
