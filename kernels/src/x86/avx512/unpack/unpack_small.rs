//! Groups of the formats of points (IQ1 to IQ3), of ternary weights and of 4-bit floats, for 16 rows at a time.

use super::{Block, Groups, field, halves, shifted, table};
use crate::Dtype;
use crate::block::*;
use crate::grid;
use crate::x86::ODD;
use std::arch::x86_64::*;
use std::mem::offset_of;

/// The points of the rows by the codes in the lowest bits of `codes`: the first four weights and the last.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn eights<const N: usize>(points: &[u64; N], codes: __m512i) -> [__m512i; 2] {
    const { assert!(N.is_power_of_two()) };
    let codes = _mm512_and_si512(codes, _mm512_set1_epi32(N as i32 - 1));
    let (a, b) = (_mm512_castsi512_si256(codes), _mm512_extracti64x4_epi64::<1>(codes));
    let start = points.as_ptr().cast();
    // SAFETY: what is left of the codes is below `N`.
    let (a, b) = unsafe { (_mm512_i32gather_epi64::<8>(a, start), _mm512_i32gather_epi64::<8>(b, start)) };
    let even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    let odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
    [_mm512_permutex2var_epi32(a, even, b), _mm512_permutex2var_epi32(a, odd, b)]
}

/// The points of the rows by the codes in the lowest bits of `codes`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn fours<const N: usize>(points: &[u32; N], codes: __m512i) -> __m512i {
    const { assert!(N.is_power_of_two()) };
    let codes = _mm512_and_si512(codes, _mm512_set1_epi32(N as i32 - 1));
    // SAFETY: what is left of the codes is below `N`.
    unsafe { _mm512_i32gather_epi32::<4>(codes, points.as_ptr().cast()) }
}

/// `points` with `offset` added, after those were negated whose bit is set: bit `4 · upper + i` of byte `at` of each 32-bit
/// lane for weight i.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn signed(points: __m512i, signs: __m512i, at: usize, upper: bool, offset: i8) -> __m512i {
    let from = _mm512_set4_epi32(0x0c0c0c0c, 0x08080808, 0x04040404, 0);
    let spread = _mm512_shuffle_epi8(signs, _mm512_add_epi8(from, _mm512_set1_epi8(at as i8)));
    let bits = _mm512_set1_epi32(if upper { 0x80402010_u32 as i32 } else { 0x08040201 });
    let offset = _mm512_set1_epi8(offset);
    let plus = _mm512_add_epi8(offset, points);
    _mm512_mask_sub_epi8(plus, _mm512_test_epi8_mask(spread, bits), offset, points)
}

/// The signs of 8 weights in each byte, from the seven that are stored there, see [`even_signs`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn even(stored: __m512i) -> __m512i {
    let odd = table(&ODD);
    let (low, high) = (field(stored, 0, 15), field(stored, 4, 15));
    let last = _mm512_xor_si512(_mm512_shuffle_epi8(odd, low), _mm512_shuffle_epi8(odd, high));
    _mm512_or_si512(stored, last)
}

/// The signs of 32 weights from a word that begins with 4 times 7 bits.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn even_by_sevens(v: __m512i) -> __m512i {
    let part = |v, mask| _mm512_and_si512(v, _mm512_set1_epi32(mask));
    let (a, b) = (part(v, 0x7f), part(_mm512_slli_epi32::<1>(v), 0x7f00));
    let (c, d) = (part(_mm512_slli_epi32::<2>(v), 0x7f_0000), part(_mm512_slli_epi32::<3>(v), 0x7f00_0000));
    even(_mm512_or_si512(_mm512_or_si512(a, b), _mm512_or_si512(c, d)))
}

/// The `n` bits from bit `at` on of each 32-bit lane.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn bits(v: __m512i, at: usize, n: u32) -> __m512i {
    _mm512_and_si512(_mm512_srl_epi32(v, _mm_cvtsi32_si128(at as i32)), _mm512_set1_epi32((1 << n) - 1))
}

/// The scales `d · (2 s + 1) · fraction`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn odd(d: __m512, s: __m512i, fraction: f32) -> __m512 {
    let odd = _mm512_or_si512(_mm512_slli_epi32::<1>(s), _mm512_set1_epi32(1));
    _mm512_mul_ps(_mm512_mul_ps(d, _mm512_cvtepi32_ps(odd)), _mm512_set1_ps(fraction))
}

