//! Biases that take back what quantizing a matrix moves its outputs by, on average.
//!
//! A layer computes `W·x + b`. With quantized weights `Q` it is off by `(Q - W)·x`, whose mean over inputs is `(Q - W)·E[x]`: no
//! small matter where inputs are far from zero on average, as they are behind an activation function. `b` minus that mean costs
//! no byte. `E[x]` comes from `mmq imatrix`. See "bias correction" in arXiv 1906.04721.

use super::quantize::{Quantizer, all_finite};
use crate::quantize::{Plan, Planned};
use crate::{Dtype, Result};
use mmq_kernels::Search;
use mmq_kernels::quantize::quantize;

impl Quantizer<'_> {
    /// What to write for `tensor` of `plan`, as bytes, if it is the bias of a matrix that is quantized and whose mean input is
    /// known. ggml's own search leaves biases alone, as ggml does.
    ///
    /// # Errors
    /// Importance of another size than the matrix; [`Cancel`](super::Cancel) used by another thread.
    pub(super) fn corrected_bias(&self, plan: &Plan, tensor: &Planned) -> Result<Option<Vec<u8>>> {
        let Some((importance, matrix)) = self.importance.zip(tensor.source.strip_suffix(".bias")) else {
            return Ok(None);
        };
        let matrix = format!("{matrix}.weight");
        let Some(mean) = importance.mean_input(&matrix) else { return Ok(None) };
        let of_matrix = |planned: &&Planned| planned.source == matrix && planned.shape.len() == 2;
        let Some(matrix) = plan.tensors.iter().find(of_matrix) else { return Ok(None) };
        let fits = mean.len() == matrix.n_cols() && tensor.n_elements() == matrix.shape[0];
        if self.search == Search::Ggml
            || !fits
            || matrix.to.is_float()
            || tensor.to != Dtype::F32
            || !tensor.from.is_float()
        {
            return Ok(None);
        }
        self.check_cancel()?;
        let n_cols = matrix.n_cols();
        let rows = self.rows(matrix, matrix.to)?;
        let (dequantize, search) = (self.device.kernels.dequantize, self.search);
        let mut bias = vec![0.0f32; tensor.n_elements()];
        dequantize(tensor.from, &self.gguf.bytes(self.info(tensor)), &mut bias);
        let stored = self.gguf.bytes(self.info(matrix));
        self.device.team.rows(&mut bias, rows.rows_of_part(), &|i, bias| {
            let mut out = vec![0; matrix.to.row_bytes(n_cols).expect("plans keep rows whole")];
            let (mut x, mut y) = (vec![0.0; n_cols], vec![0.0; n_cols]);
            for (row, bias) in (i * rows.rows_of_part()..).zip(bias) {
                dequantize(matrix.from, &stored[row * rows.row_before..][..rows.row_before], &mut x);
                // Writing the matrix will find the fault.
                if !all_finite(&x) {
                    continue;
                }
                quantize(matrix.to, search, &x, n_cols, rows.importance_of(row, 1).0, &mut out);
                dequantize(matrix.to, &out, &mut y);
                let moved: f64 = x.iter().zip(&y).zip(mean).map(|((x, y), mean)| f64::from(y - x) * mean).sum();
                let corrected = (f64::from(*bias) - moved) as f32;
                *bias = if corrected.is_finite() { corrected } else { *bias };
            }
        });
        Ok(Some(bias.into_iter().flat_map(f32::to_le_bytes).collect()))
    }
}
