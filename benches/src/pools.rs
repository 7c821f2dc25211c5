//! Who takes part: Millpond in each of its interfaces, a bare queue, and the peers.
//!
//! All hold the same connection, opened beforehand, and none checks it before handing it out: bb8
//! and r2d2 are told not to; deadpool and asyncband always ask the manager, which says yes. The rest
//! is left at each pool's defaults. So `Pool` and bb8 wait with a deadline, which costs a timer and a
//! look at the clock, and deadpool and asyncband wait without one. That is not the same service, so
//! where tasks wait both take part a second time with [`DEADLINE`], as a service would use them.

use crate::load::{Log, is_pending, pass_to_and_fro};
use crossbeam_queue::ArrayQueue;
use millpond::cluster::{Cluster, NodeHandle, Policy};
use millpond::{CheckPolicy, IdleOrder, ObjectPool, Pool, PoolBuilder};
use std::convert::Infallible;
use std::future::Future;
use std::hint::black_box;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::task::yield_now;
use tokio::time::timeout;

/// What the pools hold: small, but not nothing.
#[derive(Debug, Default)]
pub struct Connection(u64);

impl Connection {
    /// Uses the connection, so that the compiler cannot do without it.
    #[inline]
    pub fn touch(&mut self) {
        black_box(&mut self.0);
    }
}

/// What a manager was asked for.
#[derive(Debug, Default)]
pub struct Tally {
    opened: AtomicUsize,
    checks: AtomicUsize,
}

/// The manager of every managed pool: opens at once, finds nothing wrong, and keeps the tally.
#[derive(Clone, Debug, Default)]
pub struct TrivialManager {
    tally: Arc<Tally>,
}

impl TrivialManager {
    fn open(&self) -> Connection {
        self.tally.opened.fetch_add(1, Ordering::Relaxed);
        Connection::default()
    }

    /// A check that should not have been asked for.
    fn check(&self) {
        self.tally.checks.fetch_add(1, Ordering::Relaxed);
    }
}

impl millpond::Manager for TrivialManager {
    type Connection = Connection;
    type Error = Infallible;

    async fn connect(&self) -> Result<Connection, Infallible> {
        Ok(self.open())
    }

    async fn check(&self, _: &mut Connection) -> Result<(), Infallible> {
        self.check();
        Ok(())
    }
}

impl deadpool::managed::Manager for TrivialManager {
    type Type = Connection;
    type Error = Infallible;

    async fn create(&self) -> Result<Connection, Infallible> {
        Ok(self.open())
    }

    async fn recycle(
        &self,
        _: &mut Connection,
        _: &deadpool::managed::Metrics,
    ) -> deadpool::managed::RecycleResult<Infallible> {
        Ok(())
    }
}

impl asyncband::pool::ManageObject for TrivialManager {
    type Object = Connection;
    type Error = Infallible;

    async fn create(&self) -> Result<Connection, Infallible> {
        Ok(self.open())
    }

    async fn is_recyclable(
        &self,
        _: &mut Connection,
        _: &asyncband::pool::ObjectStatus,
    ) -> Result<(), Infallible> {
        Ok(())
    }
}

impl bb8::ManageConnection for TrivialManager {
    type Connection = Connection;
    type Error = Infallible;

    async fn connect(&self) -> Result<Connection, Infallible> {
        Ok(self.open())
    }

    async fn is_valid(&self, _: &mut Connection) -> Result<(), Infallible> {
        self.check();
        Ok(())
    }

    fn has_broken(&self, _: &mut Connection) -> bool {
        false
    }
}

impl r2d2::ManageConnection for TrivialManager {
    type Connection = Connection;
    type Error = Infallible;

    fn connect(&self) -> Result<Connection, Infallible> {
        Ok(self.open())
    }

    fn is_valid(&self, _: &mut Connection) -> Result<(), Infallible> {
        self.check();
        Ok(())
    }

