//! Several PostgreSQL servers that one URL names, as the nodes of a [`Cluster`].
//!
//! Not here: which node an acquire goes to (`crate::cluster`), and what is done on its connections
//! (`mod.rs`).

use super::dial::{PORT, Target, numbered, shown, targets};
use super::{Client, Error, PostgresManager, first_value, no_password_in_path, unreadable};
use crate::cluster::{Cluster, ClusterBuilder, Endpoint, NodeError, Policy, Role, RoleFuture};
use crate::manager::Manager;
use std::collections::HashSet;
use std::fmt;
use tokio_postgres::Config;
use tokio_postgres::config::{LoadBalanceHosts, TargetSessionAttrs};

/// The servers that a URL names, each of which becomes a node of a [`Cluster`].
///
/// A node's key is its `host:port`, such as `db1.internal:5432`, `[::1]:5432`, or
/// `/run/postgresql:5432` for a Unix socket. Which node is the primary is not settled anywhere: each
/// server is asked, with `SELECT pg_is_in_recovery()`, when a connection to it is opened, when one is
/// checked, and when an acquire finds no node with the role that it takes. Until a replica has said so,
/// [`Policy::ReplicasThenPrimary`] may go to the primary.
///
/// A node is one server, so each name must lead to one: of a name with the addresses of several, a node
/// takes whichever answers first, now this one and now that one, and its role is what the last one said.
/// Such a name is for [`Dns`](crate::cluster::Dns), which makes a node of each address, in a cluster that is
/// made without a list of servers: see [`read_role`].
///
/// # `target_session_attrs`
///
/// It says which servers a program wants, and becomes a [policy](Self::policy):
///
/// | | policy | in libpq |
/// |---|---|---|
/// | `any`, or nothing | [`Policy::RoundRobin`] | the first server in reach |
/// | `read-write` | [`Policy::Primary`] | the first that takes writes |
/// | `read-only` | [`Policy::Replica`] | the first that takes none |
///
/// As in libpq, `read-only` is never served by a primary, and so by nobody while no replica is up.
/// What libpq calls `prefer-standby`, which is not understood here, is [`Policy::ReplicasThenPrimary`].
/// A policy belongs to an acquire and not to the cluster: a program that reads and writes has one
/// cluster, and asks it for [`Policy::Primary`] when it writes. Unlike libpq, a primary counts as one
/// even if its `default_transaction_read_only` is on.
///
/// # When the primary fails
///
/// Acquires for [`Policy::Primary`] wait until a server says that it is the primary, and ask all of
/// them every [`try_next_after`](ClusterBuilder::try_next_after), 250 ms by default; so writes go on
/// about that long after a replica has been promoted. Nothing is promoted here: that is for an operator,
/// or for what stands in for one. What was under way on the connections that died has failed, and
/// whether its last commit was done is unknown.
///
/// If the old primary then comes back as it was, two servers say that they are the primary, and the
/// cluster believes both: writes go to them by turns, and their data part ways. The cluster's
/// [health](crate::cluster::ClusterStatus::health) names them then, as it tells if no server is the primary
/// though somebody asks for it. A pool cannot know which one is right; to keep the other one out is called
/// fencing, and is the business of whoever promotes. What a program can do is to [remove](Cluster::remove_node) the old node when it learns of the
/// promotion, and to add it again, by [`add_endpoint`](Cluster::add_endpoint) with its host and port,
/// once it follows the new one; a `hostaddr` that the configuration has for it is kept.
///
/// # Examples
///
/// ```no_run
/// use millpond::backends::postgres::{PostgresManager, PostgresNodes};
/// use millpond::cluster::{Cluster, NodeOptions, Policy};
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let nodes = PostgresNodes::from_url(
///     "postgresql://app@db1:5432,db2:5432,db3:5432/app?target_session_attrs=read-write",
/// )?;
/// let builder = Cluster::builder().name("orders").pools(|pool| pool.max_size(16));
/// let cluster = nodes.cluster(builder, PostgresManager::new)?;
///
/// // Whichever of the three is the primary now.
/// let client = cluster.acquire_any(nodes.policy()).await?;
/// client.execute("INSERT INTO orders DEFAULT VALUES", &[]).await?;
/// drop(client);
///
/// // Reads go to the replicas, twice as many to db3.
/// cluster.set_options("db3:5432", NodeOptions::default().weight(2))?;
/// let client = cluster.acquire_any(Policy::ReplicasThenPrimary).await?;
/// let row = client.query_one("SELECT count(*) FROM orders", &[]).await?;
/// println!("{} orders, says {}", row.get::<_, i64>(0), client.node());
/// # drop(client);
///
/// // A fourth server, found out about later.
/// cluster.add_endpoint("db4:5432", "db4:5432".parse()?)?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct PostgresNodes {
    config: Config,
    nodes: Vec<(String, Target)>,
}

