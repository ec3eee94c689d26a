//! Rotary position embedding: the angle of each pair at each position, with GGUF's scaling kinds.
//!
//! RoFormer (arXiv 2104.09864); linear scaling (arXiv 2306.15595); YaRN (arXiv 2309.00071); Llama 3's scaling comes as
//! one factor for each pair (`rope_freqs.weight`); Qwen's is dynamic ([`Beyond`]).

use crate::gguf::Gguf;
use crate::ops::Pairs;
use crate::tensor::Loader;
use crate::{Result, bail};

/// Angles for heads of which the first `2 · pairs` elements are rotated.
#[derive(Clone, Debug)]
pub struct Rope {
    /// Radians per position, for each pair.
    freqs: Vec<f64>,
    /// Factor on the cosine and sine (YaRN's attention temperature).
    magnitude: f32,
    pairs: Pairs,
    beyond: Option<Beyond>,
}

/// What a model does in contexts beyond those it was trained with, as Qwen's authors do.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Beyond {
    /// Longest context of the training.
    pub n_ctx: usize,
    /// Dynamic NTK: the base of the angles grows with the prompt's length.
    pub ntk: bool,
    /// Queries at position `p` of `p + 1 > n_ctx` are multiplied with `ln(p + 1) / ln(n_ctx)`.
    pub logn: bool,
}

/// The rotations of some positions.
pub struct Angles {
    pairs: Pairs,
    /// Cosines and sines, `[n, n_rot / 2]` each.
    keys: (Vec<f32>, Vec<f32>),
    /// Those of queries, where they are not the same.
    queries: Option<(Vec<f32>, Vec<f32>)>,
    n: usize,
}

impl Angles {
    /// Which elements they turn.
    pub fn pairs(&self) -> Pairs {
        self.pairs
    }

    /// Cosines and sines for keys.
    pub fn keys(&self) -> (&[f32], &[f32]) {
        (&self.keys.0, &self.keys.1)
    }

    /// Cosines and sines for queries, from position number `first` of these on.
    pub fn queries(&self, first: usize) -> (&[f32], &[f32]) {
        let (cos, sin) = self.queries.as_ref().unwrap_or(&self.keys);
        let at = first * (cos.len() / self.n);
        (&cos[at..], &sin[at..])
    }
}

impl Rope {
    /// Reads `{arch}.rope.*` and `rope_freqs.weight`; `head_dim` is the default number of rotated elements.
    pub fn load(gguf: &Gguf, arch: &str, head_dim: usize, n_ctx_train: usize) -> Result<Rope> {
        let meta = gguf.metadata();
        let n_rot = meta.usize(&format!("{arch}.rope.dimension_count"))?.unwrap_or(head_dim);
        if n_rot == 0 || n_rot > head_dim || !n_rot.is_multiple_of(2) {
            bail!(
                Format,
                "{}: {arch}.rope.dimension_count: expected an even number up to {head_dim}, got {n_rot}",
                gguf.name()
            );
        }
        let base = f64::from(meta.f32(&format!("{arch}.rope.freq_base"))?.unwrap_or(10_000.0));
        let number = |key: &str, default: f32| -> Result<f64> {
            let key = format!("{arch}.rope.scaling.{key}");
            let value = meta.f32(&key)?.unwrap_or(default);
            if !value.is_finite() {
                bail!(Format, "{}: {key}: {value} is not a number to scale with", gguf.name());
            }
            Ok(f64::from(value))
        };
        let kind = meta.str(&format!("{arch}.rope.scaling.type"))?;
        // Files from before 2023-10 carry linear scaling under a key of its own.
        let old_factor = meta.f32(&format!("{arch}.rope.scale_linear"))?;
        let factor = number("factor", old_factor.unwrap_or(1.0))?;
        if !(base > 1.0 && base.is_finite() && factor > 0.0) {
            bail!(Format, "{}: rope base {base} and scaling factor {factor} make no rotation", gguf.name());
        }
        let mut freqs: Vec<f64> = (0..n_rot / 2).map(|i| base.powf(-(2.0 * i as f64) / n_rot as f64)).collect();
        let loader = Loader::stored(gguf);
        if let Some(factors) = loader.optional_vector("rope_freqs.weight", n_rot / 2)? {
            for (freq, factor) in freqs.iter_mut().zip(factors) {
                if !factor.is_normal() {
                    bail!(Format, "{}: tensor \"rope_freqs.weight\": cannot divide by {factor}", gguf.name());
                }
                *freq /= f64::from(factor);
            }
        }
        let mut magnitude = number("attn_factor", 1.0)?;
        match kind {
            None | Some("linear") => freqs.iter_mut().for_each(|f| *f /= factor),
            Some("none") => {}
            Some("yarn") => {
                let n_ctx = meta.usize(&format!("{arch}.rope.scaling.original_context_length"))?;
                let n_ctx = n_ctx.unwrap_or(n_ctx_train) as f64;
                let (fast, slow) = (number("yarn_beta_fast", 32.0)?, number("yarn_beta_slow", 1.0)?);
                let mix = number("yarn_ext_factor", 1.0)?;
                let pair_that_turns =
                    |turns: f64| n_rot as f64 * (n_ctx / (turns * std::f64::consts::TAU)).ln() / (2.0 * base.ln());
                let low = pair_that_turns(fast).floor().max(0.0);
                let high = pair_that_turns(slow).ceil().min(n_rot as f64 - 1.0);
                for (i, freq) in freqs.iter_mut().enumerate() {
                    let ramp = ((i as f64 - low) / (high - low).max(0.001)).clamp(0.0, 1.0);
                    let keep = (1.0 - ramp) * mix;
                    *freq = *freq / factor * (1.0 - keep) + *freq * keep;
                }
                magnitude *= number("yarn_attn_factor", 1.0)?;
                if mix != 0.0 {
                    magnitude *= 1.0 + 0.1 * factor.ln();
                }
            }
            Some(other) => bail!(
                Unsupported,
                "{}: {arch}.rope.scaling.type: \"{other}\" is none of none, linear, yarn",
                gguf.name()
            ),
        }
        Ok(Rope { freqs, magnitude: magnitude as f32, pairs: Pairs::Neighbours, beyond: None })
    }

