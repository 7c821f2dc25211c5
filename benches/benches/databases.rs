//! `SELECT 1` on PostgreSQL over a Unix socket, by 64 tasks that share 8 connections, by one task with one
//! connection, and by the body of `main` with one: through Millpond, through its peers, and through a bare
//! channel.
//!
//! It starts a server of its own from what is installed (Debian's package `postgresql`), on a free
//! loopback port and in a temporary folder. The contestants run in turn, each on a runtime and on
//! connections of its own, all of them opened before the first task begins: which core the server's processes sleep on, and what else is in their
//! memory, is worth some per cent for as long as they live. The figures are the medians of the ratios
//! within the rounds, and in brackets between what they would be, in 19 cases of 20, if rounds were
//! taken for ever; `cargo bench --bench databases -- ROUNDS` takes more than 60 of them, or fewer.
//!
//! One contestant is Millpond with the manager below, which does as little with a connection as the peers
//! do: what lies between it and Millpond with `PostgresManager` is what it takes to know whether a
//! connection that comes back is clean.
//!
//! The server has the larger part of the time. What the client's process takes for each statement, in
//! the program and in the kernel for it, stands beside the throughput.

use bb8_postgres::PostgresConnectionManager;
use millpond::backends::postgres::PostgresManager;
use millpond::{Condition, Manager, Pool};
use millpond_bench::{Rounds, run_time, worker_runtime};
use std::future::Future;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio_postgres::{Client, Config, Error, NoTls};

#[path = "../../tests/support/servers/mod.rs"]
#[allow(dead_code, unused_imports, reason = "the tests use more of it")]
mod servers;

/// How many tasks, on how many connections.
#[derive(Clone, Copy)]
struct Load {
    /// 0: one after the other, in what the runtime blocks on, which is none of its tasks.
    tasks: usize,
    connections: usize,
}

/// One where the processors are what is short of, one where they sleep between two statements, and one where
/// the connection is run on another thread than it is used on.
const LOADS: [Load; 3] = [
    Load { tasks: 64, connections: 8 },
    Load { tasks: 1, connections: 1 },
    Load { tasks: 0, connections: 1 },
];
const ROUNDS: usize = 60;
const WINDOW: Duration = Duration::from_millis(150);

/// The channel waits without a deadline, bb8 with one; Millpond and deadpool in both ways.
const NAMES: [&str; 7] = [
    "bare channel",
    "millpond",
    "deadpool-postgres",
    "millpond, 5 s deadline",
    "deadpool-postgres, 5 s deadline",
    "bb8-postgres, 30 s deadline",
    "millpond, connections not looked at",
];

/// One statement, one round trip: by the method that a user of this connection gets who types the same.
macro_rules! select {
    ($connection:expr) => {
        $connection.simple_query("SELECT 1").await.expect("the server answers")
    };
}

/// What was measured of one contestant in one round.
struct Sample {
    /// Turns a second.
    rate: f64,
    /// Microseconds of the client's process for each turn.
    effort: f64,
}

impl Sample {
    /// So many turns have been taken since then, when the process had run for so long.
    fn new(turns: u64, began: Instant, ran: Duration) -> Self {
        let turns = turns as f64;
        let rate = turns / began.elapsed().as_secs_f64();
        Self { rate, effort: run_time().saturating_sub(ran).as_secs_f64() * 1e6 / turns }
    }
}

