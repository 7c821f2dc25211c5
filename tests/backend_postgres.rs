//! Pools of PostgreSQL connections, against a real server: what is reset, what is kept, and that
//! nobody gets what somebody else has left. Servers and networks that fail are in
//! `faults_postgres.rs`.

#![cfg(feature = "postgres")]
#![allow(clippy::unwrap_used, reason = "these are tests, though clippy only sees their helpers")]

mod support;
use support::*;

use futures_util::{SinkExt, Stream, TryStreamExt};
use millpond::backends::postgres::{Error, PoolMode, PostgresManager, Socket};
use millpond::{AcquireError, OperationError, Pool, PoolBuilder, PoolMetrics, Pooled};
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, OnceLock, mpsc};
use tokio::task::coop::{consume_budget, has_budget_remaining};
use tokio_postgres::config::SslMode;
use tokio_postgres::error::SqlState;
use tokio_postgres::tls::MakeTlsConnect;
use tokio_postgres::types::Type;
use tokio_postgres::{Config, GenericClient, IsolationLevel, NoTls, Statement};
use tokio_postgres_rustls::MakeRustlsConnect;

type Client<'p> = Pooled<'p, PostgresManager>;

/// A server that all tests of this file share, if it can be had; each statement is in its log.
fn server() -> Option<&'static Postgres> {
    static SERVER: OnceLock<Option<Postgres>> = OnceLock::new();
    let settings = ["log_statement=all", "max_connections=200"];
    let server = SERVER.get_or_init(|| Postgres::start(&settings)).as_ref();
    if server.is_none() {
        // Says for this test, too, that it is skipped.
        drop(Postgres::start(&settings));
    }
    server
}

fn manager(server: &Postgres) -> PostgresManager {
    PostgresManager::from_url(&server.url()).unwrap()
}

fn pool_of(manager: PostgresManager, max_size: usize) -> PoolBuilder<PostgresManager> {
    // On a machine that has other things to do a reset may take its time.
    Pool::builder(manager).max_size(max_size).acquire_timeout(PATIENCE).reset_timeout(PATIENCE)
}

/// A pool of one connection, so that each acquire gets what the last one has left.
async fn single(server: &Postgres) -> Pool<PostgresManager> {
    pool_of(manager(server), 1).build().await.unwrap()
}

/// The number of the server's process, by which one connection is told from another.
async fn process(client: &Client<'_>) -> i32 {
    client.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0)
}

/// What a query with one value answers, by the simple protocol, which prepares nothing.
async fn ask(client: &Client<'_>, sql: &str) -> String {
    let answer = client.simple_query(sql).await.unwrap();
    let value = answer.iter().find_map(|message| match message {
        tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    });
    value.unwrap()
}

/// Whether the connection is outside of any transaction: then each statement is one of its own, and
/// begins when it begins.
async fn is_outside(client: &Client<'_>) -> bool {
    let sql = "SELECT now() = statement_timestamp() AND pg_current_xact_id_if_assigned() IS NULL";
    ask(client, sql).await == "t"
}

// ---- what a clean connection costs ----

#[tokio::test]
async fn a_clean_connection_is_used_again_and_costs_no_statement() {
    let Some(server) = server() else { return };
    let pool = single(server).await;
    let first = process(&pool.acquire().await.unwrap()).await;
    let before = pool.metrics();
    for _ in 0..10 {
        let client = pool.acquire().await.unwrap();
        client.batch_execute("SELECT 'a clean connection'").await.unwrap();
    }
    for _ in 0..10 {
        let mut client = pool.acquire().await.unwrap();
        let transaction = client.transaction().await.unwrap();
        transaction.batch_execute("SELECT 'a clean connection'").await.unwrap();
        transaction.commit().await.unwrap();
    }
    let client = pool.acquire().await.unwrap();
    assert_eq!(process(&client).await, first);
    let metrics = pool.metrics();
    assert_eq!((metrics.created, metrics.closed.total()), (1, 0));
    assert_eq!(metrics.checks, before.checks);
    let id = format!("[{first}]");
    let log = server.log();
    let statements: Vec<&str> = log.lines().filter(|line| line.contains(&id)).collect();
    let count = |what: &str| statements.iter().filter(|line| line.contains(what)).count();
    assert_eq!(count("a clean connection"), 20, "{statements:#?}");
    assert_eq!((count("BEGIN"), count("START TRANSACTION"), count("COMMIT")), (0, 10, 10));
    assert_eq!((count("ROLLBACK"), count("DISCARD")), (0, 0), "{statements:#?}");
}

/// Leaves the end of a statement to be written, when there is nothing left of the task's budget.
async fn gives_back_without_a_budget(pool: Pool<PostgresManager>) {
    let client = pool.acquire().await.unwrap();
    let statement = client.prepare("SELECT 1").await.unwrap();
    client.query_one(&statement, &[]).await.unwrap();
    while has_budget_remaining() {
        consume_budget().await;
    }
    drop(statement);
}

#[tokio::test]
async fn a_clean_connection_that_comes_back_when_the_tasks_budget_is_used_up_is_not_reset() {
    let Some(server) = server() else { return };
    let pool = single(server).await;
    joined(tokio::spawn(gives_back_without_a_budget(pool.clone()))).await;
    assert_eq!(at_rest(&pool).await.resets, 0, "after a task");
    // Outside of a task, what is asked for is written where that is done.
    gives_back_without_a_budget(pool.clone()).await;
    assert_eq!(at_rest(&pool).await.resets, 0, "after the body of `main`");
}

// ---- what is put right ----

