//! How a pool is, for people: its health in words, its figures and its settings.
//!
//! Not here: the figures themselves (`mod.rs`).

use super::PoolMetrics;
use crate::config::Config;
use crate::core::Counts;
use crate::error::To;
use crate::pool::Holder;
use std::fmt::{self, Write};
use std::sync::Arc;
use std::time::Duration;

/// How a pool is.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PoolStatus {
    /// Whether it does what it is for, and if not, why; between two requests, too.
    pub health: Health,
    /// The most connections that there may be at the moment.
    pub max_size: usize,
    /// Its figures.
    pub metrics: PoolMetrics,
    /// Its settings. There are no secrets among them: those are the manager's.
    pub config: Config,
    /// Which node of which cluster it stands for, if it is one's.
    pub cluster: Option<ClusterNode>,
}

/// The node of a cluster that a pool stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ClusterNode {
    /// The cluster's name.
    pub name: Arc<str>,
    /// The node's key.
    pub node: Arc<str>,
    /// Its role at the moment.
    pub role: Role,
}

impl ClusterNode {
    #[cfg(feature = "cluster")]
    pub(crate) fn new(name: Arc<str>, node: Arc<str>, role: Role) -> Self {
        Self { name, node, role }
    }
}

/// What a node of a cluster is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u8)]
#[non_exhaustive]
pub enum Role {
    /// Nobody has said.
    #[default]
    Unknown,
    /// It takes writes.
    Primary,
    /// It can be read from.
    Replica,
}

impl Role {
    /// Each at the place that its number says.
    #[allow(dead_code, reason = "a cluster keeps the number, exporters tell of each")]
    pub(crate) const ALL: [Self; 3] = [Self::Unknown, Self::Primary, Self::Replica];

    /// One word: `unknown`, `primary` or `replica`.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Primary => "primary",
            Self::Replica => "replica",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unknown => "role unknown",
            Self::Primary | Self::Replica => self.word(),
        })
    }
}

/// Whether a pool does what it is for.
///
/// It is degraded while something is wrong with connecting, all connections are in use and somebody waits for one, one
/// has been held for [`leak_after`](crate::Config::leak_after), or maintenance is paused. So it is for 30 s after an
/// acquire has run into its deadline that had waited for a second, or for `acquire_timeout` if that is shorter: a pool
/// that serves nobody is seen between two requests too. A caller with a shorter deadline of his own is not noted. That
/// others are served meanwhile does not end that, since a pool with too few connections serves some; that one is opened
/// does, if it was waited for.
///
/// It is down when it is closed or being drained, or something is wrong with connecting and it has no connection.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Health {
    /// As it should.
    Healthy,
    /// Yes, but something is wrong, for these reasons.
    Degraded(Vec<String>),
    /// No, for these reasons.
    Down(Vec<String>),
}

impl Health {
    /// One word: `healthy`, `degraded` or `down`.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Degraded(_) => "degraded",
            Self::Down(_) => "down",
        }
    }

    /// The reasons, in whole phrases.
    #[must_use]
    pub fn reasons(&self) -> &[String] {
        match self {
            Self::Healthy => &[],
            Self::Degraded(reasons) | Self::Down(reasons) => reasons,
        }
    }

    /// Whether the pool does what it is for, well or badly.
    #[must_use]
    pub fn is_up(&self) -> bool {
        !matches!(self, Self::Down(_))
    }

    /// That of several together which stand in for each other.
    pub(crate) fn together<'h, N: fmt::Display>(each: impl Iterator<Item = (N, &'h Self)>) -> Self {
        let (mut reasons, mut is_up) = (Vec::new(), false);
        for (name, health) in each {
            is_up |= health.is_up();
            if *health != Self::Healthy {
                reasons.push(format!("{name} is {health}"));
            }
        }
        if reasons.is_empty() {
            Self::Healthy
        } else if is_up {
            Self::Degraded(reasons)
        } else {
            Self::Down(reasons)
        }
    }

    /// With these reasons before its own, none of which brings it down.
    #[cfg(feature = "cluster")]
    pub(crate) fn degraded_by(self, mut reasons: Vec<String>) -> Self {
        if reasons.is_empty() {
            return self;
        }
        reasons.extend_from_slice(self.reasons());
        if self.is_up() { Self::Degraded(reasons) } else { Self::Down(reasons) }
    }
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())?;
        for (index, reason) in self.reasons().iter().enumerate() {
            write!(f, "{} {reason}", if index == 0 { ":" } else { ";" })?;
        }
        Ok(())
    }
}

