//! Blocks to floats.

use super::{bit, field, iq4_values, load, load_half, store_floats};
use crate::Dtype;
use crate::block::*;
use crate::scalar::{self, unpack::groups};
use std::arch::x86_64::*;

pub fn dequantize(dtype: Dtype, blocks: &[u8], out: &mut [f32]) {
    let (weights, size) = dtype.block();
    assert!(out.len().is_multiple_of(weights) && blocks.len() == out.len() / weights * size);
    // SAFETY: this function is in the table of processors with AVX2 and F16C only.
    unsafe {
        match dtype {
            Dtype::F32 => scalar::dequantize::dequantize(dtype, blocks, out),
            Dtype::F16 => f16(blocks, out),
            Dtype::BF16 => bf16(blocks, out),
            _ => quantized(dtype, blocks, out),
        }
    }
}

#[target_feature(enable = "avx2,f16c")]
fn f16(bytes: &[u8], out: &mut [f32]) {
    let (eights, rest) = out.as_chunks_mut::<8>();
    let (from, _) = bytes.as_chunks::<16>();
    for (to, from) in eights.iter_mut().zip(from) {
        store_floats(to, _mm256_cvtph_ps(load_half(from)));
    }
    scalar::dequantize::dequantize(Dtype::F16, &bytes[16 * eights.len()..], rest);
}

#[target_feature(enable = "avx2")]
fn bf16(bytes: &[u8], out: &mut [f32]) {
    let (eights, rest) = out.as_chunks_mut::<8>();
    let (from, _) = bytes.as_chunks::<16>();
    for (to, from) in eights.iter_mut().zip(from) {
        let wide = _mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(load_half(from)));
        store_floats(to, _mm256_castsi256_ps(wide));
    }
    scalar::dequantize::dequantize(Dtype::BF16, &bytes[16 * eights.len()..], rest);
}

#[target_feature(enable = "avx2")]
fn quantized(dtype: Dtype, blocks: &[u8], out: &mut [f32]) {
    let (weights, size) = dtype.block();
    let (mut scale, mut min) = ([0.0; 16], [0.0; 16]);
    for (to, block) in out.chunks_exact_mut(weights).zip(blocks.chunks_exact(size)) {
        groups(dtype, block, &mut scale, &mut min);
        let q = quants(dtype, block);
        for (g, to) in to.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            let (scale, min) = (_mm256_set1_ps(scale[g]), _mm256_set1_ps(min[g]));
            let q = if g % 2 == 0 { _mm256_castsi256_si128(q[g / 2]) } else { _mm256_extracti128_si256::<1>(q[g / 2]) };
            for (to, q) in to.as_chunks_mut().0.iter_mut().zip([q, _mm_srli_si128::<8>(q)]) {
                let q = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(q));
                store_floats(to, _mm256_sub_ps(_mm256_mul_ps(scale, q), min));
            }
        }
    }
}

/// The quants of a block in order, 32 to a vector.
#[inline]
#[target_feature(enable = "avx2")]
fn quants(dtype: Dtype, block: &[u8]) -> [__m256i; 8] {
    let mut q = [_mm256_setzero_si256(); 8];
    let less = |v, offset: i8| _mm256_sub_epi8(v, _mm256_set1_epi8(offset));
    match dtype {
        Dtype::Q4_0 => q[0] = less(nibbles(&Q4_0::slice(block)[0].qs), 8),
        Dtype::Q4_1 => q[0] = nibbles(&Q4_1::slice(block)[0].qs),
        Dtype::Q5_0 => {
            let b = &Q5_0::slice(block)[0];
            q[0] = less(_mm256_or_si256(nibbles(&b.qs), fifth_bits(b.qh)), 16);
        }
        Dtype::Q5_1 => {
            let b = &Q5_1::slice(block)[0];
            q[0] = _mm256_or_si256(nibbles(&b.qs), fifth_bits(b.qh));
        }
        Dtype::Q8_0 => q[0] = load(&Q8_0::slice(block)[0].qs),
        Dtype::IQ4_NL => q[0] = iq4_values(nibbles(&IQ4_NL::slice(block)[0].qs)),
        Dtype::Q2_K => {
            let qs = Q2_K::slice(block)[0].qs.as_chunks().0;
            for (j, q) in q.iter_mut().enumerate() {
                *q = field(load(&qs[j / 4]), j % 4 * 2, 3);
            }
        }
        Dtype::Q3_K => {
            let b = &Q3_K::slice(block)[0];
            let (low, high) = (b.qs.as_chunks().0, load(&b.hmask));
            for (j, q) in q.iter_mut().enumerate() {
                *q = less(_mm256_or_si256(field(load(&low[j / 4]), j % 4 * 2, 3), bit(high, j, 2)), 4);
            }
        }
        Dtype::Q4_K => {
            let qs = Q4_K::slice(block)[0].qs.as_chunks().0;
            for (j, q) in q.iter_mut().enumerate() {
                *q = field(load(&qs[j / 2]), j % 2 * 4, 15);
            }
        }
        Dtype::Q5_K => {
            let b = &Q5_K::slice(block)[0];
            let (low, high) = (b.qs.as_chunks().0, load(&b.qh));
            for (j, q) in q.iter_mut().enumerate() {
                *q = _mm256_or_si256(field(load(&low[j / 2]), j % 2 * 4, 15), bit(high, j, 4));
            }
        }
        Dtype::Q6_K => {
            let b = &Q6_K::slice(block)[0];
            let (low, high) = (b.ql.as_chunks().0, b.qh.as_chunks().0);
            for (j, q) in q.iter_mut().enumerate() {
                let low = field(load(&low[j / 4 * 2 + j % 2]), j % 4 / 2 * 4, 15);
                let high = field(load(&high[j / 4]), j % 4 * 2, 3);
                *q = less(_mm256_or_si256(low, _mm256_slli_epi16::<4>(high)), 32);
            }
        }
        Dtype::IQ4_XS => {
            let qs = IQ4_XS::slice(block)[0].qs.as_chunks().0;
            for (q, qs) in q.iter_mut().zip(qs) {
                *q = iq4_values(nibbles(qs));
            }
        }
        _ => {
            let mut bytes = [0; QK_K];
            scalar::unpack::quants(dtype, block, &mut bytes);
            let bytes = bytes.map(|q| q as u8);
            (0..8).for_each(|j| q[j] = load(&bytes.as_chunks().0[j]));
        }
    }
    q
}

/// 32 nibbles: the low ones, then the high ones.
#[inline]
#[target_feature(enable = "avx2")]
fn nibbles(qs: &[u8; 16]) -> __m256i {
    let qs = load_half(qs);
    field(_mm256_inserti128_si256::<1>(_mm256_castsi128_si256(qs), _mm_srli_epi16::<4>(qs)), 0, 15)
}

/// The bits of a word, each in bit 4 of its byte.
#[inline]
#[target_feature(enable = "avx2")]
fn fifth_bits(qh: [u8; 4]) -> __m256i {
    let from = _mm256_setr_epi64x(0, 0x0101_0101_0101_0101, 0x0202_0202_0202_0202, 0x0303_0303_0303_0303);
    let spread = _mm256_shuffle_epi8(_mm256_set1_epi32(i32::from_le_bytes(qh)), from);
    let mask = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64 as i64);
    let set = _mm256_cmpeq_epi8(_mm256_and_si256(spread, mask), mask);
    _mm256_and_si256(set, _mm256_set1_epi8(16))
}
