//! What an operator does to a pool: resize, warm up, invalidate, rotate, pick out, drain, look who
//! holds what.
//!
//! Not here: what the pool does by itself.

use super::builder::target_of;
use super::deadlock::Detector;
use super::life::{look_over, nanos};
use super::operation::{Over, bounded, has_timer, unless, within};
use super::terms::{InLine, Terms};
use super::{CLOSED, DRAINING, Holder, OPEN, Pool, Shared, lock};
use crate::core::{Keeper, Lease, Line, Reservation, Search, State, Trial, Woken, reserve, wait};
use crate::error::{
    AcquireError, ConfigError, ConnectError, OperationError, RotateError, WarmUpError,
    check_capacity,
};
use crate::hooks::HookFuture;
use crate::manager::Manager;
use crate::metrics::CloseReason;
use crate::pool::ConnectionInfo;
use event_listener::{Listener, listener};
use std::fmt;
use std::future::poll_fn;
use std::panic::Location;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// What [`Pool::drain`] has done.
///
/// Who still holds a connection is told here alone, so the compiler warns where nobody looks:
///
/// ```compile_fail
/// #![deny(unused_must_use)]
/// # use millpond::{Manager, Pool};
/// # use std::time::Duration;
/// # async fn example<M: Manager>(pool: Pool<M>, limit: Duration) {
/// pool.drain(limit).await;
/// # }
/// ```
#[must_use = "the report says who still holds a connection"]
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DrainReport {
    /// Connections whose end has begun meanwhile; the last of them may still be closing, each for up to
    /// `close_timeout`.
    pub closed: u64,
    /// Who still held a connection at the end. Each is closed when its guard is dropped.
    pub still_out: Vec<Holder>,
}

impl fmt::Display for DrainReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} closed, {} still out", self.closed, self.still_out.len())?;
        for holder in &self.still_out {
            write!(f, "; {holder}")?;
        }
        Ok(())
    }
}

impl<M: Manager> Pool<M> {
    /// The most connections that may be alive or being opened at the moment: `max_size`, or what the
    /// pool was [resized](Self::resize) to.
    #[must_use]
    pub fn max_size(&self) -> usize {
        self.shared.core.limit()
    }

    /// Changes the most connections that may be alive or being opened, from 1 to `capacity`.
    ///
    /// A larger pool opens connections for those who wait, at once. A smaller one closes idle
    /// connections now, and as many of those in use as are still too many when they come back; until
    /// then there are more than the new limit, but never more than the limit and those that were out. It
    /// also ends at once what is past its `max_lifetime` less its jitter. With
    /// [`detect_deadlock`](crate::Config::detect_deadlock), those who wait and are stuck with fewer are told so.
    /// The pool keeps its [shards](crate::Config::shards), whatever its size.
    /// A closed pool stays closed, and opens nothing.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] for `max_size` if it is 0 or above `capacity`, and for `reserved` if that leaves
    /// nothing for others.
    ///
    /// # Examples
    ///
    /// ```
    /// # use millpond::{Pool, from_fn};
    /// # use std::convert::Infallible;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let manager = from_fn(|| async { Ok::<_, Infallible>(String::from("hello")) });
    /// let pool = Pool::builder(manager).max_size(4).capacity(8).build().await?;
    /// pool.resize(8)?;
    /// pool.resize(1)?;
    /// let error = pool.resize(9).unwrap_err();
    /// assert_eq!(error.to_string(), "max_size is 9, but it must be at most capacity, which is 8");
    /// # Ok(()) }
    /// ```
    pub fn resize(&self, max_size: usize) -> Result<(), ConfigError> {
        let shared = &*self.shared;
        check_capacity("max_size", max_size)?;
        let capacity = shared.core.capacity();
        if max_size > capacity {
            let rule = format!("must be at most capacity, which is {capacity}");
            return Err(ConfigError::new("max_size", max_size, rule));
        }
        shared.config.check_reserved(max_size)?;
        shared.connector.end_truce();
        shared.end_resize(shared.begin_resize(max_size));
        Ok(())
    }

