//! `ObjectPool`: the core alone, with objects that are already there.
//!
//! Not here: anything that connects, checks or closes; see `Pool`.

use crate::core::{
    Core, Counts, Doubt, Found, IdleOrder, Keeper, Lease, Line, Loan, Size, State, Woken,
    default_shards, offer_vacant, reserve, sweep, try_acquire, try_acquire_owned, wait,
    wait_blocking,
};
use crate::error::{AcquireObjectError, AddError, ConfigError, TryAcquireError};
use crate::panics::caught;
use std::fmt;
use std::future::{Future, poll_fn};
use std::ops::Deref;
use std::panic::Location;
use std::pin::pin;
use std::sync::{Arc, Weak};
use std::task::Poll;
use std::time::{Duration, Instant};

/// A pool of objects that are already there: buffers, parsers, scratch space, handles.
///
/// It needs no runtime: [`acquire`](Self::acquire) works on any executor, and
/// [`acquire_blocking`](Self::acquire_blocking) on any thread. Both wait in the same line, first come,
/// first served, of which each [shard](ObjectPoolBuilder::shards) has one. A clone is another handle to the
/// same pool. When the last handle is dropped, the pool is [closed](Self::close); guards that are still out
/// go on working, and drop their objects when they are dropped.
///
/// A pool that was made with a function ([`new`](Self::new)) makes a new object when it is asked
/// for one and a place is vacant: after a [`detach`](Object::detach), or after an object was lost
/// because its holder panicked. A pool that was made from objects ([`from_iter`](Self::from_iter))
/// has those and what is [added](Self::add).
///
/// A panic beside it, or in its functions, leaves it in order: it is [`UnwindSafe`](std::panic::UnwindSafe)
/// whatever the objects are, and an object in a guard that a panic drops is dropped.
///
/// # Cost
///
/// Acquire and release allocate nothing, take no lock and read no clock while nobody waits; a wait
/// allocates nothing either.
///
/// # Examples
///
/// ```
/// use millpond::ObjectPool;
///
/// let pool = ObjectPool::new(4, || Vec::<u8>::with_capacity(16 << 10));
/// let mut buffer = pool.acquire_blocking()?;
/// buffer.extend_from_slice(b"hello");
/// drop(buffer); // back in the pool, as it is
/// assert_eq!(pool.counts().idle, 4);
/// # Ok::<(), millpond::AcquireObjectError>(())
/// ```
pub struct ObjectPool<T> {
    shared: Arc<Shared<T>>,
    /// Closes the pool when the last handle goes, guards or not.
    handles: Arc<LastHandle<T>>,
}

/// Makes an object.
type Make<T> = Box<dyn Fn() -> T + Send + Sync>;
/// Prepares an object for its next user; false: throw it away.
type Reset<T> = Box<dyn Fn(&mut T) -> bool + Send + Sync>;

struct Shared<T> {
    core: Core<Self>,
    make: Option<Make<T>>,
    reset: Option<Reset<T>>,
}

impl<T> Shared<T> {
    /// Ends waiters, and drops what is idle, so that one whose drop panics harms nobody.
    fn close(&self) {
        self.core.close();
        sweep(self);
    }
}

struct LastHandle<T>(Arc<Shared<T>>);

impl<T> Drop for LastHandle<T> {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl<T> Keeper for Shared<T> {
    type Resource = T;

    #[inline]
    fn core(&self) -> &Core<Self> {
        &self.core
    }

    fn vacancy(&self) {
        // The object is made by the one who gets the slot, on its own stack: `make` may panic.
        if self.make.is_some() {
            offer_vacant(self);
        }
    }

    #[inline]
    fn inspect(&self, object: &mut T) -> Option<Doubt> {
        if std::thread::panicking() {
            return Some(Doubt::Interrupted);
        }
        let reset = self.reset.as_ref()?;
        let fit = caught(|| reset(object)).unwrap_or(false);
        if fit { None } else { Some(Doubt::Broken) }
    }

