//! `Pool` as the model's subject, on a runtime of one thread whose clock stands still.
//!
//! Not here: what is expected of it.

use super::drive;
use super::{Acquire, Connects, Operation, Refusal, Resource, Setting, Subject, Supply, Totals};
use millpond::{
    AcquireError, CheckPolicy, Counts, Manager, Pool, Pooled, PooledOwned, TryAcquireError,
};
use std::error::Error;
use std::fmt;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::runtime::{Builder, Runtime};
use tokio::time::sleep;

/// The pause after a failed connect is random, up to this: so long that it never passes by itself.
const PAUSE: Duration = Duration::from_secs(30 * 24 * 60 * 60);

pub(super) fn run(setting: Setting, script: impl Iterator<Item = Operation>) -> u64 {
    let runtime = Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.expect("a runtime");
    let supply = Arc::<Supply>::default();
    let managed = {
        let context = runtime.enter();
        let manager = Scripted { supply: supply.clone(), connects: Mutex::new(Connects::Succeed) };
        let pool = Pool::builder(manager)
            .max_size(setting.capacity())
            .order(setting.order())
            .shards(1)
            .acquire_timeout(Duration::MAX)
            .backoff(PAUSE, PAUSE)
            // The model knows no time but that pause.
            .check(CheckPolicy::Never)
            .maintenance_interval(Duration::MAX)
            .build_lazy()
            .expect("the settings are in range");
        drop(context);
        Managed { pool, runtime }
    };
    let operations = {
        let _context = managed.runtime.enter();
        drive(&managed, supply.clone(), setting, script)
    };
    let Managed { pool, runtime } = managed;
    drop(pool);
    runtime.block_on(async { sleep(INSTANT).await });
    assert_eq!(supply.alive.load(Relaxed), 0, "resources that outlive the pool");
    operations
}

/// The clock moves on by itself only when every task waits; so after this sleep, all have run.
const INSTANT: Duration = Duration::from_millis(1);

struct Managed {
    pool: Pool<Scripted>,
    runtime: Runtime,
}

/// Connects, or fails to, as it is told.
pub(super) struct Scripted {
    supply: Arc<Supply>,
    connects: Mutex<Connects>,
}

/// The connect was told to end like this.
#[derive(Debug)]
pub(super) struct Told(Connects);

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "told to {:?}", self.0)
    }
}

impl Error for Told {}

impl Manager for Scripted {
    type Connection = Resource;
    type Error = Told;

    async fn connect(&self) -> Result<Resource, Told> {
        match *self.connects.lock().unwrap_or_else(PoisonError::into_inner) {
            Connects::Succeed => Ok(self.supply.make()),
            told => Err(Told(told)),
        }
    }

    fn is_permanent(&self, error: &Told) -> bool {
        error.0 == Connects::Refuse
    }
}

pub(super) enum Guard<'p> {
    Borrowed(Pooled<'p, Scripted>),
    Owned(PooledOwned<Scripted>),
}

fn refusal(error: AcquireError<Told>) -> Refusal {
    match error {
        AcquireError::Closed => Refusal::Closed,
        AcquireError::Connect(_) => Refusal::Connect,
        other => unreachable!("BUG: {other}"),
    }
}

impl Subject for Managed {
    type Guard<'p> = Guard<'p>;

    fn acquire(&self, owned: bool) -> Acquire<'_, Guard<'_>> {
        Box::pin(async move {
            if owned {
                self.pool.acquire_owned().await.map(Guard::Owned).map_err(refusal)
            } else {
                self.pool.acquire().await.map(Guard::Borrowed).map_err(refusal)
            }
        })
    }

    fn try_acquire(&self) -> Result<Guard<'_>, TryAcquireError> {
        self.pool.try_acquire().map(Guard::Borrowed)
    }

    fn resource<'g>(guard: &'g Guard<'_>) -> &'g Resource {
        match guard {
            Guard::Borrowed(connection) => connection,
            Guard::Owned(connection) => connection,
        }
    }

    fn detach(guard: Guard<'_>) -> Resource {
        match guard {
            Guard::Borrowed(connection) => connection.detach(),
            Guard::Owned(connection) => connection.detach(),
        }
    }

    fn discard(guard: Guard<'_>) {
        match guard {
            Guard::Borrowed(connection) => connection.discard(),
            Guard::Owned(connection) => connection.discard(),
        }
    }

    fn close(&self) {
        self.runtime.block_on(self.pool.close());
    }

    fn is_closed(&self) -> bool {
        self.pool.is_closed()
    }

    fn counts(&self) -> Counts {
        self.pool.metrics().counts
    }

    fn settle(&self) {
        self.runtime.block_on(async { sleep(INSTANT).await });
    }

    fn pause(&self) {
        self.runtime.block_on(async { sleep(PAUSE + INSTANT).await });
    }

    fn connects(&self, connects: Connects) {
        *self.pool.manager().connects.lock().unwrap_or_else(PoisonError::into_inner) = connects;
    }

    fn totals(&self) -> Option<Totals> {
        let metrics = self.pool.metrics();
        Some(Totals {
            created: metrics.created,
            acquires: metrics.acquires,
            detached: metrics.closed.detached,
            discarded: metrics.closed.discarded,
            pool_closed: metrics.closed.pool_closed,
            closed: metrics.closed.total(),
        })
    }
}
