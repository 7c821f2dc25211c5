//! The addresses of a host as a stream of sets of nodes.
//!
//! Not here: what is done with them (`watch.rs`).

use super::discovery::NodeSpec;
use super::endpoint::Endpoint;
use super::node::NodeOptions;
use crate::config::above_zero;
use crate::error::ConfigError;
use crate::names;
use futures_core::Stream;
use std::collections::BTreeSet;
use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::Sleep;

/// A lookup has failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot look up {endpoint}")]
#[non_exhaustive]
pub struct LookupError {
    /// What was looked up.
    pub endpoint: Endpoint,
    /// What the resolver said.
    pub source: io::Error,
}

type Lookup = dyn Fn(Endpoint) -> Answer + Send + Sync;
type Answer = Pin<Box<dyn Future<Output = io::Result<Vec<SocketAddr>>> + Send>>;
type Filter = dyn Fn(&SocketAddr) -> bool + Send + Sync;

/// The addresses that a host's name has, as nodes: a stream for [`Cluster::watch`](super::Cluster).
///
/// It looks the name up at once and then again and again, and yields a set
///
/// - when it is another than the one before; the order of the addresses does not matter;
/// - after an error, even if it is the same as before that.
///
/// Each address, IPv4 or IPv6, is a node: its key is the address with the port, as `10.0.0.1:5432` or
/// `[::1]:5432`, and so is its endpoint. A server that has an address of both kinds is two nodes
/// therefore, unless a [`filter`](Self::filter) drops one. A name that has no address any more is an
/// error for most resolvers, and an empty set for some; a cluster keeps its nodes in both cases.
///
/// # How it asks
///
/// It asks the system's resolver (as [`tokio::net::lookup_host`] does, but on a thread of Millpond's own, for
/// which tokio's paused clock does not stand still), which knows `/etc/hosts`, search domains
/// and whatever else the system is set up with. It does not see how long an answer is valid (its TTL):
/// `every` alone says how old an answer may be, on top of what the resolver itself remembers. Each pause
/// between two lookups is up to a tenth shorter than `every`, at random, so that many processes that
/// were started together do not ask together for long. There is never more than one lookup under way;
/// one that takes long only delays the next. Errors are passed on, and it goes on after the usual pause.
/// The stream never ends, and does nothing while it is not polled. It must be polled within a tokio
/// runtime with its timer enabled.
///
/// # Several names
///
/// Each name has a watch of its own. When a server goes from one name to another, as B does below when it
/// is promoted, it goes from the one watch to the other; until both names have been looked up after that,
/// it may be in neither, or be what it was. A server that stays in both is a node of the watch that was
/// first, with the options of that one.
///
/// # Examples
///
/// ```no_run
/// # use millpond::{cluster::{Cluster, Dns, NodeOptions, Role}, from_fn};
/// # use std::{convert::Infallible, net::SocketAddr, time::Duration};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let cluster: Cluster<String, _> = Cluster::builder()
/// #     .template(|_| from_fn(|| std::future::ready(Ok::<_, Infallible>(()))))
/// #     .build()?;
/// // Such as B and C, and A.
/// let replicas = Dns::new("replicas.db.internal:5432".parse()?, Duration::from_secs(15))?
///     .options(NodeOptions::default().role(Role::Replica))
///     .filter(SocketAddr::is_ipv4);
/// let primary = Dns::new("primary.db.internal:5432".parse()?, Duration::from_secs(5))?
///     .options(NodeOptions::default().role(Role::Primary));
/// cluster.watch(replicas, Duration::from_secs(60));
/// cluster.watch(primary, Duration::from_secs(60));
/// # Ok(()) }
/// ```
#[must_use = "a stream does nothing unless it is polled"]
pub struct Dns {
    endpoint: Endpoint,
    every: Duration,
    options: NodeOptions,
    lookup: Box<Lookup>,
    filter: Option<Box<Filter>>,
    /// What was yielded last, unless an error was.
    last: Option<BTreeSet<SocketAddr>>,
    step: Step,
}

