//! LLaMA and its kin: RMSNorm, rotary positions, grouped-query attention, gated SiLU feed-forward.
//!
//! LLaMA (arXiv 2302.13971), Llama 2 (2307.09288), Mistral (2310.06825); reference: `LlamaForCausalLM` of Hugging Face
//! transformers. GGUF files of Vicuna, Mistral, SmolLM, Yi and TinyLlama all say `llama`.
//!
//! | here | GGUF | Hugging Face |
//! |---|---|---|
//! | `n_embd` | `llama.embedding_length` | `hidden_size` |
//! | `n_layer` | `llama.block_count` | `num_hidden_layers` |
//! | `n_ff` | `llama.feed_forward_length` | `intermediate_size` |
//! | `n_head`, `n_head_kv` | `llama.attention.head_count`, `head_count_kv` | `num_attention_heads`, `num_key_value_heads` |
//! | `head_dim` | `llama.attention.key_length` (absent: `n_embd / n_head`) | `head_dim` |
//! | `eps` | `llama.attention.layer_norm_rms_epsilon` | `rms_norm_eps` |
//! | `token_embd` | `token_embd.weight` | `model.embed_tokens` |
//! | `blk.N.attn_{q,k,v,output}` | same | `model.layers.N.self_attn.{q,k,v,o}_proj` |
//! | `blk.N.ffn_{gate,up,down}` | same | `model.layers.N.mlp.{gate,up,down}_proj` |
//! | `blk.N.attn_norm`, `ffn_norm` | same | `input_layernorm`, `post_attention_layernorm` |
//! | `output_norm`, `output` | same | `model.norm`, `lm_head` |
//!
//! **Easy to get wrong**
//! - GGUF's rows of `attn_q` and `attn_k` are permuted: a rotation turns neighbours `(2i, 2i+1)`, not `(i, i + d/2)`.
//! - Without `output.weight` the head is `token_embd.weight` (tied).
//! - `head_count_kv` is absent in files from before Llama 2: then it is `head_count`.
//! - Llama 3's RoPE scaling is no key but the tensor `rope_freqs.weight`; it divides.

use super::{Architecture, Model, Text};
use crate::Result;
use crate::blocks::decoder::{Config, Decoder};
use crate::blocks::rope::Rope;
use crate::tensor::Loader;

/// The registry's line.
pub const ARCH: Architecture = Architecture {
    name: "llama",
    matches: |gguf| matches!(gguf.metadata().str("general.architecture"), Ok(Some("llama"))),
    load: |loader| Ok(Model::Text(Box::new(Text { name: "LLaMA", decoder: load(loader)? }))),
};

/// Loads the weights, checking every shape.
fn load(loader: Loader<'_>) -> Result<Decoder> {
    let config = Config::load(loader.gguf, "llama", 1e-5)?;
    let rope = Rope::load(loader.gguf, "llama", config.layer.head_dim, config.n_ctx_train)?;
    Decoder::load(loader, config, rope)
}
