//! MiniGPT-4's half that sees, and MiniGPT-v2's: EVA-CLIP's vision encoder, and a Q-Former with a linear layer, or a linear
//! layer alone that takes four patches at a time.
//!
//! MiniGPT-4 (arXiv 2304.10592), MiniGPT-v2 (2310.09478), EVA (2211.07636), BLIP-2 (2301.12597); references: the authors'
//! `minigpt4` package, and `Blip2VisionModel` and `Blip2QFormerModel` of Hugging Face transformers, with another epsilon in the
//! last norm. The text half is an ordinary `llama` file: Vicuna-v0, or Llama 2 with the adapter of v2 merged in.
//!
//! | here and in the mmproj | MiniGPT-4, LAVIS | Hugging Face |
//! |---|---|---|
//! | `v.class_embd`, `v.position_embd`, `v.patch_embd` | `visual_encoder.{cls_token, pos_embed, patch_embed.proj}` | `vision_model.embeddings.{class_embedding, position_embedding, patch_embedding}` |
//! | `v.blk.N.attn_{q,k,v}` (or `attn_qkv`), `attn_out` | `visual_encoder.blocks.N.attn.{qkv, q_bias, v_bias}`, `attn.proj` | `encoder.layers.N.self_attn.{qkv, projection}` |
//! | `v.blk.N.{ln1, ln2, ffn_up, ffn_down}` | `norm1`, `norm2`, `mlp.fc1`, `mlp.fc2` | `layer_norm1`, `layer_norm2`, `mlp.fc1`, `mlp.fc2` |
//! | `v.post_ln` | `ln_vision` | `vision_model.post_layernorm` |
//! | `qf.query`, `qf.embd_norm` | `query_tokens`, `Qformer.bert.embeddings.LayerNorm` | `query_tokens`, `qformer.layernorm` |
//! | `qf.blk.N.attn_{q,k,v,out,norm}` | `attention.self.{query, key, value}`, `attention.output.{dense, LayerNorm}` | `attention.attention.…`, `attention.output.…` |
//! | `qf.blk.N.xattn_{q,k,v,out,norm}` | `crossattention.…` | `crossattention.…` |
//! | `qf.blk.N.{ffn_up, ffn_down, ffn_norm}` | `intermediate_query.dense`, `output_query.{dense, LayerNorm}` | same |
//! | `mm.0` | `llama_proj` | `language_projection` |
//!
//! `clip.projector_type` is `qformer` or `concat4_linear`; `src/convert/README.md` has the other keys.
//!
//! **Easy to get wrong**
//! - The encoder has 39 blocks, one less than EVA's 40, and its output passes through `ln_vision`, class token and all. That norm
//!   has an epsilon of 1e-5, the blocks' norms 1e-6, the Q-Former's 1e-12.
//! - q and v have biases, k has none.
//! - The Q-Former looks at the class token too; the variants without one drop it.
//! - The four patches are neighbours in a row, not a square of two by two.
//! - Pictures are squashed to a square, not padded.

use super::{Architecture, ImageRows, Model, VisionModel};
use crate::blocks::image_tokens::{Grid, ImageTokens, Layout, Reduction};
use crate::blocks::mmproj;
use crate::blocks::projector::Mlp;
use crate::blocks::qformer::{self, Qformer};
use crate::blocks::vit::{self, Vit};
use crate::gguf::Gguf;
use crate::media::Image;
use crate::media::preprocess::{Fit, Preprocess};
use crate::ops::Cx;
use crate::tensor::Loader;
use crate::{Result, bail};

/// The registry's line.
pub const ARCH: Architecture = Architecture {
    name: "minigpt4",
    matches: |gguf| {
        let projector = gguf.metadata().str("clip.projector_type").ok().flatten();
        matches!(projector, Some("qformer" | "concat4_linear")) && gguf.tensor("v.patch_embd.weight").is_some()
    },
    load: |loader| Ok(Model::Vision(Box::new(MiniGpt4::load(loader)?))),
};

