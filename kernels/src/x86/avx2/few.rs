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
    // SAFETY: this function is in the table of processors with AVX2, FMA and F16C only, and the arguments fit together.
    unsafe {
        match source {
            Source::Rows(rows) => tokens(dtype, &Rows::apart(rows), x, acc),
            Source::Panel(bytes) => tokens(dtype, &Rows::interleaved(bytes), x, acc),
        }
    }
}

/// # Safety
/// As [`check_few`] checks.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn tokens<const P: bool>(dtype: Dtype, rows: &Rows<'_, P>, x: Columns<'_>, acc: &mut [[f32; PANEL_ROWS]]) {
    if acc.len() == 1 {
        let mut few = Few::<1> { x, token: [0], acc: [sums(&acc[0])] };
        groups(dtype, rows, &mut few);
        put(few.acc[0], &mut acc[0]);
    } else {
        // Fewer than four are multiplied as four: the last one is repeated, and its sums are dropped.
        let last = acc.len() - 1;
        let token = std::array::from_fn(|t| t.min(last));
        let mut few = Few::<FEW> { x, token, acc: std::array::from_fn(|t| sums(&acc[t.min(last)])) };
        groups(dtype, rows, &mut few);
        few.acc.into_iter().zip(acc).for_each(|(v, acc)| put(v, acc));
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn sums(acc: &[f32; PANEL_ROWS]) -> [__m256; 2] {
    let acc = acc.as_chunks().0;
    [load_floats(&acc[0]), load_floats(&acc[1])]
}

#[inline]
#[target_feature(enable = "avx2")]
fn put(v: [__m256; 2], acc: &mut [f32; PANEL_ROWS]) {
    v.into_iter().zip(acc.as_chunks_mut().0).for_each(|(v, acc)| store_floats(acc, v));
}

/// The sums of `T` tokens with 16 rows.
struct Few<'a, const T: usize> {
    x: Columns<'a>,
    /// Which tokens they are.
    token: [usize; T],
    /// Those of the half that is next, and of the other one.
    acc: [[__m256; 2]; T],
}

impl<const T: usize> Groups for Few<'_, T> {
    const STREAMS: bool = true;

    #[inline]
    fn turn(&mut self) {
        // `swap` would pass them through memory.
        for acc in &mut self.acc {
            let [a, b] = *acc;
            *acc = [b, a];
        }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn take<const STEPS: usize, const CHAIN: usize>(
        &mut self,
        _half: usize,
        group: usize,
        q: [__m256i; STEPS],
        scale: __m256,
        min: __m256,
    ) {
        let x = &self.x;
        for t in 0..T {
            // Where the group begins in this token's columns.
            let first = 4 * STEPS * group;
            let (at, q_at) = (self.token[t] * x.n_cols + first, self.token[t] * x.stride + first);
            let mut wide = _mm256_setzero_si256();
            let chain = CHAIN.max(1);
            for c in 0..STEPS / chain {
                let mut narrow = _mm256_setzero_si256();
                for (s, q) in q.iter().enumerate().skip(c * chain).take(chain) {
                    // SAFETY: the rows are as long as `n_cols`, so the group's columns lie within those of each token.
                    let x = unsafe { x.q.as_ptr().add(q_at + 4 * s).cast::<i32>().read_unaligned() };
                    let x = _mm256_set1_epi32(x);
                    let pairs = match CHAIN {
                        0 => _mm256_maddubs_epi16(_mm256_abs_epi8(*q), _mm256_sign_epi8(x, *q)),
                        _ => _mm256_maddubs_epi16(*q, x),
                    };
                    narrow = _mm256_add_epi16(narrow, pairs);
                }
                wide = _mm256_add_epi32(wide, _mm256_madd_epi16(narrow, _mm256_set1_epi16(1)));
            }
            // SAFETY: as above; there is one of these for each 16 or 32 columns.
            let (scale_x, sum) = unsafe {
                let sums = if STEPS == 4 { x.sum16 } else { x.sum32 };
                (*x.scale.get_unchecked(at / 32), *sums.get_unchecked(at / (4 * STEPS)))
            };
            let acc = &mut self.acc[t][0];
            let scale = _mm256_mul_ps(scale, _mm256_set1_ps(scale_x));
            *acc = _mm256_fmadd_ps(scale, _mm256_cvtepi32_ps(wide), *acc);
            if CHAIN > 0 {
                *acc = _mm256_fnmadd_ps(min, _mm256_set1_ps(sum), *acc);
            }
        }
    }
}

pub fn dot_few_float(dtype: Dtype, source: &Source<'_>, x: &[f32], acc: &mut [[f32; PANEL_ROWS]]) {
    check_few_float(dtype, source, x, acc);
    // SAFETY: this function is in the table of processors with AVX2, FMA and F16C only, and the arguments fit together.
    unsafe {
        match source {
            Source::Rows(rows) => tokens_float(dtype, &Rows::apart(rows), x, acc),
            Source::Panel(bytes) => tokens_float(dtype, &Rows::interleaved(bytes), x, acc),
        }
    }
}

/// # Safety
/// As [`check_few_float`] checks.
#[target_feature(enable = "avx2,fma,f16c")]
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
#[target_feature(enable = "avx2,fma,f16c")]
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
    let mut few = FewFloat::<T> { x: tokens, acc: [[_mm256_setzero_ps(); 2]; T] };
    columns(dtype, rows, first, n, &mut few);
    for (part, acc) in few.acc.into_iter().zip(acc) {
        let whole = sums(acc);
        put([_mm256_add_ps(whole[0], part[0]), _mm256_add_ps(whole[1], part[1])], acc);
    }
}

/// The sums of some columns of `T` tokens with 16 rows.
struct FewFloat<'a, const T: usize> {
    x: [&'a [f32]; T],
    acc: [[__m256; 2]; T],
}

impl<const T: usize> FloatColumns for FewFloat<'_, T> {
    const STREAMS: bool = true;

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn take(&mut self, half: usize, column: usize, v: __m256) {
        for (x, acc) in self.x.iter().zip(&mut self.acc) {
            acc[half] = _mm256_fmadd_ps(v, _mm256_set1_ps(x[column]), acc[half]);
        }
    }
}
