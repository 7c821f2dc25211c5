//! The status page's paths, without a browser: what each answers, to whom, and what it costs.

#![cfg(feature = "axum")]
#![allow(clippy::unwrap_used, reason = "these are tests, though clippy only sees their helpers")]

mod support;
use support::*;

use axum::Router;
use axum::body::{Body, BodyDataStream, to_bytes};
use axum::extract::State;
use axum::http::{Method, Request, StatusCode};
use axum::response::Response;
use axum::routing::get;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use futures_util::{FutureExt, StreamExt};
use millpond::export::prometheus;
use millpond::web::{self, StatusPage};
use millpond::{Holder, Monitor, Pool, PoolStatus, Source};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tower::ServiceExt;

const SECOND: Duration = Duration::from_secs(1);
const PAGE: &str = include_str!("../src/web/page.html");

/// A pool of this name that is looked at.
fn watched(monitor: &Monitor, name: &str, max_size: usize) -> (TestManager, Pool<TestManager>) {
    let manager = TestManager::new();
    let pool = Pool::builder(manager.clone()).name(name).max_size(max_size).build_lazy().unwrap();
    monitor.add(&pool).unwrap();
    (manager, pool)
}

async fn ask(app: &Router, method: Method, path: &str) -> Response {
    let request = Request::builder().method(method).uri(path).body(Body::empty()).unwrap();
    app.clone().oneshot(request).await.unwrap()
}

async fn fetch(app: &Router, path: &str) -> Response {
    ask(app, Method::GET, path).await
}

async fn text(response: Response) -> String {
    let bytes = to_bytes(response.into_body(), 1 << 20).await.unwrap();
    String::from_utf8(bytes.to_vec()).unwrap()
}

async fn status(app: &Router) -> Value {
    serde_json::from_str(&text(fetch(app, "/status").await).await).unwrap()
}

fn header_of<'r>(response: &'r Response, name: &str) -> &'r str {
    response.headers().get(name).map_or("", |value| value.to_str().unwrap())
}

/// A viewer of the events.
struct Viewer(BodyDataStream);

impl Viewer {
    async fn of(app: &Router) -> Self {
        let response = fetch(app, "/events").await;
        assert_eq!(response.status(), StatusCode::OK);
        Self(response.into_body().into_data_stream())
    }

    /// The next event's data; `None` at the end.
    async fn next(&mut self) -> Option<Value> {
        let event = loop {
            let event = self.0.next().await?.unwrap();
            // A comment is for those in between.
            if event != ":\n\n" {
                break event;
            }
        };
        let event = std::str::from_utf8(&event).unwrap();
        let data = event.strip_prefix("data: ").unwrap().strip_suffix("\n\n").unwrap();
        assert!(!data.contains('\n'), "an event is one line");
        Some(serde_json::from_str(data).unwrap())
    }
}

/// Counts how often it is looked at.
struct Counting {
    looks: Arc<AtomicUsize>,
    pool: Pool<TestManager>,
}

impl Source for Counting {
    fn name(&self) -> String {
        "counted".to_owned()
    }

    fn status(&self) -> Option<PoolStatus> {
        self.looks.fetch_add(1, Ordering::SeqCst);
        Some(self.pool.status())
    }

    fn holders(&self) -> Vec<Holder> {
        self.pool.holders()
    }
}

fn counted(page: impl FnOnce(StatusPage) -> StatusPage) -> (Router, Arc<AtomicUsize>) {
    let pool = Pool::builder(TestManager::new()).build_lazy().unwrap();
    let (monitor, looks) = (Monitor::new(), Arc::<AtomicUsize>::default());
    monitor.add_source(Counting { looks: looks.clone(), pool }).unwrap();
    (page(StatusPage::new(&monitor)).router(), looks)
}

// ---- paths and headers ----