const IQ2_OFFSET: i8 = 43;

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub fn iq2_xxs<const P: bool>(b: Block<'_, P>, i: usize, out: &mut impl Groups) {
    let d = b.floats(offset_of!(IQ2_XXS, d));
    for g in 0..8 {
        let at = offset_of!(IQ2_XXS, qs) + 8 * g;
        let (codes, rest) = (b.words(at), b.words(at + 4));
        let signs = even_by_sevens(rest);
        let mut q = [_mm512_setzero_si512(); 8];
        unrolled!(j in [0 1 2 3] {
            let [low, high] = eights(&grid::IQ2_XXS, bits(codes, 8 * j, 8));
            q[2 * j] = signed(low, signs, j, false, IQ2_OFFSET);
            q[2 * j + 1] = signed(high, signs, j, true, IQ2_OFFSET);
        });
        let scale = odd(d, bits(rest, 28, 4), 0.125);
        b.unsigned::<8>(out, 8 * i + g, q, scale, shifted(Dtype::IQ2_XXS, scale));
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub fn iq2_xs<const P: bool>(b: Block<'_, P>, i: usize, out: &mut impl Groups) {
    let d = b.floats(offset_of!(IQ2_XS, d));
    for h in 0..2 {
        let scales = b.words(offset_of!(IQ2_XS, scales) + 4 * h);
        rolled!(g in 0..8 {
            let codes = b.words(offset_of!(IQ2_XS, qs) + 32 * h + 4 * g);
            let signs = even(_mm512_srli_epi16::<9>(codes));
            let mut q = [_mm512_setzero_si512(); 4];
            unrolled!(j in [0 1] {
                let [low, high] = eights(&grid::IQ2_XS, bits(codes, 16 * j, 9));
                q[2 * j] = signed(low, signs, 2 * j, false, IQ2_OFFSET);
                q[2 * j + 1] = signed(high, signs, 2 * j, true, IQ2_OFFSET);
            });
            let scale = odd(d, bits(scales, 4 * g, 4), 0.125);
            b.unsigned::<4>(out, 16 * i + 8 * h + g, q, scale, shifted(Dtype::IQ2_XS, scale));
        });
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub fn iq2_s<const P: bool>(b: Block<'_, P>, i: usize, out: &mut impl Groups) {
    let d = b.floats(offset_of!(IQ2_S, d));
    for h in 0..2 {
        let scales = b.words(offset_of!(IQ2_S, scales) + 4 * h);
        let upper = b.words(offset_of!(IQ2_S, qh) + 4 * h);
        unrolled!(g in [0 1 2 3 4 5 6 7] {
            let at = 16 * h + g / 2 * 4;
            let lower = b.words(offset_of!(IQ2_S, qs) + at);
            let signs = b.words(offset_of!(IQ2_S, signs) + at);
            let mut q = [_mm512_setzero_si512(); 4];
            unrolled!(j in [0 1] {
                let n = g % 2 * 2 + j;
                let (low, high) = (bits(lower, 8 * n, 8), bits(upper, 4 * g + 2 * j, 2));
                let [low, high] = eights(&grid::IQ2_S, _mm512_or_si512(low, _mm512_slli_epi32::<8>(high)));
                q[2 * j] = signed(low, signs, n, false, IQ2_OFFSET);
                q[2 * j + 1] = signed(high, signs, n, true, IQ2_OFFSET);
            });
            let scale = odd(d, bits(scales, 4 * g, 4), 0.125);
            b.unsigned::<4>(out, 16 * i + 8 * h + g, q, scale, shifted(Dtype::IQ2_S, scale));
        });
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub fn iq3_xxs<const P: bool>(b: Block<'_, P>, i: usize, out: &mut impl Groups) {
    let d = b.floats(offset_of!(IQ3_XXS, d));
    for g in 0..8 {
        let at = offset_of!(IQ3_XXS, qs) + 8 * g;
        let (first, last) = (b.words(at), b.words(at + 4));
        let rest = b.words(offset_of!(IQ3_XXS, signs) + 4 * g);
        let signs = even_by_sevens(rest);
        let mut q = [_mm512_setzero_si512(); 8];
        unrolled!(j in [0 1 2 3 4 5 6 7] {
            let point = fours(&grid::IQ3_XXS, bits(if j < 4 { first } else { last }, 8 * (j % 4), 8));
            q[j] = signed(point, signs, j / 2, j % 2 == 1, 31);
        });
        let scale = odd(d, bits(rest, 28, 4), 0.5);
        b.unsigned::<8>(out, 8 * i + g, q, scale, shifted(Dtype::IQ3_XXS, scale));
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
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
            let mut q = [_mm512_setzero_si512(); 8];
            unrolled!(j in [0 1 2 3 4 5 6 7] {
                let low = bits(if j < 4 { first } else { last }, 8 * (j % 4), 8);
                let high = bits(upper, j, 1);
                let point = fours(&grid::IQ3_S, _mm512_or_si512(low, _mm512_slli_epi32::<8>(high)));
                q[j] = signed(point, signs, j / 2, j % 2 == 1, 15);
            });
            let scale = odd(d, bits(scales, 4 * g, 4), 1.0);
            b.unsigned::<8>(out, 8 * i + g, q, scale, shifted(Dtype::IQ3_S, scale));
        });
    }
}

/// Of the points of IQ1, 1 is taken off where bit `at` of a lane is set, and added elsewhere; then 9 is added, of which they
/// have 8.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn ternary(points: [__m512i; 2], v: __m512i, at: usize) -> [__m512i; 2] {
    let minus = _mm512_srai_epi32::<31>(_mm512_sll_epi32(v, _mm_cvtsi32_si128(31 - at as i32)));
    let more = _mm512_andnot_si512(minus, _mm512_set1_epi8(2));
    [_mm512_add_epi8(points[0], more), _mm512_add_epi8(points[1], more)]
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub fn iq1_s<const P: bool>(b: Block<'_, P>, i: usize, out: &mut impl Groups) {
    let d = b.floats(offset_of!(IQ1_S, d));
    rolled!(pair in 0..4 {
        let upper = b.words(offset_of!(IQ1_S, qh) + 4 * pair);
        unrolled!(n in [0 1] {
            let g = 2 * pair + n;
            let lower = b.words(offset_of!(IQ1_S, qs) + 4 * g);
            let mut q = [_mm512_setzero_si512(); 8];
            unrolled!(j in [0 1 2 3] {
                let high = _mm512_slli_epi32::<8>(bits(upper, 16 * n + 3 * j, 3));
                let points = eights(&grid::IQ1, _mm512_or_si512(bits(lower, 8 * j, 8), high));
                [q[2 * j], q[2 * j + 1]] = ternary(points, upper, 16 * n + 15);
            });
            let scale = odd(d, bits(upper, 16 * n + 12, 3), 0.125);
            b.unsigned::<8>(out, 8 * i + g, q, scale, shifted(Dtype::IQ1_S, scale));
        });
    });
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub fn iq1_m<const P: bool>(b: Block<'_, P>, i: usize, out: &mut impl Groups) {
    let scales = [b.words(offset_of!(IQ1_M, scales)), b.words(offset_of!(IQ1_M, scales) + 4)];
    let nibbles = |v| _mm512_or_si512(bits(v, 12, 4), _mm512_slli_epi32::<4>(bits(v, 28, 4)));
    let [d, _] = halves(_mm512_or_si512(nibbles(scales[0]), _mm512_slli_epi32::<8>(nibbles(scales[1]))));
    for (h, scales) in scales.into_iter().enumerate() {
        unrolled!(n in [0 1 2 3 4 5 6 7] {
            let g = 8 * h + n;
            let upper = b.words(offset_of!(IQ1_M, qh) + g / 4 * 4);
            let lower = b.words(offset_of!(IQ1_M, qs) + g / 2 * 4);
            let mut q = [_mm512_setzero_si512(); 4];
            unrolled!(j in [0 1] {
                let at = 8 * (n % 4) + 4 * j;
                let high = _mm512_slli_epi32::<8>(bits(upper, at, 3));
                let points = eights(&grid::IQ1, _mm512_or_si512(bits(lower, 16 * (n % 2) + 8 * j, 8), high));
                [q[2 * j], q[2 * j + 1]] = ternary(points, upper, at + 3);
            });
            let scale = odd(d, bits(scales, 16 * (n / 4) + 3 * (n % 4), 3), 0.125);
            b.unsigned::<4>(out, 16 * i + g, q, scale, shifted(Dtype::IQ1_M, scale));
        });
    }
}

/// The next digit to base 3 of the fractions in the bytes of `v`, which keep what is left.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn digit(v: &mut __m512i) -> __m512i {
    // 256/3 and 512/3, rounded up.
    let (first, second) = (_mm512_set1_epi8(86), _mm512_set1_epi8(171_u8 as i8));
    let one = _mm512_set1_epi8(1);
    let digit = _mm512_maskz_mov_epi8(_mm512_cmpge_epu8_mask(*v, first), one);
    let digit = _mm512_mask_add_epi8(digit, _mm512_cmpge_epu8_mask(*v, second), digit, one);
    *v = _mm512_add_epi8(*v, _mm512_add_epi8(*v, *v));
    digit
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub fn tq1_0<const P: bool>(b: Block<'_, P>, i: usize, out: &mut impl Groups) {
    let d = b.floats(offset_of!(TQ1_0, d));
    let min = shifted(Dtype::TQ1_0, d);
    let mut v = b.transpose_32(offset_of!(TQ1_0, qs));
    for g in 0..5 {
        let q = vectors!(s in 8 => digit(&mut v[s]));
        b.unsigned::<8>(out, 8 * i + g, q, d, min);
    }
    let mut v = b.transpose(offset_of!(TQ1_0, qs) + 32);
    for g in 5..7 {
        let q = vectors!(s in 8 => digit(&mut v[s % 4]));
        b.unsigned::<8>(out, 8 * i + g, q, d, min);
    }
    let mut last = b.words(offset_of!(TQ1_0, qh));
    let q = vectors!(s in 8 => digit(if s < 4 { &mut v[s] } else { &mut last }));
    b.unsigned::<8>(out, 8 * i + 7, q, d, min);
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub fn tq2_0<const P: bool>(b: Block<'_, P>, i: usize, out: &mut impl Groups) {
    let d = b.floats(offset_of!(TQ2_0, d));
    let min = shifted(Dtype::TQ2_0, d);
    for h in 0..2 {
        let v = b.transpose_32(offset_of!(TQ2_0, qs) + 32 * h);
        unrolled!(j in [0 1 2 3] {
            let q = vectors!(s in 8 => field(v[s], 2 * j, 3));
            b.unsigned::<8>(out, 8 * i + 4 * h + j, q, d, min);
        });
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub fn q1_0<const P: bool>(b: Block<'_, P>, i: usize, out: &mut impl Groups) {
    let d = b.floats(offset_of!(Q1_0, d));
    let signs = b.transpose(offset_of!(Q1_0, qs));
    unrolled!(g in [0 1 2 3] {
        let q = vectors!(s in 8 => signed(_mm512_set1_epi8(-1), signs[g], s / 2, s % 2 == 1, 1));
        b.unsigned::<8>(out, 4 * i + g, q, d, shifted(Dtype::Q1_0, d));
    });
}

/// The four pairs of bits of byte `at` of each 32-bit lane, each in a byte.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn pairs(v: __m512i, at: usize) -> __m512i {
    let byte = bits(v, 8 * at, 8);
    let twice = _mm512_or_si512(byte, _mm512_slli_epi32::<12>(byte));
    let all = _mm512_or_si512(twice, _mm512_slli_epi32::<6>(twice));
    _mm512_and_si512(all, _mm512_set1_epi8(3))
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub fn q2_0<const P: bool>(b: Block<'_, P>, i: usize, out: &mut impl Groups) {
    let d = b.floats(offset_of!(Q2_0, d));
    let v = b.transpose(offset_of!(Q2_0, qs));
    unrolled!(g in [0 1] {
        let q = vectors!(s in 8 => pairs(v[2 * g + s / 4], s % 4));
        b.unsigned::<8>(out, 2 * i + g, q, d, shifted(Dtype::Q2_0, d));
    });
}

/// The values of the codes of 4-bit floats, 12 added.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn fp4_values(codes: __m512i) -> __m512i {
    _mm512_shuffle_epi8(_mm512_add_epi8(table(&FP4_CODES), _mm512_set1_epi8(12)), codes)
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub fn mxfp4<const P: bool>(b: Block<'_, P>, i: usize, out: &mut impl Groups) {
    let e = _mm512_cvtepu8_epi32(b.singles(offset_of!(MXFP4, e)));
    // As in `mxfp4_scale`.
    let usual = _mm512_slli_epi32::<23>(_mm512_sub_epi32(e, _mm512_set1_epi32(1)));
    let tiny = _mm512_sllv_epi32(_mm512_set1_epi32(0x0020_0000), e);
    let scale = _mm512_mask_mov_epi32(usual, _mm512_cmplt_epi32_mask(e, _mm512_set1_epi32(2)), tiny);
    let scale = _mm512_castsi512_ps(scale);
    let codes = b.nibbles(offset_of!(MXFP4, qs));
    let q = vectors!(s in 8 => fp4_values(codes[s]));
    b.unsigned::<8>(out, i, q, scale, shifted(Dtype::MXFP4, scale));
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub fn nvfp4<const P: bool>(b: Block<'_, P>, i: usize, out: &mut impl Groups) {
    let scales = b.words(offset_of!(NVFP4, d));
    unrolled!(g in [0 1 2 3] {
        let at = offset_of!(NVFP4, qs) + 8 * g;
        let (first, last) = (b.words(at), b.words(at + 4));
        let codes = [field(first, 0, 15), field(last, 0, 15), field(first, 4, 15), field(last, 4, 15)];
        let q = vectors!(s in 4 => fp4_values(codes[s]));
        // SAFETY: the table has an entry for each byte.
        let scale = unsafe { _mm512_i32gather_ps::<4>(bits(scales, 8 * g, 8), NVFP4_SCALES.as_ptr()) };
        b.unsigned::<4>(out, 4 * i + g, q, scale, shifted(Dtype::NVFP4, scale));
    });
}
