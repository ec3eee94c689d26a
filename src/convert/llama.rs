//! The language model: `config.json` and tensors of `LlamaForCausalLM` and its kin as a `llama` file.
//!
//! Keys and names are those that llama.cpp's converter writes; `src/architectures/llama.rs` has the table of names.
//!
//! **Easy to get wrong**
//! - Rows of q and k are permuted: Hugging Face rotates `(i, i + d/2)`, GGUF neighbours `(2i, 2i+1)`.
//! - What `config.json` does not say is its class's default, and Mistral's defaults are not LLaMA's.
//! - Llama 3's RoPE scaling becomes the tensor `rope_freqs.weight`, of F32 computed in F32.
//! - YaRN's `attention_factor` is the whole factor, in GGUF what is multiplied with `1 + 0.1 ln(factor)`.

use super::checkpoint::Checkpoint;
use super::config::Json;
use super::{Data, Planned};
use crate::gguf::Value;
use crate::{Result, bail};

/// The sizes of a language model, as far as its files must agree with them.
#[derive(Clone, Debug)]
pub(super) struct Config {
    pub n_layer: usize,
    pub n_vocab: usize,
    pub n_ctx: usize,
    pub n_embd: usize,
    pub n_ff: usize,
    pub n_head: usize,
    pub n_head_kv: usize,
    pub head_dim: usize,
    pub eps: f32,
    pub rope: Rope,
    /// Whether the output matrix is the table of tokens.
    pub tied: bool,
    attention_bias: bool,
    mlp_bias: bool,
}

/// How positions are rotated.
#[derive(Clone, Debug)]
pub(super) struct Rope {
    base: f32,
    scaling: Scaling,
}

#[derive(Clone, Debug)]
enum Scaling {
    None,
    Linear { factor: f32 },
    Yarn { factor: f32, n_ctx: usize, attn_factor: Option<f32>, beta_fast: Option<f32>, beta_slow: Option<f32> },
    Llama3 { factor: f32, low: f32, high: f32, n_ctx: usize },
}

impl Config {
    /// Reads the model's section of `config.json`; `whole` is the file, which may say too that the matrices are tied.
    pub fn read(json: &Json, whole: &Json, notes: &mut Vec<String>) -> Result<Config> {
        let kind = json.str("model_type")?.unwrap_or("llama");
        let mistral = match kind {
            "llama" | "llava" | "llava_llama" | "llava-llama" => false,
            "mistral" | "llava_mistral" | "llava-mistral" => true,
            other => bail!(
                Unsupported,
                "{}: \"{other}\" is no language model that mmq converts; those of llama and mistral are",
                json.at("model_type")
            ),
        };
        if let Some(n) = json.usize("num_local_experts")?.filter(|n| *n > 0) {
            bail!(Unsupported, "{}: a mixture of {n} experts cannot be run yet", json.at("num_local_experts"));
        }
        for section in [json, whole] {
            if let Some(quantization) = section.section("quantization_config")? {
                let method = quantization.str("quant_method")?.unwrap_or("an unknown method");
                bail!(
                    Unsupported,
                    "{}: the weights are quantized by {method}; convert the original ones",
                    section.at("quantization_config")
                );
            }
        }
        match json.str("hidden_act")? {
            None | Some("silu" | "swish") => {}
            Some(other) => bail!(Unsupported, "{}: expected silu, got \"{other}\"", json.at("hidden_act")),
        }
        if json.bool("is_causal")? == Some(false) {
            bail!(Unsupported, "{}: the model looks at later tokens too", json.at("is_causal"));
        }
        let (n_embd, n_head) = (json.size("hidden_size", 4096)?, json.size("num_attention_heads", 32)?);
        let n_head_kv = match json.entries().any(|(key, _)| key == "num_key_value_heads") || !mistral {
            true => json.size("num_key_value_heads", n_head)?,
            false => 8,
        };
        let n_ctx = json.size("max_position_embeddings", if mistral { 4096 * 32 } else { 2048 })?;
        if let Some(n) = json.usize("sliding_window")?.filter(|n| *n < n_ctx && mistral) {
            notes.push(format!(
                "the original looks back {n} tokens only; GGUF has no such limit for llama, so that longer contexts differ"
            ));
        }
        let head_dim = json.size("head_dim", n_embd / n_head)?;
        if !n_head.is_multiple_of(n_head_kv) || !head_dim.is_multiple_of(2) {
            bail!(
                Format,
                "{}: {n_head} heads of {head_dim} elements, {n_head_kv} of keys, do not divide",
                json.at("num_attention_heads")
            );
        }
        Ok(Config {
            n_layer: json.size("num_hidden_layers", 32)?,
            n_vocab: json.size("vocab_size", 32000)?,
            n_ctx,
            n_embd,
            n_ff: json.size("intermediate_size", if mistral { 14336 } else { 11008 })?,
            n_head,
            n_head_kv,
            head_dim,
            eps: json.f64("rms_norm_eps")?.unwrap_or(1e-6) as f32,
            rope: Rope::read(json, n_ctx, notes)?,
            tied: json.bool("tie_word_embeddings")? == Some(true) || whole.bool("tie_word_embeddings")? == Some(true),
            attention_bias: json.bool("attention_bias")? == Some(true),
            mlp_bias: json.bool("mlp_bias")? == Some(true),
        })
    }

