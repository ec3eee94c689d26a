//! What the metadata of an mmproj say about its encoder: sizes, activation, norms, and how pictures are prepared.

use super::vit::Shape;
use crate::gguf::Gguf;
use crate::media::Filter;
use crate::media::preprocess::{CLIP_MEAN, CLIP_STD, Fit, Preprocess};
use crate::ops::Activation;
use crate::{Result, bail};

/// Most values of a picture's activations at any step: more than any model of this kind has. They take memory whatever the
/// size of the file.
const MAX_ACTIVATIONS: usize = 1 << 27;

/// A size that the key says, from 1 to 65,536.
///
/// # Errors
/// A key that is missing or no such size.
pub fn size(gguf: &Gguf, key: &str) -> Result<usize> {
    let meta = gguf.metadata();
    let n = meta.require(key, meta.usize(key))?;
    if n == 0 || n > 1 << 16 {
        bail!(Format, "{}: {key}: {n} is no sensible size", gguf.name());
    }
    Ok(n)
}

/// The epsilon of a norm that the key says, if there is one.
///
/// # Errors
/// A number that cannot be one.
pub fn epsilon(gguf: &Gguf, key: &str) -> Result<Option<f32>> {
    match gguf.metadata().f32(key)? {
        Some(eps) if !(eps >= 0.0 && eps.is_finite()) => {
            bail!(Format, "{}: {key}: {eps} is no epsilon", gguf.name())
        }
        eps => Ok(eps),
    }
}

/// The activation that the key names: one of [`Activation::NAMES`], if there is one.
///
/// # Errors
/// A name that is none of them.
pub fn activation(gguf: &Gguf, key: &str) -> Result<Option<Activation>> {
    let Some(name) = gguf.metadata().str(key)? else { return Ok(None) };
    match Activation::NAMES.into_iter().find(|(n, _)| *n == name) {
        Some((_, activation)) => Ok(Some(activation)),
        None => {
            let known = Activation::NAMES.map(|(name, _)| name).join(", ");
            bail!(Unsupported, "{}: {key}: \"{name}\" is none of {known}", gguf.name())
        }
    }
}

/// The sizes of the encoder, `clip.vision.*`: features are those of `feature_layer`, or of the last block, and pass through
/// `v.post_ln` where there is `final_norm_epsilon`. `activation` names the activation; without it `clip.use_gelu` and
/// `clip.use_silu` say what it is, as in files of LLaVA.
///
/// # Errors
/// Keys that are missing, or do not fit each other or the tensors.
pub fn vit_shape(gguf: &Gguf) -> Result<Shape> {
    let meta = gguf.metadata();
    let size = |key: &str| size(gguf, &format!("clip.vision.{key}"));
    let activation = match (meta.bool("clip.use_gelu")?, meta.bool("clip.use_silu")?) {
        (Some(true), Some(true)) => {
            bail!(Format, "{}: clip.use_gelu and clip.use_silu cannot both be true", gguf.name())
        }
        (Some(true), _) => Activation::Gelu,
        (_, Some(true)) => Activation::Silu,
        _ => Activation::QuickGelu,
    };
    let n_block = size("block_count")?;
    let feature_layers = match meta.i64s("clip.vision.feature_layer")? {
        None => vec![n_block],
        Some(layers) => {
            let depth = |layer: &i64| -> Result<usize> {
                // Hugging Face counts from the end of the checkpoint's hidden states, of which the file holds all but one.
                let depth = if *layer < 0 { n_block as i64 + 2 + layer } else { *layer };
                match usize::try_from(depth).ok().filter(|d| *d <= n_block) {
                    Some(depth) => Ok(depth),
                    None => bail!(
                        Format,
                        "{}: clip.vision.feature_layer: {layer} of an encoder of {n_block} blocks",
                        gguf.name()
                    ),
                }
            };
            layers.iter().map(depth).collect::<Result<Vec<_>>>()?
        }
    };
    let shape = Shape {
        image_size: size("image_size")?,
        patch_size: size("patch_size")?,
        n_embd: size("embedding_length")?,
        n_ff: size("feed_forward_length")?,
        n_head: size("attention.head_count")?,
        eps: epsilon(gguf, "clip.vision.attention.layer_norm_epsilon")?.unwrap_or(1e-5),
        activation: self::activation(gguf, "clip.vision.activation")?.unwrap_or(activation),
        feature_layers,
        keep_class: false,
        final_eps: epsilon(gguf, "clip.vision.final_norm_epsilon")?,
    };
    if shape.feature_layers.is_empty() || shape.feature_layers.len() > 16 {
        bail!(Format, "{}: clip.vision.feature_layer: {} layers", gguf.name(), shape.feature_layers.len());
    }
    if shape.patch_size > shape.image_size || !shape.n_embd.is_multiple_of(shape.n_head) {
        bail!(
            Format,
            "{}: crops of {} in patches of {}, {} elements in {} heads: these do not divide",
            gguf.name(),
            shape.image_size,
            shape.patch_size,
            shape.n_embd,
            shape.n_head
        );
    }
    let class_embd = gguf.tensor("v.class_embd").is_some();
    if let Some(told) = meta.bool("clip.vision.has_class_token")?
        && told != class_embd
    {
        let state = if class_embd { "there" } else { "missing" };
        bail!(Format, "{}: clip.vision.has_class_token is {told}, but tensor \"v.class_embd\" is {state}", gguf.name());
    }
    Ok(shape)
}

/// How pictures become crops of `image_size`: mean and deviation are the file's or CLIP's, fit and filter those of
/// `clip.vision.resize_mode` (`squash_bicubic`); without that key the filter is bicubic and `fit` says the rest, being told
/// the mean.
///
/// # Errors
/// Values that make no sense.
pub fn preprocess(gguf: &Gguf, image_size: usize, fit: impl FnOnce([f32; 3]) -> Result<Fit>) -> Result<Preprocess> {
    let meta = gguf.metadata();
    let colour = |key: &str, default: [f32; 3]| -> Result<[f32; 3]> {
        let Some(values) = meta.f32s(key)? else { return Ok(default) };
        match <[f32; 3]>::try_from(values.as_slice()) {
            Ok(values) => Ok(values),
            Err(_) => bail!(Format, "{}: {key}: expected 3 numbers, got {values:?}", gguf.name()),
        }
    };
    let mean = colour("clip.vision.image_mean", CLIP_MEAN)?;
    let std = colour("clip.vision.image_std", CLIP_STD)?;
    let key = "clip.vision.resize_mode";
    let (fit, filter) = match meta.str(key)? {
        None => (fit(mean)?, Filter::Bicubic),
        Some(mode) => {
            let context = |e: crate::Error| e.context(format!("{}: {key}: \"{mode}\"", gguf.name()));
            let (fit, filter) = mode.split_once('_').unwrap_or((mode, "bicubic"));
            (Fit::named(fit, mean, image_size).map_err(context)?, filter.parse().map_err(context)?)
        }
    };
    let preprocess = Preprocess { image_size, mean, std, fit, filter };
    preprocess.validate().map_err(|e| e.context(gguf.name()))?;
    Ok(preprocess)
}

/// Refuses a file whose pictures become more rows of such a width than any model's of this kind.
///
/// # Errors
/// That.
pub fn check_activations(gguf: &Gguf, n_rows: usize, width: usize) -> Result<()> {
    if n_rows.saturating_mul(width) > MAX_ACTIVATIONS {
        bail!(
            Unsupported,
            "{}: a picture becomes up to {n_rows} rows of up to {width} values, more than {MAX_ACTIVATIONS} in all",
            gguf.name()
        );
    }
    Ok(())
}
