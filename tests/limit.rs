//! The limit holds: never more connections than `max_size`, counted by the connections themselves.

#![cfg(feature = "tokio")]
#![allow(clippy::unwrap_used, reason = "these are tests, though clippy only sees their helpers")]

mod support;

use millpond::{CheckPolicy, IdleOrder, Manager, Pool, PoolBuilder, WeakPool};
use std::pin::pin;
use std::sync::{Arc, Barrier, Mutex, OnceLock};
use std::time::Duration;
use support::{
    Act, Random, Sampler, TestError, TestManager, eventually, eventually_blocking, join, joined,
    poll_once,
};
use tokio::task::yield_now;

const MILLI: Duration = Duration::from_millis(1);

/// With more slots than any of these pools is to use, so that one too many is there to be taken.
fn builder(manager: &TestManager) -> PoolBuilder<TestManager> {
    Pool::builder(manager.clone()).capacity(16).backoff(MILLI, 2 * MILLI)
}

/// Checks over and over that no slot comes into service and none leaves it, and that no figure passes
/// the limit.
fn sample(pool: &Pool<TestManager>, manager: &TestManager) -> Sampler {
    let (pool, manager) = (pool.clone(), manager.clone());
    let max_size = pool.config().max_size;
    Sampler::start(move || {
        let metrics = pool.metrics();
        assert_eq!(metrics.counts.in_service(), max_size, "{metrics:?}");
        assert!(manager.ledger.live() <= max_size, "{} are live", manager.ledger.live());
        assert!(metrics.created as usize <= manager.connect.calls(), "{metrics:?}");
    })
}