/// How many times a second `turn` is taken by all tasks together, and what that takes.
async fn throughput<F>(tasks: usize, turn: impl Fn() -> F + Clone + Send + 'static) -> Sample
where
    F: Future<Output = ()> + Send,
{
    if tasks == 0 {
        return throughput_here(turn).await;
    }
    let (stop, turns) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let tasks: Vec<_> = (0..tasks)
        .map(|_| {
            let (turn, stop, turns) = (turn.clone(), stop.clone(), turns.clone());
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    turn().await;
                    turns.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    // The tasks are in their stride by then.
    tokio::time::sleep(WINDOW / 2).await;
    let (began, ran, before) = (Instant::now(), run_time(), turns.load(Ordering::Relaxed));
    tokio::time::sleep(WINDOW).await;
    let sample = Sample::new(turns.load(Ordering::Relaxed) - before, began, ran);
    stop.store(true, Ordering::Relaxed);
    for task in tasks {
        task.await.expect("a task panicked");
    }
    sample
}

/// The same by this task alone.
async fn throughput_here<F: Future<Output = ()>>(turn: impl Fn() -> F) -> Sample {
    let begun = Instant::now();
    while begun.elapsed() < WINDOW / 2 {
        turn().await;
    }
    let (began, ran, mut turns) = (Instant::now(), run_time(), 0);
    while began.elapsed() < WINDOW {
        turn().await;
        turns += 1;
    }
    Sample::new(turns, began, ran)
}

async fn through_channel(config: Config, load: Load) -> Sample {
    let (give, take) = async_channel::bounded(load.connections);
    for _ in 0..load.connections {
        let (client, connection) = config.connect(NoTls).await.expect("the server is there");
        tokio::spawn(connection);
        give.send(client).await.expect("there is room");
    }
    throughput(load.tasks, move || {
        let (give, take) = (give.clone(), take.clone());
        async move {
            let client = take.recv().await.expect("the channel is open");
            select!(client);
            give.send(client).await.expect("the channel is open");
        }
    })
    .await
}

/// Opens connections, and does not look at them any further.
struct Blind(Config);

/// As the driver's library has it.
struct Bare(Client);

impl Deref for Bare {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.0
    }
}

impl Manager for Blind {
    type Connection = Bare;
    type Error = Error;

    async fn connect(&self) -> Result<Bare, Error> {
        let (client, connection) = self.0.connect(NoTls).await?;
        tokio::spawn(connection);
        Ok(Bare(client))
    }

    fn condition(&self, client: &mut Bare) -> Condition {
        if client.is_closed() { Condition::Broken } else { Condition::Clean }
    }
}

async fn through_millpond<M: Manager>(manager: M, load: Load, limit: Duration) -> Sample
where
    M::Connection: Deref<Target = Client>,
{
    let pool = Pool::builder(manager).max_size(load.connections).min_idle(load.connections);
    let pool = pool.acquire_timeout(limit).build().await.expect("the server is there");
    let mine = pool.clone();
    let sample = throughput(load.tasks, move || {
        let pool = mine.clone();
        async move { drop(select!(pool.acquire().await.expect("a connection"))) }
    })
    .await;
    let opened = pool.metrics().created;
    assert!(opened <= load.connections as u64, "{opened} connections were opened");
    sample
}

async fn through_deadpool(config: Config, load: Load, limit: Option<Duration>) -> Sample {
    let manager = deadpool_postgres::Manager::new(config, NoTls);
    let pool = deadpool_postgres::Pool::builder(manager).max_size(load.connections);
    let pool = pool.wait_timeout(limit).runtime(deadpool_postgres::Runtime::Tokio1).build();
    let pool = pool.expect("the settings are in range");
    let mut connections = Vec::new();
    for _ in 0..load.connections {
        connections.push(pool.get().await.expect("the server is there"));
    }
    drop(connections);
    throughput(load.tasks, move || {
        let pool = pool.clone();
        async move { drop(select!(pool.get().await.expect("a connection"))) }
    })
    .await
}

async fn through_bb8(config: Config, load: Load) -> Sample {
    let manager = PostgresConnectionManager::new(config, NoTls);
    // Otherwise each turn has a round trip more.
    let connections = load.connections as u32;
    let builder = bb8::Pool::builder().max_size(connections).min_idle(connections);
    let builder = builder.test_on_check_out(false);
    let pool = builder.build(manager).await.expect("the server is there");
    throughput(load.tasks, move || {
        let pool = pool.clone();
        async move { drop(select!(pool.get().await.expect("a connection"))) }
    })
    .await
}

fn main() {
    let Some(server) = servers::Postgres::start(&[]) else {
        println!("no PostgreSQL is installed; Debian has it in the package `postgresql`");
        return;
    };
    let mut config = Config::new();
    config.host_path(server.socket_folder()).port(server.address().port());
    config.user("millpond").dbname("millpond");

    let rounds = std::env::args().find_map(|argument| argument.parse().ok()).unwrap_or(ROUNDS);
    for load in LOADS {
        compare(&config, load, rounds);
    }
}

fn compare(config: &Config, load: Load, rounds: usize) {
    let rounds = Rounds::beside_a_server(rounds, NAMES.len(), |who| {
        let config = config.clone();
        worker_runtime().block_on(async {
            match who {
                0 => through_channel(config, load).await,
                1 => through_millpond(PostgresManager::new(config), load, Duration::MAX).await,
                2 => through_deadpool(config, load, None).await,
                3 => {
                    let manager = PostgresManager::new(config);
                    through_millpond(manager, load, Duration::from_secs(5)).await
                }
                4 => through_deadpool(config, load, Some(Duration::from_secs(5))).await,
                5 => through_bb8(config, load).await,
                _ => through_millpond(Blind(config), load, Duration::MAX).await,
            }
        })
    });

    let Load { tasks, connections } = load;
    let tasks = if tasks == 0 { "none but `main`".to_owned() } else { tasks.to_string() };
    println!("\nSELECT 1, tasks: {tasks}, connections: {connections}, over a Unix socket\n");
    print!("| | a second | client, µs each ");
    println!("| times the channel | times deadpool | with a deadline | times bb8 |");
    println!("|---|--:|--:|---|---|---|---|");
    let rate = |sample: &Sample| sample.rate;
    for (who, name) in NAMES.iter().enumerate() {
        let effort = rounds.median(who, |sample| sample.effort);
        print!("| {name} | {:.0} | {effort:.1} ", rounds.median(who, rate));
        for other in [0, 2, 4, 5] {
            let (low, high) = rounds.interval(who, other, rate);
            print!("| {:.3} ({low:.2} to {high:.2}) ", rounds.ratio(who, other, rate));
        }
        println!("|");
    }
}
