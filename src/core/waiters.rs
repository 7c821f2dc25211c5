//! Who waits, and how a slot reaches the one who has waited longest.
//!
//! # The control word
//!
//! | bits | what |
//! |---|---|
//! | 0 | the core is closed |
//! | 1–5 | room for more reasons to leave the fast path |
//! | 6–31 | waiters that nobody has woken yet |
//! | 32–63 | arrivals: how many waiters have ever begun to listen, and alerts, modulo 2^32 |
//!
//! The lower half is zero exactly while nothing unusual is going on; then acquire and release look
//! no further.
//!
//! # Parking
//!
//! | step | who sees it |
//! |---|---|
//! | 1. count yourself as a waiter | from here no newcomer overtakes you, and every release looks for you |
//! | 2. listen to the home shard's event | from here a hand-off can reach you |
//! | 3. count your arrival | a releaser that looked for listeners before step 2 looks again |
//! | 4. serve: give idle slots to the waiters who are first in line, perhaps to yourself | a slot that came back before step 1 is found |
//! | 5. wait | |
//!
//! A waiter never takes a slot out of turn: what it finds in step 4 goes through the event like any
//! other slot, and the event knows who was first (I9).
//!
//! # Serving
//!
//! [`serve`] matches slots with waiters. It holds a slot while it looks for a listener, and a
//! waiter that arrives just then searches in vain. So when it has found no listener and has put the
//! slot back, it compares the count of arrivals with the one from before: unchanged means that every
//! waiter who could have missed the slot has still to take step 4. Changed means that somebody made
//! progress meanwhile, and it tries again.
//!
//! # Leaving
//!
//! A waiter that is woken, with a slot or with the word to look again, has already been taken off the
//! count by whoever woke it. A waiter that leaves in any other way drops its listener first: if
//! something was on its way, the event passes it to the next listener, or drops it, and [`Handoff`]
//! undoes the count and lays the slot among the strays. Then [`Place`] takes the waiter off the
//! count, releases the strays and serves the others (I7).
//!
//! A waiter that finds the core closed when it comes for its slot puts the slot back, and it goes the
//! way of what is idle (I8).
//!
//! # Alerts
//!
//! Whoever raises a flag of slots that may be idle (a connection is too old, the pool is to shrink)
//! calls [`Core::alert`] and then searches the shelves ([`super::search`]). The alert changes the
//! control word. So whoever puts a slot on a shelf and finds the control word as it was before knows
//! that the search will find the slot; otherwise it looks at the slot's flags again, and has the
//! keeper search.
//!
//! # Lines
//!
//! Those who wait in the [`Line::High`] line have an event of their own, which comes before the
//! others. Reserved slots go to nobody else, and lie on a shelf and in a list of their own.
//!
//! Not here: deadlines, and what a waiter does when it is told to look again (`tokens.rs`).

use super::slot::{Flags, Slot, State};
use super::tokens::{Lease, mend, sweep};
use super::{Core, Doubt, Keeper, Line};
use crate::sync::{AtomicU64, Ordering, empty_fence};
use event_listener::{IntoNotification, Listener, listener};
use std::sync::Weak;
use std::time::Instant;
use std::{iter, mem};

const CLOSED: u64 = 1;
const WAITER: u64 = 1 << 6;
const ARRIVAL: u64 = 1 << 32;

/// The control word.
pub(super) struct Control(AtomicU64);

/// What the control word said at one moment.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Seen(u64);

impl Seen {
    /// Nobody waits and the core is open.
    #[inline]
    pub(super) fn is_quiet(self) -> bool {
        self.0 as u32 == 0
    }

    pub(super) fn is_closed(self) -> bool {
        self.0 & CLOSED != 0
    }

    pub(super) fn waiters(self) -> usize {
        (self.0 as u32 / WAITER as u32) as usize
    }

    fn arrivals(self) -> u64 {
        self.0 / ARRIVAL
    }
}

