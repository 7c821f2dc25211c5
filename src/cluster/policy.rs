//! Which node an acquire goes to that may go to several.
//!
//! A policy says two things: which nodes are *allowed*, and in which order they are preferred. The
//! first look goes to one node alone ([`Policy::pick`]), which takes no allocation; only if nothing
//! is idle there are all of them put in order.
//!
//! Not here: how it waits at several nodes at once (`race.rs`).

use super::node::{Node, NodeView};
use super::table::Table;
use super::{Key, Role, Shared};
use crate::manager::Manager;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A caller's own policy: how much a node is preferred, the lowest number first; `None` if it must
/// not be used.
pub type Rank<'f, K> = dyn Fn(&NodeView<'_, K>) -> Option<f64> + Sync + 'f;

/// Which node an acquire goes to that may go to several.
///
/// Nodes that connecting fails to come last as long as there are others that may be used: nothing is opened
/// there, but what they have may work, as where a server is at its limit. What is idle there is taken once it has
/// been checked, whatever the [`CheckPolicy`](crate::CheckPolicy), if none of the others has an idle one, or room
/// for one. A node whose connections are all in use has not failed: it stays allowed, and an acquire waits for
/// it and for all others that are allowed at the same time, also for what comes back at one that connecting
/// fails to.
#[non_exhaustive]
pub enum Policy<'f, K> {
    /// All nodes, by turns and by their weights.
    RoundRobin,
    /// All nodes: of two that are drawn by weight, the one less in use: with fewer connections in use and
    /// callers in line, both together, for its weight.
    ///
    /// Costs one pass over all slots of both. (M. Mitzenmacher, The Power of Two Choices in
    /// Randomized Load Balancing, 2001.)
    LeastInUse,
    /// The primaries, by turns.
    Primary,
    /// The replicas, by turns and by their weights; never a primary.
    Replica,
    /// The replicas, by turns and by their weights; the primaries while no replica is up. A replica from
    /// which an acquire has waited for [`try_next_after`](super::ClusterBuilder::try_next_after), while a
    /// connect, a check or a reset there had no answer, does not count as up to that acquire; one that is
    /// merely busy does.
    ReplicasThenPrimary,
    /// All nodes, the nearest first: the one whose checks take the shortest time.
    Nearest,
    /// A function of the caller's own. It is called for every node at each acquire.
    Rank(&'f Rank<'f, K>),
}

impl<K> Clone for Policy<'_, K> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<K> Copy for Policy<'_, K> {}

impl<K> Policy<'_, K> {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::RoundRobin => "any node, by turns",
            Self::LeastInUse => "the node least in use",
            Self::Primary => "the primary",
            Self::Replica => "a replica",
            Self::ReplicasThenPrimary => "a replica, or else the primary",
            Self::Nearest => "the nearest node",
            Self::Rank(_) => "the caller's own choice",
        }
    }

    /// What is said where it allows none of the nodes that there are.
    pub(super) fn no_match(&self) -> Option<&'static str> {
        match self {
            Self::RoundRobin | Self::LeastInUse | Self::Nearest => None,
            Self::Primary => Some("no node is a primary"),
            Self::Replica => Some("no node is a replica"),
            Self::ReplicasThenPrimary => Some("no node is a replica or a primary"),
            Self::Rank(_) => Some("it allows no node"),
        }
    }
}

impl<K> fmt::Debug for Policy<'_, K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Whose turn it is.
pub(super) struct Turns(AtomicU64);

impl Turns {
    pub(super) fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// The next point of a sequence that is spread evenly over all 2^64 numbers, however many are
    /// taken of it (multiples of the golden ratio; Knuth, The Art of Computer Programming, vol. 3,
    /// 6.4). So loads follow the weights more closely than random draws would.
    fn next(&self) -> u64 {
        const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
        self.0.fetch_add(GOLDEN, Ordering::Relaxed)
    }
}

