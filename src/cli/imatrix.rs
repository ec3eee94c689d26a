//! `mmq imatrix`: which inputs of a model's matrices matter, from texts and from pictures with prompts.

mod report;

use super::reading::{Reading, text_of};
use super::rows::{self, Row};
use super::run::report::Progress;
use super::run::{image_sources, place_images};
use super::{catch_ctrl_c, say};
use crate::media::{self, DecodeOptions};
use crate::pipelines::Engine;
use crate::pipelines::calibrate::{Calibration, CalibrationOptions, Chunks};
use crate::pipelines::evaluate::Stretch;
use crate::quantize::Imatrix;
use crate::text::template::{Message, Role};
use crate::{Error, ErrorKind, Result, bail};
use report::Report;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// What is asked about a picture that comes without a prompt.
const QUESTION: &str = "Describe the picture in detail.";

/// Collects an importance matrix: which inputs of each weight matrix matter to a model, for `mmq quantize --imatrix`.
#[derive(clap::Args)]
#[command(args_override_self = true)]
#[command(after_help = "The text is cut as llama-imatrix cuts it, and the file is what llama-quantize reads.
Pictures go through the vision encoder and its projector, whose matrices are collected too, and with their prompts
through the text model, in its chat template. Text and pictures may be given together: one file holds all.
With --in-file alone, files are merged.
[-mm] and the like: llama.cpp's short spelling, which works too.")]
pub struct Args {
    #[command(flatten)]
    reading: Reading,

    /// File that holds the text; - for standard input
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,

    /// What is asked about the picture of the same place in the order of --image, or about all; without pictures, the text
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true)]
    prompt: Vec<String>,

    /// Picture; may be repeated
    #[arg(long, value_name = "FILE")]
    image: Vec<String>,

    /// File of JSON lines {"image": PATH or list of them, "prompt": TEXT, "answer": TEXT}; the answer may be left out.
    /// Paths are relative to it
    #[arg(long, value_name = "FILE")]
    samples: Option<PathBuf>,

    /// Where the importance matrix goes
    #[arg(short, long, value_name = "FILE", visible_alias = "output-file", default_value = "imatrix.gguf")]
    output: PathBuf,

    /// gguf, or dat for tools from before 2025 [default: gguf]
    #[arg(long, value_name = "FORMAT", value_parser = ["gguf", "dat"])]
    output_format: Option<String>,

    /// Write the file every N chunks, so that not all is lost if it is interrupted [-ofreq]
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    output_frequency: u32,

    /// Every N chunks, keep a copy as FILE.at_CHUNK; 0: none
    #[arg(long, value_name = "N", default_value_t = 0)]
    save_frequency: u32,

    /// Collect for output.weight, too
    #[arg(long)]
    process_output: bool,

    /// Leave the head out: no perplexity is told
    #[arg(long)]
    no_ppl: bool,

    /// Leave the first N chunks of the text out
    #[arg(long, value_name = "N", visible_alias = "from-chunk", default_value_t = 0)]
    chunk: u32,

    /// Most chunks of text, and most rows of samples; -1: all
    #[arg(long, value_name = "N", default_value_t = -1, value_parser = clap::value_parser!(i64).range(-1..=i64::from(i32::MAX)))]
    chunks: i64,

    /// Tokens of a chunk of text
    #[arg(short, long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=i64::from(i32::MAX)))]
    ctx_size: u32,

    /// Take what looks like a control token in the text for one
    #[arg(long)]
    parse_special: bool,

    /// Importance matrix to add to; may be repeated
    #[arg(long, value_name = "FILE", value_delimiter = ',')]
    in_file: Vec<PathBuf>,

    /// Show what the --in-file says about each tensor
    #[arg(long, requires = "in_file")]
    show_statistics: bool,

    /// Print one JSON object
    #[arg(long)]
    json: bool,

    /// Print the result alone
    #[arg(short, long)]
    quiet: bool,
}

/// What the model looks at.
#[derive(Default)]
struct Work {
    text: Option<String>,
    rows: Vec<Row>,
    /// What these are called.
    datasets: Vec<String>,
}

/// Where the result goes.
struct Output<'a> {
    path: &'a Path,
    dat: bool,
}

/// Runs the command.
pub fn run(args: &Args, notes: &[String]) -> Result<()> {
    if !args.quiet {
        notes.iter().for_each(|note| say(&format!("note: {note}")));
    }
    if args.show_statistics {
        let [path] = args.in_file.as_slice() else {
            bail!(Usage, "--show-statistics needs one --in-file, got {}", args.in_file.len());
        };
        return report::statistics(path, &Imatrix::read(path)?, args.json);
    }
    let work = work(args)?;
    let output = Output::new(args)?;
    let mut earlier = Imatrix::new(args.ctx_size as usize);
    for path in &args.in_file {
        earlier.merge(&Imatrix::read(path)?).map_err(|e| e.context(path.display()))?;
    }
    let mut report = Report::new(args.quiet, args.json);
    if work.datasets.is_empty() {
        output.write(&earlier, None)?;
        return report.finish(None, None, &earlier, output.path);
    }
    work.datasets.iter().for_each(|name| earlier.add_dataset(name));
    let done = collect(args, &work, &earlier, &output, &mut report);
    if done.as_ref().is_err_and(|e| e.kind() == ErrorKind::Cancelled) {
        report.stopped(output.path);
    }
    done
}

