//! Pools of pg-wired's connections, raw and shared, on a PostgreSQL server that dies, and with
//! futures that are dropped half-way.

#![cfg(feature = "pg-wired")]
#![allow(clippy::unwrap_used, reason = "these are tests, though clippy only sees their helpers")]

mod support;
use support::*;

use millpond::backends::pg_wired::{Connection, Options, PgWiredManager};
use millpond::{
    AcquireError, CheckPolicy, Hooks, Manager, OperationError, Pool, PoolBuilder, PoolMetrics,
    RotateError,
};
use pg_wired::{AsyncConn, PgWireError, TlsMode, WireConn};
use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::task::JoinSet;

const MOMENT: Duration = Duration::from_millis(100);

/// What the tests do with a connection of either kind.
trait Speaks: Send + 'static {
    /// The first column of the first row, or nothing.
    fn ask(&mut self, sql: &str) -> impl Future<Output = Result<String, PgWireError>> + Send;
}

fn first(rows: &[pg_wired::protocol::types::RawRow]) -> String {
    let cell = rows.first().and_then(|row| row.cell(0)).unwrap_or_default();
    String::from_utf8(cell.to_vec()).unwrap()
}

impl Speaks for Connection {
    async fn ask(&mut self, sql: &str) -> Result<String, PgWireError> {
        self.exec_query(sql, &[], &[]).await.map(|rows| first(&rows))
    }
}

impl Speaks for WireConn {
    async fn ask(&mut self, sql: &str) -> Result<String, PgWireError> {
        self.send_raw(&query(sql.as_bytes())).await?;
        self.collect_rows().await.map(|(rows, _)| first(&rows))
    }
}

fn options(server: &Postgres) -> Options {
    Options::from_url(&server.url()).unwrap()
}

fn manager(server: &Postgres) -> PgWiredManager {
    PgWiredManager::from_url(&server.url()).unwrap()
}

fn manager_behind(proxy: &Proxy) -> PgWiredManager {
    PgWiredManager::new(Options::new(proxy.address().to_string(), "millpond", "millpond"))
}

fn patient<M: Manager>(manager: M, max_size: usize) -> Pool<M> {
    builder(manager, max_size).build_lazy().unwrap()
}

fn builder<M: Manager>(manager: M, max_size: usize) -> PoolBuilder<M> {
    // Slow machines take their time.
    Pool::builder(manager).max_size(max_size).reset_timeout(PATIENCE).acquire_timeout(PATIENCE)
}

/// Waits until nothing is under way, then asserts that the counts add up.
async fn exact<M: Manager>(pool: &Pool<M>) -> PoolMetrics {
    eventually("nothing is under way", || {
        let counts = pool.metrics().counts;
        counts.alive() == counts.idle && counts.connecting == 0
    })
    .await;
    let metrics = pool.metrics();
    assert_eq!(metrics.created, metrics.closed.total() + metrics.counts.alive() as u64);
    assert_eq!(metrics.counts.waiters, 0, "{metrics:?}");
    metrics
}

/// What the next holder of a connection is told.
async fn ask<M: Manager<Connection: Speaks>>(pool: &Pool<M>, sql: &str) -> String {
    let mut connection = pool.acquire().await.unwrap();
    let answer = tokio::time::timeout(PATIENCE, connection.ask(sql)).await;
    answer.expect("an answer in time").unwrap()
}

async fn backend<M: Manager<Connection: Speaks>>(pool: &Pool<M>) -> String {
    ask(pool, "SELECT pg_backend_pid()").await
}

/// Two statements have the same time only in one transaction.
async fn is_in_transaction(connection: &mut impl Speaks) -> bool {
    let time = connection.ask("SELECT now()").await.unwrap();
    time == connection.ask("SELECT now()").await.unwrap()
}

/// Each of a server's clients, and what it is doing.
fn clients(server: &Postgres) -> String {
    server.run("SELECT state FROM pg_stat_activity WHERE usename = 'millpond'")
}

async fn is_used_again<M: Manager<Connection: Speaks>>(pool: Pool<M>) {
    let first = backend(&pool).await;
    for _ in 0..3 {
        assert_eq!(backend(&pool).await, first);
    }
    let metrics = exact(&pool).await;
    assert_eq!((metrics.created, metrics.resets, metrics.closed.total()), (1, 4, 0));
    pool.close().await;
    assert_eq!(pool.metrics().closed.total(), 1);
}

#[tokio::test]
async fn a_connection_of_either_kind_is_used_again_and_says_goodbye() {
    let Some(server) = Postgres::start(&["log_min_messages=debug1"]) else { return };
    is_used_again(patient(manager(&server), 1)).await;
    is_used_again(patient(manager(&server).raw(), 1)).await;
    eventually("the server has seen them off", || clients(&server).is_empty()).await;
    assert!(!server.log().contains("unexpected EOF"), "{}", server.log());
    assert!(!server.log().contains("WARNING"), "{}", server.log());
}

