//! Interleaving matrices as they are loaded: from the mapped file into memory of their own, in the layout that kernels
//! read without transposing. The file's pages are given back on the way, so that a model is in memory once.

use super::Weight;
use crate::gguf::Bytes;
use crate::{Error, ErrorKind, Result};
use mmq_kernels::panel::PANEL_ROWS;
use mmq_kernels::{Layout, Team, interleave::interleave};
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
        let panel_bytes = weight.bytes.len() / weight.n_rows * PANEL_ROWS;
        let panels = weight.n_rows / PANEL_ROWS * panel_bytes;
        let step = CHUNK.div_ceil(panel_bytes) * panel_bytes;
        let from = &weight.bytes;
        let bytes = Bytes::filled(from.len(), |out| {
            from.read_ahead(0..step.min(panels));
            for at in (0..panels).step_by(step) {
                if self.cancel.is_some_and(|cancel| cancel.load(Ordering::Relaxed)) {
                    return Err(Error::new(ErrorKind::Cancelled, "stopped"));
                }
                let end = (at + step).min(panels);
                from.read_ahead(end..(end + step).min(panels));
                self.team.rows(&mut out[at..end], panel_bytes, &|i, panel| {
                    interleave(weight.dtype, &from[at + i * panel_bytes..][..panel_bytes], panel);
                });
                from.give_back(at..end);
                (self.progress.borrow_mut())(end - at);
            }
            out[panels..].copy_from_slice(&from[panels..]);
            Ok(())
        })?;
        Ok(Weight { layout: Layout::Panels, bytes, ..weight.clone() })
    }
}
