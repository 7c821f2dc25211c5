//! How a connection ends, and how the pool does.
//!
//! Every connection that the pool gives up passes through [`Shared::close_connection`], except one
//! whose check or reset was dropped half-way, which its token drops; one that is detached; one that a rotation
//! closes to make room, in its own future and on the same count; and one that a hook has refused before it was in a
//! slot, which the connect that has opened it closes.
//!
//! Not here: the decision to end one.

use super::operation::{Over, bounded, within};
use super::{CLOSED, DRAINING, OPEN, Shared, Tenant, life::nanos};
use crate::core::{State, Trial, sweep};
use crate::manager::Manager;
use crate::metrics::CloseReason;
use crate::panics::caught;
use event_listener::{Listener, listener};
use std::convert::Infallible;
use std::future::Future;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// How soon a close looks again whether it is over, though nobody has told it of anything.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// A connection that is being closed. However this ends, the connection goes before the slot is
/// vacant again (I2), and whoever waits for it in `close` hears of it.
struct Closing<M: Manager> {
    // The order of the fields is the order in which they are dropped.
    tenant: Option<Tenant<M::Connection>>,
    trial: Trial<Arc<Shared<M>>>,
    _count: Count<M>,
}

/// One of the connections that are being closed at the moment.
pub(super) struct Count<M: Manager>(Arc<Shared<M>>);

impl<M: Manager> Drop for Count<M> {
    fn drop(&mut self) {
        self.0.hooks.destroyed();
        // Ordering: SeqCst, partner: the load in `is_all_closed`, which comes after listening; so
        // either it sees the count, or this notification reaches it (I8).
        if self.0.closing.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.changed();
        }
    }
}

impl<M: Manager> Closing<M> {
    async fn run(mut self) {
        let shared = self.trial.keeper().clone();
        if let Some(tenant) = self.tenant.take() {
            // Cancel: the connection is dropped, and then `self` frees the slot.
            shared.say_goodbye(tenant.connection).await;
        }
    }
}

impl<M: Manager> Shared<M> {
    /// Closes a connection in the background, or, where no runtime is left, drops it here.
    pub(super) fn close_connection<R>(&self, mut trial: Trial<R>, reason: CloseReason)
    where
        R: Deref<Target = Self>,
    {
        let tenant = trial.take();
        if let Some(tenant) = &tenant {
            self.ends(tenant, reason);
        }
        let count = self.begin_closing();
        let closing = Closing { tenant, trial: trial.with_keeper(self.arc()), _count: count };
        match self.ground_or_current() {
            Some(ground) => ground.spawn(closing.run()),
            // The panic hook has reported a connection that panics while it is dropped.
            None => drop(caught(|| drop(closing))),
        }
    }

    /// A connection is being closed for as long as the answer lives; then whoever waits for that, and the hook, hear
    /// of it.
    pub(super) fn begin_closing(&self) -> Count<M> {
        self.closing.fetch_add(1, Ordering::SeqCst);
        // It will not come back to anybody.
        self.changed();
        Count(self.arc())
    }

    /// Has the manager close a connection, for `close_timeout` at the most. However that goes, it is gone then.
    pub(super) fn say_goodbye(&self, connection: M::Connection) -> impl Future<Output = ()> {
        let close = async {
            self.manager.close(connection).await;
            Ok::<_, Infallible>(())
        };
        let closed = bounded("close_timeout", self.config.close_timeout, close);
        async { drop(closed.await) }
    }

    /// Counts a connection that the pool lets go of.
    pub(super) fn ends(&self, tenant: &Tenant<M::Connection>, reason: CloseReason) {
        if let Some(loss) = &tenant.loss {
            loss.ends();
        }
        self.totals.closed(reason);
        self.tell_ended(tenant, reason);
        self.totals.lived(nanos(tenant.created.elapsed()));
    }

    /// Why connections end once the pool is closed.
    pub(super) fn closed_because(&self) -> CloseReason {
        match self.phase.load(Ordering::SeqCst) {
            DRAINING => CloseReason::Drained,
            _ => CloseReason::PoolClosed,
        }
    }

    /// Refuses everything from now on, ends waiters and dials, and sets about closing what is idle.
    pub(super) fn shut(&self) {
        // A pool that is being drained stays that until the drain is over.
        let was = self.phase.compare_exchange(OPEN, CLOSED, Ordering::SeqCst, Ordering::SeqCst);
        if self.core.close() {
            let draining = was == Err(DRAINING);
            self.tell_shut(if draining { "being drained" } else { "closed" });
        }
        self.connector.close();
        self.upkeep.notify();
        self.changed();
        sweep(self);
    }

    /// See [`Pool::close`](super::Pool::close).
    pub(crate) async fn close(&self) {
        self.shut();
        self.all_closed().await;
    }

    /// Whether all that is left of a pool that is closed is what callers hold.
    ///
    /// Whatever ends what is left of the rest notifies `changed`, unless it ends in a caller's hands: who takes
    /// what was idle, or on its way to him, just before the close tells nobody, since that would cost every
    /// acquire. So whoever waits for this looks again by the clock.
    fn is_all_closed(&self) -> bool {
        let is_left = |slot| {
            let seen = self.core.glimpse(slot);
            match seen.state {
                State::Vacant | State::Spare => false,
                // Without a holder it is on its way to one, and will not get there.
                State::InUse => seen.holder.is_none(),
                State::Connecting
                | State::Idle
                | State::Checking
                | State::Resetting
                | State::Closing => true,
            }
        };
        // The slots first: what is being closed is on the count before its slot is vacant, and may be longer.
        !(0..self.core.capacity()).any(is_left) && self.closing.load(Ordering::SeqCst) == 0
    }

    /// For how long whoever has waited for that for so long goes on with it before he looks again, if he does.
    fn time_to_close(&self, waited: Duration) -> Option<Duration> {
        let rest = self.config.close_timeout.saturating_sub(waited);
        let goes_on = !rest.is_zero() && !self.is_all_closed();
        goes_on.then(|| rest.min(LOOK_AGAIN))
    }

    /// As [`all_closed`](Self::all_closed), blocking the thread.
    pub(super) fn all_closed_blocking(&self) {
        let began = Instant::now();
        loop {
            listener!(self.changed => changed);
            let Some(rest) = self.time_to_close(began.elapsed()) else { return };
            let _ = changed.wait_timeout(rest);
        }
    }

    /// Waits until all that is left is what callers hold, for `close_timeout` at the most.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future only stops waiting.
    pub(crate) async fn all_closed(&self) {
        let began = tokio::time::Instant::now();
        loop {
            listener!(self.changed => changed);
            let Some(rest) = self.time_to_close(began.elapsed()) else { return };
            // A runtime that nobody drives closes nothing, so this must not rely on it; and without a timer it
            // could wait for such a one.
            if let Err(Over::NoRuntime) = within(rest, changed).await {
                return;
            }
        }
    }

    /// Whether a pool that is closed has connections that nobody has begun to close: somebody holds them, or they are
    /// being reset.
    pub(crate) fn is_held_up(&self) -> bool {
        // First: one that has been closed since is in neither of the two. And not by its state, which says
        // that it is being closed a little before there is anything to wait for.
        let closing = self.closing.load(Ordering::SeqCst);
        let counts = self.core.counts();
        counts.alive() + counts.connecting > closing
    }

    /// Completes when there are none: while somebody holds one, that may take any time.
    pub(crate) async fn not_held_up(&self) {
        loop {
            listener!(self.changed => changed);
            if !self.is_held_up() {
                return;
            }
            changed.await;
        }
    }
}
