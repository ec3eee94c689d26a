//! `Search::Ggml` for IQ1, IQ2 and IQ3: the choices that ggml makes. Sums are in its order, but products and sums are not
//! fused; where two choices are as good as the same, that can turn out otherwise.

use super::lanes::{Lanes, Task};
use super::points::{Set, base, bits, set};
use super::points_pack::{Chosen, pack};
use crate::Dtype;
use crate::block::QK_K;
use half::f16;

/// Rows to blocks of one of the types of points.
pub(crate) struct Rows<'a> {
    pub dtype: Dtype,
    pub x: &'a [f32],
    pub n_cols: usize,
    pub importance: Option<&'a [f32]>,
    pub out: &'a mut [u8],
}

impl Task for Rows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Lanes>(self) {
        let size = self.dtype.block().1;
        let set = set(self.dtype);
        let per_row = self.n_cols / QK_K;
        for (i, (x, out)) in self.x.as_chunks::<QK_K>().0.iter().zip(self.out.chunks_exact_mut(size)).enumerate() {
            let importance = self.importance.map(|w| &w.as_chunks::<QK_K>().0[i % per_row]);
            // What is not finite counts as 0.
            let x = x.map(|x| if x.is_finite() { x } else { 0.0 });
            let chosen = match self.dtype {
                Dtype::IQ3_XXS | Dtype::IQ3_S => signed::<4>(self.dtype, set, &x, importance),
                Dtype::IQ1_S => ternary(IQ1_S, set, &x, importance),
                Dtype::IQ1_M => ternary(IQ1_M, set, &x, importance),
                _ => signed::<8>(self.dtype, set, &x, importance),
            };
            pack(self.dtype, set, &chosen, out);
        }
    }
}

/// How ggml goes about a type with signs apart.
struct Spec {
    group: usize,
    /// Whether signs are even.
    even: bool,
    /// Weights of errors without an importance, of x² and the mean square.
    plain: fn(f32, f32) -> f32,
    /// The mean square in weights, times this.
    sigma: f32,
    /// Groups of smaller weights are 0.
    least: f32,
    /// Scales are tried at which the largest is this far from the highest level: `steps · step` either way.
    steps: i32,
    step: f32,
    /// What the factor is multiplied by.
    fudge: f32,
    /// What is looked for again once the scale is known.
    again: Again,
}

#[derive(Clone, Copy, PartialEq)]
enum Again {
    /// All points.
    Always,
    /// All points, if any was off the grid.
    IfOff,
    /// Points that were off the grid.
    OnlyOff,
}

impl Spec {
    fn of(dtype: Dtype) -> Spec {
        let iq2 = Spec {
            group: 16,
            even: true,
            plain: |x2, mean| (mean + x2).sqrt(),
            sigma: 1.0,
            least: 1e-15,
            steps: 9,
            step: 0.1,
            fudge: 1.0,
            again: Again::OnlyOff,
        };
        let iq3 = Spec { group: 32, sigma: 2.0, least: 1e-8, step: 0.2, plain: |x2, _| x2, ..iq2 };
        match dtype {
            Dtype::IQ2_XXS => Spec { group: 32, steps: 6, again: Again::Always, ..iq2 },
            Dtype::IQ2_XS => iq2,
            Dtype::IQ2_S => {
                Spec { even: false, plain: |x2, mean| 0.25 * mean + x2, sigma: 2.0, least: 1e-8, fudge: 0.9875, ..iq2 }
            }
            Dtype::IQ3_XXS => Spec { steps: 15, fudge: 1.0125, ..iq3 },
            _ => Spec { even: false, least: f32::from_bits(1), fudge: 1.033, again: Again::IfOff, ..iq3 },
        }
    }
}

/// The nearest integer, as long as it is small.
fn nearest(x: f32) -> i32 {
    let bits = (x + 12_582_912.0).to_bits() & 0x7f_ffff;
    if x.is_nan() { 0 } else { bits as i32 - 0x40_0000 }
}

