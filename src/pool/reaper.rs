//! The reaper: the pool's one standing task, which does everything that depends on time.
//!
//! Acquire and release read no clock. So at each tick the reaper compares what it sees of each slot
//! (state and number of uses) with what it saw before, and infers how long the connection has been
//! idle or held. What it finds is exact to one `maintenance_interval`.
//!
//! | finding | what follows |
//! |---|---|
//! | past its lifetime | ended: an idle one here, one in use when it comes back; at most a twentieth of the pool each second, unless a resize to less has all of them looked over |
//! | past its lifetime, idle, and needed for `min_idle` | its replacement is opened first |
//! | idle for `idle_timeout` | ended, as long as `min_idle` are left |
//! | as many idle at every look for `idle_timeout` | so many are ended: with [`IdleOrder::Recent`] and [`IdleOrder::Fifo`] the load goes round, and none ever looks idle |
//! | idle for [`CheckPolicy::IfIdleFor`], or unused with [`CheckPolicy::Always`], or not used for 5 s since it passed a check | flagged for a check before its next use |
//! | idle and unchecked for `keepalive_interval` | checked, one after the other |
//! | held for `leak_after` | reported |
//! | down, and nobody is connecting | one connect is begun, unless the last one failed for good |
//!
//! Not here: how a connection is ended (`close.rs`, `life.rs`).

use super::guard::end;
use super::life::{Term, look_over, nanos};
use super::operation::FAR_FUTURE;
use super::prepare::check;
use super::{Pool, Shared, lock};
use crate::config::{ALIVE_FOR, CheckPolicy, above_zero};
use crate::core::{Flags, Glimpse, IdleOrder, Lease, Search, State};
use crate::error::ConfigError;
use crate::hooks::Leak;
use crate::manager::Manager;
use crate::metrics::CloseReason;
use event_listener::{Event, IntoNotification, listener};
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt;
use std::future::{Future, poll_fn};
use std::mem;
use std::ops::Deref;
use std::panic::Location;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::task::Poll;
use std::time::Duration;
use tokio::time::Instant;

/// When the reaper looks.
pub(super) struct Upkeep {
    // Ordering: SeqCst for these three. Whoever changes one notifies `changed` after that, and whoever goes by one
    // looks after listening, so he either sees the change or hears of it.
    paused: AtomicBool,
    /// In nanoseconds.
    interval: AtomicU64,
    /// Keepalive checks are under way.
    pinging: AtomicBool,
    /// When, by the pool's clock, what is idle was last doubted because one was found dead; `u64::MAX` for never.
    doubted: AtomicU64,
    /// Notified when one of the above has changed, or the pool is closed.
    changed: Event,
}

impl Upkeep {
    pub(super) fn new(interval: Duration) -> Self {
        Self {
            paused: AtomicBool::new(false),
            interval: AtomicU64::new(nanos(interval)),
            pinging: AtomicBool::new(false),
            doubted: AtomicU64::new(u64::MAX),
            changed: Event::new(),
        }
    }

    /// Notified when the pool is closed, or something else has changed.
    pub(super) fn changed(&self) -> &Event {
        &self.changed
    }

    pub(super) fn is_paused(&self) -> bool {
        self.paused.load(Ordering::SeqCst)
    }

    /// Has the reaper look whether it is still wanted.
    pub(super) fn notify(&self) {
        self.changed.notify(usize::MAX.additional());
    }
}

/// What the reaper remembers from one look to the next.
pub(super) struct Memory {
    tracks: Box<[Track]>,
    /// The fewest idle connections since `window`.
    fewest_idle: usize,
    window: u64,
    /// How many have been ended for their age since `second`.
    aged: usize,
    second: u64,
    /// Room for what is idle, so that a look that finds nothing allocates nothing.
    idle: Vec<(usize, u64, Term)>,
}

impl Memory {
    pub(super) fn new(capacity: usize) -> Self {
        let tracks = (0..capacity).map(|_| Track::default()).collect();
        let idle = Vec::with_capacity(capacity);
        Self { tracks, fewest_idle: usize::MAX, window: 0, aged: 0, second: 0, idle }
    }
}

/// What it remembers of one slot.
#[derive(Clone, Copy, Default)]
struct Track {
    uses: u64,
    connection: u64,
    /// When it was first seen like this, by the pool's clock.
    since: u64,
    /// When a connection last passed a check here while it was idle.
    checked: u64,
    /// Which connection that was, and after how many uses.
    passed: (u64, u64),
    site: Option<&'static Location<'static>>,
    /// Somebody holds it.
    held: bool,
    /// That has been reported as a leak.
    reported: bool,
}

