//! Who of the nodes under a cap is to have how many units: rules over what they look like at a moment.
//!
//! [`step`] names one change at a time, until there is none. What is free or on its way back is *allotted*:
//! one after the other to whoever has least by then of those who need more ([`Allotment`]). A node is asked for
//! one only on behalf of another to which that leaves too few; it keeps what it was asked for if that is allotted
//! to itself. Both go by the same answer, and by what is needed now, whatever is still to come back. Whoever is
//! asked has more than the other then has, or comes after it by turns, so what he gives is not allotted to
//! himself, and no unit goes to and fro.
//!
//! Not here: the pools, and what has happened before (`limits.rs`).

use crate::core::Counts;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Who comes first: the least.
type Precedence = (bool, usize, bool, bool, u64);

/// What one node looks like at a moment.
#[derive(Clone, Default)]
pub(super) struct Look {
    pub(super) limit: usize,
    /// How many units it has, which nobody else may use.
    pub(super) units: usize,
    /// How many of its units are to come back.
    pub(super) coming: usize,
    /// How many of these do so without anybody's doing: those that no caller has, or is about to.
    pub(super) soon: usize,
    /// The others have been waited for already.
    pub(super) in_vain: bool,
    /// How many connections its callers have, or are about to.
    pub(super) kept: usize,
    /// How many are being opened, be it for nobody.
    pub(super) connecting: usize,
    /// Callers wait who would have so many opened; of one that is down, those for whom it is tried.
    pub(super) waiting: usize,
    /// For so many of them that may be done now.
    pub(super) admitted: usize,
    /// How many units it may have at the most.
    pub(super) most: usize,
    /// How many units its callers could do with.
    pub(super) need: usize,
    /// How many of its units are neither idle nor vacant, be it for nobody.
    pub(super) busy: usize,
    /// How many it has had no use for since a turn ago.
    pub(super) rested: usize,
    /// It needs one because it was passed over, and nobody waits.
    pub(super) can_wait: bool,
    /// Connecting to it has failed.
    pub(super) is_down: bool,
    /// More callers wait than count, for whom there may be something to do once it is up again.
    pub(super) is_held_back: bool,
    /// Callers wait for one who cannot be served elsewhere.
    pub(super) is_urgent: bool,
    /// It has had its last one for a while.
    pub(super) had_its_turn: bool,
    /// It has been opening its only connections for a long while.
    pub(super) is_silent: bool,
    /// It has just been given one, to see whether it is back.
    pub(super) is_tried: bool,
    /// Who has a lower one is served first.
    pub(super) turn: u64,
}

/// What a pool says of itself at a moment.
pub(super) struct Figures {
    pub(super) counts: Counts,
    pub(super) limit: usize,
    /// What its limit may be at the most.
    pub(super) most: usize,
    /// How many callers wait who would have a connection opened.
    pub(super) waiting: usize,
    /// For how many that may be done at once.
    pub(super) admitted: usize,
    /// A caller would have used it a moment ago.
    pub(super) was_passed_over: bool,
    /// Connecting to it has failed.
    pub(super) is_down: bool,
}

impl Look {
    /// What the figures say. All else is for whoever knows what was before.
    pub(super) fn new(figures: &Figures) -> Self {
        let Figures { ref counts, limit, most, waiting, admitted, was_passed_over, is_down } =
            *figures;
        let connecting = counts.connecting;
        // One that is down, as where its server is at its limit, would keep vacant what it is not tried with. With
        // one it is, beside what works there, or nobody would see that it is back.
        let all = waiting;
        let waiting = if is_down { waiting.min(connecting.max(1)) } else { waiting };
        // What is being opened is for those who wait; what is being closed is for nobody.
        let kept = counts.in_use + counts.checking + counts.resetting;
        let busy = kept + connecting.max(waiting);
        let units = limit.max(counts.in_service());
        let coming = units - limit;
        let can_wait = busy == 0 && was_passed_over;
        Self {
            limit,
            units,
            coming,
            // It closes what is idle first. What is being checked or reset takes its time, and may be kept.
            soon: coming - (kept + connecting).saturating_sub(limit),
            kept,
            connecting,
            waiting,
            admitted: waiting.min(connecting.max(admitted)),
            most,
            need: (kept + waiting).min(most).max(usize::from(can_wait)),
            busy,
            can_wait,
            is_down,
            is_held_back: waiting < all,
            ..Self::default()
        }
    }

