//! How a pool opens, checks, resets and closes its connections: the one trait that users implement.
//!
//! Not here: any backend.

use std::fmt;
use std::future::Future;
use std::marker::PhantomData;

/// Opens connections for a pool, and looks after them.
///
/// Only [`connect`](Self::connect) is required. Write the asynchronous methods as `async fn`.
///
/// None of them holds up anybody but the one connection that it works on, as long as none blocks. Each
/// has a time limit in the pool's configuration; a method that fails, panics or takes too long costs that
/// connection and nothing else.
///
/// # What must not block
///
/// A method that blocks, as calls of `std::net`, [`thread::sleep`](std::thread::sleep) and drivers without
/// `async` do, cannot be ended when its time is up. Meanwhile its thread of the runtime does nothing for
/// other connections and other tasks, and that of a [`blocking::Pool`](crate::blocking::Pool) is the only
/// one. The same holds for a connection's `Drop`. Do such work in
/// [`spawn_blocking`](tokio::task::spawn_blocking) and await that; in a `Drop`, have another thread do it.
/// For managers that block, as those of r2d2, `compat::r2d2::Adapter`, with the feature `r2d2`, does both.
///
/// # Examples
///
/// ```
/// use millpond::{Condition, Manager};
/// use std::io;
/// use tokio::net::TcpStream;
///
/// struct Redis { address: String }
///
/// impl Manager for Redis {
///     type Connection = TcpStream;
///     type Error = io::Error;
///
///     async fn connect(&self) -> io::Result<TcpStream> {
///         TcpStream::connect(&self.address).await
///     }
///
///     fn condition(&self, connection: &mut TcpStream) -> Condition {
///         // Unread bytes, end of file or an error: nobody may use this stream again.
///         match connection.try_read(&mut [0]) {
///             Err(error) if error.kind() == io::ErrorKind::WouldBlock => Condition::Clean,
///             _ => Condition::Broken,
///         }
///     }
/// }
/// ```
pub trait Manager: Send + Sync + 'static {
    /// What the pool holds.
    type Connection: Send + 'static;
    /// What goes wrong when one is opened, checked or reset.
    type Error: std::error::Error + Send + Sync + 'static;

    /// Opens a connection. Called by the pool's own tasks, never by the caller who waits for one (only
    /// [`Pool::rotate`](crate::Pool::rotate) connects in the caller's own future); limited by
    /// `connect_timeout`.
    fn connect(&self) -> impl Future<Output = Result<Self::Connection, Self::Error>> + Send;

    /// What a connection is fit for, asked whenever one is released. It runs inside the guard's
    /// `Drop`, possibly on a thread without a runtime: it must not block, wait or do I/O that can.
    ///
    /// Default: always [`Condition::Clean`].
    fn condition(&self, connection: &mut Self::Connection) -> Condition {
        let _ = connection;
        Condition::Clean
    }

    /// Finds out whether a connection is alive, before it is handed out; when that happens is the
    /// pool's [`CheckPolicy`](crate::CheckPolicy). Limited by `check_timeout`. A connection that
    /// fails, or whose check was abandoned, is closed.
    ///
    /// Default: it is.
    fn check(
        &self,
        connection: &mut Self::Connection,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send {
        let _ = connection;
        async { Ok(()) }
    }

    /// Makes a connection clean after [`condition`](Self::condition) called it dirty, before
    /// anybody else sees it. Runs in the background; limited by `reset_timeout`. A connection whose
    /// reset fails or was abandoned is closed; so is one that `condition`, which is asked again
    /// afterwards, then calls broken or outdated.
    ///
    /// Default: nothing to do. A manager that ever answers [`Condition::Dirty`] must have its own.
    fn reset(
        &self,
        connection: &mut Self::Connection,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send {
        let _ = connection;
        async { Ok(()) }
    }

    /// Says goodbye to a connection that the pool is done with. Limited by `close_timeout`; after
    /// that, and wherever no runtime is left to run it, the connection is dropped. So is, without this,
    /// one that somebody was in the middle of: whose check, reset, `before_acquire`, `after_connect` or
    /// verification for `rotate` was abandoned, because a caller was cancelled or a runtime ended, or
    /// that a panic of [`Pool::retain`](crate::Pool::retain)'s function has left behind. Whatever has to
    /// happen to every connection belongs into its `Drop`.
    ///
    /// Default: drops it.
    fn close(&self, connection: Self::Connection) -> impl Future<Output = ()> + Send {
        async move { drop(connection) }
    }

    /// Whether trying again to connect is pointless, as with a wrong password. Such an error ends
    /// every acquire that waits, after one attempt, and nobody tries again unasked, since accounts get
    /// locked. Nor is it tried again for whoever comes soon after: he is told of the last error at once, for as
    /// long as the longest pause of [`backoff`](crate::PoolBuilder::backoff), which grows with each such failure
    /// up to its limit. The first who comes after that has it tried again. A warm-up and a rotation by hand try
    /// at once; they, [`invalidate`](crate::Pool::invalidate) and [`resize`](crate::Pool::resize) end that time.
    ///
    /// But whoever may have a connection that is alive, in use or not, waits on for that one, until
    /// its deadline: then the error is the timeout's source. Meanwhile another attempt is made only while
    /// somebody waits, and [`backoff_max`](crate::PoolBuilder::backoff) after the last one, that of a rotation
    /// included; or at once when the last connection has gone, whose answer everybody hears. Until then, whoever
    /// comes and may have none of those that are left, since they are
    /// [reserved](crate::PoolBuilder::reserved), is told of the last error at once. Any other
    /// error is retried while somebody waits, or nothing is alive, or with `fail_fast`. Only in a cluster, where
    /// other nodes may serve, is such a node tried again: once a second while it is passed over.
    ///
    /// Default: it never is.
    fn is_permanent(&self, error: &Self::Error) -> bool {
        let _ = error;
        false
    }
}

/// What a released connection is fit for.
///
/// Another one would be a breaking change: a manager that wraps one may match each of these, so that no
/// connection is judged by an arm that was written for whatever may come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Condition {
    /// Anybody may use it next.
    Clean,
    /// Anybody may use it next, once a [`check`](Manager::check) has passed: it is checked before it
    /// is handed out, whatever the pool's [`CheckPolicy`](crate::CheckPolicy) says. If one in the
    /// background does that, such as a keepalive, the policy says for how long: with
    /// [`Never`](crate::CheckPolicy::Never) until that use, however late.
    Unchecked,
    /// Something is left over, such as an open transaction: reset it first.
    Dirty,
    /// Nobody may use it again.
    Broken,
    /// Nobody may use it again, nor any other that was opened before this was found out, as when a
    /// failover has left them with a server that takes no writes: the pool
    /// [invalidates](crate::Pool::invalidate) them all.
    Outdated,
}

