//! Pools of sqlx's connections, on a PostgreSQL server that dies, and with futures that are dropped
//! half-way.

#![cfg(feature = "sqlx")]
#![allow(clippy::unwrap_used, reason = "these are tests, though clippy only sees their helpers")]

mod support;
use support::*;

use millpond::backends::sqlx::SqlxManager;
use millpond::{
    AcquireError, CheckPolicy, Manager, OperationError, Pool, PoolBuilder, PoolMetrics, RotateError,
};
use sqlx::postgres::{PgConnectOptions, PgConnection, PgRow};
use sqlx::{AssertSqlSafe, Connection, Postgres as Pg, Row};
use sqlx_core::any::{Any, driver::install_drivers};
use std::mem::ManuallyDrop;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::task::JoinSet;

const MOMENT: Duration = Duration::from_millis(100);

type PgPool = Pool<SqlxManager<Pg>>;

fn builder(url: &str, max_size: usize) -> PoolBuilder<SqlxManager<Pg>> {
    let manager = SqlxManager::<Pg>::from_url(url).unwrap();
    // Slow machines take their time.
    Pool::builder(manager).max_size(max_size).reset_timeout(PATIENCE).acquire_timeout(PATIENCE)
}

async fn pool(server: &Postgres, max_size: usize) -> PgPool {
    builder(&server.url(), max_size).build().await.unwrap()
}

/// Waits until nothing is under way, then asserts that the counts add up.
async fn exact(pool: &PgPool) -> PoolMetrics {
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

async fn backend(connection: &mut PgConnection) -> i32 {
    sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(connection).await.unwrap()
}

/// Two statements have the same time only in one transaction.
async fn is_in_transaction(connection: &mut PgConnection) -> bool {
    let mut times = Vec::<String>::new();
    for _ in 0..2 {
        let time = sqlx::query_scalar("SELECT now()::text").fetch_one(&mut *connection).await;
        times.push(time.unwrap());
    }
    times[0] == times[1]
}

#[tokio::test]
async fn a_connection_is_used_again_with_its_statements() {
    let Some(server) = Postgres::start(&[]) else { return };
    let pool = pool(&server, 1).await;
    let first = backend(&mut pool.acquire().await.unwrap()).await;
    for _ in 0..3 {
        let mut connection = pool.acquire().await.unwrap();
        assert_eq!(connection.cached_statements_size(), 1);
        assert_eq!(backend(&mut connection).await, first);
    }
    let metrics = exact(&pool).await;
    assert_eq!((metrics.created, metrics.resets, metrics.closed.total()), (1, 4, 0));
}

#[tokio::test]
async fn a_migration_breaks_what_a_connection_has_prepared_until_the_pool_is_invalidated() {
    let Some(server) = Postgres::start(&[]) else { return };
    let pool = pool(&server, 1).await;
    let run = async |sql: &'static str| {
        sqlx::query(sql).execute(&mut *pool.acquire().await.unwrap()).await
    };
    run("CREATE TABLE migrated (a int)").await.unwrap();
    run("SELECT * FROM migrated").await.unwrap();
    run("ALTER TABLE migrated ADD COLUMN b int").await.unwrap();
    for _ in 0..2 {
        let error = run("SELECT * FROM migrated").await.unwrap_err();
        let code = error.as_database_error().and_then(|error| error.code());
        assert_eq!(code.as_deref(), Some("0A000"), "{error}");
    }
    pool.invalidate();
    run("SELECT * FROM migrated").await.unwrap();
}

#[tokio::test]
async fn a_transaction_that_is_dropped_is_rolled_back_at_once() {
    let Some(server) = Postgres::start(&[]) else { return };
    server.run("CREATE TABLE t AS SELECT 1 AS n; GRANT ALL ON t TO millpond");
    // What sqlx knows of, it tells without being asked.
    let manager = SqlxManager::<Pg>::from_url(&server.url()).unwrap().verify_on_release(false);
    for pool in [pool(&server, 1).await, Pool::builder(manager).max_size(1).build().await.unwrap()]
    {
        let mut connection = pool.acquire().await.unwrap();
        let mut transaction = connection.begin().await.unwrap();
        let mut inner = transaction.begin().await.unwrap();
        sqlx::query("UPDATE t SET n = 2").execute(&mut *inner).await.unwrap();
        drop(inner);
        sqlx::query("UPDATE t SET n = 3").execute(&mut *transaction).await.unwrap();
        drop(transaction);
        drop(connection);
        // Nobody has used the connection since, and yet its lock is gone.
        eventually("it is clean", || pool.metrics().counts.idle == 1).await;
        assert_eq!(server.run("SET lock_timeout = 100; UPDATE t SET n = n + 10 RETURNING n"), "11");
        server.run("UPDATE t SET n = 1");
        assert!(!is_in_transaction(&mut pool.acquire().await.unwrap()).await);
        let metrics = exact(&pool).await;
        assert_eq!((metrics.created, metrics.closed.total()), (1, 0));
    }
}