    fn doubt<R: Deref<Target = Self> + Clone>(mut lease: Lease<R>, _: Doubt) {
        // The object is dropped, and its place is vacant.
        drop(lease.begin(State::Closing));
    }
}

/// Settings of an [`ObjectPool`].
///
/// # Examples
///
/// ```
/// use millpond::{IdleOrder, ObjectPool};
///
/// let pool = ObjectPool::builder(8)
///     .order(IdleOrder::Lifo)
///     .reset(|buffer: &mut Vec<u8>| {
///         buffer.clear();
///         buffer.capacity() <= 1 << 20 // let go of the ones that have grown too large
///     })
///     .build(|| Vec::with_capacity(4096))?;
/// # Ok::<(), millpond::ConfigError>(())
/// ```
pub struct ObjectPoolBuilder<T> {
    capacity: usize,
    shards: Option<usize>,
    order: IdleOrder,
    reset: Option<Reset<T>>,
}

impl<T> ObjectPoolBuilder<T> {
    /// The order in which idle objects are handed out. Default: [`IdleOrder::Recent`].
    #[must_use]
    pub fn order(mut self, order: IdleOrder) -> Self {
        self.order = order;
        self
    }

    /// The number of shards: a power of two, from 1 to 256. One shard is strictly first come,
    /// first served; more scale with threads. Default: the largest power of two that is neither
    /// above the machine's parallelism nor above half the capacity.
    #[must_use]
    pub fn shards(mut self, shards: usize) -> Self {
        self.shards = Some(shards);
        self
    }

    /// A function that prepares a released object for its next user, on the thread that releases
    /// it. If it answers `false`, or panics, the object is dropped and its place is vacant.
    /// Default: none; objects are handed on as they are.
    #[must_use]
    pub fn reset(mut self, reset: impl Fn(&mut T) -> bool + Send + Sync + 'static) -> Self {
        self.reset = Some(Box::new(reset));
        self
    }

    /// Builds the pool and fills it with objects from `make`, which it keeps for replacements.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] if the capacity or the number of shards is out of range.
    pub fn build(
        self,
        make: impl Fn() -> T + Send + Sync + 'static,
    ) -> Result<ObjectPool<T>, ConfigError> {
        let capacity = self.capacity;
        let pool = self.finish(Some(Box::new(make)))?;
        for _ in 0..capacity {
            let make = pool.shared.make.as_ref().map(|make| make());
            pool.fill(make);
        }
        Ok(pool)
    }

    /// Builds the pool with the objects of `objects`, and as many vacant places as remain.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] if the capacity or the number of shards is out of range, or if there are
    /// more objects than the capacity.
    pub fn build_from(
        self,
        objects: impl IntoIterator<Item = T>,
    ) -> Result<ObjectPool<T>, ConfigError> {
        let capacity = self.capacity;
        let pool = self.finish(None)?;
        for object in objects {
            if pool.add(object).is_err() {
                return Err(ConfigError::new(
                    "capacity",
                    capacity,
                    "must be at least the number of objects",
                ));
            }
        }
        Ok(pool)
    }

    fn finish(self, make: Option<Make<T>>) -> Result<ObjectPool<T>, ConfigError> {
        crate::error::check_capacity("capacity", self.capacity)?;
        let shards = self.shards.unwrap_or_else(|| default_shards(self.capacity));
        crate::error::check_shards(shards)?;
        let shared = Arc::new_cyclic(|me| Shared {
            core: Core::new(me, Size::new(self.capacity, shards), self.order),
            make,
            reset: self.reset,
        });
        let handles = Arc::new(LastHandle(shared.clone()));
        Ok(ObjectPool { shared, handles })
    }
}

impl<T> ObjectPool<T> {
    /// A pool of `capacity` objects, made now by `make`, which it keeps for replacements.
    ///
    /// # Panics
    ///
    /// If `capacity` is 0 or above 1,048,576; [`builder`](Self::builder) has an error instead. If
    /// `make` panics.
    pub fn new(capacity: usize, make: impl Fn() -> T + Send + Sync + 'static) -> Self {
        match Self::builder(capacity).build(make) {
            Ok(pool) => pool,
            Err(error) => panic!("{error}"),
        }
    }

    /// Settings other than the defaults, for a pool of `capacity` objects (1 to 1,048,576).
    #[must_use]
    pub fn builder(capacity: usize) -> ObjectPoolBuilder<T> {
        ObjectPoolBuilder { capacity, shards: None, order: IdleOrder::default(), reset: None }
    }

