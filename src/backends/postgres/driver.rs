//! What runs a connection, and keeps an account of whether there is anything left to do.
//!
//! A task runs it, as the driver's library has it; so does whoever releases the connection, and whoever asks for
//! something outside of a task, so that what there is to write has been written without a turn of the driver's
//! task, which is on another thread then if the runtime has several. What arrives is read by that task alone, but
//! for what comes unasked.
//!
//! Not here: what the account means (`session.rs`).

use super::session::Session;
use super::{beyond_budget, is_in_task};
use crate::sync::{Mutex, MutexGuard};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, PoisonError};
use std::task::{Context, Poll, Wake, Waker, ready};

/// Runs a connection until it ends. One task runs it all its life.
///
/// What it ends with, its task is told, whoever has run it last: a release must not wait for whoever
/// listens.
pub(super) struct Driver<C: Future> {
    engine: Arc<Engine<C>>,
    // Dropped last: whoever is told that the session is quiet finds the connection closed.
    _running: Running,
}

/// A connection, and what it takes to run it. It is the waker of whoever asks for something.
struct Engine<C: Future> {
    session: Arc<Session>,
    /// Gone when it has ended.
    running: Mutex<Option<Connection<C>>>,
    /// What it has ended with.
    end: Mutex<Option<C::Output>>,
}

/// A connection, and the waker that it gets in the place of the task's. That one holds the engine, until
/// the connection is gone.
struct Connection<C> {
    connection: C,
    waker: Waker,
}

/// A session whose driver has not ended.
struct Running(Arc<Session>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// Lets somebody else than the driver's task run the connection for a moment.
pub(super) trait Crank: Send + Sync {
    /// Has what has been asked for written to the socket, as far as that takes it. Neither blocks nor
    /// waits; does nothing while the driver is at it, or an answer is on its way.
    fn turn(&self);
}

impl<C: Future<Output: Send> + Unpin + Send> Crank for Engine<C> {
    fn turn(&self) {
        self.try_run();
    }
}

/// Whoever asks has it written at once, if nothing is in the way and he is no task: the driver's would have to be
/// woken on another thread. Woken by a task, it has its turn on the same one, after what is ready there; with many
/// tasks on few connections, writing at once was worth some per cent less than that. Tasks of another runtime, and
/// calls in `spawn_blocking`, have it woken on another thread as well, and are not told apart.
impl<C: Future<Output: Send> + Unpin + Send> Wake for Engine<C> {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // First, so that nobody finds the session quiet meanwhile.
        self.session.call();
        if is_in_task() || !self.try_run() {
            self.session.wake_task();
        }
    }
}

impl<C: Future> Engine<C> {
    fn lock(&self) -> MutexGuard<'_, Option<Connection<C>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self) -> MutexGuard<'_, Option<C::Output>> {
        self.end.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<C: Future + Unpin> Engine<C> {
    /// Runs the connection if nobody does and no answer is on its way; answers whether it has.
    fn try_run(&self) -> bool {
        // Nobody would be woken before the task's first run.
        if !self.session.has_begun() {
            return false;
        }
        let Ok(mut place) = self.running.try_lock() else { return false };
        // The connection reads for as long as there is anything to read, and an answer may have no end.
        // Its task is made to yield at times; whoever is here is not. Nobody else has one asked for
        // meanwhile.
        if self.session.unanswered() > 0 {
            return false;
        }
        // A socket would be as good as full to a task that has done much.
        if place.is_some() && beyond_budget(|| self.run(&mut place)).is_ready() {
            // The task is to end as well.
            self.session.call_driver();
        }
        true
    }

    /// Polls the connection with its own waker, whoever calls this.
    #[inline]
    fn run(&self, place: &mut Option<Connection<C>>) -> Poll<()> {
        let Some(Connection { connection, waker }) = place else { return Poll::Ready(()) };
        let calls = self.session.begin_run();
        // Whoever asks next finds it closed, and hears nothing of why.
        let poll = Pin::new(connection).poll(&mut Context::from_waker(waker)).map(|end| {
            *self.end() = Some(end);
            *place = None;
        });
        self.session.end_run(calls);
        poll
    }
}

impl<C: Future<Output: Send> + Unpin + Send + 'static> Driver<C> {
    /// A driver, and a crank to turn it by.
    pub(super) fn new(connection: C, session: Arc<Session>) -> (Self, Arc<dyn Crank>) {
        let (running, end) = (Mutex::new(None), Mutex::new(None));
        let engine = Arc::new(Engine { session: session.clone(), running, end });
        let waker = engine.clone().into();
        *engine.lock() = Some(Connection { connection, waker });
        (Self { engine: engine.clone(), _running: Running(session) }, engine)
    }
}

impl<C: Future + Unpin> Future for Driver<C> {
    /// What the connection has ended with.
    type Output = C::Output;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<C::Output> {
        self.engine.session.run_in(cx.waker());
        ready!(self.engine.run(&mut self.engine.lock()));
        let end = self.engine.end().take();
        Poll::Ready(end.expect("BUG: a driver without an end"))
    }
}

impl<C: Future> Drop for Driver<C> {
    fn drop(&mut self) {
        let connection = self.engine.lock().take();
        // It has its say, and its panic, outside the lock.
        drop(connection);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::pin::pin;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::task::Wake;

    /// A connection that does at each poll what the test says.
    struct Scripted<F>(F);

    impl<T, F: FnMut(&mut Context<'_>) -> Poll<T> + Unpin> Future for Scripted<F> {
        type Output = T;

        fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
            (self.0)(cx)
        }
    }

