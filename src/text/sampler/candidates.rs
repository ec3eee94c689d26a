//! The tokens still in the race, and the links of the chain that only look at them.

use std::cmp::Ordering;

/// A token that may be chosen.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    pub id: u32,
    pub logit: f32,
    /// Probability, where a link has computed it.
    pub p: f32,
}

/// Candidates; at least one, unless there were no logits at all.
#[derive(Default)]
pub(super) struct Candidates {
    pub list: Vec<Candidate>,
    /// Best first.
    pub sorted: bool,
    /// All there, `list[id].id == id`.
    pub complete: bool,
}

/// Best first; the lower id among equals, so that the order does not depend on how it is sorted.
fn better(a: &Candidate, b: &Candidate) -> Ordering {
    b.logit.total_cmp(&a.logit).then(a.id.cmp(&b.id))
}

/// `e^x` rounded from double precision, so that platforms agree.
fn exp(x: f32) -> f32 {
    (x as f64).exp() as f32
}

impl Candidates {
    /// All tokens of `logits`; NaN counts as impossible.
    pub fn fill(&mut self, logits: &[f32]) {
        let finite = |l: f32| if l.is_nan() { f32::NEG_INFINITY } else { l };
        self.list.clear();
        self.list.extend(logits.iter().enumerate().map(|(id, &l)| Candidate {
            id: id as u32,
            logit: finite(l),
            p: 0.0,
        }));
        self.sorted = false;
        self.complete = true;
    }

    /// Changes the logit of one token, if it is in the race.
    pub fn change(&mut self, id: u32, change: impl FnOnce(&mut f32)) {
        let found = match self.complete {
            true => self.list.get_mut(id as usize),
            false => self.list.iter_mut().find(|c| c.id == id),
        };
        if let Some(candidate) = found {
            change(&mut candidate.logit);
            if candidate.logit.is_nan() {
                candidate.logit = f32::NEG_INFINITY;
            }
            self.sorted = false;
        }
    }

    fn keep(&mut self, n: usize) {
        self.list.truncate(n);
        self.complete = false;
    }

    /// Orders the best `n` in front.
    fn sort_best(&mut self, n: usize) {
        if self.sorted {
            return;
        }
        if n < self.list.len() {
            self.list.select_nth_unstable_by(n, better);
        }
        let n = n.min(self.list.len());
        self.list[..n].sort_unstable_by(better);
        self.complete = false;
        self.sorted = n == self.list.len();
    }

    fn sort(&mut self) {
        self.sort_best(self.list.len());
    }

    pub fn max_logit(&self) -> f32 {
        self.list.iter().map(|c| c.logit).fold(f32::NEG_INFINITY, f32::max)
    }

    /// The best token, the lowest id among equals.
    pub fn best(&self) -> usize {
        (0..self.list.len()).min_by(|&a, &b| better(&self.list[a], &self.list[b])).unwrap_or(0)
    }

    /// Fills in the probabilities; returns the sum of the weights that they came from.
    pub fn softmax(&mut self) -> f64 {
        let max = self.max_logit();
        let mut sum = 0.0;
        for c in &mut self.list {
            // Equal covers infinities, whose difference is no number.
            c.p = if c.logit == max { 1.0 } else { exp(c.logit - max) };
            sum += c.p as f64;
        }
        for c in &mut self.list {
            c.p = (c.p as f64 / sum) as f32;
        }
        sum
    }

    fn entropy(&self) -> f32 {
        self.list.iter().filter(|c| c.p > 0.0).map(|c| -c.p * c.p.ln()).sum()
    }

    pub fn top_k(&mut self, k: i32) {
        if k > 0 {
            let k = (k as usize).min(self.list.len());
            self.sort_best(k);
            self.keep(k);
            self.sorted = true;
        }
    }

    pub fn top_p(&mut self, p: f32, min_keep: usize) {
        if p >= 1.0 {
            return;
        }
        self.softmax();
        // A few hundred nearly always suffice; if not, sort all.
        let mut ordered = if self.sorted { self.list.len() } else { 256.min(self.list.len()) };
        self.sort_best(ordered);
        let mut sum = 0.0;
        for i in 0..self.list.len() {
            if i == ordered {
                self.sort();
                ordered = self.list.len();
            }
            sum += self.list[i].p;
            if sum >= p && i + 1 >= min_keep {
                self.keep(i + 1);
                break;
            }
        }
        self.sorted = true;
    }

