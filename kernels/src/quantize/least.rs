//! `Search::Best`: blocks of the least weighted squared error.
#![allow(non_camel_case_types)]

use super::batch::{Format, Out};
use super::best::*;
use super::lanes::Lanes;
use super::{ggml, pack};
use crate::Dtype;

/// What the squared error of each weight counts for: `importance · sqrt(2 · mean square + x²)`. Inputs that matter have larger
/// weights, and where all errors count alike, large weights become too small: both cost a model more than they save.
#[inline(always)]
fn weigh<V: Lanes, const W: usize>(x: &[V; W], importance: Option<&[V; W]>) -> [V; W] {
    let mut sum = V::splat(0.0);
    for &x in x {
        sum = sum + x * x;
    }
    let mean = sum * V::splat(2.0 / W as f32);
    let mut w = *x;
    for w in &mut w {
        *w = (mean + *w * *w).sqrt();
    }
    if let Some(importance) = importance {
        for (w, &importance) in w.iter_mut().zip(importance) {
            *w = *w * importance;
        }
    }
    normalize(&mut w);
    w
}

/// The nearest values of a symmetric type, as integers from 0.
#[inline(always)]
fn round<V: Lanes, C: Codes>(q: &mut [V], scale: V, offset: f32) {
    let inverse = invert(scale);
    for q in q {
        *q = C::nearest(*q * inverse) + V::splat(offset);
    }
}

/// The nearest integers from 0 to `n`.
#[inline(always)]
fn round_unsigned<V: Lanes>(q: &mut [V], scale: V, min: V, n: f32) {
    let inverse = invert(scale);
    for q in q {
        *q = ggml::unsigned(*q, min, inverse, n);
    }
}

/// The indices of the nearest codes of IQ4.
#[inline(always)]
fn round_iq4<V: Lanes>(q: &mut [V], scale: V) {
    let inverse = invert(scale);
    for q in q {
        *q = ggml::iq4_index(*q * inverse);
    }
}

macro_rules! symmetric_32 {
    ($name:ident $codes:ty, $offset:expr, $pack:path) => {
        pub(crate) struct $name;
        impl Format<32> for $name {
            const DTYPE: Dtype = Dtype::$name;

            #[inline(always)]
            fn encode<V: Lanes>(x: &[V; 32], importance: Option<&[V; 32]>, _: V, out: &mut Out<'_>) {
                let (w, mut q) = (weigh(x, importance), *x);
                let d = out.half(0, scale::<V, $codes>(x, &w, 3));
                round::<V, $codes>(&mut q, d, $offset);
                $pack(out, 2, &q);
            }
        }
    };
}
symmetric_32!(Q4_0 Linear<8>, 8.0, pack::nibbles_32);
symmetric_32!(Q5_0 Linear<16>, 16.0, pack::five_bits_32);

macro_rules! affine_32 {
    ($name:ident $n:expr, $pack:path) => {
        pub(crate) struct $name;
        impl Format<32> for $name {
            const DTYPE: Dtype = Dtype::$name;

            #[inline(always)]
            fn encode<V: Lanes>(x: &[V; 32], importance: Option<&[V; 32]>, _: V, out: &mut Out<'_>) {
                let (w, mut q) = (weigh(x, importance), *x);
                let (d, m) = affine($n, x, &w, V::splat(f32::MAX));
                let (d, m) = (d.half(), m.half());
                let (_, off) = affine_error(x, &w, d, m, $n);
                let m = (m + off).half();
                // The range itself may lose less to rounding.
                let (low, high) = ggml::range(x);
                let (span, low) = (((high - low) / V::splat($n)).half(), low.half());
                let found = affine_error(x, &w, d, m, $n).0.lt(affine_error(x, &w, span, low, $n).0);
                let (d, m) = (out.half(0, V::select(found, d, span)), out.half(2, V::select(found, m, low)));
                round_unsigned(&mut q, d, m, $n);
                $pack(out, 4, &q);
            }
        }
    };
}
affine_32!(Q4_1 15.0, pack::nibbles_32);
affine_32!(Q5_1 31.0, pack::five_bits_32);

pub(crate) struct Q8_0;
impl Format<32> for Q8_0 {
    const DTYPE: Dtype = Dtype::Q8_0;

