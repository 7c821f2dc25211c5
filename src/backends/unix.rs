//! Connections over Unix domain sockets.
//!
//! Not here: any protocol, as in [`tcp`](super::tcp).

use super::socket;
use crate::manager::{Condition, Manager};
use socket2::SockRef;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::task::Context;
use tokio::net::UnixStream;

/// Opens connections to a Unix domain socket.
///
/// # What is checked
///
/// As in [`TcpManager`](super::tcp::TcpManager), when it is there and at the same cost: that the peer has
/// neither closed the connection nor sent anything that nobody has read, and that the runtime on which it was
/// opened has not ended. A peer on the same machine is never gone without a word. What is said there of
/// answers that are still under way holds here too: whoever gives up on one has to
/// [`discard`](crate::Pooled::discard) the connection.
///
/// # Examples
///
/// ```no_run
/// use millpond::{Pool, backends::unix::UnixManager};
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let pool = Pool::builder(UnixManager::new("/run/service/control.sock")).build().await?;
/// let stream = pool.acquire().await?;
/// # drop(stream); Ok(()) }
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct UnixManager {
    path: PathBuf,
    trusted: bool,
}

impl UnixManager {
    /// Opens connections to the socket at this path.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), trusted: false }
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

    /// The path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Manager for UnixManager {
    type Connection = UnixStream;
    type Error = io::Error;

    async fn connect(&self) -> io::Result<UnixStream> {
        UnixStream::connect(&self.path).await
    }

    fn condition(&self, stream: &mut UnixStream) -> Condition {
        let (socket, stream) = (SockRef::from(&*stream), &*stream);
        let ready = |cx: &mut Context<'_>| stream.poll_write_ready(cx);
        socket::condition(&socket, ready, |bytes| stream.try_write(bytes), self.trusted)
    }

    async fn check(&self, stream: &mut UnixStream) -> io::Result<()> {
        socket::look(&SockRef::from(&*stream), |cx| stream.poll_write_ready(cx))
    }

    fn is_permanent(&self, error: &io::Error) -> bool {
        // Such as a path that is too long. One where nothing is yet may have a server in a moment.
        // What the system says may pass.
        error.kind() == ErrorKind::InvalidInput && error.raw_os_error().is_none()
    }

    fn target(&self) -> Option<String> {
        Some(self.path.display().to_string())
    }
}
