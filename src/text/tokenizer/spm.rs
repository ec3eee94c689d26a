//! SentencePiece as LLaMA uses it: merge the neighbours that form the best-scored token until none do. Not Viterbi.

use super::vocab::Vocab;
use mmq_kernels::stopped;
use std::cmp::Ordering;
use std::collections::BinaryHeap;

/// What the merges need besides the vocabulary.
pub(super) struct Spm {
    /// The token of each byte, for characters outside the vocabulary.
    bytes: Box<[Option<u32>; 256]>,
}

/// A piece of the text in a linked list; `len` 0 = merged into its left neighbour.
struct Symbol {
    start: usize,
    len: usize,
    prev: usize,
    next: usize,
}

const NONE: usize = usize::MAX;

/// Two neighbours that would form a token.
struct Pair {
    score: f32,
    left: usize,
    right: usize,
    len: usize,
}

impl Ord for Pair {
    fn cmp(&self, other: &Pair) -> Ordering {
        self.score.total_cmp(&other.score).then(other.left.cmp(&self.left))
    }
}

impl PartialOrd for Pair {
    fn partial_cmp(&self, other: &Pair) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Pair {
    fn eq(&self, other: &Pair) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Pair {}

impl Spm {
    pub fn new(vocab: &Vocab) -> Spm {
        let mut bytes = Box::new([None; 256]);
        for byte in 0..=255u8 {
            // Without byte tokens a byte may still be a token by itself.
            let text = [byte];
            let plain = || std::str::from_utf8(&text).ok().and_then(|t| vocab.id(t));
            bytes[byte as usize] = vocab.byte_token(byte).or_else(plain);
        }
        Spm { bytes }
    }

    /// Appends the tokens of `text`, in which spaces are already `▁`.
    pub fn encode(&self, vocab: &Vocab, text: &str, out: &mut Vec<u32>) {
        let mut symbols: Vec<Symbol> = text
            .char_indices()
            .enumerate()
            .map(|(i, (start, c))| Symbol { start, len: c.len_utf8(), prev: i.wrapping_sub(1), next: i + 1 })
            .collect();
        let Some(last) = symbols.last_mut() else { return };
        last.next = NONE;

        let mut queue = BinaryHeap::new();
        let propose = |queue: &mut BinaryHeap<Pair>, symbols: &[Symbol], left: usize, right: usize| {
            if left == NONE || right == NONE || stopped() {
                return;
            }
            let (start, len) = (symbols[left].start, symbols[left].len + symbols[right].len);
            if let Some(id) = vocab.id(&text[start..start + len]) {
                queue.push(Pair { score: vocab.scores[id as usize], left, right, len });
            }
        };
        for right in 1..symbols.len() {
            propose(&mut queue, &symbols, right - 1, right);
        }
        while let Some(pair) = queue.pop().filter(|_| !stopped()) {
            let (l, r) = (symbols[pair.left].len, symbols[pair.right].len);
            if l == 0 || r == 0 || l + r != pair.len {
                continue;
            }
            let next = symbols[pair.right].next;
            symbols[pair.right].len = 0;
            symbols[pair.left].len = pair.len;
            symbols[pair.left].next = next;
            if next != NONE {
                symbols[next].prev = pair.left;
            }
            propose(&mut queue, &symbols, symbols[pair.left].prev, pair.left);
            propose(&mut queue, &symbols, pair.left, next);
        }

        let mut i = 0;
        while i != NONE && !stopped() {
            let symbol = &symbols[i];
            let piece = &text[symbol.start..symbol.start + symbol.len];
            match vocab.id(piece) {
                Some(id) => out.push(id),
                None => out.extend(piece.bytes().filter_map(|b| self.bytes[b as usize].or(vocab.unk))),
            }
            i = symbol.next;
        }
    }
}
