//! The status page in a real browser: that it shows what is, as text, to everybody, at any width, and
//! that it knows when it does not.
//!
//! `scripts/screenshots` has one of these tests write the pictures of the README.

#![cfg(all(unix, feature = "axum"))]
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
    let reason = "all 4 connections are in use, and 1 wait for one";
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
        ("outcomes", "acquire_waits_total", "outcome", pool.metrics().waits.by_outcome().to_vec()),
        (
            "closed",
            "connections_closed_total",
            "reason",
            pool.metrics().closed.by_reason().to_vec(),
        ),
    ];
    for (table, name, label, totals) in tables {
        let told = rows(&format!("[data-table={table}] tbody tr")).await;
        let there_are = totals.iter().filter(|(number, _)| *number > 0).count();
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
    pool.acquire_timeout(Duration::from_millis(50)).await.map(drop).unwrap_err();

    let service = Service::start(&monitor);
    let window = Window::open(&browser).await;
    window.goto(&service).await;
    assert_eq!(window.text(".pool h2").await, NAME);
    assert_eq!(window.text("#overview a").await, NAME);
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
    // Nothing is drawn for the time between.
    let line = window.value("document.querySelector('.line').getAttribute('d')").await;
    assert_eq!(line.as_str().unwrap().matches('M').count(), 2, "{line}");
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

    let service = Service::start(&monitor);
    let window = Window::open(&browser).await;
    window.goto(&service).await;
    window.until("document.title.startsWith('(1 down, 1 degraded)')").await;
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
    for width in [320, 390, 640, 1000, 1280, 1920] {
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
    let service = Service::start(&monitor);
    let window = Window::open(&browser).await;
    window.goto(&service).await;
    window.until("document.querySelectorAll('.pool').length === 2").await;
    let names = window
        .value("[...document.querySelectorAll('a[href], button, summary')].map((element) => element.textContent)")
        .await;
    let names = names.as_array().unwrap();
    let expected = [
        "Skip to the pools",
        "Pause",
        "one",
        "two",
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
    let service = Service::start(&monitor);
    let window = Window::open(&browser).await;
    window.goto(&service).await;
    window.until("document.querySelectorAll('.pool').length === 2").await;

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
    assert_eq!(named("region"), ["Overview", "one", "two"]);
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
    let plain = "[...document.querySelectorAll('table')].filter((table) => !table.caption?.textContent || [...table.querySelectorAll('th')].some((cell) => !cell.scope) || [...table.tBodies[0].rows].some((row) => row.cells[0].tagName !== 'TH')).length";
    assert_eq!(window.value(plain).await, 0, "tables have captions and headings with scopes");
    // Health is a word and a shape, not only a colour.
    let words = "[...document.querySelectorAll('main .health')].map((health) => health.innerText.trim() + health.querySelector('use').getAttribute('href')).join()";
    assert_eq!(window.value(words).await, ["healthy#healthy"; 4].join(","));

    // Only changes of health are read aloud.
    let live = "[...document.querySelectorAll('[aria-live], [role=status], [role=alert], [role=log]')].map((element) => element.id).join()";
    assert_eq!(window.value(live).await, "changes");
    window
        .run("window.said = []; new MutationObserver(() => said.push(document.querySelector('#changes').textContent)).observe(document.querySelector('#changes'), { childList: true, characterData: true, subtree: true })")
        .await;
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
