//! Sums and conversions, element by element.

use super::{LANES, from_halves, load_floats, padded, store_floats, to_halves};
use std::arch::aarch64::*;

#[target_feature(enable = "neon")]
pub fn add(x: &mut [f32], y: &[f32]) {
    assert_eq!(x.len(), y.len());
    let (xs, x_tail) = x.as_chunks_mut::<LANES>();
    let (ys, y_tail) = y.as_chunks::<LANES>();
    for (x, y) in xs.iter_mut().zip(ys) {
        store_floats(x, vaddq_f32(load_floats(x), load_floats(y)));
    }
    for (x, y) in x_tail.iter_mut().zip(y_tail) {
        *x += y;
    }
}

#[target_feature(enable = "neon")]
pub fn to_f16(x: &[f32], y: &mut [u16]) {
    assert_eq!(x.len(), y.len());
    let (xs, x_tail) = x.as_chunks::<LANES>();
    let (ys, y_tail) = y.as_chunks_mut::<LANES>();
    for (y, x) in ys.iter_mut().zip(xs) {
        *y = half_bits(x);
    }
    if !x_tail.is_empty() {
        y_tail.copy_from_slice(&half_bits(&padded(x_tail))[..x_tail.len()]);
    }
}

#[target_feature(enable = "neon")]
pub fn from_f16(x: &[u16], y: &mut [f32]) {
    assert_eq!(x.len(), y.len());
    let (xs, x_tail) = x.as_chunks::<LANES>();
    let (ys, y_tail) = y.as_chunks_mut::<LANES>();
    for (y, x) in ys.iter_mut().zip(xs) {
        store_floats(y, floats(x));
    }
    if !x_tail.is_empty() {
        let mut last = [0.0; LANES];
        store_floats(&mut last, floats(&padded(x_tail)));
        y_tail.copy_from_slice(&last[..x_tail.len()]);
    }
}

#[target_feature(enable = "neon")]
#[inline]
fn half_bits(x: &[f32; LANES]) -> [u16; LANES] {
    let mut bits = [0; LANES];
    // SAFETY: the array covers the 8 bytes written; the store needs no alignment.
    unsafe { vst1_u16(bits.as_mut_ptr(), to_halves(load_floats(x))) };
    bits
}

#[target_feature(enable = "neon")]
#[inline]
fn floats(bits: &[u16; LANES]) -> float32x4_t {
    // SAFETY: the reference covers the 8 bytes read; the load needs no alignment.
    from_halves(unsafe { vld1_u16(bits.as_ptr()) })
}
