//! How times are distributed, counted without a lock and in fixed memory.
//!
//! A time falls into one of 544 buckets: sixteen to each doubling, from 1 µs to 2 h. So a quantile is
//! at most 3.2 % off from there on; below, to 64 ns. Recording is one increment and one addition.
//!
//! Not here: which times are recorded.

use crate::pool::nanos;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Buckets to each doubling: 16.
const STEPS_BITS: u32 = 4;
const STEPS: u64 = 1 << STEPS_BITS;
/// Times are counted in units of 64 ns.
const UNIT_BITS: u32 = 6;
/// From here on everything is the same: 2^43 ns, some 2 h 26 min.
const MOST_BITS: u32 = 43;
const BUCKETS: usize = ((MOST_BITS - UNIT_BITS - STEPS_BITS + 1) * STEPS as u32) as usize;

/// The bucket of a time in nanoseconds.
fn bucket(nanos: u64) -> usize {
    let units = nanos.min((1 << MOST_BITS) - 1) >> UNIT_BITS;
    if units < STEPS {
        return units as usize;
    }
    let doublings = units.ilog2() - STEPS_BITS;
    ((u64::from(doublings) << STEPS_BITS) + (units >> doublings)) as usize
}

/// The shortest time of a bucket, in nanoseconds: for the number of buckets, the end of the last.
fn lower_edge(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    let doublings = (bucket >> STEPS_BITS).saturating_sub(1);
    (bucket - (doublings << STEPS_BITS)) << doublings << UNIT_BITS
}

/// Counts times.
pub(crate) struct Recorder {
    buckets: Box<[AtomicU64]>,
    /// In nanoseconds. Wraps at 584 years, which many that wait or are in use at once reach together
    /// sooner than that.
    sum: AtomicU64,
}

impl Recorder {
    pub(crate) fn new() -> Self {
        Self { buckets: (0..BUCKETS).map(|_| AtomicU64::new(0)).collect(), sum: AtomicU64::new(0) }
    }

    pub(crate) fn record(&self, nanos: u64) {
        self.buckets[bucket(nanos)].fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add(nanos, Ordering::Relaxed);
    }

    /// What has been counted so far. Times that are recorded meanwhile are in it or not, each with
    /// its count and its part of the sum for itself.
    pub(crate) fn snapshot(&self) -> Histogram {
        Histogram {
            counts: self.buckets.iter().map(|count| count.load(Ordering::Relaxed)).collect(),
            sum: self.sum.load(Ordering::Relaxed),
        }
    }
}

/// How times are distributed.
///
/// A quantile is at most 3.2 % off from 1 µs to 2 h, and 64 ns below; longer times count as 2 h. Two of
/// a pool, taken one after the other, give what was between them: see [`since`](Self::since).
///
/// # Examples
///
/// ```
/// # use millpond::{Pool, from_fn};
/// # use std::{convert::Infallible, time::Duration};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let manager = from_fn(|| async { Ok::<_, Infallible>(String::from("hello")) });
/// let pool = Pool::builder(manager).min_idle(1).build().await?;
/// for _ in 0..3 {
///     pool.acquire().await?;
/// }
/// let waits = pool.metrics().acquire_wait;
/// assert_eq!(waits.count(), 3);
/// assert_eq!(waits.quantile(0.99), Some(Duration::ZERO)); // nobody had to wait
/// # Ok(()) }
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Histogram {
    counts: Box<[u64]>,
    sum: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: vec![0; BUCKETS].into(), sum: 0 }
    }
}

impl Histogram {
    /// Counts so many times of zero.
    pub(crate) fn add_zeros(&mut self, count: u64) {
        self.counts[0] += count;
    }

    /// Counts no fewer times of zero than ever before, which `most` remembers.
    pub(crate) fn keep_zeros(&mut self, most: &AtomicU64) {
        let zeros = self.counts[0];
        self.counts[0] = zeros.max(most.fetch_max(zeros, Ordering::Relaxed));
    }

