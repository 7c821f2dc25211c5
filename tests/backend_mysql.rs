//! Pools of MySQL connections, on real MariaDB servers.

#![cfg(feature = "mysql")]
#![allow(clippy::unwrap_used, reason = "these are tests, though clippy only sees their helpers")]

mod support;
use support::*;

use millpond::backends::mysql::{MysqlConnection, MysqlManager, MysqlReset};
use millpond::{
    AcquireError, CheckPolicy, Hooks, Manager, OperationError, Pool, PoolBuilder, RotateError,
    Stage,
};
use mysql_async::prelude::{Query, Queryable};
use mysql_async::{ChangeUserOpts, Conn, Error, Opts, OptsBuilder, Row, TxOpts};
use std::error::Error as _;
use std::mem::ManuallyDrop;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

const SECOND: Duration = Duration::from_secs(1);

/// The server of all tests that do it no harm.
fn server() -> Option<&'static Mariadb> {
    static SERVER: LazyLock<Option<Mariadb>> = LazyLock::new(|| Mariadb::start(&[]));
    SERVER.as_ref()
}

/// Options for a server or a proxy at this address, past which no Unix socket is to lead.
fn opts(address: SocketAddr) -> OptsBuilder {
    let opts = OptsBuilder::default().ip_or_hostname("127.0.0.1").tcp_port(address.port());
    opts.user(Some("millpond")).db_name(Some("millpond")).prefer_socket(false)
}

fn manager(address: SocketAddr) -> MysqlManager {
    MysqlManager::new(opts(address))
}

/// Of one connection, whose resets may take their time on a machine that has other things to do.
fn single(manager: MysqlManager) -> PoolBuilder<MysqlManager> {
    Pool::builder(manager).max_size(1).reset_timeout(PATIENCE)
}

async fn one(address: SocketAddr) -> Pool<MysqlManager> {
    single(manager(address)).build().await.unwrap()
}

/// One that asks the server of no connection that looks clean.
async fn trusting(address: SocketAddr) -> Pool<MysqlManager> {
    let manager = manager(address).verify_on_release(false);
    single(manager).build().await.unwrap()
}

/// Asks for something that nobody else asks for, and compares.
async fn echo(connection: &mut Conn) -> Result<(), Error> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Relaxed);
    let answer = match number % 3 {
        0 => connection.query_first(format!("SELECT {number}")).await?,
        1 => connection.exec_first("SELECT ?", (number,)).await?,
        _ => {
            let many = "SELECT CAST(? AS UNSIGNED) FROM seq_1_to_300";
            let all: Vec<u64> = connection.exec(many, (number,)).await?;
            assert!(all.len() == 300 && all.iter().all(|answer| *answer == number), "{all:?}");
            Some(number)
        }
    };
    assert_eq!(answer, Some(number), "an answer to somebody else");
    Ok(())
}

/// What a user may have changed, as the server sees it.
async fn session(connection: &mut Conn) -> Row {
    let query = "SELECT DATABASE(), @@autocommit, @@in_transaction, @@sql_mode, @a, @b,
                 IS_USED_LOCK('lock')";
    connection.query_first(query).await.unwrap().unwrap()
}

// Clean, dirty, broken.

#[tokio::test]
async fn a_clean_connection_is_used_again_without_a_word() {
    let Some(server) = server() else { return };
    let pool = trusting(server.address()).await;
    let mut connection = pool.acquire().await.unwrap();
    let first = connection.id();
    connection.query_drop("CREATE TABLE clean (n INT)").await.unwrap();
    drop(connection);
    for round in 0..9 {
        let mut connection = pool.acquire().await.unwrap();
        match round % 3 {
            0 => echo(&mut connection).await.unwrap(),
            1 => {
                let mut transaction =
                    connection.start_transaction(TxOpts::default()).await.unwrap();
                transaction.exec_drop("INSERT INTO clean VALUES (?)", (1,)).await.unwrap();
                transaction.commit().await.unwrap();
            }
            _ => {
                let all = "BEGIN; INSERT INTO clean VALUES (2); COMMIT";
                connection.query_drop(all).await.unwrap();
            }
        }
        assert_eq!(connection.id(), first);
        drop(connection);
        let metrics = pool.metrics();
        assert_eq!((metrics.counts.idle, metrics.resets), (1, 0), "{round}: {metrics:?}");
    }
    let count = pool.acquire().await.unwrap().query_first("SELECT count(*) FROM clean").await;
    assert_eq!(count.unwrap(), Some(6));
    assert_eq!(pool.metrics().created, 1);
}

