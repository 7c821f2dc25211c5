//! What messages say of where connections lead.

#![cfg(feature = "tokio")]
#![allow(clippy::unwrap_used, reason = "these are tests, though clippy only sees their helpers")]

mod support;
use support::*;

use millpond::{
    AcquireError, BuildError, Hooks, Manager, Pool, PoolBuilder, RotateError, Stage, Timeout,
    WarmUpError,
};
use std::error::Error;
use std::io;
use std::time::Duration;
use tokio::time::sleep;

const SECOND: Duration = Duration::from_secs(1);
const DB: &str = "db.internal:5432";

/// Says this when it is to connect.
struct Says {
    error: &'static str,
    target: &'static str,
}

impl Manager for Says {
    type Connection = ();
    type Error = io::Error;

    async fn connect(&self) -> io::Result<()> {
        Err(io::Error::other(self.error))
    }

    fn target(&self) -> Option<String> {
        Some(self.target.to_owned())
    }
}

/// One whose connections lead to [`DB`].
fn manager_of(act: Act) -> TestManager {
    let manager = TestManager::new();
    manager.leads_to(DB);
    manager.connect.always(act);
    manager
}

fn builder(act: Act) -> PoolBuilder<TestManager> {
    Pool::builder(manager_of(act)).max_size(1)
}

/// What an error says, with all its causes.
fn chain(error: &dyn Error) -> String {
    let mut said = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        said = format!("{said}: {error}");
        cause = error.source();
    }
    said
}

