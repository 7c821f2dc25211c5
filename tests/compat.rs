//! Managers of other pools: real ones that run unchanged, and scripted ones that fail, hang, panic
//! and are given up half-way.

#![cfg(all(feature = "bb8", feature = "deadpool", feature = "r2d2"))]
#![allow(clippy::unwrap_used, reason = "these are tests, though clippy only sees their helpers")]

mod support;
use support::*;

use bb8_postgres::PostgresConnectionManager;
use bb8_postgres::tokio_postgres::{self, NoTls, error::SqlState};
use deadpool_postgres::{ManagerConfig, RecyclingMethod};
use millpond::compat::{bb8::Adapter as Bb8, deadpool::Adapter as Deadpool, r2d2::Adapter as R2d2};
use millpond::compat::{deadpool, r2d2};
use millpond::{
    AcquireError, CheckPolicy, Condition, Manager, OperationError, Pool, PoolMetrics, blocking,
};
use r2d2_sqlite::SqliteConnectionManager;
use std::cell::Cell;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, ThreadId};
use std::time::Duration;
use tokio::task::JoinSet;

const SECOND: Duration = Duration::from_secs(1);
/// Short, for limits that are meant to be exceeded.
const MOMENT: Duration = Duration::from_millis(20);

/// Waits until nothing is under way, then asserts that the counts add up.
async fn exact<M: Manager>(pool: &Pool<M>) -> PoolMetrics {
    eventually("nothing is under way", || {
        let counts = pool.metrics().counts;
        let busy = counts.connecting + counts.checking + counts.resetting + counts.closing;
        // A slot is in use for a moment on its way from a dial to a shelf.
        busy + counts.in_use == 0
    })
    .await;
    let metrics = pool.metrics();
    assert_eq!(metrics.created, metrics.closed.total() + metrics.counts.alive() as u64);
    assert_eq!(metrics.counts.waiters, 0, "{metrics:?}");
    metrics
}

// Real managers, unchanged.

fn bb8_postgres(url: &str) -> Bb8<PostgresConnectionManager<NoTls>> {
    Bb8::new(PostgresConnectionManager::new_from_stringlike(url, NoTls).unwrap())
}

fn deadpool_postgres(
    url: &str,
    recycling_method: RecyclingMethod,
) -> Deadpool<deadpool_postgres::Manager> {
    let config = ManagerConfig { recycling_method };
    let config = deadpool_postgres::Manager::from_config(url.parse().unwrap(), NoTls, config);
    Deadpool::new(config)
}

/// Many tasks on four connections, through a server's death: nobody gets an answer of somebody
/// else's, and the pool recovers.
async fn works_through_a_restart<M: Manager>(
    server: &Postgres,
    pool: Pool<M>,
    ask: impl AsyncFn(&mut M::Connection, i64) -> Result<i64, tokio_postgres::Error>,
) {
    let asking = async |number: i64| {
        let mut connection = pool.acquire().await.map_err(drop)?;
        ask(&mut connection, number).await.map_err(drop)
    };
    let round = async |from: i64| {
        let asked = (from..from + 32).map(|number| (number, asking(number)));
        let mut right = 0;
        for (number, answer) in asked {
            match answer.await {
                Ok(answer) => assert_eq!(answer, number),
                Err(()) => continue,
            }
            right += 1;
        }
        right
    };
    let rounds = async |from: i64| {
        let (a, b, c, d) = tokio::join!(round(from), round(100), round(200), round(300));
        a + b + c + d
    };
    assert_eq!(rounds(0).await, 128);
    let before = exact(&pool).await;
    assert!(before.created <= 4 && before.closed.total() == 0, "{before:?}");
    server.kill();
    server.restart();
    // What was idle may fail once each.
    assert!(rounds(1_000).await >= 128 - 4);
    assert_eq!(rounds(2_000).await, 128);
    let after = exact(&pool).await;
    assert_eq!(after.closed.total(), before.created, "{after:?}");
}

#[tokio::test]
async fn a_bb8_manager_of_postgres_connections_runs_unchanged_through_a_restart() {
    let Some(server) = Postgres::start(&[]) else { return };
    let pool = Pool::builder(bb8_postgres(&server.url())).max_size(4).build().await.unwrap();
    let ask = async |client: &mut tokio_postgres::Client, number: i64| {
        Ok(client.query_one("SELECT $1::int8", &[&number]).await?.get(0))
    };
    works_through_a_restart(&server, pool, ask).await;
}

#[tokio::test]
async fn a_deadpool_manager_of_postgres_connections_runs_unchanged_through_a_restart() {
    let Some(server) = Postgres::start(&[]) else { return };
    let manager = deadpool_postgres(&server.url(), RecyclingMethod::Fast);
    let pool = Pool::builder(manager).max_size(4).build().await.unwrap();
    let ask = async |client: &mut deadpool::Connection<deadpool_postgres::Manager>, number: i64| {
        let statement = client.prepare_cached("SELECT $1::int8").await?;
        Ok(client.query_one(&statement, &[&number]).await?.get(0))
    };
    works_through_a_restart(&server, pool, ask).await;
}