#[tokio::test]
async fn an_open_transaction_is_rolled_back_at_once() {
    async fn rolled_back<M: Manager<Connection: Speaks>>(server: &Postgres, pool: Pool<M>) {
        let mut connection = pool.acquire().await.unwrap();
        connection.ask("BEGIN").await.unwrap();
        connection.ask("UPDATE t SET n = 2").await.unwrap();
        drop(connection);
        // Nobody has used the connection since, and yet its lock is gone.
        eventually("it is clean", || pool.metrics().counts.idle == 1).await;
        let update = "SET lock_timeout = 100; UPDATE t SET n = n + 10 RETURNING n; ROLLBACK";
        assert_eq!(server.run(&format!("BEGIN; {update}")), "11");
        assert!(!is_in_transaction(&mut *pool.acquire().await.unwrap()).await);
        assert_eq!(exact(&pool).await.created, 1);
    }
    let Some(server) = Postgres::start(&[]) else { return };
    server.run("CREATE TABLE t AS SELECT 1 AS n; GRANT ALL ON t TO millpond");
    rolled_back(&server, patient(manager(&server), 1)).await;
    rolled_back(&server, patient(manager(&server).raw(), 1)).await;
    rolled_back(&server, patient(manager(&server).discard_session(false), 1)).await;
    rolled_back(&server, patient(manager(&server).verify_on_release(false), 1)).await;
    assert!(!server.log().contains("WARNING"), "{}", server.log());
}

#[tokio::test]
async fn a_failed_transaction_is_never_handed_on() {
    async fn ended<M: Manager<Connection: Speaks>>(pool: Pool<M>) -> PoolMetrics {
        let mut connection = pool.acquire().await.unwrap();
        connection.ask("BEGIN").await.unwrap();
        connection.ask("SELECT 1 / 0").await.unwrap_err();
        drop(connection);
        assert!(!is_in_transaction(&mut *pool.acquire().await.unwrap()).await);
        exact(&pool).await
    }
    let Some(server) = Postgres::start(&[]) else { return };
    assert_eq!(ended(patient(manager(&server), 1)).await.created, 1);
    // In a raw connection nothing tells that failure from any other.
    let metrics = ended(patient(manager(&server).raw(), 1)).await;
    assert_eq!((metrics.created, metrics.closed.failed_reset), (2, 1));
}

#[tokio::test]
async fn a_session_that_is_marked_is_discarded_with_its_statements() {
    let Some(server) = Postgres::start(&[]) else { return };
    for discard in [true, false] {
        let pool = patient(manager(&server).discard_session(discard), 1);
        let mut connection = pool.acquire().await.unwrap();
        connection.ask("SET search_path = left_over").await.unwrap();
        connection.mark_state_mutated();
        drop(connection);
        let path = ask(&pool, "SHOW search_path").await;
        assert_eq!(path == "left_over", !discard, "{path}");
        // The same statement, which the server may not know any more.
        assert_eq!(ask(&pool, "SHOW search_path").await, path);
        let mut connection = pool.acquire().await.unwrap();
        connection.ask("BEGIN").await.unwrap();
        connection.ask("COMMIT").await.unwrap();
        drop(connection);
        assert_eq!(ask(&pool, "SHOW search_path").await, path);
        assert_eq!(exact(&pool).await.created, 1);
    }
    assert!(!server.log().contains("does not exist"), "{}", server.log());
}

/// Drops what a connection is asked at each of its first polls; answers how often it was not done.
async fn cut_at_each_poll<M: Manager<Connection: Speaks>>(pool: &Pool<M>, sql: &str) -> u32 {
    let mut dropped = 0;
    for polls in 0..64 {
        let mut connection = pool.acquire().await.unwrap();
        dropped += u32::from(cut_after(polls, connection.ask(sql)).await.is_none());
        drop(connection);
        let mut connection = pool.acquire().await.unwrap();
        let number = (1_000 + polls).to_string();
        assert_eq!(connection.ask(&format!("SELECT {number}")).await.unwrap(), number);
        assert!(!is_in_transaction(&mut *connection).await, "dropped after {polls} polls");
    }
    let metrics = exact(pool).await;
    assert_eq!((metrics.created, metrics.closed.total()), (1, 0));
    dropped
}

#[tokio::test]
async fn a_query_that_is_dropped_at_any_poll_leaves_nothing_of_its_answer() {
    let Some(server) = Postgres::start(&[]) else { return };
    let proxy = Proxy::start(server.address());
    // A network in which nothing is there at once.
    proxy.delay(Duration::from_millis(1));
    let manager = || manager_behind(&proxy);
    let sql = "SELECT n, repeat('x', 100) FROM generate_series(1, 2000) AS n";
    // The answer to a shared one is collected by its task, and its future polled twice.
    assert!(cut_at_each_poll(&patient(manager(), 1), sql).await >= 1);
    assert!(cut_at_each_poll(&patient(manager().raw(), 1), sql).await > 4);
}

