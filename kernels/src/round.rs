//! Float weights to 8 bits when a model is loaded: Q8_0 blocks, interleaved.

use crate::block::Q8_0;
use crate::interleave::interleave;
use crate::panel::PANEL_ROWS;
use crate::team::Disjoint;
use crate::{Dtype, Kernels, Layout, Team, Weights, kernels};
use half::f16;
use std::cell::RefCell;

/// What a thread keeps between panels.
#[derive(Default)]
struct Scratch {
    floats: Vec<f32>,
    q: Vec<i8>,
    scale: Vec<f32>,
    sums: Vec<f32>,
    totals: Vec<i32>,
    rows: Vec<u8>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// The matrix `weights` in Q8_0, laid out as [`Layout::Panels`]. Each 32 weights are rounded to the nearest of 255 steps that
/// reach up to the largest of them.
///
/// # Panics
/// If the type is not runnable, the rows are not stored one after the other, or are no multiple of 32 long.
pub fn to_q8_0(team: &Team, weights: Weights<'_>) -> Vec<u8> {
    to_q8_0_with(kernels(), team, weights)
}

/// [`to_q8_0`] with the kernels of a chosen level.
pub fn to_q8_0_with(k: &Kernels, team: &Team, weights: Weights<'_>) -> Vec<u8> {
    let Weights { dtype, layout, n_rows, n_cols, data } = weights;
    assert!(dtype.is_runnable() && layout == Layout::Rows && n_cols.is_multiple_of(32));
    let stored = dtype.row_bytes(n_cols).expect("weights hold whole blocks");
    let row_bytes = Dtype::Q8_0.row_bytes(n_cols).expect("a multiple of 32");
    assert_eq!(data.len(), n_rows * stored);
    let mut out = vec![0; n_rows * row_bytes];
    let to = Disjoint::new(&mut out);
    team.split(n_rows.div_ceil(PANEL_ROWS), 1, &|panels| {
        SCRATCH.with_borrow_mut(|scratch| {
            for first in panels.map(|p| p * PANEL_ROWS) {
                let last = n_rows.min(first + PANEL_ROWS);
                scratch.rows.clear();
                for row in data[first * stored..last * stored].chunks_exact(stored) {
                    scratch.round(k, dtype, row, n_cols);
                }
                // SAFETY: each panel belongs to one part, and panels do not overlap.
                let to = unsafe { to.get(first * row_bytes..last * row_bytes) };
                if last - first == PANEL_ROWS {
                    interleave(Dtype::Q8_0, &scratch.rows, to);
                } else {
                    to.copy_from_slice(&scratch.rows);
                }
            }
        });
    });
    out
}

impl Scratch {
    /// Appends the stored `row` of `n` weights to `rows`.
    fn round(&mut self, k: &Kernels, dtype: Dtype, row: &[u8], n: usize) {
        self.floats.resize(n, 0.0);
        self.q.resize(n, 0);
        self.scale.resize(n / 32, 0.0);
        self.sums.resize(n / 16 + n / 32, 0.0);
        self.totals.resize(n / 32, 0);
        let (sum16, sum32) = self.sums.split_at_mut(n / 16);
        (k.dequantize)(dtype, row, &mut self.floats);
        (k.quantize)(&self.floats, &mut self.q, &mut self.scale, sum16, sum32, &mut self.totals);
        for (q, scale) in self.q.as_chunks::<32>().0.iter().zip(&self.scale) {
            let Q8_0 { d, qs } = Q8_0 { d: f16::from_f32(*scale).to_le_bytes(), qs: q.map(|q| q as u8) };
            self.rows.extend_from_slice(&d);
            self.rows.extend_from_slice(&qs);
        }
    }
}
