//! From a picture to the crops that a vision encoder takes: size rules, tiling, normalisation. Knows the rules of the
//! LLaVA family by what they do, not by model; which one a model wants is said by its file.
//!
//! **Easy to get wrong:** fractions of a pixel are cut, not rounded, except where tiled pictures are fitted (rounded
//! up); pinpoints are (width, height) and the first of equals wins, so their order matters for small squares (Hugging
//! Face reads the same list as (height, width)); tiles are padded with black before normalisation, not with zeros after.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use crate::error::{Result, bail};
use crate::media::resize::{Canvas, Window, resample};
use crate::media::{Filter, Image, resize};

/// Mean of CLIP's training pictures, by channel.
pub const CLIP_MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
/// Standard deviation of CLIP's training pictures, by channel.
pub const CLIP_STD: [f32; 3] = [0.268_629_54, 0.261_302_6, 0.275_777_1];

/// Most tiles that a pinpoint may ask for.
const MAX_TILES: usize = 64;
/// Most pixels of all the crops of a picture: one crop of the largest side.
const MAX_PIXELS: usize = MAX_IMAGE_SIZE * MAX_IMAGE_SIZE;
/// Largest side of a crop.
const MAX_IMAGE_SIZE: usize = 4096;

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

impl Fit {
    /// The fit called `crop`, `pad`, `squash` or `anyres`, with LLaVA's choices for a model of this `mean` and
    /// `image_size`: padding in the mean colour; tilings 1×2, 2×1, 2×2, 3×1 and 1×3. `Usage` for any other name.
    pub fn named(name: &str, mean: [f32; 3], image_size: usize) -> Result<Fit> {
        Ok(match name {
            "crop" => Fit::CenterCrop,
            "pad" => Fit::Pad { fill: mean_color(mean) },
            "squash" => Fit::Squash,
            "anyres" => Fit::Anyres { pinpoints: llava_pinpoints(image_size) },
            _ => bail!(Usage, "image fit \"{name}\" is not one of pad, crop, squash, anyres"),
        })
    }

    /// The name that [`Fit::named`] takes.
    pub fn name(&self) -> &'static str {
        match self {
            Fit::CenterCrop => "crop",
            Fit::Pad { .. } => "pad",
            Fit::Squash => "squash",
            Fit::Anyres { .. } => "anyres",
        }
    }
}

impl fmt::Display for Fit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// [`Fit::named`] for CLIP's mean and crops of 336 pixels, LLaVA-1.5's and 1.6's.
impl FromStr for Fit {
    type Err = crate::Error;

    fn from_str(name: &str) -> Result<Fit> {
        Fit::named(name, CLIP_MEAN, 336)
    }
}

/// The colour that LLaVA-1.5 pads with: `int(mean · 255)`, cut.
pub fn mean_color(mean: [f32; 3]) -> [u8; 3] {
    // Back through the shortest decimal: the rule is stated on decimal means, and 0.4 · 255 must give 102.
    mean.map(|mean| (mean.to_string().parse().unwrap_or(f64::from(mean)) * 255.0) as u8)
}

/// LLaVA-1.6's pinpoints, (width, height), for crops of `image_size`.
pub fn llava_pinpoints(image_size: usize) -> Vec<(usize, usize)> {
    [(1, 2), (2, 1), (2, 2), (3, 1), (1, 3)].map(|(cols, rows)| (cols * image_size, rows * image_size)).to_vec()
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

/// What a model sees of a picture as a whole: the way from fractions of it back to pixels of the picture.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct View {
    /// Where its upper left corner lies in the picture; negative where there is padding.
    origin: [f64; 2],
    /// Its width and height in pixels of the picture.
    extent: [f64; 2],
    /// Width and height of the picture.
    size: [f64; 2],
}

impl View {
    /// The point of the picture that a model sees at `point`, which goes from (0, 0), the upper left corner of its view, to
    /// (1, 1). In pixels from the upper left corner of the picture, clamped to it: `[0, 0]` to `[width, height]`.
    pub fn to_pixels(&self, point: [f64; 2]) -> [f64; 2] {
        std::array::from_fn(|i| (self.origin[i] + point[i] * self.extent[i]).clamp(0.0, self.size[i]))
    }
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
    /// Checks values that came from a file: `Unsupported` or `Format` errors for a crop size of 0 or beyond 4096, a
    /// mean or deviation that cannot be divided by, and pinpoints of no or too many tiles.
    pub fn validate(&self) -> Result<()> {
        if self.image_size == 0 || self.image_size > MAX_IMAGE_SIZE {
            bail!(Unsupported, "image size {}: expected 1 to {MAX_IMAGE_SIZE}", self.image_size);
        }
        if let Some(mean) = self.mean.iter().find(|mean| !mean.is_finite()) {
            bail!(Format, "image mean {mean}: expected a finite number");
        }
        if let Some(std) = self.std.iter().find(|std| !std.is_normal()) {
            bail!(Format, "image standard deviation {std}: expected a finite number other than 0");
        }
        if let Fit::Anyres { pinpoints } = &self.fit {
            for &(width, height) in pinpoints {
                let tiles = self.n_tiles((width, height));
                if tiles == 0 || tiles > MAX_TILES {
                    bail!(
                        Unsupported,
                        "image grid pinpoint {width}x{height}: {tiles} tiles of {}, expected 1 to {MAX_TILES}",
                        self.image_size
                    );
                }
            }
        }
        let pixels = self.max_crops() * self.image_size * self.image_size;
        if pixels > MAX_PIXELS {
            bail!(
                Unsupported,
                "{} crops of {} pixels a side: more than {MAX_PIXELS} pixels in all",
                self.max_crops(),
                self.image_size
            );
        }
        Ok(())
    }