#[tokio::test]
async fn a_begin_that_is_dropped_at_any_poll_leaves_no_transaction() {
    let Some(server) = Postgres::start(&[]) else { return };
    let proxy = Proxy::start(server.address());
    proxy.delay(Duration::from_millis(1));
    let manager = || manager_behind(&proxy);
    assert!(cut_at_each_poll(&patient(manager(), 1), "BEGIN").await > 0);
    assert!(cut_at_each_poll(&patient(manager().raw(), 1), "BEGIN").await > 0);
}

/// A message that has this text run.
fn query(sql: &[u8]) -> Vec<u8> {
    let length = (sql.len() as u32 + 5).to_be_bytes();
    [b"Q", &length[..], sql, b"\0"].concat()
}

#[tokio::test]
async fn a_connection_whose_answers_go_to_other_requests_is_not_handed_on() {
    let Some(server) = Postgres::start(&[]) else { return };
    for verify in [true, false] {
        let latin = options(&server).parameter("client_encoding", "LATIN1");
        let latin = PgWiredManager::new(latin);
        let builder = builder(latin.verify_on_release(verify), 1).check(CheckPolicy::Always);
        let pool = builder.build().await.unwrap();
        let first = backend(&pool).await;
        // Two statements have two answers.
        let connection = pool.acquire().await.unwrap();
        let both = [query(b"SELECT 'a'"), query(b"SELECT 'b'")].concat();
        let rows = pg_wired::ResponseCollector::Rows;
        connection.submit(both[..].into(), rows).await.map(drop).unwrap();
        drop(connection);
        assert_eq!(ask(&pool, "SELECT 42").await, "42");
        let second = backend(&pool).await;
        assert_ne!(second, first);
        // A name that is no UTF-8 ends the reading of an answer in its middle.
        let connection = pool.acquire().await.unwrap();
        let rows = pg_wired::ResponseCollector::Rows;
        let named = connection.submit(query(b"SELECT 1 AS \"\xe9\"")[..].into(), rows);
        let error = named.await.map(drop).unwrap_err();
        assert!(matches!(error, PgWireError::Protocol(_)), "{error}");
        drop(connection);
        assert_eq!(ask(&pool, "SELECT 42").await, "42");
        assert_ne!(backend(&pool).await, second);
        let closed = exact(&pool).await.closed;
        assert_eq!((closed.failed_reset + closed.failed_check, closed.total()), (2, 2));
    }
}

#[tokio::test]
async fn what_is_given_up_does_not_go_on_at_the_server_once_its_connection_is_closed() {
    let Some(server) = Postgres::start(&[]) else { return };
    let builder = builder(manager(&server), 1).reset_timeout(MOMENT).close_timeout(PATIENCE);
    let pool = builder.build().await.unwrap();
    let mut connection = pool.acquire().await.unwrap();
    for _ in 0..3 {
        assert!(cut_after(0, connection.ask("SELECT pg_sleep(1000)")).await.is_none());
        drop(connection);
        connection = pool.acquire().await.unwrap();
        assert_eq!(connection.ask("SELECT 7").await.unwrap(), "7");
        // The old one was closed before this one was opened.
        assert_eq!(clients(&server).lines().count(), 1, "{}", clients(&server));
    }
    assert!(cut_after(0, connection.ask("SELECT pg_sleep(1000)")).await.is_none());
    connection.discard();
    let mut connection = pool.acquire().await.unwrap();
    assert_eq!(connection.ask("SELECT 7").await.unwrap(), "7");
    assert_eq!(clients(&server).lines().count(), 1, "{}", clients(&server));
    assert_eq!(pool.metrics().closed.failed_reset, 3);
    drop(connection);
    exact(&pool).await;
}

#[tokio::test]
async fn a_connection_that_a_hook_has_set_up_passes_its_check() {
    let Some(server) = Postgres::start(&[]) else { return };
    let set_up = Hooks::new().after_connect(|connection: &mut Connection| {
        Box::pin(async move {
            connection.exec_transaction("BEGIN", "SELECT 1", &[], &[]).await?;
            connection.mark_state_mutated();
            Ok(())
        })
    });
    let open = Hooks::new().after_connect(|connection: &mut Connection| {
        Box::pin(async move { connection.exec_query("BEGIN", &[], &[]).await.map(drop) })
    });
    for (hooks, passes) in [(set_up, true), (open, false)] {
        let manager = manager(&server).verify_on_release(false);
        let pool = builder(manager, 1).hooks(hooks).min_idle(1).keepalive_interval(MOMENT / 10);
        let pool = pool.maintenance_interval(MOMENT / 10).build().await.unwrap();
        eventually("it has been checked twice", || pool.metrics().checks >= 2).await;
        assert_eq!(pool.metrics().closed.failed_check == 0, passes);
        if passes {
            // That there is something to undo is not forgotten.
            backend(&pool).await;
            assert_eq!((exact(&pool).await.resets, pool.metrics().created), (1, 1));
        }
    }
}

