//! Float weights to 8 bits when a model is loaded: Q8_0 blocks, interleaved.

use crate::block::Q8_0;
use crate::interleave::{deinterleave, interleave};
use crate::panel::PANEL_ROWS;
use crate::stop::stopped;
use crate::team::Disjoint;
use crate::{Dtype, Layout, Level, Team, Weights, kernels};
use half::f16;
use std::cell::RefCell;

/// What a thread keeps between panels.
#[derive(Default)]
struct Scratch {
    floats: Vec<f32>,
    rows: Vec<u8>,
    apart: Vec<u8>,
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

/// Writes the matrix `weights` in Q8_0 to `out`, laid out as [`Layout::Panels`]. Each 32 weights are rounded to the nearest of
/// steps that reach up to the largest of them.
///
/// # Panics
/// If the type is not runnable, the rows are no multiple of 32 long, or `out` is not as long as the result.
pub fn to_q8_0(team: &Team, weights: Weights<'_>, steps: Steps, out: &mut [u8]) {
    let k = kernels();
    let steps = if steps == Steps::Coarse { 63.0 } else { 127.0 };
    let Weights { dtype, layout, n_rows, n_cols, data } = weights;
    assert!(dtype.is_runnable() && n_cols.is_multiple_of(32));
    let stored = dtype.row_bytes(n_cols).expect("weights hold whole blocks");
    let row_bytes = Dtype::Q8_0.row_bytes(n_cols).expect("a multiple of 32");
    assert_eq!(data.len(), n_rows * stored);
    assert_eq!(out.len(), n_rows * row_bytes);
    let to = Disjoint::new(out);
    team.split(n_rows.div_ceil(PANEL_ROWS), 1, &|panels| {
        SCRATCH.with_borrow_mut(|Scratch { floats, rows, apart }| {
            for first in panels.map(|p| p * PANEL_ROWS).take_while(|_| !stopped()) {
                let last = n_rows.min(first + PANEL_ROWS);
                rows.clear();
                let from = &data[first * stored..last * stored];
                let from = if layout == Layout::Panels && last - first == PANEL_ROWS {
                    apart.resize(from.len(), 0);
                    deinterleave(dtype, from, apart);
                    apart.as_slice()
                } else {
                    from
                };
                for row in from.chunks_exact(stored) {
                    floats.resize(n_cols, 0.0);
                    (k.dequantize)(dtype, row, floats);
                    for x in floats.as_chunks::<32>().0 {
                        let Q8_0 { d, qs } = block(x, steps);
                        rows.extend_from_slice(&d);
                        rows.extend_from_slice(&qs);
                    }
                }
                // SAFETY: each panel belongs to one part, and panels do not overlap.
                let to = unsafe { to.get(first * row_bytes..last * row_bytes) };
                if last - first == PANEL_ROWS {
                    interleave(Dtype::Q8_0, rows, to);
                } else {
                    to.copy_from_slice(rows);
                }
            }
        });
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

    fn rounded(n_threads: usize, weights: Weights<'_>, steps: Steps) -> Vec<u8> {
        let mut out = vec![0; weights.n_rows * weights.n_cols / 32 * 34];
        to_q8_0(&Team::new(n_threads), weights, steps, &mut out);
        out
    }

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
    fn panels_hold_the_rows_in_order() {
        let (n_rows, n_cols) = (37, 64);
        let floats: Vec<f32> = (0..n_rows * n_cols).map(|i| ((i * 7919) as f32).sin()).collect();
        let data: Vec<u8> = floats.iter().flat_map(|x| x.to_le_bytes()).collect();
        let weights = Weights { dtype: Dtype::F32, layout: Layout::Rows, n_rows, n_cols, data: &data };
        let bytes = rounded(2, weights, Steps::Fine);
        assert_eq!(bytes, rounded(1, weights, Steps::Fine));
        let row_bytes = n_cols / 32 * 34;
        for r in 0..n_rows {
            let mut row = vec![0; row_bytes];
            if r < 32 {
                let panel = &bytes[r / PANEL_ROWS * PANEL_ROWS * row_bytes..][..PANEL_ROWS * row_bytes];
                crate::interleave::row(Dtype::Q8_0, panel, r % PANEL_ROWS, &mut row);
            } else {
                row.copy_from_slice(&bytes[r * row_bytes..][..row_bytes]);
            }
            let mut back = vec![0.0; n_cols];
            (kernels().dequantize)(Dtype::Q8_0, &row, &mut back);
            let errors = back.iter().zip(&floats[r * n_cols..]).map(|(a, b)| (a - b).abs());
            assert!(errors.fold(0.0, f32::max) < 0.005, "row {r}");
        }
    }

    #[test]
    fn interleaved_weights_round_alike() {
        let (n_rows, n_cols) = (21, 64);
        let data: Vec<u8> = (0..n_rows * n_cols).flat_map(|i| ((i * 7919) as f32).sin().to_le_bytes()).collect();
        let row_bytes = 4 * n_cols;
        let mut panels = data.clone();
        interleave(Dtype::F32, &data[..PANEL_ROWS * row_bytes], &mut panels[..PANEL_ROWS * row_bytes]);
        let [rows, panels] = [(Layout::Rows, &data), (Layout::Panels, &panels)].map(|(layout, data)| {
            rounded(2, Weights { dtype: Dtype::F32, layout, n_rows, n_cols, data }, Steps::Coarse)
        });
        assert_eq!(rows, panels);
    }

    /// The directions of products stay what they are, also where some of the inputs are a hundred times the others.
    #[test]
    fn products_stay_near_with_outliers() {
        use crate::{Activations, Input, Norm, Product, Then, matmul};
        let (n_rows, n_cols, n_tokens) = (192, 256, 24);
        let mut seed = 1u64;
        let mut random = || {
            let mut uniform = || {
                seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                (seed >> 40) as f32 / (1 << 24) as f32 - 0.5
            };
            uniform() + uniform() + uniform()
        };
        let w: Vec<u8> = (0..n_rows * n_cols).flat_map(|_| (0.05 * random()).to_le_bytes()).collect();
        let x: Vec<f32> = (0..n_tokens * n_cols)
            .map(|i| random() * if [37, 160].contains(&(i % n_cols)) { 100.0 } else { 1.0 })
            .collect();
        let team = Team::new(2);
        let multiply = |weights: Weights<'_>| {
            let mut out = vec![0.0; n_tokens * n_rows];
            let product = Product { weights, bias: None, then: Then::Store, out: &mut out };
            let input = Input { x: &x, n_cols, norm: Norm::None };
            matmul(&team, input, &mut Activations::default(), &mut [product]);
            out
        };
        let weights = Weights { dtype: Dtype::F32, layout: Layout::Rows, n_rows, n_cols, data: &w };
        let exact = multiply(weights);
        for steps in [Steps::Coarse, Steps::Fine] {
            let data = rounded(2, weights, steps);
            let near = multiply(Weights { dtype: Dtype::Q8_0, layout: Layout::Panels, data: &data, ..weights });
            let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
            for (a, b) in exact.chunks_exact(n_rows).zip(near.chunks_exact(n_rows)) {
                let cosine = dot(a, b) / (dot(a, a) * dot(b, b)).sqrt();
                assert!(cosine > 0.999, "{steps:?}: cosine {cosine}");
            }
        }
    }
}
