//! Looks names up where nobody can be waiting for the outcome.
//!
//! Not here: what is done with the addresses, and the order in which they are tried.

use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::LazyLock;
use std::time::Duration;
use tokio::net::{ToSocketAddrs, lookup_host};
use tokio::runtime::{Builder, Runtime};

/// Where names are looked up.
///
/// A runtime does that on the threads that it keeps for calls that block. Those are limited in number, and
/// whoever waits for a connection on one of them (`acquire_blocking` inside `spawn_blocking`) may have the
/// last: the lookup would wait for its own waiter. So it is done on those of another runtime, which does
/// nothing else, and has none while there is nothing to look up: none is idle that a process that is forked
/// would count on.
static ELSEWHERE: LazyLock<io::Result<Runtime>> = LazyLock::new(|| {
    let mut builder = Builder::new_current_thread();
    builder.thread_name("millpond-lookup").thread_keep_alive(Duration::ZERO).build()
});

/// Does what [`lookup_host`] does; what is an address already needs no thread.
pub(crate) async fn lookup(
    address: impl ToSocketAddrs,
) -> io::Result<impl Iterator<Item = SocketAddr>> {
    let mut looking = pin!(lookup_host(address));
    poll_fn(|cx| {
        // The thread is one of where the first poll is; the others only wait for it.
        let _inside = ELSEWHERE.as_ref().ok().map(Runtime::enter);
        looking.as_mut().poll(cx)
    })
    .await
}