    fn has_broken(&self, _: &mut Connection) -> bool {
        false
    }
}

type Boxed<'p, T> = Pin<Box<dyn Future<Output = T> + Send + 'p>>;

/// A pool, or one interface of it, behind which a loop of turns runs.
///
/// The loop itself is behind the interface, not the single acquire, so that the call through it
/// and the box cost nothing per turn, and the compiler sees each pool's own guard.
pub trait BenchPool: Send + Sync {
    /// The name in tables.
    fn name(&self) -> &'static str;
    /// Acquires, touches and releases so many times, one after another.
    fn turns(&self, turns: u64) -> Boxed<'_, ()>;
    /// Acquires so many connections at once, and releases them: opens what is not open yet.
    fn fill(&self, connections: usize) -> Boxed<'_, ()>;
    /// So many acquires, each of which waits until the one before it is released; none if there is
    /// no waiting here. The pool has to have one connection.
    fn waits(&self, turns: u64) -> Option<Boxed<'_, ()>>;
    /// The most connections that the pool says it will hold.
    fn capacity(&self) -> usize;
    /// What the pool asked of its manager, if it has one.
    fn tally(&self) -> Option<&Tally>;
}

/// A pool on whose connections tasks can wait.
pub trait WaitingPool: BenchPool {
    /// Acquires, yields to the runtime once, and releases, until the log says that the time is up.
    fn take_turns(&self, log: Log) -> Boxed<'_, Log>;
}

/// Puts one interface of a pool behind [`BenchPool`], and behind [`WaitingPool`] if it says `async`.
/// Where it says `thread`, the calling thread waits; where it says `try`, nobody does.
macro_rules! bench_pool {
    (async $name:ident, $pool:ty, |$p:ident| $acquire:expr, $capacity:expr) => {
        bench_pool!($name, $pool, |$p| $acquire, $capacity, |turns| {
            Some(Box::pin(async move {
                let mut held = $acquire;
                for _ in 0..turns {
                    let mut next = pin!(async { $acquire });
                    assert!(is_pending(next.as_mut()).await, "an acquire did not wait");
                    drop(held);
                    held = next.await;
                }
                drop(held);
            }))
        });

        impl WaitingPool for $name {
            fn take_turns(&self, mut log: Log) -> Boxed<'_, Log> {
                let $p = &self.pool;
                Box::pin(async move {
                    loop {
                        let began = log.begin();
                        let mut connection = $acquire;
                        let waited = began.map(|began| began.elapsed());
                        connection.touch();
                        yield_now().await;
                        drop(connection);
                        if !log.note(waited) {
                            return log;
                        }
                    }
                })
            }
        }
    };
    (thread $name:ident, $pool:ty, |$p:ident| $acquire:expr, $capacity:expr) => {
        bench_pool!($name, $pool, |$p| $acquire, $capacity, |turns| {
            Some(Box::pin(async move { pass_to_and_fro(turns, || $acquire) }))
        });
    };
    (try $name:ident, $pool:ty, |$p:ident| $acquire:expr, $capacity:expr) => {
        bench_pool!($name, $pool, |$p| $acquire, $capacity, |_turns| None);
    };
    (
        $name:ident,
        $pool:ty,
        |$p:ident| $acquire:expr,
        $capacity:expr,
        |$turns:ident| $waits:expr
    ) => {
        struct $name {
            name: &'static str,
            pool: $pool,
            tally: Option<Arc<Tally>>,
        }

        impl BenchPool for $name {
            fn name(&self) -> &'static str {
                self.name
            }

            fn turns(&self, turns: u64) -> Boxed<'_, ()> {
                let $p = &self.pool;
                Box::pin(async move {
                    for _ in 0..turns {
                        $acquire.touch();
                    }
                })
            }

            fn fill(&self, connections: usize) -> Boxed<'_, ()> {
                let $p = &self.pool;
                Box::pin(async move {
                    let mut held = Vec::new();
                    for _ in 0..connections {
                        held.push($acquire);
                    }
                })
            }

            fn waits(&self, $turns: u64) -> Option<Boxed<'_, ()>> {
                #[allow(unused_variables, reason = "there is no waiting everywhere")]
                let $p = &self.pool;
                $waits
            }

            fn capacity(&self) -> usize {
                let $p = &self.pool;
                $capacity
            }

            fn tally(&self) -> Option<&Tally> {
                self.tally.as_deref()
            }
        }
    };
}

