//! Sums over the exponentials of a row of logits, eight at a time, in f64 like the scalar twin's.

use super::activation::exp_negative;
use super::{LANES, load_floats};
use crate::scalar::softmax::cross;
use std::arch::x86_64::*;

#[target_feature(enable = "avx2,fma")]
pub fn sum_exp(x: &[f32]) -> (f32, f64) {
    let (x8, tail) = x.as_chunks::<LANES>();
    let mut most = _mm256_set1_ps(f32::NEG_INFINITY);
    for x in x8 {
        // The second operand is the result where one is NaN.
        most = _mm256_max_ps(load_floats(x), most);
    }
    let mut lanes = [0.0; LANES];
    super::store_floats(&mut lanes, most);
    let max = lanes.iter().chain(tail).copied().fold(f32::NEG_INFINITY, f32::max);
    let max8 = _mm256_set1_ps(max);
    let mut sums = [_mm256_setzero_pd(); 2];
    for x in x8 {
        let (lo, hi) = doubles(exp_negative(_mm256_sub_ps(load_floats(x), max8)));
        sums = [_mm256_add_pd(sums[0], lo), _mm256_add_pd(sums[1], hi)];
    }
    (max, total(sums) + tail.iter().map(|x| f64::from((x - max).exp())).sum::<f64>())
}

#[target_feature(enable = "avx2,fma")]
pub fn cross_exp(x: &[f32], x_max: f32, y: &[f32], y_max: f32) -> f64 {
    assert_eq!(x.len(), y.len());
    let (x8, x_tail) = x.as_chunks::<LANES>();
    let (y8, y_tail) = y.as_chunks::<LANES>();
    let (x_max8, y_max8) = (_mm256_set1_ps(x_max), _mm256_set1_ps(y_max));
    let mut sums = [_mm256_setzero_pd(); 2];
    for (x, y) in x8.iter().zip(y8) {
        let x = _mm256_sub_ps(load_floats(x), x_max8);
        let y = _mm256_sub_ps(load_floats(y), y_max8);
        let p = exp_negative(x);
        // Nothing times infinity is nothing here; NaN stays.
        let counts = _mm256_cmp_ps::<_CMP_NEQ_UQ>(p, _mm256_setzero_ps());
        let (p_lo, p_hi) = doubles(p);
        let (d_lo, d_hi) = doubles(_mm256_and_ps(_mm256_sub_ps(x, y), counts));
        sums = [_mm256_fmadd_pd(p_lo, d_lo, sums[0]), _mm256_fmadd_pd(p_hi, d_hi, sums[1])];
    }
    total(sums) + x_tail.iter().zip(y_tail).map(|(x, y)| cross(x - x_max, y - y_max)).sum::<f64>()
}

/// The lower and the upper half of a vector of floats.
#[target_feature(enable = "avx2")]
#[inline]
fn doubles(x: __m256) -> (__m256d, __m256d) {
    (_mm256_cvtps_pd(_mm256_castps256_ps128(x)), _mm256_cvtps_pd(_mm256_extractf128_ps::<1>(x)))
}

#[target_feature(enable = "avx2")]
#[inline]
fn total(sums: [__m256d; 2]) -> f64 {
    let sum = _mm256_add_pd(sums[0], sums[1]);
    let half = _mm_add_pd(_mm256_castpd256_pd128(sum), _mm256_extractf128_pd::<1>(sum));
    _mm_cvtsd_f64(_mm_add_sd(half, _mm_unpackhi_pd(half, half)))
}
