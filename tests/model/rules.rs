//! The pool as it ought to be.
//!
//! Not here: the pool as it is.

use super::book::{Calls, End, Place, Shelf, Sighting, Slot, Totals};
use super::{Connects, Kind, Order, Refusal, Setting, Wear};
use millpond::TryAcquireError;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::mem;

/// The name of an acquire that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Name {
    pub(super) number: u64,
    /// It has high priority.
    pub(super) high: bool,
}

/// What the next poll of an acquire that has been woken will say.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Fate {
    /// It gets the resource in this slot, if that is still fit for use and the pool open.
    Served(Slot),
    /// It makes one for this slot, if the pool is open.
    Makes(Slot),
    Refused(Refusal),
}

/// Why an object was not added.
#[derive(Debug, PartialEq)]
pub(super) enum Refused {
    Closed,
    Full,
}

#[derive(Clone, Copy, PartialEq)]
enum Phase {
    Open,
    Draining,
    Closed,
}

pub(super) struct Model {
    pub(super) kind: Kind,
    slots: Vec<Place>,
    /// Slots below this one are for acquires with high priority.
    reserved: usize,
    idle: Shelf,
    idle_reserved: Shelf,
    vacant: VecDeque<Slot>,
    vacant_reserved: VecDeque<Slot>,
    /// Slots out of service.
    spare: VecDeque<Slot>,
    /// Slots whose resource is being closed, and whether they go out of service then.
    closing: VecDeque<(Slot, bool)>,
    /// The slot for which the pool is connecting.
    dialling: Option<Slot>,
    /// How many slots are to be in service.
    size: usize,
    /// How many too many are, or, below zero, too few.
    surplus: isize,
    /// Vacant slots in the hands of those who are to make something for them.
    pub(super) making: usize,
    pub(super) in_use: usize,
    /// Who waits, in the order of arrival.
    line: VecDeque<Name>,
    line_high: VecDeque<Name>,
    max_waiters: usize,
    /// Who has been let into the line before.
    admitted: BTreeSet<Name>,
    /// Who has been woken and not been polled since.
    pub(super) fates: BTreeMap<Name, Fate>,
    /// Resources made so far.
    pub(super) made: u64,
    generation: u64,
    phase: Phase,
    pub(super) connects: Connects,
    /// Resources are checked before they are used.
    checked: bool,
    pub(super) checks_succeed: bool,
    hooks: bool,
    reports_leaks: bool,
    /// A connect has failed, and the next attempt is for after the pause.
    pub(super) pausing: bool,
    /// The last connect has failed in a way that may pass.
    troubled: bool,
    totals: Totals,
}

impl Model {
    pub(super) fn new(setting: Setting) -> Self {
        let (size, reserved) = (setting.size(), setting.reserved());
        let mut model = Self {
            kind: setting.kind,
            slots: vec![Place::default(); setting.capacity()],
            reserved,
            idle: Shelf::new(setting.order),
            idle_reserved: Shelf::new(Order::Fifo),
            vacant: (reserved..size).collect(),
            vacant_reserved: (0..reserved).collect(),
            spare: (size..setting.capacity()).collect(),
            closing: VecDeque::new(),
            dialling: None,
            size,
            surplus: 0,
            making: 0,
            in_use: 0,
            line: VecDeque::new(),
            line_high: VecDeque::new(),
            max_waiters: setting.max_waiters().unwrap_or(usize::MAX),
            admitted: BTreeSet::new(),
            fates: BTreeMap::new(),
            made: 0,
            generation: 0,
            phase: Phase::Open,
            connects: Connects::Succeed,
            checked: setting.checked(),
            checks_succeed: true,
            hooks: setting.options.hooks,
            reports_leaks: setting.in_turn(),
            pausing: false,
            troubled: false,
            totals: Totals::default(),
        };
        for _ in 0..setting.stock() {
            let number = model.make();
            let slot = model.take_vacant().expect("a vacant slot");
            model.fill(slot, number);
        }
        model
    }

    fn make(&mut self) -> u64 {
        self.made += 1;
        self.made
    }

    // What can be seen.

    pub(super) fn capacity(&self) -> usize {
        self.slots.len()
    }

    pub(super) fn size(&self) -> usize {
        self.size
    }

    pub(super) fn idle(&self) -> usize {
        self.idle.count() + self.idle_reserved.count()
    }

    pub(super) fn vacant(&self) -> usize {
        self.vacant.len() + self.vacant_reserved.len()
    }

