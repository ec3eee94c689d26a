//! How much memory a run takes, known before anything is loaded: from names, types and shapes of tensors, and from what each
//! architecture says of its buffers. And the other way round: what has to give so that a run fits a budget.

use super::engine::LoadMode;
use crate::architectures::{self, Part, TextModel, VisionModel};
use crate::blocks::image_tokens::{ImageTokens, Reduction};
use crate::blocks::kv_cache::{KvType, KvTypes};
use crate::gguf::{Gguf, TensorInfo};
use crate::tensor::{Loader, Precision};
use crate::{Dtype, Result, bail};
use serde::Serialize;
use std::collections::HashSet;
use std::num::NonZeroUsize;

/// What a process takes before it has a model: code, the system's libraries, stacks, buffers of the threads. Measured, as the
/// next three are, with the program on x86-64 Linux.
const BASE: u64 = 12_000_000;
/// What a token of the vocabulary, or a rule of merging, takes in the tokenizer.
const TOKEN: u64 = 100;
/// What each takes besides while the file is read.
const TOKEN_LOADING: u64 = 65;
/// The system maps some pages around one that is touched.
const FAULT: u64 = 64 << 10;
/// Most stored bytes that are in memory beside the new form that is made of them.
const WINDOW: u64 = 8 << 20;
/// Tokens that most answers to most pictures fit in; the planner does not go below of its own will.
const SMALLEST_CONTEXT: usize = 512;

/// What a run is to be; what is `None` the planner chooses.
#[derive(Clone, Debug)]
pub struct Wish {
    /// Tokens of context.
    pub n_ctx: Option<usize>,
    /// Tokens that go through the model at once.
    pub n_ubatch: Option<usize>,
    /// How keys are stored.
    pub type_k: Option<KvType>,
    /// How values are stored.
    pub type_v: Option<KvType>,
    /// How weights come into memory.
    pub load_mode: Option<LoadMode>,
    /// Whether layers stream through memory, as many as must.
    pub low_memory: bool,
    /// Most tokens of each picture.
    pub image_tokens: Option<ImageTokens>,
    /// What the vision encoder computes with.
    pub vision_precision: Precision,
    /// Size of the pictures, in pixels.
    pub image_size: (usize, usize),
    /// How many of them; without a vision encoder it does not matter.
    pub n_images: usize,
    /// Most bytes that the process may take; `None`: as many as it wants.
    pub budget: Option<u64>,
}

impl Wish {
    /// Everything is the planner's choice within `budget`, for one picture of ordinary size.
    pub fn new(budget: Option<u64>) -> Wish {
        Wish {
            n_ctx: None,
            n_ubatch: None,
            type_k: None,
            type_v: None,
            load_mode: None,
            low_memory: false,
            image_tokens: None,
            vision_precision: Precision::Auto,
            image_size: (1024, 768),
            n_images: 1,
            budget,
        }
    }
}

/// What is chosen, and what it takes.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    /// Tokens of context.
    pub n_ctx: usize,
    /// Tokens that go through the model at once.
    pub n_ubatch: usize,
    /// How keys are stored.
    #[serde(serialize_with = "kv_name")]
    pub type_k: KvType,
    /// How values are stored.
    #[serde(serialize_with = "kv_name")]
    pub type_v: KvType,
    /// `mmap` or `repack`.
    #[serde(serialize_with = "mode_name")]
    pub load_mode: LoadMode,
    /// Most tokens of each picture; `None`: as many as the model makes.
    #[serde(serialize_with = "n_tokens")]
    pub image_tokens: Option<ImageTokens>,
    /// Whether the vision encoder leaves memory after each picture.
    pub release_vision: bool,
    /// How many layers stay in memory where the others stream through it; `None`: none stream.
    pub resident_layers: Option<usize>,
    /// What there is, in bytes.
    pub parts: Parts,
    /// Most bytes in each phase, in order.
    pub phases: Vec<Phase>,
    /// Most bytes at all.
    pub peak: u64,
}