impl Control {
    pub(super) fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// A look before anything has been published or claimed.
    #[inline(always)]
    pub(super) fn glance(&self) -> Seen {
        // Ordering: Acquire, partner: `alert`. A release that sees the alert sees the flags that were
        // raised before it; one that does not finds the control word changed after it has put its
        // slot back. Whoever waits is found by `look` then (I4), or has not yet been counted when
        // this acquire began (I9).
        Seen(self.0.load(Ordering::Acquire))
    }

    /// A look after a slot has been put where others find it.
    #[inline(always)]
    pub(super) fn look(&self) -> Seen {
        // Ordering: SeqCst, partner: `count_below` and the waiter's search after it (I4). It does not run
        // ahead of a put into a ring or a stack; of one into the hot cell it may, and there the swaps
        // of that cell do the same: see `Shelf::put`.
        Seen(self.0.load(Ordering::SeqCst))
    }

    fn add(&self, what: u64) -> Seen {
        // Ordering: SeqCst, partner: `look`. The waiter's search comes after this in the order of
        // all SeqCst operations, so that either `look` counts the waiter or the search finds the
        // slot, wherever that lies but in a hot cell (I4).
        Seen(self.0.fetch_add(what, Ordering::SeqCst).wrapping_add(what))
    }

    pub(super) fn count(&self) -> Seen {
        self.add(WAITER)
    }

    /// Counts a waiter if fewer than `most` are counted. One who is refused is never on the count, where
    /// it would have the next one refused too.
    #[inline]
    fn count_below(&self, most: usize) -> bool {
        let next = |word| (Seen(word).waiters() < most).then(|| word.wrapping_add(WAITER));
        // Ordering: SeqCst, as in `add`.
        self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, next).is_ok()
    }

    /// Something has changed for slots that may be on their way to a shelf.
    pub(super) fn alert(&self) {
        // An alert counts as an arrival: it changes the word, and has a fruitless search repeated.
        self.add(ARRIVAL);
    }

    fn arrive(&self) -> Seen {
        self.add(ARRIVAL)
    }

    fn discount(&self) -> Seen {
        // Ordering: SeqCst, as in `add`: what a leaving waiter searches afterwards must include
        // what others put back before they saw it gone (I7).
        Seen(self.0.fetch_sub(WAITER, Ordering::SeqCst).wrapping_sub(WAITER))
    }

    /// Closes; false if it was closed before.
    fn close(&self) -> bool {
        // Ordering: SeqCst, partner: `look` after a put and `arrive` after listening. Either they
        // see the flag, or the closer finds the slot and wakes the listener (I8).
        self.0.fetch_or(CLOSED, Ordering::SeqCst) & CLOSED == 0
    }
}

/// What travels through an event to a waiter: a slot with a resource, a vacant slot to fill, or the
/// word to look again.
///
/// Whoever sends one takes its waiter off the count. A hand-off that nobody receives is dropped
/// inside the event's mutex, by the leaving waiter. So its `Drop` only undoes the count and lays the
/// slot among the strays; the leaving waiter's [`Place`] does the rest. It must not touch an event.
pub(super) struct Handoff<K: Keeper> {
    /// The shard of the waiter that it was sent to.
    shard: usize,
    content: Content<K>,
}

enum Content<K: Keeper> {
    Slot(Box<Slot<K>>),
    /// The word to look again.
    Word(Weak<K>),
    /// It has been received, or was never sent.
    Nothing,
}

impl<K: Keeper> Handoff<K> {
    /// For a notification that reaches nobody.
    pub(super) fn to_nobody() -> Self {
        Self { shard: 0, content: Content::Nothing }
    }

    fn receive(mut self) -> Option<Box<Slot<K>>> {
        match mem::replace(&mut self.content, Content::Nothing) {
            Content::Slot(slot) => Some(slot),
            Content::Word(_) | Content::Nothing => None,
        }
    }
}

impl<K: Keeper> Drop for Handoff<K> {
    #[inline]
    fn drop(&mut self) {
        if !matches!(self.content, Content::Nothing) {
            self.drop_slow();
        }
    }
}

