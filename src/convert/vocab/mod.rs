//! The tokenizer of a model's folder as `tokenizer.*`: SentencePiece's `tokenizer.model`, Hugging Face's `tokenizer.json`, or Qwen's
//! `qwen.tiktoken`.
//!
//! Keys are those that llama.cpp's converter writes. What comes out is loaded by mmq's own tokenizer before it is written.

mod hf;
mod pre;
mod sentencepiece;
mod tiktoken;

#[cfg(test)]
mod tests;

use super::config::{self, Json};
use crate::gguf::{Array, Metadata, Value};
use crate::text::Tokenizer;
use crate::{Result, bail};
use serde_json::Value as Any;
use std::collections::HashMap;
use std::path::Path;

/// `tokenizer.ggml.token_type`.
mod kind {
    pub const NORMAL: i32 = 1;
    pub const CONTROL: i32 = 3;
    pub const USER_DEFINED: i32 = 4;
    pub const UNUSED: i32 = 5;
    pub const BYTE: i32 = 6;
}

/// The score of a token that is never merged to.
const ADDED_SCORE: f32 = -1000.0;
/// The score of a row of the table that no token has.
const PADDING_SCORE: f32 = -10000.0;

/// A vocabulary, whichever file it is from.
#[derive(Debug)]
struct Vocab {
    /// `tokenizer.ggml.model`: `llama` or `gpt2`.
    model: &'static str,
    pre: String,
    tokens: Vec<String>,
    /// Of `llama` only.
    scores: Vec<f32>,
    types: Vec<i32>,
    /// Of `gpt2` only.
    merges: Vec<String>,
    add_space_prefix: Option<bool>,
    /// What the tokenizer's own file says: `bos`, `eos`, `unk`, `pad`.
    own_ids: Vec<(&'static str, usize)>,
}

impl Vocab {
    /// A vocabulary of `n` rows that no token has yet.
    fn padding(model: &'static str, n: usize) -> Vocab {
        Vocab {
            model,
            pre: "default".into(),
            tokens: (0..n).map(|id| format!("[PAD{id}]")).collect(),
            scores: vec![PADDING_SCORE; n],
            types: vec![kind::UNUSED; n],
            merges: Vec::new(),
            add_space_prefix: None,
            own_ids: Vec::new(),
        }
    }

    /// Sets a token, if the table has a row for it; counts in `left_out` those for which it has none.
    fn set(&mut self, id: usize, token: &str, score: f32, kind: i32, left_out: &mut usize) {
        match self.tokens.get_mut(id) {
            Some(row) => {
                *row = token.to_string();
                (self.scores[id], self.types[id]) = (score, kind);
            }
            None => *left_out += 1,
        }
    }

