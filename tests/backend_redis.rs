//! Pools of Redis connections, on real servers.

#![cfg(feature = "redis")]
#![allow(clippy::unwrap_used, reason = "these are tests, though clippy only sees their helpers")]

mod support;
use support::*;

use millpond::backends::redis::{RedisConnection, RedisManager};
use millpond::{
    AcquireError, CheckPolicy, Hooks, Manager, OperationError, Pool, PoolBuilder, ReleaseError,
    RotateError, Stage,
};
use redis::aio::ConnectionLike;
use redis::{
    AsyncCommands, Cmd, ErrorKind, IntoConnectionInfo, ProtocolVersion, RedisResult, cmd, pipe,
};
use std::collections::BTreeMap;
use std::error::Error;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

const SECOND: Duration = Duration::from_secs(1);

/// The server of all tests that do it no harm.
fn server() -> Option<&'static Redis> {
    static SERVER: LazyLock<Option<Redis>> = LazyLock::new(|| Redis::start(&[]));
    SERVER.as_ref()
}

fn manager(url: &str) -> RedisManager {
    // A machine that does other things too may take its time.
    RedisManager::new(url).unwrap().response_timeout(20 * SECOND)
}

/// Of one connection, whose resets may take their time on a machine that has other things to do.
fn single(manager: RedisManager) -> PoolBuilder<RedisManager> {
    Pool::builder(manager).max_size(1).reset_timeout(PATIENCE)
}

async fn one(url: &str) -> Pool<RedisManager> {
    single(manager(url)).build().await.unwrap()
}

/// The number that the server gave the connection.
async fn id(connection: &mut RedisConnection) -> u64 {
    cmd("CLIENT").arg("ID").query_async(connection).await.unwrap()
}

/// What the server knows of the connection's session.
async fn session(connection: &mut RedisConnection) -> BTreeMap<String, String> {
    let info: String = cmd("CLIENT").arg("INFO").query_async(connection).await.unwrap();
    let pairs = info.split_whitespace().filter_map(|pair| pair.split_once('='));
    let told = ["name", "db", "sub", "psub", "ssub", "multi", "user", "redir", "resp", "flags"];
    let told = pairs.filter(|(key, _)| told.contains(key));
    told.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

/// Asks for something that nobody else asks for, and compares.
async fn echo(connection: &mut RedisConnection) -> RedisResult<()> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Relaxed);
    let answer: u64 = cmd("ECHO").arg(number).query_async(connection).await?;
    assert_eq!(answer, number, "an answer to somebody else");
    Ok(())
}

fn command(line: &str) -> Cmd {
    let mut words = line.split_whitespace();
    let mut command = cmd(words.next().unwrap());
    command.arg(words.collect::<Vec<_>>());
    command
}

/// A user's commands; some are refused by some servers, which is part of it.
async fn run(connection: &mut RedisConnection, lines: &[&str]) {
    for line in lines {
        let mut command = command(line);
        command.set_no_response(line.to_ascii_uppercase().starts_with("CLIENT REPLY"));
        drop(connection.req_packed_command(&command).await);
    }
}

// Clean, dirty, broken.

#[tokio::test]
async fn a_clean_connection_is_used_again_without_a_word() {
    let Some(server) = server() else { return };
    let pool = one(&server.url()).await;
    let first = id(&mut pool.acquire().await.unwrap()).await;
    for lines in [
        &["SET clean 1", "GET clean", "INCR clean"][..],
        &["MULTI", "SET clean 2", "EXEC"],
        &["multi", "set clean 3", "discard"],
        &["WATCH clean", "UNWATCH"],
        &["WATCH clean", "MULTI", "GET clean", "EXEC"],
        &["CLIENT GETNAME", "CLIENT LIST", "SCRIPT LOAD return", "NONSENSE"],
        &["LPUSH clean-list 1", "BLPOP clean-list 1"],
    ] {
        run(&mut pool.acquire().await.unwrap(), lines).await;
        let metrics = pool.metrics();
        assert_eq!((metrics.counts.idle, metrics.resets), (1, 0), "{lines:?}");
    }
    let mut connection = pool.acquire().await.unwrap();
    run(&mut connection, &["WATCH clean"]).await;
    let stock: Option<(u64,)> =
        pipe().atomic().incr("clean", 1).query_async(&mut *connection).await.unwrap();
    assert_eq!(stock, Some((3,)));
    drop(connection);
    assert_eq!(id(&mut pool.acquire().await.unwrap()).await, first);
    assert_eq!((pool.metrics().created, pool.metrics().resets), (1, 0));
}