/// Parts of the memory, in bytes.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Parts {
    /// The program itself.
    pub base: u64,
    /// Vocabulary and merges.
    pub tokenizer: u64,
    /// The text model's weights that are read where they are mapped.
    pub text_mapped: u64,
    /// Those that are made at load: interleaved matrices, norms and biases.
    pub text_made: u64,
    /// The vision encoder's weights that are read where they are mapped.
    pub vision_mapped: u64,
    /// Those that are made at load: 8-bit matrices, norms, biases, positions.
    pub vision_made: u64,
    /// Keys and values of the whole context.
    pub kv: u64,
    /// Rows that stand for the pictures.
    pub image_rows: u64,
    /// Buffers while a picture is decoded, fitted and encoded.
    pub encode_scratch: u64,
    /// Buffers while a batch of the prompt is read.
    pub prefill_scratch: u64,
    /// Buffers while a token is chosen.
    pub decode_scratch: u64,
}

/// A stretch of a run.
#[derive(Clone, Debug, Serialize)]
pub struct Phase {
    /// `load`, `encode`, `prefill` or `decode`.
    pub name: &'static str,
    /// Most bytes of the process.
    pub n_bytes: u64,
}

fn kv_name<S: serde::Serializer>(kind: &KvType, s: S) -> std::result::Result<S::Ok, S::Error> {
    s.serialize_str(kind.name())
}

fn mode_name<S: serde::Serializer>(mode: &LoadMode, s: S) -> std::result::Result<S::Ok, S::Error> {
    s.serialize_str(mode.name())
}

fn n_tokens<S: serde::Serializer>(tokens: &Option<ImageTokens>, s: S) -> std::result::Result<S::Ok, S::Error> {
    tokens.map(|tokens| tokens.n.get()).serialize(s)
}

/// What the planner knows of a model.
pub struct Planner {
    text: Box<dyn TextModel>,
    vision: Option<Box<dyn VisionModel>>,
    name: String,
    n_params: u64,
    text_weights: Weights,
    vision_weights: Weights,
    /// Bytes of each layer's matrices.
    layers: Vec<u64>,
    /// Bytes of the matrix behind them, which makes logits.
    output: u64,
    /// Tokens of the vocabulary and rules of merging.
    n_tokens: u64,
    /// Metadata: mapped when they are read.
    heads: u64,
}

/// Tensors by what becomes of them.
#[derive(Default)]
struct Weights {
    /// Matrices: stored type, rows, columns, bytes.
    matrices: Vec<(Dtype, usize, usize, u64)>,
    /// Tables, of which rows are looked up: bytes, and bytes of a row.
    tables: Vec<(u64, u64)>,
    /// Elements and stored bytes of what becomes floats.
    vectors: (u64, u64),
}

impl Weights {
    fn of(gguf: &Gguf, part: Part) -> Result<Weights> {
        let used = architectures::tensors(gguf, part)?;
        let matrices: HashSet<&str> = used.matrices.iter().map(String::as_str).collect();
        let tables: HashSet<&str> = used.tables.iter().map(String::as_str).collect();
        let mut weights = Weights::default();
        let mut seen = HashSet::new();
        for name in used.matrices.iter().chain(&used.tables).chain(&used.vectors) {
            let Some(t) = gguf.tensor(name).filter(|_| seen.insert(name)) else { continue };
            let n_bytes = t.n_bytes as u64;
            let (n_rows, n_cols) = matrix(t);
            if matrices.contains(name.as_str()) {
                weights.matrices.push((t.dtype, n_rows, n_cols, n_bytes));
            } else if tables.contains(name.as_str()) {
                weights.tables.push((n_bytes, n_bytes / n_rows.max(1) as u64));
            } else {
                weights.vectors.0 += t.n_elements() as u64;
                weights.vectors.1 += n_bytes;
            }
        }
        Ok(weights)
    }

