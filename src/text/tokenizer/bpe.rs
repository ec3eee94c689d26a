//! Byte-pair encoding: within each word, merge the neighbours with the lowest rank first.

use super::pre::{Pre, byte_char};
use super::vocab::Vocab;
use crate::{Result, bail, unless_stopped};
use mmq_kernels::stopped;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::hash::{BuildHasherDefault, Hasher};

/// Ranks of merges, and the tokens that single bytes start from.
pub(super) struct Bpe {
    pre: Pre,
    /// `(left, right)` → `(rank, merged)`, all as symbols.
    merges: HashMap<u64, (u32, u32), BuildHasherDefault<PairHasher>>,
    /// Symbols beyond the vocabulary: parts of merges that are no tokens.
    extra: HashMap<Box<str>, u32>,
    /// The symbol that each byte starts as, where words are spelled in bytes.
    bytes: Box<[u32; 256]>,
    n_vocab: u32,
}

/// No symbol: takes part in no merge.
const UNKNOWN: u32 = u32::MAX;

/// Up to here a plain scan for the best pair is quicker than a queue.
const SHORT: usize = 24;

/// A multiplication is hash enough for a pair of ids.
#[derive(Default)]
struct PairHasher(u64);

impl Hasher for PairHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for &b in bytes {
            self.write_u64(b as u64);
        }
    }
    fn write_u64(&mut self, pair: u64) {
        let p = (self.0 ^ pair) as u128 * 0x9E37_79B9_7F4A_7C15;
        self.0 = (p as u64) ^ (p >> 64) as u64;
    }
}

#[derive(Clone, Copy)]
struct Symbol {
    id: u32,
    start: u32,
    len: u32,
    prev: u32,
    next: u32,
}

/// Room for the words of one text, so that each word does not allocate.
#[derive(Default)]
struct Scratch {
    symbols: Vec<Symbol>,
    queue: BinaryHeap<Reverse<(u32, u32, u32, u32)>>,
    word: String,
}

impl Bpe {
    /// Ranks from `tokenizer.ggml.merges`.
    pub fn new(file: &str, vocab: &Vocab, merges: Option<&[String]>, pre: Pre) -> Result<Bpe> {
        let Some(merges) = merges.or(if pre.needs_merges() { None } else { Some(&[]) }) else {
            bail!(Format, "{file}: tokenizer.ggml.merges: missing, and the gpt2 tokenizer needs it");
        };
        if vocab.len() + 3 * merges.len() >= UNKNOWN as usize {
            bail!(Format, "{file}: tokenizer.ggml.merges: {} merges are too many", merges.len());
        }
        let mut bpe = Bpe {
            merges: HashMap::with_capacity_and_hasher(merges.len(), Default::default()),
            extra: HashMap::new(),
            bytes: Box::new([UNKNOWN; 256]),
            n_vocab: vocab.len() as u32,
            pre,
        };
        let mut joined = String::new();
        for (rank, merge) in merges.iter().enumerate() {
            unless_stopped()?;
            // The left part may itself begin with a space.
            let space = merge.char_indices().skip(1).find(|&(_, c)| c == ' ').map(|(i, _)| i);
            let Some(space) = space else {
                bail!(
                    Format,
                    "{file}: tokenizer.ggml.merges[{rank}]: expected two parts with a space between, got {merge:?}"
                );
            };
            let (left, right) = (&merge[..space], &merge[space + 1..]);
            joined.clear();
            joined.push_str(left);
            joined.push_str(right);
            let (left, right) = (bpe.intern(vocab, left), bpe.intern(vocab, right));
            let merged = bpe.intern(vocab, &joined);
            bpe.merges.entry(key(left, right)).or_insert((rank as u32, merged));
        }
        for byte in 0..=255u8 {
            let symbol = if bpe.pre.byte_encode() {
                bpe.symbol(vocab, byte_char(byte).encode_utf8(&mut [0; 4]))
            } else {
                vocab.byte_token(byte)
            };
            bpe.bytes[byte as usize] = symbol.unwrap_or(UNKNOWN);
        }
        Ok(bpe)
    }

    fn intern(&mut self, vocab: &Vocab, text: &str) -> u32 {
        if let Some(symbol) = self.symbol(vocab, text) {
            return symbol;
        }
        let symbol = self.n_vocab + self.extra.len() as u32;
        self.extra.insert(text.into(), symbol);
        symbol
    }

    fn symbol(&self, vocab: &Vocab, text: &str) -> Option<u32> {
        vocab.id(text).or_else(|| self.extra.get(text).copied())
    }

    /// How the text is cut before the merges.
    pub fn pre(&self) -> &Pre {
        &self.pre
    }

    /// Appends the tokens of `text`.
    pub fn encode(&self, vocab: &Vocab, text: &str, out: &mut Vec<u32>) {
        let mut scratch = Scratch::default();
        self.pre.split(&self.pre.normalize(text), |word| {
            if !stopped() {
                self.encode_word(vocab, word, &mut scratch, out);
            }
        });
    }

