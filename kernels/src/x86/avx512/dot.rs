//! Panels of weights times activations.
//!
//! One vector holds four columns of all the rows of a panel, which a VNNI instruction multiplies with four broadcast
//! activations and adds up: a tile is 16 rows by up to 12 tokens, one vector of integer sums and one of floats each.

use super::{load, load_floats, store_floats};
use crate::panel::{Columns, FloatPanel, Form, PANEL_ROWS, Panel};
use crate::scalar::{check_dot, check_dot_float};
use std::arch::asm;
use std::arch::x86_64::*;

/// Most tokens of a tile.
const TILE: usize = 12;

pub fn dot(form: Form, panel: &Panel, n: usize, x: Columns<'_>, first: usize, acc: &mut [[f32; PANEL_ROWS]]) {
    check_dot(form, n, x, first, acc);
    // SAFETY: this function is in the table of processors with AVX-512 F and VNNI only.
    unsafe {
        match form {
            Form::Unsigned { group: 32, .. } => tokens::<8, false>(panel, n, x, first, acc),
            Form::Unsigned { .. } => tokens::<4, false>(panel, n, x, first, acc),
            Form::Signed => tokens::<8, true>(panel, n, x, first, acc),
            Form::Float => unreachable!("checked above"),
        }
    }
}

/// Walks the tokens by tiles. `STEPS` times 4 columns share a scale.
#[target_feature(enable = "avx512f,avx512vnni")]
fn tokens<const STEPS: usize, const SIGNED: bool>(
    panel: &Panel,
    n: usize,
    x: Columns<'_>,
    first: usize,
    acc: &mut [[f32; PANEL_ROWS]],
) {
    let mut t = 0;
    while t < acc.len() {
        match acc.len() - t {
            TILE.. => t += tile::<STEPS, SIGNED, TILE>(panel, n, x, t, first, &mut acc[t..]),
            6.. => t += tile::<STEPS, SIGNED, 6>(panel, n, x, t, first, &mut acc[t..]),
            3.. => t += tile::<STEPS, SIGNED, 3>(panel, n, x, t, first, &mut acc[t..]),
            2 => t += tile::<STEPS, SIGNED, 2>(panel, n, x, t, first, &mut acc[t..]),
            _ => t += tile::<STEPS, SIGNED, 1>(panel, n, x, t, first, &mut acc[t..]),
        }
    }
}

/// Multiplies the first `n` columns of a panel with those of `T` tokens from column `first` on; the first token is `t`.
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
fn tile<const STEPS: usize, const SIGNED: bool, const T: usize>(
    panel: &Panel,
    n: usize,
    x: Columns<'_>,
    t: usize,
    first: usize,
    acc: &mut [[f32; PANEL_ROWS]],
) -> usize {
    let (at, q_at) = (t * x.n_cols + first, t * x.stride + first);
    assert!(x.n_cols.is_multiple_of(32) && at.is_multiple_of(32) && n.is_multiple_of(32));
    let last = at + (T - 1) * x.n_cols + n;
    let sums = if STEPS == 4 { x.sum16 } else { x.sum32 };
    assert!(q_at + (T - 1) * x.stride + n <= x.q.len());
    assert!(last <= (32 * x.scale.len()).min(16 * x.total.len()).min(4 * STEPS * sums.len()));
    let q = Tokens::<T, i8>::new(x.q, q_at, x.stride);
    let scales = Tokens::<T, f32>::new(x.scale, at / 32, x.n_cols / 32);
    let totals = Tokens::<T, i32>::new(x.total, at / 16, x.n_cols / 16);
    let sums = Tokens::<T, f32>::new(sums, at / (4 * STEPS), x.n_cols / (4 * STEPS));

    let acc: &mut [_; T] = acc.first_chunk_mut().expect("a tile of tokens");
    let mut total = [_mm512_setzero_ps(); T];
    for (total, acc) in total.iter_mut().zip(&*acc) {
        *total = load_floats(acc);
    }
    let (w, _) = panel.q[..n / 4].as_chunks::<STEPS>();
    for (g, ((w, scale), min)) in w.iter().zip(&panel.scale).zip(&panel.min).enumerate() {
        let mut wide = [_mm512_setzero_si512(); T];
        if SIGNED {
            let totals = totals.from(2 * g);
            for (t, wide) in wide.iter_mut().enumerate() {
                // SAFETY: group `g` lies within the `n` columns that each token has, by `last`.
                let total = unsafe { *totals.get(t, 0) + *totals.get(t, 1) };
                *wide = _mm512_set1_epi32(-128 * total);
            }
        }
        let q = q.from(g * 4 * STEPS);
        for (s, w) in w.iter().enumerate() {
            // Signed weights plus 128 are unsigned.
            let w = if SIGNED { _mm512_xor_si512(load(w), _mm512_set1_epi8(-128)) } else { load(w) };
            for (t, wide) in wide.iter_mut().enumerate() {
                // SAFETY: group `g` lies within the `n` columns that each token has, by `last`.
                let q = unsafe { q.get(t, 4 * s).cast::<i32>().read_unaligned() };
                *wide = _mm512_dpbusd_epi32(*wide, w, _mm512_set1_epi32(q));
            }
            // SAFETY: no instruction. What comes after it is not mixed with this step: tokens in turn wait for nothing,
            // the steps of one token for each other.
            unsafe { asm!("", options(nostack, preserves_flags)) };
        }
        let (scale, min) = (load_floats(scale), load_floats(min));
        let (scales, sums) = (scales.from(g * STEPS / 8), sums.from(g));
        for (t, (total, wide)) in total.iter_mut().zip(wide).enumerate() {
            // SAFETY: group `g` lies within the `n` columns that each token has, by `last`.
            let (scale_x, sum) = unsafe { (*scales.get(t, 0), *sums.get(t, 0)) };
            let scale = _mm512_mul_ps(scale, _mm512_set1_ps(scale_x));
            *total = _mm512_fmadd_ps(scale, _mm512_cvtepi32_ps(wide), *total);
            if !SIGNED {
                *total = _mm512_fnmadd_ps(min, _mm512_set1_ps(sum), *total);
            }
        }
    }
    for (acc, total) in acc.iter_mut().zip(total) {
        store_floats(acc, total);
    }
    T
}