#[tokio::test]
async fn a_transaction_that_is_committed_stays_so() {
    let Some(server) = Postgres::start(&[]) else { return };
    server.run("CREATE TABLE t AS SELECT 1 AS n; GRANT ALL ON t TO millpond");
    let pool = pool(&server, 1).await;
    let mut connection = pool.acquire().await.unwrap();
    let mut transaction = connection.begin().await.unwrap();
    sqlx::query("UPDATE t SET n = 2").execute(&mut *transaction).await.unwrap();
    transaction.commit().await.unwrap();
    drop(connection);
    exact(&pool).await;
    assert_eq!(server.run("SELECT n FROM t"), "2");
    assert!(!server.log().contains("WARNING"), "{}", server.log());
}

#[tokio::test]
async fn a_transaction_that_is_left_open_is_never_handed_on() {
    let Some(server) = Postgres::start(&[]) else { return };
    let pool = pool(&server, 1).await;

    let mut connection = pool.acquire().await.unwrap();
    sqlx::query("BEGIN").execute(&mut *connection).await.unwrap();
    assert!(is_in_transaction(&mut connection).await);
    drop(connection);
    assert!(!is_in_transaction(&mut pool.acquire().await.unwrap()).await, "sqlx knows nothing");

    let mut connection = pool.acquire().await.unwrap();
    let _forgotten = ManuallyDrop::new(connection.begin().await.unwrap());
    drop(connection);
    let mut connection = pool.acquire().await.unwrap();
    assert!(!connection.is_in_transaction());
    assert!(!is_in_transaction(&mut connection).await);
    assert_eq!(pool.metrics().created, 1);

    sqlx::query("BEGIN").execute(&mut *connection).await.unwrap();
    sqlx::query("SELECT 1 / 0").execute(&mut *connection).await.unwrap_err();
    drop(connection);
    assert!(!is_in_transaction(&mut pool.acquire().await.unwrap()).await);
    let metrics = exact(&pool).await;
    assert_eq!((metrics.closed.failed_reset, metrics.created), (1, 2), "a failed transaction");
}

/// Of which only the driver knows which database it is.
#[tokio::test]
async fn a_transaction_that_any_leaves_open_is_never_handed_on() {
    let Some(server) = Postgres::start(&[]) else { return };
    install_drivers(&[sqlx_postgres::any::DRIVER]).unwrap();
    let manager = SqlxManager::<Any>::from_url(&server.url()).unwrap();
    let builder = Pool::builder(manager).max_size(1).reset_timeout(PATIENCE);
    let pool = builder.build().await.unwrap();
    for forgotten in [false, true] {
        let mut connection = pool.acquire().await.unwrap();
        if forgotten {
            let _forgotten = ManuallyDrop::new(connection.begin().await.unwrap());
        } else {
            sqlx::raw_sql("BEGIN").execute(&mut *connection).await.unwrap();
        }
        drop(connection);
        let mut connection = pool.acquire().await.unwrap();
        let mut times = Vec::<String>::new();
        for _ in 0..2 {
            let time = sqlx::query_scalar("SELECT now()::text").fetch_one(&mut *connection).await;
            times.push(time.unwrap());
        }
        assert_ne!(times[0], times[1], "a transaction is open");
    }
    assert_eq!(pool.metrics().created, 1);

    let wrong = server.url().replace("millpond@", "locked:wrong@");
    let pool = Pool::builder(SqlxManager::<Any>::from_url(&wrong).unwrap()).build().await.unwrap();
    assert!(matches!(pool.acquire().await, Err(AcquireError::Connect(_))), "it would try again");
}

