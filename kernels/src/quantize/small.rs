//! Ternary weights and 4-bit floats: TQ1_0, TQ2_0, MXFP4 and NVFP4, by either search.

use super::Search;
use super::lanes::{Lanes, Task};
use crate::Dtype;
use crate::block::{FP4_CODES, NVFP4_SCALES, QK_K, mxfp4_scale};
use half::f16;

/// Rows to blocks of one of these types.
pub(crate) struct Rows<'a> {
    pub dtype: Dtype,
    pub search: Search,
    pub x: &'a [f32],
    pub n_cols: usize,
    pub importance: Option<&'a [f32]>,
    pub out: &'a mut [u8],
}

impl Task for Rows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Lanes>(self) {
        let (weights, size) = self.dtype.block();
        let ones = [1.0; QK_K];
        for (i, (x, out)) in self.x.chunks_exact(weights).zip(self.out.chunks_exact_mut(size)).enumerate() {
            let at = i * weights % self.n_cols;
            let w = match self.importance {
                Some(w) => &w[at..at + weights],
                None => &ones[..weights],
            };
            match self.dtype {
                Dtype::MXFP4 => mxfp4(self.search, x, w, out),
                Dtype::NVFP4 => nvfp4(self.search, x, w, out),
                _ => ternary(self.dtype, self.search, x, w, out),
            }
        }
    }
}

/// The scale of ternary weights for which the weighted squared error is least: some of the largest weights are not zero, and
/// the scale is their mean. Each number of them is tried. Large weights count more, as for the types of few bits.
fn ternary_scale(x: &[f32], w: &[f32]) -> f32 {
    let finite = || x.iter().zip(w).filter(|(x, _)| x.is_finite());
    let mean_square = finite().map(|(x, _)| x * x).sum::<f32>() / x.len() as f32;
    let mut order: Vec<(f32, f32)> = finite()
        .map(|(x, w)| (x.abs(), w * (2.0 * mean_square + x * x).sqrt()))
        .filter(|(_, w)| w.is_finite())
        .collect();
    order.sort_unstable_by(|a, b| b.0.total_cmp(&a.0));
    let (mut wx, mut ww, mut best, mut scale) = (0.0, 0.0, 0.0, 0.0);
    for (x, w) in order {
        wx += f64::from(w) * f64::from(x);
        ww += f64::from(w);
        // What the error falls short of that of all zeros.
        if wx * wx > best * ww {
            (best, scale) = (wx * wx / ww, wx / ww);
        }
    }
    scale as f32
}

fn ternary(dtype: Dtype, search: Search, x: &[f32], w: &[f32], out: &mut [u8]) {
    let largest = x.iter().fold(0.0, |max: f32, x| if x.abs() > max { x.abs() } else { max });
    let d = if search == Search::Best { f16::from_f32(ternary_scale(x, w)).to_f32() } else { largest };
    let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
    let digit = |i: usize| {
        let y = x[i] * inverse;
        1 + u8::from(y >= 0.5) - u8::from(y <= -0.5)
    };
    if dtype == Dtype::TQ2_0 {
        for (at, out) in out[..64].iter_mut().enumerate() {
            *out = (0..4).map(|j| digit(at / 32 * 128 + 32 * j + at % 32) << (2 * j)).sum();
        }
    } else {
        // Digits of a fraction, the first one largest, of which the next larger byte is stored.
        let fraction =
            |digits: [u8; 5]| (digits.into_iter().fold(0, |q, d| 3 * q + u16::from(d)) * 256).div_ceil(243) as u8;
        (0..32).for_each(|i| out[i] = fraction(std::array::from_fn(|n| digit(32 * n + i))));
        (0..16).for_each(|i| out[32 + i] = fraction(std::array::from_fn(|n| digit(160 + 16 * n + i))));
        (0..4).for_each(|i| {
            out[48 + i] = fraction(std::array::from_fn(|n| if n < 4 { digit(240 + 4 * n + i) } else { 0 }));
        });
    }
    let at = out.len() - 2;
    out[at..].copy_from_slice(&f16::from_f32(d).to_le_bytes());
}

