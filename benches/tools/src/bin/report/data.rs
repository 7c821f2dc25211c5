//! The data file: what was measured, with the units in the names of the fields.
//!
//! Figures have three significant digits when they are written, so that a picture can say just what
//! the file says. Not here: when it was measured, and on what, but for the number of cores.

use serde::de::{Deserializer, Error as _, Unexpected, Visitor};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::Path;

/// All of it.
#[derive(Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Data {
    /// How many threads of the machine run at the same time.
    pub cores: usize,
    /// Of so many rounds each time is the median.
    pub rounds: usize,
    /// So many measurements were made, and so many of them stayed disturbed by other processes.
    pub measurements: usize,
    pub disturbed_measurements: usize,
    pub hit: Hits,
    pub threads: Threads,
    pub waiting: Waiting,
    pub allocations: Allocations,
}

/// What a pool is in a comparison.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    BareQueue,
    Millpond,
    Peer,
}

/// One task, one pool, nobody else.
#[derive(Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Hits {
    pub connections: usize,
    #[serde(deserialize_with = "some")]
    pub pools: Vec<Hit>,
}

#[derive(Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Hit {
    pub name: String,
    pub side: Side,
    #[serde(deserialize_with = "positive")]
    pub acquire_and_release_ns: f64,
    #[serde(deserialize_with = "positive")]
    pub times_bare_queue: f64,
}

/// Several threads on one pool.
#[derive(Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Threads {
    pub connections: usize,
    #[serde(deserialize_with = "some")]
    pub pools: Vec<Scaling>,
}

#[derive(Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Scaling {
    pub name: String,
    pub side: Side,
    #[serde(deserialize_with = "some")]
    pub points: Vec<Throughput>,
}

#[derive(Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Throughput {
    #[serde(deserialize_with = "at_least_one")]
    pub threads: usize,
    #[serde(deserialize_with = "positive")]
    pub million_acquires_per_second: f64,
    #[serde(deserialize_with = "positive")]
    pub times_one_thread: f64,
}

/// More tasks than connections.
#[derive(Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Waiting {
    pub tasks: usize,
    pub connections: usize,
    pub workers: usize,
    #[serde(deserialize_with = "some")]
    pub without_deadline: Vec<Waits>,
    #[serde(deserialize_with = "some")]
    pub with_deadline_of_5_s: Vec<Waits>,
}

#[derive(Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Waits {
    pub name: String,
    pub side: Side,
    #[serde(deserialize_with = "some")]
    pub curve: Vec<Wait>,
}

/// The wait that this percentage of all acquires stayed within, and how many times Millpond's it
/// is, like compared with like.
#[derive(Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Wait {
    #[serde(deserialize_with = "percentile")]
    pub percentile: f64,
    #[serde(deserialize_with = "positive")]
    pub wait_us: f64,
    #[serde(deserialize_with = "positive")]
    pub times_millpond: f64,
}

/// Counted, not timed.
#[derive(Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Allocations {
    /// For comparison: a bench that counted nothing would find everything free of charge.
    #[serde(deserialize_with = "positive")]
    pub allocations_per_box: f64,
    #[serde(deserialize_with = "some")]
    pub pools: Vec<Allocating>,
}

#[derive(Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Allocating {
    pub name: String,
    pub side: Side,
    #[serde(deserialize_with = "not_negative")]
    pub allocations_per_acquire_and_release: f64,
    /// An acquire that waits, with the release that ends its wait.
    #[serde(deserialize_with = "not_negative")]
    pub allocations_per_wait: f64,
}

/// Why a data file cannot be drawn.
#[derive(Debug)]
pub enum ReadError {
    /// The file cannot be read at all.
    File { file: String, error: std::io::Error },
    /// It is not what is expected.
    Content { file: String, error: serde_path_to_error::Error<serde_json::Error> },
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { file, error } => write!(f, "{file} cannot be read: {error}"),
            Self::Content { file, error } => {
                // serde_json puts the line behind what is wrong; here it stands in front.
                let (error, path) = (error.inner(), error.path());
                let what = error.to_string();
                let what = what.split(" at line ").next().unwrap_or(&what);
                write!(f, "{file}, line {}, field `{path}`: {what}", error.line())
            }
        }
    }
}

// What is the matter is in the text, so there is no source to be printed once more.
impl std::error::Error for ReadError {}

impl Data {
    /// How the times came about.
    pub fn origin(&self) -> String {
        let Self { cores, rounds, measurements, disturbed_measurements: disturbed, .. } = self;
        format!(
            "Medians of {rounds} interleaved rounds, {cores} cores; \
             {disturbed} of {measurements} measurements disturbed by others"
        )
    }

    /// Reads a data file.
    pub fn read(path: &Path) -> Result<Self, ReadError> {
        let file = path.display().to_string();
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(&file, &text),
            Err(error) => Err(ReadError::File { file, error }),
        }
    }

    /// Reads the text of a data file called `file`.
    pub fn parse(file: &str, text: &str) -> Result<Self, ReadError> {
        let mut json = serde_json::Deserializer::from_str(text);
        let mut track = serde_path_to_error::Track::new();
        let tracked = serde_path_to_error::Deserializer::new(&mut json, &mut track);
        match Self::deserialize(tracked).and_then(|data| json.end().map(|()| data)) {
            Ok(data) => Ok(data),
            Err(error) => Err(ReadError::Content {
                file: file.to_owned(),
                error: serde_path_to_error::Error::new(track.path(), error),
            }),
        }
    }

    /// The text of a data file.
    ///
    /// # Panics
    ///
    /// Never: there is nothing in it that JSON has no form for.
    pub fn text(&self) -> String {
        serde_json::to_string_pretty(self).expect("BUG: not to be written as JSON") + "\n"
    }
}

