//! Products of a few tokens, each group of quants by dot products as soon as it is unpacked.

use crate::Dtype;
use crate::arm::neon::few::{Dot, tokens};
use crate::arm::neon::unpack::Rows;
use crate::arm::sdot;
use crate::panel::{Columns, PANEL_ROWS, Source};
use crate::scalar::few::check_few;
use std::arch::aarch64::*;

pub fn dot_few(dtype: Dtype, source: &Source<'_>, x: Columns<'_>, acc: &mut [[f32; PANEL_ROWS]]) {
    check_few(dtype, source, x, acc);
    // SAFETY: this function is in the table of processors with dot products only, and the arguments fit together.
    unsafe {
        match source {
            Source::Rows(rows) => tokens::<false, Sums>(dtype, &Rows::apart(rows), x, acc),
            Source::Panel(bytes) => tokens::<true, Sums>(dtype, &Rows::interleaved(bytes), x, acc),
        }
    }
}

struct Sums;

impl Dot for Sums {
    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn sum<const STEPS: usize, const BITS: usize>(q: &[uint8x16_t; STEPS], x: *const i8) -> int32x4_t {
        let mut sums = [vdupq_n_s32(0); 2];
        for (i, q) in q.as_chunks::<4>().0.iter().enumerate() {
            let q = q.map(|q| vreinterpretq_s8_u8(q));
            // SAFETY: these are 16 of the activations, and the processor has dot products.
            unsafe {
                let x = vld1q_s8(x.add(16 * i));
                let sum = &mut sums[i % 2];
                *sum = sdot::<0>(*sum, q[0], x);
                *sum = sdot::<1>(*sum, q[1], x);
                *sum = sdot::<2>(*sum, q[2], x);
                *sum = sdot::<3>(*sum, q[3], x);
            }
        }
        if STEPS == 4 { sums[0] } else { vaddq_s32(sums[0], sums[1]) }
    }
}
