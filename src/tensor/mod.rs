//! Typed views of stored tensors: what models are made of. No arithmetic here.

mod prepare;

pub use prepare::Prepare;
pub(crate) use prepare::free_if_stopped;

use crate::gguf::{Bytes, Gguf, TensorInfo};
use crate::{Dtype, Error, Result, bail};
use mmq_kernels::panel::PANEL_ROWS;
use mmq_kernels::{Layout, Weights, interleave, kernels};
use std::cell::RefCell;
use std::ops::Range;
use std::sync::Arc;

/// What a vision encoder and its projector compute with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// [`Precision::Int8`] for files of float weights; quantized ones are used as they are.
    #[default]
    Auto,
    /// Weights as they are stored; float ones multiply float activations.
    F32,
    /// Float weights are rounded to 8 bits in blocks of 32 (Q8_0) at load, and multiply activations rounded likewise.
    Int8,
}

impl Precision {
    /// Whether a vision encoder's matrix of `dtype` and rows of `n_cols` is rounded to 8 bits at load.
    pub fn rounds(self, dtype: Dtype, n_cols: usize) -> bool {
        self != Precision::F32 && dtype.is_float() && n_cols.is_multiple_of(32)
    }
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

/// How weights come into memory.
#[derive(Clone, Copy, Default)]
pub struct Loading<'a> {
    /// What makes new forms of weights. Without it everything stays as it is stored: nothing will be run.
    pub prepare: Option<&'a Prepare<'a>>,
    /// For vision encoders and projectors.
    pub vision: Precision,
    /// Whether matrices are interleaved, or multiplied with as they are stored.
    pub repack: bool,
    /// Where the names of the tensors that are asked for are noted.
    pub noted: Option<&'a RefCell<Noted>>,
}

/// Names of tensors that a model asks for, by what becomes of them.
#[derive(Clone, Debug, Default)]
pub struct Noted {
    /// Multiplied with.
    pub matrices: Vec<String>,
    /// Looked up row by row.
    pub tables: Vec<String>,
    /// Made floats at load.
    pub vectors: Vec<String>,
}

/// A matrix of any runnable type: `[n_rows, n_cols]`, rows are output features. Left where it is stored, or made at load.
#[derive(Clone)]
pub struct Weight {
    name: Arc<str>,
    dtype: Dtype,
    layout: Layout,
    n_rows: usize,
    n_cols: usize,
    bytes: Bytes,
}

impl Weight {
    /// The name of the tensor that it is.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

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
        Weights { dtype: self.dtype, layout: self.layout, n_rows: self.n_rows, n_cols: self.n_cols, data: &self.bytes }
    }

    /// Tells the system that it will be read soon, where it lies in a mapped file.
    pub fn read_ahead(&self) {
        self.bytes.read_ahead(0..self.bytes.len());
    }

    /// Tells the system that it will not be read soon, where it lies in a mapped file.
    pub fn give_back(&self) {
        self.bytes.give_back(0..self.bytes.len());
    }

    /// Expands row `i` into `out: [n_cols]`.
    pub fn row(&self, i: usize, out: &mut [f32]) {
        let n = self.bytes.len() / self.n_rows;
        let first = i - i % PANEL_ROWS;
        if self.layout == Layout::Panels && first + PANEL_ROWS <= self.n_rows {
            let mut row = vec![0; n];
            interleave::row(self.dtype, &self.bytes[first * n..][..PANEL_ROWS * n], i - first, &mut row);
            return (kernels().dequantize)(self.dtype, &row, out);
        }
        (kernels().dequantize)(self.dtype, &self.bytes[i * n..(i + 1) * n], out);
    }
}

/// Takes tensors out of a file by name, checking that each has the expected shape and a runnable type.
#[derive(Clone, Copy)]
pub struct Loader<'a> {
    /// The file.
    pub gguf: &'a Gguf,
    /// What becomes of its weights.
    pub loading: Loading<'a>,
}

