//! The scalar kernels: complete, plain, and the specification of every other level.

pub(crate) mod activation;
pub(crate) mod attention;
pub(crate) mod dequantize;
pub(crate) mod dot;
mod elementwise;
pub(crate) mod few;
pub(crate) mod norm;
pub(crate) mod quantize;
pub(crate) mod quantize_weights;
mod rope;
pub(crate) mod softmax;
pub(crate) mod unpack;
mod unpack_small;

use crate::panel::{Columns, FLOAT_COLS, Form, PANEL_COLS, PANEL_ROWS};
use crate::{Kernels, Level};

/// The scalar table.
pub fn table() -> Kernels {
    Kernels {
        level: Level::Scalar,
        dequantize: dequantize::dequantize,
        unpack: unpack::unpack,
        unpack_float: unpack::unpack_float,
        prefetch: |_| {},
        quantize: quantize::quantize,
        dot: dot::dot,
        dot_float: dot::dot_float,
        dot_few: few::dot_few,
        dot_few_float: few::dot_few_float,
        rms_norm: norm::rms_norm,
        layer_norm: norm::layer_norm,
        silu_mul: activation::silu_mul,
        silu: activation::silu,
        gelu_erf: activation::gelu_erf,
        gelu_tanh: activation::gelu_tanh,
        gelu_quick: activation::gelu_quick,
        add: elementwise::add,
        sum_exp: softmax::sum_exp,
        cross_exp: softmax::cross_exp,
        to_f16: elementwise::to_f16,
        from_f16: elementwise::from_f16,
        rope: rope::rope,
        rope_half: rope::rope_half,
        attend: attention::attend,
        expand_keys: attention::expand_keys,
        transpose: attention::transpose,
    }
}

/// Panics unless the arguments of a quantized product fit together.
pub(crate) fn check_dot(form: Form, n: usize, x: Columns<'_>, first: usize, acc: &[[f32; PANEL_ROWS]]) {
    x.check();
    assert!(form != Form::Float && n <= PANEL_COLS && n.is_multiple_of(32) && first.is_multiple_of(32));
    assert!(first + n <= x.n_cols && acc.len() == x.n_tokens());
}

/// Panics unless the arguments of a float product fit together.
pub(crate) fn check_dot_float(n: usize, x: &[f32], n_cols: usize, first: usize, acc: &[[f32; PANEL_ROWS]]) {
    assert!(n <= FLOAT_COLS && first + n <= n_cols && x.len() == acc.len() * n_cols);
}
