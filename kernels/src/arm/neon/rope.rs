//! Rotary position embedding of neighbouring pairs and of pairs from two halves, four pairs at a time.

use super::{LANES, load_floats, padded, store_floats};
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
    // SAFETY: 8 floats are readable, and the load needs no alignment.
    let float32x4x2_t(even, odd) = unsafe { vld2q_f32(x.as_ptr()) };
    let (cos, sin) = (load_floats(cos), load_floats(sin));
    let first = vfmaq_f32(vnegq_f32(vmulq_f32(odd, sin)), even, cos);
    let second = vfmaq_f32(vmulq_f32(even, sin), odd, cos);
    // SAFETY: 8 floats are writable, and the store needs no alignment.
    unsafe { vst2q_f32(x.as_mut_ptr(), float32x4x2_t(first, second)) };
}

#[target_feature(enable = "neon")]
pub fn rope_half(x: &mut [f32], cos: &[f32], sin: &[f32]) {
    assert_eq!((cos.len() * 2, sin.len() * 2), (x.len(), x.len()));
    let (a, b) = x.split_at_mut(cos.len());
    let ((a4, a_tail), (b4, b_tail)) = (a.as_chunks_mut::<LANES>(), b.as_chunks_mut::<LANES>());
    let ((cos4, cos_tail), (sin4, sin_tail)) = (cos.as_chunks::<LANES>(), sin.as_chunks::<LANES>());
    for (((a, b), c), s) in a4.iter_mut().zip(b4).zip(cos4).zip(sin4) {
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

#[target_feature(enable = "neon")]
#[inline]
fn rotate_halves(a: &mut [f32; LANES], b: &mut [f32; LANES], cos: &[f32; LANES], sin: &[f32; LANES]) {
    let (x, y, c, s) = (load_floats(a), load_floats(b), load_floats(cos), load_floats(sin));
    store_floats(a, vfmaq_f32(vnegq_f32(vmulq_f32(y, s)), x, c));
    store_floats(b, vfmaq_f32(vmulq_f32(x, s), y, c));
}
