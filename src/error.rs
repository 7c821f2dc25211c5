//! What can go wrong, in words for the person who reads the log.
//!
//! Not here: errors of a manager; they travel inside these, unchanged.

use crate::core::{MAX_CAPACITY, MAX_SHARDS};
use std::borrow::Cow;
use std::fmt::Display;

/// An error with all its causes in one line, each said once.
///
/// An error's `{error}` leaves out its causes, such as why connecting failed, and its `{error:?}` shows how it is made
/// up. Many libraries' errors say what their cause says, and some causes what their error says: neither is said twice.
/// Where one has several lines, as those of PostgreSQL may, spaces take the place of their ends.
///
/// # Examples
///
/// ```
/// use millpond::{Pool, from_fn, with_causes};
/// use std::{error::Error, io};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let connect = || async { Err::<String, _>(io::Error::other("no such user")) };
/// let pool = Pool::builder(from_fn(connect)).min_idle(1);
/// let error = pool.build().await.unwrap_err();
/// assert_eq!(error.to_string(), "cannot open the first connections");
/// assert_eq!(with_causes(&error), "cannot open the first connections: no such user");
///
/// let boxed: Box<dyn Error> = error.into();
/// eprintln!("{}", with_causes(&*boxed));
/// # }
/// ```
#[cfg(feature = "tokio")]
#[must_use]
pub fn with_causes(error: &dyn std::error::Error) -> String {
    let words = in_words(error);
    let lines: Vec<_> = words.split(['\n', '\r']).filter(|line| !line.is_empty()).collect();
    lines.join(" ")
}

/// The same, in as many lines as they say.
#[cfg(feature = "tokio")]
pub(crate) fn in_words(error: &dyn std::error::Error) -> String {
    let say = || {
        let mut said = error.to_string();
        // Where the last of them begins.
        let mut last = 0;
        let mut cause = error.source();
        while let Some(error) = cause {
            let says = error.to_string();
            if !said.ends_with(&says) {
                if says.ends_with(&said[last..]) {
                    said.truncate(last);
                } else {
                    said.push_str(": ");
                    last = said.len();
                }
                said.push_str(&says);
            }
            cause = error.source();
        }
        said
    };
    // An error that cannot be told is one all the same.
    crate::panics::caught(say).unwrap_or_else(|panic| {
        format!("an error that panicked while it was told: {}", panic.message())
    })
}

/// The same as an event has it, which asks for it when it is written down.
#[cfg(feature = "tracing")]
pub(crate) struct InWords<'e>(pub(crate) &'e (dyn std::error::Error + 'static));

#[cfg(feature = "tracing")]
impl Display for InWords<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&in_words(self.0))
    }
}

/// A setting is out of its range. Nothing was built.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name} is {value}, but it {rule}", name = .variable.as_deref().unwrap_or(.field))]
pub struct ConfigError {
    field: Cow<'static, str>,
    /// The variable of the environment that says so, if one does.
    variable: Option<Box<str>>,
    value: String,
    rule: String,
}

impl ConfigError {
    pub(crate) fn new(
        field: impl Into<Cow<'static, str>>,
        value: impl Display,
        rule: impl Into<String>,
    ) -> Self {
        Self { field: field.into(), variable: None, value: value.to_string(), rule: rule.into() }
    }

    /// The same, said by a variable of the environment.
    #[cfg(feature = "serde")]
    pub(crate) fn of_variable(mut self, variable: &str) -> Self {
        self.variable = Some(variable.into());
        self
    }

    /// The setting, as it is called in a file: for most, as the builder's method is.
    #[must_use]
    pub fn field(&self) -> &str {
        &self.field
    }

    /// The variable of the environment that it comes from, if it does; the message names that one
    /// instead of the setting.
    #[must_use]
    pub fn variable(&self) -> Option<&str> {
        self.variable.as_deref()
    }

    /// The value that was refused; only `set` for what is no setting, since that may be a secret.
    #[must_use]
    pub fn value(&self) -> &str {
        &self.value
    }

    /// The rule that it breaks; reads on from "it".
    #[must_use]
    pub fn rule(&self) -> &str {
        &self.rule
    }
}

