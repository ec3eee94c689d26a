//! Which `tokenizer.ggml.pre` a `tokenizer.json` means: its pre-tokenizers, written in one way, looked up in a table.
//!
//! llama.cpp asks which tokens a test text becomes; the pattern itself tells as much, and does not need the vocabulary to be
//! a known one.

use crate::convert::config::Json;
use crate::{Result, bail};
use serde_json::Value as Any;

/// What is added to words in English, in the two ways that it is written.
const ENDINGS: [&str; 3] = [
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)",
    "'(?i:[sdmt]|ll|ve|re)",
    "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])",
];

/// Steps in a row, whether whole words skip the merges (where that matters), and the name.
type Kind = (&'static [&'static str], Option<bool>, &'static str);

const LLAMA3: &str = r"ENDINGS|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"ENDINGS|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+ENDINGS?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*ENDINGS?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const DEEPSEEK3: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##;
/// GPT-2's pattern, which is built into the byte-level step.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

const KINDS: &[Kind] = &[
    (&[LLAMA3], Some(true), "llama-bpe"),
    (&[LLAMA3], Some(false), "dbrx"),
    (&[QWEN2], None, "qwen2"),
    (&[TEKKEN], None, "tekken"),
    (&[GPT4O], None, "gpt-4o"),
    (&[GPT2], None, "gpt-2"),
    (&[r"\p{N}", GPT2], None, "smollm"),
    (&["<punctuation>", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"], None, "falcon"),
    (&[r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", DEEPSEEK3], None, "deepseek-v3"),
    (&[r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}"], None, "deepseek-coder"),
    (&[" ?[^(\\s|[.,!?…。，、।۔،])]+"], None, "bloom"),
    (&[" ?[^(\\s|[.,!?…。，、।۔،])]+", r"\p{N}"], None, "viking"),
];

/// The name for the tokenizer `json`.
pub(super) fn name(json: &Json, ignore_merges: bool) -> Result<&'static str> {
    let mut steps = Vec::new();
    if let Some(section) = json.section("pre_tokenizer")? {
        match section.list("pretokenizers")? {
            Some(several) => several.iter().try_for_each(|one| step(one, json, &mut steps))?,
            None => {
                let one = section.entries().map(|(k, v)| (k.to_string(), v.clone())).collect();
                step(&Any::Object(one), json, &mut steps)?;
            }
        }
    }
    let fits =
        |(known, merges, _): &&Kind| *known == steps.as_slice() && merges.is_none_or(|merges| merges == ignore_merges);
    match KINDS.iter().find(fits) {
        Some((.., name)) => Ok(name),
        None => bail!(
            Unsupported,
            "{}: the pre-tokenizer {steps:?} is none that has a known name; if you know what llama.cpp calls it, give --pre NAME",
            json.at("pre_tokenizer")
        ),
    }
}

/// Adds what `one` does, as a pattern.
fn step(one: &Any, json: &Json, steps: &mut Vec<String>) -> Result<()> {
    let flag = |key: &str| one.get(key).and_then(Any::as_bool);
    let at = json.at("pre_tokenizer");
    match one.get("type").and_then(Any::as_str).unwrap_or_default() {
        "ByteLevel" => {
            if flag("add_prefix_space") == Some(true) {
                bail!(Unsupported, "{at}: a space in front of each text, which GGUF's `gpt2` tokenizer does not add");
            }
            if flag("use_regex") != Some(false) {
                steps.push(GPT2.to_string());
            }
        }
        "Digits" => steps.push(if flag("individual_digits") == Some(true) { r"\p{N}" } else { r"\p{N}+" }.to_string()),
        "Punctuation" => steps.push("<punctuation>".to_string()),
        "Split" => {
            let pattern = one.get("pattern").and_then(|p| p.get("Regex").or_else(|| p.get("String"))?.as_str());
            let Some(pattern) = pattern else { bail!(Format, "{at}: a Split without its pattern") };
            steps.push(plain(pattern));
        }
        other => bail!(Unsupported, "{at}: \"{other}\" has no counterpart in GGUF; --pre NAME chooses one"),
    }
    Ok(())
}

/// The pattern without what makes no difference: possessive quantifiers and the ways to write [`ENDINGS`].
fn plain(pattern: &str) -> String {
    let pattern = ENDINGS.iter().fold(pattern.to_string(), |p, endings| p.replace(endings, "ENDINGS"));
    [("?+", "?"), ("++", "+"), ("*+", "*"), ("3}+", "3}")].iter().fold(pattern, |p, (from, to)| p.replace(from, to))
}
