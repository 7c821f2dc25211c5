//! A slot, the states it goes through, and the cell beside it that others may read.
//!
//! A [`Slot`] is boxed once, when the pool is built. Whoever holds the box owns the slot (I1), and
//! the compiler proves it. What others must read meanwhile stands in the slot's [`Cell`], which
//! stays where it is while the box travels.
//!
//! Not here: where an idle slot waits (`idle.rs`), and who may hold one (`tokens.rs`).

use super::{Glimpse, Keeper};
use crate::sync::{AtomicU32, AtomicU64, Keyed, Ordering};
use crossbeam_utils::atomic::AtomicCell;
use std::panic::Location;
use std::sync::{Arc, Weak};

/// Where a slot is in its life.
///
/// | from | to | by |
/// |---|---|---|
/// | `Vacant` | `Connecting` | a reservation |
/// | `Connecting` | `Vacant` | the connect failed or was abandoned |
/// | `Connecting` | `InUse` | the connect succeeded: on its way to a waiter or to the idle ones |
/// | `InUse` | `Idle` | released |
/// | `Idle` | `InUse` | acquired |
/// | `InUse` | `Checking`, `Resetting`, `Closing` | the holder hands the resource to the pool's own work |
/// | `Checking`, `Resetting` | `InUse` | it is fit for use |
/// | `Checking`, `Resetting` | `Closing` | it is not |
/// | `InUse`, `Checking`, `Resetting`, `Closing` | `Vacant` | the resource is gone |
/// | `Closing` | `Spare` | the resource is gone, and it was one too many |
/// | `Closing` | `Connecting` | the resource is gone, and whoever ended it brings the next |
/// | `Vacant` | `Spare` | taken out of service |
/// | `Spare` | `Vacant` | put into service |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// No resource. The slot waits among the vacant ones, or with nobody before its first use.
    Vacant = 0,
    /// No resource yet: somebody holds the right to bring one.
    Connecting = 1,
    /// In the hands of a caller, or on its way to one.
    InUse = 2,
    /// Waiting for the next caller.
    Idle = 3,
    /// Its liveness is being checked.
    Checking = 4,
    /// It is being made clean for the next caller.
    Resetting = 5,
    /// It is being closed.
    Closing = 6,
    /// No resource, and none may be brought: the pool is smaller than its capacity.
    Spare = 7,
}

impl State {
    /// Every state, in the order of their numbers.
    pub(crate) const ALL: [Self; 8] = [
        Self::Vacant,
        Self::Connecting,
        Self::InUse,
        Self::Idle,
        Self::Checking,
        Self::Resetting,
        Self::Closing,
        Self::Spare,
    ];

    /// Whether the table above allows the step (I5).
    pub(crate) const fn may_become(self, next: Self) -> bool {
        use State::{Checking, Closing, Connecting, Idle, InUse, Resetting, Spare, Vacant};
        matches!(
            (self, next),
            (Vacant, Connecting | Spare)
                | (Spare, Vacant)
                | (Connecting, Vacant | InUse)
                | (Idle, InUse)
                | (InUse, Idle | Checking | Resetting | Closing | Vacant)
                | (Checking | Resetting, InUse | Closing | Vacant)
                | (Closing, Vacant | Spare | Connecting)
        )
    }
}

/// One place of the pool: a number, and the resource that lives there at the moment.
///
/// Aligned so that no two share a cache line: two neighbours on one line cost a quarter of the
/// throughput of two threads.
#[repr(align(128))]
pub(crate) struct Slot<K: Keeper> {
    /// The slot's number, and the index of its cell.
    pub(super) id: u32,
    /// How often the slot has been acquired. The cell has a copy for others to read; the owner need
    /// not wait for its own store to come back from there.
    pub(super) uses: u64,
    /// The resource; `None` while the slot is vacant or being connected.
    pub(super) resource: Option<K::Resource>,
    /// It is one too many, and goes to the spare ones as soon as its resource is gone.
    pub(super) leaving: bool,
    /// Whom the slot belongs to, for a hand-off that nobody is left to receive.
    pub(super) keeper: Weak<K>,
    /// The same for a caller who has nothing but the slot: a [`BareLoan`](super::BareLoan). It comes with
    /// the first of these and is gone when the slot is vacant. So an idle slot may keep its keeper in
    /// memory, until the core is closed and swept.
    pub(super) ticket: Option<Arc<K>>,
}

