//! `mmq split` and `mmq merge`: a model in several files, and in one again.

use super::run::report::Progress;
use super::{catch_ctrl_c, say, scaled};
use crate::Result;
use crate::gguf::{Gguf, shard_path};
use crate::pipelines::plan::parse_size;
use crate::pipelines::{Limit, Shards};
use std::path::PathBuf;

/// Cuts a model file into several: OUT-00001-of-0000N.gguf and so on.
#[derive(clap::Args)]
#[command(
    after_help = "As llama-gguf-split does, with its flags. Every command takes any of the files for the whole model."
)]
pub struct SplitArgs {
    /// The model, a GGUF file
    #[arg(value_name = "IN.gguf")]
    input: PathBuf,

    /// What the names of the files begin with
    #[arg(value_name = "OUT")]
    output: PathBuf,

    /// Most tensors in a file [default: 128]
    #[arg(long, value_name = "N", conflicts_with = "split_max_size")]
    split_max_tensors: Option<usize>,

    /// Most bytes of tensors in a file: 500M, 2G
    #[arg(long, value_name = "N(M|G)", value_parser = parse_size)]
    split_max_size: Option<u64>,

    /// Nothing but metadata in the first file
    #[arg(long)]
    no_tensor_first_split: bool,

    /// Show the files that would be written, and write none
    #[arg(long)]
    dry_run: bool,

    /// Print nothing
    #[arg(short, long)]
    quiet: bool,
}

/// Makes one file of a split model.
#[derive(clap::Args)]
pub struct MergeArgs {
    /// Any file of the split model
    #[arg(value_name = "IN-00001-of-0000N.gguf")]
    input: PathBuf,

    /// Where to write it
    #[arg(value_name = "OUT.gguf")]
    output: PathBuf,

    /// Show the file that would be written, and write none
    #[arg(long)]
    dry_run: bool,

    /// Print nothing
    #[arg(short, long)]
    quiet: bool,
}

/// Runs `mmq split`.
pub fn split(args: &SplitArgs) -> Result<()> {
    let gguf = Gguf::open(&args.input)?;
    let limit = match (args.split_max_size, args.split_max_tensors) {
        (Some(bytes), _) => Limit::Bytes(bytes),
        (None, n) => Limit::Tensors(n.unwrap_or(128)),
    };
    let shards = Shards::split(&gguf, limit, args.no_tensor_first_split)?;
    let n = shards.files()?.len();
    let paths: Vec<PathBuf> = (0..n).map(|i| shard_path(&args.output, i, n)).collect();
    write(&shards, &paths, "splitting", args.dry_run, args.quiet)
}

/// Runs `mmq merge`.
pub fn merge(args: &MergeArgs) -> Result<()> {
    let gguf = Gguf::open(&args.input)?;
    let shards = Shards::merge(&gguf)?;
    write(&shards, std::slice::from_ref(&args.output), "merging", args.dry_run, args.quiet)
}

fn write(shards: &Shards, paths: &[PathBuf], what: &'static str, dry_run: bool, quiet: bool) -> Result<()> {
    if !dry_run {
        let cancel = catch_ctrl_c()?;
        let progress = Progress::new(!quiet);
        progress.start_long(what);
        shards.write(paths, &cancel, &mut |done| progress.set(done))?;
    }
    if !quiet {
        for (path, (n_tensors, bytes)) in paths.iter().zip(shards.files()?) {
            say(&format!("{}: {n_tensors} tensors, {}B", path.display(), scaled(bytes)));
        }
    }
    Ok(())
}
