//! Types for a file of a given size: the errors of all tensors in all types are measured, and those are taken that lose least.

use super::Sums;
use super::quantize::{Quantizer, compare};
use crate::quantize::budget::{Candidate, choose};
use crate::quantize::mix::{Role, block};
use crate::quantize::{Plan, Planned, floor};
use crate::{Dtype, Result, bail};
use mmq_kernels::quantize::quantize;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// Weights of a tensor that stand for all of them when errors are measured.
const SAMPLE: usize = 128 << 10;
/// Rows of the sample that one thread takes at a time.
const PART: usize = 16 << 10;

/// How large the new files may be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Target {
    /// All files together, in bytes.
    Bytes(u64),
    /// All tensors together, in bits for each weight.
    BitsPerWeight(f64),
}

/// What became of a target.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fit {
    /// Bytes of what the target speaks of.
    pub bytes: u64,
    /// Bytes that the target allows.
    pub allowed: u64,
    /// Whether no larger choice exists.
    pub is_largest: bool,
}

/// Types for matrices, smallest blocks last; the source's own type comes on top.
const TYPES: [Dtype; 21] = {
    use Dtype::*;
    [
        IQ1_S, IQ1_M, IQ2_XXS, IQ2_XS, IQ2_S, Q2_K, IQ3_XXS, Q3_K, IQ3_S, IQ4_XS, Q4_K, Q5_K, Q6_K, IQ4_NL, Q4_0, Q4_1,
        Q5_0, Q5_1, Q8_0, F16, BF16,
    ]
};

