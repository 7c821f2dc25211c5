//! A plain model of a pool with one shard, and a driver that compares it with the real one.
//!
//! The pool runs on one thread, every future is polled by hand, and after each operation the
//! background work runs until nothing is left to do; so the model says exactly who is served, with
//! which resource, who is woken, and why each resource ended. `tests/model.rs` feeds it random
//! operations, `fuzz/` those of a fuzzer.
//!
//! Mutants that it has caught: `hand_off` that finds nobody, a hand-off that is dropped with its
//! slot or without being counted back, `notify` without `additional`, a shelf in the wrong order,
//! `close` that wakes nobody or leaves the idle ones, a last dial that gives up, a verdict that
//! only one waiter hears; a resize that ends nothing idle, tells nobody, goes below what is reserved,
//! counts a wrong reason or mixes up the order of what stays; an invalidation that spares what is idle
//! or in use, or ends too much; a `retain` that counts as a check or as a use, or counts wrongly; a
//! drain that does not say so, never ends, ends too soon, is not told or counts what is detached; a
//! line that is never full, full for high priority or for who has been in it; a priority or a
//! reservation that is ignored; a leak that is told twice, or not when it comes back, or of who had
//! the slot before; a check or a reset that is left out or not counted; a hook that is not called, or
//! once too often. All but the order are under `MODEL` in `tests/mutants`, which shows it.
//!
//! It cannot tell whether `serve` looks for waiters: on one thread nobody waits while something that
//! he may have is idle.
//!
//! Read `book.rs` (what the model remembers of the slots) first, then `rules.rs` (what a pool ought
//! to do), then this.
//!
//! Not here: races, which are the loom tests' business, and time.

mod book;
#[cfg(feature = "tokio")]
mod managed;
mod objects;
mod rules;

use self::book::Totals;
use self::rules::{Fate, Model, Name, Refused};
use arbitrary::{Arbitrary, Unstructured};
use millpond::{AddError, ConfigError, Counts, IdleOrder, TryAcquireError};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll, Wake, Waker};

/// Something that is done to a pool. A number chooses among the waiters or guards there are.
///
/// An `ObjectPool` does nothing for those marked `Pool`.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub enum Operation {
    /// Start an acquire and poll it once.
    Acquire { owned: bool },
    /// The same with high priority (`Pool`).
    AcquireHigh,
    /// Poll an acquire that waits.
    Poll(u8),
    /// Drop an acquire that waits.
    Cancel(u8),
    /// Drop a guard.
    Release(u8),
    /// Give a guard back with `release` (`Pool`).
    ReleaseNow(u8),
    /// Take a resource out of the pool.
    Detach(u8),
    /// Have a resource thrown away.
    Discard(u8),
    /// Leave something over in a resource, so that it has to be reset when it comes back (`Pool`).
    Soil(u8),
    /// Break a resource, which shows when it comes back (`Pool`).
    Break(u8),
    /// Add an object (`ObjectPool`).
    Add,
    /// Acquire without waiting.
    TryAcquire,
    /// From now on, connects end like this (`Pool`).
    Connects(Connects),
    /// From now on, checks succeed or fail (`Pool`).
    Checks(bool),
    /// Let the pause after a failed connect pass (`Pool`).
    Pause,
    /// Change the number of connections, perhaps to one that is refused (`Pool`).
    Resize(u8),
    /// Declare all resources out of date (`Pool`).
    Invalidate,
    /// Keep the idle resources whose number, modulo 8, is a bit of this one (`Pool`).
    Retain(u8),
    /// Have the reaper look once (`Pool`).
    Maintain,
    /// Begin to drain the pool, but only if the number is below [`CLOSE_BELOW`]; or, if that has
    /// begun, look whether it is over, or give it up (`Pool`).
    Drain(u8),
    /// Close the pool, but only if the number is below [`CLOSE_BELOW`]: little happens afterwards.
    Close(u8),
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

const CLOSE_BELOW: u8 = 4;
/// More waiters than this show nothing new.
const MOST_WAITERS: usize = 9;
/// More operations than this in one case neither.
const MOST_OPERATIONS: u64 = 2_000;

/// Which pool, and how it is set up.
#[derive(Arbitrary, Clone, Copy, Debug)]
struct Setting {
    kind: Kind,
    order: Order,
    size: u8,
    /// How many objects a pool of given ones starts with.
    given: u8,
    options: Options,
}

/// What only a `Pool` has.
#[derive(Arbitrary, Clone, Copy, Debug)]
struct Options {
    /// How much larger than its size it can be made.
    extra: u8,
    reserved: u8,
    max_waiters: u8,
    /// All hooks are set.
    hooks: bool,
    /// Each connection is checked before it is handed out.
    checked: bool,
    in_turn: bool,
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
    /// How many slots are in service at first.
    fn size(self) -> usize {
        usize::from(self.size % 4) + 1
    }

