//! `mmq perplexity`: how well a model predicts a text or answers about pictures, and how far it is from another model.

mod report;

use super::reading::{Reading, text_of};
use super::rows::{self, Row};
use super::run::report::Progress;
use super::run::{image_sources, place_images};
use super::{catch_ctrl_c, say};
use crate::media::{self, DecodeOptions};
use crate::pipelines::evaluate::{Cut, Evaluation, Stretch};
use crate::pipelines::{Cancel, EncodedImage, Engine};
use crate::text::template::{Message, Role};
use crate::{Result, bail};
use report::Report;
use std::path::PathBuf;
use std::sync::Arc;

/// Measures how well a model predicts a text, and with --base how far its predictions are from another model's.
#[derive(clap::Args)]
#[command(args_override_self = true)]
#[command(
    after_help = "The text is cut as llama-perplexity cuts it: stretches of -c tokens, of which the second half is scored.
--rows and --answer score answers instead, each behind its prompt and pictures in the model's chat template.
With --base both models run side by side, and what llama-perplexity --kl-divergence prints is printed; -ctk and -ctv are the
model's, the base model's keys and values are f16.
[-mm] and the like: llama.cpp's short spelling, which works too."
)]
pub struct Args {
    #[command(flatten)]
    reading: Reading,

    /// Model to compare with, a GGUF file of the same vocabulary: the original of a quantized model, for one
    #[arg(long, value_name = "FILE")]
    base: Option<PathBuf>,

    /// Compare with --base; it may be left out
    #[arg(long, requires = "base")]
    kl_divergence: bool,

    /// File that holds the text; - for standard input
    #[arg(short, long, value_name = "FILE", conflicts_with = "prompt")]
    file: Option<PathBuf>,

    /// The text, or with --answer what is asked
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true)]
    prompt: Option<String>,

    /// Tokens of a stretch; for answers the most that a prompt may take [default: 512; for answers the model's own]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(i32::MAX)))]
    ctx_size: Option<u32>,

    /// Most stretches or rows to score; -1: all
    #[arg(long, value_name = "N", default_value_t = -1, value_parser = clap::value_parser!(i64).range(-1..=i64::from(i32::MAX)))]
    chunks: i64,

    /// Begin stretches N tokens after each other and score the last N tokens of each; 0: as said below
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=i64::from(i32::MAX)))]
    ppl_stride: u32,

    /// Answer that is scored behind the prompt
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true, requires = "prompt", conflicts_with = "ppl_stride")]
    answer: Option<String>,

    /// Picture of the prompt; may be repeated
    #[arg(long, value_name = "FILE", requires = "answer")]
    image: Vec<String>,

    /// File of JSON lines {"image": PATH or list of them, "text": PROMPT, "answer": TEXT}; paths are relative to it
    #[arg(long, value_name = "FILE", conflicts_with_all = ["prompt", "file", "ppl_stride"])]
    rows: Option<PathBuf>,

    /// Vision encoder and projector of the base model [default: the model's own]
    #[arg(long, value_name = "FILE", requires = "base")]
    base_mmproj: Option<PathBuf>,

    /// Print one JSON object
    #[arg(long)]
    json: bool,

    /// Print the result alone
    #[arg(short, long)]
    quiet: bool,
}

/// What is scored.
enum Work {
    Text(String),
    Rows(Vec<Row>),
}

/// The models in question.
struct Models {
    model: Arc<Engine>,
    base: Option<Arc<Engine>>,
}

