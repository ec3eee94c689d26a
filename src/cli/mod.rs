//! The `mmq` program: arguments in, text out. No tensor type in sight.

mod arguments;
mod bench;
mod boxes;
mod convert;
mod image_tokens;
mod imatrix;
mod inspect;
mod pack;
mod perplexity;
mod plan;
mod quantize;
mod reading;
mod rows;
mod run;
mod split;
mod tokenize;
mod verify;

use crate::pipelines::Cancel;
use crate::{Error, ErrorKind, Result, bail};
use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand};
use std::ffi::OsString;
use std::io::{Read, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

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
    Bench(Box<bench::Args>),
    Boxes(boxes::Args),
    Perplexity(Box<perplexity::Args>),
    Plan(Box<plan::Args>),
    Convert(convert::Args),
    Imatrix(Box<imatrix::Args>),
    Inspect(inspect::Args),
    Pack(pack::Args),
    Quantize(Box<quantize::Args>),
    Split(split::SplitArgs),
    Merge(split::MergeArgs),
    Tokenize(tokenize::Args),
    Verify(verify::Args),
}

/// Runs the program on the process's arguments.
pub fn main() -> ExitCode {
    let command = Cli::command().mut_subcommand("run", run::Args::finish).mut_subcommand("plan", plan::Args::finish);
    let result = spell_out(&command, std::env::args_os().collect()).and_then(|spelled| {
        let matches = command.get_matches_from(spelled.arguments);
        start(&matches, spelled.notes)
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if error.kind() != ErrorKind::Cancelled {
                say(&format!("error: {error}"));
            }
            exit_code(error.kind())
        }
    }
}

/// The arguments as clap reads them; those of `mmq run` may be llama.cpp's, those of `mmq bench` llama-bench's.
fn spell_out(command: &clap::Command, arguments: Vec<OsString>) -> Result<arguments::Spelled> {
    let first = arguments.get(1).and_then(|first| first.to_str()).unwrap_or_default();
    if first.starts_with('-') && !["-h", "--help", "-V", "--version"].contains(&first) {
        bail!(Usage, "{first} without a command: `mmq run {first} …`, or `mmq --help`");
    }
    let flags = match first {
        "run" => arguments::RUN,
        "bench" => arguments::BENCH,
        "perplexity" => arguments::PERPLEXITY,
        "imatrix" => arguments::IMATRIX,
        "plan" => arguments::RUN,
        _ => return Ok(arguments::Spelled { arguments, notes: Vec::new() }),
    };
    let subcommand = command.find_subcommand(first).expect("it is a subcommand");
    let takes_value = |flag: &str| {
        subcommand.get_arguments().filter(|arg| arg.get_action().takes_values()).any(|arg| {
            match flag.strip_prefix("--") {
                Some(long) => arg
                    .get_long_and_visible_aliases()
                    .into_iter()
                    .flatten()
                    .chain(arg.get_all_aliases().into_iter().flatten())
                    .any(|name| name == long),
                None => flag
                    .strip_prefix('-')
                    .is_some_and(|short| arg.get_short().is_some_and(|c| short == c.encode_utf8(&mut [0; 4]))),
            }
        })
    };
    let mut arguments = arguments.into_iter();
    let head: Vec<_> = arguments.by_ref().take(2).collect();
    let mut spelled = arguments::spell_out(flags, arguments, takes_value)?;
    spelled.arguments.splice(..0, head);
    Ok(spelled)
}

fn start(matches: &ArgMatches, notes: Vec<String>) -> Result<()> {
    let cli = Cli::from_arg_matches(matches).map_err(|e| Error::new(ErrorKind::Usage, e.to_string()))?;
    match cli.command {
        Command::Run(args) => run::run(&args, &notes),
        Command::Bench(args) => bench::run(&args, &notes),
        Command::Boxes(args) => boxes::run(&args),
        Command::Perplexity(args) => perplexity::run(&args, &notes),
        Command::Plan(args) => plan::run(&args, &notes),
        Command::Convert(args) => convert::run(&args),
        Command::Imatrix(args) => imatrix::run(&args, &notes),
        Command::Inspect(args) => inspect::run(&args),
        Command::Pack(args) => pack::run(&args),
        Command::Quantize(args) => quantize::run(&args),
        Command::Split(args) => split::split(&args),
        Command::Merge(args) => split::merge(&args),
        Command::Tokenize(args) => tokenize::run(&args),
        Command::Verify(args) => verify::run(&args),
    }
}

