//! A loaded model: text decoder, tokenizer, and if there is one the half that sees.

use super::image_cache::{ImageCache, ImageCacheOptions, ImageCacheStats};
use super::prompt::{EncodedImage, ImageId, Piece, Prompt};
use crate::architectures::{self, ImageRows, TextModel, VisionModel};
use crate::blocks::image_tokens::ImageTokens;
use crate::device::{Cpu, Power};
use crate::gguf::{Gguf, Origin};
use crate::media::Filter;
use crate::media::Image;
use crate::media::preprocess::{Fit, Preprocess};
use crate::ops::{Collector, Cx, Trace};
use crate::tensor::{Loader, Loading, Precision, Prepare};
use crate::text::template::{IMAGE_MARKER, Message, Part, Parts};
use crate::text::{ChatTemplate, Dialect, Tokenizer};
use crate::{Error, Result, bail, unless_stopped};
use mmq_kernels::{Activations, Dtype};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How weights come into memory. Answers do not depend on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LoadMode {
    /// [`LoadMode::Mmap`]: interleaving 4 GB takes seconds, which answers of some hundred tokens win back. Files that are
    /// packed ([`Packer`](super::Packer)) have the speed without the wait.
    #[default]
    Auto,
    /// They are read from the mapped file, as they lie there: nothing to wait for, and processes share the memory.
    Mmap,
    /// They are interleaved into memory of the process, for faster products; the file's pages are given back. Files that
    /// are packed need none of it.
    Repack,
}

impl LoadMode {
    /// Every mode, as they are declared, with the name that flags take.
    pub const NAMES: [(&str, LoadMode); 3] =
        [("auto", LoadMode::Auto), ("mmap", LoadMode::Mmap), ("repack", LoadMode::Repack)];

    /// The name that it is parsed from.
    pub fn name(self) -> &'static str {
        LoadMode::NAMES[self as usize].0
    }
}

impl std::str::FromStr for LoadMode {
    type Err = String;
    fn from_str(name: &str) -> Result<LoadMode, String> {
        let known = || LoadMode::NAMES.map(|(name, _)| name).join(", ");
        let mode = LoadMode::NAMES.into_iter().find_map(|(n, mode)| (n == name).then_some(mode));
        mode.ok_or_else(|| format!("{name:?} is none of {}", known()))
    }
}

/// How to load a model.
#[derive(Clone, Debug, Default)]
pub struct EngineOptions {
    /// Threads to compute with; `None`: the physical cores worth using.
    pub n_threads: Option<usize>,
    /// A built-in chat template's name or Jinja text in place of the model's own.
    pub chat_template: Option<String>,
    /// How pictures are fitted, in place of the model's own rule: `crop`, `pad`, `squash` or `anyres`.
    pub image_fit: Option<String>,
    /// The filter that pictures are resized with, in place of bicubic.
    pub image_filter: Option<Filter>,
    /// How weights come into memory.
    pub load_mode: LoadMode,
    /// What the vision encoder and its projector compute with.
    pub vision_precision: Precision,
    /// Most tokens of each picture, and how they are made fewer; `None`: as many as the model makes.
    pub image_tokens: Option<ImageTokens>,
    /// Where encoded pictures are kept, so that a second look at one costs nothing.
    pub image_cache: ImageCacheOptions,
    /// Whether the vision encoder leaves memory after each picture, to be made again for the next.
    pub release_vision: bool,
    /// How many layers of the text model stay in memory, where it cannot hold them all: the others stream through it from the
    /// mapped file, each being read while the one before is at work. `None`: all stay.
    pub resident_layers: Option<usize>,
    /// What matters more, speed or battery and company; [`EngineOptions::n_threads`] overrides its number of threads.
    pub power: Power,
}

/// What a text model is made of.
#[derive(Clone, Debug)]
pub struct ModelInfo {
    /// Architecture and the type of most of its bytes: `llama Q4_0`.
    pub kind: String,
    /// Weights in all its tensors.
    pub n_params: u64,
    /// Bytes of its tensors as they lie in the file.
    pub n_bytes: u64,
}

