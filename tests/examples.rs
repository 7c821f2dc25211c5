//! The examples of backends, each against a server of its own: that they do what they say, and what
//! they say when there is no server. And those of README.md that rustdoc cannot compile by themselves.

#![cfg(all(
    unix,
    feature = "axum",
    feature = "bb8",
    feature = "cluster",
    feature = "deadpool",
    feature = "metrics",
    feature = "mysql",
    feature = "opentelemetry",
    feature = "pg-wired",
    feature = "postgres",
    feature = "r2d2",
    feature = "redis",
    feature = "sqlite",
    feature = "sqlx",
))]

mod support;
use support::*;

use std::env;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{self, Receiver};

/// Runs an example as a user would; `scripts/test` has built it before.
fn cargo_run(name: &str, arguments: &[&str]) -> Command {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["run", "--quiet", "--locked", "--all-features", "--example", name, "--"]);
    // What tests are told of their package would have libraries built again that ask for it.
    for (name, _) in env::vars() {
        if name.starts_with("CARGO_MANIFEST_") || name.starts_with("CARGO_PKG_") {
            cargo.env_remove(name);
        }
    }
    cargo.current_dir(env!("CARGO_MANIFEST_DIR")).args(arguments);
    cargo
}

fn example(name: &str, arguments: &[&str]) -> Output {
    cargo_run(name, arguments).output().expect("cargo runs")
}

/// It succeeds, and says `expected`.
#[track_caller]
fn succeeds(name: &str, arguments: &[&str], expected: &str) {
    let Output { status, stdout, stderr } = example(name, arguments);
    let (said, told) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    assert!(status.success(), "{name}: {status}\n{said}\n{told}");
    assert!(said.contains(expected), "{name}: {said}");
}

/// It fails, and says what to do.
#[track_caller]
fn fails(name: &str, arguments: &[&str], expected: &str) {
    let Output { status, stdout, stderr } = example(name, arguments);
    let (said, told) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    assert!(!status.success(), "{name}: {said}");
    assert!(told.contains(expected), "{name}: {told}");
}

#[test]
fn the_example_of_postgres_loses_no_money() {
    fails("postgres", &[], "<URL>");
    fails(
        "postgres",
        &["postgresql://nobody@127.0.0.1:1/nowhere"],
        "Is a PostgreSQL server running",
    );
    let Some(server) = Postgres::start(&[]) else { return };
    succeeds("postgres", &[&server.url()], "1000 in all the accounts together");
}

#[test]
fn the_example_of_redis_sells_no_more_than_there_is() {
    fails("redis", &[], "<URL>");
    fails("redis", &["redis://127.0.0.1:1"], "Is a Redis server running");
    let Some(server) = Redis::start(&[]) else { return };
    succeeds("redis", &[&server.url()], "500 sold, 0 left");
}

#[test]
fn the_example_of_mysql_loses_no_coin() {
    fails("mysql", &[], "<URL>");
    let nowhere = "mysql://nobody@127.0.0.1:1/nowhere?prefer_socket=false";
    fails("mysql", &[nowhere], "Does a MySQL or MariaDB server answer");
    let Some(server) = Mariadb::start(&[]) else { return };
    succeeds("mysql", &[&server.url()], " given up, 1000 coins");
}

#[test]
fn the_example_of_sqlite_writes_and_reads_and_gives_up() {
    fails("sqlite", &[], "<FILE>");
    fails("sqlite", &["/nowhere/at/all.db"], "Give the path of an SQLite file");
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("example.db");
    let file = file.to_str().expect("a path in letters");
    succeeds("sqlite", &[file], "an endless query was given up after 50 ms");
}

#[test]
fn the_example_of_sqlx_rolls_back_what_was_given_up() {
    fails("sqlx", &[], "<URL>");
    fails("sqlx", &["postgres://nobody@127.0.0.1:1/nowhere"], "Connection refused");
    let Some(server) = Postgres::start(&[]) else { return };
    succeeds("sqlx", &[&server.url()], "rolled back: true");
}

