//! Qwen's `qwen.tiktoken`: byte-level tokens with their ranks, from which the merges are made again. Special tokens are not in the
//! file but in the authors' code: they follow the last rank.

use super::{Vocab, kind};
use crate::convert::config;
use crate::text::tokenizer::spell;
use crate::{Result, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use std::collections::HashMap;
use std::path::Path;

/// The longest token that is taken: several times the longest there is.
const MAX_LEN: usize = 1 << 10;
/// Spare tokens, `<|extra_0|>` and so on.
const N_EXTRA: usize = 205;
/// What Qwen-VL has behind them.
const OF_PICTURES: [&str; 9] =
    ["<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>", "<img>", "</img>", "<imgpad>"];

/// Reads the vocabulary for a table of `n_vocab` tokens; `sees`: with the tokens of Qwen-VL.
pub(super) fn read(path: &Path, n_vocab: usize, sees: bool, left_out: &mut usize) -> Result<Vocab> {
    let text = config::read_text(path)?;
    let mut ranks: HashMap<Vec<u8>, usize> = HashMap::new();
    let mut tokens = Vec::new();
    for (i, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let at = format!("{}: line {}", path.display(), i + 1);
        let parts = line
            .split_once(' ')
            .and_then(|(token, rank)| Some((STANDARD.decode(token).ok()?, rank.trim().parse::<usize>().ok()?)));
        let Some((token, rank)) = parts.filter(|(token, _)| !token.is_empty() && token.len() <= MAX_LEN) else {
            bail!(Format, "{at}: expected a token in base64 and its rank");
        };
        if rank != tokens.len() || ranks.insert(token.clone(), rank).is_some() {
            bail!(Format, "{at}: expected a new token of rank {}, got {rank}", tokens.len());
        }
        tokens.push(token);
    }
    if let Some(byte) = (0..=u8::MAX).find(|byte| !ranks.contains_key([*byte].as_slice())) {
        bail!(Format, "{}: there is no token for byte {byte}", path.display());
    }
    let mut vocab = Vocab::padding("gpt2", n_vocab);
    vocab.pre = "qwen2".into();
    for (id, token) in tokens.iter().enumerate() {
        vocab.set(id, &spell(token), 0.0, kind::NORMAL, left_out);
        if token.len() == 1 {
            continue;
        }
        let Some(cut) = merge(&ranks, token, id) else {
            bail!(Format, "{}: token {id} is no merge of two earlier ones", path.display());
        };
        vocab.merges.push(format!("{} {}", spell(&token[..cut]), spell(&token[cut..])));
    }
    let names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"].map(str::to_string).into_iter();
    let names = names.chain((0..N_EXTRA).map(|i| format!("<|extra_{i}|>")));
    let names = names.chain(OF_PICTURES.into_iter().filter(|_| sees).map(str::to_string));
    for (i, name) in names.enumerate() {
        vocab.set(tokens.len() + i, &name, 0.0, kind::CONTROL, left_out);
    }
    vocab.own_ids = ["bos", "eos", "unk"].map(|name| (name, tokens.len())).to_vec();
    Ok(vocab)
}

/// Where `token`, of rank `rank`, is put together last: the merges of lower ranks leave two parts of it.
fn merge(ranks: &HashMap<Vec<u8>, usize>, token: &[u8], rank: usize) -> Option<usize> {
    let mut ends: Vec<usize> = (0..=token.len()).collect();
    while ends.len() > 3 {
        let pair = |i: usize| ranks.get(&token[ends[i]..ends[i + 2]]).map(|rank| (*rank, i + 1));
        let (lowest, at) = (0..ends.len() - 2).filter_map(pair).min()?;
        if lowest >= rank {
            return None;
        }
        ends.remove(at);
    }
    Some(ends[1])
}
