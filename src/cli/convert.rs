//! `mmq convert`: a Hugging Face folder, and what else a model's authors published, to GGUF.

use super::run::report::Progress;
use super::{catch_ctrl_c, printed, say, scaled};
use crate::convert::{self, Half, MiniGpt4, Options, Part};
use crate::gguf::Gguf;
use crate::quantize::FileType;
use crate::{Dtype, Result, architectures};
use clap::ValueEnum;
use serde_json::json;
use std::io::Write;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Instant;

/// Converts a Hugging Face folder to GGUF: LLaMA's kin to a text model, LLaVA and MiniGPT-4 to a text model and an mmproj.
#[derive(clap::Args)]
#[command(
    after_help = "Reads safetensors and PyTorch's .bin (without running what they hold), one file or shards, with config.json and
tokenizer.model or tokenizer.json. LLaVA may be transformers' or the authors' (1.6 holds its vision encoder; for 1.5, v1 and v0
give CLIP's folder with --vision-tower). MiniGPT-4 and MiniGPT-v2 are the folder of Vicuna-v0 or Llama 2, and the authors' files:
--minigpt4, --eva and --blip2 name them where they do not lie in that folder or beside each other. Keys and names are llama.cpp's, so that its programs load the files too."
)]
pub struct Args {
    /// The model's folder
    #[arg(value_name = "DIR")]
    dir: PathBuf,

    /// Where to write the text model
    #[arg(short, long, value_name = "OUT.gguf")]
    output: PathBuf,

    /// Where to write the mmproj; by default mmproj-OUT.gguf beside the text model
    #[arg(long, value_name = "OUT.gguf")]
    mmproj: Option<PathBuf>,

    /// Type of all matrices: f32, f16, bf16, q8_0 or another block type; auto: f16 or bf16, as the checkpoint is
    #[arg(long, value_name = "TYPE", default_value = "auto")]
    outtype: OutType,

    /// Folder of the vision encoder, where the model's has none: openai/clip-vit-large-patch14-336 for LLaVA 1.5
    #[arg(long, value_name = "DIR")]
    vision_tower: Option<PathBuf>,

    /// Folder of the language model, where the model's holds a projector alone (mm_projector.bin)
    #[arg(long, value_name = "DIR")]
    base: Option<PathBuf>,

    /// MiniGPT-4's checkpoint: its projector, and the adapter of MiniGPT-v2; DIR is its language model
    #[arg(long, value_name = "PTH")]
    minigpt4: Option<PathBuf>,

    /// MiniGPT-4's vision encoder, eva_vit_g.pth
    #[arg(long, value_name = "PTH")]
    eva: Option<PathBuf>,

    /// MiniGPT-4's Q-Former, blip2_pretrained_flant5xxl.pth
    #[arg(long, value_name = "PTH")]
    blip2: Option<PathBuf>,

    /// Pixels of the side of MiniGPT-4's pictures; by default 448 with MiniGPT-v2's adapter, 224 without
    #[arg(long, value_name = "N")]
    image_size: Option<usize>,

    /// Alpha of MiniGPT-v2's adapter, by default 16
    #[arg(long, value_name = "N")]
    lora_alpha: Option<f32>,

    /// Write only one of the two files
    #[arg(long, value_name = "PART", value_enum)]
    only: Option<Only>,

    /// What llama.cpp calls the BPE pre-tokenizer, where mmq cannot tell
    #[arg(long, value_name = "NAME")]
    pre: Option<String>,

    /// The model's name; by default that of the folder
    #[arg(long, value_name = "NAME", visible_alias = "model-name")]
    name: Option<String>,

    /// Say what was done as JSON on standard output
    #[arg(long)]
    json: bool,

    /// Print nothing but errors
    #[arg(short, long)]
    quiet: bool,
}

/// What `--outtype` asks for; `None` is `auto`.
#[derive(Clone, Copy)]
struct OutType(Option<Dtype>);

impl FromStr for OutType {
    type Err = String;

    fn from_str(text: &str) -> Result<OutType, String> {
        let known = |dtype: &Dtype| dtype.name().eq_ignore_ascii_case(text);
        let dtypes = convert::FILE_TYPES.map(FileType::dtype);
        match dtypes.into_iter().find(known) {
            Some(dtype) => Ok(OutType(Some(dtype))),
            None if text.eq_ignore_ascii_case("auto") => Ok(OutType(None)),
            None => Err(format!("expected auto, {}", dtypes.map(|dtype| dtype.name().to_lowercase()).join(", "))),
        }
    }
}

#[derive(Clone, Copy, ValueEnum)]
enum Only {
    Text,
    Mmproj,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<()> {
    let cancel = catch_ctrl_c()?;
    let start = Instant::now();
    let options = Options {
        dir: &args.dir,
        output: &args.output,
        mmproj: args.mmproj.as_deref(),
        only: args.only.map(|only| match only {
            Only::Text => Half::Text,
            Only::Mmproj => Half::Mmproj,
        }),
        vision_tower: args.vision_tower.as_deref(),
        base: args.base.as_deref(),
        dtype: args.outtype.0,
        pre: args.pre.as_deref(),
        name: args.name.as_deref(),
        minigpt4: MiniGpt4 {
            checkpoint: args.minigpt4.as_deref(),
            eva: args.eva.as_deref(),
            blip2: args.blip2.as_deref(),
            image_size: args.image_size,
            lora_alpha: args.lora_alpha,
        },
    };
    let progress = Progress::new(!args.quiet);
    progress.start("converting");
    let parts = convert::convert(&options, &|| cancel.is_cancelled(), &mut |done| progress.set(done))?;
    progress.finish();

    let mut described = Vec::new();
    for part in &parts {
        // What was written is opened as any other file would be.
        let runs = Gguf::open(&part.path).and_then(|gguf| architectures::check(&gguf));
        let runs = runs.unwrap_or_else(|error| format!("cannot run it: {error}"));
        if !args.quiet {
            tell(part, &runs);
        }
        described.push(describe(part, &runs));
    }
    let seconds = start.elapsed().as_secs_f64();
    if args.json {
        let report = json!({ "parts": described, "seconds": seconds });
        printed(writeln!(std::io::stdout(), "{report:#}"))?;
    } else if !args.quiet {
        say(&format!("{seconds:.1} s"));
    }
    Ok(())
}

/// A part on standard error: a line, and one for each note.
fn tell(part: &Part, runs: &str) {
    say(&format!(
        "{}: {} of {} as {}, {} tensors, {}weights, {}B; {}; mmq {runs}",
        part.path.display(),
        half(part.half),
        part.from,
        part.dtype,
        part.n_tensors,
        scaled(part.n_params),
        scaled(part.n_bytes),
        part.words
    ));
    for note in &part.notes {
        say(&format!("  note: {note}"));
    }
}

fn half(half: Half) -> &'static str {
    match half {
        Half::Text => "text model",
        Half::Mmproj => "mmproj",
    }
}

fn describe(part: &Part, runs: &str) -> serde_json::Value {
    json!({
        "part": match part.half {
            Half::Text => "text",
            Half::Mmproj => "mmproj",
        },
        "path": part.path.display().to_string(),
        "from": part.from,
        "type": part.dtype.to_string(),
        "n_tensors": part.n_tensors,
        "n_params": part.n_params,
        "n_bytes": part.n_bytes,
        "is": part.words,
        "mmq": runs,
        "notes": part.notes,
    })
}
