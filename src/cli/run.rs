//! `mmq run`: a prompt and pictures in, an answer out.

mod keep;
pub(super) mod report;
mod sampling;

use super::arguments::unescape;
use super::boxes::{self, BoxesArgs};
use super::image_tokens::ImageTokensArgs;
use super::plan::{MemoryArgs, flags};
use super::{catch_ctrl_c, n_threads, printable, printed, read_text, say};
use crate::gguf::Gguf;
use crate::media::{self, DecodeOptions, Filter};
use crate::pipelines::plan::{self, Plan, Planner, Wish};
use crate::pipelines::{
    Cancel, Conversation, Engine, EngineOptions, Finish, Generation, KvType, LoadMode, Power, Precision, Session,
    SessionOptions, find_mmproj,
};
use crate::text::template::{IMAGE_MARKER, Message, Role};
use crate::{Error, ErrorKind, Result, bail};
use report::{Progress, Report};
use std::io::{IsTerminal, StdoutLock, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// Answers a prompt about pictures; tokens stream to standard output, everything else goes to standard error.
#[derive(clap::Args)]
#[command(args_override_self = true)]
#[command(after_help = "Without -m the built-in model answers: it knows only synthetic scenes (models/README.md).
[-mm] and the like: llama.cpp's short spelling, which works too.
Its flags that change nothing here are accepted as well.
In the environment, MMQ_ARG_MODEL, MMQ_ARG_MMPROJ, MMQ_ARG_CTX_SIZE, MMQ_ARG_THREADS,
MMQ_ARG_TEMPERATURE and so on stand for flags; else LLAMA_ARG_MODEL and so on.")]
pub struct Args {
    /// Text model, a GGUF file [default: the built-in model]
    #[arg(short, long, value_name = "FILE", help_heading = "Model")]
    pub(super) model: Option<PathBuf>,

    /// Vision encoder and projector, a GGUF file [-mm] [default: mmproj*.gguf beside the model]
    #[arg(long, value_name = "FILE", help_heading = "Model")]
    mmproj: Option<PathBuf>,

    /// Leave the vision encoder out
    #[arg(long, help_heading = "Model")]
    no_mmproj: bool,

    /// Picture: a path, - for standard input, or a data: URL; may be repeated, paths also separated by commas
    #[arg(long, value_name = "FILE", help_heading = "Pictures", allow_hyphen_values = true)]
    pub(super) image: Vec<String>,

    /// Prompt; <image> or <__media__> places a picture, otherwise pictures come first
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true, help_heading = "Prompt")]
    prompt: Option<String>,

    /// File that holds the prompt; - for standard input
    #[arg(short, long, value_name = "FILE", conflicts_with = "prompt", help_heading = "Prompt")]
    file: Option<PathBuf>,

    /// System prompt [-sys]
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true, help_heading = "Prompt")]
    system_prompt: Option<String>,

    /// File that holds the system prompt [-sysf]
    #[arg(long, value_name = "FILE", conflicts_with = "system_prompt", help_heading = "Prompt")]
    system_prompt_file: Option<PathBuf>,

    /// Most tokens to generate; -1: until the model ends its turn
    #[arg(short, long = "predict", alias = "n-predict", value_name = "N", default_value_t = -1, value_parser = clap::value_parser!(i64).range(-2..=i64::from(i32::MAX)), help_heading = "Answer")]
    n_predict: i64,

    /// Most tokens in the context; 0: as many as the model was trained with
    #[arg(short, long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=i64::from(i32::MAX)), help_heading = "Memory and speed")]
    ctx_size: u32,

    /// Accepted for llama.cpp's sake: batches are as large as -ub
    #[arg(short, long, value_name = "N", default_value_t = 2048, value_parser = clap::value_parser!(u32).range(1..=i64::from(i32::MAX)), help_heading = "Memory and speed")]
    batch_size: u32,

    /// Most tokens that go through the model at once [-ub] [default: 512]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(i32::MAX)), help_heading = "Memory and speed")]
    ubatch_size: Option<u32>,

    /// Threads; -1: the physical cores worth using
    #[arg(short, long, value_name = "N", default_value_t = -1, value_parser = clap::value_parser!(i64).range(-1..=1024), help_heading = "Memory and speed")]
    threads: i64,

    /// How weights come into memory: mmap (as they lie in the file), repack (interleaved while loading, for long answers) or auto (mmap) [-lm, -rtr]
    #[arg(long, value_name = "MODE", default_value = "auto", value_parser = load_mode, help_heading = "Memory and speed")]
    load_mode: (LoadMode, bool),

    /// Type of the stored keys: f16, f32, q8_0 or q4_0 [-ctk] [default: f16]
    #[arg(long, value_name = "TYPE", value_parser = kv_type, help_heading = "Memory and speed")]
    cache_type_k: Option<KvType>,

    /// Type of the stored values: f16, f32, q8_0 or q4_0 [-ctv] [default: f16]
    #[arg(long, value_name = "TYPE", value_parser = kv_type, help_heading = "Memory and speed")]
    cache_type_v: Option<KvType>,

    #[command(flatten, next_help_heading = "Memory and speed")]
    memory: MemoryArgs,

    /// What matters more: low (few threads, which park at once and give way), balanced (they give way to other programs) or fast
    #[arg(long, value_name = "HOW", default_value = "fast", help_heading = "Memory and speed")]
    power: Power,

    /// Chat template: the name of a built-in one, or Jinja text
    #[arg(long, value_name = "NAME", help_heading = "Prompt")]
    chat_template: Option<String>,

    /// File that holds a Jinja chat template
    #[arg(long, value_name = "FILE", conflicts_with = "chat_template", help_heading = "Prompt")]
    chat_template_file: Option<PathBuf>,

    /// Take the prompt as it is, without a chat template [-no-cnv]
    #[arg(long, help_heading = "Prompt")]
    no_conversation: bool,

    /// Text that the answer has to begin with
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true, help_heading = "Answer")]
    begin_answer: Option<String>,

    /// Text that ends the answer; may be repeated
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true, help_heading = "Answer")]
    reverse_prompt: Vec<String>,

    /// Take \n, \t, \" and their like in prompts as they stand
    #[arg(long, help_heading = "Prompt")]
    no_escape: bool,

    /// How pictures are fitted, in place of the model's rule: crop, pad, squash or anyres
    #[arg(long, value_name = "RULE", help_heading = "Pictures", value_parser = ["crop", "pad", "squash", "anyres"], hide_possible_values = true)]
    image_fit: Option<String>,

    /// Filter that pictures are resized with: bicubic, bilinear, lanczos or box
    #[arg(long, value_name = "FILTER", help_heading = "Pictures")]
    image_filter: Option<Filter>,

    /// Precision of the vision encoder: f32, int8 (faster) or auto (int8 for files of float weights)
    #[arg(long, value_name = "TYPE", default_value = "auto", help_heading = "Pictures")]
    vision_precision: Precision,

    #[command(flatten, next_help_heading = "Pictures")]
    image_tokens: ImageTokensArgs,

    /// Colour under transparent pixels: white, black, grey or #rrggbb
    #[arg(long, value_name = "COLOUR", default_value = "white", value_parser = media::decode::parse_color, help_heading = "Pictures")]
    background: [u8; 3],

    #[command(flatten, next_help_heading = "Memory and speed")]
    keep: keep::KeepArgs,

    #[command(flatten, next_help_heading = "Boxes")]
    boxes: BoxesArgs,

    #[command(flatten)]
    sampling: sampling::SamplingArgs,

    /// Print one JSON object with the answer, token counts and timings
    #[arg(long, help_heading = "Output")]
    pub(super) json: bool,

    /// Print the answer alone
    #[arg(short, long, help_heading = "Output")]
    quiet: bool,

    /// Leave out the table of timings at the end
    #[arg(long, alias = "no-perf", help_heading = "Output")]
    no_show_timings: bool,
}

