//! What MiniGPT-4's authors published as an mmproj file: EVA-CLIP's encoder, BLIP-2's Q-Former and their own projector, in
//! three files beside the language model's folder; MiniGPT-v2's adapter is merged into the language model.
//!
//! `src/architectures/minigpt4.rs` has the table of names, README.md beside this file the keys.
//!
//! **Easy to get wrong**
//! - EVA-CLIP's file holds 40 blocks, of which the model has 39.
//! - Without a Q-Former `ln_vision` is not read from BLIP-2's file: it stays as it begins, ones and zeros.
//! - MiniGPT-v2 looks at 448 pixels: EVA's positions, for 224, are interpolated, the class token's stays as it is.
//! - The adapter's factor is alpha / rank: 16 / 64, which no file says.

use super::checkpoint::{Checkpoint, Tensor};
use super::{Data, Options, Planned, positions};
use crate::gguf::Value;
use crate::media::preprocess::{CLIP_MEAN, CLIP_STD};
use crate::{Error, Result, bail};
use std::path::{Path, PathBuf};

/// Elements of a head of EVA-CLIP's.
const EVA_HEAD: usize = 88;
/// Elements of a head of BERT's.
const BERT_HEAD: usize = 64;
/// Blocks of EVA-CLIP's encoder as it is used here.
const EVA_BLOCKS: usize = 39;
/// Patches that make a row where there is no Q-Former.
const CONCAT: usize = 4;
/// Pixels that MiniGPT-v2 looks at; the others look at 224.
const V2_IMAGE_SIZE: usize = 448;
const IMAGE_SIZE: usize = 224;
/// `lora_alpha` of MiniGPT-v2's configuration.
const LORA_ALPHA: f32 = 16.0;

/// What flags say about MiniGPT-4.
#[derive(Clone, Copy, Debug, Default)]
pub struct MiniGpt4<'a> {
    /// The authors' checkpoint: the projector, and the adapter of v2; `None`: the one in the model's folder, if any.
    pub checkpoint: Option<&'a Path>,
    /// `eva_vit_g.pth`; `None`: the one beside the checkpoint or in the model's folder.
    pub eva: Option<&'a Path>,
    /// `blip2_pretrained_flant5xxl.pth`, likewise.
    pub blip2: Option<&'a Path>,
    /// Pixels of a picture's side; `None`: 448 if there is an adapter, 224 if not.
    pub image_size: Option<usize>,
    /// `lora_alpha`; `None`: 16.
    pub lora_alpha: Option<f32>,
}

/// The authors' files, opened.
pub(super) struct Sources {
    own: Checkpoint,
    eva: Checkpoint,
    blip2: Option<Checkpoint>,
    image_size: usize,
    lora_alpha: f32,
    has_lora: bool,
}

/// An mmproj to be.
pub(super) struct Mmproj {
    pub keys: Vec<(String, Value)>,
    pub tensors: Vec<Planned>,
    /// The encoder in a few words.
    pub words: String,
}

/// How answers are drawn in the authors' programs.
pub(super) fn sampling() -> Vec<(String, Value)> {
    [("temp", 1.0f32), ("top_p", 0.9), ("penalty_repeat", 1.05)]
        .map(|(key, value)| (format!("general.sampling.{key}"), value.into()))
        .to_vec()
}

impl Sources {
    /// Opens the files that the flags name or that lie where they are looked for; `None` if there is no MiniGPT-4.
    pub fn find(options: &Options<'_>) -> Result<Option<Sources>> {
        let flags = &options.minigpt4;
        let own = match flags.checkpoint {
            Some(path) => Some(path.to_path_buf()),
            None => only(options.dir, |name| name.contains("minigpt") && name.ends_with(".pth"))?,
        };
        let Some(own_path) = own else {
            let given = [
                ("--eva", flags.eva.is_some()),
                ("--blip2", flags.blip2.is_some()),
                ("--image-size", flags.image_size.is_some()),
                ("--lora-alpha", flags.lora_alpha.is_some()),
            ];
            if let Some((flag, _)) = given.iter().find(|(_, given)| *given) {
                bail!(Usage, "{flag} is for MiniGPT-4: --minigpt4 FILE names its checkpoint (pretrained_minigpt4.pth)");
            }
            return Ok(None);
        };
        let own = Checkpoint::of_file(&own_path)?;
        let beside = own_path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let find = |given: Option<&Path>, stem: &str| -> Result<Option<Checkpoint>> {
            let mut path = given.map(Path::to_path_buf);
            for dir in [beside, options.dir] {
                if path.is_none() {
                    path = only(dir, |name| name.starts_with(stem) && name.ends_with(".pth"))?;
                }
            }
            path.map(|path| Checkpoint::of_file(&path)).transpose()
        };
        let Some(eva) = find(flags.eva, "eva_vit_g")? else {
            bail!(
                Usage,
                "{}: --eva FILE names the vision encoder (eva_vit_g.pth); there is none beside it",
                own_path.display()
            );
        };
        let has_lora = own.tensors.keys().any(|name| name.contains(".lora_A."));
        Ok(Some(Sources {
            has_lora,
            eva,
            blip2: find(flags.blip2, "blip2_pretrained")?,
            image_size: flags.image_size.unwrap_or(if has_lora { V2_IMAGE_SIZE } else { IMAGE_SIZE }),
            lora_alpha: flags.lora_alpha.unwrap_or(LORA_ALPHA),
            own,
        }))
    }

