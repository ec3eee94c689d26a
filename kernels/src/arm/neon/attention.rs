//! The inner step of attention: query rows against one tile of keys and values; and tiles made of rows and blocks.
//!
//! Each score is one chain of fused multiply-adds over the elements of the head, each output element one over the keys,
//! whatever rows it is computed with and however keys and values are stored: neither shows in the result.

// Indices over arrays of registers, which iterators would hide.
#![allow(clippy::needless_range_loop)]

use super::dequantize::{floats, nibbles};
use super::{LANES, from_halves, load, load_floats, load_half, store_floats};
use crate::attention::{KEY_TILE, Rows, Tile};
use crate::kv::KvType;
use crate::scalar::attention::{EXP2, TO_WHOLE, check_keys, check_transpose};
use std::arch::aarch64::*;

/// Rows computed together: their sums with eight vectors of keys, or of values, take 24 registers; a value of each row,
/// three more; the others hold keys or values.
const GROUP: usize = 3;
/// Vectors of keys in a tile.
const KEYS: usize = KEY_TILE / LANES;
type Scores = [[f32; LANES]; KEYS];

#[target_feature(enable = "neon")]
pub fn attend(rows: &mut Rows<'_>, tile: &Tile<'_>) {
    let width = rows.check(tile);
    let n_rows = rows.max.len();
    for r in (0..n_rows).step_by(GROUP) {
        match GROUP.min(n_rows - r) {
            3 => group::<3>(rows, tile, r, width),
            2 => group::<2>(rows, tile, r, width),
            _ => group::<1>(rows, tile, r, width),
        }
    }
}

/// Rows `r..r + R`.
#[target_feature(enable = "neon")]
#[inline]
fn group<const R: usize>(rows: &mut Rows<'_>, tile: &Tile<'_>, r: usize, width: usize) {
    let n_keys: &[usize; R] = rows.n_keys[r..].first_chunk().expect("the caller keeps to the rows");
    let (fewest, most) = n_keys.iter().fold((KEY_TILE, 0), |(a, b), &n| (a.min(n), b.max(n)));
    if most == 0 {
        return;
    }
    let mut p = [[[0.0; LANES]; KEYS]; R];
    let q = &rows.q[r * tile.head_dim..][..R * tile.head_dim];
    match tile.k.0 {
        KvType::F32 => scores::<R, F32>(q, tile.k.1, &mut p),
        KvType::F16 => scores::<R, F16>(q, tile.k.1, &mut p),
        KvType::Q8_0 => scores::<R, Q8_0>(q, tile.k.1, &mut p),
        KvType::Q4_0 => scores::<R, Q4_0>(q, tile.k.1, &mut p),
    }
    let acc = &mut rows.acc[r * width..][..R * width];
    for i in 0..R {
        if n_keys[i] > 0 {
            let shrink = softmax(&mut p[i], n_keys[i], &mut rows.max[r + i], &mut rows.sum[r + i]);
            if shrink != 1.0 {
                scale(&mut acc[i * width..][..width], shrink);
            }
        }
    }
    add_values_of(&p, tile.v, 0, fewest, width, acc);
    if fewest < most {
        for i in 0..R {
            add_values_of(&[p[i]], tile.v, fewest, n_keys[i], width, &mut acc[i * width..][..width]);
        }
    }
}

/// The types of keys and values as constants.
const F32: u8 = 0;
const F16: u8 = 1;
const Q8_0: u8 = 2;
const Q4_0: u8 = 3;

/// `p[i][j] = q[i] · k[j]` for all keys of a tile; `q: [R, head_dim]`.
#[target_feature(enable = "neon")]
#[inline]
fn scores<const R: usize, const KIND: u8>(q: &[f32], k: &[u8], p: &mut [Scores; R]) {
    let dim = q.len() / R;
    let rows: [&[f32]; R] = std::array::from_fn(|i| &q[i * dim..][..dim]);
    let mut sums = [[vdupq_n_f32(0.0); KEYS]; R];
    match KIND {
        F32 => {
            let k = &k.as_chunks::<{ 4 * KEY_TILE }>().0[..dim];
            for d in 0..dim {
                add_products(&rows, d, |c| float_bytes(&k[d].as_chunks().0[c]), &mut sums);
            }
        }
        F16 => {
            let k = &k.as_chunks::<{ 2 * KEY_TILE }>().0[..dim];
            for d in 0..dim {
                add_products(&rows, d, |c| half_bytes(&k[d].as_chunks().0[c]), &mut sums);
            }
        }
        _ => {
            key_blocks::<KIND>(k, |d, keys| add_products(&rows, d, |c| keys[c], &mut sums));
        }
    }
    for i in 0..R {
        for c in 0..KEYS {
            store_floats(&mut p[i][c], sums[i][c]);
        }
    }
}

