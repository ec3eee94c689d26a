//! The inner step of attention: query rows against one tile of keys and values; and tiles made of rows and blocks.
//!
//! Each score is one chain of fused multiply-adds over the elements of the head, each output element one over the keys,
//! whatever rows it is computed with and however keys and values are stored: neither shows in the result.

// Indices over arrays of registers, which iterators would hide.
#![allow(clippy::needless_range_loop)]

use super::{LANES, load_floats, store_floats};
use crate::attention::{KEY_TILE, Rows, Tile};
use crate::kv::KvType;
use crate::scalar::attention::{EXP2, TO_WHOLE, check_keys, check_transpose};
use std::arch::x86_64::*;

/// Rows computed together: their sums with four vectors of keys, or of values, take twelve registers; a value of each row,
/// three more; the last holds the keys or values.
const GROUP: usize = 3;
/// Vectors of keys in a tile.
const KEYS: usize = KEY_TILE / LANES;
type Scores = [[f32; LANES]; KEYS];

#[target_feature(enable = "avx2,fma,f16c")]
pub fn attend(rows: &mut Rows<'_>, tile: &Tile<'_>) {
    rows.check(tile);
    attend_from(rows, tile, 0);
}

/// [`attend`] for the rows from `r` on.
#[target_feature(enable = "avx2,fma,f16c")]
pub(in crate::x86) fn attend_from(rows: &mut Rows<'_>, tile: &Tile<'_>, mut r: usize) {
    let (n_rows, width) = (rows.max.len(), tile.head_dim.next_multiple_of(LANES));
    while r < n_rows {
        let step = GROUP.min(n_rows - r);
        match step {
            3 => group::<3>(rows, tile, r, width),
            2 => group::<2>(rows, tile, r, width),
            _ => group::<1>(rows, tile, r, width),
        }
        r += step;
    }
}

/// Rows `r..r + R`.
#[target_feature(enable = "avx2,fma,f16c")]
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
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn scores<const R: usize, const KIND: u8>(q: &[f32], k: &[u8], p: &mut [Scores; R]) {
    let dim = q.len() / R;
    // A loop: `from_fn` would not be inlined.
    let mut rows = [&q[..dim]; R];
    for i in 1..R {
        rows[i] = &q[i * dim..][..dim];
    }
    let mut sums = [[_mm256_setzero_ps(); KEYS]; R];
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
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn key_blocks<const KIND: u8>(k: &[u8], mut f: impl FnMut(usize, [__m256; KEYS])) {
    let element_bytes = if KIND == Q8_0 { KEY_TILE } else { KEY_TILE / 2 };
    for (b, block) in k.chunks_exact(2 * KEY_TILE + 32 * element_bytes).enumerate() {
        let (factors, quants) = block.split_at(2 * KEY_TILE);
        let mut factor = [_mm256_setzero_ps(); KEYS];
        for (factor, bytes) in factor.iter_mut().zip(factors.as_chunks().0) {
            *factor = half_bytes(bytes);
        }
        for (d, q) in quants.chunks_exact(element_bytes).enumerate() {
            let quants = if KIND == Q8_0 {
                let q = q.as_chunks::<16>().0;
                [&q[0], &q[1]].map(|q| load16(q))
            } else {
                split_nibbles(&q.as_chunks::<16>().0[0])
            };
            let mut keys = [_mm256_setzero_ps(); KEYS];
            for c in 0..KEYS {
                let q = quants[c / 2];
                let q = if c % 2 == 0 { q } else { _mm_srli_si128::<8>(q) };
                keys[c] = _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(q)), factor[c]);
            }
            f(32 * b + d, keys);
        }
    }
}

/// `sums[i][c] += rows[i][d] · keys(c)`. The vectors of keys come one at a time: a register is left for no more.
#[target_feature(enable = "avx2,fma")]
#[inline]
fn add_products<const R: usize>(
    rows: &[&[f32]; R],
    d: usize,
    keys: impl Fn(usize) -> __m256,
    sums: &mut [[__m256; KEYS]; R],
) {
    let mut q = [_mm256_setzero_ps(); R];
    for i in 0..R {
        q[i] = _mm256_set1_ps(rows[i][d]);
    }
    for c in 0..KEYS {
        let keys = keys(c);
        for i in 0..R {
            sums[i][c] = _mm256_fmadd_ps(q[i], keys, sums[i][c]);
        }
    }
}