    /// Opens connections until `count` are open, in use or not; returns when they are. Never more
    /// than the pool may have: fewer if it is made smaller meanwhile, and without those that are
    /// [reserved](crate::PoolBuilder::reserved), which are opened for those who may have them.
    ///
    /// They are opened on the pool's runtime. While nobody drives that, such as one of a single thread
    /// outside `block_on`, this waits for them without a limit.
    ///
    /// # Errors
    ///
    /// - [`WarmUpError::TooMany`] if `count` is above [`max_size`](Self::max_size).
    /// - [`WarmUpError::Connect`] as soon as one of them cannot be opened, or is [lost](crate::LossSignal) at once.
    /// - [`WarmUpError::Closed`] if the pool is closed, before or meanwhile.
    /// - [`WarmUpError::NoRuntime`] outside a tokio runtime with a timer, or if it has ended, or the
    ///   pool's own ends meanwhile.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future stops the connects that it has begun; what is open stays open.
    ///
    /// # Examples
    ///
    /// ```
    /// # use millpond::{Pool, from_fn};
    /// # use std::convert::Infallible;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let manager = from_fn(|| async { Ok::<_, Infallible>(String::from("hello")) });
    /// let pool = Pool::builder(manager).max_size(4).build().await?;
    /// pool.warm_up(3).await?; // before the rush
    /// assert_eq!(pool.counts().idle, 3);
    /// # Ok(()) }
    /// ```
    pub async fn warm_up(&self, count: usize) -> Result<(), WarmUpError<M::Error>> {
        let most = self.max_size();
        if count > most {
            let rule = format!("must be at most max_size, which is {most}");
            return Err(WarmUpError::TooMany(ConfigError::new("warm_up", count, rule)));
        }
        if !has_timer() {
            return Err(WarmUpError::NoRuntime);
        }
        self.shared.connector.end_truce();
        if let Err(error) = self.shared.open(count).await {
            // It is not tried again at once, but at the next look.
            self.shared.keeps_idle.store(true, Ordering::Relaxed);
            return Err(error);
        }
        self.shared.keep_idle();
        Ok(())
    }

    /// Declares all connections of the pool out of date: idle ones are closed now, those in use when
    /// they come back, and those that are being opened when they arrive. No acquire that begins after
    /// this gets one of them. For a failover, or whatever else makes them useless.
    ///
    /// # Examples
    ///
    /// ```
    /// # use millpond::{Pool, from_fn};
    /// # use std::convert::Infallible;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let manager = from_fn(|| async { Ok::<_, Infallible>(String::from("hello")) });
    /// let pool = Pool::builder(manager).max_size(1).build().await?;
    /// let before = pool.acquire().await?.info().id;
    /// pool.invalidate();
    /// assert_ne!(pool.acquire().await?.info().id, before);
    /// # Ok(()) }
    /// ```
    pub fn invalidate(&self) {
        self.shared.connector.end_truce();
        self.shared.next_generation();
        self.shared.look_at_all();
    }

