//! New forms of matrices, made as they are loaded: from the mapped file into memory of their own, in a layout that kernels
//! read without transposing. The file's pages are given back on the way, so that a model is in memory once.

use super::Weight;
use crate::gguf::Bytes;
use crate::{Dtype, Result, unless_stopped};
use mmq_kernels::interleave::interleave;
use mmq_kernels::panel::PANEL_ROWS;
use mmq_kernels::round::{Steps, to_q8_0};
use mmq_kernels::{Layout, Team, Weights, kernels, stopped};
use std::cell::RefCell;
use std::ops::Range;

/// Bytes that are taken between two looks at who wants to stop: more than regions of the team cost, less than what a
/// person or a small device would notice.
const CHUNK: usize = 8 << 20;

/// What makes new forms of matrices, and who watches.
pub struct Prepare<'a> {
    team: &'a Team,
    /// Told the number of bytes done since the last call.
    progress: RefCell<&'a mut dyn FnMut(usize)>,
    made: Made,
}

/// All that was made, held until it is known whether it is wanted.
#[derive(Default)]
struct Made(RefCell<Vec<Bytes>>);

impl Drop for Made {
    /// Gigabytes take the system a tenth of a second to take back: who has stopped the work does not wait for it.
    fn drop(&mut self) {
        free_if_stopped(self.0.take());
    }
}

/// Drops what may hold gigabytes, on a thread of its own if somebody waits for this one to stop.
pub(crate) fn free_if_stopped(held: impl Send + 'static) {
    if stopped() {
        // Where no thread is to be had it is dropped here.
        let _ = std::thread::Builder::new().name("mmq-free".into()).spawn(move || drop(held));
    }
}

impl<'a> Prepare<'a> {
    /// Works with `team` until it is [stopped](mmq_kernels::stopped); `progress` is told of each stretch of stored bytes that
    /// is done.
    pub fn new(team: &'a Team, progress: &'a mut dyn FnMut(usize)) -> Prepare<'a> {
        Prepare { team, progress: RefCell::new(progress), made: Made::default() }
    }

    /// The threads that it works with.
    pub fn team(&self) -> &Team {
        self.team
    }

    /// A copy of `weight`, which lies in rows, in panels.
    pub(super) fn interleave(&self, weight: &Weight) -> Result<Weight> {
        let row_bytes = weight.bytes.len() / weight.n_rows;
        self.make(weight, weight.dtype, &|rows, out| {
            let from = &weight.bytes[rows.start * row_bytes..rows.end * row_bytes];
            let panels = rows.len() / PANEL_ROWS * PANEL_ROWS * row_bytes;
            self.team.rows(&mut out[..panels], PANEL_ROWS * row_bytes, &|i, panel| {
                interleave(weight.dtype, &from[i * panel.len()..][..panel.len()], panel);
            });
            out[panels..].copy_from_slice(&from[panels..]);
        })
    }

    /// The float matrix `weight` in Q8_0, in panels.
    pub(super) fn round(&self, weight: &Weight) -> Result<Weight> {
        let Weights { dtype, layout, n_cols, data, .. } = weight.view();
        let row_bytes = weight.bytes.len() / weight.n_rows;
        self.make(weight, Dtype::Q8_0, &|rows, out| {
            let data = &data[rows.start * row_bytes..rows.end * row_bytes];
            let weights = Weights { dtype, layout, n_rows: rows.len(), n_cols, data };
            to_q8_0(self.team, weights, Steps::of(kernels().level), out);
        })
    }

    /// `weight` in another form, which `fill(rows, out)` writes for some rows at a time: whole panels, but for the last.
    /// The pages that `weight` lies in are given back.
    fn make(&self, weight: &Weight, dtype: Dtype, fill: &dyn Fn(Range<usize>, &mut [u8])) -> Result<Weight> {
        let (n_rows, from) = (weight.n_rows, &weight.bytes);
        let (stored, made) = (from.len() / n_rows, dtype.row_bytes(weight.n_cols).expect("whole blocks"));
        let step = CHUNK.div_ceil(PANEL_ROWS * stored) * PANEL_ROWS;
        let bytes = Bytes::filled(n_rows * made, |out| {
            from.read_ahead(0..step.min(n_rows) * stored);
            for first in (0..n_rows).step_by(step).take_while(|_| !stopped()) {
                let rows = first..n_rows.min(first + step);
                let next = rows.end..n_rows.min(rows.end + step);
                from.read_ahead(next.start * stored..next.end * stored);
                fill(rows.clone(), &mut out[rows.start * made..rows.end * made]);
                from.give_back(rows.start * stored..rows.end * stored);
                (self.progress.borrow_mut())(rows.len() * stored);
            }
            Ok(())
        })?;
        self.made.0.borrow_mut().push(bytes.clone());
        unless_stopped()?;
        Ok(Weight { dtype, layout: Layout::Panels, bytes, ..weight.clone() })
    }
}