    pub fn min_p(&mut self, p: f32, min_keep: usize) {
        if p <= 0.0 || self.list.is_empty() {
            return;
        }
        let least = self.max_logit() + p.ln();
        let n = self.list.iter().filter(|c| c.logit >= least).count();
        if n >= min_keep.max(1) {
            self.list.retain(|c| c.logit >= least);
            self.complete = false;
        } else {
            self.sort();
            self.keep(min_keep.max(1));
        }
    }

    pub fn typical_p(&mut self, p: f32, min_keep: usize) {
        if p >= 1.0 || self.list.is_empty() {
            return;
        }
        self.sort();
        self.softmax();
        let entropy = self.entropy();
        let surprise = |c: &Candidate| (-c.p.ln() - entropy).abs();
        // Stable: the likelier first among equals.
        self.list.sort_by(|a, b| surprise(a).total_cmp(&surprise(b)));
        let mut sum = 0.0;
        let end = self.list.iter().enumerate().find_map(|(i, c)| {
            sum += c.p;
            (sum > p && i + 1 >= min_keep).then_some(i + 1)
        });
        self.keep(end.unwrap_or(self.list.len()));
        self.sorted = false;
    }

    pub fn top_n_sigma(&mut self, n: f32) {
        if n <= 0.0 || self.list.len() <= 1 {
            return;
        }
        let max = self.max_logit();
        let valid = || self.list.iter().map(|c| c.logit as f64).filter(|&l| l != f64::NEG_INFINITY);
        let count = valid().count().max(1) as f64;
        let mean = valid().sum::<f64>() / count;
        let sigma = (valid().map(|l| (l - mean).powi(2)).sum::<f64>() / count).sqrt() as f32;
        let least = max - n * sigma;
        for c in &mut self.list {
            if c.logit < least {
                c.logit = f32::NEG_INFINITY;
            }
        }
    }

    /// `chance` is drawn only if the link is on.
    pub fn xtc(&mut self, probability: f32, threshold: f32, min_keep: usize, chance: impl FnOnce() -> f32) {
        if probability <= 0.0 || threshold > 0.5 || self.list.len() < 2 || chance() > probability {
            return;
        }
        self.sort();
        self.softmax();
        let above = self.list.iter().take_while(|c| c.p >= threshold).count();
        // The least likely of those above the threshold stays.
        let drop = above.saturating_sub(1);
        if drop > 0 && self.list.len() - drop >= min_keep {
            self.list.drain(..drop);
            self.complete = false;
        }
    }

    /// Divides by the temperature, or by one that follows the entropy within `range` around it.
    pub fn temperature(&mut self, temp: f32, range: f32, exponent: f32) {
        let mut temp = temp;
        if range > 0.0 {
            if self.list.len() <= 1 {
                return;
            }
            self.softmax();
            let (least, most) = ((temp - range).max(0.0), temp + range);
            let normalized = self.entropy() / (self.list.len() as f32).ln();
            temp = least + (most - least) * normalized.powf(exponent);
        }
        if temp > 0.0 {
            for c in &mut self.list {
                c.logit /= temp;
            }
        } else if !self.list.is_empty() {
            let best = self.list[self.best()];
            self.list = vec![best];
            self.complete = false;
        }
    }

    /// Mirostat 1: how many of the best to keep, estimated from the first hundred.
    pub fn mirostat_k(&mut self, mu: f32, n_vocab: usize) -> i32 {
        self.sort();
        self.softmax();
        let (mut bi, mut sq) = (0.0f32, 0.0f32);
        for (i, pair) in self.list.windows(2).take(99).enumerate() {
            let t = ((i + 2) as f32 / (i + 1) as f32).ln();
            bi += t * (pair[0].p / pair[1].p).ln();
            sq += t * t;
        }
        let s = bi / sq;
        let epsilon = s - 1.0;
        let k = ((epsilon * mu.exp2()) / (1.0 - (n_vocab as f32).powf(-epsilon))).powf(1.0 / s);
        (k as i32).max(1)
    }

    /// Mirostat 2: drops what would surprise more than `mu` bits.
    pub fn mirostat_cut(&mut self, mu: f32) {
        self.sort();
        self.softmax();
        let n = self.list.iter().take_while(|c| -c.p.log2() <= mu).count();
        self.keep(n.max(1));
    }

    /// The candidate where the running sum of probabilities reaches `fraction` of the whole. Also fills them in.
    pub fn pick(&mut self, fraction: f64) -> usize {
        self.softmax();
        let whole: f64 = self.list.iter().map(|c| c.p as f64).sum();
        let mut sum = 0.0;
        let found = self.list.iter().position(|c| {
            sum += c.p as f64;
            sum >= whole * fraction && c.p > 0.0
        });
        found.unwrap_or(self.list.len().saturating_sub(1))
    }
}
