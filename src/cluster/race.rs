//! How an acquire waits at several nodes at once.
//!
//! Of those that it waits at, only one opens a connection for it, the first in order that has room beside all
//! others who wait there or else, under a cap, may get it; at the others it is *patient* and takes what comes back.
//! Where there is none, each opens one as soon as it has room, which may be instead of one that would have come back.
//! (Under a cap, what becomes vacant where it is patient is brought to where it is not.) If the one
//! fails, or has not served within `try_next_after`, the next one opens a connection too. Where that fails
//! for good, as with a wrong password, an acquire has it tried once; whether such a node is back is seen by
//! one of all who wait, once a second. Beside a connection that is alive there it goes on waiting as for a
//! failure that may pass, and the node's pool tries again, every `backoff_max`. An idle
//! connection that has to be checked first is waited for in the same way: nobody looks further as long as
//! its check takes no longer than that, and a check that is late goes on in the background when another
//! node serves.
//!
//! A node that is down beside others that are up may have connections that work all the same, as where a
//! server is at its limit. So it comes last: an acquire waits there too, but has nothing opened any more, and what is
//! idle there it takes, once that has been checked, if the others have no room for it. Nothing else waits for
//! that check.
//!
//! So no acquire waits beside a connection that it could have, none takes more than it
//! needs, and a node that does not answer costs it little of its time.
//!
//! An acquire that waits counts once in the figures, however many nodes it waits at and refuse it: where it
//! was served, or else, by what it ended with, where it waited first; at the first node of all if none was
//! allowed.
//!
//! Not here: which nodes are allowed, and in which order (`policy.rs`); the wait at one of them (`runner.rs`).

use super::acquire::{Answer, Caller, Word};
use super::error::{ClusterError, NodeReport, Unserved};
use super::node::{Member, Node, Roving, TRIED_AGAIN};
use super::policy::{Choice, Policy};
use super::runner::{Check, Found, Runner};
use super::table::Table;
use super::{Key, Shared};
use crate::error::{AcquireError, Stage};
use crate::manager::Manager;
use crate::metrics::Outcome;
use crate::pool::node_side::{Attempt, FAR_FUTURE, Missed, PooledBare, attempt, poll_timer, timer};
use event_listener::EventListener;
use std::future::poll_fn;
use std::mem;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::{Instant, Sleep, sleep_until};

/// What an acquire is after that does not name its node.
pub(super) enum Aim<'a, K> {
    Policy(Policy<'a, K>),
    Session(&'a [u8]),
}

impl<K> Clone for Aim<'_, K> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<K> Copy for Aim<'_, K> {}

impl<K: Key> Aim<'_, K> {
    fn name(&self) -> &'static str {
        match self {
            Self::Policy(policy) => policy.name(),
            Self::Session(_) => "the node of this session",
        }
    }

    /// What is said where no node is what it is after.
    fn no_match(&self) -> Option<&'static str> {
        match self {
            Self::Policy(policy) => policy.no_match(),
            Self::Session(_) => None,
        }
    }

    /// The place of the node to look at first.
    pub(super) fn pick<M: Manager>(&self, choice: &Choice<'_, K, M>) -> Option<usize> {
        match self {
            Self::Policy(policy) => choice.pick(*policy),
            Self::Session(session) => choice.of_session(session).first().copied(),
        }
    }

    /// The places of those that may be used, in order, `picked` first.
    fn order<M: Manager>(&self, choice: &Choice<'_, K, M>, picked: Option<usize>) -> Vec<usize> {
        match self {
            Self::Policy(policy) => choice.order(*policy, picked),
            // Its own node alone, or the first that is up.
            Self::Session(session) => choice.of_session(session).into_iter().take(1).collect(),
        }
    }

    fn allows<M: Manager>(&self, choice: &Choice<'_, K, M>, node: &Node<K, M>) -> bool {
        match self {
            Self::Policy(policy) => choice.allows(*policy, node),
            Self::Session(_) => true,
        }
    }
}

/// What a race ends with.
type Raced<K, M> = Answer<PooledBare<Member<K, M>>, K, M>;

