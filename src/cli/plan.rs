//! `mmq plan`: how much memory a run takes, and what makes it fit a budget, before anything is loaded.

use super::{printed, run, say};
use crate::gguf::Gguf;
use crate::pipelines::plan::{self, Plan, Planner, parse_pixels, parse_size};
use crate::{Result, bail};
use std::io::Write;

/// The flags of `mmq run`, and what stands for pictures that are not at hand.
#[derive(clap::Args)]
#[group(skip)]
#[command(args_override_self = true)]
pub struct Args {
    #[command(flatten)]
    run: run::Args,

    /// Pictures of a conversation [default: those of --image, or one]
    #[arg(long, value_name = "N", help_heading = "Pictures")]
    images: Option<usize>,

    /// Pixels of a picture [default: those of --image, or 1024x768]
    #[arg(long, value_name = "WxH", value_parser = parse_pixels, help_heading = "Pictures")]
    image_size: Option<(usize, usize)>,
}

impl Args {
    /// The command as `mmq run` has it, told in other words.
    pub fn finish(command: clap::Command) -> clap::Command {
        run::Args::finish(command)
            .about("Tells how much memory `mmq run` takes with the same flags, before anything is loaded")
            .after_help(
                "With --budget it chooses what is not given: context, batch, types of keys and values, image tokens, and
whether layers stream through memory. `mmq run --budget` runs what `mmq plan --budget` prints.
Memory is what the process has resident at most, mapped weights included, when the context is full.
Prompts, sampling and what is written change nothing, and need not be given.",
            )
            .mut_arg("json", |arg| arg.help("Print one JSON object"))
    }
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
    let Some(model) = &args.run.model else {
        bail!(Usage, "a plan is for a model file: give one with -m");
    };
    let text = Gguf::open(model)?;
    let mmproj = args.run.mmproj_of(model, true, &|path| say(&format!("note: with {}", path.display())))?;
    let mmproj = mmproj.map(Gguf::open).transpose()?;
    let sources = run::image_sources(&args.run.image)?;
    let mut wish = args.run.wish(&sources)?;
    wish.n_images = args.images.unwrap_or(sources.len().max(1));
    wish.image_size = args.image_size.unwrap_or(wish.image_size);
    let plan = Planner::new(&text, mmproj.as_ref())?.plan(&wish)?;
    let text = match args.run.json {
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