impl ModelInfo {
    fn of(gguf: &Gguf) -> Result<ModelInfo> {
        let architecture = gguf.metadata().str("general.architecture")?.unwrap_or_default();
        let mut types = BTreeMap::<Dtype, usize>::new();
        gguf.tensors().iter().for_each(|t| *types.entry(t.dtype).or_default() += t.n_bytes);
        let most = types.iter().max_by_key(|(_, bytes)| **bytes).map_or("", |(dtype, _)| dtype.name());
        Ok(ModelInfo { kind: format!("{architecture} {most}"), n_params: gguf.n_params(), n_bytes: gguf.n_bytes() })
    }
}

/// A loaded model. Immutable and shared: any number of [`Session`](super::Session)s may run on it.
pub struct Engine {
    pub(crate) device: Cpu,
    pub(crate) text: Box<dyn TextModel>,
    pub(crate) tokenizer: Tokenizer,
    vision: Option<Box<dyn VisionModel>>,
    image_tokens: Option<ImageTokens>,
    template: ChatTemplate,
    name: String,
    info: ModelInfo,
    origin: Origin,
    vision_origin: Option<Origin>,
    vision_precision: Precision,
    /// The file to make the vision encoder from for each picture; `vision` then is as it is stored.
    vision_again: Option<Gguf>,
    repack: bool,
    pub(super) resident_layers: Option<usize>,
    pub(super) images: ImageCache,
}

impl Engine {
    /// Loads a text model and, if given, its mmproj. A file that holds both needs no mmproj.
    ///
    /// # Errors
    /// A file that cannot be read, is damaged, or is of an architecture that mmq does not run; an mmproj whose rows are
    /// not as wide as the text model.
    pub fn load(model: &Path, mmproj: Option<&Path>, options: &EngineOptions) -> Result<Engine> {
        Engine::load_watched(model, mmproj, options, None, None)
    }

    /// [`Engine::load`], which another thread may stop with `cancel`; `progress` is told the fraction done.
    ///
    /// # Errors
    /// As [`Engine::load`], and `cancel` used by another thread.
    pub fn load_watched(
        model: &Path,
        mmproj: Option<&Path>,
        options: &EngineOptions,
        cancel: Option<&super::Cancel>,
        progress: Option<&mut dyn FnMut(f32)>,
    ) -> Result<Engine> {
        let load = || {
            let text = Gguf::open(model)?;
            let vision = mmproj.map(Gguf::open).transpose()?;
            Engine::build(&text, vision.as_ref(), options, progress)
        };
        super::Cancel::guard(cancel.unwrap_or(&super::Cancel::default()), load)
    }

    /// The model that is compiled into the program: small, and knows only the synthetic scenes it was trained on
    /// (`models/README.md`).
    #[cfg(feature = "nano")]
    pub fn built_in(options: &EngineOptions) -> Result<Engine> {
        let [text, vision] = Engine::built_in_files()?;
        Engine::from_gguf(&text, Some(&vision), options)
    }

    /// The files of [`Engine::built_in`]: text model and mmproj.
    #[cfg(feature = "nano")]
    pub(crate) fn built_in_files() -> Result<[Gguf; 2]> {
        static TEXT: &[u8] = include_bytes!("../../models/nano/nano.gguf");
        static VISION: &[u8] = include_bytes!("../../models/nano/mmproj-nano.gguf");
        Ok([Gguf::from_static("nano.gguf", TEXT)?, Gguf::from_static("mmproj-nano.gguf", VISION)?])
    }

    /// Loads from files that are open already.
    pub fn from_gguf(text: &Gguf, mmproj: Option<&Gguf>, options: &EngineOptions) -> Result<Engine> {
        Engine::build(text, mmproj, options, None)
    }