/// Calls `f(d, keys)` with element `d` of all keys of a quantized tile, for each `d`.
#[target_feature(enable = "neon")]
#[inline]
fn key_blocks<const KIND: u8>(k: &[u8], mut f: impl FnMut(usize, [float32x4_t; KEYS])) {
    let element_bytes = if KIND == Q8_0 { KEY_TILE } else { KEY_TILE / 2 };
    for (b, block) in k.chunks_exact(2 * KEY_TILE + 32 * element_bytes).enumerate() {
        let (factors, quants) = block.split_at(2 * KEY_TILE);
        let mut factor = [vdupq_n_f32(0.0); KEYS];
        for (factor, bytes) in factor.iter_mut().zip(factors.as_chunks().0) {
            *factor = half_bytes(bytes);
        }
        for (d, q) in quants.chunks_exact(element_bytes).enumerate() {
            let quants = if KIND == Q8_0 {
                let q = q.as_chunks::<16>().0;
                [vreinterpretq_s8_u8(load(&q[0])), vreinterpretq_s8_u8(load(&q[1]))]
            } else {
                split_nibbles(&q.as_chunks::<16>().0[0])
            };
            let mut keys = factor;
            for (keys, q) in keys.as_chunks_mut::<4>().0.iter_mut().zip(quants) {
                for (key, q) in keys.iter_mut().zip(floats(q)) {
                    *key = vmulq_f32(q, *key);
                }
            }
            f(32 * b + d, keys);
        }
    }
}

/// `sums[i][c] += rows[i][d] · keys(c)`. The vectors of keys come one at a time: registers are left for few.
#[target_feature(enable = "neon")]
#[inline]
fn add_products<const R: usize>(
    rows: &[&[f32]; R],
    d: usize,
    keys: impl Fn(usize) -> float32x4_t,
    sums: &mut [[float32x4_t; KEYS]; R],
) {
    for c in 0..KEYS {
        let keys = keys(c);
        for i in 0..R {
            sums[i][c] = vfmaq_n_f32(sums[i][c], keys, rows[i][d]);
        }
    }
}

/// Turns `n > 0` scores into weights `2^(score - max)`, those after them into next to nothing, and updates `max` and `sum`.
/// Returns the factor for what was gathered before.
#[target_feature(enable = "neon")]
#[inline]
fn softmax(p: &mut Scores, n: usize, max: &mut f32, sum: &mut f32) -> f32 {
    p.as_flattened_mut()[n..].fill(f32::NEG_INFINITY);
    let mut top = load_floats(&p[0]);
    for p in &p[1..] {
        // The other operand is the result where one is NaN.
        top = vmaxnmq_f32(top, load_floats(p));
    }
    let top = vmaxnmvq_f32(top);
    let mut shrink = 1.0;
    if top > *max {
        shrink = vgetq_lane_f32::<0>(exp2_negative(vdupq_n_f32(*max - top)));
        *max = top;
    }
    let top = vdupq_n_f32(*max);
    let mut e = [vdupq_n_f32(0.0); KEYS];
    for c in 0..KEYS {
        e[c] = exp2_negative(vsubq_f32(load_floats(&p[c]), top));
        store_floats(&mut p[c], e[c]);
    }
    let low = vaddq_f32(vaddq_f32(e[0], e[4]), vaddq_f32(e[2], e[6]));
    let high = vaddq_f32(vaddq_f32(e[1], e[5]), vaddq_f32(e[3], e[7]));
    let total = vaddq_f32(low, high);
    let total = vadd_f32(vget_low_f32(total), vget_high_f32(total));
    *sum = *sum * shrink + vpadds_f32(total);
    shrink
}

/// `2^x` for `x <= 0`, to 2e-7; at most `2^-126` where the result would be smaller; NaN for NaN.
#[target_feature(enable = "neon")]
#[inline]
fn exp2_negative(x: float32x4_t) -> float32x4_t {
    // NaN where one is.
    let x = vmaxq_f32(vdupq_n_f32(-126.0), x);
    // The sum keeps the nearest whole number in its last bits.
    let sum = vaddq_f32(x, vdupq_n_f32(TO_WHOLE));
    let r = vsubq_f32(x, vsubq_f32(sum, vdupq_n_f32(TO_WHOLE)));
    let mut p = vdupq_n_f32(EXP2[4]);
    for c in EXP2[..4].iter().rev() {
        p = vfmaq_f32(vdupq_n_f32(*c), p, r);
    }
    let p = vfmaq_f32(vdupq_n_f32(1.0), p, r);
    let power = vshlq_n_u32::<23>(vreinterpretq_u32_f32(sum));
    vreinterpretq_f32_u32(vaddq_u32(vreinterpretq_u32_f32(p), power))
}

