//! Options as keys and values, so that the interface does not grow with them. Keys are the program's flags without hyphens.

use super::edge::{self, Result, usage};
use crate::media::Filter;
use crate::pipelines::plan::{Wish, parse_pixels, parse_size};
use crate::pipelines::{
    EngineOptions, Generation, ImageTokens, KvType, LoadMode, Overflow, Power, Precision, Reduction, SessionOptions,
};
use crate::text::{SamplerKind, SamplerParams};
use std::ffi::c_char;
use std::num::NonZeroUsize;
use std::str::FromStr;

/// `mmq_option` of `mmq.h`.
#[allow(non_camel_case_types)]
#[repr(C)]
pub struct mmq_option {
    /// What is set.
    pub key: *const c_char,
    /// To what.
    pub value: *const c_char,
}

/// The pairs of an array of options.
pub(super) unsafe fn pairs<'a>(options: *const mmq_option, n: usize) -> Result<Vec<(&'a str, &'a str)>> {
    // SAFETY: the caller of the C function gives `n` options of two texts each.
    unsafe {
        let options = edge::slice("options", options, n)?;
        let pair =
            |o: &mmq_option| Ok((edge::text("an option's key", o.key)?, edge::text("an option's value", o.value)?));
        options.iter().map(pair).collect()
    }
}

/// Reads a value, or says what is expected.
fn parse<T: FromStr>(key: &str, value: &str, expected: &str, holds: impl Fn(&T) -> bool) -> Result<T> {
    let parsed = value.parse().ok().filter(holds);
    parsed.ok_or_else(|| usage(format!("option {key:?}: expected {expected}, got {value:?}")))
}

fn count(key: &str, value: &str) -> Result<usize> {
    parse(key, value, "a whole number from 0 to 2147483647", |n| *n <= i32::MAX as usize)
}

fn number(key: &str, value: &str) -> Result<f32> {
    parse(key, value, "a number", |x: &f32| x.is_finite())
}

fn unknown(key: &str, known: &[&str]) -> super::error::Failure {
    usage(format!("option {key:?} is not known here; known are {}", known.join(", ")))
}

const ENGINE_KEYS: &[&str] = &[
    "threads",
    "load-mode",
    "vision-precision",
    "image-tokens",
    "image-tokens-by",
    "chat-template",
    "image-fit",
    "image-filter",
    "image-cache",
    "image-cache-size",
    "image-cache-memory",
    "power",
    "release-vision",
    "resident-layers",
];

/// The options of `mmq_engine_open`.
pub(super) fn engine(pairs: &[(&str, &str)]) -> Result<EngineOptions> {
    let mut options = EngineOptions::default();
    let (mut n_image, mut by) = (None, None);
    for &(key, value) in pairs {
        match key {
            "threads" => {
                let n = parse(key, value, "a whole number from 0 (the physical cores) to 256", |n: &usize| *n <= 256)?;
                options.n_threads = (n > 0).then_some(n);
            }
            "load-mode" => options.load_mode = load_mode(key, value)?,
            "vision-precision" => options.vision_precision = vision_precision(key, value)?,
            "image-tokens" => n_image = NonZeroUsize::new(count(key, value)?),
            "image-tokens-by" => by = Some(reduction(key, value)?),
            "chat-template" => options.chat_template = Some(value.to_owned()),
            "image-fit" => options.image_fit = Some(value.to_owned()),
            "image-filter" => {
                let expected = "bicubic, bilinear, lanczos or box";
                options.image_filter = Some(parse(key, value, expected, |_: &Filter| true)?);
            }
            "image-cache" => options.image_cache.dir = Some(value.into()),
            "image-cache-size" => options.image_cache.dir_bytes = parse(key, value, "bytes", |_: &u64| true)?,
            "image-cache-memory" => options.image_cache.n_bytes = parse(key, value, "bytes", |_: &usize| true)?,
            "power" => options.power = power(key, value)?,
            "release-vision" => options.release_vision = flag(key, value)?,
            "resident-layers" => options.resident_layers = Some(count(key, value)?),
            _ => return Err(unknown(key, ENGINE_KEYS)),
        }
    }
    options.image_tokens = image_tokens(n_image, by)?;
    Ok(options)
}

