//! A plain model of a pool with one shard, and a driver that compares it with the real one.
//!
//! The pool runs on one thread, every future is polled by hand, and after each operation the
//! background work runs until nothing is left to do; so the model says exactly who is served, with
//! which resource, and who is woken. `tests/model.rs` feeds it random operations, `fuzz/` those of
//! a fuzzer.
//!
//! Mutants that it has caught: `hand_off` that finds nobody, a hand-off that is dropped with its
//! slot or without being counted back, `notify` without `additional`, a shelf in the wrong order,
//! `close` that wakes nobody or leaves the idle ones, a last dial that gives up, a verdict that
//! only one waiter hears. It cannot tell whether `serve` looks for waiters: on one thread nobody
//! waits while something is idle.
//!
//! Not here: races, which are the loom tests' business, and time.

#[cfg(feature = "tokio")]
mod managed;
mod objects;

use arbitrary::{Arbitrary, Unstructured};
use millpond::{AddError, Counts, IdleOrder, TryAcquireError};
use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll, Wake, Waker};

/// Something that is done to a pool. A number chooses among the waiters or guards there are.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub enum Operation {
    /// Start an acquire and poll it once.
    Acquire { owned: bool },
    /// Poll an acquire that waits.
    Poll(u8),
    /// Drop an acquire that waits.
    Cancel(u8),
    /// Drop a guard.
    Release(u8),
    /// Take a resource out of the pool.
    Detach(u8),
    /// Have a resource thrown away.
    Discard(u8),
    /// Add an object (`ObjectPool` only).
    Add,
    /// Acquire without waiting.
    TryAcquire,
    /// From now on, connects end like this (`Pool` only).
    Connects(Connects),
    /// Let the pause after a failed connect pass (`Pool` only).
    Pause,
    /// Close the pool, but only if the number is below [`CLOSE_BELOW`]: little happens afterwards.
    Close(u8),
    /// Change the capacity. Does nothing yet: pools have a fixed size. When they can be resized,
    /// this becomes the operation that does it, and recorded inputs stay valid.
    #[expect(dead_code, reason = "nothing reads the number yet")]
    Resize(u8),
}

/// How connects end.
#[derive(Arbitrary, Clone, Copy, Debug, PartialEq)]
pub enum Connects {
    Succeed,
    /// With an error that the pool retries.
    Fail,
    /// With an error that the manager calls permanent.
    Refuse,
}

const CLOSE_BELOW: u8 = 8;
/// More waiters than this show nothing new.
const MOST_WAITERS: usize = 9;
/// More operations than this in one case neither.
const MOST_OPERATIONS: u64 = 2_000;

/// Which pool, and how it is set up.
#[derive(Arbitrary, Clone, Copy, Debug)]
struct Setting {
    kind: Kind,
    order: Order,
    capacity: u8,
    /// How many objects a pool of given ones starts with.
    given: u8,
}

#[derive(Arbitrary, Clone, Copy, Debug, PartialEq)]
enum Kind {
    /// An `ObjectPool` that can make objects.
    Made,
    /// An `ObjectPool` of objects from elsewhere.
    Given,
    /// A `Pool`.
    Managed,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Order {
    Recent,
    Fifo,
    Lifo,
}

impl Setting {
    fn capacity(self) -> usize {
        usize::from(self.capacity % 4) + 1
    }

    /// How many resources there are at the start.
    fn stock(self) -> usize {
        match self.kind {
            Kind::Made => self.capacity(),
            Kind::Given => usize::from(self.given) % (self.capacity() + 1),
            Kind::Managed => 0,
        }
    }

    fn order(self) -> IdleOrder {
        match self.order {
            Order::Recent => IdleOrder::Recent,
            Order::Fifo => IdleOrder::Fifo,
            Order::Lifo => IdleOrder::Lifo,
        }
    }
}

/// Runs one case; answers how many operations it had. Panics where pool and model differ.
pub fn run(input: &mut Unstructured<'_>) -> arbitrary::Result<u64> {
    let setting = Setting::arbitrary(input)?;
    let script = std::iter::from_fn(|| {
        let more = !input.is_empty();
        more.then(|| Operation::arbitrary(input).ok()).flatten()
    });
    Ok(match setting.kind {
        Kind::Made | Kind::Given => objects::run(setting, script),
        #[cfg(feature = "tokio")]
        Kind::Managed => managed::run(setting, script),
        #[cfg(not(feature = "tokio"))]
        Kind::Managed => 0,
    })
}

/// What the pools hold: it has a number, and those that are alive are counted.
struct Resource {
    number: u64,
    /// It is to be thrown away when it comes back.
    spoilt: bool,
    supply: Arc<Supply>,
}

impl Drop for Resource {
    fn drop(&mut self) {
        self.supply.alive.fetch_sub(1, Relaxed);
    }
}

/// Makes resources, numbered from 1.
#[derive(Default)]
struct Supply {
    made: AtomicU64,
    alive: AtomicUsize,
}

impl Supply {
    fn make(self: &Arc<Self>) -> Resource {
        self.alive.fetch_add(1, Relaxed);
        let number = self.made.fetch_add(1, Relaxed) + 1;
        Resource { number, spoilt: false, supply: self.clone() }
    }
}

/// Why an acquire that was ready to wait got nothing.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Refusal {
    Closed,
    /// Connecting failed for good.
    Connect,
}

