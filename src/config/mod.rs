//! The settings of a [`Pool`](crate::Pool), their ranges and their defaults.
//!
//! Not here: what they do; each setting is read where it applies.

#[cfg(feature = "serde")]
mod text;

#[cfg(all(feature = "serde", feature = "cluster"))]
pub(crate) use self::text::Value;

use crate::core::IdleOrder;
use crate::error::{ConfigError, check_capacity, check_shards};
use std::sync::Arc;
use std::time::Duration;

/// When a connection is checked before it is handed out. Default: if it has been idle for 5 s.
///
/// What an idle connection finds out by itself, [as PostgreSQL's do](crate::Manager::watch), ends it at once,
/// whatever the policy.
///
/// Once one is found dead, since it came back [broken](crate::Condition::Broken) or has failed its reset or a
/// check, those that are idle then are checked before their next use as well, unless the policy is
/// [`Never`](Self::Never), or the pool's runtime has ended: a restart of the server ends all of them. This happens
/// at most once in a `maintenance_interval`. It also happens when the pool's runtime ends, and then to those that
/// are in use or being opened as well, since a driver's connections do nothing without the runtime on which they
/// were opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CheckPolicy {
    /// Never: a dead connection shows when it is used, or in [`condition`](crate::Manager::condition).
    Never,
    /// Every time: one call of [`check`](crate::Manager::check) for each acquire. One that was opened
    /// less than a `maintenance_interval` ago and has not been used counts as checked; so does one that
    /// has passed a check in the background, such as a keepalive, since its last use and not longer than
    /// 5 s ago, or up to one `maintenance_interval` longer.
    Always,
    /// When it has been idle for this long, or up to one `maintenance_interval` longer: the reaper
    /// measures, so that an acquire need not read the clock. Above zero.
    IfIdleFor(Duration),
}

/// For how long a connection that is idle passes for alive, where nobody says otherwise.
pub(crate) const ALIVE_FOR: Duration = Duration::from_secs(5);

impl Default for CheckPolicy {
    fn default() -> Self {
        Self::IfIdleFor(ALIVE_FOR)
    }
}

/// Who goes first when callers wait.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Priority {
    /// First come, first served; where there are several [shards](Config::shards), in each of them.
    #[default]
    Normal,
    /// Before everybody who waits with [`Priority::Normal`], and with the reserved connections to
    /// itself: for health probes and the like.
    High,
}

/// How one acquire waits where that is not as for all: see [`Pool::acquire_with`](crate::Pool::acquire_with),
/// which takes a [`Priority`] alone as well.
///
/// # Examples
///
/// ```
/// use millpond::{AcquireOptions, Priority};
/// use std::time::Duration;
///
/// let probe = AcquireOptions::new().priority(Priority::High).timeout(Duration::from_millis(500));
/// assert_eq!((probe.priority, probe.timeout), (Priority::High, Some(Duration::from_millis(500))));
/// assert_eq!(AcquireOptions::from(Priority::High).timeout, None);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct AcquireOptions {
    /// In which line it waits. Default: [`Priority::Normal`].
    pub priority: Priority,
    /// How long it waits at the most: zero takes what is idle or gives up at once, and [`Duration::MAX`] waits
    /// for good. Default: `None`, for [`acquire_timeout`](Config::acquire_timeout).
    pub timeout: Option<Duration>,
}

impl AcquireOptions {
    /// As all others wait.
    #[must_use]
    pub const fn new() -> Self {
        Self { priority: Priority::Normal, timeout: None }
    }

    /// In the line of this priority.
    #[must_use]
    pub const fn priority(mut self, priority: Priority) -> Self {
        self.priority = priority;
        self
    }

    /// For `limit` at the most.
    #[must_use]
    pub const fn timeout(mut self, limit: Duration) -> Self {
        self.timeout = Some(limit);
        self
    }
}

impl From<Priority> for AcquireOptions {
    fn from(priority: Priority) -> Self {
        Self::new().priority(priority)
    }
}

