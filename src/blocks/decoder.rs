//! A LLaMA-like decoder: a table of tokens, layers of RMSNorm, grouped-query attention with RoPE, RMSNorm and gated
//! feed-forward, a last norm, an output matrix.

use super::kv_cache::KvCache;
use super::rope::{Angles, Rope};
use crate::gguf::Gguf;
use crate::ops::{self, Cx, Linear, Norm};
use crate::tensor::{Loader, Weight};
use crate::{Result, bail};
use mmq_kernels::Attention;
use std::ops::Range;

/// Widest row of activations: several times that of any model there is. A row takes memory for each token of a batch,
/// whatever the size of the file.
const MAX_WIDTH: usize = 1 << 18;

/// The sizes of a decoder.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct Config {
    pub n_layer: usize,
    pub n_vocab: usize,
    pub n_ctx_train: usize,
    pub layer: Shape,
}

impl Config {
    /// Reads and checks `{arch}.*`; `eps` is the norms' epsilon where the file does not say.
    ///
    /// # Errors
    /// Keys that are missing or do not fit each other; what cannot be run.
    pub fn load(gguf: &Gguf, arch: &str, eps: f32) -> Result<Config> {
        let meta = gguf.metadata();
        let size = |key: &str, most: usize| -> Result<usize> {
            let key = format!("{arch}.{key}");
            let n = meta.require(&key, meta.usize(&key))?;
            if n == 0 || n > most {
                bail!(Format, "{}: {key}: {n} is no sensible size (1 to {most})", gguf.name());
            }
            Ok(n)
        };
        let optional = |key: &str| meta.usize(&format!("{arch}.{key}"));
        if let Some(n) = optional("expert_count")?.filter(|n| *n > 0) {
            bail!(Unsupported, "{}: a mixture of {n} experts cannot be run yet", gguf.name());
        }
        let (n_embd, n_head) = (size("embedding_length", MAX_WIDTH)?, size("attention.head_count", MAX_WIDTH)?);
        let n_head_kv = optional("attention.head_count_kv")?.unwrap_or(n_head);
        let head_dim = optional("attention.key_length")?.unwrap_or(n_embd / n_head);
        if n_head_kv == 0 || !n_head.is_multiple_of(n_head_kv) {
            bail!(Format, "{}: {n_head} heads cannot share {n_head_kv} key and value heads", gguf.name());
        }
        if head_dim == 0 || head_dim > MAX_WIDTH / n_head {
            bail!(Format, "{}: {arch}.attention.key_length: {n_head} heads of {head_dim}", gguf.name());
        }
        if let Some(n) = optional("attention.value_length")?.filter(|n| *n != head_dim) {
            bail!(Unsupported, "{}: keys of {head_dim} beside values of {n} cannot be run", gguf.name());
        }
        let eps = meta.f32(&format!("{arch}.attention.layer_norm_rms_epsilon"))?.unwrap_or(eps);
        if !(eps >= 0.0 && eps.is_finite()) {
            bail!(Format, "{}: {arch}.attention.layer_norm_rms_epsilon: {eps} is no epsilon", gguf.name());
        }
        let &[n_vocab, _] = Loader::stored(gguf).info("token_embd.weight")?.shape.as_slice() else {
            bail!(Format, "{}: tensor \"token_embd.weight\": expected [n_vocab, {n_embd}]", gguf.name());
        };
        Ok(Config {
            n_layer: size("block_count", MAX_WIDTH)?,
            n_vocab,
            n_ctx_train: size("context_length", 1 << 24)?,
            layer: Shape { n_embd, n_head, n_head_kv, head_dim, n_ff: size("feed_forward_length", MAX_WIDTH)?, eps },
        })
    }
}

/// A loaded decoder.
pub struct Decoder {
    config: Config,
    rope: Rope,
    token_embd: Weight,
    layers: Vec<DecoderLayer>,
    output_norm: Vec<f32>,
    output: Linear,
}

impl Decoder {
    /// Loads the weights, checking every shape. Without `output.weight`, `token_embd.weight` is the output matrix too.
    ///
    /// # Errors
    /// Tensors that are missing or of other shapes; what [`Loader::weight`] says.
    pub fn load(loader: Loader<'_>, config: Config, rope: Rope) -> Result<Decoder> {
        let s = config.layer;
        let (token_embd, output) = if loader.has("output.weight") {
            let token_embd = loader.table("token_embd.weight", config.n_vocab, s.n_embd)?;
            (token_embd, loader.weight("output.weight", config.n_vocab, s.n_embd)?)
        } else {
            let tied = loader.weight("token_embd.weight", config.n_vocab, s.n_embd)?;
            (tied.clone(), tied)
        };
        Ok(Decoder {
            rope,
            layers: (0..config.n_layer)
                .map(|il| DecoderLayer::load(loader, &format!("blk.{il}"), s))
                .collect::<Result<_>>()?,
            output_norm: loader.vector("output_norm.weight", s.n_embd)?,
            token_embd,
            output: Linear { weight: output, bias: None },
            config,
        })
    }

    /// The decoder's sizes.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Makes a cache ready for a prompt of `n` positions, of which it may hold the first: keys that longer prompts turn
    /// otherwise are forgotten.
    pub fn expect(&self, cache: &mut KvCache, n: usize) {
        cache.restretch(self.rope.stretch(n));
    }

