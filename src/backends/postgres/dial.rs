//! Where the server is, and how a socket to it is opened.
//!
//! Not here: what is said over it (`mod.rs`).

use super::Error;
use socket2::{SockRef, TcpKeepalive};
use std::fmt;
use std::future::poll_fn;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
#[cfg(unix)]
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
#[cfg(unix)]
use tokio::net::UnixStream;
use tokio::net::{TcpStream, lookup_host};
use tokio_postgres::Config;
use tokio_postgres::config::{Host, LoadBalanceHosts};

/// A socket to the server, TCP or Unix: what TLS connectors are given.
pub struct Socket(Stream);

enum Stream {
    Tcp(TcpStream),
    #[cfg(unix)]
    Unix(UnixStream),
    Kept(Kept),
}

/// One of the hosts of a configuration.
#[derive(Clone, Debug)]
pub(super) struct Target {
    host: Host,
    pub(super) port: u16,
    /// The name on the server's certificate.
    pub(super) hostname: Option<String>,
}

/// By its name if it has one, as it is written in a configuration.
#[cfg(feature = "cluster")]
impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = match (&self.hostname, &self.host) {
            (Some(name), _) | (None, Host::Tcp(name)) => name.clone(),
            #[cfg(unix)]
            (None, Host::Unix(folder)) => return write!(f, "{}:{}", folder.display(), self.port),
        };
        fmt::Display::fmt(&crate::cluster::Endpoint::new(host, self.port), f)
    }
}

/// One address of a host.
#[derive(Clone, Debug)]
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

/// The hosts of a configuration, in the order in which they are to be tried.
///
/// # Errors
///
/// If there are none, or if the numbers of hosts, addresses and ports do not fit together.
pub(super) fn targets(config: &Config) -> Result<Vec<Target>, Error> {
    let (hosts, addresses) = (config.get_hosts(), config.get_hostaddrs());
    let count = hosts.len().max(addresses.len());
    if count == 0 {
        return Err(Error::config("host", "", "must be given, or hostaddr"));
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
                Some(Host::Tcp(name)) => Some(name.clone()),
                _ => None,
            },
            host: address.or(host.cloned()).expect("BUG: a host that is not there"),
        }
    };
    let mut targets: Vec<Target> = (0..count).map(target).collect();
    if config.get_load_balance_hosts() == LoadBalanceHosts::Random {
        fastrand::shuffle(&mut targets);
    }
    Ok(targets)
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

    /// Whether there is a port only.
    #[cfg(feature = "cluster")]
    pub(super) fn is_nameless(&self) -> bool {
        matches!(&self.host, Host::Tcp(name) if name.is_empty())
    }
    /// The addresses of this host, in the order in which they are to be tried.
    pub(super) async fn addresses(&self, config: &Config) -> Result<Vec<Address>, Error> {
        let name = match &self.host {
            Host::Tcp(name) => name,
            #[cfg(unix)]
            Host::Unix(folder) => {
                return Ok(vec![Address::Unix(folder.join(format!(".s.PGSQL.{}", self.port)))]);
            }
        };
        let failed = |error| Error::Open { address: format!("{name}:{}", self.port), error };
        let found = lookup_host((name.as_str(), self.port)).await.map_err(failed)?;
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
    /// Opens a socket, within the configuration's own `connect_timeout` if it has one.
    pub(super) async fn open(&self, config: &Config) -> io::Result<Socket> {
        let open = async {
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
                    socket.set_tcp_user_timeout(config.get_tcp_user_timeout().copied())?;
                    Socket(Stream::Tcp(stream))
                }
            })
        };
        match config.get_connect_timeout() {
            None => open.await,
            Some(limit) => tokio::time::timeout(*limit, open).await?,
        }
    }
}

fn keepalive(config: &Config) -> TcpKeepalive {
    let at_least = |time: Duration| time.max(Duration::from_secs(1));
    let mut keepalive = TcpKeepalive::new().with_time(at_least(config.get_keepalives_idle()));
    if let Some(interval) = config.get_keepalives_interval() {
        keepalive = keepalive.with_interval(at_least(interval));
    }
    if let Some(retries) = config.get_keepalives_retries() {
        keepalive = keepalive.with_retries(retries);
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

    /// Waits until the peer has closed the connection, whatever it says before; with an error if it
    /// has not read our last words.
    pub(super) async fn until_closed(self) {
        let mut socket = self.handle();
        poll_fn(|cx| {
            let mut bytes = [0; 64];
            loop {
                let mut buffer = ReadBuf::new(&mut bytes);
                let read = ready!(Pin::new(&mut socket).poll_read(cx, &mut buffer));
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
            Stream::Kept(kept) => {
                let $stream = &mut *kept.0.lock().unwrap_or_else(PoisonError::into_inner);
                $what
            }
        }
    };
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        stream!(self, stream => Pin::new(stream).poll_read(cx, buffer))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        stream!(self, stream => Pin::new(stream).poll_write(cx, bytes))
    }

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