    /// Acquires an object, waiting in line if none is idle.
    ///
    /// # Errors
    ///
    /// - [`AcquireObjectError::Closed`] if the pool is closed, before or meanwhile.
    ///
    /// # Panics
    ///
    /// If the pool's own `make` panics; it is called only if a place is vacant.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future gives up the place in line and nothing else.
    ///
    /// # Cost
    ///
    /// No allocation, also when it waits; no lock and no clock when it does not.
    ///
    /// # Examples
    ///
    /// ```
    /// # pollster::block_on(async {
    /// let pool = millpond::ObjectPool::new(2, String::new);
    /// let mut text = pool.acquire().await?;
    /// text.push_str("scratch");
    /// # Ok::<(), millpond::AcquireObjectError>(()) }).unwrap();
    /// ```
    #[track_caller]
    #[inline]
    pub fn acquire(
        &self,
    ) -> impl Future<Output = Result<Object<'_, T>, AcquireObjectError>> + use<'_, T> {
        let caller = Location::caller();
        async move {
            let shared = &*self.shared;
            if let Found::Ready(loan) = try_acquire(&shared, caller) {
                return Ok(Object { loan });
            }
            Ok(Object { loan: acquire_slow(shared, caller).await? })
        }
    }

    /// Acquires an object that is not tied to this handle's lifetime, for one `Arc` clone more.
    ///
    /// # Errors
    ///
    /// As [`acquire`](Self::acquire); so are its panics and its cancel safety. It keeps no handle: if
    /// the last one is dropped while it waits, it fails with [`AcquireObjectError::Closed`].
    #[track_caller]
    #[inline]
    pub fn acquire_owned(
        &self,
    ) -> impl Future<Output = Result<OwnedObject<T>, AcquireObjectError>> + use<T> {
        let caller = Location::caller();
        let shared = self.shared.clone();
        async move {
            let shared = match try_acquire_owned(shared, caller) {
                Ok(loan) => return Ok(OwnedObject { loan }),
                // Whatever else was found goes back before anybody waits.
                Err((shared, _)) => shared,
            };
            Ok(OwnedObject { loan: acquire_slow(shared, caller).await? })
        }
    }

    /// Acquires an object, but gives up when `deadline` completes: a timer of any runtime, or
    /// anything else.
    ///
    /// # Errors
    ///
    /// - [`AcquireObjectError::Timeout`] if `deadline` completed first. It is not polled if an
    ///   object is idle.
    /// - [`AcquireObjectError::Closed`] as for [`acquire`](Self::acquire).
    ///
    /// # Panics
    ///
    /// As [`acquire`](Self::acquire).
    ///
    /// # Cancel safety
    ///
    /// As [`acquire`](Self::acquire).
    ///
    /// # Examples
    ///
    /// ```
    /// use millpond::{AcquireObjectError, ObjectPool};
    ///
    /// # pollster::block_on(async {
    /// let pool = ObjectPool::new(1, || ());
    /// let held = pool.acquire().await?;
    /// let gave_up = pool.acquire_until(std::future::ready(())).await;
    /// assert!(matches!(gave_up, Err(AcquireObjectError::Timeout)));
    /// # Ok::<(), AcquireObjectError>(()) }).unwrap();
    /// ```
    #[track_caller]
    #[inline]
    pub fn acquire_until<D: Future>(
        &self,
        deadline: D,
    ) -> impl Future<Output = Result<Object<'_, T>, AcquireObjectError>> + use<'_, T, D> {
        let caller = Location::caller();
        async move {
            let mut acquire = pin!(acquire_slow(&*self.shared, caller));
            let mut deadline = pin!(deadline);
            poll_fn(|cx| {
                if let Poll::Ready(acquired) = acquire.as_mut().poll(cx) {
                    return Poll::Ready(acquired.map(|loan| Object { loan }));
                }
                deadline.as_mut().poll(cx).map(|_| Err(AcquireObjectError::Timeout))
            })
            .await
        }
    }

