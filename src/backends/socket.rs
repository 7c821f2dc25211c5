//! What can be seen of a socket without asking its peer.
//!
//! Not here: how one is opened.

use crate::manager::Condition;
use socket2::SockRef;
use std::future::{Future, poll_fn};
use std::io::{self, ErrorKind};
use std::mem::MaybeUninit;
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use tokio::task::unconstrained;

/// Whether a socket is open, nothing has arrived on it, and it can be waited for; an error says what is
/// wrong.
///
/// It asks the system, for one call of `recv` with `MSG_PEEK`. The runtime's own `try_read` goes by
/// what the last poll for events has found, and would not see what has arrived since. `ready` is the
/// runtime's own `poll_write_ready`: the system does not know that the runtime has ended which would
/// tell of events, and nothing that a user awaits comes true after that.
pub(super) fn look(
    socket: &SockRef<'_>,
    ready: impl FnMut(&mut Context<'_>) -> Poll<io::Result<()>>,
) -> io::Result<()> {
    // Unconstrained, since a task that has done much is told of nothing otherwise.
    let ready = pin!(unconstrained(poll_fn(ready)));
    if let Poll::Ready(Err(error)) = ready.poll(&mut Context::from_waker(Waker::noop())) {
        return Err(error);
    }
    match socket.peek(&mut [MaybeUninit::uninit()]) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(()),
        Err(error) => Err(error),
        Ok(0) => {
            Err(io::Error::new(ErrorKind::UnexpectedEof, "the peer has closed the connection"))
        }
        Ok(_) => Err(io::Error::new(ErrorKind::InvalidData, "the peer has sent something unasked")),
    }
}

/// The same as an answer for a pool: with anything left to read, nobody may use the socket again. Nor if
/// it takes nothing more: `write` is the runtime's own `try_write`, which a system asked for nothing
/// refuses once the user has shut that side down, and the runtime itself as long as the last write has
/// found no room for all that it had.
pub(super) fn condition(
    socket: &SockRef<'_>,
    ready: impl FnMut(&mut Context<'_>) -> Poll<io::Result<()>>,
    write: impl FnOnce(&[u8]) -> io::Result<usize>,
    trusted: bool,
) -> Condition {
    match look(socket, ready).and_then(|()| write(&[])) {
        Ok(_) if trusted => Condition::Clean,
        // An answer that nobody waits for any more may arrive now.
        Ok(_) => Condition::Unchecked,
        Err(_) => Condition::Broken,
    }
}
