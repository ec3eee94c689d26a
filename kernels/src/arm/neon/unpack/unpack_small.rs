//! Groups of the formats of points (IQ1 to IQ3), of ternary weights and of 4-bit floats, for 4 rows at a time.

use super::super::load_floats;
use super::{Block, Groups, bits, field, halves, load, set_bits, shifted, spread, unsigned};
use crate::Dtype;
use crate::block::*;
use crate::grid;
use std::arch::aarch64::*;
use std::mem::offset_of;

/// The numbers in the lanes, each below `N`.
#[inline]
#[target_feature(enable = "neon")]
fn indices<const N: usize>(codes: uint32x4_t) -> [usize; 4] {
    const { assert!(N.is_power_of_two()) };
    let codes = vandq_u32(codes, vdupq_n_u32(N as u32 - 1));
    [
        vgetq_lane_u32::<0>(codes) as usize,
        vgetq_lane_u32::<1>(codes) as usize,
        vgetq_lane_u32::<2>(codes) as usize,
        vgetq_lane_u32::<3>(codes) as usize,
    ]
}

/// The points of the 4 rows by the codes in the lowest bits of `codes`: the first four weights and the last.
#[inline]
#[target_feature(enable = "neon")]
fn eights<const N: usize>(points: &[u64; N], codes: uint32x4_t) -> [uint8x16_t; 2] {
    let [a, b, c, d] = indices::<N>(codes);
    let pair = |a: usize, b: usize| vcombine_u64(vcreate_u64(points[a]), vcreate_u64(points[b]));
    let (ab, cd) = (vreinterpretq_u32_u64(pair(a, b)), vreinterpretq_u32_u64(pair(c, d)));
    [vreinterpretq_u8_u32(vuzp1q_u32(ab, cd)), vreinterpretq_u8_u32(vuzp2q_u32(ab, cd))]
}

/// The points of the 4 rows by the codes in the lowest bits of `codes`.
#[inline]
#[target_feature(enable = "neon")]
fn fours<const N: usize>(points: &[u32; N], codes: uint32x4_t) -> uint8x16_t {
    let [a, b, c, d] = indices::<N>(codes);
    let points = [points[a], points[b], points[c], points[d]];
    // SAFETY: 16 bytes are readable.
    vreinterpretq_u8_u32(unsafe { vld1q_u32(points.as_ptr()) })
}

/// Each 32-bit lane without its lowest `n` bits.
#[inline]
#[target_feature(enable = "neon")]
fn behind(v: uint8x16_t, n: usize) -> uint8x16_t {
    vreinterpretq_u8_u32(vshlq_u32(vreinterpretq_u32_u8(v), vdupq_n_s32(-(n as i32))))
}

/// `points` with `offset` added, after those were negated whose bit is set: bit `4 · upper + i` of byte `at` of each 32-bit
/// lane for weight i.
#[inline]
#[target_feature(enable = "neon")]
fn signed(points: uint8x16_t, signs: uint8x16_t, at: usize, upper: bool, offset: u8) -> uint8x16_t {
    let minus = set_bits(spread(signs, at), upper);
    vaddq_u8(veorq_u8(points, minus), vsubq_u8(vdupq_n_u8(offset), minus))
}

/// The signs of 8 weights in each byte, from the seven that are stored there, see [`even_signs`].
#[inline]
#[target_feature(enable = "neon")]
fn even(stored: uint32x4_t) -> uint8x16_t {
    let stored = vreinterpretq_u8_u32(stored);
    vsliq_n_u8::<7>(stored, vcntq_u8(stored))
}

/// The signs of 32 weights from a word that begins with 4 times 7 bits.
#[inline]
#[target_feature(enable = "neon")]
fn even_by_sevens(v: uint8x16_t) -> uint8x16_t {
    let v = vreinterpretq_u32_u8(v);
    let part = |v, mask| vandq_u32(v, vdupq_n_u32(mask));
    let (a, b) = (part(v, 0x7f), part(vshlq_n_u32::<1>(v), 0x7f00));
    let (c, d) = (part(vshlq_n_u32::<2>(v), 0x7f_0000), part(vshlq_n_u32::<3>(v), 0x7f00_0000));
    even(vorrq_u32(vorrq_u32(a, b), vorrq_u32(c, d)))
}