    pub(super) fn spare(&self) -> usize {
        self.spare.len()
    }

    pub(super) fn waiters(&self) -> usize {
        self.line.len() + self.line_high.len()
    }

    pub(super) fn is_closed(&self) -> bool {
        self.phase != Phase::Open
    }

    /// Nothing is idle or in use.
    pub(super) fn is_empty(&self) -> bool {
        self.idle() + self.in_use == 0
    }

    /// The same, and none is being closed.
    pub(super) fn has_gone(&self) -> bool {
        self.is_empty() && self.closing.is_empty()
    }

    /// Resources that the pool has ended.
    pub(super) fn ended(&self) -> u64 {
        self.totals.calls.on_destroy
    }

    pub(super) fn totals(&self) -> Totals {
        let calls = if self.hooks { self.totals.calls } else { Calls::default() };
        Totals { calls, ..self.totals }
    }

    pub(super) fn assert_at_rest(&self) {
        assert_eq!(self.in_use, 0, "BUG: the model lost something");
        assert_eq!(self.idle() + self.vacant() + self.spare(), self.capacity());
        assert_eq!(self.surplus, 0, "more or fewer than there are to be");
        assert_eq!(self.idle() + self.vacant(), self.size);
    }

    // How slots move.

    fn slot_of(&self, number: u64) -> Slot {
        let slot = self.slots.iter().position(|place| place.number == Some(number));
        slot.expect("a resource of this pool")
    }

    fn line(&mut self, high: bool) -> &mut VecDeque<Name> {
        if high { &mut self.line_high } else { &mut self.line }
    }

    fn take_vacant(&mut self) -> Option<Slot> {
        // While a shrink is owed a slot, there is no room for one more.
        let owed = self.surplus > 0 || self.closing.iter().any(|(_, leaves)| *leaves);
        let wanted = !self.line_high.is_empty() && !owed;
        let reserved = |queue: &mut VecDeque<Slot>| wanted.then(|| queue.pop_front()).flatten();
        self.vacant.pop_front().or_else(|| reserved(&mut self.vacant_reserved))
    }

    fn put_vacant(&mut self, slot: Slot) {
        if slot < self.reserved {
            self.vacant_reserved.push_back(slot);
        } else {
            self.vacant.push_back(slot);
        }
        self.balance();
        self.offer_vacant();
        self.demand();
    }

    /// Moves slots in or out of service, as far as there are any to move.
    fn balance(&mut self) {
        while self.surplus > 0 {
            let Some(slot) = self.vacant.pop_front() else { return };
            self.spare.push_back(slot);
            self.surplus -= 1;
        }
        while self.surplus < 0 {
            let Some(slot) = self.spare.pop_front() else { return };
            self.vacant.push_back(slot);
            self.surplus += 1;
        }
    }

    /// A resource that is in use ends. That is the pool's own tasks' work, except for one that is
    /// taken out.
    fn end(&mut self, slot: Slot, why: End) {
        self.totals.end(why);
        self.in_use -= 1;
        self.slots[slot].number = None;
        if self.kind == Kind::Managed && why != End::Detached {
            self.closing.push_back((slot, why == End::Surplus));
        } else {
            self.put_vacant(slot);
        }
    }

    /// Has the pool's own tasks connect, if that is wanted and possible.
    fn demand(&mut self) {
        let wanted = self.kind == Kind::Managed && self.waiters() > 0 && !self.is_closed();
        if wanted && self.dialling.is_none() && !self.pausing {
            self.dialling = self.take_vacant();
        }
    }

    /// Why a resource must not be used again, if it must not.
    fn fault(&self, slot: Slot) -> Option<End> {
        if self.surplus > 0 && slot >= self.reserved {
            return Some(End::Surplus);
        }
        (self.slots[slot].generation < self.generation).then_some(End::Invalidated)
    }

    /// Whether a resource that is in use must not be used again; then it ends.
    fn has_to_go(&mut self, slot: Slot) -> bool {
        let fault = self.fault(slot);
        if let Some(why) = fault {
            self.surplus -= isize::from(why == End::Surplus);
            self.end(slot, why);
        }
        fault.is_some()
    }

