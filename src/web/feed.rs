//! The figures of all pools, as the page's script and other programs read them; and the same again
//! and again, worked out once for all who look.
//!
//! There is no task that does it. Time is cut into intervals, and the first viewer whom an interval
//! wakes works its figures out; the others get the same bytes. Who comes new to a long interval is shown
//! how things are now. So nothing happens while nobody looks, and nobody has to notice that.
//!
//! Not here: the paths under which they are found (`mod.rs`).

use crate::config::Config;
use crate::metrics::{
    ClusterNode, Health, Histogram, Monitor, PoolMetrics, PoolStatus, Report, Source, SourceId,
};
use crate::pool::Holder;
use axum::body::Bytes;
use serde::Serialize;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::time::Instant;

/// How many intervals `recent` covers.
const RECENT: u32 = 10;
/// How old the figures may be that a new viewer gets.
const FRESH: Duration = Duration::from_secs(1);
/// The most holders of a pool in an event, so that a large pool does not make it large.
const HOLDERS: usize = 20;

/// All pools at one moment. An object, so that there is room for more.
#[derive(Serialize)]
pub(super) struct Figures {
    millpond: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    interval_seconds: Option<f64>,
    groups: Vec<Group>,
    pools: Vec<Pool>,
}

/// Pools that were added together. Where one stands for another, how all of them are does not follow
/// from how each is; nor do those show that there are none.
#[derive(Serialize)]
struct Group {
    name: String,
    health: Health,
    reasons: Vec<String>,
    /// Their names.
    pools: Vec<String>,
}

/// One pool.
#[derive(Serialize)]
struct Pool {
    #[serde(skip)]
    id: SourceId,
    name: String,
    cluster: Option<ClusterNode>,
    health: Health,
    reasons: Vec<String>,
    max_size: usize,
    metrics: PoolMetrics,
    holders: Vec<Holder>,
    config: Config,
    /// Not for whoever asks once.
    #[serde(skip_serializing_if = "Option::is_none")]
    recent: Option<Recent>,
}

/// What happened lately.
#[derive(Serialize)]
struct Recent {
    /// The time that this covers.
    seconds: f64,
    acquires_per_second: f64,
    /// Those that waited in vain.
    failed_acquires: u64,
    acquire_wait: Histogram,
}

impl Figures {
    pub(super) fn of(monitor: &Monitor) -> Self {
        let reports = monitor.reports();
        let groups = reports.iter().filter(|report| report.is_group);
        Self {
            millpond: env!("CARGO_PKG_VERSION"),
            interval_seconds: None,
            groups: groups.map(Group::of).collect(),
            pools: reports.into_iter().flat_map(|report| report.pools).map(Pool::of).collect(),
        }
    }

    pub(super) fn json(&self) -> String {
        serde_json::to_string(self).expect("BUG: keys are text, and no figure refuses")
    }
}

impl Group {
    fn of(report: &Report) -> Self {
        let Report { name, health, pools, .. } = report;
        Self {
            name: name.clone(),
            reasons: health.reasons().to_vec(),
            health: health.clone(),
            pools: pools.iter().map(|(_, status)| status.config.name.to_string()).collect(),
        }
    }
}

impl Pool {
    fn of((source, status): (Arc<dyn Source>, PoolStatus)) -> Self {
        let PoolStatus { health, max_size, metrics, config, cluster } = status;
        let mut holders = source.holders();
        holders.sort_by_key(|holder| std::cmp::Reverse(holder.seniority()));
        Self {
            id: SourceId::of(&source),
            name: config.name.to_string(),
            cluster,
            reasons: health.reasons().to_vec(),
            health,
            max_size,
            metrics,
            holders,
            config,
            recent: None,
        }
    }
}

/// What all viewers share.
pub(super) struct Feed {
    monitor: Monitor,
    interval: Duration,
    began: Instant,
    latest: Mutex<Latest>,
}

