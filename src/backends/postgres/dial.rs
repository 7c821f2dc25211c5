//! Where the server is, in which order its hosts and their addresses are tried, and how a socket to one
//! is opened.
//!
//! Not here: what is said over it (`mod.rs`).

use super::Error;
use crate::backends::host::keepalive_time;
use crate::error::ConfigError;
use crate::names::lookup;
use socket2::{SockRef, TcpKeepalive};
use std::collections::VecDeque;
use std::fmt;
use std::future::{Future, Ready, poll_fn, ready};
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
#[cfg(unix)]
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
#[cfg(unix)]
use tokio::net::UnixStream;
use tokio::time::{Instant, timeout};
use tokio_postgres::Config;
use tokio_postgres::config::{Host, LoadBalanceHosts, SslMode, SslNegotiation};
use tokio_postgres::tls::{NoTlsStream, TlsConnect};

/// A socket to the server, TCP or Unix: what TLS connectors are given.
pub struct Socket(Stream);

enum Stream {
    Tcp(TcpStream),
    #[cfg(unix)]
    Unix(UnixStream),
    Kept(Kept),
}

/// Encrypts nothing, for want of a name to check the server's certificate by: for a host that has none,
/// which serves as long as its server does not encrypt either.
pub(super) struct Nameless;

impl<S> TlsConnect<S> for Nameless {
    type Stream = NoTlsStream;
    type Error = ConfigError;
    type Future = Ready<Result<NoTlsStream, ConfigError>>;

    fn connect(self, _: S) -> Self::Future {
        let rule =
            "must be given, hostaddr or not, where TLS is used: the certificate is checked by it";
        ready(Err(ConfigError::new("host", "", rule)))
    }
}

/// One of the hosts of a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    host: Host,
    port: u16,
    /// The name on the server's certificate, if there is one.
    pub(super) hostname: Option<String>,
}

/// By its name if it has one, as it is written in a configuration.
impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let port = self.port;
        match (&self.hostname, &self.host) {
            (Some(name), _) | (None, Host::Tcp(name)) => match name.contains(':') {
                true => write!(f, "[{name}]:{port}"),
                false => write!(f, "{name}:{port}"),
            },
            #[cfg(unix)]
            (None, Host::Unix(folder)) => write!(f, "{}:{port}", folder.display()),
        }
    }
}

/// One address of a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Address {
    Tcp(SocketAddr),
    #[cfg(unix)]
    Unix(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => fmt::Display::fmt(address, f),
            #[cfg(unix)]
            Self::Unix(path) => fmt::Display::fmt(&path.display(), f),
        }
    }
}

/// What a port must be.
pub(super) const PORT: &str = "must be a host and, after a colon, a number from 1 to 65535";

/// The hosts of a configuration, in the order in which they are to be tried.
///
/// # Errors
///
/// If there are none, if one has no name or no port, or a character that shows that it is something else,
/// or if the numbers of hosts, addresses and ports do not fit together.
pub(super) fn targets(config: &Config) -> Result<Vec<Target>, Error> {
    let (hosts, addresses) = (config.get_hosts(), config.get_hostaddrs());
    let count = hosts.len().max(addresses.len());
    if count == 0 {
        return Err(Error::config("host", "missing", "must be given, or hostaddr"));
    }
    for (index, host) in hosts.iter().enumerate() {
        if let Host::Tcp(name) = host {
            if name.contains('@') {
                let rule = "must not have an @ in it: one in a password is written %40";
                return Err(Error::config("host", "not shown, as it may end a password", rule));
            }
            if name.contains(',') {
                let rule = "must be one host: in a URL, several stand before the path, as in \
                            postgresql://db1:5432,db2:5432/app";
                return Err(Error::config("host", shown(config, index, name), rule));
            }
        }
    }
    if !hosts.is_empty() && !addresses.is_empty() && hosts.len() != addresses.len() {
        let rule = format!("must be as many as there are hosts, which is {}", hosts.len());
        return Err(Error::config("hostaddr", list(addresses), rule));
    }
    let ports = config.get_ports();
    if ports.len() > 1 && ports.len() != count {
        let rule = format!("must be one, or as many as there are hosts, which is {count}");
        return Err(Error::config("port", list(ports), rule));
    }
    let target = |index: usize| {
        let host = hosts.get(index);
        let address = addresses.get(index).map(|address| Host::Tcp(address.to_string()));
        Target {
            port: ports.get(index).or(ports.first()).copied().unwrap_or(5432),
            hostname: match host {
                Some(Host::Tcp(name)) if !name.is_empty() => Some(name.clone()),
                _ => None,
            },
            host: address.or(host.cloned()).expect("BUG: a host that is not there"),
        }
    };
    let target = |index| target(index).reachable(config, index);
    let mut targets = (0..count).map(target).collect::<Result<Vec<_>, _>>()?;
    if config.get_load_balance_hosts() == LoadBalanceHosts::Random {
        fastrand::shuffle(&mut targets);
    }
    Ok(targets)
}