    /// `llama.*` in llama.cpp's order, with `general.file_type` where it has it.
    pub fn keys(&self, file_type: u32) -> Vec<(String, Value)> {
        let mut keys: Vec<(String, Value)> = Vec::new();
        let mut set = |key: &str, value: Value| keys.push((format!("llama.{key}"), value));
        let size = |n: usize| Value::U32(n as u32);
        set("block_count", size(self.n_layer));
        set("context_length", size(self.n_ctx));
        set("embedding_length", size(self.n_embd));
        set("feed_forward_length", size(self.n_ff));
        set("attention.head_count", size(self.n_head));
        set("attention.head_count_kv", size(self.n_head_kv));
        match self.rope.scaling {
            Scaling::None | Scaling::Llama3 { .. } => {}
            Scaling::Linear { factor } => {
                set("rope.scaling.type", "linear".into());
                set("rope.scaling.factor", factor.into());
            }
            Scaling::Yarn { factor, n_ctx, attn_factor, beta_fast, beta_slow } => {
                set("rope.scaling.type", "yarn".into());
                set("rope.scaling.factor", factor.into());
                set("rope.scaling.original_context_length", size(n_ctx));
                for (key, value) in
                    [("attn_factor", attn_factor), ("yarn_beta_fast", beta_fast), ("yarn_beta_slow", beta_slow)]
                {
                    if let Some(value) = value {
                        set(&format!("rope.scaling.{key}"), value.into());
                    }
                }
            }
        }
        set("rope.freq_base", self.rope.base.into());
        set("attention.layer_norm_rms_epsilon", self.eps.into());
        set("attention.key_length", size(self.head_dim));
        set("attention.value_length", size(self.head_dim));
        keys.push(("general.file_type".into(), file_type.into()));
        keys.push(("llama.vocab_size".into(), size(self.n_vocab)));
        keys.push(("llama.rope.dimension_count".into(), size(self.head_dim)));
        keys
    }

