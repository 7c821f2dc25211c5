//! The rights to a slot, as values: whoever holds one owns the slot, and dropping it anywhere (on
//! an error, in a panic, with a cancelled future) puts the slot where it belongs and sees to it that
//! a waiter hears of it. There is no other repair path.
//!
//! | token | the slot is | dropping it |
//! |---|---|---|
//! | [`Reservation`] | connecting: the right to bring a resource | makes the slot vacant |
//! | [`Lease`] | in use, with a resource fit for the next caller | releases it |
//! | [`Loan`], [`BareLoan`] | in use, in the hands of a caller | asks the keeper whether it is fit for the next caller, and releases it |
//! | [`Trial`] | checking, resetting or closing, with a resource in doubt, or none any more | drops the resource, makes the slot vacant |
//!
//! A token goes with any pointer to its keeper: a reference, or an `Arc` where it must outlive the
//! caller.
//!
//! Not here: how a slot finds its next owner (`waiters.rs`).

use super::slot::{Cell, Flags, Slot, State};
use super::waiters::{self, LineFull};
use super::{Keeper, Line};
use crate::panics::caught;
use std::mem::ManuallyDrop;
use std::ops::Deref;
use std::panic::Location;
use std::ptr;
use std::sync::Arc;
use std::time::Instant;

/// The keeper that a pointer points to.
type Of<R> = <R as Deref>::Target;
/// What its slots hold.
type Resource<R> = <Of<R> as Keeper>::Resource;

const GONE: &str = "BUG: a token was used after it had been given away";
const NOTHING: &str = "BUG: a slot without its resource";

/// Makes a slot vacant, and tells the keeper.
#[cold]
fn vacate<K: Keeper>(keeper: &K, slot: Box<Slot<K>>) {
    let core = keeper.core();
    core.cell(&slot).lower(Flags::OF_RESOURCE);
    core.put_vacant(slot);
    // The keeper looks for waiters after the push; a waiter counts itself and then has its keeper
    // look for a vacant slot (I4).
    keeper.vacancy();
}

/// Puts a slot back that was on its way to somebody who has left, or who came for it after the close.
#[cold]
pub(super) fn mend<K: Keeper>(keeper: &K, slot: Box<Slot<K>>) {
    if slot.resource.is_some() {
        waiters::release(keeper, slot);
    } else {
        vacate(keeper, slot);
    }
}

/// The right to bring a resource into a vacant slot.
#[must_use]
pub struct Reservation<R: Deref<Target: Keeper>> {
    keeper: R,
    slot: Option<Box<Slot<Of<R>>>>,
}

impl<R: Deref<Target: Keeper> + Clone> Reservation<R> {
    pub fn keeper(&self) -> &R {
        &self.keeper
    }

    /// How often the slot has been acquired so far, by the holders of every resource it has had.
    pub fn uses(&self) -> u64 {
        self.slot.as_ref().expect(GONE).uses
    }

    /// The slot's number.
    pub fn slot(&self) -> usize {
        self.slot.as_ref().expect(GONE).id as usize
    }

    /// Puts the resource into the slot.
    pub fn fill(mut self, resource: Resource<R>) -> Lease<R> {
        let mut slot = self.slot.take().expect(GONE);
        slot.resource = Some(resource);
        slot.enter_unheld(self.keeper.core().cell(&slot));
        Lease::new(self.keeper.clone(), slot)
    }
}

impl<R: Deref<Target: Keeper>> Drop for Reservation<R> {
    fn drop(&mut self) {
        if let Some(slot) = self.slot.take() {
            vacate(&*self.keeper, slot);
        }
    }
}

/// A slot with a resource that is fit for use.
#[must_use]
pub struct Lease<R: Deref<Target: Keeper>> {
    keeper: R,
    /// Emptied by every way out, `Drop` included. `ManuallyDrop` spares the hot path the second
    /// look whether it really is empty.
    slot: ManuallyDrop<Option<Box<Slot<Of<R>>>>>,
}

