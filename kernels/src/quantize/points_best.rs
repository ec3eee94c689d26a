//! `Search::Best` for IQ1, IQ2 and IQ3: points and scales for the least weighted squared error, where large weights count more.
//!
//! A group's scale is looked for on a list of sizes, then the block's factor so that the scales lie near its odd multiples;
//! with that, each group takes the best of the multiples nearby, and the factor is fitted to what was chosen. Wherever a scale
//! is tried, points are chosen for that very scale. Where signs must be even and are not, the sign that costs least beside
//! the point is turned.

use super::lanes::{Lanes, Task};
use super::points::{Set, base, bits, set};
use super::points_pack::{Chosen, pack};
use crate::Dtype;
use crate::block::QK_K;
use half::f16;
use std::array::from_fn;

/// What sets a type apart.
struct Spec {
    /// Weights that share a scale.
    group: usize,
    /// Largest code l of a scale `d · (2 l + 1)`.
    highest: u8,
    /// What digits stand for: IQ1 has a choice of two. As tables: those of 3 digits are there twice, from 0 and from 4 on.
    values: &'static [[f32; 8]],
    /// Whether the values of a group are all from the same of two.
    shared: bool,
    /// Whether signs are apart from the values, and if so, whether they must be even.
    signs: Option<bool>,
    /// The scales that are tried, as parts of that at which the largest value is the largest weight: from one to another.
    tries: (f32, f32),
}

const IQ2: [[f32; 8]; 1] = [[1.0, 3.125, 5.375, 0.0, 1.0, 3.125, 5.375, 0.0]];
const IQ3_XXS: [[f32; 8]; 1] = [[1.0, 3.0, 5.0, 7.0, 9.0, 11.0, 13.0, 15.5]];
const IQ3_S: [[f32; 8]; 1] = [[1.0, 3.0, 5.0, 7.0, 9.0, 11.0, 13.0, 15.0]];
const IQ1: [[f32; 8]; 2] =
    [[-0.875, 0.125, 1.125, 0.0, -0.875, 0.125, 1.125, 0.0], [-1.125, -0.125, 0.875, 0.0, -1.125, -0.125, 0.875, 0.0]];

/// How many scales are tried for a group.
const TRIES: usize = 10;

impl Spec {
    fn of(dtype: Dtype) -> Spec {
        let iq2 = Spec { group: 16, highest: 15, values: &IQ2, shared: false, signs: Some(true), tries: (0.7, 1.3) };
        let iq3 = Spec { group: 32, values: &IQ3_S, signs: Some(false), tries: (0.8, 1.25), ..iq2 };
        let iq1 = Spec { group: 32, highest: 7, values: &IQ1, shared: true, signs: None, tries: (0.33, 1.0) };
        match dtype {
            Dtype::IQ2_XXS => Spec { group: 32, ..iq2 },
            Dtype::IQ2_XS => iq2,
            Dtype::IQ2_S => Spec { signs: Some(false), ..iq2 },
            Dtype::IQ3_XXS => Spec { values: &IQ3_XXS, signs: Some(true), ..iq3 },
            Dtype::IQ3_S => iq3,
            Dtype::IQ1_S => iq1,
            _ => Spec { group: 16, shared: false, ..iq1 },
        }
    }

    /// The largest magnitude of the values.
    fn top(&self) -> f32 {
        self.values[0].iter().fold(0.0, |top: f32, v| top.max(v.abs()))
    }
}

/// Eight weights: magnitudes where signs are apart.
#[derive(Clone, Copy, Default)]
struct Unit {
    x: [f32; 8],
    w: [f32; 8],
    /// Which are negative, where signs are apart.
    signs: u8,
    /// Whether one sign must be turned.
    odd: bool,
}

/// The points for a unit, or for two of its halves, packed, from values `variant`; and what they cost.
#[derive(Clone, Copy, Default)]
struct Pick {
    points: [u16; 2],
    variant: u8,
    cost: f32,
}