/// The sum in order.
fn sum(x: impl Iterator<Item = f32>) -> f32 {
    x.fold(0.0, |sum, x| sum + x)
}

/// The point for `D` weights at a scale: their nearest levels, or of the points near to those the one with the least error, for
/// weights `w`; packed, and whether it was the first.
#[inline(always)]
fn point<const D: usize>(set: &Set, x: &[f32; D], w: &[f32; D], inverse: f32, scale: f32) -> (u16, bool) {
    let highest = base(D) as i32 - 1;
    let (mut packed, mut number, mut unit) = (0, 0, 1);
    for (i, x) in x.iter().enumerate() {
        let level = nearest(0.5 * (inverse * x - 1.0)).clamp(0, highest) as usize;
        packed |= (level as u16) << (bits(D) * i);
        number += level * unit;
        unit *= base(D);
    }
    if set.code(packed).is_some() {
        return (packed, true);
    }
    let mut best = (f32::MAX, packed);
    for code in set.shells(number) {
        let point = set.packed[usize::from(*code)];
        let q = levels::<D>(point);
        let mut error = 0.0;
        for i in 0..D {
            let off = scale * q[i] - x[i];
            error += w[i] * off * off;
        }
        if error < best.0 {
            best = (error, point);
        }
    }
    if best.0 == f32::MAX {
        best.1 = set.packed[usize::from(set.shells(number)[0])];
    }
    (best.1, false)
}

/// The levels of a point as ggml counts them: 1, 3, 5 and so on.
#[inline(always)]
fn levels<const D: usize>(packed: u16) -> [f32; D] {
    let mask = (1 << bits(D)) - 1;
    std::array::from_fn(|i| f32::from(2 * (packed >> (bits(D) * i) & mask) + 1))
}

/// `Σ w x q` and `Σ w q²` of points.
#[inline(always)]
fn moments<const D: usize>(x: &[f32], w: &[f32], points: &[u16]) -> (f32, f32) {
    let (mut xq, mut qq) = (0.0, 0.0);
    for ((x, w), point) in x.as_chunks::<D>().0.iter().zip(w.as_chunks::<D>().0).zip(points) {
        let q = levels::<D>(*point);
        for i in 0..D {
            xq += w[i] * x[i] * q[i];
            qq += w[i] * q[i] * q[i];
        }
    }
    (xq, qq)
}

