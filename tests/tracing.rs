//! What a pool tells whoever listens with `tracing`.

#![cfg(feature = "tracing")]
#![allow(clippy::unwrap_used, reason = "these are tests, though clippy only sees their helpers")]

mod support;
use support::*;

use millpond::{AcquireError, CheckPolicy, Hooks, Pool, PoolBuilder};
use std::collections::VecDeque;
use std::error::Error;
use std::fmt::{Debug, Write};
use std::future::pending;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::task::Poll;
use std::time::Duration;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id};
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;

const SECOND: Duration = Duration::from_secs(1);

/// Writes down what it is told: level, name or message, fields.
#[derive(Clone, Default)]
struct Notes(Arc<Mutex<Vec<String>>>);

/// The fields of an event or span.
#[derive(Default)]
struct Fields(String);

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == "message" {
            self.0.insert_str(0, &format!("{value:?}"));
        } else {
            write!(self.0, " {}={value:?}", field.name()).unwrap();
        }
    }

    /// As `fmt` of tracing-subscriber does.
    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        self.record_debug(field, &format_args!("{value}"));
        let mut causes = value.source();
        while let Some(cause) = causes {
            write!(self.0, " {}.sources={cause}", field.name()).unwrap();
            causes = cause.source();
        }
    }
}

impl Notes {
    fn note(&self, metadata: &Metadata<'_>, what: &str, fields: Fields) {
        if metadata.target() == "millpond" {
            self.0.lock().unwrap().push(format!("{} {what}{}", metadata.level(), fields.0));
        }
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Notes {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        self.note(event.metadata(), "", fields);
    }

    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        let metadata = context.metadata(id).unwrap();
        self.note(metadata, &format!("span {}", metadata.name()), fields);
    }

    fn on_close(&self, id: Id, context: Context<'_, S>) {
        let metadata = context.metadata(&id).unwrap();
        self.note(metadata, &format!("end of {}", metadata.name()), Fields::default());
    }
}

/// Listens on this thread, for as long as the second answer lives.
fn listen() -> (Notes, tracing::subscriber::DefaultGuard) {
    let notes = Notes::default();
    let subscriber = tracing_subscriber::registry().with(notes.clone());
    (notes, tracing::subscriber::set_default(subscriber))
}

fn pool_of(manager: &TestManager, max_size: usize) -> PoolBuilder<TestManager> {
    Pool::builder(manager.clone()).max_size(max_size).name("orders")
}

/// That there is one note which begins and goes on like this.
#[track_caller]
fn has(notes: &[String], begins: &str, contains: &str) {
    let found = notes.iter().filter(|note| note.starts_with(begins) && note.contains(contains));
    assert_eq!(found.count(), 1, "{begins} … {contains} in {notes:#?}");
}

#[tokio::test(start_paused = true)]
async fn a_connection_is_told_of_when_it_is_opened_and_when_it_ends_and_a_hit_is_not() {
    let (notes, _listening) = listen();
    let manager = TestManager::new();
    let pool = pool_of(&manager, 1).build().await.unwrap();
    let held = pool.acquire().await.unwrap();
    let told = notes.take();
    has(&told, "DEBUG connected pool=orders connection=1 took=0ns", "");
    has(&told, "DEBUG span acquire pool=\"orders\" site=tests/tracing.rs:", "");
    has(&told, "DEBUG end of acquire", "");
    assert_eq!(told.len(), 3);
    drop(held);
    for _ in 0..10 {
        drop(pool.acquire().await.unwrap());
        drop(pool.try_acquire().unwrap());
    }
    assert_eq!(notes.take(), [""; 0], "a hit opens no span");
    tokio::time::advance(SECOND).await;
    pool.acquire().await.unwrap().discard();
    has(
        &notes.take(),
        "DEBUG a connection ends pool=orders connection=1 reason=Discarded age=1s",
        "",
    );
    pool.close().await;
    has(&notes.take(), "INFO the pool is closed pool=orders", "");
    pool.close().await;
    assert_eq!(notes.take(), [""; 0], "once");
}

#[tokio::test(start_paused = true)]
async fn checks_and_resets_that_fail_are_warnings_with_their_errors() {
    let (notes, _listening) = listen();
    let manager = TestManager::new();
    let pool = pool_of(&manager, 1).check(CheckPolicy::Always).build().await.unwrap();
    drop(pool.acquire().await.unwrap());
    manager.check.once(Act::Error);
    drop(pool.acquire().await.unwrap());
    let told = notes.take();
    let check = "WARN a check has failed pool=orders connection=1 error=";
    has(&told, check, "scripted check error");
    manager.check.once(Act::Never);
    let connection = pool.acquire().await.unwrap();
    has(&notes.take(), "WARN a check has failed pool=orders connection=2 error=", "");
    // In the background, after its release.
    manager.condition.once(Act::Slow(SECOND));
    manager.reset.once(Act::Error);
    drop(connection);
    eventually("it is closed", || pool.metrics().closed.failed_reset == 1).await;
    let reset = "WARN a reset has failed pool=orders connection=3 error=";
    has(&notes.take(), reset, "scripted reset error");
}

#[tokio::test(start_paused = true)]
async fn failures_to_connect_are_warnings_and_one_for_good_an_error() {
    let (notes, _listening) = listen();
    let manager = TestManager::new();
    let pool = pool_of(&manager, 1).build().await.unwrap();
    manager.connect.once(Act::Error);
    manager.connect.once(Act::Error);
    pool.acquire().await.unwrap().discard();
    let told = notes.take();
    let failed = "WARN cannot connect pool=orders error=scripted connect error";
    has(&told, failed, "in_a_row=1");
    has(&told, failed, "in_a_row=2");
    has(&told, "INFO connecting succeeds again pool=orders failures=2", "");
    manager.connect.once(Act::Permanent);
    assert!(matches!(pool.acquire().await, Err(AcquireError::Connect(_))));
    let told = notes.take();
    has(
        &told,
        "ERROR cannot connect until the server or the settings are changed pool=orders",
        "scripted",
    );
}

/// That these say the same at these levels: the first as a warning, and then fewer and fewer of them.
fn are_warnings_less_and_less_often(told: &[String], says: impl Fn(usize) -> String) {
    for (note, in_a_row) in told.iter().zip(1..) {
        let is_warning = [1, 2, 4, 8, 16, 32, 64, 128, 192].contains(&in_a_row);
        let level = if is_warning { "WARN" } else { "DEBUG" };
        assert_eq!(*note, format!("{level} {} in_a_row={in_a_row}", says(in_a_row)));
    }
}

#[tokio::test(start_paused = true)]
async fn failures_to_connect_that_say_the_same_are_warnings_less_and_less_often() {
    let what = Arc::new(Mutex::new("first"));
    let manager = millpond::from_fn({
        let what = what.clone();
        move || {
            let what = *what.lock().unwrap();
            async move { Err::<(), _>(TestError { what, permanent: false }) }
        }
    });
    let pool = Pool::builder(manager).name("orders").build_lazy().unwrap();
    let (notes, _listening) = listen();
    let fail = async || pool.warm_up(1).await.unwrap_err();
    for _ in 0..200 {
        fail().await;
    }
    let says = |what: &str| format!("cannot connect pool=orders error=scripted {what} error");
    let told = notes.take();
    assert_eq!(told.len(), 200);
    are_warnings_less_and_less_often(&told, |_| says("first"));
    *what.lock().unwrap() = "second";
    fail().await;
    fail().await;
    let second = says("second");
    let news = [format!("WARN {second} in_a_row=201"), format!("DEBUG {second} in_a_row=202")];
    assert_eq!(notes.take(), news, "what has changed is a warning");
}

