//! The layout in which weights are read without being transposed: each 16 rows interleaved.
//!
//! A block of a type is cut into units: words of 4 bytes, and where that does not come out, its factor as a unit of 2 bytes,
//! or of 1 (elements, for types without blocks). Unit `u` at byte `at` of block `b` of row `r` (of 16) moves to byte
//! `16 · (b · block_bytes + at) + r · unit_bytes` of the panel: block by block, each unit of all the rows. Sizes do not
//! change, and nothing is lost.

use crate::Dtype;
use crate::block::{Q3_K, Q6_K, TQ1_0, TQ2_0};
use crate::panel::PANEL_ROWS;
use std::mem::offset_of;
use std::ops::Range;

/// Units of one size that lie together in a row.
#[derive(Clone, Debug, PartialEq)]
struct Span {
    /// Their place within a [`step`].
    at: Range<usize>,
    /// Bytes of each.
    unit: usize,
}

/// How the bytes of a row repeat: the length of a step in bytes, of which a row's last may be a part, and its units.
fn step(dtype: Dtype) -> (usize, Vec<Span>) {
    let size = dtype.block().1;
    // Where the one unit that is no word lies, and its length.
    let (odd, unit) = match dtype {
        Dtype::Q3_K => (offset_of!(Q3_K, d), 2),
        Dtype::Q6_K => (offset_of!(Q6_K, d), 2),
        Dtype::TQ1_0 => (offset_of!(TQ1_0, d), 2),
        Dtype::TQ2_0 => (offset_of!(TQ2_0, d), 2),
        _ => (0, size % 4),
    };
    // A cache line of each row at a time, where blocks are all words or all halves.
    const LINE: usize = 64;
    match size {
        2 => (LINE, vec![Span { at: 0..LINE, unit: 2 }]),
        _ if size.is_multiple_of(4) => (LINE, vec![Span { at: 0..LINE, unit: 4 }]),
        _ => {
            let spans = [(0..odd, 4), (odd..odd + unit, unit), (odd + unit..size, 4)];
            (size, spans.into_iter().filter(|(at, _)| !at.is_empty()).map(|(at, unit)| Span { at, unit }).collect())
        }
    }
}

/// Calls `f(units, at)` for each stretch of units of one size in a row of `row_bytes`.
fn stretches(dtype: Dtype, row_bytes: usize, mut f: impl FnMut(usize, Range<usize>)) {
    let (step, spans) = step(dtype);
    for start in (0..row_bytes).step_by(step) {
        for Span { at, unit } in &spans {
            f(*unit, start + at.start..(start + at.end).min(row_bytes));
        }
    }
}

/// Interleaves 16 rows: `rows` holds them one after the other, `panel` is as long.
///
/// # Panics
/// If the lengths differ or are no whole blocks.
pub fn interleave(dtype: Dtype, rows: &[u8], panel: &mut [u8]) {
    let row_bytes = check(dtype, rows, panel);
    stretches(dtype, row_bytes, |unit, at| {
        let to = &mut panel[PANEL_ROWS * at.start..PANEL_ROWS * at.end];
        for (r, row) in rows.chunks_exact(row_bytes).enumerate() {
            match unit {
                1 => scatter::<1>(&row[at.clone()], r, to),
                2 => scatter::<2>(&row[at.clone()], r, to),
                _ => scatter::<4>(&row[at.clone()], r, to),
            }
        }
    });
}

/// The rows of a panel, one after the other: the inverse of [`interleave`].
///
/// # Panics
/// If the lengths differ or are no whole blocks.
pub fn deinterleave(dtype: Dtype, panel: &[u8], rows: &mut [u8]) {
    let row_bytes = check(dtype, panel, rows);
    for (r, to) in rows.chunks_exact_mut(row_bytes).enumerate() {
        row(dtype, panel, r, to);
    }
}

/// Copies row `r` out of an interleaved panel.
///
/// # Panics
/// If `panel` is no 16 rows of the length of `row`, or `r` is no row of it.
pub fn row(dtype: Dtype, panel: &[u8], r: usize, row: &mut [u8]) {
    assert!(r < PANEL_ROWS && panel.len() == PANEL_ROWS * row.len() && row.len().is_multiple_of(dtype.block().1));
    stretches(dtype, row.len(), |unit, at| {
        let from = &panel[PANEL_ROWS * at.start..PANEL_ROWS * at.end];
        match unit {
            1 => gather::<1>(from, r, &mut row[at]),
            2 => gather::<2>(from, r, &mut row[at]),
            _ => gather::<4>(from, r, &mut row[at]),
        }
    });
}

