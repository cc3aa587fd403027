//! The kernel log, in the form that the stress tests are read by:
//! `src/client.rs@221: [INFO ] - passed: 1024001us, thpt: 131063 requests/s`.
//!
//! A line is built from [`Part`]s on the stack, cut at [`LINE_LEN`] bytes. `core::fmt` is not used: it would bring
//! panicking code into the module.

use mitosis_core::wire::Refusal;

use crate::ffi;

/// Longest line in bytes; the kernel itself cuts at about 1,000.
const LINE_LEN: usize = 800;

/// A line being built.
pub struct Line {
    bytes: [u8; LINE_LEN],
    len: usize,
}

impl Default for Line {
    /// An empty line.
    fn default() -> Line {
        Line {
            bytes: [0; LINE_LEN],
            len: 0,
        }
    }
}

impl Line {
    /// Bytes that still fit.
    pub fn room(&self) -> usize {
        LINE_LEN - self.len
    }

    /// Adds bytes, as many as fit.
    pub fn push(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            let Some(place) = self.bytes.get_mut(self.len) else {
                return;
            };
            *place = byte;
            self.len += 1;
        }
    }

    /// Prints the line at a level of `printk`.
    pub fn print(&self, level: Level) {
        // SAFETY: `bytes` holds at least `len` bytes, and C only reads them during the call.
        unsafe { ffi::mitosis_log(level as i32, self.bytes.as_ptr(), self.len as u32) }
    }
}

/// Levels of `printk`, as the log lines use them.
#[derive(Clone, Copy)]
pub enum Level {
    /// KERN_ERR
    Error = 3,
    /// KERN_WARNING
    Warn = 4,
    /// KERN_INFO
    Info = 6,
}

/// What a line can be made of.
pub trait Part {
    /// Adds its text to the line.
    fn put(&self, line: &mut Line);
}

impl Part for &str {
    fn put(&self, line: &mut Line) {
        line.push(self.as_bytes());
    }
}

impl Part for u64 {
    fn put(&self, line: &mut Line) {
        let mut digits = [b'0'; 20];
        let mut rest = *self;
        let mut used = 0;
        for place in digits.iter_mut().rev() {
            *place = b'0' + (rest % 10) as u8;
            rest /= 10;
            used += 1;
            if rest == 0 {
                break;
            }
        }
        line.push(digits.get(20 - used..).unwrap_or(&[]));
    }
}

impl Part for u32 {
    fn put(&self, line: &mut Line) {
        u64::from(*self).put(line);
    }
}

impl Part for usize {
    fn put(&self, line: &mut Line) {
        (*self as u64).put(line);
    }
}

impl Part for i32 {
    fn put(&self, line: &mut Line) {
        if *self < 0 {
            line.push(b"-");
        }
        self.unsigned_abs().put(line);
    }
}

impl Part for Refusal {
    fn put(&self, line: &mut Line) {
        self.code.text().put(line);
        if let Some(reason) = self.reason {
            ": ".put(line);
            reason.text().put(line);
        }
    }
}

/// Adds the source place and the level's tag.
pub fn begin(line: &mut Line, file: &str, number: u32, tag: &str) {
    file.put(line);
    "@".put(line);
    number.put(line);
    ": [".put(line);
    tag.put(line);
    "] - ".put(line);
}

/// A line at a level: `log_at!(Level::Info, "INFO ", "text ", number)`.
#[macro_export]
macro_rules! log_at {
    ($level:expr, $tag:literal, $($part:expr),+ $(,)?) => {{
        let mut line = $crate::log::Line::default();
        $crate::log::begin(&mut line, file!(), line!(), $tag);
        $($crate::log::Part::put(&$part, &mut line);)+
        line.print($level);
    }};
}

/// What happens in good order.
#[macro_export]
macro_rules! info {
    ($($part:expr),+ $(,)?) => { $crate::log_at!($crate::log::Level::Info, "INFO ", $($part),+) };
}

/// What a person should know and the run survives.
#[macro_export]
macro_rules! warning {
    ($($part:expr),+ $(,)?) => { $crate::log_at!($crate::log::Level::Warn, "WARN ", $($part),+) };
}

/// What makes the run fail.
#[macro_export]
macro_rules! error {
    ($($part:expr),+ $(,)?) => { $crate::log_at!($crate::log::Level::Error, "ERROR", $($part),+) };
}