#[tokio::test(start_paused = true)]
async fn a_hook_that_rejects_one_after_the_other_is_a_warning_less_and_less_often() {
    let (notes, _listening) = listen();
    let manager = TestManager::new();
    let hooks = Hooks::new()
        .before_acquire(|_| Box::pin(async { Err(TestError { what: "hook", permanent: false }) }));
    let pool = pool_of(&manager, 1).hooks(hooks).build_lazy().unwrap();
    pool.acquire_timeout(150 * SECOND).await.map(drop).unwrap_err();
    let mut told = notes.take();
    told.retain(|note| note.contains("has failed"));
    assert!(told.len() > 64, "{told:#?}");
    are_warnings_less_and_less_often(&told, |id| {
        let failed = "before_acquire has failed pool=orders connection=";
        format!("{failed}{id} error=scripted hook error")
    });
}

/// Each says another time.
#[tokio::test(start_paused = true)]
async fn new_connections_that_are_lost_in_a_row_are_warnings_less_and_less_often() {
    let (notes, _listening) = listen();
    let manager = TestManager::new();
    let pool = pool_of(&manager, 1).build().await.unwrap();
    let after = |id: usize| Duration::from_millis(id as u64);
    for id in 1..=9 {
        tokio::time::sleep(SECOND / 10).await;
        pool.warm_up(1).await.unwrap();
        tokio::time::sleep(after(id)).await;
        manager.lose(id);
    }
    let mut told = notes.take();
    told.retain(|note| note.contains("is lost"));
    assert_eq!(told.len(), 9, "{told:#?}");
    are_warnings_less_and_less_often(&told, |id| {
        let lost = "a new connection is lost pool=orders connection=";
        let after = after(id);
        format!(
            "{lost}{id} error=the new connection was lost after {after:.0?}, before anybody used it"
        )
    });
}

/// Such as those of redis and MySQL.
#[tokio::test(start_paused = true)]
async fn an_error_that_says_what_its_cause_says_is_told_once_and_with_all_causes() {
    #[derive(Debug, thiserror::Error)]
    #[error("{says}")]
    struct Link {
        says: &'static str,
        #[source]
        cause: Option<Box<Link>>,
    }
    let refused = "Connection refused (os error 111)";
    for (chain, told) in [
        ([refused, refused], refused),
        (["cannot connect to db:5432", refused], &format!("cannot connect to db:5432: {refused}")),
    ] {
        let connect = move || {
            let cause = Some(Box::new(Link { says: chain[1], cause: None }));
            async move { Err::<(), _>(Link { says: chain[0], cause }) }
        };
        let (notes, _listening) = listen();
        let pool = Pool::builder(millpond::from_fn(connect)).build_lazy().unwrap();
        pool.warm_up(1).await.unwrap_err();
        pool.rotate(|_| Box::pin(async { Ok(()) })).await.unwrap_err();
        let notes = notes.take();
        let failed = format!("WARN cannot connect pool=millpond error={told} in_a_row=1");
        let stays = "WARN cannot connect to rotate, and the old connections stay";
        let rotates = format!("{stays} pool=millpond error={told}");
        assert!(notes.contains(&failed) && notes.contains(&rotates), "{notes:#?}");
    }
}

/// As a field, by which one may filter, it is there though the error may name it.
#[tokio::test(start_paused = true)]
async fn whatever_tells_of_connecting_that_fails_tells_where_it_was_to_lead() {
    let (notes, _listening) = listen();
    let manager = TestManager::new();
    manager.leads_to("db:5432");
    let pool = || pool_of(&manager, 1).build_lazy().unwrap();
    for act in [Act::Error, Act::Permanent] {
        manager.connect.once(act);
        pool().warm_up(1).await.unwrap_err();
    }
    manager.connect.once(Act::Error);
    pool().rotate(|_| Box::pin(async { Ok(()) })).await.unwrap_err();
    manager.watch.once(Act::Error);
    pool().warm_up(1).await.unwrap_err();
    let told = notes.take();
    for begins in [
        "WARN cannot connect pool=orders server=db:5432 error=",
        "ERROR cannot connect until the server or the settings are changed pool=orders server=db:5432 error=",
        "WARN cannot connect to rotate, and the old connections stay pool=orders server=db:5432 error=",
        "WARN a new connection is lost pool=orders connection=1 server=db:5432 error=",
    ] {
        has(&told, begins, "");
    }
}

#[tokio::test(start_paused = true)]
async fn a_rotation_that_cannot_connect_is_told_of_too() {
    let (notes, _listening) = listen();
    let manager = TestManager::new();
    let pool = pool_of(&manager, 1).build().await.unwrap();
    manager.connect.once(Act::Error);
    pool.rotate(|_| Box::pin(async { Ok(()) })).await.unwrap_err();
    let told = notes.take();
    has(&told, "WARN cannot connect to rotate", "pool=orders error=scripted connect error");
}

#[tokio::test(start_paused = true)]
async fn what_a_hook_rejects_is_told_of_with_its_error() {
    hush_scripted_panics();
    let (notes, _listening) = listen();
    let manager = TestManager::new();
    let outcomes = [Act::Ok, Act::Error, Act::Never, Act::Ok, Act::Panic, Act::Error, Act::Ok];
    let next = Mutex::new(VecDeque::from(outcomes));
    let hooks = Hooks::new().before_acquire(move |_| {
        let act = next.lock().unwrap().pop_front().expect("one more outcome");
        Box::pin(async move {
            match act {
                Act::Ok => Ok(()),
                Act::Error => Err(TestError { what: "hook", permanent: false }),
                Act::Panic => panic!("scripted panic in a hook"),
                _ => pending().await,
            }
        })
    });
    let pool = pool_of(&manager, 1).hooks(hooks).check_timeout(SECOND).build().await.unwrap();
    drop(pool.acquire().await.unwrap());
    notes.take();
    // Once used, then new.
    let held = pool.acquire().await.unwrap();
    let told = notes.take();
    let used = "WARN before_acquire has failed pool=orders connection=1 error=scripted hook error";
    has(&told, used, "");
    assert!(!told.iter().any(|note| note.starts_with(used) && note.contains("in_a_row")));
    let silent =
        "WARN before_acquire has failed pool=orders connection=2 error=no answer within 1s";
    has(&told, silent, "(check_timeout) in_a_row=1");
    drop(held);
    drop(pool.acquire().await.unwrap());
    let told = notes.take();
    let panicked = "WARN before_acquire has failed pool=orders connection=3 error=";
    has(&told, panicked, "scripted panic in a hook");
    has(&told, "WARN before_acquire has failed pool=orders connection=4", "in_a_row=1");
    let warnings = told.iter().filter(|note| note.starts_with("WARN"));
    assert_eq!(warnings.count(), 2, "{told:#?}");
}

