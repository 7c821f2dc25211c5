//! A pool of Redis connections: tasks that sell what is in stock with `WATCH` and `MULTI`, which need
//! a connection to themselves, and some of which lose patience in the middle.
//!
//! ```sh
//! redis-server --port 6399 --save '' &
//! cargo run --example redis --features redis -- redis://127.0.0.1:6399
//! ```

#![expect(clippy::print_stdout, reason = "the output is what the example is for")]

use clap::Parser;
use millpond::{Pool, backends::redis::RedisManager, with_causes};
use redis::{AsyncCommands, RedisResult};
use std::error::Error;
use std::process::ExitCode;
use std::time::Duration;
use tokio::{task::JoinSet, time::timeout};

type Failure = Box<dyn Error + Send + Sync>;

/// Sells a stock through a pool of Redis connections.
#[derive(Parser)]
struct Options {
    /// The server, such as redis://:password@127.0.0.1:6379/0. To start one that keeps nothing:
    /// redis-server --port 6399 --save ''
    url: String,
}

const STOCK: &str = "millpond:example:stock";
const SOLD: &str = "millpond:example:sold";

/// Sells one, unless none is left; tries again if somebody else has sold one meanwhile.
async fn sell(pool: &Pool<RedisManager>) -> Result<bool, Failure> {
    loop {
        let mut connection = pool.acquire().await?;
        redis::cmd("WATCH").arg(STOCK).exec_async(&mut *connection).await?;
        let stock: u64 = connection.get(STOCK).await?;
        if stock == 0 {
            return Ok(false); // The WATCH is left behind: the pool resets the connection.
        }
        let mut sale = redis::pipe();
        sale.atomic().set(STOCK, stock - 1).ignore().incr(SOLD, 1);
        let sold: RedisResult<Option<(u64,)>> = sale.query_async(&mut *connection).await;
        if sold?.is_some() {
            return Ok(true);
        }
    }
}

async fn run(url: &str) -> Result<(), Failure> {
    let manager = RedisManager::new(url)?.client_name("millpond-example");
    let pool = Pool::builder(manager).max_size(4).min_idle(1).build().await?;
    pool.acquire().await?.mset::<_, _, ()>(&[(STOCK, 500), (SOLD, 0)]).await?;

    let mut clients = JoinSet::new();
    for client in 0..16_u64 {
        let pool = pool.clone();
        clients.spawn(async move {
            let mut given_up = 0;
            // Every fourth client waits for two milliseconds at the most. Whatever it was in the
            // middle of then is cleaned up before anybody else gets the connection.
            let patience = Duration::from_millis(if client % 4 == 0 { 2 } else { 10_000 });
            loop {
                match timeout(patience, sell(&pool)).await {
                    Ok(sold) => match sold? {
                        true => continue,
                        false => return Ok::<u64, Failure>(given_up),
                    },
                    Err(_) => given_up += 1,
                }
            }
        });
    }
    let mut given_up = 0;
    while let Some(client) = clients.join_next().await {
        given_up += client??;
    }
    let (left, sold): (u64, u64) = pool.acquire().await?.mget(&[STOCK, SOLD]).await?;
    pool.acquire().await?.del::<_, ()>(&[STOCK, SOLD]).await?;
    let metrics = pool.metrics();
    println!("{sold} sold, {left} left, {given_up} times somebody lost patience");
    println!("{} connections opened, {} resets", metrics.created, metrics.resets);
    pool.close().await;
    match sold + left {
        500 => Ok(()),
        count => Err(format!("500 were in stock, not {count}").into()),
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let Options { url } = Options::parse();
    let Err(error) = run(&url).await else { return ExitCode::SUCCESS };
    eprintln!("error: {}", with_causes(&*error));
    eprintln!("Is a Redis server running there? To start one: redis-server --port 6399 --save ''");
    ExitCode::FAILURE
}
