//! `SELECT 1` on PostgreSQL over a Unix socket, by 64 tasks that share 8 connections: through Millpond,
//! through its peers, and through a bare channel.
//!
//! It starts a server of its own from what is installed (Debian's package `postgresql`), on a free
//! loopback port and in a temporary folder. The contestants run in turn; the figures are the medians
//! of the ratios within the rounds.

use bb8_postgres::PostgresConnectionManager;
use millpond::Pool;
use millpond::backends::postgres::PostgresManager;
use millpond_bench::{Rounds, worker_runtime};
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use tokio_postgres::{Client, Config, NoTls};

#[path = "../../tests/support/servers/mod.rs"]
#[allow(dead_code, unused_imports, reason = "the tests use more of it")]
mod servers;

const CONNECTIONS: usize = 8;
const TASKS: usize = 64;
const ROUNDS: usize = 15;
const WINDOW: Duration = Duration::from_millis(400);

/// One statement, one round trip.
async fn select(client: &Client) {
    client.simple_query("SELECT 1").await.expect("the server answers");
}

/// How many times a second `turn` is taken by all tasks together.
fn throughput<F>(runtime: &Runtime, turn: impl Fn() -> F + Clone + Send + 'static) -> f64
where
    F: Future<Output = ()> + Send,
{
    let (stop, turns) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    runtime.block_on(async {
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
        // The first turns connect.
        tokio::time::sleep(WINDOW / 8).await;
        let (began, before) = (Instant::now(), turns.load(Ordering::Relaxed));
        tokio::time::sleep(WINDOW).await;
        let rate = (turns.load(Ordering::Relaxed) - before) as f64 / began.elapsed().as_secs_f64();
        stop.store(true, Ordering::Relaxed);
        for task in tasks {
            task.await.expect("a task panicked");
        }
        rate
    })
}

fn main() {
    let Some(server) = servers::Postgres::start(&[]) else {
        println!("no PostgreSQL is installed; Debian has it in the package `postgresql`");
        return;
    };
    let mut config = Config::new();
    config.host_path(server.socket_folder()).port(server.address().port());
    config.user("millpond").dbname("millpond");
    let runtime = worker_runtime();

    let ours = runtime.block_on(async {
        let manager = PostgresManager::new(config.clone());
        Pool::builder(manager).max_size(CONNECTIONS).min_idle(CONNECTIONS).build().await
    });
    let ours = ours.expect("the server is there");
    let deadpool = {
        let manager = deadpool_postgres::Manager::new(config.clone(), NoTls);
        deadpool_postgres::Pool::builder(manager).max_size(CONNECTIONS).build()
    };
    let deadpool = deadpool.expect("the settings are in range");
    let bb8 = runtime.block_on(async {
        let manager = PostgresConnectionManager::new(config.clone(), NoTls);
        // Otherwise each turn has a round trip more.
        let builder = bb8::Pool::builder().max_size(CONNECTIONS as u32).test_on_check_out(false);
        builder.build(manager).await
    });
    let bb8 = bb8.expect("the server is there");
    let (give, take) = async_channel::bounded(CONNECTIONS);
    runtime.block_on(async {
        for _ in 0..CONNECTIONS {
            let (client, connection) = config.connect(NoTls).await.expect("the server is there");
            tokio::spawn(connection);
            give.send(client).await.expect("there is room");
        }
    });

    // The channel and deadpool wait without a deadline, bb8 with one; Millpond in both ways.
    let names = [
        "bare channel",
        "millpond, 5 s deadline",
        "deadpool-postgres",
        "bb8-postgres, 30 s deadline",
        "millpond",
    ];
    let rounds = Rounds::beside_a_server(ROUNDS, names.len(), |who| match who {
        0 => {
            let (give, take) = (give.clone(), take.clone());
            throughput(&runtime, move || {
                let (give, take) = (give.clone(), take.clone());
                async move {
                    let client = take.recv().await.expect("the channel is open");
                    select(&client).await;
                    give.send(client).await.expect("the channel is open");
                }
            })
        }
        1 => {
            let pool = ours.clone();
            throughput(&runtime, move || {
                let pool = pool.clone();
                async move { select(&pool.acquire().await.expect("a connection")).await }
            })
        }
        2 => {
            let pool = deadpool.clone();
            throughput(&runtime, move || {
                let pool = pool.clone();
                async move { select(&pool.get().await.expect("a connection")).await }
            })
        }
        4 => {
            let pool = ours.clone();
            throughput(&runtime, move || {
                let pool = pool.clone();
                async move {
                    let acquired = pool.acquire_timeout(Duration::MAX).await;
                    select(&acquired.expect("a connection")).await;
                }
            })
        }
        _ => {
            let pool = bb8.clone();
            throughput(&runtime, move || {
                let pool = pool.clone();
                async move { select(&pool.get().await.expect("a connection")).await }
            })
        }
    });

    println!("SELECT 1, {TASKS} tasks, {CONNECTIONS} connections, Unix socket\n");
    println!("| | a second | times the bare channel | times deadpool | times bb8 |");
    println!("|---|--:|--:|--:|--:|");
    for (who, name) in names.iter().enumerate() {
        let rate = rounds.median(who, |rate| *rate);
        let times = |other| rounds.ratio(who, other, |rate: &f64| *rate);
        println!("| {name} | {rate:.0} | {:.3} | {:.3} | {:.3} |", times(0), times(2), times(3));
    }
    let metrics = ours.metrics();
    println!(
        "\nmillpond: {} acquires, {} connections opened, {} resets, which cost no round trip",
        metrics.acquires, metrics.created, metrics.resets
    );
}
