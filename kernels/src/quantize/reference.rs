//! `Search::Ggml`: the blocks that ggml makes.
#![allow(non_camel_case_types)]

use super::batch::{Format, Out};
use super::ggml::*;
use super::lanes::Lanes;
use super::pack;
use crate::Dtype;

/// The weights of squared errors where there is an importance: `importance · sqrt(mean square + x²)`.
#[inline(always)]
fn weigh<V: Lanes>(x: &[V], importance: &[V], mean_square: V, w: &mut [V]) {
    for (w, (&x, &importance)) in w.iter_mut().zip(x.iter().zip(importance)) {
        *w = importance * (mean_square + x * x).sqrt();
    }
}

/// `Σ x`, in order.
#[inline(always)]
fn sum<V: Lanes>(x: &[V]) -> V {
    let mut sum = V::splat(0.0);
    for &x in x {
        sum = sum + x;
    }
    sum
}

/// `Σ x²`, in order.
#[inline(always)]
fn squares<V: Lanes>(x: &[V]) -> V {
    let mut sum = V::splat(0.0);
    for &x in x {
        sum = sum + x * x;
    }
    sum
}

/// 1 / x, or 0 for 0.
#[inline(always)]
fn invert<V: Lanes>(x: V) -> V {
    (V::splat(1.0) / x).keep(x.ne(V::splat(0.0)))
}

/// What a conversion to a byte leaves of a float: an integer toward 0, and 0 for what is not finite.
#[inline(always)]
fn to_integer<V: Lanes>(x: V, highest: f32) -> V {
    x.trunc().keep(x.abs().lt(V::splat(1e9))).min(V::splat(highest))
}

/// The scale and the integers of Q4_0 and Q5_0, from 0 to `2 n - 1`.
#[inline(always)]
fn symmetric_32<V: Lanes>(n: f32, x: &[V; 32], w: Option<&[V; 32]>, mean_square: V, q: &mut [V; 32]) -> V {
    if let Some(importance) = w {
        let mut w = *x;
        weigh(x, importance, mean_square, &mut w);
        return symmetric(n, x, &w, q);
    }
    let d = extreme(x).0 / V::splat(-n);
    let inverse = invert(d);
    for (q, &x) in q.iter_mut().zip(x) {
        *q = to_integer(x * inverse + V::splat(n + 0.5), 2.0 * n - 1.0);
    }
    d
}

/// The scale, min and integers of Q4_1 and Q5_1, from 0 to `n`.
#[inline(always)]
fn affine_32<V: Lanes>(n: f32, x: &[V; 32], w: Option<&[V; 32]>, mean_square: V, q: &mut [V; 32]) -> (V, V) {
    if let Some(importance) = w {
        let mut w = *x;
        weigh(x, importance, mean_square, &mut w);
        return affine(n, x, &w, q, MANY);
    }
    let (min, max) = range(x);
    let d = (max - min) / V::splat(n);
    let inverse = invert(d);
    for (q, &x) in q.iter_mut().zip(x) {
        *q = to_integer((x - min) * inverse + V::splat(0.5), n);
    }
    (d, min)
}

/// The tries where there is an importance.
const MANY: Tries = Tries { from: -0.9, step: 0.05, steps: 36, magnitudes: false };

pub(crate) struct Q4_0;
impl Format<32> for Q4_0 {
    const DTYPE: Dtype = Dtype::Q4_0;
    const NEEDS_ROWS: bool = true;

    #[inline(always)]
    fn encode<V: Lanes>(x: &[V; 32], importance: Option<&[V; 32]>, mean_square: V, out: &mut Out<'_>) {
        let mut q = *x;
        let d = symmetric_32(8.0, x, importance, mean_square, &mut q);
        out.half(0, d);
        pack::nibbles_32(out, 2, &q);
    }
}

pub(crate) struct Q5_0;
impl Format<32> for Q5_0 {
    const DTYPE: Dtype = Dtype::Q5_0;
    const NEEDS_ROWS: bool = true;

