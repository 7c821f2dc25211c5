//! Settings from text: from TOML, JSON or whatever else serde reads, and from the environment.
//!
//! One table says what each setting is called and how its value is read; everything else follows from
//! it.
//!
//! Not here: the ranges of the settings, which are checked afterwards (`mod.rs`).

use super::{CheckPolicy, Config, Priority, Shed};
use crate::core::IdleOrder;
use crate::error::ConfigError;
use serde::de::{self, Deserializer, MapAccess, Visitor};
use serde::ser::{SerializeMap, Serializer};
use serde::{Deserialize, Serialize};
use std::env;
use std::ffi::OsString;
use std::fmt;
use std::num::{IntErrorKind, ParseIntError};
use std::time::Duration;

/// What is wrong with a value, to be told with its key or variable.
type Wrong = &'static str;

const TIME: Wrong = "must be a time, such as \"30s\" or \"5m\"";
const TIME_OR_NEVER: Wrong = "must be a time, such as \"30s\" or \"5m\", or \"never\"";
const TIME_OUT_OF_RANGE: Wrong = "must be at most 584554530872 years, and whole nanoseconds; \
    with a fraction of an hour or more, whole seconds";
const NUMBER_IN_PARTS: Wrong = "must be a time without white space inside of a number";
const MINUTES_OR_MONTHS: Wrong = "must be a time with \"m\" for minutes or \"months\", \
    since \"M\" may be taken for either";
const COUNT: Wrong = "must be a whole number, from 0";
const COUNT_OR_NONE: Wrong = "must be a whole number, from 0, or \"none\"";
#[cfg(target_pointer_width = "64")]
const COUNT_OUT_OF_RANGE: Wrong = "must be at most 18446744073709551615";
#[cfg(not(target_pointer_width = "64"))]
const COUNT_OUT_OF_RANGE: Wrong = "must be at most 4294967295";
const SWITCH: Wrong = "must be true or false";

fn time(text: &str) -> Result<Duration, Wrong> {
    time_or(text, TIME)
}

/// A time, or what is wrong with the text if it is none.
fn time_or(text: &str, wrong: Wrong) -> Result<Duration, Wrong> {
    let mut sum = Duration::ZERO;
    for part in parts(text) {
        if is_number_in_parts(part) {
            return Err(NUMBER_IN_PARTS);
        }
        if part.trim_matches(|char: char| !char.is_alphabetic()) == "M" {
            return Err(MINUTES_OR_MONTHS);
        }
        let part = humantime::parse_duration(part).map_err(|error| match error {
            humantime::DurationError::NumberOverflow => TIME_OUT_OF_RANGE,
            _ => wrong,
        })?;
        sum = sum.checked_add(part).ok_or(TIME_OUT_OF_RANGE)?;
    }
    Ok(sum)
}

/// The parts of a text such as `1h 30m`, each with one unit. humantime adds them up as well, and panics
/// if the sum is a second above the longest time.
fn parts(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let text = rest.take()?;
        let mut after_unit = false;
        let end = text.char_indices().find_map(|(at, char)| {
            let begins_next = after_unit && char.is_ascii_digit();
            if !char.is_whitespace() {
                after_unit = char.is_alphabetic();
            }
            begins_next.then_some(at)
        });
        let (part, others) = end.map_or((text, None), |end| (&text[..end], Some(&text[end..])));
        rest = others;
        Some(part)
    })
}

/// Whether there is white space inside of a number, over which humantime reads on.
fn is_number_in_parts(text: &str) -> bool {
    let is_of_number = |char: char| char.is_ascii_digit() || char == '.';
    let mut words = text.split_whitespace();
    let mut last = words.next().unwrap_or_default();
    words.any(|word| {
        let before = std::mem::replace(&mut last, word);
        before.ends_with(is_of_number) && word.starts_with(is_of_number)
    })
}

/// Whether there is to be no limit: one word is as good as the other, whatever is limited.
fn is_none(text: &str) -> bool {
    matches!(text, "never" | "none")
}

