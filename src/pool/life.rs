//! How long a connection stays: its term, its generation, and who looks whether they are over.
//!
//! Whoever decides that connections have to go (the reaper, `invalidate`, `resize`) raises the flag
//! [`LOOK`](Flags::LOOK) of their slots. Whoever owns such a slot next looks it over: the reason is
//! read from the pool and the connection, never from the flag, so a flag that comes too late hurts
//! nobody.
//!
//! Not here: when the reaper decides so (`reaper.rs`).

use super::guard::end;
use super::{Shared, Tenant};
use crate::core::{Flags, Lease, Reservation, Search};
use crate::manager::{Heed, LossSignal, Manager};
use crate::metrics::CloseReason;
use crate::panics::caught;
use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// When a connection's time is up, in nanoseconds of the pool's clock.
#[derive(Clone, Copy)]
pub(super) struct Term {
    /// From here on it goes as soon as it can be spared. `max_lifetime` less a jitter of its own.
    pub(super) soft: u64,
    /// From here on it goes.
    pub(super) hard: u64,
}

/// What the reaper can read of the connection in a slot, whoever owns the slot.
pub(super) struct Record {
    connection: AtomicU64,
    soft: AtomicU64,
    hard: AtomicU64,
}

impl Record {
    pub(super) fn new() -> Self {
        let never = || AtomicU64::new(u64::MAX);
        Self { connection: AtomicU64::new(0), soft: never(), hard: never() }
    }

    /// The number of the connection, 0 before the first, and its term. A reader beside a change may
    /// get some of the one and some of the other; whatever it decides is looked at again by the
    /// slot's owner.
    pub(super) fn read(&self) -> (u64, Term) {
        let term = Term {
            soft: self.soft.load(Ordering::Relaxed),
            hard: self.hard.load(Ordering::Relaxed),
        };
        (self.connection.load(Ordering::Relaxed), term)
    }
}

/// How soon after all connections have gone because one was out of date that may happen again. The server may be as
/// it was, and what is opened meanwhile no better.
const OUTDATES_AGAIN: Duration = Duration::from_secs(1);

impl<M: Manager> Shared<M> {
    /// The pool's clock: nanoseconds since it was built.
    pub(super) fn now(&self) -> u64 {
        nanos(self.began.elapsed())
    }

    /// A moment by the pool's clock.
    pub(super) fn moment(&self, then: tokio::time::Instant) -> u64 {
        nanos(then.saturating_duration_since(self.began))
    }

    /// How long ago a moment of the pool's clock is.
    pub(super) fn since(&self, moment: u64) -> Duration {
        Duration::from_nanos(self.now().saturating_sub(moment))
    }

    /// The generation of a connection that is opened now.
    pub(super) fn generation(&self) -> u64 {
        // Ordering: SeqCst, partner: the increment in `next_generation`.
        self.generation.load(Ordering::SeqCst)
    }

    /// The term of the connection with this number, from now on.
    ///
    /// The fractional parts of the multiples of the golden ratio lie evenly on the whole interval,
    /// those of any consecutive multiples too (Weyl; Knuth, The Art of Computer Programming, vol. 3,
    /// 6.4). So connections that were opened together end evenly spread, which random numbers would
    /// only do on average; the random offset keeps pools apart that were built together.
    pub(super) fn term(&self, connection: u64) -> Term {
        const GOLDEN: f64 = 0.618_033_988_749_894_9;
        let Some(lifetime) = self.config.max_lifetime else {
            return Term { soft: u64::MAX, hard: u64::MAX };
        };
        let part = (connection as f64 * GOLDEN + self.spread).fract() * self.config.lifetime_jitter;
        let lifetime = nanos(lifetime);
        let hard = self.now().saturating_add(lifetime);
        // At least a nanosecond is left of it, however large the jitter.
        let early = ((lifetime as f64 * part) as u64).min(lifetime.saturating_sub(1));
        Term { soft: hard.saturating_sub(early), hard }
    }