#[tokio::test]
async fn what_is_left_of_transactions_and_results_is_cleaned_up() {
    let Some(server) = server() else { return };
    let pool = trusting(server.address()).await;
    let mut connection = pool.acquire().await.unwrap();
    let first = connection.id();
    let table = "CREATE TABLE leftovers (n INT UNIQUE) ENGINE InnoDB";
    connection.query_drop(table).await.unwrap();
    let fresh = session(&mut connection).await;
    drop(connection);
    let mut resets = 0;
    for leftover in [
        "BEGIN; INSERT INTO leftovers VALUES (1)",
        "START TRANSACTION READ ONLY",
        "SET autocommit = 0",
        "SET autocommit = 0; INSERT INTO leftovers VALUES (2)",
        "BEGIN; INSERT INTO leftovers VALUES (3); INSERT INTO leftovers VALUES (3)",
        "nonsense",
    ] {
        let mut connection = pool.acquire().await.unwrap();
        drop(connection.query_drop(leftover).await);
        drop(connection);
        let mut connection = pool.acquire().await.unwrap();
        assert_eq!(connection.id(), first, "{leftover}");
        assert_eq!(session(&mut connection).await, fresh, "{leftover}");
        let count = connection.query_first("SELECT count(*) FROM leftovers").await;
        assert_eq!(count.unwrap(), Some(0), "{leftover}");
        resets += 1;
        assert_eq!(pool.metrics().resets, resets, "{leftover}");
    }
    // By the library's own means.
    let mut connection = pool.acquire().await.unwrap();
    let mut transaction = connection.start_transaction(TxOpts::default()).await.unwrap();
    transaction.query_drop("INSERT INTO leftovers VALUES (4)").await.unwrap();
    drop(transaction);
    drop(connection);
    let mut connection = pool.acquire().await.unwrap();
    assert_eq!(session(&mut connection).await, fresh);
    // Rows that nobody has read: of the first of two results, and of a statement.
    let mut result = connection.query_iter("SELECT seq FROM seq_1_to_5; SELECT 2").await.unwrap();
    assert_eq!(result.next().await.unwrap().unwrap().get(0), Some(1));
    drop(result);
    drop(connection);
    let mut connection = pool.acquire().await.unwrap();
    echo(&mut connection).await.unwrap();
    let result = connection.exec_iter("SELECT seq FROM seq_1_to_5", ()).await.unwrap();
    drop(result);
    drop(connection);
    let mut connection = pool.acquire().await.unwrap();
    echo(&mut connection).await.unwrap();
    assert_eq!(connection.id(), first);
    drop(connection);
    let metrics = at_rest(&pool).await;
    assert_eq!((metrics.created, metrics.resets), (1, resets + 3), "{metrics:?}");
}

/// With a `COM_RESET_CONNECTION` prepared statements would go, and variables with them.
#[tokio::test]
async fn a_failed_query_without_a_transaction_costs_no_prepared_statement() {
    let Some(server) = server() else { return };
    let pool = trusting(server.address()).await;
    let mut connection = pool.acquire().await.unwrap();
    connection.query_drop("SET @kept = 1; nonsense").await.unwrap_err();
    drop(connection);
    let mut connection = pool.acquire().await.unwrap();
    assert_eq!(connection.query_first("SELECT @kept").await.unwrap(), Some(1));
    assert_eq!(pool.metrics().resets, 1);
    // In a transaction it does: an error does not end it.
    connection.query_drop("BEGIN; nonsense").await.unwrap_err();
    drop(connection);
    let mut connection = pool.acquire().await.unwrap();
    assert_eq!(connection.query_first("SELECT @kept").await.unwrap(), Some(None::<u64>));
    assert_eq!(pool.metrics().resets, 2);
}

/// Its answer looks like one to a query, whose flags say anything.
#[tokio::test]
async fn a_statement_that_was_prepared_last_is_not_lost() {
    let Some(server) = server() else { return };
    for pool in [one(server.address()).await, trusting(server.address()).await] {
        let mut connection = pool.acquire().await.unwrap();
        connection.query_drop("SET @kept = 1").await.unwrap();
        connection.prep("SELECT 1").await.unwrap();
        drop(connection);
        let mut connection = pool.acquire().await.unwrap();
        assert_eq!(connection.query_first("SELECT @kept").await.unwrap(), Some(1));
        connection.query_drop("BEGIN").await.unwrap();
        connection.prep("SELECT 2").await.unwrap();
        drop(connection);
        let row = session(&mut pool.acquire().await.unwrap()).await;
        assert_eq!(row.get(2), Some(0), "no transaction is open");
    }
}

/// An error in a later result belongs to who asked for it.
#[tokio::test]
async fn an_error_that_nobody_has_read_goes_to_nobody_else() {
    let Some(server) = server() else { return };
    let pool = one(server.address()).await;
    let mut connection = pool.acquire().await.unwrap();
    let mut result = connection.query_iter("SELECT 1; SELECT nonsense").await.unwrap();
    while let Ok(Some(_)) = result.next().await {}
    drop(result);
    drop(connection);
    echo(&mut pool.acquire().await.unwrap()).await.unwrap();
    is_whole(&pool).await;
}

#[tokio::test]
async fn with_always_the_next_user_finds_nothing_of_the_last() {
    let Some(server) = server() else { return };
    let opts = opts(server.address()).init(vec!["SET @a = 1"]).setup(vec!["SET @b = 2"]);
    let pool = single(MysqlManager::new(opts).reset(MysqlReset::Always));
    let pool = pool.build().await.unwrap();
    let mut connection = pool.acquire().await.unwrap();
    let (first, fresh) = (connection.id(), session(&mut connection).await);
    assert_eq!((fresh.get(4), fresh.get(5)), (Some(1), Some(2)));
    drop(connection);
    for leftover in [
        "DO 1",
        "SET @a = 5, @b = 6, @c = 7",
        "SET sql_mode = ''",
        "USE information_schema",
        "CREATE TEMPORARY TABLE temporary (n INT)",
        "DO GET_LOCK('lock', 1)",
        "BEGIN",
    ] {
        pool.acquire().await.unwrap().query_drop(leftover).await.unwrap();
        let mut connection = pool.acquire().await.unwrap();
        assert_eq!(connection.id(), first, "{leftover}");
        assert_eq!(session(&mut connection).await, fresh, "{leftover}");
        let temporary = connection.query_drop("SELECT * FROM temporary").await;
        temporary.unwrap_err();
    }
    let metrics = at_rest(&pool).await;
    assert_eq!((metrics.created, metrics.resets), (1, 15), "{metrics:?}");
}

