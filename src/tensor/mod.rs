//! Typed views of stored tensors: what models are made of. No arithmetic here.

use crate::gguf::{Bytes, Gguf, TensorInfo};
use crate::{Dtype, Result, bail};
use mmq_kernels::{Layout, Weights, kernels};

/// A matrix of any runnable type, left where it is stored: `[n_rows, n_cols]`, rows are output features.
#[derive(Clone)]
pub struct Weight {
    dtype: Dtype,
    n_rows: usize,
    n_cols: usize,
    bytes: Bytes,
}

impl Weight {
    /// Output features.
    pub fn n_rows(&self) -> usize {
        self.n_rows
    }

    /// Input features.
    pub fn n_cols(&self) -> usize {
        self.n_cols
    }

    /// Element type.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// The matrix as kernels take it.
    pub fn view(&self) -> Weights<'_> {
        Weights { dtype: self.dtype, layout: Layout::Rows, n_rows: self.n_rows, n_cols: self.n_cols, data: &self.bytes }
    }

    /// Expands row `i` into `out: [n_cols]`.
    pub fn row(&self, i: usize, out: &mut [f32]) {
        let n = self.bytes.len() / self.n_rows;
        (kernels().dequantize)(self.dtype, &self.bytes[i * n..(i + 1) * n], out);
    }
}

/// Takes tensors out of a file by name, checking that each has the expected shape and a runnable type.
#[derive(Clone, Copy)]
pub struct Loader<'a> {
    /// The file.
    pub gguf: &'a Gguf,
}

impl Loader<'_> {
    /// Whether the file has the tensor.
    pub fn has(&self, name: &str) -> bool {
        self.gguf.tensor(name).is_some()
    }

    /// The entry of a tensor that must be there.
    pub fn info(&self, name: &str) -> Result<&TensorInfo> {
        match self.gguf.tensor(name) {
            Some(info) => Ok(info),
            None => bail!(Format, "{}: tensor \"{name}\" is missing", self.gguf.name()),
        }
    }

    /// A matrix `[n_rows, n_cols]`. A tensor of more dimensions is taken as a matrix of its outermost dimension.
    pub fn weight(&self, name: &str, n_rows: usize, n_cols: usize) -> Result<Weight> {
        let info = self.info(name)?;
        let (rows, cols) = match info.shape.as_slice() {
            [] => (1, 1),
            [cols] => (1, *cols),
            [rows, cols @ ..] => (*rows, cols.iter().product()),
        };
        if (rows, cols) != (n_rows, n_cols) {
            bail!(
                Format,
                "{}: tensor \"{name}\": expected [{n_rows}, {n_cols}], got {:?}",
                self.gguf.name(),
                info.shape
            );
        }
        self.check_runnable(info)?;
        if info.dtype.row_bytes(n_cols).is_none_or(|n| n * n_rows != info.n_bytes) {
            bail!(
                Unsupported,
                "{}: tensor \"{name}\": {} rows of {n_cols} are no whole blocks",
                self.gguf.name(),
                info.dtype
            );
        }
        Ok(Weight { dtype: info.dtype, n_rows, n_cols, bytes: self.gguf.bytes(info) })
    }

    /// A vector of `n` floats, whatever it is stored as: norms, biases, embeddings that are added.
    pub fn vector(&self, name: &str, n: usize) -> Result<Vec<f32>> {
        let info = self.info(name)?;
        if info.shape.iter().product::<usize>() != n {
            bail!(Format, "{}: tensor \"{name}\": expected [{n}], got {:?}", self.gguf.name(), info.shape);
        }
        self.floats(info)
    }

    /// A vector, if the file has it.
    pub fn optional_vector(&self, name: &str, n: usize) -> Result<Option<Vec<f32>>> {
        self.has(name).then(|| self.vector(name, n)).transpose()
    }

    /// All elements of a tensor as floats.
    pub fn floats(&self, info: &TensorInfo) -> Result<Vec<f32>> {
        self.check_runnable(info)?;
        let mut out = vec![0.0; info.shape.iter().product()];
        (kernels().dequantize)(info.dtype, &self.gguf.bytes(info), &mut out);
        Ok(out)
    }

    fn check_runnable(&self, info: &TensorInfo) -> Result<()> {
        if !info.dtype.is_runnable() {
            bail!(Unsupported, "{}: tensor \"{}\": type {} cannot be run yet", self.gguf.name(), info.name, info.dtype);
        }
        Ok(())
    }
}
