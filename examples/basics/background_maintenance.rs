//! What a pool does by the clock, as it happens: keeps idle connections alive, ends old ones and
//! replaces them, refills `min_idle`, reports a leak, and does nothing while it is paused.
//!
//! ```sh
//! cargo run --example background_maintenance -- --seconds 6
//! ```

#![expect(clippy::print_stdout, reason = "the output is what the example is for")]

use clap::Parser;
use millpond::{CheckPolicy, Hooks, Leak, Manager, Pool};
use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

#[derive(Parser)]
struct Arguments {
    /// How long to watch, from 4 seconds.
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u64).range(4..))]
    seconds: u64,
}

/// Connections that are only numbers, and say what is done with them.
struct Talkative {
    began: Instant,
    opened: AtomicU64,
}

impl Talkative {
    fn say(&self, what: &str) {
        println!("{:5.2} s  {what}", self.began.elapsed().as_secs_f64());
    }
}

impl Manager for Talkative {
    type Connection = u64;
    type Error = Infallible;

    async fn connect(&self) -> Result<u64, Infallible> {
        let number = self.opened.fetch_add(1, Ordering::Relaxed) + 1;
        self.say(&format!("connection {number} is opened"));
        Ok(number)
    }

    async fn check(&self, number: &mut u64) -> Result<(), Infallible> {
        self.say(&format!("connection {number} is checked: it has been idle for a while"));
        Ok(())
    }

    async fn close(&self, number: u64) {
        self.say(&format!("connection {number} is closed"));
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let Arguments { seconds } = Arguments::parse();
    let began = Instant::now();
    let hooks = Hooks::new().on_leak(move |leak: &Leak| {
        println!("{:5.2} s  {leak}", began.elapsed().as_secs_f64());
    });
    // Times that nobody would choose, so that there is something to see.
    let pool = Pool::builder(Talkative { began, opened: AtomicU64::new(0) })
        .max_size(4)
        .min_idle(2)
        .max_lifetime(Duration::from_secs(3))
        .keepalive_interval(Duration::from_secs(1))
        .check(CheckPolicy::Never)
        .leak_after(Duration::from_millis(700))
        .maintenance_interval(Duration::from_millis(100))
        .hooks(hooks)
        .build()
        .await?;
    let say = |what: &str| pool.manager().say(what);

    say("acquired: fewer than two are idle now, so another one is opened");
    let held = pool.acquire().await?;
    tokio::time::sleep(Duration::from_millis(1_200)).await;
    say("released");
    drop(held);

    pool.maintenance().pause();
    say("paused: for a second nothing happens");
    tokio::time::sleep(Duration::from_secs(1)).await;
    pool.maintenance().resume();
    say("resumed: what became due meanwhile is done");

    let left = Duration::from_secs(seconds).saturating_sub(began.elapsed());
    tokio::time::sleep(left).await;
    let report = pool.drain(Duration::from_secs(1)).await;
    say(&format!("drained: {report}"));
    let metrics = pool.metrics();
    println!(
        "{} opened, {} ended for their age, {} checks, {} leak that came back",
        metrics.created, metrics.closed.lifetime, metrics.checks, metrics.late_returns
    );
    Ok(())
}
