//! A manager that does as it is told, and connections that count themselves.
//!
//! ```ignore
//! let manager = TestManager::new();          // a clone is another handle to the same manager
//! manager.connect.once(Act::Error);          // the next connect fails,
//! manager.connect.once(Act::Gated);          // the one after that waits for `connect.open(1)`,
//! manager.connect.always(Act::Slow(SECOND)); // and from then on each takes a second
//! manager.condition.always(Act::Error);      // every released connection is broken
//! let pool = Pool::builder(manager.clone()).build().await?;
//! assert_eq!(manager.ledger.live(), 0);
//! ```

use millpond::{Condition, LossSignal, Manager, OperationError};
use std::collections::{HashMap, VecDeque};
use std::error::Error;
use std::future::pending;
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::Semaphore;

/// What one call of one of the manager's methods does.
///
/// `condition`, which cannot wait or fail, answers: `Ok` clean, `Gated` unchecked, `Slow` dirty,
/// `Permanent` outdated, anything else broken. `watch` keeps the signal; with `Error` it sends it at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// Succeeds at its first poll.
    Ok,
    /// Fails at its first poll.
    Error,
    /// Fails with an error that `is_permanent`.
    Permanent,
    /// Succeeds after this long.
    Slow(Duration),
    /// Succeeds when the test calls [`Script::open`], fails when it calls [`Script::refuse`] or
    /// [`Script::refuse_for_good`].
    Gated,
    /// Never completes.
    Never,
    /// Panics at its first poll.
    Panic,
}

/// What one of the methods does, call by call, and how often it has been called.
#[derive(Debug)]
pub struct Script {
    next: Mutex<VecDeque<Act>>,
    always: Mutex<Act>,
    calls: AtomicUsize,
    running: AtomicUsize,
    most_running: AtomicUsize,
    gate: Semaphore,
    /// What it refuses is permanent.
    for_good: AtomicBool,
}

impl Script {
    fn new() -> Self {
        Self {
            next: Mutex::default(),
            always: Mutex::new(Act::Ok),
            calls: AtomicUsize::new(0),
            running: AtomicUsize::new(0),
            most_running: AtomicUsize::new(0),
            gate: Semaphore::new(0),
            for_good: AtomicBool::new(false),
        }
    }

    /// One more call, after those said before, does this.
    pub fn once(&self, act: Act) {
        self.next.lock().unwrap().push_back(act);
    }

    /// Every call does this, once what was said with [`once`](Self::once) is used up.
    pub fn always(&self, act: Act) {
        *self.always.lock().unwrap() = act;
    }

    /// Forgets all that was said: from now on, every call succeeds.
    pub fn calm(&self) {
        self.next.lock().unwrap().clear();
        self.always(Act::Ok);
    }

    /// Lets `count` gated calls succeed, those that wait now or those to come.
    pub fn open(&self, count: usize) {
        self.gate.add_permits(count);
    }

    /// Has all gated calls fail, those that wait now and those to come.
    pub fn refuse(&self) {
        self.gate.close();
    }

    /// The same with an error that `is_permanent`.
    pub fn refuse_for_good(&self) {
        self.for_good.store(true, Ordering::SeqCst);
        self.refuse();
    }

    /// How many calls have begun.
    pub fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }

    /// How many calls are under way.
    pub fn running(&self) -> usize {
        self.running.load(Ordering::SeqCst)
    }

    /// The most calls that were ever under way at the same time.
    pub fn most_running(&self) -> usize {
        self.most_running.load(Ordering::SeqCst)
    }

    fn begin(&self) -> Act {
        self.calls.fetch_add(1, Ordering::SeqCst);
        let next = self.next.lock().unwrap().pop_front();
        next.unwrap_or_else(|| *self.always.lock().unwrap())
    }

    /// Acts, for the method called `what`.
    async fn act(&self, what: &'static str) -> Result<(), TestError> {
        let act = self.begin();
        let _running = Running::new(self);
        match act {
            Act::Ok => {}
            Act::Error => return Err(TestError { what, permanent: false }),
            Act::Permanent => return Err(TestError { what, permanent: true }),
            Act::Slow(time) => tokio::time::sleep(time).await,
            Act::Gated => match self.gate.acquire().await {
                Ok(permit) => permit.forget(),
                Err(_) => {
                    let permanent = self.for_good.load(Ordering::SeqCst);
                    return Err(TestError { what, permanent });
                }
            },
            Act::Never => pending().await,
            Act::Panic => panic!("scripted panic in {what}"),
        }
        Ok(())
    }
}

