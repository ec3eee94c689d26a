//! The vocabulary: texts, kinds and scores of tokens, the special ones among them, and the index from text to token.
//! Knows nothing of how a text is cut into tokens.

use super::source::Source;
use crate::{Result, bail};

/// What a token is, as bits: a token may be normal *and* control when its text gives it away.
pub(super) mod kind {
    pub const UNKNOWN: u16 = 1;
    pub const UNUSED: u16 = 2;
    pub const NORMAL: u16 = 4;
    pub const CONTROL: u16 = 8;
    pub const USER_DEFINED: u16 = 16;
    pub const BYTE: u16 = 32;
    /// Whitespace on its left belongs to it.
    pub const LSTRIP: u16 = 64;
    /// Whitespace on its right belongs to it.
    pub const RSTRIP: u16 = 128;
    /// Cut out of the text before the algorithm runs.
    pub const SPECIAL: u16 = CONTROL | USER_DEFINED | UNKNOWN;
}

/// Texts after which a model's turn is over, whatever the metadata say (the list that llama.cpp keeps).
const EOG_TEXTS: &[&str] = &[
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<｜end▁of▁sentence｜>",
    "[e~[",
];

/// Fill-in-the-middle tokens that end a generation (padding, repository, file separator), by text.
const FIM_EOG_TEXTS: &[&[&str]] = &[
    &["<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"],
    &["<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"],
    &["<|file_sep|>"],
];

/// Fill-in-the-middle tokens that are control tokens but end nothing, by text.
const FIM_TEXTS: &[&[&str]] = &[
    &[
        "<|fim_prefix|>",
        "<fim-prefix>",
        "<fim_prefix>",
        "<｜fim▁begin｜>",
        "<PRE>",
        "▁<PRE>",
        "<|code_prefix|>",
        "<|prefix|>",
    ],
    &[
        "<|fim_suffix|>",
        "<fim-suffix>",
        "<fim_suffix>",
        "<｜fim▁hole｜>",
        "<SUF>",
        "▁<SUF>",
        "<|code_suffix|>",
        "<|suffix|>",
    ],
    &[
        "<|fim_middle|>",
        "<fim-middle>",
        "<fim_middle>",
        "<｜fim▁end｜>",
        "<MID>",
        "▁<MID>",
        "<|code_middle|>",
        "<|middle|>",
    ],
];

/// Tokens with their kinds, scores and special roles.
pub(super) struct Vocab {
    /// All texts, one after another.
    text: String,
    /// Where each token's text ends in `text`.
    ends: Vec<u32>,
    pub kinds: Vec<u16>,
    pub scores: Vec<f32>,
    index: Index,
    /// Longest text in bytes.
    pub max_len: usize,
    pub bos: Option<u32>,
    pub eos: Option<u32>,
    pub unk: Option<u32>,
    /// Sorted.
    pub eog: Vec<u32>,
    /// Never to be chosen.
    pub suppressed: Vec<u32>,
}

impl Vocab {
    /// Checks the arrays and finds the special tokens.
    pub fn new(source: &Source) -> Result<Vocab> {
        let file = &source.file;
        let n = source.tokens.len();
        if n == 0 {
            bail!(Format, "{file}: tokenizer.ggml.tokens: expected at least one token, got none");
        }
        if n > i32::MAX as usize {
            bail!(Format, "{file}: tokenizer.ggml.tokens: expected fewer than 2^31 tokens, got {n}");
        }
        if let Some(scores) = &source.scores
            && scores.len() < n
        {
            bail!(Format, "{file}: tokenizer.ggml.scores: expected {n} scores, got {}", scores.len());
        }
        if let Some(types) = &source.types
            && types.len() < n
        {
            bail!(Format, "{file}: tokenizer.ggml.token_type: expected {n} types, got {}", types.len());
        }
        let total: usize = source.tokens.iter().map(|t| t.len()).sum();
        // Empty tokens get a name of up to 20 bytes each.
        if total.saturating_add(n.saturating_mul(20)) > u32::MAX as usize {
            bail!(Format, "{file}: tokenizer.ggml.tokens: {total} bytes of text are more than 4 GiB");
        }

        let mut text = String::with_capacity(total);
        let mut ends = Vec::with_capacity(n);
        let mut max_len = 0;
        for (id, token) in source.tokens.iter().enumerate() {
            let start = text.len();
            if token.is_empty() {
                text.push_str(&format!("[EMPTY_{id}]"));
            } else {
                text.push_str(token);
            }
            max_len = max_len.max(text.len() - start);
            ends.push(text.len() as u32);
        }
        let kinds = (0..n).map(|id| kind_of(source, id)).collect();
        let scores = match &source.scores {
            Some(scores) => scores[..n].to_vec(),
            None => vec![0.0; n],
        };
        let index = Index::new(&text, &ends);
        let mut vocab = Vocab {
            text,
            ends,
            kinds,
            scores,
            index,
            max_len,
            bos: None,
            eos: None,
            unk: None,
            eog: Vec::new(),
            suppressed: Vec::new(),
        };
        vocab.find_special(source)?;
        Ok(vocab)
    }

    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// The text of token `id`, which must be in range.
    pub fn token(&self, id: u32) -> &str {
        text_of(&self.text, &self.ends, id as usize)
    }