/// A block of a type with signs apart, of points of `D` weights.
#[inline(always)]
fn signed<const D: usize>(dtype: Dtype, set: &Set, x: &[f32; QK_K], importance: Option<&[f32; QK_K]>) -> Chosen {
    let spec = Spec::of(dtype);
    let group = spec.group;
    let n_points = group / D;
    let top = 2 * base(D) as i32 - 1;
    let mean = spec.sigma * sum(x.iter().map(|x| x * x)) / QK_K as f32;
    let mut chosen = Chosen::default();
    let mut scales = [0.0; 16];
    // Levels of 0 are points of every set.
    let mut all_points = [0_u16; 64];
    for (g, x) in x.chunks_exact(group).enumerate() {
        let (mut w, mut roots, mut a) = ([0.0; 32], [0.0; 32], [0.0; 32]);
        let (w, roots, a) = (&mut w[..group], &mut roots[..group], &mut a[..group]);
        for (i, x) in x.iter().enumerate() {
            w[i] = match importance {
                Some(importance) => importance[g * group + i] * (mean + x * x).sqrt(),
                None => (spec.plain)(x * x, mean),
            };
            roots[i] = w[i].sqrt();
            a[i] = x.abs();
        }
        let mut group_signs = [0_u8; 4];
        for (k, x) in x.as_chunks::<8>().0.iter().enumerate() {
            let mut signs = (0..8).map(|i| u8::from(x[i] < 0.0) << i).sum::<u8>();
            if spec.even && signs.count_ones() % 2 == 1 {
                let cost = |i: usize| w[8 * k + i] * x[i] * x[i];
                let least = (1..8).fold(0, |least, i| if cost(i) < cost(least) { i } else { least });
                a[8 * k + least] = -a[8 * k + least];
                signs ^= 1 << least;
            }
            group_signs[k] = signs;
        }
        let max = a.iter().fold(a[0], |max, a| if *a > max { *a } else { max });
        if max < spec.least {
            continue;
        }
        let (a_points, w_points) = (a.as_chunks::<D>().0, roots.as_chunks::<D>().0);
        let mut best = 0.0;
        let mut scale = max / top as f32;
        let mut points = [0; 8];
        let mut off = [spec.again == Again::IfOff; 8];
        let mut reach = max;
        if dtype == Dtype::IQ2_XXS {
            scale = positive(a, w, base(D) as i32 + 1);
            reach = scale * (base(D) as f32);
            if reach <= 0.0 {
                continue;
            }
        }
        for step in -spec.steps..=spec.steps {
            let inverse = (top as f32 + step as f32 * spec.step) / reach;
            let here = 1.0 / inverse;
            let (mut tried, mut tried_off) = ([0; 8], [false; 8]);
            for k in 0..n_points {
                let (p, on) = point(set, &a_points[k], &w_points[k], inverse, here);
                (tried[k], tried_off[k]) = (p, !on);
            }
            let (xq, qq) = moments::<D>(a, w, &tried[..n_points]);
            if qq > 0.0 && xq * xq > best * qq {
                scale = xq / qq;
                best = scale * xq;
                (points, off) = (tried, tried_off);
            }
        }
        let any_off = off[..n_points].contains(&true);
        if scale > 0.0 && (spec.again == Again::Always || any_off) {
            let inverse = 1.0 / scale;
            for k in 0..n_points {
                if off[k] || spec.again != Again::OnlyOff {
                    points[k] = point(set, &a_points[k], &w_points[k], inverse, scale).0;
                }
            }
            let (xq, qq) = moments::<D>(a, w, &points[..n_points]);
            if qq > 0.0 {
                scale = xq / qq;
            }
        }
        if scale < 0.0 {
            scale = -scale;
            group_signs = group_signs.map(|signs| !signs);
        }
        chosen.signs[g * group / 8..][..group / 8].copy_from_slice(&group_signs[..group / 8]);
        all_points[g * n_points..][..n_points].copy_from_slice(&points[..n_points]);
        scales[g] = scale;
    }
    for (to, from) in chosen.points.as_flattened_mut().chunks_exact_mut(2).zip(all_points.chunks_exact(8 / D)) {
        to[..8 / D].copy_from_slice(from);
    }
    let d = factor(&mut chosen, &scales, 15);
    chosen.d = f16::from_f32(d * spec.fudge);
    chosen
}

/// Codes of scales up to `highest`; returns the factor.
fn factor(chosen: &mut Chosen, scales: &[f32; 16], highest: i32) -> f32 {
    let max = scales.iter().fold(0.0, |max: f32, s| if *s > max { *s } else { max });
    if max == 0.0 {
        *chosen = Chosen::default();
        return 0.0;
    }
    let d = max / (2 * highest + 1) as f32;
    let inverse = 1.0 / d;
    for (code, scale) in chosen.scales.iter_mut().zip(scales) {
        *code = nearest(0.5 * (inverse * scale - 1.0)).clamp(0, highest) as u8;
    }
    d
}

