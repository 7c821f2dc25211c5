//! What a pool knows of connects that fail, and of new connections that hooks reject; and who is told.
//!
//! A failure that ends every wait is a *verdict*. Beside one that may pass, or one for good while a connection is
//! alive, one dial is the *prober*: it alone tries again, after pauses.
//!
//! Not here: the dials (`dial.rs`), and when they begin (`connector.rs`).

use super::connector::{Connector, GivenUp};
use super::operation::unless;
use super::{Shared, Tenant, lock};
use crate::core::Line;
use crate::error::{AcquireError, ConnectError, OperationError, in_words, names};
use crate::manager::Manager;
use crate::metrics::{self, Connecting, Failing};
use crate::panics::caught;
use event_listener::{IntoNotification, listener};
use std::error::Error;
use std::future::{Future, pending};
use std::mem;
use std::pin::pin;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::{Instant, sleep_until};

/// What is known of failures.
///
/// That connecting fails and that what is new is of no use are two troubles: a connect that succeeds ends the
/// one, a new connection that is accepted, or stays, the other.
pub(super) struct Trouble<E> {
    /// The last failed connect, that of a rotation included, until one succeeds.
    failed: Option<Failure<E>>,
    /// When the newest of the dials' connects that have succeeded began.
    newest: Option<Instant>,
    /// There is no point in trying the same again.
    permanent: bool,
    /// Failures since the last success, without those of rotations.
    in_a_row: u32,
    /// After a failure for good that has ended every wait, for how long nobody tries the same again for whoever
    /// comes: accounts get locked. Nothing waits for its end, so it needs no runtime.
    truce: Duration,
    /// A dial is the prober: it pauses, or tries again after a pause.
    probing: bool,
    /// The last verdict.
    verdict: Option<Verdict<E>>,
    /// When the first of those came who wait for room to see whether connecting works again.
    roomless: Option<Instant>,
    /// Even if that is over: ask [`useless`](Self::useless).
    useless: Option<Useless<E>>,
    /// How many have ever been counted as one more of no use in a row. One that began to be opened before the last of
    /// these was of no use is not: all there were may have been ended at once, and what was opened since be fine.
    round: u64,
    /// The last failure of either kind ever.
    last_ever: Option<Saying>,
}

/// For how long a connection that nobody has used yet must be there, or its loss says that it has been of no use at
/// all. Where a server restarts, most have been there for longer.
const FLEETING: Duration = Duration::from_secs(1);

/// Within so long room is there if others have some to give, and no longer than that does anybody get in line who may
/// wait in vain.
const ROOM_IS_MADE: Duration = Duration::from_millis(250);

/// New connections that have turned out to be of no use before anybody has used them: rejected by a hook, or lost.
struct Useless<E> {
    /// What there is to say of the last one.
    last: Failure<E>,
    /// As [`Trouble::round`] counts them.
    in_a_row: u32,
    /// If the last one was lost, what ends that by itself, unless one that is no older is of no use before. What a
    /// hook says takes an acquire.
    stays: Option<Stays>,
}

/// A connection that has been opened since.
#[derive(Clone, Copy)]
struct Stays {
    id: u64,
    /// [`FLEETING`] after it was opened: it has stayed then, or has been used.
    until: Instant,
}

impl<E> Useless<E> {
    /// The last one was lost, and not rejected by a hook.
    fn is_lost(&self) -> bool {
        self.last.hook.is_none()
    }
}

impl<E> Trouble<E> {
    pub(super) fn none() -> Self {
        Self {
            failed: None,
            newest: None,
            permanent: false,
            in_a_row: 0,
            truce: Duration::ZERO,
            probing: false,
            verdict: None,
            roomless: None,
            useless: None,
            round: 0,
            last_ever: None,
        }
    }

    /// New connections have been of no use, and that is not over.
    fn useless(&self) -> Option<&Useless<E>> {
        let is_over = |stays: Stays| Instant::now() >= stays.until;
        self.useless.as_ref().filter(|useless| !useless.stays.is_some_and(is_over))
    }

    /// Of what is wrong now, what is to be told: a failure for good, since nothing is opened unasked until it is
    /// over, or whichever came last.
    fn now(&self) -> Option<&Failure<E>> {
        match (&self.failed, self.useless().map(|useless| &useless.last)) {
            (Some(failed), Some(useless)) => {
                let later = useless.said.when > failed.said.when && !self.permanent;
                Some(if later { useless } else { failed })
            }
            (failed, useless) => failed.as_ref().or(useless),
        }
    }

