//! Pillow's resampler, byte for byte: two separable passes over 8-bit channels with 22-bit fixed-point coefficients
//! and a rounded, clipped 8-bit value between the passes (Pillow, `src/libImaging/Resample.c`). Not a general image
//! library: RGB only, no gamma, no `reducing_gap`.
//!
//! **Easy to get wrong:** the order of the passes shows in the bytes. It is Pillow 13's: vertical first where the
//! height loses more than twice the pixels that the width loses, else horizontal first, as earlier versions were for
//! nearly every picture. The orders differ by a level or so, in pictures that lose mostly height.
//!
//! Both passes run as one sweep over the input rows, each added to the accumulators of every output row that it
//! contributes to. Memory beyond the output is a few rows, whatever the input's shape, and only what an output window
//! needs is computed.

use std::fmt;
use std::str::FromStr;

use crate::error::bail;
use crate::media::Image;

/// A resampling filter with Pillow's definition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Filter {
    Box,
    Bilinear,
    /// a = -0.5.
    Bicubic,
    /// Three lobes.
    Lanczos,
}

impl Filter {
    /// All filters with the names that [`FromStr`] takes.
    pub const ALL: [(&str, Filter); 4] = [
        ("bicubic", Filter::Bicubic),
        ("bilinear", Filter::Bilinear),
        ("lanczos", Filter::Lanczos),
        ("box", Filter::Box),
    ];

    /// Half the filter's width, in input pixels at scale 1.
    fn support(self) -> f64 {
        match self {
            Filter::Box => 0.5,
            Filter::Bilinear => 1.0,
            Filter::Bicubic => 2.0,
            Filter::Lanczos => 3.0,
        }
    }

    /// The filter's value at `x`.
    fn weight(self, x: f64) -> f64 {
        match self {
            Filter::Box => f64::from(x > -0.5 && x <= 0.5),
            Filter::Bilinear => (1.0 - x.abs()).max(0.0),
            Filter::Bicubic => {
                const A: f64 = -0.5;
                let x = x.abs();
                if x < 1.0 {
                    ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
                } else if x < 2.0 {
                    (((x - 5.0) * x + 8.0) * x - 4.0) * A
                } else {
                    0.0
                }
            }
            Filter::Lanczos => {
                if (-3.0..3.0).contains(&x) {
                    sinc(x) * sinc(x / 3.0)
                } else {
                    0.0
                }
            }
        }
    }
}

fn sinc(x: f64) -> f64 {
    if x == 0.0 {
        return 1.0;
    }
    let x = x * std::f64::consts::PI;
    x.sin() / x
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, _) = Filter::ALL.iter().find(|(_, filter)| filter == self).expect("ALL lists every filter");
        f.write_str(name)
    }
}

impl FromStr for Filter {
    type Err = crate::Error;

    fn from_str(name: &str) -> crate::Result<Filter> {
        match Filter::ALL.iter().find(|(known, _)| *known == name) {
            Some((_, filter)) => Ok(*filter),
            None => bail!(Usage, "filter \"{name}\" is not one of bicubic, bilinear, lanczos, box"),
        }
    }
}

/// `image.resize((width, height), filter)` of Pillow.
///
/// # Panics
/// If a side of the picture or of the result is 0.
pub fn resize(image: &Image, width: usize, height: usize, filter: Filter) -> Image {
    let canvas = Canvas { width: image.width, height: image.height, left: 0, top: 0, fill: [0; 3] };
    resample(image, &canvas, (width, height), Window { left: 0, top: 0, width, height }, filter)
}

/// Where a picture lies on a larger background, which is never stored.
pub(super) struct Canvas {
    pub width: usize,
    pub height: usize,
    pub left: usize,
    pub top: usize,
    pub fill: [u8; 3],
}

/// The part of a result that is wanted.
pub(super) struct Window {
    pub left: usize,
    pub top: usize,
    pub width: usize,
    pub height: usize,
}