async fn times_out<M: Manager>(pool: &Pool<M>) -> Box<Timeout<M::Error>> {
    match pool.acquire_timeout(SECOND).await.map(drop) {
        Err(AcquireError::Timeout(timeout)) => timeout,
        other => panic!("no timeout: {other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_timeout_names_the_target_where_a_connection_was_being_opened() {
    let pool = builder(Act::Never).build_lazy().unwrap();
    let timeout = times_out(&pool).await;
    assert_eq!((timeout.stage(), timeout.target()), (Stage::Connecting, Some(DB)));
    let said =
        "pool millpond: no connection within 1s: opening one to db.internal:5432 took too long (";
    assert!(timeout.to_string().starts_with(said), "{timeout}");

    let pool = builder(Act::Error).build_lazy().unwrap();
    let timeout = times_out(&pool).await;
    assert_eq!((timeout.stage(), timeout.target()), (Stage::ConnectFailing, Some(DB)));
    let said =
        "pool millpond: no connection within 1s: opening one to db.internal:5432 keeps failing (";
    assert!(timeout.to_string().starts_with(said), "{timeout}");
    let failed = timeout.last_connect_error().unwrap();
    assert_eq!(failed.to_string(), "db.internal:5432: scripted connect error");
    assert_eq!(failed.target.as_deref(), Some(DB));
    assert!(TestError::within(&*timeout).is_some(), "the manager's own error is found");

    let pool = builder(Act::Ok).build_lazy().unwrap();
    let _held = pool.acquire().await.unwrap();
    let timeout = times_out(&pool).await;
    assert_eq!((timeout.stage(), timeout.target()), (Stage::Queued, Some(DB)));
    assert!(!timeout.to_string().contains(DB), "it is in use: {timeout}");
}

#[tokio::test(start_paused = true)]
async fn whatever_connecting_fails_with_names_the_target_once() {
    let pool = builder(Act::Permanent).build_lazy().unwrap();
    let refused = pool.acquire().await.map(drop).unwrap_err();
    assert!(matches!(refused, AcquireError::Connect(_)), "{refused}");
    let said = "cannot connect to db.internal:5432 until the server or the settings are changed: scripted connect error";
    assert_eq!(chain(&refused), said);

    let pool = builder(Act::Never).fail_fast(true).connect_timeout(SECOND).build_lazy().unwrap();
    let down = pool.acquire().await.map(drop).unwrap_err();
    assert!(matches!(down, AcquireError::Unavailable(_)), "{down}");
    let said = "cannot connect to db.internal:5432 at the moment, and no connection is left; the pool keeps \
                trying: no answer within 1s (connect_timeout)";
    assert_eq!(chain(&down), said);
    let down = pool.acquire().await.map(drop).unwrap_err();
    assert_eq!(chain(&down), said, "told at once");

    let built = builder(Act::Never).min_idle(1).build().await.map(drop).unwrap_err();
    assert!(matches!(built, BuildError::Connect(_)), "{built}");
    let said = "cannot open the first connections to db.internal:5432: no answer within 5s (connect_timeout)";
    assert_eq!(chain(&built), said);

    let pool = builder(Act::Error).build_lazy().unwrap();
    let warmed = pool.warm_up(1).await.unwrap_err();
    assert!(matches!(warmed, WarmUpError::Connect(_)), "{warmed}");
    let said = "cannot open a connection to db.internal:5432: scripted connect error";
    assert_eq!(chain(&warmed), said);
    let rotated = pool.rotate(|_| Box::pin(async { Ok(()) })).await.unwrap_err();
    assert!(matches!(rotated, RotateError::Connect(_)), "{rotated}");
    let said = "cannot open a connection to db.internal:5432 of the new generation: scripted connect error";
    assert_eq!(chain(&rotated), said);
}

#[tokio::test(start_paused = true)]
async fn a_target_that_the_error_names_is_not_named_again() {
    for (error, target, is_named_again) in [
        ("cannot reach db.internal:5432", DB, false),
        ("db.internal:5432: refused", DB, false),
        ("(db.internal:5432)", DB, false),
        ("refused", DB, true),
        // These are others.
        ("cannot reach my.db.internal:5432", DB, true),
        ("cannot reach my-db.internal:5432", DB, true),
        ("cannot reach db.internal:54321", DB, true),
        ("cannot open /srv/data/shop.db", "/data/shop.db", true),
        ("cannot open /data/shop.db-wal", "/data/shop.db", true),
        ("cannot open /data/shop.db: it is gone", "/data/shop.db", false),
        ("cannot reach db.internal:54321, nor db.internal:5432", DB, false),
    ] {
        let pool = Pool::builder(Says { error, target }).fail_fast(true).build_lazy().unwrap();
        let told = chain(&pool.acquire().await.unwrap_err());
        let to = if is_named_again { format!(" to {target}") } else { String::new() };
        let said = format!("cannot connect{to} at the moment, and no connection is left");
        assert!(told.starts_with(&said), "{told}");
        let status = pool.status();
        assert_eq!(status.health.reasons(), [format!("connecting{to} fails: {error}")]);
        let before = if is_named_again { format!("{target}: ") } else { String::new() };
        let last = status.metrics.last_connect_error.unwrap();
        assert_eq!(last.message, format!("{before}{error}"));
    }
}

#[tokio::test(start_paused = true)]
async fn health_names_the_target_wherever_it_speaks_of_connecting() {
    let reasons = |pool: &Pool<TestManager>| pool.status().health.reasons().join("; ");
    let pool = builder(Act::Permanent).build_lazy().unwrap();
    pool.acquire().await.map(drop).unwrap_err();
    let said =
        "connecting to db.internal:5432 fails for good: scripted connect error; it is tried again";
    assert!(reasons(&pool).starts_with(said), "{}", reasons(&pool));

    let manager = manager_of(Act::Ok);
    let pool = Pool::builder(manager.clone()).max_size(2).build_lazy().unwrap();
    let _held = pool.acquire().await.unwrap();
    manager.connect.always(Act::Error);
    times_out(&pool).await;
    sleep(20 * SECOND).await;
    let said = "connecting to db.internal:5432 failed ";
    assert!(reasons(&pool).starts_with(said), "{}", reasons(&pool));
    let shown = pool.status().to_string();
    assert!(shown.contains(" ago: db.internal:5432: scripted connect error\n"), "{shown}");

    let pool = builder(Act::Never).build_lazy().unwrap();
    let mut waits = Box::pin(pool.acquire());
    tokio::time::timeout(2 * SECOND, waits.as_mut()).await.map(drop).unwrap_err();
    let said = "opening a connection to db.internal:5432 has gone on for 2.0s, and 1 waits for one";
    assert_eq!(reasons(&pool), said);
}

#[tokio::test(start_paused = true)]
async fn a_rejection_by_a_hook_is_told_with_the_target_and_the_hook() {
    let hooks = Hooks::new()
        .after_connect(|_| Box::pin(async { Err(TestError { what: "hook", permanent: false }) }));
    let pool = builder(Act::Ok).hooks(hooks).build_lazy().unwrap();
    let timeout = times_out(&pool).await;
    let said = "opening one to db.internal:5432 keeps failing in the hook after_connect (";
    assert!(timeout.to_string().contains(said), "{timeout}");
    let last = pool.metrics().last_connect_error.unwrap();
    assert_eq!(last.message, "db.internal:5432: after_connect: scripted hook error");
}

#[tokio::test(start_paused = true)]
async fn who_goes_over_to_another_server_is_told_of_that_one() {
    let manager = manager_of(Act::Ok);
    let pool = Pool::builder(manager.clone()).max_size(2).build_lazy().unwrap();
    let _held = pool.acquire().await.unwrap();
    manager.leads_to("db2:5432");
    manager.connect.once(Act::Error);
    let refused = pool.rotate(|_| Box::pin(async { Ok(()) })).await.unwrap_err().to_string();
    assert!(refused.contains("db2:5432") && !refused.contains("db.internal"), "{refused}");
    manager.connect.always(Act::Never);
    let timeout = times_out(&pool).await.to_string();
    assert!(timeout.contains("db2:5432") && !timeout.contains("db.internal"), "{timeout}");
}

#[tokio::test(start_paused = true)]
async fn a_manager_that_says_nothing_changes_no_words() {
    hush_scripted_panics();
    for (target, act) in
        [(None, Act::Ok), (Some(""), Act::Ok), (Some(" \n"), Act::Ok), (Some(DB), Act::Panic)]
    {
        let manager = TestManager::new();
        target.into_iter().for_each(|target| manager.leads_to(target));
        manager.target.always(act);
        manager.connect.always(Act::Error);
        let pool = Pool::builder(manager.clone()).fail_fast(true).build_lazy().unwrap();
        let down = pool.acquire().await.unwrap_err();
        let said = "cannot connect at the moment, and no connection is left; the pool keeps trying";
        assert_eq!(down.to_string(), said);
        assert_eq!(pool.status().health.reasons(), ["connecting fails: scripted connect error"]);
        let last = pool.metrics().last_connect_error.unwrap();
        assert_eq!(last.message, "scripted connect error");
        assert_eq!(manager.target.calls(), 1);

        manager.connect.always(Act::Never);
        let pool = Pool::builder(manager.clone()).build_lazy().unwrap();
        let timeout = times_out(&pool).await;
        assert!(timeout.to_string().contains(": opening one took too long ("), "{timeout}");
        assert_eq!(timeout.target(), None);
        assert_eq!(manager.target.calls(), 2, "once for each pool");
    }
}

#[tokio::test(start_paused = true)]
async fn a_target_with_line_breaks_breaks_no_line() {
    let manager = manager_of(Act::Error);
    manager.leads_to("\tone\r\ntwo\u{7}three\u{85}four\0");
    let pool = Pool::builder(manager).fail_fast(true).build_lazy().unwrap();
    let down = pool.acquire().await.unwrap_err().to_string();
    assert!(down.starts_with("cannot connect to one  two three four at the moment"), "{down}");
    for told in [down, format!("{:#}", pool.status()), pool.status().health.to_string()] {
        assert!(!told.contains(char::is_control), "{told:?}");
    }
}

#[cfg(feature = "cluster")]
mod of_nodes {
    use super::*;
    use millpond::cluster::{Cluster, Policy};

    #[tokio::test(start_paused = true)]
    async fn a_node_is_named_once_by_its_key_or_by_that_and_its_target() {
        let manager = manager_of(Act::Error);
        let cluster = Cluster::builder().name("orders").acquire_timeout(SECOND).build().unwrap();
        cluster.add_node("a".to_owned(), manager.clone()).unwrap();
        cluster.add_node(DB.to_owned(), manager.clone()).unwrap();

        let of_a = chain(&cluster.acquire("a").await.map(drop).unwrap_err());
        assert!(
            of_a.starts_with("node a: cannot connect to db.internal:5432 at the mom"),
            "{of_a}"
        );
        let of_db = chain(&cluster.acquire(DB).await.map(drop).unwrap_err());
        assert!(of_db.starts_with("node db.internal:5432: cannot connect at the mom"), "{of_db}");

        let status = cluster.status();
        let reasons = status.health.reasons().join("\n");
        let said = "node a is down: connecting to db.internal:5432 fails: scripted connect error";
        assert!(reasons.contains(said), "{reasons}");
        let said = "node db.internal:5432 is down: connecting fails: scripted connect error";
        assert!(reasons.contains(said), "{reasons}");

        let unserved = chain(&cluster.acquire_any(Policy::RoundRobin).await.map(drop).unwrap_err());
        let said = "a (role unknown) is down: connecting to db.internal:5432 fails [";
        assert!(unserved.contains(said), "{unserved}");
        let said = "db.internal:5432 (role unknown) is down: connecting fails [";
        assert!(unserved.contains(said), "{unserved}");
        assert!(unserved.ends_with(": scripted connect error"), "{unserved}");
        assert_eq!(unserved.matches("scripted connect error").count(), 1, "{unserved}");
    }
}

/// Each backend's target; none tells the user or the password, which are `us3r` and `hush`.
#[cfg(any(
    all(feature = "tcp", unix, feature = "unix"),
    feature = "postgres",
    feature = "redis",
    feature = "mysql",
    feature = "pg-wired",
    feature = "sqlx",
    feature = "sqlite"
))]
mod of_backends {
    use super::*;

