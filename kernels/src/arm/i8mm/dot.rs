//! Panels of weights times activations.
//!
//! An instruction multiplies eight columns of two rows with those of two tokens. So the panel is copied once, rows by
//! twos, and sums are laid out `[row][token]` until a tile is done: 8 rows by up to 4 tokens. Scales are laid out alike
//! beforehand, those of rows once for the panel, those of tokens once for the 16 rows.

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
/// A factor of each row, each twice.
type Factors = [float32x4_t; PANEL_ROWS / 2];

/// A panel's columns, scales and negated mins.
struct Copy<'a> {
    q: &'a [Pairs],
    scale: &'a [Factors],
    min: &'a [Factors],
}

/// The scales and sums of two pairs of tokens, `(a, b, a, b)`.
struct Scales {
    scale: [[float32x4_t; 2]; PANEL_COLS / 32],
    sum: [[float32x4_t; 2]; PANEL_COLS / 16],
}

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
    let n_groups = n / (4 * STEPS);
    let mut q = [const { MaybeUninit::<Pairs>::uninit() }; PANEL_COLS / 8];
    for (to, steps) in q.iter_mut().zip(panel.q[..n / 4].as_chunks::<2>().0) {
        to.write(paired(steps));
    }
    let mut scale = [const { MaybeUninit::<Factors>::uninit() }; PANEL_COLS / 16];
    let mut min = [const { MaybeUninit::<Factors>::uninit() }; PANEL_COLS / 16];
    for g in 0..n_groups {
        scale[g].write(each_twice(&panel.scale[g], |v| v));
        if !SIGNED {
            min[g].write(each_twice(&panel.min[g], |v| vnegq_f32(v)));
        }
    }
    let n_mins = if SIGNED { 0 } else { n_groups };
    // SAFETY: so many were written.
    let copy = unsafe { Copy { q: written(&q, n / 8), scale: written(&scale, n_groups), min: written(&min, n_mins) } };
    let zeros = [vdupq_n_f32(0.0); 2];
    let mut scales = Scales { scale: [zeros; PANEL_COLS / 32], sum: [zeros; PANEL_COLS / 16] };
    let token = |t: usize| Token::new::<STEPS>(x, n, t, first);
    let mut t = 0;
    while t < acc.len() {
        let rest = &mut acc[t..];
        // SAFETY: as the caller says.
        unsafe {
            t += match rest.len() {
                1 => single::tile::<STEPS, SIGNED, 1>(panel, n, &[token(t)], rest),
                2 | 3 => tile::<STEPS, SIGNED, 1>(&copy, &mut scales, &[[token(t), token(t + 1)]], rest),
                _ => {
                    let x = [[token(t), token(t + 1)], [token(t + 2), token(t + 3)]];
                    tile::<STEPS, SIGNED, 2>(&copy, &mut scales, &x, rest)
                }
            };
        }
    }
}

/// The first `n`.
///
/// # Safety
/// They were written.
unsafe fn written<T, const N: usize>(all: &[MaybeUninit<T>; N], n: usize) -> &[T] {
    let all = &all[..n];
    // SAFETY: as the caller says; the types have the same layout.
    unsafe { std::slice::from_raw_parts(all.as_ptr().cast(), n) }
}

/// A factor of each row, each twice, after `f`.
#[inline]
#[target_feature(enable = "neon")]
fn each_twice(rows: &[f32; PANEL_ROWS], f: impl Fn(float32x4_t) -> float32x4_t) -> Factors {
    let mut factors = [vdupq_n_f32(0.0); PANEL_ROWS / 2];
    for (to, rows) in factors.as_chunks_mut::<2>().0.iter_mut().zip(rows.as_chunks().0) {
        let v = f(load_floats(rows));
        *to = [vzip1q_f32(v, v), vzip2q_f32(v, v)];
    }
    factors
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

/// Adds the products of a panel's columns with `T` pairs of tokens; returns the number of tokens.
///
/// # Safety
/// The processor must have products of matrices.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn tile<const STEPS: usize, const SIGNED: bool, const T: usize>(
    w: &Copy<'_>,
    scales: &mut Scales,
    x: &[[Token<'_>; 2]; T],
    acc: &mut [[f32; PANEL_ROWS]],
) -> usize {
    let n = 8 * w.q.len();
    let n_groups = n / (4 * STEPS);
    assert!(
        n <= PANEL_COLS
            && w.scale.len() == n_groups
            && (SIGNED || w.min.len() == n_groups)
            && acc.len() >= 2 * T
            && x.as_flattened().iter().all(|x| x.q.len() >= n && x.scale.len() >= n / 32 && x.sum.len() >= n_groups)
    );
    for t in 0..T {
        let [a, b] = &x[t];
        twice(&a.scale[..n / 32], &b.scale[..n / 32], |g, v| scales.scale[g][t] = v);
        if !SIGNED {
            twice(&a.sum[..n_groups], &b.sum[..n_groups], |g, v| scales.sum[g][t] = v);
        }
    }
    for half in 0..2 {
        let mut total = [[vdupq_n_f32(0.0); 4]; T];
        for t in 0..T {
            for i in 0..2 {
                let row = |t: usize| load_floats(&acc[t].as_chunks().0[2 * half + i]);
                let (a, b) = (row(2 * t), row(2 * t + 1));
                [total[t][2 * i], total[t][2 * i + 1]] = [vzip1q_f32(a, b), vzip2q_f32(a, b)];
            }
        }
        for g in 0..n_groups {
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
                        let w = w.q.get_unchecked(at + part);
                        for i in 0..4 {
                            for t in 0..T {
                                sums[t][i] = smmla(sums[t][i], w[4 * half + i], q[t][part]);
                            }
                        }
                    }
                }
            }
            let (scale_x, sum_x) = (&scales.scale[g * STEPS / 8], &scales.sum[g]);
            for i in 0..4 {
                for t in 0..T {
                    let v = &mut total[t][i];
                    *v = vfmaq_f32(*v, vmulq_f32(w.scale[g][4 * half + i], scale_x[t]), vcvtq_f32_s32(sums[t][i]));
                    if !SIGNED {
                        *v = vfmaq_f32(*v, w.min[g][4 * half + i], sum_x[t]);
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

/// Hands `(a[i], b[i], a[i], b[i])` to `put`, for each `i`.
#[inline]
#[target_feature(enable = "neon")]
fn twice(a: &[f32], b: &[f32], mut put: impl FnMut(usize, float32x4_t)) {
    let ((fours_a, rest_a), (fours_b, rest_b)) = (a.as_chunks(), b.as_chunks());
    for (i, (a, b)) in fours_a.iter().zip(fours_b).enumerate() {
        let (a, b) = (load_floats(a), load_floats(b));
        let halves = [vreinterpretq_f64_f32(vzip1q_f32(a, b)), vreinterpretq_f64_f32(vzip2q_f32(a, b))];
        for (h, v) in halves.into_iter().enumerate() {
            put(4 * i + 2 * h, vreinterpretq_f32_f64(vdupq_laneq_f64::<0>(v)));
            put(4 * i + 2 * h + 1, vreinterpretq_f32_f64(vdupq_laneq_f64::<1>(v)));
        }
    }
    for (i, (a, b)) in rest_a.iter().zip(rest_b).enumerate() {
        let both = vzip1_f32(vdup_n_f32(*a), vdup_n_f32(*b));
        put(4 * fours_a.len() + i, vcombine_f32(both, both));
    }
}
