//! A Q-Former (BLIP-2, arXiv 2301.12597): learned queries in a small BERT, which look at the features of a picture every few
//! blocks. The path of the queries alone: no words, no positions, norms behind each sum.

use super::mmproj;
use crate::gguf::Gguf;
use crate::ops::{self, Activation, Cx, LayerNorm, Linear, Norm};
use crate::tensor::Loader;
use crate::{Result, bail};
use mmq_kernels::{Attention, Kv};

/// The sizes of a Q-Former.
#[derive(Clone, Debug, PartialEq)]
pub struct Shape {
    /// Blocks.
    pub n_block: usize,
    /// Width of the queries.
    pub n_embd: usize,
    /// Width of the feed-forward layer.
    pub n_ff: usize,
    /// Heads.
    pub n_head: usize,
    /// Queries: the rows that come out.
    pub n_query: usize,
    /// Blocks `0`, `n`, `2n` … look at the picture.
    pub cross_attention_frequency: usize,
    /// Epsilon of the norms.
    pub eps: f32,
    /// Activation of the feed-forward layer.
    pub activation: Activation,
    /// Width of the features that are looked at.
    pub n_feature: usize,
}

impl Shape {
    /// Reads `clip.qformer.*`, for features of width `n_feature`.
    ///
    /// # Errors
    /// Keys that are missing, or do not fit each other.
    pub fn read(gguf: &Gguf, n_feature: usize) -> Result<Shape> {
        let size = |key: &str| mmproj::size(gguf, &format!("clip.qformer.{key}"));
        let shape = Shape {
            n_block: size("block_count")?,
            n_embd: size("embedding_length")?,
            n_ff: size("feed_forward_length")?,
            n_head: size("head_count")?,
            n_query: size("query_count")?,
            cross_attention_frequency: size("cross_attention_frequency")?,
            eps: mmproj::epsilon(gguf, "clip.qformer.layer_norm_epsilon")?.unwrap_or(1e-12),
            activation: mmproj::activation(gguf, "clip.qformer.activation")?.unwrap_or(Activation::Gelu),
            n_feature,
        };
        if !shape.n_embd.is_multiple_of(shape.n_head) {
            bail!(
                Format,
                "{}: clip.qformer.head_count: {} elements in {} heads do not divide",
                gguf.name(),
                shape.n_embd,
                shape.n_head
            );
        }
        Ok(shape)
    }

    /// Width of the widest row of the queries on the way.
    pub fn max_width(&self) -> usize {
        self.n_ff.max(self.n_embd)
    }

    /// Bytes of the buffers that a picture of `n_rows` features takes: the stream and its norm, queries, keys, values, what
    /// attention and the feed-forward layer give, and the inputs of products in 8 bits.
    pub fn scratch(&self, n_rows: usize) -> usize {
        4 * (self.n_query * (5 * self.n_embd + self.n_ff) + 2 * n_rows * self.n_embd)
            + n_rows.max(self.n_query) * ops::rounded_bytes(self.n_feature.max(self.max_width()))
    }
}

/// Attention of the queries, with the norm behind it.
struct Attend {
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
    norm: LayerNorm,
}

struct Block {
    attn: Attend,
    /// To the picture.
    xattn: Option<Attend>,
    ffn_up: Linear,
    ffn_down: Linear,
    ffn_norm: LayerNorm,
}

/// A Q-Former's weights.
pub struct Qformer {
    shape: Shape,
    /// `[n_query, n_embd]`.
    query: Vec<f32>,
    embd_norm: LayerNorm,
    blocks: Vec<Block>,
}