impl<R: Deref<Target: Keeper>> Lease<R> {
    #[inline]
    pub(super) fn new(keeper: R, slot: Box<Slot<Of<R>>>) -> Self {
        Self { keeper, slot: ManuallyDrop::new(Some(slot)) }
    }

    #[inline]
    fn slot(&self) -> &Slot<Of<R>> {
        self.slot.as_ref().expect(GONE)
    }

    #[inline]
    fn cell(&self) -> &Cell {
        self.keeper.core().cell(self.slot())
    }

    #[inline]
    pub fn keeper(&self) -> &R {
        &self.keeper
    }

    /// The resource. Only the models look at one that has not been lent.
    #[cfg(loom)]
    pub fn resource(&self) -> &Resource<R> {
        self.slot().resource.as_ref().expect(NOTHING)
    }

    #[inline]
    pub fn resource_mut(&mut self) -> &mut Resource<R> {
        self.slot.as_mut().expect(GONE).resource.as_mut().expect(NOTHING)
    }

    pub(super) fn take_slot(&mut self) -> Box<Slot<Of<R>>> {
        self.slot.take().expect(GONE)
    }

    /// This right with another pointer to the same keeper.
    pub fn with_keeper<S: Deref<Target = Of<R>>>(mut self, keeper: S) -> Lease<S> {
        Lease::new(keeper, self.take_slot())
    }

    /// The slot's number.
    pub fn number(&self) -> usize {
        self.slot().id as usize
    }

    /// How often the slot has been acquired so far, by the holders of every resource it has had.
    pub fn uses(&self) -> u64 {
        self.slot().uses
    }

    /// What must be done before the resource is used or put back.
    #[inline]
    pub fn flags(&self) -> Flags {
        self.cell().flags()
    }

    /// Has the next holder, or whoever puts the resource back, do something first.
    pub fn raise(&self, flags: Flags) {
        self.cell().raise(flags);
    }

    /// It is being done. What the caller examines after this includes whatever was changed before
    /// the flags were raised.
    pub fn lower(&self, flags: Flags) {
        self.cell().lower(flags);
    }

    /// Takes the resource out of the pool. Nothing is left in the lease.
    pub fn detach(&mut self) -> Resource<R> {
        let mut slot = self.slot.take().expect(GONE);
        let resource = slot.resource.take().expect(NOTHING);
        vacate(&*self.keeper, slot);
        resource
    }
}

impl<R: Deref<Target: Keeper> + Clone> Lease<R> {
    /// Puts the resource in doubt while it is being checked, reset or closed. Nothing is left in
    /// the lease.
    pub fn begin(&mut self, state: State) -> Trial<R> {
        let slot = self.slot.take().expect(GONE);
        slot.enter(self.keeper.core().cell(&slot), state);
        Trial { keeper: self.keeper.clone(), slot: Some(slot) }
    }

    /// Ends the resource if the pool has one too many; then nothing is left in the lease.
    pub fn begin_leaving(&mut self) -> Option<Trial<R>> {
        let core = self.keeper.core();
        // Reserved slots are the last to go: a pool is never smaller than they are many.
        if core.is_reserved(self.slot()) || !core.claim_surplus() {
            return None;
        }
        let mut trial = self.begin(State::Closing);
        trial.slot.as_mut().expect(GONE).leaving = true;
        Some(trial)
    }

    /// Lends the resource to a caller, which counts as a use.
    #[inline]
    pub fn lend(mut self, caller: &'static Location<'static>) -> Loan<R> {
        let mut slot = self.slot.take().expect(GONE);
        slot.begin_use(self.keeper.core().cell(&slot), caller);
        Loan { keeper: self.keeper.clone(), slot: ManuallyDrop::new(Some(slot)) }
    }
}

impl<R: Deref<Target: Keeper>> Drop for Lease<R> {
    #[inline(always)]
    fn drop(&mut self) {
        if let Some(slot) = self.slot.take() {
            waiters::release(&*self.keeper, slot);
        }
    }
}

/// A slot whose resource is in the hands of a caller.
#[must_use]
pub struct Loan<R: Deref<Target: Keeper> + Clone> {
    keeper: R,
    /// As in [`Lease`].
    slot: ManuallyDrop<Option<Box<Slot<Of<R>>>>>,
}

