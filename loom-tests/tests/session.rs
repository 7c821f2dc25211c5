//! What a release is told of a session with PostgreSQL, beside the driver that runs it.
//!
//! Whoever has asked for something is heard, must not find the session quiet before the answer has ended,
//! and must know the status that it ended with; whoever waits for quiet hears of it.
//!
//! Loom: `session.rs` and `driver.rs` are the real ones. The driver's library and the server are the
//! `Connection` below: a line of requests, and the wakers of whoever empties it, with the steps and the
//! orderings of the `AtomicWaker` of `futures`.

#![cfg(loom)]

mod sync {
    pub(crate) use loom::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, fence};
    pub(crate) use loom::sync::{Mutex, MutexGuard};
    pub(crate) use std::sync::atomic::Ordering;

    /// Loom: the original in two steps, of which the model checker sees the second, with its orderings.
    pub(crate) struct OnceLock<T> {
        value: std::sync::OnceLock<T>,
        is_set: AtomicBool,
    }

    impl<T> OnceLock<T> {
        pub(crate) fn new() -> Self {
            Self { value: std::sync::OnceLock::new(), is_set: AtomicBool::new(false) }
        }

        pub(crate) fn get(&self) -> Option<&T> {
            if self.is_set.load(Ordering::Acquire) { self.value.get() } else { None }
        }

        pub(crate) fn set(&self, value: T) -> Result<(), T> {
            self.value.set(value)?;
            self.is_set.store(true, Ordering::Release);
            Ok(())
        }
    }
}

#[path = "../../src/backends/postgres"]
mod postgres {
    #[allow(dead_code, reason = "the backend uses more of it")]
    mod driver;
    #[allow(dead_code, reason = "the backend uses more of it")]
    mod session;

    use self::driver::{Crank, Driver};
    use self::session::Session;
    use crate::sync::AtomicU32;
    use loom::sync::Notify;
    use loom::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
    use millpond_loom::{block_on, check, thread};
    use std::future::Future;
    use std::pin::Pin;
    use std::sync::Arc;
    use std::task::{Context, Poll, Waker};

    /// Loom: he is as the body of `#[tokio::main]`; a task only wakes the driver's.
    fn is_in_task() -> bool {
        false
    }

    /// Loom: no task here has a budget.
    fn beyond_budget<T>(mut poll: impl FnMut() -> Poll<T>) -> Poll<T> {
        poll()
    }

    const WAITING: u32 = 0;
    const REGISTERING: u32 = 1;
    const WAKING: u32 = 2;

    /// A place for one waker. Whoever finds it half registered leaves the waking to whoever registers.
    #[derive(Default)]
    struct AtomicWaker {
        state: AtomicU32,
        /// Guarded by `state`; the model checker does not see it.
        waker: std::sync::Mutex<Option<Waker>>,
    }

    impl AtomicWaker {
        fn register(&self, waker: &Waker) {
            match self.state.compare_exchange(WAITING, REGISTERING, Acquire, Acquire) {
                Ok(_) => {
                    let waker = waker.clone();
                    // Neither the clone nor the drop under a lock that the model checker does not see.
                    let before = self.waker.lock().unwrap().replace(waker);
                    drop(before);
                    if self.state.compare_exchange(REGISTERING, WAITING, AcqRel, Acquire).is_err() {
                        let waker = self.waker.lock().unwrap().take();
                        self.state.swap(WAITING, AcqRel);
                        waker.expect("it has just been put there").wake();
                    }
                }
                Err(_) => {
                    // Loom: the task runs again until whoever wakes has done so, and lets him.
                    thread::yield_now();
                    waker.wake_by_ref();
                }
            }
        }

        fn wake(&self) {
            if self.state.fetch_or(WAKING, AcqRel) == WAITING {
                let waker = self.waker.lock().unwrap().take();
                self.state.fetch_and(!WAKING, Release);
                if let Some(waker) = waker {
                    waker.wake();
                }
            }
        }
    }

    /// What the driver's library and the server are told.
    struct Line {
        requests: AtomicU32,
        /// The server answers, and leaves a transaction open.
        answers: AtomicU32,
        /// The connection is to end.
        ends: AtomicU32,
        asked: AtomicWaker,
        /// Of what arrives, as the tap has it.
        arrived: AtomicWaker,
        heard: Notify,
        /// Whoever runs the connection from now on is no task. The model checker does not see it.
        no_task: std::sync::atomic::AtomicBool,
    }

