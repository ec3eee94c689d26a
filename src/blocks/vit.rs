//! A vision transformer (arXiv 2010.11929) as CLIP's (2103.00020), EVA's and OpenCLIP's are: patches, maybe a class token in
//! front, learned positions, pre-norm blocks. Which parts there are is seen from the file's tensors: `v.class_embd`, `v.pre_ln`,
//! any bias, `attn_qkv` in place of `attn_q`, `attn_k` and `attn_v`.

use super::saliency;
use crate::ops::{self, Activation, Cx, LayerNorm, Linear, Norm};
use crate::tensor::Loader;
use crate::{Result, bail};
use mmq_kernels::{Attention, Kv};

/// The sizes of an encoder.
#[derive(Clone, Debug, PartialEq)]
pub struct Shape {
    /// Side of a crop in pixels.
    pub image_size: usize,
    /// Side of a patch in pixels.
    pub patch_size: usize,
    /// Width of the residual stream.
    pub n_embd: usize,
    /// Width of the feed-forward layer.
    pub n_ff: usize,
    /// Heads.
    pub n_head: usize,
    /// Epsilon of the blocks' norms and of `v.pre_ln`.
    pub eps: f32,
    /// Activation of the feed-forward layer.
    pub activation: Activation,
    /// Which hidden states make the features, concatenated: `i` is the stream after `i` blocks. Blocks after the last are not loaded.
    pub feature_layers: Vec<usize>,
    /// Whether the class token is one of the features, the first, or left out of them.
    pub keep_class: bool,
    /// Epsilon of `v.post_ln`, where the features pass through it.
    pub final_eps: Option<f32>,
}

impl Shape {
    /// Patches in a row and in a column.
    pub fn n_side(&self) -> usize {
        self.image_size / self.patch_size
    }

    /// Patches of a crop.
    pub fn n_patch(&self) -> usize {
        self.n_side() * self.n_side()
    }

    /// Width of the widest row on the way.
    pub fn max_width(&self) -> usize {
        self.n_ff.max(self.n_feature()).max(3 * self.patch_size * self.patch_size)
    }

    /// Bytes of the buffers that `n_crops` crops take on their way through the encoder: pixels, the residual stream, features,
    /// queries, keys, values, what attention and the feed-forward layer give, and the inputs of products in 8 bits.
    pub fn scratch(&self, n_crops: usize) -> usize {
        let (n_rows, pixels) = (n_crops * (1 + self.n_patch()), n_crops * 3 * self.image_size * self.image_size);
        let floats = 6 * self.n_embd + self.n_feature() + self.n_ff;
        4 * pixels
            + n_rows * (4 * floats + ops::rounded_bytes(self.n_ff.max(self.n_embd)))
            + 4 * self.n_embd * (1 + self.n_patch())
    }

    /// Width of a feature.
    pub fn n_feature(&self) -> usize {
        self.n_embd * self.feature_layers.len()
    }
}

struct Block {
    ln1: LayerNorm,
    attn_q: Linear,
    attn_k: Linear,
    attn_v: Linear,
    attn_out: Linear,
    ln2: LayerNorm,
    ffn_up: Linear,
    ffn_down: Linear,
}

/// An encoder's weights.
pub struct Vit {
    shape: Shape,
    patch_embd: Linear,
    class_embd: Option<Vec<f32>>,
    position_embd: Vec<f32>,
    pre_ln: Option<LayerNorm>,
    blocks: Vec<Block>,
    post_ln: Option<LayerNorm>,
}