/// Runs what leaves something behind, and asserts that the next user of the same session finds none
/// of it.
async fn is_put_right(server: &Postgres, leave: impl AsyncFnOnce(Client<'_>)) -> PoolMetrics {
    let pool = single(server).await;
    let first = process(&pool.acquire().await.unwrap()).await;
    leave(pool.acquire().await.unwrap()).await;
    let client = pool.acquire().await.unwrap();
    assert!(is_outside(&client).await, "a transaction was handed on");
    assert_eq!(process(&client).await, first, "the session goes on");
    drop(client);
    at_rest(&pool).await
}

#[tokio::test]
async fn an_open_transaction_is_rolled_back_before_anybody_else_sees_it() {
    let Some(server) = server() else { return };
    server.run("CREATE TABLE left_over (what int); GRANT ALL ON left_over TO PUBLIC");
    let metrics = is_put_right(server, async |client| {
        client.batch_execute("BEGIN; INSERT INTO left_over VALUES (1)").await.unwrap();
    })
    .await;
    assert_eq!((metrics.resets, metrics.closed.total()), (1, 0));
    assert_eq!(server.run("SELECT count(*) FROM left_over"), "0");
}

#[tokio::test]
async fn a_failed_transaction_is_rolled_back() {
    let Some(server) = server() else { return };
    let metrics = is_put_right(server, async |client| {
        client.batch_execute("BEGIN").await.unwrap();
        client.batch_execute("SELECT no_such_thing").await.unwrap_err();
    })
    .await;
    assert_eq!(metrics.resets, 1);
}

#[tokio::test]
async fn a_transaction_that_is_dropped_has_ended_before_anybody_else_comes() {
    let Some(server) = server() else { return };
    is_put_right(server, async |mut client| {
        let transaction = client.transaction().await.unwrap();
        transaction.batch_execute("SELECT pg_current_xact_id()").await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_copy_that_is_given_up_has_ended_before_anybody_else_comes() {
    let Some(server) = server() else { return };
    server.run("CREATE TABLE copied (what text); GRANT ALL ON copied TO PUBLIC");
    is_put_right(server, async |client| {
        let sink = client.copy_in::<_, &[u8]>("COPY copied FROM STDIN").await.unwrap();
        drop(sink);
    })
    .await;
    is_put_right(server, async |client| {
        let mut sink = pin!(client.copy_in::<_, &[u8]>("COPY copied FROM STDIN").await.unwrap());
        sink.send(&b"a row\n"[..]).await.unwrap();
        assert_eq!(sink.as_mut().finish().await.unwrap(), 1);
    })
    .await;
    assert_eq!(server.run("SELECT count(*) FROM copied"), "1");
}

/// What a stream ends with that is read to its end: how many items there were, or the error.
async fn end_of<T, E>(stream: impl Stream<Item = Result<T, E>>) -> Result<usize, E> {
    let count = stream.try_fold(0, async |count, _| Ok(count + 1));
    tokio::time::timeout(PATIENCE, count).await.expect("it goes on")
}

/// The driver's streams and copies borrow nothing, so the compiler does not keep their guard.
#[tokio::test]
async fn a_stream_of_rows_or_a_copy_is_given_up_with_its_guard() {
    let Some(server) = server() else { return };
    server.run("CREATE TABLE taken (what text); GRANT ALL ON taken TO PUBLIC");
    let pool = single(server).await;
    let endless = "SELECT generate_series(1, 1000000000000)";
    let rows = pool.acquire().await.unwrap().query_raw(endless, [0; 0]).await.unwrap();
    let rows = end_of(rows).await;
    let simple = pool.acquire().await.unwrap().simple_query_raw(endless).await.unwrap();
    let simple = end_of(simple).await;
    let copy = format!("COPY ({endless}) TO STDOUT");
    let copied = pool.acquire().await.unwrap().copy_out(&copy).await.unwrap();
    let copied = end_of(copied).await;
    for ended in [rows, simple, copied] {
        assert_eq!(ended.unwrap_err().code(), Some(&SqlState::QUERY_CANCELED));
    }

    let client = pool.acquire().await.unwrap();
    let at_it = format!(
        "SELECT count(*) FROM pg_stat_progress_copy WHERE pid = {}",
        process(&client).await
    );
    let mut sink = pin!(client.copy_in::<_, &[u8]>("COPY taken FROM STDIN").await.unwrap());
    assert_eq!(server.run(&at_it), "1");
    drop(client);
    // The server sees that it is to stop when it reads the next row.
    tokio::select! {
        never = async { loop { sink.send(&b"a row\n"[..]).await.unwrap() } } => never,
        () = eventually("the server has left it", || server.run(&at_it) == "0") => {}
    }
    let error = sink.as_mut().finish().await.unwrap_err();
    assert_eq!(error.code(), Some(&SqlState::QUERY_CANCELED));
    assert!(is_outside(&pool.acquire().await.unwrap()).await);
}

#[tokio::test]
async fn a_stream_of_rows_or_a_copy_is_complete_whose_guard_is_kept() {
    let Some(server) = server() else { return };
    let pool = single(server).await;
    let client = pool.acquire().await.unwrap();
    // More than what is under way at once.
    let many = "SELECT generate_series(1, 100000)";
    assert_eq!(end_of(client.query_raw(many, [0; 0]).await.unwrap()).await.unwrap(), 100_000);
    let copied = client.copy_out(&format!("COPY ({many}) TO STDOUT")).await.unwrap();
    assert_eq!(end_of(copied).await.unwrap(), 100_000);
    drop(client);
    assert_eq!(at_rest(&pool).await.closed.total(), 0);
}

/// The driver (0.7.18) loses count when a copy fails before it has begun, and would take the end of it
/// for the answer to whatever is asked next.
#[tokio::test]
async fn a_copy_that_fails_before_it_begins_does_not_disturb_the_next_user() {
    let Some(server) = server() else { return };
    let pool = single(server).await;
    for _ in 0..20 {
        let client = pool.acquire().await.unwrap();
        client.copy_in::<_, &[u8]>("COPY no_such_table FROM STDIN").await.err().unwrap();
        drop(client);
        assert!(is_outside(&pool.acquire().await.unwrap()).await);
    }
    let metrics = at_rest(&pool).await;
    assert_eq!(metrics.created, metrics.closed.total() + 1, "{metrics:?}");
}

#[tokio::test]
async fn a_query_that_is_given_up_at_any_of_its_polls_leaves_nothing_to_the_next_user() {
    let Some(server) = server() else { return };
    let pool = single(server).await;
    for polls in 0..=64 {
        let client = pool.acquire().await.unwrap();
        let number = i32::try_from(polls).unwrap();
        let given_up = given_up_at_wake(polls, async {
            client.batch_execute("BEGIN").await.unwrap();
            let sql = "SELECT $1::int4 FROM generate_series(1, 100)";
            let statement = client.prepare(sql).await.unwrap();
            client.query(&statement, &[&number]).await.unwrap();
            // Then it goes on for as many polls as are wanted.
            loop {
                client.query(sql, &[&number]).await.unwrap();
            }
        });
        assert_eq!(given_up.await, None::<()>, "it never ends by itself");
        drop(client);
        let client = pool.acquire().await.unwrap();
        assert!(is_outside(&client).await, "after {polls} polls");
        let row = client.query_one("SELECT $1::int4", &[&-number]).await.unwrap();
        assert_eq!(row.get::<_, i32>(0), -number, "somebody else's answer after {polls} polls");
    }
    let metrics = at_rest(&pool).await;
    assert_eq!((metrics.created, metrics.closed.total()), (1, 0), "each time it was put right");
    assert!(metrics.resets >= 60, "{metrics:?}");
}

#[tokio::test]
async fn a_query_that_is_given_up_and_takes_long_is_cancelled_on_the_server() {
    let Some(server) = server() else { return };
    let pool = single(server).await;
    let client = pool.acquire().await.unwrap();
    let first = process(&client).await;
    let sleeping = "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(600)'";
    {
        let mut query = pin!(client.batch_execute("SELECT pg_sleep(600)"));
        assert!(poll_once(query.as_mut()).is_pending());
        eventually("the server is at it", || server.run(sleeping) == "1").await;
    }
    drop(client);
    // Within `reset_timeout`, or it would have been closed.
    let client = pool.acquire().await.unwrap();
    assert_eq!(process(&client).await, first);
    assert!(is_outside(&client).await);
    assert_eq!(server.run(sleeping), "0");
    // No cancel comes late.
    client.batch_execute("SELECT pg_sleep(0.2)").await.unwrap();
}

#[tokio::test]
async fn a_connection_that_is_closed_in_the_middle_of_a_query_has_it_cancelled_on_the_server() {
    let Some(server) = server() else { return };
    let pool = single(server).await;
    let at_it = "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(603)'";
    for panics in [false, true] {
        let client = pool.acquire().await.unwrap();
        {
            let mut query = pin!(client.batch_execute("SELECT pg_sleep(603)"));
            assert!(poll_once(query.as_mut()).is_pending());
            eventually("the server is at it", || server.run(at_it) == "1").await;
        }
        if panics {
            let holder = std::panic::AssertUnwindSafe(move || {
                let _held = client;
                panic!("a holder panics, as it is to");
            });
            std::panic::catch_unwind(holder).unwrap_err();
        } else {
            client.discard();
        }
        eventually("the server has left it", || server.run(at_it) == "0").await;
    }
    let metrics = at_rest(&pool).await;
    assert_eq!((metrics.closed.discarded, metrics.closed.holder_panicked), (1, 1), "{metrics:?}");
}

#[tokio::test]
async fn a_reset_that_is_cut_leaves_what_was_given_up_to_the_close() {
    let Some(server) = server() else { return };
    let at_it = "SELECT count(*) FROM pg_stat_activity \
                 WHERE query LIKE 'SELECT pg_sleep(605.%)' AND state = 'active'";
    // Before the server is asked to cancel anything; and when it has left some of several.
    for (limit, count) in [(15, 1), (100, 10)] {
        let limit = std::time::Duration::from_millis(limit);
        let pool = pool_of(manager(server), 1).reset_timeout(limit).close_timeout(PATIENCE);
        let pool = pool.build().await.unwrap();
        let client = pool.acquire().await.unwrap();
        {
            let ask = |_| Box::pin(client.batch_execute("SELECT pg_sleep(605.1)"));
            for query in &mut (0..count).map(ask).collect::<Vec<_>>() {
                assert!(poll_once(query.as_mut()).is_pending());
            }
            eventually("the server is at it", || server.run(at_it) == "1").await;
        }
        drop(client);
        let closed = || server.run(at_it) == "0" && pool.metrics().closed.total() == 1;
        eventually("the server has left them", closed).await;
        assert_eq!(at_rest(&pool).await.closed.failed_reset, 1);
    }
}

/// On a network that takes longer than 20 ms to answer a cancel, and between two of them.
#[tokio::test]
async fn a_reset_that_is_cut_before_a_cancel_is_answered_leaves_those_behind_it_to_the_close() {
    let Some(server) = server() else { return };
    let proxy = Proxy::start(server.address());
    let url = format!("postgresql://millpond@{}/millpond", proxy.address());
    let limit = std::time::Duration::from_millis(50);
    let pool = pool_of(PostgresManager::from_url(&url).unwrap(), 1).reset_timeout(limit);
    let pool = pool.close_timeout(PATIENCE).build().await.unwrap();
    let at_it = "SELECT count(*) FROM pg_stat_activity \
                 WHERE query LIKE 'SELECT pg_sleep(607.%)' AND state = 'active'";
    let client = pool.acquire().await.unwrap();
    {
        let ask = |sql: &'static str| Box::pin(client.batch_execute(sql));
        let mut queries = ["SELECT pg_sleep(607.1)", "SELECT pg_sleep(607.2)"].map(ask);
        for query in &mut queries {
            assert!(poll_once(query.as_mut()).is_pending());
        }
        eventually("the server is at it", || server.run(at_it) == "1").await;
    }
    proxy.delay(std::time::Duration::from_millis(40));
    drop(client);
    let closed = || server.run(at_it) == "0" && pool.counts().closing == 0;
    eventually("the server has left them", closed).await;
    assert_eq!(at_rest(&pool).await.closed.failed_reset, 1);
}

#[tokio::test]
async fn a_cancel_that_fails_is_sent_again_by_the_close() {
    let Some(server) = server() else { return };
    let (port, folder) = (server.address().port(), server.socket_folder());
    let name = format!(".s.PGSQL.{port}");
    // Another way to the server's socket, which may be missing.
    let ways = folder.join("ways");
    std::fs::create_dir(&ways).unwrap();
    let way = || std::os::unix::fs::symlink(folder.join(&name), ways.join(&name)).unwrap();
    way();
    let mut config = Config::new();
    config.host_path(&ways).port(port).user("millpond").dbname("millpond");
    let manager = PostgresManager::new(config);
    let mut client = millpond::Manager::connect(&manager).await.unwrap();
    let at_it = "SELECT count(*) FROM pg_stat_activity \
                 WHERE query = 'SELECT pg_sleep(608)' AND state = 'active'";
    {
        let mut query = pin!(client.batch_execute("SELECT pg_sleep(608)"));
        assert!(poll_once(query.as_mut()).is_pending());
        eventually("the server is at it", || server.run(at_it) == "1").await;
    }
    std::fs::remove_file(ways.join(&name)).unwrap();
    millpond::Manager::reset(&manager, &mut client).await.unwrap_err();
    way();
    millpond::Manager::close(&manager, client).await;
    eventually("the server has left it", || server.run(at_it) == "0").await;
}

#[tokio::test]
async fn all_that_was_asked_at_once_and_given_up_is_cancelled_on_the_server() {
    let Some(server) = server() else { return };
    let pool = pool_of(manager(server), 1).reset_timeout(PATIENCE / 2).close_timeout(PATIENCE / 2);
    let pool = pool.build().await.unwrap();
    let at_it = "SELECT count(*) FROM pg_stat_activity \
                 WHERE query LIKE 'SELECT pg_sleep(604.%)' AND state = 'active'";
    for discards in [false, true] {
        let client = pool.acquire().await.unwrap();
        let first = process(&client).await;
        {
            let ask = |sql: &'static str| Box::pin(client.batch_execute(sql));
            let mut queries = ["SELECT pg_sleep(604.1)", "SELECT pg_sleep(604.2)"].map(ask);
            for query in &mut queries {
                assert!(poll_once(query.as_mut()).is_pending());
            }
            eventually("the server is at it", || server.run(at_it) == "1").await;
        }
        if discards {
            client.discard();
            eventually("the server has left them", || server.run(at_it) == "0").await;
        } else {
            drop(client);
            assert_eq!(process(&pool.acquire().await.unwrap()).await, first);
            assert_eq!(server.run(at_it), "0");
        }
    }
    assert_eq!(at_rest(&pool).await.closed.discarded, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_answer_reaches_the_wrong_request_while_a_fifth_of_them_is_given_up() {
    const OPERATIONS: usize = 100_000;
    const TASKS: usize = 64;
    let Some(server) = server() else { return };
    let pool = pool_of(manager(server), 8).build().await.unwrap();
    let (done, given_up) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let tasks: Vec<_> = (0..TASKS)
        .map(|task| {
            let (pool, done, given_up) = (pool.clone(), done.clone(), given_up.clone());
            tokio::spawn(async move {
                let mut random = Random::new(task as u64);
                loop {
                    let number = done.fetch_add(1, SeqCst);
                    if number >= OPERATIONS {
                        return;
                    }
                    let mut client = pool.acquire().await.unwrap();
                    let statement = "SELECT $1::int8, current_setting('transaction_isolation')";
                    let statement = client.prepare_cached(statement).await.unwrap();
                    let number = i64::try_from(number).unwrap();
                    if random.below(5) > 0 {
                        let row = client.query_one(&statement, &[&number]).await.unwrap();
                        assert_eq!(row.get::<_, i64>(0), number, "somebody else's answer");
                        let isolation = row.get::<_, &str>(1);
                        assert_eq!(isolation, "read committed", "somebody else's transaction");
                        continue;
                    }
                    let leaves = random.below(3);
                    let operation = async {
                        match leaves {
                            0 => drop(client.query_one(&statement, &[&-number]).await),
                            1 => {
                                let begin = "BEGIN ISOLATION LEVEL SERIALIZABLE";
                                drop(client.batch_execute(begin).await);
                            }
                            _ => {
                                let begin = client.build_transaction();
                                let begin = begin.isolation_level(IsolationLevel::Serializable);
                                let transaction = begin.start().await.unwrap();
                                drop(transaction.query_one(&statement, &[&-number]).await);
                            }
                        }
                    };
                    if given_up_at_wake(random.below(4), operation).await.is_none() {
                        given_up.fetch_add(1, SeqCst);
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    eventually("the last ones are back", || pool.metrics().counts.idle == 8).await;
    let metrics = at_rest(&pool).await;
    assert_eq!(metrics.acquires, OPERATIONS as u64);
    assert_eq!(metrics.closed.total(), 0, "each was put right: {metrics:?}");
    assert!(given_up.load(SeqCst) > OPERATIONS / 20, "{given_up:?}");
    for _ in 0..8 {
        assert!(is_outside(&pool.acquire().await.unwrap()).await);
    }
}

// ---- modes ----

/// What a holder changes in its session, and how that is seen.
const CHANGES: [(&str, &str, &str); 7] = [
    ("SET search_path TO nowhere", "SELECT current_setting('search_path')", "\"$user\", public"),
    (
        "CREATE TEMP TABLE mine (what int)",
        "SELECT count(*) FROM pg_class WHERE relname = 'mine'",
        "0",
    ),
    ("LISTEN gossip", "SELECT count(*) FROM pg_listening_channels()", "0"),
    (
        "SELECT pg_advisory_lock(pg_backend_pid())",
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()",
        "0",
    ),
    ("PREPARE mine AS SELECT 1", "SELECT count(*) FROM pg_prepared_statements WHERE from_sql", "0"),
    (
        "DECLARE mine CURSOR WITH HOLD FOR SELECT 1",
        "SELECT count(*) FROM pg_cursors WHERE name = 'mine'",
        "0",
    ),
    ("SET ROLE other", "SELECT current_user::text", "millpond"),
];

#[tokio::test]
async fn in_session_mode_the_next_user_finds_a_new_session() {
    let Some(server) = server() else { return };
    server.run("CREATE ROLE other; GRANT other TO millpond");
    let pool = pool_of(manager(server).mode(PoolMode::Session), 1).build().await.unwrap();
    let first = process(&pool.acquire().await.unwrap()).await;
    for (change, seen, expected) in CHANGES {
        let client = pool.acquire().await.unwrap();
        client.batch_execute(change).await.unwrap();
        assert_ne!(ask(&client, seen).await, expected, "{change} changes nothing");
        drop(client);
        let client = pool.acquire().await.unwrap();
        assert_eq!(ask(&client, seen).await, expected, "after {change}");
        assert_eq!(process(&client).await, first, "after {change}");
    }
    let metrics = at_rest(&pool).await;
    assert_eq!((metrics.created, metrics.closed.total()), (1, 0));
}

#[tokio::test]
async fn in_session_mode_an_open_transaction_goes_too_and_statements_of_the_driver_stay() {
    let Some(server) = server() else { return };
    server.run(
        "DO $$ BEGIN CREATE TYPE mood AS ENUM ('sad', 'happy'); \
         EXCEPTION WHEN duplicate_object THEN NULL; END $$",
    );
    let pool = pool_of(manager(server).mode(PoolMode::Session), 1).build().await.unwrap();
    for round in 0..3 {
        let client = pool.acquire().await.unwrap();
        // The driver looks up the type with statements of its own.
        let statement = client.prepare_cached("SELECT 'happy'::mood AS mood").await.unwrap();
        client.query_one(&statement, &[]).await.unwrap();
        let other = format!("SELECT 'sad'::mood AS round{round}");
        client.query_one(&other, &[]).await.unwrap();
        client.clear_type_cache();
        client.batch_execute("BEGIN; SET LOCAL work_mem TO '1MB'").await.unwrap();
        assert_eq!(client.cached_statements(), 1);
    }
    let client = pool.acquire().await.unwrap();
    assert!(is_outside(&client).await);
    assert_eq!(at_rest(&pool).await.created, 1);
}

#[tokio::test]
async fn a_session_is_made_new_whatever_names_others_have_put_before_those_of_the_system() {
    let Some(server) = server() else { return };
    let raises = "LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''not the system''; END'";
    server.run(&format!(
        "CREATE SCHEMA shadow; GRANT USAGE ON SCHEMA shadow TO PUBLIC; \
         CREATE FUNCTION shadow.format(text, text) RETURNS text {raises}; \
         CREATE FUNCTION shadow.pg_advisory_unlock_all() RETURNS void {raises}; \
         CREATE VIEW shadow.pg_prepared_statements AS SELECT 'none' AS name, true AS from_sql; \
         GRANT SELECT ON shadow.pg_prepared_statements TO PUBLIC"
    ));
    // The first leaves the system's names in front, where its `format` is not the closest match.
    for path in ["shadow", "shadow,pg_catalog"] {
        let mut config: Config = server.url().parse().unwrap();
        config.options(format!("-c search_path={path}"));
        let manager = PostgresManager::new(config).mode(PoolMode::Session);
        let pool = pool_of(manager, 1).build().await.unwrap();
        pool.acquire().await.unwrap().batch_execute("PREPARE mine AS SELECT 1").await.unwrap();
        let client = pool.acquire().await.unwrap();
        let sql = "SELECT count(*) FROM pg_catalog.pg_prepared_statements WHERE from_sql";
        assert_eq!(ask(&client, sql).await, "0", "{path}");
        drop(client);
        let metrics = at_rest(&pool).await;
        assert_eq!((metrics.created, metrics.closed.total()), (1, 0), "{path}");
    }
}

#[tokio::test]
async fn a_session_is_made_new_in_a_database_without_any_procedural_language() {
    let Some(server) = Postgres::start(&[]) else { return };
    server.run("DROP EXTENSION plpgsql");
    let pool = pool_of(manager(&server).mode(PoolMode::Session), 1).build().await.unwrap();
    let prepared = "SELECT count(*) FROM pg_prepared_statements WHERE from_sql";
    for _ in 0..2 {
        let client = pool.acquire().await.unwrap();
        assert_eq!(ask(&client, prepared).await, "0");
        let leave = r#"BEGIN; PREPARE "all" AS SELECT 1; PREPARE "a "";" AS SELECT 2"#;
        client.batch_execute(leave).await.unwrap();
    }
    let metrics = at_rest(&pool).await;
    assert_eq!((metrics.created, metrics.closed.total()), (1, 0), "{metrics:?}");
}

#[tokio::test]
async fn a_session_that_was_not_touched_is_not_renewed_unless_that_is_wanted() {
    let Some(server) = server() else { return };
    let renewals = |process: i32| {
        let id = format!("[{process}]");
        let log = server.log();
        log.lines().filter(|line| line.contains(&id) && line.contains("DISCARD TEMP")).count()
    };
    for (always, expected) in [(false, 1), (true, 5)] {
        let manager = manager(server).mode(PoolMode::Session).reset_always(always);
        let pool = pool_of(manager, 1).build().await.unwrap();
        let process = process(&pool.acquire().await.unwrap()).await;
        for _ in 0..4 {
            drop(pool.acquire().await.unwrap());
        }
        let metrics = at_rest(&pool).await;
        assert_eq!((renewals(process), metrics.resets), (expected, expected as u64), "{always}");
    }
}

#[tokio::test]
async fn a_check_does_not_make_a_session_a_used_one() {
    let Some(server) = server() else { return };
    let manager = manager(server).mode(PoolMode::Session);
    let builder = pool_of(manager, 1).check(millpond::CheckPolicy::Always);
    let pool = builder.build().await.unwrap();
    for _ in 0..3 {
        drop(pool.acquire().await.unwrap());
    }
    let metrics = at_rest(&pool).await;
    assert_eq!((metrics.checks, metrics.resets, metrics.created), (2, 0, 1));
}

#[tokio::test]
async fn a_query_of_ones_own_takes_the_place_of_what_the_mode_has() {
    let Some(server) = server() else { return };
    let manager = manager(server).reset_query("SET application_name TO 'renewed'");
    let pool = pool_of(manager, 1).build().await.unwrap();
    let client = pool.acquire().await.unwrap();
    client.batch_execute("BEGIN").await.unwrap();
    drop(client);
    let client = pool.acquire().await.unwrap();
    assert_eq!(ask(&client, "SHOW application_name").await, "renewed");
    assert!(is_outside(&client).await);
    drop(client);
    assert_eq!(at_rest(&pool).await.resets, 2, "once for each of those who sent something");
}

#[tokio::test]
async fn a_query_of_ones_own_may_be_one_that_no_transaction_takes() {
    let Some(server) = server() else { return };
    server.run("CREATE PROCEDURE commits() LANGUAGE plpgsql AS 'BEGIN COMMIT; END'");
    let pool = pool_of(manager(server).reset_query("CALL commits()"), 1).build().await.unwrap();
    for leave in ["SELECT 1", "BEGIN"] {
        pool.acquire().await.unwrap().batch_execute(leave).await.unwrap();
        let metrics = at_rest(&pool).await;
        assert_eq!((metrics.created, metrics.closed.total()), (1, 0), "after {leave}");
    }
}

#[tokio::test]
async fn a_reset_that_fails_closes_the_connection() {
    let Some(server) = server() else { return };
    let pool = pool_of(manager(server).reset_query("SELECT no_such_thing"), 1).build();
    let pool = pool.await.unwrap();
    let client = pool.acquire().await.unwrap();
    let first = process(&client).await;
    let error = client.release().await.unwrap_err();
    let millpond::ReleaseError::Reset(OperationError::Failed(error)) = error else {
        panic!("{error}");
    };
    assert!(error.to_string().contains("no_such_thing"), "{error}");
    assert_ne!(process(&pool.acquire().await.unwrap()).await, first);
}

#[tokio::test]
async fn a_holder_who_makes_his_own_session_read_only_costs_nobody_a_connection() {
    let Some(server) = server() else { return };
    let url = format!("{}?target_session_attrs=read-write", server.url());
    for (mode, read_only) in [
        (PoolMode::Session, "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY"),
        (PoolMode::Transaction, "BEGIN; SET LOCAL default_transaction_read_only = on"),
    ] {
        let manager = PostgresManager::from_url(&url).unwrap().mode(mode);
        let pool = pool_of(manager, 3).build().await.unwrap();
        let mut processes = Vec::new();
        for change in [None, Some(read_only), None] {
            let clients = [
                pool.acquire().await.unwrap(),
                pool.acquire().await.unwrap(),
                pool.acquire().await.unwrap(),
            ];
            let mut now = Vec::new();
            for client in &clients {
                now.push(process(client).await);
                assert_eq!(ask(client, "SHOW default_transaction_read_only").await, "off");
            }
            now.sort_unstable();
            processes.push(now);
            if let Some(change) = change {
                clients[1].batch_execute(change).await.unwrap();
            }
            drop(clients);
            at_rest(&pool).await;
        }
        assert!(processes.iter().all(|now| *now == processes[0]), "{mode:?}: {processes:?}");
        assert_eq!(pool.metrics().closed.total(), 0, "{mode:?}");
    }
}

#[tokio::test]
async fn in_statement_mode_a_session_that_is_read_only_for_a_transaction_costs_the_pool_all_of_its_age()
 {
    let Some(server) = server() else { return };
    let url = format!("{}?target_session_attrs=read-write", server.url());
    let manager = PostgresManager::from_url(&url).unwrap().mode(PoolMode::Statement);
    let pool = pool_of(manager, 2).build().await.unwrap();
    let [client, other] = [pool.acquire().await.unwrap(), pool.acquire().await.unwrap()];
    let read_only = "BEGIN; SET LOCAL default_transaction_read_only = on";
    client.batch_execute(read_only).await.unwrap();
    drop((client, other));
    let closed = at_rest(&pool).await.closed;
    assert_eq!((closed.invalidated, closed.total()), (2, 2), "{closed:?}");
}

/// Since it may be one that a server refuses which takes no writes: then nobody would hear of that.
#[tokio::test]
async fn where_a_query_of_ones_own_resets_a_session_that_is_read_only_costs_the_pool_all_of_its_age()
 {
    let Some(server) = server() else { return };
    server.run("CREATE TABLE resets (what int); GRANT ALL ON resets TO PUBLIC");
    let url = format!("{}?target_session_attrs=read-write", server.url());
    for mode in [PoolMode::Session, PoolMode::Transaction, PoolMode::Statement] {
        for leaves in ["nothing", "a transaction", "a rollback", "a beginning"] {
            let manager = PostgresManager::from_url(&url).unwrap().mode(mode);
            let manager = manager.reset_query("INSERT INTO resets VALUES (1)");
            let pool = pool_of(manager, 3).build().await.unwrap();
            let [mut client, other] =
                [pool.acquire().await.unwrap(), pool.acquire().await.unwrap()];
            let read_only = "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY";
            client.batch_execute(read_only).await.unwrap();
            match leaves {
                "nothing" => {}
                "a transaction" => client.batch_execute("BEGIN").await.unwrap(),
                // It is on its way when the connection comes back.
                "a rollback" => drop(client.transaction().await.unwrap()),
                _ => drop(poll_once(pin!(client.batch_execute("BEGIN")))),
            }
            drop((client, other));
            let closed = at_rest(&pool).await.closed;
            let seen = (closed.invalidated, closed.total());
            assert_eq!(seen, (2, 2), "{mode:?}, with {leaves} left: {closed:?}");
        }
    }
}

#[tokio::test]
async fn a_server_that_says_it_takes_no_writes_when_it_refuses_the_reset_costs_the_pool_all_of_its_age()
 {
    let Some(server) = server() else { return };
    let url = format!("{}?target_session_attrs=read-write", server.url());
    // As one does that is read-only from just before the reset on.
    let refused =
        "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY; COMMIT; CREATE TABLE no ()";
    let manager = PostgresManager::from_url(&url).unwrap().reset_query(refused);
    let pool = pool_of(manager, 2).build().await.unwrap();
    let [client, other] = [pool.acquire().await.unwrap(), pool.acquire().await.unwrap()];
    client.batch_execute("SELECT 1").await.unwrap();
    drop((client, other));
    let closed = at_rest(&pool).await.closed;
    assert_eq!((closed.invalidated, closed.total()), (2, 2), "{closed:?}");
}

#[tokio::test]
async fn in_statement_mode_a_connection_with_an_open_transaction_is_closed() {
    let Some(server) = server() else { return };
    let pool = pool_of(manager(server).mode(PoolMode::Statement), 1).build().await.unwrap();
    let client = pool.acquire().await.unwrap();
    client.batch_execute("BEGIN").await.unwrap();
    drop(client);
    // One that is still being opened counts as well.
    let client = pool.acquire().await.unwrap();
    let mut begin = Box::pin(client.batch_execute("BEGIN"));
    assert!(poll_once(begin.as_mut()).is_pending());
    drop(begin);
    drop(client);
    let client = pool.acquire().await.unwrap();
    assert!(is_outside(&client).await);
    drop(client);
    let metrics = at_rest(&pool).await;
    assert_eq!((metrics.created, metrics.closed.broken, metrics.closed.failed_reset), (3, 1, 1));
}

// ---- statements ----

#[tokio::test]
async fn a_statement_is_prepared_once_however_many_ask_for_it_at_once() {
    let Some(server) = server() else { return };
    let pool = single(server).await;
    let prepared = "SELECT count(*) FROM pg_prepared_statements WHERE NOT from_sql";
    for _ in 0..3 {
        let client = pool.acquire().await.unwrap();
        let sql = "SELECT $1::int4 + 1";
        let ask = || async { client.prepare_cached(sql).await.unwrap() };
        let statements = tokio::join!(ask(), ask(), ask(), ask());
        assert_eq!(client.query_one(&statements.3, &[&41]).await.unwrap().get::<_, i32>(0), 42);
        assert_eq!(self::ask(&client, prepared).await, "1");
    }
    let client = pool.acquire().await.unwrap();
    client.prepare_typed_cached("SELECT $1", &[Type::INT8]).await.unwrap();
    client.prepare_typed_cached("SELECT $1", &[Type::TEXT]).await.unwrap();
    client.prepare_typed_cached("SELECT $1", &[Type::INT8]).await.unwrap();
    assert_eq!(client.cached_statements(), 3, "types make a difference");
    client.clear_statements();
    assert_eq!(ask(&client, prepared).await, "0");
}

/// The end of a statement asks the driver, whose buffer belongs to whoever writes a request.
#[tokio::test]
async fn nobody_waits_for_the_cache_while_cleared_statements_end() {
    let Some(server) = server() else { return };
    let pool = single(server).await;
    let client = pool.acquire().await.unwrap();
    let statement = client.prepare("SELECT $1::int4").await.unwrap();
    client.prepare_cached("VALUES ('cleared')").await.unwrap();
    let (begins, begun) = mpsc::channel();
    let (goes_on, go_on) = mpsc::channel();
    let (finds, found) = mpsc::channel();
    let client: &millpond::backends::postgres::Client = &client;
    let found = std::thread::scope(|threads| {
        threads.spawn(move || {
            let values = [41].iter().inspect(|_| {
                begins.send(()).unwrap();
                go_on.recv().unwrap();
            });
            drop(poll_once(pin!(client.query_raw(&statement, values))));
        });
        begun.recv_timeout(PATIENCE).unwrap();
        threads.spawn(|| client.clear_statements());
        threads.spawn(move || {
            while client.cached_statements() > 0 {
                std::thread::yield_now();
            }
            finds.send(()).unwrap();
        });
        let found = found.recv_timeout(PATIENCE);
        goes_on.send(()).unwrap();
        found
    });
    found.expect("whoever looks into the cache waits for the driver");
}

#[tokio::test]
async fn a_statement_that_was_given_up_is_prepared_by_the_next_who_asks() {
    let Some(server) = server() else { return };
    let pool = single(server).await;
    let client = pool.acquire().await.unwrap();
    let sql = "SELECT 'prepared in the end'";
    let mut first = Box::pin(client.prepare_cached(sql));
    let mut second = Box::pin(client.prepare_cached(sql));
    assert!(poll_once(first.as_mut()).is_pending());
    assert!(poll_once(second.as_mut()).is_pending());
    drop(first);
    let statement = second.await.unwrap();
    client.query_one(&statement, &[]).await.unwrap();
    client.prepare_cached("SELECT no_such_thing").await.unwrap_err();
    client.prepare_cached("SELECT no_such_thing").await.unwrap_err();
}

#[tokio::test]
async fn the_statement_used_longest_ago_makes_room_for_a_new_one() {
    let Some(server) = server() else { return };
    let prepared = "SELECT string_agg(statement, ' ' ORDER BY statement) \
                    FROM pg_prepared_statements WHERE NOT from_sql";
    let pool = pool_of(manager(server).statement_cache_capacity(2), 1).build().await.unwrap();
    let client = pool.acquire().await.unwrap();
    for sql in ["VALUES ('a')", "VALUES ('b')", "VALUES ('a')", "VALUES ('c')"] {
        client.prepare_cached(sql).await.unwrap();
    }
    assert_eq!(ask(&client, prepared).await, "VALUES ('a') VALUES ('c')");
    drop(client);
    let pool = pool_of(manager(server).statement_cache_capacity(0), 1).build().await.unwrap();
    let client = pool.acquire().await.unwrap();
    let statement = client.prepare_cached("VALUES (1)").await.unwrap();
    assert_eq!(client.query_one(&statement, &[]).await.unwrap().get::<_, i32>(0), 1);
    assert_eq!(client.cached_statements(), 0);
}

#[tokio::test]
async fn a_statement_that_cannot_be_prepared_pushes_nobody_out() {
    let Some(server) = server() else { return };
    let pool = pool_of(manager(server).statement_cache_capacity(2), 1).build().await.unwrap();
    let client = pool.acquire().await.unwrap();
    for sql in ["VALUES ('a')", "VALUES ('b')"] {
        client.prepare_cached(sql).await.unwrap();
    }
    for number in 0..3 {
        client.prepare_cached(&format!("SELECT no_such_thing_{number}")).await.unwrap_err();
        let other = format!("VALUES ({number})");
        let mut given_up = Box::pin(client.prepare_cached(&other));
        assert!(poll_once(given_up.as_mut()).is_pending());
    }
    assert_eq!(client.cached_statements(), 2);
    let prepared = "SELECT count(*) FROM pg_prepared_statements WHERE statement LIKE 'VALUES (''%'";
    assert_eq!(ask(&client, prepared).await, "2");
}

#[tokio::test]
async fn a_cached_statement_that_comes_to_mean_another_table_fails_until_it_is_cleared() {
    let Some(server) = server() else { return };
    server.run(
        "CREATE SCHEMA one CREATE TABLE things (what int); GRANT USAGE ON SCHEMA one TO PUBLIC; \
         CREATE SCHEMA two CREATE TABLE things (what text); GRANT USAGE ON SCHEMA two TO PUBLIC; \
         GRANT ALL ON one.things, two.things TO PUBLIC",
    );
    let pool = pool_of(manager(server).mode(PoolMode::Session), 1).build().await.unwrap();
    let things = async |client: &Client<'_>, schema: &str| {
        client.batch_execute(&format!("SET search_path TO {schema}")).await.unwrap();
        let statement = client.prepare_cached("SELECT * FROM things").await.unwrap();
        client.query(&statement, &[]).await.map(drop)
    };
    things(&pool.acquire().await.unwrap(), "one").await.unwrap();
    for _ in 0..2 {
        let error = things(&pool.acquire().await.unwrap(), "two").await.unwrap_err();
        assert_eq!(error.code(), Some(&SqlState::FEATURE_NOT_SUPPORTED));
    }
    let client = pool.acquire().await.unwrap();
    client.clear_statements();
    things(&client, "two").await.unwrap();
    drop(client);
    assert_eq!(at_rest(&pool).await.created, 1);
}

#[tokio::test]
async fn whoever_discards_what_the_driver_has_prepared_ends_the_connection() {
    let Some(server) = server() else { return };
    let pool = single(server).await;
    for all in ["DISCARD ALL", "DEALLOCATE ALL"] {
        for _ in 0..2 {
            let client = pool.acquire().await.unwrap();
            let statement = client.prepare_cached("VALUES (42)").await.unwrap();
            assert_eq!(client.query_one(&statement, &[]).await.unwrap().get::<_, i32>(0), 42);
        }
        pool.acquire().await.unwrap().batch_execute(all).await.unwrap();
    }
    let metrics = at_rest(&pool).await;
    assert_eq!((metrics.created, metrics.closed.broken), (2, 2));
}

#[tokio::test]
async fn a_query_is_cancelled_by_its_holder() {
    let Some(server) = server() else { return };
    let pool = single(server).await;
    let client = pool.acquire().await.unwrap();
    let token = client.cancel_token();
    let mut query = pin!(client.batch_execute("SELECT pg_sleep(602)"));
    assert!(poll_once(query.as_mut()).is_pending());
    let at_it = "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(602)'";
    eventually("the server is at it", || server.run(at_it) == "1").await;
    token.cancel_query(NoTls).await.unwrap();
    assert_eq!(query.await.unwrap_err().code(), Some(&SqlState::QUERY_CANCELED));
}

#[tokio::test]
async fn a_query_in_a_transaction_is_cancelled_by_the_token_of_the_transaction() {
    let Some(server) = server() else { return };
    let pool = single(server).await;
    let mut client = pool.acquire().await.unwrap();
    let mut transaction = client.transaction().await.unwrap();
    let savepoint = transaction.transaction().await.unwrap();
    let token = savepoint.cancel_token();
    let mut query = pin!(savepoint.batch_execute("SELECT pg_sleep(611)"));
    assert!(poll_once(query.as_mut()).is_pending());
    let at_it = "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(611)'";
    eventually("the server is at it", || server.run(at_it) == "1").await;
    token.cancel_query(NoTls).await.unwrap();
    assert_eq!(query.await.unwrap_err().code(), Some(&SqlState::QUERY_CANCELED));
}

#[tokio::test]
async fn a_transaction_has_the_statements_of_its_connection_and_is_the_librarys_own_for_others() {
    async fn answer(client: &impl GenericClient, statement: &Statement) -> i32 {
        client.query_one(statement, &[&41]).await.unwrap().get(0)
    }
    async fn nested(transaction: &mut impl GenericClient) {
        transaction.transaction().await.unwrap().rollback().await.unwrap();
    }
    let Some(server) = server() else { return };
    let pool = single(server).await;
    let mut client = pool.acquire().await.unwrap();
    let sql = "SELECT $1::int4 + 1";
    client.prepare_cached(sql).await.unwrap();
    let mut transaction = client.transaction().await.unwrap();
    let statement = transaction.prepare_cached(sql).await.unwrap();
    assert_eq!(answer(&*transaction, &statement).await, 42);
    nested(&mut *transaction).await;
    let mut savepoint = transaction.savepoint("one").await.unwrap();
    let within = savepoint.transaction().await.unwrap();
    within.prepare_typed_cached("SELECT $1", &[Type::INT8]).await.unwrap();
    within.commit().await.unwrap();
    savepoint.commit().await.unwrap();
    transaction.rollback().await.unwrap();
    assert_eq!(client.cached_statements(), 2, "the first one was there, and the other one stays");
    let begin = client.build_transaction().isolation_level(IsolationLevel::Serializable);
    let transaction = begin.read_only(true).deferrable(true).start().await.unwrap();
    let statement = transaction.prepare_cached(sql).await.unwrap();
    assert_eq!(answer(&*transaction, &statement).await, 42);
    for (setting, value) in
        [("isolation", "serializable"), ("read_only", "on"), ("deferrable", "on")]
    {
        let sql = format!("SHOW transaction_{setting}");
        assert_eq!(transaction.query_one(&sql, &[]).await.unwrap().get::<_, &str>(0), value);
    }
    transaction.commit().await.unwrap();
    assert_eq!(client.cached_statements(), 2);
    let own: tokio_postgres::Transaction<'_> = (**client).transaction().await.unwrap();
    own.commit().await.unwrap();
}

#[tokio::test]
async fn a_password_that_is_missing_is_asked_for_once() {
    let Some(server) = server() else { return };
    let mut config = Config::new();
    let address = server.address();
    config.host(address.ip().to_string()).port(address.port()).user("locked").dbname("postgres");
    let pool = pool_of(PostgresManager::new(config), 1).build().await.unwrap();
    let error = pool.acquire().await.map(drop).unwrap_err();
    assert!(matches!(error, AcquireError::Connect(_)), "{error:?}");
    assert_eq!(pool.metrics().connect_failures, 1);
}

#[tokio::test]
async fn channel_binding_that_cannot_be_had_is_asked_for_once() {
    let Some(server) = server() else { return };
    // Without encryption there is none.
    let url = format!("{}?channel_binding=require", server.url());
    let pool = pool_of(PostgresManager::from_url(&url).unwrap(), 1).build().await.unwrap();
    let error = pool.acquire().await.map(drop).unwrap_err();
    assert!(matches!(error, AcquireError::Connect(_)), "{error:?}");
    assert_eq!(pool.metrics().connect_failures, 1);
}

// ---- the end ----

#[tokio::test]
async fn the_task_and_the_session_end_with_the_connection() {
    let Some(server) = server() else { return };
    let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let mut config: Config = server.url().parse().unwrap();
    config.application_name("ends_with_it");
    let sessions = || {
        server.run("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'ends_with_it'")
    };
    let before = tasks();
    let pool = pool_of(PostgresManager::new(config), 3).min_idle(3).build().await.unwrap();
    assert_eq!(sessions(), "3");
    // One in the middle of something, which would keep the driver busy, and which no other test counts.
    let detached = pool.acquire().await.unwrap().detach();
    let held = pool.acquire().await.unwrap();
    let mut query = Box::pin(held.batch_execute("SELECT pg_sleep(601)"));
    assert!(poll_once(query.as_mut()).is_pending());
    pool.close().await;
    eventually("the idle one has gone", || sessions() == "2").await;
    drop(detached);
    eventually("the detached one has gone", || sessions() == "1").await;
    drop(query);
    drop(held);
    drop(pool);
    eventually("no task is left", || tasks() == before).await;
    server.run(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
         WHERE application_name = 'ends_with_it'",
    );
}

// ---- where the server is ----

#[tokio::test]
async fn a_server_is_found_by_its_socket_and_behind_others_that_are_not_there() {
    let Some(server) = server() else { return };
    let port = server.address().port();
    let mut config = Config::new();
    config.host_path(server.socket_folder()).port(port).user("millpond").dbname("millpond");
    let pool = pool_of(PostgresManager::new(config), 1).build().await.unwrap();
    let sql = "SELECT inet_server_addr() IS NULL";
    assert_eq!(ask(&pool.acquire().await.unwrap(), sql).await, "t", "by its socket");

    let url = format!(
        "postgresql://millpond@127.0.0.1:1,localhost:{port}/millpond\
         ?target_session_attrs=read-write&load_balance_hosts=random"
    );
    let pool = pool_of(PostgresManager::from_url(&url).unwrap(), 1).build().await.unwrap();
    assert_eq!(ask(&pool.acquire().await.unwrap(), sql).await, "f");
}

#[tokio::test]
async fn a_server_out_of_reach_is_named_though_the_others_are_not_of_the_kind_that_is_wanted() {
    let Some(server) = server() else { return };
    let server = server.address();
    for wanted in ["read-write&options=-c%20default_transaction_read_only=on", "read-only"] {
        let url = format!(
            "postgresql://millpond@127.0.0.1:1,{server}/millpond?target_session_attrs={wanted}"
        );
        let manager = PostgresManager::from_url(&url).unwrap();
        let outcome = millpond::Manager::connect(&manager).await;
        let Err(Error::Open { address, error }) = outcome else { panic!("{outcome:?}") };
        assert_eq!(address, "127.0.0.1:1");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
    }
}

/// Where connections are taken, and nobody ever says a word.
fn silent() -> std::net::TcpListener {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    listener.set_nonblocking(true).unwrap();
    listener
}

/// Which the first server is, and then one that answers.
fn behind(silent: &std::net::TcpListener, server: &Postgres) -> String {
    let (silent, server) = (silent.local_addr().unwrap(), server.address());
    format!("postgresql://millpond@{silent},{server}/millpond")
}

#[tokio::test]
async fn a_host_that_does_not_answer_leaves_time_for_the_next_and_is_tried_last_from_then_on() {
    let Some(server) = server() else { return };
    let silent = silent();
    let manager = PostgresManager::from_url(&behind(&silent, server)).unwrap();
    // With the pool's own limits.
    let pool = Pool::builder(manager).max_size(3).build().await.unwrap();
    let clients = [pool.acquire().await.unwrap(), pool.acquire().await.unwrap()];
    assert_eq!(ask(&clients[1], "SELECT 1").await, "1");
    assert_eq!(pool.metrics().connect_failures, 0);
    assert!(silent.accept().is_ok(), "in the order of the configuration at first");
    assert!(silent.accept().is_err(), "and then no more");
}

#[tokio::test]
async fn what_one_pool_finds_out_about_a_host_those_with_clones_of_its_manager_know() {
    let Some(server) = server() else { return };
    let silent = silent();
    let manager = PostgresManager::from_url(&behind(&silent, server)).unwrap();
    for manager in [manager.clone(), manager] {
        let pool = Pool::builder(manager).max_size(1).build().await.unwrap();
        assert_eq!(ask(&pool.acquire().await.unwrap(), "SELECT 1").await, "1");
    }
    assert!(silent.accept().is_ok(), "the first pool has tried it");
    assert!(silent.accept().is_err(), "and the other one has not");
}

#[tokio::test]
async fn a_dial_goes_on_behind_the_host_at_which_the_one_before_was_cut() {
    let Some(server) = server() else { return };
    let silent = silent();
    for settings in ["", "?connect_timeout=600"] {
        let url = format!("{}{settings}", behind(&silent, server));
        let manager = PostgresManager::from_url(&url).unwrap();
        let limit = std::time::Duration::from_millis(500);
        let pool = pool_of(manager, 1).connect_timeout(limit).build().await.unwrap();
        assert_eq!(ask(&pool.acquire().await.unwrap(), "SELECT 1").await, "1");
        // And seldom another, on a machine that has other things to do.
        let failures = pool.metrics().connect_failures;
        assert!((1..=4).contains(&failures), "{failures}");
    }
}

#[tokio::test]
async fn connect_timeout_is_the_time_for_all_of_an_attempt() {
    let silent = silent();
    let address = silent.local_addr().unwrap();
    let url = format!("postgresql://millpond@{address}/millpond?connect_timeout=1");
    let manager = PostgresManager::from_url(&url).unwrap();
    let answer = tokio::time::timeout(PATIENCE, millpond::Manager::connect(&manager)).await;
    let Err(Error::Open { address: said, error }) = answer.expect("it hangs") else {
        panic!("it is connected")
    };
    assert_eq!((said, error.to_string()), (address.to_string(), "no answer in 1s".to_owned()));
}

#[tokio::test]
async fn a_host_that_was_cut_short_has_another_turn_if_the_others_do_not_serve() {
    let Some(server) = server() else { return };
    let proxy = Proxy::start(server.address());
    proxy.freeze();
    // Nobody listens at the second one.
    let url = format!("postgresql://millpond@{},127.0.0.1:1/millpond", proxy.address());
    let manager = PostgresManager::from_url(&url).unwrap();
    let mut connect = pin!(millpond::Manager::connect(&manager));
    let client = tokio::select! {
        biased;
        client = &mut connect => client,
        () = eventually("both turns are taken", || proxy.accepted() == 2) => {
            proxy.thaw();
            connect.await
        }
    };
    client.unwrap().batch_execute("SELECT 1").await.unwrap();
}

#[tokio::test]
async fn a_configuration_that_cannot_work_is_tried_once_and_names_what_is_wrong() {
    let require = "postgresql://millpond@127.0.0.1/millpond?sslmode=require";
    let direct = "postgresql://millpond@127.0.0.1:1/millpond?sslnegotiation=direct";
    let read = |url| PostgresManager::from_url(url).unwrap();
    let by_url = [
        ("user=millpond", "host is missing, but it must be given, or hostaddr"),
        ("host=a,b port=1,2,3 user=millpond", "port is 1,2,3, but it must be one, or as many as"),
        (
            "host=a,b hostaddr=127.0.0.1 user=millpond",
            "hostaddr is 127.0.0.1, but it must be as many",
        ),
        (require, "sslmode is require, but it needs a TLS connector"),
        (direct, "sslnegotiation is direct, but it needs sslmode=require"),
        ("postgresql://millpond@a,,b/millpond", "host is :5432, but it must have a name before"),
        (
            "host=a,b port=1,0 user=millpond",
            "port is b:0, but it must be a host and, after a colon",
        ),
        ("hostaddr=::1 port=0 user=millpond", "port is [::1]:0, but it must be a host and, after"),
        ("host=a port=0 user=millpond password=hush", "port is that of number 1 (not shown beside"),
    ];
    let by_url = by_url.map(|(url, said)| (read(url), said));
    let alone = [("", 5432, "host is :5432, but it must"), ("a", 0, "port is a:0, but it must")];
    let alone = alone.map(|(host, port, said)| (read("user=millpond").only(host, port), said));
    for (manager, said) in by_url.into_iter().chain(alone) {
        let pool = pool_of(manager, 1).build().await.unwrap();
        let error = pool.acquire().await.map(drop).unwrap_err();
        let AcquireError::Connect(error) = error else { panic!("{error}") };
        assert!(error.error.to_string().starts_with(said), "{error}");
        assert_eq!(pool.metrics().connect_failures, 1);
    }
    let error = PostgresManager::from_url("postgresql://[").unwrap_err();
    assert!(matches!(error, Error::Postgres(_)));
}

#[tokio::test]
async fn a_password_that_changes_is_asked_for_at_each_connect() {
    let Some(server) = server() else { return };
    let attempts = Arc::new(AtomicUsize::new(0));
    let config: Config = server.url().parse().unwrap();
    let manager = PostgresManager::with({
        let attempts = attempts.clone();
        move || {
            let number = attempts.fetch_add(1, SeqCst);
            let mut config = config.clone();
            config.application_name(format!("attempt {number}"));
            config
        }
    });
    let pool = pool_of(manager, 1).build().await.unwrap();
    // Where it leads has been asked for.
    assert_eq!(attempts.swap(0, SeqCst), 1);
    let sql = "SHOW application_name";
    assert_eq!(ask(&pool.acquire().await.unwrap(), sql).await, "attempt 0");
    pool.rotate(|client| Box::pin(async move { Ok(client.batch_execute("SELECT 1").await?) }))
        .await
        .unwrap();
    // 1 was asked where it leads from then on.
    assert_eq!(ask(&pool.acquire().await.unwrap(), sql).await, "attempt 2");
}

// ---- TLS ----

/// A server that has a certificate for `localhost`, and a connector that trusts it.
fn encrypted() -> Option<(Postgres, MakeRustlsConnect)> {
    let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let settings = ["ssl=on", "ssl_cert_file=../certificate", "ssl_key_file=../key"];
    let (certificate, key) = (certified.cert.pem(), certified.signing_key.serialize_pem());
    let server = Postgres::start_with(&settings, &[("certificate", &certificate), ("key", &key)])?;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certified.cert.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider);
    let config = config.with_protocol_versions(&[&rustls::version::TLS13]).unwrap();
    let config = config.with_root_certificates(roots).with_no_client_auth();
    Some((server, MakeRustlsConnect::new(config)))
}

#[tokio::test]
async fn an_encrypted_session_is_read_along_with_inside_the_encryption() {
    let Some((server, connector)) = encrypted() else { return };
    let port = server.address().port();
    let url = format!("postgresql://millpond@localhost:{port}/millpond?sslmode=require");
    let manager = PostgresManager::from_url(&url).unwrap().tls(connector);
    let pool = Pool::builder(manager).max_size(1).acquire_timeout(PATIENCE);
    let pool = pool.reset_timeout(PATIENCE).build().await.unwrap();
    let process =
        "SELECT pg_backend_pid()::text || ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    let client = pool.acquire().await.unwrap();
    let first: String = client.query_one(process, &[]).await.unwrap().get(0);
    assert!(first.ends_with("true"), "{first}");
    client.batch_execute("BEGIN; SELECT pg_current_xact_id()").await.unwrap();
    drop(client);
    let client = pool.acquire().await.unwrap();
    let outside = client.query_one("SELECT pg_current_xact_id_if_assigned() IS NULL", &[]);
    assert!(outside.await.unwrap().get::<_, bool>(0));
    {
        let mut query = pin!(client.batch_execute("SELECT pg_sleep(600)"));
        assert!(poll_once(query.as_mut()).is_pending());
        let at_it = "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(600)'";
        eventually("the server is at it", || server.run(at_it) == "1").await;
    }
    drop(client);
    // The request to cancel is encrypted as well.
    let client = pool.acquire().await.unwrap();
    let row = client.query_one(process, &[]).await.unwrap();
    assert_eq!(row.get::<_, String>(0), first);
    drop(client);
    let metrics = at_rest(&pool).await;
    assert_eq!((metrics.created, metrics.closed.total(), metrics.resets), (1, 0, 2));
}

#[tokio::test]
async fn a_cancel_that_a_cut_reset_has_not_sent_yet_is_left_to_the_close() {
    let Some((server, connector)) = encrypted() else { return };
    let proxy = Proxy::start(server.address());
    let port = proxy.address().port();
    let url = format!("postgresql://millpond@localhost:{port}/millpond?sslmode=require");
    let manager = PostgresManager::from_url(&url).unwrap().tls(connector);
    let limit = std::time::Duration::from_millis(100);
    let pool = Pool::builder(manager).max_size(1).acquire_timeout(PATIENCE).reset_timeout(limit);
    let pool = pool.close_timeout(PATIENCE).build().await.unwrap();
    let at_it = "SELECT count(*) FROM pg_stat_activity \
                 WHERE query = 'SELECT pg_sleep(609)' AND state = 'active'";
    let client = pool.acquire().await.unwrap();
    {
        let mut query = pin!(client.batch_execute("SELECT pg_sleep(609)"));
        assert!(poll_once(query.as_mut()).is_pending());
        eventually("the server is at it", || server.run(at_it) == "1").await;
    }
    // A cancel gets no further than the first question, which is whether the server encrypts.
    proxy.freeze();
    drop(client);
    eventually("the reset is cut", || pool.metrics().closed.failed_reset == 1).await;
    proxy.thaw();
    eventually("the server has left it", || server.run(at_it) == "0").await;
    at_rest(&pool).await;
}

/// Takes an address that has no name for `localhost`, as connectors do that do not look at names.
#[derive(Clone)]
struct Careless(MakeRustlsConnect);

impl MakeTlsConnect<Socket> for Careless {
    type Stream = <MakeRustlsConnect as MakeTlsConnect<Socket>>::Stream;
    type TlsConnect = <MakeRustlsConnect as MakeTlsConnect<Socket>>::TlsConnect;
    type Error = <MakeRustlsConnect as MakeTlsConnect<Socket>>::Error;

    fn make_tls_connect(&mut self, name: &str) -> Result<Self::TlsConnect, Self::Error> {
        let name = if name.is_empty() { "localhost" } else { name };
        MakeTlsConnect::<Socket>::make_tls_connect(&mut self.0, name)
    }
}

/// An address of the server, and no name.
fn nameless(server: &Postgres) -> Config {
    let mut config: Config = "user=millpond dbname=millpond".parse().unwrap();
    config.hostaddr(server.address().ip()).port(server.address().port());
    config
}

#[tokio::test]
async fn nothing_is_encrypted_for_a_host_without_a_name_to_check_its_certificate_by() {
    let Some((server, connector)) = encrypted() else { return };
    let mut empty = nameless(&server);
    empty.host("");
    for config in [nameless(&server), empty] {
        let manager = PostgresManager::new(config).tls(Careless(connector.clone()));
        let error = millpond::Manager::connect(&manager).await.map(drop).unwrap_err();
        let cause = std::error::Error::source(&error).unwrap();
        assert!(cause.to_string().starts_with("host is , but it must be"), "{error}: {cause}");
    }
}

#[tokio::test]
async fn a_server_that_an_address_leads_to_is_checked_by_the_name_that_its_certificate_has() {
    let Some((server, connector)) = encrypted() else { return };
    let (ip, port) = (server.address().ip(), server.address().port());
    let require: Config = "user=millpond dbname=millpond sslmode=require".parse().unwrap();
    let mut by_address = require.clone();
    by_address.hostaddr(ip).port(port);
    let alone = || PostgresManager::new(require.clone()).only(&ip.to_string(), port);
    let without = alone().tls(connector.clone());
    let error = millpond::Manager::connect(&without).await.map(drop).unwrap_err();
    let cause = std::error::Error::source(&error).unwrap();
    assert!(cause.to_string().contains("certificate"), "{error}: {cause}");
    for manager in [alone(), PostgresManager::new(by_address)] {
        let manager = manager.certificate_name("localhost").tls(connector.clone());
        let pool = Pool::builder(manager).max_size(1).acquire_timeout(PATIENCE);
        let pool = pool.reset_timeout(PATIENCE).build().await.unwrap();
        let client = pool.acquire().await.unwrap();
        let encrypted = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
        assert!(client.query_one(encrypted, &[]).await.unwrap().get::<_, bool>(0));
        {
            let mut query = pin!(client.batch_execute("SELECT pg_sleep(610)"));
            assert!(poll_once(query.as_mut()).is_pending());
            let at_it =
                "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(610)'";
            eventually("the server is at it", || server.run(at_it) == "1").await;
        }
        drop(client);
        // It is cancelled in the same way.
        pool.acquire().await.unwrap().batch_execute("SELECT 1").await.unwrap();
        let metrics = at_rest(&pool).await;
        assert_eq!((metrics.created, metrics.closed.total()), (1, 0));
    }
}

#[tokio::test]
async fn a_configuration_that_no_tls_connector_can_serve_is_tried_once_and_names_what_is_wrong() {
    let Some((server, connector)) = encrypted() else { return };
    let port = server.address().port();
    let direct = format!("postgresql://millpond@localhost:{port}/millpond?sslnegotiation=direct");
    let [disabled, direct] = [format!("{direct}&sslmode=disable"), direct]
        .map(|url| PostgresManager::from_url(&url).unwrap());
    let mut by_socket: Config = "user=millpond dbname=millpond".parse().unwrap();
    by_socket.host_path(server.socket_folder()).port(port);
    let mut by_address = nameless(&server);
    for config in [&mut by_socket, &mut by_address] {
        config.ssl_mode(SslMode::Require);
    }
    let socket = format!("host is {}:{port}", server.socket_folder().display());
    let address = format!("host is {}", server.address());
    for (manager, said) in [
        (direct, "sslnegotiation is direct, but it needs sslmode=require".to_owned()),
        (disabled, "sslnegotiation is direct, but it needs sslmode=require".to_owned()),
        (PostgresManager::new(by_socket.clone()), format!("{socket}, but it must have a name")),
        (PostgresManager::new(by_address.clone()), format!("{address}, but it must have a name")),
        (
            manager(&server).certificate_name(""),
            "certificate_name is , but it must not be".to_owned(),
        ),
        (
            PostgresManager::new(by_socket.password("hush").clone()),
            "host is that of number 1 (not shown beside a password), but".to_owned(),
        ),
    ] {
        let manager = manager.tls(Careless(connector.clone()));
        let error = millpond::Manager::connect(&manager).await.map(drop).unwrap_err();
        assert!(millpond::Manager::is_permanent(&manager, &error), "{error:?}");
        assert!(error.to_string().starts_with(&said), "{error}");
    }
    // One that can be encrypted is enough.
    let mut second: Config = "user=millpond dbname=millpond sslmode=require".parse().unwrap();
    second.host_path(server.socket_folder()).host("localhost").port(port);
    let manager = PostgresManager::new(second).tls(connector);
    let client = millpond::Manager::connect(&manager).await.unwrap();
    client.batch_execute("SELECT 1").await.unwrap();
}

#[tokio::test]
async fn a_host_without_a_name_serves_where_nothing_is_encrypted() {
    let Some((certified, connector)) = encrypted() else { return };
    let Some(server) = server() else { return };
    let mut by_socket: Config = "user=millpond dbname=millpond".parse().unwrap();
    by_socket.host_path(certified.socket_folder()).port(certified.address().port());
    for (server, config) in [(server, nameless(server)), (&certified, by_socket)] {
        let manager = PostgresManager::new(config).tls(Careless(connector.clone()));
        let pool = Pool::builder(manager).max_size(1).acquire_timeout(PATIENCE);
        let pool = pool.reset_timeout(PATIENCE).build().await.unwrap();
        let client = pool.acquire().await.unwrap();
        {
            let mut query = pin!(client.batch_execute("SELECT pg_sleep(606)"));
            assert!(poll_once(query.as_mut()).is_pending());
            let at_it =
                "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(606)'";
            eventually("the server is at it", || server.run(at_it) == "1").await;
        }
        drop(client);
        // It is cancelled in the same way.
        pool.acquire().await.unwrap().batch_execute("SELECT 1").await.unwrap();
        let metrics = at_rest(&pool).await;
        assert_eq!((metrics.created, metrics.closed.total()), (1, 0));
    }
}

/// More than the system can express is the most that it can, and none at all its own.
#[tokio::test]
async fn keepalives_that_are_out_of_range_keep_nobody_from_connecting() {
    let Some(server) = server() else { return };
    for (time, retries) in [(0, 0), (32_767, 127), (32_768, 128), (u64::MAX, u32::MAX)] {
        let mut config: Config = server.url().parse().unwrap();
        let time = std::time::Duration::from_secs(time);
        config.keepalives_idle(time).keepalives_interval(time).keepalives_retries(retries);
        config.tcp_user_timeout(time);
        let pool = pool_of(PostgresManager::new(config), 1).build().await.unwrap();
        drop(pool.acquire().await.unwrap());
        assert_eq!(pool.metrics().connect_failures, 0);
    }
}

#[test]
fn those_who_wait_on_all_of_the_runtimes_blocking_threads_get_their_connections() {
    let Some(server) = server() else { return };
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(1).max_blocking_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        // A name has to be looked up, which blocks.
        let url = format!("postgresql://millpond@localhost:{}/millpond", server.address().port());
        let pool = pool_of(PostgresManager::from_url(&url).unwrap(), 2).build().await.unwrap();
        let waiting = [(); 2].map(|()| {
            let pool = pool.clone();
            tokio::task::spawn_blocking(move || drop(pool.acquire_blocking().unwrap()))
        });
        for waiting in waiting {
            joined(waiting).await;
        }
    });
}

#[tokio::test]
async fn who_asks_for_no_encryption_gets_none_though_the_server_has_it() {
    let Some((server, _)) = encrypted() else { return };
    let manager = PostgresManager::from_url(&server.url()).unwrap().tls(NoTls);
    let pool = Pool::builder(manager).max_size(1).acquire_timeout(PATIENCE).build().await.unwrap();
    let encrypted = "SELECT ssl::text FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    let row = pool.acquire().await.unwrap().query_one(encrypted, &[]).await.unwrap();
    assert_eq!(row.get::<_, String>(0), "false");
}

#[tokio::test]
async fn a_certificate_that_is_not_trusted_is_an_error_that_says_so() {
    let Some((server, _)) = encrypted() else { return };
    let Some((_other, connector)) = encrypted() else { return };
    let port = server.address().port();
    let url = format!("postgresql://millpond@localhost:{port}/millpond?sslmode=require");
    let manager = PostgresManager::from_url(&url).unwrap().tls(connector);
    let pool = Pool::builder(manager).max_size(1).build().await.unwrap();
    pool.warm_up(1).await.unwrap_err();
    let error = pool.acquire_timeout(std::time::Duration::from_millis(300)).await.map(drop);
    let AcquireError::Timeout(timeout) = error.unwrap_err() else { panic!("it may be mended") };
    let OperationError::Failed(error) = &timeout.last_connect_error().unwrap().error else {
        panic!("{timeout}");
    };
    let cause = std::error::Error::source(error).unwrap();
    assert!(cause.to_string().contains("certificate"), "{error}: {cause}");
}
