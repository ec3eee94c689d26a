//! From a model and a request to the files that shall be: every tensor's new name and type, and the metadata.

use super::mix::{Mix, Model, block, fitting, is_encoder, may_quantize, needs_importance};
use super::{FileType, Importance};
use crate::gguf::{DEFAULT_ALIGNMENT, Gguf, Metadata, SPLIT_KEYS, TensorInfo, Value, Writer};
use crate::{Dtype, Error, ErrorKind, Result, bail};
use fancy_regex::Regex;

/// The version of the quantized formats, `general.quantization_version`: `GGML_QNT_VERSION` of ggml.h.
const QUANTIZATION_VERSION: u32 = 2;

/// What is wanted of the tensors that nobody names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goal {
    /// Every tensor as it is.
    Copy,
    /// A file of this type.
    Type(FileType),
    /// Types that are chosen later, by their errors: [`Plan::choose`].
    Budget,
}

/// A type for the tensors whose names match.
#[derive(Clone, Debug)]
pub struct Rule {
    pattern: Regex,
    dtype: Dtype,
}

impl Rule {
    /// A rule from `REGEX=TYPE`. The expression is in lower case and may match anywhere in a name.
    ///
    /// # Errors
    /// `Usage` for anything else.
    pub fn parse(text: &str) -> Result<Rule> {
        let Some((pattern, dtype)) = text.split_once('=') else {
            bail!(Usage, "{text:?}: expected NAME=TYPE, such as attn_v=q8_0");
        };
        if pattern.is_empty() {
            bail!(Usage, "{text:?}: the name before = is missing");
        }
        let dtype = parse_dtype(dtype).map_err(|e| e.context(format!("{text:?}")))?;
        match Regex::new(&pattern.to_lowercase()) {
            Ok(pattern) => Ok(Rule { pattern, dtype }),
            Err(e) => bail!(Usage, "{text:?}: {pattern:?} is no regular expression: {e}"),
        }
    }

    fn matches(&self, name: &str) -> Result<bool> {
        self.pattern.is_match(name).map_err(|e| {
            Error::new(ErrorKind::Usage, format!("expression {:?} on {name:?}: {e}", self.pattern.as_str()))
        })
    }
}

/// The type of weights that `text` names, in any case.
///
/// # Errors
/// `Usage` if it names none.
pub fn parse_dtype(text: &str) -> Result<Dtype> {
    use Dtype::*;
    let of_weights = |d: &Dtype| !matches!(d, I8 | I16 | I32 | I64 | F64 | Q8_1 | Q8_K);
    let mut known = Dtype::ALL.into_iter().filter(of_weights);
    match known.clone().find(|d| d.name().eq_ignore_ascii_case(text)) {
        Some(dtype) => Ok(dtype),
        None => {
            let names = known.by_ref().map(|d| d.name().to_lowercase()).collect::<Vec<_>>();
            bail!(Usage, "{text:?} is no type of weights; known: {}", names.join(", "))
        }
    }
}

/// A key and its new value, from `KEY=TYPE:VALUE` with types int, float, bool and str.
///
/// # Errors
/// `Usage` for anything else.
pub fn parse_override(text: &str) -> Result<(String, Value)> {
    let expected = "expected KEY=TYPE:VALUE with a type of int, float, bool or str";
    let Some((key, (kind, value))) = text
        .split_once('=')
        .and_then(|(key, rest)| Some((key, rest.split_once(':')?)))
        .filter(|(key, _)| !key.is_empty())
    else {
        bail!(Usage, "{text:?}: {expected}");
    };
    let wrong = || Error::new(ErrorKind::Usage, format!("{text:?}: {value:?} is no {kind}"));
    let value = match kind {
        // The narrowest that holds it, as llama.cpp reads counts as u32.
        "int" => match value.parse::<i64>().map_err(|_| wrong())? {
            v if u32::try_from(v).is_ok() => Value::U32(v as u32),
            v if i32::try_from(v).is_ok() => Value::I32(v as i32),
            v => Value::I64(v),
        },
        "float" => Value::F32(value.parse::<f32>().map_err(|_| wrong())?),
        "bool" => Value::Bool(value.parse().map_err(|_| wrong())?),
        "str" => Value::from(value),
        _ => bail!(Usage, "{text:?}: {expected}"),
    };
    Ok((key.to_owned(), value))
}

