//! Finds out when everybody who holds a connection waits for another one.
//!
//! Who holds a connection is the task that acquired it, or the thread outside of tasks: a guard that
//! is moved to another task, or two acquires that one task drives side by side, are taken for what
//! they are not. That is why this is an option.
//!
//! Not here: anything on the fast path. With this option each acquire leaves it.

use super::lock;
use crate::error::Deadlock;
use std::collections::HashMap;
use std::panic::Location;
use std::sync::Mutex;
use std::thread::{self, ThreadId};
use tokio::task;

type Site = &'static Location<'static>;

/// Who holds connections or waits for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Party {
    Task(task::Id),
    Thread(ThreadId),
}

impl Party {
    fn current() -> Self {
        task::try_id().map_or_else(|| Self::Thread(thread::current().id()), Self::Task)
    }
}

pub(super) struct Detector(Mutex<Known>);

struct Known {
    /// By slot, who holds the connection, and where it was acquired.
    held: Vec<Option<(Party, Site)>>,
    /// Holders who wait, and how often.
    waiting: HashMap<Party, usize>,
}

impl Detector {
    pub(super) fn new(capacity: usize) -> Self {
        Self(Mutex::new(Known { held: vec![None; capacity], waiting: HashMap::new() }))
    }

    pub(super) fn lent(&self, slot: usize, site: Site) {
        lock(&self.0).held[slot] = Some((Party::current(), site));
    }

    pub(super) fn returned(&self, slot: usize) {
        lock(&self.0).held[slot] = None;
    }

    /// The caller is about to wait at `site` for one of `size` connections, as long as the answer
    /// lives.
    ///
    /// # Errors
    ///
    /// If it holds one itself, and so do all who could give theirs back.
    pub(super) fn wait(&self, site: Site, size: usize) -> Result<Waiting<'_>, Box<Deadlock>> {
        let party = Party::current();
        let mut known = lock(&self.0);
        let Known { held, waiting } = &mut *known;
        if !held.iter().flatten().any(|(holder, _)| *holder == party) {
            return Ok(Waiting { detector: self, party: None });
        }
        let blocked = |holder: &Party| *holder == party || waiting.contains_key(holder);
        if held.iter().flatten().filter(|(holder, _)| blocked(holder)).count() >= size {
            let held_at = held.iter().flatten().map(|(_, site)| *site).collect();
            return Err(Box::new(Deadlock { held_at, wanted_at: site }));
        }
        *waiting.entry(party).or_default() += 1;
        Ok(Waiting { detector: self, party: Some(party) })
    }
}

/// A holder that waits.
pub(super) struct Waiting<'d> {
    detector: &'d Detector,
    party: Option<Party>,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let Some(party) = self.party else { return };
        let mut known = lock(&self.detector.0);
        if let Some(times) = known.waiting.get_mut(&party) {
            *times -= 1;
            if *times == 0 {
                known.waiting.remove(&party);
            }
        }
    }
}
