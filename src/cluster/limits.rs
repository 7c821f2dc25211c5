//! A cap over the connections of all nodes together.
//!
//! The cap is a number of *units*. Each node's pool has some of them: its limit, and, while it shrinks,
//! what has still to go ([`units`]). A pool never has more connections than units, so all of them
//! together never exceed the cap, and no acquire that hits has anything to do with it.
//!
//! A unit moves when a caller waits at a node that has too few:
//!
//! | which one | when |
//! |---|---|
//! | a free one | at once |
//! | an idle one of a node that keeps at least as many as the other then has | at once |
//! | an idle one of any other node | once that one has been seen to have no use for it for a [`TURN`] |
//! | one in use, or being checked or reset, of the node that has most, as above, if no idle one can be had | when it comes back; if that takes longer than a turn, another node is asked as well |
//! | the only one of a node, if the other has none | once it has used what it opened for as long as that took, but for a turn at least and for [`LONGEST_TURN`] at most |
//!
//! What moves at once goes to a node that then has no more than the giver keeps, and is not given back
//! ([`allot`](super::allot)): the shares become more equal, and that comes to an end. All else takes a turn. So
//! however the loads go up and down, a node that stays within its fair share loses each of its units at
//! most once a turn, and nobody waits longer than that for what another has no use for.
//!
//! A unit is given on only when the connection is gone: one that is being closed is waited for, for `close_timeout`
//! at the most. If nobody else misses it any more before it is closed, it stays. Of idle ones no more are taken at once
//! than the node may open at once; the others are as good as its own, and none in use is asked for in their place.
//! What a node opens for nobody is given up, and so is what one that has nothing else has been opening for a long while
//! ([`SILENCE`]), after which it lets the others have theirs for as long.
//!
//! A node that was merely passed over, so that nobody waits for it, comes after all for which somebody
//! does, and gets nobody's last unit. One that is down has to be tried now and then, or it would never
//! relieve the others: it comes before those that have some, and gets the last unit of one that has had
//! no use for it for a turn. Of those who wait there only so many count as there are connects under way, and one
//! at least: where its server is at its limit, all that it could not use is for others until it is back.
//!
//! Not here: the rules by which that is decided ([`allot`](super::allot)); what a pool does when its limit
//! changes (`crate::core`).

use super::allot::{Figures, Look, Step, step};
use super::node::{Member, Node};
use super::{Key, Shared};
use crate::manager::Manager;
use crate::pool::Pool;
use crate::pool::node_side::GivenUp;
use event_listener::{Event, EventListener, IntoNotification};
use std::cmp::Reverse;
use std::future::poll_fn;
use std::mem;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::Poll;
use std::time::Duration;
use tokio::time::Instant;

/// For so long at least a node uses its last unit while another one waits for that: many uses, beside which it
/// costs little to open a connection. For so long nobody has had use for a unit before a node loses it
/// that has no more than its share.
const TURN: Duration = Duration::from_millis(50);

/// For so long at most, however long it has taken to open the connection.
const LONGEST_TURN: Duration = Duration::from_secs(1);

/// For so long a node may open its only connections before it has to let others try, and for twice as long
/// each next time: one that merely takes long to connect would never serve otherwise.
const SILENCE: Duration = Duration::from_secs(1);

/// So often that is doubled. Who waits for another node in the meantime has his own deadline.
const DOUBLINGS: u32 = 2;

/// For so long somebody who can wait does so.
pub(super) const PATIENCE: Duration = Duration::from_millis(250);

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
    /// When a caller would last have used it if it had had a connection.
    passed_over: Option<Instant>,
    /// When it got a unit, or lost its only one: a number that grows with each of these.
    turn: u64,
    /// When it last got one, and how often its connections had been acquired by then.
    since: Instant,
    uses_then: u64,
    /// When its callers could begin to use that: when it was last seen to wait for what it opens with it.
    begun: Instant,
    /// How many connections it had opened when it was last looked at.
    opened: u64,
    /// When it was first seen to open the next ones while it had no other, or the oldest of them began, if that was
    /// later.
    opening: Option<Instant>,
    /// How often it has been told so since it opened one, because it took too long.
    silences: u32,
    /// How often its connections had been acquired when it was last seen to open the next ones.
    unused: Option<u64>,
    /// When it was last told to let go of one.
    asked: Instant,
    /// Until when it lets others have their turn, because of that.
    silent: Option<Instant>,
    /// For each of its units, when it was last seen to have use for as many.
    used: Vec<Instant>,
    /// When it was last looked at, how often its connections had been acquired by then, and how many it needed.
    seen: (Instant, u64, usize),
}