    /// [`Engine::from_gguf`]; `progress` is told the fraction done.
    pub(crate) fn build(
        text: &Gguf,
        mmproj: Option<&Gguf>,
        options: &EngineOptions,
        progress: Option<&mut dyn FnMut(f32)>,
    ) -> Result<Engine> {
        let mut progress = rising(progress);
        let device = Cpu::with(options.n_threads, options.power);
        // Without repacking, only a vision encoder is made ready.
        let repack = options.load_mode == LoadMode::Repack;
        let total = if repack { text.n_bytes() } else { 0 } + mmproj.map_or(0, Gguf::n_bytes);
        let mut done = 0;
        let mut report = |n: usize| {
            done += n as u64;
            progress(done as f32 / total as f32);
        };
        let prepare = Prepare::new(&device.team, &mut report);
        let loader = |gguf| Loader {
            gguf,
            loading: Loading { prepare: Some(&prepare), vision: options.vision_precision, repack, noted: None },
        };
        let model = architectures::load_text(loader(text))?;
        let vision_file = mmproj.or_else(|| text.tensor("v.patch_embd.weight").is_some().then_some(text));
        let vision_loader = |gguf| if options.release_vision { Loader::stored(gguf) } else { loader(gguf) };
        let mut vision = vision_file.map(|gguf| architectures::load_vision(vision_loader(gguf))).transpose()?;
        if let (Some(vision), Some(file)) = (&vision, vision_file)
            && vision.n_embd() != model.n_embd()
        {
            bail!(
                Mismatch,
                "{}: makes image tokens {} wide, but {} is {} wide: the mmproj belongs to another model",
                file.name(),
                vision.n_embd(),
                text.name(),
                model.n_embd()
            );
        }
        if let Some(vision) = &mut vision {
            let mut preprocess = vision.preprocess().clone();
            if let Some(name) = &options.image_fit {
                preprocess.fit = Fit::named(name, preprocess.mean, preprocess.image_size)?;
            }
            preprocess.filter = options.image_filter.unwrap_or(preprocess.filter);
            preprocess.validate()?;
            vision.set_preprocess(preprocess);
        }
        let tokenizer = Tokenizer::from_gguf(text.metadata())?;
        if tokenizer.n_vocab() > model.n_vocab() {
            bail!(
                Format,
                "{}: the tokenizer has {} tokens, token_embd.weight only {}",
                text.name(),
                tokenizer.n_vocab(),
                model.n_vocab()
            );
        }
        let template = match &options.chat_template {
            Some(template) => ChatTemplate::new(template)?,
            None => ChatTemplate::pick(text.metadata(), vision_file.map(Gguf::metadata))?,
        };
        unless_stopped()?;
        Ok(Engine {
            device,
            text: model,
            tokenizer,
            vision,
            image_tokens: options.image_tokens,
            template,
            name: text.name().to_owned(),
            info: ModelInfo::of(text)?,
            origin: Origin::of(text),
            vision_origin: vision_file.map(Origin::of),
            vision_precision: options.vision_precision,
            vision_again: vision_file.filter(|_| options.release_vision).cloned(),
            repack,
            resident_layers: options.resident_layers,
            images: ImageCache::new(&options.image_cache),
        })
    }

    /// The text model's file name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What is loaded, in a few words.
    pub fn describe(&self) -> String {
        match &self.vision {
            Some(vision) => format!("{}; {}", self.text.describe(), vision.describe()),
            None => self.text.describe(),
        }
    }

    /// What the text model is made of.
    pub fn info(&self) -> &ModelInfo {
        &self.info
    }

