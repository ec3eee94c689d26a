//! Hugging Face folders to GGUF: LLaMA's kin and Qwen as text models, LLaVA, MiniGPT-4 and Qwen-VL as a text model and an mmproj.
//!
//! Weights are streamed from the mapped files to the new one, some rows at a time. Everything that can be wrong with the
//! files is looked at before the first byte is written.

mod card;
mod checkpoint;
mod clip;
mod config;
mod llama;
mod minigpt4;
mod name;
mod positions;
mod qwen;
mod vocab;

use crate::gguf::{Sink, TensorInfo, Value, Writer};
use crate::quantize::FileType;
use crate::{Dtype, Error, ErrorKind, Result, bail};
use checkpoint::{Checkpoint, Element, Tensor};
use config::Json;
pub use minigpt4::MiniGpt4;
use mmq_kernels::quantize::{Search, quantize};
use mmq_kernels::team::Team;
use std::path::{Path, PathBuf};

/// Bytes of floats that are in memory at a time.
const CHUNK: usize = 16 << 20;

/// What is to be converted to what.
#[derive(Clone, Debug)]
pub struct Options<'a> {
    /// The model's folder.
    pub dir: &'a Path,
    /// The text model to be.
    pub output: &'a Path,
    /// The mmproj to be; `None`: beside `output`, with `mmproj-` in front.
    pub mmproj: Option<&'a Path>,
    /// Which of the two is wanted; `None`: what the folder holds.
    pub only: Option<Half>,
    /// A folder with the vision encoder, where `dir` has none.
    pub vision_tower: Option<&'a Path>,
    /// The folder of the language model, where `dir` holds a projector alone.
    pub base: Option<&'a Path>,
    /// The type of matrices; `None`: the 16-bit type nearest to what the checkpoint has.
    pub dtype: Option<Dtype>,
    /// `tokenizer.ggml.pre`, where it cannot be found out.
    pub pre: Option<&'a str>,
    /// `general.name`.
    pub name: Option<&'a str>,
    /// The files of MiniGPT-4, whose language model `dir` is.
    pub minigpt4: MiniGpt4<'a>,
}

/// A file that is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Half {
    /// The language model.
    Text,
    /// The vision encoder with its projector.
    Mmproj,
}

/// What was written.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct Part {
    pub half: Half,
    pub path: PathBuf,
    /// The class of Hugging Face's that it was.
    pub from: String,
    /// The type of its matrices.
    pub dtype: Dtype,
    pub n_tensors: usize,
    pub n_params: u64,
    /// Bytes of tensors.
    pub n_bytes: u64,
    /// The tokenizer or the vision encoder in a few words.
    pub words: String,
    /// What the user should know: what was left out, or could not be said in GGUF.
    pub notes: Vec<String>,
}

/// What all matrices can be converted to, and the file types that say so.
pub const FILE_TYPES: [FileType; 15] = {
    use FileType::*;
    [F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q2_K, Q3_K_S, Q4_K_S, Q5_K_S, Q6_K, IQ4_NL, IQ4_XS]
};

/// Where the values of a tensor to be come from.
#[derive(Clone, Debug)]
enum Data {
    /// A tensor; with a number of heads, rows of each head are permuted from transformers' order to GGUF's.
    Tensor {
        tensor: Tensor,
        n_head: Option<usize>,
    },
    /// Queries (0), keys (1) or values (2) of a tensor whose rows are `[n_head, 3, head_dim]`.
    Third {
        tensor: Tensor,
        n_head: usize,
        third: usize,
    },
    Values(Vec<f32>),
}

impl Data {
    /// The row of the tensor that becomes row `row` of `n`.
    fn source(&self, row: usize, n: usize) -> usize {
        match self {
            Data::Tensor { n_head: Some(n_head), .. } => permuted(row, n / n_head),
            Data::Third { n_head, third, .. } => {
                let head_dim = n / n_head;
                (row / head_dim * 3 + third) * head_dim + row % head_dim
            }
            Data::Tensor { n_head: None, .. } | Data::Values(_) => row,
        }
    }
}

/// A tensor to be.
#[derive(Clone, Debug)]
struct Planned {
    name: String,
    shape: Vec<usize>,
    data: Data,
}

/// A file to be.
struct Plan {
    part: Part,
    writer: Writer,
    tensors: Vec<Planned>,
}

/// The kinds of folders.
#[derive(Clone, Copy, PartialEq)]
enum Family {
    Text,
    /// transformers' LLaVA.
    HuggingFace {
        next: bool,
    },
    /// The authors' LLaVA.
    Original,
}

