//! Matrix product of stored weights with float activations.
//!
//! Quantized weights multiply activations that are rounded to 8 bits in blocks of 32 (integer dot products, float scales);
//! F32, F16 and BF16 weights multiply the float activations as they are. Each output element is summed in an order that
//! depends on the row length alone: never on the number of rows, of tokens, or of threads.
//!
//! The rows are dealt to the team in panels of 16. A thread unpacks some columns of a panel into its first-level cache,
//! multiplies them with all the tokens, and goes on to the next columns: the weights are read and unpacked once a call.

use crate::panel::{Columns, FLOAT_COLS, FloatPanel, Form, PANEL_COLS, PANEL_ROWS, Panel};
use crate::team::Disjoint;
use crate::{Dtype, Kernels, Team, kernels};
use std::cell::RefCell;
use std::ops::Range;

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

/// Activations made ready for products: the 8-bit form of `[n_tokens, n_cols]` floats, made when a weight first asks for it.
/// The buffers are kept from call to call.
#[derive(Default)]
pub struct Activations {
    /// Address, length and columns of the floats that the buffers were made from.
    source: Option<(usize, usize, usize)>,
    q: Vec<i8>,
    scale: Vec<f32>,
    sum16: Vec<f32>,
    sum32: Vec<f32>,
}

impl Activations {
    /// Forgets the 8-bit form: call it when the floats that follow are not those of the call before.
    pub fn reset(&mut self) {
        self.source = None;
    }

    fn columns(&mut self, kernels: &Kernels, team: &Team, x: &[f32], n_cols: usize) -> Columns<'_> {
        let source = (x.as_ptr() as usize, x.len(), n_cols);
        if self.source != Some(source) {
            self.source = None;
            let n = x.len();
            self.q.resize(n, 0);
            self.scale.resize(n / 32, 0.0);
            self.sum16.resize(n / 16, 0.0);
            self.sum32.resize(n / 32, 0.0);
            let q = Disjoint::new(&mut self.q);
            let scale = Disjoint::new(&mut self.scale);
            let sum16 = Disjoint::new(&mut self.sum16);
            let sum32 = Disjoint::new(&mut self.sum32);
            let part = |blocks: Range<usize>| {
                let times = |n: usize| blocks.start * n..blocks.end * n;
                // SAFETY: the ranges of blocks do not overlap, so neither do these multiples of them.
                let (q, scale, sum16, sum32) =
                    unsafe { (q.get(times(32)), scale.get(times(1)), sum16.get(times(2)), sum32.get(times(1))) };
                (kernels.quantize)(&x[times(32)], q, scale, sum16, sum32);
            };
            // A few thousand values are done before another thread has woken up.
            if n < 16 * 1024 {
                part(0..n / 32)
            } else {
                team.split(n / 32, 1, &part)
            }
            self.source = Some(source);
        }
        Columns { n_cols, q: &self.q, scale: &self.scale, sum16: &self.sum16, sum32: &self.sum32 }
    }
}

/// What a thread keeps between calls.
struct Scratch {
    panel: Box<Panel>,
    floats: Box<FloatPanel>,
    sums: Vec<[f32; PANEL_ROWS]>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> =
        RefCell::new(Scratch { panel: Panel::new(), floats: FloatPanel::new(), sums: Vec::new() });
}

/// `out[t, r] = Σ_c w[r, c] · x[t, c]`, with `x: [n_tokens, n_cols]` and `out: [n_tokens, n_rows]`.
///
/// `act` keeps the rounded form of `x` between the products that share it (q, k and v; gate and up).
pub fn matmul(team: &Team, w: Weights<'_>, x: &[f32], act: &mut Activations, out: &mut [f32]) {
    matmul_with(kernels(), team, w, x, act, out);
}

/// [`matmul`] with the kernels of a chosen level.
pub fn matmul_with(k: &Kernels, team: &Team, w: Weights<'_>, x: &[f32], act: &mut Activations, out: &mut [f32]) {
    assert!(w.dtype.is_runnable(), "no kernels for {}", w.dtype);
    let row_bytes = w.dtype.row_bytes(w.n_cols).expect("weights hold whole blocks");
    assert_eq!(Some(w.data.len()), w.n_rows.checked_mul(row_bytes));
    if w.n_rows == 0 || w.n_cols == 0 || x.is_empty() {
        return out.fill(0.0);
    }
    let n_tokens = x.len() / w.n_cols;
    assert_eq!((x.len(), out.len()), (n_tokens * w.n_cols, n_tokens * w.n_rows));

    let form = Form::of(w.dtype);
    let columns = (form != Form::Float).then(|| act.columns(k, team, x, w.n_cols));
    let step = if columns.is_some() { PANEL_COLS } else { FLOAT_COLS };
    let (weights, size) = w.dtype.block();
    let out = Disjoint::new(out);
    team.split(w.n_rows, PANEL_ROWS, &|rows| {
        // Columns `first..` of the panel from `row` on. A panel that is not full repeats its last row; those sums are dropped.
        let part = |row: usize, first: usize| -> [&[u8]; PANEL_ROWS] {
            let bytes = first / weights * size..(first + step).min(w.n_cols) / weights * size;
            std::array::from_fn(|i| &w.data[(row + i).min(w.n_rows - 1) * row_bytes..][bytes.clone()])
        };
        SCRATCH.with_borrow_mut(|Scratch { panel, floats, sums }| {
            for first_row in rows.clone().step_by(PANEL_ROWS) {
                sums.clear();
                sums.resize(n_tokens, [0.0; PANEL_ROWS]);
                for first in (0..w.n_cols).step_by(step) {
                    let n = step.min(w.n_cols - first);
                    let next =
                        if first + step < w.n_cols { (first_row, first + step) } else { (first_row + PANEL_ROWS, 0) };
                    match columns {
                        Some(_) => (k.unpack)(w.dtype, &part(first_row, first), panel),
                        None => (k.unpack_float)(w.dtype, &part(first_row, first), floats),
                    }
                    if next.0 < rows.end {
                        (k.prefetch)(&part(next.0, next.1));
                    }
                    match columns {
                        Some(x) => (k.dot)(form, panel, n, x, first, sums),
                        None => (k.dot_float)(floats, n, x, w.n_cols, first, sums),
                    }
                }
                let n = PANEL_ROWS.min(rows.end - first_row);
                for (t, sums) in sums.iter().enumerate() {
                    let at = t * w.n_rows + first_row;
                    // SAFETY: the threads' ranges of rows do not overlap.
                    unsafe { out.get(at..at + n) }.copy_from_slice(&sums[..n]);
                }
            }
        });
    });
}
