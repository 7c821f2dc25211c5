//! The throwaway servers that the tests of backends use: that they start, die, come back, stand still,
//! and leave nothing behind.

// Nothing here depends on the features, and once is enough.
#![cfg(feature = "postgres")]
#![allow(clippy::unwrap_used, reason = "these are tests, though clippy only sees their helpers")]

mod support;
use support::*;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, NoTls};

/// What the server says to `request`.
fn ask(address: SocketAddr, request: &[u8]) -> Option<Vec<u8>> {
    ask_within(PATIENCE, address, request)
}

/// That it says nothing to `request` within a moment.
fn is_silent(address: SocketAddr, request: &[u8]) -> bool {
    ask_within(Duration::from_millis(500), address, request).is_none()
}

fn ask_within(limit: Duration, address: SocketAddr, request: &[u8]) -> Option<Vec<u8>> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(limit)).ok()?;
    stream.write_all(request).ok()?;
    let mut answer = vec![0; 64];
    let count = stream.read(&mut answer).ok().filter(|count| *count > 0)?;
    answer.truncate(count);
    Some(answer)
}

/// The processes that run in this folder or below, also after it has been removed.
fn processes_in(folder: &Path) -> Vec<u32> {
    let all = fs::read_dir("/proc").unwrap().flatten();
    let all = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let inside = |pid: &u32| {
        // A process that has ended is in no folder, and another user's cannot be asked.
        fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|place| place.starts_with(folder))
    };
    all.filter(inside).collect()
}

