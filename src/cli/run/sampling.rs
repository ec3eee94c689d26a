//! The sampler's flags, with llama.cpp's names and defaults.

use crate::text::{SamplerKind, SamplerParams};
use crate::{Result, bail};

/// How tokens are chosen.
#[derive(clap::Args)]
#[command(next_help_heading = "Sampling")]
pub struct SamplingArgs {
    /// Seed of the random numbers; -1: a new one each time
    #[arg(short, long, value_name = "N", default_value_t = -1, value_parser = clap::value_parser!(i64).range(-1..=i64::from(u32::MAX)))]
    seed: i64,
    /// Samplers in order, separated by ; [default: penalties;dry;top_n_sigma;top_k;typ_p;top_p;min_p;xtc;temperature]
    #[arg(long, value_name = "NAMES")]
    samplers: Option<String>,
    /// Samplers in order, a letter each [default: edskypmxt]
    #[arg(long, alias = "sampling-seq", value_name = "LETTERS", conflicts_with = "samplers")]
    sampler_seq: Option<String>,
    /// Temperature; 0: always the likeliest token
    #[arg(long, alias = "temperature", value_name = "T", default_value_t = 0.8, value_parser = number)]
    temp: f32,
    /// Keep the K likeliest; 0: off
    #[arg(long, value_name = "K", default_value_t = 40)]
    top_k: i32,
    /// Keep the likeliest that together reach P; 1: off
    #[arg(long, value_name = "P", default_value_t = 0.95, value_parser = probability)]
    top_p: f32,
    /// Keep those at least P as likely as the likeliest; 0: off
    #[arg(long, value_name = "P", default_value_t = 0.05, value_parser = probability)]
    min_p: f32,
    /// Keep logits within N standard deviations of the largest; -1: off
    #[arg(long, alias = "top-n-sigma", value_name = "N", default_value_t = -1.0, value_parser = number)]
    top_nsigma: f32,
    /// Probability of leaving out top choices (XTC); 0: off
    #[arg(long, value_name = "P", default_value_t = 0.0, value_parser = probability)]
    xtc_probability: f32,
    /// Least probability of a top choice (XTC)
    #[arg(long, value_name = "P", default_value_t = 0.1, value_parser = probability)]
    xtc_threshold: f32,
    /// Locally typical sampling; 1: off
    #[arg(long, alias = "typical-p", value_name = "P", default_value_t = 1.0, value_parser = probability)]
    typical: f32,
    /// Tokens that the penalties look back on; 0: off, -1: the context
    #[arg(long, value_name = "N", default_value_t = 64)]
    repeat_last_n: i32,
    /// Penalty on repeated tokens; 1: off
    #[arg(long, value_name = "X", default_value_t = 1.0, value_parser = positive)]
    repeat_penalty: f32,
    /// Penalty on tokens that have come; 0: off
    #[arg(long, value_name = "X", default_value_t = 0.0, value_parser = number)]
    presence_penalty: f32,
    /// Penalty for each time that a token has come; 0: off
    #[arg(long, value_name = "X", default_value_t = 0.0, value_parser = number)]
    frequency_penalty: f32,
    /// Strength of the penalty on repeated sequences (DRY); 0: off
    #[arg(long, value_name = "X", default_value_t = 0.0, value_parser = not_negative)]
    dry_multiplier: f32,
    /// Base of that penalty's growth
    #[arg(long, value_name = "X", default_value_t = 1.75, value_parser = not_negative)]
    dry_base: f32,
    /// Longest repetition without that penalty
    #[arg(long, value_name = "N", default_value_t = 2)]
    dry_allowed_length: i32,
    /// Tokens that it looks back on; 0: off, -1: the context
    #[arg(long, value_name = "N", default_value_t = 64)]
    dry_penalty_last_n: i32,
    /// Text that a repetition does not reach across; may be repeated; "none": no such text
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    dry_sequence_breaker: Vec<String>,
    /// Probability to aim at (adaptive-p); -1: off
    #[arg(long, value_name = "P", default_value_t = -1.0, value_parser = number)]
    adaptive_target: f32,
    /// Decay of what adaptive-p remembers
    #[arg(long, value_name = "X", default_value_t = 0.9, value_parser = number)]
    adaptive_decay: f32,
    /// Range of the dynamic temperature; 0: off
    #[arg(long, value_name = "X", default_value_t = 0.0, value_parser = not_negative)]
    dynatemp_range: f32,
    /// Exponent of the dynamic temperature
    #[arg(long, value_name = "X", default_value_t = 1.0, value_parser = not_negative)]
    dynatemp_exp: f32,
    /// Mirostat 1 or 2; 0: off
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u8).range(..=2))]
    mirostat: u8,
    /// Mirostat's learning rate
    #[arg(long, value_name = "X", default_value_t = 0.1, value_parser = not_negative)]
    mirostat_lr: f32,
    /// Mirostat's target entropy
    #[arg(long, value_name = "X", default_value_t = 5.0, value_parser = not_negative)]
    mirostat_ent: f32,
    /// Add to a token's logit: 15043+1 or 15043-1; may be repeated
    #[arg(short, long, value_name = "ID(+/-)BIAS")]
    logit_bias: Vec<String>,
    /// Never end the answer by the model's own wish
    #[arg(long)]
    ignore_eos: bool,
}

