//! Clusters of PostgreSQL servers: a primary and replicas that are killed, promoted and started again
//! while they are in use.

#![cfg(all(unix, feature = "cluster", feature = "postgres"))]
#![allow(clippy::unwrap_used, reason = "these are tests, though clippy only sees their helpers")]
#![expect(clippy::print_stdout, reason = "how long writes paused is worth knowing")]

mod support;
use support::*;

use millpond::backends::postgres::{self, Client, Error, PoolMode, PostgresManager, PostgresNodes};
use millpond::cluster::{Cluster, ClusterBuilder, NodeOptions, NodeSpec, Policy, Role};
use millpond::{Manager as _, OperationError};
use std::collections::HashMap;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;
use tokio::time::{error::Elapsed, timeout};
use tokio_postgres::error::SqlState;

const MILLISECOND: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

/// The connections that a node may have.
const SIZE: usize = 4;

type Servers = Cluster<String, PostgresManager>;

fn builder() -> ClusterBuilder<String, PostgresManager> {
    Cluster::builder()
        .name("test")
        .pools(|pool| pool.max_size(SIZE))
        .acquire_timeout(PATIENCE)
        .slow_start(100 * MILLISECOND)
}

fn key(server: &Postgres) -> String {
    server.address().to_string()
}

fn url(servers: &[&Postgres], attributes: &str) -> String {
    let hosts: Vec<String> = servers.iter().map(|server| key(server)).collect();
    let hosts = hosts.join(",");
    format!("postgresql://millpond@{hosts}/millpond?target_session_attrs={attributes}")
}

fn nodes(servers: &[&Postgres]) -> PostgresNodes {
    PostgresNodes::from_url(&url(servers, "any")).unwrap()
}

fn cluster(servers: &[&Postgres]) -> Servers {
    nodes(servers).cluster(builder(), PostgresManager::new).unwrap()
}

/// Opens all connections that a node may have.
async fn warm(cluster: &Servers, key: &str) {
    let mut held = Vec::new();
    for _ in 0..SIZE {
        held.push(cluster.acquire(key).await.unwrap());
    }
}

/// The server that answers, whatever the pool takes it for.
async fn who_answers(client: &Client) -> Result<String, tokio_postgres::Error> {
    let sql = "SELECT host(inet_server_addr()) || ':' || inet_server_port()";
    Ok(client.query_one(sql, &[]).await?.get(0))
}

#[track_caller]
fn assert_near(what: &str, count: usize, expected: usize) {
    let (count, expected) = (count as f64, expected as f64);
    assert!((count - expected).abs() <= expected * 0.05, "{what}: {count} instead of {expected}");
}

fn role(cluster: &Servers, key: &str) -> Role {
    let status = cluster.status();
    status.nodes.iter().find(|node| node.key == key).unwrap().role
}

fn is_up(cluster: &Servers, key: &str) -> bool {
    let status = cluster.status();
    status.nodes.iter().find(|node| node.key == key).unwrap().is_up
}

/// One turn of a worker.
struct Turn {
    node: String,
    ended: Instant,
    /// What went wrong, unless the worker lost patience.
    outcome: Result<Result<(), tokio_postgres::Error>, Elapsed>,
}

impl Turn {
    fn is_served(&self) -> bool {
        matches!(self.outcome, Ok(Ok(())))
    }

    fn error(&self) -> Option<&tokio_postgres::Error> {
        self.outcome.as_ref().ok()?.as_ref().err()
    }
}

/// Workers that acquire and ask, over and over.
struct Load {
    stop: Arc<AtomicBool>,
    turns: Arc<Mutex<Vec<Turn>>>,
    workers: JoinSet<()>,
}

impl Load {
    /// So many of them, with this policy. An acquire that fails is a failure of the test.
    fn start(
        cluster: &Servers,
        workers: usize,
        policy: Policy<'static, String>,
        sql: &str,
    ) -> Self {
        Self::impatient(cluster, workers, policy, sql, PATIENCE)
    }

