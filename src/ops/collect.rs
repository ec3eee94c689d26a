//! Squared inputs of the matrices in a forward pass, summed column by column: what importance matrices are made of.

use crate::device::Cpu;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Sums up what goes into matrices, by the name of the tensor that each is. Sums do not depend on the number of threads, nor
/// on how tokens are put into batches.
///
/// Matrices whose error nobody could weigh column by column are left out: tables of embeddings and the patch convolution,
/// which quantizers leave alone.
#[derive(Clone, Debug, Default)]
pub struct Collector {
    with_output: bool,
    sums: BTreeMap<Arc<str>, Inputs>,
}

/// What has gone into one matrix.
#[derive(Clone, Debug)]
pub struct Inputs {
    /// Rows of input.
    pub n_rows: u64,
    /// Sums of their squares, `[n_cols]`.
    pub squares: Vec<f64>,
    /// Sums of them themselves, `[n_cols]`; of layers with a bias only.
    pub sums: Option<Vec<f64>>,
}

impl Collector {
    /// One that has seen nothing; `with_output`: `output.weight` is of interest, too.
    pub fn new(with_output: bool) -> Collector {
        Collector { with_output, sums: BTreeMap::new() }
    }

    /// Whether the output matrix is of interest.
    pub fn with_output(&self) -> bool {
        self.with_output
    }

    /// Names and sums of all that has been seen, sorted by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Inputs)> {
        self.sums.iter().map(|(name, inputs)| (&**name, inputs))
    }

    /// Whether the inputs of a tensor are of interest.
    pub(super) fn wants(&self, name: &str) -> bool {
        match name {
            "token_embd.weight" | "v.patch_embd.weight" => false,
            "output.weight" => self.with_output,
            _ => true,
        }
    }

    /// Adds `x: [n_rows, n_cols]`, the input of tensor `name`, whose outputs are added to a bias if `biased`.
    pub(super) fn add(&mut self, device: &Cpu, name: &Arc<str>, biased: bool, x: &[f32], n_cols: usize) {
        let new = || Inputs { n_rows: 0, squares: vec![0.0; n_cols], sums: biased.then(|| vec![0.0; n_cols]) };
        let inputs = self.sums.entry(name.clone()).or_insert_with(new);
        assert_eq!(inputs.squares.len(), n_cols, "{name} has one shape");
        inputs.n_rows += (x.len() / n_cols) as u64;
        sum(device, &mut inputs.squares, x, |x| x * x);
        if let Some(sums) = &mut inputs.sums {
            sum(device, sums, x, |x| x);
        }
    }
}

/// Adds `of` each element of `x: [n_rows, n_cols]` to the sum of its column.
fn sum(device: &Cpu, sums: &mut [f64], x: &[f32], of: impl Fn(f64) -> f64 + Sync) {
    /// Columns that a thread takes at a time: two cache lines of inputs.
    const STEP: usize = 32;
    let n_cols = sums.len();
    // Each column is summed token by token, so that the order is always the same.
    device.team.rows(sums, STEP, &|i, sums| {
        for row in x.chunks_exact(n_cols) {
            let row = &row[i * STEP..i * STEP + sums.len()];
            sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += of(f64::from(*x)));
        }
    });
}
