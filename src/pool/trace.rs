//! Tells what happens to whoever listens, with the feature `tracing`; without it nothing of this does
//! anything.
//!
//! What there is, and with which levels and fields, is in the documentation of the crate. A listener that
//! panics changes nothing of what it is told of.
//!
//! Not here: when these things happen.

#![cfg_attr(
    not(feature = "tracing"),
    allow(unused_variables, clippy::unused_self, clippy::if_same_then_else)
)]

use super::{Holder, Shared, Tenant};
use crate::error::OperationError;
use crate::hooks::Leak;
use crate::manager::Manager;
use crate::metrics::{CloseReason, Outcome};
use std::panic::Location;
use std::pin::Pin;
use std::time::Duration;
#[cfg(feature = "tracing")]
use {
    super::WhichNode,
    crate::error::InWords,
    crate::metrics::ClusterNode,
    crate::panics::caught,
    std::future::Future,
    std::task::{Context, Poll},
    std::{error::Error, fmt, mem},
    tracing::{
        field::{DisplayValue, display},
        span::Entered,
    },
};

/// A span, or nothing at all. What a listener panics with when it begins, is entered, is left or ends is
/// caught, as at an event.
pub(super) struct Span {
    #[cfg(feature = "tracing")]
    span: tracing::Span,
}

/// A connection that nobody uses has none.
pub(super) fn no_span() -> Span {
    Span {
        #[cfg(feature = "tracing")]
        span: tracing::Span::none(),
    }
}

impl Span {
    #[cfg(feature = "tracing")]
    fn new(begin: impl FnOnce() -> tracing::Span) -> Self {
        Self { span: caught(begin).unwrap_or_else(|_| tracing::Span::none()) }
    }

    /// Does this in it.
    fn within<T>(&self, work: impl FnOnce() -> T) -> T {
        #[cfg(feature = "tracing")]
        let _within = Within(caught(|| self.span.enter()).ok());
        work()
    }
}

#[cfg(feature = "tracing")]
impl Drop for Span {
    fn drop(&mut self) {
        let span = mem::replace(&mut self.span, tracing::Span::none());
        drop(caught(|| drop(span)));
    }
}

/// In a span until this is dropped.
#[cfg(feature = "tracing")]
struct Within<'s>(Option<Entered<'s>>);

#[cfg(feature = "tracing")]
impl Drop for Within<'_> {
    fn drop(&mut self) {
        let entered = self.0.take();
        drop(caught(|| drop(entered)));
    }
}

/// A future that is polled in a span, and dropped there with this. Not tracing's own `Instrumented`: if the
/// listener panics before the future is dropped, that one never drops it, and somebody who is gone stays in line.
#[cfg(feature = "tracing")]
pub(super) struct InSpan<'f, F> {
    future: Pin<&'f mut Option<F>>,
    span: Span,
}

#[cfg(feature = "tracing")]
impl<F: Future> Future for InSpan<'_, F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let Self { future, span } = self.get_mut();
        let future = future.as_mut().as_pin_mut().expect(DROPPED);
        span.within(|| future.poll(cx))
    }
}

#[cfg(feature = "tracing")]
impl<F> Drop for InSpan<'_, F> {
    fn drop(&mut self) {
        let Self { future, span } = self;
        span.within(|| future.set(None));
    }
}

/// Without spans, the future itself.
#[cfg(not(feature = "tracing"))]
pub(super) type InSpan<'f, F> = Pin<&'f mut F>;

const DROPPED: &str = "BUG: polled after it was dropped";

#[cfg(feature = "tracing")]
macro_rules! tell {
    ($level:ident, $pool:expr, $($fields:tt)*) => {
        crate::panics::tell!(
            $level,
            pool = %$pool.config.name,
            cluster = $pool.cluster(),
            node = $pool.node(),
            $($fields)*
        )
    };
}

#[cfg(not(feature = "tracing"))]
macro_rules! tell {
    ($level:ident, $pool:expr, $($fields:tt)*) => {{}};
}

/// Tells an event as a warning if it is news, and otherwise to those who want to hear of each.
macro_rules! tell_news {
    ($is_news:expr, $pool:expr, $($fields:tt)*) => {
        if $is_news {
            tell!(warn, $pool, $($fields)*);
        } else {
            tell!(debug, $pool, $($fields)*);
        }
    };
}