/// What is asked for.
#[derive(Debug)]
pub struct Request {
    /// For the tensors that nobody names.
    pub goal: Goal,
    /// All matrices the same: no mix.
    pub pure: bool,
    /// Leaves `output.weight` as it is.
    pub leave_output: bool,
    /// For `output.weight`, or the table of tokens where that makes the logits.
    pub output_type: Option<Dtype>,
    /// For the table of tokens.
    pub embedding_type: Option<Dtype>,
    /// For tensors by name; the first that matches holds.
    pub rules: Vec<Rule>,
    /// Metadata that shall be otherwise.
    pub overrides: Vec<(String, Value)>,
    /// Layers to leave out, from 0.
    pub prune: Vec<usize>,
    /// As many files as the source has.
    pub keep_split: bool,
    /// Lets tensors that are quantized already be quantized again.
    pub allow_requantize: bool,
    /// What the columns of the matrices matter.
    pub importance: Option<Importance>,
}

impl Request {
    /// A request for a goal and nothing else.
    pub fn new(goal: Goal) -> Request {
        Request {
            goal,
            pure: false,
            leave_output: false,
            output_type: None,
            embedding_type: None,
            rules: Vec::new(),
            overrides: Vec::new(),
            prune: Vec::new(),
            keep_split: false,
            allow_requantize: false,
            importance: None,
        }
    }
}

/// One tensor of the new file.
#[derive(Clone, Debug)]
pub struct Planned {
    /// Its name in the source.
    pub source: String,
    /// Its name.
    pub name: String,
    /// Its shape, outermost first.
    pub shape: Vec<usize>,
    /// Its type in the source.
    pub from: Dtype,
    /// Its type.
    pub to: Dtype,
    /// The type that it was to have, if rows of its length cannot hold that.
    pub fell_back: Option<Dtype>,
    /// Whether there is importance for it.
    pub has_importance: bool,
    /// With [`Goal::Budget`]: whether its type is still to be chosen.
    pub free: bool,
    /// Which of the new files it is in.
    file: usize,
}

impl Planned {
    /// Length of a row.
    pub fn n_cols(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// Number of weights.
    pub fn n_elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Its size in the source, in bytes.
    pub fn bytes_before(&self) -> usize {
        self.bytes_as(self.from)
    }

    /// Its size, in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes_as(self.to)
    }

    /// Its size if it were `dtype`, whose blocks its rows can hold.
    pub fn bytes_as(&self, dtype: Dtype) -> usize {
        let row = dtype.row_bytes(self.n_cols()).expect("rows are whole blocks of any type that is planned");
        self.n_elements() / self.n_cols() * row
    }

    /// Whether its weights are written anew.
    pub fn converts(&self) -> bool {
        self.from != self.to
    }
}

/// The files that shall be.
#[derive(Debug)]
pub struct Plan {
    /// Their tensors in the order in which they are written.
    pub tensors: Vec<Planned>,
    /// Number of files.
    pub n_files: usize,
    model: Model,
    goal: Goal,
    /// Metadata of the first file.
    metadata: Vec<(String, Value)>,
    allow_requantize: bool,
    has_importance: bool,
    name: String,
}

