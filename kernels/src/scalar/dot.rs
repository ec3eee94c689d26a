//! Panels of weights times activations.

use crate::panel::{Columns, FloatPanel, Form, PANEL_ROWS, Panel};

/// See [`crate::Kernels::dot`].
pub fn dot(form: Form, panel: &Panel, n: usize, x: Columns<'_>, first: usize, acc: &mut [[f32; PANEL_ROWS]]) {
    super::check_dot(form, n, x, first, acc);
    let group = form.group();
    for (t, acc) in acc.iter_mut().enumerate() {
        let (at, q) = (t * x.n_cols + first, &x.q[t * x.stride + first..][..n]);
        for (r, acc) in acc.iter_mut().enumerate() {
            for g in 0..n / group {
                let mut sum = 0;
                for (c, x) in (g * group..).zip(&q[g * group..][..group]) {
                    let w = panel.q[c / 4][r * 4 + c % 4];
                    let w = if form == Form::Signed { i32::from(w as i8) } else { i32::from(w) };
                    sum += w * i32::from(*x);
                }
                let scale = panel.scale[g][r] * x.scale[(at + g * group) / 32];
                *acc = scale.mul_add(sum as f32, *acc);
                if form != Form::Signed {
                    let sums = if group == 16 { x.sum16 } else { x.sum32 };
                    *acc = (-panel.min[g][r]).mul_add(sums[at / group + g], *acc);
                }
            }
        }
    }
}

/// See [`crate::Kernels::dot_float`].
pub fn dot_float(panel: &FloatPanel, n: usize, x: &[f32], n_cols: usize, first: usize, acc: &mut [[f32; PANEL_ROWS]]) {
    super::check_dot_float(n, x, n_cols, first, acc);
    for (t, acc) in acc.iter_mut().enumerate() {
        let x = &x[t * n_cols + first..][..n];
        for (r, acc) in acc.iter_mut().enumerate() {
            *acc += panel.0.iter().zip(x).fold(0.0, |sum: f32, (w, x)| w[r].mul_add(*x, sum));
        }
    }
}