fn time_or_never(text: &str) -> Result<Option<Duration>, Wrong> {
    if is_none(text) { Ok(None) } else { time_or(text, TIME_OR_NEVER).map(Some) }
}

fn count(text: &str) -> Result<usize, Wrong> {
    count_or(text, COUNT)
}

/// A count, or what is wrong with the text if it is none.
fn count_or(text: &str, wrong: Wrong) -> Result<usize, Wrong> {
    text.parse().map_err(|error: ParseIntError| match error.kind() {
        IntErrorKind::PosOverflow => COUNT_OUT_OF_RANGE,
        _ => wrong,
    })
}

fn count_or_none(text: &str) -> Result<Option<usize>, Wrong> {
    if is_none(text) { Ok(None) } else { count_or(text, COUNT_OR_NONE).map(Some) }
}

fn switch(text: &str) -> Result<bool, Wrong> {
    text.parse().map_err(|_| SWITCH)
}

fn told(time: Duration) -> String {
    humantime::format_duration(time).to_string()
}

fn told_or(time: Option<Duration>, otherwise: &str) -> String {
    time.map_or(otherwise.to_owned(), told)
}

/// How one setting is read and written.
struct Setting {
    key: &'static str,
    read: fn(&mut Config, &str) -> Result<(), Wrong>,
    write: fn(&Config) -> Text,
}

/// A value as it is written.
enum Text {
    Word(String),
    Count(usize),
    Part(f64),
    Switch(bool),
    /// It is left out.
    Nothing,
}

impl From<Option<usize>> for Text {
    fn from(count: Option<usize>) -> Self {
        count.map_or_else(|| Self::Word("none".to_owned()), Self::Count)
    }
}

macro_rules! settings {
    ($($key:ident: |$config:ident, $text:ident| $read:expr, |$from:ident| $write:expr;)*) => {
        const SETTINGS: &[Setting] = &[$(
            Setting {
                key: stringify!($key),
                read: |$config, $text| {
                    $read;
                    Ok(())
                },
                write: |$from| $write,
            },
        )*];
    };
}

/// That of the settings of overload control, which whoever makes one of them asks for (but for one that
/// asks for no reports); what is not said is as in folly.
fn shed(config: &mut Config) -> &mut Shed {
    let usual = Shed::new(Duration::from_millis(5), Duration::from_millis(100));
    config.shed.get_or_insert(usual)
}