#[target_feature(enable = "neon")]
#[inline]
fn scale(acc: &mut [f32], factor: f32) {
    for acc in acc.as_chunks_mut::<LANES>().0 {
        store_floats(acc, vmulq_n_f32(load_floats(acc), factor));
    }
}

/// `acc[i] += Σ_j p[i][j] · v[j]` over keys `from..to`.
#[target_feature(enable = "neon")]
#[inline]
fn add_values_of<const R: usize>(
    p: &[Scores; R],
    (kind, v): (KvType, &[u8]),
    from: usize,
    to: usize,
    width: usize,
    acc: &mut [f32],
) {
    if from >= to {
        return;
    }
    let acc = acc.as_chunks_mut().0;
    match kind {
        KvType::F32 => add_values::<R, F32>(p, v, from, to, width / LANES, acc),
        KvType::F16 => add_values::<R, F16>(p, v, from, to, width / LANES, acc),
        KvType::Q8_0 => add_values::<R, Q8_0>(p, v, from, to, width / LANES, acc),
        KvType::Q4_0 => add_values::<R, Q4_0>(p, v, from, to, width / LANES, acc),
    }
}

/// [`add_values_of`] for one type; `n_columns` vectors make a row, an even number.
#[target_feature(enable = "neon")]
#[inline]
fn add_values<const R: usize, const KIND: u8>(
    p: &[Scores; R],
    v: &[u8],
    from: usize,
    to: usize,
    n_columns: usize,
    acc: &mut [[f32; LANES]],
) {
    let mut at = 0;
    // One row alone needs more sums to keep the multipliers busy, unless there are quants to expand.
    if R == 1 && (KIND == F32 || KIND == F16) {
        while at + 16 <= n_columns {
            add_columns::<R, 16, KIND>(p, v, from, to, n_columns, acc, at);
            at += 16;
        }
    }
    while at + 8 <= n_columns {
        add_columns::<R, 8, KIND>(p, v, from, to, n_columns, acc, at);
        at += 8;
    }
    // Quantized rows are whole blocks of eight vectors.
    if KIND == F32 || KIND == F16 {
        if at + 4 <= n_columns {
            add_columns::<R, 4, KIND>(p, v, from, to, n_columns, acc, at);
            at += 4;
        }
        if at < n_columns {
            add_columns::<R, 2, KIND>(p, v, from, to, n_columns, acc, at);
        }
    }
}

/// [`add_values`] for vectors `at..at + C` of the rows.
#[target_feature(enable = "neon")]
#[inline]
fn add_columns<const R: usize, const C: usize, const KIND: u8>(
    p: &[Scores; R],
    v: &[u8],
    from: usize,
    to: usize,
    n_columns: usize,
    acc: &mut [[f32; LANES]],
    at: usize,
) {
    let mut sums = [[vdupq_n_f32(0.0); C]; R];
    for i in 0..R {
        for c in 0..C {
            sums[i][c] = load_floats(&acc[i * n_columns + at + c]);
        }
    }
    let row_bytes = v.len() / KEY_TILE;
    for (j, v) in v.chunks_exact(row_bytes).enumerate().take(to.min(KEY_TILE)).skip(from) {
        let mut block = [vdupq_n_f32(0.0); 8];
        for c in 0..C {
            let values = match KIND {
                F32 => float_bytes(&v.as_chunks().0[at + c]),
                F16 => half_bytes(&v.as_chunks().0[at + c]),
                _ => {
                    if c % 8 == 0 {
                        block = value_block::<KIND>(v, (at + c) / 8);
                    }
                    block[c % 8]
                }
            };
            for i in 0..R {
                sums[i][c] = vfmaq_n_f32(sums[i][c], values, p[i].as_flattened()[j]);
            }
        }
    }
    for i in 0..R {
        for c in 0..C {
            store_floats(&mut acc[i * n_columns + at + c], sums[i][c]);
        }
    }
}