impl<R: Deref<Target: Keeper> + Clone> Loan<R> {
    #[inline(always)]
    fn new(keeper: R, slot: Box<Slot<Of<R>>>) -> Self {
        Self { keeper, slot: ManuallyDrop::new(Some(slot)) }
    }

    /// The slot's number.
    pub fn number(&self) -> usize {
        self.slot().id as usize
    }

    #[inline]
    pub fn keeper(&self) -> &R {
        &self.keeper
    }

    #[inline]
    fn slot(&self) -> &Slot<Of<R>> {
        self.slot.as_ref().expect(GONE)
    }

    #[inline]
    pub fn resource(&self) -> &Resource<R> {
        self.slot().resource.as_ref().expect(NOTHING)
    }

    #[inline]
    pub fn resource_mut(&mut self) -> &mut Resource<R> {
        self.slot.as_mut().expect(GONE).resource.as_mut().expect(NOTHING)
    }

    /// How often the slot has been acquired so far, by the holders of every resource it has had.
    pub fn uses(&self) -> u64 {
        self.slot().uses
    }

    /// This right with another pointer to the same keeper. Nothing is left in this loan.
    pub fn with_keeper<S: Deref<Target = Of<R>> + Clone>(&mut self, keeper: S) -> Loan<S> {
        Loan::new(keeper, self.slot.take().expect(GONE))
    }

    /// Takes the resource back from its caller. Nothing is left in the loan.
    pub fn recall(&mut self) -> Lease<R> {
        Lease::new(self.keeper.clone(), self.slot.take().expect(GONE))
    }
}

impl<R: Deref<Target: Keeper> + Clone> Drop for Loan<R> {
    #[inline(always)]
    fn drop(&mut self) {
        let Some(mut slot) = self.slot.take() else { return };
        match self.keeper.inspect(slot.resource.as_mut().expect(NOTHING)) {
            None => waiters::release(&*self.keeper, slot),
            Some(doubt) => Keeper::doubt(Lease::new(self.keeper.clone(), slot), doubt),
        }
    }
}

/// A [`Loan`] that has no pointer to its keeper but the one in its slot, so that nobody counts one for it.
///
/// Whoever is about to drop it had better [give it a pointer](Self::with_keeper): when the slot is back, its
/// keeper is still needed. Dropped as it is, it clones the one in its slot.
#[must_use]
pub struct BareLoan<K: Keeper> {
    /// As in [`Lease`].
    slot: ManuallyDrop<Option<Box<Slot<K>>>>,
}

impl<K: Keeper> BareLoan<K> {
    /// The slot keeps its keeper in memory from now on.
    #[inline(always)]
    fn new(mut slot: Box<Slot<K>>, keeper: &Arc<K>) -> Self {
        if slot.ticket.is_none() {
            slot.ticket = Some(keeper.clone());
        }
        Self { slot: ManuallyDrop::new(Some(slot)) }
    }

    #[inline(always)]
    fn slot(&self) -> &Slot<K> {
        self.slot.as_ref().expect(GONE)
    }

    #[inline(always)]
    pub fn keeper(&self) -> &Arc<K> {
        self.slot().ticket.as_ref().expect("BUG: a bare loan without its ticket")
    }

    /// The slot's number.
    pub fn number(&self) -> usize {
        self.slot().id as usize
    }

    /// Whether nothing is left in it.
    #[inline(always)]
    pub fn is_over(&self) -> bool {
        self.slot.is_none()
    }

    #[inline(always)]
    pub fn resource(&self) -> &K::Resource {
        self.slot().resource.as_ref().expect(NOTHING)
    }

    #[inline(always)]
    pub fn resource_mut(&mut self) -> &mut K::Resource {
        self.slot.as_mut().expect(GONE).resource.as_mut().expect(NOTHING)
    }

    /// How often the slot has been acquired so far, by the holders of every resource it has had.
    pub fn uses(&self) -> u64 {
        self.slot().uses
    }

