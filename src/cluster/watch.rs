//! A task that applies each set of nodes that a stream yields, for as long as the cluster lives.
//!
//! It holds the cluster weakly, and listens to its changes: the last of them is its end, and any of them
//! may set a node free that it was refused. The cluster knows what its watches tell, and its health and its errors
//! say so.
//!
//! Not here: what a set does to the cluster (`discovery.rs`).

use super::discovery::{Changes, NodeSpec, Rest, SetError};
use super::{Cluster, Key, Shared};
use crate::error::in_words;
use crate::manager::Manager;
use crate::panics::caught;
#[cfg(feature = "tracing")]
use crate::{error::InWords, panics::tell};
use event_listener::{Event, IntoNotification};
use futures_core::Stream;
use std::error::Error;
use std::fmt;
use std::future::{Future, poll_fn};
use std::mem;
use std::ops::ControlFlow;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::Poll;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::Sleep;

/// Why a [watch](Cluster::watch) has not applied what its stream answered last.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WatchError {
    /// The stream's own error: this one.
    #[error("the source of nodes has an error")]
    Source(#[source] Box<dyn Error + Send + Sync>),
    /// The set was refused.
    #[error(transparent)]
    Refused(SetError),
    /// The stream panicked, which has ended the watch.
    #[error("the source of nodes panicked: {message}")]
    Panicked {
        /// What the panic said.
        message: String,
    },
}

impl WatchError {
    /// What an operator is told of it, with all causes.
    fn in_words(&self) -> String {
        match self {
            Self::Source(error) => {
                let error: &(dyn Error + 'static) = &**error;
                format!("{self}: {}", in_words(error))
            }
            Self::Refused(error) => {
                format!("the source of nodes answers what is refused: {error}")
            }
            Self::Panicked { .. } => self.to_string(),
        }
    }
}

/// A handle to a [watch](Cluster::watch). Dropping it lets the watch go on.
pub struct Watch<K: Key> {
    told: Arc<Told<K>>,
    /// How many changes of that its owner has heard of.
    heard: u64,
    task: JoinHandle<()>,
}

/// What a watch tells of itself.
struct Told<K> {
    news: Mutex<News<K>>,
    /// Notified when that has changed, or is not going to any more.
    changed: Event,
}

struct News<K> {
    /// How often it has changed.
    version: u64,
    applied: u64,
    /// With what is said of it.
    error: Option<(Arc<WatchError>, String)>,
    changes: Option<Arc<Changes<K>>>,
    /// It is not at work any more.
    has_ended: bool,
    /// It was to end.
    is_stopped: bool,
}

impl<K> Told<K> {
    fn new() -> Self {
        let (version, applied, error, changes) = (0, 0, None, None);
        let (has_ended, is_stopped) = (false, false);
        let news = News { version, applied, error, changes, has_ended, is_stopped };
        Self { news: Mutex::new(news), changed: Event::new() }
    }

    fn news(&self) -> MutexGuard<'_, News<K>> {
        self.news.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// There is something to tell, or there will be nothing any more. Answers what is to be dropped after the lock,
    /// as others' errors and keys are.
    fn change<T>(&self, change: impl FnOnce(&mut News<K>) -> T) -> T {
        let answer = change(&mut self.news());
        self.changed.notify(usize::MAX.additional());
        answer
    }
}

impl<K> News<K> {
    /// What is wrong with it, also with one that has ended, unless it was to; that it has not answered is wrong if it
    /// is `missed`.
    fn trouble(&self, is_missed: bool) -> Option<String> {
        let (what, but) = match (&self.error, self.has_ended) {
            _ if self.is_stopped => return None,
            (Some((_, said)), true) => (said.as_str(), "; its watch has ended"),
            (Some((_, said)), false) => (said.as_str(), ""),
            (None, _) if !is_missed || self.version > 0 => return None,
            (None, true) => ("the source of nodes has ended without an answer", ""),
            (None, false) => ("the source of nodes has not answered yet", ""),
        };
        Some(format!("{what}{but}"))
    }
}

/// What the watches of a cluster tell: those that are at work, and what has ended since the last one began.
pub(super) struct Watches<K>(Mutex<Vec<Arc<Told<K>>>>);

impl<K> Watches<K> {
    pub(super) fn new() -> Self {
        Self(Mutex::new(Vec::new()))
    }

