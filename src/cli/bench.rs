//! `mmq bench`: how fast a model reads, writes and looks on this machine, in llama-bench's flags and columns.

mod report;
mod values;

use super::image_tokens::ImageTokensArgs;
use super::run::{kv_type, load_mode, report::Progress};
use super::{catch_ctrl_c, say};
use crate::media::{self, DecodeOptions};
use crate::pipelines::{
    Cancel, Engine, EngineOptions, ImageCacheOptions, KvType, LoadMode, Precision, Session, SessionOptions, find_mmproj,
};
use crate::text::SamplerParams;
use crate::text::template::{IMAGE_MARKER, Message, Role};
use crate::{Result, bail};
use report::{Format, Measured, Printer, Setting, Test};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use values::{Numbers, Pair};

/// Measures how fast a model reads prompts, writes tokens and encodes pictures.
#[derive(clap::Args)]
#[command(args_override_self = true)]
#[command(after_help = "N: numbers separated by commas, and ranges A-B, A-B+STEP, A-B*FACTOR; flags may be repeated.
Every combination is measured. Sampling and the splitting of text into tokens are not part of it.
[-pg] and the like: llama-bench's short spelling, which works too.
Its flags that change nothing here are accepted as well.

Rows: pp512 reads 512 tokens, tg128 writes 128, pp512+tg128 both; `@ d4096` behind 4096 others;
enc encodes the picture; ttft goes from a loaded model, the picture's file and a question to the first token;
load opens the files; rss is the most memory in use so far.")]
pub struct Args {
    /// Text model, a GGUF file; several separated by commas [default: the built-in model]
    #[arg(short, long, value_name = "FILE", value_delimiter = ',')]
    model: Vec<PathBuf>,

    /// Vision encoder and projector, a GGUF file [-mm] [default with --image: mmproj*.gguf beside the model]
    #[arg(long, value_name = "FILE")]
    mmproj: Option<PathBuf>,

    /// Tokens of a prompt; 0: no such test [default: 512]
    #[arg(short = 'p', long, value_name = "N")]
    n_prompt: Vec<Numbers>,

    /// Tokens to write; 0: no such test [default: 128]
    #[arg(short, long, value_name = "N")]
    n_gen: Vec<Numbers>,

    /// A prompt of N tokens and M written behind it [-pg]; may be repeated
    #[arg(long, value_name = "N,M")]
    prompt_gen: Vec<Pair>,

    /// Tokens in the context before a test begins [default: 0]
    #[arg(short = 'd', long, value_name = "N")]
    n_depth: Vec<Numbers>,

    /// Picture for the rows enc and ttft
    #[arg(long, value_name = "FILE")]
    image: Option<String>,

    /// Question about the picture in the row ttft; empty: no such row
    #[arg(long, value_name = "TEXT", default_value = "Describe what you see in this picture in one sentence.")]
    image_prompt: String,

    /// Precision of the vision encoder: f32, int8 (faster) or auto (int8 for files of float weights)
    #[arg(long, value_name = "TYPE", default_value = "auto")]
    vision_precision: Precision,

    #[command(flatten)]
    image_tokens: ImageTokensArgs,

    /// Threads; 0: the physical cores worth using [default: 0]
    #[arg(short, long, value_name = "N")]
    threads: Vec<Numbers>,

    /// Accepted for llama.cpp's sake: batches are as large as -ub [default: 2048]
    #[arg(short, long, value_name = "N")]
    batch_size: Vec<Numbers>,

    /// Most tokens that go through the model at once [-ub] [default: 512]
    #[arg(long, value_name = "N")]
    ubatch_size: Vec<Numbers>,

    /// Type of the stored keys, as for `mmq run`; several separated by commas [-ctk]
    #[arg(long, value_name = "TYPE", default_value = "f16", value_delimiter = ',')]
    cache_type_k: Vec<String>,

