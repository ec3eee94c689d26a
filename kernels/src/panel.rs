//! The form in which products read weights and activations: weights by panels of 16 interleaved rows, activations
//! rounded to 8 bits. Not a storage format: a panel lives in the first-level cache for as long as it is used.
//!
//! A panel holds the same [`PANEL_COLS`] (or fewer) columns of [`PANEL_ROWS`] rows. Four columns of all the rows lie
//! together, so that one vector holds 4 bytes of 8 rows, a product needs no horizontal sum, and each output element is
//! summed group by group in column order.

use crate::Dtype;
use std::ops::Range;

/// Rows of a panel.
pub const PANEL_ROWS: usize = 16;
/// Most columns of a panel of quantized weights: 16 KiB of quants.
pub const PANEL_COLS: usize = 1024;
/// Most columns of a panel of float weights, and the length of the partial sums of float products: 16 KiB.
pub const FLOAT_COLS: usize = 256;
/// Most tokens whose products are bound by how fast the weights come from memory: those go without a panel.
pub const FEW: usize = 4;

/// Where a panel is filled from: the same columns of 16 rows.
// Made and used on the stack, once for a panel: boxing the rows would cost more than their copies.
#[allow(clippy::large_enum_variant)]
#[derive(Clone, Copy)]
pub enum Source<'a> {
    /// Whole blocks of each row.
    Rows([&'a [u8]; PANEL_ROWS]),
    /// The same rows, [interleaved](crate::interleave).
    Panel(&'a [u8]),
}

impl<'a> Source<'a> {
    /// Some of the columns: whole blocks of `dtype`.
    pub fn columns(&self, dtype: Dtype, range: Range<usize>) -> Source<'a> {
        let (weights, size) = dtype.block();
        let (start, end) = (range.start / weights * size, range.end / weights * size);
        match self {
            Source::Rows(rows) => Source::Rows(rows.map(|row| &row[start..end])),
            Source::Panel(panel) => Source::Panel(&panel[PANEL_ROWS * start..PANEL_ROWS * end]),
        }
    }

    /// Bytes of a row.
    ///
    /// # Panics
    /// If rows differ in length.
    pub fn row_bytes(&self) -> usize {
        match self {
            Source::Rows(rows) => {
                assert!(rows.iter().all(|row| row.len() == rows[0].len()));
                rows[0].len()
            }
            Source::Panel(panel) => {
                assert!(panel.len().is_multiple_of(PANEL_ROWS));
                panel.len() / PANEL_ROWS
            }
        }
    }
}

/// How the quants of a type multiply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// No quants.
    Float,
    /// `scale · q − min` with `q` in `0..2^bits`; one scale and one min for each `group` (16 or 32) of columns.
    Unsigned {
        /// Columns that share a scale.
        group: usize,
        /// Bits of a quant.
        bits: u32,
    },
    /// `scale · q` with `q` in `-128..=127`; one scale for 32 columns.
    Signed,
}

impl Form {
    /// The form of a runnable type. Types that are symmetric around an offset become unsigned with `min = scale · offset`.
    pub const fn of(dtype: Dtype) -> Form {
        use Dtype::*;
        match dtype {
            Q4_0 | Q4_1 | Q4_K => Form::Unsigned { group: 32, bits: 4 },
            Q5_0 | Q5_1 | Q5_K => Form::Unsigned { group: 32, bits: 5 },
            Q2_K => Form::Unsigned { group: 16, bits: 2 },
            Q3_K => Form::Unsigned { group: 16, bits: 3 },
            Q6_K => Form::Unsigned { group: 16, bits: 6 },
            TQ1_0 | TQ2_0 | Q1_0 | Q2_0 => Form::Unsigned { group: 32, bits: 2 },
            MXFP4 | IQ1_S | IQ3_S => Form::Unsigned { group: 32, bits: 5 },
            NVFP4 | IQ1_M => Form::Unsigned { group: 16, bits: 5 },
            IQ3_XXS => Form::Unsigned { group: 32, bits: 6 },
            IQ2_XXS => Form::Unsigned { group: 32, bits: 7 },
            IQ2_XS | IQ2_S => Form::Unsigned { group: 16, bits: 7 },
            Q8_0 | IQ4_NL | IQ4_XS => Form::Signed,
            _ => Form::Float,
        }
    }

