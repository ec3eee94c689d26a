//! Matrix product of stored weights with float activations.
//!
//! Quantized weights multiply activations that are rounded to 8 bits in blocks of 32 (integer dot products, float scales);
//! F32, F16 and BF16 weights multiply the float activations as they are. Each output element is summed in an order that
//! depends on the row length alone: never on the number of rows, of tokens, or of threads.

use crate::{Dtype, Team, kernels};

/// A row-major matrix of stored weights.
#[derive(Clone, Copy)]
pub struct Weights<'a> {
    /// Element type; must be runnable.
    pub dtype: Dtype,
    /// Output features.
    pub n_rows: usize,
    /// Input features; a whole number of blocks.
    pub n_cols: usize,
    /// `n_rows` rows of `dtype.row_bytes(n_cols)` bytes.
    pub data: &'a [u8],
}

/// Activations made ready for products: `[n_tokens, n_cols]` floats and, when a weight asks for it, their 8-bit form.
/// The buffers are kept from call to call.
#[derive(Default)]
pub struct Activations {}

impl Activations {
    /// Forgets the 8-bit form: call it when the floats that follow are not those of the call before.
    pub fn reset(&mut self) {}
}

/// `out[t, r] = Σ_c w[r, c] · x[t, c]`, with `x: [n_tokens, n_cols]` and `out: [n_tokens, n_rows]`.
///
/// `act` keeps the rounded form of `x` between the products that share it (q, k and v; gate and up).
pub fn matmul(team: &Team, w: Weights<'_>, x: &[f32], act: &mut Activations, out: &mut [f32]) {
    let _ = act;
    let row_bytes = w.dtype.row_bytes(w.n_cols).expect("weights hold whole blocks");
    assert_eq!(w.data.len(), w.n_rows * row_bytes);
    let n_tokens = x.len() / w.n_cols;
    assert_eq!((x.len(), out.len()), (n_tokens * w.n_cols, n_tokens * w.n_rows));
    let _ = team;
    let mut row = vec![0.0; w.n_cols];
    for r in 0..w.n_rows {
        (kernels().dequantize)(w.dtype, &w.data[r * row_bytes..(r + 1) * row_bytes], &mut row);
        for t in 0..n_tokens {
            let x = &x[t * w.n_cols..(t + 1) * w.n_cols];
            out[t * w.n_rows + r] = x.iter().zip(&row).map(|(a, b)| a * b).sum();
        }
    }
}