    /// Goes over to new credentials or another endpoint: opens one connection, has `verify` try it,
    /// and only if that goes well [invalidates](Self::invalidate) all others. The manager must
    /// connect the new way already, for instance because it reads a `watch` channel.
    ///
    /// Rotations of a pool take turns: each begins when the one before it is over. If the pool is full then, one
    /// connection makes room: one that is closing anyway, as right after another rotation, for which this waits up
    /// to `close_timeout`, and so it does, beside the last one there is, for one that is being opened and may be
    /// refused; then an idle one, or the first that comes back or ends, or is refused after all, `fail_fast` or
    /// not. That is no acquire: no hook of one sees it, and it is not counted as one; but in line it is one of those
    /// that `max_waiters` are compared with. For its turn and in line it waits up to `acquire_timeout` in all.
    /// `verify`, which runs where this is awaited, may take `check_timeout`. The connection is opened on the pool's
    /// runtime. While nobody drives that, such as one of a single thread outside `block_on`, this waits for it without
    /// a limit.
    ///
    /// # Errors
    ///
    /// - [`RotateError::Connect`], [`RotateError::Verify`], [`RotateError::NoRoom`]: the others go on
    ///   as before, one fewer if that one has made room. But where connecting failed
    ///   [for good](Manager::is_permanent), nothing is opened for `min_idle` or because nothing is open,
    ///   until one is opened for somebody who has to wait, for a warm-up to more than there are, or for
    ///   another rotation; and while others are alive, for whoever waits only after a pause.
    /// - [`RotateError::Closed`] if the pool is closed, before or meanwhile, which ends `verify` too;
    ///   [`RotateError::NoRuntime`] outside a tokio runtime with a timer, or on one that has ended
    ///   or ends while this waits for room, or if the pool's own ends while this connects.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future stops its connect, or closes the new connection; the others go on as before. While it is
    /// neither polled nor dropped, it keeps its turn.
    ///
    /// # Examples
    ///
    /// ```
    /// # use millpond::{Pool, from_fn};
    /// # use std::convert::Infallible;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let manager = from_fn(|| async { Ok::<_, Infallible>(String::from("hello")) });
    /// let pool = Pool::builder(manager).min_idle(2).build().await?;
    /// pool.rotate(|connection| {
    ///     Box::pin(async move {
    ///         assert_eq!(connection, "hello"); // such as `SELECT current_user`
    ///         Ok(())
    ///     })
    /// })
    /// .await?;
    /// assert_eq!(pool.metrics().closed.invalidated, 2);
    /// # Ok(()) }
    /// ```
    #[track_caller]
    pub fn rotate<F>(
        &self,
        verify: F,
    ) -> impl Future<Output = Result<(), RotateError<M::Error>>> + Send + use<'_, M, F>
    where
        F: for<'c> FnOnce(&'c mut M::Connection) -> HookFuture<'c, M::Error> + Send,
    {
        let caller = Location::caller();
        async move {
            if !has_timer() {
                return Err(RotateError::NoRuntime);
            }
            let shared = self.shared.clone();
            shared.connector.end_truce();
            // It may lead elsewhere from now on.
            let target = target_of(&shared.manager);
            *lock(&shared.target) = target;
            // Before anything is closed to make room.
            if shared.ground_or_current().is_none() {
                return Err(RotateError::NoRuntime);
            }
            let began = shared.now();
            let turn = shared.in_time(began, shared.turn(caller)).await?;
            // Cancel: what it has begun gives the slot back, and the turn, declared first, goes to the next rotation
            // after that.
            let vacant = shared.make_room(caller, began).await?;
            // Cancel: it waits in its slot, so that whatever happens closes it and gives the slot back, and then the
            // turn.
            let Tried { turn: _turn, mut trial } =
                shared.open_to_rotate(Rotating { vacant, turn }).await?;
            let limit = shared.config.check_timeout;
            let connection = &mut trial.resource_mut().connection;
            let verdict = bounded("check_timeout", limit, async { verify(connection).await });
            let verdict = shared.unless_closed(verdict).await;
            shared.totals.tried();
            match verdict {
                None => {
                    shared.close_connection(trial.fail(), shared.closed_because());
                    Err(RotateError::Closed)
                }
                Some(verdict) if trial.resource_mut().is_lost() => {
                    let after = trial.resource_mut().created.elapsed();
                    shared.lost(trial.resource_mut(), true, after);
                    shared.close_connection(trial.fail(), CloseReason::Broken);
                    let lost = || {
                        RotateError::Connect(shared.connect_error(OperationError::Lost { after }))
                    };
                    Err(verdict.map_or_else(RotateError::Verify, |()| lost()))
                }
                Some(Ok(())) => {
                    let generation = shared.next_generation();
                    let tenant = trial.resource_mut();
                    // It belongs to the generation that it begins, unless others have begun one
                    // since it was opened: then it is as old as all the rest.
                    if tenant.generation + 1 == generation {
                        tenant.generation = generation;
                    }
                    shared.look_at_all();
                    drop(trial.pass());
                    // Both may have happened before this was polled.
                    if shared.core.is_closed() { Err(RotateError::Closed) } else { Ok(()) }
                }
                Some(Err(error)) => {
                    shared.close_connection(trial.fail(), CloseReason::FailedCheck);
                    Err(RotateError::Verify(error))
                }
            }
        }
    }

    /// Closes the idle connections that `keep` does not want; answers how many. It sees one at a
    /// time, and nobody else waits for that; those in use it does not see.
    ///
    /// # Panics
    ///
    /// If `keep` does; the connection that it saw is closed.
    ///
    /// # Examples
    ///
    /// ```
    /// # use millpond::{Pool, from_fn};
    /// # use std::convert::Infallible;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let manager = from_fn(|| async { Ok::<_, Infallible>(String::from("hello")) });
    /// let pool = Pool::builder(manager).build().await?;
    /// pool.warm_up(4).await?;
    /// let closed = pool.retain(|_, info| info.id % 2 == 0);
    /// assert_eq!(closed, 2);
    /// # Ok(()) }
    /// ```
    pub fn retain(
        &self,
        mut keep: impl FnMut(&mut M::Connection, &ConnectionInfo) -> bool,
    ) -> usize {
        let shared = &*self.shared;
        let mut removed = 0;
        let mut search = Search::new(shared);
        while let Some(lease) = search.next(|_| true) {
            let Some(mut lease) = look_over(lease) else { continue };
            let (slot, uses) = (lease.number(), lease.uses());
            let tenant = lease.resource_mut();
            let info = tenant.info(uses, Some(shared.idle_for(slot, tenant.id, uses)));
            // A trial, so that a panic closes the connection.
            let mut trial = lease.begin(State::Checking);
            if keep(&mut trial.resource_mut().connection, &info) {
                search.restore(trial.pass());
            } else {
                removed += 1;
                shared.close_connection(trial.fail(), CloseReason::Removed);
            }
        }
        removed
    }

    /// Who holds a connection at the moment, and where it was acquired. Costs one pass over all
    /// slots.
    ///
    /// # Examples
    ///
    /// ```
    /// # use millpond::{Pool, from_fn};
    /// # use std::convert::Infallible;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let manager = from_fn(|| async { Ok::<_, Infallible>(String::from("hello")) });
    /// let pool = Pool::builder(manager).build().await?;
    /// let connection = pool.acquire().await?;
    /// let holders = pool.holders();
    /// assert_eq!(holders[0].connection, connection.info().id);
    /// assert!(holders[0].site.is_some_and(|site| site.line() > 0));
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn holders(&self) -> Vec<Holder> {
        self.shared.holders()
    }

    /// Closes the pool for good like [`close`](Self::close), but waits for the connections that are
    /// in use too, for `limit` at the most. Meanwhile whoever waits or comes gets
    /// [`AcquireError::Draining`](crate::AcquireError::Draining), afterwards
    /// [`AcquireError::Closed`](crate::AcquireError::Closed). May be called again, and by several
    /// tasks at once: it is being drained until the last of them is done. Outside a tokio runtime, and
    /// on one without a timer or that has ended, it does not wait, and no longer than its runtime lives.
    ///
    /// # Cancel safety
    ///
    /// The pool refuses everything from the first poll. Dropping the future only stops waiting.
    ///
    /// # Examples
    ///
    /// ```
    /// # use millpond::{Pool, from_fn};
    /// # use std::{convert::Infallible, time::Duration};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let manager = from_fn(|| async { Ok::<_, Infallible>(String::from("hello")) });
    /// let pool = Pool::builder(manager).build().await?;
    /// let connection = pool.acquire().await?;
    /// let report = pool.drain(Duration::from_millis(10)).await;
    /// println!("{report}"); // says who holds it, with file and line
    /// assert_eq!(report.still_out.len(), 1);
    /// # Ok(()) }
    /// ```
    pub async fn drain(&self, limit: Duration) -> DrainReport {
        self.shared.drain(limit).await
    }

    /// As [`drain`](Self::drain), blocking the thread.
    pub(crate) fn drain_blocking(&self, limit: Duration) -> DrainReport {
        let draining = Draining::begin(&self.shared);
        let deadline = Instant::now().checked_add(limit);
        loop {
            listener!(self.shared.changed => changed);
            if self.shared.is_empty() {
                break;
            }
            match deadline {
                None => changed.wait(),
                Some(deadline) if changed.wait_deadline(deadline).is_none() => break,
                Some(_) => {}
            }
        }
        draining.report()
    }
}