    /// This right with a pointer to its keeper. Nothing is left in this loan.
    #[inline(always)]
    pub fn with_keeper<R: Deref<Target = K> + Clone>(&mut self, keeper: R) -> Loan<R> {
        debug_assert!(
            ptr::eq(&*keeper, &**self.keeper()),
            "BUG: a slot was given to another keeper"
        );
        Loan::new(keeper, self.slot.take().expect(GONE))
    }

    /// This right in another place. Nothing is left in this loan.
    pub fn take(&mut self) -> Self {
        Self { slot: ManuallyDrop::new(self.slot.take()) }
    }
}

impl<K: Keeper> From<Loan<Arc<K>>> for BareLoan<K> {
    fn from(mut loan: Loan<Arc<K>>) -> Self {
        let slot = loan.slot.take().expect(GONE);
        Self::new(slot, &loan.keeper)
    }
}

impl<K: Keeper> Drop for BareLoan<K> {
    #[inline(always)]
    fn drop(&mut self) {
        if !self.is_over() {
            let keeper = self.keeper().clone();
            drop(self.with_keeper(keeper));
        }
    }
}

/// A slot whose resource is in doubt, or gone.
#[must_use]
pub struct Trial<R: Deref<Target: Keeper>> {
    keeper: R,
    slot: Option<Box<Slot<Of<R>>>>,
}

impl<R: Deref<Target: Keeper>> Trial<R> {
    pub fn keeper(&self) -> &R {
        &self.keeper
    }

    pub fn resource_mut(&mut self) -> &mut Resource<R> {
        self.slot.as_mut().expect(GONE).resource.as_mut().expect(NOTHING)
    }

    /// How often the slot has been acquired so far, by the holders of every resource it has had.
    pub fn uses(&self) -> u64 {
        self.slot.as_ref().expect(GONE).uses
    }

    /// It is being done; see [`Lease::lower`].
    pub fn lower(&self, flags: Flags) {
        let slot = self.slot.as_ref().expect(GONE);
        self.keeper.core().cell(slot).lower(flags);
    }

    /// The resource is not fit for use, and is about to be closed.
    pub fn fail(self) -> Self {
        let slot = self.slot.as_ref().expect(GONE);
        slot.enter(self.keeper.core().cell(slot), State::Closing);
        self
    }

    /// Takes the resource; the slot stays occupied as long as the token lives.
    pub fn take(&mut self) -> Option<Resource<R>> {
        self.slot.as_mut().expect(GONE).resource.take()
    }

    /// This right with another pointer to the same keeper.
    pub fn with_keeper<S: Deref<Target = Of<R>>>(mut self, keeper: S) -> Trial<S> {
        Trial { keeper, slot: self.slot.take() }
    }
}

impl<R: Deref<Target: Keeper> + Clone> Trial<R> {
    /// The resource is fit for use.
    pub fn pass(mut self) -> Lease<R> {
        let slot = self.slot.take().expect(GONE);
        slot.enter_unheld(self.keeper.core().cell(&slot));
        Lease::new(self.keeper.clone(), slot)
    }

    /// The right to bring the next resource, once the one that was closed is gone.
    pub fn renew(mut self) -> Reservation<R> {
        let slot = self.slot.take().expect(GONE);
        debug_assert!(slot.resource.is_none(), "BUG: the last resource is still there");
        slot.enter(self.keeper.core().cell(&slot), State::Connecting);
        Reservation { keeper: self.keeper.clone(), slot: Some(slot) }
    }
}

impl<R: Deref<Target: Keeper>> Drop for Trial<R> {
    fn drop(&mut self) {
        let Some(mut slot) = self.slot.take() else {
            return;
        };
        let resource = slot.resource.take();
        // A resource that panics while it is dropped must not take the slot with it, nor a keeper that
        // does while it is told; the panic hook has reported it.
        drop(caught(|| {
            if let Some(resource) = &resource {
                self.keeper.abandoned(resource);
            }
        }));
        drop(caught(|| drop(resource)));
        vacate(&*self.keeper, slot);
    }
}