impl SamplingArgs {
    /// The sampler's parameters.
    pub fn params(&self) -> Result<SamplerParams> {
        let mut params = SamplerParams {
            // llama.cpp's other spelling of -1.
            seed: u32::try_from(self.seed).ok().filter(|seed| *seed != u32::MAX),
            temp: self.temp,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            top_n_sigma: self.top_nsigma,
            xtc_probability: self.xtc_probability,
            xtc_threshold: self.xtc_threshold,
            typical_p: self.typical,
            repeat_last_n: self.repeat_last_n,
            repeat_penalty: self.repeat_penalty,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            dry_multiplier: self.dry_multiplier,
            dry_base: self.dry_base,
            dry_allowed_length: self.dry_allowed_length,
            dry_penalty_last_n: self.dry_penalty_last_n,
            adaptive_target: self.adaptive_target,
            adaptive_decay: self.adaptive_decay,
            dynatemp_range: self.dynatemp_range,
            dynatemp_exponent: self.dynatemp_exp,
            mirostat: self.mirostat,
            mirostat_lr: self.mirostat_lr,
            mirostat_ent: self.mirostat_ent,
            ignore_eos: self.ignore_eos,
            ..SamplerParams::default()
        };
        if !self.dry_sequence_breaker.is_empty() {
            let breakers = self.dry_sequence_breaker.iter().filter(|text| *text != "none");
            params.dry_sequence_breakers = breakers.cloned().collect();
        }
        params.logit_bias = self.logit_bias.iter().map(|text| logit_bias(text)).collect::<Result<_>>()?;
        if let Some(names) = &self.samplers {
            params.samplers = SamplerKind::parse_names(names)?;
        }
        if let Some(letters) = &self.sampler_seq {
            params.samplers = SamplerKind::parse_chars(letters)?;
        }
        Ok(params)
    }
}

fn number(text: &str) -> Result<f32, String> {
    number_that(text, "a number", |_| true)
}

fn probability(text: &str) -> Result<f32, String> {
    number_that(text, "a number from 0 to 1", |x| (0.0..=1.0).contains(&x))
}

fn not_negative(text: &str) -> Result<f32, String> {
    number_that(text, "a number of 0 or more", |x| x >= 0.0)
}

fn positive(text: &str) -> Result<f32, String> {
    number_that(text, "a number above 0", |x| x >= f32::MIN_POSITIVE)
}

fn number_that(text: &str, expected: &str, holds: impl Fn(f32) -> bool) -> Result<f32, String> {
    text.parse().ok().filter(|x: &f32| x.is_finite() && holds(*x)).ok_or_else(|| format!("expected {expected}"))
}

fn logit_bias(text: &str) -> Result<(u32, f32)> {
    let parsed = text.find(['+', '-']).and_then(|at| {
        let sign = if text.as_bytes()[at] == b'-' { -1.0 } else { 1.0 };
        Some((text[..at].parse::<u32>().ok()?, sign * text[at + 1..].parse::<f32>().ok()?))
    });
    match parsed {
        Some(parsed) => Ok(parsed),
        None => bail!(Usage, "--logit-bias {text}: expected a token's number, + or -, and a number: 15043+1"),
    }
}
