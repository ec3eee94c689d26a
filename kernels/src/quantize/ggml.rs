//! The searches of ggml's reference quantizers, operation by operation, so that their bytes come out.
//!
//! ggml compiles them for the plainest processor of an architecture: on x86-64 without contraction. Its groups are lanes
//! here, and sums run in the same order.

use super::lanes::Lanes;

/// Groups whose largest magnitude is below this are zero.
pub(crate) const NOTHING: f32 = 1e-15;

/// The element of the largest magnitude, the first of equal ones, and that magnitude.
#[inline(always)]
pub(crate) fn extreme<V: Lanes>(x: &[V]) -> (V, V) {
    let (mut extreme, mut magnitude) = (V::splat(0.0), V::splat(0.0));
    for &x in x {
        let larger = x.abs().gt(magnitude);
        extreme = V::select(larger, x, extreme);
        magnitude = V::select(larger, x.abs(), magnitude);
    }
    (extreme, magnitude)
}

/// The smallest and the largest element.
#[inline(always)]
pub(crate) fn range<V: Lanes>(x: &[V]) -> (V, V) {
    let (mut min, mut max) = (x[0], x[0]);
    for &x in &x[1..] {
        min = x.min(min);
        max = x.max(max);
    }
    (min, max)
}

/// `x · scale` as an integer of a symmetric type, from `-n` to `n - 1`.
#[inline(always)]
pub(crate) fn signed<V: Lanes>(x: V, scale: V, n: f32) -> V {
    (scale * x).round().clamp(-n, n - 1.0)
}

/// `x`, or 0 where it is not finite: both make integers of 0, as ggml's conversion does of what is not finite.
#[inline(always)]
fn finite<V: Lanes>(x: V) -> V {
    x.keep(x.abs().lt(V::splat(f32::INFINITY)))
}

/// `(x - min) · scale` as an integer from 0 to `n`.
#[inline(always)]
pub(crate) fn unsigned<V: Lanes>(x: V, min: V, scale: V, n: f32) -> V {
    (scale * (x - min)).round().clamp(0.0, n)
}

/// `(Σ w x q, Σ w q²)` of the integers that `scale` gives.
#[inline(always)]
fn products<V: Lanes>(x: &[V], w: &[V], scale: V, n: f32) -> (V, V) {
    let (mut lx, mut l2) = (V::splat(0.0), V::splat(0.0));
    for (&x, &w) in x.iter().zip(w) {
        let q = signed(x, scale, n);
        lx = lx + w * x * q;
        l2 = l2 + w * q * q;
    }
    (lx, l2)
}

/// A scale and integers from 0 to `2 n - 1` with `x ≈ scale · (q - n)`: 19 scales are tried.
#[inline(always)]
pub(crate) fn symmetric<V: Lanes, const W: usize>(n: f32, x: &[V; W], w: &[V; W], q: &mut [V; W]) -> V {
    let zero = V::splat(0.0);
    let (max, magnitude) = extreme(x);
    let nothing = magnitude.lt(V::splat(NOTHING));
    let mut inverse = V::splat(-n) / max;
    let (lx, l2) = products(x, w, inverse, n);
    let mut scale = V::select(l2.ne(zero), lx / l2, zero);
    let mut best = scale * lx;
    for i in (-9..=9).filter(|i| *i != 0) {
        let factor = V::splat(-(n + 0.1 * i as f32)) / max;
        let (lx, l2) = products(x, w, factor, n);
        let better = V::and(l2.gt(zero), (lx * lx).gt(best * l2));
        scale = V::select(better, lx / l2, scale);
        best = V::select(better, scale * lx, best);
        inverse = V::select(better, factor, inverse);
    }
    for (q, &x) in q.iter_mut().zip(x) {
        *q = V::select(nothing, zero, signed(x, inverse, n) + V::splat(n));
    }
    V::select(nothing, zero, scale)
}

/// The same for 3 bits with weights x²: one start, then five rounds of steps of single integers.
#[inline(always)]
pub(crate) fn three_bits<V: Lanes>(x: &[V; 16], q: &mut [V; 16]) -> V {
    let (zero, n) = (V::splat(0.0), 4.0);
    let (max, magnitude) = extreme(x);
    let nothing = magnitude.lt(V::splat(NOTHING));
    let inverse = V::splat(-n) / max;
    let (mut sum_lx, mut sum_l2) = (zero, zero);
    for (q, &x) in q.iter_mut().zip(x) {
        *q = signed(x, inverse, n);
        sum_lx = sum_lx + x * x * x * *q;
        sum_l2 = sum_l2 + x * x * *q * *q;
    }
    for _ in 0..5 {
        let mut changed = zero;
        for (q, &x) in q.iter_mut().zip(x) {
            let w = x * x;
            let lx = sum_lx - w * x * *q;
            let l2 = sum_l2 - w * *q * *q;
            let new = (x * l2 / lx).low_bits().clamp(-n, n - 1.0);
            let moves = V::and(lx.gt(zero), new.ne(*q));
            let lx = lx + w * x * new;
            let l2 = l2 + w * new * new;
            let gains = V::and(l2.gt(zero), (lx * lx * sum_l2).gt(sum_lx * sum_lx * l2));
            let moves = V::and(moves, gains);
            *q = V::select(moves, new, *q);
            sum_lx = V::select(moves, lx, sum_lx);
            sum_l2 = V::select(moves, l2, sum_l2);
            changed = V::select(moves, V::splat(1.0), changed);
        }
        if !V::any(changed.gt(zero)) {
            break;
        }
    }
    for q in q.iter_mut() {
        *q = V::select(nothing, zero, *q + V::splat(n));
    }
    V::select(nothing, zero, V::select(sum_l2.gt(zero), sum_lx / sum_l2, zero))
}

