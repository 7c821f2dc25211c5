//! What runs a connection, and keeps an account of whether there is anything left to do.
//!
//! Not here: what the account means (`session.rs`).

use super::session::Session;
use crate::sync::{Mutex, MutexGuard};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, PoisonError};
use std::task::{Context, Poll, Waker, ready};

/// Runs a connection until it ends. One task runs it all its life.
///
/// What it ends with, its task is told, whoever has run it last: a release must not wait for whoever
/// listens.
pub(super) struct Driver<C: Future> {
    engine: Arc<Engine<C>>,
    // Dropped last: whoever is told that the session is quiet finds the connection closed.
    _running: Running,
}

/// A connection, and what it takes to run it.
struct Engine<C: Future> {
    session: Arc<Session>,
    /// The session's, which the connection gets in the place of the task's.
    waker: Waker,
    /// Gone when it has ended.
    connection: Mutex<Option<C>>,
    /// What it has ended with.
    end: Mutex<Option<C::Output>>,
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
        // Nobody would be woken before the task's first run.
        if !self.session.has_begun() {
            return;
        }
        // The connection reads for as long as there is anything to read, and an answer may have no end.
        // Its task is made to yield at times; whoever is here is not.
        if self.session.unanswered() > 0 {
            return;
        }
        let Ok(mut place) = self.connection.try_lock() else { return };
        if place.is_some() && self.run(&mut place).is_ready() {
            // The task is to end as well.
            self.waker.wake_by_ref();
        }
    }
}

impl<C: Future> Engine<C> {
    fn lock(&self) -> MutexGuard<'_, Option<C>> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self) -> MutexGuard<'_, Option<C::Output>> {
        self.end.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<C: Future + Unpin> Engine<C> {
    /// Polls the connection with the session's waker, whoever calls this.
    #[inline]
    fn run(&self, place: &mut Option<C>) -> Poll<()> {
        let Some(connection) = place else { return Poll::Ready(()) };
        let calls = self.session.begin_run();
        // Whoever asks next finds it closed, and hears nothing of why.
        let poll = Pin::new(connection).poll(&mut Context::from_waker(&self.waker)).map(|end| {
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
        let engine = Arc::new(Engine {
            session: session.clone(),
            waker: session.clone().into(),
            connection: Mutex::new(Some(connection)),
            end: Mutex::new(None),
        });
        (Self { engine: engine.clone(), _running: Running(session) }, engine)
    }
}

impl<C: Future + Unpin> Future for Driver<C> {
    /// What the connection has ended with.
    type Output = C::Output;

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
        let waker = Arc::new(Mutex::new(None::<Waker>));
        let connection = Scripted({
            let (session, waker, mut polls) = (session.clone(), waker.clone(), 0);
            move |cx: &mut Context<'_>| {
                assert!(!session.is_quiet(), "it runs");
                *waker.lock().expect("no panic") = Some(cx.waker().clone());
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
        waker.lock().expect("no panic").as_ref().expect("it has been polled").wake_by_ref();
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