const HIT: &str = "a connection within the time limit";

type Objects = ObjectPool<Connection>;
type Millpond = Pool<TrivialManager>;

bench_pool!(async ObjectAsync, Objects, |p| p.acquire().await.expect(HIT), p.capacity());
bench_pool!(async ObjectOwned, Objects, |p| p.acquire_owned().await.expect(HIT), p.capacity());
bench_pool!(thread ObjectBlocking, Objects, |p| p.acquire_blocking().expect(HIT), p.capacity());
bench_pool!(try ObjectTry, Objects, |p| p.try_acquire().expect(HIT), p.capacity());
bench_pool!(async PoolAsync, Millpond, |p| p.acquire().await.expect(HIT), p.config().max_size);
bench_pool!(async PoolOwned, Millpond, |p| p.acquire_owned().await.expect(HIT), p.config().max_size);
bench_pool!(thread PoolBlocking, Millpond, |p| p.acquire_blocking().expect(HIT), p.config().max_size);
bench_pool!(try PoolTry, Millpond, |p| p.try_acquire().expect(HIT), p.config().max_size);

/// A cluster, and which of its nodes is used.
struct OfCluster {
    cluster: Cluster<String, TrivialManager>,
    key: String,
    capacity: usize,
}

bench_pool!(
    try NodeAsync,
    OfCluster,
    |p| p.cluster.acquire(p.key.as_str()).await.expect(HIT),
    p.capacity
);
bench_pool!(
    try AnyNodeAsync,
    OfCluster,
    |p| p.cluster.acquire_any(Policy::RoundRobin).await.expect(HIT),
    p.capacity
);

bench_pool!(
    try HandleAsync,
    OfHandle,
    |p| p.node.acquire().await.expect(HIT),
    p.capacity
);

/// A node that has been looked up.
struct OfHandle {
    node: NodeHandle<String, TrivialManager>,
    capacity: usize,
}

/// The deadline of a wait, for the peers that have none of their own: that of Millpond's default.
const DEADLINE: Duration = Duration::from_secs(5);

type Deadpool = deadpool::managed::Pool<TrivialManager>;
type Asyncband = Arc<asyncband::pool::bounded::Pool<TrivialManager>>;
type Bb8 = bb8::Pool<TrivialManager>;
type R2d2 = r2d2::Pool<TrivialManager>;

bench_pool!(async DeadpoolAsync, Deadpool, |p| p.get().await.expect(HIT), p.status().max_size);
bench_pool!(async AsyncbandAsync, Asyncband, |p| p.get().await.expect(HIT), p.status().max_size);
bench_pool!(
    async AsyncbandDeadline,
    Asyncband,
    |p| timeout(DEADLINE, p.get()).await.expect(HIT).expect(HIT),
    p.status().max_size
);
bench_pool!(async Bb8Async, Bb8, |p| p.get().await.expect(HIT), p.config().max_size as usize);
bench_pool!(thread R2d2Blocking, R2d2, |p| p.get().expect(HIT), p.max_size() as usize);

/// The floor: a bare `ArrayQueue` of boxes, without any of what makes a pool of it.
struct RawQueue(ArrayQueue<Box<Connection>>);