    /// Merges the adapter of MiniGPT-v2 into the language model.
    pub fn merge(&self, text: &mut Checkpoint, notes: &mut Vec<String>) -> Result<()> {
        let (mut n, mut rank) = (0, 0);
        for (name, a) in &self.own.tensors {
            let Some((module, rest)) = name.split_once(".lora_A.") else { continue };
            let b = self.own.require(&format!("{module}.lora_B.{rest}"))?;
            // The adapter's names have those of its wrappers in front.
            let Some(at) = module.find("layers.") else { bail!(Unsupported, "{}: is no layer's", a.at()) };
            let suffix = format!("{}.weight", &module[at..]);
            let Some((prefix, _)) = text.find(&suffix)? else {
                bail!(Mismatch, "{}: {} has no tensor {suffix:?} for it", a.at(), text.name);
            };
            let into = format!("{prefix}{suffix}");
            rank = a.shape.first().copied().unwrap_or(0).max(1);
            text.merge(&into, a, b, self.lora_alpha / rank as f32)?;
            n += 1;
        }
        if n > 0 {
            let file = &self.own.name;
            notes
                .push(format!("{n} matrices have the adapter of {file} added: rank {rank}, alpha {}", self.lora_alpha));
        }
        Ok(())
    }

    /// Plans the mmproj for a text model `n_embd_text` wide.
    pub fn plan(&self, n_embd_text: Option<usize>, notes: &mut Vec<String>) -> Result<Mmproj> {
        let mut planned = Vec::new();
        let vit = self.encoder(&mut planned, notes)?;
        let projector = self.own.require("llama_proj.weight")?;
        let &[n_out, n_in] = projector.shape.as_slice() else {
            bail!(Mismatch, "{}: expected a matrix, got {:?}", projector.at(), projector.shape);
        };
        if let Some(n) = n_embd_text.filter(|n| *n != n_out) {
            bail!(Mismatch, "{}: makes rows of {n_out}, but the language model is {n} wide", projector.at());
        }
        let qformer = n_in != CONCAT * vit.n_embd;
        let mut keys = vit.keys();
        let mut set = |key: &str, value: Value| keys.push((format!("clip.{key}"), value));
        let bridge = if qformer {
            let shape = self.qformer(n_in, vit.n_embd, &mut planned)?;
            for (key, n) in shape.keys() {
                set(&format!("qformer.{key}"), Value::U32(n as u32));
            }
            set("qformer.layer_norm_epsilon", 1e-12f32.into());
            set("qformer.activation", "gelu_erf".into());
            set("projector_type", "qformer".into());
            format!("a Q-Former of {} blocks and {} queries", shape.n_block, shape.n_query)
        } else {
            if let Some(blip2) = &self.blip2 {
                notes.push(format!("{} is not used: the model has no Q-Former", blip2.name));
            }
            set("projector_type", "concat4_linear".into());
            set("projector.concat", Value::U32(CONCAT as u32));
            format!("{CONCAT} patches to a token")
        };
        set(
            "chat_template",
            match (qformer, self.has_lora) {
                (true, _) => "minigpt4",
                (false, false) => "minigpt4_llama_2",
                (false, true) => "minigpt_v2",
            }
            .into(),
        );
        self.final_norm(qformer, vit.n_embd, &mut planned, notes)?;
        add(&mut planned, "mm.0.weight", projector, &[n_out, n_in])?;
        add(&mut planned, "mm.0.bias", self.own.require("llama_proj.bias")?, &[n_out])?;
        let words = format!(
            "EVA-CLIP of {} blocks of {}, {} pixels in patches of {}; {bridge}",
            vit.n_block, vit.n_embd, self.image_size, vit.patch_size
        );
        Ok(Mmproj { keys, tensors: planned, words })
    }