pub(crate) fn check_capacity(field: &'static str, value: usize) -> Result<(), ConfigError> {
    if (1..=MAX_CAPACITY).contains(&value) {
        return Ok(());
    }
    Err(ConfigError::new(field, value, format!("must be from 1 to {MAX_CAPACITY}")))
}

pub(crate) fn check_shards(value: usize) -> Result<(), ConfigError> {
    if value.is_power_of_two() && value <= MAX_SHARDS {
        return Ok(());
    }
    let rule = format!("must be a power of two from 1 to {MAX_SHARDS}");
    Err(ConfigError::new("shards", value, rule))
}

/// Why [`ObjectPool`](crate::ObjectPool) has no object for a caller that was ready to wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AcquireObjectError {
    /// The deadline passed while every object was in use.
    #[error("no object came back before the deadline")]
    Timeout,
    /// The pool is closed.
    #[error("the pool is closed")]
    Closed,
}

/// Why a pool has nothing for a caller that did not want to wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TryAcquireError {
    /// Nothing is idle, or what is idle is for others, who were there first and wait or have priority. Or it would
    /// have to be checked first, or shown to the hook `before_acquire`.
    #[error("nothing idle can be handed out at once")]
    Empty,
    /// The pool is being drained.
    #[error("the pool is being drained")]
    Draining,
    /// The pool is closed.
    #[error("the pool is closed")]
    Closed,
}

/// Why [`ObjectPool::add`](crate::ObjectPool::add) refused an object, and the object.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AddError<T> {
    /// No place is vacant.
    #[error("the pool is full")]
    Full(T),
    /// The pool is closed.
    #[error("the pool is closed")]
    Closed(T),
}

impl<T> AddError<T> {
    /// The object that was refused.
    pub fn into_inner(self) -> T {
        match self {
            Self::Full(object) | Self::Closed(object) => object,
        }
    }
}

impl<T> std::fmt::Debug for AddError<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Full(_) => "Full(..)",
            Self::Closed(_) => "Closed(..)",
        })
    }
}

/// What went wrong with one of a manager's methods.
///
/// # Examples
///
/// The manager's own error, found in whatever an acquire fails with:
///
/// ```
/// use millpond::{OperationError, Pool, from_fn};
/// use std::{error::Error, io, time::Duration};
///
/// fn is_refused(error: &(dyn Error + 'static)) -> bool {
///     if let Some(OperationError::<io::Error>::Failed(error)) = error.downcast_ref() {
///         return error.kind() == io::ErrorKind::ConnectionRefused;
///     }
///     error.source().is_some_and(is_refused)
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let connect = || async { Err::<String, _>(io::Error::from(io::ErrorKind::ConnectionRefused)) };
/// let pool = Pool::builder(from_fn(connect)).build_lazy().unwrap();
/// let error = pool.acquire_timeout(Duration::from_millis(10)).await.unwrap_err();
/// assert!(is_refused(&error));
/// # }
/// ```
#[cfg(feature = "tokio")]
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OperationError<E> {
    /// The method returned an error: this one.
    ///
    /// It says what that error says, and its [source](std::error::Error::source) is that error's
    /// source, so that the pool says nothing twice. Some drivers' errors say what their own source says, as
    /// those of redis, MySQL and sqlx, and their chains are left as they are; what the pool itself tells of a
    /// failure, as in [`ConnectFailure::message`](crate::ConnectFailure::message), says it once. Whoever looks for the manager's own error in a
    /// chain looks for an `OperationError` and takes it out of this variant.
    #[error(transparent)]
    Failed(E),
    /// The method took longer than its limit and was dropped.
    #[error("no answer within {limit:?} ({setting})")]
    TimedOut {
        /// The setting that the limit comes from, such as `connect_timeout`; `max_connections` of a connect that
        /// a cluster gave up so that other nodes could connect.
        setting: &'static str,
        /// The limit: that of the pool's configuration, or, for the hook
        /// [`after_connect`](crate::Hooks::after_connect), what the connect before it had left of
        /// `connect_timeout`.
        limit: std::time::Duration,
    },
    /// The method panicked.
    #[error("panicked: {message}")]
    Panicked {
        /// What the panic said.
        message: String,
    },
    /// It opened a connection, which [said](crate::LossSignal) soon after that that it had ended, though nobody had
    /// used it yet: the server may have hung up.
    #[error("the new connection was lost after {after:.0?}, before anybody used it")]
    Lost {
        /// How long after: less than a second, but for a [rotation](crate::Pool::rotate)'s.
        after: std::time::Duration,
    },
}

