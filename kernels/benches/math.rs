//! What activations, norms, attention and an empty region cost. `cargo bench -p mmq-kernels --bench math`.

use mmq_kernels::table::levels;
use mmq_kernels::{Attention, Kernels, Kv, Team, attention_with};
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

fn attentions(table: &Kernels, team: &Team) {
    // (name, query heads, key heads, head_dim, queries, keys, causal, F16)
    let shapes = [
        // One head of the next shape: short enough to be timed on a busy machine.
        ("ViT-L/14-336, one head", 1, 1, 64, 577, 577, false, false),
        ("ViT-L/14-336", 16, 16, 64, 577, 577, false, false),
        ("prefill 7B, 512", 32, 32, 128, 512, 512, true, true),
        ("prefill 135M, 512", 9, 3, 64, 512, 512, true, true),
        ("decode 7B, 4k", 32, 32, 128, 1, 4096, true, true),
        ("decode 8B GQA, 4k", 32, 8, 128, 1, 4096, true, true),
        ("decode 135M, 4k", 9, 3, 64, 1, 4096, true, true),
        ("decode 135M, 300", 9, 3, 64, 1, 300, true, true),
    ];
    for (name, n_head, n_head_kv, head_dim, n_tokens, n_kv, causal, half) in shapes {
        let (q, k, v) = (
            noise(n_tokens * n_head * head_dim),
            noise(n_kv * n_head_kv * head_dim),
            noise(n_kv * n_head_kv * head_dim),
        );
        // As many layers as push the keys out of the caches, as in a real decoding step.
        let n_layers = if n_tokens == 1 { 8 } else { 1 };
        let mut bits = vec![[vec![0; k.len()], vec![0; v.len()]]; n_layers];
        for [k_bits, v_bits] in &mut bits {
            (table.to_f16)(&k, k_bits);
            (table.to_f16)(&v, v_bits);
        }
        let a = Attention { n_head, n_head_kv, head_dim, scale: 0.125, causal: causal.then_some(n_kv - n_tokens) };
        let mut out = vec![0.0; q.len()];
        let seconds = best(|| {
            for [k_bits, v_bits] in &bits {
                let (k, v) = if half { (Kv::F16(k_bits), Kv::F16(v_bits)) } else { (Kv::F32(&k), Kv::F32(&v)) };
                attention_with(table, team, a, &q, k, v, n_kv, black_box(&mut out));
            }
        }) / n_layers as f64;
        let pairs = if causal { (n_kv - n_tokens) * n_tokens + n_tokens * (n_tokens + 1) / 2 } else { n_kv * n_tokens };
        let operations = 4.0 * (pairs * n_head * head_dim) as f64;
        let bytes = (2 * k.len() * if half { 2 } else { 4 }) as f64;
        println!(
            "{:?}\t{} threads\t{name}\t{:.3} ms\t{:.1} GFLOP/s\t{:.1} GB/s of keys and values",
            table.level,
            team.n_threads(),
            seconds * 1e3,
            operations / seconds * 1e-9,
            bytes / seconds * 1e-9
        );
    }
}

fn main() {
    let tables = levels();
    for table in &tables {
        elements(table);
    }
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    for n_threads in if threads > 1 { vec![1, threads] } else { vec![1] } {
        let team = Team::new(n_threads);
        attentions(tables.last().expect("there is a scalar table"), &team);
        let seconds = best(|| (0..10).for_each(|_| team.run(n_threads, &|_| ())));
        println!("{n_threads} threads\tempty region\t{:.0} ns", seconds * 1e8);
    }
}