struct Running<'s>(&'s Script);

impl<'s> Running<'s> {
    fn new(script: &'s Script) -> Self {
        let running = script.running.fetch_add(1, Ordering::SeqCst) + 1;
        script.most_running.fetch_max(running, Ordering::SeqCst);
        Self(script)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The error of a scripted call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TestError {
    /// The method that failed.
    pub what: &'static str,
    /// Whether trying again is pointless.
    pub permanent: bool,
}

impl std::fmt::Display for TestError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "scripted {} error", self.what)
    }
}

impl Error for TestError {}

impl TestError {
    /// The one in another error, found as the documentation of [`OperationError`] finds it.
    pub fn within<'e>(error: &'e (dyn Error + 'static)) -> Option<&'e Self> {
        match error.downcast_ref() {
            Some(OperationError::Failed(error)) => Some(error),
            _ => error.source().and_then(Self::within),
        }
    }
}

/// Counts connections.
#[derive(Debug, Default)]
pub struct Ledger {
    /// Whatever a test has to say of the server.
    pub mark: AtomicUsize,
    /// What these connections are counted in as well, with those of other managers.
    whole: Option<Arc<Ledger>>,
    live: AtomicUsize,
    most_live: AtomicUsize,
    opened: AtomicUsize,
    dropped: AtomicUsize,
    closed: AtomicUsize,
}

impl Ledger {
    /// Connections that are alive or being opened, without those [taken off](Conn::uncount).
    pub fn live(&self) -> usize {
        self.live.load(Ordering::SeqCst)
    }

    /// The most there ever were.
    pub fn most_live(&self) -> usize {
        self.most_live.load(Ordering::SeqCst)
    }

    /// Connections that were opened with success.
    pub fn opened(&self) -> usize {
        self.opened.load(Ordering::SeqCst)
    }

    /// Connections that were opened with success and have been dropped since.
    pub fn dropped(&self) -> usize {
        self.dropped.load(Ordering::SeqCst)
    }

    /// Connections that were given to `close`.
    pub fn closed(&self) -> usize {
        self.closed.load(Ordering::SeqCst)
    }
}

/// A connection. It counts as live from the moment at which it begins to be opened, until its drop.
#[derive(Debug)]
pub struct Conn {
    /// 1 for the manager's first connection that was opened with success; unique.
    pub id: usize,
    /// Room for whatever a test wants to leave in it.
    pub note: usize,
    counted: bool,
    opened: bool,
    ledger: Arc<Ledger>,
}

impl Conn {
    fn new(ledger: &Arc<Ledger>) -> Self {
        for ledger in [Some(ledger), ledger.whole.as_ref()].into_iter().flatten() {
            let live = ledger.live.fetch_add(1, Ordering::SeqCst) + 1;
            ledger.most_live.fetch_max(live, Ordering::SeqCst);
        }
        Self { id: 0, note: 0, counted: true, opened: false, ledger: ledger.clone() }
    }

    /// Where it leads to.
    pub fn server(&self) -> &Ledger {
        &self.ledger
    }

    /// Takes it off the count of live ones: for a connection that is about to be detached.
    pub fn uncount(&mut self) {
        if std::mem::replace(&mut self.counted, false) {
            for ledger in [Some(&self.ledger), self.ledger.whole.as_ref()].into_iter().flatten() {
                ledger.live.fetch_sub(1, Ordering::SeqCst);
            }
        }
    }
}

impl Drop for Conn {
    fn drop(&mut self) {
        self.uncount();
        if self.opened {
            self.ledger.dropped.fetch_add(1, Ordering::SeqCst);
        }
    }
}

/// A manager that does as it is told; a clone is another handle to the same one.
#[derive(Clone, Debug)]
pub struct TestManager(Arc<Scripts>);

/// The scripts of a [`TestManager`], which derefs to them.
#[derive(Debug)]
pub struct Scripts {
    /// What `connect` does.
    pub connect: Script,
    /// What `check` does.
    pub check: Script,
    /// What `reset` does.
    pub reset: Script,
    /// What `close` does.
    pub close: Script,
    /// What `condition` answers; see [`Act`].
    pub condition: Script,
    /// What `watch` does.
    pub watch: Script,
    /// What `target` does; without an act of its own it answers as it was told by `leads_to`.
    pub target: Script,
    leads_to: Mutex<Option<String>>,
    /// By the numbers of the connections.
    signals: Mutex<HashMap<usize, LossSignal>>,
    /// The connections.
    pub ledger: Arc<Ledger>,
}

impl TestManager {
    /// A manager with which all goes well.
    pub fn new() -> Self {
        Self::counted_in(None)
    }

