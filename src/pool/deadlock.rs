//! Finds out when everybody who holds a connection waits for another one.
//!
//! Who holds a connection is the task that acquired it, or the thread outside of tasks. Who has an owned
//! guard nobody knows: it is there to be moved, so it counts as held by somebody who waits for nothing. Two
//! acquires that one task drives side by side, or a guard that borrows the pool and is moved to a scoped
//! thread all the same, are taken for what they are not. That is why this is an option.
//!
//! Not here: anything on the fast path. With this option each acquire leaves it.

use super::lock;
use crate::core::Line;
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

pub(super) struct Detector {
    known: Mutex<Known>,
    /// So many slots, those with the lowest numbers, are for the high line only.
    reserved: usize,
    /// The pool has what others leave it, which may become as many as this.
    most: Option<usize>,
}

struct Known {
    /// By slot, who holds the connection, and where it was acquired.
    held: Vec<Option<(Party, Site)>>,
    /// Holders who wait.
    waiting: HashMap<Party, Waits>,
}

/// How often a holder waits.
#[derive(Default)]
struct Waits {
    general: usize,
    high: usize,
    /// Of how many connections it was asked last whether all are held by those who wait.
    size: usize,
}

impl Waits {
    fn of(&mut self, line: Line) -> &mut usize {
        match line {
            Line::General => &mut self.general,
            Line::High => &mut self.high,
        }
    }
}

impl Detector {
    pub(super) fn new(capacity: usize, reserved: usize, most: Option<usize>) -> Self {
        let known = Known { held: vec![None; capacity], waiting: HashMap::new() };
        Self { known: Mutex::new(known), reserved, most }
    }

    pub(super) fn lent(&self, slot: usize, site: Site) {
        lock(&self.known).held[slot] = Some((Party::current(), site));
    }

    pub(super) fn returned(&self, slot: usize) {
        lock(&self.known).held[slot] = None;
    }

    /// The caller is about to wait in this line, at `site`, for one of `size` connections, as long as
    /// the answer lives; `None` if it holds none itself, and so is in nobody's way.
    ///
    /// Whoever waits in the high line may be served by any connection, the others only by those that
    /// are not reserved. So if all are held by those who wait, so do all of them for good; and if all
    /// that are not reserved are held by those who wait in the general line only, these do, whatever
    /// becomes of the reserved ones.
    ///
    /// # Errors
    ///
    /// If it holds one itself, and so do all who could give theirs back.
    pub(super) fn wait(
        &self,
        site: Site,
        line: Line,
        size: usize,
    ) -> Result<Option<Waiting<'_>>, Box<Deadlock>> {
        let party = Party::current();
        let size = self.most.unwrap_or(size);
        let mut known = lock(&self.known);
        let Known { held, waiting } = &mut *known;
        if !held.iter().flatten().any(|(holder, _)| *holder == party) {
            return Ok(None);
        }
        let blocked = |holder: &Party| *holder == party || waiting.contains_key(holder);
        // A party that waits in both lines is served when either of its waits is.
        let in_high = |holder: &Party| waiting.get(holder).is_some_and(|waits| waits.high > 0);
        let in_general_only = |holder: &Party| blocked(holder) && !in_high(holder);
        // After a shrink more may be held, which come back to nobody. Reserved ones are the last to go.
        let (reserved, general) = held.split_at(self.reserved);
        let most_general = size.saturating_sub(self.reserved);
        let all_reserved = count(reserved, blocked) >= self.reserved;
        let held_at = if all_reserved && count(general, blocked) >= most_general {
            Some(sites(held, blocked))
        } else if line == Line::General
            && !in_high(&party)
            && count(general, in_general_only) >= most_general
        {
            Some(sites(general, in_general_only))
        } else {
            None
        };
        if let Some(held_at) = held_at {
            return Err(Box::new(Deadlock { held_at, wanted_at: site }));
        }
        let waits = waiting.entry(party).or_default();
        *waits.of(line) += 1;
        waits.size = size;
        Ok(Some(Waiting { detector: self, party, line }))
    }

    /// Whether those who wait are to ask again when the pool has been made smaller.
    pub(super) fn goes_by_size(&self) -> bool {
        self.most.is_none()
    }

    /// Whether the caller waits who has asked of more than are left by now: he may have got in line after those who
    /// waited were told to ask again. Answers so once, since all of them are told again then: one of his waits that
    /// does not ask would hear of it without end, and keep the one that does from being polled.
    pub(super) fn has_missed(&self, size: usize) -> bool {
        if !self.goes_by_size() {
            return false;
        }
        let mut known = lock(&self.known);
        let waits = known.waiting.get_mut(&Party::current());
        let asked_of_more = waits.filter(|waits| waits.size > size);
        asked_of_more.map(|waits| waits.size = size).is_some()
    }
}

/// How many of these slots are held by such parties.
fn count(held: &[Option<(Party, Site)>], such: impl Fn(&Party) -> bool) -> usize {
    held.iter().flatten().filter(|(holder, _)| such(holder)).count()
}

/// Where those were acquired.
fn sites(held: &[Option<(Party, Site)>], such: impl Fn(&Party) -> bool) -> Vec<Site> {
    held.iter().flatten().filter(|(holder, _)| such(holder)).map(|(_, site)| *site).collect()
}

/// A holder that waits.
pub(super) struct Waiting<'d> {
    detector: &'d Detector,
    party: Party,
    line: Line,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut known = lock(&self.detector.known);
        if let Some(waits) = known.waiting.get_mut(&self.party) {
            *waits.of(self.line) -= 1;
            if waits.general + waits.high == 0 {
                known.waiting.remove(&self.party);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::core::{Line, Woken, wait};
    use crate::manager::from_fn;
    use crate::pool::Pool;
    use std::convert::Infallible;
    use std::panic::Location;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    /// As two threads may meet: the one has asked and is not in line yet, the other makes the pool smaller.
    #[tokio::test]
    async fn who_gets_in_line_just_after_a_shrink_asks_again() {
        for shrinks in [false, true] {
            let manager = from_fn(|| async { Ok::<_, Infallible>(()) });
            let pool = Pool::builder(manager).max_size(2).detect_deadlock(true);
            let pool = pool.build_lazy().unwrap();
            let _held = (pool.acquire().await.unwrap(), pool.acquire_owned().await.unwrap());
            let asked = pool.shared.is_not_stuck(Location::caller(), Line::General);
            assert!(asked.is_ok(), "the other one may come back");
            if shrinks {
                pool.resize(1).unwrap();
            }
            let mut waiting = pin!(wait(&pool.shared, Line::General, usize::MAX));
            let mut look = || waiting.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            let told = matches!(look(), Poll::Ready(Woken::LookAgain))
                || matches!(look(), Poll::Ready(Woken::LookAgain));
            assert_eq!(told, shrinks);
        }
    }
}
