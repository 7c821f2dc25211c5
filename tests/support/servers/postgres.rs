//! A throwaway PostgreSQL server, and replicas of it.
//!
//! Not here: what is common to all servers (`mod.rs`).

use super::{Server, answers, common, is_root, program, run, skip};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// A running PostgreSQL server, with a superuser `postgres`, a user `millpond`, who needs no
/// password, a user `locked`, whose password is `secret`, and a database `millpond`. It may have
/// replicas.
pub struct Postgres {
    server: Server,
    programs: PathBuf,
    settings: Vec<String>,
}

common!(Postgres);

/// This process's; it goes with it.
static BLANK: OnceLock<Postgres> = OnceLock::new();

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
            let blank = BLANK.get_or_init(Self::blank);
            // With its owner, who is not this process's where that is root.
            run(Command::new("cp").arg("-a").arg(blank.data().join(".")).arg(server.data()));
        })?;
        server.restart();
        Some(server)
    }

    /// A server that has been started once, given its users and its database, and stopped. Each one begins as a
    /// copy of it, which takes a quarter of the time.
    fn blank() -> Self {
        let blank = Self::prepared(&[], &[], |server| {
            let mut initdb = server.command("initdb");
            initdb.args(["--no-sync", "--auth=trust", "--username=postgres", "--encoding=UTF8"]);
            // Less to copy.
            initdb.arg("--wal-segsize=1");
            run(initdb.arg("--no-locale").arg("-D").arg(server.data()));
            let access = "local all all trust\n\
                          host all locked 127.0.0.1/32 scram-sha-256\n\
                          host all all 127.0.0.1/32 trust\n\
                          local replication all trust\n\
                          host replication all 127.0.0.1/32 trust\n";
            fs::write(server.data().join("pg_hba.conf"), access).expect("access rules");
        });
        let blank = blank.expect("the programs of the one that is to begin as its copy");
        blank.restart();
        blank.run_in(
            "postgres",
            "CREATE ROLE millpond LOGIN; CREATE ROLE locked LOGIN PASSWORD 'secret'",
        );
        blank.run_in("postgres", "CREATE DATABASE millpond OWNER millpond");
        blank.stop();
        blank
    }

    /// Starts a replica that follows this server, with this server's settings and some of its own, and
    /// waits until it is read-only and receives what is written here.
    ///
    /// It goes on with that by itself after either of the two was away. A replica of a replica follows
    /// that one.
    #[must_use]
    pub fn replica(&self, settings: &[&str]) -> Self {
        // One that allows fewer connections than its primary refuses to start.
        let settings: Vec<&str> =
            self.settings.iter().map(String::as_str).chain(settings.iter().copied()).collect();
        let replica = Self::prepared(&settings, &[], |replica| {
            let mut backup = replica.command("pg_basebackup");
            backup.args(["--no-sync", "--write-recovery-conf", "--wal-method=stream"]);
            backup.args(["--checkpoint=fast", "--username=postgres", "--host=127.0.0.1"]);
            backup.arg(format!("--port={}", self.server.address.port()));
            run(backup.arg("-D").arg(replica.data()));
        });
        let replica = replica.expect("the programs that this server runs");
        replica.restart();
        replica.server.wait_until("stream", || replica.is_streaming());
        replica
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

    /// Has it end by itself, which tells its clients so (57P01), and waits until it has. A primary
    /// first lets its replicas have all that was written.
    pub fn stop(&self) {
        self.server.stop("-INT");
    }

    /// Starts it again after [`kill`](Self::kill) or [`stop`](Self::stop), on the same port and with
    /// the same data. It is what it was: a replica follows its primary, if that is there, and a primary
    /// is one also where a replica has been promoted meanwhile, and knows nothing of it.
    ///
    /// # Panics
    ///
    /// If it runs.
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
            "shared_buffers=16MB".to_owned(),
            // What replicas need; the last two let one that was away go on, and do so at once.
            "wal_level=replica".to_owned(),
            "max_wal_senders=10".to_owned(),
            "hot_standby=on".to_owned(),
            "wal_keep_size=64MB".to_owned(),
            "wal_retrieve_retry_interval=100ms".to_owned(),
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

    /// Makes a replica a primary, and waits until it can be written to. Its former primary is left as
    /// it is.
    ///
    /// # Panics
    ///
    /// If it is no replica.
    #[track_caller]
    pub fn promote(&self) {
        assert_eq!(self.run_in("postgres", "SELECT pg_promote(true, 60)"), "t", "{}", self.log());
        assert!(!self.is_replica());
    }

    /// Whether it is a replica, to which nobody can write.
    #[track_caller]
    pub fn is_replica(&self) -> bool {
        self.run_in("postgres", "SELECT pg_is_in_recovery()") == "t"
    }

    /// Whether it is a replica that is connected to its primary.
    #[track_caller]
    pub fn is_streaming(&self) -> bool {
        let sql = "SELECT pg_is_in_recovery() AND EXISTS \
                   (SELECT FROM pg_stat_wal_receiver WHERE status = 'streaming')";
        self.run_in("postgres", sql) == "t"
    }

    /// Waits until all that has been committed here so far can be read on a replica.
    #[track_caller]
    pub fn caught_up(&self, replica: &Self) {
        let written = match self.is_replica() {
            true => "pg_last_wal_replay_lsn()",
            false => "pg_current_wal_flush_lsn()",
        };
        let written = self.run_in("postgres", &format!("SELECT {written}"));
        let sql = format!("SELECT pg_last_wal_replay_lsn() >= '{written}'");
        let what = format!("catch up with {} to {written}", self.server.address);
        replica.server.wait_until(&what, || replica.run_in("postgres", &sql) == "t");
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
        // A server that stands still takes connections and never answers.
        psql.env("PGCONNECT_TIMEOUT", "20");
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
