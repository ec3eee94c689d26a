//! Float weights to 8 bits when a model is loaded: Q8_0 blocks, interleaved.

use crate::block::Q8_0;
use crate::interleave::interleave;
use crate::panel::PANEL_ROWS;
use crate::{Dtype, Level, kernels};
use half::f16;
use std::cell::RefCell;

/// What a thread keeps between panels.
#[derive(Default)]
struct Scratch {
    floats: Vec<f32>,
    blocks: Vec<u8>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// How finely weights are rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Steps {
    /// 63 on either side of zero: AVX2 multiplies those half as fast again.
    Coarse,
    /// 127 on either side of zero.
    Fine,
}

impl Steps {
    /// What is best for the kernels of `level`.
    pub fn of(level: Level) -> Steps {
        if level == Level::Avx2 { Steps::Coarse } else { Steps::Fine }
    }
}

/// Rounds 16 rows or fewer of `n_cols` float weights, which lie one after the other in `rows`, to Q8_0: each 32 weights to the
/// nearest of steps that reach up to the largest of them. 16 rows are interleaved.
///
/// # Panics
/// If the type is not runnable, a row is no multiple of 32 long, or the lengths do not fit together.
pub fn round(dtype: Dtype, rows: &[u8], n_cols: usize, steps: Steps, panel: &mut [u8]) {
    let steps = if steps == Steps::Coarse { 63.0 } else { 127.0 };
    let stored = dtype.row_bytes(n_cols).expect("rows hold whole blocks");
    let made = Dtype::Q8_0.row_bytes(n_cols).expect("rows are a multiple of 32 long");
    let n_rows = rows.len() / stored;
    assert!(n_rows <= PANEL_ROWS && rows.len() == n_rows * stored && panel.len() == n_rows * made);
    SCRATCH.with_borrow_mut(|Scratch { floats, blocks }| {
        floats.resize(n_cols, 0.0);
        blocks.clear();
        for row in rows.chunks_exact(stored) {
            (kernels().dequantize)(dtype, row, floats);
            for x in floats.as_chunks::<32>().0 {
                let Q8_0 { d, qs } = block(x, steps);
                blocks.extend_from_slice(&d);
                blocks.extend_from_slice(&qs);
            }
        }
        if n_rows == PANEL_ROWS {
            interleave(Dtype::Q8_0, blocks, panel);
        } else {
            panel.copy_from_slice(blocks);
        }
    });
}

/// The nearest block with quants of at most `steps`.
fn block(x: &[f32; 32], steps: f32) -> Q8_0 {
    let max = x.iter().fold(0.0, |max: f32, x| max.max(x.abs()));
    let d = f16::from_f32(max / steps);
    let factor = if d.to_f32() > 0.0 { 1.0 / d.to_f32() } else { 0.0 };
    // Added to a small number, this leaves the nearest integer in the lowest bits.
    const ROUND: f32 = 1.5 * (1 << 23) as f32;
    Q8_0 { d: d.to_le_bytes(), qs: x.map(|x| ((x * factor).clamp(-steps, steps) + ROUND).to_bits() as u8) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_near() {
        let x: [f32; 32] = std::array::from_fn(|i| ((i * i * 7) as f32).sin() * 0.03);
        for steps in [63.0, 127.0] {
            let Q8_0 { d, qs } = block(&x, steps);
            let d = f16::from_le_bytes(d).to_f32();
            for (x, q) in x.iter().zip(qs) {
                let q = f32::from(q as i8);
                assert!(q.abs() <= steps && (x - d * q).abs() <= d * 0.51, "{x} {q}");
            }
        }
        assert_eq!(block(&[0.0; 32], 63.0).qs, [0; 32]);
        // Broken weights stay recognisable as such.
        assert!(f16::from_le_bytes(block(&[f32::INFINITY; 32], 63.0).d).is_infinite());
    }

    #[test]
    fn rows_stay_in_order() {
        let n_cols = 64;
        for n_rows in [PANEL_ROWS, 5] {
            let floats: Vec<f32> = (0..n_rows * n_cols).map(|i| ((i * 7919) as f32).sin()).collect();
            let stored: Vec<u8> = floats.iter().flat_map(|x| x.to_le_bytes()).collect();
            let row_bytes = n_cols / 32 * 34;
            let mut panel = vec![0; n_rows * row_bytes];
            round(Dtype::F32, &stored, n_cols, Steps::Fine, &mut panel);
            for r in 0..n_rows {
                let mut row = panel[r * row_bytes..(r + 1) * row_bytes].to_vec();
                if n_rows == PANEL_ROWS {
                    crate::interleave::row(Dtype::Q8_0, &panel, r, &mut row);
                }
                let mut back = vec![0.0; n_cols];
                (kernels().dequantize)(Dtype::Q8_0, &row, &mut back);
                let errors = back.iter().zip(&floats[r * n_cols..]).map(|(a, b)| (a - b).abs());
                assert!(errors.fold(0.0, f32::max) < 0.005, "row {r} of {n_rows}");
            }
        }
    }
}