/// The scales `d · (2 s + 1) · fraction`.
#[inline]
#[target_feature(enable = "neon")]
fn odd(d: float32x4_t, s: uint32x4_t, fraction: f32) -> float32x4_t {
    let odd = vorrq_u32(vshlq_n_u32::<1>(s), vdupq_n_u32(1));
    vmulq_f32(vmulq_f32(d, vcvtq_f32_u32(odd)), vdupq_n_f32(fraction))
}

const IQ2_OFFSET: u8 = 43;

#[inline]
#[target_feature(enable = "neon")]
pub fn iq2_xxs<const P: bool>(b: Block<'_, P>, i: usize, out: &mut impl Groups) {
    let d = b.floats(offset_of!(IQ2_XXS, d));
    for g in 0..8 {
        let at = offset_of!(IQ2_XXS, qs) + 8 * g;
        let (codes, rest) = (b.words(at), b.words(at + 4));
        let signs = even_by_sevens(rest);
        let mut q = [vdupq_n_u8(0); 8];
        unrolled!(j in [0 1 2 3] {
            let [low, high] = eights(&grid::IQ2_XXS, bits(codes, 8 * j, 8));
            q[2 * j] = signed(low, signs, j, false, IQ2_OFFSET);
            q[2 * j + 1] = signed(high, signs, j, true, IQ2_OFFSET);
        });
        let scale = odd(d, bits(rest, 28, 4), 0.125);
        unsigned::<8, 7>(out, b.quarter, 8 * i + g, q, scale, shifted(Dtype::IQ2_XXS, scale));
    }
}

#[inline]
#[target_feature(enable = "neon")]
pub fn iq2_xs<const P: bool>(b: Block<'_, P>, i: usize, out: &mut impl Groups) {
    let d = b.floats(offset_of!(IQ2_XS, d));
    for h in 0..2 {
        let scales = b.words(offset_of!(IQ2_XS, scales) + 4 * h);
        rolled!(g in 0..8 {
            let codes = b.words(offset_of!(IQ2_XS, qs) + 32 * h + 4 * g);
            let signs = even(vreinterpretq_u32_u16(vshrq_n_u16::<9>(vreinterpretq_u16_u8(codes))));
            let mut q = [vdupq_n_u8(0); 4];
            unrolled!(j in [0 1] {
                let [low, high] = eights(&grid::IQ2_XS, bits(codes, 16 * j, 9));
                q[2 * j] = signed(low, signs, 2 * j, false, IQ2_OFFSET);
                q[2 * j + 1] = signed(high, signs, 2 * j, true, IQ2_OFFSET);
            });
            let scale = odd(d, bits(behind(scales, 4 * g), 0, 4), 0.125);
            unsigned::<4, 7>(out, b.quarter, 16 * i + 8 * h + g, q, scale, shifted(Dtype::IQ2_XS, scale));
        });
    }
}

#[inline]
#[target_feature(enable = "neon")]
pub fn iq2_s<const P: bool>(b: Block<'_, P>, i: usize, out: &mut impl Groups) {
    let d = b.floats(offset_of!(IQ2_S, d));
    for h in 0..2 {
        let scales = b.words(offset_of!(IQ2_S, scales) + 4 * h);
        let upper = b.words(offset_of!(IQ2_S, qh) + 4 * h);
        unrolled!(g in [0 1 2 3 4 5 6 7] {
            let at = 16 * h + g / 2 * 4;
            let lower = b.words(offset_of!(IQ2_S, qs) + at);
            let signs = b.words(offset_of!(IQ2_S, signs) + at);
            let mut q = [vdupq_n_u8(0); 4];
            unrolled!(j in [0 1] {
                let n = g % 2 * 2 + j;
                let (low, high) = (bits(lower, 8 * n, 8), bits(upper, 4 * g + 2 * j, 2));
                let [low, high] = eights(&grid::IQ2_S, vsliq_n_u32::<8>(low, high));
                q[2 * j] = signed(low, signs, n, false, IQ2_OFFSET);
                q[2 * j + 1] = signed(high, signs, n, true, IQ2_OFFSET);
            });
            let scale = odd(d, bits(scales, 4 * g, 4), 0.125);
            unsigned::<4, 7>(out, b.quarter, 16 * i + 8 * h + g, q, scale, shifted(Dtype::IQ2_S, scale));
        });
    }
}