type Acquire<'p, G> = Pin<Box<dyn Future<Output = Result<G, Refusal>> + 'p>>;

/// A pool, as far as the driver is concerned.
trait Subject {
    type Guard<'p>
    where
        Self: 'p;

    fn acquire(&self, owned: bool) -> Acquire<'_, Self::Guard<'_>>;
    fn try_acquire(&self) -> Result<Self::Guard<'_>, TryAcquireError>;
    fn resource<'g>(guard: &'g Self::Guard<'_>) -> &'g Resource;
    fn detach(guard: Self::Guard<'_>) -> Resource;
    fn discard(guard: Self::Guard<'_>);
    fn close(&self);
    fn is_closed(&self) -> bool;
    fn counts(&self) -> Counts;

    fn add(&self, _resource: Resource) -> Result<(), AddError<Resource>> {
        unreachable!("BUG: this pool connects")
    }
    /// Runs the pool's own tasks until all of them wait.
    fn settle(&self) {}
    /// Lets the pause after a failed connect pass.
    fn pause(&self) {}
    fn connects(&self, _connects: Connects) {}
    fn totals(&self) -> Option<Totals> {
        None
    }
}

/// What only `Pool` counts.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Totals {
    created: u64,
    acquires: u64,
    detached: u64,
    discarded: u64,
    pool_closed: u64,
    closed: u64,
}

/// The idle resources, by number, in the order in which they are to be taken.
enum Idle {
    /// The last one, and the others, longest idle first.
    Recent(Option<u64>, VecDeque<u64>),
    Fifo(VecDeque<u64>),
    Lifo(Vec<u64>),
}

impl Idle {
    fn put(&mut self, number: u64) {
        match self {
            Self::Recent(last, others) => others.extend(last.replace(number)),
            Self::Fifo(queue) => queue.push_back(number),
            Self::Lifo(stack) => stack.push(number),
        }
    }

    fn take(&mut self) -> Option<u64> {
        match self {
            Self::Recent(last, others) => last.take().or_else(|| others.pop_front()),
            Self::Fifo(queue) => queue.pop_front(),
            Self::Lifo(stack) => stack.pop(),
        }
    }

    fn count(&self) -> usize {
        match self {
            Self::Recent(last, others) => last.iter().count() + others.len(),
            Self::Fifo(queue) => queue.len(),
            Self::Lifo(stack) => stack.len(),
        }
    }
}

/// The name of an acquire that waits.
type Name = u64;

/// What the next poll of an acquire that has been woken will say.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    /// It gets this resource.
    Served(u64),
    /// It makes one for the vacant slot that it was given.
    Makes,
    Refused(Refusal),
}

/// The pool as it ought to be.
struct Model {
    kind: Kind,
    capacity: usize,
    idle: Idle,
    vacant: usize,
    /// Vacant slots in the hands of those who are to make something for them.
    making: usize,
    in_use: usize,
    /// Who waits, in the order of arrival.
    line: VecDeque<Name>,
    /// Who has been woken and not been polled since.
    fates: BTreeMap<Name, Fate>,
    /// Resources made so far.
    made: u64,
    closed: bool,
    connects: Connects,
    /// A connect has failed, and the next attempt is for after the pause.
    pausing: bool,
    totals: Totals,
}

impl Model {
    fn new(setting: Setting) -> Self {
        let mut model = Self {
            kind: setting.kind,
            capacity: setting.capacity(),
            idle: match setting.order {
                Order::Recent => Idle::Recent(None, VecDeque::new()),
                Order::Fifo => Idle::Fifo(VecDeque::new()),
                Order::Lifo => Idle::Lifo(Vec::new()),
            },
            vacant: setting.capacity() - setting.stock(),
            making: 0,
            in_use: 0,
            line: VecDeque::new(),
            fates: BTreeMap::new(),
            made: 0,
            closed: false,
            connects: Connects::Succeed,
            pausing: false,
            totals: Totals::default(),
        };
        for _ in 0..setting.stock() {
            let number = model.make();
            model.idle.put(number);
        }
        model
    }

