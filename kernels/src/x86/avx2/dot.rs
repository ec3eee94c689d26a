//! Panels of weights times activations.
//!
//! A tile is 16 rows by up to 4 (quantized) or 6 (float) tokens. One vector holds 8 rows; activations are broadcast.

use super::{load, load_floats, store_floats};
use crate::panel::{Columns, FloatPanel, Form, PANEL_COLS, PANEL_ROWS, Panel};
use crate::scalar::{check_dot, check_dot_float};
use std::arch::asm;
use std::arch::x86_64::*;

pub fn dot(form: Form, panel: &Panel, n: usize, x: Columns<'_>, first: usize, acc: &mut [[f32; PANEL_ROWS]]) {
    check_dot(form, n, x, first, acc);
    // SAFETY: this function is in the table of processors with AVX2 and FMA only.
    unsafe {
        match form {
            Form::Unsigned { group: 32, bits: ..=4 } => tokens::<8, 8, UNSIGNED>(panel, n, x, first, acc),
            Form::Unsigned { group: 32, bits: 5 } => tokens::<8, 4, UNSIGNED>(panel, n, x, first, acc),
            Form::Unsigned { group: 32, bits: 6 } => tokens::<8, 2, UNSIGNED>(panel, n, x, first, acc),
            Form::Unsigned { group: 32, .. } => tokens::<8, 1, UNSIGNED>(panel, n, x, first, acc),
            Form::Unsigned { bits: ..=5, .. } => tokens::<4, 4, UNSIGNED>(panel, n, x, first, acc),
            Form::Unsigned { bits: 6, .. } => tokens::<4, 2, UNSIGNED>(panel, n, x, first, acc),
            Form::Unsigned { .. } => tokens::<4, 1, UNSIGNED>(panel, n, x, first, acc),
            Form::Signed if acc.len() >= WORTH_A_LOOK && narrow(panel, n) => {
                tokens::<8, 1, NARROW>(panel, n, x, first, acc)
            }
            Form::Signed => tokens::<8, 1, SIGNED>(panel, n, x, first, acc),
            Form::Float => unreachable!("checked above"),
        }
    }
}

/// Quants that multiply as they are.
const UNSIGNED: u8 = 0;
/// Quants whose magnitudes multiply. Where a quant is negative, an activation's bits are turned over, which makes `x` into
/// `-x - 1`: the magnitudes of those quants are added in the end. (The instruction that negates would wait for the same two
/// pipes as the products.)
const SIGNED: u8 = 1;
/// Quants in `-64..=63`: with 64 added, pairs of products still fit an i16, and 64 times the sum of the activations is taken
/// off again.
const NARROW: u8 = 2;
/// Tokens from which on it pays to look whether quants are narrow.
const WORTH_A_LOOK: usize = 16;

/// Whether all quants of the first `n` columns are in `-64..=63`.
#[target_feature(enable = "avx2")]
fn narrow(panel: &Panel, n: usize) -> bool {
    let mut outside = _mm256_setzero_si256();
    for q in panel.q[..n / 4].as_flattened().as_chunks().0 {
        outside = _mm256_or_si256(outside, _mm256_add_epi8(load(q), _mm256_set1_epi8(64)));
    }
    _mm256_movemask_epi8(outside) == 0
}

/// Adds up the magnitudes of the negative quants among the first `n` columns, of each row and 32 columns.
#[target_feature(enable = "avx2")]
fn add_negative(panel: &Panel, n: usize, sums: &mut Negative) {
    for (sums, steps) in sums.iter_mut().zip(panel.q[..n / 4].as_chunks::<8>().0) {
        for q in steps {
            for (sum, q) in sums.iter_mut().zip(q.as_chunks().0) {
                let below = _mm256_min_epi8(load(q), _mm256_setzero_si256());
                let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(below), _mm256_set1_epi8(1));
                *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
            }
        }
    }
}

/// `[group]`, of the first 8 rows and the last.
type Negative = [[__m256i; 2]; PANEL_COLS / 32];

/// The activations of one token from the first column of a panel on.
#[derive(Clone, Copy)]
struct Token<'a> {
    q: &'a [i8],
    scale: &'a [f32],
    sum: &'a [f32],
    total: &'a [[i32; 2]],
}