    /// Bytes that are made of the matrices that `made` takes (their new size), and of those that it leaves mapped. Of the former
    /// an end stays mapped, which comes back with the matrix behind it.
    fn split(&self, made: impl Fn(Dtype, usize, usize, u64) -> Option<u64>) -> (u64, u64) {
        let (mut new, mut mapped) = (4 * self.vectors.0, self.vectors.1);
        for (dtype, n_rows, n_cols, n_bytes) in &self.matrices {
            match made(*dtype, *n_rows, *n_cols, *n_bytes) {
                Some(n) => (new, mapped) = (new + n, mapped + n_bytes.min(&(FAULT / 2))),
                None => mapped += n_bytes,
            }
        }
        (new, mapped)
    }

    /// Bytes of tables that `n` lookups bring into memory: windows of [`FAULT`] bytes, some of them hit twice.
    fn looked_up(&self, n: usize) -> u64 {
        let touched = |(n_bytes, row): &(u64, u64)| {
            let windows = (*n_bytes as f64 / FAULT as f64).max(1.0);
            let hit = windows * (1.0 - (1.0 - 1.0 / windows).powf(n as f64 * (1.0 + *row as f64 / FAULT as f64)));
            ((hit * FAULT as f64) as u64).min(*n_bytes)
        };
        self.tables.iter().map(touched).sum()
    }
}

/// Rows and columns of a tensor as a matrix of its outermost dimension.
fn matrix(t: &TensorInfo) -> (usize, usize) {
    match t.shape.as_slice() {
        [rows, cols @ ..] => (*rows, cols.iter().product()),
        [] => (1, 1),
    }
}

/// The layer that a tensor belongs to: `blk.7.attn_q.weight` to 7.
fn layer(name: &str) -> Option<usize> {
    name.strip_prefix("blk.")?.split('.').next()?.parse().ok()
}

impl Planner {
    /// Reads what is needed of the files: metadata, and the shapes of tensors; no weights but norms and the like.
    ///
    /// # Errors
    /// Files that mmq does not run.
    pub fn new(text: &Gguf, mmproj: Option<&Gguf>) -> Result<Planner> {
        let vision_file = mmproj.or_else(|| text.tensor("v.patch_embd.weight").is_some().then_some(text));
        let vision = vision_file.map(|gguf| architectures::load_vision(Loader::stored(gguf))).transpose()?;
        let mut layers = Vec::new();
        for t in text.tensors() {
            if let Some(il) = layer(&t.name).filter(|il| *il < text.tensors().len()) {
                layers.resize(layers.len().max(il + 1), 0);
                layers[il] += t.n_bytes as u64;
            }
        }
        let output = text.tensor("output.weight").or(text.tensor("token_embd.weight")).map_or(0, |t| t.n_bytes as u64);
        let meta = text.metadata();
        let n_strings = |key: &str| meta.strings(key).ok().flatten().map_or(0, |s| s.len() as u64);
        let n_tokens = n_strings("tokenizer.ggml.tokens") + n_strings("tokenizer.ggml.merges");
        let head = |gguf: &Gguf| gguf.file_bytes().saturating_sub(gguf.n_bytes());
        Ok(Planner {
            text: architectures::load_text(Loader::stored(text))?,
            vision,
            name: text.name().to_owned(),
            n_params: text.n_params(),
            text_weights: Weights::of(text, Part::Text)?,
            vision_weights: vision_file.map(|gguf| Weights::of(gguf, Part::Vision)).transpose()?.unwrap_or_default(),
            layers,
            output,
            n_tokens,
            heads: head(text) + mmproj.map_or(0, head),
        })
    }

    /// What the run takes that is wished for; with a budget, what has to give so that it fits.
    ///
    /// # Errors
    /// `Memory`, in a sentence that says what would fit, if nothing that may give is enough; `Usage`, if repacked weights are to
    /// stream.
    pub fn plan(&self, wish: &Wish) -> Result<Plan> {
        if wish.low_memory && wish.load_mode == Some(LoadMode::Repack) {
            bail!(Usage, "low-memory streams weights from the file: it goes with load-mode mmap alone");
        }
        let first = self.with(wish, wish, false)?;
        let Some(budget) = wish.budget.filter(|budget| *budget < first.peak) else { return Ok(first) };
        let mut least = first;
        for choice in self.choices(wish) {
            let plan = self.with(&choice, wish, true)?;
            if plan.peak <= budget {
                return Ok(plan);
            }
            if plan.peak < least.peak {
                least = plan;
            }
        }
        bail!(Memory, "{}", self.refusal(&least, budget))
    }