    /// The tensors, whose names begin with `prefix`, in the order of the model; the names that were used go to `used`.
    pub fn tensors(
        &self,
        checkpoint: &Checkpoint,
        prefix: &str,
        used: &mut Vec<String>,
        notes: &mut Vec<String>,
    ) -> Result<Vec<Planned>> {
        let mut planned = Vec::new();
        let mut add = |to: String, from: String, shape: &[usize], n_head: Option<usize>| -> Result<()> {
            let tensor = checkpoint.require(&from)?.expect(shape, "")?.clone();
            used.push(from);
            planned.push(Planned { name: to, shape: shape.to_vec(), data: Data::Tensor { tensor, n_head } });
            Ok(())
        };
        let (n_q, n_kv) = (self.n_head * self.head_dim, self.n_head_kv * self.head_dim);
        let (n_embd, n_ff) = (self.n_embd, self.n_ff);
        let token_embd = format!("{prefix}embed_tokens.weight");
        add("token_embd.weight".into(), token_embd.clone(), &[self.n_vocab, n_embd], None)?;
        for il in 0..self.n_layer {
            let (blk, layer) = (format!("blk.{il}"), format!("{prefix}layers.{il}"));
            add(format!("{blk}.attn_norm.weight"), format!("{layer}.input_layernorm.weight"), &[n_embd], None)?;
            let (attn, mlp) = (self.attention_bias, self.mlp_bias);
            for (to, from, n_out, n_in, n_head, bias) in [
                ("attn_q", "self_attn.q_proj", n_q, n_embd, Some(self.n_head), attn),
                ("attn_k", "self_attn.k_proj", n_kv, n_embd, Some(self.n_head_kv), attn),
                ("attn_v", "self_attn.v_proj", n_kv, n_embd, None, attn),
                ("attn_output", "self_attn.o_proj", n_embd, n_q, None, attn),
                ("ffn_gate", "mlp.gate_proj", n_ff, n_embd, None, mlp),
                ("ffn_up", "mlp.up_proj", n_ff, n_embd, None, mlp),
                ("ffn_down", "mlp.down_proj", n_embd, n_ff, None, mlp),
            ] {
                let (to, from) = (format!("{blk}.{to}"), format!("{layer}.{from}"));
                add(format!("{to}.weight"), format!("{from}.weight"), &[n_out, n_in], n_head)?;
                if bias || checkpoint.tensors.contains_key(&format!("{from}.bias")) {
                    add(format!("{to}.bias"), format!("{from}.bias"), &[n_out], n_head)?;
                }
            }
            add(format!("{blk}.ffn_norm.weight"), format!("{layer}.post_attention_layernorm.weight"), &[n_embd], None)?;
        }
        add("output_norm.weight".into(), format!("{prefix}norm.weight"), &[n_embd], None)?;
        let output = checkpoint.find("lm_head.weight")?.map(|(head, _)| format!("{head}lm_head.weight"));
        match output {
            Some(output) => {
                let same = self.tied && checkpoint.require(&output)?.same_as(checkpoint.require(&token_embd)?);
                if same {
                    used.push(output);
                } else {
                    if self.tied {
                        notes.push(format!(
                            "{output} is not {token_embd}, though tie_word_embeddings is set: both are written"
                        ));
                    }
                    add("output.weight".into(), output, &[self.n_vocab, n_embd], None)?;
                }
            }
            None if self.tied => {}
            None => bail!(
                Format,
                "{}: tensor \"lm_head.weight\" is missing, and tie_word_embeddings is not set",
                checkpoint.name
            ),
        }
        // Last, as the size of heads is known to be that of tensors by now.
        if let Some(factors) = self.rope.factors(self.head_dim) {
            let shape = vec![factors.len()];
            planned.insert(0, Planned { name: "rope_freqs.weight".into(), shape, data: Data::Values(factors) });
        }
        Ok(planned)
    }
}

