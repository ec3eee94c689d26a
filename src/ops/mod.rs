//! Operations on rows of floats: they check shapes and call the device.
//!
//! A matrix of activations is a slice `[n_tokens, width]`. A wrong shape here is a bug of ours and panics; what comes from
//! a file has been checked by [`crate::tensor::Loader`].

mod collect;
mod trace;

pub use collect::{Collector, Inputs};
pub use trace::Trace;

use crate::device::Cpu;
use crate::tensor::{Loader, Weight};
use crate::{Result, unless_stopped};
pub use mmq_kernels::Norm;
use mmq_kernels::{Activations, Attention, Dtype, Input, Kernels, Kv, Layout, Product, Then, Weights};

/// What a forward pass runs in: the device, the buffers that live from call to call, and who is watching.
pub struct Cx<'a> {
    /// Where it runs.
    pub device: &'a Cpu,
    /// Rounded activations, shared by products of the same input.
    pub activations: &'a mut Activations,
    /// Called with the fraction done, between layers.
    pub progress: Option<&'a mut dyn FnMut(f32)>,
    /// Records named activations, if there.
    pub trace: Option<&'a mut Trace>,
    /// Sums up the squared inputs of matrices, if there.
    pub collector: Option<&'a mut Collector>,
    /// Layers from this one on stream through memory: their pages are given back after use. `None`: all stay.
    pub n_resident: Option<usize>,
}

impl<'a> Cx<'a> {
    /// A context that nobody watches.
    pub fn new(device: &'a Cpu, activations: &'a mut Activations) -> Cx<'a> {
        Cx { device, activations, progress: None, trace: None, collector: None, n_resident: None }
    }

    /// An error if the work is [stopped](mmq_kernels::stopped); otherwise reports that `done` of `total` layers are finished.
    pub fn checkpoint(&mut self, done: usize, total: usize) -> Result<()> {
        unless_stopped()?;
        if let Some(progress) = &mut self.progress {
            progress(done as f32 / total as f32);
        }
        Ok(())
    }

    /// Records `data: [.., width]` under the name that `name` gives, if a trace is on.
    pub fn trace(&mut self, name: impl FnOnce() -> String, data: &[f32]) {
        if let Some(trace) = &mut self.trace {
            trace.record(name(), data);
        }
    }
}

/// Bytes of a row of `width` activations in the form that products with quantized weights take: quants, and factors and sums of
/// each 16 or 32 of them.
pub fn rounded_bytes(width: usize) -> usize {
    width + 4 * (2 * width / 32 + 2 * width / 16)
}

/// An activation function of a vision encoder or a projector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x · σ(1.702 x)`, OpenAI's CLIP.
    QuickGelu,
    /// GELU with the exact error function.
    Gelu,
    /// Its approximation by a hyperbolic tangent.
    GeluTanh,
    /// `x · σ(x)`.
    Silu,
}

impl Activation {
    /// Every activation with the name that files give it.
    pub const NAMES: [(&str, Activation); 4] = [
        ("quick_gelu", Activation::QuickGelu),
        ("gelu_erf", Activation::Gelu),
        ("gelu_tanh", Activation::GeluTanh),
        ("silu", Activation::Silu),
    ];

    fn kernel(self, kernels: &Kernels) -> fn(&mut [f32]) {
        match self {
            Activation::QuickGelu => kernels.gelu_quick,
            Activation::Gelu => kernels.gelu_erf,
            Activation::GeluTanh => kernels.gelu_tanh,
            Activation::Silu => kernels.silu,
        }
    }
}

/// A linear layer: `w: [n_out, n_in]` and an optional bias `[n_out]`.
#[derive(Clone)]
pub struct Linear {
    /// The matrix.
    pub weight: Weight,
    /// The bias.
    pub bias: Option<Vec<f32>>,
}

