//! The sampler chain, with llama.cpp's names, defaults and semantics. Chooses one token from logits; knows no model.

mod candidates;
mod dry;
mod params;
mod rng;
mod state;

#[cfg(test)]
mod tests;

use crate::Result;
use crate::text::Tokenizer;
use candidates::Candidates;
use dry::Dry;
pub use params::{SamplerKind, SamplerParams};
use rng::{Rng, random_seed};
pub use state::SamplerState;
use std::collections::{HashMap, VecDeque};

/// The chain with its state: random numbers and the tokens seen.
pub struct Sampler {
    params: SamplerParams,
    /// Biases of the user, of `--ignore-eos` and of the model.
    bias: Vec<(u32, f32)>,
    seed: u32,
    rng: Rng,
    /// XTC draws from a sequence of its own, so that it does not shift the other.
    xtc_rng: Rng,
    penalties: Penalties,
    dry: Option<Dry>,
    /// Mirostat's bound on surprise.
    mu: f32,
    adaptive: Adaptive,
    candidates: Candidates,
}

/// The last tokens and how often each of them occurs.
#[derive(Default)]
struct Penalties {
    last: VecDeque<u32>,
    counts: HashMap<u32, u32>,
}

/// Running average of the probabilities that the chosen tokens had.
struct Adaptive {
    sum: f32,
    weight: f32,
    /// The token chosen last and its probability before the transform.
    pending: Option<(u32, f32)>,
}

impl Adaptive {
    fn new(params: &SamplerParams) -> Adaptive {
        let weight = 1.0 / (1.0 - params.adaptive_decay);
        Adaptive { sum: params.adaptive_target * weight, weight, pending: None }
    }
}

impl Sampler {
    /// Checks the parameters; a bad one is a [`Usage`](crate::ErrorKind::Usage) error that names its flag.
    pub fn new(params: &SamplerParams, tokenizer: &Tokenizer) -> Result<Sampler> {
        params.check(tokenizer.n_vocab())?;
        let mut bias = params.logit_bias.clone();
        let banned = if params.ignore_eos { tokenizer.eog_tokens() } else { &[] };
        bias.extend(banned.iter().chain(tokenizer.suppressed_tokens()).map(|&id| (id, f32::NEG_INFINITY)));
        let seed = params.seed.unwrap_or_else(random_seed);
        Ok(Sampler {
            bias,
            seed,
            rng: Rng::new(seed),
            xtc_rng: Rng::new(seed),
            penalties: Penalties::default(),
            dry: Dry::new(params, tokenizer),
            mu: 2.0 * params.mirostat_ent,
            adaptive: Adaptive::new(params),
            candidates: Candidates::default(),
            params: params.clone(),
        })
    }

    /// The seed in use.
    pub fn seed(&self) -> u32 {
        self.seed
    }

    /// Back to the state after `new`, with the same seed.
    pub fn reset(&mut self) {
        self.rng = Rng::new(self.seed);
        self.xtc_rng = Rng::new(self.seed);
        self.forget();
    }

    /// Forgets the tokens seen; the random numbers go on.
    pub fn forget(&mut self) {
        self.penalties = Penalties::default();
        if let Some(dry) = &mut self.dry {
            dry.reset();
        }
        self.mu = 2.0 * self.params.mirostat_ent;
        self.adaptive = Adaptive::new(&self.params);
    }

    /// Chooses a token from `logits: [n_vocab]` (left as they are). NaN counts as impossible; without any logits it
    /// is token 0.
    pub fn sample(&mut self, logits: &[f32]) -> u32 {
        let mut c = std::mem::take(&mut self.candidates);
        c.fill(logits);
        let chosen = if c.list.is_empty() { 0 } else { self.choose(&mut c, logits.len()) };
        self.candidates = c;
        chosen
    }

