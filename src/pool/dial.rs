//! A dial: a task of the pool that opens a connection for whoever waits, and tries again if that fails.
//!
//! Not here: when one begins (`connector.rs`), and what is known of failures (`trouble.rs`).

use super::connector::GivenUp;
use super::life::nanos;
use super::operation::{bounded, unless};
use super::trace::no_span;
use super::trouble::Unopened;
use super::{Shared, Tenant, lock};
use crate::core::{Line, Reservation, reserve};
use crate::error::OperationError;
use crate::hooks::Hooks;
use crate::manager::Manager;
use crate::metrics::Connecting;
use crate::panics::caught;
use event_listener::listener;
use std::future::Future;
use std::pin::pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

/// A dial under way. Dropping it takes it off the count.
pub(super) struct Dial<M: Manager> {
    shared: Arc<Shared<M>>,
    generation: u64,
    state: DialState,
    /// It is the prober.
    probes: bool,
}

/// What a connect ends with.
type Opened<M> = Result<Tenant<<M as Manager>::Connection>, Unopened<<M as Manager>::Error>>;

#[derive(PartialEq)]
enum DialState {
    /// Dropped like this, its runtime has ended.
    NotBegun,
    /// The same, unless it panics.
    Unfinished,
    Finished,
    /// A verdict: others must not try the same again on behalf of those who wait now.
    Refused,
    /// It has been taken off the count already.
    Gone,
}

impl<M: Manager> Dial<M> {
    /// One that has been admitted, and runs in this runtime.
    pub(super) fn new(shared: Arc<Shared<M>>, generation: u64) -> Self {
        Self { shared, generation, state: DialState::NotBegun, probes: false }
    }

    pub(super) fn finish(mut self) {
        self.state = DialState::Finished;
    }

    pub(super) async fn run(mut self, first: Reservation<Arc<Shared<M>>>) {
        self.state = DialState::Unfinished;
        let shared = self.shared.clone();
        let mut reservation = Some(first);
        // Whoever it was begun for got in line just before a failure for good was known, or while somebody else
        // connected.
        if !shared.has_alive_for(Line::High) && shared.connector.repeats_refusal() {
            self.state = DialState::Refused;
            return;
        }
        let (useless, ago) = shared.connector.useless();
        if useless > 1 {
            // If none is fit for use, as many would be opened and closed as the server can bear. One may be
            // an accident.
            let pause = shared.pause(useless - 1).saturating_sub(ago);
            if !pause.is_zero() {
                drop(reservation.take());
                self.probes = shared.connector.probe();
                if !self.pauses(shared.connector.unless_recovered(sleep(pause))).await {
                    return self.finish();
                }
            }
        }
        // In which line those wait who have not been told of a failure yet, and are to be when nothing is left for
        // them.
        let mut line = Line::General;
        loop {
            // Accounts get locked, and a rotation may have been refused while this one paused.
            while let Some(pause) = shared.rest_of_the_longest_pause() {
                if !shared.has_alive_for(line) {
                    break;
                }
                drop(reservation.take());
                self.probes |= shared.connector.probe();
                if !self.pauses(shared.unless_lost(sleep(pause), line)).await {
                    return self.finish();
                }
            }
            let Some(vacant) = reservation.take().or_else(|| reserve(shared.clone())) else {
                break;
            };
            let began = Instant::now();
            // Cancel: `vacant` makes the slot vacant again, and `self` says why.
            let failure = match self.connects(vacant.slot(), vacant.uses()).await {
                Err(why) => {
                    drop(shared.given_up(why));
                    break;
                }
                Ok(Ok(tenant)) => {
                    shared.connector.has_opened_since(began);
                    shared.connect_succeeded(&tenant);
                    drop(shared.move_in(vacant, tenant));
                    shared.changed();
                    break;
                }
                Ok(Err(unopened)) => {
                    let Some(unopened) = shared.unless_outdone(unopened, began) else { break };
                    let failure = shared.connect_failed(unopened, Some(&mut self.probes));
                    if failure.permanent && !shared.has_alive_for(Line::High) {
                        self.state = DialState::Refused;
                        return;
                    }
                    failure
                }
            };
            drop(vacant);
            if !self.probes {
                self.probes = shared.connector.probe_or_leave();
            }
            if !self.probes {
                // At once: a waker that panics below ends this one, which is off the count already.
                self.state = DialState::Gone;
            }
            // Not before it is known that there is a prober: whoever has got in line since the verdict, because
            // there was none, is told too.
            if failure.tell {
                shared.core.nudge_all();
            }
            if !self.probes {
                return;
            }
            line = if failure.tell { Line::High } else { Line::General };
            let goes_on = if failure.permanent {
                let pause = sleep(shared.config.backoff_max);
                self.pauses(shared.unless_lost(pause, line)).await
            } else {
                let pause = sleep(shared.pause(failure.in_a_row));
                self.pauses(shared.connector.unless_recovered(pause)).await
            };
            if !goes_on {
                break;
            }
        }
        self.finish();
    }