    fn encode_word(&self, vocab: &Vocab, word: &str, scratch: &mut Scratch, out: &mut Vec<u32>) {
        if self.pre.whole_word_first(word) {
            let whole = if self.pre.byte_encode() {
                scratch.word.clear();
                scratch.word.extend(word.bytes().map(byte_char));
                vocab.id(&scratch.word)
            } else {
                vocab.id(word)
            };
            if let Some(id) = whole {
                out.push(id);
                return;
            }
        }
        let symbols = &mut scratch.symbols;
        symbols.clear();
        let start =
            |id, start: usize, len: usize| Symbol { id, start: start as u32, len: len as u32, prev: 0, next: 0 };
        // A single word longer than 4 GiB cannot be: texts are cut at newlines at the latest, but be sure.
        let Ok(_) = u32::try_from(word.len()) else { return };
        if self.pre.byte_encode() {
            symbols.extend(word.bytes().enumerate().map(|(i, b)| start(self.bytes[b as usize], i, 1)));
        } else {
            symbols.extend(word.char_indices().map(|(i, c)| {
                let len = c.len_utf8();
                start(self.symbol(vocab, &word[i..i + len]).unwrap_or(UNKNOWN), i, len)
            }));
        }
        if symbols.len() <= SHORT {
            self.merge_short(symbols)
        } else {
            self.merge_long(scratch)
        }

        for symbol in &scratch.symbols {
            if symbol.id < self.n_vocab {
                out.push(symbol.id);
            } else {
                // Not a token: spell it; what cannot even be spelled is left out, as in llama.cpp.
                let span = &word.as_bytes()[symbol.start as usize..(symbol.start + symbol.len) as usize];
                out.extend(span.iter().map(|&b| self.bytes[b as usize]).filter(|&id| id < self.n_vocab));
            }
        }
    }

    fn rank(&self, left: u32, right: u32) -> Option<(u32, u32)> {
        self.merges.get(&key(left, right)).copied()
    }

    fn merge_short(&self, symbols: &mut Vec<Symbol>) {
        let mut ranks = [None; SHORT];
        for i in 1..symbols.len() {
            ranks[i - 1] = self.rank(symbols[i - 1].id, symbols[i].id);
        }
        loop {
            let n = symbols.len().saturating_sub(1);
            let best = ranks[..n].iter().enumerate().filter_map(|(i, r)| r.map(|(rank, id)| (rank, i, id))).min();
            let Some((_, i, id)) = best else { return };
            symbols[i].id = id;
            symbols[i].len += symbols[i + 1].len;
            symbols.remove(i + 1);
            ranks.copy_within(i + 1..n, i);
            if i + 1 < symbols.len() {
                ranks[i] = self.rank(id, symbols[i + 1].id);
            }
            if i > 0 {
                ranks[i - 1] = self.rank(symbols[i - 1].id, id);
            }
        }
    }

    fn merge_long(&self, scratch: &mut Scratch) {
        let Scratch { symbols, queue, .. } = scratch;
        queue.clear();
        let n = symbols.len() as u32;
        for (i, symbol) in symbols.iter_mut().enumerate() {
            // Beyond the ends: `UNKNOWN`, which is no index because words are shorter than 4 GiB.
            symbol.prev = (i as u32).wrapping_sub(1);
            symbol.next = if i as u32 + 1 < n { i as u32 + 1 } else { UNKNOWN };
        }
        let propose = |queue: &mut BinaryHeap<_>, symbols: &[Symbol], left: u32, right: u32| {
            if left == UNKNOWN || right == UNKNOWN {
                return;
            }
            let (l, r) = (symbols[left as usize].id, symbols[right as usize].id);
            if let Some((rank, _)) = self.rank(l, r) {
                queue.push(Reverse((rank, left, l, r)));
            }
        };
        for right in 1..n {
            propose(queue, symbols, right - 1, right);
        }
        while let Some(Reverse((_, left, l, r))) = queue.pop().filter(|_| !stopped()) {
            let here = symbols[left as usize];
            let right = here.next;
            if here.len == 0 || here.id != l || right == UNKNOWN || symbols[right as usize].id != r {
                continue;
            }
            let there = symbols[right as usize];
            let Some((_, merged)) = self.rank(l, r) else { continue };
            symbols[left as usize] = Symbol { id: merged, len: here.len + there.len, next: there.next, ..here };
            symbols[right as usize].len = 0;
            if there.next != UNKNOWN {
                symbols[there.next as usize].prev = left;
            }
            propose(queue, symbols, here.prev, left);
            propose(queue, symbols, left, there.next);
        }
        symbols.retain(|s| s.len > 0);
    }
}

fn key(left: u32, right: u32) -> u64 {
    (left as u64) << 32 | right as u64
}