    /// Sets a token that was added to the vocabulary: never merged, found as it is written.
    fn set_added(&mut self, id: usize, token: &str, special: bool, left_out: &mut usize) {
        if special || looks_special(token) {
            self.set(id, token, ADDED_SCORE, kind::CONTROL, left_out);
        } else {
            // In the text that they are looked for in, spaces are spaces still.
            self.set(id, &token.replace('▁', " "), ADDED_SCORE, kind::USER_DEFINED, left_out);
        }
    }
}

/// Whether an added token is a control token, whatever its `special` says: some models' are.
fn looks_special(token: &str) -> bool {
    ["<pad>", "<mask>", "<2mass>", "[@BOS@]"].contains(&token)
        || (token.starts_with("<|") && token.ends_with("|>"))
        || (token.starts_with("<｜") && token.ends_with("｜>"))
        || (token.starts_with("<unused") && token.ends_with('>'))
}

/// What is written of a tokenizer.
pub(super) struct Written {
    pub keys: Vec<(String, Value)>,
    /// The tokenizer in a few words.
    pub words: String,
}

/// Reads the tokenizer of `dir` for a table of `n_vocab` tokens. `configs` are the objects of `config.json` that may name
/// special tokens, the most telling first; `pre` overrides what is found out about BPE.
pub(super) fn read(
    dir: &Path,
    configs: &[&Json],
    n_vocab: usize,
    pre: Option<&str>,
    notes: &mut Vec<String>,
) -> Result<Written> {
    let settings = Json::read_optional(&dir.join("tokenizer_config.json"))?;
    let tokenizer = Json::read_optional(&dir.join("tokenizer.json"))?;
    let generation = Json::read_optional(&dir.join("generation_config.json"))?;
    let model = dir.join("tokenizer.model");
    let has_json = tokenizer.entries().next().is_some();
    let mut left_out = 0;
    let from_model = match model.is_file() {
        true => match sentencepiece::read(&model, n_vocab, &mut left_out, notes) {
            // Llama 3's is another format of the same name.
            Err(error) if has_json => {
                notes.push(format!("{error}; tokenizer.json is used in its place"));
                None
            }
            result => Some(result?),
        },
        false => None,
    };
    let mut vocab = match from_model {
        Some(mut vocab) => {
            add_tokens(&mut vocab, dir, &settings, &mut left_out)?;
            vocab
        }
        None if has_json => hf::read(&tokenizer, &settings, n_vocab, pre, &mut left_out, notes)?,
        None if dir.join("qwen.tiktoken").is_file() => {
            let sees = configs.iter().any(|json| json.get("visual").is_some());
            tiktoken::read(&dir.join("qwen.tiktoken"), n_vocab, sees, &mut left_out)?
        }
        None if dir.join("tekken.json").is_file() => {
            bail!(
                Unsupported,
                "{}: Mistral's own format; convert it to tokenizer.json",
                dir.join("tekken.json").display()
            )
        }
        None => bail!(
            Io,
            "{}: holds no tokenizer: expected tokenizer.model, tokenizer.json or qwen.tiktoken",
            dir.display()
        ),
    };
    if left_out > 0 {
        notes.push(format!("{left_out} tokens have no row in the table of {n_vocab} and are left out"));
    }
    if let Some(add) = settings.bool("add_prefix_space")? {
        vocab.add_space_prefix = Some(add);
    }

    let mut keys: Vec<(String, Value)> = Vec::new();
    if let Some(add) = vocab.add_space_prefix {
        keys.push(("tokenizer.ggml.add_space_prefix".into(), add.into()));
    }
    let ids = special_ids(&vocab, &settings, dir, configs, &generation)?;
    let adds = added_around(&vocab, &tokenizer, &settings, &ids, notes)?;
    let mut set = |key: &str, value: Value| keys.push((format!("tokenizer.ggml.{key}"), value));
    set("model", vocab.model.into());
    set("pre", vocab.pre.as_str().into());
    let n_tokens = vocab.types.iter().filter(|kind| **kind != kind::UNUSED).count();
    let words = match vocab.model {
        "llama" => format!("SentencePiece, {n_tokens} tokens of {n_vocab}"),
        _ => format!("BPE \"{}\", {n_tokens} tokens of {n_vocab}, {} merges", vocab.pre, vocab.merges.len()),
    };
    set("tokens", vocab.tokens.into());
    if vocab.model == "llama" {
        set("scores", vocab.scores.into());
    }
    set("token_type", vocab.types.into());
    if vocab.model == "gpt2" {
        set("merges", vocab.merges.into());
    }
    for (key, id) in &ids {
        set(key, Value::U32(*id as u32));
    }
    for (key, add) in adds {
        set(key, add.into());
    }
    code_llama(n_vocab, &mut keys);
    template(dir, &settings, &mut keys)?;
    ends(configs, &generation, dir, &mut keys, notes)?;
    Ok(Written { keys, words })
}

/// Adds the tokens of `added_tokens.json` and of `tokenizer_config.json`.
fn add_tokens(vocab: &mut Vocab, dir: &Path, settings: &Json, left_out: &mut usize) -> Result<()> {
    let added = Json::read_optional(&dir.join("added_tokens.json"))?;
    for (token, _) in added.entries() {
        let id = added.usize(token)?.unwrap_or(usize::MAX);
        vocab.set(id, token, ADDED_SCORE, kind::USER_DEFINED, left_out);
    }
    for (id, token, special) in added_tokens_decoder(settings)? {
        vocab.set_added(id, &token, special, left_out);
    }
    Ok(())
}

/// The tokens under `added_tokens_decoder`: id, text, whether it is special.
fn added_tokens_decoder(settings: &Json) -> Result<Vec<(usize, String, bool)>> {
    let Some(section) = settings.section("added_tokens_decoder")? else { return Ok(Vec::new()) };
    let mut tokens = Vec::new();
    for (id, token) in section.entries() {
        let text = token.get("content").and_then(Any::as_str);
        let (Ok(id), Some(text)) = (id.parse(), text) else {
            bail!(Format, "{}: expected an id and a token with its content", section.at(id));
        };
        tokens.push((id, text.to_string(), token.get("special").and_then(Any::as_bool) == Some(true)));
    }
    Ok(tokens)
}

/// GGUF's keys of special tokens, by the names that Hugging Face's files have for them.
const SPECIAL: [(&str, &str); 7] = [
    ("bos", "bos_token_id"),
    ("eos", "eos_token_id"),
    ("unk", "unknown_token_id"),
    ("sep", "seperator_token_id"),
    ("pad", "padding_token_id"),
    ("cls", "cls_token_id"),
    ("mask", "mask_token_id"),
];

/// The text under `key`: a text, or an object with its content.
fn token_text<'a>(json: &'a Json, key: &str) -> Option<&'a str> {
    let value = json.get(key)?;
    value.as_str().or_else(|| value.get("content")?.as_str())
}

