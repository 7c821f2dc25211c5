//! Connections over Unix domain sockets.
//!
//! Not here: any protocol, as in [`tcp`](super::tcp).

use super::socket;
use crate::manager::{Condition, Manager};
use socket2::SockRef;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use tokio::net::UnixStream;

/// Opens connections to a Unix domain socket.
///
/// # What is checked
///
/// As in [`TcpManager`](super::tcp::TcpManager): that the peer has neither closed the connection nor
/// sent anything that nobody has read. A peer on the same machine is never gone without a word.
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
}

impl UnixManager {
    /// Opens connections to the socket at this path.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
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
        socket::condition(&SockRef::from(&*stream))
    }

    async fn check(&self, stream: &mut UnixStream) -> io::Result<()> {
        socket::look(&SockRef::from(&*stream))
    }

    fn is_permanent(&self, error: &io::Error) -> bool {
        // Such as a path that is too long. One where nothing is yet may have a server in a moment.
        error.kind() == ErrorKind::InvalidInput
    }
}