    /// Connects, unless that is given up. Once it is late, whoever waits has another dial begun beside this one:
    /// a server behind a balancer may hang alone, and whoever this dial was begun for may have gone.
    async fn connects(&self, slot: usize, uses_before: u64) -> Result<Opened<M>, GivenUp> {
        let Self { shared, .. } = self;
        let mut connect = pin!(shared.unless_given_up(shared.connect(uses_before)));
        if let Ok(answer) = timeout(shared.connector.patience, connect.as_mut()).await {
            return answer;
        }
        // Cancel: this is off both counts, and what was opened is dropped.
        let _late = shared.connector.is_late(shared.is_reserved(slot));
        shared.demand_of_somebody();
        connect.await
    }

    /// Pauses; answers whether to go on then.
    async fn pauses(&self, pause: impl Future<Output = ()>) -> bool {
        let shared = &self.shared;
        // Cancel: nothing is held but the place among the dials.
        if shared.unless_closed(pause).await.is_none() {
            return false;
        }
        // With `fail_fast` nobody waits, and it is the prober who finds out that the server is back.
        shared.wanted_or_sought() > 0
            || shared.config.fail_fast && shared.connector.connecting() == Connecting::Fails
    }
}

impl<M: Manager> Drop for Dial<M> {
    fn drop(&mut self) {
        let Self { shared, generation, state, probes } = self;
        if *state == DialState::Gone {
            return;
        }
        if *state == DialState::Refused {
            // While this one is on the count, so that those who hear of it first start no other one for
            // those who have still to hear. It goes off the count though one of their wakers panics.
            drop(caught(|| shared.core.nudge_all()));
        }
        if *probes {
            shared.connector.ends_probing();
        }
        // Ordering: SeqCst, partner: `admit`; whoever has found it admitted no further is found by `nudge`,
        // or by the demand, after it (I4).
        shared.connector.dials.fetch_sub(1, Ordering::SeqCst);
        match state {
            // Refused: whoever has come since then has asked in vain so far.
            DialState::Finished | DialState::Refused => shared.demand_of_somebody(),
            DialState::NotBegun | DialState::Unfinished => {
                // A panic, such as one of a tracing subscriber, says nothing of the runtime. But one of
                // whoever drops a runtime does not get into a dial that has not begun, and the next one
                // that is begun there would be dropped at once as well, without end.
                if *state == DialState::NotBegun || !thread::panicking() {
                    shared.connector.forget(*generation);
                }
                shared.core.nudge();
            }
            DialState::Gone => {}
        }
    }
}