    /// The token whose text is `text`.
    pub fn id(&self, text: &str) -> Option<u32> {
        if text.len() > self.max_len {
            return None;
        }
        self.index.get(&self.text, &self.ends, text)
    }

    /// Whether token `id` has any of the bits `mask`.
    pub fn is(&self, id: u32, mask: u16) -> bool {
        self.kinds[id as usize] & mask != 0
    }

    /// The token that stands for a raw byte: `<0x0A>`.
    pub fn byte_token(&self, byte: u8) -> Option<u32> {
        self.id(&format!("<0x{byte:02X}>"))
    }

    /// Fills `bos`, `eos`, `unk`, `eog`; corrects kinds by well-known texts.
    fn find_special(&mut self, source: &Source) -> Result<()> {
        let n = self.len() as u32;
        let default = |id: Option<u32>| id.filter(|&id| id < n);
        let given = |key: &str, id: Option<u64>, default: Option<u32>| -> Result<Option<u32>> {
            match id {
                None => Ok(default),
                Some(id) if id < n as u64 => Ok(Some(id as u32)),
                Some(id) => bail!(Format, "{}: tokenizer.ggml.{key}: expected an id below {n}, got {id}", source.file),
            }
        };
        let (bos, eos, unk) = source.default_ids();
        self.bos = given("bos_token_id", source.bos, default(bos))?;
        self.eos = given("eos_token_id", source.eos, default(eos))?;
        self.unk = given("unknown_token_id", source.unk, default(unk))?;
        self.suppressed =
            source.suppress.iter().filter_map(|&id| u32::try_from(id).ok()).filter(|&id| id < n).collect();
        let eot = given("eot_token_id", source.eot, None)?;
        let eom = given("eom_token_id", source.eom, None)?;

        let mut eog = Vec::new();
        for texts in FIM_TEXTS {
            if let Some(id) = texts.iter().find_map(|t| self.id(t)) {
                self.kinds[id as usize] |= kind::CONTROL;
            }
        }
        let fim = FIM_EOG_TEXTS.iter().map(|texts| texts.iter().find_map(|t| self.id(t)));
        eog.extend(fim.chain(EOG_TEXTS.iter().map(|t| self.id(t))).flatten());
        for &id in &eog {
            self.kinds[id as usize] |= kind::CONTROL;
        }
        // Shown to the reader of a gpt-oss answer, whatever the file says.
        for text in ["<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"] {
            if let Some(id) = self.id(text) {
                self.kinds[id as usize] = kind::USER_DEFINED;
            }
        }
        eog.extend([self.eos, eot, eom].into_iter().flatten());

        // Where a turn has finer ends, `<|end|>` only closes a part of it.
        let has = |text: &str| self.id(text).is_some_and(|id| eog.contains(&id));
        let calls = has("<|call|>") || has("<|calls|>");
        if calls
            && (has("<|return|>") || has("<|flush|>"))
            && let Some(id) = self.id("<|end|>")
        {
            eog.retain(|&e| e != id);
            self.kinds[id as usize] = kind::USER_DEFINED;
        }
        // Gemma 4 has an ordinary `</s>`, as in HTML.
        if self.id("<|tool_response>").is_some()
            && let Some(id) = self.id("</s>")
        {
            eog.retain(|&e| e != id);
            self.kinds[id as usize] = kind::NORMAL;
        }
        eog.sort_unstable();
        eog.dedup();
        self.eog = eog;

        let name = source.name.to_lowercase();
        if name.contains("phi-3") || name.contains("phi3") {
            for id in 0..n {
                if self.is(id, kind::SPECIAL) {
                    self.kinds[id as usize] |= kind::RSTRIP;
                }
            }
            for text in ["<unk>", "<s>", "<|endoftext|>"] {
                if let Some(id) = self.id(text) {
                    self.kinds[id as usize] &= !kind::RSTRIP;
                }
            }
        }
        if source.pre.starts_with("jina-v2")
            && let Some(id) = self.id("<mask>")
        {
            self.kinds[id as usize] |= kind::LSTRIP;
        }
        Ok(())
    }
}