#[test]
fn the_example_of_pg_wired_gets_three_answers_at_once() {
    fails("pg_wired", &[], "<URL>");
    fails("pg_wired", &["postgresql://nobody@127.0.0.1:1/nowhere"], "Connection refused");
    let Some(server) = Postgres::start(&[]) else { return };
    succeeds("pg_wired", &[&server.url()], "three answers in");
}

#[test]
fn existing_managers_run_unchanged() {
    fails("existing_managers", &[], "<URL>");
    let Some(server) = Postgres::start(&[]) else { return };
    succeeds("existing_managers", &[&server.url()], "r2d2_sqlite: SQLite 3");
}

/// The example `dashboard`, which goes on until it is told to end, and ends with the test.
struct Dashboard {
    child: Child,
    address: String,
}

impl Dashboard {
    fn start(trouble: &str) -> Self {
        // Cargo becomes the example.
        let mut cargo = cargo_run("dashboard", &["--port", "0", "--trouble", trouble]);
        cargo.stdout(Stdio::piped());
        let mut dashboard =
            Self { child: cargo.spawn().expect("cargo runs"), address: String::new() };
        let mut first = String::new();
        let stdout = dashboard.child.stdout.as_mut().expect("it is piped");
        // One byte after the other, so that nothing is lost of what comes later.
        BufReader::with_capacity(1, stdout).read_line(&mut first).expect("it says where it is");
        let (_, rest) = first.split_once("http://").expect("an address");
        dashboard.address = rest.split('/').next().expect("a part").to_owned();
        dashboard
    }

    /// What it answers on this path, headers included.
    fn ask(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(&self.address).expect("it listens");
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).expect("it takes a request");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("it answers");
        answer
    }

    /// Presses Ctrl-C; what it says then.
    fn stop(mut self) -> String {
        let pid = self.child.id().to_string();
        let kill = Command::new("kill").args(["-INT", &pid]).status().expect("kill runs");
        assert!(kill.success());
        let mut status = None;
        eventually_blocking("the example has ended", || {
            status = self.child.try_wait().expect("its state");
            status.is_some()
        });
        assert!(status.is_some_and(|status| status.success()), "{status:?}");
        let mut said = String::new();
        let mut stdout = self.child.stdout.take().expect("it is piped");
        stdout.read_to_string(&mut said).expect("what it has said");
        said
    }
}

impl Drop for Dashboard {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[test]
fn the_example_with_the_page_shows_trouble_and_ends_when_told_to() {
    for (trouble, sign) in [
        ("slow", "orders: degraded: all 8 connections are in use"),
        ("leak", "reports: degraded: held for too long"),
        ("dead", "sessions: down: connecting to 127.0.0.1:"),
    ] {
        let dashboard = Dashboard::start(trouble);
        assert!(dashboard.ask("/pools/").contains("<title>Pools</title>"));
        eventually_blocking("it is seen", || dashboard.ask("/pools/health").contains(sign));
        // Somebody who looks does not keep it.
        let mut viewer = TcpStream::connect(&dashboard.address).expect("it listens");
        let request = b"GET /pools/events HTTP/1.1\r\nHost: x\r\n\r\n";
        viewer.write_all(request).expect("it takes a request");
        viewer.read_exact(&mut [0; 100]).expect("events come");
        let said = dashboard.stop();
        assert_eq!(said.matches("drained: ").count(), 3, "{said}");
        assert_eq!(said.matches(", 0 still out").count(), 3, "{said}");
    }
}

/// The example `failover`, which goes on until it is told to end, and ends with the test.
struct Failover {
    child: Child,
    lines: Receiver<String>,
    said: Vec<String>,
}

impl Failover {
    fn start(url: &str) -> Self {
        let mut cargo = cargo_run("failover", &[url]);
        cargo.stdout(Stdio::piped());
        let mut child = cargo.spawn().expect("cargo runs");
        let stdout = child.stdout.take().expect("it is piped");
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            // Until nobody listens any more.
            BufReader::new(stdout)
                .lines()
                .map_while(Result::ok)
                .all(|line| sender.send(line).is_ok())
        });
        Self { child, lines, said: Vec::new() }
    }

    /// Waits until it says a line that ends like this; the line, without the time before it.
    #[track_caller]
    fn says(&mut self, end: &str) -> String {
        loop {
            let line = self.lines.recv_timeout(6 * PATIENCE);
            let line = line.unwrap_or_else(|_| panic!("not said: {end}\n{:#?}", self.said));
            self.said.push(line.clone());
            if line.ends_with(end) {
                return line.split_once(" s  ").map_or(line.clone(), |(_, rest)| rest.to_owned());
            }
        }
    }
}

