//! Groups of the formats of points (IQ1 to IQ3), of ternary weights and of 4-bit floats, for 8 rows at a time.

use super::super::table;
use super::{Block, Groups, field, halves, shifted};
use crate::Dtype;
use crate::block::*;
use crate::grid;
use crate::x86::ODD;
use std::arch::x86_64::*;
use std::mem::offset_of;

/// The codes of 8 rows in pairs, the second of a pair in the upper half: points are taken one by one, for the instruction that
/// gathers them is slower, by far on processors whose makers had to mend it.
#[inline]
#[target_feature(enable = "avx2")]
fn pairs_of(codes: __m256i) -> [u64; 4] {
    let (low, high) = (_mm256_castsi256_si128(codes), _mm256_extracti128_si256::<1>(codes));
    let (a, b) = (_mm_cvtsi128_si64(low), _mm_extract_epi64::<1>(low));
    let (c, d) = (_mm_cvtsi128_si64(high), _mm_extract_epi64::<1>(high));
    [a as u64, b as u64, c as u64, d as u64]
}

/// The points of the 8 rows by the codes in the lowest bits of `codes`: the first four weights and the last.
#[inline]
#[target_feature(enable = "avx2")]
fn eights<const N: usize>(points: &[u64; N], codes: __m256i) -> [__m256i; 2] {
    const { assert!(N.is_power_of_two()) };
    let [a, b, c, d] = pairs_of(_mm256_and_si256(codes, _mm256_set1_epi32(N as i32 - 1)));
    // SAFETY: what is left of the codes is below `N`.
    let point = |code: u64| unsafe { *points.get_unchecked(code as usize) as i64 };
    let low = |pair: u64| point(pair & 0xffff_ffff);
    let high = |pair: u64| point(pair >> 32);
    // Rows 0, 1, 4, 5 and rows 2, 3, 6, 7, so that a shuffle within 128 bits puts them in order.
    let (a, b) =
        (_mm256_setr_epi64x(low(a), high(a), low(c), high(c)), _mm256_setr_epi64x(low(b), high(b), low(d), high(d)));
    let (a, b) = (_mm256_castsi256_ps(a), _mm256_castsi256_ps(b));
    [
        _mm256_castps_si256(_mm256_shuffle_ps::<0b10_00_10_00>(a, b)),
        _mm256_castps_si256(_mm256_shuffle_ps::<0b11_01_11_01>(a, b)),
    ]
}

/// The points of the 8 rows by the codes in the lowest bits of `codes`.
#[inline]
#[target_feature(enable = "avx2")]
fn fours<const N: usize>(points: &[u32; N], codes: __m256i) -> __m256i {
    const { assert!(N.is_power_of_two()) };
    let [a, b, c, d] = pairs_of(_mm256_and_si256(codes, _mm256_set1_epi32(N as i32 - 1)));
    // SAFETY: what is left of the codes is below `N`.
    let point = |code: u64| unsafe { *points.get_unchecked(code as usize) as i32 };
    let low = |pair: u64| point(pair & 0xffff_ffff);
    let high = |pair: u64| point(pair >> 32);
    _mm256_setr_epi32(low(a), high(a), low(b), high(b), low(c), high(c), low(d), high(d))
}

/// `points` with `offset` added, after those were negated whose bit is set: bit `4 · upper + i` of byte `at` of each 32-bit
/// lane for weight i.
#[inline]
#[target_feature(enable = "avx2")]
fn signed(points: __m256i, signs: __m256i, at: usize, upper: bool, offset: i8) -> __m256i {
    let from = _mm256_setr_epi32(0, 0x04040404, 0x08080808, 0x0c0c0c0c, 0, 0x04040404, 0x08080808, 0x0c0c0c0c);
    let spread = _mm256_shuffle_epi8(signs, _mm256_add_epi8(from, _mm256_set1_epi8(at as i8)));
    let bits = _mm256_set1_epi32(if upper { 0x80402010_u32 as i32 } else { 0x08040201 });
    let minus = _mm256_cmpeq_epi8(_mm256_and_si256(spread, bits), bits);
    _mm256_add_epi8(_mm256_xor_si256(points, minus), _mm256_sub_epi8(_mm256_set1_epi8(offset), minus))
}

