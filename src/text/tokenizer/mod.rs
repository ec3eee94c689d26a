//! Tokenizers from GGUF metadata: SentencePiece (`llama`) and byte-pair encoding (`gpt2`, `gemma4`).
//!
//! Same tokens as llama.cpp, whose special cases are followed where the metadata do not say.

mod bpe;
mod pre;
mod source;
mod special;
mod spm;
mod stream;
mod vocab;

#[cfg(test)]
mod tests;

use crate::Result;
use crate::gguf::Metadata;
use bpe::Bpe;
use pre::{Pre, byte_char, char_byte};
use source::{Model, Source};
use special::{Fragment, Parse, Specials};
use spm::Spm;
pub use stream::StreamDecoder;
use vocab::{Vocab, byte_of, kind};

/// A vocabulary and the way text becomes its tokens.
pub struct Tokenizer {
    vocab: Vocab,
    specials: Specials,
    algorithm: Algorithm,
    add_bos: bool,
    add_eos: bool,
    add_space_prefix: bool,
}

enum Algorithm {
    Spm(Spm),
    Bpe(Bpe),
}

impl Tokenizer {
    /// Reads `tokenizer.ggml.*`. An unknown `tokenizer.ggml.model` or `tokenizer.ggml.pre` is an
    /// [`Unsupported`](crate::ErrorKind::Unsupported) error that names it; arrays that do not fit each other are
    /// [`Format`](crate::ErrorKind::Format) errors.
    pub fn from_gguf(metadata: &Metadata) -> Result<Tokenizer> {
        Tokenizer::build(&Source::read(metadata)?)
    }

    fn build(source: &Source) -> Result<Tokenizer> {
        let pre = match source.model {
            Model::Spm => None,
            Model::Bpe => Some(Pre::new(&source.file, &source.pre)?),
        };
        let vocab = Vocab::new(source)?;
        let specials = Specials::new(&vocab);
        let (algorithm, add_bos, add_space_prefix) = match pre {
            None => (
                Algorithm::Spm(Spm::new(&vocab)),
                source.add_bos.unwrap_or(true),
                source.add_space_prefix.unwrap_or(true),
            ),
            Some(pre) => {
                let add_bos = pre.force_bos() || source.add_bos.unwrap_or(pre.add_bos());
                (Algorithm::Bpe(Bpe::new(&source.file, &vocab, source.merges.as_deref(), pre)?), add_bos, false)
            }
        };
        let add_eos = source.add_eos.unwrap_or(false);
        Ok(Tokenizer { vocab, specials, algorithm, add_bos, add_eos, add_space_prefix })
    }

    /// Tokens of `text`: only some when it is [stopped](mmq_kernels::stopped). `add_special`: BOS/EOS as the file asks for; `parse_special`: control tokens written out in
    /// the text become those tokens.
    pub fn encode(&self, text: &str, add_special: bool, parse_special: bool) -> Vec<u32> {
        self.encode_parsing(text, add_special, if parse_special { Parse::All } else { Parse::Only(&[]) })
    }

    /// Tokens of `text`, in which only the control tokens whose texts are among `tags` become those tokens.
    pub fn encode_tagged(&self, text: &str, tags: &[&str]) -> Vec<u32> {
        self.encode_parsing(text, false, Parse::Only(tags))
    }

    fn encode_parsing(&self, text: &str, add_special: bool, parse: Parse<'_>) -> Vec<u32> {
        let mut out = Vec::with_capacity(text.len() / 3 + 2);
        if add_special && self.add_bos {
            out.extend(self.vocab.bos);
        }
        let mut escaped = String::new();
        // SentencePiece sees a word's beginning at the start and behind every special token.
        let mut at_start = true;
        for fragment in self.specials.partition(&self.vocab, text, parse) {
            let piece = match fragment {
                Fragment::Token(id) => {
                    out.push(id);
                    at_start = true;
                    continue;
                }
                Fragment::Text(piece) => piece,
            };
            match &self.algorithm {
                Algorithm::Spm(spm) => {
                    escape(piece, at_start && self.add_space_prefix, &mut escaped);
                    spm.encode(&self.vocab, &escaped, &mut out);
                }
                Algorithm::Bpe(bpe) if bpe.pre().byte_encode() => bpe.encode(&self.vocab, piece, &mut out),
                Algorithm::Bpe(bpe) => {
                    escape(piece, false, &mut escaped);
                    bpe.encode(&self.vocab, &escaped, &mut out);
                }
            }
            at_start = false;
        }
        if add_special && self.add_eos {
            out.extend(self.vocab.eos);
        }
        out
    }

