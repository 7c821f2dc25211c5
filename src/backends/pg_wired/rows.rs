//! Rows as they arrive, from a connection that stays where it is until they have.
//!
//! Not here: where they are read from, which is up to pg-wired.

use super::Connection;
use ::pg_wired::PgWireError;
use ::pg_wired::async_conn::{StreamHeader, StreamedRow};
use bytes::BytesMut;
use std::fmt;
use std::marker::PhantomData;
use tokio::sync::mpsc::Receiver;

/// The rows of an answer, one by one, from [`Connection::submit_stream`].
///
/// It borrows the connection, so the guard cannot be given back before. Dropping it gives up the rows that
/// are left: whoever asks the connection for something next waits until they have been read and thrown away,
/// and so does the pool, up to `reset_timeout`, before it hands the connection on.
#[must_use = "rows that are dropped are thrown away"]
pub struct Rows<'c> {
    rows: Receiver<Result<StreamedRow, PgWireError>>,
    /// Only while the connection is there is whatever reads the rows, so that the end of them is theirs.
    connection: PhantomData<&'c Connection>,
}

impl Rows<'_> {
    /// The next row; `None` if all of them have come.
    ///
    /// # Errors
    ///
    /// If the server says that the query has failed, or the connection has come to its end: no more rows
    /// follow.
    ///
    /// # Cancel safety
    ///
    /// No row is lost.
    pub async fn recv(&mut self) -> Option<Result<StreamedRow, PgWireError>> {
        self.rows.recv().await
    }
}

impl fmt::Debug for Rows<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rows").finish_non_exhaustive()
    }
}

impl Connection {
    /// Sends a request, and answers with the columns and the rows, of which up to `row_buffer` are read
    /// before somebody asks for them.
    ///
    /// It stands in for [`AsyncConn::submit_stream`](::pg_wired::AsyncConn::submit_stream), whose rows borrow
    /// nothing. Those may outlive the guard, as in `pool.acquire().await?.submit_stream(…).await?`, and then
    /// the connection is closed, unless all of them have been read within `reset_timeout`. Whoever reads on may
    /// be told that as a good end is told: by `None`.
    ///
    /// # Errors
    ///
    /// If the server refuses the query, or the connection comes to its end before the first row.
    ///
    /// # Panics
    ///
    /// If `row_buffer` is 0.
    ///
    /// # Cancel safety
    ///
    /// The server may carry the request out all the same; its answer is thrown away.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use millpond::{Pool, backends::pg_wired::PgWiredManager};
    /// # async fn example(
    /// #     pool: Pool<PgWiredManager>, message: bytes::BytesMut,
    /// # ) -> Result<(), Box<dyn std::error::Error>> {
    /// let connection = pool.acquire().await?;
    /// let (_, mut rows) = connection.submit_stream(message, 16).await?;
    /// while let Some(row) = rows.recv().await {
    ///     println!("{:?}", row?.cell(0));
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// The guard cannot go before the rows:
    ///
    /// ```compile_fail,E0716
    /// # use millpond::{Pool, backends::pg_wired::PgWiredManager};
    /// # async fn example(
    /// #     pool: Pool<PgWiredManager>, message: bytes::BytesMut,
    /// # ) -> Result<(), Box<dyn std::error::Error>> {
    /// let (_, mut rows) = pool.acquire().await?.submit_stream(message, 16).await?;
    /// while let Some(row) = rows.recv().await {
    ///     println!("{:?}", row?.cell(0));
    /// }
    /// # Ok(()) }
    /// ```
    pub async fn submit_stream(
        &self,
        messages: BytesMut,
        row_buffer: usize,
    ) -> Result<(StreamHeader, Rows<'_>), PgWireError> {
        let (header, rows) = (**self).submit_stream(messages, row_buffer).await?;
        Ok((header, Rows { rows, connection: PhantomData }))
    }
}