    /// What may give, in order: what costs least quality comes first.
    fn choices(&self, wish: &Wish) -> Vec<Wish> {
        let mut choices = Vec::new();
        let mut now = Wish {
            n_ctx: Some(wish.n_ctx.unwrap_or(self.text.n_ctx_train())),
            n_ubatch: Some(wish.n_ubatch.unwrap_or(512)),
            ..wish.clone()
        };
        let n_image = self.vision.as_ref().map_or(0, |v| v.max_rows(wish.image_tokens) * wish.n_images.max(1));
        // Room for the pictures and as much text.
        let shortest = (2 * n_image).max(SMALLEST_CONTEXT);
        let smaller = |now: &mut Wish, n_ctx: usize| {
            if wish.n_ctx.is_none() {
                now.n_ctx = Some(now.n_ctx.unwrap_or(n_ctx).min(n_ctx));
            }
        };
        choices.push(now.clone());
        for n_ctx in [32768, 16384, 8192, 4096] {
            smaller(&mut now, n_ctx.max(shortest));
            choices.push(now.clone());
        }
        let batch = |now: &mut Wish, n: usize| {
            if wish.n_ubatch.is_none() {
                now.n_ubatch = Some(n);
            }
        };
        let types = |now: &mut Wish, kind: KvType| {
            let fits = self.text.new_cache(1, KvTypes { k: kind, v: kind }).is_ok();
            now.type_k = wish.type_k.or(fits.then_some(kind)).or(now.type_k);
            now.type_v = wish.type_v.or(fits.then_some(kind)).or(now.type_v);
        };
        batch(&mut now, 256);
        choices.push(now.clone());
        types(&mut now, KvType::Q8_0);
        choices.push(now.clone());
        for n_ctx in [2048, 1024] {
            smaller(&mut now, n_ctx.max(shortest));
            choices.push(now.clone());
        }
        batch(&mut now, 64);
        choices.push(now.clone());
        types(&mut now, KvType::Q4_0);
        choices.push(now.clone());
        smaller(&mut now, shortest);
        choices.push(now.clone());
        // Layers stream before pictures lose detail.
        if wish.load_mode != Some(LoadMode::Repack) {
            now.low_memory = true;
            choices.push(now.clone());
        }
        if let (Some(vision), None) = (&self.vision, wish.image_tokens) {
            let all = vision.max_rows(None);
            for n in [all / 2, all / 4] {
                let fewer = NonZeroUsize::new(n).map(|n| ImageTokens { n, by: Reduction::default() });
                // There are models whose pictures always take as many.
                let Some(fewer) = fewer.filter(|fewer| vision.max_rows(Some(*fewer)) <= n) else { continue };
                now.image_tokens = Some(fewer);
                smaller(&mut now, (2 * n * wish.n_images.max(1)).max(SMALLEST_CONTEXT));
                choices.push(now.clone());
            }
        }
        batch(&mut now, 32);
        choices.push(now.clone());
        choices
    }