/// Scale and shift of a LayerNorm.
#[derive(Clone)]
pub struct LayerNorm {
    /// Scale, `[width]`.
    pub weight: Vec<f32>,
    /// Shift, `[width]`.
    pub bias: Vec<f32>,
    /// Added to the variance.
    pub eps: f32,
}

impl Linear {
    /// Loads `name.weight` in the precision of vision encoders, and `name.bias` if the file has it.
    ///
    /// # Errors
    /// As [`Loader::vision_weight`].
    pub fn load_vision(loader: Loader<'_>, name: &str, n_out: usize, n_in: usize) -> Result<Linear> {
        Ok(Linear {
            weight: loader.vision_weight(&format!("{name}.weight"), n_out, n_in)?,
            bias: loader.optional_vector(&format!("{name}.bias"), n_out)?,
        })
    }

    fn product<'a>(&'a self, then: Then<'a>, out: &'a mut [f32]) -> Product<'a> {
        Product { weights: self.weight.view(), bias: self.bias.as_deref(), then, out }
    }

    /// The length of the output for an input of `n` elements.
    fn n_out(&self, n: usize) -> usize {
        assert!(n.is_multiple_of(self.weight.n_cols()), "input of {n} elements into rows of {}", self.weight.n_cols());
        n / self.weight.n_cols() * self.weight.n_rows()
    }
}

impl LayerNorm {
    /// Loads `name.weight` and `name.bias` of `n` elements.
    ///
    /// # Errors
    /// As [`Loader::vector`].
    pub fn load(loader: Loader<'_>, name: &str, n: usize, eps: f32) -> Result<LayerNorm> {
        let vector = |part: &str| loader.vector(&format!("{name}.{part}"), n);
        Ok(LayerNorm { weight: vector("weight")?, bias: vector("bias")?, eps })
    }

    /// This norm, to be applied to the input of a product.
    pub fn view(&self) -> Norm<'_> {
        Norm::Layer { weight: &self.weight, bias: &self.bias, eps: self.eps }
    }
}