#[tokio::test]
async fn a_begin_that_is_dropped_at_any_poll_leaves_no_transaction() {
    let Some(server) = Postgres::start(&[]) else { return };
    let proxy = Proxy::start(server.address());
    // A network in which nothing is there at once.
    proxy.delay(Duration::from_millis(1));
    let url = format!("postgresql://millpond@{}/millpond", proxy.address());
    let pool = builder(&url, 1).build().await.unwrap();
    let mut dropped = 0;
    for polls in 0..64 {
        let mut connection = pool.acquire().await.unwrap();
        dropped += u32::from(cut_after(polls, connection.begin()).await.is_none());
        drop(connection);
        let mut connection = pool.acquire().await.unwrap();
        assert!(!is_in_transaction(&mut connection).await, "dropped after {polls} polls");
    }
    assert!(dropped > 0);
    assert_eq!(exact(&pool).await.created, 1);
}

#[tokio::test]
async fn a_query_that_is_dropped_at_any_poll_leaves_nothing_of_its_answer() {
    let Some(server) = Postgres::start(&[]) else { return };
    let proxy = Proxy::start(server.address());
    proxy.delay(Duration::from_millis(1));
    let url = format!("postgresql://millpond@{}/millpond", proxy.address());
    let pool = builder(&url, 1).build().await.unwrap();
    let mut dropped = 0;
    for polls in 0..64 {
        let mut connection = pool.acquire().await.unwrap();
        let rows = "SELECT n, repeat('x', 100) FROM generate_series($1::int4, $1 + 1999) AS n";
        let query = sqlx::query(rows).bind(polls).fetch_all(&mut *connection);
        dropped += u32::from(cut_after(polls as usize, query).await.is_none());
        drop(connection);
        let mut connection = pool.acquire().await.unwrap();
        let row: PgRow = sqlx::query("SELECT $1::int4")
            .bind(1_000_000 + polls)
            .fetch_one(&mut *connection)
            .await
            .unwrap();
        assert_eq!((row.len(), row.get::<i32, _>(0)), (1, 1_000_000 + polls));
    }
    assert!(dropped > 8, "{dropped}");
    let metrics = exact(&pool).await;
    assert_eq!((metrics.created, metrics.closed.total()), (1, 0));
}

#[tokio::test]
async fn a_query_that_goes_on_at_the_server_is_waited_for_until_the_reset_timeout() {
    let Some(server) = Postgres::start(&[]) else { return };
    let pool = pool(&server, 1).await;
    let mut connection = pool.acquire().await.unwrap();
    let first = backend(&mut connection).await;
    let nap = sqlx::query("SELECT pg_sleep(0.05)").execute(&mut *connection);
    assert!(cut_after(0, nap).await.is_none());
    drop(connection);
    assert_eq!(backend(&mut pool.acquire().await.unwrap()).await, first);

    let impatient = builder(&server.url(), 1).reset_timeout(MOMENT).build().await.unwrap();
    let mut connection = impatient.acquire().await.unwrap();
    let first = backend(&mut connection).await;
    // The statement must have been prepared for the sleep to begin.
    let sleep = sqlx::raw_sql("SELECT pg_sleep(1000)").execute(&mut *connection);
    assert!(cut_after(0, sleep).await.is_none());
    drop(connection);
    let mut connection = impatient.acquire().await.unwrap();
    assert_ne!(backend(&mut connection).await, first);
    let metrics = impatient.metrics();
    assert_eq!((metrics.closed.failed_reset, metrics.closed.total()), (1, 1));
    drop(connection);
    exact(&impatient).await;
    // The server does not notice that nobody is left to sleep for.
    server.kill();
}

#[tokio::test]
async fn what_was_given_up_goes_on_at_the_server_unless_it_looks_whether_anybody_is_left() {
    let Some(server) = Postgres::start(&[]) else { return };
    let options: PgConnectOptions = server.url().parse().unwrap();
    let looks = options.clone().options([("client_connection_check_interval", "100ms")]);
    // The first ones stay.
    for (options, left) in [(looks, "0"), (options, "5")] {
        let manager = SqlxManager::<Pg>::new(options);
        let pool = Pool::builder(manager).max_size(1).reset_timeout(MOMENT);
        let pool = pool.acquire_timeout(PATIENCE).build().await.unwrap();
        for _ in 0..5 {
            let mut connection = pool.acquire().await.unwrap();
            let sleep = sqlx::raw_sql("SELECT pg_sleep(1000)").execute(&mut *connection);
            assert!(cut_after(0, sleep).await.is_none());
        }
        assert_eq!(exact(&pool).await.closed.failed_reset, 5);
        let count = "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(1000)'";
        eventually("as many are left", || server.run(count) == left).await;
    }
    // The server does not notice that nobody is left to sleep for.
    server.kill();
}

