//! A throwaway Chromium, behind its driver.
//!
//! Not here: what is common to all servers (`mod.rs`), and a client of the driver.

use super::{Server, answers, program, skip};
use std::path::PathBuf;
use std::process::Command;

/// A driver that starts browsers without a screen. They end with it, and nothing that they do goes
/// beyond loopback.
pub struct Browser {
    server: Server,
    chromium: PathBuf,
}

impl Browser {
    /// Starts the driver, or says that the test is skipped.
    pub fn start() -> Option<Self> {
        let programs = (program(&[], "chromedriver"), program(&[], "chromium"));
        let (Some(driver), Some(chromium)) = programs else {
            skip("Chromium with its driver");
            return None;
        };
        let server = Server::new("browser");
        let address = server.address;
        let mut command = Command::new(driver);
        command.arg(format!("--port={}", address.port()));
        // What it writes, it writes there.
        command.envs([("HOME", &server.folder), ("TMPDIR", &server.folder)]);
        server.spawn(&mut command, || answers(address));
        Some(Self { server, chromium })
    }

    /// Where the driver is asked for sessions.
    pub fn url(&self) -> String {
        format!("http://{}", self.server.address)
    }

    /// The program of the browser.
    pub fn chromium(&self) -> &str {
        self.chromium.to_str().expect("a path in letters")
    }

    /// The command line of a browser that runs as root in a container, and calls nobody.
    pub fn arguments(&self) -> Vec<String> {
        let profile = self.server.folder.join("profile");
        let mut arguments = vec![format!("--user-data-dir={}", profile.display())];
        let flags = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-crash-reporter",
            "--disable-extensions",
            "--disable-sync",
            "--no-first-run",
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        ];
        arguments.extend(flags.map(str::to_owned));
        arguments
    }
}