/// Converts a model; `progress` is told the fraction done, and `cancelled` asked whether to stop.
///
/// # Errors
/// Files that are missing, damaged or of a model that mmq does not convert; sizes in `config.json` that the tensors do not
/// have; `Cancelled`. Files are renamed to their names when they are complete.
pub fn convert(
    options: &Options<'_>,
    cancelled: &dyn Fn() -> bool,
    progress: &mut dyn FnMut(f32),
) -> Result<Vec<Part>> {
    let plans = plan(options)?;
    let total: u64 = plans.iter().map(|plan| plan.part.n_bytes).sum();
    let mut output = Output { team: Team::new(num_cpus::get_physical()), cancelled, progress, done: 0, total };
    for plan in &plans {
        plan.writer.write(&plan.part.path, |info, sink| {
            let planned = plan.tensors.iter().find(|t| t.name == info.name).expect("its own tensor");
            output.tensor(info, planned, sink)
        })?;
    }
    Ok(plans.into_iter().map(|plan| plan.part).collect())
}

/// Reads and checks everything but the weights themselves.
fn plan(options: &Options<'_>) -> Result<Vec<Plan>> {
    let dir = options.dir;
    if !dir.is_dir() {
        bail!(Io, "{}: expected the folder of a model", dir.display());
    }
    let json = Json::read(&dir.join("config.json"))?;
    if qwen::is(&json)? {
        return qwen::plan(options, &json);
    }
    let (family, class) = family(&json)?;
    let minigpt4 = minigpt4::Sources::find(options)?;
    if minigpt4.is_some() && (family != Family::Text || options.base.is_some() || options.vision_tower.is_some()) {
        bail!(
            Usage,
            "{}: MiniGPT-4 takes the folder of a language model alone, without --base and --vision-tower; it is {class}'s",
            dir.display()
        );
    }
    let llava = family != Family::Text;
    let sees = llava || minigpt4.is_some();
    for (flag, given) in
        [("--vision-tower", options.vision_tower), ("--base", options.base), ("--mmproj", options.mmproj)]
    {
        if given.is_some() && !sees {
            bail!(Usage, "{flag}: {}: {class} is a language model alone", dir.display());
        }
    }
    if options.only == Some(Half::Mmproj) && !sees {
        bail!(Usage, "{}: {class} is a language model alone: it has no mmproj", dir.display());
    }
    let mut checkpoint = Checkpoint::open(dir)?;
    let projector = dir.join("mm_projector.bin");
    if family == Family::Original && projector.is_file() && !has_projector(&checkpoint) {
        checkpoint.add(&projector)?;
    }
    let mut text_notes = Vec::new();
    if let Some(minigpt4) = &minigpt4 {
        minigpt4.merge(&mut checkpoint, &mut text_notes)?;
    }
    // The language model: with a projector alone, that of another folder.
    let has_text = checkpoint.find("embed_tokens.weight")?.is_some();
    let text_dir = match (has_text, options.base) {
        (true, None) => Some(dir),
        (true, Some(base)) => {
            bail!(Usage, "--base {}: {} has a language model of its own", base.display(), dir.display())
        }
        (false, base) => base,
    };
    let base = text_dir.filter(|text_dir| *text_dir != dir);
    let base_checkpoint = base.map(Checkpoint::open).transpose()?;
    let text_whole = match base {
        Some(base) => Json::read(&base.join("config.json"))?,
        None => json.clone(),
    };
    let text_json = match text_whole.section("text_config")? {
        Some(section) => section,
        None => text_whole.clone(),
    };
    let wants = |half: Half| options.only.is_none_or(|only| only == half);
    let text_checkpoint = base_checkpoint.as_ref().unwrap_or(&checkpoint);
    if text_dir.is_none() && wants(Half::Text) {
        bail!(
            Usage,
            "{}: holds a projector alone: --base DIR names the folder of its language model (or --only mmproj leaves it out)",
            dir.display()
        );
    }
    let text_config = match text_dir {
        Some(_) => Some(llama::Config::read(&text_json, &text_whole, &mut text_notes)?),
        None => None,
    };
    let mut used = Vec::new();
    let mut plans = Vec::new();
    if let (Some(config), Some(text_dir)) = (&text_config, text_dir) {
        let Some((prefix, _)) = text_checkpoint.find("embed_tokens.weight")? else {
            bail!(Format, "{}: tensor \"model.embed_tokens.weight\" is missing", text_checkpoint.name);
        };
        let tensors = config.tensors(text_checkpoint, prefix, &mut used, &mut text_notes)?;
        if wants(Half::Text) {
            let configs = if text_whole.section("text_config")?.is_some() {
                vec![&text_whole, &text_json]
            } else {
                vec![&text_whole]
            };
            let vocab = vocab::read(text_dir, &configs, config.n_vocab, options.pre, &mut text_notes)?;
            let n_params = n_params(&tensors);
            let generation = Json::read_optional(&text_dir.join("generation_config.json"))?;
            let mut keys =
                vec![("general.architecture".into(), "llama".into()), ("general.type".into(), "model".into())];
            keys.extend(if minigpt4.is_some() { minigpt4::sampling() } else { name::sampling(&generation)? });
            keys.extend(name::keys(dir, &text_whole, options.name, n_params)?);
            let dtype = options.dtype.unwrap_or_else(|| nearest(&tensors));
            keys.extend(config.keys(file_type(dtype)?));
            keys.push(("general.quantization_version".into(), 2u32.into()));
            keys.extend(vocab.keys);
            let part = part(Half::Text, options.output.to_path_buf(), &class, dtype, vocab.words);
            plans.push(finish(part, keys, tensors)?);
        }
    }
    let mut leftover = text_notes;
    if let Some(minigpt4) = minigpt4.filter(|_| wants(Half::Mmproj)) {
        let mut notes = Vec::new();
        let minigpt4::Mmproj { keys, tensors, words } =
            minigpt4.plan(text_config.as_ref().map(|config| config.n_embd), &mut notes)?;
        plans.push(mmproj_plan(options, &text_whole, "MiniGPT-4", (keys, tensors, words), notes)?);
    }
    if llava {
        let tower_checkpoint = options.vision_tower.map(Checkpoint::open).transpose()?;
        let mut notes = Vec::new();
        let mut used_tower = Vec::new();
        let n_embd_text = text_config.as_ref().map(|config| config.n_embd);
        let planned = mmproj(
            options,
            &json,
            family,
            &checkpoint,
            tower_checkpoint.as_ref(),
            n_embd_text,
            (&mut used, &mut used_tower, &mut notes),
        )?;
        used.extend(used_tower);
        if wants(Half::Mmproj) {
            plans.push(mmproj_plan(options, &json, &class, (planned.keys, planned.tensors, planned.words), notes)?);
        }
    }
    check_unused(&checkpoint, &used)?;
    if let Some(base) = &base_checkpoint {
        // Another projector of the same language model's is not wanted.
        used.extend(base.tensors.keys().filter(|name| name.contains("mm_projector.")).cloned());
        check_unused(base, &used)?;
    }
    if let Some(text) = plans.iter_mut().find(|plan| plan.part.half == Half::Text) {
        text.part.notes.append(&mut leftover);
    }
    Ok(plans)
}

