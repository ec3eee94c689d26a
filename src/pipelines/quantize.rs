//! Carries out a [`Plan`]: weights from the mapped file through a team of threads into the new one, some rows at a time.

use super::Cancel;
use crate::device::Cpu;
use crate::gguf::{Gguf, Sink, TensorInfo};
use crate::quantize::{Importance, Plan, Planned};
use crate::{Dtype, Error, ErrorKind, Result, bail};
use mmq_kernels::Search;
use mmq_kernels::quantize::quantize;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// Weights that one thread takes at a time: with their floats, within a core's cache.
const PART: usize = 64 << 10;
/// Weights that are in memory at a time.
const CHUNK: usize = 4 << 20;

/// Larger weights may be cut off: the largest number in F16, which the scales of most types are.
const LARGE: f32 = 65504.0;

/// What became of a tensor.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Its place in the plan.
    pub index: usize,
    /// Its error: root of the sum of squared differences over the root of the sum of squares, weighted by importance; `None`
    /// if it is as it was, or if the squares are too large to add up.
    pub error: Option<f64>,
    /// Whether there was importance for it.
    pub weighted: bool,
}

/// Sums over weights: squared differences and squares, each times its importance.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sums {
    /// Of the differences.
    pub error: f64,
    /// Of the weights.
    pub energy: f64,
}

impl Sums {
    pub(super) fn add(&mut self, other: Sums) {
        self.error += other.error;
        self.energy += other.energy;
    }

    /// The relative error, as in [`Outcome::error`].
    pub fn relative(self) -> f64 {
        if self.energy > 0.0 { (self.error / self.energy).sqrt() } else { 0.0 }
    }
}

/// Carries out plans.
pub struct Quantizer<'a> {
    pub(super) gguf: &'a Gguf,
    pub(super) search: Search,
    pub(super) importance: Option<&'a Importance>,
    pub(super) device: Cpu,
    pub(super) cancel: &'a Cancel,
    pub(super) progress: &'a mut dyn FnMut(f32),
}

/// Rows of a tensor that are written anew.
pub(super) struct Rows<'a> {
    tensor: &'a Planned,
    /// What its columns matter, for each matrix of the tensor or for all.
    pub(super) importance: Option<&'a [f32]>,
    /// Rows of a matrix: importance changes with it.
    per_matrix: usize,
    pub(super) row_before: usize,
    row_after: usize,
}