    /// The same angles for other pairs.
    pub fn with_pairs(self, pairs: Pairs) -> Rope {
        Rope { pairs, ..self }
    }

    /// The same angles, and others in long contexts. All elements of a head must be rotated.
    pub fn with_beyond(self, beyond: Beyond) -> Rope {
        Rope { beyond: Some(beyond), ..self }
    }

    /// What the base of the angles grows by for a prompt of `n` positions: `2^⌈log2(n / n_ctx) + 1⌉ - 1`, but at least 1,
    /// to the power of `n_rot / (n_rot - 2)`. It stays for the answer, however long that becomes.
    pub fn stretch(&self, n: usize) -> u32 {
        let Some(Beyond { n_ctx, ntk: true, .. }) = self.beyond else { return 1 };
        let doublings = n.div_ceil(n_ctx.max(1)).max(1).next_power_of_two().trailing_zeros();
        (2 << doublings.min(30)) - 1
    }

    /// The rotations of positions `start..start + n` with a base that [`Rope::stretch`] makes larger.
    pub fn angles(&self, start: usize, n: usize, stretch: u32) -> Angles {
        // With all of a base's power in the frequencies: base^(-2i / n_rot) · stretch^(-2i / (n_rot - 2)).
        let n_rot = 2 * self.freqs.len();
        let slower = |i: usize| f64::from(stretch).powf(-((2 * i) as f64) / (n_rot - 2).max(1) as f64);
        let freqs: Vec<f64> = match stretch {
            1 => self.freqs.clone(),
            _ => self.freqs.iter().enumerate().map(|(i, freq)| freq * slower(i)).collect(),
        };
        let table = |factor: &dyn Fn(usize) -> f32| -> (Vec<f32>, Vec<f32>) {
            let angles = (start..start + n).flat_map(|p| freqs.iter().map(move |f| (p, p as f64 * f)));
            angles
                .map(|(p, angle)| {
                    let (sin, cos) = angle.sin_cos();
                    (cos as f32 * factor(p), sin as f32 * factor(p))
                })
                .unzip()
        };
        let queries = match self.beyond {
            Some(Beyond { n_ctx, logn: true, .. }) if start + n > n_ctx => Some(table(&|p| {
                let longer = ((p + 1) as f64).ln() / (n_ctx as f64).ln();
                self.magnitude * if p + 1 > n_ctx { longer as f32 } else { 1.0 }
            })),
            _ => None,
        };
        Angles { pairs: self.pairs, keys: table(&|_| self.magnitude), queries, n }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn qwen(n_rot: usize) -> Rope {
        let freqs = (0..n_rot / 2).map(|i| 10_000f64.powf(-(2.0 * i as f64) / n_rot as f64)).collect();
        let beyond = Beyond { n_ctx: 2048, ntk: true, logn: true };
        Rope { freqs, magnitude: 1.0, pairs: Pairs::Halves, beyond: Some(beyond) }
    }

    #[test]
    fn the_base_grows_with_the_prompt() {
        let rope = qwen(128);
        for (n, stretch) in
            [(1, 1), (1024, 1), (2048, 1), (2049, 3), (4096, 3), (4097, 7), (8192, 7), (8193, 15), (32768, 31)]
        {
            // As the authors write it.
            let written = 2f64.powf(((n as f64 / 2048.0).log2() + 1.0).ceil()) - 1.0;
            assert_eq!((rope.stretch(n), written.max(1.0)), (stretch, f64::from(stretch)), "{n}");
        }
        // With the exponent of the paper: the slowest pair turns as if positions were that much closer.
        let (base, plain) = (rope.angles(3000, 1, 3), rope.angles(3000, 1, 1));
        let turn = |angles: &Angles| angles.keys().1[63].asin();
        assert!((turn(&plain) / turn(&base) - 3.0).abs() < 1e-3);
        let direct = 10_000f64 * 3f64.powf(128.0 / 126.0);
        let expected = (3000.0 * direct.powf(-2.0 * 40.0 / 128.0)).cos() as f32;
        assert!((base.keys().0[40] - expected).abs() < 1e-6);
    }

    #[test]
    fn queries_grow_beyond_the_training() {
        let rope = qwen(8);
        assert!(rope.angles(0, 2048, 1).queries.is_none());
        let angles = rope.angles(2046, 4, 1);
        for (i, factor) in [1.0, 1.0, 2049f64.ln() / 2048f64.ln(), 2050f64.ln() / 2048f64.ln()].into_iter().enumerate()
        {
            let (cos, sin) = angles.queries(i);
            let size = cos[0].hypot(sin[0]);
            assert!((f64::from(size) - factor).abs() < 1e-6, "{i}: {size}");
        }
        let (cos, sin) = angles.keys();
        assert!(cos.iter().zip(sin).all(|(c, s)| (c.hypot(*s) - 1.0).abs() < 1e-6));
    }
}
