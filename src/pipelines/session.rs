//! One timeline on a model: its cache, its position, its sampler.

use super::conversation::Conversation;
use super::engine::{Engine, rising};
use super::prompt::{EncodedImage, Piece, Prompt, Slot};
use super::regions::Region;
use crate::architectures::Logits;
use crate::blocks::kv_cache::{KvCache, KvType, KvTypes};
use crate::media::View;
use crate::ops::{Collector, Cx, Trace};
use crate::text::grounding::{Dialect, Grounding, Span};
use crate::text::stop::StopMatcher;
use crate::text::{Sampler, SamplerParams, StreamDecoder};
use crate::{Error, ErrorKind, Result, bail};
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
    /// What happens when the context is full.
    pub overflow: Overflow,
}

/// What happens when the context is full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Overflow {
    /// A prompt that does not fit is refused, and an answer ends.
    #[default]
    Stop,
    /// Of a [`Conversation`], whole oldest turns leave with their pictures until a quarter of the context is free; the
    /// system's message and the last turn stay. Where there is no older turn, or no conversation, the older part of the
    /// answer leaves; the prompt stays. What is left then goes through the model as if nothing had been before it.
    DropOldest,
}

impl Default for SessionOptions {
    fn default() -> Self {
        SessionOptions {
            n_ctx: 0,
            n_ubatch: 512,
            cache_type_k: KvType::F16,
            cache_type_v: KvType::F16,
            sampler: SamplerParams::default(),
            overflow: Overflow::Stop,
        }
    }
}

/// Stops work from another thread: a session's, the loading of a model, the encoding of a picture. Clones stop the same.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Stops the work, within milliseconds.
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

    /// Runs `f` unless it is stopped: `Cancelled`, whatever `f` returns then.
    pub(crate) fn guard<T>(&self, f: impl FnOnce() -> Result<T>) -> Result<T> {
        mmq_kernels::until(&self.0, f).unwrap_or_else(|| Err(Error::stopped()))
    }
}

/// When an answer ends, besides the model's own wish, and how it is read.
#[derive(Clone, Debug, Default)]
pub struct Generation {
    /// Most tokens; `None`: until the context is full.
    pub n_predict: Option<usize>,
    /// Texts that end it; they are not part of the answer.
    pub stop: Vec<String>,
    /// How the model writes places in pictures, usually [`Engine::dialect`]: such text becomes [`Region`]s of the last
    /// picture. `None`, or no picture: it stays text.
    pub dialect: Option<Dialect>,
    /// What places are called for which the model has no words.
    pub label: String,
    /// The beginning of the answer that the prompt ends with: it is read and given out as such.
    pub begun: String,
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
    /// The places in pictures that it points at, in order.
    pub regions: Vec<Region>,
    /// Its tokens, without the one that ended the turn.
    pub tokens: Vec<u32>,
    /// Why it ended.
    pub finish: Finish,
}

