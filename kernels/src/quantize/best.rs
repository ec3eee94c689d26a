//! Searches for the least weighted squared error.
//!
//! Where a scale is given, the nearest integers are the best ones; where integers are given, least squares give the best
//! scale. A search tries scales around the one that just spans the group, takes the best and alternates. Scales that are
//! integers themselves are tried one by one around the nearest ones, with the integers that each asks for, and the factors of a
//! super-block are fitted again to what was found.

use super::ggml::{extreme, iq4_code, range, unsigned};
use super::lanes::Lanes;

/// The values that a symmetric type's integers stand for.
pub(crate) trait Codes: Copy {
    /// What the largest weight of a group is tried to be.
    const STARTS: &'static [f32];

    /// The nearest value.
    fn nearest<V: Lanes>(x: V) -> V;
}

/// The integers from `-N` to `N - 1`.
#[derive(Clone, Copy)]
pub(crate) struct Linear<const N: i16>;

/// The 16 codes of IQ4.
#[derive(Clone, Copy)]
pub(crate) struct Iq4;

impl<const N: i16> Codes for Linear<N> {
    const STARTS: &'static [f32] = match N {
        2 => &[-3.4, -3.2, -3.0, -2.8, -2.65, -2.5, -2.35, -2.2, -2.05, -1.9, -1.75, -1.6, 1.1, 1.25, 1.4, 1.55, 1.7],
        4 => &[
            -4.9, -4.7, -4.5, -4.35, -4.2, -4.05, -3.9, -3.75, -3.6, -3.45, -3.3, -3.1, -2.9, -2.7, -2.5, 2.5, 2.8,
            3.1, 3.4, 3.7,
        ],
        8 => &[
            -9.2, -8.9, -8.7, -8.5, -8.35, -8.2, -8.05, -7.9, -7.75, -7.6, -7.45, -7.3, -7.15, -7.0, -6.8, -6.5, 6.6,
            6.9, 7.2, 7.5,
        ],
        16 => &[
            -17.2, -16.9, -16.7, -16.5, -16.35, -16.2, -16.05, -15.9, -15.75, -15.6, -15.45, -15.3, -15.15, -15.0,
            -14.8, -14.5, 15.0, 15.3, 15.6,
        ],
        32 => &[-32.9, -32.6, -32.3, -32.0, -31.7, -31.4, -31.1, -30.7, -30.3, 31.0, 31.4],
        // At 127 weights that were in this type before come back as they were.
        128 => &[-128.3, -127.9, -127.5, -127.1, -126.7, -126.3, 126.7, 127.0, 127.5],
        _ => panic!("no starts for this many integers"),
    };
    #[inline(always)]
    fn nearest<V: Lanes>(x: V) -> V {
        x.round().clamp(-f32::from(N), f32::from(N) - 1.0)
    }
}

impl Codes for Iq4 {
    const STARTS: &'static [f32] = &[
        -140.0, -135.0, -131.0, -128.0, -125.0, -122.0, -119.0, -116.0, -113.0, -110.0, -107.0, -104.0, 104.0, 108.0,
        112.0, 116.0, 120.0, 124.0,
    ];
    #[inline(always)]
    fn nearest<V: Lanes>(x: V) -> V {
        iq4_code(x)
    }
}

/// 1 / x, or 0 for 0.
#[inline(always)]
pub(crate) fn invert<V: Lanes>(x: V) -> V {
    (V::splat(1.0) / x).keep(x.ne(V::splat(0.0)))
}

/// Weights divided by their sum; all alike where it is 0 or no number.
#[inline(always)]
pub(crate) fn normalize<V: Lanes>(w: &mut [V]) {
    let mut sum = V::splat(0.0);
    for &w in w.iter() {
        sum = sum + w;
    }
    let some = V::and(sum.gt(V::splat(0.0)), sum.lt(V::splat(f32::INFINITY)));
    let factor = V::splat(1.0) / sum;
    for w in w {
        *w = V::select(some, *w * factor, V::splat(1.0));
    }
}