    /// Polls once, and answers whether it is over.
    fn poll(future: Pin<&mut impl Future<Output = ()>>) -> bool {
        future.poll(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    #[test]
    fn a_session_is_quiet_only_while_its_driver_rests_and_nothing_is_unanswered() {
        let session = Arc::new(Session::new());
        let connection = Scripted({
            let (session, mut polls) = (session.clone(), 0);
            move |cx: &mut Context<'_>| {
                assert!(!session.is_quiet(), "it runs");
                polls += 1;
                if polls == 2 {
                    // Somebody asks for something while it runs.
                    cx.waker().wake_by_ref();
                }
                Poll::Pending
            }
        });
        let (mut driver, crank) = Driver::new(connection, session.clone());
        assert!(!session.is_quiet(), "it has not run yet");
        assert!(!poll(Pin::new(&mut driver)));
        assert!(session.is_quiet());
        let arrived = Waker::from(session.clone());
        arrived.wake_by_ref();
        assert!(!session.is_quiet(), "it has been called");
        assert!(!poll(Pin::new(&mut driver)));
        assert!(!session.rests(), "it has been called meanwhile");
        crank.turn();
        assert!(session.is_quiet(), "somebody else has run it");

        session.publish_unanswered(1);
        let mut waits = pin!(session.until_quiet());
        assert!(!poll(waits.as_mut()));
        assert!(!poll(Pin::new(&mut driver)), "an answer is still to come");
        assert!(!poll(waits.as_mut()));
        drop(driver);
        assert!(poll(waits.as_mut()), "no answer will come any more");
    }

    #[test]
    fn nobody_but_its_task_reads_an_answer_however_long_it_is() {
        let session = Arc::new(Session::new());
        let polls = Arc::new(AtomicU32::new(0));
        let connection = Scripted({
            let polls = polls.clone();
            move |_: &mut Context<'_>| {
                polls.fetch_add(1, Ordering::Relaxed);
                Poll::Pending
            }
        });
        let (mut driver, crank) = Driver::new(connection, session.clone());
        assert!(!poll(Pin::new(&mut driver)));
        let run_by_turn = |expected: u32| {
            let before = polls.load(Ordering::Relaxed);
            crank.turn();
            assert_eq!(polls.load(Ordering::Relaxed) - before, expected);
        };
        run_by_turn(1);
        session.publish_unanswered(1);
        run_by_turn(0);
        session.publish_unanswered(0);
        run_by_turn(1);
    }