#[tokio::test]
async fn a_wrong_password_that_the_user_calls_permanent_is_tried_once() {
    let Some(server) = Postgres::start(&[]) else { return };
    let url = server.url().replace("millpond@", "locked:wrong@");
    let wrong = |error: &tokio_postgres::Error| error.code() == Some(&SqlState::INVALID_PASSWORD);
    let attempts = || server.log().matches("password authentication failed").count();

    let pool = Pool::builder(bb8_postgres(&url).permanent(wrong)).build().await.unwrap();
    let error = pool.acquire().await.unwrap_err();
    assert!(matches!(error, AcquireError::Connect(_)), "{error}");
    assert_eq!(attempts(), 1);

    let manager = deadpool_postgres(&url, RecyclingMethod::Fast).permanent(wrong);
    let pool = Pool::builder(manager).build().await.unwrap();
    let error = pool.acquire().await.unwrap_err();
    assert!(matches!(error, AcquireError::Connect(_)), "{error}");
    assert_eq!(attempts(), 2);
    assert_eq!(pool.metrics().connect_failures, 1);

    // Otherwise it is tried again, and is the cause of the timeout.
    let pool = Pool::builder(bb8_postgres(&url)).build().await.unwrap();
    let error = pool.acquire_timeout(SECOND).await.unwrap_err();
    let AcquireError::Timeout(timeout) = error else { panic!("{error}") };
    let Some(OperationError::Failed(cause)) = timeout.last_connect_error().map(|e| &e.error) else {
        panic!("{timeout}")
    };
    assert!(wrong(cause));
    assert!(attempts() > 3);
}

/// The pool's policy has no say in what makes a connection fit for its next user.
#[tokio::test]
async fn what_deadpools_recycling_cleans_up_is_cleaned_up_before_each_reuse() {
    let Some(server) = Postgres::start(&[]) else { return };
    let manager = deadpool_postgres(&server.url(), RecyclingMethod::Clean);
    let builder = Pool::builder(manager).max_size(1).check(CheckPolicy::Never);
    let pool = builder.build().await.unwrap();
    for _ in 0..3 {
        let client = pool.acquire().await.unwrap();
        let row = client.query_one("SHOW search_path", &[]).await.unwrap();
        assert_eq!(row.get::<_, &str>(0), "\"$user\", public");
        client.batch_execute("SET search_path = 'left_over'").await.unwrap();
    }
    assert_eq!(exact(&pool).await.created, 1);
}

#[tokio::test]
async fn a_connection_that_has_died_while_idle_is_found_by_deadpools_recycling() {
    let Some(server) = Postgres::start(&[]) else { return };
    let manager = deadpool_postgres(&server.url(), RecyclingMethod::Fast);
    let builder = Pool::builder(manager).max_size(1).check(CheckPolicy::Never);
    let pool = builder.build().await.unwrap();
    drop(pool.acquire().await.unwrap());
    server.run("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'millpond'");
    eventually("the client knows", || {
        let mut closed = false;
        pool.retain(|client, _| {
            closed = client.is_closed();
            true
        });
        closed
    })
    .await;
    let client = pool.acquire().await.unwrap();
    client.query_one("SELECT 1", &[]).await.unwrap();
    drop(client);
    assert_eq!(exact(&pool).await.closed.failed_check, 1);
}

fn sqlite_file(folder: &tempfile::TempDir) -> R2d2<SqliteConnectionManager> {
    let patient = |connection: &mut rusqlite::Connection| {
        connection.busy_timeout(10 * SECOND)?;
        connection.execute_batch("CREATE TABLE IF NOT EXISTS t (n INTEGER)")
    };
    R2d2::new(SqliteConnectionManager::file(folder.path().join("t.db")).with_init(patient))
}

fn insert(connection: &rusqlite::Connection) {
    connection.execute("INSERT INTO t VALUES (1)", []).unwrap();
}

fn count(connection: &rusqlite::Connection) -> i64 {
    connection.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).unwrap()
}

#[test]
fn an_r2d2_manager_of_sqlite_connections_runs_unchanged_on_threads() {
    let folder = tempfile::tempdir().unwrap();
    let builder = Pool::builder(sqlite_file(&folder)).max_size(3).check(CheckPolicy::Always);
    let pool = builder.build_blocking().unwrap();
    let threads = (0..8).map(|_| {
        let pool = pool.clone();
        thread::spawn(move || (0..20).for_each(|_| insert(&pool.acquire().unwrap())))
    });
    for thread in threads.collect::<Vec<_>>() {
        join(thread);
    }
    assert_eq!(count(&pool.acquire().unwrap()), 160);
    let metrics = pool.metrics();
    assert!(metrics.created <= 3 && metrics.closed.total() == 0, "{metrics:?}");
    pool.close();
    assert_eq!(pool.metrics().closed.total(), metrics.created);
}

#[tokio::test]
async fn an_r2d2_manager_of_sqlite_connections_runs_unchanged_under_tasks() {
    let folder = tempfile::tempdir().unwrap();
    let builder = Pool::builder(sqlite_file(&folder)).max_size(3).check(CheckPolicy::Always);
    let pool = builder.build().await.unwrap();
    let mut tasks = JoinSet::new();
    for _ in 0..8 {
        let pool = pool.clone();
        tasks.spawn(async move {
            for _ in 0..20 {
                let connection = pool.acquire_owned().await.unwrap();
                tokio::task::spawn_blocking(move || insert(&connection)).await.unwrap();
            }
        });
    }
    tasks.join_all().await;
    assert_eq!(count(&pool.acquire().await.unwrap()), 160);
    let metrics = exact(&pool).await;
    assert!(metrics.created <= 3 && metrics.checks > 0, "{metrics:?}");
}

