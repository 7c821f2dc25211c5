//! A pool of MySQL or MariaDB connections: tasks that move money between accounts in transactions, and
//! some of which give up in the middle. However they end, no money is made or lost.
//!
//! ```sh
//! cargo run --example mysql --features mysql -- mysql://user:password@127.0.0.1:3306/test
//! ```

#![expect(clippy::print_stdout, reason = "the output is what the example is for")]

use clap::Parser;
use millpond::{Pool, backends::mysql::MysqlManager, with_causes};
use mysql_async::{TxOpts, prelude::Queryable};
use std::error::Error;
use std::process::ExitCode;
use std::time::Duration;
use tokio::{task::JoinSet, time::timeout};

type Failure = Box<dyn Error + Send + Sync>;

/// Moves money through a pool of MySQL connections.
#[derive(Parser)]
struct Options {
    /// The server and a database in which to create the table millpond_example, such as
    /// mysql://user:password@127.0.0.1:3306/test
    url: String,
}

const TABLE: &str = "millpond_example";

/// Moves one coin from one account to the next.
async fn pay(pool: &Pool<MysqlManager>, account: u64) -> Result<(), Failure> {
    let mut connection = pool.acquire().await?;
    let mut transaction = connection.start_transaction(TxOpts::default()).await?;
    // Always the lower number first, so that nobody waits in a circle.
    let (from, to) = (account % 10, (account + 1) % 10);
    for id in [from.min(to), from.max(to)] {
        let coins = if id == from { -1 } else { 1 };
        let update = format!("UPDATE {TABLE} SET coins = coins + ? WHERE id = ?");
        transaction.exec_drop(update, (coins, id)).await?;
    }
    Ok(transaction.commit().await?)
}

async fn run(url: &str) -> Result<(), Failure> {
    let pool = Pool::builder(MysqlManager::from_url(url)?).max_size(4).build().await?;
    let mut connection = pool.acquire().await?;
    let columns = "(id INT PRIMARY KEY, coins INT) ENGINE InnoDB";
    let table = format!("DROP TABLE IF EXISTS {TABLE}; CREATE TABLE {TABLE} {columns}");
    connection.query_drop(table).await?;
    let accounts = (0..10).map(|id| (id, 100));
    connection.exec_batch(format!("INSERT INTO {TABLE} VALUES (?, ?)"), accounts).await?;
    drop(connection);

    let mut clients = JoinSet::new();
    for client in 0..16_u64 {
        let pool = pool.clone();
        clients.spawn(async move {
            // Every fourth client has no patience. What it leaves is rolled back, or the connection
            // closed, before anybody else gets it.
            let patience = Duration::from_millis(if client % 4 == 0 { 3 } else { 10_000 });
            let mut given_up = 0;
            for payment in 0..100 {
                match timeout(patience, pay(&pool, client + payment)).await {
                    Ok(paid) => paid?,
                    Err(_) => given_up += 1,
                }
            }
            Ok::<u64, Failure>(given_up)
        });
    }
    let mut given_up = 0;
    while let Some(client) = clients.join_next().await {
        given_up += client??;
    }
    let mut connection = pool.acquire().await?;
    let sum: Option<i64> =
        connection.query_first(format!("SELECT SUM(coins) FROM {TABLE}")).await?;
    connection.query_drop(format!("DROP TABLE {TABLE}")).await?;
    drop(connection);
    let metrics = pool.metrics();
    println!("1600 payments, {given_up} given up, {} coins", sum.unwrap_or_default());
    println!("{} connections opened, {} resets", metrics.created, metrics.resets);
    pool.close().await;
    if sum != Some(1_000) {
        return Err("there were 1000 coins".into());
    }
    Ok(())
}

#[tokio::main]
async fn main() -> ExitCode {
    let Options { url } = Options::parse();
    let Err(error) = run(&url).await else { return ExitCode::SUCCESS };
    eprintln!("error: {}", with_causes(&*error));
    eprintln!("Does a MySQL or MariaDB server answer there, with this user and database?");
    ExitCode::FAILURE
}