    /// A resource that is in use goes to the first in line, to the idle ones, or to its end.
    fn give(&mut self, slot: Slot) {
        self.slots[slot].lent = false;
        let phase = self.phase;
        match phase {
            Phase::Draining => return self.end(slot, End::Drained),
            Phase::Closed => return self.end(slot, End::PoolClosed),
            Phase::Open if self.has_to_go(slot) => return,
            Phase::Open => {}
        }
        let mut next = self.line_high.pop_front();
        if slot >= self.reserved {
            next = next.or_else(|| self.line.pop_front());
        }
        match next {
            Some(name) => drop(self.fates.insert(name, Fate::Served(slot))),
            None => {
                self.in_use -= 1;
                self.shelf(slot).put(slot);
            }
        }
    }

    fn shelf(&mut self, slot: Slot) -> &mut Shelf {
        if slot < self.reserved { &mut self.idle_reserved } else { &mut self.idle }
    }

    /// A resource comes into a vacant slot.
    fn fill(&mut self, slot: Slot, number: u64) {
        self.in_use += 1;
        self.move_in(slot, number);
        self.give(slot);
    }

    fn move_in(&mut self, slot: Slot, number: u64) {
        let place = &mut self.slots[slot];
        place.number = Some(number);
        place.last = number;
        place.generation = self.generation;
        place.unchecked = false;
    }

    fn take_idle(&mut self) -> Option<Slot> {
        let slot = self.idle.take()?;
        self.in_use += 1;
        Some(slot)
    }

    /// Vacant slots go to the first in line, to make something for them.
    fn offer_vacant(&mut self) {
        while self.kind == Kind::Made && !self.vacant.is_empty() && !self.is_closed() {
            let Some(name) = self.line.pop_front() else { return };
            let slot = self.vacant.pop_front().expect("one is vacant");
            self.fates.insert(name, Fate::Makes(slot));
            self.making += 1;
        }
    }

    // What callers do.

    /// A new acquire: its outcome, or it waits in line.
    pub(super) fn acquire(&mut self, name: Name) {
        // Nobody waits while something is idle that he may have, so nobody is overtaken.
        match if self.is_closed() { None } else { self.take_idle() } {
            Some(slot) => drop(self.fates.insert(name, Fate::Served(slot))),
            None => self.wait(name),
        }
    }

    fn wait(&mut self, name: Name) {
        if self.is_closed() {
            self.fates.insert(name, Fate::Refused(Refusal::Closed));
            return;
        }
        let limited = !name.high && !self.admitted.contains(&name);
        if limited && self.waiters() >= self.max_waiters {
            self.totals.queue_full += 1;
            self.fates.insert(name, Fate::Refused(Refusal::QueueFull));
            return;
        }
        self.admitted.insert(name);
        self.line(name.high).push_back(name);
        if let Some(slot) = self.take_idle() {
            self.give(slot);
        } else if name.high {
            if let Some(slot) = self.idle_reserved.take() {
                self.in_use += 1;
                self.give(slot);
            }
        }
        self.offer_vacant();
        self.demand();
    }

    /// An acquire is polled.
    pub(super) fn hear(&mut self, name: Name) -> Option<Result<u64, Refusal>> {
        loop {
            match self.fates.remove(&name)? {
                fate @ (Fate::Served(_) | Fate::Makes(_)) if self.is_closed() => {
                    self.hand_back(fate);
                    self.fates.insert(name, Fate::Refused(Refusal::Closed));
                }
                Fate::Served(slot) => {
                    let checked = self.kind == Kind::Managed && self.slots[slot].unchecked;
                    if checked && self.fault(slot).is_none() {
                        // What the check takes is no reason to be refused afterwards.
                        self.admitted.insert(name);
                    }
                    if !self.make_fit(slot) {
                        // It waits on, behind the others.
                        self.wait(name);
                    } else {
                        return self.lend(slot).map(Ok);
                    }
                }
                Fate::Makes(slot) => {
                    self.making -= 1;
                    self.in_use += 1;
                    let number = self.make();
                    self.move_in(slot, number);
                    return Some(Ok(number));
                }
                Fate::Refused(Refusal::Closed | Refusal::Draining)
                    if self.phase == Phase::Draining =>
                {
                    return Some(Err(Refusal::Draining));
                }
                Fate::Refused(refusal) => return Some(Err(refusal)),
            }
        }
    }

    /// A resource is about to be used. False: it ends.
    fn make_fit(&mut self, slot: Slot) -> bool {
        self.kind != Kind::Managed || !self.has_to_go(slot) && self.check(slot)
    }

