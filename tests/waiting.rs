//! Waiting in line: who is served, in which order, and what is left when somebody leaves.

#![cfg(feature = "tokio")]
#![allow(clippy::unwrap_used, reason = "these are tests, though clippy only sees their helpers")]

mod support;

use millpond::{AcquireError, IdleOrder, Pool, PoolBuilder, Pooled};
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;
use support::{
    Act, Conn, TestError, TestManager, Wakes, eventually, join, joined, poll_once, poll_with,
};
use tokio::task::yield_now;

const SECOND: Duration = Duration::from_secs(1);
const ORDERS: [IdleOrder; 3] = [IdleOrder::Recent, IdleOrder::Fifo, IdleOrder::Lifo];

type Acquired<'p> = Result<Pooled<'p, TestManager>, AcquireError<TestError>>;
type Acquire<'p> = Pin<Box<dyn Future<Output = Acquired<'p>> + Send + 'p>>;

/// The settings of a pool of `size` open connections.
fn builder(manager: &TestManager, size: usize) -> PoolBuilder<TestManager> {
    Pool::builder(manager.clone()).max_size(size).min_idle(size).acquire_timeout(support::PATIENCE)
}

async fn pool(manager: &TestManager, size: usize) -> Pool<TestManager> {
    builder(manager, size).shards(1).build().await.unwrap()
}

fn waiting(pool: &Pool<TestManager>) -> usize {
    pool.metrics().counts.waiters
}

/// `count` acquires that have been polled once and wait, first come first.
fn park(pool: &Pool<TestManager>, count: usize) -> Vec<Acquire<'_>> {
    let before = waiting(pool);
    let parked: Vec<_> = (0..count)
        .map(|_| {
            let mut acquire: Acquire<'_> = Box::pin(pool.acquire());
            assert!(poll_once(acquire.as_mut()).is_pending());
            acquire
        })
        .collect();
    assert_eq!(waiting(pool), before + count);
    parked
}

/// The connection of an acquire that must be ready by now.
#[track_caller]
fn ready<'p>(acquire: &mut Acquire<'p>) -> Pooled<'p, TestManager> {
    match poll_once(acquire.as_mut()) {
        Poll::Ready(acquired) => acquired.unwrap(),
        Poll::Pending => panic!("not served"),
    }
}

#[tokio::test]
async fn two_releases_one_after_the_other_wake_two_waiters() {
    for order in ORDERS {
        for shards in [1, 2] {
            let manager = TestManager::new();
            let pool = builder(&manager, 2).order(order).shards(shards).build().await.unwrap();
            let held = (pool.acquire().await.unwrap(), pool.acquire().await.unwrap());
            let ((wakes_1, waker_1), (wakes_2, waker_2)) = (Wakes::new(), Wakes::new());
            let (mut one, mut two) = (pin!(pool.acquire()), pin!(pool.acquire()));
            assert!(poll_with(one.as_mut(), &waker_1).is_pending());
            assert!(poll_with(two.as_mut(), &waker_2).is_pending());
            drop(held.0);
            assert_eq!((wakes_1.count(), wakes_2.count()), (1, 0));
            // Nobody has polled the first one meanwhile.
            drop(held.1);
            assert_eq!((wakes_1.count(), wakes_2.count()), (1, 1));
            assert_eq!(waiting(&pool), 0);
            assert_eq!(one.await.unwrap().id + two.await.unwrap().id, 3);
        }
    }
}

#[tokio::test]
async fn two_releases_on_two_threads_wake_two_waiters() {
    let manager = TestManager::new();
    let pool = builder(&manager, 2).shards(2).build().await.unwrap();
    for _ in 0..300 {
        let held = [pool.acquire_owned().await.unwrap(), pool.acquire_owned().await.unwrap()];
        let mut parked = park(&pool, 2);
        let threads = held.map(|guard| std::thread::spawn(move || drop(guard)));
        let [(), ()] = threads.map(join);
        let served = [ready(&mut parked[0]), ready(&mut parked[1])];
        assert_eq!(served[0].id + served[1].id, 3);
    }
}

// ---- order ----