#[tokio::test]
async fn a_reset_does_all_that_a_new_connection_has_done_in_the_same_order() {
    let Some(server) = server() else { return };
    let opts = opts(server.address()).after_connect(|connection| {
        Box::pin(connection.query_drop("SET @called = 1, @order = 'callback'"))
    });
    let opts = opts.init(vec!["SET @order = CONCAT(@order, ', init')"]);
    let opts = opts.setup(vec!["SET @order = CONCAT(@order, ', setup')"]);
    let pool = single(MysqlManager::new(opts).reset(MysqlReset::Always));
    let pool = pool.build().await.unwrap();
    for _ in 0..3 {
        let mut connection = pool.acquire().await.unwrap();
        let told: Option<(Option<u8>, Option<String>)> =
            connection.query_first("SELECT @called, @order").await.unwrap();
        assert_eq!(told, Some((Some(1), Some("callback, init, setup".to_owned()))));
    }
    assert_eq!(at_rest(&pool).await.created, 1);
}

#[tokio::test]
async fn what_sets_a_session_up_runs_once_for_each_reset() {
    let Some(server) = server() else { return };
    let once = "CREATE TEMPORARY TABLE once AS SELECT DATABASE() AS name";
    let manager = MysqlManager::new(opts(server.address()).setup(vec![once]));
    let pool = single(manager.reset(MysqlReset::Always)).build().await.unwrap();
    for _ in 0..3 {
        let mut connection = pool.acquire().await.unwrap();
        let name: Option<String> = connection.query_first("SELECT name FROM once").await.unwrap();
        assert_eq!(name.as_deref(), Some("millpond"));
        // It is to find the database that belongs to it.
        connection.query_drop("USE information_schema").await.unwrap();
    }
    let metrics = at_rest(&pool).await;
    assert_eq!((metrics.created, metrics.resets), (1, 3), "{metrics:?}");
}

#[tokio::test]
async fn what_the_database_has_set_is_set_again_after_a_reset() {
    let Some(server) = server() else { return };
    let mut connection = Conn::new(opts(server.address())).await.unwrap();
    connection.query_drop("CREATE DATABASE cyrillic CHARACTER SET cp1251").await.unwrap();
    let manager = MysqlManager::new(opts(server.address()).db_name(Some("cyrillic")));
    let pool = single(manager.reset(MysqlReset::Always)).build().await.unwrap();
    for _ in 0..3 {
        let mut connection = pool.acquire().await.unwrap();
        let question = "SELECT @@character_set_database";
        let answer: Option<String> = connection.query_first(question).await.unwrap();
        assert_eq!(answer.as_deref(), Some("cp1251"));
    }
    assert_eq!(at_rest(&pool).await.created, 1);
}

/// Leads to a server whose `COM_RESET_CONNECTION` brings a character set of the server's own, as MySQL's
/// does and MariaDB's does not. It answers a query as it answers that: with one OK.
async fn forgetful(server: SocketAddr) -> SocketAddr {
    const RESET: [u8; 5] = [1, 0, 0, 0, 0x1f];
    const NAMES: &[u8; 21] = b"\x11\0\0\0\x03SET NAMES latin1";
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let server = TcpStream::connect(server).await.unwrap();
            let (mut from_client, mut to_client) = client.into_split();
            let (mut from_server, mut to_server) = server.into_split();
            tokio::spawn(async move { tokio::io::copy(&mut from_server, &mut to_client).await });
            tokio::spawn(async move {
                let mut buffer = [0; 4096];
                while let Ok(count @ 1..) = from_client.read(&mut buffer).await {
                    let said = &buffer[..count];
                    let said: &[u8] = if said == RESET { NAMES } else { said };
                    to_server.write_all(said).await.unwrap();
                }
            });
        }
    });
    address
}

#[tokio::test]
async fn a_reset_leaves_the_character_set_as_it_was_after_the_login() {
    let Some(server) = server() else { return };
    let mut operator = Conn::new(opts(server.address())).await.unwrap();
    operator.query_drop("CREATE DATABASE `größe`").await.unwrap();
    let address = forgetful(server.address()).await;
    let opts = || opts(address).db_name(Some("größe"));
    let setup = "SET @a = 'ü', @b = @@character_set_client";
    for (opts, names) in [
        (opts(), "utf8mb4_general_ci"),
        (opts().db_name(None::<String>), "utf8mb4_general_ci"),
        (opts().setup(vec![setup]), "utf8mb4_general_ci"),
        // What the user says counts; the last of these is run first.
        (opts().setup(vec!["SET NAMES koi8r", setup]), "koi8r_general_ci"),
        (opts().init(vec!["SET NAMES koi8r", setup]), "koi8r_general_ci"),
    ] {
        let manager = MysqlManager::new(opts).reset(MysqlReset::Always);
        let pool = single(manager).build().await.unwrap();
        let mut fresh = None;
        for _ in 0..3 {
            let mut connection = pool.acquire().await.unwrap();
            let question = "SELECT @@collation_connection, @@character_set_client,
                            @@character_set_results, HEX(@a), @b, HEX(DATABASE())";
            let row: Row = connection.query_first(question).await.unwrap().unwrap();
            assert_eq!(row.get(0), Some(names.to_owned()));
            assert_eq!(row, *fresh.get_or_insert(row.clone()));
        }
        let metrics = at_rest(&pool).await;
        assert_eq!((metrics.created, metrics.resets), (1, 3), "{metrics:?}");
    }
    operator.disconnect().await.unwrap();
}

/// It is no part of what a client asks for.
#[tokio::test]
async fn what_the_server_itself_has_set_up_at_the_login_is_undone_by_a_reset() {
    let Some(server) = server() else { return };
    let mut operator = Conn::new(opts(server.address())).await.unwrap();
    // It is run for users without privileges.
    operator.query_drop("SET GLOBAL init_connect = 'SET @from_server = 1'").await.unwrap();
    for opts in [opts(server.address()), opts(server.address()).setup(vec!["SET @b = 2"])] {
        let manager = MysqlManager::new(opts.user(Some("local"))).reset(MysqlReset::Always);
        let pool = single(manager).build().await.unwrap();
        for set in [Some(1), None] {
            let mut connection = pool.acquire().await.unwrap();
            let told = connection.query_first("SELECT @from_server").await.unwrap();
            assert_eq!(told, Some(set));
        }
        assert_eq!(at_rest(&pool).await.created, 1);
    }
    operator.query_drop("SET GLOBAL init_connect = ''").await.unwrap();
    operator.disconnect().await.unwrap();
}

