//! The thread team: a fixed number of threads that run one region at a time.

use std::ops::Range;

/// Threads that work on one region together. Results never depend on how many there are.
pub struct Team {
    n_threads: usize,
}

impl Team {
    /// A team of `n_threads` (at least one), the caller included.
    pub fn new(n_threads: usize) -> Team {
        Team { n_threads: n_threads.max(1) }
    }

    /// How many threads take part.
    pub fn n_threads(&self) -> usize {
        self.n_threads
    }

    /// Runs `f(part)` once for every part in `0..n_parts` and returns when all are done.
    pub fn run(&self, n_parts: usize, f: &(dyn Fn(usize) + Sync)) {
        (0..n_parts).for_each(f);
    }

    /// Splits `0..n` into at most [`Team::n_threads`] contiguous ranges whose bounds are multiples of `step`, and runs
    /// `f` on each of them at the same time.
    pub fn split(&self, n: usize, step: usize, f: &(dyn Fn(Range<usize>) + Sync)) {
        let steps = n.div_ceil(step);
        let parts = self.n_threads.min(steps);
        self.run(parts, &|i| f(steps * i / parts * step..(steps * (i + 1) / parts * step).min(n)));
    }

    /// Runs `f(row, chunk)` for each chunk of `len` elements of `data`, in parallel: rows of a matrix.
    pub fn rows<T: Send>(&self, data: &mut [T], len: usize, f: &(dyn Fn(usize, &mut [T]) + Sync)) {
        for (i, row) in data.chunks_mut(len).enumerate() {
            f(i, row);
        }
    }
}