/// The ids of the special tokens: by their texts, else as the configurations say, else as the tokenizer's file does.
fn special_ids(
    vocab: &Vocab,
    settings: &Json,
    dir: &Path,
    configs: &[&Json],
    generation: &Json,
) -> Result<Vec<(&'static str, usize)>> {
    let map = Json::read_optional(&dir.join("special_tokens_map.json"))?;
    // Of two tokens with one text the later is the added one.
    let by_text: HashMap<&str, usize> = vocab.tokens.iter().enumerate().map(|(id, t)| (t.as_str(), id)).collect();
    let mut ids = Vec::new();
    for (name, key) in SPECIAL {
        let text = |json| token_text(json, &format!("{name}_token")).and_then(|text| by_text.get(text)).copied();
        let number = |json: &&Json| json.get(&format!("{name}_token_id")).and_then(Any::as_u64).map(|id| id as usize);
        let own = || {
            let default = [("bos", 1), ("eos", 2), ("unk", 0)];
            let own = vocab.own_ids.iter().copied().find(|own| own.0 == name);
            own.filter(|own| !default.contains(own)).map(|own| own.1)
        };
        let id = text(settings).or_else(|| text(&map));
        let id = id.or_else(|| configs.iter().chain([&generation]).find_map(number)).or_else(own);
        ids.extend(id.filter(|id| *id < vocab.tokens.len()).map(|id| (key, id)));
    }
    Ok(ids)
}