    /// What whoever comes is told because it is not time yet to try again what has failed for good.
    fn too_early(&self) -> Option<&Arc<ConnectError<E>>> {
        let failed = self.failed.as_ref().filter(|_| self.permanent)?;
        (failed.said.when.elapsed() < self.truce).then_some(&failed.error)
    }

    fn connecting(&self) -> Connecting {
        match self.now() {
            Some(_) if self.permanent => Connecting::FailsForGood,
            Some(_) => Connecting::Fails,
            None => Connecting::Works,
        }
    }
}

/// A failed connect, or a new connection that has been of no use.
struct Failure<E> {
    error: Arc<ConnectError<E>>,
    /// The hook whose error it is, if it is one's.
    hook: Option<&'static str>,
    said: Saying,
}

/// Why a new connection could not be opened or was rejected.
pub(super) struct Unopened<E> {
    error: OperationError<E>,
    hook: Option<&'static str>,
}

impl<E> Unopened<E> {
    pub(super) fn by(hook: &'static str, error: OperationError<E>) -> Self {
        Self { error, hook: Some(hook) }
    }
}

impl<E> From<OperationError<E>> for Unopened<E> {
    fn from(error: OperationError<E>) -> Self {
        Self { error, hook: None }
    }
}

/// What a failure said, and when.
#[derive(Clone)]
struct Saying {
    words: Arc<str>,
    /// Where the connection was to lead, if they do not name it.
    target: Option<Arc<str>>,
    when: Instant,
}

impl From<&Saying> for metrics::ConnectFailure {
    fn from(Saying { words, target, when }: &Saying) -> Self {
        let message = match target {
            Some(target) => format!("{target}: {words}"),
            None => words.to_string(),
        };
        Self { message, ago: when.elapsed() }
    }
}

impl From<&Saying> for Failing {
    fn from(Saying { words, target, when }: &Saying) -> Self {
        Self { why: words.clone(), target: target.clone(), ago: when.elapsed() }
    }
}

/// A failure that ends every wait.
pub(super) enum Verdict<E> {
    /// There is no point in trying again, and nothing is alive for anybody, or at least for those without
    /// priority.
    Permanent { error: Arc<ConnectError<E>>, for_all: bool },
    /// The pool tries again, but nobody is to wait for it to whom no connection may come back.
    Down(Arc<ConnectError<E>>),
}

impl<E> Clone for Verdict<E> {
    fn clone(&self) -> Self {
        match self {
            Self::Permanent { error, for_all } => {
                Self::Permanent { error: error.clone(), for_all: *for_all }
            }
            Self::Down(error) => Self::Down(error.clone()),
        }
    }
}

impl<E> From<Verdict<E>> for AcquireError<E> {
    fn from(verdict: Verdict<E>) -> Self {
        match verdict {
            Verdict::Permanent { error, .. } => Self::Connect(error),
            Verdict::Down(error) => Self::Unavailable(error),
        }
    }
}

/// Warnings of failures in a row that say the same come no closer than this in the long run: a server that is away
/// for hours is tried again every second or two.
const TOLD_EACH: u32 = 64;

impl<E> Failure<E> {
    /// Whether it is to be a warning, as one of so many in a row, if it is one more: the first, one that says
    /// something else than the one `before` it, and fewer and fewer of those that do not.
    fn is_news(&self, in_a_row: Option<u32>, before: Option<&Self>) -> bool {
        let is_loss = |failure: &Self| matches!(failure.error.error, OperationError::Lost { .. });
        let says_the_same = before.is_some_and(|before| {
            // Each was lost after another time.
            before.said.words == self.said.words || is_loss(before) && is_loss(self)
        });
        let is_one_of_few = |in_a_row: u32| in_a_row < TOLD_EACH && in_a_row.is_power_of_two();
        !says_the_same || in_a_row.is_some_and(|it| is_one_of_few(it) || it % TOLD_EACH == 0)
    }
}

impl<E: Error + 'static> Failure<E> {
    /// Takes down what it says, with the hook that said it and all causes, and where the connection was to lead,
    /// unless that says so.
    fn new(Unopened { error, hook }: Unopened<E>, target: Option<&Arc<str>>) -> Self {
        let said = in_words(&error);
        let target = target.filter(|target| !names(&said, target)).cloned();
        let said = match hook {
            Some(hook) => format!("{hook}: {said}"),
            None => said,
        };
        let said = Saying { words: said.into(), target: target.clone(), when: Instant::now() };
        Self { error: Arc::new(ConnectError { error, target }), hook, said }
    }
}

