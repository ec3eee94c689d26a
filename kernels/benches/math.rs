//! What activations, norms, attention and an empty region cost. `cargo bench -p mmq-kernels --bench math [-- FILTER]`;
//! `BENCH_THREADS` sets the threads, `MMQ_LEVEL` the level.

mod clock;

use criterion::measurement::Measurement;
use criterion::{BenchmarkId, Criterion, Throughput};
use mmq_kernels::{Attention, Kernels, Kv, KvTiles, KvType, Side, Team, attention, kernels};
use std::hint::black_box;

fn noise(n: usize) -> Vec<f32> {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

/// Each entry on a row of 11008 floats; the copy of its input is part of it.
fn elements<M: Measurement>(criterion: &mut Criterion<M>, table: &Kernels) {
    let n = 11008;
    let (source, w) = (noise(n), noise(n));
    let (mut x, mut y) = (source.clone(), vec![0.0; n]);
    let mut bits = vec![0; n];
    let mut group = criterion.benchmark_group("11008 elements");
    group.throughput(Throughput::Bytes(4 * n as u64));
    let mut bench = |name: &str, f: &mut dyn FnMut(&mut [f32])| {
        group.bench_function(name, |b| {
            b.iter(|| {
                x.copy_from_slice(&source);
                f(black_box(&mut x));
            });
        });
    };
    bench("silu", &mut |x| (table.silu)(x));
    bench("silu_mul", &mut |x| (table.silu_mul)(x, &w));
    bench("gelu_erf", &mut |x| (table.gelu_erf)(x));
    bench("gelu_tanh", &mut |x| (table.gelu_tanh)(x));
    bench("gelu_quick", &mut |x| (table.gelu_quick)(x));
    bench("rms_norm", &mut |x| (table.rms_norm)(x, &w, 1e-5, &mut y));
    bench("layer_norm", &mut |x| (table.layer_norm)(x, &w, &w, 1e-5, &mut y));
    bench("add", &mut |x| (table.add)(x, &w));
    bench("to_f16", &mut |x| (table.to_f16)(x, &mut bits));
    bench("rope", &mut |x| (table.rope)(x, &w[..n / 2], &w[n / 2..]));
    bench("rope_half", &mut |x| (table.rope_half)(x, &w[..n / 2], &w[n / 2..]));
    group.finish();
}

/// Prefill and encoding in operations a cycle; decoding in GB of keys and values a second.
fn attentions<M: Measurement>(criterion: &mut Criterion<M>, table: &Kernels, team: &Team) {
    use KvType::{F16, Q4_0, Q8_0};
    // (name, query heads, key heads, head_dim, queries, keys, type of keys and values if causal)
    let shapes = [
        ("ViT-L-14-336", 16, 16, 64, 577, 577, None),
        ("prefill 7B, 512", 32, 32, 128, 512, 512, Some(F16)),
        ("prefill 135M, 512", 9, 3, 64, 512, 512, Some(F16)),
        ("prefill 135M, 512", 9, 3, 64, 512, 512, Some(Q8_0)),
        ("prefill 135M, 512 at 7680", 9, 3, 64, 512, 8192, Some(F16)),
        ("decode 7B, 4k", 32, 32, 128, 1, 4096, Some(F16)),
        ("decode 7B, 4k", 32, 32, 128, 1, 4096, Some(Q8_0)),
        ("decode 7B, 4k", 32, 32, 128, 1, 4096, Some(Q4_0)),
        ("decode 8B GQA, 4k", 32, 8, 128, 1, 4096, Some(F16)),
        ("decode 8B GQA, 4k", 32, 8, 128, 1, 4096, Some(Q8_0)),
        ("decode 135M, 8k", 9, 3, 64, 1, 8192, Some(F16)),
        ("decode 135M, 4k", 9, 3, 64, 1, 4096, Some(F16)),
        ("decode 135M, 4k", 9, 3, 64, 1, 4096, Some(Q4_0)),
        ("decode 135M, 300", 9, 3, 64, 1, 300, Some(F16)),
        ("decode 135M, 100", 9, 3, 64, 1, 100, Some(F16)),
    ];
    let mut group = criterion.benchmark_group("attention");
    for (name, n_head, n_head_kv, head_dim, n_tokens, n_kv, kind) in shapes {
        let q = noise(n_tokens * n_head * head_dim);
        let (k, v) = (noise(n_kv * n_head_kv * head_dim), noise(n_kv * n_head_kv * head_dim));
        // As many layers as push the keys out of the caches, as in a real decoding step.
        let n_layers = if n_tokens == 1 { 8 } else { 1 };
        let store = |side, x: &[f32]| {
            let mut tiles = KvTiles::new(kind.unwrap_or(F16), side, n_head_kv, head_dim);
            tiles.push(table, x, n_kv);
            tiles
        };
        let stored: Vec<_> = (0..n_layers).map(|_| [store(Side::Keys, &k), store(Side::Values, &v)]).collect();
        let causal = kind.map(|_| n_kv - n_tokens);
        let a = Attention { n_head, n_head_kv, head_dim, scale: 0.125, causal };
        let mut out = vec![0.0; q.len()];
        let pairs = match causal {
            Some(n_past) => n_past * n_tokens + n_tokens * (n_tokens + 1) / 2,
            None => n_kv * n_tokens,
        };
        let stored_as = kind.unwrap_or(KvType::F32);
        group.throughput(match n_tokens {
            1 => Throughput::Bytes((2 * k.len() / stored_as.block() * stored_as.dtype().block().1) as u64),
            _ => Throughput::Elements(4 * (pairs * n_head * head_dim) as u64),
        });
        let mut layers = stored.iter().cycle();
        group.bench_function(BenchmarkId::new(name, stored_as.name()), |b| {
            b.iter(|| {
                let (k, v) = match (kind, layers.next()) {
                    (Some(_), Some([k, v])) => (k.view(), v.view()),
                    _ => (Kv::F32(&k), Kv::F32(&v)),
                };
                attention(team, a, &q, k, v, n_kv, black_box(&mut out));
            });
        });
    }
    group.finish();
}

fn main() {
    let (mut criterion, n_threads) = clock::criterion();
    let (table, team) = (kernels(), Team::new(n_threads));
    println!("level {}", table.level.name());
    elements(&mut criterion, table);
    attentions(&mut criterion, table, &team);
    criterion.bench_function("empty region", |b| b.iter(|| team.run(n_threads, &|_| ())));
    criterion.final_summary();
}