#[inline]
#[target_feature(enable = "neon")]
pub fn iq3_xxs<const P: bool>(b: Block<'_, P>, i: usize, out: &mut impl Groups) {
    let d = b.floats(offset_of!(IQ3_XXS, d));
    for g in 0..8 {
        let at = offset_of!(IQ3_XXS, qs) + 8 * g;
        let (first, last) = (b.words(at), b.words(at + 4));
        let rest = b.words(offset_of!(IQ3_XXS, signs) + 4 * g);
        let signs = even_by_sevens(rest);
        let mut q = [vdupq_n_u8(0); 8];
        unrolled!(j in [0 1 2 3 4 5 6 7] {
            let point = fours(&grid::IQ3_XXS, bits(if j < 4 { first } else { last }, 8 * (j % 4), 8));
            q[j] = signed(point, signs, j / 2, j % 2 == 1, 31);
        });
        let scale = odd(d, bits(rest, 28, 4), 0.5);
        unsigned::<8, 6>(out, b.quarter, 8 * i + g, q, scale, shifted(Dtype::IQ3_XXS, scale));
    }
}

#[inline]
#[target_feature(enable = "neon")]
pub fn iq3_s<const P: bool>(b: Block<'_, P>, i: usize, out: &mut impl Groups) {
    let d = b.floats(offset_of!(IQ3_S, d));
    let scales = b.words(offset_of!(IQ3_S, scales));
    for h in 0..2 {
        let upper = b.words(offset_of!(IQ3_S, qh) + 4 * h);
        rolled!(n in 0..4 {
            let g = 4 * h + n;
            let at = offset_of!(IQ3_S, qs) + 8 * g;
            let upper = behind(upper, 8 * n);
            let (first, last) = (b.words(at), b.words(at + 4));
            let signs = b.words(offset_of!(IQ3_S, signs) + 4 * g);
            let mut q = [vdupq_n_u8(0); 8];
            unrolled!(j in [0 1 2 3 4 5 6 7] {
                let low = bits(if j < 4 { first } else { last }, 8 * (j % 4), 8);
                let high = bits(upper, j, 1);
                let point = fours(&grid::IQ3_S, vsliq_n_u32::<8>(low, high));
                q[j] = signed(point, signs, j / 2, j % 2 == 1, 15);
            });
            let scale = odd(d, bits(behind(scales, 4 * g), 0, 4), 1.0);
            unsigned::<8, 5>(out, b.quarter, 8 * i + g, q, scale, shifted(Dtype::IQ3_S, scale));
        });
    }
}

/// Of the points of IQ1, 1 is taken off where bit `at` of a lane is set, and added elsewhere; then 9 is added, of which they
/// have 8.
#[inline]
#[target_feature(enable = "neon")]
fn ternary(points: [uint8x16_t; 2], v: uint8x16_t, at: usize) -> [uint8x16_t; 2] {
    let plus = vceqzq_u32(bits(v, at, 1));
    let more = vandq_u8(vreinterpretq_u8_u32(plus), vdupq_n_u8(2));
    [vaddq_u8(points[0], more), vaddq_u8(points[1], more)]
}

#[inline]
#[target_feature(enable = "neon")]
pub fn iq1_s<const P: bool>(b: Block<'_, P>, i: usize, out: &mut impl Groups) {
    let d = b.floats(offset_of!(IQ1_S, d));
    rolled!(pair in 0..4 {
        let upper = b.words(offset_of!(IQ1_S, qh) + 4 * pair);
        unrolled!(n in [0 1] {
            let g = 2 * pair + n;
            let lower = b.words(offset_of!(IQ1_S, qs) + 4 * g);
            let mut q = [vdupq_n_u8(0); 8];
            unrolled!(j in [0 1 2 3] {
                let high = bits(upper, 16 * n + 3 * j, 3);
                let points = eights(&grid::IQ1, vsliq_n_u32::<8>(bits(lower, 8 * j, 8), high));
                [q[2 * j], q[2 * j + 1]] = ternary(points, upper, 16 * n + 15);
            });
            let scale = odd(d, bits(upper, 16 * n + 12, 3), 0.125);
            unsigned::<8, 5>(out, b.quarter, 8 * i + g, q, scale, shifted(Dtype::IQ1_S, scale));
        });
    });
}

