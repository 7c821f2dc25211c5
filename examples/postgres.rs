//! A pool of PostgreSQL connections: tasks that move money between accounts, some of which lose
//! patience in the middle of a transaction; in the end none is missing.
//!
//! ```sh
//! cargo run --example postgres --features postgres -- postgresql://app:password@127.0.0.1/app
//! ```

#![expect(clippy::print_stdout, reason = "the output is what the example is for")]

use clap::Parser;
use millpond::{Pool, backends::postgres::PostgresManager, with_causes};
use std::error::Error;
use std::process::ExitCode;
use std::time::Duration;
use tokio::{task::JoinSet, time::timeout};

type Failure = Box<dyn Error + Send + Sync>;

/// Moves money through a pool of PostgreSQL connections.
#[derive(Parser)]
struct Options {
    /// The server, such as postgresql://user:password@127.0.0.1/database. The user must be allowed to
    /// create a table there, `millpond_example`, which is dropped in the end
    url: String,
}

const ACCOUNTS: i32 = 10;
const EACH: i64 = 100;

/// Moves one unit from one account to another.
async fn transfer(pool: &Pool<PostgresManager>, from: i32, to: i32) -> Result<(), Failure> {
    let mut client = pool.acquire().await?;
    // Prepared once for each connection.
    let add = client.prepare_cached("UPDATE millpond_example SET held = held + $2 WHERE id = $1");
    let add = add.await?;
    let transaction = client.transaction().await?;
    // In the order of the accounts, so that nobody waits for anybody who waits for him.
    let mut changes = [(from, -1_i64), (to, 1)];
    changes.sort_unstable();
    for (account, change) in changes {
        transaction.execute(&add, &[&account, &change]).await?;
    }
    Ok(transaction.commit().await?)
}

async fn run(url: &str) -> Result<(), Failure> {
    let pool = Pool::builder(PostgresManager::from_url(url)?).max_size(4).min_idle(1);
    let pool = pool.build().await?;
    pool.acquire()
        .await?
        .batch_execute(&format!(
            "DROP TABLE IF EXISTS millpond_example;
             CREATE TABLE millpond_example (id int PRIMARY KEY, held bigint NOT NULL);
             INSERT INTO millpond_example SELECT id, {EACH} FROM generate_series(1, {ACCOUNTS}) id"
        ))
        .await?;

    let mut clients = JoinSet::new();
    for client in 0..16 {
        let pool = pool.clone();
        clients.spawn(async move {
            let mut given_up = 0;
            // Every fourth client waits for 2 ms at the most. The transaction that it was in the middle
            // of then is rolled back before anybody else gets the connection.
            let patience = Duration::from_millis(if client % 4 == 0 { 2 } else { 10_000 });
            for turn in 0..200 {
                let (from, to) =
                    ((client + turn) % ACCOUNTS, (client * 3 + turn * 7 + 1) % ACCOUNTS);
                let transfer = transfer(&pool, from + 1, to + 1);
                match timeout(patience, transfer).await {
                    Ok(moved) => moved?,
                    Err(_) => given_up += 1,
                }
            }
            Ok::<i32, Failure>(given_up)
        });
    }
    let mut given_up = 0;
    while let Some(client) = clients.join_next().await {
        given_up += client??;
    }
    let client = pool.acquire().await?;
    let row = client.query_one("SELECT sum(held)::bigint FROM millpond_example", &[]).await?;
    let total: i64 = row.get(0);
    client.batch_execute("DROP TABLE millpond_example").await?;
    drop(client);
    let metrics = pool.metrics();
    println!("3,200 transfers begun, {given_up} given up; {total} in all the accounts together");
    println!("{} connections opened, {} resets", metrics.created, metrics.resets);
    pool.close().await;
    let before = EACH * i64::from(ACCOUNTS);
    if total == before { Ok(()) } else { Err(format!("there were {before} before").into()) }
}

#[tokio::main]
async fn main() -> ExitCode {
    let Options { url } = Options::parse();
    let Err(error) = run(&url).await else { return ExitCode::SUCCESS };
    eprintln!("error: {}", with_causes(&*error));
    eprintln!("Is a PostgreSQL server running there? Debian has one in the package `postgresql`.");
    ExitCode::FAILURE
}
