//! Pools of TCP and Unix connections, and the proxy that the tests of faults use.

#![cfg(all(feature = "tcp", feature = "unix"))]
#![allow(clippy::unwrap_used, reason = "these are tests, though clippy only sees their helpers")]

mod support;
use support::*;

use millpond::backends::tcp::TcpManager;
use millpond::backends::unix::UnixManager;
use millpond::{AcquireError, CheckPolicy, Manager, OperationError, Pool};
use std::io::{Error, ErrorKind, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixListener};
use tokio::runtime::Runtime;

const SECOND: Duration = Duration::from_secs(1);

/// Sends back what it receives; hangs up at `!`, sends one byte too many at `+`.
async fn echo(mut stream: impl AsyncRead + AsyncWrite + Unpin) {
    let mut byte = [0];
    while stream.read_exact(&mut byte).await.is_ok() && byte != *b"!" {
        let answer: &[u8] = if byte == *b"+" { b"++" } else { &byte };
        if stream.write_all(answer).await.is_err() {
            return;
        }
    }
}

async fn echo_server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(echo(stream));
        }
    });
    address
}

async fn unix_echo_server(path: &Path) {
    let listener = UnixListener::bind(path).unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(echo(stream));
        }
    });
}

async fn say(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), byte: u8) -> u8 {
    stream.write_all(&[byte]).await.unwrap();
    let mut answer = [0];
    stream.read_exact(&mut answer).await.unwrap();
    answer[0]
}

/// Whether what has been left to read in a stream is seen when it comes back.
async fn notices_what_is_left<M>(pool: Pool<M>)
where
    M: Manager<Connection: AsyncRead + AsyncWrite + Unpin>,
{
    for _ in 0..3 {
        assert_eq!(say(&mut *pool.acquire().await.unwrap(), b'a').await, b'a');
    }
    assert_eq!(pool.metrics().created, 1, "a clean one is used again");

    let mut stream = pool.acquire().await.unwrap();
    // The first of two bytes has come, so the other has.
    assert_eq!(say(&mut *stream, b'+').await, b'+');
    drop(stream);
    assert_eq!(pool.metrics().closed.broken, 1, "a byte was left");

    let mut stream = pool.acquire().await.unwrap();
    stream.write_all(b"!").await.unwrap();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await.unwrap();
    drop(stream);
    assert_eq!(pool.metrics().closed.broken, 2, "the peer has hung up");
}

#[tokio::test]
async fn a_tcp_connection_with_anything_left_to_read_is_not_used_again() {
    let manager = TcpManager::new(echo_server().await);
    notices_what_is_left(Pool::builder(manager).max_size(1).build().await.unwrap()).await;
}

#[tokio::test]
async fn a_unix_connection_with_anything_left_to_read_is_not_used_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("echo");
    unix_echo_server(&path).await;
    let manager = UnixManager::new(&path);
    assert_eq!(manager.path(), path);
    notices_what_is_left(Pool::builder(manager).max_size(1).build().await.unwrap()).await;
}

/// Whether a pool of one notices what its users have left behind, or what comes after they have gone.
/// Its peer reads nothing, and sends what it is told to.
async fn notices_what_its_users_do<M>(pool: Pool<M>, mut accept: impl FnMut() -> Box<dyn Write>)
where
    M: Manager<Connection: AsyncRead + AsyncWrite + Unpin>,
{
    let mut stream = pool.acquire().await.unwrap();
    let mut peer = accept();
    stream.write_all(b"a question").await.unwrap();
    // Whoever has asked does not wait for the answer, and it comes when nobody looks.
    drop(stream);
    assert_eq!(pool.metrics().counts.idle, 1);
    peer.write_all(b"an answer").unwrap();
    let stream = pool.acquire().await.unwrap();
    let metrics = pool.metrics();
    assert_eq!((metrics.created, metrics.closed.failed_check), (2, 1), "it goes to nobody else");
    drop(stream);
    let _peer = accept();

    let mut stream = pool.acquire().await.unwrap();
    stream.shutdown().await.unwrap();
    drop(stream);
    assert_eq!(pool.metrics().closed.broken, 1, "it cannot be written to any more");

    let mut stream = pool.acquire().await.unwrap();
    let _peer = accept();
    let request = vec![0; 64 << 20];
    assert!(given_up_after(3, stream.write_all(&request)).await.is_none());
    drop(stream);
    assert_eq!(pool.metrics().closed.broken, 2, "half of a request is on its way");
}