impl<K: Key, M: Manager> Share<K, M> {
    fn new(pool: Pool<Member<K, M>>) -> Self {
        let now = Instant::now();
        Self {
            pool,
            passed_over: None,
            turn: 0,
            since: now,
            uses_then: 0,
            begun: now,
            opened: 0,
            opening: None,
            silences: 0,
            unused: None,
            asked: now,
            silent: None,
            used: Vec::new(),
            seen: (now, 0, 0),
        }
    }

    /// How many connections it has, or is opening.
    fn connections(&self) -> usize {
        let counts = self.pool.counts();
        counts.connecting + counts.alive()
    }

    fn look(&mut self) -> Look {
        let turn = self.turn;
        // Before the counts: then what they say of a pool that is closed is all that it still has.
        let (is_closed, uses) = (self.pool.is_closed(), self.pool.uses());
        let (counts, waiting) = (self.pool.counts(), self.pool.unserved());
        if is_closed {
            return Look { turn, ..Look::of_a_closed_pool(&counts) };
        }
        let now = Instant::now();
        let look = Look::new(&Figures {
            counts,
            limit: self.pool.max_size(),
            most: self.pool.config().max_size,
            waiting,
            admitted: self.pool.admitted(),
            was_passed_over: self.passed_over.is_some_and(|since| now - since < PATIENCE),
            is_down: !self.pool.manager().state.is_up(),
        });
        let opens = look.opens();
        let is_silent = self.is_silent(opens, now);
        let state = &self.pool.manager().state;
        let (is_down, roving) = (look.is_down, state.roving());
        let was_silent = self.silent.is_some_and(|until| now < until);
        if opens {
            self.unused = Some(uses);
        }
        // One that is still being opened, or on its way to the first who uses it, would have been opened in
        // vain.
        let is_new = look.is_in_use() && self.unused == Some(uses);
        let has_served = uses != self.uses_then && now - self.since >= SILENCE;
        if uses == self.uses_then && (opens || is_new) {
            self.begun = now;
        }
        let had_a_while = !is_new && now - self.begun >= self.turn_takes();
        let had_its_turn = if opens { is_silent || has_served } else { had_a_while };
        Look {
            in_vain: look.coming > look.soon && now - self.asked >= TURN,
            rested: self.rested(look.need, look.limit, uses, now),
            is_urgent: waiting > roving && !was_silent && !is_silent,
            had_its_turn,
            is_silent,
            is_tried: is_down && now - self.since < PATIENCE,
            turn,
            ..look
        }
    }

    /// It has got a unit, or has back one that it was to let go of.
    fn got_one(&mut self, turn: u64) {
        (self.passed_over, self.silent) = (None, None);
        (self.turn, self.since, self.uses_then) = (turn, Instant::now(), self.seen.1);
        self.begun = self.since;
    }

    /// It is told to let go of one, or of what it opens; answers how much of that it is to give up, and why.
    fn was_asked(&mut self, look: &Look) -> Recalls {
        self.asked = Instant::now();
        if !look.gets_no_further() {
            return (usize::from(look.opens_for_nobody()), GivenUp::Unwanted);
        }
        let long = self.long();
        self.silent = Some(self.asked + long);
        self.silences += 1;
        self.opening = None;
        (usize::MAX, GivenUp::Silent(long))
    }

    /// How long it may use its only unit: no less than it took to open the connection, so that no more than
    /// half of the time goes into that.
    fn turn_takes(&self) -> Duration {
        (self.begun - self.since).clamp(TURN, LONGEST_TURN)
    }

    /// Whether it has been opening its only connections for a long while.
    fn is_silent(&mut self, opens: bool, now: Instant) -> bool {
        let opened = self.pool.opened();
        let has_answered = mem::replace(&mut self.opened, opened) != opened;
        if has_answered {
            self.silences = 0;
        }
        // Nobody may have looked while it had what it was opening then, nor when that failed or was given up: what it
        // is opening now may have begun since, or be about to begin.
        let oldest = now - self.pool.connecting_for().unwrap_or_default();
        let before = self.opening.filter(|_| !has_answered);
        let opening = before.map_or(now, |opening| opening.max(oldest));
        self.opening = opens.then_some(opening);
        opens && now - opening >= self.long()
    }

    /// For how long it may open its only connections.
    fn long(&self) -> Duration {
        SILENCE * (1 << self.silences.min(DOUBLINGS))
    }

