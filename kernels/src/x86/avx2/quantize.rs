//! Activations to 8 bits.

use super::load_floats;
use crate::scalar::quantize::steps;
use std::arch::x86_64::*;

pub fn quantize(x: &[f32], q: &mut [i8], scale: &mut [f32], sum16: &mut [f32], sum32: &mut [f32], total: &mut [i32]) {
    let n = x.len();
    assert!(n.is_multiple_of(32));
    assert_eq!((q.len(), scale.len(), sum16.len(), sum32.len(), total.len()), (n, n / 32, n / 16, n / 32, n / 16));
    // SAFETY: this function is in the table of processors with AVX2 only.
    unsafe { blocks(x, q, scale, sum16, sum32, total) }
}

#[target_feature(enable = "avx2")]
fn blocks(x: &[f32], q: &mut [i8], scale: &mut [f32], sum16: &mut [f32], sum32: &mut [f32], total: &mut [i32]) {
    let sign = _mm256_set1_epi32(i32::MIN);
    for (i, (x, to)) in x.as_chunks::<32>().0.iter().zip(q.as_chunks_mut::<32>().0).enumerate() {
        let x = x.as_chunks::<8>().0;
        let x = [load_floats(&x[0]), load_floats(&x[1]), load_floats(&x[2]), load_floats(&x[3])];
        let mut max = _mm256_setzero_si256();
        for x in x {
            max = _mm256_max_epu32(max, _mm256_andnot_si256(sign, _mm256_castps_si256(x)));
        }
        let max = _mm_max_epu32(_mm256_castsi256_si128(max), _mm256_extracti128_si256::<1>(max));
        let max = _mm_max_epu32(max, _mm_shuffle_epi32::<0b01_00_11_10>(max));
        let max = _mm_max_epu32(max, _mm_shuffle_epi32::<0b10_11_00_01>(max));
        let (d, factor) = steps(f32::from_bits(_mm_cvtsi128_si32(max) as u32));

        let mut quants = _mm256_setzero_si256();
        if factor != 0.0 {
            let factor = _mm256_set1_ps(factor);
            let mut v = [_mm256_setzero_si256(); 4];
            for (v, x) in v.iter_mut().zip(x) {
                *v = _mm256_cvtps_epi32(_mm256_mul_ps(x, factor));
            }
            let packed = _mm256_packs_epi16(_mm256_packs_epi32(v[0], v[1]), _mm256_packs_epi32(v[2], v[3]));
            quants = _mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
        }
        // SAFETY: 32 quants are writable, and the store needs no alignment.
        unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), quants) };

        let pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), quants);
        let fours = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
        let sums = _mm256_hadd_epi32(fours, fours);
        let sums = _mm256_hadd_epi32(sums, sums);
        let low = _mm_cvtsi128_si32(_mm256_castsi256_si128(sums));
        let high = _mm_cvtsi128_si32(_mm256_extracti128_si256::<1>(sums));
        scale[i] = d;
        total[2 * i] = low;
        total[2 * i + 1] = high;
        sum16[2 * i] = d * low as f32;
        sum16[2 * i + 1] = d * high as f32;
        sum32[i] = d * (low + high) as f32;
    }
}
