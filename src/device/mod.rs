//! Where arithmetic runs. The processor for now; a graphics device would stand beside it.

use mmq_kernels::{Kernels, Team, kernels};

/// The processor: its kernels and a team of threads.
pub struct Cpu {
    /// The kernel table for this processor.
    pub kernels: &'static Kernels,
    /// The threads.
    pub team: Team,
}

impl Cpu {
    /// `n_threads` threads, or as many as [`default_threads`] gives.
    pub fn new(n_threads: Option<usize>) -> Cpu {
        Cpu { kernels: kernels(), team: Team::new(n_threads.unwrap_or_else(default_threads)) }
    }
}

/// The physical cores that this process may use: a second thread on a core only takes turns with the first.
pub fn default_threads() -> usize {
    let allowed = std::thread::available_parallelism().map_or(1, |n| n.get());
    num_cpus::get_physical().clamp(1, allowed)
}

/// Bytes of memory that this process may take without pushing others out, if the system says so (Linux does).
pub fn available_memory() -> Option<u64> {
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = info.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    // A container may be allowed less than the machine has.
    let limit = std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok().and_then(|text| text.trim().parse().ok());
    Some(kib.saturating_mul(1024).min(limit.unwrap_or(u64::MAX)))
}