impl Drop for Failover {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[test]
fn the_example_of_a_failover_shows_who_serves_and_how_long_writes_paused() {
    fails("failover", &[], "<URL>");
    fails(
        "failover",
        &["postgresql://nobody@127.0.0.1:1/nowhere"],
        "This needs two PostgreSQL servers",
    );
    let nobody = "postgresql://nobody@127.0.0.1:1,127.0.0.1:2/nowhere";
    fails("failover", &[nobody], "127.0.0.1:2 (role unknown) is down: connecting fails");
    let Some(primary) = Postgres::start(&[]) else { return };
    primary.run("GRANT CREATE ON SCHEMA public TO millpond");
    let replica = primary.replica(&[]);
    let (old, new) = (primary.address(), replica.address());
    let url = format!("postgresql://millpond@{old},{new}/millpond");
    let mut example = Failover::start(&url);
    example.says(&format!("{old} is the primary"));
    example.says(&format!("{new} is a replica"));
    example.says(&format!("writes: {old}"));
    example.says(&format!("reads: {new}"));
    primary.kill();
    assert!(example.says(")").starts_with("writes: nobody ("));
    replica.promote();
    let line = example.says(" ms");
    let pause = line.strip_prefix(&format!("writes: {new}, after a pause of "));
    let pause = pause.and_then(|pause| pause.strip_suffix(" ms")?.parse::<u64>().ok());
    assert!(pause.is_some_and(|pause| (200..20_000).contains(&pause)), "{line}");
    // The old one comes back as a second primary.
    primary.restart();
    example.says(": both say that they are the primary, and their data part ways");
    primary.kill();
    example.says(&format!("writes: {new}"));
    let pid = example.child.id().to_string();
    assert!(Command::new("kill").args(["-INT", &pid]).status().expect("kill runs").success());
    let line = example.says(" ms");
    let (count, longest) = line.split_once(" writes, ").expect("a summary");
    assert!(count.parse::<u64>().is_ok_and(|count| count > 10), "{line}");
    let longest = longest.strip_suffix(" ms").and_then(|text| text.rsplit(' ').next());
    assert!(longest.and_then(|longest| longest.parse::<u64>().ok()) >= pause, "{line}");
    assert!(example.says(" ms").contains(" reads, "));
    let status = example.child.wait().expect("its state");
    assert!(status.success(), "{status}");
    let tables = "SELECT count(*) FROM pg_tables WHERE tablename = 'millpond_failover'";
    assert_eq!(replica.run(tables), "0");
    let said = example.said.join("\n");
    assert!(example.said.len() < 20, "it says more than anybody reads:\n{said}");
}

/// What README.md shows, line by line, with what it leaves to the reader.
#[rustfmt::skip]
#[expect(
    dead_code, unused_variables, clippy::let_and_return, clippy::print_stdout,
    reason = "they need servers: it is enough that they compile"
)]
mod readme {
    use millpond::backends::postgres::PostgresNodes;
    use millpond::cluster::{Cluster, NodeOptions, Policy, Role};
    use millpond::{Manager, Monitor, export};
    use prometheus_client::registry::Registry;
    use std::error::Error;
    use std::time::Duration;

