//! Panels of weights times activations.
//!
//! An instruction multiplies eight columns of two rows with those of two tokens. So the panel is copied once, rows by
//! twos, and sums are laid out `[row][token]` until a tile is done: 8 rows by up to 4 tokens.

use crate::arm::dotprod::dot as single;
use crate::arm::neon::dot::Token;
use crate::arm::neon::{load_floats, store_floats};
use crate::arm::smmla;
use crate::panel::{Columns, Form, PANEL_COLS, PANEL_ROWS, Panel};
use crate::scalar::check_dot;
use std::arch::aarch64::*;
use std::mem::MaybeUninit;

/// Tokens from which on a copy of the panel pays.
const WORTH_A_COPY: usize = 4;

pub fn dot(form: Form, panel: &Panel, n: usize, x: Columns<'_>, first: usize, acc: &mut [[f32; PANEL_ROWS]]) {
    if acc.len() < WORTH_A_COPY {
        return single::dot(form, panel, n, x, first, acc);
    }
    check_dot(form, n, x, first, acc);
    // SAFETY: this function is in the table of processors with dot products and products of matrices only.
    unsafe {
        match form {
            Form::Unsigned { group: 32, .. } => tokens::<8, false>(panel, n, x, first, acc),
            Form::Unsigned { .. } => tokens::<4, false>(panel, n, x, first, acc),
            Form::Signed => tokens::<8, true>(panel, n, x, first, acc),
            Form::Float => unreachable!("checked above"),
        }
    }
}

/// Eight columns of the rows of a panel, by twos.
type Pairs = [int8x16_t; PANEL_ROWS / 2];

/// Walks the tokens by tiles. `STEPS` times 4 columns share a scale. Quants are below 128, and so signed ones as well.
///
/// # Safety
/// The processor must have dot products and products of matrices.
#[target_feature(enable = "neon")]
unsafe fn tokens<const STEPS: usize, const SIGNED: bool>(
    panel: &Panel,
    n: usize,
    x: Columns<'_>,
    first: usize,
    acc: &mut [[f32; PANEL_ROWS]],
) {
    let mut copy = [const { MaybeUninit::<Pairs>::uninit() }; PANEL_COLS / 8];
    for (to, steps) in copy.iter_mut().zip(panel.q[..n / 4].as_chunks::<2>().0) {
        to.write(paired(steps));
    }
    // SAFETY: the first n / 8 were written.
    let w: &[Pairs] = unsafe { std::slice::from_raw_parts(copy.as_ptr().cast(), n / 8) };
    let token = |t: usize| Token::new::<STEPS>(x, n, t, first);
    let mut t = 0;
    while t < acc.len() {
        let rest = &mut acc[t..];
        // SAFETY: as the caller says.
        unsafe {
            t += match rest.len() {
                1 => single::tile::<STEPS, SIGNED, 1>(panel, n, &[token(t)], rest),
                2 | 3 => tile::<STEPS, SIGNED, 1>(panel, w, &[[token(t), token(t + 1)]], rest),
                _ => {
                    let x = [[token(t), token(t + 1)], [token(t + 2), token(t + 3)]];
                    tile::<STEPS, SIGNED, 2>(panel, w, &x, rest)
                }
            };
        }
    }
}

/// Two steps of a panel: rows by twos, eight columns of each.
#[inline]
#[target_feature(enable = "neon")]
fn paired(steps: &[[u8; 4 * PANEL_ROWS]; 2]) -> Pairs {
    let mut pairs = [vdupq_n_s8(0); PANEL_ROWS / 2];
    for i in 0..4 {
        // SAFETY: 16 bytes of the 64 of each step; no alignment is needed.
        let [a, b] = steps.each_ref().map(|step| unsafe { vreinterpretq_s32_u8(vld1q_u8(step.as_ptr().add(16 * i))) });
        pairs[2 * i] = vreinterpretq_s8_s32(vzip1q_s32(a, b));
        pairs[2 * i + 1] = vreinterpretq_s8_s32(vzip2q_s32(a, b));
    }
    pairs
}