/// The mmproj with `keys` and `tensors`, which is `words`, for the model of class `class` whose `config.json` is `json`.
fn mmproj_plan(
    options: &Options<'_>,
    json: &Json,
    class: &str,
    (keys, tensors, words): (Vec<(String, Value)>, Vec<Planned>, String),
    notes: Vec<String>,
) -> Result<Plan> {
    let dtype = options.dtype.unwrap_or_else(|| nearest(&tensors));
    let model = match class {
        "MiniGPT-4" => class,
        qwen::CLASS => "Qwen-VL",
        _ => "LLaVA",
    };
    let mut all: Vec<(String, Value)> = vec![
        ("general.architecture".into(), "clip".into()),
        ("general.type".into(), "mmproj".into()),
        ("general.description".into(), format!("image encoder for {model}").into()),
    ];
    all.extend(name::keys(options.dir, json, options.name, n_params(&tensors))?);
    all.extend([
        ("general.file_type".into(), file_type(dtype)?.into()),
        ("general.quantization_version".into(), 2u32.into()),
        ("clip.has_text_encoder".into(), false.into()),
        ("clip.has_vision_encoder".into(), true.into()),
        ("clip.has_llava_projector".into(), (model == "LLaVA").into()),
    ]);
    all.extend(keys);
    let path = options.mmproj.map_or_else(|| beside(options.output), Path::to_path_buf);
    if path == options.output && options.only != Some(Half::Mmproj) {
        bail!(Usage, "{}: cannot be both the text model and the mmproj", path.display());
    }
    let mut part = part(Half::Mmproj, path, class, dtype, words);
    part.notes = notes;
    finish(part, all, tensors)
}