impl<'a> Quantizer<'a> {
    /// Takes weights from `gguf` with `n_threads`, as in [`EngineOptions`](super::EngineOptions), until `cancel` is used;
    /// `progress` is told the fraction of all weights that is done.
    pub fn new(
        gguf: &'a Gguf,
        search: Search,
        importance: Option<&'a Importance>,
        n_threads: Option<usize>,
        cancel: &'a Cancel,
        progress: &'a mut dyn FnMut(f32),
    ) -> Quantizer<'a> {
        Quantizer { gguf, search, importance, device: Cpu::new(n_threads), cancel, progress }
    }

    /// How many threads take part.
    pub fn n_threads(&self) -> usize {
        self.device.team.n_threads()
    }

    /// Writes the files of `plan` to `paths`; all of them appear when the last is complete. `done` is told of each tensor.
    ///
    /// # Errors
    /// A plan with an [obstacle](Plan::obstacle); weights that are no finite numbers or too large for their type; importance
    /// of another size than a tensor; files that cannot be written; `cancel` used by another thread.
    pub fn run(&mut self, plan: &Plan, paths: &[impl AsRef<Path>], done: &mut dyn FnMut(Outcome)) -> Result<()> {
        assert_eq!(paths.len(), plan.n_files);
        if let Some(obstacle) = plan.obstacle() {
            return Err(obstacle);
        }
        let total = plan.n_params() as f32;
        let (mut index, mut before) = (0, 0);
        let mut staged = Vec::with_capacity(paths.len());
        for (writer, path) in plan.writers()?.iter().zip(paths) {
            staged.push(writer.stage(path, |_, sink| {
                let tensor = &plan.tensors[index];
                let outcome = match self.corrected_bias(plan, tensor)? {
                    Some(bias) => {
                        sink.put(&bias)?;
                        Outcome { index, error: None, weighted: true }
                    }
                    None => self.tensor(index, tensor, sink, before as f32, total)?,
                };
                before += tensor.n_elements();
                index += 1;
                done(outcome);
                Ok(())
            })?);
        }
        staged.into_iter().try_for_each(|file| file.commit())
    }

    /// Writes one tensor; `before` of `total` weights are done.
    fn tensor(&mut self, index: usize, tensor: &Planned, sink: &mut Sink, before: f32, total: f32) -> Result<Outcome> {
        let bytes = self.gguf.bytes(self.info(tensor));
        // As long as nothing changes, blocks will do for rows.
        let rows = if tensor.converts() { Some(self.rows(tensor, tensor.to)?) } else { None };
        let (weights, n_bytes) = match &rows {
            Some(rows) => (tensor.n_cols(), rows.row_before),
            None => tensor.from.block(),
        };
        let step = (CHUNK / weights).max(1);
        let n = tensor.n_elements() / weights;
        let mut sums = Sums::default();
        let mut out = Vec::new();
        for at in (0..n).step_by(step) {
            self.check_cancel()?;
            let end = (at + step).min(n);
            let part = at * n_bytes..end * n_bytes;
            bytes.read_ahead(part.end..(part.end + part.len()).min(bytes.len()));
            let from = &bytes[part.clone()];
            match &rows {
                Some(rows) => {
                    out.resize((end - at) * rows.row_after, 0);
                    sums.add(self.convert(tensor.to, rows, at, from, &mut out)?);
                    sink.put(&out)?;
                }
                None => {
                    self.check(tensor, at * weights, from)?;
                    sink.put(from)?;
                }
            }
            bytes.give_back(part);
            (self.progress)((before + (end * weights) as f32) / total);
        }
        let weighted = rows.as_ref().is_some_and(|rows| rows.importance.is_some());
        let error = rows.map(|_| sums.relative()).filter(|error| error.is_finite());
        Ok(Outcome { index, error, weighted })
    }

    pub(super) fn check_cancel(&self) -> Result<()> {
        if self.cancel.is_cancelled() {
            return Err(Error::new(ErrorKind::Cancelled, "stopped"));
        }
        Ok(())
    }

    pub(super) fn info(&self, tensor: &Planned) -> &'a TensorInfo {
        self.gguf.tensor(&tensor.source).expect("plans are made of the file's tensors")
    }

    /// How rows of `tensor` become rows of `to`.
    pub(super) fn rows<'t>(&self, tensor: &'t Planned, to: Dtype) -> Result<Rows<'t>>
    where
        'a: 't,
    {
        let n_cols = tensor.n_cols();
        let n_mat = if tensor.shape.len() > 2 { tensor.shape[..tensor.shape.len() - 2].iter().product() } else { 1 };
        let found = self.importance.and_then(|importance| importance.get(&tensor.source));
        let importance = match found {
            Some(values) if values.len() == n_cols || values.len() == n_cols * n_mat => Some(values),
            // Tables of tokens are looked up, not multiplied with, unless they make logits too.
            Some(_) if tensor.source == "token_embd.weight" => None,
            Some(values) => bail!(
                Mismatch,
                "{}: tensor {:?}: expected {n_cols} values for {n_mat} matrices in the importance matrix, got {}",
                self.gguf.name(),
                tensor.source,
                values.len()
            ),
            None => None,
        };
        let row_bytes = |dtype: Dtype| dtype.row_bytes(n_cols).expect("plans keep rows whole");
        Ok(Rows {
            tensor,
            importance,
            per_matrix: tensor.n_elements() / n_cols / n_mat,
            row_before: row_bytes(tensor.from),
            row_after: row_bytes(to),
        })
    }

    /// Writes rows `first..` of a tensor, which lie in `from`, to `out` as `to`.
    fn convert(&self, to: Dtype, rows: &Rows, first: usize, from: &[u8], out: &mut [u8]) -> Result<Sums> {
        let (n_cols, search) = (rows.tensor.n_cols(), self.search);
        let kernels = self.device.kernels;
        let per_part = rows.rows_of_part();
        let parts: Vec<_> =
            out.chunks_mut(per_part * rows.row_after).map(|out| Mutex::new((out, Sums::default()))).collect();
        self.device.team.run(parts.len(), &|i| {
            let mut part = parts[i].lock().unwrap_or_else(PoisonError::into_inner);
            let (out, sums) = &mut *part;
            let n_rows = out.len() / rows.row_after;
            let from = &from[i * per_part * rows.row_before..][..n_rows * rows.row_before];
            let mut x = vec![0.0; n_rows * n_cols];
            (kernels.dequantize)(rows.tensor.from, from, &mut x);
            if !all_finite(&x) {
                sums.error = f64::NAN;
                return;
            }
            let mut rounded = vec![0.0; n_cols];
            let mut at = 0;
            while at < n_rows {
                let (importance, n) = rows.importance_of(first + i * per_part + at, n_rows - at);
                let x = &x[at * n_cols..][..n * n_cols];
                let out = &mut out[at * rows.row_after..][..n * rows.row_after];
                quantize(to, search, x, n_cols, importance, out);
                for (x, out) in x.chunks_exact(n_cols).zip(out.chunks_exact(rows.row_after)) {
                    (kernels.dequantize)(to, out, &mut rounded);
                    sums.add(compare(x, &rounded, importance));
                }
                at += n;
            }
        });
        let mut total = Sums::default();
        for (i, part) in parts.into_iter().enumerate() {
            let (out, sums) = part.into_inner().unwrap_or_else(PoisonError::into_inner);
            // What overflows or is cut off leaves no sum, or an error as large as the weights.
            if !sums.error.is_finite()
                || !sums.energy.is_finite()
                || sums.energy > 0.0 && sums.error > 0.9 * sums.energy
            {
                let n = out.len() / rows.row_after;
                let from = &from[i * per_part * rows.row_before..][..n * rows.row_before];
                self.find_fault(rows, first + i * per_part, from, to, out)?;
            }
            total.add(sums);
        }
        Ok(total)
    }

    /// Checks that weights `first..` of a tensor that stays as it is are finite numbers, as far as they can be read.
    fn check(&self, tensor: &Planned, first: usize, from: &[u8]) -> Result<()> {
        let dtype = tensor.from;
        if !dtype.is_runnable() {
            return Ok(());
        }
        let (weights, bytes) = dtype.block();
        let parts: Vec<_> = from.chunks(PART / weights * bytes).map(|from| (from, Mutex::new(None))).collect();
        self.device.team.run(parts.len(), &|i| {
            let (from, fault) = &parts[i];
            let mut x = vec![0.0; from.len() / bytes * weights];
            (self.device.kernels.dequantize)(dtype, from, &mut x);
            if !all_finite(&x) {
                let found = x
                    .iter()
                    .position(|x| !x.is_finite())
                    .map(|at| (first + i * (PART / weights * weights) + at, x[at]));
                *fault.lock().unwrap_or_else(PoisonError::into_inner) = found;
            }
        });
        for (_, fault) in parts {
            if let Some((at, x)) = fault.into_inner().unwrap_or_else(PoisonError::into_inner) {
                bail!(Format, "{}: expected a finite number, got {x}", self.place(tensor, at));
            }
        }
        Ok(())
    }

    /// Weight `at` of a tensor, for messages.
    pub(super) fn place(&self, tensor: &Planned, at: usize) -> String {
        let n_cols = tensor.n_cols();
        format!("{}: tensor {:?}: row {}, column {}", self.gguf.name(), tensor.source, at / n_cols, at % n_cols)
    }

    /// The error for the first weight of rows `first..` that is no finite number, or is none in `out`.
    fn find_fault(&self, rows: &Rows, first: usize, from: &[u8], to: Dtype, out: &[u8]) -> Result<()> {
        let t = rows.tensor;
        let kernels = self.device.kernels;
        let n_cols = t.n_cols();
        let mut x = vec![0.0; n_cols];
        let mut y = vec![0.0; n_cols];
        let place = |row: usize, col: usize| self.place(t, row * n_cols + col);
        for (i, from) in from.chunks_exact(rows.row_before).enumerate() {
            (kernels.dequantize)(t.from, from, &mut x);
            if let Some(col) = x.iter().position(|x| !x.is_finite()) {
                bail!(Format, "{}: expected a finite number, got {}", place(first + i, col), x[col]);
            }
            (kernels.dequantize)(to, &out[i * rows.row_after..][..rows.row_after], &mut y);
            let is_lost = |x: f32, y: f32| !y.is_finite() || x.abs() > LARGE && y.abs() < 0.5 * x.abs();
            if x.iter().zip(&y).any(|(x, y)| is_lost(*x, *y)) {
                // A block is lost with its largest weight.
                let col = (0..n_cols).max_by(|a, b| x[*a].abs().total_cmp(&x[*b].abs())).expect("rows are not empty");
                bail!(Unsupported, "{}: {} is too large for {to}", place(first + i, col), x[col]);
            }
        }
        Ok(())
    }
}