    type Outcome = Result<(), Box<dyn Error>>;

    mod a_program {
        use millpond::{Pool, backends::postgres::PostgresManager, with_causes};

        #[tokio::main]
        async fn main() -> Result<(), Box<dyn std::error::Error>> {
            let manager = PostgresManager::from_url("postgresql://app:password@localhost/app")?;
            let builder = Pool::builder(manager).max_size(16).min_idle(1);
            let pool = builder.build().await.map_err(|error| with_causes(&error))?; // says why in words
            let client = pool.acquire().await?; // back in the pool when it is dropped
            let row = client.query_one("SELECT 1 + 1", &[]).await?;
            println!("{}", row.get::<_, i32>(0));
            Ok(())
        }
    }

    use axum::{Router, extract::State, http::StatusCode, routing::get};
    use millpond::{Pool, backends::postgres::PostgresManager, with_causes};

    type Db = Pool<PostgresManager>;

    async fn orders(State(db): State<Db>) -> Result<String, StatusCode> {
        let client = db.acquire().await.map_err(|error| {
            // Nobody could be served in time, or connecting fails for good; its causes say why.
            eprintln!("{}", with_causes(&error));
            StatusCode::SERVICE_UNAVAILABLE
        })?;
        let row = client.query_one("SELECT count(*) FROM orders", &[]).await;
        let count: i64 = row.map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)?.get(0);
        Ok(count.to_string())
    }

    fn service(db: Db) -> Router {
        Router::new().route("/orders", get(orders)).with_state(db)
    }

    mod an_end {
        use super::{Db, service};

        use millpond::{Monitor, web::StatusPage};
        use std::{io, pin::pin, time::Duration};
        use tokio::{net::TcpListener, signal, sync::watch};

        async fn run(db: Db, jobs: Db, monitor: Monitor) -> io::Result<()> {
            let (stop, stopped) = watch::channel(());
            let over = || {
                let mut stopped = stopped.clone();
                async move { _ = stopped.changed().await }
            };
            tokio::spawn(async move {
                _ = signal::ctrl_c().await; // and SIGTERM, by signal::unix
                drop(stop);
            });
            let page = StatusPage::new(&monitor).until(over()).router(); // ends at the signal, or an open one holds up `serve`
            let job = tokio::spawn(tidy_up(jobs.clone(), over())); // so does this, between two pieces of its work
            let app = service(db.clone()).nest_service("/pools", page);
            let listener = TcpListener::bind("0.0.0.0:8080").await?;
            let served = axum::serve(listener, app).with_graceful_shutdown(over()).await; // requests under way are answered
            _ = job.await;
            for pool in [jobs, db] {
                let report = pool.drain(Duration::from_secs(10)).await;
                if !report.still_out.is_empty() {
                    eprintln!("{}: {report}", pool.config().name); // who still holds a connection, with file and line
                }
            }
            served
        }

        async fn tidy_up(jobs: Db, over: impl Future<Output = ()>) {
            let mut over = pin!(over);
            let mut minute = tokio::time::interval(Duration::from_secs(60));
            loop {
                tokio::select! {
                    () = &mut over => return,
                    _ = minute.tick() => {}
                }
                if let Ok(client) = jobs.acquire().await {
                    _ = client.execute("DELETE FROM orders WHERE paid < now() - interval '1 year'", &[]).await;
                }
            }
        }
    }

    /// The table of the backends: how each is used, and how its connections are passed on.
    mod databases {
        use super::Outcome;
        use millpond::backends::mysql::MysqlManager;
        use millpond::backends::pg_wired::PgWiredManager;
        use millpond::backends::postgres::PostgresManager;
        use millpond::backends::redis::RedisManager;
        use millpond::backends::sqlite::{SqliteDatabase, SqliteManager};
        use millpond::backends::sqlx::SqlxManager;
        use millpond::backends::tcp::TcpManager;
        use millpond::backends::unix::UnixManager;
        use millpond::{Manager, Pool, Pooled, compat};
        use mysql_async::prelude::Queryable;
        use redis::AsyncCommands;
        use redis::aio::ConnectionLike;
        use sqlx::{Executor, Postgres};
        use tokio::io::{AsyncRead, AsyncWriteExt};
        use tokio_postgres::{Client, GenericClient};

        fn pool<M: Manager>(manager: M) -> Result<Pool<M>, Box<dyn std::error::Error>> {
            Ok(Pool::builder(manager).build_lazy()?)
        }

        async fn postgres() -> Outcome {
            let pool = pool(PostgresManager::from_url("postgresql://…")?)?;
            let mut guard = pool.acquire().await?;
            guard.query_one("SELECT 1", &[]).await?;
            guard.prepare_cached("SELECT 1").await?;
            let named = |_: &mut Client| ();
            named(&mut guard);
            fn any(_: &mut impl GenericClient) {}
            any(&mut **guard);
            Ok(())
        }

        async fn sqlx() -> Outcome {
            let pool = pool(SqlxManager::<Postgres>::from_url("postgres://…")?)?;
            let mut guard = pool.acquire().await?;
            sqlx::query("SELECT 1").fetch_one(&mut *guard).await?;
            let named = |_: &mut sqlx::PgConnection| ();
            named(&mut guard);
            fn any<'c>(_: impl Executor<'c>) {}
            any(&mut *guard);
            Ok(())
        }

        async fn pg_wired() -> Outcome {
            let pool = pool(PgWiredManager::from_url("postgres://…")?)?;
            let guard = pool.acquire().await?;
            guard.exec_query("SELECT 1", &[], &[]).await?;
            let named = |_: &pg_wired::AsyncConn| ();
            named(&guard);
            Ok(())
        }

        async fn mysql() -> Outcome {
            let pool = pool(MysqlManager::from_url("mysql://…")?)?;
            let mut guard = pool.acquire().await?;
            guard.query_drop("SELECT 1").await?;
            let named = |_: &mut mysql_async::Conn| ();
            named(&mut guard);
            fn any(_: &mut impl Queryable) {}
            any(&mut **guard);
            Ok(())
        }

        async fn redis() -> Outcome {
            let pool = pool(RedisManager::new("redis://…")?)?;
            let mut guard = pool.acquire().await?;
            let number: i64 = guard.incr("key", 1).await?;
            fn any(_: &mut impl ConnectionLike) {}
            any(&mut *guard);
            Ok(())
        }

        async fn sqlite() -> Outcome {
            let pool = pool(SqliteManager::new("shop.db"))?;
            let mut guard = pool.acquire().await?;
            guard.call(|db| db.execute("VACUUM", [])).await?;
            guard.in_place()?.execute("VACUUM", [])?;
            let named = |_: &rusqlite::Connection| ();
            named(guard.in_place()?);
            let manager = SqliteManager::new("shop.db");
            let database = SqliteDatabase::open(manager, 4).await?;
            drop(database.writer().acquire().await?);
            Ok(())
        }

        async fn sockets() -> Outcome {
            let (tcp, unix) = (pool(TcpManager::new("cache:6379"))?, pool(UnixManager::new("cache.sock"))?);
            let (mut guard, _) = (tcp.acquire().await?, unix.acquire().await?);
            guard.write_all(b"PING\r\n").await?;
            let named = |_: &mut tokio::net::TcpStream| ();
            named(&mut guard);
            fn any(_: &mut impl AsyncRead) {}
            any(&mut *guard);
            Ok(())
        }

        async fn adapters(
            mut guard: Pooled<'_, compat::deadpool::Adapter<deadpool_postgres::Manager>>,
        ) -> Outcome {
            let named = |_: &mut Client| ();
            named(&mut guard);
            fn any(_: &mut impl GenericClient) {}
            any(&mut ***guard);
            Ok(())
        }
    }

    async fn several_servers<M: Manager>(manager_of: fn(&str) -> M, session: &str) -> Outcome {
        let cluster = Cluster::builder().name("orders").pools(|pool| pool.max_size(16)).build()?;
        cluster.add_node_with("db1", manager_of("db1"), NodeOptions::default().role(Role::Primary))?;
        cluster.add_node_with("db2", manager_of("db2"), NodeOptions::default().role(Role::Replica).weight(2))?;

        let read = cluster.acquire_any(Policy::ReplicasThenPrimary).await?; // or RoundRobin, LeastInUse, Nearest
        let write = cluster.acquire_any(Policy::Primary).await?;
        let mine = cluster.acquire_for(session.as_bytes()).await?; // the same node as long as it is up, by a hash
        let one = cluster.acquire("db2").await?;
        let soon = cluster.acquire_any_timeout(Policy::Primary, Duration::from_millis(50)).await?; // so with each of them
        Ok(())
    }

    async fn several_hosts() -> Outcome {
        let nodes = PostgresNodes::from_url("postgresql://app@db1,db2,db3/orders?target_session_attrs=read-write")?;
        let cluster = nodes.cluster(Cluster::builder().name("orders"), PostgresManager::new)?;
        let write = cluster.acquire_any(nodes.policy()).await?;
        Ok(())
    }

    fn exporters<M: Manager>(pool: Pool<M>, registry: &mut Registry) -> Outcome {
        let monitor = Monitor::new();
        monitor.add(&pool)?; // each pool under its own name: Pool::builder(…).name("orders")

        // Prometheus: in a registry of prometheus-client, or as text.
        registry.register_collector(Box::new(export::prometheus::Collector::new(monitor.clone())));
        let answer = export::prometheus::text(&monitor);
        // The metrics facade: whichever recorder is installed, every ten seconds.
        let exporter = export::metrics::Exporter::start(monitor.clone(), Duration::from_secs(10))?;
        // OpenTelemetry: whichever SDK is set up; times are recorded every ten seconds. Both stop when they are dropped.
        let meter = opentelemetry::global::meter("orders");
        let exporter = export::opentelemetry::Exporter::start(monitor, &meter, Duration::from_secs(10))?;
        Ok(())
    }

    fn a_live_page(monitor: Monitor) -> Router {
        let app = Router::new().nest_service("/pools", millpond::web::router(&monitor));
        app
    }
}

