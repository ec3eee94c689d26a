//! The projector: a stack of linear layers, GELUs and LayerNorms from image features to the text model's width.

use crate::ops::{self, Activation, Cx, LayerNorm, Linear, Norm};
use crate::tensor::Loader;
use crate::{Result, bail};

enum Step {
    Linear(Linear),
    LayerNorm(LayerNorm),
    Gelu,
}

/// A projector of any depth. LLaVA numbers the layers as PyTorch's `Sequential` does, so that the numbers missing between
/// `mm.0` and the last are the GELUs, which have no weights: `mm.0, mm.2` is `mlp2x_gelu`, `mm.0` alone is linear,
/// `mm.0, mm.1, mm.3, mm.4` with norms at 1 and 4 is Yi-VL's.
pub struct Mlp {
    steps: Vec<Step>,
    n_in: usize,
    n_out: usize,
}

impl Mlp {
    /// Loads `mm.*` for features of width `n_in`.
    pub fn load(loader: Loader<'_>, n_in: usize, eps: f32) -> Result<Mlp> {
        let file = loader.gguf.name();
        let index = |name: &str| -> Option<usize> { name.strip_prefix("mm.")?.strip_suffix(".weight")?.parse().ok() };
        let last = loader.gguf.tensors().iter().filter_map(|t| index(&t.name)).max();
        let Some(last) = last.filter(|_| loader.has("mm.0.weight")) else {
            bail!(Format, "{file}: tensor \"mm.0.weight\" is missing: the file has no projector");
        };
        if last > 64 {
            bail!(Unsupported, "{file}: a projector of {last} layers");
        }
        let mut n_out = n_in;
        let mut steps = Vec::new();
        for i in 0..=last {
            let (weight, bias) = (format!("mm.{i}.weight"), format!("mm.{i}.bias"));
            let Some(info) = loader.gguf.tensor(&weight) else {
                steps.push(Step::Gelu);
                continue;
            };
            if let &[n, _, ..] = info.shape.as_slice() {
                let weight = loader.vision_weight(&weight, n, n_out)?;
                n_out = n;
                steps.push(Step::Linear(Linear { weight, bias: loader.optional_vector(&bias, n)? }));
            } else {
                let norm =
                    LayerNorm { weight: loader.vector(&weight, n_out)?, bias: loader.vector(&bias, n_out)?, eps };
                steps.push(Step::LayerNorm(norm));
            }
        }
        Ok(Mlp { steps, n_in, n_out })
    }

    /// Width of what comes out.
    pub fn n_out(&self) -> usize {
        self.n_out
    }

    /// Width of the widest row on the way.
    pub fn max_width(&self) -> usize {
        let width = |step: &Step| match step {
            Step::Linear(linear) => linear.weight.n_rows(),
            Step::LayerNorm(_) | Step::Gelu => 0,
        };
        self.steps.iter().map(width).max().unwrap_or(0)
    }

    /// Whether it is a single linear layer, as in LLaVA before 1.5.
    pub fn is_linear(&self) -> bool {
        self.steps.len() == 1
    }

    /// Projects `x: [n, n_in]` to `[n, n_out]`.
    pub fn forward(&self, cx: &mut Cx<'_>, mut x: Vec<f32>) -> Vec<f32> {
        let mut width = self.n_in;
        let mut out = Vec::new();
        for step in &self.steps {
            match step {
                Step::Linear(linear) => {
                    ops::linear(cx, &x, Norm::None, [(linear, &mut out)]);
                    width = linear.weight.n_rows();
                    std::mem::swap(&mut x, &mut out);
                }
                Step::LayerNorm(norm) => {
                    ops::layer_norm(cx, &x, norm, &mut out);
                    std::mem::swap(&mut x, &mut out);
                }
                Step::Gelu => ops::activate(cx, Activation::Gelu, &mut x, width),
            }
        }
        x
    }
}
