//! One SQLite file with a writer and several readers: tasks that write wait in a line instead of being
//! told that the database is locked, and tasks that read do not wait for them.
//!
//! ```sh
//! cargo run --example sqlite --features sqlite -- /tmp/example.db
//! ```

#![expect(clippy::print_stdout, reason = "the output is what the example is for")]

use clap::Parser;
use millpond::backends::sqlite::{SqliteDatabase, SqliteManager};
use millpond::with_causes;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};
use tokio::{task::JoinSet, time::timeout};

type Failure = Box<dyn Error + Send + Sync>;

/// Writes to and reads from an SQLite file through two pools.
#[derive(Parser)]
struct Options {
    /// The file in which to create the table millpond_example; it is made if it is not there
    file: PathBuf,
}

async fn run(file: &Path) -> Result<(), Failure> {
    let database = SqliteDatabase::open(SqliteManager::new(file), 4).await?;
    let mut writer = database.writer().acquire().await?;
    let create = "DROP TABLE IF EXISTS millpond_example;
                  CREATE TABLE millpond_example (task INTEGER, n INTEGER)";
    writer.call(|db| db.execute_batch(create)).await?;
    drop(writer);

    let began = Instant::now();
    let mut tasks = JoinSet::new();
    for task in 0..16_i64 {
        let database = database.clone();
        tasks.spawn(async move {
            for n in 0..50_i64 {
                let mut writer = database.writer().acquire().await?;
                let insert = "INSERT INTO millpond_example VALUES (?1, ?2)";
                writer.call(move |db| db.execute(insert, (task, n))).await?;
                drop(writer);
                // What it has written, it reads.
                let mut reader = database.readers().acquire().await?;
                let count = "SELECT count(*) FROM millpond_example WHERE task = ?1";
                let count: i64 =
                    reader.call(move |db| db.query_row(count, [task], |row| row.get(0))).await?;
                assert_eq!(count, n + 1);
            }
            Ok::<(), Failure>(())
        });
    }
    while let Some(task) = tasks.join_next().await {
        task??;
    }
    println!("800 rows written and read back by 16 tasks in {:.1?}", began.elapsed());

    // Nobody waits for this query to the end. It is interrupted, and the connection used again.
    let mut reader = database.readers().acquire().await?;
    let endless = "WITH RECURSIVE c (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c)
                   SELECT count(*) FROM c";
    let count = reader.call(|db| db.query_row(endless, [], |row| row.get::<_, i64>(0)));
    assert!(timeout(Duration::from_millis(50), count).await.is_err());
    reader.release().await?;
    println!("an endless query was given up after 50 ms");

    database
        .writer()
        .acquire()
        .await?
        .call(|db| db.execute_batch("DROP TABLE millpond_example"))
        .await?;
    database.close().await;
    let readers = database.readers().metrics();
    println!("{} readers were opened, {} reset", readers.created, readers.resets);
    Ok(())
}

#[tokio::main]
async fn main() -> ExitCode {
    let Options { file } = Options::parse();
    let Err(error) = run(&file).await else { return ExitCode::SUCCESS };
    eprintln!("error: {}", with_causes(&*error));
    eprintln!("Give the path of an SQLite file, or of one to be made in a folder that is there.");
    ExitCode::FAILURE
}
