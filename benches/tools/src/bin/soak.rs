//! Everything at once, for minutes: what `scripts/soak` runs.
//!
//! `soak SECONDS`. The time is shared by six pools, two of each idle order, one of them with all
//! hooks. Each is used by many tasks and some plain threads, on a server that fails, hangs, panics
//! and pauses, while tasks are aborted and an operator resizes, invalidates and picks out. A thread
//! samples what must hold at every moment; after each pool the counts must be exact, and at the end
//! the memory must be what it was after the first of them.
//!
//! Not here: speed.

use millpond::{
    AcquireError, CheckPolicy, Condition, HookFuture, Hooks, IdleOrder, Manager, Pool, Pooled,
    PooledOwned, Priority, Shed, TryAcquireError,
};
use std::error::Error;
use std::fmt;
use std::future::pending;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use tokio::time::{sleep, timeout};

const ORDERS: [IdleOrder; 3] = [IdleOrder::Recent, IdleOrder::Fifo, IdleOrder::Lifo];
const TASKS: usize = 24;
const THREADS: usize = 3;
const MAX_SIZE: usize = 8;
const CAPACITY: usize = 16;
const RESERVED: usize = 1;

/// Longer than any pause of the server, and all timeouts together.
const PATIENCE: Duration = Duration::from_secs(10);

const fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

/// What went wrong first.
static VIOLATION: Mutex<Option<String>> = Mutex::new(None);

fn violation(what: String) {
    eprintln!("violated: {what}");
    VIOLATION.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(what);
}

fn is_violated() -> bool {
    VIOLATION.lock().unwrap_or_else(PoisonError::into_inner).is_some()
}

/// Panics that are part of the plan begin like this; all others are violations.
const SCRIPTED: &str = "scripted";

fn watch_panics() {
    let loud = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let payload = info.payload();
        let text = payload.downcast_ref::<&str>().copied();
        let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
        if !text.unwrap_or_default().starts_with(SCRIPTED) {
            violation(format!("a panic: {info}"));
            loud(info);
        }
    }));
}

/// Chance, for all threads.
#[derive(Default)]
struct Dice(AtomicU64);

impl Dice {
    /// A number below `limit`: SplitMix64.
    fn below(&self, limit: u64) -> u64 {
        let mut mixed = self.0.fetch_add(0x9e37_79b9_7f4a_7c15, SeqCst);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % limit
    }

    /// Once in so many times.
    fn once_in(&self, times: u64) -> bool {
        self.below(times) == 0
    }

    fn micros(&self, most: u64) -> Duration {
        Duration::from_micros(self.below(most))
    }
}

/// What everybody has in hand.
#[derive(Default)]
struct World {
    dice: Dice,
    /// The server does not answer at the moment.
    paused: AtomicBool,
    /// Nothing fails any more.
    calm: AtomicBool,
    /// Users and operators are to end.
    over: AtomicBool,
    /// Connections that exist or are being opened.
    live: AtomicUsize,
    most_live: AtomicUsize,
    /// How many there may be.
    allowed: AtomicUsize,
    served: AtomicU64,
    aborts: AtomicU64,
    panics: AtomicU64,
    resizes: AtomicU64,
    invalidations: AtomicU64,
    pauses: AtomicU64,
    samples: AtomicU64,
}

impl World {
    fn is_over(&self) -> bool {
        self.over.load(SeqCst)
    }

    fn panic(&self, what: &str) -> ! {
        self.panics.fetch_add(1, SeqCst);
        panic!("{SCRIPTED} {what}");
    }

    fn panic_once_in(&self, times: u64, what: &str) {
        if !self.calm.load(SeqCst) && self.dice.once_in(times) {
            self.panic(what);
        }
    }

