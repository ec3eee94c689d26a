//! The inner step of attention for four or eight rows at a time; fewer go to the twin for AVX2.
//!
//! Scores, weights and sums are formed in the order of that twin, to the same bits, so that rows may be computed by either.

// Indices over arrays of registers, which iterators would hide.
#![allow(clippy::needless_range_loop)]

use super::{load_floats, store_floats};
use crate::attention::{KEY_TILE, Rows, Tile};
use crate::kv::KvType;
use crate::scalar::attention::{EXP2, TO_WHOLE};
use crate::x86::avx2;
use std::arch::x86_64::*;

/// Floats in a vector.
const LANES: usize = 16;
/// Vectors of keys in a tile.
const KEYS: usize = KEY_TILE / LANES;
/// Rows that share a load of values.
const VALUE_ROWS: usize = 4;
type Scores = [[f32; LANES]; KEYS];

pub fn attend(rows: &mut Rows<'_>, tile: &Tile<'_>) {
    rows.check(tile);
    // SAFETY: this function is in the table of processors with these features only.
    unsafe { groups(rows, tile) }
}

#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
fn groups(rows: &mut Rows<'_>, tile: &Tile<'_>) {
    let n_rows = rows.max.len();
    let mut r = 0;
    while r + 8 <= n_rows {
        group::<8>(rows, tile, r);
        r += 8;
    }
    if r + 4 <= n_rows {
        group::<4>(rows, tile, r);
        r += 4;
    }
    avx2::attention::attend_from(rows, tile, r);
}

/// Rows `r..r + R`.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
#[inline]
fn group<const R: usize>(rows: &mut Rows<'_>, tile: &Tile<'_>, r: usize) {
    let n_keys: &[usize; R] = rows.n_keys[r..].first_chunk().expect("the caller keeps to the rows");
    let (fewest, most) = n_keys.iter().fold((KEY_TILE, 0), |(a, b), &n| (a.min(n), b.max(n)));
    if most == 0 {
        return;
    }
    let (dim, width) = (tile.head_dim, tile.head_dim.next_multiple_of(8));
    let mut p = [[[0.0; LANES]; KEYS]; R];
    let q = &rows.q[r * dim..][..R * dim];
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
                acc[i * width..][..width].iter_mut().for_each(|x| *x *= shrink);
            }
        }
    }
    for (p, acc) in p.as_chunks::<VALUE_ROWS>().0.iter().zip(acc.chunks_exact_mut(VALUE_ROWS * width)) {
        add_values_of(p, tile.v, 0, fewest, acc);
    }
    if fewest < most {
        for i in 0..R {
            add_values_of(&[p[i]], tile.v, fewest, n_keys[i], &mut acc[i * width..][..width]);
        }
    }
}

/// The types of keys and values as constants.
const F32: u8 = 0;
const F16: u8 = 1;
const Q8_0: u8 = 2;
const Q4_0: u8 = 3;

