//! Sessions in files: tokens, pictures, keys and values, what was chosen but not yet run, and the sampler. A session that was
//! restored goes on bit for bit as the one that was saved.

use super::engine::Engine;
use super::prompt::{EncodedImage, ImageHeader, ImageId, Slot};
use super::sealed::{self, Format, Source, hex};
use super::session::Session;
use crate::media::View;
use crate::tensor::free_if_stopped;
use crate::text::SamplerState;
use crate::{Result, bail};
use serde::{Deserialize, Serialize};
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

const FORMAT: Format = Format { magic: b"mmqsess\0", version: 1, what: "session file" };

/// What a session file begins with. Behind it come the logits `[n_vocab]` if there are any, the rows of each picture
/// `[n_tokens, n_embd]`, and of each layer the keys and the values as `mmq_kernels::kv` lays them out.
#[derive(Serialize, Deserialize)]
struct Header {
    /// The text model's name, for messages.
    model: String,
    /// What tells it apart from other models.
    model_hash: String,
    cache: Cache,
    n_embd: usize,
    n_vocab: usize,
    n_past: usize,
    n_prompt: usize,
    timeline: Vec<Run>,
    images: Vec<ImageHeader>,
    /// See [`Session`]'s field of that name.
    picture: Option<(usize, View)>,
    pending: Option<u32>,
    has_logits: bool,
    sampler: SamplerState,
}

#[derive(Serialize, Deserialize)]
struct Cache {
    n_layer: usize,
    n_head_kv: usize,
    head_dim: usize,
    type_k: String,
    type_v: String,
    /// See [`KvCache::stretch`](crate::blocks::kv_cache::KvCache::stretch).
    stretch: u32,
}

/// Slots that follow each other.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Run {
    Tokens(Vec<u32>),
    Image { id: ImageId, first: usize, n: usize },
}

fn runs(timeline: &[Slot]) -> Vec<Run> {
    let mut runs = Vec::new();
    for slot in timeline {
        match (*slot, runs.last_mut()) {
            (Slot::Token(token), Some(Run::Tokens(tokens))) => tokens.push(token),
            (Slot::Token(token), _) => runs.push(Run::Tokens(vec![token])),
            (Slot::Image { id, row }, Some(Run::Image { id: last, first, n })) if *last == id && row == *first + *n => {
                *n += 1;
            }
            (Slot::Image { id, row }, _) => runs.push(Run::Image { id, first: row, n: 1 }),
        }
    }
    runs
}

impl Header {
    /// The slots that the runs stand for, each checked.
    fn slots(&self, name: &str) -> Result<Vec<Slot>> {
        let mut slots = Vec::new();
        for run in &self.timeline {
            match run {
                Run::Tokens(tokens) => {
                    if let Some(token) = tokens.iter().find(|token| **token as usize >= self.n_vocab) {
                        bail!(Format, "{name}: damaged: token {token} is beyond the vocabulary of {}", self.n_vocab);
                    }
                    slots.extend(tokens.iter().map(|token| Slot::Token(*token)));
                }
                Run::Image { id, first, n } => {
                    let end = first.checked_add(*n);
                    let known = self.images.iter().find(|image| image.id == *id);
                    if known.is_none_or(|image| end.is_none_or(|end| end > image.n_tokens)) || *n > self.n_past {
                        bail!(Format, "{name}: damaged: {n} rows from {first} of picture {id}, which has no such rows");
                    }
                    slots.extend((*first..first + n).map(|row| Slot::Image { id: *id, row }));
                }
            }
            if slots.len() > self.n_past {
                break;
            }
        }
        if slots.len() != self.n_past || self.n_prompt > self.n_past {
            bail!(Format, "{name}: damaged: expected a timeline of {} positions, got {}", self.n_past, slots.len());
        }
        Ok(slots)
    }