    /// Type of the stored values, as for `mmq run`; several separated by commas [-ctv]
    #[arg(long, value_name = "TYPE", default_value = "f16", value_delimiter = ',')]
    cache_type_v: Vec<String>,

    /// How weights come into memory: mmap, repack or auto [-lm]
    #[arg(long, value_name = "MODE", default_value = "auto", value_parser = load_mode)]
    load_mode: (LoadMode, bool),

    /// Times that each test is repeated
    #[arg(short, long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    repetitions: u32,

    /// Measure from the first run on
    #[arg(long)]
    no_warmup: bool,

    /// What the results are written as
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value_t = Format::Md)]
    output: Format,
}

/// Runs the command.
pub fn run(args: &Args, notes: &[String]) -> Result<()> {
    notes.iter().for_each(|note| say(&format!("note: {note}")));
    let plan = Plan::new(args)?;
    let cancel = catch_ctrl_c()?;
    let mut printer = Printer::new(args.output, plan.varied());
    let measured = plan.run(args, &cancel, &mut printer);
    // What was measured before a failure is whole all the same.
    let printed = printer.finish();
    measured.and(printed)
}

/// All that is to be measured.
struct Plan {
    models: Vec<Option<PathBuf>>,
    n_threads: Vec<usize>,
    n_batch: Vec<usize>,
    n_ubatch: Vec<usize>,
    type_k: Vec<KvType>,
    type_v: Vec<KvType>,
    tests: Vec<Test>,
}

impl Plan {
    fn new(args: &Args) -> Result<Plan> {
        let n_prompt = Numbers::all(&args.n_prompt, 512);
        let n_gen = Numbers::all(&args.n_gen, 128);
        let positive = |flag: &str, numbers: Vec<usize>| match numbers.contains(&0) {
            true => bail!(Usage, "{flag} 0: expected at least 1"),
            false => Ok(numbers),
        };
        let types = |flag: &str, names: &[String]| -> Result<Vec<KvType>> {
            let named = |name: &String| match kv_type(name) {
                Ok(kv_type) => Ok(kv_type),
                Err(expected) => bail!(Usage, "{flag} {name}: {expected}"),
            };
            names.iter().map(named).collect()
        };
        let mut tests = Vec::new();
        for n_depth in Numbers::all(&args.n_depth, 0) {
            let text = |n_prompt, n_gen| Test::Text { n_prompt, n_gen, n_depth };
            tests.extend(n_prompt.iter().filter(|n| **n > 0).map(|n| text(*n, 0)));
            tests.extend(n_gen.iter().filter(|n| **n > 0).map(|n| text(0, *n)));
            tests.extend(args.prompt_gen.iter().map(|pair| text(pair.0, pair.1)));
        }
        if args.image.is_some() {
            tests.push(Test::Encode);
            tests.extend((!args.image_prompt.is_empty()).then_some(Test::FirstToken));
        }
        if tests.is_empty() {
            bail!(Usage, "nothing to measure: -p, -n and -pg are 0, and there is no --image");
        }
        let models = match args.model.as_slice() {
            [] if args.mmproj.is_some() => {
                bail!(Usage, "--mmproj needs the text model it belongs to: give one with -m")
            }
            [] => vec![None],
            models => models.iter().cloned().map(Some).collect(),
        };
        Ok(Plan {
            models,
            n_threads: Numbers::all(&args.threads, 0),
            n_batch: positive("-b", Numbers::all(&args.batch_size, 2048))?,
            n_ubatch: positive("-ub", Numbers::all(&args.ubatch_size, 512))?,
            type_k: types("-ctk", &args.cache_type_k)?,
            type_v: types("-ctv", &args.cache_type_v)?,
            tests,
        })
    }

