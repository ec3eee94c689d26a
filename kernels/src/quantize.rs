//! Floats to the blocks of quantized tensors: what `mmq quantize` writes. Rounding of activations is
//! [`crate::Kernels::quantize`].

mod batch;
mod ggml;
pub(crate) mod lanes;
mod pack;
mod reference;

use crate::{Dtype, kernels};
use batch::{Format, Rows};
use lanes::Lanes;
use std::marker::PhantomData;

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
    pub const QUANTIZABLE: [Dtype; 15] = {
        use Dtype::*;
        [F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS]
    };

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

/// Rows to blocks of a type that is no plain float, on lanes `V`: what every level's entry does.
pub(crate) fn quantize_on<V: Lanes>(
    dtype: Dtype,
    _search: Search,
    x: &[f32],
    n_cols: usize,
    importance: Option<&[f32]>,
    out: &mut [u8],
) {
    fn rows<V: Lanes, F: Format<W>, const W: usize>(
        x: &[f32],
        n_cols: usize,
        importance: Option<&[f32]>,
        out: &mut [u8],
    ) {
        V::call(Rows::<F, W> { x, n_cols, importance, out, format: PhantomData });
    }
    let rows = match dtype {
        Dtype::Q4_0 => rows::<V, reference::Q4_0, 32>,
        Dtype::Q4_1 => rows::<V, reference::Q4_1, 32>,
        Dtype::Q5_0 => rows::<V, reference::Q5_0, 32>,
        Dtype::Q5_1 => rows::<V, reference::Q5_1, 32>,
        Dtype::Q8_0 => rows::<V, reference::Q8_0, 32>,
        Dtype::Q2_K => rows::<V, reference::Q2_K, 256>,
        Dtype::Q3_K => rows::<V, reference::Q3_K, 256>,
        Dtype::Q4_K => rows::<V, reference::Q4_K, 256>,
        Dtype::Q5_K => rows::<V, reference::Q5_K, 256>,
        Dtype::Q6_K => rows::<V, reference::Q6_K, 256>,
        Dtype::IQ4_NL => rows::<V, reference::IQ4_NL, 32>,
        Dtype::IQ4_XS => rows::<V, reference::IQ4_XS, 256>,
        other => unreachable!("weights are not written in {other}"),
    };
    rows(x, n_cols, importance, out);
}
