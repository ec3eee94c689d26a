//! One timeline on a model: its cache, its position, its sampler.

use super::engine::Engine;
use super::prompt::{Piece, Prompt, Slot};
use crate::architectures::Logits;
use crate::blocks::kv_cache::{KvCache, KvType, KvTypes};
use crate::ops::{Collector, Cx, Trace};
use crate::text::stop::StopMatcher;
use crate::text::{Sampler, SamplerParams, StreamDecoder};
use crate::{ErrorKind, Result, bail};
use mmq_kernels::Activations;
use std::ops::{ControlFlow, Range};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// How a session runs.
#[derive(Clone, Debug)]
pub struct SessionOptions {
    /// Most tokens that the context may hold; 0: as many as the model was trained with.
    pub n_ctx: usize,
    /// Most tokens that go through the model at once.
    pub n_ubatch: usize,
    /// How keys are stored.
    pub cache_type_k: KvType,
    /// How values are stored.
    pub cache_type_v: KvType,
    /// How tokens are chosen.
    pub sampler: SamplerParams,
}

impl Default for SessionOptions {
    fn default() -> Self {
        SessionOptions {
            n_ctx: 0,
            n_ubatch: 512,
            cache_type_k: KvType::F16,
            cache_type_v: KvType::F16,
            sampler: SamplerParams::default(),
        }
    }
}

/// Stops a session, or the encoding of a picture, from another thread. Clones stop the same work.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Stops the work at the next layer.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Lets work go on again.
    pub fn reset(&self) {
        self.0.store(false, Ordering::Relaxed);
    }

    /// Whether [`Cancel::cancel`] was called.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn flag(&self) -> &AtomicBool {
        &self.0
    }
}

/// When an answer ends, besides the model's own wish.
#[derive(Clone, Debug, Default)]
pub struct Generation {
    /// Most tokens; `None`: until the context is full.
    pub n_predict: Option<usize>,
    /// Texts that end it; they are not part of the answer.
    pub stop: Vec<String>,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The model ended its turn.
    EndOfTurn,
    /// A stop text came.
    Stop,
    /// [`Generation::n_predict`] tokens came.
    Length,
    /// The context is full.
    ContextFull,
    /// The caller stopped it.
    Cancelled,
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The text.
    pub text: String,
    /// Its tokens, without the one that ended the turn.
    pub tokens: Vec<u32>,
    /// Why it ended.
    pub finish: Finish,
}

/// One mutable timeline: the tokens and pictures so far, their keys and values, and the sampler.
pub struct Session {
    engine: Arc<Engine>,
    cache: KvCache,
    timeline: Vec<Slot>,
    logits: Vec<f32>,
    /// Chosen, but not yet through the model.
    pending: Option<u32>,
    sampler: Sampler,
    activations: Activations,
    n_ubatch: usize,
    cancel: Cancel,
    /// Sums up what goes into the matrices, if there.
    pub(super) collector: Option<Collector>,
}

impl Session {
    /// A session at the beginning of its context, which `cancel` stops.
    ///
    /// # Errors
    /// Sampler parameters that make no sense; cache types whose blocks do not fit the model's heads.
    pub fn new(engine: &Arc<Engine>, options: &SessionOptions, cancel: &Cancel) -> Result<Session> {
        let n_ctx = if options.n_ctx == 0 { engine.n_ctx_train() } else { options.n_ctx };
        if options.n_ubatch == 0 {
            bail!(Usage, "a batch of 0 tokens (-ub)");
        }
        Ok(Session {
            cache: engine.text.new_cache(n_ctx, KvTypes { k: options.cache_type_k, v: options.cache_type_v })?,
            timeline: Vec::new(),
            logits: Vec::new(),
            pending: None,
            sampler: Sampler::new(&options.sampler, &engine.tokenizer)?,
            activations: Activations::default(),
            n_ubatch: options.n_ubatch,
            cancel: cancel.clone(),
            collector: None,
            engine: engine.clone(),
        })
    }

