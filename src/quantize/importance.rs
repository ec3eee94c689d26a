//! What the columns of a model's matrices matter, as far as a request lets it count.

use super::Imatrix;
use crate::gguf::Value;
use crate::{Result, bail};
use std::collections::BTreeMap;

/// Mean squared inputs of matrices, by tensor.
#[derive(Clone, Debug)]
pub struct Importance {
    values: BTreeMap<String, Vec<f32>>,
    /// Mean inputs, of those tensors of which they are known.
    means: BTreeMap<String, Vec<f64>>,
    file: String,
    dataset: Option<String>,
    n_chunks: usize,
}

impl Importance {
    /// What `imatrix`, which `file` holds, says of the tensors whose names contain one of `include`, if there is any, and
    /// none of `exclude`.
    ///
    /// # Errors
    /// `Usage` if nothing is left.
    pub fn new(file: &str, imatrix: &Imatrix, include: &[String], exclude: &[String]) -> Result<Importance> {
        let any = |parts: &[String], name: &str| parts.iter().any(|part| name.contains(part.as_str()));
        let counts = |name: &str| (include.is_empty() || any(include, name)) && !any(exclude, name);
        let kept = imatrix.entries().filter(|(name, _)| counts(name));
        let values: BTreeMap<_, _> =
            kept.map(|(name, entry)| (name.to_owned(), entry.means().collect::<Vec<f32>>())).collect();
        if values.is_empty() {
            bail!(Usage, "{file}: no tensor is left of this importance matrix of {}", imatrix.len());
        }
        let mean = |name: &String| Some((name.clone(), imatrix.entry(name)?.mean_input()?));
        let means = values.keys().filter_map(mean).collect();
        let dataset = imatrix.datasets().first().cloned();
        Ok(Importance { values, means, file: file.to_owned(), dataset, n_chunks: imatrix.n_chunks() })
    }

    /// Number of tensors.
    pub fn len(&self) -> usize {
        self.values.len()
    }

    /// Whether it has no tensors; never.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// What the columns of a tensor matter.
    pub fn get(&self, tensor: &str) -> Option<&[f32]> {
        self.values.get(tensor).map(Vec::as_slice)
    }

    /// The mean input of a tensor, `[n_cols]`, if it is known.
    pub fn mean_input(&self, tensor: &str) -> Option<&[f64]> {
        self.means.get(tensor).map(Vec::as_slice)
    }

    /// What a quantized file says about where it was used, as llama-quantize writes it.
    pub fn metadata(&self) -> Vec<(&'static str, Value)> {
        let mut entries = vec![("quantize.imatrix.file", Value::from(self.file.as_str()))];
        entries.extend(self.dataset.as_deref().map(|dataset| ("quantize.imatrix.dataset", Value::from(dataset))));
        entries.push(("quantize.imatrix.entries_count", Value::U32(self.values.len() as u32)));
        if let Ok(n) = u32::try_from(self.n_chunks)
            && n > 0
        {
            entries.push(("quantize.imatrix.chunks_count", Value::U32(n)));
        }
        entries
    }
}
