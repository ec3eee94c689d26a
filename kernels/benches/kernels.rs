//! What products cost, by type: decoding (one token; GB of weights a second) and prefill (577 tokens; billions of
//! multiplications and additions a second).
//!
//! `cargo bench -p mmq-kernels [-- THREADS [TYPE…]]`. `MMQ_LEVEL` picks the level. A run is cut into pieces of a
//! millisecond or so, shorter than a time slice, and the fastest quarter of them counts: a busy machine then disturbs
//! little. Decoding walks through 256 MB of weights, so that no piece is met in a near cache.

use mmq_kernels::{Activations, Dtype, Input, Layout, Norm, Product, Team, Then, Weights, kernels, matmul};
use std::time::Instant;

const N_COLS: usize = 4096;

/// Seconds of the quickest quarter of `n` calls, after some to warm up.
fn time(n: usize, mut f: impl FnMut(usize)) -> f64 {
    (0..4).for_each(&mut f);
    let mut times: Vec<f64> = (0..n)
        .map(|i| {
            let start = Instant::now();
            f(i);
            start.elapsed().as_secs_f64()
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[n / 4]
}

/// GB of weights a second for one token, and GOP a second for 577.
fn measure(team: &Team, dtype: Dtype) -> (f64, f64) {
    let row_bytes = dtype.row_bytes(N_COLS).expect("a multiple of 256");
    let n_rows = 512 * team.n_threads();
    let pieces = 256_000_000 / (n_rows * row_bytes);
    // Any bytes will do as long as no float is slow to use: this pattern keeps F16, BF16 and F32 normal.
    let byte = |i: usize| if i.is_multiple_of(2) { (i * 37) as u8 } else { 0x2c + (i % 7) as u8 };
    let data: Vec<u8> = (0..pieces * n_rows * row_bytes).map(byte).collect();
    let x: Vec<f32> = (0..577 * N_COLS).map(|i| (i * 7919 % 1000) as f32 / 500.0 - 1.0).collect();
    let mut act = Activations::default();
    let mut product = |n_rows: usize, n_tokens: usize, piece: usize, out: &mut [f32]| {
        let size = n_rows * row_bytes;
        let weights =
            Weights { dtype, layout: Layout::Rows, n_rows, n_cols: N_COLS, data: &data[piece * size..][..size] };
        let product = Product { weights, bias: None, then: Then::Store, out: &mut out[..n_tokens * n_rows] };
        let input = Input { x: &x[..n_tokens * N_COLS], n_cols: N_COLS, norm: Norm::None };
        matmul(team, input, &mut act, &mut [product]);
    };
    let mut out = vec![0.0; 577 * n_rows];
    let decode = time(4 * pieces, |i| product(n_rows, 1, i % pieces, &mut out));
    let few_rows = 32 * team.n_threads();
    let prefill = time(200, |i| product(few_rows, 577, i % 8, &mut out));
    let ops = 2.0 * (577 * few_rows * N_COLS) as f64;
    ((n_rows * row_bytes) as f64 / decode / 1e9, ops / prefill / 1e9)
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let n_threads = args.first().and_then(|n| n.parse().ok()).unwrap_or(1);
    let team = Team::new(n_threads);
    println!("level {}, {n_threads} threads", kernels().level.name());
    println!("{:8} {:>14} {:>16}", "type", "decode GB/s", "prefill GOP/s");
    for dtype in Dtype::RUNNABLE {
        if args.len() < 2 || args[1..].iter().any(|a| a == dtype.name()) {
            let (decode, prefill) = measure(&team, dtype);
            println!("{:8} {decode:14.1} {prefill:16.1}", dtype.name());
        }
    }
}
