//! A throwaway PostgreSQL server.
//!
//! Not here: what is common to all servers (`mod.rs`).

use super::{Server, answers, common, is_root, program, run, skip};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A running PostgreSQL server, with a superuser `postgres`, a user `millpond`, who needs no
/// password, a user `locked`, whose password is `secret`, and a database `millpond`.
pub struct Postgres {
    server: Server,
    programs: PathBuf,
    settings: Vec<String>,
}

common!(Postgres);

impl Postgres {
    /// Starts a server with these settings, such as `max_connections=5`, or says that the test is
    /// skipped.
    pub fn start(settings: &[&str]) -> Option<Self> {
        Self::start_with(settings, &[])
    }

    /// The same with files, a name and its content each, beside the folder of its data: where that is
    /// `.`, they are in `..`.
    pub fn start_with(settings: &[&str], files: &[(&str, &str)]) -> Option<Self> {
        let server = Self::prepared(settings, files, |server| {
            let mut initdb = server.command("initdb");
            initdb.args(["--no-sync", "--auth=trust", "--username=postgres", "--encoding=UTF8"]);
            run(initdb.arg("--no-locale").arg("-D").arg(server.data()));
            let access = "local all all trust\n\
                          host all locked 127.0.0.1/32 scram-sha-256\n\
                          host all all 127.0.0.1/32 trust\n\
                          local replication all trust\n\
                          host replication all 127.0.0.1/32 trust\n";
            fs::write(server.data().join("pg_hba.conf"), access).expect("access rules");
        })?;
        server.restart();
        server.run_in(
            "postgres",
            "CREATE ROLE millpond LOGIN; CREATE ROLE locked LOGIN PASSWORD 'secret'",
        );
        server.run_in("postgres", "CREATE DATABASE millpond OWNER millpond");
        Some(server)
    }

    /// Starts a standby that follows `primary`, with settings of its own.
    pub fn standby(primary: &Self, settings: &[&str]) -> Option<Self> {
        let server = Self::prepared(settings, &[], |server| {
            let mut backup = server.command("pg_basebackup");
            backup.args(["--no-sync", "--write-recovery-conf", "--checkpoint=fast"]);
            backup.args(["--username=postgres", "--host=127.0.0.1"]);
            backup.arg(format!("--port={}", primary.address().port()));
            run(backup.arg("-D").arg(server.data()));
        })?;
        server.restart();
        Some(server)
    }

    fn prepared(
        settings: &[&str],
        files: &[(&str, &str)],
        prepare: impl FnOnce(&Self),
    ) -> Option<Self> {
        let Some(programs) = programs() else {
            skip("PostgreSQL");
            return None;
        };
        let server = Server::new("postgres");
        let settings = settings.iter().map(ToString::to_string).collect();
        let server = Self { server, programs, settings };
        let data = server.data();
        fs::create_dir(&data).expect("a folder for its data");
        run(Command::new("chmod").arg("700").arg(&data));
        for (name, content) in files {
            let file = server.server.folder.join(name);
            fs::write(&file, content).expect("a file of the server's");
            run(Command::new("chmod").arg("600").arg(&file));
        }
        if is_root() {
            // It refuses to run as root.
            run(Command::new("chown")
                .arg("-R")
                .arg("postgres:postgres")
                .arg(&server.server.folder));
        }
        prepare(&server);
        Some(server)
    }

    /// Starts it again after [`kill`](Self::kill), on the same port and with the same data.
    pub fn restart(&self) {
        let address = self.server.address;
        let mut command = self.command("postgres");
        command.arg("-D").arg(self.data());
        let folder = self.socket_folder();
        let settings = [
            "listen_addresses=127.0.0.1".to_owned(),
            format!("port={}", address.port()),
            format!("unix_socket_directories={}", folder.display()),
            "fsync=off".to_owned(),
            "log_line_prefix=%m [%p] ".to_owned(),
        ];
        for setting in settings.iter().chain(&self.settings) {
            command.arg("-c").arg(setting);
        }
        self.server.spawn(&mut command, || {
            let mut ready = self.command("pg_isready");
            ready.arg("--quiet").arg("--host=127.0.0.1").arg(format!("--port={}", address.port()));
            answers(address) && ready.status().is_ok_and(|status| status.success())
        });
    }

    /// Makes a standby a primary, and waits until it is one.
    pub fn promote(&self) {
        self.run_in("postgres", "SELECT pg_promote(true, 60)");
    }

    /// Runs SQL in the database `millpond` as the superuser; answers with what it prints, a row a
    /// line and columns separated by `|`.
    #[track_caller]
    pub fn run(&self, sql: &str) -> String {
        self.run_in("millpond", sql)
    }

    #[track_caller]
    fn run_in(&self, database: &str, sql: &str) -> String {
        let mut psql = Command::new(self.programs.join("psql"));
        psql.args(["--no-psqlrc", "--quiet", "--tuples-only", "--no-align"]);
        psql.args(["--set=ON_ERROR_STOP=1", "--username=postgres", "--host=127.0.0.1"]);
        psql.arg(format!("--port={}", self.server.address.port()));
        run(psql.arg(format!("--dbname={database}")).arg("--command").arg(sql)).trim().to_owned()
    }

    /// A URL for the user `millpond` and its database.
    pub fn url(&self) -> String {
        format!("postgresql://millpond@{}/millpond", self.server.address)
    }

    /// The folder of its Unix socket.
    pub fn socket_folder(&self) -> PathBuf {
        self.server.folder.clone()
    }

    fn data(&self) -> PathBuf {
        self.server.folder.join("data")
    }

    /// A server program, as a user who is not root.
    fn command(&self, name: &str) -> Command {
        let program = self.programs.join(name);
        let mut command = if is_root() {
            let mut command = Command::new("setpriv");
            command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]).arg(program);
            command
        } else {
            Command::new(program)
        };
        command.current_dir(&self.server.folder);
        command
    }
}

/// Where the newest installed version's programs are.
fn programs() -> Option<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut folders: Vec<PathBuf> = versions.map(|version| version.path().join("bin")).collect();
    let number = |folder: &PathBuf| {
        let version = folder.parent().and_then(Path::file_name);
        version.and_then(|version| version.to_str()?.parse::<u32>().ok())
    };
    folders.sort_by_key(|folder| std::cmp::Reverse(number(folder)));
    program(&folders, "postgres")?.parent().map(Path::to_owned)
}
