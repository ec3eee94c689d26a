//! Qwen and Qwen-VL, the first, as their authors laid them out: a `qwen` file as llama.cpp's converter writes it, and an mmproj of
//! our own (`README.md`). `src/architectures/qwen.rs` and `qwen_vl.rs` have the tables of names.
//!
//! **Easy to get wrong**
//! - `intermediate_size` is twice the width of the feed-forward layer, and is written so; `w2` is the gate.
//! - The encoder's queries, keys and values are interleaved by head; they are written apart.
//! - Positions are stored for 16 × 16 patches and written for as many as pictures have, those of the resampler's keys too.
//! - `visual.proj` is `[in, out]`: it is multiplied from the right.

use super::checkpoint::{Checkpoint, Tensor};
use super::config::Json;
use super::positions::interpolate;
use super::{Data, Half, Options, Plan, Planned};
use super::{check_unused, file_type, finish, mmproj_plan, n_params, name, nearest, part, vocab};
use crate::gguf::Value;
use crate::media::preprocess::{CLIP_MEAN, CLIP_STD};
use crate::{Result, bail};

pub(super) const CLASS: &str = "QWenLMHeadModel";
const VISUAL: &str = "transformer.visual.";

/// Whether `config.json` is Qwen's.
pub(super) fn is(json: &Json) -> Result<bool> {
    let class = json.list("architectures")?.and_then(|classes| classes.first()?.as_str());
    Ok(class == Some(CLASS) || (class.is_none() && json.str("model_type")? == Some("qwen")))
}

/// Reads and checks everything but the weights themselves.
pub(super) fn plan(options: &Options<'_>, json: &Json) -> Result<Vec<Plan>> {
    let dir = options.dir;
    let visual = json.section("visual")?;
    for (flag, given) in [("--vision-tower", options.vision_tower), ("--base", options.base)] {
        if given.is_some() {
            bail!(Usage, "{flag}: {}: a folder of Qwen's has all of its parts", dir.display());
        }
    }
    if visual.is_none() && (options.mmproj.is_some() || options.only == Some(Half::Mmproj)) {
        bail!(
            Usage,
            "{}: QWenLMHeadModel without \"visual\" is a language model alone: it has no mmproj",
            dir.display()
        );
    }
    if let Some(quantization) = json.section("quantization_config")? {
        let method = quantization.str("quant_method")?.unwrap_or("an unknown method");
        let at = json.at("quantization_config");
        bail!(Unsupported, "{at}: the weights are quantized by {method}; convert the original ones");
    }
    let checkpoint = Checkpoint::open(dir)?;
    let generation = Json::read_optional(&dir.join("generation_config.json"))?;
    let wants = |half: Half| options.only.is_none_or(|only| only == half);
    let mut used = Vec::new();
    let mut plans = Vec::new();
    let text = Text::read(json)?;
    let tensors = text.tensors(&checkpoint, &mut used)?;
    if wants(Half::Text) {
        let mut notes = Vec::new();
        let vocab = vocab::read(dir, &[json], text.n_vocab, options.pre, &mut notes)?;
        let dtype = options.dtype.unwrap_or_else(|| nearest(&tensors));
        let mut keys: Vec<(String, Value)> =
            vec![("general.architecture".into(), "qwen".into()), ("general.type".into(), "model".into())];
        keys.extend(name::sampling(&generation)?);
        keys.extend(name::keys(dir, json, options.name, n_params(&tensors))?);
        keys.extend(text.keys(file_type(dtype)?));
        keys.push(("general.quantization_version".into(), 2u32.into()));
        keys.extend(vocab.keys);
        let mut part = part(Half::Text, options.output.to_path_buf(), CLASS, dtype, vocab.words);
        part.notes = notes;
        plans.push(finish(part, keys, tensors)?);
    }
    if let Some(section) = visual {
        let visual = Visual::read(&section, &checkpoint, text.n_embd)?;
        let tensors = visual.tensors(&checkpoint, &mut used)?;
        if wants(Half::Mmproj) {
            let called = options.name.map_or_else(|| name::folder(dir), str::to_string);
            let mut keys = vec![("clip.chat_template".into(), template(&generation, &called)?.into())];
            keys.extend(visual.keys());
            plans.push(mmproj_plan(options, json, CLASS, (keys, tensors, visual.words()), Vec::new())?);
        }
    }
    check_unused(&checkpoint, &used)?;
    Ok(plans)
}

