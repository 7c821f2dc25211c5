//! A cap over the connections of all nodes together.
//!
//! The cap is a number of *units*. Each node's pool has some of them: its limit, and, while it shrinks,
//! what has still to go ([`units`]). A pool never has more connections than units, so all of them
//! together never exceed the cap, and no acquire that hits has anything to do with it.
//!
//! A unit moves when a caller waits at a node that has too few: a free one at once; else one of a
//! node that does not need it, whose idle connection is closed; else, if all are in use, the next one
//! that comes back to the node that has most, as long as that leaves it at least as many as the other
//! one then has. It is given on only when the connection is gone; if nobody misses it any more before
//! that, it stays. If there are fewer units than nodes where callers wait, each of these has one for a
//! while, by turns.
//!
//! Not here: what a pool does when its limit changes (`crate::core`).

use super::node::{Member, Node};
use super::{Key, Shared};
use crate::manager::Manager;
use crate::pool::Pool;
use event_listener::{Event, EventListener, IntoNotification};
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::Poll;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::time::Instant;

/// The cap, and who has how much of it.
pub(super) struct Cap<K: Key, M: Manager> {
    most: usize,
    shares: Mutex<Vec<Share<K, M>>>,
    /// A task waits for units that are on their way back.
    collecting: AtomicBool,
    /// Notified when somebody wants a unit.
    wanted: Event,
    /// Notified when that task has ended with its runtime.
    abandoned: Event,
}

/// A pool that has units, or may get some.
struct Share<K: Key, M: Manager> {
    pool: Pool<Member<K, M>>,
    /// A caller would have used it if it had had a connection.
    passed_over: bool,
    /// The number of the last unit that it got, of all that were given.
    turn: u64,
    /// When that was.
    since: Instant,
}

/// What one share looks like at a moment.
#[derive(Default)]
struct Look {
    limit: usize,
    /// How many units it has, which nobody else may use.
    units: usize,
    /// How many of its units are to come back.
    coming: usize,
    /// How many of these do so without anybody's doing: those that are not in use.
    soon: usize,
    /// How many units it could do with.
    need: usize,
    /// That is one, because it was passed over, and nobody waits.
    can_wait: bool,
    /// Callers wait for one who cannot be served elsewhere.
    is_urgent: bool,
    /// It has had one for a while, which serves.
    had_its_turn: bool,
    /// The number of the last unit that it got.
    turn: u64,
}

impl Look {
    /// Whether its limit is to be higher.
    fn starves(&self) -> bool {
        self.need > self.limit
    }

    /// Who has least is served first, and of those who have the same whoever is urgent, by turns.
    fn precedence(&self) -> (usize, bool, u64) {
        (self.limit, !self.is_urgent, self.turn)
    }

    /// How many units others are to let go of for it.
    fn missing(&self) -> usize {
        self.need.saturating_sub(self.units)
    }
}

impl<K: Key, M: Manager> Share<K, M> {
    fn look(&self) -> Look {
        /// So long a node keeps its last unit while another one waits for that: many uses, beside which
        /// it costs little to open a connection.
        const TURN: Duration = Duration::from_millis(50);

        let turn = self.turn;
        let (counts, waiting) = (self.pool.counts(), self.pool.unserved());
        if self.pool.is_closed() {
            // It has what is still alive, and will have none. What is out comes back when whoever has
            // it likes, which may be never: he has been waited for already.
            let units = counts.connecting + counts.alive();
            let coming = units - counts.in_use;
            return Look { units, coming, soon: coming, turn, ..Look::default() };
        }
        let limit = self.pool.max_size();
        // What is being opened is for those who wait; what is being closed is for nobody.
        let kept = counts.in_use + counts.checking + counts.resetting;
        let busy = kept + counts.connecting.max(waiting);
        let need = busy.min(self.pool.config().max_size);
        let can_wait = need == 0 && self.passed_over;
        let units = limit.max(counts.in_service());
        let coming = units - limit;
        // It closes what is idle first.
        let soon = coming - (counts.in_use + counts.connecting).saturating_sub(limit);
        let need = need.max(usize::from(can_wait));
        let is_urgent = waiting > self.pool.manager().state.roving();
        // One that is still being opened would have been opened in vain.
        let had_its_turn = kept > 0 && self.since.elapsed() >= TURN;
        Look { limit, units, coming, soon, need, can_wait, is_urgent, had_its_turn, turn }
    }
}