    /// Another one has begun, which is as good as any that has ended.
    fn add(&self, told: Arc<Told<K>>) {
        let mut watches = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let has_ended = |other: &Arc<Told<K>>| other.news().has_ended;
        let (over, mut at_work): (Vec<_>, _) =
            mem::take(&mut *watches).into_iter().partition(has_ended);
        at_work.push(told);
        *watches = at_work;
        drop(watches);
        // Not under the lock, since there are others' errors in it.
        drop(over);
    }

    /// What is wrong with them; if there are no nodes, also that a source has not answered.
    pub(super) fn say(&self, are_no_nodes: bool) -> Vec<String> {
        let watches = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        watches.iter().filter_map(|told| told.news().trouble(are_no_nodes)).collect()
    }
}

impl<K: Key> Watch<K> {
    /// How many sets were applied, those that changed nothing included.
    #[must_use]
    pub fn applied(&self) -> u64 {
        self.told.news().applied
    }

    /// What was wrong with the stream's last answer; `None` if there was none yet, or if it was
    /// applied. What was wrong with single nodes of it is in [`last_changes`](Self::last_changes).
    #[must_use]
    pub fn last_error(&self) -> Option<Arc<WatchError>> {
        self.told.news().error.as_ref().map(|(error, _)| error.clone())
    }

    /// What the last set that was applied has changed, and which of its nodes were refused; if something
    /// has come of those since then, what that has changed, and which are refused still. `None` before
    /// the first.
    #[must_use]
    pub fn last_changes(&self) -> Option<Arc<Changes<K>>> {
        self.told.news().changes.clone()
    }

    /// Completes when there is something new to be seen here, of which this handle has not told yet: its stream has
    /// answered, for the first time or once more, or something has come of nodes that were refused. `false` if it has
    /// ended and there is nothing new any more.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost: the next call tells of it.
    ///
    /// # Examples
    ///
    /// ```
    /// # use millpond::{cluster::{Cluster, NodeSpec}, from_fn};
    /// # use futures_util::stream;
    /// # use std::{convert::Infallible, time::Duration};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let cluster: Cluster<String, _> = Cluster::builder()
    /// #     .template(|_| from_fn(|| std::future::ready(Ok::<_, Infallible>(()))))
    /// #     .build()?;
    /// # let nodes = stream::iter([Err("no such host"), Ok(vec![NodeSpec::new("a", "10.0.0.1:1".parse()?)])]);
    /// let mut watch = cluster.watch(nodes, Duration::from_secs(60));
    /// // Before it says that it is ready, a service waits until it knows of a server.
    /// while cluster.nodes().is_empty() && watch.changed().await {
    ///     if let Some(error) = watch.last_error() {
    ///         eprintln!("no nodes yet: {error}");
    ///     }
    /// }
    /// assert_eq!(cluster.nodes(), ["a"]);
    /// # Ok(()) }
    /// ```
    pub async fn changed(&mut self) -> bool {
        loop {
            // Before the look, so that no change after it is missed.
            let changed = self.told.changed.listen();
            {
                let news = self.told.news();
                if news.version != self.heard {
                    self.heard = news.version;
                    return true;
                }
                if news.has_ended {
                    return false;
                }
            }
            // Cancel: what has been heard is taken down at the end.
            changed.await;
        }
    }

    /// Whether it may still apply sets. `false` stays false; `true` may be out of date at once.
    #[must_use]
    pub fn is_running(&self) -> bool {
        !self.task.is_finished()
    }