    /// Acquires an object, blocking the thread while it waits in line.
    ///
    /// Not for asynchronous tasks: the thread that it blocks may be the one that would run the task which
    /// holds the object, and then it waits for good. They have [`acquire`](Self::acquire).
    ///
    /// # Errors
    ///
    /// As [`acquire`](Self::acquire); so are its panics.
    ///
    /// # Cost
    ///
    /// No allocation, except on a thread's first wait.
    #[track_caller]
    #[inline]
    pub fn acquire_blocking(&self) -> Result<Object<'_, T>, AcquireObjectError> {
        acquire_blocking(&&*self.shared, Location::caller(), None).map(|loan| Object { loan })
    }

    /// Acquires an object, blocking the thread for `limit` at the most.
    ///
    /// # Errors
    ///
    /// - [`AcquireObjectError::Timeout`] if `limit` passed first. Zero looks once.
    /// - [`AcquireObjectError::Closed`] as for [`acquire`](Self::acquire).
    ///
    /// # Panics
    ///
    /// As [`acquire`](Self::acquire).
    #[track_caller]
    #[inline]
    pub fn acquire_blocking_timeout(
        &self,
        limit: Duration,
    ) -> Result<Object<'_, T>, AcquireObjectError> {
        acquire_blocking(&&*self.shared, Location::caller(), Some(limit))
            .map(|loan| Object { loan })
    }

    /// As [`acquire_blocking`](Self::acquire_blocking), for an object that is not tied to this handle's
    /// lifetime.
    ///
    /// # Errors
    ///
    /// As [`acquire`](Self::acquire); so are its panics.
    ///
    /// # Examples
    ///
    /// ```
    /// use millpond::ObjectPool;
    /// use std::thread;
    ///
    /// let pool = ObjectPool::new(2, String::new);
    /// let mut text = pool.acquire_blocking_owned()?;
    /// let writer = thread::spawn(move || text.push_str("moved to another thread"));
    /// # writer.join().unwrap();
    /// # Ok::<(), millpond::AcquireObjectError>(())
    /// ```
    #[track_caller]
    #[inline]
    pub fn acquire_blocking_owned(&self) -> Result<OwnedObject<T>, AcquireObjectError> {
        acquire_blocking(&self.shared, Location::caller(), None).map(|loan| OwnedObject { loan })
    }

    /// As [`acquire_blocking_owned`](Self::acquire_blocking_owned), for `limit` at the most.
    ///
    /// # Errors
    ///
    /// As [`acquire_blocking_timeout`](Self::acquire_blocking_timeout); so are its panics.
    #[track_caller]
    #[inline]
    pub fn acquire_blocking_owned_timeout(
        &self,
        limit: Duration,
    ) -> Result<OwnedObject<T>, AcquireObjectError> {
        acquire_blocking(&self.shared, Location::caller(), Some(limit))
            .map(|loan| OwnedObject { loan })
    }

    /// Acquires an object if one is idle and nobody waits for it; never waits, never makes one.
    ///
    /// # Errors
    ///
    /// - [`TryAcquireError::Empty`] if none is idle, or if others wait.
    /// - [`TryAcquireError::Closed`] if the pool is closed.
    ///
    /// # Cost
    ///
    /// A hit is one of [`acquire`](Self::acquire). To find none takes a look at each shard, and neither allocates
    /// nor takes a lock or reads a clock.
    #[track_caller]
    #[inline]
    pub fn try_acquire(&self) -> Result<Object<'_, T>, TryAcquireError> {
        acquire_now(&&*self.shared, Location::caller()).map(|loan| Object { loan })
    }

    /// As [`try_acquire`](Self::try_acquire), for an object that is not tied to this handle's lifetime, for one
    /// `Arc` clone more.
    ///
    /// # Errors
    ///
    /// As [`try_acquire`](Self::try_acquire).
    #[track_caller]
    #[inline]
    pub fn try_acquire_owned(&self) -> Result<OwnedObject<T>, TryAcquireError> {
        acquire_now(&self.shared, Location::caller()).map(|loan| OwnedObject { loan })
    }

    /// Adds an object, if a place is vacant; whoever waits first gets it.
    ///
    /// # Errors
    ///
    /// - [`AddError::Full`] if no place is vacant.
    /// - [`AddError::Closed`] if the pool is closed.
    ///
    /// Both give the object back.
    ///
    /// # Examples
    ///
    /// ```
    /// use millpond::{AddError, ObjectPool};
    ///
    /// let pool: ObjectPool<&str> = ["one", "two"].into_iter().collect();
    /// assert!(matches!(pool.add("three"), Err(AddError::Full("three"))));
    /// let mine = pool.try_acquire().unwrap().detach();
    /// pool.add("three").unwrap();
    /// # assert_eq!(mine, "two");
    /// ```
    pub fn add(&self, object: T) -> Result<(), AddError<T>> {
        self.fill(Some(object)).map_or(Ok(()), |object| {
            Err(if self.is_closed() { AddError::Closed(object) } else { AddError::Full(object) })
        })
    }

    /// Puts an object into a vacant slot, or gives it back.
    fn fill(&self, object: Option<T>) -> Option<T> {
        match (reserve(&*self.shared), object) {
            (Some(reservation), Some(object)) => {
                drop(reservation.fill(object));
                None
            }
            (_, object) => object,
        }
    }

    /// Closes the pool for good: idle objects are dropped now, the others when they are released,
    /// and everyone who waits gets [`AcquireObjectError::Closed`]. Calling it again does nothing. An
    /// object that panics while it is dropped harms nobody: the panic hook has reported it.
    ///
    /// # Examples
    ///
    /// ```
    /// use millpond::{AcquireObjectError, ObjectPool};
    ///
    /// let pool = ObjectPool::new(2, String::new);
    /// let held = pool.acquire_blocking()?;
    /// pool.close();
    /// assert_eq!(pool.counts().idle, 0);
    /// assert!(matches!(pool.acquire_blocking(), Err(AcquireObjectError::Closed)));
    /// drop(held); // and its object
    /// # Ok::<(), AcquireObjectError>(())
    /// ```
    pub fn close(&self) {
        self.shared.close();
    }

    /// Whether the pool is closed. `true` stays true; `false` may be out of date at once.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.shared.core.is_closed()
    }

    /// A handle that does not keep the pool open, such as for what the objects themselves hold.
    #[must_use]
    pub fn downgrade(&self) -> WeakObjectPool<T> {
        WeakObjectPool { handles: Arc::downgrade(&self.handles) }
    }

    /// The number of objects that the pool has room for.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.shared.core.capacity()
    }

    /// The places by state, and the number of waiters. Costs one pass over all places.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.shared.core.counts()
    }
}

