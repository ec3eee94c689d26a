//! `mmq quantize`: a smaller file of the same model, with llama-quantize's command line and some flags more.

mod measure;
mod report;

use super::run::report::Progress;
use super::{catch_ctrl_c, n_threads};
use crate::gguf::{Gguf, Value, shard_path};
use crate::pipelines::plan::parse_size;
use crate::pipelines::{Quantizer, Target};
use crate::quantize::{FileType, Goal, Imatrix, Importance, Plan, Request, Rule, parse_dtype, parse_override};
use crate::{Dtype, Result, bail};
use measure::Comparison;
use mmq_kernels::Search;
use report::Report;
use std::path::PathBuf;

/// Makes a model file smaller: its weights in fewer bits.
#[derive(clap::Args)]
#[command(
    override_usage = "mmq quantize [OPTIONS] IN.gguf [OUT.gguf] TYPE [THREADS]
       mmq quantize [OPTIONS] IN.gguf OUT.gguf --target-size SIZE | --target-bpw BITS",
    after_help = types_help()
)]
pub struct Args {
    /// The model or mmproj; where to write it [default: ggml-model-TYPE.gguf beside it]; a type from the list below, or its
    /// number; the number of threads
    #[arg(value_name = "IN.gguf [OUT.gguf] TYPE [THREADS]", num_args = 1..=4, required = true)]
    positional: Vec<String>,

    /// Where to write it
    #[arg(short, long, value_name = "OUT.gguf")]
    output: Option<String>,

    /// Quantize what is quantized already, too; what was lost stays lost
    #[arg(long)]
    allow_requantize: bool,

    /// Leave output.weight as it is
    #[arg(long)]
    leave_output_tensor: bool,

    /// All matrices the same type: no mix
    #[arg(long)]
    pure: bool,

    /// Importance matrix, from `mmq imatrix` or llama-imatrix: errors in columns that matter weigh more
    #[arg(long, value_name = "FILE")]
    imatrix: Option<PathBuf>,

    /// Use the importance matrix for tensors whose names contain this alone; may be repeated
    #[arg(long, value_name = "NAME", requires = "imatrix", conflicts_with = "exclude_weights")]
    include_weights: Vec<String>,

    /// Use the importance matrix for no tensor whose name contains this; may be repeated
    #[arg(long, value_name = "NAME", requires = "imatrix")]
    exclude_weights: Vec<String>,

    /// Type of output.weight
    #[arg(long, value_name = "TYPE", value_parser = parse_dtype)]
    output_tensor_type: Option<Dtype>,

    /// Type of token_embd.weight
    #[arg(long, value_name = "TYPE", value_parser = parse_dtype)]
    token_embedding_type: Option<Dtype>,

    /// Type of the tensors whose names match a regular expression; may be repeated, the first match holds
    #[arg(long, value_name = "NAME=TYPE", value_parser = Rule::parse)]
    tensor_type: Vec<Rule>,

    /// File of more NAME=TYPE, between spaces or line ends
    #[arg(long, value_name = "FILE")]
    tensor_type_file: Vec<PathBuf>,

    /// Layers to leave out, from 0
    #[arg(long, value_name = "L0,L1,…", value_delimiter = ',')]
    prune_layers: Vec<usize>,

    /// Write as many files as the model is split into
    #[arg(long)]
    keep_split: bool,

    /// Metadata to change: types are int, float, bool and str; may be repeated
    #[arg(long, value_name = "KEY=TYPE:VALUE", value_parser = parse_override)]
    override_kv: Vec<(String, Value)>,

    /// Show what would be done, and write nothing
    #[arg(long)]
    dry_run: bool,

    /// Accepted for llama-quantize's sake: rows of a few MiB are in memory at a time
    #[arg(long, value_name = "MiB", value_parser = clap::value_parser!(u32).range(1..))]
    max_buffer_size: Option<u32>,

    /// How blocks are looked for: best, the least error; ggml, the bytes that llama-quantize writes
    #[arg(long, value_name = "best|ggml", default_value = "best", value_parser = search)]
    search: Search,