/// Flags that may also come from the environment: as they are called here, and in llama.cpp.
const ENVIRONMENT: &[(&str, &str, &str)] = &[
    ("model", "MMQ_ARG_MODEL", "LLAMA_ARG_MODEL"),
    ("mmproj", "MMQ_ARG_MMPROJ", "LLAMA_ARG_MMPROJ"),
    ("n_predict", "MMQ_ARG_N_PREDICT", "LLAMA_ARG_N_PREDICT"),
    ("ctx_size", "MMQ_ARG_CTX_SIZE", "LLAMA_ARG_CTX_SIZE"),
    ("batch_size", "MMQ_ARG_BATCH", "LLAMA_ARG_BATCH"),
    ("ubatch_size", "MMQ_ARG_UBATCH", "LLAMA_ARG_UBATCH"),
    ("threads", "MMQ_ARG_THREADS", "LLAMA_ARG_THREADS"),
    ("load_mode", "MMQ_ARG_LOAD_MODE", "LLAMA_ARG_LOAD_MODE"),
    ("cache_type_k", "MMQ_ARG_CACHE_TYPE_K", "LLAMA_ARG_CACHE_TYPE_K"),
    ("cache_type_v", "MMQ_ARG_CACHE_TYPE_V", "LLAMA_ARG_CACHE_TYPE_V"),
    ("temp", "MMQ_ARG_TEMPERATURE", "LLAMA_ARG_TEMPERATURE"),
    ("top_k", "MMQ_ARG_TOP_K", "LLAMA_ARG_TOP_K"),
    ("top_p", "MMQ_ARG_TOP_P", "LLAMA_ARG_TOP_P"),
    ("min_p", "MMQ_ARG_MIN_P", "LLAMA_ARG_MIN_P"),
    ("repeat_penalty", "MMQ_ARG_REPEAT_PENALTY", "LLAMA_ARG_REPEAT_PENALTY"),
    ("presence_penalty", "MMQ_ARG_PRESENCE_PENALTY", "LLAMA_ARG_PRESENCE_PENALTY"),
    ("frequency_penalty", "MMQ_ARG_FREQUENCY_PENALTY", "LLAMA_ARG_FREQUENCY_PENALTY"),
];