    /// The same of a pool that is closed: it has what is still alive, and will have none.
    pub(super) fn of_a_closed_pool(counts: &Counts) -> Self {
        let units = counts.connecting + counts.alive();
        // What is out comes back when whoever has it likes, which may be never: he has been waited for
        // already.
        let coming = units - counts.in_use;
        Self { units, coming, soon: coming, ..Self::default() }
    }

    /// Whether its limit is to be higher.
    pub(super) fn starves(&self) -> bool {
        self.need > self.limit
    }

    /// Whether it is to have one only if nobody waits for that. One that is down is to be tried, or it
    /// never relieves the others.
    fn gives_way(&self) -> bool {
        self.can_wait && !self.is_down
    }

    /// In which order units are given to those who have so many: who gives way is last; of the others,
    /// who has least is first, and of those who have the same whoever is urgent, by turns. One that does not
    /// answer comes after those who may have its only unit.
    pub(super) fn precedence(&self, has: usize) -> Precedence {
        (self.gives_way(), has, !self.is_urgent, self.is_silent, self.turn)
    }

    /// Whether so many are too few for its callers. Where more are in use, these come back.
    fn lacks(&self, has: usize) -> bool {
        self.is_too_few(has, self.waiting)
    }

    /// The same, while those do not count for whom nothing may be opened yet.
    fn lacks_now(&self, has: usize) -> bool {
        self.is_too_few(has, self.admitted)
    }

    fn is_too_few(&self, has: usize, waiting: usize) -> bool {
        if self.can_wait {
            return has == 0;
        }
        (self.kept + waiting).min(self.most) > has && waiting > self.connecting.min(has)
    }

    /// How many of its units are still waited for.
    fn expected(&self) -> usize {
        if self.in_vain { self.soon } else { self.coming }
    }

    /// How many units it has that are idle, or not even open.
    fn spare(&self) -> usize {
        self.limit.saturating_sub(self.busy)
    }

    /// Whether the next one that it lets go of is one that it opens for nobody.
    pub(super) fn opens_for_nobody(&self) -> bool {
        self.spare() == 0 && self.connecting > self.waiting
    }

    /// Whether the next one that it lets go of is one that it has been opening for a long while.
    pub(super) fn gets_no_further(&self) -> bool {
        self.spare() == 0 && self.is_silent
    }

    /// Whether its callers have any.
    pub(super) fn is_in_use(&self) -> bool {
        self.kept > 0
    }

    /// Whether it has nothing yet but what it is opening.
    pub(super) fn opens(&self) -> bool {
        self.kept == 0 && self.connecting > 0
    }

    /// Whether one that will have so many may have one that this one has no use for.
    fn can_spare(&self, has: usize) -> bool {
        self.limit > has + 1 || self.rested > 0
    }
}

/// A change of one node's limit, or what makes for one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// It gets one unit: a free one, or one of its own that it was to let go of.
    Give(usize),
    /// It is to let go of one.
    Take(usize),
    /// What it is opening, with one that it was to let go of, is to be given up.
    Recall(usize),
    /// It was merely passed over, and there are not enough for every node to have one.
    Forgo(usize),
}

/// What is to be done next, where all nodes together may have so many units.
pub(super) fn step(looks: &[Look], most: usize) -> Option<Step> {
    let sum = |of: fn(&Look) -> usize| looks.iter().map(of).sum::<usize>();
    let free = most.saturating_sub(sum(|look| look.units));
    let later = Allotment::new(looks, free + sum(Look::expected));
    if let Some(keeper) = keeper(looks, &later) {
        return Some(Step::Give(keeper));
    }
    let first = Allotment::new(looks, 0).next;
    if let Some(first) = first.filter(|_| free > 0) {
        return Some(Step::Give(first));
    }
    let soon = Allotment::new(looks, sum(|look| look.soon));
    let idle = giver_of_idle(looks, &soon).map(Step::Take);
    // Last, those who can wait, and for whom none is on its way back, are told that there are not enough for
    // every node to have one.
    let has_none = |(look, has): (&Look, &usize)| look.gives_way() && *has == 0;
    let patient = || looks.iter().zip(&later.has).position(has_none).map(Step::Forgo);
    idle.or_else(|| giver(looks, &later)).or_else(patient)
}

