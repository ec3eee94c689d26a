//! The dispatch table: one struct of function pointers, chosen once for the processor at hand.

use crate::attention::{Rows, Tile};
use crate::kv::KvType;
use crate::panel::{Columns, FloatPanel, Form, PANEL_ROWS, Panel, Source};
use crate::scalar;
use crate::{Dtype, Search};
use std::sync::OnceLock;

/// An instruction set that kernels exist for, in order of preference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Plain Rust: the specification.
    Scalar,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// x86-64 with AVX-512 F, BW, DQ, VL and VNNI, and what [`Level::Avx2`] has.
    Avx512,
    /// AArch64 with NEON, as every one that runs an operating system has.
    Neon,
    /// AArch64 with dot products of 8-bit integers, and what [`Level::Neon`] has.
    Dotprod,
    /// AArch64 with products of matrices of 8-bit integers, and what [`Level::Dotprod`] has.
    I8mm,
}

/// The kernels of one instruction set. Every entry has a scalar twin.
#[allow(clippy::type_complexity)]
#[derive(Clone, Copy)]
pub struct Kernels {
    /// The highest instruction set that any entry uses.
    pub level: Level,
    /// Expands whole blocks of a runnable type to floats.
    pub dequantize: fn(Dtype, &[u8], &mut [f32]),
    /// Fills a panel from whole blocks of a quantized type (at most [`PANEL_COLS`] weights of a row).
    ///
    /// [`PANEL_COLS`]: crate::panel::PANEL_COLS
    pub unpack: fn(Dtype, &Source<'_>, &mut Panel),
    /// Fills a panel from F32, F16 or BF16 weights (at most [`FLOAT_COLS`] of a row).
    ///
    /// [`FLOAT_COLS`]: crate::panel::FLOAT_COLS
    pub unpack_float: fn(Dtype, &Source<'_>, &mut FloatPanel),
    /// Asks for the bytes of 16 rows ahead of their use.
    pub prefetch: fn(&Source<'_>),
    /// Rounds activations to 8 bits: (x, q, scale, sum16, sum32, total), the outputs as in [`Columns`].
    pub quantize: fn(&[f32], &mut [i8], &mut [f32], &mut [f32], &mut [f32], &mut [i32]),
    /// Adds to `acc: [n_tokens][row]` the product of a panel's first `n` columns with the columns of `x` from `first` on:
    /// (form, panel, n, x, first, acc). Group by group, `acc = fma(scale_w · scale_x, Σ q_w q_x, acc)` and, for unsigned
    /// quants, `acc = fma(−min_w, scale_x · Σ q_x, acc)`.
    pub dot: fn(Form, &Panel, usize, Columns<'_>, usize, &mut [[f32; PANEL_ROWS]]),
    /// Adds to `acc: [n_tokens][row]` the product of a panel's first `n` columns with those of `x: [n_tokens, n_cols]` from
    /// `first` on: (panel, n, x, n_cols, first, acc). The product is one chain of fused multiply-adds from 0 in column order.
    pub dot_float: fn(&FloatPanel, usize, &[f32], usize, usize, &mut [[f32; PANEL_ROWS]]),
    /// Adds to `acc: [n_tokens][row]` the product of 16 whole rows of a quantized type with at most [`FEW`] tokens:
    /// (dtype, rows, x, acc). The bits are those of [`unpack`](Self::unpack) and [`dot`](Self::dot), panel by panel.
    ///
    /// [`FEW`]: crate::panel::FEW
    pub dot_few: fn(Dtype, &Source<'_>, Columns<'_>, &mut [[f32; PANEL_ROWS]]),
    /// The same for F32, F16 and BF16 and `x: [n_tokens, n_cols]`, with the bits of [`unpack_float`](Self::unpack_float)
    /// and [`dot_float`](Self::dot_float).
    pub dot_few_float: fn(Dtype, &Source<'_>, &[f32], &mut [[f32; PANEL_ROWS]]),
    /// `y = x / sqrt(mean(x²) + eps) · w`. (x, w, eps, y), all of one length.
    pub rms_norm: fn(&[f32], &[f32], f32, &mut [f32]),
    /// `y = (x - mean) / sqrt(var + eps) · w + b`. (x, w, b, eps, y), all of one length.
    pub layer_norm: fn(&[f32], &[f32], &[f32], f32, &mut [f32]),
    /// `gate = silu(gate) · up`.
    pub silu_mul: fn(&mut [f32], &[f32]),
    /// `x = x · σ(x)`.
    pub silu: fn(&mut [f32]),
    /// `x = x/2 · (1 + erf(x/√2))`.
    pub gelu_erf: fn(&mut [f32]),
    /// The tanh approximation of GELU.
    pub gelu_tanh: fn(&mut [f32]),
    /// `x = x · σ(1.702 x)`.
    pub gelu_quick: fn(&mut [f32]),
    /// `x += y`.
    pub add: fn(&mut [f32], &[f32]),
    /// The largest element `m` of a row, and `Σ exp(x - m)`: what a softmax divides by. The sum is NaN where an element is.
    pub sum_exp: fn(&[f32]) -> (f32, f64),
    /// `Σ exp(x - x_max) · ((x - x_max) - (y - y_max))` of two rows with their largest elements, (x, x_max, y, y_max): the
    /// part of a Kullback-Leibler divergence that runs over the vocabulary. Nothing counts where the exponential is zero.
    pub cross_exp: fn(&[f32], f32, &[f32], f32) -> f64,
    /// Rounds floats to F16 bits, to nearest even.
    pub to_f16: fn(&[f32], &mut [u16]),
    /// Rotates neighbouring pairs `(x[2i], x[2i+1])` by `(cos[i], sin[i])`.
    pub rope: fn(&mut [f32], &[f32], &[f32]),
    /// Rotates pairs of the two halves of `x: [2n]`, `(x[i], x[n + i])`, by `(cos[i], sin[i])`.
    pub rope_half: fn(&mut [f32], &[f32], &[f32]),
    /// Expands F16 bits to floats.
    pub from_f16: fn(&[u16], &mut [f32]),
    /// Advances query rows by one tile of keys and values: the inner step of [`crate::attention()`].
    pub attend: fn(&mut Rows<'_>, &Tile<'_>),
    /// Expands one head's tile of keys to floats: (type, bytes, `[width][KEY_TILE]`), see [`crate::kv`].
    pub expand_keys: fn(KvType, &[u8], &mut [f32]),
    /// Writes the first columns of `n <= KEY_TILE` rows of `x`, which begin `stride` apart, to `out: [n_cols][KEY_TILE]`:
    /// (x, stride, n, out). Columns of `out` from `n` on keep what they hold.
    pub transpose: fn(&[f32], usize, usize, &mut [f32]),
}

/// Rows of floats to blocks of a quantizable type: (type, search, x, n_cols, importance, out).
pub type QuantizeWeights = fn(Dtype, Search, &[f32], usize, Option<&[f32]>, &mut [u8]);

impl Kernels {
    /// What writes weights at this level; [`crate::quantize::quantize`] checks its arguments. No entry of the table: programs
    /// that only run models are a megabyte smaller without it.
    pub fn quantize_weights(&self) -> QuantizeWeights {
        #[cfg(target_arch = "x86_64")]
        if let Some(faster) = crate::x86::quantize_weights(self.level) {
            return faster;
        }
        scalar::quantize_weights::quantize_weights
    }
}

impl Level {
    /// Every level, from the plainest on.
    pub const ALL: [Level; 6] = [Level::Scalar, Level::Avx2, Level::Avx512, Level::Neon, Level::Dotprod, Level::I8mm];

    /// The name that `MMQ_LEVEL` takes.
    pub const fn name(self) -> &'static str {
        match self {
            Level::Scalar => "scalar",
            Level::Avx2 => "avx2",
            Level::Avx512 => "avx512",
            Level::Neon => "neon",
            Level::Dotprod => "dotprod",
            Level::I8mm => "i8mm",
        }
    }
}

/// The table of each level that this processor supports, from scalar to the best.
pub fn levels() -> Vec<Kernels> {
    #[allow(unused_mut)]
    let mut tables = vec![scalar::table()];
    #[cfg(target_arch = "x86_64")]
    crate::x86::extend(&mut tables);
    #[cfg(target_arch = "aarch64")]
    crate::arm::extend(&mut tables);
    tables
}

/// The table for this processor. `MMQ_LEVEL` (a [`Level::name`]) asks for a lower level than the best; a level that is
/// unknown or not supported is reported once on stderr, and the best supported one below it is used.
pub fn kernels() -> &'static Kernels {
    static TABLE: OnceLock<Kernels> = OnceLock::new();
    TABLE.get_or_init(|| {
        let tables = levels();
        let Some(asked) = std::env::var_os("MMQ_LEVEL") else { return tables[tables.len() - 1] };
        let (table, complaint) = choose(&tables, &asked.to_string_lossy());
        if let Some(complaint) = complaint {
            eprintln!("MMQ_LEVEL: {complaint}; using {}", table.level.name());
        }
        table
    })
}

/// The table that `asked` names, or else the nearest one and what is wrong.
fn choose(tables: &[Kernels], asked: &str) -> (Kernels, Option<String>) {
    let Some(level) = Level::ALL.into_iter().find(|l| l.name() == asked) else {
        let known = Level::ALL.map(Level::name).join(", ");
        return (tables[tables.len() - 1], Some(format!("unknown level {asked:?} (known: {known})")));
    };
    let table = *tables.iter().rfind(|t| t.level <= level).expect("the scalar table is always there");
    (table, (table.level != level).then(|| format!("this processor has no {asked}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_is_chosen_by_name() {
        let mut all = vec![scalar::table(); Level::ALL.len()];
        all.iter_mut().zip(Level::ALL).for_each(|(table, level)| table.level = level);
        for level in Level::ALL {
            let (table, complaint) = choose(&all, level.name());
            assert_eq!((table.level, complaint), (level, None));
        }
        let (table, complaint) = choose(&all[..2], "avx512");
        assert_eq!((table.level, complaint.unwrap().as_str()), (Level::Avx2, "this processor has no avx512"));
        let (table, complaint) = choose(&all[..2], "sse9");
        assert_eq!(table.level, Level::Avx2);
        assert!(complaint.unwrap().contains("scalar, avx2"));
    }
}
