//! What a cluster asks of the pool of a node, and nobody else asks of a pool: the only door by which
//! `crate::cluster` reaches below [`Pool`].
//!
//! An acquire that looks at several pools makes an [`Attempt`] at each, without a pointer of its own to any.
//! What it misses there it may wait for at several at once, on [`Terms`] of which it may change its mind. A
//! cap on all nodes together changes the limits of their pools.
//!
//! Not here: which node is asked, and which has room (`crate::cluster`).

pub(crate) use super::Shared;
pub(crate) use super::acquire::Counted;
pub(crate) use super::connector::GivenUp;
pub(crate) use super::nanos;
pub(crate) use super::operation::{FAR_FUTURE, poll_timer, timer};
pub(crate) use super::terms::Terms;

use super::acquire::{Ask, Caller, acquire_slow};
use super::connector::Ground;
use super::prepare::welcome;
use super::terms::InLine;
use super::{ConnectionInfo, Pool, PoolBuilder, Pooled, PooledOwned};
use crate::config::Config;
use crate::core::{BareLoan, Counts, Found, Line, Loan, try_acquire as look, try_acquire_bare};
use crate::error::{AcquireError, Timeout};
use crate::manager::Manager;
use crate::metrics::{ClusterNode, Connecting, Health, Outcome, Signs, health};
use event_listener::EventListener;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

impl<M: Manager> PoolBuilder<M> {
    /// The pool is that of a cluster's node.
    pub(crate) fn cluster(
        mut self,
        node: impl Fn() -> ClusterNode + Send + Sync + 'static,
    ) -> Self {
        self.cluster = Some(Box::new(node));
        self
    }

    /// The settings, which nobody has checked yet.
    pub(crate) fn config_so_far(&self) -> &Config {
        &self.config
    }

    /// Who is told of each connect whether it has succeeded.
    pub(crate) fn on_connect(mut self, told: impl Fn(bool) + Send + Sync + 'static) -> Self {
        self.on_connect = Some(Box::new(told));
        self
    }

    /// Of so many connections the pool and others have each what the others leave it: it gets more when
    /// somebody waits, up to `max_size`.
    pub(crate) fn share_of(mut self, whole: Option<usize>) -> Self {
        self.share_of = whole;
        self
    }
}

impl<M: Manager> Pool<M> {
    /// What an acquire that borrows the pool finds at once.
    #[inline(always)]
    pub(crate) fn attempt_here(&self, caller: Caller) -> Result<Pooled<'_, M>, MissedHere<'_, M>> {
        let keeper = &*self.shared;
        match look(&keeper, caller) {
            Found::Ready(loan) => Ok(Pooled::new(loan)),
            found => Err(MissedHere { keeper, found, caller }),
        }
    }

    /// Has all that is idle checked before its next use, whatever the policy.
    pub(crate) fn have_idle_checked(&self) {
        self.shared.have_idle_checked();
    }

    /// How it is, and its connections: what a [status](Self::status) says, without the figures that are large, and
    /// without who else has waited in vain.
    pub(crate) fn health_now(&self) -> (Health, Counts) {
        let shared = &*self.shared;
        let (counts, longest) = (shared.core.counts(), shared.longest());
        // Who is told this has waited in vain himself.
        let signs = Signs { in_vain: None, ..shared.signs(&longest) };
        (health(&signs, counts, longest.holder, &shared.config), counts)
    }

    /// What connecting has failed with last, in words, without where it was to lead.
    pub(crate) fn last_failure(&self) -> Option<Arc<str>> {
        self.shared.connector.last_words()
    }

    /// What an acquire is told that runs into its deadline now, while a connection is being checked for it or not.
    pub(crate) fn timeout_now(&self, is_checking: bool) -> Timeout<M::Error> {
        self.shared.timeout(Line::General, Duration::ZERO, is_checking)
    }

    /// How many callers wait who would have a connection opened.
    pub(crate) fn unserved(&self) -> usize {
        self.shared.unserved()
    }

    /// Whether a connection is there that may come back.
    pub(crate) fn has_some_left(&self) -> bool {
        self.shared.has_alive_for(Line::General)
    }

    /// Whether a connection could begin to be opened. Not while one that has to go is being closed, even if a slot
    /// is vacant.
    pub(crate) fn has_room(&self) -> bool {
        self.shared.core.has_vacant_for(Line::General)
    }

    /// Whether what it opens, and has room for, is enough for all who wait for that, and so many more.
    pub(crate) fn provides_for(&self, more: usize) -> bool {
        let counts = self.shared.core.counts();
        let room = if self.has_room() { counts.vacant } else { 0 };
        room + counts.connecting >= self.unserved() + more
    }