/// `(Σ w x c, Σ w c²)` of the codes at a scale.
#[inline(always)]
pub(crate) fn products<V: Lanes, C: Codes>(x: &[V], w: &[V], inverse: V) -> (V, V) {
    let (mut xc, mut cc) = (V::splat(0.0), V::splat(0.0));
    for (&x, &w) in x.iter().zip(w) {
        let c = C::nearest(x * inverse);
        let wc = w * c;
        xc = xc + wc * x;
        cc = cc + wc * c;
    }
    (xc, cc)
}

/// `Σ w (x - scale · c)²`
#[inline(always)]
pub(crate) fn error<V: Lanes, C: Codes>(x: &[V], w: &[V], scale: V) -> V {
    let inverse = invert(scale);
    let mut sum = V::splat(0.0);
    for (&x, &w) in x.iter().zip(w) {
        let r = x - scale * C::nearest(x * inverse);
        sum = sum + w * r * r;
    }
    sum
}

/// The scale of a group.
#[inline(always)]
pub(crate) fn scale<V: Lanes, C: Codes>(x: &[V], w: &[V], alternations: usize) -> V {
    let zero = V::splat(0.0);
    let largest = invert(extreme(x).0);
    let (mut scale, mut best) = (zero, zero);
    for i in 0..C::STARTS.len() + alternations {
        let inverse = if let Some(start) = C::STARTS.get(i) { V::splat(*start) * largest } else { invert(scale) };
        let (xc, cc) = products::<V, C>(x, w, inverse);
        let new = xc / cc;
        let better = (new * xc).gt(best);
        scale = V::select(better, new, scale);
        best = V::select(better, new * xc, best);
    }
    scale
}

/// The sums that fit a scale and a min to given integers.
#[derive(Clone, Copy)]
struct Line<V> {
    w: V,
    x: V,
    xx: V,
}

/// The scale and the min that leave the least error so far.
struct Found<V> {
    scale: V,
    min: V,
    error: V,
}

impl<V: Lanes> Found<V> {
    #[inline(always)]
    fn keep_better(&mut self, (scale, min, error): (V, V, V)) {
        let better = error.lt(self.error);
        self.scale = V::select(better, scale, self.scale);
        self.min = V::select(better, min, self.min);
        self.error = V::select(better, error, self.error);
    }
}

/// `Σ w l`, `Σ w l²` and `Σ w l x` of the integers from 0 to `n` at a scale and a min.
#[inline(always)]
fn sums<V: Lanes>(x: &[V], w: &[V], min: V, inverse: V, n: f32) -> (V, V, V) {
    let (mut l, mut ll, mut lx) = (V::splat(0.0), V::splat(0.0), V::splat(0.0));
    for (&x, &w) in x.iter().zip(w) {
        let q = unsigned(x, min, inverse, n);
        let wq = w * q;
        l = l + wq;
        ll = ll + wq * q;
        lx = lx + wq * x;
    }
    (l, ll, lx)
}

/// The scale and the min that fit best, the min at most `highest`, and what they leave of the error.
#[inline(always)]
fn fit<V: Lanes>(line: Line<V>, (l, ll, lx): (V, V, V), highest: V) -> (V, V, V) {
    let det = line.w * ll - l * l;
    let min = ((ll * line.x - l * lx) / det).min(highest);
    let lx = lx - min * l;
    let scale = lx / ll;
    let centred = line.xx - min * (line.x + line.x - min * line.w);
    (scale, min, centred - scale * lx)
}