enum Step {
    Ask,
    LookUp(Answer),
    Pause(Pin<Box<Sleep>>),
}

impl Dns {
    /// The addresses of this host with this port, looked up every so often; above zero.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] if `every` is zero.
    pub fn new(endpoint: Endpoint, every: Duration) -> Result<Self, ConfigError> {
        above_zero("every", every)?;
        let lookup = |Endpoint { host, port }| -> Answer {
            Box::pin(async move { Ok(names::lookup((host, port)).await?.collect()) })
        };
        Ok(Self {
            endpoint,
            every,
            options: NodeOptions::default(),
            lookup: Box::new(lookup),
            filter: None,
            last: None,
            step: Step::Ask,
        })
    }

    /// The options of all the nodes. Default: those of [`NodeOptions`].
    pub fn options(mut self, options: NodeOptions) -> Self {
        self.options = options;
        self
    }

    /// Only addresses that this says `true` to, such as [`SocketAddr::is_ipv4`]. Default: all.
    pub fn filter(mut self, filter: impl Fn(&SocketAddr) -> bool + Send + Sync + 'static) -> Self {
        self.filter = Some(Box::new(filter));
        self
    }

    /// Has this look the host up rather than the system's resolver: another resolver, the same one with
    /// a time limit, or a test's.
    ///
    /// # Examples
    ///
    /// ```
    /// # use millpond::cluster::Dns;
    /// # use std::time::Duration;
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let nodes = Dns::new("db.internal:5432".parse()?, Duration::from_secs(15))?
    ///     .lookup(|endpoint| async move {
    ///         let host = (endpoint.host.as_str(), endpoint.port);
    ///         let answer = tokio::net::lookup_host(host);
    ///         Ok(tokio::time::timeout(Duration::from_secs(2), answer).await??.collect())
    ///     });
    /// # Ok(()) }
    /// ```
    pub fn lookup<F>(mut self, lookup: impl Fn(Endpoint) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = io::Result<Vec<SocketAddr>>> + Send + 'static,
    {
        self.lookup = Box::new(move |endpoint| Box::pin(lookup(endpoint)));
        self
    }

    /// What the resolver's answer means; `None` if it is nothing new.
    fn learn(&mut self, answer: io::Result<Vec<SocketAddr>>) -> Option<<Self as Stream>::Item> {
        let addresses = match answer {
            Ok(addresses) => addresses,
            Err(source) => {
                self.last = None;
                return Some(Err(LookupError { endpoint: self.endpoint.clone(), source }));
            }
        };
        let passes = |address: &SocketAddr| self.filter.as_ref().is_none_or(|pass| pass(address));
        let set: BTreeSet<SocketAddr> = addresses.into_iter().filter(passes).collect();
        if self.last.as_ref() == Some(&set) {
            return None;
        }
        let spec = |address: &SocketAddr| {
            NodeSpec::new(address.to_string(), (*address).into()).options(self.options.clone())
        };
        let specs = set.iter().map(spec).collect();
        self.last = Some(set);
        Some(Ok(specs))
    }
}

impl Stream for Dns {
    type Item = Result<Vec<NodeSpec<String>>, LookupError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        loop {
            match &mut this.step {
                Step::Ask => this.step = Step::LookUp((this.lookup)(this.endpoint.clone())),
                Step::LookUp(lookup) => {
                    let answer = ready!(lookup.as_mut().poll(cx));
                    let shorter = this.every.mul_f64(fastrand::f64() / 10.0);
                    let pause = tokio::time::sleep(this.every - shorter);
                    this.step = Step::Pause(Box::pin(pause));
                    if let Some(news) = this.learn(answer) {
                        return Poll::Ready(Some(news));
                    }
                }
                Step::Pause(pause) => {
                    ready!(pause.as_mut().poll(cx));
                    this.step = Step::Ask;
                }
            }
        }
    }
}

impl fmt::Debug for Dns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { endpoint, every, options, last, .. } = self;
        f.debug_struct("Dns")
            .field("endpoint", endpoint)
            .field("every", every)
            .field("options", options)
            .field("last", last)
            .finish_non_exhaustive()
    }
}