    /// Most crops that a picture can become.
    pub fn max_crops(&self) -> usize {
        let Fit::Anyres { pinpoints } = &self.fit else { return 1 };
        pinpoints.iter().map(|pinpoint| self.n_tiles(*pinpoint)).max().unwrap_or(0).saturating_add(1)
    }

    /// The grid of [`Crops::grid`] for a picture of `original` width and height.
    pub fn grid(&self, original: (usize, usize)) -> Option<(usize, usize)> {
        let Fit::Anyres { pinpoints } = &self.fit else { return None };
        let (width, height) = select_best_resolution(original, pinpoints)?;
        Some((width.div_ceil(self.image_size), height.div_ceil(self.image_size)))
    }

    fn n_tiles(&self, (width, height): (usize, usize)) -> usize {
        width.div_ceil(self.image_size).saturating_mul(height.div_ceil(self.image_size))
    }

    /// Makes the crops. With no pinpoints, [`Fit::Anyres`] is its overview alone.
    ///
    /// # Panics
    /// If the picture is empty or [`Preprocess::validate`] would fail: both are checked where they enter.
    pub fn run(&self, image: &Image) -> Crops {
        let (crops, grid) = self.crops(image);
        let levels = self.levels();
        let plane = self.image_size * self.image_size;
        let mut pixels = vec![0f32; crops.len() * 3 * plane];
        for (crop, out) in crops.iter().zip(pixels.chunks_exact_mut(3 * plane)) {
            for (channel, (out, levels)) in out.chunks_exact_mut(plane).zip(&levels).enumerate() {
                for (value, rgb) in out.iter_mut().zip(crop.rgb.chunks_exact(3)) {
                    *value = levels[usize::from(rgb[channel])];
                }
            }
        }
        Crops { pixels, n_crops: crops.len(), grid, original: (image.width, image.height) }
    }

    /// The crops before normalisation, `image_size` square each, and the grid of [`Crops::grid`].
    ///
    /// # Panics
    /// As [`Preprocess::run`].
    pub fn crops(&self, image: &Image) -> (Vec<Image>, Option<(usize, usize)>) {
        let side = self.image_size;
        match &self.fit {
            Fit::CenterCrop => (vec![center_crop(image, side, self.filter)], None),
            Fit::Pad { fill } => (vec![pad(image, side, *fill, self.filter)], None),
            Fit::Squash => (vec![resize(image, side, side, self.filter)], None),
            Fit::Anyres { pinpoints } => {
                let mut crops = vec![resize(image, side, side, self.filter)];
                let best = select_best_resolution((image.width, image.height), pinpoints);
                let grid = best.map(|best| tiles(image, best, side, self.filter, &mut crops));
                (crops, grid)
            }
        }
    }

    /// What a model sees of a picture of this size: of tiled pictures, the overview.
    ///
    /// # Panics
    /// If the picture is empty.
    pub fn view(&self, width: usize, height: usize) -> View {
        assert!(width > 0 && height > 0, "a picture of {width}x{height}");
        let float = |pair: (usize, usize)| [pair.0 as f64, pair.1 as f64];
        let size = float((width, height));
        let (origin, extent) = match &self.fit {
            Fit::Squash | Fit::Anyres { .. } => ([0.0; 2], size),
            Fit::Pad { .. } => {
                let (square, offset) = pad_geometry((width, height));
                (float(offset).map(|offset| -offset), [square as f64; 2])
            }
            Fit::CenterCrop => {
                let (resized, offset) = crop_geometry((width, height), self.image_size);
                let (resized, offset) = (float(resized), float(offset));
                let scale: [f64; 2] = std::array::from_fn(|i| size[i] / resized[i]);
                ([0, 1].map(|i| offset[i] * scale[i]), scale.map(|scale| scale * self.image_size as f64))
            }
        };
        View { origin, extent, size }
    }

    /// The float of each 8-bit value, by channel: ÷255 in double precision, then normalised in single, as
    /// Hugging Face's processors do.
    fn levels(&self) -> [[f32; 256]; 3] {
        std::array::from_fn(|channel| {
            std::array::from_fn(|value| {
                let scaled = (value as f64 * (1.0 / 255.0)) as f32;
                (scaled - self.mean[channel]) / self.std[channel]
            })
        })
    }
}

