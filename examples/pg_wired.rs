//! A pool of pg-wired's connections: pipelined queries, and a query that is given up half-way.
//!
//! ```sh
//! cargo run --example pg_wired --features pg-wired -- postgresql://user:password@localhost/database
//! ```

#![expect(clippy::print_stdout, reason = "the output is what the example is for")]

use clap::Parser;
use millpond::backends::pg_wired::{Options, PgWiredManager};
use millpond::{Pool, with_causes};
use std::error::Error;
use std::process::ExitCode;
use std::time::{Duration, Instant};

#[derive(Parser)]
struct Arguments {
    /// Where the database is: postgresql://user:password@host:port/database
    url: String,
    /// How many connections there are at the most
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=64))]
    connections: u16,
}

async fn run(arguments: Arguments) -> Result<(), Box<dyn Error>> {
    let options = Options::from_url(&arguments.url)?.parameter("application_name", "example");
    let pool = Pool::builder(PgWiredManager::new(options))
        .max_size(arguments.connections.into())
        .build()
        .await?;

    // Requests that are made together share a round trip.
    let connection = pool.acquire().await?;
    let began = Instant::now();
    let (one, two, three) = tokio::try_join!(
        connection.exec_query("SELECT version()", &[], &[]),
        connection.exec_query("SELECT $1::int4 + 1", &[Some(b"41")], &[]),
        connection.exec_query("SELECT count(*) FROM pg_stat_activity", &[], &[]),
    )?;
    for rows in [&one, &two, &three] {
        let text = rows.first().and_then(|row| row.cell(0)).unwrap_or_default();
        println!("{}", String::from_utf8_lossy(text));
    }
    println!("three answers in {:.1?}", began.elapsed());

    // A query that takes too long; its transaction is open, and the connection is still busy.
    connection.exec_query("BEGIN", &[], &[]).await?;
    let nap = connection.exec_query("SELECT pg_sleep(0.2)", &[], &[]);
    let given_up = tokio::time::timeout(Duration::from_millis(50), nap).await.is_err();
    println!("given up: {given_up}");
    // The pool waits for it, rolls the transaction back, and keeps the connection.
    connection.release().await?;
    let rows = pool.acquire().await?.exec_query("SELECT 'clean'", &[], &[]).await?;
    println!("{}", String::from_utf8_lossy(rows[0].cell(0).unwrap_or_default()));

    pool.close().await;
    let metrics = pool.metrics();
    println!("{} opened, {} resets", metrics.created, metrics.resets);
    Ok(())
}

#[tokio::main]
async fn main() -> ExitCode {
    let Err(error) = run(Arguments::parse()).await else { return ExitCode::SUCCESS };
    eprintln!("error: {}", with_causes(&*error));
    ExitCode::FAILURE
}