    /// The parameters that a table has to show because they are not as always.
    fn varied(&self) -> Vec<&'static str> {
        let varied = [
            ("n_batch", self.n_batch != [2048]),
            ("n_ubatch", self.n_ubatch != [512]),
            ("type_k", self.type_k != [KvType::F16]),
            ("type_v", self.type_v != [KvType::F16]),
        ];
        varied.into_iter().filter(|(_, varied)| *varied).map(|(key, _)| key).collect()
    }

    /// Sessions to measure: each of the batch sizes with each of the types.
    fn settings(&self) -> Vec<Setting> {
        let mut settings = Vec::new();
        for &n_batch in &self.n_batch {
            for &n_ubatch in &self.n_ubatch {
                for &type_k in &self.type_k {
                    let types = self.type_v.iter();
                    settings.extend(types.map(|&type_v| Setting { n_batch, n_ubatch, type_k, type_v }));
                }
            }
        }
        settings
    }

    fn run(&self, args: &Args, cancel: &Cancel, printer: &mut Printer) -> Result<()> {
        let settings = self.settings();
        let progress = Progress::new(true);
        for model in &self.models {
            for &n_threads in &self.n_threads {
                reset_peak_rss();
                progress.message("loading");
                let start = Instant::now();
                let engine = Arc::new(load(args, model.as_deref(), n_threads)?);
                let load = start.elapsed();
                progress.finish();
                printer.begin_model(model.as_deref(), args.mmproj.as_deref(), &engine, load)?;
                for setting in &settings {
                    for test in &self.tests {
                        let bench = Bench { args, cancel, engine: &engine, setting, progress: &progress };
                        let measured = bench.measure(*test)?;
                        progress.finish();
                        printer.row(setting, *test, &measured, peak_rss())?;
                    }
                }
                printer.end_model(peak_rss())?;
            }
        }
        Ok(())
    }
}

fn load(args: &Args, model: Option<&Path>, n_threads: usize) -> Result<Engine> {
    let options = EngineOptions {
        n_threads: (n_threads > 0).then_some(n_threads),
        load_mode: args.load_mode.0,
        vision_precision: args.vision_precision,
        image_tokens: args.image_tokens.get(),
        // A picture that was kept would cost nothing.
        image_cache: ImageCacheOptions { n_bytes: 0, ..ImageCacheOptions::default() },
        ..EngineOptions::default()
    };
    let Some(model) = model else { return Engine::built_in(&options) };
    let found = match &args.mmproj {
        None if args.image.is_some() => find_mmproj(model)?,
        _ => None,
    };
    Engine::load(model, args.mmproj.as_deref().or(found.as_deref()), &options)
}

/// One loaded model in one setting.
struct Bench<'a> {
    args: &'a Args,
    cancel: &'a Cancel,
    engine: &'a Arc<Engine>,
    setting: &'a Setting,
    progress: &'a Progress,
}

