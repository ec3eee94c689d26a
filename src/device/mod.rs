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
