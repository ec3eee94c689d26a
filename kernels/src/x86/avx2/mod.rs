//! Kernels for AVX2 with FMA and F16C. Each file has a scalar twin of the same name.

mod activation;
mod attention;
mod elementwise;
mod norm;
mod rope;

use crate::attention::{Rows, Tile};
use crate::{Kernels, Level};
use std::arch::x86_64::*;

/// Floats in a vector.
const LANES: usize = 8;

/// Safe entries for the table around functions that need AVX2.
macro_rules! entries {
    ($(fn $name:ident($($arg:ident: $ty:ty),*) = $kernel:path;)*) => { $(
        fn $name($($arg: $ty),*) {
            // SAFETY: these entries are private to `extend_math`, which is called where AVX2, FMA and F16C were detected.
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
    fn to_f16(x: &[f32], y: &mut [u16]) = elementwise::to_f16;
    fn from_f16(x: &[u16], y: &mut [f32]) = elementwise::from_f16;
    fn rope(x: &mut [f32], cos: &[f32], sin: &[f32]) = rope::rope;
    fn attend(rows: &mut Rows<'_>, tile: &Tile<'_>) = attention::attend;
}

/// Overrides the mathematical entries of `table`. To be called only where AVX2, FMA and F16C were detected.
pub fn extend_math(table: &mut Kernels) {
    table.level = Level::Avx2;
    table.rms_norm = rms_norm;
    table.layer_norm = layer_norm;
    table.silu_mul = silu_mul;
    table.silu = silu;
    table.gelu_erf = gelu_erf;
    table.gelu_tanh = gelu_tanh;
    table.gelu_quick = gelu_quick;
    table.add = add;
    table.to_f16 = to_f16;
    table.from_f16 = from_f16;
    table.rope = rope;
    table.attend = attend;
}

#[target_feature(enable = "avx")]
#[inline]
fn load_floats(x: &[f32; LANES]) -> __m256 {
    // SAFETY: the reference covers the 32 bytes read; the load needs no alignment.
    unsafe { _mm256_loadu_ps(x.as_ptr()) }
}

#[target_feature(enable = "avx")]
#[inline]
fn store_floats(x: &mut [f32; LANES], v: __m256) {
    // SAFETY: the reference covers the 32 bytes written; the store needs no alignment.
    unsafe { _mm256_storeu_ps(x.as_mut_ptr(), v) }
}

/// The elements of `x`, at most [`LANES`], followed by zeros.
fn padded<T: Copy + Default>(x: &[T]) -> [T; LANES] {
    let mut v = [T::default(); LANES];
    v[..x.len()].copy_from_slice(x);
    v
}
