//! A throwaway MariaDB server.
//!
//! Not here: what is common to all servers (`mod.rs`).

use super::{Server, answers, common, is_root, program, run, skip};
use std::fs;
use std::path::PathBuf;
use std::process::Command;

/// A running MariaDB server, with a user `millpond`, who needs no password, a user `locked`, whose
/// password is `secret`, and a database `millpond`.
pub struct Mariadb {
    server: Server,
    program: PathBuf,
    options: Vec<String>,
}

common!(Mariadb);

impl Mariadb {
    /// Starts a server with these options, such as `--max-connections=5`, or says that the test is
    /// skipped.
    pub fn start(options: &[&str]) -> Option<Self> {
        let programs = (program(&[], "mariadbd"), program(&[], "mariadb-install-db"));
        let (Some(program), Some(install)) = programs else {
            skip("MariaDB");
            return None;
        };
        let options = options.iter().map(ToString::to_string).collect();
        let server = Self { server: Server::new("mariadb"), program, options };
        let mut command = Command::new(install);
        // A server that starts removes temporary tables from where others may be using theirs.
        command.env("TMPDIR", &server.server.folder);
        command.args(["--no-defaults", "--auth-root-authentication-method=normal"]);
        command.args(["--skip-test-db", "--skip-name-resolve"]).args(as_root());
        run(command.arg(format!("--datadir={}", server.data().display())));
        let users = "CREATE DATABASE millpond;\n\
                     CREATE USER millpond@'127.0.0.1';\n\
                     GRANT ALL ON *.* TO millpond@'127.0.0.1';\n\
                     CREATE USER locked@'127.0.0.1' IDENTIFIED BY 'secret';\n\
                     GRANT ALL ON millpond.* TO locked@'127.0.0.1';\n\
                     CREATE USER local@'127.0.0.1', local@localhost;\n\
                     GRANT ALL ON millpond.* TO local@'127.0.0.1', local@localhost;\n";
        fs::write(server.server.folder.join("init.sql"), users).expect("a file with its users");
        let init = format!("--init-file={}", server.server.folder.join("init.sql").display());
        server.launch(&[init]);
        Some(server)
    }

    /// Starts it again after [`kill`](Self::kill), on the same port and with the same data.
    pub fn restart(&self) {
        self.launch(&[]);
    }

    fn launch(&self, more: &[String]) {
        let address = self.server.address;
        let mut command = Command::new(&self.program);
        command.env("TMPDIR", &self.server.folder);
        // Nothing before this.
        command.arg("--no-defaults").args(as_root());
        command.arg(format!("--datadir={}", self.data().display()));
        command.arg(format!("--socket={}", self.socket().display()));
        command.arg(format!("--pid-file={}", self.server.folder.join("mariadb.pid").display()));
        command.arg(format!("--port={}", address.port()));
        command.args(["--bind-address=127.0.0.1", "--skip-name-resolve", "--skip-log-bin"]);
        command.args(["--innodb-flush-log-at-trx-commit=0", "--innodb-buffer-pool-size=16M"]);
        self.server.spawn(command.args(&self.options).args(more), || answers(address));
    }

    /// A URL for the user `millpond` and its database.
    pub fn url(&self) -> String {
        format!("mysql://millpond@{}/millpond", self.server.address)
    }

    /// Its Unix socket.
    pub fn socket(&self) -> PathBuf {
        self.server.folder.join("mariadb.sock")
    }

    fn data(&self) -> PathBuf {
        self.server.folder.join("data")
    }
}

/// It runs as root only if it is told to.
fn as_root() -> Option<&'static str> {
    is_root().then_some("--user=root")
}