/// When callers who have waited too long are turned away, so that the others are served in time.
///
/// If the smallest wait over an interval was longer than the target, the line does not empty any
/// more. Then, during the next interval, whoever is served after twice the target gets
/// [`AcquireError::Shed`](crate::AcquireError::Shed) instead, and the connection goes to the next in
/// line. An empty line counts as no wait at all.
///
/// The rule is that of CoDel ([RFC 8289](https://www.rfc-editor.org/rfc/rfc8289)), as folly's
/// `Codel` and Elixir's `db_connection` apply it to queues of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Shed {
    /// The wait that is acceptable for good; above zero. folly's default is 5 ms.
    pub target: Duration,
    /// How long waits may be longer than that, before anybody is turned away; at least `target`.
    /// folly's default is 100 ms.
    pub interval: Duration,
    /// Only count who would be turned away, in [`PoolMetrics::shed`](crate::PoolMetrics::shed).
    pub report_only: bool,
}

impl Shed {
    /// Turns callers away by this target and interval.
    #[must_use]
    pub fn new(target: Duration, interval: Duration) -> Self {
        Self { target, interval, report_only: false }
    }

    /// Only counts them.
    #[must_use]
    pub fn report_only(mut self) -> Self {
        self.report_only = true;
        self
    }
}

/// The settings of a pool, as the builder has checked them.
///
/// Each field has a method of its name at the [`PoolBuilder`](crate::PoolBuilder), with an example (for
/// `backoff_max` that is [`backoff`](crate::PoolBuilder::backoff)).
///
/// With the feature `serde` they are read from TOML, JSON and the like, and with `from_env` from the
/// environment. Keys are the names of the fields; times are text such as `"30s"`, `"5m"` or `"1h 30m"`;
/// where a field may be `None`, that is `"never"` or `"none"`, whichever reads better, and not `null`;
/// `check` is `"never"`, `"always"` or a time; `reserved` is a number, for [`Priority::High`].
///
/// [`Shed`] is `shed_target`, `shed_interval` and `shed_report_only`: either of the times switches it
/// on, and so does asking for reports; what is not said then is 5 ms, 100 ms and `false`.
///
/// What is left out has its default, or makes way for what is there: an `idle_timeout` is no longer than
/// `max_lifetime`, a `backoff_max` no shorter than `backoff`, a `backoff` no longer than `backoff_max`, and
/// so are the times of shedding, of which the target is the shorter one. A key or value that is wrong is an
/// error that names it, and the rule. Of what is no setting it does not tell the value, which may be a
/// secret; but the `toml` crate's own errors quote a line of the file, which
/// [`message`](https://docs.rs/toml/latest/toml/de/struct.Error.html#method.message) does not.
///
/// # Examples
///
#[cfg_attr(feature = "serde", doc = "```")]
#[cfg_attr(not(feature = "serde"), doc = "```ignore")]
/// use millpond::{CheckPolicy, Config};
/// use std::time::Duration;
///
/// let config: Config = toml::from_str(
///     r#"
///     name = "orders"
///     ## How many.
///     max_size = 32
///     capacity = 64               # as far as it may be resized
///     min_idle = 4
///     reserved = 2                # for Priority::High
///     ## How long things may take.
///     acquire_timeout = "250ms"
///     connect_timeout = "2s"
///     check_timeout = "500ms"
///     reset_timeout = "500ms"
///     close_timeout = "500ms"
///     ## How connections are opened.
///     max_connecting = 8
///     backoff = "20ms"
///     backoff_max = "1s"
///     fail_fast = true
///     ## How long they stay, and when they are looked at.
///     check = "10s"
///     max_lifetime = "1h"
///     lifetime_jitter = 0.1
///     idle_timeout = "never"
///     keepalive_interval = "1m"
///     maintenance_interval = "500ms"
///     ## When too much is asked.
///     max_waiters = 1000
///     shed_target = "20ms"
///     shed_interval = "200ms"
///     shed_report_only = true
///     ## What is watched.
///     leak_after = "1m"
///     slow_acquire = "100ms"
///     detect_deadlock = true
///     time_use = true
///     trace_uses = true
///     ## Who is next.
///     order = "fifo"
///     shards = 1
///     "#,
/// )?;
/// assert_eq!((config.max_size, config.idle_timeout), (32, None));
/// assert_eq!(config.check, CheckPolicy::IfIdleFor(Duration::from_secs(10)));
///
/// let error = toml::from_str::<Config>(r#"acquire_timeout = "-1s""#).unwrap_err();
/// assert!(error.to_string().contains("acquire_timeout is \"-1s\", but it must be a time"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Config {
    /// The pool's name in messages and figures; not empty. Default: `millpond`.
    pub name: Arc<str>,
    /// The most connections that are alive or being opened at any instant: 1 to 1,048,576.
    /// [`Pool::resize`](crate::Pool::resize) allows another number afterwards, which
    /// [`Pool::max_size`](crate::Pool::max_size) tells; this stays. Default: 10.
    pub max_size: usize,
    /// The largest `max_size` that the pool can be resized to: `max_size` to 1,048,576. The default number of
    /// [shards](Self::shards) goes by it. Default: `None`, which is `max_size`.
    ///
    /// A slot costs memory, used or not: with a connection of one word 392 bytes, or 520 with the
    /// feature `tracing`, and with a larger one up to as many bytes more as it has, rounded up to a
    /// multiple of 128. 32 of these bytes are those of the idle order; [`IdleOrder::Lifo`] takes 16 for
    /// each shard instead. (`cargo bench --bench zero_alloc` shows it.)
    pub capacity: Option<usize>,
    /// How many idle connections the pool keeps ready: 0 to `max_size`. Default: 0.
    ///
    /// They are no more than there is room for: those in use count towards `max_size` first, and
    /// [`reserved`](Self::reserved) slots are filled only for the callers they are kept for, and count
    /// for nobody else. While connecting fails for good, none is opened unasked; and a pool that was
    /// [built lazily](crate::PoolBuilder::build_lazy) opens none before the first acquire or warm-up. Under
    /// a cap over all nodes of a cluster, the pool of a node has room only for what its callers have needed.
    ///
    /// While the pool is not full, each hit after which fewer than this are ready at its thread's own shard
    /// looks at all shards. If fewer are idle in all, it has the missing ones opened, which takes a look at
    /// all slots, a lock and a task; while they cannot be opened, each such hit looks again.
    pub min_idle: usize,
    /// How long an acquire waits, all in all; above zero. Default: 5 s.
    pub acquire_timeout: Duration,
    /// How long one attempt to connect may take; above zero. Default: 5 s.
    pub connect_timeout: Duration,
    /// How long a check may take; above zero. Default: 1 s.
    pub check_timeout: Duration,
    /// How long a reset may take; above zero. Default: 1 s.
    pub reset_timeout: Duration,
    /// How long closing a connection may take; above zero. Default: 1 s.
    pub close_timeout: Duration,
    /// The most connects at the same time, at least 1. The first connect, and the first after a
    /// failed one, go alone; each that succeeds doubles the number up to this. There are no more of them than
    /// callers who wait, but for those that have taken longer than 1 s, or than `acquire_timeout`: they may hang,
    /// so that others begin beside them. A
    /// [warm-up](crate::Pool::warm_up) looks how many others connect, but what is begun for callers, or by
    /// another warm-up, while it connects may come on top; so may the connect of a
    /// [rotation](crate::Pool::rotate). Default: 4.
    pub max_connecting: usize,
    /// The pause after a failed connect is random, up to this; each further failure doubles it.
    /// Above zero, at most `backoff_max`. After a failure [for good](crate::Manager::is_permanent) with
    /// nothing alive it is not random, nobody tries again before it is over, and whoever comes meanwhile is told of
    /// that failure at once. Default: 50 ms.
    pub backoff: Duration,
    /// The most that the pause grows to; above zero. Default: 2 s.
    pub backoff_max: Duration,
    /// When a connection is checked before it is handed out. Default: if it has been idle for 5 s.
    pub check: CheckPolicy,
    /// How long a connection lives: an idle one is closed then, one in use when it comes back. Above
    /// zero; `None` for no limit. Default: 30 min.
    pub max_lifetime: Option<Duration>,
    /// The part of `max_lifetime` by which a connection's life may be shorter, so that those opened
    /// together are not closed together: 0.0 to 1.0. Default: 0.2.
    pub lifetime_jitter: f64,
    /// How long connections may be idle that are not needed; above zero, at most `max_lifetime`;
    /// `None` for no limit. `min_idle` stay. Default: 10 min.
    pub idle_timeout: Option<Duration>,
    /// How long a connection may be idle without a [`check`](crate::Manager::check) to keep it
    /// alive; above zero; `None` for none. Default: 2 min.
    pub keepalive_interval: Option<Duration>,
    /// How often the reaper looks; above zero. It is the resolution of all times that it measures.
    /// [`Maintenance::set_interval`](crate::Maintenance::set_interval) changes that afterwards; this stays.
    /// Default: 1 s.
    pub maintenance_interval: Duration,
    /// A connection that is held for longer is reported to [`Hooks::on_leak`](crate::Hooks::on_leak) and
    /// counted as leaked; above zero; `None` for never. Default: `None`.
    pub leak_after: Option<Duration>,
    /// An acquire that waits for longer is told to whoever listens, with the feature `tracing`; above
    /// zero; `None` for never. Default: `None`.
    pub slow_acquire: Option<Duration>,
    /// The most callers that may wait, at least 1; `None` for no limit. Whoever comes when they do gets
    /// [`AcquireError::QueueFull`](crate::AcquireError::QueueFull). Those count too for whom a
    /// connection is being opened: a burst on a pool that has room meets this limit before the
    /// connections are there; and those with [`Priority::High`], and a [rotation](crate::Pool::rotate) that waits
    /// for room, though none of these is refused. Default: `None`.
    pub max_waiters: Option<usize>,
    /// Connections that only callers with [`Priority::High`] get: below `max_size`; none for
    /// [`Priority::Normal`], nor in a cluster, where nobody has a priority. Default: none.
    pub reserved: (Priority, usize),
    /// Turns callers away who have waited too long. Default: `None`.
    pub shed: Option<Shed>,
    /// While connecting fails and no connection is left that could come back to him, whoever would have to
    /// wait gets [`AcquireError::Unavailable`](crate::AcquireError::Unavailable) at once. Default:
    /// `false`: they wait until their deadlines. One that is being closed does not count as left. Whoever
    /// waits already hears of connects that fail: while those
    /// that are new are [lost](crate::OperationError::Lost) or rejected by a hook, he waits on.
    ///
    /// Whoever is refused cannot find out that the server is back, so the pool goes on trying, one connect
    /// at a time with the pauses of `backoff`, until connecting works or fails for good, though nobody
    /// waits and other connections are alive.
    pub fail_fast: bool,
    /// Finds out when everybody who holds a connection waits for another one, and ends the last wait with
    /// [`AcquireError::WouldDeadlock`](crate::AcquireError::WouldDeadlock). Default: `false`.
    ///
    /// It makes each acquire slower, and takes a connection to be held by the task that acquired it, or the
    /// thread outside of tasks. Of one with an owned guard, which may be anywhere by then, it knows no holder:
    /// those who wait for each other are not found out if one of them holds such a guard. A task that waits
    /// for several side by side (`join!`, `buffer_unordered`) and holds one of them already is told so
    /// although it would go on, and so is who has lent a guard that borrows the pool to a scoped thread. Who
    /// waits for any node of a cluster, also if one alone is allowed at the time, counts as one who will go
    /// on, since another node may come to serve; so does, under a cap over all nodes, who waits for a node
    /// that the cap may let have more.
    pub detect_deadlock: bool,
    /// Measures for how long connections are in use, for
    /// [`PoolMetrics::use_time`](crate::PoolMetrics::use_time). Each acquire and release leaves the
    /// fast path for that and reads the clock. Default: `false`.
    pub time_use: bool,
    /// With the feature `tracing`, opens a span `use` at level trace for as long as a connection is in
    /// somebody's hands. Each acquire and release leaves the fast path for that. Default: `false`.
    pub trace_uses: bool,
    /// The order in which idle connections are handed out. Default: [`IdleOrder::Recent`].
    pub order: IdleOrder,
    /// The number of shards: a power of two from 1 to 256, or `None` for the largest that is
    /// neither above the machine's parallelism nor above half of `capacity`, since it stays the same when the
    /// pool is [resized](crate::Pool::resize). One shard is strictly first come, first served; more scale with
    /// threads. Default: `None`.
    pub shards: Option<usize>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            name: "millpond".into(),
            max_size: 10,
            capacity: None,
            min_idle: 0,
            acquire_timeout: Duration::from_secs(5),
            connect_timeout: Duration::from_secs(5),
            check_timeout: Duration::from_secs(1),
            reset_timeout: Duration::from_secs(1),
            close_timeout: Duration::from_secs(1),
            max_connecting: 4,
            backoff: Duration::from_millis(50),
            backoff_max: Duration::from_secs(2),
            check: CheckPolicy::default(),
            max_lifetime: Some(Duration::from_secs(30 * 60)),
            lifetime_jitter: 0.2,
            idle_timeout: Some(Duration::from_secs(10 * 60)),
            keepalive_interval: Some(Duration::from_secs(2 * 60)),
            maintenance_interval: Duration::from_secs(1),
            leak_after: None,
            slow_acquire: None,
            max_waiters: None,
            reserved: (Priority::High, 0),
            shed: None,
            fail_fast: false,
            detect_deadlock: false,
            time_use: false,
            trace_uses: false,
            order: IdleOrder::Recent,
            shards: None,
        }
    }
}

