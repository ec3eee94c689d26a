//! What products cost, by type: decoding (one token; GB of weights a second) and prefill (many tokens; billions of
//! multiplications and additions a second).
//!
//! `cargo bench -p mmq-kernels [-- THREADS [TYPE…]]`. `MMQ_LEVEL` picks the level. Each figure is the best of some runs,
//! so that neighbours on the machine count least.

use mmq_kernels::{Activations, Dtype, Team, Weights, kernels, matmul};
use std::time::{Duration, Instant};

/// Best time of one call, after one to warm up.
fn best(mut f: impl FnMut()) -> f64 {
    f();
    let (start, mut best) = (Instant::now(), Duration::MAX);
    let mut n = 0;
    while n < 3 || start.elapsed() < Duration::from_millis(600) {
        let t = Instant::now();
        f();
        best = best.min(t.elapsed());
        n += 1;
    }
    best.as_secs_f64()
}

/// Time of a product of `[n_rows, n_cols]` weights with `n_tokens` tokens.
fn time(team: &Team, dtype: Dtype, n_rows: usize, n_cols: usize, n_tokens: usize) -> f64 {
    let bytes = dtype.row_bytes(n_cols).expect("a multiple of 256");
    // Any bytes will do, as long as no float is slow: the pattern keeps F16, BF16 and F32 normal.
    let data: Vec<u8> =
        (0..n_rows * bytes).map(|i| if i % 2 == 0 { (i * 37) as u8 } else { 0x2c + (i % 7) as u8 }).collect();
    let x: Vec<f32> = (0..n_tokens * n_cols).map(|i| (i * 7919 % 1000) as f32 / 500.0 - 1.0).collect();
    let mut out = vec![0.0; n_tokens * n_rows];
    let mut act = Activations::default();
    best(|| {
        act.reset();
        matmul(team, Weights { dtype, n_rows, n_cols, data: &data }, &x, &mut act, &mut out);
    })
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let n_threads = args.first().and_then(|n| n.parse().ok()).unwrap_or(1);
    let team = Team::new(n_threads);
    println!("level {}, {n_threads} threads", kernels().level.name());
    println!("{:8} {:>14} {:>16}", "type", "decode GB/s", "prefill GOP/s");
    for dtype in Dtype::RUNNABLE {
        if args.len() > 1 && !args[1..].iter().any(|a| a == dtype.name()) {
            continue;
        }
        let (n_rows, n_cols) = (24_576, 4096);
        let decode = time(&team, dtype, n_rows, n_cols, 1);
        let gb = (n_rows * dtype.row_bytes(n_cols).expect("a multiple of 256")) as f64 / 1e9;
        let (n_rows, n_tokens) = (1024, 577);
        let prefill = time(&team, dtype, n_rows, n_cols, n_tokens);
        let ops = 2.0 * (n_rows * n_cols * n_tokens) as f64 / 1e9;
        println!("{:8} {:14.1} {:16.1}", dtype.name(), gb / decode, ops / prefill);
    }
}