async fn leftovers_are_reset(url: &str, protocol: ProtocolVersion) {
    let manager = manager(url).protocol(protocol).client_name("pooled");
    let pool = single(manager).build().await.unwrap();
    let mut connection = pool.acquire().await.unwrap();
    run(&mut connection, &["ACL SETUSER guest on nopass ~* +@all", "SET watched 1"]).await;
    let (first, fresh) = (id(&mut connection).await, session(&mut connection).await);
    assert_eq!(fresh["name"], "pooled");
    drop(connection);
    let mut resets = 0;
    for lines in [
        &["MULTI"][..],
        &["multi", "SET leftover 1"],
        &["WATCH watched"],
        &["MULTI", "EXEC", "MULTI"],
        &["MULTI", "SELECT 3", "EXEC"],
        // Refused, so they end nothing.
        &["WATCH watched", "DISCARD"],
        &["WATCH watched", "EXEC"],
        &["WATCH watched", "UNWATCH it"],
        &["MULTI", "DISCARD it"],
        &["SELECT 5"],
        &["select 5", "SELECT 2"],
        &["CLIENT SETNAME mine"],
        &["CLIENT TRACKING ON BCAST"],
        &["AUTH guest any"],
        &["HELLO 2"],
        &["HELLO 3"],
        &["RESET"],
    ] {
        run(&mut pool.acquire().await.unwrap(), lines).await;
        let mut connection = pool.acquire().await.unwrap();
        assert_eq!(id(&mut connection).await, first, "{lines:?}");
        assert_eq!(session(&mut connection).await, fresh, "{lines:?}");
        resets += 1;
        assert_eq!(pool.metrics().resets, resets, "{lines:?}");
        // A watch that is left would spoil this transaction, which sees the key change.
        run(&mut connection, &["INCR watched"]).await;
        let done: Option<(u64,)> =
            pipe().atomic().incr("watched", 1).query_async(&mut *connection).await.unwrap();
        assert!(done.is_some(), "{lines:?}");
        let leftover: Option<u64> = connection.get("leftover").await.unwrap();
        assert_eq!(leftover, None, "{lines:?}");
    }
    // In a pipeline they are seen too.
    let mut connection = pool.acquire().await.unwrap();
    let mut pipeline = pipe();
    pipeline.cmd("GET").arg("leftover").cmd("SELECT").arg(7);
    let () = pipeline.query_async(&mut *connection).await.unwrap();
    drop(connection);
    assert_eq!(session(&mut pool.acquire().await.unwrap()).await, fresh);
    let mut connection = pool.acquire().await.unwrap();
    let mut pipeline = pipe();
    pipeline.cmd("WATCH").arg("watched").cmd("DISCARD");
    pipeline.exec_async(&mut *connection).await.unwrap_err();
    drop(connection);
    let mut connection = pool.acquire().await.unwrap();
    run(&mut connection, &["INCR watched"]).await;
    let done: Option<(u64,)> =
        pipe().atomic().incr("watched", 1).query_async(&mut *connection).await.unwrap();
    assert!(done.is_some());
    drop(connection);
    let metrics = at_rest(&pool).await;
    assert_eq!((metrics.created, metrics.resets), (1, resets + 2));
}

#[tokio::test]
async fn what_commands_leave_behind_is_reset() {
    let Some(server) = server() else { return };
    leftovers_are_reset(&server.url(), ProtocolVersion::RESP2).await;
    // Another database than the first, to which RESET goes.
    let url = format!("redis://{}/4", server.address());
    leftovers_are_reset(&url, ProtocolVersion::RESP3).await;
}

#[tokio::test]
async fn a_reset_logs_in_again() {
    let Some(server) = Redis::start(&["--requirepass", "secret"]) else { return };
    let url = format!("redis://:secret@{}/4", server.address());
    leftovers_are_reset(&url, ProtocolVersion::RESP2).await;
    leftovers_are_reset(&url, ProtocolVersion::RESP3).await;
}

#[tokio::test]
async fn a_connection_whose_answers_may_not_match_is_closed() {
    let Some(server) = server() else { return };
    for protocol in [ProtocolVersion::RESP2, ProtocolVersion::RESP3] {
        let manager = manager(&server.url()).protocol(protocol);
        let pool = Pool::builder(manager).max_size(1).build().await.unwrap();
        let mut broken = 0;
        for line in [
            "SUBSCRIBE a b",
            "psubscribe a*",
            "SSUBSCRIBE a",
            "UNSUBSCRIBE",
            "MONITOR",
            "CLIENT REPLY OFF",
            "client reply skip",
            "client no-evict on",
            "QUIT",
        ] {
            run(&mut pool.acquire().await.unwrap(), &[line]).await;
            broken += 1;
            assert_eq!(pool.metrics().closed.broken, broken, "{line}");
            echo(&mut pool.acquire().await.unwrap()).await.unwrap();
        }
        // Whoever waits for another number of answers than there are.
        let mut connection = pool.acquire().await.unwrap();
        let mut two = pipe();
        two.cmd("PING").cmd("PING");
        drop(connection.req_packed_commands(&two, 0, 1).await);
        drop(connection);
        assert_eq!(pool.metrics().closed.broken, broken + 1);
        is_whole(&pool).await;
    }
}

#[tokio::test]
async fn connections_to_a_server_that_is_no_primary_any_more_are_closed() {
    let Some(server) = Redis::start(&[]) else { return };
    let pool = one(&server.url()).await;
    let mut operator = pool.acquire().await.unwrap().detach();
    // A replica of nobody: port 1.
    run(&mut operator, &["REPLICAOF 127.0.0.1 1"]).await;
    let mut connection = pool.acquire().await.unwrap();
    let error = connection.set::<_, _, ()>("a", 1).await.unwrap_err();
    assert_eq!(error.code(), Some("READONLY"));
    drop(connection);
    assert_eq!(pool.metrics().closed.invalidated, 1);
    let mut connection = pool.acquire().await.unwrap();
    pipe().set("a", 1).exec_async(&mut *connection).await.unwrap_err();
    drop(connection);
    assert_eq!(pool.metrics().closed.invalidated, 2, "in a pipeline");
    let mut connection = pool.acquire().await.unwrap();
    pipe().atomic().set("a", 1).exec_async(&mut *connection).await.unwrap_err();
    drop(connection);
    assert_eq!(pool.metrics().closed.invalidated, 3, "in a transaction");
    run(&mut operator, &["REPLICAOF NO ONE"]).await;
    pool.acquire().await.unwrap().set::<_, _, ()>("a", 1).await.unwrap();

    let several = Pool::builder(manager(&server.url())).max_size(3).min_idle(3).build();
    let several = several.await.unwrap();
    run(&mut operator, &["REPLICAOF 127.0.0.1 1"]).await;
    let mut connection = several.acquire().await.unwrap();
    connection.set::<_, _, ()>("a", 1).await.unwrap_err();
    drop(connection);
    assert_eq!(several.metrics().closed.invalidated, 3, "the idle ones as well");
}

