//! Norms over one row, with sums in f64 like the scalar twin's.

use super::{LANES, load_floats, store_floats};
use crate::scalar::norm::rms_scale;
use std::arch::x86_64::*;

#[target_feature(enable = "avx2,fma")]
pub fn rms_norm(x: &[f32], w: &[f32], eps: f32, y: &mut [f32]) {
    assert_eq!((x.len(), w.len()), (y.len(), y.len()));
    let scale = rms_scale(sum(x, |v| _mm256_mul_pd(v, v), |v| v * v), x.len(), eps);
    let (x8, x_tail) = x.as_chunks::<LANES>();
    let (w8, w_tail) = w.as_chunks::<LANES>();
    let (y8, y_tail) = y.as_chunks_mut::<LANES>();
    for ((y, x), w) in y8.iter_mut().zip(x8).zip(w8) {
        store_floats(y, _mm256_mul_ps(scaled(x, 0.0, scale), load_floats(w)));
    }
    for ((y, x), w) in y_tail.iter_mut().zip(x_tail).zip(w_tail) {
        *y = (f64::from(*x) * scale) as f32 * w;
    }
}

#[target_feature(enable = "avx2,fma")]
pub fn layer_norm(x: &[f32], w: &[f32], b: &[f32], eps: f32, y: &mut [f32]) {
    assert_eq!((x.len(), w.len(), b.len()), (y.len(), y.len(), y.len()));
    let mean = sum(x, |v| v, |v| v) / x.len() as f64;
    let mean4 = _mm256_set1_pd(mean);
    let square = |v| {
        let d = _mm256_sub_pd(v, mean4);
        _mm256_mul_pd(d, d)
    };
    let scale = rms_scale(sum(x, square, |v| (v - mean) * (v - mean)), x.len(), eps);
    let (x8, x_tail) = x.as_chunks::<LANES>();
    let (w8, w_tail) = w.as_chunks::<LANES>();
    let (b8, b_tail) = b.as_chunks::<LANES>();
    let (y8, y_tail) = y.as_chunks_mut::<LANES>();
    for (((y, x), w), b) in y8.iter_mut().zip(x8).zip(w8).zip(b8) {
        store_floats(y, _mm256_fmadd_ps(scaled(x, mean, scale), load_floats(w), load_floats(b)));
    }
    for (((y, x), w), b) in y_tail.iter_mut().zip(x_tail).zip(w_tail).zip(b_tail) {
        *y = (((f64::from(*x) - mean) * scale) as f32).mul_add(*w, *b);
    }
}

/// `Σ f(x)`, with `f` given for vectors and for the tail.
#[target_feature(enable = "avx2,fma")]
#[inline]
fn sum(x: &[f32], f: impl Fn(__m256d) -> __m256d, f_tail: impl Fn(f64) -> f64) -> f64 {
    let (x8, tail) = x.as_chunks::<LANES>();
    let mut sums = [_mm256_setzero_pd(); 4];
    let (pairs, last) = x8.as_chunks::<2>();
    for pair in pairs {
        for (i, x) in pair.iter().enumerate() {
            let (lo, hi) = doubles(x);
            sums[2 * i] = _mm256_add_pd(sums[2 * i], f(lo));
            sums[2 * i + 1] = _mm256_add_pd(sums[2 * i + 1], f(hi));
        }
    }
    for x in last {
        let (lo, hi) = doubles(x);
        sums[0] = _mm256_add_pd(sums[0], f(lo));
        sums[1] = _mm256_add_pd(sums[1], f(hi));
    }
    let total = _mm256_add_pd(_mm256_add_pd(sums[0], sums[1]), _mm256_add_pd(sums[2], sums[3]));
    let total = _mm_add_pd(_mm256_castpd256_pd128(total), _mm256_extractf128_pd::<1>(total));
    let total = _mm_cvtsd_f64(_mm_add_sd(total, _mm_unpackhi_pd(total, total)));
    tail.iter().fold(total, |sum, &v| sum + f_tail(f64::from(v)))
}

#[target_feature(enable = "avx2")]
#[inline]
fn doubles(x: &[f32; LANES]) -> (__m256d, __m256d) {
    let x = load_floats(x);
    (_mm256_cvtps_pd(_mm256_castps256_ps128(x)), _mm256_cvtps_pd(_mm256_extractf128_ps::<1>(x)))
}

/// `(x - mean) · scale`.
#[target_feature(enable = "avx2")]
#[inline]
fn scaled(x: &[f32; LANES], mean: f64, scale: f64) -> __m256 {
    let (mean, scale) = (_mm256_set1_pd(mean), _mm256_set1_pd(scale));
    let (lo, hi) = doubles(x);
    let lo = _mm256_cvtpd_ps(_mm256_mul_pd(_mm256_sub_pd(lo, mean), scale));
    let hi = _mm256_cvtpd_ps(_mm256_mul_pd(_mm256_sub_pd(hi, mean), scale));
    _mm256_set_m128(hi, lo)
}
