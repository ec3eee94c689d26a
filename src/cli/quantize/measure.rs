//! `mmq quantize --measure`: the new model beside the one that it was made of, on a text.

use super::super::read_text;
use crate::pipelines::evaluate::{Cut, Divergence, Evaluation, Perplexity, Stretch};
use crate::pipelines::{Cancel, Engine, EngineOptions, SessionOptions};
use crate::{Error, Result};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;

/// Most tokens of a stretch, as for `mmq perplexity`.
const N_CTX: usize = 512;

/// The original and the text, checked before hours are spent on quantizing.
pub struct Comparison {
    original: Arc<Engine>,
    stretches: Vec<Stretch>,
    n_ctx: usize,
}

/// How the new model compares.
pub struct Verdict {
    new: Perplexity,
    divergence: Divergence,
    n_tokens: usize,
}

impl Comparison {
    /// Loads the original and cuts the text.
    pub fn new(original: &Path, text: &Path, n_chunks: i64, n_threads: Option<usize>) -> Result<Comparison> {
        let in_flag = |e: Error| e.context("--measure");
        let options = EngineOptions { n_threads, ..EngineOptions::default() };
        let original = Arc::new(Engine::load(original, None, &options).map_err(in_flag)?);
        let text = read_text(text)?;
        let text = text.trim_end_matches('\n');
        // A text shorter than two stretches makes shorter ones.
        let n_tokens = original.tokenizer().encode(text, true, false).len();
        let n_ctx = N_CTX.min(original.n_ctx_train()).min(n_tokens / 2);
        let cut = Cut { n_ctx, stride: None, n_chunks: usize::try_from(n_chunks).ok() };
        let stretches = Stretch::cut(&original, text, &cut).map_err(in_flag)?;
        Ok(Comparison { original, stretches, n_ctx })
    }

    /// Compares the new file with the original; `progress` is told the fraction done.
    pub fn with(
        &self,
        new: &Path,
        n_threads: Option<usize>,
        cancel: &Cancel,
        progress: &mut dyn FnMut(f32),
    ) -> Result<Verdict> {
        let options = EngineOptions { n_threads, ..EngineOptions::default() };
        let new = Arc::new(Engine::load(new, None, &options)?);
        let session = SessionOptions { n_ctx: self.n_ctx, ..SessionOptions::default() };
        let mut evaluation = Evaluation::new(&new, Some(&self.original), &session, cancel)?;
        for (i, stretch) in self.stretches.iter().enumerate() {
            evaluation.add(stretch, None)?;
            progress((i + 1) as f32 / self.stretches.len() as f32);
        }
        let divergence = evaluation.divergence().expect("there is a model to compare with");
        Ok(Verdict { new: evaluation.perplexity(), divergence, n_tokens: evaluation.n_scored() })
    }
}

impl Verdict {
    /// In a line.
    pub fn line(&self) -> String {
        let d = &self.divergence;
        format!(
            "verdict: {}; perplexity {:.3} → {:.3} ({:+.2} % ± {:.2}), divergence {:.4} ± {:.4}, same favourite {:.1} % of {} tokens",
            self.words(),
            d.base.ppl.value,
            self.new.ppl.value,
            100.0 * (d.ratio.value - 1.0),
            100.0 * d.ratio.error,
            d.kld.value,
            d.kld.error,
            100.0 * d.same_top.value,
            self.n_tokens
        )
    }

    /// By the mean Kullback-Leibler divergence: what Q8_0, Q5_K_M, Q4_K_M and Q3_K_M cost a model of 8 billion weights lies
    /// around 0.001, 0.01, 0.03 and 0.1.
    fn words(&self) -> &'static str {
        match self.divergence.kld.value {
            d if d < 0.005 => "as good as the original",
            d if d < 0.02 => "hardly different",
            d if d < 0.06 => "slightly worse",
            d if d < 0.2 => "noticeably worse",
            _ => "much worse",
        }
    }

    /// As an object.
    pub fn json(&self) -> Value {
        let d = &self.divergence;
        json!({
            "verdict": self.words(),
            "n_tokens": self.n_tokens,
            "ppl": self.new.ppl.value,
            "ppl_original": d.base.ppl.value,
            "ppl_ratio": d.ratio.value,
            "ppl_ratio_error": d.ratio.error,
            "kld": d.kld.value,
            "kld_error": d.kld.error,
            "same_top": d.same_top.value,
        })
    }
}
