//! What a pool is for: 64 tasks that read and write an SQLite database through 8 connections, and
//! the same work with a connection opened for each operation.
//!
//! ```sh
//! cargo run --release --example quickstart
//! cargo run --release --example quickstart -- --seconds 10 --tasks 200 --connections 16
//! ```

use clap::{Parser, value_parser};
use hdrhistogram::Histogram;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use millpond::{Condition, Manager, Pool, with_causes};
use rusqlite::{Connection, OpenFlags};
use std::error::Error;
use std::future::Future;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;
use tokio::task::{JoinSet, block_in_place, yield_now};

/// Measures what a pool of SQLite connections saves.
#[derive(Parser)]
struct Options {
    /// How long each of the two measurements takes
    #[arg(long, default_value_t = 5, value_parser = value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// How many tasks work at the same time
    #[arg(long, default_value_t = 64, value_parser = value_parser!(u16).range(1..=1024))]
    tasks: u16,
    /// How many connections there are at the most
    #[arg(long, default_value_t = 8, value_parser = value_parser!(u16).range(1..=256))]
    connections: u16,
}

type Failure = Box<dyn Error + Send + Sync>;

/// Rows in the table.
const ROWS: i64 = 100_000;
/// Rows in a range sum.
const RANGE: i64 = 20;

/// One SQLite file.
struct Sqlite {
    path: PathBuf,
}

impl Sqlite {
    fn open(&self) -> rusqlite::Result<Connection> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_CREATE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(&self.path, flags)?;
        connection.busy_timeout(Duration::from_secs(5))?;
        // Readers and the one writer do not wait for each other.
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "NORMAL")?;
        Ok(connection)
    }
}

// What may block for long is kept off the runtime's workers: `block_in_place` hands the other tasks
// of this worker to another thread meanwhile. Connecting, closing and writing may: they wait for
// the disk or for another writer. Reading a few rows does not: with a write-ahead log readers wait
// for nobody, the file is in memory, and a few microseconds later it is over. Handing over costs
// more than that: with it for each read, all this was less than half as fast. A database that does
// not fit in memory would need it for reads too.
impl Manager for Sqlite {
    type Connection = Connection;
    type Error = rusqlite::Error;

    async fn connect(&self) -> rusqlite::Result<Connection> {
        block_in_place(|| self.open())
    }

    /// Somebody may have left a transaction open.
    fn condition(&self, connection: &mut Connection) -> Condition {
        if connection.is_autocommit() { Condition::Clean } else { Condition::Dirty }
    }

    async fn reset(&self, connection: &mut Connection) -> rusqlite::Result<()> {
        block_in_place(|| connection.execute_batch("ROLLBACK"))
    }

    async fn close(&self, connection: Connection) {
        block_in_place(|| drop(connection));
    }
}

/// What row `id` has in the column `value`, for good.
fn value(id: i64) -> i64 {
    id * 7_919 % 10_007
}

/// Creates the table and fills it.
fn fill(connection: &mut Connection) -> rusqlite::Result<()> {
    let transaction = connection.transaction()?;
    transaction.execute_batch(
        "CREATE TABLE items (
            id INTEGER PRIMARY KEY, value INTEGER NOT NULL, updates INTEGER NOT NULL
        )",
    )?;
    let mut insert = transaction.prepare("INSERT INTO items VALUES (?1, ?2, 0)")?;
    for id in 0..ROWS {
        insert.execute([id, value(id)])?;
    }
    drop(insert);
    transaction.commit()
}

/// One operation on the database.
enum Work {
    Read(i64),
    Sum(i64),
    Update(i64),
}

impl Work {
    /// 90 % reads of one row, 8 % sums of a range, 2 % updates.
    fn random() -> Self {
        let id = fastrand::i64(0..ROWS - RANGE);
        match fastrand::u8(0..100) {
            0..90 => Self::Read(id),
            90..98 => Self::Sum(id),
            _ => Self::Update(id),
        }
    }

    /// Does it, and checks the answer.
    fn perform(&self, connection: &Connection, tally: &mut Tally) -> rusqlite::Result<()> {
        let right = match *self {
            Self::Read(id) => {
                let mut select =
                    connection.prepare_cached("SELECT value FROM items WHERE id = ?1")?;
                select.query_row([id], |row| row.get(0)).map(|read: i64| read == value(id))?
            }
            Self::Sum(first) => {
                let mut select = connection
                    .prepare_cached("SELECT sum(value) FROM items WHERE id >= ?1 AND id < ?2")?;
                let sum: i64 = select.query_row([first, first + RANGE], |row| row.get(0))?;
                sum == (first..first + RANGE).map(value).sum::<i64>()
            }
            Self::Update(id) => {
                let mut update = connection
                    .prepare_cached("UPDATE items SET updates = updates + 1 WHERE id = ?1")?;
                let changed = block_in_place(|| update.execute([id]))?;
                tally.updates += 1;
                changed == 1
            }
        };
        tally.operations += 1;
        tally.wrong += u64::from(!right);
        Ok(())
    }
}

