//! Floats to blocks: eight blocks in the lanes of a vector.

use super::load_floats;
use crate::quantize::lanes::{Lanes, MAX_LANES, Task};
use crate::quantize::quantize_on;
use crate::scalar;
use crate::{Dtype, Search};
use half::{bf16, f16};
use std::arch::x86_64::*;

pub fn quantize_weights(
    dtype: Dtype,
    search: Search,
    x: &[f32],
    n_cols: usize,
    importance: Option<&[f32]>,
    out: &mut [u8],
) {
    match dtype {
        // SAFETY: the processor has AVX2 and F16C.
        Dtype::F16 => unsafe { halves(x, out) },
        // SAFETY: the processor has AVX2.
        Dtype::BF16 => unsafe { brains(x, out) },
        Dtype::F32 => scalar::quantize_weights::quantize_weights(dtype, search, x, n_cols, importance, out),
        _ => quantize_on::<Eight, Eight>(dtype, search, x, n_cols, importance, out),
    }
}

#[target_feature(enable = "avx2,f16c")]
fn halves(x: &[f32], out: &mut [u8]) {
    let (eights, rest) = x.as_chunks::<8>();
    let (to, out) = out.split_at_mut(16 * eights.len());
    for (x, to) in eights.iter().zip(to.as_chunks_mut::<16>().0) {
        let bits = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(load_floats(x));
        // SAFETY: 16 bytes are writable, and the store needs no alignment.
        unsafe { _mm_storeu_si128(to.as_mut_ptr().cast(), bits) }
    }
    scalar::quantize_weights::each(rest, out, |x| f16::from_f32(x).to_le_bytes());
}

/// The scalar twin, compiled for wider vectors.
#[target_feature(enable = "avx2")]
fn brains(x: &[f32], out: &mut [u8]) {
    scalar::quantize_weights::each(x, out, |x| bf16::from_f32(x).to_le_bytes());
}

/// Eight floats. Reaches code through the table of processors with AVX2, FMA and F16C only: the `unsafe` of each method
/// rests on that.
#[derive(Clone, Copy)]
pub(in crate::x86) struct Eight(__m256);

/// A function compiled for AVX2.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline(never)]
fn call<T: Task>(task: T) -> T::Output {
    task.run::<Eight>()
}

lane_operators! { Eight: Add add _mm256_add_ps Sub sub _mm256_sub_ps Mul mul _mm256_mul_ps Div div _mm256_div_ps }

impl Lanes for Eight {
    const N: usize = 8;
    type Mask = __m256;