    /// Appends the embeddings of `tokens` to `out`.
    pub fn embed(&self, tokens: &[u32], out: &mut Vec<f32>) {
        let n_embd = self.config.layer.n_embd;
        let start = out.len();
        out.resize(start + tokens.len() * n_embd, 0.0);
        for (row, token) in out[start..].chunks_exact_mut(n_embd).zip(tokens) {
            self.token_embd.row(*token as usize, row);
        }
    }

    /// Takes embeddings `x: [n_tokens, n_embd]` through the decoder behind what is in the cache, and writes the logits
    /// after the last `n_logits` of them. When cancelled, the cache is as it was before.
    ///
    /// # Errors
    /// Only that.
    pub fn forward(
        &self,
        cx: &mut Cx<'_>,
        x: &mut [f32],
        cache: &mut KvCache,
        n_logits: usize,
        logits: &mut Vec<f32>,
    ) -> Result<()> {
        let s = self.config.layer;
        let n_tokens = x.len() / s.n_embd;
        let n_past = cache.len();
        let angles = self.rope.angles(n_past, n_tokens, cache.stretch());
        let mut scratch = Scratch::default();
        cx.trace(|| "embd".into(), x);
        for (il, layer) in self.layers.iter().enumerate() {
            if let Err(stopped) = cx.checkpoint(il, self.layers.len()) {
                cache.truncate(n_past);
                return Err(stopped);
            }
            if let Some(n_resident) = cx.n_resident {
                self.read_ahead(il, n_resident, n_logits > 0);
            }
            // Who collects wants to see every token, also in the last layer.
            let all = il + 1 < self.layers.len() || cx.collector.is_some();
            let n_out = if all { n_tokens } else { n_logits };
            layer.forward(cx, s, il, &angles, cache, x, n_out, &mut scratch);
            if cx.n_resident.is_some_and(|n_resident| il >= n_resident) {
                layer.matrices().for_each(Weight::give_back);
            }
        }
        cache.advance(n_tokens);
        if n_logits == 0 {
            return Ok(());
        }

        let first = (n_tokens - n_logits) * s.n_embd;
        let mut norm = Vec::new();
        ops::rms_norm(cx, &x[first..], &self.output_norm, s.eps, &mut norm);
        cx.trace(|| "output_norm".into(), &norm);
        if let Some(n_resident) = cx.n_resident {
            self.read_ahead(self.layers.len(), n_resident, true);
        }
        ops::linear(cx, &norm, Norm::None, [(&self.output, &mut *logits)]);
        if cx.n_resident.is_some() {
            self.output.weight.give_back();
        }
        cx.trace(|| "logits".into(), logits);
        Ok(())
    }

    /// Where layers from `n_resident` on stream through memory, and `output` behind them if it is `wanted`: tells the system,
    /// before layer `il` is at work, to read what is next. Behind the last comes the first of them again, for the next pass.
    fn read_ahead(&self, il: usize, n_resident: usize, wanted: bool) {
        if il + 1 == self.layers.len() && wanted {
            self.output.weight.read_ahead();
            return;
        }
        let next = if il + 1 < self.layers.len() { il + 1 } else { n_resident };
        if let Some(layer) = self.layers.get(next).filter(|_| next >= n_resident) {
            layer.matrices().for_each(Weight::read_ahead);
        }
    }
}

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
    /// Loads `{prefix}.attn_norm.weight` and so on, with biases where the file has them. Queries, keys and values may be
    /// one matrix, `attn_qkv`.
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
        let (n_q, n_kv) = (s.n_head * s.head_dim, s.n_head_kv * s.head_dim);
        let fused = format!("{prefix}.attn_qkv");
        let is_fused = loader.has(&format!("{fused}.weight"));
        let attn = |name: &str, part: Range<usize>| -> Result<Linear> {
            if !is_fused {
                return linear(name, part.len(), s.n_embd);
            }
            let n = n_q + 2 * n_kv;
            let bias = loader.optional_vector(&format!("{fused}.bias"), n)?;
            Ok(Linear {
                weight: loader.weight_part(&format!("{fused}.weight"), n, s.n_embd, part.clone())?,
                bias: bias.map(|bias| bias[part].to_vec()),
            })
        };
        Ok(DecoderLayer {
            attn_norm: norm("attn_norm")?,
            attn_q: attn("attn_q", 0..n_q)?,
            attn_k: attn("attn_k", n_q..n_q + n_kv)?,
            attn_v: attn("attn_v", n_q + n_kv..n_q + 2 * n_kv)?,
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
    /// the cache. `angles` are the rotations of their positions. Only the last `n_out` rows of `x` are brought up to
    /// date: after the last layer, no other is looked at.
    #[allow(clippy::too_many_arguments)]
    pub fn forward(
        &self,
        cx: &mut Cx<'_>,
        s: Shape,
        il: usize,
        angles: &Angles,
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
        ops::rope(cx, &mut b.k, s.n_head_kv, s.head_dim, angles.pairs(), angles.keys());
        cache.push(il, &b.k, &b.v);
        if n_out == 0 {
            return;
        }
        let x = &mut x[first * s.n_embd..];
        ops::rope(cx, &mut b.q, s.n_head, s.head_dim, angles.pairs(), angles.queries(first));
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