/// A pool that is being drained; once the last of these is gone, it is closed.
struct Draining<'p, M: Manager> {
    shared: &'p Shared<M>,
    ended_before: u64,
}

impl<'p, M: Manager> Draining<'p, M> {
    fn begin(shared: &'p Shared<M>) -> Self {
        let ended_before = shared.totals.ended();
        shared.drains.fetch_add(1, Ordering::SeqCst);
        // A pool that is closed already stays so.
        let _ = shared.phase.compare_exchange(OPEN, DRAINING, Ordering::SeqCst, Ordering::SeqCst);
        shared.shut();
        Self { shared, ended_before }
    }

    fn report(self) -> DrainReport {
        let closed = self.shared.totals.ended() - self.ended_before;
        let still_out = self.shared.holders();
        // Of a pool that was closed before, it has only been waited for.
        if self.shared.phase.load(Ordering::SeqCst) == DRAINING {
            self.shared.tell_not_drained(&still_out);
        }
        DrainReport { closed, still_out }
    }
}

impl<M: Manager> Drop for Draining<'_, M> {
    fn drop(&mut self) {
        // Ordering: SeqCst. The last of several ends it, even if another begins just then: to that one
        // the pool is closed already.
        if self.shared.drains.fetch_sub(1, Ordering::SeqCst) == 1 {
            let before = self.shared.phase.swap(CLOSED, Ordering::SeqCst);
            if before == DRAINING {
                self.shared.tell_shut("closed");
            }
        }
    }
}