settings! {
    name: |config, text| config.name = text.into(), |config| Text::Word(config.name.to_string());
    max_size: |config, text| config.max_size = count(text)?, |config| Text::Count(config.max_size);
    capacity: |config, text| config.capacity = count_or_none(text)?, |config| config.capacity.into();
    min_idle: |config, text| config.min_idle = count(text)?, |config| Text::Count(config.min_idle);
    acquire_timeout: |config, text| config.acquire_timeout = time(text)?,
        |config| Text::Word(told(config.acquire_timeout));
    connect_timeout: |config, text| config.connect_timeout = time(text)?,
        |config| Text::Word(told(config.connect_timeout));
    check_timeout: |config, text| config.check_timeout = time(text)?,
        |config| Text::Word(told(config.check_timeout));
    reset_timeout: |config, text| config.reset_timeout = time(text)?,
        |config| Text::Word(told(config.reset_timeout));
    close_timeout: |config, text| config.close_timeout = time(text)?,
        |config| Text::Word(told(config.close_timeout));
    max_connecting: |config, text| config.max_connecting = count(text)?,
        |config| Text::Count(config.max_connecting);
    backoff: |config, text| config.backoff = time(text)?, |config| Text::Word(told(config.backoff));
    backoff_max: |config, text| config.backoff_max = time(text)?,
        |config| Text::Word(told(config.backoff_max));
    check: |config, text| config.check = check(text)?,
        |config| Text::Word(match config.check {
            CheckPolicy::Never => "never".to_owned(),
            CheckPolicy::Always => "always".to_owned(),
            CheckPolicy::IfIdleFor(time) => told(time),
        });
    max_lifetime: |config, text| config.max_lifetime = time_or_never(text)?,
        |config| Text::Word(told_or(config.max_lifetime, "never"));
    lifetime_jitter: |config, text| {
        config.lifetime_jitter = text.parse().map_err(|_| "must be a number from 0.0 to 1.0")?;
    }, |config| Text::Part(config.lifetime_jitter);
    idle_timeout: |config, text| config.idle_timeout = time_or_never(text)?,
        |config| Text::Word(told_or(config.idle_timeout, "never"));
    keepalive_interval: |config, text| config.keepalive_interval = time_or_never(text)?,
        |config| Text::Word(told_or(config.keepalive_interval, "never"));
    maintenance_interval: |config, text| config.maintenance_interval = time(text)?,
        |config| Text::Word(told(config.maintenance_interval));
    leak_after: |config, text| config.leak_after = time_or_never(text)?,
        |config| Text::Word(told_or(config.leak_after, "never"));
    slow_acquire: |config, text| config.slow_acquire = time_or_never(text)?,
        |config| Text::Word(told_or(config.slow_acquire, "never"));
    max_waiters: |config, text| config.max_waiters = count_or_none(text)?,
        |config| config.max_waiters.into();
    reserved: |config, text| config.reserved = (Priority::High, count(text)?),
        |config| Text::Count(config.reserved.1);
    shed_target: |config, text| shed(config).target = time(text)?,
        |config| config.shed.map_or(Text::Nothing, |shed| Text::Word(told(shed.target)));
    shed_interval: |config, text| shed(config).interval = time(text)?,
        |config| config.shed.map_or(Text::Nothing, |shed| Text::Word(told(shed.interval)));
    shed_report_only: |config, text| if switch(text)? {
            shed(config).report_only = true;
        },
        |config| config.shed.map_or(Text::Nothing, |shed| Text::Switch(shed.report_only));
    fail_fast: |config, text| config.fail_fast = switch(text)?,
        |config| Text::Switch(config.fail_fast);
    detect_deadlock: |config, text| config.detect_deadlock = switch(text)?,
        |config| Text::Switch(config.detect_deadlock);
    time_use: |config, text| config.time_use = switch(text)?,
        |config| Text::Switch(config.time_use);
    trace_uses: |config, text| config.trace_uses = switch(text)?,
        |config| Text::Switch(config.trace_uses);
    order: |config, text| config.order = order(text)?,
        |config| Text::Word(format!("{:?}", config.order).to_lowercase());
    shards: |config, text| config.shards = count_or_none(text)?, |config| config.shards.into();
}

fn check(text: &str) -> Result<CheckPolicy, Wrong> {
    match text {
        "never" => Ok(CheckPolicy::Never),
        "always" => Ok(CheckPolicy::Always),
        _ => time_or(text, "must be \"never\", \"always\", or a time, such as \"5s\"")
            .map(CheckPolicy::IfIdleFor),
    }
}

fn order(text: &str) -> Result<IdleOrder, Wrong> {
    match text {
        "recent" => Ok(IdleOrder::Recent),
        "fifo" => Ok(IdleOrder::Fifo),
        "lifo" => Ok(IdleOrder::Lifo),
        _ => Err("must be \"recent\", \"fifo\" or \"lifo\""),
    }
}

/// A setting that is made: which, and by the text with this name.
struct Named<'n> {
    setting: &'static Setting,
    name: &'n str,
}

impl<'n> Named<'n> {
    /// The setting that is called `key`. The error gives the advice if there is none, and does not tell the
    /// value, which may be a secret of something else.
    fn new(key: &str, name: &'n str, advice: &str) -> Result<Self, ConfigError> {
        let Some(setting) = SETTINGS.iter().find(|setting| setting.key == key) else {
            let all: Vec<&str> = SETTINGS.iter().map(|setting| setting.key).collect();
            let rule = format!("is no setting; there are {}{advice}", all.join(", "));
            return Err(ConfigError::new(key.to_owned(), "set", rule));
        };
        Ok(Self { setting, name })
    }

