//! What products cost, by type: decoding (one token and four; GB of weights a second, as stored and interleaved) and
//! prefill (512 tokens; billions of multiplications and additions a second). The first line is what a plain read gets.
//!
//! `cargo bench -p mmq-kernels --bench kernels [-- THREADS [TYPE…]]`. `MMQ_LEVEL` picks the level. A run is cut into
//! pieces of a millisecond or so, shorter than a time slice, and the fastest quarter of them counts: a busy machine then
//! disturbs little. Decoding walks through 256 MB of weights, so that no piece is met in a near cache.

use mmq_kernels::panel::PANEL_ROWS;
use mmq_kernels::{Activations, Dtype, Input, Layout, Norm, Product, Team, Then, Weights, interleave, kernels, matmul};
use std::hint::black_box;
use std::time::Instant;

const N_COLS: usize = 4096;
const PREFILL: usize = 512;
/// Bytes that decoding walks through.
const WALK: usize = 256_000_000;

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

/// GB a second that the team reads when it does nothing else.
fn stream(team: &Team) -> f64 {
    let data = vec![1_u64; WALK / 8];
    let piece = (1 << 20) / 8 * team.n_threads();
    let pieces = data.len() / piece;
    let seconds = time(4 * pieces, |i| {
        let data = &data[i % pieces * piece..][..piece];
        team.split(piece / 64, 1, &|lines| {
            let mut sums = [0_u64; 64];
            for line in data[64 * lines.start..64 * lines.end].as_chunks::<64>().0 {
                sums.iter_mut().zip(line).for_each(|(sum, x)| *sum ^= x);
            }
            black_box(sums);
        });
    });
    (8 * piece) as f64 / seconds / 1e9
}

/// What a type's products get: GB of weights a second for one and four tokens, GOP a second for many.
fn measure(team: &Team, dtype: Dtype) -> [f64; 5] {
    let row_bytes = dtype.row_bytes(N_COLS).expect("a multiple of 256");
    let n_rows = 512 * team.n_threads();
    let size = n_rows * row_bytes;
    let pieces = WALK / size;
    // Any bytes will do as long as no float is slow to use: this pattern keeps F16, BF16 and F32 normal.
    let byte = |i: usize| if i.is_multiple_of(2) { (i * 37) as u8 } else { 0x2c + (i % 7) as u8 };
    let mut data: Vec<u8> = (0..pieces * size).map(byte).collect();
    let x: Vec<f32> = (0..PREFILL * N_COLS).map(|i| (i * 7919 % 1000) as f32 / 500.0 - 1.0).collect();
    let mut act = Activations::default();
    let mut out = vec![0.0; PREFILL * n_rows];
    let mut product = |data: &[u8], layout: Layout, n_rows: usize, n_tokens: usize, piece: usize| {
        let weights =
            Weights { dtype, layout, n_rows, n_cols: N_COLS, data: &data[piece * size..][..n_rows * row_bytes] };
        let product = Product { weights, bias: None, then: Then::Store, out: &mut out[..n_tokens * n_rows] };
        let input = Input { x: &x[..n_tokens * N_COLS], n_cols: N_COLS, norm: Norm::None };
        matmul(team, input, &mut act, &mut [product]);
    };
    let gb = |seconds: f64| size as f64 / seconds / 1e9;
    let mut decode = |data: &[u8], layout: Layout, n_tokens: usize| {
        gb(time(4 * pieces / n_tokens, |i| product(data, layout, n_rows, n_tokens, i % pieces)))
    };
    let rows = [1, 4].map(|n| decode(&data, Layout::Rows, n));
    let few_rows = 128 * team.n_threads();
    let mut panel = vec![0; PANEL_ROWS * row_bytes];
    for rows in data.chunks_exact_mut(panel.len()) {
        interleave::interleave(dtype, rows, &mut panel);
        rows.copy_from_slice(&panel);
    }
    let panels = [1, 4].map(|n| decode(&data, Layout::Panels, n));
    let prefill = time(100, |i| product(&data, Layout::Panels, few_rows, PREFILL, i % 8));
    let ops = 2.0 * (PREFILL * few_rows * N_COLS) as f64;
    [rows[0], rows[1], panels[0], panels[1], ops / prefill / 1e9]
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let n_threads = args.first().and_then(|n| n.parse().ok()).unwrap_or(1);
    let team = Team::new(n_threads);
    println!("level {}, {n_threads} threads, plain read {:.1} GB/s", kernels().level.name(), stream(&team));
    println!(
        "{:8} {:>12} {:>12} {:>12} {:>12} {:>10}",
        "", "rows GB/s", "4 tokens", "panels GB/s", "4 tokens", "512 GOP/s"
    );
    for dtype in Dtype::RUNNABLE {
        if args.len() < 2 || args[1..].iter().any(|a| a == dtype.name()) {
            let [rows, rows4, panels, panels4, prefill] = measure(&team, dtype);
            println!("{:8} {rows:12.1} {rows4:12.1} {panels:12.1} {panels4:12.1} {prefill:10.1}", dtype.name());
        }
    }
}
