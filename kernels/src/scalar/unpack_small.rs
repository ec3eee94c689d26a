//! Blocks of the formats of points (IQ1 to IQ3), of ternary weights and of 4-bit floats to quants and scales.

use super::unpack::{float, nibble, two_bits};
use crate::Dtype;
use crate::block::*;
use crate::grid;

/// Bits `at..at + n` of a little-endian word.
fn bits(word: [u8; 4], at: usize, n: u32) -> u32 {
    u32::from_le_bytes(word) >> at & ((1 << n) - 1)
}

/// As [`bits`], of a word of 16 bits.
fn bits16(word: [u8; 2], at: usize, n: u32) -> usize {
    usize::from(u16::from_le_bytes(word)) >> at & ((1 << n) - 1)
}

/// Nibble `i` of consecutive bytes.
fn half(bytes: &[u8], i: usize) -> u8 {
    bytes[i / 2] >> (i % 2 * 4) & 15
}

/// See [`super::unpack::groups`].
pub fn groups(dtype: Dtype, bytes: &[u8], scale: &mut [f32; 16], min: &mut [f32; 16]) {
    min.fill(0.0);
    // Odd multiples of a factor, and of a fraction that makes the quants integers.
    let mut odd = |d: f32, fraction: f32, s: &dyn Fn(usize) -> u8| {
        for (g, scale) in scale.iter_mut().enumerate() {
            *scale = d * f32::from(2 * s(g) + 1) * fraction;
        }
    };
    match dtype {
        Dtype::IQ2_XXS => {
            let b = &IQ2_XXS::slice(bytes)[0];
            odd(float(b.d), 0.125, &|g| b.qs[g / 2 * 8 + 7] >> 4);
        }
        Dtype::IQ2_XS => {
            let b = &IQ2_XS::slice(bytes)[0];
            odd(float(b.d), 0.125, &|g| half(&b.scales, g));
        }
        Dtype::IQ2_S => {
            let b = &IQ2_S::slice(bytes)[0];
            odd(float(b.d), 0.125, &|g| half(&b.scales, g));
        }
        Dtype::IQ3_XXS => {
            let b = &IQ3_XXS::slice(bytes)[0];
            odd(float(b.d), 0.5, &|g| b.signs[g / 2 * 4 + 3] >> 4);
        }
        Dtype::IQ3_S => {
            let b = &IQ3_S::slice(bytes)[0];
            odd(float(b.d), 1.0, &|g| half(&b.scales, g / 2));
        }
        Dtype::IQ1_S => {
            let b = &IQ1_S::slice(bytes)[0];
            odd(float(b.d), 0.125, &|g| b.qh[g / 2 * 2 + 1] >> 4 & 7);
        }
        Dtype::IQ1_M => {
            let b = &IQ1_M::slice(bytes)[0];
            let words = b.scales.as_chunks().0;
            odd(iq1_m_factor(&b.scales), 0.125, &|g| bits16(words[g / 4], g % 4 * 3, 3) as u8);
        }
        Dtype::TQ1_0 => scale.fill(float(TQ1_0::slice(bytes)[0].d)),
        Dtype::TQ2_0 => scale.fill(float(TQ2_0::slice(bytes)[0].d)),
        Dtype::Q1_0 => scale.fill(float(Q1_0::slice(bytes)[0].d)),
        Dtype::Q2_0 => scale.fill(float(Q2_0::slice(bytes)[0].d)),
        Dtype::MXFP4 => scale.fill(mxfp4_scale(MXFP4::slice(bytes)[0].e)),
        Dtype::NVFP4 => {
            let b = &NVFP4::slice(bytes)[0];
            (0..4).for_each(|g| scale[g] = NVFP4_SCALES[usize::from(b.d[g])]);
        }
        _ => unreachable!("{dtype} has no scales"),
    }
}

/// The factor of the scales of IQ1_M.
pub(crate) fn iq1_m_factor(scales: &[u8; 8]) -> f32 {
    let mut d = 0;
    for (i, word) in scales.as_chunks().0.iter().enumerate() {
        d |= (bits16(*word, 12, 4) as u16) << (4 * i);
    }
    float(d.to_le_bytes())
}

/// The magnitudes `point`, with a minus for each bit that is set in `signs`.
fn signed<const N: usize>(point: [u8; N], signs: u8, q: &mut [i8]) {
    for (i, (q, v)) in q.iter_mut().zip(point).enumerate() {
        *q = if signs >> i & 1 == 1 { -(v as i8) } else { v as i8 };
    }
}

