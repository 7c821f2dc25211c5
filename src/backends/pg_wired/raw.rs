//! Raw connections: pg-wired's `WireConn`.

use super::{FAILED_TRANSACTION, PgWiredManager, SYNC, TERMINATE, is_permanent, query, question};
use crate::manager::{Condition, Manager};
use ::pg_wired::protocol::types::BackendMsg;
use ::pg_wired::{PgWireError, WireConn};

/// What the server says of its state: no transaction is open.
const IDLE: u8 = b'I';
/// A transaction is open, and has not failed.
const IN_TRANSACTION: u8 = b'T';

/// Reads up to the next word that the server is ready, and answers with its state.
async fn ready(connection: &mut WireConn) -> Result<u8, PgWireError> {
    loop {
        match connection.recv_msg().await? {
            BackendMsg::ReadyForQuery { status } => return Ok(status),
            BackendMsg::ErrorResponse { fields } => return Err(PgWireError::Pg(fields)),
            _ => {}
        }
    }
}

/// The state must be that no transaction is open.
#[expect(clippy::result_large_err, reason = "it is pg-wired's error")]
fn idle(status: u8) -> Result<(), PgWireError> {
    if status == IDLE {
        return Ok(());
    }
    Err(PgWireError::Protocol(format!("in a transaction, state {}", status.escape_ascii())))
}

/// Reads all that is left of the answers to whatever has been sent, up to that of a question of our
/// own, and answers with the server's state.
async fn settled(connection: &mut WireConn) -> Result<u8, PgWireError> {
    let (text, question) = question();
    // The first message ends what has failed half-way, whose rest the server would skip otherwise.
    connection.send_raw(&[SYNC, &question].concat()).await?;
    loop {
        match connection.recv_msg().await? {
            BackendMsg::DataRow(row) if row.cell(0) == Some(text.as_bytes()) => {
                return ready(connection).await;
            }
            BackendMsg::ErrorResponse { fields } if fields.code == FAILED_TRANSACTION => {
                return Err(PgWireError::Pg(fields));
            }
            _ => {}
        }
    }
}

impl Manager for PgWiredManager<WireConn> {
    type Connection = WireConn;
    type Error = PgWireError;

    async fn connect(&self) -> Result<WireConn, PgWireError> {
        (self.options)().connect().await
    }

    fn condition(&self, _: &mut WireConn) -> Condition {
        // What has been received and not read shows, what is on its way does not. Nor is it wrong
        // that something is there: it may be a notice.
        Condition::Dirty
    }

    async fn check(&self, connection: &mut WireConn) -> Result<(), PgWireError> {
        connection.send_raw(SYNC).await?;
        idle(ready(connection).await?)
    }

    async fn reset(&self, connection: &mut WireConn) -> Result<(), PgWireError> {
        match settled(connection).await? {
            IN_TRANSACTION => {
                connection.send_raw(&query("ROLLBACK")).await?;
                idle(ready(connection).await?)
            }
            status => idle(status),
        }
    }

    async fn close(&self, mut connection: WireConn) {
        // Whatever goes wrong with a goodbye, the connection is gone.
        drop(connection.send_raw(TERMINATE).await);
    }

    fn is_permanent(&self, error: &PgWireError) -> bool {
        is_permanent(error)
    }

    fn target(&self) -> Option<String> {
        (self.options)().target()
    }
}
