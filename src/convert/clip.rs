//! LLaVA's half that sees: a CLIP vision encoder and a projector as an mmproj file.
//!
//! Keys and names are those that llama.cpp's converters for LLaVA write; `src/architectures/llava.rs` has the table of names.
//!
//! **Easy to get wrong**
//! - Blocks behind the deepest feature layer are left out; `clip.vision.block_count` counts those that are written.
//! - `clip.vision.feature_layer` counts from the start, and is written always: without it llama.cpp runs a block too few.
//! - Hugging Face's `image_grid_pinpoints` are (height, width), the authors' and GGUF's (width, height).
//! - LLaVA 1.6 trained its vision encoder: it must come from the checkpoint, not from CLIP's.

use super::checkpoint::{Checkpoint, Tensor};
use super::config::Json;
use super::{Data, Planned};
use crate::gguf::Value;
use crate::media::preprocess::{CLIP_MEAN, CLIP_STD};
use crate::{Result, bail};

/// What LLaVA-NeXT's configuration has by default, as (height, width).
const NEXT_PINPOINTS: [[u32; 2]; 5] = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]];

/// Where the vision encoder's weights are.
pub(super) struct Tower<'a> {
    pub checkpoint: &'a Checkpoint,
    /// What the names of its tensors begin with.
    pub prefix: String,
}

impl<'a> Tower<'a> {
    /// The vision encoder in `checkpoint`, if there is one.
    pub fn find(checkpoint: &'a Checkpoint) -> Result<Option<Tower<'a>>> {
        let found = checkpoint.find("embeddings.class_embedding")?;
        Ok(found.map(|(prefix, _)| Tower { checkpoint, prefix: prefix.to_string() }))
    }

    fn require(&self, name: &str) -> Result<&'a Tensor> {
        self.checkpoint.require(&format!("{}{name}", self.prefix))
    }
}

/// The vision encoder's sizes.
#[derive(Clone, Debug)]
pub(super) struct Config {
    n_layer: usize,
    n_embd: usize,
    n_ff: usize,
    n_head: usize,
    image_size: usize,
    patch_size: usize,
    projection_dim: usize,
    eps: f32,
    act: Act,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Act {
    QuickGelu,
    Gelu,
    Silu,
}

impl Config {
    /// Reads the configuration of a vision encoder.
    pub fn read(json: &Json) -> Result<Config> {
        match json.str("model_type")? {
            None | Some("clip_vision_model") => {}
            Some(other) => bail!(
                Unsupported,
                "{}: expected clip_vision_model, got \"{other}\": mmq converts CLIP's vision encoders",
                json.at("model_type")
            ),
        }
        let act = match json.str("hidden_act")? {
            None | Some("quick_gelu") => Act::QuickGelu,
            Some("gelu") => Act::Gelu,
            Some("silu" | "swish") => Act::Silu,
            Some(other) => {
                bail!(Unsupported, "{}: \"{other}\" is none of quick_gelu, gelu, silu", json.at("hidden_act"))
            }
        };
        Ok(Config {
            n_layer: json.size("num_hidden_layers", 12)?,
            n_embd: json.size("hidden_size", 768)?,
            n_ff: json.size("intermediate_size", 3072)?,
            n_head: json.size("num_attention_heads", 12)?,
            image_size: json.size("image_size", 224)?,
            patch_size: json.size("patch_size", 32)?,
            projection_dim: json.size("projection_dim", 512)?,
            eps: json.f64("layer_norm_eps")?.unwrap_or(1e-5) as f32,
            act,
        })
    }

    /// CLIP ViT-L/14 at 336 pixels, which LLaVA has unless its configuration says otherwise.
    pub fn llava() -> Config {
        Config {
            n_layer: 24,
            n_embd: 1024,
            n_ff: 4096,
            n_head: 16,
            image_size: 336,
            patch_size: 14,
            projection_dim: 768,
            eps: 1e-5,
            act: Act::QuickGelu,
        }
    }