impl Plan {
    /// What becomes of `gguf`.
    ///
    /// # Errors
    /// `Usage` for a packed file, layers that are not there, expressions that run away; `Format` for metadata of wrong types.
    pub fn new(gguf: &Gguf, request: &Request) -> Result<Plan> {
        let name = gguf.name();
        if gguf.packed().is_some() {
            bail!(
                Usage,
                "{name}: its weights lie as mmq's kernels read them; turn it back first: mmq pack --unpack {name} -o FILE"
            );
        }
        let (model, metadata) = metadata(gguf, request)?;
        let mut tensors = names(gguf, &model, request)?;
        let mut files: Vec<usize> = tensors.iter().map(|(info, _)| info.shard()).collect();
        if request.keep_split {
            tensors.sort_by_key(|(info, _)| (info.shard(), info.offset()));
            files.sort_unstable();
            files.dedup();
        } else {
            tensors.sort_by(|(_, a), (_, b)| (layer(a), a).cmp(&(layer(b), b)));
            files.truncate(1);
        }
        let mut plan = Plan {
            tensors: Vec::with_capacity(tensors.len()),
            n_files: files.len().max(1),
            goal: request.goal,
            metadata,
            allow_requantize: request.allow_requantize,
            has_importance: request.importance.is_some(),
            name: name.to_owned(),
            model: model.clone(),
        };
        let wanted = match request.goal {
            Goal::Type(wanted) => Some(wanted),
            Goal::Copy | Goal::Budget => None,
        };
        let names = tensors.iter().map(|(_, name)| name.as_str());
        let mut mix = wanted.map(|wanted| {
            let (output, embedding) = (request.output_type, request.embedding_type);
            Mix::new(&model, wanted, request.importance.is_some(), output, embedding, names)
        });
        for (info, name) in &tensors {
            let asked = ask(info, name, request, mix.as_mut()).map_err(|e| e.context(gguf.name()))?;
            let to = asked.map_or(info.dtype, |asked| fitting(asked, info.shape.last().copied().unwrap_or(1)));
            plan.tensors.push(Planned {
                source: info.name.clone(),
                name: name.clone(),
                shape: info.shape.clone(),
                from: info.dtype,
                to,
                fell_back: asked.filter(|asked| *asked != to),
                has_importance: request.importance.as_ref().is_some_and(|known| known.get(&info.name).is_some()),
                free: request.goal == Goal::Budget
                    && asked.is_none()
                    && may_quantize(name, &info.shape)
                    && !(request.leave_output && name == "output.weight"),
                file: files.binary_search(&info.shard()).unwrap_or(0),
            });
        }
        Ok(plan)
    }

    /// What the mixes know of the model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Gives tensor `i`, which is free, the type `dtype`, which its rows can hold.
    pub fn choose(&mut self, i: usize, dtype: Dtype) {
        self.tensors[i].to = dtype;
    }

    /// Size of all tensors, in bytes.
    pub fn n_bytes(&self) -> u64 {
        self.tensors.iter().map(|t| t.bytes() as u64).sum()
    }

    /// Size of all tensors in the source, in bytes.
    pub fn n_bytes_before(&self) -> u64 {
        self.tensors.iter().map(|t| t.bytes_before() as u64).sum()
    }

    /// Size of all files, in bytes.
    ///
    /// # Errors
    /// As [`Plan::writers`].
    pub fn file_bytes(&self) -> Result<u64> {
        self.writers()?.iter().map(|writer| writer.file_bytes(&self.name)).sum()
    }

    /// What tensors' places in the files are multiples of, in bytes.
    pub fn alignment(&self) -> u64 {
        let value = self.metadata.iter().find(|(key, _)| key == "general.alignment").map(|(_, value)| value);
        value.and_then(Value::as_u64).unwrap_or(DEFAULT_ALIGNMENT as u64)
    }

    /// Whether there is importance for some of its tensors.
    pub fn has_importance(&self) -> bool {
        self.has_importance
    }

    /// Whether tensors that are quantized already may be quantized again.
    pub fn requantizes(&self) -> bool {
        self.allow_requantize
    }

    /// Number of weights.
    pub fn n_params(&self) -> u64 {
        self.tensors.iter().map(|t| t.n_elements() as u64).sum()
    }

