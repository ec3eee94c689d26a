//! Kernels for AVX2 with FMA and F16C.
//!
//! The table's entries are plain functions that check lengths and call a `#[target_feature]` function. They are private
//! to this folder and reach a table through [`extend`] only.

mod activation;
pub(super) mod attention;
mod dequantize;
mod dot;
mod elementwise;
mod few;
mod norm;
mod quantize;
pub(super) mod quantize_weights;
mod rope;
mod softmax;
mod unpack;

use crate::Kernels;
use crate::attention::{Rows, Tile};
use crate::kv::KvType;
use std::arch::x86_64::*;

/// Overrides entries of `table`. Only for processors with AVX2, FMA and F16C.
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
const LANES: usize = 8;

/// Safe entries for the table around functions that need AVX2.
macro_rules! entries {
    ($(fn $name:ident($($arg:ident: $ty:ty),*) $(-> $result:ty)? = $kernel:path;)*) => { $(
        fn $name($($arg: $ty),*) $(-> $result)? {
            // SAFETY: these entries reach a table through `extend` only, which is called where AVX2, FMA and F16C were detected.
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
#[target_feature(enable = "avx2")]
fn load(from: &[u8; 32]) -> __m256i {
    // SAFETY: 32 bytes are readable, and the load needs no alignment.
    unsafe { _mm256_loadu_si256(from.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn load_half(from: &[u8; 16]) -> __m128i {
    // SAFETY: 16 bytes are readable, and the load needs no alignment.
    unsafe { _mm_loadu_si128(from.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn store(to: &mut [u8; 32], v: __m256i) {
    // SAFETY: 32 bytes are writable, and the store needs no alignment.
    unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), v) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn load_floats(from: &[f32; 8]) -> __m256 {
    // SAFETY: 8 floats are readable, and the load needs no alignment.
    unsafe { _mm256_loadu_ps(from.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn store_floats(to: &mut [f32; 8], v: __m256) {
    // SAFETY: 8 floats are writable, and the store needs no alignment.
    unsafe { _mm256_storeu_ps(to.as_mut_ptr(), v) }
}

/// The fields of each byte that `mask` keeps after a shift to the right by `shift`, which moves bits across bytes:
/// `mask` must cut those off.
#[inline]
#[target_feature(enable = "avx2")]
fn field(v: __m256i, shift: usize, mask: i8) -> __m256i {
    _mm256_and_si256(_mm256_srl_epi16(v, _mm_cvtsi32_si128(shift as i32)), _mm256_set1_epi8(mask))
}

/// Bit `bit` of each byte, moved to bit `to`.
#[inline]
#[target_feature(enable = "avx2")]
fn bit(v: __m256i, bit: usize, to: usize) -> __m256i {
    let moved = if bit >= to {
        _mm256_srl_epi16(v, _mm_cvtsi32_si128((bit - to) as i32))
    } else {
        _mm256_sll_epi16(v, _mm_cvtsi32_si128((to - bit) as i32))
    };
    _mm256_and_si256(moved, _mm256_set1_epi8(1 << to))
}

/// 16 bytes, in each half.
#[inline]
#[target_feature(enable = "avx2")]
fn table(bytes: &[i8; 16]) -> __m256i {
    // SAFETY: 16 bytes are readable, and the load needs no alignment.
    _mm256_broadcastsi128_si256(unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) })
}

/// The values of 4-bit codes, see [`crate::block::IQ4_CODES`].
#[inline]
#[target_feature(enable = "avx2")]
fn iq4_values(codes: __m256i) -> __m256i {
    _mm256_shuffle_epi8(table(&crate::block::IQ4_CODES), codes)
}
