//! Connections that many requests can share: pg-wired's `AsyncConn`.
//!
//! Its requests are answered in their order, whether or not anybody waits for the answer any more.
//! So a request that has been answered says that all those before it have been. It takes the first
//! word that the server is ready for the end of its answer, whosever that is: after a message that
//! pg-wired cannot read, or two statements in one request, each is given the answer of the one before.
//! So what the pool asks for is a text that nobody else's answer has.

use super::ground::{Awaited, Ground};
use super::{FAILED_TRANSACTION, PgWiredManager, TERMINATE, is_permanent, query, question};
use crate::manager::{Condition, Manager};
use ::pg_wired::{AsyncConn, PgWireError, PipelineResponse, ResponseCollector};
use std::fmt;
use std::future::Future;
use std::ops::Deref;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Duration;
use tokio::task::unconstrained;
use tokio::time::timeout;

/// How long a goodbye may go unanswered before the server is asked to cancel what it is doing
/// instead. Most connections that are closed do nothing, and a cancel costs a connection.
const GRACE: Duration = Duration::from_millis(20);

/// A connection that many requests can share, which derefs to [`AsyncConn`].
///
/// Its methods take `&self`: requests that are made together, as with `join!`, are sent together and
/// answered with one round trip. Dropping the future of one does not take it back; it is answered in
/// its turn, and the answer thrown away.
///
/// # Streams of rows
///
/// Those of [`submit_stream`](Self::submit_stream) borrow the connection: the compiler has the guard outlive
/// them. Whoever goes past that, by `AsyncConn::submit_stream` or [`ResponseCollector::Stream`], has to keep
/// the guard until the last row has come: otherwise the rows may end in their middle, and what is told is the
/// same `None` as at a good end.
///
/// Requests are made inside a tokio runtime with a timer, since pg-wired gives each a time limit: on a plain
/// thread, such as one that uses a [`blocking::Pool`](crate::blocking::Pool), they panic. There,
/// [`Runtime::block_on`](tokio::runtime::Runtime::block_on) of a runtime of the program's own runs them.
///
/// The receiver of notifications can be taken once in a connection's life. Whoever takes it should
/// [`detach`](crate::Pooled::detach) or [`discard`](crate::Pooled::discard) the connection in the end. It may
/// still hold what came for a `LISTEN` of an earlier user: no reset empties it.
pub struct Connection {
    // The order of the fields is the order in which they are dropped: what the connection sends at
    // its end, its tasks send before their runtime ends.
    connection: AsyncConn,
    said_goodbye: bool,
    ground: Arc<Ground>,
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
    /// been open since the last call, or whether the user has marked the connection. Fails if requests
    /// are given answers that are not theirs.
    async fn settled(&self) -> Result<bool, PgWireError> {
        let (text, question) = question();
        match self.submit(question[..].into(), ResponseCollector::Rows).await {
            Ok(PipelineResponse::Rows { rows, .. })
                if rows.len() == 1 && rows[0].cell(0) == Some(text.as_bytes()) =>
            {
                Ok(self.take_state_mutated())
            }
            Ok(_) => {
                let why = "an answer went to another request: a message could not be read, or a \
                           request had more than one answer";
                Err(PgWireError::Protocol(why.into()))
            }
            Err(PgWireError::Pg(error)) if error.code == FAILED_TRANSACTION => {
                self.take_state_mutated();
                Ok(true)
            }
            Err(error) => Err(error),
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if !self.said_goodbye && self.is_alive() {
            // The server would not notice otherwise, as the socket stays open until the runtime ends.
            // The first poll hands the message over, unless 256 others are waiting, however much the
            // task that drops the connection has done; nobody waits for an answer, of which there is
            // none.
            let goodbye = pin!(unconstrained(self.connection.submit_stream(TERMINATE.into(), 1)));
            let _ = goodbye.poll(&mut Context::from_waker(Waker::noop()));
        }
    }
}

impl Manager for PgWiredManager<Connection> {
    type Connection = Connection;
    type Error = PgWireError;

    async fn connect(&self) -> Result<Connection, PgWireError> {
        let (ground, options) = (self.grounds.next()?, (self.options)());
        // Cancel: the task is, too, and closes what it has opened. If it is over, it has made a whole
        // connection, which says goodbye when it is dropped.
        let opening = ground.clone().spawn(async move {
            let connection = AsyncConn::new(options.connect().await?);
            Ok(Connection { connection, said_goodbye: false, ground })
        });
        let opened = Awaited(opening).outcome().await;
        opened.unwrap_or(Err(PgWireError::ConnectionClosed))
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
        if !connection.settled().await? {
            return Ok(());
        }
        // A hook that has set it up may have used a transaction, or marked it; what the server says
        // now is whether one is open.
        if connection.settled().await? {
            return Err(PgWireError::Protocol("an idle connection is in a transaction".into()));
        }
        connection.mark_state_mutated();
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
        let mut goodbye = pin!(connection.connection.close());
        if timeout(GRACE, goodbye.as_mut()).await.is_err() {
            // What was given up goes on at the server, which would not look at the goodbye before its
            // end. A cancel that comes late hits nobody else: nobody has this connection any more.
            let token = connection.connection.cancel_token();
            drop(connection.ground.spawn(async move { token.cancel().await }).await);
            // Whatever goes wrong with a goodbye, the connection is gone.
            drop(goodbye.await);
        }
    }

    fn is_permanent(&self, error: &PgWireError) -> bool {
        is_permanent(error)
    }

    fn target(&self) -> Option<String> {
        (self.options)().target()
    }
}
