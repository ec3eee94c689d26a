//! Attention of a batch of queries over stored keys and values, without an n² buffer.

use crate::Team;

/// Keys or values, `[n_kv, n_head_kv, head_dim]`.
#[derive(Clone, Copy)]
pub enum Kv<'a> {
    /// Floats.
    F32(&'a [f32]),
    /// F16 bits.
    F16(&'a [u16]),
}

/// The shape of one attention.
#[derive(Clone, Copy, Debug)]
pub struct Attention {
    /// Query heads.
    pub n_head: usize,
    /// Key and value heads; divides `n_head`.
    pub n_head_kv: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Factor on `q · k`, usually `1/sqrt(head_dim)`.
    pub scale: f32,
    /// With `Some(n_past)`, query `i` sees keys `0..=n_past + i` only.
    pub causal: Option<usize>,
}

/// `out = softmax(scale · q kᵀ) v` for each head; `q` and `out` are `[n_tokens, n_head, head_dim]`.
///
/// A query's result depends on its keys and values alone, not on the batch it came in.
pub fn attention(team: &Team, a: Attention, q: &[f32], k: Kv<'_>, v: Kv<'_>, n_kv: usize, out: &mut [f32]) {
    let _ = team;
    let width = a.n_head * a.head_dim;
    let at = |kv: Kv<'_>, i: usize| match kv {
        Kv::F32(x) => x[i],
        Kv::F16(x) => half::f16::from_bits(x[i]).to_f32(),
    };
    for t in 0..q.len() / width {
        let n = a.causal.map_or(n_kv, |n_past| n_past + t + 1);
        for h in 0..a.n_head {
            let q = &q[t * width + h * a.head_dim..][..a.head_dim];
            let kv_head = h / (a.n_head / a.n_head_kv);
            let base = |i: usize| (i * a.n_head_kv + kv_head) * a.head_dim;
            let mut s: Vec<f32> =
                (0..n).map(|i| (0..a.head_dim).map(|d| q[d] * at(k, base(i) + d)).sum::<f32>() * a.scale).collect();
            let max = s.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            s.iter_mut().for_each(|x| *x = (*x - max).exp());
            let sum: f32 = s.iter().sum();
            for d in 0..a.head_dim {
                out[t * width + h * a.head_dim + d] = (0..n).map(|i| s[i] * at(v, base(i) + d)).sum::<f32>() / sum;
            }
        }
    }
}