/// The number of the possible point nearest to `D` weights at a scale.
#[inline(always)]
fn nearest<const D: usize>(x: &[f32; D], values: &[f32; 8], scale: f32) -> usize {
    let mut digits = [0_u32; D];
    for l in 1..base(D) {
        let middle = (values[l - 1] + values[l]) * 0.5 * scale;
        for (digit, x) in digits.iter_mut().zip(x) {
            *digit += u32::from(*x > middle);
        }
    }
    let mut number = 0;
    let mut unit = 1;
    for digit in digits {
        number += digit * unit;
        unit *= base(D) as u32;
    }
    number as usize
}

/// The cheapest point for `D` weights at a scale: with all signs as they are, and with one turned, if `odd`.
#[inline(always)]
fn point<V: Lanes, const D: usize>(
    set: &Set,
    x: &[f32; D],
    w: &[f32; D],
    odd: bool,
    values: &[f32; 8],
    scale: f32,
    both: bool,
) -> [(u16, f32); 2] {
    let number = nearest(x, values, scale);
    let values = values.map(|v| v * scale);
    let (mut costs, mut flips) = ([[0.0; 8]; D], [[0.0; 8]; D]);
    for i in 0..D {
        for l in 0..8 {
            let off = values[l] - x[i];
            costs[i][l] = w[i] * (off * off);
        }
    }
    let none = (0, f32::INFINITY);
    if !odd {
        return [set.cheapest::<V, D>(number, &costs, None), none];
    }
    // (v + x)² − (v − x)²
    for i in 0..D {
        let turn = 4.0 * w[i] * x[i];
        for l in 0..8 {
            flips[i][l] = turn * values[l];
        }
    }
    let plain = if both { set.cheapest::<V, D>(number, &costs, None) } else { none };
    [plain, set.cheapest::<V, D>(number, &costs, Some(&flips))]
}

/// The points for a unit at a scale, from one of the values.
#[inline(always)]
fn pick<V: Lanes, const D: usize>(set: &Set, unit: &Unit, values: &[[f32; 8]], variant: usize, scale: f32) -> Pick {
    let (x, w) = (unit.x.as_chunks::<D>().0, unit.w.as_chunks::<D>().0);
    let values = &values[variant];
    let variant = variant as u8;
    let odd = unit.odd;
    if D == 8 {
        let [plain, turned] = point::<V, D>(set, &x[0], &w[0], odd, values, scale, false);
        let (p, cost) = if odd { turned } else { plain };
        return Pick { points: [p, 0], variant, cost };
    }
    let a = point::<V, D>(set, &x[0], &w[0], odd, values, scale, true);
    let b = point::<V, D>(set, &x[1], &w[1], odd, values, scale, true);
    let (first, second) = match odd {
        false => (a[0], b[0]),
        true if a[1].1 + b[0].1 < a[0].1 + b[1].1 => (a[1], b[0]),
        true => (a[0], b[1]),
    };
    Pick { points: [first.0, second.0], variant, cost: first.1 + second.1 }
}

/// The values of a unit's points.
#[inline(always)]
fn values_of<const D: usize>(values: &[[f32; 8]], pick: &Pick) -> [f32; 8] {
    let values = &values[usize::from(pick.variant)];
    from_fn(|i| values[usize::from(pick.points[i / D] >> (bits(D) * (i % D))) & (base(D).next_power_of_two() - 1)])
}

/// Which sign it costs least to turn: bit i for weight i.
#[inline(always)]
fn turned(unit: &Unit, q: &[f32; 8]) -> u8 {
    let cost = |i: usize| unit.w[i] * unit.x[i] * q[i];
    1 << (1..8).fold(0, |least, i| if cost(i) < cost(least) { i } else { least })
}