    /// The sizes that the tensors show; for OpenAI's encoders, whose heads are all 64 wide.
    pub fn from_shapes(tower: &Tower) -> Result<Config> {
        let n_embd = tower.require("embeddings.class_embedding")?.shape.iter().product();
        let patch = tower.require("embeddings.patch_embedding.weight")?;
        let positions = tower.require("embeddings.position_embedding.weight")?;
        let fc1 = tower.require("encoder.layers.0.mlp.fc1.weight")?;
        let layers = (0..).take_while(|il| {
            tower.checkpoint.tensors.contains_key(&format!("{}encoder.layers.{il}.layer_norm1.weight", tower.prefix))
        });
        let (&[_, _, patch_size, _], &[n_positions, _], &[n_ff, _]) =
            (patch.shape.as_slice(), positions.shape.as_slice(), fc1.shape.as_slice())
        else {
            bail!(Format, "{}: shapes {:?}, {:?}: no CLIP", patch.at(), patch.shape, positions.shape);
        };
        let side = n_positions.saturating_sub(1).isqrt();
        if side == 0 || side * side + 1 != n_positions || n_embd == 0 || !usize::is_multiple_of(n_embd, 64) {
            bail!(Format, "{}: {n_positions} positions of {n_embd}: no CLIP", positions.at());
        }
        let n_layer = layers.count();
        let (n_head, image_size) = (n_embd / 64, side.saturating_mul(patch_size));
        Ok(Config { n_layer, n_embd, n_ff, n_head, image_size, patch_size, ..Config::llava() })
    }

    /// Position of a feature layer counted from the start: the number of blocks before it.
    fn depth(&self, at: &str, layer: i64) -> Result<usize> {
        let depth = if layer < 0 { self.n_layer as i64 + 1 + layer } else { layer };
        match usize::try_from(depth) {
            Ok(depth) if (1..=self.n_layer).contains(&depth) => Ok(depth),
            _ => bail!(Format, "{at}: layer {layer} of an encoder of {} blocks", self.n_layer),
        }
    }

    /// The tensors of the encoder with `n_block` blocks; the names that were used go to `used`.
    fn tensors(&self, tower: &Tower, n_block: usize, used: &mut Vec<String>) -> Result<Vec<Planned>> {
        let mut planned = Vec::new();
        let mut add = |to: &str, from: &str, shape: &[usize]| -> Result<()> {
            let tensor = tower.require(from)?.expect(shape, "")?.clone();
            used.push(tensor.name.clone());
            let data = Data::Tensor { tensor, n_head: None };
            planned.push(Planned { name: to.to_string(), shape: shape.to_vec(), data });
            Ok(())
        };
        let (n_embd, n_ff, patch) = (self.n_embd, self.n_ff, self.patch_size);
        let side = self.image_size / patch;
        add("v.class_embd", "embeddings.class_embedding", &[n_embd])?;
        add("v.patch_embd.weight", "embeddings.patch_embedding.weight", &[n_embd, 3, patch, patch])?;
        add("v.position_embd.weight", "embeddings.position_embedding.weight", &[1 + side * side, n_embd])?;
        for part in ["weight", "bias"] {
            // The misspelling is CLIP's own.
            add(&format!("v.pre_ln.{part}"), &format!("pre_layrnorm.{part}"), &[n_embd])?;
        }
        for il in 0..n_block {
            for (to, from, n_out, n_in) in [
                ("ln1", "layer_norm1", n_embd, None),
                ("attn_q", "self_attn.q_proj", n_embd, Some(n_embd)),
                ("attn_k", "self_attn.k_proj", n_embd, Some(n_embd)),
                ("attn_v", "self_attn.v_proj", n_embd, Some(n_embd)),
                ("attn_out", "self_attn.out_proj", n_embd, Some(n_embd)),
                ("ln2", "layer_norm2", n_embd, None),
                ("ffn_up", "mlp.fc1", n_ff, Some(n_embd)),
                ("ffn_down", "mlp.fc2", n_embd, Some(n_ff)),
            ] {
                let (to, from) = (format!("v.blk.{il}.{to}"), format!("encoder.layers.{il}.{from}"));
                let shape: Vec<usize> = [n_out].into_iter().chain(n_in).collect();
                add(&format!("{to}.weight"), &format!("{from}.weight"), &shape)?;
                add(&format!("{to}.bias"), &format!("{from}.bias"), &[n_out])?;
            }
        }
        Ok(planned)
    }
}

/// What is asked of an mmproj.
pub(super) struct Llava<'a> {
    /// `config.json`.
    pub json: &'a Json,
    /// Whether it is transformers' LLaVA, and not the authors'.
    pub hugging_face: bool,
    /// Whether it is LLaVA-NeXT of transformers.
    pub next: bool,
    /// `preprocessor_config.json`, if there is one.
    pub preprocessor: &'a Json,
    /// Where the projector is.
    pub checkpoint: &'a Checkpoint,
    pub tower: Tower<'a>,
    pub config: Config,
    /// Width of the text model, if it is known.
    pub n_embd_text: Option<usize>,
}

