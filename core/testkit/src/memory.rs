//! How much memory this process has, as the kernel sees it.

/// Resident memory of the process.
#[derive(Clone, Copy, Debug, Default)]
pub struct Memory {
    /// Now, in KiB.
    pub now_kib: u64,
    /// At most so far, in KiB.
    pub peak_kib: u64,
}

impl Memory {
    /// What /proc says at this moment; zeros where there is no /proc.
    pub fn read() -> Self {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let kib = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name));
            let number = line.and_then(|line| line.split_whitespace().nth(1));
            number.and_then(|number| number.parse().ok()).unwrap_or(0)
        };
        Self {
            now_kib: kib("VmRSS:"),
            peak_kib: kib("VmHWM:"),
        }
    }

    /// Whether the peak has not grown since `earlier` by more than what an allocator keeps back: a
    /// quarter, and 4 MiB.
    pub fn is_flat_since(&self, earlier: &Self) -> bool {
        self.peak_kib <= earlier.peak_kib + earlier.peak_kib / 4 + 4096
    }
}

impl std::fmt::Display for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mib = |kib: u64| kib as f64 / 1024.0;
        write!(
            f,
            "{:.1} MiB (peak {:.1} MiB)",
            mib(self.now_kib),
            mib(self.peak_kib)
        )
    }
}
