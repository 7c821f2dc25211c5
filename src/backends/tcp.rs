//! TCP connections.
//!
//! Not here: any protocol. What is sent over a connection and read from it is up to its user. Who lets
//! go of one in the middle of an answer has it closed if the rest of the answer is there to be seen; who
//! does not wait for an answer has to [discard](crate::Pooled::discard) it.

use super::host::{keepalive_time, told};
use super::socket;
use crate::manager::{Condition, Manager};
use crate::names::lookup;
use socket2::{SockRef, TcpKeepalive};
use std::any::Any;
use std::future::{Future, poll_fn};
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::net::{TcpStream, ToSocketAddrs};
use tokio::time::timeout;

/// Opens TCP connections.
///
/// The address may be a name, as in `"cache.internal:6379"`: it is looked up for each connection, so
/// new ones follow it to wherever it points. If it has several addresses, the next one is tried as soon as
/// the one before has failed, or beside it once that has not answered for 250 ms. Names are looked up on a
/// thread of Millpond's own, for which tokio's paused clock does not stand still.
///
/// # What is checked
///
/// Whenever a connection is released, when one that has been used is acquired, and when the pool checks
/// one: that the peer has neither closed it nor sent anything that nobody has read, and that the runtime on
/// which it was opened has not ended: the stream does nothing after that. When it is released also that its
/// user has not shut it down, nor left a write half-way while there was no room for it. These are one or
/// two system calls, and no round trip. They do not find a peer that is gone without a word;
/// [`keepalive`](Self::keepalive) does, in time. An acquire does not look again if the pool has in the
/// background, since the last use and no longer ago than the [`CheckPolicy`](crate::CheckPolicy) allows:
/// 5 s by default and with `Always`, any time with `Never`.
///
/// One that is new is handed out as it is. One that was opened ahead of its first use, for `min_idle`, is
/// looked at before it once it has been idle for as long as the `CheckPolicy` says, unless the pool's runtime
/// has ended by then.
///
/// # What cannot be seen
///
/// Nobody but its user knows where in a protocol a connection stands. **An answer that is still under
/// way when the next user acquires the connection is read by that one**, and so is the rest of a request
/// that was sent in part. So whoever gives up on a request, as at a time limit, must not let go of the
/// connection but [`discard`](crate::Pooled::discard) it; if the future may be dropped anywhere, take the
/// connection out with [`detach`](crate::Pooled::detach) or have a [`Manager`] of your own whose
/// connections know whether an answer is due.
///
/// # Cost
///
/// An acquire of one that has been used is no hit, but a check that is done on the spot, or from a blocking
/// thread on the pool's runtime; [`try_acquire`](crate::Pool::try_acquire) finds nothing before it has had
/// that done once. See
/// [`verify_on_acquire`](Self::verify_on_acquire).
///
/// # Examples
///
/// ```
/// use millpond::{Pool, backends::tcp::TcpManager};
/// use tokio::io::{AsyncReadExt, AsyncWriteExt};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
/// # let address = listener.local_addr()?;
/// # tokio::spawn(async move {
/// #     let (mut stream, _) = listener.accept().await?;
/// #     let (mut read, mut write) = stream.split();
/// #     tokio::io::copy(&mut read, &mut write).await
/// # });
/// let pool = Pool::builder(TcpManager::new(address)).build().await?;
/// let mut stream = pool.acquire().await?;
/// stream.write_all(b"hello").await?;
/// let mut echo = [0; 5];
/// stream.read_exact(&mut echo).await?;
/// assert_eq!(&echo, b"hello");
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct TcpManager<A = String> {
    address: A,
    nodelay: bool,
    keepalive: Option<Duration>,
    trusted: bool,
}

impl<A: ToSocketAddrs> TcpManager<A> {
    /// Opens connections to this address.
    pub fn new(address: A) -> Self {
        Self { address, nodelay: true, keepalive: None, trusted: false }
    }
}

impl<A> TcpManager<A> {
    /// Whether small writes go out at once instead of waiting for the answer to the last one
    /// (`TCP_NODELAY`). Default: `true`, as most protocols of requests and answers need it.
    pub fn nodelay(mut self, nodelay: bool) -> Self {
        self.nodelay = nodelay;
        self
    }

    /// After how long without traffic the system asks whether the peer is still there
    /// (`SO_KEEPALIVE`, `TCP_KEEPIDLE`): whole seconds, from one to 32,767, which are some 9 hours, and for
    /// any other time the nearest of them; `None` for never. How often it asks before it gives up is the
    /// system's setting. Default: `None`.
    pub fn keepalive(mut self, after: impl Into<Option<Duration>>) -> Self {
        self.keepalive = after.into();
        self
    }