    /// Choose types so that the files are as large as this at most, in place of TYPE: 1.5G, 800M, 1.4GiB, or bytes
    #[arg(long, value_name = "SIZE", value_parser = parse_size, conflicts_with_all = ["target_bpw", "pure"])]
    target_size: Option<u64>,

    /// Choose types so that tensors take as many bits per weight at most, in place of TYPE
    #[arg(long, value_name = "BITS", value_parser = bits, conflicts_with = "pure")]
    target_bpw: Option<f64>,

    /// Then compare both models on the text in this file, and judge
    #[arg(long, value_name = "TEXT", conflicts_with = "dry_run")]
    measure: Option<PathBuf>,

    /// Most stretches of 512 tokens that are compared; -1: all
    #[arg(long, value_name = "N", default_value_t = 20, allow_negative_numbers = true, requires = "measure")]
    measure_chunks: i64,

    /// Threads; -1: the physical cores worth using
    #[arg(short, long, value_name = "N", default_value_t = -1, allow_negative_numbers = true, env = "MMQ_ARG_THREADS")]
    threads: i64,

    /// Print one JSON object
    #[arg(long)]
    json: bool,

    /// Print nothing
    #[arg(short, long)]
    quiet: bool,
}

fn search(text: &str) -> Result<Search> {
    match text {
        "best" => Ok(Search::Best),
        "ggml" => Ok(Search::Ggml),
        _ => bail!(Usage, "expected best or ggml, got {text:?}"),
    }
}

fn bits(text: &str) -> Result<f64> {
    match text.parse() {
        Ok(bits) if (0.1..=64.0).contains(&bits) => Ok(bits),
        _ => bail!(Usage, "expected bits per weight, such as 4.2, got {text:?}"),
    }
}

fn types_help() -> String {
    let mut help = String::from("Types, with their numbers, and bits per weight of most of their tensors:\n");
    for row in FileType::ALL.chunks(4) {
        for t in row {
            help += &format!("  {:>2} {:<9} {:>5.2}", *t as u32, t.name(), t.dtype().bits_per_weight());
        }
        help.push('\n');
    }
    help + "  COPY: tensors as they are. Q3_K, Q4_K and Q5_K are the _M mixes."
}

/// What the positional arguments say.
struct Task {
    input: PathBuf,
    /// `None`: beside the input.
    output: Option<PathBuf>,
    goal: Goal,
    threads: Option<i64>,
}

impl Task {
    /// Reads them as llama-quantize does: what names a type where a file could stand is the type.
    fn of(args: &Args) -> Result<Task> {
        let mut rest = args.positional.iter().map(String::as_str).peekable();
        let input = PathBuf::from(rest.next().expect("clap asks for one at least"));
        let mut output = args.output.as_ref().map(PathBuf::from);
        let has_target = args.target_size.is_some() || args.target_bpw.is_some();
        let goal = loop {
            let word = rest.peek().copied();
            match (word, word.and_then(goal)) {
                // Nothing or threads alone may follow the files.
                (word, goal) if has_target && (output.is_some() || word.is_none()) => {
                    if let (Some(word), Some(Goal::Type(_) | Goal::Copy)) = (word, goal)
                        && word.parse::<u32>().is_err()
                    {
                        bail!(Usage, "{word} and a target: types are chosen by the one or the other");
                    }
                    break Goal::Budget;
                }
                (Some(word), Some(_)) if has_target => {
                    bail!(Usage, "{word} and a target: types are chosen by the one or the other")
                }
                (_, Some(goal)) => {
                    rest.next();
                    break goal;
                }
                (Some(word), None) if output.is_none() => {
                    output = Some(PathBuf::from(word));
                    rest.next();
                }
                (Some(word), None) => bail!(Usage, "{word:?} is no type: `mmq quantize --help` lists them"),
                (None, None) => bail!(
                    Usage,
                    "which type? `mmq quantize {} [OUT.gguf] Q4_K_M`, or `mmq quantize --help`",
                    input.display()
                ),
            }
        };
        if goal == Goal::Budget && output.is_none() && !args.dry_run {
            bail!(Usage, "where to? `mmq quantize {} OUT.gguf` and the target", input.display());
        }
        let threads = match rest.next().map(|word| (word, word.parse::<i64>())) {
            None => None,
            Some((_, Ok(n))) => Some(n),
            Some((word, Err(_))) => bail!(Usage, "{word:?} is no number of threads"),
        };
        if let Some(word) = rest.next() {
            bail!(Usage, "{word:?}: expected nothing after the number of threads");
        }
        Ok(Task { input, output, goal, threads })
    }