    /// The plan of one choice.
    fn with(&self, choice: &Wish, wish: &Wish, tight: bool) -> Result<Plan> {
        let n_ctx = choice.n_ctx.filter(|n| *n > 0).unwrap_or(self.text.n_ctx_train());
        let n_ubatch = choice.n_ubatch.unwrap_or(512);
        let types = KvTypes { k: choice.type_k.unwrap_or_default(), v: choice.type_v.unwrap_or_default() };
        let repack = choice.load_mode == Some(LoadMode::Repack);
        let has_vision = self.vision.is_some() && wish.n_images > 0;
        let release_vision = has_vision && (tight || wish.low_memory);

        let mut parts = Parts { base: BASE, tokenizer: self.n_tokens * TOKEN + self.heads, ..Parts::default() };
        (parts.text_made, parts.text_mapped) =
            self.text_weights.split(|_, n_rows, _, n_bytes| (repack && n_rows >= 16).then_some(n_bytes));
        let n_rows =
            self.vision.as_ref().filter(|_| has_vision).map_or(0, |v| v.max_rows(choice.image_tokens) * wish.n_images);
        // Of the tokens of a text, every second has come before.
        parts.text_mapped += self.text_weights.looked_up(n_ctx.saturating_sub(n_rows) / 2);
        if has_vision {
            (parts.vision_made, parts.vision_mapped) = self.vision_weights.split(|dtype, n_rows, n_cols, n_bytes| {
                let rounded = choice.vision_precision.rounds(dtype, n_cols);
                let bytes = Dtype::Q8_0.row_bytes(n_cols).filter(|_| rounded).map(|n| (n * n_rows) as u64);
                bytes.or((repack && n_rows >= 16).then_some(n_bytes))
            });
        }
        let cache = self.text.new_cache(n_ctx, types)?;
        let Some(kv) = cache.n_bytes(n_ctx) else { bail!(Memory, "a context of {n_ctx} tokens fits no memory") };
        parts.kv = kv as u64;
        let n_embd = self.text.n_embd();
        if let Some(vision) = self.vision.as_ref().filter(|_| has_vision) {
            parts.image_rows = (4 * n_rows * n_embd) as u64;
            // Decoded, and once more while it is turned or made opaque.
            let (width, height) = wish.image_size;
            parts.encode_scratch = vision.scratch() as u64 + 2 * (3 * width * height) as u64;
        }
        let longest = n_ubatch.min(n_ctx);
        let logits = 4 * self.text.n_vocab();
        parts.prefill_scratch = (self.text.scratch(longest) + logits) as u64;
        parts.decode_scratch = (self.text.scratch(1) + 4 * logits) as u64;

        let mut plan = Plan {
            n_ctx,
            n_ubatch,
            type_k: types.k,
            type_v: types.v,
            load_mode: if repack { LoadMode::Repack } else { LoadMode::Mmap },
            image_tokens: choice.image_tokens,
            release_vision,
            resident_layers: None,
            parts,
            phases: Vec::new(),
            peak: 0,
        };
        if choice.low_memory && !repack {
            self.stream(&mut plan, wish.budget);
        }
        plan.phases = phases(&plan.parts, release_vision, self.loading(repack, has_vision));
        plan.peak = plan.phases.iter().map(|phase| phase.n_bytes).max().unwrap_or(0);
        Ok(plan)
    }

    /// What loading takes besides what stays.
    fn loading(&self, repack: bool, has_vision: bool) -> u64 {
        let largest = |weights: &Weights| weights.matrices.iter().map(|(.., n_bytes)| *n_bytes).max().unwrap_or(0);
        let text = if repack { largest(&self.text_weights) } else { 0 };
        let vision = if has_vision { largest(&self.vision_weights) } else { 0 };
        self.n_tokens * TOKEN_LOADING + text.max(vision).min(WINDOW)
    }

    /// Lets as many layers stream as must, and the matrix behind them. One of these is in memory then, that at work: what is
    /// read ahead is the system's until it is touched.
    fn stream(&self, plan: &mut Plan, budget: Option<u64>) {
        let all = self.layers.iter().sum::<u64>() + self.output;
        let at_work = self.layers.iter().copied().max().unwrap_or(0).max(self.output) + FAULT;
        let rest = phases(
            &Parts { text_mapped: plan.parts.text_mapped.saturating_sub(all), ..plan.parts },
            plan.release_vision,
            0,
        );
        let rest = rest.iter().map(|phase| phase.n_bytes).max().unwrap_or(0);
        let room = budget.map_or(0, |budget| budget.saturating_sub(rest + at_work));
        let mut kept = 0;
        let mut n_kept = 0;
        for layer in &self.layers {
            if kept + layer > room {
                break;
            }
            kept += layer;
            n_kept += 1;
        }
        if n_kept < self.layers.len() {
            plan.resident_layers = Some(n_kept);
            plan.parts.text_mapped = plan.parts.text_mapped.saturating_sub(all) + kept + at_work;
        }
    }