/// Block `b` of a quantized row.
#[target_feature(enable = "neon")]
#[inline]
fn value_block<const KIND: u8>(row: &[u8], b: usize) -> [float32x4_t; 8] {
    let (d, quants) = if KIND == Q8_0 {
        let block: &[u8; 34] = &row.as_chunks().0[b];
        let q = block[2..].as_chunks::<16>().0;
        ([block[0], block[1]], [vreinterpretq_s8_u8(load(&q[0])), vreinterpretq_s8_u8(load(&q[1]))])
    } else {
        let block: &[u8; 18] = &row.as_chunks().0[b];
        ([block[0], block[1]], split_nibbles(&block[2..].as_chunks::<16>().0[0]))
    };
    let d = from_halves(vdup_n_u16(u16::from_le_bytes(d)));
    let mut values = [d; 8];
    for (values, q) in values.as_chunks_mut::<4>().0.iter_mut().zip(quants) {
        for (value, q) in values.iter_mut().zip(floats(q)) {
            *value = vmulq_f32(q, d);
        }
    }
    values
}

/// The low nibbles of 16 bytes, and the high ones, less 8.
#[target_feature(enable = "neon")]
#[inline]
fn split_nibbles(bytes: &[u8; 16]) -> [int8x16_t; 2] {
    let [low, high] = nibbles(bytes);
    let eight = vdupq_n_s8(8);
    [vsubq_s8(vreinterpretq_s8_u8(low), eight), vsubq_s8(vreinterpretq_s8_u8(high), eight)]
}

#[target_feature(enable = "neon")]
#[inline]
fn float_bytes(bytes: &[u8; 16]) -> float32x4_t {
    vreinterpretq_f32_u8(load(bytes))
}

/// Four F16 numbers.
#[target_feature(enable = "neon")]
#[inline]
fn half_bytes(bytes: &[u8; 8]) -> float32x4_t {
    from_halves(vreinterpret_u16_u8(load_half(bytes)))
}

#[target_feature(enable = "neon")]
pub fn expand_keys(kind: KvType, bytes: &[u8], out: &mut [f32]) {
    check_keys(kind, bytes, out);
    let mut put = |d: usize, keys: [float32x4_t; KEYS]| {
        for (to, keys) in out[d * KEY_TILE..][..KEY_TILE].as_chunks_mut().0.iter_mut().zip(keys) {
            store_floats(to, keys);
        }
    };
    match kind {
        KvType::Q8_0 => key_blocks::<Q8_0>(bytes, put),
        KvType::Q4_0 => key_blocks::<Q4_0>(bytes, &mut put),
        _ => super::dequantize::dequantize(kind.dtype(), bytes, out),
    }
}

#[target_feature(enable = "neon")]
pub fn transpose(x: &[f32], stride: usize, n: usize, out: &mut [f32]) {
    check_transpose(x, stride, n, out);
    let n_cols = out.len() / KEY_TILE;
    let mut j = 0;
    while j + LANES <= n {
        let mut c = 0;
        while c + LANES <= n_cols {
            let mut v = [vdupq_n_f32(0.0); LANES];
            for (i, v) in v.iter_mut().enumerate() {
                *v = load_floats(x[(j + i) * stride + c..].first_chunk().expect("the row has these columns"));
            }
            for (i, v) in turned(v).into_iter().enumerate() {
                let to = out[(c + i) * KEY_TILE + j..].first_chunk_mut().expect("the row has these columns");
                store_floats(to, v);
            }
            c += LANES;
        }
        for c in c..n_cols {
            for i in j..j + LANES {
                out[c * KEY_TILE + i] = x[i * stride + c];
            }
        }
        j += LANES;
    }
    for j in j..n {
        for c in 0..n_cols {
            out[c * KEY_TILE + j] = x[j * stride + c];
        }
    }
}

/// A 4 × 4 matrix transposed.
#[target_feature(enable = "neon")]
#[inline]
fn turned([a, b, c, d]: [float32x4_t; LANES]) -> [float32x4_t; LANES] {
    let pairs = |a, b| (vreinterpretq_f64_f32(vtrn1q_f32(a, b)), vreinterpretq_f64_f32(vtrn2q_f32(a, b)));
    let ((ab_even, ab_odd), (cd_even, cd_odd)) = (pairs(a, b), pairs(c, d));
    [
        vreinterpretq_f32_f64(vtrn1q_f64(ab_even, cd_even)),
        vreinterpretq_f32_f64(vtrn1q_f64(ab_odd, cd_odd)),
        vreinterpretq_f32_f64(vtrn2q_f64(ab_even, cd_even)),
        vreinterpretq_f32_f64(vtrn2q_f64(ab_odd, cd_odd)),
    ]
}
