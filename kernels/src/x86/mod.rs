//! Kernels for x86-64: one folder for each instruction set.

/// The operators of vectors for quantizers, each one intrinsic.
macro_rules! lane_operators {
    ($lanes:ident: $($op:ident $name:ident $intrinsic:ident)*) => { $(
        impl std::ops::$op for $lanes {
            type Output = $lanes;
            #[inline(always)]
            fn $name(self, other: $lanes) -> $lanes {
                // SAFETY: the vector is of a processor that has the instructions of its level.
                $lanes(unsafe { $intrinsic(self.0, other.0) })
            }
        }
    )* };
}

/// Their methods that are one expression of intrinsics.
macro_rules! lane_methods {
    ($(fn $name:ident($($arg:ident: $ty:ty),*) -> $result:ty = $value:expr;)*) => { $(
        #[inline(always)]
        fn $name($($arg: $ty),*) -> $result {
            // SAFETY: the processor has the instructions of this level; loads need no alignment and stay within what is borrowed.
            unsafe { $value }
        }
    )* };
    (self: $($name:ident($($arg:ident)?) -> $result:ty = |$this:ident| $value:expr;)*) => { $(
        #[inline(always)]
        fn $name(self $(, $arg: Self)?) -> $result {
            let $this = self.0;
            $(let $arg = $arg.0;)?
            // SAFETY: the processor has the instructions of this level.
            unsafe { $value }
        }
    )* };
}

mod avx2;
mod avx512;

use crate::panel::PANEL_ROWS;
use crate::table::QuantizeWeights;
use crate::{Kernels, Level};
use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
use std::marker::PhantomData;

/// Appends the table of each level that this processor supports. Each level starts from the one before it.
pub(crate) fn extend(tables: &mut Vec<Kernels>) {
    let mut push = |level, extend: fn(&mut Kernels)| {
        let mut table = Kernels { level, ..tables[tables.len() - 1] };
        extend(&mut table);
        tables.push(table);
    };
    if supports(Level::Avx2) {
        push(Level::Avx2, avx2::extend);
    }
    if supports(Level::Avx512) {
        push(Level::Avx512, avx512::extend);
    }
}

/// Whether this processor has what the kernels of a level use.
fn supports(level: Level) -> bool {
    macro_rules! detected {
        ($($feature:tt)*) => { true $(&& is_x86_feature_detected!($feature))* };
    }
    match level {
        Level::Avx2 => detected!("avx2" "fma" "f16c"),
        Level::Avx512 => supports(Level::Avx2) && detected!("avx512f" "avx512bw" "avx512dq" "avx512vl" "avx512vnni"),
        _ => false,
    }
}

/// What writes weights at a level, if this processor has it.
pub(crate) fn quantize_weights(level: Level) -> Option<QuantizeWeights> {
    let call: QuantizeWeights = match level {
        Level::Avx2 => avx2::quantize_weights::quantize_weights,
        Level::Avx512 => avx512::quantize_weights::quantize_weights,
        _ => return None,
    };
    supports(level).then_some(call)
}

/// The highest bit for each four bits of which an odd number is set.
const ODD: [i8; 16] = {
    let mut odd = [0; 16];
    let mut i = 0;
    while i < 16 {
        odd[i] = if i.count_ones() % 2 == 1 { i8::MIN } else { 0 };
        i += 1;
    }
    odd
};

/// Asks for the cache line of `address`, into the second-level cache: that has more requests under way than the first, and
/// what is asked for far ahead would push out what is in use there.
#[inline]
fn touch(address: *const u8) {
    // SAFETY: a prefetch touches no memory and may name any address.
    unsafe { _mm_prefetch::<_MM_HINT_T1>(address.cast()) };
}

/// Sixteen rows of the same length: apart, or `INTERLEAVED`.
struct Rows<'a, const INTERLEAVED: bool> {
    /// The beginning of each row, or of the panel.
    start: [*const u8; PANEL_ROWS],
    /// Bytes of a row.
    len: usize,
    bytes: PhantomData<&'a [u8]>,
}

impl<'a> Rows<'a, false> {
    fn apart(rows: &[&'a [u8]; PANEL_ROWS]) -> Self {
        assert!(rows.iter().all(|row| row.len() == rows[0].len()));
        Rows { start: rows.map(<[u8]>::as_ptr), len: rows[0].len(), bytes: PhantomData }
    }
}

impl<'a> Rows<'a, true> {
    fn interleaved(panel: &'a [u8]) -> Self {
        Rows { start: [panel.as_ptr(); PANEL_ROWS], len: panel.len() / PANEL_ROWS, bytes: PhantomData }
    }
}

impl<const INTERLEAVED: bool> Rows<'_, INTERLEAVED> {
    /// Asks for part `part` of `n_parts` of what follows bytes `at..at + size` of the rows: in a panel, two pages on; of rows
    /// apart, which lie one behind the other, the next 16 and a page. By parts, since a core waits for only so many lines at a
    /// time; each has as many, so that no branch depends on the part.
    #[inline]
    fn ahead(&self, at: usize, size: usize, part: usize, n_parts: usize) {
        let from = PANEL_ROWS * at + if INTERLEAVED { 8192 } else { PANEL_ROWS * self.len + 4096 };
        let n_lines = (PANEL_ROWS * size).div_ceil(64);
        let first = n_lines * part / n_parts;
        for line in first..first + n_lines.div_ceil(n_parts) {
            touch(self.start[0].wrapping_add(from + 64 * line));
        }
    }
}
