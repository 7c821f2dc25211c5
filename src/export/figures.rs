//! The figures of a pool by name, as those exporters tell them that speak of families and labels.
//!
//! Not here: how each of them says it.

use crate::core::Counts;
use crate::metrics::{ClusterNode, Histogram, PoolStatus, Role};
#[cfg(any(feature = "metrics", feature = "prometheus"))]
use std::sync::Arc;
use std::time::Duration;

/// A label's value, or nothing, and a count.
pub(super) type Labelled = (&'static str, u64);

/// What is told of a pool under one name.
#[allow(dead_code, reason = "no exporter reads all of it")]
pub(super) struct Family {
    /// With its unit, and with `_total` if it is a counter.
    pub(super) name: &'static str,
    /// As UCUM writes it: `s`, or what is counted.
    pub(super) unit: &'static str,
    pub(super) help: &'static str,
    /// What its figures differ in, besides whose they are.
    pub(super) label: Option<&'static str>,
    pub(super) kind: Kind,
}

/// How the figures of a family behave, and what they are.
#[allow(dead_code, reason = "no exporter reads all of it")]
pub(super) enum Kind {
    /// They go up and down.
    Gauge(fn(&PoolStatus) -> Vec<Labelled>),
    /// A time that goes up and down.
    Time(fn(&PoolStatus) -> Duration),
    /// They only grow.
    Counter(fn(&PoolStatus) -> Vec<Labelled>),
    /// A distribution of times, if it is measured.
    Times {
        of: fn(&PoolStatus) -> Option<&Histogram>,
        /// In seconds, for those who count between bounds.
        bounds: &'static [f64],
        /// Whether zero stands for all that did not wait: too many to tell of one by one.
        hits: bool,
    },
}

impl Family {
    const fn gauge(
        name: &'static str,
        unit: &'static str,
        help: &'static str,
        figure: fn(&PoolStatus) -> Vec<Labelled>,
    ) -> Self {
        Self { name, unit, help, label: None, kind: Kind::Gauge(figure) }
    }

    const fn counter(
        name: &'static str,
        unit: &'static str,
        help: &'static str,
        figure: fn(&PoolStatus) -> Vec<Labelled>,
    ) -> Self {
        Self { name, unit, help, label: None, kind: Kind::Counter(figure) }
    }

    const fn by(mut self, label: &'static str) -> Self {
        self.label = Some(label);
        self
    }
}

const fn one(count: u64) -> Labelled {
    ("", count)
}

/// Labels that say whose a figure is: the pool's name, and which node of which cluster it stands for,
/// if it is one's. The node's role is a figure instead: as a label it would begin all series of the
/// node anew at each failover.
#[cfg(any(feature = "metrics", feature = "prometheus"))]
pub(super) fn whose(status: &PoolStatus) -> impl Iterator<Item = (&'static str, &Arc<str>)> {
    let cluster = status.cluster.iter();
    let labels = cluster.flat_map(|cluster| [("cluster", &cluster.name), ("node", &cluster.node)]);
    std::iter::once(("pool", &status.config.name)).chain(labels)
}

/// Waits: from what a busy machine needs to wake a task to the usual deadlines.
const WAITS: [f64; 16] = [
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
    5.0, 10.0,
];
/// Connects: from a socket on the same machine to a server that is hardly there.
const CONNECTS: [f64; 14] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// Uses: from one query to a report, or a leak.
const USES: [f64; 16] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
    60.0,
];
/// Lifetimes: from connections that break at once to the longest that are told apart.
const LIFETIMES: [f64; 10] = [1.0, 5.0, 15.0, 60.0, 300.0, 600.0, 1200.0, 1800.0, 3600.0, 7200.0];

