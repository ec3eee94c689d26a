//! The inner step of attention: query rows against one tile of keys and values.
//!
//! Each score and each output element is summed in an order of its own, whatever rows it is computed with, so that
//! blocking over rows never shows in the result.

use super::activation::exp_negative;
use super::{LANES, load_floats, store_floats};
use crate::attention::{KEY_TILE, Rows, Tile};
use std::arch::x86_64::*;

/// Rows computed together: their sums with four keys, or four vectors of values, take twelve registers, a vector of each
/// row three more, and the last holds the key or value.
const GROUP: usize = 3;
type Scores = [[f32; LANES]; KEY_TILE / LANES];

#[target_feature(enable = "avx2,fma")]
pub fn attend(rows: &mut Rows<'_>, tile: &Tile<'_>) {
    let width = rows.check(tile) / LANES;
    let n_rows = rows.max.len();
    let mut r = 0;
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

/// Rows `r..r + R`, of `width` vectors.
#[target_feature(enable = "avx2,fma")]
#[inline]
fn group<const R: usize>(rows: &mut Rows<'_>, tile: &Tile<'_>, r: usize, width: usize) {
    let n_keys: &[usize; R] = rows.n_keys[r..].first_chunk().expect("the caller keeps to the rows");
    let most = n_keys.iter().copied().max().unwrap_or(0);
    if most == 0 {
        return;
    }
    let q = &rows.q.as_chunks::<LANES>().0[r * width..][..R * width];
    let k = tile.k.as_chunks::<LANES>().0;
    let v = tile.v.as_chunks::<LANES>().0;
    let acc = &mut rows.acc.as_chunks_mut::<LANES>().0[r * width..][..R * width];

    let mut p = [[[0.0; LANES]; KEY_TILE / LANES]; R];
    scores(q, k, width, most.div_ceil(4), &mut p);
    let mut shrink = [1.0; R];
    for i in 0..R {
        if n_keys[i] > 0 {
            shrink[i] = softmax(&mut p[i], n_keys[i], &mut rows.max[r + i], &mut rows.sum[r + i]);
        }
    }
    if n_keys.iter().all(|&n| n == most) {
        add_values(&p, shrink, v, most, width, acc);
    } else {
        for i in 0..R {
            add_values(&[p[i]], [shrink[i]], v, n_keys[i], width, &mut acc[i * width..][..width]);
        }
    }
}

/// `p[i][j] = q[i] · k[j]` for the first `4 · n_fours` keys.
#[target_feature(enable = "avx2,fma")]
#[inline]
fn scores<const R: usize>(q: &[[f32; LANES]], k: &[[f32; LANES]], width: usize, n_fours: usize, p: &mut [Scores; R]) {
    let mut rows = [&q[..0]; R];
    for (row, q) in rows.iter_mut().zip(q.chunks_exact(width)) {
        *row = q;
    }
    for (j, k) in k.chunks_exact(4 * width).take(n_fours).enumerate() {
        let (k01, k23) = k.split_at(2 * width);
        let ((k0, k1), (k2, k3)) = (k01.split_at(width), k23.split_at(width));
        let mut sums = [[_mm256_setzero_ps(); 4]; R];
        for d in 0..width {
            let mut q = [_mm256_setzero_ps(); R];
            for i in 0..R {
                q[i] = load_floats(&rows[i][d]);
            }
            for (c, k) in [k0, k1, k2, k3].into_iter().enumerate() {
                let k = load_floats(&k[d]);
                for i in 0..R {
                    sums[i][c] = _mm256_fmadd_ps(q[i], k, sums[i][c]);
                }
            }
        }
        for i in 0..R {
            let [a, b, c, d] = sums[i];
            let pairs = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
            let four = _mm_add_ps(_mm256_castps256_ps128(pairs), _mm256_extractf128_ps::<1>(pairs));
            let to: &mut [f32; 4] = &mut p[i][j / 2].as_chunks_mut().0[j % 2];
            // SAFETY: the reference covers the 16 bytes written; the store needs no alignment.
            unsafe { _mm_storeu_ps(to.as_mut_ptr(), four) };
        }
    }
}

/// Turns `n > 0` scores into weights `exp(score - max)`, those after them into zeros, and updates `max` and `sum`.
/// Returns the factor for what was gathered before.
#[target_feature(enable = "avx2,fma")]
#[inline]
fn softmax(p: &mut Scores, n: usize, max: &mut f32, sum: &mut f32) -> f32 {
    p.as_flattened_mut()[n..].fill(f32::NEG_INFINITY);
    let [a, b, c, d] = [load_floats(&p[0]), load_floats(&p[1]), load_floats(&p[2]), load_floats(&p[3])];
    let top = _mm256_max_ps(_mm256_max_ps(a, b), _mm256_max_ps(c, d));
    let top = _mm_max_ps(_mm256_castps256_ps128(top), _mm256_extractf128_ps::<1>(top));
    let top = _mm_max_ps(top, _mm_movehl_ps(top, top));
    let top = _mm_cvtss_f32(_mm_max_ss(top, _mm_movehdup_ps(top)));
    let mut shrink = 1.0;
    if top > *max {
        shrink = _mm256_cvtss_f32(exp_negative(_mm256_set1_ps(*max - top)));
        *max = top;
    }
    let top = _mm256_set1_ps(*max);
    let mut total = _mm256_setzero_ps();
    for p in &mut p[..n.div_ceil(LANES)] {
        let e = exp_negative(_mm256_sub_ps(load_floats(p), top));
        total = _mm256_add_ps(total, e);
        store_floats(p, e);
    }
    for p in &mut p[n.div_ceil(LANES)..] {
        *p = [0.0; LANES];
    }
    let total = _mm_add_ps(_mm256_castps256_ps128(total), _mm256_extractf128_ps::<1>(total));
    let total = _mm_add_ps(total, _mm_movehl_ps(total, total));
    let total = _mm_cvtss_f32(_mm_add_ss(total, _mm_movehdup_ps(total)));
    *sum = *sum * shrink + total;
    shrink
}

/// `acc[i] = acc[i] · shrink[i] + Σ_j p[i][j] · v[j]` over the first `n` keys.
#[target_feature(enable = "avx2,fma")]
#[inline]
fn add_values<const R: usize>(
    p: &[Scores; R],
    shrink: [f32; R],
    v: &[[f32; LANES]],
    n: usize,
    width: usize,
    acc: &mut [[f32; LANES]],
) {
    let mut at = 0;
    while at + 4 <= width {
        add_columns::<R, 4>(p, shrink, v, n, width, acc, at);
        at += 4;
    }
    if at + 2 <= width {
        add_columns::<R, 2>(p, shrink, v, n, width, acc, at);
        at += 2;
    }
    if at < width {
        add_columns::<R, 1>(p, shrink, v, n, width, acc, at);
    }
}

/// [`add_values`] for vectors `at..at + C`.
#[target_feature(enable = "avx2,fma")]
#[inline]
fn add_columns<const R: usize, const C: usize>(
    p: &[Scores; R],
    shrink: [f32; R],
    v: &[[f32; LANES]],
    n: usize,
    width: usize,
    acc: &mut [[f32; LANES]],
    at: usize,
) {
    let mut sums = [[_mm256_setzero_ps(); C]; R];
    for i in 0..R {
        for c in 0..C {
            sums[i][c] = _mm256_mul_ps(load_floats(&acc[i * width + at + c]), _mm256_set1_ps(shrink[i]));
        }
    }
    for (j, v) in v.chunks_exact(width).take(n.min(KEY_TILE)).enumerate() {
        let v: &[[f32; LANES]; C] = v[at..].first_chunk().expect("the columns lie inside the row");
        let mut weights = [_mm256_setzero_ps(); R];
        for i in 0..R {
            weights[i] = _mm256_set1_ps(p[i].as_flattened()[j % KEY_TILE]);
        }
        for c in 0..C {
            let v = load_floats(&v[c]);
            for i in 0..R {
                sums[i][c] = _mm256_fmadd_ps(weights[i], v, sums[i][c]);
            }
        }
    }
    for i in 0..R {
        for c in 0..C {
            store_floats(&mut acc[i * width + at + c], sums[i][c]);
        }
    }
}
