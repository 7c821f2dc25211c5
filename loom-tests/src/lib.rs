//! What the models share: how they are checked, the resource that they pass around, a keeper for
//! the situations in which only a managed pool gets, and the law that holds at the end of each.
//!
//! Not here: the models, one file per invariant in `tests`.

#![cfg(loom)]

use loom::cell::Cell;
use loom::sync::atomic::{AtomicBool, AtomicUsize};
use millpond::model::{
    Core, Doubt, Flags, Found, Keeper, Lease, Line, Loan, Reservation, Search, Size, State, Woken,
    reserve, sweep, try_acquire, wait,
};
use millpond::{IdleOrder, ObjectPool, OwnedObject};
use std::future::Future;
use std::ops::Deref;
use std::panic::Location;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, Waker};

pub use loom::future::block_on;
pub use loom::thread;
pub use millpond::model::set_home;

/// Every idle order, for the models in which the place of a slot matters.
pub const ORDERS: [IdleOrder; 3] = [IdleOrder::Recent, IdleOrder::Fifo, IdleOrder::Lifo];

/// Checks a model in every interleaving of at most two preemptions.
///
/// The bound is the environment's `LOOM_MAX_PREEMPTIONS` if that is set.
///
/// # Panics
///
/// If the model does, or if it blocks for ever, in any interleaving; or if there was only one
/// interleaving, since then nothing was checked.
pub fn check(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = builder.preemption_bound.or(Some(2));
    builder.max_branches = builder.max_branches.max(20_000);
    // Not one of loom's: it counts across interleavings.
    let interleavings = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counted = interleavings.clone();
    let began = std::time::Instant::now();
    builder.check(move || {
        counted.fetch_add(1, Relaxed);
        model();
    });
    let interleavings = interleavings.load(Relaxed);
    assert!(interleavings > 1, "the threads of the model do not meet");
    #[expect(clippy::print_stdout, reason = "libtest shows it with --nocapture")]
    {
        println!("{}: {interleavings} interleavings in {:.1?}", thread_name(), began.elapsed());
    }
}

fn thread_name() -> String {
    std::thread::current().name().unwrap_or("?").to_owned()
}

/// How many resources of one model are alive, and how many there have ever been.
#[derive(Clone)]
pub struct Census(Arc<(AtomicUsize, std::sync::atomic::AtomicUsize)>);

impl Default for Census {
    fn default() -> Self {
        Self(Arc::new((AtomicUsize::new(0), std::sync::atomic::AtomicUsize::new(0))))
    }
}

impl Census {
    /// A new resource.
    ///
    /// # Panics
    ///
    /// If it is one more than `most` (I2).
    #[must_use]
    pub fn born(&self, most: usize) -> Token {
        let alive = self.0.0.fetch_add(1, Relaxed) + 1;
        assert!(alive <= most, "I2: {alive} alive where {most} are allowed");
        self.0.1.fetch_add(1, Relaxed);
        Token { uses: Cell::new(0), held: AtomicBool::new(false), era: 0, census: self.clone() }
    }

    /// How many are alive. The caller has joined the threads that may change it.
    #[must_use]
    pub fn alive(&self) -> usize {
        self.0.0.load(Relaxed)
    }

    /// How many there have ever been.
    #[must_use]
    pub fn ever(&self) -> usize {
        self.0.1.load(Relaxed)
    }
}

/// A resource that notices two holders at once (I1) and unpublished writes (I6).
pub struct Token {
    /// Loom reports an access that the one before does not happen before.
    uses: Cell<u32>,
    /// Relaxed, so that it orders nothing; but loom lets others run at each access.
    held: AtomicBool,
    /// In which of its station's eras it was connected.
    era: usize,
    census: Census,
}

impl Token {
    /// Uses the resource as only its holder may; answers how many uses there were before.
    ///
    /// # Panics
    ///
    /// If somebody else uses it at the same time (I1), or if the last use does not happen before
    /// this one (I6).
    pub fn use_it(&self) -> u32 {
        assert!(!self.held.swap(true, Relaxed), "I1: two holders");
        let uses = self.uses.get();
        self.uses.set(uses + 1);
        self.held.store(false, Relaxed);
        uses
    }
}

