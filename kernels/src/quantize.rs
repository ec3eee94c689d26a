//! Floats to the blocks of quantized tensors: what `mmq quantize` writes. Rounding of activations is
//! [`crate::Kernels::quantize`].

mod batch;
mod best;
mod ggml;
pub(crate) mod lanes;
mod least;
mod pack;
mod points;
mod points_best;
mod points_ggml;
mod points_pack;
mod reference;
mod small;

use crate::{Dtype, kernels};
use batch::{Format, Rows};
use lanes::Lanes;
use std::marker::PhantomData;

/// How the blocks that stand for given weights are looked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Search {
    /// For the least squared error, weighted by importance and size.
    #[default]
    Best,
    /// As ggml's reference quantizers do: the same bytes.
    Ggml,
}

impl Dtype {
    /// Every type that weights can be written in.
    pub const QUANTIZABLE: [Dtype; 28] = Dtype::RUNNABLE;

    /// Whether ggml does not write it without an importance matrix, since the result is poor (the embeddings and the output of a
    /// model aside). [`quantize`] does.
    pub fn wants_importance(self) -> bool {
        use Dtype::*;
        matches!(self, IQ3_XXS | IQ2_S | IQ2_XS | IQ2_XXS | IQ1_M | IQ1_S)
    }

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
    kernels().quantize_weights()(dtype, search, x, n_cols, importance, out);
}

/// Rows to blocks of a type that is no plain float: what every level's entry does. Types whose blocks are independent of one
/// another in all steps take as many of them at a time as `V` has lanes; the others work with `P` within a block.
pub(crate) fn quantize_on<V: Lanes, P: Lanes>(
    dtype: Dtype,
    search: Search,
    x: &[f32],
    n_cols: usize,
    importance: Option<&[f32]>,
    out: &mut [u8],
) {
    match dtype {
        Dtype::TQ1_0 | Dtype::TQ2_0 | Dtype::MXFP4 | Dtype::NVFP4 => {
            return P::call(small::Rows { dtype, search, x, n_cols, importance, out });
        }
        Dtype::IQ2_XXS | Dtype::IQ2_XS | Dtype::IQ2_S | Dtype::IQ3_XXS | Dtype::IQ3_S | Dtype::IQ1_S | Dtype::IQ1_M => {
            return match search {
                Search::Best => P::call(points_best::Rows { dtype, x, n_cols, importance, out }),
                Search::Ggml => P::call(points_ggml::Rows { dtype, x, n_cols, importance, out }),
            };
        }
        _ => {}
    }
    fn rows<V: Lanes, F: Format<W>, const W: usize>(
        x: &[f32],
        n_cols: usize,
        importance: Option<&[f32]>,
        out: &mut [u8],
    ) {
        V::call(Rows::<F, W> { x, n_cols, importance, out, format: PhantomData });
    }
    macro_rules! formats {
        ($($name:ident $w:literal,)*) => {
            match (dtype, search) {
                $((Dtype::$name, Search::Best) => rows::<V, least::$name, $w>,
                (Dtype::$name, Search::Ggml) => rows::<V, reference::$name, $w>,)*
                _ => unreachable!("weights are not written in {dtype}"),
            }
        };
    }
    let rows = formats! {
        Q4_0 32, Q4_1 32, Q5_0 32, Q5_1 32, Q8_0 32, IQ4_NL 32, Q1_0 128, Q2_0 64,
        Q2_K 256, Q3_K 256, Q4_K 256, Q5_K 256, Q6_K 256, IQ4_XS 256,
    };
    rows(x, n_cols, importance, out);
}
