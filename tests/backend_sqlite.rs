//! Pools of SQLite connections.

#![cfg(feature = "sqlite")]
#![allow(clippy::unwrap_used, reason = "these are tests, though clippy only sees their helpers")]

mod support;
use support::*;

use millpond::backends::sqlite::{SqliteConnection, SqliteDatabase, SqliteManager};
use millpond::{
    AcquireError, BuildError, CheckPolicy, Manager, Monitor, OperationError, Pool, PoolBuilder,
    Priority, Stage,
};
use rusqlite::{Connection, ErrorCode, TransactionBehavior, ffi};
use std::error::Error;
use std::fs;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

const SECOND: Duration = Duration::from_secs(1);

/// A file of its own for each test, with the table `t`.
struct File {
    _folder: TempDir,
    path: PathBuf,
}

impl File {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("test.db");
        let file = Self { _folder: folder, path };
        let db = file.open();
        db.execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE t (n INTEGER)").unwrap();
        file
    }

    /// Somebody else's connection.
    fn open(&self) -> Connection {
        Connection::open(&self.path).unwrap()
    }

    fn manager(&self) -> SqliteManager {
        SqliteManager::new(&self.path)
    }

    async fn pool(&self, size: usize) -> Pool<SqliteManager> {
        // On a machine that has other things to do a reset may take its time.
        let builder = Pool::builder(self.manager()).reset_timeout(PATIENCE);
        builder.max_size(size).build().await.unwrap()
    }

    fn rows(&self) -> i64 {
        rows(&self.open()).unwrap()
    }
}

fn rows(db: &Connection) -> rusqlite::Result<i64> {
    db.query_row("SELECT count(*) FROM t", [], |row| row.get(0))
}

fn insert(db: &Connection, n: i64) -> rusqlite::Result<usize> {
    db.execute("INSERT INTO t VALUES (?1)", [n])
}

/// Counts until it is interrupted.
fn count_for_ever(db: &Connection) -> rusqlite::Result<i64> {
    let endless = "WITH RECURSIVE c (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c)
                   SELECT count(*) FROM c";
    db.query_row(endless, [], |row| row.get(0))
}

/// Which of the connections it is: a mark that lasts as long as it does.
async fn mark(connection: &mut SqliteConnection) -> i64 {
    let marked = connection.call(|db| {
        db.execute_batch("CREATE TEMP TABLE IF NOT EXISTS mark AS SELECT random() AS mark")?;
        db.query_row("SELECT mark FROM mark", [], |row| row.get(0))
    });
    marked.await.map_err(|error: rusqlite::Error| error).unwrap()
}

/// Sends a call off, and gives it up once its work has begun.
async fn give_up_in_the_middle<T: Send + 'static>(
    connection: &mut SqliteConnection,
    work: impl FnOnce(&mut Connection) -> rusqlite::Result<T> + Send + 'static,
) {
    let (begins, mut begun) = tokio::sync::oneshot::channel();
    let call = connection.call(move |db| {
        begins.send(()).unwrap();
        work(db)
    });
    tokio::select! {
        biased;
        _ = &mut begun => {}
        _ = call => panic!("it ends by itself"),
    }
}

// Clean, dirty, broken.

#[tokio::test]
async fn a_clean_connection_is_used_again() {
    let file = File::new();
    let pool = file.pool(1).await;
    let first = mark(&mut pool.acquire().await.unwrap()).await;
    for n in 0..10 {
        let mut connection = pool.acquire().await.unwrap();
        assert_eq!(connection.call(move |db| insert(db, n)).await, Ok(1));
        let error = connection.call(|db| db.execute_batch("nonsense")).await.unwrap_err();
        assert!(error.to_string().contains("nonsense"), "{error}");
        insert(connection.in_place().unwrap(), n).unwrap();
    }
    assert_eq!(mark(&mut pool.acquire().await.unwrap()).await, first);
    let metrics = pool.metrics();
    assert_eq!((metrics.created, metrics.resets, metrics.counts.idle), (1, 0, 1), "{metrics:?}");
    assert_eq!(file.rows(), 20);
}

#[tokio::test]
async fn an_open_transaction_is_rolled_back_before_anybody_sees_it() {
    let file = File::new();
    let pool = file.pool(1).await;
    let first = mark(&mut pool.acquire().await.unwrap()).await;
    let leave = |db: &mut Connection| db.execute_batch("BEGIN; INSERT INTO t VALUES (1)");
    pool.acquire().await.unwrap().call(leave).await.unwrap();
    let mut connection = pool.acquire().await.unwrap();
    assert_eq!(connection.call(|db| rows(db)).await, Ok(0));
    assert_eq!(mark(&mut connection).await, first);
    leave(connection.in_place().unwrap()).unwrap();
    connection.release().await.unwrap();
    let mut connection = pool.acquire().await.unwrap();
    assert!(connection.in_place().unwrap().is_autocommit());
    assert_eq!(mark(&mut connection).await, first);
    assert_eq!(pool.metrics().resets, 2);
}

#[tokio::test]
#[expect(clippy::mem_forget, reason = "it is what the test is about")]
async fn a_connection_in_the_middle_of_its_rows_is_handed_to_nobody() {
    let file = File::new();
    let pool = file.pool(1).await;
    let mut connection = pool.acquire().await.unwrap();
    let db = connection.in_place().unwrap();
    db.execute_batch("INSERT INTO t VALUES (1), (2)").unwrap();
    let mut select = db.prepare("SELECT n FROM t").unwrap();
    let mut rows = select.query([]).unwrap();
    rows.next().unwrap().unwrap();
    std::mem::forget(rows);
    std::mem::forget(select);
    drop(connection);
    // SQLite cannot close it, but the pool is rid of it.
    eventually("it is out", || pool.metrics().closed.broken == 1).await;
    is_whole(&pool).await;
}

