//! How a pool opens, checks, resets and closes its connections: the one trait that users implement.
//!
//! Not here: any backend.

use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

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
/// `spawn_blocking`, and whatever uses it, as the lookup of a name in `TcpStream::connect` does, waits where all of the
/// runtime's threads for that are taken: if all of those are callers in
/// [`acquire_blocking`](crate::Pool::acquire_blocking), it waits for those who wait for it.
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
///
/// One whose connections know whether an answer is still to come, and that are checked by a round trip:
///
/// ```
/// use millpond::{Condition, Manager};
/// use std::io::{Error, ErrorKind};
/// use tokio::io::{AsyncReadExt, AsyncWriteExt};
/// use tokio::net::TcpStream;
///
/// struct Cache { address: String }
///
/// struct Client {
///     stream: TcpStream,
///     waits: bool,
/// }
///
/// impl Client {
///     /// If this is given up half-way, the answer would be the next user's.
///     async fn ping(&mut self) -> Result<[u8; 7], Error> {
///         self.waits = true;
///         self.stream.write_all(b"PING\r\n").await?;
///         let mut answer = [0; 7];
///         self.stream.read_exact(&mut answer).await?;
///         self.waits = false;
///         Ok(answer)
///     }
/// }
///
/// impl Manager for Cache {
///     type Connection = Client;
///     type Error = Error;
///
///     async fn connect(&self) -> Result<Client, Error> {
///         Ok(Client { stream: TcpStream::connect(&self.address).await?, waits: false })
///     }
///
///     /// On each release, without waiting: whatever can be told at once.
///     fn condition(&self, client: &mut Client) -> Condition {
///         if client.waits { Condition::Broken } else { Condition::Clean }
///     }
///
///     /// Before use, if it has been idle for 5 s, and every two minutes: a round trip.
///     async fn check(&self, client: &mut Client) -> Result<(), Error> {
///         if client.ping().await? == *b"+PONG\r\n" { Ok(()) } else { Err(ErrorKind::InvalidData.into()) }
///     }
/// }
/// ```
pub trait Manager: Send + Sync + 'static {
    /// What the pool holds.
    type Connection: Send + 'static;
    /// What goes wrong when one is opened, checked or reset.
    type Error: std::error::Error + Send + Sync + 'static;

    /// Opens a connection. Called by the pool's own tasks on its runtime, never by the caller who waits for
    /// one; limited by `connect_timeout`.
    fn connect(&self) -> impl Future<Output = Result<Self::Connection, Self::Error>> + Send;

    /// What a connection is fit for, asked whenever one is released. It runs inside the guard's
    /// `Drop`, possibly on a thread without a runtime: it must not block, wait or do I/O that can.
    ///
    /// Default: always [`Condition::Clean`].
    fn condition(&self, connection: &mut Self::Connection) -> Condition {
        let _ = connection;
        Condition::Clean
    }

    /// Called once for each connection, before anybody gets it. It is for managers whose connections find out
    /// by themselves that they have ended, such as those that a task of their own reads from: keep the signal
    /// where that is found out, and [send](LossSignal::send) it then. The pool ends an idle one at once, so
    /// that nobody gets it; of one in use, its guard's release learns it, and says so where it is
    /// [awaited](crate::Pooled::release). It must not block.
    ///
    /// Default: drops the signal. That an idle connection has ended is found out by a check, or by the use
    /// that fails.
    fn watch(&self, connection: &mut Self::Connection, signal: LossSignal) {
        let _ = (connection, signal);
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
    /// that, and wherever no runtime is left to run it, the connection is dropped. It is dropped without this
    /// if its check, its reset, `before_acquire`, `after_connect` or the verification for `rotate` was
    /// abandoned half-way, because a caller was cancelled or a runtime ended; or if the function of
    /// [`Pool::retain`](crate::Pool::retain) panics. Whatever has to happen to every connection belongs into
    /// its `Drop`.
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

    /// Where its connections lead, for those who read messages: a host and a port as in `db.internal:5432`, several
    /// with commas between them, or the path of a socket or a file. **Never a user, a password or a whole URL**: it is
    /// logged, and shown on the status page.
    ///
    /// Asked when a pool is built, and when a [rotation](crate::Pool::rotate) begins. The pool's errors and its health name it where they say that connecting fails
    /// or takes too long, unless what went wrong names it already; what is told of that with the feature `tracing` has
    /// it as `server`. An empty text counts as none, and so does a panic; a line break or another control
    /// character in it counts as a space.
    ///
    /// Default: nobody is told. A manager around another one passes on what that says.
    ///
    /// # Examples
    ///
    /// ```
    /// use millpond::{Manager, Pool};
    /// use std::io;
    /// use std::time::Duration;
    /// use tokio::net::TcpStream;
    ///
    /// struct Cache { host: &'static str, port: u16 }
    ///
    /// impl Manager for Cache {
    ///     type Connection = TcpStream;
    ///     type Error = io::Error;
    ///
    ///     async fn connect(&self) -> io::Result<TcpStream> {
    ///         TcpStream::connect((self.host, self.port)).await
    ///     }
    ///
    ///     fn target(&self) -> Option<String> {
    ///         Some(format!("{}:{}", self.host, self.port))
    ///     }
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// // Nobody listens there.
    /// let pool = Pool::builder(Cache { host: "127.0.0.1", port: 1 }).fail_fast(true).build_lazy()?;
    /// let error = pool.acquire().await.unwrap_err().to_string();
    /// assert!(error.starts_with("cannot connect to 127.0.0.1:1 at the moment"));
    /// # Ok(()) }
    /// ```
    fn target(&self) -> Option<String> {
        None
    }
}