/// Adds the products of the columns in `w` with `T` pairs of tokens; returns the number of tokens.
///
/// # Safety
/// The processor must have products of matrices.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn tile<const STEPS: usize, const SIGNED: bool, const T: usize>(
    panel: &Panel,
    w: &[Pairs],
    x: &[[Token<'_>; 2]; T],
    acc: &mut [[f32; PANEL_ROWS]],
) -> usize {
    let n = 8 * w.len();
    assert!(
        n <= PANEL_COLS
            && acc.len() >= 2 * T
            && x.as_flattened()
                .iter()
                .all(|x| x.q.len() >= n && x.scale.len() >= n / 32 && x.sum.len() >= n / (4 * STEPS))
    );
    for half in 0..2 {
        let mut total = [[vdupq_n_f32(0.0); 4]; T];
        for t in 0..T {
            for i in 0..2 {
                let row = |t: usize| load_floats(&acc[t].as_chunks().0[2 * half + i]);
                let (a, b) = (row(2 * t), row(2 * t + 1));
                [total[t][2 * i], total[t][2 * i + 1]] = [vzip1q_f32(a, b), vzip2q_f32(a, b)];
            }
        }
        for g in 0..n / (4 * STEPS) {
            let mut sums = [[vdupq_n_s32(0); 4]; T];
            for s in 0..STEPS / 4 {
                let at = STEPS / 2 * g + 2 * s;
                // SAFETY: these are columns `8 · at..8 · at + 16` of the `n` that `w` and each token have, and the processor has
                // the instruction.
                unsafe {
                    let mut q = [[vdupq_n_s8(0); 2]; T];
                    for t in 0..T {
                        let load = |x: &Token<'_>| vreinterpretq_s64_s8(vld1q_s8(x.q.as_ptr().add(8 * at)));
                        let (a, b) = (load(&x[t][0]), load(&x[t][1]));
                        q[t] = [vreinterpretq_s8_s64(vzip1q_s64(a, b)), vreinterpretq_s8_s64(vzip2q_s64(a, b))];
                    }
                    for part in 0..2 {
                        let w = w.get_unchecked(at + part);
                        for i in 0..4 {
                            for t in 0..T {
                                sums[t][i] = smmla(sums[t][i], w[4 * half + i], q[t][part]);
                            }
                        }
                    }
                }
            }
            let (scale, min) = (panel.scale[g].as_chunks().0, panel.min[g].as_chunks().0);
            let (mut scales, mut sums_x) = ([vdupq_n_f32(0.0); T], [vdupq_n_f32(0.0); T]);
            for t in 0..T {
                // SAFETY: each token has a scale for 32 of the `n` columns and a sum for each group.
                unsafe {
                    scales[t] = twice(x[t].each_ref().map(|x| x.scale.as_ptr().add(g * STEPS / 8)));
                    sums_x[t] = twice(x[t].each_ref().map(|x| x.sum.as_ptr().add(g)));
                }
            }
            for i in 0..2 {
                let (scale, min) = (load_floats(&scale[2 * half + i]), load_floats(&min[2 * half + i]));
                let scale = [vzip1q_f32(scale, scale), vzip2q_f32(scale, scale)];
                let min = [vzip1q_f32(min, min), vzip2q_f32(min, min)];
                for part in 0..2 {
                    for t in 0..T {
                        let v = &mut total[t][2 * i + part];
                        let product = vcvtq_f32_s32(sums[t][2 * i + part]);
                        *v = vfmaq_f32(*v, vmulq_f32(scale[part], scales[t]), product);
                        if !SIGNED {
                            *v = vfmsq_f32(*v, min[part], sums_x[t]);
                        }
                    }
                }
            }
        }
        for t in 0..T {
            for i in 0..2 {
                let (a, b) = (total[t][2 * i], total[t][2 * i + 1]);
                store_floats(&mut acc[2 * t].as_chunks_mut().0[2 * half + i], vuzp1q_f32(a, b));
                store_floats(&mut acc[2 * t + 1].as_chunks_mut().0[2 * half + i], vuzp2q_f32(a, b));
            }
        }
    }
    2 * T
}

/// The two numbers, one after the other and again.
///
/// # Safety
/// Both can be read.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn twice([a, b]: [*const f32; 2]) -> float32x4_t {
    // SAFETY: as the caller says.
    let both = unsafe { vld1_lane_f32::<1>(b, vld1_dup_f32(a)) };
    vcombine_f32(both, both)
}