impl<K: Keeper> Handoff<K> {
    /// Nobody has received it.
    #[cold]
    fn drop_slow(&mut self) {
        let (keeper, slot) = match mem::replace(&mut self.content, Content::Nothing) {
            Content::Slot(slot) => (slot.keeper.upgrade(), Some(slot)),
            Content::Word(keeper) => (keeper.upgrade(), None),
            Content::Nothing => return,
        };
        // The leaving waiter borrows its keeper, so the upgrade fails only when there is nobody
        // left to miss the slot, and this is not the keeper's last owner.
        let Some(keeper) = keeper else { return };
        let core = keeper.core();
        core.shards[self.shard].listening.fetch_add(1, Ordering::Relaxed);
        core.control.count();
        if let Some(slot) = slot {
            let laid = core.strays.push(slot);
            debug_assert!(laid.is_ok(), "BUG: more strays than there are slots");
        }
    }
}

/// A waiter's place in the queue: it counts as long as this lives, unless somebody woke it.
struct Place<'k, K: Keeper> {
    keeper: &'k K,
    shard: usize,
    woken: bool,
}

impl<'k, K: Keeper> Place<'k, K> {
    /// A place in a line of `most` waiters at the most; `None` if it is full.
    fn take(keeper: &'k K, line: Line, most: usize) -> Option<Self> {
        let core = keeper.core();
        let shard = match line {
            Line::General => core.home(),
            Line::High => core.high(),
        };
        if !core.control.count_below(most) {
            return None;
        }
        core.shards[shard].listening.fetch_add(1, Ordering::Relaxed);
        Some(Self { keeper, shard, woken: false })
    }

    /// Steps 3 and 4, once the waiter listens. False: the core is closed.
    fn arrive(&self, line: Line) -> bool {
        let core = self.keeper.core();
        if core.control.arrive().is_closed() {
            return false;
        }
        let home = match line {
            Line::General => self.shard,
            Line::High => core.home(),
        };
        serve(self.keeper, home);
        self.keeper.parked(line);
        true
    }

    /// Step 5 is over.
    #[inline]
    fn leave(&mut self, handoff: Handoff<K>) -> Option<Box<Slot<K>>> {
        self.woken = true;
        let slot = handoff.receive()?;
        if self.keeper.core().is_closed() {
            // It was on its way before the close, and nobody is served after that (I8).
            mend(self.keeper, slot);
            return None;
        }
        Some(slot)
    }
}

impl<K: Keeper> Drop for Place<'_, K> {
    fn drop(&mut self) {
        if self.woken {
            return;
        }
        let core = self.keeper.core();
        core.shards[self.shard].listening.fetch_sub(1, Ordering::Relaxed);
        let seen = core.control.discount();
        while let Some(slot) = core.strays.pop() {
            mend(self.keeper, slot);
        }
        if !seen.is_quiet() {
            serve(self.keeper, core.home());
            self.keeper.vacancy();
        }
    }
}

/// The line is as long as it may be.
#[derive(Debug)]
pub struct LineFull;

/// Waits for a slot, with a resource or to be filled. `None` means that something else has changed:
/// look again.
///
/// # Errors
///
/// If `most` or more wait already.
///
/// # Cancel safety
///
/// Dropping the future gives up the place in the queue; a slot that was on its way goes to the next
/// waiter.
pub(super) async fn wait<K: Keeper>(
    keeper: &K,
    line: Line,
    most: usize,
) -> Result<Option<Box<Slot<K>>>, LineFull> {
    // Declared before the listener, so dropped after it.
    let mut place = Place::take(keeper, line, most).ok_or(LineFull)?;
    listener!(keeper.core().shards[place.shard].event => listener);
    if !place.arrive(line) {
        return Ok(None);
    }
    // Cancel: `Handoff` and `Place` put everything right.
    let handoff = listener.await;
    Ok(place.leave(handoff))
}

