//! A connection and object pool for latency-sensitive services.
//!
//! - **Fast**: an acquire that finds an idle connection fit for use, and the release of a clean one, allocate
//!   nothing, and take no lock and read no clock while nobody waits; a wait allocates nothing either.
//! - **Fair**: whoever waits is served first come, first served, async and blocking callers in the same
//!   line. A newcomer does not overtake. There is a line for each shard
//!   ([`shards`](PoolBuilder::shards)); with one shard, one for all.
//! - **Honest**: a timeout says what the pool was waiting for, and carries the last failure to
//!   connect as its source. Figures are counted from the slots, so they cannot drift.
//! - **Safe**: no `unsafe` in the crate; the protocol is model-checked with loom.
//!
//! # What there is
//!
//! | | for | needs |
//! |---|---|---|
//! | [`Pool`] | connections that a [`Manager`] opens, checks, resets and closes | feature `tokio` (default) |
//! | [`blocking::Pool`] | the same in a program without a runtime | feature `tokio` (default) |
//! | [`ObjectPool`] | objects that are already there: buffers, parsers, handles | nothing; any executor, or none |
//! | `backends`, `compat` | managers for databases and sockets, and those written for other pools | a feature for each |
//! | `cluster` | a pool for each of several servers, and a choice between them | feature `cluster` |
//! | `export`, `web` | figures for those who collect them, and a live page | features `prometheus`, `metrics`, `opentelemetry`, `axum` |
//!
//! # Examples
//!
#![cfg_attr(feature = "tokio", doc = "```")]
#![cfg_attr(not(feature = "tokio"), doc = "```ignore")]
//! use millpond::{Manager, Pool};
//! use std::{io, time::Duration};
//! use tokio::net::{TcpListener, TcpStream};
//!
//! /// Opens connections to a server.
//! struct Server { address: std::net::SocketAddr }
//!
//! impl Manager for Server {
//!     type Connection = TcpStream;
//!     type Error = io::Error;
//!
//!     async fn connect(&self) -> io::Result<TcpStream> {
//!         TcpStream::connect(self.address).await
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let listener = TcpListener::bind("127.0.0.1:0").await?;
//! # let address = listener.local_addr()?;
//! let pool = Pool::builder(Server { address })
//!     .max_size(16)
//!     .acquire_timeout(Duration::from_secs(1))
//!     .build()
//!     .await?;
//! let stream = pool.acquire().await?;
//! assert_eq!(stream.peer_addr()?, address);
//! # Ok(()) }
//! ```
//!
//! # What it is not
//!
//! No query builder and no cache of results: it hands out what a manager opens. It does not reconnect a connection
//! that is in use, and it does not take one back before its guard is dropped.
//!
//! # What it tells
//!
//! Besides figures (`export`), what happens, with the feature `tracing` and the target `millpond`:
//!
//! | level | what |
//! |---|---|
//! | error | connecting fails for good |
//! | warn | connecting fails, also to rotate; a check or a reset fails; a hook rejects a connection, by an error or a panic; new connections are lost before anybody uses them; all connections are out of date, as one of them has found out; a connection is held for too long; an acquire was slow; a pool is not drained in time; a connection is lost (`postgres`); of a set of nodes, one is refused, or no set is learned (`cluster`) |
//! | info | connecting succeeds again; the pool begins to be drained; it is closed, after a drain as well; a leaked connection comes back; a set of nodes has changed which there are, or no more sets are to come (`cluster`) |
//! | info, with `cluster` and `node`, without `pool` | a node's role changes (`from`, `to`); a node is added, removed, replaced or given other options by hand |
//! | debug | what is a warning above, but says the same as what has failed in the same way just before; a connection is opened or ends; the span `acquire` of one that has to wait (one that does not has none) |
//! | trace | the span `use` of a connection in somebody's hands, if `Config::trace_uses` asks for it |
//!
//! Each has the field `pool`, the pool's name; at a cluster's node also `cluster` and `node`; and, where there
//! is one, `connection`, its number. What is told of a set of nodes has no `pool` but `cluster`, and `node` if it
//! is about one. The spans, and what is told of a slow acquire and of a connection that is held, have `site`: where it was acquired. What an attempt,
//! a check, a reset or a hook fails with, a connection is lost with, a node is refused for, and a set is not learned
//! for, is `error`: what it says, with all its causes, each once. Also:
//!
//! | of | there is |
//! |---|---|
//! | a connection that is opened | `took`: how long that took |
//! | one that ends | `reason` and `age` |
//! | connecting that fails, and new connections that are lost | `server`: where it was to lead, if the manager has a [`target`](Manager::target) |
//! | connecting that fails | `in_a_row`: how many times by now, if not to rotate |
//! | a connection that a hook rejects, or that is lost, before anybody uses it | `in_a_row`: how many by now were of no use like that. Of several that were opened at the same time, only the first counts: the others have none, and are not told of if they are lost |
//! | connecting that succeeds again | `failures`: how many times it had failed before |
//! | a connection that is held for too long, or comes back late | `held`: for how long at least, as the reaper sees it, which looks once each `maintenance_interval` |
//! | a pool that is not drained in time | `still_out`: how many connections are still in use; `connection`, `held` and `site` of the one that has been held for longest |
//! | an acquire that was slow | `waited`: for how long; `outcome`: how it ended; and `counts`: what the connections were doing then |
//!
//! Of a lost connection nothing else is known but `server`, its address: it is told as soon as the server ends
//! it or the network fails, used or idle, with what the server has said, such as `terminating connection due to
//! administrator command`; or when the driver has lost count of the answers, as after a `COPY … FROM STDIN` that
//! was refused before it began (`unexpected message from server`).
//!
//! Of the failures to connect in a row the first is a warning, and so is each whose error says something else than
//! the one before; of the others only the 2nd, 4th, 8th, and so on up to the 64th, and each 64th after that. What
//! comes in between is told at the level debug; `in_a_row` counts all. It is the same with new connections that hooks
//! reject, or that are lost, in a row. What fails for good is always an error.
//!
//! # How to read the code
//!
//! In the order of the modules below: `core` is everything that is lock-free, `object` and `pool`
//! are built on it. `ARCHITECTURE.md` has the protocol, the invariants and where each is tested.