/// Who will have how many units once so many more have been given, each to whoever was first by then of
/// those who could do with more.
struct Allotment {
    has: Vec<usize>,
    /// Who would be given another one.
    next: Option<usize>,
}

impl Allotment {
    fn new(looks: &[Look], more: usize) -> Self {
        let mut has: Vec<usize> = looks.iter().map(|look| look.limit).collect();
        let rank = |index: usize, has: usize| {
            let look = &looks[index];
            (look.need > has).then(|| Reverse((look.precedence(has), index)))
        };
        let mut next: BinaryHeap<_> =
            has.iter().enumerate().filter_map(|(index, has)| rank(index, *has)).collect();
        for _ in 0..more {
            let Some(Reverse((_, index))) = next.pop() else { break };
            has[index] += 1;
            next.extend(rank(index, has[index]));
        }
        Self { has, next: next.pop().map(|Reverse((_, index))| index) }
    }

    /// Those to whom that leaves too few, and how many each has then, in the order in which they are given more.
    fn lacking(&self, looks: &[Look], lacks: fn(&Look, usize) -> bool) -> Vec<(usize, usize)> {
        let has = self.has.iter().copied().enumerate();
        let mut lacking: Vec<_> = has.filter(|(index, has)| lacks(&looks[*index], *has)).collect();
        lacking.sort_by_key(|(index, has)| looks[*index].precedence(*has));
        // Whoever waits would get what is asked for one that gives way.
        match lacking.iter().position(|(index, _)| looks[*index].gives_way()) {
            Some(waiting) if waiting > 0 => lacking.truncate(waiting),
            _ => {}
        }
        lacking
    }
}

/// Who may keep one that he was to let go of: if it is allotted to himself. While somebody else comes first, one
/// who has been waited for in vain has still to give.
fn keeper(looks: &[Look], later: &Allotment) -> Option<usize> {
    let may_keep = |(index, look): (usize, &Look)| {
        let is_next = look.in_vain && later.next == Some(index);
        look.coming > look.soon && (later.has[index] > look.limit || is_next)
    };
    looks.iter().enumerate().position(may_keep)
}

/// Who is to let go of one that is idle, for somebody who could use it now, though others are still to
/// give some that are in use.
fn giver_of_idle(looks: &[Look], soon: &Allotment) -> Option<usize> {
    let mut lacking = soon.lacking(looks, Look::lacks_now).into_iter();
    lacking.find_map(|(poor, has)| idle(looks, &looks[poor], has))
}

/// Who is to let go of one that is in use, because somebody will have too few otherwise, and could not have one
/// that is idle once he can use it. First, what is opened for nobody or does not get any further.
fn giver(looks: &[Look], later: &Allotment) -> Option<Step> {
    let lacking = later.lacking(looks, Look::lacks).into_iter();
    let lacking = lacking.map(|(poor, has)| (&looks[poor], has));
    let lacking: Vec<_> = lacking
        .filter(|(poor, has)| !poor.gives_way() && idle(looks, poor, *has).is_none())
        .collect();
    let find = |from: fn(&[Look], &Look, usize) -> Option<usize>| {
        lacking.iter().find_map(|(poor, has)| from(looks, poor, *has))
    };
    let overdue = overdue(looks).filter(|_| !lacking.is_empty()).map(Step::Recall);
    let in_use = |looks: &[Look], poor: &Look, has| {
        richest(looks, poor, has).or_else(|| last(looks, poor, has))
    };
    overdue.or_else(|| find(unwanted).or_else(|| find(in_use)).map(Step::Take))
}

/// Who has something to give to this one. Nobody gives the last one to a node that can wait, unless to
/// see whether that is back, and without a use for it.
fn able<'l>(looks: &'l [Look], poor: &Look) -> impl Iterator<Item = (usize, &'l Look)> {
    let (can_wait, is_down) = (poor.can_wait, poor.is_down);
    let may = move |look: &Look| match look.limit {
        0 => false,
        1 => !can_wait || is_down && look.rested > 0,
        _ => true,
    };
    looks.iter().enumerate().filter(move |(_, look)| may(look))
}

