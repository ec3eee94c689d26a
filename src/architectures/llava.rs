//! LLaVA's half that sees: a CLIP vision encoder, a projector, and for 1.6 the merging of tiles.
//!
//! LLaVA (arXiv 2304.08485), 1.5 (2310.03744), 1.6 "NeXT"; references: the authors' `llava` package for preprocessing and
//! merging, `LlavaForConditionalGeneration` and `LlavaNextForConditionalGeneration` of Hugging Face transformers. The text
//! half is an ordinary `llama` file.
//!
//! | here | GGUF (mmproj) | Hugging Face |
//! |---|---|---|
//! | `v.patch_embd`, `v.class_embd`, `v.position_embd` | same | `vision_model.embeddings.{patch_embedding, class_embedding, position_embedding}` |
//! | `v.pre_ln` | same | `vision_model.pre_layrnorm` |
//! | `v.blk.N.attn_{q,k,v,out}`, `ln1`, `ln2` | same | `encoder.layers.N.self_attn.{q,k,v,out}_proj`, `layer_norm1`, `layer_norm2` |
//! | `v.blk.N.ffn_up`, `ffn_down` | same, swapped in old files | `mlp.fc1`, `mlp.fc2` |
//! | `mm.0`, `mm.2` | same | `multi_modal_projector.linear_1`, `linear_2` |
//! | `image_newline` | `model.image_newline` or `v.image_newline` | `image_newline` |
//!
//! **Easy to get wrong**
//! - `clip.vision.block_count` is already one less than the checkpoint's: all of the stored blocks run, without post-norm.
//! - The class token comes first, so that position rows and patches stay in step; it is dropped from the features.
//! - `clip.use_gelu = false` means quick GELU. The projector's GELU is the exact one whatever the encoder's.
//! - 1.6 crops the padding off the tile grid before it adds a newline to each row, and puts the overview first.

use super::{Architecture, ImageRows, Model, VisionModel};
use crate::blocks::image_tokens::{Grid, ImageTokens, Layout, Place, Reduction};
use crate::blocks::mmproj;
use crate::blocks::projector::Mlp;
use crate::blocks::vit::{self, Vit};
use crate::gguf::Gguf;
use crate::media::Image;
use crate::media::preprocess::{self, Fit, Preprocess};
use crate::ops::Cx;
use crate::tensor::Loader;
use crate::{Result, bail};

/// The registry's line.
pub const ARCH: Architecture = Architecture {
    name: "llava",
    matches: |gguf| {
        let meta = gguf.metadata();
        let projector = meta.str("clip.projector_type").ok().flatten().unwrap_or("mlp");
        gguf.tensor("v.patch_embd.weight").is_some()
            && gguf.tensor("mm.0.weight").is_some()
            && matches!(projector, "mlp" | "mlp_norm" | "linear")
    },
    load: |loader| Ok(Model::Vision(Box::new(Llava::load(loader)?))),
};

/// A loaded encoder and projector.
pub struct Llava {
    preprocess: Preprocess,
    vit: Vit,
    projector: Mlp,
    image_newline: Option<Vec<f32>>,
}

impl Llava {
    /// Loads the weights, checking every shape.
    pub fn load(loader: Loader<'_>) -> Result<Llava> {
        let gguf = loader.gguf;
        let shape = mmproj::vit_shape(gguf)?;
        let projector = Mlp::load(loader, shape.n_feature(), 1e-5)?;
        let newline = ["model.image_newline", "v.image_newline"].into_iter().find(|name| loader.has(name));
        let image_newline = newline.map(|name| loader.vector(name, projector.n_out())).transpose()?;
        let linear = projector.is_linear();
        let preprocess = mmproj::preprocess(gguf, shape.image_size, |mean| fit(gguf, &shape, mean, linear))?;
        let width = shape.max_width().max(projector.max_width());
        mmproj::check_activations(gguf, preprocess.max_crops() * (1 + shape.n_patch()), width)?;
        Ok(Llava { preprocess, vit: Vit::load(loader, shape)?, projector, image_newline })
    }

    /// The order of the features of the crops of a picture that is `original` wide and high and `tiled` so: the overview, then the grid of tiles without its padding, each row of
    /// it ended by a newline.
    fn layout(&self, original: (usize, usize), tiled: Option<(usize, usize)>) -> Layout {
        let (side, n_patch) = (self.vit.shape().n_side(), self.vit.shape().n_patch());
        let crop = |i: usize, n_newline| {
            let features = (i * n_patch..(i + 1) * n_patch).collect();
            Grid { rows: side, cols: side, n_newline, features }
        };
        if self.image_newline.is_none() {
            return Layout { grids: (0..n_crops(tiled)).map(|i| crop(i, 0)).collect() };
        }
        let Some((cols_of_tiles, rows_of_tiles)) = tiled else { return Layout { grids: vec![crop(0, 1)] } };
        let (rows, cols) = preprocess::unpad(original, rows_of_tiles * side, cols_of_tiles * side);
        let feature = |row: usize, col: usize| {
            let crop = 1 + row / side * cols_of_tiles + col / side;
            crop * n_patch + row % side * side + col % side
        };
        let features = rows.clone().flat_map(|row| cols.clone().map(move |col| feature(row, col))).collect();
        let tiles = Grid { rows: rows.len(), cols: cols.len(), n_newline: rows.len(), features };
        Layout { grids: vec![crop(0, 0), tiles] }
    }