impl<K: Key, M: Manager> Cap<K, M> {
    pub(super) fn new(most: usize) -> Self {
        let shares = Mutex::new(Vec::new());
        let (wanted, abandoned) = (Event::new(), Event::new());
        Self { most, shares, collecting: AtomicBool::new(false), wanted, abandoned }
    }

    fn shares(&self) -> MutexGuard<'_, Vec<Share<K, M>>> {
        self.shares.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Completes when those who wait are to say once more that they want a unit.
    pub(super) fn when_abandoned(&self) -> EventListener {
        self.abandoned.listen()
    }

    /// A pool that nobody else knows yet takes part from now on, with no unit.
    pub(super) fn add(&self, pool: &Pool<Member<K, M>>) {
        pool.set_limit(0);
        let (pool, since) = (pool.clone(), Instant::now());
        self.shares().push(Share { pool, passed_over: false, turn: 0, since });
    }

    /// Gives units to those who need some, as far as there are free ones, and has others let go of
    /// theirs. If somebody still starves, answers with what tells that a pool that shrinks has changed.
    fn balance(&self) -> Option<Vec<EventListener>> {
        let mut shares = self.shares();
        // Pools that were removed take part until their last connection is gone.
        shares.retain(|share| !share.pool.is_closed() || share.look().units > 0);
        let mut listeners = Vec::new();
        loop {
            let looks: Vec<Look> = shares.iter().map(Share::look).collect();
            let starving = looks.iter().enumerate().filter(|(_, look)| look.starves());
            let (poorest, look) = starving.min_by_key(|(_, look)| look.precedence())?;
            let given: usize = looks.iter().map(|look| look.units).sum();
            if given < self.most {
                let share = &mut shares[poorest];
                share.passed_over = false;
                share.turn = 1 + looks.iter().map(|look| look.turn).max().unwrap_or_default();
                share.since = Instant::now();
                share.pool.set_limit(look.limit + 1);
                continue;
            }
            let sum = |of: fn(&Look) -> usize| looks.iter().map(of).sum::<usize>();
            let (missing, coming) = (sum(Look::missing), sum(|look| look.coming));
            if coming > missing {
                // Somebody is to let go of one in use that nobody misses any more: he may keep it.
                let keeps = |look: &Look| look.starves() && look.coming > look.soon;
                if let Some(keeper) = looks.iter().position(keeps) {
                    shares[keeper].pool.set_limit(looks[keeper].limit + 1);
                    continue;
                }
            }
            let lacking = looks.iter().enumerate().filter(|(_, look)| look.missing() > 0);
            if let Some((poorest, look)) = lacking.min_by_key(|(_, look)| look.precedence()) {
                let idle = if sum(|look| look.soon) < missing { idle(&looks, look) } else { None };
                let giver = || if coming < missing { richest(&looks, look) } else { None };
                let last = || if coming < missing { last(&looks, look) } else { None };
                if let Some(giver) = idle.or_else(giver).or_else(last) {
                    shares[giver].pool.set_limit(looks[giver].limit - 1);
                    continue;
                }
                if coming < missing && look.can_wait {
                    // There are not enough for every node to have one.
                    shares[poorest].passed_over = false;
                    continue;
                }
            }
            let shrinking =
                || shares.iter().zip(&looks).filter(|(_, look)| look.units > look.limit);
            if listeners.is_empty() && shrinking().next().is_some() {
                listeners = shrinking().map(|(share, _)| share.pool.when_changed()).collect();
                // Once more, so that nothing that came back before that is missed.
                continue;
            }
            return Some(listeners);
        }
    }
}

/// Who has something to give to this one. Nobody gives the last one to a node that can wait.
fn able<'l>(looks: &'l [Look], poor: &Look) -> impl Iterator<Item = (usize, &'l Look)> {
    let least = if poor.can_wait { 2 } else { 1 };
    looks.iter().enumerate().filter(move |(_, look)| look.limit >= least)
}

/// The one that has most that it does not need.
fn idle(looks: &[Look], poor: &Look) -> Option<usize> {
    let spare = |look: &Look| look.limit.saturating_sub(look.need);
    let idle = able(looks, poor).max_by_key(|(_, look)| spare(look));
    idle.filter(|(_, look)| spare(look) > 0).map(|(index, _)| index)
}