    /// The model it runs on.
    pub fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    /// Positions in use.
    pub fn n_past(&self) -> usize {
        self.cache.len()
    }

    /// Most positions.
    pub fn n_ctx(&self) -> usize {
        self.cache.n_ctx()
    }

    /// The seed of the sampler.
    pub fn seed(&self) -> u32 {
        self.sampler.seed()
    }

    /// Logits after the last token: `[n_vocab]`; empty before the first [`Session::sync`].
    pub fn logits(&self) -> &[f32] {
        &self.logits
    }

    /// Brings the context to `prompt`, keeping what it has in common with the timeline so far, and returns how many
    /// tokens went through the model. `progress` is told the fraction done.
    ///
    /// # Errors
    /// A prompt that is empty, longer than the context or of unknown tokens; the session's [`Cancel`].
    pub fn sync(&mut self, prompt: &Prompt, mut progress: Option<&mut dyn FnMut(f32)>) -> Result<usize> {
        let slots = self.check(prompt)?;
        self.engine.text.expect(&mut self.cache, slots.len());
        // The last token always runs again: its logits are wanted.
        let common = self.timeline.iter().zip(&slots).take_while(|(a, b)| a == b).count().min(slots.len() - 1);
        let common = common.min(self.cache.len());
        self.cache.truncate(common);
        self.timeline.truncate(common);
        self.pending = None;
        self.logits.clear();

        let total = slots.len() - common;
        while self.timeline.len() < slots.len() {
            let start = self.timeline.len();
            let end = start.saturating_add(self.n_ubatch).min(slots.len());
            let mut x = self.embed(prompt, start, end);
            let which = if end == slots.len() { Logits::Last } else { Logits::None };
            let mut report = |done: f32| {
                if let Some(progress) = &mut progress {
                    progress(((start - common) as f32 + done * (end - start) as f32) / total as f32);
                }
            };
            self.forward(&mut x, which, None, Some(&mut report))?;
            self.timeline.extend_from_slice(&slots[start..end]);
        }
        self.sampler.forget();
        for slot in &slots {
            if let Slot::Token(token) = slot {
                self.sampler.accept(*token);
            }
        }
        Ok(total)
    }

    /// The slots of a prompt that this session can take.
    fn check(&self, prompt: &Prompt) -> Result<Vec<Slot>> {
        let slots = prompt.slots();
        if slots.is_empty() {
            bail!(Usage, "the prompt is empty");
        }
        if slots.len() > self.n_ctx() {
            bail!(
                ContextFull,
                "the prompt takes {} tokens, the context holds {}: raise -c, or shorten the prompt",
                slots.len(),
                self.n_ctx()
            );
        }
        let n_embd = self.engine.text.n_embd();
        for piece in &prompt.pieces {
            if let Piece::Image(image) = piece
                && image.rows.len() != image.n_tokens * n_embd
            {
                bail!(Mismatch, "a picture was encoded by another model than {}", self.engine.name());
            }
        }
        let n_vocab = self.engine.text.n_vocab();
        for slot in &slots {
            if let Slot::Token(token) = slot
                && *token as usize >= n_vocab
            {
                bail!(Usage, "token {token} is beyond the vocabulary of {n_vocab}");
            }
        }
        Ok(slots)
    }

    /// Takes positions `range` of a prompt through the model in one pass and writes the logits after the last `n_logits` of
    /// them: `[n_logits, n_vocab]`. Of the timeline so far, which must reach to `range`, only what lies before it stays.
    ///
    /// # Errors
    /// A prompt that is empty, longer than the context or of unknown tokens; a range that is empty, beyond the prompt or
    /// not behind the timeline; the session's [`Cancel`].
    pub(super) fn score(
        &mut self,
        prompt: &Prompt,
        range: Range<usize>,
        n_logits: usize,
        logits: &mut Vec<f32>,
    ) -> Result<()> {
        let slots = self.check(prompt)?;
        if range.is_empty() || range.end > slots.len() || slots.get(..range.start) != self.timeline.get(..range.start) {
            bail!(Usage, "positions {range:?} of a prompt of {} cannot follow {}", slots.len(), self.timeline.len());
        }
        self.truncate(range.start);
        if range.start == 0 {
            self.engine.text.expect(&mut self.cache, slots.len());
        }
        let mut x = self.embed(prompt, range.start, range.end);
        // The session's own buffer is for the logits after the last token.
        std::mem::swap(&mut self.logits, logits);
        let done = self.forward(&mut x, Logits::Tail(n_logits), None, None);
        std::mem::swap(&mut self.logits, logits);
        done?;
        self.timeline.extend_from_slice(&slots[range]);
        Ok(())
    }