/// What comes of an answer while it is generated.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// The next text.
    Text(&'a str),
    /// A place, where the text points at it.
    Region(&'a Region),
}

/// One mutable timeline: the tokens and pictures so far, their keys and values, and the sampler.
pub struct Session {
    engine: Arc<Engine>,
    pub(super) cache: KvCache,
    pub(super) timeline: Vec<Slot>,
    pub(super) logits: Vec<f32>,
    /// Chosen, but not yet through the model.
    pub(super) pending: Option<u32>,
    pub(super) sampler: Sampler,
    /// The picture that answers point at: its number, and what the model sees of it.
    pub(super) picture: Option<(usize, View)>,
    /// The pictures of the last prompt.
    pub(super) images: Vec<Arc<EncodedImage>>,
    /// Positions of the last prompt; an answer follows.
    pub(super) n_prompt: usize,
    /// What the last prompt was written from.
    pub(super) conversation: Option<Conversation>,
    overflow: Overflow,
    /// Turns that have left.
    n_dropped: usize,
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
            bail!(Usage, "ubatch-size: a batch of 0 tokens");
        }
        Ok(Session {
            cache: engine.text.new_cache(n_ctx, KvTypes { k: options.cache_type_k, v: options.cache_type_v })?,
            timeline: Vec::new(),
            logits: Vec::new(),
            pending: None,
            picture: None,
            sampler: Sampler::new(&options.sampler, &engine.tokenizer)?,
            images: Vec::new(),
            n_prompt: 0,
            conversation: None,
            overflow: options.overflow,
            n_dropped: 0,
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

    /// From now on it is `cancel` that stops the session.
    pub fn set_cancel(&mut self, cancel: &Cancel) {
        self.cancel = cancel.clone();
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

    /// Chooses tokens by other parameters from now on; the new sampler begins anew, with the tokens of the next prompt.
    ///
    /// # Errors
    /// Parameters that make no sense.
    pub fn set_sampler(&mut self, params: &SamplerParams) -> Result<()> {
        self.sampler = Sampler::new(params, &self.engine.tokenizer)?;
        Ok(())
    }

    /// Turns that have left because the context was full ([`Overflow::DropOldest`]).
    pub fn n_dropped(&self) -> usize {
        self.n_dropped
    }

    /// Frees the buffers of the work so far; what comes next makes them anew.
    pub fn trim(&mut self) {
        self.activations = Activations::default();
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
    pub fn sync(&mut self, prompt: &Prompt, progress: Option<&mut dyn FnMut(f32)>) -> Result<usize> {
        let n = self.bring(prompt, progress)?;
        self.conversation = None;
        self.remember(prompt);
        Ok(n)
    }

    /// [`Session::sync`] with what the chat template writes of `conversation`. With [`Overflow::DropOldest`], its oldest
    /// turns leave if it does not fit; [`Session::n_dropped`] counts them.
    ///
    /// # Errors
    /// As [`Session::sync`]; a template that cannot be applied.
    pub fn chat(&mut self, conversation: &Conversation, progress: Option<&mut dyn FnMut(f32)>) -> Result<usize> {
        let mut conversation = conversation.clone();
        let mut prompt = conversation.prompt(&self.engine)?;
        let too_long = prompt.n_tokens() >= self.n_ctx();
        while self.overflow == Overflow::DropOldest
            && too_long
            && prompt.n_tokens() > self.n_kept()
            && conversation.drop_oldest_turn()
        {
            self.n_dropped += 1;
            prompt = conversation.prompt(&self.engine)?;
        }
        let n = self.bring(&prompt, progress)?;
        self.conversation = Some(conversation);
        self.remember(&prompt);
        Ok(n)
    }

    /// Lets the sampler begin with the tokens of a prompt.
    fn remember(&mut self, prompt: &Prompt) {
        self.sampler.forget();
        for piece in &prompt.pieces {
            if let Piece::Tokens(tokens) = piece {
                tokens.iter().for_each(|token| self.sampler.accept(*token));
            }
        }
    }

    /// Brings the cache and the timeline to `prompt`, and returns how many tokens went through the model.
    fn bring(&mut self, prompt: &Prompt, progress: Option<&mut dyn FnMut(f32)>) -> Result<usize> {
        let mut progress = rising(progress);
        let slots = self.check(prompt)?;
        self.picture = prompt.last_picture();
        self.engine.text.expect(&mut self.cache, slots.len());
        // The last token always runs again: its logits are wanted.
        let common = self.timeline.iter().zip(&slots).take_while(|(a, b)| a == b).count().min(slots.len() - 1);
        let common = common.min(self.cache.len());
        self.truncate(common);
        let images = prompt.pieces.iter().filter_map(|p| if let Piece::Image(image) = p { Some(image) } else { None });
        self.images = images.cloned().collect();
        self.n_prompt = slots.len();

        let total = slots.len() - common;
        while self.timeline.len() < slots.len() {
            let start = self.timeline.len();
            let end = start.saturating_add(self.n_ubatch).min(slots.len());
            let mut x = self.embed(prompt, start, end);
            let which = if end == slots.len() { Logits::Last } else { Logits::None };
            let mut report = |done: f32| {
                progress(((start - common) as f32 + done * (end - start) as f32) / total as f32);
            };
            self.forward(&mut x, which, None, Some(&mut report))?;
            self.timeline.extend_from_slice(&slots[start..end]);
        }
        Ok(total)
    }

    /// Positions that may be taken after turns have left: three quarters of the context.
    fn n_kept(&self) -> usize {
        self.n_ctx() - self.n_ctx().div_ceil(4)
    }

    /// Makes room in a full context as [`Overflow`] says; false if it says to stop, or if nothing may leave. The token that was
    /// chosen last still waits.
    fn make_room(&mut self) -> Result<bool> {
        if self.overflow == Overflow::Stop {
            return Ok(false);
        }
        let (_, answer) = self.timeline.split_at(self.n_prompt.min(self.timeline.len()));
        let answer: Vec<u32> =
            answer.iter().filter_map(|slot| if let Slot::Token(token) = slot { Some(*token) } else { None }).collect();
        let mut conversation = self.conversation.clone();
        let mut prompt = self.prompt_so_far();
        let mut n_dropped = 0;
        while prompt.n_tokens() + answer.len() > self.n_kept()
            && conversation.as_mut().is_some_and(Conversation::drop_oldest_turn)
        {
            n_dropped += 1;
            if let Some(conversation) = &conversation {
                prompt = conversation.prompt(&self.engine)?;
            }
        }
        let n_prompt = prompt.n_tokens();
        // The newer half of the answer, if not even all of it can stay.
        let room = self.n_kept().saturating_sub(n_prompt);
        let n = if answer.len() <= room { answer.len() } else { room.min(answer.len() / 2) };
        if n_prompt + n >= self.n_ctx() {
            return Ok(false);
        }
        if n > 0 {
            prompt.pieces.push(Piece::Tokens(answer[answer.len() - n..].to_vec()));
        }
        let pending = self.pending;
        self.bring(&prompt, None)?;
        (self.n_prompt, self.pending, self.conversation) = (n_prompt, pending, conversation);
        self.n_dropped += n_dropped;
        Ok(true)
    }

    /// The last prompt again, from the timeline.
    fn prompt_so_far(&self) -> Prompt {
        let mut prompt = Prompt::default();
        for slot in &self.timeline[..self.n_prompt.min(self.timeline.len())] {
            match (*slot, prompt.pieces.last_mut()) {
                (Slot::Token(token), Some(Piece::Tokens(tokens))) => tokens.push(token),
                (Slot::Token(token), _) => prompt.pieces.push(Piece::Tokens(vec![token])),
                (Slot::Image { id, row: 0 }, _) => {
                    prompt.pieces.extend(self.images.iter().find(|i| i.id() == id).cloned().map(Piece::Image));
                }
                (Slot::Image { .. }, _) => {}
            }
        }
        prompt
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
                "the prompt takes {} tokens, the context holds {}: raise ctx-size, or shorten the prompt",
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
        self.n_prompt = self.n_prompt.min(n);
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
        let n_past = self.cache.len();
        let mut cx = Cx::new(&self.engine.device, &mut self.activations);
        cx.trace = trace;
        cx.progress = progress;
        cx.collector = self.collector.as_mut();
        cx.n_resident = self.engine.resident_layers;
        let (text, cache, logits) = (&self.engine.text, &mut self.cache, &mut self.logits);
        let done = self.cancel.guard(|| text.forward(&mut cx, x, cache, which, logits));
        if done.is_err() {
            self.cache.truncate(n_past);
            self.logits.clear();
        }
        done
    }

    /// Takes the token of the last call through the model and chooses the next; `None` when the model ends its turn.
    ///
    /// # Errors
    /// A full context; the session's [`Cancel`]; no successful [`Session::sync`] before it; logits that are no numbers.
    pub fn next_token(&mut self) -> Result<Option<u32>> {
        if self.logits.is_empty() && self.pending.is_none() {
            bail!(Usage, "the session has no prompt to go on from");
        }
        if let Some(token) = self.pending {
            if self.cache.len() == self.n_ctx() && !self.make_room()? {
                bail!(ContextFull, "the context of {} tokens is full: raise ctx-size to go on", self.n_ctx());
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
                 F16 (cache-type-k and cache-type-v: f32)",
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
        self.generate_events(generation, &mut |event| match event {
            Event::Text(text) => on_text(text),
            Event::Region(_) => ControlFlow::Continue(()),
        })
    }

    /// [`Session::generate`], which also tells each place in a picture as soon as the text has pointed at it.
    ///
    /// # Errors
    /// As [`Session::generate`].
    pub fn generate_events(
        &mut self,
        generation: &Generation,
        on_event: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<Answer> {
        let engine = self.engine.clone();
        let tokenizer = &engine.tokenizer;
        let dialect = generation.dialect.filter(|_| self.picture.is_some());
        let tags = dialect.map_or(&[][..], Dialect::tags).iter().filter_map(|tag| tokenizer.token_id(tag));
        let mut decoder = StreamDecoder::new(tokenizer).with_shown(tags.collect());
        let mut stop = StopMatcher::new(generation.stop.iter().cloned());
        let mut output = Output {
            answer: Answer { text: String::new(), regions: Vec::new(), tokens: Vec::new(), finish: Finish::Length },
            grounding: dialect.map(|dialect| Grounding::new(dialect).with_default_label(&generation.label)),
            picture: self.picture,
            on_event,
        };
        let mut told = output.push(&generation.begun);
        while told.is_continue() && generation.n_predict.is_none_or(|n| output.answer.tokens.len() < n) {
            let token = match self.next_token() {
                Ok(Some(token)) => token,
                Ok(None) => {
                    output.answer.finish = Finish::EndOfTurn;
                    break;
                }
                Err(e) if e.kind() == ErrorKind::ContextFull => {
                    output.answer.finish = Finish::ContextFull;
                    break;
                }
                Err(e) if e.kind() == ErrorKind::Cancelled => {
                    output.answer.finish = Finish::Cancelled;
                    break;
                }
                Err(e) => return Err(e),
            };
            output.answer.tokens.push(token);
            // A control token leaves no text, but may be what the caller waits for.
            if tokenizer.piece(token, false).is_empty()
                && generation.stop.iter().any(|stop| stop == tokenizer.token_text(token))
            {
                output.answer.finish = Finish::Stop;
                break;
            }
            let (text, stopped) = stop.push(&decoder.push(token));
            told = output.push(&text);
            if stopped {
                output.answer.finish = Finish::Stop;
                break;
            }
        }
        if told.is_continue() {
            // After a stop text nothing comes of these two.
            let (rest, _) = stop.push(&decoder.finish());
            told = output.push(&(rest + &stop.finish()));
        }
        if told.is_continue() {
            told = output.finish();
        }
        if told.is_break() {
            output.answer.finish = Finish::Cancelled;
        }
        Ok(output.answer)
    }
}

/// Where an answer goes.
struct Output<'e> {
    answer: Answer,
    grounding: Option<Grounding>,
    picture: Option<(usize, View)>,
    on_event: &'e mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
}

impl Output<'_> {
    fn push(&mut self, text: &str) -> ControlFlow<()> {
        match &mut self.grounding {
            Some(grounding) => {
                let spans = grounding.push(text);
                self.tell(spans)
            }
            None => self.text(text),
        }
    }

    fn finish(&mut self) -> ControlFlow<()> {
        let spans = self.grounding.as_mut().map(Grounding::finish).unwrap_or_default();
        self.tell(spans)
    }

    fn tell(&mut self, spans: Vec<Span>) -> ControlFlow<()> {
        for span in spans {
            match (span, self.picture) {
                (Span::Place(place), Some((picture, view))) => {
                    let region = Region::new(place, picture, &view);
                    (self.on_event)(Event::Region(&region))?;
                    self.answer.regions.push(region);
                }
                (Span::Place(_), None) => {}
                (Span::Text(text), _) => self.text(&text)?,
            }
        }
        ControlFlow::Continue(())
    }

    fn text(&mut self, text: &str) -> ControlFlow<()> {
        self.answer.text.push_str(text);
        if text.is_empty() { ControlFlow::Continue(()) } else { (self.on_event)(Event::Text(text)) }
    }
}
