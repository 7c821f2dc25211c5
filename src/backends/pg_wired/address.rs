//! Where a URL leads.
//!
//! Not here: options after a question mark, of which pg-wired has others than libpq.

/// What is wrong with a URL.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the URL of the database {0}")]
pub struct InvalidUrl(&'static str);

pub(super) struct Parts {
    pub(super) address: String,
    pub(super) user: String,
    pub(super) password: String,
    pub(super) database: String,
}

pub(super) fn parse(url: &str) -> Result<Parts, InvalidUrl> {
    let rest = url.strip_prefix("postgresql://").or_else(|| url.strip_prefix("postgres://"));
    let rest = rest.ok_or(InvalidUrl("does not begin with postgresql://"))?;
    if rest.contains(['?', '#']) {
        return Err(InvalidUrl("has options, which are not read from it"));
    }
    let (authority, database) = rest.split_once('/').unwrap_or((rest, ""));
    if database.contains(['/', '@']) {
        // The slash before may be one of a password, of which the rest would be taken for a host.
        return Err(InvalidUrl("has a / or @ that is not written %2F or %40"));
    }
    let (user, host) = authority.rsplit_once('@').unwrap_or(("", authority));
    let (user, password) = user.split_once(':').unwrap_or((user, ""));
    if host.is_empty() || host.starts_with(':') {
        return Err(InvalidUrl("names no host"));
    }
    // The colons inside the brackets of an IPv6 address are no ports.
    let has_port = host.rsplit_once(':').is_some_and(|(_, port)| !port.contains(']'));
    let address = if has_port { host.to_owned() } else { format!("{host}:5432") };
    let user = or(decode(user)?, "postgres");
    let database = or(decode(database)?, &user);
    Ok(Parts { address, password: decode(password)?, user, database })
}

fn or(given: String, default: &str) -> String {
    if given.is_empty() { default.to_owned() } else { given }
}

/// Undoes percent-encoding.
fn decode(text: &str) -> Result<String, InvalidUrl> {
    const WRONG: InvalidUrl = InvalidUrl("is not percent-encoded as it should be");
    let mut parts = text.split('%');
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        let digits = part.get(..2).filter(|two| two.bytes().all(|b| b.is_ascii_hexdigit()));
        let byte = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()).ok_or(WRONG)?;
        bytes.push(byte);
        bytes.extend_from_slice(&part.as_bytes()[2..]);
    }
    String::from_utf8(bytes).map_err(|_| WRONG)
}