#[tokio::test]
async fn a_call_that_panics_panics_here_and_costs_the_connection() {
    hush_scripted_panics();
    let file = File::new();
    let pool = file.pool(1).await;
    let holder = tokio::spawn({
        let pool = pool.clone();
        async move {
            let mut connection = pool.acquire().await.unwrap();
            let panics = connection.call(|db| -> rusqlite::Result<()> {
                db.execute_batch("BEGIN; INSERT INTO t VALUES (1)")?;
                panic!("scripted in a call");
            });
            panics.await
        }
    });
    let panic = holder.await.unwrap_err().into_panic();
    assert_eq!(panic.downcast_ref::<&str>(), Some(&"scripted in a call"));
    assert_eq!(at_rest(&pool).await.closed.holder_panicked, 1);

    // Whoever catches it finds the connection gone, and so does the pool.
    let mut connection = pool.acquire().await.unwrap();
    let caught = tokio::task::LocalSet::new();
    let (error, in_place) = caught
        .run_until(async {
            let mut call = Box::pin(connection.call(|_| -> rusqlite::Result<()> {
                panic!("scripted in a call");
            }));
            std::future::poll_fn(|cx| {
                let poll = std::panic::AssertUnwindSafe(|| call.as_mut().poll(cx));
                match std::panic::catch_unwind(poll) {
                    Ok(poll) => poll.map(|_| panic!("it returns")),
                    Err(_) => std::task::Poll::Ready(()),
                }
            })
            .await;
            drop(call);
            (connection.call(|db| rows(db)).await, connection.in_place().map(drop))
        })
        .await;
    assert_eq!(error.unwrap_err().sqlite_error_code(), Some(ErrorCode::OperationAborted));
    assert_eq!(in_place.unwrap_err().sqlite_error_code(), Some(ErrorCode::OperationAborted));
    drop(connection);
    assert_eq!(at_rest(&pool).await.closed.broken, 1);
    is_whole(&pool).await;
    assert_eq!(file.rows(), 0);
}

// Giving up.

