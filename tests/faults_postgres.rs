//! What a pool of PostgreSQL connections survives: servers that are killed, frozen, full or read-only,
//! networks that cut, freeze and lose. Each test has a server of its own.

#![cfg(feature = "postgres")]
#![allow(clippy::unwrap_used, reason = "these are tests, though clippy only sees their helpers")]

mod support;
use support::*;

use millpond::backends::postgres::PostgresManager;
use millpond::{AcquireError, CheckPolicy, OperationError, Pool, PoolBuilder, PoolMetrics, Stage};
use std::error::Error;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use tokio_postgres::{Config, NoTls, SimpleQueryMessage};

const SECOND: Duration = Duration::from_secs(1);

fn config(server: &Postgres) -> Config {
    server.url().parse().unwrap()
}

/// Connections that lead through a proxy.
fn through(proxy: &Proxy) -> PostgresManager {
    let url = format!("postgresql://millpond@{}/millpond", proxy.address());
    PostgresManager::from_url(&url).unwrap()
}

fn pool_of(manager: PostgresManager, max_size: usize) -> PoolBuilder<PostgresManager> {
    Pool::builder(manager).max_size(max_size).acquire_timeout(PATIENCE)
}

/// As many connections can be had as there are to be, and each of them works; then the counts are
/// exact.
async fn whole(pool: &Pool<PostgresManager>) -> PoolMetrics {
    let mut guards = Vec::new();
    for _ in 0..pool.max_size() {
        let guard = pool.acquire().await.unwrap_or_else(|error| panic!("{}", chain(&error)));
        guard.batch_execute("SELECT 1").await.unwrap();
        guards.push(guard);
    }
    assert!(pool.try_acquire().is_err());
    drop(guards);
    at_rest(pool).await
}

/// An error and what is behind it, in one line.
fn chain(error: &dyn Error) -> String {
    let mut words = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        words = format!("{words}: {error}");
        cause = error.source();
    }
    words
}

/// Tasks that acquire and query all the time, until they are told to stop.
struct Load {
    stop: Arc<AtomicBool>,
    served: Arc<AtomicUsize>,
    tasks: JoinSet<Vec<(Instant, String)>>,
}

impl Load {
    fn start(pool: &Pool<PostgresManager>, tasks: usize) -> Self {
        let (stop, served) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let mut set = JoinSet::new();
        for _ in 0..tasks {
            let (pool, stop, served) = (pool.clone(), stop.clone(), served.clone());
            set.spawn(async move {
                let mut errors = Vec::new();
                while !stop.load(SeqCst) {
                    let outcome = match pool.acquire().await {
                        Ok(client) => {
                            let answer = client.query_one("SELECT 40 + $1::int4", &[&2]).await;
                            answer
                                .map(|row| assert_eq!(row.get::<_, i32>(0), 42))
                                .map_err(|error| chain(&error))
                        }
                        Err(AcquireError::Timeout(timeout)) => {
                            // Without a cause, the server is back, and others were first.
                            let fails = timeout.stage() == Stage::ConnectFailing;
                            assert_eq!(timeout.source().is_some(), fails, "{timeout}");
                            Err(chain(&AcquireError::Timeout(timeout)))
                        }
                        Err(error) => {
                            assert!(error.source().is_some(), "no cause: {error}");
                            Err(chain(&error))
                        }
                    };
                    match outcome {
                        Ok(()) => {
                            served.fetch_add(1, SeqCst);
                        }
                        Err(error) => errors.push((Instant::now(), error)),
                    }
                }
                errors
            });
        }
        Self { stop, served, tasks: set }
    }

    fn served(&self) -> usize {
        self.served.load(SeqCst)
    }

    /// Waits until so many more have been served.
    async fn serves(&self, more: usize) {
        let goal = self.served() + more;
        eventually("the load is served", || self.served() >= goal).await;
    }

    /// Ends it; answers with the errors that there were.
    async fn stop(self) -> Vec<String> {
        self.stop_and_say_when().await.into_iter().map(|(_, error)| error).collect()
    }

    /// The same with the time of each.
    async fn stop_and_say_when(self) -> Vec<(Instant, String)> {
        self.stop.store(true, SeqCst);
        self.tasks.join_all().await.concat()
    }
}