impl Bench<'_> {
    fn session(&self, n_ctx: usize) -> Result<Session> {
        let options = SessionOptions {
            n_ctx,
            n_ubatch: self.setting.n_ubatch.min(self.setting.n_batch),
            cache_type_k: self.setting.type_k,
            cache_type_v: self.setting.type_v,
            sampler: SamplerParams { temp: 0.0, ..SamplerParams::default() },
            ..SessionOptions::default()
        };
        Session::new(self.engine, &options, self.cancel)
    }

    fn measure(&self, test: Test) -> Result<Measured> {
        match test {
            Test::Text { n_prompt, n_gen, n_depth } => self.text(test, n_prompt, n_gen, n_depth),
            Test::Encode => self.encode(test),
            Test::FirstToken => self.first_token(test),
        }
    }

    /// Repeats what `once` times; it is told how often it ran before.
    fn repeat(&self, test: Test, mut once: impl FnMut() -> Result<Duration>) -> Result<Vec<Duration>> {
        let n = self.args.repetitions;
        let mut times = Vec::new();
        for i in 0..n {
            self.progress.message(format!("{} {} {}/{n}", self.engine.name(), test.name(), i + 1));
            times.push(once()?);
        }
        Ok(times)
    }

    fn warm_up(&self, test: Test, once: impl FnOnce() -> Result<()>) -> Result<()> {
        if self.args.no_warmup {
            return Ok(());
        }
        self.progress.message(format!("{} {} warm-up", self.engine.name(), test.name()));
        once()
    }

    fn text(&self, test: Test, n_prompt: usize, n_gen: usize, n_depth: usize) -> Result<Measured> {
        let Some(n_ctx) = n_prompt.checked_add(n_gen).and_then(|n| n.checked_add(n_depth)) else {
            bail!(Usage, "{}: more tokens than can be counted", test.name());
        };
        let mut session = self.session(n_ctx)?;
        let mut tokens = Tokens { state: 1, n_vocab: self.engine.tokenizer().n_vocab() };
        if n_depth > 0 {
            self.progress.message(format!("{} {} filling the context", self.engine.name(), test.name()));
            session.extend(&tokens.take(n_depth))?;
        }
        let mut once = |n_gen: usize| {
            session.truncate(n_depth);
            let (prompt, answer) = (tokens.take(n_prompt), tokens.take(n_gen));
            let start = Instant::now();
            if n_prompt > 0 {
                session.extend(&prompt)?;
            }
            answer.iter().try_for_each(|token| session.extend(&[*token]))?;
            Ok(start.elapsed())
        };
        self.warm_up(test, || once(n_gen.min(1)).map(|_| ()))?;
        let times = self.repeat(test, || once(n_gen))?;
        Ok(Measured { times, n_tokens: n_prompt + n_gen, n_image: 0 })
    }

    fn picture(&self) -> Result<media::Image> {
        let Some(image) = &self.args.image else { bail!(Usage, "no picture: give one with --image") };
        media::load(image, &DecodeOptions::default())
    }

    fn encode(&self, test: Test) -> Result<Measured> {
        let image = self.picture()?;
        let mut n_image = 0;
        let mut once = || {
            let start = Instant::now();
            n_image = self.engine.encode_image(&image, Some(self.cancel), None)?.n_tokens();
            Ok(start.elapsed())
        };
        self.warm_up(test, || once().map(|_| ()))?;
        let times = self.repeat(test, once)?;
        Ok(Measured { times, n_tokens: n_image, n_image })
    }

    /// All that happens between a loaded model and its first token.
    fn first_token(&self, test: Test) -> Result<Measured> {
        let content = format!("{IMAGE_MARKER}{}", self.args.image_prompt);
        let messages = [Message { role: Role::User, content }];
        let (mut n_tokens, mut n_image) = (0, 0);
        let mut once = || {
            let start = Instant::now();
            let image = self.engine.encode_image(&self.picture()?, Some(self.cancel), None)?;
            n_image = image.n_tokens();
            let prompt = self.engine.chat_prompt(&messages, &[image])?;
            let mut session = self.session(prompt.n_tokens() + 1)?;
            n_tokens = session.sync(&prompt, None)?;
            session.next_token()?;
            Ok(start.elapsed())
        };
        self.warm_up(test, || once().map(|_| ()))?;
        let times = self.repeat(test, once)?;
        Ok(Measured { times, n_tokens, n_image })
    }
}

/// Tokens without a meaning, the same in every run of the program.
struct Tokens {
    state: u64,
    n_vocab: usize,
}

impl Tokens {
    fn take(&mut self, n: usize) -> Vec<u32> {
        let mut next = || {
            self.state = self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((self.state >> 33) % self.n_vocab.max(1) as u64) as u32
        };
        (0..n).map(|_| next()).collect()
    }
}

/// The most memory that the process has held, in bytes, where the system tells it without being asked by a C function.
fn peak_rss() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Lets [`peak_rss`] begin anew; where that is not to be had, the peak is that of all models so far.
fn reset_peak_rss() {
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}
