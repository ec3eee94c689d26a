//! A resampler: learned queries that look at a picture's patches once, whatever their number, in one layer of cross-attention
//! (Qwen-VL, arXiv 2308.12966).
//!
//! `q = attn.q(ln_q(query) + pos_embed_q)`, `x = ln_kv(kv(features))`, `k = attn.k(x + pos_embed_k)`, `v = attn.v(x)`, and
//! `proj(ln_post(attn.out(attention(q, k, v))))` is what comes out. Queries do not depend on the picture, nor does what positions
//! add to keys: both are computed as the weights are loaded.

use crate::ops::{self, Cx, LayerNorm, Linear, Norm};
use crate::tensor::Loader;
use crate::{Result, bail};
use mmq_kernels::{Attention, Kv};

/// The sizes of a resampler.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shape {
    /// Width of the features that go in.
    pub n_in: usize,
    /// Width inside, and of what comes out.
    pub n_embd: usize,
    /// Heads.
    pub n_head: usize,
    /// Rows that come out.
    pub n_query: usize,
    /// Rows that go in.
    pub n_patch: usize,
    /// Epsilon of the norms.
    pub eps: f32,
}

impl Shape {
    /// Bytes of the buffers that a picture takes: patches, keys, values, what attention gives, the inputs of products in 8 bits.
    pub fn scratch(&self) -> usize {
        4 * self.n_embd * (3 * self.n_patch + 2 * self.n_query)
            + self.n_patch * ops::rounded_bytes(self.n_embd.max(self.n_in))
    }
}

/// A resampler's weights.
pub struct Resampler {
    shape: Shape,
    kv: Linear,
    ln_kv: LayerNorm,
    /// `[n_query, n_embd]`.
    q: Vec<f32>,
    attn_k: Linear,
    /// What positions, and the bias, add to keys: `[n_patch, n_embd]`.
    k_pos: Vec<f32>,
    attn_v: Linear,
    attn_out: Linear,
    ln_post: LayerNorm,
    proj: Linear,
}

impl Resampler {
    /// Loads `resampler.*`.
    ///
    /// # Errors
    /// Tensors that are missing or of other shapes; heads that do not divide the width.
    pub fn load(loader: Loader<'_>, shape: Shape) -> Result<Resampler> {
        let Shape { n_in, n_embd, n_head, n_query, n_patch, eps } = shape;
        if !n_embd.is_multiple_of(n_head) {
            bail!(Format, "{}: a resampler of {n_embd} elements in {n_head} heads", loader.gguf.name());
        }
        let linear = |name: &str, n_in: usize| Linear::load_vision(loader, &format!("resampler.{name}"), n_embd, n_in);
        let norm = |name: &str| LayerNorm::load(loader, &format!("resampler.{name}"), n_embd, eps);
        let attn_k = linear("attn.k", n_embd)?;
        let query = loader.vector("resampler.query", n_query * n_embd)?;
        let pos_q = loader.vector("resampler.pos_embed_q", n_query * n_embd)?;
        let pos_k = loader.vector("resampler.pos_embed_k", n_patch * n_embd)?;
        let ln_q = norm("ln_q")?;
        // As they are stored: rounded weights are for what is computed again and again.
        let exact = |name: &str, bias: bool| -> Result<Linear> {
            let bias = if bias { loader.optional_vector(&format!("resampler.{name}.bias"), n_embd)? } else { None };
            Ok(Linear { weight: loader.weight(&format!("resampler.{name}.weight"), n_embd, n_embd)?, bias })
        };
        let mut q = ops::linear_at_load(loader, &query, ln_q.view(), &exact("attn.q", true)?);
        let q_pos = ops::linear_at_load(loader, &pos_q, Norm::None, &exact("attn.q", false)?);
        q.iter_mut().zip(q_pos).for_each(|(q, pos)| *q += pos);
        Ok(Resampler {
            shape,
            kv: linear("kv", n_in)?,
            ln_kv: norm("ln_kv")?,
            q,
            k_pos: ops::linear_at_load(loader, &pos_k, Norm::None, &exact("attn.k", true)?),
            attn_k: Linear { bias: None, ..attn_k },
            attn_v: linear("attn.v", n_embd)?,
            attn_out: linear("attn.out", n_embd)?,
            ln_post: norm("ln_post")?,
            proj: linear("proj", n_embd)?,
        })
    }

    /// The resampler's sizes.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Makes `[n_query, n_embd]` of the features of one picture, `[n_patch, n_in]`. `name` is appended to the names of traced
    /// activations.
    pub fn forward(&self, cx: &mut Cx<'_>, features: &[f32], name: &str) -> Vec<f32> {
        let Shape { n_embd, n_head, n_patch, .. } = self.shape;
        let (mut x, mut k, mut v) = (Vec::new(), Vec::new(), Vec::new());
        ops::linear(cx, features, Norm::None, [(&self.kv, &mut x)]);
        ops::linear(cx, &x, self.ln_kv.view(), [(&self.attn_k, &mut k), (&self.attn_v, &mut v)]);
        ops::add(cx, &mut k, &self.k_pos, n_embd);
        let head_dim = n_embd / n_head;
        let scale = 1.0 / (head_dim as f32).sqrt();
        let attention = Attention { n_head, n_head_kv: n_head, head_dim, scale, causal: None };
        let mut attn = Vec::new();
        ops::attention(cx, attention, &self.q, Kv::F32(&k), Kv::F32(&v), n_patch, &mut attn);
        ops::linear(cx, &attn, Norm::None, [(&self.attn_out, &mut x)]);
        cx.trace(|| format!("resampler.attn_out{name}"), &x);
        let mut rows = Vec::new();
        ops::linear(cx, &x, self.ln_post.view(), [(&self.proj, &mut rows)]);
        cx.trace(|| format!("mm.out{name}"), &rows);
        rows
    }
}
