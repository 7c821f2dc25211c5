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
    /// The host: a name or an address, the latter without brackets.
    pub host: String,
    /// The port: 1 to 65,535.
    pub port: u16,
}

/// Something is no endpoint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{input:?} is no endpoint: {rule}")]
pub struct ParseEndpointError {
    input: String,
    rule: &'static str,
}

impl Endpoint {
    /// This port of this host.
    #[must_use]
    pub fn new(host: impl Into<String>, port: u16) -> Self {
        Self { host: host.into(), port }
    }
}

impl From<SocketAddr> for Endpoint {
    fn from(address: SocketAddr) -> Self {
        Self::new(address.ip().to_string(), address.port())
    }
}

impl FromStr for Endpoint {
    type Err = ParseEndpointError;

    fn from_str(input: &str) -> Result<Self, Self::Err> {
        let wrong = |rule| ParseEndpointError { input: input.to_owned(), rule };
        let (host, port) = match input.strip_prefix('[') {
            Some(rest) => {
                let (host, rest) =
                    rest.split_once(']').ok_or_else(|| wrong("the closing bracket is missing"))?;
                if !matches!(host.parse(), Ok(IpAddr::V6(_))) {
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
        for text in ["db1:5432", "10.0.0.1:1", "[::1]:65535", "a.b-c.example:80"] {
            let endpoint: Endpoint = text.parse().expect("an endpoint");
            assert_eq!(endpoint.to_string(), text);
        }
        let address: SocketAddr = "[2001:db8::1]:5432".parse().expect("an address");
        assert_eq!(Endpoint::from(address).to_string(), "[2001:db8::1]:5432");
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
        ] {
            let error = text.parse::<Endpoint>().expect_err(text).to_string();
            assert!(error.contains(why), "{text}: {error}");
            assert!(error.contains(&format!("{text:?}")), "{text}: {error}");
        }
    }
}