    /// Refuses what another model, or a session with other options, has made.
    fn check(&self, name: &str, engine: &Engine, own: &Cache, n_ctx: usize) -> Result<()> {
        let hash = hex(&engine.model_hash()[..16]);
        if self.model_hash != hash {
            let (theirs, ours) = (self.model_hash.get(..12).unwrap_or_default(), &hash[..12]);
            let engine = engine.name();
            bail!(
                Mismatch,
                "{name}: a session of model {:?} ({theirs}…), but {engine:?} ({ours}…) is loaded: sessions go on with the \
                 model that they began with",
                self.model
            );
        }
        for (option, what, theirs, ours) in [
            ("cache-type-k", "keys", &self.cache.type_k, &own.type_k),
            ("cache-type-v", "values", &self.cache.type_v, &own.type_v),
        ] {
            if theirs != ours {
                bail!(
                    Mismatch,
                    "{name}: {what} are stored as {theirs:?}, but this session stores them as {ours} ({option})"
                );
            }
        }
        let sizes = |c: &Cache, n_embd: usize, n_vocab: usize| [c.n_layer, c.n_head_kv, c.head_dim, n_embd, n_vocab];
        let theirs = sizes(&self.cache, self.n_embd, self.n_vocab);
        let ours = sizes(own, engine.text.n_embd(), engine.text.n_vocab());
        if theirs != ours {
            bail!(
                Format,
                "{name}: damaged: expected layers, heads, their size, width and vocabulary {ours:?}, got {theirs:?}"
            );
        }
        if self.n_past > n_ctx {
            bail!(
                ContextFull,
                "{name}: a session of {} tokens, but the context holds {n_ctx}: raise ctx-size",
                self.n_past
            );
        }
        if let Some(token) = self.pending.filter(|token| *token as usize >= self.n_vocab) {
            bail!(Format, "{name}: damaged: token {token} is beyond the vocabulary of {}", self.n_vocab);
        }
        Ok(())
    }
}

impl Session {
    /// Writes everything that the session goes on from, its pictures included, to `path`: whole, or not at all.
    ///
    /// # Errors
    /// A file that cannot be written; `path` is as it was then.
    pub fn save(&self, path: &Path) -> Result<()> {
        self.save_watched(path, &mut |_| ())
    }

    /// [`Session::save`], which tells `progress` which part is written.
    ///
    /// # Errors
    /// As [`Session::save`].
    pub fn save_watched(&self, path: &Path, progress: &mut dyn FnMut(f32)) -> Result<()> {
        let engine = self.engine();
        let used = |image: &&Arc<EncodedImage>| {
            self.timeline.iter().any(|slot| matches!(slot, Slot::Image { id, .. } if *id == image.id()))
        };
        let images: Vec<_> = self.images.iter().filter(used).collect();
        let header = Header {
            model: engine.name().to_owned(),
            model_hash: hex(&engine.model_hash()[..16]),
            cache: self.stored(),
            n_embd: engine.text.n_embd(),
            n_vocab: engine.text.n_vocab(),
            n_past: self.timeline.len(),
            n_prompt: self.n_prompt.min(self.timeline.len()),
            timeline: runs(&self.timeline),
            images: images.iter().map(|image| image.header()).collect(),
            picture: self.picture,
            pending: self.pending,
            has_logits: !self.logits.is_empty(),
            sampler: self.sampler.state(),
        };
        let n_pieces = 2 * header.cache.n_layer;
        sealed::write(path, &FORMAT, &header, |sink| {
            sink.put_floats(&self.logits)?;
            images.iter().try_for_each(|image| sink.put_floats(&image.rows))?;
            let mut n_done = 0;
            self.cache.write(&mut |bytes| {
                sink.put(bytes)?;
                n_done += 1;
                progress(n_done as f32 / n_pieces as f32);
                Ok(())
            })
        })
    }