async fn string(connection: &mut PgConnection, sql: &str) -> String {
    let row = sqlx::raw_sql(AssertSqlSafe(sql)).fetch_one(connection).await.unwrap();
    row.get(0)
}

/// sqlx loses count of the answers then.
#[tokio::test]
async fn a_copy_that_fails_or_is_dropped_leaves_nothing_of_its_answer() {
    let Some(server) = Postgres::start(&[]) else { return };
    server.run("CREATE TABLE t (n int); GRANT ALL ON t TO millpond");
    let pool = pool(&server, 1).await;
    for way in 0..6 {
        let mut connection = pool.acquire().await.unwrap();
        match way {
            0 => drop(connection.copy_out_raw("COPY nowhere TO STDOUT").await.err().unwrap()),
            1 => drop(connection.copy_out_raw("COPY t TO STDOUT").await.unwrap()),
            2 => {
                let all = "COPY (SELECT generate_series(1, 10000)) TO STDOUT";
                drop(connection.copy_out_raw(all).await.unwrap());
            }
            3 => drop(cut_after(0, connection.copy_out_raw("COPY t TO STDOUT")).await),
            4 => drop(cut_after(0, connection.copy_in_raw("COPY t FROM STDIN")).await),
            _ => {
                let copy = connection.copy_in_raw("COPY t FROM STDIN").await.unwrap();
                drop(cut_after(0, copy.finish()).await);
            }
        }
        drop(connection);
        for number in 0..3 {
            let mine = format!("{way}, {number}");
            let mut connection = pool.acquire().await.unwrap();
            assert_eq!(string(&mut connection, &format!("SELECT '{mine}'")).await, mine);
        }
    }
    exact(&pool).await;
}