/// An acquire that waits at several nodes at once. Dropping it gives up its place in all lines.
pub(super) struct Race<'a, K: Key, M: Manager> {
    cluster: &'a Arc<Shared<K, M>>,
    aim: Aim<'a, K>,
    caller: Caller,
    began: Instant,
    /// When it gives up, if ever.
    deadline: Option<Instant>,
    /// What was found at the node that was picked.
    first: Option<Missed<Member<K, M>>>,
    /// The node that was picked. Another one is only if this one cannot be used any more, or each change
    /// would put the nodes in another order.
    picked: Option<Arc<Node<K, M>>>,
    /// In the order in which it has come to them.
    runners: Vec<Runner<K, M>>,
    /// Those that have failed since the last change or pause.
    out: Vec<Arc<Node<K, M>>>,
    /// Those where connecting has failed for good. This acquire has nothing opened there any more, unless
    /// somebody else has succeeded since.
    hopeless: Vec<Arc<Node<K, M>>>,
    /// How many of the runners are to have something opened.
    dials: usize,
    /// One of them has begun to, or to check something, since the last look at this.
    begun: bool,
    /// The cap is to see whether the nodes that are to open something have room for that.
    word: Option<Word>,
    /// How often the nodes it waits at had served when nothing had happened for a pause.
    uses: Option<u64>,
    /// They have served nobody since then.
    stuck: bool,
    /// It has had the servers asked for their roles, and fails unless one of those that have not
    /// answered yet says the right one.
    asked: bool,
    unanswered: Vec<EventListener>,
    /// The last refusal since then.
    refusal: Option<(K, AcquireError<M::Error>)>,
    /// Where it is counted: where it is served, or else where it has waited first.
    counted_at: Option<Arc<Node<K, M>>>,
    /// It has been counted, or has not waited and is not to be.
    over: bool,
}

/// What ends one wait of a race.
enum Event<K: Key, M: Manager> {
    /// This runner has an answer.
    Answer(usize, Found<K, M>),
    /// What was found has not passed its check, others have seen the same room, or a server has been asked for its
    /// role.
    LookAgain,
    /// A node has come, gone, failed, come back or changed its role.
    Changed,
    /// Nothing has happened for `try_next_after`.
    Quiet,
    /// The deadline has passed.
    Late,
    /// The runtime that it waits on has ended.
    Ended,
}

impl<'a, K: Key, M: Manager> Race<'a, K, M> {
    pub(super) fn new(
        cluster: &'a Arc<Shared<K, M>>,
        aim: Aim<'a, K>,
        limit: Option<Duration>,
        caller: Caller,
        first: Option<Missed<Member<K, M>>>,
    ) -> Self {
        let (limit, began) = (limit.unwrap_or(cluster.settings.acquire_timeout), Instant::now());
        Self {
            cluster,
            aim,
            caller,
            began,
            deadline: (limit < Duration::MAX).then(|| began + limit.min(FAR_FUTURE)),
            first,
            picked: None,
            runners: Vec::new(),
            out: Vec::new(),
            hopeless: Vec::new(),
            dials: 1,
            begun: false,
            word: None,
            uses: None,
            stuck: false,
            asked: false,
            unanswered: Vec::new(),
            refusal: None,
            counted_at: None,
            over: true,
        }
    }

    /// Takes what is ready, where there is no runtime to wait on, or none with a timer.
    pub(super) fn run_at_once(mut self) -> Raced<K, M> {
        loop {
            if let Some(guard) = self.line_up()? {
                return Ok(guard);
            }
            let Some(index) = self.runners.iter().position(|runner| runner.check != Check::No)
            else {
                break;
            };
            // Nobody could check it. It goes back.
            self.out.push(self.runners.remove(index).node);
        }
        Err(self.without_runtime())
    }

    #[cold]
    fn without_runtime(&self) -> ClusterError<K, M::Error> {
        let nodes = self.runners.iter().map(|runner| &runner.node);
        match nodes.chain(&self.out).next() {
            Some(node) => ClusterError::of_node(node.key().clone(), AcquireError::NoRuntime),
            None => ClusterError::Unavailable(self.unserved()),
        }
    }

