//! Panels of weights times activations.
//!
//! One vector holds four columns of 4 rows. Four activations are repeated over a vector and multiplied with it to 16 bits;
//! the four products of a row lie side by side until the end of a group. A tile is 8 rows by up to 4 tokens (quantized), or
//! 16 rows by up to 6 (float).

use super::unpack::SIGNED;
use super::{load_floats, store_floats};
use crate::panel::{Columns, FloatPanel, Form, PANEL_COLS, PANEL_ROWS, Panel};
use crate::scalar::{check_dot, check_dot_float};
use std::arch::aarch64::*;

pub fn dot(form: Form, panel: &Panel, n: usize, x: Columns<'_>, first: usize, acc: &mut [[f32; PANEL_ROWS]]) {
    check_dot(form, n, x, first, acc);
    // SAFETY: this function is in the table of processors with NEON only.
    unsafe {
        match form {
            Form::Unsigned { group: 32, bits: ..=4 } => tokens::<8, 4, 4>(panel, n, x, first, acc),
            Form::Unsigned { group: 32, bits: 5 } => tokens::<8, 5, 4>(panel, n, x, first, acc),
            Form::Unsigned { group: 32, bits: 6 } => tokens::<8, 6, 2>(panel, n, x, first, acc),
            Form::Unsigned { group: 32, .. } => tokens::<8, 7, 2>(panel, n, x, first, acc),
            Form::Unsigned { bits: ..=6, .. } => tokens::<4, 6, 4>(panel, n, x, first, acc),
            Form::Unsigned { .. } => tokens::<4, 7, 2>(panel, n, x, first, acc),
            Form::Signed => tokens::<8, SIGNED, 2>(panel, n, x, first, acc),
            Form::Float => unreachable!("checked above"),
        }
    }
}

/// How many products of quants of `bits` bits with activations add up in 16: 8 of up to 5 bits (8 · 31 · 127 < 2¹⁵), 4 of
/// 6, 2 of 7 and of signed ones (2 · 128 · 127).
pub(super) const fn chain(bits: usize) -> usize {
    match bits {
        ..=5 => 8,
        6 => 4,
        _ => 2,
    }
}

/// The activations of one token from the first column of a panel on.
#[derive(Clone, Copy)]
pub(in crate::arm) struct Token<'a> {
    pub q: &'a [i8],
    pub scale: &'a [f32],
    pub sum: &'a [f32],
}

impl<'a> Token<'a> {
    /// Columns `first..first + n` of token `t`.
    #[inline(always)]
    pub fn new<const STEPS: usize>(x: Columns<'a>, n: usize, t: usize, first: usize) -> Token<'a> {
        let at = t * x.n_cols + first;
        let sum = if STEPS == 4 { &x.sum16[at / 16..] } else { &x.sum32[at / 32..] };
        Token {
            q: &x.q[t * x.stride + first..][..n],
            scale: &x.scale[at / 32..][..n / 32],
            sum: &sum[..n / (4 * STEPS)],
        }
    }
}

/// Walks the tokens by tiles of `MOST`. `STEPS` times 4 columns share a scale.
#[target_feature(enable = "neon")]
fn tokens<const STEPS: usize, const BITS: usize, const MOST: usize>(
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
        t += match rest.len().min(MOST) {
            1 => tile::<STEPS, BITS, 1>(panel, n, &[token(t)], rest),
            2 | 3 => tile::<STEPS, BITS, 2>(panel, n, &[token(t), token(t + 1)], rest),
            _ => tile::<STEPS, BITS, 4>(panel, n, &[token(t), token(t + 1), token(t + 2), token(t + 3)], rest),
        };
    }
}

