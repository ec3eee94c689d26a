//! Special and user-defined tokens written out in a text: found and cut out before the algorithm sees the rest.

use super::vocab::{Vocab, kind};

/// A part of a text.
pub(super) enum Fragment<'t> {
    Text(&'t str),
    Token(u32),
}

/// Which control tokens are taken for themselves where they are written out.
#[derive(Clone, Copy)]
pub(super) enum Parse<'a> {
    All,
    /// Those with these texts.
    Only(&'a [&'a str]),
}

/// The tokens that are cut out, ready for search.
pub(super) struct Specials {
    /// For each first byte the lengths of the special tokens that begin with it, ascending.
    lengths: Vec<Vec<u32>>,
}

impl Specials {
    pub fn new(vocab: &Vocab) -> Specials {
        let mut lengths = vec![Vec::new(); 256];
        for id in 0..vocab.len() as u32 {
            if vocab.is(id, kind::SPECIAL) {
                let text = vocab.token(id).as_bytes();
                lengths[text[0] as usize].push(text.len() as u32);
            }
        }
        for list in &mut lengths {
            list.sort_unstable();
            list.dedup();
        }
        Specials { lengths }
    }

    /// The special tokens that occur in `text`, longest first.
    fn present(&self, vocab: &Vocab, text: &str, parse: Parse<'_>) -> Vec<u32> {
        let mut found = Vec::new();
        for (at, &byte) in text.as_bytes().iter().enumerate() {
            for &len in &self.lengths[byte as usize] {
                let Some(candidate) = text.get(at..at + len as usize) else { continue };
                let Some(id) = vocab.id(candidate) else { continue };
                let control = vocab.is(id, kind::CONTROL | kind::UNKNOWN);
                let wanted = match parse {
                    Parse::All => true,
                    Parse::Only(tags) => !control || tags.contains(&candidate),
                };
                if vocab.is(id, kind::SPECIAL) && wanted && !found.contains(&id) {
                    found.push(id);
                }
            }
        }
        found.sort_by_key(|&id| (std::cmp::Reverse(vocab.token(id).len()), id));
        found
    }

    /// Cuts `text` at its special tokens: the longest token takes all its places first, then the next. Which control tokens
    /// count says `parse`; user-defined ones always do. No text fragment is empty.
    pub fn partition<'t>(&self, vocab: &Vocab, text: &'t str, parse: Parse<'_>) -> Vec<Fragment<'t>> {
        if text.is_empty() {
            return Vec::new();
        }
        let mut fragments = vec![Fragment::Text(text)];
        for id in self.present(vocab, text, parse) {
            let token = vocab.token(id);
            let mut next = Vec::with_capacity(fragments.len() + 2);
            for fragment in fragments {
                let Fragment::Text(mut rest) = fragment else {
                    next.push(fragment);
                    continue;
                };
                while let Some(at) = rest.find(token) {
                    let (mut left, mut right) = (&rest[..at], &rest[at + token.len()..]);
                    if vocab.is(id, kind::LSTRIP) {
                        left = left.trim_end_matches(is_space);
                    }
                    if vocab.is(id, kind::RSTRIP) {
                        right = right.trim_start_matches(is_space);
                    }
                    if !left.is_empty() {
                        next.push(Fragment::Text(left));
                    }
                    next.push(Fragment::Token(id));
                    rest = right;
                }
                if !rest.is_empty() {
                    next.push(Fragment::Text(rest));
                }
            }
            fragments = next;
        }
        fragments
    }
}

/// C's `isspace`, which knows ASCII only.
fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\x0B' | '\x0C' | '\r')
}