/// Looks whether encryption has to be where it has to begin at once.
///
/// # Errors
///
/// If it does not have to be: as in libpq, which has no other way then to see whether the server encrypts.
/// The driver would ask first, or not encrypt.
pub(super) fn negotiable(config: &Config) -> Result<(), Error> {
    let (mode, negotiation) = (config.get_ssl_mode(), config.get_ssl_negotiation());
    if mode != SslMode::Require && negotiation == SslNegotiation::Direct {
        return Err(Error::config("sslnegotiation", "direct", "needs sslmode=require"));
    }
    Ok(())
}

/// Looks whether any of these hosts can be connected to by a TLS connector, whatever its server does.
///
/// # Errors
///
/// If all have to be encrypted and none has a name.
pub(super) fn encryptable(config: &Config, targets: &[Target]) -> Result<(), Error> {
    let mode = config.get_ssl_mode();
    let nameless = |target: &Target| target.hostname.is_none();
    if mode == SslMode::Require && targets.iter().all(nameless) {
        let rule = "must have a name where sslmode is require: the certificate is checked by it, and a \
                    Unix socket is never encrypted";
        return Err(Error::config("host", shown(config, 0, &targets[0]), rule));
    }
    Ok(())
}

/// A host for an error; by its number where there is a password, since what stands there may be a part of
/// one that is not written as it should be.
pub(super) fn shown(config: &Config, index: usize, host: impl fmt::Display) -> String {
    match config.get_password() {
        None => host.to_string(),
        Some(_) => numbered(index),
    }
}

/// A host that is not shown.
pub(super) fn numbered(index: usize) -> String {
    format!("that of number {} (not shown beside a password)", index + 1)
}

