//! What activations, norms, attention and an empty region cost. `cargo bench -p mmq-kernels --bench math`; with
//! `-- NAME` at the end, attention of the shapes whose name contains it.

use mmq_kernels::table::levels;
use mmq_kernels::{Attention, Kernels, Kv, KvTiles, KvType, Side, Team, attention_with};
use std::hint::black_box;
use std::time::Instant;

/// Seconds of the fastest of some runs, of about half a second in all.
fn best(mut f: impl FnMut()) -> f64 {
    let (start, mut best) = (Instant::now(), f64::INFINITY);
    while start.elapsed().as_secs_f64() < 0.5 {
        let start = Instant::now();
        f();
        best = best.min(start.elapsed().as_secs_f64());
    }
    best
}

fn noise(n: usize) -> Vec<f32> {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

fn elements(table: &Kernels) {
    let n = 11008;
    let (source, w) = (noise(n), noise(n));
    let (mut x, mut y) = (source.clone(), vec![0.0; n]);
    let mut bits = vec![0; n];
    let mut report = |name: &str, f: &mut dyn FnMut(&mut [f32])| {
        let seconds = best(|| {
            for _ in 0..20 {
                x.copy_from_slice(&source);
                f(black_box(&mut x));
            }
        });
        println!("{:?}\t{name}\t{:.3} ns/element", table.level, seconds / 20.0 / n as f64 * 1e9);
    };
    report("silu", &mut |x| (table.silu)(x));
    report("silu_mul", &mut |x| (table.silu_mul)(x, &w));
    report("gelu_erf", &mut |x| (table.gelu_erf)(x));
    report("gelu_tanh", &mut |x| (table.gelu_tanh)(x));
    report("gelu_quick", &mut |x| (table.gelu_quick)(x));
    report("rms_norm", &mut |x| (table.rms_norm)(x, &w, 1e-5, &mut y));
    report("layer_norm", &mut |x| (table.layer_norm)(x, &w, &w, 1e-5, &mut y));
    report("add", &mut |x| (table.add)(x, &w));
    report("to_f16", &mut |x| (table.to_f16)(x, &mut bits));
    report("rope", &mut |x| (table.rope)(x, &w[..n / 2], &w[n / 2..]));
}

fn attentions(table: &Kernels, team: &Team, only: &str) {
    use KvType::{F16, Q4_0, Q8_0};
    // (name, query heads, key heads, head_dim, queries, keys, type of keys and values if causal)
    let shapes = [
        // One head of the next shape: short enough to be timed on a busy machine.
        ("ViT-L/14-336, one head", 1, 1, 64, 577, 577, None),
        ("ViT-L/14-336", 16, 16, 64, 577, 577, None),
        ("prefill 7B, 512", 32, 32, 128, 512, 512, Some(F16)),
        ("prefill 135M, 512", 9, 3, 64, 512, 512, Some(F16)),
        ("prefill 135M, 512", 9, 3, 64, 512, 512, Some(Q8_0)),
        ("prefill 135M, 512 at 1536", 9, 3, 64, 512, 2048, Some(F16)),
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
    for (name, n_head, n_head_kv, head_dim, n_tokens, n_kv, kind) in
        shapes.iter().copied().filter(|s| s.0.contains(only))
    {
        let (q, k, v) = (
            noise(n_tokens * n_head * head_dim),
            noise(n_kv * n_head_kv * head_dim),
            noise(n_kv * n_head_kv * head_dim),
        );
        // As many layers as push the keys out of the caches, as in a real decoding step.
        let n_layers = if n_tokens == 1 { 8 } else { 1 };
        let stored = |side, x: &[f32]| {
            let mut tiles = KvTiles::new(kind.unwrap_or(F16), side, n_head_kv, head_dim);
            tiles.push(table, x, n_kv);
            tiles
        };
        let stored: Vec<_> = (0..n_layers).map(|_| [stored(Side::Keys, &k), stored(Side::Values, &v)]).collect();
        let causal = kind.map(|_| n_kv - n_tokens);
        let a = Attention { n_head, n_head_kv, head_dim, scale: 0.125, causal };
        let mut out = vec![0.0; q.len()];
        let seconds = best(|| {
            for [k_tiles, v_tiles] in &stored {
                let (k, v) = match kind {
                    Some(_) => (k_tiles.view(), v_tiles.view()),
                    None => (Kv::F32(&k), Kv::F32(&v)),
                };
                attention_with(table, team, a, &q, k, v, n_kv, black_box(&mut out));
            }
        }) / n_layers as f64;
        let pairs = match causal {
            Some(n_past) => n_past * n_tokens + n_tokens * (n_tokens + 1) / 2,
            None => n_kv * n_tokens,
        };
        let operations = 4.0 * (pairs * n_head * head_dim) as f64;
        let kind = kind.unwrap_or(KvType::F32);
        let bytes = 2 * k.len() / kind.block() * kind.dtype().block().1;
        println!(
            "{:?}\t{} threads\t{name}, {}\t{:.3} ms\t{:.1} GFLOP/s\t{:.1} GB/s of keys and values",
            table.level,
            team.n_threads(),
            kind.name(),
            seconds * 1e3,
            operations / seconds * 1e-9,
            bytes as f64 / seconds * 1e-9
        );
    }
}

fn main() {
    let tables = levels();
    let only = std::env::args().nth(1).filter(|arg| arg != "--bench");
    for table in tables.iter().filter(|_| only.is_none()) {
        elements(table);
    }
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    for n_threads in if threads > 1 { vec![1, threads] } else { vec![1] } {
        let team = Team::new(n_threads);
        attentions(tables.last().expect("there is a scalar table"), &team, only.as_deref().unwrap_or(""));
        let seconds = best(|| (0..10).for_each(|_| team.run(n_threads, &|_| ())));
        println!("{n_threads} threads\tempty region\t{:.0} ns", seconds * 1e8);
    }
}