    fn make(&mut self) -> u64 {
        self.made += 1;
        self.made
    }

    /// A resource that is in use goes to the first in line, to the idle ones, or, if the pool is
    /// closed, to its end.
    fn give(&mut self, number: u64) {
        if self.closed {
            self.in_use -= 1;
            self.vacant += 1;
            self.totals.pool_closed += 1;
        } else if let Some(name) = self.line.pop_front() {
            self.fates.insert(name, Fate::Served(number));
        } else {
            self.in_use -= 1;
            self.idle.put(number);
        }
    }

    /// A resource comes into a vacant place.
    fn fill(&mut self, number: u64) {
        self.vacant -= 1;
        self.in_use += 1;
        self.give(number);
    }

    fn take_idle(&mut self) -> Option<u64> {
        let number = self.idle.take()?;
        self.in_use += 1;
        Some(number)
    }

    /// A new acquire: its outcome, or it waits in line.
    fn acquire(&mut self, name: Name) {
        if self.closed {
            self.fates.insert(name, Fate::Refused(Refusal::Closed));
            return;
        }
        // Nobody waits while something is idle, so nobody is overtaken.
        if let Some(number) = self.take_idle() {
            self.fates.insert(name, Fate::Served(number));
            return;
        }
        self.line.push_back(name);
        self.offer_vacant();
    }

    /// Vacant slots go to the first in line, to make something for them.
    fn offer_vacant(&mut self) {
        while self.kind == Kind::Made && self.vacant > 0 && !self.closed {
            let Some(name) = self.line.pop_front() else { return };
            self.fates.insert(name, Fate::Makes);
            self.vacant -= 1;
            self.making += 1;
        }
    }

    /// An acquire that has been woken is polled.
    fn hear(&mut self, name: Name) -> Option<Result<u64, Refusal>> {
        Some(match self.fates.remove(&name)? {
            Fate::Served(number) => Ok(number),
            Fate::Makes => {
                self.making -= 1;
                self.in_use += 1;
                Ok(self.make())
            }
            Fate::Refused(refusal) => Err(refusal),
        })
    }

    fn cancel(&mut self, name: Name) {
        self.line.retain(|&other| other != name);
        match self.fates.remove(&name) {
            Some(Fate::Served(number)) => self.give(number),
            Some(Fate::Makes) => {
                self.making -= 1;
                self.vacant += 1;
                self.offer_vacant();
            }
            Some(Fate::Refused(_)) | None => {}
        }
    }

    fn try_acquire(&mut self) -> Result<u64, TryAcquireError> {
        if self.closed {
            return Err(TryAcquireError::Closed);
        }
        self.take_idle().ok_or(TryAcquireError::Empty)
    }

    /// A resource that is in use leaves the pool.
    fn lose(&mut self) {
        self.in_use -= 1;
        self.vacant += 1;
        self.offer_vacant();
    }

    fn add(&mut self) -> Result<(), Refused> {
        let number = self.make();
        if self.closed {
            return Err(Refused::Closed);
        }
        if self.vacant == 0 {
            return Err(Refused::Full);
        }
        self.fill(number);
        Ok(())
    }

    fn close(&mut self) {
        self.closed = true;
        while let Some(number) = self.take_idle() {
            self.give(number);
        }
        // Whoever has not heard of a refusal hears of the close instead.
        for fate in self.fates.values_mut() {
            if *fate == Fate::Refused(Refusal::Connect) {
                *fate = Fate::Refused(Refusal::Closed);
            }
        }
        for name in std::mem::take(&mut self.line) {
            self.fates.insert(name, Fate::Refused(Refusal::Closed));
        }
    }

    /// The pool's own tasks run.
    fn settle(&mut self) {
        if self.closed {
            self.pausing = false;
        }
        let wanted = self.vacant > 0 && !self.line.is_empty();
        if self.kind != Kind::Managed || self.closed || self.pausing || !wanted {
            return;
        }
        match self.connects {
            Connects::Succeed => {
                while self.vacant > 0 && !self.line.is_empty() {
                    let number = self.make();
                    self.totals.created += 1;
                    self.fill(number);
                }
            }
            Connects::Fail => self.pausing = true,
            Connects::Refuse => {
                for name in std::mem::take(&mut self.line) {
                    self.fates.insert(name, Fate::Refused(Refusal::Connect));
                }
            }
        }
    }