    fn wrong(&self, value: impl fmt::Debug, rule: impl Into<String>) -> ConfigError {
        ConfigError::new(self.setting.key, format_args!("{value:?}"), rule)
    }

    /// That `null` is no value, with the rule that says what is one. Whatever is not simply text refuses an
    /// empty one by that rule.
    fn missing(&self) -> ConfigError {
        let rule = (self.setting.read)(&mut Config::default(), "").err().unwrap_or("must be text");
        self.wrong(format_args!("null"), rule)
    }
}

impl Config {
    /// The settings that the environment has, in variables such as `POOL_MAX_SIZE` for the prefix
    /// `POOL` or `POOL_`; those that it has not are the defaults. Values are as in a file: see
    /// [`Config`].
    ///
    /// Nothing else may have the prefix: with the prefixes `DB` and `DB_REPLICA` for two pools,
    /// `DB_REPLICA_MAX_SIZE` is refused as one of the first; and for a service that is called
    /// `orders-pool`, Kubernetes gives each pod an `ORDERS_POOL_SERVICE_HOST` and more of the kind, unless
    /// the pod says `enableServiceLinks: false`.
    ///
    /// # Errors
    ///
    /// [`ConfigError`], which names the variable,
    ///
    /// - for a variable with the prefix that is no setting, whose value it does not tell;
    /// - for a value that is out of range or none at all;
    /// - for a setting that two variables make, which differ in upper and lower case;
    /// - for a prefix that says nothing.
    ///
    /// # Examples
    ///
    /// ```
    /// use millpond::Config;
    ///
    /// // Nothing in the environment begins like this.
    /// let config = Config::from_env("ORDERS_POOL")?;
    /// assert_eq!(config.max_size, 10);
    /// # Ok::<(), millpond::ConfigError>(())
    /// ```
    pub fn from_env(prefix: &str) -> Result<Self, ConfigError> {
        Self::from_variables(prefix, env::vars_os())
    }

    fn from_variables(
        prefix: &str,
        variables: impl Iterator<Item = (OsString, OsString)>,
    ) -> Result<Self, ConfigError> {
        let stem = prefix.strip_suffix('_').unwrap_or(prefix);
        if stem.is_empty() {
            let rule = "must be what the variables begin with, such as POOL for POOL_MAX_SIZE";
            return Err(ConfigError::new("prefix", format_args!("{prefix:?}"), rule));
        }
        let mut made = Made::default();
        for (name, value) in variables {
            let Some(name) = name.to_str() else { continue };
            let Some((start, rest)) = name.split_at_checked(stem.len()) else { continue };
            let key = rest.strip_prefix('_').filter(|_| start.eq_ignore_ascii_case(stem));
            let Some(key) = key else { continue };
            let advice = "; unset it, or give the pool a prefix that nothing else has";
            let named = Named::new(&key.to_ascii_lowercase(), name, advice);
            let named = named.map_err(|error| error.of_variable(name))?;
            let made_it = match value.to_str() {
                Some(value) => made.make(&named, value),
                None => Err(named.wrong(&value, "must be text")),
            };
            made_it.map_err(|error| error.of_variable(name))?;
        }
        let names = made.names.clone();
        made.finish().map_err(|error| match names.iter().find(|(key, _)| *key == error.field()) {
            Some((_, variable)) => error.of_variable(variable),
            None => error,
        })
    }
}

/// The settings that have been made so far.
#[derive(Default)]
struct Made {
    config: Config,
    /// Their keys, and the names by which they were made.
    names: Vec<(&'static str, String)>,
}

impl Made {
    fn make(&mut self, named: &Named<'_>, text: &str) -> Result<(), ConfigError> {
        let Named { setting, name } = named;
        if let Some((_, other)) = self.names.iter().find(|(key, _)| *key == setting.key) {
            let rule = if other == name {
                "must not be set twice".to_owned()
            } else {
                format!("must not be set beside {other}, which is the same")
            };
            return Err(named.wrong(text, rule));
        }
        (setting.read)(&mut self.config, text).map_err(|rule| named.wrong(text, rule))?;
        self.names.push((setting.key, (*name).to_owned()));
        Ok(())
    }