    /// Whether there was no point in trying again when connecting failed last.
    pub(crate) fn fails_for_good(&self) -> bool {
        self.shared.connector.connecting() == Connecting::FailsForGood
    }

    /// How many connections may be opened at once at the moment.
    pub(crate) fn admitted(&self) -> usize {
        self.shared.connector.admitted.load(Ordering::SeqCst)
    }

    /// Where something is done for the pool in the background: on its runtime, or on the caller's if that has
    /// ended.
    pub(crate) fn ground_or_current(&self) -> Option<Ground> {
        self.shared.ground_or_current()
    }

    /// See [`Shared::bring_to_an_end`].
    pub(crate) fn bring_to_an_end(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.shared.bring_to_an_end(work);
    }

    /// Has a connection opened for a caller who waits here on these terms, if one is missing.
    pub(crate) fn hurry(&self, terms: &Terms) {
        if terms.hurry() {
            self.shared.demand(Shared::ground_or_current);
        }
    }

    /// An acquire that is to be counted here has waited for so long, here or elsewhere.
    pub(crate) fn has_waited(&self, site: Caller, outcome: Outcome, waited: Duration) {
        self.shared.has_waited(site, outcome, waited);
    }

    /// The same of one that was allowed no node: this one is not why.
    pub(crate) fn has_waited_nowhere(&self, site: Caller, outcome: Outcome, waited: Duration) {
        self.shared.count_wait(site, outcome, waited);
    }

    /// An acquire is served here that has waited on these terms.
    pub(crate) fn serves(&self, terms: &Terms) {
        if terms.would_be_shed().load(Ordering::Relaxed) {
            self.shared.totals.would_be_shed();
        }
    }

    /// How many acquires there have been. Costs one pass over all slots.
    pub(crate) fn uses(&self) -> u64 {
        self.shared.core.uses()
    }

    /// How many connections have been opened.
    pub(crate) fn opened(&self) -> u64 {
        self.shared.totals.opened()
    }

    /// For how long the oldest connect has been under way.
    pub(crate) fn connecting_for(&self) -> Option<Duration> {
        self.shared.connector.connecting_for()
    }

    /// How many connects, resets and checks have come to an end, well or not.
    pub(crate) fn answers(&self) -> u64 {
        self.shared.totals.answers()
    }

    /// Adds what is wrong with connecting now, if anything is.
    pub(crate) fn add_failure(&self, timeout: &mut Timeout<M::Error>) {
        if let Some((error, hook)) = self.shared.connector.last_error() {
            (timeout.last_connect_error, timeout.failed_hook) = (Some(error), hook);
        }
    }

    /// Ends so many of the connects that are under way; if there is room for them, others begin.
    pub(crate) fn give_up_dials(&self, many: usize, why: GivenUp) {
        self.shared.connector.give_up(many, why);
    }

    /// Whether these are handles to the same pool.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }

    /// As [`resize`](Self::resize), also to nothing; the caller has checked the limit.
    pub(crate) fn set_limit(&self, limit: usize) {
        self.end_resize(self.begin_resize(limit));
    }

    /// See [`Shared::begin_resize`].
    pub(crate) fn begin_resize(&self, limit: usize) -> bool {
        self.shared.begin_resize(limit)
    }

    /// See [`Shared::end_resize`].
    pub(crate) fn end_resize(&self, shrinks: bool) {
        self.shared.end_resize(shrinks);
    }
}

impl<M: Manager> Shared<M> {
    pub(crate) fn manager(&self) -> &M {
        &self.manager
    }

    pub(crate) fn max_size(&self) -> usize {
        self.core.limit()
    }

    pub(crate) fn counts(&self) -> Counts {
        self.core.counts()
    }

    /// Completes when a slot has become vacant or spare, or something else has changed.
    pub(crate) fn when_changed(&self) -> EventListener {
        self.changed.listen()
    }
}

/// What an acquire by somebody who looks at several pools finds at once at this one.
#[inline(always)]
pub(crate) fn attempt<M: Manager>(pool: &Arc<Shared<M>>, caller: Caller) -> Attempt<M> {
    match try_acquire_bare(pool, caller) {
        Ok(loan) => Attempt::Hit(PooledBare::new(loan)),
        Err(found) => Attempt::Miss(Missed { keeper: pool.clone(), found, caller }),
    }
}

/// What it finds.
pub(crate) enum Attempt<M: Manager> {
    Hit(PooledBare<M>),
    Miss(Missed<M>),
}