/// Plans the mmproj of a LLaVA. The last are the names used, those of the vision encoder, and the notes.
fn mmproj(
    options: &Options<'_>,
    json: &Json,
    family: Family,
    checkpoint: &Checkpoint,
    other: Option<&Checkpoint>,
    n_embd_text: Option<usize>,
    (used, used_tower, notes): (&mut Vec<String>, &mut Vec<String>, &mut Vec<String>),
) -> Result<clip::Mmproj> {
    let hugging_face = family != Family::Original;
    let own = clip::Tower::find(checkpoint)?;
    let tower_json = match options.vision_tower {
        Some(dir) => Some(Json::read(&dir.join("config.json"))?),
        None => None,
    };
    let tower_section = match &tower_json {
        Some(json) => Some(json.section("vision_config")?.unwrap_or_else(|| json.clone())),
        None => None,
    };
    let tower = match (own, other) {
        (Some(own), Some(other)) => {
            notes.push(format!("the vision encoder is the checkpoint's own, not that of {}", other.name));
            own
        }
        (Some(own), None) => own,
        (None, Some(other)) => match clip::Tower::find(other)? {
            Some(tower) => tower,
            None => bail!(Format, "{}: tensor \"vision_model.embeddings.class_embedding\" is missing", other.name),
        },
        (None, None) => {
            let name = json.str("mm_vision_tower")?.map_or_else(String::new, |name| format!(" ({name})"));
            bail!(
                Usage,
                "{}: the vision encoder{name} is not in the checkpoint: --vision-tower DIR names its folder",
                checkpoint.name
            )
        }
    };
    let config = match (&tower_section, hugging_face) {
        (_, true) => match json.section("vision_config")? {
            Some(section) => clip::Config::read(&section)?,
            None => clip::Config::llava(),
        },
        (Some(section), false) => clip::Config::read(section)?,
        (None, false) => {
            let name = json.str("mm_vision_tower")?.unwrap_or_default();
            if !name.contains("clip-vit") {
                bail!(
                    Unsupported,
                    "{}: {name:?} is no vision encoder of OpenAI's: --vision-tower DIR names its folder, with its config.json",
                    json.at("mm_vision_tower")
                );
            }
            notes.push("the vision encoder's sizes are taken from its tensors".into());
            clip::Config::from_shapes(&tower)?
        }
    };
    if json.bool("mm_use_im_start_end")? == Some(true) {
        notes.push("the model was trained with <im_start> and <im_end> around a picture".into());
    }
    let preprocessor = preprocessor(options)?;
    let next = family == Family::HuggingFace { next: true };
    let llava =
        clip::Llava { json, hugging_face, next, preprocessor: &preprocessor, checkpoint, tower, config, n_embd_text };
    llava.plan(used, used_tower, notes)
}

/// How pictures are prepared: `preprocessor_config.json`, or its section of `processor_config.json`.
fn preprocessor(options: &Options<'_>) -> Result<Json> {
    for dir in [Some(options.dir), options.vision_tower].into_iter().flatten() {
        let json = Json::read_optional(&dir.join("preprocessor_config.json"))?;
        if json.entries().next().is_some() {
            return Ok(json);
        }
        if let Some(section) = Json::read_optional(&dir.join("processor_config.json"))?.section("image_processor")? {
            return Ok(section);
        }
    }
    Ok(Json::empty("preprocessor_config.json"))
}