    /// The instruction set that its kernels use: `avx2`, for one.
    pub fn level(&self) -> &'static str {
        self.device.kernels.level.name()
    }

    /// Whether it can look at pictures.
    pub fn has_vision(&self) -> bool {
        self.vision.is_some()
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The chat template in use.
    pub fn template(&self) -> &ChatTemplate {
        &self.template
    }

    /// How the model writes places in pictures, if it is known to: by its template, or by control tokens of the vocabulary.
    pub fn dialect(&self) -> Option<Dialect> {
        let of_qwen = || Dialect::Qwen.tags().iter().all(|tag| self.tokenizer.token_id(tag).is_some());
        Dialect::of_template(self.template.name()).or_else(|| of_qwen().then_some(Dialect::Qwen))
    }

    /// The context that the model was trained with, in tokens.
    pub fn n_ctx_train(&self) -> usize {
        self.text.n_ctx_train()
    }

    /// Threads that it computes with.
    pub fn n_threads(&self) -> usize {
        self.device.team.n_threads()
    }

    /// How many positions a picture of `width` and `height` pixels takes in the prompt: known without encoding it.
    ///
    /// # Errors
    /// A model without a vision encoder; an empty picture.
    pub fn n_image_tokens(&self, width: usize, height: usize) -> Result<usize> {
        if width == 0 || height == 0 {
            bail!(Usage, "an empty picture: {width}x{height}");
        }
        Ok(self.vision()?.n_tokens((width, height), self.image_tokens))
    }

    /// Takes the place of a picture of that size in a prompt that is counted, not read.
    ///
    /// # Errors
    /// As [`Engine::n_image_tokens`].
    #[cfg(feature = "ffi")]
    pub(crate) fn placeholder(&self, width: usize, height: usize) -> Result<Arc<EncodedImage>> {
        let n_tokens = self.n_image_tokens(width, height)?;
        let view = self.vision()?.preprocess().view(width, height);
        let header = super::prompt::ImageHeader { id: ImageId([0; 16]), n_tokens, n_tokens_all: n_tokens, view };
        Ok(Arc::new(EncodedImage::restored(header, Vec::new())))
    }

    fn vision(&self) -> Result<&dyn VisionModel> {
        match &self.vision {
            Some(vision) => Ok(vision.as_ref()),
            None => {
                bail!(Usage, "{}: a text model without mmproj cannot look at pictures", self.name)
            }
        }
    }

    /// Width of its embeddings: of a token's, and of each row that stands for a picture.
    pub fn n_embd(&self) -> usize {
        self.text.n_embd()
    }

    /// What tells the text model apart from others: see [`Origin::hash`].
    pub(super) fn model_hash(&self) -> &[u8; 32] {
        self.origin.hash()
    }

    /// How often pictures were found that had been encoded before.
    pub fn image_cache(&self) -> ImageCacheStats {
        self.images.stats()
    }

    /// What went wrong with kept pictures since the last call; pictures were encoded all the same.
    pub fn take_warnings(&self) -> Vec<String> {
        self.images.take_warnings()
    }

    /// Frees what can be had again: encoded pictures that are kept in memory, and the pages of mapped files, which come back as
    /// they are needed. For when the system is short of memory; sessions go on as before.
    pub fn trim(&self) {
        self.images.clear();
        self.origin.give_back();
        self.vision_origin.iter().for_each(Origin::give_back);
    }

    /// Encodes a picture, or finds it among those that were ([`EngineOptions::image_cache`]): the same pixels, encoded in the
    /// same way. `progress` is told the fraction done and may be used to show it.
    ///
    /// # Errors
    /// A model without a vision encoder; an empty picture, or one whose bytes are not as many as its size says; `cancel`
    /// used by another thread.
    pub fn encode_image(
        &self,
        image: &Image,
        cancel: Option<&super::Cancel>,
        mut progress: Option<&mut dyn FnMut(f32)>,
    ) -> Result<Arc<EncodedImage>> {
        let id = cancel.unwrap_or(&super::Cancel::default()).guard(|| self.image_id(image))?;
        if let Some(kept) = self.images.find(id, self.text.n_embd()) {
            progress.iter_mut().for_each(|progress| progress(1.0));
            return Ok(kept);
        }
        let encoded = self.encode_watched(image, id, cancel, progress, None)?;
        self.images.insert(&encoded);
        Ok(encoded)
    }

    /// Encodes a picture, wherever it is kept; what goes into the matrices is summed up in `collector`.
    pub(super) fn encode_collecting(
        &self,
        image: &Image,
        cancel: Option<&super::Cancel>,
        progress: Option<&mut dyn FnMut(f32)>,
        collector: Option<&mut Collector>,
    ) -> Result<Arc<EncodedImage>> {
        self.encode_watched(image, self.image_id(image)?, cancel, progress, collector)
    }

    fn encode_watched(
        &self,
        image: &Image,
        id: ImageId,
        cancel: Option<&super::Cancel>,
        progress: Option<&mut dyn FnMut(f32)>,
        collector: Option<&mut Collector>,
    ) -> Result<Arc<EncodedImage>> {
        let mut activations = Activations::default();
        let mut report = rising(progress);
        let mut cx = Cx::new(&self.device, &mut activations);
        cx.progress = Some(&mut report);
        cx.collector = collector;
        cancel.unwrap_or(&super::Cancel::default()).guard(|| self.encode(&mut cx, image, id, ""))
    }

    /// Encodes picture number `index` and records every named activation.
    pub(crate) fn encode_traced(&self, image: &Image, index: usize, trace: &mut Trace) -> Result<Arc<EncodedImage>> {
        let mut activations = Activations::default();
        let mut cx = Cx::new(&self.device, &mut activations);
        cx.trace = Some(trace);
        self.encode(&mut cx, image, self.image_id(image)?, &format!(".{index}"))
    }

    fn encode(&self, cx: &mut Cx<'_>, image: &Image, id: ImageId, name: &str) -> Result<Arc<EncodedImage>> {
        let vision = self.vision_for(image)?;
        let ImageRows { rows, n_all } = match &self.vision_again {
            None => vision.encode(cx, image, self.image_tokens, name)?,
            Some(gguf) => {
                let made = self.make_vision(gguf, vision.preprocess())?;
                let encoded = made.encode(cx, image, self.image_tokens, name);
                self.vision_origin.iter().for_each(Origin::give_back);
                encoded?
            }
        };
        let n_tokens = rows.len() / vision.n_embd();
        let view = vision.preprocess().view(image.width, image.height);
        Ok(Arc::new(EncodedImage { rows, n_tokens, n_tokens_all: n_all, id, view }))
    }

    /// The vision encoder, made for one picture.
    fn make_vision(&self, gguf: &Gguf, preprocess: &Preprocess) -> Result<Box<dyn VisionModel>> {
        let mut unwatched = |_| ();
        let prepare = Prepare::new(&self.device.team, &mut unwatched);
        let loading =
            Loading { prepare: Some(&prepare), vision: self.vision_precision, repack: self.repack, noted: None };
        let mut vision = architectures::load_vision(Loader { gguf, loading })?;
        vision.set_preprocess(preprocess.clone());
        Ok(vision)
    }

    /// The vision encoder, for a picture that it can take.
    fn vision_for(&self, image: &Image) -> Result<&dyn VisionModel> {
        let vision = self.vision()?;
        let n_bytes = image.width.checked_mul(image.height).and_then(|n| n.checked_mul(3));
        if image.rgb.is_empty() || n_bytes != Some(image.rgb.len()) {
            bail!(Usage, "a picture of {}x{} cannot have {} bytes", image.width, image.height, image.rgb.len());
        }
        Ok(vision)
    }

    /// What tells the rows of a picture apart: its pixels, the model, and all that decides how the one becomes the other.
    fn image_id(&self, image: &Image) -> Result<ImageId> {
        let vision = self.vision_for(image)?;
        let mut hasher = Sha256::new();
        hasher.update(self.vision_origin.as_ref().map_or(&[0; 32], Origin::hash));
        let how = (
            env!("CARGO_PKG_VERSION"),
            self.level(),
            self.vision_precision,
            self.image_tokens,
            vision.preprocess(),
            [image.width, image.height],
        );
        hasher.update(format!("{how:?}\n"));
        for part in image.rgb.chunks(1 << 20) {
            unless_stopped()?;
            hasher.update(part);
        }
        let hash: [u8; 32] = hasher.finalize().into();
        Ok(ImageId(*hash.first_chunk().expect("half of 32")))
    }

    /// Writes a conversation with the chat template; the answer comes next. Each [`IMAGE_MARKER`] in the messages stands
    /// for the next of `images`. A last message of the assistant is the beginning of the answer, which the model goes on
    /// from: tell [`Generation::begun`](super::Generation::begun).
    pub fn chat_prompt(&self, messages: &[Message], images: &[Arc<EncodedImage>]) -> Result<Prompt> {
        let text = |token: Option<u32>| {
            token.map_or(String::new(), |t| String::from_utf8_lossy(&self.tokenizer.piece(t, true)).into_owned())
        };
        let (bos, eos) = (text(self.tokenizer.bos()), text(self.tokenizer.eos()));
        let parts = self.template.parts(messages, true, &bos, &eos)?;
        match self.template.tags() {
            None => self.prompt(&parts.text(), images),
            Some(tags) => self.prompt_of(&parts, tags, images),
        }
    }

    /// A prompt in which what messages say holds no control tokens but `tags`.
    fn prompt_of(&self, parts: &Parts, tags: &[&str], images: &[Arc<EncodedImage>]) -> Result<Prompt> {
        check_places(&parts.text(), images)?;
        let mut images = images.iter();
        let mut prompt = Prompt::default();
        if !self.tokenizer.begins_with_bos(&parts.text()) {
            prompt.pieces.push(Piece::Tokens(self.tokenizer.encode("", true, true)));
        }
        for part in &parts.0 {
            let text = match part {
                Part::Frame(text) => text,
                Part::Said(text) => {
                    prompt.pieces.push(Piece::Tokens(self.tokenizer.encode_tagged(text, tags)));
                    continue;
                }
            };
            for (i, text) in text.split(IMAGE_MARKER).enumerate() {
                if i > 0 {
                    prompt.pieces.extend(images.next().map(|image| Piece::Image(image.clone())));
                }
                prompt.pieces.push(Piece::Tokens(self.tokenizer.encode(text, false, true)));
            }
        }
        prompt.pieces.retain(|piece| !matches!(piece, Piece::Tokens(tokens) if tokens.is_empty()));
        Ok(prompt)
    }

    /// Turns text into a prompt as it stands: each stretch between pictures is tokenized on its own, and the first gets
    /// the beginning-of-sequence token unless the text starts with it.
    pub fn prompt(&self, text: &str, images: &[Arc<EncodedImage>]) -> Result<Prompt> {
        check_places(text, images)?;
        let mut prompt = Prompt::default();
        let mut images = images.iter();
        for (i, part) in text.split(IMAGE_MARKER).enumerate() {
            if i > 0 {
                prompt.pieces.extend(images.next().map(|image| Piece::Image(image.clone())));
            }
            let tokens = self.tokenizer.encode(part, i == 0 && !self.tokenizer.begins_with_bos(part), true);
            if !tokens.is_empty() {
                prompt.pieces.push(Piece::Tokens(tokens));
            }
        }
        Ok(prompt)
    }
}

