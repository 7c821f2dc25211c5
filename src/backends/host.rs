//! What backends have in common of a host that is reached over a network.
//!
//! Not here: who looks its name up (`crate::names`), and the order in which its addresses are tried.

use std::time::Duration;

/// The time nearest to this that keepalive may have: Linux refuses a longer one, and less than a second
/// cannot be said.
pub(super) fn keepalive_time(time: Duration) -> Duration {
    time.clamp(Duration::from_secs(1), Duration::from_secs(32_767))
}