/// Tells an event of somebody who holds a connection.
macro_rules! tell_holder {
    ($level:ident, $pool:expr, $holder:expr, $($field:ident,)? $message:literal) => {
        tell!(
            $level,
            $pool,
            $($field,)?
            connection = $holder.connection,
            held = held($holder),
            site = $holder.site.map(display),
            $message
        )
    };
}

/// For how long somebody has held a connection at least, as it is written down; nothing if nobody has seen that yet.
#[cfg(feature = "tracing")]
fn held(holder: &Holder) -> Option<DisplayValue<String>> {
    holder.held_for_at_least().map(display)
}

/// An error as what it is written down as.
#[cfg(feature = "tracing")]
fn cause<E: Error + 'static>(error: &OperationError<E>) -> DisplayValue<InWords<'_>> {
    display(InWords(error))
}

/// A word about the node that a pool stands for. It is asked for when it is written down: tracing makes
/// the fields of a span even if nobody listens, where something else turns its feature `log` on.
#[cfg(feature = "tracing")]
struct Word<'s> {
    which: &'s WhichNode,
    word: fn(&ClusterNode) -> &str,
}

#[cfg(feature = "tracing")]
impl fmt::Display for Word<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str((self.word)(&(self.which)()))
    }
}

/// Fields of a pool that stands for a cluster's node. Others do not have them: nothing is recorded of a
/// field that is `None`.
#[cfg(feature = "tracing")]
impl<M: Manager> Shared<M> {
    fn cluster(&self) -> Option<DisplayValue<Word<'_>>> {
        self.word(|node| &node.name)
    }

    fn node(&self) -> Option<DisplayValue<Word<'_>>> {
        self.word(|node| &node.node)
    }

    /// Where its connections lead.
    fn server(&self) -> Option<DisplayValue<std::sync::Arc<str>>> {
        self.target().map(display)
    }

    fn word(&self, word: fn(&ClusterNode) -> &str) -> Option<DisplayValue<Word<'_>>> {
        self.cluster.as_deref().map(|which| display(Word { which, word }))
    }
}

impl<M: Manager> Shared<M> {
    pub(super) fn tell_connected(&self, connection: u64, took: Duration) {
        tell!(debug, self, connection, ?took, "connected");
    }

    pub(super) fn tell_connect_failed(
        &self,
        error: &OperationError<M::Error>,
        permanent: bool,
        in_a_row: u32,
        is_news: bool,
    ) {
        #[cfg(feature = "tracing")]
        let server = self.server();
        if permanent {
            tell!(
                error,
                self,
                server,
                error = cause(error),
                in_a_row,
                "cannot connect until the server or the settings are changed"
            );
        } else {
            tell_news!(is_news, self, server, error = cause(error), in_a_row, "cannot connect");
        }
    }

    /// A connect of a rotation has failed: nobody waits for it but the rotation.
    pub(super) fn tell_rotation_failed(&self, error: &OperationError<M::Error>) {
        tell!(
            warn,
            self,
            server = self.server(),
            error = cause(error),
            "cannot connect to rotate, and the old connections stay"
        );
    }

    /// Connecting had failed so many times in a row.
    pub(super) fn tell_recovered(&self, failures: u32) {
        tell!(info, self, failures, "connecting succeeds again");
    }

    /// A check, a reset or a hook has failed, and its connection is closed.
    pub(super) fn tell_failed(
        &self,
        connection: u64,
        what: &'static str,
        error: &OperationError<M::Error>,
    ) {
        tell!(warn, self, connection, error = cause(error), "{what} has failed");
    }

    /// A hook has failed for a connection that nobody had used, as one of so many in a row that were of no use.
    pub(super) fn tell_rejected(
        &self,
        connection: u64,
        hook: &'static str,
        error: &OperationError<M::Error>,
        in_a_row: Option<u32>,
        is_news: bool,
    ) {
        tell_news!(is_news, self, connection, error = cause(error), in_a_row, "{hook} has failed");
    }

    /// A connection has been lost before anybody used it, as one of so many in a row that were of no use.
    pub(super) fn tell_lost(
        &self,
        connection: u64,
        error: &OperationError<M::Error>,
        in_a_row: u32,
        is_news: bool,
    ) {
        #[cfg(feature = "tracing")]
        let server = self.server();
        tell_news!(
            is_news,
            self,
            connection,
            server,
            error = cause(error),
            in_a_row,
            "a new connection is lost"
        );
    }

