//! Kernels for NEON, as ARMv8.0 has it.
//!
//! The table's entries are plain functions that check lengths and call a `#[target_feature]` function. They are private
//! to this folder and reach a table through [`extend`] only.
//!
//! Functions of floats work in the order of operations of the AVX2 level, sums in twice as many vectors: they give its bits.

mod activation;
mod attention;
mod dequantize;
pub(super) mod dot;
mod elementwise;
pub(super) mod few;
mod norm;
mod quantize;
mod rope;
mod softmax;
pub(super) mod unpack;

use crate::Kernels;
use crate::attention::{Rows, Tile};
use crate::kv::KvType;
use std::arch::aarch64::*;
use std::arch::asm;

/// Overrides entries of `table`. Only for processors with NEON. Weights are quantized by the scalar kernel: a phone reads
/// files that were written elsewhere.
pub(super) fn extend(table: &mut Kernels) {
    table.dequantize = dequantize::dequantize;
    table.unpack = unpack::unpack;
    table.unpack_float = unpack::unpack_float;
    table.prefetch = unpack::prefetch;
    table.quantize = quantize::quantize;
    table.dot = dot::dot;
    table.dot_float = dot::dot_float;
    table.dot_few = few::dot_few;
    table.dot_few_float = few::dot_few_float;
    extend_math(table);
}

/// Floats in a vector.
const LANES: usize = 4;

/// Safe entries for the table around functions that need NEON.
macro_rules! entries {
    ($(fn $name:ident($($arg:ident: $ty:ty),*) $(-> $result:ty)? = $kernel:path;)*) => { $(
        fn $name($($arg: $ty),*) $(-> $result)? {
            // SAFETY: these entries reach a table through `extend` only, which is called where NEON was detected.
            unsafe { $kernel($($arg),*) }
        }
    )* };
}

entries! {
    fn rms_norm(x: &[f32], w: &[f32], eps: f32, y: &mut [f32]) = norm::rms_norm;
    fn layer_norm(x: &[f32], w: &[f32], b: &[f32], eps: f32, y: &mut [f32]) = norm::layer_norm;
    fn silu_mul(gate: &mut [f32], up: &[f32]) = activation::silu_mul;
    fn silu(x: &mut [f32]) = activation::silu;
    fn gelu_erf(x: &mut [f32]) = activation::gelu_erf;
    fn gelu_tanh(x: &mut [f32]) = activation::gelu_tanh;
    fn gelu_quick(x: &mut [f32]) = activation::gelu_quick;
    fn add(x: &mut [f32], y: &[f32]) = elementwise::add;
    fn sum_exp(x: &[f32]) -> (f32, f64) = softmax::sum_exp;
    fn cross_exp(x: &[f32], x_max: f32, y: &[f32], y_max: f32) -> f64 = softmax::cross_exp;
    fn to_f16(x: &[f32], y: &mut [u16]) = elementwise::to_f16;
    fn from_f16(x: &[u16], y: &mut [f32]) = elementwise::from_f16;
    fn rope(x: &mut [f32], cos: &[f32], sin: &[f32]) = rope::rope;
    fn rope_half(x: &mut [f32], cos: &[f32], sin: &[f32]) = rope::rope_half;
    fn attend(rows: &mut Rows<'_>, tile: &Tile<'_>) = attention::attend;
    fn expand_keys(kind: KvType, bytes: &[u8], out: &mut [f32]) = attention::expand_keys;
    fn transpose(x: &[f32], stride: usize, n: usize, out: &mut [f32]) = attention::transpose;
}

/// The part of [`extend`] for functions of floats.
fn extend_math(table: &mut Kernels) {
    table.rms_norm = rms_norm;
    table.layer_norm = layer_norm;
    table.silu_mul = silu_mul;
    table.silu = silu;
    table.gelu_erf = gelu_erf;
    table.gelu_tanh = gelu_tanh;
    table.gelu_quick = gelu_quick;
    table.add = add;
    table.sum_exp = sum_exp;
    table.cross_exp = cross_exp;
    table.to_f16 = to_f16;
    table.from_f16 = from_f16;
    table.rope = rope;
    table.rope_half = rope_half;
    table.attend = attend;
    table.expand_keys = expand_keys;
    table.transpose = transpose;
}

