//! From a picture to the crops that a vision encoder takes.

use crate::media::{Filter, Image};

/// How a picture becomes one or more square crops.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Fit {
    /// Shortest edge to the crop's size, then the centre (LLaVA v0/v1, and Hugging Face's default for 1.5).
    CenterCrop,
    /// On a centred square of `fill`, then resized (LLaVA-1.5).
    Pad { fill: [u8; 3] },
    /// Aspect ratio not kept.
    Squash,
    /// LLaVA-1.6: the whole picture squashed, then tiles of the best of `pinpoints`, (width, height) each.
    Anyres { pinpoints: Vec<(usize, usize)> },
}

/// A model's preprocessing.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct Preprocess {
    /// Side of a crop in pixels.
    pub image_size: usize,
    pub mean: [f32; 3],
    pub std: [f32; 3],
    pub fit: Fit,
    pub filter: Filter,
}

/// What the encoder takes: `n_crops` crops of `[3, image_size, image_size]` floats, the overview first.
#[derive(Clone, Debug)]
pub struct Crops {
    /// `[n_crops, 3, image_size, image_size]`.
    pub pixels: Vec<f32>,
    /// Number of crops.
    pub n_crops: usize,
    /// Tiles after the overview as (columns, rows), if the picture was tiled.
    pub grid: Option<(usize, usize)>,
    /// Width and height of the picture before all this.
    pub original: (usize, usize),
}

impl Preprocess {
    /// Makes the crops.
    #[allow(unused_variables)]
    pub fn run(&self, image: &Image) -> Crops {
        todo!()
    }
}

/// Rows and columns of features that remain when the padding of a tiled picture is cut off (`spatial_unpad`): the
/// half-open row range and column range of the `rows × cols` grid of features that show the `original` picture.
#[allow(unused_variables)]
pub fn unpad(original: (usize, usize), rows: usize, cols: usize) -> (std::ops::Range<usize>, std::ops::Range<usize>) {
    todo!()
}