    /// How many slots there are.
    fn capacity(self) -> usize {
        let extra = if self.kind == Kind::Managed { self.options.extra % 4 } else { 0 };
        self.size() + usize::from(extra)
    }

    fn reserved(self) -> usize {
        let most = if self.kind == Kind::Managed { self.size().min(3) } else { 1 };
        usize::from(self.options.reserved) % most
    }

    fn max_waiters(self) -> Option<usize> {
        match self.options.max_waiters % 8 {
            few @ 1..=3 if self.kind == Kind::Managed => Some(usize::from(few)),
            _ => None,
        }
    }

    /// Whether connections are opened one after the other. Otherwise the model does not know which
    /// slot is whose, which matters on a stack, where some are reserved, and for leaks.
    fn in_turn(self) -> bool {
        let matters = matches!(self.order, Order::Lifo) || self.reserved() > 0;
        self.options.in_turn || matters
    }

    fn checked(self) -> bool {
        self.kind == Kind::Managed && self.options.checked
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

/// Runs one case; answers how many operations it had, and how many of them were on a `Pool`. Panics
/// where pool and model differ.
pub fn run(input: &mut Unstructured<'_>) -> arbitrary::Result<(u64, u64)> {
    let setting = Setting::arbitrary(input)?;
    let script = std::iter::from_fn(|| {
        let more = !input.is_empty();
        more.then(|| Operation::arbitrary(input).ok()).flatten()
    });
    Ok(match setting.kind {
        Kind::Made | Kind::Given => (objects::run(setting, script), 0),
        #[cfg(feature = "tokio")]
        Kind::Managed => {
            let operations = managed::run(setting, script);
            (operations, operations)
        }
        #[cfg(not(feature = "tokio"))]
        Kind::Managed => (0, 0),
    })
}

/// What the pools hold: it has a number, and those that are alive are counted.
struct Resource {
    number: u64,
    state: Wear,
    supply: Arc<Supply>,
}

/// What use has made of a resource.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Wear {
    None,
    /// It has to be reset when it comes back.
    Soiled,
    /// It is to be thrown away when it comes back.
    Broken,
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
        Resource { number, state: Wear::None, supply: self.clone() }
    }
}

/// Why an acquire that was ready to wait got nothing.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Refusal {
    Closed,
    Draining,
    /// Connecting failed for good.
    Connect,
    QueueFull,
}

type Acquire<'p, G> = Pin<Box<dyn Future<Output = Result<G, Refusal>> + 'p>>;
/// Answers how many resources the drain has closed.
type Drain<'p> = Pin<Box<dyn Future<Output = u64> + 'p>>;

/// Who asks for a resource, and how.
#[derive(Clone, Copy, Debug)]
enum Ask {
    Borrowed,
    Owned,
    High,
}

/// A pool, as far as the driver is concerned.
trait Subject {
    type Guard<'p>
    where
        Self: 'p;

    fn acquire(&self, ask: Ask) -> Acquire<'_, Self::Guard<'_>>;
    fn try_acquire(&self) -> Result<Self::Guard<'_>, TryAcquireError>;
    fn resource<'g>(guard: &'g mut Self::Guard<'_>) -> &'g mut Resource;
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

    // What only `Pool` can do; an `ObjectPool` is never asked.

    /// Gives it back; answers whether it was fit for use.
    fn release(guard: Self::Guard<'_>) -> bool {
        drop(guard);
        true
    }
    /// Lets the pause after a failed connect pass; answers how many connects have failed since.
    fn pause(&self) -> u64 {
        0
    }
    fn connects(&self, _connects: Connects) {}
    fn checks(&self, _succeed: bool) {}
    fn resize(&self, _size: usize) -> Result<(), ConfigError> {
        Ok(())
    }
    fn invalidate(&self) {}
    fn retain(&self, _keep: &mut dyn FnMut(u64) -> bool) -> usize {
        0
    }
    fn maintain(&self) {}
    fn drain(&self) -> Drain<'_> {
        Box::pin(std::future::pending())
    }
    /// What only `Pool` counts, and how many connections it is to have.
    fn totals(&self) -> Option<(Totals, usize)> {
        None
    }
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
    /// A drain under way, and how many resources had ended before.
    draining: Option<(Drain<'p>, u64)>,
    names: u64,
    history: History,
}

/// What has been done so far; printed if it ends in a panic.
struct History(Setting, Vec<Operation>);