#[tokio::test]
async fn settings_that_come_with_the_connection_outlive_a_reset_and_those_of_a_hook_do_not() {
    let Some(server) = Postgres::start(&[]) else { return };
    let hooks = Hooks::new().after_connect(|connection: &mut Connection| {
        Box::pin(async move {
            connection.exec_query("SET application_name = 'hook'", &[], &[]).await.map(drop)
        })
    });
    let manager = PgWiredManager::new(options(&server).parameter("search_path", "here"));
    let pool = builder(manager, 1).hooks(hooks).build().await.unwrap();
    assert_eq!(ask(&pool, "SHOW application_name").await, "hook");
    let mut connection = pool.acquire().await.unwrap();
    connection.ask("BEGIN").await.unwrap();
    connection.ask("COMMIT").await.unwrap();
    drop(connection);
    assert_eq!(ask(&pool, "SHOW application_name").await, "");
    assert_eq!(ask(&pool, "SHOW search_path").await, "here");
    assert_eq!(exact(&pool).await.created, 1);
}

#[tokio::test]
async fn what_the_pool_asks_a_raw_connection_is_guessed_by_nobody() {
    let Some(server) = Postgres::start(&[]) else { return };
    let pool = builder(manager(&server).raw(), 1).build().await.unwrap();
    let guesses = b"SELECT 'millpond ' || n FROM generate_series(0, 100000) n";
    pool.acquire().await.unwrap().send_raw(&query(guesses)).await.unwrap();
    for _ in 0..3 {
        assert_eq!(ask(&pool, "SELECT 42").await, "42");
    }
    assert_eq!(exact(&pool).await.created, 1);
}

#[tokio::test]
async fn half_a_message_costs_its_connection_and_is_not_run() {
    let Some(server) = Postgres::start(&[]) else { return };
    server.run("CREATE TABLE t AS SELECT 1 AS n; GRANT ALL ON t TO millpond");
    let builder = builder(manager(&server).raw(), 1).reset_timeout(3 * MOMENT);
    let pool = builder.build().await.unwrap();
    let statement = query(b"DELETE FROM t WHERE n = 1 /* and so on */ -- ");
    // Two bytes short of its end it would be: the next message begins with a letter and a zero.
    let almost = statement.len() - 2;
    let mut connection = pool.acquire().await.unwrap();
    for sent in [3, 5, 20, 31, almost - 2, almost - 1, almost + 1] {
        connection.send_raw(&statement[..sent]).await.unwrap();
        drop(connection);
        connection = pool.acquire().await.unwrap();
        assert_eq!(connection.ask("SELECT 7").await.unwrap(), "7");
        assert_eq!(server.run("SELECT count(*) FROM t"), "1", "{sent} bytes sent");
    }
    assert_eq!(pool.metrics().closed.failed_reset, 7);
    drop(connection);
    exact(&pool).await;
    // What lacks just as much as the first message has is refused, and the next is understood.
    let pool = patient(manager(&server).raw(), 1);
    pool.acquire().await.unwrap().send_raw(&statement[..almost - 3]).await.unwrap();
    assert_eq!(ask(&pool, "SELECT 7").await, "7");
    assert_eq!(server.run("SELECT count(*) FROM t"), "1");
    let metrics = exact(&pool).await;
    assert_eq!((metrics.created, metrics.closed.total()), (1, 0), "{metrics:?}");
}

#[tokio::test]
async fn what_goes_on_at_the_server_is_waited_for_until_the_reset_timeout() {
    async fn waits<M: Manager<Connection: Speaks>>(new: impl Fn() -> M) {
        let pool = patient(new(), 1);
        let first = backend(&pool).await;
        let mut connection = pool.acquire().await.unwrap();
        assert!(cut_after(0, connection.ask("SELECT pg_sleep(0.05)")).await.is_none());
        drop(connection);
        assert_eq!(backend(&pool).await, first);

        let pool = builder(new(), 1).reset_timeout(MOMENT).build().await.unwrap();
        let mut connection = pool.acquire().await.unwrap();
        let first = connection.ask("SELECT pg_backend_pid()").await.unwrap();
        assert!(cut_after(0, connection.ask("SELECT pg_sleep(1000)")).await.is_none());
        drop(connection);
        let mut connection = pool.acquire().await.unwrap();
        assert_ne!(connection.ask("SELECT pg_backend_pid()").await.unwrap(), first);
        assert_eq!(pool.metrics().closed.failed_reset, 1);
        drop(connection);
        exact(&pool).await;
    }
    let Some(server) = Postgres::start(&[]) else { return };
    waits(|| manager(&server)).await;
    waits(|| manager(&server).raw()).await;
    // The server does not notice that nobody is left to sleep for.
    server.kill();
}