impl<M: Manager> Shared<M> {
    /// Opens one connection for a slot that has been acquired `uses_before` times.
    pub(super) async fn connect(&self, uses_before: u64) -> Opened<M> {
        let (generation, round) = (self.generation(), self.connector.round());
        // Cancel: it is taken off the list.
        let under_way = Begun::now(&self.connector.begun);
        let began = under_way.at;
        let limit = self.config.connect_timeout;
        // Declared before the connection, so dropped after it.
        let mut unborn = Unborn::<M>(None);
        // The block makes sure that a panic outside the future is caught as well.
        let connect = async { self.manager.connect().await };
        let mut connection = bounded("connect_timeout", limit, connect).await?;
        // Cancel: the connection is dropped, and the hook hears of it.
        unborn.0 = Some(&self.hooks);
        let set_up = match &self.hooks.after_connect {
            None => Ok(()),
            Some(hook) => {
                let left = limit.saturating_sub(began.elapsed());
                bounded("connect_timeout", left, async { hook(&mut connection).await }).await
            }
        };
        let set_up = set_up.map_err(|error| Unopened::by("after_connect", error));
        let ready = set_up.and_then(|()| {
            let panicked =
                |message| Unopened::by("on_create", OperationError::Panicked { message });
            self.hooks.create(&connection).map_err(panicked)
        });
        if let Err(error) = ready {
            // It has been opened, so the manager closes it.
            self.say_goodbye(connection).await;
            return Err(error);
        }
        unborn.0 = None;
        let (id, created) = (self.totals.created(), Instant::now());
        let term = self.term(id);
        self.totals.connected(nanos(created - began));
        self.tell_connected(id, created - began);
        let span = no_span();
        let (lent_at, loss) = (0, None);
        Ok(Tenant {
            connection,
            id,
            created,
            generation,
            round,
            term,
            uses_before,
            lent_at,
            span,
            loss,
        })
    }

    /// The pause after `failures` in a row: random, up to a limit that doubles with each.
    fn pause(&self, failures: u32) -> Duration {
        Duration::from_nanos(fastrand::u64(0..=nanos(self.longest_pause(failures))))
    }

    pub(super) fn longest_pause(&self, failures: u32) -> Duration {
        let doublings = failures.saturating_sub(1).min(31);
        self.config.backoff.saturating_mul(1 << doublings).min(self.config.backoff_max)
    }

    /// For how long it is not tried again after a failure for good, while any connection is alive.
    fn rest_of_the_longest_pause(&self) -> Option<Duration> {
        let ago = self.connector.failed_for_good()?;
        self.config.backoff_max.checked_sub(ago).filter(|rest| !rest.is_zero())
    }

    /// Awaits a pause after a failure for good, unless connecting works again before it is over, or the last
    /// connection goes that might have come back to those who wait in this line: then they are to hear of it.
    async fn unless_lost(&self, pause: impl Future<Output = ()>, line: Line) {
        let mut pause = pin!(self.connector.unless_recovered(pause));
        loop {
            listener!(self.changed => changed);
            // After listening: that it has gone either shows here or is heard of.
            if !self.has_alive_for(line) {
                return;
            }
            if unless(pause.as_mut(), changed).await.is_ok() {
                return;
            }
        }
    }
}

/// A connect under way, which has begun then.
struct Begun<'c> {
    all: &'c Mutex<Vec<Instant>>,
    at: Instant,
}

impl<'c> Begun<'c> {
    fn now(all: &'c Mutex<Vec<Instant>>) -> Self {
        let at = Instant::now();
        lock(all).push(at);
        Self { all, at }
    }
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        let mut all = lock(self.all);
        // Of several that began at the same time one is as good as another.
        if let Some(place) = all.iter().position(|at| *at == self.at) {
            all.swap_remove(place);
        }
    }
}

/// Tells the hook of the end of a connection that has been opened and is not yet the pool's.
struct Unborn<'h, M: Manager>(Option<&'h Hooks<M>>);

impl<M: Manager> Drop for Unborn<'_, M> {
    fn drop(&mut self) {
        if let Some(hooks) = self.0 {
            hooks.destroyed();
        }
    }
}
