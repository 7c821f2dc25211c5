//! Threads of the crate's own for calls that block.
//!
//! Those that a runtime keeps for such calls are limited in number, and whoever waits for a connection on
//! one of them (`acquire_blocking` inside `spawn_blocking`) may have the last: the call that opens the
//! connection would wait for its own waiter. Here each call has a thread at once, one that is idle or a
//! new one. There are as many at work as there are calls: one for each connection that is being opened,
//! checked, used or closed, and those that were given up and have not ended.
//!
//! Not here: what is called.

use crate::panics::caught;
use std::any::Any;
use std::cell::Cell;
use std::future::Future;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::task::{Context, Poll};
use std::thread;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

/// How long a thread waits for its next call before it ends.
const KEPT: Duration = Duration::from_secs(10);

/// Is told that this is a thread for it; or, on that of whoever wants it done, why the system had none.
type Job = Box<dyn FnOnce(io::Result<()>) + Send>;

/// A thread that waits for a call.
struct Idle {
    number: u64,
    calls: mpsc::Sender<Job>,
}

/// The threads that wait for a call, and whose they are.
struct Waiting {
    process: u32,
    threads: Vec<Idle>,
}

impl Waiting {
    /// This process has this number. One that is forked has none of the threads of the one that it comes from,
    /// only their list.
    fn belong_to(&mut self, process: u32) {
        if process != self.process {
            *self = Self { process, threads: Vec::new() };
        }
    }
}

static IDLE: Mutex<Waiting> = Mutex::new(Waiting { process: 0, threads: Vec::new() });

thread_local! {
    /// Whether this is one of these threads.
    static IS_OURS: Cell<bool> = const { Cell::new(false) };
}

fn idle() -> MutexGuard<'static, Waiting> {
    let mut idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner);
    idle.belong_to(process::id());
    idle
}

/// Does this on one of the threads. If the system has no thread left, it is not done, but dropped.
pub(crate) fn run(work: impl FnOnce() + Send + 'static) {
    give(Box::new(|thread| {
        if thread.is_ok() {
            work();
        }
    }));
}

fn spawn(work: Box<dyn FnOnce() + Send>) -> io::Result<()> {
    thread::Builder::new().name("millpond-call".into()).spawn(work).map(drop)
}

fn give(mut job: Job) {
    loop {
        // The one that has waited for the shortest time, so that the others can end.
        let Some(thread) = idle().threads.pop() else { break };
        match thread.calls.send(job) {
            Ok(()) => return,
            Err(mpsc::SendError(back)) => job = back,
        }
    }
    give_to_another(job, spawn);
}

/// Gives it to a thread that does not exist yet.
fn give_to_another(job: Job, spawn: impl FnOnce(Box<dyn FnOnce() + Send>) -> io::Result<()>) {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    // Kept, since what cannot be spawned is dropped.
    let first = Arc::new(Mutex::new(Some(job)));
    let take = |first: &Mutex<Option<Job>>| first.lock().ok().and_then(|mut job| job.take());
    let theirs = first.clone();
    let work = move || {
        IS_OURS.set(true);
        let (calls, given) = mpsc::channel();
        let mut next = take(&theirs);
        while let Some(job) = next {
            // What panics in a call is told to whoever waits for it; what panics in a drop, to nobody.
            drop(caught(|| job(Ok(()))));
            idle().threads.push(Idle { number, calls: calls.clone() });
            next = wait(number, &given);
        }
    };
    let Err(error) = spawn(Box::new(work)) else { return };
    if let Some(job) = take(&first) {
        job(Err(error));
    }
}

/// The next call, if one comes in time.
fn wait(number: u64, given: &mpsc::Receiver<Job>) -> Option<Job> {
    if let Ok(job) = given.recv_timeout(KEPT) {
        return Some(job);
    }
    let mut idle = idle();
    match idle.threads.iter().position(|thread| thread.number == number) {
        Some(place) => {
            idle.threads.remove(place);
            None
        }
        // Somebody has taken it out to give it a call.
        None => {
            drop(idle);
            given.recv().ok()
        }
    }
}

/// Does this where it may block: here, if that is one of these threads or one without a runtime, and
/// elsewhere on one of them, inside the runtime of this thread. Here as well, if the system has no thread left.
pub(crate) fn aside(work: impl FnOnce() + Send + 'static) {
    match Handle::try_current() {
        Ok(runtime) if !IS_OURS.get() => {
            let job = move |_| {
                let _inside = runtime.enter();
                work();
            };
            give(Box::new(job));
        }
        _ => work(),
    }
}

/// A call on one of the threads. Dropping it lets the call go on alone or, if it has not begun, keeps it
/// from beginning; what it comes to is dropped on such a thread.
pub(crate) struct Call<T> {
    outcome: oneshot::Receiver<Result<T, Lost>>,
    discard: fn(Result<T, Lost>),
}

/// There is no outcome.
pub(crate) enum Lost {
    /// The call has panicked.
    Panicked(Box<dyn Any + Send>),
    /// The system had no thread to make it.
    NoThread(io::Error),
}