/// The size that a picture is resized to before its centre is cut out, and where the cut begins.
fn crop_geometry((width, height): (usize, usize), side: usize) -> ((usize, usize), (usize, usize)) {
    let longer = |long: usize, short: usize| ((side * long) as f64 / short as f64) as usize;
    let size = if width <= height { (side, longer(height, width)) } else { (longer(width, height), side) };
    // The longer edge is never below `side`, so that there is always enough to cut from.
    (size, ((size.0 - side) / 2, (size.1 - side) / 2))
}

fn center_crop(image: &Image, side: usize, filter: Filter) -> Image {
    let (width, height) = (image.width, image.height);
    let (size, (left, top)) = crop_geometry((width, height), side);
    let canvas = Canvas { width, height, left: 0, top: 0, fill: [0; 3] };
    resample(image, &canvas, size, Window { left, top, width: side, height: side }, filter)
}

/// The side of the square that a picture is laid on, and where on it.
fn pad_geometry((width, height): (usize, usize)) -> (usize, (usize, usize)) {
    let square = width.max(height);
    (square, ((square - width) / 2, (square - height) / 2))
}

fn pad(image: &Image, side: usize, fill: [u8; 3], filter: Filter) -> Image {
    let (square, (left, top)) = pad_geometry((image.width, image.height));
    let canvas = Canvas { width: square, height: square, left, top, fill };
    resample(image, &canvas, (side, side), Window { left: 0, top: 0, width: side, height: side }, filter)
}

/// Appends the tiles of `image` fitted into `target` (width, height), row by row; returns (columns, rows).
fn tiles(image: &Image, target: (usize, usize), side: usize, filter: Filter, crops: &mut Vec<Image>) -> (usize, usize) {
    let scale_x = target.0 as f64 / image.width as f64;
    let scale_y = target.1 as f64 / image.height as f64;
    let (width, height) = if scale_x < scale_y {
        (target.0, ((image.height as f64 * scale_x).ceil() as usize).min(target.1))
    } else {
        (((image.width as f64 * scale_y).ceil() as usize).min(target.0), target.1)
    };
    let fitted = resize(image, width, height, filter);
    let (left, top) = ((target.0 - width) / 2, (target.1 - height) / 2);

    let (cols, rows) = (target.0.div_ceil(side), target.1.div_ceil(side));
    for row in 0..rows {
        for col in 0..cols {
            crops.push(cut(&fitted, (left, top), (col * side, row * side), side));
        }
    }
    (cols, rows)
}

/// The square of `side` at `at` of a black page on which `image` lies at `offset`.
fn cut(image: &Image, offset: (usize, usize), at: (usize, usize), side: usize) -> Image {
    let mut tile = Image { width: side, height: side, rgb: vec![0; side * side * 3] };
    let columns = offset.0.max(at.0)..(offset.0 + image.width).min(at.0 + side);
    if columns.is_empty() {
        return tile;
    }
    for y in offset.1.max(at.1)..(offset.1 + image.height).min(at.1 + side) {
        let from = ((y - offset.1) * image.width + columns.start - offset.0) * 3;
        let to = ((y - at.1) * side + columns.start - at.0) * 3;
        let len = columns.len() * 3;
        tile.rgb[to..to + len].copy_from_slice(&image.rgb[from..from + len]);
    }
    tile
}

/// The pinpoint, (width, height), that shows most of a picture of size `original` with least waste; the first of
/// equals. `None` if there are none.
pub fn select_best_resolution(original: (usize, usize), pinpoints: &[(usize, usize)]) -> Option<(usize, usize)> {
    let mut best = None;
    let (mut most, mut least_waste) = (0, usize::MAX);
    for &(width, height) in pinpoints {
        let scale = (width as f64 / original.0 as f64).min(height as f64 / original.1 as f64);
        let fitted = (original.0 as f64 * scale) as usize * (original.1 as f64 * scale) as usize;
        let effective = fitted.min(original.0 * original.1);
        let waste = (width * height).saturating_sub(effective);
        if best.is_none() || effective > most || (effective == most && waste < least_waste) {
            (most, least_waste) = (effective, waste);
            best = Some((width, height));
        }
    }
    best
}

/// Rows and columns of features that remain when the padding of a tiled picture is cut off (`spatial_unpad`): the
/// half-open row range and column range of the `rows × cols` grid of features that show the `original` picture.
pub fn unpad(original: (usize, usize), rows: usize, cols: usize) -> (Range<usize>, Range<usize>) {
    let (width, height) = (original.0 as f64, original.1 as f64);
    // As Hugging Face, to seven decimals before the fraction is cut: 24 computed as 23.999999999 is 24.
    let cut = |pixels: f64| (pixels + 0.5e-7).floor() as usize;
    if width / height > cols as f64 / rows as f64 {
        let shown = cut(height * (cols as f64 / width));
        let padding = rows.saturating_sub(shown) / 2;
        (padding..rows - padding, 0..cols)
    } else {
        let shown = cut(width * (rows as f64 / height));
        let padding = cols.saturating_sub(shown) / 2;
        (0..rows, padding..cols - padding)
    }
}