    /// Ends the watch, and drops its stream. When this returns it applies nothing any more. The nodes
    /// stay, and the cluster's health does not go by it any more.
    ///
    /// # Cancel safety
    ///
    /// The watch is told to end at the first poll. Dropping the future only stops waiting.
    pub async fn stop(self) {
        self.told.news().is_stopped = true;
        self.task.abort();
        // An error: it was stopped before its end, as it was told.
        drop(self.task.await);
    }
}

impl<K: Key> fmt::Debug for Watch<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch")
            .field("is_running", &self.is_running())
            .field("applied", &self.applied())
            .field("last_error", &self.last_error())
            .finish_non_exhaustive()
    }
}

impl<K: Key, M: Manager> Cluster<K, M> {
    /// Applies each set of nodes that a stream yields, as [`apply`](Self::apply) does, by a task in
    /// the background: from DNS ([`Dns`](super::Dns)), a file, Consul, or anything else.
    ///
    /// **It manages only what it has added.** Nodes that were added otherwise, by hand, by `apply` or
    /// by another watch, are neither removed nor changed; a set that has one of their keys is applied
    /// without that node, which is an error of it ([`NodeError::Duplicate`](super::NodeError)). So a
    /// cluster may have its primary by hand and its replicas from a watch, or two watches. What is done
    /// by hand to a watch's node holds until its next set, except for [`replace`](Self::replace),
    /// after which the node is no longer the watch's. [`apply`](Self::apply) itself knows no such
    /// bounds, and is not to be used beside a watch.
    ///
    /// **What it was refused it tries again**, until the next set: a node that is somebody else's, as soon
    /// as it has been removed or its own watch has ended; one that could not be made, because its template
    /// panicked or a setting was out of range, after a pause, of 1 s at first and of up to a minute. So a
    /// node that goes from one watch's sets to another's, such as a replica that becomes the primary, goes
    /// from the one to the other, whichever hears of it first; between the two it may be in neither. A
    /// watch with a set of nothing but other people's nodes has none of its own. A node that the sets of
    /// two watches have for good belongs to the one that was first: where such sets overlap, have the
    /// servers [say](super::ClusterBuilder::read_role) what they are rather than the sets.
    ///
    /// **Its end.** It ends when the stream does, when the cluster is closed, when the last handle to
    /// the cluster is dropped, which it does not keep alive, or by [`Watch::stop`]. Dropping the
    /// [`Watch`] lets it go on. Its nodes stay; a later watch takes over those of them that are in its
    /// sets, and the others can be removed by hand.
    ///
    /// **Errors.** An error of the stream, or a set without nodes unless those are
    /// [accepted](super::ClusterBuilder::accept_empty_sets), leaves the nodes as they are. It is in
    /// [`Watch::last_error`], and, with the feature `tracing`, told as a warning; until a set is applied, the
    /// cluster's [health](super::ClusterStatus::health) is degraded for it, and an acquire that no node has served
    /// says so. Then the stream is asked again at once: it is the stream that has to pause. A stream that panics
    /// ends the watch. If the last answer before its end was an error, health tells of it until another watch
    /// begins.
    ///
    /// Sets are applied in order and each of them at once, since drains are not waited for; `limit`
    /// is that of the drains, from each set on: see [`apply`](Self::apply).
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    ///
    /// # Examples
    ///
    /// ```
    /// use millpond::{cluster::{Cluster, Dns}, from_fn};
    /// use std::{convert::Infallible, time::Duration};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let cluster = Cluster::builder()
    ///     .template(|endpoint| {
    ///         let address = endpoint.to_string();
    ///         from_fn(move || std::future::ready(Ok::<_, Infallible>(address.clone())))
    ///     })
    ///     .build()?;
    /// let nodes = Dns::new("127.0.0.1:5432".parse()?, Duration::from_secs(30))?;
    /// let watch = cluster.watch(nodes, Duration::from_secs(60));
    /// // There are no nodes yet: whoever wants one waits for it.
    /// let connection = cluster.acquire_any(millpond::cluster::Policy::RoundRobin).await?;
    /// assert_eq!(connection.node(), "127.0.0.1:5432");
    /// assert_eq!(watch.applied(), 1);
    /// # Ok(()) }
    /// ```
    #[track_caller]
    pub fn watch<S, E>(&self, stream: S, limit: Duration) -> Watch<K>
    where
        S: Stream<Item = Result<Vec<NodeSpec<K>>, E>> + Send + 'static,
        E: Into<Box<dyn Error + Send + Sync>> + 'static,
    {
        let told = Arc::new(Told::new());
        let watching = Watching {
            name: self.shared.name(),
            cluster: Arc::downgrade(&self.shared),
            limit,
            owner: Owner {
                mark: Some(Arc::new(())),
                changed: self.shared.changed.clone(),
                told: told.clone(),
            },
        };
        let task = tokio::spawn(watching.run(stream));
        self.shared.watches.add(told.clone());
        Watch { told, heard: 0, task }
    }
}

