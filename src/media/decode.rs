//! Files and `data:` URLs to pixels.

use crate::Result;
use crate::media::Image;

/// How to decode, and how large a picture may be.
#[derive(Clone, Debug)]
pub struct DecodeOptions {
    /// Colour under transparent pixels.
    pub background: [u8; 3],
    /// Most pixels that a picture may have.
    pub max_pixels: u64,
}

impl Default for DecodeOptions {
    fn default() -> Self {
        DecodeOptions { background: [255; 3], max_pixels: 100_000_000 }
    }
}

/// Decodes a picture; `name` stands for it in messages.
#[allow(unused_variables)]
pub fn decode(name: &str, data: &[u8], options: &DecodeOptions) -> Result<Image> {
    todo!()
}

/// Reads a picture from a path, `-` (standard input) or a `data:` URL.
#[allow(unused_variables)]
pub fn load(source: &str, options: &DecodeOptions) -> Result<Image> {
    todo!()
}