/// The elements of `x`, at most [`LANES`], followed by zeros.
fn padded<T: Copy + Default>(x: &[T]) -> [T; LANES] {
    let mut v = [T::default(); LANES];
    v[..x.len()].copy_from_slice(x);
    v
}

#[inline]
#[target_feature(enable = "neon")]
pub(super) fn load(from: &[u8; 16]) -> uint8x16_t {
    // SAFETY: 16 bytes are readable, and the load needs no alignment.
    unsafe { vld1q_u8(from.as_ptr()) }
}

#[inline]
#[target_feature(enable = "neon")]
fn load_half(from: &[u8; 8]) -> uint8x8_t {
    // SAFETY: 8 bytes are readable, and the load needs no alignment.
    unsafe { vld1_u8(from.as_ptr()) }
}

#[inline]
#[target_feature(enable = "neon")]
fn store(to: &mut [u8; 16], v: uint8x16_t) {
    // SAFETY: 16 bytes are writable, and the store needs no alignment.
    unsafe { vst1q_u8(to.as_mut_ptr(), v) }
}

#[inline]
#[target_feature(enable = "neon")]
pub(super) fn load_floats(from: &[f32; 4]) -> float32x4_t {
    // SAFETY: 4 floats are readable, and the load needs no alignment.
    unsafe { vld1q_f32(from.as_ptr()) }
}

#[inline]
#[target_feature(enable = "neon")]
pub(super) fn store_floats(to: &mut [f32; 4], v: float32x4_t) {
    // SAFETY: 4 floats are writable, and the store needs no alignment.
    unsafe { vst1q_f32(to.as_mut_ptr(), v) }
}

/// Four F16 as floats.
#[inline]
#[target_feature(enable = "neon")]
fn from_halves(bits: uint16x4_t) -> float32x4_t {
    let v: float32x4_t;
    // SAFETY: registers only. (The intrinsic takes a vector of a type that older compilers lack.)
    unsafe {
        asm!("fcvtl {:v}.4s, {:v}.4h", out(vreg) v, in(vreg) bits, options(pure, nomem, nostack, preserves_flags));
    }
    v
}

/// Four floats rounded to F16, to nearest even.
#[inline]
#[target_feature(enable = "neon")]
fn to_halves(v: float32x4_t) -> uint16x4_t {
    let bits: uint16x4_t;
    // SAFETY: as in `from_halves`.
    unsafe {
        asm!("fcvtn {:v}.4h, {:v}.4s", out(vreg) bits, in(vreg) v, options(pure, nomem, nostack, preserves_flags));
    }
    bits
}

/// The bits of each byte that `mask` keeps after a shift to the right by `shift`.
#[inline]
#[target_feature(enable = "neon")]
fn field(v: uint8x16_t, shift: usize, mask: u8) -> uint8x16_t {
    let moved = if shift == 0 { v } else { vshlq_u8(v, vdupq_n_s8(-(shift as i8))) };
    if mask == 255 >> shift { moved } else { vandq_u8(moved, vdupq_n_u8(mask)) }
}

/// Bit `bit` of each byte, moved to bit `to`.
#[inline]
#[target_feature(enable = "neon")]
fn bit(v: uint8x16_t, bit: usize, to: usize) -> uint8x16_t {
    let moved = if bit == to { v } else { vshlq_u8(v, vdupq_n_s8(to as i8 - bit as i8)) };
    vandq_u8(moved, vdupq_n_u8(1 << to))
}

/// The values of 4-bit codes, see [`crate::block::IQ4_CODES`].
#[inline]
#[target_feature(enable = "neon")]
fn iq4_values(codes: uint8x16_t) -> uint8x16_t {
    vqtbl1q_u8(load(&crate::block::IQ4_CODES.map(|c| c as u8)), codes)
}
