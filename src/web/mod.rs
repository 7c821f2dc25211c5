//! A live page that shows how pools are, and what probes and scrapers ask, as a router for
//! [axum](https://docs.rs/axum) to nest into a service. With the feature `axum`.
//!
//! | path | answers | as |
//! |---|---|---|
//! | `/` | a page that shows all pools and keeps itself up to date | HTML |
//! | `/status` | all figures, settings and holders | JSON |
//! | `/metrics` | what [`export::prometheus`](crate::export::prometheus) tells | text for Prometheus |
//! | `/health` | 200 while all that is looked at is [up](crate::Health::is_up), 503 if a pool or a whole [group](crate::Group) is down; either way how each is, with reasons | plain text, a line for each |
//! | `/events` | the same figures again and again | server-sent events, each one JSON |
//!
//! A pool that serves nobody, since all its connections are in use, is degraded and thus up: restarting a service for
//! want of connections makes its other instances want more. For 30 s after an acquire has waited in vain it is so though
//! nobody waits: see [`Health`].
//!
//! A cluster counts in `/health` as a whole, by [`Monitor::health`](crate::Monitor::health): one that can
//! serve is up, though a node of it is down, and one without nodes is down. The lines of its nodes follow
//! its own.
//!
//! Pools of one [cluster](crate::ClusterNode), or of another group, stand together on the page, under a
//! row that says how many of the nodes are up, how the cluster is (as `/health` has it), what is wrong with it
//! as a whole, and what their figures come to. It is there though there are no nodes, if there is anything wrong with that; where one
//! pool is all that there is, the row would only repeat it, and is left out. An acquire that any of several
//! nodes may serve waits at each of them, and so counts there. A role that changes is shown, and said to
//! those who have the page read to them, as a change of health is.
//!
//! The page is one file without anything from elsewhere, and finds its figures beside itself: it works
//! wherever the router is nested, also behind a proxy that takes a prefix away.
//!
//! Whoever can read these paths reads error messages, call sites and settings (not passwords, unless
//! an error of a manager tells one). Nest them where only operators come, or put a layer of yours
//! around them. Nothing can be changed through them.
//!
//! # Examples
//!
//! ```
//! # use millpond::{Pool, from_fn};
//! # use std::convert::Infallible;
//! use axum::Router;
//! use millpond::{Monitor, web};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let manager = from_fn(|| async { Ok::<_, Infallible>(String::from("hello")) });
//! let pool = Pool::builder(manager).name("orders").build().await?;
//! let monitor = Monitor::new();
//! monitor.add(&pool)?;
//! // At `/pools`, `/pools/` and what is below. `nest` does it too, with the slash as it is written.
//! let app: Router = Router::new().nest_service("/pools", web::router(&monitor));
//! # Ok(()) }
//! ```
//!
//! # The data
//!
//! `/status` is an object with `millpond`, the crate's version, and `pools`, a list in which each has
//! `name`, `cluster`, `health` (`healthy`, `degraded`, `down`), `reasons`, `max_size`, `metrics` (the
//! fields of [`PoolMetrics`](crate::PoolMetrics)), `holders`, longest first, and `config`. Times are in
//! seconds, but those of `config` are as in a file. A holder's `held_seconds` is for how long at least, to the
//! resolution of `maintenance_interval`. `cluster` is `null`, or for a node of one its `name`,
//! the `node`'s key and the node's `role` (`primary`, `replica`, `unknown`). Beside `pools` there are `groups`, a list of the clusters and other
//! [groups](crate::Group), in which each has `name`, `health`, `reasons` and the names of its `pools`.
//! Events have `interval_seconds` besides, and each pool in them `recent`: `acquires_per_second`,
//! `failed_acquires` and `acquire_wait` over the last ten intervals, which take some `seconds`; it is
//! missing in the first event. They have no more than 20 holders. Between two events that are far apart
//! comes a comment every 15 s, so that no proxy takes the stream for a dead one. Whoever reads this should pass over
//! names that it does not know: more may come.
//!
//! # Cost
//!
//! A look takes one pass over the slots of each pool, and `/events` takes one look per interval for all
//! viewers together, none while there are none; and one more for a new viewer who comes a second or later
//! after the last look, at most one a second. A viewer who reads slowly misses events, and none is
//! kept for it beyond what the buffers of its connection hold. `/events` needs a runtime with a timer. A pool's acquires and releases are not slowed by any of it.
//!
//! Not here: the figures themselves (`metrics`).

mod feed;

use self::feed::{Feed, Figures};
use crate::export::prometheus;
use crate::metrics::{Health, Monitor, PoolStatus, Report};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures_util::future::{BoxFuture, Shared, pending};
use futures_util::{FutureExt, StreamExt, stream};
use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

const PAGE: &str = include_str!("page.html");

/// What the page may do: run its own script, wear its own style, ask its own server. The hashes are
/// those of what is in `page.html`; a test tells what they have to be.
const POLICY: &str = "default-src 'none'; \
    script-src 'sha256-teEtmcIAyzudnSJcS/VuWvF0j15ageG0W4XbpBYFq/A='; \
    style-src 'sha256-dYxcf1GK+0UfYwxJPifenzMoDRaBriFjFvhmN7RIT/U='; \
    connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
    require-trusted-types-for 'script'; trusted-types 'none'";

/// How long a stream of events may be silent: a proxy takes it for a dead one after a minute or so.
const SILENCE: Duration = Duration::from_secs(15);

const SHORTEST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(3600);

/// The page and its paths with the defaults of [`StatusPage`].
pub fn router<S: Clone + Send + Sync + 'static>(monitor: &Monitor) -> Router<S> {
    StatusPage::new(monitor).router()
}