/// Where something of each of `T` tokens lies, `stride` elements apart: one pointer for each four tokens, which with
/// multiples of the stride make addresses of instructions. A pointer for each token would not fit the registers.
struct Tokens<const T: usize, E> {
    fours: [*const E; TILE / 4],
    stride: usize,
}

impl<const T: usize, E> Tokens<T, E> {
    #[inline]
    fn new(from: &[E], first: usize, stride: usize) -> Self {
        const { assert!(T <= TILE) };
        Tokens { fours: [from[first..].as_ptr(); TILE / 4], stride }
    }

    /// The same from element `i` of each token on.
    #[inline]
    fn from(&self, i: usize) -> Self {
        let mut fours = [self.fours[0].wrapping_add(i); TILE / 4];
        for four in 1..T.div_ceil(4) {
            fours[four] = fours[four - 1].wrapping_add(4 * self.stride);
            // SAFETY: no instruction. It keeps the pointer apart from the first; nothing is read through it here.
            #[allow(clippy::pointers_in_nomem_asm_block)]
            unsafe {
                asm!("/* {} */", inout(reg) fours[four], options(pure, nomem, nostack, preserves_flags))
            };
        }
        Tokens { fours, stride: self.stride }
    }

    #[inline]
    fn get(&self, t: usize, i: usize) -> *const E {
        self.fours[t / 4].wrapping_add(t % 4 * self.stride + i)
    }
}

pub fn dot_float(panel: &FloatPanel, n: usize, x: &[f32], n_cols: usize, first: usize, acc: &mut [[f32; PANEL_ROWS]]) {
    check_dot_float(n, x, n_cols, first, acc);
    let mut t = 0;
    while t < acc.len() {
        let (x, acc) = (&x[t * n_cols + first..], &mut acc[t..]);
        // SAFETY: this function is in the table of processors with AVX-512 F only.
        unsafe {
            match acc.len() {
                TILE.. => t += tile_float::<TILE>(panel, n, x, n_cols, acc),
                6.. => t += tile_float::<6>(panel, n, x, n_cols, acc),
                3.. => t += tile_float::<3>(panel, n, x, n_cols, acc),
                2 => t += tile_float::<2>(panel, n, x, n_cols, acc),
                _ => t += tile_float::<1>(panel, n, x, n_cols, acc),
            }
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn tile_float<const T: usize>(
    panel: &FloatPanel,
    n: usize,
    x: &[f32],
    n_cols: usize,
    acc: &mut [[f32; PANEL_ROWS]],
) -> usize {
    assert!(n_cols >= n && x.len() >= (T - 1) * n_cols + n);
    let acc: &mut [_; T] = acc.first_chunk_mut().expect("a tile of tokens");
    let mut total = [_mm512_setzero_ps(); T];
    for (i, w) in panel.0[..n].iter().enumerate() {
        let w = load_floats(w);
        for (t, total) in total.iter_mut().enumerate() {
            // SAFETY: `i < n` and `t < T`, and `x` holds `(T - 1) · n_cols + n` floats.
            let x = _mm512_set1_ps(unsafe { *x.get_unchecked(t * n_cols + i) });
            *total = _mm512_fmadd_ps(w, x, *total);
        }
    }
    for (acc, total) in acc.iter_mut().zip(total) {
        store_floats(acc, _mm512_add_ps(load_floats(acc), total));
    }
    T
}