/// What Ctrl-C stops. The first waits for the layer at work; the second ends the program at once.
fn catch_ctrl_c() -> Result<Cancel> {
    let cancel = Cancel::default();
    let handler = cancel.clone();
    let handler = move || {
        if handler.is_cancelled() {
            std::process::exit(130);
        }
        handler.cancel();
    };
    ctrlc::set_handler(handler).map_err(|e| Error::new(ErrorKind::Io, format!("Ctrl-C cannot be caught: {e}")))?;
    Ok(cancel)
}

/// What `-t` asks for; below 1 the program chooses.
fn n_threads(threads: i64) -> Option<usize> {
    usize::try_from(threads).ok().filter(|n| *n > 0)
}

/// `n` with a decimal prefix: `98.4 M`, `1.24 G`.
fn scaled(n: u64) -> String {
    match n {
        0..1_000 => format!("{n} "),
        1_000..1_000_000 => format!("{:.1} k", n as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} M", n as f64 / 1e6),
        _ => format!("{:.2} G", n as f64 / 1e9),
    }
}

/// A time for people: `3.1 minutes`.
fn clock(time: Duration) -> String {
    match time.as_secs_f64() {
        s if s < 60.0 => format!("{s:.1} seconds"),
        s if s < 3600.0 => format!("{:.1} minutes", s / 60.0),
        s => format!("{:.1} hours", s / 3600.0),
    }
}

/// What became of text for standard output. A reader that has gone away (`| head`) has seen enough.
fn printed(written: std::io::Result<()>) -> Result<()> {
    match written {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(Error::io("standard output", &e)),
        _ => Ok(()),
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

/// The text of a file, or of standard input for `-`.
fn read_text(path: &Path) -> Result<String> {
    let (name, bytes) = if path.as_os_str() == "-" {
        let mut bytes = Vec::new();
        let read = std::io::stdin().read_to_end(&mut bytes);
        ("standard input".to_owned(), read.map(|_| bytes))
    } else {
        (path.display().to_string(), std::fs::read(path))
    };
    String::from_utf8(bytes.map_err(|e| Error::io(&name, &e))?).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        Error::new(ErrorKind::Format, format!("{name}: expected UTF-8, got an invalid byte at offset {at}"))
    })
}

/// A line on standard error; nobody may be there to read it. It may quote a file, so that escapes are made visible.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{}", printable(line));
}

/// `text` with control characters escaped, but for ends of lines and tabs: it may quote a file.
fn printable(text: &str) -> String {
    let escape = |c: char| match c {
        '\n' | '\t' => c.to_string(),
        c if c.is_control() => c.escape_default().to_string(),
        c => c.to_string(),
    };
    text.chars().map(escape).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().mut_subcommand("run", run::Args::finish).debug_assert();
    }

    #[test]
    fn escapes_of_a_terminal_are_shown_as_such() {
        assert_eq!(printable("a\x1b[31mb\u{9b}c\td\n"), "a\\u{1b}[31mb\\u{9b}c\td\n");
    }

    #[test]
    fn prompts_may_look_like_flags() {
        let command = Cli::command();
        let line = ["mmq", "run", "--prompt", "-ngl", "-p", "-sys", "-n", "-1", "-ngl", "0"];
        let spelled = spell_out(&command, line.iter().map(OsString::from).collect()).unwrap();
        assert_eq!(spelled.arguments, ["mmq", "run", "--prompt", "-ngl", "-p", "-sys", "-n", "-1"]);
    }
}