    /// Puts a new connection into its slot.
    pub(super) fn move_in<R>(
        &self,
        reservation: Reservation<R>,
        mut tenant: Tenant<M::Connection>,
    ) -> Lease<R>
    where
        R: Deref<Target = Self> + Clone,
    {
        // A loss that is told of before the connection is in its slot leaves that flagged.
        let signal = LossSignal::new(self.me.clone(), reservation.slot());
        drop(caught(|| self.manager.watch(&mut tenant.connection, signal.clone())));
        tenant.loss = signal.loss();
        let record = &self.records[reservation.slot()];
        record.connection.store(tenant.id, Ordering::Relaxed);
        record.soft.store(tenant.term.soft, Ordering::Relaxed);
        record.hard.store(tenant.term.hard, Ordering::Relaxed);
        let lease = reservation.fill(tenant);
        if self.greeting != Flags::NONE {
            lease.raise(self.greeting);
        }
        lease
    }

    /// Why a connection must not be used again, if it must not.
    fn over(&self, tenant: &Tenant<M::Connection>) -> Option<CloseReason> {
        if tenant.generation < self.generation() {
            return Some(CloseReason::Invalidated);
        }
        if tenant.is_lost() {
            return Some(CloseReason::Broken);
        }
        (tenant.term.soft <= self.now()).then_some(CloseReason::Lifetime)
    }

    /// Begins a generation, and answers with it: all connections there are, and those under way,
    /// are of older ones. The caller has them [looked at](Self::look_at_all).
    pub(super) fn next_generation(&self) -> u64 {
        // Ordering: SeqCst, partner: `generation`. A connect that began before this shows its age
        // when it arrives, since its slot is flagged.
        self.generation.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// All connections of this generation, that with this number being one, and older ones, are out of date. Of
    /// several that find out at once, the first begins the next generation; soon after the last that began like that
    /// none does.
    pub(super) fn outdate(&self, connection: u64, generation: u64) {
        if generation < self.generation() {
            return;
        }
        // Ordering: Relaxed. What others have seen or written does not hang on it.
        let now = self.now();
        let claim = |next| (now >= next).then(|| now.saturating_add(nanos(OUTDATES_AGAIN)));
        if self.outdates_next.fetch_update(Ordering::Relaxed, Ordering::Relaxed, claim).is_err() {
            return;
        }
        let next = generation + 1;
        // Ordering: SeqCst, as in `next_generation`.
        let first =
            self.generation.compare_exchange(generation, next, Ordering::SeqCst, Ordering::SeqCst);
        if first.is_ok() {
            self.tell_outdated(connection);
            self.look_at_all();
        }
    }

    /// Has every connection looked over: idle ones now, the others when they come back.
    pub(super) fn look_at_all(&self) {
        self.core.raise_all(Flags::LOOK);
        self.look_now();
    }

    /// Has those looked over that have just been flagged.
    fn look_now(&self) {
        self.core.alert();
        self.look_at_flagged();
    }

    /// Looks over the idle connections that are flagged.
    pub(super) fn look_at_flagged(&self) {
        let mut search = Search::new(self);
        while let Some(lease) = search.next(|_| false) {
            if let Some(lease) = look_over(lease) {
                search.restore(lease);
            }
        }
    }
}

impl<M: Manager> Heed for Shared<M> {
    fn heed(&self, slot: usize) {
        self.core.raise(slot, Flags::LOOK);
        self.look_now();
    }
}

/// Looks at a connection if it is flagged for that; ends it if it has to go.
pub(super) fn look_over<M, R>(mut lease: Lease<R>) -> Option<Lease<R>>
where
    M: Manager,
    R: Deref<Target = Shared<M>> + Clone,
{
    if !lease.flags().has(Flags::LOOK) {
        return Some(lease);
    }
    // Before the look: a flag that is raised from here on is for the next one.
    lease.lower(Flags::LOOK);
    let shared = lease.keeper().clone();
    if let Some(trial) = lease.begin_leaving() {
        shared.close_connection(trial, CloseReason::Surplus);
        return None;
    }
    let uses = lease.uses();
    let tenant = lease.resource_mut();
    let Some(reason) = shared.over(tenant) else { return Some(lease) };
    if reason == CloseReason::Broken {
        // Before its end, after which the next one may be opened.
        shared.lost(tenant, tenant.is_new(uses), tenant.created.elapsed());
        // The others may be too.
        shared.doubt_idle();
    }
    end(lease, reason);
    None
}

/// In nanoseconds; a time too long for that is the longest that there is.
pub(crate) fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