/// Values as they are written in a configuration.
fn list(values: &[impl ToString]) -> String {
    values.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

impl Target {
    /// This port of this host; a host that begins with a slash is the folder of a Unix socket.
    pub(super) fn new(host: &str, port: u16) -> Self {
        #[cfg(unix)]
        if host.starts_with('/') {
            return Self { host: Host::Unix(host.into()), port, hostname: None };
        }
        Self { host: Host::Tcp(host.to_owned()), port, hostname: Some(host.to_owned()) }
    }

    /// Its server's certificate is to be for this name. A Unix socket needs none, as it is not encrypted.
    pub(super) fn name_certificate(&mut self, name: &str) {
        if let Host::Tcp(_) = self.host {
            self.hostname = Some(name.to_owned());
        }
    }

    /// As [`Manager::target`](crate::Manager::target) tells it; a Unix socket as an error tells it.
    pub(super) fn told(&self) -> String {
        match &self.host {
            Host::Tcp(_) => self.to_string(),
            #[cfg(unix)]
            Host::Unix(folder) => Address::of_socket(folder, self.port).to_string(),
        }
    }

    /// What leads here by [`new`](Self::new), but for an address of its own.
    #[cfg(feature = "cluster")]
    pub(super) fn endpoint(&self) -> crate::cluster::Endpoint {
        let host = match (&self.hostname, &self.host) {
            (Some(name), _) | (None, Host::Tcp(name)) => name.clone(),
            #[cfg(unix)]
            (None, Host::Unix(folder)) => folder.display().to_string(),
        };
        crate::cluster::Endpoint::new(host, self.port)
    }

    /// Itself, which is the host of this number in a configuration, or an error if there is nothing that
    /// could be connected to.
    pub(super) fn reachable(self, config: &Config, index: usize) -> Result<Self, Error> {
        let refused = |field, rule| Err(Error::config(field, shown(config, index, &self), rule));
        if matches!(&self.host, Host::Tcp(name) if name.is_empty()) {
            return refused("host", "must have a name before the colon");
        }
        if self.port == 0 {
            return refused("port", PORT);
        }
        Ok(self)
    }

    /// The addresses of this host, in the order in which they are to be tried.
    pub(super) async fn addresses(&self, config: &Config) -> Result<Vec<Address>, Error> {
        let name = match &self.host {
            Host::Tcp(name) => name,
            #[cfg(unix)]
            Host::Unix(folder) => {
                return Ok(vec![Address::of_socket(folder, self.port)]);
            }
        };
        let failed = |error| Error::Open { address: format!("{name}:{}", self.port), error };
        let found = lookup((name.as_str(), self.port)).await.map_err(failed)?;
        let mut addresses: Vec<Address> = found.map(Address::Tcp).collect();
        if addresses.is_empty() {
            return Err(failed(io::Error::new(ErrorKind::NotFound, "the name has no address")));
        }
        if config.get_load_balance_hosts() == LoadBalanceHosts::Random {
            fastrand::shuffle(&mut addresses);
        }
        Ok(addresses)
    }
}

impl Address {
    /// The socket of the server with this port, in this folder.
    #[cfg(unix)]
    fn of_socket(folder: &Path, port: u16) -> Self {
        Self::Unix(folder.join(format!(".s.PGSQL.{port}")))
    }

    /// Opens a socket.
    pub(super) async fn open(&self, config: &Config) -> io::Result<Socket> {
        Ok(match self {
            #[cfg(unix)]
            Self::Unix(path) => Socket(Stream::Unix(UnixStream::connect(path).await?)),
            Self::Tcp(address) => {
                let stream = TcpStream::connect(address).await?;
                stream.set_nodelay(true)?;
                let socket = SockRef::from(&stream);
                if config.get_keepalives() {
                    socket.set_tcp_keepalive(&keepalive(config))?;
                }
                #[cfg(target_os = "linux")]
                socket.set_tcp_user_timeout(config.get_tcp_user_timeout().map(user_timeout))?;
                Socket(Stream::Tcp(stream))
            }
        })
    }
}

/// The time nearest to this that the option may have: Linux refuses a longer one than 2^31 - 1 ms.
#[cfg(target_os = "linux")]
fn user_timeout(limit: &Duration) -> Duration {
    (*limit).min(Duration::from_millis(i32::MAX as u64))
}

/// Where an attempt goes: to a name, whose addresses it asks for, or to one of those.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) target: Target,
    pub(super) address: Option<Address>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.address, &self.target.host) {
            (Some(address), _) => fmt::Display::fmt(address, f),
            (None, Host::Tcp(name)) => write!(f, "{name}:{}", self.target.port),
            #[cfg(unix)]
            (None, Host::Unix(folder)) => fmt::Display::fmt(&folder.display(), f),
        }
    }
}

/// The places that dials have been to lately. Those from which no answer has come, neither a good one nor
/// a bad one, though they have been waited for long enough, are silent: they are tried after all others,
/// since a dial has no more time than its pool gives it.
#[derive(Default)]
pub(super) struct Silence(Mutex<Vec<Visited>>);

/// A place that has answered, or has not.
struct Visited {
    place: Place,
    /// For how long dials have waited for it since its last answer: the time of several at once counts once.
    waited: Duration,
    /// When it answered, or the last of them was given up.
    until: Instant,
    /// Which of the two.
    has_answered: bool,
    is_silent: bool,
}

impl Silence {
    /// For how long that is remembered. Then it is one dial, as a rule, that finds it out again.
    const REMEMBERED: Duration = Duration::from_secs(30);

    /// How long a place is waited for before it counts as silent. A dial may be given up at once, which
    /// says nothing of its place; one after the other may be, in a pool that gives them less than this.
    const ENOUGH: Duration = Duration::from_millis(250);

