//! What failed calls and lost pages leave in the log. Whoever has the device open can make calls fail as often as it likes,
//! and touch pages that are lost: neither is to fill the log.

use crate::errno::Errno;
use crate::lock::Mutex;
use crate::log::{Line, Part};
use crate::server::pace::Pace;
use crate::thread::now_ns;

#[derive(Default)]
struct Book {
    pace: Pace,
    untold: u64,
}

/// The pace of such lines.
pub struct Complaints {
    book: Mutex<Book>,
}

impl Complaints {
    /// None so far.
    pub fn new() -> Result<Complaints, Errno> {
        Ok(Complaints {
            book: Mutex::new(Book::default())?,
        })
    }

    /// Whether one more line is bearable now; it ends with what this returns.
    pub fn turn(&self) -> Option<Untold> {
        let mut book = self.book.lock();
        let now_ns = now_ns();
        if !book.pace.allows(now_ns) {
            book.untold += 1;
            return None;
        }
        book.pace.told(now_ns);
        Some(Untold(core::mem::take(&mut book.untold)))
    }
}

/// How many were not told before a line.
pub struct Untold(u64);

impl Untold {
    /// There were none.
    pub const NONE: Untold = Untold(0);
}

impl Part for Untold {
    fn put(&self, line: &mut Line) {
        if self.0 > 0 {
            " (and ".put(line);
            self.0.put(line);
            " more before it)".put(line);
        }
    }
}