/// The one that has most that is idle, first of those that have had no use for it for a while.
fn idle(looks: &[Look], poor: &Look, has: usize) -> Option<usize> {
    let by_turns = |look: &Look| poor.is_urgent && has == 0 && look.limit == 1 && look.had_its_turn;
    let may = |look: &Look| look.spare() > 0 && (look.can_spare(has) || by_turns(look));
    let idle = able(looks, poor).filter(|(_, look)| may(look));
    idle.max_by_key(|(_, look)| (look.rested > 0, look.spare())).map(|(index, _)| index)
}

/// One that has been asked for one, and does not get any further with what it opens with that.
fn overdue(looks: &[Look]) -> Option<usize> {
    looks.iter().position(|look| look.in_vain && look.is_silent)
}

/// One that opens a connection for nobody.
fn unwanted(looks: &[Look], poor: &Look, has: usize) -> Option<usize> {
    let may = |look: &Look| look.spare() == 0 && look.limit > look.need && look.can_spare(has);
    let is_free = |look: &Look| !look.in_vain && !look.is_tried;
    let mut unwanted = able(looks, poor).filter(|(_, look)| may(look) && is_free(look));
    unwanted.find(|_| !poor.can_wait).map(|(index, _)| index)
}

/// The one that has most, all of it in use, if that is more than the other will have then.
fn richest(looks: &[Look], poor: &Look, has: usize) -> Option<usize> {
    let may = |look: &Look| look.spare() == 0 && look.limit > has + 1 && !look.in_vain;
    let richest = able(looks, poor).filter(|(_, look)| may(look));
    richest.max_by_key(|(_, look)| look.limit).map(|(index, _)| index)
}