    /// The present ones.
    fn all(&self) -> MutexGuard<'_, Vec<Visited>> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|other| other.until.elapsed() < Self::REMEMBERED);
        all
    }

    /// Since when this place is silent, if it is.
    fn since(&self, place: &Place) -> Option<Instant> {
        let all = self.all();
        let silent = all.iter().find(|other| other.is_silent && other.place == *place)?;
        Some(silent.until)
    }

    /// When the last attempt at this place ended, if that was no answer.
    fn given_up_at(&self, place: &Place) -> Option<Instant> {
        let all = self.all();
        let given_up = all.iter().find(|other| !other.has_answered && other.place == *place)?;
        Some(given_up.until)
    }

    /// Waits for what comes of an attempt, and for no longer than `limit`.
    pub(super) async fn until_answer<T>(
        &self,
        place: &Place,
        limit: Option<Duration>,
        attempt: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        // Cancel: whoever has lost patience is told no less than that there was no answer.
        let waiting = Attempt {
            silence: self,
            place,
            since: Instant::now(),
            // Who has had all the time that the configuration gives has had enough of it.
            enough: limit.map_or(Self::ENOUGH, |limit| limit.min(Self::ENOUGH)),
            is_answered: false,
        };
        let answer = match limit {
            None => attempt.await,
            Some(limit) => {
                timeout(limit, attempt).await.map_err(|_| Error::no_answer(place, limit))?
            }
        };
        waiting.ends();
        answer
    }
}

/// An attempt under way. If it is dropped, there was no answer.
struct Attempt<'s> {
    silence: &'s Silence,
    place: &'s Place,
    since: Instant,
    /// How long its place is waited for, by this one and those before, until it is silent.
    enough: Duration,
    is_answered: bool,
}

impl Attempt<'_> {
    fn ends(mut self) {
        self.is_answered = true;
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        let mut all = self.silence.all();
        let known = all.iter().position(|other| other.place == *self.place);
        let known = known.map(|index| all.swap_remove(index));
        let (until, has_answered) = (Instant::now(), self.is_answered);
        let (mut waited, mut is_silent) = (Duration::ZERO, false);
        if !has_answered {
            let mut from = self.since;
            if let Some(known) = known {
                // It may have answered another one since this one came.
                (waited, from, is_silent) = (known.waited, from.max(known.until), known.is_silent);
            }
            waited += until.duration_since(from);
            is_silent |= waited >= self.enough;
        }
        all.push(Visited { place: self.place.clone(), waited, until, has_answered, is_silent });
    }
}

/// The places that a dial has still to try, and when.
pub(super) struct Course<'s> {
    silence: &'s Silence,
    /// In this order.
    first: VecDeque<Place>,
    /// After those, the one that has been silent for longest before the others.
    then: Vec<(Instant, Place)>,
    /// They have had two turns already.
    over: Vec<Place>,
    /// The configuration's `connect_timeout`.
    limit: Option<Duration>,
}

impl<'s> Course<'s> {
    /// How long an attempt takes at most, at a place that has not been silent, while there are others that
    /// have not had a turn, unless the configuration says: two of them fit into the `connect_timeout` of a
    /// pool, by default.
    const SHARE: Duration = Duration::from_secs(2);

    pub(super) fn new(silence: &'s Silence, config: &Config, targets: Vec<Target>) -> Self {
        let limit = config.get_connect_timeout().copied();
        let (first, then) = (VecDeque::new(), Vec::new());
        let mut course = Self { silence, first, then, over: Vec::new(), limit };
        course.add(targets.into_iter().map(|target| Place { target, address: None }).collect());
        course
    }

    /// Before all others, in this order, those that are not silent.
    fn add(&mut self, places: Vec<Place>) {
        for place in places.into_iter().rev() {
            match self.silence.since(&place) {
                None => self.first.push_front(place),
                Some(since) => self.then.push((since, place)),
            }
        }
    }

    /// The addresses that a name turns out to have.
    pub(super) fn add_addresses(&mut self, target: &Target, addresses: Vec<Address>) {
        let place = |address| Place { target: target.clone(), address: Some(address) };
        self.add(addresses.into_iter().map(place).collect());
    }

    /// The next place, and how long an attempt there may take.
    pub(super) fn next(&mut self) -> Option<(Place, Option<Duration>)> {
        let Some(place) = self.first.pop_front() else {
            let silent = self.then.iter().enumerate();
            let longest = silent.min_by_key(|(_, (since, _))| *since)?.0;
            // Not cut short: where all take longer than that, none would ever be reached.
            return Some((self.then.remove(longest).1, self.limit));
        };
        // Those that it has tried have had their turn.
        let untried = |(_, other): &(Instant, Place)| !self.over.contains(other);
        let others = !self.first.is_empty() || self.then.iter().any(untried);
        Some((place, self.limit.or(others.then_some(Self::SHARE))))
    }

