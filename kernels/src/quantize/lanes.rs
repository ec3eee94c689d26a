//! Vectors of floats whose lanes are blocks: what the searches for quantized blocks are written in.
//!
//! A search is written once, over [`Lanes`]; lane `l` of every vector belongs to block `l` of a batch. The lanes never
//! meet, so that a block's bytes depend neither on the width of the vectors nor on the other blocks, and each operation
//! is an IEEE one without contraction: all levels give the same bits.

use half::f16;
use std::ops::{Add, Div, Mul, Sub};

/// The widest vector.
pub(crate) const MAX_LANES: usize = 16;

/// A vector of floats, one for each block of a batch.
pub(crate) trait Lanes:
    Copy + Add<Output = Self> + Sub<Output = Self> + Mul<Output = Self> + Div<Output = Self>
{
    /// Floats in a vector.
    const N: usize;
    /// A truth value for each lane.
    type Mask: Copy;

    /// The same float in each lane.
    fn splat(x: f32) -> Self;
    /// The first `N` floats.
    fn load(from: &[f32; MAX_LANES]) -> Self;
    /// To the first `N` floats.
    fn store(self, to: &mut [f32; MAX_LANES]);
    /// Each lane's integer (from -128 to 255, or NaN, which counts as 0) as a byte; only the first `N` mean something.
    fn to_bytes(self) -> [u8; MAX_LANES];
    /// Square roots.
    fn sqrt(self) -> Self;
    /// Magnitudes.
    fn abs(self) -> Self;
    /// The nearest integers, to even from halfway.
    fn round(self) -> Self;
    /// Integers toward 0.
    fn trunc(self) -> Self;
    /// `self < other ? self : other`: `other` where either is NaN.
    fn min(self, other: Self) -> Self;
    /// `self > other ? self : other`: `other` where either is NaN.
    fn max(self, other: Self) -> Self;
    /// `self < other`.
    fn lt(self, other: Self) -> Self::Mask;
    /// `self >= other`.
    fn ge(self, other: Self) -> Self::Mask;
    /// `self != other`, true for NaN.
    fn ne(self, other: Self) -> Self::Mask;
    /// Where both hold.
    fn and(a: Self::Mask, b: Self::Mask) -> Self::Mask;
    /// Whether any lane holds.
    fn any(mask: Self::Mask) -> bool;
    /// `mask ? yes : no`.
    fn select(mask: Self::Mask, yes: Self, no: Self) -> Self;
    /// The integer in the low bits of `self + 1.5 · 2²³`: the nearest one up to 2²² in magnitude, and what ggml gets beyond.
    /// 0 for NaN.
    fn low_bits(self) -> Self;
    /// F16 bits, to nearest even; only the first `N` mean something. NaN gets one pattern.
    fn to_f16(self) -> [u16; MAX_LANES];
    /// The first `N` floats of F16 bits.
    fn from_f16(bits: &[u16; MAX_LANES]) -> Self;
    /// Runs a task compiled for this instruction set, as a function of its own.
    fn call<T: Task>(task: T) -> T::Output;

    /// `self > other`.
    #[inline(always)]
    fn gt(self, other: Self) -> Self::Mask {
        other.lt(self)
    }

    /// `self` between `low` and `high`; NaN becomes `low`.
    #[inline(always)]
    fn clamp(self, low: f32, high: f32) -> Self {
        self.max(Self::splat(low)).min(Self::splat(high))
    }

    /// The nearest numbers of F16.
    #[inline(always)]
    fn half(self) -> Self {
        Self::from_f16(&self.to_f16())
    }

    /// `self` where `mask` holds, and else 0.
    #[inline(always)]
    fn keep(self, mask: Self::Mask) -> Self {
        Self::select(mask, self, Self::splat(0.0))
    }

    /// Of candidates whose digits are packed in `bits` bits each, the one with the least sum of `costs[i][digit i]`, to which
    /// the least of `flips[i][digit i]` is added: its number and its cost. The entry is chosen by the 3 bits from where the digit
    /// begins. Of equal ones it is the first of the first lane of eight that has one.
    #[inline(always)]
    fn least_sum<const D: usize>(
        costs: &[[f32; 8]; D],
        flips: Option<&[[f32; 8]; D]>,
        bits: usize,
        candidates: &[[u16; 8]],
    ) -> (usize, f32) {
        let mut least = [(0, f32::INFINITY); 8];
        for (c, candidates) in candidates.iter().enumerate() {
            for (l, (least, digits)) in least.iter_mut().zip(candidates).enumerate() {
                let digit = |i: usize| usize::from(digits >> (bits * i) & 7);
                let mut sum = (1..D).fold(costs[0][digit(0)], |sum, i| sum + costs[i][digit(i)]);
                if let Some(flips) = flips {
                    let first = flips[0][digit(0)];
                    sum +=
                        (1..D).fold(first, |flip, i| if flips[i][digit(i)] < flip { flips[i][digit(i)] } else { flip });
                }
                if sum < least.1 {
                    *least = (8 * c + l, sum);
                }
            }
        }
        least.into_iter().reduce(|a, b| if b.1 < a.1 { b } else { a }).expect("there are lanes")
    }
}

