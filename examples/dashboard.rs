//! The live status page, with three pools at work behind it, and trouble to look at: slow queries, a
//! connection that somebody keeps, a server that dies and comes back.
//!
//! ```sh
//! cargo run --release --example dashboard --features axum,sqlite,tcp
//! cargo run --release --example dashboard --features axum,sqlite,tcp -- --trouble slow --port 0
//! ```
//!
//! Ctrl-C ends it.

#![expect(clippy::print_stdout, reason = "the output is what the example is for")]

use axum::Router;
use axum::response::Redirect;
use axum::routing::get;
use clap::{Parser, ValueEnum, value_parser};
use futures_util::FutureExt;
use millpond::backends::sqlite::SqliteManager;
use millpond::backends::tcp::TcpManager;
use millpond::web::StatusPage;
use millpond::{Monitor, Pool, with_causes};
use rusqlite::Connection;
use std::error::Error;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;

/// Shows the live status page of three pools, and what trouble looks like on it.
#[derive(Parser)]
struct Options {
    /// The port of the page on 127.0.0.1; 0 for one that is free
    #[arg(long, default_value_t = 7788)]
    port: u16,
    /// What goes wrong
    #[arg(long, value_enum, default_value_t = Choice::InTurn)]
    trouble: Choice,
    /// How many seconds each trouble lasts, and each calm between, if they come in turn
    #[arg(long, default_value_t = 20, value_parser = value_parser!(u64).range(1..=3600))]
    seconds: u64,
}

#[derive(Clone, Copy, ValueEnum)]
enum Choice {
    /// All is well
    None,
    /// Some queries on `orders` take half a second, and others wait for their connections
    Slow,
    /// Somebody keeps a connection of `reports`
    Leak,
    /// The server of `sessions` is down
    Dead,
    /// One after the other, with some calm between
    InTurn,
}

/// What goes wrong at the moment.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Trouble {
    Nothing,
    SlowQueries,
    Leak,
    DeadServer,
}

type Failure = Box<dyn Error + Send + Sync>;

/// Rows in the table.
const ROWS: i64 = 20_000;
/// Rows in a range sum.
const RANGE: i64 = 20;
/// A query that counts to two million, which takes a while.
const SLOW: &str =
    "WITH RECURSIVE c (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < 2000000)
                    SELECT count(*) FROM c";

fn fill(connection: &mut Connection) -> rusqlite::Result<()> {
    let transaction = connection.transaction()?;
    transaction.execute_batch(
        "CREATE TABLE items (
            id INTEGER PRIMARY KEY, value INTEGER NOT NULL, updates INTEGER NOT NULL
        )",
    )?;
    let mut insert = transaction.prepare("INSERT INTO items VALUES (?1, ?2, 0)")?;
    for id in 0..ROWS {
        insert.execute([id, id * 7_919 % 10_007])?;
    }
    drop(insert);
    transaction.commit()
}

/// The work of the quickstart: 90 % reads of one row, 8 % sums of a range, 2 % updates.
async fn work(pool: &Pool<SqliteManager>, id: i64, trouble: Trouble) -> Result<(), Failure> {
    let mut connection = pool.acquire().await?;
    match fastrand::u8(0..100) {
        0..8 if trouble == Trouble::SlowQueries => {
            connection.call(|db| db.query_row(SLOW, [], |row| row.get::<_, i64>(0))).await?;
        }
        0..90 => {
            let db = connection.in_place()?;
            let mut select = db.prepare_cached("SELECT value FROM items WHERE id = ?1")?;
            select.query_row([id], |row| row.get::<_, i64>(0))?;
        }
        90..98 => {
            let db = connection.in_place()?;
            let mut select =
                db.prepare_cached("SELECT sum(value) FROM items WHERE id >= ?1 AND id < ?2")?;
            select.query_row([id, id + RANGE], |row| row.get::<_, i64>(0))?;
        }
        _ => {
            let update = "UPDATE items SET updates = updates + 1 WHERE id = ?1";
            connection.call(move |db| db.prepare_cached(update)?.execute([id])).await?;
        }
    }
    // What is done with the answer, before the connection goes back.
    sleep(Duration::from_millis(fastrand::u64(1..4))).await;
    Ok(())
}

/// One client of a database, for good. It goes on when something fails: the page shows that.
async fn client(pool: Pool<SqliteManager>, trouble: watch::Receiver<Trouble>) {
    loop {
        let now = *trouble.borrow();
        if work(&pool, fastrand::i64(0..ROWS - RANGE), now).await.is_err() {
            sleep(Duration::from_millis(100)).await;
        }
        sleep(Duration::from_millis(fastrand::u64(2..20))).await;
    }
}

/// Keeps a connection while the trouble lasts.
async fn leaky(pool: Pool<SqliteManager>, mut trouble: watch::Receiver<Trouble>) {
    while trouble.wait_for(|now| *now == Trouble::Leak).await.is_ok() {
        let kept = pool.acquire().await;
        drop(trouble.wait_for(|now| *now != Trouble::Leak).await);
        drop(kept);
    }
}

/// Asks the server, and hears the same.
async fn ask(pool: &Pool<TcpManager<SocketAddr>>) -> Result<(), Failure> {
    let mut connection = pool.acquire().await?;
    connection.write_all(b"hello").await?;
    connection.read_exact(&mut [0; 5]).await?;
    sleep(Duration::from_millis(fastrand::u64(1..4))).await;
    Ok(())
}

