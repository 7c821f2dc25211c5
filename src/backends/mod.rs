//! Managers for what people pool most: one feature and one file each.
//!
//! | manager | feature | a connection is | checked by | reset | beyond retrying |
//! |---|---|---|---|---|---|
//! | [`TcpManager`](tcp::TcpManager) | `tcp` | a `tokio::net::TcpStream` | a look at the socket, at each acquire but the first | – | an address that is none |
//! | [`UnixManager`](unix::UnixManager) | `unix` | a `tokio::net::UnixStream` | a look at the socket, at each acquire but the first | – | a path that is none |
//! | [`PostgresManager`](postgres::PostgresManager) | `postgres` | a `tokio_postgres::Client` | `Sync`, no statement | by `PoolMode` | wrong password, user, database |
//! | [`PgWiredManager`](self::pg_wired::PgWiredManager) | `pg-wired` | `pg-wired` 0.4's `AsyncConn` or `WireConn` | a `SELECT` or a `Sync` | requests in flight and open transactions, at each release; `DISCARD ALL` after a transaction | a wrong password, an unknown database, an address that is none |
//! | [`SqlxManager<DB>`](self::sqlx::SqlxManager) | `sqlx` | a connection of `sqlx` 0.9, such as `PgConnection` | `ping` | abandoned queries and open transactions, at each release | a wrong password, an unknown database, an invalid option |
//! | [`MysqlManager`](mysql::MysqlManager) | `mysql` | a [`MysqlConnection`](mysql::MysqlConnection) on `mysql_async` 0.37 | being asked for a number | transactions, unread rows and another database, at each release, or always: `COM_RESET_CONNECTION` | what the server refuses at the login |
//! | [`RedisManager`](redis::RedisManager) | `redis` | a [`RedisConnection`](redis::RedisConnection) on `redis` 1.2 | `PING` | what commands left: `RESET` | what the server refuses at the login |
//! | [`SqliteManager`](sqlite::SqliteManager) | `sqlite` | a [`SqliteConnection`](sqlite::SqliteConnection) on `rusqlite` 0.40 | a read, and a look at the path | transactions, calls that were given up | a file that is no database, or has no place |
//!
//! Each tells where its connections lead, as [`target`](crate::Manager::target): a host and a port, all hosts of
//! PostgreSQL, or the path of a socket or a file, and neither user nor password; nothing where what is before or
//! behind an `@` that is out of place might be a part of one. (redis-rs does not pass on what stands behind a `#`: of a
//! URL with a password in which that is not written `%23`, it takes the user for the host.)
//!
//! Each is a [`Manager`](crate::Manager) and its options, and nothing else: what the pool does is the
//! same for all of them. They are as good a start as any for a manager of your own.
//!
//! Managers that were written for other pools run in [`compat`](crate::compat).
//!
//! # Examples
//!
//! A function that names the type it wants takes `&mut guard`. One that takes any type with a trait wants
//! the library's own: `&mut *guard`, or `&mut **guard` where the backend has a type around it.
//!
#![cfg_attr(all(feature = "postgres", feature = "redis"), doc = "```no_run")]
#![cfg_attr(not(all(feature = "postgres", feature = "redis")), doc = "```ignore")]
//! use millpond::Pool;
//! use millpond::backends::{postgres::PostgresManager, redis::RedisManager};
//! use tokio_postgres::{Client, GenericClient};
//!
//! async fn named(client: &mut Client) -> Result<(), tokio_postgres::Error> {
//!     client.transaction().await?.commit().await
//! }
//!
//! async fn any(client: &mut impl GenericClient) -> Result<(), tokio_postgres::Error> {
//!     client.batch_execute("SELECT 1").await
//! }
//!
//! # async fn example(
//! #     pool: Pool<PostgresManager>,
//! #     cache: Pool<RedisManager>,
//! # ) -> Result<(), Box<dyn std::error::Error>> {
//! let mut guard = pool.acquire().await?;
//! named(&mut guard).await?;
//! any(&mut **guard).await?;
//!
//! let mut guard = cache.acquire().await?; // a `RedisConnection`, which is a `ConnectionLike`
//! redis::cmd("PING").exec_async(&mut *guard).await?;
//! # Ok(()) }
//! ```

#[cfg(any(
    feature = "tcp",
    feature = "postgres",
    feature = "redis",
    feature = "mysql",
    feature = "pg-wired",
    feature = "sqlx"
))]
mod host;
#[cfg(any(feature = "tcp", all(unix, feature = "unix")))]
mod socket;

#[cfg(feature = "mysql")]
pub mod mysql;
#[cfg(feature = "pg-wired")]
pub mod pg_wired;
#[cfg(feature = "postgres")]
pub mod postgres;
#[cfg(feature = "redis")]
pub mod redis;
#[cfg(feature = "sqlite")]
pub mod sqlite;
#[cfg(feature = "sqlx")]
pub mod sqlx;
#[cfg(feature = "tcp")]
pub mod tcp;
#[cfg(all(unix, feature = "unix"))]
pub mod unix;