// Scripted managers of asynchronous pools.

struct ScriptedBb8(TestManager);

impl ::bb8::ManageConnection for ScriptedBb8 {
    type Connection = Conn;
    type Error = TestError;

    async fn connect(&self) -> Result<Conn, TestError> {
        self.0.connect().await
    }

    async fn is_valid(&self, conn: &mut Conn) -> Result<(), TestError> {
        self.0.check(conn).await
    }

    fn has_broken(&self, conn: &mut Conn) -> bool {
        self.0.condition(conn) == Condition::Broken
    }
}

/// Notes the metrics of each recycle, and counts detached objects.
#[derive(Clone)]
struct ScriptedDeadpool {
    test: TestManager,
    recycled: Arc<Mutex<Vec<::deadpool::managed::Metrics>>>,
    detached: Arc<Mutex<Vec<usize>>>,
}

impl ScriptedDeadpool {
    fn new(test: &TestManager) -> Self {
        Self { test: test.clone(), recycled: Arc::default(), detached: Arc::default() }
    }

    fn pool(&self, max_size: usize) -> Pool<Deadpool<Self>> {
        let adapter = Deadpool::new(self.clone());
        let builder = Pool::builder(adapter).max_size(max_size).check(CheckPolicy::Never);
        builder.build_lazy().unwrap()
    }
}

impl ::deadpool::managed::Manager for ScriptedDeadpool {
    type Type = Conn;
    type Error = TestError;

    async fn create(&self) -> Result<Conn, TestError> {
        self.test.connect().await
    }

    async fn recycle(
        &self,
        conn: &mut Conn,
        metrics: &::deadpool::managed::Metrics,
    ) -> ::deadpool::managed::RecycleResult<TestError> {
        self.recycled.lock().unwrap().push(*metrics);
        if conn.note == 13 {
            return Err(::deadpool::managed::RecycleError::message("thirteen"));
        }
        Ok(self.test.check(conn).await?)
    }

    fn detach(&self, conn: &mut Conn) {
        self.detached.lock().unwrap().push(conn.id);
    }
}

/// Connects and checks that fail, hang or panic cost an attempt or a connection each, and nothing
/// else; so does a check that is given up with its acquire. Each acquire checks.
async fn survives<M: Manager>(pool: &Pool<M>, test: &TestManager) {
    hush_scripted_panics();
    let acts = [Act::Error, Act::Never, Act::Panic];
    for act in acts {
        test.connect.once(act);
        drop(pool.acquire_timeout(60 * SECOND).await.unwrap());
        pool.acquire().await.unwrap().discard();
    }
    assert_eq!(test.connect.calls(), 6);
    drop(pool.acquire().await.unwrap());
    for act in acts {
        test.check.once(act);
        drop(pool.acquire().await.unwrap());
    }
    assert_eq!(pool.metrics().closed.failed_check, 3);

    test.check.once(Act::Never);
    let mut acquire = Box::pin(pool.acquire());
    assert!(poll_once(acquire.as_mut()).is_pending());
    assert_eq!(pool.metrics().counts.checking, 1);
    drop(acquire);
    assert_eq!(pool.metrics().closed.abandoned, 1);
    drop(pool.acquire().await.unwrap());
    assert_eq!(balanced(pool, &test.ledger).await.closed.total(), 3 + 3 + 1);
}

#[tokio::test(start_paused = true)]
async fn whatever_a_bb8_manager_does_costs_no_more_than_that_connection() {
    let test = TestManager::new();
    let adapter = Bb8::new(ScriptedBb8(test.clone()));
    let builder = Pool::builder(adapter).max_size(1).check(CheckPolicy::Always);
    let pool = builder.build_lazy().unwrap();
    survives(&pool, &test).await;
    test.condition.once(Act::Error);
    drop(pool.acquire().await.unwrap());
    test.condition.once(Act::Panic);
    drop(pool.acquire().await.unwrap());
    assert_eq!(balanced(&pool, &test.ledger).await.closed.broken, 2);
}

#[tokio::test(start_paused = true)]
async fn whatever_a_deadpool_manager_does_costs_no_more_than_that_object() {
    let test = TestManager::new();
    let pool = ScriptedDeadpool::new(&test).pool(1);
    survives(&pool, &test).await;
}