#[cold]
async fn acquire_slow<T, R>(
    keeper: R,
    caller: &'static Location<'static>,
) -> Result<Loan<R>, AcquireObjectError>
where
    R: Deref<Target = Shared<T>> + Clone,
{
    loop {
        if let Found::Ready(loan) = try_acquire(&keeper, caller) {
            return Ok(loan);
        }
        if let Some(loan) = take_up(wait(&keeper, Line::General, usize::MAX).await, caller) {
            return Ok(loan);
        }
        if keeper.core.is_closed() {
            return Err(AcquireObjectError::Closed);
        }
    }
}

/// What a waiter does with what it was woken with.
fn take_up<T, R>(woken: Woken<R>, caller: &'static Location<'static>) -> Option<Loan<R>>
where
    R: Deref<Target = Shared<T>> + Clone,
{
    match woken {
        Woken::Lease(lease) => Some(lease.lend(caller)),
        Woken::Vacant(reservation) => {
            // Only a pool that can make objects offers vacant slots. If `make` panics, the
            // reservation offers the slot to the next in line.
            let object = reservation.keeper().make.as_ref().map(|make| make())?;
            let lease = reservation.fill(object);
            // Meanwhile; the sweep ends what is put back (I8).
            let is_open = !lease.keeper().core.is_closed();
            is_open.then(|| lease.lend(caller))
        }
        Woken::LookAgain | Woken::LineFull => None,
    }
}

#[inline]
fn acquire_now<T, R>(
    keeper: &R,
    caller: &'static Location<'static>,
) -> Result<Loan<R>, TryAcquireError>
where
    R: Deref<Target = Shared<T>> + Clone,
{
    match try_acquire(keeper, caller) {
        Found::Ready(loan) => Ok(loan),
        _ if keeper.core.is_closed() => Err(TryAcquireError::Closed),
        _ => Err(TryAcquireError::Empty),
    }
}