    /// Whether each acquire of one that has been used looks once more whether anything has arrived.
    /// Default: `true`.
    ///
    /// With `false` only one of a connection that has been idle for a while does, or as
    /// [`CheckPolicy`](crate::CheckPolicy) says, and taking any other is a hit. That is for programs that
    /// read every answer to its end before they let go of a connection, or
    /// [discard](crate::Pooled::discard) it.
    pub fn verify_on_acquire(mut self, verify: bool) -> Self {
        self.trusted = !verify;
        self
    }
}

impl<A: ToSocketAddrs + Send + Sync + 'static> Manager for TcpManager<A> {
    type Connection = TcpStream;
    type Error = io::Error;

    async fn connect(&self) -> io::Result<TcpStream> {
        let stream = connect_to_any(lookup(&self.address).await?).await?;
        stream.set_nodelay(self.nodelay)?;
        if let Some(after) = self.keepalive {
            let keepalive = TcpKeepalive::new().with_time(keepalive_time(after));
            SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
        }
        Ok(stream)
    }

    fn condition(&self, stream: &mut TcpStream) -> Condition {
        let (socket, stream) = (SockRef::from(&*stream), &*stream);
        let ready = |cx: &mut Context<'_>| stream.poll_write_ready(cx);
        socket::condition(&socket, ready, |bytes| stream.try_write(bytes), self.trusted)
    }

    async fn check(&self, stream: &mut TcpStream) -> io::Result<()> {
        socket::look(&SockRef::from(&*stream), |cx| stream.poll_write_ready(cx))
    }

    fn is_permanent(&self, error: &io::Error) -> bool {
        // Not a name that is unknown: it may be known in a moment. Nor what the system says, EINVAL: it is
        // said of one address, and another may serve next time.
        error.kind() == ErrorKind::InvalidInput && error.raw_os_error().is_none()
    }

    /// The address as it was given.
    fn target(&self) -> Option<String> {
        told_address(&self.address)
    }
}

/// An address in words, of the types that tokio takes for one.
fn told_address(address: &dyn Any) -> Option<String> {
    macro_rules! is {
        ($type:ty, $is:ident => $told:expr) => {
            if let Some($is) = address.downcast_ref::<$type>() {
                return $told;
            }
        };
    }
    is!(String, text => told(text, None));
    is!(&'static str, text => told(text, None));
    is!(SocketAddr, address => Some(address.to_string()));
    is!(SocketAddrV4, address => Some(address.to_string()));
    is!(SocketAddrV6, address => Some(address.to_string()));
    is!((String, u16), pair => told(&pair.0, Some(pair.1)));
    is!((&'static str, u16), pair => told(pair.0, Some(pair.1)));
    is!((IpAddr, u16), pair => Some(SocketAddr::from(*pair).to_string()));
    is!((Ipv4Addr, u16), pair => Some(SocketAddr::from(*pair).to_string()));
    is!((Ipv6Addr, u16), pair => Some(SocketAddr::from(*pair).to_string()));
    is!(&'static [SocketAddr], all => {
        let all: Vec<_> = all.iter().map(ToString::to_string).collect();
        Some(all.join(","))
    });
    None
}

/// How long one address is waited for alone, as in
/// [RFC 8305](https://www.rfc-editor.org/rfc/rfc8305#section-5).
const HEAD_START: Duration = Duration::from_millis(250);

/// The first connection to any of these addresses, or why the last of them to fail did.
///
/// One after the other would not do: an address that leads nowhere takes all the time that the pool gives
/// to an attempt, and the next attempt begins with it again.
async fn connect_to_any(addresses: impl Iterator<Item = SocketAddr>) -> io::Result<TcpStream> {
    let mut addresses = addresses.fuse();
    let mut attempts = Vec::new();
    let mut failure = io::Error::new(ErrorKind::InvalidInput, "the name has no address");
    loop {
        match addresses.next() {
            Some(address) => attempts.push(Box::pin(TcpStream::connect(address))),
            None if attempts.is_empty() => return Err(failure),
            None => {}
        }
        match timeout(HEAD_START, any(&mut attempts)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => failure = error,
            Err(_) => {}
        }
    }
}

/// The first of these futures to be ready, which is taken out.
async fn any<F: Future>(futures: &mut Vec<Pin<Box<F>>>) -> F::Output {
    poll_fn(|cx| {
        for index in 0..futures.len() {
            if let Poll::Ready(output) = futures[index].as_mut().poll(cx) {
                drop(futures.swap_remove(index));
                return Poll::Ready(output);
            }
        }
        Poll::Pending
    })
    .await
}