    pub(super) async fn run(mut self) -> Raced<K, M> {
        let pause = self.cluster.settings.try_next_after.min(FAR_FUTURE);
        let Some(quiet) = timer(Instant::now() + pause) else { return self.run_at_once() };
        let mut quiet = pin!(quiet);
        let mut quiet_at = quiet.deadline();
        let mut late = pin!(self.deadline.map(sleep_until));
        // Before the first look, and after each change before the next one: none is missed.
        let mut changed = self.cluster.changed.listen();
        let served = loop {
            match self.line_up() {
                Ok(Some(guard)) => break Ok(guard),
                Err(error) => break Err(error),
                Ok(None) => {}
            }
            if mem::take(&mut self.begun) {
                quiet_at = Instant::now() + pause;
            }
            let look_at = match self.hopeless.is_empty() {
                true => quiet_at,
                // Each look sees to it that somebody tries them again.
                false => quiet_at.min(Instant::now() + TRIED_AGAIN),
            };
            if quiet.deadline() != look_at {
                quiet.as_mut().reset(look_at);
            }
            self.over = false;
            match self.next(&mut changed, quiet.as_mut(), late.as_mut()).await {
                Event::Answer(index, Ok(pooled)) => {
                    let Runner { node, terms, .. } = self.runners.remove(index);
                    let table = self.cluster.table.load();
                    // By the options that it has now; one that has been removed meanwhile has those that it had.
                    let is_same = |other: &&Arc<Node<K, M>>| other.pool.is(&node.pool);
                    let by_now = table.nodes().iter().find(is_same).unwrap_or(&node);
                    if self.aim.allows(&self.choice(&table), by_now) {
                        node.pool.serves(&terms);
                        self.counted_at = Some(node);
                        break Ok(pooled);
                    }
                    // Its options are others, or the server has another role, which was learned when this
                    // was opened. Back it goes.
                }
                Event::Answer(index, Err(error)) => {
                    let Runner { node, in_doubt, .. } = self.runners.remove(index);
                    if matches!(error, AcquireError::NoRuntime) {
                        break Err(ClusterError::of_node(node.key().clone(), error));
                    }
                    match self.is_hopeless_now(&node, &error) {
                        false => self.out.push(node.clone()),
                        // It waits there for what may come back, if anything may.
                        true if self.is_hopeless(&node) => {}
                        true => self.hopeless.push(node.clone()),
                    }
                    if !in_doubt {
                        self.refusal = Some((node.key().clone(), error));
                    }
                }
                Event::LookAgain => {}
                Event::Changed => {
                    changed = self.cluster.changed.listen();
                    self.forget_refusals();
                }
                Event::Quiet if Instant::now() < quiet_at => {}
                Event::Quiet => {
                    // Also if nothing has begun by then.
                    quiet_at = Instant::now() + pause;
                    self.dials += 1;
                    self.forget_refusals();
                    self.look_further();
                    self.ask_the_others();
                }
                Event::Late => {
                    break Err(ClusterError::Timeout(self.unserved()));
                }
                Event::Ended => break Err(self.without_runtime()),
            }
        };
        self.count(served.as_ref().map_or_else(Self::outcome, |_| Outcome::Served));
        self.runners.iter_mut().for_each(Runner::leave);
        served
    }

    #[cold]
    fn unserved(&self) -> Box<Unserved<K, M::Error>> {
        let table = self.cluster.table.load_full();
        let choice = self.choice(&table);
        let nodes = table.nodes();
        let is_checking = |node: &Node<K, M>| {
            let mut runners = self.runners.iter();
            runners.any(|runner| runner.is_at(node) && runner.terms.is_checking())
        };
        let reports = nodes.iter().map(|node| NodeReport::new(node, is_checking(node)));
        let reports: Vec<_> = reports.collect();
        // Where it is in line, and would have one opened if there was room.
        let lines_up = |node: &Node<K, M>| {
            self.runners.iter().any(|runner| runner.is_at(node) && !runner.in_doubt)
        };
        let queued = nodes
            .iter()
            .zip(&reports)
            .filter(|(node, report)| report.stage == Stage::Queued && lines_up(node));
        let cap = self.cluster.why_no_more(queued.map(|(node, _)| &**node));
        let is_first = |node: &Arc<Node<K, M>>| {
            self.counted_at.as_ref().is_some_and(|first| first.pool.is(&node.pool))
        };
        let none_fits = !nodes.iter().any(|node| self.aim.allows(&choice, node));
        let unserved = Unserved::new(
            self.cluster.name(),
            self.aim.name(),
            self.began.elapsed(),
            self.aim.no_match().filter(|_| none_fits),
            reports,
            nodes.iter().position(is_first),
            cap,
        );
        Box::new(unserved.beside(self.cluster.watches.say(nodes.is_empty())))
    }