/// A client, whose connection ends with the runtime.
async fn client(server: &Postgres) -> Client {
    let (client, connection) = tokio_postgres::connect(&server.url(), NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

#[test]
fn a_postgres_server_lives_dies_and_lives_again() {
    let Some(server) = Postgres::start(&["max_connections=7"]) else { return };
    assert_eq!(server.run("SHOW max_connections"), "7");
    server.run("CREATE TABLE kept (what int); INSERT INTO kept VALUES (1)");
    let folder = server.socket_folder();
    assert!(folder.is_dir());
    // SSLRequest, to which the answer is one letter.
    let request = b"\0\0\0\x08\x04\xd2\x16\x2f";
    server.kill();
    assert!(is_silent(server.address(), request));
    server.restart();
    assert_eq!(server.run("SELECT what FROM kept"), "1");
    assert!(server.log().contains("ready to accept connections"), "{}", server.log());
    server.freeze();
    assert!(is_silent(server.address(), request), "it stands still");
    server.thaw();
    assert_eq!(ask(server.address(), request).as_deref(), Some(b"N".as_slice()));
    drop(server);
    assert!(!folder.exists(), "it leaves nothing behind");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_postgres_replica_has_what_its_primary_has_and_refuses_writes_until_it_is_promoted() {
    let Some(primary) = Postgres::start(&["max_connections=150"]) else { return };
    // It is so late that one who does not wait for it sees the past.
    let replica = primary.replica(&["work_mem=5MB", "recovery_min_apply_delay=200ms"]);
    assert_eq!(replica.run("SHOW max_connections"), "150", "as its primary");
    assert_eq!(replica.run("SHOW work_mem"), "5MB");
    assert_eq!((primary.is_replica(), primary.is_streaming()), (false, false));
    assert_eq!((replica.is_replica(), replica.is_streaming()), (true, true));
    let (writer, reader) = (client(&primary).await, client(&replica).await);
    writer.batch_execute("CREATE TABLE kept (what int)").await.unwrap();
    for what in 0..5 {
        writer.execute("INSERT INTO kept VALUES ($1)", &[&what]).await.unwrap();
        primary.caught_up(&replica);
        let row = reader.query_one("SELECT max(what) FROM kept", &[]).await.unwrap();
        assert_eq!(row.get::<_, i32>(0), what);
    }
    let refused = reader.batch_execute("INSERT INTO kept VALUES (9)").await.unwrap_err();
    assert_eq!(refused.code(), Some(&SqlState::READ_ONLY_SQL_TRANSACTION), "25006: {refused}");
    primary.kill();
    assert!(replica.is_replica(), "nobody is promoted by accident");
    replica.promote();
    // The connection that was refused may write now.
    reader.batch_execute("INSERT INTO kept VALUES (9)").await.unwrap();
    assert_eq!((replica.is_replica(), replica.is_streaming()), (false, false));
}

#[test]
fn a_postgres_replica_is_connected_to_its_primary_once_it_is_there() {
    let Some(primary) = Postgres::start(&[]) else { return };
    // The primary takes a second to let anybody in, and the replica itself no time at all.
    primary.run("ALTER SYSTEM SET post_auth_delay = '1s'");
    primary.run("SELECT pg_reload_conf()");
    let replica = primary.replica(&["post_auth_delay=0"]);
    assert!(replica.is_streaming());
}

#[test]
fn a_postgres_primary_that_comes_back_after_a_promotion_is_a_second_primary() {
    let Some(old) = Postgres::start(&[]) else { return };
    let new = old.replica(&[]);
    old.run("CREATE TABLE kept (what text)");
    old.caught_up(&new);
    old.kill();
    new.promote();
    new.run("INSERT INTO kept VALUES ('new')");
    old.restart();
    assert_eq!((old.is_replica(), new.is_replica()), (false, false));
    old.run("INSERT INTO kept VALUES ('old')");
    assert_eq!((old.run("TABLE kept"), new.run("TABLE kept")), ("old".into(), "new".into()));
    // The new one has replicas of its own.
    let next = new.replica(&[]);
    new.run("INSERT INTO kept VALUES ('next')");
    new.caught_up(&next);
    assert_eq!(next.run("TABLE kept"), "new\nnext");
}

#[test]
fn a_postgres_replica_follows_again_whichever_of_the_two_was_away() {
    let Some(primary) = Postgres::start(&[]) else { return };
    let replica = primary.replica(&[]);
    primary.run("CREATE TABLE kept (what text)");
    let end: [fn(&Postgres); 2] = [Postgres::kill, Postgres::stop];
    for end in end {
        end(&replica);
        primary.run("INSERT INTO kept VALUES ('while the replica was away')");
        replica.restart();
        primary.caught_up(&replica);
        assert!(replica.is_replica());
        end(&primary);
        eventually_blocking("the replica notices", || !replica.is_streaming());
        assert!(replica.is_replica(), "it waits");
        primary.restart();
        primary.run("INSERT INTO kept VALUES ('after the primary was away')");
        primary.caught_up(&replica);
    }
    assert_eq!(replica.run("SELECT count(*) FROM kept"), "4");
    assert!(replica.is_streaming());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_postgres_server_that_is_stopped_says_so_and_one_that_is_killed_does_not() {
    let Some(server) = Postgres::start(&[]) else { return };
    let end: [(fn(&Postgres), _); 2] =
        [(Postgres::stop, Some(SqlState::ADMIN_SHUTDOWN)), (Postgres::kill, None)];
    for (end, said) in end {
        let (_client, connection) = tokio_postgres::connect(&server.url(), NoTls).await.unwrap();
        let connection = tokio::spawn(connection);
        end(&server);
        assert!(TcpStream::connect(server.address()).is_err(), "nobody is there");
        let error = joined(connection).await.err();
        assert_eq!(error.as_ref().and_then(|error| error.code()), said.as_ref(), "{error:?}");
        server.restart();
    }
}

#[test]
fn killed_and_stopped_postgres_servers_leave_no_process_and_no_folder() {
    let Some(primary) = Postgres::start(&[]) else { return };
    let (replica, idle) = (primary.replica(&[]), primary.replica(&[]));
    let folders = [&primary, &replica, &idle].map(Postgres::socket_folder);
    for folder in &folders {
        // The one that accepts, and at least one each that writes and that sends or receives.
        let count = processes_in(folder).len();
        assert!(count >= 3, "{count} in {}", folder.display());
    }
    primary.kill();
    assert_eq!(processes_in(&folders[0]), [0_u32; 0], "at once");
    replica.stop();
    assert_eq!(processes_in(&folders[1]), [0_u32; 0], "at once");
    // Nobody kills by their numbers, which others may have soon.
    assert!(folders[..2].iter().all(|folder| !folder.join("pid").exists()));
    // What is down can be ended once more, and has its folder until it is dropped.
    primary.kill();
    replica.stop();
    assert!(folders.iter().all(|folder| folder.is_dir()));
    idle.freeze();
    drop((primary, replica, idle));
    for folder in folders {
        assert_eq!(processes_in(&folder), [0_u32; 0]);
        assert!(!folder.exists(), "{}", folder.display());
    }
}

/// Set in the program that [`servers_end_with_the_program_that_started_them`] starts and kills.
const VICTIM: &str = "MILLPOND_TEST_VICTIM";

#[test]
fn servers_end_with_the_program_that_started_them() {
    if std::env::var_os(VICTIM).is_some() {
        let primary = Postgres::start(&[]).expect("it is installed");
        let replica = primary.replica(&[]);
        for server in [&primary, &replica] {
            let line = format!("\nfolder: {}\n", server.socket_folder().display());
            std::io::stdout().write_all(line.as_bytes()).unwrap();
        }
        // Until it is killed, or whoever started it has gone.
        drop(std::io::stdin().read(&mut [0]));
        return;
    }
    // Whether it is skipped.
    let Some(server) = Postgres::start(&[]) else { return };
    drop(server);
    let mut victim = Command::new(std::env::current_exe().unwrap());
    victim.args(["--exact", "servers_end_with_the_program_that_started_them", "--nocapture"]);
    let victim = victim.env(VICTIM, "1").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let mut victim = victim.unwrap();
    let said = BufReader::new(victim.stdout.take().unwrap()).lines().map(Result::unwrap);
    let folders = said.filter_map(|line| line.strip_prefix("folder: ").map(PathBuf::from));
    let folders: Vec<PathBuf> = folders.take(2).collect();
    assert_eq!(folders.len(), 2);
    assert!(folders.iter().all(|folder| processes_in(folder).len() >= 3));
    victim.kill().unwrap();
    victim.wait().unwrap();
    for folder in folders {
        eventually_blocking("its server has ended", || processes_in(&folder).is_empty());
        eventually_blocking("its folder is gone", || !folder.exists());
    }
}

#[test]
fn a_server_that_runs_is_not_started_a_second_time_nor_lost() {
    let Some(server) = Postgres::start(&[]) else { return };
    let again = catch_unwind(AssertUnwindSafe(|| server.restart())).unwrap_err();
    let said = again.downcast_ref::<String>().unwrap();
    assert_eq!(said, "postgres runs already");
    let folder = server.socket_folder();
    assert!(!processes_in(&folder).is_empty());
    drop(server);
    assert_eq!(processes_in(&folder), [0_u32; 0]);
}

#[test]
fn a_redis_server_lives_dies_and_lives_again() {
    let Some(server) = Redis::start(&["--maxclients", "9"]) else { return };
    assert_eq!(ask(server.address(), b"PING\r\n").as_deref(), Some(b"+PONG\r\n".as_slice()));
    let socket = server.socket();
    assert!(socket.exists());
    server.kill();
    assert!(is_silent(server.address(), b"PING\r\n"));
    server.restart();
    server.freeze();
    assert!(is_silent(server.address(), b"PING\r\n"), "it stands still");
    server.thaw();
    assert!(ask(server.address(), b"PING\r\n").is_some());
    drop(server);
    assert!(!socket.exists());
}

#[test]
fn a_mariadb_server_lives_dies_and_lives_again() {
    let Some(server) = Mariadb::start(&["--max-connections=9"]) else { return };
    // It greets whoever comes.
    assert!(ask(server.address(), b"").is_some());
    server.kill();
    assert!(is_silent(server.address(), b""));
    server.restart();
    assert!(ask(server.address(), b"").is_some());
    let socket = server.socket();
    drop(server);
    assert!(!socket.exists());
}