    /// Columns that share a scale (1 for floats).
    pub const fn group(self) -> usize {
        match self {
            Form::Float => 1,
            Form::Unsigned { group, .. } => group,
            Form::Signed => 32,
        }
    }
}

/// Quantized weights of 16 rows.
#[derive(Clone)]
#[repr(C, align(64))]
pub struct Panel {
    /// `[column / 4][row][column % 4]`: quants as [`Form`] says, signed ones as `i8` bits.
    pub q: [[u8; 4 * PANEL_ROWS]; PANEL_COLS / 4],
    /// `[group][row]`.
    pub scale: [[f32; PANEL_ROWS]; PANEL_COLS / 16],
    /// `[group][row]`; only for [`Form::Unsigned`].
    pub min: [[f32; PANEL_ROWS]; PANEL_COLS / 16],
}

impl Panel {
    /// An empty panel.
    pub fn new() -> Box<Panel> {
        Box::new(Panel {
            q: [[0; 4 * PANEL_ROWS]; PANEL_COLS / 4],
            scale: [[0.0; PANEL_ROWS]; PANEL_COLS / 16],
            min: [[0.0; PANEL_ROWS]; PANEL_COLS / 16],
        })
    }
}

/// Float weights of 16 rows: `[column][row]`.
#[derive(Clone)]
#[repr(C, align(64))]
pub struct FloatPanel(pub [[f32; PANEL_ROWS]; FLOAT_COLS]);

impl FloatPanel {
    /// An empty panel.
    pub fn new() -> Box<FloatPanel> {
        Box::new(FloatPanel([[0.0; PANEL_ROWS]; FLOAT_COLS]))
    }
}

/// Activations rounded to 8 bits, row-major over tokens. `x ≈ scale · q`, with `q` in `-127..=127`.
#[derive(Clone, Copy)]
pub struct Columns<'a> {
    /// Columns of a token, a multiple of 32.
    pub n_cols: usize,
    /// From the quants of one token to those of the next: see [`Columns::stride`].
    pub stride: usize,
    /// `[n_tokens, stride]`, of which `n_cols` are read.
    pub q: &'a [i8],
    /// `[n_tokens, n_cols / 32]`.
    pub scale: &'a [f32],
    /// `scale · Σ q` over 16 columns: `[n_tokens, n_cols / 16]`.
    pub sum16: &'a [f32],
    /// `scale · Σ q` over 32 columns: `[n_tokens, n_cols / 32]`.
    pub sum32: &'a [f32],
    /// `Σ q` over 16 columns: `[n_tokens, n_cols / 16]`.
    pub total: &'a [i32],
}

impl Columns<'_> {
    /// A good distance between tokens of `n_cols` columns: an odd number of cache lines. Tokens a power of two apart would
    /// all lie in the same set of the first-level cache, which holds fewer of them than a tile multiplies.
    pub const fn stride(n_cols: usize) -> usize {
        if n_cols.is_multiple_of(128) { n_cols + 64 } else { n_cols }
    }

    /// How many tokens there are.
    pub fn n_tokens(&self) -> usize {
        self.q.len() / self.stride
    }

    /// Panics unless all the slices have the lengths that `n_cols` and the number of tokens ask for.
    pub fn check(&self) {
        assert!(self.n_cols.is_multiple_of(32) && self.n_cols > 0 && self.stride >= self.n_cols);
        assert!(self.q.len().is_multiple_of(self.stride));
        let n = self.n_tokens() * self.n_cols;
        assert_eq!((self.scale.len(), self.sum16.len(), self.sum32.len()), (n / 32, n / 16, n / 32));
        assert_eq!(self.total.len(), n / 16);
    }
}
