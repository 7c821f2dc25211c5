//! The status page in a real browser: that it shows what is, as text, to everybody, at any width, and
//! that it knows when it does not.
//!
//! `scripts/screenshots` has one of these tests write the pictures of the README.

#![cfg(all(unix, feature = "axum", feature = "cluster"))]
#![allow(clippy::unwrap_used, reason = "these are tests, though clippy only sees their helpers")]

mod support;
use support::*;

use axum::Router;
use axum::http::Method;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use fantoccini::actions::{InputSource, KeyAction, KeyActions};
use fantoccini::key::Key;
use fantoccini::wd::WebDriverCompatibleCommand;
use fantoccini::{Client, ClientBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use millpond::cluster::{Cluster, NodeOptions, Policy, Role};
use millpond::web::StatusPage;
use millpond::{Holder, Monitor, Pool, PoolStatus, Source, from_fn};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

const INTERVAL: Duration = Duration::from_millis(200);

// ---- the service ----

/// A service with the page at `/pools`, which can be ended like a process: at once, and with all of its
/// connections.
struct Service {
    address: SocketAddr,
    runtime: Option<Runtime>,
}

impl Service {
    fn start(monitor: &Monitor) -> Self {
        let page = StatusPage::new(monitor).interval(INTERVAL);
        Self::at("127.0.0.1:0".parse().unwrap(), Router::new().nest("/pools", page.router()))
    }

    fn at(address: SocketAddr, app: Router) -> Self {
        let runtime = Runtime::new().unwrap();
        let listener = {
            // A port that has just been left may be taken again.
            let _entered = runtime.enter();
            let socket = tokio::net::TcpSocket::new_v4().unwrap();
            socket.set_reuseaddr(true).unwrap();
            socket.bind(address).unwrap();
            socket.listen(64).unwrap()
        };
        let address = listener.local_addr().unwrap();
        runtime.spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { address, runtime: Some(runtime) }
    }

    fn url(&self) -> String {
        format!("http://{}/pools", self.address)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.runtime.take().unwrap().shutdown_background();
    }
}

// ---- the browser ----

/// One window, and what is said to it.
struct Window {
    client: Client,
}

/// A command that only Chromium's driver knows.
#[derive(Debug)]
struct Chromes {
    path: &'static str,
    body: Value,
}

impl WebDriverCompatibleCommand for Chromes {
    fn endpoint(
        &self,
        base: &url::Url,
        session: Option<&str>,
    ) -> Result<url::Url, url::ParseError> {
        base.join(&format!("session/{}/{}", session.unwrap_or_default(), self.path))
    }

    fn method_and_body(&self, _: &url::Url) -> (Method, Option<String>) {
        (Method::POST, Some(self.body.to_string()))
    }
}

impl Window {
    async fn open(browser: &Browser) -> Self {
        let wishes = json!({
            "browserName": "chrome",
            "goog:chromeOptions": { "binary": browser.chromium(), "args": browser.arguments() },
            "goog:loggingPrefs": { "browser": "ALL" },
        });
        let Value::Object(wishes) = wishes else { unreachable!("it is an object") };
        let client = ClientBuilder::new(HttpConnector::new())
            .capabilities(wishes)
            .connect(&browser.url())
            .await
            .expect("a session");
        Self { client }
    }

    async fn goto(&self, service: &Service) {
        self.client.goto(&service.url()).await.unwrap();
        self.until("document.body.classList.contains('live')").await;
    }

    /// What a function of this body returns on the page.
    async fn run(&self, body: &str) -> Value {
        self.client.execute(body, vec![]).await.unwrap_or_else(|error| panic!("{body}: {error}"))
    }

    async fn value(&self, expression: &str) -> Value {
        self.run(&format!("return {expression}")).await
    }

    async fn text(&self, selector: &str) -> String {
        let found = self.value(&format!("document.querySelector(`{selector}`)?.textContent")).await;
        found.as_str().unwrap_or_else(|| panic!("there is no {selector}")).to_owned()
    }

    /// Waits until this is true on the page.
    async fn until(&self, expression: &str) {
        let began = Instant::now();
        while self.value(expression).await != true {
            let seen = async || self.value("document.body.innerText").await;
            assert!(began.elapsed() < PATIENCE, "still not: {expression}\n{}", seen().await);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until the page says for this reason that its figures are at least so old.
    async fn until_old(&self, why: &str, seconds: u32) {
        let old = format!("/^{why} These figures are (\\d+) s old.$/");
        let age = format!("document.querySelector('#old').textContent.match({old})?.[1]");
        self.until(&format!("{age} >= {seconds}")).await;
    }

    /// Waits for figures that the service has looked up after this.
    async fn next_figures(&self) {
        self.run("window.seen = feed.heard + 1").await;
        // The second, since the first may have been on its way.
        self.until("feed.heard > window.seen").await;
        self.run("window.seen = feed.heard + 1").await;
        self.until("feed.heard > window.seen").await;
    }

    async fn devtools(&self, command: &str, parameters: Value) -> Value {
        let body = json!({ "cmd": command, "params": parameters });
        self.client.issue_cmd(Chromes { path: "goog/cdp/execute", body }).await.unwrap()
    }

    /// As on a screen of this width, for somebody who prefers `scheme`.
    async fn show_at(&self, width: u32, scheme: &str) {
        let screen = json!({
            "width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500,
        });
        self.devtools("Emulation.setDeviceMetricsOverride", screen).await;
        self.devtools("Emulation.setScrollbarsHidden", json!({ "hidden": true })).await;
        let features = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        self.devtools("Emulation.setEmulatedMedia", features).await;
    }

    /// What the browser has complained of since the last time.
    async fn complaints(&self) -> Vec<Value> {
        let body = json!({ "type": "browser" });
        let log = self.client.issue_cmd(Chromes { path: "se/log", body }).await.unwrap();
        log.as_array().unwrap().clone()
    }

    async fn press(&self, key: Key) {
        let key = char::from(key);
        let keys = KeyActions::new("keyboard".to_owned())
            .then(KeyAction::Down { value: key })
            .then(KeyAction::Up { value: key });
        self.client.perform_actions(keys).await.unwrap();
    }
}

/// A pool of this name that is looked at.
fn watched(monitor: &Monitor, name: &str, max_size: usize) -> (TestManager, Pool<TestManager>) {
    let manager = TestManager::new();
    let pool = Pool::builder(manager.clone()).name(name).max_size(max_size).build_lazy().unwrap();
    monitor.add(&pool).unwrap();
    (manager, pool)
}

type TestCluster = Cluster<String, TestManager>;

/// A cluster of this name and of these nodes that is looked at, and the managers of their pools, each of
/// two connections at most.
fn watched_cluster<const N: usize>(
    monitor: &Monitor,
    name: &str,
    nodes: [(&str, Role); N],
) -> (TestCluster, [TestManager; N]) {
    let pools = Cluster::builder().name(name).pools(|pool| pool.max_size(2));
    let cluster = pools.acquire_timeout(PATIENCE).build().unwrap();
    monitor.add_cluster(&cluster).unwrap();
    let managers = nodes.map(|(key, role)| {
        let manager = TestManager::new();
        let options = NodeOptions::default().role(role);
        cluster.add_node_with(key.to_owned(), manager.clone(), options).unwrap();
        manager
    });
    (cluster, managers)
}

/// The overview, as a list of rows that are lists of cells.
const OVERVIEW: &str = "[...document.querySelectorAll('#overview tbody tr')].map((row) => [...row.cells].map((cell) => cell.textContent))";

/// Has the page take down in `said` what it says to those who do not see it.
const LISTEN: &str = "window.said = []; new MutationObserver(() => said.push(document.querySelector('#changes').textContent)).observe(document.querySelector('#changes'), { childList: true, characterData: true, subtree: true })";

/// Nothing was said on the console.
#[track_caller]
fn silent(complaints: &[Value]) {
    assert!(complaints.is_empty(), "{complaints:?}");
}

// ---- what it shows ----

#[tokio::test(flavor = "multi_thread")]
async fn the_page_shows_the_figures_of_the_pool() {
    let Some(browser) = Browser::start() else { return };
    let monitor = Monitor::new();
    let (manager, pool) = watched(&monitor, "orders", 4);
    manager.connect.always(Act::Error);
    pool.acquire_timeout(Duration::from_millis(200)).await.map(drop).unwrap_err();
    manager.clear();
    pool.acquire().await.unwrap().discard();
    // So that there are more acquires than connections.
    drop(pool.acquire().await.unwrap());
    let mut held = Vec::new();
    for _ in 0..4 {
        held.push(pool.acquire().await.unwrap());
    }
    let line = line!() - 2;
    let waiter = tokio::spawn({
        let pool = pool.clone();
        async move { pool.acquire_timeout(Duration::MAX).await.map(drop) }
    });
    eventually("it waits", || pool.metrics().counts.waiters == 1).await;

    let service = Service::start(&monitor);
    let window = Window::open(&browser).await;
    window.goto(&service).await;
    window.next_figures().await;
    let scrape = window
        .client
        .execute_async(
            "fetch('/pools/metrics').then((answer) => answer.text()).then(arguments[0])",
            vec![],
        )
        .await
        .unwrap();
    // What Prometheus is told of the pool under this name, with this label besides its own.
    let scraped = |name: &str, label: &str| {
        let sample = format!("millpond_{name}{{pool=\"orders\"{label}}} ");
        let line = scrape.as_str().unwrap().lines().find_map(|line| line.strip_prefix(&sample));
        line.unwrap_or_else(|| panic!("no {sample} in {scrape}")).to_owned()
    };
    let figure = async |name: &str| window.text(&format!("[data-figure={name}]")).await;
    let rows = async |rows: &str| {
        let cells = "(row) => [...row.children].map((cell) => cell.textContent)";
        window.value(&format!("[...document.querySelectorAll(`{rows}`)].map({cells})")).await
    };
    assert_eq!(window.text(".pool h2").await, "orders");
    assert_eq!(window.text(".pool .health").await, "degraded");
    let reason = "all 4 connections are in use, and 1 waits for one";
    assert_eq!(window.text(".pool .reasons").await, reason);
    assert_eq!(scraped("health", ",state=\"degraded\""), "1");
    assert_eq!(scraped("connections", ",state=\"in_use\""), "4");
    assert_eq!(figure("in_use").await, format!("4 of {}", scraped("connections_max", "")));
    assert_eq!(figure("waiting").await, format!("{} caller", scraped("waiters", "")));
    assert_eq!(figure("created").await, scraped("connections_opened_total", ""));
    assert_eq!(figure("failed").await, scraped("connect_failures_total", ""));
    let states = rows(".legend div").await;
    let states = states.as_array().unwrap();
    assert_eq!(states.len(), 7, "{states:?}");
    for state in states {
        let label = format!(",state=\"{}\"", state[0].as_str().unwrap().replace(' ', "_"));
        assert_eq!(state[1], scraped("connections", &label), "{state}");
    }
    let tables = [
        (
            "outcomes",
            "acquire_waits_total",
            "outcome",
            pool.metrics().waits.by_outcome().collect::<Vec<_>>(),
        ),
        (
            "closed",
            "connections_closed_total",
            "reason",
            pool.metrics().closed.by_reason().collect(),
        ),
    ];
    for (table, name, label, totals) in tables {
        let told = rows(&format!("[data-table={table}] tbody tr")).await;
        let there_are = totals.iter().filter(|(_, number)| *number > 0).count();
        assert_eq!(told.as_array().unwrap().len(), there_are, "{told}");
        assert_ne!(there_are, 0);
        for row in told.as_array().unwrap() {
            let label = format!(",{label}=\"{}\"", row[0].as_str().unwrap().replace(' ', "_"));
            assert_eq!(row[1], scraped(name, &label), "{row}");
        }
    }
    let waits = rows("[data-table=wait] tbody tr").await;
    let acquires = scraped("acquires_total", "");
    assert_eq!(waits[5], json!(["acquires", "0", acquires]));
    assert_eq!(scraped("acquire_wait_seconds_count", ""), acquires);
    let connects = figure("connects").await;
    assert!(connects.contains(" µs") || connects.contains(" ms"), "{connects}");
    assert_eq!(figure("message").await, "scripted connect error");
    assert!(figure("ago").await.ends_with(" s ago"));
    assert_eq!(figure("rate").await, "0/s");
    let holders = rows("[data-table=holders] tbody tr").await;
    let holders = holders.as_array().unwrap();
    assert_eq!(holders.len(), 1, "one call site holds all of them");
    let site = holders[0][0].as_str().unwrap();
    assert!(site.starts_with(&format!("tests/web_browser.rs:{line}:")), "{site}");
    assert_eq!(holders[0][1], scraped("connections", ",state=\"in_use\""));
    assert_eq!(
        window
            .value("[...document.querySelectorAll('.history p')].map((text) => text.textContent)")
            .await,
        json!(["4 now, 4 at most", "1 now, 1 at most"])
    );

    // It follows.
    drop(held);
    joined(waiter).await.unwrap();
    window.until("document.querySelector('[data-figure=in_use]').textContent === '0 of 4'").await;
    window.until("document.querySelector('.pool .health').textContent === 'healthy'").await;
    assert_eq!(rows("[data-table=holders] tbody tr").await, json!([]));
    assert_eq!(window.value("document.querySelector('[data-table=holders]').hidden").await, true);
    assert_eq!(window.value("document.querySelectorAll('.reasons li').length").await, 0);
    silent(&window.complaints().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_pools_call_themselves_and_say_is_shown_as_text() {
    const NAME: &str = "<b>\"x\"</b>\n";
    const ERROR: &str = "<img src=x onerror=\"document.title = 'taken over'\"> & \u{202e}more";
    let Some(browser) = Browser::start() else { return };
    let monitor = Monitor::new();
    let manager = from_fn(|| async { Err::<String, _>(std::io::Error::other(ERROR)) });
    let pool = Pool::builder(manager).name(NAME).build_lazy().unwrap();
    monitor.add(&pool).unwrap();
    let (_, _other) = watched(&monitor, "javascript:alert(1)", 1);
    let nodes = [("<img src=x>", Role::Primary), ("\" onclick=\"", Role::Replica)];
    let (_cluster, _) = watched_cluster(&monitor, "<b>shop</b>", nodes);
    pool.acquire_timeout(Duration::from_millis(50)).await.map(drop).unwrap_err();

    let service = Service::start(&monitor);
    let window = Window::open(&browser).await;
    window.goto(&service).await;
    assert_eq!(window.text(".pool h2").await, NAME);
    assert_eq!(window.text("#overview a").await, NAME);
    assert_eq!(window.text("#overview [scope=rowgroup]").await, "<b>shop</b>");
    assert_eq!(window.text("#overview .sums ~ tr a").await, "<img src=x>");
    assert_eq!(
        window.text(".pool:nth-last-of-type(2) h2").await,
        "<img src=x> of <b>shop</b>, primary"
    );
    assert_eq!(window.value("document.querySelectorAll('[onclick]').length").await, 0);
    assert_eq!(window.text("[data-figure=message]").await, ERROR);
    assert_eq!(window.text(".reasons li").await, format!("connecting fails: {ERROR}"));
    assert_eq!(window.value("document.querySelectorAll('main b, main img').length").await, 0);
    let setting = "[...document.querySelectorAll('details dd')].map((value) => value.textContent)";
    assert_eq!(window.value(setting).await[0], NAME);
    assert!(!window.client.title().await.unwrap().contains("taken over"));
    // Even a script on the page could not set it as HTML.
    let html = "try { document.body.innerHTML = '<b>'; return 'done' } catch (error) { return error.name }";
    silent(&window.complaints().await);
    assert_eq!(window.run(html).await, "TypeError");
}

#[tokio::test(flavor = "multi_thread")]
async fn pools_come_and_go_in_their_order() {
    let Some(browser) = Browser::start() else { return };
    let monitor = Monitor::new();
    let service = Service::start(&monitor);
    let window = Window::open(&browser).await;
    window.goto(&service).await;
    assert_eq!(window.value("document.querySelector('#nothing').hidden").await, false);
    let names = "[...document.querySelectorAll('.pool h2')].map((name) => name.textContent).join()";
    let (_, one) = watched(&monitor, "one", 1);
    window.until(&format!("{names} === 'one'")).await;
    assert_eq!(window.value("document.querySelector('#overview').hidden").await, true);
    let (_, _two) = watched(&monitor, "two", 1);
    let (_, _three) = watched(&monitor, "three", 1);
    window.until(&format!("{names} === 'one,two,three'")).await;
    let overview = "[...document.querySelectorAll('#overview tbody th')].map((name) => name.textContent).join()";
    assert_eq!(window.value(overview).await, "one,two,three");
    drop(one);
    window.until(&format!("{names} === 'two,three'")).await;
    assert_eq!(window.value(overview).await, "two,three");
    assert_eq!(window.text("#changes").await, "one is gone");
    let (_, _one) = watched(&monitor, "one", 1);
    window.until(&format!("{names} === 'two,three,one'")).await;
    silent(&window.complaints().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_stands_above_its_nodes_with_their_sums() {
    let Some(browser) = Browser::start() else { return };
    let monitor = Monitor::new();
    let (_, _before) = watched(&monitor, "before", 5);
    let nodes = [("db1", Role::Primary), ("db2", Role::Replica), ("db3", Role::Unknown)];
    let (cluster, _) = watched_cluster(&monitor, "shop", nodes);
    let (_, _after) = watched(&monitor, "after", 7);
    let mut held = Vec::new();
    for node in ["db1", "db2", "db2"] {
        held.push(cluster.acquire(node).await.unwrap());
    }
    let waiter = tokio::spawn({
        let cluster = cluster.clone();
        async move { cluster.acquire("db2").await.map(drop) }
    });
    eventually("it waits", || cluster.node("db2").unwrap().metrics().counts.waiters == 1).await;

    let service = Service::start(&monitor);
    let window = Window::open(&browser).await;
    window.goto(&service).await;
    window.next_figures().await;
    assert_eq!(
        window.value(OVERVIEW).await,
        json!([
            ["before", "healthy", "0 of 5", "0", "0/s", "–"],
            ["shop", "degraded 3 of 3 nodes up", "3 of 6", "1", "0/s", ""],
            ["db1 primary", "healthy", "1 of 2", "0", "0/s", "–"],
            ["db2 replica", "degraded", "2 of 2", "1", "0/s", "–"],
            ["db3 role unknown", "healthy", "0 of 2", "0", "0/s", "–"],
            ["after", "healthy", "0 of 7", "0", "0/s", "–"],
        ])
    );
    let titles =
        "[...document.querySelectorAll('.pool h2')].map((title) => title.textContent).join('; ')";
    let in_order =
        "before; db1 of shop, primary; db2 of shop, replica; db3 of shop, role unknown; after";
    assert_eq!(window.value(titles).await, in_order);
    assert!(window.client.title().await.unwrap().starts_with("(1 degraded) Pools"));
    // Each link leads to the section of its row.
    let led = "[...document.querySelectorAll('#overview a')].map((link) => document.querySelector(link.hash).textContent).join('; ')";
    assert_eq!(window.value(led).await, in_order);
    // It follows.
    held.clear();
    joined(waiter).await.unwrap();
    let sums = format!("{OVERVIEW}[1].slice(0, 4).join('; ')");
    window.until(&format!("{sums} === 'shop; healthy 3 of 3 nodes up; 0 of 6; 0'")).await;

    // The rates of those nodes that have one are added up, and nodes that do not arrive together stand
    // together.
    let shown = window
        .client
        .execute_async(
            "feed.source.close();
             const [done] = arguments;
             fetch('/pools/status').then((answer) => answer.json()).then((figures) => {
                 const [before, db1, db2, db3, after] = figures.pools;
                 for (const [pool, acquires_per_second] of [[before, 100], [db1, 1.25], [db3, 2.5]])
                     pool.recent = { seconds: 2, acquires_per_second, failed_acquires: 0, acquire_wait: {} };
                 show({ ...figures, interval_seconds: 0.2, pools: [db1, before, db2, after, db3] });
                 done(true);
             })",
            vec![],
        )
        .await
        .unwrap();
    assert_eq!(shown, true);
    let rates = format!("{OVERVIEW}.map((row) => [row[0], row[4]].join(' ')).join('; ')");
    assert_eq!(
        window.value(&rates).await,
        "shop 3.75/s; db1 primary 1.25/s; db2 replica –; db3 role unknown 2.50/s; before 100/s; after –"
    );
    let in_order =
        "db1 of shop, primary; db2 of shop, replica; db3 of shop, role unknown; before; after";
    assert_eq!(window.value(titles).await, in_order);
    silent(&window.complaints().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_changes_is_shown_and_said() {
    let Some(browser) = Browser::start() else { return };
    let monitor = Monitor::new();
    let (cluster, _) =
        watched_cluster(&monitor, "shop", [("db1", Role::Primary), ("db2", Role::Replica)]);
    let service = Service::start(&monitor);
    let window = Window::open(&browser).await;
    window.goto(&service).await;
    window.next_figures().await;
    window.run(LISTEN).await;
    let roles = "[...document.querySelectorAll('#overview .role, .pool h2')].map((role) => role.textContent.trim()).join('; ')";
    let before = "primary; replica; db1 of shop, primary; db2 of shop, replica";
    assert_eq!(window.value(roles).await, before);
    assert_eq!(window.text("#changes").await, "", "that they have roles is no change");

    let is = |role| NodeOptions::default().role(role);
    cluster.set_options("db1", is(Role::Unknown)).unwrap();
    window.until(&format!("{roles}.startsWith('role unknown; replica; ')")).await;
    cluster.set_options("db2", is(Role::Primary)).unwrap();
    window.until(&format!("{roles}.startsWith('role unknown; primary; ')")).await;
    cluster.set_options("db1", is(Role::Replica)).unwrap();
    let after = "replica; primary; db1 of shop, replica; db2 of shop, primary";
    window.until(&format!("{roles} === '{after}'")).await;
    window.next_figures().await;
    let changes = ["shop/db1 is unknown", "shop/db2 is primary", "shop/db1 is replica"];
    let changes = changes.map(|change| format!("the role of {change}"));
    assert_eq!(window.value("said").await, json!(changes));
    silent(&window.complaints().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_is_degraded_while_a_node_is_down_and_down_with_the_last_of_them() {
    let Some(browser) = Browser::start() else { return };
    let monitor = Monitor::new();
    let (cluster, managers) =
        watched_cluster(&monitor, "shop", [("db1", Role::Primary), ("db2", Role::Replica)]);
    let service = Service::start(&monitor);
    let window = Window::open(&browser).await;
    window.goto(&service).await;
    let sums = format!("{OVERVIEW}[0][1]");
    let shape = "document.querySelector('.sums use').getAttribute('href')";
    window.until(&format!("{sums} === 'healthy 2 of 2 nodes up'")).await;
    assert_eq!(window.value(shape).await, "#healthy");
    let titles = ["(1 down) Pools", "(2 down) Pools"];
    let rows = ["degraded 1 of 2 nodes up", "down 0 of 2 nodes up"];
    for (index, node) in ["db1", "db2"].into_iter().enumerate() {
        managers[index].connect.always(Act::Error);
        cluster.acquire(node).await.map(drop).unwrap_err();
        window.until(&format!("{sums} === '{}'", rows[index])).await;
        let (word, _) = rows[index].split_once(' ').unwrap();
        assert_eq!(window.value(shape).await, format!("#{word}"));
        // The cluster is not one more of those that are down.
        assert!(window.client.title().await.unwrap().starts_with(titles[index]));
    }
    managers.iter().for_each(TestManager::clear);
    for node in ["db1", "db2"] {
        eventually_acquired(&cluster, node).await;
    }
    window.until(&format!("{sums} === 'healthy 2 of 2 nodes up'")).await;
    silent(&window.complaints().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_a_cluster_as_a_whole_is_shown_and_said_beside_what_its_nodes_say() {
    let Some(browser) = Browser::start() else { return };
    let monitor = Monitor::new();
    let (cluster, managers) =
        watched_cluster(&monitor, "shop", [("db1", Role::Replica), ("db2", Role::Replica)]);
    let service = Service::start(&monitor);
    let window = Window::open(&browser).await;
    window.goto(&service).await;
    window.next_figures().await;
    window.run(LISTEN).await;
    let soon = Duration::from_millis(20);
    cluster.acquire_any_timeout(Policy::Primary, soon).await.map(drop).unwrap_err();
    let none = "no node is a primary: writes wait until one is promoted";
    let sums = format!("{OVERVIEW}[0][1]");
    window.until(&format!("{sums} === 'degraded 2 of 2 nodes up, {none}'")).await;
    assert!(window.client.title().await.unwrap().starts_with("(1 degraded) Pools"));
    managers[0].connect.always(Act::Error);
    cluster.acquire("db1").await.map(drop).unwrap_err();
    window.until(&format!("{sums} === 'degraded 1 of 2 nodes up, {none}'")).await;
    assert!(window.client.title().await.unwrap().starts_with("(1 down, 1 degraded) Pools"));
    let said = format!("said.some((text) => text.includes('shop is degraded, {none}'))");
    window.until(&said).await;
    cluster.set_options("db2", NodeOptions::default().role(Role::Primary)).unwrap();
    window.until(&format!("{sums} === 'degraded 1 of 2 nodes up'")).await;
    silent(&window.complaints().await);
}

/// Waits until the node serves again.
async fn eventually_acquired(cluster: &TestCluster, node: &str) {
    let began = Instant::now();
    while let Err(error) = cluster.acquire(node).await.map(drop) {
        assert!(began.elapsed() < PATIENCE, "{node} does not come back: {error}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_may_have_no_connection_for_now_is_drawn_as_any_other() {
    let Some(browser) = Browser::start() else { return };
    let monitor = Monitor::new();
    let cluster: TestCluster = Cluster::builder().name("shop").max_connections(1).build().unwrap();
    monitor.add_cluster(&cluster).unwrap();
    for node in ["db1", "db2"] {
        cluster.add_node(node.to_owned(), TestManager::new()).unwrap();
    }
    let _held = cluster.acquire("db1").await.unwrap();
    let idle = &cluster.status().nodes[1].pool;
    assert_eq!(idle.max_size, 0, "the other one has all that there may be");
    let service = Service::start(&monitor);
    let window = Window::open(&browser).await;
    window.goto(&service).await;
    window.next_figures().await;
    let lines = "[...document.querySelectorAll('.history .line')].every((line) => /^M[-\\d. ML]+$/.test(line.getAttribute('d')))";
    assert_eq!(window.value(lines).await, true);
    silent(&window.complaints().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_come_and_go_and_their_cluster_stays() {
    let Some(browser) = Browser::start() else { return };
    let monitor = Monitor::new();
    let (cluster, []) = watched_cluster(&monitor, "shop", []);
    let service = Service::start(&monitor);
    let window = Window::open(&browser).await;
    window.goto(&service).await;
    window.next_figures().await;
    // Nobody can be served, as a probe is told.
    let none = json!(["shop", "down there are no nodes", "0 of 0", "0", "–", ""]);
    assert_eq!(window.value(OVERVIEW).await, json!([none]));
    assert_eq!(window.value("document.querySelector('#nothing').hidden").await, true);
    assert!(window.client.title().await.unwrap().starts_with("(1 down) Pools"));
    let headings = "[...document.querySelectorAll('#overview tbody th')].map((heading) => heading.textContent).join('; ')";
    let titles =
        "[...document.querySelectorAll('.pool h2')].map((title) => title.textContent).join('; ')";
    let hidden = "document.querySelector('#overview').hidden";
    let add = |key: &str| cluster.add_node(key.to_owned(), TestManager::new()).unwrap();
    let remove = async |key: &str| cluster.remove_node(key, PATIENCE).await.map(drop).unwrap();

    add("db1");
    window.until(&format!("{titles} === 'db1 of shop, role unknown'")).await;
    assert_eq!(window.value(hidden).await, true, "its cluster is no second pool");
    add("db2");
    window.until(&format!("{headings} === 'shop; db1 role unknown; db2 role unknown'")).await;
    assert_eq!(window.value(hidden).await, false);
    let (_, _plain) = watched(&monitor, "plain", 1);
    window
        .until(&format!("{headings} === 'shop; db1 role unknown; db2 role unknown; plain'"))
        .await;
    remove("db1").await;
    window.until(&format!("{headings} === 'shop; db2 role unknown; plain'")).await;
    assert_eq!(window.text("#changes").await, "shop/db1 is gone");
    assert_eq!(window.value(&format!("{OVERVIEW}[0][1]")).await, "healthy 1 of 1 node up");
    assert_eq!(window.value(hidden).await, false);
    remove("db2").await;
    window.until(&format!("{headings} === 'plain; shop'")).await;
    assert_eq!(window.value(titles).await, "plain");
    assert_eq!(window.value(&format!("{OVERVIEW}[1]")).await, none);
    let said = "shop/db2 is gone. shop is down, there are no nodes";
    assert_eq!(window.text("#changes").await, said);
    add("db3");
    window.until(&format!("{headings} === 'shop; db3 role unknown; plain'")).await;
    let title = window.client.title().await.unwrap();
    assert!(title.starts_with("Pools"), "{title}");
    drop(cluster);
    window.until(&format!("{headings} === 'plain'")).await;
    assert_eq!(window.value("document.querySelectorAll('#overview tbody').length").await, 1);
    silent(&window.complaints().await);
}

// ---- when it cannot ----

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_goes_away_and_comes_back_is_found_again() {
    let Some(browser) = Browser::start() else { return };
    let monitor = Monitor::new();
    let (_, pool) = watched(&monitor, "orders", 3);
    let service = Service::start(&monitor);
    let address = service.address;
    let window = Window::open(&browser).await;
    window.goto(&service).await;
    assert_eq!(window.value("document.querySelector('#old').hidden").await, true);
    assert!(window.text("#state").await.starts_with("Live, every 200 ms"));

    drop(service);
    window.until("document.body.classList.contains('old')").await;
    assert_eq!(window.text("#state").await, "Not connected");
    assert_eq!(window.text("#changes").await, "The connection to the server is lost");
    window.until_old("No connection to the server; trying again.", 1).await;
    // It grows.
    window.until_old("No connection to the server; trying again.", 2).await;
    let _held = pool.acquire().await.unwrap();
    assert_eq!(window.text("[data-figure=in_use]").await, "0 of 3");

    let page = StatusPage::new(&monitor).interval(INTERVAL);
    let _service = Service::at(address, Router::new().nest("/pools", page.router()));
    window.until("document.body.classList.contains('live')").await;
    window.until("document.querySelector('[data-figure=in_use]').textContent === '1 of 3'").await;
    assert_eq!(window.value("document.querySelector('#old').hidden").await, true);
    assert_eq!(window.text("#changes").await, "Connected again");
    // Nothing is drawn for the time between: where one is in use a new piece begins. On a machine that has
    // other things to do there may be more pieces.
    let line = window.value("document.querySelector('.line').getAttribute('d')").await;
    let line = line.as_str().unwrap();
    let at_rest = |piece: &str| piece.split('L').map(|point| point.ends_with(" 97.0")).collect();
    let pieces: Vec<Vec<bool>> = line.split('M').skip(1).map(at_rest).collect();
    assert!(pieces.len() >= 2, "{line}");
    let is_of_one_time = |piece: &Vec<bool>| piece.iter().all(|point| *point == piece[0]);
    assert!(pieces.iter().all(is_of_one_time), "{line}");
}

/// Stands still while it is closed.
struct Gated {
    closed: Arc<AtomicBool>,
    pool: Pool<TestManager>,
}

impl Source for Gated {
    fn name(&self) -> String {
        "gated".to_owned()
    }

    fn status(&self) -> Option<PoolStatus> {
        eventually_blocking("the gate is open", || !self.closed.load(Ordering::SeqCst));
        Some(self.pool.status())
    }

    fn holders(&self) -> Vec<Holder> {
        self.pool.holders()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_stands_still_is_noticed() {
    let Some(browser) = Browser::start() else { return };
    let (monitor, closed) = (Monitor::new(), Arc::<AtomicBool>::default());
    let pool = Pool::builder(TestManager::new()).build_lazy().unwrap();
    monitor.add_source(Gated { closed: closed.clone(), pool }).unwrap();
    let service = Service::start(&monitor);
    let window = Window::open(&browser).await;
    window.goto(&service).await;
    closed.store(true, Ordering::SeqCst);
    window.until("document.body.classList.contains('old')").await;
    assert!(window.text("#old").await.starts_with("No connection to the server"));
    closed.store(false, Ordering::SeqCst);
    window.until("document.body.classList.contains('live')").await;
    assert_eq!(window.value("document.querySelector('#old').hidden").await, true);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_cannot_show_what_it_hears_does_not_call_it_live() {
    let Some(browser) = Browser::start() else { return };
    let monitor = Monitor::new();
    let (_, _pool) = watched(&monitor, "orders", 3);
    let service = Service::start(&monitor);
    let window = Window::open(&browser).await;
    window.goto(&service).await;
    window.run("window.shown = show; show = () => { throw new Error('scripted') }").await;
    window.until("document.body.classList.contains('old')").await;
    window.until_old("No connection to the server; trying again.", 1).await;
    window.run("show = window.shown").await;
    window.until("document.body.classList.contains('live')").await;
    assert_eq!(window.value("document.querySelector('#old').hidden").await, true);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_page_stands_still_and_says_so() {
    let Some(browser) = Browser::start() else { return };
    let monitor = Monitor::new();
    let (_, pool) = watched(&monitor, "orders", 3);
    let service = Service::start(&monitor);
    let window = Window::open(&browser).await;
    window.goto(&service).await;
    window.run("document.querySelector('#pause').focus()").await;
    window.press(Key::Enter).await;
    window.until("document.querySelector('#pause').textContent === 'Resume'").await;
    assert!(window.text("#old").await.starts_with("Paused. These figures are "));
    let _held = pool.acquire().await.unwrap();
    window.until_old("Paused.", 2).await;
    assert_eq!(window.text("[data-figure=in_use]").await, "0 of 3");
    window.press(Key::Enter).await;
    window.until("document.querySelector('[data-figure=in_use]').textContent === '1 of 3'").await;
    assert_eq!(window.value("document.querySelector('#old').hidden").await, true);
    silent(&window.complaints().await);
}

// ---- for everybody ----

/// A function that lists text whose contrast with what is behind it is less than WCAG's AA asks for.
const FAINT: &str = r#"
    const channel = (value) => (value /= 255) <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
    const parse = (color) => color.match(/[\d.]+/g).map(Number);
    const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
    const ground = (element) => {
        for (; element; element = element.parentElement) {
            const [r, g, b, alpha = 1] = parse(getComputedStyle(element).backgroundColor);
            if (alpha === 1) return [r, g, b];
        }
        throw new Error("the page has no ground");
    };
    const faint = [];
    let seen = 0;
    const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (texts.nextNode()) {
        const element = texts.currentNode.parentElement;
        const style = getComputedStyle(element);
        const shown = element.getClientRects().length > 0 && !element.closest(".unseen, script, style");
        if (!shown || !texts.currentNode.data.trim()) continue;
        seen += 1;
        const [a, b] = [light(parse(style.color)), light(ground(element))];
        const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        if (ratio < 4.5) faint.push([texts.currentNode.data, ratio, style.color]);
    }
    return { seen, faint };
"#;

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_cut_off_or_faint_at_any_width_by_day_or_night() {
    let Some(browser) = Browser::start() else { return };
    let monitor = Monitor::new();
    let (_, _well) = watched(&monitor, "well", 4);
    let (_, busy) = watched(&monitor, &"a_name_without_any_space_".repeat(5), 2);
    let _held = (busy.acquire().await.unwrap(), busy.acquire().await.unwrap());
    let waiter = tokio::spawn({
        let busy = busy.clone();
        async move { busy.acquire_timeout(Duration::MAX).await.map(drop) }
    });
    let error = "a_long_word/".repeat(40);
    let failing = from_fn(move || {
        let error = error.clone();
        async move { Err::<String, _>(std::io::Error::other(error)) }
    });
    let failing = Pool::builder(failing).name("down").max_size(1_000_000).build_lazy().unwrap();
    monitor.add(&failing).unwrap();
    failing.acquire_timeout(Duration::from_millis(50)).await.map(drop).unwrap_err();

    let long = "a_key_without_any_space_".repeat(5);
    let nodes = [("db1", Role::Primary), ("db2", Role::Unknown), (&*long, Role::Replica)];
    let (cluster, managers) =
        watched_cluster(&monitor, &"a_cluster_without_any_space_".repeat(4), nodes);
    managers[1].connect.always(Act::Error);
    cluster.acquire("db2").await.map(drop).unwrap_err();

    let service = Service::start(&monitor);
    let window = Window::open(&browser).await;
    window.goto(&service).await;
    window.until("document.title.startsWith('(2 down, 1 degraded)')").await;
    assert_eq!(window.value(&format!("{OVERVIEW}[3][1]")).await, "degraded 2 of 3 nodes up");
    window
        .run("document.querySelectorAll('details').forEach((details) => (details.open = true))")
        .await;
    let mut grounds = Vec::new();
    let check = async |what: &str| {
        let wide = "document.documentElement.scrollWidth - innerWidth";
        assert!(window.value(wide).await.as_i64().unwrap() <= 0, "{what} scrolls sideways");
        // What is cut off does not scroll.
        let cut = "[...document.querySelectorAll('main *:not(.unseen, .unseen *)')].filter((element) => element.getBoundingClientRect().right > innerWidth + 0.5 || element.scrollWidth > element.clientWidth + 1 && element.clientWidth > 0).map((element) => element.outerHTML.slice(0, 200))";
        assert_eq!(window.value(cut).await, json!([]), "{what}");
        let found = window.run(FAINT).await;
        assert_eq!(found["faint"], json!([]), "{what}");
        assert!(found["seen"].as_u64().unwrap() > 100, "{what}: {found}");
    };
    for width in [320, 390, 640, 641, 1000, 1280, 1920] {
        for scheme in ["light", "dark"] {
            window.show_at(width, scheme).await;
            window.until(&format!("innerWidth === {width}")).await;
            check(&format!("{width} {scheme}")).await;
            grounds.push(window.value("getComputedStyle(document.body).backgroundColor").await);
        }
    }
    assert_ne!(grounds[0], grounds[1], "day and night differ");
    silent(&window.complaints().await);
    window.run("document.querySelector('#pause').click()").await;
    check("what is old").await;

    let moves = "getComputedStyle(document.querySelector('.bar i')).transitionProperty";
    assert_eq!(window.value(moves).await, "flex-grow");
    let still = json!({ "features": [{ "name": "prefers-reduced-motion", "value": "reduce" }] });
    window.devtools("Emulation.setEmulatedMedia", still).await;
    assert_eq!(window.value(moves).await, "none");
    waiter.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn all_that_can_be_used_is_reached_with_the_keyboard_and_is_seen_there() {
    let Some(browser) = Browser::start() else { return };
    let monitor = Monitor::new();
    let (_, _one) = watched(&monitor, "one", 1);
    let (_, _two) = watched(&monitor, "two", 1);
    let (cluster, _) =
        watched_cluster(&monitor, "shop", [("db1", Role::Primary), ("db2", Role::Replica)]);
    let service = Service::start(&monitor);
    let window = Window::open(&browser).await;
    window.goto(&service).await;
    window.until("document.querySelectorAll('.pool').length === 4").await;
    let names = window
        .value("[...document.querySelectorAll('a[href], button, summary')].map((element) => element.textContent)")
        .await;
    let names = names.as_array().unwrap();
    let expected = [
        "Skip to the pools",
        "Pause",
        "one",
        "two",
        "db1",
        "db2",
        "Settings",
        "Settings",
        "Settings",
        "Settings",
        "Figures as JSON",
        "Metrics for Prometheus",
        "Health for probes",
    ];
    assert_eq!(names, &expected.map(Value::from));
    let focused = "(({ activeElement: { textContent, matches } }) => textContent)(document)";
    for name in names {
        window.press(Key::Tab).await;
        assert_eq!(window.value(focused).await, *name);
        let place = window
            .run(
                "const { activeElement } = document;
                  const { outlineStyle, outlineWidth } = getComputedStyle(activeElement);
                  const { top, left } = activeElement.getBoundingClientRect();
                  return { outlineStyle, outlineWidth, onScreen: top >= 0 && left >= 0 };",
            )
            .await;
        let seen = json!({ "outlineStyle": "solid", "outlineWidth": "2px", "onScreen": true });
        assert_eq!(place, seen, "{name}");
    }
    // New figures do not take the focus away.
    window.run("document.querySelector('#overview a').focus()").await;
    window.next_figures().await;
    assert_eq!(window.value(focused).await, "one");
    // Nor do nodes that come and go, and roles that change.
    window.run("[...document.querySelectorAll('#overview a')].at(-1).focus()").await;
    cluster.add_node("db3".to_owned(), TestManager::new()).unwrap();
    cluster.set_options("db2", NodeOptions::default().role(Role::Primary)).unwrap();
    drop(cluster.remove_node("db1", PATIENCE).await.unwrap());
    let nodes = "[...document.querySelectorAll('.sums ~ tr th')].map((heading) => heading.textContent).join('; ')";
    window.until(&format!("{nodes} === 'db2 primary; db3 role unknown'")).await;
    assert_eq!(window.value(focused).await, "db2");
    window.run("document.querySelector('.skip').focus()").await;
    window.press(Key::Enter).await;
    assert_eq!(window.value("document.activeElement.id").await, "pools");
    window.run("document.querySelector('summary').focus()").await;
    window.press(Key::Enter).await;
    assert_eq!(window.value("document.querySelector('details').open").await, true);
    let links =
        "[...document.querySelectorAll('footer a')].map((link) => new URL(link.href).pathname)";
    assert_eq!(
        window.value(links).await,
        json!(["/pools/status", "/pools/metrics", "/pools/health"])
    );
    silent(&window.complaints().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn all_that_is_shown_has_a_name_for_those_who_do_not_see_it() {
    let Some(browser) = Browser::start() else { return };
    let monitor = Monitor::new();
    let (manager, one) = watched(&monitor, "one", 1);
    let (_, two) = watched(&monitor, "two", 1);
    two.acquire().await.unwrap().discard();
    let _held = two.acquire().await.unwrap();
    let (_cluster, _) =
        watched_cluster(&monitor, "shop", [("db1", Role::Primary), ("db2", Role::Unknown)]);
    let service = Service::start(&monitor);
    let window = Window::open(&browser).await;
    window.goto(&service).await;
    window.until("document.querySelectorAll('.pool').length === 4").await;

    let tree = window.devtools("Accessibility.getFullAXTree", json!({})).await;
    let nodes: Vec<(&str, &str, &Value)> = tree["nodes"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|node| node["ignored"] == false)
        .map(|node| {
            let name = node["name"]["value"].as_str().unwrap_or_default();
            (node["role"]["value"].as_str().unwrap_or_default(), name, node)
        })
        .collect();
    let named = |wanted: &str| -> Vec<&str> {
        nodes.iter().filter(|(role, ..)| *role == wanted).map(|(_, name, _)| *name).collect()
    };
    for landmark in ["banner", "main", "contentinfo"] {
        assert_eq!(named(landmark).len(), 1, "{landmark}");
    }
    assert_eq!(
        named("region"),
        ["Overview", "one", "two", "db1 of shop, primary", "db2 of shop, role unknown"]
    );
    let headings = named("rowheader");
    assert_eq!(
        headings[..5],
        ["one", "two", "shop", "db1 of shop primary", "db2 of shop role unknown"]
    );
    assert!(named("cell").contains(&"healthy 2 of 2 nodes up"));
    let links = named("link");
    assert!(links.ends_with(&["one", "two", "db1 of shop", "db2 of shop"]), "{links:?}");
    let tables = named("table");
    assert_eq!(tables[0], "Overview of all pools");
    for table in
        ["How long the served had waited", "Who holds a connection", "Why connections ended"]
    {
        assert!(tables.contains(&table), "{table} is not among {tables:?}");
    }
    let images = named("image");
    assert!(
        images.contains(
            &"1 in use, 0 idle, 0 connecting, 0 checking, 0 resetting, 0 closing, 0 vacant"
        ),
        "{images:?}"
    );
    assert!(images.contains(&"In use over the last 5 minutes: 1 now, 1 at most"), "{images:?}");
    for (role, name, node) in &nodes {
        let needs_a_name = ["image", "link", "button", "table", "region", "heading"].contains(role);
        assert!(!needs_a_name || !name.is_empty(), "{role} has no name: {node}");
    }
    let levels = "[...document.querySelectorAll('h1, h2, h3, h4, h5, h6')].map((heading) => +heading.tagName[1])";
    let levels = window.value(levels).await;
    let levels: Vec<i64> =
        levels.as_array().unwrap().iter().map(|level| level.as_i64().unwrap()).collect();
    assert_eq!(levels.iter().filter(|level| **level == 1).count(), 1);
    assert_eq!(levels[0], 1);
    assert!(levels.windows(2).all(|pair| pair[1] <= pair[0] + 1), "{levels:?}");
    let plain = "[...document.querySelectorAll('table')].filter((table) => !table.caption?.textContent || [...table.querySelectorAll('th')].some((cell) => !cell.scope) || [...table.tBodies].flatMap((body) => [...body.rows]).some((row) => row.cells[0].tagName !== 'TH')).length";
    assert_eq!(window.value(plain).await, 0, "tables have captions and headings with scopes");
    // Health is a word and a shape, not only a colour.
    let words = "[...document.querySelectorAll('main .health')].map((health) => health.innerText.trim() + health.querySelector('use').getAttribute('href')).join()";
    assert_eq!(window.value(words).await, ["healthy#healthy"; 9].join(","));

    // Only changes of health and of roles are read aloud.
    let live = "[...document.querySelectorAll('[aria-live], [role=status], [role=alert], [role=log]')].map((element) => element.id).join()";
    assert_eq!(window.value(live).await, "changes");
    window.run(LISTEN).await;
    drop(one.acquire().await.unwrap());
    window.next_figures().await;
    assert_eq!(window.value("said").await, json!([]));
    manager.connect.always(Act::Error);
    one.acquire().await.unwrap().discard();
    one.acquire_timeout(Duration::from_millis(50)).await.map(drop).unwrap_err();
    let down = "one is down, connecting fails: scripted connect error";
    window.until(&format!("said.at(-1) === '{down}'")).await;
    manager.clear();
    drop(one.acquire().await.unwrap());
    window.until("said.at(-1) === 'one is healthy'").await;
    assert_eq!(window.value("said").await, json!([down, "one is healthy"]));
    // What lasts for a moment is no change: a busy pool is used up now and then.
    let moments = "for (const health of ['degraded', 'healthy', 'degraded', 'degraded', 'healthy'])
                       if (views.get('two').tells(health)) said.push(health);
                   for (let times = 0; times < 5; times++)
                       if (views.get('two').tells('degraded')) said.push(`for good, ${times}`);";
    window.run(&format!("feed.source.close(); {moments}")).await;
    assert_eq!(window.value("said.slice(2)").await, json!(["for good, 2"]));
    silent(&window.complaints().await);
}

// ---- pictures ----

/// The example, which ends with the test.
struct Dashboard(Child);

impl Drop for Dashboard {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "writes pictures, and takes minutes: see scripts/screenshots"]
async fn pictures_of_the_example() {
    let folder = PathBuf::from(std::env::var_os("MILLPOND_PICTURES").expect("a folder for them"));
    let browser = Browser::start().expect("a browser");
    // Cargo becomes the example.
    let mut example = Command::new(env!("CARGO"));
    example.args(["run", "--quiet", "--locked", "--features", "axum,sqlite,tcp"]);
    example.args(["--example", "dashboard", "--", "--port", "0", "--seconds", "45"]);
    let mut example = Dashboard(example.stdout(Stdio::piped()).spawn().unwrap());
    let mut lines = BufReader::new(example.0.stdout.take().unwrap()).lines().map_while(Result::ok);
    let first = lines.next().unwrap();
    let url = first.split_whitespace().find(|word| word.starts_with("http://")).unwrap();

    let window = Window::open(&browser).await;
    window.show_at(1280, "light").await;
    window.client.goto(url).await.unwrap();
    // All kinds of trouble have been, and the last one has begun.
    let last = "the server of sessions is down";
    assert!(lines.any(|line| line == last), "the example has ended");
    window.until("[...document.querySelectorAll('.pool')].at(-1).dataset.health === 'down'").await;
    for (width, scheme) in [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")] {
        window.show_at(width, scheme).await;
        // Drawn at that width, with figures that came after.
        window.next_figures().await;
        // All of it, or as much as a telephone shows.
        let height = window.value("document.documentElement.scrollHeight").await.as_f64().unwrap();
        let height = if width == 390 { 900.0 } else { height };
        let clip = json!({ "x": 0, "y": 0, "width": width, "height": height, "scale": 1 });
        let picture = json!({ "clip": clip, "captureBeyondViewport": true });
        let picture = window.devtools("Page.captureScreenshot", picture).await;
        let picture = BASE64.decode(picture["data"].as_str().unwrap()).unwrap();
        std::fs::write(folder.join(format!("status-{scheme}-{width}.png")), picture).unwrap();
    }
    window.client.close().await.unwrap();
}
