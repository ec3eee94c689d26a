//! Blocks to floats.

use super::{bit, field, from_halves, iq4_values, load, load_half, store_floats};
use crate::Dtype;
use crate::block::*;
use crate::scalar::{self, unpack::groups};
use std::arch::aarch64::*;

pub fn dequantize(dtype: Dtype, blocks: &[u8], out: &mut [f32]) {
    let (weights, size) = dtype.block();
    assert!(out.len().is_multiple_of(weights) && blocks.len() == out.len() / weights * size);
    // SAFETY: this function is in the table of processors with NEON only.
    unsafe {
        match dtype {
            Dtype::F32 => scalar::dequantize::dequantize(dtype, blocks, out),
            Dtype::F16 => f16(blocks, out),
            Dtype::BF16 => bf16(blocks, out),
            _ => quantized(dtype, blocks, out),
        }
    }
}

#[target_feature(enable = "neon")]
fn f16(bytes: &[u8], out: &mut [f32]) {
    let (fours, rest) = out.as_chunks_mut::<4>();
    for (to, from) in fours.iter_mut().zip(bytes.as_chunks().0) {
        store_floats(to, from_halves(vreinterpret_u16_u8(load_half(from))));
    }
    scalar::dequantize::dequantize(Dtype::F16, &bytes[8 * fours.len()..], rest);
}

#[target_feature(enable = "neon")]
fn bf16(bytes: &[u8], out: &mut [f32]) {
    let (fours, rest) = out.as_chunks_mut::<4>();
    for (to, from) in fours.iter_mut().zip(bytes.as_chunks().0) {
        let wide = vshll_n_u16::<16>(vreinterpret_u16_u8(load_half(from)));
        store_floats(to, vreinterpretq_f32_u32(wide));
    }
    scalar::dequantize::dequantize(Dtype::BF16, &bytes[8 * fours.len()..], rest);
}

#[target_feature(enable = "neon")]
fn quantized(dtype: Dtype, blocks: &[u8], out: &mut [f32]) {
    let (weights, size) = dtype.block();
    let (mut scale, mut min) = ([0.0; 16], [0.0; 16]);
    for (to, block) in out.chunks_exact_mut(weights).zip(blocks.chunks_exact(size)) {
        groups(dtype, block, &mut scale, &mut min);
        let q = quants(dtype, block);
        for (g, to) in to.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            let min = vdupq_n_f32(min[g]);
            for (to, q) in to.as_chunks_mut().0.iter_mut().zip(floats(vreinterpretq_s8_u8(q[g]))) {
                store_floats(to, vsubq_f32(vmulq_n_f32(q, scale[g]), min));
            }
        }
    }
}

/// Signed bytes as floats.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn floats(q: int8x16_t) -> [float32x4_t; 4] {
    let (low, high) = (vmovl_s8(vget_low_s8(q)), vmovl_high_s8(q));
    [
        vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))),
        vcvtq_f32_s32(vmovl_high_s16(low)),
        vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))),
        vcvtq_f32_s32(vmovl_high_s16(high)),
    ]
}

