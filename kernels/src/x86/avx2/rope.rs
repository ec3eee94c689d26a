//! Rotary position embedding of neighbouring pairs, four pairs at a time.

use super::{LANES, load_floats, store_floats};
use std::arch::x86_64::*;

#[target_feature(enable = "avx2,fma")]
pub fn rope(x: &mut [f32], cos: &[f32], sin: &[f32]) {
    assert_eq!((cos.len() * 2, sin.len() * 2), (x.len(), x.len()));
    let (x8, x_tail) = x.as_chunks_mut::<LANES>();
    let (cos4, cos_tail) = cos.as_chunks::<4>();
    let (sin4, sin_tail) = sin.as_chunks::<4>();
    for ((x, c), s) in x8.iter_mut().zip(cos4).zip(sin4) {
        store_floats(x, rotate(load_floats(x), c, s));
    }
    let n = cos_tail.len();
    if n == 0 {
        return;
    }
    let (mut x, mut c, mut s) = ([0.0; LANES], [0.0; 4], [0.0; 4]);
    x[..2 * n].copy_from_slice(x_tail);
    c[..n].copy_from_slice(cos_tail);
    s[..n].copy_from_slice(sin_tail);
    let v = rotate(load_floats(&x), &c, &s);
    store_floats(&mut x, v);
    x_tail.copy_from_slice(&x[..2 * n]);
}

#[target_feature(enable = "avx2,fma")]
#[inline]
fn rotate(x: __m256, cos: &[f32; 4], sin: &[f32; 4]) -> __m256 {
    let swapped = _mm256_permute_ps::<0b10_11_00_01>(x);
    _mm256_fmaddsub_ps(x, twice(cos), _mm256_mul_ps(swapped, twice(sin)))
}

/// Each element twice.
#[target_feature(enable = "avx2")]
#[inline]
fn twice(v: &[f32; 4]) -> __m256 {
    // SAFETY: the reference covers the 16 bytes read; the load_floats needs no alignment.
    let v = _mm256_castps128_ps256(unsafe { _mm_loadu_ps(v.as_ptr()) });
    _mm256_permutevar8x32_ps(v, _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3))
}