    #[test]
    fn what_is_asked_for_is_written_at_once_unless_an_answer_is_on_its_way() {
        let session = Arc::new(Session::new());
        let asker = Arc::new(Mutex::new(None::<Waker>));
        let polls = Arc::new(AtomicU32::new(0));
        let connection = Scripted({
            let (asker, polls) = (asker.clone(), polls.clone());
            move |cx: &mut Context<'_>| {
                *asker.lock().expect("no panic") = Some(cx.waker().clone());
                polls.fetch_add(1, Ordering::Relaxed);
                Poll::<()>::Pending
            }
        });
        let (mut driver, _crank) = Driver::new(connection, session.clone());
        let task = Arc::new(Wakes::default());
        let waker = Waker::from(task.clone());
        assert!(Pin::new(&mut driver).poll(&mut Context::from_waker(&waker)).is_pending());
        let ask = || {
            let asker = asker.lock().expect("no panic").clone().expect("it has been polled");
            asker.wake();
            (polls.load(Ordering::Relaxed), task.0.load(Ordering::Relaxed))
        };
        assert_eq!(ask(), (2, 0), "written by whoever asks");
        assert!(session.is_quiet());
        session.publish_unanswered(1);
        assert_eq!(ask(), (2, 1), "left to the task, which yields at times");
        assert!(!session.is_quiet());
        session.publish_unanswered(0);
        // Somebody runs it at the moment.
        let place = driver.engine.lock();
        assert_eq!(ask(), (2, 2));
        drop(place);
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let asker_in_task = asker.lock().expect("no panic").clone().expect("it has been polled");
        runtime.block_on(async {
            tokio::spawn(async move { asker_in_task.wake() }).await.expect("no panic");
        });
        assert_eq!(task.0.load(Ordering::Relaxed), 3, "a task leaves it to the driver's");
        assert_eq!(polls.load(Ordering::Relaxed), 2);
        runtime.block_on(async { assert_eq!(ask(), (3, 3), "the body of `main` is none") });
        drop(driver);
        assert!(asker.lock().expect("no panic").take().is_some(), "kept by those who may ask");
    }

    #[test]
    fn a_connection_that_is_gone_is_not_kept_by_its_own_waker() {
        let kept = Arc::new(());
        let connection = Scripted({
            let (kept, mut wakers) = (kept.clone(), Vec::new());
            move |cx: &mut Context<'_>| {
                let _ = &kept;
                wakers.push(cx.waker().clone());
                Poll::<()>::Pending
            }
        });
        let (mut driver, crank) = Driver::new(connection, Arc::new(Session::new()));
        assert!(!poll(Pin::new(&mut driver)));
        drop(driver);
        assert_eq!(Arc::strong_count(&kept), 1);
        let engine = Arc::downgrade(&crank);
        drop(crank);
        assert_eq!(engine.strong_count(), 0);
    }

    #[test]
    fn whoever_waits_for_quiet_hears_of_it() {
        let session = Arc::new(Session::new());
        let connection = Scripted(|_: &mut Context<'_>| Poll::Pending);
        let (mut driver, _crank) = Driver::new(connection, session.clone());
        let mut waits = pin!(session.until_quiet());
        assert!(!poll(waits.as_mut()));
        assert!(!poll(Pin::new(&mut driver)));
        assert!(poll(waits.as_mut()));
        assert!(poll(pin!(session.until_quiet())), "it is quiet already");
    }

    #[derive(Default)]
    struct Wakes(AtomicU32);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_connection_that_ends_while_somebody_else_runs_it_ends_its_task_which_is_told_why() {
        let session = Arc::new(Session::new());
        let mut polls = 0;
        let connection = Scripted(move |_: &mut Context<'_>| {
            polls += 1;
            if polls == 1 { Poll::Pending } else { Poll::Ready("the server says why") }
        });
        let (mut driver, crank) = Driver::new(connection, session);
        crank.turn();
        let wakes = Arc::new(Wakes::default());
        let waker = Waker::from(wakes.clone());
        let mut cx = Context::from_waker(&waker);
        assert!(Pin::new(&mut driver).poll(&mut cx).is_pending(), "it was not run before its task");
        crank.turn();
        assert_eq!(wakes.0.load(Ordering::Relaxed), 1);
        assert_eq!(Pin::new(&mut driver).poll(&mut cx), Poll::Ready("the server says why"));
        crank.turn();
    }
}