/// The one that has most, if it has more than the other will have then.
fn richest(looks: &[Look], poor: &Look) -> Option<usize> {
    let richest = able(looks, poor).max_by_key(|(_, look)| look.limit);
    richest.filter(|(_, look)| look.limit > poor.limit + 1).map(|(index, _)| index)
}

/// The one that has had its only unit for longest, if the other has none and callers wait there who are
/// served by nobody else.
fn last(looks: &[Look], poor: &Look) -> Option<usize> {
    let able = able(looks, poor).filter(|(_, look)| look.limit == 1 && look.had_its_turn);
    let last = able.min_by_key(|(_, look)| look.turn).map(|(index, _)| index);
    last.filter(|_| poor.limit == 0 && poor.is_urgent)
}

impl<K: Key, M: Manager> Shared<K, M> {
    /// A caller has been served by another node because this one had nothing.
    #[cold]
    pub(super) fn passed_over(self: &Arc<Self>, node: &Node<K, M>) {
        let Some(cap) = &self.cap else { return };
        if let Some(share) = cap.shares().iter_mut().find(|share| share.pool.is(&node.pool)) {
            share.passed_over |= share.pool.max_size() == 0;
        }
        self.more_wanted();
    }

    /// A caller is in line at a node, which may have too few units. False: somebody would have to look
    /// after the cap, and cannot do so here, where the runtime has ended.
    #[cold]
    pub(super) fn more_wanted(self: &Arc<Self>) -> bool {
        let Some(cap) = &self.cap else { return true };
        if let Some(listeners) = cap.balance() {
            cap.wanted.notify(1.additional());
            // Where there is no runtime, nobody is to take this for an end.
            let Ok(runtime) = Handle::try_current() else { return true };
            if let Some(collecting) = Collecting::begin(self, cap) {
                return !runtime.spawn(collect(collecting, listeners)).is_finished();
            }
        }
        true
    }
}

/// The one task that collects. However it ends, the runtime's own end before its first poll included,
/// the next one who wants may begin again.
struct Collecting<K: Key, M: Manager> {
    cluster: Weak<Shared<K, M>>,
    /// Nobody starves.
    is_over: bool,
}

impl<K: Key, M: Manager> Collecting<K, M> {
    fn begin(cluster: &Arc<Shared<K, M>>, cap: &Cap<K, M>) -> Option<Self> {
        let begun = cap.collecting.swap(true, Ordering::SeqCst);
        (!begun).then(|| Self { cluster: Arc::downgrade(cluster), is_over: false })
    }
}

impl<K: Key, M: Manager> Drop for Collecting<K, M> {
    fn drop(&mut self) {
        let Some(cluster) = self.cluster.upgrade() else { return };
        let Some(cap) = &cluster.cap else { return };
        cap.collecting.store(false, Ordering::SeqCst);
        if !self.is_over {
            // Some of those who wait may do so on other runtimes.
            cap.abandoned.notify(usize::MAX.additional());
        }
    }
}

/// Waits for units that are on their way back, and gives them on, until nobody starves.
async fn collect<K: Key, M: Manager>(
    mut collecting: Collecting<K, M>,
    mut listeners: Vec<EventListener>,
) {
    /// How often it looks who has become able to give. A connection that becomes idle tells nobody.
    const AGAIN: Duration = Duration::from_millis(5);

    loop {
        let wanted = match collecting.cluster.upgrade().as_ref().map(|cluster| cluster.cap.as_ref())
        {
            Some(Some(cap)) => cap.wanted.listen(),
            _ => return,
        };
        let mut wanted = wanted;
        let mut again = pin!(tokio::time::sleep(AGAIN));
        poll_fn(|cx| {
            let changed = listeners.iter_mut().any(|it| Pin::new(it).poll(cx).is_ready());
            if changed || Pin::new(&mut wanted).poll(cx).is_ready() {
                return Poll::Ready(());
            }
            again.as_mut().poll(cx)
        })
        .await;
        let Some(cluster) = collecting.cluster.upgrade() else { return };
        let Some(cap) = &cluster.cap else { return };
        if let Some(next) = cap.balance() {
            listeners = next;
            continue;
        }
        collecting.is_over = true;
        drop(collecting);
        // Somebody may have wanted one after the last look and seen this task at work.
        let Some(next) = cap.balance() else { return };
        let Some(again) = Collecting::begin(&cluster, cap) else { return };
        (collecting, listeners) = (again, next);
    }
}