    #[inline(always)]
    fn encode<V: Lanes>(x: &[V; 32], importance: Option<&[V; 32]>, _: V, out: &mut Out<'_>) {
        let w = weigh(x, importance);
        let d = out.half(0, one_by_one::<V, Linear<128>>(x, &w));
        let inverse = invert(d);
        for (i, &x) in x.iter().enumerate() {
            out.byte(2 + i, Linear::<128>::nearest(x * inverse));
        }
    }
}

pub(crate) struct Q1_0;
impl Format<128> for Q1_0 {
    const DTYPE: Dtype = Dtype::Q1_0;

    #[inline(always)]
    fn encode<V: Lanes>(x: &[V; 128], importance: Option<&[V; 128]>, _: V, out: &mut Out<'_>) {
        let w = weigh(x, importance);
        let (mut wx, mut total) = (V::splat(0.0), V::splat(0.0));
        for (&x, &w) in x.iter().zip(&w) {
            wx = wx + w * x.abs();
            total = total + w;
        }
        out.half(0, wx / total);
        pack::signs_128(out, 2, x);
    }
}

pub(crate) struct Q2_0;
impl Format<64> for Q2_0 {
    const DTYPE: Dtype = Dtype::Q2_0;

    #[inline(always)]
    fn encode<V: Lanes>(x: &[V; 64], importance: Option<&[V; 64]>, _: V, out: &mut Out<'_>) {
        let (w, zero) = (weigh(x, importance), V::splat(0.0));
        // Two steps lie on the side where the scale is, as in `Linear` on the other one.
        let d = out.half(0, zero - scale::<V, Linear<2>>(x, &w, 3));
        let inverse = invert(zero - d);
        let mut q = *x;
        for q in &mut q {
            *q = V::splat(1.0) - Linear::<2>::nearest(*q * inverse);
        }
        pack::two_bits_64(out, 2, &q);
    }
}

/// The best of a type's first scales, in F16.
#[inline(always)]
fn one_by_one<V: Lanes, C: Codes>(x: &[V], w: &[V]) -> V {
    let largest = ggml::extreme(x).0;
    let (mut best, mut scale) = (V::splat(f32::INFINITY), V::splat(0.0));
    for start in C::STARTS {
        let d = (largest * V::splat(1.0 / start)).half();
        let new = error::<V, C>(x, w, d);
        let better = new.lt(best);
        scale = V::select(better, d, scale);
        best = V::select(better, new, best);
    }
    scale
}

pub(crate) struct IQ4_NL;
impl Format<32> for IQ4_NL {
    const DTYPE: Dtype = Dtype::IQ4_NL;

    #[inline(always)]
    fn encode<V: Lanes>(x: &[V; 32], importance: Option<&[V; 32]>, _: V, out: &mut Out<'_>) {
        let (w, mut q) = (weigh(x, importance), *x);
        let d = out.half(0, scale::<V, Iq4>(x, &w, 3));
        round_iq4(&mut q, d);
        pack::nibbles_32(out, 2, &q);
    }
}

/// The factor in F16 and the scales, from `-S` to `S - 1`, of a super-block of `G` groups of `W` weights.
#[inline(always)]
fn super_symmetric<V: Lanes, C: Codes, S: Codes, const G: usize, const W: usize>(
    x: &[V; 256],
    w: &[V; 256],
    alternations: usize,
    reach: i32,
) -> (V, [V; G]) {
    let zero = V::splat(0.0);
    let (x, w) = (x.as_chunks::<W>().0, w.as_chunks::<W>().0);
    let (mut scales, mut weights) = ([zero; G], [zero; G]);
    for (g, (x, w)) in x.iter().zip(w).enumerate() {
        scales[g] = scale::<V, C>(x, w, alternations);
        weights[g] = products::<V, C>(x, w, invert(scales[g])).1;
    }
    normalize(&mut weights);
    let mut d = scale::<V, S>(&scales, &weights, 2).half();
    let mut kept = (d, [zero; G], V::splat(f32::INFINITY));
    let inverse = invert(d);
    let mut s = scales;
    for s in &mut s {
        *s = S::nearest(*s * inverse);
    }
    for round in 0..2 {
        let (mut total, mut xc, mut cc) = (zero, zero, zero);
        for (s, (x, w)) in s.iter_mut().zip(x.iter().zip(w)) {
            let (mut best, middle) = (V::splat(f32::INFINITY), *s);
            for step in -reach..=reach {
                let new = S::nearest(middle + V::splat(step as f32));
                let error = error::<V, C>(x, w, d * new);
                let better = error.lt(best);
                *s = V::select(better, new, *s);
                best = V::select(better, error, best);
            }
            total = total + best;
            let (gxc, gcc) = products::<V, C>(x, w, invert(d * *s));
            xc = xc + gxc * *s;
            cc = cc + gcc * *s * *s;
        }
        let better = total.lt(kept.2);
        kept.0 = V::select(better, d, kept.0);
        kept.2 = V::select(better, total, kept.2);
        for (kept, s) in kept.1.iter_mut().zip(&s) {
            *kept = V::select(better, *s, *kept);
        }
        if round == 0 {
            d = (xc / cc).keep(cc.gt(zero)).half();
        }
    }
    (kept.0, kept.1)
}