impl Drop for Token {
    fn drop(&mut self) {
        // Loom: after a model has failed its objects must not be touched.
        if !std::thread::panicking() {
            let before = self.census.0.0.fetch_sub(1, Relaxed);
            assert!(before > 0, "I8: dropped twice");
        }
    }
}

/// A pool of `objects` tokens with room for `capacity`.
///
/// # Panics
///
/// If the numbers are out of range.
#[must_use]
pub fn pool_of(
    objects: usize,
    capacity: usize,
    shards: usize,
    order: IdleOrder,
    census: &Census,
) -> ObjectPool<Token> {
    ObjectPool::builder(capacity)
        .shards(shards)
        .order(order)
        .build_from((0..objects).map(|_| census.born(capacity)))
        .expect("the numbers are in range")
}

/// A full pool that makes new tokens for vacant places.
///
/// One more than the capacity may be alive: the one that has just been detached.
///
/// # Panics
///
/// If the numbers are out of range.
#[must_use]
pub fn making_pool(capacity: usize, shards: usize, census: &Census) -> ObjectPool<Token> {
    let census = census.clone();
    ObjectPool::builder(capacity)
        .shards(shards)
        .build(move || census.born(capacity + 1))
        .expect("the numbers are in range")
}

/// Acquires as an async caller does, and uses the object.
///
/// # Panics
///
/// If the pool is closed.
#[must_use]
pub fn acquire(pool: &ObjectPool<Token>) -> OwnedObject<Token> {
    let object = block_on(pool.acquire_owned()).expect("the pool is open");
    object.use_it();
    object
}

/// A waiter: a thread of the given home that acquires, and keeps what it gets until it is joined.
#[must_use]
pub fn waiter(pool: &ObjectPool<Token>, home: usize) -> thread::JoinHandle<OwnedObject<Token>> {
    let pool = pool.clone();
    thread::spawn(move || {
        set_home(home);
        acquire(&pool)
    })
}

/// Polls once, with a waker that wakes nobody.
pub fn poll_once<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

/// The law at the end (I3): nobody waits, and each of `objects` objects can be acquired again.
///
/// # Panics
///
/// If a slot is lost, or one too many is there.
pub fn assert_conserved(pool: &ObjectPool<Token>, objects: usize) {
    let counts = pool.counts();
    assert_eq!(counts.waiters, 0, "somebody still counts as a waiter");
    assert_eq!(counts.idle, objects, "I3: not all that should be idle is");
    assert_eq!(counts.vacant, pool.capacity() - objects, "I3: not all that should be vacant is");
    let all: Vec<_> =
        (0..objects).map(|_| pool.try_acquire().expect("I3: a slot is lost")).collect();
    assert!(pool.try_acquire().is_err(), "I3: a slot too many");
    for object in &all {
        object.use_it();
    }
}

/// A connection of a [`Station`], on loan.
pub type Connection = Loan<Arc<Station>>;

/// A keeper that connects by itself, at once, and may fail a given number of times.
///
/// It stands for the managed pool's connector, whose tasks need a runtime.
pub struct Station {
    core: Core<Self>,
    census: Census,
    failures: std::sync::atomic::AtomicUsize,
    /// Resources of an earlier one are too old.
    era: AtomicUsize,
    /// It connects for nobody: whoever is told to look again does so.
    lone: bool,
}

impl Station {
    /// A station whose slots are all vacant, and whose first so many connects fail.
    #[must_use]
    pub fn new(capacity: usize, shards: usize, failures: usize, census: &Census) -> Arc<Self> {
        Self::with_order(capacity, shards, IdleOrder::Recent, failures, census)
    }

    /// A station of the given size, whose connects succeed.
    #[must_use]
    pub fn sized(size: Size, order: IdleOrder, census: &Census) -> Arc<Self> {
        Self::with_size(size, order, 0, false, census)
    }

    /// A station that stands for a pool whose runtime has ended: it tells waiters of a vacant slot, and
    /// they fill it. Its only slot is connected and lent to the caller.
    ///
    /// # Panics
    ///
    /// If that slot is not vacant, as the core then has a bug.
    #[must_use]
    pub fn lone(shards: usize, census: &Census) -> (Arc<Self>, Connection) {
        let size = Size::new(1, shards);
        let station = Self::with_size(size, IdleOrder::Recent, 0, true, census);
        let lent = station.open();
        (station, lent)
    }