    /// Forgets everything behind the first `n` positions.
    pub fn truncate(&mut self, n: usize) {
        self.cache.truncate(n);
        self.timeline.truncate(n);
        self.pending = None;
        self.logits.clear();
    }

    /// Takes tokens through the model behind the timeline so far; [`Session::logits`] are those after the last of them.
    /// Nothing is sampled, and the sampler does not hear of them.
    ///
    /// # Errors
    /// No tokens, unknown ones, or more than the context has room for; the session's [`Cancel`].
    pub fn extend(&mut self, tokens: &[u32]) -> Result<()> {
        if tokens.is_empty() {
            bail!(Usage, "no tokens to go on with");
        }
        let n_vocab = self.engine.text.n_vocab();
        if let Some(token) = tokens.iter().find(|token| **token as usize >= n_vocab) {
            bail!(Usage, "token {token} is beyond the vocabulary of {n_vocab}");
        }
        if tokens.len() > self.n_ctx() - self.n_past() {
            let (n, past, n_ctx) = (tokens.len(), self.n_past(), self.n_ctx());
            bail!(ContextFull, "{n} tokens do not fit behind {past}: the context holds {n_ctx}");
        }
        self.truncate(self.timeline.len());
        if self.timeline.is_empty() {
            self.engine.text.expect(&mut self.cache, tokens.len());
        }
        let n_batches = tokens.len().div_ceil(self.n_ubatch);
        for (i, batch) in tokens.chunks(self.n_ubatch).enumerate() {
            let mut x = Vec::with_capacity(batch.len() * self.engine.text.n_embd());
            self.engine.text.embed(batch, &mut x);
            let which = if i + 1 == n_batches { Logits::Last } else { Logits::None };
            self.forward(&mut x, which, None, None)?;
            self.timeline.extend(batch.iter().map(|token| Slot::Token(*token)));
        }
        Ok(())
    }

    /// Runs a whole prompt from an empty context and records every named activation, with logits after every token.
    pub(crate) fn sync_traced(&mut self, prompt: &Prompt, trace: &mut Trace) -> Result<()> {
        self.cache.truncate(0);
        self.timeline.clear();
        self.pending = None;
        self.logits.clear();
        self.engine.text.expect(&mut self.cache, prompt.n_tokens());
        let mut x = self.embed(prompt, 0, prompt.n_tokens());
        self.forward(&mut x, Logits::Tail(prompt.n_tokens()), Some(trace), None)?;
        self.timeline = prompt.slots();
        self.logits.drain(..self.logits.len() - self.engine.text.n_vocab());
        Ok(())
    }

    /// Embeddings of positions `start..end` of a prompt: `[end - start, n_embd]`.
    fn embed(&self, prompt: &Prompt, start: usize, end: usize) -> Vec<f32> {
        let n_embd = self.engine.text.n_embd();
        let mut x = Vec::with_capacity((end - start) * n_embd);
        let mut at = 0;
        for piece in &prompt.pieces {
            let n = match piece {
                Piece::Tokens(tokens) => tokens.len(),
                Piece::Image(image) => image.n_tokens,
            };
            let (from, to) = (start.clamp(at, at + n) - at, end.clamp(at, at + n) - at);
            match piece {
                Piece::Tokens(tokens) => self.engine.text.embed(&tokens[from..to], &mut x),
                Piece::Image(image) => x.extend_from_slice(&image.rows[from * n_embd..to * n_embd]),
            }
            at += n;
        }
        x
    }