    /// The files to write.
    fn outputs(&self, args: &Args, plan: &Plan) -> Vec<PathBuf> {
        let name = match self.goal {
            Goal::Type(wanted) => wanted.name(),
            Goal::Copy => "COPY",
            Goal::Budget => "fit",
        };
        let path = self.output.clone().unwrap_or_else(|| self.input.with_file_name(format!("ggml-model-{name}.gguf")));
        if !args.keep_split {
            return vec![path];
        }
        (0..plan.n_files).map(|i| shard_path(&path, i, plan.n_files)).collect()
    }
}

fn goal(word: &str) -> Option<Goal> {
    if word.eq_ignore_ascii_case("copy") {
        return Some(Goal::Copy);
    }
    FileType::parse(word).map(Goal::Type)
}

/// Runs the command.
pub fn run(args: &Args) -> Result<()> {
    let task = Task::of(args)?;
    let request = request(args, &task)?;
    let cancel = catch_ctrl_c()?;
    let gguf = Gguf::open(&task.input)?;
    let mut plan = Plan::new(&gguf, &request)?;
    let outputs = task.outputs(args, &plan);
    let threads = n_threads(if args.threads > 0 { args.threads } else { task.threads.unwrap_or(-1) });
    let progress = Progress::new(!args.quiet);
    let comparison = match &args.measure {
        None => None,
        Some(text) => {
            progress.message("loading");
            Some(Comparison::new(&task.input, text, args.measure_chunks, threads)?)
        }
    };
    let mut show = |done: f32| progress.set(done);
    let mut quantizer = Quantizer::new(&gguf, args.search, request.importance.as_ref(), threads, &cancel, &mut show);
    let mut report = Report::new(&plan, &gguf, &outputs, args.quiet, args.json);
    let target = match (args.target_size, args.target_bpw) {
        (Some(bytes), _) => Some(Target::Bytes(bytes)),
        (None, bits) => bits.map(Target::BitsPerWeight),
    };
    if let Some(target) = target {
        progress.start_long("measuring errors");
        let fit = quantizer.fit(&mut plan, target)?;
        progress.finish();
        report.fit(&plan, fit);
    }
    if args.dry_run {
        return report.planned(&plan);
    }
    progress.start_long("quantizing");
    quantizer.run(&plan, &outputs, &mut |outcome| progress.above(|| report.tensor(&plan, outcome)))?;
    progress.finish();
    report.written(&plan);
    drop(gguf);
    let verdict = match comparison {
        None => None,
        Some(comparison) => {
            progress.start_long("comparing");
            let verdict = comparison.with(&outputs[0], threads, &cancel, &mut |done| progress.set(done))?;
            progress.finish();
            Some(verdict)
        }
    };
    report.finish(&plan, verdict.as_ref())
}

fn request(args: &Args, task: &Task) -> Result<Request> {
    let mut rules = args.tensor_type.clone();
    for path in &args.tensor_type_file {
        let text = super::read_text(path)?;
        for word in text.split_whitespace() {
            rules.push(Rule::parse(word).map_err(|e| e.context(path.display()))?);
        }
    }
    let importance = match &args.imatrix {
        None => None,
        Some(path) => {
            let file = path.display().to_string();
            let imatrix = Imatrix::read(path)?;
            Some(Importance::new(&file, &imatrix, &args.include_weights, &args.exclude_weights)?)
        }
    };
    Ok(Request {
        importance,
        pure: args.pure,
        leave_output: args.leave_output_tensor,
        output_type: args.output_tensor_type,
        embedding_type: args.token_embedding_type,
        rules,
        overrides: args.override_kv.clone(),
        prune: args.prune_layers.clone(),
        keep_split: args.keep_split,
        allow_requantize: args.allow_requantize,
        ..Request::new(task.goal)
    })
}