#[inline]
#[target_feature(enable = "neon")]
pub fn iq1_m<const P: bool>(b: Block<'_, P>, i: usize, out: &mut impl Groups) {
    let scales = [b.words(offset_of!(IQ1_M, scales)), b.words(offset_of!(IQ1_M, scales) + 4)];
    let nibbles = |v| vsliq_n_u32::<4>(bits(v, 12, 4), bits(v, 28, 4));
    let [d, _] = halves(vreinterpretq_u8_u32(vsliq_n_u32::<8>(nibbles(scales[0]), nibbles(scales[1]))));
    for (h, scales) in scales.into_iter().enumerate() {
        unrolled!(n in [0 1 2 3 4 5 6 7] {
            let g = 8 * h + n;
            let upper = b.words(offset_of!(IQ1_M, qh) + g / 4 * 4);
            let lower = b.words(offset_of!(IQ1_M, qs) + g / 2 * 4);
            let mut q = [vdupq_n_u8(0); 4];
            unrolled!(j in [0 1] {
                let at = 8 * (n % 4) + 4 * j;
                let low = bits(lower, 16 * (n % 2) + 8 * j, 8);
                let points = eights(&grid::IQ1, vsliq_n_u32::<8>(low, bits(upper, at, 3)));
                [q[2 * j], q[2 * j + 1]] = ternary(points, upper, at + 3);
            });
            let scale = odd(d, bits(scales, 16 * (n / 4) + 3 * (n % 4), 3), 0.125);
            unsigned::<4, 5>(out, b.quarter, 16 * i + g, q, scale, shifted(Dtype::IQ1_M, scale));
        });
    }
}

/// The next digit to base 3 of the fractions in the bytes of `v`, which keep what is left.
#[inline]
#[target_feature(enable = "neon")]
fn digit(v: &mut uint8x16_t) -> uint8x16_t {
    // 256/3 and 512/3, rounded up.
    let minus = vaddq_u8(vcgeq_u8(*v, vdupq_n_u8(86)), vcgeq_u8(*v, vdupq_n_u8(171)));
    *v = vaddq_u8(*v, vaddq_u8(*v, *v));
    vsubq_u8(vdupq_n_u8(0), minus)
}

#[inline]
#[target_feature(enable = "neon")]
pub fn tq1_0<const P: bool>(b: Block<'_, P>, i: usize, out: &mut impl Groups) {
    let d = b.floats(offset_of!(TQ1_0, d));
    let min = shifted(Dtype::TQ1_0, d);
    let mut v = b.transpose_32(offset_of!(TQ1_0, qs));
    for g in 0..5 {
        let q = vectors!(s in 8 => digit(&mut v[s]));
        unsigned::<8, 2>(out, b.quarter, 8 * i + g, q, d, min);
    }
    let mut v = b.transpose(offset_of!(TQ1_0, qs) + 32);
    for g in 5..7 {
        let q = vectors!(s in 8 => digit(&mut v[s % 4]));
        unsigned::<8, 2>(out, b.quarter, 8 * i + g, q, d, min);
    }
    let mut last = b.words(offset_of!(TQ1_0, qh));
    let q = vectors!(s in 8 => digit(if s < 4 { &mut v[s] } else { &mut last }));
    unsigned::<8, 2>(out, b.quarter, 8 * i + 7, q, d, min);
}

#[inline]
#[target_feature(enable = "neon")]
pub fn tq2_0<const P: bool>(b: Block<'_, P>, i: usize, out: &mut impl Groups) {
    let d = b.floats(offset_of!(TQ2_0, d));
    let min = shifted(Dtype::TQ2_0, d);
    for h in 0..2 {
        let v = b.transpose_32(offset_of!(TQ2_0, qs) + 32 * h);
        unrolled!(j in [0 1 2 3] {
            let q = vectors!(s in 8 => field(v[s], 2 * j, 3));
            unsigned::<8, 2>(out, b.quarter, 8 * i + 4 * h + j, q, d, min);
        });
    }
}

