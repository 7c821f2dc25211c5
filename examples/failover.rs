//! A cluster of PostgreSQL servers while its primary fails: one task writes, one reads, and whoever
//! serves them is shown whenever that changes.
//!
//! ```sh
//! cargo run --example failover --features cluster,postgres -- \
//!     postgresql://app:password@db1:5432,db2:5432/app
//! ```
//!
//! Then stop the primary, and run `SELECT pg_promote()` on a replica.

#![expect(clippy::print_stdout, reason = "the output is what the example is for")]

use clap::Parser;
use millpond::backends::postgres::{PostgresManager, PostgresNodes};
use millpond::cluster::{Cluster, Policy, Role};
use millpond::with_causes;
use std::collections::BTreeMap;
use std::error::Error;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::time::{interval, sleep, timeout};

type Failure = Box<dyn Error + Send + Sync>;
type Servers = Cluster<String, PostgresManager>;

/// Writes to and reads from a cluster of PostgreSQL servers, and shows who serves.
#[derive(Parser)]
struct Options {
    /// The servers, such as postgresql://user:password@db1:5432,db2:5432/database: a primary and at
    /// least one replica. The user must be allowed to create a table there, `millpond_failover`, which
    /// is dropped in the end
    url: String,
}

/// Two servers, in words.
const NEEDED: &str = "\
    This needs two PostgreSQL servers that run, a primary and a replica of it, both in the URL.\n\
    `pg_basebackup --write-recovery-conf` makes a replica of a primary.";

/// How long a query may take before it is given up, as one does that a dead server is to answer.
const PATIENCE: Duration = Duration::from_secs(1);

/// Who serves one of the two tasks.
struct Service {
    what: &'static str,
    /// The nodes that have served not long ago, and when.
    served: BTreeMap<String, Instant>,
    last: Instant,
    /// The longest time without an answer since it was last told.
    pause: Duration,
    longest_pause: Duration,
    trouble: Option<String>,
    done: u64,
    failed: u64,
    told: String,
}

impl Service {
    fn new(what: &'static str) -> Arc<Mutex<Self>> {
        Arc::new(Mutex::new(Self {
            what,
            served: BTreeMap::new(),
            last: Instant::now(),
            pause: Duration::ZERO,
            longest_pause: Duration::ZERO,
            trouble: None,
            done: 0,
            failed: 0,
            told: String::new(),
        }))
    }

    fn succeeded(&mut self, node: &str) {
        let now = Instant::now();
        self.pause = self.pause.max(now - self.last);
        self.longest_pause = self.longest_pause.max(self.pause);
        self.last = now;
        self.done += 1;
        self.trouble = None;
        self.served.insert(node.to_owned(), now);
    }

    fn failed(&mut self, node: &str, error: String) {
        self.failed += 1;
        self.served.remove(node);
        self.trouble = Some(error);
    }

    /// Says who serves, if that has changed.
    fn tell(&mut self, began: Instant) {
        if self.last.elapsed() > Duration::from_millis(200) {
            self.served.clear();
        }
        self.served.retain(|_, last| last.elapsed() < Duration::from_secs(1));
        let nodes: Vec<&str> = self.served.keys().map(String::as_str).collect();
        let mut text = if nodes.is_empty() { "nobody".to_owned() } else { nodes.join(" and ") };
        if self.what == "writes" && nodes.len() > 1 {
            text.push_str(": both say that they are the primary, and their data part ways");
        }
        // That nobody serves is told once it is known why.
        if text == self.told || nodes.is_empty() && self.trouble.is_none() {
            return;
        }
        let more = match &self.trouble {
            Some(trouble) if nodes.is_empty() => format!(" ({trouble})"),
            None if self.told == "nobody" => {
                format!(", after a pause of {} ms", self.pause.as_millis())
            }
            _ => String::new(),
        };
        println!("{:6.1} s  {}: {text}{more}", began.elapsed().as_secs_f64(), self.what);
        self.told = text;
        self.pause = Duration::ZERO;
    }
}