    /// `None` and what no manager is made of are one: neither tells anything.
    fn tells(what: &str, manager: Option<impl Manager>, expected: Option<&str>) {
        let target = manager.as_ref().and_then(Manager::target);
        assert_eq!(target.as_deref(), expected, "{what}");
        let told = target.unwrap_or_default();
        assert!(!told.contains("hush") && !told.contains("us3r"), "{what}: {told}");
    }

    #[cfg(all(feature = "tcp", unix, feature = "unix"))]
    #[test]
    fn sockets_tell_their_address_or_path() {
        use millpond::backends::{tcp::TcpManager, unix::UnixManager};
        use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

        let addresses: [SocketAddr; 2] =
            [([10, 0, 0, 1], 80).into(), (Ipv6Addr::LOCALHOST, 80).into()];
        let leaked: &'static [SocketAddr] = Box::leak(Box::new(addresses));
        macro_rules! tcp {
            ($address:expr, $expected:expr) => {
                tells(stringify!($address), Some(TcpManager::new($address)), $expected)
            };
        }
        tcp!("cache.internal:6379", Some("cache.internal:6379"));
        tcp!(String::from("[::1]:6379"), Some("[::1]:6379"));
        tcp!(addresses[0], Some("10.0.0.1:80"));
        tcp!(addresses[1], Some("[::1]:80"));
        tcp!(leaked, Some("10.0.0.1:80,[::1]:80"));
        tcp!(("cache", 80), Some("cache:80"));
        tcp!((String::from("::1"), 80), Some("[::1]:80"));
        tcp!((Ipv4Addr::LOCALHOST, 80), Some("127.0.0.1:80"));
        tcp!((Ipv6Addr::LOCALHOST, 80), Some("[::1]:80"));
        tcp!("us3r:hush@cache:80", None);
        tcp!("redis://us3r:hush@cache:80", None);
        tcp!("", None);
        let path = "/run/service/control.sock";
        tells(path, Some(UnixManager::new(path)), Some(path));
    }