    /// The server answers, or does not.
    async fn answer(&self, what: &str) -> Result<(), Down> {
        while self.paused.load(SeqCst) {
            sleep(ms(2)).await;
        }
        if self.calm.load(SeqCst) {
            return Ok(());
        }
        match self.dice.below(200) {
            0..=9 => Err(Down),
            10..=11 => pending().await,
            12..=13 => self.panic(what),
            14..=60 => {
                sleep(self.dice.micros(2_000)).await;
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

#[derive(Debug)]
struct Down;

impl fmt::Display for Down {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the server is down")
    }
}

impl Error for Down {}

/// A connection, which counts as long as it is the pool's.
struct Conn {
    world: Arc<World>,
    /// Somebody is using it.
    busy: bool,
    open: bool,
    detached: bool,
}

impl Conn {
    fn new(world: &Arc<World>) -> Self {
        let live = world.live.fetch_add(1, SeqCst) + 1;
        world.most_live.fetch_max(live, SeqCst);
        Self { world: world.clone(), busy: false, open: false, detached: false }
    }

    /// It is about to leave the pool.
    fn uncount(&mut self) {
        self.detached = true;
        self.world.live.fetch_sub(1, SeqCst);
    }

    fn begin_use(&mut self) {
        if std::mem::replace(&mut self.busy, true) {
            violation("a connection was handed out that is in use".into());
        }
        self.world.served.fetch_add(1, SeqCst);
    }
}

impl Drop for Conn {
    fn drop(&mut self) {
        if self.detached {
            return;
        }
        self.world.live.fetch_sub(1, SeqCst);
        if self.open && !thread::panicking() {
            self.world.panic_once_in(200, "drop");
        }
    }
}

struct Server(Arc<World>);

impl Manager for Server {
    type Connection = Conn;
    type Error = Down;

    async fn connect(&self) -> Result<Conn, Down> {
        let mut conn = Conn::new(&self.0);
        self.0.answer("connect").await?;
        conn.open = true;
        Ok(conn)
    }

    fn condition(&self, conn: &mut Conn) -> Condition {
        conn.busy = false;
        self.0.panic_once_in(500, "condition");
        match self.0.dice.below(50) {
            _ if self.0.calm.load(SeqCst) => Condition::Clean,
            0 => Condition::Broken,
            1..=4 => Condition::Dirty,
            _ => Condition::Clean,
        }
    }

    async fn check(&self, _: &mut Conn) -> Result<(), Down> {
        self.0.answer("check").await
    }

    async fn reset(&self, _: &mut Conn) -> Result<(), Down> {
        self.0.answer("reset").await
    }

    async fn close(&self, conn: Conn) {
        // An error has nowhere to go.
        drop(self.0.answer("close").await);
        drop(conn);
    }

    fn is_permanent(&self, _: &Down) -> bool {
        !self.0.calm.load(SeqCst) && self.0.dice.once_in(50)
    }
}

fn all_hooks(world: &Arc<World>) -> Hooks<Server> {
    let (w0, w1, w2, w3) = (world.clone(), world.clone(), world.clone(), world.clone());
    let (w4, w5, w6, w7) = (world.clone(), world.clone(), world.clone(), world.clone());
    Hooks::new()
        .after_connect(move |_| -> HookFuture<'_, Down> {
            let world = w0.clone();
            Box::pin(async move { world.answer("after_connect").await })
        })
        .before_acquire(move |_| -> HookFuture<'_, Down> {
            let world = w1.clone();
            Box::pin(async move { world.answer("before_acquire").await })
        })
        .on_create(move |_| w2.panic_once_in(100, "on_create"))
        .on_checkout(move |_| w3.panic_once_in(500, "on_checkout"))
        .on_checkin(move |_| w4.panic_once_in(500, "on_checkin"))
        .after_release(move || w5.panic_once_in(500, "after_release"))
        .on_destroy(move || w6.panic_once_in(100, "on_destroy"))
        .on_leak(move |_| w7.panic_once_in(10, "on_leak"))
}

/// A pool on which everything happens within milliseconds.
fn pool(world: &Arc<World>, order: IdleOrder, hooks: bool) -> Pool<Server> {
    let builder = Pool::builder(Server(world.clone()))
        .max_size(MAX_SIZE)
        .capacity(CAPACITY)
        .min_idle(2)
        .reserved(Priority::High, RESERVED)
        .order(order)
        .acquire_timeout(ms(200))
        .connect_timeout(ms(50))
        .check_timeout(ms(20))
        .reset_timeout(ms(20))
        .close_timeout(ms(20))
        .backoff(ms(1), ms(20))
        .check(CheckPolicy::IfIdleFor(ms(10)))
        .max_lifetime(ms(500))
        .idle_timeout(ms(100))
        .keepalive_interval(ms(30))
        .leak_after(ms(15))
        .maintenance_interval(ms(5));
    let builder = if hooks {
        let shed = Shed::new(ms(50), ms(100));
        builder.hooks(all_hooks(world)).max_waiters(TASKS / 2).shed(shed)
    } else {
        builder
    };
    builder.build_lazy().expect("the settings are in range")
}

/// A guard of either kind.
enum Held<'p> {
    Borrowed(Pooled<'p, Server>),
    Owned(PooledOwned<Server>),
}

impl Held<'_> {
    fn conn(&mut self) -> &mut Conn {
        match self {
            Self::Borrowed(guard) => guard,
            Self::Owned(guard) => guard,
        }
    }