#[tokio::test]
async fn a_tcp_connection_that_its_user_has_left_half_way_is_not_used_again() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let manager = TcpManager::new(listener.local_addr().unwrap());
    let pool = Pool::builder(manager).max_size(1).build().await.unwrap();
    notices_what_its_users_do(pool, || Box::new(listener.accept().unwrap().0)).await;
}

#[tokio::test]
async fn a_unix_connection_that_its_user_has_left_half_way_is_not_used_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("silent");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let pool = Pool::builder(UnixManager::new(&path)).max_size(1).build().await.unwrap();
    notices_what_its_users_do(pool, || Box::new(listener.accept().unwrap().0)).await;
}

/// What has arrived is seen although the runtime has not looked for events since.
#[tokio::test]
async fn what_arrives_while_the_runtime_is_busy_is_seen() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let manager = TcpManager::new(listener.local_addr().unwrap());
    let pool = Pool::builder(manager).max_size(1).build().await.unwrap();
    let stream = pool.acquire().await.unwrap();
    let (mut server, _) = listener.accept().unwrap();
    std::io::Write::write_all(&mut server, b"unasked").unwrap();
    // Loopback delivers before the call returns; nothing is awaited in between.
    drop(stream);
    assert_eq!(pool.metrics().closed.broken, 1);
}

#[tokio::test]
async fn a_connection_that_the_server_has_closed_while_it_was_idle_is_not_handed_out() {
    let proxy = Proxy::start(echo_server().await);
    let manager = TcpManager::new(proxy.address());
    let builder = Pool::builder(manager).max_size(2).min_idle(2).check(CheckPolicy::Always);
    let pool = builder.build().await.unwrap();
    eventually("the proxy has taken both", || proxy.open() == 2).await;
    proxy.cut();
    eventually("both are cut", || proxy.open() == 0).await;
    pool.maintenance().run_once().await;
    let mut stream = pool.acquire().await.unwrap();
    assert_eq!(say(&mut *stream, b'a').await, b'a');
    assert!(pool.metrics().closed.failed_check >= 1);
}

/// Whether a pool notices that its connections were opened on a runtime that has ended since, idle ones
/// as well as those in use. Its peer sends back what it receives.
fn notices_the_end_of_a_runtime<M>(manager: M)
where
    M: Manager<Connection: AsyncRead + AsyncWrite + Unpin>,
{
    let [first, second] = [(); 2].map(|()| current_thread());
    let (pool, used) = first.block_on(async {
        let pool = Pool::builder(manager).max_size(2).build().await.unwrap();
        let (idle, used) = (pool.acquire().await.unwrap(), pool.acquire_owned().await.unwrap());
        drop(idle);
        (pool, used)
    });
    drop(first);
    drop(used);
    assert_eq!(pool.metrics().closed.broken, 1, "the one in use");
    second.block_on(async {
        let mut stream = pool.acquire().await.unwrap();
        assert_eq!(say(&mut *stream, b'a').await, b'a');
    });
    assert_eq!(pool.metrics().closed.failed_check, 1, "the one that was idle");
}

fn current_thread() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// A runtime that runs without being driven, for the peer.
fn elsewhere() -> Runtime {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    runtime.worker_threads(1).enable_all().build().unwrap()
}

#[test]
fn a_tcp_connection_of_a_runtime_that_has_ended_is_not_used_again() {
    let server = elsewhere();
    notices_the_end_of_a_runtime(TcpManager::new(server.block_on(echo_server())));
}

#[test]
fn a_unix_connection_of_a_runtime_that_has_ended_is_not_used_again() {
    let server = elsewhere();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("echo");
    server.block_on(unix_echo_server(&path));
    notices_the_end_of_a_runtime(UnixManager::new(path));
}