    fn has(&self, key: &str) -> bool {
        self.names.iter().any(|(made, _)| *made == key)
    }

    /// The settings, if they go together. What was not chosen makes way for what was.
    fn finish(mut self) -> Result<Config, ConfigError> {
        if !self.has("idle_timeout") {
            self.config.shorten_idle_timeout();
        }
        if !self.has("backoff_max") {
            self.config.backoff_max = self.config.backoff_max.max(self.config.backoff);
        } else if !self.has("backoff") {
            self.config.backoff = self.config.backoff.min(self.config.backoff_max);
        }
        let (target, interval) = (self.has("shed_target"), self.has("shed_interval"));
        if let Some(shed) = &mut self.config.shed {
            if !interval {
                shed.interval = shed.interval.max(shed.target);
            } else if !target {
                shed.target = shed.target.min(shed.interval);
            }
        }
        self.config.validate()?;
        Ok(self.config)
    }
}

/// A value of a file; `None` for `null`, which is none.
pub(crate) struct Value(pub(crate) Option<String>);

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Scalar)
    }
}

struct Scalar;

impl<'de> Visitor<'de> for Scalar {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number, true or false, or text")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Value, E> {
        Ok(Value(None))
    }

    fn visit_none<E: de::Error>(self) -> Result<Value, E> {
        Ok(Value(None))
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Value, E> {
        Ok(Value(Some(value.to_string())))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Value, E> {
        Ok(Value(Some(value.to_string())))
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Value, E> {
        Ok(Value(Some(value.to_string())))
    }

    /// What TOML has for a number that is too large for the others.
    fn visit_i128<E: de::Error>(self, value: i128) -> Result<Value, E> {
        Ok(Value(Some(value.to_string())))
    }

    fn visit_u128<E: de::Error>(self, value: u128) -> Result<Value, E> {
        Ok(Value(Some(value.to_string())))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        Ok(Value(Some(value.to_string())))
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Value, E> {
        Ok(Value(Some(value.to_owned())))
    }

    /// A number from JSON, if any crate of the program has turned on `arbitrary_precision`.
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        match map.next_key::<String>()?.as_deref() {
            Some("$serde_json::private::Number") => map.next_value().map(Some).map(Value),
            _ => Err(de::Error::invalid_type(de::Unexpected::Map, &self)),
        }
    }
}

struct Settings;

impl<'de> Visitor<'de> for Settings {
    type Value = Config;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the settings of a pool")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Config, A::Error> {
        let mut made = Made::default();
        while let Some(key) = map.next_key::<String>()? {
            let named = Named::new(&key, &key, "").map_err(de::Error::custom)?;
            let Value(text) = map
                .next_value()
                .map_err(|error| de::Error::custom(format_args!("{key}: {error}")))?;
            let made_it = match text {
                Some(text) => made.make(&named, &text),
                None => Err(named.missing()),
            };
            made_it.map_err(de::Error::custom)?;
        }
        made.finish().map_err(de::Error::custom)
    }
}

impl<'de> Deserialize<'de> for Config {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Settings)
    }
}

impl Serialize for Config {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for Setting { key, write, .. } in SETTINGS {
            match write(self) {
                Text::Word(word) => map.serialize_entry(key, &word)?,
                Text::Count(count) => map.serialize_entry(key, &count)?,
                Text::Part(part) => map.serialize_entry(key, &part)?,
                Text::Switch(switch) => map.serialize_entry(key, &switch)?,
                Text::Nothing => {}
            }
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from_env(variables: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let variables = variables.iter().map(|(name, value)| (name.into(), value.into()));
        Config::from_variables("POOL", variables)
    }

