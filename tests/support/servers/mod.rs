//! Throwaway servers of databases, and a browser: each on a free loopback port, with its files in a
//! folder of its own.
//!
//! ```ignore
//! let Some(server) = Postgres::start(&[]) else { return };   // says that the test is skipped
//! server.run("CREATE TABLE …");
//! server.kill();                                             // as `kill -9` does, children too
//! server.restart();                                          // on the same port, with the same data
//!
//! let replica = server.replica(&[]);                         // a copy that follows it
//! server.caught_up(&replica);                                // what is written can be read there
//! replica.promote();                                         // and now it follows nobody
//! ```
//!
//! A server stops when it is dropped, and when this process ends in whatever way: a shell that waits
//! for the end of a pipe from here stops it and removes its folder.
//!
//! All calls block until what they say is so. A test with a runtime makes them from its own body, which
//! has a thread of its own where the runtime is `multi_thread`, or within `block_in_place`.
//!
//! Where a server's programs are not installed, its tests are skipped, and say so;
//! `MILLPOND_REQUIRE_SERVERS=1` makes that a failure.
//!
//! Not here: any client of a database, or what a browser is told.

mod browser;
mod mariadb;
mod postgres;
mod redis;

pub use self::browser::Browser;
pub use self::mariadb::Mariadb;
pub use self::postgres::Postgres;
pub use self::redis::Redis;

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What a server's processes do is read from `/proc`, as Linux has it.
const ON_LINUX: bool = cfg!(target_os = "linux");

/// How long a server may take to start or to stop. They share the machine with the tests.
const START: Duration = Duration::from_secs(60);

/// What all servers have in common: a folder, a port, and a process that may be killed and started
/// again.
struct Server {
    what: &'static str,
    folder: PathBuf,
    address: SocketAddr,
    process: Mutex<Option<Child>>,
    /// Its end stops the server and removes the folder.
    watchdog: Mutex<Option<(Child, ChildStdin)>>,
}

/// Whether this test is to be skipped for want of a program, which is then said.
///
/// # Panics
///
/// If servers are required.
fn skip(what: &str) {
    let required = std::env::var_os("MILLPOND_REQUIRE_SERVERS").is_some_and(|value| value == "1");
    let why = if ON_LINUX { "is not installed" } else { "is started by the tests on Linux only" };
    assert!(!required, "{what} {why}, and MILLPOND_REQUIRE_SERVERS is 1");
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test").to_owned();
    // Not `eprintln`, which the test harness would keep to itself.
    drop(std::io::Write::write_all(
        &mut std::io::stderr(),
        format!("skipped: {test}: {what} {why}\n").as_bytes(),
    ));
}

/// The program of this name, in one of the folders or on the path. None where its processes could not be seen.
fn program(folders: &[PathBuf], name: &str) -> Option<PathBuf> {
    if !ON_LINUX {
        return None;
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let also = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/usr/local/sbin".into()]);
    folders.iter().cloned().chain(also).map(|folder| folder.join(name)).find(|file| file.is_file())
}

/// A program that a test asks for its opinion; without it the test is skipped, as without a server.
pub fn tool(name: &str) -> Option<PathBuf> {
    let found = program(&[], name);
    if found.is_none() {
        skip(name);
    }
    found
}

/// Whether this process runs as root.
fn is_root() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let uid = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    uid.and_then(|uid| uid.split_whitespace().next()) == Some("0")
}

/// A port that stays free for one server, also while it is down, and a folder that says so to other
/// test programs for as long as it is there. Not one of those that systems give to clients.
fn free_port() -> (SocketAddr, PathBuf) {
    const FIRST: u16 = 20_000;
    const COUNT: u16 = 10_000;
    let start = (std::process::id().wrapping_mul(97) % u32::from(COUNT)) as u16;
    for step in 0..COUNT {
        let port = FIRST + (start + step) % COUNT;
        let claim = std::env::temp_dir().join(format!("millpond-port-{port}"));
        if fs::create_dir(&claim).is_err() {
            continue;
        }
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        if TcpListener::bind(address).is_ok() {
            return (address, claim);
        }
        // Somebody else's server.
        drop(fs::remove_dir(claim));
    }
    panic!("all ports are taken");
}