    fn totals(&self) -> Totals {
        let Totals { detached, discarded, pool_closed, .. } = self.totals;
        Totals { closed: detached + discarded + pool_closed, ..self.totals }
    }
}

/// Why an object was not added.
#[derive(Debug, PartialEq)]
enum Refused {
    Closed,
    Full,
}

/// Counts wakes.
#[derive(Default)]
struct Wakes(AtomicUsize);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Relaxed);
    }
}

struct Waiter<'p, G> {
    name: Name,
    future: Acquire<'p, G>,
    wakes: Arc<Wakes>,
}

impl<G> Waiter<'_, G> {
    fn poll(&mut self) -> Poll<Result<G, Refusal>> {
        self.wakes.0.store(0, Relaxed);
        let waker = Waker::from(self.wakes.clone());
        self.future.as_mut().poll(&mut Context::from_waker(&waker))
    }

    fn is_woken(&self) -> bool {
        self.wakes.0.load(Relaxed) > 0
    }
}

/// The pool and its model, side by side.
struct Driver<'p, S: Subject> {
    pool: &'p S,
    supply: Arc<Supply>,
    model: Model,
    waiters: Vec<Waiter<'p, S::Guard<'p>>>,
    guards: Vec<S::Guard<'p>>,
    names: Name,
    history: History,
}

/// What has been done so far; printed if it ends in a panic.
struct History(Setting, Vec<Operation>);

impl Drop for History {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{:?}\n{:#?}", self.0, self.1);
        }
    }
}

/// Runs `script` on `pool`, and then lets go of everything.
fn drive<S: Subject>(
    pool: &S,
    supply: Arc<Supply>,
    setting: Setting,
    script: impl Iterator<Item = Operation>,
) -> u64 {
    let mut driver = Driver {
        pool,
        supply,
        model: Model::new(setting),
        waiters: Vec::new(),
        guards: Vec::new(),
        names: 0,
        history: History(setting, Vec::new()),
    };
    let mut operations = 0;
    driver.compare();
    for operation in script {
        if operations == MOST_OPERATIONS {
            break;
        }
        driver.history.1.push(operation);
        driver.apply(operation);
        driver.compare();
        operations += 1;
    }
    driver.finish();
    operations
}

/// The entry of `items` that `choice` stands for.
fn choose<T>(items: &mut Vec<T>, choice: u8) -> Option<T> {
    let index = usize::from(choice).checked_rem(items.len())?;
    Some(items.remove(index))
}

impl<'p, S: Subject> Driver<'p, S> {
    fn apply(&mut self, operation: Operation) {
        match operation {
            Operation::Acquire { owned } => self.acquire(owned),
            Operation::Poll(choice) => {
                if let Some(waiter) = choose(&mut self.waiters, choice) {
                    let at = usize::from(choice) % (self.waiters.len() + 1);
                    self.poll(at, waiter);
                }
            }
            Operation::Cancel(choice) => {
                if let Some(waiter) = choose(&mut self.waiters, choice) {
                    let fate = self.model.fates.get(&waiter.name).copied();
                    self.model.cancel(waiter.name);
                    drop(waiter);
                    if fate == Some(Fate::Refused(Refusal::Connect)) {
                        self.pass_word_on();
                    }
                }
            }
            Operation::Release(choice) => self.release(choice),
            Operation::Detach(choice) => self.lose(choice, false),
            Operation::Discard(choice) => self.lose(choice, true),
            Operation::Add => self.add(),
            Operation::TryAcquire => {
                let expected = self.model.try_acquire();
                self.model.totals.acquires += u64::from(expected.is_ok());
                let got = self.pool.try_acquire();
                let number = got.as_ref().map(|guard| S::resource(guard).number);
                assert_eq!(number, expected.as_ref().copied(), "try_acquire");
                self.guards.extend(got.ok());
            }
            Operation::Connects(connects) => {
                self.model.connects = connects;
                self.pool.connects(connects);
            }
            Operation::Pause => {
                self.model.pausing = false;
                self.pool.pause();
            }
            Operation::Close(choice) => {
                if choice < CLOSE_BELOW {
                    self.model.close();
                    self.pool.close();
                }
            }
            Operation::Resize(_) => {}
        }
        self.model.settle();
        self.pool.settle();
    }