#[tokio::test(start_paused = true)]
async fn each_path_says_what_it_is_and_is_kept_by_nobody() {
    let monitor = Monitor::new();
    let (_, _pool) = watched(&monitor, "orders", 1);
    let app = web::router(&monitor);
    for (path, content_type) in [
        ("/", "text/html; charset=utf-8"),
        ("/status", "application/json"),
        ("/metrics", prometheus::CONTENT_TYPE),
        ("/health", "text/plain; charset=utf-8"),
        ("/events", "text/event-stream"),
    ] {
        let response = fetch(&app, path).await;
        assert_eq!(response.status(), StatusCode::OK, "{path}");
        assert_eq!(header_of(&response, "content-type"), content_type, "{path}");
        assert_eq!(header_of(&response, "cache-control"), "no-store", "{path}");
        assert_eq!(header_of(&response, "x-content-type-options"), "nosniff", "{path}");
        assert_eq!(header_of(&response, "access-control-allow-origin"), "", "{path}");
        let refused = ask(&app, Method::POST, path).await;
        assert_eq!(refused.status(), StatusCode::METHOD_NOT_ALLOWED, "{path}");
    }
    assert_eq!(fetch(&app, "/elsewhere").await.status(), StatusCode::NOT_FOUND);
}

/// What is between the tags of the page's only element of this name, as a browser hashes it.
fn hash_of(tag: &str) -> String {
    let parts: Vec<&str> = PAGE.split(&format!("<{tag}>")).collect();
    assert_eq!(parts.len(), 2, "there is one <{tag}>");
    let (content, _) = parts[1].split_once(&format!("</{tag}>")).unwrap();
    format!("'sha256-{}'", BASE64.encode(Sha256::digest(content)))
}

#[tokio::test]
async fn the_page_may_run_and_wear_its_own_and_nothing_else() {
    let response = fetch(&web::router(&Monitor::new()), "/").await;
    assert_eq!(header_of(&response, "referrer-policy"), "no-referrer");
    let policy = header_of(&response, "content-security-policy").to_owned();
    let mut rules: Vec<&str> = policy.split("; ").collect();
    rules.sort_unstable();
    let (script, style) = (hash_of("script"), hash_of("style"));
    let expected = [
        "base-uri 'none'",
        "connect-src 'self'",
        "default-src 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "img-src data:",
        "require-trusted-types-for 'script'",
        &format!("script-src {script}"),
        &format!("style-src {style}"),
        "trusted-types 'none'",
    ];
    assert_eq!(rules, expected);
    let page = text(response).await;
    assert_eq!(page, PAGE);
    for outside in
        ["src=", "@import", "url(", "<link rel=\"stylesheet\"", "href=\"http", "href=\"/"]
    {
        assert!(!page.contains(outside), "{outside}");
    }
}