#[tokio::test]
async fn settings_that_come_with_the_connection_outlive_a_reset_and_those_of_a_hook_do_not() {
    let Some(server) = server() else { return };
    let hooks =
        Hooks::new().after_connect(|c: &mut MysqlConnection| Box::pin(c.query_drop("SET @b = 2")));
    let manager = MysqlManager::new(opts(server.address()).init(vec!["SET @a = 1"]));
    let pool = single(manager.reset(MysqlReset::Always)).hooks(hooks);
    let pool = pool.build().await.unwrap();
    for of_hook in [Some(2), None, None] {
        let fresh = session(&mut pool.acquire().await.unwrap()).await;
        let told: (Option<u8>, Option<u8>) = (fresh.get(4).unwrap(), fresh.get(5).unwrap());
        assert_eq!(told, (Some(1), of_hook));
    }
    assert_eq!(at_rest(&pool).await.created, 1);
}

#[tokio::test]
async fn whoever_has_no_database_finds_none() {
    let Some(server) = server() else { return };
    let opts = opts(server.address()).db_name(None::<String>);
    let pool = single(MysqlManager::new(opts).reset(MysqlReset::Always));
    let pool = pool.build().await.unwrap();
    let first = pool.acquire().await.unwrap().id();
    for _ in 0..2 {
        pool.acquire().await.unwrap().query_drop("USE information_schema").await.unwrap();
        let mut connection = pool.acquire().await.unwrap();
        let database: Option<Option<String>> =
            connection.query_first("SELECT DATABASE()").await.unwrap();
        assert_eq!((database, connection.id()), (Some(None), first));
    }
}

#[tokio::test]
async fn whoever_chooses_another_database_leaves_it_to_nobody() {
    let Some(server) = server() else { return };
    let mut operator = Conn::new(opts(server.address())).await.unwrap();
    operator.query_drop("CREATE DATABASE `übrige`").await.unwrap();
    // The last of them chooses one himself: that is what a new connection has.
    for (opts, name) in [
        (opts(server.address()), Some("millpond")),
        (opts(server.address()).db_name(Some("übrige")), Some("übrige")),
        (opts(server.address()).db_name(None::<String>), None),
        (opts(server.address()).init(vec!["USE `übrige`"]), Some("übrige")),
    ] {
        let pool = single(MysqlManager::new(opts)).build().await.unwrap();
        let first = pool.acquire().await.unwrap().id();
        for (leftover, stays) in [
            ("USE information_schema", false),
            ("SET @kept = 1", true),
            // In which character set the name would be told is the user's choice as well.
            ("SET @kept = 1, character_set_results = latin1", true),
            ("SET @kept = 1; USE information_schema", false),
        ] {
            pool.acquire().await.unwrap().query_drop(leftover).await.unwrap();
            let mut connection = pool.acquire().await.unwrap();
            let told: Option<(Option<String>, Option<u64>)> =
                connection.query_first("SELECT HEX(DATABASE()), @kept").await.unwrap();
            let hex: Option<String> =
                name.map(|name| name.bytes().map(|byte| format!("{byte:02X}")).collect());
            assert_eq!(told, Some((hex, stays.then_some(1))), "{leftover}");
            assert_eq!(connection.id(), first, "{leftover}");
        }
        assert_eq!(at_rest(&pool).await.created, 1);
    }
    operator.disconnect().await.unwrap();
}

#[tokio::test]
async fn whoever_logs_in_as_somebody_else_takes_the_connection_along() {
    let Some(server) = server() else { return };
    for reset in [MysqlReset::IfDirty, MysqlReset::Always] {
        for verify in [true, false] {
            let manager = manager(server.address()).reset(reset).verify_on_release(verify);
            let pool = single(manager).build().await.unwrap();
            let mut connection = pool.acquire().await.unwrap();
            let other = ChangeUserOpts::new().with_user(Some("locked".to_owned()));
            let other = other.with_pass(Some("secret".to_owned()));
            connection.change_user(other).await.unwrap();
            drop(connection);
            let mut connection = pool.acquire().await.unwrap();
            let user: Option<String> =
                connection.query_first("SELECT CURRENT_USER()").await.unwrap();
            assert_eq!(user.as_deref(), Some("millpond@127.0.0.1"), "{reset:?}, {verify}");
            // The same user again is nobody else.
            connection.change_user(ChangeUserOpts::new()).await.unwrap();
            drop(connection);
            drop(pool.acquire().await.unwrap());
            let metrics = at_rest(&pool).await;
            assert_eq!((metrics.created, metrics.closed.broken), (2, 1), "{metrics:?}");
        }
    }
}

// Failover.

#[tokio::test]
async fn connections_to_a_server_that_takes_no_writes_any_more_are_closed_where_they_must_write() {
    let Some(server) = Mariadb::start(&[]) else { return };
    let mut operator = Conn::new(opts(server.address())).await.unwrap();
    let pool = |must_write| {
        let manager = manager(server.address()).must_write(must_write);
        Pool::builder(manager).max_size(2).reset_timeout(PATIENCE)
    };
    let indifferent = pool(false).build().await.unwrap();
    let pools = [false, true].map(|checks| {
        let policy = if checks { CheckPolicy::Always } else { CheckPolicy::Never };
        pool(true).check(policy).build_lazy().unwrap()
    });
    for pool in pools.iter().chain([&indifferent]) {
        is_whole(pool).await;
    }
    let held = pools[0].acquire().await.unwrap();
    operator.query_drop("SET GLOBAL read_only = 1").await.unwrap();
    // What is idle goes with the first that comes back.
    drop(held);
    let [released, checked] = &pools;
    eventually("all are closed", || released.metrics().closed.invalidated == 2).await;
    for pool in [released, checked] {
        pool.maintenance().run_once().await;
        let AcquireError::Timeout(timeout) = pool.acquire_timeout(SECOND).await.unwrap_err() else {
            panic!("it may pass");
        };
        let cause = timeout.source().unwrap().to_string();
        assert!(cause.contains("the server takes no writes, and must_write is set"), "{cause}");
    }
    assert_eq!(checked.metrics().closed.failed_check, 2);
    is_whole(&indifferent).await;
    assert_eq!(indifferent.metrics().created, 2);

    operator.query_drop("SET GLOBAL read_only = 0").await.unwrap();
    for pool in [released, checked] {
        echo(&mut pool.acquire().await.unwrap()).await.unwrap();
        is_whole(pool).await;
    }
    operator.disconnect().await.unwrap();
}