impl<T: Send + 'static> Call<T> {
    /// Makes the call, inside the runtime of this thread if it has one.
    pub(crate) fn begin(work: impl FnOnce() -> T + Send + 'static) -> Self {
        let (job, call) = Self::prepare(work);
        give(Box::new(job));
        call
    }

    fn prepare(
        work: impl FnOnce() -> T + Send + 'static,
    ) -> (impl FnOnce(io::Result<()>) + Send + 'static, Self) {
        let (report, outcome) = oneshot::channel();
        let runtime = Handle::try_current().ok();
        let job = move |thread: io::Result<()>| {
            if !report.is_closed() {
                let _inside = runtime.as_ref().map(Handle::enter);
                let done = match thread {
                    Ok(()) => catch_unwind(AssertUnwindSafe(work)).map_err(Lost::Panicked),
                    Err(error) => Err(Lost::NoThread(error)),
                };
                // What nobody waits for any more is dropped here.
                drop(report.send(done));
            }
        };
        (job, Self { outcome, discard: |done| aside(move || drop(done)) })
    }
}

impl<T> Future for Call<T> {
    type Output = Result<T, Lost>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.outcome).poll(cx).map(|outcome| match outcome {
            Ok(done) => done,
            // Its thread has been ended from outside.
            Err(_) => Err(Lost::NoThread(io::Error::other("it has ended"))),
        })
    }
}

impl<T> Drop for Call<T> {
    fn drop(&mut self) {
        self.outcome.close();
        // It came, and nobody has looked.
        if let Ok(done) = self.outcome.try_recv() {
            (self.discard)(done);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;
    use std::thread::ThreadId;

    /// Tells on which thread it is dropped.
    struct Told(mpsc::Sender<ThreadId>);

    impl Drop for Told {
        fn drop(&mut self) {
            let _ = self.0.send(thread::current().id());
        }
    }

    #[test]
    fn a_call_that_was_given_up_before_it_began_does_not_begin() {
        let began = Arc::<AtomicBool>::default();
        let begins = began.clone();
        let (job, call) = Call::prepare(move || begins.store(true, Ordering::SeqCst));
        drop(call);
        job(Ok(()));
        assert!(!began.load(Ordering::SeqCst));
    }

    #[tokio::test]
    async fn an_outcome_that_nobody_looks_at_is_dropped_on_no_thread_of_tasks() {
        let (tell, told) = mpsc::channel();
        let (job, call) = Call::prepare(move || Told(tell));
        // It is there before the call is dropped.
        job(Ok(()));
        drop(call);
        assert_ne!(told.recv().expect("it is dropped"), thread::current().id());

        let (tell, told) = mpsc::channel();
        let (begins, begun) = mpsc::channel();
        let (go, gone) = mpsc::channel::<()>();
        let call = Call::begin(move || {
            begins.send(()).expect("the test waits for it");
            gone.recv().expect_err("it is dropped");
            Told(tell)
        });
        begun.recv().expect("it begins");
        drop(call);
        drop(go);
        assert_ne!(told.recv().expect("it is dropped"), thread::current().id());
    }

    #[test]
    fn a_process_that_is_forked_counts_on_no_thread_of_the_one_that_it_comes_from() {
        let (calls, _given) = mpsc::channel();
        let mut idle = Waiting { process: 1, threads: vec![Idle { number: 0, calls }] };
        idle.belong_to(1);
        assert_eq!(idle.threads.len(), 1);
        idle.belong_to(2);
        assert!(idle.threads.is_empty());
        let (calls, _given) = mpsc::channel();
        idle.threads.push(Idle { number: 1, calls });
        idle.belong_to(2);
        assert_eq!(idle.threads.len(), 1);
    }

    #[test]
    fn a_thread_without_a_runtime_does_itself_what_may_block() {
        let (tell, told) = mpsc::channel();
        aside(move || drop(Told(tell)));
        assert_eq!(told.recv(), Ok(thread::current().id()));
    }

    #[tokio::test]
    async fn who_wants_a_call_for_which_the_system_has_no_thread_is_told_why() {
        let none = |_| Err(io::Error::from(io::ErrorKind::WouldBlock));
        let (job, call) = Call::prepare(|| ());
        give_to_another(Box::new(job), none);
        let Err(Lost::NoThread(error)) = call.await else { panic!("there was a thread") };
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        // Here, so that it is not lost.
        let (tell, told) = mpsc::channel();
        let tells = move |thread: io::Result<()>| {
            tell.send(thread.map_err(|it| it.kind())).expect("the test waits");
        };
        give_to_another(Box::new(tells), none);
        assert_eq!(told.recv(), Ok(Err(io::ErrorKind::WouldBlock)));
    }

    #[tokio::test]
    async fn as_many_calls_are_made_at_once_as_there_are() {
        let everybody = Arc::new(std::sync::Barrier::new(40));
        for _ in 0..2 {
            let calls = (0..40).map(|_| {
                let everybody = everybody.clone();
                Call::begin(move || {
                    everybody.wait();
                    thread::current().id()
                })
            });
            for call in calls.collect::<Vec<_>>() {
                assert!(call.await.is_ok());
            }
        }
        let panics = Call::begin(|| panic!("scripted in a call"));
        let Err(Lost::Panicked(panic)) = panics.await else { panic!("it returns") };
        assert_eq!(panic.downcast_ref::<&str>(), Some(&"scripted in a call"));
    }
}
