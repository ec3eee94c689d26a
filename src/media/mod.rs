//! Pictures: decoding, Pillow-exact resizing and each model's preprocessing; drawing places on them. Knows no model.

pub mod annotate;
pub mod decode;
pub mod encode;
pub mod preprocess;
pub mod resize;

pub use decode::{DecodeOptions, decode, load};
pub use preprocess::{Crops, Fit, Preprocess, View, select_best_resolution, unpad};
pub use resize::{Filter, resize};

/// An RGB picture, 8 bits a channel, rows from the top: `rgb` is `[height, width, 3]`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Image {
    pub width: usize,
    pub height: usize,
    pub rgb: Vec<u8>,
}
