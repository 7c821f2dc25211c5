//! The last acquire that has waited in vain: a pool that serves nobody in time shows it between two of them, too.
//!
//! A hit and a wait that is served note nothing. What is noted is told for [`TOLD_FOR`], and that others are served
//! meanwhile does not end it: a pool with too few connections serves some and lets others wait in vain, and what is
//! told says how long ago it was. Where the acquire waited for one to be opened, it is over once one has been.
//!
//! Not here: what is told of it (`metrics/status.rs`).

use super::{Shared, lock};
use crate::core::Line;
use crate::manager::Manager;
use crate::metrics::{Connecting, InVain};
use std::sync::Mutex;
use std::time::Duration;

/// Longer than most take from one look at a pool to the next, and than whoever tries again after a timeout pauses.
const TOLD_FOR: Duration = Duration::from_secs(30);

/// What is remembered of it.
pub(super) struct Vain(Mutex<Option<Last>>);

#[derive(Clone, Copy)]
struct Last {
    waited: Duration,
    /// By the pool's clock.
    when: u64,
    /// How many connections had been opened by then, if one was wanted.
    opened: Option<u64>,
}

impl Vain {
    pub(super) fn new() -> Self {
        Self(Mutex::new(None))
    }
}

impl<M: Manager> Shared<M> {
    /// An acquire has run into its deadline. One that was shorter than anything may take here says nothing.
    #[cold]
    pub(super) fn has_timed_out(&self, waited: Duration) {
        if waited < self.config.connect_patience() {
            return;
        }
        let fails = self.connector.connecting() != Connecting::Works;
        let line = Line::General;
        let wants = self.is_opening_for(line) || fails && self.could_open_for(line);
        let opened = wants.then(|| self.totals.opened());
        *lock(&self.vain.0) = Some(Last { waited, when: self.now(), opened });
    }

    /// What there is to tell of it.
    pub(super) fn in_vain(&self) -> Option<InVain> {
        let Last { waited, when, opened } = (*lock(&self.vain.0))?;
        let ago = self.since(when);
        let is_over = opened.is_some_and(|opened| self.totals.opened() > opened);
        let told = InVain { waited, ago, for_a_new_one: opened.is_some() };
        (ago < TOLD_FOR && !is_over).then_some(told)
    }
}