fn locked(service: &Mutex<Service>) -> std::sync::MutexGuard<'_, Service> {
    service.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Asks the same over and over, of whichever node the policy chooses.
async fn work(
    cluster: Servers,
    policy: Policy<'static, String>,
    sql: &'static str,
    service: Arc<Mutex<Service>>,
) {
    loop {
        match cluster.acquire_any(policy).await {
            Ok(client) => {
                let answer = timeout(PATIENCE, client.execute(sql, &[])).await;
                let mut service = locked(&service);
                match answer {
                    Ok(Ok(_)) => service.succeeded(client.node()),
                    Ok(Err(error)) => service.failed(client.node(), error.to_string()),
                    // The query is cancelled when the connection goes back.
                    Err(_) => service.failed(client.node(), format!("no answer in {PATIENCE:?}")),
                }
            }
            // What is known of each node.
            Err(error) => locked(&service).failed("", error.to_string()),
        }
        sleep(Duration::from_millis(5)).await;
    }
}

async fn run(url: &str) -> Result<(), Failure> {
    let nodes = PostgresNodes::from_url(url)?;
    if nodes.keys().count() < 2 {
        return Err("there is one server only in the URL".into());
    }
    let builder = Cluster::builder().name("failover").slow_start(Duration::from_secs(1));
    let cluster = nodes.cluster(builder.pools(|pool| pool.max_size(4)), PostgresManager::new)?;
    let table = "CREATE TABLE IF NOT EXISTS millpond_failover (writes bigint);
                 TRUNCATE millpond_failover; INSERT INTO millpond_failover VALUES (0)";
    cluster.acquire_any(Policy::Primary).await?.batch_execute(table).await?;
    // Who reads must find the role of each, and those that are down are no news.
    for key in nodes.keys() {
        drop(cluster.acquire(key).await);
    }
    let began = Instant::now();
    for node in cluster.status().nodes {
        let role = match (node.is_up, node.role) {
            (false, _) => "down",
            (_, Role::Primary) => "the primary",
            (_, Role::Replica) => "a replica",
            _ => "unknown",
        };
        println!("{} is {role}", node.key);
    }
    println!("Stop the primary, and promote a replica with SELECT pg_promote(). Ctrl-C ends this.");

    let (writes, reads) = (Service::new("writes"), Service::new("reads"));
    let write = "UPDATE millpond_failover SET writes = writes + 1";
    let tasks = [
        tokio::spawn(work(cluster.clone(), Policy::Primary, write, writes.clone())),
        tokio::spawn(work(cluster.clone(), Policy::ReplicasThenPrimary, "SELECT", reads.clone())),
    ];
    let watch = async {
        let mut ticks = interval(Duration::from_millis(50));
        // The first one is at once, when nobody has served yet.
        ticks.tick().await;
        loop {
            ticks.tick().await;
            locked(&writes).tell(began);
            locked(&reads).tell(began);
        }
    };
    tokio::select! {
        () = watch => {}
        ended = tokio::signal::ctrl_c() => ended?,
    }
    for task in tasks {
        task.abort();
    }
    for service in [&writes, &reads] {
        let Service { what, done, failed, longest_pause, .. } = &*locked(service);
        let pause = longest_pause.as_millis();
        println!("{done} {what}, {failed} failed, the longest pause was {pause} ms");
    }
    // What was idle may have died with its server a moment ago, and nobody has used it since. There are four
    // connections to each.
    let mut closed = 0;
    loop {
        let client = cluster.acquire_any(Policy::Primary).await?;
        match client.batch_execute("DROP TABLE millpond_failover").await {
            Err(error) if error.is_closed() && closed < 4 => closed += 1,
            dropped => break dropped?,
        }
    }
    cluster.close().await;
    Ok(())
}

#[tokio::main]
async fn main() -> ExitCode {
    let Options { url } = Options::parse();
    let Err(error) = run(&url).await else { return ExitCode::SUCCESS };
    eprintln!("error: {}\n{NEEDED}", with_causes(&*error));
    ExitCode::FAILURE
}