#[tokio::test(start_paused = true)]
async fn what_is_closed_because_a_hook_panics_that_sees_it_is_told_of() {
    hush_scripted_panics();
    let (notes, _listening) = listen();
    let manager = TestManager::new();
    let panics = Arc::new(AtomicBool::new(true));
    let once = move |what: &'static str, panics: &AtomicBool| {
        assert!(!panics.swap(false, Ordering::SeqCst), "{what}");
    };
    let checkout = panics.clone();
    let hooks = Hooks::new().on_checkout(move |_| once("scripted panic at checkout", &checkout));
    let pool = pool_of(&manager, 1).hooks(hooks).build().await.unwrap();
    drop(pool.acquire().await.unwrap());
    let told = notes.take();
    let rejected = "WARN on_checkout has failed pool=orders connection=1 error=";
    has(&told, rejected, "scripted panic at checkout");
    has(&told, rejected, "in_a_row=1");
    let hooks = Hooks::new().on_checkin(move |_| panic!("scripted panic at checkin"));
    let pool = pool_of(&manager, 1).hooks(hooks).build().await.unwrap();
    drop(pool.acquire().await.unwrap());
    let told = notes.take();
    let rejected = "WARN on_checkin has failed pool=orders connection=1 error=";
    has(&told, rejected, "scripted panic at checkin");
}

/// Such as by a server that ends all that it has just let in.
#[tokio::test(start_paused = true)]
async fn new_connections_that_are_lost_before_anybody_uses_them_are_warnings() {
    let (notes, _listening) = listen();
    let manager = TestManager::new();
    let pool = pool_of(&manager, 2).build().await.unwrap();
    for id in 1..=3 {
        tokio::time::sleep(SECOND / 10).await;
        manager.watch.once(Act::Error);
        assert!(pool.warm_up(1).await.is_err());
        let told = notes.take();
        let level = if id == 3 { "DEBUG" } else { "WARN" };
        let lost = format!("{level} a new connection is lost pool=orders connection={id} error=");
        has(&told, &lost, &format!("in_a_row={id}"));
        let warnings = told.iter().filter(|note| note.starts_with("WARN"));
        assert_eq!(warnings.count(), usize::from(id != 3), "{told:#?}");
    }
    // Two of one wave are one more.
    tokio::time::sleep(SECOND / 10).await;
    pool.warm_up(2).await.unwrap();
    notes.take();
    manager.lose(4);
    manager.lose(5);
    let told = notes.take();
    assert_eq!(told.iter().filter(|note| note.starts_with("WARN")).count(), 1, "{told:#?}");
    has(&told, "WARN a new connection is lost pool=orders connection=4", "in_a_row=");
    // One that has been used is lost to its user.
    tokio::time::sleep(2 * SECOND).await;
    drop(pool.acquire().await.unwrap());
    notes.take();
    manager.lose(6);
    let told = notes.take();
    has(&told, "DEBUG a connection ends pool=orders connection=6 reason=Broken", "");
    assert!(!told.iter().any(|note| note.starts_with("WARN")), "{told:#?}");
}

#[tokio::test(start_paused = true)]
async fn that_all_connections_are_out_of_date_is_told_of_once() {
    let (notes, _listening) = listen();
    let manager = TestManager::new();
    let pool = pool_of(&manager, 3).build().await.unwrap();
    pool.warm_up(3).await.unwrap();
    let [first, second] = [pool.acquire().await.unwrap(), pool.acquire().await.unwrap()];
    let found_out = first.id;
    notes.take();
    manager.condition.always(Act::Permanent);
    drop(first);
    let told = notes.take();
    let outdated = "WARN all connections are out of date pool=orders connection=";
    has(&told, &format!("{outdated}{found_out}"), "");
    drop(second);
    let told = notes.take();
    assert!(!told.iter().any(|note| note.starts_with("WARN")), "{told:#?}");
}

#[test]
fn a_thread_that_waits_has_the_span_of_an_acquire() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 1).build_blocking().unwrap();
    let (notes, _listening) = listen();
    let held = pool.acquire().unwrap();
    let told = notes.take();
    has(&told, "DEBUG span acquire pool=\"orders\" site=tests/tracing.rs:", "");
    assert_eq!(told.last().map(String::as_str), Some("DEBUG end of acquire"));
    drop(held);
    drop(pool.acquire().unwrap());
    assert_eq!(notes.take(), [""; 0], "a hit opens no span");
}

#[tokio::test(start_paused = true)]
async fn leaks_and_slow_acquires_are_warnings() {
    let (notes, _listening) = listen();
    let manager = TestManager::new();
    let builder = pool_of(&manager, 1).leak_after(5 * SECOND).slow_acquire(2 * SECOND);
    let pool = builder.build().await.unwrap();
    let held = pool.acquire().await.unwrap();
    let site = line!() - 1;
    pool.acquire_timeout(SECOND).await.map(drop).unwrap_err();
    let quick = notes.take();
    assert!(!quick.iter().any(|note| note.starts_with("WARN")), "{quick:#?}");
    pool.acquire_timeout(3 * SECOND).await.map(drop).unwrap_err();
    let line = line!() - 1;
    has(
        &notes.take(),
        &format!("WARN a slow acquire pool=orders site=tests/tracing.rs:{line}:"),
        "waited=3s outcome=TimedOut counts=1 of 1 in use",
    );
    tokio::time::sleep(10 * SECOND).await;
    let told = notes.take();
    let held_for_5_s = "pool=orders connection=1 held=5.0s site=tests/tracing.rs:";
    has(&told, &format!("WARN held for too long {held_for_5_s}{}:", site), "");
    drop(held);
    tokio::time::sleep(10 * SECOND).await;
    let late = format!("site=tests/tracing.rs:{site}:");
    has(&notes.take(), "INFO came back late pool=orders connection=1 held=1", &late);
    drop(pool.drain(SECOND).await);
    let told = notes.take();
    assert_eq!(told.first().unwrap(), "INFO the pool is being drained pool=orders");
    assert_eq!(told.last().unwrap(), "INFO the pool is closed pool=orders");
    assert!(!told.iter().any(|note| note.starts_with("WARN")), "{told:#?}");
}

#[tokio::test(start_paused = true)]
async fn a_drain_that_is_not_done_in_time_is_a_warning_and_then_the_pool_is_closed() {
    let (notes, _listening) = listen();
    let manager = TestManager::new();
    let pool = pool_of(&manager, 3).build().await.unwrap();
    let held = pool.acquire().await.unwrap();
    let line = line!() - 1;
    tokio::time::sleep(5 * SECOND).await;
    let other = pool.acquire().await.unwrap();
    tokio::time::sleep(2 * SECOND).await;
    notes.take();
    // It is being drained until the last of several drains is over.
    assert_eq!(tokio::join!(pool.drain(2 * SECOND), pool.drain(SECOND)).0.still_out.len(), 2);
    let told = notes.take();
    let drained = "INFO the pool is being drained pool=orders";
    let late = "WARN not drained in time pool=orders still_out=2 connection=1 held=";
    assert_eq!((told.len(), told[0].as_str()), (4, drained), "{told:#?}");
    for (late_one, held) in [(&told[1], 8), (&told[2], 9)] {
        // To the reaper's resolution.
        let held = [held - 1, held].map(|held| format!("{late}{held}."));
        assert!(held.iter().any(|begins| late_one.starts_with(begins)), "{told:#?}");
        assert!(late_one.contains(&format!("s site=tests/tracing.rs:{line}:")), "{told:#?}");
    }
    assert_eq!(told[3], "INFO the pool is closed pool=orders");
    drop((held, other));
    drop(pool.drain(SECOND).await);
    pool.close().await;
    let told = notes.take();
    assert!(told.iter().all(|note| note.starts_with("DEBUG a connection ends")), "{told:#?}");
}