/// Which tokens the tokenizer puts around a text: the template of `tokenizer.json`, else `tokenizer_config.json`.
fn added_around(
    vocab: &Vocab,
    tokenizer: &Json,
    settings: &Json,
    ids: &[(&'static str, usize)],
    notes: &mut Vec<String>,
) -> Result<Vec<(&'static str, bool)>> {
    let text_of = |key: &str| ids.iter().find(|(k, _)| *k == key).map(|(_, id)| vocab.tokens[*id].as_str());
    let (bos, eos, sep) = (text_of("bos_token_id"), text_of("eos_token_id"), text_of("seperator_token_id"));
    let (mut add_bos, mut add_eos, mut add_sep) = (None, None, None);
    let processor = tokenizer.section("post_processor")?;
    let processors: Vec<Any> = match &processor {
        Some(one) => match one.list("processors")? {
            Some(several) => several.to_vec(),
            None => vec![Any::Object(one.entries().map(|(k, v)| (k.to_string(), v.clone())).collect())],
        },
        None => Vec::new(),
    };
    for processor in &processors {
        match processor.get("type").and_then(Any::as_str) {
            Some("ByteLevel") => {
                add_bos = add_bos.or(Some(false));
                add_eos = add_eos.or(Some(false));
            }
            Some("TemplateProcessing") => {
                let parts = |key| processor.get(key).and_then(Any::as_array).map_or(&[][..], Vec::as_slice);
                let special = |part: Option<&Any>| -> Option<String> {
                    Some(part?.get("SpecialToken")?.get("id")?.as_str()?.to_string())
                };
                let is_sequence =
                    |part: &Any, id: &str| part.get("Sequence").and_then(|p| p.get("id")?.as_str()) == Some(id);
                let single = parts("single");
                let (mut first, mut last) = (None, None);
                if single.len() > 1 {
                    (first, last) = (special(single.first()), special(single.last()));
                    for (token, known, add, what) in
                        [(&first, bos, &mut add_bos, "first"), (&last, eos, &mut add_eos, "last")]
                    {
                        let Some(token) = token else { continue };
                        *add = Some(known == Some(token.as_str()));
                        if *add == Some(false) {
                            notes.push(format!("the tokenizer puts {token:?} {what}, which GGUF cannot say"));
                        }
                    }
                }
                let pair = parts("pair");
                let start = usize::from(first.is_some() && special(pair.first()) == first);
                let end = pair.len() - usize::from(last.is_some() && special(pair.last()) == last);
                let pair = pair.get(start..end).unwrap_or_default();
                if let [a, middle @ .., b] = pair
                    && is_sequence(a, "A")
                    && is_sequence(b, "B")
                    && !middle.is_empty()
                {
                    let separates =
                        |token: Option<String>| token.is_some_and(|token| [sep, eos].contains(&Some(token.as_str())));
                    let once = separates(special(middle.first())) && last.is_none();
                    add_sep = Some(once || (middle.len() == 2 && separates(special(middle.get(1)))));
                }
            }
            _ => {}
        }
    }
    let mut adds = Vec::new();
    for (key, name, add) in
        [("add_bos_token", "bos", add_bos), ("add_eos_token", "eos", add_eos), ("add_sep_token", "sep", add_sep)]
    {
        let add = match add {
            None => settings.bool(&format!("add_{name}_token"))?,
            add => add,
        };
        adds.extend(add.map(|add| (key, add)));
    }
    Ok(adds)
}

/// The tokens between which CodeLlama fills in, and Granite's missing BOS: known by the size of the vocabulary alone.
fn code_llama(n_vocab: usize, keys: &mut Vec<(String, Value)>) {
    let mut set = |key: &str, value: Value| {
        keys.retain(|(k, _)| k.strip_prefix("tokenizer.ggml.") != Some(key));
        keys.push((format!("tokenizer.ggml.{key}"), value));
    };
    if n_vocab == 32016 {
        for (key, id) in [("prefix", 32007u32), ("suffix", 32008), ("middle", 32009), ("eot", 32010)] {
            set(&format!("{key}_token_id"), id.into());
        }
    }
    if n_vocab == 49152 {
        set("add_bos_token", false.into());
    }
}

/// The chat template: a file of its own, or in `tokenizer_config.json`; of several the default one.
fn template(dir: &Path, settings: &Json, keys: &mut Vec<(String, Value)>) -> Result<()> {
    let file = dir.join("chat_template.jinja");
    let alone = match file.is_file() {
        true => Some(config::read_text(&file)?),
        false => Json::read_optional(&dir.join("chat_template.json"))?.str("chat_template")?.map(str::to_string),
    };
    if let Some(text) = alone {
        keys.push(("tokenizer.chat_template".into(), text.into()));
        return Ok(());
    }
    let several = match settings.get("chat_template") {
        Some(Any::String(text)) => {
            keys.push(("tokenizer.chat_template".into(), text.as_str().into()));
            return Ok(());
        }
        Some(Any::Array(several)) => several.as_slice(),
        _ => &[],
    };
    let mut names = Vec::new();
    let mut default = None;
    for choice in several {
        let text = |key| choice.get(key).and_then(Any::as_str);
        let (Some(name), Some(text)) = (text("name"), text("template")) else { continue };
        let name: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
        if name == "default" {
            default = Some(text);
        } else if !name.is_empty() && !names.contains(&name) {
            keys.push((format!("tokenizer.chat_template.{name}"), text.into()));
            names.push(name);
        }
    }
    if !names.is_empty() {
        keys.push(("tokenizer.chat_templates".into(), Value::Array(Array::String(names))));
    }
    keys.extend(default.map(|text| ("tokenizer.chat_template".to_string(), text.into())));
    Ok(())
}

/// Loads the tokenizer that was made, and adds the ends of an answer that it does not know by their texts.
fn ends(
    configs: &[&Json],
    generation: &Json,
    dir: &Path,
    keys: &mut Vec<(String, Value)>,
    notes: &mut Vec<String>,
) -> Result<()> {
    let tokenizer = Tokenizer::from_gguf(&Metadata::new(&dir.display().to_string(), keys.clone())?)?;
    let mut more = Vec::new();
    // `generate` goes by its own file where that says.
    let told = generation.get("eos_token_id").is_some();
    for json in configs.iter().copied().filter(|_| !told).chain([generation]) {
        let ids = match json.get("eos_token_id") {
            Some(Any::Array(ids)) => ids.iter().filter_map(Any::as_u64).collect(),
            Some(id) => id.as_u64().into_iter().collect(),
            None => Vec::new(),
        };
        more.extend(ids.into_iter().filter_map(|id| u32::try_from(id).ok()).filter(|id| !tokenizer.is_eog(*id)));
    }
    more.retain(|id| (*id as usize) < tokenizer.n_vocab());
    more.sort_unstable();
    more.dedup();
    let mut free = ["eot", "eom"].map(|end| format!("tokenizer.ggml.{end}_token_id")).into_iter();
    for id in more {
        match free.find(|key| keys.iter().all(|(k, _)| k != key)) {
            Some(key) => keys.push((key, id.into())),
            None => notes.push(format!("token {id} ends an answer too, which GGUF has no key for")),
        }
    }
    Ok(())
}