fn power(key: &str, value: &str) -> Result<Power> {
    let found = Power::NAMES.into_iter().find_map(|(name, power)| (name == value).then_some(power));
    found.ok_or_else(|| usage(format!("option {key:?}: expected low, balanced or fast, got {value:?}")))
}

const PLAN_KEYS: &[&str] = &[
    "budget",
    "low-memory",
    "images",
    "image-size",
    "ctx-size",
    "ubatch-size",
    "cache-type-k",
    "cache-type-v",
    "load-mode",
    "vision-precision",
    "image-tokens",
    "image-tokens-by",
];

/// The options of `mmq_plan_new`: what is wished for, and the vision precision by its name.
pub(super) fn plan<'a>(pairs: &[(&str, &'a str)]) -> Result<(Wish, &'a str)> {
    let mut wish = Wish::new(None);
    let (mut n_image, mut by, mut precision) = (None, None, "auto");
    for &(key, value) in pairs {
        match key {
            "budget" => wish.budget = Some(planned(key, parse_size(value))?),
            "low-memory" => wish.low_memory = flag(key, value)?,
            "images" => wish.n_images = count(key, value)?,
            "image-size" => wish.image_size = planned(key, parse_pixels(value))?,
            "ctx-size" => wish.n_ctx = Some(count(key, value)?).filter(|n| *n > 0),
            "ubatch-size" => {
                wish.n_ubatch = Some(parse(key, value, "a whole number from 1 on", |n: &usize| *n > 0)?);
            }
            "cache-type-k" => wish.type_k = Some(kv_type(key, value)?),
            "cache-type-v" => wish.type_v = Some(kv_type(key, value)?),
            "load-mode" => wish.load_mode = Some(load_mode(key, value)?).filter(|mode| *mode != LoadMode::Auto),
            "vision-precision" => (wish.vision_precision, precision) = (vision_precision(key, value)?, value),
            "image-tokens" => n_image = NonZeroUsize::new(count(key, value)?),
            "image-tokens-by" => by = Some(reduction(key, value)?),
            _ => return Err(unknown(key, PLAN_KEYS)),
        }
    }
    wish.image_tokens = image_tokens(n_image, by)?;
    Ok((wish, precision))
}

/// A value of which the planner says what it expects.
fn planned<T>(key: &str, parsed: crate::Result<T>) -> Result<T> {
    parsed.map_err(|e| usage(format!("option {key:?}: {e}")))
}

fn flag(key: &str, value: &str) -> Result<bool> {
    parse(key, value, "true or false", |_| true)
}

fn load_mode(key: &str, value: &str) -> Result<LoadMode> {
    parse(key, value, "auto, mmap or repack", |_| true)
}

fn vision_precision(key: &str, value: &str) -> Result<Precision> {
    parse(key, value, "auto, f32 or int8", |_| true)
}

fn reduction(key: &str, value: &str) -> Result<Reduction> {
    parse(key, value, "saliency, coverage or downsample", |_| true)
}

fn image_tokens(n: Option<NonZeroUsize>, by: Option<Reduction>) -> Result<Option<ImageTokens>> {
    if by.is_some() && n.is_none() {
        return Err(usage("option \"image-tokens-by\" needs \"image-tokens\"".into()));
    }
    Ok(n.map(|n| ImageTokens { n, by: by.unwrap_or_default() }))
}