/// Runs products of one input `x: [n_tokens, n_in]`, which passes through `norm` first, in one region.
fn products<const N: usize>(cx: &mut Cx<'_>, x: &[f32], norm: Norm<'_>, mut products: [Product<'_>; N]) {
    let input = Input { x, n_cols: products[0].weights.n_cols, norm };
    mmq_kernels::matmul(&cx.device.team, input, cx.activations, &mut products);
}

/// Notes that `x: [n_tokens, n_in]`, which passes through `norm` first, is multiplied with `layers`, if someone collects.
fn collect(cx: &mut Cx<'_>, x: &[f32], norm: Norm<'_>, layers: &[&Linear]) {
    let Some(collector) = cx.collector.take() else { return };
    let n = layers[0].weight.n_cols();
    // Parts of one tensor have one input.
    let is_first = |i: usize| layers[..i].iter().all(|layer| layer.weight.name() != layers[i].weight.name());
    let wanted = || (0..layers.len()).filter(|&i| is_first(i) && collector.wants(layers[i].weight.name()));
    if wanted().next().is_some() {
        let mut normed = Vec::new();
        if !matches!(norm, Norm::None) {
            normed.resize(x.len(), 0.0);
            let k = cx.device.kernels;
            rows(cx, &mut normed, n, &|i, y| {
                let x = &x[i * n..(i + 1) * n];
                match norm {
                    Norm::None => {}
                    Norm::Rms { weight, eps } => (k.rms_norm)(x, weight, eps, y),
                    Norm::Layer { weight, bias, eps } => (k.layer_norm)(x, weight, bias, eps, y),
                }
            });
        }
        let x = if normed.is_empty() { x } else { &normed };
        for layer in wanted().map(|i| layers[i]).collect::<Vec<_>>() {
            collector.add(cx.device, layer.weight.name(), layer.bias.is_some(), x, n);
        }
    }
    cx.collector = Some(collector);
}

/// Products of one input `x: [n_tokens, n_in]`, which passes through `norm` first, with several layers; each `out` becomes
/// `[n_tokens, n_out]`.
pub fn linear<const N: usize>(cx: &mut Cx<'_>, x: &[f32], norm: Norm<'_>, layers: [(&Linear, &mut Vec<f32>); N]) {
    collect(cx, x, norm, &layers.each_ref().map(|(layer, _)| *layer));
    let run = layers.map(|(layer, out)| {
        out.resize(layer.n_out(x.len()), 0.0);
        layer.product(Then::Store, out)
    });
    products(cx, x, norm, run);
}

/// `layer(norm(x))` of what is the same for every input, computed as the weights are loaded; nothing where nothing will be run.
pub fn linear_at_load(loader: Loader<'_>, x: &[f32], norm: Norm<'_>, layer: &Linear) -> Vec<f32> {
    let Some(prepare) = loader.loading.prepare else { return Vec::new() };
    let mut out = vec![0.0; layer.n_out(x.len())];
    let input = Input { x, n_cols: layer.weight.n_cols(), norm };
    let mut product = [layer.product(Then::Store, &mut out)];
    mmq_kernels::matmul(prepare.team(), input, &mut Activations::default(), &mut product);
    out
}

/// `residual += layer(x)`, with `residual: [n_tokens, n_out]`.
pub fn linear_add(cx: &mut Cx<'_>, x: &[f32], layer: &Linear, residual: &mut [f32]) {
    collect(cx, x, Norm::None, &[layer]);
    products(cx, x, Norm::None, [layer.product(Then::Add, residual)]);
}

/// [`linear_add`], the layer's output being traced under the name that `name` gives.
pub fn linear_add_traced(
    cx: &mut Cx<'_>,
    x: &[f32],
    layer: &Linear,
    residual: &mut [f32],
    name: impl FnOnce() -> String,
) {
    if cx.trace.is_none() {
        return linear_add(cx, x, layer, residual);
    }
    let mut out = Vec::new();
    linear(cx, x, Norm::None, [(layer, &mut out)]);
    cx.trace(name, &out);
    add(cx, residual, &out, layer.weight.n_rows());
}

/// `out = activation(layer(norm(x)))`.
pub fn linear_activated(
    cx: &mut Cx<'_>,
    x: &[f32],
    norm: Norm<'_>,
    layer: &Linear,
    activation: Activation,
    out: &mut Vec<f32>,
) {
    out.resize(layer.n_out(x.len()), 0.0);
    let f = activation.kernel(cx.device.kernels);
    collect(cx, x, norm, &[layer]);
    products(cx, x, norm, [layer.product(Then::Apply(f), out)]);
}

/// `out = silu(gate(norm(x))) · up(norm(x))`, the gated unit of LLaMA.
pub fn gated(cx: &mut Cx<'_>, x: &[f32], norm: Norm<'_>, gate: &Linear, up: &Linear, out: &mut Vec<f32>) {
    out.resize(gate.n_out(x.len()), 0.0);
    if gate.bias.is_none() && up.bias.is_none() {
        collect(cx, x, norm, &[gate, up]);
        return products(cx, x, norm, [gate.product(Then::Gate(up.weight.view()), out)]);
    }
    let mut right = Vec::new();
    linear(cx, x, norm, [(gate, &mut *out), (up, &mut right)]);
    let width = gate.weight.n_rows();
    rows(cx, out, width, &|i, row| (cx.device.kernels.silu_mul)(row, &right[i * width..(i + 1) * width]));
}

/// Products of all rows of `x: [n, width]` with each other, in single precision: `out` becomes `[n, n]`.
pub fn gram(cx: &mut Cx<'_>, x: &[f32], width: usize, out: &mut Vec<f32>) {
    let n = x.len() / width;
    let data: Vec<u8> = x.iter().flat_map(|x| x.to_le_bytes()).collect();
    let weights = Weights { dtype: Dtype::F32, layout: Layout::Rows, n_rows: n, n_cols: width, data: &data };
    out.resize(n * n, 0.0);
    products(cx, x, Norm::None, [Product { weights, bias: None, then: Then::Store, out }]);
}

/// `x += y`, element by element.
pub fn add(cx: &Cx<'_>, x: &mut [f32], y: &[f32], width: usize) {
    assert_eq!(x.len(), y.len());
    rows(cx, x, width, &|i, row| (cx.device.kernels.add)(row, &y[i * width..(i + 1) * width]));
}

/// RMSNorm of each row of `x` with scale `w: [width]`.
pub fn rms_norm(cx: &Cx<'_>, x: &[f32], w: &[f32], eps: f32, out: &mut Vec<f32>) {
    let n = w.len();
    out.resize(x.len(), 0.0);
    rows(cx, out, n, &|i, y| (cx.device.kernels.rms_norm)(&x[i * n..(i + 1) * n], w, eps, y));
}

/// LayerNorm of each row of `x`.
pub fn layer_norm(cx: &Cx<'_>, x: &[f32], norm: &LayerNorm, out: &mut Vec<f32>) {
    let n = norm.weight.len();
    out.resize(x.len(), 0.0);
    rows(cx, out, n, &|i, y| {
        (cx.device.kernels.layer_norm)(&x[i * n..(i + 1) * n], &norm.weight, &norm.bias, norm.eps, y)
    });
}

/// Applies `activation` to rows of `width`.
pub fn activate(cx: &Cx<'_>, activation: Activation, x: &mut [f32], width: usize) {
    let f = activation.kernel(cx.device.kernels);
    rows(cx, x, width, &|_, row| f(row));
}

/// Which elements of a head are turned together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pairs {
    /// `(x[2i], x[2i + 1])`: rows of `attn_q` and `attn_k` are in GGUF's order for LLaMA.
    Neighbours,
    /// `(x[i], x[i + n_rot / 2])`: rows are in Hugging Face's order ("NeoX").
    Halves,
}

