//! A sampler's state as plain data, for files: where its random numbers are and what it remembers of the tokens seen.

use super::rng::Rng;
use super::{Adaptive, Penalties, Sampler, SamplerParams};
use serde::{Deserialize, Serialize};

/// What [`Sampler::state`] gives and [`Sampler::restore`] takes. Floats are kept as their bits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SamplerState {
    /// The parameters in words, but for the seed.
    params: String,
    seed: u32,
    rng: (Vec<u32>, usize),
    xtc_rng: (Vec<u32>, usize),
    penalties: Vec<u32>,
    dry: Vec<u32>,
    mu: u32,
    adaptive: (u32, u32),
    adaptive_pending: Option<(u32, u32)>,
}

/// Everything that decides what is remembered.
fn words(params: &SamplerParams) -> String {
    format!("{:?}", SamplerParams { seed: None, ..params.clone() })
}

impl Sampler {
    /// Its state.
    pub fn state(&self) -> SamplerState {
        SamplerState {
            params: words(&self.params),
            seed: self.seed,
            rng: self.rng.state(),
            xtc_rng: self.xtc_rng.state(),
            penalties: self.penalties.last.iter().copied().collect(),
            dry: self.dry.as_ref().map_or(Vec::new(), |dry| dry.tokens()),
            mu: self.mu.to_bits(),
            adaptive: (self.adaptive.sum.to_bits(), self.adaptive.weight.to_bits()),
            adaptive_pending: self.adaptive.pending.map(|(token, p)| (token, p.to_bits())),
        }
    }

    /// Goes on from `state`. With other parameters than those that it was made with, `seen` are the tokens to remember; random
    /// numbers go on unless this sampler was given a seed of its own. False, and nothing happens, if no sampler makes such
    /// a state.
    pub fn restore(&mut self, state: &SamplerState, seen: impl Iterator<Item = u32>) -> bool {
        let (Some(rng), Some(xtc_rng)) = (Rng::restored(&state.rng), Rng::restored(&state.xtc_rng)) else {
            return false;
        };
        let (sum, weight) = (f32::from_bits(state.adaptive.0), f32::from_bits(state.adaptive.1));
        let pending = state.adaptive_pending.map(|(token, p)| (token, f32::from_bits(p)));
        let mu = f32::from_bits(state.mu);
        if ![mu, sum, weight, pending.map_or(0.0, |(_, p)| p)].iter().all(|x| x.is_finite()) {
            return false;
        }
        if self.params.seed.is_none_or(|seed| seed == state.seed) {
            (self.seed, self.rng, self.xtc_rng) = (state.seed, rng, xtc_rng);
        }
        self.forget();
        if state.params != words(&self.params) {
            seen.for_each(|token| self.accept(token));
            return true;
        }
        self.penalties = Penalties::default();
        let window = usize::try_from(self.params.repeat_last_n).unwrap_or(usize::MAX);
        for token in &state.penalties[state.penalties.len().saturating_sub(window)..] {
            self.penalties.last.push_back(*token);
            *self.penalties.counts.entry(*token).or_insert(0) += 1;
        }
        if let Some(dry) = &mut self.dry {
            dry.restore(&state.dry);
        }
        self.mu = mu;
        self.adaptive = Adaptive { sum, weight, pending };
        true
    }
}