    /// Lets go of it in one of the ways that need no waiting.
    fn let_go(mut self, world: &World) {
        match world.dice.below(40) {
            0 => {
                self.conn().uncount();
                drop(match self {
                    Self::Borrowed(guard) => guard.detach(),
                    Self::Owned(guard) => guard.detach(),
                });
            }
            1 => match self {
                Self::Borrowed(guard) => guard.discard(),
                Self::Owned(guard) => guard.discard(),
            },
            2 => {
                let unwound = catch_unwind(AssertUnwindSafe(|| {
                    let _held = self;
                    world.panic("holder");
                }));
                drop(unwound);
            }
            _ => drop(self),
        }
    }
}

/// A caller that acquires in every way there is, until all is over or the pool is closed.
async fn user(pool: Pool<Server>, world: Arc<World>) {
    let dice = &world.dice;
    while !world.is_over() {
        let limit = dice.micros(30_000);
        let got = match dice.below(8) {
            0 => pool.acquire_owned().await.map(Held::Owned),
            1 => pool.acquire_with(Priority::High).await.map(Held::Borrowed),
            2 => match timeout(limit, pool.acquire()).await {
                Ok(got) => got.map(Held::Borrowed),
                // Cancelled.
                Err(_) => continue,
            },
            3 => match pool.try_acquire() {
                Ok(guard) => Ok(Held::Borrowed(guard)),
                Err(TryAcquireError::Empty) => {
                    sleep(ms(1)).await;
                    continue;
                }
                Err(_) => return,
            },
            4..=5 => pool.acquire_timeout(limit).await.map(Held::Borrowed),
            _ => pool.acquire().await.map(Held::Borrowed),
        };
        let mut held = match got {
            Ok(held) => held,
            Err(AcquireError::Closed | AcquireError::Draining) => return,
            Err(_) => {
                tokio::task::yield_now().await;
                continue;
            }
        };
        held.conn().begin_use();
        match dice.below(50) {
            0 => sleep(ms(30)).await,
            1..=20 => sleep(dice.micros(2_000)).await,
            _ => {}
        }
        match held {
            Held::Borrowed(guard) if dice.once_in(5) => drop(guard.release().await),
            held => held.let_go(&world),
        }
    }
}

/// The same for a thread without a runtime.
fn blocking_user(pool: &Pool<Server>, world: &World) {
    while !world.is_over() {
        let got = match world.dice.below(4) {
            0 => pool.acquire_blocking_owned().map(Held::Owned),
            1 => pool.acquire_blocking_with(Priority::High).map(Held::Borrowed),
            2 => pool.acquire_blocking_timeout(world.dice.micros(30_000)).map(Held::Borrowed),
            _ => pool.acquire_blocking().map(Held::Borrowed),
        };
        match got {
            Ok(mut held) => {
                held.conn().begin_use();
                thread::sleep(world.dice.micros(500));
                held.let_go(world);
            }
            Err(AcquireError::Closed | AcquireError::Draining) => return,
            Err(_) => thread::yield_now(),
        }
    }
}

/// Tells how many connections there may be, before and after a change of size. Only the operator
/// changes it, so a pool that shrinks never has more slots in service than it had a moment ago.
fn resize(pool: &Pool<Server>, world: &World, size: usize) {
    let most = world.allowed.load(SeqCst).max(size);
    world.allowed.store(most, SeqCst);
    pool.resize(size).expect("the size is in range");
    world.resizes.fetch_add(1, SeqCst);
}

/// Does to the pool whatever can be done to it.
async fn operator(pool: Pool<Server>, world: Arc<World>) {
    let dice = &world.dice;
    while !world.is_over() {
        sleep(dice.micros(10_000)).await;
        let in_service = pool.counts().in_service();
        world.allowed.store(in_service.max(pool.max_size()), SeqCst);
        match dice.below(12) {
            0..=3 => {
                let size = RESERVED + 1 + dice.below((CAPACITY - RESERVED) as u64) as usize;
                resize(&pool, &world, size);
            }
            4..=5 => {
                pool.invalidate();
                world.invalidations.fetch_add(1, SeqCst);
            }
            6 => {
                let unwound = catch_unwind(AssertUnwindSafe(|| {
                    pool.retain(|_, _| {
                        world.panic_once_in(50, "retain");
                        !dice.once_in(3)
                    })
                }));
                drop(unwound);
            }
            7 => drop(timeout(ms(30), pool.warm_up(pool.max_size().min(4))).await),
            8 => {
                let verifier = world.clone();
                let rotate =
                    pool.rotate(|_| Box::pin(async move { verifier.answer("verify").await }));
                drop(timeout(ms(30), rotate).await);
            }
            9 => drop(timeout(ms(30), pool.maintenance().run_once()).await),
            10 => {
                pool.maintenance().pause();
                sleep(ms(20)).await;
                pool.maintenance().resume();
            }
            _ => drop(pool.holders()),
        }
    }
}