/// The quants of a block in order, 16 to a vector.
#[inline]
#[target_feature(enable = "neon")]
fn quants(dtype: Dtype, block: &[u8]) -> [uint8x16_t; 16] {
    let mut q = [vdupq_n_u8(0); 16];
    let less = |v, offset| vsubq_u8(v, vdupq_n_u8(offset));
    match dtype {
        Dtype::Q4_0 => [q[0], q[1]] = nibbles(&Q4_0::slice(block)[0].qs).map(|v| less(v, 8)),
        Dtype::Q4_1 => [q[0], q[1]] = nibbles(&Q4_1::slice(block)[0].qs),
        Dtype::Q5_0 => {
            let b = &Q5_0::slice(block)[0];
            [q[0], q[1]] = five_bits(&b.qs, b.qh).map(|v| less(v, 16));
        }
        Dtype::Q5_1 => {
            let b = &Q5_1::slice(block)[0];
            [q[0], q[1]] = five_bits(&b.qs, b.qh);
        }
        Dtype::Q8_0 => {
            let qs = Q8_0::slice(block)[0].qs.as_chunks().0;
            [q[0], q[1]] = [load(&qs[0]), load(&qs[1])];
        }
        Dtype::IQ4_NL => [q[0], q[1]] = nibbles(&IQ4_NL::slice(block)[0].qs).map(|v| iq4_values(v)),
        Dtype::Q2_K => {
            let qs = Q2_K::slice(block)[0].qs.as_chunks().0;
            for (j, q) in q.iter_mut().enumerate() {
                *q = field(load(&qs[j / 8 * 2 + j % 2]), j % 8 / 2 * 2, 3);
            }
        }
        Dtype::Q3_K => {
            let b = &Q3_K::slice(block)[0];
            let (low, high) = (b.qs.as_chunks().0, b.hmask.as_chunks().0);
            for (j, q) in q.iter_mut().enumerate() {
                let low = field(load(&low[j / 8 * 2 + j % 2]), j % 8 / 2 * 2, 3);
                *q = less(vorrq_u8(low, bit(load(&high[j % 2]), j / 2, 2)), 4);
            }
        }
        Dtype::Q4_K => {
            let qs = Q4_K::slice(block)[0].qs.as_chunks().0;
            for (j, q) in q.iter_mut().enumerate() {
                *q = field(load(&qs[j / 4 * 2 + j % 2]), j % 4 / 2 * 4, 15);
            }
        }
        Dtype::Q5_K => {
            let b = &Q5_K::slice(block)[0];
            let (low, high) = (b.qs.as_chunks().0, b.qh.as_chunks().0);
            for (j, q) in q.iter_mut().enumerate() {
                let low = field(load(&low[j / 4 * 2 + j % 2]), j % 4 / 2 * 4, 15);
                *q = vorrq_u8(low, bit(load(&high[j % 2]), j / 2, 4));
            }
        }
        Dtype::Q6_K => {
            let b = &Q6_K::slice(block)[0];
            let (low, high) = (b.ql.as_chunks().0, b.qh.as_chunks().0);
            for (j, q) in q.iter_mut().enumerate() {
                let low = field(load(&low[j / 8 * 4 + j % 4]), j % 8 / 4 * 4, 15);
                let high = field(load(&high[j / 8 * 2 + j % 2]), j % 8 / 2 * 2, 3);
                *q = less(vsliq_n_u8::<4>(low, high), 32);
            }
        }
        Dtype::IQ4_XS => {
            let qs = IQ4_XS::slice(block)[0].qs.as_chunks().0;
            for (q, qs) in q.as_chunks_mut::<2>().0.iter_mut().zip(qs) {
                *q = nibbles(qs).map(|v| iq4_values(v));
            }
        }
        _ => {
            let mut bytes = [0; QK_K];
            scalar::unpack::quants(dtype, block, &mut bytes);
            let bytes = bytes.map(|q| q as u8);
            q.iter_mut().zip(bytes.as_chunks().0).for_each(|(q, bytes)| *q = load(bytes));
        }
    }
    q
}

/// 32 nibbles: the low ones, then the high ones.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn nibbles(qs: &[u8; 16]) -> [uint8x16_t; 2] {
    let qs = load(qs);
    [field(qs, 0, 15), field(qs, 4, 15)]
}

/// 32 nibbles, with the bits of a word as their fifth bits.
#[inline]
#[target_feature(enable = "neon")]
fn five_bits(qs: &[u8; 16], qh: [u8; 4]) -> [uint8x16_t; 2] {
    let [low, high] = nibbles(qs);
    let mask = vreinterpretq_u8_u64(vdupq_n_u64(0x8040_2010_0804_0201));
    let fifth = |a: u8, b: u8| {
        let spread = vcombine_u8(vdup_n_u8(a), vdup_n_u8(b));
        vandq_u8(vtstq_u8(spread, mask), vdupq_n_u8(16))
    };
    [vorrq_u8(low, fifth(qh[0], qh[1])), vorrq_u8(high, fifth(qh[2], qh[3]))]
}
