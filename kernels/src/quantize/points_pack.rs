//! The bytes of the blocks of IQ1, IQ2 and IQ3, as `block.rs` draws them.

use super::points::Set;
use crate::Dtype;
use half::f16;

/// What a block is made of.
#[derive(Default)]
pub(crate) struct Chosen {
    /// Factor of the scales.
    pub d: f16,
    /// The code s of the scale of each group, of 16 or 32 weights.
    pub scales: [u8; 16],
    /// The packed digits of the point of each 8 weights, or of the two points.
    pub points: [[u16; 2]; 32],
    /// Which of 8 weights are negative.
    pub signs: [u8; 32],
    /// Whether IQ1 takes 1 off the point.
    pub minus: [bool; 32],
}

/// Writes the one block of `out`.
pub(crate) fn pack(dtype: Dtype, set: &Set, chosen: &Chosen, out: &mut [u8]) {
    let Chosen { d, scales, points, signs, minus } = chosen;
    // A block without a factor has points that are none: the first will do.
    let code = |j: usize, i: usize| usize::from(set.code(points[j][i]).unwrap_or(0));
    let nibbles = |out: &mut [u8]| {
        for (i, out) in out.iter_mut().enumerate() {
            *out = scales[2 * i] | scales[2 * i + 1] << 4;
        }
    };
    let word = |g: usize| {
        let signs = (0..4).map(|j| u32::from(signs[4 * g + j] & 127) << (7 * j)).sum::<u32>();
        (signs | u32::from(scales[g]) << 28).to_le_bytes()
    };
    out.fill(0);
    if dtype != Dtype::IQ1_M {
        out[..2].copy_from_slice(&d.to_le_bytes());
    }
    match dtype {
        Dtype::IQ2_XXS => {
            for g in 0..8 {
                (0..4).for_each(|j| out[2 + 8 * g + j] = code(4 * g + j, 0) as u8);
                out[6 + 8 * g..10 + 8 * g].copy_from_slice(&word(g));
            }
        }
        Dtype::IQ2_XS => {
            for j in 0..32 {
                let word = code(j, 0) as u16 | u16::from(signs[j] & 127) << 9;
                out[2 + 2 * j..4 + 2 * j].copy_from_slice(&word.to_le_bytes());
            }
            nibbles(&mut out[66..74]);
        }
        Dtype::IQ2_S => {
            for j in 0..32 {
                out[2 + j] = code(j, 0) as u8;
                out[34 + j] = signs[j];
                out[66 + j / 4] |= ((code(j, 0) >> 8) as u8) << (j % 4 * 2);
            }
            nibbles(&mut out[74..82]);
        }
        Dtype::IQ3_XXS => {
            (0..64).for_each(|k| out[2 + k] = code(k / 2, k % 2) as u8);
            (0..8).for_each(|g| out[66 + 4 * g..70 + 4 * g].copy_from_slice(&word(g)));
        }
        Dtype::IQ3_S => {
            for k in 0..64 {
                out[2 + k] = code(k / 2, k % 2) as u8;
                out[66 + k / 8] |= ((code(k / 2, k % 2) >> 8) as u8) << (k % 8);
            }
            out[74..106].copy_from_slice(signs);
            nibbles(&mut out[106..110]);
        }
        Dtype::IQ1_S => {
            for g in 0..8 {
                let mut word = u16::from(scales[g]) << 12 | u16::from(minus[4 * g]) << 15;
                for j in 0..4 {
                    out[2 + 4 * g + j] = code(4 * g + j, 0) as u8;
                    word |= ((code(4 * g + j, 0) >> 8) as u16) << (3 * j);
                }
                out[34 + 2 * g..36 + 2 * g].copy_from_slice(&word.to_le_bytes());
            }
        }
        Dtype::IQ1_M => {
            for j in 0..32 {
                out[j] = code(j, 0) as u8;
                out[32 + j / 2] |= ((code(j, 0) >> 8) as u8 | u8::from(minus[j]) << 3) << (j % 2 * 4);
            }
            for i in 0..4 {
                let scales = (0..4).map(|j| u16::from(scales[4 * i + j]) << (3 * j)).sum::<u16>();
                let word = scales | (d.to_bits() >> (4 * i) & 15) << 12;
                out[48 + 2 * i..50 + 2 * i].copy_from_slice(&word.to_le_bytes());
            }
        }
        _ => unreachable!("{dtype} has no points"),
    }
}