/// A knob of the sampler that is a number.
type Knob = (&'static str, fn(&mut SamplerParams) -> &mut f32);

const KNOBS: &[Knob] = &[
    ("temp", |p| &mut p.temp),
    ("top-p", |p| &mut p.top_p),
    ("min-p", |p| &mut p.min_p),
    ("top-nsigma", |p| &mut p.top_n_sigma),
    ("xtc-probability", |p| &mut p.xtc_probability),
    ("xtc-threshold", |p| &mut p.xtc_threshold),
    ("typical", |p| &mut p.typical_p),
    ("repeat-penalty", |p| &mut p.repeat_penalty),
    ("presence-penalty", |p| &mut p.presence_penalty),
    ("frequency-penalty", |p| &mut p.frequency_penalty),
    ("dry-multiplier", |p| &mut p.dry_multiplier),
    ("dry-base", |p| &mut p.dry_base),
    ("dynatemp-range", |p| &mut p.dynatemp_range),
    ("dynatemp-exp", |p| &mut p.dynatemp_exponent),
    ("mirostat-lr", |p| &mut p.mirostat_lr),
    ("mirostat-ent", |p| &mut p.mirostat_ent),
    ("adaptive-target", |p| &mut p.adaptive_target),
    ("adaptive-decay", |p| &mut p.adaptive_decay),
];

/// A knob that is a whole number.
type WholeKnob = (&'static str, fn(&mut SamplerParams) -> &mut i32);

const WHOLE_KNOBS: &[WholeKnob] = &[
    ("top-k", |p| &mut p.top_k),
    ("repeat-last-n", |p| &mut p.repeat_last_n),
    ("dry-allowed-length", |p| &mut p.dry_allowed_length),
    ("dry-penalty-last-n", |p| &mut p.dry_penalty_last_n),
];

const SESSION_KEYS: &[&str] = &[
    "ctx-size",
    "context-shift",
    "ubatch-size",
    "cache-type-k",
    "cache-type-v",
    "predict",
    "stop",
    "seed",
    "samplers",
    "mirostat",
    "logit-bias",
    "ignore-eos",
    "dry-sequence-breaker",
];

/// The options of `mmq_session_new`.
pub(super) fn session(pairs: &[(&str, &str)]) -> Result<(SessionOptions, Generation)> {
    let mut options = SessionOptions::default();
    let mut generation = Generation::default();
    let mut breakers = Vec::new();
    for &(key, value) in pairs {
        let sampler = &mut options.sampler;
        match key {
            "ctx-size" => options.n_ctx = count(key, value)?,
            "context-shift" => {
                options.overflow = if flag(key, value)? { Overflow::DropOldest } else { Overflow::Stop };
            }
            "ubatch-size" => options.n_ubatch = count(key, value)?,
            "cache-type-k" => options.cache_type_k = kv_type(key, value)?,
            "cache-type-v" => options.cache_type_v = kv_type(key, value)?,
            "predict" => {
                let n: i64 = parse(key, value, "a whole number; -1 for no limit", |n| *n >= -1)?;
                generation.n_predict = usize::try_from(n).ok();
            }
            "stop" if value.is_empty() => return Err(usage("option \"stop\": the text is empty".into())),
            "stop" => generation.stop.push(value.to_owned()),
            "seed" => {
                let range = -1..=i64::from(u32::MAX);
                let seed: i64 = parse(key, value, "a whole number of 32 bits; -1 for any", |n| range.contains(n))?;
                sampler.seed = u32::try_from(seed).ok();
            }
            "samplers" => sampler.samplers = SamplerKind::parse_names(value)?,
            "mirostat" => sampler.mirostat = parse(key, value, "0, 1 or 2", |n| *n <= 2)?,
            "logit-bias" => sampler.logit_bias.push(logit_bias(key, value)?),
            "ignore-eos" => sampler.ignore_eos = flag(key, value)?,
            "dry-sequence-breaker" => breakers.push(value.to_owned()),
            _ => {
                if let Some((_, knob)) = KNOBS.iter().find(|(name, _)| *name == key) {
                    *knob(sampler) = number(key, value)?;
                } else if let Some((_, knob)) = WHOLE_KNOBS.iter().find(|(name, _)| *name == key) {
                    *knob(sampler) = parse(key, value, "a whole number", |_: &i32| true)?;
                } else {
                    let knobs = KNOBS.iter().map(|(name, _)| *name).chain(WHOLE_KNOBS.iter().map(|(name, _)| *name));
                    let known: Vec<&str> = SESSION_KEYS.iter().copied().chain(knobs).collect();
                    return Err(unknown(key, &known));
                }
            }
        }
    }
    if !breakers.is_empty() {
        options.sampler.dry_sequence_breakers = breakers;
    }
    Ok((options, generation))
}

fn kv_type(key: &str, value: &str) -> Result<KvType> {
    let found = KvType::ALL.into_iter().find(|kind| kind.name() == value);
    found.ok_or_else(|| usage(format!("option {key:?}: expected f16, f32, q8_0 or q4_0, got {value:?}")))
}

/// A token and what is added to its logit: `15043=-1.5`.
fn logit_bias(key: &str, value: &str) -> Result<(u32, f32)> {
    let expected = || usage(format!("option {key:?}: expected a token's number, = and a number: 15043=-1.5"));
    let (token, bias) = value.split_once('=').ok_or_else(expected)?;
    Ok((token.parse().map_err(|_| expected())?, bias.parse().map_err(|_| expected())?))
}