/// Picks for a group, the first few of `picks`, at a scale; returns what they cost.
#[inline(always)]
fn pick_group<V: Lanes, const D: usize>(
    set: &Set,
    spec: &Spec,
    units: &[Unit],
    scale: f32,
    picks: &mut [Pick; 4],
) -> f32 {
    let n = units.len();
    let mut total = 0.0;
    for (pick_of, unit) in picks.iter_mut().zip(units) {
        *pick_of = pick::<V, D>(set, unit, spec.values, 0, scale);
        total += pick_of.cost;
    }
    if spec.values.len() == 1 {
        return total;
    }
    let mut others = [Pick::default(); 4];
    let mut other_total = 0.0;
    for (other, unit) in others.iter_mut().zip(units) {
        *other = pick::<V, D>(set, unit, spec.values, 1, scale);
        other_total += other.cost;
    }
    if spec.shared {
        if other_total < total {
            *picks = others;
        }
    } else {
        for (pick, other) in picks[..n].iter_mut().zip(others) {
            if other.cost < pick.cost {
                *pick = other;
            }
        }
    }
    picks[..n].iter().map(|p| p.cost).sum()
}

/// `Σ w x q` and `Σ w q²` of a group.
#[inline(always)]
fn moments<const D: usize>(spec: &Spec, units: &[Unit], picks: &[Pick; 4]) -> (f32, f32) {
    let (mut xq, mut qq) = (0.0, 0.0);
    for (unit, pick) in units.iter().zip(picks) {
        let q = values_of::<D>(spec.values, pick);
        let (mut a, mut b) = ([0.0; 8], [0.0; 8]);
        for i in 0..8 {
            let wq = unit.w[i] * q[i];
            (a[i], b[i]) = (wq * unit.x[i], wq * q[i]);
        }
        if unit.odd {
            let i = turned(unit, &q).trailing_zeros() as usize;
            a[i] = -a[i];
        }
        xq += a.iter().sum::<f32>();
        qq += b.iter().sum::<f32>();
    }
    (xq, qq)
}

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
        match self.dtype {
            Dtype::IQ3_XXS | Dtype::IQ3_S => self.blocks::<V, 4>(),
            _ => self.blocks::<V, 8>(),
        }
    }
}

impl Rows<'_> {
    #[inline(always)]
    fn blocks<V: Lanes, const D: usize>(self) {
        let (spec, set) = (Spec::of(self.dtype), set(self.dtype));
        let size = self.dtype.block().1;
        let per_row = self.n_cols / QK_K;
        for (i, (x, out)) in self.x.as_chunks::<QK_K>().0.iter().zip(self.out.chunks_exact_mut(size)).enumerate() {
            let importance = self.importance.map(|w| &w.as_chunks::<QK_K>().0[i % per_row]);
            let units = units(&spec, x, importance);
            let chosen = block::<V, D>(&spec, set, &units);
            pack(self.dtype, set, &chosen, out);
        }
    }
}

/// The units of a block. What is not finite counts as 0. With so few bits a plain squared error makes the large weights too
/// small, which costs a model much more than the error tells: like in ggml, weights count more the larger they are.
#[inline(always)]
fn units(spec: &Spec, x: &[f32; QK_K], importance: Option<&[f32; QK_K]>) -> [Unit; 32] {
    let mut units = [Unit::default(); 32];
    let x = x.map(|x| if x.is_finite() { x } else { 0.0 });
    let mean_square = x.iter().map(|x| x * x).sum::<f32>() / QK_K as f32;
    for (j, unit) in units.iter_mut().enumerate() {
        for i in 0..8 {
            unit.x[i] = x[8 * j + i];
            let w = importance.map_or(1.0, |w| w[8 * j + i]) * (2.0 * mean_square + unit.x[i] * unit.x[i]).sqrt();
            unit.w[i] = if w.is_finite() { w } else { 0.0 };
        }
        if let Some(even) = spec.signs {
            for (i, x) in unit.x.iter_mut().enumerate() {
                unit.signs |= u8::from(*x < 0.0) << i;
                *x = x.abs();
            }
            unit.odd = even && unit.signs.count_ones() % 2 == 1;
        }
    }
    units
}

/// A group at its best scale.
#[derive(Clone, Copy, Default)]
struct Group {
    scale: f32,
    /// How much the cost grows with the square of a change of the scale.
    weight: f32,
    code: u8,
    picks: [Pick; 4],
    cost: f32,
}

