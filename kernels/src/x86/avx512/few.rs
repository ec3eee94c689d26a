//! Products of a few tokens, bound by how fast the weights come from memory: each group of quants is multiplied in
//! registers as soon as it is unpacked.

use super::unpack::{FloatColumns, Groups, columns, groups};
use super::{load_floats, store_floats};
use crate::Dtype;
use crate::panel::{Columns, FEW, FLOAT_COLS, PANEL_ROWS, Source};
use crate::scalar::few::{check_few, check_few_float};
use crate::x86::Rows;
use std::arch::x86_64::*;

pub fn dot_few(dtype: Dtype, source: &Source<'_>, x: Columns<'_>, acc: &mut [[f32; PANEL_ROWS]]) {
    check_few(dtype, source, x, acc);
    // SAFETY: this function is in the table of processors with AVX-512 F, BW, DQ, VL and VNNI only.
    unsafe {
        match source {
            Source::Rows(rows) => tokens(dtype, &Rows::apart(rows), x, acc),
            Source::Panel(bytes) => tokens(dtype, &Rows::interleaved(bytes), x, acc),
        }
    }
}

/// # Safety
/// The processor must have these features, and the arguments fit together as [`check_few`] checks.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn tokens<const P: bool>(dtype: Dtype, rows: &Rows<'_, P>, x: Columns<'_>, acc: &mut [[f32; PANEL_ROWS]]) {
    if let [acc] = acc {
        let mut few = Few::<1> { x, acc: [load_floats(acc)] };
        groups(dtype, rows, &mut few);
        store_floats(acc, few.acc[0]);
    } else {
        // Fewer than four are multiplied as four: the last one is repeated, and its sums are dropped.
        let last = acc.len() - 1;
        let sums = |t: usize| load_floats(&acc[t.min(last)]);
        let mut few = Few::<FEW> { x, acc: [sums(0), sums(1), sums(2), sums(3)] };
        groups(dtype, rows, &mut few);
        few.acc.into_iter().zip(acc).for_each(|(v, acc)| store_floats(acc, v));
    }
}

/// The sums of `T` tokens with 16 rows.
struct Few<'a, const T: usize> {
    x: Columns<'a>,
    acc: [__m512; T],
}

impl<const T: usize> Groups for Few<'_, T> {
    const STREAMS: bool = true;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn take<const STEPS: usize, const SIGNED: bool>(
        &mut self,
        group: usize,
        q: [__m512i; STEPS],
        scale: __m512,
        min: __m512,
    ) {
        let x = &self.x;
        let last = x.scale.len() * 32 / x.n_cols - 1;
        for t in 0..T {
            // Where the group begins in this token's columns.
            let (token, first) = (t.min(last), 4 * STEPS * group);
            let (at, q_at) = (token * x.n_cols + first, token * x.stride + first);
            let mut sum = _mm512_setzero_si512();
            if SIGNED {
                // SAFETY: the rows are as long as `n_cols`, so the group's columns lie within those of each token, and there is
                // a total for each 16 of them.
                let total = unsafe { *x.total.get_unchecked(at / 16) + *x.total.get_unchecked(at / 16 + 1) };
                sum = _mm512_set1_epi32(-128 * total);
            }
            for (s, q) in q.iter().enumerate() {
                // SAFETY: as above.
                let x = unsafe { x.q.as_ptr().add(q_at + 4 * s).cast::<i32>().read_unaligned() };
                // Signed quants plus 128 are unsigned.
                let q = if SIGNED { _mm512_xor_si512(*q, _mm512_set1_epi8(-128)) } else { *q };
                sum = _mm512_dpbusd_epi32(sum, q, _mm512_set1_epi32(x));
            }
            // SAFETY: as above; there is one of these for each 16 or 32 columns.
            let (scale_x, sum_x) = unsafe {
                let sums = if STEPS == 4 { x.sum16 } else { x.sum32 };
                (*x.scale.get_unchecked(at / 32), *sums.get_unchecked(at / (4 * STEPS)))
            };
            let acc = &mut self.acc[t];
            let scale = _mm512_mul_ps(scale, _mm512_set1_ps(scale_x));
            *acc = _mm512_fmadd_ps(scale, _mm512_cvtepi32_ps(sum), *acc);
            if !SIGNED {
                *acc = _mm512_fnmadd_ps(min, _mm512_set1_ps(sum_x), *acc);
            }
        }
    }
}

pub fn dot_few_float(dtype: Dtype, source: &Source<'_>, x: &[f32], acc: &mut [[f32; PANEL_ROWS]]) {
    check_few_float(dtype, source, x, acc);
    // SAFETY: this function is in the table of processors with AVX-512 F, BW, DQ, VL and VNNI only.
    unsafe {
        match source {
            Source::Rows(rows) => tokens_float(dtype, &Rows::apart(rows), x, acc),
            Source::Panel(bytes) => tokens_float(dtype, &Rows::interleaved(bytes), x, acc),
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn tokens_float<const P: bool>(dtype: Dtype, rows: &Rows<'_, P>, x: &[f32], acc: &mut [[f32; PANEL_ROWS]]) {
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
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
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
    let mut few = FewFloat::<T> { x: tokens, acc: [_mm512_setzero_ps(); T] };
    columns(dtype, rows, first, n, &mut few);
    for (part, acc) in few.acc.into_iter().zip(acc) {
        store_floats(acc, _mm512_add_ps(load_floats(acc), part));
    }
}

/// The sums of some columns of `T` tokens with 16 rows.
struct FewFloat<'a, const T: usize> {
    x: [&'a [f32]; T],
    acc: [__m512; T],
}

impl<const T: usize> FloatColumns for FewFloat<'_, T> {
    const STREAMS: bool = true;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn take(&mut self, column: usize, v: __m512) {
        for (x, acc) in self.x.iter().zip(&mut self.acc) {
            *acc = _mm512_fmadd_ps(v, _mm512_set1_ps(x[column]), *acc);
        }
    }
}