/// Pauses the server now and then.
async fn weather(world: Arc<World>) {
    while !world.is_over() {
        sleep(ms(200) + world.dice.micros(800_000)).await;
        world.paused.store(true, SeqCst);
        sleep(ms(20) + world.dice.micros(100_000)).await;
        world.paused.store(false, SeqCst);
        world.pauses.fetch_add(1, SeqCst);
    }
}

/// Looks over and over at what must hold at every moment, and that somebody is served.
fn sample(pool: &Pool<Server>, world: &World) {
    let (mut served, mut since) = (0, Instant::now());
    while !world.is_over() && !is_violated() {
        let before = world.allowed.load(SeqCst);
        let live = world.live.load(SeqCst);
        let allowed = world.allowed.load(SeqCst).max(before);
        if live > allowed {
            violation(format!("{live} connections are alive, and {allowed} may be"));
        }
        let counts = pool.counts();
        if counts.capacity() != CAPACITY {
            violation(format!("the counts do not add up to {CAPACITY}: {counts:?}"));
        }
        // Those who use it, the operator, and whoever was aborted and has not been dropped yet.
        if counts.waiters > 2 * TASKS + THREADS {
            violation(format!("{} waiters of {TASKS} tasks", counts.waiters));
        }
        let now = world.served.load(SeqCst);
        if now > served {
            (served, since) = (now, Instant::now());
        } else if since.elapsed() > PATIENCE {
            violation(format!("nobody has been served for {PATIENCE:?}: {:?}", pool.metrics()));
        }
        world.samples.fetch_add(1, SeqCst);
        thread::sleep(Duration::from_micros(200));
    }
}

/// Waits until something holds, or says that it does not.
async fn eventually(what: &str, pool: &Pool<Server>, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        if began.elapsed() > PATIENCE {
            return violation(format!("still not: {what}: {:?}", pool.metrics()));
        }
        sleep(ms(1)).await;
    }
}

fn start_users(
    pool: &Pool<Server>,
    world: &Arc<World>,
    count: usize,
) -> Vec<tokio::task::JoinHandle<()>> {
    (0..count).map(|_| tokio::spawn(user(pool.clone(), world.clone()))).collect()
}

/// One pool, from its first connection to its last.
async fn round(order: IdleOrder, hooks: bool, time: Duration, seed: u64) -> Arc<World> {
    let world = Arc::new(World { dice: Dice(AtomicU64::new(seed)), ..World::default() });
    world.allowed.store(MAX_SIZE, SeqCst);
    let pool = pool(&world, order, hooks);
    let threads: Vec<_> = (0..THREADS)
        .map(|_| {
            let (pool, world) = (pool.clone(), world.clone());
            thread::spawn(move || blocking_user(&pool, &world))
        })
        .collect();
    let sampler = {
        let (pool, world) = (pool.clone(), world.clone());
        thread::spawn(move || sample(&pool, &world))
    };
    let operator = tokio::spawn(operator(pool.clone(), world.clone()));
    let weather = tokio::spawn(weather(world.clone()));
    let mut users = start_users(&pool, &world, TASKS);
    let began = Instant::now();
    while began.elapsed() < time && !is_violated() {
        sleep(world.dice.micros(10_000)).await;
        let unlucky = world.dice.below(TASKS as u64) as usize;
        let fresh = tokio::spawn(user(pool.clone(), world.clone()));
        std::mem::replace(&mut users[unlucky], fresh).abort();
        world.aborts.fetch_add(1, SeqCst);
    }
    world.over.store(true, SeqCst);
    for task in users.into_iter().chain([operator, weather]) {
        // A panic has been noted by the hook.
        drop(task.await);
    }
    let ended = || threads.iter().all(thread::JoinHandle::is_finished) && sampler.is_finished();
    eventually("all threads have ended", &pool, ended).await;
    world.calm.store(true, SeqCst);
    if !is_violated() {
        settle(&pool, &world).await;
    }
    world
}

