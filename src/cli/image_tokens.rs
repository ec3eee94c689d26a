//! The flags that make image tokens fewer.

use crate::pipelines::{ImageTokens, Reduction};
use std::num::NonZeroUsize;

/// `--image-tokens` and what belongs to it.
#[derive(clap::Args)]
pub struct ImageTokensArgs {
    /// Most tokens that each picture takes in the prompt, newlines of a tiled one included: fewer are read sooner, but details
    /// may be lost [default: as many as the model makes]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(i32::MAX)))]
    image_tokens: Option<u32>,

    /// How they are made fewer: saliency keeps patches that the encoder looks at and that stand for others, and merges the
    /// rest into them, every tile having its share; coverage does so without regard to what the encoder looks at; downsample
    /// averages the grid of patches to the largest that fits
    #[arg(long, value_name = "HOW", default_value = "saliency", requires = "image_tokens")]
    image_tokens_by: Reduction,
}

impl ImageTokensArgs {
    /// What is asked for, if anything.
    pub fn get(&self) -> Option<ImageTokens> {
        let n = NonZeroUsize::new(self.image_tokens? as usize)?;
        Some(ImageTokens { n, by: self.image_tokens_by })
    }
}