impl<E> Connector<E> {
    /// What is wrong now, if anything is, and the hook that has said so, if one has.
    pub(super) fn last_error(&self) -> Option<(Arc<ConnectError<E>>, Option<&'static str>)> {
        lock(&self.trouble).now().map(|failure| (failure.error.clone(), failure.hook))
    }

    /// Whether connecting has failed since it last succeeded, or what was opened has been of no use, and if so,
    /// whether it fails for good.
    pub(super) fn connecting(&self) -> Connecting {
        lock(&self.trouble).connecting()
    }

    /// The same, what is wrong, and whether that is a hook's rejection.
    pub(super) fn state(&self) -> (Connecting, Option<Failing>, bool) {
        let trouble = lock(&self.trouble);
        let now = trouble.now();
        let useless = trouble.useless().map(|useless| &useless.last);
        let rejects = now.zip(useless).is_some_and(|(a, b)| ptr::eq(a, b) && a.hook.is_some());
        (trouble.connecting(), now.map(|failure| (&failure.said).into()), rejects)
    }

    /// How long ago it was that connecting failed for good, if it has not succeeded since.
    pub(super) fn failed_for_good(&self) -> Option<Duration> {
        let trouble = lock(&self.trouble);
        let failed = trouble.failed.as_ref().filter(|_| trouble.permanent);
        failed.map(|failed| failed.said.when.elapsed())
    }

    /// Whether the last connect that was noted has succeeded.
    pub(super) fn last_succeeded(&self) -> bool {
        lock(&self.trouble).in_a_row == 0
    }

    /// What the last failure ever said, without where the connection was to lead.
    #[cfg(feature = "cluster")]
    pub(super) fn last_words(&self) -> Option<Arc<str>> {
        lock(&self.trouble).last_ever.as_ref().map(|said| said.words.clone())
    }

    /// The last failure ever.
    pub(super) fn last_failure(&self) -> Option<metrics::ConnectFailure> {
        lock(&self.trouble).last_ever.as_ref().map(Into::into)
    }

    /// What whoever comes is told at once, if no connection may come back to him: a failure for good while it is
    /// too early to try again; while there is a prober, the last failure, if that was for good, since nobody else
    /// tries the same now; with `fail_fast`, any.
    pub(super) fn refusal(&self, fail_fast: bool) -> Option<AcquireError<E>> {
        let trouble = lock(&self.trouble);
        if let Some(error) = trouble.too_early() {
            return Some(AcquireError::Connect(error.clone()));
        }
        if !trouble.probing {
            return None;
        }
        let error = trouble.now()?.error.clone();
        match trouble.permanent {
            true => Some(AcquireError::Connect(error)),
            false => fail_fast.then_some(AcquireError::Unavailable(error)),
        }
    }

    /// What whoever comes is told where there is no room to connect in: what those who waited were told when that
    /// failed last, if it may pass and has not succeeded since. While others wait, who see whether it still fails,
    /// unless they have only begun to: room that is just being made is there soon.
    pub(super) fn refusal_without_room(&self, others_wait: bool) -> Option<AcquireError<E>> {
        let mut trouble = lock(&self.trouble);
        let failed = trouble.failed.as_ref()?;
        let error = match &trouble.verdict {
            Some(Verdict::Down(error)) if Arc::ptr_eq(error, &failed.error) => error.clone(),
            _ => return None,
        };
        let began = trouble.roomless.filter(|_| others_wait);
        let began = *trouble.roomless.insert(began.unwrap_or_else(Instant::now));
        (began.elapsed() >= ROOM_IS_MADE).then_some(AcquireError::Unavailable(error))
    }

    /// Repeats the last verdict if it is too early to try again what has failed for good.
    pub(super) fn repeats_refusal(&self) -> bool {
        let _verdict;
        let mut trouble = lock(&self.trouble);
        let Some(error) = trouble.too_early().cloned() else { return false };
        _verdict = self.pass(&mut trouble, Verdict::Permanent { error, for_all: true });
        true
    }

    /// Has the next who comes try again what has failed for good.
    pub(super) fn end_truce(&self) {
        lock(&self.trouble).truce = Duration::ZERO;
    }