/// Turns `n > 0` scores into weights `2^(score - max)`, those after them into next to nothing, and updates `max` and `sum`.
/// Returns the factor for what was gathered before.
#[target_feature(enable = "avx2,fma")]
#[inline]
fn softmax(p: &mut Scores, n: usize, max: &mut f32, sum: &mut f32) -> f32 {
    p.as_flattened_mut()[n..].fill(f32::NEG_INFINITY);
    let s = [load_floats(&p[0]), load_floats(&p[1]), load_floats(&p[2]), load_floats(&p[3])];
    let top = _mm256_max_ps(_mm256_max_ps(s[0], s[1]), _mm256_max_ps(s[2], s[3]));
    let mut shrink = 1.0;
    if _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_GT_OQ>(top, _mm256_set1_ps(*max))) != 0 {
        let top = _mm_max_ps(_mm256_castps256_ps128(top), _mm256_extractf128_ps::<1>(top));
        let top = _mm_max_ps(top, _mm_movehl_ps(top, top));
        let top = _mm_cvtss_f32(_mm_max_ss(top, _mm_movehdup_ps(top)));
        shrink = _mm256_cvtss_f32(exp2_negative(_mm256_set1_ps(*max - top)));
        *max = top;
    }
    let top = _mm256_set1_ps(*max);
    let mut e = s;
    for c in 0..KEYS {
        e[c] = exp2_negative(_mm256_sub_ps(s[c], top));
        store_floats(&mut p[c], e[c]);
    }
    let total = _mm256_add_ps(_mm256_add_ps(e[0], e[2]), _mm256_add_ps(e[1], e[3]));
    let total = _mm_add_ps(_mm256_castps256_ps128(total), _mm256_extractf128_ps::<1>(total));
    let total = _mm_add_ps(total, _mm_movehl_ps(total, total));
    let total = _mm_cvtss_f32(_mm_add_ss(total, _mm_movehdup_ps(total)));
    *sum = *sum * shrink + total;
    shrink
}

/// `2^x` for `x <= 0`, to 2e-7; at most `2^-126` where the result would be smaller; NaN for NaN.
#[target_feature(enable = "avx2,fma")]
#[inline]
fn exp2_negative(x: __m256) -> __m256 {
    // The second operand is the result where one is NaN.
    let x = _mm256_max_ps(_mm256_set1_ps(-126.0), x);
    // The sum keeps the nearest whole number in its last bits.
    let sum = _mm256_add_ps(x, _mm256_set1_ps(TO_WHOLE));
    let r = _mm256_sub_ps(x, _mm256_sub_ps(sum, _mm256_set1_ps(TO_WHOLE)));
    let mut p = _mm256_set1_ps(EXP2[4]);
    for c in EXP2[..4].iter().rev() {
        p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(*c));
    }
    let p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0));
    let power = _mm256_slli_epi32::<23>(_mm256_castps_si256(sum));
    _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), power))
}

#[target_feature(enable = "avx2")]
#[inline]
fn scale(acc: &mut [f32], factor: f32) {
    for acc in acc.as_chunks_mut::<LANES>().0 {
        store_floats(acc, _mm256_mul_ps(load_floats(acc), _mm256_set1_ps(factor)));
    }
}

/// `acc[i] += Σ_j p[i][j] · v[j]` over keys `from..to`.
#[target_feature(enable = "avx2,fma,f16c")]
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

/// [`add_values_of`] for one type; `n_columns` vectors make a row.
#[target_feature(enable = "avx2,fma,f16c")]
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
    // One row alone needs more sums to keep the multipliers busy.
    if R == 1 {
        while at + 8 <= n_columns {
            add_columns::<R, 8, KIND>(p, v, from, to, n_columns, acc, at);
            at += 8;
        }
    }
    while at + 4 <= n_columns {
        add_columns::<R, 4, KIND>(p, v, from, to, n_columns, acc, at);
        at += 4;
    }
    // Quantized rows are whole blocks of four vectors.
    if KIND == F32 || KIND == F16 {
        if at + 2 <= n_columns {
            add_columns::<R, 2, KIND>(p, v, from, to, n_columns, acc, at);
            at += 2;
        }
        if at < n_columns {
            add_columns::<R, 1, KIND>(p, v, from, to, n_columns, acc, at);
        }
    }
}