    /// The encoder: that of the first of the files that has one, as later files do not replace what was trained.
    fn encoder(&self, planned: &mut Vec<Planned>, notes: &mut Vec<String>) -> Result<Encoder> {
        let trained = [Some(&self.own), self.blip2.as_ref()].into_iter().flatten();
        let mut trained = trained.filter(|file| file.tensors.contains_key("visual_encoder.cls_token"));
        let (file, prefix) = trained.next().map_or((&self.eva, ""), |file| (file, "visual_encoder."));
        let require = |name: &str| file.require(&format!("{prefix}{name}"));
        let patch = require("patch_embed.proj.weight")?;
        let &[n_embd, 3, patch_size, _] = patch.shape.as_slice() else {
            bail!(
                Mismatch,
                "{}: expected the kernel of a convolution of 3 channels, got {:?}",
                patch.at(),
                patch.shape
            );
        };
        if n_embd == 0 || patch_size == 0 || !n_embd.is_multiple_of(EVA_HEAD) {
            bail!(Unsupported, "{}: {n_embd} elements are no heads of {EVA_HEAD}, EVA-CLIP's", patch.at());
        }
        if !self.image_size.is_multiple_of(patch_size) || !(1..=4096).contains(&self.image_size) {
            bail!(Usage, "--image-size {}: expected a multiple of {patch_size} up to 4096", self.image_size);
        }
        let fc1 = require("blocks.0.mlp.fc1.weight")?;
        let n_ff = fc1.shape.first().copied().unwrap_or(0);
        let has_block = |il: usize| file.tensors.contains_key(&format!("{prefix}blocks.{il}.norm1.weight"));
        let n_stored = (0..).take_while(|il| has_block(*il)).count();
        let n_block = if n_stored == EVA_BLOCKS { n_stored } else { n_stored.saturating_sub(1) };
        if n_block == 0 {
            bail!(Format, "{}: holds {n_stored} blocks, of which the last is not used", file.name);
        }

        add(planned, "v.class_embd", require("cls_token")?, &[1, 1, n_embd])?;
        add(planned, "v.patch_embd.weight", patch, &[n_embd, 3, patch_size, patch_size])?;
        add(planned, "v.patch_embd.bias", require("patch_embed.proj.bias")?, &[n_embd])?;
        let table = require("pos_embed")?;
        let n_rows = table.n_rows();
        let from = n_rows.saturating_sub(1).isqrt();
        table.expect(&[1, 1 + from * from, n_embd], " (a class token and a square of patches)")?;
        let to = self.image_size / patch_size;
        let mut values = table.values();
        if from != to {
            let patches = values.split_off(n_embd);
            values.extend(positions::interpolate(&patches, from, to, n_embd));
            notes.push(format!("positions of {from} x {from} patches are interpolated to {to} x {to}"));
        }
        let shape = vec![1 + to * to, n_embd];
        planned.push(Planned { name: "v.position_embd.weight".into(), shape, data: Data::Values(values) });
        for il in 0..n_block {
            let at = |name: &str| format!("v.blk.{il}.{name}");
            let block = |name: &str| require(&format!("blocks.{il}.{name}"));
            let qkv = block("attn.qkv.weight")?.expect(&[3 * n_embd, n_embd], "")?;
            for (i, (name, bias)) in
                [("attn_q", Some("attn.q_bias")), ("attn_k", None), ("attn_v", Some("attn.v_bias"))]
                    .into_iter()
                    .enumerate()
            {
                let third = qkv.part(i * n_embd..(i + 1) * n_embd);
                add(planned, &at(&format!("{name}.weight")), &third, &[n_embd, n_embd])?;
                if let Some(bias) = bias {
                    add(planned, &at(&format!("{name}.bias")), block(bias)?, &[n_embd])?;
                }
            }
            for (to, from, n_out, n_in) in [
                ("attn_out", "attn.proj", n_embd, Some(n_embd)),
                ("ln1", "norm1", n_embd, None),
                ("ln2", "norm2", n_embd, None),
                ("ffn_up", "mlp.fc1", n_ff, Some(n_embd)),
                ("ffn_down", "mlp.fc2", n_embd, Some(n_ff)),
            ] {
                let shape: Vec<usize> = [n_out].into_iter().chain(n_in).collect();
                add(planned, &at(&format!("{to}.weight")), block(&format!("{from}.weight"))?, &shape)?;
                add(planned, &at(&format!("{to}.bias")), block(&format!("{from}.bias"))?, &[n_out])?;
            }
        }
        Ok(Encoder { image_size: self.image_size, patch_size, n_embd, n_ff, n_block })
    }