impl<'a> Loader<'a> {
    /// A loader that leaves everything as it is stored.
    pub fn stored(gguf: &'a Gguf) -> Loader<'a> {
        Loader { gguf, loading: Loading::default() }
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
    /// A tensor that is missing, of another shape or of a type without kernels; [`Loading::prepare`] that is cancelled or
    /// finds no memory.
    pub fn weight(&self, name: &str, n_rows: usize, n_cols: usize) -> Result<Weight> {
        self.prepared(self.matrix(name, n_rows, n_cols)?)
    }

    /// A stored matrix in the layout that is asked for.
    fn prepared(&self, stored: Weight) -> Result<Weight> {
        match self.loading.prepare {
            Some(prepare) if self.loading.repack && stored.layout == Layout::Rows && stored.n_rows >= PANEL_ROWS => {
                prepare.interleave(&stored)
            }
            _ => Ok(stored),
        }
    }

    /// A matrix that is multiplied with, as it is stored.
    fn matrix(&self, name: &str, n_rows: usize, n_cols: usize) -> Result<Weight> {
        let stored = self.as_matrix(name, n_rows, n_cols)?;
        self.note(name, |noted| &mut noted.matrices);
        Ok(stored)
    }

    fn note(&self, name: &str, list: impl Fn(&mut Noted) -> &mut Vec<String>) {
        if let Some(noted) = self.loading.noted {
            let mut noted = noted.borrow_mut();
            let list = list(&mut noted);
            if list.last().is_none_or(|last| last != name) {
                list.push(name.to_owned());
            }
        }
    }

    /// A matrix `[n_rows, n_cols]` whose rows are looked up one by one: it stays where it is stored.
    ///
    /// # Errors
    /// A tensor that is missing, of another shape or of a type without kernels.
    pub fn table(&self, name: &str, n_rows: usize, n_cols: usize) -> Result<Weight> {
        self.note(name, |noted| &mut noted.tables);
        self.as_matrix(name, n_rows, n_cols)
    }

    /// A tensor as a matrix `[n_rows, n_cols]`, where it is stored.
    fn as_matrix(&self, name: &str, n_rows: usize, n_cols: usize) -> Result<Weight> {
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
        let bytes = self.gguf.bytes(info);
        Ok(Weight { name: name.into(), dtype: info.dtype, layout: info.layout, n_rows, n_cols, bytes })
    }

    /// As [`Loader::weight`], for a layer of a vision encoder or projector: in [`Loading::vision`] precision. Rows that are no
    /// multiple of 32 long stay float.
    pub fn vision_weight(&self, name: &str, n_rows: usize, n_cols: usize) -> Result<Weight> {
        self.for_vision(self.matrix(name, n_rows, n_cols)?)
    }

    /// Rows `part` of a matrix `[n_rows, n_cols]`, as [`Loader::vision_weight`] would load them.
    ///
    /// # Errors
    /// As there; a part of a packed matrix that does not begin and end with a panel.
    pub fn vision_weight_part(&self, name: &str, n_rows: usize, n_cols: usize, part: Range<usize>) -> Result<Weight> {
        self.for_vision(self.matrix_part(name, n_rows, n_cols, part)?)
    }

    /// Rows `part` of a matrix `[n_rows, n_cols]`, as [`Loader::weight`] would load them.
    ///
    /// # Errors
    /// As there; a part of a packed matrix that does not begin and end with a panel.
    pub fn weight_part(&self, name: &str, n_rows: usize, n_cols: usize, part: Range<usize>) -> Result<Weight> {
        self.prepared(self.matrix_part(name, n_rows, n_cols, part)?)
    }

    /// Rows `part` of a matrix, as they are stored.
    fn matrix_part(&self, name: &str, n_rows: usize, n_cols: usize, part: Range<usize>) -> Result<Weight> {
        let whole = self.matrix(name, n_rows, n_cols)?;
        let is_panels = |row: usize| row == n_rows || row.is_multiple_of(PANEL_ROWS);
        if whole.layout == Layout::Panels && !(is_panels(part.start) && is_panels(part.end)) {
            let file = self.gguf.name();
            bail!(Unsupported, "{file}: tensor \"{name}\": rows {part:?} of a packed matrix are no whole panels");
        }
        let row_bytes = whole.bytes.len() / n_rows;
        let bytes = whole.bytes.slice(part.start * row_bytes..part.end * row_bytes);
        Ok(Weight { n_rows: part.len(), bytes, ..whole })
    }

    /// A stored matrix in [`Loading::vision`] precision.
    fn for_vision(&self, stored: Weight) -> Result<Weight> {
        match self.loading.prepare {
            Some(prepare) if self.loading.vision.rounds(stored.dtype, stored.n_cols) => prepare.round(&stored),
            _ => self.prepared(stored),
        }
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
        self.note(&info.name, |noted| &mut noted.vectors);
        let mut out = vec![0.0; info.n_elements()];
        if info.layout == Layout::Rows {
            (kernels().dequantize)(info.dtype, &self.gguf.bytes(info), &mut out);
        } else {
            let n_rows = info.shape[0];
            let n_cols = out.len() / n_rows;
            let weight = self.as_matrix(&info.name, n_rows, n_cols)?;
            out.chunks_exact_mut(n_cols).enumerate().for_each(|(i, row)| weight.row(i, row));
        }
        Ok(out)
    }

    fn check_runnable(&self, info: &TensorInfo) -> Result<()> {
        if !info.dtype.is_runnable() {
            bail!(Unsupported, "{}: tensor \"{}\": type {} cannot be run yet", self.gguf.name(), info.name, info.dtype);
        }
        Ok(())
    }
}