    /// As what an acquire counts that ended with this.
    fn outcome(error: &ClusterError<K, M::Error>) -> Outcome {
        match error {
            ClusterError::Node(refusal) => Outcome::from(&refusal.source),
            ClusterError::Timeout(_) => Outcome::TimedOut,
            ClusterError::Closed { .. } => Outcome::Closed,
            ClusterError::UnknownNode(_)
            | ClusterError::Removed(_)
            | ClusterError::Unavailable(_) => Outcome::Failed,
        }
    }

    /// It has come to its end, which is counted if it has waited.
    fn count(&mut self, outcome: Outcome) {
        if !mem::replace(&mut self.over, true) {
            let waited = self.began.elapsed();
            if let Some(node) = &self.counted_at {
                node.pool.has_waited(self.caller, outcome, waited);
            } else if let Some(node) = self.cluster.table.load().nodes().first() {
                // Where none may be used it waits nowhere, and is to be seen all the same.
                node.pool.has_waited_nowhere(self.caller, outcome, waited);
            }
        }
    }

    /// Looks at all that are allowed, and waits at each of them from now on; unless one has a
    /// connection that is ready, or has to be checked first.
    fn line_up(&mut self) -> Answer<Option<PooledBare<Member<K, M>>>, K, M> {
        let cluster = self.cluster;
        let table = cluster.table.load_full();
        if table.closed {
            return Err(ClusterError::Closed { cluster: cluster.name() });
        }
        let choice = self.choice(&table);
        let picked = self.place(&choice);
        self.hopeless.retain(|node| !node.is_up());
        let mut order = self.aim.order(&choice, picked);
        order.retain(|place| {
            let node = &table.nodes()[*place];
            if !self.is_hopeless(node) {
                return true;
            }
            node.try_again(cluster);
            // What it still has may come back, unless it is being closed.
            node.pool.has_some_left()
        });
        let allowed = || order.iter().map(|place| &table.nodes()[*place]);
        self.runners.retain_mut(|runner| match allowed().find(|node| runner.is_at(*node)) {
            Some(node) => {
                // The same one may have other options.
                runner.node.clone_from(node);
                true
            }
            None => {
                runner.leave();
                false
            }
        });
        let is_up = |place: &usize| table.nodes()[*place].is_up();
        let (mut order, mut down): (Vec<_>, Vec<_>) = order.into_iter().partition(is_up);
        if order.is_empty() {
            mem::swap(&mut order, &mut down);
        }
        for runner in &mut self.runners {
            let is_there = |place: &usize| runner.is_at(&table.nodes()[*place]);
            runner.doubt(down.iter().any(is_there));
        }
        for node in order.iter().map(|place| &table.nodes()[*place]) {
            if self.waits_for_a_check() {
                break;
            }
            if self.has_been_at(node) {
                continue;
            }
            let missed = match self.first.take_if(|missed| missed.is_at(&node.pool)) {
                Some(missed) => missed,
                None => match self.look_at(node) {
                    Attempt::Hit(pooled) => {
                        self.passed_over(&table, picked, node);
                        self.counted_at = Some(node.clone());
                        return Ok(Some(pooled));
                    }
                    Attempt::Miss(missed) => missed,
                },
            };
            // One that has to be checked first is nearly as good as one that is ready.
            self.begun |= missed.has_found();
            self.wait_at(node, missed, false);
        }
        // A connection that was found at a node that may not be used after all goes back.
        self.first = None;
        for node in down.iter().map(|place| &table.nodes()[*place]) {
            node.try_again(cluster);
        }
        if !self.waits_for_a_check() {
            order.retain(|place| !self.is_hopeless(&table.nodes()[*place]));
            let is_provided_for = self.have_some_opened(&order, &table);
            if let Some(pooled) = self.fall_back(&down, is_provided_for, &table) {
                return Ok(Some(pooled));
            }
        }
        if self.runners.is_empty() && self.nobody_is_left(&table)? {
            return self.line_up();
        }
        Ok(None)
    }