/// Runs a command to its end, or panics with what it has said.
#[track_caller]
fn run(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{said}", output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

impl Server {
    /// A folder and a port for a server, and the shell that will clean up after it.
    fn new(what: &'static str) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("millpond-{what}-{}-{number}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        fs::create_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        // Servers that refuse to run as root must be able to enter it.
        run(Command::new("chmod").arg("755").arg(&folder));
        // The children first: they may have been stopped, and would not see their parent's end. Nor
        // does it have any more of them meanwhile.
        let (address, claim) = free_port();
        let script = r#"
            descent() {
                for child in $(cat "/proc/$1"/task/*/children 2>/dev/null); do descent "$child"; done
                echo "$1"
            }
            read -r _
            pid=$(cat "$1/pid" 2>/dev/null) && kill -STOP "$pid" 2>/dev/null &&
                kill -KILL $(descent "$pid") 2>/dev/null
            for _ in 1 2 3 4 5 6 7 8 9 10; do
                rm -rf "$1" 2>/dev/null && break
                sleep 0.1
            done
            rmdir "$2"
        "#;
        let mut watchdog = Command::new("sh")
            .args(["-c", script, "watchdog"])
            .arg(&folder)
            .arg(&claim)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            // Whoever ends a whole group of processes must not end the one that cleans up.
            .process_group(0)
            .spawn()
            .expect("a shell");
        let pipe = watchdog.stdin.take().expect("it is piped");
        Self {
            what,
            folder,
            address,
            process: Mutex::new(None),
            watchdog: Mutex::new(Some((watchdog, pipe))),
        }
    }

    fn log_file(&self) -> PathBuf {
        self.folder.join("log")
    }

    /// What the server has written to its log so far.
    fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    /// Starts the process, and waits until it is `ready`.
    ///
    /// # Panics
    ///
    /// If it runs already, or does not start.
    fn spawn(&self, command: &mut Command, ready: impl Fn() -> bool) {
        // A second process would end by itself, but the first one would be forgotten.
        assert!(!self.pids().into_iter().any(is_running), "{} runs already", self.what);
        self.forget();
        let log = File::options().create(true).append(true).open(self.log_file());
        let log = log.expect("a log file");
        let also = log.try_clone().expect("a second handle to it");
        command.stdin(Stdio::null()).stdout(log).stderr(also).process_group(0);
        let child = command.spawn();
        let child = child.unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let pid = child.id();
        fs::write(self.folder.join("pid"), pid.to_string()).expect("its number is noted");
        *self.process.lock().unwrap_or_else(PoisonError::into_inner) = Some(child);
        self.wait_until("start", || {
            assert!(is_running(pid), "{} has ended\n{}", self.what, self.log());
            ready()
        });
    }

    /// The server's process and all that come from it, itself last.
    fn pids(&self) -> Vec<u32> {
        let process = self.process.lock().unwrap_or_else(PoisonError::into_inner);
        process.as_ref().map(|process| descent(process.id())).unwrap_or_default()
    }

    /// The same after the process has been stopped where it stands (SIGSTOP), so that no child comes
    /// to be that is not among them.
    fn halted(&self) -> Vec<u32> {
        let process = self.process.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(pid) = process.as_ref().map(Child::id) else { return Vec::new() };
        signal("-STOP", &[pid]);
        self.wait_until("stand still", || !matches!(state(pid), Some('R' | 'S' | 'D')));
        descent(pid)
    }

    /// Stops all its processes where they stand.
    fn freeze(&self) {
        signal("-STOP", &self.halted());
    }

    /// Ends the server at once, without letting it say goodbye.
    fn kill(&self) {
        let pids = self.halted();
        signal("-KILL", &pids);
        self.forget();
        self.wait_until("end", || !pids.iter().any(|pid| is_running(*pid)));
    }

    /// Has the server end by itself, and waits until it has.
    fn stop(&self, word: &str) {
        let pids = self.pids();
        let Some(pid) = pids.last() else { return };
        signal(word, &[*pid]);
        self.wait_until("end", || !pids.iter().any(|pid| is_running(*pid)));
        self.forget();
    }

    /// Takes note that the process ends or has ended.
    fn forget(&self) {
        let process = self.process.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(mut process) = process else { return };
        // As long as nobody has waited for it, its number is not given to another process, which the
        // watchdog would kill.
        drop(fs::remove_file(self.folder.join("pid")));
        drop(process.wait());
    }

    #[track_caller]
    fn wait_until(&self, what: &str, condition: impl Fn() -> bool) {
        let began = Instant::now();
        while !condition() {
            assert!(began.elapsed() < START, "{} does not {what}\n{}", self.what, self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
        let watchdog = self.watchdog.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((mut watchdog, pipe)) = watchdog {
            drop(pipe);
            drop(watchdog.wait());
        }
    }
}

/// A process and those that it and its own have started and that have not ended, itself last.
fn descent(pid: u32) -> Vec<u32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    let all: String = lists.collect();
    let children = all.split_whitespace().filter_map(|pid| pid.parse().ok());
    children.flat_map(descent).chain([pid]).collect()
}

/// Sends a signal, such as `-KILL`, to those of these processes that are still there.
fn signal(word: &str, pids: &[u32]) {
    let words = pids.iter().map(u32::to_string);
    // It fails if one of them has ended already.
    let sent = Command::new("kill").arg(word).args(words).stderr(Stdio::null()).status();
    sent.expect("`kill`, of Debian's package procps, can be run");
}

/// What a process does, in the letter that `ps` has for it, if there is such a process.
fn state(pid: u32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // It follows the name, which stands in brackets.
    stat.rsplit_once(") ")?.1.chars().next()
}

/// Whether a process exists and is not merely waiting for somebody to ask how it ended.
fn is_running(pid: u32) -> bool {
    state(pid).is_some_and(|state| !matches!(state, 'Z' | 'X'))
}

/// Whether somebody listens there.
fn answers(address: SocketAddr) -> bool {
    TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok()
}

/// What is the same for every server.
macro_rules! common {
    ($server:ident) => {
        impl $server {
            /// Where it listens on loopback.
            pub fn address(&self) -> std::net::SocketAddr {
                self.server.address
            }

            /// Ends it and all its processes at once, as `kill -9` does. Clients see their
            /// connections break.
            pub fn kill(&self) {
                self.server.kill();
            }

            /// Stops all its processes where they stand (SIGSTOP): connections stay, and nobody
            /// answers.
            pub fn freeze(&self) {
                self.server.freeze();
            }

            /// Lets them go on.
            pub fn thaw(&self) {
                super::signal("-CONT", &self.server.pids());
            }

            /// What it has written to its log so far.
            pub fn log(&self) -> String {
                self.server.log()
            }
        }
    };
}
use common;
