//! What runs a connection, and keeps an account of whether there is anything left to do.
//!
//! Not here: what the account means (`session.rs`).

use super::session::Session;
use crate::sync::Mutex;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

/// Runs a connection until it ends.
pub(super) struct Driver<C> {
    engine: Arc<Engine<C>>,
    // Dropped last: whoever is told that the session is quiet finds the connection closed.
    _running: Running,
}

/// A connection, and what it takes to run it.
struct Engine<C> {
    session: Arc<Session>,
    parts: Mutex<Parts<C>>,
}

struct Parts<C> {
    /// Gone when it has ended.
    connection: Option<C>,
    /// The task's waker, and the one that the connection gets in its place.
    wakers: Option<(Waker, Waker)>,
}

/// A session whose driver has not ended.
struct Running(Arc<Session>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// Wakes the driver, and notes that it has been called.
struct Tell {
    session: Arc<Session>,
    task: Waker,
}

impl Wake for Tell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.session.call();
        self.task.wake_by_ref();
    }
}

/// Lets somebody else than the driver's task run the connection for a moment.
pub(super) trait Crank: Send + Sync {
    /// Has what has been asked for written to the socket, as far as that takes it. Neither blocks nor
    /// waits; does nothing while the driver is at it.
    fn turn(&self);
}

impl<C: Future + Unpin + Send> Crank for Engine<C> {
    fn turn(&self) {
        let Ok(mut parts) = self.parts.try_lock() else { return };
        if self.run(&mut parts).is_ready() {
            // The task is to end as well.
            if let Some((task, _)) = &parts.wakers {
                task.wake_by_ref();
            }
        }
    }
}

impl<C: Future + Unpin> Engine<C> {
    /// Polls the connection with the driver's waker, whoever calls this.
    fn run(&self, parts: &mut Parts<C>) -> Poll<()> {
        let Parts { connection: Some(connection), wakers: Some((_, waker)) } = parts else {
            return Poll::Pending;
        };
        let calls = self.session.begin_run();
        // Its error is seen by whoever asks next: requests find it closed.
        let poll = Pin::new(connection).poll(&mut Context::from_waker(waker)).map(drop);
        if poll.is_ready() {
            parts.connection = None;
        }
        self.session.end_run(calls);
        poll
    }
}

impl<C: Future + Unpin + Send + 'static> Driver<C> {
    /// A driver, and a crank to turn it by.
    pub(super) fn new(connection: C, session: Arc<Session>) -> (Self, Arc<dyn Crank>) {
        let parts = Mutex::new(Parts { connection: Some(connection), wakers: None });
        let engine = Arc::new(Engine { session: session.clone(), parts });
        (Self { engine: engine.clone(), _running: Running(session) }, engine)
    }
}

impl<C: Future + Unpin> Future for Driver<C> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut parts = self.engine.parts.lock().unwrap_or_else(PoisonError::into_inner);
        if parts.connection.is_none() {
            return Poll::Ready(());
        }
        let known = parts.wakers.as_ref().is_some_and(|(task, _)| task.will_wake(cx.waker()));
        if !known {
            let session = self.engine.session.clone();
            let task = cx.waker().clone();
            session.runs_in(task.clone());
            let tell = Waker::from(Arc::new(Tell { session, task: task.clone() }));
            parts.wakers = Some((task, tell));
        }
        self.engine.run(&mut parts)
    }
}

impl<C> Drop for Driver<C> {
    fn drop(&mut self) {
        let connection = {
            let mut parts = self.engine.parts.lock().unwrap_or_else(PoisonError::into_inner);
            parts.connection.take()
        };
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

    /// A connection that does at each poll what the test says.
    struct Scripted<F>(F);

    impl<F: FnMut(&mut Context<'_>) -> Poll<()> + Unpin> Future for Scripted<F> {
        type Output = ();

        fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
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
    fn a_connection_that_ends_while_somebody_else_runs_it_ends_its_task() {
        let session = Arc::new(Session::new());
        let mut polls = 0;
        let connection = Scripted(move |_: &mut Context<'_>| {
            polls += 1;
            if polls == 1 { Poll::Pending } else { Poll::Ready(()) }
        });
        let (mut driver, crank) = Driver::new(connection, session);
        crank.turn();
        let wakes = Arc::new(Wakes::default());
        let waker = Waker::from(wakes.clone());
        let mut cx = Context::from_waker(&waker);
        assert!(Pin::new(&mut driver).poll(&mut cx).is_pending(), "it was not run before its task");
        crank.turn();
        assert_eq!(wakes.0.load(Ordering::Relaxed), 1);
        assert!(Pin::new(&mut driver).poll(&mut cx).is_ready());
        crank.turn();
    }
}
