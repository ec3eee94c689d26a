//! Importance matrices from a model at work: on texts, as llama.cpp's `llama-imatrix` collects them, and on pictures with
//! prompts, for the decoder as well as for the vision encoder and its projector.
//!
//! What is summed up is what each matrix really multiplies, after the norm before it. Sums are the same for any number of
//! threads and any batch.

use super::evaluate::{Cut, Moments, Perplexity, Score, Stretch};
use super::{Cancel, EncodedImage, Engine, Session, SessionOptions};
use crate::media::Image;
use crate::ops::Collector;
use crate::quantize::Imatrix;
use crate::{Result, bail};
use std::sync::Arc;

/// What to collect, besides what each layer multiplies.
#[derive(Clone, Copy, Debug, Default)]
pub struct CalibrationOptions {
    /// For `output.weight`, too.
    pub output: bool,
    /// The perplexity of what is read; the head is left out without it.
    pub perplexity: bool,
}

/// How a text is cut into chunks.
#[derive(Clone, Copy, Debug)]
pub struct Chunks {
    /// Tokens of a chunk.
    pub size: usize,
    /// Chunks that are left out at the beginning.
    pub first: usize,
    /// Most chunks; `None`: as many as the text has.
    pub most: Option<usize>,
    /// Whether the texts of control tokens stand for these.
    pub special: bool,
}

/// A model that is watched while it reads.
pub struct Calibration {
    session: Session,
    session_options: SessionOptions,
    options: CalibrationOptions,
    cancel: Cancel,
    logits: Vec<f32>,
    nll: Moments,
    n_chunks: usize,
    n_tokens: usize,
    n_images: usize,
}

impl Calibration {
    /// One that has seen nothing; `cancel` stops it.
    ///
    /// # Errors
    /// Session options that make no sense.
    pub fn new(
        engine: &Arc<Engine>,
        session: &SessionOptions,
        options: CalibrationOptions,
        cancel: &Cancel,
    ) -> Result<Calibration> {
        let session_options = session.clone();
        let mut session = Session::new(engine, session, cancel)?;
        session.collector = Some(Collector::new(options.output));
        Ok(Calibration {
            session,
            session_options,
            options,
            cancel: cancel.clone(),
            logits: Vec::new(),
            nll: Moments::default(),
            n_chunks: 0,
            n_tokens: 0,
            n_images: 0,
        })
    }

    /// Cuts a text into chunks for [`Calibration::add`].
    ///
    /// # Errors
    /// A text of less than two chunks; a size that leaves nothing to score; a tokenizer that appends EOS.
    pub fn cut(&self, text: &str, chunks: Chunks) -> Result<Vec<Stretch>> {
        let engine = self.session.engine();
        let tokens = engine.tokenizer().encode(text, true, chunks.special);
        let rest = chunks.first.checked_mul(chunks.size).and_then(|start| tokens.get(start..));
        let cut = Cut { n_ctx: chunks.size, stride: None, n_chunks: chunks.most };
        match rest {
            Some(rest) => Stretch::cut_tokens(engine, rest, &cut),
            None => bail!(Usage, "{} chunks cannot be left out of a text of {} tokens", chunks.first, tokens.len()),
        }
    }

    /// Encodes a picture for a prompt, and collects on the way. `progress` is told the fraction done.
    ///
    /// # Errors
    /// As [`Engine::encode_image`].
    pub fn encode_image(&mut self, image: &Image, progress: Option<&mut dyn FnMut(f32)>) -> Result<Arc<EncodedImage>> {
        let engine = self.session.engine().clone();
        let image = engine.encode_collecting(image, Some(&self.cancel), progress, self.session.collector.as_mut())?;
        self.n_images += 1;
        Ok(image)
    }