    /// What the text model takes: rows of `projected: [n, n_embd]`, and the newline, in the order of `places`.
    fn arrange(&self, places: &[Place], projected: Vec<f32>) -> Vec<f32> {
        let Some(newline) = &self.image_newline else { return projected };
        let n_embd = newline.len();
        let rows = places.iter().flat_map(|place| match place {
            Some(row) => &projected[row * n_embd..][..n_embd],
            None => newline,
        });
        rows.copied().collect()
    }
}

impl VisionModel for Llava {
    fn describe(&self) -> String {
        let s = self.vit.shape();
        format!(
            "CLIP vision encoder of LLaVA, {} blocks of {}, {} pixels in patches of {}, pictures fitted by {}",
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

    fn n_tokens(&self, size: (usize, usize), tokens: Option<ImageTokens>) -> usize {
        let tiled = self.preprocess.grid(size);
        let layout = self.layout(size, tiled);
        match tokens.filter(|tokens| tokens.n.get() < layout.len()) {
            None => layout.len(),
            Some(ImageTokens { n, by: Reduction::Downsample }) => {
                let features = vec![0.0; n_crops(tiled) * self.vit.shape().n_patch()];
                layout.downsample(&features, 1, n.get()).1.len()
            }
            Some(ImageTokens { n, .. }) => n.get(),
        }
    }

    fn max_rows(&self, tokens: Option<ImageTokens>) -> usize {
        let (n_crops, n_side) = (self.preprocess.max_crops(), self.vit.shape().n_side());
        // At most as many newlines as the tiles have rows, and the overview's.
        let n_newline = if self.image_newline.is_some() { n_crops * n_side + 1 } else { 0 };
        let n_all = n_crops * self.vit.shape().n_patch() + n_newline;
        tokens.map_or(n_all, |tokens| tokens.n.get().min(n_all))
    }

    fn scratch(&self) -> usize {
        let n_rows = self.preprocess.max_crops() * self.vit.shape().n_patch();
        let projected = 4 * n_rows * (2 * self.projector.max_width());
        // The stream is gone when the features are projected.
        self.vit.shape().scratch(self.preprocess.max_crops()).max(projected + 4 * n_rows * self.vit.shape().n_feature())
    }

    fn encode(&self, cx: &mut Cx<'_>, image: &Image, tokens: Option<ImageTokens>, name: &str) -> Result<ImageRows> {
        let crops = self.preprocess.run(image);
        cx.trace(|| format!("v.pixels{name}"), &crops.pixels);
        let layout = self.layout(crops.original, crops.grid);
        let tokens = tokens.filter(|tokens| tokens.n.get() < layout.len());

        let mut saliency = Vec::new();
        let by_saliency = tokens.is_some_and(|tokens| tokens.by == Reduction::Saliency);
        let features = self.vit.forward(cx, &crops.pixels, by_saliency.then_some(&mut saliency), name)?;
        let (width, n_patch) = (self.vit.shape().n_feature(), self.vit.shape().n_patch());
        let (features, places) = match tokens {
            None => (features, layout.places()),
            Some(ImageTokens { n, by: Reduction::Downsample }) => layout.downsample(&features, width, n.get()),
            Some(ImageTokens { n, .. }) => {
                saliency.resize(crops.n_crops * n_patch, 1.0);
                layout.select(cx, &features, width, &saliency, n_patch, n.get())
            }
        };

        let projected = self.projector.forward(cx, features);
        cx.trace(|| format!("mm.out{name}"), &projected);
        let rows = self.arrange(&places, projected);
        cx.trace(|| format!("image{name}"), &rows);
        Ok(ImageRows { rows, n_all: layout.len() })
    }
}

/// The crops of a picture: the overview and its tiles.
fn n_crops(tiled: Option<(usize, usize)>) -> usize {
    1 + tiled.map_or(0, |(cols, rows)| cols * rows)
}

/// How pictures are fitted: `clip.vision.image_grid_pinpoints`, `image_aspect_ratio`, or what LLaVA's versions did.
fn fit(gguf: &Gguf, shape: &vit::Shape, mean: [f32; 3], linear: bool) -> Result<Fit> {
    let meta = gguf.metadata();
    let fill = preprocess::mean_color(mean);
    let pinpoints = meta.i64s("clip.vision.image_grid_pinpoints")?.unwrap_or_default();
    Ok(match meta.str("clip.vision.image_aspect_ratio")? {
        _ if !pinpoints.is_empty() => Fit::Anyres { pinpoints: pairs(gguf, &pinpoints, shape.image_size)? },
        Some("pad") => Fit::Pad { fill },
        Some("square") => Fit::CenterCrop,
        // LLaVA v0 and v1, known by their linear projector or 224 pixels, were trained on cropped pictures, 1.5 on padded.
        None if linear || shape.image_size == 224 => Fit::CenterCrop,
        None => Fit::Pad { fill },
        Some(other) => bail!(
            Unsupported,
            "{}: clip.vision.image_aspect_ratio: \"{other}\" is none of square, pad, anyres",
            gguf.name()
        ),
    })
}

/// The flat list of the file as (width, height) pairs.
fn pairs(gguf: &Gguf, flat: &[i64], image_size: usize) -> Result<Vec<(usize, usize)>> {
    let side =
        |n: i64| usize::try_from(n).ok().filter(|n| *n > 0 && *n <= 64 * image_size && n.is_multiple_of(image_size));
    let (pairs, rest) = flat.as_chunks::<2>();
    let sides: Option<Vec<_>> = pairs.iter().map(|[w, h]| Some((side(*w)?, side(*h)?))).collect();
    match sides {
        Some(sides) if rest.is_empty() => Ok(sides),
        _ => bail!(
            Format,
            "{}: clip.vision.image_grid_pinpoints: {flat:?} are no pairs of multiples of {image_size}",
            gguf.name()
        ),
    }
}