/// Writes the units of row `r` to their places among those of 16 rows.
fn scatter<const N: usize>(row: &[u8], r: usize, panel: &mut [u8]) {
    let units = panel.as_chunks_mut::<N>().0.as_chunks_mut::<PANEL_ROWS>().0;
    for (to, unit) in units.iter_mut().zip(row.as_chunks::<N>().0) {
        to[r] = *unit;
    }
}

/// Reads the units of row `r` from their places among those of 16 rows.
fn gather<const N: usize>(panel: &[u8], r: usize, row: &mut [u8]) {
    let units = panel.as_chunks::<N>().0.as_chunks::<PANEL_ROWS>().0;
    for (unit, from) in row.as_chunks_mut::<N>().0.iter_mut().zip(units) {
        *unit = from[r];
    }
}

fn check(dtype: Dtype, from: &[u8], to: &[u8]) -> usize {
    let size = dtype.block().1;
    assert!(
        from.len() == to.len() && !from.is_empty() && from.len().is_multiple_of(PANEL_ROWS * size),
        "{} bytes of {dtype}",
        from.len()
    );
    from.len() / PANEL_ROWS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_cover_a_row() {
        for dtype in Dtype::RUNNABLE {
            let row_bytes = 5 * dtype.block().1;
            let mut end = 0;
            stretches(dtype, row_bytes, |unit, at| {
                assert!(at.start == end && at.len().is_multiple_of(unit) && !at.is_empty(), "{dtype}");
                end = at.end;
            });
            assert_eq!(end, row_bytes, "{dtype}");
        }
        assert_eq!(step(Dtype::Q4_0).1, [Span { at: 0..2, unit: 2 }, Span { at: 2..18, unit: 4 }]);
        assert_eq!(step(Dtype::Q6_K).1, [Span { at: 0..208, unit: 4 }, Span { at: 208..210, unit: 2 }]);
        assert_eq!(step(Dtype::MXFP4).1, [Span { at: 0..1, unit: 1 }, Span { at: 1..17, unit: 4 }]);
        assert_eq!(step(Dtype::F16).1, [Span { at: 0..64, unit: 2 }]);
    }

    /// The formula at the top of this file.
    #[test]
    fn bytes_lie_where_they_should() {
        for dtype in Dtype::RUNNABLE {
            let (size, row_bytes) = (dtype.block().1, 7 * dtype.block().1);
            let rows: Vec<u8> = (0..PANEL_ROWS * row_bytes).map(|i| (i * 31 % 251) as u8).collect();
            let mut panel = vec![0; rows.len()];
            interleave(dtype, &rows, &mut panel);
            // The unit that is no word.
            let odd = match dtype {
                Dtype::Q3_K => 108..110,
                Dtype::Q6_K => 208..210,
                Dtype::TQ1_0 => 52..54,
                Dtype::TQ2_0 => 64..66,
                Dtype::MXFP4 => 0..1,
                _ => 0..2,
            };
            for (r, at) in (0..PANEL_ROWS).flat_map(|r| (0..row_bytes).map(move |at| (r, at))) {
                let in_block = at % size;
                // The unit that the byte belongs to, and its size.
                let (start, unit) = match size % 4 {
                    0 => (in_block / 4 * 4, 4),
                    _ if odd.contains(&in_block) => (odd.start, odd.len()),
                    _ if in_block < odd.start => (in_block / 4 * 4, 4),
                    _ => ((in_block - odd.end) / 4 * 4 + odd.end, 4),
                };
                let to = PANEL_ROWS * (at - in_block + start) + r * unit + in_block - start;
                assert_eq!(panel[to], rows[r * row_bytes + at], "{dtype} row {r} byte {at}");
            }
        }
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
            let mut back = vec![0; rows.len()];
            deinterleave(dtype, &panel, &mut back);
            assert!(back == rows, "{dtype}");
        }
    }
}
