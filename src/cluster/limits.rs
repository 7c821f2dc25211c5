//! A cap over the connections of all nodes together.
//!
//! The cap is a number of *units*. Each node's pool has some of them: its limit, and, while it shrinks,
//! what has still to go ([`units`]). A pool never has more connections than units, so all of them
//! together never exceed the cap, and no acquire that hits has anything to do with it.
//!
//! A unit moves when a caller waits at a node that has too few: a free one at once; else one of a
//! node that does not need it, whose idle connection is closed; else, if all are in use, the next one
//! that comes back to the node that has most, as long as that leaves it at least as many as the other
//! one then has. It is given on only when the connection is gone.
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

/// The cap, and who has how much of it.
pub(super) struct Cap<K: Key, M: Manager> {
    most: usize,
    shares: Mutex<Vec<Share<K, M>>>,
    /// A task waits for units that are on their way back.
    collecting: AtomicBool,
    /// Notified when somebody wants a unit.
    wanted: Event,
}

/// A pool that has units, or may get some.
struct Share<K: Key, M: Manager> {
    pool: Pool<Member<K, M>>,
    /// A caller would have used it if it had had a connection.
    passed_over: bool,
}

/// What one share looks like at a moment.
struct Look {
    limit: usize,
    /// How many units it has, which nobody else may use.
    units: usize,
    /// How many of its units are on their way back.
    coming: usize,
    /// How many units it could do with.
    need: usize,
    /// That is one, because it was passed over, and nobody waits.
    can_wait: bool,
}

impl Look {
    fn starves(&self) -> bool {
        self.need > self.limit
    }
}

impl<K: Key, M: Manager> Share<K, M> {
    fn look(&self) -> Look {
        let (counts, waiting) = (self.pool.counts(), self.pool.unserved());
        if self.pool.is_closed() {
            // It has what is still alive, and will have none. What is out comes back when whoever has
            // it likes, which may be never: he has been waited for already.
            let units = counts.connecting + counts.alive();
            let coming = units - counts.in_use;
            return Look { limit: 0, units, coming, need: 0, can_wait: false };
        }
        let limit = self.pool.max_size();
        // What is being opened is for those who wait.
        let busy = counts.alive() - counts.idle + counts.connecting.max(waiting);
        let need = busy.min(self.pool.config().max_size);
        let can_wait = need == 0 && self.passed_over;
        let units = limit.max(counts.in_service());
        let need = need.max(usize::from(can_wait));
        Look { limit, units, coming: units - limit, need, can_wait }
    }
}

impl<K: Key, M: Manager> Cap<K, M> {
    pub(super) fn new(most: usize) -> Self {
        let shares = Mutex::new(Vec::new());
        Self { most, shares, collecting: AtomicBool::new(false), wanted: Event::new() }
    }

    fn shares(&self) -> MutexGuard<'_, Vec<Share<K, M>>> {
        self.shares.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A pool that nobody else knows yet takes part from now on, with no unit.
    pub(super) fn add(&self, pool: &Pool<Member<K, M>>) {
        pool.set_limit(0);
        self.shares().push(Share { pool: pool.clone(), passed_over: false });
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
            let (poorest, look) = starving.min_by_key(|(_, look)| look.limit)?;
            let given: usize = looks.iter().map(|look| look.units).sum();
            if given < self.most {
                let share = &mut shares[poorest];
                share.passed_over = false;
                share.pool.set_limit(look.limit + 1);
                continue;
            }
            let missing: usize =
                looks.iter().map(|look| look.need.saturating_sub(look.limit)).sum();
            let coming: usize = looks.iter().map(|look| look.coming).sum();
            if coming < missing {
                if let Some(giver) = giver(&looks, look) {
                    shares[giver].pool.set_limit(looks[giver].limit - 1);
                    continue;
                }
                if look.can_wait {
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

/// Who is to let go of a unit for this one: a pool that does not need all of its own, or else the one
/// that has most, if it has more than the other will have then. Nobody gives the last one to a node that
/// can wait.
fn giver(looks: &[Look], poor: &Look) -> Option<usize> {
    let least = if poor.can_wait { 2 } else { 1 };
    let able = || looks.iter().enumerate().filter(|(_, look)| look.limit >= least);
    let spare = |look: &Look| look.limit.saturating_sub(look.need);
    let idle = able().max_by_key(|(_, look)| spare(look)).filter(|(_, look)| spare(look) > 0);
    let richest = || able().max_by_key(|(_, look)| look.limit);
    idle.or_else(|| richest().filter(|(_, look)| look.limit > poor.limit + 1))
        .map(|(index, _)| index)
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

    /// A caller is in line at a node, which may have too few units.
    #[cold]
    pub(super) fn more_wanted(self: &Arc<Self>) {
        let Some(cap) = &self.cap else { return };
        if let Some(listeners) = cap.balance() {
            cap.wanted.notify(1.additional());
            if !cap.collecting.swap(true, Ordering::SeqCst) {
                match Handle::try_current() {
                    Ok(runtime) => drop(runtime.spawn(collect(Arc::downgrade(self), listeners))),
                    Err(_) => cap.collecting.store(false, Ordering::SeqCst),
                }
            }
        }
    }
}

/// Waits for units that are on their way back, and gives them on, until nobody starves.
async fn collect<K: Key, M: Manager>(cluster: Weak<Shared<K, M>>, first: Vec<EventListener>) {
    /// How often it looks who has become able to give. A connection that becomes idle tells nobody.
    const AGAIN: Duration = Duration::from_millis(5);

    struct Collecting<K: Key, M: Manager>(Weak<Shared<K, M>>);
    impl<K: Key, M: Manager> Drop for Collecting<K, M> {
        fn drop(&mut self) {
            if let Some(cap) = self.0.upgrade().as_ref().and_then(|cluster| cluster.cap.as_ref()) {
                cap.collecting.store(false, Ordering::SeqCst);
            }
        }
    }

    let mut listeners = first;
    loop {
        // However this ends, the runtime's own end included, the next one who wants may begin again.
        let collecting = Collecting(cluster.clone());
        loop {
            let Some(wanted) = cluster
                .upgrade()
                .and_then(|cluster| cluster.cap.as_ref().map(|cap| cap.wanted.listen()))
            else {
                return;
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
            let Some(cluster) = cluster.upgrade() else { return };
            let Some(cap) = &cluster.cap else { return };
            match cap.balance() {
                Some(next) => listeners = next,
                None => break,
            }
        }
        drop(collecting);
        // Somebody may have wanted one after the last look and seen this task at work.
        let Some(cluster) = cluster.upgrade() else { return };
        let Some(cap) = &cluster.cap else { return };
        match cap.balance() {
            Some(next) if !cap.collecting.swap(true, Ordering::SeqCst) => listeners = next,
            _ => return,
        }
    }
}