    /// An attempt has come to nothing. If it was cut short for the sake of others, and they do not serve
    /// either, it has another turn.
    pub(super) fn failed(&mut self, place: Place) {
        if self.limit.is_none() && !self.over.contains(&place) {
            if let Some(since) = self.silence.given_up_at(&place) {
                self.over.push(place.clone());
                self.then.push((since, place));
            }
        }
    }
}

fn keepalive(config: &Config) -> TcpKeepalive {
    let idle = keepalive_time(config.get_keepalives_idle());
    let mut keepalive = TcpKeepalive::new().with_time(idle);
    if let Some(interval) = config.get_keepalives_interval() {
        keepalive = keepalive.with_interval(keepalive_time(interval));
    }
    // As in libpq, none is the system's own number; Linux refuses a larger one than this.
    if let Some(retries @ 1..) = config.get_keepalives_retries() {
        keepalive = keepalive.with_retries(retries.min(127));
    }
    keepalive
}

/// A socket of which a handle is kept, to see how it ends.
#[derive(Clone)]
pub(super) struct Kept(Arc<Mutex<Socket>>);

impl Kept {
    pub(super) fn new(socket: Socket) -> Self {
        Self(Arc::new(Mutex::new(socket)))
    }

    /// Another handle, which reads and writes.
    pub(super) fn handle(&self) -> Socket {
        Socket(Stream::Kept(self.clone()))
    }

    #[cold]
    fn with<T>(&self, work: impl FnOnce(&mut Socket) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits until the peer has closed the connection, whatever it says before; with an error if it
    /// has not read our last words.
    pub(super) async fn until_closed(self) {
        let mut socket = self.handle();
        poll_fn(|cx| {
            let mut bytes = [0; 64];
            loop {
                let mut buffer = ReadBuf::new(&mut bytes);
                let read = std::task::ready!(Pin::new(&mut socket).poll_read(cx, &mut buffer));
                if read.is_err() || buffer.filled().is_empty() {
                    return Poll::Ready(());
                }
            }
        })
        .await;
    }
}

/// Does something with the stream of a socket, whatever it is.
macro_rules! stream {
    ($socket:expr, $stream:ident => $what:expr) => {
        match &mut $socket.0 {
            Stream::Tcp($stream) => $what,
            #[cfg(unix)]
            Stream::Unix($stream) => $what,
            Stream::Kept(kept) => kept.with(|$stream| $what),
        }
    };
}

impl AsyncRead for Socket {
    #[inline]
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        stream!(self, stream => Pin::new(stream).poll_read(cx, buffer))
    }
}

