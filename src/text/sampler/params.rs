//! The knobs of the sampler chain: llama.cpp's flags, defaults and order.

use crate::{Result, bail};

/// A link of the chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SamplerKind {
    /// `penalties`, `e`: repetition, presence and frequency.
    Penalties,
    /// `dry`, `d`: against repeated sequences.
    Dry,
    /// `top_n_sigma`, `s`: within some standard deviations of the best.
    TopNSigma,
    /// `top_k`, `k`: the K best.
    TopK,
    /// `typ_p`, `y`: locally typical.
    TypicalP,
    /// `top_p`, `p`: the best that together reach a probability.
    TopP,
    /// `min_p`, `m`: at least a fraction of the best's probability.
    MinP,
    /// `xtc`, `x`: sometimes without the best.
    Xtc,
    /// `temperature`, `t`.
    Temperature,
    /// `adaptive_p`, `a`: near a target probability; always last.
    AdaptiveP,
}

use SamplerKind::*;

const KINDS: &[(SamplerKind, char, &str)] = &[
    (Penalties, 'e', "penalties"),
    (Dry, 'd', "dry"),
    (TopNSigma, 's', "top_n_sigma"),
    (TopK, 'k', "top_k"),
    (TypicalP, 'y', "typ_p"),
    (TopP, 'p', "top_p"),
    (MinP, 'm', "min_p"),
    (Xtc, 'x', "xtc"),
    (Temperature, 't', "temperature"),
    (AdaptiveP, 'a', "adaptive_p"),
];

impl SamplerKind {
    /// Its name in `--samplers`.
    pub fn name(self) -> &'static str {
        KINDS.iter().find(|k| k.0 == self).expect("every kind is in the list").2
    }

    /// Reads `--samplers`: names with `;` between, as in `top_k;top_p;temperature`; `top-k`, `topk`, `nucleus`, `temp`
    /// and `typ` are understood too. An unknown name is a [`Usage`](crate::ErrorKind::Usage) error.
    pub fn parse_names(names: &str) -> Result<Vec<SamplerKind>> {
        let parse = |name: &str| {
            let lower = name.trim().to_lowercase().replace('-', "_");
            let alias = match lower.as_str() {
                "nucleus" => "top_p",
                "temp" => "temperature",
                "typ" => "typ_p",
                other => other,
            };
            match KINDS.iter().find(|k| k.2 == alias || k.2.replace('_', "") == alias) {
                Some(kind) => Ok(kind.0),
                None => bail!(Usage, "samplers: unknown sampler \"{name}\""),
            }
        };
        names.split(';').filter(|n| !n.trim().is_empty()).map(parse).collect()
    }

    /// Reads `--sampling-seq`: a letter for each sampler, as in `edskypmxt`.
    pub fn parse_chars(chars: &str) -> Result<Vec<SamplerKind>> {
        let parse = |c: char| match KINDS.iter().find(|k| k.1 == c) {
            Some(kind) => Ok(kind.0),
            None => bail!(Usage, "sampling-seq: unknown sampler '{c}'"),
        };
        chars.chars().map(parse).collect()
    }
}

/// Every knob of the chain; `Default` gives llama.cpp's defaults.
#[derive(Clone, Debug)]
pub struct SamplerParams {
    /// `--seed`; none = another one each time.
    pub seed: Option<u32>,
    /// `--samplers`, `--sampling-seq`: the links in order.
    pub samplers: Vec<SamplerKind>,
    /// Least number of tokens that the links leave over (not `top_k`).
    pub min_keep: usize,
    /// `--temp`; 0 or less is greedy: biases and penalties, then the best token, the lowest id among equals.
    pub temp: f32,
    /// `--top-k`; 0 or less = all.
    pub top_k: i32,
    /// `--top-p`; 1 = off.
    pub top_p: f32,
    /// `--min-p`; 0 = off.
    pub min_p: f32,
    /// `--top-nsigma`; 0 or less = off.
    pub top_n_sigma: f32,
    /// `--xtc-probability`; 0 = off.
    pub xtc_probability: f32,
    /// `--xtc-threshold`; above 0.5 = off.
    pub xtc_threshold: f32,
    /// `--typical`; 1 = off.
    pub typical_p: f32,
    /// `--repeat-last-n`: how many tokens the penalties look back; 0 = off, -1 = all.
    pub repeat_last_n: i32,
    /// `--repeat-penalty`; 1 = off.
    pub repeat_penalty: f32,
    /// `--presence-penalty`; 0 = off.
    pub presence_penalty: f32,
    /// `--frequency-penalty`; 0 = off.
    pub frequency_penalty: f32,
    /// `--dry-multiplier`; 0 = off.
    pub dry_multiplier: f32,
    /// `--dry-base`; below 1 = off.
    pub dry_base: f32,
    /// `--dry-allowed-length`: repetitions up to this length cost nothing.
    pub dry_allowed_length: i32,
    /// `--dry-penalty-last-n`: how far DRY looks back; 0 = off, -1 = all.
    pub dry_penalty_last_n: i32,
    /// `--dry-sequence-breaker`: texts over which no repetition reaches.
    pub dry_sequence_breakers: Vec<String>,
    /// `--dynatemp-range`: the temperature moves this far up and down with the entropy; 0 = off.
    pub dynatemp_range: f32,
    /// `--dynatemp-exp`.
    pub dynatemp_exponent: f32,
    /// `--mirostat`: 0 = off, 1 or 2 = the version, which replaces the chain.
    pub mirostat: u8,
    /// `--mirostat-lr`: eta.
    pub mirostat_lr: f32,
    /// `--mirostat-ent`: tau.
    pub mirostat_ent: f32,
    /// `--adaptive-target`, for the `adaptive_p` link; negative = off.
    pub adaptive_target: f32,
    /// `--adaptive-decay`, 0 to 0.99.
    pub adaptive_decay: f32,
    /// `--logit-bias`: added to the logit of a token.
    pub logit_bias: Vec<(u32, f32)>,
    /// `--ignore-eos`: never choose a token that ends the answer.
    pub ignore_eos: bool,
}

