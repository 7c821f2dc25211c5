//! Exporters: what tells the figures of pools to those who collect them. Each is one feature and one
//! file, and looks at a [`Monitor`](crate::Monitor), which has pools by name and does not keep them
//! open.
//!
//! | exporter | feature | for |
//! |---|---|---|
//! | [`prometheus`] | `prometheus` | Prometheus and what speaks OpenMetrics: scraped |
//! | [`metrics`] | `metrics` | the recorder that a program has installed for the `metrics` facade: flushed |
//! | [`opentelemetry`] | `opentelemetry` | the OpenTelemetry SDK that a program has set up: read by it, and flushed |
//!
//! None of them adds anything to the pool: they read when they are scraped or flushed, and not when
//! something happens. Each reading looks at a pool once, so that what it tells of it comes from one
//! moment, as far as a pool under load has one; and costs one pass over its slots and copies of its
//! distributions, some 20 kB.
//!
//! # Names
//!
//! Those of Prometheus and of the facade; OpenTelemetry has [its own](opentelemetry#names). Units are base
//! units: seconds and plain counts. Besides the labels of the second table, each has these:
//!
//! | label | what |
//! |---|---|
//! | `pool` | the pool's [name](crate::Config::name); that of a cluster's node is `cluster/node`; that of another source is [its own](crate::Source::name) |
//! | `cluster` | the [cluster's name](crate::ClusterNode::name); only of pools of a cluster's nodes |
//! | `node` | the [node's key](crate::ClusterNode::node); only of those, too |
//!
//! A cluster without nodes has no series: `absent(millpond_up{cluster="…"})` tells of it, and so does
//! [`Monitor::health`](crate::Monitor::health). What else is wrong with a cluster as a whole only that tells; that it
//! has no primary, or more than one, shows in the roles, of which a server that is down keeps the one that it said
//! last: `sum without (pool, node, role) (millpond_node_role{role="primary"} * ignoring (role) millpond_up) != 1`.
//!
//! A Prometheus whose targets have labels called `pool`, `cluster`, `node`, `state`, `role`, `outcome` or
//! `reason` themselves shows these ones with `exported_` before them, unless its `honor_labels` is set.
//!
//! | name | kind | labels | what |
//! |---|---|---|---|
//! | `millpond_up` | gauge | | 1 if the pool does what it is for, well or badly; else 0 |
//! | `millpond_health` | gauge | `state` | 1 for one of `healthy`, `degraded`, `down`; 0 for the others |
//! | `millpond_node_role` | gauge | `role` | 1 for one of `primary`, `replica`, `unknown`; 0 for the others; only of pools of a cluster's nodes |
//! | `millpond_connections` | gauge | `state` | places by state: those with a connection are `idle`, `in_use`, `checking`, `resetting`, `closing`; those without are `connecting`, `vacant`, `spare` |
//! | `millpond_connections_max` | gauge | | [the most connections](crate::PoolStatus::max_size) at the moment |
//! | `millpond_connections_min_idle` | gauge | | [`min_idle`](crate::Config::min_idle) |
//! | `millpond_waiters` | gauge | | callers that wait |
//! | `millpond_oldest_holder_seconds` | gauge | | how long [the oldest holder](crate::PoolMetrics::oldest_holder) has had its connection at least, to the resolution of `maintenance_interval`; 0 if nobody has one |
//! | `millpond_acquires_total` | counter | | acquires that got a connection |
//! | `millpond_acquire_waits_total` | counter | `outcome` | acquires that had to wait: the fields of [`Waits`](crate::Waits) |
//! | `millpond_shed_total` | counter | | acquires that were [shed](crate::Shed), or would have been |
//! | `millpond_connections_opened_total` | counter | | connections opened |
//! | `millpond_connect_failures_total` | counter | | attempts to connect that failed, timed out or panicked |
//! | `millpond_connections_closed_total` | counter | `reason` | connections that the pool let go of: the fields of [`Closed`](crate::Closed) |
//! | `millpond_checks_total` | counter | | checks, whether they succeeded or not |
//! | `millpond_resets_total` | counter | | resets that succeeded |
//! | `millpond_leaks_total` | counter | | connections held for longer than [`leak_after`](crate::Config::leak_after) |
//! | `millpond_late_returns_total` | counter | | those of them that came back, or were detached, while the pool was open |
//! | `millpond_acquire_wait_seconds` | histogram | | how long acquires waited that got a connection |
//! | `millpond_connect_seconds` | histogram | | how long connects took that succeeded |
//! | `millpond_connection_lifetime_seconds` | histogram | | how old connections became |
//! | `millpond_use_seconds` | histogram | | how long connections were in use each time; only of pools that [measure](crate::Config::time_use) it |
//!
//! Under load, the waits may count a few acquires twice that were under way when somebody looked.

#[cfg(feature = "metrics")]
pub mod metrics;
#[cfg(feature = "opentelemetry")]
pub mod opentelemetry;
#[cfg(feature = "prometheus")]
pub mod prometheus;

#[cfg(any(feature = "metrics", feature = "opentelemetry", feature = "prometheus"))]
mod figures;
#[cfg(any(feature = "metrics", feature = "opentelemetry"))]
mod news;

#[cfg(any(feature = "metrics", feature = "opentelemetry"))]
pub use self::news::StartError;