    fn lend(&mut self, slot: Slot) -> Option<u64> {
        self.totals.acquires += 1;
        self.totals.calls.on_checkout += 1;
        self.slots[slot].uses += 1;
        self.slots[slot].lent = true;
        self.slots[slot].number
    }

    /// False: the check that was due has failed.
    fn check(&mut self, slot: Slot) -> bool {
        if !mem::take(&mut self.slots[slot].unchecked) {
            return true;
        }
        self.totals.checks += 1;
        if !self.checks_succeed {
            self.end(slot, End::FailedCheck);
            self.doubt_idle();
        }
        self.checks_succeed
    }

    /// One was found dead: those that are idle may be so too.
    fn doubt_idle(&mut self) {
        for slot in self.walk() {
            self.slots[slot].unchecked |= self.checked;
        }
    }

    pub(super) fn cancel(&mut self, name: Name) -> Option<Fate> {
        self.line(name.high).retain(|other| *other != name);
        let fate = self.fates.remove(&name);
        if let Some(Fate::Served(_) | Fate::Makes(_)) = fate {
            // It goes to the next of the same line as it is.
            if let Some(next) = self.line(name.high).pop_front() {
                self.fates.extend(fate.map(|fate| (next, fate)));
                return fate;
            }
        }
        if let Some(fate) = fate {
            self.hand_back(fate);
        }
        fate
    }

    /// Nobody comes for what was on its way.
    fn hand_back(&mut self, fate: Fate) {
        match fate {
            Fate::Served(slot) => self.give(slot),
            Fate::Makes(slot) => {
                self.making -= 1;
                self.put_vacant(slot);
            }
            Fate::Refused(_) => {}
        }
    }

    /// The first in line goes to its end.
    pub(super) fn step_back(&mut self, high: bool) -> Option<Name> {
        let name = *self.line(high).front()?;
        self.line(high).rotate_left(1);
        Some(name)
    }

    pub(super) fn try_acquire(&mut self) -> Result<u64, TryAcquireError> {
        match self.phase {
            Phase::Open => {}
            Phase::Draining => return Err(TryAcquireError::Draining),
            Phase::Closed => return Err(TryAcquireError::Closed),
        }
        let slot = self.take_idle().ok_or(TryAcquireError::Empty)?;
        if self.slots[slot].unchecked {
            // That is done in the background, and then it is anybody's.
            if self.check(slot) {
                let place = &mut self.slots[slot];
                place.passed = (place.number.unwrap_or(0), place.uses);
                self.give(slot);
            }
            return Err(TryAcquireError::Empty);
        }
        let fit = self.make_fit(slot);
        fit.then(|| self.lend(slot)).flatten().ok_or(TryAcquireError::Empty)
    }

    /// A guard is let go of.
    pub(super) fn come_back(&mut self, number: u64, wear: Wear) {
        let slot = self.slot_of(number);
        self.totals.calls.on_checkin += 1;
        self.totals.calls.after_release += 1;
        match wear {
            Wear::Broken => {
                self.end(slot, End::Broken);
                return self.doubt_idle();
            }
            Wear::Soiled => self.totals.resets += 1,
            Wear::None => {}
        }
        self.slots[slot].unchecked = self.checked;
        self.give(slot);
    }

    /// A resource that is in use leaves the pool.
    pub(super) fn lose(&mut self, number: u64, discard: bool) {
        let slot = self.slot_of(number);
        if discard {
            self.totals.calls.on_checkin += 1;
            self.totals.calls.after_release += 1;
        }
        self.end(slot, if discard { End::Discarded } else { End::Detached });
    }

    pub(super) fn add(&mut self) -> Result<(), Refused> {
        let number = self.make();
        if self.is_closed() {
            return Err(Refused::Closed);
        }
        let slot = self.vacant.pop_front().ok_or(Refused::Full)?;
        self.fill(slot, number);
        Ok(())
    }

    // What an operator does.

    pub(super) fn close(&mut self) {
        if self.phase == Phase::Open {
            self.phase = Phase::Closed;
        }
        self.shut();
    }

    pub(super) fn begin_to_drain(&mut self) {
        if self.phase == Phase::Open {
            self.phase = Phase::Draining;
        }
        self.shut();
    }

    pub(super) fn stop_draining(&mut self) {
        self.phase = Phase::Closed;
    }