impl Track {
    /// Takes note of what is seen now. Answers who has come back late.
    fn observe(&mut self, seen: &Glimpse, connection: u64, now: u64) -> Option<Holder> {
        // A connection that is on its way to a waiter has not been lent yet, whoever held the one
        // before it.
        let still = self.held && connection == self.connection;
        let out = seen.state == State::InUse && seen.holder.is_some();
        let lent = out && (still || seen.uses != self.uses);
        let same = seen.uses == self.uses && connection == self.connection && lent == self.held;
        if same {
            return None;
        }
        let late = (self.held && self.reported).then(|| self.holder(now));
        *self = Self {
            uses: seen.uses,
            connection,
            since: now,
            checked: self.checked,
            passed: self.passed,
            site: seen.holder,
            held: lent,
            reported: false,
        };
        late
    }

    /// How long it has been like this.
    fn age(&self, now: u64) -> u64 {
        // A thread for which a paused clock does not hold may ask, too.
        now.saturating_sub(self.since)
    }

    fn holder(&self, now: u64) -> Holder {
        let held = Duration::from_nanos(self.age(now));
        Holder { connection: self.connection, site: self.site, held }
    }

    /// How long it has been idle, if it is.
    fn idle(&self, seen: &Glimpse, now: u64) -> Option<u64> {
        (seen.state == State::Idle && seen.uses == self.uses).then(|| self.age(now))
    }
}

/// Who holds a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Holder {
    /// The connection's number; see [`ConnectionInfo::id`](crate::ConnectionInfo::id).
    pub connection: u64,
    /// Where it was acquired.
    pub site: Option<&'static Location<'static>>,
    /// For how long it has been held at least, from the first look of the reaper that saw it: up to one
    /// `maintenance_interval` less than in truth.
    pub held: Duration,
}

impl Holder {
    /// Who has held a connection for longest has the greatest; of several, the one with the smallest number.
    pub(crate) fn seniority(&self) -> impl Ord + use<> {
        (self.held, Reverse(self.connection))
    }

    /// For how long, in words, rounded down, or "at least" would not be true; nothing if nobody has seen that yet.
    pub(super) fn held_for_at_least(&self) -> Option<String> {
        let tenths = self.held.as_millis() / 100;
        (tenths > 0).then(|| format!("{}.{}s", tenths / 10, tenths % 10))
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "connection {}", self.connection)?;
        if let Some(held) = self.held_for_at_least() {
            write!(f, " for at least {held}")?;
        }
        match self.site {
            Some(site) => write!(f, ", acquired at {site}"),
            None => Ok(()),
        }
    }
}

/// Those who have held a connection for longest.
pub(super) struct Longest {
    /// The first of them.
    pub(super) holder: Option<Holder>,
    /// How many have held theirs for `leak_after`.
    pub(super) too_long: usize,
}

/// What a look found that has to be done.
#[derive(Default)]
struct Plan {
    /// By slot: why its connection is to be ended, and the number of uses that this holds for.
    ends: BTreeMap<usize, (CloseReason, u64)>,
    /// Connections to be ended, whichever they are.
    surplus: usize,
    /// By slot: the number of uses after which its connection is to be checked.
    pings: BTreeMap<usize, u64>,
    leaks: Vec<Leak>,
    /// Idle ones whose replacement is to be opened first.
    expiring: usize,
    /// There is more to do than may be done at once.
    more: bool,
}

/// At most one in so many connections is ended for its age each second.
const AT_ONCE: usize = 20;
const SECOND: Duration = Duration::from_secs(1);

impl<M: Manager> Shared<M> {
    /// One look at all slots, and what follows from it; true if there is more to do soon. Keepalive
    /// checks go on in the background.
    pub(super) fn tick(&self) -> bool {
        if self.core.is_closed() {
            return false;
        }
        let Plan { ends, surplus, pings, leaks, expiring, more } = {
            let mut memory = lock(&self.memory);
            // Behind the lock: no earlier than what is in the memory.
            let now = self.now();
            self.survey(&mut memory, now)
        };
        for leak in &leaks {
            match leak {
                Leak::Held(_) => self.totals.leaked(),
                Leak::Returned(_) => self.totals.came_back_late(),
            }
            self.tell_leak(leak);
            self.hooks.leaked(leak);
        }
        self.retire(ends, surplus);
        self.expiring.store(expiring, Ordering::Relaxed);
        self.demand_or_probe();
        if !pings.is_empty() {
            self.ping(pings);
        }
        more
    }

