//! Kernels for AArch64: one folder for each instruction set.
//!
//! Vectors have 128 bits: four rows of a panel. All functions are compiled for NEON, which every AArch64 processor of a
//! phone has. The instructions of the higher levels, whose intrinsics no stable compiler has, are written as assembly that
//! names their extension itself: so they are inlined into the unpacking code, which all levels share.

mod dotprod;
mod i8mm;
mod neon;

use crate::{Kernels, Level};
use std::arch::aarch64::*;
use std::arch::{asm, is_aarch64_feature_detected};

/// Appends the table of each level that this processor supports. Each level starts from the one before it.
pub(crate) fn extend(tables: &mut Vec<Kernels>) {
    let mut push = |level, extend: fn(&mut Kernels)| {
        let mut table = Kernels { level, ..tables[tables.len() - 1] };
        extend(&mut table);
        tables.push(table);
    };
    if !is_aarch64_feature_detected!("neon") {
        return;
    }
    push(Level::Neon, neon::extend);
    if !is_aarch64_feature_detected!("dotprod") {
        return;
    }
    push(Level::Dotprod, dotprod::extend);
    if is_aarch64_feature_detected!("i8mm") {
        push(Level::I8mm, i8mm::extend);
    }
}

/// Asks for the cache line of `address`.
#[inline]
fn touch(address: *const u8) {
    // SAFETY: a prefetch touches no memory and may name any address.
    unsafe { asm!("prfm pldl1keep, [{}]", in(reg) address, options(nostack, nomem, preserves_flags)) };
}

/// Adds to each lane of `sum` the product of its four bytes in `w` with bytes `4 · LANE ..` of `x`.
///
/// # Safety
/// The processor must have the dot product instructions.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn sdot<const LANE: i32>(mut sum: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t {
    // SAFETY: registers only; the processor has the instruction.
    unsafe {
        asm!(
            ".arch_extension dotprod",
            "sdot {sum:v}.4s, {w:v}.16b, {x:v}.4b[{lane}]",
            sum = inout(vreg) sum,
            w = in(vreg) w,
            x = in(vreg) x,
            lane = const LANE,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sum
}

/// Adds to `sum: [row][token]` the products of two rows, 8 columns each, with two tokens.
///
/// # Safety
/// The processor must have the matrix instructions for 8-bit integers.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn smmla(mut sum: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t {
    // SAFETY: registers only; the processor has the instruction.
    unsafe {
        asm!(
            ".arch_extension i8mm",
            "smmla {sum:v}.4s, {w:v}.16b, {x:v}.16b",
            sum = inout(vreg) sum,
            w = in(vreg) w,
            x = in(vreg) x,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sum
}
