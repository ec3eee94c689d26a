//! `mmq verify`.

use crate::Result;

/// Replays recorded activations and compares.
#[derive(clap::Args)]
pub struct Args {}

pub fn run(_args: &Args) -> Result<()> {
    todo!()
}