impl Vit {
    /// Loads `v.*`.
    pub fn load(loader: Loader<'_>, shape: Shape) -> Result<Vit> {
        let d = shape.n_embd;
        let linear = |name: String, n_out: usize, n_in: usize| Linear::load_vision(loader, &name, n_out, n_in);
        // A third of `attn_qkv`, or a matrix of its own.
        let attn = |il: usize, third: usize| -> Result<Linear> {
            let fused = format!("v.blk.{il}.attn_qkv");
            if !loader.has(&format!("{fused}.weight")) {
                return linear(format!("v.blk.{il}.{}", ["attn_q", "attn_k", "attn_v"][third]), d, d);
            }
            let rows = third * d..(third + 1) * d;
            let bias = loader.optional_vector(&format!("{fused}.bias"), 3 * d)?;
            Ok(Linear {
                weight: loader.vision_weight_part(&format!("{fused}.weight"), 3 * d, d, rows.clone())?,
                bias: bias.map(|bias| bias[rows].to_vec()),
            })
        };
        let norm = |name: String| LayerNorm::load(loader, &name, d, shape.eps);
        let block = |il: usize| -> Result<Block> {
            let at = |name: &str| format!("v.blk.{il}.{name}");
            // The converters of 2023 and 2024 wrote the first layer as ffn_down and the second as ffn_up.
            let first = loader.info(&at("ffn_down.weight"))?;
            let swapped = shape.n_ff != d && first.shape == [shape.n_ff, d];
            let (up, down) = if swapped { ("ffn_down", "ffn_up") } else { ("ffn_up", "ffn_down") };
            Ok(Block {
                ln1: norm(at("ln1"))?,
                attn_q: attn(il, 0)?,
                attn_k: attn(il, 1)?,
                attn_v: attn(il, 2)?,
                attn_out: linear(at("attn_out"), d, d)?,
                ln2: norm(at("ln2"))?,
                ffn_up: linear(at(up), shape.n_ff, d)?,
                ffn_down: linear(at(down), d, shape.n_ff)?,
            })
        };
        let n_class = usize::from(loader.has("v.class_embd"));
        let n_block = *shape.feature_layers.iter().max().expect("an encoder has a feature layer");
        if let Some(next) = (0..n_block).find(|il| !loader.has(&format!("v.blk.{il}.ln1.weight"))) {
            bail!(
                Format,
                "{}: the features come after {n_block} blocks, but tensor \"v.blk.{next}.ln1.weight\" is missing",
                loader.gguf.name()
            );
        }
        let final_norm = shape.final_eps.map(|eps| LayerNorm::load(loader, "v.post_ln", shape.n_feature(), eps));
        Ok(Vit {
            patch_embd: linear("v.patch_embd".into(), d, 3 * shape.patch_size * shape.patch_size)?,
            class_embd: loader.optional_vector("v.class_embd", d)?,
            position_embd: loader.vector("v.position_embd.weight", (n_class + shape.n_patch()) * d)?,
            pre_ln: loader.has("v.pre_ln.weight").then(|| norm("v.pre_ln".into())).transpose()?,
            blocks: (0..n_block).map(block).collect::<Result<_>>()?,
            post_ln: final_norm.transpose()?,
            shape,
        })
    }

    /// Features of a crop.
    pub fn n_row(&self) -> usize {
        self.shape.n_patch() + usize::from(self.shape.keep_class && self.class_embd.is_some())
    }

