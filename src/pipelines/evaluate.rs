//! How well a model predicts given text, and how far its predictions are from another model's.
//!
//! Perplexity, Kullback-Leibler divergence and their companions, defined as llama.cpp's `llama-perplexity` defines them.
//! Where that program writes the base model's logits to a file, rounded to 16 bits, two models run side by side here and
//! logits are compared as they come: no more of them exist than one batch has.

use super::{Cancel, Engine, KvType, Piece, Prompt, Session, SessionOptions};
use crate::device::Cpu;
use crate::{Result, bail};
use std::sync::Arc;

/// Positions of which the last ones are scored: how probable is each of the last [`Stretch::n_scored`] tokens, given all
/// that stands before it?
#[derive(Clone, Debug)]
pub struct Stretch {
    /// What the model sees.
    pub prompt: Prompt,
    /// How many tokens at its end are scored.
    pub n_scored: usize,
}

/// How a text is cut into stretches.
#[derive(Clone, Debug)]
pub struct Cut {
    /// Tokens of a stretch.
    pub n_ctx: usize,
    /// `None`: stretches follow each other, and the second half of each is scored. Else stretches begin this many tokens
    /// after each other, and as many are scored at the end of each.
    pub stride: Option<usize>,
    /// Most stretches; `None`: as many as the text has.
    pub n_chunks: Option<usize>,
}

impl Stretch {
    /// Cuts a text. If the tokenizer puts BOS before a text, BOS replaces the first token of each stretch. What is left at
    /// the end is not used.
    ///
    /// # Errors
    /// A text of fewer than `2 · n_ctx` tokens; sizes that leave nothing to score; a tokenizer that appends EOS.
    pub fn cut(engine: &Engine, text: &str, cut: &Cut) -> Result<Vec<Stretch>> {
        Stretch::cut_tokens(engine, &engine.tokenizer().encode(text, true, false), cut)
    }

    /// [`Stretch::cut`], of a text that is tokens already.
    pub(super) fn cut_tokens(engine: &Engine, tokens: &[u32], cut: &Cut) -> Result<Vec<Stretch>> {
        let n_ctx = cut.n_ctx;
        if n_ctx < 3 {
            bail!(Usage, "a context of {n_ctx} tokens leaves none to score: expected at least 3 (-c)");
        }
        let (step, n_scored) = match cut.stride {
            None => (n_ctx, n_ctx - 1 - n_ctx / 2),
            Some(stride) if stride == 0 || stride >= n_ctx => {
                bail!(Usage, "a stride of {stride}: expected 1 to {}, less than the context (-c)", n_ctx - 1)
            }
            Some(stride) => (stride, stride),
        };
        let tokenizer = engine.tokenizer();
        if tokenizer.add_eos() {
            bail!(Unsupported, "{}: the tokenizer ends every text with EOS: it cannot be cut", engine.name());
        }
        if tokens.len() / 2 < n_ctx {
            bail!(
                Usage,
                "a context of {n_ctx} tokens (-c) needs a text of at least {} tokens, this one has {}",
                n_ctx.saturating_mul(2),
                tokens.len()
            );
        }
        let bos = tokenizer.bos().filter(|_| tokenizer.add_bos());
        let starts = (0..=tokens.len() - n_ctx).step_by(step).take(cut.n_chunks.unwrap_or(usize::MAX));
        let stretch = |start: usize| {
            let mut tokens = tokens[start..start + n_ctx].to_vec();
            tokens[0] = bos.unwrap_or(tokens[0]);
            Stretch { prompt: Prompt { pieces: vec![Piece::Tokens(tokens)] }, n_scored }
        };
        Ok(starts.map(stretch).collect())
    }

    /// A prompt and the answer that is scored.
    ///
    /// # Errors
    /// An answer without tokens, or an empty prompt.
    pub fn answer(engine: &Engine, mut prompt: Prompt, answer: &str) -> Result<Stretch> {
        let tokens = engine.tokenizer().encode(answer, false, false);
        if tokens.is_empty() || prompt.n_tokens() == 0 {
            bail!(Usage, "nothing to score: expected a prompt and an answer");
        }
        let n_scored = tokens.len();
        prompt.pieces.push(Piece::Tokens(tokens));
        Ok(Stretch { prompt, n_scored })
    }