/// An mmproj to be.
pub(super) struct Mmproj {
    pub keys: Vec<(String, Value)>,
    pub tensors: Vec<Planned>,
    /// The encoder in a few words.
    pub words: String,
}

impl Llava<'_> {
    /// Plans the file. The names of the tensors used go to `used` (the projector's) and `used_tower`.
    pub fn plan(
        &self,
        used: &mut Vec<String>,
        used_tower: &mut Vec<String>,
        notes: &mut Vec<String>,
    ) -> Result<Mmproj> {
        let c = &self.config;
        if c.patch_size > c.image_size || !c.n_embd.is_multiple_of(c.n_head) {
            bail!(
                Format,
                "{}: pictures of {} in patches of {}, {} elements in {} heads: these do not divide",
                self.json.file(),
                c.image_size,
                c.patch_size,
                c.n_embd,
                c.n_head
            );
        }
        let depths = self.feature_layers()?;
        let n_block = depths.iter().copied().max().expect("there is a feature layer");
        let mut tensors = c.tensors(&self.tower, n_block, used_tower)?;
        let n_out = self.projector(c.n_embd * depths.len(), &mut tensors, used)?;
        let tiles = self.tiles(notes)?;
        if let Some((prefix, _)) = self.checkpoint.find("image_newline")? {
            let name = format!("{prefix}image_newline");
            if tiles.as_ref().is_some_and(|tiles| tiles.newline) {
                let tensor = self.checkpoint.require(&name)?.expect(&[n_out], "")?.clone();
                let data = Data::Tensor { tensor, n_head: None };
                tensors.push(Planned { name: "model.image_newline".into(), shape: vec![n_out], data });
            }
            used.push(name);
        } else if tiles.as_ref().is_some_and(|tiles| tiles.newline) {
            bail!(Format, "{}: tensor \"image_newline\" is missing", self.checkpoint.name);
        }
        Ok(Mmproj { keys: self.keys(&depths, n_block, tiles)?, tensors, words: self.words(&depths) })
    }

    fn words(&self, depths: &[usize]) -> String {
        let c = &self.config;
        let depths = depths.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
        format!(
            "CLIP of {} blocks of {}, {} pixels in patches of {}, features of block {depths}",
            c.n_layer, c.n_embd, c.image_size, c.patch_size
        )
    }

    /// The feature layers, counted from the start.
    fn feature_layers(&self) -> Result<Vec<usize>> {
        let (key, strategy) = match self.hugging_face {
            true => ("vision_feature_layer", "vision_feature_select_strategy"),
            false => ("mm_vision_select_layer", "mm_vision_select_feature"),
        };
        match self.json.str(strategy)? {
            None | Some("default" | "patch") => {}
            Some(other) => bail!(
                Unsupported,
                "{}: \"{other}\": the class row can only be dropped (default, patch)",
                self.json.at(strategy)
            ),
        }
        let at = self.json.at(key);
        let layers = match self.json.get(key) {
            Some(serde_json::Value::Array(layers)) => {
                layers.iter().map(serde_json::Value::as_i64).collect::<Option<Vec<_>>>()
            }
            _ => Some(vec![self.json.i64(key)?.unwrap_or(-2)]),
        };
        let Some(layers) = layers.filter(|layers| (1..=16).contains(&layers.len())) else {
            bail!(Format, "{at}: expected a layer or a list of up to 16");
        };
        layers.into_iter().map(|layer| self.config.depth(&at, layer)).collect()
    }

    /// Adds the projector from features `n_in` wide; gives the width of what comes out.
    fn projector(&self, n_in: usize, planned: &mut Vec<Planned>, used: &mut Vec<String>) -> Result<usize> {
        let names = self.projector_names()?;
        let mut width = n_in;
        for (i, name) in names.iter().enumerate() {
            let tensor = self.checkpoint.require(&format!("{name}.weight"))?;
            let last = i + 1 == names.len();
            let n_out = match (tensor.shape.first(), self.n_embd_text) {
                (_, Some(n)) if last => n,
                (Some(n), _) => *n,
                (None, _) => 0,
            };
            let why = if last { " (the text model's width, then the features')" } else { "" };
            for (part, shape) in [("weight", vec![n_out, width]), ("bias", vec![n_out])] {
                let name = format!("{name}.{part}");
                if part == "bias" && !self.checkpoint.tensors.contains_key(&name) {
                    continue;
                }
                let tensor = self.checkpoint.require(&name)?.expect(&shape, why)?.clone();
                used.push(name);
                let data = Data::Tensor { tensor, n_head: None };
                planned.push(Planned { name: format!("mm.{}.{part}", 2 * i), shape, data });
            }
            width = n_out;
        }
        Ok(width)
    }

    /// The names of the projector's linear layers in order.
    fn projector_names(&self) -> Result<Vec<String>> {
        let json = self.json;
        if self.hugging_face {
            match json.str("projector_hidden_act")? {
                None | Some("gelu") => {}
                Some(other) => {
                    bail!(Unsupported, "{}: expected gelu, got \"{other}\"", json.at("projector_hidden_act"))
                }
            }
            return match self.checkpoint.find("multi_modal_projector.linear_1.weight")? {
                Some((prefix, _)) => Ok([1, 2].map(|i| format!("{prefix}multi_modal_projector.linear_{i}")).to_vec()),
                None => bail!(
                    Format,
                    "{}: tensor \"multi_modal_projector.linear_1.weight\" is missing",
                    self.checkpoint.name
                ),
            };
        }
        let kind = json.str("mm_projector_type")?.unwrap_or("linear");
        let n = match kind.strip_prefix("mlp").and_then(|rest| rest.strip_suffix("x_gelu")).map(str::parse::<usize>) {
            Some(Ok(n)) if (1..=16).contains(&n) => n,
            _ if kind == "linear" => 0,
            _ => bail!(Unsupported, "{}: \"{kind}\" is neither linear nor mlpNx_gelu", json.at("mm_projector_type")),
        };
        let first = if n == 0 { "mm_projector.weight" } else { "mm_projector.0.weight" };
        let Some((prefix, _)) = self.checkpoint.find(first)? else {
            bail!(Format, "{}: tensor \"model.{first}\" of the {kind} projector is missing", self.checkpoint.name);
        };
        Ok(match n {
            0 => vec![format!("{prefix}mm_projector")],
            n => (0..n).map(|i| format!("{prefix}mm_projector.{}", 2 * i)).collect(),
        })
    }

    /// How pictures are cut into tiles, for LLaVA 1.6.
    fn tiles(&self, notes: &mut Vec<String>) -> Result<Option<Tiles>> {
        let json = self.json;
        let mut pinpoints = match json.list("image_grid_pinpoints") {
            Ok(list) => list.map(<[_]>::to_vec),
            Err(_) if self.hugging_face => return Err(json.list("image_grid_pinpoints").expect_err("it is one")),
            Err(_) => None,
        };
        let newline = match self.hugging_face {
            true if !self.next => return Ok(None),
            true => {
                let default = || NEXT_PINPOINTS.iter().map(|pair| serde_json::json!(pair)).collect();
                pinpoints = Some(pinpoints.unwrap_or_else(default));
                true
            }
            false => {
                match json.str("image_aspect_ratio")? {
                    Some("anyres") => {}
                    None | Some("pad" | "square") => return Ok(None),
                    Some(other) => bail!(
                        Unsupported,
                        "{}: \"{other}\" is none of square, pad, anyres",
                        json.at("image_aspect_ratio")
                    ),
                }
                match json.str("mm_patch_merge_type")? {
                    Some("spatial_unpad") => true,
                    None | Some("flat") => {
                        notes.push("the tiles' features follow each other without newlines (flat)".into());
                        false
                    }
                    Some(other) => bail!(
                        Unsupported,
                        "{}: \"{other}\" is neither flat nor spatial_unpad",
                        json.at("mm_patch_merge_type")
                    ),
                }
            }
        };
        let side = |value: &serde_json::Value| value.as_u64().and_then(|n| i32::try_from(n).ok()).filter(|n| *n > 0);
        let pair = |pair: &serde_json::Value| -> Option<[i32; 2]> {
            match pair.as_array()?.as_slice() {
                // Hugging Face has the height first.
                [a, b] if self.hugging_face => Some([side(b)?, side(a)?]),
                [a, b] => Some([side(a)?, side(b)?]),
                _ => None,
            }
        };
        let pairs: Option<Vec<[i32; 2]>> = pinpoints.as_ref().and_then(|list| list.iter().map(pair).collect());
        match pairs.filter(|pairs| !pairs.is_empty()) {
            Some(pairs) => Ok(Some(Tiles { pinpoints: pairs.concat(), newline })),
            None => bail!(Format, "{}: expected a list of pairs of sizes", json.at("image_grid_pinpoints")),
        }
    }

    fn keys(&self, depths: &[usize], n_block: usize, tiles: Option<Tiles>) -> Result<Vec<(String, Value)>> {
        let c = &self.config;
        let mut keys: Vec<(String, Value)> = Vec::new();
        let mut set = |key: &str, value: Value| keys.push((format!("clip.{key}"), value));
        set("projector_type", "mlp".into());
        for (key, n) in [
            ("image_size", c.image_size),
            ("patch_size", c.patch_size),
            ("embedding_length", c.n_embd),
            ("feed_forward_length", c.n_ff),
            ("projection_dim", c.projection_dim),
            ("attention.head_count", c.n_head),
        ] {
            set(&format!("vision.{key}"), Value::U32(n as u32));
        }
        set("vision.attention.layer_norm_epsilon", c.eps.into());
        set("vision.block_count", Value::U32(n_block as u32));
        match tiles {
            Some(tiles) => {
                set("vision.image_grid_pinpoints", tiles.pinpoints.into());
                set("vision.image_aspect_ratio", "anyres".into());
                set("vision.mm_patch_merge_type", if tiles.newline { "spatial_unpad" } else { "flat" }.into());
            }
            None => {
                let padded = self.preprocessor.bool("do_pad")?.filter(|_| self.hugging_face);
                let ratio = match self.json.str("image_aspect_ratio")? {
                    Some(ratio @ ("pad" | "square")) if !self.hugging_face => Some(ratio),
                    _ => padded.filter(|padded| *padded).map(|_| "pad"),
                };
                if let Some(ratio) = ratio {
                    set("vision.image_aspect_ratio", ratio.into());
                }
            }
        }
        for key in ["image_crop_resolution", "image_split_resolution"] {
            if let Some(n) = self.json.usize(key)?.and_then(|n| u32::try_from(n).ok()) {
                set(&format!("vision.{key}"), n.into());
            }
        }
        if let Some(kind) = self.json.str("mm_projector_type")? {
            set("vision.mm_projector_type", kind.into());
        }
        set("vision.feature_layer", depths.iter().map(|d| *d as i32).collect::<Vec<_>>().into());
        for (key, default) in [("image_mean", CLIP_MEAN), ("image_std", CLIP_STD)] {
            let values = match self.preprocessor.list(key)? {
                None => default.to_vec(),
                Some(list) => {
                    let values: Vec<f32> = list.iter().filter_map(|v| v.as_f64()).map(|v| v as f32).collect();
                    if values.len() != 3 || list.len() != 3 {
                        bail!(Format, "{}: expected 3 numbers", self.preprocessor.at(key));
                    }
                    values
                }
            };
            set(&format!("vision.{key}"), values.into());
        }
        set("use_gelu", (c.act == Act::Gelu).into());
        if c.act == Act::Silu {
            set("use_silu", true.into());
        }
        Ok(keys)
    }
}

/// LLaVA 1.6's tiles.
struct Tiles {
    /// Widths and heights in turn.
    pinpoints: Vec<i32>,
    /// Whether a newline ends each row of features.
    newline: bool,
}
