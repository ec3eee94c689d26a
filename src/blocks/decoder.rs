//! One layer of a LLaMA-like decoder: RMSNorm, grouped-query attention with RoPE, RMSNorm, gated feed-forward.

use super::kv_cache::KvCache;
use crate::ops::{self, Cx, Linear, Norm};
use crate::tensor::{Loader, Weight};
use crate::{Result, bail};
use mmq_kernels::Attention;

/// The sizes of a decoder layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shape {
    /// Width of the residual stream.
    pub n_embd: usize,
    /// Query heads.
    pub n_head: usize,
    /// Key and value heads.
    pub n_head_kv: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Width of the feed-forward layer.
    pub n_ff: usize,
    /// Epsilon of the norms.
    pub eps: f32,
}

impl Shape {
    /// Bytes of the buffers that a pass of `n_tokens` through layers of this shape takes: embeddings, queries, keys, values,
    /// what attention and the gated unit give, and the inputs of products in 8 bits.
    pub fn scratch(&self, n_tokens: usize) -> usize {
        let (q, kv) = (self.n_head * self.head_dim, self.n_head_kv * self.head_dim);
        let floats = self.n_embd + 2 * q + 2 * kv + self.n_ff + self.head_dim;
        let widest = self.n_ff.max(self.n_embd).max(q);
        n_tokens * (4 * floats + ops::rounded_bytes(widest))
    }
}

/// A layer's weights.
pub struct DecoderLayer {
    attn_norm: Vec<f32>,
    attn_q: Linear,
    attn_k: Linear,
    attn_v: Linear,
    attn_output: Linear,
    ffn_norm: Vec<f32>,
    ffn_gate: Linear,
    ffn_up: Linear,
    ffn_down: Linear,
}

/// Buffers that a pass through all layers shares.
#[derive(Default)]
pub struct Scratch {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    attn: Vec<f32>,
    gate: Vec<f32>,
}

impl DecoderLayer {
    /// Loads `{prefix}.attn_norm.weight` and so on, with biases where the file has them.
    pub fn load(loader: Loader<'_>, prefix: &str, s: Shape) -> Result<DecoderLayer> {
        let linear = |name: &str, n_out: usize, n_in: usize| -> Result<Linear> {
            let name = format!("{prefix}.{name}");
            Ok(Linear {
                weight: loader.weight(&format!("{name}.weight"), n_out, n_in)?,
                bias: loader.optional_vector(&format!("{name}.bias"), n_out)?,
            })
        };
        let norm = |name: &str| loader.vector(&format!("{prefix}.{name}.weight"), s.n_embd);
        if loader.has(&format!("{prefix}.ffn_gate_inp.weight")) {
            bail!(Unsupported, "{}: {prefix} is a mixture of experts, which cannot be run yet", loader.gguf.name());
        }
        Ok(DecoderLayer {
            attn_norm: norm("attn_norm")?,
            attn_q: linear("attn_q", s.n_head * s.head_dim, s.n_embd)?,
            attn_k: linear("attn_k", s.n_head_kv * s.head_dim, s.n_embd)?,
            attn_v: linear("attn_v", s.n_head_kv * s.head_dim, s.n_embd)?,
            attn_output: linear("attn_output", s.n_embd, s.n_head * s.head_dim)?,
            ffn_norm: norm("ffn_norm")?,
            ffn_gate: linear("ffn_gate", s.n_ff, s.n_embd)?,
            ffn_up: linear("ffn_up", s.n_ff, s.n_embd)?,
            ffn_down: linear("ffn_down", s.n_embd, s.n_ff)?,
        })
    }

    /// Its matrices.
    pub fn matrices(&self) -> impl Iterator<Item = &Weight> {
        let attn = [&self.attn_q, &self.attn_k, &self.attn_v, &self.attn_output];
        attn.into_iter().chain([&self.ffn_gate, &self.ffn_up, &self.ffn_down]).map(|linear| &linear.weight)
    }

    /// Takes the residual stream `x: [n_tokens, n_embd]` through layer `il`; the new tokens' keys and values are added to
    /// the cache. `cos` and `sin` are the rotations of their positions. Only the last `n_out` rows of `x` are brought up to
    /// date: after the last layer, no other is looked at.
    #[allow(clippy::too_many_arguments)]
    pub fn forward(
        &self,
        cx: &mut Cx<'_>,
        s: Shape,
        il: usize,
        cos: &[f32],
        sin: &[f32],
        cache: &mut KvCache,
        x: &mut [f32],
        n_out: usize,
        b: &mut Scratch,
    ) {
        let n_tokens = x.len() / s.n_embd;
        let n_kv = cache.len() + n_tokens;
        let first = n_tokens - n_out;

        let norm = Norm::Rms { weight: &self.attn_norm, eps: s.eps };
        let (q, k, v) = ((&self.attn_q, &mut b.q), (&self.attn_k, &mut b.k), (&self.attn_v, &mut b.v));
        if first == 0 {
            ops::linear(cx, x, norm, [q, k, v]);
        } else {
            ops::linear(cx, x, norm, [k, v]);
            ops::linear(cx, &x[first * s.n_embd..], norm, [q]);
        }
        ops::rope(cx, &mut b.k, s.n_head_kv, s.head_dim, cos, sin);
        cache.push(il, &b.k, &b.v);
        if n_out == 0 {
            return;
        }
        let x = &mut x[first * s.n_embd..];
        let n_angles = cos.len() / n_tokens;
        ops::rope(cx, &mut b.q, s.n_head, s.head_dim, &cos[first * n_angles..], &sin[first * n_angles..]);
        let (k, v) = cache.layer(il);
        let attention = Attention {
            n_head: s.n_head,
            n_head_kv: s.n_head_kv,
            head_dim: s.head_dim,
            scale: 1.0 / (s.head_dim as f32).sqrt(),
            causal: Some(n_kv - n_out),
        };
        ops::attention(cx, attention, &b.q, k, v, n_kv, &mut b.attn);
        ops::linear_add_traced(cx, &b.attn, &self.attn_output, x, || format!("blk.{il}.attn_out"));

        let norm = Norm::Rms { weight: &self.ffn_norm, eps: s.eps };
        ops::gated(cx, x, norm, &self.ffn_gate, &self.ffn_up, &mut b.gate);
        ops::linear_add_traced(cx, &b.gate, &self.ffn_down, x, || format!("blk.{il}.ffn_out"));
        cx.trace(|| format!("blk.{il}.out"), x);
    }
}

/// Layers that stream through memory: before layer `il` is at work the system is told to read the next ahead, and after it
/// [`given_back`]. The first `n_resident` stay.
pub fn read_ahead(layers: &[DecoderLayer], il: usize, n_resident: usize) {
    let streaming = |il: &usize| *il >= n_resident;
    // Behind the last comes the first that streams, for the next pass.
    let next = Some(il + 1).filter(|next| *next < layers.len()).unwrap_or(n_resident);
    if let Some(layer) = layers.get(next).filter(|_| streaming(&next)) {
        layer.matrices().for_each(Weight::read_ahead);
    }
}

/// Gives the pages of layer `il` back, unless it is one of the first `n_resident`.
pub fn give_back(layers: &[DecoderLayer], il: usize, n_resident: usize) {
    if il >= n_resident {
        layers[il].matrices().for_each(Weight::give_back);
    }
}