#[derive(Default)]
struct Latest {
    /// The interval that was looked at last, when, and what came of it.
    event: Option<(u64, Instant, Bytes)>,
    /// What `recent` is reckoned from, oldest first: no more than `RECENT` moments.
    past: VecDeque<Moment>,
}

/// What is remembered of a moment.
struct Moment {
    at: Instant,
    pools: HashMap<SourceId, Totals>,
}

struct Totals {
    acquires: u64,
    failures: u64,
    wait: Histogram,
}

impl From<&PoolMetrics> for Totals {
    fn from(metrics: &PoolMetrics) -> Self {
        Self {
            acquires: metrics.acquires,
            failures: metrics.waits.failures(),
            wait: metrics.acquire_wait.clone(),
        }
    }
}

impl Feed {
    pub(super) fn new(monitor: Monitor, interval: Duration) -> Self {
        Self { monitor, interval, began: Instant::now(), latest: Mutex::default() }
    }

    pub(super) fn monitor(&self) -> &Monitor {
        &self.monitor
    }

    /// The event after that of the interval `seen`, or, for a new viewer, that of the present one, worked
    /// out once more if it is not [`FRESH`]. A viewer who comes late gets the present one too, and nothing
    /// is kept for it meanwhile.
    pub(super) async fn next(&self, seen: Option<u64>) -> (u64, Bytes) {
        if let Some(seen) = seen {
            tokio::time::sleep_until(self.begin_of(seen + 1)).await;
        }
        let mut latest = self.latest.lock().await;
        let present = self.present();
        let mut begins = true;
        if let Some((interval, at, event)) = &latest.event {
            begins = *interval != present;
            if !begins && (seen.is_some() || at.elapsed() < FRESH) {
                return (present, event.clone());
            }
        }
        let event = latest.work_out(&self.monitor, self.interval, begins);
        latest.event = Some((present, Instant::now(), event.clone()));
        (present, event)
    }

    fn present(&self) -> u64 {
        let interval = self.began.elapsed().as_nanos() / self.interval.as_nanos();
        u64::try_from(interval).unwrap_or(u64::MAX)
    }

    fn begin_of(&self, interval: u64) -> Instant {
        let nanos = u128::from(interval) * self.interval.as_nanos();
        self.began + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

impl Latest {
    /// One event of the stream: `data` is one line, since JSON breaks none. The first of an interval is
    /// what later ones reckon from.
    fn work_out(&mut self, monitor: &Monitor, interval: Duration, is_first: bool) -> Bytes {
        let now = Instant::now();
        // One more than half an interval: nobody is woken exactly in time.
        let memory = interval * RECENT + interval / 2;
        while self.past.front().is_some_and(|moment| now - moment.at > memory) {
            self.past.pop_front();
        }
        let mut figures = Figures::of(monitor);
        figures.interval_seconds = Some(interval.as_secs_f64());
        for pool in &mut figures.pools {
            pool.holders.truncate(HOLDERS);
            pool.recent = self.past.iter().find_map(|moment| moment.until(now, pool));
        }
        if is_first {
            if self.past.len() == RECENT as usize {
                self.past.pop_front();
            }
            let totals = |pool: &Pool| (pool.id.clone(), Totals::from(&pool.metrics));
            let pools = figures.pools.iter().map(totals).collect();
            self.past.push_back(Moment { at: now, pools });
        }
        format!("data: {}\n\n", figures.json()).into()
    }
}

impl Moment {
    /// What has happened to this pool since, unless it was not there.
    fn until(&self, now: Instant, pool: &Pool) -> Option<Recent> {
        let before = self.pools.get(&pool.id)?;
        let more = pool.metrics.acquires.checked_sub(before.acquires)?;
        let seconds = (now - self.at).as_secs_f64();
        (seconds > 0.0).then(|| Recent {
            seconds,
            acquires_per_second: more as f64 / seconds,
            failed_acquires: pool.metrics.waits.failures().saturating_sub(before.failures),
            acquire_wait: pool.metrics.acquire_wait.since(&before.wait),
        })
    }
}