    impl Line {
        fn new() -> Self {
            let zero = || AtomicU32::new(0);
            let (asked, arrived) = (AtomicWaker::default(), AtomicWaker::default());
            let (heard, no_task) = (Notify::new(), Default::default());
            Self { requests: zero(), answers: zero(), ends: zero(), asked, arrived, heard, no_task }
        }

        fn tell(&self, what: &AtomicU32) {
            what.fetch_add(1, AcqRel);
            self.arrived.wake();
        }

        fn ask(&self) {
            self.requests.fetch_add(1, AcqRel);
            self.asked.wake();
        }
    }

    struct Connection {
        line: Arc<Line>,
        session: Arc<Session>,
        unanswered: u32,
        is_dry: bool,
    }

    impl Connection {
        /// How many answers have come. As the tap, and the socket below it, have it.
        fn read(&mut self) -> u32 {
            if self.is_dry && !self.session.has_arrived() {
                return 0;
            }
            let mut answers = self.line.answers.swap(0, AcqRel);
            if answers == 0 {
                self.line.arrived.register(&self.session.clone().into());
                answers = self.line.answers.swap(0, AcqRel);
            }
            self.is_dry = answers == 0;
            answers
        }

        /// Whether there was anything to do.
        fn work(&mut self) -> bool {
            let answers = self.read();
            if answers > 0 {
                self.unanswered -= answers;
                self.session.answered(b'T');
                self.session.publish_unanswered(self.unanswered);
            }
            let requests = self.line.requests.swap(0, AcqRel);
            if requests > 0 {
                self.unanswered += requests;
                self.session.publish_unanswered(self.unanswered);
                self.line.heard.notify();
            }
            answers + requests > 0
        }
    }

    impl Future for Connection {
        type Output = ();

        fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
            if self.line.no_task.load(Relaxed) {
                assert_eq!(self.unanswered, 0, "an answer is read by who is no task");
            }
            while self.work() {}
            self.line.asked.register(cx.waker());
            while self.work() {}
            if self.line.ends.load(Acquire) > 0 { Poll::Ready(()) } else { Poll::Pending }
        }
    }

    type Parts = (Arc<Line>, Arc<Session>, Driver<Connection>, Arc<dyn Crank>);

    /// A session on which so many requests have been sent and not answered.
    fn session(unanswered: u32) -> Parts {
        let (line, session) = (Arc::new(Line::new()), Arc::new(Session::new()));
        session.publish_unanswered(unanswered);
        let (is_dry, session_of_it) = (false, session.clone());
        let connection =
            Connection { line: line.clone(), session: session_of_it, unanswered, is_dry };
        let (driver, crank) = Driver::new(connection, session.clone());
        (line, session, driver, crank)
    }

    /// The same after a first run.
    fn begun(unanswered: u32) -> Parts {
        let mut parts = session(unanswered);
        poll(&mut parts.2);
        parts
    }

    /// As the runtime does.
    fn poll(driver: &mut Driver<Connection>) {
        let _ = Pin::new(driver).poll(&mut Context::from_waker(Waker::noop()));
    }

    /// One asks beside a run of the driver; `apart`: on a thread of its own, or the driver is. With few
    /// preemptions these are not the same.
    fn asks(apart: bool) {
        check(move || {
            let (line, session, mut driver, _) = begun(0);
            assert!(session.is_quiet());
            let ask = {
                let session = session.clone();
                move || {
                    line.ask();
                    assert!(!session.is_quiet(), "a request is on its way");
                }
            };
            // A driver that is dropped ends, and then everything is quiet.
            let run = move || {
                poll(&mut driver);
                driver
            };
            let _driver = if apart {
                let asks = thread::spawn(ask);
                let driver = run();
                asks.join().unwrap();
                driver
            } else {
                let runs = thread::spawn(run);
                ask();
                runs.join().unwrap()
            };
            assert!(!session.is_quiet());
        });
    }

    /// Mutants seen to be caught: "a run does not say that it runs", "no fence", "a run serves the
    /// calls that came meanwhile", "nothing is called", "a run does not publish", "whoever sees
    /// that a run is over does not see what it did".
    #[test]
    fn whoever_has_asked_does_not_find_the_session_quiet() {
        asks(true);
        asks(false);
    }

    /// Mutant seen to be caught: "a run serves the calls that came meanwhile".
    #[test]
    fn whoever_has_asked_and_runs_the_driver_does_not_either() {
        check(|| {
            let (line, session, mut driver, crank) = begun(0);
            let asks = thread::spawn({
                let session = session.clone();
                move || {
                    line.ask();
                    crank.turn();
                    assert!(!session.is_quiet(), "a request is on its way");
                }
            });
            poll(&mut driver);
            asks.join().unwrap();
        });
    }

    /// Mutant seen to be caught: "whoever comes after the end of a session is not told".
    #[test]
    fn whoever_asks_to_be_told_of_the_end_is_told_once() {
        check(|| {
            let (_line, session, driver, _crank) = begun(0);
            let told = Arc::new(AtomicU32::new(0));
            let ends = thread::spawn(move || drop(driver));
            session.when_ended({
                let told = told.clone();
                move || drop(told.fetch_add(1, AcqRel))
            });
            ends.join().unwrap();
            assert_eq!(told.load(Acquire), 1);
        });
    }

    /// Mutant seen to be caught: "whoever asks looks for an answer before nobody else can ask".
    #[test]
    fn whoever_asks_beside_another_leaves_that_ones_answer_to_the_task() {
        check(|| {
            let (line, _session, _driver, crank) = begun(0);
            line.no_task.store(true, Relaxed);
            let asks = thread::spawn({
                let line = line.clone();
                move || line.ask()
            });
            crank.turn();
            asks.join().unwrap();
        });
    }

    /// Mutant seen to be caught: "whoever asks beside a run wakes nobody".
    #[test]
    fn whoever_asks_is_heard() {
        check(|| {
            // Loom: it does not see who drops them last.
            let (line, _session, driver, _crank) = session(0);
            let runs = thread::spawn(move || block_on(driver));
            line.ask();
            line.heard.wait();
            line.tell(&line.ends);
            runs.join().unwrap();
        });
    }

    /// Mutants seen to be caught: "an answer ends before its status", "whoever sees the end of an
    /// answer does not see its status".
    #[test]
    fn whoever_finds_it_quiet_knows_how_the_last_answer_ended() {
        check(|| {
            let (line, session, mut driver, _) = begun(1);
            let runs = thread::spawn(move || {
                line.tell(&line.answers);
                poll(&mut driver);
                driver
            });
            if session.is_quiet() {
                assert!(session.in_transaction(), "the answer has ended without its status");
            }
            drop(runs.join().unwrap());
            assert!(session.is_quiet());
        });
    }

    /// Mutants seen to be caught: "whoever waits calls nobody", "whoever waits looks for the task
    /// first", "a first run looks for calls before its task is known", "a waker wakes nobody",
    /// "nobody is told that it is quiet".
    #[test]
    fn whoever_waits_for_quiet_hears_of_it() {
        check(|| {
            let (line, session, driver, _) = session(1);
            let runs = thread::spawn({
                let line = line.clone();
                move || {
                    line.tell(&line.answers);
                    block_on(driver);
                }
            });
            block_on(session.until_quiet());
            assert!(session.in_transaction());
            line.tell(&line.ends);
            runs.join().unwrap();
        });
    }

    /// Mutants seen to be caught: "what arrives is left alone", "a run that counts a call may not see
    /// what has arrived".
    #[test]
    fn what_arrives_is_read_though_there_was_nothing_before() {
        check(|| {
            let (line, session, driver, _) = session(1);
            let runs = thread::spawn(move || block_on(driver));
            line.tell(&line.answers);
            block_on(session.until_quiet());
            line.tell(&line.ends);
            runs.join().unwrap();
        });
    }

    /// Mutants seen to be caught: "nobody is told of the end", "whoever waits does not look for the
    /// end".
    #[test]
    fn whoever_waits_for_quiet_hears_of_the_end() {
        check(|| {
            let (_, session, driver, _) = begun(1);
            let ends = thread::spawn(move || drop(driver));
            block_on(session.until_quiet());
            assert!(session.is_quiet());
            ends.join().unwrap();
        });
    }
}