async fn asker(pool: Pool<TcpManager<SocketAddr>>) {
    loop {
        if ask(&pool).await.is_err() {
            sleep(Duration::from_millis(100)).await;
        }
        sleep(Duration::from_millis(fastrand::u64(5..30))).await;
    }
}

/// A server that says what it hears, and is not there while the trouble lasts.
async fn echo(
    mut listener: TcpListener,
    mut trouble: watch::Receiver<Trouble>,
) -> std::io::Result<()> {
    let address = listener.local_addr()?;
    loop {
        // Dropped together with the listener, and all connections with it.
        let mut clients = JoinSet::new();
        loop {
            tokio::select! {
                over = trouble.wait_for(|now| *now == Trouble::DeadServer) => match over {
                    Ok(_) => break,
                    Err(_) => return Ok(()),
                },
                accepted = listener.accept() => clients.spawn(repeat(accepted?.0)),
            };
            while clients.try_join_next().is_some() {}
        }
        drop((listener, clients));
        if trouble.wait_for(|now| *now != Trouble::DeadServer).await.is_err() {
            return Ok(());
        }
        listener = TcpListener::bind(address).await?;
    }
}

async fn repeat(mut client: TcpStream) {
    let (mut from, mut to) = client.split();
    drop(tokio::io::copy(&mut from, &mut to).await);
}

/// Switches trouble on and off, and says so.
async fn troubles(choice: Choice, each: Duration, now: watch::Sender<Trouble>) {
    use Trouble::{DeadServer, Leak, Nothing, SlowQueries};
    let turn = match choice {
        Choice::None => vec![Nothing],
        Choice::Slow => vec![SlowQueries],
        Choice::Leak => vec![Leak],
        Choice::Dead => vec![DeadServer],
        Choice::InTurn => vec![Nothing, SlowQueries, Nothing, Leak, Nothing, DeadServer],
    };
    for trouble in turn.iter().copied().cycle() {
        let what = match trouble {
            Nothing => "all is well",
            SlowQueries => "slow queries keep the connections of orders",
            Leak => "somebody keeps a connection of reports",
            DeadServer => "the server of sessions is down",
        };
        println!("{what}");
        now.send_replace(trouble);
        if turn.len() == 1 {
            // For good, and the others hear of no other.
            now.closed().await;
        }
        sleep(each).await;
    }
}

async fn run(options: Options, folder: &Path) -> Result<(), Failure> {
    let database = folder.join("dashboard.db");
    let orders = Pool::builder(SqliteManager::new(&database))
        .name("orders")
        .max_size(8)
        .min_idle(4)
        .acquire_timeout(Duration::from_millis(400))
        .max_lifetime(Duration::from_secs(90))
        .idle_timeout(Duration::from_secs(30))
        .build()
        .await?;
    orders.acquire().await?.call(fill).await?;
    let reports = Pool::builder(SqliteManager::new(&database))
        .name("reports")
        .max_size(4)
        .idle_timeout(Duration::from_secs(15))
        .leak_after(Duration::from_secs(3))
        .build_lazy()?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let sessions = Pool::builder(TcpManager::new(listener.local_addr()?))
        .name("sessions")
        .max_size(12)
        .min_idle(2)
        .acquire_timeout(Duration::from_secs(1))
        .build_lazy()?;
    let monitor = Monitor::new();
    monitor.add(&orders)?;
    monitor.add(&reports)?;
    monitor.add(&sessions)?;

    // Two that hear of it: the page's events, which have to end first, and the server.
    let over = async { drop(tokio::signal::ctrl_c().await) }.boxed().shared();
    let page = StatusPage::new(&monitor).until(over.clone());
    let app = Router::new()
        .route("/", get(|| async { Redirect::to("/pools/") }))
        .nest_service("/pools", page.router());
    let at = SocketAddr::from((Ipv4Addr::LOCALHOST, options.port));
    let server = TcpListener::bind(at).await.map_err(|error| {
        format!("cannot listen at {at}: {error}; --port 0 takes one that is free")
    })?;
    println!("the page: http://{}/pools/ (Ctrl-C ends it)", server.local_addr()?);

    let (now, trouble) = watch::channel(Trouble::Nothing);
    let mut tasks = JoinSet::new();
    for _ in 0..16 {
        tasks.spawn(client(orders.clone(), trouble.clone()));
        tasks.spawn(asker(sessions.clone()));
    }
    for _ in 0..3 {
        tasks.spawn(client(reports.clone(), watch::channel(Trouble::Nothing).1));
    }
    tasks.spawn(leaky(reports.clone(), trouble.clone()));
    tasks.spawn(echo(listener, trouble).map(|ended| {
        if let Err(error) = ended {
            eprintln!("the echo server has ended: {error}");
        }
    }));
    tasks.spawn(troubles(options.trouble, Duration::from_secs(options.seconds), now));

    axum::serve(server, app).with_graceful_shutdown(over).await?;
    tasks.shutdown().await;
    let second = Duration::from_secs(1);
    for report in [orders.drain(second).await, reports.drain(second).await] {
        println!("drained: {report}");
    }
    println!("drained: {}", sessions.drain(second).await);
    Ok(())
}

fn main() -> ExitCode {
    let options = Options::parse();
    let outcome = || {
        let folder = tempfile::tempdir()?;
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        runtime.block_on(run(options, folder.path()))
    };
    match outcome() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", with_causes(&*error));
            ExitCode::FAILURE
        }
    }
}