    /// Passes a verdict; answers the one before it, to be dropped after the lock.
    fn pass(&self, trouble: &mut Trouble<E>, verdict: Verdict<E>) -> Option<Verdict<E>> {
        let before = trouble.verdict.replace(verdict);
        // Those who see next whether it works have still to come.
        trouble.roomless = None;
        // Ordering: Release, partner: the load in `verdicts`; whoever sees the count finds the
        // verdict behind the lock.
        self.verdicts.fetch_add(1, Ordering::Release);
        before
    }

    /// How many verdicts there have been.
    pub(super) fn verdicts(&self) -> u64 {
        // Ordering: Acquire, partner: the increment in `pass`.
        self.verdicts.load(Ordering::Acquire)
    }

    /// The last verdict, if there has been one since there were `before`.
    pub(super) fn verdict_since(&self, before: u64) -> Option<Verdict<E>> {
        if self.verdicts() > before { lock(&self.trouble).verdict.clone() } else { None }
    }

    /// A dial becomes the prober, unless another one is.
    pub(super) fn probe(&self) -> bool {
        !mem::replace(&mut lock(&self.trouble).probing, true)
    }

    /// The prober has ended.
    pub(super) fn ends_probing(&self) {
        lock(&self.trouble).probing = false;
    }

    /// The runtime has ended, which may be why new connections were lost.
    pub(super) fn forgets_losses(&self) {
        // Dropped after the lock, as below.
        let lost = lock(&self.trouble).useless.take_if(|useless| useless.is_lost());
        drop(lost);
    }

    /// The same for one that has failed, and leaves if another one is: not to one that is merely under
    /// way, which may hang.
    pub(super) fn probe_or_leave(&self) -> bool {
        let mut trouble = lock(&self.trouble);
        let probes = !mem::replace(&mut trouble.probing, true);
        if !probes {
            // Behind the lock, so before the prober's end, which looks for demand then.
            // Ordering: SeqCst, as in `admit`.
            self.dials.fetch_sub(1, Ordering::SeqCst);
        }
        probes
    }

    /// Takes note of a success, which has opened this connection; answers how many failures there had been before it.
    fn succeeded(&self, id: u64, most: usize) -> u32 {
        // Here and below, an error that nobody else has is dropped after the lock: what its drop does is
        // the manager's own affair, and may be to look at the pool.
        let (failures, failed, are_useless) = {
            let mut trouble = lock(&self.trouble);
            trouble.permanent = false;
            trouble.roomless = None;
            let are_useless = trouble.useless().is_some();
            if let Some(lost) = trouble.useless.as_mut().filter(|it| it.is_lost()) {
                lost.stays.get_or_insert_with(|| Stays { id, until: Instant::now() + FLEETING });
            }
            (mem::take(&mut trouble.in_a_row), trouble.failed.take(), are_useless)
        };
        // Or will be over by itself soon: when that is, is known only now.
        let is_over = failed.is_some() || are_useless;
        // While what is new is of no use, whether this one is of any is still to be seen.
        if !are_useless {
            // One step, so that a failure that sets the number back meanwhile is not undone.
            let double = |admitted: usize| Some(admitted.saturating_mul(2).min(most));
            let doubled = self.admitted.fetch_update(Ordering::SeqCst, Ordering::SeqCst, double);
            debug_assert!(doubled.is_ok(), "BUG: doubling cannot be refused");
        }
        if is_over {
            self.recovered.notify(usize::MAX.additional());
        }
        failures
    }

    /// A dial's connect has succeeded that began then.
    pub(super) fn has_opened_since(&self, began: Instant) {
        let mut trouble = lock(&self.trouble);
        trouble.newest = trouble.newest.max(Some(began));
    }

    /// Whether one has succeeded that began after this.
    fn has_newer_than(&self, began: Instant) -> bool {
        lock(&self.trouble).newest.is_some_and(|newest| newest > began)
    }

    /// Takes note of a failure that says nothing of how it is now; answers how many there have been in a row, and
    /// whether this one is news.
    fn is_outdone(&self, failure: &Failure<E>) -> (u32, bool) {
        let mut trouble = lock(&self.trouble);
        trouble.last_ever = Some(failure.said.clone());
        (trouble.in_a_row, failure.is_news(Some(trouble.in_a_row), trouble.failed.as_ref()))
    }