/// Pillow's `canvas.resize(size, filter).crop(window)`, where `canvas` is `image` pasted on a plain background. Exact
/// although neither the canvas nor the rest of the result exists: integer sums may be taken in any order.
pub(super) fn resample(image: &Image, canvas: &Canvas, size: (usize, usize), window: Window, filter: Filter) -> Image {
    assert!(image.width > 0 && image.height > 0, "resize of an empty picture: {}x{}", image.width, image.height);
    assert!(size.0 > 0 && size.1 > 0, "resize to an empty picture: {}x{}", size.0, size.1);
    assert_eq!(image.rgb.len(), image.width * image.height * 3, "picture's bytes against its size");
    assert!(canvas.left + image.width <= canvas.width && canvas.top + image.height <= canvas.height);
    assert!(window.left + window.width <= size.0 && window.top + window.height <= size.1);

    let across = Axis::new(canvas.width, canvas.left, image.width, size.0, window.left, window.width, filter);
    let down = Axis::new(canvas.height, canvas.top, image.height, size.1, window.top, window.height, filter);

    let vertical_first = vertical_first((canvas.width, canvas.height), size);

    // Rows between the passes, and what a row of bare background is there.
    let middle_len = 3 * if vertical_first { image.width } else { window.width };
    let mut background = vec![0u8; middle_len];
    if vertical_first {
        background.chunks_exact_mut(3).for_each(|pixel| pixel.copy_from_slice(&canvas.fill));
    } else {
        for (pixel, taps) in background.chunks_exact_mut(3).zip(&across.taps) {
            pixel.copy_from_slice(&taps.of_plain(canvas.fill));
        }
    }

    let out_len = window.width * 3;
    let mut out = vec![0u8; out_len * window.height];
    let mut row = vec![0u8; middle_len];
    // Accumulators of the output rows that are under way, as a ring.
    let ring = down.most_at_once().max(1);
    let mut sums = vec![0i32; ring * middle_len];
    let (mut begun, mut done) = (0, 0);

    let finish = |y: usize, sums: &[i32], row: &mut [u8], out: &mut [u8]| {
        let out = &mut out[y * out_len..][..out_len];
        if vertical_first {
            clip_row(sums, row);
            across.run_row(row, down.taps[y].of_plain(canvas.fill), out);
        } else {
            clip_row(sums, out);
        }
    };
    for y in down.first()..down.last() {
        if mmq_kernels::stopped() {
            return Image { width: window.width, height: window.height, rgb: out };
        }
        let source = &image.rgb[y * image.width * 3..][..image.width * 3];
        let middle = if vertical_first {
            source
        } else {
            across.run_row(source, canvas.fill, &mut row);
            &row
        };
        while begun < window.height && down.taps[begun].start <= y {
            start_row(&mut sums[begun % ring * middle_len..][..middle_len], &background, down.taps[begun].outside);
            begun += 1;
        }
        for (n, taps) in down.taps[done..begun].iter().enumerate() {
            if taps.start <= y && y - taps.start < taps.len {
                let weight = down.weights[taps.offset + y - taps.start];
                let sums = &mut sums[(done + n) % ring * middle_len..][..middle_len];
                for (sum, &value) in sums.iter_mut().zip(middle) {
                    *sum = sum.wrapping_add(i32::from(value).wrapping_mul(weight));
                }
            }
        }
        while done < begun && down.taps[done].start + down.taps[done].len <= y + 1 {
            finish(done, &sums[done % ring * middle_len..][..middle_len], &mut row, &mut out);
            done += 1;
        }
    }
    // Rows that show background only.
    for y in done..window.height {
        start_row(&mut sums[..middle_len], &background, down.taps[y].outside);
        finish(y, &sums[..middle_len], &mut row, &mut out);
    }
    Image { width: window.width, height: window.height, rgb: out }
}

/// Whether Pillow's vertical pass comes before its horizontal one, (width, height) each.
fn vertical_first(from: (usize, usize), to: (usize, usize)) -> bool {
    // A width that grows loses less than nothing: then any loss of height is enough.
    from.0 != to.0 && to.1 < from.1 && (to.0 > from.0 || from.1 - to.1 > 2 * (from.0 - to.0))
}

/// Fractional bits of a coefficient: 32 less 8 of the pixel and 2 for sums beyond 1.
const PRECISION_BITS: u32 = 32 - 8 - 2;
const ONE: i32 = 1 << PRECISION_BITS;
const HALF: i32 = ONE / 2;

fn clip8(sum: i32) -> u8 {
    (sum >> PRECISION_BITS).clamp(0, 255) as u8
}

fn start_row(sums: &mut [i32], background: &[u8], outside: i32) {
    for (sum, &value) in sums.iter_mut().zip(background) {
        *sum = HALF.wrapping_add(i32::from(value).wrapping_mul(outside));
    }
}

fn clip_row(sums: &[i32], out: &mut [u8]) {
    for (value, &sum) in out.iter_mut().zip(sums) {
        *value = clip8(sum);
    }
}

/// The input pixels of one output pixel along an axis.
#[derive(Clone, Copy)]
struct Taps {
    /// First input pixel, counted in the picture, not in the canvas.
    start: usize,
    len: usize,
    /// Where its weights begin in [`Axis::weights`].
    offset: usize,
    /// Sum of the weights inside the picture.
    inside: i32,
    /// Sum of the weights that fall on the background.
    outside: i32,
}

impl Taps {
    /// The output pixel where the input is one plain colour, which rounding may move.
    fn of_plain(&self, color: [u8; 3]) -> [u8; 3] {
        let weight = self.inside.wrapping_add(self.outside);
        color.map(|value| clip8(HALF.wrapping_add(i32::from(value).wrapping_mul(weight))))
    }
}