impl Args {
    /// What the run with these pictures is to be, for the planner.
    pub(super) fn wish(&self, sources: &[String]) -> Result<Wish> {
        let mut wish = Wish {
            n_ctx: Some(self.ctx_size as usize).filter(|n| *n > 0),
            n_ubatch: self.ubatch_size.map(|n| n.min(self.batch_size) as usize),
            type_k: self.cache_type_k,
            type_v: self.cache_type_v,
            load_mode: Some(self.load_mode.0).filter(|mode| *mode != LoadMode::Auto),
            low_memory: self.memory.low_memory,
            image_tokens: self.image_tokens.get(),
            vision_precision: self.vision_precision,
            n_images: sources.len(),
            ..Wish::new(self.memory.budget)
        };
        let mut sizes = Vec::new();
        for source in sources {
            sizes.extend(media::decode::size(source, &self.decode())?);
        }
        if let Some(largest) = sizes.into_iter().max_by_key(|(width, height)| width * height) {
            wish.image_size = largest;
        }
        Ok(wish)
    }

    /// The mmproj that goes with `model`: the one given or, if `look`, one that lies beside it, of which `found` is told.
    pub(super) fn mmproj_of(&self, model: &Path, look: bool, found: &dyn Fn(&Path)) -> Result<Option<PathBuf>> {
        match &self.mmproj {
            _ if self.no_mmproj => Ok(None),
            Some(path) => Ok(Some(path.clone())),
            None if look => Ok(find_mmproj(model)?.inspect(|path| found(path))),
            None => Ok(None),
        }
    }

    fn decode(&self) -> DecodeOptions {
        DecodeOptions { background: self.background, ..DecodeOptions::default() }
    }