/// See [`super::unpack::quants`].
pub fn quants(dtype: Dtype, bytes: &[u8], q: &mut [i8; QK_K]) {
    let eights = q.as_chunks_mut::<8>().0;
    match dtype {
        Dtype::IQ2_XXS => {
            let b = &IQ2_XXS::slice(bytes)[0];
            let words = b.qs.as_chunks::<4>().0;
            for (j, q) in eights.iter_mut().enumerate() {
                let code = words[j / 4 * 2][j % 4];
                let signs = bits(words[j / 4 * 2 + 1], j % 4 * 7, 7) as u8;
                signed(grid::IQ2_XXS[usize::from(code)].to_le_bytes(), even_signs(signs), q);
            }
        }
        Dtype::IQ2_XS => {
            let b = &IQ2_XS::slice(bytes)[0];
            for (q, word) in eights.iter_mut().zip(b.qs.as_chunks().0) {
                let signs = even_signs(bits16(*word, 9, 7) as u8);
                signed(grid::IQ2_XS[bits16(*word, 0, 9)].to_le_bytes(), signs, q);
            }
        }
        Dtype::IQ2_S => {
            let b = &IQ2_S::slice(bytes)[0];
            for (j, q) in eights.iter_mut().enumerate() {
                let code = usize::from(b.qs[j]) | usize::from(b.qh[j / 4] >> (j % 4 * 2) & 3) << 8;
                signed(grid::IQ2_S[code].to_le_bytes(), b.signs[j], q);
            }
        }
        Dtype::IQ3_XXS => {
            let b = &IQ3_XXS::slice(bytes)[0];
            let words = b.signs.as_chunks().0;
            for (j, q) in eights.iter_mut().enumerate() {
                let signs = even_signs(bits(words[j / 4], j % 4 * 7, 7) as u8);
                for (i, q) in q.as_chunks_mut::<4>().0.iter_mut().enumerate() {
                    let code = usize::from(b.qs[2 * j + i]);
                    signed(grid::IQ3_XXS[code].to_le_bytes(), signs >> (4 * i), q);
                }
            }
        }
        Dtype::IQ3_S => {
            let b = &IQ3_S::slice(bytes)[0];
            for (j, q) in q.as_chunks_mut::<4>().0.iter_mut().enumerate() {
                let code = usize::from(b.qs[j]) | usize::from(b.qh[j / 8] >> (j % 8) & 1) << 8;
                signed(grid::IQ3_S[code].to_le_bytes(), b.signs[j / 2] >> (j % 2 * 4), q);
            }
        }
        Dtype::IQ1_S => {
            let b = &IQ1_S::slice(bytes)[0];
            let words = b.qh.as_chunks().0;
            for (j, q) in eights.iter_mut().enumerate() {
                let (word, low) = (words[j / 4], usize::from(b.qs[j]));
                ternary(low | bits16(word, j % 4 * 3, 3) << 8, bits16(word, 15, 1), q);
            }
        }
        Dtype::IQ1_M => {
            let b = &IQ1_M::slice(bytes)[0];
            for (j, q) in eights.iter_mut().enumerate() {
                let (high, low) = (usize::from(half(&b.qh, j)), usize::from(b.qs[j]));
                ternary(low | (high & 7) << 8, high >> 3, q);
            }
        }
        Dtype::TQ1_0 => {
            let b = &TQ1_0::slice(bytes)[0];
            for (i, q) in q.iter_mut().enumerate() {
                let (byte, n) = match i {
                    ..160 => (b.qs[i % 32], i / 32),
                    160..240 => (b.qs[32 + i % 16], (i - 160) / 16),
                    _ => (b.qh[i % 4], (i - 240) / 4),
                };
                const POWERS: [u8; 5] = [1, 3, 9, 27, 81];
                *q = ((u16::from(byte.wrapping_mul(POWERS[n])) * 3) >> 8) as i8 - 1;
            }
        }
        Dtype::TQ2_0 => {
            let b = &TQ2_0::slice(bytes)[0];
            (0..QK_K).for_each(|i| q[i] = two_bits(&b.qs, i) as i8 - 1);
        }
        Dtype::Q1_0 => {
            let b = &Q1_0::slice(bytes)[0];
            (0..128).for_each(|i| q[i] = if b.qs[i / 8] >> (i % 8) & 1 == 1 { 1 } else { -1 });
        }
        Dtype::Q2_0 => {
            let b = &Q2_0::slice(bytes)[0];
            (0..64).for_each(|i| q[i] = (b.qs[i / 4] >> (i % 4 * 2) & 3) as i8 - 1);
        }
        Dtype::MXFP4 => {
            let b = &MXFP4::slice(bytes)[0];
            (0..32).for_each(|i| q[i] = FP4_CODES[usize::from(nibble(&b.qs, i))]);
        }
        Dtype::NVFP4 => {
            let b = &NVFP4::slice(bytes)[0];
            (0..64).for_each(|i| q[i] = FP4_CODES[usize::from(b.qs[i / 16 * 8 + i % 8] >> (i % 16 / 8 * 4) & 15)]);
        }
        _ => unreachable!("{dtype} has no quants"),
    }
}

/// Eight weights of IQ1: 8 times −1, 0 or 1, and `minus` tells whether 1 is taken off or added.
fn ternary(code: usize, minus: usize, q: &mut [i8; 8]) {
    let shift = if minus == 1 { 9 } else { 7 };
    *q = grid::IQ1[code].to_le_bytes().map(|v| v as i8 - shift);
}
