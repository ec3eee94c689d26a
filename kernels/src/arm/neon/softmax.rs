//! Sums over the exponentials of a row of logits, eight at a time, in f64 like the scalar twin's.

use super::activation::exp_negative;
use super::{LANES, load_floats, store_floats};
use crate::scalar::softmax::cross;
use std::arch::aarch64::*;

#[target_feature(enable = "neon")]
pub fn sum_exp(x: &[f32]) -> (f32, f64) {
    let (fours, tail) = x.as_chunks::<LANES>();
    let mut most = vdupq_n_f32(f32::NEG_INFINITY);
    for x in fours {
        // The other operand is the result where one is NaN.
        most = vmaxnmq_f32(load_floats(x), most);
    }
    let mut lanes = [0.0; LANES];
    store_floats(&mut lanes, most);
    let max = lanes.iter().chain(tail).copied().fold(f32::NEG_INFINITY, f32::max);
    let maxes = vdupq_n_f32(max);
    let mut sums = [vdupq_n_f64(0.0); 4];
    let (pairs, last) = fours.as_chunks::<2>();
    let mut add = |i: usize, x: &[f32; LANES]| {
        let [low, high] = doubles(exp_negative(vsubq_f32(load_floats(x), maxes)));
        sums[i] = vaddq_f64(sums[i], low);
        sums[i + 1] = vaddq_f64(sums[i + 1], high);
    };
    for [x, y] in pairs {
        add(0, x);
        add(2, y);
    }
    for x in last {
        add(0, x);
    }
    (max, total(sums) + tail.iter().map(|x| f64::from((x - max).exp())).sum::<f64>())
}

#[target_feature(enable = "neon")]
pub fn cross_exp(x: &[f32], x_max: f32, y: &[f32], y_max: f32) -> f64 {
    assert_eq!(x.len(), y.len());
    let (xs, x_tail) = x.as_chunks::<LANES>();
    let (ys, y_tail) = y.as_chunks::<LANES>();
    let (x_maxes, y_maxes) = (vdupq_n_f32(x_max), vdupq_n_f32(y_max));
    let mut sums = [vdupq_n_f64(0.0); 4];
    for (i, (x, y)) in xs.iter().zip(ys).enumerate() {
        let x = vsubq_f32(load_floats(x), x_maxes);
        let y = vsubq_f32(load_floats(y), y_maxes);
        let p = exp_negative(x);
        // Nothing times infinity is nothing here; NaN stays.
        let nothing = vceqzq_f32(p);
        let [p_low, p_high] = doubles(p);
        let difference = vbicq_u32(vreinterpretq_u32_f32(vsubq_f32(x, y)), nothing);
        let [d_low, d_high] = doubles(vreinterpretq_f32_u32(difference));
        let at = i % 2 * 2;
        sums[at] = vfmaq_f64(sums[at], p_low, d_low);
        sums[at + 1] = vfmaq_f64(sums[at + 1], p_high, d_high);
    }
    total(sums) + x_tail.iter().zip(y_tail).map(|(x, y)| cross(x - x_max, y - y_max)).sum::<f64>()
}

/// The lower and the upper half of a vector of floats.
#[target_feature(enable = "neon")]
#[inline]
fn doubles(x: float32x4_t) -> [float64x2_t; 2] {
    [vcvt_f64_f32(vget_low_f32(x)), vcvt_high_f64_f32(x)]
}

#[target_feature(enable = "neon")]
#[inline]
fn total(sums: [float64x2_t; 4]) -> f64 {
    vaddvq_f64(vaddq_f64(vaddq_f64(sums[0], sums[2]), vaddq_f64(sums[1], sums[3])))
}