    /// What the derived command lacks: variables of the environment, and negative numbers as values of every flag.
    pub fn finish(command: clap::Command) -> clap::Command {
        let given = |name: &&str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let command =
            command.mut_args(|arg| match arg.get_action().takes_values() && !arg.is_allow_hyphen_values_set() {
                true => arg.allow_negative_numbers(true),
                false => arg,
            });
        ENVIRONMENT.iter().fold(command, |command, (id, ours, theirs)| {
            // An empty variable counts as none.
            match [*ours, *theirs].iter().find(|name| given(name)) {
                Some(name) => command.mut_arg(id, |arg| arg.env(*name).hide_env(true)),
                None => command,
            }
        })
    }
}

/// The type of stored keys or values that is called `name`.
pub(super) fn kv_type(name: &str) -> Result<KvType, String> {
    if let Some(kind) = KvType::ALL.into_iter().find(|kind| kind.name() == name) {
        return Ok(kind);
    }
    match name {
        "bf16" | "q4_1" | "iq4_nl" | "q5_0" | "q5_1" => {
            Err(format!("{name} is not supported: take f16, f32, q8_0 or q4_0"))
        }
        _ => Err("expected f16, f32, q8_0 or q4_0".into()),
    }
}

/// A mode, and whether llama.cpp's name for it also asks for locked memory.
pub(super) fn load_mode(name: &str) -> Result<(LoadMode, bool), String> {
    match name {
        "none" | "dio" => Ok((LoadMode::Repack, false)),
        "mlock" => Ok((LoadMode::Repack, true)),
        "mmap+mlock" => Ok((LoadMode::Mmap, true)),
        _ => name.parse().map(|mode| (mode, false)),
    }
}