/// That of one rotation after the other.
struct Turn<M: Manager>(Arc<Shared<M>>);

impl<M: Manager> Drop for Turn<M> {
    fn drop(&mut self) {
        // Ordering: SeqCst, partner: the swap in `turn`, which comes after listening; so either it sees this, or the
        // notification reaches it.
        self.0.connector.rotates.store(false, Ordering::SeqCst);
        self.0.changed();
    }
}

/// A rotation that is about to connect.
struct Rotating<M: Manager> {
    // The order of the fields is the order in which they are dropped.
    vacant: Reservation<Arc<Shared<M>>>,
    turn: Turn<M>,
}

/// A rotation whose connection is to be tried.
struct Tried<M: Manager> {
    // The order of the fields is the order in which they are dropped.
    trial: Trial<Arc<Shared<M>>>,
    turn: Turn<M>,
}

/// What a rotation opens its connection in.
enum Room<M: Manager> {
    Vacant(Reservation<Arc<Shared<M>>>),
    /// Once this one is closed.
    Taken(Lease<Arc<Shared<M>>>),
}

/// A warm-up under way.
struct WarmUp<'c>(&'c AtomicUsize);

impl<'c> WarmUp<'c> {
    fn begin(count: &'c AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for WarmUp<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How one of the connections that `open` opens ended up: whether it is open, or was given up.
type Opened<M> = Result<bool, Arc<ConnectError<<M as Manager>::Error>>>;

impl<M: Manager> Shared<M> {
    /// See [`Pool::drain`].
    pub(crate) async fn drain(&self, limit: Duration) -> DrainReport {
        let draining = Draining::begin(self);
        let all = async {
            loop {
                listener!(self.changed => changed);
                if self.is_empty() {
                    return;
                }
                changed.await;
            }
        };
        // Whether in time or not, the report says what is still out.
        drop(within(limit, all).await);
        draining.report()
    }

    /// The part of a resize that calls nothing but the core; answers whether the pool shrinks.
    pub(super) fn begin_resize(&self, limit: usize) -> bool {
        limit < self.core.resize(limit)
    }

    /// The other part, which may run hooks and, without a runtime, end connections here.
    pub(super) fn end_resize(&self, shrinks: bool) {
        if shrinks {
            self.look_at_all();
            // Those who wait may be stuck with fewer.
            if self.detector.as_ref().is_some_and(Detector::goes_by_size) {
                self.core.nudge_all();
            }
        }
        self.vacancy();
    }

    /// Whether no connection is alive or being opened.
    pub(crate) fn is_empty(&self) -> bool {
        let counts = self.core.counts();
        counts.alive() + counts.connecting == 0
    }

    /// Opens connections on the pool's runtime until `count` are open, the first alone, so that a wrong
    /// password is tried once.
    pub(crate) async fn open(self: &Arc<Self>, count: usize) -> Result<(), WarmUpError<M::Error>> {
        let began = tokio::time::Instant::now();
        let _under_way = WarmUp::begin(&self.connector.warm_ups);
        let mut opening: JoinSet<Opened<M>> = JoinSet::new();
        let mut one_is_open = false;
        loop {
            listener!(self.changed => changed);
            if self.core.is_closed() {
                return Err(WarmUpError::Closed);
            }
            // Or this would replace one after the other, without a pause.
            if let Some(error) = self.connector.lost_since(began) {
                return Err(WarmUpError::Connect(error));
            }
            let counts = self.core.counts();
            let open = counts.alive() - counts.closing;
            if open >= count.min(self.within_reach()) {
                return Ok(());
            }
            let has_turn = one_is_open || opening.is_empty();
            // Those that others are opening count as well; if they fail, there is room again.
            let has_room = counts.connecting < self.config.max_connecting;
            if open + counts.connecting < count && has_turn && has_room {
                let Some(ground) = self.ground_or_current() else {
                    return Err(WarmUpError::NoRuntime);
                };
                if let Some(reservation) = reserve(self.clone()) {
                    ground.spawn_in(&mut opening, self.clone().open_one(reservation));
                    continue;
                }
            }
            // Cancel: dropping the set aborts its tasks, and their reservations free the slots.
            let opened = poll_fn(|cx| match opening.poll_join_next(cx) {
                Poll::Ready(Some(opened)) => Poll::Ready(opened),
                Poll::Ready(None) | Poll::Pending => Poll::Pending,
            });
            if let Ok(opened) = unless(opened, changed).await {
                one_is_open |= self.joined(opened)?;
            }
        }
    }

    /// How many connections there can be at the most, unless callers come for whom the vacant
    /// reserved slots are kept.
    fn within_reach(&self) -> usize {
        self.core.limit().saturating_sub(self.reserved_in(State::Vacant))
    }

    /// How many of the slots that are kept for callers with priority are in this state.
    pub(super) fn reserved_in(&self, state: State) -> usize {
        let reserved = 0..self.config.reserved.1;
        reserved.filter(|&slot| self.core.state(slot) == state).count()
    }

    /// Places of those for callers with priority alone that are vacant, or have a connection that is idle or being
    /// opened.
    pub(super) fn kept(&self) -> usize {
        let kept = [State::Vacant, State::Connecting, State::Idle];
        kept.into_iter().map(|state| self.reserved_in(state)).sum()
    }

    async fn open_one(self: Arc<Self>, reservation: Reservation<Arc<Self>>) -> Opened<M> {
        match self.unless_given_up(self.connect(reservation.uses())).await {
            // `open` looks itself whether the pool is closed.
            Err(why) => return self.given_up(why).map_or(Ok(false), Err),
            Ok(Ok(tenant)) => {
                self.connect_succeeded(&tenant);
                drop(self.move_in(reservation, tenant));
            }
            Ok(Err(error)) => return Err(self.warm_up_failed(error)),
        }
        self.changed();
        Ok(true)
    }

    fn joined(
        &self,
        opened: Result<Opened<M>, tokio::task::JoinError>,
    ) -> Result<bool, WarmUpError<M::Error>> {
        match opened {
            Ok(opened) => opened.map_err(WarmUpError::Connect),
            // Nobody has aborted it, so its runtime has ended.
            Err(error) if error.is_cancelled() => Err(WarmUpError::NoRuntime),
            // A panic in a connect is an outcome; what is left is one while its future was dropped.
            Err(panic) => {
                let message = panic.to_string();
                let error = OperationError::Panicked { message };
                Err(WarmUpError::Connect(self.warm_up_failed(error.into())))
            }
        }
    }

    /// Waits until no other rotation is under way. What such a one has closed or tries may come to nothing, and
    /// this one would take the last connection beside that.
    async fn turn(
        self: &Arc<Self>,
        caller: &'static Location<'static>,
    ) -> Result<Turn<M>, AcquireError<M::Error>> {
        loop {
            listener!(self.changed => changed);
            if self.core.is_closed() {
                return Err(AcquireError::Closed);
            }
            // After listening.
            if !self.connector.rotates.swap(true, Ordering::SeqCst) {
                return Ok(Turn(self.clone()));
            }
            // That one may wait for what this one's caller holds.
            let _waiting = self.is_not_stuck(caller, Line::High)?;
            changed.await;
        }
    }

    /// Awaits something that a rotation needs which began then, for as long as it may wait.
    async fn in_time<T>(
        &self,
        began: u64,
        needed: impl Future<Output = Result<T, AcquireError<M::Error>>>,
    ) -> Result<T, RotateError<M::Error>> {
        let left = self.config.acquire_timeout.saturating_sub(self.since(began));
        let needed = within(left, needed).await.unwrap_or_else(|over| match over {
            Over::Late => Err(self.timed_out(Line::High, self.since(began), false)),
            Over::NoRuntime => Err(AcquireError::NoRuntime),
        });
        needed.map_err(|error| match error {
            AcquireError::Closed | AcquireError::Draining => RotateError::Closed,
            AcquireError::NoRuntime => RotateError::NoRuntime,
            error => RotateError::NoRoom(error),
        })
    }

    /// Opens a rotation's connection, on the pool's runtime: whoever acquires it may be there after the caller's has
    /// ended.
    async fn open_to_rotate(
        self: &Arc<Self>,
        rotating: Rotating<M>,
    ) -> Result<Tried<M>, RotateError<M::Error>> {
        let Some(ground) = self.ground_or_current() else { return Err(RotateError::NoRuntime) };
        let open = async {
            // Cancel: dropping the set aborts the task, which makes the slot vacant and then ends the turn.
            let mut opening = JoinSet::new();
            ground.spawn_in(&mut opening, self.clone().open_to_try(rotating));
            opening.join_next().await.expect("BUG: a set of one task is empty")
        };
        // Here and not in the task, which nobody may drive.
        match self.unless_closed(open).await {
            None => Err(RotateError::Closed),
            Some(Ok(opened)) => opened.map_err(RotateError::Connect),
            // Nobody has aborted it, so its runtime has ended.
            Some(Err(error)) if error.is_cancelled() => Err(RotateError::NoRuntime),
            Some(Err(panic)) => {
                let error = OperationError::Panicked { message: panic.to_string() };
                Err(RotateError::Connect(self.rotation_failed(error.into())))
            }
        }
    }

    async fn open_to_try(
        self: Arc<Self>,
        rotating: Rotating<M>,
    ) -> Result<Tried<M>, Arc<ConnectError<M::Error>>> {
        match self.connect(rotating.vacant.uses()).await {
            Ok(tenant) => {
                self.connect_succeeded(&tenant);
                let Rotating { vacant, turn } = rotating;
                let trial = self.move_in(vacant, tenant).begin(State::Checking);
                let tried = Tried { trial, turn };
                self.changed();
                Ok(tried)
            }
            // Before the slot is vacant again, and somebody wants it filled.
            Err(error) => Err(self.rotation_failed(error)),
        }
    }

    /// The right to open a connection, at the cost of another one if need be, for a rotation that began then.
    async fn make_room(
        self: &Arc<Self>,
        caller: &'static Location<'static>,
        began: u64,
    ) -> Result<Reservation<Arc<Self>>, RotateError<M::Error>> {
        if let Some(reservation) = reserve(self.clone()) {
            return Ok(reservation);
        }
        let limit = self.config.close_timeout.min(self.config.acquire_timeout);
        let before = self.now();
        // Cancel: it has nothing yet.
        match within(limit, self.first_to_end()).await {
            Ok(Some(reservation)) => return Ok(reservation),
            Ok(None) | Err(Over::Late) => {}
            Err(Over::NoRuntime) => return Err(RotateError::NoRuntime),
        }
        if self.core.is_closed() {
            return Err(RotateError::Closed);
        }
        // That was for others to end, and no time in line.
        let began = began + nanos(self.since(before));
        let mut lease = match self.in_time(began, self.take_first(caller)).await? {
            Room::Vacant(reservation) => return Ok(reservation),
            Room::Taken(lease) => lease,
        };
        let mut trial = lease.begin(State::Closing);
        if let Some(tenant) = trial.take() {
            self.ends(&tenant, CloseReason::Invalidated);
            // Cancel: the connection is dropped, then this hears of it, and the trial frees the slot.
            let _count = self.begin_closing();
            self.say_goodbye(tenant.connection).await;
        }
        Ok(trial.renew())
    }

    /// Waits for room that comes by itself, rather than for a connection to close, which may be the last that
    /// is of any use: while others are being closed, and beside the last one while others are being opened.
    /// `None` if there is no such room to come, or the pool is closed.
    async fn first_to_end(self: &Arc<Self>) -> Option<Reservation<Arc<Self>>> {
        loop {
            listener!(self.changed => changed);
            // After listening.
            if let Some(reservation) = reserve(self.clone()) {
                return Some(reservation);
            }
            let closes = self.closing.load(Ordering::SeqCst) > 0;
            let counts = self.core.counts();
            let opens = counts.connecting > 0 && counts.alive() - counts.closing == 1;
            if self.core.is_closed() || !(closes || opens) {
                return None;
            }
            changed.await;
        }
    }

    /// Takes the first connection that is to be had, before everybody who waits, to close it: nobody
    /// acquires it, so no hook sees it. Or the first slot that is vacant, if nobody else has it filled.
    async fn take_first(
        self: &Arc<Self>,
        caller: &'static Location<'static>,
    ) -> Result<Room<M>, AcquireError<M::Error>> {
        loop {
            let woken = {
                let _waiting = self.is_not_stuck(caller, Line::High)?;
                self.first_in_line().await
            };
            match woken {
                Woken::Lease(lease) => {
                    if let Some(lease) = look_over(lease) {
                        return Ok(Room::Taken(lease));
                    }
                }
                Woken::Vacant(reservation) => return Ok(Room::Vacant(reservation)),
                // No verdict: nothing that was begun before says how its own connect will end, and one that
                // was refused makes room for it.
                Woken::LookAgain | Woken::LineFull => self.look_again(Line::High)?,
            }
        }
    }

    /// Waits before everybody else. No dial begins on account of that: what it opened would be closed, and
    /// its failure be told to those who wait.
    async fn first_in_line(self: &Arc<Self>) -> Woken<Arc<Self>> {
        let now = tokio::time::Instant::now();
        let terms = Arc::new(Terms::new(self.connector.rotations.clone(), now, false, true));
        // Cancel: it gets out of line. Declared before the wait, so dropped after it.
        let _place = InLine { keeper: self.clone(), terms: terms.clone() };
        terms.get_in_line();
        let mut waiting = pin!(wait(self, Line::High, usize::MAX));
        loop {
            listener!(self.changed => changed);
            let woken = poll_fn(|cx| {
                if let Poll::Ready(woken) = terms.poll(waiting.as_mut(), cx) {
                    return Poll::Ready(woken);
                }
                // After listening. While it waits, a reserved slot is there for it too.
                match reserve(self.clone()) {
                    Some(reservation) => Poll::Ready(Woken::Vacant(reservation)),
                    None => Poll::Pending,
                }
            });
            if let Ok(woken) = unless(woken, changed).await {
                return woken;
            }
        }
    }
}
