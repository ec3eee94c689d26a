//! Blocks to floats.

use super::unpack::{Expanded, expand, float};
use crate::Dtype;

/// See [`crate::Kernels::dequantize`].
pub fn dequantize(dtype: Dtype, blocks: &[u8], out: &mut [f32]) {
    let (weights, size) = dtype.block();
    assert!(out.len().is_multiple_of(weights) && blocks.len() == out.len() / weights * size);
    match dtype {
        Dtype::F32 => {
            for (y, b) in out.iter_mut().zip(blocks.as_chunks::<4>().0) {
                *y = f32::from_le_bytes(*b);
            }
        }
        Dtype::F16 => {
            for (y, b) in out.iter_mut().zip(blocks.as_chunks::<2>().0) {
                *y = float(*b);
            }
        }
        Dtype::BF16 => {
            for (y, b) in out.iter_mut().zip(blocks.as_chunks::<2>().0) {
                *y = f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16);
            }
        }
        _ => {
            let mut block = Expanded::new();
            for (y, bytes) in out.chunks_exact_mut(weights).zip(blocks.chunks_exact(size)) {
                expand(dtype, bytes, &mut block);
                for (i, y) in y.iter_mut().enumerate() {
                    *y = block.scale[i / 16] * f32::from(block.q[i]) - block.min[i / 16];
                }
            }
        }
    }
}