pub(crate) struct Q3_K;
impl Format<256> for Q3_K {
    const DTYPE: Dtype = Dtype::Q3_K;

    #[inline(always)]
    fn encode<V: Lanes>(x: &[V; 256], importance: Option<&[V; 256]>, _: V, out: &mut Out<'_>) {
        let (w, mut q) = (weigh(x, importance), *x);
        let (d, mut s) = super_symmetric::<V, Linear<4>, Linear<32>, 16, 16>(x, &w, 2, 1);
        let d = out.half(108, d);
        for (s, q) in s.iter_mut().zip(q.as_chunks_mut::<16>().0) {
            round::<V, Linear<4>>(q, d * *s, 4.0);
            *s = *s + V::splat(32.0);
        }
        pack::q3_k(out, &s, &mut q);
    }
}

pub(crate) struct Q6_K;
impl Format<256> for Q6_K {
    const DTYPE: Dtype = Dtype::Q6_K;

    #[inline(always)]
    fn encode<V: Lanes>(x: &[V; 256], importance: Option<&[V; 256]>, _: V, out: &mut Out<'_>) {
        let (w, mut q) = (weigh(x, importance), *x);
        let (d, s) = super_symmetric::<V, Linear<32>, Linear<128>, 16, 16>(x, &w, 1, 2);
        let d = out.half(208, d);
        for (s, q) in s.iter().zip(q.as_chunks_mut::<16>().0) {
            round::<V, Linear<32>>(q, d * *s, 32.0);
        }
        pack::q6_k(out, &s, &q);
    }
}

pub(crate) struct IQ4_XS;
impl Format<256> for IQ4_XS {
    const DTYPE: Dtype = Dtype::IQ4_XS;

    #[inline(always)]
    fn encode<V: Lanes>(x: &[V; 256], importance: Option<&[V; 256]>, _: V, out: &mut Out<'_>) {
        let (w, mut q) = (weigh(x, importance), *x);
        let (d, mut s) = super_symmetric::<V, Iq4, Linear<32>, 8, 32>(x, &w, 2, 1);
        let d = out.half(0, d);
        for (s, q) in s.iter_mut().zip(q.as_chunks_mut::<32>().0) {
            round_iq4(q, d * *s);
            *s = *s + V::splat(32.0);
        }
        pack::iq4_xs(out, &s, &q);
    }
}