    fn choose(&mut self, c: &mut Candidates, n_vocab: usize) -> u32 {
        let p = &self.params;
        for &(id, bias) in &self.bias {
            c.change(id, |logit| *logit += bias);
        }
        if p.is_greedy() {
            for link in &p.samplers {
                self.penalize(*link, c);
            }
            return c.list[c.best()].id;
        }
        if p.mirostat > 0 {
            c.temperature(p.temp, 0.0, 1.0);
            if p.mirostat == 1 {
                let k = c.mirostat_k(self.mu, n_vocab);
                c.top_k(k);
            } else {
                c.mirostat_cut(self.mu);
            }
            let chosen = draw(&mut self.rng, c);
            let surprise = -c.list[chosen].p.log2();
            self.mu -= p.mirostat_lr * (surprise - p.mirostat_ent);
            return c.list[chosen].id;
        }
        for &link in &p.samplers {
            match link {
                SamplerKind::Penalties | SamplerKind::Dry => self.penalize(link, c),
                SamplerKind::TopNSigma => c.top_n_sigma(p.top_n_sigma),
                SamplerKind::TopK => c.top_k(p.top_k),
                SamplerKind::TypicalP => c.typical_p(p.typical_p, p.min_keep),
                SamplerKind::TopP => c.top_p(p.top_p, p.min_keep),
                SamplerKind::MinP => c.min_p(p.min_p, p.min_keep),
                SamplerKind::Xtc => c.xtc(p.xtc_probability, p.xtc_threshold, p.min_keep, || self.xtc_rng.f32()),
                SamplerKind::Temperature => c.temperature(p.temp, p.dynatemp_range, p.dynatemp_exponent),
                SamplerKind::AdaptiveP => {}
            }
        }
        if p.samplers.contains(&SamplerKind::AdaptiveP) {
            return self.choose_adaptive(c);
        }
        let chosen = c.pick(self.rng.f64());
        c.list[chosen].id
    }

    /// Applies `link` if it is one that looks at the tokens seen.
    fn penalize(&self, link: SamplerKind, c: &mut Candidates) {
        let p = &self.params;
        match (link, &self.dry) {
            (SamplerKind::Dry, Some(dry)) => dry.apply(c),
            (SamplerKind::Penalties, _) if self.penalties_on() => {
                for (&id, &count) in &self.penalties.counts {
                    c.change(id, |logit| {
                        // Dividing would make an unlikely token likelier.
                        *logit = if *logit <= 0.0 { *logit * p.repeat_penalty } else { *logit / p.repeat_penalty };
                        *logit -= count as f32 * p.frequency_penalty + p.presence_penalty;
                    });
                }
            }
            _ => {}
        }
    }

    fn penalties_on(&self) -> bool {
        let p = &self.params;
        p.repeat_last_n != 0 && (p.repeat_penalty != 1.0 || p.frequency_penalty != 0.0 || p.presence_penalty != 0.0)
    }

    /// Prefers tokens near the target probability, which moves against the running average.
    fn choose_adaptive(&mut self, c: &mut Candidates) -> u32 {
        let p = &self.params;
        if p.adaptive_target < 0.0 {
            let chosen = draw(&mut self.rng, c);
            return c.list[chosen].id;
        }
        c.softmax();
        let before: Vec<f32> = c.list.iter().map(|c| c.p).collect();
        let target = (2.0 * p.adaptive_target - self.adaptive.sum / self.adaptive.weight).clamp(0.0, 1.0);
        for candidate in c.list.iter_mut().filter(|c| c.logit != f32::NEG_INFINITY) {
            // Quadratic near the target, linear far away: peak 5, sharpness 10, width 0.3.
            let distance = ((candidate.p - target) / 0.3).abs();
            candidate.logit = 5.0 - 10.0 * distance * distance / (1.0 + distance);
        }
        c.sorted = false;
        let chosen = draw(&mut self.rng, c);
        self.adaptive.pending = Some((c.list[chosen].id, before[chosen]));
        c.list[chosen].id
    }

    /// Remembers a token of the prompt or of the answer for the penalties.
    pub fn accept(&mut self, token: u32) {
        if self.penalties_on() {
            let Penalties { last, counts } = &mut self.penalties;
            last.push_back(token);
            *counts.entry(token).or_insert(0) += 1;
            let window = usize::try_from(self.params.repeat_last_n).unwrap_or(usize::MAX);
            if last.len() > window
                && let Some(old) = last.pop_front()
                && let Some(count) = counts.get_mut(&old)
            {
                *count -= 1;
                if *count == 0 {
                    counts.remove(&old);
                }
            }
        }
        if let Some(dry) = &mut self.dry {
            dry.accept(token);
        }
        if let Some((id, p)) = self.adaptive.pending.take()
            && id == token
        {
            let decay = self.params.adaptive_decay;
            self.adaptive.sum = p + decay * self.adaptive.sum;
            self.adaptive.weight = 1.0 + decay * self.adaptive.weight;
        }
    }
}

/// Picks by probability; where there is no choice, no number is drawn.
fn draw(rng: &mut Rng, c: &mut Candidates) -> usize {
    let fraction = if c.list.len() < 2 { 0.0 } else { rng.f64() };
    c.pick(fraction)
}