/// [`add_values`] for vectors `at..at + C` of the rows.
#[target_feature(enable = "avx2,fma,f16c")]
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
    let mut sums = [[_mm256_setzero_ps(); C]; R];
    for i in 0..R {
        for c in 0..C {
            sums[i][c] = load_floats(&acc[i * n_columns + at + c]);
        }
    }
    let row_bytes = v.len() / KEY_TILE;
    for (j, v) in v.chunks_exact(row_bytes).enumerate().take(to.min(KEY_TILE)).skip(from) {
        let mut weights = [_mm256_setzero_ps(); R];
        for i in 0..R {
            weights[i] = _mm256_set1_ps(p[i].as_flattened()[j]);
        }
        let mut block = [_mm256_setzero_ps(); 4];
        for c in 0..C {
            let values = match KIND {
                F32 => float_bytes(&v.as_chunks().0[at + c]),
                F16 => half_bytes(&v.as_chunks().0[at + c]),
                _ => {
                    if c % 4 == 0 {
                        block = value_block::<KIND>(v, (at + c) / 4);
                    }
                    block[c % 4]
                }
            };
            for i in 0..R {
                sums[i][c] = _mm256_fmadd_ps(weights[i], values, sums[i][c]);
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
#[target_feature(enable = "avx2,f16c")]
#[inline]
fn value_block<const KIND: u8>(row: &[u8], b: usize) -> [__m256; 4] {
    let (d, quants) = if KIND == Q8_0 {
        let block: &[u8; 34] = &row.as_chunks().0[b];
        let q = block[2..].as_chunks::<16>().0;
        ([block[0], block[1]], [&q[0], &q[1]].map(|q| load16(q)))
    } else {
        let block: &[u8; 18] = &row.as_chunks().0[b];
        ([block[0], block[1]], split_nibbles(&block[2..].as_chunks::<16>().0[0]))
    };
    let d = _mm256_broadcastss_ps(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(u16::from_le_bytes(d)))));
    let mut values = [_mm256_setzero_ps(); 4];
    for c in 0..4 {
        let q = quants[c / 2];
        let q = if c % 2 == 0 { q } else { _mm_srli_si128::<8>(q) };
        values[c] = _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(q)), d);
    }
    values
}

/// The low nibbles of 16 bytes, and the high ones, less 8.
#[target_feature(enable = "avx2")]
#[inline]
fn split_nibbles(bytes: &[u8; 16]) -> [__m128i; 2] {
    let v = load16(bytes);
    let mask = _mm_set1_epi8(15);
    let eight = _mm_set1_epi8(8);
    [_mm_sub_epi8(_mm_and_si128(v, mask), eight), _mm_sub_epi8(_mm_and_si128(_mm_srli_epi16::<4>(v), mask), eight)]
}

#[target_feature(enable = "avx2")]
#[inline]
fn load16(bytes: &[u8; 16]) -> __m128i {
    super::load_half(bytes)
}

#[target_feature(enable = "avx2")]
#[inline]
fn float_bytes(bytes: &[u8; 32]) -> __m256 {
    // SAFETY: 32 bytes are readable, and the load needs no alignment.
    unsafe { _mm256_loadu_ps(bytes.as_ptr().cast()) }
}

/// Eight F16 numbers.
#[target_feature(enable = "avx2,f16c")]
#[inline]
fn half_bytes(bytes: &[u8; 16]) -> __m256 {
    _mm256_cvtph_ps(super::load_half(bytes))
}

#[target_feature(enable = "avx2,fma,f16c")]
pub fn expand_keys(kind: KvType, bytes: &[u8], out: &mut [f32]) {
    check_keys(kind, bytes, out);
    let mut put = |d: usize, keys: [__m256; KEYS]| {
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

#[target_feature(enable = "avx2")]
pub fn transpose(x: &[f32], stride: usize, n: usize, out: &mut [f32]) {
    check_transpose(x, stride, n, out);
    let n_cols = out.len() / KEY_TILE;
    let mut j = 0;
    while j + LANES <= n {
        let mut c = 0;
        while c + LANES <= n_cols {
            let mut v = [_mm256_setzero_ps(); LANES];
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

/// An 8 × 8 matrix transposed.
#[target_feature(enable = "avx2")]
#[inline]
fn turned(v: [__m256; LANES]) -> [__m256; LANES] {
    let mut pairs = v;
    for i in 0..4 {
        pairs[2 * i] = _mm256_unpacklo_ps(v[2 * i], v[2 * i + 1]);
        pairs[2 * i + 1] = _mm256_unpackhi_ps(v[2 * i], v[2 * i + 1]);
    }
    let mut fours = v;
    for i in 0..2 {
        let [a, b, c, d] = [pairs[4 * i], pairs[4 * i + 1], pairs[4 * i + 2], pairs[4 * i + 3]];
        fours[4 * i] = _mm256_shuffle_ps::<0b01_00_01_00>(a, c);
        fours[4 * i + 1] = _mm256_shuffle_ps::<0b11_10_11_10>(a, c);
        fours[4 * i + 2] = _mm256_shuffle_ps::<0b01_00_01_00>(b, d);
        fours[4 * i + 3] = _mm256_shuffle_ps::<0b11_10_11_10>(b, d);
    }
    let mut whole = v;
    for i in 0..4 {
        whole[i] = _mm256_permute2f128_ps::<0x20>(fours[i], fours[i + 4]);
        whole[i + 4] = _mm256_permute2f128_ps::<0x31>(fours[i], fours[i + 4]);
    }
    whole
}
