//! Activation functions, eight elements at a time. Within 2e-6 of the true value, relatively, down to results of 1e-30.

use super::{LANES, load_floats, padded, store_floats};
use crate::scalar::activation::{EXP, LN2, LOWEST, TAIL, TAIL_SHAPE, TANH_CUBE, TANH_SLOPE};
use std::arch::x86_64::*;

/// `exp(x)` for `x <= 0`, to 2e-7; zero where the result would not be a normal number; NaN for NaN.
#[target_feature(enable = "avx2,fma")]
#[inline]
pub(super) fn exp_negative(x: __m256) -> __m256 {
    let lowest = _mm256_set1_ps(LOWEST);
    // The second operand is the result where one is NaN.
    let y = _mm256_max_ps(lowest, x);
    let n = _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(_mm256_mul_ps(
        y,
        _mm256_set1_ps(std::f32::consts::LOG2_E),
    ));
    let r = _mm256_fnmadd_ps(n, _mm256_set1_ps(LN2[0]), y);
    let r = _mm256_fnmadd_ps(n, _mm256_set1_ps(LN2[1]), r);
    let mut p = _mm256_set1_ps(EXP[4]);
    for c in EXP[..4].iter().rev() {
        p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(*c));
    }
    let one = _mm256_set1_ps(1.0);
    let p = _mm256_add_ps(one, _mm256_fmadd_ps(_mm256_mul_ps(r, r), p, r));
    let power = _mm256_slli_epi32::<23>(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)));
    let result = _mm256_mul_ps(p, _mm256_castsi256_ps(power));
    _mm256_andnot_ps(_mm256_cmp_ps::<_CMP_LT_OQ>(x, lowest), result)
}

/// `x` where it is not negative, else `y`.
#[target_feature(enable = "avx2")]
#[inline]
fn where_negative(sign: __m256, y: __m256, x: __m256) -> __m256 {
    _mm256_blendv_ps(x, y, sign)
}

#[target_feature(enable = "avx2")]
#[inline]
fn negative_abs(x: __m256) -> __m256 {
    _mm256_or_ps(x, _mm256_set1_ps(-0.0))
}

/// `x · σ(u)`.
#[target_feature(enable = "avx2,fma")]
#[inline]
fn times_sigmoid(x: __m256, u: __m256) -> __m256 {
    let one = _mm256_set1_ps(1.0);
    let e = exp_negative(negative_abs(u));
    let numerator = where_negative(u, e, one);
    _mm256_mul_ps(x, _mm256_div_ps(numerator, _mm256_add_ps(one, e)))
}

/// Replaces each element by `f` of it.
#[target_feature(enable = "avx2,fma")]
#[inline]
fn map(x: &mut [f32], f: impl Fn(__m256) -> __m256) {
    let (x8, tail) = x.as_chunks_mut::<LANES>();
    for x in x8 {
        store_floats(x, f(load_floats(x)));
    }
    if !tail.is_empty() {
        let mut last = padded(tail);
        let v = f(load_floats(&last));
        store_floats(&mut last, v);
        tail.copy_from_slice(&last[..tail.len()]);
    }
}

#[target_feature(enable = "avx2,fma")]
pub fn silu(x: &mut [f32]) {
    map(x, |x| times_sigmoid(x, x));
}

#[target_feature(enable = "avx2,fma")]
pub fn silu_mul(gate: &mut [f32], up: &[f32]) {
    assert_eq!(gate.len(), up.len());
    let (gate8, gate_tail) = gate.as_chunks_mut::<LANES>();
    let (up8, up_tail) = up.as_chunks::<LANES>();
    for (g, u) in gate8.iter_mut().zip(up8) {
        let x = load_floats(g);
        store_floats(g, _mm256_mul_ps(times_sigmoid(x, x), load_floats(u)));
    }
    silu(gate_tail);
    for (g, u) in gate_tail.iter_mut().zip(up_tail) {
        *g *= u;
    }
}

#[target_feature(enable = "avx2,fma")]
pub fn gelu_quick(x: &mut [f32]) {
    map(x, |x| times_sigmoid(x, _mm256_mul_ps(x, _mm256_set1_ps(1.702))));
}

#[target_feature(enable = "avx2,fma")]
pub fn gelu_tanh(x: &mut [f32]) {
    map(x, |x| {
        let cubic = _mm256_fmadd_ps(_mm256_mul_ps(x, x), _mm256_set1_ps(TANH_CUBE), _mm256_set1_ps(1.0));
        times_sigmoid(x, _mm256_mul_ps(_mm256_mul_ps(x, _mm256_set1_ps(TANH_SLOPE)), cubic))
    });
}

#[target_feature(enable = "avx2,fma")]
pub fn gelu_erf(x: &mut [f32]) {
    map(x, |x| {
        let one = _mm256_set1_ps(1.0);
        // Beyond 20 the tail is zero; the bound keeps the square finite.
        let t = _mm256_min_ps(_mm256_set1_ps(20.0), _mm256_andnot_ps(_mm256_set1_ps(-0.0), x));
        let s = _mm256_div_ps(one, _mm256_fmadd_ps(t, _mm256_set1_ps(TAIL_SHAPE), one));
        let mut p = _mm256_set1_ps(TAIL[9] as f32);
        for c in TAIL[..9].iter().rev() {
            p = _mm256_fmadd_ps(p, s, _mm256_set1_ps(*c as f32));
        }
        // exp(-t²/2), with what rounding took from t² given back to first order: it matters where t² is large.
        let square = _mm256_mul_ps(t, t);
        let lost = _mm256_fmsub_ps(t, t, square);
        let e = exp_negative(_mm256_mul_ps(square, _mm256_set1_ps(-0.5)));
        let e = _mm256_fnmadd_ps(_mm256_mul_ps(lost, _mm256_set1_ps(0.5)), e, e);
        let tail = _mm256_mul_ps(_mm256_mul_ps(p, s), e);
        _mm256_mul_ps(x, where_negative(x, tail, _mm256_sub_ps(one, tail)))
    });
}