    /// Whether it waits at this node, or has been refused there just now.
    fn has_been_at(&self, node: &Node<K, M>) -> bool {
        let mut others = self.out.iter().chain(self.runners.iter().map(|runner| &runner.node));
        others.any(|other| other.pool.is(&node.pool))
    }

    fn wait_at(&mut self, node: &Arc<Node<K, M>>, missed: Missed<Member<K, M>>, in_doubt: bool) {
        if self.counted_at.as_ref().is_none_or(|node| node.pool.is_closed()) {
            self.counted_at = Some(node.clone());
        }
        self.runners.push(Runner::new(node.clone(), missed, self.began, in_doubt));
    }

    /// Waits also at these nodes, which are down beside others: nothing is opened there, but what they have
    /// may work. What is idle there is left alone by whom the others have room for.
    fn fall_back(
        &mut self,
        down: &[usize],
        is_provided_for: bool,
        table: &Table<K, M>,
    ) -> Option<PooledBare<Member<K, M>>> {
        for node in down.iter().map(|place| &table.nodes()[*place]) {
            let counts = node.pool.counts();
            if !node.pool.has_some_left() || self.has_been_at(node) {
                continue;
            }
            let is_checking = || self.runners.iter().any(|runner| runner.is_checking());
            if counts.idle > 0 && (is_provided_for || is_checking()) {
                continue;
            }
            // The server may be frozen.
            node.pool.have_idle_checked();
            match self.look_at(node) {
                Attempt::Miss(missed) => self.wait_at(node, missed, true),
                // It has come back just now.
                Attempt::Hit(pooled) => {
                    self.counted_at = Some(node.clone());
                    return Some(pooled);
                }
            }
        }
        None
    }

    /// All that have failed are looked at again, so what they said does not hold any more.
    fn forget_refusals(&mut self) {
        self.out.clear();
        self.refusal = None;
    }

    /// Whether a node has refused because connecting has failed for good just now, or because it did so
    /// before and somebody else is trying again already: one attempt is enough for both. Not if it is up
    /// again, for whatever reason.
    fn is_hopeless_now(&self, node: &Node<K, M>, error: &AcquireError<M::Error>) -> bool {
        let tried = matches!(error, AcquireError::Connect(_) | AcquireError::Unavailable(_));
        tried && node.pool.fails_for_good() && !node.is_up()
    }