/// The server is well and nobody asks for anything: counts are exact, and all of it can be had, and
/// ended while it is in demand.
async fn settle(pool: &Pool<Server>, world: &Arc<World>) {
    pool.resize(MAX_SIZE).expect("the size is in range");
    pool.maintenance().pause();
    let at_rest = || {
        let counts = pool.counts();
        let busy = counts.connecting + counts.checking + counts.resetting + counts.closing;
        busy + counts.waiters + counts.in_use == 0 && counts.in_service() == MAX_SIZE
    };
    eventually("all is at rest", pool, at_rest).await;
    let mut guards = Vec::new();
    for _ in 0..MAX_SIZE {
        match pool.acquire_with(Priority::High).await {
            Ok(guard) => guards.push(guard),
            Err(error) => return violation(format!("{} of {MAX_SIZE}: {error}", guards.len())),
        }
    }
    if pool.try_acquire().is_ok() {
        violation(format!("more than {MAX_SIZE} connections: {:?}", pool.metrics()));
    }
    drop(guards);
    eventually("all is at rest again", pool, at_rest).await;
    audit(pool, world, "at rest");

    world.over.store(false, SeqCst);
    let crowd = start_users(pool, world, TASKS);
    sleep(ms(20)).await;
    let report = pool.drain(PATIENCE).await;
    if !report.still_out.is_empty() {
        violation(format!("after the drain: {report}"));
    }
    for task in crowd {
        drop(task.await);
    }
    world.over.store(true, SeqCst);
    let ended = || pool.counts().alive() == 0 && world.live.load(SeqCst) == 0;
    eventually("everything is closed", pool, ended).await;
    audit(pool, world, "after the drain");
}

fn audit(pool: &Pool<Server>, world: &World, when: &str) {
    let metrics = pool.metrics();
    let alive = metrics.counts.alive();
    let live = world.live.load(SeqCst);
    if metrics.created != metrics.closed.total() + alive as u64 || live != alive {
        violation(format!("{when}, {live} connections are alive: {metrics:?}"));
    }
}

/// Resident memory in KiB, where the system tells.
fn resident() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages * 4)
}

/// As much more than after the first pool may be resident at the end: the allocator's own slack.
fn may_grow(kib: u64) -> u64 {
    kib / 4 + 4_096
}

fn main() -> ExitCode {
    let seconds = std::env::args().nth(1).and_then(|seconds| seconds.parse().ok());
    let Some(seconds) = seconds.filter(|seconds| *seconds >= 6_u64) else {
        eprintln!("soak SECONDS, at least 6");
        return ExitCode::from(2);
    };
    watch_panics();
    let time = Duration::from_secs(seconds) / 6;
    let mut worlds = Vec::new();
    let mut warm = None;
    for index in 0..6 {
        let (order, hooks) = (ORDERS[index % 3], index >= 3);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(4)
            .enable_time()
            .build()
            .expect("a runtime");
        let world = runtime.block_on(round(order, hooks, time, index as u64 + seconds));
        // Dials and closes that hang end with their timeouts; after that, nothing is left.
        let left = runtime.metrics().num_alive_tasks();
        thread::sleep(ms(100));
        if runtime.metrics().num_alive_tasks() > 0 {
            violation(format!("{left} tasks are left of a pool that is gone"));
        }
        runtime.shutdown_timeout(PATIENCE);
        worlds.push(world);
        warm = warm.or_else(resident);
        if is_violated() {
            return ExitCode::FAILURE;
        }
    }
    let (warm, now) = (warm.unwrap_or(0), resident().unwrap_or(0));
    if now > warm + may_grow(warm) {
        violation(format!("memory grew from {warm} to {now} KiB"));
    }
    let sum = |figure: fn(&World) -> &AtomicU64| -> u64 {
        worlds.iter().map(|world| figure(world).load(SeqCst)).sum()
    };
    println!(
        "soak: {seconds} s, {} acquires, {} aborts, {} panics, {} pauses, {} resizes, \
         {} invalidations, {} samples, at most {} of {CAPACITY} alive, {} to {} KiB resident",
        sum(|world| &world.served),
        sum(|world| &world.aborts),
        sum(|world| &world.panics),
        sum(|world| &world.pauses),
        sum(|world| &world.resizes),
        sum(|world| &world.invalidations),
        sum(|world| &world.samples),
        worlds.iter().map(|world| world.most_live.load(SeqCst)).max().unwrap_or(0),
        warm,
        now,
    );
    if is_violated() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