/// Blocks the thread until a slot arrives. `None` means that something else has changed, or that
/// the deadline has passed.
pub(super) fn wait_blocking<K: Keeper>(
    keeper: &K,
    line: Line,
    most: usize,
    deadline: Option<Instant>,
) -> Result<Option<Box<Slot<K>>>, LineFull> {
    let mut place = Place::take(keeper, line, most).ok_or(LineFull)?;
    listener!(keeper.core().shards[place.shard].event => listener);
    if !place.arrive(line) {
        return Ok(None);
    }
    let handoff = match deadline {
        None => Some(listener.wait()),
        Some(deadline) => listener.wait_deadline(deadline),
    };
    Ok(handoff.and_then(|handoff| place.leave(handoff)))
}

/// Puts a released slot where it belongs.
///
/// Every call in it is the last thing it does, so that a hit needs no stack frame.
#[inline(always)]
pub(super) fn release<K: Keeper>(keeper: &K, slot: Box<Slot<K>>) {
    let core = keeper.core();
    let home = core.home();
    let before = core.control.glance();
    let cell = core.cell(&slot);
    if !before.is_quiet() || cell.flags().bar_release() {
        return release_slow(keeper, home, slot);
    }
    slot.enter(cell, State::Idle);
    let id = slot.id;
    if let Some(displaced) = core.shards[home].shelf.put(slot) {
        return release_displaced(keeper, home, before, id, displaced);
    }
    if core.control.look() != before {
        settle(keeper, home, Moved { slot: id, displaced: id });
    }
}

#[inline(never)]
fn release_displaced<K: Keeper>(
    keeper: &K,
    home: usize,
    before: Seen,
    slot: u32,
    displaced: Box<Slot<K>>,
) {
    let core = keeper.core();
    let moved = Moved { slot, displaced: displaced.id };
    core.stow(home, displaced);
    // The displaced slot may have been flagged before this release began, and a search that has
    // passed the shelf meanwhile has not met it.
    if core.control.look() != before || core.has_flagged(moved) {
        settle(keeper, home, moved);
    }
}

#[cold]
fn release_slow<K: Keeper>(keeper: &K, home: usize, slot: Box<Slot<K>>) {
    let core = keeper.core();
    let seen = core.control.look();
    if core.cell(&slot).flags().has(Flags::LOOK) && !seen.is_closed() {
        return K::doubt(Lease::new(keeper, slot), Doubt::Flagged);
    }
    let left = if seen.is_closed() || seen.waiters() == 0 {
        Some(slot)
    } else {
        core.hand_off(home, slot).err()
    };
    if let Some(slot) = left {
        let moved = core.shelve(home, slot);
        settle(keeper, home, moved);
    }
}

/// The slots that somebody has just put on shelves.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Moved {
    slot: u32,
    /// The slot that had to make room for it, or the slot itself.
    displaced: u32,
}

/// Does what is left to do once slots have been put on shelves, and the control word was not quiet
/// or has changed.
#[cold]
fn settle<K: Keeper>(keeper: &K, home: usize, moved: Moved) {
    let core = keeper.core();
    serve(keeper, home);
    // `serve` has looked at the control word, so a flag that was raised before a search that could
    // not find these slots is seen here.
    if core.has_flagged(moved) {
        keeper.flagged();
    }
}

/// Gives idle slots to waiters until there are no more of the one or of the other; once the core is
/// closed, ends them.
///
/// Whoever puts a slot on a shelf, and a waiter that leaves, calls this afterwards, unless the control
/// word is quiet.
#[cold]
pub(super) fn serve<K: Keeper>(keeper: &K, home: usize) {
    if serve_in_search(keeper, home) {
        keeper.flagged();
    }
}

/// The same for a search, which must not start another one: as long as a waiter has counted itself
/// and does not listen yet, each would start the next. True: a slot that it has put back is flagged.
#[cold]
pub(super) fn serve_in_search<K: Keeper>(keeper: &K, home: usize) -> bool {
    let core = keeper.core();
    let mut fruitless = None;
    let mut flagged = false;
    loop {
        let seen = core.control.look();
        if seen.is_closed() {
            sweep(keeper);
            return false;
        }
        if let Some((arrivals, moved)) = fruitless {
            flagged |= core.has_flagged(moved);
            // Also if it is flagged: the keeper may search later, and nothing is gained by turning
            // round until it does.
            if arrivals == seen.arrivals() {
                return flagged;
            }
        }
        if seen.waiters() == 0 {
            return flagged;
        }
        let Some(slot) = core.unshelve(home).or_else(|| core.unshelve_reserved()) else {
            return flagged;
        };
        slot.enter_unheld(core.cell(&slot));
        if let Err(slot) = core.hand_off(home, slot) {
            fruitless = Some((seen.arrivals(), core.shelve(home, slot)));
        }
    }
}

