//! Where a node is.
//!
//! Not here: who looks names up (the manager, or a source of nodes).

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

/// A host, by name or address, and a port.
///
/// # Examples
///
/// ```
/// use millpond::cluster::Endpoint;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let by_name: Endpoint = "db1.internal:5432".parse()?;
/// assert_eq!((by_name.host.as_str(), by_name.port), ("db1.internal", 5432));
/// assert_eq!("[::1]:5432".parse::<Endpoint>()?.to_string(), "[::1]:5432");
/// let error = "db1.internal".parse::<Endpoint>().unwrap_err();
/// assert_eq!(error.to_string(), "\"db1.internal\" is no endpoint: the port is missing, as in host:5432");
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Endpoint {
    /// The host: a name or an address, the latter without brackets; behind a link-local one there may be
    /// its zone, as in `fe80::1%eth0`.
    pub host: String,
    /// The port: 1 to 65,535.
    pub port: u16,
}

/// Something is no endpoint. It is shown, unless there may be a password in it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{} is no endpoint: {rule}", Shown(.input))]
pub struct ParseEndpointError {
    /// `None` if it is not to be shown.
    input: Option<String>,
    rule: &'static str,
}

struct Shown<'e>(&'e Option<String>);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(input) => write!(f, "{input:?}"),
            None => f.write_str("what may have a password in it, and is not shown here,"),
        }
    }
}

impl Endpoint {
    /// This port of this host.
    #[must_use]
    pub fn new(host: impl Into<String>, port: u16) -> Self {
        Self { host: host.into(), port }
    }

    /// Whether both are the same place, though it may be written in different ways: a name in small
    /// letters or in capitals, an IPv6 address short or long.
    pub(crate) fn is_at(&self, other: &Self) -> bool {
        let ip = |endpoint: &Self| endpoint.host.parse::<IpAddr>().ok();
        // Case matters in a path and in a zone.
        let is_name = |endpoint: &Self| !endpoint.host.contains(['/', '%']);
        let is_same_host = match (ip(self), ip(other)) {
            (Some(one), Some(other)) => one == other,
            _ if is_name(self) => self.host.eq_ignore_ascii_case(&other.host),
            _ => self.host == other.host,
        };
        is_same_host && self.port == other.port
    }
}

impl From<SocketAddr> for Endpoint {
    fn from(address: SocketAddr) -> Self {
        let host = match address {
            SocketAddr::V6(address) if address.scope_id() != 0 => {
                format!("{}%{}", address.ip(), address.scope_id())
            }
            _ => address.ip().to_string(),
        };
        Self::new(host, address.port())
    }
}

/// Whether this is an IPv6 address, with its zone or without.
fn is_ipv6(text: &str) -> bool {
    let (address, zone) = match text.split_once('%') {
        Some((address, zone)) => (address, Some(zone)),
        None => (text, None),
    };
    matches!(address.parse(), Ok(IpAddr::V6(_))) && zone.is_none_or(|zone| !zone.is_empty())
}

impl FromStr for Endpoint {
    type Err = ParseEndpointError;