    #[inline(always)]
    fn encode<V: Lanes>(x: &[V; 32], importance: Option<&[V; 32]>, mean_square: V, out: &mut Out<'_>) {
        let mut q = *x;
        let d = symmetric_32(16.0, x, importance, mean_square, &mut q);
        out.half(0, d);
        pack::five_bits_32(out, 2, &q);
    }
}

pub(crate) struct Q4_1;
impl Format<32> for Q4_1 {
    const DTYPE: Dtype = Dtype::Q4_1;
    const NEEDS_ROWS: bool = true;

    #[inline(always)]
    fn encode<V: Lanes>(x: &[V; 32], importance: Option<&[V; 32]>, mean_square: V, out: &mut Out<'_>) {
        let mut q = *x;
        let (d, m) = affine_32(15.0, x, importance, mean_square, &mut q);
        out.half(0, d);
        out.half(2, m);
        pack::nibbles_32(out, 4, &q);
    }
}

pub(crate) struct Q5_1;
impl Format<32> for Q5_1 {
    const DTYPE: Dtype = Dtype::Q5_1;
    const NEEDS_ROWS: bool = true;

    #[inline(always)]
    fn encode<V: Lanes>(x: &[V; 32], importance: Option<&[V; 32]>, mean_square: V, out: &mut Out<'_>) {
        let mut q = *x;
        let (d, m) = affine_32(31.0, x, importance, mean_square, &mut q);
        out.half(0, d);
        out.half(2, m);
        pack::five_bits_32(out, 4, &q);
    }
}

pub(crate) struct Q8_0;
impl Format<32> for Q8_0 {
    const DTYPE: Dtype = Dtype::Q8_0;

    #[inline(always)]
    fn encode<V: Lanes>(x: &[V; 32], _: Option<&[V; 32]>, _: V, out: &mut Out<'_>) {
        let (half, zero) = (V::splat(0.5), V::splat(0.0));
        let d = extreme(x).1 / V::splat(127.0);
        let inverse = invert(d);
        out.half(0, d);
        for (i, &x) in x.iter().enumerate() {
            // Away from 0 from halfway.
            let x = x * inverse;
            let whole = x.trunc();
            let away = V::select(x.lt(zero), V::splat(-1.0), V::splat(1.0));
            let q = whole + away.keep((x - whole).abs().ge(half));
            out.byte(2 + i, q.keep(q.abs().lt(V::splat(128.0))));
        }
    }
}

pub(crate) struct Q1_0;
impl Format<128> for Q1_0 {
    const DTYPE: Dtype = Dtype::Q1_0;

    #[inline(always)]
    fn encode<V: Lanes>(x: &[V; 128], _: Option<&[V; 128]>, _: V, out: &mut Out<'_>) {
        let mut magnitudes = *x;
        for magnitude in &mut magnitudes {
            *magnitude = magnitude.abs();
        }
        out.half(0, sum(&magnitudes) / V::splat(128.0));
        pack::signs_128(out, 2, x);
    }
}

pub(crate) struct Q2_0;
impl Format<64> for Q2_0 {
    const DTYPE: Dtype = Dtype::Q2_0;

    #[inline(always)]
    fn encode<V: Lanes>(x: &[V; 64], _: Option<&[V; 64]>, _: V, out: &mut Out<'_>) {
        let d = extreme(x).1;
        let inverse = invert(d);
        out.half(0, d);
        let mut q = *x;
        for q in &mut q {
            let (x, one) = (*q * inverse, V::splat(1.0));
            *q = one + one.keep(x.ge(V::splat(0.5))) - one.keep(V::splat(-0.5).ge(x));
        }
        pack::two_bits_64(out, 2, &q);
    }
}

pub(crate) struct IQ4_NL;
impl Format<32> for IQ4_NL {
    const DTYPE: Dtype = Dtype::IQ4_NL;