    /// The same, where a worker gives up a query after some time.
    fn impatient(
        cluster: &Servers,
        workers: usize,
        policy: Policy<'static, String>,
        sql: &str,
        patience: Duration,
    ) -> Self {
        let mut load =
            Self { stop: Arc::default(), turns: Arc::default(), workers: JoinSet::new() };
        for _ in 0..workers {
            let (stop, turns) = (load.stop.clone(), load.turns.clone());
            let (cluster, sql) = (cluster.clone(), sql.to_owned());
            load.workers.spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let guard = cluster.acquire_any(policy).await;
                    let guard = guard.unwrap_or_else(|error| panic!("an acquire fails: {error}"));
                    let node = guard.node().clone();
                    // A parameter that tells the server who is meant.
                    let outcome = timeout(patience, guard.execute(&sql, &[&node])).await;
                    let outcome = outcome.map(|executed| executed.map(drop));
                    turns.lock().unwrap().push(Turn { node, ended: Instant::now(), outcome });
                }
            });
        }
        load
    }

    /// How many turns have ended well at this node.
    fn served(&self, key: &str) -> usize {
        let turns = self.turns.lock().unwrap();
        turns.iter().filter(|turn| turn.node == key && turn.is_served()).count()
    }

    /// Waits until a node has served so many times more.
    async fn goes_on(&self, key: &str, more: usize) {
        let before = self.served(key);
        eventually(&format!("{key} serves"), || self.served(key) >= before + more).await;
    }

    async fn stop(mut self) -> Vec<Turn> {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(worker) = self.workers.join_next().await {
            worker.unwrap();
        }
        std::mem::take(&mut *self.turns.lock().unwrap())
    }
}

const READ: &str = "SELECT $1::text";
const WRITE: &str = "INSERT INTO written VALUES ($1)";
const TABLE: &str = "CREATE TABLE written (node text); GRANT ALL ON written TO millpond";

/// Asserts that nothing has failed but what a connection was used for that died with this node: no
/// more than it had connections, and each of them once.
#[track_caller]
fn only_the_dead_fail(turns: &[Turn], killed: &str) -> usize {
    let failed: Vec<_> = turns.iter().filter_map(|turn| Some((turn, turn.error()?))).collect();
    for (turn, error) in &failed {
        assert_eq!(turn.node, killed, "{error}");
        // What the server says when it is shot down, or nothing any more.
        let last_words = error.code().is_none_or(|code| *code == SqlState::ADMIN_SHUTDOWN);
        assert!(error.is_closed() || last_words, "{error}");
    }
    assert!(failed.len() <= SIZE, "{} have failed", failed.len());
    failed.len()
}

/// The longest time in which no turn has ended well.
fn longest_pause(turns: &[Turn]) -> Duration {
    let mut ends: Vec<Instant> =
        turns.iter().filter(|turn| turn.is_served()).map(|turn| turn.ended).collect();
    ends.sort();
    ends.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap()
}

#[test]
fn each_host_and_port_is_a_node_and_the_policy_is_that_of_target_session_attrs() {
    for (url, keys, policy) in [
        ("postgresql://u@h1,h2:5433/d", "h1:5432 h2:5433", "any node, by turns"),
        ("postgresql://u@h1/d?target_session_attrs=any", "h1:5432", "any node, by turns"),
        ("postgresql://u@[::1]:1,[::1]:2/d", "[::1]:1 [::1]:2", "any node, by turns"),
        ("host=h1,h2 port=7 user=u target_session_attrs=read-write", "h1:7 h2:7", "the primary"),
        (
            "postgresql://h1,h2/d?target_session_attrs=read-only&load_balance_hosts=random",
            "h1:5432 h2:5432",
            "a replica",
        ),
        ("host=/run/postgresql,h2 user=u", "/run/postgresql:5432 h2:5432", "any node, by turns"),
        ("host=h1,h2 hostaddr=10.0.0.1,::1 port=1,2 user=u", "h1:1 h2:2", "any node, by turns"),
        ("hostaddr=10.0.0.1,::1 user=u", "10.0.0.1:5432 [::1]:5432", "any node, by turns"),
    ] {
        // Often enough that a random order would show.
        for _ in 0..8 {
            let nodes = PostgresNodes::from_url(url).unwrap();
            let cluster = nodes.cluster(builder(), PostgresManager::new).unwrap();
            assert_eq!(nodes.keys().collect::<Vec<_>>().join(" "), keys, "{url}");
            assert_eq!(cluster.nodes().join(" "), keys, "{url}");
            assert_eq!(format!("{:?}", nodes.policy()), policy, "{url}");
        }
    }
}