/// The code of the 4-bit float nearest to `x / scale`, of two the smaller.
#[inline(always)]
fn fp4(x: f32, scale: f32) -> u8 {
    // Between each two magnitudes.
    const MIDDLES: [f32; 7] = [0.5, 1.5, 2.5, 3.5, 5.0, 7.0, 10.0];
    let magnitude = MIDDLES.iter().map(|middle| u8::from(x.abs() > middle * scale)).sum::<u8>();
    magnitude | u8::from(x < 0.0 && magnitude > 0) << 3
}

/// The weighted squared error of 4-bit floats with a scale.
#[inline(always)]
fn fp4_error(x: &[f32], w: &[f32], scale: f32) -> f32 {
    let error = |(x, w): (&f32, &f32)| {
        let off = x - f32::from(FP4_CODES[usize::from(fp4(*x, scale))]) * scale;
        w * (off * off)
    };
    x.iter().zip(w).map(error).sum()
}

/// The byte of `tries` whose scale gives the least error, the first one of equals.
#[inline(always)]
fn best_of(x: &[f32], w: &[f32], tries: std::ops::RangeInclusive<u8>, scale: impl Fn(u8) -> f32) -> u8 {
    let mut best = (f32::INFINITY, *tries.start());
    for byte in tries {
        let error = fp4_error(x, w, scale(byte));
        if error < best.0 {
            best = (error, byte);
        }
    }
    best.1
}

fn largest(x: &[f32]) -> f32 {
    x.iter().fold(0.0, |max: f32, x| if x.abs() > max { x.abs() } else { max })
}

#[inline(always)]
fn mxfp4(search: Search, x: &[f32], w: &[f32], out: &mut [u8]) {
    let max = largest(x);
    // The exponent of the largest float of 4 bits is 2. The conversion keeps to what a byte holds.
    let e = if max > 0.0 { (max.log2().floor() - 2.0 + 127.0) as u8 } else { 0 };
    let e = match search {
        Search::Ggml => e,
        Search::Best => best_of(x, w, e.saturating_sub(1)..=e.saturating_add(1), mxfp4_scale),
    };
    let d = mxfp4_scale(e);
    out[0] = e;
    for (i, out) in out[1..].iter_mut().enumerate() {
        *out = fp4(x[i], d) | fp4(x[16 + i], d) << 4;
    }
}

/// The byte of NVFP4 that stands for about `x`, doubled, as ggml rounds it.
fn nvfp4_byte(x: f32) -> u8 {
    match x {
        248.0.. => 0x7e,
        // Normal from 2⁻⁶ on: 3 bits of the mantissa are left, and the exponent begins elsewhere.
        0.015625.. => (((x.to_bits() + (1 << 19)) >> 20) - ((127 - 7) << 3)) as u8,
        _ => ((x * 512.0 + 0.5) as u8).min(7),
    }
}

#[inline(always)]
fn nvfp4(search: Search, x: &[f32], w: &[f32], out: &mut [u8]) {
    for g in 0..4 {
        let (x, w) = (&x[16 * g..16 * g + 16], &w[16 * g..16 * g + 16]);
        let byte = nvfp4_byte(largest(x) / 6.0);
        let byte = match search {
            Search::Ggml => byte,
            Search::Best => {
                best_of(x, w, byte.saturating_sub(6)..=(byte + 4).min(0x7e), |b| NVFP4_SCALES[usize::from(b)])
            }
        };
        let d = NVFP4_SCALES[usize::from(byte)];
        out[g] = byte;
        for i in 0..8 {
            out[4 + 8 * g + i] = fp4(x[i], d) | fp4(x[8 + i], d) << 4;
        }
    }
}
