//! Nodes from TOML, JSON or whatever else serde reads, and to it.
//!
//! Not here: the settings of their pools (`crate::config`), and how they are (`status.rs`).

use super::{Endpoint, NodeOptions};
use crate::config::Value;
use crate::error::ConfigError;
use crate::metrics::read_role;
use serde::de::{self, Deserialize, Deserializer, MapAccess, Visitor};
use serde::ser::{Serialize, SerializeStruct, Serializer};
use std::collections::BTreeMap;
use std::fmt;
use std::num::{IntErrorKind, ParseIntError};

/// As text, such as `db1:5432`.
impl Serialize for Endpoint {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Endpoint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl Serialize for NodeOptions {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("NodeOptions", 3)?;
        fields.serialize_field("role", &self.role)?;
        fields.serialize_field("weight", &self.weight)?;
        fields.serialize_field("labels", &self.labels)?;
        fields.end()
    }
}

impl<'de> Deserialize<'de> for NodeOptions {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Options)
    }
}

fn read_weight(text: Option<&str>) -> Result<u32, ConfigError> {
    let wrong = |rule| ConfigError::new("weight", told(text), rule);
    text.unwrap_or_default().parse().map_err(|error: ParseIntError| match error.kind() {
        IntErrorKind::PosOverflow => wrong("must be at most 1,000,000"),
        _ => wrong("must be a whole number, from 1 to 1,000,000"),
    })
}

fn told(text: Option<&str>) -> String {
    text.map_or_else(|| "null".to_owned(), |text| format!("{text:?}"))
}

fn twice(name: String) -> ConfigError {
    ConfigError::new(name, "set", "must not be set twice")
}

/// The next value of a map, by the name that it has there.
fn next_value<'de, V: Deserialize<'de>, A: MapAccess<'de>>(
    map: &mut A,
    name: impl fmt::Display,
) -> Result<V, A::Error> {
    map.next_value().map_err(|error| de::Error::custom(format_args!("{name}: {error}")))
}

struct Options;

impl<'de> Visitor<'de> for Options {
    type Value = NodeOptions;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the options of a node")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<NodeOptions, A::Error> {
        let (mut options, mut made) = (NodeOptions::default(), Vec::new());
        while let Some(key) = map.next_key::<String>()? {
            if made.contains(&key) {
                return Err(de::Error::custom(twice(key)));
            }
            let read = match &*key {
                "role" => {
                    let Value(text) = next_value(&mut map, &key)?;
                    read_role(text.as_deref()).map(|role| options.role = role)
                }
                "weight" => {
                    let Value(text) = next_value(&mut map, &key)?;
                    read_weight(text.as_deref()).map(|weight| options.weight = weight)
                }
                "labels" => {
                    let Labels(labels) = next_value(&mut map, &key)?;
                    options.labels = labels;
                    Ok(())
                }
                _ => {
                    let rule = "is no option of a node; there are role, weight, labels";
                    Err(ConfigError::new(key.clone(), "set", rule))
                }
            };
            read.map_err(de::Error::custom)?;
            made.push(key);
        }
        options.validate().map_err(de::Error::custom)?;
        Ok(options)
    }
}

struct Labels(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for Labels {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(LabelsOf)
    }
}

struct LabelsOf;

impl<'de> Visitor<'de> for LabelsOf {
    type Value = Labels;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("labels, each with its value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Labels, A::Error> {
        let mut labels = BTreeMap::new();
        while let Some(name) = map.next_key::<String>()? {
            let Value(value) = next_value(&mut map, &name)?;
            let Some(value) = value else {
                let error = ConfigError::new(name, told(None), "must be text");
                return Err(de::Error::custom(error));
            };
            if labels.contains_key(&name) {
                return Err(de::Error::custom(twice(name)));
            }
            labels.insert(name, value);
        }
        Ok(Labels(labels))
    }
}