    fn survey(&self, memory: &mut Memory, now: u64) -> Plan {
        let mut plan = Plan::default();
        if now.saturating_sub(memory.second) >= nanos(SECOND) {
            (memory.second, memory.aged) = (now, 0);
        }
        let budget = self.core.limit().div_ceil(AT_ONCE).saturating_sub(memory.aged);
        let mut left = budget;
        let mut idle = mem::take(&mut memory.idle);
        for (slot, track) in memory.tracks.iter_mut().enumerate() {
            let seen = self.core.glimpse(slot);
            let (connection, term) = self.records[slot].read();
            plan.leaks.extend(track.observe(&seen, connection, now).map(Leak::Returned));
            if let Some(age) = track.idle(&seen, now) {
                idle.push((slot, age, term));
                self.look_at_idle(slot, &seen, track, now, &mut plan);
            } else if track.held {
                plan.leaks.extend(self.leak(track, now));
                if term.soft <= now && !seen.flags.has(Flags::LOOK) {
                    match left.checked_sub(1) {
                        Some(fewer) => {
                            left = fewer;
                            // Its holder's release, or whoever looks then, ends it.
                            self.core.raise(slot, Flags::LOOK);
                        }
                        None => plan.more = true,
                    }
                }
            }
        }
        let staying = self.plan_idle(memory, &idle, now, &mut plan);
        left = self.plan_lifetimes(memory, &idle, (staying, left), now, &mut plan);
        memory.aged += budget - left;
        idle.clear();
        memory.idle = idle;
        plan
    }

    fn leak(&self, track: &mut Track, now: u64) -> Option<Leak> {
        let limit = self.config.leak_after?;
        let late = !track.reported && track.age(now) >= nanos(limit);
        late.then(|| {
            track.reported = true;
            Leak::Held(track.holder(now))
        })
    }

    /// Whether an idle connection is to be checked, now or before its next use.
    fn look_at_idle(&self, slot: usize, seen: &Glimpse, track: &Track, now: u64, plan: &mut Plan) {
        let unchecked = now.saturating_sub(track.since.max(track.checked));
        let limit = match self.config.check {
            CheckPolicy::IfIdleFor(limit) => nanos(limit),
            // Its release has flagged it, unless it has never been used.
            CheckPolicy::Always if track.passed != (track.connection, track.uses) => 0,
            // Whoever only tries has it checked, and is to find it when he comes again; a keepalive of long
            // ago says nothing.
            CheckPolicy::Always => nanos(ALIVE_FOR),
            CheckPolicy::Never => u64::MAX,
        };
        if unchecked >= limit && !seen.flags.has(Flags::CHECK) {
            self.core.raise(slot, Flags::CHECK);
        }
        if self.config.keepalive_interval.is_some_and(|limit| unchecked >= nanos(limit)) {
            plan.pings.insert(slot, seen.uses);
        }
    }

    /// A connection is found dead, and perhaps the others are too, as after the restart of a server: those that
    /// are idle are checked before their next use, unless nothing ever is. At most once in an interval, or
    /// who breaks one after the other would have all others checked each time. Not by the reaper: whoever
    /// hears that one is dead tries again at once.
    #[cold]
    pub(super) fn doubt_idle(&self) {
        // Where no runtime is left, nobody could check them either.
        if self.config.check == CheckPolicy::Never || self.ground().is_none() {
            return;
        }
        let now = self.now();
        let interval = self.upkeep.interval.load(Ordering::Relaxed);
        let due = |last| (last == u64::MAX || now.saturating_sub(last) >= interval).then_some(now);
        let doubted = &self.upkeep.doubted;
        if doubted.fetch_update(Ordering::Relaxed, Ordering::Relaxed, due).is_err() {
            return;
        }
        self.have_idle_checked();
    }

    /// Has each connection that is idle checked before its next use, whatever the policy.
    pub(super) fn have_idle_checked(&self) {
        self.have_checked(|state| state == State::Idle);
    }

    /// The same for each whose slot is in such a state.
    fn have_checked(&self, is_meant: impl Fn(State) -> bool) {
        for slot in 0..self.core.capacity() {
            if is_meant(self.core.state(slot)) {
                self.core.raise(slot, Flags::CHECK);
            }
        }
    }

