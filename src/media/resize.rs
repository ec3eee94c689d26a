//! Pillow's resampler, byte for byte.

use crate::media::Image;

/// A resampling filter with Pillow's definition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Filter {
    Box,
    Bilinear,
    Bicubic,
    Lanczos,
}

/// `image.resize((width, height), filter)` of Pillow.
#[allow(unused_variables)]
pub fn resize(image: &Image, width: usize, height: usize, filter: Filter) -> Image {
    todo!()
}
