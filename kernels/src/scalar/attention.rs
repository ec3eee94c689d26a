//! The inner step of attention: query rows against one tile of keys and values; and tiles made of rows and blocks.

use crate::attention::{KEY_TILE, ROW_STEP, Rows, Tile};
use crate::kv::KvType;
use half::f16;

pub fn attend(rows: &mut Rows<'_>, tile: &Tile<'_>) {
    let width = rows.check(tile);
    let dim = tile.head_dim;
    let (mut k, mut v) = (vec![0.0; KEY_TILE * width], vec![0.0; KEY_TILE * width]);
    expand_keys(tile.k.0, tile.k.1, &mut k);
    super::dequantize::dequantize(tile.v.0.dtype(), tile.v.1, &mut v);
    for r in 0..rows.max.len() {
        let n = rows.n_keys[r];
        if n == 0 {
            continue;
        }
        let mut p = [0.0f32; KEY_TILE];
        for (q, k) in rows.q[r * dim..][..dim].iter().zip(k.as_chunks::<KEY_TILE>().0) {
            p.iter_mut().zip(k).for_each(|(p, k)| *p += q * k);
        }
        let p = &mut p[..n];
        let max = p.iter().copied().fold(rows.max[r], f32::max);
        let shrink = (rows.max[r] - max).exp2();
        p.iter_mut().for_each(|s| *s = (*s - max).exp2());
        rows.max[r] = max;
        rows.sum[r] = rows.sum[r] * shrink + p.iter().sum::<f32>();
        let acc = &mut rows.acc[r * width..][..width];
        acc.iter_mut().for_each(|a| *a *= shrink);
        for (p, v) in p.iter().zip(v.chunks(width)) {
            for (a, v) in acc.iter_mut().zip(v) {
                *a += p * v;
            }
        }
    }
}

/// Panics unless `out` holds the floats of a tile of keys in `bytes`.
pub(crate) fn check_keys(kind: KvType, bytes: &[u8], out: &[f32]) {
    assert!(out.len().is_multiple_of(KEY_TILE * kind.block().max(ROW_STEP)));
    assert_eq!(bytes.len(), kind.tile_bytes(out.len() / KEY_TILE));
}

/// See [`crate::Kernels::expand_keys`].
pub fn expand_keys(kind: KvType, bytes: &[u8], out: &mut [f32]) {
    check_keys(kind, bytes, out);
    let (KvType::Q8_0 | KvType::Q4_0) = kind else {
        return super::dequantize::dequantize(kind.dtype(), bytes, out);
    };
    let block_bytes = KEY_TILE * kind.dtype().block().1;
    for (block, out) in bytes.chunks_exact(block_bytes).zip(out.chunks_exact_mut(32 * KEY_TILE)) {
        let (factors, quants) = block.split_at(2 * KEY_TILE);
        for (quants, out) in quants.chunks_exact(quants.len() / 32).zip(out.chunks_exact_mut(KEY_TILE)) {
            for (j, (out, d)) in out.iter_mut().zip(factors.as_chunks::<2>().0).enumerate() {
                let q = match kind {
                    KvType::Q8_0 => quants[j] as i8,
                    _ => (quants[j % 16] >> (j / 16 * 4) & 15) as i8 - 8,
                };
                *out = f16::from_le_bytes(*d).to_f32() * f32::from(q);
            }
        }
    }
}

/// Panics unless `out: [n_cols, KEY_TILE]` can take the beginnings of `n` rows of `x`.
pub(crate) fn check_transpose(x: &[f32], stride: usize, n: usize, out: &[f32]) {
    let n_cols = out.len() / KEY_TILE;
    assert!(n <= KEY_TILE && out.len().is_multiple_of(KEY_TILE) && n_cols <= stride);
    assert!(n == 0 || (n - 1) * stride + n_cols <= x.len());
}

/// See [`crate::Kernels::transpose`].
pub fn transpose(x: &[f32], stride: usize, n: usize, out: &mut [f32]) {
    check_transpose(x, stride, n, out);
    for j in 0..n {
        for (to, x) in out.chunks_exact_mut(KEY_TILE).zip(&x[j * stride..]) {
            to[j] = *x;
        }
    }
}

/// `2^r = 1 + r · Σ EXP2[i] rⁱ` for `|r| <= 1/2`, to 1.1e-7 of the value: a minimax fit, for the levels that have vectors.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
// The first is near ln 2, but belongs to the fit.
#[allow(clippy::approx_constant)]
pub(crate) const EXP2: [f32; 5] = [0.693_147, 0.240_222_42, 0.055_507_336, 0.009_671_513, 0.001_326_472_7];

/// Added to a number of moderate size, it leaves the nearest whole one in the last bits of the sum.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub(crate) const TO_WHOLE: f32 = 12_582_912.0;