/// The signs of 8 weights in each byte, from the seven that are stored there, see [`even_signs`].
#[inline]
#[target_feature(enable = "avx2")]
fn even(stored: __m256i) -> __m256i {
    let odd = table(&ODD);
    let (low, high) = (field(stored, 0, 15), field(stored, 4, 15));
    let last = _mm256_xor_si256(_mm256_shuffle_epi8(odd, low), _mm256_shuffle_epi8(odd, high));
    _mm256_or_si256(stored, last)
}

/// The signs of 32 weights from a word that begins with 4 times 7 bits.
#[inline]
#[target_feature(enable = "avx2")]
fn even_by_sevens(v: __m256i) -> __m256i {
    let part = |v, mask| _mm256_and_si256(v, _mm256_set1_epi32(mask));
    let (a, b) = (part(v, 0x7f), part(_mm256_slli_epi32::<1>(v), 0x7f00));
    let (c, d) = (part(_mm256_slli_epi32::<2>(v), 0x7f_0000), part(_mm256_slli_epi32::<3>(v), 0x7f00_0000));
    even(_mm256_or_si256(_mm256_or_si256(a, b), _mm256_or_si256(c, d)))
}

/// The `n` bits from bit `at` on of each 32-bit lane.
#[inline]
#[target_feature(enable = "avx2")]
fn bits(v: __m256i, at: usize, n: u32) -> __m256i {
    _mm256_and_si256(_mm256_srl_epi32(v, _mm_cvtsi32_si128(at as i32)), _mm256_set1_epi32((1 << n) - 1))
}

/// The scales `d · (2 s + 1) · fraction`.
#[inline]
#[target_feature(enable = "avx2")]
fn odd(d: __m256, s: __m256i, fraction: f32) -> __m256 {
    let odd = _mm256_or_si256(_mm256_slli_epi32::<1>(s), _mm256_set1_epi32(1));
    _mm256_mul_ps(_mm256_mul_ps(d, _mm256_cvtepi32_ps(odd)), _mm256_set1_ps(fraction))
}