impl Drop for History {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{:?} {:?}", self.0, self.1);
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
        draining: None,
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
            Operation::Acquire { owned } => {
                self.acquire(if owned { Ask::Owned } else { Ask::Borrowed });
            }
            Operation::Poll(choice) => {
                if let Some(waiter) = choose(&mut self.waiters, choice) {
                    let at = usize::from(choice) % (self.waiters.len() + 1);
                    self.poll(at, waiter);
                }
            }
            Operation::Cancel(choice) => self.cancel(choice),
            Operation::Release(choice) => self.release(choice),
            Operation::Detach(choice) => self.lose(choice, false),
            Operation::Discard(choice) => self.lose(choice, true),
            Operation::Add => self.add(),
            Operation::TryAcquire => self.try_acquire(),
            Operation::Close(choice) if choice < CLOSE_BELOW => {
                self.model.close();
                self.pool.close();
            }
            Operation::Close(_) => {}
            _ if self.model.kind == Kind::Managed => self.manage(operation),
            _ => {}
        }
        self.settle();
    }

    /// What only a `Pool` can do.
    fn manage(&mut self, operation: Operation) {
        match operation {
            Operation::AcquireHigh => self.acquire(Ask::High),
            Operation::ReleaseNow(choice) => {
                if let Some((guard, number, wear)) = self.take_guard(choice) {
                    self.model.come_back(number, wear);
                    assert_eq!(S::release(guard), wear != Wear::Broken, "fit for use");
                }
            }
            Operation::Soil(choice) => self.wear(choice, Wear::Soiled),
            Operation::Break(choice) => self.wear(choice, Wear::Broken),
            // Beside what is alive, a refusal is told to nobody, and tried again after a pause of its own.
            Operation::Connects(Connects::Refuse) if !self.model.has_gone() => {}
            Operation::Connects(connects) => {
                self.model.connects = connects;
                self.pool.connects(connects);
            }
            Operation::Checks(succeed) => {
                self.model.checks_succeed = succeed;
                self.pool.checks(succeed);
            }
            Operation::Pause => {
                if self.model.pausing {
                    // How long each pause is, is chance.
                    let failures = self.pool.pause();
                    self.model.pause(failures);
                    assert_eq!(failures > 0, self.model.pausing, "another attempt");
                }
            }
            Operation::Resize(choice) => {
                let size = usize::from(choice) % (self.model.capacity() + 2);
                let expected = self.model.resize(size);
                assert_eq!(self.pool.resize(size).is_ok(), expected, "resize to {size}");
            }
            Operation::Invalidate => {
                self.model.invalidate();
                self.pool.invalidate();
            }
            Operation::Retain(kept) => {
                let keep = |number: u64| kept >> (number % 8) & 1 == 1;
                let expected = self.model.retain(keep);
                let mut seen = Vec::new();
                let removed = self.pool.retain(&mut |number| {
                    seen.push(number);
                    keep(number)
                });
                assert_eq!(seen, expected, "what retain sees");
                let unwanted = expected.iter().filter(|number| !keep(**number)).count();
                assert_eq!(removed, unwanted, "what retain removes");
            }
            Operation::Maintain => {
                self.model.maintain();
                self.pool.maintain();
            }
            Operation::Drain(choice) => self.drain(choice),
            other => unreachable!("BUG: {other:?} is for all pools"),
        }
    }

    fn settle(&mut self) {
        self.model.settle();
        self.pool.settle();
    }

    fn acquire(&mut self, ask: Ask) {
        if self.waiters.len() == MOST_WAITERS {
            return;
        }
        self.names += 1;
        let name = Name { number: self.names, high: matches!(ask, Ask::High) };
        self.model.acquire(name);
        let future = self.pool.acquire(ask);
        let waiter = Waiter { name, future, wakes: Arc::default() };
        self.poll(self.waiters.len(), waiter);
    }

    /// Polls an acquire, and puts it back in its place `at` if it has to wait on.
    fn poll(&mut self, at: usize, mut waiter: Waiter<'p, S::Guard<'p>>) {
        let expected = self.model.hear(waiter.name);
        match waiter.poll() {
            Poll::Pending => {
                assert_eq!(expected, None, "{:?} still waits", waiter.name);
                self.waiters.insert(at, waiter);
            }
            Poll::Ready(mut outcome) => {
                let number = outcome.as_mut().map(|guard| S::resource(guard).number);
                let number = number.map_err(|refusal| *refusal);
                assert_eq!(Some(number), expected, "outcome of {:?}", waiter.name);
                self.guards.extend(outcome.ok());
            }
        }
    }

    fn cancel(&mut self, choice: u8) {
        let Some(waiter) = choose(&mut self.waiters, choice) else { return };
        let name = waiter.name;
        let fate = self.model.cancel(name);
        drop(waiter);
        if fate == Some(Fate::Refused(Refusal::Connect)) {
            self.pass_word_on(name.high);
        }
    }

    /// The word that a cancelled waiter has not heard goes to the next one of its line, whom it does
    /// not concern: that one looks again, and joins the line at its end.
    fn pass_word_on(&mut self, high: bool) {
        let Some(name) = self.model.step_back(high) else { return };
        let at = self.waiters.iter().position(|waiter| waiter.name == name);
        let at = at.expect("whoever is in line waits");
        let waiter = self.waiters.remove(at);
        assert!(waiter.is_woken(), "{name:?} has not got the word");
        self.poll(at, waiter);
    }

    fn try_acquire(&mut self) {
        let expected = self.model.try_acquire();
        let mut got = self.pool.try_acquire();
        let number = got.as_mut().map(|guard| S::resource(guard).number);
        assert_eq!(number.map_err(|error| *error), expected, "try_acquire");
        self.guards.extend(got.ok());
    }

    /// A guard, its resource's number, and what has become of that.
    fn take_guard(&mut self, choice: u8) -> Option<(S::Guard<'p>, u64, Wear)> {
        let mut guard = choose(&mut self.guards, choice)?;
        let &mut Resource { number, state, .. } = S::resource(&mut guard);
        Some((guard, number, state))
    }

    fn release(&mut self, choice: u8) {
        if let Some((guard, number, wear)) = self.take_guard(choice) {
            self.model.come_back(number, wear);
            drop(guard);
        }
    }

    fn wear(&mut self, choice: u8, wear: Wear) {
        if let Some(index) = usize::from(choice).checked_rem(self.guards.len()) {
            S::resource(&mut self.guards[index]).state = wear;
        }
    }

    /// Takes a resource out of the pool for good.
    fn lose(&mut self, choice: u8, discard: bool) {
        let Some((guard, number, _)) = self.take_guard(choice) else { return };
        self.model.lose(number, discard);
        if discard {
            S::discard(guard);
        } else {
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

    fn drain(&mut self, choice: u8) {
        match self.draining.take() {
            None if choice < CLOSE_BELOW => {
                let (empty, ended_before) = (self.model.is_empty(), self.model.ended());
                self.model.begin_to_drain();
                self.look_at_drain(self.pool.drain(), empty, ended_before);
            }
            None => {}
            Some((drain, ended_before)) if choice % 2 == 0 => {
                self.look_at_drain(drain, self.model.is_empty(), ended_before);
            }
            Some((drain, _)) => {
                self.model.stop_draining();
                drop(drain);
            }
        }
    }

    /// Polls a drain, which is over if the pool is `empty`.
    fn look_at_drain(&mut self, mut drain: Drain<'p>, empty: bool, ended_before: u64) {
        match drain.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Pending => {
                assert!(!empty, "nothing is left to wait for");
                self.draining = Some((drain, ended_before));
            }
            Poll::Ready(closed) => {
                assert!(empty, "the drain is over too soon");
                assert_eq!(closed, self.model.ended() - ended_before, "closed by the drain");
                self.model.stop_draining();
            }
        }
    }

    /// Compares everything that can be seen without changing it.
    fn compare(&self) {
        let model = &self.model;
        let counts = self.pool.counts();
        let seen = [
            ("idle", counts.idle, model.idle()),
            ("in use", counts.in_use, model.in_use),
            ("vacant", counts.vacant, model.vacant()),
            ("being made", counts.connecting, model.making),
            ("spare", counts.spare, model.spare()),
            ("waiters", counts.waiters, model.waiters()),
        ];
        for (what, counted, expected) in seen {
            assert_eq!(counted, expected, "{what}: {counts}");
        }
        assert_eq!(counts.alive(), counts.idle + counts.in_use, "something is half done: {counts}");
        assert_eq!(self.supply.alive.load(Relaxed), counts.alive(), "resources that exist");
        assert_eq!(self.supply.made.load(Relaxed), model.made, "resources made");
        assert_eq!(self.pool.is_closed(), model.is_closed(), "closed");
        if let Some((totals, size)) = self.pool.totals() {
            assert_eq!(totals, model.totals(), "totals");
            assert_eq!(size, model.size(), "size");
        }
        for waiter in &self.waiters {
            let wakes = waiter.wakes.0.load(Relaxed);
            let served = usize::from(model.fates.contains_key(&waiter.name));
            assert_eq!(wakes, served, "wakes of {:?}", waiter.name);
        }
    }

    /// Lets go of everything: nothing may be lost.
    fn finish(&mut self) {
        if self.draining.take().is_some() {
            self.model.stop_draining();
        }
        while !self.waiters.is_empty() {
            self.cancel((self.waiters.len() - 1) as u8);
            self.settle();
            self.compare();
        }
        while !self.guards.is_empty() {
            self.release(0);
            self.settle();
            self.compare();
        }
        self.model.assert_at_rest();
    }
}
