//! Where arithmetic runs. The processor for now; a graphics device would stand beside it.

mod power;

pub use power::Power;

use mmq_kernels::{Kernels, Team, cores, kernels};

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
        Cpu::with(n_threads, Power::default())
    }

    /// `n_threads` threads, or as many as `power` gives, which behave as it says.
    pub fn with(n_threads: Option<usize>, power: Power) -> Cpu {
        let (n, manners) = power.threads(&cores::cores(), physical_cores());
        Cpu { kernels: kernels(), team: Team::with(n_threads.unwrap_or(n), &manners) }
    }
}

/// The cores worth using: physical ones that this process may use, without the little ones of big.LITTLE.
pub fn default_threads() -> usize {
    Power::default().threads(&cores::cores(), physical_cores()).0
}

/// The physical cores that this process may use: a second thread on a core only takes turns with the first.
fn physical_cores() -> usize {
    let allowed = std::thread::available_parallelism().map_or(1, |n| n.get());
    num_cpus::get_physical().clamp(1, allowed)
}
