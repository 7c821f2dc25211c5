//! Connections that many requests can share: pg-wired's `AsyncConn`.
//!
//! Its requests are answered in their order, whether or not anybody waits for the answer any more.
//! So a request that has been answered says that all those before it have been.

use super::ground::{Awaited, Ground};
use super::{PgWiredManager, SYNC, TERMINATE, is_permanent, query};
use crate::manager::{Condition, Manager};
use ::pg_wired::{AsyncConn, PgWireError, ResponseCollector};
use std::fmt;
use std::future::Future;
use std::ops::Deref;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Waker};

/// A connection that many requests can share, which derefs to [`AsyncConn`].
///
/// Its methods take `&self`: requests that are made together, as with `join!`, are sent together and
/// answered with one round trip. Dropping the future of one does not take it back; it is answered in
/// its turn, and the answer thrown away.
///
/// The receiver of notifications can be taken once in a connection's life. Whoever takes it should
/// [`detach`](crate::Pooled::detach) or [`discard`](crate::Pooled::discard) the connection in the end.
pub struct Connection {
    // The order of the fields is the order in which they are dropped: what the connection sends at
    // its end, its tasks send before their runtime ends.
    connection: AsyncConn,
    said_goodbye: bool,
    _ground: Arc<Ground>,
}

impl Deref for Connection {
    type Target = AsyncConn;

    fn deref(&self) -> &AsyncConn {
        &self.connection
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Connection").field(&self.connection).finish()
    }
}

impl Connection {
    /// Runs a statement that returns no rows.
    async fn run(&self, sql: &str) -> Result<(), PgWireError> {
        self.submit(query(sql)[..].into(), ResponseCollector::Rows).await.map(drop)
    }

    /// Waits until everything that was asked for has been answered. Answers whether a transaction has
    /// been open since the last call, or whether the user has marked the connection.
    async fn settled(&self) -> Result<bool, PgWireError> {
        self.submit(SYNC.into(), ResponseCollector::Drain).await?;
        Ok(self.take_state_mutated())
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if !self.said_goodbye && self.is_alive() {
            // The server would not notice otherwise, as the socket stays open until the runtime ends.
            // The first poll hands the message over, unless 256 others are waiting; nobody waits for
            // an answer, of which there is none.
            let goodbye = pin!(self.connection.submit_stream(TERMINATE.into(), 1));
            let _ = goodbye.poll(&mut Context::from_waker(Waker::noop()));
        }
    }
}

impl Manager for PgWiredManager<Connection> {
    type Connection = Connection;
    type Error = PgWireError;

    async fn connect(&self) -> Result<Connection, PgWireError> {
        let (ground, options) = (self.grounds.next()?, self.options.clone());
        // Cancel: the task is, too, and closes what it has opened.
        let opening = ground.spawn(async move { options.connect().await.map(AsyncConn::new) });
        let opened = Awaited(opening).outcome().await;
        let connection = opened.ok_or(PgWireError::ConnectionClosed)??;
        Ok(Connection { connection, said_goodbye: false, _ground: ground })
    }

    fn condition(&self, connection: &mut Connection) -> Condition {
        if connection.is_broken() || !connection.is_alive() {
            Condition::Broken
        } else if self.verify || connection.is_state_mutated() {
            Condition::Dirty
        } else {
            Condition::Clean
        }
    }

    async fn check(&self, connection: &mut Connection) -> Result<(), PgWireError> {
        if connection.settled().await? {
            return Err(PgWireError::Protocol("an idle connection is in a transaction".into()));
        }
        Ok(())
    }

    async fn reset(&self, connection: &mut Connection) -> Result<(), PgWireError> {
        if !connection.settled().await? {
            return Ok(());
        }
        // Something has been going on; what the server says now is whether it still is.
        if connection.settled().await? {
            connection.run("ROLLBACK").await?;
            if connection.settled().await? {
                return Err(PgWireError::Protocol("the transaction has not been ended".into()));
            }
        }
        if self.discard {
            connection.run("DISCARD ALL").await?;
            connection.clear_statement_cache();
        }
        Ok(())
    }

    async fn close(&self, mut connection: Connection) {
        connection.said_goodbye = true;
        // Whatever goes wrong with a goodbye, the connection is gone.
        drop(connection.connection.close().await);
    }

    fn is_permanent(&self, error: &PgWireError) -> bool {
        is_permanent(error)
    }
}
