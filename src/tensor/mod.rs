//! Typed views of stored tensors: what models are made of. No arithmetic here.

mod repack;

pub use repack::Repack;

use crate::gguf::{Bytes, Gguf, TensorInfo};
use crate::{Dtype, Error, Result, bail};
use mmq_kernels::panel::PANEL_ROWS;
use mmq_kernels::{Layout, Weights, interleave, kernels};
use std::cell::RefCell;

/// What a vision encoder and its projector compute with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// [`Precision::Int8`].
    #[default]
    Auto,
    /// Float weights multiply float activations.
    F32,
    /// Float weights are rounded to 8 bits in blocks of 32 (Q8_0) when they are loaded, and multiply activations that are
    /// rounded likewise. Weights that are quantized in the file are used as they are.
    Int8,
}

impl std::str::FromStr for Precision {
    type Err = Error;

    fn from_str(name: &str) -> Result<Precision> {
        match name {
            "auto" => Ok(Precision::Auto),
            "f32" => Ok(Precision::F32),
            "int8" => Ok(Precision::Int8),
            _ => bail!(Usage, "expected f32, int8 or auto, got {name:?}"),
        }
    }
}

/// A matrix of any runnable type: `[n_rows, n_cols]`, rows are output features.
#[derive(Clone)]
pub struct Weight {
    dtype: Dtype,
    layout: Layout,
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

    /// How its rows lie.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// The matrix as kernels take it.
    pub fn view(&self) -> Weights<'_> {
        Weights { dtype: self.dtype, layout: self.layout, n_rows: self.n_rows, n_cols: self.n_cols, data: &self.bytes }
    }

    fn row_bytes(&self) -> usize {
        self.bytes.len() / self.n_rows
    }

    /// Expands row `i` into `out: [n_cols]`.
    pub fn row(&self, i: usize, out: &mut [f32]) {
        assert!(i < self.n_rows, "row {i} of {}", self.n_rows);
        let n = self.row_bytes();
        let first = i / PANEL_ROWS * PANEL_ROWS;
        if self.layout == Layout::Rows || first + PANEL_ROWS > self.n_rows {
            return (kernels().dequantize)(self.dtype, &self.bytes[i * n..(i + 1) * n], out);
        }
        let mut row = vec![0; n];
        interleave::row(self.dtype, &self.bytes[first * n..(first + PANEL_ROWS) * n], i - first, &mut row);
        (kernels().dequantize)(self.dtype, &row, out);
    }

    /// Tells the system that the matrix will not be read soon; see [`Bytes::give_back`].
    pub fn give_back(&self) {
        self.bytes.give_back(0..self.bytes.len());
    }
}

/// What becomes of the matrices that a loader takes out.
#[derive(Clone, Copy)]
enum Matrices<'a> {
    /// They stay where they are stored.
    Mapped,
    /// They are interleaved into memory of their own.
    Repacked(&'a Repack<'a>),
    /// They stay, and their names are noted.
    Noted(&'a RefCell<Vec<String>>),
}

/// Takes tensors out of a file by name, checking that each has the expected shape and a runnable type.
#[derive(Clone, Copy)]
pub struct Loader<'a> {
    /// The file.
    pub gguf: &'a Gguf,
    matrices: Matrices<'a>,
    /// Rounds the float matrices of a vision encoder.
    rounding: Option<&'a Repack<'a>>,
}

impl<'a> Loader<'a> {
    fn new(gguf: &'a Gguf, matrices: Matrices<'a>) -> Loader<'a> {
        Loader { gguf, matrices, rounding: None }
    }

    /// A loader that leaves matrices where they are stored.
    pub fn mapped(gguf: &'a Gguf) -> Loader<'a> {
        Loader::new(gguf, Matrices::Mapped)
    }

    /// A loader that interleaves matrices as `repack` does.
    pub fn repacking(gguf: &'a Gguf, repack: &'a Repack<'a>) -> Loader<'a> {
        Loader::new(gguf, Matrices::Repacked(repack))
    }

    /// A loader that leaves matrices where they are stored and notes in `names` which are asked for.
    pub fn noting(gguf: &'a Gguf, names: &'a RefCell<Vec<String>>) -> Loader<'a> {
        Loader::new(gguf, Matrices::Noted(names))
    }

    /// The same loader, which also rounds the float matrices of a vision encoder to 8 bits.
    pub fn rounding(self, repack: &'a Repack<'a>) -> Loader<'a> {
        Loader { rounding: Some(repack), ..self }
    }

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

    /// A matrix `[n_rows, n_cols]` that is multiplied with. A tensor of more dimensions is taken as a matrix of its
    /// outermost dimension.
    ///
    /// # Errors
    /// A tensor that is missing, of another shape or of a type without kernels; a repacking loader that is cancelled or
    /// finds no memory.
    pub fn weight(&self, name: &str, n_rows: usize, n_cols: usize) -> Result<Weight> {
        let weight = self.table(name, n_rows, n_cols)?;
        match self.matrices {
            Matrices::Repacked(repack) if weight.layout == Layout::Rows && n_rows >= PANEL_ROWS => repack.run(&weight),
            Matrices::Noted(names) => {
                names.borrow_mut().push(name.to_owned());
                Ok(weight)
            }
            _ => Ok(weight),
        }
    }

    /// A matrix `[n_rows, n_cols]` whose rows are looked up one by one: it stays where it is stored.
    ///
    /// # Errors
    /// A tensor that is missing, of another shape or of a type without kernels.
    pub fn table(&self, name: &str, n_rows: usize, n_cols: usize) -> Result<Weight> {
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
        Ok(Weight { dtype: info.dtype, layout: Layout::Rows, n_rows, n_cols, bytes: self.gguf.bytes(info) })
    }

    /// As [`Loader::weight`], for a vision encoder or its projector: a [rounding](Loader::rounding) loader makes float weights
    /// Q8_0. Rows that are no multiple of 32 long stay float.
    ///
    /// # Errors
    /// As [`Loader::weight`].
    pub fn vision_weight(&self, name: &str, n_rows: usize, n_cols: usize) -> Result<Weight> {
        if let Some(repack) = self.rounding {
            let stored = self.table(name, n_rows, n_cols)?;
            let is_float = matches!(stored.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16);
            if is_float && n_cols.is_multiple_of(32) {
                return repack.round(&stored);
            }
        }
        self.weight(name, n_rows, n_cols)
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