    /// `ln_vision`: the authors' own if they trained it, BLIP-2's with a Q-Former, otherwise as a norm begins.
    fn final_norm(
        &self,
        qformer: bool,
        n_embd: usize,
        planned: &mut Vec<Planned>,
        notes: &mut Vec<String>,
    ) -> Result<()> {
        let files = [Some(&self.own), self.blip2.as_ref().filter(|_| qformer)];
        for (part, plain) in [("weight", 1.0), ("bias", 0.0)] {
            let (to, from) = (format!("v.post_ln.{part}"), format!("ln_vision.{part}"));
            match files.into_iter().flatten().find_map(|file| file.tensors.get(&from)) {
                Some(tensor) => add(planned, &to, tensor, &[n_embd])?,
                None if qformer => bail!(Format, "{}: tensor {from:?} is missing", self.bridge()?.name),
                None => {
                    let data = Data::Values(vec![plain; n_embd]);
                    planned.push(Planned { name: to, shape: vec![n_embd], data });
                }
            }
        }
        if !qformer && !self.own.tensors.contains_key("ln_vision.weight") {
            notes.push("the encoder's last norm is plain: without a Q-Former no file trains it".into());
        }
        Ok(())
    }

    /// Where the Q-Former is.
    fn bridge(&self) -> Result<&Checkpoint> {
        if self.own.tensors.contains_key("query_tokens") {
            return Ok(&self.own);
        }
        match &self.blip2 {
            Some(blip2) => Ok(blip2),
            None => bail!(
                Usage,
                "{}: --blip2 FILE names the Q-Former (blip2_pretrained_flant5xxl.pth); there is none beside it",
                self.own.name
            ),
        }
    }

    /// The path of the queries, `n_embd` wide, that look at features of `n_feature`.
    fn qformer(&self, n_embd: usize, n_feature: usize, planned: &mut Vec<Planned>) -> Result<Qformer> {
        let file = self.bridge()?;
        let query = file.require("query_tokens")?;
        let n_query = query.n_rows();
        query.expect(&[1, n_query, n_embd], " (queries as wide as the projector takes them)")?;
        if !n_embd.is_multiple_of(BERT_HEAD) {
            bail!(Unsupported, "{}: {n_embd} elements are no heads of {BERT_HEAD}, BERT's", query.at());
        }
        planned.push(Planned {
            name: "qf.query".into(),
            shape: vec![n_query, n_embd],
            data: Data::Tensor { tensor: query.clone(), n_head: None },
        });
        let bert = |name: &str| file.require(&format!("Qformer.bert.{name}"));
        for part in ["weight", "bias"] {
            let norm = bert(&format!("embeddings.LayerNorm.{part}"))?;
            add(planned, &format!("qf.embd_norm.{part}"), norm, &[n_embd])?;
        }
        let layer = |il: usize, name: &str| format!("Qformer.bert.encoder.layer.{il}.{name}");
        let has = |il: usize, name: &str| file.tensors.contains_key(&layer(il, name));
        let n_block = (0..).take_while(|il| has(*il, "attention.self.query.weight")).count();
        let looks: Vec<usize> = (0..n_block).filter(|il| has(*il, "crossattention.self.query.weight")).collect();
        let frequency = looks.get(1).copied().unwrap_or(n_block.max(1));
        if !looks.iter().copied().eq((0..n_block).step_by(frequency)) {
            bail!(Unsupported, "{}: the blocks {looks:?} look at the picture, at no even distance", file.name);
        }
        let n_ff = file.require(&layer(0, "intermediate_query.dense.weight"))?.n_rows();
        for il in 0..n_block {
            let mut linear = |to: &str, from: &str, n_out: usize, n_in: Option<usize>| -> Result<()> {
                let shape: Vec<usize> = [n_out].into_iter().chain(n_in).collect();
                let from = |part: &str| file.require(&layer(il, &format!("{from}.{part}")));
                add(planned, &format!("qf.blk.{il}.{to}.weight"), from("weight")?, &shape)?;
                add(planned, &format!("qf.blk.{il}.{to}.bias"), from("bias")?, &[n_out])
            };
            let both = [("attn", "attention", n_embd), ("xattn", "crossattention", n_feature)];
            for (to, from, n_in) in both.into_iter().take(1 + usize::from(looks.contains(&il))) {
                linear(&format!("{to}_q"), &format!("{from}.self.query"), n_embd, Some(n_embd))?;
                linear(&format!("{to}_k"), &format!("{from}.self.key"), n_embd, Some(n_in))?;
                linear(&format!("{to}_v"), &format!("{from}.self.value"), n_embd, Some(n_in))?;
                linear(&format!("{to}_out"), &format!("{from}.output.dense"), n_embd, Some(n_embd))?;
                linear(&format!("{to}_norm"), &format!("{from}.output.LayerNorm"), n_embd, None)?;
            }
            linear("ffn_up", "intermediate_query.dense", n_ff, Some(n_embd))?;
            linear("ffn_down", "output_query.dense", n_embd, Some(n_ff))?;
            linear("ffn_norm", "output_query.LayerNorm", n_embd, None)?;
        }
        Ok(Qformer { n_block, n_embd, n_ff, n_query, frequency })
    }
}

