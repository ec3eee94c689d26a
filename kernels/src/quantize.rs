//! Floats to the blocks of quantized tensors: what `mmq quantize` writes. Rounding of activations is
//! [`crate::Kernels::quantize`].

use crate::{Dtype, kernels};

/// How the blocks that stand for given weights are looked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Search {
    /// For the least weighted squared error.
    #[default]
    Best,
    /// As ggml's reference quantizers do: the same bytes.
    Ggml,
}

impl Dtype {
    /// Every type that weights can be written in.
    pub const QUANTIZABLE: [Dtype; 3] = [Dtype::F32, Dtype::F16, Dtype::BF16];

    /// Whether weights can be written in it.
    pub fn is_quantizable(self) -> bool {
        Dtype::QUANTIZABLE.contains(&self)
    }
}

/// Writes the rows `x: [n_rows, n_cols]` in blocks of `dtype`, on the calling thread. `importance: [n_cols]` weighs the squared
/// error of each column: mean squared activations, none below 0. A row's bytes depend on that row alone, and are the same at
/// every level.
///
/// # Panics
/// If weights cannot be written in the type, if `n_cols` is no whole number of blocks, or if the lengths do not fit together.
pub fn quantize(dtype: Dtype, search: Search, x: &[f32], n_cols: usize, importance: Option<&[f32]>, out: &mut [u8]) {
    let row_bytes = dtype.row_bytes(n_cols).expect("rows are whole blocks");
    assert!(dtype.is_quantizable() && n_cols > 0 && x.len().is_multiple_of(n_cols));
    assert!(importance.is_none_or(|w| w.len() == n_cols));
    assert_eq!(out.len(), x.len() / n_cols * row_bytes);
    (kernels().quantize_weights)(dtype, search, x, n_cols, importance, out);
}