/// The page and its paths, with settings.
///
/// # Examples
///
/// A service that ends in an orderly way waits for its connections, and a stream of events goes on for
/// as long as somebody looks. [`until`](Self::until) ends it:
///
/// ```no_run
/// # use millpond::Monitor;
/// use axum::Router;
/// use millpond::web::StatusPage;
/// use std::time::Duration;
/// use tokio::{net::TcpListener, sync::watch};
///
/// # async fn serve(monitor: Monitor) -> std::io::Result<()> {
/// let (stop, stopped) = watch::channel(());
/// let over = || {
///     let mut stopped = stopped.clone();
///     async move { drop(stopped.changed().await) }
/// };
/// let page = StatusPage::new(&monitor).interval(Duration::from_secs(2)).until(over());
/// let app: Router = Router::new().nest_service("/pools", page.router());
/// let listener = TcpListener::bind("127.0.0.1:8080").await?;
/// axum::serve(listener, app).with_graceful_shutdown(over()).await // until `stop` is dropped
/// # }
/// ```
#[must_use = "it is the router that does something"]
pub struct StatusPage {
    monitor: Monitor,
    interval: Duration,
    over: Option<BoxFuture<'static, ()>>,
}

impl StatusPage {
    /// Shows these pools, and those that are added to the monitor later.
    pub fn new(monitor: &Monitor) -> Self {
        Self { monitor: monitor.clone(), interval: Duration::from_secs(1), over: None }
    }

    /// How often `/events` tells the figures, and so how often the page changes: 100 ms to 1 h; what
    /// is outside of that counts as its nearer end. Default: 1 s.
    pub fn interval(mut self, interval: Duration) -> Self {
        self.interval = interval.clamp(SHORTEST, LONGEST);
        self
    }

    /// Ends all streams of events when this future ends, such as when the service is told to stop.
    /// Default: they end with their viewers, or with the service's runtime.
    ///
    /// A server asks a stream for more only while there is room for it in the connection's buffers. So
    /// the stream of a viewer who has ceased to read, or who is out of reach, does not end before that
    /// connection does, which may take TCP a quarter of an hour; put a limit on an orderly end of the
    /// service.
    pub fn until(mut self, over: impl Future<Output = ()> + Send + 'static) -> Self {
        self.over = Some(over.boxed());
        self
    }

    /// The router, for a service with whatever state.
    pub fn router<S: Clone + Send + Sync + 'static>(self) -> Router<S> {
        let Self { monitor, interval, over } = self;
        let over = over.unwrap_or_else(|| pending().boxed()).shared();
        Router::new()
            .route("/", get(page))
            .route("/status", get(status))
            .route("/metrics", get(metrics))
            .route("/health", get(health))
            .route("/events", get(events))
            .with_state(Site { feed: Arc::new(Feed::new(monitor, interval)), over })
    }
}

impl fmt::Debug for StatusPage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { monitor, interval, over: _ } = self;
        f.debug_struct("StatusPage")
            .field("monitor", monitor)
            .field("interval", interval)
            .finish_non_exhaustive()
    }
}

/// What the handlers share.
#[derive(Clone)]
struct Site {
    feed: Arc<Feed>,
    over: Shared<BoxFuture<'static, ()>>,
}

/// An answer that is true now, and that a browser takes for nothing but what it is.
fn answer(content_type: &'static str, body: impl Into<Body>) -> Response {
    let headers = [
        (header::CONTENT_TYPE, content_type),
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (headers, body.into()).into_response()
}

async fn page() -> Response {
    let headers =
        [(header::CONTENT_SECURITY_POLICY, POLICY), (header::REFERRER_POLICY, "no-referrer")];
    (headers, answer("text/html; charset=utf-8", PAGE)).into_response()
}

async fn status(State(site): State<Site>) -> Response {
    answer("application/json", Figures::of(site.feed.monitor()).json())
}

async fn metrics(State(site): State<Site>) -> Response {
    answer(prometheus::CONTENT_TYPE, prometheus::text(site.feed.monitor()))
}

async fn health(State(site): State<Site>) -> Response {
    let reports = site.feed.monitor().reports();
    let is_up = reports.iter().all(|report| report.health.is_up());
    let mut lines = String::new();
    for Report { name, health, is_group, pools } in &reports {
        tell(&mut lines, name, health);
        for (_, PoolStatus { config, health, .. }) in pools.iter().filter(|_| *is_group) {
            tell(&mut lines, &config.name, health);
        }
    }
    let code = if is_up { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, answer("text/plain; charset=utf-8", lines)).into_response()
}

/// Adds a line.
fn tell(lines: &mut String, name: &str, health: &Health) {
    // A name or an error must not look like another line.
    for character in format!("{name}: {health}").chars() {
        match character.is_control() {
            true => lines.extend(character.escape_default()),
            false => lines.push(character),
        }
    }
    lines.push('\n');
}

async fn events(State(Site { feed, over }): State<Site>) -> Response {
    let events = stream::unfold((feed, None), |(feed, seen)| async move {
        // Cancel: whoever has not got its event has lost nothing, and asks for it again.
        let (seen, said) = match timeout(SILENCE, feed.next(seen)).await {
            Ok((interval, event)) => (Some(interval), event),
            // A comment, which no reader of events makes anything of.
            Err(_) => (seen, Bytes::from_static(b":\n\n")),
        };
        Some((Ok::<Bytes, Infallible>(said), (feed, seen)))
    });
    let response = answer("text/event-stream", Body::from_stream(events.take_until(over)));
    // Some proxies hold back what they take for a page.
    ([(HeaderName::from_static("x-accel-buffering"), "no")], response).into_response()
}