/// What a choice is made from.
pub(super) struct Choice<'t, K: Key, M: Manager> {
    pub(super) cluster: &'t Arc<Shared<K, M>>,
    pub(super) table: &'t Table<K, M>,
    /// The nodes that have not answered for too long while this acquire has waited for them.
    pub(super) late: Vec<Arc<Node<K, M>>>,
}

/// How often a node is drawn before all are looked at.
const DRAWS: usize = 16;

/// A number from 0.0 to 1.0 that is as even as the turn is, and has nothing to do with it.
fn lot(turn: u64) -> f64 {
    turn.rotate_left(32).wrapping_mul(0xd6e8_feb8_6659_fd93) as f64 / 2_f64.powi(64)
}

impl<K: Key, M: Manager> Choice<'_, K, M> {
    /// The place of the node to look at first; `None` if there is none that may be used and is up.
    pub(super) fn pick(&self, policy: Policy<'_, K>) -> Option<usize> {
        match policy {
            Policy::RoundRobin => self.draw(|_| true),
            Policy::LeastInUse => {
                let (one, other) = (self.draw(|_| true)?, self.draw(|_| true)?);
                Some(if self.in_use(other) < self.in_use(one) { other } else { one })
            }
            Policy::Primary => self.draw(|node| node.role() == Role::Primary),
            Policy::Replica => self.draw(|node| node.role() == Role::Replica),
            Policy::ReplicasThenPrimary => self
                .draw(|node| node.role() == Role::Replica)
                .or_else(|| self.draw(|node| node.role() == Role::Primary)),
            Policy::Nearest => self.best(policy),
            Policy::Rank(_) => {
                let best = self.best(policy);
                // The rank may go by roles, and have put a node behind for want of one.
                for (place, node) in self.table.nodes().iter().enumerate() {
                    if best != Some(place) && node.is_up() {
                        node.get_to_know(self.cluster);
                    }
                }
                best
            }
        }
    }

    /// The place of the node with the lowest rank, of those that are up.
    fn best(&self, policy: Policy<'_, K>) -> Option<usize> {
        let nodes = self.table.nodes().iter().enumerate().filter(|(_, node)| self.is_up(node));
        let ranks = nodes.filter_map(|(place, node)| Some((self.rank(policy, node)?, place)));
        ranks.min_by(|one, other| one.0.total_cmp(&other.0)).map(|(_, place)| place)
    }

    /// Whether a node is up. One that is not is passed over, and tried again now and then.
    fn is_up(&self, node: &Arc<Node<K, M>>) -> bool {
        let is_up = node.is_up();
        if !is_up {
            node.try_again(self.cluster);
        }
        is_up
    }

    /// The places of the nodes that may be used: those that are up first, and among these `picked`,
    /// if there is one.
    pub(super) fn order(&self, policy: Policy<'_, K>, picked: Option<usize>) -> Vec<usize> {
        let nodes = self.table.nodes();
        let first = picked.unwrap_or(0);
        let ranks = nodes.iter().enumerate().filter_map(|(place, node)| {
            let rank = match policy {
                // By turns: those after the one whose turn it is.
                Policy::RoundRobin
                | Policy::Primary
                | Policy::Replica
                | Policy::ReplicasThenPrimary => {
                    let after = (place + nodes.len() - first) % nodes.len();
                    let spared = match policy {
                        Policy::ReplicasThenPrimary if node.role() == Role::Primary => nodes.len(),
                        _ => 0,
                    };
                    self.allows(policy, node).then_some((after + spared) as f64)?
                }
                Policy::LeastInUse => self.in_use(place),
                Policy::Nearest | Policy::Rank(_) => self.rank(policy, node)?,
            };
            Some((!node.is_up(), picked != Some(place), rank, place))
        });
        let mut ranks: Vec<_> = ranks.collect();
        ranks.sort_by(|one, other| {
            (one.0, one.1).cmp(&(other.0, other.1)).then(one.2.total_cmp(&other.2))
        });
        ranks.into_iter().map(|(.., place)| place).collect()
    }

    /// Whether this node may be used.
    pub(super) fn allows(&self, policy: Policy<'_, K>, node: &Node<K, M>) -> bool {
        match policy {
            Policy::RoundRobin | Policy::LeastInUse | Policy::Nearest => true,
            Policy::Primary => node.role() == Role::Primary,
            Policy::Replica => node.role() == Role::Replica,
            Policy::ReplicasThenPrimary => match node.role() {
                Role::Replica => true,
                Role::Primary => {
                    let is_late =
                        |node: &Node<K, M>| self.late.iter().any(|late| late.pool.is(&node.pool));
                    let serves = |node: &Arc<Node<K, M>>| {
                        node.role() == Role::Replica && node.is_up() && !is_late(node)
                    };
                    !self.table.nodes().iter().any(serves)
                }
                Role::Unknown => false,
            },
            Policy::Rank(_) => self.rank(policy, node).is_some(),
        }
    }

    fn rank(&self, policy: Policy<'_, K>, node: &Node<K, M>) -> Option<f64> {
        let counts = || node.pool.counts();
        let view = NodeView { state: &node.state, options: &node.options, counts: &counts };
        match policy {
            Policy::Rank(rank) => rank(&view).filter(|rank| !rank.is_nan()),
            // One that nobody has been to may be the nearest.
            _ => Some(view.latency().unwrap_or_default().as_secs_f64()),
        }
    }

    /// How much of what it can take a node has taken on.
    fn in_use(&self, place: usize) -> f64 {
        let node = &self.table.nodes()[place];
        let counts = node.pool.counts();
        (counts.in_use + counts.waiters) as f64 / f64::from(node.options.weight)
    }

    /// Draws a node by weight, of those that are up and fit.
    fn draw(&self, fits: impl Fn(&Node<K, M>) -> bool) -> Option<usize> {
        let nodes = self.table.nodes();
        if nodes.is_empty() {
            return None;
        }
        let fits = |node: &Node<K, M>| node.is_up() && fits(node);
        let ramp = |node: &Node<K, M>| node.ramp(self.cluster.settings.slow_start);
        for _ in 0..DRAWS {
            let turn = self.cluster.turns.next();
            let place = self.table.at(turn);
            let node = &nodes[place];
            if fits(node) && lot(turn) < ramp(node) {
                return Some(place);
            }
            if self.is_up(node) {
                node.get_to_know(self.cluster);
            }
        }
        // Those that fit are few, or have little weight: one draw among them alone.
        let fitting = || {
            let fitting = nodes.iter().enumerate().filter(|(_, node)| fits(node));
            fitting.map(|(place, node)| (place, f64::from(node.options.weight) * ramp(node)))
        };
        let mut part =
            lot(self.cluster.turns.next()) * fitting().map(|(_, share)| share).sum::<f64>();
        let mut drawn = None;
        for (place, share) in fitting() {
            drawn = Some(place);
            part -= share;
            if part < 0.0 {
                break;
            }
        }
        drawn
    }

    /// The places of all nodes, by how much they are those of a session: rendezvous hashing with
    /// weights. When a node goes, only its own sessions move; when one comes, only those that move to
    /// it. (D. Thaler, C. Ravishankar, A Name-Based Mapping Scheme for Rendezvous, 1996; weights: J.
    /// Resch, New Hashing Algorithms for Data Storage, 2015.)
    pub(super) fn of_session(&self, session: &[u8]) -> Vec<usize> {
        let score = |node: &Node<K, M>| {
            let hash = xxhash_rust::xxh3::xxh3_64_with_seed(session, node.seed);
            // Evenly within 0.0 and 1.0, without the two.
            let point = ((hash >> 11) as f64 + 0.5) / 2_f64.powi(53);
            -f64::from(node.options.weight) / point.ln()
        };
        let nodes = self.table.nodes().iter().enumerate();
        let mut scores: Vec<_> =
            nodes.map(|(place, node)| (!self.is_up(node), score(node), place)).collect();
        scores.sort_by(|one, other| one.0.cmp(&other.0).then(other.1.total_cmp(&one.1)));
        scores.into_iter().map(|(.., place)| place).collect()
    }
}