/// One axis of a resampling: taps for each pixel of the output window.
struct Axis {
    taps: Vec<Taps>,
    weights: Vec<i32>,
    /// If the output is the input: then the pass is left out.
    identity: bool,
}

impl Axis {
    /// From `canvas` pixels, of which `len` from `start` on are the picture's, to `size` pixels, of which `window_len`
    /// from `window_start` on are wanted.
    fn new(
        canvas: usize,
        start: usize,
        len: usize,
        size: usize,
        window_start: usize,
        window_len: usize,
        filter: Filter,
    ) -> Axis {
        let mut axis = Axis { taps: Vec::with_capacity(window_len), weights: Vec::new(), identity: false };
        if canvas == size {
            axis.identity = start == 0 && len == canvas && window_start == 0 && window_len == size;
            for x in window_start..window_start + window_len {
                let inside = x >= start && x < start + len;
                axis.taps.push(Taps {
                    start: x.saturating_sub(start).min(len),
                    len: usize::from(inside),
                    offset: axis.weights.len(),
                    inside: if inside { ONE } else { 0 },
                    outside: if inside { 0 } else { ONE },
                });
                axis.weights.extend(inside.then_some(ONE));
            }
            return axis;
        }

        let scale = canvas as f64 / size as f64;
        let stretch = scale.max(1.0);
        let support = filter.support() * stretch;
        let mut row = Vec::new();
        for x in window_start..window_start + window_len {
            let center = (x as f64 + 0.5) * scale;
            // `as` saturates a negative start at 0, as Pillow does by hand.
            let min = (center - support + 0.5) as usize;
            let max = ((center + support + 0.5) as usize).min(canvas);
            row.clear();
            row.extend((min..max).map(|i| filter.weight((i as f64 - center + 0.5) * (1.0 / stretch))));
            let sum: f64 = row.iter().sum();
            let mut taps = Taps {
                start: min.saturating_sub(start).min(len),
                len: 0,
                offset: axis.weights.len(),
                inside: 0,
                outside: 0,
            };
            for (i, &weight) in (min..max).zip(&row) {
                let weight = fixed(if sum != 0.0 { weight / sum } else { weight });
                if i >= start && i < start + len {
                    axis.weights.push(weight);
                    taps.len += 1;
                    taps.inside = taps.inside.wrapping_add(weight);
                } else {
                    taps.outside = taps.outside.wrapping_add(weight);
                }
            }
            axis.taps.push(taps);
        }
        axis
    }

    /// First input row that any output row needs.
    fn first(&self) -> usize {
        self.taps.iter().filter(|t| t.len > 0).map(|t| t.start).min().unwrap_or(0)
    }

    /// One past the last input row that any output row needs.
    fn last(&self) -> usize {
        self.taps.iter().filter(|t| t.len > 0).map(|t| t.start + t.len).max().unwrap_or(0)
    }

    /// How many output pixels at most lie between the first that is unfinished and the last that is begun, at any
    /// input pixel.
    fn most_at_once(&self) -> usize {
        let (mut most, mut begun, mut done) = (0, 0, 0);
        for y in self.first()..self.last() {
            while begun < self.taps.len() && self.taps[begun].start <= y {
                begun += 1;
            }
            most = most.max(begun - done);
            while done < begun && self.taps[done].start + self.taps[done].len <= y + 1 {
                done += 1;
            }
        }
        most
    }

    /// The horizontal pass over one row of the picture.
    fn run_row(&self, source: &[u8], fill: [u8; 3], out: &mut [u8]) {
        if self.identity {
            out.copy_from_slice(source);
            return;
        }
        let fill = fill.map(i32::from);
        for (pixel, taps) in out.chunks_exact_mut(3).zip(&self.taps) {
            let mut sums = fill.map(|fill| HALF.wrapping_add(fill.wrapping_mul(taps.outside)));
            let source = source[taps.start * 3..(taps.start + taps.len) * 3].chunks_exact(3);
            for (rgb, &weight) in source.zip(&self.weights[taps.offset..taps.offset + taps.len]) {
                sums[0] = sums[0].wrapping_add(i32::from(rgb[0]).wrapping_mul(weight));
                sums[1] = sums[1].wrapping_add(i32::from(rgb[1]).wrapping_mul(weight));
                sums[2] = sums[2].wrapping_add(i32::from(rgb[2]).wrapping_mul(weight));
            }
            for (value, sum) in pixel.iter_mut().zip(sums) {
                *value = clip8(sum);
            }
        }
    }
}

/// A coefficient in fixed point, halves away from zero.
fn fixed(weight: f64) -> i32 {
    let scaled = weight * f64::from(ONE);
    (if weight < 0.0 { scaled - 0.5 } else { scaled + 0.5 }) as i32
}