/// One request of a client that may give it up: `None` if it did.
async fn request(pool: &PgPool, number: i64, random: &mut Random) -> Option<i64> {
    let mut connection = pool.acquire().await.unwrap();
    if random.below(5) > 0 {
        let sql = "SELECT $1::int8, repeat('x', 1 + ($1 % 5000)::int4)";
        let row = sqlx::query(sql).bind(number).fetch_one(&mut *connection).await.unwrap();
        assert_eq!(row.get::<String, _>(1).len() as i64, 1 + number % 5000);
        return Some(row.get(0));
    }
    let polls = random.below(4);
    match random.below(4) {
        0 => {
            // A failure that nobody waits for.
            let failing = sqlx::query("SELECT 1 / $1::int4").bind(0).execute(&mut *connection);
            drop(cut_after(polls, failing).await);
        }
        1 => {
            let begin = cut_after(polls, connection.begin()).await;
            drop(begin);
        }
        2 => {
            let sql = "SELECT repeat('y', 100) FROM generate_series(1, 5000)";
            drop(cut_after(polls, sqlx::query(sql).fetch_all(&mut *connection)).await);
        }
        _ => {
            let mut transaction = connection.begin().await.unwrap();
            let query = sqlx::query("SELECT -1::int8").execute(&mut *transaction);
            drop(cut_after(polls, query).await);
        }
    }
    None
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_answer_reaches_another_request_while_a_fifth_are_given_up() {
    let Some(server) = Postgres::start(&[]) else { return };
    let pool = pool(&server, 4).await;
    let mut tasks = JoinSet::new();
    for client in 0..12_i64 {
        let pool = pool.clone();
        tasks.spawn(async move {
            let mut random = Random::new(client as u64 + 1);
            let mut given_up = 0;
            for number in client * 1_000..client * 1_000 + 150 {
                match request(&pool, number, &mut random).await {
                    Some(answer) => assert_eq!(answer, number),
                    None => given_up += 1,
                }
            }
            given_up
        });
    }
    let given_up: u32 = tasks.join_all().await.into_iter().sum();
    assert!(given_up > 200, "{given_up}");
    for _ in 0..4 {
        assert!(!is_in_transaction(&mut pool.acquire().await.unwrap()).await);
    }
    let metrics = exact(&pool).await;
    // Only the error of an abandoned query costs its connection.
    assert_eq!(metrics.closed.total(), metrics.closed.failed_reset, "{metrics:?}");
    assert!(metrics.closed.failed_reset < u64::from(given_up), "{metrics:?}");
}

#[tokio::test]
async fn a_wrong_password_is_tried_once_and_so_is_an_unknown_database() {
    let Some(server) = Postgres::start(&[]) else { return };
    let refused = async |url: &str| {
        let pool = builder(url, 4).build().await.unwrap();
        let (first, second) = tokio::join!(pool.acquire(), pool.acquire());
        assert!(matches!(second.unwrap_err(), AcquireError::Connect(_)), "it waited, too");
        let Err(AcquireError::Connect(error)) = first else { panic!("it would try again") };
        let OperationError::Failed(sqlx::Error::Database(error)) = &error.error else {
            panic!("{error}")
        };
        assert_eq!(pool.metrics().connect_failures, 1);
        error.code().unwrap().into_owned()
    };
    let wrong = server.url().replace("millpond@", "locked:wrong@");
    assert_eq!(refused(&wrong).await, "28P01");
    assert_eq!(server.log().matches("password authentication failed").count(), 1);
    assert_eq!(refused(&format!("{}_is_not_there", server.url())).await, "3D000");

    let manager = SqlxManager::<Pg>::from_url(&wrong).unwrap().permanent(|_| false);
    let pool = Pool::builder(manager).build().await.unwrap();
    let error = pool.acquire_timeout(5 * MOMENT).await.unwrap_err();
    assert!(matches!(error, AcquireError::Timeout(_)), "{error}");
    eventually("it is tried again", || pool.metrics().connect_failures > 1).await;
}

#[tokio::test]
async fn a_password_that_changes_is_asked_for_at_each_connect() {
    let Some(server) = Postgres::start(&[]) else { return };
    let options: PgConnectOptions = server.url().parse().unwrap();
    let password = Arc::new(Mutex::new("secret"));
    let manager = SqlxManager::<Pg>::with({
        let password = password.clone();
        move || options.clone().username("locked").password(*password.lock().unwrap())
    });
    let pool = Pool::builder(manager).max_size(2).reset_timeout(PATIENCE).build().await.unwrap();
    let old = backend(&mut pool.acquire().await.unwrap()).await;
    exact(&pool).await;
    server.run("ALTER USER locked PASSWORD 'second'");
    let error = pool.rotate(|connection| Box::pin(connection.ping())).await.unwrap_err();
    assert!(matches!(error, RotateError::Connect(_)), "{error}");
    // A new password does not concern the connections there are, nor their resets.
    *password.lock().unwrap() = "second";
    drop(pool.acquire().await.unwrap().begin().await.unwrap());
    exact(&pool).await;
    assert_eq!(backend(&mut pool.acquire().await.unwrap()).await, old);
    exact(&pool).await;
    pool.rotate(|connection| Box::pin(connection.ping())).await.unwrap();
    assert_ne!(backend(&mut pool.acquire().await.unwrap()).await, old);
    assert_eq!(exact(&pool).await.closed.invalidated, 1);
}

#[tokio::test]
async fn a_bad_url_is_refused_and_no_password_is_shown() {
    assert!(matches!(SqlxManager::<Pg>::from_url("no url"), Err(sqlx::Error::Configuration(_))));
    let options = PgConnectOptions::new_without_pgpass().password("secret").host("here");
    let manager = SqlxManager::<Pg>::new(options);
    assert_eq!(manager.options().get_host(), "here");
    let shown = format!("{manager:?}");
    assert_eq!(shown, "SqlxManager { database: \"PostgreSQL\", .. }");
    assert!(manager.is_permanent(&sqlx::Error::Configuration("bad".into())));
    assert!(!manager.is_permanent(&sqlx::Error::Io(std::io::ErrorKind::TimedOut.into())));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_pool_recovers_from_a_server_that_dies_under_load() {
    let Some(server) = Postgres::start(&[]) else { return };
    recovers(&server, pool(&server, 4).await).await;
}

/// What failed is found out when it is released, though nobody asks the server.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_pool_recovers_without_verifying_as_well() {
    let Some(server) = Postgres::start(&[]) else { return };
    let manager = SqlxManager::<Pg>::from_url(&server.url()).unwrap().verify_on_release(false);
    let builder = Pool::builder(manager).max_size(4).acquire_timeout(PATIENCE);
    recovers(&server, builder.build().await.unwrap()).await;
}

/// Kills the server twice, with all connections in use.
async fn recovers(server: &Postgres, pool: PgPool) {
    let (right, wrong) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let over = Arc::new(AtomicBool::new(false));
    let mut tasks = JoinSet::new();
    for client in 0..8_i64 {
        let (pool, right, wrong) = (pool.clone(), right.clone(), wrong.clone());
        let over = over.clone();
        tasks.spawn(async move {
            for number in client * 1_000_000.. {
                if over.load(SeqCst) {
                    return;
                }
                let Ok(mut connection) = pool.acquire().await else { continue };
                let query = sqlx::query_scalar::<_, i64>("SELECT $1::int8").bind(number);
                match query.fetch_one(&mut *connection).await {
                    Ok(answer) => {
                        assert_eq!(answer, number);
                        right.fetch_add(1, SeqCst);
                    }
                    Err(_) => {
                        wrong.fetch_add(1, SeqCst);
                        // Whoever fails for ever must not keep the test from its end.
                        tokio::task::yield_now().await;
                    }
                }
            }
        });
    }
    eventually("all is well", || right.load(SeqCst) > 100).await;
    for _ in 0..2 {
        eventually("all are open", || pool.metrics().counts.alive() == 4).await;
        let before = pool.metrics().closed.total();
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
    let metrics = exact(&pool).await;
    assert_eq!(metrics.counts.alive(), 4, "{metrics:?}");
    assert!(wrong.load(SeqCst) <= metrics.closed.total());
}

#[tokio::test]
async fn a_connection_that_leads_nowhere_costs_one_check_timeout() {
    let Some(server) = Postgres::start(&[]) else { return };
    let proxy = Proxy::start(server.address());
    let url = format!("postgresql://millpond@{}/millpond", proxy.address());
    let builder = builder(&url, 1).check(CheckPolicy::Always).check_timeout(MOMENT);
    let pool = builder.build().await.unwrap();
    let first = backend(&mut pool.acquire().await.unwrap()).await;
    exact(&pool).await;
    proxy.black_hole();
    // What has just been reset counts as checked until the reaper's next look.
    pool.maintenance().run_once().await;
    let mut connection = pool.acquire().await.unwrap();
    let second = tokio::time::timeout(PATIENCE, backend(&mut connection)).await;
    assert_ne!(second.expect("it leads nowhere"), first);
    drop(connection);
    assert_eq!(exact(&pool).await.closed.failed_check, 1);
}

#[tokio::test]
async fn without_verifying_a_release_is_a_hit() {
    let Some(server) = Postgres::start(&[]) else { return };
    let manager = SqlxManager::<Pg>::from_url(&server.url()).unwrap().verify_on_release(false);
    let pool = Pool::builder(manager).max_size(1).build().await.unwrap();
    for _ in 0..3 {
        backend(&mut pool.acquire().await.unwrap()).await;
    }
    assert_eq!((pool.metrics().resets, pool.metrics().counts.idle), (0, 1));
    drop(pool.acquire().await.unwrap().begin().await.unwrap());
    assert_eq!((exact(&pool).await.resets, pool.metrics().created), (1, 1));
}

#[tokio::test]
async fn a_connection_says_goodbye_when_it_is_closed() {
    let Some(server) = Postgres::start(&["log_min_messages=debug1"]) else { return };
    let pool = pool(&server, 2).await;
    let (first, second) = tokio::join!(pool.acquire(), pool.acquire());
    first.unwrap().discard();
    drop(second.unwrap());
    pool.close().await;
    let connected = || {
        let count = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'millpond'";
        server.run(count) != "0"
    };
    eventually("the server has seen them off", || !connected()).await;
    assert!(!server.log().contains("unexpected EOF"), "{}", server.log());
    assert_eq!((pool.metrics().created, pool.metrics().closed.total()), (2, 2));
}

#[test]
fn a_clone_of_a_manager_opens_what_that_one_does() {
    let manager = SqlxManager::<Pg>::from_url("postgres://me@host/shop").unwrap();
    assert_eq!(manager.clone().options().get_host(), "host");
}