    /// The encoder's sizes.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Encodes crops `[n_crops, 3, image_size, image_size]` to features `[n_crops, n_row, n_feature]`. `saliency`, if asked for, becomes the attention that each patch receives in the last block, `[n_crops, n_patch]`.
    /// `name` is appended to the names of traced activations.
    pub fn forward(
        &self,
        cx: &mut Cx<'_>,
        pixels: &[f32],
        mut saliency: Option<&mut Vec<f32>>,
        name: &str,
    ) -> Result<Vec<f32>> {
        let s = &self.shape;
        let (d, n_patch) = (s.n_embd, s.n_patch());
        let n_crops = pixels.len() / (3 * s.image_size * s.image_size);

        let mut patches = Vec::new();
        ops::linear(cx, &self.gather(pixels), Norm::None, [(&self.patch_embd, &mut patches)]);
        cx.trace(|| format!("v.patch_embd{name}"), &patches);

        let n_class = usize::from(self.class_embd.is_some());
        let n_pos = n_class + n_patch;
        let mut x = Vec::with_capacity(n_crops * n_pos * d);
        for crop in patches.chunks_exact(n_patch * d) {
            let start = x.len();
            x.extend(self.class_embd.iter().flatten());
            x.extend_from_slice(crop);
            ops::add(cx, &mut x[start..], &self.position_embd, d);
        }
        drop(patches);
        cx.trace(|| format!("v.embd{name}"), &x);

        if let Some(pre_ln) = &self.pre_ln {
            let mut norm = Vec::new();
            ops::layer_norm(cx, &x, pre_ln, &mut norm);
            x = norm;
            cx.trace(|| format!("v.pre_ln{name}"), &x);
        }

        let n_feature = s.n_feature();
        let n_skip = n_pos - self.n_row();
        let mut features = vec![0.0; n_crops * self.n_row() * n_feature];
        let mut tap = |depth: usize, x: &[f32]| {
            for (i, _) in s.feature_layers.iter().enumerate().filter(|(_, layer)| **layer == depth) {
                let rows = x.chunks_exact(n_pos * d).flat_map(|crop| crop[n_skip * d..].chunks_exact(d));
                for (feature, row) in features.chunks_exact_mut(n_feature).zip(rows) {
                    feature[i * d..(i + 1) * d].copy_from_slice(row);
                }
            }
        };
        tap(0, &x);
        if let Some(saliency) = &mut saliency {
            // Features without a block have nothing that looks at them: all are alike.
            **saliency = vec![1.0; n_crops * n_patch];
        }

        let (mut q, mut k, mut v) = (Vec::new(), Vec::new(), Vec::new());
        let (mut attn, mut out, mut ff) = (Vec::new(), Vec::new(), Vec::new());
        let attention = Attention {
            n_head: s.n_head,
            n_head_kv: s.n_head,
            head_dim: d / s.n_head,
            scale: 1.0 / ((d / s.n_head) as f32).sqrt(),
            causal: None,
        };
        for (il, block) in self.blocks.iter().enumerate() {
            cx.checkpoint(il, self.blocks.len())?;
            let layers = [(&block.attn_q, &mut q), (&block.attn_k, &mut k), (&block.attn_v, &mut v)];
            ops::linear(cx, &x, block.ln1.view(), layers);
            if let Some(saliency) = saliency.take_if(|_| il + 1 == self.blocks.len()) {
                *saliency = saliency::attention_received(cx, attention, &q, &k, n_class, n_pos);
            }
            attn.clear();
            for crop in 0..n_crops {
                let at = crop * n_pos * d..(crop + 1) * n_pos * d;
                let (k, v) = (Kv::F32(&k[at.clone()]), Kv::F32(&v[at.clone()]));
                ops::attention(cx, attention, &q[at], k, v, n_pos, &mut out);
                attn.extend_from_slice(&out);
            }
            ops::linear_add(cx, &attn, &block.attn_out, &mut x);
            ops::linear_activated(cx, &x, block.ln2.view(), &block.ffn_up, s.activation, &mut ff);
            ops::linear_add(cx, &ff, &block.ffn_down, &mut x);
            cx.trace(|| format!("v.blk.{il}.out{name}"), &x);
            tap(il + 1, &x);
        }
        cx.checkpoint(1, 1)?;
        if let Some(post_ln) = &self.post_ln {
            ops::layer_norm(cx, &features, post_ln, &mut x);
            features = x;
        }
        cx.trace(|| format!("v.feature{name}"), &features);
        Ok(features)
    }

    /// Pixels in the order of the patch convolution's rows: `[n_crops · n_patch, 3 · patch_size²]`.
    fn gather(&self, pixels: &[f32]) -> Vec<f32> {
        let (size, p, side) = (self.shape.image_size, self.shape.patch_size, self.shape.n_side());
        let mut out = Vec::with_capacity(pixels.len());
        for crop in pixels.chunks_exact(3 * size * size) {
            for (py, px) in (0..side * side).map(|i| (i / side, i % side)) {
                for (c, y) in (0..3 * p).map(|i| (i / p, i % p)) {
                    let start = (c * size + py * p + y) * size + px * p;
                    out.extend_from_slice(&crop[start..start + p]);
                }
            }
        }
        out
    }
}