/// What a stream has yielded, or why that is nothing.
type Answer<K> = Result<Vec<NodeSpec<K>>, WatchError>;

fn source(error: impl Into<Box<dyn Error + Send + Sync>>) -> WatchError {
    WatchError::Source(error.into())
}

/// Whose nodes they are that a watch has added. When it is gone, they are nobody's.
struct Owner<K> {
    /// Only taken at the end.
    mark: Option<Arc<()>>,
    /// Notified when the cluster is closed or gone, and when it has changed otherwise.
    changed: Arc<Event>,
    told: Arc<Told<K>>,
}

impl<K> Owner<K> {
    fn mark(&self) -> Weak<()> {
        self.mark.as_ref().map(Arc::downgrade).unwrap_or_default()
    }
}

impl<K> Drop for Owner<K> {
    /// Tells other watches, which may have been refused what is nobody's now, and whoever waits for news of this one.
    fn drop(&mut self) {
        self.told.change(|news| news.has_ended = true);
        self.mark = None;
        self.changed.notify(usize::MAX.additional());
    }
}

/// What was refused of the last set, and when it is time to try again what could not be made.
struct Left<K> {
    rest: Rest<K>,
    /// How long the pause is that is under way.
    length: Duration,
    /// Until then; `None` if everything could be made.
    pause: Option<Pin<Box<Sleep>>>,
}

impl<K: Key> Left<K> {
    fn new(rest: Rest<K>) -> Self {
        let mut left = Self { rest, length: Duration::ZERO, pause: None };
        left.pause_longer();
        left
    }

    fn pause_longer(&mut self) {
        const FIRST: Duration = Duration::from_secs(1);
        const LONGEST: Duration = Duration::from_secs(60);
        self.length = (self.length * 2).clamp(FIRST, LONGEST);
        let pause = || Box::pin(tokio::time::sleep(self.length));
        self.pause = self.rest.has_unmade().then(pause);
    }
}

/// A watch at work.
struct Watching<K: Key, M: Manager> {
    name: Arc<str>,
    cluster: Weak<Shared<K, M>>,
    limit: Duration,
    /// Whose nodes they are, for as long as this is there.
    owner: Owner<K>,
}

