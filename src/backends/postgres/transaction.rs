//! A transaction on a pooled connection, with what that has besides the driver library's.
//!
//! Not here: what becomes of one that was left open (`mod.rs`).

use super::client::{CancelToken, Statements};
use std::ops::{Deref, DerefMut};
use tokio_postgres::types::Type;
use tokio_postgres::{Error, IsolationLevel, Statement};

/// A transaction of a [`Client`](super::Client): a [`tokio_postgres::Transaction`], with its connection's
/// cache of statements and its cancel token. Dropped, it rolls back.
///
/// Whoever takes the library's own gets `&*transaction` or `&mut *transaction`, such as for its
/// `GenericClient`; `(**guard).transaction()` of a pool's guard begins one that is nothing but that.
///
/// # Errors and cancel safety
///
/// Each function has those of the one of the same name of the library's, or of the client's.
pub struct Transaction<'c> {
    transaction: tokio_postgres::Transaction<'c>,
    besides: Besides<'c>,
}

/// What a client has besides the driver library's.
#[derive(Clone, Copy)]
struct Besides<'c> {
    statements: &'c Statements,
    token: &'c CancelToken,
}

#[allow(clippy::missing_errors_doc, reason = "they are those of the functions that are named")]
impl Transaction<'_> {
    /// [`Client::prepare_cached`](super::Client::prepare_cached), in the transaction. A rollback does not
    /// undo it: what was prepared goes on, for tables that are still there.
    pub async fn prepare_cached(&self, query: &str) -> Result<Statement, Error> {
        self.prepare_typed_cached(query, &[]).await
    }

    /// [`Client::prepare_typed_cached`](super::Client::prepare_typed_cached), in the same way.
    pub async fn prepare_typed_cached(
        &self,
        query: &str,
        types: &[Type],
    ) -> Result<Statement, Error> {
        self.besides.statements.prepare(self.transaction.client(), query, types).await
    }

    /// [`Client::cancel_token`](super::Client::cancel_token).
    #[must_use]
    pub fn cancel_token(&self) -> CancelToken {
        self.besides.token.clone()
    }

    /// Begins a transaction within this one, by a savepoint.
    pub async fn transaction(&mut self) -> Result<Transaction<'_>, Error> {
        let transaction = self.transaction.transaction().await?;
        Ok(Transaction { transaction, besides: self.besides })
    }

    /// Begins a transaction within this one, by a savepoint of this name.
    pub async fn savepoint(&mut self, name: impl Into<String>) -> Result<Transaction<'_>, Error> {
        let transaction = self.transaction.savepoint(name).await?;
        Ok(Transaction { transaction, besides: self.besides })
    }

    /// Commits it.
    pub async fn commit(self) -> Result<(), Error> {
        self.transaction.commit().await
    }

    /// Rolls it back, and says whether that has worked.
    pub async fn rollback(self) -> Result<(), Error> {
        self.transaction.rollback().await
    }
}

impl<'c> Deref for Transaction<'c> {
    type Target = tokio_postgres::Transaction<'c>;

    fn deref(&self) -> &Self::Target {
        &self.transaction
    }
}

impl DerefMut for Transaction<'_> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.transaction
    }
}

/// Begins a [`Transaction`] of another kind: see [`tokio_postgres::TransactionBuilder`].
#[must_use]
pub struct TransactionBuilder<'c> {
    builder: tokio_postgres::TransactionBuilder<'c>,
    besides: Besides<'c>,
}

impl<'c> TransactionBuilder<'c> {
    pub(super) fn new(
        builder: tokio_postgres::TransactionBuilder<'c>,
        statements: &'c Statements,
        token: &'c CancelToken,
    ) -> Self {
        Self { builder, besides: Besides { statements, token } }
    }

    /// Which changes of others it sees.
    pub fn isolation_level(self, level: IsolationLevel) -> Self {
        Self { builder: self.builder.isolation_level(level), ..self }
    }

    /// Whether it takes no writes.
    pub fn read_only(self, read_only: bool) -> Self {
        Self { builder: self.builder.read_only(read_only), ..self }
    }

    /// Whether it may be held up in the beginning, and then never fails for what others do.
    pub fn deferrable(self, deferrable: bool) -> Self {
        Self { builder: self.builder.deferrable(deferrable), ..self }
    }

    /// Begins it.
    #[allow(clippy::missing_errors_doc, reason = "as the library's")]
    pub async fn start(self) -> Result<Transaction<'c>, Error> {
        let transaction = self.builder.start().await?;
        Ok(Transaction { transaction, besides: self.besides })
    }
}