/// By which a connection tells its pool that it has ended; from [`Manager::watch`].
///
/// # Examples
///
/// ```
/// use millpond::{LossSignal, Manager};
/// use std::convert::Infallible;
/// use tokio::task::JoinHandle;
///
/// struct Wire { reads: Option<JoinHandle<()>> }
/// struct Wires;
///
/// impl Manager for Wires {
///     type Connection = Wire;
///     type Error = Infallible;
///
///     async fn connect(&self) -> Result<Wire, Infallible> {
///         // Here it would read until the other side hangs up.
///         Ok(Wire { reads: Some(tokio::spawn(tokio::task::yield_now())) })
///     }
///
///     fn watch(&self, wire: &mut Wire, signal: LossSignal) {
///         let reads = wire.reads.take();
///         tokio::spawn(async move {
///             if let Some(reads) = reads {
///                 drop(reads.await);
///             }
///             signal.send();
///         });
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let pool = millpond::Pool::builder(Wires).build().await?;
/// drop(pool.acquire().await?);
/// while pool.metrics().closed.broken == 0 {
///     tokio::task::yield_now().await;
/// }
/// assert_eq!(pool.metrics().counts.idle, 0, "it has hung up");
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct LossSignal {
    loss: Arc<Loss>,
    pool: Weak<dyn Heed>,
    slot: usize,
}

/// Whether a connection is lost.
#[derive(Default)]
pub(crate) struct Loss {
    is_lost: AtomicBool,
    /// The pool has let go of it.
    is_over: AtomicBool,
}

/// A pool that is told of a loss.
pub(crate) trait Heed: Send + Sync {
    /// The connection of this slot may be lost.
    fn heed(&self, slot: usize);
}

impl Loss {
    pub(crate) fn has_been_told(&self) -> bool {
        // Ordering: Relaxed; whoever lowers the flag of the slot sees what it was raised for.
        self.is_lost.load(Ordering::Relaxed)
    }

    /// Nobody wants to hear of it any more.
    pub(crate) fn ends(&self) {
        // Ordering: Relaxed; whoever misses that has a slot looked at for nothing.
        self.is_over.store(true, Ordering::Relaxed);
    }
}

impl LossSignal {
    pub(crate) fn new(pool: Weak<dyn Heed>, slot: usize) -> Self {
        Self { loss: Arc::default(), pool, slot }
    }

    /// What the pool has of it, unless nobody has sent it or is left who could.
    pub(crate) fn loss(mut self) -> Option<Arc<Loss>> {
        // Ordering: of those who had it and are gone this sees all they did, a loss included; a count read on its
        // own would say only that they are.
        let is_alone = Arc::get_mut(&mut self.loss);
        let none_comes = is_alone.is_some_and(|loss| !*loss.is_lost.get_mut());
        (!none_comes).then_some(self.loss)
    }

    /// Tells the pool that the connection has ended. It counts as [broken](crate::Closed::broken), and what
    /// else is idle is checked before its next use, as when a release finds one broken.
    ///
    /// To say it again, or once the pool has let go of the connection or is gone, does nothing. It does not wait,
    /// and looks once at each idle connection. Where neither the pool nor this thread has a runtime left, an idle
    /// connection that has to go is dropped here, and [`on_destroy`](crate::Hooks::on_destroy) is called: hold no
    /// lock that these take.
    ///
    /// One that is lost less than a second after it was opened, before anybody has used it, is something wrong with
    /// connecting, as where a server accepts whoever comes and hangs up: from the second in a row on the next is
    /// opened after a pause of [`backoff`](crate::PoolBuilder::backoff), and the pool's health and a timeout's source
    /// [say so](crate::OperationError::Lost), until one has been there for a second; or, where a hook or a setting
    /// sees each use, such as [`time_use`](crate::PoolBuilder::time_use), until one has been handed out. Those that
    /// are lost at once are one in a row, however many. A warm-up and a build that meet one fail.
    pub fn send(&self) {
        // Ordering: Relaxed; the flag that the pool raises of the slot publishes it.
        let loss = &self.loss;
        if loss.is_over.load(Ordering::Relaxed) || loss.is_lost.swap(true, Ordering::Relaxed) {
            return;
        }
        if let Some(pool) = self.pool.upgrade() {
            pool.heed(self.slot);
        }
    }
}

impl fmt::Debug for LossSignal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LossSignal").finish_non_exhaustive()
    }
}

/// What a released connection is fit for.
///
/// Another variant would be a breaking change: a manager that wraps one may match each of these, and needs no
/// arm that would judge connections by a variant that does not exist yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Condition {
    /// Anybody may use it next.
    Clean,
    /// Anybody may use it next, once a [`check`](Manager::check) has passed: it is checked before it
    /// is handed out, whatever the pool's [`CheckPolicy`](crate::CheckPolicy) says. A check in the
    /// background, such as a keepalive, will do too; for how long, that policy says: with
    /// [`Never`](crate::CheckPolicy::Never) until the next use, however late.
    Unchecked,
    /// Something is left over, such as an open transaction: reset it first.
    Dirty,
    /// Nobody may use it again.
    Broken,
    /// Nobody may use it again, nor any other that was opened before this was found out, as when a
    /// failover has left them with a server that takes no writes: the pool
    /// [invalidates](crate::Pool::invalidate) them all. Within a second after it has, only this one is closed: what
    /// has been opened since may lead to the same server, and closing it all changes nothing then.
    Outdated,
}

/// A [`Manager`] made of a function that connects, and defaults for the rest. It has no
/// [`target`](Manager::target): where messages are to say where connections lead, have a manager of your own.
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
