//! From bytes of tokens to text, as they come.

use super::Tokenizer;

/// Turns tokens into text as they come, never splitting a UTF-8 character.
pub struct StreamDecoder<'a> {
    tokenizer: &'a Tokenizer,
    special: bool,
    /// Control tokens that are written out all the same.
    shown: Vec<u32>,
    /// The beginning of a character whose end has not come yet: at most three bytes.
    open: Vec<u8>,
}

impl<'a> StreamDecoder<'a> {
    /// A decoder at the start of a text; control tokens leave no trace in it.
    pub fn new(tokenizer: &'a Tokenizer) -> Self {
        StreamDecoder { tokenizer, special: false, shown: Vec::new(), open: Vec::new() }
    }

    /// The same decoder, which writes control tokens out if `special`.
    pub fn with_special(mut self, special: bool) -> Self {
        self.special = special;
        self
    }

    /// The same decoder, which writes the control tokens `shown` out.
    pub fn with_shown(mut self, shown: Vec<u32>) -> Self {
        self.shown = shown;
        self
    }

    /// The text that `token` completes; empty while a character is still open.
    pub fn push(&mut self, token: u32) -> String {
        self.open.extend(self.tokenizer.piece(token, self.special || self.shown.contains(&token)));
        let mut text = String::new();
        loop {
            match std::str::from_utf8(&self.open) {
                Ok(valid) => {
                    text.push_str(valid);
                    self.open.clear();
                    return text;
                }
                Err(error) => {
                    let (valid, rest) = self.open.split_at(error.valid_up_to());
                    text.push_str(&String::from_utf8_lossy(valid));
                    let Some(bad) = error.error_len() else {
                        self.open = rest.to_vec();
                        return text;
                    };
                    text.push(char::REPLACEMENT_CHARACTER);
                    self.open = rest[bad..].to_vec();
                }
            }
        }
    }

    /// What is left at the end; broken bytes become U+FFFD.
    pub fn finish(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.open)).into_owned()
    }
}
