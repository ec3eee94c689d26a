//! The inner step of attention: query rows against one tile of keys and values.

use crate::attention::{Rows, Tile};

pub fn attend(rows: &mut Rows<'_>, tile: &Tile<'_>) {
    let width = rows.check(tile);
    for r in 0..rows.max.len() {
        let n = rows.n_keys[r];
        if n == 0 {
            continue;
        }
        let q = &rows.q[r * width..][..width];
        let acc = &mut rows.acc[r * width..][..width];
        let mut p: Vec<f32> = tile.k.chunks(width).take(n).map(|k| q.iter().zip(k).map(|(q, k)| q * k).sum()).collect();
        let max = p.iter().copied().fold(rows.max[r], f32::max);
        let shrink = (rows.max[r] - max).exp();
        p.iter_mut().for_each(|s| *s = (*s - max).exp());
        rows.max[r] = max;
        rows.sum[r] = rows.sum[r] * shrink + p.iter().sum::<f32>();
        acc.iter_mut().for_each(|a| *a *= shrink);
        for (p, v) in p.iter().zip(tile.v.chunks(width)) {
            for (a, v) in acc.iter_mut().zip(v) {
                *a += p * v;
            }
        }
    }
}