/// What [`affine`] tries for integers from 0 to `n`: how many steps of the range that just spans the group are cut off below
/// and above; then what the scale is divided by.
const fn tries(n: f32) -> (&'static [(f32, f32)], &'static [f32]) {
    const FINE: &[(f32, f32)] = &[
        (0.0, 0.0),
        (0.25, 0.25),
        (-0.25, -0.25),
        (0.5, 0.0),
        (0.0, 0.5),
        (0.5, 0.5),
        (0.0, 0.25),
        (0.25, 0.0),
        (0.75, 0.75),
        (1.0, 0.0),
        (0.0, 1.0),
        (1.0, 1.0),
    ];
    const COARSE: &[(f32, f32)] = &[
        (0.0, 0.0),
        (0.25, 0.25),
        (-0.25, -0.25),
        (0.5, 0.0),
        (0.0, 0.5),
        (0.5, 0.5),
        (0.0, 0.25),
        (0.25, 0.0),
        (0.75, 0.75),
        (0.8, 0.0),
        (0.0, 0.8),
        (0.75, 0.25),
        (0.25, 0.75),
        (-0.1, -0.1),
        (0.1, 0.1),
        (0.4, 0.4),
        (1.1, 0.1),
        (0.1, 1.1),
        (1.0, 0.5),
        (0.5, 1.0),
        (-0.25, 0.5),
        (0.5, -0.25),
        (0.2, 0.5),
        (0.5, 0.2),
        (0.3, 0.0),
        (0.0, 0.3),
    ];
    match n as u32 {
        3 => (COARSE, &[]),
        15 => (FINE, &[0.94, 0.955, 0.97, 0.985, 0.995, 1.005, 1.015, 1.03, 1.045, 1.06]),
        _ => (FINE, &[0.95, 0.96, 0.97, 0.98, 0.988, 0.995, 1.005, 1.012, 1.02, 1.03, 1.04, 1.05]),
    }
}

/// The scale and the min of a group of integers from 0 to `n`, `x ≈ scale · q + min`, with the min at most `highest`.
#[inline(always)]
pub(crate) fn affine<V: Lanes, const W: usize>(n: f32, x: &[V; W], w: &[V; W], highest: V) -> (V, V) {
    let zero = V::splat(0.0);
    let (low, high) = range(x);
    let low = low.min(highest);
    // Sums of what lies above the lowest lose less to rounding.
    let mut y = *x;
    let mut line = Line { w: zero, x: zero, xx: zero };
    for (y, &w) in y.iter_mut().zip(w) {
        *y = *y - low;
        line.w = line.w + w;
        line.x = line.x + w * *y;
        line.xx = line.xx + w * *y * *y;
    }
    let highest = highest - low;
    let span = invert(high - low);
    let mut found = Found { scale: zero, min: highest.min(line.x / line.w), error: V::splat(f32::INFINITY) };
    let step = (high - low) * V::splat(1.0 / n);
    let (starts, factors) = tries(n);
    for (below, above) in starts {
        let inverse = V::splat(n * n / (n - below - above)) * span;
        found.keep_better(fit(line, sums(&y, w, step * V::splat(*below), inverse, n), highest));
    }
    let first = found.scale;
    for factor in factors {
        found.keep_better(fit(line, sums(&y, w, found.min, V::splat(*factor) * invert(first), n), highest));
    }
    for _ in 0..3 {
        found.keep_better(fit(line, sums(&y, w, found.min, invert(found.scale), n), highest));
    }
    (found.scale, found.min + low)
}

/// The error at a scale and a min, and the mean of what is left: how far the min is from where these integers want it.
#[inline(always)]
pub(crate) fn affine_error<V: Lanes>(x: &[V], w: &[V], scale: V, min: V, n: f32) -> (V, V) {
    let inverse = invert(scale);
    let (mut sum, mut mean, mut total) = (V::splat(0.0), V::splat(0.0), V::splat(0.0));
    for (&x, &w) in x.iter().zip(w) {
        let r = x - min - scale * unsigned(x, min, inverse, n);
        let wr = w * r;
        sum = sum + wr * r;
        mean = mean + wr;
        total = total + w;
    }
    (sum, mean / total)
}