    /// Whether a slot is kept for callers with priority, so that its connection is none of `min_idle`.
    pub(super) fn is_reserved(&self, slot: usize) -> bool {
        slot < self.config.reserved.1
    }

    /// Ends what has been idle for too long; answers how many idle ones that leaves for all callers.
    fn plan_idle(
        &self,
        memory: &mut Memory,
        idle: &[(usize, u64, Term)],
        now: u64,
        plan: &mut Plan,
    ) -> usize {
        let mut left = idle.iter().filter(|(slot, ..)| !self.is_reserved(*slot)).count();
        let Some(limit) = self.config.idle_timeout.map(nanos) else { return left };
        let floor = self.config.min_idle;
        for &(slot, age, _) in idle {
            if age >= limit && (self.is_reserved(slot) || left > floor) {
                plan.ends.insert(slot, (CloseReason::Idle, memory.tracks[slot].uses));
                left -= usize::from(!self.is_reserved(slot));
            }
        }
        if self.config.order == IdleOrder::Lifo {
            return left;
        }
        if memory.fewest_idle == usize::MAX {
            // The first look: one alone says nothing about a time.
            memory.window = now;
        }
        memory.fewest_idle = memory.fewest_idle.min(left);
        if now.saturating_sub(memory.window) >= limit {
            plan.surplus = memory.fewest_idle.saturating_sub(floor);
            left -= plan.surplus;
            (memory.window, memory.fewest_idle) = (now, left);
        }
        left
    }

    /// Ends idle connections that are past their lifetime, no more at once than `budget`, and not
    /// before their replacement is there, if there is room for one. Answers what is left of the budget.
    fn plan_lifetimes(
        &self,
        memory: &Memory,
        idle: &[(usize, u64, Term)],
        (mut left, mut budget): (usize, usize),
        now: u64,
        plan: &mut Plan,
    ) -> usize {
        let vacant = self.core.counts().vacant.saturating_sub(self.reserved_in(State::Vacant));
        let room = vacant.min(self.core.limit().div_ceil(AT_ONCE));
        for &(slot, _, term) in idle {
            if term.soft > now || plan.ends.contains_key(&slot) {
                continue;
            }
            let needed = !self.is_reserved(slot) && left <= self.config.min_idle;
            if needed && now < term.hard && room > 0 {
                // It waits for its replacement, or for its turn to get one, and keeps nobody from ending
                // who is older.
                plan.expiring += usize::from(plan.expiring < room);
                plan.more = true;
            } else if budget > 0 {
                budget -= 1;
                plan.ends.insert(slot, (CloseReason::Lifetime, memory.tracks[slot].uses));
                left = left.saturating_sub(usize::from(!self.is_reserved(slot)));
            } else {
                plan.more = true;
            }
        }
        budget
    }

    /// Ends the idle connections that a plan names, and so many others.
    fn retire(&self, mut ends: BTreeMap<usize, (CloseReason, u64)>, mut surplus: usize) {
        let mut search = Search::new(self);
        while ends.len() + surplus > 0 {
            let wanted = |slot| surplus > 0 || ends.contains_key(&slot);
            let Some(lease) = search.next(wanted) else { return };
            let Some(lease) = look_over(lease) else { continue };
            match ends.remove(&lease.number()) {
                Some((reason, uses)) if lease.uses() == uses => end(lease, reason),
                None if surplus > 0 => {
                    surplus -= 1;
                    end(lease, CloseReason::Idle);
                }
                _ => search.restore(lease),
            }
        }
    }

    /// Checks idle connections one after the other, in the background, unless that is going on.
    fn ping(&self, mut due: BTreeMap<usize, u64>) {
        let Some(ground) = self.ground() else { return };
        // Ordering: SeqCst, partner: the store in `Pinging::drop`.
        if self.upkeep.pinging.swap(true, Ordering::SeqCst) {
            return;
        }
        let pinging = Pinging(self.upkeep.clone());
        let shared = self.arc();
        ground.spawn(async move {
            let _pinging = pinging;
            let mut search = Search::new(shared.clone());
            while let Some(lease) = search.next(|slot| due.contains_key(&slot)) {
                let Some(mut lease) = look_over(lease) else { continue };
                if due.remove(&lease.number()) != Some(lease.uses()) {
                    search.restore(lease);
                    continue;
                }
                // Cancel: the check that is dropped closes its connection.
                if let Ok(mut lease) = check(lease.begin(State::Checking)).await {
                    shared.has_checked(&mut lease);
                    // Whoever has flagged it meanwhile has missed it, and the search would look for such only
                    // when all are checked.
                    if let Some(lease) = look_over(lease) {
                        search.restore(lease);
                    }
                }
            }
        });
    }

