//! What can be seen of a socket without asking its peer.
//!
//! Not here: how one is opened.

use crate::manager::Condition;
use socket2::SockRef;
use std::io::{self, ErrorKind};
use std::mem::MaybeUninit;

/// Whether a socket is open and nothing has arrived on it; an error says what has.
///
/// It asks the system, for one call of `recv` with `MSG_PEEK`. The runtime's own `try_read` goes by
/// what the last poll for events has found, and would not see what has arrived since.
pub(super) fn look(socket: &SockRef<'_>) -> io::Result<()> {
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
    write: impl FnOnce(&[u8]) -> io::Result<usize>,
    trusted: bool,
) -> Condition {
    match look(socket).and_then(|()| write(&[])) {
        Ok(_) if trusted => Condition::Clean,
        // An answer that nobody waits for any more may arrive now.
        Ok(_) => Condition::Unchecked,
        Err(_) => Condition::Broken,
    }
}