/// Whether connecting works, as far as anybody knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Connecting {
    Works,
    /// It has failed and has not succeeded since, or what was opened has been of no use.
    Fails,
    /// The same, and there is no point in trying again.
    FailsForGood,
}

/// An acquire that has run into its deadline not long ago.
pub(crate) struct InVain {
    pub(crate) waited: Duration,
    pub(crate) ago: Duration,
    /// One was to be opened for it, and none has been since.
    pub(crate) for_a_new_one: bool,
}

/// Why connecting fails.
pub(crate) struct Failing {
    pub(crate) why: Arc<str>,
    /// Where it was to lead, if that does not say so.
    pub(crate) target: Option<Arc<str>>,
    pub(crate) ago: Duration,
}

/// What a pool's health follows from, besides its figures.
pub(crate) struct Signs {
    /// `None` while it is open: then what it is instead.
    pub(crate) closed: Option<&'static str>,
    pub(crate) connecting: Connecting,
    /// Why it fails, if it does.
    pub(crate) failure: Option<Failing>,
    /// Where connections lead, if the manager says so.
    pub(crate) target: Option<Arc<str>>,
    /// That is what a hook has said of a new connection, and not a failed connect.
    pub(crate) rejects: bool,
    /// Somebody is connecting, or pauses before he tries again.
    pub(crate) is_dialing: bool,
    /// For how long the oldest connect has been under way.
    pub(crate) connecting_for: Option<Duration>,
    /// The last acquire that has waited in vain, as long as that is to be told.
    pub(crate) in_vain: Option<InVain>,
    /// How many connections have been held for `leak_after`.
    pub(crate) held_too_long: usize,
    /// What was opened last has been of no use: a hook has rejected it, or it was lost.
    pub(crate) all_are_useless: bool,
    pub(crate) maintenance_is_paused: bool,
    pub(crate) max_size: usize,
    /// Places of those for callers with priority alone that are vacant, or have a connection that is idle or being
    /// opened.
    pub(crate) kept: usize,
    /// Those of them whose connection is idle.
    pub(crate) kept_idle: usize,
}

impl PoolStatus {
    pub(crate) fn new(
        signs: &Signs,
        metrics: PoolMetrics,
        config: Config,
        cluster: Option<ClusterNode>,
    ) -> Self {
        let health = health(signs, metrics.counts, metrics.oldest_holder, &config);
        Self { health, max_size: signs.max_size, metrics, config, cluster }
    }
}