#[tokio::test]
async fn it_is_nested_wherever_a_service_wants_it() {
    async fn greet(State(greeting): State<&'static str>) -> &'static str {
        greeting
    }
    let monitor = Monitor::new();
    let found = async |app: &Router, path: &str| fetch(app, path).await.status() == StatusCode::OK;

    let app = Router::new()
        .route("/", get(greet))
        .nest("/pools", web::router(&monitor))
        .with_state("a service with a state of its own");
    assert!(found(&app, "/pools").await && found(&app, "/pools/status").await);
    assert_eq!(text(fetch(&app, "/").await).await, "a service with a state of its own");

    let app = Router::new().nest("/admin/pools/", web::router(&monitor));
    assert!(found(&app, "/admin/pools/").await && found(&app, "/admin/pools/status").await);

    let app = Router::new().nest_service("/pools", web::router(&monitor));
    for path in ["/pools", "/pools/", "/pools/status", "/pools/health", "/pools/events"] {
        assert!(found(&app, path).await, "{path}");
    }
    let app: Router = Router::new().merge(web::router(&monitor));
    assert!(found(&app, "/").await && found(&app, "/status").await);
}

// ---- figures ----

#[tokio::test(start_paused = true)]
async fn status_has_all_that_the_pools_tell() {
    let monitor = Monitor::new();
    let (manager, orders) = watched(&monitor, "orders", 3);
    let (_, carts) = watched(&monitor, "<b>\"x\"</b>\n", 1);
    let app = web::router(&monitor);
    let first = orders.acquire().await.unwrap();
    let line = line!() - 1;
    tokio::time::sleep(3 * SECOND).await;
    let _second = orders.acquire().await.unwrap();
    orders.acquire().await.unwrap().discard();
    eventually("it is closed", || orders.metrics().counts.closing == 0).await;
    manager.connect.always(Act::Error);
    orders.acquire_timeout(SECOND).await.map(drop).unwrap_err();

    let told = status(&app).await;
    assert_eq!(told["millpond"], env!("CARGO_PKG_VERSION"));
    let [told_orders, told_carts] = told["pools"].as_array().unwrap().as_slice() else {
        panic!("two pools, not {told}")
    };
    assert_eq!(told_carts["name"], "<b>\"x\"</b>\n");
    assert_eq!(told_carts["metrics"], json!(carts.metrics()));
    // No time passes here.
    let own = orders.status();
    assert_eq!(told_orders["name"], "orders");
    assert_eq!(told_orders["cluster"], Value::Null);
    assert_eq!(told_orders["health"], json!(own.health));
    assert_eq!(told_orders["reasons"], json!(["connecting fails: scripted connect error"]));
    assert_eq!(told_orders["max_size"], 3);
    assert_eq!(told_orders["metrics"], json!(own.metrics));
    assert_eq!(told_orders["metrics"]["closed"]["discarded"], 1);
    assert_eq!(told_orders["config"], json!(own.config));
    let holders = told_orders["holders"].as_array().unwrap();
    assert_eq!(holders.len(), 2);
    assert_eq!(holders[0]["connection"], first.info().id, "who has held longest is first");
    assert!(holders[0]["held_seconds"].as_f64().unwrap() >= 3.0, "{holders:?}");
    let site = format!("tests/web.rs:{line}:");
    assert!(holders[0]["site"].as_str().unwrap().starts_with(&site), "{holders:?}");
}

#[cfg(feature = "cluster")]
#[tokio::test(start_paused = true)]
async fn a_node_tells_its_cluster_and_the_role_that_it_has_now() {
    use millpond::cluster::{Cluster, NodeOptions, Role};
    let monitor = Monitor::new();
    let cluster = Cluster::builder().name("shop").build().unwrap();
    monitor.add_cluster(&cluster).unwrap();
    cluster.add_node("db1", TestManager::new()).unwrap();
    let app = web::router(&monitor);
    let mut viewer = Viewer::of(&app).await;
    for (role, word) in
        [(Role::Unknown, "unknown"), (Role::Primary, "primary"), (Role::Replica, "replica")]
    {
        cluster.set_options("db1", NodeOptions::default().role(role)).unwrap();
        let own = json!({ "name": "shop", "node": "db1", "role": word });
        for told in [status(&app).await, viewer.next().await.unwrap()] {
            assert_eq!(told["pools"][0]["name"], "shop/db1");
            assert_eq!(told["pools"][0]["cluster"], own);
        }
    }
}

#[cfg(feature = "cluster")]
#[tokio::test(start_paused = true)]
async fn a_group_is_told_of_with_its_pools_and_the_health_that_a_probe_goes_by() {
    use millpond::cluster::Cluster;
    let monitor = Monitor::new();
    let (_, _plain) = watched(&monitor, "plain", 1);
    let cluster = Cluster::builder().name("shop").build().unwrap();
    monitor.add_cluster(&cluster).unwrap();
    let app = web::router(&monitor);
    let mut viewer = Viewer::of(&app).await;
    let none = json!({
        "name": "shop", "health": "down", "reasons": ["there are no nodes"], "pools": [],
    });
    for told in [status(&app).await, viewer.next().await.unwrap()] {
        assert_eq!(told["groups"], json!([none]));
    }
    cluster.add_node("db1", TestManager::new()).unwrap();
    let one = json!({ "name": "shop", "health": "healthy", "reasons": [], "pools": ["shop/db1"] });
    for told in [status(&app).await, viewer.next().await.unwrap()] {
        assert_eq!(told["groups"], json!([one]));
    }
}

#[tokio::test(start_paused = true)]
async fn metrics_are_those_that_the_exporter_tells() {
    let monitor = Monitor::new();
    let (_, orders) = watched(&monitor, "orders", 3);
    let app = web::router(&monitor);
    let _held = orders.acquire().await.unwrap();
    let told = text(fetch(&app, "/metrics").await).await;
    // No time passes here.
    assert_eq!(told, prometheus::text(&monitor));
    let in_use = r#"millpond_connections{pool="orders",state="in_use"} 1"#;
    assert!(told.contains(in_use), "{told}");
}

#[tokio::test(start_paused = true)]
async fn a_pool_that_is_gone_is_not_told_of() {
    let monitor = Monitor::new();
    let (_, orders) = watched(&monitor, "orders", 1);
    let app = web::router(&monitor);
    let mut viewer = Viewer::of(&app).await;
    assert_eq!(viewer.next().await.unwrap()["pools"].as_array().unwrap().len(), 1);
    drop(orders);
    assert_eq!(viewer.next().await.unwrap()["pools"], json!([]));
    assert_eq!(status(&app).await["pools"], json!([]));
    assert_eq!(text(fetch(&app, "/health").await).await, "");
}

#[tokio::test(start_paused = true)]
async fn a_service_that_gets_no_traffic_while_it_is_down_is_ready_again_when_the_server_is() {
    let monitor = Monitor::new();
    let (manager, orders) = watched(&monitor, "orders", 2);
    let app = web::router(&monitor);
    let is_ready = async || fetch(&app, "/health").await.status() == StatusCode::OK;
    manager.connect.always(Act::Error);
    orders.acquire_timeout(SECOND).await.map(drop).unwrap_err();
    assert!(!is_ready().await);
    manager.clear();
    tokio::time::sleep(10 * SECOND).await;
    assert!(is_ready().await, "whoever balances the load sends it traffic again");
}

#[tokio::test(start_paused = true)]
async fn health_is_503_while_a_pool_is_down_and_200_when_it_is_merely_degraded() {
    let monitor = Monitor::new();
    let (_, _carts) = watched(&monitor, "carts", 1);
    let (manager, orders) = watched(&monitor, "orders", 2);
    let app = web::router(&monitor);
    let health = async || {
        let response = fetch(&app, "/health").await;
        (response.status().as_u16(), text(response).await)
    };
    assert_eq!(health().await, (200, "carts: healthy\norders: healthy\n".to_owned()));

    let held = orders.acquire().await.unwrap();
    manager.connect.always(Act::Error);
    orders.acquire_timeout(SECOND).await.map(drop).unwrap_err();
    let why = "connecting fails: scripted connect error";
    assert_eq!(health().await, (200, format!("carts: healthy\norders: degraded: {why}\n")));

    held.discard();
    eventually("it is closed", || orders.metrics().counts.alive() == 0).await;
    assert_eq!(health().await, (503, format!("carts: healthy\norders: down: {why}\n")));

    manager.clear();
    drop(orders.acquire().await.unwrap());
    assert_eq!(health().await.0, 200);
    orders.close().await;
    let closed = (503, "carts: healthy\norders: down: the pool is closed\n".to_owned());
    assert_eq!(health().await, closed);
}

#[cfg(feature = "cluster")]
#[tokio::test(start_paused = true)]
async fn health_is_200_while_a_node_of_a_cluster_is_up_and_503_when_none_is() {
    use millpond::cluster::Cluster;
    let monitor = Monitor::new();
    let cluster: Cluster<String, TestManager> = Cluster::builder().name("shop").build().unwrap();
    monitor.add_cluster(&cluster).unwrap();
    let app = web::router(&monitor);
    let health = async || {
        let response = fetch(&app, "/health").await;
        (response.status().as_u16(), text(response).await)
    };
    assert!(!cluster.status().health.is_up());
    assert_eq!(health().await, (503, "shop: down: there are no nodes\n".to_owned()));

    let nodes = ["a", "b", "c"];
    let managers = nodes.map(|key| {
        let manager = TestManager::new();
        cluster.add_node(key.to_owned(), manager.clone()).unwrap();
        manager
    });
    let all_well = "shop: healthy\nshop/a: healthy\nshop/b: healthy\nshop/c: healthy\n";
    assert_eq!(health().await, (200, all_well.to_owned()));

    let down = "down: connecting fails: scripted connect error";
    managers[1].connect.always(Act::Error);
    cluster.acquire("b").await.map(drop).unwrap_err();
    assert!(cluster.status().health.is_up());
    let one_down = format!(
        "shop: degraded: node b is {down}\nshop/a: healthy\nshop/b: {down}\nshop/c: healthy\n"
    );
    assert_eq!(health().await, (200, one_down));

    for (key, manager) in nodes.into_iter().zip(&managers) {
        manager.connect.always(Act::Error);
        cluster.acquire(key).await.map(drop).unwrap_err();
    }
    assert_eq!(health().await.0, 503);
    managers.iter().for_each(TestManager::clear);
    while cluster.acquire("c").await.is_err() {
        tokio::time::sleep(SECOND).await;
    }
    assert_eq!(health().await.0, 200);
    cluster.close().await;
    assert!(!cluster.status().health.is_up());
    let (code, lines) = health().await;
    assert_eq!((code, lines.lines().next()), (503, Some("shop: down: the cluster is closed")));
    drop(cluster);
    assert_eq!(health().await, (200, String::new()), "it is not there any more");
}

#[tokio::test]
async fn no_name_looks_like_a_line_of_its_own() {
    let monitor = Monitor::new();
    let (_, _pool) = watched(&monitor, "a\nb: down\r", 1);
    let lines = text(fetch(&web::router(&monitor), "/health").await).await;
    assert_eq!(lines, "a\\nb: down\\r: healthy\n");
}

// ---- events ----

#[tokio::test(start_paused = true)]
async fn events_come_at_once_and_then_at_each_interval_with_what_happened_lately() {
    let monitor = Monitor::new();
    let (_, pool) = watched(&monitor, "orders", 2);
    let app = StatusPage::new(&monitor).interval(2 * SECOND).router();
    let began = tokio::time::Instant::now();
    let mut viewer = Viewer::of(&app).await;
    let first = viewer.next().await.unwrap();
    assert_eq!(began.elapsed(), Duration::ZERO);
    assert_eq!(first["interval_seconds"], 2.0);
    assert_eq!(first["pools"][0].get("recent"), None);

    for _ in 0..30 {
        drop(pool.acquire().await.unwrap());
    }
    let held = (pool.acquire().await.unwrap(), pool.acquire().await.unwrap());
    pool.acquire_timeout(SECOND).await.map(drop).unwrap_err();
    let second = viewer.next().await.unwrap();
    assert_eq!(began.elapsed().as_secs(), 2);
    let told = &second["pools"][0];
    assert_eq!(told["metrics"], json!(pool.metrics()));
    assert_eq!(told["holders"].as_array().unwrap().len(), 2);
    let recent = &told["recent"];
    let rate = recent["acquires_per_second"].as_f64().unwrap();
    assert!((rate - 16.0).abs() < 0.1, "32 in 2 s, not {rate} a second");
    assert_eq!(recent["acquire_wait"]["count"], 32);
    assert_eq!(recent["failed_acquires"], 1);
    drop(held);

    // Ten intervals on, what was before is not recent any more.
    for _ in 0..9 {
        assert_eq!(viewer.next().await.unwrap()["pools"][0]["recent"]["acquire_wait"]["count"], 32);
    }
    let later = viewer.next().await.unwrap();
    let recent = &later["pools"][0]["recent"];
    assert_eq!(
        (&recent["acquires_per_second"], &recent["failed_acquires"]),
        (&json!(0.0), &json!(0))
    );
    assert!((recent["seconds"].as_f64().unwrap() - 20.0).abs() < 0.1, "{recent}");
    assert_eq!(later["pools"][0]["metrics"]["acquires"], 32);
}

/// The page calls them live.
#[tokio::test(start_paused = true)]
async fn whoever_comes_late_in_a_long_interval_is_shown_how_things_are_now() {
    let monitor = Monitor::new();
    let (_, pool) = watched(&monitor, "orders", 2);
    let app = StatusPage::new(&monitor).interval(1000 * SECOND).router();
    let mut early = Viewer::of(&app).await;
    early.next().await.unwrap();
    drop(pool.acquire().await.unwrap());
    let acquires = |event: &Value| event["pools"][0]["metrics"]["acquires"].as_u64().unwrap();
    for _ in 0..20 {
        tokio::time::sleep(40 * SECOND).await;
        drop(pool.acquire().await.unwrap());
        let event = Viewer::of(&app).await.next().await.unwrap();
        assert_eq!(acquires(&event), pool.metrics().acquires);
    }
    // Those looks in between are no intervals.
    let event = early.next().await.unwrap();
    assert_eq!(acquires(&event), 21);
    assert_eq!(event["pools"][0]["recent"]["acquire_wait"]["count"], 21);
}

/// A proxy cuts what has been silent for a minute or so, and whoever is out of reach is found out by that.
#[tokio::test(start_paused = true)]
async fn a_comment_each_15_seconds_keeps_a_stream_open_between_two_events() {
    let (app, looks) = counted(|page| page.interval(40 * SECOND));
    looks.store(0, Ordering::SeqCst);
    let began = tokio::time::Instant::now();
    let mut stream = fetch(&app, "/events").await.into_body().into_data_stream();
    for (seconds, is_event) in
        [(0, true), (15, false), (30, false), (40, true), (55, false), (70, false), (80, true)]
    {
        let told = stream.next().await.unwrap().unwrap();
        assert_eq!(began.elapsed().as_secs(), seconds);
        match is_event {
            true => assert!(told.starts_with(b"data: {"), "{told:?}"),
            false => assert_eq!(told, ":\n\n"),
        }
    }
    assert_eq!(looks.load(Ordering::SeqCst), 3, "a comment costs no look");
}

#[tokio::test(start_paused = true)]
async fn what_was_seen_before_a_long_time_without_viewers_is_not_recent() {
    let monitor = Monitor::new();
    let (_, _pool) = watched(&monitor, "orders", 1);
    let app = web::router(&monitor);
    let mut viewer = Viewer::of(&app).await;
    viewer.next().await.unwrap();
    drop(viewer);
    tokio::time::sleep(60 * SECOND).await;
    let event = Viewer::of(&app).await.next().await.unwrap();
    assert_eq!(event["pools"][0].get("recent"), None);
}

#[tokio::test(start_paused = true)]
async fn another_pool_of_the_same_name_does_not_go_on_with_the_figures_of_the_first() {
    let monitor = Monitor::new();
    let (_, pool) = watched(&monitor, "orders", 1);
    let app = web::router(&monitor);
    drop(pool.acquire().await.unwrap());
    let mut viewer = Viewer::of(&app).await;
    viewer.next().await.unwrap();
    drop(pool);
    let (_, _another) = watched(&monitor, "orders", 1);
    assert_eq!(viewer.next().await.unwrap()["pools"][0].get("recent"), None);
    let event = viewer.next().await.unwrap();
    assert_eq!(event["pools"][0]["recent"]["acquires_per_second"], 0.0);
}

#[tokio::test(start_paused = true)]
async fn another_pool_of_the_same_name_that_has_done_more_does_not_go_on_with_them_either() {
    let monitor = Monitor::new();
    let (_, pool) = watched(&monitor, "orders", 1);
    let app = web::router(&monitor);
    let held = pool.acquire().await.unwrap();
    pool.acquire_timeout(SECOND).await.map(drop).unwrap_err();
    let release = async {
        tokio::time::sleep(SECOND).await;
        drop(held);
    };
    drop(tokio::join!(pool.acquire(), release).0.unwrap());
    let mut viewer = Viewer::of(&app).await;
    viewer.next().await.unwrap();
    drop(pool);
    let (_, another) = watched(&monitor, "orders", 1);
    for _ in 0..100 {
        drop(another.acquire().await.unwrap());
    }
    assert_eq!(viewer.next().await.unwrap()["pools"][0].get("recent"), None);
    drop(another.acquire().await.unwrap());
    let event = viewer.next().await.unwrap();
    assert_eq!(event["pools"][0]["recent"]["acquire_wait"]["count"], 1);
}

#[tokio::test(start_paused = true)]
async fn a_large_pool_has_all_holders_in_its_status_and_the_longest_in_events() {
    let monitor = Monitor::new();
    let (_, pool) = watched(&monitor, "orders", 50);
    let app = web::router(&monitor);
    let mut held = vec![pool.acquire().await.unwrap()];
    tokio::time::sleep(3 * SECOND).await;
    while held.len() < 50 {
        held.push(pool.acquire().await.unwrap());
    }
    assert_eq!(status(&app).await["pools"][0]["holders"].as_array().unwrap().len(), 50);
    let event = Viewer::of(&app).await.next().await.unwrap();
    let holders = event["pools"][0]["holders"].as_array().unwrap();
    assert_eq!(holders.len(), 20);
    assert_eq!(holders[0]["connection"], held[0].info().id);
}

#[tokio::test(start_paused = true)]
async fn all_viewers_share_one_look_and_nobody_looks_for_nobody() {
    let (app, looks) = counted(|page| page);
    let looked = || looks.swap(0, Ordering::SeqCst);
    looked();
    let mut viewers = Vec::new();
    for _ in 0..100 {
        viewers.push(Viewer::of(&app).await);
    }
    for _ in 0..5 {
        for viewer in &mut viewers {
            viewer.next().await.unwrap();
        }
        assert_eq!(looked(), 1);
    }
    drop(viewers);
    tokio::time::sleep(600 * SECOND).await;
    assert_eq!(looked(), 0);
}

#[tokio::test(start_paused = true)]
async fn new_viewers_cost_no_more_than_a_look_a_second() {
    let (app, looks) = counted(|page| page.interval(1000 * SECOND));
    for seconds in 1..=3 {
        for _ in 0..10 {
            Viewer::of(&app).await.next().await.unwrap();
        }
        assert_eq!(looks.load(Ordering::SeqCst), seconds);
        tokio::time::sleep(SECOND).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_viewer_who_reads_slowly_gets_the_present_and_no_backlog() {
    let (app, looks) = counted(|page| page);
    let mut viewer = Viewer::of(&app).await;
    viewer.next().await.unwrap();
    looks.store(0, Ordering::SeqCst);
    tokio::time::sleep(100 * SECOND).await;
    viewer.next().await.unwrap();
    assert_eq!(looks.load(Ordering::SeqCst), 1, "nothing was worked out meanwhile");
    let began = tokio::time::Instant::now();
    viewer.next().await.unwrap();
    assert!(began.elapsed() >= SECOND / 2, "the next one is not there yet");
}

#[tokio::test(start_paused = true)]
async fn an_interval_is_kept_within_its_range() {
    for (asked, kept) in [(Duration::ZERO, 0.1), (Duration::MAX, 3600.0), (SECOND * 7, 7.0)] {
        let (app, _) = counted(|page| page.interval(asked));
        let event = Viewer::of(&app).await.next().await.unwrap();
        assert_eq!(event["interval_seconds"], kept);
    }
}

#[tokio::test(start_paused = true)]
async fn all_streams_end_when_the_service_is_told_to_stop() {
    let (stop, stopped) = oneshot::channel();
    let (app, _) = counted(|page| page.until(stopped.map(drop)));
    let (mut one, mut other) = (Viewer::of(&app).await, Viewer::of(&app).await);
    assert!(one.next().await.is_some() && other.next().await.is_some());
    let waiting = tokio::spawn(async move { one.next().await });
    stop.send(()).unwrap();
    let began = tokio::time::Instant::now();
    assert_eq!(joined(waiting).await, None);
    assert_eq!(other.next().await, None);
    assert_eq!(Viewer::of(&app).await.next().await, None);
    assert_eq!(began.elapsed(), Duration::ZERO, "they end at once");
    assert_eq!(fetch(&app, "/status").await.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_server_with_viewers_ends_in_an_orderly_way() {
    let (stop, stopped) = oneshot::channel::<()>();
    let over = stopped.map(drop).shared();
    let (page, _) = counted(|page| page.until(over.clone()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let app = Router::new().nest("/pools", page);
    let serve = axum::serve(listener, app).with_graceful_shutdown(over);
    let serve = tokio::spawn(serve.into_future());

    let mut viewer = TcpStream::connect(address).await.unwrap();
    viewer.write_all(b"GET /pools/events HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let mut heard = Vec::new();
    while !String::from_utf8_lossy(&heard).contains("\n\n") {
        assert_ne!(viewer.read_buf(&mut heard).await.unwrap(), 0);
    }
    stop.send(()).unwrap();
    let end = tokio::time::timeout(PATIENCE, viewer.read_to_end(&mut heard));
    end.await.expect("the stream ends").unwrap();
    assert!(heard.ends_with(b"0\r\n\r\n"), "it ends as it should");
    joined(serve).await.unwrap();
}

#[test]
fn its_settings_are_told() {
    let page = format!("{:?}", StatusPage::new(&Monitor::new()).interval(2 * SECOND));
    assert_eq!(page, "StatusPage { monitor: [], interval: 2s, .. }");
}