/// How long a connect may take before it is late. An `acquire_timeout` that is shorter takes its place.
const LONG_CONNECT: Duration = Duration::from_secs(1);

impl Config {
    /// How long a connect may take before those who wait for it no longer count on it.
    pub(crate) fn connect_patience(&self) -> Duration {
        LONG_CONNECT.min(self.acquire_timeout)
    }

    /// The number of slots.
    pub(crate) fn slots(&self) -> usize {
        self.capacity.unwrap_or(self.max_size)
    }

    /// Makes an idle timeout that nobody has chosen no longer than connections live.
    pub(crate) fn shorten_idle_timeout(&mut self) {
        let limit = self.max_lifetime;
        let shorter = |idle: Duration| limit.map_or(idle, |limit| idle.min(limit));
        self.idle_timeout = self.idle_timeout.map(shorter);
    }

    /// Whether nobody has chosen the idle timeout, as far as can be told: it is the default, or what
    /// that is shortened to.
    pub(crate) fn has_usual_idle_timeout(&self) -> bool {
        let mut usual = Self { max_lifetime: self.max_lifetime, ..Self::default() };
        let whole = usual.idle_timeout;
        usual.shorten_idle_timeout();
        [whole, usual.idle_timeout].contains(&self.idle_timeout)
    }

    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        check_name("name", &self.name)?;
        check_capacity("max_size", self.max_size)?;
        if let Some(capacity) = self.capacity {
            check_capacity("capacity", capacity)?;
            if capacity < self.max_size {
                let rule = format!("must be at least max_size, which is {}", self.max_size);
                return Err(ConfigError::new("capacity", capacity, rule));
            }
        }
        if self.min_idle > self.max_size {
            let rule = format!("must be at most max_size, which is {}", self.max_size);
            return Err(ConfigError::new("min_idle", self.min_idle, rule));
        }
        self.validate_durations()?;
        if !(0.0..=1.0).contains(&self.lifetime_jitter) {
            let rule = "must be from 0.0 to 1.0";
            return Err(ConfigError::new("lifetime_jitter", self.lifetime_jitter, rule));
        }
        if self.max_connecting == 0 {
            return Err(ConfigError::new("max_connecting", 0, "must be at least 1"));
        }
        if self.max_waiters == Some(0) {
            return Err(ConfigError::new("max_waiters", 0, "must be at least 1"));
        }
        self.check_reserved(self.max_size)?;
        self.shards.map_or(Ok(()), check_shards)
    }

    fn validate_durations(&self) -> Result<(), ConfigError> {
        let always = [
            ("acquire_timeout", self.acquire_timeout),
            ("connect_timeout", self.connect_timeout),
            ("check_timeout", self.check_timeout),
            ("reset_timeout", self.reset_timeout),
            ("close_timeout", self.close_timeout),
            ("backoff_max", self.backoff_max),
            ("backoff", self.backoff),
            ("maintenance_interval", self.maintenance_interval),
        ];
        let idle_for = match self.check {
            CheckPolicy::IfIdleFor(time) => Some(time),
            CheckPolicy::Never | CheckPolicy::Always => None,
        };
        let perhaps = [
            ("check", idle_for),
            ("slow_acquire", self.slow_acquire),
            ("max_lifetime", self.max_lifetime),
            ("idle_timeout", self.idle_timeout),
            ("keepalive_interval", self.keepalive_interval),
            ("leak_after", self.leak_after),
            ("shed_interval", self.shed.map(|shed| shed.interval)),
            ("shed_target", self.shed.map(|shed| shed.target)),
        ];
        let perhaps = perhaps.into_iter().filter_map(|(field, time)| Some((field, time?)));
        for (field, time) in always.into_iter().chain(perhaps) {
            above_zero(field, time)?;
        }
        at_most(("backoff", self.backoff), ("backoff_max", self.backoff_max))?;
        if let (Some(idle), Some(life)) = (self.idle_timeout, self.max_lifetime) {
            at_most(("idle_timeout", idle), ("max_lifetime", life))?;
        }
        match self.shed {
            Some(shed) => at_most(("shed_target", shed.target), ("shed_interval", shed.interval)),
            None => Ok(()),
        }
    }

    /// Whether a pool of `size` connections has room for the reserved ones.
    pub(crate) fn check_reserved(&self, size: usize) -> Result<(), ConfigError> {
        match self.reserved {
            (_, 0) => Ok(()),
            (Priority::High, count) if count < size => Ok(()),
            (Priority::High, count) => {
                let rule = format!("must be below max_size, which is {size}");
                Err(ConfigError::new("reserved", count, rule))
            }
            (Priority::Normal, count) => {
                let rule = "must be 0 for Priority::Normal, which takes what is not reserved";
                Err(ConfigError::new("reserved", count, rule))
            }
        }
    }
}

/// A label without a value is no label, to those who collect figures.
pub(crate) fn check_name(field: &'static str, name: &str) -> Result<(), ConfigError> {
    if name.is_empty() {
        return Err(ConfigError::new(field, "\"\"", "must not be empty"));
    }
    Ok(())
}

pub(crate) fn above_zero(field: &'static str, time: Duration) -> Result<(), ConfigError> {
    if time.is_zero() {
        return Err(ConfigError::new(field, format_args!("{time:?}"), "must be above zero"));
    }
    Ok(())
}

fn at_most(
    (field, time): (&'static str, Duration),
    (other, most): (&str, Duration),
) -> Result<(), ConfigError> {
    if time > most {
        let rule = format!("must be at most {other}, which is {most:?}");
        return Err(ConfigError::new(field, format_args!("{time:?}"), rule));
    }
    Ok(())
}