/// How a pool with these connections is.
pub(crate) fn health(
    signs: &Signs,
    counts: Counts,
    oldest_holder: Option<Holder>,
    config: &Config,
) -> Health {
    if let Some(what) = signs.closed {
        return Health::Down(vec![format!("the pool is {what}")]);
    }
    let mut reasons = Vec::new();
    // What is being closed may be for long, and serves nobody any more.
    let serving = counts.alive() - counts.closing;
    let is_full = serving > 0 && serving >= signs.max_size;
    // Once all connections that there may be are there, an old failure says nothing any more, unless
    // it is they who were of no use.
    if !is_full || signs.all_are_useless {
        let failure = signs.failure.as_ref();
        let why = failure.map_or("?", |failing| &failing.why);
        let target = failure.and_then(|failing| failing.target.as_deref());
        let (what, to_where, fails, failed) = match signs.rejects {
            true => ("hooks", To(None), "reject what is opened", "rejected what was opened"),
            false => ("connecting", To(target), "fails", "failed"),
        };
        match signs.connecting {
            Connecting::Works => {}
            // A pool that is down goes on trying.
            Connecting::Fails if signs.is_dialing || serving == 0 => {
                reasons.push(format!("{what}{to_where} {fails}: {why}"));
            }
            Connecting::Fails => {
                let ago = failure.map_or(Duration::ZERO, |failing| failing.ago);
                reasons.push(format!(
                    "{what}{to_where} {failed} {ago:.0?} ago: {why}; it is tried again when one more is \
                     wanted"
                ));
            }
            Connecting::FailsForGood => reasons.push(format!(
                "{what}{to_where} fails for good: {why}; it is tried again only when somebody has to wait \
                 for one more, or for a warm-up or a rotation"
            )),
        }
    }
    // A server that does not answer is known to fail only when `connect_timeout` is over.
    if let Some(long) = signs.connecting_for.filter(|long| *long > config.connect_patience()) {
        let waiters = counts.waiters;
        let none_is_left = counts.idle <= signs.kept_idle;
        if signs.connecting == Connecting::Works && waiters > 0 && none_is_left {
            let (to, wait) = (To(signs.target.as_deref()), wait_for_one(waiters));
            reasons
                .push(format!("opening a connection{to} has gone on for {long:.1?}, and {wait}"));
        }
    }
    // What is wrong with connecting says why it was in vain. Once all connections are there, that it waited for one
    // more says nothing.
    let in_vain = signs.in_vain.as_ref();
    let in_vain = in_vain.filter(|it| reasons.is_empty() && !(it.for_a_new_one && is_full));
    if let Some(InVain { waited, ago, .. }) = in_vain {
        reasons.push(format!("an acquire has waited {waited:.1?} in vain, {ago:.0?} ago"));
    }
    let paused = signs.maintenance_is_paused.then(|| "maintenance is paused".to_owned());
    // Where none was to be opened, as under a cap over several pools, others may have all connections.
    let is_down = !reasons.is_empty() && in_vain.is_none_or(|it| it.for_a_new_one);
    if is_down && serving == 0 {
        // It may be what keeps the pool from looking whether the server is back.
        reasons.extend(paused);
        return Health::Down(reasons);
    }
    // Under a cap over several pools one may have room for none, and whoever waits there waits for its
    // turn: that there is nothing in use is nothing wrong.
    let busy = counts.alive() - counts.idle;
    let used_up = busy > 0 && busy + signs.kept >= signs.max_size;
    if used_up && (counts.waiters > 0 || in_vain.is_some()) {
        let what = [
            (counts.in_use, "in use"),
            (counts.checking + counts.resetting, "being made ready"),
            (counts.closing, "being closed"),
        ];
        let what: Vec<_> =
            what.iter().filter(|(count, _)| *count > 0).map(|(_, what)| *what).collect();
        let what = what.join(" or ");
        let all = match (signs.kept, busy) {
            (0, 1) => format!("the only connection is {what}"),
            (0, _) => format!("all {busy} connections are {what}"),
            (_, 1) => format!("1 connection is {what}, all but what is reserved"),
            _ => format!("{busy} connections are {what}, all but what is reserved"),
        };
        reasons.push(match counts.waiters {
            0 => all,
            waiters => format!("{all}, and {}", wait_for_one(waiters)),
        });
    }
    match (oldest_holder, signs.held_too_long) {
        (Some(holder), 0) if used_up && in_vain.is_some() => {
            reasons.push(format!("held longest: {holder}"));
        }
        (None, _) | (_, 0) => {}
        (Some(holder), 1) => reasons.push(format!("held for too long: {holder}")),
        (Some(holder), all) => {
            reasons.push(format!("held for too long: {holder}, and {} more", all - 1));
        }
    }
    reasons.extend(paused);
    if reasons.is_empty() { Health::Healthy } else { Health::Degraded(reasons) }
}

