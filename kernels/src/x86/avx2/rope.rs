//! Rotary position embedding: of neighbouring pairs, four at a time, and of pairs from two halves, eight at a time.

use super::{LANES, load_floats, padded, store_floats};
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

#[target_feature(enable = "avx2,fma")]
pub fn rope_half(x: &mut [f32], cos: &[f32], sin: &[f32]) {
    assert_eq!((cos.len() * 2, sin.len() * 2), (x.len(), x.len()));
    let (a, b) = x.split_at_mut(cos.len());
    let ((a8, a_tail), (b8, b_tail)) = (a.as_chunks_mut::<LANES>(), b.as_chunks_mut::<LANES>());
    let ((cos8, cos_tail), (sin8, sin_tail)) = (cos.as_chunks::<LANES>(), sin.as_chunks::<LANES>());
    for (((a, b), c), s) in a8.iter_mut().zip(b8).zip(cos8).zip(sin8) {
        rotate_halves(a, b, c, s);
    }
    let n = a_tail.len();
    if n > 0 {
        let (mut a, mut b) = (padded(a_tail), padded(b_tail));
        rotate_halves(&mut a, &mut b, &padded(cos_tail), &padded(sin_tail));
        a_tail.copy_from_slice(&a[..n]);
        b_tail.copy_from_slice(&b[..n]);
    }
}

#[target_feature(enable = "avx2,fma")]
#[inline]
fn rotate_halves(a: &mut [f32; LANES], b: &mut [f32; LANES], cos: &[f32; LANES], sin: &[f32; LANES]) {
    let (x, y, c, s) = (load_floats(a), load_floats(b), load_floats(cos), load_floats(sin));
    store_floats(a, _mm256_fmsub_ps(x, c, _mm256_mul_ps(y, s)));
    store_floats(b, _mm256_fmadd_ps(y, c, _mm256_mul_ps(x, s)));
}