/// The encoder's sizes.
struct Encoder {
    image_size: usize,
    patch_size: usize,
    n_embd: usize,
    n_ff: usize,
    n_block: usize,
}

impl Encoder {
    fn keys(&self) -> Vec<(String, Value)> {
        let mut keys: Vec<(String, Value)> = Vec::new();
        let mut set = |key: &str, value: Value| keys.push((format!("clip.{key}"), value));
        for (key, n) in [
            ("image_size", self.image_size),
            ("patch_size", self.patch_size),
            ("embedding_length", self.n_embd),
            ("feed_forward_length", self.n_ff),
            ("block_count", self.n_block),
            ("attention.head_count", self.n_embd / EVA_HEAD),
        ] {
            set(&format!("vision.{key}"), Value::U32(n as u32));
        }
        set("vision.attention.layer_norm_epsilon", 1e-6f32.into());
        set("vision.final_norm_epsilon", 1e-5f32.into());
        set("vision.activation", "gelu_erf".into());
        set("vision.has_class_token", true.into());
        set("vision.resize_mode", "squash_bicubic".into());
        set("vision.image_mean", CLIP_MEAN.to_vec().into());
        set("vision.image_std", CLIP_STD.to_vec().into());
        keys
    }
}

/// The Q-Former's sizes.
struct Qformer {
    n_block: usize,
    n_embd: usize,
    n_ff: usize,
    n_query: usize,
    frequency: usize,
}

impl Qformer {
    fn keys(&self) -> [(&'static str, usize); 6] {
        [
            ("block_count", self.n_block),
            ("embedding_length", self.n_embd),
            ("feed_forward_length", self.n_ff),
            ("head_count", self.n_embd / BERT_HEAD),
            ("query_count", self.n_query),
            ("cross_attention_frequency", self.frequency),
        ]
    }
}

/// Adds a tensor of `shape`; dimensions of one in front are left out.
fn add(planned: &mut Vec<Planned>, to: &str, tensor: &Tensor, shape: &[usize]) -> Result<()> {
    let tensor = tensor.expect(shape, "")?.clone();
    let shape = match shape {
        [1, 1, rest @ ..] => rest.to_vec(),
        shape => shape.to_vec(),
    };
    planned.push(Planned { name: to.into(), shape, data: Data::Tensor { tensor, n_head: None } });
    Ok(())
}

/// The one file of `dir` whose name, in small letters, is as wanted.
fn only(dir: &Path, wanted: impl Fn(&str) -> bool) -> Result<Option<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(|e| Error::io(dir, &e))? {
        let path = entry.map_err(|e| Error::io(dir, &e))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
        if wanted(&name) {
            found.push(path);
        }
    }
    found.sort();
    match found.as_slice() {
        [] => Ok(None),
        [one] => Ok(Some(one.clone())),
        [a, b, ..] => bail!(
            Usage,
            "{}: both {} and {} could be meant: name one with --minigpt4, --eva or --blip2",
            dir.display(),
            a.display(),
            b.display()
        ),
    }
}