/// Runs the command.
pub fn run(args: &Args, notes: &[String]) -> Result<()> {
    let cancel = catch_ctrl_c()?;
    let progress = Progress::new(!args.quiet);
    let mut report = Report::default();
    let note = |text: &str| {
        if !args.quiet {
            say(&format!("note: {text}"));
        }
    };
    notes.iter().for_each(|text| note(text));
    if args.load_mode.1 {
        note("memory is not locked");
    }
    let sources = image_sources(&args.image)?;
    let targets = args.boxes.targets(sources.len())?;
    let begin_answer =
        args.begin_answer.as_ref().map(|text| if args.no_escape { text.clone() } else { unescape(text) });
    if args.json && targets.iter().any(|target| target.is_stdout()) {
        bail!(
            Usage,
            "--json has the boxes in it, and standard output holds one file only: leave --boxes - or --find out"
        );
    }
    let prompt_text = match args.boxes.find.is_some() && args.prompt.is_none() && args.file.is_none() {
        true => None,
        false => Some(prompt_text(args)?),
    };
    let system = system_prompt(args)?;

    let start = Instant::now();
    let files = files(args, &note)?;
    let plan = plan(args, files.as_ref(), &sources, &note)?;
    let sampler = args.sampling.params()?;
    let n_ubatch = args.ubatch_size.unwrap_or(512).min(args.batch_size) as usize;
    let options = SessionOptions {
        n_ctx: plan.as_ref().map_or(args.ctx_size as usize, |plan| plan.n_ctx),
        n_ubatch: plan.as_ref().map_or(n_ubatch, |plan| plan.n_ubatch),
        cache_type_k: plan.as_ref().map_or(args.cache_type_k.unwrap_or_default(), |plan| plan.type_k),
        cache_type_v: plan.as_ref().map_or(args.cache_type_v.unwrap_or_default(), |plan| plan.type_v),
        sampler,
        overflow: args.keep.overflow(),
    };
    let engine = Arc::new(load(args, files, plan.as_ref(), &cancel, &progress, &note)?);
    report.load = start.elapsed();
    progress.finish();
    if options.n_ctx > engine.n_ctx_train() {
        note(&format!("the model was trained with {} tokens of context, -c asks for more", engine.n_ctx_train()));
    }

    let dialect = args.boxes.dialect(&engine)?;
    let template = engine.template().name();
    let chat = !args.no_conversation && template != "plain" && !template.ends_with("_base");
    let (question, begun) = args.boxes.question(chat, dialect, prompt_text);
    let begun = begin_answer.unwrap_or(begun);

    let mut session = Session::new(&engine, &options, &cancel)?;
    args.keep.restore(&mut session, &options.sampler)?;

    let started = Instant::now();
    let decode = args.decode();
    let mut images = Vec::new();
    // Answers point at the last picture.
    let mut shown = None;
    for source in sources {
        let start = Instant::now();
        let image = media::load(&source, &decode)?;
        report.image_decode += start.elapsed();
        let start = Instant::now();
        progress.start("encoding picture");
        let mut show = |done: f32| progress.set(done);
        let encoded = engine.encode_image(&image, Some(&cancel), Some(&mut show))?;
        report.encode += start.elapsed();
        report.n_image += encoded.n_tokens();
        report.n_image_all += encoded.n_tokens_all();
        images.push(encoded);
        shown = targets.iter().any(|target| target.wants_picture()).then_some(image);
    }
    progress.finish();
    keep::notes(&engine).iter().for_each(|text| note(text));

    let user = place_images(&question, images.len())?;
    let start = Instant::now();
    progress.start("reading prompt");
    let mut show = |done: f32| progress.set(done);
    report.n_prompt = if args.no_conversation {
        session.sync(&engine.prompt(&(system.unwrap_or_default() + &user + &begun), &images)?, Some(&mut show))?
    } else {
        let mut conversation = Conversation::default();
        if let Some(content) = system {
            conversation.push(Message { role: Role::System, content }, &[])?;
        }
        conversation.push(Message { role: Role::User, content: user }, &images)?;
        if !begun.is_empty() {
            conversation.push(Message { role: Role::Assistant, content: begun.clone() }, &[])?;
        }
        session.chat(&conversation, Some(&mut show))?
    };
    drop(images);
    report.prefill = start.elapsed();
    progress.finish();
    args.keep.after_prompt(&session, report.n_prompt)?;

    let mut stop = args.reverse_prompt.clone();
    if !args.no_conversation {
        stop.extend_from_slice(engine.template().stop_strings());
    }
    let n_predict = usize::try_from(args.n_predict).ok();
    let label = args.boxes.find.clone().unwrap_or_default();
    let generation = Generation { n_predict, stop, dialect, label, begun };
    let prints = !args.json && !targets.iter().any(|target| target.is_stdout());
    let mut output = Output::new();
    let start = Instant::now();
    let mut first = None;
    let answer = session.generate(&generation, &mut |text| {
        first.get_or_insert_with(|| started.elapsed());
        if prints { output.write(text) } else { ControlFlow::Continue(()) }
    })?;
    report.generate = start.elapsed();
    args.keep.after_answer(&session)?;
    report.first_token = first;
    report.n_generated = answer.tokens.len();

    if args.json {
        let _ = output.write(&format!("{:#}", report.json(&engine, &session, &answer)));
    }
    if prints || args.json {
        let _ = output.write_raw("\n");
    }
    output.finish()?;
    boxes::write_all(&targets, &answer.regions, shown.as_ref(), &note)?;
    if answer.regions.is_empty() && !targets.is_empty() {
        note(&format!("there are no boxes in the answer: {}", answer.text.trim()));
    }
    if !args.json {
        if answer.finish == Finish::ContextFull {
            note(&format!(
                "the context of {} tokens is full; -c gives a larger one, --context-shift goes on",
                session.n_ctx()
            ));
        }
        if !args.quiet && !args.no_show_timings {
            say(&report.table());
        }
    }
    match answer.finish {
        Finish::Cancelled if cancel.is_cancelled() => Err(Error::new(ErrorKind::Cancelled, "stopped")),
        _ => Ok(()),
    }
}

/// Standard output: the answer as it comes, and what went wrong with it.
struct Output {
    stdout: StdoutLock<'static>,
    begun: bool,
    is_terminal: bool,
    error: Option<std::io::Error>,
}