/// How many wait, for the end of a sentence.
fn wait_for_one(waiters: usize) -> String {
    format!("{waiters} {} for one", if waiters == 1 { "waits" } else { "wait" })
}

/// A table for a terminal; `{:#}` is one line for a log: name, health, connections, and what is wrong.
impl fmt::Display for PoolStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { health, max_size, metrics, config, cluster: _ } = self;
        if f.alternate() {
            write!(OneLine(f), "pool {}: {}; ", config.name, health.word())?;
            return write_line(f, metrics.counts, *max_size, health);
        }
        writeln!(f, "pool {}: {}", config.name, health.word())?;
        for reason in health.reasons() {
            writeln!(f, "  ! {reason}")?;
        }
        let mut row = |name: &str, text: fmt::Arguments<'_>| writeln!(f, "  {name:<13}{text}");
        let counts = metrics.counts;
        row("connections", format_args!("{counts}; at most {max_size}"))?;
        let wait = &metrics.acquire_wait;
        let times = |part| Short(wait.quantile(part).unwrap_or_default());
        row(
            "acquires",
            format_args!(
                "{} served, {} of them after a wait; p50 {}, p99 {}, p99.9 {}",
                metrics.acquires,
                metrics.waits.served,
                times(0.5),
                times(0.99),
                times(0.999),
            ),
        )?;
        let waits = &metrics.waits;
        if waits.failures() > 0 {
            row("in vain", format_args!("{}", list(waits.by_outcome().skip(1))))?;
        }
        let connect = Short(metrics.connect_time.quantile(0.5).unwrap_or_default());
        row(
            "connects",
            format_args!(
                "{} opened, p50 {connect}; {} failed",
                metrics.created, metrics.connect_failures
            ),
        )?;
        if let Some(error) = &metrics.last_connect_error {
            row("last error", format_args!("{:.0?} ago: {}", error.ago, error.message))?;
        }
        if metrics.closed.total() > 0 {
            row("closed", format_args!("{}", list(metrics.closed.by_reason())))?;
        }
        if let Some(holder) = &metrics.oldest_holder {
            row("held longest", format_args!("{holder}"))?;
        }
        Ok(())
    }
}

/// The end of a line that says how something is: its connections, and what is wrong.
pub(crate) fn write_line(
    f: &mut fmt::Formatter<'_>,
    counts: Counts,
    max_size: usize,
    health: &Health,
) -> fmt::Result {
    let Counts { in_use, idle, waiters, .. } = counts;
    write!(f, "{in_use} of {max_size} in use, {idle} idle, {waiters} waiting")?;
    for reason in health.reasons() {
        write!(OneLine(f), "; {reason}")?;
    }
    Ok(())
}

/// Writes what has several lines, such as what a server has said, as one.
pub(crate) struct OneLine<'l, 'f>(pub(crate) &'l mut fmt::Formatter<'f>);

impl fmt::Write for OneLine<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for (index, line) in text.split(['\n', '\r']).enumerate() {
            if index > 0 {
                self.0.write_char(' ')?;
            }
            self.0.write_str(line)?;
        }
        Ok(())
    }
}

/// A time in a few letters.
struct Short(Duration);

impl fmt::Display for Short {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_zero() { f.write_str("0") } else { write!(f, "{:.1?}", self.0) }
    }
}

/// Counts with their names, without those that are zero.
fn list(counts: impl Iterator<Item = (&'static str, u64)>) -> String {
    let counts = counts.filter(|(_, count)| *count > 0);
    let each = counts.map(|(what, count)| format!("{count} {}", what.replace('_', " ")));
    each.collect::<Vec<_>>().join(", ")
}