    /// How many times there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// All of them together. Begins anew at 584 years: of a thousand connections that are always in
    /// use, after seven months. [`since`](Self::since) is right across that; the
    /// [mean](Self::mean) of all times is not any more.
    #[must_use]
    pub fn sum(&self) -> Duration {
        Duration::from_nanos(self.sum)
    }

    /// Their mean, if there are any.
    #[must_use]
    pub fn mean(&self) -> Option<Duration> {
        self.sum.checked_div(self.count()).map(Duration::from_nanos)
    }

    /// The time that this part of all of them, from 0.0 to 1.0, do not exceed; `None` if there are
    /// none. What is outside of the range counts as its nearer end.
    #[must_use]
    pub fn quantile(&self, part: f64) -> Option<Duration> {
        let count = self.count();
        // Not a number: the first of them.
        let rank = (count as f64 * part.clamp(0.0, 1.0)).ceil().max(1.0) as u64;
        let mut seen = 0;
        let found = self.counts.iter().position(|count| {
            seen += count;
            seen >= rank
        });
        found.map(middle)
    }

    /// The longest, if there are any.
    #[must_use]
    pub fn max(&self) -> Option<Duration> {
        self.counts.iter().rposition(|count| *count > 0).map(middle)
    }

    /// How many there are that do not exceed `limit`, to the bucket: some that are up to 6.3 % shorter
    /// may be missing.
    #[must_use]
    pub fn count_within(&self, limit: Duration) -> u64 {
        let limit = nanos(limit);
        let within = if limit >= lower_edge(BUCKETS) { BUCKETS } else { bucket(limit + 1) };
        // A time of zero is within every limit.
        self.counts[..within.max(1)].iter().sum()
    }

    /// Adds the times of another one, such as of another pool.
    pub fn merge(&mut self, other: &Self) {
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count += more;
        }
        self.sum = self.sum.wrapping_add(other.sum);
    }

    /// The times that have come since `earlier`, an older one of the same pool.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let counts = self.counts.iter().zip(&earlier.counts);
        Self {
            counts: counts.map(|(now, then)| now.saturating_sub(*then)).collect(),
            sum: self.sum.wrapping_sub(earlier.sum),
        }
    }

    /// The times that there are, shortest first, and how often; each stands for its bucket.
    pub fn iter(&self) -> impl Iterator<Item = (Duration, u64)> + '_ {
        let counts = self.counts.iter().enumerate();
        counts.filter(|(_, count)| **count > 0).map(|(bucket, count)| (middle(bucket), *count))
    }
}

/// The time that a bucket stands for.
fn middle(bucket: usize) -> Duration {
    // Zero is a time that many have, and is told as it is.
    let nanos =
        if bucket == 0 { 0 } else { u64::midpoint(lower_edge(bucket), lower_edge(bucket + 1)) };
    Duration::from_nanos(nanos)
}

impl fmt::Debug for Histogram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut histogram = f.debug_struct("Histogram");
        histogram.field("count", &self.count());
        for (name, part) in [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999)] {
            if let Some(time) = self.quantile(part) {
                histogram.field(name, &time);
            }
        }
        histogram.finish_non_exhaustive()
    }
}

