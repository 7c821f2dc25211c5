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

/// The same as an answer for a pool: with anything left to read, nobody may use the socket again.
pub(super) fn condition(socket: &SockRef<'_>) -> Condition {
    match look(socket) {
        Ok(()) => Condition::Clean,
        Err(_) => Condition::Broken,
    }
}