/// `p[i][j] = q[i] · k[j]` for all keys of a tile; `q: [R, head_dim]`.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
#[inline]
fn scores<const R: usize, const KIND: u8>(q: &[f32], k: &[u8], p: &mut [Scores; R]) {
    let dim = q.len() / R;
    // A loop: `from_fn` would not be inlined.
    let mut rows = [&q[..dim]; R];
    for i in 1..R {
        rows[i] = &q[i * dim..][..dim];
    }
    let mut sums = [[_mm512_setzero_ps(); KEYS]; R];
    let mut add = |d: usize, keys: [__m512; KEYS]| {
        for i in 0..R {
            let q = _mm512_set1_ps(rows[i][d]);
            for c in 0..KEYS {
                sums[i][c] = _mm512_fmadd_ps(q, keys[c], sums[i][c]);
            }
        }
    };
    match KIND {
        F32 => {
            let k = &k.as_chunks::<{ 4 * KEY_TILE }>().0[..dim];
            for d in 0..dim {
                let k = k[d].as_chunks().0;
                add(d, [float_bytes(&k[0]), float_bytes(&k[1])]);
            }
        }
        F16 => {
            let k = &k.as_chunks::<{ 2 * KEY_TILE }>().0[..dim];
            for d in 0..dim {
                let k = k[d].as_chunks().0;
                add(d, [half_bytes(&k[0]), half_bytes(&k[1])]);
            }
        }
        _ => {
            let element_bytes = if KIND == Q8_0 { KEY_TILE } else { KEY_TILE / 2 };
            for (b, block) in k.chunks_exact(2 * KEY_TILE + 32 * element_bytes).enumerate() {
                let (factors, quants) = block.split_at(2 * KEY_TILE);
                let factors = factors.as_chunks().0;
                let factors = [half_bytes(&factors[0]), half_bytes(&factors[1])];
                for (d, q) in quants.chunks_exact(element_bytes).enumerate() {
                    let q = if KIND == Q8_0 {
                        let q = q.as_chunks::<16>().0;
                        [load16(&q[0]), load16(&q[1])]
                    } else {
                        split_nibbles(&q.as_chunks::<16>().0[0])
                    };
                    let keys = [_mm512_mul_ps(small(q[0]), factors[0]), _mm512_mul_ps(small(q[1]), factors[1])];
                    add(32 * b + d, keys);
                }
            }
        }
    }
    for i in 0..R {
        for c in 0..KEYS {
            store_floats(&mut p[i][c], sums[i][c]);
        }
    }
}

/// Turns `n > 0` scores into weights `2^(score - max)`, those after them into next to nothing, and updates `max` and
/// `sum`. Returns the factor for what was gathered before.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
#[inline]
fn softmax(p: &mut Scores, n: usize, max: &mut f32, sum: &mut f32) -> f32 {
    let seen = u32::MAX >> (KEY_TILE - n.clamp(1, KEY_TILE));
    let unseen = _mm512_set1_ps(f32::NEG_INFINITY);
    let s = [
        _mm512_mask_mov_ps(unseen, seen as u16, load_floats(&p[0])),
        _mm512_mask_mov_ps(unseen, (seen >> LANES) as u16, load_floats(&p[1])),
    ];
    let top = _mm512_max_ps(s[0], s[1]);
    let mut shrink = 1.0;
    if _mm512_cmp_ps_mask::<_CMP_GT_OQ>(top, _mm512_set1_ps(*max)) != 0 {
        let top = _mm512_reduce_max_ps(top);
        shrink = _mm512_cvtss_f32(exp2_negative(_mm512_set1_ps(*max - top)));
        *max = top;
    }
    let top = _mm512_set1_ps(*max);
    let e = [exp2_negative(_mm512_sub_ps(s[0], top)), exp2_negative(_mm512_sub_ps(s[1], top))];
    store_floats(&mut p[0], e[0]);
    store_floats(&mut p[1], e[1]);
    let total = _mm512_add_ps(e[0], e[1]);
    let total = _mm256_add_ps(_mm512_castps512_ps256(total), _mm512_extractf32x8_ps::<1>(total));
    let total = _mm_add_ps(_mm256_castps256_ps128(total), _mm256_extractf128_ps::<1>(total));
    let total = _mm_add_ps(total, _mm_movehl_ps(total, total));
    let total = _mm_cvtss_f32(_mm_add_ss(total, _mm_movehdup_ps(total)));
    *sum = *sum * shrink + total;
    shrink
}

/// `2^x` for `x <= 0`, as the twin has it.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
#[inline]
fn exp2_negative(x: __m512) -> __m512 {
    let x = _mm512_max_ps(_mm512_set1_ps(-126.0), x);
    let sum = _mm512_add_ps(x, _mm512_set1_ps(TO_WHOLE));
    let r = _mm512_sub_ps(x, _mm512_sub_ps(sum, _mm512_set1_ps(TO_WHOLE)));
    let mut p = _mm512_set1_ps(EXP2[4]);
    for c in EXP2[..4].iter().rev() {
        p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(*c));
    }
    let p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0));
    let power = _mm512_slli_epi32::<23>(_mm512_castps_si512(sum));
    _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(p), power))
}