    /// A rotation could not connect. It is the last failure, for good or not, and all else goes by that. But it is
    /// none of those in a row, and whoever waits does not hear of it before his time is up: the old connections
    /// may serve them.
    fn rotation_failed(&self, failure: Failure<E>, permanent: bool) {
        self.admitted.store(1, Ordering::SeqCst);
        let _failed;
        let mut trouble = lock(&self.trouble);
        trouble.permanent = permanent;
        trouble.last_ever = Some(failure.said.clone());
        _failed = trouble.failed.replace(failure);
    }

    /// What a connection has to know that begins to be opened now.
    pub(super) fn round(&self) -> u64 {
        lock(&self.trouble).round
    }

    /// A new connection that nobody has used yet is of no use; answers how many in a row that makes, if it is one
    /// more, and whether this one is news.
    fn is_of_no_use<C>(&self, tenant: &Tenant<C>, failure: Failure<E>) -> (Option<u32>, bool) {
        let _useless;
        let mut trouble = lock(&self.trouble);
        let is_next = tenant.round == trouble.round;
        trouble.round += u64::from(is_next);
        let (is_one_more, in_a_row, stays) = match trouble.useless() {
            None => (true, 1, None),
            Some(before) => {
                let is_older = |stays: &Stays| failure.hook.is_none() && tenant.id < stays.id;
                let in_a_row = before.in_a_row.saturating_add(is_next.into());
                (is_next, in_a_row, before.stays.filter(is_older))
            }
        };
        let is_one_more = is_one_more.then_some(in_a_row);
        let is_news = failure.is_news(is_one_more, trouble.useless().map(|useless| &useless.last));
        trouble.last_ever = Some(failure.said.clone());
        _useless = trouble.useless.replace(Useless { last: failure, in_a_row, stays });
        (is_one_more, is_news)
    }

    /// A new connection has been handed out.
    pub(super) fn accepted(&self) {
        let useless = lock(&self.trouble).useless.take();
        if useless.is_some() {
            // What was opened is of use after all.
            self.recovered.notify(usize::MAX.additional());
        }
    }

    /// That a new connection has been lost since then, if the last one of no use was.
    pub(super) fn lost_since(&self, then: Instant) -> Option<Arc<ConnectError<E>>> {
        let trouble = lock(&self.trouble);
        let useless = trouble.useless().filter(|useless| useless.is_lost())?;
        (useless.last.said.when >= then).then(|| useless.last.error.clone())
    }

    /// Awaits a pause after a failure, unless connecting works again before it is over.
    pub(super) async fn unless_recovered(&self, pause: impl Future<Output = ()>) {
        let mut pause = pin!(pause);
        loop {
            listener!(self.recovered => recovered);
            // After listening: a success either shows here or is heard of.
            if self.connecting() == Connecting::Works {
                return;
            }
            let stays = lock(&self.trouble).useless().and_then(|useless| useless.stays);
            // That what is new is lost is over by itself, which nobody tells.
            let over = pin!(async {
                match stays {
                    Some(stays) => sleep_until(stays.until).await,
                    None => pending().await,
                }
            });
            let look_again = pin!(unless(over, recovered));
            if unless(pause.as_mut(), look_again).await.is_ok() {
                return;
            }
        }
    }

    /// How many new connections in a row have been of no use, and how long ago the last one.
    pub(super) fn useless(&self) -> (u32, Duration) {
        let trouble = lock(&self.trouble);
        let useless = trouble.useless();
        useless.map_or((0, Duration::ZERO), |it| (it.in_a_row, it.last.said.when.elapsed()))
    }

    /// Notes a failure, and the verdict on it; answers how many there have been in a row, and whether this one is
    /// news. A dial that is to try again soon becomes the prober in the same step, unless another one is: so nobody
    /// who hears of the failure finds that it is not followed up. After one for good that ends every wait, it is not
    /// tried again for so long as the number says.
    fn failed(
        &self,
        failure: Failure<E>,
        permanent: bool,
        verdict: Option<Verdict<E>>,
        probes: Option<&mut bool>,
        truce: impl FnOnce(u32) -> Duration,
    ) -> (u32, bool) {
        self.admitted.store(1, Ordering::SeqCst);
        let (_failed, _verdict);
        let mut trouble = lock(&self.trouble);
        trouble.in_a_row = trouble.in_a_row.saturating_add(1);
        let is_refusal = matches!(verdict, Some(Verdict::Permanent { .. }));
        trouble.truce = if is_refusal { truce(trouble.in_a_row) } else { Duration::ZERO };
        trouble.permanent = permanent;
        if let Some(probes) = probes.filter(|_| !permanent) {
            *probes |= !mem::replace(&mut trouble.probing, true);
        }
        if let Some(verdict) = verdict {
            _verdict = self.pass(&mut trouble, verdict);
        }
        let is_news = failure.is_news(Some(trouble.in_a_row), trouble.failed.as_ref());
        trouble.last_ever = Some(failure.said.clone());
        _failed = trouble.failed.replace(failure);
        (trouble.in_a_row, is_news)
    }
}

