//! Lines for people, and on a terminal a bar below them that says what the run waits for.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// Where a run's lines go. Off a terminal there is no bar and nothing but the lines.
pub struct Progress {
    bar: Option<ProgressBar>,
    quiet: bool,
}

impl Progress {
    /// For a person or a pipe, whichever stdout is.
    pub fn new() -> Self {
        let bar = std::io::stdout().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner();
            bar.set_style(
                ProgressStyle::with_template("{spinner} {prefix}{msg} [{elapsed}]")
                    .unwrap_or_else(|_| ProgressStyle::default_spinner()),
            );
            bar
        });
        Self { bar, quiet: false }
    }

    /// Shows nothing: for tests.
    pub fn silent() -> Self {
        Self {
            bar: None,
            quiet: true,
        }
    }

    /// Prints one line above the bar.
    pub fn line(&self, line: &str) {
        if self.quiet {
            return;
        }
        let print = || {
            let mut stdout = std::io::stdout().lock();
            // A reader that has gone away (`| head`) must not end the run before it has unloaded its modules.
            let _ = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
        };
        match &self.bar {
            Some(bar) => bar.suspend(print),
            None => print(),
        }
    }

    /// Says what the run does next.
    pub fn step(&self, what: &str) {
        match &self.bar {
            Some(bar) => {
                bar.enable_steady_tick(Duration::from_millis(200));
                bar.set_message(what.to_string());
            }
            None => self.line(&format!("# {what}")),
        }
    }

    /// Shows the cluster's latest throughput on the bar.
    pub fn throughput(&self, requests_per_s: u64) {
        if let Some(bar) = self.bar.as_ref().filter(|_| requests_per_s > 0) {
            bar.set_prefix(format!("{requests_per_s} requests/s "));
        }
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl Default for Progress {
    fn default() -> Self {
        Self::new()
    }
}