/// `acc[i] += Σ_j p[i][j] · v[j]` over keys `from..to`; `acc: [R, width]`.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
#[inline]
fn add_values_of<const R: usize>(p: &[Scores; R], (kind, v): (KvType, &[u8]), from: usize, to: usize, acc: &mut [f32]) {
    if from >= to {
        return;
    }
    match kind {
        KvType::F32 => add_values::<R, F32>(p, v, from, to, acc),
        KvType::F16 => add_values::<R, F16>(p, v, from, to, acc),
        KvType::Q8_0 => add_values::<R, Q8_0>(p, v, from, to, acc),
        KvType::Q4_0 => add_values::<R, Q4_0>(p, v, from, to, acc),
    }
}

/// [`add_values_of`] for one type.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
#[inline]
fn add_values<const R: usize, const KIND: u8>(p: &[Scores; R], v: &[u8], from: usize, to: usize, acc: &mut [f32]) {
    let width = acc.len() / R;
    let mut at = 0;
    while at + 4 * LANES <= width {
        add_columns::<R, 4, KIND>(p, v, from, to, width, acc, at);
        at += 4 * LANES;
    }
    // Quantized rows are whole blocks of two vectors.
    if at + 2 * LANES <= width {
        add_columns::<R, 2, KIND>(p, v, from, to, width, acc, at);
        at += 2 * LANES;
    }
    if KIND == F32 || KIND == F16 {
        while at < width {
            add_columns::<R, 1, KIND>(p, v, from, to, width, acc, at);
            at += LANES;
        }
    }
}

/// [`add_values`] for elements `at..` of the rows, `C` vectors of them; the last one may be half a vector.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
#[inline]
fn add_columns<const R: usize, const C: usize, const KIND: u8>(
    p: &[Scores; R],
    v: &[u8],
    from: usize,
    to: usize,
    width: usize,
    acc: &mut [f32],
    at: usize,
) {
    let half = at + C * LANES > width;
    let mut sums = [[_mm512_setzero_ps(); C]; R];
    for i in 0..R {
        for c in 0..C {
            sums[i][c] = load_columns(&acc[i * width + at + c * LANES..], half);
        }
    }
    let row_bytes = v.len() / KEY_TILE;
    for (j, v) in v.chunks_exact(row_bytes).enumerate().take(to.min(KEY_TILE)).skip(from) {
        let mut values = [_mm512_setzero_ps(); C];
        if half {
            values[0] = match KIND {
                F32 => _mm512_castps256_ps512(low_floats(&v[4 * at..])),
                _ => _mm512_castps256_ps512(_mm256_cvtph_ps(load16(start(&v[2 * at..])))),
            };
        } else {
            for c in 0..C {
                values[c] = match KIND {
                    F32 => float_bytes(start(&v[4 * (at + c * LANES)..])),
                    F16 => half_bytes(start(&v[2 * (at + c * LANES)..])),
                    _ => values[c],
                };
            }
        }
        if KIND == Q8_0 || KIND == Q4_0 {
            for (b, values) in values.as_chunks_mut::<2>().0.iter_mut().enumerate() {
                *values = value_block::<KIND>(v, at / 32 + b);
            }
        }
        for i in 0..R {
            let weight = _mm512_set1_ps(p[i].as_flattened()[j]);
            for c in 0..C {
                sums[i][c] = _mm512_fmadd_ps(weight, values[c], sums[i][c]);
            }
        }
    }
    for i in 0..R {
        for c in 0..C {
            store_columns(&mut acc[i * width + at + c * LANES..], half, sums[i][c]);
        }
    }
}

