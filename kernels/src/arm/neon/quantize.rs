//! Activations to 8 bits.

use super::load_floats;
use crate::scalar::quantize::steps;
use std::arch::aarch64::*;

pub fn quantize(x: &[f32], q: &mut [i8], scale: &mut [f32], sum16: &mut [f32], sum32: &mut [f32], total: &mut [i32]) {
    let n = x.len();
    assert!(n.is_multiple_of(32));
    assert_eq!((q.len(), scale.len(), sum16.len(), sum32.len(), total.len()), (n, n / 32, n / 16, n / 32, n / 16));
    // SAFETY: this function is in the table of processors with NEON only.
    unsafe { blocks(x, q, scale, sum16, sum32, total) }
}

#[target_feature(enable = "neon")]
fn blocks(x: &[f32], q: &mut [i8], scale: &mut [f32], sum16: &mut [f32], sum32: &mut [f32], total: &mut [i32]) {
    for (i, (x, to)) in x.as_chunks::<32>().0.iter().zip(q.as_chunks_mut::<32>().0).enumerate() {
        let mut v = [vdupq_n_f32(0.0); 8];
        for (v, x) in v.iter_mut().zip(x.as_chunks().0) {
            *v = load_floats(x);
        }
        let mut max = vdupq_n_u32(0);
        for v in v {
            max = vmaxq_u32(max, vreinterpretq_u32_f32(vabsq_f32(v)));
        }
        let (d, factor) = steps(f32::from_bits(vmaxvq_u32(max)));
        let mut sums = [0; 2];
        if factor == 0.0 {
            to.fill(0);
        } else {
            for (h, to) in to.as_chunks_mut::<16>().0.iter_mut().enumerate() {
                let q = |i: usize| vqmovn_s32(vcvtnq_s32_f32(vmulq_n_f32(v[4 * h + i], factor)));
                let (low, high) = (vcombine_s16(q(0), q(1)), vcombine_s16(q(2), q(3)));
                let quants = vcombine_s8(vqmovn_s16(low), vqmovn_s16(high));
                // SAFETY: 16 bytes are writable, and the store needs no alignment.
                unsafe { vst1q_s8(to.as_mut_ptr(), quants) };
                sums[h] = i32::from(vaddlvq_s8(quants));
            }
        }
        let [low, high] = sums;
        scale[i] = d;
        total[2 * i] = low;
        total[2 * i + 1] = high;
        sum16[2 * i] = d * low as f32;
        sum16[2 * i + 1] = d * high as f32;
        sum32[i] = d * (low + high) as f32;
    }
}
