//! The settings of a [`Pool`](crate::Pool), their ranges and their defaults.
//!
//! Not here: what they do; each setting is read where it applies.

use crate::core::IdleOrder;
use crate::error::{ConfigError, check_capacity, check_shards};
use std::sync::Arc;
use std::time::Duration;

/// When a connection is checked before it is handed out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CheckPolicy {
    /// Never: a dead connection shows when it is used, or in [`condition`](crate::Manager::condition).
    #[default]
    Never,
    /// Every time: one call of [`check`](crate::Manager::check) for each acquire.
    Always,
}

/// The settings of a pool, as the builder has checked them.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Config {
    /// The pool's name in messages. Default: `millpond`.
    pub name: Arc<str>,
    /// The most connections that are alive or being opened at any instant: 1 to 1,048,576.
    /// Default: 10.
    pub max_size: usize,
    /// How many idle connections the pool keeps ready: 0 to `max_size`. Default: 0.
    pub min_idle: usize,
    /// How long an acquire waits, all in all; above zero. Default: 5 s.
    pub acquire_timeout: Duration,
    /// How long one attempt to connect may take; above zero. Default: 5 s.
    pub connect_timeout: Duration,
    /// How long a check may take; above zero. Default: 1 s.
    pub check_timeout: Duration,
    /// How long a reset may take; above zero. Default: 1 s.
    pub reset_timeout: Duration,
    /// How long closing a connection may take; above zero. Default: 1 s.
    pub close_timeout: Duration,
    /// The most connects at the same time, at least 1. The first connect, and the first after a
    /// failed one, go alone; each that succeeds doubles the number up to this. Default: 4.
    pub max_connecting: usize,
    /// The pause after a failed connect is random, up to this; each further failure doubles it.
    /// Above zero, at most `backoff_max`. Default: 50 ms.
    pub backoff: Duration,
    /// The most that the pause grows to. Default: 2 s.
    pub backoff_max: Duration,
    /// When a connection is checked before it is handed out. Default: [`CheckPolicy::Never`].
    pub check: CheckPolicy,
    /// The order in which idle connections are handed out. Default: [`IdleOrder::Recent`].
    pub order: IdleOrder,
    /// The number of shards: a power of two from 1 to 256, or `None` for the largest that is
    /// neither above the machine's parallelism nor above half of `max_size`. One shard is strictly
    /// first come, first served; more scale with threads. Default: `None`.
    pub shards: Option<usize>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            name: "millpond".into(),
            max_size: 10,
            min_idle: 0,
            acquire_timeout: Duration::from_secs(5),
            connect_timeout: Duration::from_secs(5),
            check_timeout: Duration::from_secs(1),
            reset_timeout: Duration::from_secs(1),
            close_timeout: Duration::from_secs(1),
            max_connecting: 4,
            backoff: Duration::from_millis(50),
            backoff_max: Duration::from_secs(2),
            check: CheckPolicy::Never,
            order: IdleOrder::Recent,
            shards: None,
        }
    }
}

impl Config {
    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        check_capacity("max_size", self.max_size)?;
        if self.min_idle > self.max_size {
            let rule = format!("must be at most max_size, which is {}", self.max_size);
            return Err(ConfigError::new("min_idle", self.min_idle, rule));
        }
        for (field, limit) in [
            ("acquire_timeout", self.acquire_timeout),
            ("connect_timeout", self.connect_timeout),
            ("check_timeout", self.check_timeout),
            ("reset_timeout", self.reset_timeout),
            ("close_timeout", self.close_timeout),
            ("backoff", self.backoff),
        ] {
            if limit.is_zero() {
                return Err(ConfigError::new(
                    field,
                    format_args!("{limit:?}"),
                    "must be above zero",
                ));
            }
        }
        if self.backoff > self.backoff_max {
            let rule = format!("must be at most backoff_max, which is {:?}", self.backoff_max);
            return Err(ConfigError::new("backoff", format_args!("{:?}", self.backoff), rule));
        }
        if self.max_connecting == 0 {
            return Err(ConfigError::new("max_connecting", 0, "must be at least 1"));
        }
        self.shards.map_or(Ok(()), check_shards)
    }
}
