//! Managers for what people pool most: one feature and one file each.
//!
//! | manager | feature | a connection is | checked by | reset | beyond retrying |
//! |---|---|---|---|---|---|
//! | [`PgWiredManager`](self::pg_wired::PgWiredManager) | `pg-wired` | `pg-wired` 0.4's `AsyncConn` or `WireConn` | a `Sync` | requests in flight and open transactions, at each release; `DISCARD ALL` after a transaction | a wrong password, an unknown database, an address that is none |
//! | [`SqlxManager<DB>`](self::sqlx::SqlxManager) | `sqlx` | a connection of `sqlx` 0.9, such as `PgConnection` | `ping` | abandoned queries and open transactions, at each release | a wrong password, an unknown database, an invalid option |
//! | [`TcpManager`](tcp::TcpManager) | `tcp` | a `tokio::net::TcpStream` | a look at the socket | – | an address that is none |
//! | [`UnixManager`](unix::UnixManager) | `unix` | a `tokio::net::UnixStream` | a look at the socket | – | a path that is none |
//!
//! Each is a [`Manager`](crate::Manager) and its options, and nothing else: what the pool does is the
//! same for all of them. They are as good a start as any for a manager of your own.
//!
//! Managers that were written for other pools run in [`compat`](crate::compat).

#[cfg(any(feature = "tcp", all(unix, feature = "unix")))]
mod socket;

#[cfg(feature = "pg-wired")]
pub mod pg_wired;
#[cfg(feature = "sqlx")]
pub mod sqlx;
#[cfg(feature = "tcp")]
pub mod tcp;
#[cfg(all(unix, feature = "unix"))]
pub mod unix;