/// The scale of the nearest multiples up to `highest` of positive weights, after some attempts to lessen the error.
fn positive(x: &[f32], w: &[f32], highest: i32) -> f32 {
    let max = x.iter().fold(0.0, |max: f32, x| if *x > max { *x } else { max });
    if max < 1e-15 {
        return 0.0;
    }
    let level = |x: f32, inverse: f32| nearest(inverse * x).min(highest);
    let error = |inverse: f32, top: i32| {
        let scale = 1.0 / inverse;
        sum(x.iter().zip(w).map(|(x, w)| {
            // The first try knows no bound, and keeps levels in bytes.
            let l = if top == 0 { f32::from(nearest(inverse * x) as u8) } else { level(*x, inverse) as f32 };
            let off = x - scale * l;
            w * off * off
        }))
    };
    let mut inverse = highest as f32 / max;
    let mut best = error(inverse, 0);
    for step in (-4..=4).filter(|step| *step != 0) {
        let tried = (0.1 * step as f32 + highest as f32) / max;
        let e = error(tried, highest);
        if e < best {
            (best, inverse) = (e, tried);
        }
    }
    let (mut xl, mut ll) = (0.0, 0.0);
    let mut l = [0.0; 32];
    for (l, (x, w)) in l.iter_mut().zip(x.iter().zip(w)) {
        let at = level(*x, inverse);
        *l = f32::from(at as u8);
        xl += w * x * at as f32;
        ll += w * at as f32 * at as f32;
    }
    for _ in 0..5 {
        let mut changed = false;
        for (l, (x, w)) in l.iter_mut().zip(x.iter().zip(w)) {
            let (mut a, mut b) = (xl - w * x * *l, ll - w * *l * *l);
            if a > 0.0 && b > 0.0 {
                let new = nearest(x * b / a).min(highest);
                if new as f32 != *l {
                    a += w * x * new as f32;
                    b += w * new as f32 * new as f32;
                    if a * a * ll > xl * xl * b {
                        *l = f32::from(new as u8);
                        (xl, ll) = (a, b);
                        changed = true;
                    }
                }
            }
        }
        if !changed {
            break;
        }
    }
    if ll > 0.0 { xl / ll } else { 0.0 }
}

/// How ggml goes about IQ1.
#[derive(Clone, Copy)]
struct Ternary {
    group: usize,
    /// Groups of smaller weights are 0.
    least: f32,
    /// How many halves of a group choose their values.
    parts: usize,
    fudge: f32,
}

const IQ1_S: Ternary = Ternary { group: 32, least: 1e-12, parts: 1, fudge: 1.125 };
const IQ1_M: Ternary = Ternary { group: 16, least: 1e-7, parts: 2, fudge: 1.1125 };

/// The values of the digits, with 1/8 added and taken off.
const VALUES: [[f32; 3]; 2] = [[-0.875, 0.125, 1.125], [-1.125, -0.125, 0.875]];