#[tokio::test]
async fn a_call_given_up_at_any_poll_leaves_nothing_half_done() {
    let file = File::new();
    let pool = file.pool(1).await;
    let first = mark(&mut pool.acquire().await.unwrap()).await;
    for polls in 0..64 {
        let before = file.rows();
        let mut connection = pool.acquire().await.unwrap();
        let pair = connection.call(|db| {
            db.execute_batch("BEGIN")?;
            insert(db, 1)?;
            insert(db, 2)?;
            db.execute_batch("COMMIT")
        });
        let done = given_up_after(polls, pair).await;
        if polls % 2 == 0 {
            // Its own next call waits until that one is over.
            let next = connection.call(|db| rows(db)).await.unwrap();
            assert!(next == before || next == before + 1 || next == before + 2, "{next}");
        }
        drop(connection);
        let mut connection = pool.acquire().await.unwrap();
        assert!(connection.in_place().unwrap().is_autocommit());
        let after = connection.call(|db| rows(db)).await.unwrap();
        assert!(after == before + 2 || done.is_none() && after == before, "{before} {after}");
        assert_eq!(mark(&mut connection).await, first);
    }
    let metrics = at_rest(&pool).await;
    assert_eq!(metrics.created, 1, "none had to be closed: {metrics:?}");
    assert!(metrics.resets > 0, "{metrics:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn among_many_calls_a_fifth_of_them_given_up_no_answer_goes_astray() {
    const TASKS: i64 = 8;
    const CALLS: i64 = 400;
    let file = File::new();
    let pool = file.pool(3).await;
    let mut tasks = JoinSet::new();
    for task in 0..TASKS {
        let pool = pool.clone();
        tasks.spawn(async move {
            let mut random = Random::new(task as u64 + 1);
            for call in 0..CALLS {
                let mut connection = pool.acquire().await.unwrap();
                let polls = match random.below(5) {
                    0 => random.below(40),
                    _ => usize::MAX,
                };
                let number = task * CALLS + call;
                let asked = connection.call(move |db| {
                    let sum = "WITH RECURSIVE c (n) AS
                               (SELECT 0 UNION ALL SELECT n + 1 FROM c WHERE n < 200)
                               SELECT ?1 + count(*) FROM c";
                    db.query_row(sum, [number], |row| row.get(0))
                });
                if let Some(answer) = given_up_after(polls, asked).await {
                    assert_eq!(answer, Ok(number + 201));
                }
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    is_whole(&pool).await;
    let metrics = pool.metrics();
    assert_eq!(metrics.created, 3, "none had to be closed: {metrics:?}");
    assert!(metrics.resets > 20, "{metrics:?}");
}

#[tokio::test]
async fn a_statement_that_nobody_waits_for_any_more_is_interrupted() {
    let file = File::new();
    let pool = file.pool(1).await;
    let first = mark(&mut pool.acquire().await.unwrap()).await;
    let mut connection = pool.acquire().await.unwrap();
    give_up_in_the_middle(&mut connection, |db| count_for_ever(db)).await;
    drop(connection);
    assert_eq!(mark(&mut pool.acquire().await.unwrap()).await, first);
    // An interrupt between two statements is lost, so there are more.
    let (release, released) = mpsc::channel::<()>();
    let mut connection = pool.acquire().await.unwrap();
    give_up_in_the_middle(&mut connection, move |db| {
        released.recv().unwrap_err();
        count_for_ever(db)
    })
    .await;
    drop(connection);
    drop(release);
    assert_eq!(mark(&mut pool.acquire().await.unwrap()).await, first);
    // Whoever keeps the connection has it back.
    let mut connection = pool.acquire().await.unwrap();
    // In a call of its own: the interrupt may hit the first statement of the one that is given up.
    connection.call(|db| db.execute_batch("BEGIN")).await.unwrap();
    give_up_in_the_middle(&mut connection, |db| count_for_ever(db)).await;
    assert_eq!(mark(&mut connection).await, first);
    drop(connection);
    let metrics = at_rest(&pool).await;
    assert_eq!((metrics.created, metrics.resets), (1, 3), "{metrics:?}");
}

#[tokio::test]
async fn a_connection_is_in_its_place_again_once_a_call_that_was_given_up_is_over() {
    hush_scripted_panics();
    let file = File::new();
    for (panics, code) in [(false, None), (true, Some(ErrorCode::OperationAborted))] {
        let mut connection = file.manager().connect().await.unwrap();
        let (release, released) = mpsc::channel::<()>();
        give_up_in_the_middle(&mut connection, move |_| {
            released.recv().unwrap_err();
            assert!(!panics, "scripted in a call");
            Ok(())
        })
        .await;
        let mut told = || match connection.in_place() {
            Ok(db) => rows(db).err().map(|error| panic!("it was left alone: {error}")),
            Err(error) => error.sqlite_error_code(),
        };
        assert_eq!(told(), Some(ErrorCode::ApiMisuse), "it is not over");
        drop(release);
        // Also in a task that has done as much as it may at once.
        while tokio::task::coop::has_budget_remaining() {
            assert!(poll_once(pin!(tokio::task::coop::consume_budget())).is_ready());
        }
        eventually_blocking("it is over", || told() != Some(ErrorCode::ApiMisuse));
        assert_eq!(told(), code);
    }
}

#[tokio::test]
async fn whoever_has_a_connection_after_a_call_that_was_given_up_is_told_of_no_interrupt() {
    /// Gives up a call that runs no statement, so that nothing but the end of the call can take the
    /// interrupt away.
    async fn give_up(connection: &mut SqliteConnection) -> mpsc::Sender<()> {
        let (release, released) = mpsc::channel::<()>();
        give_up_in_the_middle(connection, move |_| {
            released.recv().unwrap_err();
            Ok(())
        })
        .await;
        release
    }

    let file = File::new();
    let pool = file.pool(1).await;
    let mut connection = pool.acquire().await.unwrap();
    drop(give_up(&mut connection).await);
    eventually("it is over", || connection.in_place().is_ok()).await;
    assert!(!connection.in_place().unwrap().is_interrupted(), "in place");
    drop(give_up(&mut connection).await);
    let next = connection.call(|db| Ok::<_, rusqlite::Error>(db.is_interrupted()));
    assert_eq!(next.await, Ok(false), "in a call of its own");
    let release = give_up(&mut connection).await;
    drop(connection);
    drop(release);
    let mut connection = pool.acquire().await.unwrap();
    assert!(!connection.in_place().unwrap().is_interrupted(), "for the next user");
    assert_eq!(pool.metrics().created, 1);
}

#[tokio::test]
async fn a_call_that_waits_for_a_lock_and_is_given_up_waits_no_longer() {
    let file = File::new();
    let pool = Pool::builder(file.manager().busy_timeout(60 * SECOND)).max_size(1);
    let pool = pool.reset_timeout(10 * SECOND).build().await.unwrap();
    let mut other = file.open();
    let lock = other.transaction_with_behavior(TransactionBehavior::Immediate).unwrap();
    let mut connection = pool.acquire().await.unwrap();
    give_up_in_the_middle(&mut connection, |db| insert(db, 1)).await;
    drop(connection);
    let began = Instant::now();
    drop(pool.acquire().await.unwrap());
    assert!(began.elapsed() < SLACK, "{:?}", began.elapsed());
    drop(lock);
    let metrics = at_rest(&pool).await;
    assert_eq!((metrics.created, metrics.resets), (1, 1), "{metrics:?}");
    assert_eq!(file.rows(), 0);
}

#[tokio::test]
async fn a_call_that_does_not_end_costs_its_connection_and_no_slot() {
    let file = File::new();
    let builder = Pool::builder(file.manager()).max_size(1);
    let pool = builder.reset_timeout(SECOND / 10).close_timeout(SECOND / 10).build().await;
    let pool = pool.unwrap();
    let (release, released) = mpsc::channel::<()>();
    let (ends, ended) = mpsc::channel();
    let mut connection = pool.acquire().await.unwrap();
    let begin = "BEGIN IMMEDIATE; INSERT INTO t VALUES (1)";
    connection.call(|db| db.execute_batch(begin)).await.unwrap();
    give_up_in_the_middle(&mut connection, move |_| {
        released.recv().unwrap_err();
        ends.send(()).unwrap();
        Ok(())
    })
    .await;
    drop(connection);
    eventually("its reset is given up", || pool.metrics().closed.failed_reset == 1).await;
    // A new one in its place, which reads beside it.
    let mut connection = pool.acquire().await.unwrap();
    assert_eq!(connection.call(|db| rows(db)).await, Ok(0));
    drop(release);
    ended.recv().unwrap();
    // The old one is closed as soon as its call is over, and what it left is rolled back.
    assert_eq!(connection.call(|db| insert(db, 2)).await, Ok(1));
    drop(connection);
    is_whole(&pool).await;
    assert_eq!(file.rows(), 1);
}

#[tokio::test]
async fn a_statement_that_begins_when_the_pool_has_let_go_of_it_is_interrupted() {
    let file = File::new();
    let builder = Pool::builder(file.manager()).max_size(1);
    let pool = builder.reset_timeout(SECOND / 10).close_timeout(SECOND / 10).build().await;
    let pool = pool.unwrap();
    let (release, released) = mpsc::channel::<()>();
    let (ends, ended) = mpsc::channel();
    let mut connection = pool.acquire().await.unwrap();
    give_up_in_the_middle(&mut connection, move |db| {
        released.recv().unwrap_err();
        ends.send(count_for_ever(db).unwrap_err().sqlite_error_code()).unwrap();
        Ok(())
    })
    .await;
    drop(connection);
    eventually("its reset is given up", || pool.metrics().closed.failed_reset == 1).await;
    is_whole(&pool).await;
    drop(release);
    assert_eq!(ended.recv_timeout(PATIENCE), Ok(Some(ErrorCode::OperationInterrupted)));
}

// Threads.

#[tokio::test]
async fn a_call_does_not_hold_up_the_runtime() {
    let file = File::new();
    let pool = file.pool(1).await;
    let (send, receive) = mpsc::channel();
    let mut connection = pool.acquire().await.unwrap();
    // It waits for another task of this one thread.
    let call =
        connection.call(move |_| Ok::<_, rusqlite::Error>(receive.recv_timeout(PATIENCE).unwrap()));
    let (answer, ()) = tokio::join!(call, async { send.send(7).unwrap() });
    assert_eq!(answer, Ok(7));
}

#[test]
fn those_who_wait_on_all_of_the_runtimes_blocking_threads_get_their_connections() {
    let file = File::new();
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(1).max_blocking_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let builder = Pool::builder(file.manager()).max_size(2).check(CheckPolicy::Always);
        let pool = builder.reset_timeout(PATIENCE).build_lazy().unwrap();
        // They are opened, checked and reset meanwhile.
        for leave in ["SELECT 1", "BEGIN", "SELECT 1"] {
            let waiting = [(); 2].map(|()| {
                let pool = pool.clone();
                tokio::task::spawn_blocking(move || {
                    let mut connection = pool.acquire_blocking().unwrap();
                    let db = connection.in_place().unwrap();
                    assert!(db.is_autocommit());
                    db.query_row("SELECT 1", [], |_| Ok(())).unwrap();
                    db.prepare(leave).unwrap().raw_query().next().map(drop).unwrap();
                })
            });
            for waiting in waiting {
                joined(waiting).await;
            }
        }
        // And those that they wait for do their work.
        let mut held = [pool.acquire().await.unwrap(), pool.acquire().await.unwrap()];
        let waiting = [(); 2].map(|()| {
            let pool = pool.clone();
            tokio::task::spawn_blocking(move || drop(pool.acquire_blocking().unwrap()))
        });
        eventually("they wait", || pool.metrics().counts.waiters == 2).await;
        for held in &mut held {
            assert_eq!(held.call(|db| rows(db)).await, Ok(0));
        }
        drop(held);
        for waiting in waiting {
            joined(waiting).await;
        }
        assert_eq!(pool.metrics().created, 2);
        pool.close().await;
    });
}

#[test]
fn a_thread_without_a_runtime_uses_it_in_place_or_with_any_executor() {
    let file = File::new();
    let pool = Pool::builder(file.manager()).max_size(1).build_blocking().unwrap();
    for n in 0..3 {
        let mut connection = pool.acquire().unwrap();
        insert(connection.in_place().unwrap(), n).unwrap();
        pollster::block_on(connection.call(move |db| insert(db, n))).unwrap();
        connection.in_place().unwrap().execute_batch("BEGIN; INSERT INTO t VALUES (0)").unwrap();
    }
    assert_eq!(rows(pool.acquire().unwrap().in_place().unwrap()), Ok(6));
    let metrics = pool.metrics();
    assert_eq!((metrics.created, metrics.resets), (1, 3));
}

#[test]
fn a_connection_outlives_the_runtime_that_it_was_opened_on() {
    let file = File::new();
    let pool = Runtime::new().unwrap().block_on(async {
        let pool = file.pool(1).await;
        pool.acquire().await.unwrap().call(|db| insert(db, 1)).await.unwrap();
        pool
    });
    Runtime::new().unwrap().block_on(async {
        let mut connection = pool.acquire().await.unwrap();
        assert_eq!(connection.call(|db| rows(db)).await, Ok(1));
    });
    // And a call needs none at all.
    let mut connection = pool.acquire_blocking().unwrap();
    assert_eq!(pollster::block_on(connection.call(|db| rows(db))), Ok(1));
}

// Options.

#[tokio::test]
async fn the_options_reach_the_connection() {
    let folder = tempfile::tempdir().unwrap();
    let pragma = |db: &Connection, name: &str| -> String {
        let query = format!("SELECT CAST({name} AS TEXT) FROM pragma_{name}");
        db.query_row(&query, [], |row| row.get(0)).unwrap()
    };
    let manager = SqliteManager::new(folder.path().join("a"));
    assert_eq!(manager.path(), folder.path().join("a"));
    let mut connection = manager.connect().await.unwrap();
    let db = connection.in_place().unwrap();
    assert_eq!(
        (pragma(db, "journal_mode"), pragma(db, "foreign_keys")),
        ("wal".into(), "1".into())
    );
    let manager = SqliteManager::new(folder.path().join("b")).wal(false).foreign_keys(false);
    let manager = manager.init(|db| db.execute_batch("CREATE TEMP TABLE made AS SELECT 5 AS n"));
    let pool = Pool::builder(manager).build().await.unwrap();
    let mut connection = pool.acquire().await.unwrap();
    let db = connection.in_place().unwrap();
    let delete = ("delete".into(), "0".into());
    assert_eq!((pragma(db, "journal_mode"), pragma(db, "foreign_keys")), delete);
    assert_eq!(db.query_row("SELECT n FROM made", [], |row| row.get(0)), Ok(5));
}

#[tokio::test]
async fn what_is_done_on_opening_comes_before_the_file_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let manager = SqliteManager::new(folder.path().join("pages"));
    // That of a file can only be set before there is anything in it.
    let manager = manager.on_open(|db| db.pragma_update(None, "page_size", 8192));
    let mut connection = manager.connect().await.unwrap();
    let db = connection.in_place().unwrap();
    assert_eq!(db.pragma_query_value(None, "page_size", |row| row.get(0)), Ok(8192));
    let fails = manager.on_open(|db| db.execute_batch("nonsense"));
    assert!(fails.connect().await.unwrap_err().to_string().contains("nonsense"));
}

#[tokio::test]
async fn a_busy_timeout_is_as_long_as_sqlite_can_count_or_as_init_has_it() {
    let file = File::new();
    let patience = |db: &Connection| db.pragma_query_value(None, "busy_timeout", |row| row.get(0));
    let mut connection = file.manager().busy_timeout(Duration::MAX).connect().await.unwrap();
    assert_eq!(patience(connection.in_place().unwrap()), Ok(i32::MAX));
    for own in [Duration::ZERO, SECOND] {
        let manager = file.manager().busy_timeout(own);
        let manager = manager.init(|db| db.busy_timeout(Duration::from_millis(123)));
        let mut connection = manager.connect().await.unwrap();
        assert_eq!(connection.call(|db| rows(db)).await, Ok(0));
        assert_eq!(patience(connection.in_place().unwrap()), Ok(123));
        let mut connection = file.manager().busy_timeout(own).connect().await.unwrap();
        assert_eq!(connection.call(|db| rows(db)).await, Ok(0));
        let millis = i32::try_from(own.as_millis()).unwrap();
        assert_eq!(patience(connection.in_place().unwrap()), Ok(millis));
    }
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_path_may_be_any_that_the_system_has() {
    use std::os::unix::ffi::OsStrExt;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(std::ffi::OsStr::from_bytes(b"caf\xe9.db"));
    let builder = Pool::builder(SqliteManager::new(&path)).max_size(1).check(CheckPolicy::Always);
    let pool = builder.build().await.unwrap();
    drop(pool.acquire().await.unwrap());
    drop(pool.acquire().await.unwrap());
    assert_eq!(pool.metrics().created, 1);
    fs::remove_file(&path).unwrap();
    drop(pool.acquire().await.unwrap());
    assert_eq!((pool.metrics().created, pool.metrics().closed.failed_check), (2, 1));
}

#[tokio::test]
async fn a_connection_that_only_reads_cannot_write() {
    let file = File::new();
    let pool = Pool::builder(file.manager().read_only(true)).build().await.unwrap();
    let mut connection = pool.acquire().await.unwrap();
    let error = connection.call(|db| insert(db, 1)).await.unwrap_err();
    assert_eq!(error.sqlite_error_code(), Some(ErrorCode::ReadOnly));
    assert_eq!(connection.call(|db| rows(db)).await, Ok(0));
}

#[tokio::test]
async fn a_statement_waits_for_a_lock_as_long_as_it_may() {
    let file = File::new();
    let mut other = file.open();
    let lock = other.transaction_with_behavior(TransactionBehavior::Immediate).unwrap();
    for limit in [Duration::ZERO, SECOND / 5] {
        let pool = Pool::builder(file.manager().busy_timeout(limit)).build().await.unwrap();
        let mut connection = pool.acquire().await.unwrap();
        let began = Instant::now();
        let call = tokio::time::timeout(PATIENCE, connection.call(|db| insert(db, 1)));
        let error = call.await.expect("it waits no longer").unwrap_err();
        assert_eq!(error.sqlite_error_code(), Some(ErrorCode::DatabaseBusy));
        let took = began.elapsed();
        assert!(took >= limit && took < limit + SLACK, "{took:?}");
        let began = Instant::now();
        insert(connection.in_place().unwrap(), 1).unwrap_err();
        let took = began.elapsed();
        assert!(took >= limit && took < limit + SLACK, "in place: {took:?}");
    }
    // And it has what it waited for.
    let pool = file.pool(1).await;
    let mut connection = pool.acquire().await.unwrap();
    let (begins, begun) = tokio::sync::oneshot::channel();
    let call = connection.call(move |db| {
        begins.send(()).unwrap();
        insert(db, 1)
    });
    let unlock = async {
        begun.await.unwrap();
        drop(lock);
    };
    assert_eq!(tokio::join!(call, unlock).0, Ok(1));
}

// What is permanent.

#[tokio::test]
async fn a_place_where_no_database_can_be_is_tried_once_and_all_who_wait_hear_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("text");
    fs::write(&text, "no database, but long enough to be one ".repeat(100)).unwrap();
    let missing = folder.path().join("missing");
    let fifth = File::new();
    let mut damaged = fs::read(&fifth.path).unwrap();
    damaged[100..].fill(7);
    fs::write(&fifth.path, damaged).unwrap();
    for (manager, code, word) in [
        (SqliteManager::new(&text), ErrorCode::NotADatabase, "not a database"),
        (SqliteManager::new(folder.path()), ErrorCode::CannotOpen, "unable to open"),
        (SqliteManager::new(missing.join("a")), ErrorCode::CannotOpen, "unable to open"),
        (SqliteManager::new(&missing).create(false), ErrorCode::CannotOpen, "unable to open"),
        (SqliteManager::new(&missing).read_only(true), ErrorCode::CannotOpen, "unable to open"),
        (SqliteManager::new(":memory:"), ErrorCode::ApiMisuse, "one connection"),
        (SqliteManager::new(""), ErrorCode::ApiMisuse, "one connection"),
        (SqliteManager::new("file:a?mode=memory"), ErrorCode::ApiMisuse, "one connection"),
        (fifth.manager(), ErrorCode::DatabaseCorrupt, "malformed"),
    ] {
        let shown = format!("{manager:?}");
        let pool = Pool::builder(manager).max_size(4).build().await.unwrap();
        let mut waiters = JoinSet::new();
        for _ in 0..8 {
            let pool = pool.clone();
            waiters.spawn(async move { refusal(pool.acquire().await) });
        }
        while let Some(error) = waiters.join_next().await {
            let error = error.unwrap();
            let OperationError::Failed(error) = &error.error else { panic!("{error}") };
            assert_eq!(error.sqlite_error_code(), Some(code), "{shown}: {error}");
            assert!(error.to_string().contains(word), "{shown}: {error}");
        }
        assert_eq!(pool.metrics().connect_failures, 1, "{shown}");
    }
    assert!(!missing.exists());
}

#[tokio::test]
async fn a_locked_file_is_tried_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("locked");
    let mut other = Connection::open(&path).unwrap();
    other.execute_batch("CREATE TABLE t (n INTEGER)").unwrap();
    let lock = other.transaction_with_behavior(TransactionBehavior::Exclusive).unwrap();
    let manager = SqliteManager::new(&path).busy_timeout(Duration::ZERO);
    let pool = Pool::builder(manager).build().await.unwrap();
    pool.warm_up(1).await.unwrap_err();
    let AcquireError::Timeout(timeout) = pool.acquire_timeout(SECOND / 5).await.unwrap_err() else {
        panic!("it is not permanent");
    };
    assert_eq!(timeout.stage(), Stage::ConnectFailing);
    assert!(timeout.source().unwrap().to_string().contains("locked"));
    drop(lock);
    assert_eq!(pool.acquire().await.unwrap().call(|db| rows(db)).await, Ok(0));
}

#[tokio::test]
async fn by_default_those_who_wait_for_a_locked_file_are_told_that_it_is_locked() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("locked");
    let mut other = Connection::open(&path).unwrap();
    other.execute_batch("CREATE TABLE t (n INTEGER)").unwrap();
    let lock = other.transaction_with_behavior(TransactionBehavior::Exclusive).unwrap();
    let pool = Pool::builder(SqliteManager::new(&path)).build().await.unwrap();
    // Sooner than by default, which is 5 s.
    let AcquireError::Timeout(timeout) = pool.acquire_timeout(2 * SECOND).await.unwrap_err() else {
        panic!("it is not permanent");
    };
    assert!(timeout.last_connect_error().unwrap().to_string().contains("locked"), "{timeout}");
    drop(lock);
}