#[tokio::test]
async fn the_options_reach_the_socket() {
    let address = echo_server().await;
    let pool = Pool::builder(TcpManager::new(address)).build().await.unwrap();
    assert!(pool.acquire().await.unwrap().nodelay().unwrap(), "by default");
    let manager = TcpManager::new(address).nodelay(false).keepalive(90 * SECOND);
    let pool = Pool::builder(manager).build().await.unwrap();
    let stream = pool.acquire().await.unwrap();
    assert!(!stream.nodelay().unwrap());
    let socket = socket2::SockRef::from(&*stream);
    assert!(socket.keepalive().unwrap());
    assert_eq!(socket.tcp_keepalive_time().unwrap(), 90 * SECOND);
    // Less than the system can express, and more, is the nearest that it can.
    for (after, set) in [
        (Duration::from_millis(1), SECOND),
        (32_767 * SECOND, 32_767 * SECOND),
        (32_768 * SECOND, 32_767 * SECOND),
        (Duration::MAX, 32_767 * SECOND),
    ] {
        let pool = Pool::builder(TcpManager::new(address).keepalive(after)).build().await.unwrap();
        let stream = pool.acquire().await.unwrap();
        assert_eq!(socket2::SockRef::from(&*stream).tcp_keepalive_time().unwrap(), set);
    }
}

#[tokio::test]
async fn an_address_that_is_none_is_tried_once() {
    let pool = Pool::builder(TcpManager::new("no port")).build().await.unwrap();
    let Err(AcquireError::Connect(error)) = pool.acquire().await else {
        panic!("it would try again");
    };
    let OperationError::Failed(error) = &error.error else { panic!("{error}") };
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert_eq!(pool.metrics().connect_failures, 1);
}

/// EINVAL is what it says to one address of several, as to one of a link whose number is missing.
#[test]
fn what_the_system_says_to_one_address_is_not_permanent() {
    let of_system = Error::from_raw_os_error(22);
    assert_eq!(of_system.kind(), ErrorKind::InvalidInput);
    assert!(!TcpManager::new("localhost:1").is_permanent(&of_system));
    assert!(!UnixManager::new("socket").is_permanent(&of_system));
}

#[tokio::test]
async fn a_path_that_is_none_is_tried_once() {
    let pool = Pool::builder(UnixManager::new("x".repeat(200))).build().await.unwrap();
    refusal(pool.acquire().await);
    assert_eq!(pool.metrics().connect_failures, 1);
}

#[test]
fn those_who_wait_on_all_of_the_runtimes_blocking_threads_get_their_connections() {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(1).max_blocking_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let address = echo_server().await;
        // A name has to be looked up, which blocks.
        let manager = TcpManager::new(format!("localhost:{}", address.port()));
        let pool = Pool::builder(manager).max_size(2).build().await.unwrap();
        for _ in 0..2 {
            let waiting = [(); 2].map(|()| {
                let pool = pool.clone();
                tokio::task::spawn_blocking(move || drop(pool.acquire_blocking().unwrap()))
            });
            for waiting in waiting {
                joined(waiting).await;
            }
        }
    });
}

/// A server that refuses all as long as it does not listen; its port is its own.
fn not_listening() -> TcpSocket {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    socket
}

#[tokio::test]
async fn a_server_that_is_not_there_yet_is_tried_again() {
    let socket = not_listening();
    let manager = TcpManager::new(socket.local_addr().unwrap().to_string());
    let pool = Pool::builder(manager).max_size(1).build().await.unwrap();
    let acquire = pool.acquire();
    let come_up = async {
        eventually("an attempt has failed", || pool.metrics().connect_failures > 0).await;
        socket.listen(8).unwrap()
    };
    let (acquired, _listener) = tokio::join!(acquire, come_up);
    drop(acquired.unwrap());
}

