//! Records of `/dev/kmsg` (the kernel's `Documentation/ABI/testing/dev-kmsg`) and how a line is shown.

/// One record of a kernel log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Severity: 0 emergency, 3 error, 4 warning, 6 information.
    pub level: u8,
    /// Counts the records of a machine; a gap is records that were overwritten before they were read.
    pub sequence: u64,
    /// Since the machine's boot.
    pub time_us: u64,
    /// The message.
    pub text: String,
}

impl Record {
    /// Parses `prefix;text`, `prefix` being `priority,sequence,time_us,flags` and possibly more fields.
    ///
    /// `None` for anything else, such as the ` KEY=value` lines that follow a record.
    pub fn parse(line: &str) -> Option<Self> {
        let (prefix, text) = line.split_once(';')?;
        let mut fields = prefix.split(',');
        let priority: u32 = fields.next()?.parse().ok()?;
        let sequence = fields.next()?.parse().ok()?;
        let time_us = fields.next()?.parse().ok()?;
        Some(Self {
            level: (priority & 7) as u8,
            sequence,
            time_us,
            text: unescape(text),
        })
    }

    /// A line of a program's, which has neither number nor time.
    pub fn said(line: &str) -> Self {
        let text: String = line
            .trim_end()
            .chars()
            .map(|c| if c.is_control() && c != '\t' { ' ' } else { c })
            .collect();
        Self {
            level: 6,
            sequence: 0,
            time_us: 0,
            text,
        }
    }
}

/// The kernel writes what is not printable as `\xNN`. Printable characters come back; control characters stay escaped,
/// because a log line must not steer a terminal.
fn unescape(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let escaped = tail
            .strip_prefix(b"x")
            .and_then(|hex| hex.get(..2))
            .filter(|_| first == b'\\')
            .and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok())
            .filter(|&byte| byte >= 0x20 && byte != 0x7f);
        match escaped {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            None => {
                bytes.push(if first.is_ascii_control() && first != b'\t' {
                    b' '
                } else {
                    first
                });
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A line as it is shown: `@val02     [  +1.023995] text`, with the seconds since the host's line before.
pub fn show(host: &str, previous_us: Option<u64>, record: &Record) -> String {
    let delta_us = record
        .time_us
        .saturating_sub(previous_us.unwrap_or(record.time_us));
    let delta = format!("+{}.{:06}", delta_us / 1_000_000, delta_us % 1_000_000);
    format!("@{host:<9} [{delta:>11}] {}", record.text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_taken_apart() {
        let record = Record::parse("6,339,5140900,-;src/lib.rs@182: [INFO ] - a;b").unwrap();
        assert_eq!(
            (record.level, record.sequence, record.time_us),
            (6, 339, 5_140_900)
        );
        assert_eq!(record.text, "src/lib.rs@182: [INFO ] - a;b");
        // A message from user space, with the caller field of CONFIG_PRINTK_CALLER.
        let record = Record::parse("14,340,5140901,-,caller=T1;x").unwrap();
        assert_eq!(record.level, 6);
    }

    #[test]
    fn other_lines_are_no_records() {
        for line in [
            "",
            " SUBSYSTEM=pci",
            " DEVICE=+pci:0000:00:01.0",
            "a,b,c,d;x",
            "6,1;x",
            "6,1,2,-",
        ] {
            assert_eq!(Record::parse(line), None, "{line:?}");
        }
    }

    #[test]
    fn escapes_come_back_where_they_are_printable() {
        let text = |line: &str| Record::parse(line).unwrap().text;
        assert_eq!(text(r"6,1,2,-;a\x5cb \xc2\xb5s"), "a\\b µs");
        assert_eq!(text(r"6,1,2,-;a\x1b[31m\x0ab"), r"a\x1b[31m\x0ab");
        assert_eq!(text(r"6,1,2,-;\x \xzz \x4"), r"\x \xzz \x4");
    }

    #[test]
    fn a_line_is_shown_in_the_documents_form() {
        let record = Record {
            level: 6,
            sequence: 1,
            time_us: 9_023_995,
            text: "src/lib.rs@221: [INFO ] - passed: 1024001us, thpt: 131063 requests/s".into(),
        };
        assert_eq!(
            show("val09", Some(8_000_000), &record),
            "@val09     [  +1.023995] src/lib.rs@221: [INFO ] - passed: 1024001us, thpt: 131063 requests/s"
        );
        assert_eq!(
            show("val09", None, &record)[..24],
            *"@val09     [  +0.000000]"
        );
    }
}
