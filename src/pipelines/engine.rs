//! A loaded model: text decoder, tokenizer, and if there is one the half that sees.

use super::prompt::{EncodedImage, Piece, Prompt};
use crate::architectures::{self, ImageRows, TextModel, VisionModel};
use crate::blocks::image_tokens::ImageTokens;
use crate::device::Cpu;
use crate::gguf::Gguf;
use crate::media::Filter;
use crate::media::Image;
use crate::media::preprocess::Fit;
use crate::ops::{Collector, Cx, Trace};
use crate::tensor::{Loader, Loading, Precision, Prepare};
use crate::text::template::{IMAGE_MARKER, Message, Part, Parts};
use crate::text::{ChatTemplate, Tokenizer};
use crate::{Error, Result, bail};
use mmq_kernels::{Activations, Dtype};
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
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
    /// Every mode with the name that flags take.
    pub const NAMES: [(&str, LoadMode); 3] =
        [("auto", LoadMode::Auto), ("mmap", LoadMode::Mmap), ("repack", LoadMode::Repack)];
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
        let text = Gguf::open(model)?;
        let vision = mmproj.map(Gguf::open).transpose()?;
        Engine::build(&text, vision.as_ref(), options, cancel, progress)
    }

    /// The model that is compiled into the program: small, and knows only the synthetic scenes it was trained on
    /// (`models/README.md`).
    #[cfg(feature = "nano")]
    pub fn built_in(options: &EngineOptions) -> Result<Engine> {
        static TEXT: &[u8] = include_bytes!("../../models/nano/nano.gguf");
        static VISION: &[u8] = include_bytes!("../../models/nano/mmproj-nano.gguf");
        let text = Gguf::from_static("nano.gguf", TEXT)?;
        let vision = Gguf::from_static("mmproj-nano.gguf", VISION)?;
        Engine::from_gguf(&text, Some(&vision), options)
    }

    /// Loads from files that are open already.
    pub fn from_gguf(text: &Gguf, mmproj: Option<&Gguf>, options: &EngineOptions) -> Result<Engine> {
        Engine::build(text, mmproj, options, None, None)
    }

    fn build(
        text: &Gguf,
        mmproj: Option<&Gguf>,
        options: &EngineOptions,
        cancel: Option<&super::Cancel>,
        mut progress: Option<&mut dyn FnMut(f32)>,
    ) -> Result<Engine> {
        let device = Cpu::new(options.n_threads);
        // Without repacking, only a vision encoder is made ready.
        let repack = options.load_mode == LoadMode::Repack;
        let total = if repack { text.n_bytes() } else { 0 } + mmproj.map_or(0, Gguf::n_bytes);
        let mut done = 0;
        let mut report = |n: usize| {
            done += n as u64;
            progress.iter_mut().for_each(|progress| progress(done as f32 / total as f32));
        };
        let prepare = Prepare::new(&device.team, cancel.map(super::Cancel::flag), &mut report);
        let loader = |gguf| Loader {
            gguf,
            loading: Loading { prepare: Some(&prepare), vision: options.vision_precision, repack, noted: None },
        };
        let model = architectures::load_text(loader(text))?;
        let vision_file = mmproj.or_else(|| text.tensor("v.patch_embd.weight").is_some().then_some(text));
        let mut vision = vision_file.map(|gguf| architectures::load_vision(loader(gguf))).transpose()?;
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
        Ok(Engine {
            device,
            text: model,
            tokenizer,
            vision,
            image_tokens: options.image_tokens,
            template,
            name: text.name().to_owned(),
            info: ModelInfo::of(text)?,
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

    /// The context that the model was trained with, in tokens.
    pub fn n_ctx_train(&self) -> usize {
        self.text.n_ctx_train()
    }

    /// Threads that it computes with.
    pub fn n_threads(&self) -> usize {
        self.device.team.n_threads()
    }

    /// Encodes a picture. `progress` is told the fraction done and may be used to show it.
    ///
    /// # Errors
    /// A model without a vision encoder; an empty picture, or one whose bytes are not as many as its size says; `cancel`
    /// used by another thread.
    pub fn encode_image(
        &self,
        image: &Image,
        cancel: Option<&super::Cancel>,
        progress: Option<&mut dyn FnMut(f32)>,
    ) -> Result<Arc<EncodedImage>> {
        self.encode_collecting(image, cancel, progress, None)
    }

    /// [`Engine::encode_image`]; what goes into the matrices is summed up in `collector`, if there is one.
    pub(super) fn encode_collecting(
        &self,
        image: &Image,
        cancel: Option<&super::Cancel>,
        mut progress: Option<&mut dyn FnMut(f32)>,
        collector: Option<&mut Collector>,
    ) -> Result<Arc<EncodedImage>> {
        let mut activations = Activations::default();
        let mut report = |done: f32| progress.iter_mut().for_each(|progress| progress(done));
        let mut cx = Cx::new(&self.device, &mut activations);
        cx.cancel = cancel.map(super::Cancel::flag);
        cx.progress = Some(&mut report);
        cx.collector = collector;
        self.encode(&mut cx, image, "")
    }

    /// Encodes picture number `index` and records every named activation.
    pub(crate) fn encode_traced(&self, image: &Image, index: usize, trace: &mut Trace) -> Result<Arc<EncodedImage>> {
        let mut activations = Activations::default();
        let mut cx = Cx::new(&self.device, &mut activations);
        cx.trace = Some(trace);
        self.encode(&mut cx, image, &format!(".{index}"))
    }

    fn encode(&self, cx: &mut Cx<'_>, image: &Image, name: &str) -> Result<Arc<EncodedImage>> {
        let Some(vision) = &self.vision else {
            bail!(Usage, "{}: a text model without mmproj cannot look at pictures: give one with --mmproj", self.name);
        };
        let n_bytes = image.width.checked_mul(image.height).and_then(|n| n.checked_mul(3));
        if image.rgb.is_empty() || n_bytes != Some(image.rgb.len()) {
            bail!(Usage, "a picture of {}x{} cannot have {} bytes", image.width, image.height, image.rgb.len());
        }
        let ImageRows { rows, n_all } = vision.encode(cx, image, self.image_tokens, name)?;
        let mut hasher = DefaultHasher::new();
        (image.width, image.height, &image.rgb, self.image_tokens).hash(&mut hasher);
        let n_tokens = rows.len() / vision.n_embd();
        Ok(Arc::new(EncodedImage { rows, n_tokens, n_tokens_all: n_all, id: hasher.finish() }))
    }

    /// Writes a conversation with the chat template; the answer comes next. Each [`IMAGE_MARKER`] in the messages stands
    /// for the next of `images`.
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