/// What is made of a failed connect.
pub(super) struct ConnectFailure<M: Manager> {
    pub(super) error: Arc<ConnectError<M::Error>>,
    /// Trying again is pointless.
    pub(super) permanent: bool,
    /// Whoever waits is to hear of it.
    pub(super) tell: bool,
    /// Failures since the last success, this one included.
    pub(super) in_a_row: u32,
}

impl<M: Manager> Shared<M> {
    /// A connect has been noted. Of several at once, the one that was noted last has to be told last.
    fn tell_again(&self) {
        let Some(told) = &self.on_connect else { return };
        loop {
            let succeeded = self.connector.last_succeeded();
            told(succeeded);
            // After telling: what was read may have been out of date by then.
            if self.connector.last_succeeded() == succeeded {
                return;
            }
        }
    }

    /// Takes note of a connect that has succeeded, and has opened this connection.
    pub(super) fn connect_succeeded(&self, tenant: &Tenant<M::Connection>) {
        // First, so that whoever comes because he hears of it is not refused any more.
        let failures = self.connector.succeeded(tenant.id, self.config.max_connecting);
        self.tell_again();
        if failures > 0 {
            self.tell_recovered(failures);
        }
    }

    /// Where connections lead, if the manager tells.
    pub(super) fn target(&self) -> Option<Arc<str>> {
        lock(&self.target).clone()
    }

    fn failure(&self, unopened: Unopened<M::Error>) -> Failure<M::Error> {
        Failure::new(unopened, self.target().as_ref())
    }

    /// What went wrong with a connect, of which note has been taken.
    pub(super) fn connect_error(
        &self,
        error: OperationError<M::Error>,
    ) -> Arc<ConnectError<M::Error>> {
        self.failure(error.into()).error
    }

    /// Whether there is no point in trying again.
    pub(super) fn is_permanent(&self, error: &OperationError<M::Error>) -> bool {
        match error {
            OperationError::Failed(error) => {
                caught(|| self.manager.is_permanent(error)).unwrap_or(false)
            }
            OperationError::TimedOut { .. }
            | OperationError::Panicked { .. }
            | OperationError::Lost { .. } => false,
        }
    }

    /// A dial's connect that began then has failed. If it was late, one that began later has succeeded, and there is a
    /// point in trying again, that says nothing of how it is now, and this takes note of no more than that it was so.
    /// Otherwise this answers with the failure.
    pub(super) fn unless_outdone(
        &self,
        unopened: Unopened<M::Error>,
        began: Instant,
    ) -> Option<Unopened<M::Error>> {
        let was_late = began.elapsed() >= self.connector.patience;
        if !was_late || !self.connector.has_newer_than(began) || self.is_permanent(&unopened.error)
        {
            return Some(unopened);
        }
        self.totals.connect_failed();
        let failure = self.failure(unopened);
        let (in_a_row, is_news) = self.connector.is_outdone(&failure);
        self.tell_connect_failed(&failure.error.error, false, in_a_row, is_news);
        None
    }

    /// Takes note of a failed connect. `probes`: it is a dial's, which is, or may become, the prober.
    pub(super) fn connect_failed(
        &self,
        unopened: Unopened<M::Error>,
        probes: Option<&mut bool>,
    ) -> ConnectFailure<M> {
        let permanent = self.is_permanent(&unopened.error);
        // Whoever may have one that is alive waits on. For callers with priority one may be left, of which
        // they see to it.
        let hopeless = (permanent || self.config.fail_fast) && !self.has_alive_for(Line::General);
        self.note_failure(unopened, permanent, hopeless, probes)
    }