    fn shut(&mut self) {
        while let Some(slot) = self.idle.take().or_else(|| self.idle_reserved.take()) {
            self.in_use += 1;
            self.give(slot);
        }
        // Whoever has not heard of a refusal hears of the close instead.
        for fate in self.fates.values_mut() {
            if *fate == Fate::Refused(Refusal::Connect) {
                *fate = Fate::Refused(Refusal::Closed);
            }
        }
        for name in self.line.drain(..).chain(self.line_high.drain(..)) {
            self.fates.insert(name, Fate::Refused(Refusal::Closed));
        }
    }

    /// Answers whether that size is possible.
    pub(super) fn resize(&mut self, size: usize) -> bool {
        if size <= self.reserved || size > self.capacity() {
            return false;
        }
        self.surplus += self.size as isize - size as isize;
        let shrinks = mem::replace(&mut self.size, size) > size;
        self.balance();
        if shrinks {
            self.look_at_idle();
        }
        self.demand();
        true
    }

    pub(super) fn invalidate(&mut self) {
        self.generation += 1;
        self.look_at_idle();
    }

    /// Idle resources that have to go end.
    fn look_at_idle(&mut self) {
        for slot in self.walk() {
            if self.fault(slot).is_some() {
                self.pick(slot);
                self.has_to_go(slot);
            }
        }
    }

    /// All idle slots, in the order in which the pool looks at them.
    fn walk(&self) -> Vec<Slot> {
        [self.idle.walk(), self.idle_reserved.walk()].concat()
    }

    /// Takes an idle slot out of turn.
    fn pick(&mut self, slot: Slot) {
        self.shelf(slot).pick(slot);
        self.in_use += 1;
    }

    /// Answers the idle resources in the order in which the pool shows them.
    pub(super) fn retain(&mut self, keep: impl Fn(u64) -> bool) -> Vec<u64> {
        let walk = self.walk().into_iter();
        let idle: Vec<(Slot, u64)> =
            walk.filter_map(|slot| Some((slot, self.slots[slot].number?))).collect();
        for &(slot, number) in &idle {
            if !keep(number) {
                self.pick(slot);
                self.end(slot, End::Removed);
            }
        }
        idle.into_iter().map(|(_, number)| number).collect()
    }

    /// The reaper looks.
    pub(super) fn maintain(&mut self) {
        if self.is_closed() {
            return;
        }
        self.probe();
        let idle = self.walk();
        for &slot in &idle {
            let place = &mut self.slots[slot];
            let passed = place.passed == (place.number.unwrap_or(0), place.uses);
            place.unchecked |= self.checked && !passed;
        }
        if !self.reports_leaks {
            return;
        }
        for (slot, place) in self.slots.iter_mut().enumerate() {
            let held = place.lent && place.number.is_some() && !idle.contains(&slot);
            match place.observe(held) {
                Sighting::Nothing => {}
                Sighting::Leak => self.totals.leaks += 1,
                Sighting::LateReturn => self.totals.late_returns += 1,
            }
        }
    }

    /// The pool's own tasks run.
    pub(super) fn settle(&mut self) {
        while let Some((slot, leaves)) = self.closing.pop_front() {
            if leaves {
                self.spare.push_back(slot);
                self.balance();
            } else {
                self.put_vacant(slot);
            }
        }
        if self.is_closed() {
            self.pausing = false;
        }
        self.demand();
        while let Some(slot) = self.dialling.take() {
            self.dial(slot);
            self.demand();
        }
    }

    /// The pause after a failed connect passes, during which `failures` more have failed.
    pub(super) fn pause(&mut self, failures: u64) {
        for _ in 0..failures.max(1) {
            self.pausing = false;
            self.probe();
            self.settle();
        }
    }

    /// A pool that is down sees whether it still is.
    fn probe(&mut self) {
        let down = self.troubled && self.has_gone();
        if down && !self.is_closed() && self.dialling.is_none() && !self.pausing {
            self.dialling = self.take_vacant();
        }
    }

    fn dial(&mut self, slot: Slot) {
        self.troubled = self.connects == Connects::Fail;
        match self.connects {
            Connects::Succeed => {
                let number = self.make();
                self.totals.created += 1;
                self.totals.calls.on_create += 1;
                self.fill(slot, number);
            }
            Connects::Fail => {
                self.pausing = true;
                self.put_vacant(slot);
            }
            Connects::Refuse => {
                for name in self.line.drain(..).chain(self.line_high.drain(..)) {
                    self.fates.insert(name, Fate::Refused(Refusal::Connect));
                }
                self.put_vacant(slot);
            }
        }
    }
}