const IQ2_OFFSET: i8 = 43;

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub fn iq2_xxs<const P: bool>(b: Block<'_, P>, i: usize, out: &mut impl Groups) {
    let d = b.floats(offset_of!(IQ2_XXS, d));
    for g in 0..8 {
        let at = offset_of!(IQ2_XXS, qs) + 8 * g;
        let (codes, rest) = (b.words(at), b.words(at + 4));
        let signs = even_by_sevens(rest);
        let mut q = [_mm256_setzero_si256(); 8];
        unrolled!(j in [0 1 2 3] {
            let [low, high] = eights(&grid::IQ2_XXS, bits(codes, 8 * j, 8));
            q[2 * j] = signed(low, signs, j, false, IQ2_OFFSET);
            q[2 * j + 1] = signed(high, signs, j, true, IQ2_OFFSET);
        });
        let scale = odd(d, bits(rest, 28, 4), 0.125);
        b.unsigned::<8, 1>(out, 8 * i + g, q, scale, shifted(Dtype::IQ2_XXS, scale));
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub fn iq2_xs<const P: bool>(b: Block<'_, P>, i: usize, out: &mut impl Groups) {
    let d = b.floats(offset_of!(IQ2_XS, d));
    for h in 0..2 {
        let scales = b.words(offset_of!(IQ2_XS, scales) + 4 * h);
        rolled!(g in 0..8 {
            let codes = b.words(offset_of!(IQ2_XS, qs) + 32 * h + 4 * g);
            let signs = even(_mm256_srli_epi16::<9>(codes));
            let mut q = [_mm256_setzero_si256(); 4];
            unrolled!(j in [0 1] {
                let [low, high] = eights(&grid::IQ2_XS, bits(codes, 16 * j, 9));
                q[2 * j] = signed(low, signs, 2 * j, false, IQ2_OFFSET);
                q[2 * j + 1] = signed(high, signs, 2 * j, true, IQ2_OFFSET);
            });
            let scale = odd(d, bits(scales, 4 * g, 4), 0.125);
            b.unsigned::<4, 1>(out, 16 * i + 8 * h + g, q, scale, shifted(Dtype::IQ2_XS, scale));
        });
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub fn iq2_s<const P: bool>(b: Block<'_, P>, i: usize, out: &mut impl Groups) {
    let d = b.floats(offset_of!(IQ2_S, d));
    for h in 0..2 {
        let scales = b.words(offset_of!(IQ2_S, scales) + 4 * h);
        let upper = b.words(offset_of!(IQ2_S, qh) + 4 * h);
        unrolled!(g in [0 1 2 3 4 5 6 7] {
            let at = 16 * h + g / 2 * 4;
            let lower = b.words(offset_of!(IQ2_S, qs) + at);
            let signs = b.words(offset_of!(IQ2_S, signs) + at);
            let mut q = [_mm256_setzero_si256(); 4];
            unrolled!(j in [0 1] {
                let n = g % 2 * 2 + j;
                let (low, high) = (bits(lower, 8 * n, 8), bits(upper, 4 * g + 2 * j, 2));
                let [low, high] = eights(&grid::IQ2_S, _mm256_or_si256(low, _mm256_slli_epi32::<8>(high)));
                q[2 * j] = signed(low, signs, n, false, IQ2_OFFSET);
                q[2 * j + 1] = signed(high, signs, n, true, IQ2_OFFSET);
            });
            let scale = odd(d, bits(scales, 4 * g, 4), 0.125);
            b.unsigned::<4, 1>(out, 16 * i + 8 * h + g, q, scale, shifted(Dtype::IQ2_S, scale));
        });
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub fn iq3_xxs<const P: bool>(b: Block<'_, P>, i: usize, out: &mut impl Groups) {
    let d = b.floats(offset_of!(IQ3_XXS, d));
    for g in 0..8 {
        let at = offset_of!(IQ3_XXS, qs) + 8 * g;
        let (first, last) = (b.words(at), b.words(at + 4));
        let rest = b.words(offset_of!(IQ3_XXS, signs) + 4 * g);
        let signs = even_by_sevens(rest);
        let mut q = [_mm256_setzero_si256(); 8];
        unrolled!(j in [0 1 2 3 4 5 6 7] {
            let point = fours(&grid::IQ3_XXS, bits(if j < 4 { first } else { last }, 8 * (j % 4), 8));
            q[j] = signed(point, signs, j / 2, j % 2 == 1, 31);
        });
        let scale = odd(d, bits(rest, 28, 4), 0.5);
        b.unsigned::<8, 2>(out, 8 * i + g, q, scale, shifted(Dtype::IQ3_XXS, scale));
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub fn iq3_s<const P: bool>(b: Block<'_, P>, i: usize, out: &mut impl Groups) {
    let d = b.floats(offset_of!(IQ3_S, d));
    let scales = b.words(offset_of!(IQ3_S, scales));
    for h in 0..2 {
        let upper = b.words(offset_of!(IQ3_S, qh) + 4 * h);
        rolled!(n in 0..4 {
            let g = 4 * h + n;
            let at = offset_of!(IQ3_S, qs) + 8 * g;
            let upper = bits(upper, 8 * n, 8);
            let (first, last) = (b.words(at), b.words(at + 4));
            let signs = b.words(offset_of!(IQ3_S, signs) + 4 * g);
            let mut q = [_mm256_setzero_si256(); 8];
            unrolled!(j in [0 1 2 3 4 5 6 7] {
                let low = bits(if j < 4 { first } else { last }, 8 * (j % 4), 8);
                let high = bits(upper, j, 1);
                let point = fours(&grid::IQ3_S, _mm256_or_si256(low, _mm256_slli_epi32::<8>(high)));
                q[j] = signed(point, signs, j / 2, j % 2 == 1, 15);
            });
            let scale = odd(d, bits(scales, 4 * g, 4), 1.0);
            b.unsigned::<8, 4>(out, 8 * i + g, q, scale, shifted(Dtype::IQ3_S, scale));
        });
    }
}

/// Of the points of IQ1, 1 is taken off where bit `at` of a lane is set, and added elsewhere; then 9 is added, of which they
/// have 8.
#[inline]
#[target_feature(enable = "avx2")]
fn ternary(points: [__m256i; 2], v: __m256i, at: usize) -> [__m256i; 2] {
    let minus = _mm256_srai_epi32::<31>(_mm256_sll_epi32(v, _mm_cvtsi32_si128(31 - at as i32)));
    let more = _mm256_andnot_si256(minus, _mm256_set1_epi8(2));
    [_mm256_add_epi8(points[0], more), _mm256_add_epi8(points[1], more)]
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub fn iq1_s<const P: bool>(b: Block<'_, P>, i: usize, out: &mut impl Groups) {
    let d = b.floats(offset_of!(IQ1_S, d));
    rolled!(pair in 0..4 {
        let upper = b.words(offset_of!(IQ1_S, qh) + 4 * pair);
        unrolled!(n in [0 1] {
            let g = 2 * pair + n;
            let lower = b.words(offset_of!(IQ1_S, qs) + 4 * g);
            let mut q = [_mm256_setzero_si256(); 8];
            unrolled!(j in [0 1 2 3] {
                let high = _mm256_slli_epi32::<8>(bits(upper, 16 * n + 3 * j, 3));
                let points = eights(&grid::IQ1, _mm256_or_si256(bits(lower, 8 * j, 8), high));
                [q[2 * j], q[2 * j + 1]] = ternary(points, upper, 16 * n + 15);
            });
            let scale = odd(d, bits(upper, 16 * n + 12, 3), 0.125);
            b.unsigned::<8, 4>(out, 8 * i + g, q, scale, shifted(Dtype::IQ1_S, scale));
        });
    });
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub fn iq1_m<const P: bool>(b: Block<'_, P>, i: usize, out: &mut impl Groups) {
    let scales = [b.words(offset_of!(IQ1_M, scales)), b.words(offset_of!(IQ1_M, scales) + 4)];
    let nibbles = |v| _mm256_or_si256(bits(v, 12, 4), _mm256_slli_epi32::<4>(bits(v, 28, 4)));
    let [d, _] = halves(_mm256_or_si256(nibbles(scales[0]), _mm256_slli_epi32::<8>(nibbles(scales[1]))));
    for (h, scales) in scales.into_iter().enumerate() {
        unrolled!(n in [0 1 2 3 4 5 6 7] {
            let g = 8 * h + n;
            let upper = b.words(offset_of!(IQ1_M, qh) + g / 4 * 4);
            let lower = b.words(offset_of!(IQ1_M, qs) + g / 2 * 4);
            let mut q = [_mm256_setzero_si256(); 4];
            unrolled!(j in [0 1] {
                let at = 8 * (n % 4) + 4 * j;
                let high = _mm256_slli_epi32::<8>(bits(upper, at, 3));
                let points = eights(&grid::IQ1, _mm256_or_si256(bits(lower, 16 * (n % 2) + 8 * j, 8), high));
                [q[2 * j], q[2 * j + 1]] = ternary(points, upper, at + 3);
            });
            let scale = odd(d, bits(scales, 16 * (n / 4) + 3 * (n % 4), 3), 0.125);
            b.unsigned::<4, 4>(out, 16 * i + g, q, scale, shifted(Dtype::IQ1_M, scale));
        });
    }
}

/// The next digit to base 3 of the fractions in the bytes of `v`, which keep what is left.
#[inline]
#[target_feature(enable = "avx2")]
fn digit(v: &mut __m256i) -> __m256i {
    // 256/3 and 512/3, rounded up.
    let (first, second) = (_mm256_set1_epi8(86), _mm256_set1_epi8(171_u8 as i8));
    let at_least = |limit| _mm256_cmpeq_epi8(_mm256_max_epu8(*v, limit), *v);
    let digit = _mm256_add_epi8(at_least(first), at_least(second));
    *v = _mm256_add_epi8(*v, _mm256_add_epi8(*v, *v));
    _mm256_sub_epi8(_mm256_setzero_si256(), digit)
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub fn tq1_0<const P: bool>(b: Block<'_, P>, i: usize, out: &mut impl Groups) {
    let d = b.floats(offset_of!(TQ1_0, d));
    let min = shifted(Dtype::TQ1_0, d);
    let mut v = b.transpose_32(offset_of!(TQ1_0, qs));
    for g in 0..5 {
        let q = vectors!(s in 8 => digit(&mut v[s]));
        b.unsigned::<8, 8>(out, 8 * i + g, q, d, min);
    }
    let mut v = b.transpose(offset_of!(TQ1_0, qs) + 32);
    for g in 5..7 {
        let q = vectors!(s in 8 => digit(&mut v[s % 4]));
        b.unsigned::<8, 8>(out, 8 * i + g, q, d, min);
    }
    let mut last = b.words(offset_of!(TQ1_0, qh));
    let q = vectors!(s in 8 => digit(if s < 4 { &mut v[s] } else { &mut last }));
    b.unsigned::<8, 8>(out, 8 * i + 7, q, d, min);
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub fn tq2_0<const P: bool>(b: Block<'_, P>, i: usize, out: &mut impl Groups) {
    let d = b.floats(offset_of!(TQ2_0, d));
    let min = shifted(Dtype::TQ2_0, d);
    for h in 0..2 {
        let v = b.transpose_32(offset_of!(TQ2_0, qs) + 32 * h);
        unrolled!(j in [0 1 2 3] {
            let q = vectors!(s in 8 => field(v[s], 2 * j, 3));
            b.unsigned::<8, 8>(out, 8 * i + 4 * h + j, q, d, min);
        });
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub fn q1_0<const P: bool>(b: Block<'_, P>, i: usize, out: &mut impl Groups) {
    let d = b.floats(offset_of!(Q1_0, d));
    let signs = b.transpose(offset_of!(Q1_0, qs));
    unrolled!(g in [0 1 2 3] {
        let q = vectors!(s in 8 => signed(_mm256_set1_epi8(-1), signs[g], s / 2, s % 2 == 1, 1));
        b.unsigned::<8, 8>(out, 4 * i + g, q, d, shifted(Dtype::Q1_0, d));
    });
}

/// The four pairs of bits of byte `at` of each 32-bit lane, each in a byte.
#[inline]
#[target_feature(enable = "avx2")]
fn pairs(v: __m256i, at: usize) -> __m256i {
    let byte = bits(v, 8 * at, 8);
    let twice = _mm256_or_si256(byte, _mm256_slli_epi32::<12>(byte));
    let all = _mm256_or_si256(twice, _mm256_slli_epi32::<6>(twice));
    _mm256_and_si256(all, _mm256_set1_epi8(3))
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub fn q2_0<const P: bool>(b: Block<'_, P>, i: usize, out: &mut impl Groups) {
    let d = b.floats(offset_of!(Q2_0, d));
    let v = b.transpose(offset_of!(Q2_0, qs));
    unrolled!(g in [0 1] {
        let q = vectors!(s in 8 => pairs(v[2 * g + s / 4], s % 4));
        b.unsigned::<8, 8>(out, 2 * i + g, q, d, shifted(Dtype::Q2_0, d));
    });
}

/// The values of the codes of 4-bit floats, 12 added.
#[inline]
#[target_feature(enable = "avx2")]
fn fp4_values(codes: __m256i) -> __m256i {
    _mm256_shuffle_epi8(_mm256_add_epi8(table(&FP4_CODES), _mm256_set1_epi8(12)), codes)
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub fn mxfp4<const P: bool>(b: Block<'_, P>, i: usize, out: &mut impl Groups) {
    let e = _mm256_cvtepu8_epi32(b.singles(offset_of!(MXFP4, e)));
    // As in `mxfp4_scale`.
    let usual = _mm256_slli_epi32::<23>(_mm256_sub_epi32(e, _mm256_set1_epi32(1)));
    let tiny = _mm256_sllv_epi32(_mm256_set1_epi32(0x0020_0000), e);
    let scale = _mm256_blendv_epi8(usual, tiny, _mm256_cmpgt_epi32(_mm256_set1_epi32(2), e));
    let scale = _mm256_castsi256_ps(scale);
    let codes = b.nibbles(offset_of!(MXFP4, qs));
    let q = vectors!(s in 8 => fp4_values(codes[s]));
    b.unsigned::<8, 4>(out, i, q, scale, shifted(Dtype::MXFP4, scale));
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub fn nvfp4<const P: bool>(b: Block<'_, P>, i: usize, out: &mut impl Groups) {
    let scales = b.words(offset_of!(NVFP4, d));
    unrolled!(g in [0 1 2 3] {
        let at = offset_of!(NVFP4, qs) + 8 * g;
        let (first, last) = (b.words(at), b.words(at + 4));
        let codes = [field(first, 0, 15), field(last, 0, 15), field(first, 4, 15), field(last, 4, 15)];
        let q = vectors!(s in 4 => fp4_values(codes[s]));
        // SAFETY: the table has an entry for each byte.
        let scale = unsafe { _mm256_i32gather_ps::<4>(NVFP4_SCALES.as_ptr(), bits(scales, 8 * g, 8)) };
        b.unsigned::<4, 4>(out, 4 * i + g, q, scale, shifted(Dtype::NVFP4, scale));
    });
}