#[tokio::test]
async fn waiters_are_served_in_the_order_of_their_arrival() {
    for order in ORDERS {
        let manager = TestManager::new();
        let pool = builder(&manager, 1).order(order).shards(1).build().await.unwrap();
        let mut held = Some(pool.acquire().await.unwrap());
        let mut parked = park(&pool, 20);
        for turn in 0..20 {
            drop(held.take());
            assert_eq!(waiting(&pool), 19 - turn);
            for later in &mut parked[turn + 1..] {
                assert!(poll_once(later.as_mut()).is_pending());
            }
            held = Some(ready(&mut parked[turn]));
        }
    }
}

#[tokio::test]
async fn new_connections_go_to_waiters_in_the_order_of_their_arrival() {
    let manager = TestManager::new();
    manager.connect.always(Act::Gated);
    let pool = builder(&manager, 3).min_idle(0).shards(1).build().await.unwrap();
    let mut parked = park(&pool, 3);
    for waiter in 0..3 {
        manager.connect.open(1);
        eventually("one is open", || manager.ledger.opened() == waiter + 1).await;
        eventually("it is given away", || waiting(&pool) == 2 - waiter).await;
        for later in &mut parked[waiter + 1..] {
            assert!(poll_once(later.as_mut()).is_pending());
        }
        assert_eq!(ready(&mut parked[waiter]).detach().id, waiter + 1);
    }
}

#[tokio::test]
async fn a_newcomer_does_not_overtake() {
    let manager = TestManager::new();
    let pool = pool(&manager, 1).await;
    let held = pool.acquire().await.unwrap();
    let mut parked = park(&pool, 1);
    drop(held);
    // The waiter has been given the connection, but has not run yet.
    let mut newcomer: Acquire<'_> = Box::pin(pool.acquire());
    assert!(poll_once(newcomer.as_mut()).is_pending());
    let blocking = std::thread::spawn({
        let pool = pool.clone();
        move || pool.acquire_blocking_timeout(Duration::ZERO).map(drop)
    });
    assert!(matches!(join(blocking), Err(AcquireError::Timeout(_))));
    let served = ready(&mut parked[0]);
    assert!(poll_once(newcomer.as_mut()).is_pending());
    drop(served);
    assert_eq!(ready(&mut newcomer).id, 1);
}

#[tokio::test]
async fn a_waiter_that_leaves_keeps_the_others_in_order() {
    let manager = TestManager::new();
    let pool = pool(&manager, 1).await;
    let held = pool.acquire().await.unwrap();
    let mut parked = park(&pool, 5);
    drop(parked.remove(3));
    drop(parked.remove(0));
    assert_eq!(waiting(&pool), 3);
    let mut held = Some(held);
    for waiter in &mut parked {
        drop(held.take());
        held = Some(ready(waiter));
    }
}

#[tokio::test]
async fn a_waiter_that_leaves_with_a_connection_on_its_way_passes_it_to_the_next() {
    for shards in [1, 4] {
        let manager = TestManager::new();
        let pool = builder(&manager, 1).shards(shards).build().await.unwrap();
        let held = pool.acquire().await.unwrap();
        let mut parked = park(&pool, 3);
        drop(held);
        drop(parked.remove(0));
        assert!(poll_once(parked[1].as_mut()).is_pending());
        drop(ready(&mut parked[0]));
        drop(ready(&mut parked[1]));
        assert_eq!(pool.metrics().counts.idle, 1);
        // With nobody left to pass it to, it is idle again.
        let held = pool.acquire().await.unwrap();
        let parked = park(&pool, 1);
        drop(held);
        drop(parked);
        assert_eq!((pool.metrics().counts.idle, waiting(&pool)), (1, 0));
    }
}

#[tokio::test]
async fn a_waiter_beside_a_hot_loop_is_served_by_the_next_release() {
    for order in ORDERS {
        let manager = TestManager::new();
        let pool = builder(&manager, 1).order(order).build().await.unwrap();
        for _ in 0..1000 {
            drop(pool.acquire().await.unwrap());
        }
        let hot = pool.acquire().await.unwrap();
        let mut parked = park(&pool, 1);
        drop(hot);
        let mut hot: Acquire<'_> = Box::pin(pool.acquire());
        assert!(poll_once(hot.as_mut()).is_pending());
        drop(ready(&mut parked[0]));
        drop(ready(&mut hot));
    }
}