/// Passes fractions of work on that only ever rise, up to 1: stages of it may each count from 0.
pub(super) fn rising(mut progress: Option<&mut dyn FnMut(f32)>) -> impl FnMut(f32) {
    let mut most = 0f32;
    move |done| {
        if let Some(progress) = &mut progress {
            most = most.max(done.min(1.0));
            progress(most);
        }
    }
}

fn check_places(text: &str, images: &[Arc<EncodedImage>]) -> Result<()> {
    let n_markers = text.matches(IMAGE_MARKER).count();
    if n_markers != images.len() {
        bail!(Mismatch, "the prompt has places for {n_markers} pictures, but {} are given", images.len());
    }
    Ok(())
}

/// The mmproj that lies beside a model: the one `mmproj*.gguf` of its folder.
///
/// # Errors
/// Several files of that name: the user has to choose.
pub fn find_mmproj(model: &Path) -> Result<Option<PathBuf>> {
    let folder = match model.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let entries = std::fs::read_dir(folder).map_err(|e| Error::io(folder, &e))?;
    let is_mmproj = |path: &PathBuf| {
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default().to_lowercase();
        name.starts_with("mmproj") && name.ends_with(".gguf")
    };
    let mut found: Vec<PathBuf> = entries.flatten().map(|e| e.path()).filter(is_mmproj).collect();
    found.sort();
    match found.as_slice() {
        [] => Ok(None),
        [one] => Ok(Some(one.clone())),
        [first, .., last] => bail!(
            Usage,
            "{} mmproj files lie beside the model, from {} to {}: choose one with --mmproj",
            found.len(),
            first.display(),
            last.display()
        ),
    }
}
