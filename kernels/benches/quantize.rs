//! What writing weights costs, by type, search and importance: bytes of F16 weights a second, on one thread.
//!
//! `cargo bench -p mmq-kernels --bench quantize [-- FILTER]`; `MMQ_LEVEL` sets the level.

mod clock;

use criterion::Throughput;
use mmq_kernels::{Dtype, Search, quantize::quantize};

const N_ROWS: usize = 32;
const N_COLS: usize = 4096;

fn main() {
    let (mut criterion, _) = clock::criterion();
    let mut state = 1_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 24) as f32
    };
    let x: Vec<f32> = (0..N_ROWS * N_COLS).map(|_| (next() + next() + next() - 1.5) * 0.03).collect();
    let importance: Vec<f32> = (0..N_COLS).map(|_| next() * next()).collect();
    for dtype in Dtype::QUANTIZABLE {
        let mut out = vec![0; dtype.row_bytes(x.len()).expect("whole blocks")];
        let mut group = criterion.benchmark_group(dtype.name());
        group.throughput(Throughput::Bytes(2 * x.len() as u64));
        for (search, name) in [(Search::Best, "best"), (Search::Ggml, "ggml")] {
            for (importance, with) in [(None, ""), (Some(&importance[..]), ", importance")] {
                group.bench_function(format!("{name}{with}"), |b| {
                    b.iter(|| quantize(dtype, search, &x, N_COLS, importance, &mut out));
                });
            }
        }
        group.finish();
    }
    criterion.final_summary();
}