/// The factors in F16, and the scales and mins from 0 to `top`, of a super-block of `G` groups of `W` integers from 0 to `n`.
#[inline(always)]
fn super_affine<V: Lanes, const G: usize, const W: usize>(
    n: f32,
    top: f32,
    x: &[V; 256],
    w: &[V; 256],
) -> (V, V, [V; G], [V; G]) {
    let zero = V::splat(0.0);
    let (x, w) = (x.as_chunks::<W>().0, w.as_chunks::<W>().0);
    let (mut scales, mut mins) = ([zero; G], [zero; G]);
    let (mut scale_weights, mut min_weights) = ([zero; G], [zero; G]);
    for (g, (x, w)) in x.iter().zip(w).enumerate() {
        let (scale, min) = affine(n, x, w, zero);
        (scales[g], mins[g]) = (scale, zero - min);
        let inverse = invert(scale);
        for (&x, &w) in x.iter().zip(w) {
            let q = ggml::unsigned(x, min, inverse, n);
            scale_weights[g] = scale_weights[g] + w * q * q;
            min_weights[g] = min_weights[g] + w;
        }
    }
    normalize(&mut scale_weights);
    normalize(&mut min_weights);
    let (mut s, mut m) = (scales, mins);
    let mut d = ggml::positive(top, &scales, &scale_weights, &mut s).half();
    let mut dmin = ggml::positive(top, &mins, &min_weights, &mut m).half();
    let mut kept = (d, dmin, s, m, V::splat(f32::INFINITY));
    for round in 0..2 {
        let mut total = zero;
        let (mut aa, mut ab, mut bb, mut ax, mut bx) = (zero, zero, zero, zero, zero);
        for (g, (x, w)) in x.iter().zip(w).enumerate() {
            let (s0, m0) = (s[g], m[g]);
            let mut best = V::splat(f32::INFINITY);
            let per_min = invert(dmin);
            for step in [0.0, -1.0, 1.0] {
                let new = (s0 + V::splat(step)).clamp(0.0, top);
                let mut at = m0;
                for _ in 0..2 {
                    let (error, off) = affine_error(x, w, d * new, zero - dmin * at, n);
                    let better = error.lt(best);
                    s[g] = V::select(better, new, s[g]);
                    m[g] = V::select(better, at, m[g]);
                    best = V::select(better, error, best);
                    at = (at - off * per_min).round().clamp(0.0, top);
                }
            }
            total = total + best;
            let (scale, min) = (d * s[g], zero - dmin * m[g]);
            let inverse = invert(scale);
            for (&x, &w) in x.iter().zip(w) {
                let a = s[g] * ggml::unsigned(x, min, inverse, n);
                let (wa, wb) = (w * a, w * m[g]);
                aa = aa + wa * a;
                ab = ab + wa * m[g];
                bb = bb + wb * m[g];
                ax = ax + wa * x;
                bx = bx + wb * x;
            }
        }
        let better = total.lt(kept.4);
        kept.0 = V::select(better, d, kept.0);
        kept.1 = V::select(better, dmin, kept.1);
        kept.4 = V::select(better, total, kept.4);
        for g in 0..G {
            kept.2[g] = V::select(better, s[g], kept.2[g]);
            kept.3[g] = V::select(better, m[g], kept.3[g]);
        }
        if round == 0 {
            // x ≈ d · a - dmin · b
            let det = aa * bb - ab * ab;
            let some = det.gt(aa * bb * V::splat(1e-4));
            let both = ((ax * bb - bx * ab) / det, (ax * ab - bx * aa) / det);
            let alone = (ax / aa).keep(aa.gt(zero));
            d = V::select(some, both.0, alone).max(zero).half();
            dmin = V::select(some, both.1, zero).max(zero).half();
        }
    }
    (kept.0, kept.1, kept.2, kept.3)
}

/// Integers from 0 to `n`.
#[inline(always)]
fn unsigned_256<V: Lanes, const G: usize, const W: usize>(
    n: f32,
    (d, dmin): (V, V),
    (s, m): (&[V; G], &[V; G]),
    q: &mut [V; 256],
) {
    for (g, q) in q.as_chunks_mut::<W>().0.iter_mut().enumerate() {
        round_unsigned(q, d * s[g], V::splat(0.0) - dmin * m[g], n);
    }
}

pub(crate) struct Q2_K;
impl Format<256> for Q2_K {
    const DTYPE: Dtype = Dtype::Q2_K;

    #[inline(always)]
    fn encode<V: Lanes>(x: &[V; 256], importance: Option<&[V; 256]>, _: V, out: &mut Out<'_>) {
        let (w, mut q) = (weigh(x, importance), *x);
        let (d, dmin, s, m) = super_affine::<V, 16, 16>(3.0, 15.0, x, &w);
        let (d, dmin) = (out.half(80, d), out.half(82, dmin));
        unsigned_256::<V, 16, 16>(3.0, (d, dmin), (&s, &m), &mut q);
        pack::q2_k(out, &s, &m, &q);
    }
}

macro_rules! k4 {
    ($name:ident $n:expr, $pack:path) => {
        pub(crate) struct $name;
        impl Format<256> for $name {
            const DTYPE: Dtype = Dtype::$name;

            #[inline(always)]
            fn encode<V: Lanes>(x: &[V; 256], importance: Option<&[V; 256]>, _: V, out: &mut Out<'_>) {
                let (w, mut q) = (weigh(x, importance), *x);
                let (d, dmin, s, m) = super_affine::<V, 8, 32>($n, 63.0, x, &w);
                let (d, dmin) = (out.half(0, d), out.half(2, dmin));
                unsigned_256::<V, 8, 32>($n, (d, dmin), (&s, &m), &mut q);
                pack::scales_k4(out, 4, &s, &m);
                $pack(out, 16, &mut q);
            }
        }
    };
}
k4!(Q4_K 15.0, pack::nibbles_256);
k4!(Q5_K 31.0, pack::five_bits_256);