    #[cfg(feature = "postgres")]
    #[test]
    fn postgres_tells_all_its_hosts() {
        use millpond::backends::postgres::PostgresManager;

        for (url, expected) in [
            ("postgresql://us3r:hush@db.internal/app", Some("db.internal:5432")),
            ("postgresql://us3r:hu%73h%40@db:6432/app", Some("db:6432")),
            ("postgresql://db/app?user=us3r&password=hush", Some("db:5432")),
            ("postgresql://us3r:hush@[::1]:5433/app", Some("[::1]:5433")),
            (
                "postgresql://us3r:hush@db1,db2:5433/app?load_balance_hosts=random",
                Some("db1:5432,db2:5433"),
            ),
            (
                "postgresql://us3r:hush@%2Frun%2Fpostgresql/app",
                Some("/run/postgresql/.s.PGSQL.5432"),
            ),
            (
                "host=/run/postgresql,db port=5433 user=us3r password=hush",
                Some("/run/postgresql/.s.PGSQL.5433,db:5433"),
            ),
            ("host=db hostaddr=10.0.0.7 user=us3r", Some("db:5432")),
            ("hostaddr=10.0.0.7 user=us3r", Some("10.0.0.7:5432")),
            // The first `@` ends a password.
            ("postgresql://us3r:x@hush@db/app", None),
            ("user=us3r password=hush", None),
        ] {
            tells(url, PostgresManager::from_url(url).ok(), expected);
        }
        // What `from_url` would refuse.
        let split = "postgresql://us3r:x@hush/x@db/app";
        let config: tokio_postgres::Config = split.parse().unwrap();
        tells(split, Some(PostgresManager::new(config)), None);
        let of = |host| {
            PostgresManager::from_url("postgresql://us3r:hush@db1,db2/app")
                .unwrap()
                .only(host, 5433)
        };
        tells("only", Some(of("db2").certificate_name("db.internal")), Some("db2:5433"));
        tells("only", Some(of("::1")), Some("[::1]:5433"));
        tells("only", Some(of("/run/db")), Some("/run/db/.s.PGSQL.5433"));
    }