/// What makes rows for the projector of an encoder's features.
enum Bridge {
    Qformer(Box<Qformer>),
    /// So many patches, one after the other, make one row.
    Concat(usize),
}

/// A loaded encoder, bridge and projector.
pub struct MiniGpt4 {
    preprocess: Preprocess,
    vit: Vit,
    bridge: Bridge,
    projector: Mlp,
}

impl MiniGpt4 {
    /// Loads the weights, checking every shape.
    ///
    /// # Errors
    /// Keys or tensors that are missing or do not fit each other.
    pub fn load(loader: Loader<'_>) -> Result<MiniGpt4> {
        let gguf = loader.gguf;
        let has_qformer = gguf.metadata().str("clip.projector_type")? == Some("qformer");
        let final_eps = mmproj::epsilon(gguf, "clip.vision.final_norm_epsilon")?.unwrap_or(1e-5);
        let shape = vit::Shape { keep_class: has_qformer, final_eps: Some(final_eps), ..mmproj::vit_shape(gguf)? };
        let preprocess = mmproj::preprocess(gguf, shape.image_size, |_| Ok(Fit::Squash))?;
        let (bridge, n_in) = if has_qformer {
            let qformer = qformer::Shape::read(gguf, shape.n_feature())?;
            mmproj::check_activations(gguf, preprocess.max_crops() * qformer.n_query, qformer.max_width())?;
            let n_in = qformer.n_embd;
            (Bridge::Qformer(Box::new(Qformer::load(loader, qformer)?)), n_in)
        } else {
            let n = concat(gguf, &shape)?;
            (Bridge::Concat(n), n * shape.n_feature())
        };
        let projector = Mlp::load(loader, n_in, 1e-5)?;
        let width = shape.max_width().max(projector.max_width()).max(n_in);
        mmproj::check_activations(gguf, preprocess.max_crops() * (1 + shape.n_patch()), width)?;
        Ok(MiniGpt4 { preprocess, vit: Vit::load(loader, shape)?, bridge, projector })
    }

    /// The places of `n_crops` crops' rows, `n_concat` patches each.
    fn layout(&self, n_crops: usize, n_concat: usize) -> Layout {
        let (side, n_row) = (self.vit.shape().n_side(), self.vit.shape().n_patch() / n_concat);
        // Where rows of patches are no whole rows of the projector's there is no grid, but a line.
        let (rows, cols) = if side.is_multiple_of(n_concat) { (side, side / n_concat) } else { (1, n_row) };
        let grid =
            |crop: usize| Grid { rows, cols, n_newline: 0, features: (crop * n_row..(crop + 1) * n_row).collect() };
        Layout { grids: (0..n_crops).map(grid).collect() }
    }
}

/// How many patches make a row.
fn concat(gguf: &Gguf, shape: &vit::Shape) -> Result<usize> {
    let key = "clip.projector.concat";
    let n = match gguf.metadata().usize(key)? {
        Some(_) => mmproj::size(gguf, key)?,
        None => 4,
    };
    if !shape.n_patch().is_multiple_of(n) {
        bail!(Format, "{}: {key}: {} patches do not divide by {n}", gguf.name(), shape.n_patch());
    }
    Ok(n)
}

impl VisionModel for MiniGpt4 {
    fn describe(&self) -> String {
        let s = self.vit.shape();
        let bridge = match &self.bridge {
            Bridge::Qformer(qformer) => format!("a Q-Former of {} queries", qformer.shape().n_query),
            Bridge::Concat(n) => format!("{n} patches to a token"),
        };
        format!(
            "EVA-CLIP vision encoder of MiniGPT-4, {} blocks of {}, {} pixels in patches of {}, pictures fitted by {}; {bridge}",
            s.feature_layers.iter().max().expect("an encoder has a feature layer"),
            s.n_embd,
            s.image_size,
            s.patch_size,
            self.preprocess.fit
        )
    }

