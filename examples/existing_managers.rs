//! Managers that were written for bb8, deadpool and r2d2, unchanged.
//!
//! ```sh
//! cargo run --example existing_managers --features bb8,deadpool,r2d2 -- \
//!     postgresql://user:password@localhost/database
//! ```

#![expect(clippy::print_stdout, reason = "the output is what the example is for")]

use bb8_postgres::PostgresConnectionManager;
use bb8_postgres::tokio_postgres::{self, NoTls, error::SqlState};
use clap::Parser;
use millpond::compat::{bb8, deadpool, r2d2};
use millpond::{CheckPolicy, Pool, with_causes};
use r2d2_sqlite::SqliteConnectionManager;
use std::error::Error;
use std::process::ExitCode;

#[derive(Parser)]
struct Arguments {
    /// Where the database is: postgresql://user:password@host:port/database
    url: String,
}

async fn run(url: &str) -> Result<(), Box<dyn Error>> {
    // bb8 does not say which errors are beyond retrying.
    let hopeless = |error: &tokio_postgres::Error| {
        error.code().is_some_and(|code| {
            [SqlState::INVALID_PASSWORD, SqlState::INVALID_CATALOG_NAME].contains(code)
        })
    };
    let manager = PostgresConnectionManager::new_from_stringlike(url, NoTls)?;
    let adapter = bb8::Adapter::new(manager).permanent(hopeless);
    // As bb8's own pool does by default: `test_on_check_out`.
    let pool = Pool::builder(adapter).max_size(4).check(CheckPolicy::Always).build().await?;
    let version: String = pool.acquire().await?.query_one("SHOW server_version", &[]).await?.get(0);
    println!("bb8-postgres: PostgreSQL {version}");

    // deadpool recycles before each reuse, and so does Millpond with its managers.
    let manager = deadpool_postgres::Manager::new(url.parse()?, NoTls);
    let pool = Pool::builder(deadpool::Adapter::new(manager)).max_size(4).build().await?;
    for _ in 0..3 {
        let client = pool.acquire().await?;
        let statement = client.prepare_cached("SELECT current_database()").await?;
        let database: String = client.query_one(&statement, &[]).await?.get(0);
        let recycled = deadpool::Connection::metrics(&client).recycle_count;
        println!("deadpool-postgres: database {database}, recycled {recycled} times");
    }

    // r2d2's managers block, so their calls run on threads for that.
    let adapter = r2d2::Adapter::new(SqliteConnectionManager::memory());
    let pool = Pool::builder(adapter).max_size(4).build().await?;
    let connection = pool.acquire_owned().await?;
    let version: String = tokio::task::spawn_blocking(move || {
        connection.query_row("SELECT sqlite_version()", [], |row| row.get(0))
    })
    .await??;
    println!("r2d2_sqlite: SQLite {version}");
    Ok(())
}

#[tokio::main]
async fn main() -> ExitCode {
    let Err(error) = run(&Arguments::parse().url).await else { return ExitCode::SUCCESS };
    eprintln!("error: {}", with_causes(&*error));
    ExitCode::FAILURE
}