impl Output {
    fn new() -> Output {
        let stdout = std::io::stdout();
        Output { is_terminal: stdout.is_terminal(), stdout: stdout.lock(), begun: false, error: None }
    }

    /// Writes a piece of the answer. A terminal is not to obey what a model says.
    fn write(&mut self, text: &str) -> ControlFlow<()> {
        // The space that SentencePiece puts in front of an answer is no part of it.
        let text = if self.begun { text } else { text.trim_start() };
        self.begun |= !text.is_empty();
        if self.is_terminal { self.write_raw(&printable(text)) } else { self.write_raw(text) }
    }

    fn write_raw(&mut self, text: &str) -> ControlFlow<()> {
        if self.error.is_none() {
            self.error = self.stdout.write_all(text.as_bytes()).and_then(|()| self.stdout.flush()).err();
        }
        if self.error.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    fn finish(self) -> Result<()> {
        printed(self.error.map_or(Ok(()), Err))
    }
}

/// The files of the text model and of its mmproj; `None`: the built-in ones.
fn files(args: &Args, note: &dyn Fn(&str)) -> Result<Option<(PathBuf, Option<PathBuf>)>> {
    let Some(model) = &args.model else {
        if let Some(mmproj) = &args.mmproj {
            bail!(Usage, "--mmproj {} needs the text model it belongs to: give one with -m", mmproj.display());
        }
        return Ok(None);
    };
    let mmproj = args.mmproj_of(model, !args.image.is_empty(), &|path| note(&format!("using {}", path.display())))?;
    Ok(Some((model.clone(), mmproj)))
}

/// What --budget and --low-memory ask for.
fn plan(
    args: &Args,
    files: Option<&(PathBuf, Option<PathBuf>)>,
    sources: &[String],
    note: &dyn Fn(&str),
) -> Result<Option<Plan>> {
    if args.memory.budget.is_none() && !args.memory.low_memory {
        return Ok(None);
    }
    let Some((model, mmproj)) = files else {
        bail!(Usage, "--budget and --low-memory are for model files: give one with -m");
    };
    let (text, mmproj) = (Gguf::open(model)?, mmproj.as_ref().map(Gguf::open).transpose()?);
    let plan = Planner::new(&text, mmproj.as_ref())?.plan(&args.wish(sources)?)?;
    note(&format!("{} at most, with {}", plan::size(plan.peak), flags(&plan)));
    Ok(Some(plan))
}

fn load(
    args: &Args,
    files: Option<(PathBuf, Option<PathBuf>)>,
    plan: Option<&Plan>,
    cancel: &Cancel,
    progress: &Progress,
    note: &dyn Fn(&str),
) -> Result<Engine> {
    let chat_template = match &args.chat_template_file {
        Some(path) => Some(read_text(path)?),
        None => args.chat_template.clone(),
    };
    let mut image_cache = args.keep.images();
    if let Some(plan) = plan {
        image_cache.n_bytes = plan.parts.image_rows as usize;
    }
    let options = EngineOptions {
        n_threads: n_threads(args.threads),
        chat_template,
        image_fit: args.image_fit.clone(),
        image_filter: args.image_filter,
        load_mode: plan.map_or(args.load_mode.0, |plan| plan.load_mode),
        vision_precision: args.vision_precision,
        image_tokens: plan.map_or(args.image_tokens.get(), |plan| plan.image_tokens),
        image_cache,
        release_vision: plan.is_some_and(|plan| plan.release_vision),
        resident_layers: plan.and_then(|plan| plan.resident_layers),
        power: args.power,
    };
    let Some((model, mmproj)) = files else {
        note("no -m given: the built-in model answers, which knows only simple synthetic scenes");
        return Engine::built_in(&options);
    };
    progress.start("loading");
    Engine::load_watched(&model, mmproj.as_deref(), &options, Some(cancel), Some(&mut |done| progress.set(done)))
}

/// The prompt of -p, of -f, or of a pipe.
fn prompt_text(args: &Args) -> Result<String> {
    let reads_image = args.image.iter().any(|source| source == "-");
    let text = match (&args.prompt, &args.file) {
        (Some(text), _) if args.no_escape => text.clone(),
        (Some(text), _) => unescape(text),
        (None, Some(path)) if reads_image && path.as_os_str() == "-" => {
            bail!(Usage, "--image - and -f -: standard input cannot be both")
        }
        (None, Some(path)) => read_text(path)?,
        (None, None) if reads_image || std::io::stdin().is_terminal() => {
            bail!(Usage, "no prompt: give one with -p TEXT, -f FILE or on standard input")
        }
        (None, None) => read_text(Path::new("-"))?,
    };
    // The end of a file's last line is no part of the prompt.
    let text = match &args.prompt {
        Some(_) => text.as_str(),
        None => text.strip_suffix('\n').map_or(text.as_str(), |text| text.strip_suffix('\r').unwrap_or(text)),
    };
    match text {
        "" => bail!(Usage, "the prompt is empty: give one with -p TEXT, -f FILE or on standard input"),
        text => Ok(text.to_owned()),
    }
}

fn system_prompt(args: &Args) -> Result<Option<String>> {
    match (&args.system_prompt, &args.system_prompt_file) {
        (Some(text), _) if args.no_escape => Ok(Some(text.clone())),
        (Some(text), _) => Ok(Some(unescape(text))),
        (None, Some(path)) => read_text(path).map(Some),
        (None, None) => Ok(None),
    }
}

/// The single sources of `--image a,b --image c`; a data: URL has a comma of its own, and so may an existing file.
pub(super) fn image_sources(given: &[String]) -> Result<Vec<String>> {
    let whole = |source: &&String| source.starts_with("data:") || !source.contains(',') || Path::new(source).exists();
    let sources: Vec<String> = given
        .iter()
        .flat_map(|source| match whole(&source) {
            true => vec![source.clone()],
            false => source.split(',').filter(|s| !s.is_empty()).map(str::to_owned).collect(),
        })
        .collect();
    if sources.iter().filter(|source| *source == "-").count() > 1 {
        bail!(Usage, "--image -: standard input holds one picture only");
    }
    if let Some(url) = sources.iter().find(|source| source.starts_with("http://") || source.starts_with("https://")) {
        bail!(Usage, "--image {url}: mmq downloads nothing: save the picture first, or pipe it into --image -");
    }
    Ok(sources)
}

/// Puts [`IMAGE_MARKER`]s for `n` pictures where the prompt asks for them, or in front.
pub(super) fn place_images(prompt: &str, n: usize) -> Result<String> {
    let placed = prompt.replace("<image>", IMAGE_MARKER);
    let n_markers = placed.matches(IMAGE_MARKER).count();
    if n_markers == 0 {
        return Ok(IMAGE_MARKER.repeat(n) + &placed);
    }
    if n_markers != n {
        let s = if n_markers == 1 { "" } else { "s" };
        let places = format!("the prompt has {n_markers} place{s} for pictures (<image>)");
        bail!(Mismatch, "{places}, but {n} given with --image");
    }
    Ok(placed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_go_where_the_prompt_says() {
        assert_eq!(place_images("What?", 2).unwrap(), "<__media__><__media__>What?");
        assert_eq!(place_images("A <image> b", 1).unwrap(), "A <__media__> b");
        let error = place_images("<image> or <__media__>", 1).unwrap_err().to_string();
        assert!(error.contains("2 places for pictures") && error.contains("but 1 given"), "{error}");
    }

    #[test]
    fn image_lists() {
        let sources = image_sources(&["a.png,b.png".into(), "data:image/png;base64,AA".into()]).unwrap();
        assert_eq!(sources, ["a.png", "b.png", "data:image/png;base64,AA"]);
        for twice in ["-,-", "https://example.com/a.png"] {
            assert_eq!(image_sources(&[twice.into()]).unwrap_err().kind(), ErrorKind::Usage);
        }
    }
}
