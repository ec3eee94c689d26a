//! Pixels to files. The formats' own encoding is the `image` crate's.

use crate::error::{Result, bail};
use crate::media::Image;
use image::codecs::jpeg::JpegEncoder;
use image::codecs::png::PngEncoder;
use image::{ExtendedColorType, ImageEncoder};

/// A PNG file.
///
/// # Errors
/// `Unsupported` for a picture of no pixels or too many.
pub fn png(image: &Image) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    write(image, "PNG", PngEncoder::new(&mut out))?;
    Ok(out)
}

/// A JPEG file of `quality`, 1 to 100.
///
/// # Errors
/// `Unsupported` for a picture of no pixels, or with a side beyond 65535.
pub fn jpeg(image: &Image, quality: u8) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    write(image, "JPEG", JpegEncoder::new_with_quality(&mut out, quality))?;
    Ok(out)
}

fn write(image: &Image, format: &str, encoder: impl ImageEncoder) -> Result<()> {
    let (width, height) = (image.width, image.height);
    let size = (u32::try_from(width), u32::try_from(height));
    let (Ok(w), Ok(h)) = size else { bail!(Unsupported, "{width}x{height} pixels are too many for {format}") };
    match encoder.write_image(&image.rgb, w, h, ExtendedColorType::Rgb8) {
        Ok(()) => Ok(()),
        Err(error) => bail!(Unsupported, "{width}x{height} pixels as {format}: {error}"),
    }
}
