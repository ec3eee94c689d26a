//! The scalar kernels: complete, plain, and the specification of every other level.

pub(crate) mod activation;
mod attention;
mod elementwise;
pub(crate) mod norm;
mod rope;

use crate::{Dtype, Kernels, Level};

/// The scalar table.
pub fn table() -> Kernels {
    Kernels {
        level: Level::Scalar,
        dequantize,
        rms_norm: norm::rms_norm,
        layer_norm: norm::layer_norm,
        silu_mul: activation::silu_mul,
        silu: activation::silu,
        gelu_erf: activation::gelu_erf,
        gelu_tanh: activation::gelu_tanh,
        gelu_quick: activation::gelu_quick,
        add: elementwise::add,
        to_f16: elementwise::to_f16,
        from_f16: elementwise::from_f16,
        rope: rope::rope,
        attend: attention::attend,
    }
}

fn dequantize(dtype: Dtype, blocks: &[u8], out: &mut [f32]) {
    match dtype {
        Dtype::F32 => {
            for (y, b) in out.iter_mut().zip(blocks.as_chunks::<4>().0) {
                *y = f32::from_le_bytes(*b);
            }
        }
        Dtype::F16 => {
            for (y, b) in out.iter_mut().zip(blocks.as_chunks::<2>().0) {
                *y = half::f16::from_le_bytes(*b).to_f32();
            }
        }
        Dtype::Q8_0 => {
            for (y, b) in out.as_chunks_mut::<32>().0.iter_mut().zip(blocks.as_chunks::<34>().0) {
                let d = half::f16::from_le_bytes([b[0], b[1]]).to_f32();
                for (y, q) in y.iter_mut().zip(&b[2..]) {
                    *y = d * f32::from(*q as i8);
                }
            }
        }
        _ => unimplemented!("{dtype}"),
    }
}
