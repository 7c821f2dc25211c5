//! `Pool` as the model's subject, on a runtime of one thread whose clock stands still.
//!
//! Not here: what is expected of it.

use super::book::{Calls, End, Totals};
use super::{
    Acquire, Ask, Connects, Drain, Operation, Refusal, Resource, Setting, Subject, Supply, Wear,
    drive,
};
use millpond::{
    AcquireError, CheckPolicy, Condition, ConfigError, Counts, Hooks, Manager, Pool, Pooled,
    PooledOwned, Priority, TryAcquireError,
};
use std::error::Error;
use std::fmt;
use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::runtime::{Builder, Runtime};
use tokio::time::sleep;

/// The pause after a failed connect is random, up to this: so long that it never passes by itself.
const PAUSE: Duration = Duration::from_secs(30 * 24 * 60 * 60);

pub(super) fn run(setting: Setting, script: impl Iterator<Item = Operation>) -> u64 {
    let runtime = Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        // What the driver has begun runs first, and then what follows from that.
        .global_queue_interval(1)
        .build();
    let runtime = runtime.expect("a runtime");
    let supply = Arc::<Supply>::default();
    let managed = {
        let context = runtime.enter();
        let manager = Scripted {
            supply: supply.clone(),
            connects: Mutex::new(Connects::Succeed),
            failures: AtomicU64::new(0),
            checks_fail: AtomicBool::new(false),
        };
        let calls = Arc::<Counters>::default();
        let hooks = if setting.options.hooks { count(&calls) } else { Hooks::new() };
        let pool = Pool::builder(manager)
            .max_size(setting.size())
            .capacity(setting.capacity())
            .reserved(Priority::High, setting.reserved())
            .max_waiters(setting.max_waiters())
            .check(if setting.checked() { CheckPolicy::Always } else { CheckPolicy::Never })
            .hooks(hooks)
            .max_connecting(if setting.in_turn() { 1 } else { 4 })
            .order(setting.order())
            .shards(1)
            .acquire_timeout(Duration::MAX)
            .backoff(PAUSE, PAUSE)
            .max_lifetime(None)
            .idle_timeout(None)
            .keepalive_interval(None)
            // Whenever one is found dead, those that are idle are doubted.
            .maintenance_interval(Duration::from_nanos(1))
            .leak_after(setting.in_turn().then_some(INSTANT))
            .build_lazy()
            .expect("the settings are in range");
        // It looks only when it is told to.
        pool.maintenance().pause();
        drop(context);
        Managed { pool, runtime, calls }
    };
    let operations = {
        let _context = managed.runtime.enter();
        drive(&managed, supply.clone(), setting, script)
    };
    let Managed { pool, runtime, .. } = managed;
    drop(pool);
    runtime.block_on(async { sleep(INSTANT).await });
    assert_eq!(supply.alive.load(Relaxed), 0, "resources that outlive the pool");
    operations
}

/// The clock moves on by itself only when every task waits; so after this sleep, all have run.
const INSTANT: Duration = Duration::from_millis(1);

struct Managed {
    pool: Pool<Scripted>,
    runtime: Runtime,
    calls: Arc<Counters>,
}

/// How often the hooks were called.
#[derive(Default)]
struct Counters {
    on_create: AtomicU64,
    on_checkout: AtomicU64,
    on_checkin: AtomicU64,
    after_release: AtomicU64,
    on_destroy: AtomicU64,
}

/// Hooks that count their calls.
fn count(calls: &Arc<Counters>) -> Hooks<Scripted> {
    let call = |counter: fn(&Counters) -> &AtomicU64| {
        let calls = calls.clone();
        move || {
            counter(&calls).fetch_add(1, Relaxed);
        }
    };
    let on_create = call(|calls| &calls.on_create);
    let on_checkout = call(|calls| &calls.on_checkout);
    let on_checkin = call(|calls| &calls.on_checkin);
    Hooks::new()
        .on_create(move |_| on_create())
        .on_checkout(move |_| on_checkout())
        .on_checkin(move |_| on_checkin())
        .after_release(call(|calls| &calls.after_release))
        .on_destroy(call(|calls| &calls.on_destroy))
}

/// Connects and checks, or fails to, as it is told.
pub(super) struct Scripted {
    supply: Arc<Supply>,
    connects: Mutex<Connects>,
    /// Connects that have failed and are to be tried again.
    failures: AtomicU64,
    checks_fail: AtomicBool,
}

/// The connect was told to end like this.
#[derive(Debug)]
pub(super) struct Told(Connects);

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "told to {:?}", self.0)
    }
}

impl Error for Told {}

impl Manager for Scripted {
    type Connection = Resource;
    type Error = Told;

    async fn connect(&self) -> Result<Resource, Told> {
        match *self.connects.lock().unwrap_or_else(PoisonError::into_inner) {
            Connects::Succeed => Ok(self.supply.make()),
            Connects::Refuse => Err(Told(Connects::Refuse)),
            Connects::Fail => {
                self.failures.fetch_add(1, Relaxed);
                Err(Told(Connects::Fail))
            }
        }
    }

    fn condition(&self, resource: &mut Resource) -> Condition {
        match resource.state {
            Wear::None => Condition::Clean,
            Wear::Soiled => Condition::Dirty,
            Wear::Broken => Condition::Broken,
        }
    }

    async fn reset(&self, resource: &mut Resource) -> Result<(), Told> {
        resource.state = Wear::None;
        Ok(())
    }

    async fn check(&self, _: &mut Resource) -> Result<(), Told> {
        if self.checks_fail.load(Relaxed) { Err(Told(Connects::Fail)) } else { Ok(()) }
    }

