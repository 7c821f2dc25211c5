//! Rounds that take turns.
//!
//! Times from a machine that others use as well move by tens of per cent within minutes. Two
//! measurements that follow each other closely are disturbed alike, so what is compared runs in turn
//! (A B C, B A C, C A B, …) and the figure is the median of the ratios within each round.

use crate::calm::calm;

/// The samples of some contestants, round by round, and whether each is undisturbed.
#[derive(Debug)]
pub struct Rounds<M>(Vec<Vec<(M, bool)>>);

/// With fewer undisturbed samples than this, the disturbed ones count as well.
const ENOUGH: usize = 3;

impl<M> Rounds<M> {
    /// Measures each of `contestants` once per round; another one begins in each round, and every
    /// second round goes backwards, so that none always runs after the same neighbour's leftovers. A
    /// first round only warms up.
    pub fn run(rounds: usize, contestants: usize, mut measure: impl FnMut(usize) -> M) -> Self {
        Self::collect(rounds, contestants, |who| calm(|| measure(who)))
    }

    /// The same where some contestants are crowds of more threads than cores, which by their nature
    /// keep each other waiting: each measurement of theirs counts.
    pub fn with_crowds(
        rounds: usize,
        contestants: usize,
        is_crowd: impl Fn(usize) -> bool,
        mut measure: impl FnMut(usize) -> M,
    ) -> Self {
        Self::collect(rounds, contestants, |who| {
            if is_crowd(who) { (measure(who), true) } else { calm(|| measure(who)) }
        })
    }

    /// The same where other processes belong to the load, such as a server: each measurement counts.
    pub fn beside_a_server(
        rounds: usize,
        contestants: usize,
        mut measure: impl FnMut(usize) -> M,
    ) -> Self {
        Self::collect(rounds, contestants, |who| (measure(who), true))
    }

    fn collect(
        rounds: usize,
        contestants: usize,
        mut measure: impl FnMut(usize) -> (M, bool),
    ) -> Self {
        let mut samples: Vec<Vec<(M, bool)>> = (0..contestants).map(|_| Vec::new()).collect();
        for round in 0..=rounds {
            for step in 0..contestants {
                let step = if round % 2 == 0 { step } else { contestants - step };
                let who = (round + step) % contestants;
                let sample = measure(who);
                if round > 0 {
                    samples[who].push(sample);
                }
            }
        }
        Self(samples)
    }

    /// These rounds, and others of the same contestants.
    #[must_use]
    pub fn and(mut self, others: Self) -> Self {
        for (samples, others) in self.0.iter_mut().zip(others.0) {
            samples.extend(others);
        }
        self
    }

    /// The median of one contestant's figure.
    #[must_use]
    pub fn median(&self, who: usize, figure: impl Fn(&M) -> f64) -> f64 {
        median(self.0[who].iter().map(|(sample, calm)| (figure(sample), *calm)).collect())
    }

    /// The median over all rounds of one contestant's figure divided by another's.
    #[must_use]
    pub fn ratio(&self, who: usize, to: usize, figure: impl Fn(&M) -> f64) -> f64 {
        median(self.ratios(who, to, figure))
    }

    /// Within what the same ratio of endless rounds would be, in 19 cases of 20: the ranks between
    /// which a median is, whatever the distribution (from the binomial one, approximated by the normal
    /// one; so from some 20 rounds on).
    #[must_use]
    pub fn interval(&self, who: usize, to: usize, figure: impl Fn(&M) -> f64) -> (f64, f64) {
        let ratios = sorted(self.ratios(who, to, figure));
        let (middle, spread) = (ratios.len() as f64 / 2.0, 0.98 * (ratios.len() as f64).sqrt());
        let last = ratios.len() - 1;
        let low = (middle - spread).floor().max(0.0) as usize;
        let high = (middle + spread).ceil() as usize;
        (ratios[low], ratios[high.min(last)])
    }

    fn ratios(&self, who: usize, to: usize, figure: impl Fn(&M) -> f64) -> Vec<(f64, bool)> {
        let pairs = self.0[who].iter().zip(&self.0[to]);
        pairs.map(|(a, b)| (figure(&a.0) / figure(&b.0), a.1 && b.1)).collect()
    }
}

