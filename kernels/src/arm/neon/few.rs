//! Products of a few tokens, bound by how fast the weights come from memory: each group of quants is multiplied in
//! registers as soon as it is unpacked.

use super::dot::{chain, products};
use super::unpack::{FloatColumns, Groups, Rows, SIGNED, columns, groups};
use super::{load_floats, store_floats};
use crate::Dtype;
use crate::panel::{Columns, FEW, FLOAT_COLS, Form, PANEL_ROWS, Source};
use crate::scalar::few::{check_few, check_few_float};
use std::arch::aarch64::*;
use std::arch::asm;
use std::marker::PhantomData;

pub fn dot_few(dtype: Dtype, source: &Source<'_>, x: Columns<'_>, acc: &mut [[f32; PANEL_ROWS]]) {
    check_few(dtype, source, x, acc);
    // SAFETY: this function is in the table of processors with NEON only, and the arguments fit together.
    unsafe {
        match source {
            Source::Rows(rows) => tokens::<false, Sums>(dtype, &Rows::apart(rows), x, acc),
            Source::Panel(bytes) => tokens::<true, Sums>(dtype, &Rows::interleaved(bytes), x, acc),
        }
    }
}

/// How a level sums up the products of a group.
pub(in crate::arm) trait Dot {
    /// The products of 4 rows with the `4 · STEPS` activations at `x`.
    ///
    /// # Safety
    /// So many bytes are readable at `x`, and the processor has the level.
    unsafe fn sum<const STEPS: usize, const BITS: usize>(q: &[uint8x16_t; STEPS], x: *const i8) -> int32x4_t;
}

/// That of NEON.
struct Sums;

impl Dot for Sums {
    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn sum<const STEPS: usize, const BITS: usize>(q: &[uint8x16_t; STEPS], x: *const i8) -> int32x4_t {
        let mut wide = [vdupq_n_s32(0); 2];
        let chain = const { if chain(BITS) < STEPS { chain(BITS) } else { STEPS } };
        let mut sixteen = vdupq_n_s8(0);
        for c in 0..STEPS / chain {
            let mut narrow = [vdupq_n_s16(0); 2];
            for s in c * chain..(c + 1) * chain {
                if s % 4 == 0 {
                    // SAFETY: these are 16 of the activations.
                    sixteen = unsafe { vld1q_s8(x.add(4 * s)) };
                }
                let x = repeat(sixteen, s % 4);
                narrow = products(s == c * chain, narrow, vreinterpretq_s8_u8(q[s]), x);
            }
            for i in 0..2 {
                wide[i] = if c == 0 { vpaddlq_s16(narrow[i]) } else { vpadalq_s16(wide[i], narrow[i]) };
            }
        }
        vpaddq_s32(wide[0], wide[1])
    }
}

/// Activations `4 i..4 i + 4` of 16, four times. `i < 4`, known when this is compiled.
#[inline]
#[target_feature(enable = "neon")]
fn repeat(x: int8x16_t, i: usize) -> int8x16_t {
    // The intrinsic says that all parts are alike, and the compiler then moves the upper half of the weights down instead of
    // multiplying upper halves.
    macro_rules! lane {
        ($i:literal) => {{
            let v: int8x16_t;
            // SAFETY: registers only.
            unsafe {
                asm!(
                    concat!("dup {v:v}.4s, {x:v}.s[", $i, "]"),
                    v = out(vreg) v,
                    x = in(vreg) x,
                    options(pure, nomem, nostack, preserves_flags),
                );
            }
            v
        }};
    }
    match i {
        0 => lane!(0),
        1 => lane!(1),
        2 => lane!(2),
        _ => lane!(3),
    }
}

/// # Safety
/// As [`check_few`] checks, and the processor has the level of `D`.
#[inline]
#[target_feature(enable = "neon")]
pub(in crate::arm) unsafe fn tokens<const P: bool, D: Dot>(
    dtype: Dtype,
    rows: &Rows<'_, P>,
    x: Columns<'_>,
    acc: &mut [[f32; PANEL_ROWS]],
) {
    if let [acc] = acc {
        let mut few = Few::<1, D>::new(dtype, x, &[*acc]);
        groups(dtype, rows, &mut few);
        *acc = few.acc[0];
    } else {
        // Fewer than four are multiplied as four: the last one is repeated, and its sums are dropped.
        let mut few = Few::<FEW, D>::new(dtype, x, acc);
        groups(dtype, rows, &mut few);
        acc.iter_mut().zip(few.acc).for_each(|(acc, sums)| *acc = sums);
    }
}

/// The sums of `T` tokens with 16 rows.
struct Few<'a, const T: usize, D> {
    /// Where each token begins in [`Columns`]: its quants, scales, and sums of groups.
    q: [*const i8; T],
    scale: [*const f32; T],
    sum: [*const f32; T],
    acc: [[f32; PANEL_ROWS]; T],
    columns: PhantomData<(Columns<'a>, D)>,
}

