//! Rotary position embedding: the angle of each pair at each position, with GGUF's scaling kinds.
//!
//! RoFormer (arXiv 2104.09864); linear scaling (arXiv 2306.15595); YaRN (arXiv 2309.00071); Llama 3's scaling comes as
//! one factor for each pair (`rope_freqs.weight`).

use crate::gguf::Gguf;
use crate::tensor::Loader;
use crate::{Result, bail};

/// Angles for heads of which the first `2 · pairs` elements are rotated.
#[derive(Clone, Debug)]
pub struct Rope {
    /// Radians per position, for each pair.
    freqs: Vec<f64>,
    /// Factor on the cosine and sine (YaRN's attention temperature).
    magnitude: f32,
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
        Ok(Rope { freqs, magnitude: magnitude as f32 })
    }

    /// Cosines and sines of positions `start..start + n`: `[n, pairs]` each.
    pub fn table(&self, start: usize, n: usize) -> (Vec<f32>, Vec<f32>) {
        let angles = (start..start + n).flat_map(|p| self.freqs.iter().map(move |f| p as f64 * f));
        angles
            .map(|a| {
                let (sin, cos) = a.sin_cos();
                (cos as f32 * self.magnitude, sin as f32 * self.magnitude)
            })
            .unzip()
    }
}