    /// Why nothing fits, and what would.
    fn refusal(&self, least: &Plan, budget: u64) -> String {
        let Plan { n_ctx, n_ubatch, type_k, type_v, parts, .. } = least;
        let weights = parts.text_mapped + parts.text_made;
        let rest = least.peak - weights.min(least.peak);
        let mut text = format!(
            "{}: does not fit {}: the least that it runs in is {}, with a context of {n_ctx}, {} keys, {} values and batches \
             of {n_ubatch}",
            self.name,
            size(budget),
            size(least.peak),
            type_k.name(),
            type_v.name(),
        );
        if let Some(tokens) = least.image_tokens {
            text += &format!(", {} tokens a picture", tokens.n);
        }
        if let Some(n) = least.resident_layers {
            text += &format!(", all but {n} of {} layers streaming", self.layers.len());
        }
        let left = budget.saturating_sub(rest);
        let bits = 8.0 * left as f64 / self.n_params.max(1) as f64;
        if least.resident_layers.is_none() && bits >= 1.6 {
            text +=
                &format!("; weights of at most {bits:.1} bits would fit (mmq quantize --target-size {})", size(left));
        } else {
            text += &format!("; a budget of {} would do", size(least.peak));
        }
        text
    }
}

/// Most bytes in each phase; `loading` is what the first takes besides what stays.
fn phases(p: &Parts, release_vision: bool, loading: u64) -> Vec<Phase> {
    let base = p.base + p.tokenizer;
    let loaded = base + p.text_made + p.vision_made;
    let mut phases = vec![Phase { name: "load", n_bytes: loaded + loading }];
    let mut vision = 0;
    if p.image_rows > 0 {
        phases.push(Phase { name: "encode", n_bytes: loaded + p.vision_mapped + p.image_rows + p.encode_scratch });
        vision = if release_vision { 0 } else { p.vision_made + p.vision_mapped };
    }
    let run = base + p.text_made + vision + p.text_mapped + p.kv + p.image_rows;
    phases.push(Phase { name: "prefill", n_bytes: run + p.prefill_scratch });
    phases.push(Phase { name: "decode", n_bytes: run + p.decode_scratch });
    phases
}

/// Bytes for people, as [`parse_size`] reads them: `1.50G`.
pub fn size(n: u64) -> String {
    match n {
        0..1_000_000_000 => format!("{:.0}M", n as f64 / 1e6),
        _ => format!("{:.2}G", n as f64 / 1e9),
    }
}

/// A number of bytes with a unit: K, M, G are powers of 1000, KiB, MiB, GiB of 1024.
///
/// # Errors
/// `Usage`: anything else.
pub fn parse_size(text: &str) -> Result<u64> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let unit = unit.to_ascii_lowercase();
    let factor = match unit.strip_suffix('b').unwrap_or(&unit) {
        "" => 1.0,
        "k" => 1e3,
        "m" => 1e6,
        "g" => 1e9,
        "ki" => 1024.0,
        "mi" => 1024.0 * 1024.0,
        "gi" => 1024.0 * 1024.0 * 1024.0,
        _ => f64::NAN,
    };
    match number.parse::<f64>().map(|number| number * factor) {
        Ok(bytes) if (1.0..1e18).contains(&bytes) => Ok(bytes as u64),
        _ => bail!(Usage, "expected a size such as 1.5G, 800M or 1.4GiB, got {text:?}"),
    }
}

/// Width and height of a picture: `1024x768`.
///
/// # Errors
/// `Usage`: anything else.
pub fn parse_pixels(text: &str) -> Result<(usize, usize)> {
    let side = |text: &str| text.parse().ok().filter(|n| (1..=1 << 16).contains(n));
    match text.split_once('x').map(|(width, height)| (side(width), side(height))) {
        Some((Some(width), Some(height))) => Ok((width, height)),
        _ => bail!(Usage, "expected 1024x768 or the like, got {text:?}"),
    }
}