/// Something that runs over vectors of any width. `run` must be inlined, as everything that it calls with vectors: only
/// what ends up inside of [`Lanes::call`] is compiled for the instruction set.
pub(crate) trait Task {
    /// What it returns.
    type Output;
    /// Does it.
    fn run<V: Lanes>(self) -> Self::Output;
}

/// One block at a time, in plain Rust.
#[derive(Clone, Copy)]
pub(crate) struct Plain(f32);

macro_rules! operators {
    ($($op:ident $name:ident $sign:tt)*) => { $(
        impl $op for Plain {
            type Output = Plain;
            #[inline(always)]
            fn $name(self, other: Plain) -> Plain {
                Plain(self.0 $sign other.0)
            }
        }
    )* };
}
operators! { Add add + Sub sub - Mul mul * Div div / }

impl Lanes for Plain {
    const N: usize = 1;
    type Mask = bool;

    #[inline(always)]
    fn splat(x: f32) -> Plain {
        Plain(x)
    }
    #[inline(always)]
    fn load(from: &[f32; MAX_LANES]) -> Plain {
        Plain(from[0])
    }
    #[inline(always)]
    fn store(self, to: &mut [f32; MAX_LANES]) {
        to[0] = self.0;
    }
    #[inline(always)]
    fn to_bytes(self) -> [u8; MAX_LANES] {
        [self.0 as i32 as u8; MAX_LANES]
    }
    #[inline(always)]
    fn sqrt(self) -> Plain {
        Plain(self.0.sqrt())
    }
    #[inline(always)]
    fn abs(self) -> Plain {
        Plain(self.0.abs())
    }
    #[inline(always)]
    fn round(self) -> Plain {
        Plain(self.0.round_ties_even())
    }
    #[inline(always)]
    fn trunc(self) -> Plain {
        Plain(self.0.trunc())
    }
    #[inline(always)]
    fn min(self, other: Plain) -> Plain {
        if self.0 < other.0 { self } else { other }
    }
    #[inline(always)]
    fn max(self, other: Plain) -> Plain {
        if self.0 > other.0 { self } else { other }
    }
    #[inline(always)]
    fn lt(self, other: Plain) -> bool {
        self.0 < other.0
    }
    #[inline(always)]
    fn ge(self, other: Plain) -> bool {
        self.0 >= other.0
    }
    #[inline(always)]
    fn ne(self, other: Plain) -> bool {
        self.0 != other.0
    }
    #[inline(always)]
    fn and(a: bool, b: bool) -> bool {
        a & b
    }
    #[inline(always)]
    fn any(mask: bool) -> bool {
        mask
    }
    #[inline(always)]
    fn select(mask: bool, yes: Plain, no: Plain) -> Plain {
        if mask { yes } else { no }
    }
    #[inline(always)]
    fn low_bits(self) -> Plain {
        let bits = (self.0 + 12_582_912.0).to_bits() & 0x7f_ffff;
        Plain(if self.0.is_nan() { 0.0 } else { (bits as i32 - 0x40_0000) as f32 })
    }
    #[inline(always)]
    fn to_f16(self) -> [u16; MAX_LANES] {
        [if self.0.is_nan() { f16::NAN } else { f16::from_f32(self.0) }.to_bits(); MAX_LANES]
    }
    #[inline(always)]
    fn from_f16(bits: &[u16; MAX_LANES]) -> Plain {
        Plain(f16::from_bits(bits[0]).to_f32())
    }
    #[inline(always)]
    fn call<T: Task>(task: T) -> T::Output {
        task.run::<Plain>()
    }
}