#[cfg(feature = "tokio")]
pub use self::managed::{
    AcquireError, BuildError, ConnectError, Deadlock, ReleaseError, RotateError, Stage, Timeout,
    WarmUpError,
};
#[cfg(feature = "tokio")]
pub(crate) use self::managed::{To, names};

/// The errors of the managed pool.
#[cfg(feature = "tokio")]
mod managed {
    use super::{ConfigError, OperationError};
    use crate::core::Counts;
    use crate::pool::Holder;
    use std::error::Error;
    use std::fmt;
    use std::panic::Location;
    use std::sync::Arc;
    use std::time::Duration;

    /// What connecting has failed with, and where it was to lead.
    ///
    /// The pool's errors name the target themselves, and have [`error`](Self::error) as their
    /// [source](std::error::Error::source), so that no chain says it twice. By itself, this says both.
    #[derive(Debug)]
    #[non_exhaustive]
    pub struct ConnectError<E> {
        /// What went wrong.
        pub error: OperationError<E>,
        /// The [target](crate::Manager::target) of the manager, if it has one and the error does not name it already.
        pub target: Option<Arc<str>>,
    }

    impl<E> ConnectError<E> {
        fn to(&self) -> To<'_> {
            To(self.target.as_deref())
        }
    }

    impl<E: fmt::Display> fmt::Display for ConnectError<E> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            match &self.target {
                Some(target) => write!(f, "{target}: {}", self.error),
                None => fmt::Display::fmt(&self.error, f),
            }
        }
    }

    /// Its source is that of the [`error`](ConnectError::error), which it says itself.
    impl<E: Error + 'static> Error for ConnectError<E> {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            self.error.source()
        }
    }

    /// Where something leads, if that is to be said.
    pub(crate) struct To<'t>(pub(crate) Option<&'t str>);

    impl fmt::Display for To<'_> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            self.0.map_or(Ok(()), |target| write!(f, " to {target}"))
        }
    }

    /// Whether words name a place already, and not only one in whose name this one's is.
    pub(crate) fn names(words: &str, place: &str) -> bool {
        let goes_on = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_');
        words.match_indices(place).any(|(at, _)| {
            let before = words[..at].chars().next_back();
            let after = words[at + place.len()..].chars().next();
            !before.is_some_and(|c| goes_on(c) || matches!(c, '.' | '/'))
                && !after.is_some_and(goes_on)
        })
    }

    /// Why a pool was not built.
    #[derive(Debug)]
    #[non_exhaustive]
    pub enum BuildError<E> {
        /// A setting is out of its range. It says what that error says, and has no source.
        Config(ConfigError),
        /// One of the first `min_idle` connections could not be opened, or was lost at once.
        Connect(Arc<ConnectError<E>>),
        /// `build` was called outside a tokio runtime, or on one that has ended.
        NoRuntime,
        /// The tokio runtime on which `build` was called has no timer.
        NoTimer,
        /// The system refused what a pool with a thread of its own needs.
        Thread(std::io::Error),
    }

    impl<E> fmt::Display for BuildError<E> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(match self {
                Self::Config(error) => return fmt::Display::fmt(error, f),
                Self::Connect(error) => {
                    return write!(f, "cannot open the first connections{}", error.to());
                }
                Self::NoRuntime => {
                    "no tokio runtime here: call build inside one, or build_lazy, or build_blocking"
                }
                Self::NoTimer => {
                    "this tokio runtime has no timer: call enable_time or enable_all on its builder"
                }
                Self::Thread(_) => "cannot start the pool's thread",
            })
        }
    }

    impl<E: Error + 'static> Error for BuildError<E> {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            match self {
                Self::Connect(error) => Some(&error.error),
                Self::Config(_) | Self::NoRuntime | Self::NoTimer => None,
                Self::Thread(error) => Some(error),
            }
        }
    }

    impl<E> From<ConfigError> for BuildError<E> {
        fn from(error: ConfigError) -> Self {
            Self::Config(error)
        }
    }

    /// Why an acquire failed.
    ///
    /// What fails to connect names where it was to lead, if the manager [says so](crate::Manager::target). Only
    /// [`Timeout`](Self::Timeout) names the pool: whoever is turned away is to cost the pool next to
    /// nothing. Where an error goes further than those who know which pool they have asked, put its
    /// [`name`](crate::Config::name) beside the error, and of [`QueueFull`](Self::QueueFull) its
    /// [`max_waiters`](crate::Config::max_waiters), as in the example. A cluster's errors name the node.
    ///
    /// # Examples
    ///
    /// ```
    /// # use millpond::{Pool, from_fn};
    /// # use std::convert::Infallible;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let manager = from_fn(|| async { Ok::<_, Infallible>(String::from("hello")) });
    /// let pool = Pool::builder(manager).name("orders").build().await?;
    /// pool.close().await;
    /// let named = |error| format!("{}: {error}", pool.config().name);
    /// let refused = pool.acquire().await.map(drop).map_err(named);
    /// assert_eq!(refused, Err("orders: the pool is closed".to_owned()));
    /// # Ok(()) }
    /// ```
    #[derive(Debug)]
    #[non_exhaustive]
    pub enum AcquireError<E> {
        /// The time was up. What the pool knows of the reason is inside.
        Timeout(Box<Timeout<E>>),
        /// Connecting failed in a way that the manager calls [permanent](crate::Manager::is_permanent), for the
        /// caller or so shortly before that it is too early to try again, and no connection is left that could come
        /// back to him. Trying the same again does not help, but a restart is not needed either: once the password,
        /// say, is right again, at the server or in the settings that the manager goes by, the next caller is served.
        Connect(Arc<ConnectError<E>>),
        /// Connecting fails, no connection is left that could come back to the caller, and the pool is set to
        /// `fail_fast`. It goes on trying by itself.
        Unavailable(Arc<ConnectError<E>>),
        /// As many callers wait as `max_waiters` allows.
        QueueFull,
        /// The caller had waited too long to be served in time; see [`Shed`](crate::Shed).
        Shed {
            /// How long it had waited.
            waited: Duration,
        },
        /// Everybody who holds a connection waits for another one, and the caller is one of them.
        WouldDeadlock(Box<Deadlock>),
        /// The pool is being drained.
        Draining,
        /// The pool is closed.
        Closed,
        /// No connection is ready, and there is no tokio runtime with a timer to open one on, to check it or
        /// show it to [`before_acquire`](crate::Hooks::before_acquire), or to wait on. Who waits without a
        /// deadline, or blocks its thread, needs none for a connection that comes back.
        NoRuntime,
        /// A blocking acquire would have blocked a thread that runs asynchronous tasks.
        WouldBlock,
    }

    impl<E> fmt::Display for AcquireError<E> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(match self {
                Self::Timeout(timeout) => return fmt::Display::fmt(timeout, f),
                Self::Connect(error) => {
                    let to = error.to();
                    return write!(
                        f,
                        "cannot connect{to} until the server or the settings are changed"
                    );
                }
                Self::Unavailable(error) => {
                    return write!(
                        f,
                        "cannot connect{} at the moment, and no connection is left; the pool keeps trying",
                        error.to()
                    );
                }
                Self::QueueFull => {
                    "as many callers wait as max_waiters allows: the pool is overloaded"
                }
                Self::Shed { waited } => {
                    return write!(f, "turned away after {waited:?}: the pool is overloaded");
                }
                Self::WouldDeadlock(deadlock) => return fmt::Display::fmt(deadlock, f),
                Self::Draining => "the pool is being drained",
                Self::Closed => "the pool is closed",
                Self::NoRuntime => {
                    "no connection is ready, and no tokio runtime with a timer to open or check one on: \
                     acquire inside one that has enable_time, or use blocking::Pool"
                }
                Self::WouldBlock => {
                    return write!(
                        f,
                        "a blocking acquire would block a thread that runs asynchronous tasks: \
                         await the acquire of an async pool, or {ELSEWHERE}"
                    );
                }
            })
        }
    }

    impl<E: Error + 'static> Error for AcquireError<E> {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            match self {
                Self::Timeout(timeout) => timeout.source(),
                Self::Connect(error) | Self::Unavailable(error) => Some(&error.error),
                Self::QueueFull
                | Self::Shed { .. }
                | Self::WouldDeadlock(_)
                | Self::Draining
                | Self::Closed
                | Self::NoRuntime
                | Self::WouldBlock => None,
            }
        }
    }

    /// Who holds the connections that everybody waits for.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct Deadlock {
        pub(crate) held_at: Vec<&'static Location<'static>>,
        pub(crate) wanted_at: &'static Location<'static>,
    }

    impl Deadlock {
        /// Where the connections were acquired, one for each.
        #[must_use]
        pub fn held_at(&self) -> &[&'static Location<'static>] {
            &self.held_at
        }

        /// Where one more was asked for.
        #[must_use]
        pub fn wanted_at(&self) -> &'static Location<'static> {
            self.wanted_at
        }
    }

    impl fmt::Display for Deadlock {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            let Self { held_at, wanted_at } = self;
            write!(
                f,
                "would wait for ever at {wanted_at}: every connection is held by a task that waits for another; acquired at"
            )?;
            for (index, site) in held_at.iter().enumerate() {
                let comma = if index == 0 { "" } else { "," };
                write!(f, "{comma} {site}")?;
            }
            Ok(())
        }
    }

    /// What to do about a blocking call that must not block here.
    const ELSEWHERE: &str =
        "call it on a thread of its own or inside spawn_blocking, and not in a hook of the pool";

    /// Why [`Pool::warm_up`](crate::Pool::warm_up) did not open what it was asked for.
    #[derive(Debug)]
    #[non_exhaustive]
    pub enum WarmUpError<E> {
        /// More than the pool may have. It says what that error says, and has no source.
        TooMany(ConfigError),
        /// A connection could not be opened, or was lost at once. Those that could stay in the pool.
        Connect(Arc<ConnectError<E>>),
        /// The pool is closed.
        Closed,
        /// There is no tokio runtime here that has a timer and has not ended.
        NoRuntime,
        /// A [`blocking::Pool`](crate::blocking::Pool) would have blocked a thread that runs
        /// asynchronous tasks.
        WouldBlock,
    }

    impl<E> fmt::Display for WarmUpError<E> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(match self {
                Self::TooMany(error) => return fmt::Display::fmt(error, f),
                Self::Connect(error) => return write!(f, "cannot open a connection{}", error.to()),
                Self::Closed => "the pool is closed",
                Self::NoRuntime => "no tokio runtime with a timer here to open connections on",
                Self::WouldBlock => {
                    return write!(
                        f,
                        "warm_up would block a thread that runs asynchronous tasks: {ELSEWHERE}"
                    );
                }
            })
        }
    }

    // Not derived: the source would be the `Arc`, and nobody who looks for the error finds that.
    impl<E: Error + 'static> Error for WarmUpError<E> {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            match self {
                Self::Connect(error) => Some(&error.error),
                Self::TooMany(_) | Self::Closed | Self::NoRuntime | Self::WouldBlock => None,
            }
        }
    }

    /// Why [`Pool::rotate`](crate::Pool::rotate) kept the old connections.
    #[derive(Debug)]
    #[non_exhaustive]
    pub enum RotateError<E> {
        /// The new connection could not be opened, or was [lost](crate::LossSignal) before the rotation was over.
        Connect(Arc<ConnectError<E>>),
        /// It was opened, and did not pass the caller's test.
        Verify(OperationError<E>),
        /// Every connection was in use, and none came back to make room for the new one; or another rotation was
        /// not over in time.
        NoRoom(AcquireError<E>),
        /// The pool is closed.
        Closed,
        /// There is no tokio runtime here that has a timer and has not ended, or the pool's own has ended while it
        /// connected.
        NoRuntime,
        /// A [`blocking::Pool`](crate::blocking::Pool) would have blocked a thread that runs
        /// asynchronous tasks.
        WouldBlock,
    }

    impl<E> fmt::Display for RotateError<E> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(match self {
                Self::Connect(error) => {
                    let to = error.to();
                    return write!(f, "cannot open a connection{to} of the new generation");
                }
                Self::Verify(_) => "the first connection of the new generation does not pass",
                Self::NoRoom(_) => "no room for a connection of the new generation",
                Self::Closed => "the pool is closed",
                Self::NoRuntime => {
                    "no tokio runtime with a timer here to open a connection on, or the pool's ended meanwhile"
                }
                Self::WouldBlock => {
                    return write!(
                        f,
                        "rotate would block a thread that runs asynchronous tasks: {ELSEWHERE}"
                    );
                }
            })
        }
    }

    // Not derived: the source would be the `Arc`, and nobody who looks for the error finds that.
    impl<E: Error + 'static> Error for RotateError<E> {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            match self {
                Self::Connect(error) => Some(&error.error),
                Self::Verify(error) => Some(error),
                Self::NoRoom(error) => Some(error),
                Self::Closed | Self::NoRuntime | Self::WouldBlock => None,
            }
        }
    }

    /// An acquire ran into its deadline. `source()` is the last failure to connect, if connecting
    /// has been failing.
    pub struct Timeout<E> {
        pub(crate) pool: Arc<str>,
        pub(crate) waited: Duration,
        pub(crate) stage: Stage,
        pub(crate) counts: Counts,
        pub(crate) kept: usize,
        pub(crate) longest_held: Option<Holder>,
        pub(crate) last_connect_error: Option<Arc<ConnectError<E>>>,
        pub(crate) failed_hook: Option<&'static str>,
        pub(crate) target: Option<Arc<str>>,
        pub(crate) cap: Option<String>,
    }

    impl<E> Timeout<E> {
        /// The pool's [name](crate::Config::name); of a cluster's node `cluster/node`.
        #[must_use]
        pub fn pool(&self) -> &str {
            &self.pool
        }

        /// How long the acquire waited.
        #[must_use]
        pub fn waited(&self) -> Duration {
            self.waited
        }

        /// What it was waiting for at the end.
        #[must_use]
        pub fn stage(&self) -> Stage {
            self.stage
        }

        /// The pool's connections at that moment. The caller itself is no longer among the waiters.
        #[must_use]
        pub fn counts(&self) -> Counts {
            self.counts
        }

        /// How many places, vacant or with a connection that was idle or being opened, were
        /// [kept](crate::PoolBuilder::reserved) for others, who have priority.
        #[must_use]
        pub fn kept(&self) -> usize {
            self.kept
        }

        /// Who has held a connection for longest, to the reaper's resolution.
        #[must_use]
        pub fn longest_held(&self) -> Option<Holder> {
            self.longest_held
        }

        /// The last failure to connect, if no connect has succeeded since and a connection could have
        /// been opened for the caller; or why a hook has rejected the last new connection, if none has been
        /// handed out since; or that the last one was lost before anybody used it, if none has been there for a
        /// second since, nor been handed out where a hook or a setting sees each use. Where a [cap](Self::cap) is
        /// named, also what is wrong with a node that is down.
        #[must_use]
        pub fn last_connect_error(&self) -> Option<&Arc<ConnectError<E>>> {
            self.last_connect_error.as_ref()
        }

        /// The [hook](crate::Hooks) whose error that is, such as `before_acquire`; `None` if it is none's.
        #[must_use]
        pub fn failed_hook(&self) -> Option<&'static str> {
            self.failed_hook
        }

        /// Where the pool's connections lead, if its manager [says so](crate::Manager::target); of a cluster's node, if
        /// its key does not say it. The message names it where the caller was waiting for one to be opened.
        #[must_use]
        pub fn target(&self) -> Option<&str> {
            self.target.as_deref()
        }

        /// What is to be said of it.
        fn to(&self) -> To<'_> {
            match (self.stage, &self.last_connect_error) {
                (Stage::ConnectFailing, Some(error)) => error.to(),
                (Stage::Connecting, _) => To(self.target()),
                _ => To(None),
            }
        }

        /// In words, if the pool is a node's and its cluster had no more connections for it: the cluster's
        /// `max_connections`, and which nodes had them.
        #[must_use]
        pub fn cap(&self) -> Option<&str> {
            self.cap.as_deref()
        }
    }

    impl<E> fmt::Display for Timeout<E> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            let Self { pool, waited, stage, counts, kept, .. } = self;
            let (what, of_it) = stage.words();
            write!(f, "pool {pool}: no connection within {waited:?}: {what}{}{of_it}", self.to())?;
            if let Some(hook) = self.failed_hook.filter(|_| *stage == Stage::ConnectFailing) {
                write!(f, " in the hook {hook}")?;
            }
            write!(f, " ({counts}")?;
            match kept {
                0 => f.write_str(")"),
                1 => f.write_str("; 1 is kept for Priority::High)"),
                kept => write!(f, "; {kept} are kept for Priority::High)"),
            }?;
            if let Some(holder) = self.longest_held {
                write!(f, "; held longest: {holder}")?;
            }
            match &self.cap {
                Some(cap) => write!(f, "; {cap}"),
                None => Ok(()),
            }
        }
    }

    impl<E: fmt::Debug> fmt::Debug for Timeout<E> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.debug_struct("Timeout")
                .field("pool", &self.pool)
                .field("waited", &self.waited)
                .field("stage", &self.stage)
                .field("counts", &self.counts)
                .field("kept", &self.kept)
                .field("longest_held", &self.longest_held)
                .field("last_connect_error", &self.last_connect_error)
                .field("failed_hook", &self.failed_hook)
                .field("target", &self.target)
                .field("cap", &self.cap)
                .finish()
        }
    }

    impl<E: Error + 'static> Error for Timeout<E> {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            self.last_connect_error.as_ref().map(|error| &error.error as _)
        }
    }

    /// What an acquire was waiting for when its time was up.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    #[non_exhaustive]
    pub enum Stage {
        /// Every connection was in use, but for what is reserved for others: raise `max_size`, or, where a
        /// [cap](Timeout::cap) on a cluster is named, that one, or look for who holds them so long.
        Queued,
        /// A connection was being opened that the caller might have had, and that took too long.
        Connecting,
        /// Connecting kept failing, or hooks kept rejecting what was new, or that was lost at once; the timeout's
        /// source says why.
        ConnectFailing,
        /// A connection was being checked, or prepared by a hook.
        Checking,
    }

    impl Stage {
        /// What it says, in two parts, between which there is room to say where a connection leads.
        fn words(self) -> (&'static str, &'static str) {
            match self {
                Self::Queued => ("none was released in time", ""),
                Self::Connecting => ("opening one", " took too long"),
                Self::ConnectFailing => ("opening one", " keeps failing"),
                Self::Checking => ("checking or preparing one took too long", ""),
            }
        }
    }

    impl fmt::Display for Stage {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            let (what, of_it) = self.words();
            write!(f, "{what}{of_it}")
        }
    }

    /// Why [`Pooled::release`](crate::Pooled::release) did not put the connection back.
    #[derive(Debug, thiserror::Error)]
    #[non_exhaustive]
    pub enum ReleaseError<E> {
        /// The manager calls the connection broken, or it has [said](crate::LossSignal) that it has ended.
        #[error("the connection is broken")]
        Broken,
        /// The hook `on_checkin` panicked; the connection is closed.
        #[error("the hook on_checkin panicked")]
        Rejected,
        /// Resetting it failed.
        #[error("the connection cannot be reset")]
        Reset(#[source] OperationError<E>),
        /// It is dirty, and there is no tokio runtime here that has a timer and has not ended; for
        /// [`release_blocking`](crate::Pooled::release_blocking), nor has the pool one.
        #[error(
            "the connection is dirty, and there is no tokio runtime with a timer here to wait for its reset"
        )]
        NoRuntime,
        /// It is dirty, and a blocking release would have blocked a thread that runs asynchronous tasks.
        #[error(
            "the connection is dirty, and release_blocking would block a thread that runs asynchronous tasks: \
             use release().await here, or call it inside spawn_blocking"
        )]
        WouldBlock,
    }
}