    #[inline(always)]
    fn encode<V: Lanes>(x: &[V; 32], importance: Option<&[V; 32]>, _: V, out: &mut Out<'_>) {
        let mut w = *x;
        iq4_weights(x, importance, squares(x) * V::splat(2.0 / 32.0), &mut w);
        let d = iq4_scale(x, &w);
        out.half(0, d);
        let inverse = invert(d);
        let mut q = *x;
        iq4_indices(inverse, &mut q);
        pack::nibbles_32(out, 2, &q);
    }
}

#[inline(always)]
fn iq4_weights<V: Lanes>(x: &[V; 32], importance: Option<&[V; 32]>, mean_square: V, w: &mut [V; 32]) {
    match importance {
        Some(importance) => weigh(x, importance, mean_square, w),
        None => {
            for (w, &x) in w.iter_mut().zip(x) {
                *w = x * x;
            }
        }
    }
}

/// Floats to the indices of their codes.
#[inline(always)]
fn iq4_indices<V: Lanes>(inverse: V, q: &mut [V]) {
    for q in q {
        *q = iq4_index(inverse * *q);
    }
}

pub(crate) struct IQ4_XS;
impl Format<256> for IQ4_XS {
    const DTYPE: Dtype = Dtype::IQ4_XS;

    #[inline(always)]
    fn encode<V: Lanes>(x: &[V; 256], importance: Option<&[V; 256]>, _: V, out: &mut Out<'_>) {
        let zero = V::splat(0.0);
        let mean_square = squares(x) * V::splat(2.0 / 256.0);
        let (mut w, mut scales, mut q) = ([zero; 32], [zero; 8], *x);
        for (g, x) in x.as_chunks().0.iter().enumerate() {
            iq4_weights(x, importance.map(|w| &w.as_chunks().0[g]), mean_square, &mut w);
            scales[g] = iq4_scale(x, &w);
        }
        let d = extreme(&scales).0 / V::splat(-32.0);
        out.half(0, d);
        let inverse = invert(d);
        for (s, q) in scales.iter_mut().zip(q.as_chunks_mut::<32>().0) {
            let l = (inverse * *s).round().clamp(-32.0, 31.0);
            let inverse = invert(d * l);
            iq4_indices(inverse, q);
            *s = l + V::splat(32.0);
        }
        pack::iq4_xs(out, &scales, &q);
    }
}

/// The integers from 0 to `n` for the scale and the min that the block has. They stay where the scale is 0.
#[inline(always)]
fn again<V: Lanes>(x: &[V], d: V, min: V, n: f32, q: &mut [V]) {
    let stays = d.ne(V::splat(0.0));
    for (q, &x) in q.iter_mut().zip(x) {
        *q = V::select(stays, ((x + min) / d).low_bits().clamp(0.0, n), *q);
    }
}

/// The scales or mins of a super-block as integers from 0 to `n`, and their factor.
#[inline(always)]
fn by_largest<V: Lanes, const G: usize>(n: f32, x: &[V; G], q: &mut [V; G]) -> V {
    let zero = V::splat(0.0);
    let mut max = zero;
    for &x in x {
        max = x.max(max);
    }
    let inverse = (V::splat(n) / max).keep(max.gt(zero));
    for (q, &x) in q.iter_mut().zip(x) {
        *q = (inverse * x).low_bits().clamp(0.0, n);
    }
    max / V::splat(n)
}

pub(crate) struct Q2_K;
impl Format<256> for Q2_K {
    const DTYPE: Dtype = Dtype::Q2_K;

