//! Interleaving matrices as they are loaded: from the mapped file into memory of their own, in the layout that kernels
//! read without transposing. The file's pages are given back on the way, so that a model is in memory once.

use super::Weight;
use crate::gguf::Bytes;
use crate::{Dtype, Error, ErrorKind, Result};
use mmq_kernels::panel::PANEL_ROWS;
use mmq_kernels::round::{Steps, round};
use mmq_kernels::{Layout, Team, interleave::interleave, kernels};
use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, Ordering};

/// Bytes that are interleaved between two looks at who wants to stop: more than regions of the team cost, less than what
/// a person or a small device would notice.
const CHUNK: usize = 8 << 20;

/// What interleaves matrices, and who watches.
pub struct Repack<'a> {
    team: &'a Team,
    cancel: Option<&'a AtomicBool>,
    /// Told the number of bytes done since the last call.
    progress: RefCell<&'a mut dyn FnMut(usize)>,
}

impl<'a> Repack<'a> {
    /// Interleaves with `team` until `cancel` is set; `progress` is told of each stretch of bytes that is done.
    pub fn new(team: &'a Team, cancel: Option<&'a AtomicBool>, progress: &'a mut dyn FnMut(usize)) -> Repack<'a> {
        Repack { team, cancel, progress: RefCell::new(progress) }
    }

    /// A copy of `weight`, which lies in rows, in panels; the pages that `weight` lies in are given back.
    pub(super) fn run(&self, weight: &Weight) -> Result<Weight> {
        self.make(weight, weight.dtype, &|rows, panel| {
            if rows.len() == PANEL_ROWS * weight.row_bytes() {
                interleave(weight.dtype, rows, panel);
            } else {
                panel.copy_from_slice(rows);
            }
        })
    }

    /// As [`Repack::run`], a float `weight` becoming Q8_0.
    pub(super) fn round(&self, weight: &Weight) -> Result<Weight> {
        let steps = Steps::of(kernels().level);
        self.make(weight, Dtype::Q8_0, &|rows, panel| round(weight.dtype, rows, weight.n_cols, steps, panel))
    }

    /// A copy of `weight` of type `dtype` in panels: `convert` makes each from its rows.
    fn make(&self, weight: &Weight, dtype: Dtype, convert: &(dyn Fn(&[u8], &mut [u8]) + Sync)) -> Result<Weight> {
        let (n_rows, stored) = (weight.n_rows, weight.row_bytes());
        let made = dtype.row_bytes(weight.n_cols).expect("a matrix holds whole blocks");
        let step = CHUNK.div_ceil(PANEL_ROWS * stored) * PANEL_ROWS;
        let from = &weight.bytes;
        let bytes = Bytes::filled(n_rows * made, |out| {
            from.read_ahead(0..step.min(n_rows) * stored);
            for first in (0..n_rows).step_by(step) {
                if self.cancel.is_some_and(|cancel| cancel.load(Ordering::Relaxed)) {
                    return Err(Error::new(ErrorKind::Cancelled, "stopped"));
                }
                let end = (first + step).min(n_rows);
                from.read_ahead(end * stored..(end + step).min(n_rows) * stored);
                self.team.rows(&mut out[first * made..end * made], PANEL_ROWS * made, &|i, panel| {
                    let row = first + i * PANEL_ROWS;
                    convert(&from[row * stored..(row + PANEL_ROWS).min(n_rows) * stored], panel);
                });
                from.give_back(first * stored..end * stored);
                (self.progress.borrow_mut())((end - first) * stored);
            }
            Ok(())
        })?;
        Ok(Weight { dtype, layout: Layout::Panels, bytes, ..*weight })
    }
}
