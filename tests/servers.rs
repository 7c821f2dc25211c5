//! The throwaway servers that the tests of backends use: that they start, die, come back, stand still,
//! and leave nothing behind.

#![cfg(feature = "tokio")]

mod support;
use support::*;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// What the server says to `request` within a moment.
fn ask(address: SocketAddr, request: &[u8]) -> Option<Vec<u8>> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(Duration::from_millis(500))).ok()?;
    stream.write_all(request).ok()?;
    let mut answer = vec![0; 64];
    let count = stream.read(&mut answer).ok().filter(|count| *count > 0)?;
    answer.truncate(count);
    Some(answer)
}

#[test]
fn a_postgres_server_lives_dies_and_lives_again() {
    let Some(server) = Postgres::start(&["max_connections=7"]) else { return };
    assert_eq!(server.run("SHOW max_connections"), "7");
    server.run("CREATE TABLE kept (what int); INSERT INTO kept VALUES (1)");
    let folder = server.socket_folder();
    assert!(folder.is_dir());
    server.kill();
    assert_eq!(ask(server.address(), b""), None);
    server.restart();
    assert_eq!(server.run("SELECT what FROM kept"), "1");
    assert!(server.log().contains("ready to accept connections"), "{}", server.log());
    // SSLRequest, to which the answer is one letter.
    let request = b"\0\0\0\x08\x04\xd2\x16\x2f";
    server.freeze();
    assert_eq!(ask(server.address(), request), None, "it stands still");
    server.thaw();
    assert_eq!(ask(server.address(), request).as_deref(), Some(b"N".as_slice()));
    drop(server);
    assert!(!folder.exists(), "it leaves nothing behind");
}

#[test]
fn a_postgres_standby_follows_and_takes_over() {
    let Some(primary) = Postgres::start(&[]) else { return };
    let standby = Postgres::standby(&primary, &[]).expect("it is installed");
    primary.run("CREATE TABLE kept (what int)");
    eventually_blocking("the standby has it", || {
        standby.run("SELECT count(*) FROM pg_tables WHERE tablename = 'kept'") == "1"
    });
    assert_eq!(standby.run("SELECT pg_is_in_recovery()"), "t");
    primary.kill();
    standby.promote();
    assert_eq!(standby.run("SELECT pg_is_in_recovery()"), "f");
}

#[test]
fn a_redis_server_lives_dies_and_lives_again() {
    let Some(server) = Redis::start(&["--maxclients", "9"]) else { return };
    assert_eq!(ask(server.address(), b"PING\r\n").as_deref(), Some(b"+PONG\r\n".as_slice()));
    let socket = server.socket();
    assert!(socket.exists());
    server.kill();
    assert_eq!(ask(server.address(), b"PING\r\n"), None);
    server.restart();
    server.freeze();
    assert_eq!(ask(server.address(), b"PING\r\n"), None, "it stands still");
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
    assert_eq!(ask(server.address(), b""), None);
    server.restart();
    assert!(ask(server.address(), b"").is_some());
    let socket = server.socket();
    drop(server);
    assert!(!socket.exists());
}
