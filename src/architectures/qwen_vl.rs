//! Qwen-VL's half that sees: OpenCLIP's ViT-bigG without a class token, and a resampler that makes 256 rows of 1,024 patches.
//!
//! Qwen-VL (arXiv 2308.12966); reference: the authors' `visual.py`. The text half is a `qwen` file. Hugging Face transformers
//! never had it, nor has llama.cpp: the layout of the mmproj is ours (`src/convert/README.md`).
//!
//! | here | GGUF (mmproj) | the authors' `transformer.visual.` |
//! |---|---|---|
//! | `v.patch_embd`, `v.position_embd`, `v.pre_ln` | same | `conv1`, `positional_embedding`, `ln_pre` |
//! | `v.blk.N.attn_{q,k,v,out}` | same | `transformer.resblocks.N.attn.{in_proj,out_proj}` |
//! | `v.blk.N.ln1`, `ln2`, `ffn_up`, `ffn_down` | same | `ln_1`, `ln_2`, `mlp.c_fc`, `mlp.c_proj` of the block |
//! | `kv`, `ln_q`, `ln_kv` | `resampler.*` | `attn_pool.{kv_proj,ln_q,ln_kv}` |
//! | `attn.{q,k,v,out}` | `resampler.*` | `attn_pool.attn.{in_proj_weight,in_proj_bias,out_proj}` |
//! | `query`, `pos_embed_q`, `pos_embed_k` | `resampler.*` | `attn_pool.{query,pos_embed}` |
//! | `ln_post`, `proj` | `resampler.*` | `ln_post`, `proj` |
//!
//! **Easy to get wrong**
//! - `in_proj` of the encoder's blocks is `[head, (q, k, v)]`, that of the resampler `[(q, k, v), head]`.
//! - Positions are stored for 16 × 16 patches: those of 32 × 32 are interpolated (bicubic, corners not aligned) on conversion, those
//!   of the resampler's keys too.
//! - Values have no positions, and queries get theirs behind their norm.
//! - `proj` is multiplied from the right in the original: its rows are columns here.
//! - All norms have an epsilon of 1e-6; nothing is normalised between the encoder and the resampler.
//! - A picture is squashed to a square, so that boxes are fractions of its own sides.

use super::{Architecture, ImageRows, Model, VisionModel};
use crate::blocks::image_tokens::ImageTokens;
use crate::blocks::mmproj;
use crate::blocks::resampler::{self, Resampler};
use crate::blocks::vit::Vit;
use crate::media::Image;
use crate::media::preprocess::{Fit, Preprocess};
use crate::ops::Cx;
use crate::tensor::Loader;
use crate::{Result, bail};

/// The registry's line.
pub const ARCH: Architecture = Architecture {
    name: "qwen_vl",
    matches: |gguf| {
        let projector = gguf.metadata().str("clip.projector_type");
        gguf.tensor("v.patch_embd.weight").is_some() && matches!(projector, Ok(Some("resampler_qwen")))
    },
    load: |loader| Ok(Model::Vision(Box::new(QwenVl::load(loader)?))),
};

/// A loaded encoder and resampler.
pub struct QwenVl {
    preprocess: Preprocess,
    vit: Vit,
    resampler: Resampler,
}

impl QwenVl {
    /// Loads the weights, checking every shape.
    pub fn load(loader: Loader<'_>) -> Result<QwenVl> {
        let gguf = loader.gguf;
        let shape = mmproj::vit_shape(gguf)?;
        let size = |key: &str| mmproj::size(gguf, &format!("clip.projector.{key}"));
        let resampler = resampler::Shape {
            n_in: shape.n_feature(),
            n_embd: size("embedding_length")?,
            n_head: size("head_count")?,
            n_query: size("query_count")?,
            n_patch: shape.n_patch(),
            eps: mmproj::epsilon(gguf, "clip.projector.layer_norm_epsilon")?.unwrap_or(1e-6),
        };
        let n_rows = shape.n_patch().max(resampler.n_query);
        mmproj::check_activations(gguf, n_rows, shape.max_width().max(resampler.n_embd))?;
        Ok(QwenVl {
            preprocess: mmproj::preprocess(gguf, shape.image_size, |_| Ok(Fit::Squash))?,
            vit: Vit::load(loader, shape)?,
            resampler: Resampler::load(loader, resampler)?,
        })
    }
}

impl VisionModel for QwenVl {
    fn describe(&self) -> String {
        let (s, r) = (self.vit.shape(), self.resampler.shape());
        format!(
            "vision encoder of Qwen-VL, {} blocks of {}, {} pixels in patches of {}, resampled to {} rows",
            s.feature_layers.iter().max().expect("an encoder has a feature layer"),
            s.n_embd,
            s.image_size,
            s.patch_size,
            r.n_query
        )
    }

    fn n_embd(&self) -> usize {
        self.resampler.shape().n_embd
    }

    fn preprocess(&self) -> &Preprocess {
        &self.preprocess
    }

    fn set_preprocess(&mut self, preprocess: Preprocess) {
        assert_eq!(preprocess.image_size, self.preprocess.image_size, "the encoder's positions fix the crop's size");
        self.preprocess = preprocess;
    }

    fn max_rows(&self, _tokens: Option<ImageTokens>) -> usize {
        self.resampler.shape().n_query
    }

    fn scratch(&self) -> usize {
        let features = 4 * self.vit.shape().n_patch() * self.vit.shape().n_feature();
        self.vit.shape().scratch(1).max(features + self.resampler.shape().scratch())
    }

    fn encode(&self, cx: &mut Cx<'_>, image: &Image, tokens: Option<ImageTokens>, name: &str) -> Result<ImageRows> {
        let n_all = self.resampler.shape().n_query;
        if let Some(n) = tokens.map(|tokens| tokens.n.get()).filter(|n| *n < n_all) {
            bail!(Unsupported, "{n} tokens of a picture: this model's queries make {n_all}, and all are needed");
        }
        let crops = self.preprocess.run(image);
        if crops.n_crops != 1 {
            bail!(
                Usage,
                "pictures of this model are one crop, not {}: image-fit {}",
                crops.n_crops,
                self.preprocess.fit
            );
        }
        cx.trace(|| format!("v.pixels{name}"), &crops.pixels);
        let features = self.vit.forward(cx, &crops.pixels, None, name)?;
        let rows = self.resampler.forward(cx, &features, name);
        cx.trace(|| format!("image{name}"), &rows);
        Ok(ImageRows { rows, n_all })
    }
}