impl Qformer {
    /// Loads `qf.*`.
    ///
    /// # Errors
    /// Tensors that are missing or of another shape.
    pub fn load(loader: Loader<'_>, shape: Shape) -> Result<Qformer> {
        let d = shape.n_embd;
        let linear = |name: &str, n_out: usize, n_in: usize| Linear::load_vision(loader, name, n_out, n_in);
        let norm = |name: &str| LayerNorm::load(loader, name, d, shape.eps);
        let attend = |name: String, n_in: usize| -> Result<Attend> {
            Ok(Attend {
                q: linear(&format!("{name}_q"), d, d)?,
                k: linear(&format!("{name}_k"), d, n_in)?,
                v: linear(&format!("{name}_v"), d, n_in)?,
                out: linear(&format!("{name}_out"), d, d)?,
                norm: norm(&format!("{name}_norm"))?,
            })
        };
        let block = |il: usize| -> Result<Block> {
            let looks = il.is_multiple_of(shape.cross_attention_frequency);
            let xattn = looks.then(|| attend(format!("qf.blk.{il}.xattn"), shape.n_feature));
            Ok(Block {
                attn: attend(format!("qf.blk.{il}.attn"), d)?,
                xattn: xattn.transpose()?,
                ffn_up: linear(&format!("qf.blk.{il}.ffn_up"), shape.n_ff, d)?,
                ffn_down: linear(&format!("qf.blk.{il}.ffn_down"), d, shape.n_ff)?,
                ffn_norm: norm(&format!("qf.blk.{il}.ffn_norm"))?,
            })
        };
        Ok(Qformer {
            query: loader.vector("qf.query", shape.n_query * d)?,
            embd_norm: norm("qf.embd_norm")?,
            blocks: (0..shape.n_block).map(block).collect::<Result<_>>()?,
            shape,
        })
    }

    /// Its sizes.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// What the queries gather of one picture's features `[n, n_feature]`: `[n_query, n_embd]`. `name` is appended to the
    /// names of traced activations.
    ///
    /// # Errors
    /// Cancellation.
    pub fn forward(&self, cx: &mut Cx<'_>, features: &[f32], name: &str) -> Result<Vec<f32>> {
        let mut x = Vec::new();
        ops::layer_norm(cx, &self.query, &self.embd_norm, &mut x);
        cx.trace(|| format!("qf.embd{name}"), &x);
        let (mut ff, mut normed) = (Vec::new(), Vec::new());
        for (il, block) in self.blocks.iter().enumerate() {
            cx.checkpoint(il, self.blocks.len())?;
            self.attend(cx, &block.attn, None, &mut x);
            if let Some(xattn) = &block.xattn {
                self.attend(cx, xattn, Some(features), &mut x);
            }
            ops::linear_activated(cx, &x, Norm::None, &block.ffn_up, self.shape.activation, &mut ff);
            ops::linear_add(cx, &ff, &block.ffn_down, &mut x);
            ops::layer_norm(cx, &x, &block.ffn_norm, &mut normed);
            std::mem::swap(&mut x, &mut normed);
            cx.trace(|| format!("qf.blk.{il}.out{name}"), &x);
        }
        Ok(x)
    }

    /// `x = norm(x + attention)` of the queries to `features`, or to themselves.
    fn attend(&self, cx: &mut Cx<'_>, attend: &Attend, features: Option<&[f32]>, x: &mut Vec<f32>) {
        let (mut q, mut k, mut v) = (Vec::new(), Vec::new(), Vec::new());
        match features {
            None => {
                let layers = [(&attend.q, &mut q), (&attend.k, &mut k), (&attend.v, &mut v)];
                ops::linear(cx, x, Norm::None, layers);
            }
            Some(features) => {
                ops::linear(cx, x, Norm::None, [(&attend.q, &mut q)]);
                ops::linear(cx, features, Norm::None, [(&attend.k, &mut k), (&attend.v, &mut v)]);
            }
        }
        let (d, n_head) = (self.shape.n_embd, self.shape.n_head);
        let head_dim = d / n_head;
        let scale = 1.0 / (head_dim as f32).sqrt();
        let shape = Attention { n_head, n_head_kv: n_head, head_dim, scale, causal: None };
        let mut out = Vec::new();
        ops::attention(cx, shape, &q, Kv::F32(&k), Kv::F32(&v), k.len() / d, &mut out);
        ops::linear_add(cx, &out, &attend.out, x);
        ops::layer_norm(cx, x, &attend.norm, &mut out);
        std::mem::swap(x, &mut out);
    }
}