#[tokio::test]
async fn those_who_wait_for_a_set_up_that_writes_are_told_that_the_file_is_locked() {
    let file = File::new();
    let mut other = file.open();
    let lock = other.transaction_with_behavior(TransactionBehavior::Immediate).unwrap();
    let manager = file.manager().busy_timeout(10 * PATIENCE).init(|db| insert(db, 1).map(drop));
    let error = Pool::builder(manager).min_idle(1).build().await.unwrap_err();
    let BuildError::Connect(error) = error else { panic!("{error}") };
    let OperationError::Failed(error) = &error.error else { panic!("{error}") };
    assert_eq!(error.sqlite_error_code(), Some(ErrorCode::DatabaseBusy));
    drop(lock);
}

#[test]
fn of_a_uri_nothing_says_that_it_cannot_be_opened_later() {
    let file = File::new();
    let uri = SqliteManager::new(format!("file:{}", file.path.display()));
    let missing = SqliteManager::new(file.path.join("no folder")).create(false);
    let error = || rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_CANTOPEN), None);
    assert!(missing.is_permanent(&error()));
    assert!(!uri.read_only(true).is_permanent(&error()));
}

#[tokio::test]
async fn a_connect_that_is_given_up_waits_for_a_lock_no_longer() {
    let file = File::new();
    let mut other = file.open();
    let lock = other.transaction_with_behavior(TransactionBehavior::Immediate).unwrap();
    let (tell, told) = mpsc::channel();
    let (begins, mut begun) = tokio::sync::oneshot::channel();
    let begins = std::sync::Mutex::new(Some(begins));
    let manager = file.manager().busy_timeout(10 * PATIENCE).init(move |db| {
        begins.lock().unwrap().take().unwrap().send(()).unwrap();
        let inserted = insert(db, 1);
        tell.send(inserted.as_ref().map_err(rusqlite::Error::sqlite_error_code).copied()).unwrap();
        inserted.map(drop)
    });
    tokio::select! {
        biased;
        _ = &mut begun => {}
        _ = manager.connect() => panic!("it ends by itself"),
    }
    assert_eq!(told.recv_timeout(PATIENCE), Ok(Err(Some(ErrorCode::DatabaseBusy))));
    drop(lock);
}

