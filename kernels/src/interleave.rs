//! The layout in which weights are read without being transposed: each 16 rows interleaved.
//!
//! A block of a type is cut into units: words of 4 bytes, and where that does not come out, its F16 factor as a unit of 2
//! (elements, for types without blocks). Unit `u` at byte `at` of block `b` of row `r` (of 16) moves to byte
//! `16 · (b · block_bytes + at) + r · unit_bytes` of the panel: block by block, each unit of all the rows. Sizes do not
//! change, and nothing is lost.

use crate::Dtype;
use crate::block::{Q3_K, Q4_0, Q5_0, Q6_K, Q8_0};
use crate::panel::PANEL_ROWS;
use std::mem::offset_of;

/// The units of a block of `dtype`, `(at, bytes)`, in order.
fn units(dtype: Dtype) -> impl Iterator<Item = (usize, usize)> {
    let size = dtype.block().1;
    const { assert!(offset_of!(Q4_0, d) == 0 && offset_of!(Q5_0, d) == 0 && offset_of!(Q8_0, d) == 0) };
    // Where the one unit of 2 bytes lies.
    let half = match dtype {
        Dtype::Q3_K => offset_of!(Q3_K, d),
        Dtype::Q6_K => offset_of!(Q6_K, d),
        _ if size.is_multiple_of(4) => usize::MAX,
        _ => 0,
    };
    let mut at = 0;
    std::iter::from_fn(move || {
        let bytes = if at == half { 2 } else { 4 };
        at += bytes;
        (at <= size).then_some((at - bytes, bytes))
    })
}

/// Interleaves 16 rows: `rows` holds them one after the other, `panel` is as long.
///
/// # Panics
/// If the lengths differ or are no whole blocks.
pub fn interleave(dtype: Dtype, rows: &[u8], panel: &mut [u8]) {
    let size = dtype.block().1;
    let row_bytes = check(dtype, rows, panel);
    for block in (0..row_bytes).step_by(size) {
        for (at, n) in units(dtype) {
            for (r, to) in panel[PANEL_ROWS * (block + at)..][..PANEL_ROWS * n].chunks_exact_mut(n).enumerate() {
                to.copy_from_slice(&rows[r * row_bytes + block + at..][..n]);
            }
        }
    }
}

/// Copies row `r` out of an interleaved panel.
///
/// # Panics
/// If `panel` is no 16 rows of the length of `row`, or `r` is no row of it.
pub fn row(dtype: Dtype, panel: &[u8], r: usize, row: &mut [u8]) {
    let size = dtype.block().1;
    assert!(r < PANEL_ROWS && panel.len() == PANEL_ROWS * row.len() && row.len().is_multiple_of(size));
    for (b, block) in row.chunks_exact_mut(size).enumerate() {
        for (at, n) in units(dtype) {
            block[at..at + n].copy_from_slice(&panel[PANEL_ROWS * (b * size + at) + r * n..][..n]);
        }
    }
}

fn check(dtype: Dtype, rows: &[u8], panel: &[u8]) -> usize {
    let size = dtype.block().1;
    assert!(
        rows.len() == panel.len() && rows.len().is_multiple_of(PANEL_ROWS * size),
        "{} bytes of {dtype}",
        rows.len()
    );
    rows.len() / PANEL_ROWS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_cover_a_block() {
        for dtype in Dtype::RUNNABLE {
            let mut end = 0;
            for (at, n) in units(dtype) {
                assert_eq!(at, end, "{dtype}");
                end += n;
            }
            assert_eq!(end, dtype.block().1, "{dtype}");
        }
        assert_eq!(units(Dtype::Q4_0).next(), Some((0, 2)));
        assert_eq!(units(Dtype::Q6_K).last(), Some((208, 2)));
        assert_eq!(units(Dtype::F16).collect::<Vec<_>>(), [(0, 2)]);
    }

    #[test]
    fn rows_come_back() {
        for dtype in Dtype::RUNNABLE {
            let bytes = 3 * dtype.block().1;
            let rows: Vec<u8> = (0..PANEL_ROWS * bytes).map(|i| (i * 31 % 251) as u8).collect();
            let mut panel = vec![0; rows.len()];
            interleave(dtype, &rows, &mut panel);
            for r in 0..PANEL_ROWS {
                let mut out = vec![0; bytes];
                row(dtype, &panel, r, &mut out);
                assert!(out == rows[r * bytes..][..bytes], "{dtype} row {r}");
            }
        }
    }
}
