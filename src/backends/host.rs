//! What backends have in common of a host that is reached over a network.
//!
//! Not here: who looks its name up (`crate::names`), and the order in which its addresses are tried.

#[cfg(any(feature = "tcp", feature = "postgres"))]
use std::time::Duration;

/// A host and its port, or the text that has both, as [`Manager::target`](crate::Manager::target) tells them.
/// Nothing of what is no host: where a URL is not written as it should be, it may be a part of a password.
#[cfg(any(
    feature = "tcp",
    feature = "redis",
    feature = "mysql",
    feature = "pg-wired",
    feature = "sqlx"
))]
pub(super) fn told(host: &str, port: Option<u16>) -> Option<String> {
    if host.is_empty() || host.contains(|c: char| "@/?#\\".contains(c) || c.is_whitespace()) {
        return None;
    }
    Some(match port {
        None => host.to_owned(),
        Some(port) if host.contains(':') && !host.starts_with('[') => format!("[{host}]:{port}"),
        Some(port) => format!("{host}:{port}"),
    })
}

/// The time nearest to this that keepalive may have: whole seconds, of which socket2 would leave out what is
/// over, one at least, and no more than Linux takes.
#[cfg(any(feature = "tcp", feature = "postgres"))]
pub(super) fn keepalive_time(time: Duration) -> Duration {
    let nearest = time.saturating_add(Duration::from_millis(500)).as_secs();
    Duration::from_secs(nearest.clamp(1, 32_767))
}

#[cfg(all(test, not(loom), any(feature = "tcp", feature = "postgres")))]
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