/// To three significant digits.
pub fn rounded(figure: f64) -> f64 {
    format!("{figure:.2e}").parse().unwrap_or(figure)
}

/// A number within a range, or the error that says which. The check is made where the number is
/// read, so that the error knows the line.
struct Within {
    expected: &'static str,
    fits: fn(f64) -> bool,
}

impl Visitor<'_> for Within {
    type Value = f64;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expected)
    }

    fn visit_f64<E: serde::de::Error>(self, number: f64) -> Result<f64, E> {
        if (self.fits)(number) {
            Ok(number)
        } else {
            Err(E::invalid_value(Unexpected::Float(number), &self))
        }
    }

    fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<f64, E> {
        self.visit_f64(number as f64)
    }

    fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<f64, E> {
        self.visit_f64(number as f64)
    }
}

fn positive<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
    let fits = |number| number > 0.0;
    from.deserialize_f64(Within { expected: "a number above 0", fits })
}

fn not_negative<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
    let fits = |number| number >= 0.0;
    from.deserialize_f64(Within { expected: "a number from 0 up", fits })
}

fn percentile<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
    let fits = |number| (0.0..100.0).contains(&number);
    from.deserialize_f64(Within { expected: "a percentile from 0 to below 100", fits })
}

fn at_least_one<'de, D: Deserializer<'de>>(from: D) -> Result<usize, D::Error> {
    let fits = |number: f64| number >= 1.0 && number.fract() == 0.0;
    from.deserialize_f64(Within { expected: "a whole number from 1 up", fits })
        .map(|number| number as usize)
}

/// A list that is not empty: there is no picture of nothing.
fn some<'de, D, T>(from: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    let list = Vec::deserialize(from)?;
    if list.is_empty() {
        return Err(D::Error::invalid_length(0, &"at least one entry"));
    }
    Ok(list)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples::SMALL;

    fn refusal(text: &str) -> String {
        Data::parse("bench.json", text).expect_err("it should not be readable").to_string()
    }

    /// The small data file with one text in it replaced.
    fn with(old: &str, new: &str) -> String {
        assert_eq!(SMALL.matches(old).count(), 1, "{old} is not there once");
        SMALL.replace(old, new)
    }

    #[test]
    fn what_is_written_can_be_read() {
        let data = Data::parse("small", SMALL).expect("the small data file");
        assert_eq!(Data::parse("again", &data.text()).expect("its own text"), data);
    }

    #[test]
    fn figures_are_written_with_three_digits() {
        let digits = [0.009_876, 1.2345, 113.49, 98_765.0].map(rounded);
        assert_eq!(digits, [0.009_88, 1.23, 113.0, 98_800.0]);
        assert_eq!(rounded(0.0).to_string(), "0");
    }

    #[test]
    fn a_figure_of_the_wrong_kind_is_named_with_its_line() {
        let error = refusal(&with(
            "\"acquire_and_release_ns\": 150.5",
            "\"acquire_and_release_ns\": \"slow\"",
        ));
        let expected = "bench.json, line 14, field `hit.pools[2].acquire_and_release_ns`: \
                        invalid type: string \"slow\", expected a number above 0";
        assert_eq!(error, expected);
    }

    #[test]
    fn a_figure_out_of_range_is_named_with_its_line() {
        let error = refusal(&with("\"wait_us\": 61.5", "\"wait_us\": -61.5"));
        let expected = "bench.json, line 37, field `waiting.without_deadline[0].curve[1].wait_us`: \
                        invalid value: floating point `-61.5`, expected a number above 0";
        assert_eq!(error, expected);
    }

    #[test]
    fn a_missing_and_an_unknown_field_are_named_with_their_lines() {
        let error = refusal(&with(", \"times_bare_queue\": 18.1", ""));
        let expected =
            "bench.json, line 14, field `hit.pools[2]`: missing field `times_bare_queue`";
        assert_eq!(error, expected);
        let error = refusal(&with("\"times_bare_queue\": 18.1", "\"times_queue\": 18.1"));
        assert!(
            error.starts_with(
                "bench.json, line 14, field `hit.pools[2].times_queue`: unknown field `times_queue`, expected"
            ),
            "{error}"
        );
    }

    #[test]
    fn an_empty_list_is_named() {
        let start = SMALL.find("\"without_deadline\": [").expect("a list") + 21;
        let end = start + SMALL[start..].find("    ],\n    \"with").expect("its end");
        let error = refusal(&format!("{}{}", &SMALL[..start], &SMALL[end..]));
        assert!(error.contains("field `waiting.without_deadline`: invalid length 0"), "{error}");
    }

    #[test]
    fn broken_syntax_is_named_with_its_line() {
        let error = refusal(&with(
            "\"threads\": 2, \"million_acquires_per_second\": 190.0",
            "\"threads\": 2 \"million",
        ));
        assert!(
            error.starts_with("bench.json, line 23, field `threads.pools[1].points[1]"),
            "{error}"
        );
        let error = refusal(&format!("{SMALL}}}"));
        assert!(error.contains("trailing characters"), "{error}");
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = Data::read(Path::new("no/such/file.json")).expect_err("there is none");
        assert!(error.to_string().starts_with("no/such/file.json cannot be read: "), "{error}");
    }
}