/// Ends every idle resource of a core that is closed.
#[cold]
pub fn sweep<K: Keeper>(keeper: &K) {
    while let Some(mut lease) = take_idle(keeper) {
        // Whoever is told of one and panics must not keep the others: nobody comes for them later, and
        // their tickets would keep the keeper.
        drop(caught(|| keeper.retire(lease.begin(State::Closing))));
    }
}

/// What a look at the shelves found.
pub enum Found<R: Deref<Target: Keeper> + Clone> {
    /// A resource that is ready.
    Ready(Loan<R>),
    /// A resource that must be looked at first.
    Flagged(Lease<R>),
    /// None is idle, or others wait, or the core is closed.
    Nothing,
}

/// Takes an idle slot, if nobody waits and the core is open.
#[inline(always)]
pub fn try_acquire<R>(keeper: &R, caller: &'static Location<'static>) -> Found<R>
where
    R: Deref<Target: Keeper> + Clone,
{
    match pick(&**keeper, caller) {
        Picked::Ready(slot) => Found::Ready(Loan::new(keeper.clone(), slot)),
        Picked::Flagged(slot) => Found::Flagged(Lease::new(keeper.clone(), slot)),
        Picked::Nothing => Found::Nothing,
    }
}

/// As [`try_acquire`], with a reference to the keeper that the loan is to have, so that none has to be
/// cloned; it comes back with anything but a loan.
///
/// # Errors
///
/// What was found instead of a resource that is ready.
#[inline(always)]
pub fn try_acquire_owned<R>(
    keeper: R,
    caller: &'static Location<'static>,
) -> Result<Loan<R>, (R, Found<R>)>
where
    R: Deref<Target: Keeper> + Clone,
{
    match pick(&*keeper, caller) {
        Picked::Ready(slot) => Ok(Loan::new(keeper, slot)),
        Picked::Flagged(slot) => {
            let lease = Lease::new(keeper.clone(), slot);
            Err((keeper, Found::Flagged(lease)))
        }
        Picked::Nothing => Err((keeper, Found::Nothing)),
    }
}

/// As [`try_acquire`], for a loan without a pointer to the keeper.
///
/// # Errors
///
/// What was found instead of a resource that is ready.
#[inline(always)]
pub fn try_acquire_bare<K: Keeper>(
    keeper: &Arc<K>,
    caller: &'static Location<'static>,
) -> Result<BareLoan<K>, Found<Arc<K>>> {
    match pick(&**keeper, caller) {
        Picked::Ready(slot) => Ok(BareLoan::new(slot, keeper)),
        Picked::Flagged(slot) => Err(Found::Flagged(Lease::new(keeper.clone(), slot))),
        Picked::Nothing => Err(Found::Nothing),
    }
}

/// An idle slot, before anybody answers for it.
enum Picked<K: Keeper> {
    Ready(Box<Slot<K>>),
    Flagged(Box<Slot<K>>),
    Nothing,
}

#[inline(always)]
fn pick<K: Keeper>(keeper: &K, caller: &'static Location<'static>) -> Picked<K> {
    let core = keeper.core();
    if !core.control.glance().is_quiet() {
        return Picked::Nothing;
    }
    let home = core.home();
    let Some(mut slot) = core.unshelve(home) else {
        return Picked::Nothing;
    };
    let cell = core.cell(&slot);
    if cell.flags().any() {
        slot.enter_unheld(cell);
        if core.floor > 0 && core.may_have_dipped(home) {
            keeper.dipped();
        }
        return Picked::Flagged(slot);
    }
    slot.begin_use(cell, caller);
    if core.floor > 0 && core.may_have_dipped(home) {
        keeper.dipped();
    }
    Picked::Ready(slot)
}

/// What a waiter is woken with.
pub enum Woken<R: Deref<Target: Keeper>> {
    /// A resource.
    Lease(Lease<R>),
    /// A slot to fill; only from a keeper that [offers](super::offer_vacant) them.
    Vacant(Reservation<R>),
    /// The word to look again, whether the core is closed or whatever else has changed.
    LookAgain,
    /// Too many wait already.
    LineFull,
}