#[tokio::test]
async fn a_waiter_beside_a_hot_thread_lets_it_have_one_more_turn_at_the_most() {
    for shards in [1, 4] {
        let manager = TestManager::new();
        let pool = builder(&manager, 1).shards(shards).build().await.unwrap();
        let (stop, turns) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let hot = std::thread::spawn({
            let (pool, stop, turns) = (pool.clone(), stop.clone(), turns.clone());
            move || {
                while !stop.load(Ordering::SeqCst) {
                    let guard = pool.acquire_blocking_timeout(support::PATIENCE).unwrap();
                    turns.fetch_add(1, Ordering::SeqCst);
                    drop(guard);
                }
            }
        });
        let (mut waited, began) = (0, std::time::Instant::now());
        while waited < 200 {
            assert!(began.elapsed() < support::PATIENCE, "the waiter waited {waited} times");
            let mut acquire: Acquire<'_> = Box::pin(pool.acquire());
            if poll_once(acquire.as_mut()).is_pending() {
                waited += 1;
                let before = turns.load(Ordering::SeqCst);
                let guard = acquire.await.unwrap();
                let more = turns.load(Ordering::SeqCst) - before;
                assert!(more <= 1, "the hot thread had {more} turns");
                drop(guard);
            }
        }
        stop.store(true, Ordering::SeqCst);
        join(hot);
    }
}

// ---- wakers ----

