//! Tokenizers from GGUF metadata.

use crate::Result;
use crate::gguf::Metadata;

/// A vocabulary and the way text becomes its tokens.
pub struct Tokenizer {}

#[allow(unused_variables)]
impl Tokenizer {
    /// Reads `tokenizer.ggml.*`.
    pub fn from_gguf(metadata: &Metadata) -> Result<Tokenizer> {
        todo!()
    }
    /// Tokens of `text`. `add_special`: BOS/EOS as the file asks for; `parse_special`: control tokens written out in
    /// the text become those tokens.
    pub fn encode(&self, text: &str, add_special: bool, parse_special: bool) -> Vec<u32> {
        todo!()
    }
    /// The bytes of one token; control tokens are empty unless `special`.
    pub fn piece(&self, token: u32, special: bool) -> Vec<u8> {
        todo!()
    }
    /// Whether the model ends its turn with `token` (EOS, EOT, EOM and their like).
    pub fn is_eog(&self, token: u32) -> bool {
        todo!()
    }
    /// Number of tokens.
    pub fn n_vocab(&self) -> usize {
        todo!()
    }
    /// Beginning of sequence.
    pub fn bos(&self) -> Option<u32> {
        todo!()
    }
    /// End of sequence.
    pub fn eos(&self) -> Option<u32> {
        todo!()
    }
}

/// Turns tokens into text as they come, never splitting a UTF-8 character.
pub struct StreamDecoder<'a> {
    tokenizer: &'a Tokenizer,
}

#[allow(unused_variables)]
impl<'a> StreamDecoder<'a> {
    /// A decoder at the start of a text.
    pub fn new(tokenizer: &'a Tokenizer) -> Self {
        StreamDecoder { tokenizer }
    }
    /// The text that `token` completes; empty while a character is still open.
    pub fn push(&mut self, token: u32) -> String {
        todo!()
    }
    /// What is left at the end; broken bytes become U+FFFD.
    pub fn finish(&mut self) -> String {
        todo!()
    }
}
