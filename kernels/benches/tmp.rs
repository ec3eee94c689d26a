//! tmp
use mmq_kernels::table::levels;
use mmq_kernels::*;
fn cpu() -> f64 {
    std::fs::read_to_string("/proc/thread-self/schedstat").unwrap().split(' ').next().unwrap().parse::<f64>().unwrap()
        * 1e-9
}
fn main() {
    let t = *levels().last().unwrap();
    let team = Team::new(1);
    for (name, h, hk, d, n, nkv, causal, half) in [
        ("vit", 16, 16, 64, 577, 577, false, false),
        ("7B pre", 32, 32, 128, 512, 512, true, true),
        ("7B dec", 32, 32, 128, 1, 4096, true, true),
        ("8B dec", 32, 8, 128, 1, 4096, true, true),
        ("8B dec f32", 32, 8, 128, 1, 4096, true, false),
        ("135M dec", 9, 3, 64, 1, 4096, true, true),
    ] {
        let q = vec![0.1f32; n * h * d];
        let k: Vec<f32> = (0..nkv * hk * d).map(|i| ((i * 7919) % 1000) as f32 / 1000.0).collect();
        let mut b = vec![0u16; k.len()];
        (t.to_f16)(&k, &mut b);
        let b2 = b.clone();
        let k2 = k.clone();
        let mut out = vec![0.0; q.len()];
        let a = Attention { n_head: h, n_head_kv: hk, head_dim: d, scale: 0.1, causal: causal.then_some(nkv - n) };
        let mut best = f64::INFINITY;
        for _ in 0..12 {
            let s = cpu();
            if half {
                attention_with(&t, &team, a, &q, Kv::F16(&b), Kv::F16(&b2), nkv, &mut out)
            } else {
                attention_with(&t, &team, a, &q, Kv::F32(&k), Kv::F32(&k2), nkv, &mut out)
            };
            best = best.min(cpu() - s);
        }
        let pairs = if causal { (nkv - n) * n + n * (n + 1) / 2 } else { n * nkv };
        println!(
            "{name}: {:.3} ms {:.1} GF/s {:.1} GB/s",
            best * 1e3,
            4.0 * (pairs * h * d) as f64 / best * 1e-9,
            2.0 * k.len() as f64 * if half { 2.0 } else { 4.0 } / best * 1e-9
        );
    }
    let x = vec![1u8; 1 << 28];
    let mut best = f64::INFINITY;
    for _ in 0..5 {
        let s = cpu();
        let y: u64 = x.as_chunks::<8>().0.iter().map(|c| u64::from_le_bytes(*c)).fold(0, |a, b| a ^ b);
        std::hint::black_box(y);
        best = best.min(cpu() - s);
    }
    println!("stream {:.1} GB/s", (1u64 << 28) as f64 / best * 1e-9);
}