    /// Takes note of a connect that was given up; of one that has not answered, as a failure.
    pub(super) fn given_up(&self, why: GivenUp) -> Option<Arc<ConnectError<M::Error>>> {
        let GivenUp::Silent(limit) = why else { return None };
        let error = OperationError::TimedOut { setting: "max_connections", limit };
        // It may take longer the next time, so whoever waits has his own deadline.
        Some(self.note_failure(error.into(), false, false, None).error)
    }

    /// Takes note of a failure; if it is `hopeless`, everybody who waits is to hear of it.
    fn note_failure(
        &self,
        unopened: Unopened<M::Error>,
        permanent: bool,
        hopeless: bool,
        probes: Option<&mut bool>,
    ) -> ConnectFailure<M> {
        self.totals.connect_failed();
        if let Some(told) = &self.on_connect {
            // First, so that whoever is refused does not come again because nobody has heard of it.
            told(false);
        }
        let failure = self.failure(unopened);
        let error = failure.error.clone();
        let verdict = hopeless.then(|| match permanent {
            true => Verdict::Permanent {
                error: error.clone(),
                for_all: !self.has_alive_for(Line::High),
            },
            false => Verdict::Down(error.clone()),
        });
        let tell = verdict.is_some();
        let truce = |failures| self.longest_pause(failures);
        let (in_a_row, is_news) = self.connector.failed(failure, permanent, verdict, probes, truce);
        self.tell_again();
        self.tell_connect_failed(&error.error, permanent, in_a_row, is_news);
        self.changed();
        ConnectFailure { error, permanent, tell, in_a_row }
    }

    /// The same for a warm-up's, which has everybody who waits hear of a verdict.
    pub(super) fn warm_up_failed(
        &self,
        unopened: Unopened<M::Error>,
    ) -> Arc<ConnectError<M::Error>> {
        let failure = self.connect_failed(unopened, None);
        if failure.tell {
            self.core.nudge_all();
        }
        failure.error
    }

    /// Takes note of a rotation's failed connect.
    pub(super) fn rotation_failed(
        &self,
        unopened: Unopened<M::Error>,
    ) -> Arc<ConnectError<M::Error>> {
        self.totals.connect_failed();
        let permanent = self.is_permanent(&unopened.error);
        let failure = self.failure(unopened);
        let error = failure.error.clone();
        self.connector.rotation_failed(failure, permanent);
        self.tell_rotation_failed(&error.error);
        error
    }

    /// A hook has rejected a connection, with an error or by a panic. `new`: nobody has used it yet.
    pub(super) fn rejected(
        &self,
        tenant: &Tenant<M::Connection>,
        new: bool,
        hook: &'static str,
        error: OperationError<M::Error>,
    ) {
        if !new {
            return self.tell_failed(tenant.id, hook, &error);
        }
        let failure = self.failure(Unopened::by(hook, error));
        let error = failure.error.clone();
        let (in_a_row, is_news) = self.connector.is_of_no_use(tenant, failure);
        self.tell_rejected(tenant.id, hook, &error.error, in_a_row, is_news);
    }

    /// A connection is lost that was opened so long ago, unless that is because the runtime has ended. `new`: nobody
    /// has used it yet.
    pub(super) fn lost(&self, tenant: &Tenant<M::Connection>, new: bool, after: Duration) {
        if new && after < FLEETING && self.ground().is_some() {
            let failure = self.failure(OperationError::Lost { after }.into());
            let error = failure.error.clone();
            if let (Some(in_a_row), is_news) = self.connector.is_of_no_use(tenant, failure) {
                self.tell_lost(tenant.id, &error.error, in_a_row, is_news);
            }
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use tokio::time::advance;

    fn fails(connector: &Connector<std::fmt::Error>) {
        let failure = Failure::new(OperationError::Failed(std::fmt::Error).into(), None);
        let verdict = Verdict::Down(failure.error.clone());
        connector.failed(failure, false, Some(verdict), None, |_| Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_comes_after_another_failure_waits_for_room_as_those_did_who_came_after_the_first()
     {
        let connector = Connector::new(Duration::MAX);
        let is_refused = |others_wait| connector.refusal_without_room(others_wait).is_some();
        assert!(!is_refused(true), "nothing has failed");
        for _ in 0..2 {
            fails(&connector);
            assert!(!is_refused(true), "room may be made");
            advance(ROOM_IS_MADE).await;
            assert!(is_refused(true), "others wait to see it");
            assert!(!is_refused(false), "somebody has to see it");
            advance(ROOM_IS_MADE).await;
            assert!(is_refused(true));
        }
    }
}