    /// The tokens that are scored.
    pub(super) fn scored(&self) -> Result<&[u32]> {
        match self.prompt.pieces.last() {
            Some(Piece::Tokens(tokens))
                if self.n_scored > 0 && self.n_scored <= tokens.len() && self.n_scored < self.prompt.n_tokens() =>
            {
                Ok(&tokens[tokens.len() - self.n_scored..])
            }
            _ => bail!(Usage, "the last {} of {} positions cannot be scored", self.n_scored, self.prompt.n_tokens()),
        }
    }
}

/// A mean and its standard error.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// The mean.
    pub value: f64,
    /// Its standard error; 0 for fewer than two values.
    pub error: f64,
}

/// How well a model predicts: `exp` of the mean negative logarithm of what it gave the tokens that came.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Perplexity {
    /// The perplexity.
    pub ppl: Estimate,
    /// Its logarithm.
    pub ln_ppl: Estimate,
}

/// How far a model's predictions are from those of the base model. A token's probability is the one that came.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Divergence {
    /// The base model's perplexity.
    pub base: Perplexity,
    /// Correlation of the two models' negative logarithms, token by token.
    pub correlation: f64,
    /// `ln(PPL / PPL of the base)`.
    pub ln_ratio: Estimate,
    /// `PPL / PPL of the base`.
    pub ratio: Estimate,
    /// `PPL - PPL of the base`.
    pub difference: Estimate,
    /// Kullback-Leibler divergence from the base, `Σ p_base · ln(p_base / p)` over the vocabulary.
    pub kld: Estimate,
    /// `Δp`: a token's probability less the base model's.
    pub p_diff: Estimate,
    /// Root of the mean square of `Δp`.
    pub p_diff_rms: Estimate,
    /// Fraction of tokens where both models have the same favourite.
    pub same_top: Estimate,
}

/// Values in order, to read quantiles from.
#[derive(Clone, Debug, PartialEq)]
pub struct Quantiles(Vec<f64>);

impl Quantiles {
    fn of(mut values: Vec<f64>) -> Quantiles {
        values.sort_unstable_by(f64::total_cmp);
        Quantiles(values)
    }

    /// The value below which the fraction `q` lies, interpolated; NaN if there are none.
    pub fn at(&self, q: f64) -> f64 {
        let Some(last) = self.0.len().checked_sub(1) else { return f64::NAN };
        let place = q.clamp(0.0, 1.0) * last as f64;
        let (i, rest) = (place as usize, place.fract());
        if rest == 0.0 { self.0[i] } else { (1.0 - rest) * self.0[i] + rest * self.0[i + 1] }
    }
}

/// One scored token.
#[derive(Clone, Copy, Default)]
pub(super) struct Score {
    pub(super) nll: f64,
    nll_base: f64,
    kld: f64,
    same_top: bool,
}

/// Sums over all scored tokens.
#[derive(Default)]
struct Sums {
    nll: Moments,
    nll_base: Moments,
    /// Of the differences of the two.
    ln_ratio: Moments,
    /// Sum of products of the two.
    both: f64,
    kld: Moments,
    p_diff: Moments,
    p_diff2: Moments,
    same_top: Moments,
}

#[derive(Clone, Copy, Default)]
pub(super) struct Moments {
    pub(super) n: usize,
    sum: f64,
    squares: f64,
}

impl Moments {
    pub(super) fn add(&mut self, x: f64) {
        self.n += 1;
        self.sum += x;
        self.squares += x * x;
    }

    fn mean(&self) -> Estimate {
        let n = self.n as f64;
        let value = self.sum / n;
        let variance = (self.squares / n - value * value).max(0.0);
        Estimate { value, error: if self.n < 2 { 0.0 } else { (variance / (n - 1.0)).sqrt() } }
    }

    /// `exp` of the mean, if these are negative logarithms of probabilities.
    pub(super) fn perplexity(&self) -> Perplexity {
        let ln_ppl = self.mean();
        Perplexity { ppl: ln_ppl.exp(), ln_ppl }
    }
}

impl Estimate {
    fn exp(self) -> Estimate {
        let value = self.value.exp();
        Estimate { value, error: value * self.error }
    }
}

/// The error of a difference, from its terms' errors and their covariance.
fn difference_error(a: f64, b: f64, covariance: f64) -> f64 {
    (a * a + b * b - 2.0 * covariance).max(0.0).sqrt()
}