    /// A manager whose live connections are counted in `whole` as well.
    pub fn counted_in(whole: Option<Arc<Ledger>>) -> Self {
        Self(Arc::new(Scripts {
            connect: Script::new(),
            check: Script::new(),
            reset: Script::new(),
            close: Script::new(),
            condition: Script::new(),
            watch: Script::new(),
            target: Script::new(),
            leads_to: Mutex::default(),
            signals: Mutex::default(),
            ledger: Arc::new(Ledger { whole, ..Ledger::default() }),
        }))
    }

    /// How many handles to it there are, this one included.
    pub fn handles(&self) -> usize {
        Arc::strong_count(&self.0)
    }

    /// What it says from now on of where its connections lead.
    pub fn leads_to(&self, target: &str) {
        *self.leads_to.lock().unwrap() = Some(target.to_owned());
    }

    /// The connection with this number finds out that it has ended. May be said more than once.
    pub fn lose(&self, id: usize) {
        let signal = self.signals.lock().unwrap().get(&id).cloned();
        signal.expect("its signal was kept").send();
    }

    /// All connections find out that they have ended; answers with their numbers.
    pub fn lose_all(&self) -> Vec<usize> {
        let signals = std::mem::take(&mut *self.signals.lock().unwrap());
        let lost = signals.into_iter().map(|(id, signal)| {
            signal.send();
            id
        });
        lost.collect()
    }

    /// From now on all goes well.
    pub fn clear(&self) {
        let Scripts { connect, check, reset, close, condition, watch, .. } = &**self;
        for script in [connect, check, reset, close, condition, watch] {
            script.calm();
        }
    }
}

impl Deref for TestManager {
    type Target = Scripts;

    fn deref(&self) -> &Scripts {
        &self.0
    }
}

impl Manager for TestManager {
    type Connection = Conn;
    type Error = TestError;

    async fn connect(&self) -> Result<Conn, TestError> {
        let mut conn = Conn::new(&self.ledger);
        self.connect.act("connect").await?;
        conn.id = self.ledger.opened.fetch_add(1, Ordering::SeqCst) + 1;
        conn.opened = true;
        Ok(conn)
    }

    fn watch(&self, conn: &mut Conn, signal: LossSignal) {
        match self.watch.begin() {
            Act::Error => signal.send(),
            Act::Panic => panic!("scripted panic in watch"),
            _ => drop(self.signals.lock().unwrap().insert(conn.id, signal)),
        }
    }

    fn condition(&self, _: &mut Conn) -> Condition {
        match self.condition.begin() {
            Act::Ok => Condition::Clean,
            Act::Gated => Condition::Unchecked,
            Act::Slow(_) => Condition::Dirty,
            Act::Permanent => Condition::Outdated,
            Act::Panic => panic!("scripted panic in condition"),
            _ => Condition::Broken,
        }
    }

    async fn check(&self, _: &mut Conn) -> Result<(), TestError> {
        self.check.act("check").await
    }

    async fn reset(&self, _: &mut Conn) -> Result<(), TestError> {
        self.reset.act("reset").await
    }

    async fn close(&self, conn: Conn) {
        self.ledger.closed.fetch_add(1, Ordering::SeqCst);
        // An error has nowhere to go: it closes like success.
        let _ = self.close.act("close").await;
        drop(conn);
    }

    fn is_permanent(&self, error: &TestError) -> bool {
        error.permanent
    }

    fn target(&self) -> Option<String> {
        match self.target.begin() {
            Act::Panic => panic!("scripted panic in target"),
            _ => self.leads_to.lock().unwrap().clone(),
        }
    }
}
