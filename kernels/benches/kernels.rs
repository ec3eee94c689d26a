//! What products cost, by type: one token and four (GB of weights a second, as stored and interleaved) and 512
//! (multiplications and additions a cycle).
//!
//! `cargo bench -p mmq-kernels --bench kernels [-- FILTER]`; `BENCH_THREADS` sets the threads, `MMQ_LEVEL` the level. A bound
//! in a name is what two multipliers a cycle allow (`bound`). One token walks through 256 MB of weights, so that no piece is
//! met in a near cache; "read" adds up as many bytes and does nothing else.

mod clock;

use criterion::{BenchmarkId, Throughput};
use mmq_kernels::{Activations, Dtype, Input, Layout, Norm, Product, Team, Then, Weights, kernels, matmul};
use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};

const N_COLS: usize = 4096;
const PREFILL: usize = 512;
const WALK: usize = 256_000_000;

/// Operations a cycle that two vector multipliers can do: with 256 bits two products in i16 for each byte, summed up in i16
/// while they fit (4 bits: 8 of them, 5: 4, 6: 2) before one multiplication widens them; with 512 bits and VNNI four in i32.
/// `None` where nothing is said.
fn bound(level: &str, dtype: Dtype) -> Option<u32> {
    use Dtype::*;
    let float = dtype.is_float();
    match level {
        "avx2" if float => Some(32),
        "avx2" => Some(match dtype {
            Q1_0 | Q2_0 | Q2_K | Q3_K | Q4_0 | Q4_1 | Q4_K | TQ1_0 | TQ2_0 => 114,
            Q5_0 | Q5_1 | Q5_K | IQ1_M | IQ1_S | IQ3_S | MXFP4 | NVFP4 => 102,
            Q6_K | IQ3_XXS => 85,
            _ => 64,
        }),
        "avx512" if float => Some(64),
        "avx512" => Some(256),
        _ => None,
    }
}

/// Bytes that are no slow floats in any place where a type has floats.
fn bytes(n: usize) -> Vec<u8> {
    let byte = |i: usize| if i.is_multiple_of(2) { (i * 37) as u8 } else { 0x2c + (i % 7) as u8 };
    (0..n).map(byte).collect()
}

fn main() {
    let (mut criterion, n_threads) = clock::criterion();
    let team = Team::new(n_threads);
    let level = kernels().level.name();
    let x: Vec<f32> = (0..PREFILL * N_COLS).map(|i| (i * 7919 % 1000) as f32 / 500.0 - 1.0).collect();
    let data = bytes(WALK);

    let mut group = criterion.benchmark_group("read");
    let piece = 2 << 20;
    let mut at = (0..WALK / piece - n_threads).cycle().step_by(n_threads);
    let sum = AtomicU64::new(0);
    group.throughput(Throughput::Bytes((n_threads * piece) as u64));
    group.bench_function("memory", |b| {
        b.iter(|| {
            let start = at.next().unwrap_or(0);
            team.run(n_threads, &|i| {
                // Many sums side by side, so that none waits for another.
                let mut sums = [0_u8; 512];
                for line in data[(start + i) * piece..][..piece].as_chunks::<512>().0 {
                    sums.iter_mut().zip(line).for_each(|(sum, x)| *sum ^= x);
                }
                let total = sums.iter().map(|x| u64::from(*x)).sum();
                sum.fetch_add(total, Ordering::Relaxed);
            });
        });
    });
    black_box(sum);
    group.finish();

    for dtype in Dtype::RUNNABLE {
        for (layout, name) in [(Layout::Rows, "rows"), (Layout::Panels, "panels")] {
            let row_bytes = dtype.row_bytes(N_COLS).expect("a multiple of 256");
            let mut act = Activations::default();
            let mut product = |n_rows: usize, n_tokens: usize, piece: usize, out: &mut [f32]| {
                let size = n_rows * row_bytes;
                let weights = Weights { dtype, layout, n_rows, n_cols: N_COLS, data: &data[piece * size..][..size] };
                let product = Product { weights, bias: None, then: Then::Store, out: &mut out[..n_tokens * n_rows] };
                let input = Input { x: &x[..n_tokens * N_COLS], n_cols: N_COLS, norm: Norm::None };
                matmul(&team, input, &mut act, &mut [product]);
            };
            let n_rows = 512 * n_threads;
            let mut out = vec![0.0; PREFILL * n_rows];
            let mut pieces = (0..WALK / (n_rows * row_bytes)).cycle();
            for (n_tokens, title) in [(1, "one token"), (4, "four tokens")] {
                let mut group = criterion.benchmark_group(title);
                group.throughput(Throughput::Bytes((n_rows * row_bytes) as u64));
                group.bench_function(BenchmarkId::new(dtype.name(), name), |b| {
                    b.iter(|| product(n_rows, n_tokens, pieces.next().unwrap_or(0), &mut out));
                });
                group.finish();
            }

            // So many that rounding the input to 8 bits, which is part of it, weighs as little as in a layer.
            let n_rows = 256 * n_threads;
            let mut pieces = (0..4).cycle();
            let limit = bound(level, dtype).map_or(String::new(), |bound| format!(", bound {bound}"));
            let mut group = criterion.benchmark_group(format!("{PREFILL} tokens"));
            group.throughput(Throughput::Elements(2 * (PREFILL * n_rows * N_COLS) as u64));
            group.bench_function(BenchmarkId::new(dtype.name(), format!("{name}{limit}")), |b| {
                b.iter(|| product(n_rows, PREFILL, pieces.next().unwrap_or(0), &mut out));
            });
            group.finish();
        }
    }
    criterion.final_summary();
}