    fn acquire(&mut self, owned: bool) {
        if self.waiters.len() == MOST_WAITERS {
            return;
        }
        self.names += 1;
        self.model.acquire(self.names);
        let future = self.pool.acquire(owned);
        let waiter = Waiter { name: self.names, future, wakes: Arc::default() };
        self.poll(self.waiters.len(), waiter);
    }

    /// Polls an acquire, and puts it back in its place `at` if it has to wait on.
    fn poll(&mut self, at: usize, mut waiter: Waiter<'p, S::Guard<'p>>) {
        let expected = self.model.hear(waiter.name);
        match waiter.poll() {
            Poll::Pending => {
                assert_eq!(expected, None, "acquire {} still waits", waiter.name);
                self.waiters.insert(at, waiter);
            }
            Poll::Ready(outcome) => {
                let number = outcome.as_ref().map(|guard| S::resource(guard).number);
                let number = number.map_err(|refusal| *refusal);
                assert_eq!(Some(number), expected, "outcome of acquire {}", waiter.name);
                self.model.totals.acquires += u64::from(outcome.is_ok());
                self.guards.extend(outcome.ok());
            }
        }
    }

    /// The word that a cancelled waiter has not heard goes to the next one, whom it does not concern:
    /// that one looks again, and joins the line at its end.
    fn pass_word_on(&mut self) {
        let Some(&name) = self.model.line.front() else { return };
        let at = self.waiters.iter().position(|waiter| waiter.name == name);
        let at = at.expect("whoever is in line waits");
        let waiter = self.waiters.remove(at);
        assert!(waiter.is_woken(), "acquire {name} has not got the word");
        self.model.line.rotate_left(1);
        self.poll(at, waiter);
    }

    fn release(&mut self, choice: u8) {
        if let Some(guard) = choose(&mut self.guards, choice) {
            self.model.give(S::resource(&guard).number);
            drop(guard);
        }
    }

    /// Takes a resource out of the pool for good.
    fn lose(&mut self, choice: u8, discard: bool) {
        let Some(guard) = choose(&mut self.guards, choice) else {
            return;
        };
        let number = S::resource(&guard).number;
        self.model.lose();
        if discard {
            self.model.totals.discarded += 1;
            S::discard(guard);
        } else {
            self.model.totals.detached += 1;
            let resource = S::detach(guard);
            assert_eq!(resource.number, number, "the resource that was detached");
        }
    }

    fn add(&mut self) {
        if self.model.kind == Kind::Managed {
            return;
        }
        let expected = self.model.add();
        let got = self.pool.add(self.supply.make());
        let got = got.map_err(|error| match error {
            AddError::Full(_) => Refused::Full,
            AddError::Closed(_) => Refused::Closed,
            _ => unreachable!("BUG: another reason"),
        });
        assert_eq!(got, expected, "add");
    }

    /// Compares everything that can be seen without changing it.
    fn compare(&self) {
        let model = &self.model;
        let counts = self.pool.counts();
        let seen = (counts.idle, counts.in_use, counts.vacant, counts.connecting, counts.waiters);
        let expected =
            (model.idle.count(), model.in_use, model.vacant, model.making, model.line.len());
        assert_eq!(seen, expected, "idle, in use, vacant, being made, waiters");
        assert_eq!(counts.capacity(), model.capacity, "{counts}");
        assert_eq!(counts.alive(), counts.idle + counts.in_use, "something is half done: {counts}");
        assert_eq!(self.supply.alive.load(Relaxed), counts.alive(), "resources that exist");
        assert_eq!(self.supply.made.load(Relaxed), model.made, "resources made");
        assert_eq!(self.pool.is_closed(), model.closed, "closed");
        if let Some(totals) = self.pool.totals() {
            assert_eq!(totals, model.totals(), "totals");
        }
        for waiter in &self.waiters {
            let wakes = waiter.wakes.0.load(Relaxed);
            let served = usize::from(model.fates.contains_key(&waiter.name));
            assert_eq!(wakes, served, "wakes of acquire {}", waiter.name);
        }
    }

    /// Lets go of everything: nothing may be lost.
    fn finish(&mut self) {
        while let Some(waiter) = self.waiters.pop() {
            self.model.cancel(waiter.name);
            drop(waiter);
            self.pool.settle();
            self.model.settle();
            self.compare();
        }
        while !self.guards.is_empty() {
            self.release(0);
            self.pool.settle();
            self.compare();
        }
        assert_eq!(self.model.in_use, 0, "BUG: the model lost something");
        assert_eq!(self.model.idle.count() + self.model.vacant, self.model.capacity);
    }
}