/// An evaluation that goes on stretch by stretch.
pub struct Evaluation {
    model: Session,
    base: Option<Session>,
    n_ubatch: usize,
    logits: Vec<f32>,
    base_logits: Vec<f32>,
    scores: Vec<Score>,
    sums: Sums,
    klds: Vec<f64>,
    p_diffs: Vec<f64>,
}

impl Evaluation {
    /// An evaluation of `model`, beside `base` if there is one, which `cancel` stops. The base model keeps its keys and
    /// values in F16, so that other types can be compared with it.
    ///
    /// # Errors
    /// Models of different vocabularies; options that make no sense.
    pub fn new(
        model: &Arc<Engine>,
        base: Option<&Arc<Engine>>,
        options: &SessionOptions,
        cancel: &Cancel,
    ) -> Result<Evaluation> {
        if let Some(base) = base {
            same_vocabulary(model, base)?;
        }
        let base_options =
            SessionOptions { cache_type_k: KvType::default(), cache_type_v: KvType::default(), ..options.clone() };
        Ok(Evaluation {
            model: Session::new(model, options, cancel)?,
            base: base.map(|base| Session::new(base, &base_options, cancel)).transpose()?,
            n_ubatch: options.n_ubatch,
            logits: Vec::new(),
            base_logits: Vec::new(),
            scores: Vec::new(),
            sums: Sums::default(),
            klds: Vec::new(),
            p_diffs: Vec::new(),
        })
    }

    /// Scores a stretch. `for_base` is what the base model sees, if that is not the same: as many tokens are scored.
    ///
    /// # Errors
    /// A stretch that does not fit in the context or whose end is not tokens; logits that are no numbers; the [`Cancel`].
    pub fn add(&mut self, stretch: &Stretch, for_base: Option<&Stretch>) -> Result<()> {
        let tokens = stretch.scored()?;
        let for_base = for_base.unwrap_or(stretch);
        if for_base.scored()? != tokens {
            bail!(Mismatch, "the base model is to be asked about other tokens");
        }
        self.model.truncate(0);
        if let Some(base) = &mut self.base {
            base.truncate(0);
        }
        // Batches end at the same distance from the end, so that the rows of both models belong together. The last token is
        // only predicted.
        let n = stretch.prompt.n_tokens().max(for_base.prompt.n_tokens()) - 1;
        for i in (0..n.div_ceil(self.n_ubatch)).rev() {
            let left = i * self.n_ubatch;
            let n_logits = stretch.n_scored.saturating_sub(left).min(self.n_ubatch);
            advance(&mut self.model, &stretch.prompt, left, self.n_ubatch, n_logits, &mut self.logits)?;
            if let Some(base) = &mut self.base {
                advance(base, &for_base.prompt, left, self.n_ubatch, n_logits, &mut self.base_logits)?;
            }
            if n_logits > 0 {
                let end = stretch.n_scored - left;
                self.compare(&tokens[end - n_logits..end])?;
            }
        }
        Ok(())
    }

    /// Scores `tokens` by a row of logits for each.
    fn compare(&mut self, tokens: &[u32]) -> Result<()> {
        let engine = self.model.engine();
        let n_vocab = engine.text.n_vocab();
        let base = self.base.is_some().then_some(self.base_logits.as_slice());
        let (device, logits) = (&engine.device, self.logits.as_slice());
        self.scores.clear();
        self.scores.resize(tokens.len(), Score::default());
        device.team.rows(&mut self.scores, 1, &|i, score| {
            let row = |logits: &[f32]| i * n_vocab..logits.len().min((i + 1) * n_vocab);
            score[0] = Score::of(device, &logits[row(logits)], base.map(|base| &base[row(base)]), tokens[i] as usize);
        });
        for score in &self.scores {
            if score.nll.is_nan() || score.nll_base.is_nan() {
                let session = self.base.as_ref().filter(|_| score.nll_base.is_nan()).unwrap_or(&self.model);
                bail!(Format, "{}: the model's logits are not numbers", session.engine().name());
            }
            let sums = &mut self.sums;
            sums.nll.add(score.nll);
            if base.is_some() {
                let p_diff = (-score.nll).exp() - (-score.nll_base).exp();
                sums.nll_base.add(score.nll_base);
                sums.ln_ratio.add(score.nll - score.nll_base);
                sums.both += score.nll * score.nll_base;
                sums.kld.add(score.kld);
                sums.p_diff.add(p_diff);
                sums.p_diff2.add(p_diff * p_diff);
                sums.same_top.add(f64::from(u8::from(score.same_top)));
                self.klds.push(score.kld);
                self.p_diffs.push(p_diff);
            }
        }
        Ok(())
    }