/// The kind of token `id`: the file's, or without types what its text says.
fn kind_of(source: &Source, id: usize) -> u16 {
    if let Some(types) = &source.types {
        return match types[id] {
            1 => kind::NORMAL,
            2 => kind::UNKNOWN,
            3 => kind::CONTROL,
            4 => kind::USER_DEFINED,
            5 => kind::UNUSED,
            6 => kind::BYTE,
            _ => 0,
        };
    }
    // The oldest files have no types; their vocabulary is LLaMA's.
    match source.tokens[id].as_str() {
        "<unk>" => kind::UNKNOWN,
        "<s>" | "</s>" => kind::CONTROL,
        text if byte_of(text).is_some() => kind::BYTE,
        _ => kind::NORMAL,
    }
}

/// The byte that `<0x0A>` stands for.
pub(super) fn byte_of(text: &str) -> Option<u8> {
    let hex = text.strip_prefix("<0x")?.strip_suffix('>')?;
    if hex.len() == 2 && hex.bytes().all(|b| b.is_ascii_hexdigit()) { u8::from_str_radix(hex, 16).ok() } else { None }
}

fn text_of<'a>(text: &'a str, ends: &[u32], id: usize) -> &'a str {
    let start = if id == 0 { 0 } else { ends[id - 1] as usize };
    &text[start..ends[id] as usize]
}

/// Open-addressing hash table from text to token id that borrows the texts of the vocabulary.
struct Index {
    /// `id + 1`, 0 = free; a power of two of them, at most half full.
    slots: Vec<u32>,
}

impl Index {
    fn new(text: &str, ends: &[u32]) -> Index {
        let mut index = Index { slots: vec![0; (ends.len() * 2).next_power_of_two()] };
        for id in 0..ends.len() {
            let slot = index.slot(text, ends, text_of(text, ends, id));
            // Of two tokens with one text the later wins.
            index.slots[slot] = id as u32 + 1;
        }
        index
    }

    /// The slot that holds `key`, or the free one where it belongs.
    fn slot(&self, text: &str, ends: &[u32], key: &str) -> usize {
        let mask = self.slots.len() - 1;
        let mut slot = hash(key.as_bytes()) as usize & mask;
        loop {
            match self.slots[slot] {
                0 => return slot,
                id if text_of(text, ends, id as usize - 1) == key => return slot,
                _ => slot = (slot + 1) & mask,
            }
        }
    }

    fn get(&self, text: &str, ends: &[u32], key: &str) -> Option<u32> {
        self.slots[self.slot(text, ends, key)].checked_sub(1)
    }
}

/// A quick hash of short texts: eight bytes at a time, multiply and fold.
fn hash(bytes: &[u8]) -> u64 {
    let mut h = bytes.len() as u64;
    let mut mix = |word: u64| {
        let p = (h ^ word ^ 0x9E37_79B9_7F4A_7C15) as u128 * 0xA076_1D64_78BD_642F;
        h = (p as u64) ^ (p >> 64) as u64;
    };
    let mut chunks = bytes.chunks_exact(8);
    for chunk in &mut chunks {
        mix(u64::from_le_bytes(chunk.try_into().expect("chunks of 8")));
    }
    let mut last = [0; 8];
    last[..chunks.remainder().len()].copy_from_slice(chunks.remainder());
    mix(u64::from_le_bytes(last));
    h
}
