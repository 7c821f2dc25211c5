//! A TCP proxy that does to connections what networks do: cut, freeze, delay, or lose what is sent
//! without a word.
//!
//! ```ignore
//! let proxy = Proxy::start(server.address());
//! // … clients connect to `proxy.address()` …
//! proxy.black_hole();   // those that are open now lead nowhere, and nobody is told
//! ```
//!
//! It runs in a thread with a runtime of its own, so a test may do with its runtime what it likes.
//!
//! Not here: any protocol.

use std::future::pending;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::runtime::Builder;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;

/// A proxy in front of one server, on a loopback port of its own.
pub struct Proxy {
    address: SocketAddr,
    network: watch::Sender<Network>,
    open: Arc<AtomicUsize>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

/// What is done to connections. They are numbered from 0, in the order in which they come.
#[derive(Clone, Copy, Debug)]
struct Network {
    server: SocketAddr,
    /// How many there have been.
    accepted: u64,
    /// Those with lower numbers are closed.
    cut_below: u64,
    /// What those with lower numbers send leads nowhere.
    lost_below: u64,
    /// Nothing is passed on for the time being.
    frozen: bool,
    /// New ones are closed at once.
    refuses: bool,
    /// How long everything takes, each way.
    delay: Duration,
    /// After so many bytes from the server a connection is cut.
    cut_after: Option<u64>,
}

impl Proxy {
    /// A proxy in front of the server at this address.
    pub fn start(server: SocketAddr) -> Self {
        let network = Network {
            server,
            accepted: 0,
            cut_below: 0,
            lost_below: 0,
            frozen: false,
            refuses: false,
            delay: Duration::ZERO,
            cut_after: None,
        };
        let network = watch::Sender::new(network);
        let open = Arc::<AtomicUsize>::default();
        let (stop, stopped) = oneshot::channel();
        let (report, address) = std::sync::mpsc::channel();
        let thread = std::thread::spawn({
            let (network, open) = (network.clone(), open.clone());
            move || {
                let runtime =
                    Builder::new_current_thread().enable_all().build().expect("a runtime");
                runtime.block_on(async {
                    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
                    let listener = listener.expect("a free port");
                    report.send(listener.local_addr().expect("its address")).expect("a listener");
                    tokio::select! {
                        // First, so that no panic of a connection is missed.
                        biased;
                        () = accept(listener, network, open) => {}
                        _ = stopped => {}
                    }
                });
            }
        });
        let address = address.recv().expect("the proxy runs");
        Self { address, network, open, stop: Some(stop), thread: Some(thread) }
    }

    /// Where clients connect to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many connections are open at the moment.
    pub fn open(&self) -> usize {
        self.open.load(SeqCst)
    }

    /// How many connections there have been so far.
    pub fn accepted(&self) -> u64 {
        self.network.borrow().accepted
    }

    /// Closes all connections that are open, both ways and without a goodbye (RST).
    pub fn cut(&self) {
        self.network.send_modify(|network| network.cut_below = network.accepted);
    }

    /// From now on, whatever the connections that are open now send is lost, both ways, while they
    /// look open: half-open sockets. New ones work.
    pub fn black_hole(&self) {
        self.network.send_modify(|network| network.lost_below = network.accepted);
    }

    /// Passes nothing on until [`thaw`](Self::thaw), then everything.
    pub fn freeze(&self) {
        self.network.send_modify(|network| network.frozen = true);
    }

    /// See [`freeze`](Self::freeze).
    pub fn thaw(&self) {
        self.network.send_modify(|network| network.frozen = false);
    }

    /// Whether new connections are closed as soon as they are open.
    pub fn refuse(&self, refuses: bool) {
        self.network.send_modify(|network| network.refuses = refuses);
    }

    /// From now on, everything takes so much longer, each way.
    pub fn delay(&self, delay: Duration) {
        self.network.send_modify(|network| network.delay = delay);
    }

    /// Cuts each connection after so many more bytes from the server; `None` stops that.
    pub fn cut_after(&self, bytes: impl Into<Option<u64>>) {
        let bytes = bytes.into();
        self.network.send_modify(|network| network.cut_after = bytes);
    }

    /// New connections lead to another server.
    pub fn lead_to(&self, server: SocketAddr) {
        self.network.send_modify(|network| network.server = server);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic of the proxy is one of the test.
            if let (Err(panic), false) = (thread.join(), std::thread::panicking()) {
                std::panic::resume_unwind(panic);
            }
        }
    }
}

async fn accept(listener: TcpListener, network: watch::Sender<Network>, open: Arc<AtomicUsize>) {
    let mut connections = JoinSet::new();
    loop {
        let client = tokio::select! {
            client = listener.accept() => client.expect("a connection").0,
            Some(ended) = connections.join_next() => match ended {
                Ok(()) => continue,
                // To the test it looks like a network that cuts.
                Err(error) => std::panic::resume_unwind(error.into_panic()),
            },
        };
        let mut number = 0;
        network.send_modify(|network| {
            number = network.accepted;
            network.accepted += 1;
        });
        if network.borrow().refuses {
            reset(&client);
            continue;
        }
        let network = network.subscribe();
        let open = Open::new(&open);
        connections.spawn(async move {
            let _open = open;
            serve(client, number, network).await;
        });
    }
}

/// A connection that counts as open.
struct Open(Arc<AtomicUsize>);

impl Open {
    fn new(open: &Arc<AtomicUsize>) -> Self {
        open.fetch_add(1, SeqCst);
        Self(open.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

/// Has the socket send RST when it is dropped.
fn reset(stream: &TcpStream) {
    // If it is gone already, so much the better.
    drop(stream.set_zero_linger());
}

/// A connection has been cut.
struct Cut;

/// Passes on what one client and the server say to each other, until both are done or it is cut.
async fn serve(mut client: TcpStream, number: u64, mut network: watch::Receiver<Network>) {
    let target = network.borrow().server;
    let socket = TcpSocket::new_v4().expect("a socket");
    let Ok(mut server) = socket.connect(target).await else { return reset(&client) };
    // If one is gone already, the other end will hear of it.
    drop((client.set_nodelay(true), server.set_nodelay(true)));
    let ended = {
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        let up = pass(from_client, to_server, number, network.clone(), false);
        let down = pass(from_server, to_client, number, network.clone(), true);
        tokio::select! {
            ended = async { tokio::try_join!(up, down) } => ended.map(drop),
            _ = network.wait_for(|network| number < network.cut_below) => Err(Cut),
        }
    };
    if let Err(Cut) = ended {
        reset(&client);
        reset(&server);
    }
}

/// Passes on what arrives at one end, until that has ended.
async fn pass(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    number: u64,
    mut network: watch::Receiver<Network>,
    from_server: bool,
) -> Result<(), Cut> {
    let mut buffer = vec![0; 16 << 10];
    let mut left = None;
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        let delay = network.borrow().delay;
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        let now = match network.wait_for(|network| !network.frozen).await {
            Ok(now) => *now,
            Err(_) => return Ok(()),
        };
        if number < now.lost_below {
            continue;
        }
        left = now.cut_after.filter(|_| from_server).map(|limit| left.unwrap_or(limit));
        let passed = left.map_or(count, |left| count.min(usize::try_from(left).unwrap_or(count)));
        left = left.map(|left| left - passed as u64);
        if to.write_all(&buffer[..passed]).await.is_err() {
            break;
        }
        if left == Some(0) {
            return Err(Cut);
        }
    }
    if number < network.borrow().lost_below {
        // Nobody hears of the end either.
        pending::<()>().await;
    }
    drop(to.shutdown().await);
    Ok(())
}