    #[test]
    fn a_number_may_come_as_json_has_it_with_arbitrary_precision() {
        use serde::de::IntoDeserializer;
        use serde::de::value::{Error, MapDeserializer};
        use std::collections::BTreeMap;

        let read = |kind: &'static str| {
            let value = BTreeMap::from([(kind, "7")]).into_deserializer();
            let settings = MapDeserializer::<_, Error>::new([("max_size", value)].into_iter());
            Config::deserialize(settings)
        };
        assert_eq!(read("$serde_json::private::Number").map(|config| config.max_size), Ok(7));
        let error = read("of another kind").expect_err("it is no number");
        assert!(error.to_string().starts_with("max_size: invalid type: map"), "{error}");
    }

    #[test]
    fn the_environment_sets_what_it_names_and_nothing_else() {
        let config = from_env(&[
            ("POOL_MAX_SIZE", "7"),
            ("POOL_IDLE_TIMEOUT", "never"),
            ("POOL_CHECK", "2m"),
            ("POOLSIDE", "irrelevant"),
            ("OTHER_POOL_MAX_SIZE", "8"),
        ]);
        let config = config.expect("all of it is right");
        assert_eq!((config.max_size, config.idle_timeout), (7, None));
        assert_eq!(config.check, CheckPolicy::IfIdleFor(Duration::from_secs(120)));
        assert_eq!(config.min_idle, Config::default().min_idle);
    }

    #[test]
    fn a_variable_that_is_wrong_is_named_with_its_value_and_the_rule() {
        for (name, value, said) in [
            (
                "POOL_MAX_SIZE",
                "-1",
                "POOL_MAX_SIZE is \"-1\", but it must be a whole number, from 0",
            ),
            ("POOL_MAX_SIZE", "0", "POOL_MAX_SIZE is 0, but it must be from 1 to 1048576"),
            (
                "POOL_CHECK",
                "x",
                "POOL_CHECK is \"x\", but it must be \"never\", \"always\", or a time",
            ),
            (
                "POOL_Order",
                "Lifo",
                "POOL_Order is \"Lifo\", but it must be \"recent\", \"fifo\" or",
            ),
        ] {
            let error = from_env(&[(name, value)]).expect_err(name).to_string();
            assert!(error.starts_with(said), "{error}");
        }
        let error = from_env(&[("POOL_MAX_SIZE", "-1")]).expect_err("it is negative");
        assert_eq!((error.field(), error.value()), ("max_size", "\"-1\""));
        let error = from_env(&[("POOL_MAX_SIZE", "4"), ("POOL_RESERVED", "4")]);
        let error = error.expect_err("all are reserved").to_string();
        assert_eq!(error, "POOL_RESERVED is 4, but it must be below max_size, which is 4");
        let error = from_env(&[("POOL_SHED_INTERVAL", "0s")]).expect_err("no time").to_string();
        assert_eq!(error, "POOL_SHED_INTERVAL is 0ns, but it must be above zero");
        let error = from_env(&[("POOL_BACKOFF_MAX", "0s")]).expect_err("no time").to_string();
        assert_eq!(error, "POOL_BACKOFF_MAX is 0ns, but it must be above zero");
        let error = from_env(&[("POOL_BACKOFF_MAX", "1ms"), ("POOL_BACKOFF", "2ms")]);
        let error = error.expect_err("too short").to_string();
        assert_eq!(error, "POOL_BACKOFF is 2ms, but it must be at most backoff_max, which is 1ms");
    }

    #[test]
    fn the_value_of_a_variable_that_is_no_setting_may_be_a_secret_and_is_not_told() {
        for name in ["POOL_PASSWORD", "POOL_URL", "POOL_", "POOL__MAX_SIZE"] {
            let error = from_env(&[(name, "hunter2")]).expect_err(name);
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
            let said = format!("{name} is set, but it is no setting; there are name, max_size,");
            assert!(error.to_string().starts_with(&said), "{error}");
        }
    }

    #[test]
    fn a_variable_that_is_no_setting_may_be_somebody_elses_and_the_error_says_what_to_do() {
        for name in ["POOL_SERVICE_HOST", "POOL_REPLICA_MAX_SIZE"] {
            let error = from_env(&[(name, "x")]).expect_err(name).to_string();
            let advice = "shards; unset it, or give the pool a prefix that nothing else has";
            assert!(error.starts_with(name) && error.ends_with(advice), "{error}");
        }
    }

