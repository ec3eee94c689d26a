//! Kernels for AVX-512 with F, BW, DQ, VL and VNNI, where 512 bits or VNNI pay; the others stay those of AVX2.
//!
//! The entries are private to this folder and reach a table through [`extend`] only.

mod attention;
mod dot;
mod few;
pub(super) mod quantize_weights;
mod unpack;

use crate::Kernels;
use std::arch::x86_64::*;

/// Overrides entries of `table`. Only for processors with AVX-512 F, BW, DQ, VL and VNNI.
pub(super) fn extend(table: &mut Kernels) {
    table.attend = attention::attend;
    table.dot = dot::dot;
    table.dot_float = dot::dot_float;
    table.dot_few = few::dot_few;
    table.dot_few_float = few::dot_few_float;
    table.unpack = unpack::unpack;
    table.unpack_float = unpack::unpack_float;
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load(from: &[u8; 64]) -> __m512i {
    // SAFETY: 64 bytes are readable, and the load needs no alignment.
    unsafe { _mm512_loadu_si512(from.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store(to: &mut [u8; 64], v: __m512i) {
    // SAFETY: 64 bytes are writable, and the store needs no alignment.
    unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), v) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load_floats(from: &[f32; 16]) -> __m512 {
    // SAFETY: 16 floats are readable, and the load needs no alignment.
    unsafe { _mm512_loadu_ps(from.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store_floats(to: &mut [f32; 16], v: __m512) {
    // SAFETY: 16 floats are writable, and the store needs no alignment.
    unsafe { _mm512_storeu_ps(to.as_mut_ptr(), v) }
}
