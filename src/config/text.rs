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
use std::time::Duration;

/// What is wrong with a value, to be told with its key.
type Wrong = &'static str;

const TIME: Wrong = "must be a time, such as \"30s\" or \"5m\"";
const TIME_OR_NEVER: Wrong = "must be a time, such as \"30s\" or \"5m\", or \"never\"";
const COUNT: Wrong = "must be a whole number, from 0";
const COUNT_OR_NONE: Wrong = "must be a whole number, from 0, or \"none\"";
const SWITCH: Wrong = "must be true or false";

fn time(text: &str) -> Result<Duration, Wrong> {
    humantime::parse_duration(text).map_err(|_| TIME)
}

fn time_or_never(text: &str) -> Result<Option<Duration>, Wrong> {
    match text {
        "never" => Ok(None),
        _ => humantime::parse_duration(text).map(Some).map_err(|_| TIME_OR_NEVER),
    }
}

fn count(text: &str) -> Result<usize, Wrong> {
    text.parse().map_err(|_| COUNT)
}

fn count_or_none(text: &str) -> Result<Option<usize>, Wrong> {
    match text {
        "none" => Ok(None),
        _ => text.parse().map(Some).map_err(|_| COUNT_OR_NONE),
    }
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

/// That of the settings of overload control: what is not said is as in folly.
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
    shed_report_only: |config, text| shed(config).report_only = switch(text)?,
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
        _ => humantime::parse_duration(text)
            .map(CheckPolicy::IfIdleFor)
            .map_err(|_| "must be \"never\", \"always\", or a time, such as \"5s\""),
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

impl Config {
    /// Sets what is called `key` to what `text` says.
    fn set(&mut self, key: &str, text: &str) -> Result<(), ConfigError> {
        let Some(setting) = SETTINGS.iter().find(|setting| setting.key == key) else {
            let all: Vec<&str> = SETTINGS.iter().map(|setting| setting.key).collect();
            let rule = format!("is no setting; there are {}", all.join(", "));
            return Err(ConfigError::new(key.to_owned(), format_args!("{text:?}"), rule));
        };
        let wrong = |rule| ConfigError::new(setting.key, format_args!("{text:?}"), rule);
        (setting.read)(self, text).map_err(wrong)
    }

    /// The settings that the environment has, in variables such as `POOL_MAX_SIZE` for the prefix
    /// `POOL`; those that it has not are the defaults. Values are as in a file: see [`Config`].
    ///
    /// # Errors
    ///
    /// [`ConfigError`] for a variable with the prefix that is no setting, and for a value that is
    /// out of range or none at all.
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
        let mut config = Self::default();
        let mut chosen = Chosen::default();
        for (name, value) in variables {
            let Some(key) = name.to_str().and_then(|name| name.strip_prefix(prefix)) else {
                continue;
            };
            let Some(key) = key.strip_prefix('_') else { continue };
            let key = key.to_ascii_lowercase();
            let Some(value) = value.to_str() else {
                return Err(ConfigError::new(key, format_args!("{value:?}"), "must be text"));
            };
            chosen.note(&key);
            config.set(&key, value)?;
        }
        chosen.settle(&mut config);
        config.validate()?;
        Ok(config)
    }
}

/// Which settings have been made that others follow from.
#[derive(Default)]
struct Chosen {
    idle_timeout: bool,
    backoff_max: bool,
}

impl Chosen {
    fn note(&mut self, key: &str) {
        self.idle_timeout |= key == "idle_timeout";
        self.backoff_max |= key == "backoff_max";
    }

    /// What was not chosen makes way for what was.
    fn settle(&self, config: &mut Config) {
        if let (false, Some(idle), Some(life)) =
            (self.idle_timeout, config.idle_timeout, config.max_lifetime)
        {
            config.idle_timeout = Some(idle.min(life));
        }
        if !self.backoff_max {
            config.backoff_max = config.backoff_max.max(config.backoff);
        }
    }
}

/// A value of a file.
struct Value(String);

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Scalar)
    }
}

struct Scalar;

impl Visitor<'_> for Scalar {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number, true or false, or text")
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Value, E> {
        Ok(Value(value.to_string()))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Value, E> {
        Ok(Value(value.to_string()))
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Value, E> {
        Ok(Value(value.to_string()))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        Ok(Value(value.to_string()))
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Value, E> {
        Ok(Value(value.to_owned()))
    }
}

struct Settings;

impl<'de> Visitor<'de> for Settings {
    type Value = Config;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the settings of a pool")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Config, A::Error> {
        let mut config = Config::default();
        let mut chosen = Chosen::default();
        while let Some(key) = map.next_key::<String>()? {
            let Value(text) = map
                .next_value()
                .map_err(|error| de::Error::custom(format_args!("{key}: {error}")))?;
            chosen.note(&key);
            config.set(&key, &text).map_err(de::Error::custom)?;
        }
        chosen.settle(&mut config);
        config.validate().map_err(de::Error::custom)?;
        Ok(config)
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
                "POOL_MAX_SIZ",
                "7",
                "max_siz is \"7\", but it is no setting; there are name, max_size,",
            ),
            ("POOL_MAX_SIZE", "-1", "max_size is \"-1\", but it must be a whole number, from 0"),
            ("POOL_MAX_SIZE", "0", "max_size is 0, but it must be from 1 to 1048576"),
            ("POOL_CHECK", "x", "check is \"x\", but it must be \"never\", \"always\", or a time"),
            ("POOL_ORDER", "Lifo", "order is \"Lifo\", but it must be \"recent\", \"fifo\" or"),
        ] {
            let error = from_env(&[(name, value)]).expect_err(name).to_string();
            assert!(error.starts_with(said), "{error}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_variable_that_is_no_text_is_named() {
        use std::os::unix::ffi::OsStringExt;
        let value = OsString::from_vec(vec![0xff]);
        let variables = [("POOL_NAME".into(), value)].into_iter();
        let error = Config::from_variables("POOL", variables).expect_err("it is no text");
        assert_eq!(error.to_string(), "name is \"\\xFF\", but it must be text");
    }
}