/// How its authors prompt the model: as `generation_config.json` says, or its name.
fn template(generation: &Json, called: &str) -> Result<&'static str> {
    let chat = match generation.str("chat_format")? {
        Some("chatml") => true,
        Some("raw") => false,
        Some(other) => bail!(Unsupported, "{}: \"{other}\" is neither chatml nor raw", generation.at("chat_format")),
        None => called.to_lowercase().contains("chat"),
    };
    Ok(if chat { "qwen_vl" } else { "qwen_vl_base" })
}

/// The number under the first of `keys` that is there.
fn either(json: &Json, keys: [&str; 2], default: usize) -> Result<usize> {
    let key = if json.get(keys[0]).is_none() && json.get(keys[1]).is_some() { keys[1] } else { keys[0] };
    json.size(key, default)
}

fn planned(name: impl Into<String>, shape: &[usize], data: Data) -> Planned {
    Planned { name: name.into(), shape: shape.to_vec(), data }
}

/// The sizes of the language model.
struct Text {
    n_layer: usize,
    n_vocab: usize,
    n_ctx: usize,
    n_ctx_train: usize,
    n_embd: usize,
    /// Twice the width of the feed-forward layer.
    n_ff: usize,
    n_head: usize,
    eps: f32,
    rope_base: f32,
    ntk: bool,
    logn: bool,
}

impl Text {
    fn read(json: &Json) -> Result<Text> {
        let n_embd = either(json, ["hidden_size", "n_embd"], 4096)?;
        let n_head = either(json, ["num_attention_heads", "n_head"], 32)?;
        let n_ff = either(json, ["intermediate_size", "ffn_hidden_size"], 22016)?;
        let head_dim = json.size("kv_channels", n_embd / n_head)?;
        if head_dim.checked_mul(n_head) != Some(n_embd) || !head_dim.is_multiple_of(2) {
            bail!(Format, "{}: {n_head} heads of {head_dim} are not {n_embd} wide", json.at("kv_channels"));
        }
        if !n_ff.is_multiple_of(2) {
            bail!(Format, "{}: expected twice a width, got {n_ff}", json.at("intermediate_size"));
        }
        if json.f64("rotary_pct")?.is_some_and(|part| part != 1.0) {
            bail!(Unsupported, "{}: heads that are rotated in part", json.at("rotary_pct"));
        }
        let n_ctx = either(json, ["max_position_embeddings", "n_positions"], 8192)?;
        Ok(Text {
            n_layer: either(json, ["num_hidden_layers", "n_layer"], 32)?,
            n_vocab: json.size("vocab_size", 151_936)?,
            n_ctx,
            n_ctx_train: json.size("seq_length", n_ctx)?,
            n_embd,
            n_ff,
            n_head,
            eps: json.f64("layer_norm_epsilon")?.unwrap_or(1e-6) as f32,
            rope_base: json.f64("rotary_emb_base")?.unwrap_or(10_000.0) as f32,
            ntk: json.bool("use_dynamic_ntk")?.unwrap_or(true),
            logn: json.bool("use_logn_attn")?.unwrap_or(true),
        })
    }

