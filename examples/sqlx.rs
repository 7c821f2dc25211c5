//! sqlx's queries on Millpond's pool: what changes is where the connection comes from.
//!
//! ```sh
//! cargo run --example sqlx --features sqlx -- postgresql://user:password@localhost/database
//! ```

#![expect(clippy::print_stdout, reason = "the output is what the example is for")]

use clap::Parser;
use millpond::backends::sqlx::SqlxManager;
use millpond::{Pool, with_causes};
use sqlx::{Connection, Postgres};
use std::error::Error;
use std::process::ExitCode;

#[derive(Parser)]
struct Arguments {
    /// Where the database is: postgresql://user:password@host:port/database
    url: String,
    /// How many tasks make queries
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(i64).range(1..=1_000))]
    tasks: i64,
}

async fn run(arguments: Arguments) -> Result<(), Box<dyn Error>> {
    // Instead of `PgPoolOptions::new().max_connections(4).connect(url)`.
    let manager = SqlxManager::<Postgres>::from_url(&arguments.url)?;
    let pool = Pool::builder(manager).max_size(4).build().await?;

    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..arguments.tasks {
        let pool = pool.clone();
        tasks.spawn(async move {
            let mut connection = pool.acquire().await?;
            let query = sqlx::query_scalar::<_, i64>("SELECT $1 * $1").bind(number);
            // Instead of `.fetch_one(&pool)`.
            let square = query.fetch_one(&mut *connection).await?;
            Ok::<_, Box<dyn Error + Send + Sync>>(square)
        });
    }
    let mut sum = 0;
    while let Some(square) = tasks.join_next().await {
        sum += square?.map_err(|error| error as Box<dyn Error>)?;
    }
    println!("the sum of {} squares: {sum}", arguments.tasks);

    // A transaction that is dropped is rolled back at once, in the background.
    let mut connection = pool.acquire().await?;
    let mut transaction = connection.begin().await?;
    sqlx::query("CREATE TABLE millpond_example (n int)").execute(&mut *transaction).await?;
    drop(transaction);
    connection.release().await?;
    let mut connection = pool.acquire().await?;
    let query = sqlx::query_scalar("SELECT to_regclass('millpond_example') IS NULL");
    let gone: bool = query.fetch_one(&mut *connection).await?;
    println!("rolled back: {gone}");
    drop(connection);

    pool.close().await;
    let metrics = pool.metrics();
    println!("{} acquires, {} connections opened", metrics.acquires, metrics.created);
    Ok(())
}

#[tokio::main]
async fn main() -> ExitCode {
    let Err(error) = run(Arguments::parse()).await else { return ExitCode::SUCCESS };
    eprintln!("error: {}", with_causes(&*error));
    ExitCode::FAILURE
}