/// The median of the undisturbed values, if there are enough of them.
fn median(values: Vec<(f64, bool)>) -> f64 {
    let values = sorted(values);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 {
        values[middle]
    } else {
        f64::midpoint(values[middle - 1], values[middle])
    }
}

/// The undisturbed values in order, if there are enough of them.
fn sorted(values: Vec<(f64, bool)>) -> Vec<f64> {
    let all = values.iter().filter(|(_, calm)| *calm).count() < ENOUGH;
    let mut values: Vec<f64> =
        values.into_iter().filter(|(_, calm)| all || *calm).map(|(value, _)| value).collect();
    values.sort_by(f64::total_cmp);
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_is_taken_within_each_round() {
        // The machine gets slower with each round; the ratio stays.
        let times = |factor: f64| [1.0, 2.0, 4.0, 8.0].map(|slow| (slow * factor, true)).to_vec();
        let rounds = Rounds(vec![times(1.0), times(3.0)]);
        assert!((rounds.ratio(1, 0, |sample| *sample) - 3.0).abs() < 1e-9);
        assert!((rounds.median(0, |sample| *sample) - 3.0).abs() < 1e-9);
    }

    #[test]
    fn another_contestant_begins_in_each_round() {
        let mut order = Vec::new();
        Rounds::run(2, 3, |who| order.push(who));
        // A measurement that was disturbed is repeated at once.
        order.dedup();
        assert_eq!(order, [0, 1, 2, 1, 0, 2, 0, 1]);
    }

    #[test]
    fn rounds_that_are_put_together_count_as_one_run() {
        let times = |times: [f64; 3]| times.map(|time| (time, true)).to_vec();
        let first = Rounds(vec![times([1.0, 1.0, 1.0]), times([9.0, 9.0, 2.0])]);
        let rounds = first.and(Rounds(vec![times([1.0, 1.0, 1.0]), times([2.0, 2.0, 3.0])]));
        assert!((rounds.median(1, |sample| *sample) - 2.5).abs() < 1e-9);
        assert!((rounds.ratio(1, 0, |sample| *sample) - 2.5).abs() < 1e-9);
    }

    #[test]
    fn an_interval_has_the_median_in_it_and_shrinks_with_more_rounds() {
        let width = |rounds: usize| {
            // A sequence that is spread evenly over 0.9 to 1.1.
            let even = |round: usize| 0.9 + 0.2 * ((round as f64 * 0.618_034) % 1.0);
            let samples = (0..rounds).map(|round| (even(round), true)).collect();
            let rounds = Rounds(vec![vec![(1.0, true); rounds], samples]);
            let (low, high) = rounds.interval(1, 0, |sample| *sample);
            let median = rounds.ratio(1, 0, |sample| *sample);
            assert!(low <= median && median <= high, "{median} is not within {low} to {high}");
            high - low
        };
        // Between the ranks of 10 +- 4.4 of 20, and of 200 +- 19.6 of 400, over a range of 0.2.
        assert!((width(20) - 0.09).abs() < 0.02, "{}", width(20));
        assert!((width(400) - 0.02).abs() < 0.005, "{}", width(400));
        assert!(width(1) < f64::EPSILON);
    }

    #[test]
    fn a_crowd_is_measured_once_a_round() {
        let mut times = 0;
        Rounds::with_crowds(2, 3, |_| true, |_| times += 1);
        assert_eq!(times, 9);
    }

    #[test]
    fn disturbed_samples_count_only_if_there_are_too_few_others() {
        let calm = [1.0, 2.0, 3.0].map(|value| (value, true));
        let disturbed = [90.0, 91.0, 92.0, 93.0].map(|value| (value, false));
        assert!((median([&calm[..], &disturbed[..]].concat()) - 2.0).abs() < 1e-9);
        assert!((median([&calm[..2], &disturbed[..]].concat()) - 90.5).abs() < 1e-9);
    }
}