impl BenchPool for RawQueue {
    fn name(&self) -> &'static str {
        "raw `ArrayQueue` pop + push"
    }

    fn turns(&self, turns: u64) -> Boxed<'_, ()> {
        Box::pin(async move {
            for _ in 0..turns {
                let mut connection = self.0.pop().expect(HIT);
                connection.touch();
                let _ = self.0.push(connection);
            }
        })
    }

    fn fill(&self, connections: usize) -> Boxed<'_, ()> {
        assert_eq!(self.0.len(), connections);
        Box::pin(std::future::ready(()))
    }

    fn waits(&self, _: u64) -> Option<Boxed<'_, ()>> {
        None
    }

    fn capacity(&self) -> usize {
        self.0.capacity()
    }

    fn tally(&self) -> Option<&Tally> {
        None
    }
}

/// A managed pool of Millpond's with all its connections open, and settings as `set` likes.
///
/// # Panics
///
/// If the settings are out of range.
pub async fn millpond_pool(
    capacity: usize,
    set: impl FnOnce(PoolBuilder<TrivialManager>) -> PoolBuilder<TrivialManager>,
) -> Pool<TrivialManager> {
    let builder = Pool::builder(TrivialManager::default()).max_size(capacity).min_idle(capacity);
    set(builder).build().await.expect("a pool")
}

/// With everything switched off that the pool does by the clock.
pub fn nothing_by_the_clock(pool: PoolBuilder<TrivialManager>) -> PoolBuilder<TrivialManager> {
    pool.check(CheckPolicy::Never).max_lifetime(None).idle_timeout(None).keepalive_interval(None)
}

/// With everything switched on that the pool does by the clock.
pub fn everything_by_the_clock(pool: PoolBuilder<TrivialManager>) -> PoolBuilder<TrivialManager> {
    let minute = Duration::from_secs(60);
    pool.check(CheckPolicy::IfIdleFor(minute))
        .max_lifetime(30 * minute)
        .idle_timeout(10 * minute)
        .keepalive_interval(2 * minute)
        .leak_after(minute)
}

/// Wraps a pool of Millpond's.
macro_rules! millpond {
    ($wrapper:ident, $name:literal, $pool:expr) => {{
        let pool: Millpond = $pool;
        let tally = Some(pool.manager().tally.clone());
        Arc::new($wrapper { name: $name, pool, tally })
    }};
}

/// Wraps an object pool of Millpond's.
macro_rules! objects {
    ($wrapper:ident, $name:literal, $capacity:expr) => {
        Arc::new($wrapper {
            name: $name,
            pool: ObjectPool::new($capacity, Connection::default),
            tally: None,
        })
    };
}

fn raw_queue(capacity: usize) -> Arc<RawQueue> {
    let queue = ArrayQueue::new(capacity);
    while queue.push(Box::default()).is_ok() {}
    Arc::new(RawQueue(queue))
}

fn deadpool(capacity: usize, deadline: Option<Duration>) -> Arc<DeadpoolAsync> {
    let manager = TrivialManager::default();
    let tally = Some(manager.tally.clone());
    let pool = Deadpool::builder(manager)
        .max_size(capacity)
        .runtime(deadpool::Runtime::Tokio1)
        .wait_timeout(deadline)
        .build()
        .expect("a pool");
    let name = if deadline.is_some() { "deadpool, deadline" } else { "deadpool" };
    Arc::new(DeadpoolAsync { name, pool, tally })
}

/// asyncband leaves deadlines to the caller, so one with a deadline is another wrapper.
macro_rules! asyncband {
    ($wrapper:ident, $name:literal, $capacity:expr) => {{
        let manager = TrivialManager::default();
        let tally = Some(manager.tally.clone());
        let config = asyncband::pool::bounded::PoolConfig::new($capacity);
        let pool = asyncband::pool::bounded::Pool::new(config, manager);
        Arc::new($wrapper { name: $name, pool, tally })
    }};
}