    /// Why it cannot be carried out; `None` if it can.
    pub fn obstacle(&self) -> Option<Error> {
        let wanted = if let Goal::Type(wanted) = self.goal { Some(wanted) } else { None };
        let error = |kind, t: &Planned, why: String| {
            Some(Error::new(kind, format!("{}: tensor {:?}, {} to {}: {why}", self.name, t.source, t.from, t.to)))
        };
        for t in self.tensors.iter().filter(|t| t.converts()) {
            if !t.from.is_runnable() {
                return error(ErrorKind::Unsupported, t, format!("{} cannot be read yet", t.from));
            }
            if !t.from.is_float() && !self.allow_requantize {
                let why =
                    "it is quantized already, and what was lost stays lost; --allow-requantize does it all the same";
                return error(ErrorKind::Usage, t, why.into());
            }
            if !t.to.is_quantizable() {
                return error(ErrorKind::Unsupported, t, format!("{} cannot be written yet", t.to));
            }
            if needs_importance(&t.name, t.to, wanted) && !t.has_importance {
                let why = if self.has_importance {
                    format!("{} needs importance, and the matrix that was given has none for it", t.to)
                } else {
                    format!("{} needs an importance matrix: make one with `mmq imatrix`, give it with --imatrix", t.to)
                };
                return error(ErrorKind::Usage, t, why);
            }
        }
        None
    }

    /// The new files, in order.
    ///
    /// # Errors
    /// `Format` for tensors that cannot be in a file.
    pub fn writers(&self) -> Result<Vec<Writer>> {
        let mut writers = vec![Writer::new(); self.n_files];
        for (key, value) in &self.metadata {
            writers[0].set(key, value.clone());
        }
        if let Some(file_type) = self.file_type() {
            // In its place before what the request adds.
            writers[0].set("general.file_type", file_type);
        }
        if self.n_files > 1 {
            let [no, count, n_tensors] = SPLIT_KEYS;
            for (i, writer) in writers.iter_mut().enumerate() {
                writer.set(no, i as u16).set(count, self.n_files as u16).set(n_tensors, self.tensors.len() as i32);
            }
        }
        for t in &self.tensors {
            writers[t.file].tensor(&t.name, t.to, &t.shape)?;
        }
        Ok(writers)
    }

    /// `general.file_type` where nobody says it: it follows from the tensors.
    fn file_type(&self) -> Option<u32> {
        if self.metadata.iter().any(|(key, value)| key == FILE_TYPE && *value != Value::U32(NOT_KNOWN)) {
            return None;
        }
        let mut sizes: Vec<(Dtype, usize)> = Vec::new();
        for t in self.tensors.iter().filter(|t| t.shape.len() > 1) {
            match sizes.iter_mut().find(|(dtype, _)| *dtype == t.to) {
                Some((_, n)) => *n += t.n_elements(),
                None => sizes.push((t.to, t.n_elements())),
            }
        }
        let most = sizes.into_iter().max_by_key(|(_, n)| *n).map_or(Dtype::F32, |(dtype, _)| dtype);
        FileType::mostly(most).map(|t| t as u32)
    }
}

const FILE_TYPE: &str = "general.file_type";
/// Stands where [`Plan::file_type`] comes.
const NOT_KNOWN: u32 = u32::MAX;

/// The layer by which llama.cpp sorts tensors; those of none come first.
fn layer(name: &str) -> Option<usize> {
    if name.starts_with("blk.") { block(name) } else { None }
}