    /// What it chooses from: with what it has come to know of the nodes that it waits at.
    fn choice<'t>(&self, table: &'t Table<K, M>) -> Choice<'t, K, M>
    where
        'a: 't,
    {
        let late = self.runners.iter().filter(|runner| runner.late);
        let late = late.map(|runner| runner.node.clone()).collect();
        Choice { cluster: self.cluster, table, late }
    }

    /// Whether nothing is to be opened at this node.
    fn is_hopeless(&self, node: &Node<K, M>) -> bool {
        self.hopeless.iter().any(|hopeless| hopeless.pool.is(&node.pool))
    }

    /// The place of the node that was picked.
    fn place(&mut self, choice: &Choice<'_, K, M>) -> Option<usize> {
        let nodes = choice.table.nodes();
        let place = match (&self.first, &self.picked) {
            (Some(missed), _) => nodes.iter().position(|node| missed.is_at(&node.pool)),
            (None, Some(picked)) => {
                nodes.iter().position(|node| node.pool.is(&picked.pool) && node.is_up())
            }
            (None, None) => None,
        };
        let place = place.or_else(|| self.aim.pick(choice));
        self.picked = place.map(|place| nodes[place].clone());
        place
    }

    /// Takes what is ready, or may be once it has been checked.
    fn look_at(&self, node: &Node<K, M>) -> Attempt<Member<K, M>> {
        match attempt(node.pool.without_handle(), self.caller) {
            Attempt::Miss(missed) => missed.settle(),
            hit @ Attempt::Hit(_) => hit,
        }
    }

    /// Whether something has been found that may be ready soon.
    fn waits_for_a_check(&self) -> bool {
        self.runners.iter().any(|runner| runner.is_checking() && !runner.in_doubt)
    }

    /// Another node has served because the one that was picked had nothing idle. It is to have next
    /// time, or it would be passed over for good.
    fn passed_over(&self, table: &Table<K, M>, picked: Option<usize>, server: &Arc<Node<K, M>>) {
        let Some(place) = picked else { return };
        let node = &table.nodes()[place];
        if !Arc::ptr_eq(node, server) {
            self.cluster.passed_over(node);
            node.try_in_background();
        }
    }

    /// No node may be used, or all that may have failed. Answers whether to look once more: at what those say who
    /// have just been asked for their roles.
    fn nobody_is_left(&mut self, table: &Table<K, M>) -> Answer<bool, K, M> {
        let fail_fast = self.cluster.settings.fail_fast;
        if let Aim::Policy(policy) = self.aim {
            self.cluster.take_down_in_vain(policy, table);
        }
        let has_asked = self.asked;
        if !has_asked {
            // A node may have taken over another's role.
            table.nodes().iter().for_each(|node| node.read_role_again(self.cluster, None));
            // Once is enough for one who does not wait for another answer.
            self.asked = fail_fast;
        }
        if let Some((key, source)) = self.refusal.take_if(|(_, error)| {
            matches!(error, AcquireError::QueueFull | AcquireError::Shed { .. })
        }) {
            return Err(ClusterError::of_node(key, source));
        }
        if !fail_fast {
            return Ok(false);
        }
        if !has_asked && self.cluster.settings.reads_role() {
            // Before the look at their roles: whoever has answered by then is seen to be what it says. Once, or what
            // others ask one that does not know it would be waited for too.
            self.unanswered = table.nodes().iter().filter_map(|node| node.when_asked()).collect();
            return Ok(true);
        }
        if self.unanswered.is_empty() {
            return Err(ClusterError::Unavailable(self.unserved()));
        }
        Ok(false)
    }

    /// Those that may be used do not serve. One that may not be used may have taken over their role.
    fn ask_the_others(&self) {
        if self.runners.is_empty() {
            // The next look asks all of them, and they are not to be asked by somebody less urgent instead.
            return;
        }
        let table = self.cluster.table.load();
        let choice = self.choice(&table);
        let others = table.nodes().iter().filter(|node| !self.aim.allows(&choice, node));
        // They may as well serve soon: no other node is to lose its last connection for that.
        let roving = |node: &Node<K, M>| Some(Roving::new(&node.state));
        others.for_each(|node| node.read_role_again(self.cluster, roving(node)));
    }

    /// Nothing has happened for a pause: no check is waited for any longer, what hangs is known to, and
    /// where nobody has been served since the last time, somebody else may have to let go of a connection.
    fn look_further(&mut self) {
        self.runners.iter_mut().for_each(Runner::see_pause);
        if self.cluster.cap.is_some() {
            let uses = self.runners.iter().map(|runner| runner.node.pool.uses()).sum();
            self.stuck = self.uses.replace(uses) == Some(uses);
        }
    }

    /// Sees to it that the first of the nodes that have room open a connection for this acquire, or, if
    /// these are too few and there is a cap on all nodes together, that may get more room; if these are too few
    /// as well, that all do once they have room, whichever that is first. Those that do so already go on. Answers
    /// whether one of them has room for this acquire, beside all others who wait there.
    fn have_some_opened(&mut self, order: &[usize], table: &Table<K, M>) -> bool {
        let nodes = || order.iter().map(|place| &table.nodes()[*place]);
        let capped = self.cluster.cap.is_some();
        let has_room = |node: &Node<K, M>| node.pool.has_room() && node.pool.provides_for(1);
        let may_grow = |node: &Node<K, M>| {
            capped && !has_room(node) && node.pool.max_size() < node.pool.config().max_size
        };
        let impatient = |runner: &&Runner<K, M>| {
            !runner.terms.is_patient() && nodes().any(|node| runner.is_at(node))
        };
        let is_provided_for =
            |runner: &Runner<K, M>| runner.node.pool.provides_for(0) || may_grow(&runner.node);
        let at_work = self
            .runners
            .iter()
            .filter(impatient)
            .filter(|runner| runner.check != Check::No || is_provided_for(runner));
        let mut missing = self.dials.saturating_sub(at_work.count());
        let roomy = nodes().filter(|node| has_room(node)).map(|node| (node, true));
        let growing = nodes().filter(|node| may_grow(node)).map(|node| (node, false));
        for (node, has_room) in roomy.chain(growing) {
            if missing == 0 {
                break;
            }
            if let Some(runner) = self.be_impatient(node) {
                runner.counts_on_room = has_room;
                missing -= 1;
            }
        }
        if missing > 0 {
            for node in nodes() {
                self.be_impatient(node);
            }
        }
        // Also for those that had room: so many may have seen the same.
        if capped && self.runners.iter().any(|runner| !runner.terms.is_patient()) {
            self.word = Some(Word::default());
            self.rove();
        }
        missing == 0 && self.runners.iter().filter(impatient).any(is_provided_for)
    }

    /// Tells the nodes where something is to be opened whether another one may serve.
    fn rove(&mut self) {
        let may_serve = |runner: &Runner<K, M>| runner.node.pool.max_size() > 0;
        let able: Vec<bool> = self.runners.iter().map(may_serve).collect();
        let others = able.iter().filter(|able| **able).count();
        for (runner, able) in self.runners.iter_mut().zip(able) {
            let patient = runner.terms.is_patient();
            // Where nothing comes back, that another one might serve is of no use.
            let is_roving = !patient && !self.stuck && others > usize::from(able);
            if is_roving != runner.roving.is_some() {
                runner.roving = is_roving.then(|| Roving::new(&runner.node.state));
            }
        }
    }

    /// Has a connection opened by the runner at this node, if there is one that has been patient. It
    /// keeps its place in line.
    fn be_impatient(&mut self, node: &Arc<Node<K, M>>) -> Option<&mut Runner<K, M>> {
        let mut runners = self.runners.iter_mut().filter(|runner| runner.terms.is_patient());
        let runner = runners.find(|runner| runner.is_at(node))?;
        node.pool.hurry(&runner.terms);
        runner.hurried = true;
        self.begun = true;
        Some(runner)
    }

    /// Waits until something happens.
    async fn next(
        &mut self,
        changed: &mut EventListener,
        mut quiet: Pin<&mut Sleep>,
        mut late: Pin<&mut Option<Sleep>>,
    ) -> Event<K, M> {
        poll_fn(|cx: &mut Context<'_>| {
            let mut look_again = false;
            for (index, runner) in self.runners.iter_mut().enumerate() {
                if let Poll::Ready(answer) = runner.poll(cx) {
                    return Poll::Ready(Event::Answer(index, answer));
                }
                look_again |= runner.has_failed() | runner.is_crowded_out();
            }
            // Only now is it in line, where the cap sees it.
            if let Some(word) = &mut self.word {
                word.poll(self.cluster, cx);
            }
            let unanswered = self.unanswered.len();
            self.unanswered.retain_mut(|answer| Pin::new(answer).poll(cx).is_pending());
            if look_again || self.unanswered.len() < unanswered {
                return Poll::Ready(Event::LookAgain);
            }
            if Pin::new(&mut *changed).poll(cx).is_ready() {
                return Poll::Ready(Event::Changed);
            }
            if let Some(late) = late.as_mut().as_pin_mut() {
                match poll_timer(late, cx) {
                    None => return Poll::Ready(Event::Ended),
                    Some(Poll::Ready(())) => return Poll::Ready(Event::Late),
                    // Timers go by whole milliseconds, and none is left at all.
                    Some(Poll::Pending) if self.deadline == Some(self.began) => {
                        return Poll::Ready(Event::Late);
                    }
                    Some(Poll::Pending) => {}
                }
            }
            match poll_timer(quiet.as_mut(), cx) {
                None => Poll::Ready(Event::Ended),
                Some(polled) => polled.map(|()| Event::Quiet),
            }
        })
        .await
    }
}

impl<K: Key, M: Manager> Drop for Race<'_, K, M> {
    fn drop(&mut self) {
        // Cancel: whatever else has ended it has been counted.
        self.count(Outcome::Cancelled);
        // Half-way out of a line it may have hidden somebody else there from the cap.
        self.runners.clear();
        self.cluster.more_wanted();
    }
}