    /// `qwen.*`: llama.cpp's keys, then what goes beyond them.
    fn keys(&self, file_type: u32) -> Vec<(String, Value)> {
        let size = |n: usize| Value::U32(n as u32);
        let qwen = |key: &str, value: Value| (format!("qwen.{key}"), value);
        vec![
            qwen("context_length", size(self.n_ctx)),
            qwen("block_count", size(self.n_layer)),
            qwen("embedding_length", size(self.n_embd)),
            qwen("feed_forward_length", size(self.n_ff)),
            qwen("rope.freq_base", self.rope_base.into()),
            qwen("rope.dimension_count", size(self.n_embd / self.n_head)),
            qwen("attention.head_count", size(self.n_head)),
            qwen("attention.layer_norm_rms_epsilon", self.eps.into()),
            ("general.file_type".into(), file_type.into()),
            qwen("rope.scaling.original_context_length", size(self.n_ctx_train)),
            qwen("use_dynamic_ntk", self.ntk.into()),
            qwen("use_logn_attn", self.logn.into()),
        ]
    }

    /// The tensors in the order of the model; the names that were used go to `used`.
    fn tensors(&self, checkpoint: &Checkpoint, used: &mut Vec<String>) -> Result<Vec<Planned>> {
        let mut tensors = Vec::new();
        let mut add = |to: String, from: String, shape: &[usize]| -> Result<()> {
            let tensor = checkpoint.require(&from)?.expect(shape, "")?.clone();
            used.push(from);
            tensors.push(planned(to, shape, Data::Tensor { tensor, n_head: None }));
            Ok(())
        };
        let (n_embd, n_ff) = (self.n_embd, self.n_ff / 2);
        add("token_embd.weight".into(), "transformer.wte.weight".into(), &[self.n_vocab, n_embd])?;
        for il in 0..self.n_layer {
            for (to, from, shape) in [
                ("attn_norm.weight", "ln_1.weight", &[n_embd][..]),
                ("attn_qkv.weight", "attn.c_attn.weight", &[3 * n_embd, n_embd]),
                ("attn_qkv.bias", "attn.c_attn.bias", &[3 * n_embd]),
                ("attn_output.weight", "attn.c_proj.weight", &[n_embd, n_embd]),
                ("ffn_norm.weight", "ln_2.weight", &[n_embd]),
                ("ffn_gate.weight", "mlp.w2.weight", &[n_ff, n_embd]),
                ("ffn_up.weight", "mlp.w1.weight", &[n_ff, n_embd]),
                ("ffn_down.weight", "mlp.c_proj.weight", &[n_embd, n_ff]),
            ] {
                add(format!("blk.{il}.{to}"), format!("transformer.h.{il}.{from}"), shape)?;
            }
        }
        add("output_norm.weight".into(), "transformer.ln_f.weight".into(), &[n_embd])?;
        add("output.weight".into(), "lm_head.weight".into(), &[self.n_vocab, n_embd])?;
        Ok(tensors)
    }
}

/// The sizes of the encoder and its resampler.
struct Visual {
    image_size: usize,
    patch_size: usize,
    n_embd: usize,
    n_layer: usize,
    n_head: usize,
    n_ff: usize,
    n_query: usize,
    n_out: usize,
    n_out_head: usize,
}

impl Visual {
    fn read(json: &Json, checkpoint: &Checkpoint, n_embd_text: usize) -> Result<Visual> {
        let (n_embd, n_out) = (json.size("width", 1664)?, json.size("output_dim", 4096)?);
        let (image_size, patch_size) = (json.size("image_size", 448)?, json.size("patch_size", 14)?);
        let n_head = json.size("heads", 16)?;
        if n_out != n_embd_text {
            bail!(Format, "{}: {n_out}, but the text model is {n_embd_text} wide", json.at("output_dim"));
        }
        if !n_embd.is_multiple_of(n_head) || !n_out.is_multiple_of(128) || !image_size.is_multiple_of(patch_size) {
            bail!(
                Format,
                "{}: {image_size} pixels in patches of {patch_size}, {n_embd} elements in {n_head} heads, {n_out} in heads of 128: \
                 these do not divide",
                json.file()
            );
        }
        let ratio = json.f64("mlp_ratio")?.unwrap_or(4.9231);
        // Its rows are not told, but those of the queries are.
        let query = checkpoint.require(&format!("{VISUAL}attn_pool.query"))?;
        Ok(Visual {
            image_size,
            patch_size,
            n_embd,
            n_layer: json.size("layers", 48)?,
            n_head,
            n_ff: (n_embd as f64 * ratio) as usize,
            n_query: query.shape.first().copied().unwrap_or(0),
            n_out,
            n_out_head: n_out / 128,
        })
    }

