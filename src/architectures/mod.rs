//! The registry: one file for each architecture, one line here.

pub mod llama;
pub mod llava;
pub mod qwen;
pub mod qwen_vl;

use crate::blocks::decoder::Decoder;
use crate::blocks::image_tokens::ImageTokens;
use crate::blocks::kv_cache::{KvCache, KvTypes};
use crate::gguf::Gguf;
use crate::media::Image;
use crate::media::preprocess::Preprocess;
use crate::ops::Cx;
use crate::tensor::{Loader, Loading, Noted};
use crate::{Result, bail};
use std::cell::RefCell;

/// Every architecture that mmq runs.
pub const ARCHITECTURES: &[&Architecture] = &[&llama::ARCH, &llava::ARCH, &qwen::ARCH, &qwen_vl::ARCH];

/// An architecture: how to recognise its files and how to load them.
pub struct Architecture {
    /// Its name, as in the registry's fixtures.
    pub name: &'static str,
    /// Whether a file is of this architecture.
    pub matches: fn(&Gguf) -> bool,
    /// Loads it.
    pub load: fn(Loader<'_>) -> Result<Model>,
}

/// A loaded part of a system.
pub enum Model {
    /// A decoder of text.
    Text(Box<dyn TextModel>),
    /// A vision encoder with its projector.
    Vision(Box<dyn VisionModel>),
}

/// Which logits a pass should compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Logits {
    /// None: more of the prompt follows.
    None,
    /// Those after the last token.
    Last,
    /// Those after the last so many tokens.
    Tail(usize),
}

/// A decoder of text: immutable, shared between sessions.
pub trait TextModel: Send + Sync {
    /// What it is, in a few words: `LLaMA, 30 layers of 576`.
    fn describe(&self) -> String;
    /// Width of its embeddings.
    fn n_embd(&self) -> usize;
    /// Size of its vocabulary.
    fn n_vocab(&self) -> usize;
    /// The context that it was trained with, in tokens.
    fn n_ctx_train(&self) -> usize;
    /// An empty cache for at most `n_ctx` tokens.
    ///
    /// # Errors
    /// Heads that cannot be stored as the types want.
    fn new_cache(&self, n_ctx: usize, types: KvTypes) -> Result<KvCache>;
    /// Bytes of the buffers of a pass of `n_tokens` ([`TextModel::forward`]), logits left out: what the memory planner counts.
    fn scratch(&self, n_tokens: usize) -> usize;
    /// Tells that the positions from 0 on will be a prompt of `n`, of which the cache may hold the first. A cache that is not
    /// good for that many is emptied.
    fn expect(&self, cache: &mut KvCache, n: usize);
    /// Appends the embeddings of `tokens` to `out`: `[n_tokens, n_embd]`. Each token must be below [`TextModel::n_vocab`].
    fn embed(&self, tokens: &[u32], out: &mut Vec<f32>);
    /// Takes embeddings `x: [n_tokens, n_embd]`, which follow what is in the cache, through the model, adds them to the
    /// cache and writes `[n, n_vocab]` logits, as many as `which` asks for. When cancelled, the cache is as it was before.
    fn forward(
        &self,
        cx: &mut Cx<'_>,
        x: &mut [f32],
        cache: &mut KvCache,
        which: Logits,
        logits: &mut Vec<f32>,
    ) -> Result<()>;
}

/// A text model that is a [`Decoder`] and nothing else.
struct Text {
    name: &'static str,
    decoder: Decoder,
}

impl TextModel for Text {
    fn describe(&self) -> String {
        let (c, s) = (self.decoder.config(), self.decoder.config().layer);
        format!(
            "{} text model, {} layers of {}, {} heads ({} for keys), vocabulary {}, context {}",
            self.name, c.n_layer, s.n_embd, s.n_head, s.n_head_kv, c.n_vocab, c.n_ctx_train
        )
    }

    fn n_embd(&self) -> usize {
        self.decoder.config().layer.n_embd
    }

    fn n_vocab(&self) -> usize {
        self.decoder.config().n_vocab
    }

    fn n_ctx_train(&self) -> usize {
        self.decoder.config().n_ctx_train
    }

    fn new_cache(&self, n_ctx: usize, types: KvTypes) -> Result<KvCache> {
        let (c, s) = (self.decoder.config(), self.decoder.config().layer);
        KvCache::new(c.n_layer, s.n_head_kv, s.head_dim, n_ctx, types)
    }

    fn scratch(&self, n_tokens: usize) -> usize {
        self.decoder.config().layer.scratch(n_tokens)
    }

    fn expect(&self, cache: &mut KvCache, n: usize) {
        self.decoder.expect(cache, n);
    }

    fn embed(&self, tokens: &[u32], out: &mut Vec<f32>) {
        self.decoder.embed(tokens, out);
    }

    fn forward(
        &self,
        cx: &mut Cx<'_>,
        x: &mut [f32],
        cache: &mut KvCache,
        which: Logits,
        logits: &mut Vec<f32>,
    ) -> Result<()> {
        let n_tokens = x.len() / self.n_embd();
        let n_logits = match which {
            Logits::None => 0,
            Logits::Last => 1,
            Logits::Tail(n) => n.min(n_tokens),
        };
        self.decoder.forward(cx, x, cache, n_logits, logits)
    }
}