#[tokio::test]
async fn an_init_that_fails_is_tried_again_and_one_that_panics_too() {
    hush_scripted_panics();
    let file = File::new();
    let pool = Pool::builder(file.manager().init(|db| {
        if rows(db)? == 0 {
            return db.execute_batch("INSERT INTO t VALUES (1); SELECT nonsense");
        }
        if rows(db)? == 1 {
            insert(db, 2)?;
            panic!("scripted in init");
        }
        Ok(())
    }));
    let pool = pool.build().await.unwrap();
    drop(pool.acquire().await.unwrap());
    assert_eq!(pool.metrics().connect_failures, 2);
}

// Checks.

#[cfg(unix)]
#[tokio::test]
async fn a_connection_to_a_file_that_was_replaced_is_not_handed_out() {
    let file = File::new();
    let builder = Pool::builder(file.manager()).max_size(1).check(CheckPolicy::Always);
    let pool = builder.build().await.unwrap();
    pool.acquire().await.unwrap().call(|db| insert(db, 1)).await.unwrap();
    let first = mark(&mut pool.acquire().await.unwrap()).await;
    assert_eq!(mark(&mut pool.acquire().await.unwrap()).await, first);
    // A backup is put in its place.
    let backup = File::new();
    for n in 0..3 {
        insert(&backup.open(), n).unwrap();
    }
    for end in ["-wal", "-shm"] {
        drop(fs::remove_file(format!("{}{end}", file.path.display())));
    }
    fs::rename(&backup.path, &file.path).unwrap();
    let mut connection = pool.acquire().await.unwrap();
    assert_eq!(connection.call(|db| rows(db)).await, Ok(3));
    assert_ne!(mark(&mut connection).await, first);
    assert_eq!(pool.metrics().closed.failed_check, 1);
}

