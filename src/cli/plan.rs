//! `mmq plan`: how much memory a run takes, and what makes it fit a budget, before anything is loaded.

use super::image_tokens::ImageTokensArgs;
use super::run::{kv_type, load_mode};
use super::{printed, say};
use crate::Result;
use crate::gguf::Gguf;
use crate::pipelines::plan::{self, Plan, Planner, Wish, parse_pixels, parse_size};
use crate::pipelines::{KvType, LoadMode, Precision, find_mmproj};
use std::io::Write;
use std::path::PathBuf;

/// Tells how much memory `mmq run` takes with the same flags, phase by phase, before anything is loaded.
#[derive(clap::Args)]
#[command(args_override_self = true)]
#[command(
    after_help = "With --budget it chooses what is not given: context, batch, types of keys and values, image tokens, and
whether layers stream through memory. `mmq run --budget` runs what `mmq plan --budget` prints.
Memory is what the process has resident at most, mapped weights included, when the context is full."
)]
pub struct Args {
    /// Text model, a GGUF file
    #[arg(short, long, value_name = "FILE")]
    model: PathBuf,

    /// Vision encoder and projector, a GGUF file [-mm] [default: mmproj*.gguf beside the model]
    #[arg(long, value_name = "FILE")]
    mmproj: Option<PathBuf>,

    /// Leave the vision encoder out
    #[arg(long)]
    no_mmproj: bool,

    #[command(flatten)]
    memory: MemoryArgs,

    /// Most tokens in the context; 0: as many as the model was trained with
    #[arg(short, long, value_name = "N")]
    ctx_size: Option<u32>,

    /// Most tokens that go through the model at once [-ub]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(i32::MAX)))]
    ubatch_size: Option<u32>,

    /// How weights come into memory: mmap, repack or auto (mmap) [-lm]
    #[arg(long, value_name = "MODE", value_parser = load_mode)]
    load_mode: Option<(LoadMode, bool)>,

    /// Type of the stored keys: f16, f32, q8_0 or q4_0 [-ctk]
    #[arg(long, value_name = "TYPE", value_parser = kv_type)]
    cache_type_k: Option<KvType>,

    /// Type of the stored values: f16, f32, q8_0 or q4_0 [-ctv]
    #[arg(long, value_name = "TYPE", value_parser = kv_type)]
    cache_type_v: Option<KvType>,

    /// Precision of the vision encoder: f32, int8 or auto
    #[arg(long, value_name = "TYPE", default_value = "auto")]
    vision_precision: Precision,

    #[command(flatten)]
    image_tokens: ImageTokensArgs,

    /// Pictures of a conversation
    #[arg(long, value_name = "N", default_value_t = 1)]
    images: usize,

    /// Pixels of a picture
    #[arg(long, value_name = "WxH", default_value = "1024x768", value_parser = parse_pixels)]
    image_size: (usize, usize),

    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// How much memory a run may take.
#[derive(clap::Args, Clone, Debug)]
pub struct MemoryArgs {
    /// Most memory: 1.5G, 800M or 1.4GiB; what is not given is chosen so that it fits
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub budget: Option<u64>,

    /// Stream layers through memory that it cannot hold all at once; without --budget, all of them
    #[arg(long)]
    pub low_memory: bool,
}

/// Runs the command.
pub fn run(args: &Args, notes: &[String]) -> Result<()> {
    notes.iter().for_each(|text| say(&format!("note: {text}")));
    let text = Gguf::open(&args.model)?;
    let found = match &args.mmproj {
        _ if args.no_mmproj => None,
        Some(path) => Some(path.clone()),
        None => find_mmproj(&args.model)?,
    };
    if let (None, Some(path)) = (&args.mmproj, &found) {
        say(&format!("note: with {}", path.display()));
    }
    let mmproj = found.map(Gguf::open).transpose()?;
    let wish = Wish {
        n_ctx: args.ctx_size.map(|n| n as usize),
        n_ubatch: args.ubatch_size.map(|n| n as usize),
        type_k: args.cache_type_k,
        type_v: args.cache_type_v,
        load_mode: args.load_mode.map(|mode| mode.0),
        low_memory: args.memory.low_memory,
        image_tokens: args.image_tokens.get(),
        vision_precision: args.vision_precision,
        image_size: args.image_size,
        n_images: args.images,
        ..Wish::new(args.memory.budget)
    };
    let plan = Planner::new(&text, mmproj.as_ref())?.plan(&wish)?;
    let text = match args.json {
        true => format!("{:#}\n", serde_json::to_value(&plan).expect("a plan is plain data")),
        false => table(&plan),
    };
    printed(std::io::stdout().lock().write_all(text.as_bytes()))
}

/// The plan for people.
fn table(plan: &Plan) -> String {
    let p = &plan.parts;
    let mut text = format!("{:<34}{:>10}\n", "part", "memory");
    let rows = [
        ("program", p.base),
        ("vocabulary", p.tokenizer),
        ("text weights, mapped", p.text_mapped),
        ("text weights, made at load", p.text_made),
        ("vision weights, mapped", p.vision_mapped),
        ("vision weights, made at load", p.vision_made),
        ("keys and values", p.kv),
        ("rows of pictures", p.image_rows),
        ("buffers to encode", p.encode_scratch),
        ("buffers to read the prompt", p.prefill_scratch),
        ("buffers to answer", p.decode_scratch),
    ];
    for (name, n) in rows.iter().filter(|(_, n)| *n > 0) {
        text += &format!("{name:<34}{:>10}\n", plan::size(*n));
    }
    text += &format!("\n{:<34}{:>10}\n", "phase", "at most");
    for phase in &plan.phases {
        text += &format!("{:<34}{:>10}\n", phase.name, plan::size(phase.n_bytes));
    }
    text += &format!("\n{:<34}{:>10}\n\n", "peak", plan::size(plan.peak));
    text += &format!("flags: {}\n", flags(plan));
    text
}

/// The flags of `mmq run` that it stands for.
pub(super) fn flags(plan: &Plan) -> String {
    let mode = plan.load_mode.name();
    let mut flags = format!("-c {} -ub {}", plan.n_ctx, plan.n_ubatch);
    flags += &format!(" -ctk {} -ctv {} -lm {mode}", plan.type_k.name(), plan.type_v.name());
    if let Some(tokens) = plan.image_tokens {
        flags += &format!(" --image-tokens {}", tokens.n);
    }
    if plan.resident_layers.is_some() {
        flags += " --low-memory";
    }
    flags
}