impl<K: Key, M: Manager> Watching<K, M> {
    async fn run<S, E>(self, stream: S)
    where
        S: Stream<Item = Result<Vec<NodeSpec<K>>, E>>,
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        let mut stream = pin!(stream);
        let mut left = None;
        while let Some(answer) = self.next(stream.as_mut(), &mut left).await {
            let applied = answer.and_then(|set| {
                let changes = self.apply(set.clone())?;
                left = Rest::new(set, &changes).map(Left::new);
                Ok(changes)
            });
            if self.take_down(applied).is_break() {
                break;
            }
            // A stream that is always ready must not keep its thread from everything else.
            tokio::task::yield_now().await;
        }
        #[cfg(feature = "tracing")]
        tell!(info, cluster = %self.name, "a watch of nodes has ended");
    }

    fn apply(&self, set: Vec<NodeSpec<K>>) -> Result<Changes<K>, WatchError> {
        let applied = match self.cluster.upgrade() {
            Some(cluster) => cluster.apply(set, self.limit, Some(&self.owner.mark())),
            None => Err(SetError::Closed { cluster: self.name.clone() }),
        };
        applied.map_err(WatchError::Refused)
    }

    /// Takes down what has come of an answer; breaks if there is nothing more to come.
    fn take_down(&self, applied: Result<Changes<K>, WatchError>) -> ControlFlow<()> {
        match applied {
            Ok(changes) => drop(self.owner.told.change(|news| {
                news.version += 1;
                news.applied += 1;
                (news.error.take(), news.changes.replace(Arc::new(changes)))
            })),
            Err(WatchError::Refused(SetError::Closed { .. })) => return ControlFlow::Break(()),
            Err(error @ WatchError::Panicked { .. }) => {
                self.failed(error);
                return ControlFlow::Break(());
            }
            Err(error) => self.failed(error),
        }
        ControlFlow::Continue(())
    }

    /// Tries again what was refused of the last set, with what could not be `made` if it is time for
    /// that.
    fn take_up(&self, left: &mut Option<Left<K>>, make: bool) {
        let (Some(it), Some(cluster)) = (&mut *left, self.cluster.upgrade()) else { return };
        // An error: the cluster is closed, which is seen next.
        let taken = cluster.apply_rest(&mut it.rest, make, self.limit, &self.owner.mark());
        if make || (it.pause.is_none() && it.rest.has_unmade()) {
            it.pause_longer();
        }
        if let Ok(Some(changes)) = taken {
            if !it.rest.may_be_taken() {
                *left = None;
            }
            drop(self.owner.told.change(|news| {
                news.version += 1;
                news.changes.replace(Arc::new(changes))
            }));
        }
    }

    /// What the stream yields next; `None` if the stream has ended, or the cluster. Tries again meanwhile
    /// what was refused of the last set.
    async fn next<S, E>(
        &self,
        mut stream: Pin<&mut S>,
        left: &mut Option<Left<K>>,
    ) -> Option<Answer<K>>
    where
        S: Stream<Item = Result<Vec<NodeSpec<K>>, E>>,
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        let mut make = false;
        loop {
            // Before the look, so that no change after it is missed.
            let mut changed = self.owner.changed.listen();
            if self.cluster.upgrade().is_none_or(|cluster| cluster.table.load().closed) {
                return None;
            }
            self.take_up(left, make);
            make = false;
            let answer = poll_fn(|cx| {
                if Pin::new(&mut changed).poll(cx).is_ready() {
                    return Poll::Ready(None);
                }
                let pause = left.as_mut().and_then(|left| left.pause.as_mut());
                if pause.is_some_and(|pause| pause.as_mut().poll(cx).is_ready()) {
                    make = true;
                    return Poll::Ready(None);
                }
                let polled = caught(|| stream.as_mut().poll_next(cx));
                let panicked = |message| Poll::Ready(Some(Err(WatchError::Panicked { message })));
                let answer = match polled {
                    Ok(answer) => answer.map(|it| it.map(|it| it.map_err(source))),
                    Err(panic) => panicked(panic.message()),
                };
                answer.map(Some)
            });
            if let Some(answer) = answer.await {
                return answer;
            }
        }
    }

    fn failed(&self, error: WatchError) {
        let said = error.in_words();
        let error = Arc::new(error);
        // First, so that whoever hears of it finds it noted.
        drop(self.owner.told.change(|news| {
            news.version += 1;
            news.error.replace((error.clone(), said))
        }));
        #[cfg(feature = "tracing")]
        {
            let cause = error.source().unwrap_or(&*error);
            let cluster = tracing::field::display(&self.name);
            tell!(warn, cluster, error = %InWords(cause), "no nodes are learned");
        }
    }
}

impl<K: Key, M: Manager> Drop for Shared<K, M> {
    /// Tells watches that the last handle is gone.
    fn drop(&mut self) {
        self.changed.notify(usize::MAX.additional());
    }
}
