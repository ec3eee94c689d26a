//! The sampler chain, with llama.cpp's names and defaults.

use crate::Result;
use crate::text::Tokenizer;

/// Every knob of the chain; `Default` gives llama.cpp's defaults.
#[derive(Clone, Debug, Default)]
pub struct SamplerParams {
    /// `--temp`; 0 or less is greedy.
    pub temp: f32,
}

/// The chain with its state: random numbers and the tokens seen.
pub struct Sampler {}

#[allow(unused_variables)]
impl Sampler {
    /// Checks the parameters.
    pub fn new(params: &SamplerParams, tokenizer: &Tokenizer) -> Result<Sampler> {
        todo!()
    }
    /// The seed in use.
    pub fn seed(&self) -> u32 {
        todo!()
    }
    /// Chooses a token from `logits: [n_vocab]` (left as they are).
    pub fn sample(&mut self, logits: &[f32]) -> u32 {
        todo!()
    }
    /// Remembers a token of the prompt or of the answer for the penalties.
    pub fn accept(&mut self, token: u32) {
        todo!()
    }
}
