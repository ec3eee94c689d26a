//! Qwen, the first: LLaMA's layers with fused and biased queries, keys and values, and a way beyond the trained context.
//!
//! Qwen (arXiv 2309.16609), the language model of Qwen-VL (2308.12966); reference: the authors' `modeling_qwen.py`. With up to
//! `n_ctx` tokens it computes what `Qwen2ForCausalLM` of Hugging Face transformers does. GGUF files say `qwen`; Qwen 1.5 and later
//! are other architectures.
//!
//! | here | GGUF | Hugging Face |
//! |---|---|---|
//! | `n_embd`, `n_layer`, `n_head` | `qwen.embedding_length`, `block_count`, `attention.head_count` | `hidden_size`, `num_hidden_layers`, `num_attention_heads` |
//! | `eps` | `qwen.attention.layer_norm_rms_epsilon` | `layer_norm_epsilon` |
//! | `n_ctx_train` | `qwen.context_length` | `max_position_embeddings` |
//! | `n_ctx` | `qwen.rope.scaling.original_context_length` | `seq_length` |
//! | `ntk`, `logn` | `qwen.use_dynamic_ntk`, `qwen.use_logn_attn` | same, without `qwen.` |
//! | `blk.N.attn_qkv`, `attn_output` | same | `transformer.h.N.attn.c_attn`, `c_proj` |
//! | `blk.N.ffn_{gate,up,down}` | same | `transformer.h.N.mlp.{w2,w1,c_proj}` |
//! | `blk.N.attn_norm`, `ffn_norm` | same | `transformer.h.N.ln_1`, `ln_2` |
//! | `token_embd`, `output_norm`, `output` | same | `transformer.wte`, `transformer.ln_f`, `lm_head` |
//!
//! **Easy to get wrong**
//! - `qwen.feed_forward_length` is twice the width: the tensors are right.
//! - A rotation turns `(i, i + d/2)`: nothing is permuted as it is for `llama`.
//! - Beyond `n_ctx`, the base of the rotations depends on the length of the whole prompt ([`Beyond`]). The answer goes on with
//!   the prompt's; a longer prompt with another base makes its keys anew, as the authors do for each turn.
//! - Published files do not say `n_ctx`: the authors' models with a base of 10,000 have a quarter of `context_length`
//!   (2,048 of 8,192, 8,192 of 32,768), the one with a larger base all of it. Both extras are on unless a key says otherwise.

use super::{Architecture, Model, Text};
use crate::blocks::decoder::{Config, Decoder};
use crate::blocks::rope::{Beyond, Rope};
use crate::ops::Pairs;
use crate::tensor::Loader;
use crate::{Result, bail};

/// The registry's line.
pub const ARCH: Architecture = Architecture {
    name: "qwen",
    matches: |gguf| matches!(gguf.metadata().str("general.architecture"), Ok(Some("qwen"))),
    load: |loader| Ok(Model::Text(Box::new(Text { name: "Qwen", decoder: load(loader)? }))),
};

/// Loads the weights, checking every shape.
fn load(loader: Loader<'_>) -> Result<Decoder> {
    let (gguf, meta) = (loader.gguf, loader.gguf.metadata());
    let mut config = Config::load(gguf, "qwen", 1e-6)?;
    let told = config.layer.n_ff;
    config.layer.n_ff = match loader.info("blk.0.ffn_gate.weight")?.shape.as_slice() {
        &[n, _] if n == told || 2 * n == told => n,
        shape => bail!(
            Format,
            "{}: tensor \"blk.0.ffn_gate.weight\": expected {told} rows or half as many, as qwen.feed_forward_length says, got {shape:?}",
            gguf.name()
        ),
    };
    let head_dim = config.layer.head_dim;
    if let Some(n) = meta.usize("qwen.rope.dimension_count")?.filter(|n| *n != head_dim) {
        bail!(Unsupported, "{}: qwen.rope.dimension_count: {n} of {head_dim} elements are rotated", gguf.name());
    }
    let base = meta.f32("qwen.rope.freq_base")?.unwrap_or(10_000.0);
    let n_ctx = meta.usize("qwen.rope.scaling.original_context_length")?;
    let n_ctx = n_ctx.unwrap_or(if base > 10_000.0 { config.n_ctx_train } else { config.n_ctx_train / 4 });
    if !(2..1 << 24).contains(&n_ctx) {
        bail!(Format, "{}: qwen.rope.scaling.original_context_length: {n_ctx} is no context", gguf.name());
    }
    let beyond = Beyond {
        n_ctx,
        ntk: meta.bool("qwen.use_dynamic_ntk")?.unwrap_or(true),
        logn: meta.bool("qwen.use_logn_attn")?.unwrap_or(true),
    };
    let rope = Rope::load(gguf, "qwen", head_dim, config.n_ctx_train)?;
    Decoder::load(loader, config, rope.with_pairs(Pairs::Halves).with_beyond(beyond))
}