impl Quantizer<'_> {
    /// Chooses the types of all tensors of `plan` that are free, so that the files are as good as `target` lets them be.
    ///
    /// The loss of a type is the tensor's relative squared error in it, measured on a sample of rows and weighted by
    /// importance where there is any, times how much of the model's result depends on the tensor.
    ///
    /// # Errors
    /// `Usage` if the target is smaller than the smallest choice; tensors that cannot be read; `cancel` used by another thread.
    pub fn fit(&mut self, plan: &mut Plan, target: Target) -> Result<Fit> {
        let free: Vec<usize> = (0..plan.tensors.len()).filter(|i| plan.tensors[*i].free).collect();
        let mut measured = Vec::with_capacity(free.len());
        for (n, &i) in free.iter().enumerate() {
            self.check_cancel()?;
            measured.push(self.candidates(&plan.tensors[i], plan.requantizes())?);
            (self.progress)((n + 1) as f32 / free.len() as f32);
        }
        let shares = shares(plan, &free, &measured);
        let alignment = match target {
            Target::Bytes(_) => plan.alignment(),
            Target::BitsPerWeight(_) => 1,
        };
        let mut choices: Vec<Vec<Candidate<Dtype>>> = Vec::with_capacity(free.len());
        for ((&i, (types, energy)), share) in free.iter().zip(&measured).zip(shares) {
            let tensor = &plan.tensors[i];
            let candidate = |(dtype, error): &(Dtype, f64)| Candidate {
                what: *dtype,
                bytes: (tensor.bytes_as(*dtype) as u64).next_multiple_of(alignment),
                loss: if *energy > 0.0 { share * error / energy } else { 0.0 },
            };
            choices.push(types.iter().map(candidate).collect());
        }
        let of_free: u64 = free.iter().map(|&i| (plan.tensors[i].bytes() as u64).next_multiple_of(alignment)).sum();
        let (allowed, all) = match target {
            Target::Bytes(bytes) => (bytes, plan.file_bytes()?),
            Target::BitsPerWeight(bits) => ((bits * plan.n_params() as f64 / 8.0) as u64, plan.n_bytes()),
        };
        let fixed = all - of_free;
        let size = |pick: fn(&[Candidate<Dtype>]) -> u64| fixed + choices.iter().map(|c| pick(c)).sum::<u64>();
        let smallest = size(|c| c.iter().map(|c| c.bytes).min().unwrap_or(0));
        let largest = size(|c| c.iter().map(|c| c.bytes).max().unwrap_or(0));
        let budget = allowed.checked_sub(fixed);
        // Without the floors only where they leave no room.
        let floors = self.above_floors(plan, &free, &choices);
        let chosen = budget.and_then(|budget| {
            let with_floors = choose(&floors, budget).map(|at| picked(&floors, &at));
            with_floors.or_else(|| choose(&choices, budget).map(|at| picked(&choices, &at)))
        });
        let Some(chosen) = chosen else {
            let bits = |bytes: u64| bytes as f64 * 8.0 / plan.n_params() as f64;
            match target {
                Target::Bytes(bytes) => {
                    bail!(
                        Usage,
                        "a target of {bytes} bytes cannot be reached: from {smallest} to {largest} are possible"
                    )
                }
                Target::BitsPerWeight(target) => bail!(
                    Usage,
                    "a target of {target} bits per weight cannot be reached: from {:.2} to {:.2} are possible",
                    bits(smallest),
                    bits(largest)
                ),
            }
        };
        for (&i, dtype) in free.iter().zip(chosen) {
            plan.choose(i, dtype);
        }
        let bytes = match target {
            Target::Bytes(_) => plan.file_bytes()?,
            Target::BitsPerWeight(_) => plan.n_bytes(),
        };
        Ok(Fit { bytes, allowed, is_largest: bytes >= largest })
    }

    /// The types that a tensor can have, with its squared error in each, and its energy; both on the sample.
    fn candidates(&self, tensor: &Planned, requantizes: bool) -> Result<(Vec<(Dtype, f64)>, f64)> {
        let n_cols = tensor.n_cols();
        let rows = self.rows(tensor, tensor.from)?;
        let may = |dtype: &Dtype| {
            dtype.is_quantizable()
                && dtype.row_bytes(n_cols).is_some()
                && dtype.bits_per_weight() < tensor.from.bits_per_weight()
                && (rows.importance.is_some() || !dtype.wants_importance())
                // Half precision of one kind is not the other's, and not smaller.
                && (tensor.from == Dtype::F32 || dtype.block().0 > 1)
        };
        let types: Vec<Dtype> =
            if tensor.from.is_float() || requantizes { TYPES.into_iter().filter(may).collect() } else { Vec::new() };
        let n_rows = tensor.n_elements() / n_cols;
        let n_sample = (SAMPLE / n_cols).clamp(1, n_rows);
        let places: Vec<usize> = (0..n_sample).map(|i| i * n_rows / n_sample).collect();
        let mut x = vec![0.0; n_sample * n_cols];
        let bytes = self.gguf.bytes(self.info(tensor));
        for (&row, x) in places.iter().zip(x.chunks_exact_mut(n_cols)) {
            let from = &bytes[row * rows.row_before..][..rows.row_before];
            (self.device.kernels.dequantize)(tensor.from, from, x);
            if let Some(col) = x.iter().position(|x| !x.is_finite()) {
                bail!(Format, "{}: expected a finite number, got {}", self.place(tensor, row * n_cols + col), x[col]);
            }
        }
        bytes.give_back(0..bytes.len());
        let (kernels, search) = (self.device.kernels, self.search);
        let per_part = (PART / n_cols).max(1);
        let n_parts = n_sample.div_ceil(per_part);
        let sums: Vec<Mutex<Sums>> = (0..types.len().max(1) * n_parts).map(|_| Mutex::default()).collect();
        self.device.team.run(sums.len(), &|i| {
            let (candidate, part) = (i / n_parts, i % n_parts);
            let mut rounded = vec![0.0; n_cols];
            let mut of_part = Sums::default();
            for at in (part * per_part)..((part + 1) * per_part).min(n_sample) {
                let row = &x[at * n_cols..][..n_cols];
                let (importance, _) = rows.importance_of(places[at], 1);
                match types.get(candidate) {
                    Some(&dtype) => {
                        let mut out = vec![0; dtype.row_bytes(n_cols).expect("only such types are tried")];
                        quantize(dtype, search, row, n_cols, importance, &mut out);
                        (kernels.dequantize)(dtype, &out, &mut rounded);
                        of_part.add(compare(row, &rounded, importance));
                    }
                    None => of_part.add(compare(row, row, importance)),
                }
            }
            *sums[i].lock().unwrap_or_else(PoisonError::into_inner) = of_part;
        });
        let mut totals = vec![Sums::default(); types.len().max(1)];
        for (i, sums) in sums.into_iter().enumerate() {
            totals[i / n_parts].add(sums.into_inner().unwrap_or_else(PoisonError::into_inner));
        }
        let energy = totals[0].energy;
        let mut found: Vec<_> = types
            .into_iter()
            .zip(totals)
            .map(|(dtype, sums)| (dtype, sums.error))
            .filter(|c| c.1.is_finite())
            .collect();
        found.push((tensor.from, 0.0));
        Ok((found, energy))
    }

    /// The candidates that are no smaller than a tensor's [`floor`].
    fn above_floors(
        &self,
        plan: &Plan,
        free: &[usize],
        choices: &[Vec<Candidate<Dtype>>],
    ) -> Vec<Vec<Candidate<Dtype>>> {
        let names = || plan.tensors.iter().map(|t| t.name.as_str());
        let is_tied = names().all(|name| name != "output.weight");
        let n_blocks = names().filter_map(block).max().map_or(0, |i| i + 1);
        let above = |(i, all): (&usize, &Vec<Candidate<Dtype>>)| {
            let least = floor(plan.model(), &plan.tensors[*i].name, n_blocks, is_tied).bits_per_weight();
            // The source's own type comes last and always stays.
            let kept =
                all.iter().enumerate().filter(|(at, c)| at + 1 == all.len() || c.what.bits_per_weight() >= least);
            kept.map(|(_, c)| *c).collect()
        };
        free.iter().zip(choices).map(above).collect()
    }
}

