//! What backends have in common of a host that is reached over a network.
//!
//! Not here: who looks its name up (`crate::names`), and the order in which its addresses are tried.

use std::time::Duration;

/// The time nearest to this that keepalive may have: whole seconds, of which socket2 would leave out what is
/// over, one at least, and no more than Linux takes.
pub(super) fn keepalive_time(time: Duration) -> Duration {
    let nearest = time.saturating_add(Duration::from_millis(500)).as_secs();
    Duration::from_secs(nearest.clamp(1, 32_767))
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_time_of_keepalives_is_the_nearest_whole_second_that_the_system_takes() {
        for (asked, had) in [
            (Duration::ZERO, 1),
            (Duration::from_millis(1_499), 1),
            (Duration::from_millis(1_500), 2),
            (Duration::from_millis(1_999), 2),
            (Duration::from_secs(60), 60),
            (Duration::from_millis(32_766_900), 32_767),
            (Duration::from_millis(32_767_900), 32_767),
            (Duration::MAX, 32_767),
        ] {
            assert_eq!(keepalive_time(asked), Duration::from_secs(had), "{asked:?}");
        }
    }
}