    lane_methods! {
        fn splat(x: f32) -> Eight = Eight(_mm256_set1_ps(x));
        fn load(from: &[f32; MAX_LANES]) -> Eight = Eight(_mm256_loadu_ps(from.as_ptr()));
        fn and(a: __m256, b: __m256) -> __m256 = _mm256_and_ps(a, b);
        fn any(mask: __m256) -> bool = _mm256_movemask_ps(mask) != 0;
        fn select(mask: __m256, yes: Eight, no: Eight) -> Eight = Eight(_mm256_blendv_ps(no.0, yes.0, mask));
        fn from_f16(bits: &[u16; MAX_LANES]) -> Eight = Eight(_mm256_cvtph_ps(_mm_loadu_si128(bits.as_ptr().cast())));
    }
    lane_methods! { self:
        sqrt() -> Eight = |x| Eight(_mm256_sqrt_ps(x));
        abs() -> Eight = |x| Eight(_mm256_andnot_ps(_mm256_set1_ps(-0.0), x));
        round() -> Eight = |x| Eight(_mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x));
        trunc() -> Eight = |x| Eight(_mm256_round_ps::<{ _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC }>(x));
        min(y) -> Eight = |x| Eight(_mm256_min_ps(x, y));
        max(y) -> Eight = |x| Eight(_mm256_max_ps(x, y));
        lt(y) -> __m256 = |x| _mm256_cmp_ps::<_CMP_LT_OQ>(x, y);
        ge(y) -> __m256 = |x| _mm256_cmp_ps::<_CMP_GE_OQ>(x, y);
        ne(y) -> __m256 = |x| _mm256_cmp_ps::<_CMP_NEQ_UQ>(x, y);
        low_bits() -> Eight = |x| {
            let bits = _mm256_castps_si256(_mm256_add_ps(x, _mm256_set1_ps(12_582_912.0)));
            let bits = _mm256_and_si256(bits, _mm256_set1_epi32(0x7f_ffff));
            let integer = _mm256_cvtepi32_ps(_mm256_sub_epi32(bits, _mm256_set1_epi32(0x40_0000)));
            Eight(_mm256_and_ps(integer, _mm256_cmp_ps::<_CMP_ORD_Q>(x, x)))
        };
    }

    #[inline(always)]
    fn store(self, to: &mut [f32; MAX_LANES]) {
        // SAFETY: 8 floats are writable, and the store needs no alignment.
        unsafe { _mm256_storeu_ps(to.as_mut_ptr(), self.0) }
    }
    #[inline(always)]
    fn to_bytes(self) -> [u8; MAX_LANES] {
        let mut bytes = [0; MAX_LANES];
        // SAFETY: the processor has AVX2, and 16 bytes are writable without alignment.
        unsafe {
            let low = _mm256_and_si256(_mm256_cvttps_epi32(self.0), _mm256_set1_epi32(255));
            let words = _mm_packus_epi32(_mm256_castsi256_si128(low), _mm256_extracti128_si256::<1>(low));
            _mm_storeu_si128(bytes.as_mut_ptr().cast(), _mm_packus_epi16(words, words));
        }
        bytes
    }
    #[inline(always)]
    fn to_f16(self) -> [u16; MAX_LANES] {
        let mut bits = [0; MAX_LANES];
        // SAFETY: the processor has AVX2 and F16C, and 16 bytes are writable without alignment.
        unsafe {
            let number = _mm256_cmp_ps::<_CMP_ORD_Q>(self.0, self.0);
            let x = _mm256_blendv_ps(_mm256_set1_ps(f32::NAN), self.0, number);
            _mm_storeu_si128(bits.as_mut_ptr().cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x));
        }
        bits
    }
    #[inline(always)]
    fn call<T: Task>(task: T) -> T::Output {
        // SAFETY: the processor has AVX2, FMA and F16C.
        unsafe { call(task) }
    }
    #[inline(always)]
    fn least_sum<const D: usize>(
        costs: &[[f32; 8]; D],
        flips: Option<&[[f32; 8]; D]>,
        bits: usize,
        candidates: &[[u16; 8]],
    ) -> (usize, f32) {
        // SAFETY: the processor has AVX2, and the loads read whole arrays.
        unsafe {
            let mut least = _mm256_set1_ps(f32::INFINITY);
            let mut which = _mm256_setzero_si256();
            for (c, candidates) in candidates.iter().enumerate() {
                let mut digits = _mm256_cvtepu16_epi32(_mm_loadu_si128(candidates.as_ptr().cast()));
                let mut sum = _mm256_setzero_ps();
                let mut flip = _mm256_setzero_ps();
                for i in 0..D {
                    let cost = _mm256_permutevar8x32_ps(_mm256_loadu_ps(costs[i].as_ptr()), digits);
                    sum = if i == 0 { cost } else { _mm256_add_ps(sum, cost) };
                    if let Some(flips) = flips {
                        let next = _mm256_permutevar8x32_ps(_mm256_loadu_ps(flips[i].as_ptr()), digits);
                        flip = if i == 0 { next } else { _mm256_min_ps(next, flip) };
                    }
                    digits = _mm256_srl_epi32(digits, _mm_cvtsi32_si128(bits as i32));
                }
                if flips.is_some() {
                    sum = _mm256_add_ps(sum, flip);
                }
                let less = _mm256_cmp_ps::<_CMP_LT_OQ>(sum, least);
                least = _mm256_blendv_ps(least, sum, less);
                let number = _mm256_set1_epi32(c as i32);
                which = _mm256_blendv_epi8(which, number, _mm256_castps_si256(less));
            }
            // No lane is NaN.
            let half = _mm_min_ps(_mm256_castps256_ps128(least), _mm256_extractf128_ps::<1>(least));
            let quarter = _mm_min_ps(half, _mm_movehl_ps(half, half));
            let lowest = _mm_cvtss_f32(_mm_min_ss(quarter, _mm_movehdup_ps(quarter)));
            let equal = _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_EQ_OQ>(least, _mm256_set1_ps(lowest)));
            let lane = equal.trailing_zeros() as usize;
            let mut numbers = [0_u32; 8];
            _mm256_storeu_si256(numbers.as_mut_ptr().cast(), which);
            if lowest == f32::INFINITY {
                return (0, lowest);
            }
            (8 * numbers[lane] as usize + lane, lowest)
        }
    }
}