/// Rotates the first `2 · cos[t].len()` elements of each head of token `t` by pairs: `x: [n_tokens, n_head, head_dim]`,
/// `cos` and `sin`: `[n_tokens, n_rot / 2]`.
pub fn rope(cx: &Cx<'_>, x: &mut [f32], n_head: usize, head_dim: usize, pairs: Pairs, (cos, sin): (&[f32], &[f32])) {
    let width = n_head * head_dim;
    let half = cos.len() / (x.len() / width);
    let rotate = match pairs {
        Pairs::Neighbours => cx.device.kernels.rope,
        Pairs::Halves => cx.device.kernels.rope_half,
    };
    rows(cx, x, width, &|t, row| {
        for head in row.chunks_exact_mut(head_dim) {
            let at = t * half..(t + 1) * half;
            rotate(&mut head[..2 * half], &cos[at.clone()], &sin[at]);
        }
    });
}

/// Attention of `q: [n_tokens, n_head, head_dim]` over `n_kv` stored keys and values.
pub fn attention(cx: &Cx<'_>, shape: Attention, q: &[f32], k: Kv<'_>, v: Kv<'_>, n_kv: usize, out: &mut Vec<f32>) {
    out.resize(q.len(), 0.0);
    mmq_kernels::attention(&cx.device.team, shape, q, k, v, n_kv, out);
}

/// Runs `f(i, row)` on each row of `width`, in parallel when there are enough of them to be worth it.
fn rows(cx: &Cx<'_>, x: &mut [f32], width: usize, f: &(dyn Fn(usize, &mut [f32]) + Sync)) {
    const WORTH_A_REGION: usize = 16 * 1024;
    if x.len() < WORTH_A_REGION {
        x.chunks_exact_mut(width).enumerate().for_each(|(i, row)| f(i, row));
    } else {
        cx.device.team.rows(x, width, f);
    }
}