async fn bb8(capacity: usize) -> Arc<Bb8Async> {
    let manager = TrivialManager::default();
    let tally = Some(manager.tally.clone());
    let size = u32::try_from(capacity).expect("a small pool");
    let pool = Bb8::builder()
        .max_size(size)
        .min_idle(size)
        .test_on_check_out(false)
        .build(manager)
        .await
        .expect("a pool");
    Arc::new(Bb8Async { name: "bb8", pool, tally })
}

fn r2d2(capacity: usize) -> Arc<R2d2Blocking> {
    let manager = TrivialManager::default();
    let tally = Some(manager.tally.clone());
    let size = u32::try_from(capacity).expect("a small pool");
    // Without a `min_idle` r2d2 opens all of them.
    let pool =
        R2d2::builder().max_size(size).test_on_check_out(false).build(manager).expect("a pool");
    Arc::new(R2d2Blocking { name: "r2d2", pool, tally })
}

/// Warms a pool and makes sure that it is set up like the others: the capacity is what was asked
/// for, every connection is open before the measurement and stays open, and no turn checks one.
async fn admit(pool: &dyn BenchPool, capacity: usize) {
    let name = pool.name();
    assert_eq!(pool.capacity(), capacity, "{name}: another capacity");
    pool.fill(capacity).await;
    pool.turns(10 * capacity as u64).await;
    if let Some(tally) = pool.tally() {
        let opened = tally.opened.load(Ordering::Relaxed);
        assert_eq!(opened, capacity, "{name}: connections opened");
        assert_eq!(tally.checks.load(Ordering::Relaxed), 0, "{name}: checks before handing out");
    }
}

/// Everybody for the bench of hits: the raw queue first, `Pool::acquire` second.
pub async fn hits(capacity: usize) -> Vec<Arc<dyn BenchPool>> {
    let order = |order| millpond_pool(capacity, move |pool| pool.order(order));
    let recent = || order(IdleOrder::Recent);
    let pools: Vec<Arc<dyn BenchPool>> = vec![
        raw_queue(capacity),
        millpond!(PoolAsync, "`Pool::acquire().await`", recent().await),
        millpond!(PoolOwned, "`Pool::acquire_owned().await`", recent().await),
        millpond!(PoolBlocking, "`Pool::acquire_blocking()`", recent().await),
        millpond!(PoolTry, "`Pool::try_acquire()`", recent().await),
        millpond!(PoolAsync, "`Pool::acquire().await`, `Fifo`", order(IdleOrder::Fifo).await),
        millpond!(PoolAsync, "`Pool::acquire().await`, `Lifo`", order(IdleOrder::Lifo).await),
        objects!(ObjectAsync, "`ObjectPool::acquire().await`", capacity),
        objects!(ObjectOwned, "`ObjectPool::acquire_owned().await`", capacity),
        objects!(ObjectBlocking, "`ObjectPool::acquire_blocking()`", capacity),
        objects!(ObjectTry, "`ObjectPool::try_acquire()`", capacity),
        deadpool(capacity, None),
        bb8(capacity).await,
        r2d2(capacity),
        asyncband!(AsyncbandAsync, "asyncband", capacity),
    ];
    for pool in &pools {
        admit(&**pool, capacity).await;
    }
    pools
}

/// What the pool does by the clock: the raw queue, a pool that does nothing by it, one that does
/// everything, and one whose `min_idle` is below its size, so that each acquire looks how many are
/// left.
pub async fn upkept(capacity: usize) -> Vec<Arc<dyn BenchPool>> {
    let nothing = millpond_pool(capacity, nothing_by_the_clock).await;
    let everything = millpond_pool(capacity, everything_by_the_clock).await;
    let roomy = millpond_pool(capacity, |pool| {
        everything_by_the_clock(pool).max_size(2 * capacity).min_idle(capacity / 2)
    });
    let roomy = roomy.await;
    roomy.warm_up(capacity).await.expect("connections");
    let pools: Vec<Arc<dyn BenchPool>> = vec![
        raw_queue(capacity),
        millpond!(PoolAsync, "nothing by the clock", nothing),
        millpond!(PoolAsync, "everything", everything),
        millpond!(PoolAsync, "everything, and `min_idle` below `max_size`", roomy),
    ];
    for pool in &pools {
        pool.turns(10 * capacity as u64).await;
    }
    pools
}