    /// A connection has passed a check while it was idle.
    pub(super) fn has_checked<R>(&self, lease: &mut Lease<R>)
    where
        R: Deref<Target = Self> + Clone,
    {
        let passed = (lease.resource_mut().id, lease.uses());
        let track = &mut lock(&self.memory).tracks[lease.number()];
        (track.checked, track.passed) = (self.now(), passed);
    }

    /// Whether a connection was opened since then, by the pool's clock, or has passed a check in the
    /// background, used since or not.
    pub(super) fn has_answered_since<R>(&self, lease: &mut Lease<R>, then: u64) -> bool
    where
        R: Deref<Target = Self> + Clone,
    {
        let slot = lease.number();
        let tenant = lease.resource_mut();
        let track = &lock(&self.memory).tracks[slot];
        let checked = track.passed.0 == tenant.id && track.checked >= then;
        checked || self.moment(tenant.created) >= then
    }

    /// Who holds a connection at the moment.
    pub(crate) fn holders(&self) -> Vec<Holder> {
        let (memory, now) = (lock(&self.memory), self.now());
        let holders = (0..memory.tracks.len()).filter_map(|slot| self.holder(&memory, slot, now));
        holders.collect()
    }

    /// Who has held a connection for longest, and how many have for too long.
    pub(super) fn longest(&self) -> Longest {
        let leak_after = self.config.leak_after;
        let mut too_long = 0;
        let (memory, now) = (lock(&self.memory), self.now());
        let holders = (0..memory.tracks.len()).filter_map(|slot| self.holder(&memory, slot, now));
        let holders = holders.inspect(|holder| {
            too_long += usize::from(leak_after.is_some_and(|limit| holder.held >= limit));
        });
        let holder = holders.max_by_key(Holder::seniority);
        Longest { holder, too_long }
    }

    fn holder(&self, memory: &Memory, slot: usize, now: u64) -> Option<Holder> {
        let (seen, track) = (self.core.glimpse(slot), &memory.tracks[slot]);
        if seen.state != State::InUse || seen.holder.is_none() {
            return None;
        }
        if seen.uses == track.uses {
            return track.held.then(|| track.holder(now));
        }
        // The reaper has not seen this one yet.
        let (connection, _) = self.records[slot].read();
        Some(Holder { connection, site: seen.holder, held: Duration::ZERO })
    }

    /// How long the connection of a slot has been idle: up to one `maintenance_interval` less than
    /// in truth, and nothing if it has been used since the reaper's last look.
    pub(super) fn idle_for(&self, slot: usize, connection: u64, uses: u64) -> Duration {
        let track = &lock(&self.memory).tracks[slot];
        let same = track.connection == connection && track.uses == uses && !track.held;
        if same { Duration::from_nanos(track.age(self.now())) } else { Duration::ZERO }
    }
}

/// Keepalive checks are under way.
struct Pinging(Arc<Upkeep>);

impl Drop for Pinging {
    fn drop(&mut self) {
        // Ordering: SeqCst, partner: the load in `run_once`, which comes after listening.
        self.0.pinging.store(false, Ordering::SeqCst);
        self.0.notify();
    }
}

/// The task. It holds the pool only while it looks, ends with the pool, and is dropped if its
/// runtime ends first.
pub(super) struct Reaper<M: Manager> {
    shared: Weak<Shared<M>>,
    upkeep: Arc<Upkeep>,
    /// Of the runtime that it runs on.
    generation: u64,
}

impl<M: Manager> Reaper<M> {
    pub(super) fn new(shared: &Shared<M>, generation: u64) -> Self {
        Self { shared: shared.me.clone(), upkeep: shared.upkeep.clone(), generation }
    }

    fn open(&self) -> Option<Arc<Shared<M>>> {
        self.shared.upgrade().filter(|shared| !shared.core.is_closed())
    }