    /// Tokens scored so far.
    pub fn n_scored(&self) -> usize {
        self.sums.nll.n
    }

    /// The perplexity so far; NaN before the first stretch.
    pub fn perplexity(&self) -> Perplexity {
        self.sums.nll.perplexity()
    }

    /// How far the model is from the base so far; `None` without a base.
    pub fn divergence(&self) -> Option<Divergence> {
        self.base.as_ref()?;
        let sums = &self.sums;
        let (of, base) = (sums.nll.perplexity(), sums.nll_base.perplexity());
        let n = sums.nll.n as f64;
        // The covariance of the means, as their errors are errors of means.
        let covariance = match sums.nll.n {
            0 | 1 => 0.0,
            _ => (sums.both / n - of.ln_ppl.value * base.ln_ppl.value) / (n - 1.0),
        };
        let ln_ratio = sums.ln_ratio.mean();
        let square = sums.p_diff2.mean();
        let rms = square.value.sqrt();
        let same_top = sums.same_top.mean();
        Some(Divergence {
            base,
            correlation: covariance / (of.ln_ppl.error * base.ln_ppl.error),
            ln_ratio,
            ratio: ln_ratio.exp(),
            difference: Estimate {
                value: of.ppl.value - base.ppl.value,
                error: difference_error(of.ppl.error, base.ppl.error, of.ppl.value * base.ppl.value * covariance),
            },
            kld: sums.kld.mean(),
            p_diff: sums.p_diff.mean(),
            p_diff_rms: Estimate { value: rms, error: if rms > 0.0 { 0.5 / rms * square.error } else { 0.0 } },
            same_top,
        })
    }

    /// The divergences of all tokens so far, in order.
    pub fn kld_quantiles(&self) -> Quantiles {
        Quantiles::of(self.klds.clone())
    }

    /// `Δp` of all tokens so far, in order.
    pub fn p_diff_quantiles(&self) -> Quantiles {
        Quantiles::of(self.p_diffs.clone())
    }
}

impl Score {
    /// Scores one row of logits for the token that came.
    pub(super) fn of(device: &Cpu, logits: &[f32], base: Option<&[f32]>, token: usize) -> Score {
        let kernels = device.kernels;
        // The logarithm of the sum and the distance to the largest logit apart: their sum would cost digits.
        let row = |logits: &[f32]| {
            let (max, sum) = (kernels.sum_exp)(logits);
            (max, sum, sum.ln() - f64::from(logits[token] - max))
        };
        let (max, sum, nll) = row(logits);
        let Some(base) = base else { return Score { nll, ..Score::default() } };
        let (base_max, base_sum, nll_base) = row(base);
        let kld = (kernels.cross_exp)(base, base_max, logits, max) / base_sum + sum.ln() - base_sum.ln();
        let favourite = |logits: &[f32], max: f32| logits.iter().position(|x| *x == max);
        Score { nll, nll_base, kld, same_top: favourite(logits, max) == favourite(base, base_max) }
    }
}

/// Takes the at most `n_ubatch` positions that end `left` before the last one of a prompt through the model.
fn advance(
    session: &mut Session,
    prompt: &Prompt,
    left: usize,
    n_ubatch: usize,
    n_logits: usize,
    logits: &mut Vec<f32>,
) -> Result<()> {
    match (prompt.n_tokens() - 1).checked_sub(left) {
        // The other model's prompt is longer.
        None | Some(0) => Ok(()),
        Some(end) => session.score(prompt, end.saturating_sub(n_ubatch)..end, n_logits, logits),
    }
}

/// An error unless the tokens of both models are the same.
fn same_vocabulary(model: &Engine, base: &Engine) -> Result<()> {
    let (n, n_base) = (model.text.n_vocab(), base.text.n_vocab());
    if n != n_base {
        bail!(Mismatch, "{} has a vocabulary of {n} tokens, {} one of {n_base}", model.name(), base.name());
    }
    let n = model.tokenizer().n_vocab().max(base.tokenizer().n_vocab());
    for token in 0..n as u32 {
        let (text, base_text) = (model.tokenizer().token_text(token), base.tokenizer().token_text(token));
        if text != base_text {
            bail!(Mismatch, "token {token} is {text:?} in {}, {base_text:?} in {}", model.name(), base.name());
        }
    }
    Ok(())
}