#[cfg(unix)]
#[tokio::test]
async fn a_connection_by_a_link_that_leads_elsewhere_now_is_not_handed_out() {
    use std::os::unix::fs::symlink;
    let (old, new) = (File::new(), File::new());
    insert(&new.open(), 1).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (link, next) = (folder.path().join("current"), folder.path().join("next"));
    symlink(&old.path, &link).unwrap();
    let builder = Pool::builder(SqliteManager::new(&link)).max_size(1).check(CheckPolicy::Always);
    let pool = builder.build().await.unwrap();
    for _ in 0..2 {
        assert_eq!(pool.acquire().await.unwrap().call(|db| rows(db)).await, Ok(0));
    }
    symlink(&new.path, &next).unwrap();
    fs::rename(&next, &link).unwrap();
    assert_eq!(pool.acquire().await.unwrap().call(|db| rows(db)).await, Ok(1));
    assert_eq!((pool.metrics().created, pool.metrics().closed.failed_check), (2, 1));
}

#[tokio::test]
async fn on_a_locked_file_a_check_ends_at_its_limit_and_an_acquire_at_its_deadline() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("locked");
    let manager = SqliteManager::new(&path).wal(false).busy_timeout(60 * SECOND);
    let pool = Pool::builder(manager).max_size(1).check(CheckPolicy::Always);
    let pool = pool.check_timeout(SECOND / 5).acquire_timeout(SECOND).build().await.unwrap();
    drop(pool.acquire().await.unwrap());
    pool.maintenance().run_once().await;
    let mut other = Connection::open(&path).unwrap();
    let lock = other.transaction_with_behavior(TransactionBehavior::Exclusive).unwrap();
    let began = Instant::now();
    let acquire = async {
        assert!(matches!(pool.acquire().await, Err(AcquireError::Timeout(_))));
        began.elapsed()
    };
    let check = async {
        eventually("the check has failed", || pool.metrics().closed.failed_check == 1).await;
        began.elapsed()
    };
    let (acquire, check) = tokio::join!(acquire, check);
    assert!(check >= SECOND / 5 && check < SECOND / 5 + SLACK, "{check:?}");
    assert!(acquire >= SECOND && acquire < SECOND + SLACK, "{acquire:?}");
    drop(lock);
    is_whole(&pool).await;
}