/// What must hold when everybody has gone: nobody waits, nothing is lost, exactly `max_size`
/// acquires succeed, and every connection is accounted for.
async fn assert_conserved(pool: &Pool<TestManager>, manager: &TestManager) {
    let max_size = pool.config().max_size;
    eventually("the pool is at rest", || {
        let counts = pool.metrics().counts;
        counts.vacant + counts.idle == max_size && counts.waiters == 0
    })
    .await;
    assert!(manager.ledger.most_live() <= max_size, "{}", manager.ledger.most_live());
    let mut held = Vec::new();
    for _ in 0..max_size {
        held.push(pool.acquire().await.expect("as many as there is room for"));
    }
    let mut next = Box::pin(pool.acquire());
    assert!(poll_once(next.as_mut()).is_pending());
    drop(next);
    let mut ids: Vec<_> = held.iter().map(|conn| conn.id).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), max_size, "no connection is in two hands");
    drop(held);
    let metrics = pool.metrics();
    assert_eq!((metrics.counts.idle, metrics.counts.waiters), (max_size, 0));
    assert_eq!(metrics.created, metrics.closed.total() + metrics.counts.alive() as u64);
    assert_eq!(metrics.created as usize, manager.ledger.opened());
    assert_eq!(manager.ledger.live(), max_size);
    assert_eq!(manager.ledger.opened() - manager.ledger.dropped(), max_size);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_threads_on_four_create_exactly_four() {
    for shards in [1, 2, 4] {
        let manager = TestManager::new();
        let pool = builder(&manager).max_size(4).shards(shards).build().await.unwrap();
        let start = Arc::new(Barrier::new(20));
        let sampler = sample(&pool, &manager);
        let threads: Vec<_> = (0..20)
            .map(|_| {
                let (pool, manager, start) = (pool.clone(), manager.clone(), start.clone());
                std::thread::spawn(move || {
                    start.wait();
                    let first = pool.acquire_blocking_timeout(support::PATIENCE).unwrap();
                    // The first four hold on until there are four.
                    eventually_blocking("all are open", || manager.ledger.opened() == 4);
                    drop(first);
                    for _ in 0..200 {
                        drop(pool.acquire_blocking_timeout(support::PATIENCE).unwrap());
                    }
                })
            })
            .collect();
        for thread in threads {
            eventually("the thread has ended", || thread.is_finished()).await;
            join(thread);
        }
        assert!(sampler.stop() > 0);
        assert_eq!((manager.connect.calls(), pool.metrics().created), (4, 4));
        assert_eq!(pool.metrics().acquires, 20 * 201);
        assert_conserved(&pool, &manager).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn twenty_tasks_on_four_create_exactly_four() {
    let manager = TestManager::new();
    let pool = builder(&manager).max_size(4).build().await.unwrap();
    let sampler = sample(&pool, &manager);
    let tasks: Vec<_> = (0..20)
        .map(|_| {
            let (pool, manager) = (pool.clone(), manager.clone());
            tokio::spawn(async move {
                let first = pool.acquire_timeout(support::PATIENCE).await.unwrap();
                eventually("all are open", || manager.ledger.opened() == 4).await;
                drop(first);
                for turn in 0..200 {
                    let conn = pool.acquire_timeout(support::PATIENCE).await.unwrap();
                    if turn % 3 == 0 {
                        yield_now().await;
                    }
                    drop(conn);
                }
            })
        })
        .collect();
    for task in tasks {
        joined(task).await;
    }
    sampler.stop();
    assert_eq!((manager.connect.calls(), pool.metrics().created), (4, 4));
    assert_eq!(pool.metrics().acquires, 20 * 201);
    assert_conserved(&pool, &manager).await;
}

/// One task that does everything that one can do with a pool, in random order.
async fn do_random_things(pool: Pool<TestManager>, manager: TestManager, seed: u64, turns: usize) {
    let mut random = Random::new(seed);
    for _ in 0..turns {
        match random.below(16) {
            0 => manager.connect.once(Act::Error),
            1 => manager.connect.once(Act::Panic),
            2 => manager.connect.once(Act::Slow(MILLI)),
            3 => manager.check.once(Act::Error),
            4 => manager.condition.once(Act::Error), // broken
            5 => manager.condition.once(Act::Slow(MILLI)), // dirty
            6 => manager.reset.once(Act::Error),
            7 => manager.close.once(Act::Panic),
            _ => {}
        }
        let guard = match random.below(6) {
            0 => {
                let mut acquire = pin!(pool.acquire_owned());
                let mut polls = random.below(4);
                // Cancelled if it takes too many polls.
                std::future::poll_fn(|cx| match acquire.as_mut().poll(cx) {
                    std::task::Poll::Pending if polls == 0 => std::task::Poll::Ready(None),
                    std::task::Poll::Pending => {
                        polls -= 1;
                        cx.waker().wake_by_ref();
                        std::task::Poll::Pending
                    }
                    std::task::Poll::Ready(acquired) => std::task::Poll::Ready(acquired.ok()),
                })
                .await
            }
            1 => {
                if let Ok(guard) = pool.try_acquire() {
                    if random.below(4) == 0 {
                        drop(guard.release().await);
                    } else {
                        yield_now().await;
                    }
                }
                continue;
            }
            2 => {
                drop(pool.acquire_timeout(Duration::from_micros(200)).await);
                continue;
            }
            _ => Some(pool.acquire_owned().await.expect("an acquire with patience")),
        };
        let Some(mut guard) = guard else { continue };
        assert_eq!(std::mem::replace(&mut guard.note, 1), 0, "somebody else has it too");
        for _ in 0..random.below(3) {
            yield_now().await;
        }
        guard.note = 0;
        match random.below(10) {
            0 => guard.discard(),
            1 => {
                guard.uncount();
                drop(guard.detach());
            }
            2 => drop(guard.release().await),
            3 => drop(std::thread::spawn(move || drop(guard)).join()),
            _ => drop(guard),
        }
    }
}

async fn random_things(pool: PoolBuilder<TestManager>, manager: &TestManager, seed: u64) {
    let pool = pool.acquire_timeout(support::PATIENCE).build().await.unwrap();
    let sampler = sample(&pool, manager);
    let tasks: Vec<_> = (0..16)
        .map(|task| {
            tokio::spawn(do_random_things(pool.clone(), manager.clone(), seed * 100 + task, 150))
        })
        .collect();
    for task in tasks {
        joined(task).await;
    }
    sampler.stop();
    manager.clear();
    assert_conserved(&pool, manager).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn tasks_that_do_random_things_never_pass_max_size_and_lose_nothing() {
    for (seed, order) in (0..).zip([IdleOrder::Recent, IdleOrder::Fifo, IdleOrder::Lifo]) {
        let manager = TestManager::new();
        let pool = builder(&manager).max_size(4).shards(2).order(order);
        random_things(pool, &manager, seed).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn random_things_with_checks_never_pass_max_size_and_lose_nothing() {
    let manager = TestManager::new();
    let pool = builder(&manager).max_size(3).check(CheckPolicy::Always).order(IdleOrder::Fifo);
    random_things(pool, &manager, 7).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn random_things_on_a_single_slot_never_pass_it_and_lose_nothing() {
    let manager = TestManager::new();
    random_things(builder(&manager).max_size(1), &manager, 8).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn topping_up_to_min_idle_beside_acquires_never_passes_max_size_and_loses_nothing() {
    let manager = TestManager::new();
    let pool = builder(&manager).max_size(6).min_idle(4).acquire_timeout(support::PATIENCE);
    random_things(pool, &manager, 9).await;
}

#[tokio::test]
async fn topping_up_stops_at_min_idle() {
    let manager = TestManager::new();
    let pool = builder(&manager).max_size(8).min_idle(2).build().await.unwrap();
    let held = [
        pool.acquire().await.unwrap(),
        pool.acquire().await.unwrap(),
        pool.acquire().await.unwrap(),
    ];
    eventually("two are idle beside those in use", || pool.metrics().counts.idle == 2).await;
    drop(held);
    assert_eq!(pool.metrics().counts.idle, 5);
    assert_eq!(manager.connect.calls(), 5);
}

// ---- connects under way ----

#[tokio::test]
async fn no_more_than_max_connecting_dial_at_the_same_time_and_the_first_goes_alone() {
    let manager = TestManager::new();
    manager.connect.always(Act::Gated);
    let pool = builder(&manager).max_size(10).max_connecting(3).build().await.unwrap();
    let mut waiters: Vec<_> = (0..10).map(|_| Box::pin(pool.acquire())).collect();
    for waiter in &mut waiters {
        assert!(poll_once(waiter.as_mut()).is_pending());
    }
    for (opened, running) in [(0, 1), (1, 2), (3, 3), (8, 2), (10, 0)] {
        manager.connect.open(opened - manager.ledger.opened());
        eventually("those that may dial do", || {
            manager.ledger.opened() == opened && manager.connect.running() == running
        })
        .await;
    }
    assert_eq!((manager.connect.calls(), manager.connect.most_running()), (10, 3));
    for waiter in waiters {
        std::mem::drop(waiter.await.unwrap().detach());
    }
}

#[tokio::test]
async fn a_connect_whose_caller_has_gone_is_counted_once_and_serves_the_next() {
    let manager = TestManager::new();
    manager.connect.always(Act::Gated);
    let pool = builder(&manager).max_size(2).build().await.unwrap();
    {
        let mut acquire = pin!(pool.acquire());
        assert!(poll_once(acquire.as_mut()).is_pending());
        eventually("it dials", || manager.connect.running() == 1).await;
    }
    let counts = pool.metrics().counts;
    assert_eq!((counts.connecting, counts.waiters), (1, 0));
    let mut next = pin!(pool.acquire());
    assert!(poll_once(next.as_mut()).is_pending());
    assert_eq!(pool.metrics().counts.connecting, 1);
    manager.connect.open(1);
    assert_eq!(next.await.unwrap().id, 1);
    let counts = pool.metrics().counts;
    assert_eq!((counts.idle, counts.vacant, counts.connecting), (1, 1, 0));
    assert_eq!((manager.connect.calls(), manager.ledger.live()), (1, 1));
}

#[tokio::test]
async fn a_connect_that_completes_after_close_is_closed_and_not_pooled() {
    let manager = TestManager::new();
    manager.connect.always(Act::Gated);
    let pool = builder(&manager).max_size(2).build().await.unwrap();
    let mut acquire = pin!(pool.acquire());
    assert!(poll_once(acquire.as_mut()).is_pending());
    eventually("it dials", || manager.connect.running() == 1).await;
    // The dial is woken, and before it runs the pool is closed.
    manager.connect.open(1);
    let mut close = pin!(pool.close());
    let closed = poll_once(close.as_mut()).is_ready();
    assert!(pool.is_closed());
    assert_eq!(manager.ledger.opened(), 0);
    if !closed {
        close.await;
    }
    assert!(acquire.await.is_err());
    eventually("it is closed", || manager.ledger.live() == 0).await;
    assert_eq!((manager.ledger.opened(), manager.close.calls()), (1, 1));
    let metrics = pool.metrics();
    assert_eq!((metrics.counts.vacant, metrics.created, metrics.closed.pool_closed), (2, 1, 1));
}

#[tokio::test]
async fn close_ends_a_connect_that_hangs() {
    let manager = TestManager::new();
    manager.connect.always(Act::Never);
    let pool = builder(&manager).max_size(2).build().await.unwrap();
    let mut acquire = pin!(pool.acquire());
    assert!(poll_once(acquire.as_mut()).is_pending());
    eventually("it dials", || manager.connect.running() == 1).await;
    pool.close().await;
    assert!(acquire.await.is_err());
    eventually("nothing is left", || manager.ledger.live() == 0).await;
    assert_eq!(pool.metrics().counts.vacant, 2);
}

/// A connection that looks at its pool while it is dropped.
struct Witness {
    pool: Arc<OnceLock<WeakPool<WitnessManager>>>,
    /// How many connections there still were, by the pool's count.
    seen: Arc<Mutex<Vec<usize>>>,
}

impl Drop for Witness {
    fn drop(&mut self) {
        let pool = self.pool.get().and_then(WeakPool::upgrade).expect("the pool is there");
        self.seen.lock().unwrap().push(pool.metrics().counts.alive());
    }
}

#[derive(Clone, Default)]
struct WitnessManager {
    pool: Arc<OnceLock<WeakPool<Self>>>,
    seen: Arc<Mutex<Vec<usize>>>,
}

impl Manager for WitnessManager {
    type Connection = Witness;
    type Error = TestError;

    async fn connect(&self) -> Result<Witness, TestError> {
        Ok(Witness { pool: self.pool.clone(), seen: self.seen.clone() })
    }
}

#[test]
fn a_connection_is_gone_before_its_place_is_vacant_with_a_runtime_or_without() {
    let manager = WitnessManager::default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let pool = Pool::builder(manager.clone()).max_size(3).check(CheckPolicy::Never);
    let pool = runtime.block_on(pool.build()).unwrap();
    assert!(manager.pool.set(pool.downgrade()).is_ok());
    runtime.block_on(async {
        let acquires = (pool.acquire().await, pool.acquire().await, pool.acquire().await);
        assert!(acquires.0.is_ok() && acquires.1.is_ok() && acquires.2.is_ok());
    });
    // Closed by a task,
    runtime.block_on(async {
        pool.acquire().await.unwrap().discard();
        eventually("it is closed", || pool.metrics().counts.vacant == 1).await;
    });
    // by a task that ends with its runtime,
    let guard = pool.try_acquire().unwrap();
    guard.discard();
    drop(runtime);
    assert_eq!(pool.metrics().counts.vacant, 2);
    // and where there is no runtime any more.
    pool.try_acquire().unwrap().discard();
    assert_eq!(pool.metrics().counts.vacant, 3);
    assert_eq!(*manager.seen.lock().unwrap(), [3, 2, 1]);
}