    pub(super) async fn run(self) {
        let (mut more, mut last) = (false, Instant::now());
        loop {
            listener!(self.upkeep.changed => changed);
            if self.open().is_none() {
                return;
            }
            if self.upkeep.paused.load(Ordering::SeqCst) {
                changed.await;
                continue;
            }
            let mut wait = Duration::from_nanos(self.upkeep.interval.load(Ordering::SeqCst));
            if more {
                wait = wait.min(SECOND);
            }
            // From the last look on, or whoever changes something now and then would put it off for good.
            let mut sleep = pin!(tokio::time::sleep_until(last + wait.min(FAR_FUTURE)));
            let slept = poll_fn(|cx| {
                if Pin::new(&mut changed).poll(cx).is_ready() {
                    return Poll::Ready(false);
                }
                sleep.as_mut().poll(cx).map(|()| true)
            });
            // Cancel: nothing is held here.
            if slept.await {
                more = self.open().is_some_and(|shared| shared.tick());
                last = Instant::now();
            }
        }
    }
}

impl<M: Manager> Drop for Reaper<M> {
    fn drop(&mut self) {
        // A closed pool still closes connections there, and looks itself whether there still is a there.
        if let Some(shared) = self.open() {
            shared.connector.forget(self.generation);
            // The connections that were opened there are dead, unless they need no runtime. Not only the idle
            // ones: some come back later, as with a task that is dropped after this one, and what is being opened
            // may still arrive.
            if shared.config.check != CheckPolicy::Never {
                shared.have_checked(|state| !matches!(state, State::Vacant | State::Spare));
            }
        }
    }
}

/// When a pool looks after its connections; from [`Pool::maintenance`].
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
/// pool.maintenance().set_interval(Duration::from_millis(200))?;
/// pool.maintenance().pause(); // such as for a failover that is being rehearsed
/// pool.maintenance().run_once().await; // by hand
/// pool.maintenance().resume();
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Maintenance<'p, M: Manager> {
    pool: &'p Pool<M>,
}

impl<M: Manager> Pool<M> {
    /// Pauses, resumes or runs what the pool does by the clock: ending connections that are too old
    /// or idle for too long, checking idle ones, keeping `min_idle`, reporting leaks, and looking whether a server that
    /// was away is back if nobody else does.
    #[must_use]
    pub fn maintenance(&self) -> Maintenance<'_, M> {
        Maintenance { pool: self }
    }
}

impl<M: Manager> Maintenance<'_, M> {
    fn upkeep(&self) -> &Upkeep {
        &self.pool.shared.upkeep
    }

    /// Stops looking until [`resume`](Self::resume). A look that has begun goes on to its end. What becomes idle
    /// while nobody looks counts as idle from the [next look](Self::run_once) on.
    pub fn pause(&self) {
        self.upkeep().paused.store(true, Ordering::SeqCst);
        self.upkeep().notify();
    }

    /// Looks again, one interval from now at the latest. What has become due meanwhile is not done
    /// all at once: connections past their lifetime end at a twentieth of the pool each second, unless the
    /// pool is [resized](Pool::resize) to less, which ends them at once.
    pub fn resume(&self) {
        self.upkeep().paused.store(false, Ordering::SeqCst);
        self.upkeep().notify();
    }

    /// Whether it is paused.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.upkeep().is_paused()
    }

    /// How often the pool looks. At first, `maintenance_interval`.
    #[must_use]
    pub fn interval(&self) -> Duration {
        Duration::from_nanos(self.upkeep().interval.load(Ordering::Relaxed))
    }

    /// Changes that, from now on.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] if the interval is zero.
    pub fn set_interval(&self, interval: Duration) -> Result<(), ConfigError> {
        above_zero("maintenance_interval", interval)?;
        self.upkeep().interval.store(nanos(interval), Ordering::SeqCst);
        self.upkeep().notify();
        Ok(())
    }

    /// Looks once, paused or not, and completes when no keepalive check is under way: those that were
    /// due are done then, unless earlier ones were still under way at the look, and the next one has
    /// them done. Connections that have to go may still be closing.
    ///
    /// How long a connection has been idle, or held, is counted from the first look that sees it so, since
    /// acquire and release read no clock. So in a pool that is paused, the first of two looks begins to count,
    /// and it is the second that finds `idle_timeout`, `keepalive_interval` or `leak_after` over.
    ///
    /// The checks run on the pool's runtime. While nobody drives that, such as one of a single thread
    /// outside `block_on`, this waits for them without a limit.
    ///
    /// # Cancel safety
    ///
    /// The look is done at the first poll. Dropping the future only stops waiting for the checks.
    pub async fn run_once(&self) {
        self.pool.shared.tick();
        loop {
            listener!(self.upkeep().changed => changed);
            if !self.upkeep().pinging.load(Ordering::SeqCst) {
                return;
            }
            changed.await;
        }
    }
}