// A writer and readers.

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_writers_wait_in_line_and_none_is_told_that_the_file_is_locked() {
    const TASKS: i64 = 12;
    const EACH: i64 = 20;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("line");
    // Without patience any two that write at once would fail.
    let manager = SqliteManager::new(&path).busy_timeout(Duration::ZERO);
    let database = SqliteDatabase::open(manager, 3).await.unwrap();
    let mut writer = database.writer().acquire().await.unwrap();
    writer.call(|db| db.execute_batch("CREATE TABLE t (n INTEGER)")).await.unwrap();
    drop(writer);
    let mut tasks = JoinSet::new();
    for _ in 0..TASKS {
        let database = database.clone();
        tasks.spawn(async move {
            for _ in 0..EACH {
                let mut writer = database.writer().acquire().await.unwrap();
                // Two rows at a time, so that a reader sees an even number.
                let both = writer.call(|db| {
                    let both = db.transaction()?;
                    rows(&both)?;
                    insert(&both, 1)?;
                    insert(&both, 2)?;
                    both.commit()
                });
                both.await.unwrap();
                drop(writer);
                let mut reader = database.readers().acquire().await.unwrap();
                assert_eq!(reader.call(|db| rows(db)).await.unwrap() % 2, 0);
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    let mut reader = database.readers().acquire().await.unwrap();
    assert_eq!(reader.call(|db| rows(db)).await, Ok(2 * TASKS * EACH));
    let error = reader.call(|db| insert(db, 1)).await.unwrap_err();
    assert_eq!(error.sqlite_error_code(), Some(ErrorCode::ReadOnly));
    drop(reader);
    is_whole(database.readers()).await;
    is_whole(database.writer()).await;
    assert_eq!(database.writer().metrics().created, 1);
    database.close().await;
    assert!(!folder.path().join("line-wal").exists(), "the log is in the file");
}

#[tokio::test]
async fn a_connection_that_is_dropped_in_the_middle_of_a_call_leaves_no_log() {
    hush_scripted_panics();
    let file = File::new();
    let log = file.path.with_extension("db-wal");
    for panics in [false, true] {
        let mut connection = file.manager().connect().await.unwrap();
        assert_eq!(connection.call(|db| insert(db, 1)).await, Ok(1));
        give_up_in_the_middle(&mut connection, move |db| {
            let interrupted = count_for_ever(db);
            // As if it came between two statements.
            db.get_interrupt_handle().interrupt();
            assert!(!panics, "scripted in a call");
            interrupted
        })
        .await;
        assert!(log.exists());
        drop(connection);
        eventually("the log is in the file", || !log.exists()).await;
    }
    assert_eq!(file.rows(), 2);
}

#[tokio::test]
async fn a_call_that_was_given_up_does_not_keep_the_log_out_of_the_file() {
    let file = File::new();
    let log = file.path.with_extension("db-wal");
    for dropped in [false, true] {
        let database = SqliteDatabase::open(file.manager(), 1).await.unwrap();
        let mut writer = database.writer().acquire().await.unwrap();
        writer.call(|db| insert(db, 1)).await.unwrap();
        give_up_in_the_middle(&mut writer, |db| count_for_ever(db)).await;
        writer.release().await.unwrap();
        let mut reader = database.readers().acquire().await.unwrap();
        reader.call(|db| rows(db)).await.unwrap();
        drop(reader);
        assert!(log.exists());
        if dropped {
            drop(database);
            eventually("the log is in the file", || !log.exists()).await;
        } else {
            database.close().await;
            assert!(!log.exists(), "it is in the file");
        }
    }
    assert_eq!(file.rows(), 2);
}

#[tokio::test]
async fn the_writer_of_a_database_that_is_closed_outlives_readers_that_come_back_meanwhile() {
    let file = File::new();
    let log = file.path.with_extension("db-wal");
    for (leave, late) in [("BEGIN", false), ("BEGIN", true), ("SELECT 1", true)] {
        let settings = |pool: PoolBuilder<_>| pool.reset_timeout(PATIENCE).close_timeout(PATIENCE);
        let database = SqliteDatabase::open_with(file.manager(), 1, settings).await.unwrap();
        database.writer().acquire().await.unwrap().call(|db| insert(db, 1)).await.unwrap();
        let mut reader = database.readers().acquire_owned().await.unwrap();
        reader.call(move |db| db.execute_batch(leave)).await.unwrap();
        // Unless it is late, it is being reset when the close begins.
        let reader = late.then_some(reader);
        tokio::join!(database.close(), async { drop(reader) });
        assert!(!log.exists(), "it is in the file, after {leave}");
    }
    assert_eq!(file.rows(), 3);
}

#[tokio::test]
async fn a_close_of_a_database_waits_for_its_writer_to_come_back() {
    let file = File::new();
    let log = file.path.with_extension("db-wal");
    for (leave, late) in [("BEGIN", false), ("BEGIN", true), ("SELECT 1", true), ("", false)] {
        let settings = |pool: PoolBuilder<_>| pool.reset_timeout(PATIENCE).close_timeout(PATIENCE);
        let database = SqliteDatabase::open_with(file.manager(), 1, settings).await.unwrap();
        let mut writer = database.writer().acquire_owned().await.unwrap();
        writer.call(|db| insert(db, 1)).await.unwrap();
        if leave.is_empty() {
            give_up_in_the_middle(&mut writer, |db| count_for_ever(db)).await;
        } else {
            writer.call(move |db| db.execute_batch(leave)).await.unwrap();
        }
        // Unless it is late, it is being reset when the close begins.
        let writer = late.then_some(writer);
        tokio::join!(database.close(), async { drop(writer) });
        assert!(!log.exists(), "it is in the file, after {leave}");
    }
    assert_eq!(file.rows(), 4);
}

#[tokio::test]
async fn the_close_of_a_database_gives_all_its_readers_one_and_the_same_time() {
    let file = File::new();
    let database = SqliteDatabase::open(file.manager(), 2).await.unwrap();
    let readers = database.readers();
    let _held = readers.acquire().await.unwrap();
    let mut stuck = readers.acquire().await.unwrap();
    let (gate, closed) = mpsc::channel::<()>();
    // Until the gate is dropped.
    give_up_in_the_middle(&mut stuck, move |_| Ok(closed.recv())).await;
    stuck.discard();
    let limit = readers.config().reset_timeout + readers.config().close_timeout;
    tokio::time::pause();
    let began = tokio::time::Instant::now();
    let mut close = pin!(database.close());
    assert!(poll_once(close.as_mut()).is_pending());
    assert!(matches!(readers.acquire().await, Err(AcquireError::Closed)), "not `Draining`");
    eventually("it is the writer's turn", || {
        assert!(poll_once(close.as_mut()).is_pending());
        database.writer().is_closed()
    })
    .await;
    let took = began.elapsed();
    assert!(took >= limit && took < limit + SECOND / 10, "{took:?}");
    drop(gate);
}

#[tokio::test]
async fn a_close_of_a_database_that_is_given_up_leaves_neither_pool_open() {
    let file = File::new();
    let database = SqliteDatabase::open(file.manager(), 1).await.unwrap();
    drop(database.readers().acquire().await.unwrap());
    eventually("a reader is idle", || database.readers().counts().idle == 1).await;
    let mut close = Box::pin(database.close());
    assert!(poll_once(close.as_mut()).is_pending(), "the reader is being closed");
    assert!(!database.writer().is_closed(), "the writer goes last");
    drop(close);
    for pool in [database.readers(), database.writer()] {
        assert!(pool.is_closed());
        assert!(matches!(pool.acquire().await, Err(AcquireError::Closed)));
    }
}

#[tokio::test]
async fn the_writer_of_a_database_that_is_dropped_outlives_its_readers() {
    let file = File::new();
    let database = SqliteDatabase::open(file.manager(), 1).await.unwrap();
    database.writer().acquire().await.unwrap().call(|db| insert(db, 1)).await.unwrap();
    let mut reader = database.readers().acquire_owned().await.unwrap();
    assert_eq!(reader.call(|db| rows(db)).await, Ok(1));
    let writer = database.writer().downgrade();
    drop(database);
    assert!(writer.upgrade().is_some(), "a reader is open");
    drop(reader);
    let log = file.path.with_extension("db-wal");
    eventually("the log is in the file", || !log.exists()).await;
    assert!(writer.upgrade().is_none());
    assert_eq!(file.rows(), 1);
}

#[test]
fn a_database_that_is_dropped_without_a_runtime_leaves_no_log() {
    let file = File::new();
    let runtime = Runtime::new().unwrap();
    let database = runtime.block_on(async {
        let database = SqliteDatabase::open(file.manager(), 2).await.unwrap();
        database.writer().acquire().await.unwrap().call(|db| insert(db, 1)).await.unwrap();
        let mut reader = database.readers().acquire().await.unwrap();
        assert_eq!(reader.call(|db| rows(db)).await, Ok(1));
        drop(reader);
        database
    });
    drop(runtime);
    let log = file.path.with_extension("db-wal");
    assert!(log.exists());
    drop(database);
    assert!(!log.exists());
    assert_eq!(file.rows(), 1);
}

#[tokio::test]
async fn readers_do_not_wait_for_the_writer() {
    let file = File::new();
    let database = SqliteDatabase::open_with(file.manager(), 2, |pool| pool.name("shop"));
    let database = database.await.unwrap();
    let monitor = Monitor::new();
    for (pool, name) in [(database.writer(), "shop-writer"), (database.readers(), "shop-readers")] {
        assert_eq!(&*pool.config().name, name);
        monitor.add(pool).unwrap();
    }
    let mut writer = database.writer().acquire().await.unwrap();
    writer.call(|db| db.execute_batch("BEGIN; INSERT INTO t VALUES (1)")).await.unwrap();
    let mut readers = Vec::new();
    for _ in 0..2 {
        let mut reader = database.readers().acquire().await.unwrap();
        assert_eq!(reader.call(|db| rows(db)).await, Ok(0));
        readers.push(reader);
    }
    writer.call(|db| db.execute_batch("COMMIT")).await.unwrap();
    for reader in &mut readers {
        assert_eq!(reader.call(|db| rows(db)).await, Ok(1));
    }
}

#[tokio::test]
async fn a_database_has_one_connection_that_writes_whatever_its_pools_may_be_resized_to() {
    let file = File::new();
    let settings = |pool: PoolBuilder<_>| pool.capacity(8).reserved(Priority::High, 1);
    let database = SqliteDatabase::open_with(file.manager(), 2, settings).await.unwrap();
    assert_eq!(database.readers().config().reserved, (Priority::High, 1));
    let error = database.writer().resize(4).unwrap_err();
    assert_eq!(error.to_string(), "max_size is 4, but it must be at most capacity, which is 1");
    database.readers().resize(8).unwrap();
}

#[test]
fn threads_that_write_wait_in_line_and_the_close_of_their_database_leaves_no_log() {
    let file = File::new();
    let log = file.path.with_extension("db-wal");
    // Without patience any two that write at once would fail.
    let manager = file.manager().busy_timeout(Duration::ZERO);
    let settings = |pool: PoolBuilder<_>| pool.name("shop");
    let database = SqliteDatabase::open_blocking_with(manager, 2, settings).unwrap();
    assert_eq!(&*database.writer().config().name, "shop-writer");
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..20 {
                    insert(database.writer().acquire().unwrap().in_place().unwrap(), 1).unwrap();
                    rows(database.readers().acquire().unwrap().in_place().unwrap()).unwrap();
                }
            });
        }
    });
    let mut reader = database.readers().acquire_owned().unwrap();
    let error = insert(reader.in_place().unwrap(), 1).unwrap_err();
    assert_eq!(error.sqlite_error_code(), Some(ErrorCode::ReadOnly));
    reader.in_place().unwrap().execute_batch("BEGIN").unwrap();
    // It is being reset when the close begins.
    drop(reader);
    assert!(log.exists());
    database.close();
    assert!(!log.exists(), "it is in the file");
    assert!(matches!(database.readers().acquire(), Err(AcquireError::Closed)));
    assert!(matches!(database.writer().acquire(), Err(AcquireError::Closed)));
    assert_eq!(file.rows(), 80);
}