/// As with an IPv6 address where only IPv4 leads anywhere.
#[tokio::test]
async fn an_address_that_leads_nowhere_keeps_nobody_from_the_next() {
    let full = Nowhere::at(([127, 0, 0, 1], 0)).await;
    let nowhere = full.address();
    let unheard = not_listening();
    let refused = unheard.local_addr().unwrap();
    for addresses in [vec![nowhere, echo_server().await], vec![refused, echo_server().await]] {
        let manager = TcpManager::new(&*addresses.leak());
        let pool = Pool::builder(manager).max_size(1).acquire_timeout(PATIENCE);
        let pool = pool.connect_timeout(PATIENCE).build().await.unwrap();
        let mut stream = pool.acquire().await.unwrap();
        assert_eq!(say(&mut *stream, b'a').await, b'a');
        assert_eq!(pool.metrics().connect_failures, 0);
    }
    let manager = TcpManager::new(&*vec![refused, refused].leak());
    let error = manager.connect().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
}

#[tokio::test]
async fn without_verifying_an_acquire_is_a_hit() {
    let manager = TcpManager::new(echo_server().await).verify_on_acquire(false);
    let pool = Pool::builder(manager).max_size(1).build().await.unwrap();
    drop(pool.acquire().await.unwrap());
    for _ in 0..3 {
        assert_eq!(say(&mut *pool.try_acquire().unwrap(), b'a').await, b'a');
    }
    assert_eq!((pool.metrics().created, pool.metrics().checks), (1, 0));
}

// The proxy.

async fn through(proxy: &Proxy) -> TcpStream {
    TcpStream::connect(proxy.address()).await.unwrap()
}

/// What comes within a moment.
async fn hears(stream: &mut TcpStream) -> Option<u8> {
    let mut byte = [0];
    let read = tokio::time::timeout(SECOND / 5, stream.read_exact(&mut byte)).await;
    read.ok().map(|read| read.map(|_| byte[0]).unwrap())
}

#[tokio::test]
async fn the_proxy_passes_on_freezes_thaws_and_delays() {
    let proxy = Proxy::start(echo_server().await);
    let mut stream = through(&proxy).await;
    assert_eq!(say(&mut stream, b'a').await, b'a');
    proxy.freeze();
    stream.write_all(b"b").await.unwrap();
    assert_eq!(hears(&mut stream).await, None, "it is frozen");
    proxy.thaw();
    assert_eq!(stream.read_u8().await.unwrap(), b'b', "nothing is lost");
    proxy.delay(SECOND / 20);
    let began = std::time::Instant::now();
    assert_eq!(say(&mut stream, b'c').await, b'c');
    assert!(began.elapsed() >= SECOND / 10, "there and back");
    assert_eq!((proxy.open(), proxy.accepted()), (1, 1));
}

#[tokio::test]
async fn the_proxy_cuts_refuses_and_loses() {
    let proxy = Proxy::start(echo_server().await);
    let mut cut = through(&proxy).await;
    assert_eq!(say(&mut cut, b'a').await, b'a');
    proxy.cut();
    let error = cut.read_u8().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);

    let mut lost = through(&proxy).await;
    assert_eq!(say(&mut lost, b'b').await, b'b');
    proxy.black_hole();
    lost.write_all(b"c").await.unwrap();
    assert_eq!(hears(&mut lost).await, None, "it leads nowhere, and looks open");
    let mut other = through(&proxy).await;
    assert_eq!(say(&mut other, b'd').await, b'd', "a new one works");

    proxy.refuse(true);
    let refused = async {
        let mut refused = TcpStream::connect(proxy.address()).await?;
        refused.read_u8().await
    };
    assert!(refused.await.is_err());
}

#[tokio::test]
async fn the_proxy_cuts_in_the_middle_of_an_answer() {
    let proxy = Proxy::start(echo_server().await);
    proxy.cut_after(3);
    let mut stream = through(&proxy).await;
    stream.write_all(b"hello").await.unwrap();
    let mut answer = Vec::new();
    let error = stream.read_to_end(&mut answer).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert!(b"hel".starts_with(&answer), "no more than three bytes: {answer:?}");
}