    fn with_order(
        capacity: usize,
        shards: usize,
        order: IdleOrder,
        failures: usize,
        census: &Census,
    ) -> Arc<Self> {
        Self::with_size(Size::new(capacity, shards), order, failures, false, census)
    }

    fn with_size(
        size: Size,
        order: IdleOrder,
        failures: usize,
        lone: bool,
        census: &Census,
    ) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            core: Core::new(me, size, order),
            census: census.clone(),
            failures: failures.into(),
            era: AtomicUsize::new(0),
            lone,
        })
    }

    /// A station whose slots are all connected and lent to the caller.
    ///
    /// # Panics
    ///
    /// If there are not `N` slots, as the core then has a bug.
    #[must_use]
    pub fn lent<const N: usize>(
        shards: usize,
        order: IdleOrder,
        census: &Census,
    ) -> (Arc<Self>, [Connection; N]) {
        let station = Self::with_order(N, shards, order, 0, census);
        let lent = [(); N].map(|()| {
            let reservation = station.reserve().expect("a slot is vacant");
            reservation.fill(station.connect()).lend(Location::caller())
        });
        (station, lent)
    }

    /// A connection that is idle, if nobody waits.
    #[must_use]
    pub fn try_acquire(self: &Arc<Self>) -> Option<Connection> {
        loop {
            match try_acquire(self, Location::caller()) {
                Found::Ready(loan) => return Some(loan),
                Found::Flagged(lease) => Self::doubt(lease, Doubt::Flagged),
                Found::Nothing => return None,
            }
        }
    }

    /// How many wait.
    #[must_use]
    pub fn waiters(&self) -> usize {
        self.core.waiters()
    }

    /// The same as `try_acquire`; a connection that is flagged comes as it is.
    #[must_use]
    pub fn find(self: &Arc<Self>) -> Found<Arc<Self>> {
        try_acquire(self, Location::caller())
    }

    /// Takes a vacant slot, connects, and lends.
    ///
    /// # Panics
    ///
    /// If none is vacant.
    #[must_use]
    pub fn open(self: &Arc<Self>) -> Connection {
        let reservation = self.reserve().expect("a slot is vacant");
        reservation.fill(self.connect()).lend(Location::caller())
    }

    /// The right to connect, if a slot is vacant.
    #[must_use]
    pub fn reserve(self: &Arc<Self>) -> Option<Reservation<Arc<Self>>> {
        reserve(self.clone())
    }

    /// A connection that succeeds.
    #[must_use]
    pub fn connect(&self) -> Token {
        let mut token = self.census.born(self.core.capacity());
        token.era = self.era.load(Relaxed);
        token
    }

    /// Whether a connection is of the present era, as far as the caller has heard of it.
    #[must_use]
    pub fn is_new(&self, token: &Token) -> bool {
        token.era == self.era.load(Relaxed)
    }

    /// Every connection that there is now is too old.
    pub fn invalidate(&self) {
        self.mark_old();
        self.alert_and_search();
    }

    /// The first half of it: the flags.
    pub fn mark_old(&self) {
        self.era.fetch_add(1, Relaxed);
        self.core.raise_all(Flags::LOOK);
    }

    /// The second half of it.
    pub fn alert_and_search(&self) {
        self.core.alert();
        self.look_over();
    }

    /// Changes the size, as the pool does.
    pub fn resize(&self, size: usize) {
        if size < self.core.resize(size) {
            self.core.raise_all(Flags::LOOK);
            self.alert_and_search();
        }
        self.vacancy();
    }

    /// Searches for what is flagged.
    fn look_over(&self) {
        let mut search = Search::new(self);
        while let Some(lease) = search.next(|_| false) {
            if let Some(lease) = Self::examine(lease) {
                search.restore(lease);
            }
        }
    }

    /// Looks at a connection that is flagged; ends it if it has to go.
    fn examine<R: Deref<Target = Self> + Clone>(mut lease: Lease<R>) -> Option<Lease<R>> {
        lease.lower(Flags::LOOK);
        if !lease.keeper().is_new(lease.resource()) {
            drop(lease.begin(State::Closing));
            return None;
        }
        match lease.begin_leaving() {
            Some(trial) => {
                drop(trial);
                None
            }
            None => Some(lease),
        }
    }

    /// Tells the first waiter to look again, as the pool does when a connect has failed.
    pub fn nudge(&self) {
        self.core.nudge();
    }

    /// Closes, and ends what is idle.
    pub fn close(&self) {
        self.core.close();
        sweep(self);
    }

    /// Waits in line as the managed pool's acquire does.
    ///
    /// # Panics
    ///
    /// If the core is closed.
    #[must_use]
    pub fn acquire(self: &Arc<Self>) -> Connection {
        block_on(self.acquire_in(Line::General, usize::MAX)).expect("the core is open")
    }

    /// Acquires in a line of so many waiters at the most; `None` if it is full, or the core closed.
    pub async fn acquire_in(self: &Arc<Self>, line: Line, most: usize) -> Option<Connection> {
        loop {
            if let Some(loan) = self.try_acquire() {
                return Some(loan);
            }
            match wait(self, line, most).await {
                Woken::Lease(lease) if lease.flags().has(Flags::LOOK) => {
                    Self::doubt(lease, Doubt::Flagged);
                }
                Woken::Lease(lease) => return Some(lease.lend(Location::caller())),
                Woken::Vacant(reservation) => {
                    return Some(reservation.fill(self.connect()).lend(Location::caller()));
                }
                Woken::LineFull => return None,
                Woken::LookAgain if self.lone => {
                    if let Some(reservation) = self.reserve() {
                        return Some(reservation.fill(self.connect()).lend(Location::caller()));
                    }
                }
                Woken::LookAgain => {}
            }
            if self.core.is_closed() {
                return None;
            }
        }
    }

    /// The law at the end (I3).
    ///
    /// # Panics
    ///
    /// If a slot is lost, if there are more or fewer in service than there are to be, if an idle one
    /// is flagged or too old, or if somebody still counts as a waiter.
    pub fn assert_conserved(self: &Arc<Self>) {
        let counts = self.core.counts();
        assert_eq!(counts.waiters, 0, "somebody still counts as a waiter");
        assert_eq!(counts.idle + counts.vacant, counts.in_service(), "I3: not all is at rest");
        assert_eq!(counts.in_service(), self.core.limit(), "more or less in service than there is");
        let idle: Vec<_> = (0..counts.idle)
            .map(|_| match self.find() {
                Found::Ready(loan) => loan,
                Found::Flagged(_) => panic!("nobody has looked at a flagged slot"),
                Found::Nothing => panic!("I3: an idle slot is lost"),
            })
            .collect();
        for loan in &idle {
            assert!(self.is_new(loan.resource()), "an old connection is still idle");
        }
        let vacant: Vec<_> = (0..counts.vacant)
            .map(|_| self.reserve().expect("I3: a vacant slot is lost"))
            .collect();
        assert!(self.reserve().is_none(), "I3: a slot too many");
        assert_eq!(self.census.alive(), idle.len());
        drop((idle, vacant));
    }
}

impl Keeper for Station {
    type Resource = Token;

    fn core(&self) -> &Core<Self> {
        &self.core
    }

    fn flagged(&self) {
        // At once, as the pool does it. A search at the end would find what one that comes too early misses.
        self.look_over();
    }

    fn doubt<R: Deref<Target = Self> + Clone>(lease: Lease<R>, _: Doubt) {
        drop(Self::examine(lease));
    }

    fn vacancy(&self) {
        if self.lone {
            if self.core.has_vacant() {
                self.core.nudge();
            }
            return;
        }
        while self.core.waiters() > 0 {
            let Some(reservation) = reserve(self) else {
                return;
            };
            let fails = self
                .failures
                .fetch_update(Relaxed, Relaxed, |failures| failures.checked_sub(1))
                .is_ok();
            // Dropped, the right goes back and this is called again; filled, the slot goes to
            // whoever is first in line.
            if !fails {
                drop(reservation.fill(self.connect()));
            }
        }
    }
}
