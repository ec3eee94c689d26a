//! Activation functions, four elements at a time. Within 2e-6 of the true value, relatively, down to results of 1e-30.

use super::{LANES, load_floats, padded, store_floats};
use crate::scalar::activation::{EXP, LN2, LOWEST, TAIL, TAIL_SHAPE, TANH_CUBE, TANH_SLOPE};
use std::arch::aarch64::*;

/// `exp(x)` for `x <= 0`, to 2e-7; zero where the result would not be a normal number; NaN for NaN.
#[target_feature(enable = "neon")]
#[inline]
pub(super) fn exp_negative(x: float32x4_t) -> float32x4_t {
    let lowest = vdupq_n_f32(LOWEST);
    // NaN where one is.
    let y = vmaxq_f32(lowest, x);
    let n = vrndnq_f32(vmulq_f32(y, vdupq_n_f32(std::f32::consts::LOG2_E)));
    let r = vfmsq_f32(y, n, vdupq_n_f32(LN2[0]));
    let r = vfmsq_f32(r, n, vdupq_n_f32(LN2[1]));
    let mut p = vdupq_n_f32(EXP[4]);
    for c in EXP[..4].iter().rev() {
        p = vfmaq_f32(vdupq_n_f32(*c), p, r);
    }
    let p = vaddq_f32(vdupq_n_f32(1.0), vfmaq_f32(r, vmulq_f32(r, r), p));
    let power = vshlq_n_s32::<23>(vaddq_s32(vcvtnq_s32_f32(n), vdupq_n_s32(127)));
    let result = vmulq_f32(p, vreinterpretq_f32_s32(power));
    let zero = vcltq_f32(x, lowest);
    vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(result), zero))
}

/// `y` where the sign of `sign` is minus, else `x`.
#[target_feature(enable = "neon")]
#[inline]
fn where_negative(sign: float32x4_t, y: float32x4_t, x: float32x4_t) -> float32x4_t {
    vbslq_f32(vcltzq_s32(vreinterpretq_s32_f32(sign)), y, x)
}

/// `x · σ(u)`.
#[target_feature(enable = "neon")]
#[inline]
fn times_sigmoid(x: float32x4_t, u: float32x4_t) -> float32x4_t {
    let one = vdupq_n_f32(1.0);
    let e = exp_negative(vnegq_f32(vabsq_f32(u)));
    let numerator = where_negative(u, e, one);
    vmulq_f32(x, vdivq_f32(numerator, vaddq_f32(one, e)))
}

/// Replaces each element by `f` of it.
#[target_feature(enable = "neon")]
#[inline]
fn map(x: &mut [f32], f: impl Fn(float32x4_t) -> float32x4_t) {
    let (fours, tail) = x.as_chunks_mut::<LANES>();
    for x in fours {
        store_floats(x, f(load_floats(x)));
    }
    if !tail.is_empty() {
        let mut last = padded(tail);
        let v = f(load_floats(&last));
        store_floats(&mut last, v);
        tail.copy_from_slice(&last[..tail.len()]);
    }
}

#[target_feature(enable = "neon")]
pub fn silu(x: &mut [f32]) {
    map(x, |x| times_sigmoid(x, x));
}

#[target_feature(enable = "neon")]
pub fn silu_mul(gate: &mut [f32], up: &[f32]) {
    assert_eq!(gate.len(), up.len());
    let (gates, gate_tail) = gate.as_chunks_mut::<LANES>();
    let (ups, up_tail) = up.as_chunks::<LANES>();
    for (g, u) in gates.iter_mut().zip(ups) {
        let x = load_floats(g);
        store_floats(g, vmulq_f32(times_sigmoid(x, x), load_floats(u)));
    }
    silu(gate_tail);
    for (g, u) in gate_tail.iter_mut().zip(up_tail) {
        *g *= u;
    }
}

#[target_feature(enable = "neon")]
pub fn gelu_quick(x: &mut [f32]) {
    map(x, |x| times_sigmoid(x, vmulq_f32(x, vdupq_n_f32(1.702))));
}

#[target_feature(enable = "neon")]
pub fn gelu_tanh(x: &mut [f32]) {
    map(x, |x| {
        let cubic = vfmaq_f32(vdupq_n_f32(1.0), vmulq_f32(x, x), vdupq_n_f32(TANH_CUBE));
        times_sigmoid(x, vmulq_f32(vmulq_f32(x, vdupq_n_f32(TANH_SLOPE)), cubic))
    });
}

#[target_feature(enable = "neon")]
pub fn gelu_erf(x: &mut [f32]) {
    map(x, |x| {
        let one = vdupq_n_f32(1.0);
        // Beyond 20 the tail is zero; the bound keeps the square finite.
        let t = vminq_f32(vdupq_n_f32(20.0), vabsq_f32(x));
        let s = vdivq_f32(one, vfmaq_f32(one, t, vdupq_n_f32(TAIL_SHAPE)));
        let mut p = vdupq_n_f32(TAIL[9] as f32);
        for c in TAIL[..9].iter().rev() {
            p = vfmaq_f32(vdupq_n_f32(*c as f32), p, s);
        }
        // exp(-t²/2), with what rounding took from t² given back to first order: it matters where t² is large.
        let square = vmulq_f32(t, t);
        let lost = vfmaq_f32(vnegq_f32(square), t, t);
        let e = exp_negative(vmulq_f32(square, vdupq_n_f32(-0.5)));
        let e = vfmsq_f32(e, vmulq_f32(lost, vdupq_n_f32(0.5)), e);
        let tail = vmulq_f32(vmulq_f32(p, s), e);
        vmulq_f32(x, where_negative(x, tail, vsubq_f32(one, tail)))
    });
}
