//! Adapters that run the managers of other pools unchanged: one feature and one file each.
//!
//! | adapter | feature | for | `connect` | `check` | asked on release |
//! |---|---|---|---|---|---|
//! | [`bb8::Adapter`] | `bb8` | `bb8::ManageConnection` 0.9 | `connect` | `is_valid` | `has_broken` |
//! | [`deadpool::Adapter`] | `deadpool` | `deadpool::managed::Manager` 0.13 | `create` | `recycle`, between any two uses | – |
//! | [`r2d2::Adapter`] | `r2d2` | `r2d2::ManageConnection` 0.8 | `connect`, on a thread of its own | `is_valid`, there too | `has_broken` |
//!
//! The manager stays as it is, and so does what is done with a connection by its own methods; the pool around
//! them is Millpond's, with its settings and defaults, and so is the guard. What its users will notice:
//!
//! | in bb8, deadpool, r2d2 | here |
//! |---|---|
//! | `test_on_check_out` is on (bb8, r2d2) | only what has been idle for 5 s is checked; `.check(CheckPolicy::Always)` for all |
//! | `connection_timeout`, 30 s (bb8, r2d2); none unless asked for (deadpool) | `acquire_timeout`, `connect_timeout` 5 s, `check_timeout` 1 s |
//! | nothing happens to an idle connection but its end | it is checked every 2 min; `.keepalive_interval(None)` for never |
//! | a failed connect is told to its caller (deadpool), or to an error sink | it is tried again while somebody waits; the last error is the source of the timeout |
//! | `min_idle` is `None` (r2d2): `max_size` connections are opened at once, and kept | they are opened when they are needed; `.min_idle(n)` has that many opened, and kept |
//! | `CustomizeConnection` (r2d2) | [`customizer`](r2d2::Adapter::customizer): `Hooks` must not block |
//! | `CustomizeConnection` (bb8), hooks (deadpool) | [`Hooks`](crate::Hooks) |
//! | a connection whose holder panicked is used again | it is closed |
//! | a function takes the pool's guard, or a trait that its crate has given to that alone | it takes the connection, or a trait of its library: see [`deadpool`](deadpool::Adapter#functions-that-take-a-trait) |
//!
//! Which errors are beyond retrying, none of the three traits says; each adapter has
//! `permanent` for that. Nor where connections lead: an adapter has no [`target`](crate::Manager::target), so give the
//! pool a [`name`](crate::PoolBuilder::name) that says it.

#[cfg(feature = "bb8")]
pub mod bb8;
#[cfg(feature = "deadpool")]
pub mod deadpool;
#[cfg(feature = "r2d2")]
pub mod r2d2;

/// A function that makes one error of another.
#[cfg(any(feature = "bb8", feature = "deadpool", feature = "r2d2"))]
type Convert<A, B> = Box<dyn Fn(A) -> B + Send + Sync>;

/// A user's answer to whether an error is beyond retrying.
#[cfg(any(feature = "bb8", feature = "deadpool", feature = "r2d2"))]
type IsPermanent<E> = Box<dyn Fn(&E) -> bool + Send + Sync>;

/// What a user says about which errors are beyond retrying; nothing by default.
#[cfg(any(feature = "bb8", feature = "deadpool", feature = "r2d2"))]
struct Permanent<E>(Option<IsPermanent<E>>);

#[cfg(any(feature = "bb8", feature = "deadpool", feature = "r2d2"))]
impl<E> Permanent<E> {
    fn is(&self, error: &E) -> bool {
        self.0.as_ref().is_some_and(|is_permanent| is_permanent(error))
    }
}