    /// The bytes of one token; control tokens are empty unless `special`, tokens beyond the vocabulary always.
    pub fn piece(&self, token: u32, special: bool) -> Vec<u8> {
        if token as usize >= self.vocab.len() {
            return Vec::new();
        }
        let text = self.vocab.token(token);
        if self.vocab.is(token, kind::CONTROL | kind::UNKNOWN) {
            return if special { text.as_bytes().to_vec() } else { Vec::new() };
        }
        if self.vocab.is(token, kind::USER_DEFINED) {
            return text.as_bytes().to_vec();
        }
        if self.vocab.is(token, kind::NORMAL) {
            return match &self.algorithm {
                Algorithm::Bpe(bpe) if bpe.pre().byte_encode() => unspell(text),
                _ => text.replace('▁', " ").into_bytes(),
            };
        }
        if self.vocab.is(token, kind::BYTE) {
            return byte_of(text).into_iter().collect();
        }
        Vec::new()
    }

    /// The bytes of `tokens`, one piece after another; control tokens are left out unless `special`.
    pub fn decode(&self, tokens: &[u32], special: bool) -> Vec<u8> {
        tokens.iter().flat_map(|&t| self.piece(t, special)).collect()
    }

    /// Whether the model ends its turn with `token` (EOS, EOT, EOM and their like).
    pub fn is_eog(&self, token: u32) -> bool {
        self.vocab.eog.binary_search(&token).is_ok()
    }

    /// All tokens that end a turn, in ascending order.
    pub fn eog_tokens(&self) -> &[u32] {
        &self.vocab.eog
    }

    /// Tokens that the file says must never be chosen.
    pub fn suppressed_tokens(&self) -> &[u32] {
        &self.vocab.suppressed
    }

    /// Number of tokens.
    pub fn n_vocab(&self) -> usize {
        self.vocab.len()
    }

    /// Beginning of sequence.
    pub fn bos(&self) -> Option<u32> {
        self.vocab.bos
    }

    /// End of sequence.
    pub fn eos(&self) -> Option<u32> {
        self.vocab.eos
    }

    /// Whether `encode` puts BOS first when asked for special tokens.
    pub fn add_bos(&self) -> bool {
        self.add_bos && self.vocab.bos.is_some()
    }

    /// Whether `encode` puts EOS last when asked for special tokens.
    pub fn add_eos(&self) -> bool {
        self.add_eos && self.vocab.eos.is_some()
    }

    /// Whether `text` writes BOS out at its start, so that parsing its control tokens gives one.
    pub fn begins_with_bos(&self, text: &str) -> bool {
        self.vocab.bos.is_some_and(|bos| text.starts_with(self.vocab.token(bos)))
    }

    /// The token whose text in the file is exactly `text` (`▁` and GPT-2's byte alphabet as they stand there).
    pub fn token_id(&self, text: &str) -> Option<u32> {
        self.vocab.id(text)
    }

    /// The text of `token` as it stands in the file; empty beyond the vocabulary.
    pub fn token_text(&self, token: u32) -> &str {
        if (token as usize) < self.vocab.len() { self.vocab.token(token) } else { "" }
    }
}

#[cfg(test)]
impl Tokenizer {
    /// A vocabulary of GPT-2's 256 bytes and `extra` control tokens, without merges: for tests of what uses tokens.
    pub(crate) fn bytes(extra: &[&str]) -> Tokenizer {
        Tokenizer::build(&tests::bpe("gpt-2", &[], &extra.iter().map(|t| (*t, 3)).collect::<Vec<_>>()))
            .expect("a sound vocabulary")
    }
}

/// SentencePiece's spelling of `text`: `▁` for spaces, one more in front if `prefix`.
fn escape(text: &str, prefix: bool, out: &mut String) {
    out.clear();
    if prefix {
        out.push('▁');
    }
    for (i, part) in text.split(' ').enumerate() {
        if i > 0 {
            out.push('▁');
        }
        out.push_str(part);
    }
}

/// The text that spells `bytes` in GPT-2's alphabet.
pub fn spell(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| byte_char(*byte)).collect()
}

/// The bytes that `text` spells in GPT-2's alphabet; characters outside it stand for themselves.
fn unspell(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    for c in text.chars() {
        match char_byte(c) {
            Some(byte) => bytes.push(byte),
            None => bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    bytes
}
