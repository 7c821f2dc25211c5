//! A throwaway Redis server.
//!
//! Not here: what is common to all servers (`mod.rs`).

use super::{Server, answers, common, program, skip};
use std::path::PathBuf;
use std::process::Command;

/// A running Redis server that keeps nothing on disk.
pub struct Redis {
    server: Server,
    program: PathBuf,
    options: Vec<String>,
}

common!(Redis);

impl Redis {
    /// Starts a server with these options, such as `--requirepass secret`, a word each, or says that
    /// the test is skipped.
    pub fn start(options: &[&str]) -> Option<Self> {
        let Some(program) = program(&[], "redis-server") else {
            skip("Redis");
            return None;
        };
        let options = options.iter().map(ToString::to_string).collect();
        let server = Self { server: Server::new("redis"), program, options };
        server.restart();
        Some(server)
    }

    /// Starts it again after [`kill`](Self::kill), on the same port and empty.
    pub fn restart(&self) {
        let address = self.server.address;
        let mut command = Command::new(&self.program);
        command.args(["--bind", "127.0.0.1", "--port", &address.port().to_string()]);
        command.args(["--save", "", "--appendonly", "no", "--daemonize", "no"]);
        command.arg("--unixsocket").arg(self.socket());
        command.arg("--dir").arg(&self.server.folder).args(&self.options);
        self.server.spawn(&mut command, || answers(address));
    }

    /// A URL for its database 0.
    pub fn url(&self) -> String {
        format!("redis://{}/0", self.server.address)
    }

    /// Its Unix socket.
    pub fn socket(&self) -> PathBuf {
        self.server.folder.join("redis.sock")
    }
}