    /// Takes a chunk of text, or a prompt with or without an answer, through the model. No [`Stretch::n_scored`] is needed.
    ///
    /// # Errors
    /// A prompt that is empty, or longer than both the context that was asked for and that which the model was trained
    /// with; logits that are no numbers; the [`Cancel`].
    pub fn add(&mut self, stretch: &Stretch) -> Result<()> {
        let n = stretch.prompt.n_tokens();
        if n == 0 {
            bail!(Usage, "the prompt is empty");
        }
        let scored = if self.options.perplexity && stretch.n_scored > 0 { stretch.scored()? } else { &[] };
        self.make_room(n)?;
        self.session.truncate(0);
        let n_ubatch = self.session_options.n_ubatch;
        // The logits after a token are scores of the next.
        let first = n.saturating_sub(scored.len() + 1);
        for start in (0..n).step_by(n_ubatch) {
            let end = n.min(start + n_ubatch);
            let rows = first.clamp(start, end)..end.min(n - 1);
            let n_logits = match (self.options.output, scored) {
                (true, _) => end - start,
                (false, []) => 0,
                (false, _) => end - rows.start,
            };
            self.session.score(&stretch.prompt, start..end, n_logits, &mut self.logits)?;
            if !scored.is_empty() && !rows.is_empty() {
                let tokens = &scored[rows.start - first..rows.end - first];
                self.score(tokens, rows.start - (end - n_logits))?;
            }
        }
        self.n_chunks += 1;
        self.n_tokens += n;
        Ok(())
    }

    /// Scores `tokens` by the logits from row `first` on.
    fn score(&mut self, tokens: &[u32], first: usize) -> Result<()> {
        let engine = self.session.engine();
        let n_vocab = engine.text.n_vocab();
        let logits = &self.logits[first * n_vocab..];
        let mut nll = vec![0.0; tokens.len()];
        engine.device.team.rows(&mut nll, 1, &|i, nll| {
            let row = &logits[i * n_vocab..(i + 1) * n_vocab];
            nll[0] = Score::of(&engine.device, row, None, tokens[i] as usize).nll;
        });
        for nll in nll {
            if nll.is_nan() {
                bail!(Format, "{}: the model's logits are not numbers", engine.name());
            }
            self.nll.add(nll);
        }
        Ok(())
    }

    /// Makes the context large enough for `n` tokens.
    fn make_room(&mut self, n: usize) -> Result<()> {
        let (engine, n_ctx) = (self.session.engine(), self.session.n_ctx());
        if n <= n_ctx {
            return Ok(());
        }
        let most = engine.n_ctx_train().max(n_ctx);
        if n > most {
            bail!(
                ContextFull,
                "a prompt of {n} tokens, where the model was trained with {}: raise -c",
                engine.n_ctx_train()
            );
        }
        let options = SessionOptions { n_ctx: n.next_multiple_of(256).min(most), ..self.session_options.clone() };
        let mut session = Session::new(engine, &options, &self.cancel)?;
        session.collector = self.session.collector.take();
        self.session = session;
        Ok(())
    }

    /// `earlier`, and what was collected since [`Calibration::new`].
    ///
    /// # Errors
    /// `Mismatch` if `earlier` is of another model, `Format` if the inputs of a matrix were no numbers.
    pub fn imatrix(&self, earlier: &Imatrix) -> Result<Imatrix> {
        let mut imatrix = earlier.clone();
        for (name, inputs) in self.session.collector.iter().flat_map(Collector::iter) {
            let added = imatrix.add(name, &inputs.squares, inputs.sums.as_deref(), inputs.n_rows);
            added.map_err(|e| e.context(self.session.engine().name()))?;
        }
        imatrix.add_chunks(self.n_chunks);
        Ok(imatrix)
    }

    /// The perplexity of what was scored; NaN if nothing was.
    pub fn perplexity(&self) -> Perplexity {
        self.nll.perplexity()
    }

    /// Tokens that were scored.
    pub fn n_scored(&self) -> usize {
        self.nll.n
    }

    /// Chunks and prompts that were read.
    pub fn n_chunks(&self) -> usize {
        self.n_chunks
    }

    /// Positions of these: tokens, and rows that stand for pictures.
    pub fn n_tokens(&self) -> usize {
        self.n_tokens
    }

    /// Pictures that were encoded.
    pub fn n_images(&self) -> usize {
        self.n_images
    }
}
