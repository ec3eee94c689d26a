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

use super::{Architecture, Logits, Model, TextModel};
use crate::blocks::decoder::{self, DecoderLayer, Scratch, Shape};
use crate::blocks::kv_cache::{KvCache, KvTypes};
use crate::blocks::rope::Rope;
use crate::gguf::Gguf;
use crate::ops::{self, Cx, Linear, Norm};
use crate::tensor::{Loader, Weight};
use crate::{Result, bail};

/// The registry's line.
pub const ARCH: Architecture = Architecture {
    name: "llama",
    matches: |gguf| matches!(gguf.metadata().str("general.architecture"), Ok(Some("llama"))),
    load: |loader| Ok(Model::Text(Box::new(Llama::load(loader)?))),
};

/// Widest row of activations: several times that of any model there is. A row takes memory for each token of a batch,
/// whatever the size of the file.
const MAX_WIDTH: usize = 1 << 18;

/// The sizes of a model.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct Config {
    pub n_layer: usize,
    pub n_vocab: usize,
    pub n_ctx_train: usize,
    pub layer: Shape,
}

impl Config {
    /// Reads and checks `llama.*`.
    pub fn load(gguf: &Gguf) -> Result<Config> {
        let meta = gguf.metadata();
        let size = |key: &str, most: usize| -> Result<usize> {
            let key = format!("llama.{key}");
            let n = meta.require(&key, meta.usize(&key))?;
            if n == 0 || n > most {
                bail!(Format, "{}: {key}: {n} is no sensible size (1 to {most})", gguf.name());
            }
            Ok(n)
        };
        let optional = |key: &str| meta.usize(&format!("llama.{key}"));
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
            bail!(Format, "{}: llama.attention.key_length: {n_head} heads of {head_dim}", gguf.name());
        }
        if let Some(n) = optional("attention.value_length")?.filter(|n| *n != head_dim) {
            bail!(Unsupported, "{}: keys of {head_dim} beside values of {n} cannot be run", gguf.name());
        }
        let eps = meta.f32("llama.attention.layer_norm_rms_epsilon")?.unwrap_or(1e-5);
        if !(eps >= 0.0 && eps.is_finite()) {
            bail!(Format, "{}: llama.attention.layer_norm_rms_epsilon: {eps} is no epsilon", gguf.name());
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

/// A loaded model.
pub struct Llama {
    config: Config,
    rope: Rope,
    token_embd: Weight,
    layers: Vec<DecoderLayer>,
    output_norm: Vec<f32>,
    output: Linear,
}

impl Llama {
    /// Loads the weights, checking every shape.
    pub fn load(loader: Loader<'_>) -> Result<Llama> {
        let gguf = loader.gguf;
        let config = Config::load(gguf)?;
        let s = config.layer;
        let (token_embd, output) = if loader.has("output.weight") {
            let token_embd = loader.table("token_embd.weight", config.n_vocab, s.n_embd)?;
            (token_embd, loader.weight("output.weight", config.n_vocab, s.n_embd)?)
        } else {
            let tied = loader.weight("token_embd.weight", config.n_vocab, s.n_embd)?;
            (tied.clone(), tied)
        };
        Ok(Llama {
            rope: Rope::load(gguf, "llama", s.head_dim, config.n_ctx_train)?,
            layers: (0..config.n_layer)
                .map(|il| DecoderLayer::load(loader, &format!("blk.{il}"), s))
                .collect::<Result<_>>()?,
            output_norm: loader.vector("output_norm.weight", s.n_embd)?,
            token_embd,
            output: Linear { weight: output, bias: None },
            config,
        })
    }
}

impl TextModel for Llama {
    fn describe(&self) -> String {
        let (c, s) = (&self.config, &self.config.layer);
        format!(
            "LLaMA text model, {} layers of {}, {} heads ({} for keys), vocabulary {}, context {}",
            c.n_layer, s.n_embd, s.n_head, s.n_head_kv, c.n_vocab, c.n_ctx_train
        )
    }

    fn n_embd(&self) -> usize {
        self.config.layer.n_embd
    }

    fn n_vocab(&self) -> usize {
        self.config.n_vocab
    }

    fn n_ctx_train(&self) -> usize {
        self.config.n_ctx_train
    }

    fn new_cache(&self, n_ctx: usize, types: KvTypes) -> Result<KvCache> {
        let s = &self.config.layer;
        KvCache::new(self.config.n_layer, s.n_head_kv, s.head_dim, n_ctx, types)
    }

    fn scratch(&self, n_tokens: usize) -> usize {
        self.config.layer.scratch(n_tokens)
    }

    fn embed(&self, tokens: &[u32], out: &mut Vec<f32>) {
        let n_embd = self.config.layer.n_embd;
        let start = out.len();
        out.resize(start + tokens.len() * n_embd, 0.0);
        for (row, token) in out[start..].chunks_exact_mut(n_embd).zip(tokens) {
            self.token_embd.row(*token as usize, row);
        }
    }

    fn forward(
        &self,
        cx: &mut Cx<'_>,
        x: &mut [f32],
        cache: &mut KvCache,
        which: Logits,
        logits: &mut Vec<f32>,
    ) -> Result<()> {
        let s = self.config.layer;
        let n_tokens = x.len() / s.n_embd;
        let n_past = cache.len();
        let (cos, sin) = self.rope.table(n_past, n_tokens);
        let mut scratch = Scratch::default();
        cx.trace(|| "embd".into(), x);
        let n_logits = match which {
            Logits::None => 0,
            Logits::Last => 1,
            Logits::Tail(n) => n.min(n_tokens),
        };
        for (il, layer) in self.layers.iter().enumerate() {
            if let Err(stopped) = cx.checkpoint(il, self.layers.len()) {
                cache.truncate(n_past);
                return Err(stopped);
            }
            if let Some(n_resident) = cx.n_resident {
                decoder::read_ahead(&self.layers, il, n_resident);
            }
            // Who collects wants to see every token, also in the last layer.
            let all = il + 1 < self.layers.len() || cx.collector.is_some();
            let n_out = if all { n_tokens } else { n_logits };
            layer.forward(cx, s, il, &cos, &sin, cache, x, n_out, &mut scratch);
            if let Some(n_resident) = cx.n_resident {
                decoder::give_back(&self.layers, il, n_resident);
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
        ops::linear(cx, &norm, Norm::None, [(&self.output, &mut *logits)]);
        cx.trace(|| "logits".into(), logits);
        Ok(())
    }
}
