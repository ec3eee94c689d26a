//! Products of a few tokens.

use super::{dot, unpack};
use crate::Dtype;
use crate::panel::{Columns, FEW, FLOAT_COLS, FloatPanel, Form, PANEL_COLS, PANEL_ROWS, Panel, Source};

/// See [`crate::Kernels::dot_few`].
pub fn dot_few(dtype: Dtype, source: &Source<'_>, x: Columns<'_>, acc: &mut [[f32; PANEL_ROWS]]) {
    check_few(dtype, source, x, acc);
    let mut panel = Panel::new();
    for first in (0..x.n_cols).step_by(PANEL_COLS) {
        let n = PANEL_COLS.min(x.n_cols - first);
        unpack::unpack(dtype, &source.columns(dtype, first..first + n), &mut panel);
        dot::dot(Form::of(dtype), &panel, n, x, first, acc);
    }
}

/// See [`crate::Kernels::dot_few_float`].
pub fn dot_few_float(dtype: Dtype, source: &Source<'_>, x: &[f32], acc: &mut [[f32; PANEL_ROWS]]) {
    check_few_float(dtype, source, x, acc);
    let mut panel = FloatPanel::new();
    let n_cols = x.len() / acc.len();
    for first in (0..n_cols).step_by(FLOAT_COLS) {
        let n = FLOAT_COLS.min(n_cols - first);
        unpack::unpack_float(dtype, &source.columns(dtype, first..first + n), &mut panel);
        dot::dot_float(&panel, n, x, n_cols, first, acc);
    }
}

/// Panics unless the arguments of a quantized product of few tokens fit together.
pub(crate) fn check_few(dtype: Dtype, source: &Source<'_>, x: Columns<'_>, acc: &[[f32; PANEL_ROWS]]) {
    x.check();
    assert!(Form::of(dtype) != Form::Float && dtype.row_bytes(x.n_cols) == Some(source.row_bytes()));
    assert!((1..=FEW).contains(&acc.len()) && acc.len() == x.n_tokens());
}

/// Panics unless the arguments of a float product of few tokens fit together.
pub(crate) fn check_few_float(dtype: Dtype, source: &Source<'_>, x: &[f32], acc: &[[f32; PANEL_ROWS]]) {
    assert!(Form::of(dtype) == Form::Float && (1..=FEW).contains(&acc.len()) && x.len().is_multiple_of(acc.len()));
    assert!(dtype.row_bytes(x.len() / acc.len()) == Some(source.row_bytes()));
}