#[tokio::test(start_paused = true)]
async fn each_use_has_a_span_if_that_is_wanted() {
    let (notes, _listening) = listen();
    let manager = TestManager::new();
    let pool = pool_of(&manager, 1).min_idle(1).trace_uses(true).build().await.unwrap();
    notes.take();
    let held = pool.acquire().await.unwrap();
    let told = notes.take();
    has(&told, "TRACE span use pool=\"orders\" connection=1 site=tests/tracing.rs:", "");
    assert_eq!(told.len(), 1);
    drop(held);
    assert_eq!(notes.take(), ["TRACE end of use"]);
    drop(pool.try_acquire().unwrap().detach());
    let told = notes.take();
    has(&told, "TRACE span use", "");
    has(&told, "TRACE end of use", "");
}

#[cfg(feature = "cluster")]
#[tokio::test(start_paused = true)]
async fn a_set_of_nodes_is_told_of_and_what_of_it_is_refused_and_what_is_not_drained_in_time() {
    use futures_util::stream::{self, StreamExt};
    use millpond::cluster::{Cluster, Endpoint, NodeOptions, NodeSpec};
    use std::io;

    let (notes, _listening) = listen();
    let cluster: Cluster<String, TestManager> =
        Cluster::builder().name("shop").template(|_| TestManager::new()).build().unwrap();
    let node = |key: &str| NodeSpec::new(key, Endpoint::new(key, 1));
    let bad = node("c").options(NodeOptions::default().weight(0));
    drop(cluster.apply([node("a"), node("b"), bad], SECOND).unwrap());
    let told = notes.take();
    let changes = "the nodes have changed: 2 added, 0 removed, 0 replaced, 0 changed, 1 refused";
    has(&told, "INFO ", &format!("{changes} cluster=shop"));
    has(&told, "WARN a node is refused cluster=shop node=c", "weight is 0");
    assert_eq!(told.len(), 2);
    drop(cluster.apply([node("b"), node("a")], SECOND).unwrap());
    assert_eq!(notes.take(), [""; 0], "nothing has changed");
    let held = cluster.acquire("a").await.unwrap();
    notes.take();
    drop(cluster.apply([node("b")], 5 * SECOND).unwrap());
    tokio::time::sleep(4 * SECOND).await;
    let told = notes.take();
    has(&told, "INFO the pool is being drained pool=shop/a", "");
    assert_eq!(told.len(), 2, "{told:#?}");
    tokio::time::sleep(2 * SECOND).await;
    let told = notes.take();
    has(&told, "WARN not drained in time pool=shop/a cluster=shop node=a still_out=1", "");
    has(&told, "INFO the pool is closed pool=shop/a cluster=shop node=a", "");
    assert_eq!(told.len(), 2, "{told:#?}");
    drop(held);
    // What a stream of sets has to say.
    let answers = [Err(io::Error::other("no answer")), Ok(Vec::new())];
    let watch = cluster.watch(stream::iter(answers).chain(stream::empty()), SECOND);
    eventually("the watch has ended", || !watch.is_running()).await;
    let told = notes.take();
    has(&told, "WARN no nodes are learned cluster=shop error=no answer", "");
    has(&told, "WARN no nodes are learned cluster=shop error=a set without nodes", "");
    has(&told, "INFO a watch of nodes has ended cluster=shop", "");
}

#[cfg(feature = "cluster")]
#[tokio::test(start_paused = true)]
async fn a_node_whose_role_changes_is_told_of_and_so_is_one_that_is_changed_by_hand() {
    use millpond::cluster::{Cluster, NodeOptions, Policy, Role};
    use std::sync::atomic::Ordering;

    let (notes, _listening) = listen();
    let builder = Cluster::builder().name("shop").read_role(|conn: &mut Conn| {
        let is_primary = conn.server().mark.load(Ordering::SeqCst) > 0;
        let role = if is_primary { Role::Primary } else { Role::Replica };
        Box::pin(std::future::ready(Ok(role)))
    });
    let cluster: Cluster<String, TestManager> = builder.build().unwrap();
    let manager = TestManager::new();
    cluster.add_node("a".to_owned(), manager.clone()).unwrap();
    assert_eq!(notes.take(), ["INFO a node is added cluster=shop node=a"]);
    drop(cluster.acquire("a").await.unwrap());
    let role = "INFO the role has changed cluster=shop node=a";
    has(&notes.take(), role, "from=\"unknown\" to=\"replica\"");
    drop(cluster.acquire("a").await.unwrap());
    assert_eq!(notes.take(), [""; 0], "it is the same");
    manager.ledger.mark.store(1, Ordering::SeqCst);
    drop(cluster.acquire_any(Policy::Primary).await.unwrap());
    has(&notes.take(), role, "from=\"replica\" to=\"primary\"");

    let heavy = NodeOptions::default().weight(2);
    cluster.set_options("a", heavy.clone()).unwrap();
    assert_eq!(notes.take(), ["INFO a node has other options cluster=shop node=a"]);
    cluster.set_options("a", heavy.clone()).unwrap();
    assert_eq!(notes.take(), [""; 0], "they are the same");
    cluster.set_options("a", heavy.role(Role::Replica)).unwrap();
    let told = notes.take();
    has(&told, role, "from=\"primary\" to=\"replica\"");
    assert_eq!(told.len(), 2, "{told:#?}");
    drop(cluster.replace("a", TestManager::new(), SECOND).await.unwrap());
    has(&notes.take(), "INFO a node is replaced cluster=shop node=a", "");
    drop(cluster.remove_node("a", SECOND).await.unwrap());
    has(&notes.take(), "INFO a node is removed cluster=shop node=a", "");
}

#[cfg(feature = "cluster")]
#[tokio::test(start_paused = true)]
async fn a_drain_in_the_background_goes_on_without_the_cluster() {
    use millpond::cluster::{Cluster, Endpoint, NodeSpec};

    let (notes, _listening) = listen();
    let cluster: Cluster<String, TestManager> =
        Cluster::builder().name("shop").template(|_| TestManager::new()).build().unwrap();
    let node = |key: &str| NodeSpec::new(key, Endpoint::new(key, 1));
    drop(cluster.apply([node("a"), node("b")], SECOND).unwrap());
    let held = cluster.acquire("a").await.unwrap().into_owned();
    drop(cluster.apply([node("b")], 5 * SECOND).unwrap());
    drop(cluster);
    tokio::time::sleep(4 * SECOND).await;
    notes.take();
    tokio::time::sleep(2 * SECOND).await;
    let told = notes.take();
    has(&told, "WARN not drained in time pool=shop/a cluster=shop node=a still_out=1", "");
    drop(held);
}