/// A vision encoder with its projector: immutable, shared between sessions.
pub trait VisionModel: Send + Sync {
    /// What it is, in a few words.
    fn describe(&self) -> String;
    /// Width of the rows that it makes: the text model's `n_embd`.
    fn n_embd(&self) -> usize;
    /// Its preprocessing.
    fn preprocess(&self) -> &Preprocess;
    /// Overrides how pictures are fitted, for comparison with other programs.
    fn set_preprocess(&mut self, preprocess: Preprocess);
    /// How many rows stand for a picture of `size` (width, height): as many as [`VisionModel::encode`] makes of it. Unless a
    /// model says otherwise, pictures of all sizes become as many.
    fn n_tokens(&self, size: (usize, usize), tokens: Option<ImageTokens>) -> usize {
        let _ = size;
        self.max_rows(tokens)
    }
    /// Most rows that a picture becomes: with [`TextModel::scratch`]'s counterpart, what the memory planner counts.
    fn max_rows(&self, tokens: Option<ImageTokens>) -> usize;
    /// Bytes of the buffers of [`VisionModel::encode`] for the picture that takes most, its rows left out.
    fn scratch(&self) -> usize;
    /// Encodes a picture to the rows that stand for it in the prompt, at most as many as `tokens` says. `name` is appended
    /// to the names of traced activations.
    fn encode(&self, cx: &mut Cx<'_>, image: &Image, tokens: Option<ImageTokens>, name: &str) -> Result<ImageRows>;
}

/// A picture as the text model takes it.
pub struct ImageRows {
    /// `[n_image_tokens, n_embd]`.
    pub rows: Vec<f32>,
    /// How many image tokens there would be without a limit.
    pub n_all: usize,
}

/// The architectures that a file holds a part of: usually one; a text model and its mmproj may share a file.
pub fn of(gguf: &Gguf) -> impl Iterator<Item = &'static Architecture> {
    ARCHITECTURES.iter().copied().filter(move |arch| (arch.matches)(gguf))
}

/// Loads the text model of a file.
pub fn load_text(loader: Loader<'_>) -> Result<Box<dyn TextModel>> {
    for arch in of(loader.gguf) {
        if let Model::Text(model) = (arch.load)(loader)? {
            return Ok(model);
        }
    }
    refuse(loader.gguf, "text model")
}

/// Loads the vision encoder and projector of a file.
pub fn load_vision(loader: Loader<'_>) -> Result<Box<dyn VisionModel>> {
    for arch in of(loader.gguf) {
        if let Model::Vision(model) = (arch.load)(loader)? {
            return Ok(model);
        }
    }
    refuse(loader.gguf, "vision encoder (mmproj)")
}

/// What mmq can do with a file, or an error that says why it can do nothing.
pub fn check(gguf: &Gguf) -> Result<String> {
    let parts = of(gguf).map(|arch| (arch.load)(Loader::stored(gguf))).collect::<Result<Vec<_>>>()?;
    if parts.is_empty() {
        return refuse(gguf, "model that mmq knows");
    }
    let described = parts.iter().map(|part| match part {
        Model::Text(model) => format!("runs: {}", model.describe()),
        Model::Vision(model) => format!("runs beside a text model {} wide: {}", model.n_embd(), model.describe()),
    });
    Ok(described.collect::<Vec<_>>().join("; "))
}

/// The names of the tensors that the models of a file multiply with, in the order in which they load them.
///
/// # Errors
/// A file with no model that mmq runs, or with a broken one.
pub fn matrices(gguf: &Gguf) -> Result<Vec<String>> {
    let noted = RefCell::new(Noted::default());
    let loading = Loading { noted: Some(&noted), ..Loading::default() };
    let parts = of(gguf).map(|arch| (arch.load)(Loader { gguf, loading })).collect::<Result<Vec<_>>>()?;
    if parts.is_empty() {
        return refuse(gguf, "model that mmq knows");
    }
    Ok(noted.into_inner().matrices)
}

/// A part of a system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The decoder of text.
    Text,
    /// The vision encoder with its projector.
    Vision,
}

/// The names of the tensors that one part of a file asks for, by what becomes of them.
///
/// # Errors
/// A file without that part, or with a broken one.
pub fn tensors(gguf: &Gguf, part: Part) -> Result<Noted> {
    for arch in of(gguf) {
        let noted = RefCell::new(Noted::default());
        let loading = Loading { noted: Some(&noted), ..Loading::default() };
        let is_it = match (arch.load)(Loader { gguf, loading })? {
            Model::Text(_) => part == Part::Text,
            Model::Vision(_) => part == Part::Vision,
        };
        if is_it {
            return Ok(noted.into_inner());
        }
    }
    refuse(gguf, if part == Part::Text { "text model" } else { "vision encoder (mmproj)" })
}

fn refuse<T>(gguf: &Gguf, wanted: &str) -> Result<T> {
    let known = ARCHITECTURES.iter().map(|a| a.name).collect::<Vec<_>>().join(", ");
    match gguf.metadata().str("general.architecture")? {
        Some(arch) => {
            let projector = match gguf.metadata().str("clip.projector_type")? {
                Some(projector) => format!(" with projector {projector:?}"),
                None => String::new(),
            };
            bail!(
                Unsupported,
                "{}: expected a {wanted}, but the architecture is {arch:?}{projector}; mmq runs {known}",
                gguf.name()
            )
        }
        None => bail!(Unsupported, "{}: general.architecture is missing; mmq runs {known}", gguf.name()),
    }
}
