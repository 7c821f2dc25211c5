//! What the tests of backends share: futures that are given up, pools whose books balance, and an address
//! that leads nowhere.
//!
//! Not here: any backend.

use super::eventually;
use millpond::{AcquireError, ConnectError, Manager, Pool, PoolMetrics};
use socket2::{Domain, Socket, Type};
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Polls a future up to `times` times, letting others run in between, and then drops it. Answers
/// with its output if it was done by then.
pub async fn given_up_after<F: Future>(times: usize, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut left = times;
    poll_fn(|cx| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        match future.as_mut().poll(cx) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
        }
    })
    .await
}

/// The same, each poll when the future has woken its task: for one that is sure to do that.
pub async fn given_up_at_wake<F: Future>(times: usize, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut left = times;
    poll_fn(|cx| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        match future.as_mut().poll(cx) {
            Poll::Pending if left == 0 => Poll::Ready(None),
            poll => poll.map(Some),
        }
    })
    .await
}

/// Waits until nothing is under way in the pool, then asserts that its books balance: each
/// connection that was opened is alive or closed for a reason, and nobody is left waiting.
pub async fn at_rest<M: Manager>(pool: &Pool<M>) -> PoolMetrics {
    eventually("nothing is under way", || {
        let counts = pool.counts();
        counts.waiters + counts.connecting + counts.checking + counts.resetting + counts.closing
            == 0
    })
    .await;
    let metrics = pool.metrics();
    assert_eq!(
        metrics.created,
        metrics.closed.total() + metrics.counts.alive() as u64,
        "{metrics:?}"
    );
    assert_eq!(metrics.counts.in_service(), pool.max_size(), "{metrics:?}");
    metrics
}

/// Acquires as many connections as the pool may have, and so finds out that no slot is lost.
pub async fn is_whole<M: Manager>(pool: &Pool<M>) {
    let mut all = Vec::new();
    for _ in 0..pool.config().max_size {
        all.push(pool.acquire().await.expect("every slot can be had"));
    }
    drop(all);
    let metrics = at_rest(pool).await;
    assert_eq!(metrics.counts.in_use, 0, "{metrics:?}");
}

/// The manager's error in a refusal that is permanent.
#[track_caller]
pub fn refusal<T, E: std::error::Error>(
    acquired: Result<T, AcquireError<E>>,
) -> std::sync::Arc<ConnectError<E>> {
    match acquired {
        Err(AcquireError::Connect(error)) => error,
        Err(error) => panic!("{error:?} is not permanent"),
        Ok(_) => panic!("it is not refused"),
    }
}

/// Somebody who listens, whose line is full, and who lets nobody in: whoever connects waits for ever.
pub struct Nowhere {
    listener: Socket,
    line: Vec<TcpStream>,
}

impl Nowhere {
    /// At this address, or, for port 0, at any port.
    pub async fn at(address: impl Into<SocketAddr>) -> Self {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        listener.bind(&address.into().into()).unwrap();
        listener.listen(0).unwrap();
        let mut nowhere = Self { listener, line: Vec::new() };
        let address = nowhere.address();
        let second = Duration::from_secs(1);
        while let Ok(stream) = timeout(second, TcpStream::connect(address)).await {
            nowhere.line.push(stream.unwrap());
        }
        nowhere
    }

    pub fn address(&self) -> SocketAddr {
        self.listener.local_addr().unwrap().as_socket().unwrap()
    }
}