#[test]
fn a_list_of_servers_that_cannot_be_right_is_refused_and_the_value_is_named() {
    for (url, said) in [
        ("user=u", "host is missing, but it must be given, or hostaddr"),
        ("postgresql://u@/d", "host is missing, but it must be given, or hostaddr"),
        ("postgresql://u@h1,,h3/d", "host is :5432, but it must have a name before the colon"),
        ("postgresql://u@h1:5432,h2:0/d", "port is h2:0, but it must be a host and, after a colon"),
        ("postgresql://u@h1,h2:54x2/d", "port is h2:54x2, but it must be a host and"),
        ("postgresql://u@[::1]:70000,h2/d", "port is [::1]:70000, but it must be a host and"),
        (
            "postgresql://h1:5432,h2:54x2/d",
            "port is that of number 2 (not shown beside a password), but it must be a host and",
        ),
        (
            "postgresql://u:p@h1:5432,h2:0/d",
            "port is that of number 2 (not shown beside a password), but it must be a host and",
        ),
        (
            "postgresql://u@/d?host=h1,h2",
            "host is h1,h2, but it must be one host: in a URL, several",
        ),
        (
            "host=h1,h2,h3 port=1,2 user=u",
            "port is 1,2, but it must be one, or as many as there are hosts, which is 3",
        ),
        (
            "host=h1,h2 hostaddr=10.0.0.1 user=u",
            "hostaddr is 10.0.0.1, but it must be as many as there are hosts, which is 2",
        ),
        (
            "postgresql://u@h1:5433,h2,h1:5433/d",
            "host is h1:5433, but it must be named once, not twice",
        ),
    ] {
        let error = PostgresNodes::from_url(url).unwrap_err();
        assert!(matches!(error, Error::Config(_)), "{url}: {error}");
        assert!(error.to_string().starts_with(said), "{url}: {error}");
    }
    for url in ["postgresql://u@[::1/d", "host=h1,h2 port=1,x", "host=h1 target_session_attrs=no"] {
        let error = PostgresNodes::from_url(url).unwrap_err();
        assert!(matches!(error, Error::Postgres(_)), "{url}: {error}");
    }
    let one = || PostgresNodes::from_url("postgresql://u@h1/d").unwrap();
    let error = one().cluster(builder().slow_start(Duration::ZERO), PostgresManager::new);
    assert_eq!(error.unwrap_err().to_string(), "slow_start is 0ns, but it must be above zero");
    let error = one().cluster(builder().pools(|pool| pool.max_size(0)), PostgresManager::new);
    assert!(error.unwrap_err().to_string().starts_with("max_size is 0, but it must be"));
}

