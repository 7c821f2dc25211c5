//! Panics in user code: in each of the manager's methods, in the connection's own drop, and in
//! whoever holds a connection.

#![cfg(feature = "tokio")]

mod support;
use support::*;

use millpond::{AcquireError, CheckPolicy, Condition, Manager, OperationError, Pool, ReleaseError};
use std::error::Error;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);
const DIRTY: Act = Act::Slow(Duration::ZERO);
const BROKEN: Act = Act::Error;

/// A connection that can panic when it is dropped.
#[derive(Debug)]
struct Bomb {
    conn: Conn,
    armed: bool,
}

impl Drop for Bomb {
    fn drop(&mut self) {
        assert!(!self.armed || std::thread::panicking(), "scripted panic in drop");
    }
}

/// A [`TestManager`] whose connections are bombs, and which panics where that one does not.
struct Explosive {
    calm: TestManager,
    /// Panic in `is_permanent`.
    judge: AtomicBool,
    /// Panic in `connect` before there is a future.
    eager: AtomicBool,
    judged: AtomicUsize,
}

impl Explosive {
    fn pool(manager: &TestManager) -> millpond::PoolBuilder<Self> {
        hush_scripted_panics();
        Pool::builder(Self {
            calm: manager.clone(),
            judge: AtomicBool::new(false),
            eager: AtomicBool::new(false),
            judged: AtomicUsize::new(0),
        })
        .max_size(1)
    }
}

impl Manager for Explosive {
    type Connection = Bomb;
    type Error = TestError;

    #[allow(clippy::manual_async_fn, reason = "it panics before there is a future")]
    fn connect(&self) -> impl Future<Output = Result<Bomb, TestError>> + Send {
        assert!(!self.eager.swap(false, Ordering::SeqCst), "scripted panic before connect");
        async { Ok(Bomb { conn: self.calm.connect().await?, armed: false }) }
    }

    fn condition(&self, bomb: &mut Bomb) -> Condition {
        self.calm.condition(&mut bomb.conn)
    }

    async fn check(&self, bomb: &mut Bomb) -> Result<(), TestError> {
        self.calm.check(&mut bomb.conn).await
    }

    async fn reset(&self, bomb: &mut Bomb) -> Result<(), TestError> {
        self.calm.reset(&mut bomb.conn).await
    }

    async fn close(&self, bomb: Bomb) {
        // An error has nowhere to go; a hanging close holds the connection.
        if self.calm.close.calls() < usize::MAX {
            self.calm.reset_free_close(bomb).await;
        }
    }

    fn is_permanent(&self, error: &TestError) -> bool {
        self.judged.fetch_add(1, Ordering::SeqCst);
        assert!(!self.judge.load(Ordering::SeqCst), "scripted panic in is_permanent");
        error.permanent
    }
}