#![forbid(unsafe_code)]
// Loom: `model` lays the core open, whose accessors speak for themselves.
#![cfg_attr(loom, allow(missing_docs))]
// The table above names what the feature brings.
#![cfg_attr(not(feature = "tokio"), allow(rustdoc::broken_intra_doc_links))]

mod sync;

#[cfg_attr(
    not(feature = "cluster"),
    allow(dead_code, unused_imports, reason = "only a cluster's pools use all of the core")
)]
mod core;

mod error;
mod guard;
mod object;
mod panics;

#[cfg(feature = "tokio")]
mod config;
#[cfg(feature = "tokio")]
mod hooks;
#[cfg(feature = "tokio")]
mod manager;
#[cfg(feature = "tokio")]
mod metrics;
#[cfg(any(
    feature = "cluster",
    feature = "mysql",
    feature = "postgres",
    feature = "redis",
    feature = "tcp"
))]
mod names;
#[cfg(feature = "tokio")]
mod pool;
#[cfg(any(feature = "r2d2", feature = "sqlite"))]
mod threads;

#[cfg(feature = "tokio")]
pub mod blocking;

#[cfg(feature = "tokio")]
pub mod backends;
#[cfg(feature = "cluster")]
pub mod cluster;
#[cfg(feature = "tokio")]
pub mod compat;
#[cfg(feature = "tokio")]
pub mod export;
#[cfg(feature = "axum")]
pub mod web;

/// The README's examples are tests. Those that need a server are compiled by `tests/examples.rs`.
#[cfg(all(doctest, feature = "tokio"))]
#[doc = include_str!("../README.md")]
struct Readme;

pub use crate::core::{Counts, IdleOrder};
pub use crate::error::{AcquireObjectError, AddError, ConfigError, TryAcquireError};
pub use crate::object::{Object, ObjectPool, ObjectPoolBuilder, OwnedObject, WeakObjectPool};

#[cfg(feature = "tokio")]
pub use crate::config::{AcquireOptions, CheckPolicy, Config, Priority, Shed};
#[cfg(feature = "tokio")]
pub use crate::error::{
    AcquireError, BuildError, ConnectError, Deadlock, OperationError, ReleaseError, RotateError,
    Stage, Timeout, WarmUpError, with_causes,
};
#[cfg(feature = "tokio")]
pub use crate::hooks::{HookFuture, Hooks, Leak};
#[cfg(feature = "tokio")]
pub use crate::manager::{Condition, FromFn, LossSignal, Manager, from_fn};
#[cfg(feature = "tokio")]
pub use crate::metrics::{
    Closed, ClusterNode, ConnectFailure, DuplicateName, Group, Health, Histogram, Monitor,
    PoolMetrics, PoolStatus, Role, Source, Waits,
};
#[cfg(feature = "tokio")]
pub use crate::pool::{
    ConnectionInfo, ConnectionState, DrainReport, Holder, Maintenance, Pool, PoolBuilder, Pooled,
    PooledOwned, WeakPool,
};

/// What the models in `loom-tests` need of the core, beyond the public surface.
#[cfg(loom)]
#[doc(hidden)]
pub mod model {
    pub use crate::core::{
        Core, Doubt, Flags, Found, Glimpse, Keeper, Lease, Line, Loan, Reservation, Search, Size,
        State, Trial, Woken, reserve, sweep, try_acquire, wait, wait_blocking,
    };
    pub use crate::sync::set_home;
}