    fn words(&self) -> String {
        format!(
            "OpenCLIP of {} blocks of {}, {} pixels in patches of {}, resampled to {} rows",
            self.n_layer, self.n_embd, self.image_size, self.patch_size, self.n_query
        )
    }

    fn keys(&self) -> Vec<(String, Value)> {
        let size = |n: usize| Value::U32(n as u32);
        let clip = |key: &str, value: Value| (format!("clip.{key}"), value);
        vec![
            clip("projector_type", "resampler_qwen".into()),
            clip("vision.image_size", size(self.image_size)),
            clip("vision.patch_size", size(self.patch_size)),
            clip("vision.embedding_length", size(self.n_embd)),
            clip("vision.feed_forward_length", size(self.n_ff)),
            clip("vision.projection_dim", size(self.n_out)),
            clip("vision.attention.head_count", size(self.n_head)),
            clip("vision.attention.layer_norm_epsilon", 1e-6f32.into()),
            clip("vision.block_count", size(self.n_layer)),
            clip("vision.image_mean", CLIP_MEAN.to_vec().into()),
            clip("vision.image_std", CLIP_STD.to_vec().into()),
            clip("vision.has_class_token", false.into()),
            clip("vision.resize_mode", "squash_bicubic".into()),
            clip("vision.activation", "gelu_erf".into()),
            clip("projector.query_count", size(self.n_query)),
            clip("projector.head_count", size(self.n_out_head)),
            clip("projector.embedding_length", size(self.n_out)),
            clip("projector.layer_norm_epsilon", 1e-6f32.into()),
        ]
    }