impl<R: Deref<Target: Keeper> + Clone> Woken<R> {
    fn new(keeper: &R, slot: Result<Option<Box<Slot<Of<R>>>>, LineFull>) -> Self {
        match slot {
            Err(LineFull) => Self::LineFull,
            Ok(None) => Self::LookAgain,
            Ok(Some(slot)) if slot.resource.is_some() => {
                Self::Lease(Lease::new(keeper.clone(), slot))
            }
            Ok(Some(slot)) => {
                Self::Vacant(Reservation { keeper: keeper.clone(), slot: Some(slot) })
            }
        }
    }
}

/// Waits in a line, unless `most` do so already.
///
/// # Cancel safety
///
/// Dropping the future gives up the place in line; what was on its way goes to the next waiter.
pub async fn wait<R>(keeper: &R, line: Line, most: usize) -> Woken<R>
where
    R: Deref<Target: Keeper> + Clone,
{
    Woken::new(keeper, waiters::wait(&**keeper, line, most).await)
}

/// The same, blocking the thread; to look again also when the deadline has passed.
pub fn wait_blocking<R>(keeper: &R, line: Line, most: usize, deadline: Option<Instant>) -> Woken<R>
where
    R: Deref<Target: Keeper> + Clone,
{
    Woken::new(keeper, waiters::wait_blocking(&**keeper, line, most, deadline))
}

/// Takes an idle slot whether or not somebody waits or the core is closed.
fn take_idle<R: Deref<Target: Keeper>>(keeper: R) -> Option<Lease<R>> {
    let core = keeper.core();
    let slot = core.unshelve_any()?;
    slot.enter_unheld(core.cell(&slot));
    Some(Lease::new(keeper, slot))
}

/// Takes a vacant slot, unless the core is closed, or a slot [has to go](Core::has_vacant).
pub fn reserve<R: Deref<Target: Keeper>>(keeper: R) -> Option<Reservation<R>> {
    let core = keeper.core();
    loop {
        if core.is_closed() {
            return None;
        }
        let slot = core.take_vacant()?;
        if core.is_reserved(&slot) || !core.limit.is_above() {
            slot.enter(core.cell(&slot), State::Connecting);
            return Some(Reservation { keeper, slot: Some(slot) });
        }
        core.push_vacant(slot);
        // After the push: a shrink that has looked for this slot meanwhile was owed it, and whoever has taken the
        // last slot out of service meanwhile has found nothing vacant.
        if core.limit.has_unclaimed() {
            core.rebalance();
            // That may have been the last one.
            keeper.vacancy();
        } else if core.limit.is_above() {
            return None;
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::core::{Core, IdleOrder, Size};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;

    /// Counts how often it is told that too few may be idle.
    struct Counter {
        core: Core<Self>,
        dipped: AtomicUsize,
    }

    impl Keeper for Counter {
        type Resource = ();

        fn core(&self) -> &Core<Self> {
            &self.core
        }

        fn vacancy(&self) {}

        fn dipped(&self) {
            self.dipped.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn who_takes_a_connection_asks_for_no_other_while_enough_are_idle_in_any_place() {
        let size = Size { floor: 1, ..Size::new(4, 2) };
        let counter = Arc::new_cyclic(|me| Counter {
            core: Core::new(me, size, IdleOrder::Recent),
            dipped: AtomicUsize::new(0),
        });
        let home = counter.core.home();
        let put = |counter: &Counter| drop(reserve(counter).expect("there is room").fill(()));
        put(&counter);
        // Threads have one home after the other.
        let elsewhere = || {
            let counter = counter.clone();
            let puts = move || {
                let is_elsewhere = counter.core.home() != home;
                if is_elsewhere {
                    put(&counter);
                }
                is_elsewhere
            };
            thread::spawn(puts).join().expect("no panic")
        };
        while !elsewhere() {}
        let take = || match try_acquire(&&*counter, Location::caller()) {
            Found::Ready(loan) => loan,
            _ => unreachable!("one is idle"),
        };
        for _ in 0..100 {
            drop(take());
        }
        assert_eq!(counter.dipped.load(Ordering::Relaxed), 0);
        let _both = (take(), take());
        assert_eq!(counter.dipped.load(Ordering::Relaxed), 1);
    }
}