#[test]
fn the_examples_of_the_readme_that_are_not_compiled_there_are_compiled_here() {
    let lines =
        |text: &str| text.lines().map(|line| line.trim().to_owned() + "\n").collect::<String>();
    let here = lines(include_str!("examples.rs"));
    let blocks = include_str!("../README.md").split("\n```rust,ignore\n").skip(1);
    let blocks: Vec<_> = blocks.map(|rest| rest.split_once("\n```").expect("an end").0).collect();
    assert!(!blocks.is_empty(), "it is to be looked for by another mark");
    for block in blocks {
        assert!(here.contains(&lines(block)), "not found here:\n{block}");
    }
}

#[test]
fn what_the_readme_says_of_how_each_backend_is_used_is_compiled_here() {
    let (here, readme) = (include_str!("examples.rs"), include_str!("../README.md"));
    let rest = readme.split_once("| feature | manager |").expect("the table").1;
    let rows = rest.lines().skip(2).take_while(|line| line.starts_with('|'));
    let mut looked = 0;
    for row in rows {
        // A bar that is no end of a cell has a stroke before it.
        let row = row.replace("\\|", "\u{1}");
        let cells: Vec<_> = row.split('|').map(|cell| cell.replace('\u{1}', "|")).collect();
        for cell in [&cells[2], &cells[4]] {
            for code in cell.split('`').skip(1).step_by(2) {
                assert!(here.contains(code), "not found here: {code}");
                looked += 1;
            }
        }
    }
    assert_eq!(looked, 17, "as many cells as there are, and no fewer");
}
