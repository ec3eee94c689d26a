//! `mmq tokenize`.

use crate::Result;

/// Shows the tokens of a text.
#[derive(clap::Args)]
pub struct Args {}

pub fn run(_args: &Args) -> Result<()> {
    todo!()
}
