//! A pool of TCP connections to a server that hangs up now and then.
//!
//! The server, which this example starts itself, sends every line back, and closes each connection
//! after some lines. The pool notices most of that when a connection is released or checked; for
//! the rest, the client that meets a dead connection discards it and tries again.
//!
//! ```sh
//! cargo run --release --example tcp_echo -- --requests 50000 --connections 4
//! ```

use clap::{Parser, value_parser};
use millpond::{CheckPolicy, Condition, Manager, Pool, with_causes};
use std::error::Error;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinSet, yield_now};

/// Sends numbered lines to an echo server through a pool of TCP connections.
#[derive(Parser)]
struct Options {
    /// How many lines to send
    #[arg(long, default_value_t = 20_000, value_parser = value_parser!(u64).range(1..=100_000_000))]
    requests: u64,
    /// How many connections there are at the most
    #[arg(long, default_value_t = 8, value_parser = value_parser!(u16).range(1..=256))]
    connections: u16,
}

type Failure = Box<dyn Error + Send + Sync>;

/// Tasks that send lines.
const CLIENTS: u64 = 32;
/// The server closes a connection after a random number of lines, up to this.
const MOST_LINES: u64 = 400;
/// A line that has met this many dead connections in a row is given up.
const MOST_ATTEMPTS: u32 = 10;

struct Echo {
    address: SocketAddr,
}

impl Manager for Echo {
    type Connection = BufReader<TcpStream>;
    type Error = io::Error;

    async fn connect(&self) -> io::Result<BufReader<TcpStream>> {
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        Ok(BufReader::new(stream))
    }

    /// Asked at each release: nothing may be left to read, in the buffer or in the socket, and the
    /// end of the stream least of all.
    fn condition(&self, connection: &mut BufReader<TcpStream>) -> Condition {
        if !connection.buffer().is_empty() {
            return Condition::Broken;
        }
        match connection.get_ref().try_read(&mut [0]) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Condition::Clean,
            _ => Condition::Broken,
        }
    }

    /// Asked before each use, with `CheckPolicy::Always`: the server may have closed it meanwhile.
    async fn check(&self, connection: &mut BufReader<TcpStream>) -> io::Result<()> {
        match self.condition(connection) {
            Condition::Clean => Ok(()),
            _ => Err(io::ErrorKind::ConnectionAborted.into()),
        }
    }

    /// Told wherever connecting fails.
    fn target(&self) -> Option<String> {
        Some(self.address.to_string())
    }
}

/// Sends back what comes in; closes each connection after some lines.
async fn serve(listener: TcpListener, hung_up: Arc<AtomicU64>) {
    while let Ok((stream, _)) = listener.accept().await {
        let hung_up = hung_up.clone();
        tokio::spawn(async move {
            let mut stream = BufReader::new(stream);
            let mut line = String::new();
            for _ in 0..fastrand::u64(1..=MOST_LINES) {
                line.clear();
                if !matches!(stream.read_line(&mut line).await, Ok(1..)) {
                    return;
                }
                if stream.get_mut().write_all(line.as_bytes()).await.is_err() {
                    return;
                }
            }
            hung_up.fetch_add(1, Relaxed);
        });
    }
}

/// Sends one line and compares the answer.
async fn request(connection: &mut BufReader<TcpStream>, number: u64) -> io::Result<bool> {
    let line = format!("line {number}\n");
    connection.get_mut().write_all(line.as_bytes()).await?;
    let mut answer = String::with_capacity(line.len());
    if connection.read_line(&mut answer).await? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(answer == line)
}

/// What a client did.
#[derive(Default)]
struct Tally {
    right: u64,
    wrong: u64,
    repeated: u64,
}

/// Sends every line of `numbers`, again if the connection fails: an echo may be asked for twice.
async fn client(pool: Pool<Echo>, numbers: impl Iterator<Item = u64>) -> Result<Tally, Failure> {
    let mut tally = Tally::default();
    for number in numbers {
        let mut attempts = 0;
        loop {
            let mut connection = pool.acquire().await?;
            match request(&mut connection, number).await {
                Ok(right) => {
                    tally.right += u64::from(right);
                    tally.wrong += u64::from(!right);
                    // A client has other things to do; meanwhile the news of a hang-up may arrive.
                    yield_now().await;
                    break;
                }
                Err(error) => {
                    connection.discard();
                    attempts += 1;
                    tally.repeated += 1;
                    if attempts == MOST_ATTEMPTS {
                        return Err(error.into());
                    }
                }
            }
        }
    }
    Ok(tally)
}

async fn run(options: &Options, out: &mut impl Write) -> Result<(), Failure> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let hung_up = Arc::new(AtomicU64::new(0));
    let server = tokio::spawn(serve(listener, hung_up.clone()));
    let pool = Pool::builder(Echo { address })
        .name("echo")
        .max_size(options.connections.into())
        .check(CheckPolicy::Always)
        .build()
        .await?;

    let began = Instant::now();
    let mut clients = JoinSet::new();
    for first in 0..CLIENTS {
        let numbers = (first..options.requests).step_by(CLIENTS as usize);
        clients.spawn(client(pool.clone(), numbers));
    }
    let mut total = Tally::default();
    while let Some(done) = clients.join_next().await {
        let tally = done??;
        total.right += tally.right;
        total.wrong += tally.wrong;
        total.repeated += tally.repeated;
    }
    let took = began.elapsed();
    pool.close().await;
    server.abort();

    let metrics = pool.metrics();
    writeln!(out, "{CLIENTS} clients, {} connections, {address}, {took:.1?}", options.connections)?;
    writeln!(out)?;
    for (name, count) in [
        ("requests answered right", total.right),
        ("requests answered wrong", total.wrong),
        ("connections created", metrics.created),
        ("hung up by the server", hung_up.load(Relaxed)),
        ("  broken when released", metrics.closed.broken),
        ("  found by a check", metrics.closed.failed_check),
        ("  met by a client, repeated", total.repeated),
    ] {
        writeln!(out, "{name:<30}{count:>10}")?;
    }
    if total.right != options.requests {
        return Err(
            format!("{} requests, but {} right answers", options.requests, total.right).into()
        );
    }
    Ok(())
}

fn main() -> ExitCode {
    let options = Options::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let outcome = runtime
        .map_err(Failure::from)
        .and_then(|runtime| runtime.block_on(run(&options, &mut io::stdout())));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", with_causes(&*error));
            ExitCode::FAILURE
        }
    }
}