/// Gives vacant slots to waiters, as [`serve`] does with idle ones: for a keeper whose waiters fill
/// them on their own.
pub(crate) fn offer_vacant<K: Keeper>(keeper: &K) {
    let core = keeper.core();
    let mut fruitless = None;
    loop {
        let seen = core.control.look();
        if seen.is_closed() || seen.waiters() == 0 || fruitless == Some(seen.arrivals()) {
            return;
        }
        let Some(slot) = core.vacant.pop() else { return };
        slot.enter(core.cell(&slot), State::Connecting);
        if let Err(slot) = core.hand_off(core.home(), slot) {
            core.put_vacant(slot);
            fruitless = Some(seen.arrivals());
        }
    }
}

impl<K: Keeper> Core<K> {
    /// Flags have been raised of slots that may be on their way to a shelf: whoever puts one there
    /// without having seen its flag looks again. The caller searches the shelves next.
    pub fn alert(&self) {
        self.control.alert();
        // Ordering: SeqCst, partner: `publish_fence` after a push. The search looks at a stack's links
        // without claiming any, and a search that puts a slot back into a ring or a stack looks at its
        // flags without comparing the control word. Either ours sees the push, or the look after the
        // push sees the alert or the flags, so no flagged slot is left (`flags_seen`).
        empty_fence();
    }

    /// Whether one of these slots is flagged for its keeper.
    pub(super) fn has_flagged(&self, moved: Moved) -> bool {
        let flagged = |slot: u32| self.cells[slot as usize].flags().has(Flags::LOOK);
        flagged(moved.slot) || flagged(moved.displaced)
    }

    /// Gives a slot to the first waiter that nobody has woken yet; back if there is none.
    pub(super) fn hand_off(&self, home: usize, slot: Box<Slot<K>>) -> Result<(), Box<Slot<K>>> {
        let is_reserved = self.is_reserved(&slot);
        self.cell(&slot).forget_holder();
        let Err(mut slot) = self.hand_to(self.high(), slot, false) else { return Ok(()) };
        if is_reserved {
            return Err(slot);
        }
        // Not before: what the high line takes uses up no turn.
        let rotation = self.rotation(home);
        for shard in self.general_from(rotation.first) {
            match self.hand_to(shard, slot, rotation.counts(shard)) {
                Ok(()) => return Ok(()),
                Err(back) => slot = back,
            }
        }
        Err(slot)
    }

    /// Gives a slot to the first waiter of a shard, on whose account it may count; back if there is none.
    #[inline(always)]
    fn hand_to(&self, shard: usize, slot: Box<Slot<K>>, counts: bool) -> Result<(), Box<Slot<K>>> {
        let queue = &self.shards[shard];
        // Relaxed: the control word has been looked at with the ordering that this needs.
        if queue.listening.load(Ordering::Relaxed) == 0 {
            return Err(slot);
        }
        let mut slot = Some(slot);
        // `additional`: without it the call is a no-op while an earlier listener has been woken and has
        // not run yet. `relaxed`: as above.
        let mut content = || {
            if counts {
                queue.turns.serve();
            }
            slot.take().map_or(Content::Nothing, Content::Slot)
        };
        let handoff = 1.additional().relaxed().tag_with(|| self.send(shard, content()));
        queue.event.notify(handoff);
        slot.map_or(Ok(()), Err)
    }

    /// Makes a hand-off for a waiter of `shard`, and takes that waiter off the count. Called inside
    /// the event's mutex, once for each waiter that is woken.
    fn send(&self, shard: usize, content: Content<K>) -> Handoff<K> {
        self.shards[shard].listening.fetch_sub(1, Ordering::Relaxed);
        self.control.discount();
        Handoff { shard, content }
    }