/// Block `b` of a quantized row.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
#[inline]
fn value_block<const KIND: u8>(row: &[u8], b: usize) -> [__m512; 2] {
    let (d, q) = if KIND == Q8_0 {
        let block: &[u8; 34] = &row.as_chunks().0[b];
        let q = block[2..].as_chunks::<16>().0;
        ([block[0], block[1]], [load16(&q[0]), load16(&q[1])])
    } else {
        let block: &[u8; 18] = &row.as_chunks().0[b];
        ([block[0], block[1]], split_nibbles(&block[2..].as_chunks::<16>().0[0]))
    };
    let d = _mm512_broadcastss_ps(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(u16::from_le_bytes(d)))));
    [_mm512_mul_ps(small(q[0]), d), _mm512_mul_ps(small(q[1]), d)]
}

/// The low nibbles of 16 bytes, and the high ones, less 8.
#[target_feature(enable = "avx2")]
#[inline]
fn split_nibbles(bytes: &[u8; 16]) -> [__m128i; 2] {
    let (v, mask, eight) = (load16(bytes), _mm_set1_epi8(15), _mm_set1_epi8(8));
    let high = _mm_and_si128(_mm_srli_epi16::<4>(v), mask);
    [_mm_sub_epi8(_mm_and_si128(v, mask), eight), _mm_sub_epi8(high, eight)]
}

/// Small whole numbers as floats.
#[target_feature(enable = "avx512f")]
#[inline]
fn small(q: __m128i) -> __m512 {
    _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(q))
}

fn start<const N: usize>(bytes: &[u8]) -> &[u8; N] {
    bytes.first_chunk().expect("the columns lie inside the row")
}

#[target_feature(enable = "avx2")]
#[inline]
fn load16(bytes: &[u8; 16]) -> __m128i {
    // SAFETY: 16 bytes are readable, and the load needs no alignment.
    unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
}

#[target_feature(enable = "avx512f")]
#[inline]
fn float_bytes(bytes: &[u8; 64]) -> __m512 {
    // SAFETY: 64 bytes are readable, and the load needs no alignment.
    unsafe { _mm512_loadu_ps(bytes.as_ptr().cast()) }
}

/// Eight floats.
#[target_feature(enable = "avx2")]
#[inline]
fn low_floats(bytes: &[u8]) -> __m256 {
    let bytes: &[u8; 32] = start(bytes);
    // SAFETY: 32 bytes are readable, and the load needs no alignment.
    unsafe { _mm256_loadu_ps(bytes.as_ptr().cast()) }
}

/// Sixteen F16 numbers.
#[target_feature(enable = "avx512f")]
#[inline]
fn half_bytes(bytes: &[u8; 32]) -> __m512 {
    // SAFETY: 32 bytes are readable, and the load needs no alignment.
    _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) })
}

/// Sixteen floats, or eight.
#[target_feature(enable = "avx512f")]
#[inline]
fn load_columns(from: &[f32], half: bool) -> __m512 {
    if half {
        let from: &[f32; 8] = from.first_chunk().expect("the columns lie inside the row");
        // SAFETY: 8 floats are readable, and no more are read.
        return unsafe { _mm512_maskz_loadu_ps(0xff, from.as_ptr()) };
    }
    load_floats(from.first_chunk().expect("the columns lie inside the row"))
}

/// Sixteen floats, or eight.
#[target_feature(enable = "avx512f")]
#[inline]
fn store_columns(to: &mut [f32], half: bool, v: __m512) {
    if half {
        let to: &mut [f32; 8] = to.first_chunk_mut().expect("the columns lie inside the row");
        // SAFETY: 8 floats are writable, and no more are written.
        return unsafe { _mm512_mask_storeu_ps(to.as_mut_ptr(), 0xff, v) };
    }
    store_floats(to.first_chunk_mut().expect("the columns lie inside the row"), v);
}