/// What one task, or all of them, did.
struct Tally {
    operations: u64,
    updates: u64,
    /// Answers that were not what is in the database.
    wrong: u64,
    /// Nanoseconds from the wish for a connection to its fulfilment.
    acquire: Histogram<u64>,
}

impl Tally {
    fn new() -> Result<Self, Failure> {
        Ok(Self { operations: 0, updates: 0, wrong: 0, acquire: Histogram::new(2)? })
    }

    fn acquired(&mut self, began: Instant) {
        let nanos = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.acquire += nanos;
    }

    fn add(&mut self, other: &Self) -> Result<(), Failure> {
        self.operations += other.operations;
        self.updates += other.updates;
        self.wrong += other.wrong;
        Ok(self.acquire.add(&other.acquire)?)
    }
}

/// Where a task gets its connections from.
#[derive(Clone)]
enum Source {
    Pool(Pool<Sqlite>),
    /// Opened each time, but no more of them at once than the pool would have.
    Opened(Arc<Sqlite>, Arc<Semaphore>),
}

impl Source {
    async fn perform(&self, work: &Work, tally: &mut Tally) -> Result<(), Failure> {
        let began = Instant::now();
        match self {
            Self::Pool(pool) => {
                let connection = pool.acquire().await?;
                tally.acquired(began);
                work.perform(&connection, tally)?;
            }
            Self::Opened(sqlite, limit) => {
                let _permit = limit.acquire().await?;
                // All in one, which is the fastest for this way of working.
                block_in_place(|| {
                    let connection = sqlite.open()?;
                    tally.acquired(began);
                    work.perform(&connection, tally)
                })?;
            }
        }
        Ok(())
    }
}

/// The result of one measurement.
struct Measured {
    tally: Tally,
    took: Duration,
}

impl Measured {
    fn rate(&self) -> f64 {
        self.tally.operations as f64 / self.took.as_secs_f64()
    }
}

/// Lets the tasks work for as long as the options say.
async fn measure(
    options: &Options,
    source: Source,
    what: &'static str,
) -> Result<Measured, Failure> {
    let bar = progress(options, what)?;
    let began = Instant::now();
    let end = began + Duration::from_secs(options.seconds);
    let mut tasks = JoinSet::new();
    for _ in 0..options.tasks {
        let source = source.clone();
        tasks.spawn(async move {
            let mut tally = Tally::new()?;
            while Instant::now() < end {
                source.perform(&Work::random(), &mut tally).await?;
                // An acquire that finds a connection does not wait, so nothing else would let the
                // other tasks have their turn.
                yield_now().await;
            }
            Ok::<_, Failure>(tally)
        });
    }
    let mut tally = Tally::new()?;
    let mut tick = tokio::time::interval(Duration::from_millis(100));
    loop {
        tokio::select! {
            done = tasks.join_next() => match done {
                Some(done) => tally.add(&done??)?,
                None => break,
            },
            _ = tick.tick() => bar.set_position(began.elapsed().as_millis() as u64),
        }
    }
    bar.finish_and_clear();
    Ok(Measured { tally, took: began.elapsed() })
}

/// A bar that fills in the time of one measurement; none where nobody sees it move.
fn progress(options: &Options, what: &'static str) -> Result<ProgressBar, Failure> {
    let target = if io::stdout().is_terminal() {
        ProgressDrawTarget::stderr()
    } else {
        ProgressDrawTarget::hidden()
    };
    let style = ProgressStyle::with_template("{msg:<24} [{bar:40}] {percent:>3} %")?;
    let bar = ProgressBar::with_draw_target(Some(options.seconds * 1_000), target);
    bar.set_style(style.progress_chars("=> "));
    bar.set_message(what);
    Ok(bar)
}

/// How often an acquire and a release of an idle connection allocate, on average.
fn allocations_per_acquire(pool: &Pool<Sqlite>) -> Result<f64, Failure> {
    const ROUNDS: u32 = 10_000;
    let mut misses = 0;
    let allocations = allocation_counter::measure(|| {
        let mut cx = Context::from_waker(Waker::noop());
        for _ in 0..ROUNDS {
            match pin!(pool.acquire()).poll(&mut cx) {
                Poll::Ready(Ok(connection)) => drop(connection),
                _ => misses += 1,
            }
        }
    });
    if misses > 0 {
        return Err("no connection was idle although nobody works".into());
    }
    Ok(allocations.count_total as f64 / f64::from(ROUNDS))
}