impl Default for SamplerParams {
    fn default() -> SamplerParams {
        SamplerParams {
            seed: None,
            samplers: vec![Penalties, Dry, TopNSigma, TopK, TypicalP, TopP, MinP, Xtc, Temperature],
            min_keep: 0,
            temp: 0.8,
            top_k: 40,
            top_p: 0.95,
            min_p: 0.05,
            top_n_sigma: -1.0,
            xtc_probability: 0.0,
            xtc_threshold: 0.1,
            typical_p: 1.0,
            repeat_last_n: 64,
            repeat_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            dry_multiplier: 0.0,
            dry_base: 1.75,
            dry_allowed_length: 2,
            dry_penalty_last_n: 64,
            dry_sequence_breakers: ["\n", ":", "\"", "*"].map(String::from).to_vec(),
            dynatemp_range: 0.0,
            dynatemp_exponent: 1.0,
            mirostat: 0,
            mirostat_lr: 0.1,
            mirostat_ent: 5.0,
            adaptive_target: -1.0,
            adaptive_decay: 0.9,
            logit_bias: Vec::new(),
            ignore_eos: false,
        }
    }
}

impl SamplerParams {
    /// Whether the best token is always taken.
    pub fn is_greedy(&self) -> bool {
        self.temp <= 0.0 && self.dynatemp_range <= 0.0
    }

    /// Whether every value makes sense for a vocabulary of `n_vocab`; the error names the option.
    pub(super) fn check(&self, n_vocab: usize) -> Result<()> {
        let any = f32::NEG_INFINITY..=f32::INFINITY;
        let finite = f32::MIN..=f32::MAX;
        let positive = 0.0..=f32::MAX;
        for (option, value, range) in [
            ("temp", self.temp, &finite),
            ("top-p", self.top_p, &(0.0..=1.0)),
            ("min-p", self.min_p, &(0.0..=1.0)),
            ("top-nsigma", self.top_n_sigma, &finite),
            ("xtc-probability", self.xtc_probability, &(0.0..=1.0)),
            ("xtc-threshold", self.xtc_threshold, &(0.0..=1.0)),
            ("typical", self.typical_p, &(0.0..=1.0)),
            ("repeat-penalty", self.repeat_penalty, &(f32::MIN_POSITIVE..=f32::MAX)),
            ("presence-penalty", self.presence_penalty, &finite),
            ("frequency-penalty", self.frequency_penalty, &finite),
            ("dry-multiplier", self.dry_multiplier, &positive),
            ("dry-base", self.dry_base, &positive),
            ("dynatemp-range", self.dynatemp_range, &positive),
            ("dynatemp-exp", self.dynatemp_exponent, &positive),
            ("mirostat-lr", self.mirostat_lr, &positive),
            ("mirostat-ent", self.mirostat_ent, &positive),
            ("adaptive-target", self.adaptive_target, &(f32::MIN..=1.0)),
            ("adaptive-decay", self.adaptive_decay, &(0.0..=0.99)),
        ] {
            if !range.contains(&value) {
                bail!(Usage, "{option}: expected {} to {}, got {value}", range.start(), range.end());
            }
        }
        for (option, value, least) in [
            ("repeat-last-n", self.repeat_last_n, -1),
            ("dry-penalty-last-n", self.dry_penalty_last_n, -1),
            ("dry-allowed-length", self.dry_allowed_length, 0),
        ] {
            if value < least {
                bail!(Usage, "{option}: expected {least} or more, got {value}");
            }
        }
        if self.mirostat > 2 {
            bail!(Usage, "mirostat: expected 0, 1 or 2, got {}", self.mirostat);
        }
        for &(id, bias) in &self.logit_bias {
            if id as usize >= n_vocab {
                bail!(Usage, "logit-bias: expected an id below {n_vocab}, got {id}");
            }
            if !any.contains(&bias) {
                bail!(Usage, "logit-bias: expected a number for token {id}, got {bias}");
            }
        }
        Ok(())
    }
}