#[inline]
#[target_feature(enable = "neon")]
pub fn q1_0<const P: bool>(b: Block<'_, P>, i: usize, out: &mut impl Groups) {
    let d = b.floats(offset_of!(Q1_0, d));
    let signs = b.transpose(offset_of!(Q1_0, qs));
    unrolled!(g in [0 1 2 3] {
        let q = vectors!(s in 8 => signed(vdupq_n_u8(0xff), signs[g], s / 2, s % 2 == 1, 1));
        unsigned::<8, 2>(out, b.quarter, 4 * i + g, q, d, shifted(Dtype::Q1_0, d));
    });
}

/// The four pairs of bits of byte `at` of each 32-bit lane, each in a byte.
#[inline]
#[target_feature(enable = "neon")]
fn pairs(v: uint8x16_t, at: usize) -> uint8x16_t {
    // Shifts to the right.
    let by = vreinterpretq_s8_u32(vdupq_n_u32(u32::from_le_bytes([0, -2_i8 as u8, -4_i8 as u8, -6_i8 as u8])));
    vandq_u8(vshlq_u8(spread(v, at), by), vdupq_n_u8(3))
}

#[inline]
#[target_feature(enable = "neon")]
pub fn q2_0<const P: bool>(b: Block<'_, P>, i: usize, out: &mut impl Groups) {
    let d = b.floats(offset_of!(Q2_0, d));
    let v = b.transpose(offset_of!(Q2_0, qs));
    unrolled!(g in [0 1] {
        let q = vectors!(s in 8 => pairs(v[2 * g + s / 4], s % 4));
        unsigned::<8, 2>(out, b.quarter, 2 * i + g, q, d, shifted(Dtype::Q2_0, d));
    });
}

/// The values of the codes of 4-bit floats, 12 added.
#[inline]
#[target_feature(enable = "neon")]
fn fp4_values(codes: uint8x16_t) -> uint8x16_t {
    vqtbl1q_u8(load(&FP4_CODES.map(|c| (c + 12) as u8)), codes)
}

#[inline]
#[target_feature(enable = "neon")]
pub fn mxfp4<const P: bool>(b: Block<'_, P>, i: usize, out: &mut impl Groups) {
    let e = b.singles(offset_of!(MXFP4, e));
    // As in `mxfp4_scale`.
    let usual = vshlq_n_u32::<23>(vsubq_u32(e, vdupq_n_u32(1)));
    let tiny = vshlq_u32(vdupq_n_u32(0x0020_0000), vreinterpretq_s32_u32(e));
    let scale = vreinterpretq_f32_u32(vbslq_u32(vcltq_u32(e, vdupq_n_u32(2)), tiny, usual));
    let codes = b.nibbles(offset_of!(MXFP4, qs));
    let q = vectors!(s in 8 => fp4_values(codes[s]));
    unsigned::<8, 5>(out, b.quarter, i, q, scale, shifted(Dtype::MXFP4, scale));
}

#[inline]
#[target_feature(enable = "neon")]
pub fn nvfp4<const P: bool>(b: Block<'_, P>, i: usize, out: &mut impl Groups) {
    let scales = b.words(offset_of!(NVFP4, d));
    unrolled!(g in [0 1 2 3] {
        let at = offset_of!(NVFP4, qs) + 8 * g;
        let (first, last) = (b.words(at), b.words(at + 4));
        let codes = [field(first, 0, 15), field(last, 0, 15), field(first, 4, 15), field(last, 4, 15)];
        let q = vectors!(s in 4 => fp4_values(codes[s]));
        let scale = indices::<256>(bits(scales, 8 * g, 8)).map(|i| NVFP4_SCALES[i]);
        let scale = load_floats(&scale);
        unsigned::<4, 5>(out, b.quarter, 4 * i + g, q, scale, shifted(Dtype::NVFP4, scale));
    });
}