/// Takes everything through the model.
fn collect(args: &Args, work: &Work, earlier: &Imatrix, output: &Output<'_>, report: &mut Report) -> Result<()> {
    let progress = Progress::new(!args.quiet);
    progress.message("loading");
    let engine = args.reading.load(work.rows.iter().any(|row| !row.images.is_empty()))?;
    progress.finish();
    let n_ctx = args.ctx_size as usize;
    let session = args.reading.session(&engine, n_ctx, args.quiet);
    let cancel = catch_ctrl_c()?;
    let options = CalibrationOptions { output: args.process_output, perplexity: !args.no_ppl };
    let mut calibration = Calibration::new(&engine, &session, options, &cancel)?;
    let most = usize::try_from(args.chunks).ok();
    let chunks = match &work.text {
        None => Vec::new(),
        Some(text) => {
            let chunks = Chunks { size: n_ctx, first: args.chunk as usize, most, special: args.parse_special };
            calibration.cut(text, chunks)?
        }
    };
    let rows = &work.rows[..work.rows.len().min(most.unwrap_or(usize::MAX))];
    let n = chunks.len() + rows.len();
    report.begin(n);
    let mut step = |calibration: &Calibration| -> Result<()> {
        let done = report.step(calibration);
        let due = |every: u32| every > 0 && done.is_multiple_of(every as usize) && done < n;
        if due(args.output_frequency) || due(args.save_frequency) {
            let imatrix = calibration.imatrix(earlier)?;
            if due(args.output_frequency) {
                output.write(&imatrix, None)?;
                report.saved(output.path);
            }
            if due(args.save_frequency) {
                output.write(&imatrix, Some(done))?;
            }
        }
        Ok(())
    };
    for chunk in &chunks {
        calibration.add(chunk)?;
        step(&calibration)?;
    }
    for (i, row) in rows.iter().enumerate() {
        look(&mut calibration, &engine, row).map_err(|e| e.context(format!("sample {}", i + 1)))?;
        step(&calibration)?;
    }
    let imatrix = calibration.imatrix(earlier)?;
    output.write(&imatrix, None)?;
    report.finish(Some(&engine), Some(&calibration), &imatrix, output.path)
}

/// Takes a prompt with its pictures, and the answer if there is one, through the model.
fn look(calibration: &mut Calibration, engine: &Engine, row: &Row) -> Result<()> {
    let decode = DecodeOptions::default();
    let encode = |source: &String| calibration.encode_image(&media::load(source, &decode)?, None);
    let images = row.images.iter().map(encode).collect::<Result<Vec<_>>>()?;
    let message = [Message { role: Role::User, content: place_images(&row.text, images.len())? }];
    let prompt = engine.chat_prompt(&message, &images)?;
    calibration.add(&match &row.answer {
        Some(answer) => Stretch::answer(engine, prompt, answer)?,
        None => Stretch { prompt, n_scored: 0 },
    })
}

/// What the command line asks to be looked at.
fn work(args: &Args) -> Result<Work> {
    let mut work = Work::default();
    if let Some(path) = &args.file {
        work.text = Some(text_of(path)?);
        work.datasets.push(path.display().to_string());
    }
    let images = image_sources(&args.image)?;
    match (images.len(), args.prompt.as_slice()) {
        (0, []) => {}
        (0, [text]) if args.file.is_none() => {
            work.text = Some(text.clone());
            work.datasets.push("prompt".to_owned());
        }
        (0, prompts) => {
            bail!(Usage, "{} prompts (-p), but no pictures (--image) and one text (-f) at most", prompts.len())
        }
        (n, prompts) if prompts.len() > 1 && prompts.len() != n => {
            bail!(
                Usage,
                "{n} pictures (--image), but {} prompts (-p): expected one for each, or one for all",
                prompts.len()
            )
        }
        (_, prompts) => {
            for (i, image) in images.into_iter().enumerate() {
                let text = prompts.get(i).or(prompts.first()).map_or(QUESTION, String::as_str).to_owned();
                let name = if image.starts_with("data:") { "data:" } else { image.as_str() };
                work.datasets.push(name.to_owned());
                work.rows.push(Row { images: vec![image], text, answer: None });
            }
        }
    }
    if let Some(path) = &args.samples {
        work.rows.extend(rows::read(path, false)?);
        work.datasets.push(path.display().to_string());
    }
    if work.datasets.is_empty() && args.in_file.is_empty() {
        bail!(
            Usage,
            "nothing to collect on: give a text with -f FILE, pictures with --image FILE and -p TEXT or --samples FILE, or \
             files to merge with --in-file FILE"
        );
    }
    Ok(work)
}

impl<'a> Output<'a> {
    /// Finds what can be known to go wrong before hours of work.
    fn new(args: &'a Args) -> Result<Output<'a>> {
        let path = args.output.as_path();
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        if path.is_dir() || path.file_name().is_none() {
            bail!(Usage, "{}: expected a file to write (-o)", path.display());
        }
        if !folder.is_dir() {
            let why = format!("{}: there is no folder {}", path.display(), folder.display());
            return Err(Error::new(ErrorKind::Io, why));
        }
        if args.output_format.is_none() && path.extension().is_some_and(|e| e == "dat") && !args.quiet {
            say(&format!("note: {} will be a GGUF file; --output-format dat writes the older one", path.display()));
        }
        Ok(Output { path, dat: args.output_format.as_deref() == Some("dat") })
    }

    /// Writes the file, or the copy that is named after chunk `at`.
    fn write(&self, imatrix: &Imatrix, at: Option<usize>) -> Result<()> {
        let mut path = OsString::from(self.path);
        if let Some(at) = at {
            path.push(format!(".at_{at}"));
        }
        if self.dat { imatrix.write_dat(Path::new(&path)) } else { imatrix.write(Path::new(&path)) }
    }
}