// ---- the server ----

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_killed_and_comes_back_is_in_use_again_by_itself() {
    let Some(server) = Postgres::start(&[]) else { return };
    let backoff = SECOND / 2;
    let builder = pool_of(PostgresManager::new(config(&server)), 8).backoff(SECOND / 50, backoff);
    let pool = builder.acquire_timeout(SECOND / 2).build().await.unwrap();
    let load = Load::start(&pool, 32);
    load.serves(200).await;
    server.kill();
    let before = pool.metrics().waits.timed_out;
    eventually("acquires time out", || pool.metrics().waits.timed_out > before + 32).await;
    server.restart();
    let back = Instant::now();
    load.serves(200).await;
    let took = back.elapsed();
    assert!(took < backoff + SLACK, "{took:?} after the server was back");
    let errors = load.stop_and_say_when().await;
    // A request on a connection that has died has its error from the driver; an acquire says why.
    let timeouts = errors.iter().filter(|(_, error)| error.starts_with("pool millpond"));
    let (told, mut late): (Vec<_>, Vec<_>) =
        timeouts.partition(|(_, error)| error.contains("opening one keeps failing"));
    assert!(told.len() > 32, "{errors:?}");
    assert!(told.iter().any(|(_, error)| error.contains("Connection refused")), "{errors:?}");
    // Once it was back, each task may have lost its patience between the first success and its own, and once
    // more for each time that this has taken as long.
    late.retain(|(at, _)| (back..back + took).contains(at));
    let patiences = 1 + took.as_millis() as usize / 500;
    assert!(late.len() <= 32 * patiences, "{took:?}: {late:?}");
    let metrics = whole(&pool).await;
    let found = metrics.closed.broken + metrics.closed.failed_reset;
    assert!(found >= 8, "each that died was found: {metrics:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_server_costs_an_acquire_its_deadline_and_a_check_its_own() {
    let Some(server) = Postgres::start(&[]) else { return };
    let builder = pool_of(PostgresManager::new(config(&server)), 2).check(CheckPolicy::Always);
    let builder = builder.check_timeout(SECOND / 4).close_timeout(SECOND / 4);
    let pool = builder.acquire_timeout(SECOND).build().await.unwrap();
    drop((pool.acquire().await.unwrap(), pool.acquire().await.unwrap()));
    server.freeze();
    let began = Instant::now();
    let error = pool.acquire().await.map(drop).unwrap_err();
    let took = began.elapsed();
    assert!(took >= SECOND && took < SECOND + SLACK, "{took:?}");
    let AcquireError::Timeout(timeout) = error else { panic!("{error}") };
    assert!(matches!(timeout.stage(), Stage::Connecting | Stage::ConnectFailing), "{timeout}");
    let metrics = pool.metrics();
    assert_eq!(metrics.closed.failed_check, 2, "{metrics:?}");
    server.thaw();
    whole(&pool).await;
}

/// Nor has a server that does not answer to be asked for anything else.
#[tokio::test]
async fn what_has_not_answered_its_check_or_its_reset_keeps_no_place() {
    let Some(server) = Postgres::start(&[]) else { return };
    for is_reset in [false, true] {
        let builder = pool_of(PostgresManager::new(config(&server)), 1).check(CheckPolicy::Always);
        let builder = builder.check_timeout(SECOND / 4).reset_timeout(SECOND / 4);
        let pool =
            builder.close_timeout(PATIENCE).acquire_timeout(3 * SECOND).build().await.unwrap();
        let client = pool.acquire().await.unwrap();
        server.freeze();
        if is_reset {
            let mut query = pin!(client.batch_execute("SELECT 1"));
            assert!(poll_once(query.as_mut()).is_pending());
        }
        drop(client);
        {
            let mut acquire = pin!(pool.acquire());
            let mut connects = pin!(eventually("the next one", || pool.counts().connecting == 1));
            tokio::select! {
                biased;
                () = connects.as_mut() => {}
                _ = acquire.as_mut() => panic!("the place was kept (reset: {is_reset})"),
            }
        }
        server.thaw();
        let metrics = whole(&pool).await;
        assert_eq!(
            (metrics.closed.failed_check, metrics.closed.failed_reset),
            match is_reset {
                false => (1, 0),
                true => (0, 1),
            }
        );
    }
}

// On one thread, where all of them wait before the first attempt begins.
#[tokio::test]
async fn a_wrong_password_is_tried_once_and_everybody_hears_of_it() {
    let Some(server) = Postgres::start(&[]) else { return };
    let mut locked = config(&server);
    locked.user("locked").password("wrong").dbname("postgres");
    // A name with several addresses is no reason to try it at each.
    let hosts = config(&server);
    let port = hosts.get_ports()[0];
    let mut locked_twice = Config::new();
    locked_twice.user("locked").password("wrong").dbname("postgres");
    locked_twice.host("127.0.0.1").host("127.0.0.1").port(port);
    for (config, attempts) in [(locked, 1), (locked_twice, 2)] {
        let pool = pool_of(PostgresManager::new(config), 8).build().await.unwrap();
        let mut waiters = JoinSet::new();
        for _ in 0..16 {
            let pool = pool.clone();
            waiters.spawn(async move { pool.acquire().await.map(drop).unwrap_err() });
        }
        for error in waiters.join_all().await {
            let AcquireError::Connect(error) = error else { panic!("{error}") };
            let OperationError::Failed(error) = &error.error else { panic!("{error}") };
            assert_eq!(error.code().unwrap().code(), "28P01");
            let said = "FATAL: password authentication failed for user \"locked\"";
            assert!(error.to_string().contains(said), "{error}");
        }
        let refused = server.log().matches("FATAL:  password authentication failed").count();
        assert_eq!(refused, attempts);
        assert_eq!(pool.metrics().connect_failures, 1);
    }
    let mut nowhere = config(&server);
    nowhere.dbname("nowhere");
    let pool = pool_of(PostgresManager::new(nowhere), 1).build().await.unwrap();
    let error = pool.acquire().await.map(drop).unwrap_err();
    assert!(matches!(error, AcquireError::Connect(_)), "{error}");
    assert!(chain(&error).contains("database \"nowhere\" does not exist"), "{}", chain(&error));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_takes_no_more_connections_serves_everybody_with_those_it_has_taken() {
    let settings = ["max_connections=8", "superuser_reserved_connections=3", "max_wal_senders=0"];
    let Some(server) = Postgres::start(&settings) else { return };
    let builder = pool_of(PostgresManager::new(config(&server)), 20).backoff(SECOND / 50, SECOND);
    let pool = builder.build().await.unwrap();
    let load = Load::start(&pool, 40);
    load.serves(500).await;
    eventually("it has all that it can have", || pool.counts().alive() == 5).await;
    assert_eq!(load.stop().await, [""; 0], "nobody saw an error");
    let metrics = pool.metrics();
    assert_eq!(metrics.counts.alive(), 5, "{metrics:?}");
    assert!(metrics.connect_failures > 0);
    // Whoever cannot be served hears why.
    let mut held = Vec::new();
    for _ in 0..5 {
        held.push(pool.acquire().await.unwrap());
    }
    let error = pool.acquire_timeout(SECOND / 2).await.map(drop).unwrap_err();
    assert!(chain(&error).contains("connection slots are reserved"), "{}", chain(&error));
    assert!(!matches!(error, AcquireError::Connect(_)), "it may be better in a moment");
    drop(held);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_the_server_ends_one_by_one_are_replaced() {
    let Some(server) = Postgres::start(&[]) else { return };
    let builder = pool_of(PostgresManager::new(config(&server)), 8).min_idle(4);
    let builder = builder.check(CheckPolicy::Always);
    let pool = builder.build().await.unwrap();
    let load = Load::start(&pool, 8);
    load.serves(100).await;
    let list = "SELECT pid FROM pg_stat_activity WHERE usename = 'millpond' ORDER BY pid";
    let first: Vec<String> = server.run(list).lines().map(str::to_owned).collect();
    for process in &first {
        server.run(&format!("SELECT pg_terminate_backend({process}, 10000)"));
        load.serves(20).await;
    }
    let errors = load.stop().await;
    for error in &errors {
        let known = ["terminating connection", "connection closed", "communicating"];
        assert!(known.iter().any(|known| error.contains(known)), "{error}");
    }
    assert!(errors.len() <= first.len(), "no more than died in use: {errors:?}");
    whole(&pool).await;
    let now = server.run(list);
    assert!(first.iter().all(|process| !now.lines().any(|line| line == process)), "{now}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_while_all_are_idle_costs_nobody_a_request() {
    let Some(server) = Postgres::start(&[]) else { return };
    let pool = pool_of(PostgresManager::new(config(&server)), 4).build().await.unwrap();
    let four = || async {
        let mut guards = Vec::new();
        for _ in 0..4 {
            guards.push(pool.acquire().await.unwrap());
        }
        guards
    };
    drop(four().await);
    // One that has just been opened may not be quiet yet.
    eventually("all are idle", || pool.counts().idle == 4).await;
    server.stop();
    // Nobody has asked for one meanwhile.
    eventually("they are known to be gone", || pool.counts().vacant == 4).await;
    let metrics = pool.metrics();
    assert_eq!((metrics.closed.broken, metrics.closed.total()), (4, 4), "{metrics:?}");
    server.restart();
    for guard in four().await {
        guard.simple_query("SELECT 1").await.unwrap();
    }
    whole(&pool).await;
}

/// As one in a `static` that several tests share, each with a runtime of its own.
#[test]
fn a_pool_that_outlives_its_runtimes_costs_nobody_a_request() {
    let Some(server) = Postgres::start(&[]) else { return };
    let pool = pool_of(PostgresManager::new(config(&server)), 2).build_lazy().unwrap();
    for round in 0..10 {
        let runtime = match round % 2 {
            0 => tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap(),
            _ => tokio::runtime::Runtime::new().unwrap(),
        };
        runtime.block_on(async {
            let guards = (pool.acquire().await.unwrap(), pool.acquire().await.unwrap());
            guards.0.simple_query("SELECT 1").await.unwrap();
            guards.1.simple_query("SELECT 1").await.unwrap();
        });
    }
    assert_eq!(pool.metrics().created, 20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_becomes_read_only_loses_all_its_connections_at_once() {
    let Some(server) = Postgres::start(&[]) else { return };
    let url = format!("{}?target_session_attrs=read-write", server.url());
    let manager = || PostgresManager::from_url(&url).unwrap();
    let builder = pool_of(manager(), 4).min_idle(4).backoff(SECOND / 50, SECOND / 10);
    let pool = builder.build().await.unwrap();
    server.run("CREATE TABLE written (what int); GRANT ALL ON written TO PUBLIC");
    let write = "INSERT INTO written VALUES (1)";
    pool.acquire().await.unwrap().batch_execute(write).await.unwrap();
    server.run("ALTER SYSTEM SET default_transaction_read_only = on");
    server.run("SELECT pg_reload_conf()");
    eventually("the server has read it", || {
        server.run("SHOW default_transaction_read_only") == "on"
    })
    .await;

    let client = pool.acquire().await.unwrap();
    let error = loop {
        // Reloading takes a moment to reach each session.
        match client.batch_execute(write).await {
            Ok(()) => tokio::task::yield_now().await,
            Err(error) => break error,
        }
    };
    assert_eq!(error.code().unwrap().code(), "25006");
    drop(client);
    // The word of it may still have been on its way, and then the reset has found it.
    let all = || pool.metrics().closed.invalidated == 4;
    eventually("all that are as old are closed", all).await;
    let error = pool.acquire_timeout(SECOND / 2).await.map(drop).unwrap_err();
    assert!(chain(&error).contains("takes no writes"), "{}", chain(&error));

    server.run("ALTER SYSTEM RESET default_transaction_read_only");
    server.run("SELECT pg_reload_conf()");
    let client = pool.acquire().await.unwrap();
    client.batch_execute(write).await.unwrap();
    drop(client);
    whole(&pool).await;
}

// ---- the network ----

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_network_that_loses_all_idle_sockets_costs_an_acquire_one_check_timeout() {
    let Some(server) = Postgres::start(&[]) else { return };
    let proxy = Proxy::start(server.address());
    let builder = pool_of(through(&proxy), 8).min_idle(8).check(CheckPolicy::Always);
    let builder = builder.check_timeout(SECOND).close_timeout(SECOND / 4);
    let pool = builder.build().await.unwrap();
    whole(&pool).await;
    proxy.black_hole();
    let began = Instant::now();
    // One check after the other would take longer than there is time.
    let client = pool.acquire_timeout(SECOND + SLACK).await;
    let client = client.unwrap_or_else(|error| panic!("{error}"));
    let took = began.elapsed();
    assert!(took >= SECOND, "it was not checked");
    client.batch_execute("SELECT 1").await.unwrap();
    drop(client);
    let metrics = whole(&pool).await;
    assert_eq!(metrics.closed.failed_check, 8, "{metrics:?}");
}

/// What makes a table that refuses each copy after so many seconds, before it has read any of it.
fn refusing(seconds: f64) -> String {
    format!(
        "CREATE TABLE refusing (what text); GRANT ALL ON refusing TO PUBLIC; \
         CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS \
         'BEGIN PERFORM pg_sleep({seconds}); RAISE EXCEPTION ''refused''; END'; \
         CREATE TRIGGER refuses BEFORE INSERT ON refusing FOR EACH STATEMENT \
         EXECUTE FUNCTION refuse()"
    )
}

/// The server answers the end of such a copy a second time, once it has come to the end of the data that it
/// does not read any more: a round trip after the error, on a network that takes its time.
#[tokio::test]
async fn a_copy_that_fails_before_its_data_are_read_gives_the_next_user_no_answer_that_is_not_his()
{
    let Some(server) = Postgres::start(&[]) else { return };
    server.run(&refusing(0.15));
    let proxy = Proxy::start(server.address());
    let pool = pool_of(through(&proxy), 1).min_idle(1).build().await.unwrap();
    proxy.delay(Duration::from_millis(100));
    for _ in 0..2 {
        let client = pool.acquire().await.unwrap();
        let sink = client.copy_in::<_, &[u8]>("COPY refusing FROM STDIN").await.unwrap();
        let mut sink = pin!(sink);
        futures_util::SinkExt::send(&mut sink, &b"a row\n"[..]).await.unwrap();
        let error = sink.as_mut().finish().await.unwrap_err();
        assert!(chain(&error).contains("refused"), "{}", chain(&error));
        drop(client);
        let client = pool.acquire().await.unwrap();
        let answer = client.simple_query("SELECT 42").await.unwrap();
        let rows = answer.iter().filter(|it| matches!(it, SimpleQueryMessage::Row(_)));
        assert_eq!(rows.count(), 1, "the answer belongs to somebody else: {answer:?}");
    }
}

/// The same, and what was asked after it is answered so late that its answer comes to the pool's question.
#[tokio::test]
async fn after_a_copy_that_fails_the_pool_takes_nobody_elses_answer_for_that_to_its_question() {
    let Some(server) = Postgres::start(&[]) else { return };
    server.run(&refusing(0.19));
    let proxy = Proxy::start(server.address());
    let pool = pool_of(through(&proxy), 1).min_idle(1).build().await.unwrap();
    proxy.delay(Duration::from_millis(100));
    let mut client = pool.acquire().await.unwrap();
    {
        let transaction = client.transaction().await.unwrap();
        let sink = transaction.copy_in::<_, &[u8]>("COPY refusing FROM STDIN").await.unwrap();
        let mut sink = pin!(sink);
        futures_util::SinkExt::send(&mut sink, &b"a row\n"[..]).await.unwrap();
        sink.as_mut().finish().await.unwrap_err();
        // It rolls back by itself.
    }
    drop(client);
    let client = pool.acquire().await.unwrap();
    let answer = client.simple_query("SELECT 42").await.unwrap();
    let rows = answer.iter().filter(|it| matches!(it, SimpleQueryMessage::Row(_)));
    assert_eq!(rows.count(), 1, "the answer belongs to somebody else: {answer:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_is_cut_in_the_middle_of_a_query_is_an_error_for_its_user_and_nobody_else()
 {
    let Some(server) = Postgres::start(&[]) else { return };
    let proxy = Proxy::start(server.address());
    let pool = pool_of(through(&proxy), 2).build().await.unwrap();
    let client = pool.acquire().await.unwrap();
    let query = client.batch_execute("SELECT pg_sleep(600)");
    let cut = async {
        let at_it = "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(600)'";
        eventually("the server is at it", || server.run(at_it) == "1").await;
        proxy.cut();
    };
    let (outcome, ()) = tokio::join!(query, cut);
    outcome.unwrap_err();
    drop(client);
    assert_eq!(pool.metrics().closed.broken, 1);

    // In the middle of the answer.
    let client = pool.acquire().await.unwrap();
    proxy.cut_after(5_000);
    client.query("SELECT repeat('x', 1000) FROM generate_series(1, 1000)", &[]).await.unwrap_err();
    proxy.cut_after(None);
    drop(client);
    let metrics = whole(&pool).await;
    assert_eq!((metrics.closed.broken, metrics.closed.total()), (2, 2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_network_that_stands_still_for_a_while_loses_nothing() {
    let Some(server) = Postgres::start(&[]) else { return };
    let proxy = Proxy::start(server.address());
    let pool = pool_of(through(&proxy), 2).build().await.unwrap();
    let load = Load::start(&pool, 8);
    load.serves(50).await;
    proxy.freeze();
    let client = pool.acquire_timeout(SECOND / 4).await;
    drop(client);
    proxy.thaw();
    load.serves(50).await;
    assert_eq!(load.stop().await, [""; 0]);
    assert_eq!(whole(&pool).await.closed.total(), 0);
}

#[tokio::test]
async fn a_connection_that_is_closed_in_the_middle_of_a_query_on_a_dead_network_goes_in_its_time() {
    let Some(server) = Postgres::start(&[]) else { return };
    let proxy = Proxy::start(server.address());
    let pool = pool_of(through(&proxy), 1).close_timeout(SECOND / 4).build().await.unwrap();
    let client = pool.acquire().await.unwrap();
    proxy.freeze();
    {
        let mut query = pin!(client.batch_execute("SELECT 1"));
        assert!(poll_once(query.as_mut()).is_pending());
    }
    tokio::time::pause();
    let began = tokio::time::Instant::now();
    client.discard();
    eventually("it has gone", || pool.counts().alive() == 0).await;
    // By itself, the cancel would take 5 s.
    assert!(began.elapsed() < SECOND, "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_cancel_that_nobody_answers_has_an_end() {
    let Some(server) = Postgres::start(&[]) else { return };
    let proxy = Proxy::start(server.address());
    for (settings, limit) in [("", "5s"), ("?connect_timeout=2", "2s")] {
        let url = format!("postgresql://millpond@{}/millpond{settings}", proxy.address());
        let manager = PostgresManager::from_url(&url).unwrap();
        let client = millpond::Manager::connect(&manager).await.unwrap();
        proxy.freeze();
        let token = client.cancel_token();
        tokio::time::pause();
        let outcome = tokio::time::timeout(PATIENCE, token.cancel_query(NoTls)).await;
        tokio::time::resume();
        let error = outcome.expect("it has no end").unwrap_err();
        let said = format!("cannot connect to {}: no answer in {limit}", proxy.address());
        assert_eq!(chain(&error), said);
        proxy.thaw();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_query_that_is_given_up_on_a_dead_network_is_closed_within_the_time_for_a_reset() {
    let Some(server) = Postgres::start(&[]) else { return };
    let proxy = Proxy::start(server.address());
    let pool = pool_of(through(&proxy), 1).reset_timeout(SECOND / 4).build().await.unwrap();
    let client = pool.acquire().await.unwrap();
    proxy.black_hole();
    {
        let mut query = pin!(client.batch_execute("SELECT 1"));
        assert!(poll_once(query.as_mut()).is_pending());
    }
    drop(client);
    let began = Instant::now();
    let client = pool.acquire().await.unwrap();
    assert!(began.elapsed() < SECOND / 4 + SLACK);
    client.batch_execute("SELECT 1").await.unwrap();
    drop(client);
    assert_eq!(whole(&pool).await.closed.failed_reset, 1);
}

#[tokio::test]
async fn a_query_that_ends_by_itself_does_not_wait_for_the_connection_that_is_to_cancel_it() {
    let Some(server) = Postgres::start(&[]) else { return };
    // The way there has room for one connection, and for one more that nobody takes. Whoever comes then
    // hears nothing.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
    let way = socket.listen(0).unwrap();
    let (address, there) = (way.local_addr().unwrap(), server.address());
    let url = format!("postgresql://millpond@{address}/millpond");
    let manager = PostgresManager::from_url(&url).unwrap();
    let pool = pool_of(manager, 1).reset_timeout(PATIENCE).build().await.unwrap();
    let (client, ()) = tokio::join!(pool.acquire(), async {
        let (mut here, _) = way.accept().await.unwrap();
        let mut there = tokio::net::TcpStream::connect(there).await.unwrap();
        tokio::spawn(async move { tokio::io::copy_bidirectional(&mut here, &mut there).await });
    });
    let client = client.unwrap();
    let _nobody = tokio::net::TcpStream::connect(address).await.unwrap();
    {
        let mut query = pin!(client.batch_execute("SELECT pg_sleep(0.5)"));
        assert!(poll_once(query.as_mut()).is_pending());
    }
    drop(client);
    let metrics = at_rest(&pool).await;
    assert_eq!((metrics.resets, metrics.closed.total()), (1, 0), "{metrics:?}");
}