impl PostgresNodes {
    /// The servers that this configuration names.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] if it names none, or one twice; if a host is empty, or a port is 0; or if the
    /// numbers of hosts, addresses and ports do not fit together. It says which.
    pub fn new(config: Config) -> Result<Self, Error> {
        let mut in_order = config.clone();
        in_order.load_balance_hosts(LoadBalanceHosts::Disable);
        let targets = targets(&in_order)?;
        let nodes: Vec<_> = targets.into_iter().map(|node| (node.to_string(), node)).collect();
        let mut seen = HashSet::new();
        for (index, (key, _)) in nodes.iter().enumerate() {
            if !seen.insert(key) {
                let key = shown(&config, index, key);
                return Err(Error::config("host", key, "must be named once, not twice"));
            }
        }
        Ok(Self { config, nodes })
    }

    /// The servers that a URL names, or words such as `host=db1,db2 port=5432 user=app`; see [`Config`]
    /// for what there may be in it.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new); [`Error::Config`] too if a port in the URL is no number, and
    /// [`Error::Postgres`] if anything else in it cannot be read. No part of a password is in any of
    /// them, though it be one with an `@`, a `&` or a space that is not written as it should be; so where
    /// there is a password, a host is told by its number.
    pub fn from_url(url: &str) -> Result<Self, Error> {
        let config = url.parse().map_err(|error| match wrong_port(url) {
            Some(port) => Error::config("port", port, PORT),
            None => unreadable(url, error),
        })?;
        no_password_in_path(url)?;
        Self::new(config)
    }

    /// The policy that `target_session_attrs` asks for.
    #[must_use]
    pub fn policy(&self) -> Policy<'static, String> {
        match self.config.get_target_session_attrs() {
            TargetSessionAttrs::ReadWrite => Policy::Primary,
            TargetSessionAttrs::ReadOnly => Policy::Replica,
            _ => Policy::RoundRobin,
        }
    }

    /// The nodes' keys, in the order in which they are named.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.nodes.iter().map(|(key, _)| key.as_str())
    }

    /// Makes the cluster: with `builder`'s settings, and with a manager for each node that is what
    /// `manager` makes of the configuration and [connects](PostgresManager::only) to that node alone.
    /// Nothing is opened until somebody acquires.
    ///
    /// The builder's [`read_role`](ClusterBuilder::read_role) and its
    /// [`template`](ClusterBuilder::template) are set here. In the configuration that `manager` is given,
    /// `target_session_attrs` is `any`, since a pool is to have connections whatever its server's role.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] if a setting of the cluster or of its pools is out of range.
    ///
    /// # Examples
    ///
    /// With TLS, and sessions that are made new for each holder:
    ///
    /// ```no_run
    /// use millpond::backends::postgres::{PoolMode, PostgresManager, PostgresNodes, Socket};
    /// use millpond::cluster::Cluster;
    /// use tokio_postgres::tls::{MakeTlsConnect, TlsConnect};
    ///
    /// # fn example<T>(connector: T) -> Result<(), Box<dyn std::error::Error>>
    /// # where
    /// #     T: MakeTlsConnect<Socket> + Clone + Send + Sync + 'static,
    /// #     T::Stream: Send,
    /// #     T::TlsConnect: Send,
    /// #     <T::TlsConnect as TlsConnect<Socket>>::Future: Send,
    /// # {
    /// let nodes = PostgresNodes::from_url("postgresql://app@db1,db2/app?sslmode=require")?;
    /// let cluster = nodes.cluster(Cluster::builder(), move |config| {
    ///     PostgresManager::new(config).tls(connector.clone()).mode(PoolMode::Session)
    /// })?;
    /// # Ok(()) }
    /// ```
    pub fn cluster<T>(
        &self,
        builder: ClusterBuilder<String, PostgresManager<T>>,
        manager: impl Fn(Config) -> PostgresManager<T> + Send + Sync + 'static,
    ) -> Result<Cluster<String, PostgresManager<T>>, Error>
    where
        PostgresManager<T>: Manager<Connection = Client, Error = Error>,
    {
        let mut config = self.config.clone();
        config.target_session_attrs(TargetSessionAttrs::Any);
        let targets: Vec<Target> = self.nodes.iter().map(|(_, target)| target.clone()).collect();
        let template = move |endpoint: &Endpoint| {
            // One of its own has its address, though it be taken out and added again.
            let is_so_called = |target: &&Target| target.endpoint() == *endpoint;
            let is_own = |target: &&Target| target.endpoint().is_at(endpoint);
            match targets.iter().find(is_so_called).or_else(|| targets.iter().find(is_own)) {
                Some(target) => manager(config.clone()).only_target(target.clone()),
                None => manager(config.clone()).only(&endpoint.host, endpoint.port),
            }
        };
        let cluster = builder.read_role(read_role).template(template).build()?;
        for (key, target) in &self.nodes {
            // By its endpoint, so that a set that has it there leaves it as it is.
            cluster.add_endpoint(key.clone(), target.endpoint()).map_err(|error| match error {
                NodeError::Config { error, .. } => Error::Config(error),
                error => unreachable!("BUG: {error}, which has just been made"),
            })?;
        }
        Ok(cluster)
    }
}

