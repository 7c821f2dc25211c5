//! Status and figures for programs: times in seconds, and each name as in the fields.
//!
//! Not here: settings, which are read as well, as a role is (`config/text.rs`, `cluster/text.rs`).

use super::{ClusterNode, ConnectFailure, Health, Histogram, PoolStatus, Role};
use crate::error::ConfigError;
use crate::pool::Holder;
use serde::de::{self, Deserialize, Deserializer};
use serde::ser::{Serialize, SerializeStruct, Serializer};
use std::time::Duration;

fn seconds(time: Option<Duration>) -> Option<f64> {
    time.map(|time| time.as_secs_f64())
}

impl Serialize for Histogram {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("Histogram", 8)?;
        fields.serialize_field("count", &self.count())?;
        fields.serialize_field("sum_seconds", &self.sum().as_secs_f64())?;
        fields.serialize_field("mean_seconds", &seconds(self.mean()))?;
        fields.serialize_field("p50_seconds", &seconds(self.quantile(0.5)))?;
        fields.serialize_field("p90_seconds", &seconds(self.quantile(0.9)))?;
        fields.serialize_field("p99_seconds", &seconds(self.quantile(0.99)))?;
        fields.serialize_field("p999_seconds", &seconds(self.quantile(0.999)))?;
        fields.serialize_field("max_seconds", &seconds(self.max()))?;
        fields.end()
    }
}

impl Serialize for Holder {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("Holder", 3)?;
        fields.serialize_field("connection", &self.connection)?;
        fields.serialize_field("site", &self.site.map(ToString::to_string))?;
        fields.serialize_field("held_seconds", &self.held.as_secs_f64())?;
        fields.end()
    }
}

impl Serialize for ConnectFailure {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("ConnectFailure", 2)?;
        fields.serialize_field("message", &self.message)?;
        fields.serialize_field("seconds_ago", &self.ago.as_secs_f64())?;
        fields.end()
    }
}

impl Serialize for PoolStatus {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { health, max_size, metrics, config, cluster } = self;
        let mut fields = serializer.serialize_struct("PoolStatus", 7)?;
        fields.serialize_field("name", &*config.name)?;
        fields.serialize_field("cluster", cluster)?;
        fields.serialize_field("health", health)?;
        fields.serialize_field("reasons", health.reasons())?;
        fields.serialize_field("max_size", max_size)?;
        fields.serialize_field("metrics", metrics)?;
        fields.serialize_field("config", config)?;
        fields.end()
    }
}

impl Serialize for ClusterNode {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { name, node, role } = self;
        let mut fields = serializer.serialize_struct("ClusterNode", 3)?;
        fields.serialize_field("name", &**name)?;
        fields.serialize_field("node", &**node)?;
        fields.serialize_field("role", role)?;
        fields.end()
    }
}

impl Serialize for Role {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.word())
    }
}

/// The role that is called so; nothing is `null`.
pub(crate) fn read_role(word: Option<&str>) -> Result<Role, ConfigError> {
    Role::ALL.into_iter().find(|role| word == Some(role.word())).ok_or_else(|| {
        let value = word.map_or_else(|| "null".to_owned(), |word| format!("{word:?}"));
        let rule = "must be \"unknown\", \"primary\" or \"replica\"";
        ConfigError::new("role", value, rule)
    })
}

impl<'de> Deserialize<'de> for Role {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        read_role(Some(&String::deserialize(deserializer)?)).map_err(de::Error::custom)
    }
}

impl Serialize for Health {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.word())
    }
}
