//! Sums and conversions, element by element.

use super::{LANES, load_floats, padded, store_floats};
use std::arch::x86_64::*;

#[target_feature(enable = "avx2")]
pub fn add(x: &mut [f32], y: &[f32]) {
    assert_eq!(x.len(), y.len());
    let (x8, x_tail) = x.as_chunks_mut::<LANES>();
    let (y8, y_tail) = y.as_chunks::<LANES>();
    for (x, y) in x8.iter_mut().zip(y8) {
        store_floats(x, _mm256_add_ps(load_floats(x), load_floats(y)));
    }
    for (x, y) in x_tail.iter_mut().zip(y_tail) {
        *x += y;
    }
}

#[target_feature(enable = "avx2,f16c")]
pub fn to_f16(x: &[f32], y: &mut [u16]) {
    assert_eq!(x.len(), y.len());
    let (x8, x_tail) = x.as_chunks::<LANES>();
    let (y8, y_tail) = y.as_chunks_mut::<LANES>();
    for (y, x) in y8.iter_mut().zip(x8) {
        *y = half_bits(load_floats(x));
    }
    if !x_tail.is_empty() {
        y_tail.copy_from_slice(&half_bits(load_floats(&padded(x_tail)))[..x_tail.len()]);
    }
}

#[target_feature(enable = "avx2,f16c")]
pub fn from_f16(x: &[u16], y: &mut [f32]) {
    assert_eq!(x.len(), y.len());
    let (x8, x_tail) = x.as_chunks::<LANES>();
    let (y8, y_tail) = y.as_chunks_mut::<LANES>();
    for (y, x) in y8.iter_mut().zip(x8) {
        store_floats(y, floats(x));
    }
    if !x_tail.is_empty() {
        let mut last = [0.0; LANES];
        store_floats(&mut last, floats(&padded(x_tail)));
        y_tail.copy_from_slice(&last[..x_tail.len()]);
    }
}

#[target_feature(enable = "avx2,f16c")]
#[inline]
fn half_bits(v: __m256) -> [u16; LANES] {
    let mut bits = [0; LANES];
    // SAFETY: the array covers the 16 bytes written; the store needs no alignment.
    unsafe { _mm_storeu_si128(bits.as_mut_ptr().cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v)) };
    bits
}

#[target_feature(enable = "avx2,f16c")]
#[inline]
fn floats(bits: &[u16; LANES]) -> __m256 {
    // SAFETY: the reference covers the 16 bytes read; the load needs no alignment.
    _mm256_cvtph_ps(unsafe { _mm_loadu_si128(bits.as_ptr().cast()) })
}
