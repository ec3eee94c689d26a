//! DRY ("don't repeat yourself"): a token that would go on with a sequence seen before costs more the longer that
//! sequence is. After p-e-w and pi6am's design for text-generation-webui and KoboldCpp.

use super::candidates::Candidates;
use super::params::SamplerParams;
use crate::text::Tokenizer;
use std::collections::{HashMap, VecDeque};

/// Longest breaker in bytes, and longest tail of one in tokens.
const MAX_BREAKER: usize = 40;
const MAX_TAIL: usize = 20;

/// The tokens seen and what breaks a repetition.
pub(super) struct Dry {
    multiplier: f32,
    base: f32,
    allowed: usize,
    window: usize,
    /// First token of a breaker → the tokens that may follow to complete it (none: it is one by itself).
    breakers: HashMap<u32, Vec<Vec<u32>>>,
    /// Newest first.
    last: VecDeque<u32>,
}

impl Dry {
    /// None if the parameters turn it off.
    pub fn new(params: &SamplerParams, tokenizer: &Tokenizer) -> Option<Dry> {
        if params.dry_multiplier == 0.0 || params.dry_base < 1.0 || params.dry_penalty_last_n == 0 {
            return None;
        }
        let mut dry = Dry {
            multiplier: params.dry_multiplier,
            base: params.dry_base,
            allowed: params.dry_allowed_length.max(0) as usize,
            window: usize::try_from(params.dry_penalty_last_n).unwrap_or(usize::MAX),
            breakers: HashMap::new(),
            last: VecDeque::new(),
        };
        for text in params.dry_sequence_breakers.iter().filter(|t| !t.is_empty()) {
            let mut end = text.len().min(MAX_BREAKER);
            while !text.is_char_boundary(end) {
                end -= 1;
            }
            dry.add_breaker(&text[..end], tokenizer);
        }
        Some(dry)
    }

    /// Every token that holds the breaker, or ends with its beginning.
    fn add_breaker(&mut self, breaker: &str, tokenizer: &Tokenizer) {
        let bytes = breaker.as_bytes();
        for id in 0..tokenizer.n_vocab() as u32 {
            let piece = tokenizer.piece(id, true);
            let tails = self.breakers.get(&id).map_or(0, Vec::len);
            let mut found = Vec::new();
            for start in 0..piece.len() {
                let rest = &piece[start..];
                if rest.starts_with(bytes) {
                    found = vec![Vec::new()];
                    break;
                }
                // Whole characters only: a tail that begins within one is no text.
                if bytes.starts_with(rest) && breaker.is_char_boundary(rest.len()) {
                    let mut tail = tokenizer.encode(&breaker[rest.len()..], false, false);
                    tail.truncate(MAX_TAIL);
                    found.push(tail);
                }
            }
            if !found.is_empty() {
                let list = self.breakers.entry(id).or_default();
                list.extend(found);
                debug_assert!(list.len() > tails);
            }
        }
    }

    pub fn accept(&mut self, token: u32) {
        self.last.push_front(token);
        self.last.truncate(self.window);
    }

    pub fn reset(&mut self) {
        self.last.clear();
    }

    /// The tokens seen, newest first.
    pub fn tokens(&self) -> Vec<u32> {
        self.last.iter().copied().collect()
    }

    /// Goes on from the tokens that [`Dry::tokens`] gave.
    pub fn restore(&mut self, tokens: &[u32]) {
        self.last = tokens.iter().copied().take(self.window).collect();
    }

    /// How far back a repetition may reach: to the newest breaker.
    fn limit(&self) -> usize {
        for (i, token) in self.last.iter().enumerate() {
            let Some(tails) = self.breakers.get(token) else { continue };
            let fits =
                |tail: &&Vec<u32>| tail.len() <= i && tail.iter().enumerate().all(|(k, &t)| self.last[i - 1 - k] == t);
            if let Some(longest) = tails.iter().filter(fits).map(Vec::len).max() {
                return i - longest;
            }
        }
        self.last.len()
    }

    /// For each token that would continue a repetition: how long that repetition is so far.
    fn repeats(&self) -> HashMap<u32, usize> {
        let mut longest = HashMap::new();
        let n = self.last.len();
        let limit = self.limit();
        if n <= self.allowed || limit < self.allowed {
            return longest;
        }
        // Z-algorithm on the reversed text: z[k] = how many tokens from `k` back equal the newest ones.
        let last: Vec<u32> = self.last.iter().copied().collect();
        let mut z = vec![0usize; n];
        let (mut left, mut right) = (0, 0);
        for k in 1..n {
            if k < right {
                z[k] = z[k - left].min(right - k);
            }
            while k + z[k] < n && last[z[k]] == last[k + z[k]] {
                z[k] += 1;
            }
            if k + z[k] > right {
                (left, right) = (k, k + z[k]);
            }
            let repeat = z[k].min(limit);
            if repeat >= self.allowed {
                // What came after the earlier occurrence.
                let entry = longest.entry(last[k - 1]).or_insert(0);
                *entry = repeat.max(*entry);
            }
        }
        longest
    }

    pub fn apply(&self, candidates: &mut Candidates) {
        // `base^exponent` stays finite.
        let most = if self.base > 1.000_001 { (88.722_84 / self.base.ln()) as usize } else { usize::MAX };
        for (token, repeat) in self.repeats() {
            if self.breakers.get(&token).is_some_and(|tails| tails.iter().any(Vec::is_empty)) {
                continue;
            }
            let exponent = (repeat - self.allowed).min(most);
            let penalty = self.multiplier * self.base.powi(exponent.min(i32::MAX as usize) as i32);
            candidates.change(token, |logit| *logit -= penalty);
        }
    }
}
