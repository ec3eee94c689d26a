//! Floats to blocks, chosen by type.

use crate::quantize::lanes::Plain;
use crate::quantize::quantize_on;
use crate::{Dtype, Search};
use half::{bf16, f16};

/// See [`crate::quantize::quantize`], which has checked the arguments.
pub fn quantize_weights(
    dtype: Dtype,
    search: Search,
    x: &[f32],
    n_cols: usize,
    importance: Option<&[f32]>,
    out: &mut [u8],
) {
    match dtype {
        Dtype::F32 => each(x, out, f32::to_le_bytes),
        Dtype::F16 => each(x, out, |x| f16::from_f32(x).to_le_bytes()),
        Dtype::BF16 => each(x, out, |x| bf16::from_f32(x).to_le_bytes()),
        _ => quantize_on::<Plain, Plain>(dtype, search, x, n_cols, importance, out),
    }
}

#[inline(always)]
pub(crate) fn each<const N: usize>(x: &[f32], out: &mut [u8], to_bytes: impl Fn(f32) -> [u8; N]) {
    for (x, out) in x.iter().zip(out.as_chunks_mut::<N>().0) {
        *out = to_bytes(*x);
    }
}