/// What the model is, after the request's changes, and its new metadata. Keys that change move to the end, as in
/// llama-quantize's files.
fn metadata(gguf: &Gguf, request: &Request) -> Result<(Model, Vec<(String, Value)>)> {
    let mut entries: Vec<(String, Value)> =
        gguf.metadata().iter().map(|(key, value)| (key.to_owned(), value.clone())).collect();
    let mut set = |key: &str, value: Value| {
        entries.retain(|(k, _)| k != key);
        entries.push((key.to_owned(), value));
    };
    let file_type = match request.goal {
        Goal::Type(wanted) => Value::U32(wanted as u32),
        Goal::Budget => Value::U32(NOT_KNOWN),
        Goal::Copy => gguf.metadata().get(FILE_TYPE).cloned().unwrap_or(Value::U32(NOT_KNOWN)),
    };
    set("general.quantization_version", Value::U32(QUANTIZATION_VERSION));
    set(FILE_TYPE, file_type);
    for (key, value) in &request.overrides {
        set(key, value.clone());
    }
    if let Some(importance) = &request.importance {
        for (key, value) in importance.metadata() {
            set(key, value);
        }
    }
    entries.retain(|(key, _)| !SPLIT_KEYS.contains(&key.as_str()));
    let model = Model::read(&Metadata::new(gguf.name(), entries.clone())?)?;
    if !request.prune.is_empty() {
        let n_layer = model.n_layer;
        if let Some(layer) = request.prune.iter().find(|layer| **layer >= n_layer) {
            bail!(Usage, "{}: there is no layer {layer} to leave out: it has {n_layer}, counted from 0", gguf.name());
        }
        let kept = (0..n_layer).filter(|i| !request.prune.contains(i)).count();
        if kept == 0 {
            bail!(Usage, "{}: all of its {n_layer} layers are to be left out", gguf.name());
        }
        let of_model = format!("{}.", model.architecture);
        for (_, value) in entries.iter_mut().filter(|(key, _)| key.starts_with(&of_model)) {
            if let Value::Array(array) = value
                && array.len() == n_layer
            {
                array.retain(|i| !request.prune.contains(&i));
            }
        }
        let key = format!("{of_model}block_count");
        entries.retain(|(k, _)| *k != key);
        entries.push((key, Value::U32(kept as u32)));
    }
    Ok((model, entries))
}

/// The tensors that stay, with their new names.
fn names<'a>(gguf: &'a Gguf, model: &Model, request: &Request) -> Result<Vec<(&'a TensorInfo, String)>> {
    let mut kept = Vec::with_capacity(gguf.tensors().len());
    for info in gguf.tensors() {
        let name = match layer(&info.name) {
            Some(layer) if !request.prune.is_empty() => {
                if request.prune.contains(&layer) {
                    continue;
                }
                let before = request.prune.iter().filter(|pruned| **pruned < layer).count();
                let rest = info.name["blk.".len()..].trim_start_matches(|c: char| c.is_ascii_digit());
                format!("blk.{}{rest}", layer - before)
            }
            _ => info.name.clone(),
        };
        kept.push((info, name));
    }
    if kept.is_empty() {
        bail!(Usage, "{}: it has no tensors ({} layers)", gguf.name(), model.n_layer);
    }
    Ok(kept)
}

/// The type that is asked for a tensor; `None`: the one that it has.
fn ask(info: &TensorInfo, name: &str, request: &Request, mix: Option<&mut Mix>) -> Result<Option<Dtype>> {
    if request.goal == Goal::Copy || !may_quantize(name, &info.shape) || request.leave_output && name == "output.weight"
    {
        return Ok(None);
    }
    let mut rule = None;
    for candidate in &request.rules {
        if candidate.matches(name)? {
            rule = Some(candidate.dtype);
            break;
        }
    }
    let by_flag = match name {
        "output.weight" => request.output_type,
        "token_embd.weight" => request.embedding_type,
        "per_layer_token_embd.weight" if rule.is_none() => request.embedding_type,
        _ => None,
    };
    if let Some(asked) = by_flag.or(rule) {
        return Ok(Some(asked));
    }
    let Goal::Type(wanted) = request.goal else { return Ok(None) };
    let is_float = matches!(wanted, FileType::F32 | FileType::F16 | FileType::BF16);
    match mix {
        Some(mix) if !request.pure && !is_float => mix.next(name, &info.shape).map(Some),
        _ => Ok(Some(wanted.dtype())),
    }
}

/// The least type that a matrix should have if there is room: what makes logits, the ends of an encoder and the projector
/// do most harm.
pub fn floor(model: &Model, name: &str, n_encoder: usize, is_tied: bool) -> Dtype {
    let inner = block(name).is_some_and(|i| i > 0 && i + 1 < n_encoder);
    match name {
        _ if is_encoder(model, name) && !inner => Dtype::Q6_K,
        "output.weight" => Dtype::Q5_K,
        "token_embd.weight" if is_tied => Dtype::Q5_K,
        _ => Dtype::Q2_K,
    }
}