    /// Takes note of how many units are needed now; answers how many were not at any look of the last
    /// turn.
    fn rested(&mut self, need: usize, limit: usize, uses: u64, now: Instant) -> usize {
        let needed = need.min(limit);
        let (before, uses_before, needed_before) =
            mem::replace(&mut self.seen, (now, uses, needed));
        if now - before >= TURN {
            // Nobody has seen how many were in use at a time, nor until when those were that had been by then.
            let unseen = if uses == uses_before { needed_before } else { usize::MAX };
            self.used.iter_mut().take(unseen).for_each(|used| *used = now);
        }
        self.used.resize(limit, now);
        self.used[..needed].fill(now);
        self.used[needed..].iter().filter(|used| now - **used >= TURN).count()
    }
}

/// A limit that has been changed, and has still to be made good: with user code, which may want the cap
/// itself.
struct Change<K: Key, M: Manager> {
    pool: Pool<Member<K, M>>,
    shrinks: bool,
    recalls: Recalls,
}

/// How much of what a pool is opening is to be given up, and why.
type Recalls = (usize, GivenUp);

impl<K: Key, M: Manager> Change<K, M> {
    /// Gives a pool so many units, and has it give up what it is opening with others.
    fn begin(share: &Share<K, M>, limit: usize, recalls: Recalls) -> Self {
        let shrinks = share.pool.begin_resize(limit);
        Self { pool: share.pool.clone(), shrinks, recalls }
    }

    fn carry_out(self) {
        self.pool.end_resize(self.shrinks);
        let (many, why) = self.recalls;
        self.pool.give_up_dials(many, why);
    }
}

/// Who still starves or is held back, if anybody: the pool of the first of them, and what tells that one that
/// shrinks has changed.
type Outcome<K, M> = Option<(Pool<Member<K, M>>, Vec<EventListener>)>;

impl<K: Key, M: Manager> Cap<K, M> {
    pub(super) fn new(most: usize) -> Self {
        let shares = Mutex::new(Vec::new());
        let (wanted, abandoned) = (Event::new(), Event::new());
        Self { most, shares, collecting: AtomicBool::new(false), wanted, abandoned }
    }

    pub(super) fn most(&self) -> usize {
        self.most
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
        self.shares().push(Share::new(pool.clone()));
    }

    /// Lets go of pools that were closed, whose last connection is gone: until then they take part.
    pub(super) fn forget(&self) {
        let gone: Vec<Share<K, M>> = {
            let is_gone = |share: &Share<K, M>| share.pool.is_closed() && share.connections() == 0;
            let mut shares = self.shares();
            if !shares.iter().any(is_gone) {
                return;
            }
            let (gone, others) = mem::take(&mut *shares).into_iter().partition(is_gone);
            *shares = others;
            gone
        };
        // Only now: a manager that is dropped may want the cap itself.
        drop(gone);
    }

    /// Who has them, if all are taken.
    fn used_up(&self) -> Option<String> {
        const SHOWN: usize = 3;
        let taken = |share: &Share<K, M>| {
            let limit = if share.pool.is_closed() { 0 } else { share.pool.max_size() };
            (limit.max(share.connections()), share.pool.clone())
        };
        let mut taken: Vec<_> = self.shares().iter().map(taken).collect();
        taken.retain(|(units, _)| *units > 0);
        if taken.iter().map(|(units, _)| units).sum::<usize>() < self.most {
            return None;
        }
        taken.sort_by_key(|(units, _)| Reverse(*units));
        let name = |(units, pool): &(usize, Pool<Member<K, M>>)| {
            let removed = if pool.is_closed() { " (removed)" } else { "" };
            format!("{}{removed} has {units}", pool.manager().key())
        };
        let mut names: Vec<String> = taken.iter().take(SHOWN).map(name).collect();
        if taken.len() > SHOWN {
            names.push("others the rest".to_owned());
        }
        let (most, names) = (self.most, names.join(", "));
        let plural = if most == 1 { "" } else { "s" };
        Some(format!(
            "the cap of {most} connection{plural} on all nodes together (max_connections) is used up: {names}"
        ))
    }

    /// The pools that take part.
    fn pools(&self) -> Vec<Pool<Member<K, M>>> {
        self.shares().iter().map(|share| share.pool.clone()).collect()
    }

    /// Gives units to those who need some, as far as there are free ones, and has others let go of
    /// theirs.
    fn balance(&self) -> Outcome<K, M> {
        self.forget();
        loop {
            let (changes, outcome) = self.decide();
            if changes.is_empty() {
                return outcome;
            }
            changes.into_iter().for_each(Change::carry_out);
        }
    }