/// All of them, in the order in which they are told.
pub(super) const FAMILIES: [Family; 22] = [
    Family::gauge(
        "millpond_up",
        "{pool}",
        "Whether the pool does what it is for, well or badly",
        |status| vec![one(status.health.is_up().into())],
    ),
    Family::gauge("millpond_health", "{pool}", "1 for the state in which the pool is", |status| {
        let is = status.health.word();
        ["healthy", "degraded", "down"].map(|word| (word, (word == is).into())).into()
    })
    .by("state"),
    Family::gauge(
        "millpond_node_role",
        "{node}",
        "1 for the role that the pool's node has in its cluster",
        |status| status.cluster.as_ref().map_or_else(Vec::new, by_role),
    )
    .by("role"),
    Family::gauge(
        "millpond_connections",
        "{connection}",
        "Places in the pool by state, empty ones too",
        |status| by_state(&status.metrics.counts),
    )
    .by("state"),
    Family::gauge(
        "millpond_connections_max",
        "{connection}",
        "The most connections at the moment",
        |status| vec![one(status.max_size as u64)],
    ),
    Family::gauge(
        "millpond_connections_min_idle",
        "{connection}",
        "Idle connections to keep ready",
        |status| vec![one(status.config.min_idle as u64)],
    ),
    Family::gauge(
        "millpond_waiters",
        "{request}",
        "Callers that wait for a connection",
        |status| vec![one(status.metrics.counts.waiters as u64)],
    ),
    Family {
        name: "millpond_oldest_holder_seconds",
        unit: "s",
        help: "How long the oldest holder has had its connection at least, to the resolution of \
               maintenance_interval, 0 if there is none",
        label: None,
        kind: Kind::Time(|status| {
            status.metrics.oldest_holder.as_ref().map(|holder| holder.held).unwrap_or_default()
        }),
    },
    Family::counter(
        "millpond_acquires_total",
        "{acquire}",
        "Acquires that got a connection",
        |status| vec![one(status.metrics.acquires)],
    ),
    Family::counter(
        "millpond_acquire_waits_total",
        "{acquire}",
        "Acquires that had to wait, by how they ended",
        |status| status.metrics.waits.by_outcome().collect(),
    )
    .by("outcome"),
    Family::counter(
        "millpond_shed_total",
        "{acquire}",
        "Acquires that were, or would be, shed",
        |status| vec![one(status.metrics.shed)],
    ),
    Family::counter(
        "millpond_connections_opened_total",
        "{connection}",
        "Connections opened",
        |status| vec![one(status.metrics.created)],
    ),
    Family::counter(
        "millpond_connect_failures_total",
        "{failure}",
        "Failures to connect",
        |status| vec![one(status.metrics.connect_failures)],
    ),
    Family::counter(
        "millpond_connections_closed_total",
        "{connection}",
        "Connections that the pool let go of, by reason",
        |status| status.metrics.closed.by_reason().collect(),
    )
    .by("reason"),
    Family::counter("millpond_checks_total", "{check}", "Checks, successful or not", |status| {
        vec![one(status.metrics.checks)]
    }),
    Family::counter("millpond_resets_total", "{reset}", "Resets that succeeded", |status| {
        vec![one(status.metrics.resets)]
    }),
    Family::counter(
        "millpond_leaks_total",
        "{connection}",
        "Connections held for too long",
        |status| vec![one(status.metrics.leaks)],
    ),
    Family::counter(
        "millpond_late_returns_total",
        "{connection}",
        "Those that came back after all",
        |status| vec![one(status.metrics.late_returns)],
    ),
    Family {
        name: "millpond_acquire_wait_seconds",
        unit: "s",
        help: "How long acquires waited that got a connection",
        label: None,
        kind: Kind::Times {
            of: |status| Some(&status.metrics.acquire_wait),
            bounds: &WAITS,
            hits: true,
        },
    },
    Family {
        name: "millpond_connect_seconds",
        unit: "s",
        help: "How long it took to open connections",
        label: None,
        kind: Kind::Times {
            of: |status| Some(&status.metrics.connect_time),
            bounds: &CONNECTS,
            hits: false,
        },
    },
    Family {
        name: "millpond_connection_lifetime_seconds",
        unit: "s",
        help: "How old connections were when the pool let go of them",
        label: None,
        kind: Kind::Times {
            of: |status| Some(&status.metrics.lifetime),
            bounds: &LIFETIMES,
            hits: false,
        },
    },
    Family {
        name: "millpond_use_seconds",
        unit: "s",
        help: "How long connections were in use each time",
        label: None,
        kind: Kind::Times {
            of: |status| status.metrics.use_time.as_ref(),
            bounds: &USES,
            hits: false,
        },
    },
];

fn by_role(node: &ClusterNode) -> Vec<Labelled> {
    Role::ALL.map(|role| (role.word(), (role == node.role).into())).into()
}

fn by_state(counts: &Counts) -> Vec<Labelled> {
    let Counts {
        vacant,
        connecting,
        idle,
        in_use,
        checking,
        resetting,
        closing,
        spare,
        waiters: _,
    } = *counts;
    let states = [
        ("idle", idle),
        ("in_use", in_use),
        ("checking", checking),
        ("resetting", resetting),
        ("closing", closing),
        ("connecting", connecting),
        ("vacant", vacant),
        ("spare", spare),
    ];
    states.map(|(state, count)| (state, count as u64)).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_the_documentation_names_all_families_and_no_others() {
        let table = include_str!("mod.rs").lines().filter_map(|line| line.strip_prefix("//! | `"));
        let rows = table.map(|row| row.split_once('`').expect("the name is quoted").0);
        let documented: Vec<&str> = rows.filter(|name| name.starts_with("millpond_")).collect();
        let mut families: Vec<&str> = FAMILIES.iter().map(|family| family.name).collect();
        families.sort_unstable();
        let mut sorted = documented.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, families);
    }

    #[test]
    fn bounds_grow() {
        for family in &FAMILIES {
            if let Kind::Times { bounds, .. } = family.kind {
                assert!(bounds.is_sorted_by(|a, b| a < b), "{}", family.name);
            }
        }
    }
}