    #[inline(always)]
    fn encode<V: Lanes>(x: &[V; 256], importance: Option<&[V; 256]>, _: V, out: &mut Out<'_>) {
        let zero = V::splat(0.0);
        let (mut scales, mut mins, mut sums, mut q) = ([zero; 16], [zero; 16], [zero; 16], *x);
        let mean_square = squares(x) / V::splat(256.0);
        for (g, (x, q)) in x.as_chunks::<16>().0.iter().zip(q.as_chunks_mut().0).enumerate() {
            let mut w = *x;
            let tries = match importance {
                Some(importance) => {
                    weigh(x, &importance.as_chunks::<16>().0[g], mean_square, &mut w);
                    MANY
                }
                None => {
                    for w in &mut w {
                        *w = w.abs();
                    }
                    Tries { from: -0.5, step: 0.1, steps: 15, magnitudes: true }
                }
            };
            let (scale, min) = affine(3.0, x, &w, q, tries);
            (scales[g], mins[g], sums[g]) = (scale, zero - min, sum(&w));
        }
        let (mut s, mut m) = (scales, mins);
        let (d, dmin) = match importance {
            Some(_) => (positive(15.0, &scales, &sums, &mut s), positive(15.0, &mins, &sums, &mut m)),
            None => (by_largest(15.0, &scales, &mut s), by_largest(15.0, &mins, &mut m)),
        };
        let (d, dmin) = (out.half(80, d), out.half(82, dmin));
        for (g, (x, q)) in x.as_chunks::<16>().0.iter().zip(q.as_chunks_mut::<16>().0).enumerate() {
            again(x, d * s[g], dmin * m[g], 3.0, q);
        }
        pack::q2_k(out, &s, &m, &q);
    }
}

pub(crate) struct Q3_K;
impl Format<256> for Q3_K {
    const DTYPE: Dtype = Dtype::Q3_K;

    #[inline(always)]
    fn encode<V: Lanes>(x: &[V; 256], importance: Option<&[V; 256]>, _: V, out: &mut Out<'_>) {
        let (zero, middle) = (V::splat(0.0), V::splat(32.0));
        let (mut scales, mut sums, mut s, mut q) = ([zero; 16], [zero; 16], [zero; 16], *x);
        let mean_square = V::splat(2.0) * squares(x) / V::splat(256.0);
        for (g, (x, q)) in x.as_chunks::<16>().0.iter().zip(q.as_chunks_mut().0).enumerate() {
            scales[g] = match importance {
                Some(importance) => {
                    let mut w = *x;
                    weigh(x, &importance.as_chunks::<16>().0[g], mean_square, &mut w);
                    sums[g] = sum(&w);
                    symmetric(4.0, x, &w, q)
                }
                None => three_bits(x, q),
            };
        }
        let d = match importance {
            Some(_) => symmetric(32.0, &scales, &sums, &mut s),
            None => {
                let largest = extreme(&scales).0;
                let inverse = V::splat(-32.0) / largest;
                let some = largest.ne(zero);
                for (s, &scale) in s.iter_mut().zip(&scales) {
                    *s = ((inverse * scale).low_bits().clamp(-32.0, 31.0) + middle).keep(some);
                }
                (V::splat(1.0) / inverse).keep(some)
            }
        };
        let d = out.half(108, d);
        for (g, (x, q)) in x.as_chunks::<16>().0.iter().zip(q.as_chunks_mut::<16>().0).enumerate() {
            let d = d * (s[g] - middle);
            let some = d.ne(zero);
            for (q, &x) in q.iter_mut().zip(x) {
                *q = V::select(some, (x / d).low_bits().clamp(-4.0, 3.0) + V::splat(4.0), *q);
            }
        }
        pack::q3_k(out, &s, &mut q);
    }
}

