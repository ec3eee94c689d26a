//! Searching among the points of IQ1, IQ2 and IQ3: which are near, and which of those costs least.

use super::lanes::Lanes;
use crate::grid;
use std::sync::OnceLock;

/// How many near points are compared.
pub(crate) const NEAR: usize = 16;

/// Digits are packed from the lowest bits on: those of 8 in 2 bits each, those of 4 in 3.
pub(crate) const fn bits(digits: usize) -> usize {
    if digits == 8 { 2 } else { 3 }
}

/// How many values a digit has.
pub(crate) const fn base(digits: usize) -> usize {
    if digits == 8 { 3 } else { 8 }
}

/// A set of points of [`grid`], with what is near to each possible point, in it or not.
pub(crate) struct Set {
    /// The packed digits by code.
    pub packed: Vec<u16>,
    /// The code by packed digits, for points of the set.
    codes: Vec<u16>,
    /// By the number of a possible point, its digits read to their base: packed digits of the nearest points.
    near: Vec<[[u16; 8]; NEAR / 8]>,
    /// The codes of the points at the least distances, nearest first, where [`Set::shells`] says: those of possible point i in
    /// `shell_starts[i]..shell_starts[i + 1]`.
    shells: Vec<u16>,
    shell_starts: Vec<u32>,
}

impl Set {
    /// Of points with `digits` digits that stand for `values`; `shells` distances are kept for ggml's search.
    fn new(digits: usize, shells: usize, values: &[u8], points: impl Iterator<Item = u64>) -> Set {
        let base = base(digits);
        let digit_of = |value: u8| values.iter().position(|v| *v == value).expect("points are made of the values");
        let apart: Vec<[u8; 8]> = points
            .map(|p| {
                let bytes = p.to_le_bytes();
                std::array::from_fn(|i| if i < digits { digit_of(bytes[i]) as u8 } else { 0 })
            })
            .collect();
        let pack = |point: &[u8; 8]| (0..digits).map(|i| u16::from(point[i]) << (bits(digits) * i)).sum::<u16>();
        let packed: Vec<u16> = apart.iter().map(pack).collect();
        let mut codes = vec![u16::MAX; 1 << (bits(digits) * digits)];
        packed.iter().enumerate().for_each(|(code, p)| codes[usize::from(*p)] = code as u16);
        let mut set = Set { packed, codes, near: Vec::new(), shells: Vec::new(), shell_starts: vec![0] };
        let mut order: Vec<(u16, u16)> = Vec::new();
        for number in 0..base.pow(digits as u32) {
            let mut rest = number;
            let here: [u8; 8] = std::array::from_fn(|_| {
                let digit = rest % base;
                rest /= base;
                digit as u8
            });
            order.clear();
            order.extend(apart.iter().enumerate().map(|(code, point)| {
                let far: u16 = point.iter().zip(here).map(|(a, b)| u16::from(a.abs_diff(b)).pow(2)).sum();
                (far, code as u16)
            }));
            // The first of `shells` distances, and at least the nearest few.
            let mut limit = 0;
            for _ in 0..shells {
                limit = order.iter().map(|o| o.0).filter(|far| *far >= limit).min().map_or(limit, |far| far + 1);
            }
            let inside = order.iter().filter(|o| o.0 < limit).count();
            let wanted = inside.max(NEAR);
            order.select_nth_unstable(wanted - 1);
            order[..wanted].sort_unstable();
            set.near
                .push(std::array::from_fn(|c| std::array::from_fn(|l| set.packed[usize::from(order[8 * c + l].1)])));
            set.shells.extend(order[..inside].iter().map(|o| o.1));
            set.shell_starts.push(set.shells.len() as u32);
        }
        set
    }

    /// The code of packed digits, if they are a point of the set.
    pub fn code(&self, packed: u16) -> Option<u16> {
        Some(self.codes[usize::from(packed)]).filter(|code| *code != u16::MAX)
    }

    /// The codes of the points at the least distances from a possible point, nearest first and then in order.
    pub fn shells(&self, number: usize) -> &[u16] {
        &self.shells[self.shell_starts[number] as usize..self.shell_starts[number + 1] as usize]
    }

    /// Of the points near to possible point `number`, the one that costs least, packed, and its cost: the sum of
    /// `costs[i][digit i]`, and of the least of `flips[i][digit i]`. Where digits have 3 values, entries 4 to 6 of those
    /// repeat 0 to 2.
    #[inline(always)]
    pub fn cheapest<V: Lanes, const D: usize>(
        &self,
        number: usize,
        costs: &[[f32; 8]; D],
        flips: Option<&[[f32; 8]; D]>,
    ) -> (u16, f32) {
        let near = &self.near[number];
        let (index, cost) = V::least_sum(costs, flips, bits(D), near);
        (near[index / 8][index % 8], cost)
    }
}

/// The sets, made when they are first asked for.
pub(crate) fn set(dtype: crate::Dtype) -> &'static Set {
    use crate::Dtype::*;
    static SETS: [OnceLock<Set>; 6] = [const { OnceLock::new() }; 6];
    let wide = |points: &'static [u32]| points.iter().map(|p| u64::from(*p));
    match dtype {
        IQ2_XXS => SETS[0].get_or_init(|| Set::new(8, 2, &grid::IQ2_VALUES, grid::IQ2_XXS.iter().copied())),
        IQ2_XS => SETS[1].get_or_init(|| Set::new(8, 2, &grid::IQ2_VALUES, grid::IQ2_XS.iter().copied())),
        IQ2_S => SETS[2].get_or_init(|| Set::new(8, 1, &grid::IQ2_VALUES, grid::IQ2_S.iter().copied())),
        IQ3_XXS => SETS[3].get_or_init(|| Set::new(4, 2, &grid::IQ3_XXS_VALUES, wide(&grid::IQ3_XXS))),
        IQ3_S => SETS[4].get_or_init(|| Set::new(4, 3, &grid::IQ3_S_VALUES, wide(&grid::IQ3_S))),
        _ => SETS[5].get_or_init(|| Set::new(8, 3, &grid::IQ1_VALUES, grid::IQ1.iter().copied())),
    }
}