#[test]
fn the_writer_of_a_database_for_threads_that_is_dropped_outlives_its_readers() {
    let file = File::new();
    let log = file.path.with_extension("db-wal");
    for held in [false, true] {
        let database = SqliteDatabase::open_blocking(file.manager(), 1).unwrap();
        insert(database.writer().acquire().unwrap().in_place().unwrap(), 1).unwrap();
        let mut reader = database.readers().acquire_owned().unwrap();
        rows(reader.in_place().unwrap()).unwrap();
        let writer = database.writer().downgrade();
        if held {
            drop(database);
            assert!(writer.upgrade().is_some(), "a reader is open");
            drop(reader);
            eventually_blocking("the log is in the file", || !log.exists());
        } else {
            drop(reader);
            drop(database);
            assert!(!log.exists(), "it is in the file");
        }
        eventually_blocking("nobody is left", || writer.upgrade().is_none());
    }
    assert_eq!(file.rows(), 2);
}

#[test]
fn whoever_drops_the_last_readers_of_a_database_for_threads_waits_for_its_writer() {
    let file = File::new();
    let log = file.path.with_extension("db-wal");
    let database = SqliteDatabase::open_blocking(file.manager(), 1).unwrap();
    insert(database.writer().acquire().unwrap().in_place().unwrap(), 1).unwrap();
    let readers = database.readers().clone();
    rows(readers.acquire().unwrap().in_place().unwrap()).unwrap();
    drop(database);
    drop(readers);
    assert!(!log.exists(), "it is in the file");
}

#[tokio::test]
async fn a_database_that_cannot_be_opened_says_so_at_once() {
    let missing = SqliteManager::new("/no/such/folder/at-all.db");
    let BuildError::Connect(error) = SqliteDatabase::open(missing, 2).await.unwrap_err() else {
        panic!("it is the connect that fails");
    };
    assert!(error.to_string().contains("unable to open"), "{error}");
    let file = File::new();
    let none = SqliteDatabase::open(file.manager(), 0).await.unwrap_err();
    assert!(matches!(none, BuildError::Config(error) if error.field() == "max_size"));
}
