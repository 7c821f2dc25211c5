//! Calls back with the pool's figures, again and again.
//!
//! Not here: the figures (`metrics`).

use super::Shared;
use super::operation::{FAR_FUTURE, unless};
use super::reaper::Upkeep;
use crate::manager::Manager;
use crate::metrics::PoolMetrics;
use crate::panics::caught;
use event_listener::listener;
use std::pin::pin;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;
use tokio::task::spawn_blocking;

/// What a pool reports to, and how often.
#[derive(Clone)]
pub(super) struct Reports {
    pub(super) interval: Duration,
    callback: Arc<dyn Fn(&PoolMetrics) + Send + Sync>,
    /// Held while it is called.
    turn: Arc<Mutex<()>>,
}

impl Reports {
    pub(super) fn new(
        interval: Duration,
        callback: impl Fn(&PoolMetrics) + Send + Sync + 'static,
    ) -> Self {
        Self { interval, callback: Arc::new(callback), turn: Arc::default() }
    }
}

/// The task. It ends with the pool, and is dropped if its runtime ends first.
pub(super) struct Reporter<M: Manager> {
    shared: Weak<Shared<M>>,
    upkeep: Arc<Upkeep>,
    reports: Reports,
}

impl<M: Manager> Reporter<M> {
    pub(super) fn new(shared: &Shared<M>, reports: Reports) -> Self {
        Self { shared: shared.me.clone(), upkeep: shared.upkeep.clone(), reports }
    }

    pub(super) async fn run(self) {
        let Self { shared, upkeep, reports: Reports { interval, callback, turn } } = self;
        let mut next = tokio::time::Instant::now();
        loop {
            // A clock that has run away is not run after.
            next = (next + interval.min(FAR_FUTURE)).max(tokio::time::Instant::now());
            let mut sleep = pin!(tokio::time::sleep_until(next));
            loop {
                listener!(upkeep.changed() => changed);
                if shared.upgrade().is_none_or(|shared| shared.core.is_closed()) {
                    return;
                }
                if unless(sleep.as_mut(), changed).await.is_ok() {
                    break;
                }
            }
            let Some(metrics) = shared.upgrade().map(|shared| shared.metrics()) else { return };
            let (callback, turn) = (callback.clone(), turn.clone());
            // Elsewhere, since it may block; its panic has been reported by the panic hook, and
            // there is another time.
            let told = spawn_blocking(move || {
                // It may still be under way where the pool was before, on a runtime that has ended.
                let Ok(_turn) = turn.try_lock() else { return };
                drop(caught(|| callback(&metrics)));
            });
            drop(told.await);
        }
    }
}