impl<'a> Rows<'a> {
    /// Rows that one thread takes at a time.
    pub(super) fn rows_of_part(&self) -> usize {
        (PART / self.tensor.n_cols()).max(1)
    }

    /// What the columns matter in row `row`, and for how many of the `n` rows from there on.
    pub(super) fn importance_of(&self, row: usize, n: usize) -> (Option<&'a [f32]>, usize) {
        let n_cols = self.tensor.n_cols();
        match self.importance {
            Some(values) if values.len() > n_cols => {
                let matrix = row / self.per_matrix;
                (Some(&values[matrix * n_cols..][..n_cols]), n.min((matrix + 1) * self.per_matrix - row))
            }
            other => (other, n),
        }
    }
}

/// Compares a row with what became of it.
pub(super) fn compare(x: &[f32], rounded: &[f32], importance: Option<&[f32]>) -> Sums {
    const LANES: usize = 16;
    const SPAN: usize = 256;
    let mut sums = Sums::default();
    for (i, (x, y)) in x.chunks(SPAN).zip(rounded.chunks(SPAN)).enumerate() {
        let (mut error, mut energy) = ([0f32; LANES], [0f32; LANES]);
        let mut add = |lane: usize, x: f32, y: f32, w: f32| {
            error[lane] += w * (x - y) * (x - y);
            energy[lane] += w * x * x;
        };
        match importance.map(|w| &w[i * SPAN..]) {
            None => {
                let (whole, rest) = x.as_chunks::<LANES>();
                let (whole_y, rest_y) = y.as_chunks::<LANES>();
                for (x, y) in whole.iter().zip(whole_y) {
                    (0..LANES).for_each(|lane| add(lane, x[lane], y[lane], 1.0));
                }
                rest.iter().zip(rest_y).for_each(|(x, y)| add(0, *x, *y, 1.0));
            }
            Some(w) => {
                for ((x, y), w) in x.chunks(LANES).zip(y.chunks(LANES)).zip(w.chunks(LANES)) {
                    for (lane, ((x, y), w)) in x.iter().zip(y).zip(w).enumerate() {
                        add(lane, *x, *y, *w);
                    }
                }
            }
        }
        sums.error += error.iter().map(|x| f64::from(*x)).sum::<f64>();
        sums.energy += energy.iter().map(|x| f64::from(*x)).sum::<f64>();
    }
    sums
}

pub(super) fn all_finite(x: &[f32]) -> bool {
    !x.iter().fold(false, |found, x| found | !x.is_finite())
}