impl<K: Keeper> Slot<K> {
    /// Moves the slot to another state.
    #[inline]
    pub(super) fn enter(&self, cell: &Cell, next: State) {
        cell.note(next, self.uses);
    }

    /// The slot is in use and in no caller's hands: it has left its shelf for something else, or its resource is
    /// new, or fit again.
    pub(super) fn enter_unheld(&self, cell: &Cell) {
        // First: whoever sees it in use must not take it for one of its last holder.
        cell.forget_holder();
        self.enter(cell, State::InUse);
    }

    /// The slot reaches a caller: counts a use, and notes who made it.
    #[inline]
    pub(super) fn begin_use(&mut self, cell: &Cell, holder: &'static Location<'static>) {
        self.uses = self.uses.wrapping_add(1);
        cell.lend(self.uses, holder);
    }
}

impl<K: Keeper> Keyed for Slot<K> {
    fn key(&self) -> usize {
        self.id as usize
    }
}

/// What others may read of a slot while somebody owns it.
///
/// Only the owner writes `life` and `holder`, with plain stores: two owners' stores are ordered by
/// whatever handed the slot from one to the other. `flags` is set by others and cleared by the
/// owner.
#[repr(align(64))]
pub(crate) struct Cell {
    /// The state in the lowest byte, the number of acquires so far above it: one store writes both,
    /// and one load reads a pair that belongs together.
    life: AtomicU64,
    /// [`Flags`]: reasons to leave the fast path.
    flags: AtomicU32,
    /// Where the slot was acquired last; nothing once it has left its shelf or its last holder for something else
    /// than a caller, such as a waiter or a search.
    holder: AtomicCell<Option<&'static Location<'static>>>,
}

const STATE_BITS: u32 = 8;
const STATE_MASK: u64 = (1 << STATE_BITS) - 1;

impl Cell {
    pub(super) fn new() -> Self {
        Self {
            life: AtomicU64::new(State::Vacant as u64),
            flags: AtomicU32::new(0),
            holder: AtomicCell::new(None),
        }
    }

    /// The state at this moment, and the number of acquires so far.
    ///
    /// Another thread may have moved the slot on by the time that the caller looks at the answer;
    /// what holds is that both numbers were true together.
    #[inline]
    pub(super) fn life(&self) -> (State, u64) {
        // Ordering: Acquire, partner: the store in `note`. Who sees a use sees its holder.
        let life = self.life.load(Ordering::Acquire);
        (State::ALL[(life & STATE_MASK) as usize], life >> STATE_BITS)
    }

    /// Writes down what the owner's copy says.
    #[inline]
    fn note(&self, state: State, uses: u64) {
        debug_assert!(
            self.life().0.may_become(state) || self.life().0 == state && self.life().1 + 1 == uses,
            "BUG: a slot went from {:?} to {state:?}",
            self.life().0
        );
        // Ordering: Release, partner: the load in `life`. No fence: on x86-64 a plain store.
        self.life.store(uses << STATE_BITS | state as u64, Ordering::Release);
    }

    /// Writes down a use, and who has begun it.
    #[inline]
    fn lend(&self, uses: u64, holder: &'static Location<'static>) {
        // First the holder: whoever looks from outside and sees the use must not take it for one of the
        // holder before, nor for one that nobody has begun.
        self.holder.store(Some(holder));
        self.note(State::InUse, uses);
    }

    /// What there is to see from outside: state, uses and holder belong together, but that the next use's holder
    /// may be seen already.
    pub(super) fn glimpse(&self) -> Glimpse {
        loop {
            let (state, uses) = self.life();
            let holder = self.holder.load();
            if self.life() == (state, uses) {
                return Glimpse { state, uses, holder, flags: self.flags() };
            }
        }
    }

    /// Nobody holds the slot, whoever did so last.
    #[inline]
    pub(super) fn forget_holder(&self) {
        self.holder.store(None);
    }

