//! `mmq tokenize`: the tokens of a text, as `llama-tokenize` prints them.

use super::{printed, read_text};
use crate::gguf::Gguf;
use crate::text::Tokenizer;
use crate::{Result, bail};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Show the tokens of a text.
#[derive(clap::Args)]
pub struct Args {
    /// Model whose tokenizer to use.
    #[arg(short = 'm', long, value_name = "FILE")]
    model: PathBuf,
    /// The text.
    #[arg(short = 'p', long, value_name = "TEXT", allow_hyphen_values = true, group = "text")]
    prompt: Option<String>,
    /// File with the text; `-` is the standard input.
    #[arg(short = 'f', long, value_name = "FILE", group = "text")]
    file: Option<PathBuf>,
    /// Read the text from the standard input.
    #[arg(long, group = "text")]
    stdin: bool,
    /// Print only the ids: `[1, 2, 3]`.
    #[arg(long)]
    ids: bool,
    /// Add no BOS token.
    #[arg(long)]
    no_bos: bool,
    /// Take control tokens written out in the text as plain text.
    #[arg(long)]
    no_parse_special: bool,
    /// Print a JSON array of `{"id", "piece"}`; pieces that are no UTF-8 have a `"bytes"` array too.
    #[arg(long, conflicts_with = "ids")]
    json: bool,
    /// Print the number of tokens at the end.
    #[arg(long, conflicts_with = "json")]
    show_count: bool,
}

pub fn run(args: &Args) -> Result<()> {
    let text = text(args)?;
    let gguf = Gguf::open(&args.model)?;
    let tokenizer = Tokenizer::from_gguf(gguf.metadata())?;
    // As llama-tokenize: without BOS no EOS either.
    let add_special = tokenizer.add_bos() && !args.no_bos;
    let tokens = tokenizer.encode(&text, add_special, !args.no_parse_special);
    printed(write(args, &tokenizer, &tokens, std::io::stdout().lock()))
}

fn text(args: &Args) -> Result<String> {
    match (&args.prompt, &args.file) {
        (Some(prompt), _) => Ok(prompt.clone()),
        (None, Some(file)) => read_text(file),
        (None, None) if args.stdin => read_text(Path::new("-")),
        (None, None) => bail!(Usage, "give a text: --prompt TEXT, --file FILE or --stdin"),
    }
}

fn write(args: &Args, tokenizer: &Tokenizer, tokens: &[u32], out: impl Write) -> std::io::Result<()> {
    let mut out = std::io::BufWriter::new(out);
    if args.json {
        let list: Vec<_> = tokens.iter().map(|&id| entry(id, tokenizer.piece(id, true))).collect();
        writeln!(out, "{}", serde_json::Value::Array(list))?;
    } else if args.ids {
        let list: Vec<String> = tokens.iter().map(u32::to_string).collect();
        writeln!(out, "[{}]", list.join(", "))?;
    } else {
        for &id in tokens {
            write!(out, "{id:6} -> '")?;
            out.write_all(&tokenizer.piece(id, true))?;
            writeln!(out, "'")?;
        }
    }
    if args.show_count {
        writeln!(out, "Total number of tokens: {}", tokens.len())?;
    }
    out.flush()
}

fn entry(id: u32, piece: Vec<u8>) -> serde_json::Value {
    match String::from_utf8(piece) {
        Ok(piece) => serde_json::json!({ "id": id, "piece": piece }),
        Err(error) => {
            let bytes = error.into_bytes();
            serde_json::json!({ "id": id, "piece": String::from_utf8_lossy(&bytes), "bytes": bytes })
        }
    }
}