/// Runs the command.
pub fn run(args: &Args, notes: &[String]) -> Result<()> {
    if !args.quiet {
        notes.iter().for_each(|note| say(&format!("note: {note}")));
    }
    let work = work(args)?;
    let progress = Progress::new(!args.quiet);
    progress.message("loading");
    let sees = matches!(&work, Work::Rows(rows) if rows.iter().any(|row| !row.images.is_empty()));
    let models = load(args, sees)?;
    progress.finish();
    let (default_ctx, n_stretches) =
        (if matches!(work, Work::Text(_)) { 512 } else { 0 }, usize::try_from(args.chunks).ok());
    let n_ctx = args.ctx_size.map_or(default_ctx, |n| n as usize);
    let options = args.reading.session(&models.model, n_ctx, args.quiet);
    let cancel = catch_ctrl_c()?;
    let mut evaluation = Evaluation::new(&models.model, models.base.as_ref(), &options, &cancel)?;
    let mut report = Report::new(args.quiet, models.base.is_some());
    match work {
        Work::Text(text) => {
            let stride = (args.ppl_stride > 0).then_some(args.ppl_stride as usize);
            let stretches = Stretch::cut(&models.model, &text, &Cut { n_ctx, stride, n_chunks: n_stretches })?;
            drop(text);
            report.begin(stretches.len());
            for stretch in &stretches {
                evaluation.add(stretch, None)?;
                report.step(&evaluation);
            }
        }
        Work::Rows(rows) => {
            let n = rows.len().min(n_stretches.unwrap_or(usize::MAX));
            report.begin(n);
            for (i, row) in rows[..n].iter().enumerate() {
                let add = |evaluation: &mut Evaluation| {
                    let (stretch, for_base) = models.stretches(row, &cancel, args.base_mmproj.is_some())?;
                    evaluation.add(&stretch, for_base.as_ref())
                };
                add(&mut evaluation).map_err(|e| e.context(format!("row {}", i + 1)))?;
                report.step(&evaluation);
            }
        }
    }
    report.finish(&evaluation, &models.model, models.base.as_deref(), args.json)
}

/// What the command line asks to be scored.
fn work(args: &Args) -> Result<Work> {
    if let Some(path) = &args.rows {
        return rows::read(path, true).map(Work::Rows);
    }
    match (&args.prompt, &args.file, &args.answer) {
        (Some(prompt), None, Some(answer)) => {
            let row = Row { images: image_sources(&args.image)?, text: prompt.clone(), answer: Some(answer.clone()) };
            Ok(Work::Rows(vec![row]))
        }
        (Some(prompt), None, None) => Ok(Work::Text(prompt.clone())),
        (None, Some(path), _) => text_of(path).map(Work::Text),
        _ => bail!(Usage, "no text: give one with -f FILE or -p TEXT, or questions and answers with --rows FILE"),
    }
}

fn load(args: &Args, sees: bool) -> Result<Models> {
    let model = args.reading.load(sees)?;
    let options = args.reading.engine_options();
    let base = args.base.as_ref().map(|path| Engine::load(path, args.base_mmproj.as_deref(), &options)).transpose()?;
    Ok(Models { model, base: base.map(Arc::new) })
}

impl Models {
    /// A row as the model sees it, and as the base model does if that looks at pictures through an encoder of its own.
    fn stretches(&self, row: &Row, cancel: &Cancel, base_sees: bool) -> Result<(Stretch, Option<Stretch>)> {
        let text = place_images(&row.text, row.images.len())?;
        let message = [Message { role: Role::User, content: text }];
        let stretch = |images: &[Arc<EncodedImage>]| {
            // Template and tokens are the model's for both, so that only weights differ.
            let answer = row.answer.as_deref().unwrap_or_default();
            Stretch::answer(&self.model, self.model.chat_prompt(&message, images)?, answer)
        };
        let decode = DecodeOptions::default();
        let pictures = row.images.iter().map(|source| media::load(source, &decode)).collect::<Result<Vec<_>>>()?;
        let encode = |engine: &Engine| {
            pictures.iter().map(|picture| engine.encode_image(picture, Some(cancel), None)).collect::<Result<Vec<_>>>()
        };
        let of_model = stretch(&encode(&self.model)?)?;
        let of_base = match &self.base {
            Some(base) if base_sees => Some(stretch(&encode(base)?)?),
            _ => None,
        };
        Ok((of_model, of_base))
    }
}
