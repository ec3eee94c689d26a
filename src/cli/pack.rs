//! `mmq pack`: a model file that is mapped and runs at full speed as it is, and the way back.

use super::run::report::Progress;
use super::{catch_ctrl_c, n_threads, say, scaled};
use crate::Result;
use crate::gguf::Gguf;
use crate::pipelines::Packer;
use std::path::PathBuf;
use std::time::Instant;

/// Packs a model file: weights in the order in which they are read, so that loading takes no time and no memory of its own.
#[derive(clap::Args)]
#[command(
    after_help = "A packed file is as large as before and as valid a GGUF file, but only mmq can run it: its architecture is
\"mmq-packed\", so that no other program takes it for an ordinary model. An mmproj is packed in the same way."
)]
pub struct Args {
    /// Text model or mmproj, a GGUF file; of a split model, any shard
    #[arg(value_name = "IN.gguf")]
    input: PathBuf,

    /// Where to write it; may be the same file
    #[arg(short, long, value_name = "OUT.gguf")]
    output: PathBuf,

    /// Turn a packed file back into what it was
    #[arg(long)]
    unpack: bool,

    /// Threads; -1: the physical cores worth using
    #[arg(short, long, value_name = "N", default_value_t = -1, allow_negative_numbers = true, env = "MMQ_ARG_THREADS")]
    threads: i64,

    /// Print nothing
    #[arg(short, long)]
    quiet: bool,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<()> {
    let cancel = catch_ctrl_c()?;
    let start = Instant::now();
    let gguf = Gguf::open(&args.input)?;
    let progress = Progress::new(!args.quiet);
    progress.start(if args.unpack { "unpacking" } else { "packing" });
    let mut show = |done: f32| progress.set(done);
    let packer = Packer::new(&gguf, n_threads(args.threads), &cancel, &mut show);
    if args.unpack {
        packer.unpack(&args.output)?
    } else {
        packer.pack(&args.output)?
    }
    progress.finish();
    if !args.quiet {
        let size = scaled(gguf.n_bytes());
        say(&format!("{}: {size}B of tensors in {:.1} s", args.output.display(), start.elapsed().as_secs_f64()));
    }
    Ok(())
}
