//! The `mmq` program: arguments in, text out. No tensor type in sight.

mod arguments;
mod inspect;
mod run;
mod tokenize;
mod verify;

use crate::{ErrorKind, Result};
use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// On-device multimodal models: a GGUF model and a picture in, tokens out.
#[derive(Parser)]
#[command(name = "mmq", version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Run(Box<run::Args>),
    Inspect(inspect::Args),
    Tokenize(tokenize::Args),
    Verify(verify::Args),
}

/// Runs the program on the process's arguments.
pub fn main() -> ExitCode {
    let cli = Cli::parse_from(arguments::long_spelling(std::env::args_os()));
    let result: Result<()> = match cli.command {
        Command::Run(args) => run::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Tokenize(args) => tokenize::run(&args),
        Command::Verify(args) => verify::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if error.kind() != ErrorKind::Cancelled {
                eprintln!("error: {error}");
            }
            exit_code(error.kind())
        }
    }
}

/// 2 for a wrong command line, 130 for Ctrl-C, 1 for the rest: what scripts around llama.cpp expect.
fn exit_code(kind: ErrorKind) -> ExitCode {
    match kind {
        ErrorKind::Usage => ExitCode::from(2),
        ErrorKind::Cancelled => ExitCode::from(130),
        _ => ExitCode::FAILURE,
    }
}