/// A hit by way of a cluster: the raw queue, `Pool::acquire` and `acquire_owned`, and 10 pools by turns;
/// then clusters of 1, 10 and 1,000 nodes of which one is used, with keys of hosts and ports and with short
/// ones, one of 10 that are used by turns, and one that chooses among 10 by turns.
///
/// # Panics
///
/// If the settings are out of range.
pub async fn clusters(capacity: usize) -> Vec<Arc<dyn BenchPool>> {
    let of_keys = |nodes, key| of_nodes(capacity, nodes, key);
    let of_nodes = |nodes| of_keys(nodes, |number| format!("node-{number}.example:5432"));
    let pool = || millpond_pool(capacity, |pool| pool);
    let node = |name, nodes| Arc::new(NodeAsync { name, pool: of_nodes(nodes), tally: None });
    let short = NodeAsync {
        name: "`Cluster::acquire`, 10 nodes, short keys",
        pool: of_keys(10, |number| format!("db{number}")),
        tally: None,
    };
    let any =
        AnyNodeAsync { name: "`Cluster::acquire_any`, 10 nodes", pool: of_nodes(10), tally: None };
    let turns = of_nodes(10);
    let mut ten = Vec::new();
    for _ in 0..10 {
        ten.push(pool().await);
    }
    let OfCluster { cluster, key, .. } = of_nodes(10);
    let node_handle = cluster.node(&key).expect("a node");
    let handle = HandleAsync {
        name: "`NodeHandle::acquire`",
        pool: OfHandle { node: node_handle, capacity },
        tally: None,
    };
    for key in any.pool.cluster.nodes() {
        let mut held = Vec::new();
        for _ in 0..capacity {
            held.push(any.pool.cluster.acquire(&key).await.expect(HIT));
        }
    }
    let pools: Vec<Arc<dyn BenchPool>> = vec![
        raw_queue(capacity),
        millpond!(PoolAsync, "`Pool::acquire().await`", pool().await),
        millpond!(PoolOwned, "`Pool::acquire_owned().await`", pool().await),
        Arc::new(PoolsAsync { pools: ten, capacity }),
        node("`Cluster::acquire`, 1 node", 1),
        node("`Cluster::acquire`, 10 nodes", 10),
        node("`Cluster::acquire`, 1,000 nodes", 1_000),
        Arc::new(short),
        Arc::new(TurnsAsync { keys: turns.cluster.nodes(), of: turns }),
        Arc::new(any),
        Arc::new(handle),
    ];
    for pool in &pools {
        admit(&**pool, capacity).await;
    }
    pools
}

/// Pools that are acquired from one after the other.
struct PoolsAsync {
    pools: Vec<Pool<TrivialManager>>,
    capacity: usize,
}

impl BenchPool for PoolsAsync {
    fn name(&self) -> &'static str {
        "`Pool::acquire`, 10 pools by turns"
    }

    fn turns(&self, turns: u64) -> Boxed<'_, ()> {
        Box::pin(async move {
            let mut pools = self.pools.iter().cycle();
            for _ in 0..turns {
                pools.next().expect("a pool").acquire().await.expect(HIT).touch();
            }
        })
    }

    fn fill(&self, connections: usize) -> Boxed<'_, ()> {
        Box::pin(async move {
            for pool in &self.pools {
                let mut held = Vec::new();
                for _ in 0..connections {
                    held.push(pool.acquire().await.expect(HIT));
                }
            }
        })
    }

    fn waits(&self, _: u64) -> Option<Boxed<'_, ()>> {
        None
    }

    fn capacity(&self) -> usize {
        self.capacity
    }

    fn tally(&self) -> Option<&Tally> {
        None
    }
}

