//! One of the nodes that an acquire waits at, while it waits at several.
//!
//! Not here: who of them is to serve (`race.rs`).

use super::Key;
use super::node::{Member, Node, Roving};
use crate::error::AcquireError;
use crate::manager::Manager;
use crate::pool::node_side::{Missed, PooledBare, Terms};
use std::future::{Future, pending};
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::time::Instant;

/// What a wait at one node answers.
pub(super) type Found<K, M> = Result<PooledBare<Member<K, M>>, AcquireError<<M as Manager>::Error>>;
type Waiting<K, M> = dyn Future<Output = Found<K, M>> + Send;

/// One of the nodes that an acquire waits at.
pub(super) struct Runner<K: Key, M: Manager> {
    pub(super) node: Arc<Node<K, M>>,
    waiting: Pin<Box<Waiting<K, M>>>,
    pub(super) terms: Arc<Terms>,
    pub(super) check: Check,
    /// It has just been told to have something opened, which it does when it is polled.
    pub(super) hurried: bool,
    /// It does so in room that it has seen there beside all others who waited then.
    pub(super) counts_on_room: bool,
    /// How many connects, resets and checks had ended at the node when it was last seen, if one was under way.
    asked: Option<u64>,
    /// One of these has been under way there for a whole pause.
    pub(super) late: bool,
    /// It has something opened, and one of the others may serve as well.
    pub(super) roving: Option<Roving<K>>,
    /// The node is down beside others.
    pub(super) in_doubt: bool,
}

/// Whether a connection is being checked for a runner.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Check {
    No,
    /// Of something that has come back since the last pause.
    Begun,
    UnderWay,
    /// For longer than a pause, or beyond the end of one.
    Late,
}

impl<K: Key, M: Manager> Runner<K, M> {
    pub(super) fn new(
        node: Arc<Node<K, M>>,
        missed: Missed<Member<K, M>>,
        began: Instant,
        in_doubt: bool,
    ) -> Self {
        let check = if missed.has_found() { Check::UnderWay } else { Check::No };
        let (terms, waiting) = missed.wait_among_others(began, in_doubt);
        let waiting = Box::pin(waiting);
        let (hurried, counts_on_room, asked, late, roving) = (false, false, None, false, None);
        Self { node, waiting, terms, check, hurried, counts_on_room, asked, late, roving, in_doubt }
    }

    pub(super) fn is_at(&self, node: &Node<K, M>) -> bool {
        self.node.pool.is(&node.pool)
    }

    pub(super) fn poll(&mut self, cx: &Context<'_>) -> Poll<Found<K, M>> {
        let found = self.terms.poll(self.waiting.as_mut(), cx);
        if mem::take(&mut self.hurried) {
            self.see_questions();
        }
        found
    }

    /// Whether what was checked when this was asked last has not passed.
    pub(super) fn has_failed(&mut self) -> bool {
        let is_checking = self.terms.is_checking();
        let failed = self.check != Check::No && !is_checking;
        if failed {
            self.check = Check::No;
        } else if is_checking && self.check == Check::No {
            self.check = Check::Begun;
        }
        failed
    }

    /// Whether others have seen the same room as this one, which it has come to use since this was asked last.
    pub(super) fn is_crowded_out(&mut self) -> bool {
        // In line by now: of those who are too many, the last one at least sees all.
        mem::take(&mut self.counts_on_room) && !self.node.pool.provides_for(0)
    }

    /// Whether a check is under way for it that may be over soon.
    pub(super) fn is_checking(&self) -> bool {
        matches!(self.check, Check::Begun | Check::UnderWay)
    }

    /// Takes down whether the node is being asked for something.
    fn see_questions(&mut self) {
        let pool = &self.node.pool;
        // Before the look at what is under way, so that one which ends in between is not taken to go on.
        let ended = pool.answers();
        let counts = pool.counts();
        let under_way = counts.connecting + counts.resetting + counts.checking;
        self.asked = (under_way > 0).then_some(ended);
    }

    /// A pause is over. What was under way before it and still is has taken all of it.
    pub(super) fn see_pause(&mut self) {
        let before = self.asked;
        self.see_questions();
        self.late |= self.asked.is_some() && self.asked == before;
        match self.check {
            Check::No => {}
            Check::Begun => self.check = Check::Late,
            Check::UnderWay | Check::Late => {
                self.check = Check::Late;
                self.late = true;
            }
        }
    }

    /// The node is down beside others, or is not any more.
    pub(super) fn doubt(&mut self, in_doubt: bool) {
        self.in_doubt = in_doubt;
        if in_doubt {
            self.terms.be_patient();
            self.roving = None;
        }
    }

    /// It is not to serve any more.
    pub(super) fn leave(&mut self) {
        self.roving = None;
        let waiting = mem::replace(&mut self.waiting, Box::pin(pending()));
        if self.terms.leave() {
            self.node.pool.bring_to_an_end(async move { drop(waiting.await) });
        }
    }
}