#[cfg(feature = "cluster")]
#[tokio::test(start_paused = true)]
async fn what_is_told_of_a_clusters_node_says_which_node_it_is_and_what_of_other_pools_does_not() {
    use millpond::cluster::Cluster;

    let (notes, _listening) = listen();
    let builder = Cluster::builder().name("shop").pools(|pool| pool.trace_uses(true));
    let cluster: Cluster<String, TestManager> = builder.build().unwrap();
    cluster.add_node("a".to_owned(), TestManager::new()).unwrap();
    notes.take();
    cluster.acquire("a").await.unwrap().discard();
    cluster.close().await;
    let told = notes.take();
    let node = "cluster=shop node=a";
    has(&told, &format!("DEBUG span acquire pool=\"shop/a\" {node} site=tests/tracing.rs:"), "");
    has(&told, &format!("DEBUG connected pool=shop/a {node} connection=1"), "");
    has(&told, &format!("TRACE span use pool=\"shop/a\" {node} connection=1 site="), "");
    has(&told, &format!("DEBUG a connection ends pool=shop/a {node} connection=1"), "");
    has(&told, &format!("INFO the pool is closed pool=shop/a {node}"), "");

    let pool = pool_of(&TestManager::new(), 1).trace_uses(true).build().await.unwrap();
    pool.acquire().await.unwrap().discard();
    pool.close().await;
    let of_pool = notes.take();
    assert_eq!(of_pool.len(), told.len(), "the same is told of it: {of_pool:#?}");
    let says = |note: &&String| note.contains("cluster=") || note.contains("node=");
    assert_eq!(of_pool.iter().find(says), None);
}

#[cfg(feature = "cluster")]
#[tokio::test(start_paused = true)]
async fn a_slow_acquire_of_a_cluster_says_where_it_was_asked_for() {
    use millpond::cluster::{Cluster, Policy};

    let (notes, _listening) = listen();
    let builder = Cluster::builder().name("shop").acquire_timeout(3 * SECOND);
    let builder = builder.pools(|pool| pool.max_size(1).slow_acquire(SECOND));
    let cluster: Cluster<String, TestManager> = builder.build().unwrap();
    cluster.add_node("a".to_owned(), TestManager::new()).unwrap();
    let _held = cluster.acquire("a").await.unwrap();
    notes.take();
    let slow = |line: u32| format!("site=tests/tracing.rs:{line}:");
    cluster.acquire("a").await.map(drop).unwrap_err();
    has(&notes.take(), "WARN a slow acquire pool=shop/a", &slow(line!() - 1));
    cluster.acquire_any(Policy::RoundRobin).await.map(drop).unwrap_err();
    has(&notes.take(), "WARN a slow acquire pool=shop/a", &slow(line!() - 1));
}

/// Panics when it is told something that begins so.
struct Trips(&'static str);

impl<S: Subscriber> Layer<S> for Trips {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        assert!(!fields.0.starts_with(self.0), "scripted panic of a listener");
    }
}

/// Asks a pool for a connection when it is told that connecting fails, and writes down whether that is
/// refused at once.
#[derive(Clone, Default)]
struct Asks(Arc<OnceLock<Pool<TestManager>>>, Arc<Mutex<Vec<bool>>>);

