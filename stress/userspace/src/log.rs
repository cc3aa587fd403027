//! Lines in the form of the modules': `[  +1.023995] src/bin/rpc-client.rs@221: [INFO ] - text`.

use std::fmt::Arguments;
use std::io::Write;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

static PREVIOUS: Mutex<Option<Instant>> = Mutex::new(None);

/// Where the program's words go: lines for people and for the runner, or none, when its result alone is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Log {
    /// No lines but errors, which go to standard error.
    pub quiet: bool,
}

impl Log {
    /// Prints one.
    pub fn line(self, level: &str, file: &str, line: u32, text: Arguments<'_>) {
        let mut previous = PREVIOUS.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let delta = now - previous.replace(now).unwrap_or(now);
        let file = file.find("src/").map_or(file, |at| &file[at..]);
        let delta = format!("+{}.{:06}", delta.as_secs(), delta.subsec_micros());
        let text = format!("[{delta:>11}] {file}@{line}: [{level:<5}] - {text}\n");
        // Whoever reads it may have gone.
        let _ = match self.quiet {
            true if level == "INFO" => Ok(()),
            true => std::io::stderr().lock().write_all(text.as_bytes()),
            false => std::io::stdout().lock().write_all(text.as_bytes()),
        };
    }
}

/// Prints a line of level INFO.
#[macro_export]
macro_rules! info {
    ($log:expr, $($text:tt)*) => { $log.line("INFO", file!(), line!(), format_args!($($text)*)) };
}

/// Prints a line of level WARN.
#[macro_export]
macro_rules! warning {
    ($log:expr, $($text:tt)*) => { $log.line("WARN", file!(), line!(), format_args!($($text)*)) };
}

/// Prints a line of level ERROR.
#[macro_export]
macro_rules! error {
    ($log:expr, $($text:tt)*) => { $log.line("ERROR", file!(), line!(), format_args!($($text)*)) };
}