#[tokio::test]
async fn a_pool_that_need_not_write_keeps_its_connections_to_a_replica() {
    let Some(server) = Redis::start(&[]) else { return };
    let manager = manager(&server.url()).must_write(false);
    let pool = Pool::builder(manager).max_size(3).min_idle(3).build().await.unwrap();
    let mut operator = pool.acquire().await.unwrap().detach();
    pool.warm_up(3).await.unwrap();
    run(&mut operator, &["REPLICAOF 127.0.0.1 1"]).await;
    let mut connection = pool.acquire().await.unwrap();
    let error = connection.set::<_, _, ()>("a", 1).await.unwrap_err();
    assert_eq!(error.code(), Some("READONLY"));
    pipe().set("a", 1).exec_async(&mut *connection).await.unwrap_err();
    connection.release().await.unwrap();
    let metrics = at_rest(&pool).await;
    assert_eq!((metrics.counts.idle, metrics.closed.invalidated, metrics.resets), (3, 0, 0));
}

#[tokio::test]
async fn a_server_without_a_reset_gets_a_new_connection_instead() {
    let Some(server) = Redis::start(&["--rename-command", "RESET", ""]) else { return };
    let pool = one(&server.url()).await;
    let mut connection = pool.acquire().await.unwrap();
    let fresh = session(&mut connection).await;
    run(&mut connection, &["SELECT 3"]).await;
    let Err(ReleaseError::Reset(OperationError::Failed(error))) = connection.release().await else {
        panic!("it has no reset");
    };
    assert!(error.to_string().contains("unknown command"), "{error}");
    assert_eq!(session(&mut pool.acquire().await.unwrap()).await, fresh);
    assert_eq!(at_rest(&pool).await.closed.failed_reset, 1);
}

// Giving up.

#[tokio::test]
async fn a_query_given_up_at_any_poll_leaves_its_answer_to_nobody() {
    let Some(server) = server() else { return };
    let pool = one(&server.url()).await;
    for polls in 0..64 {
        let mut connection = pool.acquire().await.unwrap();
        drop(given_up_after(polls, echo(&mut connection)).await);
        if polls % 2 == 0 {
            // Its own next command may follow at once.
            echo(&mut connection).await.unwrap();
        }
        drop(connection);
        let mut connection = pool.acquire().await.unwrap();
        echo(&mut connection).await.unwrap();
        let mut pipeline = pipe();
        pipeline.atomic().cmd("ECHO").arg(polls).cmd("SET").arg("cancelled").arg(polls);
        drop(given_up_after(polls, pipeline.exec_async(&mut *connection)).await);
        drop(connection);
        echo(&mut pool.acquire().await.unwrap()).await.unwrap();
    }
    let metrics = at_rest(&pool).await;
    assert_eq!(metrics.created, 1, "none had to be closed: {metrics:?}");
    assert!(metrics.resets > 0, "{metrics:?}");
}