/// Which scales [`affine`] tries: `steps + 1` of them, `(from + step · i + n) / (max - min)`, and whether it counts magnitudes of
/// errors or their squares.
#[derive(Clone, Copy)]
pub(crate) struct Tries {
    pub from: f32,
    pub step: f32,
    pub steps: usize,
    pub magnitudes: bool,
}

impl Tries {
    #[inline(always)]
    fn measure<V: Lanes>(self, error: V) -> V {
        if self.magnitudes { error.abs() } else { error * error }
    }
}

/// A scale, a min and integers from 0 to `n` with `x ≈ scale · q + min`, `min <= 0`.
#[inline(always)]
pub(crate) fn affine<V: Lanes, const W: usize>(n: f32, x: &[V; W], w: &[V; W], q: &mut [V; W], tries: Tries) -> (V, V) {
    let zero = V::splat(0.0);
    let (min, max) = range(x);
    let (mut sum_w, mut sum_x) = (w[0], w[0] * x[0]);
    for (&x, &w) in x.iter().zip(w).skip(1) {
        sum_w = sum_w + w;
        sum_x = sum_x + w * x;
    }
    let mut min = V::select(min.gt(zero), zero, min);
    let nothing = V::select(max.gt(min), zero, V::splat(1.0)).gt(zero);
    let lowest = min;
    let inverse = V::splat(n) / (max - min);
    let mut scale = V::splat(1.0) / inverse;
    let mut inverse = finite(inverse);
    let mut best = zero;
    for (&x, &w) in x.iter().zip(w) {
        best = best + w * tries.measure(scale * unsigned(x, min, inverse, n) + min - x);
    }
    let mut base = min;
    for i in 0..=tries.steps {
        let factor = finite(V::splat(tries.from + tries.step * i as f32 + n) / (max - min));
        let (mut sum_l, mut sum_l2, mut sum_xl) = (zero, zero, zero);
        for (q, (&x, &w)) in q.iter_mut().zip(x.iter().zip(w)) {
            *q = unsigned(x, min, factor, n);
            sum_l = sum_l + w * *q;
            sum_l2 = sum_l2 + w * *q * *q;
            sum_xl = sum_xl + w * *q * x;
        }
        let det = sum_w * sum_l2 - sum_l * sum_l;
        let new_scale = (sum_w * sum_xl - sum_x * sum_l) / det;
        let new_min = (sum_l2 * sum_x - sum_l * sum_xl) / det;
        let positive = new_min.gt(zero);
        let new_min = V::select(positive, zero, new_min);
        let new_scale = V::select(positive, sum_xl / sum_l2, new_scale);
        let mut error = zero;
        for (&q, (&x, &w)) in q.iter().zip(x.iter().zip(w)) {
            error = error + w * tries.measure(new_scale * q + new_min - x);
        }
        let better = V::and(det.gt(zero), error.lt(best));
        best = V::select(better, error, best);
        base = V::select(better, min, base);
        inverse = V::select(better, factor, inverse);
        scale = V::select(better, new_scale, scale);
        min = V::select(better, new_min, min);
    }
    for (q, &x) in q.iter_mut().zip(x) {
        *q = V::select(nothing, zero, unsigned(x, base, inverse, n));
    }
    (V::select(nothing, zero, scale), V::select(nothing, lowest, min))
}