/// What Q4_K and Q5_K share: factors at the start, and integers from 0 to `n` into `q`.
#[inline(always)]
fn k4<V: Lanes>(
    n: f32,
    x: &[V; 256],
    importance: Option<&[V; 256]>,
    tries: Tries,
    q: &mut [V; 256],
    out: &mut Out<'_>,
) {
    let zero = V::splat(0.0);
    let (mut scales, mut mins, mut sums) = ([zero; 8], [zero; 8], [zero; 8]);
    let mean_square = V::splat(2.0) * squares(x) / V::splat(256.0);
    for (g, (x, q)) in x.as_chunks::<32>().0.iter().zip(q.as_chunks_mut().0).enumerate() {
        let mut w = *x;
        let tries = match importance {
            Some(importance) => {
                weigh(x, &importance.as_chunks::<32>().0[g], mean_square, &mut w);
                MANY
            }
            None => {
                let mean = (squares(x) / V::splat(32.0)).sqrt();
                for w in &mut w {
                    *w = mean + w.abs();
                }
                tries
            }
        };
        let (scale, min) = affine(n, x, &w, q, tries);
        (scales[g], mins[g], sums[g]) = (scale, zero - min, sum(&w));
    }
    let (mut s, mut m) = (scales, mins);
    let (d, dmin) = match importance {
        Some(_) => (positive(63.0, &scales, &sums, &mut s), positive(63.0, &mins, &sums, &mut m)),
        None => (by_largest(63.0, &scales, &mut s), by_largest(63.0, &mins, &mut m)),
    };
    let (d, dmin) = (out.half(0, d), out.half(2, dmin));
    for (g, (x, q)) in x.as_chunks::<32>().0.iter().zip(q.as_chunks_mut::<32>().0).enumerate() {
        again(x, d * s[g], dmin * m[g], n, q);
    }
    pack::scales_k4(out, 4, &s, &m);
}

pub(crate) struct Q4_K;
impl Format<256> for Q4_K {
    const DTYPE: Dtype = Dtype::Q4_K;

    #[inline(always)]
    fn encode<V: Lanes>(x: &[V; 256], importance: Option<&[V; 256]>, _: V, out: &mut Out<'_>) {
        let mut q = *x;
        k4(15.0, x, importance, Tries { from: -1.0, step: 0.1, steps: 20, magnitudes: false }, &mut q, out);
        pack::nibbles_256(out, 16, &q);
    }
}

pub(crate) struct Q5_K;
impl Format<256> for Q5_K {
    const DTYPE: Dtype = Dtype::Q5_K;

    #[inline(always)]
    fn encode<V: Lanes>(x: &[V; 256], importance: Option<&[V; 256]>, _: V, out: &mut Out<'_>) {
        let mut q = *x;
        k4(31.0, x, importance, Tries { from: -0.5, step: 0.1, steps: 15, magnitudes: false }, &mut q, out);
        pack::five_bits_256(out, 16, &mut q);
    }
}

pub(crate) struct Q6_K;
impl Format<256> for Q6_K {
    const DTYPE: Dtype = Dtype::Q6_K;

    #[inline(always)]
    fn encode<V: Lanes>(x: &[V; 256], importance: Option<&[V; 256]>, _: V, out: &mut Out<'_>) {
        let zero = V::splat(0.0);
        let (mut scales, mut q) = ([zero; 16], *x);
        for (g, (x, q)) in x.as_chunks::<16>().0.iter().zip(q.as_chunks_mut().0).enumerate() {
            let mut w = *x;
            match importance {
                Some(importance) => w.copy_from_slice(&importance.as_chunks::<16>().0[g]),
                None => {
                    for w in &mut w {
                        *w = *w * *w;
                    }
                }
            }
            scales[g] = symmetric(32.0, x, &w, q);
        }
        let (largest, magnitude) = extreme(&scales);
        let nothing = magnitude.lt(V::splat(NOTHING));
        let inverse = V::splat(-128.0) / largest;
        let d = V::select(nothing, zero, V::splat(1.0) / inverse);
        let d = out.half(208, d);
        for (s, (x, q)) in scales.iter_mut().zip(x.as_chunks::<16>().0.iter().zip(q.as_chunks_mut::<16>().0)) {
            *s = V::select(nothing, zero, (inverse * *s).low_bits().clamp(-128.0, 127.0));
            let d = d * *s;
            let some = d.ne(zero);
            for (q, &x) in q.iter_mut().zip(x) {
                let new = (x / d).low_bits().clamp(-32.0, 31.0) + V::splat(32.0);
                *q = V::select(nothing, zero, V::select(some, new, *q));
            }
        }
        pack::q6_k(out, &scales, &q);
    }
}