impl Rope {
    /// `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (before).
    fn read(json: &Json, n_ctx_train: usize, notes: &mut Vec<String>) -> Result<Rope> {
        let section = match json.section("rope_parameters")? {
            Some(section) => Some(section),
            None => json.section("rope_scaling")?,
        };
        let rope = section.unwrap_or_else(|| Json::empty(json.file()));
        let base = match rope.f64("rope_theta")? {
            Some(base) => base,
            None => json.f64("rope_theta")?.unwrap_or(10_000.0),
        } as f32;
        if base <= 1.0 {
            bail!(Format, "{}: {base} is no base of rotations", rope.at("rope_theta"));
        }
        for section in [&rope, json] {
            if section.f64("partial_rotary_factor")?.is_some_and(|part| part != 1.0) {
                bail!(Unsupported, "{}: heads that are rotated in part", section.at("partial_rotary_factor"));
            }
        }
        let kind = match rope.str("rope_type")? {
            Some(kind) => Some(kind),
            None => rope.str("type")?,
        };
        let number = |key: &str| -> Result<Option<f32>> { Ok(rope.f64(key)?.map(|n| n as f32)) };
        let factor = || -> Result<f32> {
            match number("factor")? {
                Some(factor) if factor > 0.0 => Ok(factor),
                Some(factor) => bail!(Format, "{}: {factor} is no factor to scale by", rope.at("factor")),
                None => bail!(Format, "{}: is missing", rope.at("factor")),
            }
        };
        let n_ctx = || rope.size("original_max_position_embeddings", n_ctx_train);
        let scaling = match kind {
            None | Some("default") => Scaling::None,
            Some("linear") => Scaling::Linear { factor: factor()? },
            Some("dynamic") => {
                notes.push(format!(
                    "rope scaling \"dynamic\" changes contexts of more than {n_ctx_train} tokens, and is left out"
                ));
                Scaling::None
            }
            Some("yarn") => {
                if rope.bool("truncate")? == Some(false) {
                    bail!(Unsupported, "{}: GGUF's yarn has a ramp with whole ends", rope.at("truncate"));
                }
                let factor = factor()?;
                let mscale = |scale: f32| if factor > 1.0 { 0.1 * scale * factor.ln() + 1.0 } else { 1.0 };
                let whole = match (number("attention_factor")?, number("mscale")?, number("mscale_all_dim")?) {
                    (Some(whole), ..) => whole,
                    (None, Some(a), Some(b)) if a != 0.0 && b != 0.0 => mscale(a) / mscale(b),
                    _ => mscale(1.0),
                };
                let rest = whole / (1.0 + 0.1 * factor.ln());
                let (beta_fast, beta_slow) = (number("beta_fast")?, number("beta_slow")?);
                let attn_factor = Some(rest).filter(|rest| (rest - 1.0).abs() > 1e-6);
                Scaling::Yarn { factor, n_ctx: n_ctx()?, attn_factor, beta_fast, beta_slow }
            }
            Some("llama3") => {
                let (low, high) =
                    (number("low_freq_factor")?.unwrap_or(1.0), number("high_freq_factor")?.unwrap_or(4.0));
                let n_ctx = rope.size("original_max_position_embeddings", 8192)?;
                if !(low > 0.0 && high > low) {
                    bail!(Format, "{}: expected more than {low}, got {high}", rope.at("high_freq_factor"));
                }
                Scaling::Llama3 { factor: factor()?, low, high, n_ctx }
            }
            Some(other) => bail!(
                Unsupported,
                "{}: \"{other}\" is none of default, linear, dynamic, yarn, llama3",
                rope.at("rope_type")
            ),
        };
        Ok(Rope { base, scaling })
    }

    /// What Llama 3 divides the frequency of each pair by.
    fn factors(&self, head_dim: usize) -> Option<Vec<f32>> {
        let Scaling::Llama3 { factor, low, high, n_ctx } = self.scaling else { return None };
        let n_ctx = n_ctx as f32;
        let (longest, shortest) = (n_ctx / low, n_ctx / high);
        let factor_of = |i: usize| {
            let freq = 1.0 / self.base.powf((2 * i) as f32 / head_dim as f32);
            let wavelength = std::f32::consts::TAU / freq;
            if wavelength < shortest {
                1.0
            } else if wavelength > longest {
                factor
            } else {
                let smooth = (n_ctx / wavelength - low) / (high - low);
                1.0 / ((1.0 - smooth) / factor + smooth)
            }
        };
        Some((0..head_dim / 2).map(factor_of).collect())
    }
}
