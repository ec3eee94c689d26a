//! Norms over one row, with sums in f64 like the scalar twin's.

use super::{LANES, load_floats, store_floats};
use crate::scalar::norm::rms_scale;
use std::arch::aarch64::*;

#[target_feature(enable = "neon")]
pub fn rms_norm(x: &[f32], w: &[f32], eps: f32, y: &mut [f32]) {
    assert_eq!((x.len(), w.len()), (y.len(), y.len()));
    // The square of a float is exact in f64: rounding once is rounding twice.
    let scale = rms_scale(sum(x, |sum, v| vfmaq_f64(sum, v, v), |v| v * v), x.len(), eps);
    let (xs, x_tail) = x.as_chunks::<LANES>();
    let (ws, w_tail) = w.as_chunks::<LANES>();
    let (ys, y_tail) = y.as_chunks_mut::<LANES>();
    for ((y, x), w) in ys.iter_mut().zip(xs).zip(ws) {
        store_floats(y, vmulq_f32(scaled(x, 0.0, scale), load_floats(w)));
    }
    for ((y, x), w) in y_tail.iter_mut().zip(x_tail).zip(w_tail) {
        *y = (f64::from(*x) * scale) as f32 * w;
    }
}

#[target_feature(enable = "neon")]
pub fn layer_norm(x: &[f32], w: &[f32], b: &[f32], eps: f32, y: &mut [f32]) {
    assert_eq!((x.len(), w.len(), b.len()), (y.len(), y.len(), y.len()));
    let mean = sum(x, |sum, v| vaddq_f64(sum, v), |v| v) / x.len() as f64;
    let square = |sum, v| {
        let d = vsubq_f64(v, vdupq_n_f64(mean));
        vaddq_f64(sum, vmulq_f64(d, d))
    };
    let scale = rms_scale(sum(x, square, |v| (v - mean) * (v - mean)), x.len(), eps);
    let (xs, x_tail) = x.as_chunks::<LANES>();
    let (ws, w_tail) = w.as_chunks::<LANES>();
    let (bs, b_tail) = b.as_chunks::<LANES>();
    let (ys, y_tail) = y.as_chunks_mut::<LANES>();
    for (((y, x), w), b) in ys.iter_mut().zip(xs).zip(ws).zip(bs) {
        store_floats(y, vfmaq_f32(load_floats(b), scaled(x, mean, scale), load_floats(w)));
    }
    for (((y, x), w), b) in y_tail.iter_mut().zip(x_tail).zip(w_tail).zip(b_tail) {
        *y = (((f64::from(*x) - mean) * scale) as f32).mul_add(*w, *b);
    }
}

/// `Σ f(x)`, with `f` given as what adds it for vectors, and for the tail. Sixteen elements in turn go to sums of their own.
#[target_feature(enable = "neon")]
#[inline]
fn sum(x: &[f32], add_f: impl Fn(float64x2_t, float64x2_t) -> float64x2_t, f_tail: impl Fn(f64) -> f64) -> f64 {
    let (eights, tail) = x.as_chunks::<8>();
    let mut sums = [[vdupq_n_f64(0.0); 4]; 2];
    let (pairs, last) = eights.as_chunks::<2>();
    let add = |sums: &mut [float64x2_t; 4], x: &[f32; 8]| {
        let x = x.as_chunks().0;
        let ([a, b], [c, d]) = (doubles(&x[0]), doubles(&x[1]));
        *sums = [add_f(sums[0], a), add_f(sums[1], b), add_f(sums[2], c), add_f(sums[3], d)];
    };
    for [x, y] in pairs {
        add(&mut sums[0], x);
        add(&mut sums[1], y);
    }
    for x in last {
        add(&mut sums[0], x);
    }
    let [a, b] = sums;
    let low = vaddq_f64(vaddq_f64(a[0], a[2]), vaddq_f64(b[0], b[2]));
    let high = vaddq_f64(vaddq_f64(a[1], a[3]), vaddq_f64(b[1], b[3]));
    let total = vaddvq_f64(vaddq_f64(low, high));
    tail.iter().fold(total, |sum, &v| sum + f_tail(f64::from(v)))
}

#[target_feature(enable = "neon")]
#[inline]
fn doubles(x: &[f32; LANES]) -> [float64x2_t; 2] {
    let x = load_floats(x);
    [vcvt_f64_f32(vget_low_f32(x)), vcvt_high_f64_f32(x)]
}

/// `(x - mean) · scale`.
#[target_feature(enable = "neon")]
#[inline]
fn scaled(x: &[f32; LANES], mean: f64, scale: f64) -> float32x4_t {
    let (mean, scale) = (vdupq_n_f64(mean), vdupq_n_f64(scale));
    let [low, high] = doubles(x);
    let low = vcvt_f32_f64(vmulq_f64(vsubq_f64(low, mean), scale));
    vcvt_high_f32_f64(low, vmulq_f64(vsubq_f64(high, mean), scale))
}