#[tokio::test]
async fn rows_that_nobody_reads_keep_their_connection_from_being_used() {
    let Some(server) = Postgres::start(&[]) else { return };
    let pool = builder(manager(&server), 1).reset_timeout(MOMENT).build().await.unwrap();
    let connection = pool.acquire().await.unwrap();
    let message = query(b"SELECT generate_series(1, 100000)");
    // pg-wired's own, which the compiler lets outlive the guard.
    let stream = AsyncConn::submit_stream(&connection, message[..].into(), 1);
    let (_, rows) = stream.await.unwrap();
    drop(connection);
    let mut connection = pool.acquire().await.unwrap();
    assert_eq!(connection.ask("SELECT 7").await.unwrap(), "7");
    let metrics = pool.metrics();
    assert_eq!((metrics.closed.failed_reset, metrics.created), (1, 2));
    drop(connection);
    exact(&pool).await;
    drop(rows);
}

#[tokio::test]
async fn rows_that_are_read_one_by_one_all_arrive_and_leave_their_connection_clean() {
    let Some(server) = Postgres::start(&[]) else { return };
    let pool = builder(manager(&server), 1).reset_timeout(MOMENT).build().await.unwrap();
    let first = backend(&pool).await;
    let connection = pool.acquire().await.unwrap();
    let message = query(b"SELECT generate_series(1, 100000) AS n");
    let (header, mut rows) = connection.submit_stream(message[..].into(), 1).await.unwrap();
    assert_eq!(header.fields[0].name, "n");
    let mut last = 0;
    while let Some(row) = rows.recv().await {
        last += 1;
        assert_eq!(row.unwrap().cell(0), Some(last.to_string().as_bytes()));
    }
    assert_eq!(last, 100_000);
    drop(connection);
    assert_eq!(backend(&pool).await, first);
    assert_eq!(exact(&pool).await.created, 1);
}

#[tokio::test]
async fn rows_that_are_cut_off_end_with_an_error() {
    let Some(server) = Postgres::start(&[]) else { return };
    let pool = patient(manager(&server), 1);
    let connection = pool.acquire().await.unwrap();
    let message = query(b"SELECT generate_series(1, 10000000)");
    let (_, mut rows) = connection.submit_stream(message[..].into(), 1).await.unwrap();
    rows.recv().await.unwrap().unwrap();
    server.kill();
    let mut last = None;
    while let Some(row) = rows.recv().await {
        last = Some(row);
    }
    let error = last.unwrap().unwrap_err();
    assert!(matches!(error, PgWireError::ConnectionClosed | PgWireError::Io(_)), "{error}");
}

#[tokio::test]
async fn a_connection_that_its_user_calls_broken_is_closed() {
    let Some(server) = Postgres::start(&[]) else { return };
    let pool = patient(manager(&server), 1);
    pool.acquire().await.unwrap().mark_broken();
    assert_eq!(ask(&pool, "SELECT 7").await, "7");
    assert_eq!(exact(&pool).await.closed.broken, 1);
}