/// A cluster whose nodes are acquired one after the other.
struct TurnsAsync {
    of: OfCluster,
    keys: Vec<String>,
}

impl BenchPool for TurnsAsync {
    fn name(&self) -> &'static str {
        "`Cluster::acquire`, 10 nodes by turns"
    }

    fn turns(&self, turns: u64) -> Boxed<'_, ()> {
        Box::pin(async move {
            let mut keys = self.keys.iter().cycle();
            for _ in 0..turns {
                let key = keys.next().expect("a key").as_str();
                self.of.cluster.acquire(key).await.expect(HIT).touch();
            }
        })
    }

    fn fill(&self, connections: usize) -> Boxed<'_, ()> {
        Box::pin(async move {
            for key in &self.keys {
                let mut held = Vec::new();
                for _ in 0..connections {
                    held.push(self.of.cluster.acquire(key.as_str()).await.expect(HIT));
                }
            }
        })
    }

    fn waits(&self, _: u64) -> Option<Boxed<'_, ()>> {
        None
    }

    fn capacity(&self) -> usize {
        self.of.capacity
    }

    fn tally(&self) -> Option<&Tally> {
        None
    }
}

/// A cluster whose threads go to nodes of their own.
struct ApartAsync {
    of: OfCluster,
    keys: Vec<String>,
    next: AtomicUsize,
}

impl BenchPool for ApartAsync {
    fn name(&self) -> &'static str {
        "`Cluster::acquire`, a node for each thread"
    }

    fn turns(&self, turns: u64) -> Boxed<'_, ()> {
        let key = self.keys[self.next.fetch_add(1, Ordering::Relaxed) % self.keys.len()].as_str();
        Box::pin(async move {
            for _ in 0..turns {
                self.of.cluster.acquire(key).await.expect(HIT).touch();
            }
        })
    }

    fn fill(&self, connections: usize) -> Boxed<'_, ()> {
        Box::pin(async move {
            for key in &self.keys {
                let mut held = Vec::new();
                for _ in 0..connections {
                    held.push(self.of.cluster.acquire(key.as_str()).await.expect(HIT));
                }
            }
        })
    }

    fn waits(&self, _: u64) -> Option<Boxed<'_, ()>> {
        None
    }

    fn capacity(&self) -> usize {
        self.of.capacity
    }

    fn tally(&self) -> Option<&Tally> {
        None
    }
}

/// Clusters that several threads use at the same time: each a node of its own, all the same one, and
/// all the same one by a handle.
///
/// # Panics
///
/// If the settings are out of range.
pub async fn contended_clusters(capacity: usize) -> Vec<Arc<dyn BenchPool>> {
    let of = || of_nodes(capacity, 10, |number| format!("node-{number}.example:5432"));
    let (apart, handle) = (of(), of());
    let keys = apart.cluster.nodes();
    let node = handle.cluster.node(&handle.key).expect("a node");
    let pools: Vec<Arc<dyn BenchPool>> = vec![
        Arc::new(ApartAsync { of: apart, keys, next: AtomicUsize::new(0) }),
        Arc::new(NodeAsync {
            name: "`Cluster::acquire`, one node for all",
            pool: of(),
            tally: None,
        }),
        Arc::new(HandleAsync {
            name: "`NodeHandle::acquire`, one node for all",
            pool: OfHandle { node, capacity },
            tally: None,
        }),
    ];
    for pool in &pools {
        admit(&**pool, capacity).await;
    }
    pools
}

/// A cluster of so many nodes, of which the one in the middle is used.
fn of_nodes(capacity: usize, nodes: usize, key: fn(usize) -> String) -> OfCluster {
    let cluster = Cluster::builder().pools(move |pool| pool.max_size(capacity)).build();
    let cluster = cluster.expect("a cluster");
    for number in 0..nodes {
        cluster.add_node(key(number), TrivialManager::default()).expect("a node");
    }
    OfCluster { cluster, key: key(nodes / 2), capacity }
}