/// What a wait for it answers.
type Served<M> = Result<PooledBare<M>, AcquireError<<M as Manager>::Error>>;

/// An acquire that has not found what it wanted at once.
pub(crate) struct Missed<M: Manager> {
    keeper: Arc<Shared<M>>,
    found: Found<Arc<Shared<M>>>,
    caller: Caller,
}

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
                    Ok(loan) => return hit(loan),
                    Err(Some(lease)) => Found::Flagged(lease),
                    Err(None) => match attempt(&keeper, caller) {
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
        let ask = Ask { limit: Some(limit), counted, is_seen: true, ..Ask::new(caller) };
        acquire_slow(keeper, ask, found).await.map(|loan| PooledOwned::new(loan).into())
    }

    /// Goes on for an acquire that began then and waits elsewhere too, on these terms and without a
    /// deadline. It is patient if it has found nothing, or is to be.
    pub(crate) fn wait_among_others(
        self,
        began: tokio::time::Instant,
        is_patient: bool,
    ) -> (Arc<Terms>, impl Future<Output = Served<M>> + use<M>) {
        let patients = self.keeper.connector.patients.clone();
        let has_found = self.has_found();
        let terms = Terms::new(patients, began, has_found, is_patient || !has_found);
        let terms = Arc::new(terms);
        let place = InLine { keeper: self.keeper.clone(), terms: terms.clone() };
        let waiting = async move {
            // Dropped after the wait.
            let place = place;
            let Self { keeper, found, caller } = self;
            let (limit, terms) = (Some(Duration::MAX), Some(&*place.terms));
            let ask = Ask { limit, terms, counted: Counted::Elsewhere, ..Ask::new(caller) };
            acquire_slow(keeper, ask, found).await.map(|loan| PooledOwned::new(loan).into())
        };
        (terms, waiting)
    }
}

/// As [`Missed`], of an acquire that borrows the pool.
pub(crate) struct MissedHere<'p, M: Manager> {
    keeper: &'p Shared<M>,
    found: Found<&'p Shared<M>>,
    caller: Caller,
}

impl<'p, M: Manager> MissedHere<'p, M> {
    /// Goes on as any acquire does, for `limit` at the most; `None` for `acquire_timeout`.
    pub(crate) async fn wait(
        self,
        limit: Option<Duration>,
    ) -> Result<Pooled<'p, M>, AcquireError<M::Error>> {
        let Self { keeper, found, caller } = self;
        let ask = Ask { limit, is_seen: true, ..Ask::new(caller) };
        acquire_slow(keeper, ask, found).await.map(Pooled::new)
    }
}

/// A [`PooledOwned`] without a pointer to the pool, for those who look at several.
pub(crate) struct PooledBare<M: Manager> {
    loan: BareLoan<Shared<M>>,
}

impl<M: Manager> PooledBare<M> {
    #[inline(always)]
    pub(super) fn new(loan: BareLoan<Shared<M>>) -> Self {
        Self { loan }
    }

    /// The pool that it belongs to.
    #[inline(always)]
    pub(crate) fn pool(&self) -> &Arc<Shared<M>> {
        self.loan.keeper()
    }

    pub(crate) fn info(&self) -> ConnectionInfo {
        self.loan.resource().info(self.loan.uses(), None)
    }

    /// Whether nothing is left in it.
    #[inline(always)]
    pub(crate) fn is_over(&self) -> bool {
        self.loan.is_over()
    }

    /// Gives the connection back to its pool, which is this one. Nothing is left in the guard.
    #[inline(always)]
    pub(crate) fn give_back(&mut self, pool: &Shared<M>) {
        drop(self.loan.with_keeper(pool));
    }

    /// This guard for whoever may take it anywhere, as [`PooledOwned`]. Nothing is left in this one.
    pub(crate) fn take(&mut self) -> Self {
        self.pool().no_longer_lent(self.loan.number());
        Self { loan: self.loan.take() }
    }

    /// Its connection with a guard that may be told what to do with it. Nothing is left in this
    /// one.
    pub(crate) fn owned(&mut self) -> PooledOwned<M> {
        let keeper = self.pool().clone();
        PooledOwned::new(self.loan.with_keeper(keeper))
    }
}

crate::guard::access!(PooledBare<M: Manager>, M::Connection, connection);

impl<M: Manager> From<PooledOwned<M>> for PooledBare<M> {
    fn from(pooled: PooledOwned<M>) -> Self {
        Self::new(pooled.loan.into())
    }
}