impl AsyncWrite for Socket {
    #[inline]
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        stream!(self, stream => Pin::new(stream).poll_write(cx, bytes))
    }

    #[inline]
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        stream!(self, stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        stream!(self, stream => Pin::new(stream).poll_shutdown(cx))
    }
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Socket")
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::future::pending;

    /// An attempt to which no answer comes.
    fn silent(course: &Course<'_>, place: &Place) {
        let (since, enough) = (Instant::now(), Duration::ZERO);
        drop(Attempt { silence: course.silence, place, since, enough, is_answered: false });
    }

    #[test]
    fn an_attempt_is_cut_short_only_for_a_place_that_has_not_had_a_turn() {
        let (silence, config) = (Silence::default(), Config::new());
        let target = Target::new("db", 5432);
        let course = || Course::new(&silence, &config, vec![target.clone()]);
        let addresses = [1, 2].map(|last| Address::Tcp(([192, 0, 2, last], 5432).into()));
        let mut first = course();
        let (name, limit) = first.next().expect("its name");
        assert_eq!((name.address, limit), (None, None));
        first.add_addresses(&target, addresses.to_vec());
        let (place, limit) = first.next().expect("one of its addresses");
        assert_eq!((place.address.as_ref(), limit), (Some(&addresses[0]), Some(Course::SHARE)));
        silent(&first, &place);
        first.failed(place);
        let (place, limit) = first.next().expect("the other one");
        assert_eq!((place.address.as_ref(), limit), (Some(&addresses[1]), None));
        // The pool has lost its patience.
        silent(&first, &place);

        let mut second = course();
        second.next().expect("its name");
        second.add_addresses(&target, addresses.to_vec());
        let (place, limit) = second.next().expect("one of its addresses");
        assert_eq!((place.address.as_ref(), limit), (Some(&addresses[0]), None));
    }

    #[test]
    fn an_attempt_is_cut_short_for_a_place_that_has_been_silent_and_may_be_back() {
        let (silence, config) = (Silence::default(), Config::new());
        let [a, b] = [1, 2].map(|last| {
            let address = Some(Address::Tcp(([192, 0, 2, last], 5432).into()));
            Place { target: Target::new("db", 5432), address }
        });
        let mut course = Course::new(&silence, &config, Vec::new());
        silent(&course, &a);
        course.add(vec![a.clone(), b.clone()]);
        let Some((place, limit)) = course.next() else { panic!("there are two") };
        assert_eq!((place == b, limit), (true, Some(Course::SHARE)));
        silent(&course, &place);
        course.failed(place);
        let Some((place, limit)) = course.next() else { panic!("there is another one") };
        assert_eq!((place == a, limit), (true, None));
    }

    /// A place that answers nobody, asked by a dial that is given up after so long.
    async fn given_up_after(silence: &Silence, place: &Place, limit: Option<Duration>, wait: u64) {
        let attempt = silence.until_answer(place, limit, pending::<Result<(), Error>>());
        drop(timeout(Duration::from_millis(wait), attempt).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_dial_that_is_given_up_soon_says_nothing_of_its_place() {
        let silence = Silence::default();
        let place = Place { target: Target::new("db", 5432), address: None };
        // Nor do several at the same time.
        tokio::join!(
            given_up_after(&silence, &place, None, 100),
            given_up_after(&silence, &place, Some(Course::SHARE), 100),
            given_up_after(&silence, &place, None, 100),
        );
        assert_eq!(silence.since(&place), None);
        given_up_after(&silence, &place, None, 300).await;
        assert_eq!(silence.since(&place), Some(Instant::now()));
    }

    #[tokio::test(start_paused = true)]
    async fn dials_of_a_pool_with_little_time_find_out_that_a_place_is_silent() {
        let silence = Silence::default();
        let place = Place { target: Target::new("db", 5432), address: None };
        for _ in 0..3 {
            assert_eq!(silence.since(&place), None);
            given_up_after(&silence, &place, None, 100).await;
        }
        assert_eq!(silence.since(&place), Some(Instant::now()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_place_that_has_answered_since_a_dial_came_is_not_silent_for_that_dial() {
        let silence = Silence::default();
        let place = Place { target: Target::new("db", 5432), address: None };
        let answered = async {
            tokio::time::sleep(Duration::from_millis(1_900)).await;
            silence.until_answer(&place, None, ready(Ok(()))).await.expect("an answer");
        };
        tokio::join!(given_up_after(&silence, &place, None, 2_000), answered);
        assert_eq!(silence.since(&place), None);
        // What others wait counts from its last answer on.
        given_up_after(&silence, &place, None, 200).await;
        assert_eq!(silence.since(&place), Some(Instant::now()));
    }

    #[tokio::test(start_paused = true)]
    async fn an_attempt_that_was_cut_short_has_another_turn_though_its_place_has_answered_others() {
        let (silence, config) = (Silence::default(), Config::new());
        let mut course = Course::new(&silence, &config, Vec::new());
        let [a, b] =
            ["a", "b"].map(|name| Place { target: Target::new(name, 5432), address: None });
        course.add(vec![a, b]);
        let (a, limit) = course.next().expect("the first");
        let answered = async {
            tokio::time::sleep(Duration::from_millis(1_900)).await;
            silence.until_answer(&a, None, ready(Ok(()))).await.expect("an answer");
        };
        let attempt = silence.until_answer(&a, limit, pending::<Result<(), Error>>());
        tokio::join!(async { drop(attempt.await) }, answered);
        course.failed(a.clone());
        let (b, limit) = course.next().expect("the second");
        let refused = ready(Err::<(), _>(Error::Closed));
        drop(silence.until_answer(&b, limit, refused).await);
        course.failed(b);
        let Some((place, limit)) = course.next() else { panic!("another turn") };
        assert_eq!((place == a, limit), (true, None));
        assert!(course.next().is_none(), "who has refused it has no other turn");
    }

    #[tokio::test(start_paused = true)]
    async fn a_place_that_has_had_the_time_of_the_configuration_is_silent() {
        let silence = Silence::default();
        let place = Place { target: Target::new("db", 5432), address: None };
        given_up_after(&silence, &place, Some(Duration::from_millis(10)), 100).await;
        assert!(silence.since(&place).is_some());
    }
}