/// Some clients of a pool, of which some give a fifth of their requests up.
async fn soak<M: Manager<Connection: Speaks>>(pool: Pool<M>) {
    let mut tasks = JoinSet::new();
    for client in 0..12_u64 {
        let pool = pool.clone();
        tasks.spawn(async move {
            let mut random = Random::new(client + 1);
            for number in client * 1_000..client * 1_000 + 120 {
                let mut connection = pool.acquire().await.unwrap();
                let polls = random.below(4);
                let given_up = match random.below(20) {
                    0 => "SELECT 1 / 0",
                    1 => "BEGIN",
                    2 => "SELECT repeat('y', 100) FROM generate_series(1, 5000)",
                    3 => "SELECT -1",
                    _ => {
                        let sql = format!("SELECT '{number}' || repeat('x', {})", number % 5_000);
                        let answer = connection.ask(&sql).await.unwrap();
                        let right = answer.trim_end_matches('x') == number.to_string();
                        assert!(right && answer.len() as u64 >= number % 5_000);
                        continue;
                    }
                };
                drop(cut_after(polls, connection.ask(given_up)).await);
            }
        });
    }
    tasks.join_all().await;
    for _ in 0..4 {
        assert!(!is_in_transaction(&mut *pool.acquire().await.unwrap()).await);
    }
    let metrics = exact(&pool).await;
    assert_eq!((metrics.created, metrics.closed.total()), (4, 0), "{metrics:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_answer_reaches_another_request_while_a_fifth_are_given_up() {
    let Some(server) = Postgres::start(&[]) else { return };
    soak(patient(manager(&server), 4)).await;
    soak(patient(manager(&server).raw(), 4)).await;
}

#[tokio::test]
async fn a_wrong_password_is_tried_once_and_so_is_an_unknown_database() {
    async fn refused<M: Manager<Error = PgWireError>>(manager: M) -> String {
        let pool = patient(manager, 4);
        let (first, second) = tokio::join!(pool.acquire(), pool.acquire());
        assert!(matches!(second.err(), Some(AcquireError::Connect(_))), "it waited, too");
        let Err(AcquireError::Connect(error)) = first else { panic!("it would try again") };
        assert_eq!(pool.metrics().connect_failures, 1);
        match &error.error {
            OperationError::Failed(PgWireError::Pg(error)) => error.code.clone(),
            error => error.to_string(),
        }
    }
    let Some(server) = Postgres::start(&[]) else { return };
    let address = server.address().to_string();
    let log_in = |user: &str, password: &str, database: &str| {
        PgWiredManager::new(Options::new(&address, user, database).password(password))
    };
    let locked = |password: &str| log_in("locked", password, "millpond");
    let attempts = || server.log().matches("password authentication failed").count();
    assert_eq!(refused(locked("wrong")).await, "28P01");
    assert_eq!(attempts(), 1);
    assert_eq!(refused(locked("wrong").raw()).await, "28P01");
    assert_eq!(attempts(), 2);
    assert_eq!(ask(&patient(locked("secret"), 1), "SELECT current_user").await, "locked");
    assert_eq!(refused(log_in("millpond", "", "nowhere")).await, "3D000");
    let nowhere = Options::new("no port", "millpond", "millpond");
    let nowhere = refused(PgWiredManager::new(nowhere)).await;
    assert!(nowhere.starts_with("I/O error"), "{nowhere}");
}

async fn recovers<M: Manager<Connection: Speaks>>(server: &Postgres, pool: Pool<M>) {
    let right = Arc::new(AtomicU64::new(0));
    let over = Arc::new(AtomicBool::new(false));
    let mut tasks = JoinSet::new();
    for client in 0..8_u64 {
        let (pool, right, over) = (pool.clone(), right.clone(), over.clone());
        tasks.spawn(async move {
            for number in client * 1_000_000.. {
                if over.load(SeqCst) {
                    return;
                }
                let Ok(mut connection) = pool.acquire().await else { continue };
                if let Ok(answer) = connection.ask(&format!("SELECT {number}")).await {
                    assert_eq!(answer, number.to_string());
                    right.fetch_add(1, SeqCst);
                }
            }
        });
    }
    for _ in 0..2 {
        eventually("all are open", || pool.metrics().counts.alive() == 4).await;
        let before = pool.metrics().closed.total();
        let so_far = right.load(SeqCst);
        eventually("all is well", || right.load(SeqCst) > so_far + 100).await;
        server.kill();
        server.restart();
        let so_far = right.load(SeqCst);
        eventually("all is well again", || right.load(SeqCst) > so_far + 200).await;
        let closed = || pool.metrics().closed.total() >= before + 4;
        eventually("those that died are closed", closed).await;
    }
    eventually("all are open", || pool.metrics().counts.alive() == 4).await;
    over.store(true, SeqCst);
    tasks.join_all().await;
    exact(&pool).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_pool_recovers_from_a_server_that_dies_under_load() {
    let Some(server) = Postgres::start(&[]) else { return };
    recovers(&server, patient(manager(&server), 4)).await;
    recovers(&server, patient(manager(&server).raw(), 4)).await;
}

#[tokio::test]
async fn connections_that_lead_nowhere_cost_one_check_timeout_each() {
    async fn finds_out<M: Manager<Connection: Speaks>>(proxy: &Proxy, manager: M) {
        let builder = builder(manager, 2).check(CheckPolicy::Always).check_timeout(MOMENT);
        let pool = builder.min_idle(2).close_timeout(MOMENT).build().await.unwrap();
        proxy.black_hole();
        // What has just been opened counts as checked until the reaper's next look.
        pool.maintenance().run_once().await;
        assert_eq!(ask(&pool, "SELECT 7").await, "7");
        assert_eq!(ask(&pool, "SELECT 8").await, "8");
        assert!(exact(&pool).await.closed.failed_check >= 1);
    }
    let Some(server) = Postgres::start(&[]) else { return };
    let proxy = Proxy::start(server.address());
    let manager = || manager_behind(&proxy);
    finds_out(&proxy, manager()).await;
    finds_out(&proxy, manager().raw()).await;
}

/// The sockets of this process and others that are connected to a port, but for those in TIME_WAIT,
/// which nobody holds.
fn sockets(server: &Postgres) -> usize {
    let port = format!(":{:04X}", server.address().port());
    let table = std::fs::read_to_string("/proc/self/net/tcp").unwrap();
    let rows = table.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    rows.filter(|row| row[2].ends_with(&port) && row[3] != "06").count()
}

#[tokio::test]
async fn closed_connections_leave_no_more_sockets_behind_than_their_runtimes_have_room() {
    let Some(server) = Postgres::start(&[]) else { return };
    let pool = patient(manager(&server), 2);
    let held = pool.acquire().await.unwrap();
    for _ in 0..40 {
        pool.acquire().await.unwrap().discard();
    }
    assert!(sockets(&server) <= 32, "{}", sockets(&server));
    eventually("the server has one left", || clients(&server).lines().count() == 1).await;
    drop(held);
    pool.close().await;
    eventually("no socket is left", || sockets(&server) == 0).await;
    assert_eq!(pool.metrics().closed.total(), 41);
}

#[tokio::test]
async fn a_connection_that_is_dropped_unclosed_leaves_nothing_at_the_server() {
    let Some(server) = Postgres::start(&[]) else { return };
    let pool = patient(manager(&server), 2);
    let kept = pool.acquire().await.unwrap();
    drop(pool.acquire().await.unwrap().detach());
    let one_left = || clients(&server).lines().count() == 1;
    eventually("the server has seen it off", one_left).await;

    // A connect that is given up.
    for polls in 0..8 {
        drop(cut_after(polls, pool.manager().connect()).await);
        eventually("the server has seen it off", one_left).await;
    }
    // One that is given up when it has come to its end, which nobody has seen. It is opened on another
    // thread, and may come to it before it has been polled.
    let proxy = Proxy::start(server.address());
    proxy.freeze();
    let manager = manager_behind(&proxy);
    let (wakes, waker) = Wakes::new();
    let mut connect = Box::pin(manager.connect());
    assert!(poll_with(connect.as_mut(), &waker).is_pending());
    proxy.thaw();
    eventually("it is open", || wakes.count() > 0).await;
    drop(connect);
    eventually("the server has seen it off", one_left).await;

    // By a task that has done so much that it should give way to others.
    let last = pool.acquire().await.unwrap().detach();
    while tokio::task::coop::has_budget_remaining() {
        assert!(poll_once(pin!(tokio::task::coop::consume_budget())).is_ready());
    }
    drop(last);
    eventually("the server has seen it off", one_left).await;
    drop(kept);
    assert_eq!(exact(&pool).await.closed.detached, 2);
}

#[tokio::test]
async fn without_verifying_a_release_is_a_hit() {
    let Some(server) = Postgres::start(&[]) else { return };
    let pool = patient(manager(&server).verify_on_release(false), 1);
    for _ in 0..3 {
        backend(&pool).await;
    }
    assert_eq!((pool.metrics().resets, pool.metrics().counts.idle), (0, 1));
    let mut connection = pool.acquire().await.unwrap();
    connection.ask("BEGIN").await.unwrap();
    connection.ask("COMMIT").await.unwrap();
    drop(connection);
    assert_eq!((exact(&pool).await.resets, pool.metrics().created), (1, 1));
}

#[tokio::test]
async fn parameters_and_the_wish_for_tls_reach_the_server() {
    let Some(server) = Postgres::start(&[]) else { return };
    let named = options(&server).parameter("application_name", "millpond test");
    let named = patient(PgWiredManager::new(named), 1);
    assert_eq!(ask(&named, "SHOW application_name").await, "millpond test");
    let raw = options(&server).parameter("search_path", "here").tls(TlsMode::Disable);
    let raw = patient(PgWiredManager::new(raw).raw(), 1);
    assert_eq!(ask(&raw, "SHOW search_path").await, "here");
    let encrypted = options(&server).tls(TlsMode::Require);
    let pool = patient(PgWiredManager::new(encrypted), 1);
    pool.warm_up(1).await.unwrap_err();
    let error = pool.acquire_timeout(MOMENT).await.unwrap_err();
    let AcquireError::Timeout(timeout) = error else { panic!("{error}") };
    assert!(timeout.last_connect_error().unwrap().to_string().contains("require"), "{timeout}");
}

#[tokio::test]
async fn a_password_that_changes_is_asked_for_at_each_connect() {
    async fn rotates<M>(server: &Postgres, password: &Mutex<&str>, manager: M)
    where
        M: Manager<Connection: Speaks, Error = PgWireError>,
    {
        server.run("ALTER USER locked PASSWORD 'first'");
        *password.lock().unwrap() = "first";
        let pool = patient(manager, 2);
        let old = backend(&pool).await;
        exact(&pool).await;
        server.run("ALTER USER locked PASSWORD 'second'");
        let verify = "SELECT current_user";
        let rotated = pool
            .rotate(|connection| Box::pin(async move { connection.ask(verify).await.map(drop) }));
        let error = rotated.await.unwrap_err();
        assert!(matches!(error, RotateError::Connect(_)), "{error}");
        // A new password does not concern the connections there are, nor their resets.
        *password.lock().unwrap() = "second";
        pool.acquire().await.unwrap().ask("BEGIN").await.unwrap();
        exact(&pool).await;
        assert_eq!(backend(&pool).await, old);
        exact(&pool).await;
        let rotated = pool
            .rotate(|connection| Box::pin(async move { connection.ask(verify).await.map(drop) }));
        rotated.await.unwrap();
        assert_ne!(backend(&pool).await, old);
        assert_eq!(exact(&pool).await.closed.invalidated, 1);
    }
    let Some(server) = Postgres::start(&[]) else { return };
    let password = Arc::new(Mutex::new(""));
    let manager = || {
        let (password, address) = (password.clone(), server.address().to_string());
        PgWiredManager::with(move || {
            Options::new(&address, "locked", "millpond").password(*password.lock().unwrap())
        })
    };
    rotates(&server, &password, manager()).await;
    rotates(&server, &password, manager().raw()).await;
}

/// EINVAL is what it says to one address of several, as to one of a link whose number is missing.
#[test]
fn what_the_system_says_to_one_address_is_not_permanent() {
    let of_system = || std::io::Error::from_raw_os_error(22);
    assert_eq!(of_system().kind(), std::io::ErrorKind::InvalidInput);
    let manager = || PgWiredManager::from_url("postgresql://localhost").unwrap();
    assert!(!manager().is_permanent(&PgWireError::Io(of_system())));
    assert!(!manager().raw().is_permanent(&PgWireError::Io(of_system())));
}

#[test]
fn a_manager_of_raw_connections_shows_that_all_are_asked_and_none_is_discarded() {
    for chosen in [true, false] {
        let manager = PgWiredManager::from_url("postgresql://localhost").unwrap();
        let raw = manager.verify_on_release(chosen).discard_session(chosen).raw();
        let shown = format!("{raw:?}");
        let acts = "verify_on_release: true, discard_session: false";
        assert!(shown.contains(acts), "{chosen}: {shown}");
    }
}

#[test]
fn a_clone_of_a_manager_is_set_as_that_one_is() {
    fn same<C>(manager: &PgWiredManager<C>) {
        assert_eq!(format!("{:?}", manager.clone()), format!("{manager:?}"));
    }
    let manager = PgWiredManager::from_url("postgresql://me:secret@host").unwrap();
    same(&manager);
    let manager = manager.verify_on_release(false).discard_session(false);
    same(&manager);
    same(&manager.raw());
}

#[test]
fn a_manager_shows_no_password() {
    let manager = PgWiredManager::from_url("postgresql://me:secret@host").unwrap();
    let shown = format!("{manager:?}");
    assert!(!shown.contains("secret"), "{shown}");
}

#[test]
fn a_url_says_where_the_server_is_and_what_it_does_not_say_has_a_default() {
    let shown = |url: &str| {
        let shown = Options::from_url(url).map(|options| format!("{options:?}"));
        shown.unwrap_or_else(|error| error.to_string())
    };
    let means = |url: &str, address: &str, user: &str, database: &str| {
        let expected = format!(
            "Options {{ address: {address:?}, user: {user:?}, database: {database:?}, .. }}"
        );
        assert_eq!(shown(url), expected);
    };
    means("postgresql://host", "host:5432", "postgres", "postgres");
    means("postgres://me@host:99/base", "host:99", "me", "base");
    means("postgresql://me:secret@host/", "host:5432", "me", "me");
    means("postgresql://a%40b:%3A%2F@h/d%20e", "h:5432", "a@b", "d e");
    means("postgresql://[::1]/x", "[::1]:5432", "postgres", "x");
    means("postgresql://[::1]:99/x", "[::1]:99", "postgres", "x");
    let wrong = |url: &str, what: &str| {
        assert_eq!(shown(url), format!("the URL of the database {what}"));
    };
    wrong("mysql://host", "does not begin with postgresql://");
    wrong("postgresql://", "names no host");
    wrong("postgresql://me@:5432/x", "names no host");
    wrong("postgresql://h/x?sslmode=require", "has options, which are not read from it");
    // These would lead to a host `app`, or show a part of the password.
    for password in ["se/cret", "12/34", "/", "a@b/c"] {
        let what = "has a / or @ that is not written %2F or %40";
        wrong(&format!("postgresql://app:{password}@localhost/app"), what);
    }
    for bad in ["%", "%4", "%zz", "%+1", "%ff", "%é"] {
        wrong(&format!("postgresql://{bad}@h/x"), "is not percent-encoded as it should be");
    }
}