/// Which kind of folder it is, and the class that `config.json` names.
fn family(json: &Json) -> Result<(Family, String)> {
    let class = match json.list("architectures")? {
        Some([class, ..]) => class.as_str().unwrap_or_default(),
        _ => "",
    };
    let kind = json.str("model_type")?.unwrap_or_default();
    let original = || json.get("mm_vision_tower").is_some() || json.get("mm_projector_type").is_some();
    let family = match class {
        "LlamaForCausalLM" | "LLaMAForCausalLM" | "MistralForCausalLM" => Some(Family::Text),
        "LlavaForConditionalGeneration" => Some(Family::HuggingFace { next: false }),
        "LlavaNextForConditionalGeneration" => Some(Family::HuggingFace { next: true }),
        "LlavaLlamaForCausalLM" | "LlavaMistralForCausalLM" => Some(Family::Original),
        "" => match kind {
            "llama" | "mistral" => Some(Family::Text),
            "llava_next" => Some(Family::HuggingFace { next: true }),
            "llava" if json.get("text_config").is_some() => Some(Family::HuggingFace { next: false }),
            "llava" | "llava_llama" | "llava_mistral" if original() => Some(Family::Original),
            _ => None,
        },
        _ => None,
    };
    // A plain language model with LLaVA's keys is LLaVA's, whatever it is called.
    let family = family.map(|family| if family == Family::Text && original() { Family::Original } else { family });
    let class = if class.is_empty() { kind } else { class };
    match family {
        Some(family) => Ok((family, class.to_string())),
        None => bail!(
            Unsupported,
            "{}: \"{class}\" is none of LlamaForCausalLM, MistralForCausalLM, LlavaLlamaForCausalLM, LlavaMistralForCausalLM, \
             LlavaForConditionalGeneration, LlavaNextForConditionalGeneration, QWenLMHeadModel",
            json.at("architectures")
        ),
    }
}

fn has_projector(checkpoint: &Checkpoint) -> bool {
    checkpoint.tensors.keys().any(|name| name.contains("mm_projector."))
}

/// Whether every tensor was used or is known to be of no use.
fn check_unused(checkpoint: &Checkpoint, used: &[String]) -> Result<()> {
    let mut used: Vec<&str> = used.iter().map(String::as_str).collect();
    used.sort_unstable();
    let of_no_use = |name: &str| {
        [".rotary_emb.inv_freq", ".position_ids", ".attention.bias", ".masked_bias"].iter().any(|s| name.ends_with(s))
            // Of the vision encoder: what lies behind the features that are used, and CLIP's other half.
            || ["vision_tower.", "vision_model.", "text_model."].iter().any(|part| name.contains(part))
            || ["visual_projection.weight", "text_projection.weight", "logit_scale"].contains(&name)
    };
    let mut unused =
        checkpoint.tensors.keys().filter(|name| used.binary_search(&name.as_str()).is_err() && !of_no_use(name));
    match unused.next() {
        None => Ok(()),
        Some(name) => bail!(
            Unsupported,
            "{}: tensor {name:?} has no place in the model that config.json describes{}",
            checkpoint.name,
            match unused.count() {
                0 => String::new(),
                n => format!(", nor have {n} others"),
            }
        ),
    }
}

/// `mmproj-` in front of the name.
fn beside(output: &Path) -> PathBuf {
    let name = output.file_name().unwrap_or_default().to_string_lossy();
    output.with_file_name(format!("mmproj-{name}"))
}

fn n_params(tensors: &[Planned]) -> u64 {
    tensors.iter().map(|t| t.shape.iter().product::<usize>() as u64).sum()
}

fn part(half: Half, path: PathBuf, class: &str, dtype: Dtype, words: String) -> Part {
    Part { half, path, from: class.into(), dtype, n_tensors: 0, n_params: 0, n_bytes: 0, words, notes: Vec::new() }
}

/// The 16-bit type of the first matrix that has one, else F16.
fn nearest(tensors: &[Planned]) -> Dtype {
    let half = |planned: &Planned| match &planned.data {
        Data::Tensor { tensor, .. } | Data::Third { tensor, .. } if tensor.shape.len() > 1 => match tensor.element {
            Element::BF16 => Some(Dtype::BF16),
            Element::F16 => Some(Dtype::F16),
            _ => None,
        },
        _ => None,
    };
    tensors.iter().find_map(half).unwrap_or(Dtype::F16)
}

fn file_type(dtype: Dtype) -> Result<u32> {
    match FILE_TYPES.into_iter().find(|file_type| file_type.dtype() == dtype) {
        Some(file_type) => Ok(file_type as u32),
        None => bail!(Unsupported, "{dtype}: checkpoints cannot be converted to this type"),
    }
}

/// The type that a tensor is stored in where matrices are `dtype`.
fn stored_as(name: &str, shape: &[usize], dtype: Dtype) -> Dtype {
    let n_cols = shape.last().copied().unwrap_or(1);
    match name {
        _ if shape.len() < 2 => Dtype::F32,
        "v.position_embd.weight" | "qf.query" => Dtype::F32,
        "resampler.query" | "resampler.pos_embed_q" | "resampler.pos_embed_k" => Dtype::F32,
        // llama.cpp's convolution takes these two.
        "v.patch_embd.weight" if dtype == Dtype::F32 || dtype == Dtype::BF16 => Dtype::F32,
        "v.patch_embd.weight" => Dtype::F16,
        _ if !n_cols.is_multiple_of(dtype.block().0) => Dtype::F16,
        _ => dtype,
    }
}