/// One of these times, in nanoseconds.
#[cfg(test)]
pub(crate) fn of(times: &[u64]) -> Histogram {
    let recorder = Recorder::new();
    times.iter().for_each(|time| recorder.record(*time));
    recorder.snapshot()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MICROSECOND: u64 = 1_000;
    const HOUR: u64 = 3_600_000_000_000;

    #[test]
    fn buckets_follow_each_other_without_a_gap() {
        assert_eq!(bucket(0), 0);
        for number in 0..BUCKETS {
            assert_eq!(bucket(lower_edge(number)), number);
            assert_eq!(bucket(lower_edge(number + 1) - 1), number);
        }
        assert_eq!(lower_edge(BUCKETS), 1 << MOST_BITS);
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn a_quantile_is_within_five_per_cent_from_a_microsecond_to_an_hour() {
        let mut time = MICROSECOND;
        while time <= HOUR {
            for exact in [time, time + time / 33] {
                let told = of(&[exact]).quantile(0.5).expect("there is one").as_nanos() as f64;
                let error = (told - exact as f64).abs() / exact as f64;
                assert!(error <= 0.032, "{exact} is told as {told}");
            }
            time += time / 100 + 1;
        }
    }

    #[test]
    fn quantiles_are_ranks() {
        let times: Vec<u64> = (1..=1000).map(|number| number * 10 * MICROSECOND).collect();
        let histogram = of(&times);
        for (part, exact) in [(0.0, 10), (0.5, 5_000), (0.99, 9_900), (0.999, 9_990), (1.0, 10_000)]
        {
            let told = histogram.quantile(part).expect("there are some").as_nanos() as f64 / 1e3;
            assert!((told / f64::from(exact) - 1.0).abs() < 0.032, "{part}: {told} for {exact}");
        }
        assert_eq!(histogram.quantile(-1.0), histogram.quantile(0.0));
        assert_eq!(histogram.quantile(2.0), histogram.max());
        assert_eq!(histogram.quantile(f64::NAN), histogram.quantile(0.0));
        assert_eq!(histogram.count(), 1000);
        assert_eq!(histogram.sum(), Duration::from_micros(5_005_000));
        assert_eq!(histogram.mean(), Some(Duration::from_micros(5_005)));
    }

    #[test]
    fn nothing_has_no_quantile_and_no_mean() {
        let nothing = Histogram::default();
        assert_eq!((nothing.count(), nothing.mean(), nothing.max()), (0, None, None));
        assert_eq!((nothing.quantile(0.5), nothing.iter().next()), (None, None));
        assert_eq!(nothing.count_within(Duration::MAX), 0);
    }

    #[test]
    fn what_came_between_two_is_the_difference_and_both_together_the_sum() {
        let recorder = Recorder::new();
        recorder.record(5 * MICROSECOND);
        let earlier = recorder.snapshot();
        recorder.record(7 * MICROSECOND);
        let later = recorder.snapshot();
        assert_eq!(later.since(&earlier), of(&[7 * MICROSECOND]));
        assert_eq!(later.since(&later), Histogram::default());
        let mut merged = earlier.clone();
        merged.merge(&of(&[7 * MICROSECOND]));
        assert_eq!(merged, later);
    }

    #[test]
    fn zeros_that_were_told_of_are_not_taken_back() {
        let most = AtomicU64::new(0);
        let told = |zeros| {
            let mut histogram = of(&[5 * MICROSECOND]);
            histogram.add_zeros(zeros);
            histogram.keep_zeros(&most);
            histogram.count() - 1
        };
        assert_eq!([5, 3, 5, 8].map(told), [5, 5, 5, 8]);
    }

    #[test]
    fn a_limit_counts_what_is_surely_within_it() {
        let histogram = of(&[0, 100 * MICROSECOND, 101 * MICROSECOND, 300 * MICROSECOND, u64::MAX]);
        let within = |micros| histogram.count_within(Duration::from_micros(micros));
        assert_eq!((within(0), within(50), within(110), within(250)), (1, 1, 3, 3));
        assert_eq!((within(320), histogram.count_within(Duration::MAX)), (4, 5));
        // A limit that is an edge counts all that is below it.
        let edge = Duration::from_nanos((16 << 10) - 1);
        assert_eq!(of(&[(16 << 10) - 1, 16 << 10]).count_within(edge), 1);
    }

    #[test]
    fn threads_that_record_at_once_lose_nothing() {
        let recorder = Recorder::new();
        std::thread::scope(|scope| {
            for thread in 0..4_u64 {
                let recorder = &recorder;
                scope.spawn(move || {
                    for time in 0..10_000 {
                        recorder.record(time * (thread + 1));
                    }
                });
            }
        });
        let histogram = recorder.snapshot();
        assert_eq!(histogram.count(), 40_000);
        assert_eq!(histogram.sum(), Duration::from_nanos(10 * 9_999 * 10_000 / 2));
    }
}