// Giving up.

#[tokio::test]
async fn a_query_given_up_at_any_poll_leaves_its_answer_to_nobody() {
    let Some(server) = server() else { return };
    let pool = single(manager(server.address())).build().await.unwrap();
    for polls in 0..64 {
        for _ in 0..3 {
            let mut connection = pool.acquire().await.unwrap();
            drop(given_up_after(polls, echo(&mut connection)).await);
            drop(connection);
            echo(&mut pool.acquire().await.unwrap()).await.unwrap();
        }
        let mut connection = pool.acquire().await.unwrap();
        let transaction = async {
            let mut transaction = connection.start_transaction(TxOpts::default()).await?;
            transaction.query_drop("SELECT 1").await?;
            transaction.commit().await
        };
        drop(given_up_after(polls, transaction).await);
        drop(connection);
        let row = session(&mut pool.acquire().await.unwrap()).await;
        assert_eq!(row.get(2), Some(0), "no transaction is open");
    }
    let metrics = at_rest(&pool).await;
    assert!(metrics.closed.broken > 0, "{metrics:?}");
    is_whole(&pool).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn among_many_queries_a_fifth_of_them_given_up_no_answer_goes_astray() {
    const TASKS: u64 = 8;
    const QUERIES: usize = 250;
    let Some(server) = server() else { return };
    let pool = Pool::builder(manager(server.address())).max_size(3).build().await.unwrap();
    let mut tasks = JoinSet::new();
    for task in 0..TASKS {
        let pool = pool.clone();
        tasks.spawn(async move {
            let mut random = Random::new(task + 1);
            for _ in 0..QUERIES {
                let mut connection = pool.acquire().await.unwrap();
                let polls = match random.below(5) {
                    0 => random.below(40),
                    _ => usize::MAX,
                };
                if let Some(answer) = given_up_after(polls, echo(&mut connection)).await {
                    answer.unwrap();
                }
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    is_whole(&pool).await;
    let metrics = pool.metrics();
    assert!(metrics.closed.broken > 10, "{metrics:?}");
}

/// mysql_async takes a request for answered while it waits for the answer, if what the last one has left
/// behind was cleared away first.
#[tokio::test]
async fn a_query_given_up_behind_the_leftovers_of_another_is_not_handed_on() {
    let Some(server) = server() else { return };
    let mut operator = Conn::new(opts(server.address())).await.unwrap();
    let pool = one(server.address()).await;
    let mut connection = pool.acquire().await.unwrap();
    connection.query_drop("CREATE TABLE IF NOT EXISTS implicit (n INT)").await.unwrap();
    drop(connection);
    for leftover in ["transaction", "results", "the last user's transaction"] {
        let lock = "SELECT GET_LOCK('given-up', 100)";
        assert_eq!(operator.query_first(lock).await.unwrap(), Some(1));
        // Its answer has the shape of that which the pool asks for.
        let waits = "SELECT GET_LOCK('given-up', 100), 1, 0";
        let mut connection = pool.acquire().await.unwrap();
        match leftover {
            "results" => drop(connection.query_iter("SELECT 1; SELECT 2; SELECT 3").await.unwrap()),
            _ => {
                let begun = connection.start_transaction(TxOpts::default()).await;
                let mut transaction = begun.unwrap();
                // Which ends the transaction, and mysql_async does not know.
                transaction.query_drop("ALTER TABLE implicit COMMENT 'it'").await.unwrap();
                drop(transaction);
            }
        }
        if leftover == "the last user's transaction" {
            drop(connection);
            connection = pool.acquire().await.unwrap();
        }
        let id = connection.id();
        let asks = async {
            let state = format!(
                "SELECT state FROM information_schema.processlist WHERE id = {id} AND state = 'User lock'"
            );
            while operator.query_first::<String, _>(&state).await.unwrap().is_none() {}
        };
        tokio::select! {
            _ = connection.query_drop(waits) => panic!("it is held"),
            () = asks => {}
        }
        drop(connection);
        operator.query_drop("DO RELEASE_LOCK('given-up')").await.unwrap();
        for _ in 0..3 {
            echo(&mut pool.acquire().await.unwrap()).await.unwrap();
        }
    }
    is_whole(&pool).await;
    operator.disconnect().await.unwrap();
}

#[tokio::test]
async fn what_was_given_up_goes_on_at_the_server_until_a_limit_of_its_own() {
    let Some(server) = server() else { return };
    let mut operator = Conn::new(opts(server.address())).await.unwrap();
    // It waits for nothing, so that the server does not look whether anybody is left to wait for it.
    let works = "SELECT BENCHMARK(1000000000000, MD5('work'))";
    let at_work = format!("SELECT id FROM information_schema.processlist WHERE info = \"{works}\"");
    for (init, left, stopped) in [("DO 1", 5, 0), ("SET max_statement_time = 1", 0, 5)] {
        let manager = MysqlManager::new(opts(server.address()).init(vec![init]));
        let pool = single(manager).build().await.unwrap();
        for _ in 0..5 {
            let mut connection = pool.acquire().await.unwrap();
            assert!(given_up_after(1, connection.query_drop(works)).await.is_none());
        }
        assert_eq!(at_rest(&pool).await.closed.broken, 5);
        let began = Instant::now();
        loop {
            let ids: Vec<u64> = operator.query(&at_work).await.unwrap();
            let ended: Option<u64> = operator
                .query_first(
                    "SELECT variable_value FROM information_schema.global_status
                     WHERE variable_name = 'MAX_STATEMENT_TIME_EXCEEDED'",
                )
                .await
                .unwrap();
            if (ids.len(), ended) == (left, Some(stopped)) {
                for id in ids {
                    operator.query_drop(format!("KILL {id}")).await.unwrap();
                }
                break;
            }
            assert!(began.elapsed() < PATIENCE, "{init}: {} go on, {ended:?} stopped", ids.len());
        }
    }
    operator.disconnect().await.unwrap();
}

#[tokio::test]
async fn a_transaction_that_was_forgotten_keeps_nobody_from_another() {
    let Some(server) = server() else { return };
    let pool = one(server.address()).await;
    let mut connection = pool.acquire().await.unwrap();
    let _forgotten =
        ManuallyDrop::new(connection.start_transaction(TxOpts::default()).await.unwrap());
    drop(connection);
    let mut connection = pool.acquire().await.unwrap();
    let transaction = connection.start_transaction(TxOpts::default()).await.unwrap();
    transaction.commit().await.unwrap();
}

// What is permanent.

#[tokio::test]
async fn a_wrong_password_is_tried_once_and_all_who_wait_hear_of_it() {
    let Some(server) = server() else { return };
    let proxy = Proxy::start(server.address());
    let opts = opts(proxy.address()).user(Some("locked")).pass(Some("wrong"));
    let pool = Pool::builder(MysqlManager::new(opts)).max_size(4).build().await.unwrap();
    let mut waiters = JoinSet::new();
    for _ in 0..8 {
        let pool = pool.clone();
        waiters.spawn(async move { refusal(pool.acquire().await) });
    }
    while let Some(error) = waiters.join_next().await {
        let error = error.unwrap();
        let OperationError::Failed(Error::Server(error)) = &error.error else { panic!("{error}") };
        assert_eq!(error.code, 1045);
    }
    assert_eq!(proxy.accepted(), 1, "one attempt to log in");
    assert_eq!(pool.metrics().connect_failures, 1);
}

#[tokio::test]
async fn what_the_server_will_always_refuse_is_permanent() {
    let Some(server) = server() else { return };
    let at = || opts(server.address());
    let locked = at().user(Some("locked")).pass(Some("secret"));
    for (opts, code) in [
        (at().user(Some("nobody")), 1045),
        (at().user(Some("locked")), 1045),
        (at().db_name(Some("missing")), 1049),
        (locked.db_name(Some("mysql")), 1044),
    ] {
        let pool = Pool::builder(MysqlManager::new(opts)).build().await.unwrap();
        let error = refusal(pool.acquire().await);
        let OperationError::Failed(Error::Server(error)) = &error.error else { panic!("{error}") };
        assert_eq!(error.code, code, "{error}");
        assert_eq!(pool.metrics().connect_failures, 1, "{error}");
    }
    MysqlManager::from_url("http://127.0.0.1").unwrap_err();
}

// Servers that are not well.

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_has_too_many_connections_is_asked_again() {
    let Some(server) = Mariadb::start(&["--max-connections=10", "--extra-max-connections=1"])
    else {
        return;
    };
    let pool = Pool::builder(manager(server.address())).max_size(14).build().await.unwrap();
    let mut held = Vec::new();
    // One more is for an operator.
    let limit: usize = {
        let mut connection = pool.acquire().await.unwrap();
        connection.query_drop("SET GLOBAL max_connections = 10").await.unwrap();
        connection.query_first("SELECT @@max_connections").await.unwrap().unwrap()
    };
    while let Ok(connection) = pool.acquire_timeout(SECOND).await {
        held.push(connection);
    }
    assert!(held.len() >= limit && held.len() <= limit + 1, "{}", held.len());
    let AcquireError::Timeout(timeout) = pool.acquire_timeout(SECOND).await.unwrap_err() else {
        panic!("it is not permanent");
    };
    assert_eq!(timeout.stage(), Stage::ConnectFailing);
    let cause = timeout.source().unwrap().to_string();
    assert!(cause.contains("Too many connections"), "{cause}");
    // A waiter gets what comes back, although the server has no room for more.
    let (waited, ()) = tokio::join!(pool.acquire(), async {
        eventually("it waits", || pool.metrics().counts.waiters == 1).await;
        drop(held.pop());
    });
    held.push(waited.unwrap());
    // And as soon as there is room, the pool grows by itself.
    held[0].query_drop("SET GLOBAL max_connections = 30").await.unwrap();
    held.push(pool.acquire().await.unwrap());
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
async fn client(pool: Pool<MysqlManager>, tally: Arc<Tally>) {
    while !tally.stop.load(Relaxed) {
        match pool.acquire().await {
            Ok(mut connection) => match echo(&mut connection).await {
                Ok(()) => tally.answered.fetch_add(1, Relaxed),
                Err(_) => tally.failed.fetch_add(1, Relaxed),
            },
            Err(AcquireError::Timeout(timeout)) => {
                // Without one, the server is back, and others were first.
                assert!(
                    timeout.last_connect_error().is_some()
                        || timeout.stage() != Stage::ConnectFailing
                );
                tally.failed.fetch_add(1, Relaxed)
            }
            Err(error) => panic!("{error}: {:?}", error.source()),
        };
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_killed_and_comes_back_costs_no_slot() {
    let Some(server) = Mariadb::start(&[]) else { return };
    let pool = Pool::builder(manager(server.address())).max_size(4).acquire_timeout(SECOND / 4);
    let pool = pool.build().await.unwrap();
    let tally = Arc::new(Tally::default());
    let mut clients = JoinSet::new();
    for _ in 0..8 {
        clients.spawn(client(pool.clone(), tally.clone()));
    }
    for _ in 0..2 {
        let before = tally.answered.load(Relaxed);
        eventually("it works", || tally.answered.load(Relaxed) > before + 100).await;
        tokio::task::block_in_place(|| server.kill());
        let before = tally.failed.load(Relaxed);
        eventually("it does not", || tally.failed.load(Relaxed) > before + 8).await;
        tokio::task::block_in_place(|| server.restart());
    }
    let before = tally.answered.load(Relaxed);
    eventually("it works again", || tally.answered.load(Relaxed) > before + 100).await;
    tally.stop.store(true, Relaxed);
    while let Some(client) = clients.join_next().await {
        client.unwrap();
    }
    let pool_wide = pool.metrics();
    assert!(pool_wide.closed.broken + pool_wide.closed.failed_reset >= 2, "{pool_wide:?}");
    assert!(pool_wide.connect_failures > 0, "{pool_wide:?}");
    is_whole(&pool).await;
}

#[tokio::test]
async fn on_a_frozen_server_a_check_ends_at_its_limit_and_an_acquire_at_its_deadline() {
    let Some(server) = Mariadb::start(&[]) else { return };
    let pool = Pool::builder(manager(server.address())).max_size(2).check(CheckPolicy::Always);
    let pool = pool.check_timeout(SECOND / 5).acquire_timeout(SECOND).build().await.unwrap();
    drop(pool.acquire().await.unwrap());
    at_rest(&pool).await;
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
    let pool = Pool::builder(manager(proxy.address())).max_size(8).check(CheckPolicy::Always);
    let pool = pool.check_timeout(SECOND).close_timeout(SECOND / 20);
    let pool = pool.acquire_timeout(SECOND + SLACK).build().await.unwrap();
    is_whole(&pool).await;
    proxy.black_hole();
    // One check after the other would take longer than there is time.
    echo(&mut pool.acquire().await.unwrap()).await.unwrap();
    is_whole(&pool).await;
    assert_eq!(pool.metrics().closed.failed_check, 8);
}

#[tokio::test]
async fn connections_that_the_server_has_closed_while_they_were_idle_are_not_handed_out() {
    let Some(server) = server() else { return };
    let pool = Pool::builder(manager(server.address())).max_size(3).check(CheckPolicy::Always);
    let pool = pool.build().await.unwrap();
    let (mut a, mut b) = (pool.acquire().await.unwrap(), pool.acquire().await.unwrap());
    let (first, second) = (a.id(), b.id());
    echo(&mut b).await.unwrap();
    let mut operator = pool.acquire().await.unwrap().detach().into_inner();
    echo(&mut a).await.unwrap();
    drop((a, b));
    at_rest(&pool).await;
    operator.query_drop(format!("KILL {first}; KILL {second}")).await.unwrap();
    is_whole(&pool).await;
    assert_eq!(pool.metrics().closed.failed_check, 2);
    operator.disconnect().await.unwrap();
}

#[tokio::test]
async fn a_closed_pool_leaves_no_connection_on_the_server() {
    let Some(server) = Mariadb::start(&[]) else { return };
    let pool = Pool::builder(manager(server.address())).max_size(4).reset_timeout(PATIENCE);
    let pool = pool.build().await.unwrap();
    is_whole(&pool).await;
    let mut operator = Conn::new(opts(server.address())).await.unwrap();
    pool.close().await;
    let aborted = "SHOW GLOBAL STATUS LIKE 'Aborted_clients'";
    let connected = "SHOW GLOBAL STATUS LIKE 'Threads_connected'";
    let began = Instant::now();
    loop {
        let (_, threads): (String, u64) = operator.query_first(connected).await.unwrap().unwrap();
        if threads == 1 {
            break;
        }
        assert!(began.elapsed() < PATIENCE, "{threads} are left");
    }
    let (_, aborted): (String, u64) = operator.query_first(aborted).await.unwrap().unwrap();
    assert_eq!(aborted, 0, "each has said goodbye");
    operator.disconnect().await.unwrap();
}

#[tokio::test]
async fn a_url_does_as_well() {
    let Some(server) = server() else { return };
    let manager = MysqlManager::from_url(&server.url()).unwrap();
    let pool = Pool::builder(manager).max_size(1).build().await.unwrap();
    echo(&mut pool.acquire().await.unwrap()).await.unwrap();
    let opts = Opts::from_url(&format!("{}?prefer_socket=false", server.url())).unwrap();
    let pool = Pool::builder(MysqlManager::new(opts)).max_size(1).build().await.unwrap();
    assert_eq!(
        session(&mut pool.acquire().await.unwrap()).await.get(0),
        Some("millpond".to_owned())
    );
}

/// In a URL it has brackets, which are no part of it.
#[tokio::test]
async fn an_ipv6_address_in_a_url_is_one() {
    let Some(server) = server() else { return };
    let url = format!("mysql://millpond@[::ffff:127.0.0.1]:{}/millpond", server.address().port());
    let pool = Pool::builder(MysqlManager::from_url(&url).unwrap()).max_size(1);
    let pool = pool.build().await.unwrap();
    echo(&mut pool.acquire().await.unwrap()).await.unwrap();
}

/// As with an IPv6 address where only IPv4 leads anywhere: mysql_async tries the next when one has failed,
/// and this one does not in the time that an attempt has.
#[tokio::test]
async fn an_address_that_leads_nowhere_costs_one_attempt() {
    let Some(server) = server() else { return };
    let nowhere = Nowhere::at(([127, 0, 0, 2], server.address().port())).await;
    let addresses = vec![nowhere.address().ip(), server.address().ip()];
    let manager = MysqlManager::new(opts(server.address()).resolved_ips(Some(addresses)));
    // Two whose time is up are no more than one: the next of two addresses is not the first again.
    let mut attempts = [(); 2].map(|()| Box::pin(manager.connect()));
    for attempt in &mut attempts {
        assert!(poll_once(attempt.as_mut()).is_pending());
    }
    drop(attempts);
    // What leads somewhere comes first from then on.
    for _ in 0..2 {
        let connected = tokio::time::timeout(PATIENCE, manager.connect()).await;
        echo(&mut connected.expect("it leads nowhere").unwrap()).await.unwrap();
    }
}

#[tokio::test]
async fn a_password_is_shown_to_nobody() {
    let Some(server) = server() else { return };
    let opts = opts(server.address()).user(Some("locked")).pass(Some("secret"));
    let manager = MysqlManager::new(opts);
    let shown = format!("{manager:?}");
    assert!(shown.contains("IfDirty") && !shown.contains("secret"), "{shown}");
    let pool = Pool::builder(manager).max_size(1).build().await.unwrap();
    let connection = pool.acquire().await.unwrap();
    let shown = format!("{connection:?}");
    assert!(shown.contains(&connection.id().to_string()) && !shown.contains("secret"), "{shown}");
}

/// Also to what is written for mysql_async's own.
#[tokio::test]
async fn a_connection_serves_where_one_of_the_library_does() {
    let Some(server) = server() else { return };
    let pool = one(server.address()).await;
    let mut connection = pool.acquire().await.unwrap();
    assert_eq!("SELECT 7".first(&mut *connection).await.unwrap(), Some(7));
    let mut connection = connection.detach().into_inner();
    echo(&mut connection).await.unwrap();
    connection.disconnect().await.unwrap();
}

#[tokio::test]
async fn a_password_that_changes_is_asked_for_at_each_connect() {
    let Some(server) = server() else { return };
    let mut operator = Conn::new(opts(server.address())).await.unwrap();
    let user = "CREATE USER changing@'127.0.0.1' IDENTIFIED BY 'first'";
    operator.query_drop(user).await.unwrap();
    let password = Arc::new(Mutex::new("first"));
    let manager = MysqlManager::with({
        let password = password.clone();
        let opts = opts(server.address()).user(Some("changing")).db_name(None::<String>);
        move || opts.clone().pass(Some(*password.lock().unwrap())).into()
    });
    let pool = Pool::builder(manager).max_size(2).reset_timeout(PATIENCE).build().await.unwrap();
    let (first, second) = tokio::join!(pool.acquire(), pool.acquire());
    let (mut first, mut second) = (first.unwrap(), second.unwrap());
    let old = [first.id(), second.id()];
    // Only a new login undoes both.
    let leftover = "USE information_schema; BEGIN";

    // The server does not take the new one yet: whoever is reset logs in as before.
    *password.lock().unwrap() = "second";
    first.query_drop(leftover).await.unwrap();
    drop(first);
    let mut first = pool.acquire().await.unwrap();
    assert_eq!(first.id(), old[0]);
    assert_eq!(session(&mut first).await.get(0), Some(None::<String>));
    drop(first);
    let error = pool.rotate(|connection| Box::pin(connection.ping())).await.unwrap_err();
    assert!(matches!(error, RotateError::Connect(_)), "{error}");

    // It takes no other any more: whoever would be reset is closed.
    let user = "ALTER USER changing@'127.0.0.1' IDENTIFIED BY 'second'";
    operator.query_drop(user).await.unwrap();
    second.query_drop(leftover).await.unwrap();
    drop(second);
    assert_eq!(at_rest(&pool).await.closed.failed_reset, 1);
    pool.rotate(|connection| Box::pin(connection.ping())).await.unwrap();
    let (first, second) = tokio::join!(pool.acquire(), pool.acquire());
    for connection in [&mut first.unwrap(), &mut second.unwrap()] {
        assert!(!old.contains(&connection.id()));
    }
    operator.disconnect().await.unwrap();
}

#[test]
fn those_who_wait_on_all_of_the_runtimes_blocking_threads_get_their_connections() {
    let Some(server) = server() else { return };
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(1).max_blocking_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        // A name has to be looked up, which blocks.
        let opts = opts(server.address()).ip_or_hostname("localhost").user(Some("local"));
        let manager = MysqlManager::new(opts.prefer_socket(false));
        let pool = Pool::builder(manager).max_size(2).acquire_timeout(PATIENCE / 2);
        let pool = pool.build().await.unwrap();
        let waiting = [(); 2].map(|()| {
            let pool = pool.clone();
            tokio::task::spawn_blocking(move || drop(pool.acquire_blocking().unwrap()))
        });
        for waiting in waiting {
            joined(waiting).await;
        }
    });
}

/// That socket would be another server's.
#[tokio::test]
async fn only_a_server_on_this_machine_is_asked_for_its_socket() {
    let Some(server) = server() else { return };
    // The last has no look of this machine, and is it all the same.
    for (host, by_socket) in [("127.0.0.1", true), ("localhost", true), ("127.1", false)] {
        let opts = opts(server.address()).ip_or_hostname(host).user(Some("local"));
        let opts = opts.prefer_socket(true);
        let pool = Pool::builder(MysqlManager::new(opts)).max_size(1).build().await.unwrap();
        let from = "SELECT host FROM information_schema.processlist WHERE id = CONNECTION_ID()";
        let from: Option<String> = pool.acquire().await.unwrap().query_first(from).await.unwrap();
        let from = from.unwrap();
        assert_eq!(!from.contains(':'), by_socket, "{host}: {from}");
    }
}