    /// Why the slot is to leave the fast path.
    #[inline]
    pub(super) fn flags(&self) -> Flags {
        // Relaxed: whoever raised a flag while this slot was on its way searches the shelves
        // afterwards, and whoever puts it on a shelf looks once more if anything has changed
        // (`Core::alert`).
        Flags(self.flags.load(Ordering::Relaxed))
    }

    /// Raises flags; anybody may.
    pub(super) fn raise(&self, flags: Flags) {
        // Ordering: Release, partner: `lower`. An owner may see the flag before the alert.
        self.flags.fetch_or(flags.0, Ordering::Release);
    }

    /// Lowers flags; only the slot's owner may.
    pub(super) fn lower(&self, flags: Flags) {
        // Ordering: Acquire, partner: `raise`; what the owner examines next is what the one who
        // raised the flag wanted it to see.
        self.flags.fetch_and(!flags.0, Ordering::Acquire);
    }
}

/// Reasons for which a slot leaves the fast path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flags(u32);

impl Flags {
    /// None.
    pub const NONE: Self = Self(0);
    /// The keeper is to decide whether the resource stays, before it is used or put back.
    pub const LOOK: Self = Self(1);
    /// The resource is to be checked before it is used.
    pub const CHECK: Self = Self(2);
    /// The keeper has something to do whenever the resource is lent.
    pub const GREET: Self = Self(4);
    /// The slot is kept for those who wait in the [`High`](super::Line::High) line. Never lowered.
    pub(super) const RESERVED: Self = Self(8);
    /// What a slot loses with its resource.
    pub(super) const OF_RESOURCE: Self = Self(1 | 2 | 4);

    #[inline]
    pub(super) const fn any(self) -> bool {
        self.0 != 0
    }

    /// Whether at least one of `flags` is raised.
    #[inline]
    pub const fn has(self, flags: Self) -> bool {
        self.0 & flags.0 != 0
    }

    /// Whether a release must leave the fast path.
    #[inline]
    pub(super) const fn bar_release(self) -> bool {
        self.0 & (Self::LOOK.0 | Self::RESERVED.0) != 0
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn every_state_has_a_way_in_and_a_way_out() {
        for state in State::ALL {
            assert!(State::ALL.iter().any(|from| from.may_become(state)), "no way to {state:?}");
            assert!(State::ALL.iter().any(|to| state.may_become(*to)), "no way from {state:?}");
            assert!(!state.may_become(state), "{state:?} may not become itself");
            assert_eq!(State::ALL[state as usize], state);
        }
    }

    #[test]
    fn only_a_lease_becomes_idle() {
        let into_idle: Vec<_> =
            State::ALL.into_iter().filter(|from| from.may_become(State::Idle)).collect();
        assert_eq!(into_idle, [State::InUse]);
    }

    #[test]
    fn a_cell_says_what_was_noted() {
        let cell = Cell::new();
        assert_eq!(cell.life(), (State::Vacant, 0));
        cell.note(State::Connecting, 0);
        cell.note(State::InUse, 0);
        for uses in 1..=1000 {
            cell.note(State::InUse, uses);
            assert_eq!(cell.life(), (State::InUse, uses));
            cell.note(State::Idle, uses);
            assert_eq!(cell.life(), (State::Idle, uses));
            cell.note(State::InUse, uses);
        }
    }

    /// No model can show this: loom does not see the cell of the holder.
    #[test]
    fn whoever_sees_a_use_sees_its_holder() {
        const USES: u64 = 3_000_000;
        let holders = [Location::caller(), Location::caller()];
        let holder_of = |uses: u64| holders[(uses % 2) as usize];
        let cell = Cell::new();
        cell.note(State::Connecting, 0);
        cell.note(State::InUse, 0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for uses in 1..=USES {
                    cell.lend(uses, holder_of(uses));
                    cell.note(State::Idle, uses);
                }
            });
            loop {
                let Glimpse { state, uses, holder, .. } = cell.glimpse();
                if state == State::InUse && uses > 0 {
                    assert_eq!(holder, Some(holder_of(uses)));
                }
                if (state, uses) == (State::Idle, USES) {
                    break;
                }
            }
        });
    }

    #[test]
    #[should_panic(expected = "BUG: a slot went from Vacant to Idle")]
    fn an_illegal_step_is_a_bug() {
        Cell::new().note(State::Idle, 0);
    }
}