/// A block of IQ1. Sorted, the weights of a group fall into three stretches; all cuts are tried.
fn ternary(spec: Ternary, set: &Set, x: &[f32; QK_K], importance: Option<&[f32; QK_K]>) -> Chosen {
    let Ternary { group, least, parts, fudge } = spec;
    let mean = 2.0 * sum(x.iter().map(|x| x * x)) / QK_K as f32;
    let weight = |i: usize| match importance {
        Some(importance) => importance[i] * (mean + x[i] * x[i]).sqrt(),
        None => x[i] * x[i],
    };
    let mut chosen = Chosen::default();
    let mut scales = [0.0; 16];
    for first in (0..QK_K).step_by(group) {
        let g = first / group;
        let x = &x[first..first + group];
        let w: [f32; 32] = std::array::from_fn(|i| if i < group { weight(first + i) } else { 0.0 });
        let points = &mut chosen.points[first / 8..][..group / 8];
        let max = x.iter().fold(0.0, |max: f32, x| if x.abs() > max { x.abs() } else { max });
        if max < least {
            continue;
        }
        let mut order: [usize; 32] = std::array::from_fn(|i| i);
        let order = &mut order[..group];
        order.sort_by(|a, b| x[*a].total_cmp(&x[*b]));
        // Sums of the weights and of their products with the values, up to each place, for each part.
        let (mut wx, mut ww) = ([[0.0; 33]; 2], [[0.0; 33]; 2]);
        for (j, i) in order.iter().enumerate() {
            for part in 0..2 {
                let here = part == i * parts / group;
                wx[part][j + 1] = wx[part][j] + if here { w[*i] * x[*i] } else { 0.0 };
                ww[part][j + 1] = ww[part][j] + if here { w[*i] } else { 0.0 };
            }
        }
        let mut best = (-f32::MAX, 0.0, None);
        for i1 in 0..=group {
            for i2 in i1..=group {
                let moments = |part: usize, v: &[f32; 3]| {
                    let (x, w) = (&wx[part], &ww[part]);
                    let xq = (x[i1] - x[0]) * v[0] + (x[i2] - x[i1]) * v[1] + (x[group] - x[i2]) * v[2];
                    let qq =
                        (w[i1] - w[0]) * v[0] * v[0] + (w[i2] - w[i1]) * v[1] * v[1] + (w[group] - w[i2]) * v[2] * v[2];
                    (xq, qq)
                };
                for choice in 0..1 << parts {
                    // The first part has the higher bit.
                    let variants = [choice >> (parts - 1) & 1, choice & 1];
                    let (mut xq, mut qq) = moments(0, &VALUES[variants[0]]);
                    if parts == 2 {
                        let other = moments(1, &VALUES[variants[1]]);
                        (xq, qq) = (xq + other.0, qq + other.1);
                    }
                    if qq > 0.0 && xq * xq > best.0 * qq {
                        let scale = xq / qq;
                        best = (scale * xq, scale, Some((i1, i2, variants)));
                    }
                }
            }
        }
        let (_, mut scale, Some((i1, i2, mut variants))) = best else { continue };
        let mut digits = [0_usize; 32];
        for (j, i) in order.iter().enumerate() {
            digits[*i] = usize::from(j >= i1) + usize::from(j >= i2);
        }
        if scale < 0.0 {
            digits.iter_mut().for_each(|d| *d = 2 - *d);
            scale = -scale;
            variants = variants.map(|v| 1 - v);
        }
        let mut all_on = true;
        for (k, point) in points.iter_mut().enumerate() {
            let values = &VALUES[variants[k * 8 * parts / group]];
            chosen.minus[first / 8 + k] = variants[k * 8 * parts / group] == 1;
            let digits: &[usize; 8] = &digits.as_chunks().0[k];
            let packed = (0..8).map(|i| (digits[i] as u16) << (2 * i)).sum();
            point[0] = packed;
            if set.code(packed).is_some() {
                continue;
            }
            all_on = false;
            let number = digits.iter().rev().fold(0, |n, d| 3 * n + d);
            let (x, w): (&[f32; 8], &[f32; 8]) = (&x.as_chunks().0[k], &w.as_chunks().0[k]);
            let mut least = f32::MAX;
            point[0] = set.packed[usize::from(set.shells(number)[0])];
            for code in set.shells(number) {
                let candidate = set.packed[usize::from(*code)];
                let error = sum((0..8).map(|i| {
                    let off = scale * values[usize::from(candidate >> (2 * i) & 3)] - x[i];
                    w[i] * off * off
                }));
                if error < least {
                    (least, point[0]) = (error, candidate);
                }
            }
        }
        if !all_on {
            let (mut xq, mut qq) = (0.0, 0.0);
            for i in 0..group {
                let q = VALUES[variants[i * parts / group]][usize::from(points[i / 8][0] >> (2 * (i % 8)) & 3)];
                xq += w[i] * q * x[i];
                qq += w[i] * q * q;
            }
            if xq > 0.0 && qq > 0.0 {
                scale = xq / qq;
            }
        }
        scales[g] = scale;
    }
    let mut d = factor(&mut chosen, &scales, 7);
    if d == 0.0 {
        return chosen;
    }
    if parts == 2 {
        // IQ1_M fits the factor to what was chosen.
        let (mut xq, mut qq) = (0.0, 0.0);
        for (i, x) in x.iter().enumerate() {
            let values = &VALUES[usize::from(chosen.minus[i / 8])];
            let q = values[usize::from(chosen.points[i / 8][0] >> (2 * (i % 8)) & 3)];
            let q = q * f32::from(2 * chosen.scales[i / group] + 1);
            xq += weight(i) * q * x;
            qq += weight(i) * q * q;
        }
        if qq > 0.0 {
            d = xq / qq;
        }
    }
    chosen.d = f16::from_f32(d * fudge);
    chosen
}
