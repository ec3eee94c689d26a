//! SentencePiece's `tokenizer.model`: a protocol buffer, of which only the pieces and a few settings are read.
//!
//! The message: `sentencepiece_model.proto` of google/sentencepiece.

use super::{Vocab, kind};
use crate::{Error, Result, bail};
use std::path::Path;

/// The longest file that is read: the largest vocabularies take 5 MB.
const MAX_BYTES: u64 = 64 << 20;

/// A field's value.
enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    Float(f32),
}

/// The fields of a message, in order; `None` where it is damaged.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn varint(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let (first, rest) = self.0.split_first()?;
            self.0 = rest;
            value |= u64::from(first & 0x7F) << shift;
            if first & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    fn bytes(&mut self, n: usize) -> Option<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(bytes)
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Option<(u64, Field<'a>)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let mut field = || {
            let tag = self.varint()?;
            let value = match tag & 7 {
                0 => Field::Number(self.varint()?),
                1 => Field::Bytes(self.bytes(8)?),
                2 => {
                    let n = usize::try_from(self.varint()?).ok()?;
                    Field::Bytes(self.bytes(n)?)
                }
                5 => Field::Float(f32::from_le_bytes(*self.bytes(4)?.first_chunk()?)),
                _ => return None,
            };
            Some((tag >> 3, value))
        };
        let field = field();
        if field.is_none() {
            self.0 = &[];
        }
        Some(field)
    }
}

/// Reads the vocabulary of `path` for a table of `n_vocab` tokens.
pub(super) fn read(path: &Path, n_vocab: usize, left_out: &mut usize, notes: &mut Vec<String>) -> Result<Vocab> {
    let failed = |e| Error::io(path, &e);
    let length = std::fs::metadata(path).map_err(failed)?.len();
    if length > MAX_BYTES {
        bail!(Unsupported, "{}: {length} bytes, more than {MAX_BYTES}", path.display());
    }
    parse(&path.display().to_string(), &std::fs::read(path).map_err(failed)?, n_vocab, left_out, notes)
}

/// Reads the vocabulary `bytes`, which messages call `file`.
pub(super) fn parse(
    file: &str,
    bytes: &[u8],
    n_vocab: usize,
    left_out: &mut usize,
    notes: &mut Vec<String>,
) -> Result<Vocab> {
    let broken = "is no whole SentencePiece model";
    let mut vocab = Vocab::padding("llama", n_vocab);
    let (mut id, mut model_type) = (0, 1);
    for field in Fields(bytes) {
        match field {
            Some((1, Field::Bytes(piece))) => {
                let Some((text, score, kind)) = read_piece(piece) else {
                    bail!(Format, "{file}: {broken}: piece {id} is damaged");
                };
                let text = if kind == kind::USER_DEFINED { text.replace('▁', " ") } else { text.to_string() };
                vocab.set(id, &text, score, kind, left_out);
                id += 1;
            }
            Some((2, Field::Bytes(trainer))) => {
                for field in Fields(trainer) {
                    let Some((number, field)) = field else {
                        bail!(Format, "{file}: {broken}: its trainer_spec is damaged")
                    };
                    let Field::Number(value) = field else { continue };
                    let name = match number {
                        3 => {
                            model_type = value;
                            continue;
                        }
                        40 => "unk",
                        41 => "bos",
                        42 => "eos",
                        43 => "pad",
                        _ => continue,
                    };
                    // Minus one, for none, is a large number here.
                    vocab.own_ids.extend(usize::try_from(value).ok().filter(|id| *id < n_vocab).map(|id| (name, id)));
                }
            }
            Some((3, Field::Bytes(normalizer))) => {
                for field in Fields(normalizer) {
                    match field {
                        Some((3, Field::Number(0))) => vocab.add_space_prefix = Some(false),
                        Some((4, Field::Number(1))) => notes.push(
                            "the tokenizer takes away repeated spaces, which GGUF's `llama` tokenizer keeps".into(),
                        ),
                        Some((2, Field::Bytes(map))) if !map.is_empty() => notes.push(
                            "the tokenizer normalizes characters, which GGUF's `llama` tokenizer does not".into(),
                        ),
                        Some(_) => {}
                        None => bail!(Format, "{file}: {broken}: its normalizer_spec is damaged"),
                    }
                }
            }
            Some(_) => {}
            None => bail!(Format, "{file}: {broken}"),
        }
    }
    if id == 0 {
        bail!(Format, "{file}: {broken}: it has no pieces");
    }
    if model_type != 2 {
        let name = ["unigram", "bpe", "word", "char"].get((model_type as usize).wrapping_sub(1)).unwrap_or(&"unknown");
        bail!(Unsupported, "{file}: is of type {name}; GGUF's `llama` tokenizer is bpe");
    }
    Ok(vocab)
}

/// Text, score and type of a piece.
fn read_piece(bytes: &[u8]) -> Option<(&str, f32, i32)> {
    let (mut text, mut score, mut kind) = ("", 0.0, kind::NORMAL);
    for field in Fields(bytes) {
        match field? {
            (1, Field::Bytes(bytes)) => text = std::str::from_utf8(bytes).ok()?,
            (2, Field::Float(value)) => score = value,
            (3, Field::Number(value)) => kind = i32::try_from(value).ok().filter(|kind| (1..=6).contains(kind))?,
            _ => {}
        }
    }
    Some((text, score, kind))
}
