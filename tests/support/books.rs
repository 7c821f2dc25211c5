//! Whether a pool's figures and the connections' own count agree.

use super::{Ledger, eventually, eventually_blocking};
use millpond::{Counts, Manager, Pool, PoolMetrics};
use std::sync::Once;

/// Waits until nothing is under way in the pool, then asserts that the books balance: each
/// connection that was opened is alive or closed for a reason, the connections' own count says the
/// same, and nobody is left waiting. Answers with the pool's figures. Detached connections must
/// have been dropped.
pub async fn balanced<M: Manager>(pool: &Pool<M>, ledger: &Ledger) -> PoolMetrics {
    eventually("nothing is under way", || is_at_rest(pool.counts())).await;
    audit(pool, ledger)
}

/// The same for a thread without a runtime.
pub fn balanced_blocking<M: Manager>(pool: &Pool<M>, ledger: &Ledger) -> PoolMetrics {
    eventually_blocking("nothing is under way", || is_at_rest(pool.counts()));
    audit(pool, ledger)
}

fn is_at_rest(counts: Counts) -> bool {
    counts.waiters + counts.connecting + counts.checking + counts.resetting + counts.closing == 0
}

fn audit<M: Manager>(pool: &Pool<M>, ledger: &Ledger) -> PoolMetrics {
    let metrics = pool.metrics();
    let PoolMetrics { counts, created, closed, .. } = &metrics;
    assert_eq!(*created, closed.total() + counts.alive() as u64, "{metrics:?}");
    // All slots make the capacity by definition, but not the size.
    assert_eq!(counts.in_service(), pool.max_size(), "{metrics:?}");
    assert_eq!(counts.waiters, 0, "{metrics:?}");
    assert_eq!(ledger.opened() as u64, *created, "{metrics:?} {ledger:?}");
    assert_eq!(ledger.dropped() as u64, closed.total(), "{metrics:?} {ledger:?}");
    assert_eq!(ledger.live(), counts.alive(), "{metrics:?} {ledger:?}");
    assert!(ledger.most_live() <= pool.config().max_size, "{metrics:?} {ledger:?}");
    metrics
}

/// Keeps panics whose message begins with `scripted` out of the output of this test binary.
pub fn hush_scripted_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let loud = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let payload = info.payload();
            let text = payload.downcast_ref::<&str>().copied();
            let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
            let message = text.unwrap_or_default();
            if !message.starts_with("scripted") {
                loud(info);
            }
        }));
    });
}
