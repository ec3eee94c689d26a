//! Operations on rows of floats: they check shapes and call the device.
//!
//! A matrix of activations is a slice `[n_tokens, width]`. A wrong shape here is a bug of ours and panics; what comes from
//! a file has been checked by [`crate::tensor::Loader`].

mod trace;

pub use trace::Trace;

use crate::device::Cpu;
use crate::tensor::Weight;
use crate::{Error, ErrorKind, Result};
use mmq_kernels::{Activations, Attention, Dtype, Kv, Weights};
use std::sync::atomic::{AtomicBool, Ordering};

/// What a forward pass runs in: the device, the buffers that live from call to call, and who is watching.
pub struct Cx<'a> {
    /// Where it runs.
    pub device: &'a Cpu,
    /// Rounded activations, shared by products of the same input.
    pub activations: &'a mut Activations,
    /// Set by another thread to stop between layers.
    pub cancel: Option<&'a AtomicBool>,
    /// Called with the fraction done, between layers.
    pub progress: Option<&'a mut dyn FnMut(f32)>,
    /// Records named activations, if there.
    pub trace: Option<&'a mut Trace>,
}

impl<'a> Cx<'a> {
    /// A context that nobody watches.
    pub fn new(device: &'a Cpu, activations: &'a mut Activations) -> Cx<'a> {
        Cx { device, activations, cancel: None, progress: None, trace: None }
    }

    /// An error if the caller wants to stop; otherwise reports that `done` of `total` layers are finished.
    pub fn checkpoint(&mut self, done: usize, total: usize) -> Result<()> {
        if self.cancel.is_some_and(|c| c.load(Ordering::Relaxed)) {
            return Err(Error::new(ErrorKind::Cancelled, "stopped"));
        }
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

/// An activation function of a vision encoder or a projector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x · σ(1.702 x)`, OpenAI's CLIP.
    QuickGelu,
    /// GELU with the exact error function.
    Gelu,
    /// `x · σ(x)`.
    Silu,
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

/// Products of one input `x: [n_tokens, n_in]` with several layers, `x` being made ready once; each `out` becomes
/// `[n_tokens, n_out]`.
pub fn linear<const N: usize>(cx: &mut Cx<'_>, x: &[f32], layers: [(&Linear, &mut Vec<f32>); N]) {
    cx.activations.reset();
    for (layer, out) in layers {
        let (n_rows, n_cols) = (layer.weight.n_rows(), layer.weight.n_cols());
        assert!(x.len().is_multiple_of(n_cols), "input of {} elements into rows of {n_cols}", x.len());
        out.resize(x.len() / n_cols * n_rows, 0.0);
        mmq_kernels::matmul(&cx.device.team, layer.weight.view(), x, cx.activations, out);
        if let Some(bias) = &layer.bias {
            add_rows(cx, out, bias);
        }
    }
}

/// Products of all rows of `x: [n, width]` with each other, in single precision: `out` becomes `[n, n]`.
pub fn products(cx: &mut Cx<'_>, x: &[f32], width: usize, out: &mut Vec<f32>) {
    let n = x.len() / width;
    let data: Vec<u8> = x.iter().flat_map(|x| x.to_le_bytes()).collect();
    let rows = Weights { dtype: Dtype::F32, n_rows: n, n_cols: width, data: &data };
    out.resize(n * n, 0.0);
    mmq_kernels::matmul(&cx.device.team, rows, x, cx.activations, out);
}

/// Adds `bias: [width]` to each row of `x`.
pub fn add_rows(cx: &Cx<'_>, x: &mut [f32], bias: &[f32]) {
    rows(cx, x, bias.len(), &|_, row| (cx.device.kernels.add)(row, bias));
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
    let f = match activation {
        Activation::QuickGelu => cx.device.kernels.gelu_quick,
        Activation::Gelu => cx.device.kernels.gelu_erf,
        Activation::Silu => cx.device.kernels.silu,
    };
    rows(cx, x, width, &|_, row| f(row));
}

/// `gate = silu(gate) · up`, the gated unit of LLaMA.
pub fn silu_mul(cx: &Cx<'_>, gate: &mut [f32], up: &[f32], width: usize) {
    assert_eq!(gate.len(), up.len());
    rows(cx, gate, width, &|i, row| (cx.device.kernels.silu_mul)(row, &up[i * width..(i + 1) * width]));
}

/// Rotates the first `2 · cos[t].len()` elements of each head of token `t` by pairs: `x: [n_tokens, n_head, head_dim]`,
/// `cos` and `sin`: `[n_tokens, n_rot / 2]`.
pub fn rope(cx: &Cx<'_>, x: &mut [f32], n_head: usize, head_dim: usize, cos: &[f32], sin: &[f32]) {
    let width = n_head * head_dim;
    let half = cos.len() / (x.len() / width);
    rows(cx, x, width, &|t, row| {
        for head in row.chunks_exact_mut(head_dim) {
            let at = t * half..(t + 1) * half;
            (cx.device.kernels.rope)(&mut head[..2 * half], &cos[at.clone()], &sin[at]);
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