/// The file that holds `keys` and `tensors`.
fn finish(mut part: Part, keys: Vec<(String, Value)>, tensors: Vec<Planned>) -> Result<Plan> {
    let mut writer = Writer::new();
    for (key, value) in keys {
        writer.set(&key, value);
    }
    let mut rounded = Vec::new();
    for planned in &tensors {
        let dtype = stored_as(&planned.name, &planned.shape, part.dtype);
        if dtype == Dtype::F16 && part.dtype.block().0 > 1 && planned.shape.len() == 2 {
            rounded.push(planned.name.as_str());
        }
        writer.tensor(&planned.name, dtype, &planned.shape)?;
    }
    if let Some(first) = rounded.first() {
        let n = rounded.len();
        part.notes.push(format!("rows of {n} tensors ({first} …) are no whole blocks of {}: they are F16", part.dtype));
    }
    part.n_tensors = tensors.len();
    part.n_params = n_params(&tensors);
    part.n_bytes = writer.tensors().iter().map(|t| t.n_bytes as u64).sum();
    Ok(Plan { part, writer, tensors })
}

/// Row `row` of q or k in GGUF's order is this row of transformers'.
fn permuted(row: usize, head_dim: usize) -> usize {
    let (head, i) = (row / head_dim, row % head_dim);
    head * head_dim + i % 2 * (head_dim / 2) + i / 2
}

/// What turns planned tensors into bytes.
struct Output<'a> {
    team: Team,
    cancelled: &'a dyn Fn() -> bool,
    progress: &'a mut dyn FnMut(f32),
    done: u64,
    total: u64,
}

impl Output<'_> {
    /// Writes a tensor, some rows at a time.
    fn tensor(&mut self, info: &TensorInfo, planned: &Planned, sink: &mut Sink<'_, '_>) -> Result<()> {
        let tensor = match &planned.data {
            Data::Values(values) => {
                let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
                return self.put(&bytes, sink);
            }
            Data::Tensor { tensor, .. } | Data::Third { tensor, .. } => tensor,
        };
        if info.shape.len() < 2 {
            let mut values = vec![0.0; tensor.n_cols()];
            tensor.read(0, &mut values);
            let n = info.shape.first().copied().unwrap_or(1);
            let bytes: Vec<u8> = (0..n).flat_map(|i| values[planned.data.source(i, n)].to_le_bytes()).collect();
            return self.put(&bytes, sink);
        }
        // A convolution's rows here are as short as its kernel.
        let n_cols = tensor.n_cols();
        let n_rows = info.shape.iter().product::<usize>() / n_cols;
        let row_bytes = info.n_bytes / n_rows;
        // What is read can be given back where it is read in order: permuted rows are whole heads.
        let (whole, in_order) = match &planned.data {
            Data::Tensor { n_head, .. } => (n_head.map_or(1, |n_head| info.shape[0] / n_head), true),
            _ => (1, false),
        };
        let step = (CHUNK / (4 * n_cols)).max(1).next_multiple_of(whole);
        let mut buffer = Vec::new();
        for at in (0..n_rows).step_by(step) {
            let rows = at..(at + step).min(n_rows);
            let same =
                tensor.element.dtype() == Some(info.dtype) && matches!(planned.data, Data::Tensor { n_head: None, .. });
            match tensor.row_bytes(rows.clone()).filter(|_| same) {
                Some(bytes) => self.put(bytes, sink)?,
                None => {
                    buffer.resize(rows.len() * row_bytes, 0);
                    self.team.rows(&mut buffer, row_bytes, &|i, out| {
                        let mut values = vec![0.0; n_cols];
                        tensor.read(planned.data.source(at + i, n_rows), &mut values);
                        quantize(info.dtype, Search::Best, &values, n_cols, None, out);
                    });
                    self.put(&buffer, sink)?;
                }
            }
            if in_order {
                tensor.give_back(rows);
            }
        }
        Ok(())
    }

    fn put(&mut self, bytes: &[u8], sink: &mut Sink<'_, '_>) -> Result<()> {
        if (self.cancelled)() {
            return Err(Error::new(ErrorKind::Cancelled, "stopped"));
        }
        sink.put(bytes)?;
        self.done += bytes.len() as u64;
        (self.progress)(self.done as f32 / self.total.max(1) as f32);
        Ok(())
    }
}
