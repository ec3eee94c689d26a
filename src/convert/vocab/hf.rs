//! Hugging Face's `tokenizer.json`: byte-level BPE, and SentencePiece's BPE in that form.

use super::{ADDED_SCORE, Vocab, added_tokens_decoder, kind, pre};
use crate::convert::config::Json;
use crate::{Result, bail};
use serde_json::Value as Any;
use std::collections::HashMap;

/// Reads the vocabulary for a table of `n_vocab` tokens.
pub(super) fn read(
    json: &Json,
    settings: &Json,
    n_vocab: usize,
    pre: Option<&str>,
    left_out: &mut usize,
    notes: &mut Vec<String>,
) -> Result<Vocab> {
    let model = json.require_section("model")?;
    match model.str("type")? {
        None | Some("BPE") => {}
        Some(other) => bail!(Unsupported, "{}: expected BPE, got {other}", model.at("type")),
    }
    let bytes_as_tokens = model.bool("byte_fallback")? == Some(true);
    let mut vocab = Vocab::padding(if bytes_as_tokens { "llama" } else { "gpt2" }, n_vocab);
    let merges = merges(&model)?;
    let mut added = Vec::new();
    for token in json.list("added_tokens")?.unwrap_or_default() {
        let (id, text) = (token.get("id").and_then(Any::as_u64), token.get("content").and_then(Any::as_str));
        let (Some(id), Some(text)) = (id.and_then(|id| usize::try_from(id).ok()), text) else {
            bail!(Format, "{}: expected tokens with id and content, got {token}", json.at("added_tokens"));
        };
        added.push((id, text.to_string(), token.get("special").and_then(Any::as_bool) == Some(true)));
    }
    let known: Vec<usize> = added.iter().map(|(id, ..)| *id).collect();
    added.extend(added_tokens_decoder(settings)?.into_iter().filter(|(id, ..)| !known.contains(id)));
    let words = model.require_section("vocab")?;
    let scores = if bytes_as_tokens { scores(&words, &merges, &added) } else { HashMap::new() };
    for (token, id) in words.entries() {
        let Some(id) = id.as_u64().and_then(|id| usize::try_from(id).ok()) else {
            bail!(Format, "{}: expected an id, got {id}", words.at(token));
        };
        let is_byte = bytes_as_tokens && is_byte(token);
        let kind = if is_byte { kind::BYTE } else { kind::NORMAL };
        let score = scores.get(token).copied().unwrap_or(if is_byte { 0.0 } else { ADDED_SCORE });
        vocab.set(id, token, score, kind, left_out);
    }
    for (id, token, special) in added {
        vocab.set_added(id, &token, special, left_out);
    }
    if bytes_as_tokens {
        if pre.is_some() {
            bail!(Usage, "--pre is for byte-level BPE; {} is SentencePiece's", json.file());
        }
        vocab.add_space_prefix = space_prefix(json)?.filter(|add| !add);
        if let Some(unk) = model.str("unk_token")? {
            let id = vocab.tokens.iter().position(|token| token == unk);
            vocab.own_ids.extend(id.map(|id| ("unk", id)));
        }
        return Ok(vocab);
    }
    if merges.is_empty() {
        bail!(Format, "{}: there are no merges", model.at("merges"));
    }
    vocab.pre = match pre {
        Some(name) => name.to_string(),
        None => pre::name(json, model.bool("ignore_merges")? == Some(true))?.to_string(),
    };
    if let Some(normalizer) = json.section("normalizer")? {
        let kind = normalizer.str("type")?.unwrap_or("unknown");
        notes.push(format!("the tokenizer normalizes text ({kind}), which GGUF's `gpt2` tokenizer does not"));
    }
    // GPT-2's alphabet has a letter for the space.
    let spell = |part: &str| part.replace(' ', "Ġ");
    vocab.merges = merges.iter().map(|(a, b)| format!("{} {}", spell(a), spell(b))).collect();
    Ok(vocab)
}

/// The merges in order: texts with a space between, or pairs.
fn merges(model: &Json) -> Result<Vec<(String, String)>> {
    let pair = |merge: &Any| -> Option<(String, String)> {
        match merge {
            Any::String(text) => {
                let (a, b) = text.split_once(' ')?;
                Some((a.to_string(), b.to_string()))
            }
            Any::Array(pair) => match pair.as_slice() {
                [Any::String(a), Any::String(b)] => Some((a.clone(), b.clone())),
                _ => None,
            },
            _ => None,
        }
    };
    let mut merges = Vec::new();
    for merge in model.list("merges")?.unwrap_or_default() {
        match pair(merge) {
            Some(pair) => merges.push(pair),
            None => bail!(Format, "{}: expected pairs of tokens, got {merge}", model.at("merges")),
        }
    }
    Ok(merges)
}

/// SentencePiece's scores: minus the place of the first merge that makes a token among those of all; then the rest in the
/// order of their ids. For LLaMA's vocabulary these are the scores of its `tokenizer.model`.
fn scores(words: &Json, merges: &[(String, String)], added: &[(usize, String, bool)]) -> HashMap<String, f32> {
    let mut scores: HashMap<String, f32> = HashMap::new();
    for (a, b) in merges {
        let n = scores.len();
        scores.entry(format!("{a}{b}")).or_insert(-(n as f32));
    }
    let mut rest: Vec<(u64, &str)> = words
        .entries()
        .filter(|(token, _)| {
            !scores.contains_key(*token) && !is_byte(token) && added.iter().all(|(_, t, _)| t != token)
        })
        .filter_map(|(token, id)| Some((id.as_u64()?, token)))
        .collect();
    rest.sort_unstable();
    for (_, token) in rest {
        let n = scores.len();
        scores.insert(token.to_string(), -(n as f32));
    }
    scores
}

/// Whether a token stands for a byte: `<0x0A>`.
fn is_byte(token: &str) -> bool {
    let hex = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
    hex.is_some_and(|hex| hex.len() == 2 && hex.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// Whether a word's beginning is put in front of a text, if the file says.
fn space_prefix(json: &Json) -> Result<Option<bool>> {
    let kinds = |section: Option<Json>, list: &str| -> Result<Vec<Any>> {
        let Some(section) = section else { return Ok(Vec::new()) };
        Ok(match section.list(list)? {
            Some(several) => several.to_vec(),
            None => vec![Any::Object(section.entries().map(|(k, v)| (k.to_string(), v.clone())).collect())],
        })
    };
    let is = |one: &Any, name: &str| one.get("type").and_then(Any::as_str) == Some(name);
    let normalizers = kinds(json.section("normalizer")?, "normalizers")?;
    let pre_tokenizers = kinds(json.section("pre_tokenizer")?, "pretokenizers")?;
    if let Some(metaspace) = pre_tokenizers.iter().find(|one| is(one, "Metaspace")) {
        return Ok(match metaspace.get("prepend_scheme").and_then(Any::as_str) {
            Some(scheme) => Some(scheme != "never"),
            None => metaspace.get("add_prefix_space").and_then(Any::as_bool),
        });
    }
    Ok((!normalizers.is_empty()).then(|| normalizers.iter().any(|one| is(one, "Prepend"))))
}