    #[test]
    fn a_prefix_may_end_in_an_underscore_and_must_not_be_empty() {
        let from = |prefix: &str, variables: &[(&str, &str)]| {
            let variables = variables.iter().map(|(name, value)| (name.into(), value.into()));
            Config::from_variables(prefix, variables)
        };
        let config = from("POOL_", &[("POOL_MAX_SIZE", "7")]).expect("it is right");
        assert_eq!(config.max_size, 7);
        // As with the rest of the name.
        let config = from("pool", &[("POOL_MAX_SIZE", "8"), ("pööl_MAX_SIZE", "9")]);
        assert_eq!(config.expect("it is right").max_size, 8);
        for prefix in ["", "_"] {
            // What a shell sets for whatever it runs.
            let error = from(prefix, &[("_", "/usr/bin/env")]).expect_err("it says nothing");
            let said =
                format!("prefix is {prefix:?}, but it must be what the variables begin with");
            assert!(error.to_string().starts_with(&said), "{error}");
        }
    }

    #[test]
    fn two_variables_for_one_setting_are_refused() {
        let error = from_env(&[("POOL_max_size", "7"), ("POOL_MAX_SIZE", "8")]);
        assert_eq!(
            error.expect_err("which one?").to_string(),
            "POOL_MAX_SIZE is \"8\", but it must not be set beside POOL_max_size, which is the same"
        );
    }

    #[test]
    fn a_time_of_any_length_is_read_or_refused() {
        let most = Duration::MAX;
        assert_eq!(time(&told(most)), Ok(most));
        assert_eq!(time("18446744073709551615s 999ms"), Ok(most - Duration::from_nanos(999_999)));
        for text in [
            "18446744073709551615s 1000ms",
            "18446744073709551615s 999ms 1ms",
            "18446744073709551615s1000ms",
            "18446744073709551615s 1s",
            "18446744073709551616s",
            "584554530873years",
            "99999999999999999999ns",
            "0.5ns",
            "1.333h",
        ] {
            assert_eq!(time(text), Err(TIME_OUT_OF_RANGE), "{text}");
            assert_eq!(time_or_never(text), Err(TIME_OUT_OF_RANGE), "{text}");
            assert_eq!(check(text), Err(TIME_OUT_OF_RANGE), "{text}");
        }
        for text in
            ["", " ", "s", "5", "5 s m", "1h m", "-1s", "1.s", "5 parsecs", "h1", "1s never"]
        {
            assert_eq!(time(text), Err(TIME), "{text}");
        }
        // Whoever reads "1 30s" as a minute and a half is not given 130 s.
        for text in ["1 30s", "1.5 5s", "1 .5s", "1. 5s", "1\t000ms", " 1 h 3 0 m "] {
            assert_eq!(time(text), Err(NUMBER_IN_PARTS), "{text}");
        }
        for text in ["30M", "1 M", "1h 30M", "30M 1s", "1.5M"] {
            assert_eq!(time(text), Err(MINUTES_OR_MONTHS), "{text}");
        }
        for (text, seconds) in [
            ("1h 30m", 5400),
            ("1h30m", 5400),
            (" 1 h 30 m ", 5400),
            ("1month 1 months", 2 * 2_630_016),
            ("1.5m 2s", 92),
            ("1d1s", 86_401),
        ] {
            assert_eq!(time(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_variable_that_is_no_text_is_named() {
        use std::os::unix::ffi::OsStringExt;
        let from = |name: &str| {
            let value = OsString::from_vec(vec![b'h', 0xff]);
            let variables = [(name.into(), value)].into_iter();
            Config::from_variables("POOL", variables).expect_err("it is no text").to_string()
        };
        assert_eq!(from("POOL_NAME"), "POOL_NAME is \"h\\xFF\", but it must be text");
        assert!(from("POOL_KEY").starts_with("POOL_KEY is set, but it is no setting"));
    }
}