    fn n_embd(&self) -> usize {
        self.projector.n_out()
    }

    fn preprocess(&self) -> &Preprocess {
        &self.preprocess
    }

    fn set_preprocess(&mut self, preprocess: Preprocess) {
        assert_eq!(preprocess.image_size, self.preprocess.image_size, "the encoder's positions fix the crop's size");
        self.preprocess = preprocess;
    }

    fn max_rows(&self, tokens: Option<ImageTokens>) -> usize {
        let n_crops = self.preprocess.max_crops();
        match &self.bridge {
            Bridge::Qformer(qformer) => n_crops * qformer.shape().n_query,
            Bridge::Concat(n) => {
                let n_all = n_crops * self.vit.shape().n_patch() / n;
                tokens.map_or(n_all, |tokens| tokens.n.get().min(n_all))
            }
        }
    }

    fn scratch(&self) -> usize {
        let (n_crops, s) = (self.preprocess.max_crops(), self.vit.shape());
        let features = 4 * n_crops * self.vit.n_row() * s.n_feature();
        let bridge = match &self.bridge {
            Bridge::Qformer(qformer) => qformer.shape().scratch(self.vit.n_row()),
            Bridge::Concat(_) => 0,
        };
        let projected = 4 * self.max_rows(None) * 2 * self.projector.max_width();
        s.scratch(n_crops).max(features + bridge.max(projected))
    }

    fn encode(&self, cx: &mut Cx<'_>, image: &Image, tokens: Option<ImageTokens>, name: &str) -> Result<ImageRows> {
        let crops = self.preprocess.run(image);
        cx.trace(|| format!("v.pixels{name}"), &crops.pixels);
        let mut saliency = Vec::new();
        let (rows, n_all) = match &self.bridge {
            Bridge::Qformer(qformer) => {
                let n_all = crops.n_crops * qformer.shape().n_query;
                if let Some(tokens) = tokens.filter(|tokens| tokens.n.get() < n_all) {
                    bail!(
                        Usage,
                        "image-tokens {}: a picture has {n_all} already, one for each query of the Q-Former, and none can be left out",
                        tokens.n
                    );
                }
                let features = self.vit.forward(cx, &crops.pixels, None, name)?;
                let mut rows = Vec::new();
                for features in features.chunks_exact(self.vit.n_row() * self.vit.shape().n_feature()) {
                    rows.extend(qformer.forward(cx, features, name)?);
                }
                cx.trace(|| format!("qf.out{name}"), &rows);
                (rows, n_all)
            }
            Bridge::Concat(n) => {
                let layout = self.layout(crops.n_crops, *n);
                let tokens = tokens.filter(|tokens| tokens.n.get() < layout.len());
                let by_saliency = tokens.is_some_and(|tokens| tokens.by == Reduction::Saliency);
                let features = self.vit.forward(cx, &crops.pixels, by_saliency.then_some(&mut saliency), name)?;
                let (width, n_row) = (n * self.vit.shape().n_feature(), self.vit.shape().n_patch() / n);
                let rows = match tokens {
                    None => features,
                    Some(ImageTokens { n, by: Reduction::Downsample }) => {
                        layout.downsample(&features, width, n.get()).0
                    }
                    Some(ImageTokens { n: n_kept, .. }) => {
                        saliency.resize(layout.len() * n, 1.0);
                        let saliency: Vec<f32> =
                            saliency.chunks_exact(*n).map(|patches| patches.iter().sum()).collect();
                        layout.select(cx, &features, width, &saliency, n_row, n_kept.get()).0
                    }
                };
                (rows, layout.len())
            }
        };
        let rows = self.projector.forward(cx, rows);
        cx.trace(|| format!("mm.out{name}"), &rows);
        cx.trace(|| format!("image{name}"), &rows);
        Ok(ImageRows { rows, n_all })
    }
}