    /// Goes on from the session that [`Session::save`] wrote to `path`, in place of what this one holds. Its pictures are known to
    /// the engine from then on, so that they need not be encoded again. Random numbers go on, unless this session was given
    /// another seed.
    ///
    /// # Errors
    /// A file that cannot be read, is damaged, was written by another version, or belongs to another model or to a session
    /// that stores keys or values in another way; a context that is too small. The session is as it was then.
    pub fn restore(&mut self, path: &Path) -> Result<()> {
        self.restore_watched(path, &mut |_| ())
    }

    /// [`Session::restore`], which tells `progress` which part is read.
    ///
    /// # Errors
    /// As [`Session::restore`].
    pub fn restore_watched(&mut self, path: &Path, progress: &mut dyn FnMut(f32)) -> Result<()> {
        let (mut data, n_bytes) = sealed::open(path)?;
        self.read_from(&path.display().to_string(), &mut data, n_bytes, progress)
    }

    /// [`Session::restore`] from `n_bytes` that `data` yields; `name` stands for them in messages.
    ///
    /// # Errors
    /// As [`Session::restore`].
    pub fn restore_from(&mut self, name: &str, data: &mut dyn Read, n_bytes: u64) -> Result<()> {
        self.read_from(name, data, n_bytes, &mut |_| ())
    }

    fn read_from(
        &mut self,
        name: &str,
        data: &mut dyn Read,
        n_bytes: u64,
        progress: &mut dyn FnMut(f32),
    ) -> Result<()> {
        let (header, mut source) = Source::open::<Header>(name, &FORMAT, data, n_bytes)?;
        let engine = self.engine().clone();
        header.check(name, &engine, &self.stored(), self.n_ctx())?;
        let timeline = header.slots(name)?;

        let n_logits = if header.has_logits { header.n_vocab } else { 0 };
        let n_rows = |image: &ImageHeader| image.n_tokens.checked_mul(header.n_embd);
        let n_floats = header.images.iter().try_fold(n_logits, |n, image| n.checked_add(n_rows(image)?));
        let n_cache = self.cache.n_bytes(header.n_past);
        let total = n_floats.and_then(|n| n.checked_mul(4)?.checked_add(n_cache?));
        source.expect(total.map(|n| n as u64))?;
        let logits = source.take_floats(n_logits)?;
        let mut images = Vec::new();
        for image in header.images {
            let rows = source.take_floats(image.n_tokens * header.n_embd)?;
            images.push(Arc::new(EncodedImage::restored(image, rows)));
        }
        let (.., types) = self.cache.shape();
        let mut cache = engine.text.new_cache(self.n_ctx(), types)?;
        cache.restretch(header.cache.stretch);
        let (n_pieces, mut n_done) = (2 * header.cache.n_layer, 0);
        let read = cache.read(header.n_past, &mut |out| {
            source.take(out)?;
            n_done += 1;
            progress(n_done as f32 / n_pieces as f32);
            Ok(())
        });
        if let Err(error) = read {
            free_if_stopped(cache);
            return Err(error);
        }
        source.finish()?;

        let tokens = timeline.iter().filter_map(|slot| if let Slot::Token(token) = slot { Some(*token) } else { None });
        if !self.sampler.restore(&header.sampler, tokens.chain(header.pending)) {
            bail!(Format, "{name}: damaged: no sampler is ever in the state that it holds");
        }
        images.iter().for_each(|image| engine.images.keep(image));
        self.cache = cache;
        self.timeline = timeline;
        self.images = images;
        self.picture = header.picture;
        self.n_prompt = header.n_prompt;
        self.pending = header.pending;
        self.logits = logits;
        self.conversation = None;
        Ok(())
    }

    /// How this session stores keys and values.
    fn stored(&self) -> Cache {
        let (n_layer, n_head_kv, head_dim, types) = self.cache.shape();
        let (type_k, type_v) = (types.k.name().to_owned(), types.v.name().to_owned());
        Cache { n_layer, n_head_kv, head_dim, type_k, type_v, stretch: self.cache.stretch() }
    }
}
