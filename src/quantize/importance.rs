//! What the columns of a model's matrices matter, as far as a request lets it count.

use crate::gguf::Value;
use crate::{Result, bail};
use std::collections::BTreeMap;

/// Mean squared inputs of matrices, by tensor.
#[derive(Clone, Debug)]
pub struct Importance {
    values: BTreeMap<String, Vec<f32>>,
    file: String,
    dataset: Option<String>,
    n_chunks: usize,
}

impl Importance {
    /// The `entries` of `file`, which was made from `dataset` in `n_chunks`: those whose names contain one of `include`, if
    /// there is any, and none of `exclude`. The values are `[n_cols]`, or `[n_experts, n_cols]`.
    ///
    /// # Errors
    /// `Format` for values that are negative or no numbers, `Usage` if nothing is left.
    pub fn new(
        file: &str,
        dataset: Option<&str>,
        n_chunks: usize,
        entries: impl IntoIterator<Item = (String, Vec<f32>)>,
        include: &[String],
        exclude: &[String],
    ) -> Result<Importance> {
        let any = |parts: &[String], name: &str| parts.iter().any(|part| name.contains(part.as_str()));
        let mut values = BTreeMap::new();
        for (name, of_tensor) in entries {
            if exclude.is_empty() && include.is_empty()
                || !include.is_empty() && any(include, &name)
                || !exclude.is_empty() && !any(exclude, &name)
            {
                if let Some(i) = of_tensor.iter().position(|w| !w.is_finite() || *w < 0.0) {
                    bail!(
                        Format,
                        "{file}: {name:?}: value {i} is {}, expected a finite one, not negative",
                        of_tensor[i]
                    );
                }
                values.insert(name, of_tensor);
            }
        }
        if values.is_empty() {
            bail!(Usage, "{file}: no tensor is left of this importance matrix");
        }
        Ok(Importance { values, file: file.to_owned(), dataset: dataset.map(str::to_owned), n_chunks })
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