#[tokio::test]
async fn polling_again_with_another_waker_keeps_the_place_and_wakes_the_newest() {
    let manager = TestManager::new();
    let pool = pool(&manager, 1).await;
    let held = pool.acquire().await.unwrap();
    let wakers: Vec<_> = (0..4).map(|_| Wakes::new()).collect();
    let mut first: Acquire<'_> = Box::pin(pool.acquire());
    let mut second: Acquire<'_> = Box::pin(pool.acquire());
    assert!(poll_with(first.as_mut(), &wakers[0].1).is_pending());
    assert!(poll_with(second.as_mut(), &wakers[3].1).is_pending());
    // Again with the same one, and then with two others.
    for waker in [0, 1, 2, 2] {
        assert!(poll_with(first.as_mut(), &wakers[waker].1).is_pending());
    }
    assert_eq!(waiting(&pool), 2);
    drop(held);
    let woken: Vec<_> = wakers.iter().map(|(wakes, _)| wakes.count()).collect();
    assert_eq!(woken, [0, 0, 1, 0]);
    drop(ready(&mut first));
    let woken: Vec<_> = wakers.iter().map(|(wakes, _)| wakes.count()).collect();
    assert_eq!(woken, [0, 0, 1, 1]);
    drop(ready(&mut second));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_waiting_acquire_that_moves_to_another_task_keeps_its_place() {
    let manager = TestManager::new();
    let pool = pool(&manager, 1).await;
    let held = pool.acquire().await.unwrap();
    let mut first = Box::pin(pool.acquire_owned());
    assert!(poll_once(first.as_mut()).is_pending());
    let mut second = park(&pool, 1);
    let first = tokio::spawn(async move { first.await.unwrap() });
    yield_now().await;
    drop(held);
    let guard = joined(first).await;
    assert!(poll_once(second[0].as_mut()).is_pending());
    drop(guard);
    drop(ready(&mut second[0]));
}

// ---- async and blocking ----

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn async_and_blocking_waiters_are_served_in_one_order() {
    let manager = TestManager::new();
    let pool = pool(&manager, 1).await;
    let held = pool.acquire().await.unwrap();
    let served = Arc::new(Mutex::new(Vec::new()));
    let (mut tasks, mut threads) = (Vec::new(), Vec::new());
    for number in 0..10 {
        let (pool_2, served) = (pool.clone(), served.clone());
        if number % 2 == 0 {
            tasks.push(tokio::spawn(async move {
                let guard = pool_2.acquire().await.unwrap();
                served.lock().unwrap().push(number);
                drop(guard);
            }));
        } else {
            threads.push(std::thread::spawn(move || {
                let guard = pool_2.acquire_blocking_timeout(support::PATIENCE).unwrap();
                served.lock().unwrap().push(number);
                drop(guard);
            }));
        }
        eventually("it waits", || waiting(&pool) == number + 1).await;
    }
    drop(held);
    for task in tasks {
        joined(task).await;
    }
    for thread in threads {
        eventually("the thread has ended", || thread.is_finished()).await;
        join(thread);
    }
    assert_eq!(*served.lock().unwrap(), (0..10).collect::<Vec<_>>());
    assert_eq!((waiting(&pool), pool.metrics().counts.idle), (0, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn async_and_blocking_waiters_both_progress_on_two_connections() {
    let manager = TestManager::new();
    let pool = builder(&manager, 2).shards(2).build().await.unwrap();
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let pool = pool.clone();
            std::thread::spawn(move || {
                for _ in 0..500 {
                    drop(pool.acquire_blocking_timeout(support::PATIENCE).unwrap());
                }
            })
        })
        .collect();
    let tasks: Vec<_> = (0..4)
        .map(|_| {
            let pool = pool.clone();
            tokio::spawn(async move {
                for _ in 0..500 {
                    let guard = pool.acquire().await.unwrap();
                    yield_now().await;
                    drop(guard);
                }
            })
        })
        .collect();
    for task in tasks {
        joined(task).await;
    }
    for thread in threads {
        eventually("the thread has ended", || thread.is_finished()).await;
        join(thread);
    }
    let metrics = pool.metrics();
    assert_eq!((metrics.acquires, metrics.waits.timed_out), (8 * 500, 0));
    assert_eq!((metrics.counts.waiters, metrics.counts.idle), (0, 2));
}

// ---- every way out ----

#[tokio::test]
async fn nobody_waits_after_being_served() {
    let manager = TestManager::new();
    let pool = pool(&manager, 1).await;
    let held = pool.acquire().await.unwrap();
    let mut parked = park(&pool, 1);
    drop(held);
    assert_eq!(waiting(&pool), 0);
    drop(ready(&mut parked[0]));
    assert_eq!(waiting(&pool), 0);
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_after_a_timeout() {
    let manager = TestManager::new();
    let pool = pool(&manager, 1).await;
    let held = pool.acquire().await.unwrap();
    let error = pool.acquire_timeout(SECOND).await.unwrap_err();
    let AcquireError::Timeout(timeout) = &error else { panic!("{error:?}") };
    assert_eq!((timeout.counts().waiters, timeout.waited()), (0, SECOND));
    assert_eq!(waiting(&pool), 0);
    let blocking = std::thread::spawn({
        let pool = pool.clone();
        move || pool.acquire_blocking_timeout(Duration::from_millis(1)).map(drop)
    });
    assert!(matches!(join(blocking), Err(AcquireError::Timeout(_))));
    assert_eq!((waiting(&pool), pool.metrics().waits.timed_out), (0, 2));
    drop(held);
    assert!(pool.try_acquire().is_ok());
}

#[tokio::test]
async fn nobody_waits_after_being_cancelled() {
    let manager = TestManager::new();
    let pool = pool(&manager, 1).await;
    let held = pool.acquire().await.unwrap();
    let parked = park(&pool, 3);
    drop(parked);
    assert_eq!(waiting(&pool), 0);
    drop(held);
    assert!(pool.try_acquire().is_ok());
}

#[tokio::test]
async fn nobody_waits_after_close() {
    let manager = TestManager::new();
    let pool = pool(&manager, 1).await;
    let held = pool.acquire().await.unwrap();
    let parked = park(&pool, 3);
    let blocking = std::thread::spawn({
        let pool = pool.clone();
        move || pool.acquire_blocking_timeout(support::PATIENCE).map(drop)
    });
    eventually("the thread waits", || waiting(&pool) == 4).await;
    pool.close().await;
    for waiter in parked {
        assert!(matches!(waiter.await, Err(AcquireError::Closed)));
    }
    assert!(matches!(join(blocking), Err(AcquireError::Closed)));
    assert_eq!(waiting(&pool), 0);
    drop(held);
    eventually("its connection is closed", || manager.ledger.live() == 0).await;
}

#[tokio::test]
async fn nobody_waits_after_a_panic() {
    let manager = TestManager::new();
    let pool = pool(&manager, 1).await;
    let held = pool.acquire().await.unwrap();
    let task = tokio::spawn({
        let pool = pool.clone();
        async move {
            let mut acquire = pin!(pool.acquire());
            assert!(poll_once(acquire.as_mut()).is_pending());
            assert_eq!(waiting(&pool), 1);
            panic!("a panic beside a waiting acquire");
        }
    });
    assert!(task.await.unwrap_err().is_panic());
    assert_eq!(waiting(&pool), 0);
    drop(held);
    assert!(pool.try_acquire().is_ok());
}

#[tokio::test]
async fn a_permanent_error_ends_all_who_wait_after_one_attempt() {
    let manager = TestManager::new();
    manager.connect.always(Act::Permanent);
    let pool = builder(&manager, 2).min_idle(0).build().await.unwrap();
    let parked = park(&pool, 5);
    for waiter in parked {
        let error = waiter.await.unwrap_err();
        assert!(matches!(error, AcquireError::Connect(_)), "{error:?}");
    }
    assert_eq!(waiting(&pool), 0);
    eventually("nothing dials", || pool.metrics().counts.vacant == 2).await;
    assert_eq!(manager.connect.calls(), 1);
}

// ---- many ----

#[tokio::test]
async fn ten_thousand_waiters_on_one_slot_are_served_in_order() {
    for order in [IdleOrder::Fifo, IdleOrder::Recent] {
        let manager = TestManager::new();
        let pool = builder(&manager, 1).order(order).shards(1).build().await.unwrap();
        let held = pool.acquire().await.unwrap();
        let mut parked = park(&pool, 10_000);
        drop(held);
        for (number, waiter) in parked.iter_mut().enumerate() {
            drop(ready(waiter));
            assert_eq!(waiting(&pool), 9_999_usize.saturating_sub(number + 1));
        }
        assert_eq!(pool.metrics().acquires, 10_001);
    }
}

#[tokio::test]
async fn ten_thousand_waiters_of_whom_every_third_leaves_are_served_in_order() {
    let manager = TestManager::new();
    let pool = builder(&manager, 1).order(IdleOrder::Fifo).shards(1).build().await.unwrap();
    let held = pool.acquire().await.unwrap();
    let mut parked: Vec<_> = park(&pool, 10_000).into_iter().map(Some).collect();
    // Half of those who leave do so before anybody is served, also the one who is first.
    for waiter in parked[..5_000].iter_mut().step_by(3) {
        *waiter = None;
    }
    drop(held);
    let (mut served, mut gone) = (0, 0);
    for (number, waiter) in parked.iter_mut().enumerate() {
        // The other half leave just when their connection is on its way.
        if number >= 5_000 && number % 3 == 0 {
            *waiter = None;
        }
        match waiter {
            Some(waiter) => {
                drop(ready(waiter));
                served += 1;
            }
            None => gone += 1,
        }
    }
    assert_eq!((served + gone, waiting(&pool)), (10_000, 0));
    assert_eq!(pool.metrics().acquires, served + 1);
    assert_eq!(pool.metrics().counts.idle, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn ten_thousand_tasks_on_one_slot_are_all_served_while_a_third_is_aborted() {
    for shards in [1, 4] {
        let manager = TestManager::new();
        let pool = builder(&manager, 1).shards(shards).build().await.unwrap();
        let held = pool.acquire().await.unwrap();
        let inside = Arc::new(AtomicUsize::new(0));
        let tasks: Vec<_> = (0..10_000)
            .map(|_| {
                let (pool, inside) = (pool.clone(), inside.clone());
                tokio::spawn(async move {
                    let guard = pool.acquire().await.unwrap();
                    assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                    inside.fetch_sub(1, Ordering::SeqCst);
                    drop(guard);
                })
            })
            .collect();
        eventually("all wait", || waiting(&pool) == 10_000).await;
        drop(held);
        for task in tasks.iter().step_by(3) {
            task.abort();
        }
        let mut served = 0;
        for task in tasks {
            match tokio::time::timeout(support::PATIENCE, task).await.expect("it ends") {
                Ok(()) => served += 1,
                Err(error) => assert!(error.is_cancelled(), "{error:?}"),
            }
        }
        assert!(served >= 6_666, "{served}");
        assert_eq!((waiting(&pool), pool.metrics().counts.idle), (0, 1));
    }
}

#[tokio::test]
async fn a_connection_carries_what_its_last_holder_wrote_to_the_waiter() {
    let manager = TestManager::new();
    let pool = builder(&manager, 1).shards(4).build().await.unwrap();
    let tasks: Vec<_> = (0..8)
        .map(|_| {
            let pool = pool.clone();
            std::thread::spawn(move || {
                for _ in 0..500 {
                    let mut guard = pool.acquire_blocking_timeout(support::PATIENCE).unwrap();
                    let conn: &mut Conn = &mut guard;
                    conn.note += 1;
                }
            })
        })
        .collect();
    tasks.into_iter().for_each(join);
    assert_eq!(pool.acquire().await.unwrap().note, 8 * 500);
}