/// Those that several threads use at the same time: the raw queue first, `Pool::acquire` second.
pub async fn contended(capacity: usize) -> Vec<Arc<dyn BenchPool>> {
    let pool = millpond_pool(capacity, |pool| pool).await;
    let pools: Vec<Arc<dyn BenchPool>> = vec![
        raw_queue(capacity),
        millpond!(PoolAsync, "`Pool::acquire().await`", pool),
        objects!(ObjectAsync, "`ObjectPool::acquire().await`", capacity),
        deadpool(capacity, None),
        bb8(capacity).await,
        r2d2(capacity),
        asyncband!(AsyncbandAsync, "asyncband", capacity),
    ];
    for pool in &pools {
        admit(&**pool, capacity).await;
    }
    pools
}

/// Those on which tasks can wait: `Pool` first, with its deadline, and second without one; with one
/// shard; `ObjectPool`; then the peers that serve first come, first served, without a deadline and
/// with one; and last bb8, which lets newcomers overtake.
pub async fn waiting(capacity: usize) -> Vec<Arc<dyn WaitingPool>> {
    let sharded = millpond_pool(capacity, |pool| pool).await;
    let patient = millpond_pool(capacity, |pool| pool.acquire_timeout(Duration::MAX)).await;
    let one_shard =
        millpond_pool(capacity, |pool| pool.acquire_timeout(Duration::MAX).shards(1)).await;
    let pools: Vec<Arc<dyn WaitingPool>> = vec![
        millpond!(PoolAsync, "millpond, deadline", sharded),
        millpond!(PoolAsync, "millpond", patient),
        millpond!(PoolAsync, "millpond, `shards(1)`", one_shard),
        objects!(ObjectAsync, "millpond, `ObjectPool`", capacity),
        deadpool(capacity, None),
        asyncband!(AsyncbandAsync, "asyncband", capacity),
        deadpool(capacity, Some(DEADLINE)),
        asyncband!(AsyncbandDeadline, "asyncband, deadline", capacity),
        bb8(capacity).await,
    ];
    for pool in &pools {
        admit(&**pool, capacity).await;
    }
    pools
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::{SHAPES, Shape, thread_runtime, wait, worker_runtime};

    #[test]
    fn all_are_set_up_alike() {
        // `admit` is the test.
        thread_runtime().block_on(async {
            assert_eq!(hits(16).await.len(), 15);
            assert_eq!(contended(16).await.len(), 7);
            assert_eq!(upkept(16).await.len(), 4);
            for Shape { connections, .. } in SHAPES {
                assert_eq!(waiting(connections).await.len(), 9);
            }
        });
    }

    #[test]
    fn every_acquire_waits_that_is_to_wait() {
        let runtime = thread_runtime();
        let pools = runtime.block_on(hits(1));
        let waited = pools.iter().filter_map(|pool| pool.waits(10)).map(|waits| {
            runtime.block_on(waits);
        });
        // All but the raw queue and those that only try.
        assert_eq!(waited.count(), 12);
    }

    #[test]
    fn tasks_wait_and_nobody_opens_more_connections() {
        let runtime = worker_runtime();
        let shape = Shape { tasks: 16, connections: 4 };
        for pool in runtime.block_on(waiting(shape.connections)) {
            let outcome = wait(&runtime, &pool, shape, Duration::from_millis(20), true);
            assert!(outcome.per_second() > 0.0);
            assert!(outcome.wait(0.5) > 0.0, "{}: nobody waited", pool.name());
            if let Some(tally) = pool.tally() {
                assert_eq!(tally.opened.load(Ordering::Relaxed), 4, "{}", pool.name());
                assert_eq!(tally.checks.load(Ordering::Relaxed), 0, "{}", pool.name());
            }
        }
    }
}