/// A scale and integers from 0 to `n` for numbers that are not negative: the scales or mins of a super-block.
#[inline(always)]
pub(crate) fn positive<V: Lanes, const G: usize>(n: f32, x: &[V; G], w: &[V; G], q: &mut [V; G]) -> V {
    let (zero, top) = (V::splat(0.0), V::splat(n));
    let mut max = zero;
    for &x in x {
        max = max.max(x);
    }
    let nothing = max.lt(V::splat(NOTHING));
    let mut inverse = top / max;
    let scale = V::splat(1.0) / inverse;
    let mut best = zero;
    for (&x, &w) in x.iter().zip(w) {
        let error = x - scale * (inverse * x).low_bits();
        best = best + w * error * error;
    }
    for i in (-4..=4).filter(|i| *i != 0) {
        let factor = V::splat(0.1 * i as f32 + n) / max;
        let scale = V::splat(1.0) / factor;
        let mut sum = zero;
        for (&x, &w) in x.iter().zip(w) {
            let error = x - scale * (factor * x).low_bits().min(top);
            sum = sum + w * error * error;
        }
        let better = sum.lt(best);
        best = V::select(better, sum, best);
        inverse = V::select(better, factor, inverse);
    }
    let (mut sum_lx, mut sum_l2) = (zero, zero);
    for (q, (&x, &w)) in q.iter_mut().zip(x.iter().zip(w)) {
        *q = (inverse * x).low_bits().min(top);
        sum_lx = sum_lx + w * x * *q;
        sum_l2 = sum_l2 + w * *q * *q;
    }
    for _ in 0..5 {
        let mut changed = zero;
        for (q, (&x, &w)) in q.iter_mut().zip(x.iter().zip(w)) {
            let lx = sum_lx - w * x * *q;
            let l2 = sum_l2 - w * *q * *q;
            let new = (x * l2 / lx).low_bits().min(top);
            let moves = V::and(V::and(lx.gt(zero), l2.gt(zero)), new.ne(*q));
            let lx = lx + w * x * new;
            let l2 = l2 + w * new * new;
            let moves = V::and(moves, (lx * lx * sum_l2).gt(sum_lx * sum_lx * l2));
            *q = V::select(moves, new, *q);
            sum_lx = V::select(moves, lx, sum_lx);
            sum_l2 = V::select(moves, l2, sum_l2);
            changed = V::select(moves, V::splat(1.0), changed);
        }
        if !V::any(changed.gt(zero)) {
            break;
        }
    }
    for q in q.iter_mut() {
        *q = V::select(nothing, zero, *q);
    }
    V::select(nothing, zero, V::select(sum_l2.gt(zero), sum_lx / sum_l2, zero))
}

/// Where the codes of IQ4 meet: halfway between neighbours.
const IQ4_EDGES: [f32; 15] = {
    let mut edges = [0.0; 15];
    let mut i = 0;
    while i < 15 {
        edges[i] = (crate::block::IQ4_CODES[i] as f32 + crate::block::IQ4_CODES[i + 1] as f32) / 2.0;
        i += 1;
    }
    edges
};

/// The index of the nearest code of IQ4, the upper one of two.
#[inline(always)]
pub(crate) fn iq4_index<V: Lanes>(x: V) -> V {
    let mut index = V::splat(0.0);
    for edge in IQ4_EDGES {
        index = index + V::splat(1.0).keep(x.ge(V::splat(edge)));
    }
    index
}

/// The nearest code of IQ4, the upper one of two.
#[inline(always)]
pub(crate) fn iq4_code<V: Lanes>(x: V) -> V {
    let codes = crate::block::IQ4_CODES.map(f32::from);
    let mut code = V::splat(codes[0]);
    for (i, edge) in IQ4_EDGES.into_iter().enumerate() {
        code = code + V::splat(codes[i + 1] - codes[i]).keep(x.ge(V::splat(edge)));
    }
    code
}

/// `(Σ w x q, Σ w q²)` of the codes that `scale` gives.
#[inline(always)]
fn iq4_products<V: Lanes>(x: &[V; 32], w: &[V; 32], scale: V) -> (V, V) {
    let (mut qx, mut q2) = (V::splat(0.0), V::splat(0.0));
    for (&x, &w) in x.iter().zip(w) {
        let q = iq4_code(scale * x);
        qx = qx + w * q * x;
        q2 = q2 + w * q * q;
    }
    (qx, q2)
}

/// A scale with `x ≈ scale · CODE[q]`: 16 are tried.
#[inline(always)]
pub(crate) fn iq4_scale<V: Lanes>(x: &[V; 32], w: &[V; 32]) -> V {
    let zero = V::splat(0.0);
    let first = f32::from(crate::block::IQ4_CODES[0]);
    let (max, magnitude) = extreme(x);
    let nothing = magnitude.lt(V::splat(NOTHING));
    let d = max / V::splat(-first);
    let (qx, q2) = iq4_products(x, w, V::splat(1.0) / d);
    let mut scale = V::select(q2.gt(zero), qx / q2, zero);
    let mut best = scale * qx;
    for i in -7..=7 {
        let (qx, q2) = iq4_products(x, w, V::splat(i as f32 + first) / max);
        let better = V::and(q2.gt(zero), (qx * qx).gt(best * q2));
        scale = V::select(better, qx / q2, scale);
        best = V::select(better, scale * qx, best);
    }
    V::select(nothing, zero, scale)
}