#[inline]
fn acquire_blocking<T, R>(
    keeper: &R,
    caller: &'static Location<'static>,
    limit: Option<Duration>,
) -> Result<Loan<R>, AcquireObjectError>
where
    R: Deref<Target = Shared<T>> + Clone,
{
    if let Found::Ready(loan) = try_acquire(keeper, caller) {
        return Ok(loan);
    }
    acquire_blocking_slow(keeper, caller, limit)
}

#[cold]
fn acquire_blocking_slow<T, R>(
    keeper: &R,
    caller: &'static Location<'static>,
    limit: Option<Duration>,
) -> Result<Loan<R>, AcquireObjectError>
where
    R: Deref<Target = Shared<T>> + Clone,
{
    // A limit too far away for the clock is no limit.
    let deadline = limit.and_then(|limit| Instant::now().checked_add(limit));
    loop {
        let woken = wait_blocking(keeper, Line::General, usize::MAX, deadline);
        if let Some(loan) = take_up(woken, caller) {
            return Ok(loan);
        }
        if keeper.core.is_closed() {
            return Err(AcquireObjectError::Closed);
        }
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return Err(AcquireObjectError::Timeout);
        }
    }
}

/// An object on loan from an [`ObjectPool`]; dropping it gives it back.
#[must_use = "a guard that is dropped at once gives its object back"]
pub struct Object<'p, T> {
    loan: Loan<&'p Shared<T>>,
}

/// An object on loan that is not tied to a handle's lifetime; dropping it gives it back, or drops it
/// if the pool is closed by then.
#[must_use = "a guard that is dropped at once gives its object back"]
pub struct OwnedObject<T> {
    loan: Loan<Arc<Shared<T>>>,
}

macro_rules! object_guard {
    ($guard:ident<$($lifetime:lifetime,)? T>) => {
        impl<$($lifetime,)? T> $guard<$($lifetime,)? T> {
            /// Takes the object out of the pool for good; its place is vacant.
            #[must_use]
            pub fn detach(mut self) -> T {
                self.loan.recall().detach()
            }
        }

        crate::guard::access!($guard<$($lifetime,)? T>, T,);
    };
}

object_guard!(Object<'p, T>);
object_guard!(OwnedObject<T>);

impl<T> Clone for ObjectPool<T> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone(), handles: self.handles.clone() }
    }
}

/// A handle to an [`ObjectPool`] that does not keep it open.
pub struct WeakObjectPool<T> {
    handles: Weak<LastHandle<T>>,
}

impl<T> WeakObjectPool<T> {
    /// The pool, unless its last handle has been dropped.
    #[must_use]
    pub fn upgrade(&self) -> Option<ObjectPool<T>> {
        let handles = self.handles.upgrade()?;
        Some(ObjectPool { shared: handles.0.clone(), handles })
    }
}

impl<T> Clone for WeakObjectPool<T> {
    fn clone(&self) -> Self {
        Self { handles: self.handles.clone() }
    }
}

impl<T> fmt::Debug for WeakObjectPool<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WeakObjectPool")
    }
}

impl<T> FromIterator<T> for ObjectPool<T> {
    /// A pool of exactly these objects.
    ///
    /// # Panics
    ///
    /// If there is none, or more than 1,048,576.
    fn from_iter<I: IntoIterator<Item = T>>(objects: I) -> Self {
        let objects: Vec<T> = objects.into_iter().collect();
        match Self::builder(objects.len()).build_from(objects) {
            Ok(pool) => pool,
            Err(error) => panic!("{error}"),
        }
    }
}

impl<T> fmt::Debug for ObjectPool<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ObjectPool")
            .field("counts", &self.counts())
            .field("closed", &self.is_closed())
            .finish_non_exhaustive()
    }
}

impl<T> fmt::Debug for ObjectPoolBuilder<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ObjectPoolBuilder")
            .field("capacity", &self.capacity)
            .field("shards", &self.shards)
            .field("order", &self.order)
            .finish_non_exhaustive()
    }
}