#[tokio::test]
async fn no_part_of_a_password_is_told() {
    let said = |error: Error| {
        let mut said = format!("{error} {error:?}");
        let mut cause = std::error::Error::source(&error);
        while let Some(error) = cause {
            said.push_str(&format!(" {error} {error:?}"));
            cause = error.source();
        }
        said
    };
    for url in [
        "postgresql://app:hush@h1:x/d",
        "postgresql://app:hush@h1,h1/d",
        "postgresql://app:hush@h1:0/d",
        "postgresql://app:hush@h1/d?sslmode=loud",
        "postgresql://app:hush@/d",
        // Whoever forgot the host, or to write an @ as %40.
        "postgresql://app:hush",
        "postgresql://app:hush/d",
        "postgresql://app:wo@hush@h1/d",
        "postgresql://app:wo@hush@h1:5432,h2:5432/d",
        "postgresql://app:wo@rd:hush@h1/d",
        "postgresql://app:wo@r,d:hush,@h1/d",
        "postgresql://app:wo@rd:hush/@h1/d",
        "host=h1,h1 password=hush",
        "host=h1 port=x password=hush",
        "host=h1,h2 port=1,2,3 password='hush'",
        "postgresql://app:wo@rd:hush/d",
        "postgresql://app:wo@hush,hush,x@h1/d",
        "postgresql://app:wo@hush:0,x@h1/d",
        "postgresql://app:wo@hush,hush/d",
        "postgresql://app:wo@hush/rd@h1/d",
        "postgresql://app:wo@hush:5432/rd@h1?connect_timeout=1",
        "postgresql://app:wo@/d?host=hush,x",
        "postgresql://h1,h2/d?user=a&password=wo&hush&target_session_attrs=any",
        "postgresql://app:wo/rd?hush=x&password=y",
        "host=h1 password=wo hush=x",
        "host=h1 password=wo hush x=y",
    ] {
        let said = said(PostgresNodes::from_url(url).unwrap_err());
        assert!(!said.contains("hush"), "{url}: {said}");
    }
    let error = PostgresManager::from_url("host=h1 password=wo hush=x").unwrap_err();
    assert!(!said(error).contains("hush"));
    let error = PostgresManager::from_url("postgresql://app:wo@hush/rd@h1/d").unwrap_err();
    assert!(!said(error).contains("hush"));
    for url in ["postgresql://app@h1/d@e", "postgresql://app:hush@h1/d%40e?application_name=a@b"] {
        PostgresNodes::from_url(url).expect("a database may have an @ in its name");
    }
    let manager = PostgresManager::from_url("postgresql://app:wo@hush@h1/d").unwrap();
    let error = manager.connect().await.unwrap_err();
    assert!(manager.is_permanent(&error), "nobody asks the network for such a name: {error}");
    assert!(!said(error).contains("hush"));
    let nodes = PostgresNodes::from_url("postgresql://app:hush@h1,h2/d").unwrap();
    let cluster = nodes.cluster(builder(), PostgresManager::new).unwrap();
    let said = format!("{nodes:?} {cluster:?} {:?} {}", cluster.status(), cluster.status());
    assert!(said.contains("h1:5432") && !said.contains("hush"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_say_what_they_are_and_reads_are_spread_by_the_weights() {
    let Some(primary) = Postgres::start(&[]) else { return };
    let (one, two) = (primary.replica(&[]), primary.replica(&[]));
    let all = [&primary, &one, &two];
    let cluster = cluster(&all);
    for server in all {
        warm(&cluster, &key(server)).await;
    }
    let roles = all.map(|server| role(&cluster, &key(server)));
    assert_eq!(roles, [Role::Primary, Role::Replica, Role::Replica]);
    cluster.set_options(&key(&two), NodeOptions::default().weight(3)).unwrap();
    for (policy, shares) in [
        (Policy::Replica, [0, 1_000, 3_000]),
        (Policy::ReplicasThenPrimary, [0, 1_000, 3_000]),
        (Policy::RoundRobin, [800, 800, 2_400]),
        (Policy::Primary, [4_000, 0, 0]),
    ] {
        let mut readers = JoinSet::new();
        // Half as many as a node has connections: those that come back may take a moment until the
        // server's last word has been read, and no node is to be passed over meanwhile.
        const READERS: usize = SIZE / 2;
        for _ in 0..READERS {
            let cluster = cluster.clone();
            readers.spawn(async move {
                let mut served = HashMap::<String, usize>::new();
                for _ in 0..4_000 / READERS {
                    let client = cluster.acquire_any(policy).await.unwrap();
                    let server = who_answers(&client).await.unwrap();
                    assert_eq!(server, *client.node());
                    *served.entry(server).or_default() += 1;
                }
                served
            });
        }
        let mut served = HashMap::<String, usize>::new();
        while let Some(reader) = readers.join_next().await {
            for (server, count) in reader.unwrap() {
                *served.entry(server).or_default() += count;
            }
        }
        for (server, share) in all.iter().zip(shares) {
            let count = served.get(&key(server)).copied().unwrap_or_default();
            assert_near(&format!("{policy:?}"), count, share);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn target_session_attrs_chooses_the_server_and_the_other_settings_hold_for_all() {
    let Some(primary) = Postgres::start(&[]) else { return };
    let replica = primary.replica(&[]);
    for (attributes, server) in [("read-write", &primary), ("read-only", &replica)] {
        let url = url(&[&replica, &primary], attributes);
        let nodes = PostgresNodes::from_url(&format!("{url}&application_name=books")).unwrap();
        let cluster =
            nodes.cluster(builder(), |config| PostgresManager::new(config).mode(PoolMode::Session));
        let cluster = cluster.unwrap();
        for _ in 0..20 {
            let client = cluster.acquire_any(nodes.policy()).await.unwrap();
            assert_eq!(who_answers(&client).await.unwrap(), key(server));
            let name = client.query_one("SHOW application_name", &[]).await.unwrap();
            assert_eq!(name.get::<_, &str>(0), "books");
            let path = client.query_one("SHOW search_path", &[]).await.unwrap();
            assert_eq!(path.get::<_, &str>(0), "\"$user\", public", "a session made new");
            client.batch_execute("SET search_path TO nowhere").await.unwrap();
        }
        // The policy is the acquire's; the cluster has them all.
        for server in [&primary, &replica] {
            let client = cluster.acquire(&key(server)).await.unwrap();
            assert_eq!(who_answers(&client).await.unwrap(), key(server));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_is_reached_by_its_socket_or_its_address_and_a_manager_connects_to_one_alone() {
    let Some(server) = Postgres::start(&[]) else { return };
    let (folder, port) = (server.socket_folder(), server.address().port());
    let folder = folder.to_str().unwrap();
    for (hosts, key) in [
        (format!("host={folder}"), format!("{folder}:{port}")),
        ("host=nowhere.invalid hostaddr=127.0.0.1".to_owned(), format!("nowhere.invalid:{port}")),
        ("hostaddr=127.0.0.1".to_owned(), format!("127.0.0.1:{port}")),
    ] {
        let url = format!("{hosts} port={port} user=millpond");
        let nodes = PostgresNodes::from_url(&url).unwrap();
        let cluster = nodes.cluster(builder(), PostgresManager::new).unwrap();
        let client = cluster.acquire(&key).await.unwrap();
        let row = client.query_one("SELECT inet_server_addr() IS NULL", &[]).await.unwrap();
        assert_eq!(row.get::<_, bool>(0), key.starts_with('/'), "{key}");
    }
    for host in ["127.0.0.1", folder] {
        let manager =
            PostgresManager::from_url("host=a,b hostaddr=10.0.0.1,10.0.0.2 user=millpond");
        let pool = millpond::Pool::builder(manager.unwrap().only(host, port)).max_size(1);
        let client = pool.build().await.unwrap().acquire_owned().await.unwrap();
        client.batch_execute("SELECT 1").await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_added_again_has_its_address_and_a_set_that_has_it_leaves_it_alone() {
    let Some(server) = Postgres::start(&[]) else { return };
    let port = server.address().port();
    let url = format!("host=nowhere.invalid hostaddr=127.0.0.1 port={port} user=millpond");
    let nodes = PostgresNodes::from_url(&url).unwrap();
    let cluster = nodes.cluster(builder(), PostgresManager::new).unwrap();
    let key = format!("nowhere.invalid:{port}");
    drop(cluster.acquire(&key).await.unwrap());
    let changes = cluster.apply([NodeSpec::new(&*key, key.parse().unwrap())], PATIENCE).unwrap();
    assert!(changes.is_empty() && changes.errors.is_empty(), "{changes:?}");
    assert_eq!(cluster.acquire(&key).await.unwrap().info().uses, 2);
    drop(cluster.remove_node(&key, PATIENCE).await.unwrap());
    cluster.add_endpoint(key.clone(), key.parse().unwrap()).unwrap();
    drop(cluster.acquire(&key).await.unwrap());
    let socket = format!("host={} port={port} user=millpond", server.socket_folder().display());
    let nodes = PostgresNodes::from_url(&socket).unwrap();
    let cluster = nodes.cluster(builder(), PostgresManager::new).unwrap();
    let key = nodes.keys().next().unwrap().to_owned();
    drop(cluster.remove_node(&key, PATIENCE).await.unwrap());
    cluster.add_endpoint(key.clone(), key.parse().unwrap()).unwrap();
    drop(cluster.acquire(&key).await.unwrap());
}

/// A server that lets everybody in and answers each question with nothing but its end.
async fn says_nothing(listener: tokio::net::TcpListener) {
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        tokio::spawn(async move {
            let mut bytes = [0; 1024];
            let _startup = stream.read(&mut bytes).await;
            let ready = [b'Z', 0, 0, 0, 5, b'I'];
            let welcome = [&[b'R', 0, 0, 0, 8, 0, 0, 0, 0][..], &ready].concat();
            let done = [&[b'C', 0, 0, 0, 9][..], b"NONE\0", &ready].concat();
            let mut answer = welcome;
            while stream.write_all(&answer).await.is_ok() {
                match stream.read(&mut bytes).await {
                    Ok(read) if read > 0 => answer.clone_from(&done),
                    _ => return,
                }
            }
        });
    }
}

#[tokio::test]
async fn a_server_that_does_not_say_what_it_is_is_not_taken_for_the_primary() {
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(says_nothing(listener));
    let url = format!("postgresql://u@{address}/d?sslmode=disable");
    let pool = millpond::Pool::builder(PostgresManager::from_url(&url).unwrap()).max_size(1);
    let pool = pool.build().await.unwrap();
    let mut client = pool.acquire().await.unwrap();
    let role = postgres::read_role(&mut client).await;
    assert!(matches!(role, Err(Error::Closed)), "{role:?}");
    server.abort();
}

/// Nor is it asked to cancel the question.
#[tokio::test]
async fn a_server_that_has_not_answered_what_it_is_keeps_no_place() {
    let Some(server) = Postgres::start(&[]) else { return };
    let manager = PostgresManager::from_url(&server.url()).unwrap();
    let pool = millpond::Pool::builder(manager).max_size(1).close_timeout(PATIENCE);
    let pool = pool.acquire_timeout(3 * SECOND).build().await.unwrap();
    let mut client = pool.acquire().await.unwrap();
    server.freeze();
    assert!(poll_once(postgres::read_role(&mut client).as_mut()).is_pending());
    client.discard();
    {
        let mut acquire = pin!(pool.acquire());
        let mut connects = pin!(eventually("the next one", || pool.counts().connecting == 1));
        tokio::select! {
            biased;
            () = connects.as_mut() => {}
            _ = acquire.as_mut() => panic!("the place was kept"),
        }
    }
    server.thaw();
    let metrics = at_rest(&pool).await;
    assert_eq!((metrics.closed.discarded, metrics.closed.total()), (1, 1), "{metrics:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn asking_for_the_role_leaves_nothing_to_tidy_up() {
    let Some(server) = Postgres::start(&[]) else { return };
    let checked = || builder().pools(|pool| pool.max_size(1).check(millpond::CheckPolicy::Always));
    let cluster = nodes(&[&server])
        .cluster(checked(), |config| PostgresManager::new(config).mode(PoolMode::Session));
    let cluster = cluster.unwrap();
    for _ in 0..20 {
        drop(cluster.acquire_any(Policy::Primary).await.unwrap());
    }
    assert_eq!(cluster.status().totals.resets, 0, "nobody has sent anything");
    let client = cluster.acquire_any(Policy::Primary).await.unwrap();
    client.batch_execute("SELECT 1").await.unwrap();
    drop(client);
    drop(cluster.acquire_any(Policy::Primary).await.unwrap());
    assert_eq!(cluster.status().totals.resets, 1);
}

/// The code of what a server has said, which lies behind this.
fn code(error: &(dyn std::error::Error + 'static)) -> Option<SqlState> {
    match error.downcast_ref::<OperationError<Error>>() {
        Some(OperationError::Failed(error)) => error.code().cloned(),
        _ => error.source().and_then(code),
    }
}

#[tokio::test]
async fn a_server_that_lets_nobody_else_in_serves_with_the_connections_that_it_has() {
    let (Some(full), Some(other)) = (Postgres::start(&[]), Postgres::start(&[])) else { return };
    full.run("ALTER ROLE millpond CONNECTION LIMIT 3");
    let cluster = cluster(&[&full, &other]);
    let node = cluster.node(&key(&full)).unwrap();
    node.warm_up(3).await.unwrap();
    let error = node.warm_up(4).await.unwrap_err();
    assert_eq!(code(&error), Some(SqlState::TOO_MANY_CONNECTIONS), "{error}");
    assert!(!is_up(&cluster, &key(&full)));
    let mut held = Vec::new();
    for server in [&other; SIZE].into_iter().chain([&full; 3]) {
        let guard = cluster.acquire_any(Policy::RoundRobin).await.unwrap();
        assert_eq!(guard.node(), &key(server));
        assert_eq!(who_answers(&guard).await.unwrap(), key(server));
        held.push(guard);
    }
    let late = cluster.acquire_any_timeout(Policy::RoundRobin, 300 * MILLISECOND);
    let error = late.await.unwrap_err();
    assert_eq!(code(&error), Some(SqlState::TOO_MANY_CONNECTIONS), "{error}");
    // Whoever waits is served there too, and nothing is opened for him.
    let mut waits = pin!(cluster.acquire_any(Policy::RoundRobin));
    assert!(timeout(50 * MILLISECOND, waits.as_mut()).await.is_err());
    drop(held.pop());
    assert_eq!(waits.await.unwrap().node(), &key(&full));
    assert_eq!(node.metrics().created, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_dies_under_load_costs_no_acquire_and_serves_again_when_it_is_back() {
    let Some(primary) = Postgres::start(&[]) else { return };
    let (one, two) = (primary.replica(&[]), primary.replica(&[]));
    let all = [&primary, &one, &two];
    let cluster = cluster(&all);
    for server in all {
        // Until the replicas have said that they are replicas, the primary would read.
        drop(cluster.acquire(&key(server)).await.unwrap());
    }
    let load = Load::start(&cluster, 2 * SIZE, Policy::ReplicasThenPrimary, READ);
    load.goes_on(&key(&one), 500).await;
    load.goes_on(&key(&two), 500).await;
    two.kill();
    eventually("it is seen to be down", || !is_up(&cluster, &key(&two))).await;
    // Reads that it has answered before that may still have to be counted.
    load.goes_on(&key(&one), 500).await;
    let while_down = load.served(&key(&two));
    load.goes_on(&key(&one), 1_000).await;
    assert_eq!(load.served(&key(&two)), while_down);
    two.restart();
    load.goes_on(&key(&two), 500).await;
    assert!(is_up(&cluster, &key(&two)));
    let turns = load.stop().await;
    let failed = only_the_dead_fail(&turns, &key(&two));
    println!("{} reads, {failed} of which died with their connections", turns.len());
    let at_primary = turns.iter().filter(|turn| turn.node == key(&primary)).count();
    assert_eq!(at_primary, 0, "a replica was up all the time");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_go_on_at_the_replica_that_is_promoted_and_never_to_one_that_refuses_them() {
    let Some(primary) = Postgres::start(&[]) else { return };
    primary.run(TABLE);
    let replica = primary.replica(&[]);
    let (old, new) = (key(&primary), key(&replica));
    let cluster = cluster(&[&primary, &replica]);
    let load = Load::start(&cluster, 2 * SIZE, Policy::Primary, WRITE);
    // The replica is in use all the time, so that its connections are there when it is promoted.
    let reads = Load::start(&cluster, 2, Policy::RoundRobin, READ);
    load.goes_on(&old, 500).await;
    reads.goes_on(&new, 100).await;
    let killed = Instant::now();
    primary.kill();
    replica.promote();
    let promoted = Instant::now();
    load.goes_on(&new, 500).await;

    // The old one comes back as what it was, and knows nothing of the new one.
    primary.restart();
    load.goes_on(&old, 500).await;
    load.goes_on(&new, 500).await;
    assert_eq!([role(&cluster, &old), role(&cluster, &new)], [Role::Primary, Role::Primary]);
    let both = format!("nodes {old} and {new} both say that they are the primary");
    eventually("it is told", || {
        cluster.status().health.reasons().iter().any(|reason| reason.starts_with(&both))
    })
    .await;
    // Whoever knows better takes it out.
    assert!(cluster.remove_node(&old, PATIENCE).await.unwrap().still_out.is_empty());
    load.goes_on(&new, 500).await;
    let at_old = load.served(&old);
    load.goes_on(&new, 500).await;
    assert_eq!(load.served(&old), at_old);

    let (writes, reads) = (load.stop().await, reads.stop().await);
    only_the_dead_fail(&reads, &old);
    let failed = only_the_dead_fail(&writes, &old);
    assert_went_on(&writes, &replica, promoted);
    println!(
        "{} writes, {failed} of which died with their connections; the promotion was done {:.0?} after \
         the kill, and no write was for {:.0?}",
        writes.len(),
        promoted - killed,
        longest_pause(&writes),
    );
}

/// Asserts that writes went on at the server that was promoted, that none was refused there or before
/// that, and that nothing is missing of what it has acknowledged.
#[track_caller]
fn assert_went_on(writes: &[Turn], server: &Postgres, promoted: Instant) {
    let refused = |turn: &&Turn| {
        let code = turn.error().and_then(tokio_postgres::Error::code);
        code == Some(&SqlState::READ_ONLY_SQL_TRANSACTION)
    };
    assert_eq!(writes.iter().filter(refused).count(), 0);
    let new = key(server);
    let there = || writes.iter().filter(|turn| turn.node == new && turn.is_served());
    let first = there().map(|turn| turn.ended).min().unwrap();
    // The roles are asked for every 250 ms; the rest is for a machine that is busy.
    assert!(first < promoted + SECOND + SLACK, "{:?} after the promotion", first - promoted);
    let sql = format!("SELECT count(*) FROM written WHERE node = '{new}'");
    let (rows, served) = (server.run(&sql).parse::<usize>().unwrap(), there().count());
    // Whoever lost patience does not know whether his is there.
    let lost = writes.iter().filter(|turn| turn.node == new && turn.outcome.is_err()).count();
    assert!((served..=served + lost).contains(&rows), "{rows} of {served}, and {lost} lost");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_go_on_at_the_replica_that_is_promoted_though_the_old_primary_hangs() {
    let Some(primary) = Postgres::start(&[]) else { return };
    primary.run(TABLE);
    let replica = primary.replica(&[]);
    let (old, new) = (key(&primary), key(&replica));
    let cluster = cluster(&[&primary, &replica]);
    let patience = 200 * MILLISECOND;
    let load = Load::impatient(&cluster, 2 * SIZE, Policy::Primary, WRITE, patience);
    load.goes_on(&old, 500).await;
    drop(cluster.acquire(&new).await.unwrap());
    let frozen = Instant::now();
    primary.freeze();
    replica.promote();
    let promoted = Instant::now();
    load.goes_on(&new, 500).await;
    let writes = load.stop().await;
    only_the_dead_fail(&writes, &old);
    assert_went_on(&writes, &replica, promoted);
    println!(
        "the promotion was done {:.0?} after the primary hung, and no write for {:.0?}",
        promoted - frozen,
        longest_pause(&writes),
    );
    primary.thaw();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_comes_and_goes_under_load_without_an_error() {
    let Some(primary) = Postgres::start(&[]) else { return };
    let one = primary.replica(&[]);
    let cluster = cluster(&[&primary, &one]);
    let load = Load::start(&cluster, 2 * SIZE, Policy::Replica, READ);
    load.goes_on(&key(&one), 200).await;
    let two = primary.replica(&[]);
    for _ in 0..3 {
        // By the template, with the user and the database of the first ones.
        let endpoint = key(&two).parse().unwrap();
        cluster.add_endpoint(key(&two), endpoint).unwrap();
        load.goes_on(&key(&two), 200).await;
        assert_eq!(role(&cluster, &key(&two)), Role::Replica);
        let report = cluster.remove_node(&key(&two), PATIENCE).await.unwrap();
        assert!(report.still_out.is_empty());
        let users = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'millpond'";
        // The server ends them a moment after they were closed.
        eventually("its connections are closed", || two.run(users) == "0").await;
        load.goes_on(&key(&one), 200).await;
    }
    let turns = load.stop().await;
    assert!(turns.iter().all(Turn::is_served));
}