    fn is_permanent(&self, error: &Told) -> bool {
        error.0 == Connects::Refuse
    }
}

pub(super) enum Guard<'p> {
    Borrowed(Pooled<'p, Scripted>),
    Owned(PooledOwned<Scripted>),
}

fn refusal(error: AcquireError<Told>) -> Refusal {
    match error {
        AcquireError::Closed => Refusal::Closed,
        AcquireError::Draining => Refusal::Draining,
        AcquireError::Connect(_) => Refusal::Connect,
        AcquireError::QueueFull => Refusal::QueueFull,
        other => unreachable!("BUG: {other}"),
    }
}

impl Subject for Managed {
    type Guard<'p> = Guard<'p>;

    fn acquire(&self, ask: Ask) -> Acquire<'_, Guard<'_>> {
        Box::pin(async move {
            // What has just been refused for good is tried again at once: by hand, as the pause after that never
            // passes by itself either. Of a closed pool the acquire tells.
            drop(self.pool.warm_up(0).await);
            let got = match ask {
                Ask::Owned => {
                    return self.pool.acquire_owned().await.map(Guard::Owned).map_err(refusal);
                }
                Ask::Borrowed => self.pool.acquire().await,
                Ask::High => self.pool.acquire_with(Priority::High).await,
            };
            got.map(Guard::Borrowed).map_err(refusal)
        })
    }

    fn try_acquire(&self) -> Result<Guard<'_>, TryAcquireError> {
        self.pool.try_acquire().map(Guard::Borrowed)
    }

    fn resource<'g>(guard: &'g mut Guard<'_>) -> &'g mut Resource {
        match guard {
            Guard::Borrowed(connection) => connection,
            Guard::Owned(connection) => connection,
        }
    }

    fn detach(guard: Guard<'_>) -> Resource {
        match guard {
            Guard::Borrowed(connection) => connection.detach(),
            Guard::Owned(connection) => connection.detach(),
        }
    }

    fn discard(guard: Guard<'_>) {
        match guard {
            Guard::Borrowed(connection) => connection.discard(),
            Guard::Owned(connection) => connection.discard(),
        }
    }

    fn close(&self) {
        self.runtime.block_on(self.pool.close());
    }

    fn is_closed(&self) -> bool {
        self.pool.is_closed()
    }

    fn counts(&self) -> Counts {
        self.pool.metrics().counts
    }

    fn settle(&self) {
        self.runtime.block_on(async { sleep(INSTANT).await });
    }

    fn pause(&self) -> u64 {
        let failures = &self.pool.manager().failures;
        let before = failures.load(Relaxed);
        self.runtime.block_on(async { sleep(PAUSE + INSTANT).await });
        failures.load(Relaxed) - before
    }

    fn release(guard: Guard<'_>) -> bool {
        let released = match guard {
            Guard::Borrowed(connection) => at_once(connection.release()),
            Guard::Owned(connection) => at_once(connection.release()),
        };
        released.is_ok()
    }

    fn connects(&self, connects: Connects) {
        *self.pool.manager().connects.lock().unwrap_or_else(PoisonError::into_inner) = connects;
    }

    fn checks(&self, succeed: bool) {
        self.pool.manager().checks_fail.store(!succeed, Relaxed);
    }

    fn resize(&self, size: usize) -> Result<(), ConfigError> {
        self.pool.resize(size)
    }

    fn invalidate(&self) {
        self.pool.invalidate();
    }

    fn retain(&self, keep: &mut dyn FnMut(u64) -> bool) -> usize {
        self.pool.retain(|resource, _| keep(resource.number))
    }

    fn maintain(&self) {
        self.runtime.block_on(self.pool.maintenance().run_once());
    }

    fn drain(&self) -> Drain<'_> {
        Box::pin(async {
            let report = self.pool.drain(Duration::MAX).await;
            assert_eq!(report.still_out, [], "it had all the time there is");
            report.closed
        })
    }

    fn totals(&self) -> Option<(Totals, usize)> {
        let metrics = self.pool.metrics();
        let closed = metrics.closed;
        let mut ends = [0; 9];
        let mut sum = 0;
        for (why, count) in [
            (End::Broken, closed.broken),
            (End::FailedCheck, closed.failed_check),
            (End::Discarded, closed.discarded),
            (End::Detached, closed.detached),
            (End::PoolClosed, closed.pool_closed),
            (End::Drained, closed.drained),
            (End::Invalidated, closed.invalidated),
            (End::Surplus, closed.surplus),
            (End::Removed, closed.removed),
        ] {
            ends[why as usize] = count;
            sum += count;
        }
        assert_eq!(sum, closed.total(), "closed for another reason");
        let Counters { on_create, on_checkout, on_checkin, after_release, on_destroy } =
            &*self.calls;
        let calls = Calls {
            on_create: on_create.load(Relaxed),
            on_checkout: on_checkout.load(Relaxed),
            on_checkin: on_checkin.load(Relaxed),
            after_release: after_release.load(Relaxed),
            on_destroy: on_destroy.load(Relaxed),
        };
        let totals = Totals {
            created: metrics.created,
            acquires: metrics.acquires,
            resets: metrics.resets,
            checks: metrics.checks,
            queue_full: metrics.waits.queue_full,
            leaks: metrics.leaks,
            late_returns: metrics.late_returns,
            ends,
            calls,
        };
        Some((totals, self.pool.max_size()))
    }
}

/// The outcome of a future that need not wait.
fn at_once<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(outcome) => outcome,
        Poll::Pending => panic!("nothing to wait for"),
    }
}