    #[cfg(feature = "redis")]
    #[test]
    fn redis_tells_its_host_or_socket() {
        use millpond::backends::redis::RedisManager;

        for (url, expected) in [
            ("redis://us3r:hush@cache.internal/2", Some("cache.internal:6379")),
            ("redis://:hu%73h%40@cache:6380", Some("cache:6380")),
            ("redis://us3r:hush@[::1]:6380/0?protocol=resp3", Some("[::1]:6380")),
            ("redis+unix:///run/redis.sock?user=us3r&pass=hush", Some("/run/redis.sock")),
            ("redis://us3r:1/hush@cache", None),
        ] {
            tells(url, RedisManager::new(url).ok(), expected);
        }
    }

    #[cfg(feature = "mysql")]
    #[test]
    fn mysql_tells_its_host_or_socket() {
        use millpond::backends::mysql::MysqlManager;
        use mysql_async::OptsBuilder;

        for (url, expected) in [
            ("mysql://us3r:hush@db.internal/app", Some("db.internal:3306")),
            ("mysql://us3r:hu%73h%40@db:3307/app?prefer_socket=false", Some("db:3307")),
            ("mysql://us3r:hush@[::1]:3307/app", Some("[::1]:3307")),
            ("mysql://us3r:hush@localhost/app?socket=%2Frun%2Fmysql.sock", Some("/run/mysql.sock")),
            ("mysql://us3r:1/hush@db", None),
            ("mysql://us3r:12#hush@db/app", None),
            ("mysql://us3r:1/x/hush@db/app", None),
        ] {
            tells(url, MysqlManager::from_url(url).ok(), expected);
        }
        let opts =
            OptsBuilder::default().ip_or_hostname("db").user(Some("us3r")).pass(Some("hush"));
        tells("options", Some(MysqlManager::new(opts)), Some("db:3306"));
    }

    #[cfg(feature = "pg-wired")]
    #[test]
    fn pg_wired_tells_its_address() {
        use millpond::backends::pg_wired::{Options, PgWiredManager};

        for (url, expected) in [
            ("postgresql://us3r:hush@db.internal/app", Some("db.internal:5432")),
            ("postgresql://us3r:hu%73h%40@db:5433/app", Some("db:5433")),
            ("postgresql://us3r:hush@[::1]/app", Some("[::1]:5432")),
            ("postgresql://us3r:1/hush@db/app", None),
        ] {
            let manager = PgWiredManager::from_url(url).ok();
            tells(url, manager.clone().map(PgWiredManager::raw), expected);
            tells(url, manager, expected);
        }
        let options = |address| PgWiredManager::new(Options::new(address, "us3r", "app"));
        tells("options", Some(options("us3r:hush@db:5432")), None);
    }

    #[cfg(feature = "sqlx")]
    #[test]
    fn sqlx_tells_where_a_url_leads() {
        use millpond::backends::sqlx::SqlxManager;
        use sqlx::postgres::PgConnectOptions;

        for (url, expected) in [
            ("postgres://us3r:hush@db.internal:5432/app", Some("db.internal:5432")),
            ("postgres://us3r:hu%73h%40@db/app", Some("db")),
            ("postgres://us3r:hush@[::1]:5433/app", Some("[::1]:5433")),
            ("postgres:///app?host=db&port=5433&user=us3r&password=hush", Some("db:5433")),
            ("postgres://us3r:hush@%2Frun%2Fpostgresql/app", Some("/run/postgresql")),
            ("postgres:///app?host=/run/postgresql&password=hush", Some("/run/postgresql")),
            ("postgres://us3r:1/hush@db", None),
            ("postgres://us3r:12#hush@db/app", None),
            ("postgres://us3r:12?hush@db/app", None),
            ("postgres:///app", None),
        ] {
            tells(url, SqlxManager::<sqlx::Postgres>::from_url(url).ok(), expected);
        }
        let options = PgConnectOptions::new().host("::1").username("us3r").password("hush");
        tells("options", Some(SqlxManager::<sqlx::Postgres>::new(options)), None);
    }

    #[cfg(feature = "sqlite")]
    #[test]
    fn sqlite_tells_its_path() {
        use millpond::backends::sqlite::SqliteManager;

        for (path, expected) in [
            ("/var/lib/shop.db", "/var/lib/shop.db"),
            ("why?.db", "why?.db"),
            ("file:/var/lib/shop.db?mode=rw&key=hush", "file:/var/lib/shop.db"),
        ] {
            tells(path, Some(SqliteManager::new(path)), Some(expected));
        }
    }
}