/// The best block for 32 units.
#[inline(always)]
fn block<V: Lanes, const D: usize>(spec: &Spec, set: &Set, units: &[Unit; 32]) -> Chosen {
    let per_group = spec.group / 8;
    let n_groups = 32 / per_group;
    let mut groups = [Group::default(); 16];
    let (from, to) = spec.tries;
    for (group, units) in groups.iter_mut().zip(units.chunks_exact(per_group)) {
        let max = units.iter().flat_map(|u| u.x).fold(0.0, |max: f32, x| max.max(x.abs()));
        if max == 0.0 {
            continue;
        }
        let unit = max / spec.top();
        let mut best = (f32::INFINITY, [Pick::default(); 4], unit);
        for i in 0..TRIES {
            let scale = unit * (from + (to - from) / (TRIES - 1) as f32 * i as f32);
            let mut picks = [Pick::default(); 4];
            let cost = pick_group::<V, D>(set, spec, units, scale, &mut picks);
            if cost < best.0 {
                best = (cost, picks, scale);
            }
        }
        let (xq, qq) = moments::<D>(spec, units, &best.1);
        group.scale = if xq > 0.0 && qq > 0.0 { (xq / qq).min(2.0 * unit * to) } else { best.2 };
        group.weight = qq;
    }
    let groups = &mut groups[..n_groups];
    let odd_multiple = |code: u8| f32::from(2 * code + 1);
    let nearest_code =
        |scale: f32, d: f32| ((scale / d - 1.0) * 0.5).round_ties_even().clamp(0.0, f32::from(spec.highest)) as u8;
    let top = groups.iter().fold(0.0, |top: f32, g| top.max(g.scale)) / odd_multiple(spec.highest);
    if top == 0.0 {
        return finish::<D>(spec, units, 0.0, groups);
    }
    // The factor at which the scales are nearest to multiples.
    let mut best = (f32::INFINITY, top);
    for i in 0..24 {
        let d = top * (0.85 + 0.0125 * i as f32);
        let cost = groups.iter().map(|g| {
            let off = d * odd_multiple(nearest_code(g.scale, d)) - g.scale;
            g.weight * (off * off)
        });
        let cost = cost.sum::<f32>();
        if cost < best.0 {
            best = (cost, d);
        }
    }
    let mut d = to_half(best.1);
    for round in 0..2 {
        let (mut xq, mut qq) = (0.0, 0.0);
        for (group, units) in groups.iter_mut().zip(units.chunks_exact(per_group)) {
            let middle = if round == 0 { nearest_code(group.scale, d) } else { group.code };
            group.cost = f32::INFINITY;
            let codes = match round {
                0 => middle.saturating_sub(1)..=(middle + 1).min(spec.highest),
                _ => middle..=middle,
            };
            for code in codes {
                let mut picks = [Pick::default(); 4];
                let cost = pick_group::<V, D>(set, spec, units, d * odd_multiple(code), &mut picks);
                if cost < group.cost {
                    (group.cost, group.picks, group.code) = (cost, picks, code);
                }
            }
            let (a, b) = moments::<D>(spec, units, &group.picks);
            let multiple = odd_multiple(group.code);
            xq += a * multiple;
            qq += b * multiple * multiple;
        }
        // The last factor is the one that fits what was chosen.
        if xq > 0.0 && qq > 0.0 {
            d = to_half(xq / qq);
        }
    }
    finish::<D>(spec, units, d, groups)
}

/// The nearest finite F16.
fn to_half(d: f32) -> f32 {
    f16::from_f32(d.min(65504.0)).to_f32()
}

/// What was chosen, with signs.
#[inline(always)]
fn finish<const D: usize>(spec: &Spec, units: &[Unit; 32], d: f32, groups: &[Group]) -> Chosen {
    let per_group = spec.group / 8;
    let mut chosen = Chosen { d: f16::from_f32(d), ..Chosen::default() };
    for (j, unit) in units.iter().enumerate() {
        let group = &groups[j / per_group];
        let pick = &group.picks[j % per_group];
        chosen.scales[j / per_group] = group.code;
        chosen.points[j] = pick.points;
        chosen.minus[j] = pick.variant == 1;
        chosen.signs[j] = unit.signs ^ if unit.odd { turned(unit, &values_of::<D>(spec.values, pick)) } else { 0 };
    }
    chosen
}