/// The one that has had its only unit for longest, if the other has none, nor one in use that is to go, and
/// callers wait there who are served by nobody else.
fn last(looks: &[Look], poor: &Look, has: usize) -> Option<usize> {
    if has > 0 || poor.coming > poor.soon || poor.can_wait {
        return None;
    }
    let may = |look: &Look| {
        let is_due = look.had_its_turn && (poor.is_urgent || look.is_silent);
        look.limit == 1 && is_due && !look.in_vain
    };
    let last = able(looks, poor).filter(|(_, look)| may(look)).min_by_key(|(_, look)| look.turn);
    last.map(|(index, _)| index)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use arbitrary::Unstructured;
    use arbtest::arbtest;
    use std::cell::Cell;

    /// A node as the rules see it, and what becomes of it when they are followed.
    #[derive(Clone, Debug)]
    struct Node {
        counts: Counts,
        limit: usize,
        most: usize,
        waiting: usize,
        admitted: usize,
        was_passed_over: bool,
        was_asked_long_ago: bool,
        rested: usize,
        is_down: bool,
        is_urgent: bool,
        had_its_turn: bool,
        is_silent: bool,
        is_tried: bool,
        turn: u64,
    }

    impl Node {
        fn any(input: &mut Unstructured<'_>) -> arbitrary::Result<Self> {
            let mut few = |most| input.int_in_range(0..=most);
            let counts = Counts {
                in_use: few(4)?,
                checking: few(3)?.saturating_sub(2),
                resetting: few(3)?.saturating_sub(2),
                idle: few(4)?.saturating_sub(2),
                closing: few(3)?.saturating_sub(2),
                connecting: few(4)?.saturating_sub(2),
                ..Counts::default()
            };
            let alive_or_soon = counts.connecting + counts.alive();
            let limit = few(alive_or_soon + 1)?;
            let waiting = few(4)?.saturating_sub(1);
            let (admitted, turn) = (few(3)? + 1, few(6)? as u64);
            let (most, rested) = (limit.max(alive_or_soon) + few(2)? + 1, few(2)?);
            let mut node = Self {
                counts,
                limit,
                most,
                waiting,
                admitted,
                rested,
                was_passed_over: limit == 0 && input.arbitrary()?,
                was_asked_long_ago: input.arbitrary()?,
                is_down: input.arbitrary()?,
                is_urgent: waiting > 0 && input.arbitrary()?,
                had_its_turn: input.arbitrary()?,
                is_silent: input.arbitrary()?,
                is_tried: input.arbitrary()?,
                turn,
            };
            node.resize(limit);
            node.rested = node.look().rested;
            Ok(node)
        }

        fn resize(&mut self, limit: usize) {
            self.limit = limit;
            let others = self.counts.connecting + self.counts.alive();
            self.counts.vacant = limit.saturating_sub(others);
        }

        fn look(&self) -> Look {
            let &Self { counts, limit, most, waiting, admitted, was_passed_over, is_down, .. } =
                self;
            let figures =
                Figures { counts, limit, most, waiting, admitted, was_passed_over, is_down };
            let look = Look::new(&figures);
            let is_silent = self.is_silent && look.opens();
            Look {
                in_vain: look.coming > look.soon && self.was_asked_long_ago,
                rested: self.rested.min(limit.saturating_sub(look.need)),
                is_urgent: self.is_urgent && !is_silent,
                had_its_turn: self.had_its_turn,
                is_silent,
                is_tried: self.is_tried,
                turn: self.turn,
                ..look
            }
        }

        /// What is decided is carried out: what is idle is closed, as far as it has to go.
        fn carry_out(&mut self) {
            let others = self.counts.connecting + self.counts.alive() - self.counts.closing;
            let closed = others.saturating_sub(self.limit).min(self.counts.idle);
            self.counts.idle -= closed;
            self.counts.closing += closed;
        }
    }

    /// Follows the rules until there is nothing to do, and answers how often there was.
    fn follow(nodes: &mut [Node], most: usize) -> usize {
        let (before, mut steps) = (nodes.to_vec(), Vec::new());
        let mut moved = vec![0_i32; nodes.len()];
        loop {
            let looks: Vec<Look> = nodes.iter().map(Node::look).collect();
            let given: usize = looks.iter().map(|look| look.units).sum();
            assert!(given <= most, "{given} of {most} after {steps:?} from {before:#?}");
            let Some(next) = step(&looks, most) else {
                let has_free = given < most && looks.iter().any(Look::starves);
                assert!(!has_free, "one is free after {steps:?} from {before:#?}");
                return steps.len();
            };
            steps.push(next);
            let turn = 1 + nodes.iter().map(|node| node.turn).max().unwrap_or_default();
            let (Step::Give(index) | Step::Take(index) | Step::Recall(index) | Step::Forgo(index)) =
                next;
            let node = &mut nodes[index];
            if matches!(next, Step::Take(_) | Step::Recall(_)) {
                node.was_asked_long_ago = false;
                if looks[index].gets_no_further() {
                    (node.is_silent, node.is_urgent) = (false, false);
                }
            }
            let way = match next {
                Step::Give(_) => {
                    let tried = node.counts.connecting.max(1);
                    let is_of_use = !node.is_down || node.limit < looks[index].kept + tried;
                    assert!(is_of_use, "one that is down has too many: {steps:?} from {before:#?}");
                    (node.turn, node.had_its_turn, node.was_passed_over) = (turn, false, false);
                    1
                }
                Step::Take(_) => {
                    if node.limit == 1 {
                        node.turn = turn;
                    }
                    -1
                }
                Step::Recall(_) => 0,
                Step::Forgo(_) => {
                    node.was_passed_over = false;
                    0
                }
            };
            // Either way, but not both: so it comes to an end.
            assert!(moved[index] * way >= 0, "to and fro: {steps:?} from {before:#?}");
            moved[index] += way;
            let limit = node.limit.checked_add_signed(way as isize);
            node.resize(limit.expect("it had one"));
        }
    }

    #[test]
    fn whatever_the_nodes_look_like_no_unit_goes_to_and_fro() {
        let (cases, steps) = (Cell::new(0), Cell::new(0));
        let test = arbtest(|input| {
            let mut nodes = Vec::new();
            for _ in 0..input.int_in_range(2..=4)? {
                nodes.push(Node::any(input)?);
            }
            let given: usize = nodes.iter().map(|node| node.look().units).sum();
            let most = (given + input.int_in_range(0..=2_usize)?.saturating_sub(1)).max(1);
            // What is carried out makes for more to do, but not without end.
            for _ in 0..100 {
                let done = follow(&mut nodes, most);
                if done == 0 {
                    cases.set(cases.get() + 1);
                    return Ok(());
                }
                steps.set(steps.get() + done);
                nodes.iter_mut().for_each(Node::carry_out);
            }
            panic!("it does not come to an end: {nodes:#?}");
        });
        let test = test.size_min(64).size_max(256);
        let chosen = std::env::var_os("ARBTEST_BUDGET_MS").is_some();
        if chosen { test } else { test.budget_ms(1_000) }.run();
        eprintln!("{} steps in {} cases", steps.get(), cases.get());
        assert!(steps.get() > 0);
    }
}