/// A [`Manager`] made of a function that connects, and defaults for the rest.
///
/// # Examples
///
/// ```
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use millpond::{Pool, from_fn};
/// use tokio::net::TcpStream;
///
/// let pool = Pool::builder(from_fn(|| TcpStream::connect("127.0.0.1:6379"))).build().await?;
/// let stream = pool.acquire().await?;
/// # drop(stream); Ok(()) }
/// ```
pub fn from_fn<F, Fut, C, E>(connect: F) -> FromFn<F, C, E>
where
    F: Fn() -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<C, E>> + Send,
    C: Send + 'static,
    E: std::error::Error + Send + Sync + 'static,
{
    FromFn { connect, opens: PhantomData }
}

/// The manager that [`from_fn`] makes.
pub struct FromFn<F, C, E> {
    connect: F,
    opens: PhantomData<fn() -> Result<C, E>>,
}

// Not derived: that would ask the connection and the error for it too, of which there is none here.
impl<F: Clone, C, E> Clone for FromFn<F, C, E> {
    fn clone(&self) -> Self {
        Self { connect: self.connect.clone(), opens: PhantomData }
    }
}

impl<F: Copy, C, E> Copy for FromFn<F, C, E> {}

impl<F, C, E> fmt::Debug for FromFn<F, C, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FromFn").finish_non_exhaustive()
    }
}

impl<F, Fut, C, E> Manager for FromFn<F, C, E>
where
    F: Fn() -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<C, E>> + Send,
    C: Send + 'static,
    E: std::error::Error + Send + Sync + 'static,
{
    type Connection = C;
    type Error = E;

    async fn connect(&self) -> Result<C, E> {
        (self.connect)().await
    }
}