    /// This connection has been found out of date, and so are all that are as old.
    pub(super) fn tell_outdated(&self, connection: u64) {
        tell!(warn, self, connection, "all connections are out of date");
    }

    pub(super) fn tell_ended(&self, tenant: &Tenant<M::Connection>, reason: CloseReason) {
        tell!(
            debug,
            self,
            connection = tenant.id,
            reason = ?reason,
            age = ?tenant.created.elapsed(),
            "a connection ends"
        );
    }

    pub(super) fn tell_leak(&self, leak: &Leak) {
        let holder = leak.holder();
        match leak {
            Leak::Held(_) => tell_holder!(warn, self, holder, "held for too long"),
            Leak::Returned(_) => tell_holder!(info, self, holder, "came back late"),
        }
    }

    pub(super) fn tell_shut(&self, how: &'static str) {
        tell!(info, self, "the pool is {how}");
    }

    /// A drain has come to its end, and these still hold a connection.
    pub(super) fn tell_not_drained(&self, still_out: &[Holder]) {
        if let Some(holder) = still_out.iter().max_by_key(|holder| holder.seniority()) {
            let still_out = still_out.len();
            tell_holder!(warn, self, holder, still_out, "not drained in time");
        }
    }

    /// An acquire has waited.
    pub(super) fn tell_waited(
        &self,
        site: &'static Location<'static>,
        outcome: Outcome,
        waited: Duration,
    ) {
        #[cfg(feature = "tracing")]
        if self.config.slow_acquire.is_some_and(|limit| waited > limit) {
            let counts = self.core.counts();
            tell!(warn, self, %site, ?waited, ?outcome, %counts, "a slow acquire");
        }
    }

    /// The span of a connection in somebody's hands.
    pub(super) fn use_span(&self, connection: u64, site: &'static Location<'static>) -> Span {
        #[cfg(feature = "tracing")]
        return Span::new(|| {
            let pool = &*self.config.name;
            tracing::trace_span!(
                target: "millpond",
                parent: None,
                "use",
                pool,
                cluster = self.cluster(),
                node = self.node(),
                connection,
                %site
            )
        });
        #[cfg(not(feature = "tracing"))]
        no_span()
    }

    /// The span of an acquire that has to wait.
    fn acquire_span(&self, site: &'static Location<'static>) -> Span {
        #[cfg(feature = "tracing")]
        return Span::new(|| {
            let pool = &*self.config.name;
            tracing::debug_span!(
                target: "millpond",
                "acquire",
                pool,
                cluster = self.cluster(),
                node = self.node(),
                %site
            )
        });
        #[cfg(not(feature = "tracing"))]
        no_span()
    }

    /// Does this in it, on this thread.
    pub(super) fn in_span_blocking<T>(
        &self,
        site: &'static Location<'static>,
        work: impl FnOnce() -> T,
    ) -> T {
        self.acquire_span(site).within(work)
    }

    /// Does this in it.
    pub(super) fn in_span<'f, F>(
        &self,
        site: &'static Location<'static>,
        future: Pin<&'f mut Option<F>>,
    ) -> InSpan<'f, F> {
        #[cfg(feature = "tracing")]
        let in_span = InSpan { future, span: self.acquire_span(site) };
        #[cfg(not(feature = "tracing"))]
        let in_span = future.as_pin_mut().expect(DROPPED);
        in_span
    }
}

#[cfg(all(test, feature = "tracing", feature = "cluster"))]
mod tests {
    use crate::manager::from_fn;
    use crate::metrics::{ClusterNode, Role};
    use crate::pool::Pool;
    use std::convert::Infallible;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    #[tokio::test]
    async fn nobody_is_asked_for_its_node_while_nobody_listens() {
        let asked = Arc::new(AtomicUsize::new(0));
        let count = asked.clone();
        let which = move || {
            count.fetch_add(1, SeqCst);
            ClusterNode::new("shop".into(), "a".into(), Role::Unknown)
        };
        let manager = from_fn(|| async { Ok::<_, Infallible>(()) });
        let pool = Pool::builder(manager).cluster(which).trace_uses(true).build().await.unwrap();
        pool.acquire().await.unwrap().discard();
        pool.close().await;
        assert_eq!(asked.load(SeqCst), 0);
        let node = pool.status().cluster.map(|cluster| cluster.node);
        assert_eq!((node.as_deref(), asked.load(SeqCst)), (Some("a"), 1));
    }
}
