//! `mmq inspect`.

use crate::Result;

/// Shows what a GGUF file holds and what mmq can do with it.
#[derive(clap::Args)]
pub struct Args {}

pub fn run(_args: &Args) -> Result<()> {
    todo!()
}