impl<'a> Token<'a> {
    /// Columns `first..first + n` of token `t`.
    // As a function that is called it would take a twentieth of a tile's time.
    #[inline(always)]
    fn new<const STEPS: usize>(x: Columns<'a>, n: usize, t: usize, first: usize) -> Token<'a> {
        let at = t * x.n_cols + first;
        let sum = if STEPS == 4 { &x.sum16[at / 16..] } else { &x.sum32[at / 32..] };
        Token {
            q: &x.q[t * x.stride + first..][..n],
            scale: &x.scale[at / 32..][..n / 32],
            sum: &sum[..n / (4 * STEPS)],
            total: x.total[at / 16..][..n / 16].as_chunks().0,
        }
    }
}

/// Walks the tokens by tiles. `STEPS` times 4 columns share a scale; `CHAIN` products of pairs fit an i16: 8 for quants of
/// up to 4 bits (8 · 2 · 15 · 127 < 2¹⁵), 4 for 5 bits, 2 for 6, 1 for 7 and for signed ones, narrow or not.
#[target_feature(enable = "avx2,fma")]
fn tokens<const STEPS: usize, const CHAIN: usize, const KIND: u8>(
    panel: &Panel,
    n: usize,
    x: Columns<'_>,
    first: usize,
    acc: &mut [[f32; PANEL_ROWS]],
) {
    let mut negative = [[_mm256_setzero_si256(); 2]; PANEL_COLS / 32];
    if KIND == SIGNED {
        add_negative(panel, n, &mut negative);
    }
    let token = |t: usize| Token::new::<STEPS>(x, n, t, first);
    let (tiles, rest) = acc.as_chunks_mut::<4>();
    for (i, acc) in tiles.iter_mut().enumerate() {
        let x = [token(4 * i), token(4 * i + 1), token(4 * i + 2), token(4 * i + 3)];
        tile::<STEPS, CHAIN, KIND, 4>(panel, &negative, n, &x, acc);
    }
    let t = 4 * tiles.len();
    match rest {
        [a, b, c] => {
            let mut acc = [*a, *b, *c];
            tile::<STEPS, CHAIN, KIND, 3>(panel, &negative, n, &[token(t), token(t + 1), token(t + 2)], &mut acc);
            [*a, *b, *c] = acc;
        }
        [a, b] => {
            let mut acc = [*a, *b];
            tile::<STEPS, CHAIN, KIND, 2>(panel, &negative, n, &[token(t), token(t + 1)], &mut acc);
            [*a, *b] = acc;
        }
        [a] => tile::<STEPS, CHAIN, KIND, 1>(panel, &negative, n, &[token(t)], std::array::from_mut(a)),
        _ => {}
    }
}

/// Keeps sums in registers up to here. Without it the compiler, to which the order of integer sums is all one, regroups
/// them until nothing fits the registers.
#[inline]
#[target_feature(enable = "avx2")]
fn pin<const T: usize>(sums: &mut [[__m256i; 2]; T]) {
    if let [[a, b], [c, d], [e, f], [g, h]] = sums.as_mut_slice() {
        // SAFETY: no instruction is added.
        unsafe {
            asm!(
                "/* {} {} {} {} {} {} {} {} */",
                inout(ymm_reg) * a,
                inout(ymm_reg) * b,
                inout(ymm_reg) * c,
                inout(ymm_reg) * d,
                inout(ymm_reg) * e,
                inout(ymm_reg) * f,
                inout(ymm_reg) * g,
                inout(ymm_reg) * h,
                options(pure, nomem, nostack, preserves_flags),
            );
        }
    }
}

#[inline]
#[target_feature(enable = "avx2,fma")]
fn tile<const STEPS: usize, const CHAIN: usize, const KIND: u8, const T: usize>(
    panel: &Panel,
    negative: &Negative,
    n: usize,
    x: &[Token<'_>; T],
    acc: &mut [[f32; PANEL_ROWS]; T],
) {
    assert!(
        n <= PANEL_COLS
            && x.iter().all(|x| x.q.len() >= n && x.scale.len() >= n / 32 && x.sum.len() >= n / (4 * STEPS))
    );
    let ones = _mm256_set1_epi16(1);
    let mut total = [[_mm256_setzero_ps(); 2]; T];
    for (total, acc) in total.iter_mut().zip(&*acc) {
        let acc = acc.as_chunks().0;
        *total = [load_floats(&acc[0]), load_floats(&acc[1])];
    }
    let groups = n / (4 * STEPS);
    let (w, _) = panel.q[..n / 4].as_chunks::<STEPS>();
    for (g, ((w, scale), min)) in w.iter().zip(&panel.scale[..groups]).zip(&panel.min[..groups]).enumerate() {
        let mut wide = [if KIND == SIGNED { negative[g] } else { [_mm256_setzero_si256(); 2] }; T];
        if KIND == NARROW {
            for t in 0..T {
                let [low, high] = x[t].total[g * STEPS / 8];
                wide[t] = [_mm256_set1_epi32(-64 * (low + high)); 2];
            }
        }
        for c in 0..STEPS / CHAIN {
            let mut narrow = [[_mm256_setzero_si256(); 2]; T];
            for s in c * CHAIN..(c + 1) * CHAIN {
                let w = w[s].as_chunks().0;
                let w = [load(&w[0]), load(&w[1])];
                let size = match KIND {
                    SIGNED => [_mm256_abs_epi8(w[0]), _mm256_abs_epi8(w[1])],
                    NARROW => {
                        [_mm256_add_epi8(w[0], _mm256_set1_epi8(64)), _mm256_add_epi8(w[1], _mm256_set1_epi8(64))]
                    }
                    _ => w,
                };
                let zero = _mm256_setzero_si256();
                let below = [_mm256_cmpgt_epi8(zero, w[0]), _mm256_cmpgt_epi8(zero, w[1])];
                for t in 0..T {
                    // SAFETY: these are columns `4 · (g · STEPS + s)..` of the `n` that each token has.
                    let q = unsafe { x[t].q.as_ptr().add(4 * (g * STEPS + s)).cast::<i32>().read_unaligned() };
                    let q = _mm256_set1_epi32(q);
                    for half in 0..2 {
                        let q = if KIND == SIGNED { _mm256_xor_si256(q, below[half]) } else { q };
                        let pairs = _mm256_maddubs_epi16(size[half], q);
                        if CHAIN == 1 {
                            wide[t][half] = _mm256_add_epi32(wide[t][half], _mm256_madd_epi16(pairs, ones));
                        } else {
                            narrow[t][half] = _mm256_add_epi16(narrow[t][half], pairs);
                        }
                    }
                }
                pin(if CHAIN == 1 { &mut wide } else { &mut narrow });
            }
            if CHAIN > 1 {
                for t in 0..T {
                    for half in 0..2 {
                        wide[t][half] = _mm256_add_epi32(wide[t][half], _mm256_madd_epi16(narrow[t][half], ones));
                    }
                }
            }
        }
        let (scale, min) = (scale.as_chunks().0, min.as_chunks().0);
        let (scale, min) =
            ([load_floats(&scale[0]), load_floats(&scale[1])], [load_floats(&min[0]), load_floats(&min[1])]);
        for t in 0..T {
            // SAFETY: each token has a scale for 32 of the `n` columns and a sum for each group.
            let (scale_x, sum) = unsafe { (x[t].scale.get_unchecked(g * STEPS / 8), x[t].sum.get_unchecked(g)) };
            for half in 0..2 {
                let scale = _mm256_mul_ps(scale[half], _mm256_set1_ps(*scale_x));
                total[t][half] = _mm256_fmadd_ps(scale, _mm256_cvtepi32_ps(wide[t][half]), total[t][half]);
                if KIND == UNSIGNED {
                    total[t][half] = _mm256_fnmadd_ps(min[half], _mm256_set1_ps(*sum), total[t][half]);
                }
            }
        }
    }
    for (total, acc) in total.iter().zip(acc) {
        let acc = acc.as_chunks_mut().0;
        store_floats(&mut acc[0], total[0]);
        store_floats(&mut acc[1], total[1]);
    }
}

pub fn dot_float(panel: &FloatPanel, n: usize, x: &[f32], n_cols: usize, first: usize, acc: &mut [[f32; PANEL_ROWS]]) {
    check_dot_float(n, x, n_cols, first, acc);
    let mut rest = acc;
    let mut t = 0;
    while !rest.is_empty() {
        let (acc, after) = rest.split_at_mut(rest.len().min(6));
        let x = &x[t * n_cols + first..];
        // SAFETY: this function is in the table of processors with AVX2 and FMA only.
        unsafe {
            match acc.len() {
                6 => tile_float::<6>(panel, n, x, n_cols, acc),
                5 => tile_float::<5>(panel, n, x, n_cols, acc),
                4 => tile_float::<4>(panel, n, x, n_cols, acc),
                3 => tile_float::<3>(panel, n, x, n_cols, acc),
                2 => tile_float::<2>(panel, n, x, n_cols, acc),
                _ => tile_float::<1>(panel, n, x, n_cols, acc),
            }
        }
        t += acc.len();
        rest = after;
    }
}

#[inline]
#[target_feature(enable = "avx2,fma")]
fn tile_float<const T: usize>(panel: &FloatPanel, n: usize, x: &[f32], n_cols: usize, acc: &mut [[f32; PANEL_ROWS]]) {
    assert!(acc.len() == T && n_cols >= n && x.len() >= (T - 1) * n_cols + n);
    let mut total = [[_mm256_setzero_ps(); 2]; T];
    for (i, w) in panel.0[..n].iter().enumerate() {
        let w = w.as_chunks().0;
        let w = [load_floats(&w[0]), load_floats(&w[1])];
        for (t, total) in total.iter_mut().enumerate() {
            // SAFETY: `i < n` and `t < T`, and `x` holds `(T - 1) · n_cols + n` floats.
            let x = _mm256_set1_ps(unsafe { *x.get_unchecked(t * n_cols + i) });
            total[0] = _mm256_fmadd_ps(w[0], x, total[0]);
            total[1] = _mm256_fmadd_ps(w[1], x, total[1]);
        }
    }
    for (total, acc) in total.iter().zip(acc) {
        for (total, acc) in total.iter().zip(acc.as_chunks_mut().0) {
            store_floats(acc, _mm256_add_ps(load_floats(acc), *total));
        }
    }
}
