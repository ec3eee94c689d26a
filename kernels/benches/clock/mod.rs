//! A measure for criterion that knows the processor's clock: operations per cycle, and GB per second.

use criterion::measurement::{Measurement, ValueFormatter, WallTime};
use criterion::{Criterion, Throughput};
use std::hint::black_box;
use std::time::{Duration, Instant};

/// Wall time, with what is done in it told per cycle of each thread.
pub struct Cycles {
    time: WallTime,
    format: PerCycle,
}

struct PerCycle {
    ghz: f64,
    n_threads: usize,
}

/// GHz of the core at work now, from a chain of additions and exclusive ors that each wait one cycle for the one before.
/// The quickest of many short runs counts.
pub fn ghz() -> f64 {
    const N: u32 = 100_000;
    let (a, b) = (black_box(0x9e37_79b9_7f4a_7c15_u64), black_box(0x0123_4567_89ab_cdef_u64));
    let run = || {
        let start = Instant::now();
        let mut x = black_box(1_u64);
        for _ in 0..N {
            for _ in 0..8 {
                x = x.wrapping_add(a) ^ b;
            }
        }
        black_box(x);
        start.elapsed().as_secs_f64()
    };
    let fastest = (0..200).map(|_| run()).fold(f64::INFINITY, f64::min);
    f64::from(N) * 16.0 / fastest / 1e9
}

impl Cycles {
    /// For work that `n_threads` share; says the clock.
    pub fn new(n_threads: usize) -> Cycles {
        let ghz = ghz();
        println!("{n_threads} threads at {ghz:.2} GHz");
        Cycles { time: WallTime, format: PerCycle { ghz, n_threads } }
    }
}

impl Measurement for Cycles {
    type Intermediate = Instant;
    type Value = Duration;

    fn start(&self) -> Instant {
        self.time.start()
    }

    fn end(&self, start: Instant) -> Duration {
        self.time.end(start)
    }

    fn add(&self, a: &Duration, b: &Duration) -> Duration {
        self.time.add(a, b)
    }

    fn zero(&self) -> Duration {
        self.time.zero()
    }

    fn to_f64(&self, value: &Duration) -> f64 {
        self.time.to_f64(value)
    }

    fn formatter(&self) -> &dyn ValueFormatter {
        &self.format
    }
}

impl ValueFormatter for PerCycle {
    fn scale_values(&self, typical: f64, values: &mut [f64]) -> &'static str {
        WallTime.formatter().scale_values(typical, values)
    }

    fn scale_throughputs(&self, typical: f64, throughput: &Throughput, values: &mut [f64]) -> &'static str {
        let (n, divisor, unit) = match throughput {
            Throughput::Elements(n) => (*n, self.ghz * self.n_threads as f64, "ops/cycle of a thread"),
            Throughput::Bytes(n) => (*n, 1.0, "GB/s"),
            other => return WallTime.formatter().scale_throughputs(typical, other, values),
        };
        values.iter_mut().for_each(|ns| *ns = n as f64 / *ns / divisor);
        unit
    }

    fn scale_for_machines(&self, values: &mut [f64]) -> &'static str {
        WallTime.formatter().scale_for_machines(values)
    }
}

/// Criterion with short runs, for as many threads as `BENCH_THREADS` says or the machine has; and that number.
pub fn criterion() -> (Criterion<Cycles>, usize) {
    let n_threads = match std::env::var("BENCH_THREADS").ok().and_then(|n| n.parse().ok()) {
        Some(n) => n,
        None => std::thread::available_parallelism().map_or(1, |n| n.get()),
    };
    let criterion = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(800))
        .with_measurement(Cycles::new(n_threads))
        .configure_from_args();
    (criterion, n_threads)
}