/// Whether a command that was given up has been carried out is unknown for good.
#[tokio::test]
async fn a_state_that_was_given_up_on_is_reset_although_later_commands_are_answered() {
    let Some(server) = server() else { return };
    let pool = one(&server.url()).await;
    let fresh = session(&mut pool.acquire().await.unwrap()).await;
    let mut resets = 0;
    for line in ["SELECT 3", "MULTI", "WATCH a", "CLIENT SETNAME mine"] {
        for polls in 1..8 {
            let mut connection = pool.acquire().await.unwrap();
            let select = command(line);
            let done = given_up_after(polls, connection.req_packed_command(&select)).await;
            drop(connection.req_packed_command(&cmd("PING")).await);
            resets += 1;
            drop(connection);
            let mut connection = pool.acquire().await.unwrap();
            assert_eq!(session(&mut connection).await, fresh, "{line}, {polls}, {done:?}");
            assert_eq!(pool.metrics().resets, resets, "{line}, {polls}, {done:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn among_many_requests_a_fifth_of_them_given_up_no_answer_goes_astray() {
    const TASKS: u64 = 8;
    const REQUESTS: usize = 1_500;
    let Some(server) = server() else { return };
    for protocol in [ProtocolVersion::RESP2, ProtocolVersion::RESP3] {
        let manager = manager(&server.url()).protocol(protocol);
        let pool = Pool::builder(manager).max_size(3).reset_timeout(PATIENCE);
        let pool = pool.build().await.unwrap();
        let mut tasks = JoinSet::new();
        for task in 0..TASKS {
            let pool = pool.clone();
            tasks.spawn(async move {
                let mut random = Random::new(task + 1);
                for request in 0..REQUESTS {
                    let mut connection = pool.acquire().await.unwrap();
                    let polls = match random.below(5) {
                        0 => random.below(12),
                        _ => usize::MAX,
                    };
                    let both = (task, request);
                    let ask = async {
                        match random.below(3) {
                            0 => echo(&mut connection).await.unwrap(),
                            1 => {
                                let mut pipeline = pipe();
                                pipeline.cmd("ECHO").arg(task).cmd("ECHO").arg(request);
                                let answer = pipeline.query_async(&mut *connection).await;
                                assert_eq!(answer, Ok(both));
                            }
                            _ => {
                                let mut pipeline = pipe();
                                pipeline.atomic().cmd("ECHO").arg(task).cmd("ECHO").arg(request);
                                let answer = pipeline.query_async(&mut *connection).await;
                                assert_eq!(answer, Ok(both));
                            }
                        }
                    };
                    given_up_after(polls, ask).await;
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
}

#[tokio::test]
async fn a_pop_that_nobody_waits_for_any_more_takes_nothing() {
    let Some(server) = Redis::start(&[]) else { return };
    let pool = one(&server.url()).await;
    let mut operator = pool.acquire().await.unwrap().detach();
    for round in 1..=8 {
        let mut connection = pool.acquire().await.unwrap();
        let pop = command(["BLPOP a 0", "blmove a b LEFT LEFT 0"][round % 2]);
        if round == 8 {
            // Nobody has ever waited for it.
            connection.req_packed_command(pop.clone().set_no_response(true)).await.unwrap();
        } else {
            // It has been sent for sure, and there is nothing to answer yet.
            assert!(given_up_after(200, connection.req_packed_command(&pop)).await.is_none());
        }
        if round > 4 {
            // Nor does a later command hide it.
            drop(given_up_after(200, connection.req_packed_command(&cmd("PING"))).await);
        }
        drop(connection);
        assert_eq!(pool.metrics().closed.broken, round as u64);
        loop {
            let info: String = cmd("INFO").arg("clients").query_async(&mut operator).await.unwrap();
            if info.contains("blocked_clients:0") {
                break;
            }
            tokio::task::yield_now().await;
        }
        let length: u64 = operator.rpush("a", round).await.unwrap();
        assert_eq!(length, 1, "the server hands nothing to who is gone");
        let _: u64 = operator.del("a").await.unwrap();
    }
    is_whole(&pool).await;
}

#[tokio::test]
async fn a_pipeline_without_commands_hides_no_request_that_was_given_up() {
    let Some(server) = server() else { return };
    let pool = one(&server.url()).await;
    let mut connection = pool.acquire().await.unwrap();
    let pop = command("BLPOP nothing-comes-here 0");
    assert!(given_up_after(200, connection.req_packed_command(&pop)).await.is_none());
    pipe().exec_async(&mut *connection).await.unwrap_err();
    drop(connection);
    assert_eq!(pool.metrics().closed.broken, 1, "the server still waits for it");
}

#[tokio::test]
async fn a_request_that_was_given_up_is_waited_for_as_long_as_a_reset_may_take() {
    let Some(server) = Redis::start(&[]) else { return };
    let pool = Pool::builder(manager(&server.url()));
    let pool = pool.max_size(1).reset_timeout(2 * SECOND).build().await.unwrap();
    let mut connection = pool.acquire().await.unwrap();
    let first = id(&mut connection).await;
    server.freeze();
    assert!(given_up_after(50, echo(&mut connection)).await.is_none());
    drop(connection);
    assert_eq!(pool.metrics().counts.resetting, 1);
    server.thaw();
    assert_eq!(id(&mut pool.acquire().await.unwrap()).await, first, "the same connection");

    let mut connection = pool.acquire().await.unwrap();
    server.freeze();
    assert!(given_up_after(50, echo(&mut connection)).await.is_none());
    drop(connection);
    eventually("its reset is given up", || pool.metrics().closed.failed_reset == 1).await;
    server.thaw();
    is_whole(&pool).await;
}

#[tokio::test]
async fn a_command_fails_after_the_response_timeout_and_its_answer_goes_to_nobody() {
    let Some(server) = server() else { return };
    let manager = manager(&server.url()).response_timeout(SECOND / 20);
    let pool = single(manager).build().await.unwrap();
    let mut connection = pool.acquire().await.unwrap();
    let began = Instant::now();
    let slow = connection.blpop::<_, ()>("nothing-comes", 0.0).await.unwrap_err();
    assert!(slow.is_timeout() && began.elapsed() >= SECOND / 20, "{slow}");
    drop(connection);
    assert_eq!(pool.metrics().closed.broken, 1, "it waits for others");
    // Nobody's business is how long the pool's own commands take.
    let proxy = Proxy::start(server.address());
    let url = format!("redis://{}", proxy.address());
    let manager = RedisManager::new(&*url).unwrap().response_timeout(SECOND / 20);
    let pool = single(manager).check(CheckPolicy::Always).check_timeout(PATIENCE);
    proxy.delay(SECOND / 20);
    let pool = pool.build().await.unwrap();
    for _ in 0..2 {
        let mut connection = pool.acquire().await.unwrap();
        assert!(echo(&mut connection).await.unwrap_err().is_timeout());
    }
    let metrics = at_rest(&pool).await;
    assert_eq!((metrics.created, metrics.resets), (1, 2), "{metrics:?}");
}

#[tokio::test]
async fn a_response_timeout_that_a_user_sets_is_his_alone() {
    let Some(server) = server() else { return };
    let others = one(&server.url()).await;
    let manager = manager(&server.url()).response_timeout(SECOND / 20);
    let pool = single(manager).build().await.unwrap();
    // The second is reset in between; that which waits for others is closed at the end.
    for (limit, leftover, closed) in [(Some(PATIENCE), "PING", 0), (None, "SELECT 3", 1)] {
        let mut connection = pool.acquire().await.unwrap();
        connection.set_response_timeout(limit);
        let mut other = others.acquire().await.unwrap();
        let late = async {
            tokio::time::sleep(SECOND / 4).await;
            other.lpush::<_, _, ()>("comes-late", 7).await.unwrap();
        };
        let (popped, ()) = tokio::join!(connection.blpop("comes-late", 0.0), late);
        assert_eq!(popped, Ok(("comes-late".to_owned(), 7)), "{limit:?}");
        run(&mut connection, &[leftover]).await;
        drop(connection);
        let mut connection = pool.acquire().await.unwrap();
        assert_eq!(pool.metrics().closed.total(), closed, "it is the same connection");
        let slow = connection.blpop::<_, ()>("nothing-comes", 0.0);
        let slow = tokio::time::timeout(PATIENCE, slow).await.expect("its own limit");
        assert!(slow.unwrap_err().is_timeout());
    }
}

// What is permanent.

#[tokio::test]
async fn a_wrong_password_is_tried_once_and_all_who_wait_hear_of_it() {
    let Some(server) = Redis::start(&["--requirepass", "secret"]) else { return };
    for protocol in [ProtocolVersion::RESP2, ProtocolVersion::RESP3] {
        let proxy = Proxy::start(server.address());
        let manager = manager(&format!("redis://:wrong@{}", proxy.address())).protocol(protocol);
        let pool = Pool::builder(manager).max_size(4).build().await.unwrap();
        let mut waiters = JoinSet::new();
        for _ in 0..8 {
            let pool = pool.clone();
            waiters.spawn(async move { refusal(pool.acquire().await) });
        }
        while let Some(error) = waiters.join_next().await {
            let error = error.unwrap();
            let OperationError::Failed(error) = &error.error else { panic!("{error}") };
            assert_eq!(error.code(), Some("WRONGPASS"));
        }
        assert_eq!(proxy.accepted(), 1, "one attempt to log in");
        assert_eq!(pool.metrics().connect_failures, 1);
    }
}

#[tokio::test]
async fn what_the_server_will_always_refuse_is_permanent() {
    let Some(server) = Redis::start(&["--requirepass", "secret"]) else { return };
    let at = server.address();
    let operator = one(&format!("redis://:secret@{at}")).await.acquire_owned().await.unwrap();
    let mut operator = operator.detach();
    run(&mut operator, &["ACL SETUSER reader on >secret ~* +@read"]).await;
    let open = Redis::start(&[]).unwrap();
    let password = format!("redis://:any@{}", open.address());
    for protocol in [ProtocolVersion::RESP2, ProtocolVersion::RESP3] {
        for (url, name, code) in [
            (format!("redis://{at}"), None, "NOAUTH"),
            (format!("redis://nobody:secret@{at}"), None, "WRONGPASS"),
            (format!("redis://:secret@{at}/99"), None, "ERR"),
            (format!("redis://:secret@{at}"), Some("two words"), "ERR"),
            (format!("redis://reader:secret@{at}/2"), None, "NOPERM"),
        ] {
            let mut manager = manager(&url).protocol(protocol);
            if let Some(name) = name {
                manager = manager.client_name(name);
            }
            let pool = Pool::builder(manager).build().await.unwrap();
            let error = refusal(pool.acquire().await);
            let OperationError::Failed(error) = &error.error else { panic!("{error}") };
            assert_eq!(error.code(), Some(code), "{url} {name:?}: {error}");
            assert_eq!(pool.metrics().connect_failures, 1, "{url} {name:?}");
        }
    }
    let error = refusal(one(&password).await.acquire().await);
    assert!(error.to_string().contains("without any password configured"), "{error}");
    let error = RedisManager::new("http://127.0.0.1").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidClientConfig);
}

#[tokio::test]
async fn a_user_who_may_not_ping_is_served() {
    let Some(server) = server() else { return };
    let operator = one(&server.url()).await.acquire_owned().await.unwrap();
    run(&mut operator.detach(), &["ACL SETUSER mute on >secret ~* +@read +@write"]).await;
    let url = format!("redis://mute:secret@{}", server.address());
    let pool = Pool::builder(manager(&url)).max_size(1).check(CheckPolicy::Always);
    let pool = pool.build().await.unwrap();
    for _ in 0..3 {
        pool.acquire().await.unwrap().set::<_, _, ()>("mute", 1).await.unwrap();
    }
    assert!(given_up_after(1, pool.acquire().await.unwrap().get::<_, ()>("mute")).await.is_none());
    pool.acquire().await.unwrap().set::<_, _, ()>("mute", 1).await.unwrap();
    let metrics = pool.metrics();
    assert_eq!((metrics.created, metrics.resets), (1, 1), "{metrics:?}");
    assert!(metrics.checks >= 3);
}

// Servers that are not well.

#[tokio::test]
async fn a_server_that_cannot_save_its_data_serves_those_who_read() {
    let Some(server) = Redis::start(&[]) else { return };
    let pool = Pool::builder(manager(&server.url())).max_size(1).check(CheckPolicy::Always);
    let pool = pool.reset_timeout(PATIENCE).check_timeout(PATIENCE).acquire_timeout(PATIENCE);
    let pool = pool.build().await.unwrap();
    let mut connection = pool.acquire().await.unwrap();
    connection.set::<_, _, ()>("kept", 7).await.unwrap();
    // A folder is in the place of the file.
    std::fs::create_dir(server.socket().with_file_name("dump.rdb")).unwrap();
    let save = cmd("CONFIG").arg("SET").arg("save").arg("3600 1").take();
    save.exec_async(&mut *connection).await.unwrap();
    run(&mut connection, &["BGSAVE"]).await;
    let refused = async {
        loop {
            if let Err(error) = connection.set::<_, _, ()>("kept", 7).await {
                return error;
            }
        }
    };
    let error = tokio::time::timeout(PATIENCE, refused).await.unwrap();
    assert_eq!(error.code(), Some("MISCONF"), "{error}");
    assert!(given_up_after(1, connection.get::<_, ()>("kept")).await.is_none());
    let first = connection.info().id;
    drop(connection);
    // It is reset and checked, and then another one is opened.
    let mut connection = pool.acquire().await.unwrap();
    assert_eq!(connection.get::<_, u32>("kept").await.unwrap(), 7);
    assert_eq!(connection.info().id, first);
    connection.discard();
    assert_eq!(pool.acquire().await.unwrap().get::<_, u32>("kept").await.unwrap(), 7);
    let metrics = pool.metrics();
    assert_eq!((metrics.created, metrics.resets), (2, 1), "{metrics:?}");
}

#[tokio::test]
async fn a_server_that_is_loading_is_waited_for() {
    let Some(server) = Redis::start(&["--enable-debug-command", "yes"]) else { return };
    let operator = one(&server.url()).await.acquire_owned().await.unwrap();
    let mut operator = operator.detach();
    let mut other = one(&server.url()).await.acquire_owned().await.unwrap().detach();
    run(&mut operator, &["DEBUG POPULATE 200 key 1000"]).await;
    let slowly = "CONFIG SET key-load-delay 50000 loading-process-events-interval-bytes 1024";
    run(&mut operator, &["CONFIG SET rdbcompression no", slowly]).await;
    let reload = tokio::spawn(async move { run(&mut operator, &["DEBUG RELOAD"]).await });
    let pool = one(&server.url()).await;
    let mut loading = None;
    while loading.is_none() {
        // Before it has begun the server answers as ever; then new connections are told to wait.
        match pool.acquire_timeout(SECOND / 20).await {
            Ok(connection) => connection.discard(),
            Err(error) => loading = error.source().map(ToString::to_string),
        }
        assert!(loading.is_some() || !reload.is_finished(), "nobody was told");
    }
    assert!(loading.as_ref().is_some_and(|told| told.contains("BusyLoading")), "{loading:?}");
    // The rest of it needs no time.
    run(&mut other, &["CONFIG SET key-load-delay 0"]).await;
    pool.acquire().await.unwrap().set::<_, _, ()>("loaded", 1).await.unwrap();
    joined(reload).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_has_too_many_clients_is_asked_again() {
    let Some(server) = Redis::start(&["--maxclients", "4"]) else { return };
    let pool = Pool::builder(manager(&server.url())).max_size(6).build().await.unwrap();
    let mut held = Vec::new();
    for _ in 0..4 {
        held.push(pool.acquire().await.unwrap());
    }
    let AcquireError::Timeout(timeout) = pool.acquire_timeout(SECOND).await.unwrap_err() else {
        panic!("it is not permanent");
    };
    assert_eq!(timeout.stage(), Stage::ConnectFailing);
    let cause = timeout.source().unwrap().to_string();
    assert!(cause.contains("max number of clients"), "{cause}");
    // A waiter gets what comes back, although the server has no room for more.
    let (waited, ()) = tokio::join!(pool.acquire(), async {
        eventually("it waits", || pool.metrics().counts.waiters == 1).await;
        drop(held.pop());
    });
    held.push(waited.unwrap());
    // And as soon as there is room, the pool grows by itself.
    run(&mut held[0], &["CONFIG SET maxclients 10"]).await;
    for _ in 0..2 {
        held.push(pool.acquire().await.unwrap());
    }
    drop(held);
    is_whole(&pool).await;
}

#[derive(Default)]
struct Tally {
    answered: AtomicU64,
    failed: AtomicU64,
    stop: AtomicBool,
}

/// Asks until it is told to stop; every failure has a cause.
async fn client(pool: Pool<RedisManager>, tally: Arc<Tally>) {
    while !tally.stop.load(Relaxed) {
        let asked = match pool.acquire().await {
            Ok(mut connection) => echo(&mut connection).await,
            Err(AcquireError::Timeout(timeout)) => match timeout.last_connect_error() {
                Some(error) => match &error.error {
                    OperationError::Failed(cause) => Err(cause.clone()),
                    error => panic!("{error}"),
                },
                // The server is back, and others were first.
                None => {
                    assert_ne!(timeout.stage(), Stage::ConnectFailing);
                    continue;
                }
            },
            Err(error) => panic!("{error}"),
        };
        match asked {
            Ok(()) => tally.answered.fetch_add(1, Relaxed),
            Err(error) if error.is_io_error() => tally.failed.fetch_add(1, Relaxed),
            Err(error) => panic!("{error}"),
        };
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_killed_and_comes_back_costs_no_slot() {
    let Some(server) = Redis::start(&[]) else { return };
    let pool = Pool::builder(manager(&server.url())).max_size(4).acquire_timeout(SECOND / 4);
    let pool = pool.build().await.unwrap();
    let tally = Arc::new(Tally::default());
    let mut clients = JoinSet::new();
    for _ in 0..8 {
        clients.spawn(client(pool.clone(), tally.clone()));
    }
    for _ in 0..3 {
        let before = tally.answered.load(Relaxed);
        eventually("it works", || tally.answered.load(Relaxed) > before + 200).await;
        tokio::task::block_in_place(|| server.kill());
        let before = tally.failed.load(Relaxed);
        eventually("it does not", || tally.failed.load(Relaxed) > before + 8).await;
        tokio::task::block_in_place(|| server.restart());
    }
    let before = tally.answered.load(Relaxed);
    eventually("it works again", || tally.answered.load(Relaxed) > before + 200).await;
    tally.stop.store(true, Relaxed);
    while let Some(client) = clients.join_next().await {
        client.unwrap();
    }
    is_whole(&pool).await;
    let metrics = pool.metrics();
    assert!(metrics.closed.broken >= 3, "{metrics:?}");
    assert!(metrics.connect_failures > 0, "{metrics:?}");
}

#[tokio::test]
async fn on_a_frozen_server_a_check_ends_at_its_limit_and_an_acquire_at_its_deadline() {
    let Some(server) = Redis::start(&[]) else { return };
    let pool = Pool::builder(manager(&server.url())).max_size(2).check(CheckPolicy::Always);
    let pool = pool.check_timeout(SECOND / 5).acquire_timeout(SECOND).build().await.unwrap();
    drop(pool.acquire().await.unwrap());
    pool.maintenance().run_once().await;
    server.freeze();
    let began = Instant::now();
    let acquire = async {
        let AcquireError::Timeout(timeout) = pool.acquire().await.unwrap_err() else {
            panic!("it is frozen");
        };
        assert_eq!(timeout.stage(), Stage::Connecting);
    };
    let check = async {
        eventually("the check has failed", || pool.metrics().closed.failed_check == 1).await;
        began.elapsed()
    };
    let ((), check) = tokio::join!(acquire, check);
    let acquire = began.elapsed();
    assert!(check >= SECOND / 5 && check < SECOND / 5 + SLACK, "{check:?}");
    assert!(acquire >= SECOND && acquire < SECOND + SLACK, "{acquire:?}");
    server.thaw();
    is_whole(&pool).await;
}

#[tokio::test]
async fn half_open_sockets_cost_an_acquire_one_check_and_a_connect() {
    let Some(server) = server() else { return };
    let proxy = Proxy::start(server.address());
    let manager = manager(&format!("redis://{}", proxy.address()));
    let pool = Pool::builder(manager).max_size(8).check(CheckPolicy::Always);
    let pool = pool.check_timeout(SECOND).acquire_timeout(SECOND + SLACK).build().await.unwrap();
    is_whole(&pool).await;
    proxy.black_hole();
    // One check after the other would take longer than there is time.
    echo(&mut pool.acquire().await.unwrap()).await.unwrap();
    is_whole(&pool).await;
    assert_eq!(pool.metrics().closed.failed_check, 8);
}

#[tokio::test]
async fn connections_that_the_server_has_closed_while_they_were_idle_are_not_handed_out() {
    let Some(server) = Redis::start(&[]) else { return };
    let pool = Pool::builder(manager(&server.url())).max_size(3).check(CheckPolicy::Always);
    let pool = pool.build().await.unwrap();
    is_whole(&pool).await;
    let mut operator = pool.acquire().await.unwrap().detach();
    run(&mut operator, &["CLIENT KILL TYPE normal SKIPME yes"]).await;
    is_whole(&pool).await;
    assert_eq!(pool.metrics().closed.failed_check, 2);
}

#[tokio::test]
async fn an_answer_to_something_else_is_no_sign_of_life() {
    // It says the same to everything.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("redis://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        while let Ok(1..) = stream.read(&mut [0; 1024]).await {
            stream.write_all(b"$1\r\n1\r\n").await.unwrap();
        }
    });
    // The first answer is right, by chance.
    let error = manager(&url).connect().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UnexpectedReturnType);
}

// Options, and other ways in.

#[tokio::test]
async fn the_options_reach_the_server() {
    let Some(server) = server() else { return };
    let at = server.address();
    let pool = one(&format!("redis://{at}/3?protocol=resp3")).await;
    let mut connection = pool.acquire().await.unwrap();
    let told = session(&mut connection).await;
    assert_eq!((&*told["db"], &*told["resp"], &*told["name"]), ("3", "3", ""));
    assert_eq!(connection.get_db(), 3);
    let url = format!("redis+unix://{}?db=5", server.socket().display());
    let manager = manager(&url).client_name("by-socket");
    let pool = Pool::builder(manager).build().await.unwrap();
    let told = session(&mut pool.acquire().await.unwrap()).await;
    assert_eq!((&*told["db"], &*told["resp"], &*told["name"]), ("5", "2", "by-socket"));
}

#[tokio::test]
async fn settings_that_come_with_the_connection_outlive_a_reset_and_those_of_a_hook_do_not() {
    let Some(server) = server() else { return };
    let hooks = Hooks::new().after_connect(|connection: &mut RedisConnection| {
        Box::pin(async move { command("CLIENT SETNAME hook").exec_async(connection).await })
    });
    let manager = manager(&format!("redis://{}/3", server.address()));
    let pool = Pool::builder(manager).max_size(1).hooks(hooks).build().await.unwrap();
    for name in ["hook", "", ""] {
        let told = session(&mut pool.acquire().await.unwrap()).await;
        assert_eq!((&*told["db"], &*told["name"]), ("3", name));
    }
    assert_eq!(at_rest(&pool).await.created, 1);
}

#[test]
fn a_password_is_shown_to_nobody() {
    let manager = manager("redis://user:secret@127.0.0.1/1");
    let shown = format!("{manager:?}");
    assert!(!shown.contains("secret") && shown.contains("response_timeout"), "{shown}");
}

#[tokio::test]
async fn a_password_that_changes_is_asked_for_at_each_connect() {
    let Some(server) = Redis::start(&[]) else { return };
    let mut operator = manager(&server.url()).connect().await.unwrap();
    run(&mut operator, &["ACL SETUSER app on >first ~* +@all"]).await;
    let password = Arc::new(Mutex::new("first"));
    let manager = RedisManager::with({
        let (password, address) = (password.clone(), server.address());
        move || {
            let url = format!("redis://app:{}@{address}/3", password.lock().unwrap());
            url.into_connection_info().unwrap()
        }
    });
    let pool = Pool::builder(manager).max_size(2).reset_timeout(PATIENCE).build().await.unwrap();
    let (first, second) = tokio::join!(pool.acquire(), pool.acquire());
    let (mut first, mut second) = (first.unwrap(), second.unwrap());
    let old = [id(&mut first).await, id(&mut second).await];

    // The server does not take the new one yet: whoever is reset logs in as before.
    *password.lock().unwrap() = "second";
    run(&mut first, &["SELECT 5"]).await;
    drop(first);
    let mut first = pool.acquire().await.unwrap();
    assert_eq!((id(&mut first).await, &*session(&mut first).await["db"]), (old[0], "3"));
    drop(first);
    let error = pool.rotate(|connection| Box::pin(echo(connection))).await.unwrap_err();
    assert!(matches!(error, RotateError::Connect(_)), "{error}");

    // It takes no other any more: whoever would be reset is closed.
    run(&mut operator, &["ACL SETUSER app resetpass >second"]).await;
    run(&mut second, &["SELECT 5"]).await;
    drop(second);
    assert_eq!(at_rest(&pool).await.closed.failed_reset, 1);
    pool.rotate(|connection| Box::pin(echo(connection))).await.unwrap();
    let (first, second) = tokio::join!(pool.acquire(), pool.acquire());
    for connection in [&mut first.unwrap(), &mut second.unwrap()] {
        assert!(!old.contains(&id(connection).await));
        assert_eq!(&*session(connection).await["user"], "app");
    }
}

/// It repeats what it was told.
#[tokio::test]
async fn a_server_that_does_not_know_how_to_log_in_is_not_quoted() {
    for (command, query) in [("HELLO", "?protocol=resp3"), ("AUTH", "")] {
        let options = ["--requirepass", "s3cret", "--rename-command", command, ""];
        let Some(server) = Redis::start(&options) else { return };
        let url = server.url().replace("redis://", "redis://:s3cret@") + query;
        let pool = Pool::builder(manager(&url)).build().await.unwrap();
        let error = refusal(pool.acquire().await);
        let shown = format!("{error} {error:?} {:?} {}", error.source(), pool.status());
        assert!(shown.contains(&format!("unknown command {command}")), "{shown}");
        assert!(!shown.contains("s3cret"), "{shown}");
    }
}

/// As one behind a proxy may be, when the proxy has moved on to an older server.
#[tokio::test]
async fn a_server_that_has_forgotten_how_to_log_in_is_not_quoted_by_a_reset() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("redis://:s3cret@{}?protocol=resp3", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let quotes = "-ERR unknown command `HELLO`, with args beginning with: `3`, `AUTH`, \
                      `default`, `s3cret`, \r\n";
        let reset = format!("+RESET\r\n{quotes}$1\r\n2\r\n");
        for answer in ["+OK\r\n", "$1\r\n1\r\n", &reset] {
            assert_ne!(stream.read(&mut [0; 1024]).await.unwrap(), 0);
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    let manager = manager(&url);
    let mut connection = manager.connect().await.unwrap();
    let error = manager.reset(&mut connection).await.unwrap_err();
    let shown = format!("{error} {error:?} {:?}", error.source());
    assert!(shown.contains("unknown command HELLO") && !shown.contains("s3cret"), "{shown}");
}

#[test]
fn a_thread_without_a_runtime_uses_it_with_any_executor() {
    let Some(server) = server() else { return };
    let pool = Pool::builder(manager(&server.url())).max_size(1).build_blocking().unwrap();
    for _ in 0..3 {
        pollster::block_on(echo(&mut pool.acquire().unwrap())).unwrap();
    }
    let slow = manager(&server.url()).response_timeout(SECOND / 20);
    let pool = Pool::builder(slow).max_size(1).build_blocking().unwrap();
    let mut connection = pool.acquire().unwrap();
    let error = pollster::block_on(connection.blpop::<_, ()>("nothing-comes", 0.0)).unwrap_err();
    assert!(error.is_timeout(), "{error}");
}

#[tokio::test]
async fn a_detached_connection_may_be_shared() {
    let Some(server) = server() else { return };
    let pool = one(&server.url()).await;
    let shared = pool.acquire().await.unwrap().detach().into_inner();
    let (mut one, mut other) = (shared.clone(), shared);
    let (ask_one, ask_other) = (command("ECHO 1"), command("ECHO 2"));
    let (one, other): (RedisResult<u8>, RedisResult<u8>) =
        tokio::join!(ask_one.query_async(&mut one), ask_other.query_async(&mut other));
    assert_eq!((one, other), (Ok(1), Ok(2)));
}

#[test]
fn those_who_wait_on_all_of_the_runtimes_blocking_threads_get_their_connections() {
    let Some(server) = server() else { return };
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(1).max_blocking_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        // A name has to be looked up, which blocks.
        let url = format!("redis://localhost:{}", server.address().port());
        let pool = Pool::builder(manager(&url)).max_size(2).build().await.unwrap();
        let waiting = [(); 2].map(|()| {
            let pool = pool.clone();
            tokio::task::spawn_blocking(move || drop(pool.acquire_blocking().unwrap()))
        });
        for waiting in waiting {
            joined(waiting).await;
        }
    });
}