fn picked(choices: &[Vec<Candidate<Dtype>>], at: &[usize]) -> Vec<Dtype> {
    choices.iter().zip(at).map(|(candidates, at)| candidates[*at].what).collect()
}

/// How much of a model's result depends on each free tensor.
///
/// A relative error of the output matrix is one of the logits: 1. What a block's attention or feed-forward part adds to the
/// residual stream is a part of it, and a relative error anywhere in the part is about one of its result; scores of attention
/// are softened by the softmax. How large the parts are is told by the energy of what their last matrices make of inputs as
/// large as importance says; its root, since a few positions alone (the first token's) can make up most of it. Without
/// importance all parts are alike.
fn shares(plan: &Plan, free: &[usize], measured: &[(Vec<(Dtype, f64)>, f64)]) -> Vec<f64> {
    let part = |name: &str| {
        let role = Role::of(name);
        let is_ffn = matches!(role, Role::FfnDown | Role::FfnGate | Role::FfnUp);
        block(name).map(|block| (name.split("blk.").next().unwrap_or_default().to_owned(), block, is_ffn))
    };
    let ends =
        |name: &str| matches!(Role::of(name), Role::FfnDown | Role::AttnOutput) || name.contains("attn_out.weight");
    let mut roots: HashMap<_, f64> = HashMap::new();
    for (&i, (_, energy)) in free.iter().zip(measured) {
        let t = &plan.tensors[i];
        if let Some(part) = part(&t.name) {
            let n_sample = (SAMPLE / t.n_cols()).clamp(1, t.n_elements() / t.n_cols());
            let all = energy * (t.n_elements() / t.n_cols()) as f64 / n_sample as f64;
            let root = roots.entry(part).or_insert(0.0);
            if ends(&t.name) {
                *root = all.sqrt();
            }
        }
    }
    let n_parts = roots.len().max(1) as f64;
    let sum: f64 = roots.values().sum();
    let weighted = plan.has_importance() && sum > 0.0 && roots.values().all(|root| *root > 0.0);
    let share = |i: &usize| {
        let name = plan.tensors[*i].name.as_str();
        let of_part = match part(name).and_then(|part| roots.get(&part)) {
            Some(root) if weighted => root / sum,
            _ => 1.0 / n_parts,
        };
        let is_tied = plan.tensors.iter().all(|t| t.name != "output.weight");
        match Role::of(name) {
            Role::Output => 1.0,
            Role::TokenEmbd if is_tied => 1.0,
            Role::TokenEmbd => (4.0 * of_part).min(1.0),
            Role::AttnQ | Role::AttnK => 0.5 * of_part,
            // A projector's error is one of every image token.
            Role::Other if block(name).is_none() => 1.0,
            _ => of_part,
        }
    };
    free.iter().map(share).collect()
}