    /// Changes limits until there is nothing to change; if there was nothing, answers who still wants something.
    fn decide(&self) -> (Vec<Change<K, M>>, Outcome<K, M>) {
        let mut shares = self.shares();
        let (mut changes, mut listeners) = (Vec::new(), Vec::new());
        loop {
            let looks: Vec<Look> = shares.iter_mut().map(Share::look).collect();
            let starving = looks.iter().enumerate().filter(|(_, look)| look.starves());
            let poorest = starving.min_by_key(|(_, look)| look.precedence(look.limit));
            // Nobody tells the cap that a node is up again.
            let held_back = || looks.iter().position(|look| look.is_held_back);
            let poorest = poorest.map(|(index, _)| index).or_else(held_back);
            let Some(poorest) = poorest else { return (changes, None) };
            let turn = 1 + looks.iter().map(|look| look.turn).max().unwrap_or_default();
            let change = match step(&looks, self.most) {
                Some(Step::Give(index)) => {
                    shares[index].got_one(turn);
                    Some((index, looks[index].limit + 1, (0, GivenUp::Unwanted)))
                }
                Some(Step::Take(index)) => {
                    let look = &looks[index];
                    let recalls = shares[index].was_asked(look);
                    if look.limit == 1 {
                        // It is the last to get one again.
                        shares[index].turn = turn;
                    }
                    Some((index, look.limit - 1, recalls))
                }
                Some(Step::Recall(index)) => {
                    let recalls = shares[index].was_asked(&looks[index]);
                    Some((index, looks[index].limit, recalls))
                }
                Some(Step::Forgo(index)) => {
                    shares[index].passed_over = None;
                    continue;
                }
                None => None,
            };
            if let Some((index, limit, recalls)) = change {
                changes.push(Change::begin(&shares[index], limit, recalls));
                continue;
            }
            if !changes.is_empty() {
                return (changes, None);
            }
            let shrinking =
                || shares.iter().zip(&looks).filter(|(_, look)| look.units > look.limit);
            if listeners.is_empty() && shrinking().next().is_some() {
                listeners = shrinking()
                    .map(|(share, _)| share.pool.without_handle().when_changed())
                    .collect();
                // Once more, so that nothing that came back before that is missed.
                continue;
            }
            return (changes, Some((shares[poorest].pool.clone(), listeners)));
        }
    }
}

impl<K: Key, M: Manager> Shared<K, M> {
    /// Who has what one of these nodes could have beside its own, if all of the cap is taken.
    #[cold]
    pub(super) fn why_no_more<'n>(
        &self,
        nodes: impl IntoIterator<Item = &'n Node<K, M>>,
    ) -> Option<String> {
        let cap = self.cap.as_ref()?;
        let could_have_more =
            |node: &Node<K, M>| node.pool.max_size() < node.pool.config().max_size;
        if nodes.into_iter().any(could_have_more) { cap.used_up() } else { None }
    }

    /// A caller has been served by another node because this one had nothing.
    #[cold]
    pub(super) fn passed_over(self: &Arc<Self>, node: &Node<K, M>) {
        let Some(cap) = &self.cap else { return };
        if let Some(share) = cap.shares().iter_mut().find(|share| share.pool.is(&node.pool)) {
            if share.pool.max_size() == 0 {
                share.passed_over = Some(Instant::now());
            }
        }
        self.more_wanted();
    }

    /// A caller is in line at a node, which may have too few units. False: somebody would have to look
    /// after the cap, and cannot, since neither a pool nor the caller has a runtime for that.
    #[cold]
    pub(super) fn more_wanted(self: &Arc<Self>) -> bool {
        let Some(cap) = &self.cap else { return true };
        while let Some((pool, listeners)) = cap.balance() {
            cap.wanted.notify(1.additional());
            // Not on the caller's runtime, which may be alive and be driven no more. Where neither this pool nor
            // he has one, that of any other does as well.
            let elsewhere = || cap.pools().iter().find_map(Pool::ground_or_current);
            match pool.ground_or_current().or_else(elsewhere) {
                Some(ground) => {
                    if let Some(collecting) = Collecting::begin(self, cap) {
                        ground.spawn(collect(collecting, listeners));
                    }
                    return true;
                }
                // It needs nothing any more.
                None if pool.is_closed() => {}
                None => return false,
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
        let cluster = collecting.cluster.upgrade();
        let wanted = cluster.and_then(|cluster| Some(cluster.cap.as_ref()?.wanted.listen()));
        let Some(mut wanted) = wanted else { return };
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
        if let Some((_, next)) = cap.balance() {
            listeners = next;
            continue;
        }
        collecting.is_over = true;
        drop(collecting);
        // Somebody may have wanted one after the last look and seen this task at work.
        let Some((_, next)) = cap.balance() else { return };
        let Some(again) = Collecting::begin(&cluster, cap) else { return };
        (collecting, listeners) = (again, next);
    }
}