/// The nodes' keys, and nothing of the configuration.
impl fmt::Debug for PostgresNodes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keys: Vec<&str> = self.keys().collect();
        f.debug_struct("PostgresNodes")
            .field("nodes", &keys)
            .field("policy", &self.policy())
            .finish_non_exhaustive()
    }
}

/// Asks a server whether it is a primary or a replica: for [`ClusterBuilder::read_role`], where a
/// cluster is not made by [`PostgresNodes`]. One round trip.
///
/// # Examples
///
/// Servers that are the addresses of one name, for which they have their certificates. By their addresses
/// alone, which is how [`Dns`](crate::cluster::Dns) names them, none of them would pass for the right one:
///
/// ```no_run
/// use millpond::backends::postgres::{self, PostgresManager, Socket};
/// use millpond::cluster::{Cluster, Dns, Endpoint};
/// use std::time::Duration;
/// use tokio_postgres::tls::{MakeTlsConnect, TlsConnect};
///
/// # async fn example<T>(connector: T) -> Result<(), Box<dyn std::error::Error>>
/// # where
/// #     T: MakeTlsConnect<Socket> + Clone + Send + Sync + 'static,
/// #     T::Stream: Send,
/// #     T::TlsConnect: Send,
/// #     <T::TlsConnect as TlsConnect<Socket>>::Future: Send,
/// # {
/// let config: tokio_postgres::Config = "user=app dbname=app sslmode=require".parse()?;
/// let cluster = Cluster::builder()
///     .read_role(postgres::read_role)
///     .template(move |endpoint: &Endpoint| {
///         PostgresManager::new(config.clone())
///             .tls(connector.clone())
///             .only(&endpoint.host, endpoint.port)
///             .certificate_name("db.internal")
///     })
///     .build()?;
/// let nodes = Dns::new("db.internal:5432".parse()?, Duration::from_secs(30))?;
/// cluster.watch(nodes, Duration::from_secs(60));
/// # Ok(()) }
/// ```
pub fn read_role(client: &mut Client) -> RoleFuture<'_, Error> {
    Box::pin(async {
        let clean = client.clean_at == client.session.requests();
        let sql = "SELECT pg_catalog.pg_is_in_recovery()";
        client.begin_to_ask();
        let answer = client.client.simple_query(sql).await?;
        client.session.until_quiet().await;
        client.asked = None;
        if clean {
            // Nobody has to tidy up after this.
            client.clean_at = client.session.requests();
        }
        match first_value(&answer) {
            Some("t") => Ok(Role::Replica),
            Some("f") => Ok(Role::Primary),
            // Whatever that was an answer to, it does not make a server the one that takes writes.
            _ => Err(Error::Closed),
        }
    })
}

/// A host of this URL whose port is no number, with it if that cannot be a part of a password, and by its
/// number otherwise.
///
/// What stands before the first `@` are the user and the password. If there is a password, it may have
/// had an `@` that was not written as it should be; if there is no `@`, the host may be a user, and the
/// port his password.
fn wrong_port(url: &str) -> Option<String> {
    let rest = url.strip_prefix("postgresql://").or_else(|| url.strip_prefix("postgres://"))?;
    let (has_user_only, rest) = match rest.split_once('@') {
        Some((login, rest)) => (!login.contains(':'), rest),
        None => (false, rest),
    };
    if rest.contains('@') {
        return None;
    }
    let hosts = rest.split(['/', '?']).next()?;
    hosts.split(',').enumerate().find_map(|(index, node)| {
        // An IPv6 address has colons of its own.
        let bracket = if node.starts_with('[') { node.find(']')? + 1 } else { 0 };
        let port = &node[bracket + node[bracket..].find(':')? + 1..];
        if port.is_empty() || port.parse::<u16>().is_ok() {
            return None;
        }
        Some(if has_user_only { node.to_owned() } else { numbered(index) })
    })
}