/// Adds the products of the first `n` columns with `T` tokens, of which it returns the number.
#[inline]
#[target_feature(enable = "neon")]
fn tile<const STEPS: usize, const BITS: usize, const T: usize>(
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
            let mut wide = [[vdupq_n_s32(0); 4]; T];
            let chain = const { if chain(BITS) < STEPS { chain(BITS) } else { STEPS } };
            for c in 0..STEPS / chain {
                let mut narrow = [[vdupq_n_s16(0); 4]; T];
                for s in c * chain..(c + 1) * chain {
                    // SAFETY: 32 bytes of the 64 of a step; no alignment is needed.
                    let (a, b) = unsafe {
                        let w = w[s].as_ptr().add(32 * half).cast();
                        (vld1q_s8(w), vld1q_s8(w.add(16)))
                    };
                    for t in 0..T {
                        // SAFETY: these are columns `4 · (g · STEPS + s)..` of the `n` that each token has.
                        let q = unsafe { x[t].q.as_ptr().add(4 * (g * STEPS + s)).cast::<i32>().read_unaligned() };
                        let q = vreinterpretq_s8_s32(vdupq_n_s32(q));
                        let first = s == c * chain;
                        let [a0, a1] = products(first, [narrow[t][0], narrow[t][1]], a, q);
                        let [b0, b1] = products(first, [narrow[t][2], narrow[t][3]], b, q);
                        narrow[t] = [a0, a1, b0, b1];
                    }
                }
                for t in 0..T {
                    for i in 0..4 {
                        wide[t][i] =
                            if c == 0 { vpaddlq_s16(narrow[t][i]) } else { vpadalq_s16(wide[t][i], narrow[t][i]) };
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
                    let product = vcvtq_f32_s32(vpaddq_s32(wide[t][2 * i], wide[t][2 * i + 1]));
                    let v = &mut total[t][i];
                    *v = vfmaq_f32(*v, vmulq_n_f32(scale, scale_x), product);
                    if BITS != SIGNED {
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

/// The products of each byte, added to `sums` unless they are the first.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn products(first: bool, sums: [int16x8_t; 2], w: int8x16_t, x: int8x16_t) -> [int16x8_t; 2] {
    if first {
        return [vmull_s8(vget_low_s8(w), vget_low_s8(x)), vmull_high_s8(w, x)];
    }
    [vmlal_s8(sums[0], vget_low_s8(w), vget_low_s8(x)), vmlal_high_s8(sums[1], w, x)]
}

pub fn dot_float(panel: &FloatPanel, n: usize, x: &[f32], n_cols: usize, first: usize, acc: &mut [[f32; PANEL_ROWS]]) {
    check_dot_float(n, x, n_cols, first, acc);
    let mut t = 0;
    while t < acc.len() {
        let (x, acc) = (&x[t * n_cols + first..], &mut acc[t..]);
        // SAFETY: this function is in the table of processors with NEON only.
        unsafe {
            t += match acc.len() {
                6.. => tile_float::<6>(panel, n, x, n_cols, acc),
                3.. => tile_float::<3>(panel, n, x, n_cols, acc),
                2 => tile_float::<2>(panel, n, x, n_cols, acc),
                _ => tile_float::<1>(panel, n, x, n_cols, acc),
            };
        }
    }
}

#[inline]
#[target_feature(enable = "neon")]
fn tile_float<const T: usize>(
    panel: &FloatPanel,
    n: usize,
    x: &[f32],
    n_cols: usize,
    acc: &mut [[f32; PANEL_ROWS]],
) -> usize {
    assert!(acc.len() >= T && n_cols >= n && x.len() >= (T - 1) * n_cols + n);
    let mut total = [[vdupq_n_f32(0.0); 4]; T];
    for (i, w) in panel.0[..n].iter().enumerate() {
        let w = w.as_chunks().0;
        let w = [load_floats(&w[0]), load_floats(&w[1]), load_floats(&w[2]), load_floats(&w[3])];
        for t in 0..T {
            // SAFETY: `i < n` and `t < T`, and `x` holds `(T - 1) · n_cols + n` floats.
            let x = unsafe { *x.get_unchecked(t * n_cols + i) };
            for r in 0..4 {
                total[t][r] = vfmaq_n_f32(total[t][r], w[r], x);
            }
        }
    }
    for (total, acc) in total.iter().zip(acc) {
        for (total, acc) in total.iter().zip(acc.as_chunks_mut().0) {
            store_floats(acc, vaddq_f32(load_floats(acc), *total));
        }
    }
    T
}
