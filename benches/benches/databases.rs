//! `SELECT 1` on PostgreSQL over a Unix socket, by 64 tasks that share 8 connections: through Millpond,
//! through its peers, and through a bare channel.
//!
//! It starts a server of its own from what is installed (Debian's package `postgresql`), on a free
//! loopback port and in a temporary folder. The contestants run in turn, each on a runtime and on
//! connections of its own: which core the server's processes sleep on, and what else is in their
//! memory, is worth some per cent for as long as they live. The figures are the medians of the ratios
//! within the rounds.

use bb8_postgres::PostgresConnectionManager;
use millpond::Pool;
use millpond::backends::postgres::PostgresManager;
use millpond_bench::{Rounds, worker_runtime};
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio_postgres::{Client, Config, NoTls};

#[path = "../../tests/support/servers/mod.rs"]
#[allow(dead_code, unused_imports, reason = "the tests use more of it")]
mod servers;

const CONNECTIONS: usize = 8;
const TASKS: usize = 64;
const ROUNDS: usize = 60;
const WINDOW: Duration = Duration::from_millis(150);

/// The channel waits without a deadline, bb8 with one; Millpond and deadpool in both ways.
const NAMES: [&str; 6] = [
    "bare channel",
    "millpond",
    "deadpool-postgres",
    "millpond, 5 s deadline",
    "deadpool-postgres, 5 s deadline",
    "bb8-postgres, 30 s deadline",
];

/// One statement, one round trip.
async fn select(client: &Client) {
    client.simple_query("SELECT 1").await.expect("the server answers");
}

/// How many times a second `turn` is taken by all tasks together.
async fn throughput<F>(turn: impl Fn() -> F + Clone + Send + 'static) -> f64
where
    F: Future<Output = ()> + Send,
{
    let (stop, turns) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let tasks: Vec<_> = (0..TASKS)
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
    // Connections are open by then, and the tasks are in their stride.
    tokio::time::sleep(WINDOW / 2).await;
    let (began, before) = (Instant::now(), turns.load(Ordering::Relaxed));
    tokio::time::sleep(WINDOW).await;
    let rate = (turns.load(Ordering::Relaxed) - before) as f64 / began.elapsed().as_secs_f64();
    stop.store(true, Ordering::Relaxed);
    for task in tasks {
        task.await.expect("a task panicked");
    }
    rate
}

async fn through_channel(config: Config) -> f64 {
    let (give, take) = async_channel::bounded(CONNECTIONS);
    for _ in 0..CONNECTIONS {
        let (client, connection) = config.connect(NoTls).await.expect("the server is there");
        tokio::spawn(connection);
        give.send(client).await.expect("there is room");
    }
    throughput(move || {
        let (give, take) = (give.clone(), take.clone());
        async move {
            let client = take.recv().await.expect("the channel is open");
            select(&client).await;
            give.send(client).await.expect("the channel is open");
        }
    })
    .await
}

async fn through_millpond(config: Config, limit: Duration) -> f64 {
    let manager = PostgresManager::new(config);
    let pool = Pool::builder(manager).max_size(CONNECTIONS).min_idle(CONNECTIONS);
    let pool = pool.acquire_timeout(limit).build().await.expect("the server is there");
    let mine = pool.clone();
    let rate = throughput(move || {
        let pool = mine.clone();
        async move { select(&pool.acquire().await.expect("a connection")).await }
    })
    .await;
    let opened = pool.metrics().created;
    assert!(opened <= CONNECTIONS as u64, "{opened} connections were opened");
    rate
}

async fn through_deadpool(config: Config, limit: Option<Duration>) -> f64 {
    let manager = deadpool_postgres::Manager::new(config, NoTls);
    let pool = deadpool_postgres::Pool::builder(manager).max_size(CONNECTIONS);
    let pool = pool.wait_timeout(limit).runtime(deadpool_postgres::Runtime::Tokio1).build();
    let pool = pool.expect("the settings are in range");
    throughput(move || {
        let pool = pool.clone();
        async move { select(&pool.get().await.expect("a connection")).await }
    })
    .await
}

async fn through_bb8(config: Config) -> f64 {
    let manager = PostgresConnectionManager::new(config, NoTls);
    // Otherwise each turn has a round trip more.
    let builder = bb8::Pool::builder().max_size(CONNECTIONS as u32).test_on_check_out(false);
    let pool = builder.build(manager).await.expect("the server is there");
    throughput(move || {
        let pool = pool.clone();
        async move { select(&pool.get().await.expect("a connection")).await }
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

    let rounds = Rounds::beside_a_server(ROUNDS, NAMES.len(), |who| {
        let config = config.clone();
        worker_runtime().block_on(async {
            match who {
                0 => through_channel(config).await,
                1 => through_millpond(config, Duration::MAX).await,
                2 => through_deadpool(config, None).await,
                3 => through_millpond(config, Duration::from_secs(5)).await,
                4 => through_deadpool(config, Some(Duration::from_secs(5))).await,
                _ => through_bb8(config).await,
            }
        })
    });

    println!("SELECT 1, {TASKS} tasks, {CONNECTIONS} connections, Unix socket\n");
    println!("| | a second | times the channel | times deadpool | with a deadline | times bb8 |");
    println!("|---|--:|--:|--:|--:|--:|");
    for (who, name) in NAMES.iter().enumerate() {
        let rate = rounds.median(who, |rate| *rate);
        let times = |other| rounds.ratio(who, other, |rate: &f64| *rate);
        let [channel, deadpool, with_deadline, bb8] = [0, 2, 4, 5].map(times);
        print!("| {name} | {rate:.0} | {channel:.3} ");
        println!("| {deadpool:.3} | {with_deadline:.3} | {bb8:.3} |");
    }
}