impl<'a, const T: usize, D> Few<'a, T, D> {
    /// Of `T` tokens, those that are not there repeat the last.
    fn new(dtype: Dtype, x: Columns<'a>, acc: &[[f32; PANEL_ROWS]]) -> Self {
        let token = |t: usize| t.min(acc.len() - 1);
        let sums = if Form::of(dtype).group() == 16 { x.sum16 } else { x.sum32 };
        let n_groups = x.n_cols / Form::of(dtype).group();
        Few {
            q: std::array::from_fn(|t| x.q[token(t) * x.stride..].as_ptr()),
            scale: std::array::from_fn(|t| x.scale[token(t) * (x.n_cols / 32)..].as_ptr()),
            sum: std::array::from_fn(|t| sums[token(t) * n_groups..].as_ptr()),
            acc: std::array::from_fn(|t| acc[token(t)]),
            columns: PhantomData,
        }
    }
}

impl<const T: usize, D: Dot> Groups for Few<'_, T, D> {
    const STREAMS: bool = true;

    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn take<const STEPS: usize, const BITS: usize>(
        &mut self,
        quarter: usize,
        group: usize,
        q: [uint8x16_t; STEPS],
        scale: float32x4_t,
        min: float32x4_t,
    ) {
        for t in 0..T {
            // SAFETY: the rows are as long as `n_cols`, so the group's columns lie within those of each token; there is one scale
            // for 32 of them, and a sum for each group.
            let (product, scale_x, sum) = unsafe {
                (
                    D::sum::<STEPS, BITS>(&q, self.q[t].add(4 * STEPS * group)),
                    *self.scale[t].add(group * STEPS / 8),
                    *self.sum[t].add(group),
                )
            };
            let acc = &mut self.acc[t].as_chunks_mut().0[quarter];
            let mut v = vfmaq_f32(load_floats(acc), vmulq_n_f32(scale, scale_x), vcvtq_f32_s32(product));
            if BITS != SIGNED {
                v = vfmsq_n_f32(v, min, sum);
            }
            store_floats(acc, v);
        }
    }
}

pub fn dot_few_float(dtype: Dtype, source: &Source<'_>, x: &[f32], acc: &mut [[f32; PANEL_ROWS]]) {
    check_few_float(dtype, source, x, acc);
    // SAFETY: this function is in the table of processors with NEON only, and the arguments fit together.
    unsafe {
        match source {
            Source::Rows(rows) => tokens_float(dtype, &Rows::apart(rows), x, acc),
            Source::Panel(bytes) => tokens_float(dtype, &Rows::interleaved(bytes), x, acc),
        }
    }
}

/// # Safety
/// As [`check_few_float`] checks.
#[target_feature(enable = "neon")]
unsafe fn tokens_float<const P: bool>(dtype: Dtype, rows: &Rows<'_, P>, x: &[f32], acc: &mut [[f32; PANEL_ROWS]]) {
    let n_cols = x.len() / acc.len();
    for first in (0..n_cols).step_by(FLOAT_COLS) {
        let n = FLOAT_COLS.min(n_cols - first);
        if acc.len() == 1 {
            part_float::<P, 1>(dtype, rows, x, first, n, acc);
        } else {
            part_float::<P, FEW>(dtype, rows, x, first, n, acc);
        }
    }
}

/// Adds the sums of columns `first..first + n`. Of `T` tokens, those that are not there repeat the last.
#[inline]
#[target_feature(enable = "neon")]
fn part_float<const P: bool, const T: usize>(
    dtype: Dtype,
    rows: &Rows<'_, P>,
    x: &[f32],
    first: usize,
    n: usize,
    acc: &mut [[f32; PANEL_ROWS]],
) {
    let n_cols = x.len() / acc.len();
    let tokens = std::array::from_fn(|t| &x[t.min(acc.len() - 1) * n_cols + first..][..n]);
    let mut few = FewFloat::<T> { x: tokens, acc: [[vdupq_n_f32(0.0); 4]; T] };
    columns(dtype, rows, first, n, &mut few);
    for (part, acc) in few.acc.into_iter().zip(acc) {
        for (part, acc) in part.into_iter().zip(acc.as_chunks_mut().0) {
            store_floats(acc, vaddq_f32(load_floats(acc), part));
        }
    }
}

/// The sums of some columns of `T` tokens with 16 rows.
struct FewFloat<'a, const T: usize> {
    x: [&'a [f32]; T],
    acc: [[float32x4_t; 4]; T],
}

impl<const T: usize> FloatColumns for FewFloat<'_, T> {
    const STREAMS: bool = true;

    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn take(&mut self, quarter: usize, column: usize, v: float32x4_t) {
        for (x, acc) in self.x.iter().zip(&mut self.acc) {
            // SAFETY: each token has as many columns as were asked for.
            let x = unsafe { *x.get_unchecked(column) };
            acc[quarter] = vfmaq_n_f32(acc[quarter], v, x);
        }
    }
}
