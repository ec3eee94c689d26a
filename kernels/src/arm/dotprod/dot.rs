//! Panels of weights times activations.
//!
//! One vector holds four columns of 4 rows, which an instruction multiplies with four of 16 activations in a register and
//! adds up: a tile is 8 rows by up to 4 tokens, one vector of integer sums and one of floats for each four.

use crate::arm::neon::dot::Token;
use crate::arm::neon::{load_floats, store_floats};
use crate::arm::sdot;
use crate::panel::{Columns, Form, PANEL_COLS, PANEL_ROWS, Panel};
use crate::scalar::check_dot;
use std::arch::aarch64::*;

pub fn dot(form: Form, panel: &Panel, n: usize, x: Columns<'_>, first: usize, acc: &mut [[f32; PANEL_ROWS]]) {
    check_dot(form, n, x, first, acc);
    // SAFETY: this function is in the table of processors with dot products only.
    unsafe {
        match form {
            Form::Unsigned { group: 32, .. } => tokens::<8, false>(panel, n, x, first, acc),
            Form::Unsigned { .. } => tokens::<4, false>(panel, n, x, first, acc),
            Form::Signed => tokens::<8, true>(panel, n, x, first, acc),
            Form::Float => unreachable!("checked above"),
        }
    }
}

/// Walks the tokens by tiles. `STEPS` times 4 columns share a scale. Quants are below 128, and so signed ones as well.
///
/// # Safety
/// The processor must have dot products.
#[target_feature(enable = "neon")]
unsafe fn tokens<const STEPS: usize, const SIGNED: bool>(
    panel: &Panel,
    n: usize,
    x: Columns<'_>,
    first: usize,
    acc: &mut [[f32; PANEL_ROWS]],
) {
    let token = |t: usize| Token::new::<STEPS>(x, n, t, first);
    let mut t = 0;
    while t < acc.len() {
        let rest = &mut acc[t..];
        // SAFETY: as the caller says.
        unsafe {
            t += match rest.len() {
                1 => tile::<STEPS, SIGNED, 1>(panel, n, &[token(t)], rest),
                2 => tile::<STEPS, SIGNED, 2>(panel, n, &[token(t), token(t + 1)], rest),
                3 => tile::<STEPS, SIGNED, 3>(panel, n, &[token(t), token(t + 1), token(t + 2)], rest),
                _ => tile::<STEPS, SIGNED, 4>(panel, n, &[token(t), token(t + 1), token(t + 2), token(t + 3)], rest),
            };
        }
    }
}

/// Adds the products of the first `n` columns with `T` tokens, of which it returns the number.
///
/// # Safety
/// The processor must have dot products.
#[inline]
#[target_feature(enable = "neon")]
pub(in crate::arm) unsafe fn tile<const STEPS: usize, const SIGNED: bool, const T: usize>(
    panel: &Panel,
    n: usize,
    x: &[Token<'_>; T],
    acc: &mut [[f32; PANEL_ROWS]],
) -> usize {
    assert!(
        n <= PANEL_COLS
            && acc.len() >= T
            && x.iter().all(|x| x.q.len() >= n && x.scale.len() >= n / 32 && x.sum.len() >= n / (4 * STEPS))
    );
    for half in 0..2 {
        let mut total = [[vdupq_n_f32(0.0); 2]; T];
        for t in 0..T {
            let acc = acc[t].as_chunks().0;
            total[t] = [load_floats(&acc[2 * half]), load_floats(&acc[2 * half + 1])];
        }
        for (g, w) in panel.q[..n / 4].as_chunks::<STEPS>().0.iter().enumerate() {
            let mut sums = [[vdupq_n_s32(0); 2]; T];
            for (s, w) in w.as_chunks::<4>().0.iter().enumerate() {
                // SAFETY: these are columns `4 · STEPS · g + 16 · s..` of the `n` that each token has, and 32 bytes of the 64 of
                // each step; the processor has dot products.
                unsafe {
                    let mut q = [vdupq_n_s8(0); T];
                    for t in 0..T {
                        q[t] = vld1q_s8(x[t].q.as_ptr().add(4 * STEPS * g + 16 * s));
                    }
                    for i in 0..2 {
                        let w = |s: usize| vld1q_s8(w[s].as_ptr().add(32 * half + 16 * i).cast());
                        let (a, b, c, d) = (w(0), w(1), w(2), w(3));
                        for t in 0..T {
                            sums[t][i] = sdot::<0>(sums[t][i], a, q[t]);
                        }
                        for t in 0..T {
                            sums[t][i] = sdot::<1>(sums[t][i], b, q[t]);
                        }
                        for t in 0..T {
                            sums[t][i] = sdot::<2>(sums[t][i], c, q[t]);
                        }
                        for t in 0..T {
                            sums[t][i] = sdot::<3>(sums[t][i], d, q[t]);
                        }
                    }
                }
            }
            let (scale, min) = (panel.scale[g].as_chunks().0, panel.min[g].as_chunks().0);
            for i in 0..2 {
                let (scale, min) = (load_floats(&scale[2 * half + i]), load_floats(&min[2 * half + i]));
                for t in 0..T {
                    // SAFETY: each token has a scale for 32 of the `n` columns and a sum for each group.
                    let (scale_x, sum) =
                        unsafe { (*x[t].scale.get_unchecked(g * STEPS / 8), *x[t].sum.get_unchecked(g)) };
                    let v = &mut total[t][i];
                    *v = vfmaq_f32(*v, vmulq_n_f32(scale, scale_x), vcvtq_f32_s32(sums[t][i]));
                    if !SIGNED {
                        *v = vfmsq_n_f32(*v, min, sum);
                    }
                }
            }
        }
        for t in 0..T {
            let acc = acc[t].as_chunks_mut().0;
            store_floats(&mut acc[2 * half], total[t][0]);
            store_floats(&mut acc[2 * half + 1], total[t][1]);
        }
    }
    T
}