    /// The tensors in the order of the model; the names that were used go to `used`.
    fn tensors(&self, checkpoint: &Checkpoint, used: &mut Vec<String>) -> Result<Vec<Planned>> {
        let mut take = |from: &str, shape: &[usize]| -> Result<Tensor> {
            let from = format!("{VISUAL}{from}");
            let tensor = checkpoint.require(&from)?.expect(shape, "")?.clone();
            used.push(from);
            Ok(tensor)
        };
        let whole = |tensor: Tensor| Data::Tensor { tensor, n_head: None };
        let (n_embd, n_ff, n_out, patch) = (self.n_embd, self.n_ff, self.n_out, self.patch_size);
        let side = self.image_size / patch;
        let mut tensors = Vec::new();
        let shape = [n_embd, 3, patch, patch];
        tensors.push(planned("v.patch_embd.weight", &shape, whole(take("conv1.weight", &shape)?)));
        let table = checkpoint.require(&format!("{VISUAL}positional_embedding"))?;
        let from = square(table)?;
        let table = take("positional_embedding", &[from * from, n_embd])?;
        let positions = Data::Values(interpolate(&values(&table), from, side, n_embd));
        tensors.push(planned("v.position_embd.weight", &[side * side, n_embd], positions));
        for part in ["weight", "bias"] {
            tensors.push(planned(
                format!("v.pre_ln.{part}"),
                &[n_embd],
                whole(take(&format!("ln_pre.{part}"), &[n_embd])?),
            ));
        }
        for il in 0..self.n_layer {
            let (blk, layer) = (format!("v.blk.{il}"), format!("transformer.resblocks.{il}"));
            for (part, n_in) in [("weight", Some(n_embd)), ("bias", None)] {
                let shape =
                    |n_out: usize, n_in: Option<usize>| -> Vec<usize> { [n_out].into_iter().chain(n_in).collect() };
                let tensor = take(&format!("{layer}.attn.in_proj.{part}"), &shape(3 * n_embd, n_in))?;
                for (third, letter) in ["q", "k", "v"].into_iter().enumerate() {
                    let data = Data::Third { tensor: tensor.clone(), n_head: self.n_head, third };
                    tensors.push(planned(format!("{blk}.attn_{letter}.{part}"), &shape(n_embd, n_in), data));
                }
                let n_in = |n: usize| n_in.map(|_| n);
                for (to, from, n_rows, n_cols) in [
                    ("ln1", "ln_1", n_embd, None),
                    ("attn_out", "attn.out_proj", n_embd, n_in(n_embd)),
                    ("ln2", "ln_2", n_embd, None),
                    ("ffn_up", "mlp.c_fc", n_ff, n_in(n_embd)),
                    ("ffn_down", "mlp.c_proj", n_embd, n_in(n_ff)),
                ] {
                    let shape = shape(n_rows, n_cols);
                    let data = whole(take(&format!("{layer}.{from}.{part}"), &shape)?);
                    tensors.push(planned(format!("{blk}.{to}.{part}"), &shape, data));
                }
            }
        }
        let shape = [self.n_query, n_out];
        tensors.push(planned("resampler.query", &shape, Data::Values(values(&take("attn_pool.query", &shape)?))));
        let stored = take("attn_pool.pos_embed", &shape)?;
        let (from, stored) = (square(&stored)?, values(&stored));
        let keys = Data::Values(interpolate(&stored, from, side, n_out));
        tensors.push(planned("resampler.pos_embed_q", &shape, Data::Values(stored)));
        tensors.push(planned("resampler.pos_embed_k", &[side * side, n_out], keys));
        let shape = [n_out, n_embd];
        tensors.push(planned("resampler.kv.weight", &shape, whole(take("attn_pool.kv_proj.weight", &shape)?)));
        for part in ["weight", "bias"] {
            for (to, from) in [("ln_q", "attn_pool.ln_q"), ("ln_kv", "attn_pool.ln_kv"), ("ln_post", "ln_post")] {
                let data = whole(take(&format!("{from}.{part}"), &[n_out])?);
                tensors.push(planned(format!("resampler.{to}.{part}"), &[n_out], data));
            }
        }
        let in_proj = take("attn_pool.attn.in_proj_weight", &[3 * n_out, n_out])?;
        let in_bias = take("attn_pool.attn.in_proj_bias", &[3 * n_out])?;
        for (third, letter) in ["q", "k", "v"].into_iter().enumerate() {
            let data = |tensor: &Tensor| Data::Third { tensor: tensor.clone(), n_head: 1, third };
            tensors.push(planned(format!("resampler.attn.{letter}.weight"), &[n_out, n_out], data(&in_proj)));
            tensors.push(planned(format!("resampler.attn.{letter}.bias"), &[n_out], data(&in_bias)));
        }
        let shape = [n_out, n_out];
        let out = whole(take("attn_pool.attn.out_proj.weight", &shape)?);
        tensors.push(planned("resampler.attn.out.weight", &shape, out));
        let bias = whole(take("attn_pool.attn.out_proj.bias", &[n_out])?);
        tensors.push(planned("resampler.attn.out.bias", &[n_out], bias));
        tensors.push(planned("resampler.proj.weight", &shape, whole(take("proj", &shape)?.transposed())));
        Ok(tensors)
    }
}

/// All values of a table.
fn values(tensor: &Tensor) -> Vec<f32> {
    let mut values = vec![0.0; tensor.n_rows() * tensor.n_cols()];
    values.chunks_exact_mut(tensor.n_cols().max(1)).enumerate().for_each(|(row, out)| tensor.read(row, out));
    values
}

/// The side of the square that a table of positions is for.
fn square(table: &Tensor) -> Result<usize> {
    let n = table.shape.first().copied().unwrap_or(0);
    match n.isqrt() {
        side if side > 0 && side * side == n => Ok(side),
        _ => bail!(Format, "{}: {n} positions are no square", table.at()),
    }
}