    /// Tells the first waiter to look again.
    pub fn nudge(&self) {
        // Ordering: SeqCst, partner: `arrive`. Whoever has parked, and has then seen the state of things
        // from before what the caller announces, is counted here, and its share of `listening` is seen.
        if self.control.look().waiters() == 0 {
            return;
        }
        for shard in iter::once(self.high()).chain(self.general_from(self.home())) {
            let queue = &self.shards[shard];
            let word = || self.send(shard, Content::Word(self.keeper.clone()));
            if queue.listening.load(Ordering::Relaxed) > 0
                && queue.event.notify(1.additional().tag_with(word)) == 1
            {
                return;
            }
        }
    }

    /// Tells every waiter to look again.
    pub(crate) fn nudge_all(&self) {
        for (shard, queue) in self.shards.iter().enumerate() {
            let word = || self.send(shard, Content::Word(self.keeper.clone()));
            queue.event.notify(usize::MAX.additional().tag_with(word));
        }
    }

    /// Refuses everything from now on, and wakes every waiter; false if it was closed before.
    ///
    /// The idle slots stay where they are: the closer calls [`sweep`] next.
    pub fn close(&self) -> bool {
        let first = self.control.close();
        self.nudge_all();
        first
    }

    /// Marks a slot idle and puts it on a shelf, the home shard's if there is room.
    pub(super) fn shelve(&self, home: usize, slot: Box<Slot<K>>) -> Moved {
        slot.enter(self.cell(&slot), State::Idle);
        let shard = if self.is_reserved(&slot) { self.high() } else { home };
        self.put(shard, slot)
    }

    /// Puts a slot that is idle on a shelf.
    pub(super) fn put(&self, shard: usize, slot: Box<Slot<K>>) -> Moved {
        let id = slot.id;
        match self.shards[shard].shelf.put(slot) {
            None => Moved { slot: id, displaced: id },
            Some(displaced) => Moved { slot: id, displaced: self.stow(shard, displaced) },
        }
    }

    /// Finds room for a slot that is not the hot one; answers with its number.
    pub(super) fn stow(&self, home: usize, mut slot: Box<Slot<K>>) -> u32 {
        let id = slot.id;
        // All shelves together have room for twice the slots there are, so one of them has some;
        // only slots that others move can hide it from this walk. The reserved ones' has room for
        // all of them.
        let mut shard = home;
        while let Err(back) = self.shards[shard].shelf.stow(slot) {
            slot = back;
            shard = (shard + 1) & (self.general() - 1);
        }
        id
    }

    /// Puts a slot behind the hot one of its shelf.
    pub(super) fn put_behind(&self, shard: usize, slot: Box<Slot<K>>) -> Moved {
        let id = self.stow(shard, slot);
        Moved { slot: id, displaced: id }
    }

    /// Takes an idle slot from any shelf, the home shard's first.
    #[inline(always)]
    pub(super) fn unshelve(&self, home: usize) -> Option<Box<Slot<K>>> {
        match self.shards[home].shelf.take() {
            Some(slot) => Some(slot),
            None => self.unshelve_elsewhere(home),
        }
    }

    fn unshelve_elsewhere(&self, home: usize) -> Option<Box<Slot<K>>> {
        let shards = self.general();
        (1..shards).find_map(|step| self.shards[(home + step) & (shards - 1)].shelf.take())
    }

    /// Takes a reserved idle slot, if somebody waits who may have it.
    fn unshelve_reserved(&self) -> Option<Box<Slot<K>>> {
        let high = &self.shards[self.high()];
        let wanted = self.reserved > 0 && high.listening.load(Ordering::Relaxed) > 0;
        if wanted { high.shelf.take() } else { None }
    }

    /// Takes any idle slot, reserved or not.
    pub(super) fn unshelve_any(&self) -> Option<Box<Slot<K>>> {
        let reserved = || self.shards[self.high()].shelf.take();
        self.unshelve(self.home()).or_else(reserved)
    }
}