async fn run(options: &Options, out: &mut impl Write) -> Result<(), Failure> {
    let directory = tempfile::tempdir()
        .map_err(|error| format!("cannot make a directory for the database: {error}"))?;
    let path = directory.path().join("quickstart.db");
    // This connection stays open to the end: when the last one is closed, SQLite writes everything
    // back to the main file, which would make opening one each time look worse than it is.
    let keeper = block_in_place(|| prepare(&path))?;
    writeln!(
        out,
        "SQLite, {} rows; tasks: {}; 90 % reads, 8 % sums of {RANGE} rows, 2 % updates; 2 x {} s",
        grouped(ROWS as u64),
        options.tasks,
        options.seconds,
    )?;
    out.flush()?;

    let connections = usize::from(options.connections);
    let pool = Pool::builder(Sqlite { path: path.clone() })
        .name("quickstart")
        .max_size(connections)
        .min_idle(connections)
        .build()
        .await?;
    let pooled = measure(options, Source::Pool(pool.clone()), "with the pool").await?;
    let allocations = allocations_per_acquire(&pool)?;
    let created = pool.metrics().created;
    pool.close().await;

    let limit = Arc::new(Semaphore::new(connections));
    let source = Source::Opened(Arc::new(Sqlite { path }), limit);
    let opened = measure(options, source, "opened for each operation").await?;

    let stored: i64 = keeper.query_row("SELECT sum(updates) FROM items", [], |row| row.get(0))?;
    report(out, options, &pooled, &opened, created, allocations)?;
    verdict(out, &pooled.tally, &opened.tally, stored)
}

fn prepare(path: &Path) -> rusqlite::Result<Connection> {
    let mut connection = Sqlite { path: path.to_owned() }.open()?;
    fill(&mut connection)?;
    Ok(connection)
}

fn report(
    out: &mut impl Write,
    options: &Options,
    pooled: &Measured,
    opened: &Measured,
    created: u64,
    allocations: f64,
) -> io::Result<()> {
    let row = |out: &mut dyn Write, name: &str, left: String, right: String| {
        writeln!(out, "{name:<28}{left:>16}{right:>20}")
    };
    writeln!(out)?;
    row(out, "", format!("pool of {}", options.connections), "opened each time".into())?;
    let rates = [pooled, opened].map(|measured| grouped(measured.rate() as u64));
    let [left, right] = rates;
    row(out, "operations/s", left, right)?;
    for (name, quantile) in [
        ("acquire p50", 0.5),
        ("acquire p99", 0.99),
        ("acquire p99.9", 0.999),
        ("acquire max", 1.0),
    ] {
        let [left, right] = [pooled, opened]
            .map(|measured| time(measured.tally.acquire.value_at_quantile(quantile)));
        row(out, name, left, right)?;
    }
    row(out, "connections created", grouped(created), grouped(opened.tally.operations))?;
    row(out, "allocations per hit", format!("{allocations}"), "-".into())?;
    writeln!(out)?;
    writeln!(out, "with the pool: {:.1} x the operations", pooled.rate() / opened.rate())
}

/// Says whether the database has what the tasks did to it, and fails if not.
fn verdict(
    out: &mut impl Write,
    pooled: &Tally,
    opened: &Tally,
    stored: i64,
) -> Result<(), Failure> {
    let updates = pooled.updates + opened.updates;
    let wrong = pooled.wrong + opened.wrong;
    let reads = pooled.operations + opened.operations - updates;
    if wrong == 0 && u64::try_from(stored) == Ok(updates) {
        let (reads, updates) = (grouped(reads), grouped(updates));
        writeln!(out, "consistent: yes ({reads} answers right, {updates} updates stored)")?;
        return Ok(());
    }
    writeln!(out, "consistent: no")?;
    Err(format!("{wrong} answers were wrong, and {stored} of {updates} updates are stored").into())
}

/// A number in groups of three digits.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Nanoseconds, in the unit that suits them.
fn time(nanos: u64) -> String {
    let nanos = nanos as f64;
    match nanos {
        ..1e3 => format!("{nanos:.0} ns"),
        ..1e6 => format!("{:.1} us", nanos / 1e3),
        ..1e9 => format!("{:.1} ms", nanos / 1e6),
        _ => format!("{:.2} s ", nanos / 1e9),
    }
}

fn main() -> ExitCode {
    let options = Options::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let outcome = runtime.map_err(Failure::from).and_then(|runtime| {
        runtime.block_on(async { run(&options, &mut io::stdout().lock()).await })
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", with_causes(&*error));
            ExitCode::FAILURE
        }
    }
}