    fn from_str(input: &str) -> Result<Self, Self::Err> {
        let is_url = input.contains("://") || (input.contains('@') && !input.starts_with('/'));
        let may_be_told = !is_url && !input.contains(['@', '=', '?']);
        let wrong =
            |rule| ParseEndpointError { input: may_be_told.then(|| input.to_owned()), rule };
        if is_url {
            return Err(wrong("it must be a host and a port alone, as in host:5432, and no URL"));
        }
        let (host, port) = match input.strip_prefix('[') {
            Some(rest) => {
                let (host, rest) =
                    rest.split_once(']').ok_or_else(|| wrong("the closing bracket is missing"))?;
                if !is_ipv6(host) {
                    return Err(wrong("what is in brackets must be an IPv6 address"));
                }
                (host, rest.strip_prefix(':'))
            }
            None => match input.rsplit_once(':') {
                Some((host, _)) if host.contains(':') => {
                    return Err(wrong("an IPv6 address must be in brackets, as in [::1]:5432"));
                }
                Some((host, port)) => (host, Some(port)),
                None => (input, None),
            },
        };
        let port = port.ok_or_else(|| wrong("the port is missing, as in host:5432"))?;
        if host.is_empty() || host.contains(|c: char| c.is_whitespace() || c.is_control()) {
            return Err(wrong("the host must not be empty, and have no spaces in it"));
        }
        match port.parse() {
            // A sign is no part of a port.
            Ok(port @ 1..) if input.ends_with(&format!(":{port}")) => Ok(Self::new(host, port)),
            _ => Err(wrong("the port must be a number from 1 to 65535")),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        for text in [
            "db1:5432",
            "10.0.0.1:1",
            "[::1]:65535",
            "a.b-c.example:80",
            "[fe80::1%eth0]:5432",
            "/run/postgresql:5432",
        ] {
            let endpoint: Endpoint = text.parse().expect("an endpoint");
            assert_eq!(endpoint.to_string(), text);
        }
        let address: SocketAddr = "[2001:db8::1]:5432".parse().expect("an address");
        assert_eq!(Endpoint::from(address).to_string(), "[2001:db8::1]:5432");
    }

    #[test]
    fn a_link_local_address_keeps_its_zone() {
        let address: SocketAddr = "[fe80::1%3]:5432".parse().expect("an address");
        let endpoint = Endpoint::from(address);
        assert_eq!((endpoint.host.as_str(), endpoint.port), ("fe80::1%3", 5432));
        // As a node of DNS is called.
        assert_eq!(endpoint.to_string(), address.to_string());
        assert_eq!(address.to_string().parse(), Ok(endpoint));
    }

    #[test]
    fn one_place_may_be_written_in_several_ways() {
        let is_same = |one: &str, other: &str| {
            let [one, other] = [one, other].map(|text| text.parse::<Endpoint>().expect(text));
            one.is_at(&other)
        };
        assert!(is_same("db1.internal:5432", "DB1.Internal:5432"));
        assert!(is_same("[::1]:5432", "[0:0:0:0:0:0:0:1]:5432"));
        assert!(is_same("[FE80::1%eth0]:5432", "[FE80::1%eth0]:5432"));
        for (one, other) in [
            ("db1:5432", "db1:5433"),
            ("db1:5432", "db2:5432"),
            ("[::1]:5432", "[::2]:5432"),
            ("[fe80::1%eth0]:5432", "[fe80::1%ETH0]:5432"),
            ("[fe80::1%eth0]:5432", "[fe80::1]:5432"),
            ("/run/db:5432", "/run/DB:5432"),
        ] {
            assert!(!is_same(one, other), "{one} and {other}");
        }
    }

    #[test]
    fn what_may_have_a_password_in_it_is_not_told() {
        for text in [
            "postgres://u:hush@h:5432",
            "postgres://u:hush@h:5432/d",
            "u:hush@h:5432",
            "u:wo@hush:x",
            "host=h1 password=hush port=5432",
            "h1?password=hush",
        ] {
            let error = text.parse::<Endpoint>().expect_err(text);
            let told = format!("{error} {error:?}");
            assert!(!told.contains("hush"), "{text}: {told}");
        }
        let error = "postgres://u:hush@h:5432".parse::<Endpoint>().expect_err("a URL");
        assert!(error.to_string().contains("a host and a port alone"), "{error}");
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, why) in [
            ("", "the port is missing"),
            (":5432", "the host must not be empty"),
            ("a b:5432", "no spaces"),
            ("db1", "the port is missing"),
            ("db1:", "a number from 1"),
            ("db1:0", "a number from 1"),
            ("db1:65536", "a number from 1"),
            ("db1:+5", "a number from 1"),
            ("db1:54x", "a number from 1"),
            ("::1:5432", "in brackets"),
            ("[::1:5432", "closing bracket"),
            ("[::1]", "the port is missing"),
            ("[db1]:5432", "must be an IPv6 address"),
            ("[::1%]:5432", "must be an IPv6 address"),
        ] {
            let error = text.parse::<Endpoint>().expect_err(text).to_string();
            assert!(error.contains(why), "{text}: {error}");
            assert!(error.contains(&format!("{text:?}")), "{text}: {error}");
        }
    }
}
