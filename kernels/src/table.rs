//! The dispatch table: one struct of function pointers, chosen once for the processor at hand.

use crate::Dtype;
use crate::scalar;
use std::sync::OnceLock;

/// An instruction set that kernels exist for, in order of preference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Plain Rust: the specification.
    Scalar,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
}

/// The kernels of one instruction set. Every entry has a scalar twin.
#[derive(Clone, Copy)]
pub struct Kernels {
    /// The highest instruction set that any entry uses.
    pub level: Level,
    /// Expands whole blocks of a runnable type to floats.
    pub dequantize: fn(Dtype, &[u8], &mut [f32]),
    /// `y = x / sqrt(mean(x²) + eps) · w`. (x, w, eps, y), all of one length.
    pub rms_norm: fn(&[f32], &[f32], f32, &mut [f32]),
    /// `y = (x - mean) / sqrt(var + eps) · w + b`. (x, w, b, eps, y), all of one length.
    pub layer_norm: fn(&[f32], &[f32], &[f32], f32, &mut [f32]),
    /// `gate = silu(gate) · up`.
    pub silu_mul: fn(&mut [f32], &[f32]),
    /// `x = x · σ(x)`.
    pub silu: fn(&mut [f32]),
    /// `x = x/2 · (1 + erf(x/√2))`.
    pub gelu_erf: fn(&mut [f32]),
    /// The tanh approximation of GELU.
    pub gelu_tanh: fn(&mut [f32]),
    /// `x = x · σ(1.702 x)`.
    pub gelu_quick: fn(&mut [f32]),
    /// `x += y`.
    pub add: fn(&mut [f32], &[f32]),
    /// Rounds floats to F16 bits, to nearest even.
    pub to_f16: fn(&[f32], &mut [u16]),
    /// Rotates neighbouring pairs `(x[2i], x[2i+1])` by `(cos[i], sin[i])`.
    pub rope: fn(&mut [f32], &[f32], &[f32]),
}

/// The table for this processor. `MMQ_LEVEL` (`scalar`, `avx2`) asks for a lower level than the best.
pub fn kernels() -> &'static Kernels {
    static TABLE: OnceLock<Kernels> = OnceLock::new();
    TABLE.get_or_init(scalar::table)
}
