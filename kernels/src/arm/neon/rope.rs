//! Rotary position embedding of neighbouring pairs, four pairs at a time.

use super::{load_floats, store_floats};
use std::arch::aarch64::*;

#[target_feature(enable = "neon")]
pub fn rope(x: &mut [f32], cos: &[f32], sin: &[f32]) {
    assert_eq!((cos.len() * 2, sin.len() * 2), (x.len(), x.len()));
    let (x8, x_tail) = x.as_chunks_mut::<8>();
    let (cos4, cos_tail) = cos.as_chunks::<4>();
    let (sin4, sin_tail) = sin.as_chunks::<4>();
    for ((x, c), s) in x8.iter_mut().zip(cos4).zip(sin4) {
        rotate(x, c, s);
    }
    let n = cos_tail.len();
    if n == 0 {
        return;
    }
    let (mut x, mut c, mut s) = ([0.0; 8], [0.0; 4], [0.0; 4]);
    x[..2 * n].copy_from_slice(x_tail);
    c[..n].copy_from_slice(cos_tail);
    s[..n].copy_from_slice(sin_tail);
    rotate(&mut x, &c, &s);
    x_tail.copy_from_slice(&x[..2 * n]);
}

#[target_feature(enable = "neon")]
#[inline]
fn rotate(x: &mut [f32; 8], cos: &[f32; 4], sin: &[f32; 4]) {
    let halves = x.as_chunks().0;
    let (a, b) = (load_floats(&halves[0]), load_floats(&halves[1]));
    let (even, odd) = (vuzp1q_f32(a, b), vuzp2q_f32(a, b));
    let (cos, sin) = (load_floats(cos), load_floats(sin));
    let first = vfmaq_f32(vnegq_f32(vmulq_f32(odd, sin)), even, cos);
    let second = vfmaq_f32(vmulq_f32(even, sin), odd, cos);
    let halves = x.as_chunks_mut().0;
    store_floats(&mut halves[0], vzip1q_f32(first, second));
    store_floats(&mut halves[1], vzip2q_f32(first, second));
}