#[tokio::test]
async fn bb8s_test_on_check_out_is_the_policy_always() {
    for (policy, checks) in [(CheckPolicy::Always, 3), (CheckPolicy::default(), 0)] {
        let test = TestManager::new();
        let adapter = Bb8::new(ScriptedBb8(test.clone()));
        let pool = Pool::builder(adapter).max_size(1).check(policy).build().await.unwrap();
        for _ in 0..4 {
            drop(pool.acquire().await.unwrap());
        }
        assert_eq!(test.check.calls(), checks);
        assert_eq!(pool.manager().manager().0.connect.calls(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_deadpool_object_is_recycled_once_before_each_reuse_and_not_before_its_first_use() {
    let test = TestManager::new();
    let manager = ScriptedDeadpool::new(&test);
    let pool = manager.pool(1);
    let created = deadpool::Connection::metrics(&*pool.acquire().await.unwrap()).created;
    assert_eq!(test.check.calls(), 0);
    for _ in 0..3 {
        tokio::time::advance(SECOND).await;
        drop(pool.acquire().await.unwrap());
    }
    // Handed from one to the next.
    let held = pool.acquire().await.unwrap();
    let mut acquire = pin!(pool.acquire());
    assert!(poll_once(acquire.as_mut()).is_pending());
    drop(held);
    let last = acquire.await.unwrap();

    let recycled = manager.recycled.lock().unwrap().clone();
    assert_eq!(recycled.len(), 5);
    for (number, metrics) in recycled.iter().enumerate() {
        assert_eq!(metrics.recycle_count, number, "as it was before");
        assert_eq!(metrics.created, created);
        assert_eq!(metrics.recycled.is_some(), number > 0);
    }
    assert!(recycled.windows(2).all(|pair| pair[0].recycled <= pair[1].recycled));
    assert_eq!(deadpool::Connection::metrics(&*last).recycle_count, 5);
}

#[tokio::test(start_paused = true)]
async fn a_deadpool_object_that_is_refused_is_closed_and_the_same_acquire_gets_another() {
    let test = TestManager::new();
    let pool = ScriptedDeadpool::new(&test).pool(2);
    let mut bad = pool.acquire().await.unwrap();
    bad.note = 13;
    drop(bad);
    assert_eq!(pool.acquire().await.unwrap().id, 2);
    assert_eq!(balanced(&pool, &test.ledger).await.closed.failed_check, 1);

    let mut object = pool.manager().connect().await.unwrap();
    object.note = 13;
    let error = pool.manager().check(&mut object).await.unwrap_err();
    assert!(matches!(error, deadpool::AdapterError::Refused(_)));
    assert_eq!(error.to_string(), "not fit to be used again: thirteen");
    object.note = 0;
    test.check.once(Act::Error);
    let error = pool.manager().check(&mut object).await.unwrap_err();
    assert_eq!(error.to_string(), "scripted check error");
}

#[tokio::test(start_paused = true)]
async fn deadpools_detach_is_called_once_however_an_object_leaves() {
    let test = TestManager::new();
    let manager = ScriptedDeadpool::new(&test);
    let pool = manager.pool(8);
    let all = async |count: usize| {
        let mut held = Vec::new();
        for _ in 0..count {
            held.push(pool.acquire().await.unwrap());
        }
        held
    };
    let detached = |ids: &[usize]| {
        let mut detached = manager.detached.lock().unwrap().clone();
        detached.sort_unstable();
        assert_eq!(detached, ids);
    };
    let mut held = all(5).await;
    detached(&[]);
    let taken = deadpool::Connection::into_inner(held.remove(0).detach());
    detached(&[1]);
    drop(taken);
    detached(&[1]);
    drop(held.remove(0).detach());
    detached(&[1, 2]);
    held.remove(0).discard();
    balanced_but_for(&pool, 2).await;
    detached(&[1, 2, 3]);
    held[0].note = 13;
    drop(held);
    let held = all(2).await;
    eventually("it is closed", || test.ledger.dropped() == 4).await;
    detached(&[1, 2, 3, 4]);
    drop(held);
    // A recycle that is given up half-way.
    test.check.once(Act::Never);
    let mut acquire = Box::pin(pool.acquire());
    assert!(poll_once(acquire.as_mut()).is_pending());
    drop(acquire);
    detached(&[1, 2, 3, 4, 6]);
    pool.close().await;
    detached(&[1, 2, 3, 4, 5, 6]);
    assert_eq!((test.ledger.opened(), test.ledger.dropped()), (6, 6));
}

/// Nothing is being closed, while `held` are in use.
async fn balanced_but_for<M: Manager>(pool: &Pool<M>, held: usize) {
    eventually("nothing is being closed", || {
        let counts = pool.metrics().counts;
        (counts.closing, counts.in_use) == (0, held)
    })
    .await;
}

/// Managers whose errors are no `std::error::Error`.
struct Mute;

impl ::bb8::ManageConnection for Mute {
    type Connection = ();
    type Error = ();

    async fn connect(&self) -> Result<(), ()> {
        Err(())
    }

    async fn is_valid(&self, (): &mut ()) -> Result<(), ()> {
        Ok(())
    }

    fn has_broken(&self, (): &mut ()) -> bool {
        false
    }
}

impl ::deadpool::managed::Manager for Mute {
    type Type = ();
    type Error = ();

    async fn create(&self) -> Result<(), ()> {
        Err(())
    }

    async fn recycle(
        &self,
        (): &mut (),
        _: &::deadpool::managed::Metrics,
    ) -> ::deadpool::managed::RecycleResult<()> {
        Ok(())
    }
}

/// An error that must stay on its thread.
#[derive(Debug)]
struct Local(std::rc::Rc<str>);

impl std::fmt::Display for Local {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Local {}

impl ::r2d2::ManageConnection for Mute {
    type Connection = ();
    type Error = Local;

    fn connect(&self) -> Result<(), Local> {
        Err(Local("stays here".into()))
    }

    fn is_valid(&self, (): &mut ()) -> Result<(), Local> {
        Ok(())
    }

    fn has_broken(&self, (): &mut ()) -> bool {
        false
    }
}

#[tokio::test]
async fn errors_that_a_pool_cannot_report_are_made_into_such_as_it_can() {
    async fn fails<M: Manager>(adapter: M) -> String {
        let pool = Pool::builder(adapter).build().await.unwrap();
        let Err(AcquireError::Connect(error)) = pool.acquire().await else { panic!("no verdict") };
        error.to_string()
    }
    let said = |(): ()| TestError { what: "mute", permanent: true };
    let permanent = |error: &TestError| error.permanent;
    let bb8 = Bb8::with_error(Mute, said).permanent(permanent);
    assert_eq!(fails(bb8).await, "scripted mute error");
    let deadpool = Deadpool::with_error(Mute, said).permanent(permanent);
    assert_eq!(fails(deadpool).await, "scripted mute error");
    let moved = |error: Local| std::io::Error::other(error.to_string());
    let r2d2 = R2d2::with_error(Mute, moved).permanent(|_| true);
    assert_eq!(fails(r2d2).await, "stays here");
}

// A scripted manager whose calls block.

/// What a blocking call does.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Step {
    Pass,
    Fail,
    Panic,
    /// Blocks until the test opens the gate.
    Block,
}

/// A manager whose calls do as they are told; a clone is another handle to it.
#[derive(Clone, Default)]
struct Blocking(Arc<BlockingParts>);

#[derive(Default)]
struct BlockingParts {
    connect: Mutex<Vec<Step>>,
    is_valid: Mutex<Vec<Step>>,
    has_broken: Mutex<Vec<Step>>,
    /// Calls that block, and those that may go on.
    gate: Mutex<(usize, usize)>,
    opened: Condvar,
    live: AtomicUsize,
    most_live: AtomicUsize,
    connects: AtomicUsize,
    /// Connections that were dropped inside a runtime.
    dropped_inside: AtomicUsize,
    threads: Mutex<Vec<ThreadId>>,
}

impl Blocking {
    fn next(&self, steps: &Mutex<Vec<Step>>) -> Step {
        let mut steps = steps.lock().unwrap();
        if steps.is_empty() { Step::Pass } else { steps.remove(0) }
    }

    fn take(&self, step: Step) -> Result<(), TestError> {
        self.0.threads.lock().unwrap().push(thread::current().id());
        match step {
            Step::Pass => {}
            Step::Fail => return Err(TestError { what: "blocking", permanent: false }),
            Step::Panic => panic!("scripted panic in a blocking call"),
            Step::Block => {
                let mut gate = self.0.gate.lock().unwrap();
                gate.0 += 1;
                // Not for ever: a test that has failed waits for its blocking calls.
                let shut = |gate: &mut (usize, usize)| gate.1 == 0;
                gate = self.0.opened.wait_timeout_while(gate, PATIENCE, shut).unwrap().0;
                *gate = (gate.0 - 1, gate.1.saturating_sub(1));
            }
        }
        Ok(())
    }

    fn blocked(&self) -> usize {
        self.0.gate.lock().unwrap().0
    }

    fn open(&self, calls: usize) {
        self.0.gate.lock().unwrap().1 += calls;
        self.0.opened.notify_all();
    }

    fn live(&self) -> usize {
        self.0.live.load(SeqCst)
    }
}

/// It is not `Sync`.
struct Wire {
    number: usize,
    users: Cell<usize>,
    manager: Blocking,
}

impl Wire {
    /// Uses the connection, which nobody else may do meanwhile.
    fn talk(&self) {
        assert_eq!(self.users.replace(1), 0, "two users of one connection");
        thread::yield_now();
        self.users.set(0);
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.manager.0.threads.lock().unwrap().push(thread::current().id());
        if tokio::runtime::Handle::try_current().is_ok() {
            self.manager.0.dropped_inside.fetch_add(1, SeqCst);
        }
        self.manager.0.live.fetch_sub(1, SeqCst);
    }
}

impl ::r2d2::ManageConnection for Blocking {
    type Connection = Wire;
    type Error = TestError;

    fn connect(&self) -> Result<Wire, TestError> {
        self.take(self.next(&self.0.connect))?;
        let live = self.0.live.fetch_add(1, SeqCst) + 1;
        self.0.most_live.fetch_max(live, SeqCst);
        let number = self.0.connects.fetch_add(1, SeqCst) + 1;
        Ok(Wire { number, users: Cell::new(0), manager: self.clone() })
    }

    fn is_valid(&self, wire: &mut Wire) -> Result<(), TestError> {
        wire.talk();
        self.take(self.next(&self.0.is_valid))
    }

    fn has_broken(&self, _: &mut Wire) -> bool {
        match self.next(&self.0.has_broken) {
            Step::Panic => panic!("scripted panic in has_broken"),
            step => step == Step::Fail,
        }
    }
}

fn impatient(manager: &Blocking, max_size: usize) -> millpond::PoolBuilder<R2d2<Blocking>> {
    Pool::builder(R2d2::new(manager.clone()))
        .max_size(max_size)
        .check(CheckPolicy::Always)
        .backoff(MOMENT / 20, MOMENT / 20)
}

async fn say(pool: &Pool<R2d2<Blocking>>) -> usize {
    let wire = pool.acquire_timeout(PATIENCE).await.unwrap();
    wire.talk();
    wire.number
}

#[tokio::test]
async fn blocking_calls_and_drops_run_on_no_thread_of_tasks() {
    let manager = Blocking::default();
    let pool = impatient(&manager, 1).build().await.unwrap();
    assert_eq!((say(&pool).await, say(&pool).await), (1, 1));
    pool.acquire().await.unwrap().discard();
    exact(&pool).await;
    let threads = manager.0.threads.lock().unwrap().clone();
    assert_eq!(threads.len(), 4, "connect, two checks, drop");
    assert!(!threads.contains(&thread::current().id()));

    // What is detached belongs to the caller.
    let wire = r2d2::Connection::into_inner(pool.acquire().await.unwrap().detach());
    assert_eq!((wire.number, pool.metrics().closed.detached), (2, 1));
}

#[tokio::test]
async fn a_connection_that_is_dropped_unclosed_is_dropped_on_no_thread_of_tasks() {
    let manager = Blocking::default();
    let hooks = millpond::Hooks::new().before_acquire(|_| Box::pin(std::future::pending()));
    let pool = impatient(&manager, 1).hooks(hooks).min_idle(1).check_timeout(PATIENCE);
    let pool = pool.build().await.unwrap();
    eventually("it is open", || pool.metrics().counts.idle == 1).await;
    let mut acquire = Box::pin(pool.acquire());
    let checking = || pool.metrics().counts.checking == 1;
    eventually("the hook has it", || poll_once(acquire.as_mut()).is_pending() && checking()).await;
    drop(acquire);
    // Another is opened in its place.
    let opened = || manager.0.connects.load(SeqCst);
    eventually("it is dropped", || manager.live() < opened()).await;
    assert_eq!(pool.metrics().closed.abandoned, 1);
    assert!(!manager.0.threads.lock().unwrap().contains(&thread::current().id()));
    assert_eq!(manager.0.dropped_inside.load(SeqCst), 1, "as the other calls");
}

#[test]
fn those_who_wait_on_all_of_the_runtimes_blocking_threads_get_their_connections() {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(1).max_blocking_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let manager = Blocking::default();
        let pool = impatient(&manager, 2).build_lazy().unwrap();
        // Opened first, and then checked.
        for _ in 0..2 {
            let waiting = [(); 2].map(|()| {
                let pool = pool.clone();
                tokio::task::spawn_blocking(move || pool.acquire_blocking().unwrap().talk())
            });
            for waiting in waiting {
                joined(waiting).await;
            }
        }
        assert_eq!(exact(&pool).await.connect_failures, 0);
    });
}

/// Writes down what becomes of each connection, and on which thread.
#[derive(Clone, Debug, Default)]
struct Customizer {
    told: Arc<Mutex<Vec<(&'static str, usize)>>>,
    threads: Arc<Mutex<Vec<ThreadId>>>,
    refuses: Arc<AtomicUsize>,
}

impl Customizer {
    fn tell(&self, what: &'static str, wire: &Wire) {
        self.told.lock().unwrap().push((what, wire.number));
        self.threads.lock().unwrap().push(thread::current().id());
    }
}

impl ::r2d2::CustomizeConnection<Wire, TestError> for Customizer {
    fn on_acquire(&self, wire: &mut Wire) -> Result<(), TestError> {
        if self.refuses.swap(0, SeqCst) == wire.number {
            return Err(TestError { what: "set-up", permanent: false });
        }
        self.tell("opened", wire);
        Ok(())
    }

    fn on_release(&self, wire: Wire) {
        self.tell("released", &wire);
    }
}

#[tokio::test]
async fn an_r2d2_customizer_has_each_connection_first_and_last_where_it_may_block() {
    let (manager, customizer) = (Blocking::default(), Customizer::default());
    let adapter = R2d2::new(manager.clone()).customizer(Box::new(customizer.clone()));
    let pool = Pool::builder(adapter).max_size(1).check(CheckPolicy::Always);
    let pool = pool.check_timeout(PATIENCE).backoff(MOMENT / 20, MOMENT / 20);
    let pool = pool.build_lazy().unwrap();
    // As in r2d2, one that it refuses it does not see again.
    customizer.refuses.store(1, SeqCst);
    assert_eq!((say(&pool).await, pool.metrics().connect_failures), (2, 1));
    // A closed one.
    manager.0.has_broken.lock().unwrap().push(Step::Fail);
    assert_eq!((say(&pool).await, say(&pool).await), (2, 3));
    // One whose check is given up, and whose acquire is.
    manager.0.is_valid.lock().unwrap().push(Step::Block);
    let mut given_up = Box::pin(say(&pool));
    eventually("it is being checked", || {
        assert!(poll_once(given_up.as_mut()).is_pending());
        manager.blocked() == 1
    })
    .await;
    drop(given_up);
    assert_eq!(say(&pool).await, 4);
    manager.open(1);
    eventually("that one is released", || manager.live() == 1).await;
    // A detached one is its user's, once that takes it out; if it is dropped, it is the customizer's.
    let detached = pool.acquire().await.unwrap().detach();
    assert_eq!(r2d2::Connection::into_inner(detached).number, 4);
    assert_eq!(say(&pool).await, 5);
    drop(pool.acquire().await.unwrap().detach());
    // And that of a pool that is closed.
    assert_eq!(say(&pool).await, 6);
    pool.close().await;
    eventually("all are dropped", || manager.live() == 0).await;
    let told = customizer.told.lock().unwrap().clone();
    let of = |number| told.iter().filter(move |told| told.1 == number).map(|told| told.0);
    for number in [2, 3, 5, 6] {
        assert!(of(number).eq(["opened", "released"]), "{number}: {told:?}");
    }
    assert!(of(4).eq(["opened"]) && of(1).next().is_none(), "{told:?}");
    assert!(!customizer.threads.lock().unwrap().contains(&thread::current().id()));
}

#[tokio::test]
async fn whatever_an_r2d2_manager_does_costs_no_more_than_that_connection() {
    hush_scripted_panics();
    let manager = Blocking::default();
    let pool = impatient(&manager, 1).build().await.unwrap();
    manager.0.connect.lock().unwrap().extend([Step::Fail, Step::Panic]);
    assert_eq!(say(&pool).await, 1);
    assert_eq!(pool.metrics().connect_failures, 2);
    manager.0.is_valid.lock().unwrap().extend([Step::Fail, Step::Panic, Step::Pass]);
    assert_eq!((say(&pool).await, say(&pool).await, say(&pool).await), (2, 3, 3));
    manager.0.has_broken.lock().unwrap().extend([Step::Fail, Step::Panic]);
    assert_eq!((say(&pool).await, say(&pool).await, say(&pool).await), (3, 4, 5));
    let metrics = exact(&pool).await;
    assert_eq!((metrics.closed.failed_check, metrics.closed.broken), (2, 2));
    assert_eq!((manager.live(), manager.0.most_live.load(SeqCst)), (1, 1));
}

#[tokio::test]
async fn a_panic_in_an_r2d2_customizer_after_one_in_the_check_ends_nothing_more() {
    #[derive(Debug)]
    struct Panics;

    impl ::r2d2::CustomizeConnection<Wire, TestError> for Panics {
        fn on_release(&self, _: Wire) {
            panic!("scripted panic in on_release");
        }
    }

    hush_scripted_panics();
    let manager = Blocking::default();
    let adapter = R2d2::new(manager.clone()).customizer(Box::new(Panics));
    let pool = Pool::builder(adapter).max_size(1).check(CheckPolicy::Always).build().await.unwrap();
    manager.0.is_valid.lock().unwrap().push(Step::Panic);
    assert_eq!((say(&pool).await, say(&pool).await), (1, 2));
    assert_eq!(exact(&pool).await.closed.failed_check, 1);
}

#[tokio::test]
async fn a_connection_whose_check_takes_too_long_is_waited_for_and_never_used_again() {
    let manager = Blocking::default();
    let pool = impatient(&manager, 1).check_timeout(MOMENT).close_timeout(PATIENCE);
    let pool = pool.build().await.unwrap();
    assert_eq!(say(&pool).await, 1);
    manager.0.is_valid.lock().unwrap().push(Step::Block);
    let mut next = pin!(say(&pool));
    eventually("the check was given up", || {
        assert!(poll_once(next.as_mut()).is_pending());
        pool.metrics().counts.closing == 1
    })
    .await;
    let early = tokio::time::timeout(5 * MOMENT, next.as_mut()).await;
    assert!(early.is_err(), "its place is taken as long as it is in its check");
    assert_eq!((manager.blocked(), manager.live()), (1, 1));
    manager.open(1);
    assert_eq!(next.await, 2);
    assert_eq!(exact(&pool).await.closed.failed_check, 1);
    assert_eq!((manager.live(), manager.0.most_live.load(SeqCst)), (1, 1));
}

#[tokio::test]
async fn a_check_that_never_ends_keeps_its_connection_and_holds_up_nobody() {
    let manager = Blocking::default();
    let pool = impatient(&manager, 1).check_timeout(10 * MOMENT).close_timeout(MOMENT);
    let pool = pool.build().await.unwrap();
    assert_eq!(say(&pool).await, 1);
    manager.0.is_valid.lock().unwrap().push(Step::Block);
    // Its thread may begin before the check is given up, or after that.
    let next = tokio::spawn({
        let pool = pool.clone();
        async move { say(&pool).await }
    });
    eventually("it is being checked", || manager.blocked() == 1).await;
    assert_eq!(joined(next).await, 2);
    assert_eq!((manager.blocked(), manager.live()), (1, 2));
    manager.open(1);
    eventually("it is dropped when its check has ended", || manager.live() == 1).await;
    let metrics = exact(&pool).await;
    assert_eq!((metrics.created, metrics.counts.idle), (2, 1));
}

#[tokio::test]
async fn a_check_whose_caller_goes_away_takes_its_connection_along() {
    let manager = Blocking::default();
    let pool = impatient(&manager, 1).check_timeout(PATIENCE).build().await.unwrap();
    assert_eq!(say(&pool).await, 1);
    manager.0.is_valid.lock().unwrap().push(Step::Block);
    let mut given_up = Box::pin(say(&pool));
    eventually("it is being checked", || {
        assert!(poll_once(given_up.as_mut()).is_pending());
        manager.blocked() == 1
    })
    .await;
    drop(given_up);
    assert_eq!(say(&pool).await, 2);
    manager.open(1);
    eventually("it is dropped when its check has ended", || manager.live() == 1).await;
    assert_eq!(exact(&pool).await.closed.abandoned, 1);
}

#[tokio::test]
async fn what_a_connect_opens_too_late_is_dropped() {
    let manager = Blocking::default();
    let pool = impatient(&manager, 2).connect_timeout(50 * MOMENT).build().await.unwrap();
    manager.0.connect.lock().unwrap().push(Step::Block);
    assert_eq!(say(&pool).await, 1, "the second attempt");
    manager.open(1);
    let metrics = exact(&pool).await;
    assert_eq!((metrics.created, metrics.connect_failures), (1, 1));
    eventually("both were opened", || manager.0.connects.load(SeqCst) == 2).await;
    eventually("one was dropped", || manager.live() == 1).await;
}

#[test]
fn a_blocking_connect_holds_up_nobody_else_in_a_blocking_pool() {
    let manager = Blocking::default();
    let pool = impatient(&manager, 2).build_blocking().unwrap();
    drop(pool.acquire().unwrap());
    let held = pool.acquire().unwrap();
    manager.0.connect.lock().unwrap().push(Step::Block);
    let waiting = thread::spawn({
        let pool = pool.clone();
        move || pool.acquire_timeout(PATIENCE).map(|wire| wire.number).unwrap()
    });
    eventually_blocking("the second connect blocks", || manager.blocked() == 1);
    drop(held);
    assert_eq!(join(waiting), 1, "whoever waits gets the connection that comes back");
    for _ in 0..10 {
        // Each of them is checked on the pool's runtime, whose thread is free.
        pool.acquire_timeout(SECOND).unwrap().talk();
    }
    assert_eq!((manager.blocked(), pool.metrics().created), (1, 1));
    manager.open(1);
    eventually_blocking("the second is open", || pool.metrics().created == 2);
}

#[test]
fn the_end_of_a_blocking_pool_waits_for_no_call_that_hangs() {
    let manager = Blocking::default();
    let builder = impatient(&manager, 1).connect_timeout(MOMENT).close_timeout(MOMENT);
    let pool: blocking::Pool<_> = builder.build_blocking().unwrap();
    manager.0.connect.lock().unwrap().push(Step::Block);
    drop(pool.acquire_timeout(PATIENCE).unwrap());
    manager.0.is_valid.lock().unwrap().push(Step::Block);
    assert!(pool.acquire_timeout(MOMENT).is_err());
    eventually_blocking("its check hangs", || manager.blocked() == 2);
    join(thread::spawn(move || drop(pool)));
    assert_eq!(manager.blocked(), 2, "they hang on");
    manager.open(2);
    eventually_blocking("all is dropped", || manager.live() == 0);
}

/// Callers that go away wherever they are, while checks are slow, fail and panic: a connection is
/// never in two hands, and none is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_that_go_away_lose_no_r2d2_connection_and_share_none() {
    hush_scripted_panics();
    let manager = Blocking::default();
    let pool = impatient(&manager, 3).build().await.unwrap();
    let mut random = Random::new(7);
    let steps = (0..3_000).map(|_| match random.below(8) {
        0 => Step::Fail,
        1 => Step::Panic,
        2 => Step::Block,
        _ => Step::Pass,
    });
    manager.0.is_valid.lock().unwrap().extend(steps);
    // Whatever blocks goes on a little later.
    let gate = Sampler::start({
        let manager = manager.clone();
        move || manager.open(manager.blocked())
    });
    let mut tasks = JoinSet::new();
    for seed in 1..=6 {
        let pool = pool.clone();
        tasks.spawn(async move {
            let mut random = Random::new(seed);
            for _ in 0..60 {
                let mut said = Box::pin(say(&pool));
                for _ in 0..random.below(20) {
                    if poll_once(said.as_mut()).is_ready() {
                        said = Box::pin(say(&pool));
                    }
                    tokio::task::yield_now().await;
                }
                if random.below(2) == 0 {
                    said.await;
                }
            }
        });
    }
    tasks.join_all().await;
    let metrics = exact(&pool).await;
    eventually("only those in the pool are alive", || manager.live() == metrics.counts.alive())
        .await;
    gate.stop();
    assert!(metrics.closed.failed_check > 20 && metrics.closed.abandoned > 0, "{metrics:?}");
    assert_eq!(manager.0.connects.load(SeqCst) as u64, metrics.created);
    manager.0.is_valid.lock().unwrap().clear();
    let all = [pool.acquire().await, pool.acquire().await, pool.acquire().await];
    assert!(all.iter().all(Result::is_ok));
}
