//! Packed files: written so that a mapped file runs at full speed as it is, and turned back.

use super::Cancel;
use crate::device::Cpu;
use crate::gguf::{Gguf, Sink, TensorInfo, Writer};
use crate::{Error, ErrorKind, Result, architectures};
use mmq_kernels::interleave::{deinterleave, interleave};
use mmq_kernels::panel::PANEL_ROWS;
use mmq_kernels::{Dtype, Layout};
use std::collections::HashSet;
use std::ops::Range;
use std::path::Path;

/// Bytes that are in memory at a time.
const CHUNK: usize = 8 << 20;

/// Copies the tensors of a file, some of them from one layout to the other.
pub struct Packer<'a> {
    gguf: &'a Gguf,
    device: Cpu,
    cancel: &'a Cancel,
    progress: &'a mut dyn FnMut(f32),
    /// Bytes that are written.
    done: u64,
    buffer: Vec<u8>,
}

/// Turns 16 rows from one layout to the other.
type Turn = fn(Dtype, &[u8], &mut [u8]);

impl<'a> Packer<'a> {
    /// Copies from `gguf` with `n_threads`, as in [`EngineOptions`](super::EngineOptions), until `cancel` is used;
    /// `progress` is told the fraction done.
    pub fn new(
        gguf: &'a Gguf,
        n_threads: Option<usize>,
        cancel: &'a Cancel,
        progress: &'a mut dyn FnMut(f32),
    ) -> Packer<'a> {
        Packer { gguf, device: Cpu::new(n_threads), cancel, progress, done: 0, buffer: Vec::new() }
    }

    /// Writes the file to `to` with every matrix that its models multiply with interleaved.
    ///
    /// # Errors
    /// A file that is packed already or that mmq cannot run; one that cannot be written; `cancel` used by another thread.
    pub fn pack(self, to: &Path) -> Result<()> {
        let mut names = architectures::matrices(self.gguf)?;
        names.sort_unstable();
        names.dedup();
        names.retain(|name| self.gguf.tensor(name).is_some_and(TensorInfo::can_be_interleaved));
        let chosen: HashSet<String> = names.iter().cloned().collect();
        let writer = Writer::packing(self.gguf, names)?;
        self.write(writer, to, interleave, |info| chosen.contains(&info.name))
    }

    /// Writes the file, a packed one, to `to` as it was before.
    ///
    /// # Errors
    /// A file that is not packed; one that cannot be written; `cancel` used by another thread.
    pub fn unpack(self, to: &Path) -> Result<()> {
        let writer = Writer::unpacking(self.gguf)?;
        self.write(writer, to, deinterleave, |info| info.layout == Layout::Panels)
    }

    /// Writes what `writer` begins; the tensors that `turns` says go through `turn`.
    fn write(mut self, mut writer: Writer, to: &Path, turn: Turn, turns: impl Fn(&TensorInfo) -> bool) -> Result<()> {
        for info in self.gguf.tensors() {
            writer.tensor(&info.name, info.dtype, &info.shape)?;
        }
        writer.write(to, |info, sink| {
            let info = self.gguf.tensor(&info.name).expect("its own tensor");
            if !turns(info) {
                return self.copy(info, 0..info.n_bytes, None, sink);
            }
            let panels = info.n_bytes / info.shape[0] * (info.shape[0] / PANEL_ROWS * PANEL_ROWS);
            self.copy(info, 0..panels, Some(turn), sink)?;
            self.copy(info, panels..info.n_bytes, None, sink)
        })
    }

    /// Writes part of a tensor, as it is or turned panel by panel, and gives its pages back.
    fn copy(
        &mut self,
        info: &TensorInfo,
        range: Range<usize>,
        turn: Option<Turn>,
        sink: &mut Sink<'_, '_>,
    ) -> Result<()> {
        let bytes = self.gguf.bytes(info);
        let panel_bytes = turn.map_or(1, |_| info.n_bytes / info.shape[0] * PANEL_ROWS);
        let step = CHUNK.next_multiple_of(panel_bytes);
        for at in range.clone().step_by(step) {
            if self.cancel.is_cancelled() {
                return Err(Error::new(ErrorKind::Cancelled, "stopped"));
            }
            let part = at..(at + step).min(range.end);
            let from = &bytes[part.clone()];
            match turn {
                None => sink.put(from)?,
                Some(turn) => {
                    self.buffer.resize(from.len(), 0);
                    self.device.team.rows(&mut self.buffer, panel_bytes, &|i, to| {
                        turn(info.dtype, &from[i * panel_bytes..][..panel_bytes], to);
                    });
                    sink.put(&self.buffer)?;
                }
            }
            self.done += part.len() as u64;
            bytes.give_back(part);
            (self.progress)(self.done as f32 / self.gguf.n_bytes() as f32);
        }
        Ok(())
    }
}