impl<S: Subscriber> Layer<S> for Asks {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        if fields.0.starts_with("cannot connect") {
            let answer = poll_once(std::pin::pin!(self.0.get().unwrap().acquire()));
            let refused = matches!(answer, Poll::Ready(Err(AcquireError::Unavailable(_))));
            self.1.lock().unwrap().push(refused);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn who_hears_first_that_nothing_can_be_reached_is_refused_as_others_are() {
    let asks = Asks::default();
    let _listening =
        tracing::subscriber::set_default(tracing_subscriber::registry().with(asks.clone()));
    let manager = TestManager::new();
    manager.connect.always(Act::Error);
    let pool = pool_of(&manager, 1).fail_fast(true).build_lazy().unwrap();
    asks.0.set(pool.clone()).unwrap();
    let error = pool.acquire().await.map(drop).unwrap_err();
    assert!(matches!(error, AcquireError::Unavailable(_)), "{error:?}");
    assert_eq!(*asks.1.lock().unwrap(), [true]);
}

#[tokio::test(start_paused = true)]
async fn a_listener_that_panics_costs_no_place() {
    hush_scripted_panics();
    let listening = tracing::subscriber::set_default(
        tracing_subscriber::registry().with(Trips("a connection ends")),
    );
    let manager = TestManager::new();
    let pool = pool_of(&manager, 1).check(CheckPolicy::Always).build().await.unwrap();
    drop(pool.acquire().await.unwrap());
    manager.check.once(Act::Never);
    let mut cut = Box::pin(pool.acquire());
    assert!(poll_once(cut.as_mut()).is_pending());
    // The check is given up, and its connection with it.
    drop(cut);
    drop(listening);
    let counts = pool.counts();
    assert_eq!((counts.vacant, counts.checking), (1, 0), "the place is there again");
    drop(pool.acquire().await.unwrap());
    assert_eq!(manager.ledger.opened(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_listener_that_panics_keeps_no_connection_that_is_to_go() {
    hush_scripted_panics();
    type Change = fn(&Pool<TestManager>);
    let changes: [(Change, usize); 2] =
        [(|pool| pool.resize(1).unwrap(), 1), (Pool::invalidate, 0)];
    for (change, idle) in changes {
        let manager = TestManager::new();
        let pool = pool_of(&manager, 3).build().await.unwrap();
        pool.warm_up(3).await.unwrap();
        let listener = tracing_subscriber::registry().with(Trips("a connection ends"));
        let listening = tracing::subscriber::set_default(listener);
        change(&pool);
        drop(listening);
        assert_eq!(pool.counts().idle, idle);
        eventually("the others are gone", || manager.ledger.live() == idle).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_listener_that_panics_when_it_hears_of_a_leak_does_not_end_upkeep() {
    hush_scripted_panics();
    for message in ["held for too long", "came back late"] {
        let listener = tracing_subscriber::registry().with(Trips(message));
        let _listening = tracing::subscriber::set_default(listener);
        let manager = TestManager::new();
        let pool = pool_of(&manager, 1).leak_after(5 * SECOND).max_lifetime(60 * SECOND);
        let pool = pool.idle_timeout(30 * SECOND).build().await.unwrap();
        let held = pool.acquire().await.unwrap();
        tokio::time::sleep(10 * SECOND).await;
        drop(held);
        tokio::time::sleep(40 * SECOND).await;
        let metrics = pool.metrics();
        assert_eq!((metrics.leaks, metrics.late_returns), (1, 1), "{message}");
        assert_eq!(metrics.closed.idle, 1, "{message}");
    }
}

/// Has happen to a pool whatever can be told of it; answers with what came of it.
async fn troubled() -> [u64; 14] {
    let manager = TestManager::new();
    for act in [Act::Error, Act::Ok, Act::Ok, Act::Ok, Act::Permanent, Act::Permanent] {
        manager.connect.once(act);
    }
    // No more than these, or a pool that connects again and again would have the clock stand still.
    manager.connect.always(Act::Never);
    let pool = pool_of(&manager, 1).check(CheckPolicy::Always).backoff(SECOND, SECOND);
    let pool = pool.slow_acquire(SECOND).close_timeout(SECOND).trace_uses(true);
    let pool = pool.build_lazy().unwrap();
    drop(pool.acquire().await.unwrap());
    manager.check.once(Act::Error);
    let held = pool.acquire().await.unwrap();
    manager.condition.once(Act::Slow(SECOND));
    manager.reset.once(Act::Error);
    held.release().await.unwrap_err();
    let held = pool.acquire_owned().await.unwrap();
    let slow = tokio::spawn({
        let pool = pool.clone();
        async move { pool.acquire_owned().await.unwrap() }
    });
    tokio::time::sleep(2 * SECOND).await;
    drop(held);
    let held = slow.await.unwrap();
    let refused = [(); 3].map(|()| {
        let pool = pool.clone();
        tokio::spawn(async move { pool.acquire_owned().await.map(drop) })
    });
    eventually("three wait", || pool.counts().waiters == 3).await;
    held.discard();
    for refused in refused {
        let refused = refused.await.unwrap();
        assert!(matches!(refused, Err(AcquireError::Connect(_))), "scripted panic: {refused:?}");
    }
    pool.rotate(|_| Box::pin(async { Ok(()) })).await.unwrap_err();
    pool.close().await;
    let (metrics, ledger) = (balanced(&pool, &manager.ledger).await, &manager.ledger);
    let (closed, waits) = (metrics.closed, metrics.waits);
    let count = |count: usize| count as u64;
    [
        metrics.created,
        metrics.connect_failures,
        metrics.checks,
        metrics.resets,
        closed.failed_check,
        closed.failed_reset,
        closed.discarded,
        closed.total(),
        waits.served,
        waits.failed,
        waits.failures(),
        count(manager.connect.calls()),
        count(ledger.dropped()),
        count(ledger.closed()),
    ]
}

#[tokio::test(start_paused = true)]
async fn a_listener_that_panics_changes_nothing_of_what_it_is_told_of() {
    hush_scripted_panics();
    let expected = troubled().await;
    let mut changed = Vec::new();
    for message in [
        "connected",
        "cannot connect",
        "cannot connect until the server or the settings are changed",
        "cannot connect to rotate",
        "connecting succeeds again",
        "a check has failed",
        "a reset has failed",
        "a slow acquire",
        "a connection ends",
        "the pool is",
    ] {
        let listener = tracing_subscriber::registry().with(Trips(message));
        let _listening = tracing::subscriber::set_default(listener);
        // A panic of its own task is a change as well.
        let became = tokio::spawn(troubled()).await.ok();
        if became != Some(expected) {
            changed.push((message, became));
        }
    }
    assert!(changed.is_empty(), "{expected:?} became {changed:#?}");
}

/// Panics at this turn of a span of this name.
struct TripsAt(&'static str, &'static str);

/// All turns of both spans, but that nobody enters that of a use.
const TURNS: [(&str, &str); 6] = [
    ("acquire", "begins"),
    ("acquire", "is entered"),
    ("acquire", "is left"),
    ("acquire", "ends"),
    ("use", "begins"),
    ("use", "ends"),
];

impl TripsAt {
    fn turns<S: Subscriber + for<'a> LookupSpan<'a>>(
        &self,
        id: &Id,
        context: &Context<'_, S>,
        turn: &str,
    ) {
        let name = context.metadata(id).unwrap().name();
        assert!((name, turn) != (self.0, self.1), "scripted panic of a listener");
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for TripsAt {
    fn on_new_span(&self, _: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        self.turns(id, &context, "begins");
    }

    fn on_enter(&self, id: &Id, context: Context<'_, S>) {
        self.turns(id, &context, "is entered");
    }

    fn on_exit(&self, id: &Id, context: Context<'_, S>) {
        self.turns(id, &context, "is left");
    }

    fn on_close(&self, id: Id, context: Context<'_, S>) {
        self.turns(&id, &context, "ends");
    }
}

#[tokio::test(start_paused = true)]
async fn a_listener_that_panics_at_a_span_changes_nothing_of_what_is_done_in_it() {
    hush_scripted_panics();
    let expected = troubled().await;
    let mut changed = Vec::new();
    for (span, turn) in TURNS {
        let listener = tracing_subscriber::registry().with(TripsAt(span, turn));
        let _listening = tracing::subscriber::set_default(listener);
        let became = tokio::spawn(troubled()).await.ok();
        if became != Some(expected) {
            changed.push((span, turn, became));
        }
    }
    assert!(changed.is_empty(), "{expected:?} became {changed:#?}");
}

#[test]
fn a_listener_that_panics_at_a_span_costs_a_thread_nothing_that_waits_in_it() {
    hush_scripted_panics();
    for (span, turn) in TURNS {
        let manager = TestManager::new();
        let pool = pool_of(&manager, 1).trace_uses(true).build_blocking().unwrap();
        let listener = tracing_subscriber::registry().with(TripsAt(span, turn));
        let _listening = tracing::subscriber::set_default(listener);
        let held = pool.acquire().unwrap();
        pool.acquire_timeout(Duration::ZERO).map(drop).unwrap_err();
        drop(held);
        drop(pool.acquire().unwrap());
        let metrics = pool.metrics();
        assert_eq!((metrics.counts.idle, metrics.counts.waiters), (1, 0), "{span} {turn}");
        assert_eq!(manager.ledger.opened(), 1, "{span} {turn}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_listener_that_panics_at_its_span_keeps_nobody_in_line_who_gives_up() {
    hush_scripted_panics();
    for (span, turn) in TURNS {
        let manager = TestManager::new();
        let pool = pool_of(&manager, 1).build().await.unwrap();
        let held = pool.acquire().await.unwrap();
        let mut waits = Box::pin(pool.acquire());
        assert!(poll_once(waits.as_mut()).is_pending());
        let listener = tracing_subscriber::registry().with(TripsAt(span, turn));
        let listening = tracing::subscriber::set_default(listener);
        let mut watched = Box::pin(pool.acquire());
        assert!(poll_once(watched.as_mut()).is_pending(), "{span} {turn}");
        assert_eq!(pool.counts().waiters, 2, "{span} {turn}");
        drop(watched);
        drop(listening);
        assert_eq!(pool.counts().waiters, 1, "{span} {turn}");
        drop(held);
        drop(waits.await.unwrap());
    }
}

/// Writes down in which span a connection ends.
#[derive(Clone, Default)]
struct EndsIn(Arc<Mutex<Vec<Option<&'static str>>>>);

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for EndsIn {
    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        if fields.0.starts_with("a connection ends") {
            let span = context.lookup_current().map(|span| span.name());
            self.0.lock().unwrap().push(span);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_an_acquire_does_as_it_is_given_up_is_told_in_its_span() {
    let ends_in = EndsIn::default();
    let listener = tracing_subscriber::registry().with(ends_in.clone());
    let _listening = tracing::subscriber::set_default(listener);
    let manager = TestManager::new();
    let pool = pool_of(&manager, 1).check(CheckPolicy::Always).build().await.unwrap();
    drop(pool.acquire().await.unwrap());
    manager.check.once(Act::Never);
    let mut cut = Box::pin(pool.acquire());
    assert!(poll_once(cut.as_mut()).is_pending());
    drop(cut);
    assert_eq!(*ends_in.0.lock().unwrap(), [Some("acquire")]);
}

#[cfg(feature = "cluster")]
#[tokio::test(start_paused = true)]
async fn a_listener_that_panics_keeps_no_node_that_was_removed_open() {
    use millpond::cluster::Cluster;

    hush_scripted_panics();
    let (cluster, manager) =
        (Cluster::<&str, TestManager>::builder().build().unwrap(), TestManager::new());
    cluster.add_node("a", manager.clone()).unwrap();
    let node = cluster.node("a").unwrap();
    node.warm_up(1).await.unwrap();
    let listener = tracing_subscriber::registry().with(Trips("a node is removed"));
    let listening = tracing::subscriber::set_default(listener);
    drop(cluster.remove_node("a", SECOND).await.unwrap());
    drop(listening);
    assert_eq!(manager.ledger.live(), 0);
    assert!(node.acquire().await.is_err());
}

#[cfg(feature = "cluster")]
#[tokio::test(start_paused = true)]
async fn a_listener_that_panics_when_it_hears_of_a_role_costs_no_connection() {
    use millpond::cluster::{Cluster, NodeOptions, Role};

    hush_scripted_panics();
    let cluster = Cluster::<&str, TestManager>::builder()
        .read_role(|_: &mut Conn| Box::pin(async { Ok(Role::Primary) }))
        .build()
        .unwrap();
    let manager = TestManager::new();
    cluster.add_node("a", manager.clone()).unwrap();
    let listener = tracing_subscriber::registry().with(Trips("the role has changed"));
    let listening = tracing::subscriber::set_default(listener);
    let guard = cluster.acquire("a").await.unwrap();
    assert_eq!((guard.role(), manager.ledger.opened()), (Role::Primary, 1));
    cluster.set_options("a", NodeOptions::default().role(Role::Replica)).unwrap();
    drop(listening);
    let status = cluster.status();
    assert_eq!(status.nodes[0].pool.metrics.connect_failures, 0);
    assert!(status.nodes[0].is_up);
}

#[cfg(feature = "cluster")]
#[tokio::test(start_paused = true)]
async fn a_listener_that_panics_keeps_nobody_from_what_a_cap_gives_him() {
    use millpond::cluster::Cluster;

    hush_scripted_panics();
    let builder = Cluster::<&str, TestManager>::builder().max_connections(2);
    let cluster = builder.build().unwrap();
    cluster.add_node("a", TestManager::new()).unwrap();
    cluster.add_node("b", TestManager::new()).unwrap();
    drop([cluster.acquire("a").await.unwrap(), cluster.acquire("a").await.unwrap()]);
    let listener = tracing_subscriber::registry().with(Trips("a connection ends"));
    let listening = tracing::subscriber::set_default(listener);
    let guard = cluster.acquire("b").await.unwrap();
    drop(listening);
    assert_eq!(guard.node(), &"b");
    assert_eq!(cluster.status().totals.counts.alive(), 2);
}

/// Does this whenever an acquire that waits is left, be it for good or until it is woken.
#[cfg(feature = "cluster")]
struct WhenLeft<F>(F);

#[cfg(feature = "cluster")]
impl<S: Subscriber, F: Fn() + 'static> Layer<S> for WhenLeft<F> {
    fn on_exit(&self, _: &Id, _: Context<'_, S>) {
        (self.0)();
    }
}

/// Half-way out of a line, somebody is not in it any more and is still taken for one for whom nothing is
/// to be opened. A listener holds him up just there until the cap has looked.
#[cfg(feature = "cluster")]
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn under_a_cap_who_gives_up_waiting_at_several_nodes_hides_nobody_else_who_waits() {
    use millpond::cluster::{Cluster, NodeView, Policy};
    use std::pin::pin;
    use std::sync::atomic::{AtomicBool, Ordering};

    let builder = Cluster::<String, TestManager>::builder().pools(|pool| pool.max_size(1));
    let cluster = builder.max_connections(1).acquire_timeout(PATIENCE).build().unwrap();
    cluster.add_node("a".to_owned(), TestManager::new()).unwrap();
    cluster.add_node("b".to_owned(), TestManager::new()).unwrap();
    let held = cluster.acquire("a").await.unwrap();
    let named = tokio::spawn({
        let cluster = cluster.clone();
        async move { cluster.acquire("b").await.map(drop) }
    });
    let pools = {
        let cluster = cluster.clone();
        move || cluster.status().nodes.into_iter().map(|node| node.pool).collect::<Vec<_>>()
    };
    eventually("a is to give its connection", || pools()[0].max_size == 0).await;
    // One of them looks after the cap.
    let runtime = tokio::runtime::Handle::current().metrics();
    let tasks = runtime.num_alive_tasks();
    let gives_up = Arc::new(AtomicBool::new(false));
    let left = {
        let (pools, gives_up) = (pools.clone(), gives_up.clone());
        move || {
            if gives_up.load(Ordering::SeqCst) && pools()[1].metrics.counts.waiters == 1 {
                eventually_blocking("the cap lets a keep it", || {
                    pools()[0].max_size == 1 && runtime.num_alive_tasks() < tasks
                });
            }
        }
    };
    let listener = tracing_subscriber::registry().with(WhenLeft(left));
    let listening = tracing::subscriber::set_default(listener);
    {
        let rank = |node: &NodeView<'_, String>| Some(f64::from(u8::from(node.key() == "b")));
        let mut anywhere = pin!(cluster.acquire_any(Policy::Rank(&rank)));
        assert!(poll_once(anywhere.as_mut()).is_pending());
        gives_up.store(true, Ordering::SeqCst);
    }
    drop(listening);
    drop(held);
    joined(named).await.unwrap();
}

/// One in use, one idle, one with a transaction that nobody goes on with; the pool itself ends a fourth.
#[cfg(feature = "postgres")]
#[tokio::test]
async fn why_a_server_has_ended_a_connection_is_told_also_if_nobody_asks_it_for_anything() {
    use millpond::backends::postgres::PostgresManager;

    let Some(server) = Postgres::start(&[]) else { return };
    let manager = PostgresManager::from_url(&server.url()).unwrap();
    let pool = Pool::builder(manager).max_size(4).min_idle(4).keepalive_interval(None);
    let pool = pool.build().await.unwrap();
    let (notes, _listening) = listen();
    let mut lost = Vec::new();
    let mut lose = async |what: &str, count: usize| {
        eventually(what, || {
            lost.extend(notes.take().into_iter().filter(|note| note.contains("is lost")));
            lost.len() == count
        })
        .await;
    };
    let [held, idle, open, alive] = [(); 4].map(|()| pool.acquire());
    let (held, idle) = (held.await.unwrap(), idle.await.unwrap());
    let (open, alive) = (open.await.unwrap(), alive.await.unwrap());
    let mut doomed = Vec::new();
    for client in [&held, &idle] {
        let row = client.query_one("SELECT pg_backend_pid()", &[]).await.unwrap();
        doomed.push(row.get::<_, i32>(0));
    }
    drop(idle);
    for process in doomed {
        server.run(&format!("SELECT pg_terminate_backend({process}, 10000)"));
    }
    lose("the one in use and the idle one are lost", 2).await;
    let waits = "SET idle_in_transaction_session_timeout = 1; BEGIN";
    open.batch_execute(waits).await.unwrap();
    lose("so is the one with a transaction", 3).await;
    drop((held, open));
    alive.batch_execute("SELECT 1").await.unwrap();
    alive.discard();
    pool.close().await;
    let server = format!("WARN a connection is lost server={}", server.address());
    let said = |what: &str| {
        let begins = format!("{server} error=FATAL: terminating connection due to {what}");
        lost.iter().filter(|note| note.starts_with(&begins)).count()
    };
    assert_eq!(said("administrator command (SQLSTATE 57P01)"), 2, "{lost:#?}");
    assert_eq!(said("idle-in-transaction timeout (SQLSTATE 25P03)"), 1, "{lost:#?}");
    let told = notes.take();
    assert!(!told.iter().any(|note| note.contains("is lost")), "the pool has ended it: {told:#?}");
}

/// The driver (0.7.18) does not expect the second answer that such a copy has.
#[cfg(feature = "postgres")]
#[tokio::test]
async fn a_copy_that_is_refused_before_it_begins_is_told_as_a_connection_that_is_lost() {
    use millpond::backends::postgres::PostgresManager;

    let Some(server) = Postgres::start(&[]) else { return };
    let manager = PostgresManager::from_url(&server.url()).unwrap();
    let pool = Pool::builder(manager).max_size(1).build().await.unwrap();
    let client = pool.acquire().await.unwrap();
    let (notes, _listening) = listen();
    client.copy_in::<_, &[u8]>("COPY no_such_table FROM STDIN").await.err().unwrap();
    let mut lost = Vec::new();
    eventually("the connection is lost", || {
        lost.extend(notes.take().into_iter().filter(|note| note.contains("is lost")));
        !lost.is_empty()
    })
    .await;
    let server = format!("WARN a connection is lost server={}", server.address());
    let said = format!("{server} error=unexpected message from server");
    assert!(lost.len() == 1 && lost[0].starts_with(&said), "{lost:#?}");
}

#[cfg(feature = "cluster")]
#[tokio::test(start_paused = true)]
async fn a_listener_that_panics_ends_no_watch_and_keeps_no_set_of_nodes_from_being_applied() {
    use futures_util::stream;
    use millpond::cluster::{Cluster, Endpoint, NodeSpec};

    hush_scripted_panics();
    let mut harmed = Vec::new();
    for message in
        ["a node is refused", "the nodes have changed", "not drained", "no nodes", "a watch"]
    {
        let listener = tracing_subscriber::registry().with(Trips(message));
        let _listening = tracing::subscriber::set_default(listener);
        let cluster =
            Cluster::<String, TestManager>::builder().template(|_| TestManager::new()).build();
        let cluster = cluster.unwrap();
        cluster.add_node("mine".to_owned(), TestManager::new()).unwrap();
        let set = |keys: [&str; 2]| {
            Ok(keys.map(|key| NodeSpec::<String>::new(key, Endpoint::new(key, 1))).to_vec())
        };
        // The first is refused one of its nodes, the second an error, and the third leaves a connection out.
        let answers = [set(["a", "mine"]), Err("scripted source"), set(["b", "c"])];
        let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
        let stream = stream::unfold(receiver, |mut receiver| async move {
            receiver.recv().await.map(|answer| (answer, receiver))
        });
        let watch = cluster.watch(stream, SECOND);
        let mut held = None;
        let mut errors = 0;
        for answer in answers {
            let is_error = answer.is_err();
            if sender.send(answer).is_err() {
                break;
            }
            tokio::time::sleep(SECOND / 2).await;
            errors += usize::from(is_error && watch.last_error().is_some());
            if held.is_none() {
                held = cluster.acquire("a").await.ok();
            }
        }
        tokio::time::sleep(2 * SECOND).await; // the drain is over
        let nodes = cluster.nodes();
        if (errors, watch.applied(), nodes.len(), watch.is_running()) != (1, 2, 3, true) {
            harmed.push((message, errors, watch.applied(), nodes));
        }
        drop(sender);
        eventually("the watch has ended", || !watch.is_running()).await;
        drop(held);
    }
    assert!(harmed.is_empty(), "{harmed:#?}");
}

/// An idle connection that was lent by way of a cluster keeps its pool in memory until it is closed.
#[cfg(feature = "cluster")]
#[tokio::test(start_paused = true)]
async fn a_listener_that_panics_keeps_no_pool_that_was_closed() {
    use millpond::cluster::Cluster;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    hush_scripted_panics();
    for message in ["a connection ends", "the pool is"] {
        let manager = TestManager::new();
        let cluster = Cluster::<&str, TestManager>::builder().build().unwrap();
        cluster.add_node("a", manager.clone()).unwrap();
        let lent = [(); 3].map(|()| cluster.acquire("a"));
        let mut held = Vec::new();
        for acquire in lent {
            held.push(acquire.await.unwrap());
        }
        drop(held);
        let listener = tracing_subscriber::registry().with(Trips(message));
        let listening = tracing::subscriber::set_default(listener);
        drop(catch_unwind(AssertUnwindSafe(|| drop(cluster))));
        drop(listening);
        eventually("all are closed", || manager.ledger.live() == 0).await;
        eventually("the pool has let go of its manager", || manager.handles() == 1).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_pool_that_was_closed_before_is_not_said_to_be_drained_late() {
    let pool = pool_of(&TestManager::new(), 3).build().await.unwrap();
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(pool.acquire().await.unwrap());
    }
    let (notes, _listening) = listen();
    pool.close().await;
    assert_eq!(pool.drain(Duration::ZERO).await.still_out.len(), 3);
    let told = notes.take();
    assert!(told.contains(&"INFO the pool is closed pool=orders".to_owned()), "{told:#?}");
    assert!(!told.iter().any(|note| note.starts_with("WARN")), "{told:#?}");
}

/// Of those that are held as long as it, as far as is known.
#[tokio::test(start_paused = true)]
async fn a_drain_that_is_not_done_in_time_names_the_oldest_connection() {
    let pool = pool_of(&TestManager::new(), 3).build().await.unwrap();
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(pool.acquire().await.unwrap());
    }
    let (notes, _listening) = listen();
    drop(pool.drain(Duration::ZERO).await);
    let late = "WARN not drained in time pool=orders still_out=3 connection=1 ";
    has(&notes.take(), late, "site=tests/tracing.rs:");
}

#[tokio::test(start_paused = true)]
async fn connections_of_one_wave_that_a_hook_rejects_are_one_warning() {
    let manager = TestManager::new();
    let hooks = Hooks::new()
        .before_acquire(|_| Box::pin(async { Err(TestError { what: "hook", permanent: false }) }));
    let pool = pool_of(&manager, 20).min_idle(20).hooks(hooks).build().await.unwrap();
    let (notes, _listening) = listen();
    pool.acquire_timeout(Duration::from_millis(1)).await.map(drop).unwrap_err();
    let mut told = notes.take();
    told.retain(|note| note.contains("before_acquire has failed"));
    let (first, _) = told.split_at(20);
    let warnings = first.iter().filter(|note| note.starts_with("WARN")).count();
    assert_eq!(warnings, 1, "{first:#?}");
}