    fn forward<'a>(
        &'a mut self,
        x: &mut [f32],
        which: Logits,
        trace: Option<&'a mut Trace>,
        progress: Option<&'a mut dyn FnMut(f32)>,
    ) -> Result<()> {
        let mut cx = Cx::new(&self.engine.device, &mut self.activations);
        cx.cancel = Some(self.cancel.flag());
        cx.trace = trace;
        cx.progress = progress;
        cx.collector = self.collector.as_mut();
        self.engine.text.forward(&mut cx, x, &mut self.cache, which, &mut self.logits)
    }

    /// Takes the token of the last call through the model and chooses the next; `None` when the model ends its turn.
    ///
    /// # Errors
    /// A full context; the session's [`Cancel`]; no successful [`Session::sync`] before it; logits that are no numbers.
    pub fn next_token(&mut self) -> Result<Option<u32>> {
        if self.logits.is_empty() {
            bail!(Usage, "the session has no prompt to go on from");
        }
        if let Some(token) = self.pending {
            if self.cache.len() == self.n_ctx() {
                bail!(ContextFull, "the context of {} tokens is full: raise -c to go on", self.n_ctx());
            }
            let mut x = Vec::new();
            self.engine.text.embed(&[token], &mut x);
            self.forward(&mut x, Logits::Last, None, None)?;
            self.timeline.push(Slot::Token(token));
            self.pending = None;
        }
        if self.logits.iter().all(|logit| logit.is_nan()) {
            bail!(
                Format,
                "{}: the model's logits are not numbers: its weights are damaged, or its keys and values too large for \
                 F16 (-ctk f32 -ctv f32)",
                self.engine.name()
            );
        }
        let token = self.sampler.sample(&self.logits);
        self.sampler.accept(token);
        if self.engine.tokenizer.is_eog(token) {
            return Ok(None);
        }
        self.pending = Some(token);
        Ok(Some(token))
    }

    /// Answers, calling `on_text` with each piece of text as it becomes certain; `ControlFlow::Break` ends the answer.
    ///
    /// # Errors
    /// Only failures: a full context, a cancellation and so on are an [`Answer`] with its [`Finish`].
    pub fn generate(
        &mut self,
        generation: &Generation,
        on_text: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Answer> {
        let engine = self.engine.clone();
        let mut decoder = StreamDecoder::new(&engine.tokenizer);
        let mut stop = StopMatcher::new(generation.stop.iter().cloned());
        let mut answer = Answer { text: String::new(), tokens: Vec::new(), finish: Finish::Length };
        let mut emit = |text: &str, answer: &mut Answer| {
            answer.text.push_str(text);
            if text.is_empty() { ControlFlow::Continue(()) } else { on_text(text) }
        };
        while generation.n_predict.is_none_or(|n| answer.tokens.len() < n) {
            let token = match self.next_token() {
                Ok(Some(token)) => token,
                Ok(None) => {
                    answer.finish = Finish::EndOfTurn;
                    break;
                }
                Err(e) if e.kind() == ErrorKind::ContextFull => {
                    answer.finish = Finish::ContextFull;
                    break;
                }
                Err(e) if e.kind() == ErrorKind::Cancelled => {
                    answer.finish = Finish::Cancelled;
                    break;
                }
                Err(e) => return Err(e),
            };
            answer.tokens.push(token);
            // A control token leaves no text, but may be what the caller waits for.
            if engine.tokenizer.piece(token, false).is_empty()
                && generation.stop.iter().any(|stop| stop == engine.tokenizer.token_text(token))
            {
                answer.finish = Finish::Stop;
                break;
            }
            let (text, stopped) = stop.push(&decoder.push(token));
            if emit(&text, &mut answer).is_break() {
                answer.finish = Finish::Cancelled;
                return Ok(answer);
            }
            if stopped {
                answer.finish = Finish::Stop;
                return Ok(answer);
            }
        }
        let (rest, _) = stop.push(&decoder.finish());
        let _ = emit(&(rest + &stop.finish()), &mut answer);
        Ok(answer)
    }
}
